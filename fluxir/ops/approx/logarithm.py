"""log, log2, log10, log1p and the inverse hyperbolic functions.

Method: x = 2**n m with m in [sqrt(1/2), sqrt(2)), f = m - 1, log x = n ln 2 + log(1 + f). For f32, log(1 + f) is a
polynomial in f; for f64 it is a series in s = f / (2 + f), arranged so that the rounding error of s hardly counts (the
arrangement of fdlibm's e_log.c by K. C. Ng; the coefficients here are our own). The inverse hyperbolic functions are
logarithms of an unevaluated sum of two floats, so that no accuracy is lost near their zeros.
"""

from __future__ import annotations

import math

from fluxir.ops.approx.coefficients import COEFFICIENTS, CONSTANTS
from fluxir.ops.approx.common import (
    Builder,
    Format,
    Value,
    fast_two_sum,
    flip_sign,
    format_of,
    from_bits,
    horner,
    integer_to_float,
    power_of_two,
    select,
    sign_bits,
    to_bits,
    two_product,
    two_sum,
)

ONE_MINUS_ROOT_BITS = {"f32": 0x3F800000 - 0x3F3504F3, "f64": 0x3FF0000000000000 - 0x3FE6A09E667F3BCD}
"""Bit pattern of 1 less that of sqrt(1/2): adding it rounds the exponent field at sqrt(2)."""

SMALLEST_NORMAL = {"f32": 2.0**-126, "f64": 2.0**-1022}


def split_exponent(b: Builder, x: Value, fmt: Format, subnormal: bool = True) -> tuple[Value, Value]:
    """(m, n) with x = m 2**n and m in [sqrt(1/2), sqrt(2)), n an integer of the format's width.

    For positive finite x; arbitrary but defined for others. `subnormal=False` says that x is never subnormal.
    """
    if subnormal:
        lift = fmt.mantissa + 1
        is_small = b.lt(x, SMALLEST_NORMAL[fmt.name])
        x = b.select(is_small, b.mul(x, 2.0**lift), x)
    bits = to_bits(b, x)
    rounded = b.bitcast(b.add(bits, ONE_MINUS_ROOT_BITS[fmt.name]), dtype=fmt.uint_name)
    exponent = b.bitcast(b.shift_right(rounded, fmt.mantissa), dtype=fmt.int_name)
    n = b.sub(exponent, fmt.bias)
    m = from_bits(b, b.sub(bits, b.shift_left(n, fmt.mantissa)), fmt)
    if subnormal:
        n = b.select(is_small, b.sub(n, lift), n)
    return m, n


