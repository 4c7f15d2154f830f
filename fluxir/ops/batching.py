"""Batching rules: what an op does when some of its operands have one more axis in front (`fx.vmap`).

`batch(b, op, xs, flags, size) -> results`: `op` is the op on single elements, `xs` its operands now, of which those with a
true flag have the batch axis (of `size`) first; all results must have it first. An elementwise op follows from numpy's
broadcasting; the others move their axes by one, or make the batch a batch of their own (a dot's batch axis, a convolution's
groups). An op without a rule runs as a `scan` over the batch (`one_by_one`), which is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.opdef import set_batch
from fluxir.ops.contract import dot_axes
from fluxir.ops.random import philox_words
from fluxir.ops.rules import normal_axes, normal_axis
from fluxir.ops.shape import broadcast_axes

Builder = Any
Results = Any  # the values of an op's results
Flags = Sequence[bool]
Rule = Callable[[Builder, Op, Sequence[Value], Flags, Dim], Results]


# ---- vocabulary ---------------------------------------------------------------------------------------------------------


def spread(b: Builder, x: Value, size: Dim) -> Any:
    """`x` repeated along a new batch axis."""
    return b.broadcast(x, shape=(size, *x.shape), axes=tuple(range(1, len(x.shape) + 1)))


def whole(b: Builder, x: Value, flag: bool, size: Dim) -> Value:
    """`x` with a batch axis, whether it has one or not."""
    return x if flag else spread(b, x, size)


def moved(b: Builder, x: Value, source: int, target: int) -> Any:
    """`x` with one axis at another place, the others in order."""
    if source == target:
        return x
    perm = [k for k in range(len(x.shape)) if k != source]
    perm.insert(target, source)
    return b.transpose(x, perm=tuple(perm))


def aligned(b: Builder, x: Value, rank: int) -> Any:
    """A batched `x` of elements of at most `rank` axes with 1s after the batch axis, so that its elements have `rank`."""
    gap = rank + 1 - len(x.shape)
    return b.reshape(x, shape=(x.shape[0], *[1] * gap, *x.shape[1:])) if gap > 0 else x


def lanes(b: Builder, size: Dim, rank: int = 0) -> Any:
    """The number of each lane, i64[size] with `rank` 1s after it."""
    return aligned(b, b.iota(shape=(size,), axis=0, dtype="i64"), rank)


def one_by_one(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """The op for one lane after the other: a scan. Right for every op, regions and calls included."""
    fixed = [i for i, f in enumerate(flags) if not f]
    sliced = [i for i, f in enumerate(flags) if f]

    def body(k: Builder, *args: Value) -> Results:
        given = dict(zip([*fixed, *sliced], args, strict=True))
        return k.clone(op, [given[i] for i in range(len(xs))])

    operands = [xs[i] for i in (*fixed, *sliced)]
    block = b.block([op.operands[i].type for i in (*fixed, *sliced)], body)
    return b.emit("scan", *operands, blocks=[block], carry=0, consts=len(fixed), length=size, loc=op.loc)


def _ranks(op: Op) -> int:
    return max((len(v.shape) for v in op.operands), default=0)


# ---- ops that see the batch as one more axis --------------------------------------------------------------------------------


def elementwise(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """Any elementwise op: the same, operands of fewer axes get 1s behind the batch axis."""
    rank = _ranks(op)
    return b.clone(op, [aligned(b, x, rank) if f else x for x, f in zip(xs, flags, strict=True)])


def unchanged(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """The same op: it says nothing about axes, or counts them from the end."""
    return b.clone(op, xs)


def along_axis(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    axis = normal_axis(op.name, op.attrs["axis"], len(op.operands[0].shape))
    return b.clone(op, xs, axis=axis + 1)


def along_axes(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    axes = normal_axes(op.name, op.attrs["axes"], len(op.operands[0].shape))
    return b.clone(op, xs, axes=tuple(k + 1 for k in axes))


def _reshape(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    return b.clone(op, xs, shape=(size, *op.attrs["shape"]))


def _transpose(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    return b.clone(op, xs, perm=(0, *[k + 1 for k in op.attrs["perm"]]))


def _broadcast(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    axes = broadcast_axes(op.attrs, len(op.operands[0].shape))
    return b.clone(op, xs, shape=(size, *op.attrs["shape"]), axes=(0, *[k + 1 for k in axes]))


def _slice(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    a = op.attrs
    stride = None if a["stride"] is None else (1, *a["stride"])
    return b.clone(op, xs, start=(0, *a["start"]), limit=(size, *a["limit"]), stride=stride)


def _pad(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """With a fill of its own for each lane: padded with anything, then the fill put where the operand is not."""
    a = op.attrs
    x, fill = whole(b, xs[0], flags[0], size), xs[1]
    attrs = {
        "low": (0, *a["low"]),
        "high": (0, *a["high"]),
        "interior": None if a["interior"] is None else (0, *a["interior"]),
    }
    if not flags[1]:
        return b.clone(op, [x, fill], **attrs)
    padded = b.clone(op, [x, b.const(0, dtype=x.dtype)], **attrs)[0]
    shape = op.operands[0].shape
    inside = b.broadcast(b.const(True, dtype="bool"), shape=shape)
    inside = b.pad(inside, b.const(False, dtype="bool"), **a)
    return [b.select(inside, padded, aligned(b, fill, len(shape)))]


def _concat(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    return along_axis(b, op, [whole(b, x, f, size) for x, f in zip(xs, flags, strict=True)], flags, size)


def _window(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    a = op.attrs
    more = {k: (1, *a[k]) for k in ("window", "strides", "dilation")}
    return b.clone(op, xs, padding=(0, 0, *a["padding"]), **more)


# ---- contractions -----------------------------------------------------------------------------------------------------------


def _dot(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """A batch axis of the dot; where one side has no batch, a free axis of the other, so that it stays one product."""
    x, y = op.operands
    lb, lf, lc, rb, rf, rc = dot_axes(x, y, op.attrs)
    left, right = (int(f) for f in flags)
    if right and not left and not rf:  # the other way round the batch comes out in front
        xs, left, right = (xs[1], xs[0]), 1, 0
        lb, lc, rb, rc = rb, rc, lb, lc
    axes = {
        "lhs_contract": tuple(k + left for k in lc),
        "rhs_contract": tuple(k + right for k in rc),
        "lhs_batch": tuple(k + left for k in lb),
        "rhs_batch": tuple(k + right for k in rb),
    }
    if left and right:
        axes["lhs_batch"], axes["rhs_batch"] = (0, *axes["lhs_batch"]), (0, *axes["rhs_batch"])
    out = b.clone(op, xs, **axes)[0]
    if left and right:
        return [out]
    return [moved(b, out, len(lb) if left else len(lb) + len(lf), 0)]


def _conv(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """The batch joins the convolution's own; with a weight for each lane it joins the output channels (one input for all) or
    the groups."""
    x, w = xs
    n, channels, *space = op.operands[0].shape
    out, per_group, *window = op.operands[1].shape
    places = op.result.shape[2:]
    groups = op.attrs["groups"]
    if not flags[1]:
        r = b.clone(op, [b.reshape(x, shape=(size * n, channels, *space)), w])[0]
        return [b.reshape(r, shape=(size, n, out, *places))]
    if not flags[0]:
        w = b.reshape(w, shape=(size, groups, out // groups, per_group, *window))
        w = b.reshape(moved(b, w, 0, 1), shape=(size * out, per_group, *window))
        r = b.reshape(b.clone(op, [x, w])[0], shape=(n, groups, size, out // groups, *places))
        return [b.reshape(moved(b, r, 2, 0), shape=(size, n, out, *places))]
    if not isinstance(size, int):  # the number of groups is part of the program
        return one_by_one(b, op, xs, flags, size)
    x = b.reshape(moved(b, x, 0, 1), shape=(n, size * channels, *space))
    w = b.reshape(w, shape=(size * out, per_group, *window))
    r = b.clone(op, [x, w], groups=size * groups)[0]
    return [moved(b, b.reshape(r, shape=(n, size, out, *places)), 1, 0)]


def _attention(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """One more batch axis. Keys and values that all lanes share broadcast along it, except where their cotangents are asked
    for; masks broadcast from the right."""
    rank = len(op.operands[0].shape)
    masks = 3 if op.name == "attention" else 6
    made = []
    for i, (x, f) in enumerate(zip(xs, flags, strict=True)):
        if i >= masks:
            made.append(aligned(b, x, rank) if f else x)
        elif not f and op.name == "attention" and i > 0:
            made.append(b.reshape(x, shape=(1, *x.shape)))
        else:
            made.append(whole(b, x, f, size))
    return b.clone(op, made)


# ---- random bits --------------------------------------------------------------------------------------------------------------


def _random_bits(b: Builder, op: Op, xs: Sequence[Value], flags: Flags, size: Dim) -> Results:
    """The generator written out on whole tensors: each lane has its own key, and the bits that it would have alone."""
    (keys,) = xs
    shape = op.attrs["shape"]
    count = op.result.type.size  # type: ignore[union-attr]
    if not isinstance(count, int):
        return one_by_one(b, op, xs, flags, size)
    blocks = (count + 3) // 4
    number = b.iota(shape=(1, blocks), axis=1, dtype="i64")
    key = [b.slice(keys, start=(0, i), limit=(size, i + 1)) for i in range(2)]
    words = [b.broadcast(w, shape=(size, blocks)) for w in philox_words(b, number, key)]
    words = [b.reshape(w, shape=(size, blocks, 1)) for w in words]
    flat = b.reshape(b.concat(*words, axis=2), shape=(size, blocks * 4))
    if blocks * 4 != count:
        flat = b.slice(flat, start=(0, 0), limit=(size, count))
    return [b.reshape(flat, shape=(size, *shape))]


# ---- registration -------------------------------------------------------------------------------------------------------------

_AXES = "sum prod max min any all mean var logsumexp".split()
_AXIS = "argmax argmin cumsum cumprod cummax cummin sort argsort softmax logsoftmax".split()
_SAME = (
    "stop_gradient topk relu relu6 leaky_relu elu selu softplus softsign hard_sigmoid hard_swish mish silu gelu"
).split()
_OWN: dict[str, Rule] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "reverse": along_axes,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
    "reduce_window": _window,
    "dot": _dot,
    "conv": _conv,
    "attention": _attention,
    "attention_grad": _attention,
    "random_bits": _random_bits,
}


def _register() -> None:
    shared: list[tuple[list[str], Rule]] = [(_AXES, along_axes), (_AXIS, along_axis), (_SAME, unchanged)]
    for names, rule in shared:
        for name in names:
            set_batch(name, rule)
    for name, rule in _OWN.items():
        set_batch(name, rule)


_register()

__all__ = ["aligned", "elementwise", "lanes", "moved", "one_by_one", "spread", "whole"]
