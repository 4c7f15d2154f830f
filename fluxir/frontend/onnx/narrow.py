"""Rounding to element types that are only stored: 8 and 4 bit floats, 4 and 2 bit integers.

Everything is computed in the carrier: what comes out are the values that the narrow type can hold. Floats round to
nearest, ties to even (https://onnx.ai/onnx/technical/float8.html).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import Element, float_table
from fluxir.ir.dtypes import f32, i32

__all__ = ["limits", "rounded"]


def limits(e: Element) -> tuple[float, float]:
    """The lowest and highest finite value of a narrow element type."""
    if e.name.startswith("float"):
        table = float_table(e)
        finite = table[np.isfinite(table)]
        return float(finite.min()), float(finite.max())
    if e.name.startswith("int"):
        return -(1 << (e.bits - 1)), (1 << (e.bits - 1)) - 1
    return 0, (1 << e.bits) - 1


def rounded(x: Any, e: Element, saturate: bool = True, round_mode: str = "up") -> Any:
    """The values of `x` as the element type `e` holds them, in its carrier."""
    assert e.carrier is not None
    if not e.name.startswith("float"):
        return _integer(x, e)
    x = fx.cast(x, f32)
    if e.name == "float8e8m0":
        return _power_of_two(x, saturate, round_mode)
    return _float(x, e, saturate)


def _integer(x: Any, e: Element) -> Any:
    """The low bits of the integer, as converting to a narrower integer does; floats are cut towards zero first."""
    word = fx.cast(fx.trunc(x) if fx.dtype(x).is_float else x, i32)
    mask, half = (1 << e.bits) - 1, 1 << (e.bits - 1)
    word = fx.bitwise_and(word, fx.scalar(mask, word))
    if e.name.startswith("int"):
        word = fx.subtract(fx.bitwise_xor(word, fx.scalar(half, word)), fx.scalar(half, word))
    return fx.cast(word, e.carrier)


def _exponent(x: Any) -> Any:
    """floor(log2 |x|) of normal f32 numbers, i32."""
    bits = fx.bitcast(fx.abs(x), i32)
    return fx.subtract(fx.bitwise_right_shift(bits, fx.scalar(23, bits)), fx.scalar(127, bits))


def _two_to(n: Any) -> Any:
    """2**n for i32 n in -126..127, f32."""
    return fx.bitcast(fx.bitwise_left_shift(fx.add(n, fx.scalar(127, n)), fx.scalar(23, n)), f32)


def _float(x: Any, e: Element, saturate: bool) -> Any:
    exponent, mantissa = {"float8e4m3": (4, 3), "float8e5m2": (5, 2), "float4e2m1": (2, 1)}[e.name[:10]]
    fnuz = e.name.endswith("fnuz")
    lowest = 1 - ((1 << (exponent - 1)) - (0 if fnuz else 1))  # the exponent of the smallest normal number
    highest = limits(e)[1]
    step = fx.subtract(fx.maximum(_exponent(x), fx.scalar(lowest, np.int32(0))), fx.scalar(mantissa, np.int32(0)))
    unit = _two_to(step)
    y = fx.multiply(fx.round(fx.divide(x, unit)), unit)
    top = np.float32(highest)
    beyond = fx.greater(fx.abs(y), top)
    has_inf = e.name == "float8e5m2"
    if saturate or e.bits == 4:
        y = fx.where(beyond, fx.copysign(top, x), y)
        y = fx.where(fx.isinf(x), fx.copysign(top, x), y)
    else:
        y = fx.where(beyond, fx.copysign(np.float32(np.inf if has_inf else np.nan), x), y)
    y = fx.where(fx.isnan(x), x if e.bits == 8 else np.float32(0), y)  # 4 bits have no NaN
    if fnuz:  # there is no negative zero
        y = fx.where(fx.equal(y, np.float32(0)), np.float32(0), y)
    return y


def _power_of_two(x: Any, saturate: bool, round_mode: str) -> Any:
    """8 bits of exponent and nothing else (OCP MX scale)."""
    n = _exponent(x)
    bits = fx.bitwise_and(fx.bitcast(x, i32), np.int32((1 << 23) - 1))
    if round_mode == "up":
        n = fx.add(n, fx.cast(fx.greater(bits, np.int32(0)), i32))
    elif round_mode == "nearest":
        n = fx.add(n, fx.cast(fx.greater_equal(bits, np.int32(1 << 22)), i32))
    top = fx.greater(n, np.int32(127))
    y = _two_to(fx.clip(n, np.int32(-126), np.int32(127)))
    y = fx.where(fx.less(n, np.int32(-126)), np.float32(2.0**-127), y)
    y = fx.where(top, np.float32(2.0**127 if saturate else np.nan), y)
    return fx.where(fx.logical_or(fx.isnan(x), fx.less(x, np.float32(0))), np.float32(np.nan), y)
