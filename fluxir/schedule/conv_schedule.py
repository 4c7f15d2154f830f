"""What a convolution with output channels as lanes costs, and the blocks and register tile with the least.

Times are estimated cycles of one thread, from counts of what a task does; only their proportions matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxir.schedule.conv_patch import Patch
from fluxir.schedule.conv_space import Conv
from fluxir.schedule.group import Group
from fluxir.schedule.templates import Schedule
from fluxir.schedule.tuned import tuned

PANEL = 20 * 1024  # bytes of weights that stay in the first cache
# Cycles for an element of the patch (by squares, and by itself) and for a result; bytes of weights that come in a cycle from
# the second cache and from further away. Measured on Zen; only their proportions matter.
COPY, SINGLE, FINISH, NEAR, FAR = 0.4, 2.0, 0.6, 12.0, 6.0
STACK = 512 * 1024  # bytes of a task's arrays, at most (fluxir/runtime/pool.py leaves as much)
SHARED = 50_000  # cycles that are worth several threads


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


def choose(conv: Conv, target: Any) -> tuple[float, ConvChannelsSchedule] | None:
    """The least estimated time and its schedule; None where the output channels do not fill lanes, the sums are short, or one
    row does not fit."""
    lanes, size = target.lanes(conv.dtype.bits), conv.dtype.itemsize
    if lanes < 2 or conv.outputs < lanes or 0 in (conv.channels, conv.window, conv.places):
        return None
    if conv.channels * conv.window < 2 * lanes or _short(conv, lanes):
        return None
    depth = depth_of(conv.channels, max(1, PANEL // (2 * lanes * size * conv.window)))
    best: tuple[float, ConvChannelsSchedule] | None = None
    for images, rows, columns in blocks_of(conv):
        patch = Patch(conv, lanes, images, rows, columns, depth)
        if patch.nbytes > min(target.l2_bytes // 2, STACK // 2):
            continue
        cost, pixels, vectors = tile_of(patch.places, conv.outputs, lanes, target.vector_registers)
        panels = -(-conv.outputs // (vectors * lanes))
        blocks = tasks_of(conv, images, rows, columns)
        multiply = blocks * cost * conv.channels * conv.window
        finish = blocks * patch.places * panels * vectors * lanes * FINISH
        weights = conv.channels * conv.window * conv.outputs * size
        read = blocks * weights / (NEAR if weights <= target.l2_bytes // 2 else FAR)
        copy = blocks * patch.nbytes / size * (COPY if depth >= lanes else SINGLE)
        for tiles, parts in parts_of(panels):
            time = shared(multiply * parts * tiles / panels + finish + read + copy * parts, blocks * parts)
            if best is None or time < best[0]:
                best = time, ConvChannelsSchedule(pixels, vectors, lanes, images, rows, columns, tiles, depth)
    return best


def searched(group: Group, conv: Conv, target: Any, default: ConvChannelsSchedule) -> ConvChannelsSchedule:
    """The schedule that tuning found, of other tiles and tasks; the default where there is none."""
    blocks = set(blocks_of(conv))
    space = {
        "pixels": range(1, 15),
        "vectors": (1, 2, 3),
        "rows": {rows for _, rows, _ in blocks},
        "columns": {columns for _, _, columns in blocks},
        "tiles": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    }

    def valid(s: ConvChannelsSchedule) -> bool:
        patch = Patch(conv, s.lanes, s.images, s.rows, s.columns, s.depth)
        known = (s.images, s.rows, s.columns) in blocks
        fits = s.pixels <= patch.places and s.tiles <= -(-conv.outputs // (s.vectors * s.lanes))
        registers = (s.pixels + 1) * s.vectors + 1
        return known and fits and patch.nbytes <= target.l2_bytes // 2 and registers <= target.vector_registers

    return tuned(group, target, "conv_channels", default, space, valid)


def _short(conv: Conv, lanes: int) -> bool:
    """Whether sums are so short that transposing them is the larger part, and rows are whole vectors of pixels."""
    row = conv.op.result.type.shape[-1]
    whole = row % lanes == 0 and 4 * lanes <= row <= 64 * lanes
    return len(conv.op.result.type.shape) == 4 and whole and conv.channels * conv.window <= 4 * lanes


def tasks_of(conv: Conv, images: int, rows: int, columns: int) -> int:
    """Blocks of places that there are; of an open batch as if it were one image, which is to keep all threads busy, too."""
    deep, outer, line = conv.axes
    batch = conv.batch if isinstance(conv.batch, int) else 1
    return conv.groups * deep.out * -(-outer.out // rows) * -(-line.out // columns) * -(-batch // images)


def parts_of(panels: int) -> list[tuple[int, int]]:
    """Tiles of output channels that a task may have, and in how many parts that cuts them."""
    tiles = sorted({-(-panels // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16)}, reverse=True)
    return [(t, -(-panels // t)) for t in tiles]


def shared(time: float, tasks: int) -> float:
    """The time with what threads lose that wait for the last task, where it is worth threads."""
    return time * (1 + 0.5 / tasks) if time > SHARED else time


def divisions(n: int, low: int = 1, high: int | None = None) -> set[int]:
    """The sizes of parts when `n` is cut into `low` to `high` (default: n) of them; of a size that is out of all proportion only
    some, since a model may name any."""
    high = n if high is None else high
    counts = range(low, high + 1) if n <= 1 << 16 else [*(1 << k for k in range(low - 1, n.bit_length())), n]
    return {-(-n // k) for k in counts if low <= k <= high}


def blocks_of(conv: Conv) -> list[tuple[int, int, int]]:
    """Blocks of images, rows and columns that a task may have."""
    deep, outer, line = conv.axes
    found = [(1, r, line.out) for r in divisions(outer.out)]
    found += [(1, 1, c) for c in divisions(line.out, 2, line.out // 16)]
    if deep.out == 1:
        many = conv.batch if isinstance(conv.batch, int) else 8
        found += [(i, outer.out, line.out) for i in (2, 4, 8) if i <= many and i * conv.places <= 256]
    return found


def depth_of(channels: int, most: int) -> int:
    """Channels of a block: at most `most`, of equal size where there is such a divisor that is not much smaller."""
    if channels <= most:
        return channels
    for d in range(most, most // 2, -1):
        if channels % d == 0:
            return d
    return -(-channels // -(-channels // most))


def tile_of(places: int, outputs: int, lanes: int, registers: int) -> tuple[float, int, int]:
    """Places and vectors of the register tile with the least work, where a step costs its multiplications or its loads and a
    tile some more to begin and end; and the cycles of a step of all tiles."""
    best = (float("inf"), 1, 1)
    for vectors in (2, 3, 1):
        if vectors > 1 and outputs <= (vectors - 1) * lanes:
            continue
        for pixels in range(min(places, (registers - vectors - 1) // vectors), 0, -1):
            step = max(pixels * vectors, pixels + vectors, 8) / 2 + 0.25
            cost = -(-places // pixels) * -(-outputs // (vectors * lanes)) * step
            best = min(best, (cost, pixels, vectors), key=lambda found: found[0])
    return best


__all__ = [
    "COPY",
    "FAR",
    "FINISH",
    "NEAR",
    "STACK",
    "ConvChannelsSchedule",
    "blocks_of",
    "divisions",
    "choose",
    "depth_of",
    "parts_of",
    "searched",
    "shared",
    "tasks_of",
    "tile_of",
]
