"""The input of a task of a convolution, copied to the stack with its channels innermost.

A task computes a block of results: some images, rows and columns. What it reads is copied into a *patch*
`[block of channels][image][depth of the window][line][column][channel]`, with zeros where there is no element, so that the
loops over it know nothing of edges. Channels become neighbours by transposing squares of vectors. The last block of rows or
columns begins where it still fits (what overlaps is computed twice, with the same bits); images and channels beyond the end are
the last image again, and zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.types import MemType
from fluxir.ops.nest import cast
from fluxir.schedule.conv_space import Axis, Conv, index_of
from fluxir.schedule.loops import Size, for_, if_, index, nest
from fluxir.schedule.matmul_pack import transposed


@dataclass(frozen=True)
class Place:
    """Where a task's results begin: image, group, depth, row and column."""

    image: Value
    group: Value
    depth: Value
    row: Value
    column: Value


@dataclass(frozen=True, eq=False)
class Patch:
    """What a block of `images` x `rows` x `columns` results reads, in blocks of `depth` channels."""

    conv: Conv
    lanes: int
    images: int
    rows: int
    columns: int
    depth: int

    @property
    def blocks(self) -> int:
        return -(-self.conv.channels // self.depth)

    @property
    def lines(self) -> int:
        """Lines of input for one depth of the window. With a window of one row only those that are read."""
        rows = self.conv.axes[1]
        return self.rows if rows.window == 1 else rows.reach(self.rows)

    @property
    def pitch(self) -> int:
        """Columns of input."""
        return self.conv.axes[2].reach(self.columns)

    @property
    def block_size(self) -> int:
        return self.images * self.conv.axes[0].window * self.lines * self.pitch * self.depth

    @property
    def memory(self) -> MemType:
        return MemType(self.conv.dtype, (self.blocks * self.block_size,), "local")

    @property
    def nbytes(self) -> int:
        return self.blocks * self.block_size * self.conv.dtype.itemsize

    @property
    def places(self) -> int:
        """Results of one channel in the block."""
        return self.images * self.rows * self.columns

    def line_offset(self, depth: int = 0, line: int = 0, column: int = 0) -> int:
        """Elements between a place of the patch and the one `depth`, `line` and `column` further, in one block."""
        return ((depth * self.lines + line) * self.pitch + column) * self.depth

    def offset_of(self, b: Builder, place: Value) -> Value:
        """The element of the first block where the window of result `place` of the task begins."""
        row_stride = 1 if self.conv.axes[1].window == 1 else self.conv.axes[1].stride
        image, row = b.div(place, b.index(self.rows * self.columns)), b.fmod(place, b.index(self.rows * self.columns))
        row, column = b.div(row, b.index(self.columns)), b.fmod(row, b.index(self.columns))
        at = b.mul(image, b.index(self.conv.axes[0].window * self.lines * self.pitch * self.depth))
        at = b.add(at, b.mul(row, b.index(row_stride * self.pitch * self.depth)))
        return b.add(at, b.mul(column, b.index(self.conv.axes[2].stride * self.depth)))  # type: ignore[no-any-return]

    # ---- copying
    def fill(self, b: Builder, x: Value, patch: Value, at: Place, only: Value | None = None) -> None:
        """Copy what the task at `at` reads from memory `x`: all blocks of channels, or the one `only` as if it were the first."""
        deep, rows, _ = self.conv.axes
        length = times(b, self.pitch, self.depth)

        def line(ib: Builder, where: tuple[Value, ...]) -> None:
            block, image, kd, r = where
            n = ib.add(at.image, image)
            if self.images > 1:
                n = ib.minimum(n, ib.sub(ib.index(self.conv.batch), ib.index(1)))
            flat: Value = block
            for i, size in zip(where[1:], (self.images, deep.window, self.lines)):
                flat = ib.add(ib.mul(flat, index(ib, size)), i)
            to = ib.mul(flat, index(ib, length))
            block = block if only is None else only
            below = ib.add(ib.mul(at.depth, ib.index(deep.stride)), ib.mul(kd, ib.index(deep.step)))
            first = ib.mul(at.row, ib.index(rows.stride))
            down = ib.add(first, ib.mul(r, ib.index(rows.stride)) if rows.window == 1 else r)
            there, d = deep.source(ib, ib.sub(below, ib.index(deep.low)))
            in_rows, h = rows.source(ib, ib.sub(down, ib.index(rows.low)))

            def copy(jb: Builder) -> None:
                self._line(jb, x, patch, to, block, n, at, d, h)

            def clear(jb: Builder) -> None:
                self._clear(jb, patch, to, 0, length)

            if_(ib, ib.logical_and(there, in_rows), copy, clear)

        nest(b, (self.blocks if only is None else 1, self.images, deep.window, self.lines), line)

    def _clear(self, b: Builder, patch: Value, to: Value, first: Size, end: Size) -> None:
        """Zeros in elements `to + first .. to + end`."""
        if isinstance(first, int) and isinstance(end, int) and first >= end:
            return
        zero = b.const(0, dtype=self.conv.dtype)
        for_(b, first, end, lambda ib, i: ib.store(patch, zero, ib.add(to, i)), vectorize=False)

    def _line(
        self, b: Builder, x: Value, patch: Value, to: Value, block: Value, n: Value, at: Place, d: Value, h: Value
    ) -> None:
        """One line of one image: the columns that exist by squares, zeros at both ends."""
        conv, line = self.conv, self.conv.axes[2]
        first = b.mul(block, b.index(self.depth))
        ragged = conv.channels % self.depth != 0
        there = b.minimum(b.index(self.depth), b.sub(b.index(conv.channels), first)) if ragged else b.index(self.depth)
        base = b.add(b.mul(at.group, b.index(conv.channels)), first)

        def element(ib: Builder, c: Value, i: Value, lanes: int = 0) -> Value:
            where = index_of(conv.space, n, ib.add(base, c), d, h, i)
            return cast(ib, ib.emit("load", x, *where, lanes=lanes)[0], conv.dtype)

        def put(ib: Builder, v: Value, q: Value, c: Value) -> None:
            ib.store(patch, v, ib.add(ib.add(to, ib.mul(q, ib.index(self.depth))), c))

        if ragged:

            def beyond(ib: Builder, q: Value) -> None:
                self._clear(ib, patch, ib.add(to, ib.mul(q, ib.index(self.depth))), there, self.depth)

            for_(b, 0, self.pitch, beyond, vectorize=False)
        start = b.sub(b.mul(at.column, b.index(line.stride)), b.index(line.low))
        if line.spread > 1:

            def place(ib: Builder, q: Value) -> None:
                exists, i = line.source(ib, ib.add(start, q))

                def channel(jb: Builder, c: Value) -> None:
                    (v,) = if_(jb, exists, lambda kb: element(kb, c, i), lambda kb: kb.const(0, dtype=conv.dtype))
                    put(jb, v, q, c)

                for_(ib, 0, there, channel, vectorize=False)

            for_(b, 0, self.pitch, place, vectorize=False)
            return
        lo, hi, least = self._columns(b, line, start)
        self._clear(b, patch, to, 0, times(b, lo, self.depth))
        self._clear(b, patch, to, times(b, hi, self.depth), times(b, self.pitch, self.depth))
        lo, hi = index(b, lo), index(b, hi)
        self._existing(b, element, put, there, lo, hi, start, least)

    def _existing(
        self, b: Builder, element: Any, put: Any, there: Value, lo: Value, hi: Value, start: Value, least: int
    ) -> None:
        """The columns lo .. hi of a line, at least `least` of them."""
        side = self.lanes
        while side > least:
            side //= 2
        if side < 2:
            self._singles(b, element, put, b.index(0), there, lo, hi, start)
            return
        self._squares(b, element, put, there, lo, hi, start, side)

    def _squares(
        self, b: Builder, element: Any, put: Any, there: Value, lo: Value, hi: Value, start: Value, side: int
    ) -> None:
        """The columns lo .. hi, `side` of them or more, by squares of as many channels; what is left of the channels singly."""
        whole = b.sub(there, b.fmod(there, b.index(side)))
        count = b.div(b.add(b.sub(hi, lo), b.index(side - 1)), b.index(side))

        def square(ib: Builder, t: Value) -> None:
            q = ib.minimum(ib.add(lo, ib.mul(t, ib.index(side))), ib.sub(hi, ib.index(side)))
            i = ib.add(start, q)

            def channels(jb: Builder, c: Value) -> None:
                xs = [element(jb, jb.add(c, jb.index(k)), i, side) for k in range(side)]
                for k, v in enumerate(transposed(jb, xs)):
                    put(jb, v, jb.add(q, jb.index(k)), c)

            for_(ib, 0, whole, channels, step=side, vectorize=False)

        for_(b, 0, count, square, vectorize=False)
        if self.conv.channels % self.depth != 0 or self.depth % side:
            self._singles(b, element, put, whole, there, lo, hi, start)

    @staticmethod
    def _singles(b: Builder, element: Any, put: Any, c0: Value, c1: Value, lo: Value, hi: Value, start: Value) -> None:
        def channel(ib: Builder, c: Value) -> None:
            for_(ib, lo, hi, lambda jb, q: put(jb, element(jb, c, jb.add(start, q)), q, c), vectorize=False)

        for_(b, c0, c1, channel, vectorize=False)

    def _columns(self, b: Builder, line: Axis, start: Value) -> tuple[Size, Size, int]:
        """The columns of the patch that exist, from and to, where its first is column `start` of the input; and the least
        number of them that a task has."""

        def known(first: int) -> tuple[int, int]:
            lo = min(max(0, -first), self.pitch)
            return lo, max(lo, min(self.pitch, line.size - first))

        starts = starts_of(line.out, self.columns)
        ranges = [known(s * line.stride - line.low) for s in starts]
        least = min(hi - lo for lo, hi in ranges)
        if len(set(ranges)) == 1:
            return *ranges[0], least
        zero, pitch = b.index(0), b.index(self.pitch)
        lo = b.minimum(b.maximum(zero, b.sub(zero, start)), pitch)
        return lo, b.maximum(lo, b.minimum(pitch, b.sub(b.index(line.size), start))), least


def times(b: Builder, n: Size, k: int) -> Size:
    """`n` times `k`, as an integer where it is known."""
    return n * k if isinstance(n, int) else b.mul(n, b.index(k))


def starts_of(size: int, block: int) -> Sequence[int]:
    """Where blocks of `block` begin that cover `size`: the last where it still fits."""
    return [max(0, min(i, size - block)) for i in range(0, size, block)]


__all__ = ["Patch", "Place", "starts_of", "times"]
