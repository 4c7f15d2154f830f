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
from dataclasses import replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, floordiv, maximum, product
from fluxir.ir.dtypes import DType
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
from fluxir.schedule.loops import Size, grain_of, if_, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.matmul_choice import CHUNK, LOADED, TASK, MatmulSchedule, best
from fluxir.schedule.matmul_pack import Packer, pack_array, plus
from fluxir.schedule.matmul_task import Block, Grid
from fluxir.schedule.matmul_tile import Tiles
from fluxir.schedule.rowwise import rowwise
from fluxir.schedule.space import inplace_pairs
from fluxir.schedule.split import split_at
from fluxir.schedule.templates import Kernels, Ref, Step, template

TINY = 2048  # multiplications below which plain loops do
WIDE = 1024  # bytes of a result from which a vector times a matrix is cut by columns alone


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
    if not _is_wide(dot) and (flat := as_reduction(written)) is not None:
        return rowwise(flat, target)
    work = dot.batch * dot.m * dot.n * dot.k
    if isinstance(work, int) and work <= TINY:
        return None
    if len(dot.post_dims[2]) > 1:  # what follows does not see the columns as one axis
        return split_at(group, dot.op, target)
    schedule = best(dot, target)
    made = Matmul(dot, target, schedule).kernels()
    if schedule.rhs == "packed" or dot.rhs.computed:
        return made
    prepared = functools.cache(lambda: Matmul(dot, target, best(dot, target, packed=True)).kernels())
    return replace(made, prepared=prepared)


def _is_wide(dot: Dot) -> bool:
    """Whether a vector times a matrix has enough columns to be cut by columns alone."""
    wide = WIDE // dot.dtype.itemsize
    return dot.m == 1 and isinstance(dot.n, int) and dot.n >= wide and dot.rhs.contiguous() == FREE and dot.k != 1


# ---- the kernels -------------------------------------------------------------------------------------------------------


class Matmul:
    """The kernels of one dot: packing, then the tiles. `packed`: see `Tiles`."""

    packed: tuple[DType, DType] | None = None

    def __init__(self, dot: Dot, target: Any, schedule: MatmulSchedule) -> None:
        self.dot, self.schedule = dot, schedule
        self.fma = dot.dtype.is_float and target.has("fma")
        s = self.schedule
        self.grid = grid = Grid(dot, schedule)
        self.row_panels, self.col_panels, self.blocks = grid.row_panels, grid.col_panels, grid.blocks
        self.inputs, self.outputs = types_of(dot)
        self.packed_types = {
            "rhs": MemType(self.stored("rhs"), (dot.batch * self.col_panels, dot.k, s.cols)),
            "lhs": MemType(dot.dtype, (dot.batch * self.row_panels, dot.k, s.rows)),
        }
        self.c_type = MemType(dot.dtype, (dot.batch * self.row_panels * self.col_panels, s.rows, s.cols))

    def stored(self, which: str) -> DType:
        """The type of the packed elements of an operand. Where reading the right operand is what takes time, small floats stay
        small, and become larger in each tile."""
        few = isinstance(self.dot.m, int) and self.dot.m <= LOADED
        return self.dot.rhs.value.dtype if which == "rhs" and few else self.dot.dtype

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
            packer = Packer(OperandCode(side, reads, self.stored(which)), width, s.lanes)
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
        fold = None if side.computed else functools.partial(pack_array, side, width, self.stored(which).numpy)
        return Step(made, (*[("input", i) for i in used], target), fold=fold)

    # ---- the tiles
    def body(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        dot, s = self.dot, self.schedule
        used = self.main_inputs()
        reads, after = views(b, dot, dict(zip(used, ins)))
        packed = list(ins[len(used) :])
        memories = {which: packed.pop(0) for which in ("rhs", "lhs") if getattr(s, which) == "packed"}
        partial = outs[0] if self.blocks != 1 else None
        results = outs[1:] if partial is not None else outs
        tiles = Tiles(dot, s.lanes, self.fma, PostCode(dot.post, after, results), self.packed)
        block = Block(self.grid, tiles, reads, memories, partial)
        shape = (dot.batch, ceildiv(self.col_panels, s.panels), ceildiv(self.row_panels, s.row_tiles))

        def task(ib: Builder, at: tuple[Value, ...]) -> None:
            t, strip, rows = at  # the panels of a strip stay in a cache while the rows go by
            block.task(ib, (t, rows, strip))

        if product(shape) == 1 or is_small(dot.batch * maximum(dot.m, LOADED) * dot.n * dot.k, 32768):
            nest(b, shape, task)
            return
        height = min(s.row_tiles * s.rows, dot.m) if isinstance(dot.m, int) else s.row_tiles * s.rows
        width = min(s.panels * s.cols, dot.n) if isinstance(dot.n, int) else s.panels * s.cols
        work = maximum(height, LOADED) * width * dot.k
        grain: Dim = maximum(1, floordiv(TASK // 2, maximum(1, work)))
        parallel(b, product(shape), lambda ib, x: task(ib, unravel(ib, x, shape)), grain=grain)


__all__ = ["Matmul", "matmul"]
