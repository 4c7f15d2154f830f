"""Rounding, exactly: numbers are rounded once, to any format, in any direction, as one numpy expression over all threads.

A *format* has `precision` significant bits and numbers down to 2**emin before they become subnormal. The values of every format
narrower than f64 are exact in f64, so an operation on them is computed there in a way that loses nothing a second rounding
could ask for (`sum_to_odd`, `fma_to_odd`: rounding to odd, after Boldo and Melquiond, "Emulation of FMA and correctly rounded
sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57(4), 2008), then rounded by `round_to`. Quotients and
square roots of at most 24 bits need no care: where their f64 value is one of the narrow format or halfway between two, it is
exact (Figueroa, "When is double rounding innocuous?", 1995).

Arguments may be arrays or numpy scalars; nothing is written in place. numpy's warnings are the caller's to silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .values import Array

__all__ = [
    "BF16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "F16",
    "F32",
    "TF32",
    "Format",
    "fma_f32",
    "fma_to_odd",
    "round_to",
    "sum_to_odd",
    "to_f32",
    "two_product",
    "two_sum",
]


@dataclass(frozen=True)
class Format:
    """A binary floating point format. `largest`: its largest finite number. `exponent_bits` and `precision - 1` fraction bits
    make it up, with the sign. `special`: "ieee" (infinities and NaN), "nan" (no infinity, one NaN of all ones), "" (neither)."""

    name: str
    precision: int
    exponent_bits: int
    largest: float
    special: str = "ieee"

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def emin(self) -> int:
        """The exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def bits(self) -> int:
        return self.exponent_bits + self.precision


F32 = Format("f32", 24, 8, float(np.finfo(np.float32).max))
TF32 = Format("tf32", 11, 8, (2 - 2.0**-10) * 2.0**127)
F16 = Format("f16", 11, 5, 65504.0)
BF16 = Format("bf16", 8, 8, (2 - 2.0**-7) * 2.0**127)
E5M2 = Format("e5m2", 3, 5, 57344.0)
E4M3 = Format("e4m3", 4, 4, 448.0, "nan")
E3M2 = Format("e3m2", 3, 3, 28.0, "")
E2M3 = Format("e2m3", 4, 2, 7.5, "")
E2M1 = Format("e2m1", 2, 2, 6.0, "")

_EXPONENT = np.int64(0x7FF << 52)


def _ties_away(x: Array) -> Array:
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1.0, x), whole)


_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rn": np.rint,
    "rz": np.trunc,
    "rm": np.floor,
    "rp": np.ceil,
    "rna": _ties_away,
}


def spacing(x: Array, to: Format) -> Array:
    """The distance of the format's numbers around `x` (f64)."""
    exponent: Array = np.maximum(x.view(np.int64) & _EXPONENT, np.int64((to.emin + 1023) << 52))
    step: Array = (exponent - np.int64((to.precision - 1) << 52)).view(np.float64)
    return step


def round_to(x: Array, to: Format, mode: str = "rn") -> Array:
    """`x` (f64) rounded to a number of the format, still as f64. `mode`: rn (ties to even), rz, rm, rp or rna (ties away from
    zero). What overflows is infinity or the largest number, as IEEE 754 says for the direction."""
    step = spacing(x, to)
    y = _INTEGER[mode](x / step) * step
    over = (np.abs(y) > to.largest) & np.isfinite(x)
    if over.any():
        up, down = {"rz": (to.largest, -to.largest), "rm": (to.largest, -np.inf), "rp": (np.inf, -to.largest)}.get(
            mode, (np.inf, -np.inf)
        )
        y = np.where(over, np.where(x > 0, up, down), y)
    return y


def to_f32(x: Array, mode: str = "rn") -> Array:
    """f64 -> f32."""
    return (x if mode == "rn" else round_to(x, F32, mode)).astype(np.float32)


# ---- error-free transformations of f64 (Knuth; Dekker and Veltkamp)
def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """s, e: s is a + b rounded, s + e is a + b exactly. e is NaN where s is not finite."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """p, e: p is a * b rounded, p + e is a * b exactly. For |a|, |b| < 2**996 and |a * b| > 2**-960 (or zero)."""
    p = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(x: Array) -> tuple[Array, Array]:
    t = x * 134217729.0  # 2**27 + 1
    high = t - (t - x)
    return high, x - high


def to_odd(s: Array, e: Array) -> Array:
    """s + e rounded to odd: where e is not zero, that neighbour of the exact value whose last bit is one."""
    inexact = np.abs(e) > 0
    if not inexact.any():
        return s
    bits = s.view(np.int64)
    away = ((e > 0) == (s > 0)).astype(np.int8)  # 1 where the exact value is the larger in magnitude
    moved: Array = (bits + (2 * away - 1) * (inexact & ((bits & 1) == 0))).view(np.float64)
    return moved


def sum_to_odd(a: Array, b: Array, mode: str = "rn") -> Array:
    """a + b rounded to odd in f64. A sum that is exactly zero has the sign that IEEE 754 gives it when rounding by `mode`."""
    s, e = two_sum(a, b)
    if mode == "rm":
        s = np.where((s == 0) & (np.signbit(a) | np.signbit(b)), -0.0, s)
    return to_odd(s, e)


def fma_to_odd(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """a * b + c rounded to odd in f64, for factors of at most 26 significant bits and the range of f32."""
    return sum_to_odd(a * b, c, mode)


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    """The fused multiply-add of f32, to nearest. The sum in f64 is off only where it lies halfway between two f32, or where the
    result is subnormal and has fewer bits: then all is computed again, to odd."""
    product = np.asarray(a).astype(np.float64) * b
    s = product + c
    r = s.astype(np.float32)
    halfway = (s.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    subnormal = ((r.view(np.uint32) & np.uint32(0x7F800000)) == 0) & (s != 0)
    if halfway.any() or subnormal.any():
        r = sum_to_odd(product, np.asarray(c).astype(np.float64)).astype(np.float32)
    return r
