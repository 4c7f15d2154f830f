"""The `simplify` pass and its arithmetic: identities that hold bit for bit, in IEEE arithmetic and in wrapping integers.

What is *not* here is as telling: `x + 0.0` (wrong for -0.0), `x * 0.0` and `x - x` (NaN, infinity), `x / x`,
`not (x < y)` for floats (NaN), `neg (x - y)` (the sign of zero), sums in another order. Shapes and control flow have
their own files.
"""

from __future__ import annotations

import math
from typing import Any

from fluxir.ir.core import Func
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.passes import simplify_control, simplify_join, simplify_reduce, simplify_shape
from fluxir.passes.cleanup import dce
from fluxir.passes.manager import PassContext, pass_
from fluxir.passes.rules import Match, RuleSet, scalar_of

RULES = RuleSet()
rule, rewrite = RULES.rule, RULES.rewrite


@pass_("simplify")
def simplify(func: Func, cx: PassContext) -> Func:
    """Apply algebraic identities that are exact for every input, until none applies."""
    return RULES.run(func, cx.rules, between=lambda f: dce(f, cx))


# ---- arithmetic -----------------------------------------------------------------------------------------------------------

rule("add_zero_integer", lambda b, x: b.add(x, 0), lambda b, x: x, "integer")
rule("add_negative_zero", lambda b, x: b.add(x, -0.0), lambda b, x: x, "float")
rule("sub_zero", lambda b, x: b.sub(x, 0), lambda b, x: x)
rule("sub_self", lambda b, x: b.sub(x, x), lambda b, x: 0, "integer")
rule("zero_sub", lambda b, x: b.sub(0, x), lambda b, x: b.neg(x), "integer")
rule("negative_zero_sub", lambda b, x: b.sub(-0.0, x), lambda b, x: b.neg(x), "float")
rule("mul_one", lambda b, x: b.mul(x, 1), lambda b, x: x)
rule("mul_zero", lambda b, x: b.mul(x, 0), lambda b, x: 0, "integer")
rule("mul_minus_one", lambda b, x: b.mul(x, -1), lambda b, x: b.neg(x), "signed")
rule("div_one", lambda b, x: b.div(x, 1), lambda b, x: x)
rule("div_minus_one", lambda b, x: b.div(x, -1), lambda b, x: b.neg(x), "signed")
rule("floordiv_one", lambda b, x: b.floordiv(x, 1), lambda b, x: x, "integer")
rule("remainder_one", lambda b, x: b.remainder(x, 1), lambda b, x: 0, "integer")
rule("fmod_one", lambda b, x: b.fmod(x, 1), lambda b, x: 0, "integer")
rule("neg_neg", lambda b, x: b.neg(b.neg(x)), lambda b, x: x)
rule("add_neg", lambda b, x, y: b.add(x, b.neg(y)), lambda b, x, y: b.sub(x, y))
rule("sub_neg", lambda b, x, y: b.sub(x, b.neg(y)), lambda b, x, y: b.add(x, y))
rule("mul_neg_neg", lambda b, x, y: b.mul(b.neg(x), b.neg(y)), lambda b, x, y: b.mul(x, y))
rule("div_neg_neg", lambda b, x, y: b.div(b.neg(x), b.neg(y)), lambda b, x, y: b.div(x, y), "float")
rule("abs_neg", lambda b, x: b.abs(b.neg(x)), lambda b, x: b.abs(x), "signed")
rule("abs_abs", lambda b, x: b.abs(b.abs(x)), lambda b, x: b.abs(x))
rule("abs_square", lambda b, x: b.abs(b.mul(x, x)), lambda b, x: b.mul(x, x), "float")
rule("square_abs", lambda b, x: b.mul(b.abs(x), b.abs(x)), lambda b, x: b.mul(x, x))
rule("sign_sign", lambda b, x: b.sign(b.sign(x)), lambda b, x: b.sign(x))
rule("minimum_self", lambda b, x: b.minimum(x, x), lambda b, x: x)
rule("maximum_self", lambda b, x: b.maximum(x, x), lambda b, x: x)
rule("minimum_twice", lambda b, x, y: b.minimum(b.minimum(x, y), y), lambda b, x, y: b.minimum(x, y), "integer")
rule("maximum_twice", lambda b, x, y: b.maximum(b.maximum(x, y), y), lambda b, x, y: b.maximum(x, y), "integer")
rule("pow_one", lambda b, x: b.pow(x, 1), lambda b, x: x)
rule("pow_zero", lambda b, x: b.pow(x, 0), lambda b, x: 1)
rule("copysign_self", lambda b, x: b.copysign(x, x), lambda b, x: x, "float")
rule("floor_floor", lambda b, x: b.floor(b.floor(x)), lambda b, x: b.floor(x), "float")
rule("ceil_ceil", lambda b, x: b.ceil(b.ceil(x)), lambda b, x: b.ceil(x), "float")
rule("round_round", lambda b, x: b.round(b.round(x)), lambda b, x: b.round(x), "float")
rule("trunc_trunc", lambda b, x: b.trunc(b.trunc(x)), lambda b, x: b.trunc(x), "float")

