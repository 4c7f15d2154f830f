"""Taking, sorting, searching and counting (Array API indexing, sorting, searching and set functions, and NumPy's).

Where the size of a result depends on values (`nonzero`, `unique_values`, ...), `size=` fixes it. Without, a traced program
has a size that becomes known when it runs (see `fx.extent`); outside a trace the values are known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_creation import as_shape, fill, iota
from fluxir.frontend.api_elementwise import float_operand, truth
from fluxir.frontend.api_manipulation import moveaxis, ravel, reshape
from fluxir.frontend.extent import count_of
from fluxir.frontend.indexing import _known, _wrap
from fluxir.frontend.tensor import Tensor, as_dtype, as_tensor, cast, constant, emit, emit_many, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, prove_le
from fluxir.ir.dtypes import f32, i32, i64
from fluxir.ops.rules import broadcast_shapes, normal_axis


def _integers(name: str, indices: Any) -> Tensor:
    t = as_tensor(np.asarray(indices, np.int64) if isinstance(indices, list | tuple) and not len(indices) else indices)
    if not t.dtype.is_integer:
        raise error(
            "FX0214", f"{name}: indices must be integers, not {t.type}", help="cast them: i.astype('i64')", loc=here()
        )
    return t


# ---- taking -------------------------------------------------------------------------------------------------------------


@public
def take(x: Any, indices: Any, /, axis: int | None = None) -> Tensor:
    """Elements of `x` at `indices` along `axis` (None: of the raveled tensor). Negative indices count from the end;
    those known only at run time are then clamped to the axis."""
    t = as_tensor(x)
    if axis is None:
        t, axis = ravel(t), 0
    a = normal_axis("take", axis, t.ndim)
    i = _wrap(_integers("take", indices), t.shape[a])
    y = emit("gather", t, i, axes=(a,))
    perm = [*range(i.ndim, i.ndim + a), *range(i.ndim), *range(i.ndim + a, y.ndim)]
    return y if perm == list(range(y.ndim)) else emit("transpose", y, perm=tuple(perm))


@public
def take_along_axis(x: Any, indices: Any, /, axis: int = -1) -> Tensor:
    """Elements of `x` at `indices` along `axis`, position by position; the other axes broadcast."""
    t, i = as_tensor(x), _integers("take_along_axis", indices)
    if t.ndim != i.ndim:
        raise error("FX0220", f"take_along_axis: x is {t.type} and the indices {i.type}: the ranks differ", loc=here())
    a = normal_axis("take_along_axis", axis, t.ndim)
    i = _wrap(i, t.shape[a])
    shape = tuple(
        i.shape[k] if k == a else broadcast_shapes("take_along_axis", [t.shape[k : k + 1], i.shape[k : k + 1]])[0]
        for k in range(t.ndim)
    )
    return emit("gather", t, *_grid(t, i, a, shape), axes=tuple(range(t.ndim)))


def _grid(t: Tensor, i: Tensor, axis: int, shape: tuple[Dim, ...]) -> list[Tensor]:
    """Index tensors for all axes: `i` along `axis`, the own position along the others."""
    out = []
    for k in range(t.ndim):
        if k == axis:
            out.append(cast(i, i64) if i.shape == shape else emit("broadcast", cast(i, i64), shape=shape))
        elif t.shape[k] == 1:
            out.append(constant(0, i64))
        else:
            out.append(emit("reshape", iota((shape[k],)), shape=(shape[k], *[1] * (t.ndim - 1 - k))))
    return out


@public
def put_along_axis(x: Any, indices: Any, values: Any, /, axis: int = -1) -> Tensor:
    """A copy of `x` with `values` at `indices` along `axis`, position by position."""
    t, i = as_tensor(x), _integers("put_along_axis", indices)
    a = normal_axis("put_along_axis", axis, t.ndim)
    i = _wrap(i, t.shape[a])
    shape = tuple(i.shape[k] if k == a else t.shape[k] for k in range(t.ndim))
    v = cast(promote_operands(values, t)[0], t.dtype)
    v = emit("broadcast", v, shape=shape) if v.shape != shape else v
    places = _grid(t, i, a, shape)
    places = [p if p.ndim else emit("broadcast", p, shape=(1,) * t.ndim) for p in places]
    return emit("scatter", t, v, *places, axes=tuple(range(t.ndim)), mode="set")


@public
def dynamic_slice(x: Any, starts: Any, sizes: Any) -> Tensor:
    """The window of `sizes` that begins at `starts` (integers or integer scalars), moved so that it fits into `x`."""
    t = as_tensor(x)
    return emit("dynamic_slice", t, *_starts(t, starts), sizes=as_shape(sizes))


@public
def dynamic_update(x: Any, update: Any, starts: Any) -> Tensor:
    """A copy of `x` with the window at `starts` replaced by `update`, moved so that it fits."""
    t = as_tensor(x)
    u = cast(promote_operands(update, t)[0], t.dtype)
    return emit("dynamic_update", t, u, *_starts(t, starts))


def _starts(t: Tensor, starts: Any) -> list[Tensor]:
    items = list(starts) if isinstance(starts, tuple | list) else [starts]
    if isinstance(starts, Tensor) and starts.ndim == 1:
        items = list(starts)
    if len(items) != t.ndim:
        raise error("FX0224", f"{len(items)} starts for the {t.ndim} axes of {t.type}", loc=here())
    return [cast(_wrap(_integers("dynamic_slice", s), d), i64) for s, d in zip(items, t.shape, strict=True)]


@public
def one_hot(x: Any, num_classes: Any, /, *, dtype: Any = None, axis: int = -1) -> Tensor:
    """1 at the class of each element along a new axis, 0 elsewhere; a class out of range gives zeros."""
    t = _integers("one_hot", x)
    (n,) = as_shape(num_classes)
    classes = iota((n,), 0, i64)
    r = emit("eq", emit("reshape", cast(t, i64), shape=(*t.shape, 1)), classes)
    return moveaxis(cast(r, f32 if dtype is None else as_dtype(dtype)), -1, axis)


# ---- positions ------------------------------------------------------------------------------------------------------------


def _bound(mask: Tensor, size: Any) -> Dim:
    """The number of rows of a result whose size depends on values: one known only at run time where nothing says it."""
    if size is not None:
        return as_shape(size)[0]
    now = mask._now()
    if now is None:
        now = _known(mask)
    return count_of(mask) if now is None else int(np.count_nonzero(now))


@public
def nonzero(x: Any, /, *, size: Any = None, fill_value: int = 0) -> tuple[Tensor, ...]:
    """The positions of the elements that are not 0, one i64 tensor per axis, in row-major order.

    `size` is the length of the results: further positions are dropped, missing ones are `fill_value`. Without it the results
    are as long as there are positions; in a traced program that length is known only at run time (see `fx.extent`).
    """
    mask = truth(x)
    if not mask.ndim:
        raise error("FX0220", "nonzero takes a tensor of at least one axis", loc=here())
    n = _bound(mask, size)
    places, count = emit_many("nonzero", mask, bound=n)
    if fill_value != 0:
        valid = emit("lt", reshape(iota((n,)), (n, 1)), count)
        places = emit("select", valid, places, constant(fill_value, i64))
    return tuple(reshape(emit("slice", places, start=(0, k), limit=(n, k + 1)), (n,)) for k in range(mask.ndim))


@public
def compress(condition: Any, x: Any, /, axis: int | None = None, *, size: Any = None) -> Tensor:
    """The slices of `x` along `axis` (None: of the raveled tensor) where the vector `condition`, which may be shorter than
    the axis, holds. `size` is as for `nonzero`, with the first slice in missing places."""
    mask, t = truth(condition), as_tensor(x)
    if mask.ndim != 1:
        raise error("FX0220", f"compress: the condition is {mask.type}, not a vector", loc=here())
    return take(t, nonzero(mask, size=size)[0], axis=axis)


@public
def flatnonzero(x: Any, /, *, size: Any = None, fill_value: int = 0) -> Tensor:
    """The positions of the elements of the raveled tensor that are not 0."""
    return nonzero(ravel(x), size=size, fill_value=fill_value)[0]


@public
def argwhere(x: Any, /, *, size: Any = None, fill_value: int = 0) -> Tensor:
    """The positions of the elements that are not 0, one row each."""
    from fluxir.frontend.api_manipulation import stack

    return stack(nonzero(x, size=size, fill_value=fill_value), axis=1)


# ---- sorting --------------------------------------------------------------------------------------------------------------


@public
def sort(x: Any, /, axis: int | None = -1, *, descending: bool = False, stable: bool = True) -> Tensor:
    """Sorted along `axis` (None: the raveled tensor), NaN last."""
    t = as_tensor(x)
    if axis is None:
        t, axis = ravel(t), 0
    return emit("sort", t, axis=normal_axis("sort", axis, t.ndim), descending=descending)


@public
def argsort(x: Any, /, axis: int | None = -1, *, descending: bool = False, stable: bool = True) -> Tensor:
    """The positions that sort `x` along `axis`, i64; equal elements keep their order."""
    t = as_tensor(x)
    if axis is None:
        t, axis = ravel(t), 0
    return emit("argsort", t, axis=normal_axis("argsort", axis, t.ndim), descending=descending)


@public
def top_k(x: Any, /, k: Any, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k largest elements along `axis`, largest first, and their positions (i64)."""
    t = as_tensor(x)
    a = normal_axis("top_k", axis, t.ndim)
    values, places = emit_many("topk", moveaxis(t, a, -1), k=as_shape(k)[0])
    return moveaxis(values, -1, a), moveaxis(places, -1, a)


