"""The convolution template for CPUs: padded rows in a local buffer, a register tile of channels by pixels.

A task computes a block of output rows of one image (and group). It first copies the input rows it reads into a buffer on
its stack, with the padding and the zeros of a transposed convolution in place, and with the columns sorted by their
remainder modulo the stride, so that every read of the main loop is a whole vector of neighbouring pixels. The main loop
then keeps `channels` x `vectors` accumulators in registers while it walks the input channels and the window; weights
are packed beforehand into panels of `channels` outputs. This serves convolutions whose output channels do not fill lanes (in
groups), or whose sums are short; the others are those of conv_channels_cpu.py. Sizes other than the batch must be known.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import product
from fluxir.ir.types import MemType
from fluxir.ops.nest import cast
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_space import Conv, read_conv
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Array, Group, shape_of
from fluxir.schedule.loops import for_, grain_of, if_, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

BUFFER = 256 * 1024  # bytes of stack for a task's input rows
COMFORT = 128 * 1024  # what should stay in the second cache
UNROLL = 9  # window places whose code is written out


@dataclass(frozen=True)
class ConvSchedule(Schedule):
    """`channels` x `vectors` x `lanes`: the register tile. `rows`: output rows of a task. `buffer`: bytes of input kept."""

    channels: int
    vectors: int
    lanes: int
    rows: int
    buffer: int


def choose(conv: Conv, target: Any) -> ConvSchedule | None:
    """The schedule, or None where a task's buffer would be too large or the sizes too small to bother."""
    line = conv.axes[2]
    if conv.space > 2 or 0 in (conv.channels, conv.outputs, conv.places, conv.window) or line.out == 1:
        return None
    lanes = target.lanes(conv.dtype.bits)
    while lanes > 2 and line.out <= lanes // 2:
        lanes //= 2
    options = [c for c in range(min(6, conv.outputs), 0, -1) if c >= min(4, conv.outputs)]
    channels = min(options, key=lambda c: (-(-conv.outputs // c) * c, -c))
    vectors = {1: 6, 2: 4, 3: 3}.get(channels, 2)
    vectors = min(vectors, conv.axes[1].out * -(-line.out // lanes))
    rows, nbytes = _rows(conv, lanes)
    return ConvSchedule(channels, vectors, lanes, rows, nbytes) if nbytes <= BUFFER else None


def _rows(conv: Conv, lanes: int) -> tuple[int, int]:
    """Output rows of a task, whose input stays in the second cache, and the bytes of that."""
    size = conv.dtype.itemsize
    rows = max(min(conv.axes[1].out, COMFORT // size), 1)  # each takes an element at least
    while rows > 1 and (conv.axes[1].out % rows or _buffer(conv, rows, lanes) * size > COMFORT):
        rows -= 1
    return rows, _buffer(conv, rows, lanes) * size


def _columns(conv: Conv, lanes: int) -> int:
    """Columns of the buffer for each remainder: those of whole vectors of output, and the window's reach."""
    line = conv.axes[2]
    return -(-line.out // lanes) * lanes + (line.window - 1) * line.step // line.stride


def _lines(conv: Conv, rows: int) -> int:
    a = conv.axes[1]
    return (rows - 1) * a.stride + (a.window - 1) * a.step + 1


def _buffer(conv: Conv, rows: int, lanes: int) -> int:
    return conv.channels * _lines(conv, rows) * conv.axes[2].stride * _columns(conv, lanes)


@template("conv", target="cpu", anchors=("conv",), priority=20)
def conv(group: Group, target: Any) -> Kernels | None:
    """One convolution in one or two dimensions with what follows it; neighbouring pixels are the lanes."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or group.args == ():
        return None
    numbers = read_conv(ops[0])
    if numbers is None or numbers.batch == 0:
        return None
    schedule = choose(numbers, target)
    rank = len(shape_of(ops[0].result))
    after = follows_exactly(group, ops[0].result, list(range(rank)))
    if schedule is None or after is None:
        return None
    post, _, axes = after
    return _Conv(group, numbers, schedule, post, axes, numbers.dtype.is_float and target.has("fma")).kernels()


class _Conv:
    """The kernels of one convolution: weights into panels, then the images."""

    def __init__(
        self, group: Group, conv: Conv, schedule: ConvSchedule, post: Group, axes: list[int], fma: bool
    ) -> None:
        self.group, self.conv, self.schedule, self.post, self.axes, self.fma = group, conv, schedule, post, axes, fma
        self.tiles = -(-conv.outputs // schedule.channels)
        self.window = conv.window
        self.packed = MemType(conv.dtype, (conv.groups * self.tiles, conv.channels * self.window, schedule.channels))

    def kernels(self) -> Kernels:
        group = self.group
        inputs = [memory(a.type) for a in group.args]
        outs = [MemType(v.type.dtype, shape_of(v)) for v in self.post.outs]
        names = [a.name for a in group.args]
        pack = kernel(
            f"{group.name}_pack_weights",
            inputs,
            [self.packed],
            self.pack,
            names=names,
            schedule=self.schedule,
            loc=group.loc,
        )
        main = kernel(
            group.name,
            [*inputs, self.packed],
            outs,
            self.body,
            names=[*names, "weights"],
            schedule=self.schedule,
            loc=group.loc,
            given=[*inputs, self.packed, *[memory(v.type) for v in group.outs]],
        )
        given: list[Ref] = [("input", i) for i in range(len(inputs))]
        results: list[Ref] = [("output", j) for j in range(len(outs))]
        fold = self.pack_array if self.conv.op.operands[1] in group.args else None
        steps = (
            Step(pack, (*given, ("scratch", 0)), fold=fold),
            Step(main, (*given, ("scratch", 0), *results), len(outs)),
        )
        return Kernels(steps, (self.packed,))

    # ---- weights
    def pack(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        """Weights as [group and tile, channel and window, output channel of the tile], zeros beyond the last output."""
        conv, s = self.conv, self.schedule
        reads = dict(zip(self.group.args, ins))
        w = conv.op.operands[1]
        shape = shape_of(w)

        def one(ib: Builder, at: tuple[Value, ...]) -> None:
            g, tile, k, r = at
            o = ib.add(ib.mul(tile, ib.index(s.channels)), r)
            where = unravel(ib, k, shape[1:])
            to = (ib.add(ib.mul(g, ib.index(self.tiles)), tile), k, r)

            def read(jb: Builder) -> Value:
                out = jb.add(jb.mul(g, jb.index(conv.outputs)), o)
                return cast(jb, Elements(jb, reads).at(w, (out, *where)), conv.dtype)

            if conv.outputs % s.channels == 0:
                ib.store(outs[0], read(ib), *to)
            else:
                (x,) = if_(ib, ib.lt(o, ib.index(conv.outputs)), read, lambda jb: jb.const(0, dtype=conv.dtype))
                ib.store(outs[0], x, *to)

        nest(b, (conv.groups, self.tiles, conv.channels * self.window, s.channels), one)

    def pack_array(self, w: Array) -> Array:
        """What `pack` does, for constant weights."""
        conv, channels = self.conv, self.schedule.channels
        flat = np.asarray(w).reshape(conv.groups, conv.outputs, -1)
        padded = np.zeros((conv.groups, self.tiles * channels, flat.shape[2]), conv.dtype.numpy)
        padded[:, : conv.outputs] = flat
        tiles = padded.reshape(conv.groups * self.tiles, channels, -1)
        return np.ascontiguousarray(tiles.transpose(0, 2, 1))

    # ---- images
    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv, s = self.conv, self.schedule
        *arrays, weights = ins
        reads = dict(zip(self.group.args, arrays))
        post = PostCode.of(b, self.post, arrays, outs)
        blocks = conv.axes[1].out // s.rows
        columns = _columns(conv, s.lanes)
        shape = (conv.channels, _lines(conv, s.rows), conv.axes[2].stride, columns)
        work = s.rows * conv.axes[2].out * conv.outputs * conv.channels * self.window // s.lanes

        def task(ib: Builder, at: tuple[Value, ...]) -> None:
            n, g, block = at
            buffer = ib.alloc(type=MemType(conv.dtype, shape, "local"))
            first = ib.mul(block, ib.index(s.rows))
            self.fill(ib, buffer, shape, reads, n, g, first)
            self.tiles_of(ib, buffer, weights, post, n, g, first)

        tasks = (conv.batch, conv.groups, blocks)
        if is_small(product(tasks) * work) or product(tasks) == 1:
            nest(b, tasks, task)
        else:
            parallel(b, product(tasks), lambda ib, t: task(ib, unravel(ib, t, tasks)), grain=grain_of(work))

    def fill(
        self,
        b: Builder,
        buffer: Value,
        shape: Sequence[int],
        reads: dict[Value, Value],
        n: Value,
        g: Value,
        first: Value,
    ) -> None:
        """Copy the input rows that the block reads into the buffer, zeros where there is no element."""
        conv = self.conv
        x, outer, line = conv.op.operands[0], conv.axes[1], conv.axes[2]
        one_dimensional = len(shape_of(x)) == 3

        def read(ib: Builder, c: Value, h: Value, i: Value) -> Value:
            channel = ib.add(ib.mul(g, ib.index(conv.channels)), c)
            where = (n, channel, i) if one_dimensional else (n, channel, h, i)
            return cast(ib, Elements(ib, reads).at(x, where), conv.dtype)

        def zero(ib: Builder) -> Value:
            return ib.const(0, dtype=conv.dtype)

        def copy_line(ib: Builder, c: Value, r: Value, h: Value) -> None:
            for phase in range(line.stride):
                ph = ib.index(phase)
                if line.spread == 1:
                    lo = min(max(0, -(-(line.low - phase) // line.stride)), shape[3])
                    hi = max(lo, min(shape[3], -(-(line.size + line.low - phase) // line.stride)))

                    def element(jb: Builder, q: Value, phase: int = phase, ph: Value = ph) -> None:
                        i = jb.add(jb.mul(q, jb.index(line.stride)), jb.index(phase - line.low))
                        jb.store(buffer, read(jb, c, h, i), c, r, ph, q)

                    def nothing(jb: Builder, q: Value, ph: Value = ph) -> None:
                        jb.store(buffer, zero(jb), c, r, ph, q)

                    for start, end, what in ((0, lo, nothing), (lo, hi, element), (hi, shape[3], nothing)):
                        if start < end:
                            for_(ib, start, end, what)
                    continue

                def place(jb: Builder, q: Value, phase: int = phase, ph: Value = ph) -> None:
                    p = jb.add(jb.mul(q, jb.index(line.stride)), jb.index(phase - line.low))
                    there, i = line.source(jb, p)
                    (v,) = if_(jb, there, lambda kb: read(kb, c, h, i), zero)
                    jb.store(buffer, v, c, r, ph, q)

                for_(ib, 0, shape[3], place, vectorize=False)

        def clear_line(ib: Builder, c: Value, r: Value) -> None:
            nest(ib, shape[2:], lambda jb, at: jb.store(buffer, zero(jb), c, r, *at))

        def one(ib: Builder, at: tuple[Value, ...]) -> None:
            c, r = at
            p = ib.sub(ib.add(ib.mul(first, ib.index(outer.stride)), r), ib.index(outer.low))
            there, h = outer.source(ib, p)
            if_(ib, there, lambda jb: copy_line(jb, c, r, h), lambda jb: clear_line(jb, c, r))

        nest(b, shape[:2], one)

    def tiles_of(
        self, b: Builder, buffer: Value, weights: Value, post: PostCode, n: Value, g: Value, first: Value
    ) -> None:
        """All register tiles of a block of rows."""
        conv, s = self.conv, self.schedule
        per_row = -(-conv.axes[2].out // s.lanes)
        count = s.rows * per_row

        def tile(ib: Builder, at: tuple[Value, ...]) -> None:
            o, v = at
            places = []
            for k in range(s.vectors):
                # Past the end the last vector is computed again: the same values go to the same places.
                i = ib.minimum(ib.add(ib.mul(v, ib.index(s.vectors)), ib.index(k)), ib.index(count - 1))
                row, col = unravel(ib, i, (s.rows, per_row))
                places.append((row, ib.mul(col, ib.index(s.lanes))))
            panel = ib.add(ib.mul(g, ib.index(self.tiles)), o)
            acc = self.multiply(ib, buffer, weights, panel, places)
            self.finish(ib, post, n, g, ib.mul(o, ib.index(s.channels)), first, places, acc)

        nest(b, (self.tiles, -(-count // s.vectors)), tile)

    def multiply(
        self, b: Builder, buffer: Value, weights: Value, panel: Value, places: Sequence[tuple[Value, Value]]
    ) -> list[Value]:
        """The accumulators [channel][vector] after all input channels and window places."""
        conv, s = self.conv, self.schedule
        _, outer, line = conv.axes
        lanes = s.lanes
        zero = b.emit("splat", b.const(0, dtype=conv.dtype), lanes=lanes)[0]

        def place(ib: Builder, c: Value, kh: Value, kw: Value | int, acc: Sequence[Value]) -> list[Value]:
            if isinstance(kw, int):
                phase, shift, column = (
                    ib.index(kw * line.step % line.stride),
                    ib.index(kw * line.step // line.stride),
                    ib.index(kw),
                )
            else:
                p = ib.mul(kw, ib.index(line.step))
                phase, shift, column = ib.fmod(p, ib.index(line.stride)), ib.div(p, ib.index(line.stride)), kw
            k = ib.add(ib.mul(ib.add(ib.mul(c, ib.index(outer.window)), kh), ib.index(line.window)), column)
            xs = []
            for row, col in places:
                r = ib.add(ib.mul(row, ib.index(outer.stride)), ib.mul(kh, ib.index(outer.step)))
                xs.append(ib.emit("load", buffer, c, r, phase, ib.add(col, shift), lanes=lanes)[0])
            out: list[Value] = []
            for o in range(s.channels):
                w = ib.emit("splat", ib.emit("load", weights, panel, k, ib.index(o))[0], lanes=lanes)[0]
                for x in xs:
                    a = acc[len(out)]
                    out.append(ib.fma(w, x, a) if self.fma else ib.add(ib.mul(w, x), a))
            return out

        def row(ib: Builder, c: Value, kh: Value, acc: Sequence[Value]) -> list[Value]:
            if line.window <= UNROLL:
                values = list(acc)
                for kw in range(line.window):
                    values = place(ib, c, kh, kw, values)
                return values
            return list(for_(ib, 0, line.window, lambda jb, kw, *a: place(jb, c, kh, kw, a), acc, vectorize=False))

        def channel(ib: Builder, c: Value, *acc: Value) -> list[Value]:
            if self.window <= UNROLL:
                values = list(acc)
                for kh in range(outer.window):
                    values = row(ib, c, ib.index(kh), values)
                return values
            return list(for_(ib, 0, outer.window, lambda jb, kh, *a: row(jb, c, kh, a), acc, vectorize=False))

        start = [zero] * (s.channels * s.vectors)
        return list(for_(b, 0, conv.channels, channel, start, name="c", vectorize=False))

    def finish(
        self,
        b: Builder,
        post: PostCode,
        n: Value,
        g: Value,
        o0: Value,
        first: Value,
        places: Sequence[tuple[Value, Value]],
        acc: Sequence[Value],
    ) -> None:
        """Store a tile; where it reaches over the last channel or column, only what exists."""
        conv, s = self.conv, self.schedule
        width = conv.axes[2].out
        one_dimensional = len(shape_of(conv.op.result)) == 3

        def put(ib: Builder, x: Value, o: Value, row: Value, col: Value, lanes: int) -> None:
            channel = ib.add(ib.mul(g, ib.index(conv.outputs)), o)
            full = (n, channel, col) if one_dimensional else (n, channel, ib.add(first, row), col)
            post.store(ib, x, [full[k] for k in self.axes], col, lanes)

        def channel(ib: Builder, r: int) -> None:
            o = ib.add(o0, ib.index(r))
            for v, (row, col) in enumerate(places):
                x = acc[r * s.vectors + v]

                def whole(jb: Builder, x: Value = x, row: Value = row, col: Value = col) -> None:
                    put(jb, x, o, row, col, s.lanes)

                def edge(jb: Builder, x: Value = x, row: Value = row, col: Value = col) -> None:
                    for lane in range(width % s.lanes):
                        put(jb, jb.emit("extract", x, lane=lane)[0], o, row, jb.add(col, jb.index(lane)), 1)

                if width % s.lanes == 0:
                    whole(ib)
                elif width < s.lanes:
                    edge(ib)
                else:
                    if_(ib, ib.le(ib.add(col, ib.index(s.lanes)), ib.index(width)), whole, edge)

        for r in range(s.channels):
            if conv.outputs % s.channels == 0:
                channel(b, r)
            else:
                exists = b.lt(b.add(o0, b.index(r)), b.index(conv.outputs))
                if_(b, exists, functools.partial(channel, r=r))


__all__ = ["ConvSchedule", "choose", "conv"]
