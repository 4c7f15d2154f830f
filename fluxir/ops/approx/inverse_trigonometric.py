"""asin, acos, atan and atan2.

Method: arguments are folded onto an interval where an odd minimax polynomial is short: asin through
asin(x) = pi/2 - 2 asin(sqrt((1 - x)/2)) above 1/2; atan through atan(x) = pi/4 + atan((x - 1)/(x + 1)) between tan(pi/8)
and its inverse, and pi/2 + atan(-1/x) above. One division serves the three cases of atan.
"""

from __future__ import annotations

import math

from fluxir.ops.approx.coefficients import COEFFICIENTS, CONSTANTS
from fluxir.ops.approx.common import Builder, Format, Value, flip_sign, format_of, horner, select, sign_bits

TAN_EIGHTH_PI = math.sqrt(2.0) - 1.0


def _odd_tail(b: Builder, x: Value, z: Value, name: str, fmt: Format) -> Value:
    """function(x) - x for z = x^2."""
    return b.mul(b.mul(x, z), horner(b, z, COEFFICIENTS[name][fmt.name]))


def _asin_parts(b: Builder, magnitude: Value, fmt: Format) -> tuple[Value, Value, Value]:
    """(is |x| > 1/2, s, asin(s) - s), s being |x| below 1/2, and sqrt((1 - |x|)/2) above."""
    is_large = b.gt(magnitude, 0.5)
    z = b.select(is_large, b.mul(b.sub(1.0, magnitude), 0.5), b.mul(magnitude, magnitude))
    s = b.select(is_large, b.sqrt(z), magnitude)
    return is_large, s, _odd_tail(b, s, z, "asin", fmt)


def asin(b: Builder, x: Value) -> Value:
    """Inverse sine; NaN outside [-1, 1]."""
    fmt = format_of(x)
    half_pi, half_pi_low, _ = CONSTANTS["half_pi"][fmt.name]
    is_large, s, tail = _asin_parts(b, b.abs(x), fmt)
    large = b.sub(half_pi, b.fma(s, 2.0, b.fma(tail, 2.0, -half_pi_low)))
    return flip_sign(b, b.select(is_large, large, b.add(s, tail)), sign_bits(b, x))


def acos(b: Builder, x: Value) -> Value:
    """Inverse cosine; NaN outside [-1, 1]."""
    fmt = format_of(x)
    half_pi, half_pi_low, _ = CONSTANTS["half_pi"][fmt.name]
    pi, pi_low = CONSTANTS["pi"][fmt.name]
    is_large, s, tail = _asin_parts(b, b.abs(x), fmt)
    is_negative = b.lt(x, 0.0)
    twice = b.mul(b.add(s, tail), 2.0)
    obtuse = b.sub(pi, b.fma(s, 2.0, b.fma(tail, 2.0, -pi_low)))
    sign = sign_bits(b, x)
    near_zero = b.sub(half_pi, b.add(flip_sign(b, s, sign), b.sub(flip_sign(b, tail, sign), half_pi_low)))
    return b.select(is_large, b.select(is_negative, obtuse, twice), near_zero)


def atan(b: Builder, x: Value) -> Value:
    """Inverse tangent."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    is_low = b.le(magnitude, TAN_EIGHTH_PI)
    is_high = b.gt(magnitude, 1.0 / TAN_EIGHTH_PI)
    top = b.select(is_low, magnitude, select(b, is_high, -1.0, b.sub(magnitude, 1.0)))
    bottom = select(b, is_low, 1.0, b.select(is_high, magnitude, b.add(magnitude, 1.0)))
    t = b.div(top, bottom)
    tail = _odd_tail(b, t, b.mul(t, t), "atan", fmt)
    base, base_low = (
        select(b, is_low, 0.0, select(b, is_high, half, b.const(quarter, like=x)))
        for half, quarter in zip(CONSTANTS["half_pi"][fmt.name], CONSTANTS["quarter_pi"][fmt.name], strict=False)
    )
    return flip_sign(b, b.add(base, b.add(t, b.add(tail, base_low))), sign_bits(b, x))


def atan2(b: Builder, y: Value, x: Value) -> Value:
    """The angle of the point (x, y), in [-pi, pi]; the special cases are those of C99 Annex F."""
    fmt = format_of(x)
    ay, ax = b.abs(y), b.abs(x)
    is_steep = b.gt(ay, ax)
    small, large = b.select(is_steep, ax, ay), b.select(is_steep, ay, ax)
    both_infinite = b.eq(small, math.inf)
    small, large = select(b, both_infinite, 1.0, small), select(b, both_infinite, 1.0, large)
    # near overflow their sum would be infinite; scaled down, a `small` that loses bits is too small to count
    factor = select(b, b.gt(large, 2.0 ** (fmt.bias - 3)), 0.0625, b.const(1.0, like=x))
    small, large = b.mul(small, factor), b.mul(large, factor)
    is_low = b.le(small, b.mul(large, TAN_EIGHTH_PI))
    top = b.select(is_low, small, b.sub(small, large))
    bottom = b.select(is_low, large, b.add(small, large))
    t = b.div(top, select(b, b.eq(bottom, 0.0), 1.0, bottom))
    t = b.add(t, _odd_tail(b, t, b.mul(t, t), "atan", fmt))
    # the angle is eighths pi/4 + t or eighths pi/4 - t, by octant
    eighths = select(b, is_low, 0.0, b.const(1.0, like=x))
    eighths, t = b.select(is_steep, b.sub(2.0, eighths), eighths), b.select(is_steep, b.neg(t), t)
    is_left = b.ne(sign_bits(b, x), 0)
    eighths, t = b.select(is_left, b.sub(4.0, eighths), eighths), b.select(is_left, b.neg(t), t)
    quarter, quarter_low = CONSTANTS["quarter_pi"][fmt.name]
    base = b.mul(eighths, quarter)
    base_low = b.fma(eighths, quarter_low, b.fma(eighths, quarter, b.neg(base)))
    angle = flip_sign(b, b.add(base, b.add(t, base_low)), sign_bits(b, y))
    return select(b, b.logical_or(b.ne(x, x), b.ne(y, y)), math.nan, angle)
