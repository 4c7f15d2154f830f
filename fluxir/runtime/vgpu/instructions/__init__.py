"""The instructions of the virtual GPU, one module a family. A module declares its instructions with `isa.lanewise` or
`isa.machine` when it is imported; `isa.opcodes` imports them all."""
