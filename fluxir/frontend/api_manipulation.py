"""Changing shape and order: reshape, transpose, join, split, flip, roll, repeat, pad.

Axis arguments count from the end when negative (FX0205 out of range, FX0206 repeated). Sizes may be symbolic.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_creation import as_shape, iota
from fluxir.frontend.tensor import Tensor, as_tensor, cast, constant, emit, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, Poly, floordiv, mul, prove_le, require_equal
from fluxir.ir.dims import product as product_of
from fluxir.ops.rules import broadcast_shapes as _broadcast_shapes
from fluxir.ops.rules import normal_axes, normal_axis

# ---- reshape ---------------------------------------------------------------------------------------------------------


def _show(shape: Any) -> str:
    return f"[{','.join(map(str, shape))}]"


def solve_shape(x: Tensor, shape: Any) -> tuple[Dim, ...]:
    """The shape of a reshape with at most one -1 filled in; FX0204 where the elements do not fit."""
    items = list(shape) if isinstance(shape, tuple | list) else [shape]
    unknown = [
        i
        for i, d in enumerate(items)
        if not isinstance(d, Poly | str)
        and hasattr(d, "__index__")
        and not isinstance(d, Tensor)
        and d.__index__() == -1
    ]
    if len(unknown) > 1:
        raise error("FX0204", "reshape: at most one size may be -1", loc=here())
    if not unknown:
        return as_shape(tuple(items))
    (at,) = unknown
    rest = as_shape(tuple(items[:at] + items[at + 1 :]))
    known = product_of(rest)
    if known == 0:
        raise error("FX0204", f"reshape: -1 is ambiguous beside a size of 0 in {_show(items)}", loc=here())
    size = floordiv(x.size, known)
    if not require_equal(mul(size, known), x.size):
        raise error("FX0204", f"reshape: {x.size} elements of {x.type} do not divide into {_show(items)}",
                    help=f"{x.size} is not a multiple of {known}", loc=here())  # fmt: skip
    return (*rest[:at], size, *rest[at:])


@public
def reshape(x: Any, /, shape: Any, *, copy: bool | None = None) -> Tensor:
    """The same elements in row-major order with another shape; one size may be -1. FX0204 where the number differs."""
    t = as_tensor(x)
    to = solve_shape(t, shape)
    return t if to == t.shape else emit("reshape", t, shape=to)


@public
def ravel(x: Any, /) -> Tensor:
    """All elements in one axis."""
    return reshape(x, (-1,)) if as_tensor(x).size != 0 else reshape(x, (0,))


@public
def squeeze(x: Any, /, axis: Any = None) -> Tensor:
    """Axes of size 1 removed: those named, or all."""
    t = as_tensor(x)
    if axis is None:
        drop = tuple(i for i, d in enumerate(t.shape) if d == 1)
    else:
        drop = normal_axes("squeeze", axis if isinstance(axis, tuple | list) else (axis,), t.ndim)
    for a in drop:
        if t.shape[a] != 1 and not require_equal(t.shape[a], 1):
            raise error("FX0221", f"squeeze: axis {a} of {t.type} has size {t.shape[a]}, not 1", loc=here())
    return reshape(t, tuple(d for i, d in enumerate(t.shape) if i not in drop))


@public
def expand_dims(x: Any, /, axis: Any = 0) -> Tensor:
    """New axes of size 1 at the positions `axis` of the result."""
    t = as_tensor(x)
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    rank = t.ndim + len(axes)
    at = normal_axes("expand_dims", axes, rank)
    old = iter(t.shape)
    return reshape(t, tuple(1 if i in at else next(old) for i in range(rank)))


def _at_least(rank: int, arrays: Any, place: Any) -> Any:
    out = []
    for a in arrays:
        t = as_tensor(a)
        out.append(t if t.ndim >= rank else reshape(t, place(t.shape)))
    return out[0] if len(out) == 1 else out


@public
def atleast_1d(*arrays: Any) -> Any:
    """Scalars get one axis."""
    return _at_least(1, arrays, lambda s: (1,))


@public
def atleast_2d(*arrays: Any) -> Any:
    """Leading axes of size 1 up to rank 2."""
    return _at_least(2, arrays, lambda s: (*[1] * (2 - len(s)), *s))


@public
def atleast_3d(*arrays: Any) -> Any:
    """numpy's rule: a vector becomes [1, n, 1], a matrix [m, n, 1]."""
    return _at_least(3, arrays, lambda s: (*s, 1) if len(s) == 2 else (1, *s, 1) if len(s) == 1 else (1, 1, 1))


