"""Derivatives of sliding windows. A cotangent is shared evenly by equal extrema, as in `max` and `min`.

A sum is its own transpose. For the others small windows are taken apart: one strided slice for each place in the window,
which fuse. Windows that tile the operand, and large ones, are handled at once as a tensor with the windows along axes of
its own, so that the code does not grow with the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cartesian
from math import prod
from typing import Any

import numpy as np

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import INDEX
from fluxir.ops.adjoint import Builder, full, zeros
from fluxir.ops.adjoint_reduce import Cotangents, number, others, where
from fluxir.ops.nest import accumulator, cast, identity

LARGE = 25  # places of a window that are written out


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

    def read_all(self, x: Value, fill: float) -> list[Value]:
        wide = self.padded(x, fill)
        return [self.read(wide, k) for k in self.offsets]

    def write(self, parts: Sequence[Value]) -> Value:
        a, b, (x,) = self.o.attrs, self.b, self.o.operands
        total: Value | None = None
        gaps = tuple(s - 1 for s in a.strides)
        for offset, v in zip(self.offsets, parts, strict=True):
            # Straight to the operand's own places: what lies in the padding is cropped.
            low = tuple(k * d - p for k, d, (p, _) in zip(offset, a.dilation, self.pads, strict=True))
            high = tuple(n - s - lo for n, s, lo in zip(x.shape, self.spread, low, strict=True))
            put = b.pad(v, number(b, 0, v), low=low, high=high, interior=gaps if any(gaps) else None)
            total = put if total is None else b.add(total, put)
        assert total is not None
        return total


def _is_empty(o: Op) -> bool:
    return 0 in o.result.shape or 0 in o.operands[0].shape


def window_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    (x,), a, ct = o.operands, o.attrs, cts[0]
    if _is_empty(o):
        return [zeros(b, x.type)]
    if a.op == "sum":
        return [_sum_back(b, o, ct)]
    wide = at_once(b, o)
    if wide is not None:
        return [wide.vjp(ct)]
    w = Windows(b, o)
    read = w.read_all(x, identity(a.op, x.dtype))
    if a.op == "prod":
        return [w.write([b.mul(ct, p) for p in _others(b, read)])]
    here, share = _window_winners(b, o, read)
    given = b.mul(ct, share)
    return [w.write([where(b, h, given) for h in here])]


def window_jvp(b: Builder, o: Op, tangents: Cotangents) -> list[Any]:
    (x,), a, t = o.operands, o.attrs, tangents[0]
    if a.op == "sum":
        return list(b.emit("reduce_window", t, **a))
    if _is_empty(o):
        return [zeros(b, o.result.type)]
    wide = at_once(b, o)
    if wide is not None:
        return [wide.jvp(t)]
    w = Windows(b, o)
    read, moves = w.read_all(x, identity(a.op, x.dtype)), w.read_all(t, 0)
    if a.op == "prod":
        return [_total(b, [b.mul(m, p) for m, p in zip(moves, _others(b, read), strict=True)])]
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


# ---- windows at once ------------------------------------------------------------------------------------------------------


class AtOnce:
    """The operand with its windows along `axes`: `read` makes that form, `write` adds it back into the operand's shape,
    `spread` repeats a value of the result's shape over each window."""

    def __init__(self, b: Builder, o: Op) -> None:
        self.b, self.o = b, o
        self.axes: tuple[int, ...] = ()
        self.places: tuple[int, ...] = ()  # of the result's axes in that form
        self.shape: tuple[Dim, ...] = ()

    def read(self, x: Value, fill: float) -> Value:
        raise NotImplementedError

    def write(self, v: Value) -> Value:
        raise NotImplementedError

    def spread(self, v: Value) -> Value:
        return self.b.broadcast(v, shape=self.shape, axes=self.places)  # type: ignore[no-any-return]

    def factor(self) -> Value:
        """What the result changes by with each element of its window."""
        b, o = self.b, self.o
        x = self.read(o.operands[0], identity(o.attrs.op, o.result.dtype))
        if o.attrs.op == "prod":
            return others(b, cast(b, x, accumulator(x.dtype)), self.axes)
        here = b.eq(x, self.spread(o.result))
        count = b.sum(b.cast(here, dtype=accumulator(x.dtype)), axes=self.axes)
        share = b.div(number(b, 1, count), b.maximum(count, number(b, 1, count)))
        return where(b, here, self.spread(share))

    def vjp(self, ct: Value) -> Value:
        b = self.b
        factor = self.factor()
        return self.write(cast(b, b.mul(self.spread(cast(b, ct, factor.dtype)), factor), ct.dtype))

    def jvp(self, t: Value) -> Value:
        b = self.b
        factor = self.factor()
        moved = cast(b, self.read(t, 0), factor.dtype)
        return cast(b, b.sum(b.mul(moved, factor), axes=self.axes), t.dtype)


