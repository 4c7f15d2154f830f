"""Simplification of reductions over nothing or one element, of reductions in a row, and of dynamic slices in a known place."""

from __future__ import annotations

from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ops.rules import normal_axes, normal_axis
from fluxir.passes.rules import Match, RuleSet, constant_like, scalar_of
from fluxir.passes.simplify_shape import same_shape, shape

RULES = RuleSet()
rewrite = RULES.rewrite

_REDUCTIONS = frozenset("sum prod max min any all argmax argmin".split())
_PLAIN = ("sum", "prod", "max", "min", "any", "all")


def axes_of(op: Op) -> tuple[int, ...]:
    return op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)


# ---- reductions and the shape of their results ------------------------------------------------------------


@rewrite(
    "reshape",
    sample=lambda b, x: b.reshape(b.sum(x, axes=(1,), keepdims=True), shape=(3, 2)),
    types=(("f32[3,4,2]",), ("i32[3,0,2]",)),
)
def reshape_drops_reduced_axes(m: Match) -> Any:
    inner = m.operands[0].owner
    if inner is None or inner.name not in _REDUCTIONS or not inner.attrs["keepdims"] or not m.only_use(0):
        return None
    (x,) = inner.operands
    axes = normal_axes(inner.name, axes_of(inner), len(shape(x)))
    if tuple(d for i, d in enumerate(shape(x)) if i not in axes) != m.type.shape:
        return None
    return m.b.clone(inner, [x], keepdims=False)[0]


@rewrite("reshape", sample=lambda b, x: b.reshape(b.max(x, axes=(1,)), shape=(3, 1, 2)), types=(("f32[3,4,2]",),))
def reshape_keeps_reduced_axes(m: Match) -> Any:
    inner = m.operands[0].owner
    if inner is None or inner.name not in _REDUCTIONS or inner.attrs["keepdims"] or not m.only_use(0):
        return None
    (x,) = inner.operands
    axes = normal_axes(inner.name, axes_of(inner), len(shape(x)))
    if not axes or tuple(1 if i in axes else d for i, d in enumerate(shape(x))) != m.type.shape:
        return None
    return m.b.clone(inner, [x], keepdims=True)[0]


@rewrite(
    *_PLAIN,
    sample=lambda b, x: [b.sum(x, axes=()), b.max(x, axes=()), b.prod(x, axes=(), keepdims=True)],
    types=(("f32[2,3]",), ("f16",), ("i32[0]",)),
)
def reduce_over_nothing(m: Match) -> Any:
    return _of_one_element(m, m.operands[0]) if not m.attrs["axes"] else None


def _of_one_element(m: Match, x: Value) -> Any:
    """A reduction over one element is the element; but a float sum starts at +0.0, so that -0.0 becomes 0.0."""
    return m.b.add(x, 0.0) if m.op.name == "sum" and m.type.dtype.is_float else x


@rewrite(
    *_PLAIN,
    sample=lambda b, x: [b.sum(x, axes=(1,)), b.max(x, axes=(-2,), keepdims=True), b.prod(x, axes=(1,))],
    types=(("f32[2,1,3]",), ("f16[3,1,1]",), ("i32[2,1,0]",)),
)
def reduce_over_one(m: Match) -> Any:
    (x,) = m.operands
    axes = normal_axes(m.op.name, m.attrs["axes"], len(shape(x)))
    if not axes or any(shape(x)[i] != 1 for i in axes):
        return None
    return _of_one_element(m, m.b.reshape(x, shape=m.type.shape))


@rewrite(
    "argmax",
    "argmin",
    sample=lambda b, x: [b.argmax(x, axis=1), b.argmin(x, axis=-1, keepdims=True)],
    types=(("f32[2,1]",), ("i32[0,1]",)),
)
def arg_over_one(m: Match) -> Any:
    (x,) = m.operands
    if shape(x)[normal_axis(m.op.name, m.attrs["axis"], len(shape(x)))] != 1:
        return None
    return constant_like(m.b, 0, m.type)


@rewrite(
    "cumsum",
    "cumprod",
    "cummax",
    "cummin",
    sample=lambda b, x: [b.cumsum(x, axis=1), b.cummin(x, axis=-1, reverse=True)],
    types=(("f32[2,1]",), ("f16[3,1]",)),
)
def cumulate_one(m: Match) -> Any:
    (x,) = m.operands
    return x if shape(x)[normal_axis(m.op.name, m.attrs["axis"], len(shape(x)))] == 1 else None


@rewrite(
    "max",
    "min",
    "any",
    "all",
    "sum",
    sample=lambda b, x: b.max(b.max(x, axes=(1,)), axes=(0, 1)),
    types=(("f32[2,3,4]",), ("i32[2,3,1]",)),
)
def reduce_twice(m: Match) -> Any:
    """Extrema of extrema; sums only of integers, where the order makes no difference."""
    inner = m.made_by(0, m.op.name)
    if inner is None or inner.attrs["keepdims"] or m.attrs["keepdims"] or not m.only_use(0):
        return None
    if m.op.name == "sum" and not m.type.dtype.is_integer:
        return None
    (x,) = inner.operands
    first = normal_axes(m.op.name, inner.attrs["axes"], len(shape(x)))
    rest = [i for i in range(len(shape(x))) if i not in first]
    second = [rest[i] for i in normal_axes(m.op.name, m.attrs["axes"], len(rest))]
    return m.b.emit(m.op.name, x, axes=tuple(sorted((*first, *second))))[0]


# ---- dynamic slices whose place is known ---------------------------------------------------------------------------------------


@rewrite(
    "dynamic_slice",
    sample=lambda b, x: b.dynamic_slice(x, b.const(9, dtype="i64"), b.const(-1, dtype="i64"), sizes=(2, 3)),
    types=(("f32[5,4]",), ("bool[2,3]",)),
)
def dynamic_slice_at_constant(m: Match) -> Any:
    x, *starts = m.operands
    places = [scalar_of(s) for s in starts]
    if any(p is None for p in places):
        return None
    start, limit = [], []
    for p, d, n in zip(places, shape(x), m.attrs["sizes"], strict=True):
        if not isinstance(d, int) or not isinstance(n, int):
            return None
        at = min(max(int(p), 0), d - n)
        start.append(at)
        limit.append(at + n)
    return m.b.slice(x, start=tuple(start), limit=tuple(limit))


@rewrite(
    "dynamic_update",
    sample=lambda b, x, y: b.dynamic_update(x, y, b.const(0, dtype="i64"), b.const(3, dtype="i64")),
    types=(("f32[5,4]", "f32[5,4]"),),
)
def dynamic_update_of_all(m: Match) -> Any:
    """Starts are clamped so that the update fits: one as large as the tensor replaces it."""
    return m.operands[1] if same_shape(shape(m.operands[0]), shape(m.operands[1])) else None
