"""Templates for concat and pad on CPUs, where a group ends in one: loops over the parts, without a test at each element.

A concat is one kernel for each shape of its operands, which computes their elements straight into their place: operands of
one shape share what they are computed from, and results of that shape come along. A pad walks the rows of
the result: a row outside the operand is filled, another has a filled end, the operand's elements, and a filled end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim, product, prove_le
from fluxir.ir.types import MemType, TensorType
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of, with_block
from fluxir.schedule.loops import (
    GRAIN,
    Size,
    ceildiv,
    for_,
    grain_of,
    if_,
    is_small,
    kernel,
    memory,
    nest,
    parallel,
    unravel,
)
from fluxir.schedule.pointwise import CHUNK, VECTOR_GRAIN
from fluxir.schedule.space import inplace_pairs
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template
from fluxir.schedule.vector_loops import VectorLine, vectors_of

MOST = 16  # parts that one kernel computes


@dataclass(frozen=True)
class JoinSchedule(Schedule):
    """`part`: the sizes that a kernel walks, with `together` results or parts of such at each place. `lanes` of a vector along
    the last axis, `in_flight` of which are worked on side by side."""

    part: str
    together: int | None = None
    lanes: int | None = None
    in_flight: int | None = None


def _rows(b: Builder, shape: Sequence[Dim], work: int, row: Any) -> None:
    """`row(builder, outer index)` for all but the last axis, over threads where that pays."""
    outer = shape[:-1]
    if is_small(product(shape) * work) or product(outer) == 1:
        nest(b, outer, row)
    else:
        parallel(b, product(outer), lambda ib, t: row(ib, unravel(ib, t, outer)), grain=grain_of(shape[-1] * work))


def _root(group: Group, name: str) -> Op | None:
    """The op that makes the group's only result, if it is one of this name and nothing else reads it."""
    op = group.outs[0].owner if len(group.outs) == 1 else None
    return op if op is not None and op.name == name and shape_of(op.result) else None


@template("concat", target="cpu", anchors=("concat",), priority=20)
def concat(group: Group, target: Any) -> Kernels | None:
    """Concats at the end of a group, and other results of the shape of their parts: one kernel for each shape of a part."""
    by_part: dict[tuple[Dim, ...], list[_Piece]] = {}
    for j, out in enumerate(group.outs):
        for piece in _pieces(out, j):
            by_part.setdefault(piece.shape, []).append(piece)
    joined = {out.owner for out in group.outs if _joins(out)}
    if not joined or any(v.owner in joined for op in group.ops for v in op.operands):
        return None
    if len(group.outs) > 1 and len(by_part) > 1:
        return None
    if any(len(pieces) > MOST for pieces in by_part.values()):
        return None
    steps: list[Step] = []
    for shape, pieces in by_part.items():
        if 0 in shape:
            continue
        if all(p.value in group.args and p.axis is not None for p in pieces):  # copies of longer lines
            steps += [_copy(group, p) for p in pieces]
        else:
            name = f"{group.name}_{len(steps)}" if len(by_part) > 1 else group.name
            steps.append(_together(group, shape, pieces, target, name))
    return Kernels(tuple(steps)) if steps else None


@dataclass(frozen=True, eq=False)
class _Piece:
    """`value` goes into result `out` of the group, as the `part`-th operand of a concat along `axis` (None: it is the result)
    from index `first` on."""

    value: Value
    out: int
    part: int = 0
    axis: int | None = None
    first: Dim = 0
    whole: tuple[Dim, ...] = ()

    @property
    def shape(self) -> tuple[Dim, ...]:
        return shape_of(self.value)

    @property
    def place(self) -> tuple[Dim, Dim, Dim]:
        """Rows of the concat, where the part begins in each, and how long it is."""
        assert self.axis is not None
        inner = product(self.whole[self.axis + 1 :])
        return product(self.whole[: self.axis]), self.first * inner, self.shape[self.axis] * inner

    def at(self, b: Builder, index: tuple[Value, ...]) -> tuple[Value, ...]:
        """Where element `index` of the value lies in the result."""
        if self.axis is None or self.first == 0:
            return index
        return tuple(b.add(i, b.index(self.first)) if k == self.axis else i for k, i in enumerate(index))


def _joins(v: Value) -> bool:
    return v.owner is not None and v.owner.name == "concat" and len(shape_of(v)) > 0


def _pieces(out: Value, j: int) -> list[_Piece]:
    op = out.owner
    if op is None or not _joins(out):
        return [_Piece(out, j)]
    whole = shape_of(out)
    axis = op.attrs["axis"] % len(whole)
    found: list[_Piece] = []
    first: Dim = 0
    for k, x in enumerate(op.operands):
        found.append(_Piece(x, j, k, axis, first, whole))
        first = first + shape_of(x)[axis]
    return found


