"""Pooling, and normalisations over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.bounds import ceil_padding
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.ops.products import each, taps_of, window_pads
from fluxir.frontend.onnx.registry import Float, Int, Ints, Known, Text, op
from fluxir.frontend.onnx.values import ints_of
from fluxir.ir import dims
from fluxir.ir.dtypes import f32

# ---- pools ---------------------------------------------------------------------------------------------------------


def pool_pads(
    auto_pad: str, pads: Any, space: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    ceil_mode: int,
) -> tuple[list[tuple[int, int]], list[int]]:  # fmt: skip
    """(before, after) of each axis, and how much more there must be after it so that sizes round up (`ceil_mode`)."""
    padding = window_pads(auto_pad, pads, space, kernel, strides, dilations)
    more = [0] * len(kernel)
    if ceil_mode:
        for i, (d, k, s, g) in enumerate(zip(space, kernel, strides, dilations, strict=True)):
            more[i] = ceil_padding(d, (k - 1) * g + 1, s, *padding[i])
    return padding, more


@op("MaxPool", since=8)
def max_pool(
    cx: Context, x: Any, *, auto_pad: Text = "NOTSET", ceil_mode: Int = 0, dilations: Ints | None = None, kernel_shape: Ints,
    pads: Ints | None = None, storage_order: Int = 0, strides: Ints | None = None,
) -> Any:  # fmt: skip
    n = len(kernel_shape)
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    padding, more = pool_pads(auto_pad, pads, x.shape[2:], kernel_shape, s, d, ceil_mode)
    padding = [(a, b + m) for (a, b), m in zip(padding, more, strict=True)]
    y = fx.nn.max_pool(x, kernel_shape, stride=s, padding=padding, dilation=d)
    if not cx.wants(1):
        return y
    return Results((y, _max_places(x, y, kernel_shape, s, d, padding, storage_order)))


@op("MaxPool")
def max_pool_old(
    cx: Context,
    x: Any,
    *,
    auto_pad: Text = "NOTSET",
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Any:
    return max_pool(cx, x, auto_pad=auto_pad, kernel_shape=kernel_shape, pads=pads, strides=strides)


def _max_places(x: Any, y: Any, kernel: Any, strides: Any, dilations: Any, padding: Any, storage_order: int) -> Any:
    """Where the first largest element of each window lies in the whole tensor."""
    n = len(kernel)
    space = x.shape[2:]
    strides_of = [dims.product(space[i + 1 :]) for i in range(n)] if not storage_order else [
        dims.product(space[:i]) for i in range(n)
    ]  # fmt: skip
    best, where = None, None
    lowest = np.asarray(-np.inf if fx.dtype(x).is_float else fx.dtype(x).limits[0]).astype(fx.dtype(x).numpy)
    wide = fx.pad(x, [(0, 0), (0, 0), *padding], constant_values=lowest)
    for tap in taps_of(kernel):
        key: list[Any] = [slice(None), slice(None)]
        place: Any = np.int64(0)
        for i in range(n):
            first = tap[i] * dilations[i]
            key.append(slice(first, first + (y.shape[2 + i] - 1) * strides[i] + 1, strides[i]))
            along = fx.add(
                fx.multiply(fx.arange(y.shape[2 + i]), np.int64(strides[i])), np.int64(first - padding[i][0])
            )
            unit = strides_of[i]
            along = fx.multiply(along, np.int64(unit) if isinstance(unit, int) else fx.asarray(unit))
            place = fx.add(place, fx.reshape(along, (-1, *[1] * (n - 1 - i))))
        value = fx.item(wide, tuple(key))
        place = fx.broadcast_to(place, value.shape)
        if best is None:
            best, where = value, place
        else:
            larger = fx.greater(value, best)
            best, where = fx.where(larger, value, best), fx.where(larger, place, where)
    image = fx.reshape(fx.arange(x.shape[0] * x.shape[1]), (x.shape[0], x.shape[1], *[1] * n))
    area = dims.product(space)
    return fx.add(where, fx.multiply(image, np.int64(area) if isinstance(area, int) else fx.asarray(area)))


@op("AveragePool", since=7)
def average_pool(
    x: Any, *, auto_pad: Text = "NOTSET", ceil_mode: Int = 0, count_include_pad: Int = 0, dilations: Ints | None = None,
    kernel_shape: Ints, pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    n = len(kernel_shape)
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    padding, more = pool_pads(auto_pad, pads, x.shape[2:], kernel_shape, s, d, ceil_mode)
    total, count = _window_sums(x, kernel_shape, s, d, padding, more, bool(count_include_pad), lambda y: y)
    if count is None:
        return fx.multiply(total, fx.scalar(1 / math.prod(kernel_shape), x))
    return fx.divide(total, count)


@op("AveragePool")
def average_pool_old(
    x: Any, *, auto_pad: Text = "NOTSET", kernel_shape: Ints, pads: Ints | None = None, strides: Ints | None = None
) -> Any:
    return average_pool(x, auto_pad=auto_pad, kernel_shape=kernel_shape, pads=pads, strides=strides)


def _window_sums(
    x: Any, kernel: Any, s: Any, d: Any, padding: Any, more: Any, include: bool, f: Any
) -> tuple[Any, Any]:
    """Sums over windows of f(x), and how many elements each has (None: as many as the window)."""
    wide = [(a, b + m) for (a, b), m in zip(padding, more, strict=True)]
    total = fx.nn.sum_pool(f(x), kernel, stride=s, padding=wide, dilation=d)
    if not any(m for m in more) and (include or not any(a or b for a, b in padding)):
        return total, None
    ones = fx.full((1, 1, *x.shape[2:]), fx.scalar(1, x))
    if include:
        ones = fx.pad(ones, [(0, 0), (0, 0), *padding], constant_values=fx.scalar(1, x))
        wide = [(0, m) for m in more]
    return total, fx.nn.sum_pool(ones, kernel, stride=s, padding=wide, dilation=d)


@op("LpPool", since=2)
def lp_pool(
    x: Any, *, auto_pad: Text = "NOTSET", ceil_mode: Int = 0, dilations: Ints | None = None, kernel_shape: Ints, p: Int = 2,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    n = len(kernel_shape)
    s, d = each(strides, n, "strides"), each(dilations, n, "dilations")
    padding, more = pool_pads(auto_pad, pads, x.shape[2:], kernel_shape, s, d, ceil_mode)
    total, _ = _window_sums(x, kernel_shape, s, d, padding, more, True, lambda y: _power(fx.abs(y), p))
    return _root(total, p)


def _power(x: Any, p: int) -> Any:
    return x if p == 1 else fx.multiply(x, x) if p == 2 else fx.pow(x, fx.scalar(p, x))


def _root(x: Any, p: int) -> Any:
    return x if p == 1 else fx.sqrt(x) if p == 2 else fx.pow(x, fx.scalar(1 / p, x))


def _global(name: str, f: Any) -> None:
    op(name)(lambda x: f(x, axis=tuple(range(2, fx.rank(x))), keepdims=True))


_global("GlobalAveragePool", fx.mean)
_global("GlobalMaxPool", fx.max)


@op("GlobalLpPool")
def global_lp_pool(x: Any, *, p: Int = 2) -> Any:
    return _root(fx.sum(_power(fx.abs(x), p), axis=tuple(range(2, fx.rank(x))), keepdims=True), p)


@op("MaxUnpool", since=9)
def max_unpool(
    x: Any, indices: Any, output_shape: Known = None, *, kernel_shape: Ints, pads: Ints | None = None,
    strides: Ints | None = None,
) -> Any:  # fmt: skip
    n = len(kernel_shape)
    s = each(strides, n, "strides")
    flat = [0] * (2 * n) if pads is None else list(pads)
    natural = tuple((x.shape[2 + i] - 1) * s[i] + kernel_shape[i] - flat[i] - flat[n + i] for i in range(n))
    natural = (*x.shape[:2], *natural)
    shape = natural if output_shape is None else ints_of(output_shape, "the output's shape")
    empty = fx.full((dims.product(natural),), fx.scalar(0, x))
    y = fx.reshape(fx.put(empty, (fx.reshape(indices, (-1,)),), fx.reshape(x, (-1,)), "set"), natural)
    return y if shape == natural else fx.pad(y, [(0, b - a) for a, b in zip(natural, shape, strict=True)])


# ---- normalisations ------------------------------------------------------------------------------------------------


def _over_channels(v: Any, x: Any) -> Any:
    return fx.reshape(v, (-1, *[1] * (fx.rank(x) - 2)))


@op("BatchNormalization", since=7)
def batch_normalization(
    cx: Context, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: Float = 1e-5, momentum: Float = 0.9,
    training_mode: Int = 0, spatial: Int = 1,
) -> Any:  # fmt: skip
    if training_mode:
        axes = (0, *range(2, fx.rank(x)))
        now = fx.mean(x, axis=axes)
        spread = fx.mean(fx.square(fx.subtract(x, _over_channels(now, x))), axis=axes)
        running = [
            fx.add(
                fx.multiply(old, fx.scalar(momentum, old)),
                fx.multiply(fx.cast(new, fx.dtype(old)), fx.scalar(1 - momentum, old)),
            )
            for old, new in ((mean, now), (var, spread))
        ]
        mean, var = now, spread
    factor = fx.multiply(scale, fx.rsqrt(fx.add(fx.cast(var, fx.dtype(scale)), fx.scalar(epsilon, scale))))
    shift = fx.subtract(bias, fx.multiply(fx.cast(mean, fx.dtype(scale)), factor))
    y = fx.add(
        fx.multiply(x, _over_channels(fx.cast(factor, fx.dtype(x)), x)), _over_channels(fx.cast(shift, fx.dtype(x)), x)
    )
    return Results((y, *running)) if training_mode else Results((y, mean, var, mean, var)[: max(cx.outputs, 1)])


@op("BatchNormalization")
def batch_normalization_old(
    cx: Context, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: Float = 1e-5, is_test: Int = 0,
    momentum: Float = 0.9, spatial: Int = 1,
) -> Any:  # fmt: skip
    return batch_normalization(cx, x, scale, bias, mean, var, epsilon=epsilon)


@op("InstanceNormalization")
def instance_normalization(x: Any, scale: Any, bias: Any, *, epsilon: Float = 1e-5) -> Any:
    axes = tuple(range(2, fx.rank(x)))
    centred = fx.subtract(x, fx.mean(x, axis=axes, keepdims=True))
    var = fx.mean(fx.square(centred), axis=axes, keepdims=True)
    y = fx.multiply(centred, fx.rsqrt(fx.add(var, fx.scalar(epsilon, x))))
    return fx.add(fx.multiply(y, _over_channels(scale, x)), _over_channels(bias, x))


@op("GroupNormalization", since=21)
def group_normalization(
    x: Any, scale: Any, bias: Any, *, epsilon: Float = 1e-5, num_groups: Int, stash_type: Int = 1
) -> Any:
    d = fx.dtype(x)
    wide = fx.cast(x, f32) if stash_type == 1 and d.bits < 32 else x
    grouped = fx.reshape(wide, (x.shape[0], num_groups, -1))
    centred = fx.subtract(grouped, fx.mean(grouped, axis=-1, keepdims=True))
    var = fx.mean(fx.square(centred), axis=-1, keepdims=True)
    y = fx.multiply(centred, fx.rsqrt(fx.add(var, fx.scalar(epsilon, wide))))
    y = fx.cast(fx.reshape(y, x.shape), d)
    return fx.add(fx.multiply(y, _over_channels(scale, x)), _over_channels(bias, x))


@op("GroupNormalization", since=18)
def group_normalization_18(x: Any, scale: Any, bias: Any, *, epsilon: Float = 1e-5, num_groups: Int) -> Any:
    each_group = x.shape[1] // num_groups
    wide = [fx.repeat(v, each_group) for v in (scale, bias)]
    return group_normalization(x, *wide, epsilon=epsilon, num_groups=num_groups)


@op("LayerNormalization", since=17)
def layer_normalization(
    cx: Context, x: Any, scale: Any, bias: Any = None, *, axis: Int = -1, epsilon: Float = 1e-5, stash_type: Int = 1
) -> Any:
    a = fx.axis_of(axis, fx.rank(x))
    axes = tuple(range(a, fx.rank(x)))
    d = fx.dtype(x)
    wide = fx.cast(x, f32) if stash_type == 1 and d.bits < 32 else x
    if (
        not cx.wants(1)
        and not cx.wants(2)
        and d.bits >= 32
        and fx.rank(scale) == len(axes)
        and (bias is None or bias.shape == scale.shape)
    ):
        return fx.nn.layer_norm(x, scale, bias, axis=axes, eps=epsilon)
    mean = fx.mean(wide, axis=axes, keepdims=True)
    centred = fx.subtract(wide, mean)
    inverse = fx.rsqrt(fx.add(fx.mean(fx.square(centred), axis=axes, keepdims=True), fx.scalar(epsilon, wide)))
    y = fx.multiply(fx.cast(fx.multiply(centred, inverse), d), scale)
    return Results((y if bias is None else fx.add(y, bias), mean, inverse))


@op("RMSNormalization", since=23)
def rms_normalization(x: Any, scale: Any, *, axis: Int = -1, epsilon: Float = 1e-5, stash_type: Int = 1) -> Any:
    a = fx.axis_of(axis, fx.rank(x))
    axes = tuple(range(a, fx.rank(x)))
    d = fx.dtype(x)
    wide = fx.cast(x, f32) if stash_type == 1 and d.bits < 32 else x
    inverse = fx.rsqrt(fx.add(fx.mean(fx.square(wide), axis=axes, keepdims=True), fx.scalar(epsilon, wide)))
    return fx.multiply(fx.cast(fx.multiply(wide, inverse), d), scale)


@op("MaxRoiPool")
def max_roi_pool(x: Any, rois: Any, *, pooled_shape: Ints, spatial_scale: Float = 1.0) -> Any:
    """The largest element in each cell of regions (image, x1, y1, x2, y2), both ends inside (Girshick 2015); 0 where a cell
    has none. Two passes, along x and then along y, since the cells form a grid."""
    image = fx.take(x, fx.cast(fx.item(rois, (slice(None), 0)), "i64"), axis=0)  # [regions, channels, height, width]
    corners = fx.floor(fx.add(fx.multiply(rois, fx.scalar(spatial_scale, rois)), fx.scalar(0.5, rois)))
    low = fx.scalar(-np.inf, x)
    across = fx.expand_dims(_cells(corners, 1, pooled_shape[1], x.shape[3]), axis=(1, 2))
    rows = fx.max(fx.where(across, fx.expand_dims(image, axis=3), low), axis=4)  # [regions, channels, height, cells]
    down = fx.expand_dims(_cells(corners, 2, pooled_shape[0], x.shape[2]), axis=(1, 3))
    y = fx.max(fx.where(down, fx.expand_dims(fx.transpose(rows, (0, 1, 3, 2)), axis=2), low), axis=4)
    return fx.where(fx.isinf(y), fx.scalar(0, x), y)


def _cells(corners: Any, axis: int, count: int, size: Any) -> Any:
    """Whether each place of an axis lies in each cell of each region: bool[regions, count, size]."""
    first, last = (fx.reshape(fx.item(corners, (slice(None), k)), (-1, 1, 1)) for k in (axis, axis + 2))
    one = fx.scalar(1, corners)
    cell = fx.divide(fx.maximum(fx.add(fx.subtract(last, first), one), one), fx.scalar(count, corners))
    k = fx.cast(fx.reshape(fx.arange(count), (1, count, 1)), fx.dtype(corners))
    place = fx.cast(fx.reshape(fx.arange(size), (1, 1, size)), fx.dtype(corners))
    begin = fx.add(fx.floor(fx.multiply(k, cell)), first)
    end = fx.add(fx.ceil(fx.multiply(fx.add(k, one), cell)), first)
    return fx.logical_and(fx.greater_equal(place, begin), fx.less(place, end))


@op("LRN")
def lrn(x: Any, *, alpha: Float = 1e-4, beta: Float = 0.75, bias: Float = 1.0, size: Int) -> Any:
    """Local response normalisation across channels (Krizhevsky et al. 2012)."""
    squares = fx.square(x)
    low = (size - 1) // 2
    flat = fx.reshape(squares, (x.shape[0], 1, x.shape[1], -1))
    total = fx.nn.sum_pool(flat, (size, 1), stride=(1, 1), padding=((low, size - 1 - low), (0, 0)))
    total = fx.reshape(total, x.shape)
    scale = fx.add(fx.multiply(total, fx.scalar(alpha / size, x)), fx.scalar(bias, x))
    return fx.divide(x, fx.pow(scale, fx.scalar(beta, x)))


@op("Dropout", since=12)
def dropout(cx: Context, x: Any, ratio: Known = None, training: Known = None, *, seed: Int | None = None) -> Any:
    from fluxir.frontend.onnx.ops.random import dropped
    from fluxir.frontend.onnx.values import scalar_of

    rate = 0.5 if ratio is None else float(scalar_of(ratio, "the ratio"))
    if training is None or not scalar_of(training, "training_mode") or rate == 0:
        return Results((fx.asarray(x), fx.full(x.shape, np.asarray(True))))
    return dropped(cx, x, rate, seed)


@op("Dropout")
def dropout_old(x: Any, *, ratio: Float = 0.5, is_test: Int = 0) -> Any:
    return Results((fx.asarray(x), fx.full(x.shape, np.asarray(True))))