# ---- comparisons, logic, bits ---------------------------------------------------------------------------------------------

rule("eq_self", lambda b, x: b.eq(x, x), lambda b, x: True, "bits")
rule("ne_self", lambda b, x: b.ne(x, x), lambda b, x: False, "bits")
rule("le_self", lambda b, x: b.le(x, x), lambda b, x: True, "integer")
rule("ge_self", lambda b, x: b.ge(x, x), lambda b, x: True, "integer")
rule("lt_self", lambda b, x: b.lt(x, x), lambda b, x: False)
rule("gt_self", lambda b, x: b.gt(x, x), lambda b, x: False)
rule("ne_self_is_nan", lambda b, x: b.ne(x, x), lambda b, x: b.isnan(x), "float")
rule("not_eq", lambda b, x, y: b.logical_not(b.eq(x, y)), lambda b, x, y: b.ne(x, y), "any")
rule("not_ne", lambda b, x, y: b.logical_not(b.ne(x, y)), lambda b, x, y: b.eq(x, y), "any")
rule("not_not", lambda b, x: b.logical_not(b.logical_not(x)), lambda b, x: x, "bool")
rule("and_true", lambda b, x: b.logical_and(x, True), lambda b, x: x, "bool")
rule("and_false", lambda b, x: b.logical_and(x, False), lambda b, x: False, "bool")
rule("and_self", lambda b, x: b.logical_and(x, x), lambda b, x: x, "bool")
rule("and_not_self", lambda b, x: b.logical_and(x, b.logical_not(x)), lambda b, x: False, "bool")
rule("or_true", lambda b, x: b.logical_or(x, True), lambda b, x: True, "bool")
rule("or_false", lambda b, x: b.logical_or(x, False), lambda b, x: x, "bool")
rule("or_self", lambda b, x: b.logical_or(x, x), lambda b, x: x, "bool")
rule("or_not_self", lambda b, x: b.logical_or(x, b.logical_not(x)), lambda b, x: True, "bool")
rule("xor_false", lambda b, x: b.logical_xor(x, False), lambda b, x: x, "bool")
rule("xor_true", lambda b, x: b.logical_xor(x, True), lambda b, x: b.logical_not(x), "bool")
rule("xor_self", lambda b, x: b.logical_xor(x, x), lambda b, x: False, "bool")
rule("and_absorbs", lambda b, x, y: b.logical_and(x, b.logical_or(x, y)), lambda b, x, y: x, "bool")
rule("or_absorbs", lambda b, x, y: b.logical_or(x, b.logical_and(x, y)), lambda b, x, y: x, "bool")
rule("bit_not_not", lambda b, x: b.bit_not(b.bit_not(x)), lambda b, x: x, "integer")
rule("bit_and_self", lambda b, x: b.bit_and(x, x), lambda b, x: x, "integer")
rule("bit_or_self", lambda b, x: b.bit_or(x, x), lambda b, x: x, "integer")
rule("bit_xor_self", lambda b, x: b.bit_xor(x, x), lambda b, x: 0, "integer")
rule("bit_and_zero", lambda b, x: b.bit_and(x, 0), lambda b, x: 0, "integer")
rule("bit_or_zero", lambda b, x: b.bit_or(x, 0), lambda b, x: x, "integer")
rule("bit_xor_zero", lambda b, x: b.bit_xor(x, 0), lambda b, x: x, "integer")
rule("shift_left_zero", lambda b, x: b.shift_left(x, 0), lambda b, x: x, "integer")
rule("shift_right_zero", lambda b, x: b.shift_right(x, 0), lambda b, x: x, "integer")

