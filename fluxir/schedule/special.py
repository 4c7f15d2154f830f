"""Templates of the ops that no element rule can express: cumulative ops and nonzero; and what those of scatter
(`scatter.py`) and sorting (`sorting.py`) share with them.

A special kernel is written once, as a body that runs independently for each i of 0..n (`over`): on the CPU the
iterations of a `parallel` loop, on a GPU one thread each. Operands are read through the element rules of their
producers, so pointwise producers may be fused into these kernels. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxir.errors import Location
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Func, Op, Value
from fluxir.ir.dims import Dim, ceildiv, maximum, product
from fluxir.ir.types import INDEX, MemType
from fluxir.ops.nest import accumulator, cast, combine, identity
from fluxir.ops.reduce import CUMULATIVE
from fluxir.ops.rules import normal_axis
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import for_, grain_of, if_, kernel, memory, parallel, unravel
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

KINDS = ("cpu", "nvptx")
THREADS = 128  # of a block, for kernels of independent threads

Body = Callable[[Builder, Value, Sequence[Value], Sequence[Value]], None]


@dataclass(frozen=True)
class SpecialSchedule(Schedule):
    """`method`: the algorithm. `tasks`: how many independent iterations it has."""

    method: str
    tasks: Dim = 1


def sole(group: Group, names: Sequence[str]) -> Op | None:
    """The one op of `names` whose results are exactly the results of the group; None if the group is anything "
    "else."""
    found = [op for op in group.ops if op.name in names]
    return found[0] if len(found) == 1 and tuple(group.outs) == found[0].results else None


