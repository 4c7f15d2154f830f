"""What derivative rules are made of: how a declaration says what the derivative of its op is.

Reverse mode: `vjp(b, op, cts)` gets the cotangent of each result (None: zero) and gives one for each operand: a value of
the operand's type, None for zero, or `Into`, which adds to a cotangent in place, so that indexing a large value costs
what it touches. Forward mode: `jvp(b, op, tangents)` gets a tangent (or None) for each operand and gives one for each
result. Both may use the op's operands and results; neither is called for operands that are not floats.

Most ops need neither: an elementwise op states its `partials`, and an op that is `linear` follows from itself.
Which argument of a linear op counts is the text of `OpDef.linear`: "all" its float operands together (concat, select),
"each" one by one, the others fixed (dot, conv).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import TensorType, Type

Builder = Any
Cotangent = Any  # Value | Into | None
Rule = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Into:
    """A cotangent that is added in place: `add(b, total) -> total`, where `total` has the type of the operand."""

    add: Callable[[Builder, Value], Value]


def zeros(b: Builder, t: Type) -> Value:
    """A tensor of zeros."""
    return full(b, 0, t)


def full(b: Builder, value: float, t: Type) -> Value:
    """A tensor of one number."""
    assert isinstance(t, TensorType)
    if not t.shape:
        return b.const(value, dtype=t.dtype)  # type: ignore[no-any-return]
    return b.broadcast(b.const(value, dtype=t.dtype), shape=t.shape)  # type: ignore[no-any-return]


def to_shape(b: Builder, x: Value, shape: Sequence[Dim]) -> Value:
    """`x` broadcast to `shape` (numpy's rules)."""
    return x if tuple(x.shape) == tuple(shape) else b.broadcast(x, shape=tuple(shape))


def unbroadcast(b: Builder, x: Value, shape: Sequence[Dim]) -> Value:
    """The transpose of broadcasting from `shape`: sums over the axes that were stretched or added."""
    have = tuple(x.shape)
    if have == tuple(shape):
        return x
    extra = len(have) - len(shape)
    axes = [*range(extra), *[i + extra for i, d in enumerate(shape) if d == 1 and have[i + extra] != 1]]
    if axes:
        x = b.sum(x, axes=tuple(axes))
    return x if tuple(x.shape) == tuple(shape) else b.reshape(x, shape=tuple(shape))


def is_float(v: Value) -> bool:
    """Whether a derivative with respect to this value means anything."""
    return isinstance(v.type, TensorType) and bool(v.type.dtype.is_float)


def add(b: Builder, x: Value | None, y: Value | None) -> Value | None:
    """The sum, where None is zero."""
    if x is None or y is None:
        return y if x is None else x
    return b.add(x, y)  # type: ignore[no-any-return]


# ---- elementwise ------------------------------------------------------------------------------------------------------

# A partial derivative: f(b, *operands, result) -> a value, None for zero, or the number 1 or -1.
Partial = Callable[..., Any]


def _times(b: Builder, partial: Any, x: Value) -> Value | None:
    if partial is None:
        return None
    if isinstance(partial, (int, float)):
        if partial == 1:
            return x
        return b.neg(x) if partial == -1 else b.mul(x, b.const(partial, like=x))  # type: ignore[no-any-return]
    return b.mul(x, partial)  # type: ignore[no-any-return]


def rules_of(partials: Sequence[Partial | None]) -> tuple[Rule, Rule]:
    """The rules (vjp, jvp) of an elementwise op from its partial derivatives."""

    def vjp(b: Builder, o: Op, cts: Sequence[Value | None]) -> list[Cotangent]:
        (ct,) = cts
        out: list[Cotangent] = []
        for v, partial in zip(o.operands, partials, strict=True):
            found = None
            if partial is not None and ct is not None and is_float(v):
                found = _times(b, partial(b, *o.operands, o.result), ct)
            out.append(None if found is None else unbroadcast(b, found, v.shape))
        return out

    def jvp(b: Builder, o: Op, tangents: Sequence[Value | None]) -> list[Value | None]:
        total: Value | None = None
        for partial, t in zip(partials, tangents, strict=True):
            if t is not None and partial is not None:
                total = add(b, total, _times(b, partial(b, *o.operands, o.result), t))
        return [None if total is None else to_shape(b, total, o.result.shape)]

    return vjp, jvp


# ---- linear ops ---------------------------------------------------------------------------------------------------------


def linear_jvp(b: Builder, o: Op, tangents: Sequence[Value | None]) -> list[Value | None]:
    """The tangents of an op that is linear, in all its float operands together or in each."""
    if all(t is None for t in tangents):
        return [None] * len(o.results)
    if o.defn.linear == "all":
        operands = [
            v if not is_float(v) else t if t is not None else zeros(b, v.type)
            for v, t in zip(o.operands, tangents, strict=True)
        ]
        return list(b.emit(o.name, *operands, loc=o.loc, **o.attrs))
    totals: list[Value | None] = [None] * len(o.results)
    for i, t in enumerate(tangents):
        if t is not None:
            operands = [t if k == i else v for k, v in enumerate(o.operands)]
            parts = b.emit(o.name, *operands, loc=o.loc, **o.attrs)
            totals = [add(b, total, part) for total, part in zip(totals, parts, strict=True)]
    return totals


__all__ = [
    "Cotangent",
    "Into",
    "Partial",
    "add",
    "full",
    "is_float",
    "linear_jvp",
    "rules_of",
    "to_shape",
    "unbroadcast",
    "zeros",
]
