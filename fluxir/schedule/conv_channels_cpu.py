"""The convolution template for CPUs whose lanes are output channels.

A task computes a block of output places for some tiles of output channels. It copies what it reads into a patch with the
channels innermost (see conv_patch.py). A register tile is `pixels` places by `vectors` vectors of output channels; its inner
loop runs over neighbouring elements of the patch (the columns of a window row times a block of channels), a scalar of each
place by a line of the packed weights, so that neither reads across a cache line nor knows about strides, edges or dilation.
Channels come in blocks whose weights stay in the first cache while all places of the task pass by; partial sums are kept on
the stack. In the end the sums are transposed in squares, and what follows is computed on vectors of neighbouring places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import MemType
from fluxir.ops.nest import cast
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_finish import Finish
from fluxir.schedule.conv_patch import Patch, Place, starts_of
from fluxir.schedule.conv_schedule import ConvChannelsSchedule, choose, searched
from fluxir.schedule.conv_space import Conv, read_conv
from fluxir.schedule.group import Array, Group, shape_of
from fluxir.schedule.loops import for_, grain_of, if_, index, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.matmul_pack import transposed
from fluxir.schedule.templates import Kernels, Ref, Step, template

UNROLL = 8  # steps of the inner loop that are written out, at most


@template("conv_channels", target="cpu", anchors=("conv",), priority=22)
def conv_channels(group: Group, target: Any) -> Kernels | None:
    """One convolution in one to three dimensions with what follows it; output channels are the lanes."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or any(v not in group.args for v in ops[0].operands):
        return None
    numbers = read_conv(ops[0])
    if numbers is None or numbers.batch == 0:
        return None
    after = follows_exactly(group, ops[0].result, [0, 1, *[2] * numbers.space])
    numbers = numbers.joined()
    found = choose(numbers, target)
    if found is None or after is None:
        return None
    schedule = searched(group, numbers, target, found[1])
    return Channels(group, numbers, schedule, after, numbers.dtype.is_float and target.has("fma")).kernels()


