"""Index maps: which axis of a loop space runs along each axis of a value.

A *map* is a tuple with one entry an axis of the value: the loop axis that runs along it, or -1 where the size is 1.
`propagate` walks ops backwards from results whose maps are known. Fusion asks it whether ops form one pass over rows;
the templates build their loops from the same answer, so that what the one groups the other can compute.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import TensorType
from fluxir.ops.rules import elementwise_element, normal_axes

Map = tuple[int, ...]
REDUCTIONS = ("sum", "prod", "max", "min", "any", "all")
CONSTANTS = ("const", "dim")  # scalars that depend on nothing: they have no map


def is_elementwise(op: Op) -> bool:
    return op.defn.element is elementwise_element


def axes_of(op: Op) -> tuple[int, ...]:
    """The axes that a reduction (argmax and argmin too) reduces, in order and counted from the front."""
    rank = len(_shape(op.operands[0]))
    axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
    return tuple(sorted(a % rank for a in axes))


def identity_map(space: Sequence[Dim]) -> Map:
    return tuple(-1 if d == 1 else i for i, d in enumerate(space))


def kept_map(space: Sequence[Dim], reduced: Sequence[int], keepdims: bool) -> Map:
    """The map of a reduction's result."""
    full = identity_map(space)
    return tuple(-1 if i in reduced else k for i, k in enumerate(full) if keepdims or i not in reduced)


@dataclass(frozen=True)
class Flow:
    """The maps of a region: all that were `found` for a value, the one map of each op's result, the values that ops
    without maps read, and the loop axes that an iota counts."""

    found: dict[Value, set[Map]]
    maps: dict[Value, Map]
    hidden: frozenset[Value]
    pinned: frozenset[int]


def propagate(
    ops: Sequence[Op],
    seeds: Sequence[tuple[Value, Map]],
    space: tuple[Dim, ...],
    reduced: tuple[int, ...] = (),
    *,
    opaque: bool = False,
    reductions: Collection[str] = REDUCTIONS,
) -> Flow | None:
    """Maps of all values of `ops`, from `seeds` (the results) backwards; None where a value needs two maps or an op has
    none. With `opaque` that is allowed before the reductions: what such an op reads has no map."""
    found: dict[Value, set[Map]] = {}
    for v, m in seeds:
        found.setdefault(v, set()).add(m)
    maps: dict[Value, Map] = {}
    after = _after(ops, reductions) if opaque else set()
    hidden: set[Value] = set()
    pinned: set[int] = set()
    for op in reversed(ops):
        if op.name in CONSTANTS:
            continue
        here = {m for r in op.results for m in found.get(r, ())}
        below = any(r in hidden for r in op.results)
        if not here and not below:
            continue
        read = None
        if len(here) == 1 and len(op.results) == 1 and not below:
            maps[op.result] = m = next(iter(here))
            read = operand_maps(op, m, space, reduced, reductions)
            if op.name == "iota":
                pinned.add(m[op.attrs["axis"] % len(m)])
        if read is None:
            if not opaque or op.name in reductions or any(r in after for r in op.results):
                return None
            hidden.update(op.operands)
            continue
        for v, vm in zip(op.operands, read, strict=True):
            found.setdefault(v, set()).add(vm)
    return Flow(found, maps, frozenset(hidden), frozenset(pinned))


def _after(ops: Sequence[Op], reductions: Collection[str]) -> set[Value]:
    """Values that depend on a reduction."""
    after: set[Value] = set()
    for op in ops:
        if op.name in reductions or any(v in after for v in op.operands):
            after.update(op.results)
    return after


def operand_maps(
    op: Op, m: Map, space: tuple[Dim, ...], reduced: tuple[int, ...], reductions: Collection[str] = REDUCTIONS
) -> list[Map] | None:
    """The maps of an op's operands where its result has map `m`; None where there are no such maps."""
    shape = _shape(op.result)
    if is_elementwise(op):
        out = []
        for v in op.operands:
            s = _shape(v)
            out.append(tuple(-1 if d == 1 else k for d, k in zip(s, m[len(m) - len(s) :], strict=True)))
        return out
    if op.name == "iota":
        return []
    if not op.operands:
        return None
    x = _shape(op.operands[0])
    match op.name:
        case "stop_gradient":
            return [m]
        case "broadcast":
            axes = op.attrs["axes"] if op.attrs["axes"] is not None else range(len(shape) - len(x), len(shape))
            return [tuple(-1 if d == 1 else m[a] for d, a in zip(x, axes, strict=True))]
        case "transpose":
            perm = normal_axes("transpose", op.attrs["perm"], len(x))
            back = [0] * len(x)
            for j, k in enumerate(perm):
                back[k] = m[j]
            return [tuple(back)]
        case "reshape":
            mine = [(d, k) for d, k in zip(shape, m, strict=True) if d != 1]
            if [d for d, _ in mine] != [d for d in x if d != 1]:
                return None
            rest = iter(mine)
            return [tuple(-1 if d == 1 else next(rest)[1] for d in x)]
        case name if name in reductions:
            if x != space or axes_of(op) != reduced:
                return None
            return [identity_map(space)] if m == kept_map(space, reduced, op.attrs["keepdims"]) else None
    return None


def _shape(v: Value) -> tuple[Dim, ...]:
    assert isinstance(v.type, TensorType)
    return v.type.shape


__all__ = [
    "CONSTANTS",
    "REDUCTIONS",
    "Flow",
    "Map",
    "axes_of",
    "identity_map",
    "is_elementwise",
    "kept_map",
    "operand_maps",
    "propagate",
]
