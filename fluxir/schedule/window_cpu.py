"""The template for sliding windows (pooling) on CPUs: vectors of neighbouring results along the last axis.

Where the last axis is known, a row of results first combines the rows of input that its windows reach into one line on the
stack, with what changes nothing at both ends, and then the columns of each window in that line. Else, results whose window lies
inside the last axis are computed in vectors (a stride of two takes every other lane of two loads), in row-major order; those at
its ends, and what is left over, by the element rule. Windows along the other axes are cut to what exists, so padding is never
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, maximum, minimum, product
from fluxir.ir.types import MemType
from fluxir.ops.nest import accumulator, cast, combine, identity
from fluxir.ops.reduce import pairs, window_range
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import for_, grain_of, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.vectors import Lanes

LINE = 16384  # elements of a line on the stack, at most
UNROLL = 5  # places of a window along one axis whose code is written out


@dataclass(frozen=True)
class WindowSchedule(Schedule):
    """`lanes`: results computed at once along the last axis. `stride`: of that axis."""

    lanes: int
    stride: int
    window: str


@template("window", target="cpu", anchors=("reduce_window",), priority=20)
def window(group: Group, target: Any) -> Kernels | None:
    """One reduce_window with what follows it."""
    ops = [op for op in group.ops if op.name == "reduce_window"]
    if len(ops) != 1:
        return None
    (op,) = ops
    shape = shape_of(op.result)
    after = follows_exactly(group, op.result, list(range(len(shape))))
    if after is None or not shape or shape[-1] == 1:
        return None
    d = op.result.type.dtype
    lanes = target.lanes(max(16, (accumulator(d) if op.attrs.op in ("sum", "prod") else d).bits))
    while lanes > 2 and isinstance(shape[-1], int) and shape[-1] < lanes:
        lanes //= 2
    if isinstance(shape[-1], int) and shape[-1] < lanes:
        return None
    stride = op.attrs.strides[-1]
    schedule = WindowSchedule(lanes, stride, "x".join(map(str, op.attrs.window)))
    return _Windows(group, op, schedule, *after).kernels()


class _Windows:
    """The kernel of one reduce_window."""

    def __init__(
        self, group: Group, op: Op, schedule: WindowSchedule, post: Group, space: tuple[Dim, ...], axes: list[int]
    ) -> None:
        self.group, self.op, self.schedule, self.post, self.axes = group, op, schedule, post, axes
        self.shape, self.source = shape_of(op.result), shape_of(op.operands[0])
        self.padding = pairs("reduce_window", op.attrs.padding, len(self.shape))
        d = op.result.type.dtype
        self.wide = accumulator(d) if op.attrs.op in ("sum", "prod") else d

    def kernels(self) -> Kernels:
        group = self.group
        inputs = [memory(a.type) for a in group.args]
        outs = [MemType(v.type.dtype, shape_of(v)) for v in self.post.outs]
        made = kernel(
            group.name,
            inputs,
            outs,
            self.body,
            names=[a.name for a in group.args],
            schedule=self.schedule,
            loc=group.loc,
            given=[*inputs, *[memory(v.type) for v in group.outs]],
        )
        refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in range(len(outs))]]
        return Kernels((Step(made, tuple(refs), len(outs)),))

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        reads = dict(zip(self.group.args, ins))
        post = PostCode.of(b, self.post, ins, outs)
        outer = self.shape[:-1]
        row_work = self.shape[-1] * max(1, element_cost(self.group) // 4)

        def row(ib: Builder, at: tuple[Value, ...]) -> None:
            (self.row_in_two_steps if self.in_two_steps() else self.row)(ib, reads, post, at)

        if is_small(product(outer) * row_work) or product(outer) == 1:
            nest(b, outer, row)
        else:
            parallel(b, product(outer), lambda ib, t: row(ib, unravel(ib, t, outer)), grain=grain_of(row_work))

    def row(self, b: Builder, reads: dict[Value, Value], post: PostCode, at: tuple[Value, ...]) -> None:
        """All results along the last axis at outer index `at`."""
        a, last = self.op.attrs, len(self.shape) - 1
        n, lanes, stride = self.shape[-1], self.schedule.lanes, a.strides[-1]
        low, high = self.padding[last]
        reach = (a.window[last] - 1) * a.dilation[last] + 1
        first: Dim = minimum(-(-max(low, 0) // stride), n)
        end: Dim = n if high <= 0 else maximum(first, minimum(n, (self.source[last] + low - reach) // stride + 1))

        def single(ib: Builder, i: Value) -> None:
            x = Elements(ib, reads).at(self.op.result, (*at, i))
            post.store(ib, x, [(*at, i)[k] for k in self.axes], i)

        def several(ib: Builder, i: Value) -> None:
            x = self.vector(ib, reads, at, i)
            post.store(ib, x, [(*at, i)[k] for k in self.axes], i, lanes)

        lo, hi = b.index(first), b.index(end)
        middle = b.add(lo, b.mul(b.div(b.sub(hi, lo), b.index(lanes)), b.index(lanes)))
        if first != 0:
            for_(b, 0, lo, single, vectorize=False)
        for_(b, lo, middle, several, step=lanes, vectorize=False)
        for_(b, middle, n, single, vectorize=False)

    def in_two_steps(self) -> bool:
        """Whether rows go through a line on the stack."""
        last, lanes = self.source[-1], self.schedule.lanes
        known = isinstance(last, int) and isinstance(self.shape[-1], int) and lanes <= last <= LINE
        return known and 1 < self.op.attrs.window[-1] <= 2 * UNROLL and min(self.padding[-1]) >= 0

    def row_in_two_steps(self, b: Builder, reads: dict[Value, Value], post: PostCode, at: tuple[Value, ...]) -> None:
        """All results along the last axis at outer index `at`: rows of the window, then its columns."""
        a, lanes, (low, _) = self.op.attrs, self.schedule.lanes, self.padding[-1]
        width, n, stride, step = int(self.source[-1]), int(self.shape[-1]), a.strides[-1], a.dilation[-1]
        pitch = (n - 1) * stride + (a.window[-1] - 1) * step + 1
        # One vector more, since every other lane is taken of two whole ones.
        line = b.emit("alloc", type=MemType(self.wide, (max(pitch, low + width) + lanes,), "local"))[0]
        nothing = b.const(identity(a.op, self.op.result.type.dtype), dtype=self.wide)
        for lo, hi in ((0, low), (low + width, max(pitch, low + width) + lanes)):
            if lo < hi:
                for_(b, lo, hi, lambda ib, i: ib.store(line, nothing, i), vectorize=False)
        ranges = self.ranges(b, reads, at)

        def combined(ib: Builder, i: Value) -> None:
            j = ib.minimum(i, ib.index(width - lanes))

            def line_of(jb: Builder, where: tuple[Value, ...], acc: Value) -> Value:
                x = Lanes(Elements(jb, reads), j, lanes).vector(self.op.operands[0], (*where, j))
                return combine(jb, a.op, acc, cast(jb, x, self.wide))

            start = ib.emit("splat", nothing, lanes=lanes)[0]
            ib.store(line, self.along(ib, ranges, line_of, start), ib.add(j, ib.index(low)) if low else j)

        for_(b, 0, width, combined, step=lanes, vectorize=False)

        def several(ib: Builder, i: Value) -> None:
            i = ib.minimum(i, ib.index(n - lanes))
            first = ib.mul(i, ib.index(stride)) if stride != 1 else i
            total = self.columns(ib, line, first)
            for k in range(1, a.window[-1]):
                total = combine(ib, a.op, total, self.columns(ib, line, ib.add(first, ib.index(k * step))))
            post.store(ib, total, [(*at, i)[k] for k in self.axes], i, lanes)

        for_(b, 0, n, several, step=lanes, vectorize=False)

    def columns(self, b: Builder, line: Value, j: Value) -> Value:
        """Elements j, j + stride, ... of the line, as many as there are lanes."""
        lanes, stride = self.schedule.lanes, self.schedule.stride
        parts = [
            b.emit("load", line, b.add(j, b.index(k * lanes)), lanes=lanes)[0]
            for k in range(stride if stride < 3 else 0)
        ]
        if stride == 1:
            return parts[0]
        if stride == 2:
            return b.emit("shuffle", *parts, mask=tuple(range(0, 2 * lanes, 2)))[0]
        out = b.emit("splat", b.emit("load", line, j)[0], lanes=lanes)[0]
        for k in range(1, lanes):
            out = b.emit("insert", out, b.emit("load", line, b.add(j, b.index(k * stride)))[0], lane=k)[0]
        return out

    def ranges(self, b: Builder, reads: dict[Value, Value], at: tuple[Value, ...]) -> list[Any]:
        """What exists of the window along the outer axes: from, to, and the index at 0."""
        a, e = self.op.attrs, Elements(b, reads)
        return [
            window_range(e, p, b.index(self.source[k]), a.window[k], a.strides[k], self.padding[k], a.dilation[k])
            for k, p in enumerate(at)
        ]

    def along(self, b: Builder, ranges: Sequence[Any], line: Any, start: Value) -> Value:
        """`line(builder, outer index, total)` for each row of the window."""
        a = self.op.attrs

        def level(ib: Builder, axis: int, where: tuple[Value, ...], acc: Value) -> Value:
            if axis == len(ranges):
                result: Value = line(ib, where, acc)
                return result
            lo, hi, base = ranges[axis]
            w, d = a.window[axis], a.dilation[axis]
            if self.padding[axis][0] <= 0 and self.padding[axis][1] <= 0 and w <= UNROLL:
                for k in range(w):
                    acc = level(ib, axis + 1, (*where, base if k == 0 else ib.add(base, ib.index(k * d))), acc)
                return acc

            def step(jb: Builder, k: Value, c: Value) -> Value:
                return level(jb, axis + 1, (*where, jb.add(base, jb.mul(k, jb.index(d)))), c)

            return for_(ib, lo, hi, step, [acc], vectorize=False)[0]

        return level(b, 0, (), start)

    def vector(self, b: Builder, reads: dict[Value, Value], at: tuple[Value, ...], i: Value) -> Value:
        """Results i .. i+lanes, all of whose windows lie inside the last axis, in accumulator type."""
        a, last = self.op.attrs, len(self.shape) - 1
        ranges = self.ranges(b, reads, at)
        column = b.mul(i, b.index(a.strides[last])) if a.strides[last] != 1 else i
        if self.padding[last][0]:
            column = b.sub(column, b.index(self.padding[last][0]))
        start = b.emit(
            "splat", b.const(identity(a.op, self.op.result.type.dtype), dtype=self.wide), lanes=self.schedule.lanes
        )[0]

        def line(ib: Builder, where: tuple[Value, ...], acc: Value) -> Value:
            def place(jb: Builder, k: Value | int, total: Value) -> Value:
                step = jb.index(k * a.dilation[last]) if isinstance(k, int) else jb.mul(k, jb.index(a.dilation[last]))
                j = column if isinstance(k, int) and k == 0 else jb.add(column, step)
                return combine(jb, a.op, total, cast(jb, self.load(jb, reads, where, j), self.wide))

            if a.window[last] <= UNROLL:
                for k in range(a.window[last]):
                    acc = place(ib, k, acc)
                return acc
            return for_(ib, 0, a.window[last], lambda jb, k, c: place(jb, k, c), [acc], vectorize=False)[0]

        return self.along(b, ranges, line, start)

    def load(self, b: Builder, reads: dict[Value, Value], where: tuple[Value, ...], j: Value) -> Value:
        """Source elements at columns j, j+stride, ... (as many as there are lanes)."""
        x, lanes, stride = self.op.operands[0], self.schedule.lanes, self.schedule.stride
        e = Elements(b, reads)
        if stride == 1:
            return Lanes(e, j, lanes).vector(x, (*where, j))
        if stride == 2:
            # The second load overlaps the first by one, so that it ends at the last element that is needed.
            second = b.add(j, b.index(lanes - 1))
            p, q = Lanes(e, j, lanes).vector(x, (*where, j)), Lanes(e, second, lanes).vector(x, (*where, second))
            mask = tuple(2 * k if 2 * k < lanes else lanes + 2 * k - (lanes - 1) for k in range(lanes))
            return b.emit("shuffle", p, q, mask=mask)[0]
        out = b.emit("splat", e.at(x, (*where, j)), lanes=lanes)[0]
        for k in range(1, lanes):
            out = b.emit("insert", out, e.at(x, (*where, b.add(j, b.index(k * stride)))), lane=k)[0]
        return out


__all__ = ["WindowSchedule", "window"]
