"""Attention of a few queries to many keys on CPUs: the step of a decoder with a cache, bounded by memory bandwidth.

A task has a chunk of the keys of one batch index and all queries that share them. Keys and values are read once, in order,
lanes along their rows: a tile of as many keys as lanes gives a vector of scores, and a weighted sum is kept in registers
while values stream by. Chunks outside of a row's bounds (the unfilled part of a cache) are not read. Where there are several
chunks a second kernel puts their sums together, scaled by their largest scores (online softmax, in a fixed order).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Func, Value
from fluxir.ir.dims import ceildiv, product
from fluxir.ir.types import MemType
from fluxir.ops.approx.exponential import exp2_of_negative
from fluxir.ops.nest import cast
from fluxir.schedule.attention import (
    LOG2E,
    NEVER,
    Attention,
    Flat,
    divisors,
    finite_base,
    greater,
    multiply_add,
    number,
    read,
    splat,
)
from fluxir.schedule.attention_mask import MaskCode, read_masks
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_, kernel, memory, parallel, unravel
from fluxir.schedule.matmul_pack import transposed
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.vectors import Lanes

FEW = 4  # queries of one batch index up to which a panel would stay mostly empty
ROWS = 64  # queries that may share keys
CHUNK = 512  # keys of a task
LONG_CHUNK = 4096  # where there are tasks enough, and each key is needed once
ENOUGH = 8  # batch indices that keep all threads busy
SUMS = 8  # vectors of a weighted sum that are kept in registers


@dataclass(frozen=True)
class AttentionDecodeSchedule(Schedule):
    """`rows` queries share keys, of which a task takes `keys`; `chunks`: whether there are several tasks for a query."""

    lanes: int
    rows: int
    keys: int
    chunks: bool


@template("attention_decode", target="cpu", anchors=("attention",), priority=31)
def attention_decode(group: Group, target: Any) -> Kernels | None:
    """softmax(q k^T + masks) v for a few queries, which the keys of each batch index are read once for."""
    a = read(group, "attention")
    if a is None or not isinstance(a.s, int) or a.s > FEW or not a.skips:
        return None
    lanes = target.lanes(a.dtype.bits)
    shared = [d for i, d in enumerate(a.batch) if a.k.shape[i] == a.v.shape[i] == 1 and d != 1]
    if lanes < 2 or a.d < lanes or a.e < lanes or any(v.strides[-1] != 1 for v in (a.q, a.k, a.v)):
        return None
    rows = product(shared) * a.s
    if not isinstance(rows, int) or rows > ROWS:
        return None
    return _Decode(a, target, lanes, rows).kernels()


class _Decode:
    """The kernels of one attention of few queries. `own`, `shared`: batch axes with keys of their own, and with the same."""

    def __init__(self, a: Attention, target: Any, lanes: int, rows: int) -> None:
        self.a, self.lanes, self.fma = a, lanes, target.has("fma")
        self.masks = read_masks(a)
        self.shared = [i for i, d in enumerate(a.batch) if a.k.shape[i] == a.v.shape[i] == 1 and d != 1]
        self.own = [i for i in range(len(a.batch)) if i not in self.shared]
        self.row_shape = (*[a.batch[i] for i in self.shared], a.s)
        self.own_shape = tuple(a.batch[i] for i in self.own)
        many = product(self.own_shape)
        keys = LONG_CHUNK if isinstance(many, int) and many >= ENOUGH else CHUNK
        if rows > 1:  # what several queries read stays in the second cache
            keys = min(keys, max(lanes, target.l2_bytes // 2 // ((a.d + a.e) * a.dtype.itemsize) // lanes * lanes))
        if isinstance(a.t, int):
            keys = min(keys, -(-a.t // lanes) * lanes)
        self.chunks = ceildiv(a.t, keys)
        self.schedule = AttentionDecodeSchedule(lanes, rows, keys, self.chunks != 1)
        self.width = -(-a.e // lanes) * lanes
        heads = many * rows * self.chunks
        self.sums_type, self.ends_type = MemType(a.dtype, (heads, self.width)), MemType(a.dtype, (heads, 2))

    def kernels(self) -> Kernels:
        g = self.a.group
        ins = [memory(v.type) for v in g.args]
        outs = [memory(v.type) for v in g.outs]
        inputs: list[Ref] = [("input", i) for i in range(len(ins))]
        outputs: list[Ref] = [("output", j) for j in range(len(outs))]
        make = functools.partial(kernel, schedule=self.schedule, loc=g.loc)
        if self.chunks == 1:
            made: Func = make(g.name, ins, outs, self.body, names=[v.name for v in g.args])
            return Kernels((Step(made, (*inputs, *outputs), len(outs)),))
        scratch = [self.sums_type, self.ends_type]
        between: list[Ref] = [("scratch", 0), ("scratch", 1)]
        parts = make(g.name, ins, scratch, self.body, names=[v.name for v in g.args])
        whole = make(f"{g.name}_join", scratch, outs, self.join, names=["sums", "ends"])
        return Kernels(
            (Step(parts, (*inputs, *between), 2), Step(whole, (*between, *outputs), len(outs))), tuple(scratch)
        )

    def batch(self, b: Builder, own: Sequence[Value], row: Sequence[Value]) -> list[Value]:
        at = {**dict(zip(self.own, own)), **dict(zip(self.shared, row))}
        return [at[i] for i in range(len(self.a.batch))]

    def results(self, b: Builder, outs: Sequence[Value]) -> list[Flat | None]:
        return [None if r is None else Flat(b, r[1], {r[1].source: outs[r[0]]}, self.a.dtype) for r in self.a.results]

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        a, s = self.a, self.schedule
        reads = dict(zip(a.group.args, ins, strict=True))
        shape = (*self.own_shape, self.chunks)

        def task(ib: Builder, i: Value) -> None:
            *own, chunk = unravel(ib, i, shape)
            first = ib.mul(chunk, ib.index(s.keys))
            code = _Chunk(self, ib, reads, own)

            def row(jb: Builder, r: Value) -> None:
                *shared, q = unravel(jb, r, self.row_shape)
                batch = self.batch(jb, own, shared)
                top, total, sums = code.row(jb, batch, q, first)
                if self.chunks == 1:
                    self.finish(jb, self.results(jb, outs), batch, q, top, total, sums)
                    return
                place = jb.add(jb.mul(i, jb.index(s.rows)), r)
                jb.store(outs[1], top, place, jb.index(0))
                jb.store(outs[1], total, place, jb.index(1))
                for c in range(0, self.width, self.lanes):
                    x = jb.emit("load", sums, jb.index(c), lanes=self.lanes)[0]
                    jb.store(outs[0], x, place, jb.index(c))

            for_(ib, 0, s.rows, row, name="row", vectorize=False)

        work = s.rows * s.keys * (a.d + a.e) // self.lanes
        parallel(b, product(shape), task, grain=max(1, (1 << 15) // work))

    def join(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        """The sums of all chunks of a row, scaled to the largest score of all."""
        a, s, n = self.a, self.schedule, self.lanes
        sums, ends = ins
        shape = (*self.own_shape, *self.row_shape)
        count = product(self.own_shape) * s.rows

        def task(ib: Builder, i: Value) -> None:
            at = unravel(ib, i, shape)
            own, row = at[: len(self.own)], at[len(self.own) :]
            head, r = ib.div(i, ib.index(s.rows)), ib.fmod(i, ib.index(s.rows))

            def place(jb: Builder, c: Value) -> Value:
                chunk = jb.add(jb.mul(head, jb.index(self.chunks)), c)
                return jb.add(jb.mul(chunk, jb.index(s.rows)), r)  # type: ignore[no-any-return]

            def largest(jb: Builder, c: Value, top: Value) -> Value:
                return greater(jb, jb.emit("load", ends, place(jb, c), jb.index(0))[0], top)

            (top,) = for_(ib, 0, self.chunks, largest, [number(ib, NEVER, a.dtype)], name="chunk", vectorize=False)
            base = finite_base(ib, top)
            local = ib.alloc(type=MemType(a.dtype, (self.width,), "local"))
            for c in range(0, self.width, n):
                ib.store(local, number(ib, 0.0, a.dtype, n), ib.index(c))

            def part(jb: Builder, c: Value, total: Value) -> Value:
                where = place(jb, c)
                (factor,) = exp2_of_negative(jb, jb.sub(jb.emit("load", ends, where, jb.index(0))[0], base))
                wide = splat(jb, factor, n)
                for e in range(0, self.width, n):
                    x = jb.emit("load", sums, where, jb.index(e), lanes=n)[0]
                    y = jb.emit("load", local, jb.index(e), lanes=n)[0]
                    jb.store(local, multiply_add(jb, self.fma, x, wide, y), jb.index(e))
                return jb.add(total, jb.mul(factor, jb.emit("load", ends, where, jb.index(1))[0]))  # type: ignore[no-any-return]

            (total,) = for_(ib, 0, self.chunks, part, [number(ib, 0.0, a.dtype)], name="chunk", vectorize=False)
            self.finish(ib, self.results(ib, outs), self.batch(ib, own, row[:-1]), row[-1], top, total, local)

        parallel(b, count, task, grain=64)

    def places(self) -> list[tuple[int, int]]:
        """(column, place in the sums) of the vectors of a row; the last one may overlap the one before."""
        full = self.a.e // self.lanes * self.lanes
        whole = [(c, c) for c in range(0, full, self.lanes)]
        return whole if full == self.a.e else [*whole, (self.a.e - self.lanes, full)]

    def finish(
        self,
        b: Builder,
        results: Sequence[Flat | None],
        batch: Sequence[Value],
        q: Value,
        top: Value,
        total: Value,
        sums: Value,
    ) -> None:
        """Write the row of one query."""
        a, n = self.a, self.lanes
        (some,) = divisors(b, a, [total])
        result, logarithm = results
        if logarithm is not None:
            lse = b.mul(b.add(b.log2(some), finite_base(b, top)), 1 / LOG2E)
            logarithm.store(b, lse, logarithm.column(b, logarithm.base(b, batch), q))
        if result is not None:
            inverse = splat(b, b.div(number(b, 1.0, a.dtype), some), n)
            row = result.row(b, result.base(b, batch), q)
            for c, place in self.places():
                x = b.emit("load", sums, b.index(place), lanes=n)[0]
                result.store(b, b.mul(x, inverse), result.column(b, row, c))


class _Chunk:
    """The keys and values of one task."""

    def __init__(self, owner: _Decode, b: Builder, reads: dict[Value, Value], own: Sequence[Value]) -> None:
        self.o, self.a, self.reads = owner, owner.a, reads
        a, n = self.a, owner.lanes
        self.q, self.k, self.v = (Flat(b, x, reads, a.dtype) for x in (a.q, a.k, a.v))
        zero = owner.batch(b, own, [b.index(0)] * len(owner.shared))
        self.k_base, self.v_base = self.k.base(b, zero), self.v.base(b, zero)
        self.scores = b.alloc(type=MemType(a.dtype, (owner.schedule.keys + n,), "local"))
        self.sums = b.alloc(type=MemType(a.dtype, (owner.width,), "local"))

    def row(self, b: Builder, batch: Sequence[Value], q: Value, first: Value) -> tuple[Value, Value, Value]:
        """(largest score, sum of weights, memory of the weighted sum) of one query and the keys from `first` on."""
        a, o, n = self.a, self.o, self.o.lanes
        mask = MaskCode(b, a, o.masks, self.reads, batch)
        low, high, _, _ = mask.ends(b, q, q)
        lo = b.maximum(low, first)
        hi = b.maximum(lo, b.minimum(high, b.add(first, b.index(o.schedule.keys))))
        query = self.query(b, batch, q)
        top = self.score(b, query, lo, hi)
        if o.masks.general:
            top = self.masked(b, mask, q, lo, hi)
        b.store(self.scores, number(b, NEVER, a.dtype, n), b.sub(hi, lo))
        top = b.emit("reduce_lanes", top, op="max")[0]
        base = splat(b, finite_base(b, top), n)

        def weigh(ib: Builder, t: Value, total: Value) -> Value:
            (w,) = exp2_of_negative(ib, ib.sub(ib.emit("load", self.scores, t, lanes=n)[0], base))
            ib.store(self.scores, w, t)
            return ib.add(total, w)  # type: ignore[no-any-return]

        count = b.sub(hi, lo)
        (total,) = for_(b, 0, count, weigh, [number(b, 0.0, a.dtype, n)], step=n, name="t", vectorize=False)
        places = o.places()
        for at in range(0, len(places), SUMS):
            self.add(b, places[at : at + SUMS], lo, hi)
        return top, b.emit("reduce_lanes", total, op="add")[0], self.sums

    def query(self, b: Builder, batch: Sequence[Value], q: Value) -> list[tuple[int, Value]]:
        """(first column, vector) of a query, scaled; where the last vector overlaps the one before it is 0."""
        a, n = self.a, self.o.lanes
        row = self.q.row(b, self.q.base(b, batch), q)
        scale = number(b, a.scale * LOG2E, a.dtype, n)
        full = a.d // n * n
        out = [(c, b.mul(self.q.load(b, self.q.column(b, row, c), n), scale)) for c in range(0, full, n)]
        if full != a.d:
            kept = number(b, 0.0, a.dtype, n)
            for lane in range(n - (a.d - full), n):
                kept = b.emit("insert", kept, number(b, 1.0, a.dtype), lane=lane)[0]
            x = b.mul(self.q.load(b, self.q.column(b, row, a.d - n), n), scale)
            out.append((a.d - n, b.select(b.gt(kept, number(b, 0.0, a.dtype, n)), x, number(b, 0.0, a.dtype, n))))
        return out

    def score(self, b: Builder, query: Sequence[tuple[int, Value]], lo: Value, hi: Value) -> Value:
        """Scores of the keys lo..hi into `scores`; the largest, in any lane."""
        n = self.o.lanes
        last = b.sub(hi, b.index(1))

        def tile(ib: Builder, t: Value, top: Value) -> Value:
            at = [self.k.row(ib, self.k_base, ib.minimum(ib.add(t, ib.index(i)), last)) for i in range(n)]
            acc = [number(ib, 0.0, self.a.dtype, n)] * n
            for c, x in query:
                for i in range(n):
                    acc[i] = multiply_add(ib, self.o.fma, self.k.load(ib, self.k.column(ib, at[i], c), n), x, acc[i])
            parts = transposed(ib, acc)
            while len(parts) > 1:
                parts = [ib.add(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
            ib.store(self.scores, parts[0], ib.sub(t, lo))
            return greater(ib, parts[0], top)

        return for_(b, lo, hi, tile, [number(b, NEVER, self.a.dtype, n)], step=n, name="t", vectorize=False)[0]

    def masked(self, b: Builder, mask: MaskCode, q: Value, lo: Value, hi: Value) -> Value:
        """Apply the masks that are no bounds; the largest score, in any lane."""
        a, n, masks = self.a, self.o.lanes, self.o.masks

        def apply(ib: Builder, x: Value, given: Sequence[Value], lanes: int) -> Value:
            for i, m in enumerate(given):
                if i < len(masks.biases):
                    x = ib.add(x, ib.mul(cast(ib, m, a.dtype), number(ib, LOG2E, a.dtype, lanes)))
                else:
                    x = ib.select(m, x, number(ib, NEVER, a.dtype, lanes))
            return x

        def vector(ib: Builder, t: Value, top: Value) -> Value:
            code = Lanes(Elements(ib, self.reads), t, n)
            given = [code.vector(v, mask.at(ib, where, q, t)) for v, where in masks.general]
            at = ib.sub(t, lo)
            x = apply(ib, ib.emit("load", self.scores, at, lanes=n)[0], given, n)
            ib.store(self.scores, x, at)
            return greater(ib, x, top)

        def single(ib: Builder, t: Value, top: Value) -> Value:
            given = [Elements(ib, self.reads).at(v, mask.at(ib, where, q, t)) for v, where in masks.general]
            at = ib.sub(t, lo)
            x = apply(ib, ib.emit("load", self.scores, at)[0], given, 0)
            ib.store(self.scores, x, at)
            return greater(ib, splat(ib, x, n), top)

        start = [number(b, NEVER, a.dtype, n)]
        whole = b.sub(hi, b.fmod(b.sub(hi, lo), b.index(n)))
        top = for_(b, lo, whole, vector, start, step=n, name="t", vectorize=False)
        return for_(b, whole, hi, single, top, name="t", vectorize=False)[0]

    def add(self, b: Builder, places: Sequence[tuple[int, int]], lo: Value, hi: Value) -> None:
        """The weighted sum of the values lo..hi in some vectors of columns."""
        n = self.o.lanes

        def value(ib: Builder, t: Value, *acc: Value) -> list[Value]:
            w = splat(ib, ib.emit("load", self.scores, ib.sub(t, lo))[0], n)
            row = self.v.row(ib, self.v_base, t)
            return [
                multiply_add(ib, self.o.fma, self.v.load(ib, self.v.column(ib, row, c), n), w, x)
                for x, (c, _) in zip(acc, places, strict=True)
            ]

        start = [number(b, 0.0, self.a.dtype, n)] * len(places)
        acc = for_(b, lo, hi, value, start, name="t", vectorize=False)
        for x, (_, place) in zip(acc, places, strict=True):
            b.store(self.sums, x, b.index(place))


__all__ = ["AttentionDecodeSchedule", "attention_decode"]
