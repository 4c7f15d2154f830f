"""The row-wise template for GPUs: reductions with what comes before and after them, by teams of threads.

A *team* computes one row (see `rows.py`): its threads walk the reduced elements in turns, one loop for each stage, then
combine what they have, then write the results of full shape. Two layouts, by the last axis of the space:

- "row" (the last axis is reduced): a team is a run of neighbouring threads, so that they read neighbouring elements; up
  to 32 of them combine by shuffles, larger teams through shared memory as well;
- "columns" (the last axis is kept): neighbouring threads work on neighbouring rows, the team's threads stand a whole
  line of threads apart and combine through shared memory.

Where rows are whole 16-byte vectors, threads of a "row" team read vectors. Few long rows are cut into pieces of fixed
length, which a second kernel combines. The order of additions depends on shapes and target alone: a butterfly adds the
same pairs in every lane, and partial results are combined in order of threads, so that all threads know the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, ceildiv, facts, product, prove_le
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType
from fluxir.ops.maps import REDUCTIONS
from fluxir.ops.nest import accumulator, cast, combine, identity
from fluxir.schedule.gpu_pointwise import THREADS, grid_kernel, vector_lanes
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_, if_, memory, unravel
from fluxir.schedule.rows import Rows, analyse_rows, without_arg
from fluxir.schedule.rowwise import after_pieces, by_stages, one_stage
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.vectors import Lanes, RowElements, aligned_bytes

WARP = 32
FEW_ROWS = 64  # fewer known rows than this are cut into pieces
PIECE = 16384  # elements of a piece
PER_THREAD = 4  # vectors that each thread of a team larger than a warp reads at least


@dataclass(frozen=True)
class GpuRowwiseSchedule(Schedule):
    """`space`: loops after merging; `reduced`: which of them; `team` threads of a block of `threads` share a row; `layout`
    "row" or "columns"; `lanes`: elements a thread reads at once; `piece`: length of a piece of a row that is cut."""

    space: str
    reduced: str
    layout: str
    team: int
    threads: int
    lanes: int
    stages: int
    piece: int | None = None


@template("rowwise", target="nvptx", anchors=(*REDUCTIONS, "argmax", "argmin"), priority=10)
def rowwise(group: Group, target: Any) -> Kernels | None:
    """Reductions with their producers and consumers, a team of threads a row."""
    group = without_arg(group)
    rows = analyse_rows(group)
    if rows is None:
        return None
    return by_stages(group, target) if _few_long(rows) and not one_stage(rows) else kernels_of(rows, group)


def kernels_of(rows: Rows, original: Group) -> Kernels:
    """One kernel, or two where the rows are few and long. `original`: the group before its axes were merged."""
    return _split(rows, original) if one_stage(rows) and _few_long(rows) else _whole(rows, original)


def _few_long(rows: Rows) -> bool:
    few = product(rows.space[i] for i in rows.kept)
    if not isinstance(few, int) or few > FEW_ROWS:
        return False
    return not prove_le(product(rows.space[i] for i in rows.reduced), 2 * PIECE)


def _schedule(rows: Rows, piece: int | None = None) -> GpuRowwiseSchedule:
    last = len(rows.space) - 1
    along = last in rows.reduced
    length = product(rows.space[i] for i in rows.reduced)
    high = length if isinstance(length, int) else facts().range(length)[1]
    lanes = 1
    if along and not rows.access.opaque:
        lanes = vector_lanes([v.type for v in (*rows.group.args, *rows.group.outs)], rows.space[last])
    if piece is not None:
        high = min(high, piece)
    if along:
        team = 1
        while team < THREADS and team * lanes * (PER_THREAD if team >= WARP else 1) < high:
            team *= 2
    else:
        team = THREADS // WARP if high > 4 * PER_THREAD else 1
    shown = "x".join(map(str, rows.space)), ",".join(map(str, rows.reduced))
    return GpuRowwiseSchedule(*shown, "row" if along else "columns", team, THREADS, lanes, len(rows.stages), piece)


def _accumulator(op: Op) -> DType:
    d: DType = op.result.type.dtype
    return accumulator(d) if op.name in ("sum", "prod") else d


def _whole(rows: Rows, original: Group) -> Kernels:
    group, schedule = rows.group, _schedule(rows)
    kept = tuple(rows.space[i] for i in rows.kept)
    tasks = product(kept)

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        code = _TeamCode(b, rows, schedule, dict(zip(group.args, ins)), list(outs))
        task, here = code.start(tasks)
        length = b.index(product(rows.space[i] for i in rows.reduced))
        code.row(unravel(b, task, kept), b.index(0), b.select(here, length, b.index(0)), here)

    inputs, outputs = [memory(v.type) for v in group.args], [memory(v.type) for v in group.outs]
    blocks = ceildiv(tasks, schedule.threads // schedule.team)
    names = [v.name for v in group.args]
    given = [memory(v.type) for v in (*original.args, *original.outs)]
    made = grid_kernel(
        group.name,
        inputs,
        outputs,
        blocks,
        schedule.threads,
        body,
        names=names,
        schedule=schedule,
        loc=group.loc,
        given=given,
    )
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in range(len(outputs))]]
    pairs = tuple((len(inputs) + j, i) for j, i in rows.inplace())
    return Kernels((Step(made, tuple(refs), len(outputs), pairs),))


def _split(rows: Rows, original: Group) -> Kernels:
    """Two kernels: the pieces of every row, then their combination and what follows it."""
    group, schedule = rows.group, _schedule(rows, PIECE)
    (stage,) = rows.stages
    kept = tuple(rows.space[i] for i in rows.kept)
    length = product(rows.space[i] for i in rows.reduced)
    pieces = ceildiv(length, PIECE)
    parts = [MemType(_accumulator(op), (*kept, pieces)) for op in stage]
    tasks = pieces * product(kept)

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        code = _TeamCode(b, rows, schedule, dict(zip(group.args, ins)), list(outs))
        task, here = code.start(tasks)
        c, *at = unravel(b, task, (pieces, *kept))  # rows last: neighbouring columns stay neighbours
        lo = b.mul(c, b.index(PIECE))
        hi = b.minimum(b.add(lo, b.index(PIECE)), b.index(length))
        totals = code.reduce(tuple(at), lo, b.select(here, hi, lo), 0, {})

        def store(ib: Builder) -> None:
            for mem, x in zip(outs, totals):
                ib.store(mem, x, *at, c)

        if_(b, b.logical_and(here, b.eq(code.lane, b.index(0))), store)

    inputs = [memory(v.type) for v in group.args]
    blocks = ceildiv(tasks, schedule.threads // schedule.team)
    names = [v.name for v in group.args]
    given = [*[memory(v.type) for v in original.args], *parts]
    name, threads = f"{group.name}_pieces", schedule.threads
    made = grid_kernel(
        name, inputs, parts, blocks, threads, body, names=names, schedule=schedule, loc=group.loc, given=given
    )
    return after_pieces(rows, made, parts, pieces, _whole, first=False)


# ---- the code of a kernel ---------------------------------------------------------------------------------------------


class _TeamCode:
    """Emits the work of one thread. `lane`: its place in its team."""

    def __init__(
        self, b: Builder, rows: Rows, schedule: GpuRowwiseSchedule, reads: dict[Value, Value], outs: list[Value]
    ) -> None:
        self.b, self.rows, self.schedule, self.reads, self.outs = b, rows, schedule, reads, outs
        self.last = len(rows.space) - 1
        self.dims = tuple(rows.space[i] for i in rows.reduced)
        self.lane = b.index(0)
        self.member = b.index(0)

    def start(self, tasks: Dim) -> tuple[Value, Value]:
        """The team's task, and whether there is one."""
        b, s = self.b, self.schedule
        thread, teams = b.thread_id(axis=0), s.threads // s.team
        if s.layout == "row":
            self.lane, self.member = b.fmod(thread, b.index(s.team)), b.div(thread, b.index(s.team))
        else:
            self.lane, self.member = b.div(thread, b.index(teams)), b.fmod(thread, b.index(teams))
        task = b.add(b.mul(b.block_id(axis=0), b.index(teams)), self.member)
        return task, b.lt(task, b.index(tasks))

    def row(self, at: tuple[Value, ...], lo: Value, hi: Value, here: Value) -> None:
        """All stages of a row, then its results. `hi` is `lo` for a team without a row: it only takes part in barriers."""
        b = self.b
        fixed: dict[Value, Value] = {}
        for s, stage in enumerate(self.rows.stages):
            totals = self.reduce(at, lo, hi, s, fixed)
            fixed |= {op.result: cast(b, x, op.result.type.dtype) for op, x in zip(stage, totals)}
        full = [j for j in range(len(self.outs)) if self.rows.is_full(j)]
        narrow = [j for j in range(len(self.outs)) if not self.rows.is_full(j)]

        def store(ib: Builder) -> None:
            e = RowElements(ib, self.reads, fixed)
            idx = dict(zip(self.rows.kept, at))
            found = [(j, self.index_of(ib, j, idx)) for j in narrow]
            for (j, where), x in zip(found, [e.at(self.rows.group.outs[j], where) for j, where in found]):
                ib.store(self.outs[j], x, *where)

        def write(ib: Builder, i: Value) -> None:
            idx = self.place(ib, at, i)
            e = RowElements(ib, self.reads, fixed)
            vec = Lanes(e, idx[self.last], self.schedule.lanes, aligned=True) if self.schedule.lanes > 1 else None
            found = [(j, self.index_of(ib, j, idx)) for j in full]
            values = [
                vec.vector(self.rows.group.outs[j], w) if vec else e.at(self.rows.group.outs[j], w) for j, w in found
            ]
            for (j, where), x in zip(found, values):
                ib.store(self.outs[j], x, *where, align=aligned_bytes(self.outs[j], self.schedule.lanes) if vec else 0)

        if narrow:
            if_(b, b.logical_and(here, b.eq(self.lane, b.index(0))), store)
        if full:
            self.loop(lo, hi, lambda ib, i: write(ib, i))

    def loop(self, lo: Value, hi: Value, body: Any, carry: Sequence[Value] = ()) -> tuple[Value, ...]:
        """This thread's share of the reduced positions lo..hi."""
        b, lanes = self.b, self.schedule.lanes
        first = b.add(lo, b.mul(self.lane, b.index(lanes)) if lanes > 1 else self.lane)
        return for_(b, first, hi, body, carry, step=self.schedule.team * lanes, name="r")

    def place(self, b: Builder, at: tuple[Value, ...], i: Value) -> dict[int, Value]:
        """Loop indices at reduced position `i` of the row `at`."""
        return {**dict(zip(self.rows.kept, at)), **dict(zip(self.rows.reduced, unravel(b, i, self.dims)))}

    def index_of(self, b: Builder, j: int, idx: dict[int, Value]) -> tuple[Value, ...]:
        return tuple(b.index(0) if k < 0 else idx[k] for k in self.rows.access.results[j])

    def reduce(self, at: tuple[Value, ...], lo: Value, hi: Value, s: int, fixed: dict[Value, Value]) -> list[Value]:
        """The stage's reductions over positions lo..hi, in accumulator type, known to every thread of the team."""
        b, stage, lanes = self.b, self.rows.stages[s], self.schedule.lanes
        starts = [b.const(identity(op.name, op.result.type.dtype), dtype=_accumulator(op)) for op in stage]
        if lanes > 1:
            starts = [b.emit("splat", x, lanes=lanes)[0] for x in starts]

        def step(ib: Builder, i: Value, *carry: Value) -> list[Value]:
            idx = self.place(ib, at, i)
            where = tuple(idx[k] for k in range(len(self.rows.space)))
            e = RowElements(ib, self.reads, fixed)
            vec = Lanes(e, idx[self.last], lanes, aligned=True) if lanes > 1 else None
            xs = [vec.vector(op.operands[0], where) if vec else e.at(op.operands[0], where) for op in stage]
            return [combine(ib, op.name, c, cast(ib, x, _accumulator(op))) for op, c, x in zip(stage, carry, xs)]

        totals = list(self.loop(lo, hi, step, starts))
        if lanes > 1:
            totals = [self.lanes_of(op, v) for op, v in zip(stage, totals)]
        return self.gather(stage, totals)

    def lanes_of(self, op: Op, v: Value) -> Value:
        """One number from a vector, by halves."""
        parts = [self.b.emit("extract", v, lane=i)[0] for i in range(self.schedule.lanes)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [combine(self.b, op.name, x, y) for x, y in zip(parts[:half], parts[half:])]
        return parts[0]

    def gather(self, stage: Sequence[Op], totals: list[Value]) -> list[Value]:
        """The totals of the team from those of its threads."""
        b, s = self.b, self.schedule
        if s.team == 1:
            return totals
        count, inside = s.team, s.layout == "row"
        if inside:
            mask = min(WARP, s.team) // 2
            while mask:
                totals = [
                    combine(b, op.name, x, b.emit("shuffle_xor", x, mask=mask)[0]) for op, x in zip(stage, totals)
                ]
                mask //= 2
            count = s.team // WARP
        if count <= 1:
            return totals
        teams = s.threads // s.team
        shared = [b.emit("alloc", type=MemType(x.type.dtype, (teams * count,), "shared"))[0] for x in totals]
        mine = b.div(self.lane, b.index(WARP)) if inside else self.lane
        # Columns: [part][team], so that neighbouring threads touch neighbouring words.
        base, stride = (b.mul(self.member, b.index(count)), 1) if inside else (self.member, teams)

        def put(ib: Builder) -> None:
            for mem, x in zip(shared, totals):
                ib.store(mem, x, ib.add(base, ib.mul(mine, ib.index(stride))))

        if inside:
            if_(b, b.eq(b.fmod(self.lane, b.index(WARP)), b.index(0)), put)
        else:
            put(b)
        b.barrier()
        out = []
        for op, mem in zip(stage, shared):
            parts = self.parts(mem, base, count, stride)
            total = parts[0]
            for x in parts[1:]:
                total = combine(b, op.name, total, x)
            out.append(total)
        return out

    def parts(self, mem: Value, base: Value, count: int, stride: int) -> list[Value]:
        """`count` elements of shared memory, `stride` apart; in vectors where they are neighbours."""
        b, run = self.b, min(4, count) if stride == 1 else 1
        places = [b.add(base, b.index(k * stride)) for k in range(0, count, run)]
        if run == 1:
            return [b.load(mem, i) for i in places]
        align = min(16, run * mem.type.dtype.itemsize)  # `base` is a multiple of `count`
        vectors = [b.emit("load", mem, i, lanes=run, align=align)[0] for i in places]
        return [b.emit("extract", v, lane=k)[0] for v in vectors for k in range(run)]


__all__ = ["GpuRowwiseSchedule", "kernels_of", "rowwise"]