for _name, _other in (("lt", "ge"), ("le", "gt"), ("gt", "le"), ("ge", "lt")):
    rule(
        f"not_{_name}",
        lambda b, x, y, n=_name: b.logical_not(getattr(b, n)(x, y)),
        lambda b, x, y, n=_other: getattr(b, n)(x, y),
        "integer",
    )

_CHOICE = (("bool[4]", "f32[4]", "f32[4]"), ("bool", "i32[2,3]", "i32[3]"), ("bool[3,1]", "f16[4]", "f16"))
_SAME = (("bool[4]", "f32[4]"), ("bool[3,1]", "i32[4]"))
_PAIR = (("f32[4]", "f32[4]"), ("i32[2,3]", "i32[3]"), ("bool", "bool[2]"))
rule("select_same", lambda b, p, x: b.select(p, x, x), lambda b, p, x: x, "bool", _SAME)
rule(
    "select_not",
    lambda b, p, x, y: b.select(b.logical_not(p), x, y),
    lambda b, p, x, y: b.select(p, y, x),
    "bool",
    _CHOICE,
)
rule("select_true", lambda b, x, y: b.select(b.const(True, dtype="bool"), x, y), lambda b, x, y: x, "any", _PAIR)
rule("select_false", lambda b, x, y: b.select(b.const(False, dtype="bool"), x, y), lambda b, x, y: y, "any", _PAIR)
rule("select_true_false", lambda b, p: b.select(p, True, False), lambda b, p: p, "bool")
rule("select_false_true", lambda b, p: b.select(p, False, True), lambda b, p: b.logical_not(p), "bool")
rule(
    "select_nested",
    lambda b, p, x, y, z: b.select(p, b.select(p, x, y), z),
    lambda b, p, x, y, z: b.select(p, x, z),
    "bool",
    [("bool[4]", "f32[4]", "f32[4]", "f32[4]")],
)

# ---- what needs a look at types and numbers -----------------------------------------------------------------------------------

_FLOATS = (("f32[7]",), ("f64[2,3]",), ("f16[5]",), ("bf16",))


@rewrite("pow", sample=lambda b, x: b.pow(x, 2), types=(*_FLOATS, ("i32[4]",)), ulps=1)
def pow_two(m: Match) -> Any:
    """The product is the correctly rounded square; pow itself may be off in the last place."""
    c, x = scalar_of(m.operands[1]), m.operands[0]
    return m.b.mul(x, x) if c is not None and c == 2 else None


@rewrite("pow", sample=lambda b, x: b.pow(x, -1.0), types=_FLOATS, ulps=1)
def pow_minus_one(m: Match) -> Any:
    c, x = scalar_of(m.operands[1]), m.operands[0]
    if c is None or not m.type.dtype.is_float or c != -1:
        return None
    return m.b.div(m.b.const(1.0, dtype=m.type.dtype), x)


@rewrite("div", sample=lambda b, x: b.div(x, -8.0), types=_FLOATS)
def div_by_power_of_two(m: Match) -> Any:
    """Exact where the reciprocal is a normal number: quotient and product are then the same real number, rounded once."""
    c, d = scalar_of(m.operands[1]), m.type.dtype
    if c is None or not d.is_float or not math.isfinite(float(c)) or abs(math.frexp(float(c))[0]) != 0.5:
        return None
    reciprocal = 1.0 / float(c)
    if not _smallest_normal(d) <= abs(reciprocal) <= 1.0 / _smallest_normal(d):
        return None
    return m.b.mul(m.operands[0], m.b.const(reciprocal, dtype=d))


