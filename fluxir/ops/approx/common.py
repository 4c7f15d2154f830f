"""What every recipe is made of: float formats, polynomials, error-free transforms, scaling by powers of two.

A *recipe* is a function `recipe(b, x, ...) -> value` that only emits ops through a builder `b`; it computes nothing
itself. Invariants that every recipe keeps:

- straight-line code: choices are selects, never branches, so that the code vectorises and runs on any target;
- a float is converted to an integer by adding a big constant and reading the low bits, which is defined (if
  meaningless) for NaN and infinity too, so no select ever has to hide an undefined value;
- clamps are written `select(x > high, high, x)`, which lets NaN through, so NaN needs no case of its own;
- nothing relies on flush-to-zero, and nothing survives reassociation: `(x + c) - c` is meant.

Sources: Dekker, "A floating-point technique for extending the available precision" (1971), and Knuth, TAOCP vol. 2, 4.2.2,
for `two_sum` and the product by fma; Muller, "Elementary Functions" (3rd ed., 2016), for the reductions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Value = Any
"""An IR value; `value.type.dtype.name` says what it holds."""

Builder = Any
"""Has one method for each op, named like it, and `const`, `cast`, `bitcast` (see `fluxir.ir.build.Builder`)."""


@dataclass(frozen=True)
class Format:
    """A binary interchange format: `f32` or `f64`, with the integers of its width."""

    name: str
    mantissa: int
    """Stored significand bits: 23 or 52."""
    bias: int
    int_name: str
    uint_name: str

    @property
    def bits(self) -> int:
        return 32 if self.name == "f32" else 64

    @property
    def sign_mask(self) -> int:
        """The sign bit as a *signed* integer of the width (what a constant of `int_name` can hold)."""
        return -(1 << (self.bits - 1))

    @property
    def magic(self) -> float:
        """1.5 * 2**mantissa: adding it rounds to an integer, which is then in the low bits of the sum."""
        return 1.5 * 2.0**self.mantissa

    @property
    def magic_bits(self) -> int:
        """The bit pattern of `magic`."""
        return ((self.mantissa + self.bias) << self.mantissa) | (1 << (self.mantissa - 1))


F32 = Format("f32", 23, 127, "i32", "u32")
F64 = Format("f64", 52, 1023, "i64", "u64")


def format_of(x: Value) -> Format:
    """The format of a value's elements. Raises TypeError for what is neither `f32` nor `f64`."""
    name = x.type.dtype.name
    if name == "f32":
        return F32
    if name == "f64":
        return F64
    raise TypeError(f"a recipe computes in f32 or f64, not in {name}: cast first")


def select(b: Builder, condition: Value, x: Value | float, y: Value | float) -> Value:
    """`x` where `condition`, else `y`; one of them may be a Python scalar, which takes the type of the other."""
    if isinstance(x, (int, float)):
        x = b.const(x, like=y)
    elif isinstance(y, (int, float)):
        y = b.const(y, like=x)
    return b.select(condition, x, y)


def at_most(b: Builder, x: Value, high: float) -> Value:
    """min(x, high), with NaN kept. One `minps` on x86."""
    return select(b, b.gt(x, high), high, x)


def at_least(b: Builder, x: Value, low: float) -> Value:
    """max(x, low), with NaN kept."""
    return select(b, b.lt(x, low), low, x)


def horner(b: Builder, x: Value, coefficients: Sequence[float]) -> Value:
    """sum(c[i] * x**i), by Horner's rule with fused multiply-adds. At least two coefficients."""
    acc: Value = b.const(coefficients[-1], like=x)
    for c in reversed(coefficients[:-1]):
        acc = b.fma(acc, x, b.const(c, like=x))
    return acc


def to_bits(b: Builder, x: Value) -> Value:
    """The bit pattern as a signed integer of the same width."""
    return b.bitcast(x, dtype=format_of(x).int_name)


