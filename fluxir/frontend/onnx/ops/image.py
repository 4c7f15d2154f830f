"""Sampling: resizing, grids of points, regions of interest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import few
from fluxir.frontend.onnx.registry import Float, Floats, Int, Ints, Known, Text, op
from fluxir.frontend.onnx.values import dims_of, floats_of
from fluxir.ir import dims
from fluxir.ir.dtypes import f32

# ---- resizing ------------------------------------------------------------------------------------------------------


@op("Resize", since=11)
def resize(
    x: Any, roi: Known = None, scales: Known = None, sizes: Known = None, *, antialias: Int = 0, axes: Ints | None = None,
    coordinate_transformation_mode: Text = "half_pixel", cubic_coeff_a: Float = -0.75, exclude_outside: Int = 0,
    extrapolation_value: Float = 0.0, keep_aspect_ratio_policy: Text = "stretch", mode: Text = "nearest",
    nearest_mode: Text = "round_prefer_floor",
) -> Any:  # fmt: skip
    n = fx.rank(x)
    over = tuple(range(n)) if axes is None else tuple(fx.axis_of(a, n) for a in axes)
    by = None if scales is None or scales.shape == (0,) else floats_of(scales, "the scales")
    to = None if sizes is None or sizes.shape == (0,) else dims_of(sizes, "the sizes")
    if (by is None) == (to is None):
        raise ValueError("one of scales and sizes must be given")
    plan = _plan([x.shape[a] for a in over], by, to, keep_aspect_ratio_policy)
    box = None if roi is None or roi.shape == (0,) else floats_of(roi, "the region of interest")
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    outside: Any = None
    for i, (a, (length, scale)) in enumerate(zip(over, plan, strict=True)):
        edges = (box[i], box[i + len(over)]) if box is not None and crop else (0.0, 1.0)
        if length == x.shape[a] and scale == 1 and edges == (0.0, 1.0):
            continue
        at = _places(x.shape[a], length, scale, coordinate_transformation_mode, edges)
        if crop:
            out = fx.logical_or(fx.less(at, np.float32(0)), fx.greater(at, _float(x.shape[a] - 1)))
            out = fx.reshape(out, (-1, *[1] * (n - 1 - a)))
            outside = out if outside is None else fx.logical_or(outside, out)
        x = _resampled(
            x, a, at, length, scale, mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias)
        )
    return x if outside is None else fx.where(outside, fx.scalar(extrapolation_value, x), x)


def _plan(space: Sequence[Any], by: Any, to: Any, policy: str) -> list[tuple[Any, Any]]:
    """(new size, scale) of each axis; the scale is None where it is the quotient of symbolic sizes."""
    if by is not None:
        if len(by) != len(space):
            raise ValueError(f"{len(by)} scales for {len(space)} axes")
        return [(_scaled(d, s), s) for d, s in zip(space, by, strict=True)]
    if len(to) != len(space):
        raise ValueError(f"{len(to)} sizes for {len(space)} axes")
    if policy != "stretch":
        if any(not isinstance(d, int) for d in (*space, *to)):
            raise error("FX1205", f"{policy} needs sizes that are known when compiling")
        choose = min if policy == "not_larger" else max
        scale = choose(t / d for t, d in zip(to, space, strict=True))
        return [(math.floor(scale * d + 0.5), scale) for d in space]
    return [
        (t, t / d if isinstance(t, int) and isinstance(d, int) else 1 if t == d else None)
        for t, d in zip(to, space, strict=True)
    ]


def _scaled(d: Any, scale: float) -> Any:
    """floor(d * scale)."""
    if isinstance(d, int):
        return math.floor(d * scale)
    whole = float(scale)
    if whole.is_integer():
        return d * int(whole)
    inverse = 1 / whole
    if abs(inverse - round(inverse)) < 1e-6:
        return dims.floordiv(d, round(inverse))
    raise error("FX1205", f"the scale {scale} of the size {d} gives no whole size: fix the size with --dim")


def _float(d: Any) -> Any:
    return np.float32(d) if isinstance(d, int) else fx.cast(fx.asarray(d), f32)


def _places(size: Any, length: Any, scale: Any, mode: str, box: tuple[float, float]) -> Any:
    """For each new place, where it lies on the old axis, f32."""
    if isinstance(size, int) and isinstance(length, int) and scale is not None:
        return _places_now(size, length, scale, mode, box).astype(np.float32)
    k = fx.cast(fx.arange(length), f32)
    ratio = np.float32(1 / scale) if scale is not None else fx.divide(_float(size), _float(length))
    half = np.float32(0.5)
    match mode:
        case "half_pixel" | "half_pixel_symmetric" | "pytorch_half_pixel":
            return fx.subtract(fx.multiply(fx.add(k, half), ratio), half)
        case "asymmetric":
            return fx.multiply(k, ratio)
        case "align_corners":
            return fx.multiply(k, fx.divide(_float(size - 1), _float(length - 1)))
    raise error("FX1205", f"{mode} needs sizes that are known when compiling, not {size} and {length}")


def _places_now(size: int, length: int, scale: float, mode: str, box: tuple[float, float]) -> Any:
    k = np.arange(few(length, "an axis to resize"), dtype=np.float64)
    wide = size * scale  # what the scale says, which need not be whole
    match mode:
        case "half_pixel":
            return (k + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            adjust = length / wide
            centre = size / 2
            return centre * (1 - adjust) + (k + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (k + 0.5) / scale - 0.5 if length > 1 else np.zeros_like(k)
        case "asymmetric" | "tf_half_pixel_for_nn":
            return (k + 0.5) / scale if mode != "asymmetric" else k / scale
        case "align_corners":
            return k * (size - 1) / (wide - 1) if wide != 1 else np.zeros_like(k)
        case "tf_crop_and_resize":
            low, high = box
            if wide == 1:
                return np.full_like(k, (high - low) * (size - 1) / 2)
            return low * (size - 1) + k * (high - low) * (size - 1) / (wide - 1)
    raise ValueError(f"there is no coordinate_transformation_mode {mode!r}")


def _resampled(
    x: Any,
    axis: int,
    at: Any,
    length: Any,
    scale: Any,
    mode: str,
    nearest: str,
    a: float,
    exclude: bool,
    antialias: bool,
) -> Any:
    n = x.shape[axis]
    if mode == "nearest":
        return fx.take(x, _clipped(_nearest(at, nearest), n), axis=axis)
    if mode not in ("linear", "cubic"):
        raise ValueError(f"there is no mode {mode!r}")
    if antialias and scale is None:
        raise error("FX1205", "antialias needs sizes that are known when compiling")
    if isinstance(at, np.ndarray) and isinstance(n, int):
        return _weighted_now(x, axis, at, n, scale, mode, a, exclude, antialias)
    below = fx.floor(at)
    t = fx.subtract(at, below)
    first = fx.cast(below, "i64")
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    total: Any = None
    norm: Any = None
    for o in offsets:
        w = (
            _linear(fx.abs(fx.subtract(t, np.float32(o))))
            if mode == "linear"
            else _cubic(fx.abs(fx.subtract(t, np.float32(o))), a)
        )
        i = fx.add(first, np.int64(o))
        if exclude:
            inside = fx.logical_and(fx.greater_equal(i, np.int64(0)), fx.less(i, fx.asarray(n)))
            w = fx.where(inside, w, np.float32(0))
            norm = w if norm is None else fx.add(norm, w)
        shaped = fx.reshape(fx.cast(w, fx.dtype(x)), (-1, *[1] * (fx.rank(x) - 1 - axis)))
        part = fx.multiply(fx.take(x, _clipped(i, n), axis=axis), shaped)
        total = part if total is None else fx.add(total, part)
    if exclude:
        total = fx.divide(total, fx.reshape(fx.cast(norm, fx.dtype(x)), (-1, *[1] * (fx.rank(x) - 1 - axis))))
    return total


def _linear(distance: Any) -> Any:
    return fx.maximum(fx.subtract(fx.scalar(1, distance), distance), fx.scalar(0, distance))


def _cubic(d: Any, a: float) -> Any:
    """The cubic convolution kernel (Keys 1981) of distances."""

    def one(v: float) -> Any:
        return fx.scalar(v, d)

    near = fx.add(fx.multiply(fx.multiply(fx.subtract(fx.multiply(d, one(a + 2)), one(a + 3)), d), d), one(1))
    far = fx.multiply(
        fx.subtract(fx.multiply(fx.add(fx.multiply(fx.subtract(d, one(5)), d), one(8)), d), one(4)), one(a)
    )
    return fx.where(fx.less_equal(d, one(1)), near, fx.where(fx.less(d, one(2)), far, one(0)))


def _weighted_now(
    x: Any, axis: int, at: Any, n: int, scale: float, mode: str, a: float, exclude: bool, antialias: bool
) -> Any:
    """Weights and places are known: a few gathers, or (when shrinking with many taps) one product with a matrix."""
    stretch = min(scale, 1.0) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) / stretch
    at = at.astype(np.float64)
    low = (
        np.ceil(at - reach).astype(np.int64)
        if antialias
        else np.floor(at).astype(np.int64) - (0 if mode == "linear" else 1)
    )
    taps = (2 if mode == "linear" else 4) if not antialias else int(2 * math.ceil(reach)) + 1
    few(len(at) * taps, "resizing")
    places = low[:, None] + np.arange(taps)
    distance = np.abs((places - at[:, None]) * stretch)
    if mode == "linear":
        weights = np.maximum(1 - distance, 0)
    else:
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    if exclude:
        weights = np.where((places >= 0) & (places < n), weights, 0)
    if exclude or antialias:
        weights = weights / weights.sum(1, keepdims=True)
    places = np.clip(places, 0, n - 1)
    d = fx.dtype(x)
    if taps > 8 and d.is_float:
        few(n * len(at), "resizing")
        matrix = np.zeros((n, len(at)))
        np.add.at(matrix, (places, np.arange(len(at))[:, None]), weights)
        return fx.moveaxis(fx.matmul(fx.moveaxis(x, axis, -1), matrix.astype(d.numpy)), -1, axis)
    wide = x if d.is_float else fx.cast(x, f32)
    total: Any = None
    for k in range(taps):
        w = weights[:, k].astype(fx.dtype(wide).numpy).reshape(-1, *[1] * (fx.rank(x) - 1 - axis))
        part = fx.multiply(fx.take(wide, places[:, k], axis=axis), w)
        total = part if total is None else fx.add(total, part)
    return total if d.is_float else fx.cast(fx.round(total), d)


def _nearest(at: Any, how: str) -> Any:
    half = np.float32(0.5)
    match how:
        case "round_prefer_floor":
            y = fx.ceil(fx.subtract(at, half))
        case "round_prefer_ceil":
            y = fx.floor(fx.add(at, half))
        case "floor":
            y = fx.floor(at)
        case "ceil":
            y = fx.ceil(at)
        case _:
            raise ValueError(f"there is no nearest_mode {how!r}")
    return fx.cast(y, "i64")


def _clipped(i: Any, n: Any) -> Any:
    last = np.int64(n - 1) if isinstance(n, int) else fx.asarray(n - 1)
    return fx.minimum(fx.maximum(i, np.int64(0)), last)


@op("Resize", since=10)
def resize_10(x: Any, scales: Known, *, mode: Text = "nearest") -> Any:
    return resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@op("Upsample", since=9)
def upsample(x: Any, scales: Known, *, mode: Text = "nearest") -> Any:
    return resize_10(x, scales, mode=mode)


@op("Upsample", since=7)
def upsample_7(x: Any, *, scales: Floats, mode: Text = "nearest") -> Any:
    return resize_10(x, np.asarray(scales, np.float32), mode=mode)


# ---- points --------------------------------------------------------------------------------------------------------


def sampled(image: Any, points: Sequence[Any], mode: str, padding: str, align: bool = False, a: float = -0.75) -> Any:
    """image [N, C, space...] at points, one [N, places...] for each spatial axis in pixels -> [N, C, places...].

    `mode` is nearest, linear or cubic; outside the image `padding` says zeros, border or reflection.
    """
    n = len(points)
    space = image.shape[2:]
    if padding == "reflection":
        points = [_reflect(p, d, align) for p, d in zip(points, space, strict=True)]
    if padding == "border":
        points = [
            fx.clip(p, fx.scalar(0, p), fx.cast(fx.asarray(d - 1), fx.dtype(p)))
            for p, d in zip(points, space, strict=True)
        ]
    if mode == "nearest":
        return _at(image, [fx.cast(fx.round(p), "i64") for p in points], padding)
    below = [fx.floor(p) for p in points]
    t = [fx.subtract(p, b) for p, b in zip(points, below, strict=True)]
    first = [fx.cast(b, "i64") for b in below]
    total: Any = None
    for offset in itertools.product((0, 1) if mode == "linear" else (-1, 0, 1, 2), repeat=n):
        weight: Any = None
        for k, o in enumerate(offset):
            distance = fx.abs(fx.subtract(t[k], fx.scalar(o, t[k])))
            w = _linear(distance) if mode == "linear" else _cubic(distance, a)
            weight = w if weight is None else fx.multiply(weight, w)
        value = _at(image, [fx.add(f, np.int64(o)) for f, o in zip(first, offset, strict=True)], padding)
        part = fx.multiply(value, fx.expand_dims(fx.cast(weight, fx.dtype(image)), axis=1))
        total = part if total is None else fx.add(total, part)
    return total


def _at(image: Any, places: Sequence[Any], padding: str) -> Any:
    """image [N, C, space...] at whole places [N, P...]: [N, C, P...]; outside it is 0, or (not "zeros") the edge."""
    space = image.shape[2:]
    inside: Any = None
    flat: Any = None
    for p, d in zip(places, space, strict=True):
        ok = fx.logical_and(fx.greater_equal(p, np.int64(0)), fx.less(p, fx.asarray(d)))
        inside = ok if inside is None else fx.logical_and(inside, ok)
        p = _clipped(p, d)
        flat = p if flat is None else fx.add(fx.multiply(flat, fx.asarray(d)), p)
    lead = image.shape[:2]
    pixels = fx.reshape(image, (*lead, dims.product(space)))
    shape = flat.shape
    index = fx.reshape(flat, (shape[0], 1, dims.product(shape[1:])))
    value = fx.reshape(fx.take_along_axis(pixels, index, axis=2), (*lead, *shape[1:]))
    if padding != "zeros":
        return value
    return fx.where(fx.expand_dims(inside, axis=1), value, fx.scalar(0, image))


def _reflect(p: Any, size: Any, align: bool) -> Any:
    """A coordinate mirrored at the first and last pixel (`align`) or at their outer edges until it lies inside."""
    d = fx.dtype(p)
    low = np.asarray(0.0 if align else -0.5).astype(d.numpy)
    span = fx.cast(fx.asarray(size - 1 if align else size), d)
    span = fx.maximum(span, fx.scalar(1e-30, p))
    u = fx.abs(fx.subtract(p, low))
    turns = fx.floor(fx.divide(u, span))
    rest = fx.subtract(u, fx.multiply(turns, span))
    odd = fx.equal(fx.remainder(turns, fx.scalar(2, p)), fx.scalar(1, p))
    y = fx.add(fx.where(odd, fx.subtract(span, rest), rest), low)
    return fx.clip(y, fx.scalar(0, p), fx.cast(fx.asarray(size - 1), d)) if not align else y


@op("GridSample", since=16)
def grid_sample(
    x: Any, grid: Any, *, align_corners: Int = 0, mode: Text = "linear", padding_mode: Text = "zeros"
) -> Any:
    n = fx.rank(x) - 2
    points = []
    for k in range(n):  # the grid has (x, y, z), the axes are (z, y, x)
        g = fx.item(grid, (..., n - 1 - k))
        size = fx.cast(fx.asarray(x.shape[2 + k]), fx.dtype(grid))
        one, half = fx.scalar(1, grid), fx.scalar(0.5, grid)
        if align_corners:
            p = fx.multiply(fx.multiply(fx.add(g, one), half), fx.subtract(size, one))
        else:
            p = fx.multiply(fx.subtract(fx.multiply(fx.add(g, one), size), one), half)
        points.append(p)
    if len(points) > 3:
        raise error("FX1203", f"GridSample over {len(points)} axes", help="up to 3 are supported")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if mode == "cubic" and padding_mode != "zeros":
        return _cubic_padded(x, points, padding_mode, bool(align_corners))
    return sampled(x, points, mode, padding_mode, bool(align_corners))


def _cubic_padded(x: Any, points: Sequence[Any], padding: str, align: bool) -> Any:
    """Cubic sampling where each of the neighbours, not the point, is brought inside the image."""
    below = [fx.floor(p) for p in points]
    t = [fx.subtract(p, b) for p, b in zip(points, below, strict=True)]
    total: Any = None
    for offset in itertools.product((-1, 0, 1, 2), repeat=len(points)):
        weight: Any = None
        at = []
        for k, o in enumerate(offset):
            w = _cubic(fx.abs(fx.subtract(t[k], fx.scalar(o, t[k]))), -0.75)
            weight = w if weight is None else fx.multiply(weight, w)
            p = fx.add(below[k], fx.scalar(o, below[k]))
            at.append(fx.cast(_reflect(p, x.shape[2 + k], align) if padding == "reflection" else p, "i64"))
        part = fx.multiply(_at(x, at, padding), fx.expand_dims(fx.cast(weight, fx.dtype(x)), axis=1))
        total = part if total is None else fx.add(total, part)
    return total


@op("AffineGrid", since=20)
def affine_grid(theta: Any, size: Known, *, align_corners: Int = 0) -> Any:
    shape = dims_of(size, "the size")
    space = shape[2:]
    d = fx.dtype(theta)
    axes = []
    for k in space:
        i = fx.cast(fx.arange(k), d)
        if align_corners:
            step = fx.divide(fx.scalar(2, theta), fx.cast(fx.asarray(k - 1), d)) if k != 1 else fx.scalar(0, theta)
            axes.append(fx.subtract(fx.multiply(i, step), fx.scalar(1, theta)))
        else:
            step = fx.divide(fx.scalar(2, theta), fx.cast(fx.asarray(k), d))
            axes.append(fx.subtract(fx.multiply(fx.add(i, fx.scalar(0.5, theta)), step), fx.scalar(1, theta)))
    n = len(space)
    columns = [
        fx.broadcast_to(fx.reshape(axes[k], tuple(space[k] if j == k else 1 for j in range(n))), space)
        for k in reversed(range(n))
    ]
    ones = fx.full(space, fx.scalar(1, theta))
    base = fx.reshape(fx.stack([*columns, ones], axis=-1), (1, dims.product(space), n + 1))
    return fx.reshape(fx.matmul(base, fx.transpose(theta, (0, 2, 1))), (shape[0], *space, n))


# ---- regions -------------------------------------------------------------------------------------------------------


@op("RoiAlign", since=10)
def roi_align(
    x: Any, rois: Any, batch: Any, *, coordinate_transformation_mode: Text = "half_pixel", mode: Text = "avg",
    output_height: Int = 1, output_width: Int = 1, sampling_ratio: Int = 0, spatial_scale: Float = 1.0,
) -> Any:  # fmt: skip
    """Regions of interest averaged from bilinear samples (He et al. 2017)."""
    half = coordinate_transformation_mode == "half_pixel"
    h, w = x.shape[2], x.shape[3]
    d = fx.dtype(x)
    if sampling_ratio <= 0 and not (isinstance(h, int) and isinstance(w, int)):
        raise error("FX1205", "RoiAlign with sampling_ratio 0 needs an image of known size")
    image = fx.take(x, batch, axis=0)
    shift = fx.scalar(0.5 if half else 0.0, rois)
    x1, y1, x2, y2 = (
        fx.subtract(fx.multiply(fx.item(rois, (slice(None), k)), fx.scalar(spatial_scale, rois)), shift)
        for k in range(4)
    )
    one = fx.scalar(1, rois)
    height, width = fx.subtract(y2, y1), fx.subtract(x2, x1)
    if not half:
        height, width = fx.maximum(height, one), fx.maximum(width, one)
    ys, wy = _samples(y1, height, output_height, sampling_ratio, h)
    xs, wx = _samples(x1, width, output_width, sampling_ratio, w)
    n = rois.shape[0]
    sy, sx = ys.shape[2], xs.shape[2]
    py = fx.broadcast_to(fx.reshape(ys, (n, output_height, sy, 1, 1)), (n, output_height, sy, output_width, sx))
    px = fx.broadcast_to(fx.reshape(xs, (n, 1, 1, output_width, sx)), (n, output_height, sy, output_width, sx))
    value, far = _roi_sampled(image, py, px, mode)
    weight = fx.multiply(
        fx.reshape(wy, (n, 1, -1, sy, 1, 1) if fx.rank(wy) == 3 else wy.shape), fx.reshape(wx, (n, 1, 1, 1, -1, sx))
    )
    inside = fx.expand_dims(fx.logical_not(far), axis=1)
    if mode == "max":
        lowest = fx.where(fx.logical_and(inside, fx.greater(weight, fx.scalar(0, x))), value, fx.scalar(-np.inf, x))
        y = fx.max(lowest, axis=(3, 5))
        return fx.where(fx.isinf(y), fx.scalar(0, x), y)
    value = fx.where(inside, value, fx.scalar(0, x))
    return fx.sum(fx.multiply(value, fx.cast(weight, d)), axis=(3, 5))


def _samples(start: Any, length: Any, bins: int, ratio: int, size: Any) -> tuple[Any, Any]:
    """Sample places [regions, bins, samples] along an axis, and their weights in a bin's mean; with `ratio` 0 a region has
    ceil(length / bins) samples a bin, of at most as many as the image allows."""
    d = fx.dtype(start)
    cell = fx.divide(length, fx.scalar(bins, start))
    most = ratio if ratio > 0 else max(1, -(-size // bins))
    count = (
        fx.full(start.shape, fx.scalar(ratio, start))
        if ratio > 0
        else fx.clip(fx.ceil(cell), fx.scalar(1, start), fx.scalar(most, start))
    )
    k = fx.cast(fx.reshape(fx.arange(most), (1, 1, most)), d)
    b = fx.cast(fx.reshape(fx.arange(bins), (1, bins, 1)), d)
    each = [fx.reshape(v, (-1, 1, 1)) for v in (start, cell, count)]
    offset = fx.divide(fx.multiply(fx.add(k, fx.scalar(0.5, start)), each[1]), each[2])
    places = fx.add(fx.add(each[0], fx.multiply(b, each[1])), offset)
    weight = fx.where(fx.less(k, each[2]), fx.divide(fx.scalar(1, start), each[2]), fx.scalar(0, start))
    return places, fx.broadcast_to(weight, places.shape)


def _roi_sampled(image: Any, py: Any, px: Any, mode: str) -> tuple[Any, Any]:
    """Bilinear samples with points up to one pixel outside moved to the edge, and which points lie further out."""
    far: Any = None
    points = []
    for p, d in ((py, image.shape[2]), (px, image.shape[3])):
        size = fx.cast(fx.asarray(d), fx.dtype(p))
        out = fx.logical_or(fx.less(p, fx.scalar(-1, p)), fx.greater(p, size))
        far = out if far is None else fx.logical_or(far, out)
        points.append(fx.clip(p, fx.scalar(0, p), fx.subtract(size, fx.scalar(1, p))))
    if mode != "max":
        return sampled(image, points, "linear", "border"), far
    # The largest of the four weighted neighbours, as the definition has it.
    below = [fx.floor(p) for p in points]
    best: Any = None
    for offset in itertools.product((0, 1), repeat=2):
        weight: Any = None
        at = []
        for p, b, o in zip(points, below, offset, strict=True):
            part = _linear(fx.abs(fx.subtract(fx.subtract(p, b), fx.scalar(o, p))))
            weight = part if weight is None else fx.multiply(weight, part)
            at.append(fx.cast(fx.add(b, fx.scalar(o, p)), "i64"))
        value = fx.multiply(_at(image, at, "border"), fx.expand_dims(weight, axis=1))
        best = value if best is None else fx.maximum(best, value)
    return best, far
