"""Simplification of ops that move elements: exact because no element is computed anew.

Attributes are read in one form here: axes counted from 0, strides and placements written out. Where the type rule of a
replacement could not prove a symbolic size, the rule does not fire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import FluxError
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, prove_equal, prove_le
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.types import TensorType
from fluxir.ops.rules import broadcast_shapes, normal_axes, normal_axis
from fluxir.ops.shape import broadcast_axes
from fluxir.passes.rules import Match, RuleSet, scalar_of

RULES = RuleSet()
rewrite = RULES.rewrite


def shape(v: Value) -> tuple[Dim, ...]:
    assert isinstance(v.type, TensorType)
    return v.type.shape


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return len(a) == len(b) and all(map(prove_equal, a, b))


def strides_of(op: Op) -> tuple[int, ...]:
    stride = op.attrs["stride"]
    return stride if stride is not None else (1,) * len(op.attrs["start"])


def provable(make: Callable[[], Any]) -> Any:
    """What `make` builds, or None where sizes are symbolic and its type rule cannot prove what it needs."""
    try:
        return make()
    except FluxError:
        return None


def inserted_ones(old: Sequence[Dim], new: Sequence[Dim]) -> list[int] | None:
    """Where the axes of `old` stand in `new`, if `new` is `old` with axes of size 1 put in."""
    places, i = [], 0
    for axis, d in enumerate(new):
        if i < len(old) and d == old[i] and not (d == 1 and len(new) - axis > len(old) - i):
            places.append(axis)
            i += 1
        elif d != 1:
            return None
    return places if i == len(old) else None


# ---- reshape --------------------------------------------------------------------------------------------------------------


@rewrite(
    "reshape", sample=lambda b, x: b.reshape(x, shape=x.type.shape), types=(("f32[2,3]",), ("i32",), ("bool[0,2]",))
)
def reshape_to_itself(m: Match) -> Any:
    return m.operands[0] if same_shape(shape(m.operands[0]), m.type.shape) else None


@rewrite(
    "reshape",
    sample=lambda b, x: b.reshape(b.reshape(x, shape=(6,)), shape=(3, 2)),
    types=(("f32[2,3]",), ("bool[6,1]",)),
)
def reshape_reshape(m: Match) -> Any:
    inner = m.made_by(0, "reshape")
    return None if inner is None else m.b.reshape(inner.operands[0], shape=m.attrs["shape"])


@rewrite(
    "reshape", sample=lambda b, x: b.reshape(b.broadcast(x, shape=(2, 6)), shape=(3, 4)), types=(("f32",), ("i32",))
)
def reshape_of_repeated_scalar(m: Match) -> Any:
    inner = m.made_by(0, "broadcast")
    if inner is None or shape(inner.operands[0]):
        return None
    return m.b.broadcast(inner.operands[0], shape=m.type.shape)


@rewrite(
    "reshape",
    sample=lambda b, x: b.reshape(b.iota(shape=(6,), axis=0, dtype="i32"), shape=(1, 6, 1)),
    types=(("f32",),),
)
def reshape_of_iota(m: Match) -> Any:
    inner = m.made_by(0, "iota")
    if inner is None:
        return None
    old = inner.attrs["shape"]
    places = inserted_ones(old, m.type.shape)
    if places is None:
        return None
    return m.b.iota(
        shape=m.type.shape, axis=places[normal_axis("iota", inner.attrs["axis"], len(old))], dtype=inner.attrs["dtype"]
    )


# ---- transpose ------------------------------------------------------------------------------------------------------------


@rewrite("transpose", sample=lambda b, x: b.transpose(x, perm=(0, 1, 2)), types=(("f32[2,3,4]",), ("bool[1,0,2]",)))
def transpose_of_nothing(m: Match) -> Any:
    perm = m.attrs["perm"]
    return m.operands[0] if perm == tuple(range(len(perm))) else None


@rewrite(
    "transpose",
    sample=lambda b, x: b.transpose(b.transpose(x, perm=(1, 2, 0)), perm=(1, 0, 2)),
    types=(("f32[2,3,4]",), ("i32[2,0,4]",)),
)
def transpose_transpose(m: Match) -> Any:
    inner = m.made_by(0, "transpose")
    if inner is None:
        return None
    return m.b.transpose(inner.operands[0], perm=tuple(inner.attrs["perm"][i] for i in m.attrs["perm"]))


@rewrite("transpose", sample=lambda b, x: b.transpose(x, perm=(1, 2, 0)), types=(("f32[1,3,4]",), ("i32[1,1,5]",)))
def transpose_moves_only_ones(m: Match) -> Any:
    """The elements stay in order: a reshape, which costs nothing."""
    moved = [i for i in m.attrs["perm"] if shape(m.operands[0])[i] != 1]
    return m.b.reshape(m.operands[0], shape=m.type.shape) if moved == sorted(moved) else None


@rewrite(
    "transpose",
    sample=lambda b, x: b.transpose(b.iota(shape=(2, 3, 4), axis=-1, dtype="i64"), perm=(2, 0, 1)),
    types=(("f32",),),
)
def transpose_of_iota(m: Match) -> Any:
    inner = m.made_by(0, "iota")
    if inner is None:
        return None
    axis = m.attrs["perm"].index(normal_axis("iota", inner.attrs["axis"], len(m.type.shape)))
    return m.b.iota(shape=m.type.shape, axis=axis, dtype=inner.attrs["dtype"])


@rewrite(
    "transpose",
    sample=lambda b, x: b.transpose(b.broadcast(x, shape=(2, 3, 4), axes=(1,)), perm=(2, 0, 1)),
    types=(("f32[3]",), ("bool[1]",)),
)
def transpose_of_broadcast(m: Match) -> Any:
    inner = m.made_by(0, "broadcast")
    if inner is None:
        return None
    placed = broadcast_axes(inner.attrs, len(shape(inner.operands[0])))
    return m.b.broadcast(inner.operands[0], shape=m.type.shape, axes=tuple(m.attrs["perm"].index(i) for i in placed))


# ---- broadcast ------------------------------------------------------------------------------------------------------------


@rewrite(
    "broadcast", sample=lambda b, x: b.broadcast(x, shape=x.type.shape), types=(("f32[2,3]",), ("i32",), ("bool[0]",))
)
def broadcast_to_itself(m: Match) -> Any:
    (x,) = m.operands
    rank = len(shape(x))
    return x if broadcast_axes(m.attrs, rank) == tuple(range(rank)) and same_shape(shape(x), m.type.shape) else None


@rewrite(
    "broadcast",
    sample=lambda b, x: b.broadcast(b.broadcast(x, shape=(3, 2), axes=(1,)), shape=(2, 5, 3), axes=(2, 0)),
    types=(("f32[2]",), ("i32[1]",)),
)
def broadcast_broadcast(m: Match) -> Any:
    inner = m.made_by(0, "broadcast")
    if inner is None:
        return None
    outer_axes = broadcast_axes(m.attrs, len(shape(m.operands[0])))
    placed = broadcast_axes(inner.attrs, len(shape(inner.operands[0])))
    return m.b.broadcast(inner.operands[0], shape=m.type.shape, axes=tuple(outer_axes[i] for i in placed))


@rewrite(
    "broadcast",
    sample=lambda b, x: b.broadcast(b.reshape(x, shape=(4, 1)), shape=(2, 4, 3)),
    types=(("f32[4]",), ("bool[4]",)),
)
def broadcast_of_inserted_ones(m: Match) -> Any:
    inner = m.made_by(0, "reshape")
    if inner is None:
        return None
    (x,) = inner.operands
    places = inserted_ones(shape(x), shape(m.operands[0]))
    if places is None:
        return None
    axes = broadcast_axes(m.attrs, len(shape(m.operands[0])))
    return m.b.broadcast(x, shape=m.type.shape, axes=tuple(axes[i] for i in places))


@rewrite(
    "broadcast",
    sample=lambda b, x: b.broadcast(b.iota(shape=(3, 4), axis=0, dtype="f32"), shape=(2, 3, 4)),
    types=(("f32",),),
)
def broadcast_of_iota(m: Match) -> Any:
    inner = m.made_by(0, "iota")
    if inner is None:
        return None
    old = shape(m.operands[0])
    axis = normal_axis("iota", inner.attrs["axis"], len(old))
    place = broadcast_axes(m.attrs, len(old))[axis]
    if not prove_equal(old[axis], m.type.shape[place]):
        return None  # an axis of size 1 is stretched: zeros
    return m.b.iota(shape=m.type.shape, axis=place, dtype=inner.attrs["dtype"])


def _implicit(m: Match) -> Any:
    """An operand of an elementwise op broadcasts by itself."""
    if not any(v.owner is not None and v.owner.name == "broadcast" for v in m.operands):
        return None
    sources = list(m.operands)
    for i, v in enumerate(m.operands):
        inner = v.owner
        if inner is None or inner.name != "broadcast":
            continue
        (x,) = inner.operands
        rank = len(shape(x))
        if broadcast_axes(inner.attrs, rank) != tuple(range(len(shape(v)) - rank, len(shape(v)))):
            continue
        trial = [*sources[:i], x, *sources[i + 1 :]]
        if provable(lambda t=trial: broadcast_shapes(m.op.name, [shape(o) for o in t])) == m.type.shape:  # type: ignore[misc]
            sources = trial
    if all(a is b for a, b in zip(sources, m.operands, strict=True)):
        return None
    return m.b.clone(m.op, sources)[0]


ELEMENTWISE = sorted(d.name for d in REGISTRY.values() if d.category in ("elementwise", "compare"))


@rewrite(
    *ELEMENTWISE,
    sample=lambda b, x, y: b.mul(b.add(x, b.broadcast(y, shape=x.type.shape)), b.broadcast(y, shape=(3, 4))),
    types=(("f32[3,4]", "f32[4]"), ("i32[3,4]", "i32"), ("f16[3,4]", "f16[3,1]")),
)
def implicit_broadcast(m: Match) -> Any:
    return _implicit(m)


# ---- slice, pad, concat, reverse --------------------------------------------------------------------------------------------


@rewrite(
    "slice", sample=lambda b, x: b.slice(x, start=(0, 0), limit=x.type.shape), types=(("f32[3,4]",), ("bool[0,2]",))
)
def slice_of_all(m: Match) -> Any:
    whole = same_shape(m.attrs["limit"], shape(m.operands[0])) and all(s == 0 for s in m.attrs["start"])
    return m.operands[0] if whole and all(k == 1 for k in strides_of(m.op)) else None


@rewrite(
    "slice",
    sample=lambda b, x: [
        b.slice(b.slice(x, start=(2, 1), limit=(9, 4)), start=(1, 1), limit=(6, 3), stride=(2, 1)),
        b.slice(b.slice(x, start=(1, 0), limit=(10, 4), stride=(3, 2)), start=(1, 0), limit=(3, 2)),
        b.slice(b.slice(x, start=(1, 0), limit=(10, 4), stride=(2, 1)), start=(2, 2), limit=(2, 2)),
    ],
    types=(("f32[10,4]",), ("i8[10,4]",)),
)
def slice_slice(m: Match) -> Any:
    inner = m.made_by(0, "slice")
    if inner is None:
        return None
    start, limit, stride = [], [], []
    axes = zip(
        inner.attrs["start"],
        inner.attrs["limit"],
        strides_of(inner),
        m.attrs["start"],
        m.attrs["limit"],
        strides_of(m.op),
        strict=True,
    )
    for s1, l1, k1, s2, l2, k2 in axes:
        start.append(s1 + s2 * k1)
        end = s1 + l2 * k1  # at most k1 - 1 beyond the last element
        limit.append(end if k1 == 1 or prove_le(end, l1) else l1)
        stride.append(k1 * k2)
    return provable(lambda: m.b.slice(inner.operands[0], start=tuple(start), limit=tuple(limit), stride=tuple(stride)))


@rewrite(
    "slice",
    sample=lambda b, x: b.slice(b.broadcast(x, shape=(5, 6)), start=(1, 0), limit=(4, 6), stride=(2, 1)),
    types=(("f32",), ("bool",)),
)
def slice_of_repeated_scalar(m: Match) -> Any:
    inner = m.made_by(0, "broadcast")
    if inner is None or shape(inner.operands[0]):
        return None
    return m.b.broadcast(inner.operands[0], shape=m.type.shape)


@rewrite(
    "slice",
    sample=lambda b, x: b.slice(b.iota(shape=(5, 6), axis=1, dtype="i32"), start=(2, 0), limit=(5, 4), stride=(2, 1)),
    types=(("f32",),),
)
def slice_of_iota(m: Match) -> Any:
    inner = m.made_by(0, "iota")
    if inner is None:
        return None
    axis = normal_axis("iota", inner.attrs["axis"], len(m.type.shape))
    if m.attrs["start"][axis] != 0 or strides_of(m.op)[axis] != 1:
        return None
    return m.b.iota(shape=m.type.shape, axis=axis, dtype=inner.attrs["dtype"])


@rewrite(
    "slice",
    sample=lambda b, x, y: b.slice(b.concat(x, y, axis=1), start=(0, 3), limit=(2, 5)),
    types=(("f32[2,3]", "f32[2,2]"), ("bool[2,3]", "bool[2,2]")),
)
def slice_of_concat(m: Match) -> Any:
    """A slice inside one part of a concatenation reads that part."""
    inner = m.made_by(0, "concat")
    if inner is None:
        return None
    axis = normal_axis("concat", inner.attrs["axis"], len(m.type.shape))
    start, limit = m.attrs["start"][axis], m.attrs["limit"][axis]
    offset: Dim = 0
    for x in inner.operands:
        end = offset + shape(x)[axis]
        if prove_le(offset, start) and prove_le(limit, end):
            starts, limits = list(m.attrs["start"]), list(m.attrs["limit"])
            starts[axis], limits[axis] = start - offset, limit - offset
            return provable(lambda: m.b.slice(x, start=tuple(starts), limit=tuple(limits), stride=m.attrs["stride"]))  # noqa: B023
        offset = end
    return None


def no_interior(op: Op) -> bool:
    return op.attrs["interior"] is None or not any(op.attrs["interior"])


@rewrite(
    "pad",
    sample=lambda b, x: b.pad(x, b.const(1, like=x), low=(0, 0), high=(0, 0), interior=(0, 0)),
    types=(("f32[2,3]",), ("i32[0,2]",)),
)
def pad_by_nothing(m: Match) -> Any:
    nothing = not any(d != 0 for d in (*m.attrs["low"], *m.attrs["high"]))
    return m.operands[0] if nothing and no_interior(m.op) else None


@rewrite(
    "pad",
    sample=lambda b, x: b.pad(
        b.pad(x, b.const(1, like=x), low=(1,), high=(0,)), b.const(1, like=x), low=(2,), high=(3,)
    ),
    types=(("f32[4]",), ("u8[0]",)),
)
def pad_pad(m: Match) -> Any:
    inner = m.made_by(0, "pad")
    if inner is None or not (no_interior(m.op) and no_interior(inner)):
        return None
    if m.operands[1] is not inner.operands[1]:
        a, b = scalar_of(m.operands[1]), scalar_of(inner.operands[1])
        if a is None or b is None or a.tobytes() != b.tobytes():
            return None
    amounts = (*m.attrs["low"], *m.attrs["high"], *inner.attrs["low"], *inner.attrs["high"])
    if not all(prove_le(0, d) for d in amounts):
        return None
    low = tuple(p + q for p, q in zip(m.attrs["low"], inner.attrs["low"], strict=True))
    high = tuple(p + q for p, q in zip(m.attrs["high"], inner.attrs["high"], strict=True))
    return m.b.pad(inner.operands[0], m.operands[1], low=low, high=high)


@rewrite("concat", sample=lambda b, x: b.concat(x, axis=1), types=(("f32[2,3]",), ("bool[2,0]",)))
def concat_of_one(m: Match) -> Any:
    return m.operands[0] if len(m.operands) == 1 else None


@rewrite(
    "concat",
    sample=lambda b, x, y: b.concat(x, y, x, axis=-1),
    types=(("f32[2,3]", "f32[2,0]"), ("i32[2,0]", "i32[2,0]")),
)
def concat_of_empty(m: Match) -> Any:
    axis = normal_axis("concat", m.attrs["axis"], len(m.type.shape))
    kept = [v for v in m.operands if shape(v)[axis] != 0]
    if len(kept) == len(m.operands):
        return None
    if not kept:
        return m.operands[0]
    return m.b.concat(*kept, axis=axis)


@rewrite(
    "concat", sample=lambda b, x, y: b.concat(b.concat(x, y, axis=1), x, axis=-1), types=(("f32[2,3]", "f32[2,1]"),)
)
def concat_concat(m: Match) -> Any:
    axis = normal_axis("concat", m.attrs["axis"], len(m.type.shape))
    parts: list[Value] = []
    for i, v in enumerate(m.operands):
        inner = m.made_by(i, "concat")
        nested = (
            inner is not None
            and normal_axis("concat", inner.attrs["axis"], len(m.type.shape)) == axis
            and m.only_use(i)
        )
        parts += inner.operands if inner is not None and nested else (v,)
    return None if len(parts) == len(m.operands) else m.b.concat(*parts, axis=axis)


@rewrite(
    "concat",
    sample=lambda b, x: b.concat(
        b.slice(x, start=(0, 1), limit=(2, 2)), b.slice(x, start=(0, 2), limit=(2, 5)), axis=1
    ),
    types=(("f32[2,6]",), ("bool[2,5]",)),
)
def concat_of_neighbouring_slices(m: Match) -> Any:
    axis = normal_axis("concat", m.attrs["axis"], len(m.type.shape))
    slices = [m.made_by(i, "slice") for i in range(len(m.operands))]
    first = slices[0]
    if first is None or len(slices) < 2:
        return None
    end = first.attrs["limit"][axis]
    for s in slices[1:]:
        if s is None or s.operands[0] is not first.operands[0] or s.attrs["start"][axis] != end:
            return None
        end = s.attrs["limit"][axis]
    for s in slices:
        assert s is not None
        others = [
            (s.attrs[k][:axis], s.attrs[k][axis + 1 :]) == (first.attrs[k][:axis], first.attrs[k][axis + 1 :])
            for k in ("start", "limit")
        ]
        if not all(others) or strides_of(s) != strides_of(first) or strides_of(s)[axis] != 1:
            return None
    limit = (*first.attrs["limit"][:axis], end, *first.attrs["limit"][axis + 1 :])
    return provable(
        lambda: m.b.slice(first.operands[0], start=first.attrs["start"], limit=limit, stride=first.attrs["stride"])
    )


@rewrite("reverse", sample=lambda b, x: b.reverse(x, axes=(1, 2)), types=(("f32[3,1,1]",),))
def reverse_of_ones(m: Match) -> Any:
    (x,) = m.operands
    axes = normal_axes("reverse", m.attrs["axes"], len(shape(x)))
    kept = tuple(i for i in axes if shape(x)[i] not in (0, 1))
    if len(kept) == len(axes) and axes:
        return None
    return m.b.reverse(x, axes=kept) if kept else x


@rewrite(
    "reverse",
    sample=lambda b, x: b.reverse(b.reverse(x, axes=(0, 1)), axes=(-2,)),
    types=(("f32[3,4]",), ("bool[2,2]",)),
)
def reverse_reverse(m: Match) -> Any:
    inner = m.made_by(0, "reverse")
    if inner is None:
        return None
    rank = len(m.type.shape)
    once = set(normal_axes("reverse", m.attrs["axes"], rank)) ^ set(normal_axes("reverse", inner.attrs["axes"], rank))
    return m.b.reverse(inner.operands[0], axes=tuple(sorted(once))) if once else inner.operands[0]
