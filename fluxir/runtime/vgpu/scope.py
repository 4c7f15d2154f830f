"""How an instruction reads and writes its operands: `Scope`, the names of one inlined copy of a function.

Meanings of instructions are given a scope when the code is linked, and get functions of the wave from it: readers and writers of
registers, addresses, labels. What a name stands for is decided here once, so that running needs no names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import isa
from .code import Frame, Place
from .copying import Carriers, carriers
from .memory import LOCAL_BASE, SHARED_BASE
from .ptx import (
    Address,
    Function,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
    type_bytes,
)
from .values import dtype, register_dtype

if TYPE_CHECKING:
    from .link import Linker
    from .wave import Mask, Wave

__all__ = ["Joined", "Read", "Scope", "Write", "immediate", "number_of", "register_writer"]

Read = Callable[["Wave"], Any]
Write = Callable[["Wave", Any, "Mask"], None]


class Scope:
    """The names of one inlined copy of a function: what instruction meanings use to read and write operands."""

    def __init__(self, linker: Linker, frame: Frame, function: Function, prefix: str) -> None:
        self.linker, self.frame, self.function, self.prefix = linker, frame, function, prefix
        self.image = linker.image
        self.slots = {name: frame.slot(kind) for name, kind in function.registers.items()}
        self.places: dict[str, Place] = {}
        self.labels: dict[str, int] = {}  # of the whole code: shared by all scopes
        self.next = -1  # the block after the one that is being linked
        for v in function.variables:
            if v.space in ("local", "param"):
                self.places[v.name] = frame.local(v)
            elif v.space == "reg":
                self.slots[v.name] = frame.slot(v.type)

    @property
    def reads_in(self) -> Scope:
        """The scope of the operands that are read."""
        return self

    @property
    def writes_in(self) -> Scope:
        """The scope of the registers that are written."""
        return self

    def carries(self, operand: Operand) -> int | None:
        """The slot of the register that a value was loaded into, where it is only carried from one place to another."""
        if not isinstance(operand, Register) or self.slots.get(operand.name) is None:
            return None
        root = self._carriers.loaded.get(operand.name)
        return None if root is None else self.slots[root]

    def is_field(self, operand: Operand) -> bool:
        """Whether a loaded word is one of which a part is replaced where it lies."""
        return isinstance(operand, Register) and operand.name in self._carriers.fields

    @property
    def _carriers(self) -> Carriers:
        known = self.linker.carriers.get(self.function.name)
        if known is None:
            known = self.linker.carriers[self.function.name] = carriers(self.function)
        return known

    # ---- names
    def place(self, name: str, instruction: Instruction) -> Place:
        found = self.places.get(name) or self.image.places.get(name)
        if found is None:
            isa.reject(instruction, f"`{name}` is not declared", "FX0711")
        return found

    def slot(self, r: Register, instruction: Instruction) -> int:
        found = self.slots.get(r.name)
        if found is None:
            isa.reject(instruction, f"the register `{r.name}` is not declared", "FX0711")
        return found

    def target(self, operand: Operand, instruction: Instruction) -> int:
        """The number of the block that a label begins."""
        assert isinstance(operand, Symbol)
        return number_of(self, operand, self.labels, instruction)

    def label(self, name: str) -> str:
        """The full name of a label; those the linker makes (`#call1`) belong to no copy."""
        return name if name[0] == "#" else self.prefix + name

    def table(self, name: str, instruction: Instruction) -> tuple[str, ...]:
        """The names in a `.branchtargets` or `.calltargets` list."""
        found = self.function.tables.get(name)
        if found is None:
            isa.reject(instruction, f"there is no list of targets `{name}`", "FX0711")
        return found

    # ---- reading
    def read(self, operand: Operand, kind: str, instruction: Instruction) -> Read:
        """A function of the wave: the operand as numbers of the type `kind`, an array over all threads or a scalar."""
        want = dtype(kind)
        if isinstance(operand, Register):
            return _register_reader(
                self.slot(operand, instruction), self.frame.registers[self.slot(operand, instruction)], want
            )
        if isinstance(operand, Negated):
            slot = self.slot(operand.register, instruction)
            return lambda w: ~w.registers[slot]
        if isinstance(operand, Immediate):
            value = immediate(operand, kind)
            return lambda w: value
        if isinstance(operand, Special):
            return _special_reader(operand.name[1:], want)
        if isinstance(operand, Symbol):
            place, extra = self.place(operand.name, instruction), operand.offset
            return lambda w: want.type((w.address(place) + extra) & (256**want.itemsize - 1))
        isa.reject(instruction, f"`{operand}` cannot be read", "FX0711")

    def address(self, operand: Operand, space: str, instruction: Instruction) -> Read:
        """A function of the wave: the address that `[base + offset]` means in a space, as uint64."""
        if isinstance(operand, Symbol):
            operand = Address(operand)
        if isinstance(operand, Register):
            operand = Address(operand)
        if not isinstance(operand, Address):
            isa.reject(instruction, f"`{operand}` is no address", "FX0711")
        base, offset = operand.base, operand.offset
        if isinstance(base, Immediate):
            value = np.uint64((base.value + offset) & (2**64 - 1))
            return lambda w: value
        if isinstance(base, Symbol):
            place, extra = self.place(base.name, instruction), base.offset + offset
            window = {"shared": SHARED_BASE, "local": LOCAL_BASE}.get(place.space, 0) if space == "generic" else 0
            return lambda w: np.uint64(w.address(place) + extra + window)
        slot = self.slot(base, instruction)
        if type_bytes(self.frame.registers[slot]) == 8:
            add = np.uint64(offset & (2**64 - 1))
            return (lambda w: w.registers[slot] + add) if offset else (lambda w: w.registers[slot])
        small = np.uint32(offset & (2**32 - 1))
        return lambda w: (w.registers[slot].astype(np.uint32) + small).astype(np.uint64)

    def space_of(self, operand: Operand, declared: str, instruction: Instruction) -> str:
        """The space an access goes to: the declared one, except that call arguments are local variables."""
        base = operand.base if isinstance(operand, Address) else operand
        if isinstance(base, Symbol):
            place = self.place(base.name, instruction)
            if declared == "param" or place.space == "argument":
                return place.space
        return declared

    # ---- writing
    def write(self, operand: Operand, kind: str, instruction: Instruction) -> Write:
        """A function of (wave, value, threads) that puts a value of the type `kind` into a register."""
        if isinstance(operand, Sink):
            return lambda w, value, m: None
        if not isinstance(operand, Register):
            isa.reject(instruction, f"`{operand}` cannot be written", "FX0711")
        slot = self.slot(operand, instruction)
        return register_writer(slot, self.frame.registers[slot], dtype(kind))

    def guard(self, instruction: Instruction) -> tuple[int, bool] | None:
        g = instruction.guard
        if g is None:
            return None
        r = g.register if isinstance(g, Negated) else g
        assert isinstance(r, Register)
        slot = self.slot(r, instruction)
        if self.frame.registers[slot] != "pred":
            isa.reject(instruction, f"the guard `{r.name}` is no predicate", "FX0711")
        return slot, isinstance(g, Negated)

    def items(self, operand: Operand) -> tuple[Operand, ...]:
        """The elements of `{...}`, or the operand alone."""
        return operand.items if isinstance(operand, Vector) else (operand,)


def immediate(x: Immediate, kind: str) -> Any:
    """A number of the PTX text as a numpy scalar of a type."""
    want = dtype(kind)
    if kind == "pred":
        return np.bool_(x.value != 0)
    size = want.itemsize
    if x.bits == -64:
        real = struct.unpack("<d", struct.pack("<Q", x.value))[0]
        if want.kind == "f":
            return want.type(real)
        raw = struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], real)
    else:
        value = x.value
        if want.kind == "f" and x.bits not in (0, 8 * size):
            real = struct.unpack(
                *(("<f", struct.pack("<I", value)) if x.bits == 32 else ("<d", struct.pack("<Q", value)))
            )[0]
            return want.type(real)
        if want.kind == "f" and x.bits == 0 and size > 2:  # an integer where a float is expected
            return want.type(value)
        raw = (value & (256**size - 1)).to_bytes(size, "little")
    return np.frombuffer(raw, want)[0]


def _register_reader(slot: int, kind: str, want: np.dtype[Any]) -> Read:
    have = register_dtype(kind)
    if have == want:
        return lambda w: w.registers[slot]
    if have.itemsize == want.itemsize and want.kind != "b" and have.kind != "b":
        return lambda w: w.registers[slot].view(want)
    if want.kind == "b":
        return lambda w: w.registers[slot] != 0
    narrow = np.dtype(f"u{want.itemsize}")  # the low bits, or zeros above
    return lambda w: w.registers[slot].astype(narrow).view(want)


def register_writer(slot: int, kind: str, have: np.dtype[Any]) -> Write:
    want = register_dtype(kind)

    def write(w: Wave, value: Any, m: Mask) -> None:
        if value.dtype != want:
            value = (
                value.view(want)
                if value.dtype.itemsize == want.itemsize and value.dtype != np.bool_
                else value.astype(want)
            )
        if m.full:
            w.registers[slot] = value
        else:
            w.registers[slot] = np.where(m.bits, value, w.registers[slot])

    if have.itemsize < want.itemsize and have.kind == "i":  # a narrow signed result extends its sign

        def extend(w: Wave, value: Any, m: Mask) -> None:
            write(w, value.astype(f"i{want.itemsize}"), m)

        return extend
    return write


def _special_reader(name: str, want: np.dtype[Any]) -> Read:
    def read(w: Wave) -> Any:
        v = w.special_register(name)
        return v if v.dtype == want else v.astype(f"u{want.itemsize}").view(want)

    return read


class Joined(Scope):
    """Reads in one scope and writes in another: the arguments and results of an inlined call. With `writes` it is only the
    registers that are written which belong to the other scope."""

    def __init__(self, to: Scope, source: Scope, writes: bool = False) -> None:
        self.writes = writes
        self.linker, self.frame, self.function, self.prefix = to.linker, to.frame, to.function, to.prefix
        self.image = to.image
        self.slots, self.places = to.slots, to.places
        self.labels, self.next = {}, -1
        self.source = source

    @property
    def _carriers(self) -> Carriers:
        return Carriers()

    @property
    def reads_in(self) -> Scope:
        return self if self.writes else self.source

    @property
    def writes_in(self) -> Scope:
        return self.source if self.writes else self

    def read(self, operand: Operand, kind: str, instruction: Instruction) -> Read:
        return super().read(operand, kind, instruction) if self.writes else self.source.read(operand, kind, instruction)

    def write(self, operand: Operand, kind: str, instruction: Instruction) -> Write:
        return (
            self.source.write(operand, kind, instruction) if self.writes else super().write(operand, kind, instruction)
        )

    def guard(self, instruction: Instruction) -> tuple[int, bool] | None:
        g = instruction.guard
        if g is None:
            return None
        if _register(g).name in self.source.slots:
            return self.source.guard(instruction)
        return super().guard(instruction)


def _register(g: Register | Negated) -> Register:
    return g.register if isinstance(g, Negated) else g


def number_of(scope: Scope, operand: Operand, labels: dict[str, int], x: Instruction) -> int:
    if not isinstance(operand, Symbol):
        isa.reject(x, "a label is expected", "FX0711")
    name = scope.label(operand.name)
    if name not in labels:
        isa.reject(x, f"there is no label `{operand.name}`", "FX0711")
    return labels[name]
