"""Convolutions on CPUs whose rows and columns are known only when the program runs.

The register tile, the packed weights and the loops over a window are those of conv_channels_cpu.py (lanes are output channels)
and depthwise_cpu.py (every channel by itself). What is chosen when the program runs is the block of a task: whole rows, as many
as give `PLACES` places and fit the task's arrays, or a part of one row. All blocks of a convolution have one size, so that the
last one begins where it still fits, as for known sizes; the results do not depend on the choice, since a sum is always added up
in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, minimum
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_channels_cpu import Channels
from fluxir.schedule.conv_finish import Finish
from fluxir.schedule.conv_patch import Patch, Place
from fluxir.schedule.conv_schedule import PANEL, STACK, ConvChannelsSchedule, depth_of, tile_of
from fluxir.schedule.conv_space import Axis, Conv, read_open
from fluxir.schedule.depthwise_cpu import NEAR, Depthwise
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import Size, for_, grain_of, if_, parallel
from fluxir.schedule.templates import Kernels, template

PLACES = 224  # places of a task, at most
FEW = 8  # tasks below which the output channels are shared out too


@dataclass(frozen=True)
class ConvOpenSchedule(ConvChannelsSchedule):
    """As `ConvChannelsSchedule`; `columns` is the most places that a task may have, `elements` the size of its patch."""

    elements: int = 0


def choose(conv: Conv, target: Any) -> ConvOpenSchedule | None:
    """The schedule; None where the output channels of a group are fewer than half a small vector, or one place does not fit."""
    size = conv.dtype.itemsize
    outputs, channels = (conv.groups, 1) if depthwise(conv) else (conv.outputs, conv.channels)
    lanes = target.lanes(conv.dtype.bits)
    while lanes > 4 and outputs <= lanes // 2:
        lanes //= 2
    if lanes < 2 or (conv.groups > 1 and outputs < 4) or 0 in (conv.channels, conv.outputs, conv.window, conv.batch):
        return None
    if depthwise(conv):
        depth, pixels, vectors = 1, min(target.vector_registers - 4, 12), 1
        columns = columns_of(conv, lanes, elements := NEAR // size)
    else:
        depth = depth_of(channels, max(1, PANEL // (2 * lanes * size * conv.window)))
        elements = min(target.l2_bytes // 2, STACK // 2) // size
        _, pixels, vectors = tile_of(PLACES, outputs, lanes, target.vector_registers)
        columns = columns_of(conv, -(-channels // depth) * depth, elements)
    if columns < 1:
        return None
    columns = min(PLACES, columns)
    columns -= columns % pixels if columns > pixels else 0  # whole register tiles
    return ConvOpenSchedule(pixels, vectors, lanes, 1, 1, columns, 1, depth, elements)


def depthwise(conv: Conv) -> bool:
    return conv.groups > 1 and (conv.channels, conv.outputs) == (1, 1)


def columns_of(conv: Conv, channels: int, elements: int) -> int:
    """Columns of a single row whose patch has at most `elements` elements."""
    deep, rows, line = conv.axes
    pitch = elements // (channels * deep.window * ((rows.window - 1) * rows.step + 1))
    return (pitch - (line.window - 1) * line.step - 1) // line.stride + 1


@template("conv_open", target="cpu", anchors=("conv",), priority=19)
def conv_open(group: Group, target: Any) -> Kernels | None:
    """One convolution of open spatial sizes with what follows it; channels are the lanes."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or any(v not in group.args for v in ops[0].operands):
        return None
    numbers = read_open(ops[0])
    if numbers is None:
        return None
    after = follows_exactly(group, ops[0].result, [0, 1, *[2] * (len(shape_of(ops[0].result)) - 2)])
    schedule = choose(numbers, target)
    if schedule is None or after is None:
        return None
    kind = OpenDepthwise if depthwise(numbers) else OpenChannels
    return kind(group, numbers, schedule, after, numbers.dtype.is_float and target.has("fma")).kernels()


