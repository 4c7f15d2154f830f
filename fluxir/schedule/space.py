"""The loop space of a pointwise group, which the pointwise templates of all targets share.

Results of one shape are computed by one kernel. Its loops run over that shape, with axes merged where memory allows
(`access.collapse`); results may take the memory of arguments that are read only at the index written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Func, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import MemType
from fluxir.ops.maps import identity_map, is_elementwise
from fluxir.schedule.access import analyse, collapse
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import memory
from fluxir.schedule.templates import Kernels, Ref, Step


@dataclass(frozen=True, eq=False)
class Space:
    """`outs`: the results (numbers `which` of the group) that are computed over `space`. `merged`: whether all values have
    maps, so that axes were merged; `given`: the types of the kernel's arguments before that."""

    group: Group
    space: tuple[Dim, ...]
    outs: list[Value]
    which: Sequence[int]
    merged: bool
    given: list[MemType]
    inplace: list[tuple[int, int]]

    def step(self, make: Callable[..., Func], name: str, body: Any, schedule: Any, *shape: Any) -> Step:
        """The launch of the kernel that `make(name, inputs, outputs, *shape, body, ...)` builds."""
        inputs = [memory(v.type) for v in self.group.args]
        outputs = [MemType(v.type.dtype, self.space) for v in self.outs]
        names = [v.name for v in self.group.args]
        more = {"names": names, "schedule": schedule, "loc": self.group.loc, "given": self.given}
        made = make(name, inputs, outputs, *shape, body, **more)
        operands: list[Ref] = [*[("input", i) for i in range(len(inputs))], *[("output", j) for j in self.which]]
        return Step(made, tuple(operands), len(self.which), tuple((len(inputs) + j, i) for j, i in self.inplace))


def by_shape(group: Group, one: Callable[[Space, str], Step]) -> Kernels:
    """A kernel for each distinct shape of the results: `one(space, name)`."""
    shapes = list(dict.fromkeys(shape_of(v) for v in group.outs))
    steps: list[Step] = []
    for s in shapes:
        which = [j for j, v in enumerate(group.outs) if shape_of(v) == s]
        name = f"{group.name}_{len(steps)}" if len(shapes) > 1 else group.name
        steps.append(one(space_of(group, s, which), name))
    return Kernels(tuple(steps))


def space_of(group: Group, space: tuple[Dim, ...], which: Sequence[int]) -> Space:
    outs = [group.outs[j] for j in which]
    given = [memory(v.type) for v in (*group.args, *outs)]
    inplace = inplace_pairs(group, outs, space)
    access = analyse(group, space, [(v, identity_map(space)) for v in outs]) if len(outs) == len(group.outs) else None
    merged = collapse(group, access) if access is not None else None
    if merged is not None:
        group, space, _ = merged
        outs = [group.outs[j] for j in which]
    return Space(group, space, outs, which, merged is not None, given, inplace)


def index_in(b: Builder, v: Value, at: tuple[Value, ...]) -> tuple[Value, ...]:
    """The index of an output that lacks leading axes of the loop space or has size 1 there."""
    shape = shape_of(v)
    return tuple(b.index(0) if d == 1 else i for d, i in zip(shape, at[len(at) - len(shape) :]))


def inplace_pairs(group: Group, outs: Sequence[Value], space: tuple[Dim, ...]) -> list[tuple[int, int]]:
    """Pairs (position in `outs`, argument) that may share memory: the argument is read only at the index written.

    Found by walking elementwise ops of the full shape; an argument that anything else reads does not qualify.
    """
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
    pairs: list[tuple[int, int]] = []
    free = [i for i, v in enumerate(group.args) if v in same and v not in other and shape_of(v) == space]
    for j, out in enumerate(outs):
        for i in free:
            if group.args[i].type.dtype.itemsize == out.type.dtype.itemsize:
                pairs.append((j, i))
    return pairs


__all__ = ["Space", "by_shape", "index_in", "inplace_pairs", "space_of"]
