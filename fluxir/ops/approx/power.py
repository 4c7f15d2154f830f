"""pow, cbrt and rsqrt.

Method: pow is 2**(y log2|x|) with the logarithm as an unevaluated sum of two floats: with s = (m - 1)/(m + 1), the terms
in s and s^3 are taken in twice the precision, and the rest is so much smaller that the logarithm is good to about 12 bits
more than the format (the idea of fdlibm's e_pow.c, K. C. Ng; Muller, "Elementary Functions", 3rd ed., section 11.5).
cbrt is a short polynomial for x**(-1/3), Newton steps without division, and a last step on the residue of the cube root
itself.
"""

from __future__ import annotations

import math

from fluxir.ops.approx.coefficients import COEFFICIENTS, CONSTANTS
from fluxir.ops.approx.common import (
    Builder,
    Format,
    Value,
    at_least,
    at_most,
    fast_two_sum,
    flip_sign,
    format_of,
    horner,
    integer_to_float,
    nearest_exponent,
    power_of_two,
    scale,
    select,
    sign_bits,
    to_bits,
    two_product,
)
from fluxir.ops.approx.logarithm import SMALLEST_NORMAL, split_exponent


def rsqrt(b: Builder, x: Value) -> Value:
    """1 / sqrt(x): two correctly rounded operations."""
    return b.div(1.0, b.sqrt(x))


