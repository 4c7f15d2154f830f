"""The attention template for CPUs: scores, weights and weighted sums of a tile at a time, nothing of the size of the scores.

A task takes some panels of as many queries as two vectors have lanes. Queries lie across lanes: they are turned once into
panels [d, rows], and so scores [columns, rows] and results [e, rows] are products whose left operands, rows of k and v, are
read where they lie, one element for all lanes. Blocks of columns are outermost, so that their keys and values stay in the
caches for all panels. A panel keeps the largest score, the sum of weights and the weighted sum of each row; when a block has
a larger score than those before, the sums are scaled down (online softmax; Rabe & Staats 2021, Dao et al. 2022). Maxima and
sums of rows need nothing across lanes. The order of additions depends on shapes and target alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import ceildiv, product
from fluxir.ops.approx.exponential import exp2_of_negative
from fluxir.schedule.attention import (
    LOG2E,
    NEVER,
    Flat,
    divisors,
    finite_base,
    greater,
    multiply_add,
    number,
    read,
    splat,
    unrolled,
)
from fluxir.schedule.attention_mask import MaskCode
from fluxir.schedule.attention_panels import Panels, widened
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_, if_, kernel, memory, parallel, unravel
from fluxir.schedule.templates import Kernels, Step, template

TOGETHER = 2  # columns whose weights are computed side by side


@template("attention", target="cpu", anchors=("attention",), priority=30)
def attention(group: Group, target: Any) -> Kernels | None:
    """softmax(q k^T + masks) v, fused."""
    a = read(group, "attention")
    return None if a is None else _Forward(widened(a, target), target).kernels()


class _Forward(Panels):
    """The kernel of one attention."""

    def kernels(self) -> Kernels:
        g = self.a.group
        args, refs = self.given.inputs()
        ins, outs = [memory(v.type) for v in args], [memory(v.type) for v in g.outs]
        made = kernel(g.name, ins, outs, self.body, names=[v.name for v in args], schedule=self.schedule, loc=g.loc)
        step = Step(made, (*refs, *[("output", j) for j in range(len(outs))]), len(outs))
        return Kernels((*self.given.steps, step), tuple(self.given.scratch))

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        a, s = self.a, self.schedule
        reads = dict(zip(self.given.inputs()[0], ins, strict=True))
        blocks = ceildiv(a.s, s.rows * s.panels)
        shape = (*a.batch, blocks)

        def task(ib: Builder, i: Value) -> None:
            *batch, block = unravel(ib, i, shape)
            block = ib.sub(ib.sub(ib.index(blocks), ib.index(1)), block)  # with causal attention the longest come first
            _Task(self, ib, reads, outs, batch).run(ib, ib.mul(block, ib.index(s.rows * s.panels)))

        parallel(b, product(shape), task, grain=self.grain())

    def grain(self) -> int:
        """Tasks that are worth a thread, if sizes are known."""
        t = self.a.t if isinstance(self.a.t, int) else 256
        return max(
            1, (1 << 17) // (self.schedule.rows * self.schedule.panels * t * (self.a.d + self.a.e) // self.lanes + 1)
        )


class _Task:
    """Some panels of one batch index."""

    def __init__(
        self, owner: _Forward, b: Builder, reads: dict[Value, Value], outs: Sequence[Value], batch: Sequence[Value]
    ) -> None:
        self.owner, self.a, self.schedule, self.batch = owner, owner.a, owner.schedule, batch
        a, s = self.a, self.schedule
        self.q, self.k, self.v = (Flat(b, x, reads, a.dtype) for x in (a.q, a.k, a.v))
        self.q_base, self.k_base, self.v_base = (x.base(b, batch) for x in (self.q, self.k, self.v))
        self.results = [None if r is None else Flat(b, r[1], {r[1].source: outs[r[0]]}, a.dtype) for r in a.results]
        self.mask = MaskCode(b, a, owner.masks, reads, batch)
        self.queries = owner.local(b, s.panels, a.d, s.rows)
        self.sums = owner.local(b, s.panels, a.e, s.rows)
        self.top, self.total = owner.local(b, s.panels, s.rows), owner.local(b, s.panels, s.rows)
        self.scores = owner.local(b, s.columns + s.keys, s.rows)
        self.evaluated = self.mask.memories(b, s.columns + s.keys, s.rows)

    def run(self, b: Builder, first: Value) -> None:
        """The rows from `first` on."""
        s, a = self.schedule, self.a
        end = b.minimum(b.add(first, b.index(s.rows * s.panels)), b.index(a.s))
        low, high, _, _ = self.mask.ends(b, first, b.sub(end, b.index(1)))
        panels = b.div(b.add(b.sub(end, first), b.index(s.rows - 1)), b.index(s.rows))

        def start(ib: Builder, p: Value) -> None:
            self.start(ib, p, ib.add(first, ib.mul(p, ib.index(s.rows))))

        def block(ib: Builder, t: Value) -> None:
            def panel(jb: Builder, p: Value) -> None:
                row = jb.add(first, jb.mul(p, jb.index(s.rows)))
                last = jb.sub(jb.minimum(jb.add(row, jb.index(s.rows)), jb.index(a.s)), jb.index(1))
                lo, hi, lo_all, hi_all = self.mask.ends(jb, row, last)
                lo, hi = jb.maximum(lo, t), jb.minimum(hi, jb.add(t, jb.index(s.columns)))
                if_(jb, jb.lt(lo, hi), lambda kb: self.block(kb, p, row, lo, hi, lo_all, hi_all))

            for_(ib, 0, panels, panel, name="panel", vectorize=False)

        def finish(ib: Builder, p: Value) -> None:
            self.finish(ib, p, ib.add(first, ib.mul(p, ib.index(s.rows))), end)

        for_(b, 0, panels, start, name="panel", vectorize=False)
        for_(b, low, high, block, step=s.columns, name="block", vectorize=False)
        for_(b, 0, panels, finish, name="panel", vectorize=False)

    def start(self, b: Builder, p: Value, row: Value) -> None:
        """Queries into a panel, scaled; nothing seen yet."""
        o, a = self.owner, self.a

        def put(ib: Builder, c: Value, v: int, x: Value) -> None:
            o.put(ib, self.queries, x, p, c, v * o.lanes)

        o.turn(b, self.q, self.q_base, row, a.s, a.d, a.scale * LOG2E, put)
        for v in range(o.vectors):
            o.put(b, self.top, number(b, NEVER, a.dtype, o.lanes), p, v * o.lanes)
            o.put(b, self.total, number(b, 0.0, a.dtype, o.lanes), p, v * o.lanes)

        def clear(ib: Builder, c: Value) -> None:
            for v in range(o.vectors):
                o.put(ib, self.sums, number(ib, 0.0, a.dtype, o.lanes), p, c, v * o.lanes)

        for_(b, 0, a.e, clear, name="e", vectorize=False)

    # ---- a block of columns
    def block(self, b: Builder, p: Value, row: Value, lo: Value, hi: Value, lo_all: Value, hi_all: Value) -> None:
        """Columns lo..hi for panel p, whose first row is `row`."""
        o = self.owner
        top = self.score(b, p, lo, hi)
        if self.owner.masks.general:
            for i, mem in enumerate(self.evaluated):
                self.mask.turned(b, mem, i, row, lo, hi, self.schedule.rows, o.lanes)
            top = self.masked(b, row, lo, hi)
        elif self.owner.masks.bounds:
            inside = b.logical_and(b.le(lo_all, lo), b.le(hi, hi_all))
            top = list(if_(b, inside, lambda ib: top, lambda ib: self.masked(ib, row, lo, hi)))
        before = [o.vector(b, self.top, p, v * o.lanes) for v in range(o.vectors)]
        top = [greater(b, x, y) for x, y in zip(top, before)]
        base = [finite_base(b, x) for x in top]
        shrink = exp2_of_negative(b, *[b.sub(x, y) for x, y in zip(before, base)])
        total = self.weigh(b, base, b.sub(hi, lo))
        for v, x in enumerate(top):
            o.put(b, self.top, x, p, v * o.lanes)
            kept = o.vector(b, self.total, p, v * o.lanes)
            o.put(b, self.total, multiply_add(b, o.fma, kept, shrink[v], total[v]), p, v * o.lanes)
        self.add(b, p, lo, hi, shrink)

    def score(self, b: Builder, p: Value, lo: Value, hi: Value) -> list[Value]:
        """Scores of columns lo..hi into `scores` (and of some beyond, which are the last again); the largest of each row."""
        o, s = self.owner, self.schedule

        def right(ib: Builder, c: Value, v: int) -> Value:
            return o.vector(ib, self.queries, p, c, v * o.lanes)

        def tile(ib: Builder, t: Value, *top: Value) -> list[Value]:
            acc = o.products(ib, self.k, self.k_base, t, s.keys, hi, self.a.d, right)
            best = list(top)
            for r in range(s.keys):
                at = ib.add(ib.sub(t, lo), ib.index(r))
                for v in range(o.vectors):
                    x = acc[r * o.vectors + v]
                    o.put(ib, self.scores, x, at, v * o.lanes)
                    best[v] = greater(ib, x, best[v])
            return best

        start = [number(b, NEVER, self.a.dtype, o.lanes)] * o.vectors
        return list(for_(b, lo, hi, tile, start, step=s.keys, name="t", vectorize=False))

    def masked(self, b: Builder, row: Value, lo: Value, hi: Value) -> list[Value]:
        """Apply all masks to the scores of a block; the largest of each row."""
        o = self.owner
        bounds = [self.mask.bound_lanes(b, b.add(row, b.index(v * o.lanes)), o.lanes) for v in range(o.vectors)]

        def column(ib: Builder, t: Value, *top: Value) -> list[Value]:
            at, best = ib.sub(t, lo), []
            for v in range(o.vectors):
                x = o.vector(ib, self.scores, at, v * o.lanes)
                given = [o.vector(ib, m, at, v * o.lanes) for m in self.evaluated]
                x = self.mask.masked(ib, x, given, self.mask.seen(ib, bounds[v], t, o.lanes), o.lanes)
                o.put(ib, self.scores, x, at, v * o.lanes)
                best.append(greater(ib, x, top[v]))
            return best

        start = [number(b, NEVER, self.a.dtype, o.lanes)] * o.vectors
        return list(for_(b, lo, hi, column, start, name="t", vectorize=False))

    def weigh(self, b: Builder, base: Sequence[Value], count: Value) -> list[Value]:
        """The scores of a block as weights 2**(score - base); the sum of each row."""
        o = self.owner

        def columns(ib: Builder, t: Value, total: Sequence[Value], many: int) -> list[Value]:
            at = [(ib.add(t, ib.index(i)), v) for i in range(many) for v in range(o.vectors)]
            xs = [ib.sub(o.vector(ib, self.scores, c, v * o.lanes), base[v]) for c, v in at]
            out = list(total)
            for (c, v), w in zip(at, exp2_of_negative(ib, *xs), strict=True):
                o.put(ib, self.scores, w, c, v * o.lanes)
                out[v] = ib.add(out[v], w)
            return out

        whole = b.sub(count, b.fmod(count, b.index(TOGETHER)))
        some = for_(
            b,
            0,
            whole,
            lambda ib, t, *c: columns(ib, t, c, TOGETHER),
            o.zeros(b, o.vectors),
            step=TOGETHER,
            vectorize=False,
        )
        return list(for_(b, whole, count, lambda ib, t, *c: columns(ib, t, c, 1), some, vectorize=False))

    def add(self, b: Builder, p: Value, lo: Value, hi: Value, shrink: Sequence[Value]) -> None:
        """sums * shrink + the values of columns lo..hi by their weights."""
        o = self.owner

        def tile(ib: Builder, e: Value, height: int) -> None:
            start = [
                ib.mul(o.vector(ib, self.sums, p, ib.add(e, ib.index(r)), v * o.lanes), shrink[v])
                for r in range(height)
                for v in range(o.vectors)
            ]

            def column(jb: Builder, t: Value, *acc: Value) -> list[Value]:
                weights = [o.vector(jb, self.scores, jb.sub(t, lo), v * o.lanes) for v in range(o.vectors)]
                at = self.v.column(jb, self.v.row(jb, self.v_base, t), e)
                out = []
                for r in range(height):
                    x = splat(jb, self.v.load(jb, self.v.column(jb, at, r)), o.lanes)
                    out += [multiply_add(jb, o.fma, x, w, acc[r * o.vectors + v]) for v, w in enumerate(weights)]
                return out

            acc = unrolled(ib, lo, hi, column, start, name="t")
            for r in range(height):
                for v in range(o.vectors):
                    o.put(ib, self.sums, acc[r * o.vectors + v], p, ib.add(e, ib.index(r)), v * o.lanes)

        for first, count, height in o.tiles(self.a.e):
            for_(
                b,
                first,
                first + count * height,
                lambda ib, e, h=height: tile(ib, e, h),
                step=height,
                name="e",
                vectorize=False,
            )

    # ---- results
    def finish(self, b: Builder, p: Value, row: Value, end: Value) -> None:
        """Weighted sums over sums of weights, turned back into rows; rows from `end` on do not exist."""
        o, a = self.owner, self.a
        total = [o.vector(b, self.total, p, v * o.lanes) for v in range(o.vectors)]
        some = divisors(b, a, total, o.lanes)
        if self.results[1] is not None:
            self.logarithms(b, self.results[1], p, row, end, some)
        result = self.results[0]
        if result is None:
            return
        base = result.base(b, self.batch)
        inverse = [b.div(number(b, 1.0, a.dtype, o.lanes), x) for x in some]

        def sums(ib: Builder, e: Value, v: int) -> Value:
            return ib.mul(o.vector(ib, self.sums, p, e, v * o.lanes), inverse[v])  # type: ignore[no-any-return]

        o.turn_back(b, result, base, row, end, a.e, sums)

    def logarithms(self, b: Builder, result: Flat, p: Value, row: Value, end: Value, some: Sequence[Value]) -> None:
        """The natural logarithms of the rows' sums."""
        o, a = self.owner, self.a
        base = result.base(b, self.batch)
        for v, x in enumerate(some):
            top = finite_base(b, o.vector(b, self.top, p, v * o.lanes))
            lse = b.mul(b.add(b.log2(x), top), number(b, 1 / LOG2E, a.dtype, o.lanes))
            for i in range(o.lanes):
                at = b.add(row, b.index(v * o.lanes + i))
                lane = b.emit("extract", lse, lane=i)[0]

                def store(ib: Builder, at: Value = at, lane: Value = lane) -> None:
                    result.store(ib, lane, result.column(ib, base, at))

                if_(b, b.lt(at, end), store)


__all__ = ["attention"]
