"""Softmax and what is made of it: log-softmax, log-sum-exp, cross entropy.

All subtract the largest element first, so that nothing overflows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.dims import require_equal
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import sample
from fluxir.ir.types import Type
from fluxir.ops import adjoint_nn
from fluxir.ops.composite import (
    INF,
    REDUCE_ATTRS,
    REDUCE_SAMPLES,
    Builder,
    composite,
    float_operand,
    np_max,
    reduced,
    select,
    shifted,
    wide,
)
from fluxir.ops.nest import cast
from fluxir.ops.rules import check_dtype, normal_axes, normal_axis, tensor_operands

# ---- softmax and its kin ---------------------------------------------------------------------------------------------


def _along(name: str) -> Any:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        x = float_operand(name, t)
        normal_axis(name, a.axis, x.rank)
        return [x]

    return infer


def _softmax(b: Builder, o: Op) -> Any:
    (x,) = o.operands
    e = b.exp(shifted(b, wide(b, x), o.attrs.axis))
    return cast(b, b.div(e, b.sum(e, axes=(o.attrs.axis,), keepdims=True)), x.type.dtype)


def _logsoftmax(b: Builder, o: Op) -> Any:
    (x,) = o.operands
    d = shifted(b, wide(b, x), o.attrs.axis)
    return cast(b, b.sub(d, b.log(b.sum(b.exp(d), axes=(o.attrs.axis,), keepdims=True))), x.type.dtype)


def _softmax_ref(a: Attrs, x: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    e = np.exp(w - np_max(w, a.axis))
    return (e / e.sum(axis=a.axis, keepdims=True)).astype(np.asarray(x).dtype)


def _logsoftmax_ref(a: Attrs, x: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    d = w - np_max(w, a.axis)
    return (d - np.log(np.exp(d).sum(axis=a.axis, keepdims=True))).astype(np.asarray(x).dtype)


_SOFTMAX_SAMPLES = (
    sample("f32[3,5]", axis=-1),
    sample("f32[4,3,2]", axis=1, low=-90, high=90),
    sample("f64[6]", axis=0),
    sample("f16[2,5]", axis=1),
    sample("bf16[2,5]", axis=1),
    sample("f32[0,3]", axis=1),
    sample("f32[2,4]", axis=1, make=lambda rng: [np.array([[0, -INF, 300, 301], [5, 5, 5, -INF]], np.float32)]),
)
composite(
    "softmax",
    _along("softmax"),
    _softmax,
    _softmax_ref,
    attrs={"axis": "int"},
    samples=_SOFTMAX_SAMPLES,
    vjp=adjoint_nn.softmax_vjp,
    jvp=adjoint_nn.softmax_vjp,
    doc="exp(x) / sum(exp(x)) along `axis`, without overflow. A row of -inf only gives NaN.",
)
composite(
    "logsoftmax",
    _along("logsoftmax"),
    _logsoftmax,
    _logsoftmax_ref,
    attrs={"axis": "int"},
    samples=_SOFTMAX_SAMPLES,
    vjp=adjoint_nn.logsoftmax_vjp,
    jvp=adjoint_nn.logsoftmax_jvp,
    doc="log(softmax(x)), accurate where softmax is tiny.",
)


def _logsumexp(b: Builder, o: Op) -> Any:
    (x,) = o.operands
    axes, w = o.attrs.axes, wide(b, x)
    top = b.max(w, axes=axes, keepdims=True)
    base = select(b, b.isfinite(top), top, 0.0)  # -inf - -inf would be NaN
    total = b.add(b.log(b.sum(b.exp(b.sub(w, base)), axes=axes, keepdims=True)), base)
    out = cast(b, total, x.type.dtype)
    return out if o.attrs.keepdims else b.reshape(out, shape=o.result.type.shape)


def _logsumexp_ref(a: Attrs, x: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    top = np_max(w, a.axes)
    base = np.where(np.isfinite(top), top, 0.0)
    out = np.log(np.exp(w - base).sum(axis=a.axes, keepdims=True)) + base
    return (
        out
        if a.keepdims
        else out.reshape([d for i, d in enumerate(w.shape) if i not in normal_axes("", a.axes, w.ndim)])
    ).astype(np.asarray(x).dtype)


composite(
    "logsumexp",
    reduced("logsumexp"),
    _logsumexp,
    _logsumexp_ref,
    attrs=REDUCE_ATTRS,
    samples=(
        *REDUCE_SAMPLES,
        sample("f32[3,2]", axes=(1,), make=lambda rng: [np.array([[-INF, -INF], [INF, 0], [800, 800]], np.float32)]),
    ),
    vjp=adjoint_nn.logsumexp_vjp,
    jvp=adjoint_nn.logsumexp_jvp,
    doc="log(sum(exp(x))) over `axes`, without overflow; of -inf only: -inf.",
)

# ---- cross entropy ---------------------------------------------------------------------------------------------------


def _cross_entropy_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, labels = tensor_operands("cross_entropy", t, 2)
    check_dtype("cross_entropy", x.dtype, "float")
    if not labels.dtype.is_integer:
        raise error("FX0214", f"cross_entropy: the labels must be integers, not {labels}")
    axis = normal_axis("cross_entropy", a.axis, x.rank)
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    if len(rest) != labels.rank or not all(require_equal(d, e) for d, e in zip(rest, labels.shape, strict=True)):
        raise error(
            "FX0202",
            f"cross_entropy: the labels {labels} must have the shape [{','.join(map(str, rest))}] of the logits {x} "
            f"without axis {axis}",
        )
    return [x.with_shape(rest)]


def _cross_entropy(b: Builder, o: Op) -> Any:
    """The label's logit is picked by a select under the sum, which fuses with the row's other reductions."""
    x, labels = o.operands
    shape = x.type.shape
    axis = normal_axis("cross_entropy", o.attrs.axis, len(shape))
    d = shifted(b, wide(b, x), axis)
    last = b.dim(value=shape[axis] - 1) if not isinstance(shape[axis], int) else b.const(shape[axis] - 1, dtype="i64")
    wanted = b.clamp(cast(b, labels, DTYPES["i64"]), b.const(0, dtype="i64"), last)
    wanted = b.broadcast(wanted, shape=shape, axes=tuple(i for i in range(len(shape)) if i != axis))
    hit = b.eq(b.iota(shape=shape, axis=axis, dtype="i64"), wanted)
    picked = b.sum(select(b, hit, d, 0.0), axes=(axis,))
    return cast(b, b.sub(b.log(b.sum(b.exp(d), axes=(axis,))), picked), x.type.dtype)


def _cross_entropy_ref(a: Attrs, x: Any, labels: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    d = w - np_max(w, a.axis)
    at = np.expand_dims(np.clip(labels, 0, w.shape[a.axis] - 1).astype(np.int64), a.axis)
    picked = np.take_along_axis(d, at, a.axis).squeeze(a.axis)
    return (np.log(np.exp(d).sum(axis=a.axis)) - picked).astype(np.asarray(x).dtype)


composite(
    "cross_entropy",
    _cross_entropy_type,
    _cross_entropy,
    _cross_entropy_ref,
    attrs={"axis": ("int", -1)},
    samples=(
        sample("f32[4,5]", "i32[4]", low=0, high=4),
        sample("f64[2,3,4]", "i64[2,4]", axis=1, low=-1, high=5),
        sample("f16[3,4]", "u8[3]", low=0, high=4),
        sample("bf16[3,4]", "i32[3]", low=0, high=4),
        sample("f32[6]", "i32", low=0, high=6),
        sample("f32[0,4]", "i32[0]", low=0, high=3),
    ),
    doc="-log(softmax(logits)[label]) for each example; labels out of range are clamped.",
)