def log_deficit(b: Builder, f: Value, fmt: Format) -> Value:
    """f - log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    coefficients = COEFFICIENTS["log"][fmt.name]
    square = b.mul(f, f)
    if fmt.name == "f32":
        return b.mul(square, b.fma(b.neg(f), horner(b, f, coefficients), 0.5))
    half_square = b.mul(square, 0.5)
    s = b.div(f, b.add(f, 2.0))
    z = b.mul(s, s)
    return b.fma(b.neg(s), b.fma(z, horner(b, z, coefficients), half_square), half_square)


def log_at_edges(b: Builder, x: Value, y: Value) -> Value:
    """`y` where x is positive and finite; -inf at 0, NaN below, x itself at infinity."""
    below = select(b, b.eq(x, 0.0), -math.inf, b.const(math.nan, like=y))
    return b.select(b.lt(b.const(0.0, like=x), x), select(b, b.eq(x, math.inf), math.inf, y), below)


def _combine(b: Builder, n: Value, f: Value, deficit: Value, fmt: Format) -> Value:
    """n ln 2 + f - deficit, smallest terms first."""
    high, low = CONSTANTS["ln2_short"][fmt.name]
    n_float = integer_to_float(b, n, fmt)
    return b.fma(n_float, high, b.sub(f, b.fma(n_float, -low, deficit)))


def log_positive(b: Builder, x: Value, fmt: Format) -> Value:
    """log x for positive finite x."""
    m, n = split_exponent(b, x, fmt)
    f = b.sub(m, 1.0)
    return _combine(b, n, f, log_deficit(b, f, fmt), fmt)


def log(b: Builder, x: Value) -> Value:
    """Natural logarithm."""
    return log_at_edges(b, x, log_positive(b, x, format_of(x)))


def log2(b: Builder, x: Value) -> Value:
    """Logarithm to base 2; exact for powers of two."""
    fmt = format_of(x)
    factor, factor_low = CONSTANTS["log2_e"][fmt.name]
    m, n = split_exponent(b, x, fmt)
    f = b.sub(m, 1.0)
    high, low = fast_two_sum(b, f, b.neg(log_deficit(b, f, fmt)))
    tail = b.fma(high, factor_low, b.mul(low, factor))
    return log_at_edges(b, x, b.add(integer_to_float(b, n, fmt), b.fma(high, factor, tail)))


def log10(b: Builder, x: Value) -> Value:
    """Logarithm to base 10."""
    fmt = format_of(x)
    factor, factor_low = CONSTANTS["log10_e"][fmt.name]
    two_high, two_low = CONSTANTS["log10_2_short"][fmt.name]
    m, n = split_exponent(b, x, fmt)
    n_float = integer_to_float(b, n, fmt)
    f = b.sub(m, 1.0)
    high, low = fast_two_sum(b, f, b.neg(log_deficit(b, f, fmt)))
    tail = b.fma(n_float, two_low, b.fma(high, factor_low, b.mul(low, factor)))
    return log_at_edges(b, x, b.fma(n_float, two_high, b.fma(high, factor, tail)))


def log_sum(b: Builder, high: Value, low: Value, fmt: Format) -> Value:
    """log(high + low) for a positive, normal `high` and |low| below about an ulp of it."""
    m, n = split_exponent(b, high, fmt, subnormal=False)
    inverse_power = select(b, b.gt(n, 100), 0.0, power_of_two(b, b.sub(0, n), fmt))
    f, f_low = fast_two_sum(b, b.sub(m, 1.0), b.mul(low, inverse_power))
    return _combine(b, n, f, b.sub(log_deficit(b, f, fmt), f_low), fmt)


def log1p(b: Builder, x: Value) -> Value:
    """log(1 + x), accurate near zero."""
    fmt = format_of(x)
    high, low = two_sum(b, b.const(1.0, like=x), x)
    result = log_at_edges(b, high, log_sum(b, high, low, fmt))
    tiny = 2.0**-26 if fmt.name == "f32" else 2.0**-55
    return b.select(b.lt(b.abs(x), tiny), x, result)


def _sqrt_sum(b: Builder, high: Value, low: Value) -> tuple[Value, Value]:
    """sqrt(high + low) as a sum of two floats; `high` positive."""
    root = b.sqrt(high)
    residue = b.add(b.fma(b.neg(root), root, high), low)
    return root, b.mul(residue, b.div(0.5, root))


LARGE = {"f32": 2.0**30, "f64": 2.0**300}
"""Above, x + sqrt(x^2 + 1) is 2x to full accuracy; well below, x^2 does not overflow."""


def asinh(b: Builder, x: Value) -> Value:
    """Inverse hyperbolic sine: log(|x| + sqrt(x^2 + 1)) with the sign of x."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    is_large = b.gt(magnitude, LARGE[fmt.name])
    square, square_low = two_product(b, magnitude, magnitude)
    total, total_low = two_sum(b, square, b.const(1.0, like=x))
    root, root_low = _sqrt_sum(b, total, b.add(total_low, square_low))
    high, low = two_sum(b, magnitude, root)
    high = b.select(is_large, magnitude, high)
    low = select(b, is_large, 0.0, b.add(low, root_low))
    logarithm = log_at_edges(b, high, log_sum(b, high, low, fmt))
    logarithm = b.add(logarithm, select(b, is_large, CONSTANTS["ln2"][fmt.name][0], b.const(0.0, like=x)))
    series = b.fma(b.mul(magnitude, square), -1.0 / 6.0, magnitude)
    small = b.lt(magnitude, 2.0**-10 if fmt.name == "f32" else 2.0**-16)
    return flip_sign(b, b.select(small, series, logarithm), sign_bits(b, x))


def acosh(b: Builder, x: Value) -> Value:
    """Inverse hyperbolic cosine: log(x + sqrt(x^2 - 1)); NaN below 1."""
    fmt = format_of(x)
    is_large = b.gt(x, LARGE[fmt.name])
    square, square_low = two_product(b, x, x)
    total, total_low = two_sum(b, square, b.const(-1.0, like=x))
    total, total_low = fast_two_sum(b, total, b.add(total_low, square_low))
    root, root_low = _sqrt_sum(b, total, total_low)
    high, low = two_sum(b, x, root)
    high = b.select(is_large, x, high)
    low = select(b, is_large, 0.0, b.add(low, root_low))
    logarithm = log_at_edges(b, high, log_sum(b, high, low, fmt))
    logarithm = b.add(logarithm, select(b, is_large, CONSTANTS["ln2"][fmt.name][0], b.const(0.0, like=x)))
    logarithm = select(b, b.eq(x, 1.0), 0.0, logarithm)
    return select(b, b.lt(x, 1.0), math.nan, logarithm)


def atanh(b: Builder, x: Value) -> Value:
    """Inverse hyperbolic tangent: log(1 + 2|x| / (1 - |x|)) / 2 with the sign of x; NaN beyond 1."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    one = b.const(1.0, like=x)
    rest, rest_low = two_sum(b, one, b.neg(magnitude))
    inverse = b.div(1.0, rest)
    twice = b.add(magnitude, magnitude)
    quotient = b.mul(twice, inverse)
    residue = b.sub(b.fma(b.neg(quotient), rest, twice), b.mul(quotient, rest_low))
    high, low = two_sum(b, one, quotient)
    logarithm = b.mul(log_sum(b, high, b.fma(residue, inverse, low), fmt), 0.5)
    result = select(b, b.lt(magnitude, 2.0**-13 if fmt.name == "f32" else 2.0**-28), magnitude, logarithm)
    result = select(b, b.eq(magnitude, 1.0), math.inf, result)
    result = select(b, b.gt(magnitude, 1.0), math.nan, result)
    return flip_sign(b, result, sign_bits(b, x))
