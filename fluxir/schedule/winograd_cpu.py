"""The convolution template for CPUs with fewer multiplications: Winograd's algorithm for 3 by 3 windows.

A tile of 2 by 2 results is A'[(G g G') * (B' d B)]A with a tile d of 4 by 4 inputs and the window g, so that over channels it is
one matrix product for each of 16 *frequencies*: 16 multiplications instead of 36 (Winograd, "Arithmetic Complexity of
Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). Transforms run on vectors of
channels: those of the input over a patch (conv_patch.py), one block of channels at a time, those of the sums before
conv_finish.py. Why there are no larger tiles: docs/design/convolutions.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.types import MemType
from fluxir.schedule import conv_schedule as cost
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_channels_cpu import Channels, gathered
from fluxir.schedule.conv_patch import Patch, Place
from fluxir.schedule.conv_space import Axis, Conv, read_conv
from fluxir.schedule.group import Array, Group
from fluxir.schedule.loops import for_, if_, nest
from fluxir.schedule.matmul_pack import transposed
from fluxir.schedule.templates import Kernels, template

LEAST = 16  # channels of input and output below which transforms cost more than they save
# Cycles of a vector of channels of a tile, measured on Zen: to transform the input, and the sums.
INTO, BACK = 30, 25

Matrix = tuple[tuple[float, ...], ...]
INPUT: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B'
WINDOW: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
OUTPUT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))  # A'
M = len(OUTPUT)  # results of a tile along one axis
SIZE = len(INPUT)  # inputs of a tile along one axis
FREQUENCIES = SIZE * SIZE


@dataclass(frozen=True)
class WinogradSchedule(cost.ConvChannelsSchedule):
    """As for `ConvChannelsSchedule`, where `pixels` are tiles of 2 by 2 results."""


def choose(conv: Conv, target: Any) -> WinogradSchedule | None:
    """The schedule; None where the algorithm does not apply, or the direct one is estimated to be faster."""
    deep, outer, line = conv.axes
    plain = all(a == Axis(a.size, a.out, 3, 1, a.low) for a in (outer, line)) and deep == Axis()
    direct = cost.choose(conv, target)
    if not plain or not conv.dtype.is_float or min(conv.channels, conv.outputs) < LEAST or direct is None:
        return None
    lanes, size = target.lanes(conv.dtype.bits), conv.dtype.itemsize
    if lanes < 2:
        return None
    least, found = direct[0], None
    depth = cost.depth_of(conv.channels, 64)
    depth += -depth % lanes
    for images, rows, columns in cost.blocks_of(conv):
        high, wide = -(-rows // M), -(-columns // M)
        if columns != line.out or (rows != outer.out and (rows % M or (rows - outer.out % M) * columns < lanes)):
            continue
        count = images * high * wide
        step, pixels, vectors = cost.tile_of(count, conv.outputs, lanes, target.vector_registers)
        panels = -(-conv.outputs // (vectors * lanes))
        blocks = cost.tasks_of(conv, images, rows, columns)
        each = -(-count // pixels) * pixels
        spectrum = FREQUENCIES * each * depth * size
        patch = Patch(conv, lanes, images, high * M, wide * M, depth).block_size * size
        weights = FREQUENCIES * conv.channels * conv.outputs * size
        read = blocks * weights / (cost.NEAR if weights <= target.l2_bytes // 2 else cost.FAR)
        multiply = blocks * FREQUENCIES * step * conv.channels * 1.05
        finish = blocks * (count * panels * vectors * BACK + images * rows * columns * conv.outputs * cost.FINISH)
        inputs = images * (high * M + 2) * (wide * M + 2)
        copy = blocks * conv.channels * (count * INTO / lanes + inputs * cost.COPY)
        for tiles, parts in cost.parts_of(panels):
            products = tiles * FREQUENCIES * each * vectors * lanes * size
            if spectrum + products + patch > min(target.l2_bytes * 3 // 4, cost.STACK * 3 // 4):
                continue
            time = cost.shared(multiply * parts * tiles / panels + finish + read + copy * parts, blocks * parts)
            if time < least:
                least = time
                found = WinogradSchedule(pixels, vectors, lanes, images, rows, columns, tiles, depth)
    return found


@template("winograd", target="cpu", anchors=("conv",), priority=24)
def winograd(group: Group, target: Any) -> Kernels | None:
    """One convolution with a 3 by 3 window and what follows it, in fewer multiplications."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or any(v not in group.args for v in ops[0].operands):
        return None
    numbers = read_conv(ops[0])
    if (
        numbers is None
        or numbers.batch == 0
        or numbers.space != 2
        or 0 in (numbers.channels, numbers.outputs, numbers.places)
    ):
        return None
    schedule = choose(numbers, target)
    after = follows_exactly(group, ops[0].result, [0, 1, 2, 2])
    if schedule is None or after is None:
        return None
    return _Winograd(group, numbers, schedule, after, target.has("fma")).kernels()


