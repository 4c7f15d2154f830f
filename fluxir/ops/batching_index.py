"""Batching rules of ops that index and search; see `ops/batching.py` for what a rule is.

An index with a batch axis becomes an index beside the number of the lane: gather and scatter take any number of indexed
axes, so that the result is one gather or scatter. Dynamic slices become those where their starts differ between lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.opdef import set_batch
from fluxir.ops.batching import Builder, Flags, Results, aligned, lanes, moved, one_by_one, whole
from fluxir.ops.index import rest_axes
from fluxir.ops.rules import normal_axes


def _indices(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, first: int) -> tuple[list[Value], int]:
    """The index tensors from operand `first` on, those with a batch aligned to the others, and the rank they have in common
    without it."""
    rank = max(len(v.shape) for v in op.operands[first:])
    every = zip(xs[first:], flags[first:], strict=True)
    return [aligned(b, x, rank) if f else x for x, f in every], rank


def _gather(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    axes = normal_axes("gather", op.attrs["axes"], len(op.operands[0].shape))
    indices, rank = _indices(b, op, xs, flags, 1)
    if not flags[0]:
        return b.emit("gather", xs[0], *indices, axes=axes, loc=op.loc)
    axes = tuple(k + 1 for k in axes)
    if any(flags[1:]):
        return b.emit("gather", xs[0], lanes(b, size, rank), *indices, axes=(0, *axes), loc=op.loc)
    (out,) = b.emit("gather", xs[0], *indices, axes=axes, loc=op.loc)
    return [moved(b, out, rank, 0)]


def _scatter(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    axes = tuple(k + 1 for k in normal_axes("scatter", op.attrs["axes"], len(op.operands[0].shape)))
    x, updates = (whole(b, v, f, size) for v, f in zip(xs[:2], flags[:2], strict=True))
    indices, rank = _indices(b, op, xs, flags, 2)
    if any(flags[2:]):
        return b.clone(op, [x, updates, lanes(b, size, rank), *indices], axes=(0, *axes))
    return b.clone(op, [x, moved(b, updates, 0, rank), *indices], axes=axes)


# ---- dynamic slices ---------------------------------------------------------------------------------------------------------


def _places(
    b: Builder, starts: Sequence[Value], flags: Flags, sizes: Sequence[Dim], shape: Sequence[Dim]
) -> tuple[list[int], list[Value]]:
    """The axes that are not taken whole, and for each the indices that the slice reads, aligned: [size or 1, ..., n, ..., 1]."""
    cut = [k for k, (n, d) in enumerate(zip(sizes, shape, strict=True)) if n != d]
    out = []
    for at, k in enumerate(cut):
        first = b.minimum(b.maximum(starts[k], b.index(0)), b.index(shape[k] - sizes[k]))
        if flags[k]:
            first = aligned(b, first, len(cut))
        step = b.iota(shape=(sizes[k], *[1] * (len(cut) - at - 1)), axis=0, dtype="i64")
        out.append(b.add(first, step))
    return cut, out


def _dynamic_slice(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    sizes, shape = op.attrs["sizes"], op.operands[0].shape
    if not any(flags[1:]):
        return b.clone(op, [xs[0], b.index(0), *xs[1:]], sizes=(size, *sizes))
    cut, places = _places(b, xs[1:], flags[1:], sizes, shape)
    if not any(flags[1 + k] for k in cut):  # what differs between lanes is a start that has no choice
        x = whole(b, xs[0], flags[0], size)
        return b.clone(
            op, [x, b.index(0), *[_any(b, v, f) for v, f in zip(xs[1:], flags[1:], strict=True)]], sizes=(size, *sizes)
        )
    if flags[0]:
        (out,) = b.emit("gather", xs[0], lanes(b, size, len(cut)), *places, axes=(0, *[k + 1 for k in cut]), loc=op.loc)
    else:
        (out,) = b.emit("gather", xs[0], *places, axes=tuple(cut), loc=op.loc)
    order = [*cut, *rest_axes(len(shape), cut)]
    perm = (0, *[order.index(k) + 1 for k in range(len(shape))])
    return [out if perm == tuple(range(len(perm))) else b.transpose(out, perm=perm)]


def _any(b: Builder, start: Value, flag: bool) -> Any:
    """A start that is clamped to 0 whatever it is."""
    return b.index(0) if flag else start


def _dynamic_update(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    shape, sizes = op.operands[0].shape, op.operands[1].shape
    x, update = (whole(b, v, f, size) for v, f in zip(xs[:2], flags[:2], strict=True))
    starts, moving = xs[2:], flags[2:]
    cut, places = _places(b, starts, moving, sizes, shape) if any(moving) else ([], [])
    if not any(moving[k] for k in cut):
        return b.clone(op, [x, update, b.index(0), *[_any(b, v, f) for v, f in zip(starts, moving, strict=True)]])
    order = [*cut, *rest_axes(len(shape), cut)]
    perm = (0, *[k + 1 for k in order])
    update = update if perm == tuple(range(len(perm))) else b.transpose(update, perm=perm)
    axes = (0, *[k + 1 for k in cut])
    return b.emit("scatter", x, update, lanes(b, size, len(cut)), *places, axes=axes, mode="set", loc=op.loc)


# ---- searching ----------------------------------------------------------------------------------------------------------------


def _searchsorted(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """Values for all lanes at once where the sorted tensor is one; otherwise lane by lane."""
    return b.clone(op, xs) if not flags[0] else one_by_one(b, op, xs, flags, size)


_RULES: dict[str, Any] = {
    "gather": _gather,
    "scatter": _scatter,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update": _dynamic_update,
    "searchsorted": _searchsorted,
    "nonzero": one_by_one,
}
for _name, _rule in _RULES.items():
    set_batch(_name, _rule)

__all__: list[str] = []
