"""Derivatives of indexing and sorting.

What is read by index gets its cotangent added in place (`Into`), so that a loop that reads one element at a time costs what
it reads. Out-of-range indices follow the op: `gather` clamps, `scatter` drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.types import INDEX
from fluxir.ops.adjoint import Builder, Into, full, zeros
from fluxir.ops.adjoint_reduce import Cotangents, number, put_along, take_along, where
from fluxir.ops.nest import cast
from fluxir.ops.rules import broadcast_shapes, normal_axes, normal_axis


def _none(o: Op, first: Sequence[Any]) -> list[Any]:
    """Cotangents for the first operands; indices have none."""
    return [*first, *[None] * (len(o.operands) - len(first))]


# ---- gather ---------------------------------------------------------------------------------------------------------


def _clamped(b: Builder, o: Op) -> list[Value]:
    """The indices of a gather as it uses them."""
    x, *indices = o.operands
    axes = normal_axes("gather", o.attrs.axes, len(x.shape))
    out = []
    for i, axis in zip(indices, axes, strict=True):
        high = cast(b, b.sub(b.index(x.shape[axis]), b.index(1)), i.dtype)
        out.append(b.maximum(b.minimum(i, high), number(b, 0, i)))
    return out


def gather_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    def add(k: Builder, total: Value) -> Value:
        return k.scatter(total, cts[0], *_clamped(k, o), axes=o.attrs.axes, mode="add")  # type: ignore[no-any-return]

    return _none(o, [Into(add)])


# ---- scatter --------------------------------------------------------------------------------------------------------


def _spread(b: Builder, o: Op, per_index: Value) -> Value:
    """A value for each index tuple, over the updates' shape."""
    updates = o.operands[1]
    return b.broadcast(per_index, shape=updates.shape, axes=tuple(range(len(per_index.shape))))  # type: ignore[no-any-return]


def _inside(b: Builder, o: Op) -> Value:
    """Whether each index tuple lies in x, in the updates' shape."""
    x, _, *indices = o.operands
    axes = normal_axes("scatter", o.attrs.axes, len(x.shape))
    common = broadcast_shapes("scatter", [i.shape for i in indices])
    here: Value | None = None
    for i, axis in zip(indices, axes, strict=True):
        high = cast(b, b.index(x.shape[axis]), i.dtype)
        one = b.logical_and(b.ge(i, number(b, 0, i)), b.lt(i, high))
        here = one if here is None else b.logical_and(here, one)
    assert here is not None
    return _spread(b, o, here if tuple(here.shape) == common else b.broadcast(here, shape=common))


def _read(b: Builder, o: Op, v: Value) -> Value:
    """The elements of `v` (of x's shape) that the updates go to; for those that are dropped any element."""
    return b.gather(v, *o.operands[2:], axes=o.attrs.axes)  # type: ignore[no-any-return]


def _onto(b: Builder, o: Op, v: Value, updates: Value, mode: str) -> Value:
    return b.scatter(v, updates, *o.operands[2:], axes=o.attrs.axes, mode=mode)  # type: ignore[no-any-return]


def _last_writers(b: Builder, o: Op) -> Value:
    """Which updates are what stays where several go to one place: the last of them."""
    x, _, *indices = o.operands
    axes = normal_axes("scatter", o.attrs.axes, len(x.shape))
    common = broadcast_shapes("scatter", [i.shape for i in indices])
    count = 1
    for d in common:
        count = count * d  # type: ignore[assignment]
    number_of = b.reshape(b.iota(shape=(count,), axis=0, dtype=INDEX.dtype), shape=common)
    places = tuple(x.shape[i] for i in axes)
    nobody = b.broadcast(b.const(-1, dtype=INDEX.dtype), shape=places)
    along = tuple(range(len(axes)))
    winner = b.scatter(nobody, number_of, *indices, axes=along, mode="set")
    return _spread(b, o, b.eq(b.gather(winner, *indices, axes=along), number_of))