def _together(group: Group, shape: tuple[Dim, ...], pieces: list[_Piece], target: Any, name: str) -> Step:
    """All pieces of one shape in one pass over it, on vectors where its last axis is walked."""
    parts = with_block(group, Block(group.args, group.ops, [p.value for p in pieces]))
    vectors = vectors_of(parts, shape, parts.outs, target)
    work = element_cost(parts)
    worth = GRAIN if vectors is None else VECTOR_GRAIN
    outs = list(dict.fromkeys(p.out for p in pieces))

    def body(b: Builder, ins: Sequence[Value], results: Sequence[Value]) -> None:
        memories = [results[outs.index(p.out)] for p in pieces]
        moved = {k: p.at for k, p in enumerate(pieces) if p.axis is not None}
        reads = dict(zip(group.args, ins, strict=True))
        vector_line = VectorLine(b, parts, shape, vectors, reads, memories, parts.outs, moved) if vectors else None

        def element(ib: Builder, at: tuple[Value, ...]) -> None:
            e = Elements(ib, reads)
            for p, mem, x in zip(pieces, memories, [e.at(p.value, at) for p in pieces], strict=True):
                ib.store(mem, x, *p.at(ib, at))

        def line(ib: Builder, at: tuple[Value, ...], lo: Size, hi: Size) -> None:
            if vector_line is None:
                for_(ib, lo, hi, lambda jb, i: element(jb, (*at, i)))
            else:
                vector_line.emit(ib, at, lo, hi)

        def row(ib: Builder, at: tuple[Value, ...]) -> None:
            line(ib, at, 0, shape[-1])

        if is_small(product(shape) * work, worth):
            nest(b, shape[:-1], row)
        elif len(shape) == 1:

            def piece(ib: Builder, t: Value) -> None:
                lo = ib.mul(t, ib.index(CHUNK))
                line(ib, (), lo, ib.minimum(ib.add(lo, ib.index(CHUNK)), ib.index(shape[0])))

            parallel(b, ceildiv(shape[0], CHUNK), piece, grain=grain_of(CHUNK * work, worth))
        else:
            grain = grain_of(shape[-1] * work, worth)
            parallel(b, product(shape[:-1]), lambda ib, t: row(ib, unravel(ib, t, shape[:-1])), grain=grain)

    inputs = [memory(a.type) for a in group.args]
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in outs]]
    whole = {k: outs.index(p.out) for k, p in enumerate(pieces) if p.axis is None}
    pairs = inplace_pairs(parts, parts.outs, shape)
    inplace = tuple((len(inputs) + whole[k], i) for k, i in pairs if k in whole)
    flight = (vectors.lanes, vectors.wide // vectors.lanes) if vectors else (None, None)
    made = kernel(
        name, inputs, [memory(group.outs[j].type) for j in outs], body, names=[a.name for a in group.args],
        schedule=JoinSchedule("x".join(map(str, shape)), len(pieces), *flight), loc=group.loc,
    )  # fmt: skip
    return Step(made, tuple(refs), len(outs), inplace)


def _copy(group: Group, p: _Piece) -> Step:
    """A part that is an argument, seen as rows of `length` elements that begin at `offset` in rows of the result."""
    outer, offset, length = p.place
    t = p.value.type
    assert isinstance(t, TensorType) and p.axis is not None
    row_type = MemType(t.dtype, (outer, product(p.whole[p.axis :])))

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        source = b.emit("reinterpret", ins[0], type=MemType(t.dtype, (outer, length)))[0]
        target = b.emit("reinterpret", outs[0], type=row_type)[0]

        def line(ib: Builder, at: tuple[Value, ...]) -> None:
            (r,) = at
            shift = ib.index(offset)
            for_(ib, 0, length, lambda jb, i: jb.store(target, jb.emit("load", source, r, i)[0], r, jb.add(i, shift)))

        _rows(b, (outer, length), 1, line)

    made = kernel(
        f"{group.name}_part", [memory(t)], [memory(group.outs[p.out].type)], body, names=[p.value.name],
        schedule=JoinSchedule(f"{outer}x{length}"), loc=group.loc,
    )  # fmt: skip
    return Step(made, (("input", group.args.index(p.value)), ("output", p.out)))


@template("pad", target="cpu", anchors=("pad",), priority=20)
def pad(group: Group, target: Any) -> Kernels | None:
    """A pad at the end of a group, without interior padding or cropping."""
    op = _root(group, "pad")
    if op is None or any(op.attrs["interior"] or ()):
        return None
    x, filler = op.operands
    shape, inner = shape_of(op.result), shape_of(x)
    low, high = op.attrs["low"], op.attrs["high"]
    if not all(prove_le(0, d) for d in (*low, *high)):
        return None
    work = element_cost(group)

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        reads = dict(zip(group.args, ins))

        def row(ib: Builder, at: tuple[Value, ...]) -> None:
            value = Elements(ib, reads).at(filler, ())
            inside: Value | None = None
            source = []
            for i, lo, hi, n in zip(at, low, high, inner):
                j = ib.sub(i, ib.index(lo)) if lo != 0 else i
                source.append(j)
                tests = [ib.le(ib.index(0), j)] if lo != 0 else []
                tests += [ib.lt(j, ib.index(n))] if hi != 0 else []
                for t in tests:
                    inside = t if inside is None else ib.logical_and(inside, t)

            def fill(jb: Builder, start: Dim, end: Dim) -> None:
                if start != end:
                    for_(jb, start, end, lambda kb, i: kb.store(outs[0], value, *at, i))

            def copy(jb: Builder) -> None:
                begin, end = low[-1], low[-1] + inner[-1]
                fill(jb, 0, begin)

                def element(kb: Builder, i: Value) -> None:
                    kb.store(outs[0], Elements(kb, reads).at(x, (*source, i)), *at, kb.add(i, kb.index(begin)))

                for_(jb, 0, inner[-1], element)
                fill(jb, end, shape[-1])

            if inside is None:
                copy(ib)
            else:
                if_(ib, inside, copy, lambda jb: fill(jb, 0, shape[-1]))

        _rows(b, shape, work, row)

    inputs = [memory(a.type) for a in group.args]
    schedule = JoinSchedule("x".join(map(str, shape)))
    names = [a.name for a in group.args]
    made = kernel(group.name, inputs, [memory(op.result.type)], body, names=names, schedule=schedule, loc=group.loc)
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], ("output", 0)]
    return Kernels((Step(made, tuple(refs)),))


__all__ = ["JoinSchedule", "concat", "pad"]