topk = top_k


@public
def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None) -> Tensor:
    """Where the elements of x2 belong in the sorted vector x1, i64: before equal ones ("left") or after ("right")."""
    a, b = promote_operands(x1, x2)
    return emit("searchsorted", a if sorter is None else take(a, sorter), b, side=side)


@public
def digitize(x: Any, bins: Any, right: bool = False) -> Tensor:
    """The number of the bin of each element, for increasing `bins`."""
    return searchsorted(bins, x, side="left" if right else "right")


@public
def interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None) -> Tensor:
    """Linear interpolation in the increasing points `xp` with values `fp`; outside: `left`, `right` or the end values."""
    a, p, f = (float_operand("interp", t) for t in promote_operands(x, xp, fp))
    n = promote_operands(constant(0, i64), p.shape[0])[1]
    one = constant(1, i64)
    high = emit("clamp", emit("searchsorted", p, a, side="right"), one, emit("sub", n, one))
    low = emit("sub", high, one)
    p0, p1, f0, f1 = (emit("gather", v, k, axes=(0,)) for v, k in ((p, low), (p, high), (f, low), (f, high)))
    gap = emit("sub", p1, p0)
    flat = emit("eq", gap, constant(0, gap.dtype))
    t = emit("div", emit("sub", a, p0), emit("select", flat, constant(1, gap.dtype), gap))
    r = emit("add", f0, emit("mul", emit("select", flat, constant(0, t.dtype), t), emit("sub", f1, f0)))
    first, last = (
        reshape(emit("gather", v, k, axes=(0,)), ()) for v, k in ((f, constant(0, i64)), (f, emit("sub", n, one)))
    )
    p_first, p_last = emit("gather", p, constant(0, i64), axes=(0,)), emit("gather", p, emit("sub", n, one), axes=(0,))
    low_value = first if left is None else promote_operands(a, left)[1]
    high_value = last if right is None else promote_operands(a, right)[1]
    r = emit("select", emit("lt", a, p_first), low_value, r)
    r = emit("select", emit("gt", a, p_last), high_value, r)
    return emit("select", emit("eq", a, p_last), last, r)


