"""Derivatives of indexing and sorting.

What is read by index gets its cotangent added in place (`Into`), so that a loop that reads one element at a time costs what
it reads. Out-of-range indices follow the op: `gather` clamps, `scatter` drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.types import INDEX, TensorType
from fluxir.ops.adjoint import Builder, Into, full, to_shape, zeros
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


def _in_range(b: Builder, o: Op) -> Value:
    """Whether each index tuple lies in x."""
    x, _, *indices = o.operands
    axes = normal_axes("scatter", o.attrs.axes, len(x.shape))
    here: Value | None = None
    for i, axis in zip(indices, axes, strict=True):
        high = cast(b, b.index(x.shape[axis]), i.dtype)
        one = b.logical_and(b.ge(i, number(b, 0, i)), b.lt(i, high))
        here = one if here is None else b.logical_and(here, one)
    assert here is not None
    return to_shape(b, here, _common(o)[0])


def _inside(b: Builder, o: Op) -> Value:
    """Whether each index tuple lies in x, in the updates' shape."""
    return _spread(b, o, _in_range(b, o))


def _read(b: Builder, o: Op, v: Value) -> Value:
    """The elements of `v` (of x's shape) that the updates go to; for those that are dropped any element."""
    return b.gather(v, *o.operands[2:], axes=o.attrs.axes)  # type: ignore[no-any-return]


def _onto(b: Builder, o: Op, v: Value, updates: Value, mode: str) -> Value:
    return b.scatter(v, updates, *o.operands[2:], axes=o.attrs.axes, mode=mode)  # type: ignore[no-any-return]


def _common(o: Op) -> tuple[tuple[Dim, ...], Dim]:
    """The shape of a scatter's index tuples, and how many they are."""
    common = broadcast_shapes("scatter", [i.shape for i in o.operands[2:]])
    return common, product(common)


def _flat_indices(b: Builder, o: Op) -> list[Value]:
    """The index tensors of a scatter as lists, in the order in which the updates apply."""
    common, count = _common(o)
    return [b.reshape(to_shape(b, i, common), shape=(count,)) for i in o.operands[2:]]


def _last_writers(b: Builder, o: Op, inside: Value) -> Value:
    """Which updates are what stays where several go to one place: the last of them. By sorting, so that the work grows with
    the updates and not with what they are written to."""
    x = o.operands[0]
    common, count = _common(o)
    if count == 1:
        return inside
    axes = normal_axes("scatter", o.attrs.axes, len(x.shape))
    place = b.index(0)
    for i, axis in zip(_flat_indices(b, o), axes, strict=True):
        place = b.add(b.mul(place, b.index(x.shape[axis])), cast(b, i, INDEX.dtype))
    here = b.reshape(_in_range(b, o), shape=(count,))
    place = b.select(here, place, b.index(-1))
    order = b.argsort(place, axis=0)
    lined = b.gather(place, order, axes=(0,))
    following = b.pad(lined, b.index(-2), low=(-1,), high=(1,))
    last = b.scatter(here, b.ne(lined, following), order, axes=(0,), mode="set")
    return b.logical_and(inside, _spread(b, o, b.reshape(last, shape=common)))  # type: ignore[no-any-return]


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
            taken = _last_writers(b, o, inside)
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
    factor = _onto(b, o, full(b, 1, x.type), updates, "mul")
    scale = _read(b, o, b.mul(ct, x))
    if _common(o)[1] != 1:
        scale = b.mul(b.mul(scale, _products_before(b, o, False)), _products_before(b, o, True))
    return [b.mul(ct, factor), where(b, inside, scale)]


def _products_before(b: Builder, o: Op, reverse: bool) -> Value:
    """For each update the product of those that go to its place before it (`reverse`: after it). One by one and without a
    division, so that it is right with zeros among them, and so are its own derivatives."""
    x, updates, *_ = o.operands
    indices = _flat_indices(b, o)
    common, count = _common(o)
    rest = updates.shape[len(common) :]
    rows = b.reshape(updates, shape=(count, *rest))
    types = [x.type, TensorType(x.dtype, tuple(rest)), *[TensorType(i.dtype) for i in indices]]

    def body(k: Builder, table: Value, factor: Value, *at: Value) -> list[Value]:
        so_far = k.gather(table, *at, axes=o.attrs.axes)
        return [k.scatter(table, k.mul(so_far, factor), *at, axes=o.attrs.axes, mode="set"), so_far]

    block = b.block(types, body)
    out = b.emit("scan", full(b, 1, x.type), rows, *indices, blocks=[block], carry=1, reverse=reverse, length=count)
    return b.reshape(out[1], shape=updates.shape)  # type: ignore[no-any-return]


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
