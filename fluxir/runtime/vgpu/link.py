"""A PTX function -> code that a `Wave` runs: basic blocks of closures over register slots.

`link(function, image)` flattens a kernel: direct calls are inlined (so that barriers in them work), each with its own names;
calls of a function from itself and calls through pointers stay calls, with frames of their own. Blocks are numbered in the
order of `flow`, so the executor runs the one with the lowest number. What an instruction means is said in `instructions/`;
here its operands become readers and writers.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import isa
from .copying import Carriers, carriers
from .flow import order
from .memory import LOCAL_BASE, SHARED_BASE
from .ptx import (
    Address,
    Function,
    Group,
    Immediate,
    Instruction,
    Label,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
    type_bytes,
)
from .values import dtype, register_dtype
from .warpgroups import watched

if TYPE_CHECKING:
    from .image import Image
    from .wave import Mask, Wave

__all__ = ["Block", "Code", "Place", "Scope", "Step", "call_parts", "immediate", "link"]

Step = Callable[["Wave", "Mask"], None]
Read = Callable[["Wave"], Any]
Write = Callable[["Wave", Any, "Mask"], None]

INLINE_LIMIT = 100_000  # instructions after inlining; beyond it calls stay calls
ZONE = 128  # bytes that belong to nothing between two variables of shared or local memory
CALL_ZONE = 16  # and between two arguments of a call
FLOPS = {"fma": 2, "mad": 2}
PATIENCE = 256  # rounds of a loop that reads what others write, before others run
_SPIN = frozenset(("atom", "nanosleep"))
_REGISTER = re.compile(r"%[\w$]+")


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


class _Frame:
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


class Scope:
    """The names of one inlined copy of a function: what instruction meanings use to read and write operands."""

    def __init__(self, linker: _Linker, frame: _Frame, function: Function, prefix: str) -> None:
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
        return _label(self, operand, self.labels, instruction)

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
        return _register_writer(slot, self.frame.registers[slot], dtype(kind))

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


def _register_writer(slot: int, kind: str, have: np.dtype[Any]) -> Write:
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


# ---- linking ------------------------------------------------------------------------------------------------------------


_Item = tuple[Instruction, Scope] | str
"""An instruction in its scope, or the full name of a label."""


def link(function: Function, image: Image) -> Code:
    """A kernel ready to run. FX0710 and FX0711 for what it cannot be made of."""
    return _Linker(image).code(function, kernel=True)


class _Linker:
    def __init__(self, image: Image) -> None:
        self.image = image
        self.copies = 0
        self.carriers: dict[str, Carriers] = {}
        self.watches = False  # the function multiplies matrices asynchronously

    def code(self, function: Function, kernel: bool) -> Code:
        frame = _Frame()
        scope = Scope(self, frame, function, "")
        out = Code(function.name, [], frame.registers, frame.locals, 0)
        if kernel:
            scope.places.update(
                {name: Place("argument", offset) for name, (offset, _) in self.image.arguments(function).items()}
            )
        else:
            out.arguments = [self._formal(scope, frame, v) for v in function.parameters]
            out.results = [self._formal(scope, frame, v) for v in function.results]
        items: list[_Item] = []
        self._flatten(function, scope, items, None, (function.name,))
        out.blocks = self._blocks(items, scope)
        out.local_bytes = frame.top
        return out

    def _formal(self, scope: Scope, frame: _Frame, v: Variable) -> tuple[str, int]:
        """A parameter or result of a function that is really called: ("register", slot) or ("local", offset)."""
        if v.space == "reg":
            scope.slots[v.name] = frame.slot(v.type)
            return "register", scope.slots[v.name]
        scope.places[v.name] = frame.local(v)
        return "local", scope.places[v.name].offset

    # ---- flattening
    def _flatten(
        self, function: Function, scope: Scope, items: list[_Item], leave: str | None, above: tuple[str, ...]
    ) -> None:
        """Append the function's instructions; `ret` goes to the label `leave` in an inlined one."""
        assert function.body is not None
        for x in function.body:
            if isinstance(x, Label):
                items.append(scope.prefix + x.name)
            elif x.name == "call":
                self._call(x, scope, items, above)
            elif x.name == "ret" and leave is not None:
                items.append((replace(x, name="bra", modifiers=(), operands=(Symbol(leave),)), scope))
            else:
                items.append((x, scope))

    def _call(self, x: Instruction, scope: Scope, items: list[_Item], above: tuple[str, ...]) -> None:
        results, callee, arguments, _ = call_parts(x)
        target = self.image.functions.get(callee.name) if isinstance(callee, Symbol) else None
        if (
            target is None
            or target.body is None
            or target.name in above
            or len(items) > INLINE_LIMIT
            or len(above) > 64
        ):
            items.append((x, scope))
            return
        self.copies += 1
        inner = Scope(self, scope.frame, target, f"{target.name}#{self.copies}.")
        self._bind(x, scope, inner, target.parameters, arguments, items)
        if len(results) not in (0, len(target.results)):
            isa.reject(x, f"{len(results)} results for {len(target.results)}", "FX0711")
        for v, r in zip(target.results, results):
            if v.space == "reg":
                inner.slots[v.name] = scope.frame.slot(v.type)
            else:
                inner.places[v.name] = scope.place(r.name, x) if isinstance(r, Symbol) else scope.frame.local(v)
        for v in target.results[len(results) :]:  # nobody wants them
            if v.space == "reg":
                inner.slots[v.name] = scope.frame.slot(v.type)
            else:
                inner.places[v.name] = scope.frame.local(v)
        skip = f"#call{self.copies}"
        if x.guard is not None:  # a guarded call: those it is not for go around it
            flipped = x.guard.register if isinstance(x.guard, Negated) else Negated(x.guard)
            items.append((replace(x, name="bra", modifiers=(), operands=(Symbol(skip),), guard=flipped), scope))
        self._flatten(target, inner, items, skip, (*above, target.name))
        items.append(skip)
        for v, r in zip(target.results, results):
            if v.space == "reg":
                items.append((_move(x, r, Register(v.name), v.type), _Joined(scope, inner)))
            elif not isinstance(r, Symbol):
                load = Instruction(
                    "ld", ("local", v.type), (r, Address(Symbol(v.name))), x.guard, x.line, x.text, x.location
                )
                items.append((load, _Joined(inner, scope, writes=True)))

    def _bind(
        self, x: Instruction, scope: Scope, inner: Scope, formals: Sequence[Variable], actuals: Sequence[Operand],
        items: list[_Item],
    ) -> None:  # fmt: skip
        if len(formals) != len(actuals):
            isa.reject(x, f"{len(actuals)} arguments for {len(formals)} parameters", "FX0711")
        for v, a in zip(formals, actuals):
            if v.space == "reg":
                inner.slots[v.name] = scope.frame.slot(v.type)
                items.append((_move(x, Register(v.name), a, v.type), _Joined(inner, scope)))
            elif isinstance(a, Symbol):
                inner.places[v.name] = scope.place(a.name, x)
            else:  # a register or a number for a parameter in memory
                inner.places[v.name] = scope.frame.local(v)
                store = Instruction(
                    "st",
                    ("local", f"b{8 * type_bytes(v.type)}"),
                    (Address(Symbol(v.name)), a),
                    x.guard,
                    x.line,
                    x.text,
                    x.location,
                )
                items.append((store, _Joined(inner, scope)))

    # ---- blocks
    def _blocks(self, items: list[_Item], scope: Scope) -> list[Block]:
        self.watches = any(not isinstance(i, str) and i[0].name == "wgmma" for i in items)
        runs, labels = _split(items, scope)
        successors = [_successors(run, i, labels) for i, run in enumerate(runs)]
        latches = _latches(successors)
        routed = [[latches.get((i, s), s) for s in found] for i, found in enumerate(successors)]
        headers = {latch: header for (_, header), latch in latches.items()}
        routed += [[headers[latch]] for latch in sorted(headers)]
        ranks = order(routed)
        rank = {old: new for new, old in enumerate(ranks)}
        blocks: list[Block] = []
        loops = _loop_spins(runs, successors, rank)
        direct = {name: rank[i] for name, i in labels.items()}
        through_latches = {i for i, _ in latches}
        for old in ranks:
            if old in headers:
                patience = max(loops[i] for (i, _), latch in latches.items() if latch == old)
                blocks.append(_latch(runs[headers[old]][0][0], rank[headers[old]], patience))
                continue
            numbered = direct
            if old in through_latches:
                numbered = {name: rank[latches.get((old, i), i)] for name, i in labels.items()}
            after = rank[latches.get((old, old + 1), old + 1)] if old + 1 < len(runs) else -1
            block = self._block(runs[old], numbered, after)
            block.spins, block.patience = loops[old] > 0, loops[old]
            blocks.append(block)
        return blocks

    def _block(self, run: list[tuple[Instruction, Scope]], labels: dict[str, int], after: int) -> Block:
        steps: list[Step] = []
        end: Step | None = None
        found: list[tuple[isa.Opcode, isa.Form, Scope]] = []
        classes: Counter[str] = Counter()
        flops = 0
        for x, scope in run:
            scope.labels, scope.next = labels, after
            opcode, form = isa.form_of(x)
            found.append((opcode, form, scope))
            group = opcode.group(form)
            classes[group] += 1
            if group.startswith("float"):
                kind = form.types[-1] if form.types else ""
                flops += FLOPS.get(x.name, 1) * (2 if kind.endswith("x2") else 1)
            if opcode.sync == "end":
                end = _meaning(opcode, form, scope)
            else:
                steps.append(_step(opcode, form, scope))
        if end is None:

            def end(w: Wave, m: Mask, after: int = after) -> None:
                w.go(after, m.bits)

        return Block(run[0][0], steps, end, found, dict(classes), flops, after=after, labels=labels)


