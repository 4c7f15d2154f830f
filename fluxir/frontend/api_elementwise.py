"""Elementwise functions under the names of the Array API standard and of NumPy.

A function of floats takes floats: an integer tensor is an error that says to cast (the standard leaves it undefined, and
numpy would widen to f64). A Python integer counts as f32 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import tensor as t
from fluxir.frontend.tensor import Tensor, as_tensor, binary, cast, constant, emit, promote_operands, unary
from fluxir.frontend.trace import here, public
from fluxir.ir.dtypes import DTYPES, DType, bool_, f32

Unary = Callable[[Any], Tensor]
Binary = Callable[[Any, Any], Tensor]


def _named(f: Any, name: str, doc: str) -> Any:
    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return public(f)


def _unary(name: str, doc: str, op: str | None = None) -> Unary:
    def f(x: Any, /) -> Tensor:
        return unary(op or name, x)

    return _named(f, name, doc)  # type: ignore[no-any-return]


def float_operand(name: str, x: Any) -> Tensor:
    """The operand of a function of floats: a Python integer counts as f32, an integer tensor is FX0209."""
    a = as_tensor(x)
    if a.weak and a.dtype.is_integer:
        return cast(a, f32)
    if not a.dtype.is_float:
        raise error(
            "FX0209",
            f"{name} takes floats, not {a.type}",
            help=f"cast it first: fx.{name}(x.astype('f32'))",
            loc=here(),
        )
    return a


def float_function(name: str, doc: str, op: str | None = None) -> Unary:
    """A public function of one float operand that is the op of the same name."""

    def f(x: Any, /) -> Tensor:
        return unary(op or name, float_operand(name, x))

    return _named(f, name, doc)  # type: ignore[no-any-return]


def _binary(name: str, doc: str, op: str | None = None) -> Binary:
    def f(x1: Any, x2: Any, /) -> Tensor:
        return binary(op or name, x1, x2)

    return _named(f, name, doc)  # type: ignore[no-any-return]


# ---- one operand ----------------------------------------------------------------------------------------------------------

abs = _unary("abs", "The absolute value.")
absolute = fabs = abs
negative = _unary("negative", "-x.", "neg")
sign = _unary("sign", "-1, 0 or 1; NaN stays NaN.")
sqrt = float_function("sqrt", "The square root.")
rsqrt = float_function("rsqrt", "1 / sqrt(x).")
cbrt = float_function("cbrt", "The cube root.")
exp = float_function("exp", "e ** x.")
exp2 = float_function("exp2", "2 ** x.")
expm1 = float_function("expm1", "exp(x) - 1, exact near 0.")
log = float_function("log", "The natural logarithm.")
log2 = float_function("log2", "The logarithm to base 2.")
log10 = float_function("log10", "The logarithm to base 10.")
log1p = float_function("log1p", "log(1 + x), exact near 0.")
sin = float_function("sin", "The sine (radians).")
cos = float_function("cos", "The cosine (radians).")
tan = float_function("tan", "The tangent (radians).")
asin = arcsin = float_function("asin", "The inverse sine.")
acos = arccos = float_function("acos", "The inverse cosine.")
atan = arctan = float_function("atan", "The inverse tangent.")
sinh = float_function("sinh", "The hyperbolic sine.")
cosh = float_function("cosh", "The hyperbolic cosine.")
tanh = float_function("tanh", "The hyperbolic tangent.")
asinh = arcsinh = float_function("asinh", "The inverse hyperbolic sine.")
acosh = arccosh = float_function("acosh", "The inverse hyperbolic cosine.")
atanh = arctanh = float_function("atanh", "The inverse hyperbolic tangent.")
erf = float_function("erf", "The error function.")
erfc = float_function("erfc", "1 - erf(x), exact for large x.")
digamma = float_function("digamma", "The derivative of `lgamma`.")
lgamma = float_function("lgamma", "The logarithm of the absolute value of the gamma function.")
sigmoid = float_function("sigmoid", "1 / (1 + exp(-x)).")
popcount = _unary("popcount", "Number of bits that are 1.")
clz = _unary("clz", "Number of leading bits that are 0.")


@public
def bitwise_count(x: Any, /) -> Tensor:
    """Number of bits that are 1 in the absolute value, u8 (numpy's rule; `popcount` counts the bits as stored)."""
    a = as_tensor(x)
    return cast(emit("popcount", emit("abs", a) if a.dtype.kind == "int" else a), DTYPES["u8"])


def _rounding(name: str, doc: str) -> Unary:
    def f(x: Any, /) -> Tensor:
        a = as_tensor(x)
        return a if a.dtype.is_integer else unary(name, a)

    return _named(f, name, doc)  # type: ignore[no-any-return]


ceil = _rounding("ceil", "The next integer up; integers stay as they are.")
floor = _rounding("floor", "The next integer down; integers stay as they are.")
trunc = fix = _rounding("trunc", "The integer part; integers stay as they are.")
_round = _rounding("round", "")


@public
def round(x: Any, /, decimals: int = 0) -> Tensor:
    """The nearest integer, halves to even; with `decimals`, that many decimal places."""
    if decimals == 0:
        return _round(x)
    a = float_operand("round", x)
    scale = constant(10.0 ** math.fabs(decimals), a.dtype)
    first, second = ("mul", "div") if decimals > 0 else ("div", "mul")
    return emit(second, emit("round", emit(first, a, scale)), scale)


around = round
rint = _named(lambda x, /: _round(x), "rint", "The nearest integer, halves to even.")


@public
def positive(x: Any, /) -> Tensor:
    """`x` itself."""
    return as_tensor(x)


@public
def square(x: Any, /) -> Tensor:
    """x * x."""
    a = as_tensor(x)
    return emit("mul", a, a)


@public
def reciprocal(x: Any, /) -> Tensor:
    """1 / x, of floats."""
    a = float_operand("reciprocal", x)
    return emit("div", constant(1, a.dtype), a)


@public
def deg2rad(x: Any, /) -> Tensor:
    """Degrees to radians."""
    a = float_operand("deg2rad", x)
    return emit("mul", a, constant(math.pi / 180, a.dtype))


@public
def rad2deg(x: Any, /) -> Tensor:
    """Radians to degrees."""
    a = float_operand("rad2deg", x)
    return emit("mul", a, constant(180 / math.pi, a.dtype))


radians, degrees = deg2rad, rad2deg


@public
def sinc(x: Any, /) -> Tensor:
    """sin(pi x) / (pi x), 1 at 0."""
    a = float_operand("sinc", x)
    y = emit("mul", a, constant(math.pi, a.dtype))
    near = emit("lt", emit("abs", y), constant(0.01, a.dtype))  # the series, whose derivatives are right at 0
    square, series, one = emit("mul", y, y), constant(1, a.dtype), constant(1, a.dtype)
    for n in (42, 20, 6):
        series = emit("sub", one, emit("mul", emit("mul", square, constant(1 / n, a.dtype)), series))
    safe = emit("select", near, one, y)
    return emit("select", near, series, emit("div", emit("sin", safe), safe))


@public
def modf(x: Any, /) -> tuple[Tensor, Tensor]:
    """The fractional and the integer part, both with the sign of x."""
    a = float_operand("modf", x)
    whole = emit("trunc", a)
    rest = emit("select", emit("isinf", a), constant(0, a.dtype), emit("sub", a, whole))
    return emit("copysign", rest, a), whole


# ---- tests of one operand ---------------------------------------------------------------------------------------------------


def _test(name: str, doc: str, of_integers: bool) -> Unary:
    def f(x: Any, /) -> Tensor:
        a = as_tensor(x)
        if not a.dtype.is_float:
            c = constant(of_integers, bool_)
            return emit("broadcast", c, shape=a.shape) if a.shape else c
        return emit(name, a)

    return _named(f, name, doc)  # type: ignore[no-any-return]


isnan = _test("isnan", "Whether x is NaN (of integers: never).", False)
isinf = _test("isinf", "Whether x is infinite (of integers: never).", False)
isfinite = _test("isfinite", "Whether x is neither NaN nor infinite (of integers: always).", True)


@public
def isposinf(x: Any, /) -> Tensor:
    """Whether x is +infinity."""
    a = float_operand("isposinf", x)
    return emit("eq", a, constant(math.inf, a.dtype))


@public
def isneginf(x: Any, /) -> Tensor:
    """Whether x is -infinity."""
    a = float_operand("isneginf", x)
    return emit("eq", a, constant(-math.inf, a.dtype))


def _bits(a: Tensor) -> Tensor:
    return emit("bitcast", a, dtype=DTYPES[f"i{a.dtype.bits}"])


@public
def signbit(x: Any, /) -> Tensor:
    """Whether the sign bit is set: true for -0.0, unlike x < 0."""
    b = _bits(float_operand("signbit", x))
    return emit("lt", b, constant(0, b.dtype))


@public
def nextafter(x1: Any, x2: Any, /) -> Tensor:
    """The next representable float after x1 towards x2."""
    a, b = promote_operands(x1, x2)
    a, b = float_operand("nextafter", a), float_operand("nextafter", b)
    bits = _bits(a)
    one = constant(1, bits.dtype)
    away = emit("eq", emit("gt", b, a), emit("gt", a, constant(0, a.dtype)))  # away from zero: one more in the bits
    step = emit("bitcast", emit("select", away, emit("add", bits, one), emit("sub", bits, one)), dtype=a.dtype)
    smallest = emit("copysign", emit("bitcast", one, dtype=a.dtype), b)
    step = emit("select", emit("eq", a, constant(0, a.dtype)), smallest, step)
    step = emit("select", emit("eq", a, b), b, step)
    bad = emit("logical_or", emit("isnan", a), emit("isnan", b))
    return emit("select", bad, emit("add", a, b), step)


# ---- two operands -----------------------------------------------------------------------------------------------------------

add = _binary("add", "x1 + x2, broadcasting.")
subtract = _binary("subtract", "x1 - x2, broadcasting.", "sub")
multiply = _binary("multiply", "x1 * x2, broadcasting.", "mul")
divide = true_divide = _named(lambda x1, x2, /: t.divide(x1, x2), "divide", "x1 / x2 of floats, broadcasting.")
floor_divide = _binary("floor_divide", "x1 / x2 rounded down.", "floordiv")
remainder = mod = _binary("remainder", "The remainder with the sign of x2.")
fmod = _binary("fmod", "The remainder with the sign of x1.")
pow = power = _named(lambda x1, x2, /: t.power(x1 if isinstance(x1, Tensor) else as_tensor(x1), x2), "pow", "x1 ** x2.")
maximum = _binary("maximum", "The larger one; NaN if either is.")
minimum = _binary("minimum", "The smaller one; NaN if either is.")
atan2 = arctan2 = _binary("atan2", "The angle of the point (x2, x1) from the x axis, in -pi..pi.")
copysign = _binary("copysign", "The magnitude of x1 with the sign of x2.")
less = _binary("less", "x1 < x2.", "lt")
less_equal = _binary("less_equal", "x1 <= x2.", "le")
greater = _binary("greater", "x1 > x2.", "gt")
greater_equal = _binary("greater_equal", "x1 >= x2.", "ge")
equal = _binary("equal", "x1 == x2.", "eq")
not_equal = _binary("not_equal", "x1 != x2.", "ne")
bitwise_left_shift = left_shift = _binary("bitwise_left_shift", "x1 shifted left by x2 bits.", "shift_left")
bitwise_right_shift = right_shift = _binary(
    "bitwise_right_shift", "x1 shifted right by x2 bits, keeping the sign.", "shift_right"
)
bitwise_and = _named(lambda x1, x2, /: t.bitwise("and", x1, x2), "bitwise_and", "Bits set in both; of bools: and.")
bitwise_or = _named(lambda x1, x2, /: t.bitwise("or", x1, x2), "bitwise_or", "Bits set in either; of bools: or.")
bitwise_xor = _named(
    lambda x1, x2, /: t.bitwise("xor", x1, x2), "bitwise_xor", "Bits set in one only; of bools: exclusive or."
)
bitwise_invert = bitwise_not = invert = _named(
    lambda x, /: t.invert(x), "bitwise_invert", "All bits flipped; of bools: not."
)


def truth(x: Any) -> Tensor:
    """`x` as bool: x != 0."""
    return cast(as_tensor(x), bool_)


logical_and = _named(
    lambda x1, x2, /: emit("logical_and", truth(x1), truth(x2)), "logical_and", "Whether both are true (not 0)."
)
logical_or = _named(
    lambda x1, x2, /: emit("logical_or", truth(x1), truth(x2)), "logical_or", "Whether either is true (not 0)."
)
logical_xor = _named(
    lambda x1, x2, /: emit("logical_xor", truth(x1), truth(x2)), "logical_xor", "Whether exactly one is true (not 0)."
)
logical_not = _named(lambda x, /: emit("logical_not", truth(x)), "logical_not", "Whether x is false (0).")


@public
def divmod(x1: Any, x2: Any, /) -> tuple[Tensor, Tensor]:
    """The floor of the quotient, and the remainder."""
    a, b = promote_operands(x1, x2)
    return emit("floordiv", a, b), emit("remainder", a, b)


@public
def fmax(x1: Any, x2: Any, /) -> Tensor:
    """The larger one; a NaN gives way to a number."""
    return _ignoring_nan("maximum", x1, x2)


@public
def fmin(x1: Any, x2: Any, /) -> Tensor:
    """The smaller one; a NaN gives way to a number."""
    return _ignoring_nan("minimum", x1, x2)


def _ignoring_nan(op: str, x1: Any, x2: Any) -> Tensor:
    a, b = promote_operands(x1, x2)
    r = emit(op, a, b)
    if not a.dtype.is_float:
        return r
    return emit("select", emit("isnan", a), b, emit("select", emit("isnan", b), a, r))


@public
def hypot(x1: Any, x2: Any, /) -> Tensor:
    """sqrt(x1**2 + x2**2) without overflow on the way."""
    a, b = (float_operand("hypot", v) for v in promote_operands(x1, x2))
    # Signed: through |x| the second derivative at x = 0 would be lost.
    big, small = _ordered(emit("ge", emit("abs", a), emit("abs", b)), a, b)
    one = constant(1, big.dtype)
    divisor = emit("select", emit("ne", big, constant(0, big.dtype)), big, one)
    ratio = emit("div", small, divisor)
    r = emit("mul", emit("abs", big), emit("sqrt", emit("add", one, emit("mul", ratio, ratio))))
    infinite = emit("logical_or", emit("isinf", a), emit("isinf", b))
    return emit("select", infinite, constant(math.inf, r.dtype), r)


def _ordered(first: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) where `first` holds, else (b, a). Where both orders mean the same smooth function, so do all derivatives at ties."""
    return emit("select", first, a, b), emit("select", first, b, a)


def _log_of_sum(a: Tensor, b: Tensor, exp: str, scale: float) -> Tensor:
    top, low = _ordered(emit("ge", a, b), a, b)
    same = emit("logical_and", emit("eq", a, b), emit("isinf", a))  # equal infinities: their gap would be NaN
    gap = emit("select", same, constant(0, a.dtype), emit("sub", low, top))
    part = emit("log1p", emit(exp, gap))
    return emit("add", top, part if scale == 1 else emit("mul", part, constant(scale, a.dtype)))


@public
def logaddexp(x1: Any, x2: Any, /) -> Tensor:
    """log(exp(x1) + exp(x2)) without overflow."""
    a, b = (float_operand("logaddexp", v) for v in promote_operands(x1, x2))
    return _log_of_sum(a, b, "exp", 1)


@public
def logaddexp2(x1: Any, x2: Any, /) -> Tensor:
    """log2(2**x1 + 2**x2) without overflow."""
    a, b = (float_operand("logaddexp2", v) for v in promote_operands(x1, x2))
    return _log_of_sum(a, b, "exp2", 1 / math.log(2))


@public
def heaviside(x1: Any, x2: Any, /) -> Tensor:
    """0 below 0, 1 above, x2 at 0."""
    a, b = promote_operands(x1, x2)
    zero, one = constant(0, a.dtype), constant(1, a.dtype)
    r = emit("select", emit("eq", a, zero), b, emit("select", emit("lt", a, zero), zero, one))
    return emit("select", emit("isnan", a), a, r) if a.dtype.is_float else r


@public
def ldexp(x1: Any, x2: Any, /) -> Tensor:
    """x1 * 2**x2 for integer x2."""
    a = float_operand("ldexp", x1)
    return emit("mul", a, emit("exp2", cast(as_tensor(x2), a.dtype)))


# ---- choosing ---------------------------------------------------------------------------------------------------------------


@public
def where(condition: Any, x1: Any = None, x2: Any = None, /) -> Tensor:
    """x1 where the condition holds, else x2; broadcasting. Positions of true elements are `fx.nonzero(c)`."""
    if x1 is None or x2 is None:
        raise error("FX0221", "where needs both x1 and x2", help="positions are fx.nonzero(condition)", loc=here())
    a, b = promote_operands(x1, x2)
    r = emit("select", truth(condition), a, b)
    r.weak = not r.shape and t.all_weak((x1, x2))
    return r


@public
def select(condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> Tensor:
    """numpy's select: the choice of the first condition that holds, else `default`."""
    if len(condlist) != len(choicelist):
        raise error("FX0221", f"select: {len(condlist)} conditions and {len(choicelist)} choices", loc=here())
    *choices, r = promote_operands(*choicelist, default)
    for c, x in zip(reversed(condlist), reversed(choices), strict=True):
        r = emit("select", truth(c), x, r)
    return r


@public
def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """Elements cut to min..max; either may be None, a number or a tensor. NaN stays."""
    a = as_tensor(x)
    if max is not None:
        a = _bounded(a, max, "minimum") if min is None else _bounded(_bounded(a, min, "maximum"), max, "minimum")
        return a
    return a if min is None else _bounded(a, min, "maximum")


def _bounded(a: Tensor, bound: Any, op: str) -> Tensor:
    x, y = promote_operands(a, bound)
    return emit(op, x, y)


@public
def nan_to_num(
    x: Any, /, copy: bool = True, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """NaN replaced by `nan`, infinities by `posinf`, `neginf` (default: the largest finite numbers)."""
    a = as_tensor(x)
    if not a.dtype.is_float:
        return a
    top = largest(a.dtype)
    high, low = top if posinf is None else posinf, -top if neginf is None else neginf
    r = emit("select", emit("isnan", a), constant(nan, a.dtype), a)
    r = emit("select", emit("eq", a, constant(math.inf, a.dtype)), constant(high, a.dtype), r)
    return emit("select", emit("eq", a, constant(-math.inf, a.dtype)), constant(low, a.dtype), r)


def largest(d: DType) -> Any:
    """The largest finite value of a type, as a Python number."""
    if not d.is_float:
        return d.limits[1]
    from fluxir.frontend.api_creation import finfo

    return float(finfo(d).max)


@public
def isclose(a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """Whether |a - b| <= atol + rtol * |b|; equal infinities are close."""
    x, y = promote_operands(a, b)
    if not x.dtype.is_float:
        return (
            emit("eq", x, y) if x.dtype.is_bool else isclose(cast(x, DTYPES["f64"]), cast(y, DTYPES["f64"]), rtol, atol)
        )
    bound = emit("add", constant(atol, x.dtype), emit("mul", constant(rtol, x.dtype), emit("abs", y)))
    near = emit("le", emit("abs", emit("sub", x, y)), bound)
    r = emit("logical_or", emit("logical_and", near, emit("isfinite", y)), emit("eq", x, y))
    if equal_nan:
        r = emit("logical_or", r, emit("logical_and", emit("isnan", x), emit("isnan", y)))
    return r


@public
def allclose(a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """Whether all elements are close; see `isclose`."""
    r = isclose(a, b, rtol, atol, equal_nan)
    return emit("all", r, axes=tuple(range(r.ndim))) if r.ndim else r


@public
def array_equal(a1: Any, a2: Any) -> Tensor:
    """Whether shapes and all elements are equal."""
    x, y = promote_operands(a1, a2)
    if x.shape != y.shape:
        return constant(False, bool_)
    r = emit("eq", x, y)
    return emit("all", r, axes=tuple(range(r.ndim))) if r.ndim else r


@public
def real(x: Any, /) -> Tensor:
    """`x` itself: there are no complex tensors."""
    return as_tensor(x)


@public
def conj(x: Any, /) -> Tensor:
    """`x` itself: there are no complex tensors."""
    return as_tensor(x)


@public
def imag(x: Any, /) -> Tensor:
    """Zeros: there are no complex tensors."""
    from fluxir.frontend.api_creation import zeros_like

    return zeros_like(x)


def isscalar(x: Any) -> bool:
    """Whether `x` is a number or numpy scalar."""
    return t.is_scalar(x) or isinstance(x, np.generic)


__all__ = [
    "abs", "absolute", "acos", "acosh", "add", "allclose", "arccos", "arccosh", "arcsin", "arcsinh", "arctan",
    "arctan2", "arctanh", "around", "array_equal", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and",
    "bitwise_count", "bitwise_invert", "bitwise_left_shift", "bitwise_not", "bitwise_or", "bitwise_right_shift",
    "bitwise_xor", "cbrt", "ceil", "clip", "clz", "conj", "copysign", "cos", "cosh", "deg2rad", "degrees", "divide",
    "divmod", "equal", "erf", "erfc", "exp", "exp2", "expm1", "fabs", "fix", "floor", "floor_divide", "fmax",
    "fmin", "fmod", "greater", "greater_equal", "heaviside", "hypot", "imag", "invert", "isclose", "isfinite",
    "isinf", "isnan", "isneginf", "isposinf", "isscalar", "ldexp", "left_shift", "less", "less_equal", "lgamma", "digamma",
    "log", "log10", "log1p", "log2", "logaddexp", "logaddexp2", "logical_and", "logical_not", "logical_or",
    "logical_xor", "maximum", "minimum", "mod", "modf", "multiply", "nan_to_num", "negative", "nextafter",
    "not_equal", "popcount", "positive", "pow", "power", "rad2deg", "radians", "real", "reciprocal", "remainder",
    "right_shift", "rint", "round", "rsqrt", "select", "sigmoid", "sign", "signbit", "sin", "sinc", "sinh", "sqrt",
    "square", "subtract", "tan", "tanh", "true_divide", "trunc", "where",
]  # fmt: skip
