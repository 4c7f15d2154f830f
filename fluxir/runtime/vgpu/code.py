"""What linked code is: basic blocks of steps, register slots, and places of variables.

`link` makes it, `Wave` (and `native`) run it; nothing here knows how an instruction is read or what it means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import isa
from .ptx import Instruction, Variable, type_bytes
from .values import register_dtype

if TYPE_CHECKING:
    from .scope import Scope
    from .wave import Mask, Wave

__all__ = ["CALL_ZONE", "PATIENCE", "ZONE", "Block", "Code", "Frame", "Place", "Step"]

Step = Callable[["Wave", "Mask"], None]

ZONE = 128  # bytes that belong to nothing between two variables of shared or local memory
CALL_ZONE = 16  # and between two arguments of a call
PATIENCE = 256  # rounds of a loop that reads what others write, before others run


@dataclass(eq=False)
class Block:
    """A basic block. `end` sends the threads on; `classes` counts its instructions by class; `spins`: it closes a loop that
    reads what other threads write, and others run after `patience` rounds of it.
    `after`: the block that those go on to who do not branch; `labels`: the blocks that labels stand for here."""

    first: Instruction
    steps: list[Step]
    end: Step
    instructions: list[tuple[isa.Opcode, isa.Form, Scope]]
    classes: dict[str, int] = field(default_factory=dict)
    flops: int = 0
    spins: bool = False
    patience: int = 0
    after: int = -1
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.instructions)


@dataclass
class Code:
    """A function ready to run. `registers`: the type of each slot. `local_bytes`: the stack frame of one thread.
    `arguments`: where a call puts its arguments, and `results` where it finds them."""

    name: str
    blocks: list[Block]
    registers: list[str]
    locals: list[tuple[int, int, str]]  # (offset, bytes, name) of local variables
    local_bytes: int
    arguments: list[tuple[str, int]] = field(default_factory=list)
    results: list[tuple[str, int]] = field(default_factory=list)

    def fresh(self) -> list[Any]:
        """Registers nobody has written: a pattern that shows."""
        return [np.bool_(False) if k == "pred" else register_dtype(k).type(0xDEADBEEF_DEADBEEF & (256 ** type_bytes(k) - 1))
                for k in self.registers]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a variable lies: "shared", "local", "global", "argument" (of the kernel) or "function", and its offset there."""

    space: str
    offset: int


class Frame:
    """What one `Code` has: register slots and local variables."""

    def __init__(self) -> None:
        self.registers: list[str] = []
        self.locals: list[tuple[int, int, str]] = []
        self.top = 0
        self.carry = -1

    def slot(self, kind: str) -> int:
        self.registers.append(kind)
        return len(self.registers) - 1

    def local(self, v: Variable) -> Place:
        align = max(v.align, 8)
        offset = -(-self.top // align) * align
        self.locals.append((offset, v.nbytes, v.name))
        self.top = offset + -(-v.nbytes // 16) * 16 + (CALL_ZONE if v.space == "param" else ZONE)
        return Place("local", offset)
