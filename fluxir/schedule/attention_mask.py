"""What the masks of an attention say: bounds between which columns are seen, and code for all other masks.

A condition that compares counters of rows and columns with each other, with numbers or with values of the batch (causal,
a window, a length) is a *bound*: column t is seen where t < slope * s + rest, or t >= it. Blocks of columns outside of all
rows' bounds are never looked at, blocks inside of them need no test. Other masks are evaluated for a block of columns by a
panel of rows: along the columns, as they lie in memory, and then turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import MemType
from fluxir.ops.maps import is_elementwise
from fluxir.ops.nest import cast
from fluxir.ops.shape import broadcast_axes
from fluxir.schedule.attention import LOG2E, Attention, number, splat
from fluxir.schedule.element import Elements
from fluxir.schedule.group import shape_of
from fluxir.schedule.loops import for_
from fluxir.schedule.matmul_pack import transposed
from fluxir.schedule.vectors import Lanes

ROW, COLUMN, NONE = -2, -1, None
Coordinates = tuple[
    int | None, ...
]  # for each axis of a value: a batch axis, ROW or COLUMN of the scores, or NONE where it is 0
Term = tuple[int, "Value | Dim", Coordinates]  # a factor, and a size, or a value at these coordinates
FAR = 1 << 30  # bounds are held within it, so that they fit the lanes they are compared in


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """column * t + row * s + rest."""

    column: int
    row: int
    rest: tuple[Term, ...]

    def plus(self, other: Form, factor: int) -> Form:
        return Form(
            self.column + factor * other.column, self.row + factor * other.row, (*self.rest, *_times(other, factor))
        )


def _times(f: Form, factor: int) -> tuple[Term, ...]:
    return tuple((factor * c, v, at) for c, v, at in f.rest)


@dataclass(frozen=True)
class Bound:
    """Column t is seen by row s where t < slope * s + rest (`upper`), else where t >= that."""

    upper: bool
    slope: int
    rest: tuple[Term, ...]


def coordinates_of(v: Value, rank: int) -> Coordinates:
    """The coordinates of a mask's axes, which broadcasts to scores of `rank` axes."""
    names = (*range(rank - 2), ROW, COLUMN)
    shape = shape_of(v)
    return tuple(NONE if d == 1 else n for d, n in zip(shape, names[rank - len(shape) :]))


def _below(v: Value, at: Coordinates) -> list[tuple[Value, Coordinates]] | None:
    """The operands of the op that makes a value and the coordinates at which it reads them; None where that is no map."""
    op = v.owner
    if op is None:
        return None
    if is_elementwise(op):
        pairs = []
        for x in op.operands:
            shape = shape_of(x)
            pairs.append((x, tuple(NONE if d == 1 else c for d, c in zip(shape, at[len(at) - len(shape) :]))))
        return pairs
    match op.name:
        case "stop_gradient":
            return [(op.operands[0], at)]
        case "transpose":
            back: list[int | None] = [NONE] * len(at)
            for j, k in enumerate(op.attrs["perm"]):
                back[k] = at[j]
            return [(op.operands[0], tuple(back))]
        case "broadcast":
            (x,) = op.operands
            axes = broadcast_axes(op.attrs, len(shape_of(x)))
            return [(x, tuple(NONE if d == 1 else at[a] for d, a in zip(shape_of(x), axes)))]
        case "reshape":
            (x,) = op.operands
            if [d for d in shape_of(x) if d != 1] == [d for d in shape_of(v) if d != 1]:
                real = iter(c for c, d in zip(at, shape_of(v)) if d != 1)
                return [(x, tuple(NONE if d == 1 else next(real) for d in shape_of(x)))]
    return None


def conjuncts(v: Value, at: Coordinates) -> list[tuple[Value, Coordinates]]:
    """The conditions that all have to hold for `v` to hold."""
    op = v.owner
    if op is not None and op.name in ("logical_and", "broadcast", "reshape", "transpose", "stop_gradient"):
        below = _below(v, at)
        if below is not None:
            return [c for x, where in below for c in conjuncts(x, where)]
    return [(v, at)]


def form_of(v: Value, at: Coordinates) -> Form | None:
    """An integer as a linear form in row and column, computed in i64; None where it is not one."""
    if ROW not in at and COLUMN not in at:
        return Form(0, 0, ((1, v, at),))
    op = v.owner
    if op is None:
        return None
    if op.name == "iota":
        c = at[op.attrs["axis"] % len(at)]
        return Form(int(c == COLUMN), int(c == ROW), ())
    below = _below(v, at)
    if below is None:
        return None
    if op.name in ("broadcast", "reshape", "transpose", "stop_gradient"):
        return form_of(*below[0])
    if op.name == "cast" and below[0][0].dtype.kind == "int" and v.dtype.bits >= below[0][0].dtype.bits:
        return form_of(*below[0])
    if v.dtype.name != "i64" or op.name not in ("add", "sub", "neg"):
        return None
    forms = [form_of(x, where) for x, where in below]
    first = forms[0]
    if first is None:
        return None
    if op.name == "neg":
        return Form(0, 0, ()).plus(first, -1)
    second = forms[1]
    return None if second is None else first.plus(second, 1 if op.name == "add" else -1)


