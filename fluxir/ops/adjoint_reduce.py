"""Derivatives of reductions: sums, products, extrema, cumulative ops.

Ties: equal extrema share a cotangent evenly. Products are right with any number of zeros among their factors. Counts and
products of f16 and bf16 are kept in f32, as the ops themselves keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import product
from fluxir.ir.types import INDEX, TensorType
from fluxir.ops.adjoint import Builder, full, zeros
from fluxir.ops.nest import accumulator, cast
from fluxir.ops.rules import normal_axes, normal_axis

Cotangents = Sequence[Any]


def stretched(b: Builder, o: Op, v: Value) -> Value:
    """A value of a reduction's result shape, over its operand's shape."""
    (x,) = o.operands
    axes = normal_axes(o.name, o.attrs.axes, len(x.shape))
    kept = tuple(i for i in range(len(x.shape)) if i not in axes)
    if o.attrs.keepdims:
        v = b.reshape(v, shape=tuple(x.shape[i] for i in kept))
    return b.broadcast(v, shape=x.shape, axes=kept)  # type: ignore[no-any-return]


def again(b: Builder, o: Op, v: Value, name: str = "sum") -> Value:
    """A reduction over the same axes of another value."""
    return b.emit(name, v, axes=o.attrs.axes, keepdims=o.attrs.keepdims)[0]  # type: ignore[no-any-return]


def number(b: Builder, value: float, like: Value) -> Value:
    return b.const(value, dtype=like.dtype)  # type: ignore[no-any-return]


def where(b: Builder, c: Value, x: Value, y: Value | None = None) -> Value:
    """x where c holds, else y (0)."""
    return b.select(c, x, number(b, 0, x) if y is None else y)  # type: ignore[no-any-return]


def sum_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    return [stretched(b, o, cts[0])]


# ---- max, min -------------------------------------------------------------------------------------------------------


def _winners(b: Builder, o: Op) -> tuple[Value, Value]:
    """Which elements are the extremum, and one over their number in the result's shape."""
    (x,) = o.operands
    here = b.eq(x, stretched(b, o, o.result))
    count = again(b, o, b.cast(here, dtype=accumulator(x.dtype)))
    return here, b.div(number(b, 1, count), b.maximum(count, number(b, 1, count)))


def extremum_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    here, share = _winners(b, o)
    part = b.mul(cast(b, cts[0], share.dtype), share)
    return [where(b, here, stretched(b, o, cast(b, part, cts[0].dtype)))]


def extremum_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    here, share = _winners(b, o)
    total = again(b, o, where(b, here, cast(b, tangents[0], share.dtype)))
    return [cast(b, b.mul(total, share), o.result.dtype)]


# ---- products -------------------------------------------------------------------------------------------------------


def shifted(b: Builder, x: Value, axis: int, by: int, fill: float) -> Value:
    """x moved along an axis by one place (`by` 1: towards the end), the free place filled."""
    low = tuple((by if i == axis else 0) for i in range(len(x.shape)))
    return b.pad(x, number(b, fill, x), low=low, high=tuple(-n for n in low))  # type: ignore[no-any-return]


