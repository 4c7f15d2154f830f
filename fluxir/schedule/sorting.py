"""The templates of sort, argsort and topk. All are stable and put NaN last, in either direction.

- CPU: one task a row. Long rows by their bits (`radix.py`, O(n)). Others: runs of `RUN` elements by insertion, then a
  bottom-up merge sort between the two halves of a workspace (O(n log n)); `topk` with a small k keeps the k best in order
  instead (insertion, no workspace).
- GPU: rows known to have at most `RANK_LIMIT` elements are sorted by rank (each element counts those before it: no
  workspace, no barrier); longer rows by one block a row, a merge sort in which every element finds its place in the
  neighbouring run by binary search, with a barrier between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Op, Value
from fluxir.ir.dims import Dim, maximum, product
from fluxir.ir.types import BOOL, INDEX, MemType
from fluxir.ops.nest import cast
from fluxir.ops.rules import normal_axis
from fluxir.schedule import radix
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import for_, grain_of, if_, kernel, memory, region, unravel
from fluxir.schedule.special import SpecialSchedule, inputs_of, insert, over, reader, register, step_of, without
from fluxir.schedule.templates import Kernels

RANK_LIMIT = 1024  # longest row that a GPU sorts by rank
INSERT_LIMIT = 64  # largest k for which the CPU keeps the best k instead of sorting
RUN = 4  # elements that the CPU sorts by insertion before it merges
BLOCK = 256  # threads of a GPU block that sorts one row


class Rows:
    """The rows a sorting op works on: how to compare, read and write one element of a row."""

    def __init__(self, group: Group, op: Op) -> None:
        self.group, self.op = group, op
        (self.x,) = op.operands
        self.shape = shape_of(self.x)
        self.axis = normal_axis(op.name, op.attrs.get("axis", -1), len(self.shape))
        self.descending = op.name == "topk" or op.attrs["descending"]
        self.length = self.shape[self.axis]
        self.others = without(self.shape, self.axis)
        self.keep: Dim = op.attrs["k"] if op.name == "topk" else self.length
        self.dtype = self.x.type.dtype
        self.outputs = [memory(r.type) for r in op.results]
        self.tracks = op.name != "sort"  # whether it matters where an element came from

    def before(self, b: Builder, p: Value, q: Value) -> Value:
        """Whether p comes strictly before q."""
        less = b.gt(p, q) if self.descending else b.lt(p, q)
        if self.dtype.is_float:
            less = b.logical_or(less, b.logical_and(b.eq(p, p), b.ne(q, q)))
        return less  # type: ignore[no-any-return]

    def read(self, b: Builder, ins: Sequence[Value], row: Sequence[Value], i: Value) -> Value:
        return reader(b, self.group, ins).at(self.x, insert(row, self.axis, i))

    def write(
        self, b: Builder, outs: Sequence[Value], row: Sequence[Value], rank: Value, value: Value, i: Value
    ) -> None:
        at = insert(row, self.axis, rank)
        for mem, r in zip(outs, self.op.results):
            is_index = self.op.name == "argsort" or r.index == 1
            b.store(mem, i if is_index else value, *at)

    def scratch(self) -> list[MemType]:
        """Two halves of each row's workspace: values, and (where it matters) where they came from."""
        shape = (2, product(self.others), self.length)
        return [MemType(self.dtype, shape), *([MemType(INDEX.dtype, shape)] if self.tracks else [])]


def kernel_sorting(group: Group, op: Op, target: Any) -> Kernels:
    """sort, argsort, topk."""
    rows = Rows(group, op)
    if target.kind == "cpu":
        few = op.name == "topk" and isinstance(rows.keep, int) and rows.keep <= INSERT_LIMIT
        return _by_insertion(rows) if few else _in_workspace(rows)
    return _by_rank(rows) if isinstance(rows.length, int) and rows.length <= RANK_LIMIT else _by_block(rows)


def _made(
    rows: Rows, kind: str, method: str, n: Dim, body: Any, scratch: Sequence[MemType] = (), grain: Dim = 1
) -> Kernels:
    group = rows.group
    made = over(
        kind,
        rows.op.name,
        n,
        inputs_of(group),
        [*rows.outputs, *scratch],
        body,
        grain=grain,
        names=[v.name for v in group.args],
        method=method,
        loc=group.loc,
    )
    return Kernels((step_of(made, group, range(len(rows.outputs)), range(len(scratch))),), tuple(scratch))


