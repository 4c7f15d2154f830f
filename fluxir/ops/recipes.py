"""Elementwise ops in terms of simpler ones, for what LLVM has no instruction for (`OpDef.approx`).

Each recipe is `recipe(b, *operands) -> value` and takes loop-level scalars or vectors of one type. Unlike the
polynomials of `ops/approx` these are exact: same bits on every target. A recipe may use a `for` with vector carries,
never a branch on a lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxir.ir.core import Value
from fluxir.ir.types import INDEX, VectorType

Builder = Any
Recipe = Callable[..., Any]


def approx_rule(name: str) -> Recipe:
    """The recipe `name` of `ops/approx`, found when it is first used; f16 and bf16 go through f32."""

    def rule(b: Builder, *xs: Value) -> Any:
        from fluxir.ops.approx import RECIPES

        return through_f32(RECIPES[name])(b, *xs)

    return rule


def through_f32(recipe: Recipe) -> Recipe:
    """`recipe` with f16 and bf16 operands cast to f32 and the result cast back."""

    def rule(b: Builder, *xs: Value) -> Any:
        d = xs[0].type.dtype
        if not (d.is_float and d.bits == 16):
            return recipe(b, *xs)
        r = recipe(b, *[b.cast(x, dtype="f32") for x in xs])
        return r if r.type.dtype.is_bool else b.cast(r, dtype=d)

    return rule


def _like(b: Builder, value: Any, x: Value) -> Any:
    return b.const(value, like=x)


# ---- sign and magnitude ----------------------------------------------------------------------------------------------


def neg(b: Builder, x: Value) -> Any:
    return b.sub(_like(b, 0, x), x)


def absolute(b: Builder, x: Value) -> Any:
    """Of integers; the smallest one stays itself."""
    if not x.type.dtype.is_signed:
        return x
    return b.select(b.lt(x, 0), b.sub(_like(b, 0, x), x), x)


def sign(b: Builder, x: Value) -> Any:
    """-1, 0 or 1; NaN stays NaN."""
    one, zero = _like(b, 1, x), _like(b, 0, x)
    positive = b.select(b.gt(x, zero), one, b.select(b.eq(x, zero), zero, x))
    return b.select(b.lt(x, zero), _like(b, -1, x), positive) if x.type.dtype.is_signed else positive


def clamp(b: Builder, x: Value, low: Value, high: Value) -> Any:
    return b.minimum(b.maximum(x, low), high)


def isnan(b: Builder, x: Value) -> Any:
    return b.ne(x, x)


def isinf(b: Builder, x: Value) -> Any:
    return b.eq(b.abs(x), float("inf"))


def isfinite(b: Builder, x: Value) -> Any:
    return b.lt(b.abs(x), float("inf"))


def rsqrt(b: Builder, x: Value) -> Any:
    return b.div(_like(b, 1.0, x), b.sqrt(x))


def fma_integer(b: Builder, x: Value, y: Value, z: Value) -> Any:
    return b.add(b.mul(x, y), z)


# ---- division --------------------------------------------------------------------------------------------------------


def floordiv(b: Builder, x: Value, y: Value) -> Any:
    """As in numpy: floats by way of the exact remainder, so that floordiv(1, 0.1) is 9."""
    zero = _like(b, 0, x)
    if x.type.dtype.is_integer:
        q = b.div(x, y)
        if not x.type.dtype.is_signed:
            return q
        r = b.sub(x, b.mul(q, y))
        down = b.logical_and(b.logical_and(b.ne(r, zero), b.ne(y, zero)), b.logical_xor(b.lt(r, zero), b.lt(y, zero)))
        return b.sub(q, b.cast(down, dtype=x.type.dtype))
    m = b.fmod(x, y)
    ratio = b.div(x, y)
    q = b.div(b.sub(x, m), y)
    down = b.logical_and(b.ne(m, zero), b.logical_xor(b.lt(m, zero), b.lt(y, zero)))
    q = b.select(down, b.sub(q, 1), q)
    f = b.floor(q)
    f = b.select(b.gt(b.sub(q, f), 0.5), b.add(f, 1), f)
    f = b.select(b.eq(q, zero), b.copysign(zero, ratio), f)
    return b.select(b.eq(y, zero), ratio, f)


def remainder(b: Builder, x: Value, y: Value) -> Any:
    zero = _like(b, 0, x)
    m = b.fmod(x, y)
    if not x.type.dtype.is_signed:
        return m
    down = b.logical_and(b.ne(m, zero), b.logical_xor(b.lt(m, zero), b.lt(y, zero)))
    r = b.select(down, b.add(m, y), m)
    return b.select(b.eq(m, zero), b.copysign(zero, y), r) if x.type.dtype.is_float else r


def fmod(b: Builder, x: Value, y: Value) -> Any:
    """The exact float remainder with the sign of x: long division, 52 bits of quotient a step.

    Each step is exact: q < 2**52 is right or one too large, and fma(-q, d, r) is a multiple of the last place of both,
    below d in magnitude. f32 is computed in f64, where six steps cover every pair of exponents.
    """
    single = x.type.dtype.name == "f32"
    wide = b.cast(x, dtype="f64") if single else x
    r, d = b.abs(wide), b.abs(b.cast(y, dtype="f64") if single else y)
    if single:
        for k in range(5, -1, -1):
            r = _divide_step(b, r, b.mul(d, 2.0 ** (52 * k)) if k else d)
    else:
        r = _fmod_f64(b, r, d)
    inf, nan = _like(b, float("inf"), d), _like(b, float("nan"), d)
    r = b.select(b.eq(d, inf), b.abs(wide), r)
    defined = b.logical_and(b.lt(b.abs(wide), inf), b.gt(d, 0.0))
    r = b.copysign(b.select(defined, r, nan), wide)
    return b.cast(r, dtype="f32") if single else r


def _divide_step(b: Builder, r: Value, d: Value) -> Any:
    rest = b.fma(b.neg(b.trunc(b.div(r, d))), d, r)
    return b.select(b.lt(rest, 0.0), b.add(rest, d), rest)


def _fmod_f64(b: Builder, r: Value, d: Value) -> Any:
    """As many steps as the exponents (of the lane where they differ most) ask for."""
    small = b.lt(d, 2.0**-1022)
    top = b.select(small, b.mul(d, 2.0**52), d)  # normal, so that its exponent can be read

    def exponent(v: Value) -> Any:
        return b.bit_and(b.shift_right(b.bitcast(v, dtype="i64"), 52), 2047)

    zero = b.const(0, like=exponent(r))
    apart = b.sub(
        b.maximum(exponent(r), b.const(1, like=zero)),
        b.sub(exponent(top), b.select(small, b.const(52, like=zero), zero)),
    )
    steps = b.div(b.maximum(apart, zero), b.const(52, like=zero))
    steps = b.minimum(steps, b.const(41, like=zero))

    def power(n: Value) -> Any:
        return b.bitcast(b.shift_left(b.add(n, 1023), 52), dtype="f64")

    shift = b.mul(steps, 52)
    third = b.div(shift, b.const(3, like=zero))
    start = b.mul(b.mul(b.mul(d, power(third)), power(third)), power(b.sub(shift, b.add(third, third))))
    last = b.reduce_lanes(steps, op="max") if isinstance(r.type, VectorType) else steps

    def body(ib: Builder, _: Value, rest: Value, scaled: Value) -> tuple[Value, Value]:
        rest = _divide_step(ib, rest, scaled)
        return rest, ib.select(ib.gt(scaled, d), ib.mul(scaled, 2.0**-52), scaled)

    trips = b.add(last, b.const(1, dtype="i64"))
    block = b.block([INDEX, r.type, d.type], body)
    rest, _ = b.emit("for", b.const(0, dtype="i64"), trips, b.const(1, dtype="i64"), r, start, blocks=[block])
    return rest


# ---- integer power ---------------------------------------------------------------------------------------------------


def power(b: Builder, x: Value, y: Value) -> Any:
    """Integers by squaring, wrapping; a negative exponent gives 0 but for the bases 1 and -1. Floats: `ops/approx`."""
    d = x.type.dtype
    if d.is_float:
        return approx_rule("pow")(b, x, y)
    known = _constant(y)
    if known is not None and known >= 0:
        return _power_of(b, x, known)
    one, zero = _like(b, 1, x), _like(b, 0, x)

    def body(ib: Builder, _: Value, result: Value, base: Value, exponent: Value) -> tuple[Value, ...]:
        odd = ib.ne(ib.bit_and(exponent, 1), 0)
        return ib.select(odd, ib.mul(result, base), result), ib.mul(base, base), ib.shift_right(exponent, 1)

    block = b.block([INDEX, x.type, x.type, x.type], body)
    lo, hi, step = (b.const(v, dtype="i64") for v in (0, d.bits, 1))
    result = b.emit("for", lo, hi, step, one, x, y, blocks=[block])[0]
    if not d.is_signed:
        return result
    minus = _like(b, -1, x)
    odd = b.ne(b.bit_and(y, 1), 0)
    unit = b.select(b.eq(x, one), one, b.select(b.eq(x, minus), b.select(odd, minus, one), zero))
    return b.select(b.lt(y, zero), unit, result)


def _constant(v: Value) -> int | None:
    """The value of a constant operand (also one splat over lanes)."""
    while v.owner is not None and v.owner.name == "splat":
        v = v.owner.operands[0]
    if v.owner is not None and v.owner.name == "const" and v.owner.attrs.value.size == 1:
        return int(v.owner.attrs.value.reshape(()).item())
    return None


def _power_of(b: Builder, x: Value, n: int) -> Any:
    result: Value | None = None
    base = x
    while n:
        if n & 1:
            result = base if result is None else b.mul(result, base)
        n >>= 1
        if n:
            base = b.mul(base, base)
    return _like(b, 1, x) if result is None else result


# ---- logic and bits --------------------------------------------------------------------------------------------------


def logical_not(b: Builder, x: Value) -> Any:
    return b.logical_xor(x, True)


def bit_not(b: Builder, x: Value) -> Any:
    d = x.type.dtype
    return b.bit_xor(x, True if d.is_bool else d.limits[1] if d.kind == "uint" else -1)


__all__ = ["Recipe", "approx_rule", "through_f32"]