def cbrt(b: Builder, x: Value) -> Value:
    """Cube root, of negative numbers too."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    lift, third_of_lift = (24, 8) if fmt.name == "f32" else (54, 18)
    is_small = b.lt(magnitude, SMALLEST_NORMAL[fmt.name])
    bits = b.bitcast(to_bits(b, b.select(is_small, b.mul(magnitude, 2.0**lift), magnitude)), dtype=fmt.uint_name)
    # x = m 2**r 2**(3 q) with m in [1, 2) and r in 0..2; `offset` makes the bias a multiple of three
    offset = -fmt.bias % 3
    exponent = b.add(b.shift_right(bits, fmt.mantissa), offset)
    q = b.shift_right(b.mul(exponent, 43691), 17)  # a third, exact for less than 2**16
    r = b.sub(exponent, b.mul(q, 3))
    field = b.bit_and(bits, (1 << fmt.mantissa) - 1)
    m = b.bitcast(b.bit_or(field, fmt.bias << fmt.mantissa), dtype=fmt.name)
    m_scaled = b.bitcast(b.bit_or(field, b.shift_left(b.add(r, fmt.bias), fmt.mantissa)), dtype=fmt.name)
    (half,), (quarter,) = CONSTANTS["cbrt_half"][fmt.name], CONSTANTS["cbrt_quarter"][fmt.name]
    factor = select(b, b.eq(r, 0), 1.0, select(b, b.eq(r, 1), half, b.const(quarter, like=x)))
    w = b.mul(horner(b, m, COEFFICIENTS["cbrt_seed"][fmt.name]), factor)  # about m_scaled**(-1/3)
    third = CONSTANTS["third"][fmt.name][0]
    for _ in range(1 if fmt.name == "f32" else 2):
        square = b.mul(w, w)
        w = b.fma(b.mul(w, third), b.fma(b.neg(b.mul(m_scaled, w)), square, 1.0), w)
    square = b.mul(w, w)
    y = b.mul(m_scaled, square)
    y_square, y_square_low = two_product(b, y, y)
    residue = b.fma(y_square_low, y, b.fma(y_square, y, b.neg(m_scaled)))
    y = b.fma(b.mul(residue, square), -third, y)
    exponent_third = b.bitcast(b.sub(q, (fmt.bias + offset) // 3), dtype=fmt.int_name)
    exponent_third = b.select(is_small, b.sub(exponent_third, third_of_lift), exponent_third)
    result = flip_sign(b, b.mul(y, power_of_two(b, exponent_third, fmt)), sign_bits(b, x))
    is_ordinary = b.logical_and(b.gt(magnitude, 0.0), b.lt(magnitude, math.inf))
    return b.select(is_ordinary, result, x)


def _pow_at_edges(b: Builder, x: Value, y: Value, magnitude: Value, result: Value) -> Value:
    """The special cases of C99 Annex F; `result` is |x|**y, right for finite |x| above 0 and any y but NaN."""
    zero_or_infinite = b.logical_or(b.eq(magnitude, 0.0), b.eq(magnitude, math.inf))
    grows = b.eq(b.gt(magnitude, 1.0), b.gt(y, 0.0))
    limit = select(b, grows, math.inf, b.const(0.0, like=x))
    result = b.select(zero_or_infinite, limit, result)
    half = b.mul(y, 0.5)
    is_integer = b.eq(b.trunc(y), y)
    is_odd = b.logical_and(is_integer, b.ne(b.trunc(half), half))
    sign = select(b, is_odd, sign_bits(b, x), b.const(0, like=sign_bits(b, x)))
    result = flip_sign(b, result, sign)
    undefined = b.logical_and(b.logical_and(b.lt(x, 0.0), b.lt(magnitude, math.inf)), b.logical_not(is_integer))
    undefined = b.logical_or(undefined, b.logical_or(b.ne(x, x), b.ne(y, y)))
    result = select(b, undefined, math.nan, result)
    return select(b, b.logical_or(b.eq(x, 1.0), b.eq(y, 0.0)), 1.0, result)


def _exp2_of_sum(b: Builder, high: Value, low: Value, fmt: Format) -> Value:
    """2**(high + low); 0 or infinity where it must be. |low| is below an ulp of `high`."""
    bottom, top = (-160.0, 130.0) if fmt.name == "f32" else (-1080.0, 1030.0)
    low = select(b, b.eq(high, at_least(b, at_most(b, high, top), bottom)), low, 0.0)
    high = at_least(b, at_most(b, high, top), bottom)
    n_float, doubled = nearest_exponent(b, high, 2 * fmt.bias)
    r = b.add(b.sub(high, n_float), low)
    return scale(b, horner(b, r, (1.0, *COEFFICIENTS["exp2"][fmt.name])), doubled, fmt)


def _log2_as_sum(b: Builder, x: Value, fmt: Format) -> tuple[Value, Value]:
    """log2(x) of positive finite x as a sum of two floats."""
    m, n = split_exponent(b, x, fmt)
    # s + s_low = (m - 1) / (m + 1)
    f = b.sub(m, 1.0)
    divisor, divisor_low = fast_two_sum(b, b.const(2.0, like=x), f)
    inverse = b.div(1.0, divisor)
    s = b.mul(f, inverse)
    s_low = b.mul(b.sub(b.fma(b.neg(s), divisor, f), b.mul(s, divisor_low)), inverse)
    # log2 m = 2 log2(e) s (1 + u) with u = z/3 + z^2 P(z), z = s^2
    z, z_low = two_product(b, s, s)
    z_low = b.fma(b.add(s, s), s_low, z_low)
    third, third_low = CONSTANTS["third"][fmt.name]
    first, first_low = two_product(b, z, b.const(third, like=z))
    first_low = b.fma(z_low, third, b.fma(z, third_low, first_low))
    u, u_low = fast_two_sum(b, first, b.mul(b.mul(z, z), horner(b, z, COEFFICIENTS["pow_log"][fmt.name])))
    u_low = b.add(u_low, first_low)
    factor, factor_low = CONSTANTS["two_log2_e"][fmt.name]
    g, g_low = two_product(b, s, b.const(factor, like=s))
    g_low = b.fma(s_low, factor, b.fma(s, factor_low, g_low))
    h, h_low = two_product(b, g, u)
    h_low = b.fma(g_low, u, b.fma(g, u_low, h_low))
    high, low = fast_two_sum(b, g, h)
    total, total_low = fast_two_sum(b, integer_to_float(b, n, fmt), high)
    return total, b.add(total_low, b.add(low, b.add(g_low, h_low)))


def pow(b: Builder, x: Value, y: Value) -> Value:
    """x**y with the special cases of C99: pow(x, 0) = pow(1, y) = 1 even for NaN, signs by the parity of y."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    # beyond 2**80 every |x| but 1 gives 0 or infinity already, and 1 is not multiplied by infinity
    limited = at_least(b, at_most(b, y, 2.0**80), -(2.0**80))
    logarithm, logarithm_low = _log2_as_sum(b, magnitude, fmt)
    product, product_low = two_product(b, limited, logarithm)
    result = _exp2_of_sum(b, product, b.fma(limited, logarithm_low, product_low), fmt)
    return _pow_at_edges(b, x, y, magnitude, result)
