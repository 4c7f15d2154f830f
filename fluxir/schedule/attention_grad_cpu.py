"""The gradient of attention on CPUs: five products a tile, weights computed again, nothing of the size of the scores.

A task has keys and values of one batch index and all queries that share them. It goes through blocks of columns, whose
dk and dv are summed up on its stack, and for each through the rows that see it, some panels at once. Scores, weights p and
their cotangents ds = p (ct v^T - delta) are made turned, [columns, rows], as in the forward kernel; dv = p^T ct and
dk = ds^T q have the columns as rows of their tiles, and dq = ds k is summed up turned in scratch memory, one panel after the
other. (Dao et al. 2022.) Where batch indices are few, the columns are cut into segments, a task each with sums of its own; a
second kernel adds the segments and turns dq back. The order of every sum depends on shapes and target alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.types import MemType
from fluxir.ops.approx.exponential import exp2_of_negative
from fluxir.schedule.attention import LOG2E, Flat, multiply_add, number, read, splat, unrolled
from fluxir.schedule.attention_mask import MaskCode
from fluxir.schedule.attention_panels import AttentionSchedule, Panels, Widened, widened
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_, if_, kernel, memory, nest, parallel, unravel
from fluxir.schedule.templates import Kernels, Ref, Step, template

BLOCK = 96  # columns of a block
TASKS = 8  # tasks that keep all threads busy
PANELS = 2  # panels of queries that are looked at together: the length of the sums that make dk and dv


@dataclass(frozen=True)
class AttentionGradSchedule(AttentionSchedule):
    """As the forward one; `panels` are looked at together, and the columns are cut into `segments`."""

    segments: int = 1


@template("attention_grad", target="cpu", anchors=("attention_grad",), priority=30)
def attention_grad(group: Group, target: Any) -> Kernels | None:
    """The cotangents of q, k and v of an attention, fused."""
    a = read(group, "attention_grad")
    if a is None or a.k.shape[:-2] != a.v.shape[:-2]:
        return None
    return _Backward(widened(a, target), target).kernels()


class _Backward(Panels):
    """The kernel of one gradient. `own`: batch axes along which keys differ; `shared`: those along which they are the same."""

    def __init__(self, given: Widened, target: Any) -> None:
        super().__init__(given, target)
        a, s = self.a, self.schedule
        panels = min(PANELS, -(-a.s // s.rows)) if isinstance(a.s, int) else PANELS
        columns = BLOCK if not isinstance(a.t, int) else min(BLOCK, -(-a.t // s.keys) * s.keys)
        axes = range(len(a.batch))
        self.shared = [i for i in axes if a.k.shape[i] == 1 and a.batch[i] != 1]
        self.own = [i for i in axes if i not in self.shared]
        self.panels = ceildiv(a.s, s.rows)
        self.heads = product(a.batch)
        self.blocks = ceildiv(a.t, columns)
        self.segments = segments = self._segments(product(a.batch[i] for i in self.own))
        self.schedule = AttentionGradSchedule(
            s.lanes, s.vectors, panels, columns, s.keys, len(self.masks.bounds), len(self.masks.general), segments
        )
        self.sums_type = MemType(a.dtype, (segments * self.heads * self.panels, a.d, s.rows))

    def _segments(self, tasks: Dim) -> int:
        if not isinstance(tasks, int) or tasks >= TASKS:
            return 1
        most = -(-TASKS // max(1, tasks))
        return max(1, min(most, self.blocks)) if isinstance(self.blocks, int) else most

    def kernels(self) -> Kernels:
        g = self.a.group
        args, inputs = self.given.inputs()
        queries = self.a.results[0]
        keys = [j for j in range(len(g.outs)) if queries is None or j != queries[0]]
        scratch = [self.sums_type] if queries is not None else []
        place: Ref = ("scratch", len(self.given.scratch))
        refs: list[Ref] = [*inputs, *[place for _ in scratch], *[("output", j) for j in keys]]
        names = [*[v.name for v in args], *["sums" for _ in scratch]]
        ins, outs = [memory(v.type) for v in args], [*scratch, *[memory(g.outs[j].type) for j in keys]]
        made = kernel(
            g.name, ins, outs, lambda b, i, o: self.body(b, i, o, keys), names=names, schedule=self.schedule, loc=g.loc
        )
        steps = [*self.given.steps, Step(made, tuple(refs), len(outs))]
        if queries is not None:
            out = memory(g.outs[queries[0]].type)
            last = kernel(
                f"{g.name}_rows", scratch, [out], self.rows, names=["sums"], schedule=self.schedule, loc=g.loc
            )
            steps.append(Step(last, (place, ("output", queries[0]))))
        return Kernels(tuple(steps), (*self.given.scratch, *scratch))

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], keys: Sequence[int]) -> None:
        a = self.a
        reads = dict(zip(self.given.inputs()[0], ins, strict=True))
        sums = outs[0] if a.results[0] is not None else None
        results = dict(zip(keys, outs[1:] if sums is not None else outs, strict=True))
        shape = [*[a.batch[i] for i in self.own], self.segments]

        def task(ib: Builder, i: Value) -> None:
            *own, segment = unravel(ib, i, shape)
            _Keys(self, ib, reads, results, sums, dict(zip(self.own, own)), segment).run(ib)

        parallel(b, product(shape), task, grain=1)

    def panel(self, b: Builder, segment: Value, batch: Sequence[Value], p: Value) -> Value:
        """The place of a panel in the scratch memory."""
        at = segment
        for i, d in zip(batch, self.a.batch):
            at = b.add(b.mul(at, b.index(d)), i)
        return b.add(b.mul(at, b.index(self.panels)), p)  # type: ignore[no-any-return]

    def rows(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        """dq from the sums of all segments."""
        a, (sums,) = self.a, ins
        assert a.results[0] is not None
        view = a.results[0][1]
        shape = (*a.batch, self.panels)
        scale = number(b, a.scale, a.dtype, self.lanes)

        def task(ib: Builder, i: Value) -> None:
            *batch, p = unravel(ib, i, shape)
            result = Flat(ib, view, {view.source: outs[0]}, a.dtype)
            places = [self.panel(ib, ib.index(k), batch, p) for k in range(self.segments)]

            def vector(jb: Builder, c: Value, v: int) -> Value:
                parts = [self.vector(jb, sums, where, c, v * self.lanes) for where in places]
                total = parts[0]
                for part in parts[1:]:
                    total = jb.add(total, part)
                return jb.mul(total, scale)  # type: ignore[no-any-return]

            row = ib.mul(p, ib.index(self.schedule.rows))
            self.turn_back(ib, result, result.base(ib, batch), row, ib.index(a.s), a.d, vector)

        parallel(b, product(shape), task, grain=max(1, 8192 // (a.d * self.schedule.rows)))


class _Keys:
    """All work of one segment of the keys of one batch index."""

    def __init__(
        self,
        owner: _Backward,
        b: Builder,
        reads: dict[Value, Value],
        outs: dict[int, Value],
        sums: Value | None,
        at: dict[int, Value],
        segment: Value,
    ) -> None:
        self.owner, self.a, self.schedule, self.reads = owner, owner.a, owner.schedule, reads
        self.sums, self.at, self.segment = sums, at, segment
        a, s = self.a, self.schedule
        ct, lse, delta = a.others
        views = {"q": a.q, "k": a.k, "v": a.v, "ct": ct, "lse": lse, "delta": delta}
        self.flat = {n: Flat(b, x, reads, a.dtype) for n, x in views.items()}
        self.results = [None if r is None else Flat(b, r[1], {r[1].source: outs[r[0]]}, a.dtype) for r in a.results[1:]]
        rows = s.rows * s.panels
        self.turned_q, self.turned_ct = owner.local(b, a.d, rows), owner.local(b, a.e, rows)
        self.weights, self.changes = (owner.local(b, s.columns + s.keys, rows) for _ in range(2))
        self.seen = None if a.skips else owner.local(b, s.columns + s.keys, rows)
        self.dk = _Columns(self, b, a.d)
        self.dv = _Columns(self, b, a.e)

    def run(self, b: Builder) -> None:
        a, s, o = self.a, self.schedule, self.owner
        group = [a.batch[i] for i in o.shared]
        zero = [self.at.get(i, b.index(0)) for i in range(len(a.batch))]
        if self.sums is not None:
            nest(b, [*group, o.panels], self.clear)

        def block(ib: Builder, first: Value) -> None:
            end = ib.minimum(ib.add(first, ib.index(s.columns)), ib.index(a.t))
            self.dk.clear(ib)
            self.dv.clear(ib)

            def head(jb: Builder, at: tuple[Value, ...]) -> None:
                batch = self.batch(jb, at)
                code = _Rows(self, jb, batch, first, end)
                for_(jb, 0, a.s, code.run, step=s.rows * s.panels, name="row", vectorize=False)

            nest(ib, group, head)
            for result, sums, scale in zip(self.results, (self.dk, self.dv), (a.scale, 1.0), strict=True):
                if result is not None:
                    sums.store(ib, result, result.base(ib, zero), first, end, scale)

        length = ceildiv(o.blocks, self.owner.segments) * s.columns
        first = b.mul(self.segment, b.index(length))
        last = b.minimum(b.add(first, b.index(length)), b.index(a.t))
        for_(b, first, last, block, step=s.columns, name="block", vectorize=False)

    def batch(self, b: Builder, shared: Sequence[Value]) -> list[Value]:
        """A whole batch index from that along the shared axes."""
        at = {**self.at, **dict(zip(self.owner.shared, shared))}
        return [at[i] for i in range(len(self.a.batch))]

    def clear(self, b: Builder, at: tuple[Value, ...]) -> None:
        o, sums = self.owner, self.sums
        assert sums is not None
        where = o.panel(b, self.segment, self.batch(b, at[:-1]), at[-1])

        def line(ib: Builder, c: Value) -> None:
            for v in range(o.vectors):
                o.put(ib, sums, number(ib, 0.0, self.a.dtype, o.lanes), where, c, v * o.lanes)

        for_(b, 0, self.a.d, line, name="d", vectorize=False)


class _Rows:
    """One block of columns against the rows of one batch index."""

    def __init__(self, keys: _Keys, b: Builder, batch: Sequence[Value], first: Value, end: Value) -> None:
        self.keys, self.o, self.a, self.s = keys, keys.owner, keys.a, keys.schedule
        self.batch, self.first, self.end = batch, first, end
        self.mask = MaskCode(b, self.a, self.o.masks, keys.reads, batch)
        self.base = {n: x.base(b, batch) for n, x in keys.flat.items()}
        rows = self.s.rows * self.s.panels
        self.evaluated = self.mask.memories(b, self.s.columns + self.s.keys, rows)

    def run(self, b: Builder, row: Value) -> None:
        """The rows from `row` on, if any of them sees any of the columns."""
        count = self.s.rows * self.s.panels
        end = b.minimum(b.add(row, b.index(count)), b.index(self.a.s))
        lo, hi, lo_all, hi_all = self.mask.ends(b, row, b.sub(end, b.index(1)))
        inside = b.logical_and(b.le(lo_all, self.first), b.le(self.end, hi_all))
        lo, hi = b.maximum(lo, self.first), b.minimum(hi, self.end)
        if_(b, b.lt(lo, hi), lambda ib: self.visit(ib, row, end, lo, hi, inside))

    def panels(self) -> list[tuple[int, int]]:
        """(panel, vector, counted in vectors of the rows looked at)."""
        return [(p, p * self.o.vectors + v) for p in range(self.s.panels) for v in range(self.o.vectors)]

    def visit(self, b: Builder, row: Value, end: Value, lo: Value, hi: Value, inside: Value) -> None:
        o, a, keys, n = self.o, self.a, self.keys, self.o.lanes
        lse = self.row_vectors(b, "lse", row, LOG2E)
        delta = self.row_vectors(b, "delta", row, 1.0)
        for p in range(self.s.panels):
            for name, mem, width, scale in (
                ("q", keys.turned_q, a.d, a.scale * LOG2E),
                ("ct", keys.turned_ct, a.e, 1.0),
            ):

                def put(ib: Builder, c: Value, v: int, x: Value, mem: Value = mem, p: int = p) -> None:
                    o.put(ib, mem, x, c, (p * o.vectors + v) * n)

                at = b.add(row, b.index(p * self.s.rows))
                o.turn(b, keys.flat[name], self.base[name], at, a.s, width, scale, put)
        self.tiles(b, "k", keys.turned_q, a.d, lo, hi, lambda ib, at, i, x: o.put(ib, keys.weights, x, at, i * n))
        for which, mem in enumerate(self.evaluated):
            self.mask.turned(b, mem, which, row, lo, hi, self.s.rows * self.s.panels, n)
        masks = o.masks
        if masks.general:
            self.weigh(b, row, lo, hi, lse, True)
        elif masks.bounds:
            if_(
                b,
                inside,
                lambda ib: self.weigh(ib, row, lo, hi, lse, False),
                lambda ib: self.weigh(ib, row, lo, hi, lse, True),
            )
        else:
            self.weigh(b, row, lo, hi, lse, False)

        def change(ib: Builder, at: Value, i: int, x: Value) -> None:
            w = o.vector(ib, keys.weights, at, i * n)
            ds = ib.mul(w, ib.sub(x, delta[i]))
            if keys.seen is not None:
                ds = ib.mul(ds, o.vector(ib, keys.seen, at, i * n))
            o.put(ib, keys.changes, ds, at, i * n)

        self.tiles(b, "v", keys.turned_ct, a.e, lo, hi, change)
        self.beyond(b, lo, hi)
        count = b.sub(end, row)
        for result, sums, mem, name in (
            (keys.results[1], keys.dv, keys.weights, "ct"),
            (keys.results[0], keys.dk, keys.changes, "q"),
        ):
            if result is not None:
                source = keys.flat[name]
                sums.add(
                    b,
                    mem,
                    source,
                    source.row(b, self.base[name], row),
                    count,
                    b.sub(lo, self.first),
                    b.sub(hi, self.first),
                )
        if keys.sums is not None:
            self.queries(b, row, lo, hi)

    def row_vectors(self, b: Builder, name: str, row: Value, scale: float) -> list[Value]:
        """A number of each row, as vectors; the last one again beyond the end."""
        flat, n = self.keys.flat[name], self.o.lanes
        last = b.sub(b.index(self.a.s), b.index(1))
        out = []
        for _, i in self.panels():
            x: Value | None = None
            for lane in range(n):
                at = b.minimum(b.add(row, b.index(i * n + lane)), last)
                one = flat.load(b, flat.column(b, self.base[name], at))
                x = splat(b, one, n) if x is None else b.emit("insert", x, one, lane=lane)[0]
            assert x is not None
            out.append(b.mul(x, number(b, scale, self.a.dtype, n)) if scale != 1 else x)
        return out

    def tiles(
        self, b: Builder, name: str, turned: Value, width: int, lo: Value, hi: Value, put: Callable[..., None]
    ) -> None:
        """The products of rows of k or v with turned rows, given to put(builder, column - first, vector number, vector)."""
        o = self.o

        def tile(ib: Builder, t: Value) -> None:
            for p in range(self.s.panels):

                def right(jb: Builder, c: Value, v: int, p: int = p) -> Value:
                    return o.vector(jb, turned, c, (p * o.vectors + v) * o.lanes)

                acc = o.products(ib, self.keys.flat[name], self.base[name], t, self.s.keys, self.a.t, width, right)
                for r in range(self.s.keys):
                    at = ib.add(ib.sub(t, self.first), ib.index(r))
                    for v in range(o.vectors):
                        put(ib, at, p * o.vectors + v, acc[r * o.vectors + v])

        for_(b, lo, hi, tile, step=self.s.keys, name="t", vectorize=False)

    def weigh(self, b: Builder, row: Value, lo: Value, hi: Value, lse: Sequence[Value], masked: bool) -> None:
        """Scores become weights; where what is not seen has a weight, `seen` is 0 there."""
        o, keys, n, dtype = self.o, self.keys, self.o.lanes, self.a.dtype
        bounds = [self.mask.bound_lanes(b, b.add(row, b.index(i * n)), n) for _, i in self.panels()] if masked else []

        def column(ib: Builder, t: Value) -> None:
            at = ib.sub(t, self.first)
            xs: list[Value] = []
            for _, i in self.panels():
                x = o.vector(ib, keys.weights, at, i * n)
                kept = number(ib, 1.0, dtype, n)
                if masked:
                    given = [o.vector(ib, m, ib.sub(t, lo), i * n) for m in self.evaluated]
                    conditions = self.mask.seen(ib, bounds[i], t, n)
                    x = self.mask.masked(ib, x, given, conditions, n)
                    if keys.seen is not None:
                        kept = self.mask.kept(ib, given, conditions, n)
                if keys.seen is not None:
                    o.put(ib, keys.seen, kept, at, i * n)
                xs.append(ib.sub(x, lse[i]))
            for (_, i), w in zip(self.panels(), exp2_of_negative(ib, *xs), strict=True):
                o.put(ib, keys.weights, w, at, i * n)

        for_(b, lo, hi, column, name="t", vectorize=False)

    def beyond(self, b: Builder, lo: Value, hi: Value) -> None:
        """Nothing comes from the columns that only fill the last tile."""
        o, keys, size = self.o, self.keys, b.index(self.s.keys)
        count = b.sub(hi, lo)
        full = b.add(lo, b.mul(b.div(b.add(count, b.index(self.s.keys - 1)), size), size))

        def column(ib: Builder, t: Value) -> None:
            for mem in (keys.weights, keys.changes):
                for _, i in self.panels():
                    o.put(ib, mem, number(ib, 0.0, self.a.dtype, o.lanes), ib.sub(t, self.first), i * o.lanes)

        for_(b, hi, full, column, name="t", vectorize=False)

    def queries(self, b: Builder, row: Value, lo: Value, hi: Value) -> None:
        """dq of the panels: the keys of the columns by the changes of their scores."""
        o, a, keys, n = self.o, self.a, self.keys, self.o.lanes
        sums, k = keys.sums, keys.flat["k"]
        assert sums is not None
        first = b.div(row, b.index(self.s.rows))

        def panel(ib: Builder, p: int) -> None:
            where = o.panel(ib, keys.segment, self.batch, ib.add(first, ib.index(p)))

            def tile(jb: Builder, c: Value, height: int) -> None:
                start = [
                    o.vector(jb, sums, where, jb.add(c, jb.index(r)), v * n)
                    for r in range(height)
                    for v in range(o.vectors)
                ]

                def column(kb: Builder, t: Value, *acc: Value) -> list[Value]:
                    at = kb.sub(t, self.first)
                    changes = [o.vector(kb, keys.changes, at, (p * o.vectors + v) * n) for v in range(o.vectors)]
                    where_k = k.column(kb, k.row(kb, self.base["k"], t), c)
                    out = []
                    for r in range(height):
                        x = splat(kb, k.load(kb, k.column(kb, where_k, r)), n)
                        out += [multiply_add(kb, o.fma, x, y, acc[r * o.vectors + v]) for v, y in enumerate(changes)]
                    return out

                acc = unrolled(jb, lo, hi, column, start, 4, "t")
                for r in range(height):
                    for v in range(o.vectors):
                        o.put(jb, sums, acc[r * o.vectors + v], where, jb.add(c, jb.index(r)), v * n)

            for at, times, height in o.tiles(a.d):

                def one(jb: Builder, c: Value, height: int = height) -> None:
                    tile(jb, c, height)

                for_(ib, at, at + times * height, one, step=height, name="d", vectorize=False)

        for p in range(self.s.panels):
            if p == 0:
                panel(b, p)
            else:
                there = b.lt(b.add(row, b.index(p * self.s.rows)), b.index(a.s))
                if_(b, there, lambda ib, p=p: panel(ib, p))  # type: ignore[misc]


class _Columns:
    """Sums for a block of columns, dk or dv: [columns, width], lanes along the width. `runs`: (column of the source, place
    in the sums, vectors, lanes); a last vector may overlap the one before, and has a place of its own."""

    def __init__(self, keys: _Keys, b: Builder, width: int) -> None:
        self.keys, self.width = keys, width
        lanes, vectors = keys.owner.lanes, keys.owner.vectors
        runs: list[tuple[int, int, int, int]] = []
        at = 0
        while width - at >= lanes:
            n = vectors if width - at >= lanes * vectors else 1
            runs.append((at, at, n, lanes))
            at += n * lanes
        if at < width and width >= lanes:
            runs.append((width - lanes, at, 1, lanes))
        elif at < width:
            runs.extend((c, c, 1, 1) for c in range(width))
        self.runs = runs
        self.places = -(-width // lanes) * lanes
        s = keys.schedule
        self.mem = keys.owner.local(b, s.columns + s.keys, self.places)

    def clear(self, b: Builder) -> None:
        o, s = self.keys.owner, self.keys.schedule

        def line(ib: Builder, t: Value) -> None:
            for c in range(0, self.places, o.lanes):
                o.put(ib, self.mem, number(ib, 0.0, self.keys.a.dtype, o.lanes), t, c)

        for_(b, 0, s.columns + s.keys, line, name="t", vectorize=False)

    def load(self, b: Builder, t: Value, place: Value, lanes: int) -> Value:
        return b.emit("load", self.mem, t, place, lanes=lanes if lanes > 1 else 0)[0]

    def add(self, b: Builder, left: Value, source: Flat, base: Value, count: Value, lo: Value, hi: Value) -> None:
        """Add left[t, r] * source[r, :] for r < count to the columns lo..hi; `base`: where row 0 of the source begins."""
        o, s = self.keys.owner, self.keys.schedule

        def tile(ib: Builder, t: Value, c: Value, place: Value, vectors: int, lanes: int) -> None:
            places = [ib.add(place, ib.index(v * lanes)) for v in range(vectors)]
            start = [self.load(ib, ib.add(t, ib.index(r)), at, lanes) for r in range(s.keys) for at in places]

            def step(jb: Builder, r: Value, *acc: Value) -> list[Value]:
                at = source.row(jb, base, r)
                columns = [source.column(jb, at, jb.add(c, jb.index(v * lanes))) for v in range(vectors)]
                ys = [source.load(jb, x, lanes if lanes > 1 else 0) for x in columns]
                out = []
                for i in range(s.keys):
                    x = jb.emit("load", left, jb.add(t, jb.index(i)), r)[0]
                    x = splat(jb, x, lanes) if lanes > 1 else x
                    out += [multiply_add(jb, o.fma, x, y, acc[i * vectors + v]) for v, y in enumerate(ys)]
                return out

            acc = unrolled(ib, 0, count, step, start, 4, "r")
            for r in range(s.keys):
                for v in range(vectors):
                    ib.store(self.mem, acc[r * vectors + v], ib.add(t, ib.index(r)), places[v])

        step_wide = o.vectors * o.lanes
        wide = self.width // step_wide * step_wide

        def tiles(ib: Builder, t: Value) -> None:
            for_(
                ib,
                0,
                wide,
                lambda jb, c: tile(jb, t, c, c, o.vectors, o.lanes),
                step=step_wide,
                name="c",
                vectorize=False,
            )
            for c, place, vectors, lanes in self.runs:
                if c >= wide or place >= wide:
                    tile(ib, t, ib.index(c), ib.index(place), vectors, lanes)

        for_(b, lo, hi, tiles, step=s.keys, name="t", vectorize=False)

    def store(self, b: Builder, result: Flat, base: Value, first: Value, end: Value, scale: float) -> None:
        """Write the rows first..end of the result."""

        def line(ib: Builder, t: Value) -> None:
            row = result.row(ib, base, ib.add(first, t))
            for c, place, vectors, lanes in self.runs:
                for v in range(vectors):
                    x = self.load(ib, t, ib.index(place + v * lanes), lanes)
                    x = ib.mul(x, number(ib, scale, self.keys.a.dtype, lanes if lanes > 1 else 0)) if scale != 1 else x
                    result.store(ib, x, result.column(ib, row, c + v * lanes))

        for_(b, 0, b.sub(end, first), line, name="t", vectorize=False)


__all__ = ["AttentionGradSchedule", "attention_grad"]
