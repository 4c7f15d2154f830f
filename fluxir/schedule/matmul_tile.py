"""The register tile of a product: rows x vectors of accumulators over a run of the contracted index, then what follows.

Where the operands are read from is the business of two functions, `lhs(builder, k, row)` (a scalar) and
`rhs(builder, k, vector)`; k counts from the start of the run. The accumulators are the carry of the inner loop, so they
stay in registers. Invariant: an element's products are added in the order of k, whatever the tile: the tile's shape has no
influence on a result's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import Dot, PostCode
from fluxir.schedule.loops import Size, for_, if_
from fluxir.schedule.matmul_pack import lanes_of, pieces, plus, whole

Read = Callable[[Builder, Value, int], Value]
LINE = 64  # bytes of a line of the caches
INLINE = 6  # ops after the product up to which the code of a store is repeated for each vector of a tile


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tile lies: batch, first row and first column; `cols` of its columns exist (a number, or a value). `partial`:
    the memory [tile, rows, columns] and tile where sums wait between blocks of k; `first`, `last`: whether this block is.
    `strip`: the memory [rows, columns] and its first column where sums wait for their whole rows (`Tiles.finish_strip`)."""

    t: Value
    m: Value
    n: Value
    cols: int | Value
    partial: tuple[Value, Value] | None = None
    first: Value | None = None
    last: Value | None = None
    strip: tuple[Value, Value] | None = None


