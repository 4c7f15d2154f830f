"""The code of the row-wise template for CPUs: one row with vectors along it, or a block of columns.

`RowCode.everything` emits all rows of a group in the order its schedule names, `RowCode.piece` a part of a row. In row
order several vector accumulators run along the row and are combined at its end; in column order each column has its
accumulator in a buffer on the stack, so that memory is walked in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType, VectorType
from fluxir.ops.maps import REDUCTIONS
from fluxir.ops.nest import accumulator, cast, combine, identity
from fluxir.schedule.cost import op_cost
from fluxir.schedule.group import shape_of
from fluxir.schedule.loops import Size, for_, grain_of, is_small, nest, parallel, unravel, whole_blocks
from fluxir.schedule.rows import Rows
from fluxir.schedule.templates import Schedule
from fluxir.schedule.vectors import Lanes, RowElements

LANE_OPS = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}
COLUMNS = 256  # most columns of a task
LINES = 4  # lines of memory that are added to the accumulators of columns at once, where an element is little work


@dataclass(frozen=True)
class RowwiseSchedule(Schedule):
    """`space`: loops after merging; `reduced`: which of them; `vectors` run along the row or across columns;
    `accumulators`: vectors a reduction keeps; `in_flight`: vectors that are computed side by side; `stages`: passes over
    a row; `piece`: length of a piece of a split row."""

    space: str
    reduced: str
    vectors: str
    lanes: int
    accumulators: int
    in_flight: int
    stages: int
    piece: int | None = None


def accumulator_of(op: Op) -> DType:
    d: DType = op.result.type.dtype
    return accumulator(d) if op.name in ("sum", "prod") else d


def lane_op(op: Op) -> str:
    word = LANE_OPS[op.name]
    return {"max": "or", "min": "and"}.get(word, word) if op.result.type.dtype.is_bool else word


def element_work(rows: Rows) -> int:
    reading = len([a for a in rows.group.args if shape_of(a)]) + len(rows.stages)
    return reading + sum(op_cost(op) for op in rows.group.ops if op.name not in REDUCTIONS)


def parts_of(b: Builder, x: Value, lanes: int) -> list[Value]:
    """A wide vector as vectors of `lanes`."""
    assert isinstance(x.type, VectorType)
    if x.type.lanes == lanes:
        return [x]
    places = range(0, x.type.lanes, lanes)
    return [b.emit("shuffle", x, x, mask=tuple(range(k, k + lanes)))[0] for k in places]


Range = tuple[Size, Size]


class RowCode:
    """Emits one row (or one block of columns) of a group."""

    def __init__(
        self,
        rows: Rows,
        schedule: RowwiseSchedule,
        reads: dict[Value, Value],
        outs: list[Value],
        spills: dict[Value, tuple[int, int]],
    ) -> None:
        self.rows, self.schedule, self.reads, self.outs, self.spills = rows, schedule, reads, outs, spills
        self.lanes, self.accumulators = schedule.lanes, schedule.accumulators
        self.last = len(rows.space) - 1
        self.work = element_work(rows)

    # ---- which rows
    def everything(self, b: Builder) -> None:
        """All rows, in parallel where that pays."""
        kept = [self.rows.space[i] for i in self.rows.kept]
        row_work: Dim = (
            product(self.rows.space[i] for i in self.rows.reduced) * self.work * (1 + len(self.rows.stages)) // 2
        )
        total = product(kept) * row_work
        if self.schedule.vectors == "row":
            axes = self.rows.kept

            def row(ib: Builder, at: tuple[Value, ...]) -> None:
                self.row(ib, dict(zip(axes, at)))

            self.tasks(b, kept, row, total, row_work)
            return
        *outer, columns = kept
        block = self.column_block(total)

        def column_block(ib: Builder, at: tuple[Value, ...]) -> None:
            start = ib.mul(at[-1], ib.index(block))
            count: Size = block
            if not (isinstance(columns, int) and columns % block == 0):
                count = ib.minimum(ib.index(block), ib.sub(ib.index(columns), start))
            self.columns(ib, dict(zip(self.rows.kept[:-1], at)), start, count, block)

        self.tasks(b, [*outer, ceildiv(columns, block)], column_block, total, row_work * block)

    def column_block(self, total: Dim) -> int:
        """Columns of a task: many, so that each row of memory is read in long runs, but enough tasks for some threads."""
        columns = self.rows.space[self.last]
        if not isinstance(columns, int):
            return COLUMNS
        share = columns if is_small(total) else max(4 * self.lanes, -(-columns // 8))
        return max(1, min(COLUMNS, columns, -(-share // self.lanes) * self.lanes))

    def tasks(self, b: Builder, shape: Sequence[Dim], body: Any, total: Dim, work: Dim) -> None:
        if is_small(total) or product(shape) == 1:
            nest(b, shape, body)
        else:
            parallel(b, product(shape), lambda ib, t: body(ib, unravel(ib, t, shape)), grain=grain_of(work))

    # ---- vectors along the row
    def row(self, b: Builder, at: dict[int, Value]) -> None:
        fixed: dict[Value, Value] = {}
        reads = dict(self.reads)
        for s, stage in enumerate(self.rows.stages):
            for op, total in zip(stage, self.reduce_row(b, at, s, fixed, reads, {})):
                fixed[op.result] = cast(b, total, op.result.type.dtype)
            reads.update({v: self.outs[j] for v, (j, first) in self.spills.items() if first == s})
        self.store_rows(b, at, fixed, reads)
        full = [j for j in range(len(self.outs)) if self.rows.is_full(j)]
        if full:

            def element(ib: Builder, outside: RowElements, inner: dict[int, Value], lanes: int) -> None:
                e = outside.inside(ib)
                idx = {**at, **inner}
                vec = Lanes(e, idx[self.last], lanes, invariants=outside) if lanes > 1 else None
                values = []
                for j in full:
                    where = self.index_of(ib, j, idx)
                    v = self.rows.group.outs[j]
                    values.append((j, vec.vector(v, where) if vec else e.at(v, where), where))
                for j, x, where in values:
                    ib.store(self.outs[j], x, *where)

            self.row_loops(
                b,
                {},
                lambda ib: RowElements(ib, reads, fixed),
                lambda ib, outside, inner, lanes, carry: element(ib, outside, inner, lanes),
                unroll=self.schedule.in_flight,
            )

    def reduce_row(
        self,
        b: Builder,
        at: dict[int, Value],
        s: int,
        fixed: dict[Value, Value],
        reads: dict[Value, Value],
        ranges: dict[int, Range],
    ) -> list[Value]:
        """The stage's reductions over the row (or over `ranges` of it), in accumulator type."""
        stage, u = self.rows.stages[s], self.accumulators if self.lanes > 1 else 0
        starts = [b.const(identity(op.name, op.result.type.dtype), dtype=accumulator_of(op)) for op in stage]
        vectors = [b.emit("splat", x, lanes=self.lanes)[0] for x in starts] if u else []
        n = len(stage)

        def step(
            ib: Builder, outside: RowElements, inner: dict[int, Value], lanes: int, carry: list[Value]
        ) -> list[Value]:
            # carry: u vectors of each reduction (vector k of all reductions together), then one scalar of each
            e = outside.inside(ib)
            idx = {**at, **inner}
            out = list(carry)
            if lanes <= 1:
                xs = self.operands(e, None, stage, idx)
                for r, (op, x) in enumerate(zip(stage, xs)):
                    out[u * n + r] = combine(ib, op.name, carry[u * n + r], cast(ib, x, accumulator_of(op)))
                self.keep(e, None, s, idx)
                return out
            vec = Lanes(e, idx[self.last], lanes, invariants=outside)  # `lanes // self.lanes` vectors side by side
            for r, (op, x) in enumerate(zip(stage, self.operands(e, vec, stage, idx))):
                for k, part in enumerate(parts_of(ib, cast(ib, x, accumulator_of(op)), self.lanes)):
                    out[k * n + r] = combine(ib, op.name, carry[k * n + r], part)
            self.keep(e, vec, s, idx)
            return out

        carry = self.row_loops(b, ranges, lambda ib: RowElements(ib, reads, fixed), step, [*(vectors * u), *starts], u)
        totals = []
        for r, op in enumerate(stage):
            parts = [carry[k * n + r] for k in range(u)]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [combine(b, op.name, p, q) for p, q in zip(parts[:half], parts[half:])]
            tail = carry[u * n + r]
            if parts:
                whole = b.emit("reduce_lanes", parts[0], op=lane_op(op))[0]
                tail = combine(b, op.name, whole, tail)
            totals.append(tail)
        return totals

    def row_loops(
        self,
        b: Builder,
        ranges: dict[int, Range],
        elements: Callable[[Builder], RowElements],
        step: Any,
        carry: Sequence[Value] = (),
        unroll: int = 1,
    ) -> list[Value]:
        """Loops over the reduced axes, the last one in vectors; `step(builder, elements before the innermost loop,
        {axis: index}, lanes, carry)`."""
        axes = [i for i in self.rows.reduced if i != self.last]

        def level(ib: Builder, k: int, inner: dict[int, Value], values: Sequence[Value]) -> list[Value]:
            axis = axes[k] if k < len(axes) else self.last
            lo, hi = ranges.get(axis, (0, self.rows.space[axis]))
            if k < len(axes):
                return list(for_(ib, lo, hi, lambda jb, i, *c: level(jb, k + 1, {**inner, axis: i}, c), values))
            ib.index(0)
            outside = elements(ib)
            out = list(values)
            for lanes in dict.fromkeys((self.lanes * max(1, unroll), self.lanes, 1)):
                start, end = whole_blocks(ib, lo, hi, lanes) if lanes > 1 else (lo, hi)
                if start is end or (isinstance(start, int) and start == end):
                    continue

                def body(jb: Builder, i: Value, *c: Value, w: int = lanes) -> list[Value]:
                    return list(step(jb, outside, {**inner, axis: i}, w, list(c)) or ())

                out = list(for_(ib, start, end, body, out, step=lanes, vectorize=self.lanes == 1))
                lo = end
            return out

        return level(b, 0, {}, carry)

    def operands(self, e: RowElements, vec: Lanes | None, stage: Sequence[Op], idx: dict[int, Value]) -> list[Value]:
        where = tuple(idx[i] for i in range(len(self.rows.space)))
        return [vec.vector(op.operands[0], where) if vec else e.at(op.operands[0], where) for op in stage]

    def keep(self, e: RowElements, vec: Lanes | None, s: int, idx: dict[int, Value]) -> None:
        """Store the values that a later stage will read again."""
        where = tuple(idx[i] for i in range(len(self.rows.space)))
        for v, (j, first) in self.spills.items():
            if first == s:
                e.b.store(self.outs[j], vec.vector(v, where) if vec else e.at(v, where), *where)

    def index_of(self, b: Builder, j: int, idx: dict[int, Value]) -> tuple[Value, ...]:
        return tuple(b.index(0) if k < 0 else idx[k] for k in self.rows.access.results[j])

    def store_rows(
        self, b: Builder, at: dict[int, Value], fixed: dict[Value, Value], reads: dict[Value, Value]
    ) -> None:
        e = RowElements(b, reads, fixed)
        for j, v in enumerate(self.rows.group.outs):
            if not self.rows.is_full(j):
                where = self.index_of(b, j, at)
                b.store(self.outs[j], e.at(v, where), *where)

    def piece(
        self, b: Builder, at: dict[int, Value], ranges: dict[int, Range], where: tuple[Value, ...], number: Value
    ) -> None:
        """Part of a row, or of all columns, reduced into the output memories at [kept..., number] ([number, kept...])."""
        if self.schedule.vectors == "row":
            for mem, x in zip(self.outs, self.reduce_row(b, at, 0, {}, self.reads, ranges)):
                b.store(mem, x, *where, number)
            return
        columns = self.rows.space[self.last]
        assert isinstance(columns, int)
        place = _Columns(self, b, at, b.index(0), columns, columns)
        place.reduce(0, self.reads, ranges)

        def store(ib: Builder, c: Value, lanes: int) -> None:
            for mem, op in zip(self.outs, self.rows.stages[0]):
                part = ib.emit("load", place.buffers[op.result], c, lanes=lanes if lanes > 1 else 0)[0]
                ib.store(mem, part, number, *where, c)

        place.each(b, store)

    # ---- vectors across columns
    def columns(self, b: Builder, at: dict[int, Value], start: Value, count: Size, block: int) -> None:
        """Columns start .. start+count, at most `block` of them."""
        place = _Columns(self, b, at, start, count, block)
        reads = dict(self.reads)
        for s in range(len(self.rows.stages)):
            place.reduce(s, reads, {})
            reads.update({v: self.outs[j] for v, (j, first) in self.spills.items() if first == s})
        narrow = [j for j in range(len(self.outs)) if not self.rows.is_full(j)]
        full = [j for j in range(len(self.outs)) if self.rows.is_full(j)]
        if narrow:
            place.store(b, narrow, reads, {})
        if full:
            axes = self.rows.reduced
            shape = [self.rows.space[i] for i in axes]
            nest(b, shape, lambda ib, inner: place.store(ib, full, reads, dict(zip(axes, inner))))


