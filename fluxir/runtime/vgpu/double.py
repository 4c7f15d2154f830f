"""f64 arithmetic rounded once in any direction, and the fused multiply-add.

The sum, product, quotient or root of numpy is rounded to nearest; its error, or the sign of it, is found by an error-free
transformation, and says whether the neighbour is the answer in the direction asked for. Where exponents are so large or so small
that the transformation itself would be rounded, the few elements are computed with integers (`_exactly`).

Source: Boldo and Melquiond (see `rounding`), algorithm Fma; Boldo, "Pitfalls of a full floating-point proof" for the ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .rounding import to_odd, two_product, two_sum
from .values import Array

__all__ = ["DOUBLE", "fma_f64", "toward"]

_BIG, _SMALL = 2.0**480, 2.0**-450


def toward(s: Array, e: Array, mode: str) -> Array:
    """s, whose exact value is s + e for some e of the sign given, rounded by `mode` instead of to nearest."""
    up, down = np.nextafter(s, np.inf), np.nextafter(s, -np.inf)
    if mode == "rp":
        return np.where(e > 0, up, s)
    if mode == "rm":
        return np.where(e < 0, down, s)
    return np.where((e < 0) & (s > 0), down, np.where((e > 0) & (s < 0), up, s))


def _is_safe(*numbers: Array) -> Array:
    """Whether products and errors of these stay far from overflow and underflow."""
    safe: Array = np.asarray(True)
    for x in numbers:
        size = np.abs(x)
        safe = safe & ((size < _BIG) & (size > _SMALL) | (x == 0))
    return safe


def _mend(r: Array, safe: Array, exactly: Callable[..., float], *operands: Array) -> Array:
    """`r`, with what is not safe computed one by one."""
    if safe.all():
        return r
    arrays = np.broadcast_arrays(safe, r, *operands)
    out = arrays[1].copy()
    for i in np.flatnonzero(~arrays[0]):
        out.flat[i] = exactly(*(float(x.flat[i]) for x in arrays[2:]))
    return out


# ---- with integers
def _round(x: Fraction, mode: str) -> float:
    """A fraction that is not zero, to f64."""
    n, d = abs(x.numerator), x.denominator
    exponent = n.bit_length() - d.bit_length()
    if Fraction(2) ** exponent > abs(x):
        exponent -= 1
    unit = max(exponent, -1022) - 52  # of the last place
    scaled = abs(x) / Fraction(2) ** unit
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    away = {"rz": False, "rm": x < 0, "rp": x > 0}.get(
        mode, rest > Fraction(1, 2) or (rest * 2 == 1 and whole % 2 == 1)
    )
    whole += bool(rest and away)
    if whole.bit_length() + unit > 1024:
        size = (
            math.inf
            if mode == "rn" or (mode == "rp" and x > 0) or (mode == "rm" and x < 0)
            else math.ldexp(2**53 - 1, 971)
        )
    else:
        size = math.ldexp(whole, unit)
    return -size if x < 0 else size


def _sum_exactly(mode: str) -> Callable[[float, float], float]:
    return lambda a, b: _fma_exactly(mode)(a, 1.0, b)


def _product_exactly(mode: str) -> Callable[[float, float], float]:
    def product(a: float, b: float) -> float:
        if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
            return float(np.float64(a) * np.float64(b))
        return _round(Fraction(a) * Fraction(b), mode)

    return product


def _fma_exactly(mode: str) -> Callable[[float, float, float], float]:
    def fma(a: float, b: float, c: float) -> float:
        if not (math.isfinite(a) and math.isfinite(b)):
            return float(np.float64(a) * np.float64(b) + np.float64(c))
        if not math.isfinite(c):
            return c
        x = Fraction(a) * Fraction(b) + Fraction(c)
        if x:
            return _round(x, mode)
        negative = math.copysign(1, a) * math.copysign(1, b) < 0
        if (a == 0 or b == 0) and c == 0 and negative == (math.copysign(1, c) < 0):
            return c
        return -0.0 if mode == "rm" else 0.0

    return fma


def _quotient_exactly(mode: str) -> Callable[[float, float], float]:
    def quotient(a: float, b: float) -> float:
        if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
            return float(np.float64(a) / np.float64(b))
        return _round(Fraction(a) / Fraction(b), mode)

    return quotient


def _root_exactly(mode: str) -> Callable[[float], float]:
    def root(a: float) -> float:
        if not a > 0 or math.isinf(a):
            return float(np.sqrt(np.float64(a)))
        mantissa, exponent = math.frexp(a)
        n, shift = int(mantissa * 2.0**53), exponent - 53
        if shift % 2:
            n, shift = n * 2, shift - 1
        r = math.isqrt(n << 128)  # more bits than f64 has; one more says that it is not exact
        return _round(Fraction(2 * r + (r * r != n << 128)) * Fraction(2) ** (shift // 2 - 65), mode)

    return root


# ---- with arrays
def _add(mode: str) -> Callable[[Array, Array], Array]:
    if mode == "rn":
        return np.add

    def add(a: Array, b: Array) -> Array:
        s, e = two_sum(a, b)
        if mode == "rm":
            s = np.where((s == 0) & (np.signbit(a) | np.signbit(b)), -0.0, s)
        r = toward(s, e, mode)
        return _mend(r, ~((np.abs(s) > 2.0**1020) & np.isfinite(a) & np.isfinite(b)), _sum_exactly(mode), a, b)

    return add


def _sub(mode: str) -> Callable[[Array, Array], Array]:
    if mode == "rn":
        return np.subtract
    add = _add(mode)
    return lambda a, b: add(a, -b)


def _mul(mode: str) -> Callable[[Array, Array], Array]:
    if mode == "rn":
        return np.multiply

    def mul(a: Array, b: Array) -> Array:
        return _mend(toward(*two_product(a, b), mode), _is_safe(a, b), _product_exactly(mode), a, b)

    return mul


def _div(mode: str) -> Callable[[Array, Array], Array]:
    if mode == "rn":
        return np.divide

    def div(a: Array, b: Array) -> Array:
        q = a / b
        p, e = two_product(q, b)
        rest = ((a - p) - e) * np.copysign(1.0, b)
        safe = _is_safe(a, b, q) & (np.abs(q) < 2.0**400) & ((np.abs(q) > 2.0**-400) | (a == 0)) & (b != 0)
        return _mend(toward(q, rest, mode), safe, _quotient_exactly(mode), a, b)

    return div


def _sqrt(mode: str) -> Callable[[Array], Array]:
    if mode == "rn":
        return np.sqrt

    def sqrt(a: Array) -> Array:
        s = np.sqrt(a)
        p, e = two_product(s, s)
        return _mend(toward(s, (a - p) - e, mode), _is_safe(a) & (a > 0), _root_exactly(mode), a)

    return sqrt


def _fma_nearest(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once to nearest, where no step overflows or underflows."""
    high, low = two_product(a, b)
    t, t_low = two_sum(c, low)
    v, v_low = two_sum(high, t)
    return v + to_odd(*two_sum(t_low, v_low))