def others(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """For each element the product over `axes` of all others: those before times those after."""
    kept = [i for i in range(len(x.shape)) if i not in axes]
    if not axes:
        return full(b, 1, x.type)
    perm = (*kept, *axes)
    line = b.reshape(b.transpose(x, perm=perm), shape=(*[x.shape[i] for i in kept], product(x.shape[i] for i in axes)))
    last = len(kept)
    before = shifted(b, b.cumprod(line, axis=last), last, 1, 1)
    after = shifted(b, b.cumprod(line, axis=last, reverse=True), last, -1, 1)
    out = b.reshape(b.mul(before, after), shape=tuple(x.shape[i] for i in perm))
    return b.transpose(out, perm=tuple(perm.index(i) for i in range(len(perm))))  # type: ignore[no-any-return]


def _factors(b: Builder, o: Op) -> Value:
    (x,) = o.operands
    return others(b, cast(b, x, accumulator(x.dtype)), normal_axes(o.name, o.attrs.axes, len(x.shape)))


def prod_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    factors = _factors(b, o)
    return [cast(b, b.mul(stretched(b, o, cast(b, cts[0], factors.dtype)), factors), cts[0].dtype)]


def prod_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    factors = _factors(b, o)
    return [cast(b, again(b, o, b.mul(cast(b, tangents[0], factors.dtype), factors)), o.result.dtype)]


# ---- cumulative ops ---------------------------------------------------------------------------------------------------


def cumsum_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    return [b.cumsum(cts[0], axis=o.attrs.axis, reverse=not o.attrs.reverse)]


def cumprod_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """The product before each place, times S with S[i] = ct[i] + x[i+1] S[i+1]: a scan from the other end, without division."""
    dtype = o.result.dtype
    x, ct = (cast(b, v, accumulator(dtype)) for v in (o.operands[0], cts[0]))
    axis = normal_axis(o.name, o.attrs.axis, len(x.shape))
    step = -1 if o.attrs.reverse else 1
    before = shifted(b, b.cumprod(x, **o.attrs), axis, step, 1)
    following = shifted(b, x, axis, -step, 0)
    perm = (axis, *[i for i in range(len(x.shape)) if i != axis])
    sequences = [b.transpose(v, perm=perm) for v in (ct, following)]
    rest = TensorType(x.dtype, tuple(x.shape[i] for i in perm[1:]))

    def body(k: Builder, total: Value, ct: Value, factor: Value) -> list[Value]:
        total = k.add(ct, k.mul(factor, total))
        return [total, total]

    block = b.block([rest, rest, rest], body)
    out = b.emit(
        "scan", zeros(b, rest), *sequences, blocks=[block], carry=1, reverse=not o.attrs.reverse, length=x.shape[axis]
    )
    sums = b.transpose(out[1], perm=tuple(perm.index(i) for i in range(len(perm))))
    return [cast(b, b.mul(before, sums), dtype)]


def places_along(b: Builder, index: Value, axis: int) -> list[Value]:
    """Index tensors for all axes: `index` along `axis`, each element's own place along the others."""
    rank = len(index.shape)
    out = []
    for i, d in enumerate(index.shape):
        shape = tuple(d if k == i else 1 for k in range(rank))
        out.append(index if i == axis else b.iota(shape=shape, axis=i, dtype=INDEX.dtype))
    return out


def take_along(b: Builder, x: Value, index: Value, axis: int) -> Value:
    """Elements of x at `index` along `axis` (numpy's take_along_axis)."""
    return b.gather(x, *places_along(b, index, axis), axes=tuple(range(len(x.shape))))  # type: ignore[no-any-return]


def put_along(b: Builder, total: Value, index: Value, axis: int, updates: Value) -> Value:
    """`updates` added to `total` at `index` along `axis`."""
    axes = tuple(range(len(total.shape)))
    return b.scatter(total, updates, *places_along(b, index, axis), axes=axes, mode="add")  # type: ignore[no-any-return]


def _leaders(b: Builder, o: Op) -> tuple[Value, int]:
    """Along the axis, the place from which each running extremum comes: the first that reaches it."""
    (x,) = o.operands
    axis = normal_axis(o.name, o.attrs.axis, len(x.shape))
    step = -1 if o.attrs.reverse else 1
    worst = float("-inf") if o.name == "cummax" else float("inf")
    earlier = shifted(b, o.result, axis, step, worst)
    new = b.gt(x, earlier) if o.name == "cummax" else b.lt(x, earlier)
    place = b.iota(shape=x.shape, axis=axis, dtype=INDEX.dtype)
    if o.attrs.reverse:  # from the end: the smallest place that has been new
        none = b.sub(b.index(x.shape[axis]), b.index(1))
        return b.cummin(b.select(new, place, none), axis=axis, reverse=True), axis
    return b.cummax(b.select(new, place, b.index(0)), axis=axis), axis


def running_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    index, axis = _leaders(b, o)
    return [put_along(b, zeros(b, o.operands[0].type), index, axis, cts[0])]


def running_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    index, axis = _leaders(b, o)
    return [take_along(b, tangents[0], index, axis)]
