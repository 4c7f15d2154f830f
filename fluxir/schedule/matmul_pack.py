"""Packing: copies of an operand in the order in which the inner loop of a product reads it.

A *panel* holds `width` elements of the free index for every k, side by side: [k, width], zeros beyond the end (numbers that
happen to lie there may be subnormal, which some processors are slow at). *Rows* are rows of the left operand, k running
along memory, at a distance that no cache maps onto itself. What is read along k in memory is transposed in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import product
from fluxir.ir.types import VectorType
from fluxir.schedule.contraction import BATCH, CONTRACT, FREE, Operand, OperandCode
from fluxir.schedule.group import Array
from fluxir.schedule.loops import Size, for_, index

LINES = 8  # lines of memory read side by side: no more than a first cache has ways
LoadRow = Callable[[int, int, int], Value]


def pieces(n: int, lanes: int) -> list[tuple[int, int]]:
    """Elements 0..n as vectors: (first, how many), of `lanes` lanes and then of smaller powers of two."""
    out, at, width = [], 0, lanes
    while at < n:
        while width > n - at:
            width //= 2
        out.append((at, width))
        at += width
    return out


def lanes_of(b: Builder, x: Value, first: int, count: int) -> Value:
    """`count` lanes of a vector from `first` on; one lane as a scalar."""
    if count == 1:
        return b.emit("extract", x, lane=first)[0]
    return b.emit("shuffle", x, x, mask=tuple(range(first, first + count)))[0]


def transposed(b: Builder, rows: Sequence[Value], block: int = 0) -> list[Value]:
    """Squares of vectors with rows and lanes exchanged: 1 by 1 blocks, then 2 by 2, ... change places across the diagonal.
    `block`: the size of a square, where the lanes hold several side by side (0: all lanes are one)."""
    n, rows = len(rows), list(rows)
    t = rows[0].type
    assert isinstance(t, VectorType)
    lanes = t.lanes
    d = 1
    while d < (block or n):
        low = tuple(i if not i & d else lanes + i - d for i in range(lanes))
        high = tuple(i + d if not i & d else lanes + i for i in range(lanes))
        for i in range(n):
            if not i & d:
                x, y = rows[i], rows[i + d]
                rows[i] = b.emit("shuffle", x, y, mask=low)[0]
                rows[i + d] = b.emit("shuffle", x, y, mask=high)[0]
        d *= 2
    return rows


def columns_of(b: Builder, load: LoadRow, count: int, lanes: int) -> list[Value]:
    """The columns of a square in memory as vectors: `load(row, first, lanes)` reads a part of a row. `count` rows exist; the
    lanes of others repeat the last. The widest exchange is done by loading halves: a load into the upper half of a register
    costs no shuffle."""
    half = lanes // 2

    def row(i: int) -> int:
        return min(i, count - 1)

    if half < 2:
        return transposed(b, [load(row(i), 0, lanes) for i in range(lanes)])
    out: list[Value] = []
    for first in (0, half):
        both = [
            b.emit("shuffle", load(row(i), first, half), load(row(i + half), first, half), mask=tuple(range(lanes)))[0]
            for i in range(half)
        ]
        out += transposed(b, both, half)
    return out


def part_of(b: Builder, code: OperandCode, t: Value, r: Value, k: Value, count: int, lanes: int) -> Value:
    """A vector of `lanes` from free index r on, of which only `count` elements exist and are read."""
    if count == lanes:
        return code.vector(b, t, r, k, lanes)
    (_, n), *rest = pieces(count, lanes)
    x = code.vector(b, t, r, k, n) if n > 1 else code.at(b, t, r, k)
    if n == 1:
        return b.emit("splat", x, lanes=lanes)[0]
    x = b.emit("shuffle", x, x, mask=tuple(min(i, n - 1) for i in range(lanes)))[0]
    for c, w in rest:
        y = (
            code.vector(b, t, plus(b, r, c), k, w)
            if w > 1
            else b.emit("splat", code.at(b, t, plus(b, r, c), k), lanes=2)[0]
        )
        y = b.emit("shuffle", y, y, mask=tuple(min(max(i - c, 0), w - 1) for i in range(lanes)))[0]
        x = b.emit("shuffle", x, y, mask=tuple(lanes + i if c <= i < c + w else i for i in range(lanes)))[0]
    return x


class Packer:
    """Copies one operand. `code` reads it; panels are `width` wide, in vectors of `lanes`."""

    def __init__(self, code: OperandCode, width: int, lanes: int) -> None:
        self.code, self.width, self.lanes = code, width, lanes
        self.run = code.operand.contiguous()

    def strip(
        self, b: Builder, mem: Value, at: Value, t: Value, first: Value, count: Size, lo: Size, n: Size, to: Size = 0
    ) -> None:
        """`count` whole panels, mem[at], mem[at + 1], ..., from free index `first` on, for n values of k from `lo` on, which go
        to place `to` of the panels and after it. Memory is read in its own order, a few lines at a time."""
        width = self.width
        if self.run != FREE:

            def panel(ib: Builder, p: Value) -> None:
                self.panel(ib, mem, plus(ib, at, p), t, plus(ib, first, ib.mul(p, ib.index(width))), width, lo, n, to)

            for_(b, 0, count, panel, name="panel", vectorize=False)
            return

        def lines(ib: Builder, k: Value, some: int) -> None:
            def panel(jb: Builder, p: Value) -> None:
                start = plus(jb, first, jb.mul(p, jb.index(width)))
                for j in range(some):
                    self._line(jb, mem, plus(jb, at, p), t, start, width, plus(jb, lo, j), plus(jb, to, j), k)

            for_(ib, 0, count, panel, name="panel", vectorize=False)

        end = whole(b, n, LINES)
        for_(b, 0, end, lambda ib, k: lines(ib, k, LINES), step=LINES, name="k", vectorize=False)
        if not (isinstance(n, int) and n % LINES == 0):
            for_(b, end, n, lambda ib, k: lines(ib, k, 1), name="k", vectorize=False)

    def panel(
        self,
        b: Builder,
        mem: Value,
        at: Value,
        t: Value,
        first: Value,
        count: int | Value,
        lo: Size,
        n: Size,
        to: Size = 0,
    ) -> None:
        """mem[at, to + k, c] = the operand at free index first + c and contracted index lo + k, for k in 0..n and c in
        0..count; zeros beyond."""
        if isinstance(count, Value):
            self._edge(b, mem, at, t, first, count, lo, n, to)
        elif self.run == CONTRACT and self.lanes > 1 and not (isinstance(n, int) and n < self.lanes):
            self._along_k(b, mem, at, t, first, count, lo, n, to)
        else:
            for_(b, 0, n, lambda kb, k: self._line(kb, mem, at, t, first, count, lo, to, k), name="k", vectorize=False)

    def _line(
        self, b: Builder, mem: Value, at: Value, t: Value, first: Value, count: int, lo: Size, to: Size, k: Value
    ) -> None:
        """One k of a panel."""
        code, source, place = self.code, plus(b, lo, k), plus(b, to, k)
        self._zeros(b, mem, at, count, place)
        for c, n in pieces(count, self.lanes):
            if self.run == FREE and n > 1:
                b.store(mem, code.vector(b, t, plus(b, first, c), source, n), at, place, b.index(c))
                continue
            for i in range(c, c + n):
                b.store(mem, code.at(b, t, plus(b, first, i), source), at, place, b.index(i))

    def _zeros(self, b: Builder, mem: Value, at: Value, count: int, place: Value) -> None:
        """Zeros from the vector on in which the columns end."""
        if count == self.width:
            return
        zero = b.const(0, dtype=self.code.dtype)
        first = count - count % self.lanes
        for c, n in pieces(self.width - first, self.lanes):
            x = b.emit("splat", zero, lanes=n)[0] if n > 1 else zero
            b.store(mem, x, at, place, b.index(first + c))

    def _along_k(
        self, b: Builder, mem: Value, at: Value, t: Value, first: Value, count: int, lo: Size, n: Size, to: Size
    ) -> None:
        lanes, code = self.lanes, self.code

        def square(kb: Builder, k: Value) -> None:
            source, place = plus(kb, lo, k), plus(kb, to, k)
            for j in range(lanes):
                self._zeros(kb, mem, at, count, plus(kb, place, j))
            for c0 in range(0, count, lanes):
                w = min(lanes, count - c0)

                def load(i: int, part: int, some: int, c0: int = c0) -> Value:
                    return code.vector(kb, t, plus(kb, first, c0 + i), plus(kb, source, part), some)

                for j, x in enumerate(columns_of(kb, load, w, lanes)):
                    for c, some in pieces(w, lanes):
                        part = x if some == lanes else lanes_of(kb, x, c, some)
                        kb.store(mem, part, at, plus(kb, place, j), kb.index(c0 + c))

        end = whole(b, n, lanes)
        for_(b, 0, end, square, step=lanes, name="k", vectorize=False)
        if not (isinstance(n, int) and n % lanes == 0):
            for_(
                b, end, n, lambda kb, k: self._line(kb, mem, at, t, first, count, lo, to, k), name="k", vectorize=False
            )

    def _edge(
        self, b: Builder, mem: Value, at: Value, t: Value, first: Value, count: Value, lo: Size, n: Size, to: Size
    ) -> None:
        """A panel with a number of columns that is not known."""
        code = self.code

        def line(kb: Builder, k: Value) -> None:
            source, place = plus(kb, lo, k), plus(kb, to, k)

            def one(lb: Builder, c: Value) -> None:
                lb.store(mem, code.at(lb, t, lb.add(first, c), source), at, place, c)

            self._zeros(kb, mem, at, 0, place)
            for_(kb, 0, count, one, vectorize=False)

        for_(b, 0, n, line, name="k", vectorize=False)

    def rows(self, b: Builder, mem: Value, t: Value, first: Value, count: Size, lo: Size, n: Size) -> None:
        """mem[r, k] = the operand at free index first + r and contracted index lo + k, for r in 0..count and k in 0..n."""
        code, lanes = self.code, self.lanes
        run = lanes * 4 if not isinstance(n, int) or n % (lanes * 4) == 0 else lanes

        def row(rb: Builder, r: Value) -> None:
            source = plus(rb, first, r)

            def vectors(kb: Builder, k: Value, run: int = run) -> None:
                xs = [code.vector(kb, t, source, plus(kb, plus(kb, lo, k), c), lanes) for c in range(0, run, lanes)]
                for c, x in enumerate(xs):
                    kb.store(mem, x, r, plus(kb, k, c * lanes))

            def single(kb: Builder, k: Value) -> None:
                kb.store(mem, code.at(kb, t, source, plus(kb, lo, k)), r, k)

            start: Size = 0
            for width in dict.fromkeys((run, lanes)):
                end = whole(rb, n, width)
                for_(rb, start, end, lambda kb, k, w=width: vectors(kb, k, w), step=width, name="k", vectorize=False)
                start = end
            if not (isinstance(n, int) and n % lanes == 0):
                for_(rb, start, n, single, name="k", vectorize=False)

        for_(b, 0, count, row, name="row", vectorize=False)


def plus(b: Builder, x: Size, y: Size) -> Value:
    """The sum of two sizes as an i64 value."""
    if isinstance(x, int) and isinstance(y, int):
        return b.index(x + y)
    if isinstance(y, int) and y == 0 and isinstance(x, Value):
        return x
    if isinstance(x, int) and x == 0 and isinstance(y, Value):
        return y
    return b.add(index(b, x), index(b, y))  # type: ignore[no-any-return]


def whole(b: Builder, n: Size, step: int) -> Size:
    """`n` down to a multiple of `step`."""
    if isinstance(n, int):
        return n - n % step
    n = index(b, n)
    return b.sub(n, b.fmod(n, b.index(step)))  # type: ignore[no-any-return]


def pack_array(side: Operand, width: int, dtype: Any, a: Array) -> Array:
    """What packing an operand whole gives, for a constant: panels [batch and panel, k, width], zeros beyond the free size."""
    a = np.asarray(a).reshape(tuple(int(d) for d in side.shape))
    order = [side.axes.index((c, p)) for c in (BATCH, CONTRACT, FREE) for p in range(len(side.dims[c]))]
    batch, free, depth = (int(product(d)) for d in side.dims)
    flat = a.transpose(order).reshape(batch, depth, free)
    panels = -(-free // width)
    padded = np.zeros((batch, depth, panels * width), dtype)
    padded[:, :, :free] = flat
    return np.ascontiguousarray(
        padded.reshape(batch, depth, panels, width).transpose(0, 2, 1, 3).reshape(-1, depth, width)
    )


__all__ = ["Packer", "columns_of", "lanes_of", "pack_array", "part_of", "pieces", "plus", "transposed", "whole"]
