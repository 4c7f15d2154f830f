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
    arithmetic for deep learning", 2016); for the weight one with the cotangent as window. The pass `conv` puts them in a
    form that is computed well."""
    x, w = o.operands
    if 0 in (*x.shape, *w.shape, *o.result.shape):
        return [zeros(b, x.type), zeros(b, w.type)]
    known = all(isinstance(n, int) for n in (*x.shape[1:], *w.shape))
    channelwise = known and o.attrs.groups == w.shape[0] and w.shape[1] == 1 and prod(w.shape[2:]) <= TAPS
    return [_conv_input(b, o, cts[0]), (_channelwise_weight if channelwise else _conv_weight)(b, o, cts[0])]


TAPS = 49  # places of a window for which a sum each is written out


def _channelwise_weight(b: Builder, o: Op, ct: Value) -> Value:
    """Each channel by itself: for each place in the window the sum of the cotangent times what the window reads there, over
    batch and space. There is nothing that a product of matrices would multiply twice."""
    x, w = o.operands
    a, space, window = o.attrs, len(x.shape) - 2, w.shape[2:]
    gaps = (0, 0, *[d - 1 for d in a.lhs_dilation])
    low, high = (0, 0, *a.padding[0::2]), (0, 0, *a.padding[1::2])
    if any((*gaps, *low, *high)):
        x = b.pad(x, number(b, 0, x), low=low, high=high, interior=gaps if any(gaps) else None)
    wide = cast(b, ct, accumulator(ct.dtype))
    lines = []
    for at in np.ndindex(*window):
        start = (0, 0, *[k * d for k, d in zip(at, a.rhs_dilation, strict=True)])
        extent = [(m - 1) * s + 1 for m, s in zip(ct.shape[2:], a.strides, strict=True)]
        limit = (*x.shape[:2], *[p + n for p, n in zip(start[2:], extent, strict=True)])
        read = cast(b, b.slice(x, start=start, limit=limit, stride=(1, 1, *a.strides)), accumulator(ct.dtype))
        total = b.sum(b.mul(wide, read), axes=(0, *range(2, 2 + space)))
        lines.append(b.reshape(cast(b, total, ct.dtype), shape=(w.shape[0], 1)))
    return b.reshape(lines[0] if len(lines) == 1 else b.concat(*lines, axis=1), shape=w.shape)  # type: ignore[no-any-return]


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
