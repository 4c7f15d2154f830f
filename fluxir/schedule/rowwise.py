"""The row-wise template for CPUs: reductions with what comes before and after them, in one kernel.

For each row (one index of the kept axes) the kernel runs one loop for each stage, then one loop that writes the results
of full shape; `rows.py` defines these. Rows are spread over threads. Two loop orders, by the last axis of the space:

- reduced: vectors run along the row, several accumulators hide the latency of an addition;
- kept: vectors run across neighbouring rows (columns of memory), which walks memory in its own order.

A value that is expensive and needed by a later stage too is kept in the memory of a result instead of computed twice.
A reduction of few long rows is split into pieces of fixed length, whose results a second kernel combines in order. The
order of additions depends on shapes and target alone: the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType
from fluxir.ops.nest import accumulator, cast, combine, identity
from fluxir.schedule.access import REDUCTIONS
from fluxir.schedule.cost import element_cost, op_cost
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import (
    GRAIN,
    Size,
    for_,
    grain_of,
    if_,
    index,
    is_small,
    kernel,
    memory,
    nest,
    parallel,
    unravel,
)
from fluxir.schedule.rows import Rows, analyse_rows, combining_group
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.vectors import Lanes, RowElements

LANE_OPS = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}
ACCUMULATORS = 4
FEW_ROWS = 8  # fewer known rows than this are split along the row
PIECE = 4 * GRAIN  # element operations of one piece


@dataclass(frozen=True)
class RowwiseSchedule(Schedule):
    """`space`: loops after merging; `reduced`: which of them; `vectors` run along the row or across columns;
    `accumulators`: vectors a reduction keeps; `stages`: passes over a row; `piece`: length of a piece of a split row."""

    space: str
    reduced: str
    vectors: str
    lanes: int
    accumulators: int
    stages: int
    piece: int | None = None


@template("rowwise", target="cpu", anchors=REDUCTIONS, priority=10)
def rowwise(group: Group, target: Any) -> Kernels | None:
    """Reductions with their producers and consumers, one row at a time."""
    rows = analyse_rows(group)
    if rows is None:
        return None
    piece = _piece(rows)
    return _split(rows, piece, group, target) if piece is not None else _whole(rows, group, target)


def accumulator_of(op: Op) -> DType:
    d: DType = op.result.type.dtype
    return accumulator(d) if op.name in ("sum", "prod") else d


def _lane_op(op: Op) -> str:
    word = LANE_OPS[op.name]
    return {"max": "or", "min": "and"}.get(word, word) if op.result.type.dtype.is_bool else word


def _choices(rows: Rows, target: Any) -> tuple[bool, int, int]:
    """(vectors along the row, lanes, accumulators)."""
    widths = [accumulator_of(op).bits for s in rows.stages for op in s]
    lanes = target.lanes(max([b for b in widths if b > 8] or [32]))
    last = len(rows.space) - 1
    along = last in rows.reduced
    work = sum(op_cost(op) for op in rows.group.ops if op.name not in REDUCTIONS)
    reductions = max(len(s) for s in rows.stages)
    accumulators = 1 if work > 12 or reductions > 2 else ACCUMULATORS
    n = rows.space[last]
    if isinstance(n, int):
        while accumulators > 1 and n < 2 * lanes * accumulators:
            accumulators //= 2
        if n < lanes:
            lanes, accumulators = 1, 1
    return along, lanes, accumulators


def _schedule(rows: Rows, target: Any, piece: int | None = None) -> RowwiseSchedule:
    along, lanes, accumulators = _choices(rows, target)
    return RowwiseSchedule(
        "x".join(map(str, rows.space)),
        ",".join(map(str, rows.reduced)),
        "row" if along else "columns",
        lanes,
        accumulators,
        len(rows.stages),
        piece,
    )


def _whole(rows: Rows, original: Group, target: Any) -> Kernels:
    """One kernel that does whole rows; `original` is the group before its axes were merged."""
    group = rows.group
    schedule = _schedule(rows, target)
    spills = rows.spills() if not rows.access.opaque else {}

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        code = _RowCode(rows, schedule, dict(zip(group.args, ins)), list(outs), spills)
        code.everything(b)

    inputs, outputs = [memory(v.type) for v in group.args], [memory(v.type) for v in group.outs]
    given = [memory(v.type) for v in (*original.args, *original.outs)]
    names = [v.name for v in group.args]
    made = kernel(group.name, inputs, outputs, body, names=names, schedule=schedule, loc=group.loc, given=given)
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in range(len(outputs))]]
    pairs = () if spills else tuple((len(inputs) + j, i) for j, i in rows.inplace())
    return Kernels((Step(made, tuple(refs), len(outputs), pairs),))


# ---- splitting ---------------------------------------------------------------------------------------------------------


def _piece(rows: Rows) -> int | None:
    """The length of a piece along the first reduced axis where the rows should be split, else None."""
    few = product(rows.space[i] for i in rows.kept)
    if not isinstance(few, int) or few > FEW_ROWS or len(rows.stages) != 1:
        return None
    if any(rows.is_full(j) for j in range(len(rows.group.outs))):
        return None
    first, *rest = rows.reduced
    inner = product(rows.space[i] for i in rest)
    if not isinstance(inner, int) or first != min(rows.reduced):
        return None
    work = max(1, inner * _element_work(rows))
    length = max(1, PIECE // work)
    n = rows.space[first]
    pieces = ceildiv(n, length)
    return None if isinstance(pieces, int) and pieces <= 2 else length


def _element_work(rows: Rows) -> int:
    reading = len([a for a in rows.group.args if shape_of(a)]) + len(rows.stages)
    return reading + sum(op_cost(op) for op in rows.group.ops if op.name not in REDUCTIONS)


def _split(rows: Rows, piece: int, original: Group, target: Any) -> Kernels:
    """Two kernels: the pieces of every row, then their combination and what follows it."""
    group = rows.group
    (stage,) = rows.stages
    schedule = _schedule(rows, target, piece)
    first = rows.reduced[0]
    pieces = ceildiv(rows.space[first], piece)
    kept = tuple(rows.space[i] for i in rows.kept)
    parts = [MemType(accumulator_of(op), (*kept, pieces)) for op in stage]

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        code = _RowCode(rows, schedule, dict(zip(group.args, ins)), list(outs), {})

        def task(ib: Builder, t: Value) -> None:
            *row, c = unravel(ib, t, (*kept, pieces))
            lo = ib.mul(c, ib.index(piece))
            hi = ib.minimum(ib.add(lo, ib.index(piece)), ib.index(rows.space[first]))
            code.piece(ib, dict(zip(rows.kept, row)), {first: (lo, hi)}, (*row, c))

        parallel(b, product((*kept, pieces)), task)

    inputs = [memory(v.type) for v in group.args]
    given = [*[memory(v.type) for v in original.args], *parts]
    names = [v.name for v in group.args]
    name = f"{group.name}_pieces"
    made = kernel(name, inputs, parts, body, names=names, schedule=schedule, loc=group.loc, given=given)
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("scratch", k) for k in range(len(parts))]]
    steps = [Step(made, tuple(refs), len(parts))]
    rest = combining_group(rows, pieces)
    combined = analyse_rows(rest)
    assert combined is not None, "the parts are reduced along their last axis"
    second = _whole(combined, rest, target)
    sources: list[Ref] = [*[("scratch", k) for k in range(len(parts))], *[("input", i) for i in range(len(inputs))]]
    for s in second.steps:
        operands = tuple(sources[i] if kind == "input" else (kind, i) for kind, i in s.operands)
        steps.append(Step(s.kernel, operands, s.outputs))
    return Kernels(tuple(steps), tuple(parts))


# ---- the code of a kernel ----------------------------------------------------------------------------------------------

Range = tuple[Size, Size]


class _RowCode:
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
        self.work = _element_work(rows)

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
        block = self.lanes * self.accumulators
        blocks = ceildiv(columns, block)

        def column_block(ib: Builder, at: tuple[Value, ...]) -> None:
            self.columns(ib, dict(zip(self.rows.kept[:-1], at)), ib.mul(at[-1], ib.index(block)), block)

        self.tasks(b, [*outer, blocks], column_block, total, row_work * block)

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

            def element(ib: Builder, inner: dict[int, Value], lanes: int) -> None:
                e = RowElements(ib, reads, fixed)
                idx = {**at, **inner}
                vec = Lanes(e, idx[self.last], lanes) if lanes > 1 else None
                values = []
                for j in full:
                    where = self.index_of(ib, j, idx)
                    v = self.rows.group.outs[j]
                    values.append((j, vec.vector(v, where) if vec else e.at(v, where), where))
                for j, x, where in values:
                    ib.store(self.outs[j], x, *where)

            self.row_loops(b, {}, lambda ib, inner, lanes, carry: element(ib, inner, lanes))

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

        def step(ib: Builder, inner: dict[int, Value], lanes: int, carry: list[Value]) -> list[Value]:
            # carry: u vectors of each reduction (vector k of all reductions together), then one scalar of each
            e = RowElements(ib, reads, fixed)
            idx = {**at, **inner}
            out = list(carry)
            if lanes <= 1:
                xs = self.operands(e, None, stage, idx)
                for r, (op, x) in enumerate(zip(stage, xs)):
                    out[u * n + r] = combine(ib, op.name, carry[u * n + r], cast(ib, x, accumulator_of(op)))
                self.keep(e, None, s, idx)
                return out
            for k in range(lanes // self.lanes):
                var = idx[self.last] if k == 0 else ib.add(idx[self.last], ib.index(k * self.lanes))
                here = {**idx, self.last: var}
                vec = Lanes(e, var, self.lanes)
                for r, (op, x) in enumerate(zip(stage, self.operands(e, vec, stage, here))):
                    out[k * n + r] = combine(ib, op.name, carry[k * n + r], cast(ib, x, accumulator_of(op)))
                self.keep(e, vec, s, here)
            return out

        carry = self.row_loops(b, ranges, step, [*(vectors * u), *starts], u)
        totals = []
        for r, op in enumerate(stage):
            parts = [carry[k * n + r] for k in range(u)]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [combine(b, op.name, p, q) for p, q in zip(parts[:half], parts[half:])]
            tail = carry[u * n + r]
            if parts:
                whole = b.emit("reduce_lanes", parts[0], op=_lane_op(op))[0]
                tail = combine(b, op.name, whole, tail)
            totals.append(tail)
        return totals

    def row_loops(
        self, b: Builder, ranges: dict[int, Range], step: Any, carry: Sequence[Value] = (), unroll: int = 1
    ) -> list[Value]:
        """Loops over the reduced axes, the last one in vectors; `step(builder, {axis: index}, lanes, carry)`."""
        axes = [i for i in self.rows.reduced if i != self.last]

        def level(ib: Builder, k: int, inner: dict[int, Value], values: Sequence[Value]) -> list[Value]:
            axis = axes[k] if k < len(axes) else self.last
            lo, hi = ranges.get(axis, (0, self.rows.space[axis]))
            if k < len(axes):
                return list(for_(ib, lo, hi, lambda jb, i, *c: level(jb, k + 1, {**inner, axis: i}, c), values))
            sizes = [self.lanes * unroll, self.lanes] if unroll > 1 else [self.lanes]
            start: Size = lo
            out = list(values)
            for lanes in [x for x in sizes if x > 1]:
                start, end = self.whole_blocks(ib, start, hi, lanes)
                if start is end:
                    continue
                out = list(
                    for_(
                        ib,
                        start,
                        end,
                        lambda jb, i, *c, w=lanes: step(jb, {**inner, axis: i}, w, list(c)),
                        out,
                        step=lanes,
                    )
                )
                start = end
            if start is hi or (isinstance(start, int) and start == hi):
                return out
            return list(for_(ib, start, hi, lambda jb, i, *c: step(jb, {**inner, axis: i}, 1, list(c)), out))

        return level(b, 0, {}, carry)

    @staticmethod
    def whole_blocks(b: Builder, lo: Size, hi: Size, block: int) -> tuple[Size, Size]:
        """`lo` and the end of the last whole block of `lo..hi`; one object where there is none for certain."""
        if isinstance(lo, int) and isinstance(hi, int):
            end = lo + (hi - lo) // block * block
            return (lo, lo) if end == lo else (lo, end)
        start, stop = index(b, lo), index(b, hi)
        return start, b.sub(stop, b.fmod(b.sub(stop, start), b.index(block)))

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

    def piece(self, b: Builder, at: dict[int, Value], ranges: dict[int, Range], where: tuple[Value, ...]) -> None:
        """Part of a row, reduced into the output memories at `where`."""
        if self.schedule.vectors == "row":
            totals = self.reduce_row(b, at, 0, {}, self.reads, ranges)
        else:
            totals = self.reduce_columns(b, [at], 0, [{}], self.reads, 1, ranges)[0]
        for mem, x in zip(self.outs, totals):
            b.store(mem, x, *where)

    # ---- vectors across columns
    def columns(self, b: Builder, at: dict[int, Value], start: Value, block: int) -> None:
        """Columns start .. start+block (what of them there is)."""
        size = self.rows.space[self.last]
        n = b.index(size)

        def some(lanes: int, count: int, base: Value, ib: Builder) -> None:
            places = [{**at, self.last: base if k == 0 else ib.add(base, ib.index(k * lanes))} for k in range(count)]
            self.column_set(ib, places, lanes)

        def all_of_it(ib: Builder) -> None:
            some(self.lanes, self.accumulators, start, ib)

        def rest(ib: Builder) -> None:
            lo: Size = start
            if self.lanes > 1 and self.accumulators > 1:
                lo, hi = self.whole_blocks(ib, start, n, self.lanes)
                for_(ib, lo, hi, lambda jb, i: some(self.lanes, 1, i, jb), step=self.lanes)
                lo = hi
            for_(ib, lo, n, lambda jb, i: some(1, 1, i, jb))

        if isinstance(size, int) and size % block == 0:
            all_of_it(b)
        else:
            if_(b, b.le(b.add(start, b.index(block)), n), all_of_it, rest)

    def column_set(self, b: Builder, places: list[dict[int, Value]], lanes: int) -> None:
        fixed: list[dict[Value, Value]] = [{} for _ in places]
        reads = dict(self.reads)
        for s, stage in enumerate(self.rows.stages):
            for known, totals in zip(fixed, self.reduce_columns(b, places, s, fixed, reads, lanes, {})):
                known.update({op.result: cast(b, x, op.result.type.dtype) for op, x in zip(stage, totals)})
            reads.update({v: self.outs[j] for v, (j, first) in self.spills.items() if first == s})

        def store(ib: Builder, which: list[int], inner: dict[int, Value]) -> None:
            values = []
            for at, known in zip(places, fixed):
                idx = {**at, **inner}
                e, vec = self.context(ib, reads, known, idx, lanes)
                for j in which:
                    where = self.index_of(ib, j, idx)
                    v = self.rows.group.outs[j]
                    values.append((j, vec.vector(v, where) if vec else e.at(v, where), where))
            for j, x, where in values:
                ib.store(self.outs[j], x, *where)

        narrow = [j for j in range(len(self.outs)) if not self.rows.is_full(j)]
        full = [j for j in range(len(self.outs)) if self.rows.is_full(j)]
        if narrow:
            store(b, narrow, {})
        if full:
            axes = self.rows.reduced
            nest(b, [self.rows.space[i] for i in axes], lambda ib, at: store(ib, full, dict(zip(axes, at))))

    def context(
        self, b: Builder, reads: dict[Value, Value], known: dict[Value, Value], idx: dict[int, Value], lanes: int
    ) -> tuple[RowElements, Lanes | None]:
        if lanes == 1:
            return RowElements(b, reads, known), None
        e = RowElements(b, reads, {})
        return e, Lanes(e, idx[self.last], lanes, known)

    def reduce_columns(
        self,
        b: Builder,
        places: list[dict[int, Value]],
        s: int,
        fixed: list[dict[Value, Value]],
        reads: dict[Value, Value],
        lanes: int,
        ranges: dict[int, Range],
    ) -> list[list[Value]]:
        """For each place the stage's reductions, as vectors of columns (scalars where `lanes` is 1)."""
        stage, axes = self.rows.stages[s], self.rows.reduced
        starts = [b.const(identity(op.name, op.result.type.dtype), dtype=accumulator_of(op)) for op in stage]
        if lanes > 1:
            starts = [b.emit("splat", x, lanes=lanes)[0] for x in starts]

        def level(ib: Builder, k: int, inner: dict[int, Value], carry: Sequence[Value]) -> list[Value]:
            if k < len(axes):
                lo, hi = ranges.get(axes[k], (0, self.rows.space[axes[k]]))
                return list(for_(ib, lo, hi, lambda jb, i, *c: level(jb, k + 1, {**inner, axes[k]: i}, c), carry))
            out = []
            rest = iter(carry)
            for at, known in zip(places, fixed):
                idx = {**at, **inner}
                e, vec = self.context(ib, reads, known, idx, lanes)
                for op, x in zip(stage, self.operands(e, vec, stage, idx)):
                    out.append(combine(ib, op.name, next(rest), cast(ib, x, accumulator_of(op))))
                self.keep(e, vec, s, idx)
            return out

        flat = level(b, 0, {}, starts * len(places))
        n = len(stage)
        return [flat[k * n : (k + 1) * n] for k in range(len(places))]


__all__ = ["RowwiseSchedule", "accumulator_of", "element_cost", "rowwise"]