def from_bits(b: Builder, bits: Value, fmt: Format) -> Value:
    """The float with this bit pattern."""
    return b.bitcast(bits, dtype=fmt.name)


def sign_bits(b: Builder, x: Value) -> Value:
    """The sign bit of `x` as an integer, all other bits clear."""
    return b.bit_and(to_bits(b, x), format_of(x).sign_mask)


def flip_sign(b: Builder, x: Value, sign: Value) -> Value:
    """`x` with its sign bit xor-ed with `sign` (from `sign_bits`)."""
    return from_bits(b, b.bit_xor(to_bits(b, x), sign), format_of(x))


def nearest_integer(b: Builder, x: Value, factor: float | None = None) -> tuple[Value, Value]:
    """round-half-even of `x * factor` (of `x` without a factor) as a float and as an integer of the same width.

    |x * factor| must be below 2**(mantissa - 1); elsewhere (NaN too) the integer is arbitrary but defined.
    """
    fmt = format_of(x)
    magic = b.const(fmt.magic, like=x)
    shifted = b.add(x, magic) if factor is None else b.fma(x, b.const(factor, like=x), magic)
    return b.sub(shifted, magic), b.sub(to_bits(b, shifted), fmt.magic_bits)


def integer_to_float(b: Builder, n: Value, fmt: Format) -> Value:
    """A small integer (|n| < 2**(mantissa - 1)) of the format's width as a float, exactly.

    For f64 this goes through the bit pattern: AVX2 has no conversion from 64-bit integers.
    """
    if fmt is F32:
        return b.cast(n, dtype="f32")
    return b.sub(from_bits(b, b.add(n, fmt.magic_bits), fmt), fmt.magic)


def power_of_two(b: Builder, n: Value, fmt: Format) -> Value:
    """2**n for an integer `n` in the range of normal exponents."""
    return from_bits(b, b.shift_left(b.add(n, fmt.bias), fmt.mantissa), fmt)


def nearest_exponent(b: Builder, x: Value, bias: int, factor: float | None = None) -> tuple[Value, Value]:
    """As `nearest_integer`, but the bits of n + bias come with others above them, which shifting them into the exponent
    drops: they cost nothing, since the bias is added together with the constant that rounds. 0 <= n + bias."""
    fmt = format_of(x)
    magic = b.const(fmt.magic + bias, like=x)
    shifted = b.add(x, magic) if factor is None else b.fma(x, b.const(factor, like=x), magic)
    return b.sub(shifted, magic), b.bitcast(shifted, dtype=fmt.uint_name)


def biased_power(b: Builder, biased: Value, fmt: Format) -> Value:
    """2**n for the bits of n + fmt.bias (from `nearest_exponent`), in the range of normal exponents."""
    return from_bits(b, b.shift_left(biased, fmt.mantissa), fmt)


def scale(b: Builder, x: Value, doubled: Value, fmt: Format) -> Value:
    """x * 2**n, rounded once, for |x| in [1/2, 2] or so and n within twice the exponent range (subnormal results included).
    `doubled` holds the bits of n + 2 * fmt.bias (from `nearest_exponent`)."""
    half = b.shift_right(doubled, 1)
    return b.mul(b.mul(x, biased_power(b, half, fmt)), biased_power(b, b.sub(doubled, half), fmt))


def two_sum(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """(s, e) with s = round(x + y) and s + e = x + y exactly (Knuth)."""
    s = b.add(x, y)
    y_part = b.sub(s, x)
    x_part = b.sub(s, y_part)
    return s, b.add(b.sub(x, x_part), b.sub(y, y_part))


def fast_two_sum(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """`two_sum` for |x| >= |y| (Dekker)."""
    s = b.add(x, y)
    return s, b.sub(y, b.sub(s, x))


def two_product(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """(p, e) with p = round(x * y) and p + e = x * y exactly (barring underflow)."""
    p = b.mul(x, y)
    return p, b.fma(x, y, b.neg(p))
