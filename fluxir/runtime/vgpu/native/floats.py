"""Floating point instructions in LLVM IR: rounded to nearest, with PTX's rules for NaN, subnormals and saturation.

f16 is computed in f32 and rounded once more, which is exact for sums, products, quotients and roots (f32 has more than twice its
bits); its fused multiply-add is rounded to odd first (see `rounding`).
"""

from __future__ import annotations

from collections.abc import Callable

from ..isa import Form
from ..values import is_float, is_signed, split
from .lanewise import Spelling, spells
from .text import LANES, Text, scalar, splat, vector, word

__all__ = ["canonical", "finish", "flush"]

_NAN = {"half": "0xH7FFF", "float": "0x7FFFFFFFE0000000", "double": "0xFFF8000000000000"}
_TINY = {
    "f16": "0x3F10000000000000",
    "f32": "0x3810000000000000",
    "bf16": "0x3810000000000000",
}  # the least normal number


def _n(kind: str) -> int:
    """How many elements a vector type has."""
    return int(kind[1:].split()[0])


def _element(kind: str) -> str:
    return kind[:-1].split(" x ")[1]


def _test(f: Text, order: str, kind: str, a: str, b: str) -> str:
    return f(f"fcmp {order} {kind} {a}, {b}")


def _pick(f: Text, condition: str, kind: str, a: str, b: str) -> str:
    return f(f"select <{_n(kind)} x i1> {condition}, {kind} {a}, {kind} {b}")


def unary(f: Text, name: str, kind: str, a: str) -> str:
    letter = {"half": "f16", "float": "f32", "double": "f64"}[_element(kind)]
    return f.call(kind, f"llvm.{name}.v{_n(kind)}{letter}", (kind, a))


def canonical(f: Text, kind: str, a: str) -> str:
    """Every NaN as the one that the hardware gives."""
    element = _element(kind)
    return _pick(f, _test(f, "uno", kind, a, a), kind, splat(element, _NAN[element]), a)


def flush(f: Text, kind: str, a: str, of: str) -> str:
    """Subnormal numbers of the PTX type `of` as zeros of their sign."""
    small = _test(f, "olt", kind, unary(f, "fabs", kind, a), splat(_element(kind), _TINY[of]))
    letter = {"half": "f16", "float": "f32", "double": "f64"}[_element(kind)]
    zero = f.call(kind, f"llvm.copysign.v{_n(kind)}{letter}", (kind, "zeroinitializer"), (kind, a))
    return _pick(f, small, kind, zero, a)


def bf16_to_float(f: Text, a: str, n: int = LANES) -> str:
    wide = f.cast("zext", f"<{n} x i16>", a, f"<{n} x i32>")
    return f.cast("bitcast", f"<{n} x i32>", f.op("shl", f"<{n} x i32>", wide, splat("i32", 16)), f"<{n} x float>")


def float_to_bf16(f: Text, a: str, n: int = LANES) -> str:
    """The bits of the nearest bf16."""
    kind, number = f"<{n} x i32>", f"<{n} x float>"
    bits = f.cast("bitcast", number, a, kind)
    odd = f.op("and", kind, f.op("lshr", kind, bits, splat("i32", 16)), splat("i32", 1))
    rounded = f.op("add", kind, f.op("add", kind, bits, splat("i32", 0x7FFF)), odd)
    rounded = f.op("lshr", kind, rounded, splat("i32", 16))
    none = _test(f, "uno", number, a, a)
    return f.cast("trunc", kind, _pick(f, none, kind, splat("i32", 0x7FFF), rounded), f"<{n} x i16>")


# ---- on every type
def finish(form: Form, compute: Callable[..., str]) -> Spelling | None:
    """`compute(text, vector type, operands...)`, in f32 or f64, on the form's type with its modifiers; `.relu` and f32x2 are
    left to numpy."""
    element, count = split(form.type)
    if form.has("relu") or (element == "f32" and count > 1):
        return None
    n, ftz, sat = LANES * count, form.has("ftz"), form.has("sat")
    kind = f"<{n} x {'double' if element == 'f64' else 'float'}>"
    narrow = f"<{n} x {scalar(element)}>"
    whole = vector(scalar(form.type))

    def finished(f: Text, *operands: str) -> str:
        numbers = [f.cast("bitcast", whole, x, narrow) for x in operands]
        if element == "f16":
            numbers = [f.cast("fpext", narrow, x, kind) for x in numbers]
        elif element == "bf16":
            numbers = [bf16_to_float(f, x, n) for x in numbers]
        if ftz:
            numbers = [flush(f, kind, x, element) for x in numbers]
        r = compute(f, kind, *numbers)
        if ftz:
            r = flush(f, kind, r, element)
        if sat:
            r = saturate(f, kind, r)
        if element == "bf16":
            return f.cast("bitcast", narrow, float_to_bf16(f, r, n), whole)
        if element == "f16":
            r = f.cast("fptrunc", kind, r, narrow)
        return f.cast("bitcast", narrow, canonical(f, narrow, r), whole)

    return finished


