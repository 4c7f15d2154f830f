"""What all templates of convolutions on CPUs know of one: its numbers, with every spatial axis in full.

A conv in one to three dimensions is read as one in three: axes that are not there have size 1. Sizes beside the batch (and, for
`conv_reduce`, the contracted channels) are integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.dtypes import DType
from fluxir.ops.nest import accumulator
from fluxir.schedule.group import shape_of


@dataclass(frozen=True)
class Axis:
    """One spatial axis with all that is known about it."""

    size: int = 1
    out: int = 1
    window: int = 1
    stride: int = 1
    low: int = 0
    spread: int = 1  # lhs_dilation
    step: int = 1  # rhs_dilation

    def source(self, b: Builder, p: Value) -> tuple[Value, Value]:
        """Whether position `p` of the spread-out axis holds an element, and which."""
        reach = self.size if self.spread == 1 else (self.size - 1) * self.spread + 1 if self.size else 0
        there = b.logical_and(b.le(b.index(0), p), b.lt(p, b.index(reach)))
        if self.spread == 1:
            return there, p
        step = b.index(self.spread)
        return b.logical_and(there, b.eq(b.fmod(p, step), b.index(0))), b.div(p, step)

    def reach(self, count: int) -> int:
        """Positions of the input that `count` neighbouring results read."""
        return (count - 1) * self.stride + (self.window - 1) * self.step + 1


@dataclass(frozen=True, eq=False)
class Conv:
    """A conv whose sizes beside the batch are known; `axes` are depth, rows and columns."""

    op: Op
    batch: Dim
    groups: int
    channels: int  # of the input, in a group
    outputs: int  # of the result, in a group
    axes: tuple[Axis, Axis, Axis]
    space: int  # how many spatial axes there are

    @property
    def dtype(self) -> DType:
        d: DType = accumulator(self.op.result.type.dtype)
        return d

    @property
    def window(self) -> int:
        """Places of the whole window."""
        deep, rows, line = self.axes
        return deep.window * rows.window * line.window

    @property
    def places(self) -> int:
        """Results of one channel of one image."""
        deep, rows, line = self.axes
        return deep.out * rows.out * line.out

    def joined(self) -> Conv:
        """The conv with its spatial axes as one, where it is a product at every place; else itself."""
        if any(a != Axis(a.size, a.size) for a in self.axes):
            return self
        return replace(self, axes=(Axis(), Axis(), Axis(self.places, self.places)), space=1)


def read_conv(op: Op) -> Conv | None:
    """The numbers of a conv; None where a size that must be known is a symbol."""
    x, w, y = shape_of(op.operands[0]), shape_of(op.operands[1]), shape_of(op.result)
    if not all(isinstance(d, int) for d in (*x[1:], *w, *y[1:])):
        return None
    return Conv(op, x[0], op.attrs.groups, int(w[1]), int(w[0]) // op.attrs.groups, axes_of(op), len(x) - 2)


def read_open(op: Op) -> Conv | None:
    """The numbers of a conv whose spatial sizes are not all known: `size` and `out` of its axes are dims then, with which the
    arithmetic here works as with integers. None where other sizes are symbols, or zeros stand between elements."""
    x, w, y, a = shape_of(op.operands[0]), shape_of(op.operands[1]), shape_of(op.result), op.attrs
    if not all(isinstance(d, int) for d in (x[1], *w)) or any(d > 1 for d in a.lhs_dilation):
        return None
    axes = [
        Axis(
            cast(int, x[i + 2]),
            cast(int, y[i + 2]),
            int(w[i + 2]),
            a.strides[i],
            a.padding[2 * i],
            1,
            a.rhs_dilation[i],
        )
        for i in range(len(x) - 2)
    ]
    deep, rows, line = [Axis()] * (3 - len(axes)) + axes
    conv = Conv(op, x[0], a.groups, int(w[1]), int(w[0]) // a.groups, (deep, rows, line), len(axes))
    if any(r != Axis(r.size, r.size) or r.size is not r.out and r.size != r.out for r in conv.axes):
        return conv
    places = cast(int, product(r.out for r in conv.axes))
    return replace(conv, axes=(Axis(), Axis(), Axis(places, places)), space=1)


def axes_of(op: Op) -> tuple[Axis, Axis, Axis]:
    """The spatial axes of a conv, whose sizes are known, as three: the outer ones of size 1 where it has fewer."""
    x, w, y, a = shape_of(op.operands[0]), shape_of(op.operands[1]), shape_of(op.result), op.attrs
    axes = [
        Axis(int(x[i + 2]), int(y[i + 2]), int(w[i + 2]), a.strides[i], a.padding[2 * i], a.lhs_dilation[i],
             a.rhs_dilation[i])
        for i in range(len(x) - 2)
    ]  # fmt: skip
    deep, rows, line = [Axis()] * (3 - len(axes)) + axes
    return deep, rows, line


def index_of(space: int, n: Value, channel: Value, d: Value, h: Value, i: Value) -> tuple[Value, ...]:
    """The index of an element of an array of `space` spatial axes."""
    return (n, channel, *(d, h, i)[3 - space :])


__all__ = ["Axis", "Conv", "axes_of", "index_of", "read_conv", "read_open"]