_ORDERED = {"lt": (1, 1), "le": (1, 0), "gt": (-1, 1), "ge": (-1, 0)}  # x op y as sign * (x - y) + extra <= 0


def bound_of(v: Value, at: Coordinates) -> Bound | None:
    """A condition as a bound of the columns; None where it is not one."""
    op = v.owner
    if op is None or op.name not in _ORDERED or op.operands[0].dtype.kind != "int":
        return None
    below = _below(v, at)
    forms = [form_of(x, where) for x, where in below or ()]
    if len(forms) != 2 or forms[0] is None or forms[1] is None:
        return None
    sign, extra = _ORDERED[op.name]
    f = Form(0, 0, ((extra, 1, ()),)).plus(forms[0].plus(forms[1], -1), sign)  # f <= 0
    if f.column == 1:
        return Bound(True, -f.row, ((1, 1, ()), *_times(f, -1)))
    if f.column == -1:
        return Bound(False, f.row, f.rest)
    return None


@dataclass(frozen=True, eq=False)
class Masks:
    """All that a group's masks say: `bounds`, further `conditions`, and `biases`, with their coordinates."""

    bounds: tuple[Bound, ...]
    conditions: tuple[tuple[Value, Coordinates], ...]
    biases: tuple[tuple[Value, Coordinates], ...]

    @property
    def general(self) -> tuple[tuple[Value, Coordinates], ...]:
        return (*self.biases, *self.conditions)


def read_masks(a: Attention) -> Masks:
    rank = len(a.batch) + 2
    bounds: list[Bound] = [Bound(True, 1, ((1, 1, ()),))] if a.op.attrs["causal"] else []
    conditions, biases = [], []
    for m in a.masks:
        at = coordinates_of(m, rank)
        if not m.dtype.is_bool:
            biases.append((m, at))
            continue
        for c, where in conjuncts(m, at):
            bound = bound_of(c, where)
            if bound is not None:
                bounds.append(bound)
            else:
                conditions.append((c, where))
    return Masks(tuple(bounds), tuple(conditions), tuple(biases))


# ---- code --------------------------------------------------------------------------------------------------------------


