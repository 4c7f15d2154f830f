"""Few rows times a matrix that lies along the contracted index: dot products of lines, memory read once, front to back.

This is what `x @ w.T` and `a @ v` are. Vectors run along k: a tile is the `rows` rows of the left operand by `lines` lines of
the matrix, each with accumulators of its own for `unroll` vectors; lanes are added in halves at the end. A task is some
lines of the matrix. The order of additions depends on the sizes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import ceildiv, product
from fluxir.schedule.contraction import (
    CONTRACT,
    Dot,
    OperandCode,
    PostCode,
    prologue_reads,
    types_of,
    views,
)
from fluxir.schedule.loops import Size, for_, grain_of, kernel, memory, parallel, unravel
from fluxir.schedule.matmul_pack import plus, whole
from fluxir.schedule.space import inplace_pairs
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step

FEW = 4  # rows of the left operand up to which lines are not worth transposing
TASK = 1 << 17  # products of a task


@dataclass(frozen=True)
class GemvSchedule(Schedule):
    """`rows` x `lines` dot products at a time, each in `unroll` vectors of `lanes`; `tiles`: such tiles in a task."""

    rows: int
    lines: int
    unroll: int
    lanes: int
    tiles: int


def turned(dot: Dot) -> Dot:
    """A matrix times a vector as the vector times the matrix transposed; other dots as they are."""
    batch, free, last = dot.post_dims
    if dot.n != 1 or dot.m == 1 or last or len(free) > 1:
        return dot
    return replace(dot, lhs=dot.rhs, rhs=dot.lhs, m=1, n=dot.m, post_dims=(batch, (), free))


def gemv(dot: Dot, target: Any) -> Kernels | None:
    """The kernel of a dot with few rows whose operands both lie along k; None for others."""
    sides = (dot.lhs, dot.rhs)
    if any(s.computed or s.contiguous() != CONTRACT for s in sides) or not isinstance(dot.m, int) or dot.m > FEW:
        return None
    lanes = target.lanes(dot.dtype.bits)
    short = isinstance(dot.k, int) and dot.k < 2 * lanes
    if lanes < 2 or short or (isinstance(dot.n, int) and dot.n <= 8) or not dot.dtype.is_float:
        return None
    lines, unroll = {1: (4, 2), 2: (4, 1), 3: (4, 1)}.get(dot.m, (2, 1))
    if isinstance(dot.k, int) and dot.k % (lanes * unroll):
        unroll = 1
    deep = dot.k if isinstance(dot.k, int) else 256
    tiles = max(1, TASK // (dot.m * lines * deep))
    if isinstance(dot.n, int):
        tiles = min(tiles, -(-dot.n // lines))
    return _Gemv(dot, target, GemvSchedule(dot.m, lines, unroll, lanes, tiles)).kernels()


class _Gemv:
    def __init__(self, dot: Dot, target: Any, schedule: GemvSchedule) -> None:
        self.dot, self.schedule = dot, schedule
        self.fma = target.has("fma")

    def kernels(self) -> Kernels:
        dot = self.dot
        inputs, outputs = types_of(dot)
        read = {v for op in dot.post.ops for v in op.operands} | set(dot.post.outs)
        used = {i for i, a in enumerate(dot.post.args[:-1]) if a in read}
        operands = {*prologue_reads(dot, dot.lhs), *prologue_reads(dot, dot.rhs)}
        places = sorted(used | operands)

        def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            reads, after = views(b, dot, dict(zip(places, ins)))
            self.body(b, reads, PostCode(dot.post, after, outs))

        types = [inputs[i] for i in places]
        made = kernel(
            dot.group.name,
            types,
            outputs,
            body,
            names=[dot.group.args[i].name for i in places],
            schedule=self.schedule,
            loc=dot.group.loc,
            given=[*types, *[memory(v.type) for v in dot.group.outs]],
        )
        refs: list[Ref] = [*[("input", i) for i in places], *[("output", j) for j in range(len(outputs))]]
        pairs = inplace_pairs(dot.post, dot.post.outs, dot.post_shape())
        free = [(j, i) for j, i in pairs if i in used and i not in operands]
        same = tuple((len(places) + j, places.index(i)) for j, i in free)
        return Kernels((Step(made, tuple(refs), len(outputs), same),))

    def body(self, b: Builder, reads: dict[Value, Value], post: PostCode) -> None:
        dot, s = self.dot, self.schedule
        lhs, rhs = OperandCode(dot.lhs, reads, dot.dtype), OperandCode(dot.rhs, reads, dot.dtype)
        height = s.tiles * s.lines

        def task(ib: Builder, at: tuple[Value, ...]) -> None:
            t, i = at
            first = ib.mul(i, ib.index(height))
            end = ib.minimum(ib.add(first, ib.index(height)), ib.index(dot.n))
            full = plus(ib, first, whole(ib, ib.sub(end, first), s.lines))
            for_(ib, first, full, lambda jb, n: self.tile(jb, lhs, rhs, post, t, n, s.lines), step=s.lines, name="line")
            if not (isinstance(dot.n, int) and dot.n % s.lines == 0):
                for_(ib, full, end, lambda jb, n: self.tile(jb, lhs, rhs, post, t, n, 1), name="line")

        shape = (dot.batch, ceildiv(dot.n, height))
        work = height * dot.m * dot.k // s.lanes if isinstance(dot.k, int) else height * dot.m * 32
        if product(shape) == 1:
            task(b, (b.index(0), b.index(0)))
        else:
            parallel(b, product(shape), lambda ib, x: task(ib, unravel(ib, x, shape)), grain=grain_of(work))

    def tile(
        self, b: Builder, lhs: OperandCode, rhs: OperandCode, post: PostCode, t: Value, n: Value, lines: int
    ) -> None:
        """The dot products of all rows with lines n, n + 1, ..."""
        dot, s = self.dot, self.schedule
        zero = b.const(0, dtype=dot.dtype)
        zeros = b.emit("splat", zero, lanes=s.lanes)[0]
        pairs = [(r, c) for c in range(lines) for r in range(s.rows)]
        row, line = [b.index(r) for r in range(s.rows)], [plus(b, n, c) for c in range(lines)]

        def step(ib: Builder, k: Value, *acc: Value) -> list[Value]:
            out = list(acc)
            for u in range(s.unroll):
                at = plus(ib, k, u * s.lanes)
                xs = [lhs.vector(ib, t, r, at, s.lanes) for r in row]
                for c in range(lines):
                    y = rhs.vector(ib, t, line[c], at, s.lanes)
                    for r in range(s.rows):
                        i = (c * s.rows + r) * s.unroll + u
                        out[i] = ib.fma(xs[r], y, out[i]) if self.fma else ib.add(ib.mul(xs[r], y), out[i])
            return out

        end: Size = whole(b, dot.k, s.lanes * s.unroll)
        start = [zeros] * (len(pairs) * s.unroll)
        acc = for_(b, 0, end, step, start, step=s.lanes * s.unroll, name="k", vectorize=False)
        sums: list[Value] = []
        for i in range(len(pairs)):
            x = acc[i * s.unroll]
            for u in range(1, s.unroll):
                x = b.add(x, acc[i * s.unroll + u])
            sums.append(b.emit("reduce_lanes", x, op="add")[0])

        def single(ib: Builder, k: Value, *acc: Value) -> list[Value]:
            xs = [lhs.at(ib, t, r, k) for r in row]
            ys = [rhs.at(ib, t, c, k) for c in line]
            return [
                ib.fma(xs[r], ys[c], x) if self.fma else ib.add(ib.mul(xs[r], ys[c]), x)
                for (r, c), x in zip(pairs, acc, strict=True)
            ]

        if not (isinstance(dot.k, int) and dot.k % (s.lanes * s.unroll) == 0):
            sums = list(for_(b, end, dot.k, single, sums, name="k", vectorize=False))
        for (r, c), x in zip(pairs, sums, strict=True):
            post.store(b, x, dot.post_index(b, t, row[r], line[c]), line[c])


__all__ = ["GemvSchedule", "gemv", "turned"]
