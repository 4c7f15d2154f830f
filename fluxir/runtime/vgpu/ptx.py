"""What a PTX module is: the tree that `parser` builds and `link` turns into code. Objects are frozen and carry their line.

Source: NVIDIA, Parallel Thread Execution ISA, version 9.0: sections 4 (syntax), 5 (state spaces), 6 (operands), 11 (directives).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxir.errors import Location

__all__ = [
    "Address",
    "Function",
    "Group",
    "Immediate",
    "Instruction",
    "Label",
    "Module",
    "Negated",
    "Operand",
    "Pair",
    "Register",
    "Sink",
    "Special",
    "Symbol",
    "Variable",
    "Vector",
    "type_bytes",
]


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Negated:
    """`!%p1`: a predicate read the other way round."""

    register: Register


@dataclass(frozen=True)
class Special:
    """`%tid.x` and the like: read only, known to the machine."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A number. `bits` is 0 for an integer of no width yet, 32 for `0f...` and 64 for `0d...` (value: the float's bits), and
    -64 for a decimal floating point number (value: the bits of its double)."""

    value: int
    bits: int = 0


@dataclass(frozen=True)
class Symbol:
    """A variable, a function or a label by name, with a byte offset."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """`[base + offset]`; `coordinates` where a tensor map is indexed: `[%rd1, {%r1, %r2}]`."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: Vector | None = None


@dataclass(frozen=True)
class Vector:
    """`{a, b}`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """`d|p`: two destinations in one operand."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Sink:
    """`_`: a result nobody wants."""


@dataclass(frozen=True)
class Group:
    """`(a, b)`: the arguments or results of a call."""

    items: tuple[Operand, ...]


Operand = Register | Negated | Special | Immediate | Symbol | Address | Vector | Pair | Sink | Group


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@guard name.modifiers operands`. `line` is the line in the PTX text; `used_bytes`, of a load, has a bit
    for each byte that matters (the pragma `used_bytes_mask`), None for all: padding is copied and may hold anything."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    line: int
    text: str
    location: Location | None = None
    used_bytes: int | None = None


@dataclass(frozen=True)
class Label:
    name: str
    line: int


@dataclass(frozen=True)
class Variable:
    """A declared variable or parameter. `count` is the number of elements, 0 for an array of unknown length (dynamic shared
    memory); `initial`: the bytes at its start, and `pointers`: (byte offset, symbol) for addresses in it."""

    space: str  # "global", "const", "shared", "local", "param", "reg"
    name: str
    type: str
    count: int
    align: int
    line: int
    initial: bytes = b""
    pointers: tuple[tuple[int, Symbol], ...] = ()
    external: bool = False
    is_array: bool = False
    is_pointer: bool = False  # declared `.ptr`

    @property
    def nbytes(self) -> int:
        return self.count * type_bytes(self.type)


def type_bytes(name: str) -> int:
    """The size of a PTX type in bytes: 4 for `f32`."""
    if name == "pred":
        return 1
    if name in _OPAQUE:
        return 8
    digits = name.lstrip("abcdefghijklmnopqrstuvwxyz")
    width, _, times = digits.partition("x")
    return int(width) // 8 * int(times or 1)


_OPAQUE = ("texref", "samplerref", "surfref")


@dataclass(frozen=True)
class Function:
    """An `.entry` (kernel) or a `.func`. `body` is None for a declaration. `registers`: type by name; a register that a
    nested scope declares again is renamed, so that names are unique. `limits`: `maxntid`, `reqntid`, `minnctapersm`..."""

    name: str
    is_entry: bool
    parameters: tuple[Variable, ...]
    results: tuple[Variable, ...]
    registers: Mapping[str, str]
    variables: tuple[Variable, ...]
    body: tuple[Instruction | Label, ...] | None
    limits: Mapping[str, tuple[int, ...]]
    line: int
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # `.branchtargets`, `.calltargets`
    prototypes: Mapping[str, tuple[tuple[Variable, ...], tuple[Variable, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Module:
    version: tuple[int, int]
    target: str
    address_size: int
    functions: Mapping[str, Function]
    variables: Mapping[str, Variable]
    files: Mapping[int, str]
    text: str = field(repr=False, default="")

    @property
    def entries(self) -> list[str]:
        return [f.name for f in self.functions.values() if f.is_entry]