def saturate(f: Text, kind: str, a: str) -> str:
    """To [0, 1]; NaN is zero."""
    one = splat(_element(kind), "1.0")
    most = _pick(f, _test(f, "olt", kind, a, one), kind, a, one)
    return _pick(f, _test(f, "ogt", kind, a, "zeroinitializer"), kind, most, "zeroinitializer")


@spells("add", "sub", "mul", "div", "rcp", "sqrt")
def _arithmetic(form: Form) -> Spelling | None:
    if not all(is_float(t) for t in form.types) or form.rounding != "rn" or len(form.types) != 1:
        return None
    name, element = form.instruction.name, split(form.type)[0]
    if form.has("approx") or form.has("full") or (element == "bf16" and name == "mul"):
        return None

    def compute(f: Text, kind: str, *numbers: str) -> str:
        if name == "sqrt":
            return unary(f, "sqrt", kind, numbers[0])
        if name == "rcp":
            return f.op("fdiv", kind, splat(_element(kind), "1.0"), numbers[0])
        return f.op(f"f{name}", kind, *numbers)

    return finish(form, compute)


@spells("fma", "mad")
def _fused(form: Form) -> Spelling | None:
    element = split(form.type)[0]
    if not is_float(element) or element == "bf16" or form.rounding != "rn" or form.has("oob") or len(form.types) != 1:
        return None

    def compute(f: Text, kind: str, a: str, b: str, c: str) -> str:
        if element != "f16":
            letter = "f64" if element == "f64" else "f32"
            return f.call(kind, f"llvm.fma.v{_n(kind)}{letter}", (kind, a), (kind, b), (kind, c))
        # The product is exact in f32. Its sum with c is rounded to odd there, and then once to f16.
        p = f.op("fmul", kind, a, b)
        s = f.op("fadd", kind, p, c)
        t = f.op("fsub", kind, s, p)
        e = f.op("fadd", kind, f.op("fsub", kind, p, f.op("fsub", kind, s, t)), f.op("fsub", kind, c, t))
        bits = f"<{_n(kind)} x i32>"
        have = f.cast("bitcast", kind, s, bits)
        inexact = _test(f, "one", kind, e, "zeroinitializer")
        even = f(f"icmp eq {bits} {f.op('and', bits, have, splat('i32', 1))}, zeroinitializer")
        outwards = f.op("xor", f"<{_n(kind)} x i1>", _test(f, "ogt", kind, e, "zeroinitializer"),
                        _test(f, "olt", kind, s, "zeroinitializer"))  # fmt: skip
        step = _pick(f, outwards, bits, splat("i32", 1), splat("i32", -1))
        move = _pick(f, f.op("and", f"<{_n(kind)} x i1>", inexact, even), bits, step, "zeroinitializer")
        return f.cast("bitcast", bits, f.op("add", bits, have, move), kind)

    return finish(form, compute)


@spells("neg", "abs")
def _sign(form: Form) -> Spelling | None:
    element, count = split(form.type)
    if not is_float(element) or form.has("ftz"):
        return None
    part, whole, n = word(element), vector(scalar(form.type)), LANES * count
    bits = int(part[1:])
    kind = f"<{n} x {part}>"
    name, mask = ("xor", -(1 << bits - 1)) if form.instruction.name == "neg" else ("and", (1 << bits - 1) - 1)

    def change(f: Text, a: str) -> str:
        return f.cast("bitcast", kind, f.op(name, kind, f.cast("bitcast", whole, a, kind), splat(part, mask)), whole)

    return change


@spells("copysign")
def _copysign(form: Form) -> Spelling | None:
    kind = vector(scalar(form.type))
    return lambda f, a, b: f.call(kind, f"llvm.copysign.v32{form.type}", (kind, b), (kind, a))


@spells("min", "max")
def _extreme(form: Form) -> Spelling | None:
    if not is_float(form.type) or form.has("abs") or form.has("xorsign") or len(form.sources) != 2:
        return None
    least = form.instruction.name == "min"

    def compute(f: Text, kind: str, a: str, b: str) -> str:
        bits = f"<{_n(kind)} x i{64 if _element(kind) == 'double' else 32}>"
        r = _pick(f, _test(f, "olt" if least else "ogt", kind, a, b), kind, a, b)
        if form.has("NaN"):  # a NaN wins; b already does
            r = _pick(f, _test(f, "uno", kind, a, a), kind, a, r)
        else:  # a number wins; over a NaN in a, b has already
            r = _pick(f, _test(f, "uno", kind, b, b), kind, a, r)
        x, y = (f.cast("bitcast", kind, v, bits) for v in (a, b))
        both = f.cast("bitcast", bits, f.op("or" if least else "and", bits, x, y), kind)
        return _pick(f, _test(f, "oeq", kind, a, b), kind, both, r)  # equal: the same bits, or zeros of two signs

    return finish(form, compute)


