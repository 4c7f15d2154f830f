"""Floating point arithmetic, rounded exactly: sums, products, fused multiply-adds, quotients, roots, minima, signs.

The rules of PTX, on top of IEEE 754: `.ftz` makes subnormal operands and results zeros of their sign; `.sat` clamps to [0, 1] and
makes NaN zero; `.relu` makes what is negative zero and keeps NaN; a NaN result is 0x7fffffff (f32), 0x7fff (f16, bf16) or
0xfff8000000000000 (f64), whatever the NaN operands were. `.ftz` looks at the rounded result. What is only approximate is in
`special`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..double import DOUBLE
from ..isa import Form, Signature, lanewise
from ..rounding import BF16, F16, F32, Format, fma_f32, fma_to_odd, round_to, sum_to_odd
from ..values import Array, bf16_to_f32, dtype, f32_to_bf16, split
from .packed import in_blocks, lanes_of

__all__ = ["canonical", "finish", "flush", "group", "narrow", "widen"]

_FORMATS: dict[str, Format] = {"f32": F32, "f16": F16, "bf16": BF16}
_TINY = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}
_NAN: dict[Any, Any] = {
    np.dtype(np.float16): np.uint16(0x7FFF).view(np.float16),
    np.dtype(np.float32): np.uint32(0x7FFFFFFF).view(np.float32),
    np.dtype(np.float64): np.uint64(0xFFF8000000000000).view(np.float64),
}
_MODES = "{rn rz rm rp}"


def group(form: Form) -> str:
    """The class of an arithmetic instruction for the counters: by width."""
    return {"f64": "float64", "f16": "float16", "bf16": "float16"}.get(split(form.type)[0], "float32")


# ---- steps that all share
def canonical(x: Array) -> Array:
    """Every NaN as the one that the hardware gives."""
    is_nan = x != x
    return np.where(is_nan, _NAN[x.dtype], x) if is_nan.any() else x


def flush(x: Array, kind: str) -> Array:
    """Subnormal numbers of the type as zeros of their sign."""
    small = np.abs(x) < x.dtype.type(_TINY[kind])
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


def widen(x: Array, kind: str) -> Array:
    """The operands of a 16-bit type as f32; others as they are."""
    return bf16_to_f32(x) if kind == "bf16" else np.asarray(x).astype(np.float32) if kind == "f16" else x


def narrow(x: Array, kind: str) -> Array:
    """A result in f32 (f64 for `f64`) as the type keeps it, to nearest."""
    return f32_to_bf16(x) if kind == "bf16" else canonical(x.astype(dtype(kind), copy=False))


def _saturate(x: Array) -> Array:
    zero, one = x.dtype.type(0), x.dtype.type(1)
    r: Array = np.where(x > zero, np.minimum(x, one), zero)
    return r


def _relu(x: Array) -> Array:
    return np.where(x <= 0, x.dtype.type(0), x)


def finish(form: Form, kind: str, f: Callable[..., Array]) -> Callable[..., Array]:
    """`f`, a function of f32 (f64 for `f64`), on the form's type, with the form's modifiers: all that comes before and after."""
    ftz, sat, relu = form.has("ftz"), form.has("sat"), form.has("relu")
    if isinstance(f, np.ufunc) and kind in ("f32", "f64") and not (ftz or sat or relu):
        return lambda *operands: canonical(f(*operands))

    def finished(*operands: Array) -> Array:
        numbers = [widen(x, kind) for x in operands]
        if ftz:
            numbers = [flush(x, kind) for x in numbers]
        r = f(*numbers)
        if ftz:
            r = flush(r, kind)
        if sat:
            r = _saturate(r)
        if relu:
            r = _relu(r)
        return narrow(r, kind)

    return in_blocks(finished)


# ---- the exact operations
_NATIVE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "fma": fma_f32,
}


# Operations on 16-bit floats that may be rounded to f32 first: 24 bits are twice 11 and two more. (A product of two bf16 can be a
# subnormal f32; its 16 bits do not reach from halfway between two bf16 to below the last bit of f32.)
_INNOCUOUS = {"f16": ("add", "sub", "mul"), "bf16": ("add", "sub", "mul")}


def _to_odd(name: str, mode: str) -> Callable[..., Array]:
    """The operation on f64 arrays that hold numbers of 24 bits, such that rounding its result once more is exact."""
    if name == "add":
        return lambda a, b: sum_to_odd(a, b, mode)
    if name == "sub":
        return lambda a, b: sum_to_odd(a, -b, mode)
    if name == "fma":
        return lambda a, b, c: fma_to_odd(a, b, c, mode)
    return _NATIVE[name]


def exact(name: str, kind: str, mode: str, ftz: bool = False) -> Callable[..., Array]:
    """The operation on f32 arrays (f64 for `f64`), such that `narrow` gives the result rounded by `mode`; with `ftz` it is
    rounded here."""
    if kind == "f64":
        return DOUBLE[name](mode)
    if mode == "rn" and (kind == "f32" or (not ftz and name in _INNOCUOUS[kind])):
        return _NATIVE[name]
    to, operation = _FORMATS[kind], _to_odd(name, mode)

    def rounded(*operands: Array) -> Array:
        return round_to(operation(*(np.asarray(x, np.float64) for x in operands)), to, mode).astype(np.float32)

    return rounded


def _arithmetic(form: Form, name: str) -> Callable[..., Array]:
    kind, _ = split(form.type)
    return lanes_of(form.type, finish(form, kind, exact(name, kind, form.rounding, form.has("ftz"))))


def _mixed(form: Form) -> Signature:
    """f32 results of 16-bit operands; the last operand is f32."""
    count = 3 if form.instruction.name == "fma" else 2
    return "f32", (form.type,) * (count - 1) + ("f32",)


def _mixed_arithmetic(form: Form, name: str) -> Callable[..., Array]:
    f = finish(form, "f32", exact(name, "f32", form.rounding))
    return lambda *operands: f(*(widen(x, form.type) for x in operands[:-1]), operands[-1])


_SUMS = f"""NAME[.{_MODES}][.ftz][.sat].f32 NAME[.{_MODES}][.ftz].f32x2 NAME[.{_MODES}].f64
    NAME[.rn][.ftz][.sat].{{f16 f16x2}} NAME[.rn].{{bf16 bf16x2}}"""


@lanewise(_SUMS.replace("NAME", "add"), group, section="9.7.3.3")
def add(form: Form) -> Any:
    """a + b."""
    return _arithmetic(form, "add")


@lanewise(_SUMS.replace("NAME", "sub"), group, section="9.7.3.4")
def sub(form: Form) -> Any:
    """a - b."""
    return _arithmetic(form, "sub")


@lanewise(_SUMS.replace("NAME", "mul"), group, section="9.7.3.5")
def mul(form: Form) -> Any:
    """a * b."""
    return _arithmetic(form, "mul")


@lanewise(f"add[.{_MODES}][.sat].f32.{{f16 bf16}}", "float32", signature=_mixed, section="9.7.5.1")
def add_mixed(form: Form) -> Any:
    """a + c in f32, a a 16-bit number."""
    return _mixed_arithmetic(form, "add")


@lanewise(f"sub[.{_MODES}][.sat].f32.{{f16 bf16}}", "float32", signature=_mixed, section="9.7.5.2")
def sub_mixed(form: Form) -> Any:
    """a - c in f32, a a 16-bit number."""
    return _mixed_arithmetic(form, "sub")


@lanewise(f"fma.{_MODES}[.sat].f32.{{f16 bf16}}", "float32", signature=_mixed, section="9.7.5.3")
def fma_mixed(form: Form) -> Any:
    """a * b + c in f32, a and b 16-bit numbers."""
    return _mixed_arithmetic(form, "fma")


@lanewise(
    f"""fma.{_MODES}[.ftz][.sat].f32 fma.{_MODES}[.ftz].f32x2 fma.{_MODES}.f64 fma.rn[.ftz][.sat].{{f16 f16x2}}
        fma.rn[.ftz].relu.{{f16 f16x2}} fma.rn[.relu].{{bf16 bf16x2}} fma.rn.oob[.relu].{{f16 f16x2 bf16 bf16x2}}""",
    group,
    3,
    section="9.7.3.6",
)
def fma(form: Form) -> Any:
    """a * b + c, rounded once. `.oob`: zero where an operand is the NaN that fills what was read out of bounds."""
    f = _arithmetic(form, "fma")
    if not form.has("oob"):
        return f
    kind, _ = split(form.type)
    scalar = finish(form, kind, exact("fma", kind, "rn"))

    def guarded(a: Array, b: Array, c: Array) -> Array:
        outside = _is_outside(a) | _is_outside(b) | _is_outside(c)
        r = scalar(a, b, c)
        return np.where(outside, r.dtype.type(0), r)

    return lanes_of(form.type, guarded)


def _is_outside(x: Array) -> Array:
    """Whether a 16-bit number is the NaN with which tensor copies fill what is out of bounds (`tensor_maps`). The ISA does not
    give its bits; 0x7ff7 is what others saw on the hardware."""
    outside: Array = np.asarray(x).view(np.uint16) == np.uint16(0x7FF7)
    return outside


@lanewise(f"mad[.{_MODES}][.ftz][.sat].f32 mad.{_MODES}.f64", group, 3, section="9.7.3.7")
def mad(form: Form) -> Any:
    """The same as fma, since sm_20."""
    return _arithmetic(form, "fma")


@lanewise(f"div.{_MODES}[.ftz].f32 div.{_MODES}.f64", group, section="9.7.3.8")
def div(form: Form) -> Any:
    """a / b."""
    return _arithmetic(form, "div")


@lanewise(f"rcp.{_MODES}[.ftz].f32 rcp.{_MODES}.f64", group, 1, section="9.7.3.13")
def rcp(form: Form) -> Any:
    """1 / a."""
    return _arithmetic(form, "rcp")


@lanewise(f"sqrt.{_MODES}[.ftz].f32 sqrt.{_MODES}.f64", group, 1, section="9.7.3.15")
def sqrt(form: Form) -> Any:
    """The square root of a; NaN for a below zero."""
    return _arithmetic(form, "sqrt")


# ---- signs
def _bits_of(form: Form, change: Callable[[Array, Any], Array]) -> Callable[..., Array]:
    """A function of the bits of a number and of its sign bit."""
    kind, _ = split(form.type)
    word = np.dtype(f"u{dtype(kind).itemsize}")
    sign = word.type(1 << (word.itemsize * 8 - 1))

    def changed(a: Array) -> Array:
        if form.has("ftz"):
            a = flush(np.asarray(a), kind)
        return change(np.asarray(a).view(word), sign).view(dtype(kind))

    return lanes_of(form.type, changed)


_SIGNS = "NAME[.ftz].{f32 f16 f16x2} NAME.{f64 bf16 bf16x2}"


@lanewise(_SIGNS.replace("NAME", "abs"), group, 1, section="9.7.3.9")
def abs_(form: Form) -> Any:
    """|a|: without the sign bit, NaN too."""
    return _bits_of(form, lambda bits, sign: bits & ~sign)


@lanewise(_SIGNS.replace("NAME", "neg"), group, 1, section="9.7.3.10")
def neg(form: Form) -> Any:
    """-a: with the sign bit flipped, NaN too."""
    return _bits_of(form, lambda bits, sign: bits ^ sign)


@lanewise("copysign.{f32 f64}", group, section="9.7.3.2")
def copysign(form: Form) -> Any:
    """b with the sign of a."""
    return lambda a, b: np.copysign(b, a)


_CLASS: dict[str, Callable[[Array, float], Array]] = {
    "finite": lambda a, tiny: np.isfinite(a),
    "infinite": lambda a, tiny: np.isinf(a),
    "number": lambda a, tiny: a == a,
    "notanumber": lambda a, tiny: a != a,
    "normal": lambda a, tiny: np.isfinite(a) & (np.abs(a) >= tiny),
    "subnormal": lambda a, tiny: (np.abs(a) < tiny) & (a != 0),
}


@lanewise(
    "testp.{finite infinite number notanumber normal subnormal}.{f32 f64}",
    group,
    signature=lambda form: ("pred", (form.type,)),
    section="9.7.3.1",
)
def testp(form: Form) -> Any:
    """Whether a is of the class named. Zero is neither normal nor subnormal."""
    test, tiny = _CLASS[form.one_of(*_CLASS)], dtype(form.type).type(_TINY[form.type])
    return lambda a: test(a, tiny)


# ---- minima
def _extreme(form: Form, pick: Callable[..., Array], nan_wins: Callable[..., Array], join: Callable[..., Array]) -> Any:
    """min or max: `pick` drops a NaN (but a signalling one not always), `nan_wins` keeps it. -0 is less than +0: `join` of the
    bits of two zeros gives the right one."""
    kind, _ = split(form.type)
    keeps, xorsign = form.has("NaN"), form.has("xorsign")

    def two(a: Array, b: Array) -> Array:
        r = nan_wins(a, b) if keeps else pick(a, b)
        if not keeps and (r != r).any():
            r = np.where(b != b, a, np.where(a != a, b, r))
        zeros = (a == 0) & (b == 0)
        if zeros.any():
            word = np.dtype(f"u{np.asarray(a).dtype.itemsize}")
            r = np.where(zeros, join(np.asarray(a).view(word), np.asarray(b).view(word)).view(a.dtype), r)
        return r

    def chosen(*operands: Array) -> Array:
        numbers = [np.abs(x) for x in operands] if form.has("abs") else operands
        r = two(numbers[0], numbers[1])
        for x in numbers[2:]:
            r = two(r, x)
        if xorsign:
            r = np.where(np.signbit(operands[0]) ^ np.signbit(operands[1]), -r, r)
        return r

    return lanes_of(form.type, finish(form, kind, chosen))


def _two_or_three(form: Form) -> Signature:
    count = 3 if form.type == "f32" and len(form.sources) == 3 and not form.has("xorsign") else 2
    if form.has("abs") and not form.has("xorsign"):
        count = 3
    return form.type, (form.type,) * count


_EXTREMES = """NAME[.ftz][.NaN][.xorsign.abs].{f32 f16 f16x2} NAME[.NaN][.xorsign.abs].{bf16 bf16x2} NAME.f64
    NAME[.ftz][.NaN].abs.f32"""


@lanewise(_EXTREMES.replace("NAME", "min"), group, signature=_two_or_three, section="9.7.3.11")
def min_(form: Form) -> Any:
    """The smaller of two numbers, or of three f32. Of a number and NaN the number, with `.NaN` NaN. `.abs`: of the absolute
    values; `.xorsign` gives it the product of the signs."""
    return _extreme(form, np.fmin, np.minimum, np.bitwise_or)


@lanewise(_EXTREMES.replace("NAME", "max"), group, signature=_two_or_three, section="9.7.3.12")
def max_(form: Form) -> Any:
    """The larger of two numbers, or of three f32. Of a number and NaN the number, with `.NaN` NaN. `.abs`: of the absolute
    values; `.xorsign` gives it the product of the signs."""
    return _extreme(form, np.fmax, np.maximum, np.bitwise_and)
