"""Long rows sorted on the CPU by their bits: a radix sort, in passes of 8 bits from the lowest (O(n) a pass, stable).

An element's *key* is an unsigned number in the same order: signed numbers with the sign turned over, floats with all bits
turned over where negative, -0 as 0, NaN above all. Descending order turns the key over, NaN excepted. One loop copies
the row into the workspace and counts the digits of all passes; the passes read the workspace alone, so that a place is
in bounds even where someone writes to the input meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import INDEX, MemType
from fluxir.ops.nest import cast
from fluxir.schedule.loops import for_, if_, unravel

if TYPE_CHECKING:
    from fluxir.schedule.sorting import Rows

DIGIT = 8
VALUES = 1 << DIGIT
LONG = 512  # elements of the shortest row that is sorted so

RowSorter = Callable[
    [Builder, Value, Sequence[Value], Sequence[Value]], None
]  # builder, row, inputs, results and workspace


def key_of(b: Builder, x: Value, dtype: DType, descending: bool) -> Value:
    """The key of an element."""
    if dtype.is_bool:
        x, dtype = cast(b, x, DTYPES["u8"]), DTYPES["u8"]
    bits = dtype.itemsize * 8
    unsigned = DTYPES[f"u{bits}"]
    top = b.const(1 << (bits - 1), dtype=unsigned)
    if dtype.is_float:
        zero = b.const(0.0, dtype=dtype)
        key = b.bitcast(b.select(b.eq(x, zero), zero, x), dtype=unsigned)
        negative = b.ge(key, top)
        key = b.select(negative, b.bit_not(key), b.bit_xor(key, top))
    elif dtype.is_signed:
        key = b.bit_xor(b.bitcast(x, dtype=unsigned), top)
    else:
        key = x
    if descending:
        key = b.bit_not(key)
    if dtype.is_float:
        key = b.select(b.eq(x, x), key, b.const(unsigned.limits[1], dtype=unsigned))
    return key  # type: ignore[no-any-return]


def digit(b: Builder, key: Value, number: int) -> Value:
    t = key.type.dtype
    if number:
        key = b.shift_right(key, b.const(number * DIGIT, dtype=t))
    return cast(b, b.bit_and(key, b.const(VALUES - 1, dtype=t)), INDEX.dtype)


def row_sorter(rows: Rows) -> RowSorter:
    """The body that sorts one row, for the workspace of `Rows.scratch`."""
    passes = 1 if rows.dtype.is_bool else rows.dtype.itemsize * 8 // DIGIT

    def sort_row(b: Builder, r: Value, ins: Sequence[Value], memories: Sequence[Value]) -> None:
        outs, work = memories[: len(rows.outputs)], memories[len(rows.outputs) :]
        row = unravel(b, r, rows.others)
        size, one = b.index(rows.length), b.index(1)
        counts = b.alloc(type=MemType(INDEX.dtype, (passes, VALUES), "local"))

        def clear(ib: Builder, d: Value) -> None:
            for p in range(passes):
                ib.store(counts, ib.index(0), ib.index(p), d)

        def count(ib: Builder, i: Value) -> None:
            x = rows.read(ib, ins, row, i)
            for mem, v in zip(work, (x, i)):
                ib.store(mem, v, ib.index(0), r, i)
            key = key_of(ib, x, rows.dtype, rows.descending)
            for p in range(passes):
                at = (ib.index(p), digit(ib, key, p))
                ib.store(counts, ib.add(ib.load(counts, *at), one), *at)

        def first_places(ib: Builder, d: Value, *before: Value) -> list[Value]:
            """Counts become the places of the first element with each digit."""
            after = []
            for p, n in enumerate(before):
                here = ib.load(counts, ib.index(p), d)
                ib.store(counts, n, ib.index(p), d)
                after.append(ib.add(n, here))
            return after

        def move(ib: Builder, i: Value, p: int) -> None:
            found = [ib.load(mem, ib.index(p % 2), r, i) for mem in work]
            at = (ib.index(p), digit(ib, key_of(ib, found[0], rows.dtype, rows.descending), p))
            place = ib.load(counts, *at)
            ib.store(counts, ib.add(place, one), *at)
            if p + 1 < passes:
                for mem, v in zip(work, found):
                    ib.store(mem, v, ib.index(1 - p % 2), r, place)
            elif rows.keep == rows.length:
                rows.write(ib, outs, row, place, found[0], found[-1])
            else:
                kept = ib.lt(place, ib.index(rows.keep))
                if_(ib, kept, lambda jb: rows.write(jb, outs, row, place, found[0], found[-1]))

        for_(b, 0, VALUES, clear)
        for_(b, 0, size, count, vectorize=False)
        for_(b, 0, VALUES, first_places, [b.index(0)] * passes, vectorize=False)
        for p in range(passes):
            for_(b, 0, size, lambda ib, i, p=p: move(ib, i, p), vectorize=False)

    return sort_row


__all__ = ["LONG", "RowSorter", "key_of", "row_sorter"]
