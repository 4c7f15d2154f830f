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
from fluxir.ops.maps import identity_map
from fluxir.schedule.access import analyse
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group
from fluxir.schedule.loops import GRAIN, Size, for_, grain_of, is_small, kernel, nest, parallel, unravel
from fluxir.schedule.space import Space, by_shape, index_in
from fluxir.schedule.templates import Kernels, Schedule, Step, template
from fluxir.schedule.transposed import Transposed
from fluxir.schedule.vector_loops import VectorLine, vectors_of

TILE = 32
CHUNK = 2048  # fewest elements of a task; a multiple of every vector, so that each begins where a vector does
VECTOR_GRAIN = 8 * GRAIN  # element operations on vectors that are worth a thread of their own


@dataclass(frozen=True)
class PointwiseSchedule(Schedule):
    """`space`: the loops after merging. `parallel`: how many of them are spread over threads (0: none). `chunk`: elements
    of a task where there is one loop. `tile`: the two loops that run in square tiles, for memory that is walked across.
    `lanes` of a vector along the last loop, `in_flight` of which are worked on side by side."""

    space: str
    parallel: int = 0
    chunk: Dim | None = None
    tile: str | None = None
    lanes: int | None = None
    in_flight: int | None = None


@template("pointwise", target="cpu", priority=-100)
def pointwise(group: Group, target: Any) -> Kernels:
    """Loops over the output space; one kernel for each distinct output shape."""
    return by_shape(group, lambda over, name: _one_shape(over, name, target))


def _one_shape(over: Space, name: str, target: Any) -> Step:
    group, space, outs = over.group, over.space, over.outs
    vectors = vectors_of(group, space, outs, target)
    across = _across(group, space) if over.merged else None
    work = element_cost(group)
    total = product(space) * work
    worth = GRAIN if vectors is None else VECTOR_GRAIN
    chunk = max(CHUNK, GRAIN // max(1, work) // 64 * 64)
    depth = 0 if not space or is_small(total, worth) else _parallel_depth(space, work)
    across = across if depth else None
    schedule = PointwiseSchedule(
        "x".join(map(str, space)) or "1",
        depth,
        chunk if depth and len(space) == 1 else None,
        None if across is None else f"{across},{len(space) - 1}",
        vectors.lanes if vectors else None,
        vectors.wide // vectors.lanes if vectors else None,
    )

    def body(b: Builder, ins: Sequence[Value], results: Sequence[Value]) -> None:
        reads = dict(zip(group.args, ins))

        def element(ib: Builder, at: tuple[Value, ...]) -> None:
            e = Elements(ib, reads)
            for mem, v in zip(results, [e.at(v, index_in(ib, v, at)) for v in outs]):
                ib.store(mem, v, *at)

        vector_line = VectorLine(b, group, space, vectors, reads, results, outs) if vectors else None

        def line(ib: Builder, at: tuple[Value, ...], lo: Size, hi: Size) -> None:
            if vector_line is None:
                for_(ib, lo, hi, lambda jb, i: element(jb, (*at, i)))
            else:
                vector_line.emit(ib, at, lo, hi)

        def lines(ib: Builder, at: tuple[Value, ...], inner: tuple[Dim, ...]) -> None:
            if not inner:
                element(ib, at)
            else:
                nest(ib, inner[:-1], lambda jb, rest: line(jb, (*at, *rest), 0, inner[-1]))

        if depth == 0:
            lines(b, (), space)
        elif across is not None:
            squares = Transposed.of(group, space, across, target)
            if squares is None:
                _tiles(b, space, across, work, element)
            else:
                streams = squares.streams(b, results, group.args)

                def rows(ib: Builder, at: dict[int, Value], lo: Value, hi: Value, tiles: Transposed = squares) -> None:
                    def single(jb: Builder, index: dict[int, Value]) -> None:
                        element(jb, tuple(index[a] for a in range(len(space))))

                    tiles.emit(ib, reads, outs, results, at, (lo, hi), streams, single)

                _lines_of_tiles(b, space, across, work, rows)
        elif len(space) == 1:
            n = b.index(space[0])

            def piece(ib: Builder, t: Value) -> None:
                lo = ib.mul(t, ib.index(chunk))
                hi = ib.minimum(ib.add(lo, ib.index(chunk)), n)
                line(ib, (), lo, hi)

            parallel(b, ceildiv(space[0], chunk), piece, grain=grain_of(chunk * work, worth))
        else:
            outer, inner = space[:depth], space[depth:]

            def row(ib: Builder, t: Value) -> None:
                at = unravel(ib, t, outer)
                lines(ib, at, inner)

            parallel(b, product(outer), row, grain=grain_of(product(inner) * work, worth))

    return over.step(kernel, name, body, schedule)


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

    def rows(ib: Builder, at: dict[int, Value], lo: Value, hi: Value) -> None:
        def tile(jb: Builder, u: Value) -> None:
            first, end = _bounds(jb, u, space[last])

            def line(kb: Builder, i: Value) -> None:
                here = {**at, across: i}
                for_(kb, first, end, lambda lb, k: element(lb, tuple({**here, last: k}[a] for a in range(last + 1))))

            for_(jb, lo, hi, line)

        for_(ib, 0, ceildiv(space[last], TILE), tile)

    _lines_of_tiles(b, space, across, work, rows)


def _bounds(b: Builder, t: Value, size: Dim) -> tuple[Value, Value]:
    lo = b.mul(t, b.index(TILE))
    return lo, b.minimum(b.add(lo, b.index(TILE)), b.index(size))


def _lines_of_tiles(b: Builder, space: tuple[Dim, ...], across: int, work: int, rows: Any) -> None:
    """Tasks of `TILE` indices of axis `across` each: `rows(builder, indices of the other axes, first, end)`."""
    last = len(space) - 1
    others = [i for i in range(last) if i != across]
    blocks = ceildiv(space[across], TILE)

    def task(ib: Builder, t: Value) -> None:
        *outer, block = unravel(ib, t, (*[space[i] for i in others], blocks))
        rows(ib, dict(zip(others, outer)), *_bounds(ib, block, space[across]))

    parallel(b, product([*[space[i] for i in others], blocks]), task, grain=grain_of(TILE * space[last] * work))


def _parallel_depth(space: tuple[Dim, ...], work: int) -> int:
    """How many leading loops become tasks: the fewest whose rest is a small static amount, else all but the last."""
    if len(space) == 1:
        return 1
    for p in range(1, len(space)):
        if is_small(product(space[p:]) * work) and product(space[:p]) != 1:
            return p
    return len(space) - 1


__all__ = ["PointwiseSchedule", "pointwise"]
