"""The convolution template for CPUs where every channel is convolved by itself: lanes are channels.

As in conv_channels_cpu.py a task copies what it reads with a vector of channels innermost, so that strides, edges and short rows
cost nothing; here every place of the window is one vector of the patch by one vector of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import PostCode, follows_exactly
from fluxir.schedule.conv_channels_cpu import Channels, window_steps
from fluxir.schedule.conv_patch import Patch, Place
from fluxir.schedule.conv_schedule import ConvChannelsSchedule, divisions
from fluxir.schedule.conv_space import Conv, read_conv
from fluxir.schedule.group import Group
from fluxir.schedule.loops import for_
from fluxir.schedule.templates import Kernels, template

UNROLL = 8  # columns of the window that are written out, at most
NEAR = 48 * 1024  # bytes of a task's patch and sums: little more than the first cache
LONG = 4  # vectors in a row above which transposing costs more than the ends of rows
PLACES = 1024  # places of a task, over its tiles of channels, that are worth what a task prepares


@dataclass(frozen=True)
class DepthwiseSchedule(ConvChannelsSchedule):
    """As for `ConvChannelsSchedule`; a tile of channels is one vector."""


def choose(conv: Conv, target: Any) -> DepthwiseSchedule | None:
    """The schedule; None where the channels do not fill lanes, rows are long, or one does not fit."""
    lanes, size = target.lanes(conv.dtype.bits), conv.dtype.itemsize
    _, outer, line = conv.axes
    if lanes < 2 or conv.groups < lanes or 0 in (conv.places, conv.window) or line.out >= LONG * lanes:
        return None

    def fits(rows: int, columns: int) -> bool:
        patch = Patch(replace(conv, groups=1, channels=lanes), lanes, 1, rows, columns, lanes)
        return bool(patch.nbytes + rows * columns * lanes * size <= NEAR)

    options = [(r, line.out) for r in sorted(divisions(outer.out), reverse=True)]
    options += [(1, c) for c in sorted(divisions(line.out, 2, line.out // 16), reverse=True)]
    block = next((o for o in options if fits(*o)), None)
    if block is None:
        return None
    rows, columns = block
    places = rows * columns
    most = target.vector_registers - 4
    pixels = min(range(min(most, places), 0, -1), key=lambda p: -(-places // p) * (max(p, 8) + 1))
    panels = -(-conv.groups // lanes)
    tiles = max(1, min(panels, PLACES // places))
    return DepthwiseSchedule(pixels, 1, lanes, 1, rows, columns, tiles, 1)


@template("depthwise", target="cpu", anchors=("conv",), priority=23)
def depthwise(group: Group, target: Any) -> Kernels | None:
    """One convolution of every channel by itself, with what follows it."""
    ops = [op for op in group.ops if op.name == "conv"]
    if len(ops) != 1 or any(v not in group.args for v in ops[0].operands):
        return None
    numbers = read_conv(ops[0])
    if numbers is None or numbers.batch == 0 or (numbers.channels, numbers.outputs) != (1, 1):
        return None
    schedule = choose(numbers, target)
    after = follows_exactly(group, ops[0].result, [0, 1, *[2] * numbers.space])
    if schedule is None or after is None:
        return None
    return Depthwise(group, numbers, schedule, after, numbers.dtype.is_float and target.has("fma")).kernels()


class Depthwise(Channels):
    """The kernels: to the weights' panels it is one group with as many outputs as there are channels."""

    def __init__(self, group: Group, conv: Conv, schedule: DepthwiseSchedule, after: Any, fma: bool) -> None:
        super().__init__(group, replace(conv, groups=1, outputs=conv.groups), schedule, after, fma)
        s, every = schedule, replace(self.conv, channels=conv.groups)
        self.channels = Patch(every, s.lanes, 1, s.rows, s.columns, s.lanes)

    def task(self, b: Builder, x: Value, weights: Value, post: PostCode, at: Place, first: Value) -> None:
        conv, s, patch = self.conv, self.schedule, self.channels
        padded = self.pixel_tiles * s.pixels
        buffer = b.emit("alloc", type=MemType(conv.dtype, (patch.block_size,), "local"))[0]
        rows = max(padded, patch.places + s.lanes)
        sums = b.emit("alloc", type=MemType(conv.dtype, (rows, s.lanes), "local"))[0]
        table = self.table(b)
        count = b.minimum(b.index(s.tiles), b.sub(b.index(self.panels), first))

        def tile(ib: Builder, t: Value) -> None:
            panel = ib.add(first, t)
            patch.fill(ib, x, buffer, at, only=panel)

            def some(jb: Builder, p: Value) -> None:
                self.places(jb, buffer, table, weights, sums, panel, p)

            for_(ib, 0, padded, some, step=s.pixels, vectorize=False)
            self.finish(post, sums).emit(ib, at, ib.mul(panel, ib.index(s.lanes)))

        for_(b, 0, count, tile, vectorize=False)

    def places(
        self, b: Builder, buffer: Value, table: Value, weights: Value, sums: Value, panel: Value, p: Value
    ) -> None:
        """The sums of `pixels` places from `p` on."""
        s = self.schedule
        places = [b.add(p, b.index(i)) for i in range(s.pixels)]
        bases = [b.mul(b.emit("load", table, q)[0], b.index(s.lanes)) for q in places]
        zero = b.emit("splat", b.const(0, dtype=self.conv.dtype), lanes=s.lanes)[0]

        def run(ib: Builder, k: Value, at: tuple[Value, int], carry: Sequence[Value]) -> Sequence[Value]:
            offset, length = at
            columns = length // s.lanes
            starts = [ib.add(base, offset) for base in bases]
            first = ib.div(k, ib.index(s.lanes))
            unroll = max(u for u in range(1, UNROLL + 1) if columns % u == 0)

            def step(jb: Builder, i: Value, *acc: Value) -> list[Value]:
                values = list(acc)
                for u in range(unroll):
                    q = jb.add(i, jb.index(u)) if u else i
                    w = jb.emit("load", weights, panel, jb.add(first, q), jb.index(0), lanes=s.lanes)[0]
                    moved = jb.mul(q, jb.index(s.lanes))
                    for n, start in enumerate(starts):
                        e = jb.emit("load", buffer, jb.add(start, moved), lanes=s.lanes)[0]
                        values[n] = jb.fma(w, e, values[n]) if self.fma else jb.add(jb.mul(w, e), values[n])
                return values

            if unroll == columns:
                return step(ib, ib.index(0), *carry)
            return for_(ib, 0, columns, step, carry, step=unroll, vectorize=False)

        acc = window_steps(b, self.channels, run, [zero] * s.pixels)
        for q, v in zip(places, acc):
            b.store(sums, v, q, b.index(0))


__all__ = ["NEAR", "Depthwise", "DepthwiseSchedule", "depthwise"]
