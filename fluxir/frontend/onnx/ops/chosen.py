"""Operators whose number of results depends on values: NonZero, Compress, Unique, NonMaxSuppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Results
from fluxir.frontend.onnx.registry import Int, Known, op
from fluxir.frontend.onnx.values import concrete, is_texts, known, tensor
from fluxir.ir import dims
from fluxir.ir.dtypes import i64


@op("NonZero", since=9)
def non_zero(x: Any) -> Any:
    x = x if fx.rank(x) else fx.reshape(x, (1,))
    return fx.stack(fx.nonzero(x), axis=0)


@op("Compress", since=9)
def compress(x: Any, condition: Known, *, axis: Int | None = None) -> Any:
    if axis is None:
        x, axis = fx.reshape(x, (-1,)), 0
    a = fx.axis_of(axis, fx.rank(x))
    if concrete(condition):
        return fx.take(x, np.flatnonzero(known(condition, "the condition")), axis=a)
    return fx.compress(tensor(condition), x, axis=a)


# ---- sets ----------------------------------------------------------------------------------------------------------


@op("Unique", since=11)
def unique(x: Any, *, axis: Int | None = None, sorted: Int = 1) -> Results:
    """The different elements (or slices along an axis), where each occurs first, which one each is, and how often."""
    if is_texts(x):
        return _unique_texts(x, axis, bool(sorted))
    if axis is None:
        values, first, inverse, counts = fx.unique_all(fx.reshape(x, (-1,)))
        a = 0
    else:
        a = fx.axis_of(axis, fx.rank(x))
        values, first, inverse, counts = _unique_slices(x, a)
    if not sorted:  # by first occurrence
        order = fx.argsort(first)
        values, first, counts = fx.take(values, order, axis=a), fx.take(first, order), fx.take(counts, order)
        inverse = fx.take(fx.argsort(order), inverse)
    return Results((values, first, inverse, counts))


@fx.public
def _unique_slices(x: Any, axis: int) -> tuple[Any, ...]:
    """Slices in lexicographic order: stable sorts by one column after the other, the first column last."""
    x = fx.asarray(x)
    n = x.shape[axis]
    rest = tuple(d for k, d in enumerate(x.shape) if k != axis)
    rows = fx.reshape(fx.moveaxis(x, axis, 0), (n, dims.product(rest)))

    def by_column(order: Any, column: Any) -> Any:
        return fx.take(order, fx.argsort(fx.take(column, order))), ()

    order, _ = fx.scan(by_column, fx.arange(n), fx.transpose(rows, (1, 0)), reverse=True)
    ordered = fx.take(rows, order, axis=0)
    place = fx.arange(n)
    before = fx.take(ordered, fx.maximum(fx.subtract(place, np.int64(1)), np.int64(0)), axis=0)
    begins = fx.logical_or(fx.equal(place, np.int64(0)), fx.any(fx.not_equal(ordered, before), axis=1))
    (starts,) = fx.nonzero(begins)
    first = fx.take(order, starts)
    group = fx.subtract(fx.cumsum(fx.cast(begins, i64)), np.int64(1))
    counts = fx.put(fx.zeros(starts.shape, i64), (group,), fx.ones((n,), i64), "add")
    inverse = fx.put(fx.zeros((n,), i64), (order,), group, "set")
    return fx.take(x, first, axis=axis), first, inverse, counts


def _unique_texts(x: Any, axis: int | None, ordered: bool) -> Results:
    if axis is not None and fx.rank(x) != 1:
        raise error("FX1208", "Unique of slices of texts")
    values, first, inverse, counts = np.unique(x.reshape(-1).astype(str), True, True, True)
    if not ordered:
        order = np.argsort(first)
        values, first, counts, inverse = values[order], first[order], counts[order], np.argsort(order)[inverse]
    return Results((values.astype(object), first, inverse, counts))


# ---- boxes ---------------------------------------------------------------------------------------------------------


@op("NonMaxSuppression", since=10)
def non_max_suppression(
    boxes: Any, scores: Any, most: Known = None, overlap: Any = None, least: Any = None, *, center_point_box: Int = 0
) -> Any:
    """Rows (batch, class, box) i64[K, 3] of the boxes kept: per batch and class in order of the score, without those that
    overlap one kept before by more than `overlap` of their union, and those whose score is not above `least`."""
    limit = np.int64(0) if most is None else fx.cast(fx.reshape(tensor(most), ()), i64)
    return _suppressed(boxes, scores, limit, overlap, least, bool(center_point_box))


@fx.public
def _suppressed(boxes: Any, scores: Any, limit: Any, overlap: Any, least: Any, centred: bool) -> Any:
    batch, classes, n = scores.shape
    order = fx.argsort(scores, axis=2, descending=True)
    ranked = fx.take_along_axis(scores, order, axis=2)
    low, high = _corners(boxes, centred)
    low, high = (
        fx.take_along_axis(fx.expand_dims(c, axis=1), fx.expand_dims(order, axis=3), axis=2) for c in (low, high)
    )  # [batch, classes, n, 2]
    area = fx.prod(fx.subtract(high, low), axis=3)
    wide = (
        fx.greater(ranked, fx.cast(fx.reshape(least, ()), fx.dtype(scores))) if least is not None else ranked == ranked
    )
    threshold = fx.scalar(0, boxes) if overlap is None else fx.cast(fx.reshape(overlap, ()), fx.dtype(boxes))
    zero = fx.scalar(0, boxes)

    def step(state: Any, i: Any) -> Any:
        gone, count = state
        candidate = fx.logical_and(fx.take(wide, i, axis=2), fx.logical_not(fx.take(gone, i, axis=2)))
        kept = fx.logical_and(candidate, fx.less(count, limit))
        a, b = (fx.expand_dims(fx.take(c, i, axis=2), axis=2) for c in (low, high))
        sides = fx.maximum(fx.subtract(fx.minimum(b, high), fx.maximum(a, low)), zero)
        common = fx.prod(sides, axis=3)
        union = fx.subtract(fx.add(fx.expand_dims(fx.take(area, i, axis=2), axis=2), area), common)
        close = fx.logical_and(fx.greater(common, zero), fx.greater(fx.divide(common, union), threshold))
        gone = fx.logical_or(gone, fx.logical_and(close, fx.expand_dims(kept, axis=2)))
        return (gone, fx.add(count, fx.cast(kept, i64))), kept

    start = (fx.zeros((batch, classes, n), "bool"), fx.zeros((batch, classes), i64))
    _, kept = fx.scan(step, start, fx.arange(n))
    b, c, rank = fx.nonzero(fx.transpose(kept, (1, 2, 0)))
    return fx.stack([b, c, fx.item(order, (b, c, rank))], axis=1)


def _corners(boxes: Any, centred: bool) -> tuple[Any, Any]:
    """The low and high corners [batch, n, 2] of boxes that say two opposite corners, or the centre and the sides."""
    a, b = fx.part(boxes, 2, 0, 2), fx.part(boxes, 2, 2, 4)
    if centred:
        half = fx.multiply(b, fx.scalar(0.5, boxes))
        return fx.subtract(a, half), fx.add(a, half)
    return fx.minimum(a, b), fx.maximum(a, b)
