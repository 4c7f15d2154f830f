"""Operators that move elements: shapes, slices, joins, gathers, scatters, padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.bounds import at_most
from fluxir.frontend.onnx.graph import FOLD, Context, Results
from fluxir.frontend.onnx.registry import Float, Int, Ints, Known, Raw, Text, op
from fluxir.frontend.onnx.values import (
    dims_of,
    ints_of,
    known,
    rewrapped,
    scalar_of,
    shape_of,
    sizes_of,
    tensor,
    traced,
)  # fmt: skip
from fluxir.ir import dims

# ---- shapes --------------------------------------------------------------------------------------------------------


@op("Shape")
def shape(x: Raw, *, start: Int = 0, end: Int | None = None) -> Any:
    sizes = shape_of(x)
    n = len(sizes)
    low = max(start + n, 0) if start < 0 else start
    high = n if end is None else max(end + n, 0) if end < 0 else end
    out = np.empty(len(sizes[low:high]), object)
    out[:] = sizes[low:high]
    return rewrapped(out) if out.size else np.zeros(0, np.int64)


@op("Size")
def size(x: Raw) -> Any:
    total = dims.product(shape_of(x))
    out = np.empty((), object)
    out[()] = total
    return rewrapped(out)


@op("Reshape", since=5, moves=True)
def reshape(x: Any, shape: Known, *, allowzero: Int = 0) -> Any:
    wanted = dims_of(shape, "the shape to reshape to")
    return fx.reshape(x, new_shape(x.shape, wanted, bool(allowzero)))


def new_shape(old: Any, wanted: Any, allowzero: bool) -> tuple[Any, ...]:
    """The shape that Reshape means: 0 copies a size, -1 is what is left."""
    out = []
    for i, d in enumerate(wanted):
        if isinstance(d, int) and d == 0 and not allowzero:
            if i >= len(old):
                raise ValueError(f"the size 0 at axis {i} copies one of a tensor of {len(old)} axes")
            d = old[i]
        out.append(d)
    if -1 in out and 0 in out:
        rest = dims.product([d for d in out if not (isinstance(d, int) and d == -1)])
        out[out.index(-1)] = dims.floordiv(dims.product(old), rest) if rest != 0 else 0
    return tuple(out)


@op("Reshape", moves=True)
def reshape_old(x: Any, *, shape: Ints = ()) -> Any:
    return fx.reshape(x, new_shape(x.shape, shape, False))


@op("Flatten", moves=True)
def flatten(x: Any, *, axis: Int = 1) -> Any:
    n = fx.rank(x)
    at = n if axis == n else fx.axis_of(axis, n) if n else 0
    return fx.reshape(x, (dims.product(x.shape[:at]), dims.product(x.shape[at:])))


@op("Squeeze", since=13, moves=True)
def squeeze(x: Any, axes: Known = None) -> Any:
    if axes is None:
        return fx.reshape(x, tuple(d for d in x.shape if not (isinstance(d, int) and d == 1)))
    return fx.squeeze(x, fx.axes_of(ints_of(axes, "the axes"), fx.rank(x)))


@op("Squeeze", moves=True)
def squeeze_old(x: Any, *, axes: Ints | None = None) -> Any:
    return squeeze(x, None if axes is None else np.array(axes))


@op("Unsqueeze", since=13, moves=True)
def unsqueeze(x: Any, axes: Known) -> Any:
    named = ints_of(axes, "the axes")
    return fx.expand_dims(x, fx.axes_of(named, fx.rank(x) + len(named)))


@op("Unsqueeze", moves=True)
def unsqueeze_old(x: Any, *, axes: Ints) -> Any:
    return unsqueeze(x, np.array(axes))


@op("Transpose", moves=True)
def transpose(x: Any, *, perm: Ints | None = None) -> Any:
    order = tuple(reversed(range(fx.rank(x)))) if perm is None else tuple(fx.axis_of(p, fx.rank(x)) for p in perm)
    return fx.transpose(x, order)


@op("Expand", since=8, moves=True)
def expand(x: Any, shape: Known) -> Any:
    if traced(shape):
        return _expand_at_run_time(x, shape)
    wanted = dims_of(shape, "the shape to expand to")
    n = max(len(wanted), fx.rank(x))
    old = (1,) * (n - fx.rank(x)) + tuple(x.shape)
    new = (1,) * (n - len(wanted)) + wanted
    return fx.broadcast_to(x, tuple(o if isinstance(d, int) and d == 1 else d for o, d in zip(old, new, strict=True)))


def _expand_at_run_time(x: Any, shape: Any) -> Any:
    """Expand to sizes that are known only at run time; only axes of size 1 grow to them."""
    n = int(shape.shape[0])
    x = fx.reshape(x, (1,) * max(n - fx.rank(x), 0) + tuple(x.shape))
    new = list(x.shape)
    for k, i in enumerate(range(fx.rank(x) - n, fx.rank(x))):
        if isinstance(new[i], int) and new[i] == 1:
            new[i] = fx.extent(fx.item(shape, k))
        elif not dims.prove_le(2, new[i]):
            raise error("FX1205", f"whether an axis of size {new[i]} is expanded depends on values of the inputs")
    return fx.broadcast_to(x, tuple(new))


@op("Tile", since=6, moves=True)
def tile(x: Any, repeats: Known) -> Any:
    return fx.tile(x, sizes_of(repeats, "the repeats"))


# ---- joins and parts -----------------------------------------------------------------------------------------------


@op("Concat", moves=True)
def concat(*xs: Any, axis: Int = 1) -> Any:
    return fx.concat(xs, fx.axis_of(axis, fx.rank(xs[0])))


@op("Split", since=13, moves=True)
def split(cx: Context, x: Any, split: Known = None, *, axis: Int = 0, num_outputs: Int | None = None) -> Any:
    parts = None if split is None else dims_of(split, "the sizes of the parts")
    return pieces(x, fx.axis_of(axis, fx.rank(x)), parts, num_outputs or cx.outputs)


@op("Split", since=2, moves=True)
def split_old(cx: Context, x: Any, *, axis: Int = 0, split: Ints | None = None) -> Any:
    return pieces(x, fx.axis_of(axis, fx.rank(x)), split, cx.outputs)


def pieces(x: Any, axis: int, parts: Any, count: int) -> Results:
    """Parts of `x` along an axis: of the sizes `parts`, or `count` of them of which the last may be smaller."""
    n = x.shape[axis]
    if parts is None and count > MAX_PARTS:
        raise error("FX1202", f"a split into {count} parts; at most {MAX_PARTS} are made")
    if parts is None:
        each = dims.ceildiv(n, count)
        parts = [each] * (count - 1) + [n - each * (count - 1)]
    out, at = [], 0
    for k in parts:
        out.append(fx.part(x, axis, at, at + k))
        at = at + k
    return Results(out)


@op("Slice", since=10, moves=True)
def slice_(x: Any, starts: Known, ends: Known, axes: Known = None, steps: Known = None) -> Any:
    n = fx.rank(x)
    over = tuple(range(_length(starts))) if axes is None else ints_of(axes, "the axes")
    over = tuple(fx.axis_of(a, n) for a in over)
    by = (1,) * len(over) if steps is None else ints_of(steps, "the steps")
    if traced(starts) or traced(ends):
        for i, (a, s) in enumerate(zip(over, by, strict=True)):
            x = _slice_at_run_time(x, a, fx.item(tensor(starts), i), fx.item(tensor(ends), i), s)
        return x
    low, high = dims_of(starts, "the starts"), dims_of(ends, "the ends")
    if not len(low) == len(high) == len(over) == len(by):
        raise ValueError(f"{len(low)} starts, {len(high)} ends, {len(over)} axes, {len(by)} steps")
    key: list[Any] = [slice(None)] * n
    for a, b, e, s in zip(over, low, high, by, strict=True):
        key[a] = _slice(b, e, s, x.shape[a])
    return fx.item(x, tuple(key))


def _slice_at_run_time(x: Any, axis: int, start: Any, end: Any, step: int) -> Any:
    """A slice whose ends are known only at run time, and so its size."""
    n = x.shape[axis]
    size = fx.asarray(n) if not isinstance(n, int) else np.int64(n)
    zero = np.int64(0)
    most = size if step > 0 else fx.subtract(size, np.int64(1))
    ends = []
    for v, least in ((start, zero), (end, np.int64(0 if step > 0 else -1))):
        v = fx.cast(v, "i64")
        v = fx.where(fx.less(v, zero), fx.add(v, size), v)
        ends.append(fx.clip(v, least, most))
    length = fx.subtract(ends[1], ends[0]) if step > 0 else fx.subtract(ends[0], ends[1])
    length = fx.floor_divide(fx.add(length, np.int64(abs(step) - 1)), np.int64(abs(step)))
    count = fx.extent(fx.maximum(length, zero), most=n)
    return fx.take(x, fx.add(ends[0], fx.multiply(fx.arange(count), np.int64(step))), axis=axis)


MAX_PARTS = 4096  # of one split
FAR = 1 << 31  # what exporters write for "to the end" is at least about this


LARGE = 1 << 20


def _slice(b: Any, e: Any, s: int, n: Any) -> slice:
    if s == 0:
        raise ValueError("a step is 0")
    if isinstance(b, int) and s > 0 and b <= -FAR:
        b = 0
    if isinstance(b, int) and s < 0 and b >= FAR - 1:
        b = None
    if isinstance(b, int) and isinstance(n, int) and s < 0 and b < -n:
        b = 0  # a start is clamped to an element, other than in Python
    if isinstance(e, int) and s > 0 and e >= FAR - 1:
        e = None
    if isinstance(e, int) and s > 0 and e >= LARGE:  # no tensor is that long, says whoever writes such an end
        at_most(n, e)
    if isinstance(e, int) and s < 0 and (e <= -FAR or isinstance(n, int) and e < -n):
        e = None
    return slice(b, e, s)


def _length(x: Any) -> int:
    n = shape_of(x)[0] if shape_of(x) else 1
    return int(n)


@op("Slice", moves=True)
def slice_old(x: Any, *, starts: Ints, ends: Ints, axes: Ints | None = None) -> Any:
    return slice_(x, np.array(starts), np.array(ends), None if axes is None else np.array(axes))


# ---- gathers -------------------------------------------------------------------------------------------------------


@op("Gather", moves=True)
def gather(x: Any, indices: Any, *, axis: Int = 0) -> Any:
    return fx.take(x, indices, axis=fx.axis_of(axis, fx.rank(x)))


@op("GatherElements", since=11)
def gather_elements(x: Any, indices: Any, *, axis: Int = 0) -> Any:
    return fx.gather_along(x, indices, fx.axis_of(axis, fx.rank(x)))


@op("GatherND", since=11)
def gather_nd(x: Any, indices: Any, *, batch_dims: Int = 0) -> Any:
    lead = fx.rank(indices) - 1
    keys = [fx.own_places(x.shape, k, lead) for k in range(batch_dims)]
    keys += [fx.item(indices, (..., k)) for k in range(_depth(x, indices))]
    return fx.item(x, tuple(keys)) if keys else fx.broadcast_to(x, (*indices.shape[:-1], *x.shape))


@op("ScatterElements", "Scatter")
def scatter_elements(x: Any, indices: Any, updates: Any, *, axis: Int = 0, reduction: Text = "none") -> Any:
    keys = fx.places_along(indices, fx.axis_of(axis, fx.rank(x)), indices.shape)
    return fx.put(x, keys, updates, _how(reduction))


def _depth(x: Any, indices: Any) -> int:
    """How many axes a row of `indices` names."""
    depth = int(indices.shape[-1])
    if depth > fx.rank(x):
        raise ValueError(f"{depth} indices for {fx.rank(x)} axes")
    return depth


@op("ScatterND", since=11)
def scatter_nd(x: Any, indices: Any, updates: Any, *, reduction: Text = "none") -> Any:
    depth = _depth(x, indices)
    keys = tuple(fx.item(indices, (..., k)) for k in range(depth))
    return fx.put(x, keys or ..., updates, _how(reduction))


def _how(reduction: str) -> str:
    known = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}
    if reduction not in known:
        raise ValueError(f"there is no reduction {reduction!r}")
    return known[reduction]


@op("OneHot", since=9)
def one_hot(indices: Any, depth: Known, values: Any, *, axis: Int = -1) -> Any:
    (n,) = sizes_of(depth, "the depth")
    wide = fx.cast(indices, "i64")
    wide = fx.where(
        fx.less(wide, np.int64(0)), fx.add(wide, fx.asarray(n) if not isinstance(n, int) else np.int64(n)), wide
    )
    hot = fx.one_hot(wide, n, dtype="bool", axis=axis)
    return fx.where(hot, fx.item(values, 1), fx.item(values, 0))


@op("Trilu", since=14)
def trilu(x: Any, k: Known = None, *, upper: Int = 1) -> Any:
    shift = 0 if k is None else int(scalar_of(k, "k"))
    return fx.triu(x, k=shift) if upper else fx.tril(x, k=shift)


@op("EyeLike", since=9)
def eye_like(x: Any, *, dtype: Int | None = None, k: Int = 0) -> Any:
    from fluxir.frontend.onnx.elements import element

    d = fx.dtype(x) if dtype is None else element(dtype, "EyeLike").carrier
    return fx.eye(x.shape[0], x.shape[1], k=k, dtype=d)


@op("Range", since=11)
def range_(start: Known, limit: Known, delta: Known) -> Any:
    if any(map(traced, (start, limit, delta))):
        return _range_at_run_time(*[fx.reshape(tensor(v), ()) for v in (start, limit, delta)])
    values = [known(v, "the range").reshape(-1)[0] for v in (start, limit, delta)]
    if any(isinstance(v, fx.Poly) for v in values):
        return fx.arange(*[v if isinstance(v, fx.Poly) else int(v) for v in values])
    d = values[0].dtype if not isinstance(values[0], int) else np.dtype(np.int64)
    with np.errstate(all="ignore"):
        count = max(int(np.ceil((values[1] - values[0]) / values[2])), 0)
    if count > FOLD:
        return fx.cast(fx.add(values[0], fx.multiply(values[2], fx.arange(count))), fx.dtype(np.zeros(0, d)))
    return np.asarray(values[0] + values[2] * np.arange(count), d)


def _range_at_run_time(start: Any, limit: Any, delta: Any) -> Any:
    d = fx.dtype(start)
    if d.is_float:
        steps = fx.divide(fx.cast(fx.subtract(limit, start), "f64"), fx.cast(delta, "f64"))
        count = fx.cast(fx.ceil(steps), "i64")
    else:  # rounded up
        count = fx.negative(fx.floor_divide(*[fx.cast(v, "i64") for v in (fx.subtract(start, limit), delta)]))
    places = fx.arange(fx.extent(fx.maximum(count, np.int64(0))))
    return fx.add(start, fx.multiply(fx.cast(places, d), delta))


# ---- padding -------------------------------------------------------------------------------------------------------


@op("Pad", since=11)
def pad(x: Any, pads: Known, value: Any = None, axes: Known = None, *, mode: Text = "constant") -> Any:
    widths = dims_of(pads, "the pads")
    n = fx.rank(x)
    over = tuple(range(n)) if axes is None else tuple(fx.axis_of(a, n) for a in ints_of(axes, "the axes"))
    return padded(x, widths, over, mode, fx.scalar(0, x) if value is None else fx.reshape(value, ()))


@op("Pad", since=2)
def pad_old(x: Any, *, pads: Ints, mode: Text = "constant", value: Float = 0.0) -> Any:
    return padded(x, pads, tuple(range(fx.rank(x))), mode, fx.scalar(value, x))


def padded(x: Any, widths: Any, over: Any, mode: str, value: Any) -> Any:
    """More or (widths below 0) fewer elements before and after the axes `over`."""
    n = len(over)
    if len(widths) != 2 * n:
        raise ValueError(f"{len(widths)} pads for {n} axes")
    low, high = [0] * fx.rank(x), [0] * fx.rank(x)
    for i, a in enumerate(over):
        low[a], high[a] = widths[i], widths[n + i]
    if any(isinstance(w, int) and w < 0 for w in (*low, *high)):
        key = tuple(
            slice(-b if isinstance(b, int) and b < 0 else 0, e if isinstance(e, int) and e < 0 else None)
            for b, e in zip(low, high, strict=True)
        )
        x = fx.item(x, key)
        low, high = ([0 if isinstance(w, int) and w < 0 else w for w in side] for side in (low, high))
    if fx.dtype(x).is_bool and mode == "constant":
        return fx.cast(padded(fx.cast(x, "u8"), widths, over, mode, fx.cast(value, "u8")), "bool")
    pairs = list(zip(low, high, strict=True))
    return fx.pad(x, pairs, mode, constant_values=value) if mode == "constant" else fx.pad(x, pairs, mode)


@op("CenterCropPad", since=18)
def center_crop_pad(x: Any, shape: Known, *, axes: Ints | None = None) -> Any:
    wanted = dims_of(shape, "the shape")
    n = fx.rank(x)
    over = tuple(range(n)) if axes is None else tuple(fx.axis_of(a, n) for a in axes)
    for a, d in zip(over, wanted, strict=True):
        have = x.shape[a]
        if dims.prove_le(d, have):
            low = dims.floordiv(have - d, 2)
            x = fx.part(x, a, low, low + d)
        else:
            low = dims.floordiv(d - have, 2)
            x = padded(x, (low, d - have - low), (a,), "constant", fx.scalar(0, x))
    return x


# ---- blocks --------------------------------------------------------------------------------------------------------


@op("DepthToSpace")
def depth_to_space(x: Any, *, blocksize: Int, mode: Text = "DCR") -> Any:
    n, c, h, w = x.shape
    b = blocksize
    inner = dims.floordiv(c, b * b)
    if mode == "DCR":
        y = fx.transpose(fx.reshape(x, (n, b, b, inner, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = fx.transpose(fx.reshape(x, (n, inner, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return fx.reshape(y, (n, inner, h * b, w * b))


@op("SpaceToDepth")
def space_to_depth(x: Any, *, blocksize: Int, mode: Text = "DCR") -> Any:
    n, c, h, w = x.shape
    b = blocksize
    y = fx.reshape(x, (n, c, dims.floordiv(h, b), b, dims.floordiv(w, b), b))
    y = fx.transpose(y, (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return fx.reshape(y, (n, c * b * b, dims.floordiv(h, b), dims.floordiv(w, b)))


@op("ReverseSequence", since=10)
def reverse_sequence(x: Any, lengths: Any, *, batch_axis: Int = 1, time_axis: Int = 0) -> Any:
    n = fx.rank(x)
    time, batch = fx.axis_of(time_axis, n), fx.axis_of(batch_axis, n)
    t = fx.reshape(fx.arange(x.shape[time]), tuple(x.shape[time] if k == time else 1 for k in range(n)))
    m = fx.reshape(fx.cast(lengths, "i64"), tuple(x.shape[batch] if k == batch else 1 for k in range(n)))
    places = fx.where(fx.less(t, m), fx.subtract(fx.subtract(m, np.int64(1)), t), t)
    return fx.take_along_axis(
        x, fx.broadcast_to(places, tuple(x.shape[k] if k in (time, batch) else 1 for k in range(n))), axis=time
    )


@op("TensorScatter", since=24)
def tensor_scatter(cache: Any, update: Any, indices: Any = None, *, axis: Int = -2, mode: Text = "linear") -> Any:
    n = fx.rank(cache)
    a = fx.axis_of(axis, n)
    at = fx.own_places(update.shape, a, n)
    if indices is not None:
        at = fx.add(at, fx.reshape(fx.cast(indices, "i64"), (cache.shape[0], *[1] * (n - 1))))
    if mode == "circular":
        at = fx.remainder(at, fx.asarray(cache.shape[a]))
    return fx.put(cache, fx.places_along(at, a, update.shape), update, "set")