@dataclass(frozen=True, eq=False)
class OpenPatch(Patch):
    """A patch whose rows, columns, lines and pitch are values of the running program."""

    sizes: tuple[
        Value, ...
    ] = ()  # rows, columns, lines, pitch, elements of a block, elements of a line times the row step

    @property
    def lines(self) -> Any:
        return self.sizes[2]

    @property
    def pitch(self) -> Any:
        return self.sizes[3]

    @property
    def block_size(self) -> Any:
        return self.sizes[4]

    def line_offset(self, depth: int = 0, line: int = 0, column: int = 0) -> Any:
        """As `Patch.line_offset`, for one of the steps of a window at a time."""
        return self.sizes[6] if depth else self.sizes[5] if line else column * self.depth

    def _columns(self, b: Builder, line: Axis, start: Value) -> tuple[Size, Size, int]:
        zero, pitch = b.index(0), self.pitch
        lo = b.minimum(b.maximum(zero, b.sub(zero, start)), pitch)
        return lo, b.maximum(lo, b.minimum(pitch, b.sub(b.index(line.size), start))), 0

    def _existing(
        self, b: Builder, element: Any, put: Any, there: Value, lo: Value, hi: Value, start: Value, least: int
    ) -> None:
        def squares(side: int, otherwise: Callable[[Builder], None]) -> Callable[[Builder], None]:
            def emit(ib: Builder) -> None:
                wide = ib.ge(ib.sub(hi, lo), ib.index(side))
                if_(ib, wide, lambda jb: self._squares(jb, element, put, there, lo, hi, start, side), otherwise)

            return emit

        def singles(ib: Builder) -> None:
            self._singles(ib, element, put, ib.index(0), there, lo, hi, start)

        sides = [s for s in (self.lanes, 4) if s <= self.depth]
        emit: Callable[[Builder], None] = singles
        for side in sorted(set(sides)):
            emit = squares(side, emit)
        emit(b)