class _Joined(Scope):
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


def _move(x: Instruction, to: Operand, source: Operand, kind: str) -> Instruction:
    kind = kind if kind == "pred" else f"b{8 * type_bytes(kind)}"
    return Instruction("mov", (kind,), (to, source), x.guard, x.line, x.text, x.location)


def call_parts(x: Instruction) -> tuple[tuple[Operand, ...], Symbol | Register, tuple[Operand, ...], Symbol | None]:
    """(results, callee, arguments, prototype or table) of a call."""
    rest = list(x.operands)
    results: tuple[Operand, ...] = ()
    if rest and isinstance(rest[0], Group):
        results = rest[0].items
        rest.pop(0)
    callee = rest.pop(0)
    assert isinstance(callee, Symbol | Register)
    arguments: tuple[Operand, ...] = ()
    if rest and isinstance(rest[0], Group):
        arguments = rest[0].items
        rest.pop(0)
    table = rest.pop(0) if rest else None
    assert table is None or isinstance(table, Symbol)
    return results, callee, arguments, table


def _split(items: list[_Item], home: Scope) -> tuple[list[list[tuple[Instruction, Scope]]], dict[str, int]]:
    """Runs of instructions that are entered at the top and left at the bottom, and which run each label begins. The last
    one ends the function."""
    runs: list[list[tuple[Instruction, Scope]]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    run: list[tuple[Instruction, Scope]] = []
    line = home.function.line
    for item in items:
        if isinstance(item, str):
            if run:
                runs.append(run)
                run = []
            waiting.append(item)
            continue
        x, _ = item
        line = x.line
        for name in waiting:
            labels[name] = len(runs)
        waiting = []
        run.append(item)
        declared = isa.opcodes().get(x.name, ())
        if any(o.sync == "end" for o in declared) and isa.form_of(x)[0].sync == "end":
            runs.append(run)
            run = []
    if run:
        runs.append(run)
    last = runs[-1][-1][0] if runs else None
    if waiting or last is None or last.guard is not None or last.name not in ("ret", "exit", "bra", "trap"):
        for name in waiting:
            labels[name] = len(runs)
        runs.append([(Instruction("ret", (), (), None, line, "ret;"), home)])
    return runs, labels


def _successors(run: list[tuple[Instruction, Scope]], i: int, labels: dict[str, int]) -> list[int]:
    x, scope = run[-1]
    out: list[int] = []
    if x.name in ("bra", "brx") and not x.operands:
        isa.reject(x, "a label is expected", "FX0711")
    if x.name == "bra":
        out.append(_label(scope, x.operands[0], labels, x))
    elif x.name == "brx":
        table = x.operands[-1]
        if not isinstance(table, Symbol):
            isa.reject(x, "a list of targets is expected", "FX0711")
        out += [_label(scope, Symbol(n), labels, x) for n in scope.table(table.name, x)]
    elif x.name in ("ret", "exit", "trap"):
        return [i + 1] if x.guard is not None else []
    if x.name not in ("bra", "brx") or x.guard is not None:
        out.append(i + 1)
    return out


def _label(scope: Scope, operand: Operand, labels: dict[str, int], x: Instruction) -> int:
    if not isinstance(operand, Symbol):
        isa.reject(x, "a label is expected", "FX0711")
    name = scope.label(operand.name)
    if name not in labels:
        isa.reject(x, f"there is no label `{operand.name}`", "FX0711")
    return labels[name]


def _latches(successors: Sequence[Sequence[int]]) -> dict[tuple[int, int], int]:
    """A block of our own for each loop that is closed in several places, by (source, header): there the threads of one round
    meet before the next. The new blocks are numbered on from the last one."""
    rank = {old: new for new, old in enumerate(order(successors))}
    back: dict[int, list[int]] = {}
    for i, found in enumerate(successors):
        for s in set(found):
            if s < len(successors) and rank[s] <= rank[i]:
                back.setdefault(s, []).append(i)
    several = sorted(h for h, sources in back.items() if len(sources) > 1)
    return {(i, h): len(successors) + n for n, h in enumerate(several) for i in back[h]}


def _latch(x: Instruction, header: int, patience: int) -> Block:
    """A block without instructions. `patience`: of the loop that it closes, as `_loop_spins` has it."""

    def end(w: Wave, m: Mask) -> None:
        w.go(header, m.bits)

    return Block(x, [], end, [], {}, 0, after=header, spins=patience > 0, patience=patience)


def _loop_spins(
    runs: list[list[tuple[Instruction, Scope]]], successors: list[list[int]], rank: dict[int, int]
) -> list[int]:
    """For each run that branches back, over blocks that read what other threads may write: how many rounds it may go before
    others run; 0 for other runs."""
    named = Counter(name for run in runs for x, _ in run for name in _REGISTER.findall(x.text))
    reads = [max((_patience(x, named) for x, _ in run), default=0) for run in runs]
    out = []
    for i in range(len(runs)):
        spins = 0
        for s in successors[i]:
            if rank[s] <= rank[i]:
                spins = max([spins, *(reads[j] for j in range(len(runs)) if rank[s] <= rank[j] <= rank[i])])
        out.append(spins)
    return out


def _patience(x: Instruction, named: Mapping[str, int]) -> int:
    """`named`: how often the function names each register."""
    if x.name == "mbarrier":  # a wait that fails may suspend the thread
        return 1 if "try_wait" in x.modifiers or "test_wait" in x.modifiers else 0
    if x.name == "ld" and not any(f in x.modifiers for f in ("volatile", "acquire", "relaxed")):
        return 0
    if x.name == "atom" and all(named[name] == 1 for name in _REGISTER.findall(x.text)[:1]):
        return 0  # nobody looks at what it found
    return PATIENCE if x.name == "ld" or x.name in _SPIN else 0


# ---- steps --------------------------------------------------------------------------------------------------------------


def _step(opcode: isa.Opcode, form: isa.Form, scope: Scope) -> Step:
    x = form.instruction
    run = _lanewise(opcode, form, scope) if opcode.is_lanewise else _meaning(opcode, form, scope)
    if scope.linker.watches and x.name != "wgmma":
        run = watched(run, form, scope, opcode.is_lanewise)
    guard = scope.guard(x)
    if guard is None:
        return run
    slot, negated = guard

    def guarded(w: Wave, m: Mask) -> None:
        those = w.guard(slot, negated, m)
        if those is not None:
            run(w, those)

    return guarded


def _meaning(opcode: isa.Opcode, form: isa.Form, scope: Scope) -> Step:
    """What an instruction of the machine does. Its declaration takes operands apart as the document has them; where that
    fails they are not what the instruction takes."""
    try:
        step: Step = opcode.meaning(form, scope)
    except (IndexError, AssertionError, AttributeError, TypeError, ValueError, KeyError) as reason:
        isa.reject(form.instruction, f"these are not the operands it takes ({type(reason).__name__})", "FX0711")
    return step


def _lanewise(opcode: isa.Opcode, form: isa.Form, scope: Scope) -> Step:
    x = form.instruction
    assert opcode.signature is not None
    result, kinds = opcode.signature(form)
    sources = list(form.sources)
    if len(sources) != len(kinds):
        isa.reject(x, f"{len(kinds)} operands are expected, {len(sources)} are there", "FX0711")
    reads = [scope.read(o, k, x) for o, k in zip(sources, kinds)]
    writes = [scope.write(o, result, x) for o in form.destinations]
    meaning = opcode.meaning(form)
    if opcode.reads_carry or form.has("cc"):
        if scope.frame.carry < 0:
            scope.frame.carry = scope.frame.slot("pred")
        carry = scope.frame.carry
        if opcode.reads_carry:
            reads.append(lambda w: w.registers[carry])
        if form.has("cc"):
            writes.append(_register_writer(carry, "pred", np.dtype(bool)))
    if len(writes) > 1:

        def several(w: Wave, m: Mask) -> None:
            for put, value in zip(writes, meaning(*[r(w) for r in reads])):
                put(w, value, m)

        return several
    write = writes[0]
    if len(reads) == 2:
        first, second = reads
        return lambda w, m: write(w, meaning(first(w), second(w)), m)
    if len(reads) == 1:
        (only,) = reads
        return lambda w, m: write(w, meaning(only(w)), m)
    if len(reads) == 3:
        a, b, c = reads
        return lambda w, m: write(w, meaning(a(w), b(w), c(w)), m)
    return lambda w, m: write(w, meaning(*[r(w) for r in reads]), m)
