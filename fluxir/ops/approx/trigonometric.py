"""sin, cos and tan for every finite argument.

Method: the quadrant and the remainder come from one reduction in integer arithmetic that is right for all arguments
(Payne and Hanek, "Radian reduction for trigonometric functions", 1983): the significand is multiplied by just those
bits of 2/pi that its exponent lets matter. The words of 2/pi are chosen by a tree of selects, not by a table in memory,
so that the code vectorises everywhere. The remainder is an unevaluated sum of two floats; minimax polynomials follow
(arranged as in fdlibm's k_sin.c and k_cos.c by K. C. Ng; the coefficients here are our own).

Invariants: fixed-point numbers are unsigned and wrap, as the reduction modulo a full turn wants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fluxir.ops.approx.coefficients import COEFFICIENTS, CONSTANTS, TWO_OVER_PI_WORDS
from fluxir.ops.approx.common import (
    F32,
    Builder,
    Format,
    Value,
    fast_two_sum,
    flip_sign,
    format_of,
    horner,
    select,
    sign_bits,
    to_bits,
)

QUARTER_PI = math.pi / 4
LOW_WORD = 0xFFFFFFFF


def _window(b: Builder, index: Value, table: Sequence[int], count: int) -> list[Value]:
    """`count` consecutive entries of a constant table from a variable index on: one level of selects an index bit."""
    levels = (len(table) - count).bit_length()
    words = [b.const(w, like=index) for w in table]
    for level in reversed(range(levels)):
        step = 1 << level
        chosen = b.ne(b.bit_and(index, step), 0)
        needed = step - 1 + count  # the lower levels can still move by step - 1
        words = [
            b.select(chosen, words[j + step], words[j]) if j + step < len(words) else words[j]
            for j in range(min(needed, len(words)))
        ]
    return words[:count]


def _funnel(b: Builder, words: Sequence[Value], shift: Value, bits: int) -> list[Value]:
    """The words, as one long number, shifted left by 0 <= shift < bits; one word fewer."""
    rest = b.sub(bits - 1, shift)
    return [
        b.bit_or(b.shift_left(high, shift), b.shift_right(b.shift_right(low, 1), rest))
        for high, low in zip(words, words[1:], strict=False)
    ]


def _reduce_f32(b: Builder, magnitude: Value) -> tuple[Value, Value, Value]:
    """(quadrant as i32 in 0..3, remainder as high + low in quarter turns times 2**30) of an f32 of at least 1/2.

    With x = m 2**(e - 23), the bits of 2/pi of weight above 2**(24 - e) contribute whole turns; the 96 that follow are
    multiplied by m, and 64 bits kept: 2 of quadrant, 62 of fraction. The fraction of an f32 is at least about 2**-30.
    """
    bits = b.bitcast(to_bits(b, magnitude), dtype="u32")
    position = b.sub(b.shift_right(bits, 23), F32.bias - 7)  # of the first bit, in a table that starts with 32 zeros
    table = (0, *TWO_OVER_PI_WORDS[:7])
    words = _window(b, b.shift_right(position, 5), table, 4)
    high, middle, low = (b.cast(w, dtype="u64") for w in _funnel(b, words, b.bit_and(position, 31), 32))
    significand = b.cast(b.bit_or(b.bit_and(bits, 0x7FFFFF), 0x800000), dtype="u64")
    product = b.add(
        b.add(b.shift_left(b.mul(significand, high), 32), b.mul(significand, middle)),
        b.shift_right(b.mul(significand, low), 32),
    )
    quadrant = b.shift_right(b.add(product, 1 << 61), 62)
    fraction = b.sub(product, b.shift_left(quadrant, 62))
    top = b.bitcast(b.cast(b.shift_right(fraction, 32), dtype="u32"), dtype="i32")
    bottom = b.bitcast(b.shift_right(b.cast(fraction, dtype="u32"), 1), dtype="i32")
    top_float = b.cast(top, dtype="f32")
    rounding = b.cast(b.sub(top, b.cast(top_float, dtype="i32")), dtype="f32")
    rest = b.fma(b.cast(bottom, dtype="f32"), 2.0**-31, rounding)
    return b.bitcast(b.cast(quadrant, dtype="u32"), dtype="i32"), top_float, rest


def _word_to_f64(b: Builder, word: Value) -> Value:
    """A u64 below 2**32 as an f64, exactly, through the bit pattern of 2**52 + word."""
    return b.sub(b.bitcast(b.bit_or(word, 0x4330000000000000), dtype="f64"), 2.0**52)


def _reduce_f64(b: Builder, magnitude: Value) -> tuple[Value, Value, Value]:
    """The same for an f64, remainder in quarter turns times 2**62; the quadrant is an i64.

    192 bits of 2/pi are multiplied by the 53-bit significand, 128 bits kept, in columns of 32 bits. The fraction of an
    f64 is at least about 2**-61, so at least 64 good bits of it are left.
    """
    bits = b.bitcast(to_bits(b, magnitude), dtype="u64")
    position = b.sub(b.shift_right(bits, 52), 1023 - 10)  # in a table that starts with 64 zeros
    pairs = zip(TWO_OVER_PI_WORDS[0:38:2], TWO_OVER_PI_WORDS[1:38:2], strict=True)
    table = (0, *((high << 32) | low for high, low in pairs))
    words = _window(b, b.shift_right(position, 6), table, 4)
    wide = _funnel(b, words, b.bit_and(position, 63), 64)
    # digits[k] has weight 2**(32 k)
    digits = [d for w in reversed(wide) for d in (b.bit_and(w, LOW_WORD), b.shift_right(w, 32))]
    significand = b.bit_or(b.bit_and(bits, (1 << 52) - 1), 1 << 52)
    m_low, m_high = b.bit_and(significand, LOW_WORD), b.shift_right(significand, 32)
    low_products = [None, *(b.mul(m_low, d) for d in digits[1:])]
    high_products = [b.mul(m_high, d) for d in digits[:5]]
    carry = b.add(b.shift_right(low_products[1], 32), b.shift_right(high_products[0], 32))
    columns = []
    previous = None
    for k in range(2, 6):
        column = b.add(b.add(carry, high_products[k - 1]), b.bit_and(low_products[k], LOW_WORD))
        if previous is not None:
            column = b.add(column, b.shift_right(previous, 32))
        columns.append(column)
        previous = low_products[k]
        carry = b.shift_right(column, 32)
    upper = b.bit_or(b.shift_left(columns[3], 32), b.bit_and(columns[2], LOW_WORD))
    quadrant = b.shift_right(b.add(upper, 1 << 61), 62)
    fraction = b.sub(upper, b.shift_left(quadrant, 62))
    biased_top = b.shift_right(b.bit_xor(fraction, 1 << 63), 32)
    top = b.mul(b.sub(_word_to_f64(b, biased_top), 2.0**31), 2.0**32)
    high, rounding = fast_two_sum(b, top, _word_to_f64(b, b.bit_and(fraction, LOW_WORD)))
    third = _word_to_f64(b, b.bit_and(columns[1], LOW_WORD))
    fourth = _word_to_f64(b, b.bit_and(columns[0], LOW_WORD))
    return b.bitcast(quadrant, dtype="i64"), high, b.add(rounding, b.fma(fourth, 2.0**-64, b.mul(third, 2.0**-32)))


def reduce(b: Builder, magnitude: Value, fmt: Format) -> tuple[Value, Value, Value]:
    """(quadrant, r, r_low) with |x| = quadrant pi/2 + r + r_low modulo 2 pi, |r| <= pi/4, for finite |x|."""
    unit = 2.0**-30 if fmt is F32 else 2.0**-62
    quadrant, high, low = (_reduce_f32 if fmt is F32 else _reduce_f64)(b, magnitude)
    half_pi, half_pi_low, _ = (c * unit for c in CONSTANTS["half_pi"][fmt.name])
    product = b.mul(high, half_pi)
    tail = b.fma(high, half_pi, b.neg(product))
    tail = b.fma(low, half_pi, b.fma(high, half_pi_low, tail))
    r, r_low = fast_two_sum(b, product, tail)
    is_small = b.le(magnitude, QUARTER_PI)
    return (
        select(b, is_small, 0, quadrant),
        b.select(is_small, magnitude, r),
        select(b, is_small, 0.0, r_low),
    )


def sin_cos_of_reduced(b: Builder, r: Value, r_low: Value, fmt: Format) -> tuple[Value, Value]:
    """(sin, cos) of r + r_low, |r| <= pi/4."""
    z = b.mul(r, r)
    half_z = b.mul(z, 0.5)
    rough = b.sub(1.0, half_z)
    cos_tail = b.fma(b.mul(z, z), horner(b, z, COEFFICIENTS["cos"][fmt.name]), b.neg(b.mul(r, r_low)))
    cos_r = b.add(rough, b.add(b.sub(b.sub(1.0, rough), half_z), cos_tail))
    sin_tail = b.mul(b.mul(r, z), horner(b, z, COEFFICIENTS["sin"][fmt.name]))
    return b.add(r, b.fma(r_low, rough, sin_tail)), cos_r


def _finite_only(b: Builder, magnitude: Value, y: Value) -> Value:
    """NaN where the argument is infinite or NaN."""
    return select(b, b.lt(magnitude, math.inf), y, math.nan)


def _parts(b: Builder, x: Value) -> tuple[Format, Value, Value, Value, Value]:
    """(format, |x|, quadrant, sin r, cos r)."""
    fmt = format_of(x)
    magnitude = b.abs(x)
    quadrant, r, r_low = reduce(b, magnitude, fmt)
    return fmt, magnitude, quadrant, *sin_cos_of_reduced(b, r, r_low, fmt)


def sin(b: Builder, x: Value) -> Value:
    """Sine; NaN at infinity."""
    fmt, magnitude, quadrant, sin_r, cos_r = _parts(b, x)
    value = b.select(b.ne(b.bit_and(quadrant, 1), 0), cos_r, sin_r)
    negative = b.shift_left(b.bit_and(quadrant, 2), fmt.bits - 2)
    return _finite_only(b, magnitude, flip_sign(b, value, b.bit_xor(negative, sign_bits(b, x))))


def cos(b: Builder, x: Value) -> Value:
    """Cosine; NaN at infinity."""
    fmt, magnitude, quadrant, sin_r, cos_r = _parts(b, x)
    value = b.select(b.ne(b.bit_and(quadrant, 1), 0), sin_r, cos_r)
    negative = b.shift_left(b.bit_and(b.add(quadrant, 1), 2), fmt.bits - 2)
    return _finite_only(b, magnitude, flip_sign(b, value, negative))


def tan(b: Builder, x: Value) -> Value:
    """Tangent: sin / cos, or -cos / sin in odd quadrants; NaN at infinity."""
    fmt, magnitude, quadrant, sin_r, cos_r = _parts(b, x)
    odd = b.ne(b.bit_and(quadrant, 1), 0)
    quotient = b.div(b.select(odd, cos_r, sin_r), b.select(odd, sin_r, cos_r))
    negative = b.shift_left(b.bit_and(quadrant, 1), fmt.bits - 1)
    return _finite_only(b, magnitude, flip_sign(b, quotient, b.bit_xor(negative, sign_bits(b, x))))