@dataclass(frozen=True, eq=False)
class Tiles:
    """The code of a product's tiles. `fma`: whether the target multiplies and adds in one instruction. `packed`: the types of
    the small integers of which each i32 of the operands holds several."""

    dot: Dot
    lanes: int
    fma: bool
    post: PostCode
    packed: tuple[DType, DType] | None = None

    def emit(self, b: Builder, at: Place, rows: int, vectors: int, length: Size, lhs: Read, rhs: Read) -> None:
        """One tile over `length` values of k."""
        zero = b.emit("splat", b.const(0, dtype=self.dot.dtype), lanes=self.lanes)[0]
        start: Sequence[Value] = [zero] * (rows * vectors)
        if at.strip is not None:
            strip, first = at.strip
            acc = self._multiply(b, rows, vectors, length, lhs, rhs, start)
            for i, x in enumerate(acc):
                b.store(strip, x, b.index(i // vectors), plus(b, b.sub(at.n, first), i % vectors * self.lanes))
            return
        self._ahead(b, at, rows, vectors)
        if at.partial is None:
            self._finish(b, at, rows, vectors, self._multiply(b, rows, vectors, length, lhs, rhs, start))
            return
        assert at.first is not None and at.last is not None
        memory, tile = at.partial

        def before(ib: Builder) -> list[Value]:
            return [
                ib.emit("load", memory, tile, ib.index(r), ib.index(v * self.lanes), lanes=self.lanes)[0]
                for r in range(rows)
                for v in range(vectors)
            ]

        start = if_(b, at.first, lambda ib: [zero] * (rows * vectors), before)
        acc = self._multiply(b, rows, vectors, length, lhs, rhs, start)

        def keep(ib: Builder) -> None:
            for r in range(rows):
                for v in range(vectors):
                    ib.store(memory, acc[r * vectors + v], tile, ib.index(r), ib.index(v * self.lanes))

        if_(b, at.last, lambda ib: self._finish(ib, at, rows, vectors, acc), keep)

    def updated(self) -> list[Value]:
        """The memories that are read where a result is written."""
        return [self.post.reads[a] for a in self.dot.states() if a in self.post.reads]

    def _ahead(self, b: Builder, at: Place, rows: int, vectors: int) -> None:
        """Ask for the lines of `updated` under the tile. They lie far from each other, which the processor does not foresee,
        and arrive while the products are added up."""
        memories = self.updated()

        def lines(ib: Builder) -> None:
            for mem in memories:
                for r in range(rows):
                    for c in range(0, vectors * self.lanes, max(1, LINE // mem.type.dtype.itemsize)):
                        ib.prefetch(mem, *self.dot.post_index(ib, at.t, plus(ib, at.m, r), plus(ib, at.n, c)))

        if memories and at.last is not None:
            if_(b, at.last, lines)
        elif memories:
            lines(b)

    def _multiply(
        self, b: Builder, rows: int, vectors: int, length: Size, lhs: Read, rhs: Read, start: Sequence[Value]
    ) -> list[Value]:
        """The accumulators after the run, rows outermost. The shorter side of the tile is what waits in registers."""

        def step(ib: Builder, k: Value, *acc: Value) -> list[Value]:
            out = list(acc)

            def one(r: int, v: int, x: Value, y: Value) -> None:
                i = r * vectors + v
                if self.packed is not None:
                    out[i] = ib.emit("dot_packed", out[i], x, y, left=self.packed[0], right=self.packed[1])[0]
                else:
                    out[i] = ib.fma(x, y, out[i]) if self.fma else ib.add(ib.mul(x, y), out[i])

            def left(r: int) -> Value:
                return ib.emit("splat", lhs(ib, k, r), lanes=self.lanes)[0]

            if vectors <= rows:
                ys = [rhs(ib, k, v) for v in range(vectors)]
                for r in range(rows):
                    x = left(r)
                    for v in range(vectors):
                        one(r, v, x, ys[v])
            else:
                xs = [left(r) for r in range(rows)]
                for v in range(vectors):
                    y = rhs(ib, k, v)
                    for r in range(rows):
                        one(r, v, xs[r], y)
            return out

        return list(for_(b, 0, length, step, start, name="k", vectorize=False))

    # ---- results
    def finish_strip(self, b: Builder, at: Place, rows: Size, vectors: int, columns: Value) -> None:
        """What follows from the sums in `at.strip`, along its rows: row m and those below it, columns n up to n + `columns`,
        whole tiles of `vectors`. Memory is then read and written in long pieces, as the processor foresees it."""
        assert at.strip is not None
        (strip, n), t, m = at.strip, at.t, at.m
        width = self.lanes * (2 - vectors % 2)

        def row(ib: Builder, r: Value) -> None:
            def part(jb: Builder, c: Value) -> None:
                x = jb.emit("load", strip, r, c, lanes=width)[0]
                along = jb.add(n, c)
                self.post.store(jb, x, self.dot.post_index(jb, t, jb.add(m, r), along), along, width)

            for_(ib, 0, columns, part, step=width, name="n", vectorize=False)

        for_(b, 0, rows, row, name="row", vectorize=False)

    def _put(self, b: Builder, acc: Value, at: Place, m: Value, n: Value, lanes: int) -> None:
        self.post.store(b, acc, self.dot.post_index(b, at.t, m, n), n, lanes)

    def _finish(self, b: Builder, at: Place, rows: int, vectors: int, acc: Sequence[Value]) -> None:
        """Compute and store what follows from the accumulators, of the columns that exist."""
        if isinstance(at.cols, int) and len(self.post.post.ops) <= INLINE:
            for r in range(rows):
                sums = acc[r * vectors : (r + 1) * vectors]
                self._row(b, at, r, at.cols, lambda ib, c, sums=sums: sums[c // self.lanes])  # type: ignore[misc]
            return
        local = b.alloc(type=MemType(self.dot.dtype, (rows, vectors * self.lanes), "local"))
        for r in range(rows):
            for v in range(vectors):
                b.store(local, acc[r * vectors + v], b.index(r), b.index(v * self.lanes))

        def row(ib: Builder, r: Value) -> None:
            def vector(jb: Builder, c: Value) -> None:
                x = jb.emit("load", local, r, c, lanes=self.lanes)[0]
                self._put(jb, x, at, jb.add(at.m, r), jb.add(at.n, c), self.lanes)

            def single(jb: Builder, c: Value) -> None:
                self._put(jb, jb.emit("load", local, r, c)[0], at, jb.add(at.m, r), jb.add(at.n, c), 1)

            if isinstance(at.cols, int):
                self._row(ib, at, r, at.cols, lambda jb, c: jb.emit("load", local, r, jb.index(c), lanes=self.lanes)[0])
                return
            end = whole(ib, at.cols, self.lanes)
            for_(ib, 0, end, vector, step=self.lanes, vectorize=False)
            for_(ib, end, at.cols, single, vectorize=False)

        for_(b, 0, rows, row, name="row", vectorize=False)

    def _row(self, b: Builder, at: Place, r: int | Value, cols: int, vector: Callable[[Builder, int], Value]) -> None:
        """One row of a known number of columns; `vector(builder, column)` is a vector of sums."""
        m = plus(b, at.m, r)
        for c in range(0, cols, self.lanes):
            x = vector(b, c)
            for first, n in pieces(min(self.lanes, cols - c), self.lanes):
                part = x if n == self.lanes else lanes_of(b, x, first, n)
                self._put(b, part, at, m, plus(b, at.n, c + first), n)


__all__ = ["Place", "Read", "Tiles"]
