"""Products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.bounds import at_least
from fluxir.frontend.onnx.elements import few
from fluxir.frontend.onnx.registry import Float, Int, Ints, Known, Text, op
from fluxir.frontend.onnx.values import ints_of
from fluxir.ir.dtypes import i32

# ---- products ------------------------------------------------------------------------------------------------------


@op("MatMul")
def matmul(a: Any, b: Any) -> Any:
    return fx.matmul(a, b)


@op("Gemm", since=7)
def gemm(
    a: Any, b: Any, c: Any = None, *, alpha: Float = 1.0, beta: Float = 1.0, transA: Int = 0, transB: Int = 0
) -> Any:
    y = fx.matmul(fx.transpose(a, (1, 0)) if transA else a, fx.transpose(b, (1, 0)) if transB else b)
    y = y if alpha == 1 else fx.multiply(y, fx.scalar(alpha, y))
    if c is None or beta == 0:
        return y
    return fx.add(y, c if beta == 1 else fx.multiply(c, fx.scalar(beta, c)))


@op("Gemm")
def gemm_old(
    a: Any,
    b: Any,
    c: Any,
    *,
    alpha: Float = 1.0,
    beta: Float = 1.0,
    transA: Int = 0,
    transB: Int = 0,
    broadcast: Int = 0,
) -> Any:
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@op("Einsum", since=12)
def einsum(*xs: Any, equation: Text) -> Any:
    return fx.einsum(equation, *xs)


@op("Det", since=11)
def det(x: Any) -> Any:
    """By elimination with pivots, unrolled: fit for the small matrices that models have."""
    n = x.shape[-1]
    if not isinstance(n, int) or n > 16:
        raise error(
            "FX1205", f"Det of matrices of {n} rows: more than 16, or a number that is not known when compiling"
        )
    return _det(x, n)


def _det(x: Any, n: int) -> Any:
    if n == 1:
        return fx.item(x, (..., 0, 0))
    pivot = fx.expand_dims(fx.argmax(fx.abs(fx.item(x, (..., slice(None), 0))), axis=-1), axis=(-1, -2))
    row = fx.take_along_axis(x, pivot, axis=-2)  # the row with the largest first element changes places with the first
    places = fx.reshape(fx.arange(n), (n, 1))
    swapped = fx.where(fx.equal(places, pivot), fx.item(x, (..., slice(0, 1), slice(None))), x)
    head = fx.item(row, (..., 0, 0))
    rest = fx.item(swapped, (..., slice(1, None), slice(None)))
    safe = fx.where(fx.equal(head, fx.scalar(0, x)), fx.scalar(1, x), head)
    factors = fx.divide(fx.item(rest, (..., slice(0, 1))), fx.expand_dims(safe, axis=(-1, -2)))
    below = fx.item(fx.subtract(rest, fx.multiply(factors, row)), (..., slice(1, None)))
    sign = fx.where(fx.equal(fx.item(pivot, (..., 0, 0)), np.int64(0)), fx.scalar(1, x), fx.scalar(-1, x))
    return fx.multiply(fx.multiply(sign, head), _det(below, n - 1))


# ---- windows: what convolutions and pools have in common -----------------------------------------------------------


def window_pads(
    auto_pad: str, pads: Sequence[int] | None, space: Sequence[Any], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:  # fmt: skip
    """(before, after) of each spatial axis; that the windows fit becomes a fact of symbolic sizes."""
    padding = _window_pads(auto_pad, pads, space, kernel, strides, dilations)
    for d, k, dil, (low, high) in zip(space, kernel, dilations, padding, strict=True):
        at_least(d, (k - 1) * dil + 1 - low - high)
    return padding


def _window_pads(
    auto_pad: str, pads: Sequence[int] | None, space: Sequence[Any], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:  # fmt: skip
    n = len(kernel)
    if auto_pad in ("NOTSET", ""):
        flat = [0] * (2 * n) if pads is None else list(pads)
        if len(flat) != 2 * n:
            raise ValueError(f"{len(flat)} pads for {n} spatial axes")
        return list(zip(flat[:n], flat[n:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * n
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"there is no auto_pad {auto_pad!r}")
    out = []
    for d, k, s, dil in zip(space, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dil + 1
        if s == 1:
            total = reach - 1
        elif isinstance(d, int):
            total = max((-(-d // s) - 1) * s + reach - d, 0)
        else:
            raise error("FX1205", f"auto_pad {auto_pad} with the stride {s} needs a known size, not {d}")
        small = total // 2
        out.append((small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small))
    return out


def each(values: Ints | None, n: int, what: str) -> tuple[int, ...]:
    """One number for each spatial axis; 1 where none are given."""
    out = (1,) * n if values is None else tuple(values)
    if len(out) != n or min(out, default=1) < 1:
        raise ValueError(f"{what} {list(out)} for {n} spatial axes")
    return out


MAX_TAPS = 4096  # of a window whose elements are taken one by one


def taps_of(kernel: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The places in a window, each of which becomes some ops; FX1202 for too many."""
    if math.prod(kernel) > MAX_TAPS:
        raise error("FX1202", f"a window of {math.prod(kernel)} elements; at most {MAX_TAPS} are taken one by one")
    return np.ndindex(*kernel)


