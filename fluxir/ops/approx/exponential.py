"""exp, exp2, expm1, the logistic function and the hyperbolic functions.

Method: x = n ln 2 + r with |r| <= ln(2)/2, n ln 2 subtracted in two parts (Cody and Waite, "Software Manual for the
Elementary Functions", 1980), a minimax polynomial in r, and a scaling by 2**n in two steps, so that a result that
overflows or is subnormal is rounded once. sinh and cosh use the addition theorem over n ln 2 and r, which needs no
division and loses nothing near zero.
"""

from __future__ import annotations

from fluxir.ops.approx.coefficients import COEFFICIENTS, CONSTANTS
from fluxir.ops.approx.common import (
    Builder,
    Format,
    Value,
    at_least,
    at_most,
    biased_power,
    fast_two_sum,
    flip_sign,
    format_of,
    from_bits,
    horner,
    nearest_exponent,
    nearest_integer,
    power_of_two,
    scale,
    select,
    sign_bits,
    to_bits,
)

EXP_RANGE = {"f32": (-104.0, 89.0), "f64": (-746.0, 710.0)}
"""Outside, exp is 0 or infinity; inside, its reduction is sound."""


def reduce(b: Builder, x: Value, fmt: Format, bias: int) -> tuple[Value, Value]:
    """(r, the bits of n + bias) with x = n ln 2 + r, see `nearest_exponent`. r is x itself where n is 0."""
    high, low = CONSTANTS["ln2_short"][fmt.name]
    n_float, biased = nearest_exponent(b, x, bias, CONSTANTS["log2_e"][fmt.name][0])
    r = b.fma(n_float, -high, x)
    return b.fma(n_float, -low, r), biased


def exp_of_reduced(b: Builder, r: Value, fmt: Format) -> Value:
    """exp(r) for |r| <= ln(2)/2."""
    return horner(b, r, (1.0, 1.0, *COEFFICIENTS["exp"][fmt.name]))


def expm1_of_reduced(b: Builder, r: Value, fmt: Format) -> Value:
    """exp(r) - 1 for |r| <= ln(2)/2."""
    return b.fma(b.mul(r, r), horner(b, r, COEFFICIENTS["exp"][fmt.name]), r)


def exp_sum_times(b: Builder, factor: Value, x: Value, low: Value, fmt: Format) -> Value:
    """factor * exp(x + low) with little more than one rounding; |low| below an ulp of x, x <= 0, factor in [1/32, 2]."""
    high_part, low_part = CONSTANTS["ln2_short"][fmt.name]
    x = at_least(b, x, EXP_RANGE[fmt.name][0])
    n_float, doubled = nearest_exponent(b, x, 2 * fmt.bias, CONSTANTS["log2_e"][fmt.name][0])
    r, r_low = fast_two_sum(b, b.fma(n_float, -high_part, x), b.fma(n_float, -low_part, low))
    tail = b.add(b.fma(b.mul(r, r), horner(b, r, COEFFICIENTS["exp"][fmt.name]), r_low), r)
    return scale(b, b.fma(factor, tail, factor), doubled, fmt)


def exp(b: Builder, x: Value) -> Value:
    """e**x."""
    return exp_of_negative(b, at_most(b, x, EXP_RANGE[format_of(x).name][1]))


def exp_of_negative(b: Builder, x: Value) -> Value:
    """e**x for x that is certainly not above the range where e**x is finite, or NaN."""
    fmt = format_of(x)
    r, doubled = reduce(b, at_least(b, x, EXP_RANGE[fmt.name][0]), fmt, 2 * fmt.bias)
    return scale(b, exp_of_reduced(b, r, fmt), doubled, fmt)


def exp_of_moderate(b: Builder, x: Value) -> Value:
    """e**x where the result is certainly a normal number."""
    fmt = format_of(x)
    r, biased = reduce(b, x, fmt, fmt.bias)
    return b.mul(exp_of_reduced(b, r, fmt), biased_power(b, biased, fmt))


def exp2(b: Builder, x: Value) -> Value:
    """2**x; exact for integers."""
    fmt = format_of(x)
    low, high = (-151.0, 128.0) if fmt.name == "f32" else (-1076.0, 1024.0)
    x = at_least(b, at_most(b, x, high), low)
    n_float, doubled = nearest_exponent(b, x, 2 * fmt.bias)
    r = b.sub(x, n_float)
    return scale(b, horner(b, r, (1.0, *COEFFICIENTS["exp2"][fmt.name])), doubled, fmt)


def expm1(b: Builder, x: Value) -> Value:
    """e**x - 1, accurate near zero: 2**n (e**r - 1) + (2**n - 1)."""
    fmt = format_of(x)
    low, high, tiny = (-20.0, 89.0, 2.0**-26) if fmt.name == "f32" else (-40.0, 710.0, 2.0**-55)
    r, below = reduce(b, at_least(b, at_most(b, x, high), low), fmt, fmt.bias - 1)
    tail = expm1_of_reduced(b, r, fmt)
    half_power = biased_power(b, below, fmt)  # half, for 2**n itself may overflow
    half = b.fma(half_power, tail, b.sub(half_power, 0.5))
    return b.select(b.lt(b.abs(x), tiny), x, b.add(half, half))


