"""The matmul template for CPUs: blocks that fit the caches and a register tile of vectors, with what follows fused into the
store.

A task is a block of rows by a block of columns. For each block of the contracted index (`depth`) it walks panels of
columns, and in a panel the tiles of rows, so that a panel stays in the first cache and the block's rows in the second.
(The structure of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, as arranged in BLIS.)
Each operand is read in one of these ways (`MatmulSchedule.lhs` and `rhs`):

- "in place", where that is as good: it is read once only, or is small, and lies along the vectors (or along k);
- "rows" / "panels": the task copies what it reads into a buffer on its stack, which stays in the caches;
- "packed": a step before copies it whole. So constants are packed when compiling and what a loop does not change before the
  loop (`Kernels.prepared`), and what is computed is computed once.

The order of additions depends on the sizes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, floordiv, maximum, product
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import (
    FREE,
    Dot,
    Operand,
    OperandCode,
    PostCode,
    analyse_dot,
    as_reduction,
    prologue_reads,
    types_of,
    views,
)
from fluxir.schedule.gemv_cpu import gemv, turned
from fluxir.schedule.group import Group
from fluxir.schedule.loops import Size, for_, grain_of, if_, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.matmul_pack import (
    LINES,
    Packer,
    lanes_of,
    pack_array,
    part_of,
    pieces,
    plus,
    transposed,
)
from fluxir.schedule.matmul_tile import Place, Read, Tiles
from fluxir.schedule.rowwise import rowwise
from fluxir.schedule.space import inplace_pairs
from fluxir.schedule.split import split_at
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.tuned import tuned

TINY = 2048  # multiplications below which plain loops do
TASK = 1 << 18  # multiplications that are worth a task: some 5 us
TASKS = 16  # tasks that a product is cut into where they are not too small
LONG = 8192  # bytes of a line's piece that memory is read in at full speed, about
CHUNK = 64  # values of k that a task of the packing copies
MAX_ROWS = 14  # rows of a register tile: what more of them saves is little


@dataclass(frozen=True)
class MatmulSchedule(Schedule):
    """`rows` x `vectors` x `lanes`: the register tile. `depth`: length of a block of the contracted index (0: all of it).
    `row_tiles`, `panels`: size of a task. `group`: panels that it copies together. `lhs`, `rhs`: how operands are read."""

    rows: int
    vectors: int
    lanes: int
    depth: int
    row_tiles: int
    panels: int
    group: int
    lhs: str
    rhs: str

    @property
    def cols(self) -> int:
        return self.vectors * self.lanes


@template("matmul", target="cpu", anchors=("dot",), priority=20)
def matmul(group: Group, target: Any) -> Kernels | None:
    """One dot with pointwise operations before and after it."""
    dot = analyse_dot(group)
    if dot is None:
        return None
    if 0 in (dot.batch, dot.m, dot.n, dot.k):
        return None
    written, dot = dot, turned(dot)
    if (few := gemv(dot, target)) is not None:
        return few
    if not _is_wide(dot, target) and (flat := as_reduction(written)) is not None:
        return rowwise(flat, target)
    work = dot.batch * dot.m * dot.n * dot.k
    if isinstance(work, int) and work <= TINY:
        return None
    if len(dot.post_dims[2]) > 1:  # what follows does not see the columns as one axis
        return split_at(group, dot.op, target)
    schedule = _tuned(dot, target, choose(dot, target))
    made = _Matmul(dot, target, schedule).kernels()
    if schedule.rhs == "packed" or dot.rhs.computed:
        return made
    prepared = functools.cache(
        lambda: _Matmul(dot, target, _tuned(dot, target, choose(dot, target, packed=True))).kernels()
    )
    return replace(made, prepared=prepared)


def _is_wide(dot: Dot, target: Any) -> bool:
    """Whether a vector times a matrix has enough columns to be cut by columns alone."""
    wide = 4 * target.l1_bytes // 128 // dot.dtype.itemsize
    return dot.m == 1 and isinstance(dot.n, int) and dot.n >= wide and dot.rhs.contiguous() == FREE and dot.k != 1


# ---- the schedule ------------------------------------------------------------------------------------------------------


def _tuned(dot: Dot, target: Any, default: MatmulSchedule) -> MatmulSchedule:
    """The schedule that tuning found, of other tiles and tasks; how the operands are read stays as it is."""
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


def choose(dot: Dot, target: Any, packed: bool = False) -> MatmulSchedule:
    """The schedule for a dot, from the registers and caches of the target and from sizes that are known. `packed`: the right
    operand is packed beforehand, for nothing."""
    size = dot.dtype.itemsize
    lanes = target.lanes(dot.dtype.bits)
    rows, vectors = _tile(dot.m, dot.n, lanes, target.vector_registers)
    cols = vectors * lanes
    deepest = max(64, target.l1_bytes // (cols * size))
    deep = dot.k if isinstance(dot.k, int) else deepest
    if deep > deepest * 5 // 4:  # blocks of one length
        deep = -(-deep // -(-deep // deepest))
        deep += -deep % lanes
    most = max(1, target.l2_bytes // 4 // (deep * size) // rows)  # tiles of rows that stay in the second cache
    m = dot.m if isinstance(dot.m, int) else 1 << 16
    rhs = "packed" if packed else _rhs(dot, target, m, rows, isinstance(dot.m, int) and m > 2 * most * rows)
    bytes_ = dot.k * dot.n * size
    large = rhs != "packed" and not (isinstance(bytes_, int) and bytes_ <= target.l2_bytes // 2)
    group, streams = 8, False
    if large and rhs == "in place":
        deep, streams = LINES, True
    elif (
        large and m <= 2 * LINES * rows and isinstance(dot.m, int)
    ):  # memory is what takes time: read long pieces of its lines
        deep, streams = min(deep, CHUNK), True
        group = max(8, target.l2_bytes // 2 // (deep * cols * size))
    depth = 0 if deep == dot.k else deep
    if rhs != "packed":  # what a task copies is copied in every block of rows: at most one or two
        most *= 2
    row_tiles, panels = _task(dot, rows, cols, most, streams)
    lhs = _lhs(dot, target, depth, m <= rows)
    return MatmulSchedule(rows, vectors, lanes, depth, row_tiles, panels, min(panels, group), lhs, rhs)


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


def _tile(m: Dim, n: Dim, lanes: int, registers: int) -> tuple[int, int]:
    """Rows and vectors of the register tile: the one for which the tiles that cover the result take the least time. Wider
    than two vectors costs a little: the panel takes more of the first cache."""
    m = m if isinstance(m, int) else 1 << 16
    n = n if isinstance(n, int) else 1 << 16
    across = -(-n // lanes)

    def time(r: int, v: int) -> float:
        """Of one k, in half cycles: two multiplications or loads start in a cycle, and one takes four."""
        return max(r * v, r + v, 8) + 0.5 if r and v else 0.0

    def total(tile: tuple[int, int]) -> float:
        r, v = tile
        whole_r, whole_v = m // r, across // v
        parts = [(r, v, whole_r * whole_v), (m % r, v, whole_v), (r, across % v, whole_r), (m % r, across % v, 1)]
        return sum(time(a, b) * times for a, b, times in parts) * (1 + 0.03 * max(0, v - 2))

    tiles = [
        (r, v)
        for r in range(1, min(m, MAX_ROWS) + 1)
        for v in range(1, min(across, 12) + 1)
        if r * v + min(r, v) + 1 <= registers and (v <= 4 or r <= 2)
    ]
    return min(tiles, key=lambda x: (total(x), -x[0] * x[1]))


def _task(dot: Dot, rows: int, cols: int, most: int, streams: bool) -> tuple[int, int]:
    """The tiles of rows and the panels of columns that a task takes; at most `most` tiles of rows. `streams`: lines of the
    right operand are read from memory, the longer the better."""
    across = -(-dot.n // cols) if isinstance(dot.n, int) else None
    k = dot.k if isinstance(dot.k, int) else 256
    if not isinstance(dot.m, int) or not isinstance(dot.batch, int):
        line = (dot.n if isinstance(dot.n, int) else 256) * k
        wanted = max(1, min(8, line // (TASK // 4)))
        return min(most, 96 // rows), max(1, -(-across // wanted)) if across else 8
    down = -(-dot.m // rows)
    blocks = -(-down // most)
    if across is None:
        return -(-down // blocks), 8
    work = int(product((dot.batch, dot.m, dot.n, k)))
    wanted = max(1, min(TASKS if work > 64 * TASK * TASKS else TASKS // 2, work // TASK))
    strips = max(1, min(across, -(-wanted // (dot.batch * blocks))))
    if streams:
        strips = min(strips, max(2, across * cols * dot.dtype.itemsize // LONG))
    panels = -(-across // strips)
    return -(-down // blocks), panels


# ---- the kernels -------------------------------------------------------------------------------------------------------


class _Matmul:
    """The kernels of one dot: packing, then the tiles."""

    def __init__(self, dot: Dot, target: Any, schedule: MatmulSchedule) -> None:
        self.dot, self.schedule = dot, schedule
        self.fma = dot.dtype.is_float and target.has("fma")
        s = self.schedule
        self.row_panels, self.col_panels = ceildiv(dot.m, s.rows), ceildiv(dot.n, s.cols)
        self.blocks: Dim = maximum(1, ceildiv(dot.k, s.depth)) if s.depth else 1
        self.inputs, self.outputs = types_of(dot)
        self.packed_types = {
            "rhs": MemType(dot.dtype, (dot.batch * self.col_panels, dot.k, s.cols)),
            "lhs": MemType(dot.dtype, (dot.batch * self.row_panels, dot.k, s.rows)),
        }
        self.c_type = MemType(dot.dtype, (dot.batch * self.row_panels * self.col_panels, s.rows, s.cols))

    def side(self, which: str) -> tuple[Operand, Dim, Dim, int]:
        """An operand, its free size, and number and width of its panels."""
        s = self.schedule
        if which == "lhs":
            return self.dot.lhs, self.dot.m, self.row_panels, s.rows
        return self.dot.rhs, self.dot.n, self.col_panels, s.cols

    def kernels(self) -> Kernels:
        s, n_in, n_out = self.schedule, len(self.inputs), len(self.outputs)
        scratch: list[MemType] = []
        steps: list[Step] = []
        packed: list[Ref] = []
        for which, how in (("rhs", s.rhs), ("lhs", s.lhs)):
            if how == "packed":
                packed.append(("scratch", len(scratch)))
                scratch.append(self.packed_types[which])
                steps.append(self.pack(which, packed[-1]))
        partial: list[Ref] = []
        if self.blocks != 1:
            partial = [("scratch", len(scratch))]
            scratch.append(self.c_type)
        used = self.main_inputs()
        types = [*[self.inputs[i] for i in used], *[scratch[k] for _, k in packed]]
        waiting = [scratch[k] for _, k in partial]
        names = [*[self.dot.group.args[i].name for i in used], *[steps[i].kernel.name for i in range(len(packed))]]
        main = kernel(
            self.dot.group.name,
            types,
            [*waiting, *self.outputs],
            self.body,
            names=names,
            schedule=s,
            loc=self.dot.group.loc,
            given=[*types, *waiting, *[memory(v.type) for v in self.dot.group.outs]],
        )
        refs: list[Ref] = [*[("input", i) for i in used], *packed, *partial, *[("output", j) for j in range(n_out)]]
        assert len(refs) == len(main.args) and n_in >= len(used)
        first = len(refs) - n_out
        pairs = [(first + j, used.index(i)) for j, i in self.inplace() if i in used]
        steps.append(Step(main, tuple(refs), len(partial) + n_out, tuple(pairs)))
        return Kernels(tuple(steps), tuple(scratch))

    def main_inputs(self) -> list[int]:
        """Arguments that the main kernel reads: what `post` needs, and the operands that are not packed."""
        read = {v for op in self.dot.post.ops for v in op.operands} | set(self.dot.post.outs)
        used = [i for i, a in enumerate(self.dot.post.args[:-1]) if a in read]
        for how, side in ((self.schedule.lhs, self.dot.lhs), (self.schedule.rhs, self.dot.rhs)):
            if how != "packed":
                used += prologue_reads(self.dot, side)
        return sorted(set(used))

    def inplace(self) -> list[tuple[int, int]]:
        """Pairs (result, argument) that may be one memory: what follows the dot reads the argument at the element it writes
        (once all products are added up), and neither operand comes from it."""
        dot = self.dot
        operands = {*prologue_reads(dot, dot.lhs), *prologue_reads(dot, dot.rhs)}
        pairs = inplace_pairs(dot.post, dot.post.outs, dot.post_shape())
        return [(j, i) for j, i in pairs if i < len(self.inputs) and i not in operands]

    # ---- packing beforehand
    def pack(self, which: str, target: Ref) -> Step:
        """The step that packs an operand whole: panels [batch and panel, k, width]."""
        dot, s = self.dot, self.schedule
        side, size, panels, width = self.side(which)
        used = prologue_reads(dot, side)

        def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            reads, _ = views(b, dot, dict(zip(used, ins)))
            packer = Packer(OperandCode(side, reads, dot.dtype), width, s.lanes)
            full = floordiv(size, width)

            def edge(ib: Builder, t: Value, row: Value, lo: Size, n: Size) -> None:
                first = ib.index(full * width)
                left = size % width if isinstance(size, int) else ib.sub(ib.index(size), first)
                if left != 0:
                    at = plus(ib, row, ib.index(full))
                    packer.panel(ib, outs[0], at, t, first, left, lo, n, lo)

            def lines(ib: Builder, at: tuple[Value, ...]) -> None:
                """All panels for some k."""
                t, c = at
                lo = ib.mul(c, ib.index(CHUNK))
                n = ib.minimum(ib.sub(ib.index(dot.k), lo), ib.index(CHUNK))
                row = ib.mul(t, ib.index(panels))
                packer.strip(ib, outs[0], row, t, ib.index(0), ib.index(full), lo, n, lo)
                edge(ib, t, row, lo, n)

            def panel(ib: Builder, at: tuple[Value, ...]) -> None:
                """One panel for all k."""
                t, p = at
                row = ib.mul(t, ib.index(panels))

                def one(jb: Builder) -> None:
                    first = jb.mul(p, jb.index(width))
                    packer.panel(jb, outs[0], jb.add(row, p), t, first, width, 0, dot.k)

                if full == panels:
                    one(ib)
                elif full == 0:
                    edge(ib, t, row, 0, dot.k)
                else:
                    if_(ib, ib.lt(p, ib.index(full)), one, lambda jb: edge(jb, t, row, 0, dot.k))

            by_lines = side.contiguous() == FREE
            shape = (dot.batch, ceildiv(dot.k, CHUNK) if by_lines else panels)
            work = (min(CHUNK, dot.k) if isinstance(dot.k, int) else CHUNK) * panels * width
            work = work if by_lines else dot.k * width
            task = lines if by_lines else panel
            if is_small(dot.batch * panels * dot.k * width, 32768):
                nest(b, shape, task)
            else:
                parallel(b, product(shape), lambda ib, x: task(ib, unravel(ib, x, shape)), grain=grain_of(work))

        made = kernel(
            f"{dot.group.name}_pack_{which}",
            [self.inputs[i] for i in used],
            [self.packed_types[which]],
            body,
            names=[dot.group.args[i].name for i in used],
            schedule=s,
            loc=dot.group.loc,
        )
        fold = None if side.computed else functools.partial(pack_array, side, width, dot.dtype.numpy)
        return Step(made, (*[("input", i) for i in used], target), fold=fold)

    @staticmethod
    def flat(b: Builder, t: Value, count: Dim, i: Value) -> Value:
        return b.add(b.mul(t, b.index(count)), i)  # type: ignore[no-any-return]

    # ---- the tiles
    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        dot, s = self.dot, self.schedule
        used = self.main_inputs()
        reads, after = views(b, dot, dict(zip(used, ins)))
        packed = list(ins[len(used) :])
        memories = {which: packed.pop(0) for which in ("rhs", "lhs") if getattr(s, which) == "packed"}
        partial = outs[0] if self.blocks != 1 else None
        results = outs[1:] if partial is not None else outs
        tiles = Tiles(dot, s.lanes, self.fma, PostCode(dot.post, after, results))
        block = _Block(self, tiles, reads, memories, partial)
        shape = (dot.batch, ceildiv(self.row_panels, s.row_tiles), ceildiv(self.col_panels, s.panels))
        if product(shape) == 1 or is_small(dot.batch * dot.m * dot.n * dot.k, 32768):
            nest(b, shape, block.task)
            return
        height = min(s.row_tiles * s.rows, dot.m) if isinstance(dot.m, int) else s.row_tiles * s.rows
        width = min(s.panels * s.cols, dot.n) if isinstance(dot.n, int) else s.panels * s.cols
        work = height * width * dot.k
        grain: Dim = maximum(1, floordiv(TASK // 2, maximum(1, work)))
        parallel(b, product(shape), lambda ib, x: block.task(ib, unravel(ib, x, shape)), grain=grain)


class _Block:
    """The code of a task."""

    def __init__(
        self,
        owner: _Matmul,
        tiles: Tiles,
        reads: dict[Value, Value],
        memories: dict[str, Value],
        partial: Value | None,
    ) -> None:
        self.owner, self.tiles, self.memories, self.partial = owner, tiles, memories, partial
        dot, s = owner.dot, owner.schedule
        self.dot, self.schedule = dot, s
        self.lhs, self.rhs = OperandCode(dot.lhs, reads, dot.dtype), OperandCode(dot.rhs, reads, dot.dtype)
        self.run: Dim = s.depth or dot.k
        m, n = dot.m, dot.n
        self.full_rows: Dim = floordiv(m, s.rows)  # row tiles that are whole
        self.full_cols: Dim = floordiv(n, s.cols)
        self.left_rows = m % s.rows if isinstance(m, int) else None  # rows and columns beyond these; None: not known
        self.left_cols = n % s.cols if isinstance(n, int) else None

    def task(self, b: Builder, at: tuple[Value, ...]) -> None:
        """One block of rows by one block of columns, all of k."""
        s = self.schedule
        t, i, j = at
        i0, j0 = b.mul(i, b.index(s.row_tiles)), b.mul(j, b.index(s.panels))
        i1 = b.minimum(b.add(i0, b.index(s.row_tiles)), b.index(self.owner.row_panels))
        j1 = b.minimum(b.add(j0, b.index(s.panels)), b.index(self.owner.col_panels))
        buffers = self.buffers(b)

        def block(ib: Builder, kb: Value | None) -> None:
            lo: Size = 0
            length: Size = ib.index(self.dot.k) if not isinstance(self.dot.k, int) else self.dot.k
            first = last = None
            if kb is not None:
                lo = ib.mul(kb, ib.index(s.depth))
                length = ib.minimum(ib.index(s.depth), ib.sub(ib.index(self.dot.k), lo))
                if isinstance(self.dot.k, int) and self.dot.k % s.depth == 0:
                    length = s.depth
                first = ib.eq(kb, ib.index(0))
                last = ib.eq(kb, ib.sub(ib.index(self.owner.blocks), ib.index(1)))
            _Panels(self, buffers, t, i0, i1, lo, length, first, last).emit(ib, j0, j1)

        if self.owner.blocks == 1:
            block(b, None)
        else:
            for_(b, 0, self.owner.blocks, block, name="block")

    def buffers(self, b: Builder) -> dict[str, Value]:
        """The memories that a task copies parts of the operands into."""
        s, dtype = self.schedule, self.dot.dtype
        out: dict[str, Value] = {}
        depth = self.run
        if isinstance(depth, int):
            if s.lhs == "rows":
                shape = (s.row_tiles * s.rows, depth + 64 // dtype.itemsize)
                out["lhs"] = b.alloc(type=MemType(dtype, shape, "local"))
            elif s.lhs == "panels":
                out["lhs"] = b.alloc(type=MemType(dtype, (s.row_tiles, depth, s.rows), "local"))
            if s.rhs == "panels":
                out["rhs"] = b.alloc(type=MemType(dtype, (s.group, depth, s.cols), "local"))
        return out


@dataclass(eq=False)
class _Panels:
    """The panels of a task in one block of k: `lo` and `length` say which."""

    task: _Block
    buffers: dict[str, Value]
    t: Value
    i0: Value
    i1: Value
    lo: Size
    length: Size
    first: Value | None
    last: Value | None

    def emit(self, b: Builder, j0: Value, j1: Value) -> None:
        task, s = self.task, self.task.schedule
        self.copy_lhs(b)
        end = b.minimum(j1, b.index(task.full_cols)) if task.left_cols != 0 else j1
        if task.full_cols != 0:
            if s.rhs == "panels":
                for_(b, j0, end, lambda ib, p: self.group(ib, p, end), step=s.group, name="group", vectorize=False)
            else:
                self.each(b, j0, end, None)
        if task.left_cols == 0:
            return
        left = task.left_cols
        p = b.index(task.full_cols)

        def edge(ib: Builder) -> None:
            cols = left or ib.sub(ib.index(task.dot.n), ib.mul(p, ib.index(s.cols)))
            if s.rhs == "panels":
                self.copy_edge(ib, p, cols)
            self.panel(ib, p, cols, -(-left // s.lanes) if left is not None else s.vectors, p)

        if task.owner.col_panels == 1 and left is not None:
            edge(b)
        else:
            if_(b, b.lt(p, j1), edge)

    def group(self, b: Builder, p: Value, end: Value) -> None:
        """Panels p, p + 1, ... of a group, copied together."""
        task, s = self.task, self.task.schedule
        last = b.minimum(b.add(p, b.index(s.group)), end)
        packer = Packer(task.rhs, s.cols, s.lanes)
        first, count = b.mul(p, b.index(s.cols)), b.sub(last, p)
        packer.strip(b, self.buffers["rhs"], b.index(0), self.t, first, count, self.lo, self.length)
        self.each(b, p, last, p)

    def copy_edge(self, b: Builder, p: Value, cols: int | Value) -> None:
        """The columns of the last panel, which is not whole, into the buffer."""
        task, s = self.task, self.task.schedule
        packer = Packer(task.rhs, s.cols, s.lanes)
        first = b.mul(p, b.index(s.cols))
        packer.panel(b, self.buffers["rhs"], b.index(0), self.t, first, cols, self.lo, self.length)

    def each(self, b: Builder, start: Value, end: Value, base: Value | None) -> None:
        """All tiles of panels start..end, all of whose columns exist; the buffer starts with panel `base`."""
        s = self.task.schedule

        def panels(ib: Builder, only: Value | None = None) -> None:
            def one(jb: Builder, p: Value) -> None:
                self.panel(jb, p, s.cols, s.vectors, base, only)

            for_(ib, start, end, one, name="panel", vectorize=False)

        if self.task.tiles.updated():  # a row of tiles: what is updated is then read along its rows
            for_(b, self.i0, self.i1, panels, name="row_tile", vectorize=False)
        else:
            panels(b)

    def panel(
        self, b: Builder, p: Value, cols: int | Value, vectors: int, base: Value | None, only: Value | None = None
    ) -> None:
        """All tiles of rows of one panel (or `only` this one), of which `cols` columns exist; the buffer starts with panel
        `base`."""
        task, s = self.task, self.task.schedule
        n = b.mul(p, b.index(s.cols))
        rhs = self.rhs(b, p, n, cols, base)
        left = task.left_rows
        end = b.minimum(self.i1, b.index(task.full_rows)) if left != 0 else self.i1

        def tile(ib: Builder, q: Value, rows: int, skip: Size = 0) -> None:
            m = plus(ib, ib.mul(q, ib.index(s.rows)), skip)
            place = Place(self.t, m, n, cols, self.partial(ib, q, p, skip), self.first, self.last)
            lhs = self.lhs(ib, q, m, skip)
            task.tiles.emit(ib, place, rows, vectors, self.length, lhs, rhs)

        if left == 0 and only is not None:
            tile(b, only, s.rows)
        elif task.full_rows != 0 and only is None:
            for_(b, self.i0, end, lambda ib, q: tile(ib, q, s.rows), name="row_tile", vectorize=False)
        if left == 0:
            return
        q = b.index(task.full_rows)

        def edge(ib: Builder) -> None:
            if left is not None:
                tile(ib, q, left)
                return
            there = ib.sub(ib.index(task.dot.m), ib.mul(q, ib.index(s.rows)))
            height = 1 << (s.rows - 1).bit_length() - 1
            while height:  # the binary digits of how many rows there are
                done = ib.sub(there, ib.fmod(there, ib.index(2 * height)))
                bit = ib.sub(ib.fmod(there, ib.index(2 * height)), ib.fmod(there, ib.index(height)))
                if_(ib, ib.gt(bit, ib.index(0)), functools.partial(tile, q=q, rows=height, skip=done))
                height //= 2

        if task.owner.row_panels == 1 and left is not None:
            edge(b)
        elif only is not None:
            if_(b, b.lt(only, q), lambda ib: tile(ib, only, s.rows), edge)
        else:
            if_(b, b.lt(q, self.i1), edge)

    def partial(self, b: Builder, q: Value, p: Value, skip: Size) -> tuple[Value, Value, Size] | None:
        owner, memory_ = self.task.owner, self.task.partial
        if memory_ is None:
            return None
        row = owner.flat(b, self.t, owner.row_panels, q)
        return memory_, owner.flat(b, row, owner.col_panels, p), skip

    # ---- operands
    def copy_lhs(self, b: Builder) -> None:
        """The rows of the task into its buffer."""
        task, s = self.task, self.task.schedule
        if "lhs" not in self.buffers:
            return
        buffer = self.buffers["lhs"]
        packer = Packer(task.lhs, s.rows, s.lanes)
        first = b.mul(self.i0, b.index(s.rows))
        if s.lhs == "rows":
            last = b.minimum(b.mul(self.i1, b.index(s.rows)), b.index(task.dot.m))
            packer.rows(b, buffer, self.t, first, b.sub(last, first), self.lo, self.length)
            return
        left = task.left_rows
        end = b.minimum(self.i1, b.index(task.full_rows)) if left != 0 else self.i1

        def panel(ib: Builder, q: Value, count: int | Value) -> None:
            at, m = ib.sub(q, self.i0), ib.mul(q, ib.index(s.rows))
            packer.panel(ib, buffer, at, self.t, m, count, self.lo, self.length)

        for_(b, self.i0, end, lambda ib, q: panel(ib, q, s.rows), name="row_tile", vectorize=False)
        if left != 0:
            q = b.index(task.full_rows)
            count = left or b.sub(b.index(task.dot.m), b.mul(q, b.index(s.rows)))
            if_(b, b.lt(q, self.i1), lambda ib: panel(ib, q, count))

    def lhs(self, b: Builder, q: Value, m: Value, skip: Size) -> Read:
        """Where tile q, whose first row is m, `skip` rows down the tile, reads the left operand."""
        task, s = self.task, self.task.schedule
        if s.lhs == "in place":
            rows = [plus(b, m, r) for r in range(s.rows)]
            return lambda ib, k, r: task.lhs.at(ib, self.t, rows[r], plus(ib, self.lo, k))
        if s.lhs == "packed":
            own, packed = task.owner.flat(b, self.t, task.owner.row_panels, q), task.memories["lhs"]
            return lambda ib, k, r: ib.emit("load", packed, own, plus(ib, self.lo, k), plus(ib, skip, r))[0]
        buffer, at = self.buffers["lhs"], b.sub(q, self.i0)
        if s.lhs == "rows":
            first = plus(b, b.mul(at, b.index(s.rows)), skip)
            return lambda ib, k, r: ib.emit("load", buffer, plus(ib, first, r), k)[0]
        return lambda ib, k, r: ib.emit("load", buffer, at, k, plus(ib, skip, r))[0]

    def rhs(self, b: Builder, p: Value, n: Value, cols: int | Value, base: Value | None) -> Read:
        """Where panel p, whose first column is n, reads the right operand."""
        task, s = self.task, self.task.schedule
        if s.rhs == "packed":
            own, packed = task.owner.flat(b, self.t, task.owner.col_panels, p), task.memories["rhs"]
            return lambda ib, k, v: ib.emit(
                "load", packed, own, plus(ib, self.lo, k), ib.index(v * s.lanes), lanes=s.lanes
            )[0]
        if s.rhs == "in place":
            assert isinstance(cols, int)
            at = [plus(b, n, v * s.lanes) for v in range(s.vectors)]
            return lambda ib, k, v: part_of(
                ib, task.rhs, self.t, at[v], plus(ib, self.lo, k), min(s.lanes, cols - v * s.lanes), s.lanes
            )
        assert base is not None
        buffer, at = self.buffers["rhs"], b.sub(p, base)
        return lambda ib, k, v: ib.emit("load", buffer, at, k, ib.index(v * s.lanes), lanes=s.lanes)[0]


__all__ = ["MatmulSchedule", "choose", "lanes_of", "matmul", "pieces", "transposed"]
