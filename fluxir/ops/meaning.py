"""Numpy meanings of elementwise ops that numpy does not have, or has with other edge cases. The oracle's arithmetic.

Invariants: f16 and bf16 are computed in f32 and rounded once (`in_f32`); integers wrap; nothing here raises on a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
Meaning = Callable[..., Array]


def is_integer(x: Array) -> bool:
    return np.asarray(x).dtype.kind in "iu"


def is_half(x: Array) -> bool:
    """Whether `x` is f16 or bf16 (numpy sees the latter as kind V)."""
    d = np.asarray(x).dtype
    return d.itemsize == 2 and d.kind in "fV"


def in_f32(f: Meaning) -> Meaning:
    """`f` with f16 and bf16 operands computed in f32 and the result rounded once, as the compiled code does."""

    def meaning(*xs: Array) -> Array:
        half = next((np.asarray(x).dtype for x in xs if is_half(x)), None)
        if half is None:
            return f(*xs)
        r = np.asarray(f(*[np.asarray(x).astype(np.float32) if is_half(x) else x for x in xs]))
        return r.astype(half) if r.dtype == np.float32 else r

    return meaning


def by_element(f: Callable[[float], float]) -> Meaning:
    """A function of Python floats on arrays: computed in f64, then cast to the operand's type."""
    each = np.frompyfunc(f, 1, 1)

    def meaning(x: Array) -> Array:
        x = np.asarray(x)
        return np.asarray(each(x.astype(np.float64)), dtype=np.float64).astype(x.dtype)

    return meaning


# ---- integer arithmetic that is defined everywhere -------------------------------------------------------------------


def divide(x: Array, y: Array) -> Array:
    """x / y; integers truncate towards zero, and by zero give 0."""
    if not is_integer(x):
        return np.divide(x, y)
    zero = np.equal(y, 0)
    safe = np.where(zero, np.ones_like(y), y)
    q = np.floor_divide(x, safe)
    up = (np.remainder(x, safe) != 0) & ((np.asarray(x) < 0) != (safe < 0))  # floor -> truncate
    return np.where(zero, np.zeros_like(q), q + up.astype(q.dtype))


def fmod(x: Array, y: Array) -> Array:
    """The remainder with the sign of x, exact; integers by zero give 0."""
    if not is_integer(x):
        return np.fmod(x, y)
    zero = np.equal(y, 0)
    return np.where(zero, np.zeros_like(x), np.fmod(x, np.where(zero, np.ones_like(y), y)))


def floordiv(x: Array, y: Array) -> Array:
    """x / y rounded down; integers by zero give 0."""
    if not is_integer(x):
        return np.floor_divide(x, y)
    zero = np.equal(y, 0)
    return np.where(zero, np.zeros_like(x), np.floor_divide(x, np.where(zero, np.ones_like(y), y)))


def remainder(x: Array, y: Array) -> Array:
    """The remainder with the sign of y; integers by zero give 0."""
    if not is_integer(x):
        return np.remainder(x, y)
    zero = np.equal(y, 0)
    return np.where(zero, np.zeros_like(x), np.remainder(x, np.where(zero, np.ones_like(y), y)))


def power(x: Array, y: Array) -> Array:
    """x ** y. Integers wrap; a negative exponent gives 0, except for the bases 1 and -1."""
    if not is_integer(x):
        return np.power(x, y)
    x, y = np.broadcast_arrays(x, y)
    base, exponent, result = x.copy(), y.copy(), np.ones_like(x)
    for _ in range(x.dtype.itemsize * 8):
        result = np.where(exponent & 1, result * base, result)
        base, exponent = base * base, exponent >> 1
    if x.dtype.kind == "i":
        unit = np.where((x == -1) & ((y & 1) != 0), -1, np.where((x == 1) | (x == -1), 1, 0)).astype(x.dtype)
        result = np.where(y < 0, unit, result)
    return result


# ---- fused multiply-add ----------------------------------------------------------------------------------------------


