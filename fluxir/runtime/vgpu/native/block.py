"""One basic block in LLVM: `BlockWriter`, which the spellings of instructions write with. It knows the registers as values, the
lanes that execute, the operands, and where lanes go at the end.

What an instruction means is said in `lanewise` and its like and in `machine`; a lanewise instruction that they do not know calls
its numpy meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as new
from typing import Any

from ..code import Block, Code
from ..isa import Form, Opcode
from ..memory import LOCAL_BASE, SHARED_BASE
from ..ptx import Address, Immediate, Instruction, Negated, Operand, Register, Sink, Special, Symbol
from ..scope import Scope, immediate
from ..values import dtype, is_signed
from .accesses import Access
from .context import HEADER, STEPS, WORDS, field, field_address
from .lanewise import spelling
from .text import LANES, Text, scalar, splat, vector, word

__all__ = ["SCRATCH", "BlockWriter", "Emitted", "Meaning", "Unsupported", "lane_bits"]

SCRATCH = 64 * 256  # bytes where operands and results of numpy meanings lie, one vector each 256


class Unsupported(Exception):
    """The native executor does not run an instruction."""

    def __init__(self, instruction: Instruction, why: str) -> None:
        super().__init__(why)
        self.instruction, self.why = instruction, why


@dataclass
class Meaning:
    """A lanewise instruction that Python computes: its function, and the PTX types of operands and results."""

    function: Callable[..., Any]
    operands: list[str]
    results: list[str]


@dataclass
class Emitted:
    """A kernel in LLVM: `warp` (`text`) and `enter`. `resume`: for each place where lanes wait, the block at which they go on."""

    text: Text
    register_bytes: int
    enter: Text | None = None
    stores: int = 0
    helpers: dict[Access | str, int] = new(default_factory=dict)  # functions that are compiled apart, by their number
    meanings: list[Meaning] = new(default_factory=list)
    resume: list[int] = new(default_factory=list)
    resumptions: list[tuple[str, str, int, int]] = new(default_factory=list)  # (reduction, type, register, block after)


class BlockWriter:
    """Writes one basic block. `mask` (a vector of i1) and `bits` (an i32) are the lanes that execute the instruction at hand."""

    def __init__(
        self, code: Code, block: Block, number: int, f: Text, out: Emitted, offsets: dict[int, int],
        live: frozenset[int], buffers: tuple[str, str], granules: tuple[int, int],
    ) -> None:  # fmt: skip
        self.code, self.block, self.number, self.f, self.out = code, block, number, f, out
        self.offsets, self.live, self.granules = offsets, live, granules
        self.addresses, self.values = buffers
        self.known: dict[int, str] = {}  # registers as values
        self.dirty: set[int] = set()
        self.loaded: set[int] = set()  # read before they were written here
        self.settled: set[int] = set()  # written for all lanes of the block before they were read
        self.successors: list[int] = []
        self.partial = False  # a guard is in force
        self.mask = self.bits = ""
        self.pc = ""

    def run(self) -> None:
        f = self.f
        self.pc = f.load(vector("i32"), "%w", 64)
        self.mask = f(f"icmp eq {vector('i32')} {self.pc}, {splat('i32', self.number)}")
        self.bits = lane_bits(f, self.mask)
        self.all_mask, self.all_bits = self.mask, self.bits
        self._count()
        found = self.block.instructions
        end = found[-1] if found and found[-1][0].sync == "end" else None
        for opcode, form, scope in found:
            scope.labels, scope.next = self.block.labels, self.block.after
            if end is None or form is not end[1]:
                with self.guarded(scope.guard(form.instruction)):
                    self.instruction(opcode, form, scope)
        if end is None:
            self.go(self.block.after)
        else:
            self.instruction(*end)

    def _count(self) -> None:
        f = self.f
        for what, n in (("block_warps", "1"), ("block_threads", "")):
            place = f.at(field(f, what, "ptr"), 8 * self.number)
            if not n:
                n = f.cast("zext", "i32", f.call("i32", "llvm.ctpop.i32", ("i32", self.bits)), "i64")
            f.add("i64", place, n)
        turn = f.at("%w", HEADER["turn"])
        f.store("i32", f.op("add", "i32", f.load("i32", turn), 1), turn)
        left = f.op("sub", "i64", field(f, "steps"), self.block.size)
        f.store("i64", left, field_address(f, "steps"))
        over = f(f"select i1 {f(f'icmp slt i64 {left}, 0')}, i64 {STEPS}, i64 0")
        f.store("i64", f.op("or", "i64", field(f, "stop"), over), field_address(f, "stop"))

    def instruction(self, opcode: Opcode, form: Form, scope: Scope) -> None:
        if opcode.is_lanewise:
            self._lanewise(opcode, form, scope)
            return
        from . import lanes, tensor  # noqa: F401  (they declare theirs)
        from .machine import MACHINE

        maker = MACHINE.get(opcode.name)
        if maker is None:
            raise Unsupported(form.instruction, "the native executor does not run it")
        maker(self, form, scope)

    # ---- lanewise instructions
    def _lanewise(self, opcode: Opcode, form: Form, scope: Scope) -> None:
        x = form.instruction
        assert opcode.signature is not None
        result, kinds = opcode.signature(form)
        operands = [self.read(o, k, scope, x) for o, k in zip(form.sources, kinds)]
        carried = opcode.reads_carry or form.has("cc")
        if opcode.reads_carry:
            operands.append(self.register(scope.frame.carry))
        spelled = spelling(opcode, form)
        if spelled is not None:
            found = spelled(self.f, *operands)
            results = list(found) if isinstance(found, tuple) else [found]
        else:
            taken = [*kinds, "pred"] if opcode.reads_carry else list(kinds)
            given = [result] * len(form.destinations) + (["pred"] if form.has("cc") else [])
            results = self._by_numpy(Meaning(opcode.meaning(form), taken, given), operands)
        for o, v in zip(form.destinations, results):
            self.write(o, result, v, scope, x)
        if carried and form.has("cc"):
            self.set_register(scope.frame.carry, results[-1])

    def _by_numpy(self, meaning: Meaning, operands: list[str]) -> list[str]:
        """Call the function for one warp; operands and results go through memory."""
        f = self.f
        scratch = field(f, "scratch", "ptr")
        for i, (kind, v) in enumerate(zip(meaning.operands, operands)):
            self._put(kind, v, f.at(scratch, 256 * i))
        number = len(self.out.meanings)
        self.out.meanings.append(meaning)
        f.do(f"call void {field(f, 'python', 'ptr')}(i64 {number})")
        return [self._get(kind, f.at(scratch, 256 * i)) for i, kind in enumerate(meaning.results)]

    def _put(self, kind: str, value: str, place: str) -> None:
        if kind == "pred":
            self.f.store(vector("i8"), self.f.cast("zext", vector("i1"), value, vector("i8")), place, 64)
        else:
            self.f.store(vector(scalar(kind)), value, place, 64)

    def _get(self, kind: str, place: str) -> str:
        if kind == "pred":
            return self.f(f"icmp ne {vector('i8')} {self.f.load(vector('i8'), place, 64)}, zeroinitializer")
        return self.f.load(vector(scalar(kind)), place, 64)

    # ---- masks
    @contextmanager
    def guarded(self, guard: tuple[int, bool] | None) -> Iterator[None]:
        """Only the lanes whose guard holds execute what is written inside."""
        if guard is None:
            yield
            return
        outer = self.mask, self.bits, self.partial
        self.mask, self.bits = self.lanes(guard)
        self.partial = True
        yield
        self.mask, self.bits, self.partial = outer

    def lanes(self, guard: tuple[int, bool]) -> tuple[str, str]:
        """(mask, bits) of the lanes whose guard holds."""
        p = self.register(guard[0])
        if guard[1]:
            p = self.f.op("xor", "<32 x i1>", p, splat("i1", "true"))
        mask = self.f.op("and", "<32 x i1>", self.all_mask, p)
        return mask, lane_bits(self.f, mask)

    @contextmanager
    def somebody(self) -> Iterator[None]:
        """Skip what is written inside where no lane executes it. It must not define registers."""
        if not self.partial:
            yield
            return
        with self.f.when(self.f(f"icmp ne i32 {self.bits}, 0")):
            yield

    # ---- registers
    def register(self, slot: int) -> str:
        """A register's bits (i1 for predicates)."""
        if slot not in self.known:
            if slot not in self.settled:
                self.loaded.add(slot)
            self.known[slot] = self._load(slot)
        return self.known[slot]

    def _load(self, slot: int) -> str:
        kind = self.code.registers[slot]
        place = self.f.at("%w", self.offsets[slot])
        if kind == "pred":
            return self.f(f"icmp slt {vector('i32')} {self.f.load(vector('i32'), place, 64)}, zeroinitializer")
        return self.f.load(vector(word(kind)), place, 64)

    def set_register(self, slot: int, value: str) -> None:
        """Give a register new bits, in the lanes that execute the instruction."""
        if self.partial:
            kind = vector(word(self.code.registers[slot]))
            value = self.f(f"select <32 x i1> {self.mask}, {kind} {value}, {kind} {self.register(slot)}")
        elif slot not in self.loaded:
            self.settled.add(slot)
        self.known[slot] = value
        self.dirty.add(slot)

    def write_back(self) -> None:
        """What later blocks need goes to the warp's state, for the lanes of this block."""
        f = self.f
        for slot in sorted(self.dirty & self.live):
            kind = self.code.registers[slot]
            place = f.at("%w", self.offsets[slot])
            value, held = self.known[slot], vector("i32" if kind == "pred" else word(kind))
            if kind == "pred":
                value = f.cast("sext", vector("i1"), value, held)
            old = f.load(held, place, 64)
            f.store(held, f(f"select <32 x i1> {self.all_mask}, {held} {value}, {held} {old}"), place, 64)

    # ---- operands
    def read(self, operand: Operand, kind: str, scope: Scope, x: Instruction) -> str:
        """An operand as numbers of a PTX type."""
        scope = scope.reads_in
        f, want = self.f, vector(scalar(kind))
        if isinstance(operand, Register):
            slot = scope.slot(operand, x)
            return self._as(self.register(slot), self.code.registers[slot], kind)
        if isinstance(operand, Negated):
            p = self.register(scope.slot(operand.register, x))
            return f.op("xor", "<32 x i1>", p, splat("i1", "true"))
        if isinstance(operand, Immediate):
            value = immediate(operand, kind)
            if kind == "pred":
                return splat("i1", "true" if value else "false")
            bits = int.from_bytes(value.tobytes(), "little", signed=True)
            return f.cast("bitcast", vector(word(kind)), splat(word(kind), bits), want)
        if isinstance(operand, Special):
            v = self.special(operand.name[1:], x)
            return self._as(v, "u32", kind)
        if isinstance(operand, Symbol):
            place = scope.place(operand.name, x)
            if place.space == "argument":
                a = f.op("add", "i64", field(f, "parameter_address"), place.offset + operand.offset)
                return self._as(f.spread("i64", a), "u64", kind)
            bits = 8 * dtype(kind).itemsize
            value = (place.offset + operand.offset) & ((1 << bits) - 1)
            return splat(word(kind), value - (1 << bits) if value >> (bits - 1) else value)
        raise Unsupported(x, f"`{operand}` cannot be read")

    def _as(self, bits: str, have: str, kind: str) -> str:
        """A register's bits as numbers of a type: the low ones, or zeros above."""
        f = self.f
        if kind == "pred":
            return bits if have == "pred" else f(f"icmp ne {vector(word(have))} {bits}, zeroinitializer")
        if have == "pred":
            return f.cast("zext", vector("i1"), bits, vector(word(kind)))
        of, to = vector(word(have)), vector(word(kind))
        bits = f.cast("trunc" if dtype(have).itemsize > dtype(kind).itemsize else "zext", of, bits, to)
        return f.cast("bitcast", to, bits, vector(scalar(kind)))

    def write(self, operand: Operand, kind: str, value: str, scope: Scope, x: Instruction) -> None:
        """Put numbers of a PTX type into a register; a narrow signed one extends its sign."""
        if isinstance(operand, Sink):
            return
        if not isinstance(operand, Register):
            raise Unsupported(x, f"`{operand}` cannot be written")
        slot = scope.writes_in.slot(operand, x)
        have = self.code.registers[slot]
        f = self.f
        if kind == "pred" or have == "pred":
            if kind != have:
                raise Unsupported(x, "a predicate is kept in a register of another type")
            self.set_register(slot, value)
            return
        bits = f.cast("bitcast", vector(scalar(kind)), value, vector(word(kind)))
        wider = dtype(have).itemsize > dtype(kind).itemsize
        how = ("sext" if is_signed(kind) and dtype(kind).kind == "i" else "zext") if wider else "trunc"
        self.set_register(slot, f.cast(how, vector(word(kind)), bits, vector(word(have))))

    def write_bits(self, operand: Operand, kind: str, bits: str, scope: Scope, x: Instruction) -> None:
        """Put the bits of numbers of a PTX type into a register."""
        self.write(operand, kind, self.f.cast("bitcast", vector(word(kind)), bits, vector(scalar(kind))), scope, x)

    def address(self, operand: Operand, space: str, scope: Scope, x: Instruction) -> str:
        """The addresses that `[base + offset]` means in a space, as i64."""
        f = self.f
        if isinstance(operand, Symbol | Register):
            operand = Address(operand)
        if not isinstance(operand, Address):
            raise Unsupported(x, f"`{operand}` is no address")
        base, offset = operand.base, operand.offset
        if isinstance(base, Immediate):
            return splat("i64", _signed(base.value + offset))
        if isinstance(base, Symbol):
            place = scope.place(base.name, x)
            window = {"shared": SHARED_BASE, "local": LOCAL_BASE}.get(place.space, 0) if space == "generic" else 0
            at = place.offset + base.offset + offset + window
            if place.space == "argument":
                return f.spread("i64", f.op("add", "i64", field(f, "parameter_address"), at))
            return splat("i64", _signed(at))
        slot = scope.slot(base, x)
        have = word(self.code.registers[slot])
        v = self.register(slot)
        if have == "i64":
            return f.op("add", vector("i64"), v, splat("i64", _signed(offset))) if offset else v
        v = f.cast("trunc" if have == "i64" else "zext", vector(have), v, vector("i32"))
        small = offset & 0xFFFFFFFF
        if small:
            v = f.op("add", vector("i32"), v, splat("i32", small - (1 << 32) if small >> 31 else small))
        return f.cast("zext", vector("i32"), v, vector("i64"))

    def special(self, name: str, x: Instruction) -> str:
        """A special register, as u32."""
        f, kind = self.f, vector("i32")
        if name in ("tid.x", "tid.y", "tid.z"):
            return f.load(kind, f.at("%w", HEADER[name]), 64)
        if name == "laneid" or name.startswith("lanemask_"):
            return _lane_constant(name)
        if name in ("warpid", "nwarpid"):
            source = field(f, "first_thread", "i32") if name == "warpid" else field(f, "warps", "i32")
            return f.spread("i32", f.op("lshr", "i32", source, 5) if name == "warpid" else source)
        if name == "smid":
            return f.spread("i32", f.op("urem", "i32", field(f, "block", "i32"), field(f, "multiprocessors", "i32")))
        if name == "nsmid":
            name = "multiprocessors"
        if name == "gridid":
            return splat("i32", 1)
        if name == "aggr_smem_size":
            name = "total_smem_size"
        if name not in WORDS:
            raise Unsupported(x, f"the native executor does not know `%{name}`")
        return f.spread("i32", field(f, name, "i32"))

    # ---- where lanes go
    def resumption(self, how: str, result: Operand, scope: Scope, x: Instruction) -> int:
        """The number of a block that takes the result of a barrier's reduction and then goes on after it."""
        kind = "u32" if how == "popc" else "pred"
        assert isinstance(result, Register)
        slot = scope.slot(result, x)
        self.loaded.add(slot)  # it stays what it was until then
        self.out.resumptions.append((how, kind, slot, self.block.after))
        return len(self.code.blocks) + len(self.out.resumptions) - 1

    def go(self, block: int) -> None:
        """The end of the block: all its lanes continue at a block."""
        self.leave(splat("i32", block))
        self.successors.append(block)

    def leave(self, target: str) -> None:
        """The end of the block: its lanes stand where `target` says."""
        f, kind = self.f, vector("i32")
        self.write_back()
        f.store(kind, f(f"select <32 x i1> {self.all_mask}, {kind} {target}, {kind} {self.pc}"), "%w", 64)
        if not self.block.spins:
            f.do("br label %dispatch")
            return
        left = f.op("sub", "i64", field(f, "spins"), 1)  # others may have to run before this loop ends
        f.store("i64", left, field_address(f, "spins"))
        f.do(f"br i1 {f(f'icmp slt i64 {left}, 0')}, label %leave, label %dispatch")

    # ---- memory
    def access(
        self, what: str, space: str, unit: int, count: int, sync: bool = False, operation: str = "", lanes: str = "",
        convergent: bool = False,
    ) -> None:  # fmt: skip
        """Call the function for an access; addresses and values are in their buffers. `lanes`: others than those at hand."""
        space = "global" if space in ("const", "param") else space
        a = Access(what, space, unit, count, self.granules[0], sync, operation, convergent)
        bits = lanes or self.bits
        arguments = ("ptr", "%c"), ("ptr", self.addresses), ("i32", bits), ("ptr", self.values)
        if not lanes and not self.partial:
            self.helper(a, *arguments)
            return
        with self.f.when(self.f(f"icmp ne i32 {bits}, 0")):
            self.helper(a, *arguments)

    def tag(self) -> None:
        """Name the store that follows, for the race checks: the instruction, and how many blocks the warp has run."""
        f = self.f
        self.out.stores += 1
        turn = f.op("shl", "i32", f.load("i32", f.at("%w", HEADER["turn"])), 12)
        f.store("i32", f.op("add", "i32", turn, self.out.stores), field_address(f, "tag"))

    def helper(self, which: Access | str, *arguments: tuple[str, str]) -> None:
        """Call a function that is compiled apart: an access, or one of `helpers` by its name. Their addresses are in a table."""
        f = self.f
        number = self.out.helpers.setdefault(which, len(self.out.helpers))
        function = f.load("ptr", f.at(field(f, "table", "ptr"), 8 * number))
        f.do(f"call void {function}({', '.join(f'{kind} {value}' for kind, value in arguments)})")


def lane_bits(f: Text, mask: str) -> str:
    """A mask as an i32, lane 0 lowest."""
    return f.cast("bitcast", "<32 x i1>", mask, "i32")


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def _lane_constant(name: str) -> str:
    def value(lane: int) -> int:
        one = 1 << lane
        below = one - 1
        return {"laneid": lane, "lanemask_eq": one, "lanemask_lt": below, "lanemask_le": below | one,
                "lanemask_gt": ~(below | one), "lanemask_ge": ~below}[name]  # fmt: skip

    return "<" + ", ".join(f"i32 {_as_i32(value(i) & 0xFFFFFFFF)}" for i in range(LANES)) + ">"


def _as_i32(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x
