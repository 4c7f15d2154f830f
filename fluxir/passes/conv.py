"""Convolutions in the form that is computed best.

- With zeros between the input's elements (`lhs_dilation`: gradients of strided convolutions, transposed ones) every result
  reads only the places of the window that meet an element, and which these are depends on its position modulo the dilation.
  So it is one convolution without zeros for each remainder, and their results take turns.
- With a window whose places are far apart on a line (networks for long signals) the line is folded into rows, so that they are
  above each other.
- With a window larger than a result of few places (gradients of weights) it is a matrix product for each place: on GPUs,
  whose matrix units convolutions do not use, where the output channels are too few to be lanes, and for a single place.

Invariants: the sizes of the window are known, else the op is left alone; products are written out where all sizes but the batch
and the channels are; the element type of sums is that of the convolution; a result differs by the order of its sum only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, ceildiv
from fluxir.ir.rewrite import rewrite_func
from fluxir.passes.manager import PassContext, pass_
from fluxir.target import GpuTarget

PLACES = 49  # places of a result for which a matrix product each is written out
PHASES = 16  # remainders for which a convolution each is written out
LANES = 8  # output channels below which the lanes of a CPU stay empty
MANY_GROUPS = 8  # above, the products are too narrow
FAR = (
    128 * 1024
)  # bytes of input from the first place of a window to the last, above which a task cannot keep all between
NARROW = 256  # rows of the one product that takes all places together


@pass_("conv")
def conv(func: Func, cx: PassContext) -> Func:
    """Split convolutions over inputs with zeros in between into ones without, and those with few result places into products."""
    gpu = isinstance(cx.target, GpuTarget)

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name != "conv":
            return None
        x, w = operands
        sizes = (*x.shape[2:], *op.result.type.shape[2:])
        window = w.shape[2:]
        if not all(isinstance(n, int) and n > 0 for n in window) or 0 in (*x.shape, *w.shape, *sizes):
            return None
        known = all(isinstance(n, int) for n in sizes)
        inner = Builder(op.loc)
        if _splits(op) and (known or _meets(op, x)):
            cx.rules["conv phases"] += 1
            out = _phases(inner, op, x, w)
        elif not gpu and _far(op, x, w):
            cx.rules["conv far"] += 1
            out = _folded(inner, op, x, w)
        elif not known:
            return None
        elif _few_places(op, w, gpu):
            cx.rules["conv places"] += 1
            out = _places(inner, op, x, w)
        else:
            return None
        b.ops.extend(inner.ops)
        return (out,)

    return rewrite_func(func, visit)


def _known(dims: Sequence[Dim]) -> list[int]:
    return [int(d) for d in dims]


# ---- zeros between the input's elements


def _splits(op: Op) -> bool:
    a = op.attrs
    spread = [d > 1 for d in a.lhs_dilation]
    plain = all(s == 1 and math.gcd(r, d) == 1 for s, r, d in zip(a.strides, a.rhs_dilation, a.lhs_dilation) if d > 1)
    return any(spread) and plain and math.prod(a.lhs_dilation) <= PHASES


def _meets(op: Op, x: Value) -> bool:
    """Whether open sizes of the result are those of the input times the dilation but for a known number of elements."""
    sizes = zip(op.result.type.shape[2:], x.shape[2:], op.attrs.lhs_dilation)
    return all(d == 1 or isinstance(ceildiv(n, d) - m, int) for n, m, d in sizes)


def _phases(b: Builder, op: Op, x: Value, w: Value) -> Value:
    """On one axis with dilation d and window step r, result j = d t + q meets an element at the places k with
    k r = low - q (mod d): k = k0 + d m, which read the element t + m r - (low - q - k0 r) / d. Every remainder q has the
    same number of results, the least that is enough: what is too much is cut off in the end."""
    a, space = op.attrs, len(op.attrs.strides)
    size, window, out = x.shape[2:], _known(w.shape[2:]), op.result.type.shape[2:]
    counts = [ceildiv(n, d) for n, d in zip(out, a.lhs_dilation)]
    parts: dict[tuple[int, ...], Value] = {}
    for phase in np.ndindex(*a.lhs_dilation):
        starts, padding = [], []
        for i, q in enumerate(phase):
            d, r, low, high = a.lhs_dilation[i], a.rhs_dilation[i], a.padding[2 * i], a.padding[2 * i + 1]
            if d == 1:
                starts.append(0)
                padding += [low, high]
                continue
            k0 = (low - q) * pow(r, -1, d) % d
            taps = max(0, -(-(window[i] - k0) // d))
            before = (low - q - k0 * r) // d
            starts.append(k0)
            padding += [before, counts[i] - size[i] - before + (taps - 1) * r]
        if any(k0 >= n for k0, n in zip(starts, window)):  # no place of the window meets an element
            shape = (*op.result.type.shape[:2], *[c if d > 1 else n for c, d, n in zip(counts, a.lhs_dilation, out)])
            zero = b.const(0, dtype=x.dtype)
            parts[phase] = b.broadcast(zero, shape=shape, axes=())
            continue
        part = b.slice(w, start=(0, 0, *starts), limit=w.shape, stride=(1, 1, *a.lhs_dilation))
        parts[phase] = b.conv(
            x, part, strides=a.strides, padding=tuple(padding), lhs_dilation=(1,) * space, rhs_dilation=a.rhs_dilation,
            groups=a.groups,
        )  # fmt: skip
    return _interleaved(b, op, parts)


def _interleaved(b: Builder, op: Op, parts: dict[tuple[int, ...], Value]) -> Value:
    """The results of all remainders in turns, as many as there are to be."""
    a, shape = op.attrs, op.result.type.shape
    for i in reversed(range(len(a.lhs_dilation))):
        d = a.lhs_dilation[i]
        joined = {}
        for head in sorted({phase[:i] for phase in parts}):
            own = [parts[(*head, q)] for q in range(d)]
            if d == 1:
                joined[head] = own[0]
                continue
            axis = 3 + i
            split = [b.reshape(v, shape=(*v.shape[:axis], 1, *v.shape[axis:])) for v in own]
            both = b.concat(*split, axis=axis)
            n = own[0].shape[2 + i]
            joined[head] = b.reshape(both, shape=(*own[0].shape[: 2 + i], n * d, *own[0].shape[axis:]))
        parts = joined
    (y,) = parts.values()
    return y if y.shape == shape else b.slice(y, start=(0,) * len(shape), limit=shape, stride=(1,) * len(shape))


# ---- places of a window that are far apart


def _far(op: Op, x: Value, w: Value) -> bool:
    """Whether a line's window steps so far that what lies between its places does not stay in a task's memory."""
    a = op.attrs
    if not isinstance(w.shape[1], int) or len(a.strides) != 1 or min(a.padding) < 0:
        return False
    if a.strides[0] != 1 or a.lhs_dilation[0] != 1:
        return False
    return bool((w.shape[2] - 1) * a.rhs_dilation[0] * w.shape[1] * x.dtype.itemsize > FAR)


def _folded(b: Builder, op: Op, x: Value, w: Value) -> Value:
    """A line whose window steps by d, as rows of d columns: the places of a window are above each other then. The line is filled
    up to whole rows, and what is too much is cut off."""
    a, d, taps = op.attrs, op.attrs.rhs_dilation[0], w.shape[2]
    (low, high), out = a.padding, op.result.type.shape[2]
    rows = ceildiv(x.shape[2] + low + high, d)
    extra = rows * d - x.shape[2] - low
    if low or extra != 0:
        zero, space = b.const(0, dtype=x.dtype), (0, 0, 0)
        if isinstance(extra, int):
            x = b.pad(x, zero, low=(0, 0, low), high=(0, 0, extra), interior=space)
        else:  # as many zeros as the longest rest of a row, of which some are cut off
            x = b.pad(x, zero, low=(0, 0, low), high=(0, 0, high + d - 1), interior=space)
            x = b.slice(x, start=space, limit=(*x.shape[:2], rows * d), stride=(1, 1, 1))
    folded = b.conv(
        b.reshape(x, shape=(*x.shape[:2], rows, d)), b.reshape(w, shape=(*w.shape, 1)), strides=(1, 1), padding=(0,) * 4,
        lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=a.groups,
    )  # fmt: skip
    y: Value = b.reshape(folded, shape=(*folded.shape[:2], (rows - taps + 1) * d))
    if y.shape != op.result.type.shape:
        y = b.slice(y, start=(0, 0, 0), limit=(*y.shape[:2], out), stride=(1, 1, 1))
    return y


# ---- a result of few places


def _few_places(op: Op, w: Value, gpu: bool) -> bool:
    places, window = (math.prod(_known(t.shape[2:])) for t in (op.result.type, w))
    outputs = w.shape[0] // op.attrs.groups if isinstance(w.shape[0], int) else LANES
    if places >= window or places > PLACES or op.attrs.groups > MANY_GROUPS:
        return False
    return gpu or places == 1 or outputs < LANES


def _places(b: Builder, op: Op, x: Value, w: Value) -> Value:
    """For each place of the result the product of the window with what it reads there, over channels and window. With few
    images the places are joined and one product takes them all."""
    a, g, space = op.attrs, op.attrs.groups, len(op.attrs.strides)
    images, outputs, *places = op.result.type.shape
    depth, window = w.shape[1], _known(w.shape[2:])
    gaps = (0, 0, *[d - 1 for d in a.lhs_dilation])
    low, high = (0, 0, *a.padding[0::2]), (0, 0, *a.padding[1::2])
    if any((*gaps, *low, *high)):
        zero = b.const(0, dtype=x.dtype)
        x = b.pad(x, zero, low=low, high=high, interior=gaps if any(gaps) else None)
    grouped = (images, g, depth, *window)
    reads = []
    for at in np.ndindex(*_known(places)):
        start = [k * s for k, s in zip(at, a.strides)]
        limit = [p + (n - 1) * r + 1 for p, n, r in zip(start, window, a.rhs_dilation)]
        read = b.slice(x, start=(0, 0, *start), limit=(*x.shape[:2], *limit), stride=(1, 1, *a.rhs_dilation))
        reads.append(b.reshape(read, shape=grouped) if g > 1 else read)
    if g > 1:
        w = b.reshape(w, shape=(g, outputs // g, depth, *window))
    count = len(reads)
    if count > 1 and isinstance(images, int) and images * count <= NARROW:
        reads = [b.concat(*reads, axis=0)]
    first = 1 if g > 1 else 0
    over = tuple(range(1 + first, 2 + first + space))
    batch = ((0,), (1,)) if g > 1 else ((), ())
    parts = [b.dot(w, r, lhs_contract=over, rhs_contract=over, lhs_batch=batch[0], rhs_batch=batch[1]) for r in reads]
    # [(g,) O/g, images], the places in one part or in as many
    parts = [b.reshape(p, shape=(outputs, count // len(parts), images)) for p in parts]
    whole = parts[0] if len(parts) == 1 else b.concat(*parts, axis=1)
    return b.reshape(b.transpose(whole, perm=(2, 0, 1)), shape=op.result.type.shape)  # type: ignore[no-any-return]


__all__ = ["conv"]
