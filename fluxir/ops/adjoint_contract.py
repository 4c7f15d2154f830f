"""Derivatives of contractions: each is a contraction again, over the axes of the result."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ops.adjoint import Builder, zeros
from fluxir.ops.adjoint_reduce import Cotangents, number
from fluxir.ops.nest import accumulator, cast


def dilated_extent(n: Dim, factor: int) -> Dim:
    """The size of a non-empty axis with `factor - 1` zeros between neighbours."""
    return n if factor == 1 else (n - 1) * factor + 1


def _prepared(
    b: Builder, x: Value, low: Sequence[Dim], high: Sequence[Dim], dilation: Sequence[int]
) -> tuple[Value, tuple[int, ...], tuple[int, ...]]:
    """An operand of a convolution whose padding may be symbolic: (operand, padding, lhs_dilation) for the op."""
    if all(isinstance(n, int) for n in (*low, *high)):
        return x, tuple(int(n) for pair in zip(low, high, strict=True) for n in pair), tuple(dilation)
    gaps = (0, 0, *[d - 1 for d in dilation])
    wide = b.pad(x, number(b, 0, x), low=(0, 0, *low), high=(0, 0, *high), interior=gaps if any(gaps) else None)
    return wide, (0,) * (2 * len(low)), (1,) * len(low)


def conv_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """For the input a convolution with the flipped weight, dilated by the strides (Dumoulin & Visin, "A guide to convolution
    arithmetic for deep learning", 2016); for the weight matrix products, or a convolution with the cotangent as window."""
    x, w = o.operands
    if 0 in (*x.shape, *w.shape, *o.result.shape):
        return [zeros(b, x.type), zeros(b, w.type)]
    known = all(isinstance(n, int) for n in (*x.shape[1:], *w.shape))
    places = prod(w.shape[2:]) if known else 0
    channelwise = o.attrs.groups == w.shape[0] and w.shape[1] == 1
    if not known or places > TAPS or (o.attrs.groups > MANY_GROUPS and not channelwise):
        return [_conv_input(b, o, cts[0]), _conv_weight(b, o, cts[0])]
    return [_conv_input(b, o, cts[0]), _conv_weight_by_place(b, o, cts[0])]


TAPS = 49  # places of a window for which a matrix product each is written out
MANY_GROUPS = 8  # above, the products are too narrow
NARROW = 256  # rows of the one product that takes all places together


def _conv_weight_by_place(b: Builder, o: Op, ct: Value) -> Value:
    """For each place in the window the product of the cotangent with what the window reads there, over batch and space. A
    convolution with the cotangent as its window has results of a few places only, which leaves registers empty: this took a
    fifth of its time on 64 channels of 32x32. With few channels the places are joined and one product takes them all."""
    x, w = o.operands
    a, g, space = o.attrs, o.attrs.groups, len(x.shape) - 2
    out, inner, *window = w.shape
    gaps = (0, 0, *[d - 1 for d in a.lhs_dilation])
    low, high = (0, 0, *a.padding[0::2]), (0, 0, *a.padding[1::2])
    if any((*gaps, *low, *high)):
        x = b.pad(x, number(b, 0, x), low=low, high=high, interior=gaps if any(gaps) else None)
    read = []
    for at in np.ndindex(*window):
        start = (0, 0, *[k * d for k, d in zip(at, a.rhs_dilation, strict=True)])
        extent = [(m - 1) * s + 1 for m, s in zip(ct.shape[2:], a.strides, strict=True)]
        limit = (*x.shape[:2], *[p + n for p, n in zip(start[2:], extent, strict=True)])
        read.append(b.slice(x, start=start, limit=limit, stride=(1, 1, *a.strides)))
    if g == out and inner == 1:  # each channel by itself: sums of products, in which there is nothing to multiply twice
        wide = [cast(b, v, accumulator(ct.dtype)) for v in (ct, *read)]
        sums = [b.sum(b.mul(wide[0], v), axes=(0, *range(2, 2 + space))) for v in wide[1:]]
        lines = [b.reshape(cast(b, v, ct.dtype), shape=(g, 1)) for v in sums]
        return b.reshape(lines[0] if len(lines) == 1 else b.concat(*lines, axis=1), shape=w.shape)  # type: ignore[no-any-return]
    columns, rows = _grouped(b, ct, g), [_grouped(b, v, g) for v in read]
    if len(rows) > 1 and inner * len(rows) <= NARROW:
        rows = [b.concat(*rows, axis=len(columns.shape) - space - 1)]
    over = (0, *range(len(columns.shape) - space, len(columns.shape)))
    each = (1,) if g > 1 else ()
    parts = [b.dot(columns, r, lhs_contract=over, rhs_contract=over, lhs_batch=each, rhs_batch=each) for r in rows]
    # [(g,) O/g, places C/g], the places in one part or in as many
    shape = (out, prod(window) // len(parts), inner)
    joined = [b.reshape(p, shape=shape) for p in parts]
    whole = joined[0] if len(joined) == 1 else b.concat(*joined, axis=1)
    return b.reshape(b.transpose(whole, perm=(0, 2, 1)), shape=w.shape)  # type: ignore[no-any-return]


def _grouped(b: Builder, v: Value, g: int) -> Value:
    """[N, g C, space...] as [N, g, C, space...], where there is more than one group."""
    n, c, *space = v.shape
    return v if g == 1 else b.reshape(v, shape=(n, g, c // g, *space))


def _conv_input(b: Builder, o: Op, ct: Value) -> Value:
    x, w = o.operands
    a, g, space = o.attrs, o.attrs.groups, len(x.shape) - 2
    out, inner, *window = w.shape
    # [O, C/g, k...] -> [C, O/g, k...], flipped
    flipped = b.reshape(w, shape=(g, out // g, inner, *window))
    flipped = b.transpose(flipped, perm=(0, 2, 1, *range(3, 3 + space)))
    flipped = b.reverse(b.reshape(flipped, shape=(g * inner, out // g, *window)), axes=tuple(range(2, 2 + space)))
    low, high = [], []
    for i in range(space):
        reach = (window[i] - 1) * a.rhs_dilation[i]
        low.append(reach - a.padding[2 * i])
        spread = dilated_extent(ct.shape[i + 2], a.strides[i])
        high.append(dilated_extent(x.shape[i + 2], a.lhs_dilation[i]) - spread - low[i] + reach)
    u, padding, dilation = _prepared(b, ct, low, high, a.strides)
    return b.conv(  # type: ignore[no-any-return]
        u,
        flipped,
        strides=a.lhs_dilation,
        padding=padding,
        lhs_dilation=dilation,
        rhs_dilation=a.rhs_dilation,
        groups=g,
    )


def _conv_weight(b: Builder, o: Op, ct: Value) -> Value:
    x, w = o.operands
    a, g, space = o.attrs, o.attrs.groups, len(x.shape) - 2
    batch, size = x.shape[0], x.shape[2:]
    inner, window = w.shape[1], w.shape[2:]
    axes = tuple(range(3, 3 + space))
    # [N, g, C/g, s...] -> [C/g, g N, s...]: the batch is what is contracted, group by group
    rows = b.transpose(b.reshape(x, shape=(batch, g, inner, *size)), perm=(2, 1, 0, *axes))
    rows = b.reshape(rows, shape=(inner, g * batch, *size))
    columns = b.transpose(ct, perm=(1, 0, *range(2, 2 + space)))  # [O, N, places...]
    low, high = [], []
    for i in range(space):
        low.append(a.padding[2 * i])
        covered = (window[i] - 1) * a.rhs_dilation[i] + dilated_extent(ct.shape[i + 2], a.strides[i])
        high.append(covered - dilated_extent(size[i], a.lhs_dilation[i]) - low[i])
    u, padding, dilation = _prepared(b, rows, low, high, a.lhs_dilation)
    d = b.conv(
        u, columns, strides=a.rhs_dilation, padding=padding, lhs_dilation=dilation, rhs_dilation=a.strides, groups=g
    )
    return b.transpose(d, perm=(1, 0, *range(2, 2 + space)))  # type: ignore[no-any-return]
