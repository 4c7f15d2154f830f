"""Floats of 4, 6 and 8 bits as codes: encoding with every rounding that `cvt` has, decoding by table."""

from __future__ import annotations

import functools

import numpy as np

from .rounding import Format, round_to, spacing
from .values import Array

__all__ = ["decode", "encode", "encode_scale", "round_stochastically", "saturate"]


def saturate(x: Array, to: Format) -> Array:
    """`.satfinite`: what is too large becomes the largest number of its sign; NaN stays."""
    return np.clip(x, -to.largest, to.largest)


def encode(x: Array, to: Format) -> Array:
    """The codes (uint8) of numbers of the format, given as f64. NaN is the canonical one, or where the format has none the
    largest number."""
    magnitude = np.abs(x)
    step = spacing(x, to)
    exponent = (step.view(np.int64) >> np.int64(52)) - np.int64(1023) + (to.precision - 1)
    with np.errstate(invalid="ignore"):
        code = ((exponent - to.emin) << np.int64(to.precision - 1)) + (magnitude / step).astype(np.int64)
    top = (1 << (to.bits - 1)) - 1
    if to.special == "ieee":
        code = np.where(np.isinf(x), np.int64((2**to.exponent_bits - 1) << (to.precision - 1)), code)
    code = code | np.where(np.signbit(x), np.int64(1 << (to.bits - 1)), np.int64(0))
    return np.where(x != x, np.int64(top), code).astype(np.uint8)


@functools.cache
def decode(of: Format) -> Array:
    """The values (f32) of all codes of the format."""
    codes = np.arange(1 << of.bits)
    exponent = (codes >> (of.precision - 1)) & (2**of.exponent_bits - 1)
    fraction = (codes & (2 ** (of.precision - 1) - 1)) / 2 ** (of.precision - 1)
    value = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - of.bias), fraction * 2.0**of.emin)
    if of.special == "ieee":
        value = np.where(exponent == 2**of.exponent_bits - 1, np.where(fraction == 0, np.inf, np.nan), value)
    elif of.special == "nan":
        value = np.where((codes & (2 ** (of.bits - 1) - 1)) == 2 ** (of.bits - 1) - 1, np.nan, value)
    values: Array = np.where(codes >> (of.bits - 1), -value, value).astype(np.float32)
    return values


def encode_scale(x: Array, mode: str, satfinite: bool) -> Array:
    """Codes of ue8m0, 2**(code - 127), of |x| (f64): the power of two below (`rz`) or above (`rp`). NaN is 255; so is what is
    too large, with `satfinite` it is 254."""
    magnitude = np.abs(x)
    bits = magnitude.view(np.int64)
    exponent = (bits >> np.int64(52)) - np.int64(1023)
    if mode == "rp":
        exponent = exponent + ((bits & np.int64((1 << 52) - 1)) != 0)
    code = np.clip(exponent + 127, 0, 254 if satfinite else 255)
    return np.where(x != x, np.int64(255), code).astype(np.uint8)


def round_stochastically(x: Array, to: Format, random: Array, bits: int) -> Array:
    """`.rs`: |x| (f64) is rounded up where the sum of the discarded part, to `bits` bits, and the random number carries."""
    step = spacing(x, to)
    whole = np.trunc(np.abs(x) / step)
    rest = np.floor((np.abs(x) / step - whole) * 2.0**bits)
    up = rest + random >= 2.0**bits
    y = np.copysign((whole + up) * step, x)
    return np.where(np.isfinite(x), round_to(y, to), x)