class _Columns:
    """A block of neighbouring columns: their accumulators are in buffers on the stack, one for each reduction."""

    def __init__(self, code: RowCode, b: Builder, at: dict[int, Value], start: Value, count: Size, block: int) -> None:
        self.code, self.b, self.at, self.start, self.count = code, b, at, start, count
        self.buffers: dict[Value, Value] = {}
        for stage in code.rows.stages:
            for op in stage:
                self.buffers[op.result] = b.emit("alloc", type=MemType(accumulator_of(op), (block,), "local"))[0]

    def each(self, b: Builder, body: Callable[[Builder, Value, int], None]) -> None:
        """`body(builder, column of the block, lanes)` for all columns."""
        lo: Size = 0
        for lanes in dict.fromkeys((self.code.lanes * self.code.schedule.in_flight, self.code.lanes, 1)):
            start, end = whole_blocks(b, lo, self.count, lanes) if lanes > 1 else (lo, self.count)
            if start is not end and not (isinstance(start, int) and start == end):
                for_(b, start, end, lambda ib, c, n=lanes: body(ib, c, n), step=lanes, vectorize=False)
            lo = end

    def context(
        self, b: Builder, s: int, c: Value, lanes: int, reads: dict[Value, Value], inner: dict[int, Value]
    ) -> tuple[RowElements, Lanes | None, dict[int, Value]]:
        """Evaluation at a column, with the results of the stages before `s` known there; and the loop indices."""
        known: dict[Value, Value] = {}
        for stage in self.code.rows.stages[:s]:
            for op in stage:
                x = b.emit("load", self.buffers[op.result], c, lanes=lanes if lanes > 1 else 0)[0]
                known[op.result] = cast(b, x, op.result.type.dtype)
        column = b.add(self.start, c)
        idx = {**self.at, **inner, self.code.last: column}
        if lanes == 1:
            return RowElements(b, reads, known), None, idx
        e = RowElements(b, reads, {})
        return e, Lanes(e, column, lanes, known), idx

    def reduce(self, s: int, reads: dict[Value, Value], ranges: dict[int, Range]) -> None:
        """Fill the buffers of stage `s`."""
        code = self.code
        stage, axes = code.rows.stages[s], code.rows.reduced

        def clear(b: Builder, c: Value, lanes: int) -> None:
            for op in stage:
                x = b.const(identity(op.name, op.result.type.dtype), dtype=accumulator_of(op))
                b.store(self.buffers[op.result], b.emit("splat", x, lanes=lanes)[0] if lanes > 1 else x, c)

        def level(b: Builder, k: int, inner: dict[int, Value]) -> None:
            lo, hi = ranges.get(axes[k], (0, code.rows.space[axes[k]]))
            if k + 1 < len(axes):
                for_(b, lo, hi, lambda ib, i: level(ib, k + 1, {**inner, axes[k]: i}), vectorize=False)
                return
            if together > 1:
                lo, end = whole_blocks(b, lo, hi, together)
                if lo is not end:
                    for_(b, lo, end, lambda ib, i: add(ib, inner, i, together), step=together, vectorize=False)
                lo = end
            if not (isinstance(lo, int) and isinstance(hi, int) and lo == hi):
                for_(b, lo, hi, lambda ib, i: add(ib, inner, i, 1), vectorize=False)

        def add(b: Builder, inner: dict[int, Value], first: Value, count: int) -> None:
            """The elements of `count` lines of memory, one after the other, while a column's accumulator is in a register."""

            def one(ib: Builder, c: Value, lanes: int) -> None:
                wide = lanes if lanes > 1 else 0
                totals = [ib.emit("load", self.buffers[op.result], c, lanes=wide)[0] for op in stage]
                for n in range(count):
                    i = ib.add(first, ib.index(n)) if n else first
                    e, vec, idx = self.context(ib, s, c, lanes, reads, {**inner, axes[-1]: i})
                    xs = code.operands(e, vec, stage, idx)
                    totals = [
                        combine(ib, op.name, t, cast(ib, x, accumulator_of(op))) for op, t, x in zip(stage, totals, xs)
                    ]
                    code.keep(e, vec, s, idx)
                for op, x in zip(stage, totals):
                    ib.store(self.buffers[op.result], x, c)

            self.each(b, one)

        together = LINES if code.work * len(stage) <= 6 else 1
        self.each(self.b, clear)
        level(self.b, 0, {})

    def store(self, b: Builder, which: Sequence[int], reads: dict[Value, Value], inner: dict[int, Value]) -> None:
        """Write results `which` at the reduced indices `inner` (none for results without them)."""
        code = self.code

        def one(ib: Builder, c: Value, lanes: int) -> None:
            e, vec, idx = self.context(ib, len(code.rows.stages), c, lanes, reads, inner)
            values = []
            for j in which:
                where = code.index_of(ib, j, idx)
                v = code.rows.group.outs[j]
                values.append((j, vec.vector(v, where) if vec else e.at(v, where), where))
            for j, x, where in values:
                ib.store(code.outs[j], x, *where)

        self.each(b, one)


__all__ = ["RowCode", "RowwiseSchedule", "accumulator_of", "element_work"]