# ---- CPU -------------------------------------------------------------------------------------------------------------


def _in_workspace(rows: Rows) -> Kernels:
    """By bits or by merging; where the length is a symbol, by what it turns out to be."""
    n, long, short = rows.length, radix.row_sorter(rows), _merger(rows)

    def either(b: Builder, r: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        known_long = b.ge(b.index(n), b.index(radix.LONG))
        if_(b, known_long, lambda ib: long(ib, r, ins, outs), lambda ib: short(ib, r, ins, outs))

    body: radix.RowSorter = either
    method = "radix or merge"
    if isinstance(n, int):
        body, method = (long, "radix") if n >= radix.LONG else (short, "merge")
    return _made(rows, "cpu", method, product(rows.others), body, rows.scratch(), grain_of(n * 16))


def _merger(rows: Rows) -> radix.RowSorter:
    """The body that sorts one row by merging."""
    n = rows.length

    def sort_row(b: Builder, r: Value, ins: Sequence[Value], memories: Sequence[Value]) -> None:
        outs, work = memories[: len(rows.outputs)], memories[len(rows.outputs) :]
        row = unravel(b, r, rows.others)
        size, zero, one = b.index(n), b.index(0), b.index(1)

        def run(ib: Builder, lo: Value) -> None:
            """Read `RUN` elements and put each at its place among those before it."""

            def take(jb: Builder, i: Value) -> None:
                e = rows.read(jb, ins, row, i)

                def push(kb: Builder, source: Value, place: Value) -> None:
                    for mem in work:
                        kb.store(mem, kb.load(mem, zero, r, source), zero, r, place)

                place = sink(jb, i, lo, lambda kb, k: rows.before(kb, e, kb.load(work[0], zero, r, k)), push)
                for mem, v in zip(work, (e, i)):
                    jb.store(mem, v, zero, r, place)

            for_(ib, lo, ib.minimum(ib.add(lo, ib.index(RUN)), size), take, vectorize=False)

        for_(b, 0, size, run, step=RUN, vectorize=False)

        def merge_all(ib: Builder, width: Value, half: Value) -> list[Value]:
            """One pass: neighbouring runs of `width` in `half` become runs of twice that in the other half."""
            other = ib.sub(one, half)
            step = ib.mul(width, ib.index(2))

            def merge(jb: Builder, lo: Value) -> None:
                middle = jb.minimum(jb.add(lo, width), size)
                hi = jb.minimum(jb.add(lo, step), size)
                end = jb.sub(size, one)

                def pick(kb: Builder, right: Value, i: Value, j: Value, k: Value) -> None:
                    """Write to place k what stands at j if `right`, else at i; reads are held inside the row."""
                    source = kb.select(right, j, i)
                    for mem in work:
                        kb.store(mem, kb.load(mem, half, r, source), other, r, k)

                def place(kb: Builder, t: Value, i: Value, j: Value, y: Value, z: Value) -> list[Value]:
                    """The next element from the front (of i, j) and the next from the back (of y, z), independently.

                    Both reach the middle; where the number of elements is odd, both write the same one there.
                    """
                    front, right = kb.minimum(i, end), kb.minimum(j, end)
                    p, q = kb.load(work[0], half, r, front), kb.load(work[0], half, r, right)
                    up = kb.logical_and(kb.lt(j, hi), kb.logical_or(kb.ge(i, middle), rows.before(kb, q, p)))
                    pick(kb, up, front, right, kb.add(lo, t))
                    left, back = kb.maximum(y, zero), kb.maximum(z, zero)
                    p, q = kb.load(work[0], half, r, left), kb.load(work[0], half, r, back)
                    down = kb.logical_or(
                        kb.lt(y, lo), kb.logical_and(kb.ge(z, middle), kb.logical_not(rows.before(kb, q, p)))
                    )
                    pick(kb, down, left, back, kb.sub(kb.sub(hi, one), t))
                    first, last = cast(kb, up, INDEX.dtype), cast(kb, down, INDEX.dtype)
                    return [
                        kb.add(i, kb.sub(one, first)),
                        kb.add(j, first),
                        kb.sub(y, kb.sub(one, last)),
                        kb.sub(z, last),
                    ]

                steps = jb.div(jb.add(jb.sub(hi, lo), one), jb.index(2))
                for_(jb, 0, steps, place, [lo, middle, jb.sub(middle, one), jb.sub(hi, one)], vectorize=False)

            for_(ib, 0, size, merge, step=step, vectorize=False)
            return [step, other]

        going = region(b, [INDEX, INDEX], lambda ib, width, half: ib.lt(width, size))
        _, half = b.emit("while", b.index(RUN), zero, carry=2, blocks=[going, region(b, [INDEX, INDEX], merge_all)])

        def give(ib: Builder, i: Value) -> None:
            found = [ib.load(mem, half, r, i) for mem in work]
            rows.write(ib, outs, row, i, found[0], found[-1])

        for_(b, 0, rows.keep, give)

    return sort_row


def sink(
    b: Builder, start: Value, lo: Value, ahead: Callable[[Builder, Value], Value], push: Callable[..., None]
) -> Value:
    """Go down from place `start` while `ahead(b, k)`: the new element goes before the one at k = place - 1 >= lo.

    `push(b, k, place)` moves that one up. Returns the place that became free.
    """
    one = b.index(1)

    def better(ib: Builder, place: Value) -> Value:
        def look(jb: Builder) -> Value:
            return ahead(jb, jb.sub(place, one))

        return if_(ib, ib.gt(place, lo), look, lambda jb: jb.const(False, dtype=BOOL.dtype))[0]

    def move(ib: Builder, place: Value) -> Value:
        source: Value = ib.sub(place, one)
        push(ib, source, place)
        return source

    return b.emit("while", start, carry=1, blocks=[region(b, [INDEX], better), region(b, [INDEX], move)])[0]


def _by_insertion(rows: Rows) -> Kernels:
    """topk with a small k: the best so far stand in order in the result; a better one pushes those after it along."""
    k = rows.keep

    def best(b: Builder, r: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        row = unravel(b, r, rows.others)

        def take(ib: Builder, i: Value) -> None:
            e = rows.read(ib, ins, row, i)

            def push(jb: Builder, source: Value, place: Value) -> None:
                """The last one of k drops out."""

                def move(kb: Builder) -> None:
                    for mem in outs:
                        kb.store(mem, kb.load(mem, *row, source), *row, place)

                if_(jb, jb.lt(place, jb.index(k)), move)

            have = ib.minimum(i, ib.index(k))  # how many stand there already
            place = sink(ib, have, ib.index(0), lambda jb, j: rows.before(jb, e, jb.load(outs[0], *row, j)), push)
            if_(ib, ib.lt(place, ib.index(k)), lambda jb: rows.write(jb, outs, row, place, e, i))

        for_(b, 0, rows.length, take, vectorize=False)

    n = product(rows.others) if k != 0 else 0
    return _made(rows, "cpu", "insertion", n, best, grain=grain_of(rows.length * 4))


# ---- GPU -------------------------------------------------------------------------------------------------------------


def _by_rank(rows: Rows) -> Kernels:
    """One thread an element: its rank is the number of elements before it, equal ones in their order."""
    n = rows.length

    def rank_of(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        *row, i = unravel(b, task, (*rows.others, n))
        e = rows.read(b, ins, row, i)

        def earlier(ib: Builder, j: Value, rank: Value) -> Value:
            behind = rows.before(ib, e, rows.read(ib, ins, row, j))
            return ib.add(rank, cast(ib, ib.logical_not(behind), INDEX.dtype))  # type: ignore[no-any-return]

        def later(ib: Builder, j: Value, rank: Value) -> Value:
            return ib.add(rank, cast(ib, rows.before(ib, rows.read(ib, ins, row, j), e), INDEX.dtype))  # type: ignore[no-any-return]

        (rank,) = for_(b, 0, i, earlier, [b.index(0)])
        (rank,) = for_(b, b.add(i, b.index(1)), n, later, [rank])
        if rows.op.name != "topk":
            rows.write(b, outs, row, rank, e, i)
        else:
            if_(b, b.lt(rank, b.index(rows.keep)), lambda ib: rows.write(ib, outs, row, rank, e, i))

    return _made(rows, "nvptx", "rank", product(rows.shape), rank_of)


def _by_block(rows: Rows) -> Kernels:
    """One block a row: a merge sort whose passes place every element by binary search in the neighbouring run."""
    n, group = rows.length, rows.group
    scratch = rows.scratch()

    def emit(b: Builder, ins: Sequence[Value], memories: Sequence[Value]) -> None:
        outs, work = memories[: len(rows.outputs)], memories[len(rows.outputs) :]
        r, thread = b.block_id(axis=0), b.thread_id(axis=0)
        size, zero, one, threads = b.index(n), b.index(0), b.index(1), b.index(BLOCK)

        def sort_row(ib: Builder) -> None:
            row = unravel(ib, r, rows.others)

            def fill(jb: Builder, i: Value) -> None:
                for mem, v in zip(work, (rows.read(jb, ins, row, i), i)):
                    jb.store(mem, v, zero, r, i)

            for_(ib, thread, size, fill, step=threads)
            ib.barrier()

            def merge_all(jb: Builder, width: Value, half: Value) -> list[Value]:
                other = jb.sub(one, half)
                step = jb.mul(width, jb.index(2))

                def place(kb: Builder, t: Value) -> None:
                    lo = kb.mul(kb.div(t, step), step)
                    middle = kb.minimum(kb.add(lo, width), size)
                    hi = kb.minimum(kb.add(lo, step), size)
                    e = kb.load(work[0], half, r, t)
                    left = kb.lt(t, middle)
                    first = kb.select(left, middle, lo)
                    last = kb.select(left, hi, middle)

                    def ahead(mb: Builder, a: Value, z: Value) -> list[Value]:
                        """Halve the range a..z of the other run: everything before a goes before e, nothing "
                        "from z on."""
                        m = mb.div(mb.add(a, z), mb.index(2))
                        q = mb.load(work[0], half, r, m)
                        goes = mb.select(left, rows.before(mb, q, e), mb.logical_not(rows.before(mb, e, q)))
                        return [mb.select(goes, mb.add(m, one), a), mb.select(goes, z, m)]

                    searching = region(kb, [INDEX, INDEX], lambda mb, a, z: mb.lt(a, z))
                    found, _ = kb.emit(
                        "while", first, last, carry=2, blocks=[searching, region(kb, [INDEX, INDEX], ahead)]
                    )
                    own = kb.sub(t, kb.select(left, lo, middle))
                    at = kb.add(lo, kb.add(own, kb.sub(found, first)))
                    for mem in work:
                        kb.store(mem, kb.load(mem, half, r, t), other, r, at)

                for_(jb, thread, size, place, step=threads)
                jb.barrier()
                return [step, other]

            going = region(ib, [INDEX, INDEX], lambda jb, width, half: jb.lt(width, size))
            _, half = ib.emit("while", one, zero, carry=2, blocks=[going, region(ib, [INDEX, INDEX], merge_all)])

            def give(jb: Builder, i: Value) -> None:
                found = [jb.load(mem, half, r, i) for mem in work]
                rows.write(jb, outs, row, i, found[0], found[-1])

            for_(ib, thread, rows.keep, give, step=threads)

        if_(b, b.lt(r, b.index(product(rows.others))), sort_row)  # the same for all threads of a block

    schedule = SpecialSchedule("block merge", product(rows.others))
    made = kernel(
        rows.op.name,
        inputs_of(group),
        [*rows.outputs, *scratch],
        emit,
        names=[v.name for v in group.args],
        schedule=schedule,
        loc=group.loc,
    )
    attrs = Attrs({**made.attrs, "grid": (maximum(1, product(rows.others)), 1, 1), "block": (BLOCK, 1, 1)})
    step = step_of(replace(made, attrs=attrs), group, range(len(rows.outputs)), range(len(scratch)))
    return Kernels((step,), tuple(scratch))


register(("sort", "argsort", "topk"), kernel_sorting)

__all__ = ["BLOCK", "INSERT_LIMIT", "RANK_LIMIT", "kernel_sorting"]
