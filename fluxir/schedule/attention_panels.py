"""What the forward and the backward kernel of attention share: panels of queries, tiles of products, wide keys and values.

A panel holds as many rows as two vectors have lanes, turned: its element [c, r] is column c of row r, so that a tile of
products has rows of the other operand down, read where they lie, and the rows of the panel across the lanes. Rows beyond
the last are the last again; what comes of them is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.types import MemType, TensorType
from fluxir.ops.views import View, row_major
from fluxir.schedule.attention import (
    Attention,
    Flat,
    multiply_add,
    number,
    splat,
    unrolled,
)
from fluxir.schedule.attention_mask import Masks, read_masks
from fluxir.schedule.loops import for_, grain_of, if_, kernel, memory, parallel, unravel
from fluxir.schedule.matmul_pack import transposed
from fluxir.schedule.templates import Ref, Schedule, Step

TASK_ROWS = 64  # queries of a task
BLOCK = 48  # columns of a block
VECTORS = 2  # vectors of queries in a panel


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
        end: Dim | Value,
        width: int,
        right: Callable[..., Value],
    ) -> list[Value]:
        """The tile sum over c < width of left[first + r, c] * right(builder, c, vector): `rows` rows (the last row again
        from `end` on) by the vectors of a panel."""
        last = b.sub(end if isinstance(end, Value) else b.index(end), b.index(1))
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


__all__ = ["AttentionSchedule", "Panels", "Widened", "choose", "widened"]