# ---- conversions
@spells("cvt")
def _between(form: Form) -> Spelling | None:
    """Between floats: to nearest where the result is narrower."""
    if len(form.types) != 2 or form.flags not in ((), ("rn",)):
        return None
    to, of = form.types
    wide, narrow = vector("float"), vector("half")

    def half(f: Text, a: str) -> str:
        return canonical(f, narrow, f.cast("fptrunc", wide, a, narrow))

    table: dict[tuple[str, str], Spelling] = {
        ("f32", "f16"): lambda f, a: canonical(f, wide, f.cast("fpext", narrow, a, wide)),
        ("f16", "f32"): half,
        ("f64", "f32"): lambda f, a: canonical(f, vector("double"), f.cast("fpext", wide, a, vector("double"))),
        ("f32", "f64"): lambda f, a: canonical(f, wide, f.cast("fptrunc", vector("double"), a, wide)),
        ("f32", "bf16"): lambda f, a: canonical(f, wide, bf16_to_float(f, a)),
        ("bf16", "f32"): float_to_bf16,
        ("f16x2", "f32"): lambda f, a, b: _pair(f, half(f, b), half(f, a), narrow),
        ("bf16x2", "f32"): lambda f, a, b: _pair(f, float_to_bf16(f, b), float_to_bf16(f, a), vector("i16")),
    }
    return table.get((to, of))


def _pair(f: Text, low: str, high: str, kind: str) -> str:
    words = [
        f.cast("zext", vector("i16"), f.cast("bitcast", kind, x, vector("i16")), vector("i32")) for x in (low, high)
    ]
    return f.op("or", vector("i32"), words[0], f.op("shl", vector("i32"), words[1], splat("i32", 16)))


@spells("cvt")
def _to_tf32(form: Form) -> Spelling | None:
    if form.types != ("tf32", "f32") or form.flags not in (("rna",), ("rn",)):
        return None
    kind = vector("i32")

    def convert(f: Text, a: str) -> str:
        bits = f.cast("bitcast", vector("float"), a, kind)
        up: str = splat("i32", 0x1000)
        if form.has("rn"):
            odd = f.op("and", kind, f.op("lshr", kind, bits, splat("i32", 13)), splat("i32", 1))
            up = f.op("add", kind, odd, splat("i32", 0xFFF))
        rounded = f.op("and", kind, f.op("add", kind, bits, up), splat("i32", -0x2000))
        none = _test(f, "uno", vector("float"), a, a)
        return _pick(f, none, kind, splat("i32", 0x7FFFFFFF), rounded)

    return convert


@spells("cvt")
def _from_integer(form: Form) -> Spelling | None:
    if len(form.types) != 2 or form.flags != ("rn",) or form.types[0] not in ("f32", "f64") or is_float(form.type):
        return None
    to, of = form.types
    how = "sitofp" if is_signed(of) else "uitofp"
    return lambda f, a: f.cast(how, vector(word(of)), a, vector(scalar(to)))


_INTEGRAL = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


@spells("cvt")
def _to_integer(form: Form) -> Spelling | None:
    if len(form.types) != 2 or len(form.flags) != 1 or form.type not in ("f16", "f32", "f64"):
        return None
    how = form.one_of(*_INTEGRAL)
    to, of = form.types
    if not how:
        return None
    kind = vector("double" if of == "f64" else "float")
    letter = "f64" if of == "f64" else "f32"
    bits = 0 if is_float(to) else int(word(to)[1:])

    def convert(f: Text, a: str) -> str:
        x = f.cast("fpext", vector("half"), a, kind) if of == "f16" else a
        if is_float(to) or how != "rzi":
            x = unary(f, _INTEGRAL[how], kind, x)
        if is_float(to):
            x = f.cast("fptrunc", kind, x, vector("half")) if of == "f16" else x
            return canonical(f, vector(scalar(to)), x)
        result = vector(word(to))
        r = f.call(result, f"llvm.fpto{'s' if is_signed(to) else 'u'}i.sat.v32{word(to)}.v32{letter}", (kind, x))
        if of == "f64" or bits == 64:  # NaN is the number with only the top bit set, elsewhere zero
            r = _pick(f, _test(f, "uno", kind, x, x), result, splat(word(to), -(1 << bits - 1)), r)
        return r

    return convert if not is_float(to) or to == of else None
