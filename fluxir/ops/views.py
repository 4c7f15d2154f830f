"""Strided views: a value that is reshapes, transposes, slices and broadcasts of memory, as an offset and a stride an axis.

A pass asks whether a kernel can read a value where its source lies, and the kernel's template asks where each element is;
both get the answer here. A view never reads outside of its source, because each step of the chain is one of the IR's own ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, prove_equal
from fluxir.ops.shape import broadcast_axes, factor_groups

MOVES = frozenset(("reshape", "transpose", "slice", "broadcast", "stop_gradient"))


@dataclass(frozen=True, eq=False)
class View:
    """Element (i, j, ...) lies at `offset + i * strides[0] + j * strides[1] + ...` of the flat memory of `source`."""

    source: Value
    shape: tuple[Dim, ...]
    offset: Dim
    strides: tuple[Dim, ...]


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The strides of memory of this shape."""
    out: list[Dim] = []
    step: Dim = 1
    for d in reversed(shape):
        out.append(step)
        step = step * d
    return tuple(reversed(out))


def view_of(v: Value, known: Callable[[Value], bool]) -> View | None:
    """The view that a value is of the first value above it that is `known` to lie in memory; None where it is not one."""
    shape = tuple(v.shape)
    if known(v):
        return View(v, shape, 0, row_major(shape))
    op = v.owner
    if op is None or op.name not in MOVES:
        return None
    below = view_of(op.operands[0], known)
    return None if below is None else _moved(below, op, shape)


def _moved(x: View, op: Op, shape: tuple[Dim, ...]) -> View | None:
    offset, strides = x.offset, x.strides
    if op.name == "transpose":
        strides = tuple(strides[k] for k in op.attrs["perm"])
    elif op.name == "slice":
        start = op.attrs["start"]
        steps = op.attrs["stride"] or (1,) * len(start)
        for s, stride in zip(start, strides, strict=True):
            offset = offset + s * stride
        strides = tuple(stride * step for stride, step in zip(strides, steps, strict=True))
    elif op.name == "broadcast":
        at = dict(zip(broadcast_axes(op.attrs, len(x.shape)), range(len(x.shape)), strict=True))
        stretched = [k not in at or (x.shape[at[k]] == 1 and d != 1) for k, d in enumerate(shape)]
        strides = tuple(0 if s else strides[at[k]] for k, s in enumerate(stretched))
    elif op.name == "reshape":
        reshaped = _reshaped(x, shape)
        if reshaped is None:
            return None
        strides = reshaped
    return View(x.source, shape, offset, strides)


def _reshaped(x: View, shape: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The strides after a reshape: an axis may be split anywhere, neighbours may merge where they are neighbours in memory."""
    out: list[Dim] = [0] * len(shape)
    for old, new in factor_groups(x.shape, shape):
        real = [k for k in old if x.shape[k] != 1]
        for k, after in zip(real, real[1:], strict=False):
            if not prove_equal(x.strides[k], x.strides[after] * x.shape[after]):
                return None
        step: Dim = x.strides[real[-1]] if real else 1
        for k in reversed(new):
            out[k] = step
            step = step * shape[k]
    return tuple(out)


__all__ = ["MOVES", "View", "row_major", "view_of"]