# ---- counting ---------------------------------------------------------------------------------------------------------------


@public
def bincount(x: Any, /, weights: Any = None, minlength: Any = 0, *, length: Any = None) -> Tensor:
    """How often each number 0, 1, ... occurs (i64), or the sum of its weights. `length` is the size of the result in a
    traced program; larger numbers are dropped."""
    t = ravel(_integers("bincount", x))
    if length is None:
        now = t._now() if t._now() is not None else _known(t)
        if now is None:
            raise error(
                "FX0221", "bincount: the largest number is known only at run time", help="give length=n", loc=here()
            )
        length = max(int(minlength), int(now.max()) + 1 if now.size else 0)
    (n,) = as_shape(length)
    if weights is None:
        one = constant(1, i64)
        start, updates = fill((n,), 0, i64), emit("broadcast", one, shape=t.shape)
    else:
        updates = ravel(weights)
        start = fill((n,), 0, updates.dtype)
    return emit("scatter", start, updates, t if t.dtype in (i32, i64) else cast(t, i64), axes=(0,), mode="add")


@public
def histogram(x: Any, bins: Any = 10, range: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Counts (i64) of the elements in each bin, and the bin edges; the last bin includes its upper edge.

    With an integer `bins`, `range` gives the outer edges (default: the smallest and largest element).
    """
    t = ravel(float_operand("histogram", x))
    if isinstance(bins, int | np.integer):
        from fluxir.frontend.api_creation import linspace

        if range is not None:
            low, high = range
            edges = as_tensor(np.linspace(low, high, int(bins) + 1).astype(t.dtype.numpy))
        else:
            smallest, biggest = emit("min", t, axes=(0,)), emit("max", t, axes=(0,))
            half = constant(0.5, t.dtype)
            same = emit("eq", smallest, biggest)  # numpy widens an interval of no width
            smallest = emit("select", same, emit("sub", smallest, half), smallest)
            biggest = emit("select", same, emit("add", biggest, half), biggest)
            edges = linspace(smallest, biggest, int(bins) + 1)
    else:
        edges = promote_operands(t, bins)[1]
    n = edges.shape[0] - 1
    last = emit("gather", edges, promote_operands(constant(0, i64), n)[1], axes=(0,))
    place = emit("sub", emit("searchsorted", edges, t, side="right"), constant(1, i64))
    place = emit(
        "select", emit("eq", t, last), promote_operands(place, n - 1)[1], place
    )  # out of range: dropped by the scatter
    counts = emit(
        "scatter", fill((n,), 0, i64), emit("broadcast", constant(1, i64), shape=t.shape), place, axes=(0,), mode="add"
    )
    return counts, edges


# ---- sets -------------------------------------------------------------------------------------------------------------------


class UniqueAll(NamedTuple):
    """What `unique_all` gives."""

    values: Any
    indices: Any
    inverse_indices: Any
    counts: Any


class UniqueCounts(NamedTuple):
    """What `unique_counts` gives."""

    values: Any
    counts: Any


class UniqueInverse(NamedTuple):
    """What `unique_inverse` gives."""

    values: Any
    inverse_indices: Any


@public
def unique_all(x: Any, /, *, size: Any = None) -> UniqueAll:
    """The different elements in increasing order, where each occurs first, which one each element is, and the counts.

    `size` is the length of the results; further values are dropped, and missing places hold the smallest value with count 0.
    Without it that length is, in a traced program, known only at run time (see `fx.extent`).
    """
    t = as_tensor(x)
    flat = ravel(t)
    n = flat.shape[0]
    order = emit("argsort", flat, axis=0)
    ordered = emit("gather", flat, order, axes=(0,))
    if n == 0:
        none = fill((0,), 0, i64)
        return UniqueAll(ordered, none, reshape(none, t.shape), none)
    if size is not None and not prove_le(1, n):
        raise error(
            "FX0218", f"unique: the tensor of {n} elements may be empty", help=f"state the fact {n} >= 1", loc=here()
        )
    place = iota((n,))
    before = emit("gather", ordered, emit("maximum", emit("sub", place, constant(1, i64)), constant(0, i64)), axes=(0,))
    first = emit("logical_or", emit("eq", place, constant(0, i64)), emit("ne", ordered, before))
    m = _bound(first, size)
    group = emit("sub", emit("cumsum", cast(first, i64), axis=0), constant(1, i64))
    starts, _ = emit_many("nonzero", first, bound=m)  # of the groups; missing places hold that of the first
    values = emit("gather", ordered, reshape(starts, (m,)), axes=(0,))
    ones = emit("broadcast", constant(1, i64), shape=(n,))
    counts = emit("scatter", fill((m,), 0, i64), ones, group, axes=(0,), mode="add")
    # The sort is stable, so the first of a group is the first in x.
    beyond = promote_operands(constant(0, i64), m)[1]
    indices = emit("scatter", fill((m,), 0, i64), order, emit("select", first, group, beyond), axes=(0,), mode="set")
    inverse = emit("scatter", fill((n,), 0, i64), group, order, axes=(0,), mode="set")
    return UniqueAll(values, indices, reshape(inverse, t.shape), counts)


@public
def unique_counts(x: Any, /, *, size: Any = None) -> UniqueCounts:
    """The different elements in increasing order and how often each occurs; see `unique_all`."""
    r = unique_all(x, size=size)
    return UniqueCounts(r.values, r.counts)


@public
def unique_inverse(x: Any, /, *, size: Any = None) -> UniqueInverse:
    """The different elements in increasing order and which one each element is; see `unique_all`."""
    r = unique_all(x, size=size)
    return UniqueInverse(r.values, r.inverse_indices)


@public
def unique_values(x: Any, /, *, size: Any = None) -> Tensor:
    """The different elements in increasing order; see `unique_all`."""
    return unique_all(x, size=size).values  # type: ignore[no-any-return]


@public
def unique(x: Any, *, size: Any = None) -> Tensor:
    """numpy's name for `unique_values`."""
    return unique_values(x, size=size)


@public
def isin(x1: Any, x2: Any, /, *, invert: bool = False) -> Tensor:
    """Whether each element of x1 is among the elements of x2."""
    a, b = promote_operands(x1, x2)
    same = emit("eq", emit("reshape", a, shape=(*a.shape, 1)), ravel(b))
    r = emit("any", same, axes=(a.ndim,))
    return emit("logical_not", r) if invert else r


__all__ = [
    "argsort", "argwhere", "bincount", "compress", "digitize", "dynamic_slice", "dynamic_update", "flatnonzero", "histogram",
    "interp", "isin", "nonzero", "one_hot", "put_along_axis", "searchsorted", "sort", "take", "take_along_axis",
    "top_k", "topk", "unique", "unique_all", "unique_counts", "unique_inverse", "unique_values",
]  # fmt: skip
