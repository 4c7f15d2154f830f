"""Quantised numbers: to and from integers (or narrow floats) with a scale and a zero point, and products of them.

Scales are per tensor, per axis, or per block of an axis. Products are computed on the integers, exactly, in i32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import ELEMENTS, Element, element
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.narrow import limits, rounded
from fluxir.frontend.onnx.ops.integer import Bytes, convolution, product, product_of
from fluxir.frontend.onnx.registry import Int, Ints, Raw, Text, op
from fluxir.frontend.onnx.values import Narrow, Quantised, element_of, unwrapped
from fluxir.ir.dtypes import f32, i32

U8 = ELEMENTS[2]


def aligned(s: Any, x: Any, axis: int, block: int) -> Any:
    """Scales (or zero points) as they broadcast against `x`: one for all, one for each place of an axis, or of a block."""
    n = fx.rank(x)
    if fx.rank(s) == 0 or (fx.rank(s) == 1 and s.shape[0] == 1 and not block):
        return fx.reshape(s, ())
    a = fx.axis_of(axis, n)
    if not block:
        return fx.reshape(s, tuple(s.shape[0] if k == a else 1 for k in range(n)))
    wide = fx.broadcast_to(fx.expand_dims(s, axis=a + 1), (*s.shape[: a + 1], block, *s.shape[a + 1 :]))
    wide = fx.reshape(wide, (*s.shape[:a], s.shape[a] * block, *s.shape[a + 1 :]))
    return fx.item(wide, (slice(None),) * a + (slice(0, x.shape[a]),))


def quantised(x: Any, scale: Any, zero: Any, e: Element, saturate: bool = True) -> Any:
    """round(x / scale) + zero as elements of `e`; the operands broadcast."""
    y = fx.divide(x, scale)
    if e.name.startswith("float"):
        return Narrow(rounded(y, e, saturate), e)
    assert e.carrier is not None
    y = fx.cast(fx.round(y), f32)
    if zero is not None:
        y = fx.add(y, fx.cast(zero, f32))
    low, high = limits(e) if e.narrow else e.carrier.limits
    y = fx.cast(fx.clip(y, np.float32(low), np.float32(high)), e.carrier)
    return Narrow(y, e) if e.narrow else y


@op("QuantizeLinear", since=10)
def quantize_linear(
    x: Any, scale: Any, zero: Raw = None, *, axis: Int = 1, block_size: Int = 0, output_dtype: Int = 0, precision: Int = 0,
    saturate: Int = 1,
) -> Any:  # fmt: skip
    e = element_of(zero) if zero is not None else element(output_dtype, "QuantizeLinear") if output_dtype else U8
    d = element(precision, "QuantizeLinear").carrier if precision else fx.dtype(scale)
    if d is None or not d.is_float or d.bits < 32:
        d = f32
    x, s = fx.cast(x, d), fx.cast(aligned(scale, x, axis, block_size), d)
    z = None if zero is None else aligned(unwrapped(zero), x, axis, block_size)
    return quantised(x, s, z, e, bool(saturate))


@op("DequantizeLinear", since=10)
def dequantize_linear(
    cx: Context, x: Raw, scale: Any, zero: Raw = None, *, axis: Int = 1, block_size: Int = 0, output_dtype: Int = 0
) -> Any:
    def floats() -> Any:
        return dequantised(x, scale, zero, axis, block_size, output_dtype)

    data = unwrapped(x)
    one = fx.rank(scale) == 0 or (fx.rank(scale) == 1 and scale.shape[0] == 1)
    wide = output_dtype in (0, 1) and fx.dtype(scale) == f32 and fx.dtype(data).bits == 8 and fx.dtype(data).is_integer
    if cx.node.outputs[0] not in cx.scope.lazy or not wide or block_size or fx.rank(scale) > 1:
        return floats()
    if one:
        z = None if zero is None else fx.reshape(unwrapped(zero), ())
        return Quantised(data, fx.reshape(scale, ()), z, None, functools.cache(floats))
    return Quantised(data, scale, unwrapped(zero), fx.axis_of(axis, fx.rank(data)), functools.cache(floats))


def dequantised(x: Any, scale: Any, zero: Any, axis: int, block_size: int, output_dtype: int) -> Any:
    """(x - zero) * scale."""
    data = unwrapped(x)
    s = aligned(scale, data, axis, block_size)
    to = element(output_dtype, "DequantizeLinear").carrier if output_dtype else fx.dtype(scale)
    y = fx.cast(data, i32) if not fx.dtype(data).is_float else data
    if zero is not None:
        z = aligned(unwrapped(zero), data, axis, block_size)
        y = fx.subtract(y, fx.cast(z, i32)) if not fx.dtype(data).is_float else fx.subtract(y, fx.cast(z, f32))
    return fx.cast(fx.multiply(fx.cast(y, f32), fx.cast(s, f32)), to)


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Any) -> Any:
    zero = fx.scalar(0, x)
    low, high = fx.minimum(fx.min(x), zero), fx.maximum(fx.max(x), zero)
    scale = fx.divide(fx.subtract(high, low), fx.scalar(255, x))
    safe = fx.where(fx.equal(scale, zero), fx.scalar(1, x), scale)
    point = fx.cast(fx.clip(fx.round(fx.divide(fx.negative(low), safe)), np.float32(0), np.float32(255)), "u8")
    return Results((quantised(x, safe, point, U8), scale, point))


# ---- products ------------------------------------------------------------------------------------------------------


@op("MatMulInteger", since=10)
def matmul_integer(a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    return product_of(a, a_zero, b, b_zero)


@op("ConvInteger", since=10)
def conv_integer(
    x: Any, w: Any, x_zero: Any = None, w_zero: Any = None, *, auto_pad: Text = "NOTSET", dilations: Ints | None = None,
    group: Int = 1, kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    return convolution(x, x_zero, w, w_zero, auto_pad, dilations, group, pads, strides)


def _requantised(total: Any, factor: Any, zero: Any) -> Any:
    return quantised(fx.multiply(fx.cast(total, f32), fx.cast(factor, f32)), np.float32(1), zero, element_of(zero))


@op("QLinearMatMul", since=10)
def qlinear_matmul(
    a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, y_scale: Any, y_zero: Any
) -> Any:
    factor = fx.divide(fx.multiply(_rows(a_scale), _one(b_scale)), _one(y_scale))
    return _requantised(product_of(a, a_zero, b, b_zero), factor, _one(y_zero))


def _one(s: Any) -> Any:
    return fx.reshape(s, ()) if fx.rank(s) == 1 and s.shape[0] == 1 else s


def _rows(s: Any) -> Any:
    return fx.reshape(s, (-1, 1)) if fx.rank(s) == 1 and s.shape[0] != 1 else _one(s)


@op("QLinearConv", since=10)
def qlinear_conv(
    x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, y_scale: Any, y_zero: Any, b: Any = None, *,
    auto_pad: Text = "NOTSET", dilations: Ints | None = None, group: Int = 1, kernel_shape: Ints | None = None,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    total = convolution(x, x_zero, w, w_zero, auto_pad, dilations, group, pads, strides)
    n = fx.rank(x) - 2
    if b is not None:
        total = fx.add(total, fx.reshape(b, (-1, *[1] * n)))
    s = _one(w_scale)
    s = fx.reshape(s, (-1, *[1] * n)) if fx.rank(s) == 1 else s
    return _requantised(total, fx.divide(fx.multiply(_one(x_scale), s), _one(y_scale)), _one(y_zero))


# ---- products of floats, quantised on the way ----------------------------------------------------------------------


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight [inputs, outputs] of 8-bit integers; `scale` and `zero` are for all of it or for each output."""

    data: Any
    scale: Any
    zero: Any

    def after(self, x: Any) -> Any:
        """x @ weight, where all of x is quantised to u8 first."""
        q, scale, point = dynamic_quantize_linear(x)
        sides = Bytes(fx.reshape(q, (-1, q.shape[-1])), point), Bytes(self.data, self.zero)
        total = fx.reshape(product(*sides), (*q.shape[:-1], self.data.shape[-1]))
        return fx.multiply(fx.cast(total, f32), fx.multiply(scale, self.scale))
