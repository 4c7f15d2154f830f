"""Lanewise instructions on integers and bits in LLVM IR. What has no spelling here, in `floats` or in `approximations`, calls
back into its numpy meaning (`emit`), so that both executors know the same instructions.

A spelling is a function of (text, operands) that gives the result, or a tuple of results. Operands are vectors of 32 elements of
the LLVM types of their PTX types (`text.scalar`), and so are results. Every spelling is compared bit by bit with the numpy
meaning in `tests/test_vgpu_native.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..isa import Form, Opcode
from ..values import dtype, is_float, is_signed, split
from .text import LANES, Text, scalar, splat, vector, word

__all__ = ["Spelling", "bits_of", "choose", "compare", "spelling", "spells"]

Spelling = Callable[..., str | tuple[str, ...]]
_MAKERS: dict[str, list[Callable[[Form], Spelling | None]]] = {}


def spells(*names: str) -> Callable[[Callable[[Form], Spelling | None]], Callable[[Form], Spelling | None]]:
    """Declare how instructions are spelled: the decorated function takes the form and gives the spelling, None where it has none
    for it."""

    def declare(maker: Callable[[Form], Spelling | None]) -> Callable[[Form], Spelling | None]:
        for name in names:
            _MAKERS.setdefault(name, []).append(maker)
        return maker

    return declare


def spelling(opcode: Opcode, form: Form) -> Spelling | None:
    """How LLVM says it; None where only numpy can."""
    from . import approximations, bitwise, floats  # noqa: F401  (they declare theirs)

    for maker in _MAKERS.get(opcode.name, ()):
        found = maker(form)
        if found is not None:
            return found
    return None


def _is_integer(form: Form) -> bool:
    """Whether all its types are plain integers or bits."""
    return all(not is_float(t) and t != "pred" and split(t)[1] == 1 and t[0] in "usb" for t in form.types)


def bits_of(kind: str) -> int:
    """The width of a PTX type."""
    return 8 * dtype(kind).itemsize


def _plain(form: Form) -> bool:
    return _is_integer(form) and not (form.has("sat") or form.has("relu"))


def compare(f: Text, predicate: str, kind: str, a: str, b: str) -> str:
    return f(f"icmp {predicate} {kind} {a}, {b}")


def choose(f: Text, condition: str, kind: str, a: str, b: str) -> str:
    return f(f"select <{LANES} x i1> {condition}, {kind} {a}, {kind} {b}")


# ---- sums
def _add_carry(f: Text, kind: str, a: str, b: str, carry: str | None) -> tuple[str, str]:
    s = f(f"add {kind} {a}, {b}")
    out = compare(f, "ult", kind, s, a)
    if carry is not None:
        s = f.op("add", kind, s, f.cast("zext", "<32 x i1>", carry, kind))
        wrapped = f.op("and", "<32 x i1>", carry, compare(f, "eq", kind, s, "zeroinitializer"))
        out = f(f"or <32 x i1> {out}, {wrapped}")
    return s, out


def _subtract_borrow(f: Text, kind: str, a: str, b: str, borrow: str | None) -> tuple[str, str]:
    d = f(f"sub {kind} {a}, {b}")
    out = compare(f, "ult", kind, a, b)
    if borrow is not None:
        wrapped = f.op("and", "<32 x i1>", borrow, compare(f, "eq", kind, d, "zeroinitializer"))
        out = f(f"or <32 x i1> {out}, {wrapped}")
        d = f.op("sub", kind, d, f.cast("zext", "<32 x i1>", borrow, kind))
    return d, out


@spells("add", "sub", "addc", "subc")
def _sum(form: Form) -> Spelling | None:
    if not _plain(form):
        return None
    kind, name = vector(word(form.type)), form.instruction.name
    step = _add_carry if name.startswith("add") else _subtract_borrow
    if form.has("cc") or name.endswith("c"):

        def with_carry(f: Text, a: str, b: str, carry: str | None = None) -> str | tuple[str, ...]:
            both = step(f, kind, a, b, carry)
            return both if form.has("cc") else both[0]

        return with_carry
    return lambda f, a, b: f(f"{name} {kind} {a}, {b}")


# ---- products
def _product(form: Form) -> Callable[[Text, str, str], str]:
    bits = bits_of(form.type)
    narrow, wide = vector(f"i{bits}"), vector(f"i{2 * bits}")
    extend = "sext" if is_signed(form.type) else "zext"

    def product(f: Text, a: str, b: str) -> str:
        if not (form.has("wide") or form.has("hi")):
            return f(f"mul {narrow} {a}, {b}")
        x, y = (f(f"{extend} {narrow} {v} to {wide}") for v in (a, b))
        p = f(f"mul {wide} {x}, {y}")
        if form.has("wide"):
            return p
        return f.cast("trunc", wide, f.op("lshr", wide, p, splat(f"i{2 * bits}", bits)), narrow)

    return product


@spells("mul", "mad", "madc")
def _multiply(form: Form) -> Spelling | None:
    if not _plain(form):
        return None
    product = _product(form)
    kind = vector(f"i{bits_of(form.type) * (2 if form.has('wide') else 1)}")
    if form.instruction.name == "mul":
        return product

    def mad(f: Text, a: str, b: str, c: str, carry: str | None = None) -> str | tuple[str, ...]:
        p = product(f, a, b)
        if form.has("cc") or carry is not None:
            both = _add_carry(f, kind, p, c, carry)
            return both if form.has("cc") else both[0]
        return f(f"add {kind} {p}, {c}")

    return mad


@spells("div", "rem")
def _quotient(form: Form) -> Spelling | None:
    if not _plain(form):
        return None
    element, kind = word(form.type), vector(word(form.type))
    signed, name = is_signed(form.type), form.instruction.name

    def divide(f: Text, a: str, b: str) -> str:
        none = compare(f, "eq", kind, b, "zeroinitializer")
        avoid = none
        minus = ""
        if signed:  # the least number by -1 traps
            minus = compare(f, "eq", kind, b, splat(element, -1))
            avoid = f(f"or <32 x i1> {none}, {minus}")
        divisor = choose(f, avoid, kind, splat(element, 1), b)
        r = f(f"{'s' if signed else 'u'}{name} {kind} {a}, {divisor}")
        if name == "rem":
            return choose(f, none, kind, a, r)
        if signed:
            r = choose(f, minus, kind, f.op("sub", kind, "zeroinitializer", a), r)
        return choose(f, none, kind, splat(element, -1), r)

    return divide


@spells("abs", "neg")
def _sign(form: Form) -> Spelling | None:
    if not _plain(form):
        return None
    kind = vector(word(form.type))
    if form.instruction.name == "neg":
        return lambda f, a: f(f"sub {kind} zeroinitializer, {a}")
    return lambda f, a: f.call(kind, f"llvm.abs.v32{word(form.type)}", (kind, a), ("i1", "false"))


@spells("min", "max")
def _extreme(form: Form) -> Spelling | None:
    element, count = split(form.type)
    if is_float(element) or form.has("relu"):
        return None
    n, part = LANES * count, word(element)
    kind, whole = f"<{n} x {part}>", vector(word(form.type))
    name = f"llvm.{'s' if is_signed(element) else 'u'}{form.instruction.name}.v{n}{part}"

    def extreme(f: Text, a: str, b: str) -> str:
        if count == 1:
            return f.call(kind, name, (kind, a), (kind, b))
        x, y = (f.cast("bitcast", whole, v, kind) for v in (a, b))
        return f.cast("bitcast", kind, f.call(kind, name, (kind, x), (kind, y)), whole)

    return extreme


@spells("sad")
def _distance(form: Form) -> Spelling | None:
    kind = vector(word(form.type))
    order = "slt" if is_signed(form.type) else "ult"

    def sad(f: Text, a: str, b: str, c: str) -> str:
        less = compare(f, order, kind, a, b)
        d = choose(f, less, kind, f.op("sub", kind, b, a), f.op("sub", kind, a, b))
        return f.op("add", kind, c, d)

    return sad


@spells("dp4a")
def _dot(form: Form) -> Spelling | None:
    signs = [is_signed(t) for t in form.types]

    def dot(f: Text, a: str, b: str, c: str) -> str:
        kind = vector("i32")
        total = c
        for i in range(4):
            parts = []
            for v, signed in zip((a, b), signs):
                up = f.op("shl", kind, v, splat("i32", 24 - 8 * i))
                parts.append(f.op("ashr" if signed else "lshr", kind, up, splat("i32", 24)))
            total = f.op("add", kind, total, f.op("mul", kind, parts[0], parts[1]))
        return total

    return dot


# ---- moves
@spells("mov")
def _move(form: Form) -> Spelling | None:
    whole = word(form.type)
    parts, pieces = len(form.sources), len(form.destinations)
    if pieces > 1:
        bits = bits_of(form.type) // pieces
        narrow = vector(f"i{bits}")

        def unpack(f: Text, a: str) -> tuple[str, ...]:
            kind = vector(whole)
            parts = [f.op("lshr", kind, a, splat(whole, bits * i)) if i else a for i in range(pieces)]
            return tuple(f.cast("trunc", kind, part, narrow) for part in parts)

        return unpack
    if parts > 1:
        bits = bits_of(form.type) // parts

        def pack(f: Text, *items: str) -> str:
            kind = vector(whole)
            words = [f.cast("zext", vector(f"i{bits}"), item, kind) for item in items]
            result = words[0]
            for i, item in enumerate(words[1:], 1):
                result = f.op("or", kind, result, f.op("shl", kind, item, splat(whole, bits * i)))
            return result

        return pack
    return lambda f, a: a


# ---- comparisons
_ORDERS = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_FLOAT_ORDERS = {"eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "equ": "ueq", "neu": "une",
                 "ltu": "ult", "leu": "ule", "gtu": "ugt", "geu": "uge", "num": "ord", "nan": "uno"}  # fmt: skip


def _comparison(form: Form) -> Callable[[Text, str, str], str] | None:
    kind = vector(scalar(form.type))
    if split(form.type)[1] != 1 or form.type == "bf16" or (form.has("ftz") and form.type != "f32"):
        return None
    if is_float(form.type):
        from .floats import flush

        order = _FLOAT_ORDERS[form.one_of(*_FLOAT_ORDERS)]

        def compared(f: Text, a: str, b: str) -> str:
            if form.has("ftz"):
                a, b = flush(f, kind, a, "f32"), flush(f, kind, b, "f32")
            return f(f"fcmp {order} {kind} {a}, {b}")

        return compared
    name = form.one_of("eq", "ne", *_ORDERS)
    if name not in ("eq", "ne"):
        name = ("s" if is_signed(form.type) else "u") + _ORDERS[name]
    return lambda f, a, b: f(f"icmp {name} {kind} {a}, {b}")


@spells("setp")
def _set_predicate(form: Form) -> Spelling | None:
    compared, boolean = _comparison(form), form.one_of("and", "or", "xor")
    if compared is None:
        return None
    pair = len(form.destinations) > 1

    def setp(f: Text, a: str, b: str, *c: str) -> str | tuple[str, ...]:
        first = compared(f, a, b)
        both: tuple[str, ...] = (first, f(f"xor <32 x i1> {first}, {splat('i1', 'true')}")) if pair else (first,)
        if boolean:
            both = tuple(f(f"{boolean} <32 x i1> {r}, {c[0]}") for r in both)
        return both if pair else both[0]

    return setp


@spells("set")
def _set(form: Form) -> Spelling | None:
    compared = _comparison(form)
    if compared is None or form.one_of("and", "or", "xor") or form.types[0] not in ("u32", "s32"):
        return None
    return lambda f, a, b: f.cast("sext", "<32 x i1>", compared(f, a, b), vector("i32"))


@spells("selp")
def _select(form: Form) -> Spelling | None:
    return lambda f, a, b, c: choose(f, c, vector(scalar(form.type)), a, b)


@spells("slct")
def _select_by_sign(form: Form) -> Spelling | None:
    if form.has("ftz"):
        return None
    kind = vector(scalar(form.types[0]))
    if form.type == "f32":
        return lambda f, a, b, c: choose(f, f(f"fcmp oge {vector('float')} {c}, zeroinitializer"), kind, a, b)
    return lambda f, a, b, c: choose(f, compare(f, "sge", vector("i32"), c, "zeroinitializer"), kind, a, b)


# ---- conversions between integers
@spells("cvt")
def _convert(form: Form) -> Spelling | None:
    if len(form.types) != 2 or not _plain(form) or form.flags:
        return None
    to, of = form.types
    return lambda f, a: resize(f, a, of, word(to))


def resize(f: Text, a: str, of: str, to: str) -> str:
    """An integer of the PTX type `of` as the LLVM type `to`."""
    have, want = int(word(of)[1:]), int(to[1:])
    if have == want:
        return a
    how = "trunc" if want < have else "sext" if is_signed(of) else "zext"
    return f(f"{how} {vector(word(of))} {a} to {vector(to)}")
