"""Lanewise instructions on bits in LLVM IR: logic, shifts, counting, fields, permutations of bytes."""

from __future__ import annotations

from ..isa import Form
from ..ptx import Immediate
from ..values import is_signed
from .lanewise import Spelling, bits_of, choose, compare, spells
from .text import LANES, Text, splat, vector, word


@spells("and", "or", "xor", "not", "cnot")
def _logic(form: Form) -> Spelling | None:
    kind, name = vector(word(form.type)), form.instruction.name
    if name == "not":
        ones = splat("i1", "true") if form.type == "pred" else splat(word(form.type), -1)
        return lambda f, a: f.op("xor", kind, a, ones)
    if name == "cnot":
        return lambda f, a: f.cast("zext", "<32 x i1>", compare(f, "eq", kind, a, "zeroinitializer"), kind)
    return lambda f, a, b: f(f"{name} {kind} {a}, {b}")


def _of_two(f: Text, table: int, b: str, c: str) -> str:
    """The function of the bits of b and c with a table of four bits: bit 2 b + c."""
    kind = vector("i32")

    def inverse(v: str) -> str:
        return f.op("xor", kind, v, splat("i32", -1))

    if table in (0, 15):
        return splat("i32", 0 if table == 0 else -1)
    if table == 0b1100 or table == 0b0011:
        return b if table == 0b1100 else inverse(b)
    if table == 0b1010 or table == 0b0101:
        return c if table == 0b1010 else inverse(c)
    if table in (0b0110, 0b1001):
        r = f.op("xor", kind, b, c)
        return r if table == 0b0110 else inverse(r)
    ones = [i for i in range(4) if table >> i & 1]
    at = ones[0] if len(ones) == 1 else next(i for i in range(4) if i not in ones)
    r = f.op("and", kind, b if at & 2 else inverse(b), c if at & 1 else inverse(c))
    return r if len(ones) == 1 else inverse(r)


@spells("lop3")
def _any_of_three(form: Form) -> Spelling | None:
    if form.has("or") or form.has("and"):
        return None
    constant = form.sources[3]
    if not isinstance(constant, Immediate):
        return None
    table, kind = constant.value & 0xFF, vector("i32")

    def lop3(f: Text, a: str, b: str, c: str, _: str) -> str:
        low = _of_two(f, table & 15, b, c)  # where a is zero
        if table & 15 == table >> 4:
            return f.op("or", kind, low, "zeroinitializer")
        change = _of_two(f, (table & 15) ^ (table >> 4), b, c)
        return f.op("xor", kind, low, f.op("and", kind, a, change))

    return lop3


@spells("shl", "shr")
def _shift(form: Form) -> Spelling | None:
    element, bits = word(form.type), bits_of(form.type)
    kind, count = vector(element), vector("i32")
    arithmetic = form.instruction.name == "shr" and is_signed(form.type)
    name = "shl" if form.instruction.name == "shl" else "ashr" if arithmetic else "lshr"

    def shift(f: Text, a: str, b: str) -> str:
        most = f.call(count, "llvm.umin.v32i32", (count, b), (count, splat("i32", bits - 1)))
        n = most if bits == 32 else f(f"{'trunc' if bits < 32 else 'zext'} {count} {most} to {kind}")
        r = f(f"{name} {kind} {a}, {n}")
        if arithmetic:
            return r
        return choose(f, compare(f, "ult", count, b, splat("i32", bits)), kind, r, "zeroinitializer")

    constant = form.sources[1]
    if isinstance(constant, Immediate) and 0 <= constant.value < bits:
        return lambda f, a, b: f(f"{name} {kind} {a}, {splat(element, constant.value)}")
    return shift


@spells("shf")
def _funnel(form: Form) -> Spelling | None:
    kind, wide = vector("i32"), vector("i64")

    def funnel(f: Text, a: str, b: str, c: str) -> str:
        n = (
            f(f"and {kind} {c}, {splat('i32', 31)}")
            if form.has("wrap")
            else f.call(kind, "llvm.umin.v32i32", (kind, c), (kind, splat("i32", 32)))
        )
        n = f(f"zext {kind} {n} to {wide}")
        low, high = (f(f"zext {kind} {v} to {wide}") for v in (a, b))
        both = f.op("or", wide, f.op("shl", wide, high, splat("i64", 32)), low)
        if form.has("l"):
            both = f.op("lshr", wide, f.op("shl", wide, both, n), splat("i64", 32))
        else:
            both = f.op("lshr", wide, both, n)
        return f.cast("trunc", wide, both, kind)

    return funnel


