"""The schedule of a product on a CPU: the register tile, blocks for the caches, tasks, and how the operands are read.

Everything follows from the registers and caches of the target and from the sizes that are known; the number of threads has
no say. What was measured is in docs/design/matrix-products.md. `best` gives what tuning found, where it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.dims import Dim, product
from fluxir.schedule.contraction import FREE, Dot
from fluxir.schedule.matmul_pack import LINES
from fluxir.schedule.templates import Schedule
from fluxir.schedule.tuned import tuned

TASK = 1 << 18  # multiplications that are worth a task: some 5 us
LOADED = 12  # rows up to which a product takes as long as reading the right operand does
SHARED = 1 << 26  # multiplications up to which each task packs its own panels
TASKS = 16  # tasks that a product is cut into where they are not too small
LONG = 8192  # bytes of a line's piece that memory is read in at full speed, about
CHUNK = 64  # values of k that are copied at a time where memory is what takes time
LARGE = 1 << 19  # bytes of a second cache that is not large
TALL = 2048  # rows for which a task copies panels of its own
BLOCK = 0.04  # of a product's time: sums that wait for another block of k
SKINNY = 64  # rows up to which memory is what takes time where the right operand is copied
FEW_TILES = 3  # tiles of rows that are worth a pass over packed panels
MAX_ROWS = 14  # rows of a register tile: what more of them saves is little


@dataclass(frozen=True)
class MatmulSchedule(Schedule):
    """`rows` x `vectors` x `lanes`: the register tile. `depth`: length of a block of the contracted index (0: all of it).
    `row_tiles`, `panels`: size of a task. `group`: panels that it copies together. `lhs`, `rhs`: how operands are read.
    `strips`: what follows the product is computed along rows of a task, when all their sums are there."""

    rows: int
    vectors: int
    lanes: int
    depth: int
    row_tiles: int
    panels: int
    group: int
    lhs: str
    rhs: str
    strips: bool = False

    @property
    def cols(self) -> int:
        return self.vectors * self.lanes


def choose(dot: Dot, target: Any, packed: bool = False) -> MatmulSchedule:
    """The schedule for a dot, from the registers and caches of the target and from sizes that are known. `packed`: the right
    operand is packed beforehand, for nothing."""
    size = dot.dtype.itemsize
    lanes = target.lanes(dot.dtype.bits)
    work = product((dot.batch, dot.m, dot.n, dot.k))
    few = isinstance(work, int) and work <= SHARED
    # a panel fills the first cache, or some of a second one that is large: what is read once in a tile arrives
    panel = max(target.l1_bytes, (target.l2_bytes - LARGE) // 8) // (lanes * size)
    rows, vectors = _tile(dot.m, dot.n, dot.k, panel, lanes, target.vector_registers, few)
    cols = vectors * lanes
    deepest = max(64, panel // vectors)
    deep = dot.k if isinstance(dot.k, int) else deepest
    total = dot.k * dot.n * size
    far = (
        isinstance(total, int) and total > target.l3_bytes // 8
    )  # panels come from memory unless strips of them stay near
    if deep > deepest * 5 // 4:  # blocks of one length
        longest = deepest * 3 // 4 if far else deepest
        deep = -(-deep // -(-deep // longest))
        deep += -deep % lanes
    # tiles of rows that stay in the second cache
    most = max(1, target.l2_bytes * (2 if far else 1) // 4 // (deep * size) // rows)
    # and those of one task that copies panels: half of a small cache; beside a large one rows may come from behind it, which
    # costs less than panels that another thread has packed
    held = -(-(target.l2_bytes // 2) // (deep * size) // rows)
    if target.l2_bytes > LARGE and not far:
        held = max(held, TALL // rows)
    m = dot.m if isinstance(dot.m, int) else 1 << 16
    rhs = "packed" if packed else _rhs(dot, target, m, rows, isinstance(dot.m, int) and m > held * rows)
    bytes_ = dot.k * dot.n * size
    large = rhs != "packed" and not (isinstance(bytes_, int) and bytes_ <= target.l2_bytes // 2)
    group, streams = 8, False
    if large and rhs == "in place":
        deep, streams = LINES, True
    elif large and m <= SKINNY:  # memory is what takes time: read long pieces of its lines
        deep, streams = min(deep, CHUNK), True
        group = max(8, target.l2_bytes // 2 // (deep * cols * size))
    depth = 0 if deep == dot.k else deep
    if rhs != "packed":  # what a task copies is copied in every block of rows
        most = held
    row_tiles, panels = _task(dot, rows, cols, most, streams, rhs == "packed")
    if far and not streams and isinstance(dot.k, int):
        panels = min(panels, max(8, target.l3_bytes // 8 // (dot.k * cols * size)))
    lhs = _lhs(dot, target, depth, m <= rows)
    if lhs == "rows" and not far and isinstance(dot.n, int) and panels * cols * 2 <= dot.n:
        lhs = "in place"  # each strip would copy the rows again
    found = MatmulSchedule(rows, vectors, lanes, depth, row_tiles, panels, min(panels, group), lhs, rhs)
    return found if streams else _strips(dot, target, found)


def _strips(dot: Dot, target: Any, s: MatmulSchedule) -> MatmulSchedule:
    """Where much is read beside the products (the step of an optimiser behind a gradient): as long strips as fit into the
    second cache, and as many tasks as before."""
    states = len(dot.states())
    if (
        s.depth
        or not isinstance(dot.k, int)
        or not isinstance(dot.n, int)
        or states + (s.lhs == "panels") < 2
        or not states
    ):
        return s
    across = dot.n // s.cols
    panels = min(across, target.l2_bytes // 4 // (dot.k * s.cols * dot.dtype.itemsize))
    if panels <= s.panels:
        return replace(s, strips=s.panels > 1)
    row_tiles = max(1, s.row_tiles * s.panels // panels)
    return replace(s, row_tiles=row_tiles, panels=panels, group=panels, strips=True)


def best(dot: Dot, target: Any, packed: bool = False) -> MatmulSchedule:
    """The schedule that tuning found, of other tiles and tasks; how the operands are read stays as it is."""
    default = choose(dot, target, packed)
    space: dict[str, Sequence[int]] = {
        "rows": range(1, MAX_ROWS + 1),
        "vectors": range(1, 7),
        "row_tiles": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
        "panels": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
        "group": (1, 2, 4, 8, 16),
    }
    if default.depth:
        space["depth"] = range(default.lanes * 8, 513, default.lanes * 4)

    def valid(s: MatmulSchedule) -> bool:
        deep = s.depth or dot.k
        copied = s.rows * s.row_tiles * (s.lhs != "in place") + s.cols * s.group * (s.rhs == "panels")
        fits = not copied or (isinstance(deep, int) and copied * (deep + 16) * dot.dtype.itemsize <= target.l2_bytes)
        return (
            fits and s.group <= s.panels and s.rows * s.vectors + min(s.rows, s.vectors) + 1 <= target.vector_registers
        )

    return tuned(dot.group, target, f"matmul {default.rhs}", default, space, valid)


def _rhs(dot: Dot, target: Any, m: int, rows: int, several: bool) -> str:
    """How to read the right operand by tiles of `rows` rows, in `several` blocks."""
    if dot.rhs.computed or dot.rhs.contiguous() is None:
        return "packed"
    if dot.rhs.contiguous() == FREE and isinstance(dot.n, int):
        small = dot.k * dot.n * dot.dtype.itemsize
        known = isinstance(small, int)
        if (
            m <= rows
            or (known and small <= target.l1_bytes // 2)
            or (m <= 2 * rows and known and small > target.l2_bytes // 2)
        ):
            return "in place"
    return "packed" if several else "panels"


def _lhs(dot: Dot, target: Any, depth: int, once: bool) -> str:
    run = dot.lhs.contiguous()
    if dot.lhs.computed or run is None:
        return "packed"
    small = dot.m * dot.k * dot.dtype.itemsize
    if run == FREE:
        return "in place" if isinstance(small, int) and small <= target.l1_bytes // 2 else "panels"
    narrow = isinstance(dot.n, int) and dot.n <= 64  # a copy costs more than it saves
    if once or (dot.lhs.value.type.dtype == dot.dtype and (not depth or narrow)):
        return "in place"
    return "rows"


def _tile(m: Dim, n: Dim, k: Dim, panel: int, lanes: int, registers: int, few: bool) -> tuple[int, int]:
    """Rows and vectors of the register tile: the one for which the tiles that cover the result take the least time. Wider
    than two vectors costs a little: the panel takes more of the first cache, and k has more blocks (`panel`: how many vectors
    one may hold). `few`: tasks are panels, of which an even number is better, since two threads share them."""
    m = m if isinstance(m, int) else 1 << 16
    n = n if isinstance(n, int) else 1 << 16
    across = -(-n // lanes)
    wide = 0.03 if registers < 32 else 0.008  # what each vector beyond two costs

    def time(r: int, v: int) -> float:
        """Of one k, in half cycles: two multiplications or loads start in a cycle, and one takes four. Every instruction
        costs a little, more where the core's other thread is at work."""
        return max(r * v, r + v, 8) + 0.5 + 0.3 * (r * v + r + v + 3) if r and v else 0.0

    def total(tile: tuple[int, int]) -> float:
        r, v = tile
        whole_r, whole_v = m // r, across // v
        parts = [(r, v, whole_r * whole_v), (m % r, v, whole_v), (r, across % v, whole_r), (m % r, across % v, 1)]
        panels = -(-across // v)
        uneven = _even(panels) / panels if few else 1.0
        blocks = -(-k // (panel // v * 5 // 4)) if isinstance(k, int) and m > LOADED else 1
        kinds = 1 + 0.01 * (m % r != 0)  # tiles of another height are more code
        factor = (1 + wide * max(0, v - 2)) * uneven * kinds * (1 + BLOCK * (blocks - 1))
        return sum(time(a, b) * times for a, b, times in parts) * factor

    tiles = [
        (r, v)
        for r in range(1, min(m, MAX_ROWS) + 1)
        for v in range(1, min(across, 12) + 1)
        if r * v + min(r, v) + 1 <= registers and (v <= 4 or r <= 2)
    ]
    return min(tiles, key=lambda x: (total(x), -x[0] * x[1]))


def _task(dot: Dot, rows: int, cols: int, most: int, streams: bool, packed: bool) -> tuple[int, int]:
    """The tiles of rows and the panels of columns that a task takes; at most `most` tiles of rows. `streams`: lines of the
    right operand are read from memory, the longer the better. `packed`: the right operand is, so that rows are cut first."""
    across = -(-dot.n // cols) if isinstance(dot.n, int) else None
    k = dot.k if isinstance(dot.k, int) else 256
    if not isinstance(dot.m, int) or not isinstance(dot.batch, int):
        line = (dot.n if isinstance(dot.n, int) else 256) * k
        wanted = max(1, min(8, line // (TASK // 4)))
        return min(most, 96 // rows), max(1, -(-across // wanted)) if across else 8
    down = -(-dot.m // rows)
    blocks = _even(-(-down // most))
    if across is None:
        return -(-down // blocks), 8
    work = int(product((dot.batch, max(dot.m, LOADED), dot.n, k)))
    wanted = max(1, min(TASKS if work > 64 * TASK * TASKS else TASKS // 2, work // TASK))
    if packed:
        blocks = max(blocks, min(_even(-(-min(TASKS, work // TASK) // dot.batch)), down // FEW_TILES))
    strips = min(across, _even(-(-wanted // (dot.batch * blocks))))
    if streams:
        strips = min(strips, max(2, across * cols * dot.dtype.itemsize // LONG))
    panels = -(-across // strips)
    if not packed and strips > 1:  # of tasks that are few and large, two threads get about the same
        panels = min(range(panels, (panels - 1) // 2, -1), key=lambda p: ((-(-across // p) + 1) // 2 * p, p))
    return -(-down // blocks), panels


def _even(n: int) -> int:
    """Two threads, or any even number of them, get the same work."""
    return n if n <= 1 else n + n % 2


__all__ = ["CHUNK", "LOADED", "TASK", "MatmulSchedule", "best", "choose"]
