"""Derivatives of reductions: sums, products, extrema, cumulative ops, sliding windows.

Ties: equal extrema share a cotangent evenly. Products are right with any number of zeros among their factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cartesian
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import INDEX, TensorType
from fluxir.ops.adjoint import Builder, zeros
from fluxir.ops.nest import identity
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
    count = again(b, o, b.cast(here, dtype=x.dtype))
    return here, b.div(number(b, 1, x), b.maximum(count, number(b, 1, x)))


def extremum_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    here, share = _winners(b, o)
    return [where(b, here, stretched(b, o, b.mul(cts[0], share)))]


def extremum_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    here, share = _winners(b, o)
    return [b.mul(again(b, o, where(b, here, tangents[0])), share)]


# ---- products -------------------------------------------------------------------------------------------------------


def shifted(b: Builder, x: Value, axis: int, by: int, fill: float) -> Value:
    """x moved along an axis by one place (`by` 1: towards the end), the free place filled."""
    low = tuple((by if i == axis else 0) for i in range(len(x.shape)))
    return b.pad(x, number(b, fill, x), low=low, high=tuple(-n for n in low))  # type: ignore[no-any-return]


def prod_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """The cotangent times the product of all other factors: those before times those after."""
    (x,) = o.operands
    axes = normal_axes(o.name, o.attrs.axes, len(x.shape))
    kept = [i for i in range(len(x.shape)) if i not in axes]
    if not axes:
        return [b.reshape(cts[0], shape=x.shape)]
    perm = (*kept, *axes)
    size: Dim = 1
    for i in axes:
        size = size * x.shape[i]
    line = b.reshape(b.transpose(x, perm=perm), shape=(*[x.shape[i] for i in kept], size))
    last = len(kept)
    before = shifted(b, b.cumprod(line, axis=last), last, 1, 1)
    after = shifted(b, b.cumprod(line, axis=last, reverse=True), last, -1, 1)
    others = b.reshape(b.mul(before, after), shape=tuple(x.shape[i] for i in perm))
    back = b.transpose(others, perm=tuple(perm.index(i) for i in range(len(perm))))
    return [b.mul(stretched(b, o, cts[0]), back)]


# ---- cumulative ops ---------------------------------------------------------------------------------------------------


def cumsum_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    return [b.cumsum(cts[0], axis=o.attrs.axis, reverse=not o.attrs.reverse)]


def cumprod_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """The product before each place, times S with S[i] = ct[i] + x[i+1] S[i+1]: a scan from the other end, without division."""
    (x,) = o.operands
    axis = normal_axis(o.name, o.attrs.axis, len(x.shape))
    step = -1 if o.attrs.reverse else 1
    before = shifted(b, o.result, axis, step, 1)
    following = shifted(b, x, axis, -step, 0)
    perm = (axis, *[i for i in range(len(x.shape)) if i != axis])
    sequences = [b.transpose(v, perm=perm) for v in (cts[0], following)]
    rest = TensorType(x.dtype, tuple(x.shape[i] for i in perm[1:]))

    def body(k: Builder, total: Value, ct: Value, factor: Value) -> list[Value]:
        total = k.add(ct, k.mul(factor, total))
        return [total, total]

    block = b.block([rest, rest, rest], body)
    out = b.emit(
        "scan", zeros(b, rest), *sequences, blocks=[block], carry=1, reverse=not o.attrs.reverse, length=x.shape[axis]
    )
    sums = b.transpose(out[1], perm=tuple(perm.index(i) for i in range(len(perm))))
    return [b.mul(before, sums)]


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


# ---- sliding windows ----------------------------------------------------------------------------------------------------


class Windows:
    """The windows of a `reduce_window`, one offset at a time: `read` gives the elements at an offset of every window in the
    result's shape, `write` puts such values back and adds what meets."""

    def __init__(self, b: Builder, o: Op) -> None:
        self.b, self.o = b, o
        a, (x,) = o.attrs, o.operands
        self.pads = [(a.padding[2 * i], a.padding[2 * i + 1]) for i in range(len(x.shape))]
        self.offsets = list(cartesian(*[range(w) for w in a.window]))
        self.spread = [(d - 1) * s + 1 for d, s in zip(o.result.shape, a.strides, strict=True)]

    def padded(self, x: Value, fill: float) -> Value:
        low, high = zip(*self.pads, strict=True) if self.pads else ((), ())
        return x if not any((*low, *high)) else self.b.pad(x, number(self.b, fill, x), low=low, high=high)

    def read(self, wide: Value, offset: Sequence[int]) -> Value:
        """`wide`: the operand as `padded` gives it."""
        a = self.o.attrs
        start = tuple(k * d for k, d in zip(offset, a.dilation, strict=True))
        limit = tuple(s + n for s, n in zip(start, self.spread, strict=True))
        return self.b.slice(wide, start=start, limit=limit, stride=a.strides)  # type: ignore[no-any-return]

    def write(self, parts: Sequence[tuple[Sequence[int], Value]]) -> Value:
        a, b, (x,) = self.o.attrs, self.b, self.o.operands
        total: Value | None = None
        gaps = tuple(s - 1 for s in a.strides)
        for offset, v in parts:
            # Straight to the operand's own places: what lies in the padding is cropped.
            low = tuple(k * d - p for k, d, (p, _) in zip(offset, a.dilation, self.pads, strict=True))
            high = tuple(n - s - lo for n, s, lo in zip(x.shape, self.spread, low, strict=True))
            put = b.pad(v, number(b, 0, v), low=low, high=high, interior=gaps if any(gaps) else None)
            total = put if total is None else b.add(total, put)
        assert total is not None
        return total


