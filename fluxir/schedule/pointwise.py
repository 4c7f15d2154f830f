"""The pointwise template for CPUs: any group, one output element at a time, by the element rules of its ops.

It is the always-correct path of every op that has an element rule. Loops run over the output space with merged axes
where memory allows; the innermost has unit stride and is left to LLVM to vectorise; outer work is spread over threads
in pieces whose size does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.types import MemType
from fluxir.ops.maps import identity_map, is_elementwise
from fluxir.schedule.access import analyse, collapse
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import GRAIN, for_, grain_of, is_small, kernel, memory, nest, parallel, unravel
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

TILE = 32


@dataclass(frozen=True)
class PointwiseSchedule(Schedule):
    """`space`: the loops after merging. `parallel`: how many of them are spread over threads (0: none). `chunk`: elements
    of a task where there is one loop. `tile`: the two loops that run in square tiles, for memory that is walked across."""

    space: str
    parallel: int = 0
    chunk: Dim | None = None
    tile: str | None = None


@template("pointwise", target="cpu", priority=-100)
def pointwise(group: Group, target: Any) -> Kernels:
    """Loops over the output space; one kernel for each distinct output shape."""
    shapes = list(dict.fromkeys(shape_of(v) for v in group.outs))
    steps: list[Step] = []
    for s in shapes:
        which = [j for j, v in enumerate(group.outs) if shape_of(v) == s]
        steps.append(_one_shape(group, s, which, f"{group.name}_{len(steps)}" if len(shapes) > 1 else group.name))
    return Kernels(tuple(steps))


def _one_shape(group: Group, space: tuple[Dim, ...], which: Sequence[int], name: str) -> Step:
    outs = [group.outs[j] for j in which]
    inplace = inplace_pairs(group, outs, space)
    given = [memory(v.type) for v in (*group.args, *outs)]
    access = analyse(group, space, [(v, identity_map(space)) for v in outs]) if len(outs) == len(group.outs) else None
    merged = collapse(group, access) if access is not None else None
    across: int | None = None
    if merged is not None:
        group, space, _ = merged
        outs = [group.outs[j] for j in which]
        across = _across(group, space)
    work = element_cost(group)
    total = product(space) * work
    inputs = [memory(v.type) for v in group.args]
    outputs = [MemType(v.type.dtype, space) for v in outs]
    chunk = max(512, GRAIN // max(1, work) // 64 * 64)
    depth = 0 if not space or is_small(total) else _parallel_depth(space, work)
    across = across if depth else None
    schedule = PointwiseSchedule(
        "x".join(map(str, space)) or "1",
        depth,
        chunk if depth and len(space) == 1 else None,
        None if across is None else f"{across},{len(space) - 1}",
    )

    def body(b: Builder, ins: Sequence[Value], results: Sequence[Value]) -> None:
        reads = dict(zip(group.args, ins))

        def element(ib: Builder, at: tuple[Value, ...]) -> None:
            e = Elements(ib, reads)
            for mem, v in zip(results, [e.at(v, _index(ib, v, at)) for v in outs]):
                ib.store(mem, v, *at)

        if depth == 0:
            nest(b, space, element)
        elif across is not None:
            _tiles(b, space, across, work, element)
        elif len(space) == 1:
            n = b.index(space[0])

            def piece(ib: Builder, t: Value) -> None:
                lo = ib.mul(t, ib.index(chunk))
                hi = ib.minimum(ib.add(lo, ib.index(chunk)), n)
                for_(ib, lo, hi, lambda jb, i: element(jb, (i,)))

            parallel(b, ceildiv(space[0], chunk), piece)
        else:
            outer, inner = space[:depth], space[depth:]

            def row(ib: Builder, t: Value) -> None:
                at = unravel(ib, t, outer)
                nest(ib, inner, lambda jb, rest: element(jb, (*at, *rest)))

            parallel(b, product(outer), row, grain=grain_of(product(inner) * work))

    operands: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in which]]
    names = [v.name for v in group.args]
    made = kernel(name, inputs, outputs, body, names=names, schedule=schedule, loc=group.loc, given=given)
    return Step(made, tuple(operands), len(which), tuple((len(inputs) + j, i) for j, i in inplace))


def _across(group: Group, space: tuple[Dim, ...]) -> int | None:
    """A loop along which some argument is contiguous while the last loop jumps in it (a transpose), if there is one."""
    access = analyse(group, space, [(v, identity_map(space)) for v in group.outs])
    last = len(space) - 1
    for maps in access.leaves.values() if access is not None else ():
        for m in maps:
            if last in m[:-1] and m[-1] >= 0:
                return m[-1]
    return None


def _tiles(b: Builder, space: tuple[Dim, ...], across: int, work: int, element: Any) -> None:
    """Loops in which axis `across` and the last one run in square tiles, so that lines of memory are used whole."""
    last = len(space) - 1
    others = [i for i in range(last) if i != across]
    blocks = ceildiv(space[across], TILE)

    def bounds(ib: Builder, t: Value, size: Dim) -> tuple[Value, Value]:
        lo = ib.mul(t, ib.index(TILE))
        return lo, ib.minimum(ib.add(lo, ib.index(TILE)), ib.index(size))

    def task(ib: Builder, t: Value) -> None:
        *outer, block = unravel(ib, t, (*[space[i] for i in others], blocks))
        at: dict[int, Value] = dict(zip(others, outer))
        lo, hi = bounds(ib, block, space[across])

        def tile(jb: Builder, u: Value) -> None:
            first, end = bounds(jb, u, space[last])

            def line(kb: Builder, i: Value) -> None:
                here = {**at, across: i}
                for_(kb, first, end, lambda lb, k: element(lb, tuple({**here, last: k}[a] for a in range(last + 1))))

            for_(jb, lo, hi, line)

        for_(ib, 0, ceildiv(space[last], TILE), tile)

    parallel(b, product([*[space[i] for i in others], blocks]), task, grain=grain_of(TILE * space[last] * work))


def _index(b: Builder, v: Value, at: tuple[Value, ...]) -> tuple[Value, ...]:
    """The index of an output that lacks leading axes of the loop space or has size 1 there."""
    shape = shape_of(v)
    return tuple(b.index(0) if d == 1 else i for d, i in zip(shape, at[len(at) - len(shape) :]))


def _parallel_depth(space: tuple[Dim, ...], work: int) -> int:
    """How many leading loops become tasks: the fewest whose rest is a small static amount, else all but the last."""
    if len(space) == 1:
        return 1
    for p in range(1, len(space)):
        if is_small(product(space[p:]) * work) and product(space[:p]) != 1:
            return p
    return len(space) - 1


def inplace_pairs(group: Group, outs: Sequence[Value], space: tuple[Dim, ...]) -> list[tuple[int, int]]:
    """Pairs (position in `outs`, argument) that may share memory: the argument is read only at the index written.

    Found by walking elementwise ops of the full shape; an argument that anything else reads does not qualify.
    """
    bad: set[Value] = set()
    same: set[Value] = set(outs)  # values needed at exactly the written index
    other: set[Value] = set()  # values needed elsewhere
    for op in reversed(group.ops):
        exact = any(r in same for r in op.results)
        elsewhere = any(r in other for r in op.results)
        for v in op.operands:
            if exact and is_elementwise(op) and shape_of(v) == space:
                same.add(v)
            elif exact:
                other.add(v)
            if elsewhere:
                other.add(v)
    bad = other
    pairs: list[tuple[int, int]] = []
    free = [i for i, v in enumerate(group.args) if v in same and v not in bad and shape_of(v) == space]
    for j, out in enumerate(outs):
        for i in free:
            if group.args[i].type.dtype.itemsize == out.type.dtype.itemsize:
                pairs.append((j, i))
    return pairs


__all__ = ["PointwiseSchedule", "inplace_pairs", "pointwise"]