class Channels:
    """The kernels of one convolution: weights into panels, then the images."""

    def __init__(
        self,
        group: Group,
        conv: Conv,
        schedule: ConvChannelsSchedule,
        after: tuple[Group, tuple[Dim, ...], list[int]],
        fma: bool,
    ) -> None:
        self.group, self.conv, self.schedule, self.fma = group, conv, schedule, fma
        self.post, self.post_space, self.kept = after
        s = schedule
        self.patch = Patch(conv, s.lanes, s.images, s.rows, s.columns, s.depth)
        self.width = s.vectors * s.lanes
        self.panels = -(-conv.outputs // self.width)
        self.slots = conv.window  # weights of a channel, for one output
        self.steps = self.patch.blocks * self.slots * s.depth  # of the inner loop, for one tile
        self.packed = MemType(conv.dtype, (conv.groups * self.panels, self.steps, self.width))
        self.pixel_tiles = -(-self.patch.places // s.pixels)

    def kernels(self) -> Kernels:
        group = self.group
        inputs = [memory(a.type) for a in group.args]
        outs = [MemType(v.type.dtype, shape_of(v)) for v in self.post.outs]
        names = [a.name for a in group.args]
        how: dict[str, Any] = {"schedule": self.schedule, "loc": group.loc}
        w = group.args.index(self.conv.op.operands[1])
        pack = kernel(f"{group.name}_pack_weights", [inputs[w]], [self.packed], self.pack, names=[names[w]], **how)
        given = [*inputs, self.packed, *[memory(v.type) for v in group.outs]]
        main = kernel(
            group.name, [*inputs, self.packed], outs, self.body, names=[*names, "weights"], given=given, **how
        )
        refs: list[Ref] = [("input", i) for i in range(len(inputs))]
        results: list[Ref] = [("output", j) for j in range(len(outs))]
        steps = (
            Step(pack, (("input", w), ("scratch", 0)), fold=self.pack_array),
            Step(main, (*refs, ("scratch", 0), *results), len(outs)),
        )
        return Kernels(steps, (self.packed,))

    def finish(self, post: PostCode, sums: Value) -> Finish:
        s = self.schedule
        block, beyond = (s.images, s.rows, s.columns), self.last_row + s.rows - self.conv.axes[1].out
        return Finish(self.conv, post, sums, block, self.width, s.lanes, self.post_space, self.kept, beyond)

    @property
    def last_row(self) -> int:
        """Where the last block of rows begins. What it shares with the block before is computed by both, to the same bits."""
        return self.conv.axes[1].out - self.schedule.rows

    # ---- weights: [group and panel, block of channels and window and channel, output channel], zeros beyond the last
    def pack(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv, s, blocks = self.conv, self.schedule, self.patch.blocks
        w = self.conv.op.operands[1]
        flat = MemType(w.type.dtype, (conv.groups * conv.outputs, conv.channels, conv.window))
        source = b.emit("reinterpret", ins[0], type=flat)[0]
        shape = (conv.groups * self.panels, blocks, self.slots, s.depth, self.width)
        target = b.emit("reinterpret", outs[0], type=MemType(conv.dtype, shape))[0]
        rest = conv.outputs - (self.panels - 1) * self.width

        def task(ib: Builder, t: Value) -> None:
            panel, block = unravel(ib, t, (conv.groups * self.panels, blocks))
            g, p = unravel(ib, panel, (conv.groups, self.panels))
            row = ib.add(ib.mul(g, ib.index(conv.outputs)), ib.mul(p, ib.index(self.width)))
            first = ib.mul(block, ib.index(s.depth))

            def whole(jb: Builder, there: int) -> None:
                self._pack_rows(jb, source, target, panel, block, row, first, there)

            if rest == self.width or self.panels == 1:
                whole(ib, rest)
            else:
                last = ib.eq(p, ib.index(self.panels - 1))
                if_(ib, last, lambda jb: whole(jb, rest), lambda jb: whole(jb, self.width))

        parallel(b, conv.groups * self.panels * blocks, task, grain=grain_of(s.depth * conv.window * self.width))

    def _pack_rows(
        self, b: Builder, source: Value, target: Value, panel: Value, block: Value, row: Value, first: Value, there: int
    ) -> None:
        """One block of channels of `there` output channels, by squares along the window (the channels, if that is one place)."""
        conv, s, lanes = self.conv, self.schedule, self.schedule.lanes
        ragged = conv.channels % s.depth != 0
        end = b.minimum(b.index(s.depth), b.sub(b.index(conv.channels), first)) if ragged else b.index(s.depth)
        zero, none = b.index(0), b.emit("splat", b.const(0, dtype=conv.dtype), lanes=lanes)[0]
        if conv.window == 1:
            flat = MemType(source.type.dtype, (conv.groups * conv.outputs, 1, conv.channels))
            source = b.emit("reinterpret", source, type=flat)[0]

        def strip(ib: Builder, c: Value, k: Value, many: int) -> None:
            """`many` neighbours (channels, or places of the window) from channel c, place k on."""
            at = (zero, ib.add(first, c)) if conv.window == 1 else (ib.add(first, c), k)
            for o in range(0, self.width, lanes):
                xs = []
                for i in range(max(0, min(lanes, there - o))):
                    x = ib.emit("load", source, ib.add(row, ib.index(o + i)), *at, lanes=0 if many == 1 else many)[0]
                    xs.append(cast(ib, x, conv.dtype))
                vs = [gathered(ib, xs, none)] if many == 1 else transposed(ib, xs + [none] * (lanes - len(xs)))
                for j, v in enumerate(vs):
                    to = (k, ib.add(c, ib.index(j))) if conv.window == 1 else (ib.add(k, ib.index(j)), c)
                    ib.store(target, v, panel, block, *to, ib.index(o))

        def run(ib: Builder, size: Value, body: Callable[[Builder, Value, int], None]) -> None:
            middle = ib.sub(size, ib.fmod(size, ib.index(lanes)))
            for_(ib, 0, middle, lambda jb, i: body(jb, i, lanes), step=lanes, vectorize=False)
            for_(ib, middle, size, lambda jb, i: body(jb, i, 1), vectorize=False)

        if conv.window == 1:
            run(b, end, lambda ib, c, many: strip(ib, c, zero, many))
        else:

            def channel(ib: Builder, c: Value) -> None:
                run(ib, ib.index(conv.window), lambda jb, k, many: strip(jb, c, k, many))

            for_(b, 0, end, channel, vectorize=False)
        if ragged:

            def clear(ib: Builder, at: tuple[Value, ...]) -> None:
                k, v = at
                o = ib.mul(v, ib.index(lanes))
                for_(ib, end, s.depth, lambda jb, c: jb.store(target, none, panel, block, k, c, o), vectorize=False)

            nest(b, (conv.window, s.vectors), clear)

    def pack_array(self, w: Array) -> Array:
        """What `pack` does, for constant weights."""
        conv, s, blocks = self.conv, self.schedule, self.patch.blocks
        flat = np.asarray(w).reshape(conv.groups, conv.outputs, conv.channels, conv.window)
        padded = np.zeros((conv.groups, self.panels * self.width, blocks * s.depth, conv.window), conv.dtype.numpy)
        padded[:, : conv.outputs, : conv.channels] = flat
        parts = padded.reshape(conv.groups * self.panels, self.width, blocks, s.depth, conv.window)
        return np.ascontiguousarray(parts.transpose(0, 2, 4, 3, 1)).reshape(-1, self.steps, self.width)

    # ---- images
    def image(self, b: Builder, arrays: Sequence[Value]) -> Value:
        """The convolution's input as [batch, channels, size...], of the axes it has once some are joined."""
        conv = self.conv
        x = arrays[self.group.args.index(conv.op.operands[0])]
        channels = shape_of(conv.op.operands[0])[1]
        sizes = (conv.batch, channels, *[a.size for a in conv.axes[3 - conv.space :]])
        return b.emit("reinterpret", x, type=MemType(x.type.dtype, sizes))[0]

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv, s, patch = self.conv, self.schedule, self.patch
        deep, outer, line = conv.axes
        *arrays, weights = ins
        x = self.image(b, arrays)
        post = PostCode.of(b, self.post, arrays, outs)
        row_blocks, column_blocks = len(starts_of(outer.out, s.rows)), len(starts_of(line.out, s.columns))
        tasks = (
            ceildiv(conv.batch, s.images),
            conv.groups,
            deep.out,
            row_blocks,
            column_blocks,
            -(-self.panels // s.tiles),
        )
        work = patch.places * s.tiles * s.vectors * conv.channels * conv.window

        def task(ib: Builder, at: tuple[Value, ...]) -> None:
            n, g, d, r, c, o = at
            row = ib.minimum(ib.mul(r, ib.index(s.rows)), ib.index(self.last_row))
            column = ib.minimum(ib.mul(c, ib.index(s.columns)), ib.index(line.out - s.columns))
            place = Place(ib.mul(n, ib.index(s.images)), g, d, row, column)
            self.task(ib, x, weights, post, place, ib.mul(o, ib.index(s.tiles)))

        if is_small(product(tasks) * work) or product(tasks) == 1:
            nest(b, tasks, task)
        else:
            parallel(b, product(tasks), lambda ib, t: task(ib, unravel(ib, t, tasks)), grain=grain_of(work))

    def task(self, b: Builder, x: Value, weights: Value, post: PostCode, at: Place, first: Value) -> None:
        """The places of a task, for its tiles of output channels from `first` on."""
        conv, s, patch = self.conv, self.schedule, self.patch
        buffer = b.alloc(type=patch.memory)
        padded = self.pixel_tiles * s.pixels
        sums = b.alloc(type=MemType(conv.dtype, (max(padded, patch.places + s.lanes), self.width), "local"))
        patch.fill(b, x, buffer, at)
        table = self.table(b)
        count = b.minimum(b.index(s.tiles), b.sub(b.index(self.panels), first))

        def tile(ib: Builder, t: Value) -> None:
            own = ib.add(first, t)
            panel = ib.add(ib.mul(at.group, ib.index(self.panels)), own)

            def part(jb: Builder, where: tuple[Value, ...]) -> None:
                self.pixels(jb, buffer, table, weights, sums, panel, *where)

            nest(ib, (patch.blocks, self.pixel_tiles), part)
            self.finish(post, sums).emit(ib, at, ib.mul(own, ib.index(self.width)))

        for_(b, 0, count, tile, vectorize=False)

    def table(self, b: Builder) -> Value:
        """The element of the patch where the window of each place begins."""
        count = self.pixel_tiles * self.schedule.pixels
        table = b.emit("alloc", type=MemType(DTYPES["i64"], (count,), "local"))[0]

        def note(ib: Builder, p: Value) -> None:
            ib.store(table, self.patch.offset_of(ib, ib.minimum(p, ib.index(self.patch.places - 1))), p)

        for_(b, 0, count, note, vectorize=False)
        return table

    def pixels(
        self, b: Builder, buffer: Value, table: Value, weights: Value, sums: Value, panel: Value, block: Value, t: Value
    ) -> None:
        """One register tile over one block of channels."""
        conv, s, patch = self.conv, self.schedule, self.patch
        p0 = b.mul(t, b.index(s.pixels))
        places = [b.add(p0, b.index(i)) for i in range(s.pixels)]
        start = b.mul(block, index(b, patch.block_size))
        bases = [b.add(start, b.emit("load", table, p)[0]) for p in places]
        zero = b.emit("splat", b.const(0, dtype=conv.dtype), lanes=s.lanes)[0]
        cells = [(p, b.index(v * s.lanes)) for p in places for v in range(s.vectors)]
        acc: Sequence[Value] = [zero] * len(cells)
        if patch.blocks > 1:

            def before(ib: Builder) -> list[Value]:
                return [ib.emit("load", sums, *cell, lanes=s.lanes)[0] for cell in cells]

            acc = if_(b, b.eq(block, b.index(0)), lambda ib: acc, before)
        k0 = b.mul(block, b.index(conv.window * s.depth))
        acc = window_steps(
            b, patch, lambda ib, k, at, c: self.steps_of(ib, buffer, weights, panel, bases, k0, k, at, c), acc
        )
        for cell, v in zip(cells, acc):
            b.store(sums, v, *cell)

    def steps_of(
        self,
        b: Builder,
        buffer: Value,
        weights: Value,
        panel: Value,
        bases: Sequence[Value],
        k0: Value,
        k: Value,
        run: tuple[Value, int],
        acc: Sequence[Value],
    ) -> Sequence[Value]:
        """The inner loop: `length` neighbouring elements of the patch from `offset` on by the weights from `k0 + k` on."""
        s = self.schedule
        offset, length = run
        bases = [b.add(base, offset) for base in bases]
        first = b.add(k0, k)
        unroll = max(u for u in range(1, UNROLL + 1) if length % u == 0)

        def step(ib: Builder, i: Value, *acc: Value) -> list[Value]:
            values = list(acc)
            for u in range(unroll):
                j = ib.add(i, ib.index(u)) if u else i
                at = (panel, ib.add(first, j))
                ws = [ib.emit("load", weights, *at, ib.index(v * s.lanes), lanes=s.lanes)[0] for v in range(s.vectors)]
                for p, base in enumerate(bases):
                    e = ib.emit("splat", ib.emit("load", buffer, ib.add(base, j))[0], lanes=s.lanes)[0]
                    for v, w in enumerate(ws):
                        n = p * s.vectors + v
                        values[n] = ib.fma(w, e, values[n]) if self.fma else ib.add(ib.mul(w, e), values[n])
            return values

        return for_(b, 0, length, step, acc, step=unroll, name="k", vectorize=False)


def window_steps(
    b: Builder, patch: Patch, run: Callable[..., Sequence[Value]], acc: Sequence[Value]
) -> Sequence[Value]:
    """`run(builder, step, (offset, length), carry)` for each run of neighbours that a window reads in a block of channels."""
    deep, rows, line = patch.conv.axes
    joined = line.step == 1  # the columns of a window row are neighbours
    runs = (deep.window, rows.window, 1 if joined else line.window)
    length = patch.depth * (line.window if joined else 1)

    def at(ib: Builder, where: tuple[Value, ...], *carry: Value) -> Sequence[Value]:
        kd, kh, kw = where
        offset = ib.mul(kd, index(ib, patch.line_offset(depth=1)))
        offset = ib.add(offset, ib.mul(kh, index(ib, patch.line_offset(line=rows.step))))
        offset = ib.add(offset, ib.mul(kw, index(ib, patch.line_offset(column=line.step))))
        k: Value = kd
        for i, n in zip((kh, kw), runs[1:]):
            k = ib.add(ib.mul(k, ib.index(n)), i)
        return run(ib, ib.mul(k, ib.index(length)), (offset, length), carry)

    # A loop of one round costs some instructions each time, and these are few rounds.
    def level(ib: Builder, where: tuple[Value, ...], *carry: Value) -> Sequence[Value]:
        if len(where) == len(runs):
            return at(ib, where, *carry)
        size = runs[len(where)]
        if size == 1:
            return level(ib, (*where, ib.index(0)), *carry)
        return for_(ib, 0, size, lambda jb, i, *c: level(jb, (*where, i), *c), carry, vectorize=False)

    return level(b, (), *acc)


def gathered(b: Builder, xs: Sequence[Value], v: Value) -> Value:
    """The vector `v` with scalars in its first lanes."""
    for i, x in enumerate(xs):
        v = b.emit("insert", v, x, lane=i)[0]
    return v


__all__ = ["Channels", "conv_channels", "gathered", "window_steps"]