class MaskCode:
    """The masks in a kernel, for one batch index. `memory`: the group's arguments that they are computed from."""

    def __init__(
        self, b: Builder, a: Attention, masks: Masks, memory: dict[Value, Value], batch: Sequence[Value]
    ) -> None:
        self.a, self.masks, self.memory, self.batch = a, masks, memory, tuple(batch)
        self.rests = [self._rest(b, bound) for bound in masks.bounds]

    def _rest(self, b: Builder, bound: Bound) -> Value:
        total = b.index(0)
        for factor, v, at in bound.rest:
            x = (
                b.index(v)
                if not isinstance(v, Value)
                else cast(b, Elements(b, self.memory).at(v, self.at(b, at)), DTYPES["i64"])
            )
            if isinstance(v, Value):
                x = b.minimum(b.maximum(x, b.index(-FAR)), b.index(FAR))
            total = b.add(total, b.mul(x, b.index(factor)) if factor != 1 else x)
        return total

    def at(self, b: Builder, where: Coordinates, row: Value | None = None, column: Value | None = None) -> list[Value]:
        """The index for coordinates."""
        named: dict[int | None, Value | None] = {
            ROW: row,
            COLUMN: column,
            NONE: b.index(0),
            **dict(enumerate(self.batch)),
        }
        out = [named[c] for c in where]
        assert all(x is not None for x in out)
        return out  # type: ignore[return-value]

    def ends(self, b: Builder, first: Value, last: Value) -> tuple[Value, Value, Value, Value]:
        """(low, high, low for all, high for all): columns that any of the rows first..last sees lie in low..high; those
        between the other two are seen by all of them, as far as bounds say."""
        low, high = b.index(0), b.index(self.a.t)
        low_all, high_all = low, high
        for bound, rest in zip(self.masks.bounds, self.rests):
            at_first, at_last = (b.add(rest, b.mul(s, b.index(bound.slope))) for s in (first, last))
            least, most = (at_first, at_last) if bound.slope >= 0 else (at_last, at_first)
            if bound.upper:
                high, high_all = b.minimum(high, most), b.minimum(high_all, least)
            else:
                low, low_all = b.maximum(low, least), b.maximum(low_all, most)
        if not self.a.skips:
            low, high = b.index(0), b.index(self.a.t)
        return low, high, low_all, high_all

    def bound_lanes(self, b: Builder, first: Value, lanes: int) -> list[tuple[bool, Value]]:
        """For each bound, whether it is an upper one, and its place for the rows `first`, `first + 1`, ... as a vector."""
        word = DTYPES["i32" if self.a.dtype.bits == 32 else "i64"]
        found = []
        for bound, rest in zip(self.masks.bounds, self.rests):
            start = b.add(rest, b.mul(first, b.index(bound.slope)))
            start = cast(b, b.minimum(b.maximum(start, b.index(-FAR)), b.index(FAR)), word)
            x = splat(b, start, lanes)
            if bound.slope:
                steps = splat(b, b.const(0, dtype=word), lanes)
                for lane in range(1, lanes):
                    steps = b.emit("insert", steps, b.const(lane * bound.slope, dtype=word), lane=lane)[0]
                x = b.add(x, steps)
            found.append((bound.upper, x))
        return found

    def seen(self, b: Builder, bounds: Sequence[tuple[bool, Value]], column: Value, lanes: int) -> list[Value]:
        """The conditions of the bounds at one column, for a vector of rows."""
        if not bounds:
            return []
        t = splat(b, cast(b, column, bounds[0][1].dtype), lanes)
        return [b.lt(t, x) if upper else b.ge(t, x) for upper, x in bounds]

    # ---- other masks
    def turned(
        self, b: Builder, mem: Value, which: int, first: Value, lo: Value, hi: Value, rows: int, lanes: int
    ) -> None:
        """Write general mask number `which` for columns lo..hi of `rows` rows from `first` to mem[column - lo, row], in the
        type computed in: conditions as 1 and 0. A row beyond the last is the last again."""
        value, where = self.masks.general[which]
        dtype, last = self.a.dtype, b.sub(b.index(self.a.s), b.index(1))
        per_row = ROW in where

        def number_of(ib: Builder, x: Value, n: int) -> Value:
            if not x.dtype.is_bool:
                return ib.mul(cast(ib, x, dtype), number(ib, LOG2E, dtype, n))  # type: ignore[no-any-return]
            return ib.select(x, number(ib, 1.0, dtype, n), number(ib, 0.0, dtype, n))  # type: ignore[no-any-return]

        def row_of(ib: Builder, r: Value | int) -> Value | None:
            return ib.minimum(ib.add(first, r if isinstance(r, Value) else ib.index(r)), last) if per_row else None

        def square(ib: Builder, t: Value) -> None:
            for r0 in range(0, rows, lanes):
                vectors = []
                for r in range(r0, r0 + lanes):
                    if per_row or r == r0:
                        x = Lanes(Elements(ib, self.memory), t, lanes).vector(
                            value, self.at(ib, where, row_of(ib, r), t)
                        )
                        x = number_of(ib, x, lanes)
                    vectors.append(x)
                for i, x in enumerate(transposed(ib, vectors)):
                    ib.store(mem, x, ib.sub(ib.add(t, ib.index(i)), lo), ib.index(r0))

        def single(ib: Builder, t: Value) -> None:
            def one(jb: Builder, r: Value) -> None:
                x = Elements(jb, self.memory).at(value, self.at(jb, where, row_of(jb, r), t))
                jb.store(mem, number_of(jb, x, 0), jb.sub(t, lo), r)

            for_(ib, 0, rows, one, vectorize=False)

        whole = b.sub(hi, b.fmod(b.sub(hi, lo), b.index(lanes)))
        if COLUMN in where and lanes > 1:
            for_(b, lo, whole, square, step=lanes, name="t", vectorize=False)
            for_(b, whole, hi, single, name="t", vectorize=False)
        else:
            for_(b, lo, hi, single, name="t", vectorize=False)

    def memories(self, b: Builder, columns: int, rows: int) -> list[Value]:
        """Room on the stack for the general masks of a block."""
        t = MemType(self.a.dtype, (columns, rows), "local")
        return [b.alloc(type=t) for _ in self.masks.general]

    def masked(
        self, b: Builder, x: Value, evaluated: Sequence[Value], conditions: Sequence[Value], lanes: int
    ) -> Value:
        """Scores with biases added and replaced where they are not seen. `evaluated`: the general masks there."""
        n = len(self.masks.biases)
        for bias in evaluated[:n]:
            x = b.add(x, bias)
        zero = number(b, 0.0, self.a.dtype, lanes)
        for c in [*conditions, *[b.gt(m, zero) for m in evaluated[n:]]]:
            x = b.select(c, x, number(b, self.a.fill, self.a.dtype, lanes))
        return x

    def kept(self, b: Builder, evaluated: Sequence[Value], conditions: Sequence[Value], lanes: int) -> Value:
        """1 where a score is seen, 0 where `fill` stands in its place."""
        x, zero = number(b, 1.0, self.a.dtype, lanes), number(b, 0.0, self.a.dtype, lanes)
        for c in [*conditions, *[b.gt(m, zero) for m in evaluated[len(self.masks.biases) :]]]:
            x = b.select(c, x, zero)
        return x


__all__ = ["Bound", "MaskCode", "Masks", "read_masks"]
