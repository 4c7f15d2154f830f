"""Elementwise arithmetic and transcendentals; constants.

Integer arithmetic wraps (two's complement). Integer division (`div floordiv fmod remainder`) by zero gives 0, and the
smallest integer divided by -1 is itself, on every target. `minimum`, `maximum` and `clamp` propagate NaN. f16 and bf16
are computed in f32 and rounded once per op.

`llvm` maps a dtype kind to an instruction, `@name` to the intrinsic `llvm.name.<type>`; a kind that is not there is
spelled by `approx`, in simpler ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.ir.core import Op
from fluxir.ir.dtypes import dtype_of
from fluxir.ir.opdef import ElementContext, OpDef, Sample, op, sample
from fluxir.ir.types import TensorType
from fluxir.ops import meaning, recipes
from fluxir.ops.recipes import approx_rule
from fluxir.ops.rules import elementwise

# ---- constants ------------------------------------------------------------------------------------------------------


def _const_element(cx: ElementContext, o: Op, index: Any) -> Any:
    a = o.attrs.value
    if a.size == 0:  # no element is ever asked for; the code of one must still be well typed
        return cx.b.const(np.zeros((), a.dtype)[()] if a.dtype.kind != "V" else 0.0, dtype=dtype_of(a.dtype))
    if a.size == 1 or (a == a.flat[0]).all():
        return cx.b.const(a.flat[0] if a.dtype.kind != "V" else float(a.flat[0]), dtype=dtype_of(a.dtype))
    return cx.at(o.result, index)  # a real array: the context reads it from memory


op(
    "const",
    lambda t, a, k: [TensorType.of(dtype_of(a.value.dtype), a.value.shape)],
    attrs={"value": "array"},
    level="both",
    category="constant",
    ref=lambda a: a.value,
    element=_const_element,
    doc="A constant array (rank 0: a scalar).",
    constant="takes no value",
    samples=(
        sample(value=np.array(1.5, np.float32)),
        sample(value=np.full((2, 3), 7, np.int32)),
        sample(value=np.zeros((0, 4), np.bool_)),
    ),
)

# ---- samples ----------------------------------------------------------------------------------------------------------

_PAIRS = (
    ("f32[3,4]", "f32[4]"),
    ("f64[2,1]", "f64[1,3]"),
    ("f16[5]", "f16[5]"),
    ("bf16[5]", "bf16[5]"),
    ("f32", "f32"),
    ("f32[0,4]", "f32[4]"),
)
_INT_PAIRS = (("i32[5]", "i32[5]"), ("u8[4]", "u8"), ("i64[2,3]", "i64[3]"), ("u32[4]", "u32[4]"), ("i8[6]", "i8[6]"))
_NUM_PAIRS = (*_PAIRS, *_INT_PAIRS)
_DIVISIONS = (
    *_NUM_PAIRS,
    sample("i32[6]", "i32[6]", low=-9, high=9),
    sample("u8[6]", "u8[6]", low=0, high=200),
    sample("f32[6]", "f32[6]", low=-50, high=50),
)


def _floats(low: float = -2.0, high: float = 2.0, count: int = 1) -> tuple[Sample, ...]:
    """One sample for each float type, with a rank-0 and an empty one among them."""
    return tuple(
        sample(*[t] * count, low=low, high=high) for t in ("f32[3,4]", "f64[5]", "f16[5]", "bf16[5]", "f32", "f32[0,3]")
    )


def _ints(count: int = 1) -> tuple[Sample, ...]:
    return tuple(
        sample(*[t] * count, low=0 if t[0] == "u" else -9, high=9)
        for t in ("i32[5]", "i8[4]", "u8[4]", "i64[2,3]", "u32")
    )


# ---- partial derivatives of several of the ops below; f(b, *operands, result) as `ops/adjoint.py` says ------------------


def _like(b: Any, value: float, x: Any) -> Any:
    return b.const(value, like=x)


def _one(b: Any, x: Any, y: Any, out: Any) -> int:
    return 1


def _minus_one(b: Any, x: Any, y: Any, out: Any) -> int:
    return -1


def _when(b: Any, condition: Any, x: Any) -> Any:
    return b.select(condition, _like(b, 1, x), _like(b, 0, x))


def _first_if(test: str) -> Any:
    """1 where x is chosen, 1/2 where x and y are equal."""

    def partial(b: Any, x: Any, y: Any, out: Any) -> Any:
        return b.select(b.eq(x, y), _like(b, 0.5, x), _when(b, b.emit(test, x, y)[0], x))

    return partial


def _second_if(test: str) -> Any:
    first = _first_if(test)
    return lambda b, x, y, out: first(b, y, x, out)


def _power_by_base(b: Any, x: Any, y: Any, out: Any) -> Any:
    """y x**(y-1); 0 for y = 0, at x = 0 too. For y = 0 only where 1/x is no number, so that the derivative by y stays."""
    zero = _like(b, 0, x)
    inverse = b.div(_like(b, 1, x), x)
    wild = b.logical_and(b.eq(y, zero), b.logical_not(b.isfinite(inverse)))
    return b.mul(y, b.pow(b.select(wild, _like(b, 1, x), x), b.sub(y, 1)))


def _power_by_exponent(b: Any, x: Any, y: Any, out: Any) -> Any:
    """x**y log x, with 0 for x = 0."""
    return b.mul(out, b.log(b.select(b.eq(x, _like(b, 0, x)), _like(b, 1, x), x)))


def _unit(b: Any, x: Any) -> Any:
    return b.copysign(_like(b, 1, x), x)


def _norm2(b: Any, x: Any, y: Any) -> Any:
    return b.add(b.mul(x, x), b.mul(y, y))


# At an end of the range the derivative by x is 1.
_CLAMP = (
    lambda b, x, low, high, out: _when(b, b.logical_and(b.ge(x, low), b.le(x, high)), x),
    lambda b, x, low, high, out: _when(b, b.logical_and(b.lt(x, low), b.le(low, high)), x),
    lambda b, x, low, high, out: _when(b, b.gt(b.maximum(x, low), high), x),
)

# ---- arithmetic -----------------------------------------------------------------------------------------------------


def _arithmetic(
    name: str, ref: Callable[..., Any], doc: str, *, arity: int = 2, samples: Sequence[Any] = _NUM_PAIRS, **kw: Any
) -> OpDef:
    return elementwise(name, ref=meaning.in_f32(ref), arity=arity, samples=samples, doc=doc, **kw)


add = _arithmetic(
    "add",
    np.add,
    "x + y, elementwise, broadcasting.",
    commutes=True,
    llvm={"float": "fadd", "int": "add", "uint": "add"},
    partials=(_one, _one),
)
sub = _arithmetic(
    "sub",
    np.subtract,
    "x - y, elementwise, broadcasting.",
    llvm={"float": "fsub", "int": "sub", "uint": "sub"},
    partials=(_one, _minus_one),
)
mul = _arithmetic(
    "mul",
    np.multiply,
    "x * y, elementwise, broadcasting.",
    commutes=True,
    llvm={"float": "fmul", "int": "mul", "uint": "mul"},
    partials=(lambda b, x, y, out: y, lambda b, x, y, out: x),
)
div = _arithmetic(
    "div",
    meaning.divide,
    "x / y; integers truncate towards zero, and by zero give 0.",
    samples=_DIVISIONS,
    llvm={"float": "fdiv", "int": "sdiv", "uint": "udiv"},
    partials=(lambda b, x, y, out: b.div(_like(b, 1, y), y), lambda b, x, y, out: b.neg(b.div(out, y))),
)
fmod = _arithmetic(
    "fmod",
    meaning.fmod,
    "The exact remainder with the sign of x (C's fmod and %); integers by zero give 0.",
    samples=_DIVISIONS,
    llvm={"int": "srem", "uint": "urem"},
    approx=recipes.through_f32(recipes.fmod),
    partials=(_one, lambda b, x, y, out: b.neg(b.trunc(b.div(x, y)))),
)
floordiv = _arithmetic(
    "floordiv",
    meaning.floordiv,
    "x / y rounded down (as numpy's floor_divide); integers by zero give 0.",
    samples=_DIVISIONS,
    approx=recipes.through_f32(recipes.floordiv),
    constant="piecewise constant",
)
remainder = _arithmetic(
    "remainder",
    meaning.remainder,
    "The remainder with the sign of y (Python's %); integers by zero give 0.",
    samples=_DIVISIONS,
    approx=recipes.through_f32(recipes.remainder),
    partials=(_one, lambda b, x, y, out: b.neg(b.floor(b.div(x, y)))),
)
pow_ = _arithmetic(
    "pow",
    meaning.power,
    "x ** y. Integers wrap; a negative exponent gives 0, but for the bases 1 and -1.",
    approx=recipes.power,
    samples=(
        *_floats(0.1, 3.0, 2),
        *_ints(2),
        sample("i32[8]", "i32[8]", low=-3, high=12),
        sample("f32[4,3]", "f32[3]", low=0.1),
    ),
    partials=(_power_by_base, _power_by_exponent),
)
minimum = _arithmetic(
    "minimum",
    np.minimum,
    "The smaller of x and y; NaN if either is.",
    commutes=True,
    llvm={"float": "@minimum", "int": "@smin", "uint": "@umin"},
    partials=(_first_if("lt"), _second_if("lt")),
)
maximum = _arithmetic(
    "maximum",
    np.maximum,
    "The larger of x and y; NaN if either is.",
    commutes=True,
    llvm={"float": "@maximum", "int": "@smax", "uint": "@umax"},
    partials=(_first_if("gt"), _second_if("gt")),
)
copysign = _arithmetic(
    "copysign",
    np.copysign,
    "The magnitude of x with the sign of y.",
    types="float",
    samples=_PAIRS,
    llvm={"float": "@copysign"},
    partials=(lambda b, x, y, out: b.mul(_unit(b, x), _unit(b, y)), None),
)
atan2 = _arithmetic(
    "atan2",
    np.arctan2,
    "The angle of the point (y, x): atan2(y, x), in (-pi, pi].",
    types="float",
    samples=_PAIRS,
    approx=approx_rule("atan2"),
    partials=(lambda b, y, x, out: b.div(x, _norm2(b, x, y)), lambda b, y, x, out: b.neg(b.div(y, _norm2(b, x, y)))),
)
fma = _arithmetic(
    "fma",
    meaning.fma,
    "x * y + z, rounded once.",
    arity=3,
    llvm={"float": "@fma"},
    approx=recipes.fma_integer,
    samples=(*_floats(count=3), *_ints(3), ("f32[3,1]", "f32[4]", "f32")),
    partials=(lambda b, x, y, z, out: y, lambda b, x, y, z, out: x, lambda b, x, y, z, out: 1),
)
clamp = _arithmetic(
    "clamp",
    lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "min(max(x, low), high); NaN if any is.",
    arity=3,
    approx=recipes.clamp,
    samples=(*_floats(count=3), *_ints(3), ("f32[3,4]", "f32", "f32[4]")),
    partials=_CLAMP,
)

_ONE = (*_floats(), *_ints())
neg = _arithmetic(
    "neg",
    np.negative,
    "-x; integers wrap.",
    arity=1,
    samples=_ONE,
    llvm={"float": "fneg"},
    approx=recipes.neg,
    partials=(lambda b, x, out: -1,),
)
absolute = _arithmetic(
    "abs",
    np.abs,
    "|x|; the smallest integer stays itself.",
    arity=1,
    samples=_ONE,
    llvm={"float": "@fabs"},
    approx=recipes.absolute,
    partials=(lambda b, x, out: b.sign(x),),
)
sign = _arithmetic(
    "sign",
    np.sign,
    "-1, 0 or 1; NaN stays NaN.",
    arity=1,
    samples=_ONE,
    approx=recipes.sign,
    constant="piecewise constant",
)

# ---- roots and rounding -------------------------------------------------------------------------------------------------


def _unary(name: str, ref: Callable[..., Any], doc: str, low: float = -2.0, high: float = 2.0, **kw: Any) -> OpDef:
    """A function of one float."""
    return elementwise(name, ref=meaning.in_f32(ref), types="float", samples=_floats(low, high), doc=doc, **kw)


sqrt = _unary(
    "sqrt",
    np.sqrt,
    "The square root; NaN below 0.",
    0,
    9,
    llvm={"float": "@sqrt"},
    partials=(lambda b, x, out: b.div(_like(b, 0.5, x), out),),
)
rsqrt = _unary(
    "rsqrt",
    meaning.rsqrt,
    "1 / sqrt(x).",
    0.1,
    9,
    approx=recipes.through_f32(recipes.rsqrt),
    partials=(lambda b, x, out: b.mul(b.div(out, x), -0.5),),
)
cbrt = _unary(
    "cbrt",
    np.cbrt,
    "The cube root, of negative numbers too.",
    -9,
    9,
    approx=approx_rule("cbrt"),
    partials=(lambda b, x, out: b.div(_like(b, 1 / 3, x), b.mul(out, out)),),
)
floor = _unary(
    "floor",
    np.floor,
    "The largest integer not above x.",
    -9,
    9,
    llvm={"float": "@floor"},
    constant="piecewise constant",
)
ceil = _unary(
    "ceil", np.ceil, "The smallest integer not below x.", -9, 9, llvm={"float": "@ceil"}, constant="piecewise constant"
)
round_ = _unary(
    "round",
    np.rint,
    "The nearest integer; halves go to the even one.",
    -9,
    9,
    llvm={"float": "@roundeven"},
    constant="piecewise constant",
)
trunc = _unary(
    "trunc", np.trunc, "x without its fraction.", -9, 9, llvm={"float": "@trunc"}, constant="piecewise constant"
)

# ---- transcendentals: recipes of ops/approx -------------------------------------------------------------------------------


def _inverse(b: Any, x: Any) -> Any:
    return b.div(_like(b, 1, x), x)


def _one_minus_square(b: Any, x: Any) -> Any:
    """1 - x**2 without cancellation near 1."""
    return b.mul(b.sub(_like(b, 1, x), x), b.add(x, 1))


for _name, _ref, _low, _high, _partial, _doc in (
    ("exp", np.exp, -4, 4, lambda b, x, out: out, "e ** x."),
    ("exp2", np.exp2, -4, 4, lambda b, x, out: b.mul(out, math.log(2)), "2 ** x."),
    ("expm1", np.expm1, -1, 1, lambda b, x, out: b.add(out, 1), "e ** x - 1, accurate near 0."),
    ("log", np.log, 0.01, 9, lambda b, x, out: _inverse(b, x), "The natural logarithm; -inf at 0, NaN below."),
    ("log2", np.log2, 0.01, 9, lambda b, x, out: _inverse(b, b.mul(x, math.log(2))), "The logarithm to base 2."),
    ("log10", np.log10, 0.01, 9, lambda b, x, out: _inverse(b, b.mul(x, math.log(10))), "The logarithm to base 10."),
    ("log1p", np.log1p, -0.9, 2, lambda b, x, out: _inverse(b, b.add(x, 1)), "log(1 + x), accurate near 0."),
    ("sin", np.sin, -7, 7, lambda b, x, out: b.cos(x), "The sine; x in radians."),
    ("cos", np.cos, -7, 7, lambda b, x, out: b.neg(b.sin(x)), "The cosine; x in radians."),
    ("tan", np.tan, -1.4, 1.4, lambda b, x, out: b.add(b.mul(out, out), 1), "The tangent; x in radians."),
    (
        "asin",
        np.arcsin,
        -1,
        1,
        lambda b, x, out: b.rsqrt(_one_minus_square(b, x)),
        "The inverse sine, in [-pi/2, pi/2].",
    ),
    (
        "acos",
        np.arccos,
        -1,
        1,
        lambda b, x, out: b.neg(b.rsqrt(_one_minus_square(b, x))),
        "The inverse cosine, in [0, pi].",
    ),
    (
        "atan",
        np.arctan,
        -9,
        9,
        lambda b, x, out: _inverse(b, b.add(b.mul(x, x), 1)),
        "The inverse tangent, in [-pi/2, pi/2].",
    ),
    ("sinh", np.sinh, -4, 4, lambda b, x, out: b.cosh(x), "The hyperbolic sine."),
    ("cosh", np.cosh, -4, 4, lambda b, x, out: b.sinh(x), "The hyperbolic cosine."),
    ("tanh", np.tanh, -4, 4, lambda b, x, out: _one_minus_square(b, out), "The hyperbolic tangent."),
    ("asinh", np.arcsinh, -9, 9, lambda b, x, out: b.rsqrt(b.add(b.mul(x, x), 1)), "The inverse hyperbolic sine."),
    (
        "acosh",
        np.arccosh,
        1,
        9,
        lambda b, x, out: b.rsqrt(b.mul(b.sub(x, 1), b.add(x, 1))),
        "The inverse hyperbolic cosine, for x >= 1.",
    ),
    (
        "atanh",
        np.arctanh,
        -0.9,
        0.9,
        lambda b, x, out: _inverse(b, _one_minus_square(b, x)),
        "The inverse hyperbolic tangent, for |x| <= 1.",
    ),
    (
        "erf",
        meaning.erf,
        -3,
        3,
        lambda b, x, out: b.mul(b.exp(b.neg(b.mul(x, x))), 2 / math.sqrt(math.pi)),
        "The error function.",
    ),
    (
        "erfc",
        meaning.erfc,
        -3,
        3,
        lambda b, x, out: b.mul(b.exp(b.neg(b.mul(x, x))), -2 / math.sqrt(math.pi)),
        "1 - erf(x), accurate for large x.",
    ),
    (
        "lgamma",
        meaning.lgamma,
        0.1,
        9,
        lambda b, x, out: b.digamma(x),
        "log |gamma(x)|; inf at 0 and the negative integers.",
    ),
    ("sigmoid", meaning.sigmoid, -6, 6, lambda b, x, out: b.mul(out, b.sub(_like(b, 1, x), out)), "1 / (1 + e ** -x)."),
):
    _unary(_name, _ref, _doc, _low, _high, approx=approx_rule(_name), partials=(_partial,))

__all__ = [
    "absolute",
    "add",
    "atan2",
    "cbrt",
    "ceil",
    "clamp",
    "copysign",
    "div",
    "floor",
    "floordiv",
    "fma",
    "fmod",
    "maximum",
    "minimum",
    "mul",
    "neg",
    "pow_",
    "remainder",
    "round_",
    "rsqrt",
    "sign",
    "sqrt",
    "sub",
    "trunc",
]
