"""Templates for concat and pad on CPUs, where a group ends in one: loops over the parts, without a test at each element.

A concat is one kernel for each operand, which computes its elements straight into their place. A pad walks the rows of
the result: a row outside the operand is filled, another has a filled end, the operand's elements, and a filled end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, product, prove_le
from fluxir.ir.types import MemType
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import for_, grain_of, if_, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template


@dataclass(frozen=True)
class JoinSchedule(Schedule):
    """`part`: the sizes that a kernel walks."""

    part: str


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
    """A concat at the end of a group: one kernel for each operand."""
    op = _root(group, "concat")
    if op is None or len(op.operands) > 16:
        return None
    shape = shape_of(op.result)
    axis = op.attrs["axis"] % len(shape)
    inner = product(shape[axis + 1 :])
    outer = product(shape[:axis])
    steps: list[Step] = []
    start: Dim = 0
    work = element_cost(group)
    inputs = [memory(a.type) for a in group.args]
    for k, x in enumerate(op.operands):
        size = shape_of(x)[axis]
        if size != 0:
            steps.append(_part(group, op, k, (outer, start * inner, size * inner), inputs, work))
        start = start + size
    return Kernels(tuple(steps)) if steps else None


def _part(group: Group, op: Op, k: int, place: tuple[Dim, Dim, Dim], inputs: list[MemType], work: int) -> Step:
    """Operand k of a concat, seen as `outer` rows of `length` elements that begin at `offset` in rows of the result."""
    outer, offset, length = place
    x = op.operands[k]
    shape, whole = shape_of(x), shape_of(op.result)
    axis = op.attrs["axis"] % len(whole)
    flat = x in group.args
    row_type = MemType(x.type.dtype, (outer, product(whole[axis:])))

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        reads = dict(zip(group.args, ins))
        if flat:
            source = b.emit("reinterpret", reads[x], type=MemType(x.type.dtype, (outer, length)))[0]
            target = b.emit("reinterpret", outs[0], type=row_type)[0]

            def line(ib: Builder, at: tuple[Value, ...]) -> None:
                (r,) = at
                shift = ib.index(offset)
                for_(
                    ib, 0, length, lambda jb, i: jb.store(target, jb.emit("load", source, r, i)[0], r, jb.add(i, shift))
                )

            _rows(b, (outer, length), 1, line)
            return
        first = b.index(sum((shape_of(v)[axis] for v in op.operands[:k]), start=0))

        def row(ib: Builder, at: tuple[Value, ...]) -> None:
            def element(jb: Builder, i: Value) -> None:
                where = (*at, i)
                value = Elements(jb, reads).at(x, where)
                jb.store(outs[0], value, *[jb.add(j, first) if a == axis else j for a, j in enumerate(where)])

            for_(ib, 0, shape[-1], element)

        _rows(b, shape, work, row)

    schedule = JoinSchedule("x".join(map(str, (outer, length) if flat else shape)))
    names = [a.name for a in group.args]
    made = kernel(
        f"{group.name}_part", inputs, [memory(op.result.type)], body, names=names, schedule=schedule, loc=group.loc
    )
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], ("output", 0)]
    return Step(made, tuple(refs))


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
