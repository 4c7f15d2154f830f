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
from fluxir.ir.dims import Dim, ceildiv, product
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
PANEL = 20 * 1024  # bytes of a panel that stay in the first cache
TASKS = 12  # tasks wanted, where there are as many images and panels
IMAGES = 32  # images of a task, at most
CHUNK = 1024  # contracted elements that a task of the packing copies


@dataclass(frozen=True)
class ConvReduceSchedule(Schedule):
    """`places` x `channels` broadcast by `vectors` x `lanes`: the register tile. `images`, `panels`: of a task. `rows` of the
    window for `depth` contracted channels are in the buffer at a time."""

    places: int
    channels: int
    vectors: int
    lanes: int
    images: int
    panels: int
    rows: int
    depth: int


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
    tile = _tile(c, lanes, registers)
    if tile is None:
        return None
    places, channels, vectors = tile
    size, width = c.dtype.itemsize, vectors * lanes
    total = -(-c.outputs // width)
    line_bytes = line.window * width * size
    most = min(outer.window, max(1, PANEL // line_bytes))
    rows = max(r for r in range(1, most + 1) if outer.window % r == 0)
    while rows > 1 and (outer.window % rows or channels * _lines(c, rows) * _columns(c) * size > BUFFER):
        rows -= 1
    depth = max(1, min(16, PANEL // (rows * line_bytes))) if rows == outer.window else 1
    depth = min(depth, c.depth) if isinstance(c.depth, int) else depth
    one = _lines(c, rows) * _columns(c) * size
    while depth > 1 and channels * depth * one > BUFFER // 2:
        depth //= 2
    if channels * one > BUFFER:
        return None
    sums = outer.out * line.out * width * size
    images, panels = channels, max(1, min(total, BUFFER // max(1, channels * sums)))
    while images * 2 <= min(c.images, IMAGES) and images * 2 * max(depth * one, sums) <= BUFFER:
        images *= 2
    panels = min(panels, max(1, BUFFER // (images * sums)))
    if images * sums > BUFFER:
        return None
    while c.groups * -(-c.images // images) * -(-total // panels) < TASKS and (panels > 1 or images > channels):
        panels, images = (-(-panels // 2), images) if panels > 1 else (1, images // 2)
    return ConvReduceSchedule(places, channels, vectors, lanes, images, panels, rows, depth)


def _tile(c: _Conv, lanes: int, registers: int) -> tuple[int, int, int] | None:
    """Places, images and vectors of the register tile with the least work, where a step costs its multiplications, its loads or
    the time until the sums can be used again."""
    _, (outer, line) = c, c.axes
    best: tuple[float, tuple[int, int, int]] | None = None
    for places in {outer.out * line.out, line.out}:
        for vectors in (1, 2, 3, 4):
            for channels in range(1, min(c.images, 8) + 1):
                sums = places * channels * vectors
                if sums + vectors + 1 > registers or (vectors > 1 and c.outputs <= (vectors - 1) * lanes):
                    continue
                tiles = -(-c.images // channels) * -(-c.outputs // (vectors * lanes)) * (outer.out * line.out // places)
                cost = tiles * (max(sums / 2, (places * channels + vectors) / 2, 4) + 0.25)
                if best is None or cost < best[0]:
                    best = cost, (places, channels, vectors)
    return None if best is None else best[1]


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
        post = PostCode.of(b, self.post, arrays, outs)
        blocks, blocks_of_rows = -(-conv.images // s.images), outer.window // s.rows
        kept = (s.images, s.panels, outer.out * line.out, self.width)
        shape = (conv.groups, blocks, -(-self.panels // s.panels))

        def task(ib: Builder, t: Value) -> None:
            g, block, part = unravel(ib, t, shape)
            first, first_panel = ib.mul(block, ib.index(s.images)), ib.mul(part, ib.index(s.panels))
            panels_there = ib.minimum(ib.index(s.panels), ib.sub(ib.index(self.panels), first_panel))
            patch = (s.images, s.depth, _lines(conv, s.rows), _columns(conv))
            buffer = ib.alloc(type=MemType(conv.dtype, patch, "local"))
            sums = ib.alloc(type=MemType(conv.dtype, kept, "local"))
            zero = ib.emit("splat", ib.const(0, dtype=conv.dtype), lanes=s.lanes)[0]

            def clear(jb: Builder, at: tuple[Value, ...]) -> None:
                for v in range(s.vectors):
                    jb.store(sums, zero, *at, jb.index(v * s.lanes))

            nest(ib, kept[:3], clear)

            def rows(jb: Builder, at: tuple[Value, ...]) -> None:
                block, r = at
                n, top = jb.mul(block, jb.index(s.depth)), jb.mul(r, jb.index(s.rows))
                there = jb.minimum(jb.index(s.depth), jb.sub(jb.index(conv.depth), n))
                self.fill(jb, x, buffer, first, jb.add(jb.mul(g, jb.index(conv.depth)), n), there, top)
                k0 = jb.mul(jb.add(jb.mul(n, jb.index(outer.window)), top), jb.index(line.window))
                tiles = (-(-s.images // s.channels), 1 if self.whole else outer.out)

                def panel(kb: Builder, p: Value) -> None:
                    own = kb.add(kb.add(kb.mul(g, kb.index(self.panels)), first_panel), p)
                    nest(kb, tiles, lambda lb, at: self.tile(lb, buffer, panels, sums, own, p, at, k0, there))

                for_(jb, 0, panels_there, panel, name="panel", vectorize=False)

            nest(ib, (ceildiv(conv.depth, s.depth), blocks_of_rows), rows)
            self.finish(ib, post, sums, g, first, first_panel, panels_there)

        parallel(b, product(shape), task)

    def fill(self, b: Builder, x: Value, buffer: Value, first: Value, channel: Value, there: Value, top: Value) -> None:
        """The rows that `rows` rows of the window read from `top` on, of all images of the task and `there` contracted channels
        from `channel` on; zeros where there is none. Images beyond the last are the last again."""
        conv, s = self.conv, self.schedule
        outer, line = conv.axes
        columns = _columns(conv)
        plane = len(shape_of(conv.op.operands[0])) == 4

        def one(ib: Builder, at: tuple[Value, ...]) -> None:
            c, k, r = at
            image = ib.minimum(ib.add(first, c), ib.index(conv.images - 1))
            own = ib.add(channel, k)
            p = ib.sub(ib.add(ib.mul(top, ib.index(outer.step)), r), ib.index(outer.low))
            exists, h = outer.source(ib, p)

            def read(jb: Builder, i: Value) -> Value:
                where = (image, own, h, i) if plane else (image, own, i)
                return cast(jb, jb.emit("load", x, *where)[0], conv.dtype)

            def nothing(jb: Builder, q: Value) -> None:
                jb.store(buffer, jb.const(0, dtype=conv.dtype), c, k, r, q)

            def copy(jb: Builder) -> None:
                if line.spread > 1:

                    def place(kb: Builder, q: Value) -> None:
                        inside, i = line.source(kb, kb.sub(q, kb.index(line.low)))
                        (v,) = if_(kb, inside, lambda lb: read(lb, i), lambda lb: lb.const(0, dtype=conv.dtype))
                        kb.store(buffer, v, c, k, r, q)

                    for_(jb, 0, columns, place, vectorize=False)
                    return
                lo = min(max(0, line.low), columns)
                hi = max(lo, min(columns, line.size + line.low))

                def element(kb: Builder, q: Value) -> None:
                    kb.store(buffer, read(kb, kb.sub(q, kb.index(line.low))), c, k, r, q)

                for start, end, what in ((0, lo, nothing), (lo, hi, element), (hi, columns, nothing)):
                    if start < end:
                        for_(jb, start, end, what)

            if_(ib, exists, copy, lambda jb: for_(jb, 0, columns, nothing) and None)

        def image(ib: Builder, c: Value) -> None:
            for_(ib, 0, there, lambda jb, k: nest(jb, (_lines(conv, s.rows),), one, at=(c, k)))

        for_(b, 0, s.images, image)

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
        there: Value,
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

        def across(ib: Builder, at: tuple[Value, ...], *acc: Value) -> Sequence[Value]:
            d, r = at
            k1 = ib.add(k0, ib.mul(ib.add(ib.mul(d, ib.index(outer.window)), r), ib.index(line.window)))
            high = ib.mul(r, ib.index(outer.step))
            lines = [ib.add(high, ib.mul(ib.add(row, ib.index(i)), ib.index(outer.stride))) for i in range(height)]

            # One column a round: LLVM would keep what neighbouring columns share in registers, and sums on the stack.
            def step(jb: Builder, q: Value, *acc: Value) -> list[Value]:
                at = (own, jb.add(k1, q))
                ws = [jb.emit("load", panels, *at, jb.index(v * s.lanes), lanes=s.lanes)[0] for v in range(s.vectors)]
                left, out = jb.mul(q, jb.index(line.step)), list[Value]()
                for c, i, j in cells:
                    x = jb.emit("load", buffer, images[c], d, lines[i], jb.add(left, jb.index(j * line.stride)))[0]
                    e = jb.emit("splat", x, lanes=s.lanes)[0]
                    for w in ws:
                        a = acc[len(out)]
                        out.append(jb.fma(w, e, a) if self.fma else jb.add(jb.mul(w, e), a))
                return out

            return for_(ib, 0, line.window, step, acc, name="q", vectorize=False)

        def channel(ib: Builder, d: Value, *acc: Value) -> Sequence[Value]:
            return nest(ib, (s.rows,), across, acc, at=(d,))

        acc = for_(b, 0, there, channel, start, name="d", vectorize=False)
        for n, cell in enumerate(cells):
            for v in range(s.vectors):
                b.store(sums, acc[n * s.vectors + v], *kept(b, *cell, v))

    def finish(
        self, b: Builder, post: PostCode, sums: Value, g: Value, first: Value, first_panel: Value, panels: Value
    ) -> None:
        """The sums of a task to the results, with what follows."""
        conv, s = self.conv, self.schedule
        outer, line = conv.axes
        plane = len(shape_of(conv.op.result)) == 4
        there = b.minimum(b.index(s.images), b.sub(b.index(conv.images), first))
        begin = b.mul(first_panel, b.index(self.width))
        count = b.minimum(b.mul(panels, b.index(self.width)), b.sub(b.index(conv.outputs), begin))

        def output(ib: Builder, c: Value, o: Value) -> None:
            def one(jb: Builder, i: Value, j: Value) -> None:
                place = jb.add(jb.mul(i, jb.index(line.out)), j)
                panel, r = unravel(jb, o, (s.panels, self.width))
                x = jb.emit("load", sums, c, panel, place, r)[0]
                channel = jb.add(jb.add(jb.mul(g, jb.index(conv.outputs)), begin), o)
                n = jb.add(first, c)
                full = (n, channel, i, j) if plane else (n, channel, j)
                post.store(jb, x, [full[k] for k in self.axes], j)

            def row(jb: Builder, i: Value) -> None:
                for_(jb, 0, line.out, lambda kb, j: one(kb, i, j), vectorize=False)

            for_(ib, 0, outer.out, row, vectorize=False)

        def image(ib: Builder, c: Value) -> None:
            for_(ib, 0, count, lambda jb, o: output(jb, c, o), vectorize=False)

        for_(b, 0, there, image, vectorize=False)


__all__ = ["ConvReduceSchedule", "conv_reduce"]