# ---- order of axes ---------------------------------------------------------------------------------------------------


def _permute(t: Tensor, perm: Sequence[int]) -> Tensor:
    return t if list(perm) == list(range(t.ndim)) else emit("transpose", t, perm=tuple(perm))


@public
def permute_dims(x: Any, /, axes: Any) -> Tensor:
    """Axis i of the result is axis `axes[i]` of x (FX0207 unless a permutation)."""
    t = as_tensor(x)
    if len(axes) != t.ndim:
        raise error("FX0207", f"transpose: {tuple(axes)} names {len(axes)} axes, {t.type} has {t.ndim}", loc=here())
    return _permute(t, normal_axes("transpose", axes, t.ndim))


@public
def transpose(x: Any, /, axes: Any = None) -> Tensor:
    """Axes permuted; reversed by default."""
    t = as_tensor(x)
    return _permute(t, range(t.ndim)[::-1]) if axes is None else permute_dims(t, axes)


@public
def swapaxes(x: Any, /, axis1: int, axis2: int) -> Tensor:
    """Two axes swapped."""
    t = as_tensor(x)
    a, b = normal_axis("swapaxes", axis1, t.ndim), normal_axis("swapaxes", axis2, t.ndim)
    perm = list(range(t.ndim))
    perm[a], perm[b] = b, a
    return _permute(t, perm)


