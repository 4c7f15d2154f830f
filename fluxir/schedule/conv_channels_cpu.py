"""The convolution template for CPUs whose lanes are output channels.

A task computes a block of output places for some tiles of output channels. It copies what it reads into a patch with the
channels innermost (see conv_patch.py). A register tile is `pixels` places by `vectors` vectors of output channels; its inner
loop runs over neighbouring elements of the patch (the columns of a window row times a block of channels), a scalar of each
place by a line of the packed weights, so that neither reads across a cache line nor knows about strides, edges or dilation.
Channels come in blocks whose weights stay in the first cache while all places of the task pass by; partial sums are kept on
the stack. In the end the sums are transposed in squares, and what follows is computed on vectors of neighbouring places.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import MemType
from fluxir.ops.nest import cast
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_patch import Patch, Place, starts_of
from fluxir.schedule.conv_space import Conv, read_conv
from fluxir.schedule.group import Array, Group, shape_of
from fluxir.schedule.loops import for_, grain_of, if_, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.matmul_pack import lanes_of, pieces, transposed
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

PATCH = 256 * 1024  # bytes of stack for a task's input
COMFORT = 160 * 1024  # what should stay in the second cache
PANEL = 20 * 1024  # bytes of weights that stay in the first cache
UNROLL = 8  # steps of the inner loop that are written out, at most
TASKS = 12  # tasks wanted, where they are not too small
LEAST = 1 << 20  # multiplications that are worth copying a patch for


@dataclass(frozen=True)
class ConvChannelsSchedule(Schedule):
    """`pixels` x `vectors` x `lanes`: the register tile. `images` x `rows` x `columns`: the places of a task, for `tiles` tiles
    of output channels. `depth`: channels of a block of the input."""

    pixels: int
    vectors: int
    lanes: int
    images: int
    rows: int
    columns: int
    tiles: int
    depth: int


def choose(conv: Conv, target: Any) -> ConvChannelsSchedule | None:
    """The schedule; None where the output channels do not fill lanes or one row does not fit."""
    lanes, line = target.lanes(conv.dtype.bits), conv.axes[2]
    deep, outer, _ = conv.axes
    if lanes < 2 or conv.outputs < lanes or 0 in (conv.channels, conv.window, conv.places):
        return None
    if conv.channels * conv.window < 2 * lanes:
        return None
    size = conv.dtype.itemsize

    def patch(images: int, rows: int, columns: int) -> Patch:
        return Patch(conv, lanes, images, rows, columns, depth)

    depth = _depth(conv.channels, max(1, PANEL // (2 * lanes * size * conv.window)))
    images, rows, columns = 1, outer.out, line.out
    work = conv.groups * deep.out * conv.outputs * conv.channels * conv.window
    total = work * outer.out * line.out * (conv.batch if isinstance(conv.batch, int) else TASKS)

    def too_large() -> bool:
        return patch(images, rows, columns).nbytes > COMFORT or (
            rows * columns > 96 and work * rows * columns > max(total // TASKS, LEAST)
        )

    while rows > 1 and too_large():
        rows = _smaller(outer.out, rows)
    while rows == 1 and columns > 1 and too_large():
        columns = _smaller(line.out, columns)
    if patch(1, rows, columns).nbytes > PATCH:
        return None
    if rows == outer.out and columns == line.out and deep.out == 1:
        many = conv.batch if isinstance(conv.batch, int) else 8
        while (
            images * 2 <= many and images * rows * columns < 64 and patch(images * 2, rows, columns).nbytes <= COMFORT
        ):
            images *= 2
    pixels, vectors = _tile(images * rows * columns, conv.outputs, lanes, target.vector_registers)
    panels = -(-conv.outputs // (vectors * lanes))
    tiles = panels
    outer_tasks = conv.groups * deep.out * -(-outer.out // rows) * -(-line.out // columns)
    outer_tasks *= -(-conv.batch // images) if isinstance(conv.batch, int) else 4
    one = images * rows * columns * vectors * lanes * conv.channels * conv.window
    while tiles > 1 and outer_tasks * -(-panels // tiles) < TASKS and tiles // 2 * one >= LEAST:
        tiles = -(-tiles // 2)
    return ConvChannelsSchedule(pixels, vectors, lanes, images, rows, columns, tiles, depth)


def _smaller(size: int, block: int) -> int:
    """The largest block below `block` for which the blocks that cover `size` are as equal as can be."""
    return -(-size // -(-size // (block - 1)))


def _depth(channels: int, most: int) -> int:
    """Channels of a block: at most `most`, of equal size where there is such a divisor that is not much smaller."""
    if channels <= most:
        return channels
    for d in range(most, most // 2, -1):
        if channels % d == 0:
            return d
    return -(-channels // -(-channels // most))


def _tile(places: int, outputs: int, lanes: int, registers: int) -> tuple[int, int]:
    """Places and vectors of the register tile: the least work, where a step costs its multiplications or its loads and a tile
    some more to begin and end."""
    best, chosen = float("inf"), (1, 1)
    for vectors in (2, 3, 1):
        if vectors > 1 and outputs <= (vectors - 1) * lanes:
            continue
        most = min(places, (registers - vectors - 1) // vectors)
        for pixels in range(most, 0, -1):
            step = max(pixels * vectors, pixels + vectors, 8)
            cost = -(-places // pixels) * -(-outputs // (vectors * lanes)) * (step + 0.5)
            if cost < best:
                best, chosen = cost, (pixels, vectors)
    return chosen


@template("conv_channels", target="cpu", anchors=("conv",), priority=22)
def conv_channels(group: Group, target: Any) -> Kernels | None:
    """One convolution in one to three dimensions with what follows it; output channels are the lanes."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or any(v not in group.args for v in ops[0].operands):
        return None
    numbers = read_conv(ops[0])
    if numbers is None or numbers.batch == 0:
        return None
    schedule = choose(numbers, target)
    after = follows_exactly(group, ops[0].result, [0, 1, *[2] * numbers.space])
    if schedule is None or after is None:
        return None
    return _Channels(group, numbers, schedule, after, numbers.dtype.is_float and target.has("fma")).kernels()