class OpenFinish(Finish):
    """`Finish` for a block of places whose number is a value."""

    def __init__(self, places: Value, *args: Any) -> None:
        super().__init__(*args)
        self.places = places

    def emit(self, b: Builder, at: Place, first: Value) -> None:
        _, outer, line = self.conv.axes
        row = b.add(b.mul(at.depth, b.index(outer.out)), at.row)
        start = b.add(b.mul(row, b.index(line.out)), at.column)

        def run(ib: Builder, count: int) -> None:
            top = ib.sub(self.places, ib.index(count))

            def squares(jb: Builder, p: Value) -> None:
                p = jb.minimum(p, top)
                for v in range(self.width // self.lanes):
                    there = jb.lt(jb.add(first, jb.index(v * self.lanes)), jb.index(self.conv.outputs))

                    def vector(kb: Builder, v: int = v) -> None:
                        self.square(kb, at.group, at.image, first, v, p, kb.add(start, p), count)

                    if_(jb, there, vector)

            for_(ib, 0, self.places, squares, step=count, vectorize=False)

        def among(ib: Builder, counts: Sequence[int]) -> None:
            """By the first of `counts` that there are places for."""
            count, *rest = counts
            if rest:
                if_(ib, ib.ge(self.places, ib.index(count)), lambda jb: run(jb, count), lambda jb: among(jb, rest))
            else:
                run(ib, count)

        among(b, sorted({self.lanes, 4, 1}, reverse=True) if self.lanes > 4 else (self.lanes, 1))


class OpenChannels(Channels):
    """The kernels of one convolution whose blocks are chosen when it runs."""

    schedule: ConvOpenSchedule

    @property
    def depth(self) -> int:
        """Channels of a block of the patch."""
        return self.schedule.depth

    @property
    def unit(self) -> int:
        """What the table counts for one column of the patch."""
        return self.schedule.depth

    @property
    def work(self) -> Dim:
        """Multiplications of a task and a tile of channels."""
        places = minimum(self.conv.axes[1].out * self.conv.axes[2].out, self.schedule.columns)
        return places * (self.width // self.schedule.lanes * self.conv.channels * self.conv.window)

    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        conv = self.conv
        deep, outer, line = conv.axes
        *arrays, weights = ins
        x = self.image(b, arrays)
        post = PostCode.of(b, self.post, arrays, outs)
        rows, columns = self.block(b)
        patch = self.open_patch(b, rows, columns)
        height, width = b.index(outer.out), b.index(line.out)
        places = [
            b.index(conv.batch),
            b.index(conv.groups),
            b.index(deep.out),
            ceil(b, height, rows),
            ceil(b, width, columns),
        ]
        blocks = places[0]
        for n in places[1:]:
            blocks = b.mul(blocks, n)
        parts = b.select(b.lt(blocks, b.index(FEW)), b.index(min(self.panels, FEW)), b.index(1))
        tiles = ceil(b, b.index(self.panels), parts)
        shape = [*places, ceil(b, b.index(self.panels), tiles)]

        def task(ib: Builder, t: Value) -> None:
            at: list[Value] = []
            for size in reversed(shape[1:]):
                at.append(ib.fmod(t, size))
                t = ib.div(t, size)
            o, c, r, d, g = at
            row = ib.minimum(ib.mul(r, rows), ib.sub(height, rows))
            column = ib.minimum(ib.mul(c, columns), ib.sub(width, columns))
            first = ib.mul(o, tiles)
            end = ib.minimum(ib.add(first, tiles), ib.index(self.panels))
            self.open_task(ib, patch, x, weights, post, Place(t, g, d, row, column), (first, end))

        parallel(b, b.mul(blocks, shape[-1]), task, grain=grain_of(self.work))

    def block(self, b: Builder) -> tuple[Value, Value]:
        """Rows and columns of every task: whole rows, or a part of one, in parts of about one size."""
        conv, s = self.conv, self.schedule
        deep, outer, line = conv.axes
        one, most = b.index(1), b.index(s.columns)
        height, width = b.maximum(b.index(outer.out), one), b.maximum(b.index(line.out), one)
        columns = ceil(b, width, ceil(b, width, most))
        if outer == Axis():
            return one, columns
        pitch = b.add(b.mul(columns, b.index(line.stride)), b.index((line.window - 1) * line.step))
        lines = b.div(b.index(s.elements // (self.patch.blocks * self.depth * deep.window)), pitch)
        if outer.window > 1:
            lines = b.div(b.sub(lines, b.index((outer.window - 1) * outer.step + 1)), b.index(outer.stride))
            lines = b.add(lines, one)
        rows = b.maximum(one, b.minimum(height, b.minimum(lines, b.div(most, columns))))
        rows = ceil(b, height, ceil(b, height, rows))
        return b.select(b.eq(columns, width), rows, one), columns

    def open_patch(self, b: Builder, rows: Value, columns: Value) -> OpenPatch:
        conv, s = self.conv, self.schedule
        deep, outer, line = conv.axes

        def reach(a: Axis, count: Value) -> Value:
            return b.add(b.mul(b.sub(count, b.index(1)), b.index(a.stride)), b.index((a.window - 1) * a.step + 1))  # type: ignore[no-any-return]

        lines, pitch = rows if outer.window == 1 else reach(outer, rows), reach(line, columns)
        each = b.mul(pitch, b.index(self.depth))
        sizes = (rows, columns, lines, pitch, b.mul(b.mul(each, lines), b.index(deep.window)), b.mul(each, b.index(outer.step)),
                 b.mul(each, lines))  # fmt: skip
        known = Patch(conv, s.lanes, 1, 1, 1, self.depth)
        return OpenPatch(**vars(known), sizes=sizes)

    def open_task(
        self,
        b: Builder,
        patch: OpenPatch,
        x: Value,
        weights: Value,
        post: PostCode,
        at: Place,
        tiles: tuple[Value, Value],
    ) -> None:
        """The places of a task, for some of its tiles of output channels."""
        conv, s = self.conv, self.schedule
        buffer = b.alloc(type=MemType(conv.dtype, (s.elements,), "local"))
        sums = b.alloc(type=MemType(conv.dtype, (s.columns + max(s.pixels, s.lanes), self.width), "local"))
        places, table = self.open_table(b, patch)
        count = ceil(b, places, b.index(s.pixels))
        finish = OpenFinish(places, conv, post, sums, (1, 1, 1), self.width, s.lanes, self.post_space, self.kept)
        self.sums_of(b, patch, x, weights, at, tiles, (buffer, table, sums, count), finish)

    def sums_of(
        self, b: Builder, patch: OpenPatch, x: Value, weights: Value, at: Place, tiles: tuple[Value, Value],
        local: tuple[Value, Value, Value, Value], finish: OpenFinish,
    ) -> None:  # fmt: skip
        buffer, table, sums, count = local
        self.patch = patch
        patch.fill(b, x, buffer, at)

        def tile(ib: Builder, own: Value) -> None:
            panel = ib.add(ib.mul(at.group, ib.index(self.panels)), own)

            def block(jb: Builder, n: Value) -> None:
                def pixels(kb: Builder, t: Value) -> None:
                    self.pixels(kb, buffer, table, weights, sums, panel, n, t)

                for_(jb, 0, count, pixels, vectorize=False)

            for_(ib, 0, patch.blocks, block, vectorize=False)
            finish.emit(ib, at, ib.mul(own, ib.index(self.width)))

        for_(b, *tiles, tile, vectorize=False)

    def open_table(self, b: Builder, patch: OpenPatch) -> tuple[Value, Value]:
        """How many places a task has, and the element of the patch where the window of each begins; of those beyond the last
        the last one's."""
        s, (_, outer, line) = self.schedule, self.conv.axes
        rows, columns = patch.sizes[:2]
        table = b.alloc(type=MemType(DTYPES["i64"], (s.columns + s.pixels,), "local"))
        across = b.index(line.stride * self.unit)
        down = b.mul(b.mul(patch.pitch, b.index(self.unit)), b.index(1 if outer.window == 1 else outer.stride))
        places = b.mul(rows, columns)

        def row(ib: Builder, r: Value) -> None:
            first, begin = ib.mul(r, columns), ib.mul(r, down)
            for_(
                ib, 0, columns, lambda jb, c: jb.store(table, jb.add(begin, jb.mul(c, across)), jb.add(first, c)),
                vectorize=False,
            )  # fmt: skip

        for_(b, 0, rows, row, vectorize=False)
        one = b.index(1)
        last = b.add(b.mul(b.sub(rows, one), down), b.mul(b.sub(columns, one), across))
        for_(b, 0, s.pixels, lambda ib, i: ib.store(table, last, ib.add(places, i)), vectorize=False)
        return places, table


class OpenDepthwise(OpenChannels, Depthwise):
    """Every channel by itself: to the weights' panels it is one group with as many outputs as there are channels."""

    def __init__(self, group: Group, conv: Conv, schedule: ConvOpenSchedule, after: Any, fma: bool) -> None:
        Channels.__init__(self, group, replace(conv, groups=1, outputs=conv.groups), schedule, after, fma)
        self.every = replace(self.conv, channels=conv.groups)

    @property
    def depth(self) -> int:
        return self.schedule.lanes

    @property
    def unit(self) -> int:
        return 1

    def open_patch(self, b: Builder, rows: Value, columns: Value) -> OpenPatch:
        found = super().open_patch(b, rows, columns)
        return replace(found, conv=self.every)

    def sums_of(
        self, b: Builder, patch: OpenPatch, x: Value, weights: Value, at: Place, tiles: tuple[Value, Value],
        local: tuple[Value, Value, Value, Value], finish: OpenFinish,
    ) -> None:  # fmt: skip
        s = self.schedule
        buffer, table, sums, count = local
        self.channels = patch
        padded = b.mul(count, b.index(s.pixels))

        def tile(ib: Builder, panel: Value) -> None:
            patch.fill(ib, x, buffer, at, only=panel)

            def some(jb: Builder, p: Value) -> None:
                self.places(jb, buffer, table, weights, sums, panel, p)

            for_(ib, 0, padded, some, step=s.pixels, vectorize=False)
            finish.emit(ib, at, ib.mul(panel, ib.index(s.lanes)))

        for_(b, *tiles, tile, vectorize=False)


def ceil(b: Builder, n: Value, by: Value) -> Value:
    """n / by, rounded up."""
    return b.div(b.add(n, b.sub(by, b.index(1))), by)  # type: ignore[no-any-return]


__all__ = ["ConvOpenSchedule", "choose", "conv_open"]
