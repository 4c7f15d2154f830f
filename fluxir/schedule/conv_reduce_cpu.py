"""The convolution template for windows larger than the result: what the gradient of a convolution's weight is.

There the contracted index runs over a batch and over places (tens of thousands), and the result has a few places only, too
few for lanes. So the lanes are output channels: the window operand is packed into panels of `vectors` x `lanes` of them, and
the register tile is one panel by all places of the result (or one row of them) for `channels` images. A task owns some images
("images" are the input channels of the convolution whose weight this is): it copies the rows it reads, padded, into a buffer on
its stack, and keeps its results there until all contracted channels are added, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, ceildiv
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType
from fluxir.ops.nest import accumulator, cast
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_space import Axis, axes_of
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import for_, if_, kernel, memory, nest, parallel, unravel
from fluxir.schedule.matmul_pack import lanes_of, pieces, transposed
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

BUFFER = 96 * 1024  # bytes of stack for a task's rows, and as many for its results
TASKS = 12  # tasks wanted, where there are as many images
CHUNK = 1024  # contracted elements that a task of the packing copies


@dataclass(frozen=True)
class ConvReduceSchedule(Schedule):
    """`places` x `channels` broadcast by `vectors` x `lanes`: the register tile. `images`: of a task. `rows`: of the window, in
    the buffer at a time."""

    places: int
    channels: int
    vectors: int
    lanes: int
    images: int
    rows: int


@dataclass(frozen=True, eq=False)
class _Conv:
    """A conv of which only the contracted channels may be a symbol, as two spatial axes."""

    op: Op
    images: int
    groups: int
    depth: Dim
    outputs: int
    axes: tuple[Axis, Axis]
    dtype: DType


def _read(op: Op) -> _Conv | None:
    x, w, y, groups = shape_of(op.operands[0]), shape_of(op.operands[1]), shape_of(op.result), op.attrs.groups
    known = (x[0], w[0], *x[2:], *w[2:], *y[2:])
    if len(x) > 4 or not all(isinstance(d, int) and d > 0 for d in known) or w[1] == 0:
        return None
    return _Conv(op, int(x[0]), groups, w[1], int(w[0]) // groups, axes_of(op)[1:], accumulator(op.result.type.dtype))


def _choose(c: _Conv, target: Any) -> ConvReduceSchedule | None:
    """The schedule; None where the result has many places, the channels do not fill lanes, or a row does not fit."""
    outer, line = c.axes
    lanes, registers = target.lanes(c.dtype.bits), target.vector_registers
    # Where the result has about as many places as the window, the template `conv` is as good, but it must know the depth.
    window, factor = outer.window * line.window, 2 if isinstance(c.depth, int) else 1
    if c.outputs < lanes // 2 or lanes < 2 or outer.out * line.out * factor > window:
        return None
    most = 12 if registers >= 32 else 9
    places = outer.out * line.out if outer.out * line.out <= most else line.out
    if places > most:
        return None
    channels = max(1, min(most // places, c.images))
    fitting = [v for v in (1, 2, 3, 4) if places * channels * v + v + 1 <= registers]
    vectors = min(fitting, key=lambda v: (-(-c.outputs // (v * lanes)) * (v + 0.4), -v))
    size = c.dtype.itemsize
    images = channels
    while images * 2 <= c.images and c.groups * -(-c.images // (images * 2)) >= TASKS:
        images *= 2
    padded = -(-c.outputs // (vectors * lanes)) * vectors * lanes
    while images > channels and images * outer.out * line.out * padded * size > BUFFER:
        images //= 2
    rows = outer.window
    while rows > 1 and (outer.window % rows or images * _lines(c, rows) * _columns(c) * size > BUFFER):
        rows -= 1
    if images * size * max(_lines(c, rows) * _columns(c), outer.out * line.out * padded) > BUFFER:
        return None
    return ConvReduceSchedule(places, channels, vectors, lanes, images, rows)


def _lines(c: _Conv, rows: int) -> int:
    a = c.axes[0]
    return (rows - 1) * a.step + (a.out - 1) * a.stride + 1


def _columns(c: _Conv) -> int:
    a = c.axes[1]
    return (a.window - 1) * a.step + (a.out - 1) * a.stride + 1


@template("conv_reduce", target="cpu", anchors=("conv",), priority=25)
def conv_reduce(group: Group, target: Any) -> Kernels | None:
    """One convolution whose window is larger than its result (a weight's gradient), with what follows it."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or any(v not in group.args for v in ops[0].operands):
        return None
    numbers = _read(ops[0])
    schedule = None if numbers is None else _choose(numbers, target)
    after = follows_exactly(group, ops[0].result, list(range(len(shape_of(ops[0].result)))))
    if numbers is None or schedule is None or after is None:
        return None
    post, _, axes = after
    return _Reduce(group, numbers, schedule, post, axes, numbers.dtype.is_float and target.has("fma")).kernels()


class _Reduce:
    """The kernels: the window operand into panels, then the images."""

    def __init__(
        self, group: Group, conv: _Conv, schedule: ConvReduceSchedule, post: Group, axes: list[int], fma: bool
    ) -> None:
        self.group, self.conv, self.schedule, self.post, self.axes, self.fma = group, conv, schedule, post, axes, fma
        s, (outer, line) = schedule, conv.axes
        self.width = s.vectors * s.lanes
        self.panels = -(-conv.outputs // self.width)
        self.window = outer.window * line.window
        self.packed = MemType(conv.dtype, (conv.groups * self.panels, conv.depth * self.window, self.width))
        self.whole = s.places == outer.out * line.out  # the tile holds all places, not one row of them

    def kernels(self) -> Kernels:
        group = self.group
        inputs = [memory(a.type) for a in group.args]
        outs = [MemType(v.type.dtype, shape_of(v)) for v in self.post.outs]
        names = [a.name for a in group.args]
        how: dict[str, Any] = {"schedule": self.schedule, "loc": group.loc}
        pack = kernel(f"{group.name}_pack_window", inputs, [self.packed], self.pack, names=names, **how)
        given = [*inputs, self.packed, *[memory(v.type) for v in group.outs]]
        main = kernel(group.name, [*inputs, self.packed], outs, self.body, names=[*names, "panels"], given=given, **how)
        refs: list[Ref] = [("input", i) for i in range(len(inputs))]
        results: list[Ref] = [("output", j) for j in range(len(outs))]
        steps = (Step(pack, (*refs, ("scratch", 0))), Step(main, (*refs, ("scratch", 0), *results), len(outs)))
        return Kernels(steps, (self.packed,))

    def pack(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        """The window operand as [group and panel, contracted index, output channel of the panel], zeros beyond the last."""
        conv, lanes, width = self.conv, self.schedule.lanes, self.width
        w = conv.op.operands[1]
        flat = MemType(w.type.dtype, (conv.groups * conv.outputs, conv.depth * self.window))
        source = b.emit("reinterpret", ins[self.group.args.index(w)], type=flat)[0]
        total = conv.depth * self.window
        chunks = ceildiv(total, CHUNK)

        def task(ib: Builder, t: Value) -> None:
            panel, chunk = unravel(ib, t, (conv.groups * self.panels, chunks))
            g, p = unravel(ib, panel, (conv.groups, self.panels))
            first = ib.mul(p, ib.index(width))
            row = ib.add(ib.mul(g, ib.index(conv.outputs)), first)
            lo = ib.mul(chunk, ib.index(CHUNK))
            hi = ib.minimum(ib.add(lo, ib.index(CHUNK)), ib.index(total))
            mid = ib.sub(hi, ib.fmod(ib.sub(hi, lo), ib.index(lanes)))

            def copied(c0: int, n: int) -> Any:
                def square(kb: Builder, k: Value) -> None:
                    xs = []
                    for i in range(n):
                        x = kb.emit("load", source, kb.add(row, kb.index(c0 + i)), k, lanes=lanes)[0]
                        xs.append(cast(kb, x, conv.dtype))
                    for j, x in enumerate(transposed(kb, xs + [xs[-1]] * (lanes - n))):
                        at = kb.add(k, kb.index(j))
                        for c, many in pieces(n, lanes):
                            part = x if many == lanes else lanes_of(kb, x, c, many)
                            kb.store(outs[0], part, panel, at, kb.index(c0 + c))

                def single(kb: Builder, k: Value) -> None:
                    for c in range(c0, c0 + n):
                        x = kb.emit("load", source, kb.add(row, kb.index(c)), k)[0]
                        kb.store(outs[0], cast(kb, x, conv.dtype), panel, k, kb.index(c))

                return square, single

            def squares(jb: Builder, there: int) -> None:
                for c0 in range(0, there, lanes):
                    square, single = copied(c0, min(lanes, there - c0))
                    for_(jb, lo, mid, square, step=lanes, vectorize=False)
                    for_(jb, mid, hi, single, vectorize=False)
                if there < width:
                    zero = jb.const(0, dtype=conv.dtype)

                    def clear(kb: Builder, k: Value) -> None:
                        for_(kb, there, width, lambda lb, c: lb.store(outs[0], zero, panel, k, c), vectorize=False)

                    for_(jb, lo, hi, clear, vectorize=False)

            rest = conv.outputs - (self.panels - 1) * width
            if rest == width:
                squares(ib, width)
            elif self.panels == 1:
                squares(ib, rest)
            else:
                last = ib.eq(p, ib.index(self.panels - 1))
                if_(ib, last, lambda jb: squares(jb, rest), lambda jb: squares(jb, width))

        parallel(b, conv.groups * self.panels * chunks, task)

    # ---- images
    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv, s = self.conv, self.schedule
        outer, line = conv.axes
        *arrays, panels = ins
        x = arrays[self.group.args.index(conv.op.operands[0])]
        seen = {}
        for arg, mem in zip(self.post.args, arrays):
            t = memory(arg.type)
            seen[arg] = mem if mem.type == t else b.emit("reinterpret", mem, type=t)[0]
        post = PostCode(self.post, seen, outs)
        blocks, blocks_of_rows = -(-conv.images // s.images), outer.window // s.rows
        kept = (s.images, self.panels, outer.out * line.out, self.width)

        def task(ib: Builder, t: Value) -> None:
            g, block = unravel(ib, t, (conv.groups, blocks))
            first = ib.mul(block, ib.index(s.images))
            buffer = ib.alloc(type=MemType(conv.dtype, (s.images, _lines(conv, s.rows), _columns(conv)), "local"))
            sums = ib.alloc(type=MemType(conv.dtype, kept, "local"))
            zero = ib.emit("splat", ib.const(0, dtype=conv.dtype), lanes=s.lanes)[0]

            def clear(jb: Builder, at: tuple[Value, ...]) -> None:
                for v in range(s.vectors):
                    jb.store(sums, zero, *at, jb.index(v * s.lanes))

            nest(ib, kept[:3], clear)

            def rows(jb: Builder, at: tuple[Value, ...]) -> None:
                n, r = at
                top = jb.mul(r, jb.index(s.rows))
                self.fill(jb, x, buffer, first, jb.add(jb.mul(g, jb.index(conv.depth)), n), top)
                k0 = jb.mul(jb.add(jb.mul(n, jb.index(outer.window)), top), jb.index(line.window))
                tiles = (-(-s.images // s.channels), 1 if self.whole else outer.out)

                def panel(kb: Builder, p: Value) -> None:
                    own = kb.add(kb.mul(g, kb.index(self.panels)), p)
                    nest(kb, tiles, lambda lb, at: self.tile(lb, buffer, panels, sums, own, p, at, k0))

                for_(jb, 0, self.panels, panel, name="panel", vectorize=False)

            nest(ib, (conv.depth, blocks_of_rows), rows)
            self.finish(ib, post, sums, g, first)

        parallel(b, conv.groups * blocks, task)

    def fill(self, b: Builder, x: Value, buffer: Value, first: Value, channel: Value, top: Value) -> None:
        """The rows that `rows` rows of the window read from `top` on, of all images of the task; zeros where there is none.
        Images beyond the last are the last again."""
        conv, s = self.conv, self.schedule
        outer, line = conv.axes
        columns = _columns(conv)
        plane = len(shape_of(conv.op.operands[0])) == 4

        def one(ib: Builder, at: tuple[Value, ...]) -> None:
            c, r = at
            image = ib.minimum(ib.add(first, c), ib.index(conv.images - 1))
            p = ib.sub(ib.add(ib.mul(top, ib.index(outer.step)), r), ib.index(outer.low))
            there, h = outer.source(ib, p)

            def read(jb: Builder, i: Value) -> Value:
                where = (image, channel, h, i) if plane else (image, channel, i)
                return cast(jb, jb.emit("load", x, *where)[0], conv.dtype)

            def nothing(jb: Builder, q: Value) -> None:
                jb.store(buffer, jb.const(0, dtype=conv.dtype), c, r, q)

            def copy(jb: Builder) -> None:
                if line.spread > 1:

                    def place(kb: Builder, q: Value) -> None:
                        exists, i = line.source(kb, kb.sub(q, kb.index(line.low)))
                        (v,) = if_(kb, exists, lambda lb: read(lb, i), lambda lb: lb.const(0, dtype=conv.dtype))
                        kb.store(buffer, v, c, r, q)

                    for_(jb, 0, columns, place, vectorize=False)
                    return
                lo = min(max(0, line.low), columns)
                hi = max(lo, min(columns, line.size + line.low))

                def element(kb: Builder, q: Value) -> None:
                    kb.store(buffer, read(kb, kb.sub(q, kb.index(line.low))), c, r, q)

                for start, end, what in ((0, lo, nothing), (lo, hi, element), (hi, columns, nothing)):
                    if start < end:
                        for_(jb, start, end, what)

            if_(ib, there, copy, lambda jb: for_(jb, 0, columns, nothing) and None)

        nest(b, (s.images, _lines(conv, s.rows)), one)

    def tile(
        self,
        b: Builder,
        buffer: Value,
        panels: Value,
        sums: Value,
        own: Value,
        p: Value,
        at: tuple[Value, ...],
        k0: Value,
    ) -> None:
        """One register tile: `channels` images by the places by a panel, over the rows in the buffer."""
        conv, s = self.conv, self.schedule
        outer, line = conv.axes
        block, row = at
        images = [
            b.minimum(b.add(b.mul(block, b.index(s.channels)), b.index(c)), b.index(s.images - 1))
            for c in range(s.channels)
        ]
        height = outer.out if self.whole else 1
        cells = [(c, i, j) for c in range(s.channels) for i in range(height) for j in range(line.out)]

        def kept(ib: Builder, c: int, i: int, j: int, v: int) -> tuple[Value, ...]:
            place = ib.add(ib.mul(ib.add(row, ib.index(i)), ib.index(line.out)), ib.index(j))
            return images[c], p, place, ib.index(v * s.lanes)

        start = [b.emit("load", sums, *kept(b, *cell, v), lanes=s.lanes)[0] for cell in cells for v in range(s.vectors)]

        def across(ib: Builder, r: Value, *acc: Value) -> Sequence[Value]:
            k1 = ib.add(k0, ib.mul(r, ib.index(line.window)))
            high = ib.mul(r, ib.index(outer.step))
            lines = [ib.add(high, ib.mul(ib.add(row, ib.index(i)), ib.index(outer.stride))) for i in range(height)]

            def step(jb: Builder, q: Value, *acc: Value) -> list[Value]:
                k = jb.add(k1, q)
                ws = [
                    jb.emit("load", panels, own, k, jb.index(v * s.lanes), lanes=s.lanes)[0] for v in range(s.vectors)
                ]
                left = jb.mul(q, jb.index(line.step))
                out: list[Value] = []
                for c, i, j in cells:
                    column = jb.add(left, jb.index(j * line.stride))
                    e = jb.emit("splat", jb.emit("load", buffer, images[c], lines[i], column)[0], lanes=s.lanes)[0]
                    for w in ws:
                        a = acc[len(out)]
                        out.append(jb.fma(w, e, a) if self.fma else jb.add(jb.mul(w, e), a))
                return out

            return for_(ib, 0, line.window, step, acc, name="q", vectorize=False)

        acc = for_(b, 0, s.rows, across, start, name="r", vectorize=False)
        for n, cell in enumerate(cells):
            for v in range(s.vectors):
                b.store(sums, acc[n * s.vectors + v], *kept(b, *cell, v))

    def finish(self, b: Builder, post: PostCode, sums: Value, g: Value, first: Value) -> None:
        """The sums of a task to the results, with what follows."""
        conv, s = self.conv, self.schedule
        outer, line = conv.axes
        plane = len(shape_of(conv.op.result)) == 4
        there = b.minimum(b.index(s.images), b.sub(b.index(conv.images), first))

        def image(ib: Builder, c: Value) -> None:
            def one(jb: Builder, at: tuple[Value, ...]) -> None:
                o, i, j = at
                place = jb.add(jb.mul(i, jb.index(line.out)), j)
                panel, r = unravel(jb, o, (self.panels, self.width))
                x = jb.emit("load", sums, c, panel, place, r)[0]
                channel = jb.add(jb.mul(g, jb.index(conv.outputs)), o)
                n = jb.add(first, c)
                full = (n, channel, i, j) if plane else (n, channel, j)
                post.store(jb, x, [full[k] for k in self.axes], j)

            nest(ib, (conv.outputs, outer.out, line.out), one)

        for_(b, 0, there, image, vectorize=False)


__all__ = ["ConvReduceSchedule", "conv_reduce"]
