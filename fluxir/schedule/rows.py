"""The canonical form of a row-wise group, which the row-wise templates of all targets share.

A group such as softmax (max, exp of the difference, sum, quotient) has one loop space; its reductions all reduce the
same axes of it. `analyse_rows` finds that form (merging axes where memory allows), the *stages* (sets of reductions that
do not depend on each other), which values to keep between stages, and which memories a kernel may overwrite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as cartesian

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import INDEX, TensorType
from fluxir.ops.maps import REDUCTIONS, Map, identity_map
from fluxir.ops.nest import accumulator
from fluxir.schedule.access import Access, analyse, collapse
from fluxir.schedule.cost import is_expensive
from fluxir.schedule.group import Group, anchors, shape_of, with_block


@dataclass(frozen=True, eq=False)
class Rows:
    """A group as rows: its loop space and reduced axes (in `access`), and its stages."""

    group: Group
    access: Access
    stages: tuple[tuple[Op, ...], ...]

    @property
    def space(self) -> tuple[Dim, ...]:
        return self.access.space

    @property
    def reduced(self) -> tuple[int, ...]:
        return self.access.reduced

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.space)) if i not in self.reduced)

    def is_full(self, j: int) -> bool:
        """Whether result j has elements along the reduced axes."""
        return any(k in self.reduced for k in self.access.results[j])

    def inplace(self) -> list[tuple[int, int]]:
        """Pairs (result, argument) that may share memory: the argument is read at the loop's own index only, and a row
        (or a block of columns) is read to the end before the last loop writes it."""
        if self.access.opaque:
            return []
        full = identity_map(self.space)
        found = []
        for j, v in enumerate(self.group.outs):
            for i, a in enumerate(self.group.args):
                same_place = self.access.leaves[a] == {full} and self.access.results[j] == full
                if same_place and a.type.dtype.itemsize == v.type.dtype.itemsize:
                    found.append((j, i))
        return found

    def spills(self) -> dict[Value, tuple[int, int]]:
        """Expensive values of full shape that a later stage needs again: (result whose memory keeps it, first stage)."""
        full = identity_map(self.space)
        needed = [_evaluated([op.operands[0] for op in s]) for s in self.stages]
        needed.append(_evaluated([v for j, v in enumerate(self.group.outs) if self.is_full(j)]))
        free = [j for j in range(len(self.group.outs)) if self.is_full(j) and self.access.results[j] == full]
        found: dict[Value, tuple[int, int]] = {}
        covered: set[Value] = set()
        for op in reversed(self.group.ops):
            if len(op.results) != 1 or self.access.maps.get(op.result) != full or not is_expensive(op.result):
                continue
            v = op.result
            used = [s for s, values in enumerate(needed) if v in values]
            if len(used) < 2 or v in covered:
                continue
            j = next((j for j in free if self.group.outs[j].type == v.type), None)
            if j is not None:
                free.remove(j)
                found[v] = (j, used[0])
                covered |= _evaluated([v])
        return found


def _evaluated(values: list[Value]) -> set[Value]:
    """What is computed to get `values`, where results of reductions are known."""
    seen: set[Value] = set()
    todo = list(values)
    while todo:
        v = todo.pop()
        if v in seen or v.owner is None or v.owner.name in REDUCTIONS:
            continue
        seen.add(v)
        todo += v.owner.operands
    return seen


def analyse_rows(group: Group) -> Rows | None:
    """The group as rows, over merged axes where possible; None where it does not have that form."""
    reductions = anchors(group, REDUCTIONS)
    if not reductions:
        return None
    space = shape_of(reductions[0].operands[0])
    reduced = tuple(sorted(a % len(space) for a in reductions[0].attrs["axes"]))
    for maps in _candidates(group, space, reduced):
        seeds = list(zip(group.outs, maps))
        if len(dict(seeds)) != len(set(seeds)):
            continue
        access = analyse(group, space, seeds, reduced)
        if access is not None and (merged := collapse(group, access)) is not None:
            inner, dims, axes = merged
            again = [tuple(-1 if d == 1 else i for i, d in enumerate(shape_of(v))) for v in inner.outs]
            access = analyse(inner, dims, list(zip(inner.outs, again)), axes)
            if access is None or not axes:
                return None  # nothing is left to reduce
            return Rows(inner, access, _stages(inner))
        access = access or analyse(group, space, seeds, reduced, opaque=True)
        if access is not None and reduced:
            return Rows(group, access, _stages(group))
    return None


def without_arg(group: Group) -> Group:
    """The group with argmax and argmin as two reductions: the extremum, then the first index at which it stands.

    NaN counts as the extremum, as in the op; over an axis of no elements the index is 0.
    """
    if not anchors(group, ("argmax", "argmin")):
        return group
    b = Builder(group.loc)
    env: dict[Value, Value] = {}
    for op in group.ops:
        if op.name not in ("argmax", "argmin"):
            clone_ops(b, [op], env)
            continue
        x = env.get(op.operands[0], op.operands[0])
        shape = shape_of(x)
        axis = op.attrs["axis"] % len(shape)
        n = shape[axis]
        counter = DTYPES["i32" if isinstance(n, int) and n < 1 << 31 else "i64"]
        best = b.emit("max" if op.name == "argmax" else "min", x, axes=(axis,), keepdims=True, loc=op.loc)[0]
        here = b.eq(x, best)
        if x.type.dtype.is_float:
            here = b.logical_or(here, b.ne(x, x))
        place = b.emit("iota", shape=shape, axis=axis, dtype=counter)[0]
        none = b.const(counter.limits[1], dtype=counter)
        first = b.emit("min", b.select(here, place, none), axes=(axis,), keepdims=op.attrs["keepdims"], loc=op.loc)[0]
        if not isinstance(n, int):
            first = b.select(b.eq(first, none), b.const(0, dtype=counter), first)
        env[op.result] = b.cast(first, dtype=INDEX.dtype)
    return with_block(group, Block(group.args, b.ops, [env.get(v, v) for v in group.outs]))


def _candidates(group: Group, space: tuple[Dim, ...], reduced: tuple[int, ...]) -> Iterator[tuple[Map, ...]]:
    """What the maps of the results can be, by their sizes other than 1: the whole space, or the kept axes."""
    whole = [i for i, d in enumerate(space) if d != 1]
    kept = [i for i in whole if i not in reduced]
    options: list[list[Map]] = []
    for v in group.outs:
        shape = shape_of(v)
        sizes = [d for d in shape if d != 1]
        found: list[Map] = []
        for axes in (whole, kept):
            if [space[i] for i in axes] == sizes:
                rest = iter(axes)
                found.append(tuple(-1 if d == 1 else next(rest) for d in shape))
        options.append(list(dict.fromkeys(found)))
    for n, choice in enumerate(cartesian(*options)):
        if n >= 16:
            return
        yield choice


def _stages(group: Group) -> tuple[tuple[Op, ...], ...]:
    level: dict[Value, int] = dict.fromkeys(group.args, 0)
    stages: list[list[Op]] = []
    for op in group.ops:
        here = max((level[v] for v in op.operands), default=0)
        if op.name in REDUCTIONS:
            while len(stages) <= here:
                stages.append([])
            stages[here].append(op)
            here += 1
        for r in op.results:
            level[r] = here
    return tuple(map(tuple, stages))


def combining_group(rows: Rows, pieces: Dim, first: bool = False) -> Group:
    """What is left of a one-stage group once each reduction is there in `pieces` parts along a last axis (or the first).

    Its arguments: the parts of each reduction (accumulator type, kept axes and pieces), then the group's arguments.
    """
    (stage,) = rows.stages
    b = Builder(rows.group.loc)
    kept = tuple(rows.space[i] for i in rows.kept)
    args: list[Value] = []
    env: dict[Value, Value] = {}
    for op in stage:
        t = accumulator(op.result.type.dtype) if op.name in ("sum", "prod") else op.result.type.dtype
        args.append(
            Value(TensorType(t, (pieces, *kept) if first else (*kept, pieces)), None, len(args), f"{op.name}_parts")
        )
        whole = b.emit(op.name, args[-1], axes=(0 if first else len(kept),), loc=op.loc)[0]
        if whole.type.dtype != op.result.type.dtype:
            whole = b.cast(whole, dtype=op.result.type.dtype)
        shape = shape_of(op.result)
        env[op.result] = whole if shape_of(whole) == shape else b.reshape(whole, shape=shape)
    for a in rows.group.args:
        args.append(Value(a.type, None, len(args), a.name))
        env[a] = args[-1]
    needed = _evaluated(list(rows.group.outs))
    for op in rows.group.ops:
        if any(r in needed for r in op.results) and op not in stage:
            clone_ops(b, [op], env)
    return with_block(rows.group, Block(args, b.ops, [env.get(v, v) for v in rows.group.outs]))


__all__ = ["Rows", "analyse_rows", "combining_group", "without_arg"]
