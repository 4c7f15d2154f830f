"""The attention template for CPUs: scores, weights and weighted sums of a tile at a time, nothing of the size of the scores.

A task takes some panels of as many queries as two vectors have lanes. Queries lie across lanes: they are turned once into
panels [d, rows], and so scores [columns, rows] and results [e, rows] are products whose left operands, rows of k and v, are
read where they lie, one element for all lanes. Blocks of columns are outermost, so that their keys and values stay in the
caches for all panels. A panel keeps the largest score, the sum of weights and the weighted sum of each row; when a block has
a larger score than those before, the sums are scaled down (online softmax; Rabe & Staats 2021, Dao et al. 2022). Maxima and
sums of rows need nothing across lanes. The order of additions depends on shapes and target alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.types import MemType, TensorType
from fluxir.ops.approx.exponential import exp2_of_negative
from fluxir.ops.views import View, row_major
from fluxir.schedule.attention import (
    LOG2E,
    NEVER,
    Attention,
    Flat,
    finite_base,
    greater,
    multiply_add,
    number,
    read,
    splat,
    unrolled,
)
from fluxir.schedule.attention_mask import MaskCode, Masks, read_masks
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_, grain_of, if_, kernel, memory, parallel, unravel
from fluxir.schedule.matmul_pack import transposed
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

TASK_ROWS = 64  # queries of a task
BLOCK = 48  # columns of a block
VECTORS = 2  # vectors of queries in a panel
TOGETHER = 2  # columns whose weights are computed side by side


@dataclass(frozen=True)
class AttentionSchedule(Schedule):
    """`lanes` x `vectors`: queries of a panel, of which a task has `panels`. `columns`: keys of a block; `keys`: of a tile of
    scores; `bounds`: conditions that are ranges of columns; `masks`: other masks."""

    lanes: int
    vectors: int
    panels: int
    columns: int
    keys: int
    bounds: int
    masks: int

    @property
    def rows(self) -> int:
        return self.lanes * self.vectors


def choose(a: Attention, masks: Masks, target: Any) -> AttentionSchedule:
    lanes = target.lanes(a.dtype.bits)
    keys = 12 if target.vector_registers >= 32 else 6
    rows = lanes * VECTORS
    panels = max(1, TASK_ROWS // rows)
    if isinstance(a.s, int):
        panels = max(1, min(panels, -(-a.s // rows)))
    columns = BLOCK
    if isinstance(a.t, int):
        columns = min(columns, -(-a.t // keys) * keys)
    return AttentionSchedule(lanes, VECTORS, panels, columns, keys, len(masks.bounds), len(masks.general))


@template("attention", target="cpu", anchors=("attention",), priority=30)
def attention(group: Group, target: Any) -> Kernels | None:
    """softmax(q k^T + masks) v, fused."""
    a = read(group, "attention")
    return None if a is None else _Forward(widened(a, target), target).kernels()


@dataclass(frozen=True, eq=False)
class Widened:
    """An attention whose keys and values are read in the type computed in: of 16 bits they are widened once, into scratch
    memories, for they are read an element at a time and by every panel. `values` stand for these memories."""

    a: Attention
    values: tuple[Value, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def scratch(self) -> list[MemType]:
        return [memory(v.type) for v in self.values]

    def inputs(self) -> tuple[list[Value], list[Ref]]:
        """What a kernel reads, and where that lies."""
        args = [*self.a.group.args, *self.values]
        n = len(self.a.group.args)
        return args, [("input", i) if i < n else ("scratch", i - n) for i in range(len(args))]


def widened(a: Attention, target: Any) -> Widened:
    if a.op.operands[0].type.dtype == a.dtype:
        return Widened(a)
    g, lanes = a.group, target.lanes(a.dtype.bits)
    views = (a.k, a.v)
    values = [
        Value(TensorType(a.dtype, v.shape), None, len(g.args) + i, name) for i, (v, name) in enumerate(zip(views, "kv"))
    ]
    steps = []
    for i, (view, value) in enumerate(zip(views, values, strict=True)):

        def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value], view: View = view) -> None:
            source = Flat(b, view, dict(zip(g.args, ins, strict=True)), a.dtype)
            (out,) = outs
            width = int(view.shape[-1])
            whole = width - width % lanes if source.contiguous else 0

            def row(ib: Builder, r: Value) -> None:
                at = unravel(ib, r, view.shape[:-1])
                start = source.row(ib, source.base(ib, at[:-1]), at[-1])

                def put(jb: Builder, c: Value, n: int) -> None:
                    jb.store(out, source.load(jb, source.column(jb, start, c), n), *at, c)

                for_(ib, 0, whole, lambda jb, c: put(jb, c, lanes), step=lanes, name="d", vectorize=False)
                for_(ib, whole, width, lambda jb, c: put(jb, c, 0), name="d", vectorize=False)

            parallel(b, product(view.shape[:-1]), row, grain=grain_of(width))

        ins, names = [memory(v.type) for v in g.args], [v.name for v in g.args]
        made = kernel(f"{g.name}_widen_{value.name}", ins, [memory(value.type)], body, names=names, loc=g.loc)
        refs: list[Ref] = [*[("input", j) for j in range(len(g.args))], ("scratch", i)]
        steps.append(Step(made, tuple(refs)))
    k, v = (View(x, x.type.shape, 0, row_major(x.type.shape)) for x in values)
    return Widened(replace(a, k=k, v=v), tuple(values), tuple(steps))


class Panels:
    """What the forward and the backward kernel share: panels of rows, turned and turned back, and tiles of products."""

    def __init__(self, given: Widened, target: Any) -> None:
        self.given, self.a = given, given.a
        a, self.masks = given.a, read_masks(given.a)
        self.schedule = choose(a, self.masks, target)
        self.fma = target.has("fma")
        self.lanes, self.vectors = self.schedule.lanes, self.schedule.vectors

    def zeros(self, b: Builder, count: int) -> list[Value]:
        return [number(b, 0.0, self.a.dtype, self.lanes)] * count

    def local(self, b: Builder, *shape: int) -> Value:
        return b.alloc(type=MemType(self.a.dtype, shape, "local"))  # type: ignore[no-any-return]

    def vector(self, b: Builder, mem: Value, *at: Value | int) -> Value:
        """A vector of a local memory."""
        return b.emit("load", mem, *[b.index(i) if isinstance(i, int) else i for i in at], lanes=self.lanes)[0]

    def put(self, b: Builder, mem: Value, x: Value, *at: Value | int) -> None:
        b.store(mem, x, *[b.index(i) if isinstance(i, int) else i for i in at])

    def turn(
        self, b: Builder, source: Flat, base: Value, first: Value, count: Dim, width: int, scale: float, put: Any
    ) -> None:
        """Read `rows` rows of a matrix from row `first` on (the last one again beyond the end) and give them turned:
        put(builder, column, vector number, vector of rows)."""
        last = b.sub(b.index(count), b.index(1))
        n = self.lanes
        for v in range(self.vectors):
            at = [source.row(b, base, b.minimum(b.add(first, b.index(v * n + r)), last)) for r in range(n)]
            factor = number(b, scale, self.a.dtype, n)

            def square(ib: Builder, c: Value, v: int = v, at: Any = at, factor: Value = factor) -> None:
                lines = [source.load(ib, source.column(ib, x, c), n) for x in at]
                for i, x in enumerate(transposed(ib, lines)):
                    put(ib, ib.add(c, ib.index(i)), v, ib.mul(x, factor) if scale != 1 else x)

            def single(ib: Builder, c: Value, v: int = v, at: Any = at, factor: Value = factor) -> None:
                x = splat(ib, source.load(ib, source.column(ib, at[0], c)), n)
                for r in range(1, n):
                    x = ib.emit("insert", x, source.load(ib, source.column(ib, at[r], c)), lane=r)[0]
                put(ib, c, v, ib.mul(x, factor) if scale != 1 else x)

            whole = width - width % n if source.contiguous and n > 1 else 0
            for_(b, 0, whole, square, step=n, name="d", vectorize=False)
            for_(b, whole, width, single, name="d", vectorize=False)

    def turn_back(
        self, b: Builder, result: Flat, base: Value, row: Value, end: Value, width: int, vector: Callable[..., Value]
    ) -> None:
        """Store a panel turned back into rows, from `row` on and below `end`; vector(builder, column, vector number) gives it."""
        rows = self.schedule.rows
        whole = width - width % self.lanes if result.contiguous and self.lanes > 1 else 0

        def lines(ib: Builder, complete: bool) -> None:
            def put(jb: Builder, r: int, x: Value, c: Value) -> None:
                def store(kb: Builder) -> None:
                    result.store(kb, x, result.column(kb, result.row(kb, base, kb.add(row, kb.index(r))), c))

                if complete:
                    store(jb)
                else:
                    if_(jb, jb.lt(jb.add(row, jb.index(r)), end), store)

            def square(jb: Builder, c: Value) -> None:
                for v in range(self.vectors):
                    turned = transposed(jb, [vector(jb, jb.add(c, jb.index(i)), v) for i in range(self.lanes)])
                    for i, x in enumerate(turned):
                        put(jb, v * self.lanes + i, x, c)

            def single(jb: Builder, c: Value) -> None:
                for v in range(self.vectors):
                    x = vector(jb, c, v)
                    for i in range(self.lanes):
                        put(jb, v * self.lanes + i, jb.emit("extract", x, lane=i)[0], c)

            for_(ib, 0, whole, square, step=self.lanes, name="d", vectorize=False)
            for_(ib, whole, width, single, name="d", vectorize=False)

        if isinstance(self.a.s, int) and self.a.s % rows == 0:
            lines(b, True)
        else:
            complete = b.le(b.add(row, b.index(rows)), end)
            if_(b, complete, lambda ib: lines(ib, True), lambda ib: lines(ib, False))

    def products(
        self,
        b: Builder,
        left: Flat,
        base: Value,
        first: Value,
        rows: int,
        count: Dim,
        width: int,
        right: Callable[..., Value],
    ) -> list[Value]:
        """The tile sum over c < width of left[first + r, c] * right(builder, c, vector): `rows` rows (the last row again
        beyond `count`) by the vectors of a panel."""
        last = b.sub(b.index(count), b.index(1))
        at = [left.row(b, base, b.minimum(b.add(first, b.index(r)), last)) for r in range(rows)]

        def step(ib: Builder, c: Value, *acc: Value) -> list[Value]:
            across = [right(ib, c, v) for v in range(self.vectors)]
            out = []
            for r in range(rows):
                x = splat(ib, left.load(ib, left.column(ib, at[r], c)), self.lanes)
                out += [multiply_add(ib, self.fma, x, y, acc[r * self.vectors + v]) for v, y in enumerate(across)]
            return out

        return unrolled(b, 0, width, step, self.zeros(b, rows * self.vectors), name="d")

    def tiles(self, width: int) -> list[tuple[int, int, int]]:
        """`width` rows of results as runs of tiles (first, tiles, height), as even as can be and no higher than registers
        allow."""
        most = self.schedule.keys
        count = -(-width // most)
        low, high = divmod(width, count)
        runs = [(0, high, low + 1), (high * (low + 1), count - high, low)]
        return [run for run in runs if run[1]]


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
            acc = o.products(ib, self.k, self.k_base, t, s.keys, self.a.t, self.a.d, right)
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
        some = total
        if not a.op.attrs["undefined"]:
            one, zero = number(b, 1.0, a.dtype, o.lanes), number(b, 0.0, a.dtype, o.lanes)
            some = [b.select(b.eq(x, zero), one, x) for x in total]
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


__all__ = ["AttentionSchedule", "Panels", "Widened", "attention", "choose", "widened"]