def _smallest_normal(d: DType) -> float:
    return {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}[d.name]


_MANTISSA = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}  # bits, the hidden one included
_WIDER = {("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")}


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is one of `wide`."""
    if wide == narrow or narrow.is_bool:
        return True
    if wide.is_bool or (narrow.is_float and not wide.is_float):
        return False
    if narrow.is_float:
        return (narrow.name, wide.name) in _WIDER
    (lo, hi) = narrow.limits
    if wide.is_float:
        return hi.bit_length() <= _MANTISSA[wide.name] and (hi < 65504 or wide.name != "f16")
    return wide.limits[0] <= lo and hi <= wide.limits[1]


_CASTS = [
    (d, e)
    for d in ("f32", "f64", "i16", "i64")
    for e in ("f16", "bf16", "f32", "f64", "i8", "u8", "i32", "i64", "bool")
]


@rewrite("cast", sample=lambda b, x: b.cast(x, dtype=x.type.dtype), types=(("f32[4]",), ("bool",), ("i8[0]",)))
def cast_to_itself(m: Match) -> Any:
    return m.operands[0] if m.operands[0].type.dtype == m.type.dtype else None


@rewrite(
    "cast",
    sample=lambda b, x: [b.cast(b.cast(x, dtype=d), dtype=e) for d, e in _CASTS if holds(DTYPES[d], x.type.dtype)],
    types=(("f16[9]",), ("bf16[9]",), ("f32[9]",), ("i8[9]",), ("u8[9]",), ("bool[4]",), ("i32[9]",), ("u32[9]",)),
)
def cast_through_wider(m: Match) -> Any:
    """The first cast loses nothing, so the second might as well start from the source."""
    inner = m.made_by(0, "cast")
    if inner is None:
        return None
    source, middle, final = inner.operands[0].type.dtype, inner.result.type.dtype, m.type.dtype
    # Integers wrap, floats saturate: a detour through a float matters where the result cannot hold the value.
    detour = source.is_integer and middle.is_float and final.is_integer and not holds(final, source)
    if not holds(middle, source) or detour:
        return None
    return m.b.cast(inner.operands[0], dtype=final)


@rewrite(
    "cast", sample=lambda b, x: b.cast(b.cast(x, dtype="i16"), dtype="u8"), types=(("i32[9]",), ("i8[5]",), ("u64[9]",))
)
def cast_keeps_low_bits(m: Match) -> Any:
    inner = m.made_by(0, "cast")
    if inner is None:
        return None
    source, middle, final = inner.operands[0].type.dtype, inner.result.type.dtype, m.type.dtype
    if not (source.is_integer and middle.is_integer and final.is_integer) or final.bits > middle.bits:
        return None
    return m.b.cast(inner.operands[0], dtype=final)


@rewrite("bitcast", sample=lambda b, x: b.bitcast(b.bitcast(x, dtype="u32"), dtype="i32"), types=(("f32[4]",),))
def bitcast_bitcast(m: Match) -> Any:
    inner = m.made_by(0, "bitcast")
    return None if inner is None else m.b.bitcast(inner.operands[0], dtype=m.type.dtype)


@rewrite("bitcast", sample=lambda b, x: b.bitcast(x, dtype=x.type.dtype), types=(("f32[4]",), ("u8",)))
def bitcast_to_itself(m: Match) -> Any:
    return m.operands[0] if m.operands[0].type.dtype == m.type.dtype else None


RULES.include(simplify_shape.RULES)
RULES.include(simplify_join.RULES)
RULES.include(simplify_reduce.RULES)
RULES.include(simplify_control.RULES)

__all__ = ["RULES", "holds", "simplify"]
