"""The task of a product: one block of rows by one block of columns, and what it copies into buffers of its own.

`Grid` says how a product is cut; `Block` is the code of a task, `_Panels` that of one block of the contracted index in it.
Rows and columns that are left over have tiles of their own, rows also where their number is not known.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, floordiv, maximum
from fluxir.ir.types import MemType
from fluxir.ops.nest import cast
from fluxir.schedule.contraction import Dot, OperandCode
from fluxir.schedule.loops import Size, for_, if_
from fluxir.schedule.matmul_choice import MatmulSchedule
from fluxir.schedule.matmul_pack import Packer, part_of, plus
from fluxir.schedule.matmul_tile import Place, Read, Tiles


@dataclass(frozen=True, eq=False)
class Grid:
    """A product in tiles: how many there are down and across, and how many blocks of the contracted index."""

    dot: Dot
    schedule: MatmulSchedule

    @property
    def row_panels(self) -> Dim:
        return ceildiv(self.dot.m, self.schedule.rows)

    @property
    def col_panels(self) -> Dim:
        return ceildiv(self.dot.n, self.schedule.cols)

    @property
    def blocks(self) -> Dim:
        depth = self.schedule.depth
        return maximum(1, ceildiv(self.dot.k, depth)) if depth else 1


def flat(b: Builder, t: Value, count: Dim, i: Value) -> Value:
    """Position i of row t in rows of `count`."""
    return b.add(b.mul(t, b.index(count)), i)  # type: ignore[no-any-return]


class Block:
    """The code of a task."""

    def __init__(
        self,
        grid: Grid,
        tiles: Tiles,
        reads: dict[Value, Value],
        memories: dict[str, Value],
        partial: Value | None,
    ) -> None:
        self.grid, self.tiles, self.memories, self.partial = grid, tiles, memories, partial
        dot, s = grid.dot, grid.schedule
        self.dot, self.schedule = dot, s
        self.lhs, self.rhs = OperandCode(dot.lhs, reads, dot.dtype), OperandCode(dot.rhs, reads, dot.dtype)
        self.run: Dim = s.depth or dot.k
        m, n = dot.m, dot.n
        self.full_rows: Dim = floordiv(m, s.rows)  # row tiles that are whole
        self.full_cols: Dim = floordiv(n, s.cols)
        self.left_rows = m % s.rows if isinstance(m, int) else None  # rows and columns beyond these; None: not known
        self.left_cols = n % s.cols if isinstance(n, int) else None

    def task(self, b: Builder, at: tuple[Value, ...]) -> None:
        """One block of rows by one block of columns, all of k."""
        s = self.schedule
        t, i, j = at
        i0, j0 = b.mul(i, b.index(s.row_tiles)), b.mul(j, b.index(s.panels))
        i1 = b.minimum(b.add(i0, b.index(s.row_tiles)), b.index(self.grid.row_panels))
        j1 = b.minimum(b.add(j0, b.index(s.panels)), b.index(self.grid.col_panels))
        buffers = self.buffers(b)

        def block(ib: Builder, kb: Value | None) -> None:
            lo: Size = 0
            length: Size = ib.index(self.dot.k) if not isinstance(self.dot.k, int) else self.dot.k
            first = last = None
            if kb is not None:
                lo = ib.mul(kb, ib.index(s.depth))
                length = ib.minimum(ib.index(s.depth), ib.sub(ib.index(self.dot.k), lo))
                if isinstance(self.dot.k, int) and self.dot.k % s.depth == 0:
                    length = s.depth
                first = ib.eq(kb, ib.index(0))
                last = ib.eq(kb, ib.sub(ib.index(self.grid.blocks), ib.index(1)))
            _Panels(self, buffers, t, i0, i1, lo, length, first, last).emit(ib, j0, j1)

        if self.grid.blocks == 1:
            block(b, None)
        else:
            for_(b, 0, self.grid.blocks, block, name="block")

    def buffers(self, b: Builder) -> dict[str, Value]:
        """The memories that a task copies parts of the operands into."""
        s, dtype = self.schedule, self.dot.dtype
        out: dict[str, Value] = {}
        depth = self.run
        if isinstance(depth, int):
            if s.lhs == "rows":
                shape = (s.row_tiles * s.rows, depth + 64 // dtype.itemsize)
                out["lhs"] = b.alloc(type=MemType(dtype, shape, "local"))
            elif s.lhs == "panels":
                out["lhs"] = b.alloc(type=MemType(dtype, (s.row_tiles, depth, s.rows), "local"))
            if s.rhs == "panels":
                out["rhs"] = b.alloc(type=MemType(dtype, (s.group, depth, s.cols), "local"))
        if s.strips:
            out["strip"] = b.alloc(
                type=MemType(dtype, (s.rows, (s.group if s.rhs == "panels" else s.panels) * s.cols), "local")
            )
        return out


@dataclass(eq=False)
class _Panels:
    """The panels of a task in one block of k: `lo` and `length` say which."""

    task: Block
    buffers: dict[str, Value]
    t: Value
    i0: Value
    i1: Value
    lo: Size
    length: Size
    first: Value | None
    last: Value | None

    def emit(self, b: Builder, j0: Value, j1: Value) -> None:
        task, s = self.task, self.task.schedule
        self.copy_lhs(b)
        end = b.minimum(j1, b.index(task.full_cols)) if task.left_cols != 0 else j1
        if task.full_cols != 0:
            if s.rhs == "panels":
                for_(b, j0, end, lambda ib, p: self.group(ib, p, end), step=s.group, name="group", vectorize=False)
            else:
                self.each(b, j0, end, None)
        if task.left_cols == 0:
            return
        left = task.left_cols
        p = b.index(task.full_cols)

        def edge(ib: Builder) -> None:
            cols = left or ib.sub(ib.index(task.dot.n), ib.mul(p, ib.index(s.cols)))
            if s.rhs == "panels":
                self.copy_edge(ib, p, cols)
            self.panel(ib, p, cols, -(-left // s.lanes) if left is not None else s.vectors, p)

        if task.grid.col_panels == 1 and left is not None:
            edge(b)
        else:
            if_(b, b.lt(p, j1), edge)

    def group(self, b: Builder, p: Value, end: Value) -> None:
        """Panels p, p + 1, ... of a group, copied together."""
        task, s = self.task, self.task.schedule
        last = b.minimum(b.add(p, b.index(s.group)), end)
        packer = Packer(task.rhs, s.cols, s.lanes)
        first, count = b.mul(p, b.index(s.cols)), b.sub(last, p)
        packer.strip(b, self.buffers["rhs"], b.index(0), self.t, first, count, self.lo, self.length)
        self.each(b, p, last, p)

    def copy_edge(self, b: Builder, p: Value, cols: int | Value) -> None:
        """The columns of the last panel, which is not whole, into the buffer."""
        task, s = self.task, self.task.schedule
        packer = Packer(task.rhs, s.cols, s.lanes)
        first = b.mul(p, b.index(s.cols))
        packer.panel(b, self.buffers["rhs"], b.index(0), self.t, first, cols, self.lo, self.length)

    def each(self, b: Builder, start: Value, end: Value, base: Value | None) -> None:
        """All tiles of panels start..end, all of whose columns exist; the buffer starts with panel `base`."""
        s = self.task.schedule

        def panels(ib: Builder, only: Value | None = None) -> None:
            def one(jb: Builder, p: Value) -> None:
                self.panel(jb, p, s.cols, s.vectors, base, only, strip)

            for_(ib, start, end, one, name="panel", vectorize=False)

        def whole_row(ib: Builder, q: Value) -> None:
            panels(ib, q)
            assert strip is not None
            m = ib.mul(q, ib.index(s.rows))
            below = ib.sub(ib.index(self.task.dot.m), m)
            rows: Size = ib.minimum(ib.index(s.rows), below) if self.task.left_rows != 0 else s.rows
            place = Place(self.t, m, strip[1], s.cols, strip=strip)
            columns = ib.mul(ib.sub(end, start), ib.index(s.cols))
            self.task.tiles.finish_strip(ib, place, rows, s.vectors, columns)

        strip = (self.buffers["strip"], b.mul(start, b.index(s.cols))) if s.strips else None
        if s.strips:
            for_(b, self.i0, self.i1, whole_row, name="row_tile", vectorize=False)
        elif self.task.tiles.updated():  # a row of tiles: what is updated is then read along its rows
            for_(b, self.i0, self.i1, panels, name="row_tile", vectorize=False)
        else:
            panels(b)

    def panel(
        self,
        b: Builder,
        p: Value,
        cols: int | Value,
        vectors: int,
        base: Value | None,
        only: Value | None = None,
        strip: tuple[Value, Value] | None = None,
    ) -> None:
        """All tiles of rows of one panel (or `only` this one), of which `cols` columns exist; the buffer starts with panel
        `base`. `strip`: see `Place`."""
        task, s = self.task, self.task.schedule
        n = b.mul(p, b.index(s.cols))
        rhs = self.rhs(b, p, n, cols, base)
        left = task.left_rows
        end = b.minimum(self.i1, b.index(task.full_rows)) if left != 0 else self.i1

        def tile(ib: Builder, q: Value, rows: int) -> None:
            m = ib.mul(q, ib.index(s.rows))
            place = Place(self.t, m, n, cols, self.partial(ib, q, p), self.first, self.last, strip)
            lhs = self.lhs(ib, q, m)
            task.tiles.emit(ib, place, rows, vectors, self.length, lhs, rhs)

        if left == 0 and only is not None:
            tile(b, only, s.rows)
        elif task.full_rows != 0 and only is None:
            for_(b, self.i0, end, lambda ib, q: tile(ib, q, s.rows), name="row_tile", vectorize=False)
        if left == 0:
            return
        q = b.index(task.full_rows)

        def edge(ib: Builder) -> None:
            if left is not None:
                tile(ib, q, left)
                return
            there = ib.sub(ib.index(task.dot.m), ib.mul(q, ib.index(s.rows)))
            for rows in range(1, s.rows):
                if_(ib, ib.eq(there, ib.index(rows)), functools.partial(tile, q=q, rows=rows))

        if task.grid.row_panels == 1 and left is not None:
            edge(b)
        elif only is not None:
            if_(b, b.lt(only, q), lambda ib: tile(ib, only, s.rows), edge)
        else:
            if_(b, b.lt(q, self.i1), edge)

    def partial(self, b: Builder, q: Value, p: Value) -> tuple[Value, Value] | None:
        grid, memory = self.task.grid, self.task.partial
        if memory is None:
            return None
        row = flat(b, self.t, grid.row_panels, q)
        return memory, flat(b, row, grid.col_panels, p)

    # ---- operands
    def copy_lhs(self, b: Builder) -> None:
        """The rows of the task into its buffer."""
        task, s = self.task, self.task.schedule
        if "lhs" not in self.buffers:
            return
        buffer = self.buffers["lhs"]
        packer = Packer(task.lhs, s.rows, s.lanes)
        first = b.mul(self.i0, b.index(s.rows))
        if s.lhs == "rows":
            last = b.minimum(b.mul(self.i1, b.index(s.rows)), b.index(task.dot.m))
            packer.rows(b, buffer, self.t, first, b.sub(last, first), self.lo, self.length)
            return
        left = task.left_rows
        end = b.minimum(self.i1, b.index(task.full_rows)) if left != 0 else self.i1

        def panel(ib: Builder, q: Value, count: int | Value) -> None:
            at, m = ib.sub(q, self.i0), ib.mul(q, ib.index(s.rows))
            packer.panel(ib, buffer, at, self.t, m, count, self.lo, self.length)

        for_(b, self.i0, end, lambda ib, q: panel(ib, q, s.rows), name="row_tile", vectorize=False)
        if left != 0:
            q = b.index(task.full_rows)
            count = left or b.sub(b.index(task.dot.m), b.mul(q, b.index(s.rows)))
            if_(b, b.lt(q, self.i1), lambda ib: panel(ib, q, count))

    def lhs(self, b: Builder, q: Value, m: Value) -> Read:
        """Where tile q, whose first row is m, reads the left operand."""
        task, s = self.task, self.task.schedule
        if s.lhs == "in place":
            rows = [plus(b, m, r) for r in range(s.rows)]
            return lambda ib, k, r: task.lhs.at(ib, self.t, rows[r], plus(ib, self.lo, k))
        if s.lhs == "packed":
            own, packed = flat(b, self.t, task.grid.row_panels, q), task.memories["lhs"]
            return lambda ib, k, r: ib.emit("load", packed, own, plus(ib, self.lo, k), ib.index(r))[0]
        buffer, at = self.buffers["lhs"], b.sub(q, self.i0)
        if s.lhs == "rows":
            first = b.mul(at, b.index(s.rows))
            return lambda ib, k, r: ib.emit("load", buffer, plus(ib, first, r), k)[0]
        return lambda ib, k, r: ib.emit("load", buffer, at, k, ib.index(r))[0]

    def rhs(self, b: Builder, p: Value, n: Value, cols: int | Value, base: Value | None) -> Read:
        """Where panel p, whose first column is n, reads the right operand."""
        task, s = self.task, self.task.schedule
        if s.rhs == "packed":
            own, packed = flat(b, self.t, task.grid.col_panels, p), task.memories["rhs"]
            return lambda ib, k, v: cast(
                ib,
                ib.emit("load", packed, own, plus(ib, self.lo, k), ib.index(v * s.lanes), lanes=s.lanes)[0],
                task.dot.dtype,
            )
        if s.rhs == "in place":
            assert isinstance(cols, int)
            at = [plus(b, n, v * s.lanes) for v in range(s.vectors)]
            return lambda ib, k, v: part_of(
                ib, task.rhs, self.t, at[v], plus(ib, self.lo, k), min(s.lanes, cols - v * s.lanes), s.lanes
            )
        assert base is not None
        buffer, at = self.buffers["rhs"], b.sub(p, base)
        return lambda ib, k, v: ib.emit("load", buffer, at, k, ib.index(v * s.lanes), lanes=s.lanes)[0]


__all__ = ["Block", "Grid", "flat"]