def fma(x: Array, y: Array, z: Array) -> Array:
    """x * y + z, rounded once."""
    x, y, z = np.broadcast_arrays(x, y, z)
    if is_integer(x):
        return x * y + z
    if x.dtype == np.float32:
        return _fma_f32(x, y, z)
    exact = np.frompyfunc(_fma_f64, 3, 1)
    return np.asarray(exact(x, y, z), dtype=np.float64)


def _fma_f32(x: Array, y: Array, z: Array) -> Array:
    """The product is exact in f64; the sum is rounded to odd there, which makes the second rounding harmless.

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    p, w = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    s = np.asarray(p + w)
    part = s - p
    rest = (p - (s - part)) + (w - part)  # Knuth's two-sum: s + rest == p + w
    inexact = np.isfinite(s) & (rest != 0)
    even = (s.view(np.int64) & 1) == 0
    toward = np.nextafter(s, np.where(rest > 0, np.inf, -np.inf))
    return np.where(inexact & even, toward, s).astype(np.float32)


def _fma_f64(x: float, y: float, z: float) -> float:
    """In exact integers; Python's division of integers is correctly rounded."""
    x, y, z = float(x), float(y), float(z)
    if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
        return z if math.isfinite(x) and math.isfinite(y) else x * y + z
    (xn, xd), (yn, yd), (zn, zd) = x.as_integer_ratio(), y.as_integer_ratio(), z.as_integer_ratio()
    top, bottom = xn * yn * zd + zn * xd * yd, xd * yd * zd
    if top == 0:
        return x * y + z if x == 0 or y == 0 else 0.0
    try:
        r = top / bottom
    except OverflowError:
        return math.inf if top > 0 else -math.inf
    return r if r else (0.0 if top > 0 else -0.0)


# ---- transcendentals -------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e**-x), without overflow, computed in f64."""
    w = np.asarray(x).astype(np.float64)
    e = np.exp(-np.abs(w))
    return (np.where(w < 0, e, 1.0) / (1.0 + e)).astype(np.asarray(x).dtype)


def rsqrt(x: Array) -> Array:
    x = np.asarray(x)
    return (1.0 / np.sqrt(x.astype(np.float64))).astype(x.dtype)


def _lgamma(x: float) -> float:
    if math.isnan(x):
        return x
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:
        return math.inf


erf = by_element(math.erf)
erfc = by_element(math.erfc)
lgamma = by_element(_lgamma)

# ---- bits ------------------------------------------------------------------------------------------------------------


def as_unsigned(x: Array) -> Array:
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def popcount(x: Array) -> Array:
    x = np.asarray(x)
    return np.asarray(np.bitwise_count(as_unsigned(x))).astype(x.dtype)


def clz(x: Array) -> Array:
    """Leading zero bits; the width for 0. By halving."""
    x = np.asarray(x)
    u = as_unsigned(x)
    width = x.dtype.itemsize * 8
    count, step = np.full(u.shape, width, u.dtype), width // 2
    while step:
        high = u >> u.dtype.type(step)
        hit = high != 0
        count = np.where(hit, count - u.dtype.type(step), count)
        u = np.where(hit, high, u)
        step //= 2
    return (count - (u != 0).astype(count.dtype)).astype(x.dtype)


# ---- casts -----------------------------------------------------------------------------------------------------------


def cast(x: Array, dtype: Any) -> Array:
    """`x` as `dtype` (a DType). Float to integer truncates and saturates, NaN gives 0; f16 and bf16 go through f32."""
    x = np.asarray(x)
    target = dtype.numpy
    if dtype.is_integer and x.dtype.kind not in "iub":
        lo, hi = dtype.limits
        w = np.trunc(x.astype(np.float64))
        low, high, nan = w <= lo, w >= hi, np.isnan(w)
        inside = np.where(low | high | nan, 0.0, w).astype(target)
        return np.where(low, target.type(lo), np.where(high, target.type(hi), inside))
    if dtype.is_float and target.itemsize == 2:
        return x.astype(np.float32).astype(target)
    return x.astype(target)


__all__ = [
    "as_unsigned", "by_element", "cast", "clz", "divide", "erf", "erfc", "floordiv", "fma", "fmod", "in_f32", "is_half", "lgamma",
    "popcount", "power", "remainder", "rsqrt", "sigmoid",
]  # fmt: skip