@spells("popc", "clz", "brev")
def _count(form: Form) -> Spelling | None:
    element, name = word(form.type), form.instruction.name
    kind = vector(element)

    def count(f: Text, a: str) -> str:
        if name == "brev":
            return f.call(kind, f"llvm.bitreverse.v32{element}", (kind, a))
        if name == "popc":
            r = f.call(kind, f"llvm.ctpop.v32{element}", (kind, a))
        else:
            r = f.call(kind, f"llvm.ctlz.v32{element}", (kind, a), ("i1", "false"))
        return r if element == "i32" else f(f"trunc {kind} {r} to {vector('i32')}")

    return count


@spells("bfind")
def _highest(form: Form) -> Spelling | None:
    element, bits = word(form.type), bits_of(form.type)
    kind, result = vector(element), vector("i32")

    def find(f: Text, a: str) -> str:
        if is_signed(form.type):
            a = f.op("xor", kind, a, f.op("ashr", kind, a, splat(element, bits - 1)))
        zeros = f.call(kind, f"llvm.ctlz.v32{element}", (kind, a), ("i1", "false"))
        at = zeros if form.has("shiftamt") else f(f"sub {kind} {splat(element, bits - 1)}, {zeros}")
        at = at if bits == 32 else f(f"trunc {kind} {at} to {result}")
        none = compare(f, "eq", kind, a, "zeroinitializer")
        return choose(f, none, result, splat("i32", -1), at)

    return find


@spells("bfe", "bfi")
def _field(form: Form) -> Spelling | None:
    """Of 32 bits, with constant position and length inside the word: what compilers write."""
    place = form.sources[-2:]
    if bits_of(form.type) != 32 or not all(isinstance(p, Immediate) for p in place):
        return None
    at, count = (p.value for p in place if isinstance(p, Immediate))
    if not (0 <= at < 32 and 0 < count <= 32 - at):
        return None
    kind = vector("i32")
    if form.instruction.name == "bfe":
        right = "ashr" if is_signed(form.type) else "lshr"
        left, back = splat("i32", 32 - at - count), splat("i32", 32 - count)
        return lambda f, a, b, c: f.op(right, kind, f.op("shl", kind, a, left), back)
    mask = ((1 << count) - 1) << at

    def insert(f: Text, a: str, b: str, c: str, d: str) -> str:
        moved = f.op("and", kind, f.op("shl", kind, a, splat("i32", at)), splat("i32", _as_i32(mask)))
        return f.op("or", kind, f.op("and", kind, b, splat("i32", _as_i32(~mask & 0xFFFFFFFF))), moved)

    return insert


def _as_i32(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


@spells("prmt")
def _permute(form: Form) -> Spelling | None:
    if form.flags:
        return None
    kind, wide = vector("i32"), vector("i64")
    constant = form.sources[2]

    def permute(f: Text, a: str, b: str, c: str) -> str:
        if isinstance(constant, Immediate) and not constant.value & 0x8888:  # bytes as they are: one shuffle
            # In memory lane i's bytes of a are 4 i to 4 i + 3, and those of b 128 further.
            pick = [
                4 * lane + (n & 3) + (128 if n & 4 else 0)
                for lane in range(LANES)
                for n in (constant.value >> 4 * i & 15 for i in range(4))
            ]
            x, y = (f(f"bitcast {kind} {v} to <128 x i8>") for v in (a, b))
            indices = ", ".join(f"i32 {i}" for i in pick)
            r = f(f"shufflevector <128 x i8> {x}, <128 x i8> {y}, <128 x i32> <{indices}>")
            return f(f"bitcast <128 x i8> {r} to {kind}")
        low, high = (f(f"zext {kind} {v} to {wide}") for v in (a, b))
        both = f.op("or", wide, f.op("shl", wide, high, splat("i64", 32)), low)
        result = "zeroinitializer"
        for i in range(4):
            nibble = f.op("lshr", kind, c, splat("i32", 4 * i))
            shift = f.op("shl", kind, f.op("and", kind, nibble, splat("i32", 7)), splat("i32", 3))
            moved = f.op("lshr", wide, both, f.cast("zext", kind, shift, wide))
            byte = f.op("and", kind, f.cast("trunc", wide, moved, kind), splat("i32", 255))
            sign = f.op("mul", kind, f.op("lshr", kind, byte, splat("i32", 7)), splat("i32", 255))
            copies = compare(f, "ne", kind, f.op("and", kind, nibble, splat("i32", 8)), "zeroinitializer")
            byte = choose(f, copies, kind, sign, byte)
            result = f.op("or", kind, result, f.op("shl", kind, byte, splat("i32", 8 * i)))
        return result

    return permute
