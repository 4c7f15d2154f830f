"""The row-wise template for CPUs: reductions with what comes before and after them, in one kernel.

For each row (one index of the kept axes) the kernel runs one loop for each stage, then one loop that writes the results
of full shape; `rows.py` defines these. Rows are spread over threads. Two loop orders, by the last axis of the space:

- reduced: vectors run along the row, several accumulators hide the latency of an addition;
- kept: a block of neighbouring rows (columns of memory) is reduced together, with one accumulator for each column in a
  buffer, so that memory is walked in its own order.

A value that is expensive and needed by a later stage too is kept in the memory of a result instead of computed twice.
A reduction of few long rows is split into pieces of fixed length, whose results a second kernel combines in order. The
order of additions depends on shapes and target alone: the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Func, Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.types import MemType
from fluxir.ops.maps import REDUCTIONS
from fluxir.schedule.cost import op_cost
from fluxir.schedule.group import Group, anchors
from fluxir.schedule.loops import (
    GRAIN,
    kernel,
    memory,
    parallel,
    unravel,
)
from fluxir.schedule.row_code import RowCode, RowwiseSchedule, accumulator_of, element_work
from fluxir.schedule.rows import Rows, analyse_rows, combining_group, without_arg
from fluxir.schedule.split import split_at
from fluxir.schedule.templates import Kernels, Ref, Step, template
from fluxir.schedule.vectors import in_flight

ACCUMULATORS = 4
FEW_ROWS = 8  # fewer known rows than this are split along the row
FEW_STAGED = 4  # and so many, where that takes a kernel for each pass over the row
PIECE = 4 * GRAIN  # element operations of one piece
LINES = 64  # lines of memory that a piece of columns has at least: each piece writes a line of its own
WIDE = 4096  # most columns that are split along their lines: their accumulators stay in the first cache


@template("rowwise", target="cpu", anchors=(*REDUCTIONS, "argmax", "argmin"), priority=10)
def rowwise(group: Group, target: Any) -> Kernels | None:
    """Reductions with their producers and consumers, one row at a time."""
    group = without_arg(group)
    rows = analyse_rows(group)
    if rows is None:
        return None
    piece = _piece(rows)
    if piece is None:
        return _whole(rows, group, target)
    if not one_stage(rows):
        few = product(rows.space[i] for i in rows.kept)
        return by_stages(group, target) if few <= FEW_STAGED else _whole(rows, group, target)
    return _split(rows, piece, group, target)


def one_stage(rows: Rows) -> bool:
    """Whether one pass over the rows is all there is: reductions that do not wait for each other, and no full results."""
    return len(rows.stages) == 1 and not any(rows.is_full(j) for j in range(len(rows.group.outs)))


def by_stages(group: Group, target: Any) -> Kernels | None:
    """Few long rows with several passes: a kernel for the first reduction, which can be cut into pieces, then the rest."""
    return split_at(group, anchors(group, REDUCTIONS)[0], target)


def _schedule(rows: Rows, target: Any, piece: int | None = None) -> RowwiseSchedule:
    widths = [accumulator_of(op).bits for s in rows.stages for op in s]
    lanes = target.lanes(max([b for b in widths if b > 8] or [32]))
    last = len(rows.space) - 1
    work = sum(op_cost(op) for op in rows.group.ops if op.name not in REDUCTIONS)
    reductions = max(len(s) for s in rows.stages)
    flight = in_flight(work)
    accumulators = min(flight, ACCUMULATORS if reductions <= 2 else 2)
    n = rows.space[last]
    if isinstance(n, int):
        while accumulators > 1 and n < 2 * lanes * accumulators:
            accumulators //= 2
        while flight > 1 and n < 2 * lanes * flight:
            flight //= 2
        if n < lanes:
            lanes, accumulators, flight = 1, 1, 1
    return RowwiseSchedule(
        "x".join(map(str, rows.space)),
        ",".join(map(str, rows.reduced)),
        "row" if last in rows.reduced else "columns",
        lanes,
        accumulators,
        flight,
        len(rows.stages),
        piece,
    )


def _whole(rows: Rows, original: Group, target: Any) -> Kernels:
    """One kernel that does whole rows; `original` is the group before its axes were merged."""
    group = rows.group
    schedule = _schedule(rows, target)
    spills = rows.spills() if not rows.access.opaque else {}

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        code = RowCode(rows, schedule, dict(zip(group.args, ins)), list(outs), spills)
        code.everything(b)

    inputs, outputs = [memory(v.type) for v in group.args], [memory(v.type) for v in group.outs]
    given = [memory(v.type) for v in (*original.args, *original.outs)]
    names = [v.name for v in group.args]
    made = kernel(group.name, inputs, outputs, body, names=names, schedule=schedule, loc=group.loc, given=given)
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in range(len(outputs))]]
    pairs = () if spills else tuple((len(inputs) + j, i) for j, i in rows.inplace())
    return Kernels((Step(made, tuple(refs), len(outputs), pairs),))


# ---- splitting ---------------------------------------------------------------------------------------------------------


def _piece(rows: Rows) -> int | None:
    """The length of a piece along the first reduced axis where the rows should be split, else None.

    Columns are split where they are one run of memory: a task that walks whole lines reads twice as fast as one that
    walks some columns of every line, and a batch of any size keeps all threads busy.
    """
    kept = [rows.space[i] for i in rows.kept]
    along = len(rows.space) - 1 in rows.reduced
    few = product(kept if along else kept[:-1])
    if not isinstance(few, int) or few > FEW_ROWS:
        return None
    first, *rest = rows.reduced
    inner = product(rows.space[i] for i in rest)
    columns = 1 if along else kept[-1]
    if not isinstance(inner, int) or not isinstance(columns, int) or columns > WIDE or first != min(rows.reduced):
        return None
    length = max(1 if along else LINES, PIECE // max(1, inner * columns * element_work(rows)))
    pieces = ceildiv(rows.space[first], length)
    return None if isinstance(pieces, int) and pieces <= 2 else length


def _split(rows: Rows, piece: int, original: Group, target: Any) -> Kernels:
    """Two kernels: the pieces of every row, then their combination and what follows it."""
    group = rows.group
    (stage,) = rows.stages
    schedule = _schedule(rows, target, piece)
    first = rows.reduced[0]
    pieces = ceildiv(rows.space[first], piece)
    kept = tuple(rows.space[i] for i in rows.kept)
    columns = schedule.vectors == "columns"
    # Columns: the pieces come first, so that the parts of neighbouring columns are neighbours.
    parts = [MemType(accumulator_of(op), (pieces, *kept) if columns else (*kept, pieces)) for op in stage]

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        code = RowCode(rows, schedule, dict(zip(group.args, ins)), list(outs), {})

        # In column order one task takes all columns of a piece.
        rows_of_task = kept[:-1] if columns else kept

        def task(ib: Builder, t: Value) -> None:
            *row, c = unravel(ib, t, (*rows_of_task, pieces))
            lo = ib.mul(c, ib.index(piece))
            hi = ib.minimum(ib.add(lo, ib.index(piece)), ib.index(rows.space[first]))
            code.piece(ib, dict(zip(rows.kept, row)), {first: (lo, hi)}, tuple(row), c)

        parallel(b, product((*rows_of_task, pieces)), task)

    inputs = [memory(v.type) for v in group.args]
    given = [*[memory(v.type) for v in original.args], *parts]
    names = [v.name for v in group.args]
    name = f"{group.name}_pieces"
    made = kernel(name, inputs, parts, body, names=names, schedule=schedule, loc=group.loc, given=given)
    return after_pieces(rows, made, parts, pieces, lambda r, g: _whole(r, g, target), first=columns)


def after_pieces(
    rows: Rows,
    made: Func,
    parts: Sequence[MemType],
    pieces: Dim,
    whole: Callable[[Rows, Group], Kernels],
    *,
    first: bool,
) -> Kernels:
    """The launch of `made`, which leaves `parts` of every reduction, and that of the group which combines them."""
    inputs: list[Ref] = [("input", i) for i in range(len(rows.group.args))]
    scratch: list[Ref] = [("scratch", k) for k in range(len(parts))]
    steps = [Step(made, (*inputs, *scratch), len(parts))]
    rest = combining_group(rows, pieces, first=first)
    combined = analyse_rows(rest)
    assert combined is not None, "the parts are reduced along the axis of the pieces"
    sources = [*scratch, *inputs]
    for s in whole(combined, rest).steps:
        operands = tuple(sources[i] if kind == "input" else (kind, i) for kind, i in s.operands)
        steps.append(Step(s.kernel, operands, s.outputs))
    return Kernels(tuple(steps), tuple(parts))


__all__ = ["RowwiseSchedule", "after_pieces", "by_stages", "one_stage", "rowwise"]