def fixed(sizes: Sequence[Any], what: str) -> tuple[int, ...]:
    """Sizes that must be plain numbers."""
    if any(not isinstance(d, int) for d in sizes):
        raise error(
            "FX1205", f"{what} has the shape [{', '.join(map(str, sizes))}], which must be known when compiling"
        )
    return tuple(sizes)


@op("Conv")
def conv(
    x: Any, w: Any, b: Any = None, *, auto_pad: Text = "NOTSET", dilations: Ints | None = None, group: Int = 1,
    kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    kernel = fixed(w.shape, "the weight")[2:]
    n = len(kernel)
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    padding = window_pads(auto_pad, pads, x.shape[2:], kernel, s, d)
    if n <= 3:
        return fx.nn.conv(x, w, b, stride=s, padding=padding, dilation=d, groups=group)
    raise error("FX1203", f"a convolution over {n} spatial axes; 1 to 3 are supported")


@op("ConvTranspose")
def conv_transpose(
    x: Any, w: Any, b: Any = None, *, auto_pad: Text = "NOTSET", dilations: Ints | None = None, group: Int = 1,
    kernel_shape: Ints | None = None, output_padding: Ints | None = None, output_shape: Ints | None = None,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    kernel = fixed(w.shape, "the weight")[2:]
    n = len(kernel)
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    extra = (0,) * n if output_padding is None else output_padding
    if auto_pad in ("NOTSET", "VALID", "") and output_shape is None:
        padding = window_pads(auto_pad, pads, x.shape[2:], kernel, s, d)
    else:
        padding = []
        for i in range(n):
            size = x.shape[2 + i]
            full = (size - 1) * s[i] + extra[i] + (kernel[i] - 1) * d[i] + 1
            wanted = output_shape[-n:][i] if output_shape is not None else size * s[i]
            total = full - wanted
            if not isinstance(total, int):
                raise error("FX1205", f"the padding that output_shape asks for depends on the size {size}")
            small = total // 2
            padding.append((small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small))
    low = [min(p[0], 0) for p in padding], [min(p[1], 0) for p in padding]
    positive = [(max(a, 0), max(e, 0)) for a, e in padding]
    y = fx.nn.conv_transpose(x, w, b, stride=s, padding=positive, output_padding=extra, dilation=d, groups=group)
    if any(low[0]) or any(low[1]):  # paddings below 0 add zeros to the result, or rather its bias
        fill = fx.scalar(0, y)
        y = fx.pad(y, [(0, 0), (0, 0), *[(-a, -e) for a, e in zip(*low, strict=True)]], constant_values=fill)
    return y


@op("DeformConv", since=19)
def deform_conv(
    x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None, *, dilations: Ints | None = None, group: Int = 1,
    kernel_shape: Ints | None = None, offset_group: Int = 1, pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    """Sampled bilinearly at offsets (Dai et al. 2017; Zhu et al. 2018 with a mask), then one product."""
    from fluxir.frontend.onnx.ops.image import sampled

    kernel = fixed(w.shape, "the weight")[2:]
    if len(kernel) != 2:
        raise error("FX1203", f"DeformConv over {len(kernel)} spatial axes; 2 are supported")
    s, d = each(strides, 2, "strides"), each(dilations, 2, "dilations")
    padding = window_pads("NOTSET", pads, x.shape[2:], kernel, s, d)
    n, c = x.shape[:2]
    kh, kw = kernel
    oh, ow = offset.shape[2:]
    taps = few(kh * kw, "a kernel")
    off = fx.reshape(offset, (n, offset_group, taps, 2, oh, ow))
    ky, kx = np.divmod(np.arange(taps), kw)
    base_y = (np.arange(1).reshape(1, 1) + ky * d[0] - padding[0][0]).reshape(1, 1, taps, 1, 1)
    base_x = (kx * d[1] - padding[1][0]).reshape(1, 1, taps, 1, 1)
    y0 = fx.reshape(fx.multiply(fx.arange(oh), np.int64(s[0])), (1, 1, 1, oh, 1))
    x0 = fx.reshape(fx.multiply(fx.arange(ow), np.int64(s[1])), (1, 1, 1, 1, ow))
    dt = fx.dtype(x)
    py = fx.add(fx.cast(fx.add(y0, base_y), dt), fx.item(off, (..., 0, slice(None), slice(None))))
    px = fx.add(fx.cast(fx.add(x0, base_x), dt), fx.item(off, (..., 1, slice(None), slice(None))))
    per = c // offset_group
    image = fx.reshape(x, (n * offset_group, per, x.shape[2], x.shape[3]))
    points = [fx.reshape(p, (n * offset_group, taps, oh, ow)) for p in (py, px)]
    values = sampled(image, points, "linear", "zeros")  # [n * groups, per, taps, oh, ow]
    if mask is not None:
        values = fx.multiply(values, fx.reshape(mask, (n * offset_group, 1, taps, oh, ow)))
    columns = fx.reshape(values, (n, group, c // group * taps, oh * ow))
    m = w.shape[0]
    weight = fx.reshape(w, (group, m // group, c // group * taps))
    y = fx.reshape(fx.matmul(weight, columns), (n, m, oh, ow))
    return y if b is None else fx.add(y, fx.reshape(b, (-1, 1, 1)))


@op("Col2Im", since=18)
def col2im(
    x: Any, image_shape: Known, block_shape: Known, *, dilations: Ints | None = None, pads: Ints | None = None,
    strides: Ints | None = None,
) -> Any:  # fmt: skip
    """The sum of windows at their places: the transposed convolution with a weight that picks each tap."""
    image, kernel = ints_of(image_shape, "the image's shape"), ints_of(block_shape, "the block's shape")
    n = len(kernel)
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    padding = window_pads("NOTSET", pads, image, kernel, s, d)
    taps = math.prod(kernel)
    few(taps * taps, "a block")
    places = [
        (i + a + e - ((k - 1) * g + 1)) // t + 1
        for i, k, t, g, (a, e) in zip(image, kernel, s, d, padding, strict=True)
    ]
    batch, c = x.shape[0], x.shape[1] // taps
    flat = fx.reshape(x, (batch * c, taps, *places))
    pick = np.eye(taps).reshape(taps, 1, *kernel).astype(fx.dtype(x).numpy)
    extra = [
        i - ((p - 1) * t - a - e + (k - 1) * g + 1)
        for i, p, t, g, k, (a, e) in zip(image, places, s, d, kernel, padding, strict=True)
    ]
    y = fx.nn.conv_transpose(flat, pick, stride=s, padding=padding, dilation=d, output_padding=extra)
    return fx.reshape(y, (batch, c, *image))


@op("CausalConvWithState", since=27)
def causal_conv_with_state(x: Any, w: Any, b: Any = None, state: Any = None, *, activation: Text = "none") -> Any:
    """A depthwise convolution over what came before, with the last inputs handed on."""
    from fluxir.frontend.onnx.graph import Results

    k = fixed(w.shape, "the weight")[-1]
    before = fx.full((x.shape[0], x.shape[1], k - 1), fx.scalar(0, x)) if state is None else state
    whole = fx.concat([before, x], axis=2)
    weight = fx.reshape(w, (w.shape[0], 1, k))
    y = fx.nn.conv(whole, weight, b, groups=w.shape[0])
    if activation in ("silu", "swish"):
        y = fx.nn.silu(y)
    elif activation != "none":
        raise ValueError(f"there is no activation {activation!r}")
    length = whole.shape[2]
    return Results((y, fx.item(whole, (..., slice(length - (k - 1), length)))))


# ---- integers ------------------------------------------------------------------------------------------------------


def less_zero(x: Any, zero: Any, *, rows: bool = False, channel_axis: int | None = None) -> Any:
    """Integers minus their zero point, i32."""
    wide = fx.cast(x, i32)
    if zero is None:
        return wide
    z = fx.cast(zero, i32)
    if fx.rank(z) == 1 and z.shape[0] != 1:
        if rows:
            z = fx.reshape(z, (-1, 1))
        elif channel_axis is not None:
            z = fx.reshape(z, (-1, *[1] * (fx.rank(x) - 1 - channel_axis)))
    elif fx.rank(z) == 1:
        z = fx.reshape(z, ())
    return fx.subtract(wide, z)
