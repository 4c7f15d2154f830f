"""The matmul template for CPUs: packed panels and a register tile of vectors, with what follows fused into the store.

The operands are copied ("packed") into panels that the inner loop reads front to back: `rhs` into panels of `cols`
columns, `lhs` (unless its rows can be read where they are) into panels of `rows` rows, both padded with zeros. A tile
of rows x cols accumulators stays in vector registers while the inner loop runs over the contracted index; that loop is
cut into blocks of `depth` so that a panel stays in the first cache, with partial tiles kept in scratch memory. A task
is a block of rows by a block of panels. (The structure of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008, as arranged in BLIS.) The order of additions depends on shapes and target alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, maximum, product
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import (
    BATCH,
    CONTRACT,
    FREE,
    Dot,
    Operand,
    OperandCode,
    PostCode,
    analyse_dot,
    as_reduction,
    prologue_reads,
    types_of,
    views,
)
from fluxir.schedule.group import Array, Group
from fluxir.schedule.loops import for_, grain_of, if_, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.rowwise import rowwise
from fluxir.schedule.space import inplace_pairs
from fluxir.schedule.split import split_at
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

TINY = 2048  # multiplications below which plain loops do
ONE_BLOCK = 512  # contracted sizes up to this are not cut into blocks
TASK = 1 << 22  # multiplications in a task, at most where that leaves whole panels: some 50 us
SMALL_TASK = 1 << 18  # not less than this, to have tasks for all threads
TASKS = 12  # tasks that a product is cut into where they are not too small


@dataclass(frozen=True)
class MatmulSchedule(Schedule):
    """`rows` x `cols`: the register tile in elements. `depth`: length of a block of the contracted index (0: all of it).
    `row_tiles`, `panels`: size of a task. `pack_lhs`: whether the left operand is packed."""

    rows: int
    cols: int
    lanes: int
    depth: int
    row_tiles: int
    panels: int
    pack_lhs: bool


@template("matmul", target="cpu", anchors=("dot",), priority=20)
def matmul(group: Group, target: Any) -> Kernels | None:
    """One dot with pointwise operations before and after it."""
    dot = analyse_dot(group)
    if dot is None:
        return None
    if 0 in (dot.batch, dot.m, dot.n, dot.k):
        return None
    flat = as_reduction(dot)
    if flat is not None:
        return rowwise(flat, target)
    work = dot.batch * dot.m * dot.n * dot.k
    if isinstance(work, int) and work <= TINY:
        return None
    if len(dot.post_dims[2]) > 1:  # what follows does not see the columns as one axis
        return split_at(group, dot.op, target)
    return _Matmul(dot, target).kernels()


def choose(dot: Dot, target: Any) -> MatmulSchedule:
    """The schedule for a dot, from the registers and caches of the target and from sizes that are known."""
    lanes = target.lanes(dot.dtype.bits)
    wide = target.vector_registers >= 32
    vectors = 2 if not isinstance(dot.n, int) or dot.n > lanes else 1
    rows = (12 if wide else 6) if vectors == 2 else (14 if wide else 8)
    if isinstance(dot.m, int):
        rows = _rows(dot.m, 14 if wide else rows)
    depth = 0 if isinstance(dot.k, int) and dot.k <= ONE_BLOCK else 256
    in_place = not dot.lhs.computed and dot.lhs.contiguous() == CONTRACT and dot.lhs.value.type.dtype == dot.dtype
    narrow = isinstance(dot.n, int) and dot.n <= 4 * lanes * vectors
    short = isinstance(dot.k, int) and dot.k < 512
    pack_lhs = not (in_place and (narrow or short))
    cols, row_tiles = lanes * vectors, max(1, 96 // rows)
    return MatmulSchedule(rows, cols, lanes, depth, row_tiles, _panels(dot, rows * row_tiles, cols), pack_lhs)


def _rows(m: int, most: int) -> int:
    """The height of the register tile: the fewest tiles and rows beyond the end, where a tile costs what two more rows do
    (it reads a line of the other operand, and fills the pipeline once)."""
    return min(range(min(most, m), 0, -1), key=lambda r: -(-m // r) * (r + 2))


def _panels(dot: Dot, rows: int, cols: int) -> int:
    """How many panels of columns a task takes: enough to be worth a thread, few enough that there are tasks for all."""
    k = dot.k if isinstance(dot.k, int) else 256
    total = dot.batch * dot.m * dot.n * dot.k
    wanted = max(SMALL_TASK, min(TASK, total // TASKS)) if isinstance(total, int) else 4 * SMALL_TASK
    one = (min(rows, dot.m) if isinstance(dot.m, int) else rows) * cols * k
    return max(1, min(32, wanted // max(1, one)))


class _Matmul:
    """The kernels of one dot: packing, then the tiles."""

    def __init__(self, dot: Dot, target: Any) -> None:
        self.dot, self.schedule = dot, choose(dot, target)
        self.fma = dot.dtype.is_float and target.has("fma")
        s = self.schedule
        self.row_panels, self.col_panels = ceildiv(dot.m, s.rows), ceildiv(dot.n, s.cols)
        self.blocks: Dim = maximum(1, ceildiv(dot.k, s.depth)) if s.depth else 1
        self.inputs, self.outputs = types_of(dot)
        self.b_type = MemType(dot.dtype, (dot.batch * self.col_panels, dot.k, s.cols))
        self.a_type = MemType(dot.dtype, (dot.batch * self.row_panels, dot.k, s.rows))
        self.c_type = MemType(dot.dtype, (dot.batch * self.row_panels * self.col_panels, s.rows, s.cols))

    def kernels(self) -> Kernels:
        s, n_in, n_out = self.schedule, len(self.inputs), len(self.outputs)
        scratch = [self.b_type]
        steps = [self.pack("rhs", self.b_type, s.cols, ("scratch", 0))]
        packed: list[Ref] = [("scratch", 0)]
        if s.pack_lhs:
            packed.append(("scratch", len(scratch)))
            steps.append(self.pack("lhs", self.a_type, s.rows, ("scratch", len(scratch))))
            scratch.append(self.a_type)
        partial: list[Ref] = []
        if self.blocks != 1:
            partial = [("scratch", len(scratch))]
            scratch.append(self.c_type)
        used = self.main_inputs()
        ins = [self.inputs[i] for i in used]
        types = [*ins, *[scratch[k] for _, k in packed]]
        names = [*[self.dot.group.args[i].name for i in used], "packed_rhs", "packed_lhs"][: len(types)]
        main = kernel(
            self.dot.group.name,
            types,
            [*[scratch[k] for _, k in partial], *self.outputs],
            self.body,
            names=names,
            schedule=s,
            loc=self.dot.group.loc,
            given=[*types, *[scratch[k] for _, k in partial], *[memory(v.type) for v in self.dot.group.outs]],
        )
        refs: list[Ref] = [*[("input", i) for i in used], *packed, *partial, *[("output", j) for j in range(n_out)]]
        assert len(refs) == len(main.args) and n_in >= len(used)
        first = len(refs) - n_out
        pairs = [(first + j, used.index(i)) for j, i in self.inplace() if i in used]
        steps.append(Step(main, tuple(refs), len(partial) + n_out, tuple(pairs)))
        return Kernels(tuple(steps), tuple(scratch))

    def main_inputs(self) -> list[int]:
        """Arguments that the main kernel reads: what `post` needs, and the left operand unless it is packed."""
        read = {v for op in self.dot.post.ops for v in op.operands} | set(self.dot.post.outs)
        used = [i for i, a in enumerate(self.dot.post.args[:-1]) if a in read]
        if not self.schedule.pack_lhs:
            used += prologue_reads(self.dot, self.dot.lhs)
        return sorted(set(used))

    def inplace(self) -> list[tuple[int, int]]:
        """Pairs (result, argument) that may be one memory: what follows the dot reads the argument at the element it writes
        (once all products are added up), and neither operand comes from it."""
        dot = self.dot
        operands = {*prologue_reads(dot, dot.lhs), *prologue_reads(dot, dot.rhs)}
        pairs = inplace_pairs(dot.post, dot.post.outs, dot.post_shape())
        return [(j, i) for j, i in pairs if i < len(self.inputs) and i not in operands]

    # ---- packing
    def pack(self, which: str, t: MemType, width: int, target: Ref) -> Step:
        """A kernel that copies an operand into panels [panel, k, width], zeros beyond its free size."""
        dot, lanes = self.dot, self.schedule.lanes
        side = dot.lhs if which == "lhs" else dot.rhs
        size = dot.m if which == "lhs" else dot.n
        panels = self.row_panels if which == "lhs" else self.col_panels
        used = prologue_reads(dot, side)

        def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            reads, _ = views(b, dot, dict(zip(used, ins)))
            code = OperandCode(side, reads, dot.dtype)
            (packed,) = outs

            def panel(ib: Builder, at: tuple[Value, ...]) -> None:
                t, p = at
                row = ib.add(ib.mul(t, ib.index(panels)), p) if dot.batch != 1 else p
                first = ib.mul(p, ib.index(width))
                inside = ib.le(ib.add(first, ib.index(width)), ib.index(size))

                def whole(jb: Builder) -> None:
                    run = side.contiguous()
                    if run == FREE:

                        def line(kb: Builder, k: Value) -> None:
                            for c, n in pieces(width, lanes):
                                x = code.vector(kb, t, kb.add(first, kb.index(c)), k, n) if n > 1 else None
                                x = code.at(kb, t, kb.add(first, kb.index(c)), k) if x is None else x
                                kb.store(packed, x, row, k, kb.index(c))

                        for_(jb, 0, dot.k, line, name="k")
                        return

                    def single(kb: Builder, k: Value) -> None:
                        for c in range(width):
                            kb.store(packed, code.at(kb, t, kb.add(first, kb.index(c)), k), row, k, kb.index(c))

                    if run != CONTRACT or lanes < 2 or (isinstance(dot.k, int) and dot.k < lanes):
                        for_(jb, 0, dot.k, single, name="k")
                        return

                    def square(kb: Builder, k: Value) -> None:
                        for c0 in range(0, width, lanes):
                            n = min(lanes, width - c0)
                            xs = [code.vector(kb, t, kb.add(first, kb.index(c0 + i)), k, lanes) for i in range(n)]
                            for j, x in enumerate(transposed(kb, xs + [xs[-1]] * (lanes - n))):
                                at = kb.add(k, kb.index(j))
                                for c, w in pieces(n, lanes):
                                    part = x if w == lanes else lanes_of(kb, x, c, w)
                                    kb.store(packed, part, row, at, kb.index(c0 + c))

                    end = jb.index(dot.k)
                    end = jb.sub(end, jb.fmod(end, jb.index(lanes)))
                    for_(jb, 0, end, square, step=lanes, name="k", vectorize=False)
                    for_(jb, end, dot.k, single, name="k")

                def edge(jb: Builder) -> None:
                    there = jb.sub(jb.index(size), first)

                    def line(kb: Builder, k: Value) -> None:
                        for_(
                            kb,
                            0,
                            there,
                            lambda lb, c: lb.store(packed, code.at(lb, t, lb.add(first, c), k), row, k, c),
                            vectorize=False,
                        )
                        zero = kb.const(0, dtype=dot.dtype)
                        for_(kb, there, width, lambda lb, c: lb.store(packed, zero, row, k, c), vectorize=False)

                    for_(jb, 0, dot.k, line, name="k")

                if isinstance(size, int) and size % width == 0:
                    whole(ib)
                elif isinstance(size, int) and size < width:
                    edge(ib)
                else:
                    if_(ib, inside, whole, edge)

            self.tasks(b, (dot.batch, panels), panel, dot.batch * panels * dot.k * width, dot.k * width)

        ins = [self.inputs[i] for i in used]
        name = f"{dot.group.name}_pack_{which}"
        made = kernel(
            name,
            ins,
            [t],
            body,
            names=[dot.group.args[i].name for i in used],
            schedule=self.schedule,
            loc=dot.group.loc,
        )
        fold = None if side.computed else functools.partial(pack_array, side, width, dot.dtype.numpy)
        return Step(made, (*[("input", i) for i in used], target), fold=fold)

    @staticmethod
    def tasks(b: Builder, shape: Sequence[Dim], body: Any, total: Dim, work: Dim) -> None:
        if is_small(total, 32768):
            nest(b, shape, body)
        else:
            parallel(b, product(shape), lambda ib, t: body(ib, unravel(ib, t, shape)), grain=grain_of(work))

    # ---- the tiles
    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        dot, s = self.dot, self.schedule
        used = self.main_inputs()
        reads, after = views(b, dot, dict(zip(used, ins)))
        packed = list(ins[len(used) :])
        partial = outs[0] if self.blocks != 1 else None
        results = outs[1:] if partial is not None else outs
        post = PostCode(dot.post, after, results)
        lhs = OperandCode(dot.lhs, reads, dot.dtype)
        tile = _Tile(self, packed[0], packed[1] if s.pack_lhs else None, lhs, partial, post)
        row_blocks, col_blocks = ceildiv(self.row_panels, s.row_tiles), ceildiv(self.col_panels, s.panels)

        def task(ib: Builder, at: tuple[Value, ...]) -> None:
            t, i, j = at
            i0, j0 = ib.mul(i, ib.index(s.row_tiles)), ib.mul(j, ib.index(s.panels))
            i1 = ib.minimum(ib.add(i0, ib.index(s.row_tiles)), ib.index(self.row_panels))
            j1 = ib.minimum(ib.add(j0, ib.index(s.panels)), ib.index(self.col_panels))

            def block(jb: Builder, kb: Value | None) -> None:
                for_(
                    jb,
                    j0,
                    j1,
                    lambda pb, p: for_(pb, i0, i1, lambda qb, q: tile.emit(qb, t, q, p, kb), name="row_tile"),
                    name="panel",
                )

            if self.blocks == 1:
                block(ib, None)
            else:
                for_(ib, 0, self.blocks, block, name="block")

        work = s.row_tiles * s.rows * s.panels * s.cols * (dot.k if isinstance(dot.k, int) else 64) // s.lanes
        total = dot.batch * dot.m * dot.n * dot.k
        shape = (dot.batch, row_blocks, col_blocks)
        if is_small(total, 32768):
            nest(b, shape, task)
        else:
            parallel(
                b, product(shape), lambda ib, x: task(ib, unravel(ib, x, shape)), grain=max(1, 65536 // max(1, work))
            )


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


def transposed(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """A square of vectors with rows and lanes exchanged: 1 by 1 blocks, then 2 by 2, ... change places across the diagonal."""
    n, rows = len(rows), list(rows)
    d = 1
    while d < n:
        low = tuple(i if not i & d else n + i - d for i in range(n))
        high = tuple(i + d if not i & d else n + i for i in range(n))
        for i in range(n):
            if not i & d:
                x, y = rows[i], rows[i + d]
                rows[i] = b.emit("shuffle", x, y, mask=low)[0]
                rows[i + d] = b.emit("shuffle", x, y, mask=high)[0]
        d *= 2
    return rows


def pack_array(side: Operand, width: int, dtype: Any, a: Array) -> Array:
    """What the packing kernel does, for a constant: panels [batch and panel, k, width], zeros beyond the free size."""
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


class _Tile:
    """One register tile over one block of the contracted index."""

    def __init__(
        self, owner: _Matmul, rhs: Value, packed: Value | None, lhs: OperandCode, partial: Value | None, post: PostCode
    ) -> None:
        self.owner, self.rhs, self.packed, self.lhs, self.partial, self.post = owner, rhs, packed, lhs, partial, post
        s = owner.schedule
        self.rows, self.lanes, self.vectors = s.rows, s.lanes, s.cols // s.lanes

    def emit(self, b: Builder, t: Value, q: Value, p: Value, block: Value | None) -> None:
        """Tile (row panel q, column panel p) of batch t; `block` is the block of the contracted index, None for all."""
        dot, s = self.owner.dot, self.owner.schedule
        m0, n0 = b.mul(q, b.index(s.rows)), b.mul(p, b.index(s.cols))
        panel = self.flat(b, t, self.owner.col_panels, p)
        zeros = [b.emit("splat", b.const(0, dtype=dot.dtype), lanes=self.lanes)[0]] * (self.rows * self.vectors)
        if block is None:
            acc = self.multiply(b, t, q, panel, m0, b.index(0), b.index(dot.k), zeros)
            self.finish(b, t, m0, n0, acc)
            return
        lo = b.mul(block, b.index(s.depth))
        hi = b.minimum(b.add(lo, b.index(s.depth)), b.index(dot.k))
        where = b.add(b.mul(self.flat(b, t, self.owner.row_panels, q), b.index(self.owner.col_panels)), p)
        partial = self.partial
        assert partial is not None

        def before(ib: Builder) -> list[Value]:
            return [
                ib.emit("load", partial, where, ib.index(r), ib.index(v * self.lanes), lanes=self.lanes)[0]
                for r in range(self.rows)
                for v in range(self.vectors)
            ]

        start = if_(b, b.eq(block, b.index(0)), lambda ib: zeros, before)
        acc = self.multiply(b, t, q, panel, m0, lo, hi, start)

        def keep(ib: Builder) -> None:
            for r in range(self.rows):
                for v in range(self.vectors):
                    ib.store(partial, acc[r * self.vectors + v], where, ib.index(r), ib.index(v * self.lanes))

        last = b.eq(block, b.sub(b.index(self.owner.blocks), b.index(1)))
        if_(b, last, lambda ib: self.finish(ib, t, m0, n0, acc), keep)

    @staticmethod
    def flat(b: Builder, t: Value, count: Dim, i: Value) -> Value:
        return b.add(b.mul(t, b.index(count)), i)  # type: ignore[no-any-return]

    def multiply(
        self, b: Builder, t: Value, q: Value, panel: Value, m0: Value, lo: Value, hi: Value, start: Sequence[Value]
    ) -> list[Value]:
        """The inner loop: the accumulators after k in lo..hi."""
        dot = self.owner.dot
        packed = self.packed
        if packed is not None:
            own = self.flat(b, t, self.owner.row_panels, q)
        else:
            top = b.sub(b.index(dot.m), b.index(1))
            # Rows beyond the end read the last row again; their results are not stored.
            at = [b.minimum(b.add(m0, b.index(r)), top) for r in range(self.rows)]

        def step(ib: Builder, k: Value, *acc: Value) -> list[Value]:
            bs = [
                ib.emit("load", self.rhs, panel, k, ib.index(v * self.lanes), lanes=self.lanes)[0]
                for v in range(self.vectors)
            ]
            out = []
            for r in range(self.rows):
                a = (
                    ib.emit("load", packed, own, k, ib.index(r))[0]
                    if packed is not None
                    else self.lhs.at(ib, t, at[r], k)
                )
                a = ib.emit("splat", a, lanes=self.lanes)[0]
                for v in range(self.vectors):
                    c = acc[r * self.vectors + v]
                    out.append(ib.fma(a, bs[v], c) if self.owner.fma else ib.add(ib.mul(a, bs[v]), c))
            return out

        return list(for_(b, lo, hi, step, start, name="k", vectorize=False))

    def put(self, b: Builder, acc: Value, t: Value, m: Value, n: Value, lanes: int = 1) -> None:
        self.post.store(b, acc, self.owner.dot.post_index(b, t, m, n), n, lanes)

    def finish(self, b: Builder, t: Value, m0: Value, n0: Value, acc: Sequence[Value]) -> None:
        """Store the results of a tile; at the edges, only what exists."""
        dot, s = self.owner.dot, self.owner.schedule
        m_fits = isinstance(dot.m, int) and dot.m % s.rows == 0
        n_fits = isinstance(dot.n, int) and dot.n % s.cols == 0

        def whole(ib: Builder) -> None:
            for r in range(self.rows):
                for v in range(self.vectors):
                    self.put(
                        ib,
                        acc[r * self.vectors + v],
                        t,
                        ib.add(m0, ib.index(r)),
                        ib.add(n0, ib.index(v * self.lanes)),
                        self.lanes,
                    )

        def edge(ib: Builder) -> None:
            local = ib.alloc(type=MemType(dot.dtype, (s.rows, s.cols), "local"))
            for r in range(self.rows):
                for v in range(self.vectors):
                    ib.store(local, acc[r * self.vectors + v], ib.index(r), ib.index(v * self.lanes))
            rows = ib.minimum(ib.index(s.rows), ib.sub(ib.index(dot.m), m0))
            cols = ib.minimum(ib.index(s.cols), ib.sub(ib.index(dot.n), n0))
            vectors = ib.sub(cols, ib.fmod(cols, ib.index(self.lanes)))

            def row(jb: Builder, r: Value) -> None:
                m = jb.add(m0, r)

                def vector(kb: Builder, c: Value) -> None:
                    x = kb.emit("load", local, r, c, lanes=self.lanes)[0]
                    self.put(kb, x, t, m, kb.add(n0, c), self.lanes)

                def single(kb: Builder, c: Value) -> None:
                    self.put(kb, kb.emit("load", local, r, c)[0], t, m, kb.add(n0, c))

                for_(jb, 0, vectors, vector, step=self.lanes, vectorize=False)
                for_(jb, vectors, cols, single, vectorize=False)

            for_(ib, 0, rows, row, vectorize=False)

        if m_fits and n_fits:
            whole(b)
        elif isinstance(dot.n, int) and dot.n < s.cols:
            edge(b)
        else:
            fits = b.logical_and(
                b.le(b.add(m0, b.index(s.rows)), b.index(dot.m)), b.le(b.add(n0, b.index(s.cols)), b.index(dot.n))
            )
            if_(b, fits, whole, edge)


__all__ = ["MatmulSchedule", "choose", "matmul"]