def sigmoid(b: Builder, x: Value) -> Value:
    """1 / (1 + e**-x), as e**x / (1 + e**x) for negative x, which keeps it accurate down to the subnormal numbers."""
    e = exp_of_negative(b, b.neg(b.abs(x)))
    numerator = select(b, b.lt(x, 0.0), e, 1.0)
    return b.div(numerator, b.add(e, 1.0))


def tanh(b: Builder, x: Value) -> Value:
    """Hyperbolic tangent: an odd polynomial below 0.625, 1 - 2 / (e**2|x| + 1) above."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    z = b.mul(magnitude, magnitude)
    small = b.fma(b.mul(magnitude, z), horner(b, z, COEFFICIENTS["tanh"][fmt.name]), magnitude)
    limited = at_most(b, magnitude, 10.0 if fmt.name == "f32" else 20.0)
    e = exp_of_moderate(b, b.add(limited, limited))
    large = b.sub(1.0, b.div(2.0, b.add(e, 1.0)))
    return flip_sign(b, b.select(b.lt(magnitude, 0.625), small, large), sign_bits(b, x))


def _hyperbolic_parts(b: Builder, magnitude: Value, fmt: Format) -> tuple[Value, Value, Value, Value]:
    """sinh r, cosh r - 1, and a quarter of 2**n - 2**-n and of 2**n + 2**-n (a quarter, so that 2**n cannot overflow)."""
    limit, large = (89.5, 30) if fmt.name == "f32" else (710.6, 60)
    high, low = CONSTANTS["ln2_short"][fmt.name]
    magnitude = at_most(b, magnitude, limit)
    n_float, n = nearest_integer(b, magnitude, CONSTANTS["log2_e"][fmt.name][0])
    r = b.fma(n_float, -low, b.fma(n_float, -high, magnitude))
    z = b.mul(r, r)
    sinh_r = b.fma(b.mul(r, z), horner(b, z, COEFFICIENTS["sinh"][fmt.name]), r)
    cosh_tail = b.mul(z, horner(b, z, COEFFICIENTS["cosh"][fmt.name]))
    grow = power_of_two(b, b.sub(n, 2), fmt)
    shrink = select(b, b.gt(n, large), 0.0, power_of_two(b, b.sub(-2, n), fmt))
    return sinh_r, cosh_tail, b.sub(grow, shrink), b.add(grow, shrink)


def sinh(b: Builder, x: Value) -> Value:
    """Hyperbolic sine: sinh(n ln 2) cosh r + cosh(n ln 2) sinh r."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    sinh_r, cosh_tail, difference, total = _hyperbolic_parts(b, magnitude, fmt)
    half = b.add(difference, b.fma(cosh_tail, difference, b.mul(sinh_r, total)))
    tiny = 2.0**-13 if fmt.name == "f32" else 2.0**-28
    result = b.select(b.lt(magnitude, tiny), magnitude, b.add(half, half))
    return flip_sign(b, result, sign_bits(b, x))


def cosh(b: Builder, x: Value) -> Value:
    """Hyperbolic cosine: cosh(n ln 2) cosh r + sinh(n ln 2) sinh r."""
    fmt = format_of(x)
    sinh_r, cosh_tail, difference, total = _hyperbolic_parts(b, b.abs(x), fmt)
    half = b.add(total, b.fma(cosh_tail, total, b.mul(sinh_r, difference)))
    return b.add(half, half)


def exp2_of_negative(b: Builder, *xs: Value) -> list[Value]:
    """2**x for x <= 0, to an ulp or two; 0 where that is below the normal numbers. For weights beside a largest one of 1.

    Values are computed step by step together, and the polynomial in pairs of terms (Estrin's scheme): a processor looks
    ahead for some tens of operations, fewer than one such chain after the other would need to keep its units busy.
    """
    fmt = format_of(xs[0])
    xs = tuple(at_least(b, x, float(-fmt.bias)) for x in xs)
    magic = b.const(
        fmt.magic + fmt.bias, like=xs[0]
    )  # the low bits of the sum are n + bias: an exponent, and 0 gives 0.0
    shifted = [b.add(x, magic) for x in xs]
    rs = [b.sub(x, b.sub(s, magic)) for x, s in zip(xs, shifted, strict=True)]
    terms: list[list[Value]] = [[b.const(c, like=xs[0])] * len(xs) for c in (1.0, *COEFFICIENTS["exp2"][fmt.name])]
    while len(terms) > 1:
        pairs = [
            [b.fma(y, r, x) for x, y, r in zip(low, high, rs, strict=True)]
            for low, high in zip(terms[::2], terms[1::2], strict=False)
        ]
        terms = pairs + terms[2 * len(pairs) :]
        rs = [b.mul(r, r) for r in rs] if len(terms) > 1 else rs
    powers = [from_bits(b, b.shift_left(to_bits(b, s), fmt.mantissa), fmt) for s in shifted]
    return [b.mul(x, y) for x, y in zip(terms[0], powers, strict=True)]
