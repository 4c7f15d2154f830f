"""The pointwise template for GPUs: any group, one thread an output element, by the element rules of its ops.

The always-correct path of every op that has an element rule. The output space is merged to as few axes as memory
allows and walked by linear index, so that neighbouring threads touch neighbouring elements. Where all memories are
walked in step and the size is provably a multiple of the vector width, a thread handles one 16-byte vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Func, Value
from fluxir.ir.dims import Dim, ceildiv, facts, floordiv, product
from fluxir.ir.types import MemType
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group
from fluxir.schedule.loops import if_, kernel, unravel
from fluxir.schedule.space import Space, by_shape, index_in
from fluxir.schedule.templates import Kernels, Schedule, Step, template
from fluxir.schedule.vectors import Lanes, aligned_bytes

THREADS = 256


@dataclass(frozen=True)
class GpuPointwiseSchedule(Schedule):
    """`space`: the axes after merging; `lanes` elements a thread, `threads` a block."""

    space: str
    lanes: int
    threads: int


def vector_lanes(types: Sequence[Any], last: Dim) -> int:
    """How many elements of the widest type fill 16 bytes, where the last axis is made of that many (else fewer, or 1)."""
    widest = max([t.dtype.itemsize for t in types if t.shape], default=16)
    lanes = min(8, 16 // widest)
    while lanes > 1 and not facts().divides(lanes, last):
        lanes //= 2
    return lanes


def grid_kernel(
    name: str,
    inputs: Sequence[MemType],
    outputs: Sequence[MemType],
    blocks: Dim,
    threads: int,
    body: Any,
    *,
    names: Sequence[str] = (),
    schedule: Any = None,
    loc: Any = None,
    given: Sequence[MemType] = (),
) -> Func:
    """A GPU kernel over a one-dimensional grid; `body(builder, input memories, output memories)` emits it. `given`: the
    types of its arguments where the body sees other shapes (see `loops.kernel`)."""
    f = kernel(name, inputs, outputs, body, names=names, schedule=schedule, loc=loc, given=given)
    return Func(
        f.name,
        f.block,
        f.level,
        Attrs({**f.attrs, "grid": (blocks, 1, 1), "block": (threads, 1, 1)}),
        f.result_names,
        f.loc,
    )


def linear_thread(b: Builder, threads: int) -> Value:
    """The index of this thread in a one-dimensional grid."""
    position: Value = b.add(b.mul(b.block_id(axis=0), b.index(threads)), b.thread_id(axis=0))
    return position


@template("pointwise", target="nvptx", priority=-100)
def pointwise(group: Group, target: Any) -> Kernels:
    """One thread an element of the output space; one kernel for each distinct output shape."""
    return by_shape(group, _one_shape)


def _one_shape(over: Space, name: str) -> Step:
    group, space, outs = over.group, over.space, over.outs
    lanes = vector_lanes([v.type for v in (*group.args, *outs)], space[-1]) if over.merged and space else 1
    total = product(space) if lanes == 1 else product(space[:-1]) * floordiv(space[-1], lanes)

    def body(b: Builder, ins: Sequence[Value], results: Sequence[Value]) -> None:
        reads = dict(zip(group.args, ins))
        i = linear_thread(b, THREADS)

        def element(ib: Builder) -> None:
            at = unravel(ib, i, space)
            e = Elements(ib, reads)
            for mem, v in zip(results, [e.at(v, index_in(ib, v, at)) for v in outs]):
                ib.store(mem, v, *at)

        def vector(ib: Builder) -> None:
            *at, last = unravel(ib, i, (*space[:-1], floordiv(space[-1], lanes)))
            var = ib.mul(last, ib.index(lanes))
            vec = Lanes(Elements(ib, reads), var, lanes, aligned=True)
            for mem, x in zip(results, [vec.vector(v, index_in(ib, v, (*at, var))) for v in outs]):
                ib.store(mem, x, *at, var, align=aligned_bytes(mem, lanes))

        if_(b, b.lt(i, b.index(total)), element if lanes == 1 else vector)

    schedule = GpuPointwiseSchedule("x".join(map(str, space)) or "1", lanes, THREADS)
    return over.step(grid_kernel, name, body, schedule, ceildiv(total, THREADS), THREADS)
