"""Cutting a group that no template takes whole: an expensive op is computed once, into memory, before the rest.

The pointwise template computes every value of a group once for each element of the results. For a reduction or a
contraction whose result is read at other indices (broadcast, summed again) that would repeat its loops; such a group
is cut after the op, and both parts go back to template selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Op, Value
from fluxir.schedule.contraction import cut, follows_exactly
from fluxir.schedule.group import Group, with_block
from fluxir.schedule.loops import memory
from fluxir.schedule.templates import Kernels, Ref, Step, select, template

LOOPING = ("dot", "conv", "reduce_window", "sum", "prod", "max", "min", "any", "all", "argmax", "argmin")


def must_cut(group: Group, op: Op) -> bool:
    """Whether the pointwise template would compute this op's elements more than once."""
    if all(v in op.results for v in group.outs):
        return any(v.owner is not None and v.owner.name in LOOPING for v in _inputs(group, op))
    return any(r in _read(group) for r in op.results) and follows_exactly(group, op.results[0]) is None


def _read(group: Group) -> set[Value]:
    return {v for op in group.ops for v in op.operands}


def _inputs(group: Group, op: Op) -> set[Value]:
    seen: set[Value] = set()
    todo = list(op.operands)
    while todo:
        v = todo.pop()
        if v not in seen:
            seen.add(v)
            todo += v.owner.operands if v.owner else ()
    return seen


def before(group: Group, op: Op) -> Group:
    """The part of the group that computes `op`."""
    needed = _inputs(group, op)
    b = Builder(group.loc)
    args = [Value(a.type, None, i, a.name) for i, a in enumerate(a for a in group.args if a in needed)]
    env: dict[Value, Value] = dict(zip([a for a in group.args if a in needed], args))
    for o in group.ops:
        if o is op or any(r in needed for r in o.results):
            clone_ops(b, [o], env)
    block = Block(args, b.ops, [env[r] for r in op.results])
    return Group(block, op.name, f"{group.name}_{op.name}", op.loc or group.loc)


def split_at(group: Group, op: Op, target: Any) -> Kernels | None:
    """The kernels of `op`, then those of the rest, with its result in scratch memory."""
    needed = _inputs(group, op)
    first_args = [i for i, a in enumerate(group.args) if a in needed]
    _, first = select(before(group, op), target)
    rest = cut(group, op.results[0])
    _, second = select(with_block(rest, rest.block), target)
    if any(i == len(group.args) for _, i in second.copies):
        return None  # the cut value is copied: rare, and the pointwise template is right
    own = memory(op.results[0].type)

    def joined(first: Kernels, second: Kernels) -> Kernels:
        n1 = len(first.scratch)
        steps = [_renamed(s, [("input", i) for i in first_args], [("scratch", 0)], 1) for s in first.steps]
        inputs: list[Ref] = [*[("input", i) for i in range(len(group.args))], ("scratch", 0)]
        outputs: list[Ref] = [("output", j) for j in range(len(group.outs))]
        steps += [_renamed(s, inputs, outputs, 1 + n1, keep_inplace=False) for s in second.steps]
        return Kernels(tuple(steps), (own, *first.scratch, *second.scratch), second.copies)

    prepared = first.prepared
    made = joined(first, second)
    return made if prepared is None else replace(made, prepared=lambda: joined(prepared(), second))


def _renamed(s: Step, inputs: Sequence[Ref], outputs: Sequence[Ref], base: int, keep_inplace: bool = False) -> Step:
    """A step of a part, with the memories of the whole."""

    def ref(r: Ref) -> Ref:
        kind, i = r
        return inputs[i] if kind == "input" else outputs[i] if kind == "output" else ("scratch", base + i)

    return Step(s.kernel, tuple(ref(r) for r in s.operands), s.outputs, s.inplace if keep_inplace else (), s.fold)


def split(group: Group, target: Any) -> Kernels | None:
    """Cut after the first op that would otherwise be computed more than once."""
    for op in group.ops:
        if op.name in LOOPING and len(op.results) == 1 and must_cut(group, op):
            inner = [o for o in group.ops if o.name in LOOPING and o is not op and o.results[0] in _inputs(group, op)]
            return split_at(group, inner[0] if inner else op, target)
    return None


for _target in ("cpu", "nvptx"):
    template("split", target=_target, anchors=LOOPING, priority=-50)(split)

__all__ = ["split", "split_at"]