class _Channels:
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
        self.steps = self.patch.blocks * conv.window * s.depth  # of the inner loop, for one tile
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

    # ---- weights: [group and panel, block of channels and window and channel, output channel], zeros beyond the last
    def pack(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv, s, blocks = self.conv, self.schedule, self.patch.blocks
        w = self.conv.op.operands[1]
        flat = MemType(w.type.dtype, (conv.groups * conv.outputs, conv.channels, conv.window))
        source = b.emit("reinterpret", ins[0], type=flat)[0]
        shape = (conv.groups * self.panels, blocks, conv.window, s.depth, self.width)
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
    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv, s, patch = self.conv, self.schedule, self.patch
        deep, outer, line = conv.axes
        *arrays, weights = ins
        x = arrays[self.group.args.index(conv.op.operands[0])]
        seen = {}
        for arg, mem in zip(self.post.args, arrays):
            t = memory(arg.type)
            seen[arg] = mem if mem.type == t else b.emit("reinterpret", mem, type=t)[0]
        post = PostCode(self.post, seen, outs)
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
            row = ib.minimum(ib.mul(r, ib.index(s.rows)), ib.index(outer.out - s.rows))
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
        table = b.alloc(type=MemType(DTYPES["i64"], (padded,), "local"))
        sums = b.alloc(type=MemType(conv.dtype, (max(padded, patch.places + s.lanes), self.width), "local"))
        patch.fill(b, x, buffer, at)

        def note(ib: Builder, p: Value) -> None:
            ib.store(table, patch.offset_of(ib, ib.minimum(p, ib.index(patch.places - 1))), p)

        for_(b, 0, padded, note, vectorize=False)
        count = b.minimum(b.index(s.tiles), b.sub(b.index(self.panels), first))

        def tile(ib: Builder, t: Value) -> None:
            own = ib.add(first, t)
            panel = ib.add(ib.mul(at.group, ib.index(self.panels)), own)

            def part(jb: Builder, where: tuple[Value, ...]) -> None:
                self.pixels(jb, buffer, table, weights, sums, panel, *where)

            nest(ib, (patch.blocks, self.pixel_tiles), part)
            Finish(self, post, sums).emit(ib, at, ib.mul(own, ib.index(self.width)))

        for_(b, 0, count, tile, vectorize=False)

    def pixels(
        self, b: Builder, buffer: Value, table: Value, weights: Value, sums: Value, panel: Value, block: Value, t: Value
    ) -> None:
        """One register tile over one block of channels."""
        conv, s, patch = self.conv, self.schedule, self.patch
        p0 = b.mul(t, b.index(s.pixels))
        places = [b.add(p0, b.index(i)) for i in range(s.pixels)]
        start = b.mul(block, b.index(patch.block_size))
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
        offset = ib.mul(kd, ib.index(patch.line_offset(depth=1)))
        offset = ib.add(offset, ib.mul(kh, ib.index(patch.line_offset(line=rows.step))))
        offset = ib.add(offset, ib.mul(kw, ib.index(patch.line_offset(column=line.step))))
        k: Value = kd
        for i, n in zip((kh, kw), runs[1:]):
            k = ib.add(ib.mul(k, ib.index(n)), i)
        return run(ib, ib.mul(k, ib.index(length)), (offset, length), carry)

    return nest(b, runs, at, acc)


def gathered(b: Builder, xs: Sequence[Value], v: Value) -> Value:
    """The vector `v` with scalars in its first lanes."""
    for i, x in enumerate(xs):
        v = b.emit("insert", v, x, lane=i)[0]
    return v


class Finish:
    """From the sums [place, channel] of a tile of channels to the results, with what follows."""

    def __init__(self, owner: _Channels, post: PostCode, sums: Value) -> None:
        self.owner, self.post, self.sums = owner, post, sums
        # What follows may see the places of an image as one axis, along which those of a task are neighbours.
        self.space = tuple(d for d, kind in zip(owner.post_space, owner.kept) if kind == 2)

    def emit(self, b: Builder, at: Place, first: Value) -> None:
        """The tile of channels from `first` on."""
        patch, s, (_, outer, line) = self.owner.patch, self.owner.schedule, self.owner.conv.axes
        each = patch.rows * patch.columns
        row = b.add(b.mul(at.depth, b.index(outer.out)), at.row)
        start = b.add(b.mul(row, b.index(line.out)), at.column)

        def image(ib: Builder, i: Value) -> None:
            n, base = ib.add(at.image, i), ib.mul(i, ib.index(each))

            def square(jb: Builder, p: Value, count: int = s.lanes) -> None:
                self.square(jb, at.group, n, first, jb.add(base, p), jb.add(start, p), count)

            if each < s.lanes:
                square(ib, ib.index(0), each)
                return
            top = ib.index(each - s.lanes)
            for_(ib, 0, each, lambda jb, p: square(jb, jb.minimum(p, top)), step=s.lanes, vectorize=False)

        there: Dim | Value = 1
        if s.images > 1:
            there = b.minimum(b.index(s.images), b.sub(b.index(self.owner.conv.batch), at.image))
        for_(b, 0, there, image, vectorize=False)

    def square(self, b: Builder, g: Value, n: Value, first: Value, sums: Value, place: Value, count: int) -> None:
        """`count` places of image n from `place` on, whose sums begin at `sums`, for all channels of the tile."""
        conv, s = self.owner.conv, self.owner.schedule

        def channel(ib: Builder, o: Value, x: Value) -> None:
            c = ib.add(ib.mul(g, ib.index(conv.outputs)), o)
            for i, lanes in pieces(count, s.lanes if len(self.space) == 1 else 1):
                part = x if lanes == s.lanes else lanes_of(ib, x, i, lanes)
                q = ib.add(place, ib.index(i)) if i else place
                where = ((n,), (c,), unravel(ib, q, self.space))
                self.post.store(
                    ib, part, [at for kind in range(3) if kind in self.owner.kept for at in where[kind]], q, lanes
                )

        def vector(ib: Builder, v: int) -> None:
            places = [ib.add(sums, ib.index(j)) for j in range(s.lanes)]
            rows = [ib.emit("load", self.sums, p, ib.index(v * s.lanes), lanes=s.lanes)[0] for p in places]
            for r, x in enumerate(transposed(ib, rows)):
                o = ib.add(first, ib.index(v * s.lanes + r))
                if conv.outputs % s.lanes == 0:
                    channel(ib, o, x)
                else:
                    if_(ib, ib.lt(o, ib.index(conv.outputs)), functools.partial(channel, o=o, x=x))

        for v in range(s.vectors):
            if conv.outputs % self.owner.width == 0 or conv.outputs % s.lanes:
                vector(b, v)
            else:
                there = b.lt(b.add(first, b.index(v * s.lanes)), b.index(conv.outputs))
                if_(b, there, functools.partial(vector, v=v))


__all__ = ["ConvChannelsSchedule", "conv_channels"]
