"""The template of dynamic_update for CPUs: copy x into the result, then write the part that changes.

The copy is the host's (`Kernels.copies`), so that a loop that updates an array it carries can leave it out and writes
the changed part only. What computes the update may be fused with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import product
from fluxir.ops.nest import clamp_index
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import grain_of, is_small, kernel, memory, nest, parallel
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template


@dataclass(frozen=True)
class UpdateSchedule(Schedule):
    """`part`: the shape of what is written."""

    part: str


@template("update", target="cpu", anchors=("dynamic_update",), priority=20)
def update(group: Group, target: Any) -> Kernels | None:
    """A dynamic_update of an argument, with what computes the new part."""
    op = group.outs[0].owner
    if len(group.outs) != 1 or op is None or op.name != "dynamic_update" or op.operands[0] not in group.args:
        return None
    x, part, *starts = op.operands
    shape = shape_of(part)
    work = element_cost(group)

    def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        reads = dict(zip(group.args, ins))
        e = Elements(b, reads)
        ends = [b.index(n - m) for n, m in zip(shape_of(x), shape)]
        base = [clamp_index(b, e.at(s, ()), end) for s, end in zip(starts, ends)]

        def one(ib: Builder, at: tuple[Value, ...]) -> None:
            value = Elements(ib, reads).at(part, at)
            ib.store(outs[0], value, *[ib.add(s, i) for s, i in zip(base, at)])

        if not shape or is_small(product(shape) * work) or shape[0] == 1:
            nest(b, shape, one)
        else:
            grain = grain_of(product(shape[1:]) * work)

            def row(ib: Builder, i: Value) -> None:
                nest(ib, shape[1:], one, at=(i,))

            parallel(b, shape[0], row, grain=grain)

    inputs, result = [memory(a.type) for a in group.args], memory(group.outs[0].type)
    schedule = UpdateSchedule("x".join(map(str, shape)) or "1")
    names = [a.name for a in group.args]
    made = kernel(group.name, inputs, [result], body, names=names, schedule=schedule, loc=group.loc)
    refs: list[Ref] = [*[("input", i) for i in range(len(inputs))], ("output", 0)]
    return Kernels((Step(made, tuple(refs)),), copies=((0, group.args.index(x)),))


__all__ = ["UpdateSchedule", "update"]
