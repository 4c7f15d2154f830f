"""What fusion knows about ops and groups of ops: kinds, costs, and when a group is one pass over rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import TensorType
from fluxir.ops.maps import Map, axes_of, identity_map, kept_map, propagate

# One element of these costs no more than a few instructions: they may be copied into several groups.
CHEAP = frozenset(
    "const dim iota broadcast reshape transpose slice reverse cast bitcast stop_gradient neg abs add sub mul minimum maximum "
    "lt le gt ge eq ne logical_and logical_or logical_xor logical_not select clamp floor ceil round trunc sign relu".split()
)
INDEXING = frozenset(
    "broadcast reshape transpose slice pad concat reverse gather dynamic_slice dynamic_update iota".split()
)
STRUCTURED = {"dot": "dot", "conv": "conv", "reduce_window": "window"}
REDUCTIONS = frozenset("sum prod max min any all argmax argmin".split())
NEVER = frozenset("scatter sort argsort topk nonzero cumsum cumprod cummax cummin searchsorted".split())


def shape_of(v: Value) -> tuple[Dim, ...]:
    assert isinstance(v.type, TensorType)
    return v.type.shape


def is_view(op: Op) -> bool:
    """A reshape of something that is in memory costs nothing."""
    return op.name == "reshape"


def elementwise(op: Op) -> bool:
    """Result element i depends only on operand elements i (after broadcasting)."""
    return op.defn.category in ("elementwise", "compare") or op.name == "stop_gradient"


def is_pointwise(op: Op) -> bool:
    """Has a cheap enough element rule to be inlined anywhere."""
    if op.name == "const":
        return small_constant(op)
    return elementwise(op) or op.name in INDEXING or op.name == "dim" or op.defn.category == "random"


def small_constant(op: Op) -> bool:
    a = op.attrs["value"]
    return a.size == 1 or (0 < a.size <= 16 and bool((a == a.flat[0]).all()))


def joins_alike(op: Op) -> bool:
    """A concat of parts of one shape: one pass over that shape computes an element of each."""
    return op.name == "concat" and len(op.operands) > 1 and len({shape_of(v) for v in op.operands}) == 1


@dataclass(eq=False)
class Group:
    """Ops that run as one kernel; `outs` are the ops whose results leave it."""

    ident: int
    members: set[Op] = field(default_factory=set)
    outs: set[Op] = field(default_factory=set)
    kind: str = "pointwise"
    axes: tuple[int, ...] | None = None  # rowwise: the reduced axes of `full`
    full: tuple[Dim, ...] | None = None  # rowwise: the shape before reduction
    root: Op | None = None  # the structured op


def row_shapes(full: tuple[Dim, ...], axes: tuple[int, ...]) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """The shapes of a value a row: reduced axes dropped, or of size 1."""
    return tuple(d for i, d in enumerate(full) if i not in axes), tuple(
        1 if i in axes else d for i, d in enumerate(full)
    )


def rows_agree(members: Iterable[Op], outs: Iterable[Op], full: tuple[Dim, ...], axes: tuple[int, ...]) -> bool:
    """Whether the ops (in order) are one pass over the rows of `full`: every reduction is of whole rows, and what follows
    a reduction reads it at its own row. What stands before the reductions may be indexed in any way."""
    seeds: list[tuple[Value, Map]] = []
    for o in outs:
        shape = shape_of(o.results[0])
        if shape == full:
            seeds.append((o.results[0], identity_map(full)))
        elif shape in row_shapes(full, axes):
            seeds.append((o.results[0], kept_map(full, axes, len(shape) == len(full))))
        else:
            return False
    return propagate(tuple(members), seeds, full, axes, opaque=True, reductions=REDUCTIONS) is not None


def tails(block: Block) -> dict[Op, Op]:
    """For elementwise ops that can follow a contraction, window or reduction on its own output: that op.

    A value in between that something else reads too (a slice, a reduction) has to be in memory, and ends the tail.
    """
    users: dict[Value, list[Op]] = {}
    for op in block.ops:
        for v in op.operands:
            users.setdefault(v, []).append(op)
    found: dict[Op, Op] = {}
    for op in block.ops:
        if op.name in STRUCTURED or op.name in REDUCTIONS:
            found[op] = op
        if not elementwise(op):
            continue
        shape = shape_of(op.results[0])
        for v in op.operands:
            root = found.get(v.owner) if v.owner is not None else None
            if root is None or shape_of(v) != shape:
                continue
            grows = op.results[0].type.dtype.bits > max(32, v.type.dtype.bits)
            if not grows and all(elementwise(u) and shape_of(u.results[0]) == shape for u in users[v]):
                found[op] = root
                break
    return {op: root for op, root in found.items() if op is not root}


__all__ = [
    "CHEAP",
    "INDEXING",
    "NEVER",
    "REDUCTIONS",
    "STRUCTURED",
    "Group",
    "axes_of",
    "elementwise",
    "is_pointwise",
    "is_view",
    "joins_alike",
    "row_shapes",
    "rows_agree",
    "shape_of",
    "small_constant",
    "tails",
]