def transformed(b: Builder, matrix: Matrix, xs: Sequence[Value]) -> list[Value]:
    """A small constant matrix by vectors."""
    out = []
    for row in matrix:
        terms = [(c, x) for c, x in zip(row, xs) if c]
        terms.sort(key=lambda t: t[0] != 1)  # begin with one that needs no multiplication
        c, x = terms[0]
        total = x if c == 1 else b.mul(x, b.const(c, like=x)) if c != -1 else b.neg(x)
        for c, x in terms[1:]:
            if abs(c) == 1:
                total = b.add(total, x) if c > 0 else b.sub(total, x)
            else:
                total = b.fma(x, b.const(c, like=x), total)
        out.append(total)
    return out


def both_ways(b: Builder, matrix: Matrix, xs: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """M X M' for a square X of vectors."""
    columns = [transformed(b, matrix, column) for column in zip(*xs)]
    return [transformed(b, matrix, row) for row in zip(*columns)]


class _Winograd(Channels):
    """The kernels: windows transformed into panels, then the images."""

    schedule: WinogradSchedule

    def __init__(self, group: Group, conv: Conv, schedule: WinogradSchedule, after: Any, fma: bool) -> None:
        super().__init__(group, conv, schedule, after, fma)
        s = schedule
        self.high, self.wide = -(-s.rows // M), -(-s.columns // M)  # tiles of an image
        self.patch = Patch(conv, s.lanes, s.images, self.high * M, self.wide * M, s.depth)
        self.count = s.images * self.high * self.wide
        self.padded = -(-self.count // s.pixels) * s.pixels
        self.slots = FREQUENCIES
        self.steps = self.patch.blocks * self.slots * s.depth
        self.packed = MemType(conv.dtype, (conv.groups * self.panels, self.steps, self.width))

    @property
    def last_row(self) -> int:
        """Blocks begin where a tile does: a result of another place in its tile would be rounded differently."""
        last = super().last_row
        return last + last % M

    # ---- windows: [group and panel, block of channels and frequency and channel, output channel]
    def _pack_rows(
        self, b: Builder, source: Value, target: Value, panel: Value, block: Value, row: Value, first: Value, there: int
    ) -> None:
        conv, s, lanes = self.conv, self.schedule, self.schedule.lanes
        none = b.emit("splat", b.const(0, dtype=conv.dtype), lanes=lanes)[0]
        end = b.minimum(b.index(s.depth), b.sub(b.index(conv.channels), first))

        def read(ib: Builder, o: int, c: Value, k: int, many: int) -> list[Value]:
            at = (ib.add(first, c), ib.index(k))
            rows = [ib.add(row, ib.index(o + i)) for i in range(max(0, min(lanes, there - o)))]
            return [self.cast(ib, ib.emit("load", source, r, *at, lanes=many)[0]) for r in rows]

        def store(ib: Builder, c: Value, o: int, vs: Sequence[Value]) -> None:
            for f, v in enumerate(vs):
                ib.store(target, v, panel, block, ib.index(f), c, ib.index(o))

        def channel(ib: Builder, c: Value) -> None:
            for o in range(0, self.width, lanes):
                places: list[Value] = []
                for k in range(0, conv.window, lanes):
                    many = min(lanes, conv.window - k)
                    if many == lanes:
                        xs = read(ib, o, c, k, lanes)
                        places += transposed(ib, xs + [none] * (lanes - len(xs)))
                    else:
                        places += [gathered(ib, read(ib, o, c, k + j, 0), none) for j in range(many)]
                square = [places[i : i + 3] for i in range(0, 9, 3)]
                store(ib, c, o, [v for line in both_ways(ib, WINDOW, square) for v in line])

        def clear(ib: Builder, c: Value) -> None:
            for o in range(0, self.width, lanes):
                store(ib, c, o, [none] * FREQUENCIES)

        for_(b, 0, end, channel, vectorize=False)
        if self.patch.blocks * s.depth != conv.channels:
            for_(b, end, s.depth, clear, vectorize=False)

    def pack_array(self, w: Array) -> Array:
        conv, s, blocks = self.conv, self.schedule, self.patch.blocks
        both = np.kron(WINDOW, WINDOW)  # on a window of 9 numbers in a row
        flat = np.asarray(w, np.float64).reshape(conv.groups, conv.outputs, conv.channels, conv.window)
        made = flat @ both.T
        padded = np.zeros((conv.groups, self.panels * self.width, blocks * s.depth, FREQUENCIES), conv.dtype.numpy)
        padded[:, : conv.outputs, : conv.channels] = made
        parts = padded.reshape(conv.groups * self.panels, self.width, blocks, s.depth, FREQUENCIES)
        return np.ascontiguousarray(parts.transpose(0, 2, 4, 3, 1)).reshape(-1, self.steps, self.width)

    # ---- images
    def task(self, b: Builder, x: Value, weights: Value, post: PostCode, at: Place, first: Value) -> None:
        conv, s, patch, f = self.conv, self.schedule, self.patch, FREQUENCIES

        def local(*shape: int) -> Value:
            return b.emit("alloc", type=MemType(conv.dtype, shape, "local"))[0]

        buffer, spectrum = local(patch.block_size), local(f * self.padded * s.depth)
        products = local(s.tiles, f * self.padded, self.width)
        sums = local(s.images * s.rows * s.columns + M * s.columns + s.lanes, self.width)
        count = b.minimum(b.index(s.tiles), b.sub(b.index(self.panels), first))
        panel = b.add(b.mul(at.group, b.index(self.panels)), first)

        def block(ib: Builder, k: Value) -> None:
            patch.fill(ib, x, buffer, at, only=k)
            self.transform_input(ib, buffer, spectrum)

            def product(jb: Builder, where: tuple[Value, ...]) -> None:
                t, frequency = where

                def some(kb: Builder, p: Value) -> None:
                    self.multiply(kb, spectrum, weights, products, kb.add(panel, t), k, t, frequency, p)

                for_(jb, 0, self.padded, some, step=s.pixels, vectorize=False)

            for_(
                ib, 0, count, lambda jb, t: for_(jb, 0, f, lambda kb, q: product(kb, (t, q)), vectorize=False) and None
            )

        for_(b, 0, patch.blocks, block, vectorize=False)

        def tile(ib: Builder, t: Value) -> None:
            self.transform_sums(ib, products, sums, t)
            self.finish(post, sums).emit(ib, at, ib.mul(ib.add(first, t), ib.index(self.width)))

        for_(b, 0, count, tile, vectorize=False)

    def transform_input(self, b: Builder, buffer: Value, spectrum: Value) -> None:
        """The patch's tiles into [frequency, tile, channel]."""
        s, n = self.schedule, SIZE

        def tile(ib: Builder, at: tuple[Value, ...]) -> None:
            image, i, j = at
            line = ib.add(ib.mul(image, ib.index(self.patch.lines)), ib.mul(i, ib.index(M)))
            place = ib.add(ib.mul(line, ib.index(self.patch.pitch)), ib.mul(j, ib.index(M)))
            start = ib.mul(place, ib.index(s.depth))
            number = ib.add(ib.mul(ib.add(ib.mul(image, ib.index(self.high)), i), ib.index(self.wide)), j)
            to = ib.mul(number, ib.index(s.depth))

            def channels(jb: Builder, c: Value) -> None:
                base, end = jb.add(start, c), jb.add(to, c)
                xs = [
                    [
                        self.load(jb, buffer, jb.add(base, jb.index((r * self.patch.pitch + q) * s.depth)))
                        for q in range(n)
                    ]
                    for r in range(n)
                ]
                for f, v in enumerate(v for line in both_ways(jb, INPUT, xs) for v in line):
                    jb.store(spectrum, v, jb.add(end, jb.index(f * self.padded * s.depth)))

            for_(ib, 0, s.depth, channels, step=s.lanes, vectorize=False)

        nest(b, (s.images, self.high, self.wide), tile)

    def multiply(
        self,
        b: Builder,
        spectrum: Value,
        weights: Value,
        products: Value,
        panel: Value,
        block: Value,
        t: Value,
        frequency: Value,
        p: Value,
    ) -> None:
        """One register tile of one frequency over a block of channels."""
        s, conv = self.schedule, self.conv
        row = b.add(b.mul(frequency, b.index(self.padded)), p)
        bases = [b.mul(b.add(row, b.index(i)), b.index(s.depth)) for i in range(s.pixels)]
        zero = b.emit("splat", b.const(0, dtype=conv.dtype), lanes=s.lanes)[0]
        cells = [(t, b.add(row, b.index(i)), b.index(v * s.lanes)) for i in range(s.pixels) for v in range(s.vectors)]
        acc: Sequence[Value] = [zero] * len(cells)
        if self.patch.blocks > 1:
            begin = acc
            acc = if_(
                b, b.eq(block, b.index(0)), lambda ib: begin, lambda ib: [self.load(ib, products, *c) for c in cells]
            )
        k0 = b.mul(b.add(b.mul(block, b.index(FREQUENCIES)), frequency), b.index(s.depth))
        acc = self.steps_of(b, spectrum, weights, panel, bases, k0, b.index(0), (b.index(0), s.depth), acc)
        for cell, v in zip(cells, acc):
            b.store(products, v, *cell)

    def transform_sums(self, b: Builder, products: Value, sums: Value, t: Value) -> None:
        """The products of one tile of output channels into [place, channel]. Columns go from last to first: what a tile writes
        beyond the end of a row is the beginning of the next one, which is written later."""
        s, n = self.schedule, SIZE

        def tile(ib: Builder, at: tuple[Value, ...]) -> None:
            image, i, back = at
            j = ib.sub(ib.index(self.wide - 1), back)
            number = ib.add(ib.mul(ib.add(ib.mul(image, ib.index(self.high)), i), ib.index(self.wide)), j)
            row = ib.add(ib.mul(image, ib.index(s.rows)), ib.mul(i, ib.index(M)))
            place = ib.add(ib.mul(row, ib.index(s.columns)), ib.mul(j, ib.index(M)))
            for v in range(s.vectors):
                lane = ib.index(v * s.lanes)
                xs = [
                    [
                        self.load(ib, products, t, ib.add(number, ib.index((r * n + q) * self.padded)), lane)
                        for q in range(n)
                    ]
                    for r in range(n)
                ]
                for r, line in enumerate(both_ways(ib, OUTPUT, xs)):
                    for q, x in enumerate(line):
                        ib.store(sums, x, ib.add(place, ib.index(r * s.columns + q)), lane)

        nest(b, (s.images, self.high, self.wide), tile)

    def load(self, b: Builder, mem: Value, *at: Value) -> Value:
        return b.emit("load", mem, *at, lanes=self.schedule.lanes)[0]

    def cast(self, b: Builder, x: Value) -> Value:
        return x if x.dtype == self.conv.dtype else b.cast(x, dtype=self.conv.dtype)


__all__ = ["WinogradSchedule", "winograd"]