def over(
    kind: str,
    name: str,
    n: Dim,
    inputs: Sequence[MemType],
    outputs: Sequence[MemType],
    body: Body,
    *,
    grain: Dim = 1,
    names: Sequence[str] = (),
    method: str = "",
    loc: Location | None = None,
) -> Func:
    """A kernel that runs `body(b, i, inputs, outputs)` for each i of 0..n: in any order, on any thread."""
    schedule = SpecialSchedule(method or name, n)

    def emit(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        if kind == "cpu":
            if isinstance(n, int) and n == 1:
                body(b, b.index(0), ins, outs)
            else:
                parallel(b, n, lambda ib, i: body(ib, i, ins, outs), grain=grain)
            return
        i = b.add(b.mul(b.block_id(axis=0), b.index(THREADS)), b.thread_id(axis=0))
        if_(b, b.lt(i, b.index(n)), lambda ib: body(ib, i, ins, outs))

    made = kernel(name, inputs, outputs, emit, names=names, schedule=schedule, loc=loc)
    if kind == "cpu":
        return made
    grid = (maximum(1, ceildiv(n, THREADS)), 1, 1)
    return replace(made, attrs=Attrs({**made.attrs, "grid": grid, "block": (THREADS, 1, 1)}))


def step_of(made: Func, group: Group, results: Sequence[int], scratch: Sequence[int] = (), inplace: Any = ()) -> Step:
    """The launch of a kernel whose arguments are the group's arguments, some results, then some scratch memories."""
    operands: list[Ref] = [("input", i) for i in range(len(group.args))]
    operands += [("output", j) for j in results]
    operands += [("scratch", k) for k in scratch]
    return Step(made, tuple(operands), len(results) + len(scratch), tuple(inplace))


def inputs_of(group: Group) -> list[MemType]:
    return [memory(v.type) for v in group.args]


def reader(b: Builder, group: Group, memories: Sequence[Value]) -> Elements:
    """Reads any value of the group, given the memories of its arguments."""
    return Elements(b, dict(zip(group.args, memories)))


def without(shape: Sequence[Dim], axis: int) -> tuple[Dim, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def insert(index: Sequence[Value], axis: int, i: Value) -> tuple[Value, ...]:
    return (*index[:axis], i, *index[axis:])


# ---- cumulative ops --------------------------------------------------------------------------------------------------

CHUNK = 64  # neighbours along the last axis that one task of a cumulative op walks together


def kernel_cumulative(group: Group, op: Op, target: Any) -> Kernels:
    """cumsum, cumprod, cummax, cummin: one task a line along the axis, or a chunk of neighbouring lines on the CPU.

    Where the axis is not the last one, neighbours lie side by side in memory: the CPU walks `CHUNK` of them together,
    with the result's previous row as the accumulator. f16 and bf16 accumulate in f32, a line at a time. A GPU cuts few
    long lines into pieces: their totals first, then each piece from the total of those before it.
    """
    (x,) = op.operands
    shape, kind = shape_of(x), target.kind
    axis = normal_axis(op.name, op.attrs["axis"], len(shape))
    how, reverse, n = CUMULATIVE[op.name], op.attrs["reverse"], shape[axis]
    d = x.type.dtype
    wide = accumulator(d) if how in ("sum", "prod") else d
    others = without(shape, axis)

    def place(b: Builder, k: Value) -> Value:
        return b.sub(b.sub(b.index(n), b.index(1)), k) if reverse else k

    def walk(
        b: Builder, ins: Sequence[Value], out: Value | None, at: Sequence[Value], lo: Any, hi: Any, start: Value
    ) -> Value:
        """Go along a line from lo to hi, writing each total to `out` if it is given; returns the last one."""

        def step(ib: Builder, k: Value, total: Value) -> Value:
            here = insert(at, axis, place(ib, k))
            total = combine(ib, how, total, cast(ib, reader(ib, group, ins).at(x, here), wide))
            if out is not None:
                ib.store(out, cast(ib, total, d), *here)
            return total

        return for_(b, lo, hi, step, [start])[0]

    def nothing(b: Builder) -> Value:
        return b.const(identity(how, d), dtype=wide)

    def line(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        walk(b, ins, outs[0], unravel(b, task, others), 0, n, nothing(b))

    last = len(shape) - 1
    split = (*without(shape[:last], axis), ceildiv(shape[last], CHUNK)) if axis != last else ()

    def lines(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        *at, chunk = unravel(b, task, split)
        lo = b.mul(chunk, b.index(CHUNK))
        hi = b.minimum(b.add(lo, b.index(CHUNK)), b.index(shape[last]))

        def step(ib: Builder, k: Value) -> None:
            row = insert(at, axis, place(ib, k))
            first = ib.eq(k, ib.index(0))

            def start(jb: Builder, j: Value) -> None:
                jb.store(outs[0], reader(jb, group, ins).at(x, (*row, j)), *row, j)

            def go_on(jb: Builder, j: Value) -> None:
                before = insert(at, axis, jb.sub(place(jb, k), jb.index(-1 if reverse else 1)))
                e = reader(jb, group, ins).at(x, (*row, j))
                jb.store(outs[0], combine(jb, how, jb.load(outs[0], *before, j), e), *row, j)

            if_(ib, first, lambda jb: for_(jb, lo, hi, start), lambda jb: for_(jb, lo, hi, go_on))

        for_(b, 0, n, step, vectorize=False)

    names = [v.name for v in group.args]
    inplace = [(len(group.args), i) for i, v in enumerate(group.args) if v is x]
    pieces = _line_pieces(kind, product(others), n)
    if pieces > 1:
        length = ceildiv(n, pieces)
        totals = MemType(wide, (product(others), pieces))

        def bounds(b: Builder, piece: Value) -> tuple[Value, Value]:
            lo = b.mul(piece, b.index(length))
            return lo, b.minimum(b.add(lo, b.index(length)), b.index(n))

        def total_of_piece(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            r, piece = unravel(b, task, totals.shape)
            b.store(outs[0], walk(b, ins, None, unravel(b, r, others), *bounds(b, piece), nothing(b)), r, piece)

        def rest_of_piece(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            r, piece = unravel(b, task, totals.shape)
            before = for_(b, 0, piece, lambda ib, k, t: combine(ib, how, t, ib.load(outs[1], r, k)), [nothing(b)])
            walk(b, ins, outs[0], unravel(b, r, others), *bounds(b, piece), *before)

        how_many = product(totals.shape)
        first = over(
            kind,
            f"{op.name}_totals",
            how_many,
            inputs_of(group),
            [totals],
            total_of_piece,
            names=names,
            method="pieces",
            loc=group.loc,
        )
        second = over(
            kind,
            op.name,
            how_many,
            inputs_of(group),
            [memory(x.type), totals],
            rest_of_piece,
            names=names,
            method="pieces",
            loc=group.loc,
        )
        return Kernels((step_of(first, group, [], [0]), step_of(second, group, [0], [0], inplace)), (totals,))
    together = kind == "cpu" and axis != last and wide == d
    tasks = product(split) if together else product(others)
    made = over(
        kind,
        op.name,
        tasks,
        inputs_of(group),
        [memory(x.type)],
        lines if together else line,
        grain=grain_of(n * (CHUNK if together else 1)),
        names=names,
        method="lines" if together else "line",
        loc=group.loc,
    )
    return Kernels((step_of(made, group, [0], inplace=inplace),))


LINE_PIECES = 256  # most pieces of a line on a GPU
LINE_PIECE = 64  # fewest elements of one, where the length is known


def _line_pieces(kind: str, lines: Dim, n: Dim) -> int:
    """Into how many pieces a GPU cuts a line, so that few long lines keep it busy; 1: one thread walks a "
    "whole line."""
    if kind == "cpu" or not isinstance(lines, int):
        return 1
    pieces = min(LINE_PIECES, 16384 // max(1, lines))
    return max(1, min(pieces, n // LINE_PIECE) if isinstance(n, int) else pieces)


# ---- nonzero ---------------------------------------------------------------------------------------------------------


PIECES = {"cpu": 16, "nvptx": 512}  # most pieces that nonzero cuts the index space into
PIECE = 1024  # elements that are worth a piece, where the number of elements is known


def kernel_nonzero(group: Group, op: Op, target: Any) -> Kernels:
    """Two passes over pieces of the row-major index space: count the hits of each piece, then write them at their places.

    The number of pieces depends on the type alone, so the answer does not depend on the threads.
    """
    (x,) = op.operands
    shape, bound, kind = shape_of(x), op.attrs["bound"], target.kind
    total = product(shape)
    pieces = PIECES[kind] if not isinstance(total, int) else max(1, min(PIECES[kind], total // PIECE))
    length, fill = ceildiv(total, pieces), ceildiv(bound, pieces)
    positions, count = memory(op.results[0].type), memory(op.results[1].type)
    counts = MemType(INDEX.dtype, (pieces,))

    def span(b: Builder, piece: Value, size: Dim, end: Dim) -> tuple[Value, Value]:
        lo = b.mul(piece, b.index(size))
        return lo, b.minimum(b.add(lo, b.index(size)), b.index(end))

    def hit(b: Builder, i: Value, ins: Sequence[Value]) -> tuple[tuple[Value, ...], Value]:
        at = unravel(b, i, shape)
        e = reader(b, group, ins).at(x, at)
        return at, e if x.type.dtype.is_bool else b.ne(e, b.const(0, dtype=x.type.dtype))

    def counting(b: Builder, piece: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        def step(ib: Builder, i: Value, n: Value) -> Value:
            return ib.add(n, cast(ib, hit(ib, i, ins)[1], INDEX.dtype))  # type: ignore[no-any-return]

        (n,) = for_(b, *span(b, piece, length, total), step, [b.index(0)])
        b.store(outs[1], n, piece)

        def clear(ib: Builder, i: Value) -> None:
            for k in range(len(shape)):
                ib.store(outs[0], ib.index(0), i, ib.index(k))

        for_(b, *span(b, piece, fill, bound), clear)

    def writing(b: Builder, piece: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        mem, number, found = outs
        (base,) = for_(b, 0, piece, lambda ib, i, n: ib.add(n, ib.load(found, i)), [b.index(0)])

        def step(ib: Builder, i: Value, n: Value) -> Value:
            at, yes = hit(ib, i, ins)

            def write(jb: Builder) -> None:
                for k, place in enumerate(at):
                    jb.store(mem, place, n, jb.index(k))

            if_(ib, ib.logical_and(yes, ib.lt(n, ib.index(bound))), write)
            return ib.add(n, cast(ib, yes, INDEX.dtype))  # type: ignore[no-any-return]

        (n,) = for_(b, *span(b, piece, length, total), step, [base])
        if_(b, b.eq(piece, b.index(pieces - 1)), lambda ib: ib.store(number, n))

    names = [v.name for v in group.args]
    first = over(
        kind,
        "nonzero_count",
        pieces,
        inputs_of(group),
        [positions, counts],
        counting,
        names=names,
        method="pieces",
        loc=group.loc,
    )
    second = over(
        kind,
        "nonzero_write",
        pieces,
        inputs_of(group),
        [positions, count, counts],
        writing,
        names=names,
        method="pieces",
        loc=group.loc,
    )
    steps = (step_of(first, group, [0], [0]), step_of(second, group, [0, 1], [0]))
    return Kernels(steps, (counts,))


# ---- registration ----------------------------------------------------------------------------------------------------


def register(names: Sequence[str], make: Callable[[Group, Op, Any], Kernels]) -> None:
    """Register `make` as the template of the ops `names` on every kind of target."""
    for kind in KINDS:

        @template(
            names[0] if len(names) == 1 else make.__name__.removeprefix("kernel_"),
            target=kind,
            anchors=names,
            priority=50,
        )
        def special(group: Group, target: Any) -> Kernels | None:
            op = sole(group, names)
            return None if op is None else make(group, op, target)


register(tuple(CUMULATIVE), kernel_cumulative)
register(("nonzero",), kernel_nonzero)

__all__ = ["inputs_of", "insert", "over", "reader", "register", "sole", "step_of", "without"]
