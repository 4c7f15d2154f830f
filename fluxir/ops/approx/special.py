"""erf, erfc and lgamma.

Method: erf is an odd polynomial near zero and 1 - exp(-polynomial) beyond. erfc(a) is exp(-a^2) / (1 + 2a) times a
polynomial in t = (a - c)/(a + c) (after Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x",
1981), with a^2 as an unevaluated sum of two floats. lgamma is brought to [sqrt(2), 5/2) by its recurrence below 8, is
Stirling's series above (Abramowitz and Stegun 6.1.40), and uses the reflection formula for negative arguments. f32 lgamma
is computed in f64.
"""

from __future__ import annotations

import math

from fluxir.ops.approx.coefficients import COEFFICIENTS, CONSTANTS
from fluxir.ops.approx.common import (
    F64,
    Builder,
    Format,
    Value,
    at_least,
    at_most,
    flip_sign,
    format_of,
    horner,
    integer_to_float,
    select,
    sign_bits,
    two_product,
)
from fluxir.ops.approx.exponential import exp_of_moderate, exp_sum_times
from fluxir.ops.approx.logarithm import log_deficit, log_positive, split_exponent

NEAR = {"f32": 0.9, "f64": 1.0}
"""Below, erf is its odd polynomial x + x P(x^2)."""


def _erf_slope(b: Builder, x: Value, fmt: Format) -> Value:
    """erf(x)/x - 1 for |x| < NEAR."""
    return horner(b, b.mul(x, x), COEFFICIENTS["erf"][fmt.name])


def erf(b: Builder, x: Value) -> Value:
    """Error function."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    limited = at_most(b, magnitude, 3.95 if fmt.name == "f32" else 6.0)
    complement = exp_of_moderate(b, horner(b, limited, [-c for c in COEFFICIENTS["erf_exponent"][fmt.name]]))
    far = flip_sign(b, b.sub(1.0, complement), sign_bits(b, x))
    return b.select(b.lt(magnitude, NEAR[fmt.name]), b.fma(x, _erf_slope(b, x, fmt), x), far)


def erfc(b: Builder, x: Value) -> Value:
    """1 - erf(x), accurate in the tail, down to the subnormal numbers."""
    fmt = format_of(x)
    center, limit = (2.0, 10.1) if fmt.name == "f32" else (3.5, 27.3)
    magnitude = at_most(b, b.abs(x), limit)
    t = b.div(b.sub(magnitude, center), b.add(magnitude, center))
    square, square_low = two_product(b, magnitude, magnitude)
    factor = b.div(horner(b, t, COEFFICIENTS["erfcx"][fmt.name]), b.fma(magnitude, 2.0, 1.0))
    tail = exp_sum_times(b, factor, b.neg(square), b.neg(square_low), fmt)
    far = b.select(b.lt(x, 0.0), b.sub(2.0, tail), tail)
    near = b.fma(b.neg(x), _erf_slope(b, x, fmt), b.sub(1.0, x))
    return b.select(b.lt(b.abs(x), NEAR[fmt.name]), near, far)


def _lgamma_positive(b: Builder, x: Value) -> Value:
    """log Gamma(x) for positive f64 x."""
    is_large = b.ge(x, 8.0)
    # below sqrt(2) the recurrence goes up by one or two steps, above 5/2 down by as many as it takes
    is_tiny, is_below = b.lt(x, 0.5), b.lt(x, math.sqrt(2.0))
    shift = at_least(b, b.floor(b.sub(at_most(b, x, 8.0), 1.5)), 0.0)
    product = b.const(1.0, like=x)
    for i in range(1, 7):
        product = b.mul(product, select(b, b.ge(shift, float(i)), b.sub(x, float(i)), 1.0))
    t = b.select(is_tiny, x, b.select(is_below, b.sub(x, 1.0), b.sub(b.sub(x, 2.0), shift)))
    factor = b.select(is_tiny, b.fma(x, x, x), b.select(is_below, x, product))
    m, n = split_exponent(b, b.select(is_large, x, factor), F64)
    f = b.sub(m, 1.0)
    deficit = log_deficit(b, f, F64)
    high, low = CONSTANTS["ln2_short"]["f64"]
    n_float = integer_to_float(b, n, F64)
    logarithm = b.fma(n_float, high, b.sub(f, b.fma(n_float, -low, deficit)))
    # around 2: t (1 - gamma) + t^2 P(t)
    slope, slope_low = CONSTANTS["one_less_euler_gamma"]["f64"]
    bend = b.mul(b.mul(t, t), horner(b, t, COEFFICIENTS["lgamma_two"]["f64"]))
    around_two = b.fma(t, slope, b.fma(t, slope_low, bend))
    # around 1, where log x = t - deficit: -gamma t + deficit + t^2 P(t)
    gamma, gamma_low = CONSTANTS["euler_gamma"]["f64"]
    around_one = b.fma(t, -gamma, b.fma(t, -gamma_low, b.add(bend, deficit)))
    is_around_one = b.logical_and(b.ge(x, 0.75), is_below)
    small = b.add(around_two, b.select(is_below, b.neg(logarithm), logarithm))
    small = b.select(is_around_one, around_one, small)
    inverse = b.div(1.0, x)
    series = b.mul(inverse, horner(b, b.mul(inverse, inverse), COEFFICIENTS["stirling"]["f64"]))
    (constant,) = CONSTANTS["half_log_two_pi_less_half"]["f64"]
    stirling = b.fma(b.sub(x, 0.5), b.sub(logarithm, 1.0), b.add(series, constant))
    return b.select(is_large, stirling, small)


def lgamma(b: Builder, x: Value) -> Value:
    """log |Gamma(x)|; infinity at the poles 0, -1, -2, ... and at both infinities.

    Near its zeros between the poles the f64 error is absolute (some 2**-50 of the terms that cancel), not relative.
    """
    if format_of(x).name == "f32":
        return b.cast(lgamma(b, b.cast(x, dtype="f64")), dtype="f32")
    magnitude = b.abs(x)
    is_negative = b.lt(x, 0.0)
    positive = _lgamma_positive(b, b.select(is_negative, b.add(magnitude, 1.0), magnitude))
    # lgamma(-a) = -log(|sin(pi a)| / pi) - lgamma(1 + a)
    limited = at_most(b, magnitude, 2.0**52)
    d = b.abs(b.sub(limited, b.round(limited)))
    z = b.mul(d, d)
    sine = b.fma(b.mul(d, z), horner(b, z, COEFFICIENTS["sinpi"]["f64"]), d)
    reflected = b.sub(b.neg(log_positive(b, sine, F64)), positive)
    result = b.select(is_negative, reflected, positive)
    is_pole = b.logical_and(b.le(x, 0.0), b.eq(d, 0.0))
    result = select(b, b.logical_or(is_pole, b.eq(magnitude, math.inf)), math.inf, result)
    return select(b, b.ne(x, x), math.nan, result)