class Tiles(AtOnce):
    """Windows side by side: a reshape."""

    @staticmethod
    def fit(o: Op) -> bool:
        a, x = o.attrs, o.operands[0]
        every = zip(x.shape, a.window, a.strides, a.dilation, strict=True)
        return not any(a.padding) and all(
            s == w and (w == 1 or (d == 1 and isinstance(n, int))) for n, w, s, d in every
        )

    def __init__(self, b: Builder, o: Op) -> None:
        super().__init__(b, o)
        shape: list[Dim] = []
        places, axes = [], []
        for m, w in zip(o.result.shape, o.attrs.window, strict=True):
            places.append(len(shape))
            shape.append(m)
            if w > 1:
                axes.append(len(shape))
                shape.append(w)
        self.shape, self.places, self.axes = tuple(shape), tuple(places), tuple(axes)
        self.covered = tuple(m * w for m, w in zip(o.result.shape, o.attrs.window, strict=True))
        self.rest = tuple(n - c for n, c in zip(o.operands[0].shape, self.covered, strict=True))

    def read(self, x: Value, fill: float) -> Value:
        if any(n != 0 for n in self.rest):
            x = self.b.slice(x, start=(0,) * len(self.covered), limit=self.covered)
        return self.b.reshape(x, shape=self.shape)  # type: ignore[no-any-return]

    def write(self, v: Value) -> Value:
        b = self.b
        v = b.reshape(v, shape=self.covered)
        if any(n != 0 for n in self.rest):
            v = b.pad(v, number(b, 0, v), low=(0,) * len(self.rest), high=self.rest)
        return v


class Patches(AtOnce):
    """Windows that may overlap, along one more axis at the end: a gather, and back a scatter."""

    def __init__(self, b: Builder, o: Op) -> None:
        super().__init__(b, o)
        a, rank = o.attrs, len(o.result.shape)
        self.axes, self.places = (rank,), tuple(range(rank))
        self.shape = (*o.result.shape, prod(a.window))
        self.low, self.high = a.padding[0::2], a.padding[1::2]
        offsets = np.stack([i.reshape(-1) for i in np.indices(a.window)]).astype(np.int64)
        self.index = []
        for i, m in enumerate(o.result.shape):
            at = b.iota(shape=(*[m if k == i else 1 for k in range(rank)], 1), axis=i, dtype=INDEX.dtype)
            at = b.mul(at, b.index(a.strides[i]))
            self.index.append(b.add(at, b.const(offsets[i] * a.dilation[i])) if a.window[i] > 1 else at)

    def padded(self, x: Value, fill: float) -> Value:
        if not any((*self.low, *self.high)):
            return x
        return self.b.pad(x, number(self.b, fill, x), low=self.low, high=self.high)  # type: ignore[no-any-return]

    def read(self, x: Value, fill: float) -> Value:
        wide = self.padded(x, fill)
        return self.b.gather(wide, *self.index, axes=tuple(range(len(wide.shape))))  # type: ignore[no-any-return]

    def write(self, v: Value) -> Value:
        b = self.b
        wide = self.padded(zeros(b, self.o.operands[0].type), 0)
        total = b.scatter(full(b, 0, wide.type), v, *self.index, axes=tuple(range(len(wide.shape))), mode="add")
        low, high = tuple(-n for n in self.low), tuple(-n for n in self.high)
        return b.pad(total, number(b, 0, v), low=low, high=high) if any((*low, *high)) else total  # type: ignore[no-any-return]


def at_once(b: Builder, o: Op) -> AtOnce | None:
    """How to take the windows at once, where that is better than one slice for each of their places."""
    if prod(o.attrs.window) == 1:
        return None
    if Tiles.fit(o):
        return Tiles(b, o)
    return Patches(b, o) if prod(o.attrs.window) > LARGE else None