def scatter_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    x, updates, *_ = o.operands
    ct = cts[0]
    if 0 in x.shape or 0 in updates.shape:
        return _none(o, [ct, zeros(b, updates.type)])
    inside = _inside(b, o)
    match o.attrs.mode:
        case "add":
            return _none(o, [ct, where(b, inside, _read(b, o, ct))])
        case "set":
            taken = b.logical_and(inside, _last_writers(b, o))
            return _none(o, [_onto(b, o, ct, zeros(b, updates.type), "set"), where(b, taken, _read(b, o, ct))])
        case "mul":
            return _none(o, _scaled(b, o, ct, inside))
    # min, max: whoever has the extremum shares the cotangent evenly.
    won = b.logical_and(inside, b.eq(updates, _read(b, o, o.result)))
    kept = b.eq(x, o.result)
    votes = b.cast(won, dtype=x.dtype)
    count = _onto(b, o, b.cast(kept, dtype=x.dtype), votes, "add")
    share = b.div(ct, b.maximum(count, number(b, 1, x)))
    return _none(o, [where(b, kept, share), where(b, won, _read(b, o, share))])


def _scaled(b: Builder, o: Op, ct: Value, inside: Value) -> list[Value]:
    """mul: x gets the product of the updates at its place, an update x times the product of the others there."""
    x, updates, *_ = o.operands
    product = _onto(b, o, full(b, 1, x.type), updates, "mul")
    zero, one = number(b, 0, updates), number(b, 1, updates)
    is_zero = b.eq(updates, zero)
    factor = b.select(is_zero, one, updates)
    nonzero = _onto(b, o, full(b, 1, x.type), factor, "mul")
    flags = b.cast(is_zero, dtype=x.dtype)
    zero_count = _onto(b, o, zeros(b, x.type), flags, "add")
    others_zero = b.gt(b.sub(_read(b, o, zero_count), flags), zero)
    others = b.select(others_zero, zero, b.div(_read(b, o, nonzero), factor))
    return [b.mul(ct, product), where(b, inside, b.mul(_read(b, o, b.mul(ct, x)), others))]


def scatter_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    """set and add are linear; mul, min and max follow the reverse rule's factors."""
    x, updates, *_ = o.operands
    tx = zeros(b, x.type) if tangents[0] is None else tangents[0]
    tu = zeros(b, updates.type) if tangents[1] is None else tangents[1]
    if o.attrs.mode in ("add", "set") or 0 in x.shape or 0 in updates.shape:
        return [_onto(b, o, tx, tu, o.attrs.mode if o.attrs.mode in ("add", "set") else "add")]
    inside = _inside(b, o)
    if o.attrs.mode == "mul":
        by_x, by_update = _scaled(b, o, full(b, 1, x.type), inside)
        return [_onto(b, o, b.mul(by_x, tx), b.mul(by_update, tu), "add")]
    won = b.logical_and(inside, b.eq(updates, _read(b, o, o.result)))
    kept = b.eq(x, o.result)
    count = _onto(b, o, b.cast(kept, dtype=x.dtype), b.cast(won, dtype=x.dtype), "add")
    total = _onto(b, o, where(b, kept, tx), where(b, won, tu), "add")
    return [b.div(total, b.maximum(count, number(b, 1, x)))]


# ---- dynamic slices ---------------------------------------------------------------------------------------------------


def dynamic_slice_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    def add(k: Builder, total: Value) -> Value:
        starts = o.operands[1:]
        part = k.add(k.dynamic_slice(total, *starts, sizes=o.attrs.sizes), cts[0])
        return k.dynamic_update(total, part, *starts)  # type: ignore[no-any-return]

    return _none(o, [Into(add)])


def dynamic_update_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    _, update, *starts = o.operands
    rest = b.dynamic_update(cts[0], zeros(b, update.type), *starts)
    return _none(o, [rest, b.dynamic_slice(cts[0], *starts, sizes=update.shape)])


# ---- sorting ------------------------------------------------------------------------------------------------------------


def _order(b: Builder, o: Op) -> tuple[Value, int]:
    (x,) = o.operands
    return b.argsort(x, **o.attrs), normal_axis("sort", o.attrs.axis, len(x.shape))


def sort_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """The cotangents go back the way the elements came."""
    index, axis = _order(b, o)
    return [put_along(b, zeros(b, o.operands[0].type), index, axis, cts[0])]


def sort_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    index, axis = _order(b, o)
    return [take_along(b, tangents[0], index, axis)]


def topk_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    (x,) = o.operands
    return [put_along(b, zeros(b, x.type), o.results[1], len(x.shape) - 1, cts[0])]


def topk_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    return [take_along(b, tangents[0], o.results[1], len(o.operands[0].shape) - 1), None]
