"""Products of quantised numbers, on the integers: `dot` of unsigned by signed bytes, added up exactly in i32.

With zero points p and q the product is sum (a - p)(b - q) = sum a b - p sum b - q sum a + k p q, so that the bytes are multiplied
as they are stored. What is left over is little: the sums of a constant weight are constants, and the weight's zero point is
usually 0. The left side is brought to u8 and the right one to i8 by turning over the top bit (and moving the zero point by 128),
since that is the form that machines multiply (vpdpbusd).

A convolution is such a product over gathered windows, channels innermost, in bytes. Where its sums are short (depthwise ones
above all) it is a convolution of floats instead, which is as exact: integers below 2^24 are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.ops.products import each, fixed, taps_of, window_pads
from fluxir.frontend.onnx.values import Quantised, known_array
from fluxir.frontend.tensor import as_tensor, emit
from fluxir.ir import dims
from fluxir.ir.dtypes import f32, i32

SHORT = 64  # terms of a sum, up to which a convolution of floats costs less than gathering its windows
EXACT = 1 << 24  # integers up to this are floats of 32 bits


@dataclass(frozen=True)
class Bytes:
    """8-bit integers with a zero point, which broadcasts against them; `zero` is None for 0."""

    data: Any
    zero: Any = None

    def of_sign(self, signed: bool) -> Bytes:
        """The same numbers, as i8 or u8."""
        if fx.dtype(self.data).is_signed == signed:
            return self
        move = np.int32(-128 if signed else 128)
        zero = move if self.zero is None else fx.add(fx.cast(self.zero, i32), move)
        to = "i8" if signed else "u8"
        found = known_array(self.data)
        if found is not None:
            return Bytes((found.view(np.uint8) ^ np.uint8(128)).view(np.int8 if signed else np.uint8), zero)
        bits = self.data if signed else fx.bitcast(self.data, "u8")
        bits = fx.bitwise_xor(bits, np.uint8(128))
        return Bytes(fx.bitcast(bits, to) if signed else bits, zero)

    @property
    def offset(self) -> Any:
        """The zero point in i32; None where it is known to be 0."""
        if self.zero is None:
            return None
        found = known_array(self.zero)
        return None if found is not None and not np.any(found) else fx.cast(self.zero, i32)


@fx.public
def _dot(a: Any, b: Any) -> Any:
    """a[..., m, k] by b[..., k, n] (or b[k, n]) in i32."""
    x, y = as_tensor(a), as_tensor(b)
    if y.ndim == 2:
        return emit("dot", x, y, lhs_contract=(x.ndim - 1,), rhs_contract=(0,), dtype=i32)
    batch = tuple(range(y.ndim - 2))
    return emit(
        "dot", x, y, lhs_contract=(x.ndim - 1,), rhs_contract=(y.ndim - 2,), lhs_batch=batch, rhs_batch=batch, dtype=i32
    )


def product(a: Bytes, b: Bytes) -> Any:
    """The matrix product in i32 of what the bytes stand for; zero points broadcast along the contracted axes."""
    if fx.rank(a.data) < 2 or fx.rank(b.data) < 2 or (fx.rank(b.data) > 2 and b.data.shape[:-2] != a.data.shape[:-2]):
        return fx.matmul(_wide(a), _wide(b))
    a, b = a.of_sign(False), b.of_sign(True)
    total = _dot(a.data, b.data)
    p, q = a.offset, b.offset
    if p is not None:
        total = fx.subtract(total, fx.multiply(p, _sum(b.data, -2)))
    if q is not None:
        total = fx.subtract(total, fx.multiply(q, _sum(a.data, -1)))
    if p is not None and q is not None:
        total = fx.add(total, fx.multiply(fx.multiply(p, q), fx.cast(fx.asarray(a.data.shape[-1]), i32)))
    return total


def _sum(x: Any, axis: int) -> Any:
    found = known_array(x)
    if found is not None:
        return found.sum(axis, keepdims=True, dtype=np.int32)
    return fx.sum(fx.cast(x, i32), axis=axis, keepdims=True, dtype=i32)


def _wide(x: Bytes) -> Any:
    wide = fx.cast(x.data, i32)
    return wide if x.offset is None else fx.subtract(wide, x.offset)


# ---- matrices ------------------------------------------------------------------------------------------------------


def matrix(x: Any, zero: Any, *, rows: bool = False, columns: bool = False) -> Bytes:
    """An operand of a product. A zero point with an axis has one number for each row, or column."""
    if zero is None:
        return Bytes(x)
    if fx.rank(zero) == 1:
        if zero.shape[0] == 1:
            zero = fx.reshape(zero, ())
        elif rows:
            zero = fx.reshape(zero, (-1, 1))
        elif columns:
            zero = fx.reshape(zero, (1, -1))
    return Bytes(x, zero)


def product_of(a: Any, a_zero: Any, b: Any, b_zero: Any) -> Any:
    """The product of two operands of an operator with their zero points, in i32; 8-bit integers as bytes, others as i32."""
    left, right = matrix(a, a_zero, rows=True), matrix(b, b_zero, columns=True)
    if fx.dtype(a).bits != 8 or fx.dtype(b).bits != 8:
        return fx.matmul(_wide(left), _wide(right))
    return product(left, right)


# ---- convolutions --------------------------------------------------------------------------------------------------


def convolution(
    x: Any, x_zero: Any, w: Any, w_zero: Any, auto_pad: str, dilations: Any, group: int, pads: Any, strides: Any
) -> Any:
    """The convolution in i32 of what the bytes stand for: x [N, C, ...], w [M, C / group, ...] with a zero point for all or for
    each output channel."""
    kernel = fixed(w.shape, "the weight")[2:]
    n, terms = len(kernel), math.prod(w.shape[1:])
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    padding = window_pads(auto_pad, pads, x.shape[2:], kernel, s, d)
    p = None if x_zero is None else fx.reshape(x_zero, ())
    q = w_zero
    if q is not None:
        q = fx.reshape(q, ()) if fx.rank(q) == 0 or q.shape[0] == 1 else fx.reshape(q, (-1, *[1] * (n + 1)))
    if terms * 255 * 255 < EXACT and (group > 1 or terms <= SHORT) and n <= 3:
        floats = (fx.cast(_wide(Bytes(v, z)), f32) for v, z in ((x, p), (w, q)))
        return fx.cast(fx.nn.conv(*floats, stride=s, padding=padding, dilation=d, groups=group), i32)
    moved = Bytes(x, p).of_sign(False)
    fill = np.uint8(0) if moved.zero is None else fx.cast(moved.zero, "u8")
    image = fx.moveaxis(moved.data, 1, -1)
    if any(low or high for low, high in padding):
        image = fx.pad(image, [(0, 0), *padding, (0, 0)], constant_values=fill)
    places = [dims.floordiv(image.shape[1 + i] - ((kernel[i] - 1) * d[i] + 1), s[i]) + 1 for i in range(n)]
    taps = []
    for tap in taps_of(kernel):
        key = tuple(
            slice(t * g, t * g + (o - 1) * step + 1, step) for t, g, o, step in zip(tap, d, places, s, strict=True)
        )
        taps.append(fx.item(image, (slice(None), *key)))
    batch, channels, outputs = x.shape[0], w.shape[1], w.shape[0]
    count, area = len(taps), dims.product(places)
    windows = taps[0] if count == 1 else fx.stack(taps, axis=-2)  # [N, places, taps, C]
    weight = fx.moveaxis(fx.reshape(w, (group, outputs // group, channels, count)), (3, 2, 1), (1, 2, 3))
    weight = fx.reshape(weight, (group, count * channels, outputs // group))
    if group == 1:
        a, b = fx.reshape(windows, (batch * area, count * channels)), fx.reshape(weight, weight.shape[1:])
    else:
        split = fx.moveaxis(fx.reshape(windows, (batch * area, count, group, channels)), 2, 0)
        a, b = fx.reshape(split, (group, batch * area, count * channels)), weight
    if q is not None:
        q = q if fx.rank(q) == 0 else fx.reshape(q, (1, outputs) if group == 1 else (group, 1, outputs // group))
    total = product(Bytes(a, moved.zero), Bytes(b, q))
    if group > 1:
        total = fx.reshape(fx.moveaxis(total, 0, 1), (batch * area, outputs))
    return fx.moveaxis(fx.reshape(total, (batch, *places, outputs)), -1, 1)


# ---- dequantised operands ------------------------------------------------------------------------------------------


def applied(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """The result of MatMul, Gemm or Conv on two quantised operands, by integers; None where that cannot be."""
    a, b, *rest = inputs
    if not isinstance(a, Quantised) or not isinstance(b, Quantised) or a.axis is not None:
        return None
    c = rest[0] if rest else None
    if name == "Conv":
        return _conv(a, b, c, attributes)
    if fx.rank(a.data) < 2 or fx.rank(b.data) != 2:
        return None
    left, right, axis = a.data, b.data, b.axis
    if name == "Gemm":
        if attributes.get("transA"):
            left = fx.transpose(left, (1, 0))
        if attributes.get("transB"):
            right, axis = fx.transpose(right, (1, 0)), None if axis is None else 1 - axis
    if axis not in (None, 1):  # a scale for each term of the sum
        return None
    total = product(matrix(left, a.zero), matrix(right, b.zero, columns=True))
    y = fx.multiply(fx.cast(total, f32), fx.multiply(a.scale, b.scale))
    if name == "Gemm":
        alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
        y = y if alpha == 1 else fx.multiply(y, np.float32(alpha))
        if c is not None and beta:
            y = fx.add(y, c if beta == 1 else fx.multiply(c, np.float32(beta)))
    return y


def _conv(x: Quantised, w: Quantised, bias: Any, a: Mapping[str, Any]) -> Any:
    if w.axis not in (None, 0):
        return None
    total = convolution(
        x.data, x.zero, w.data, w.zero, a.get("auto_pad", "NOTSET"), a.get("dilations"), a.get("group", 1), a.get("pads"),
        a.get("strides"),
    )  # fmt: skip
    n = fx.rank(x.data) - 2
    scale = w.scale if w.axis is None else fx.reshape(w.scale, (-1, *[1] * n))
    y = fx.multiply(fx.cast(total, f32), fx.multiply(x.scale, scale))
    return y if bias is None else fx.add(y, fx.reshape(bias, (-1, *[1] * n)))


__all__ = ["Bytes", "applied", "convolution", "matrix", "product", "product_of"]