def window_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    (x,), a, ct = o.operands, o.attrs, cts[0]
    if 0 in o.result.shape or 0 in x.shape:
        return [zeros(b, x.type)]
    w = Windows(b, o)
    if a.op == "sum":
        return [_sum_back(b, o, ct)]
    wide = w.padded(x, identity(a.op, x.dtype))
    read = [w.read(wide, k) for k in w.offsets]
    if a.op == "prod":
        return [w.write([(k, b.mul(ct, p)) for k, p in zip(w.offsets, _others(b, read), strict=True)])]
    here, share = _window_winners(b, o, read)
    given = b.mul(ct, share)
    return [w.write([(k, where(b, h, given)) for k, h in zip(w.offsets, here, strict=True)])]


def window_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    (x,), a, t = o.operands, o.attrs, tangents[0]
    if a.op == "sum":
        return list(b.emit("reduce_window", t, **a))
    if 0 in o.result.shape or 0 in x.shape:
        return [zeros(b, o.result.type)]
    w = Windows(b, o)
    wide, moving = w.padded(x, identity(a.op, x.dtype)), w.padded(t, 0)
    read, moves = [w.read(wide, k) for k in w.offsets], [w.read(moving, k) for k in w.offsets]
    if a.op == "prod":
        parts = [b.mul(m, p) for m, p in zip(moves, _others(b, read), strict=True)]
        return [_total(b, parts)]
    here, share = _window_winners(b, o, read)
    return [b.mul(_total(b, [where(b, h, m) for h, m in zip(here, moves, strict=True)]), share)]


def _total(b: Builder, parts: Sequence[Value]) -> Value:
    total = parts[0]
    for p in parts[1:]:
        total = b.add(total, p)
    return total


def _window_winners(b: Builder, o: Op, read: Sequence[Value]) -> tuple[list[Value], Value]:
    here = [b.eq(v, o.result) for v in read]
    one = number(b, 1, o.result)
    count = _total(b, [b.cast(h, dtype=o.result.dtype) for h in here])
    return here, b.div(one, b.maximum(count, one))


def _others(b: Builder, factors: Sequence[Value]) -> list[Value]:
    """For each factor the product of the others."""
    before, after = [number(b, 1, factors[0])], [number(b, 1, factors[0])]
    for f in factors[:-1]:
        before.append(b.mul(before[-1], f))
    for f in reversed(factors[1:]):
        after.append(b.mul(after[-1], f))
    return [b.mul(x, y) for x, y in zip(before, reversed(after), strict=True)]


def _sum_back(b: Builder, o: Op, ct: Value) -> Value:
    """The transpose of a sum over windows is a sum over windows of the cotangent, spread by the strides."""
    (x,), a = o.operands, o.attrs
    pads = [(a.padding[2 * i], a.padding[2 * i + 1]) for i in range(len(x.shape))]
    low, high, reach = [], [], []
    for i, n in enumerate(x.shape):
        spread = (o.result.shape[i] - 1) * a.strides[i] + 1
        reach.append((a.window[i] - 1) * a.dilation[i])
        low.append(reach[i] - pads[i][0])
        high.append(n - spread - low[i] + reach[i])
    gaps = tuple(s - 1 for s in a.strides)
    wide = b.pad(ct, number(b, 0, ct), low=tuple(low), high=tuple(high), interior=gaps if any(gaps) else None)
    rank = len(x.shape)
    return b.reduce_window(  # type: ignore[no-any-return]
        wide, op="sum", window=a.window, strides=(1,) * rank, padding=(0,) * (2 * rank), dilation=a.dilation
    )
