"""The matmul template for GPUs: tiles in shared memory, a small tile of results in the registers of each thread.

A block of 16 x 16 threads computes `rows` x `cols` results. It walks the contracted index in steps of `DEPTH`: the tiles
of both operands are read from global memory into registers (the next ones while the current ones are multiplied), put
into shared memory with the contracted index first, and every thread multiplies what its results need. Operands may have
any layout (index maps), be computed on the way, and are zero outside; what follows the dot is computed in the
registers before the store. A result is the sum of products in order of the contracted index, by fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, facts
from fluxir.ir.types import MemType
from fluxir.ops.nest import cast
from fluxir.schedule.contraction import (
    CONTRACT,
    Dot,
    Operand,
    OperandCode,
    PostCode,
    analyse_dot,
    as_reduction,
    types_of,
    views,
)
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.gpu_pointwise import grid_kernel
from fluxir.schedule.gpu_rowwise import rowwise
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_, if_, memory, unravel
from fluxir.schedule.split import LOOPING
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.vectors import Lanes, aligned_bytes

SIDE = 16  # threads along each side of a block
DEPTH = 16  # contracted elements of a tile
TINY = 2048  # multiplications below which one thread a result does
BLOCKS = 160  # so many blocks keep a GPU busy
UNKNOWN = 1024  # what a symbolic size is taken for


@dataclass(frozen=True)
class GpuMatmulSchedule(Schedule):
    """A block computes `rows` x `cols` results, a thread `rows/16` x `cols/16` of them. `lhs`, `rhs`, `out`: elements that
    a thread reads or writes at once in global memory."""

    rows: int
    cols: int
    depth: int
    lhs: int
    rhs: int
    out: int


@template("matmul", target="nvptx", anchors=("dot",), priority=20)
def matmul(group: Group, target: Any) -> Kernels | None:
    """One dot with pointwise operations before and after it, tiled in shared memory."""
    dot = analyse_dot(group)
    if dot is None or 0 in (dot.batch, dot.m, dot.n):
        return None
    if any(op.name in LOOPING and op is not dot.op for op in group.ops):
        return None
    flat = as_reduction(dot)
    if flat is not None:
        return rowwise(flat, target)
    work = dot.batch * dot.m * dot.n * dot.k
    if isinstance(work, int) and work <= TINY:
        return None
    return Kernels((_Tiles(dot, target).step(),))


def choose(dot: Dot, target: Any) -> GpuMatmulSchedule:
    """Large tiles where there are enough of them and the code after the dot is short, else smaller ones."""

    def size(d: Dim) -> int:
        return d if isinstance(d, int) else UNKNOWN

    def fitting(d: Dim) -> int:
        known = isinstance(d, int)
        return next((s for s in (1, 2, 4) if known and size(d) <= SIDE * s), 8)

    high, wide = fitting(dot.m), fitting(dot.n)
    limit = 4 if element_cost(dot.post) > 8 or dot.dtype.bits > 32 else 8
    high, wide = min(high, limit), min(wide, limit)

    def blocks() -> int:
        return size(dot.batch) * -(-size(dot.m) // (SIDE * high)) * -(-size(dot.n) // (SIDE * wide))

    while max(high, wide) > 2 and blocks() < BLOCKS:
        if high >= wide:
            high //= 2
        else:
            wide //= 2
    rows, cols = SIDE * high, SIDE * wide
    out = min(4, wide) if len(dot.post_dims[2]) == 1 and facts().divides(min(4, wide), dot.n) else 1
    return GpuMatmulSchedule(rows, cols, DEPTH, _lanes(dot.lhs, rows), _lanes(dot.rhs, cols), out)


def _lanes(side: Operand, rows: int) -> int:
    """Neighbouring elements of an operand that a thread reads at once."""
    if side.computed or side.contiguous() is None:
        return 1
    lanes = min(4, rows * DEPTH // SIDE**2)
    while lanes > 1 and not facts().divides(lanes, side.shape[-1]):
        lanes //= 2
    return lanes


class _Tiles:
    """The kernel of one dot."""

    def __init__(self, dot: Dot, target: Any) -> None:
        self.dot, self.schedule = dot, choose(dot, target)
        s = self.schedule
        self.high, self.wide = s.rows // SIDE, s.cols // SIDE
        self.chunk = min(4, self.wide)  # neighbouring columns of a thread

    def step(self) -> Step:
        dot, s = self.dot, self.schedule
        inputs, outputs = types_of(dot)
        tiles = dot.batch * ceildiv(dot.m, s.rows) * ceildiv(dot.n, s.cols)
        given = [*inputs, *[memory(v.type) for v in dot.group.outs]]
        names = [a.name for a in dot.group.args]
        made = grid_kernel(
            dot.group.name,
            inputs,
            outputs,
            tiles,
            SIDE**2,
            self.body,
            names=names,
            schedule=s,
            loc=dot.group.loc,
            given=given,
        )
        refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in range(len(outputs))]]
        return Step(made, tuple(refs), len(outputs))

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        dot, s = self.dot, self.schedule
        reads, after = views(b, dot, dict(enumerate(ins)))
        self.outs, self.after = outs, after
        self.thread = b.thread_id(axis=0)
        self.t, i, j = unravel(b, b.block_id(axis=0), (dot.batch, ceildiv(dot.m, s.rows), ceildiv(dot.n, s.cols)))
        self.m0, self.n0 = b.mul(i, b.index(s.rows)), b.mul(j, b.index(s.cols))
        sides = (
            _Side(b, self, dot.lhs, reads, self.m0, dot.m, s.rows, s.lhs),
            _Side(b, self, dot.rhs, reads, self.n0, dot.n, s.cols, s.rhs),
        )
        lhs, rhs = sides
        count = self.high * self.wide
        zero = b.const(0, dtype=dot.dtype)
        y, x = b.div(self.thread, b.index(SIDE)), b.fmod(self.thread, b.index(SIDE))

        def step(ib: Builder, k0: Value, *carry: Value) -> list[Value]:
            sums, staged = list(carry[:count]), carry[count:]
            lhs.put(ib, staged[: lhs.count])
            rhs.put(ib, staged[lhs.count :])
            ib.barrier()
            following = ib.add(k0, ib.index(DEPTH))
            staged = (*lhs.get(ib, following), *rhs.get(ib, following))

            def multiply(jb: Builder, k: Value, *sums: Value) -> list[Value]:
                xs, ys = lhs.taken(jb, k, y), rhs.taken(jb, k, x)
                return [
                    self.add(jb, xs[i], ys[j], sums[i * self.wide + j])
                    for i in range(self.high)
                    for j in range(self.wide)
                ]

            sums = list(for_(ib, 0, DEPTH, multiply, sums, unroll=4, name="kk"))
            ib.barrier()
            return [*sums, *staged]

        first = b.index(0)
        staged = (*lhs.get(b, first), *rhs.get(b, first))
        found = for_(b, 0, dot.k, step, [*[zero] * count, *staged], step=DEPTH, name="k", unroll=1)
        self.finish(b, found[:count], self.places(b, y, self.m0, self.high), self.places(b, x, self.n0, self.wide))

    def add(self, b: Builder, x: Value, y: Value, total: Value) -> Value:
        out: Value = b.fma(x, y, total) if self.dot.dtype.is_float else b.add(b.mul(x, y), total)
        return out

    def places(self, b: Builder, thread: Value, base: Value, count: int) -> list[Value]:
        """The first row (or column) of each run of neighbouring ones that the thread computes."""
        chunk = min(4, count)
        first = b.add(base, b.mul(thread, b.index(chunk)))
        return [b.add(first, b.index(g * SIDE * chunk)) for g in range(count // chunk)]

    def finish(self, b: Builder, sums: Sequence[Value], rows: list[Value], columns: list[Value]) -> None:
        """What follows the dot, and the stores."""
        dot, known = self.dot, facts()
        run = min(4, self.high)
        all_rows, all_columns = known.divides(self.schedule.rows, dot.m), known.divides(self.schedule.cols, dot.n)

        def guarded(ib: Builder, conditions: list[Value], body: Any) -> None:
            if not conditions:
                body(ib)
                return
            here = conditions[0]
            for c in conditions[1:]:
                here = ib.logical_and(here, c)
            if_(ib, here, body)

        for i in range(self.high):
            row = rows[i // run] if i % run == 0 else b.add(rows[i // run], b.index(i % run))

            def line(ib: Builder, i: int = i, row: Value = row) -> None:
                for g, column in enumerate(columns):
                    part = sums[i * self.wide + g * self.chunk : i * self.wide + (g + 1) * self.chunk]
                    if self.schedule.out > 1:
                        inside = [] if all_columns else [ib.lt(column, ib.index(dot.n))]
                        guarded(ib, inside, lambda jb, p=part, c=column: self.vector(jb, p, row, c))
                        continue
                    for k, x in enumerate(part):
                        c = ib.add(column, ib.index(k)) if k else column
                        inside = [] if all_columns else [ib.lt(c, ib.index(dot.n))]
                        guarded(ib, inside, lambda jb, x=x, c=c: self.one(jb, x, row, c))

            guarded(b, [] if all_rows else [b.lt(row, b.index(dot.m))], line)

    def one(self, b: Builder, x: Value, row: Value, column: Value) -> None:
        where = self.dot.post_index(b, self.t, row, column)
        PostCode(self.dot.post, self.after, self.outs).store(b, x, where, column)

    def vector(self, b: Builder, parts: Sequence[Value], row: Value, column: Value) -> None:
        """Neighbouring columns at once; `column` is a multiple of their number."""
        post, lanes = self.dot.post, len(parts)
        where = self.dot.post_index(b, self.t, row, column)
        result = post.args[-1]
        v = b.emit("splat", parts[0], lanes=lanes)[0]
        for k, x in enumerate(parts[1:], 1):
            v = b.emit("insert", v, x, lane=k)[0]
        vec = Lanes(Elements(b, self.after), column, lanes, {result: cast(b, v, result.type.dtype)}, aligned=True)
        for mem, x in zip(self.outs, [vec.vector(o, where) for o in post.outs]):
            b.store(mem, x, *where, align=aligned_bytes(mem, lanes))


class _Side:
    """One operand in the kernel: global memory to registers (`get`), to shared memory (`put`), to a thread (`taken`)."""

    def __init__(
        self,
        b: Builder,
        tiles: _Tiles,
        operand: Operand,
        reads: dict[Value, Value],
        base: Value,
        size: Dim,
        rows: int,
        lanes: int,
    ) -> None:
        self.tiles, self.operand, self.reads, self.size, self.lanes = tiles, operand, reads, size, lanes
        self.dtype = tiles.dot.dtype
        self.code = OperandCode(operand, reads, self.dtype)
        self.count = rows * DEPTH // SIDE**2 // lanes
        self.per_thread = rows // SIDE
        pad = 16 // self.dtype.itemsize if self.dtype.itemsize < 16 else 1  # rows stay aligned and start in other banks
        self.shared = b.emit("alloc", type=MemType(self.dtype, (DEPTH, rows + pad), "shared"))[0]
        self.by_k = not operand.axes or operand.axes[-1][0] == CONTRACT
        self.whole = facts().divides(rows, size)
        # Where this thread's elements stand in the tile: (row, k) of each.
        self.at: list[tuple[Value, Value]] = []
        line = b.index((DEPTH if self.by_k else rows) // lanes)
        for i in range(self.count):
            e = b.add(tiles.thread, b.index(i * SIDE**2)) if i else tiles.thread
            fast, slow = b.mul(b.fmod(e, line), b.index(lanes)), b.div(e, line)
            self.at.append((slow, fast) if self.by_k else (fast, slow))
        self.rows = [b.add(base, r) for r, _ in self.at]

    def get(self, b: Builder, k0: Value) -> list[Value]:
        """This thread's elements of the tile at `k0`, zero outside of the operand."""
        out = []
        for row, (_, k) in zip(self.rows, self.at):
            depth = b.add(k0, k)
            here = b.lt(depth, b.index(self.tiles.dot.k))
            if not self.whole:
                here = b.logical_and(here, b.lt(row, b.index(self.size)))

            def read(ib: Builder, row: Value = row, depth: Value = depth) -> Value:
                return self.read(ib, row, depth)

            out.append(if_(b, here, read, self.nothing)[0])
        return out

    def nothing(self, b: Builder) -> Value:
        zero = b.const(0, dtype=self.dtype)
        return b.emit("splat", zero, lanes=self.lanes)[0] if self.lanes > 1 else zero

    def read(self, b: Builder, row: Value, depth: Value) -> Value:
        t, lanes = self.tiles.t, self.lanes
        if lanes == 1:
            return self.code.at(b, t, row, depth)
        mem = self.reads[self.operand.value]
        where = self.operand.index(b, t, row, depth)
        return cast(b, b.emit("load", mem, *where, lanes=lanes, align=aligned_bytes(mem, lanes))[0], self.dtype)

    def put(self, b: Builder, staged: Sequence[Value]) -> None:
        for v, (row, k) in zip(staged, self.at, strict=True):
            if self.lanes == 1:
                b.store(self.shared, v, k, row)
            elif self.by_k:
                for i in range(self.lanes):
                    b.store(self.shared, b.emit("extract", v, lane=i)[0], b.add(k, b.index(i)) if i else k, row)
            else:
                b.store(self.shared, v, k, row, align=min(16, self.lanes * self.dtype.itemsize))

    def taken(self, b: Builder, k: Value, thread: Value) -> list[Value]:
        """The elements at `k` of the rows that the thread computes."""
        run = min(4, self.per_thread)
        first = b.mul(thread, b.index(run))
        out: list[Value] = []
        for g in range(self.per_thread // run):
            place = b.add(first, b.index(g * SIDE * run)) if g else first
            if run == 1:
                out.append(b.load(self.shared, k, place))
                continue
            v = b.emit("load", self.shared, k, place, lanes=run, align=min(16, run * self.dtype.itemsize))[0]
            out += [b.emit("extract", v, lane=i)[0] for i in range(run)]
        return out


__all__ = ["GpuMatmulSchedule", "choose", "matmul"]
