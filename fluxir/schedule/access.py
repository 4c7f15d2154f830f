"""How the values of a group are indexed by its loops, and merging of loops that walk memory together.

`ops/maps.py` says what a map is. `analyse` finds the one map of every value of a group whose ops are elementwise, iota,
broadcasts, transposes, reshapes that add or drop 1s, and reductions of the whole loop space. With `opaque=True` other
ops may stand before the reductions (a slice, a gather): their operands then have no map. It gives None for any other
group. `collapse` rewrites such a group to fewer loop axes: axes merge where every memory holds both next to each other or
neither (so that a bias over `[B,C,H,W]` becomes `[B,C,H*W]`). The rewritten group computes the same bytes in
reinterpreted memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxir.ir.build import Builder, copies
from fluxir.ir.core import Block, Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.types import TensorType
from fluxir.ops.maps import (
    CONSTANTS,
    REDUCTIONS,
    Map,
    is_elementwise,
    operand_maps,
    propagate,
)
from fluxir.schedule.group import Group, shape_of, with_block


@dataclass(frozen=True)
class Access:
    """The loop space, the axes it reduces, and the maps: one for an inner value, several for an argument, one a result."""

    space: tuple[Dim, ...]
    reduced: tuple[int, ...]
    maps: dict[Value, Map]
    leaves: dict[Value, set[Map]]
    results: tuple[Map, ...]
    hidden: frozenset[Value] = frozenset()  # values that ops without maps read
    pinned: frozenset[int] = frozenset()  # loop axes that an iota counts: they stay apart

    @property
    def opaque(self) -> bool:
        return bool(self.hidden)


def analyse(
    group: Group,
    space: Sequence[Dim],
    seeds: Sequence[tuple[Value, Map]],
    reduced: Sequence[int] = (),
    opaque: bool = False,
) -> Access | None:
    """Maps of all values, propagated from `seeds` (the group's results) to the arguments; None where that fails."""
    space = tuple(space)
    flow = propagate(group.ops, seeds, space, tuple(reduced), opaque=opaque)
    if flow is None:
        return None
    by_value = dict(seeds)
    leaves = {v: flow.found.get(v, set()) for v in group.args}
    return Access(
        space,
        tuple(reduced),
        flow.maps,
        leaves,
        tuple(by_value[v] for v in group.outs),
        flow.hidden,
        flow.pinned,
    )


def runs_of(a: Access, classes: Sequence[int] = ()) -> list[list[int]]:
    """The loop axes (those of size 1 left out), grouped so that each group can become one axis; axes of different
    `classes` (a number for each axis) stay apart."""
    axes = [i for i, d in enumerate(a.space) if d != 1]
    runs: list[list[int]] = []
    for axis in axes:
        together = not classes or (runs and classes[runs[-1][-1]] == classes[axis])
        if runs and together and _mergeable(a, runs[-1][-1], axis):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def _mergeable(a: Access, first: int, second: int) -> bool:
    if (first in a.reduced) != (second in a.reduced) or first in a.pinned or second in a.pinned:
        return False
    for maps in a.leaves.values():
        for m in maps:
            order = [k for k in m if k >= 0]
            if (first in order) != (second in order):
                return False
            if first in order and (
                order.index(second) != order.index(first) + 1 or order.count(first) != 1 or order.count(second) != 1
            ):
                return False
    return True


def collapse(
    group: Group, a: Access, classes: Sequence[int] = ()
) -> tuple[Group, tuple[Dim, ...], tuple[int, ...]] | None:
    """The group over merged loop axes, its loop space and reduced axes; None where an argument cannot be merged.

    Every inner value of the new group has one axis for each loop axis (size 1 where it does not vary), so results of
    reductions keep their axes; results of the group have the full space or that shape with 1s.
    """
    runs = runs_of(a, classes)
    where = {axis: r for r, run in enumerate(runs) for axis in run}
    space = tuple(product(a.space[i] for i in run) for run in runs)
    reduced = tuple(r for r, run in enumerate(runs) if run[0] in a.reduced)
    b = Builder(group.loc)
    env: dict[tuple[Value, Map], Value] = {}
    args: list[Value] = []
    for v in group.args:
        grouped: list[list[int]] | None = None
        for m in a.leaves[v] or {tuple(-1 for _ in shape_of(v))}:
            mine: list[list[int]] = []
            for axis, k in enumerate(m):
                if k < 0:
                    continue
                if mine and where[m[mine[-1][-1]]] == where[k]:
                    mine[-1].append(axis)
                else:
                    mine.append([axis])
            if grouped is not None and grouped != mine:
                return None
            grouped = mine
        assert grouped is not None
        shape = shape_of(v) if not a.leaves[v] else tuple(product(shape_of(v)[i] for i in g) for g in grouped)
        arg = Value(TensorType(v.type.dtype, shape), None, len(args), v.name)
        args.append(arg)
        for m in a.leaves[v]:
            order = [where[m[g[0]]] for g in grouped]
            if len(set(order)) != len(order):
                return None  # a diagonal: one loop axis runs along two axes of the argument
            env[v, m] = _spread(b, arg, order, space)
    for op in group.ops:
        if op.name == "const":
            env[op.result, ()] = b.const(op.attrs["value"].reshape(-1)[:1].reshape(()))
            continue
        if op.name == "dim":
            env[op.result, ()] = b.dim(value=op.attrs["value"])
            continue
        if op.result not in a.maps:
            continue
        m = a.maps[op.result]
        read = operand_maps(op, m, a.space, a.reduced)
        assert read is not None
        operands = [
            env[v, ()] if v.owner is not None and v.owner.name in CONSTANTS else env[v, k]
            for v, k in zip(op.operands, read)
        ]
        if op.name in REDUCTIONS:
            x = operands[0]
            if shape_of(x) != space:
                x = b.broadcast(x, shape=space)
            env[op.result, m] = b.emit(op.name, x, axes=reduced, keepdims=True, loc=op.loc)[0]
        elif is_elementwise(op):
            env[op.result, m] = b.emit(op.name, *operands, blocks=copies(op.blocks), loc=op.loc, **op.attrs)[0]
        elif op.name == "iota":
            k = m[op.attrs["axis"] % len(m)]
            if k < 0:
                env[op.result, m] = b.const(0, dtype=op.attrs["dtype"])
            else:
                shape = tuple(d if r == where[k] else 1 for r, d in enumerate(space))
                env[op.result, m] = b.emit("iota", shape=shape, axis=where[k], dtype=op.attrs["dtype"])[0]
        else:  # broadcast, transpose, reshape, stop_gradient: only the map changes
            env[op.result, m] = operands[0]
    outs = []
    for v, m in zip(group.outs, a.results):
        x = env[v, m] if (v, m) in env else env[v, ()]
        want = tuple(space[r] if any(k >= 0 and where[k] == r for k in m) else 1 for r in range(len(runs)))
        outs.append(x if shape_of(x) == want else b.broadcast(x, shape=want))
    return with_block(group, Block(args, b.ops, outs)), space, reduced


def _spread(b: Builder, arg: Value, order: list[int], space: tuple[Dim, ...]) -> Value:
    """An argument whose axes run along loop axes `order`, as a value with one axis for each loop axis."""
    if not order:
        return arg
    x = arg
    if order != sorted(order):
        x = b.transpose(x, perm=tuple(sorted(range(len(order)), key=order.__getitem__)))
        order = sorted(order)
    if order == list(range(len(space) - len(order), len(space))):
        return x  # broadcasts by itself
    return b.emit("broadcast", x, shape=tuple(d if r in order else 1 for r, d in enumerate(space)), axes=tuple(order))[
        0
    ]