def _fma_scaled(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once to nearest for all but subnormal results: exponents aside, then put back."""
    plain = np.where(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(c), c, a * b + c)  # whatever a * b overflows to
    simple = ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)) | (a == 0) | (b == 0) | (c == 0)
    (am, ae), (bm, be), (cm, ce) = np.frexp(a), np.frexp(b), np.frexp(c)
    e = ae + be
    d = ce - e
    # Beyond 200 places the smaller one only says on which side of a number or of a tie the sum is.
    r = np.ldexp(_fma_nearest(am, bm, np.ldexp(cm, np.clip(d, -200, 200))), e)
    return np.where(simple, plain, np.where(d > 200, c, np.where(r == 0, np.abs(r), r)))


def fma_f64(mode: str) -> Callable[[Array, Array, Array], Array]:
    """a * b + c, rounded once."""
    exactly = _fma_exactly(mode)

    def nearest(a: Array, b: Array, c: Array) -> Array:
        r = _fma_nearest(a, b, c)
        r = np.where(r == 0, a * b + c, r)  # the transformation loses the sign of zero
        safe = _is_safe(a, b, c)
        if safe.all():
            return r
        safe, r, a, b, c = np.broadcast_arrays(safe, r, a, b, c)
        rest = ~safe
        r, a, b, c = r.copy(), a[rest], b[rest], c[rest]
        found = _fma_scaled(a, b, c)
        r[rest] = _mend(found, ~(np.abs(found) <= 2.0**-1020) | (a == 0) | (b == 0), exactly, a, b, c)
        return r

    if mode == "rn":
        return nearest

    def fma(a: Array, b: Array, c: Array) -> Array:
        high, low = two_product(a, b)
        t, t_low = two_sum(c, low)
        v, v_low = two_sum(high, t)
        rest = to_odd(*two_sum(t_low, v_low))
        s, e = two_sum(v, rest)
        if mode == "rm":
            s = np.where((s == 0) & (np.signbit(a) ^ np.signbit(b) | np.signbit(c)), -0.0, s)
        r = toward(s, e, mode)
        if mode != "rm":  # what the transformation did to the sign of zero
            plain = a * b + c
            r = np.where(r == 0, plain, r)
        return _mend(r, _is_safe(a, b, c), exactly, a, b, c)

    return fma


def _rcp(mode: str) -> Callable[[Array], Array]:
    div = _div(mode)
    one = np.asarray(1.0)
    return lambda a: div(one, a)


# By name and direction: correctly rounded functions of f64.
DOUBLE: dict[str, Callable[[str], Callable[..., Array]]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "fma": fma_f64,
    "div": _div,
    "rcp": _rcp,
    "sqrt": _sqrt,
}