@public
def moveaxis(x: Any, source: Any, destination: Any, /) -> Tensor:
    """Axes moved to new positions, the others in their order."""
    t = as_tensor(x)
    src = normal_axes("moveaxis", source if isinstance(source, tuple | list) else (source,), t.ndim)
    dst = normal_axes("moveaxis", destination if isinstance(destination, tuple | list) else (destination,), t.ndim)
    if len(src) != len(dst):
        raise error("FX0221", f"moveaxis: {len(src)} source axes and {len(dst)} destinations", loc=here())
    perm = [i for i in range(t.ndim) if i not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        perm.insert(d, s)
    return _permute(t, perm)


@public
def flip(x: Any, /, axis: Any = None) -> Tensor:
    """Elements in reverse order along `axis` (default: all axes)."""
    t = as_tensor(x)
    axes = (
        tuple(range(t.ndim))
        if axis is None
        else normal_axes("flip", axis if isinstance(axis, tuple | list) else (axis,), t.ndim)
    )
    return emit("reverse", t, axes=axes) if axes else t


@public
def fliplr(x: Any, /) -> Tensor:
    """Reversed along axis 1."""
    return flip(x, axis=1)


@public
def flipud(x: Any, /) -> Tensor:
    """Reversed along axis 0."""
    return flip(x, axis=0)


@public
def rot90(x: Any, /, k: int = 1, axes: tuple[int, int] = (0, 1)) -> Tensor:
    """Rotated by k quarter turns from the first towards the second of `axes`."""
    t = as_tensor(x)
    a, b = normal_axes("rot90", axes, t.ndim)
    match k % 4:
        case 1:
            return swapaxes(flip(t, axis=b), a, b)
        case 2:
            return flip(t, axis=(a, b))
        case 3:
            return flip(swapaxes(t, a, b), axis=b)
    return t


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are equal; undecidable sizes are assumed so and guarded at entry."""
    return len(a) == len(b) and builtins.all(require_equal(x, y) for x, y in zip(a, b, strict=True))


# ---- broadcasting ----------------------------------------------------------------------------------------------------


@public
def broadcast_to(x: Any, /, shape: Any) -> Tensor:
    """`x` stretched to `shape` along axes of size 1 and new leading axes (FX0202 where it does not fit)."""
    t = as_tensor(x)
    to = as_shape(shape)
    if not same_shape(_broadcast_shapes("broadcast_to", [t.shape, to]), to):
        raise error("FX0202", f"broadcast_to: {t.type} does not stretch to {_show(to)}", loc=here())
    return t if to == t.shape else emit("broadcast", t, shape=to)


@public
def broadcast_arrays(*arrays: Any) -> list[Tensor]:
    """All tensors stretched to their common shape."""
    ts = [as_tensor(a) for a in arrays]
    shape = _broadcast_shapes("broadcast_arrays", [t.shape for t in ts])
    return [broadcast_to(t, shape) for t in ts]


def broadcast_shapes(*shapes: Any) -> tuple[Dim, ...]:
    """The shape that shapes broadcast to."""
    return _broadcast_shapes("broadcast_shapes", [as_shape(s) for s in shapes])


# ---- joining ---------------------------------------------------------------------------------------------------------


def _list(arrays: Any, name: str) -> list[Any]:
    items = list(arrays)
    if not items:
        raise error("FX0221", f"{name} needs at least one tensor", loc=here())
    return items


@public
def concat(arrays: Any, /, axis: int | None = 0, *, dtype: Any = None) -> Tensor:
    """Tensors joined along an axis (None: all raveled first). FX0208 where the other sizes differ."""
    from fluxir.frontend.tensor import as_dtype

    items = promote_operands(*_list(arrays, "concat"))
    items = [cast(t, as_dtype(dtype)) for t in items] if dtype is not None else items
    if axis is None:
        items, axis = [ravel(t) for t in items], 0
    axis = normal_axis("concat", axis, items[0].ndim)
    return items[0] if len(items) == 1 else emit("concat", *items, axis=axis)


@public
def concatenate(arrays: Any, axis: int | None = 0, dtype: Any = None) -> Tensor:
    """numpy's name for `concat`."""
    return concat(arrays, axis=axis, dtype=dtype)


@public
def stack(arrays: Any, /, axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    items = promote_operands(*_list(arrays, "stack"))
    for k, t in enumerate(items):
        if t.ndim != items[0].ndim or not all(
            require_equal(a, b) for a, b in zip(t.shape, items[0].shape, strict=True)
        ):
            raise error("FX0208", f"stack: element {k} is {t.type}, the first is {items[0].type}", loc=here())
    return concat([expand_dims(t, axis=axis) for t in items], axis=axis)


@public
def hstack(arrays: Any) -> Tensor:
    """Joined along axis 1 (vectors: along axis 0)."""
    items = [as_tensor(atleast_1d(a)) for a in _list(arrays, "hstack")]
    return concat(items, axis=0 if items[0].ndim == 1 else 1)


@public
def vstack(arrays: Any) -> Tensor:
    """Joined along axis 0; vectors are rows."""
    return concat([atleast_2d(a) for a in _list(arrays, "vstack")], axis=0)


@public
def dstack(arrays: Any) -> Tensor:
    """Joined along axis 2."""
    return concat([atleast_3d(a) for a in _list(arrays, "dstack")], axis=2)


@public
def column_stack(arrays: Any) -> Tensor:
    """Joined along axis 1; vectors are columns."""
    items = [as_tensor(a) for a in _list(arrays, "column_stack")]
    return concat([t if t.ndim >= 2 else reshape(t, (-1, 1)) for t in items], axis=1)


@public
def append(arr: Any, values: Any, axis: int | None = None) -> Tensor:
    """`values` joined after `arr` (axis None: both raveled)."""
    return concat([arr, values], axis=axis)


@public
def block(arrays: Any) -> Tensor:
    """A tensor from nested lists of blocks: innermost lists join along the last axis."""
    depth = 0
    probe = arrays
    while isinstance(probe, list):
        depth, probe = depth + 1, probe[0]

    def join(x: Any, level: int) -> Tensor:
        if not isinstance(x, list):
            t = as_tensor(x)
            return t if t.ndim >= depth else reshape(t, (*[1] * (depth - t.ndim), *t.shape))
        return concat([join(v, level + 1) for v in x], axis=level - depth)

    return join(arrays, 0)


# ---- splitting -------------------------------------------------------------------------------------------------------


def _cut(t: Tensor, axis: int, start: Dim, stop: Dim) -> Tensor:
    low: list[Dim] = [0] * t.ndim
    high: list[Dim] = list(t.shape)
    low[axis], high[axis] = start, stop
    return t if start == 0 and stop == t.shape[axis] else emit("slice", t, start=tuple(low), limit=tuple(high))


@public
def split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    """Equal parts (an integer) or parts that end at the given positions."""
    t = as_tensor(x)
    a = normal_axis("split", axis, t.ndim)
    n = t.shape[a]
    if hasattr(indices_or_sections, "__index__") and not isinstance(indices_or_sections, Poly):
        k = indices_or_sections.__index__()
        if k < 1:
            raise error("FX0221", f"split into {k} parts", loc=here())
        part = floordiv(n, k)
        if not require_equal(mul(part, k), n):
            raise error("FX0221", f"split: the size {n} of axis {a} does not divide into {k} equal parts",
                        help="use fx.array_split for parts of unequal size", loc=here())  # fmt: skip
        return [_cut(t, a, part * i, part * (i + 1)) for i in range(k)]
    return _split_at(t, list(indices_or_sections), a)


def _split_at(t: Tensor, points: list[Any], axis: int) -> list[Tensor]:
    from fluxir.frontend.indexing import getitem

    edges = [None, *points, None]
    return [getitem(t, (*[slice(None)] * axis, slice(a, b))) for a, b in zip(edges, edges[1:])]


@public
def array_split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    """Like `split`; parts may differ in size by one."""
    t = as_tensor(x)
    a = normal_axis("array_split", axis, t.ndim)
    n = t.shape[a]
    if not hasattr(indices_or_sections, "__index__") or not isinstance(n, int):
        return split(t, indices_or_sections, axis=a)
    k = indices_or_sections.__index__()
    sizes = [n // k + (i < n % k) for i in range(k)]
    ends = np.cumsum(sizes)
    return [_cut(t, a, int(e) - s, int(e)) for s, e in zip(sizes, ends)]


@public
def hsplit(x: Any, indices_or_sections: Any) -> list[Tensor]:
    """Split along axis 1 (of a vector: 0)."""
    return split(x, indices_or_sections, axis=0 if as_tensor(x).ndim == 1 else 1)


@public
def vsplit(x: Any, indices_or_sections: Any) -> list[Tensor]:
    """Split along axis 0."""
    return split(x, indices_or_sections, axis=0)


@public
def unstack(x: Any, /, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices along an axis of known size, that axis removed (FX0314 where the size is symbolic)."""
    t = as_tensor(x)
    a = normal_axis("unstack", axis, t.ndim)
    n = t.shape[a]
    if not isinstance(n, int):
        raise error("FX0314", f"unstack needs the size of axis {a}, and {n} is known only at run time", loc=here())
    shape = tuple(d for i, d in enumerate(t.shape) if i != a)
    return tuple(reshape(_cut(t, a, i, i + 1), shape) for i in range(n))


# ---- repeating, moving -----------------------------------------------------------------------------------------------


@public
def tile(x: Any, repetitions: Any, /) -> Tensor:
    """The whole tensor repeated along each axis."""
    t = as_tensor(x)
    reps = list(as_shape(repetitions))
    shape = [*[1] * (len(reps) - t.ndim), *t.shape]
    reps = [*[1] * (len(shape) - len(reps)), *reps]
    if builtins.all(r == 1 for r in reps):
        return reshape(t, tuple(shape))
    spread = [d for n in shape for d in (1, n)]
    wide = [d for n, r in zip(shape, reps, strict=True) for d in (r, n)]
    y = emit("broadcast", reshape(t, tuple(spread)), shape=tuple(wide))
    return emit("reshape", y, shape=tuple(mul(n, r) for n, r in zip(shape, reps, strict=True)))


@public
def repeat(x: Any, repeats: Any, /, axis: int | None = None) -> Tensor:
    """Every element `repeats` times in place; one number for all, or one for each (a numpy array or list)."""
    t = as_tensor(x)
    if axis is None:
        t, axis = ravel(t), 0
    a = normal_axis("repeat", axis, t.ndim)
    if isinstance(repeats, Tensor):
        raise error(
            "FX0302", "repeat: the counts are a traced tensor, so the size of the result is not known", loc=here()
        )
    counts = np.asarray(repeats) if not isinstance(repeats, Poly) else None
    if counts is None or counts.ndim == 0 or counts.size == 1:
        k = repeats if counts is None else int(counts.reshape(-1)[0])
        shape = (*t.shape[: a + 1], 1, *t.shape[a + 1 :])
        y = emit("broadcast", reshape(t, shape), shape=(*t.shape[: a + 1], k, *t.shape[a + 1 :]))
        return emit("reshape", y, shape=(*t.shape[:a], mul(t.shape[a], k), *t.shape[a + 1 :]))
    n = t.shape[a]
    if not isinstance(n, int) or counts.shape != (n,):
        raise error("FX0221", f"repeat: {counts.size} counts for an axis of size {n}", loc=here())
    return gather_axis(t, as_tensor(np.repeat(np.arange(n, dtype=np.int64), counts)), a)


def gather_axis(t: Tensor, index: Tensor, axis: int) -> Tensor:
    """Positions `index` (i64[n], counted from the start) along `axis`."""
    y = emit("gather", t, index, axes=(axis,))
    perm = [*range(1, axis + 1), 0, *range(axis + 1, t.ndim)] if index.ndim == 1 else None
    return _permute(y, perm) if perm is not None else y


@public
def roll(x: Any, /, shift: Any, *, axis: Any = None) -> Tensor:
    """Elements moved by `shift` along `axis`, those that leave coming back in (axis None: on the raveled tensor)."""
    t = as_tensor(x)
    if axis is None:
        return reshape(roll(ravel(t), shift, axis=0), t.shape)
    axes = list(axis) if isinstance(axis, tuple | list) else [axis]
    shifts = list(shift) if isinstance(shift, tuple | list) else [shift] * len(axes)
    if len(axes) == 1 and len(shifts) > 1:
        axes = axes * len(shifts)
    for s, a in zip(shifts, axes, strict=True):
        t = _roll(t, s, normal_axis("roll", a, t.ndim))
    return t


def _roll(t: Tensor, shift: Any, axis: int) -> Tensor:
    n = t.shape[axis]
    if isinstance(shift, Tensor) or not isinstance(shift, int | np.integer):
        known = None
    elif isinstance(n, int):
        known = int(shift) % n if n else 0
    else:
        known = int(shift) if 0 <= shift and prove_le(int(shift), n) else None
        if shift < 0 and prove_le(-int(shift), n):
            cut: Dim = -int(shift)
            return emit("concat", _cut(t, axis, cut, n), _cut(t, axis, 0, cut), axis=axis)
    if known == 0:
        return t
    if known is not None:
        return emit("concat", _cut(t, axis, n - known, n), _cut(t, axis, 0, n - known), axis=axis)
    place = iota((n,))
    place, offset = promote_operands(place, shift)
    place = cast(emit("remainder", emit("sub", place, offset), promote_operands(place, n)[1]), as_i64())
    return gather_axis(t, place, axis)


def as_i64() -> Any:
    from fluxir.ir.dtypes import i64

    return i64


# ---- padding ---------------------------------------------------------------------------------------------------------


def _pad_widths(t: Tensor, pad_width: Any) -> list[tuple[Dim, Dim]]:
    """(before, after) for every axis, from numpy's forms; FX0223 for another number of pairs or a negative width."""
    if not isinstance(pad_width, tuple | list | np.ndarray):
        pad_width = ((pad_width, pad_width),)
    items = [tuple(p) if isinstance(p, tuple | list | np.ndarray) else p for p in pad_width]
    if builtins.all(not isinstance(p, tuple) for p in items):
        if len(items) == 1:
            items = [(items[0], items[0])]
        elif len(items) == 2:
            items = [(items[0], items[1])]
    pairs = [p if isinstance(p, tuple) else (p, p) for p in items]
    pairs = [p if len(p) == 2 else (p[0], p[0]) for p in pairs]
    if len(pairs) == 1:
        pairs = pairs * t.ndim
    if len(pairs) != t.ndim:
        raise error("FX0223", f"pad: {len(pairs)} pairs for the {t.ndim} axes of {t.type}", loc=here())
    if builtins.any(isinstance(w, int | np.integer) and w < 0 for p in pairs for w in p):
        raise error("FX0223", f"pad: a width in {pairs} is negative", help="to drop elements use a slice", loc=here())
    return [as_shape(p) for p in pairs]  # type: ignore[misc]


@public
def pad(x: Any, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0) -> Tensor:
    """More elements before and after each axis: (before, after) for each axis, one pair for all, or one number.

    Modes: constant, edge, reflect, symmetric, wrap, as in numpy. FX0223 for widths that do not fit.
    """
    t = as_tensor(x)
    widths = _pad_widths(t, pad_width)
    if mode == "constant":
        if isinstance(constant_values, tuple | list):
            raise error(
                "FX0221", "pad: one constant value for all sides", help="pad each side with its own call", loc=here()
            )
        value = promote_operands(t, constant_values)[1]
        value = cast(value, t.dtype)
        return emit("pad", t, value, low=tuple(w[0] for w in widths), high=tuple(w[1] for w in widths))
    if mode not in ("edge", "reflect", "symmetric", "wrap"):
        raise error(
            "FX0221", f"pad: no mode {mode!r}", help="modes: constant, edge, reflect, symmetric, wrap", loc=here()
        )
    for axis, (low, high) in enumerate(widths):
        if low != 0 or high != 0:
            t = _pad_axis(t, axis, low, high, mode)
    return t


def _pad_axis(t: Tensor, axis: int, low: Dim, high: Dim, mode: str) -> Tensor:
    n = t.shape[axis]
    if isinstance(n, int) and isinstance(low, int) and isinstance(high, int):
        room = {"reflect": n - 1, "symmetric": n}.get(mode, 1 << 62)
        if n == 0 or builtins.max(low, high) > room:
            raise error("FX0223", f"pad: mode {mode!r} cannot add {low} and {high} elements to an axis of {n}",
                        help="pad in several steps", loc=here())  # fmt: skip
        i = np.arange(-low, n + high, dtype=np.int64)
        if mode == "edge":
            places = np.clip(i, 0, n - 1)
        elif mode == "wrap":
            places = i % n
        elif mode == "reflect":
            places = (n - 1) - np.abs(n - 1 - np.abs(i))
        else:
            places = np.where(i < 0, -1 - i, np.where(i >= n, 2 * n - 1 - i, i))
        return gather_axis(t, as_tensor(places), axis)
    k, first = promote_operands(iota((low + n + high,)), low)
    k = emit("sub", k, first)
    size, one = promote_operands(k, n)[1], constant(1, k.dtype)
    last = emit("sub", size, one)
    if mode == "wrap":
        k = emit("remainder", k, size)
    elif mode == "reflect":
        k = emit("sub", last, emit("abs", emit("sub", last, emit("abs", k))))
    elif mode == "symmetric":
        k = emit("select", emit("lt", k, constant(0, k.dtype)), emit("sub", constant(-1, k.dtype), k), k)
        k = emit("select", emit("gt", k, last), emit("sub", emit("add", size, last), k), k)
    return gather_axis(t, k, axis)  # "edge": gather clamps


# ---- sizes -----------------------------------------------------------------------------------------------------------


def shape(x: Any) -> tuple[Dim, ...]:
    """The shape of a tensor or array; sizes may be symbolic."""
    return tuple(x.shape) if hasattr(x, "shape") else np.shape(x)


def ndim(x: Any) -> int:
    """The number of axes."""
    return len(shape(x))


def size(x: Any, axis: int | None = None) -> Dim:
    """The number of elements, or the size of an axis: an integer, or a symbolic size, which computes like a number."""
    s = shape(x)
    return product_of(s) if axis is None else s[normal_axis("size", axis, len(s))]


__all__ = [
    "append", "array_split", "atleast_1d", "atleast_2d", "atleast_3d", "block", "broadcast_arrays",
    "broadcast_shapes", "broadcast_to", "column_stack", "concat", "concatenate", "dstack", "expand_dims", "flip",
    "fliplr", "flipud", "hsplit", "hstack", "moveaxis", "ndim", "pad", "permute_dims", "ravel", "repeat", "reshape",
    "roll", "rot90", "shape", "size", "split", "squeeze", "stack", "swapaxes", "tile", "transpose", "unstack",
    "vsplit", "vstack",
]  # fmt: skip
