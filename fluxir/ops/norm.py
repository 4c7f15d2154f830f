"""Mean, variance (two passes) and the normalisations: layer, rms, batch, group. Composites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, facts, floordiv, product, require_equal
from fluxir.ir.dtypes import DType
from fluxir.ir.opdef import sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops.composite import (
    REDUCE_ATTRS,
    REDUCE_SAMPLES,
    Builder,
    composite,
    float_operand,
    reduced,
    wide,
)
from fluxir.ops.nest import cast
from fluxir.ops.rules import normal_axes, normal_axis

# ---- mean and variance -----------------------------------------------------------------------------------------------


def _count(b: Builder, x: Value, axes: Sequence[int], dtype: DType) -> Any:
    """The number of elements along `axes` as a scalar of `dtype`."""
    n = product(x.type.shape[i] for i in normal_axes("mean", axes, len(x.type.shape)))
    return b.const(float(n), dtype=dtype) if isinstance(n, int) else b.cast(b.dim(value=n), dtype=dtype)


def _mean_of(b: Builder, w: Value, axes: Sequence[int], keepdims: bool = True) -> Any:
    return b.div(b.sum(w, axes=axes, keepdims=keepdims), _count(b, w, axes, w.type.dtype))


def _mean(b: Builder, o: Op) -> Any:
    (x,) = o.operands
    return cast(b, _mean_of(b, wide(b, x), o.attrs.axes, o.attrs.keepdims), x.type.dtype)


def _var_of(
    b: Builder, w: Value, axes: Sequence[int], keepdims: bool = True, correction: float = 0.0
) -> tuple[Any, Any]:
    """(the variance, w minus its mean)."""
    d = b.sub(w, _mean_of(b, w, axes))
    n = _count(b, w, axes, w.type.dtype)
    if correction:
        n = b.maximum(b.sub(n, correction), 0.0)
    return b.div(b.sum(b.mul(d, d), axes=axes, keepdims=keepdims), n), d


def _var(b: Builder, o: Op) -> Any:
    (x,) = o.operands
    a = o.attrs
    return cast(b, _var_of(b, wide(b, x), a.axes, a.keepdims, a.correction)[0], x.type.dtype)


def _mean_ref(a: Attrs, x: Any) -> Any:
    x = np.asarray(x)
    n = np.float64(math.prod(x.shape[i] for i in a.axes))
    return np.asarray(x.astype(np.float64).sum(axis=a.axes, keepdims=a.keepdims) / n).astype(x.dtype)


def _var_ref(a: Attrs, x: Any) -> Any:
    x = np.asarray(x)
    w = x.astype(np.float64)
    d = w - np.mean(w, axis=a.axes, keepdims=True)
    n = math.prod(w.shape[i] for i in a.axes)
    return np.asarray((d * d).sum(axis=a.axes, keepdims=a.keepdims) / np.float64(max(n - a.correction, 0))).astype(
        x.dtype
    )


composite(
    "mean",
    reduced("mean"),
    _mean,
    _mean_ref,
    attrs=REDUCE_ATTRS,
    samples=(*REDUCE_SAMPLES, sample("f32[0,3]", axes=(0,))),
    doc="The mean over `axes`; of nothing: NaN.",
)
composite(
    "var",
    reduced("var"),
    _var,
    _var_ref,
    attrs={**REDUCE_ATTRS, "correction": ("float", 0.0)},
    samples=(
        *REDUCE_SAMPLES,
        sample("f32[3,5]", axes=(1,), correction=1.0),
        sample("f32[2,40]", axes=(1,), low=1000, high=1001, rtol=1e-3),
    ),
    doc="The variance over `axes`, in two passes, divided by n - correction.",
)

# ---- normalisation ---------------------------------------------------------------------------------------------------


def _require_shape(name: str, what: str, t: TensorType, x: TensorType, shape: Sequence[Dim]) -> None:
    if t.dtype != x.dtype:
        raise error("FX0201", f"{name}: {what} is {t}, x is {x}", help="cast one of them")
    if len(t.shape) != len(shape) or not all(require_equal(d, e) for d, e in zip(t.shape, shape, strict=True)):
        wanted = TensorType(x.dtype, tuple(shape))
        raise error(
            "FX0202",
            f"{name}: {what} must be {wanted} for x: {x}, not {t}",
            help="it has one value for each place it scales",
        )


def _sorted_axes(name: str, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    out = normal_axes(name, axes, rank)
    if list(out) != sorted(out):
        raise error("FX0221", f"{name}: axes must be in increasing order, not {tuple(axes)}")
    return out


def _placed(b: Builder, v: Value, shape: Sequence[Dim], axes: Sequence[int]) -> Any:
    """`v` (one axis for each of `axes`) ready to broadcast against `shape`, in wide form."""
    v = wide(b, v)
    if list(axes) == list(range(len(shape) - len(axes), len(shape))):
        return v
    return b.broadcast(v, shape=shape, axes=axes)


def _np_placed(v: Any, rank: int, axes: Sequence[int]) -> Any:
    shape = [1] * rank
    for i, n in zip(axes, np.shape(v), strict=True):
        shape[i] = n
    return np.asarray(v).astype(np.float64).reshape(shape)


def _layer_norm_type(name: str, extra: Sequence[str]) -> Any:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        x = float_operand(name, t, 1 + len(extra))
        axes = _sorted_axes(name, a.axes, x.rank)
        for what, other in zip(extra, t[1:], strict=True):
            _require_shape(name, what, other, x, [x.shape[i] for i in axes])  # type: ignore[arg-type]
        return [x]

    return infer


def _layer_norm(b: Builder, o: Op) -> Any:
    x, scale, bias = o.operands
    shape = x.type.shape
    axes = normal_axes("layer_norm", o.attrs.axes, len(shape))
    variance, d = _var_of(b, wide(b, x), axes)
    y = b.mul(d, b.rsqrt(b.add(variance, o.attrs.eps)))
    return cast(b, b.add(b.mul(y, _placed(b, scale, shape, axes)), _placed(b, bias, shape, axes)), x.type.dtype)


def _layer_norm_ref(a: Attrs, x: Any, scale: Any, bias: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    axes = normal_axes("layer_norm", a.axes, w.ndim)
    d = w - w.mean(axis=axes, keepdims=True)
    y = d / np.sqrt((d * d).mean(axis=axes, keepdims=True) + a.eps)
    return (y * _np_placed(scale, w.ndim, axes) + _np_placed(bias, w.ndim, axes)).astype(np.asarray(x).dtype)


def _rms_norm(b: Builder, o: Op) -> Any:
    x, scale = o.operands
    shape = x.type.shape
    axes = normal_axes("rms_norm", o.attrs.axes, len(shape))
    w = wide(b, x)
    y = b.mul(w, b.rsqrt(b.add(_mean_of(b, b.mul(w, w), axes), o.attrs.eps)))
    return cast(b, b.mul(y, _placed(b, scale, shape, axes)), x.type.dtype)


def _rms_norm_ref(a: Attrs, x: Any, scale: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    axes = normal_axes("rms_norm", a.axes, w.ndim)
    y = w / np.sqrt((w * w).mean(axis=axes, keepdims=True) + a.eps)
    return (y * _np_placed(scale, w.ndim, axes)).astype(np.asarray(x).dtype)


_NORM_ATTRS = {"axes": "ints", "eps": ("float", 1e-5)}
composite(
    "layer_norm",
    _layer_norm_type("layer_norm", ("scale", "bias")),
    _layer_norm,
    _layer_norm_ref,
    attrs=_NORM_ATTRS,
    samples=(
        sample("f32[3,8]", "f32[8]", "f32[8]", axes=(-1,)),
        sample("f32[2,3,4]", "f32[3,4]", "f32[3,4]", axes=(1, 2)),
        sample("f64[4,3]", "f64[4]", "f64[4]", axes=(0,)),
        sample("f16[2,8]", "f16[8]", "f16[8]", axes=(1,)),
        sample("bf16[2,8]", "bf16[8]", "bf16[8]", axes=(1,), eps=1e-3),
        sample("f32[0,4]", "f32[4]", "f32[4]", axes=(1,)),
    ),
    doc="(x - mean) / sqrt(var + eps) * scale + bias over `axes`; scale and bias have the shape of those axes.",
)
composite(
    "rms_norm",
    _layer_norm_type("rms_norm", ("scale",)),
    _rms_norm,
    _rms_norm_ref,
    attrs=_NORM_ATTRS,
    samples=(
        sample("f32[3,8]", "f32[8]", axes=(-1,)),
        sample("f64[2,3,4]", "f64[2,4]", axes=(0, 2)),
        sample("f16[2,8]", "f16[8]", axes=(1,)),
        sample("bf16[2,8]", "bf16[8]", axes=(1,)),
        sample("f32[0,4]", "f32[4]", axes=(1,)),
    ),
    doc="x / sqrt(mean(x * x) + eps) * scale over `axes`.",
)


def _batch_norm_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x = float_operand("batch_norm", t, 5)
    axis = normal_axis("batch_norm", a.axis, x.rank)
    for what, other in zip(("scale", "bias", "mean", "var"), t[1:], strict=True):
        _require_shape("batch_norm", what, other, x, [x.shape[axis]])  # type: ignore[arg-type]
    return [x]


def _batch_norm(b: Builder, o: Op) -> Any:
    """The factor is computed once for each channel; what is left for each element is a subtraction and a fused one."""
    x, scale, bias, mean, var = o.operands
    shape = x.type.shape
    axes = (normal_axis("batch_norm", o.attrs.axis, len(shape)),)
    factor = b.mul(wide(b, scale), b.rsqrt(b.add(wide(b, var), o.attrs.eps)))
    d = b.sub(wide(b, x), _placed(b, mean, shape, axes))
    return cast(b, b.add(b.mul(d, _placed(b, factor, shape, axes)), _placed(b, bias, shape, axes)), x.type.dtype)


def _batch_norm_ref(a: Attrs, x: Any, *rest: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    axes = (normal_axis("batch_norm", a.axis, w.ndim),)
    scale, bias, mean, var = (_np_placed(v, w.ndim, axes) for v in rest)
    return ((w - mean) / np.sqrt(var + a.eps) * scale + bias).astype(np.asarray(x).dtype)


def _batch_sample(x: str, c: str, **attrs: Any) -> Any:
    def make(rng: Any) -> list[Any]:
        from fluxir.ir.types import tensor

        t, v = tensor(x), tensor(c)
        draw = [
            rng.uniform(-2, 2, t.shape),
            *[rng.uniform(-2, 2, v.shape) for _ in range(3)],
            rng.uniform(0.5, 2, v.shape),
        ]
        return [np.asarray(d).astype(t.dtype.numpy) for d in draw]

    return sample(x, c, c, c, c, make=make, **attrs)


composite(
    "batch_norm",
    _batch_norm_type,
    _batch_norm,
    _batch_norm_ref,
    attrs={"axis": ("int", 1), "eps": ("float", 1e-5)},
    samples=(
        _batch_sample("f32[2,3,4,4]", "f32[3]"),
        _batch_sample("f64[5,2]", "f64[2]", axis=-1),
        _batch_sample("f16[2,3]", "f16[3]"),
        _batch_sample("bf16[2,3]", "bf16[3]"),
        _batch_sample("f32[0,3]", "f32[3]"),
    ),
    doc="(x - mean) / sqrt(var + eps) * scale + bias with given mean and var for each channel along `axis`: batch "
    "normalisation at inference.",
)


def _group_norm_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x = float_operand("group_norm", t, 3)
    if x.rank < 2:
        raise error("FX0220", f"group_norm: x has the axes batch, channels, space..., not {x}")
    if a.groups < 1 or not facts().divides(a.groups, x.shape[1]):
        raise error("FX0221", f"group_norm: {a.groups} groups do not divide the {x.shape[1]} channels of {x}")
    for what, other in zip(("scale", "bias"), t[1:], strict=True):
        _require_shape("group_norm", what, other, x, [x.shape[1]])  # type: ignore[arg-type]
    return [x]


def _group_norm(b: Builder, o: Op) -> Any:
    x, scale, bias = o.operands
    n, c, *space = x.type.shape
    g = o.attrs.groups
    per_group = floordiv(c, g)
    # Scale and bias are laid out like the groups: all of it is then one pass over rows, without a reshape in between.
    shape = (n, g, per_group, product(space))
    w = b.reshape(wide(b, x), shape=shape)
    variance, d = _var_of(b, w, (2, 3))
    y = b.mul(d, b.rsqrt(b.add(variance, o.attrs.eps)))
    s, c0 = (b.broadcast(b.reshape(wide(b, v), shape=(g, per_group)), shape=shape, axes=(1, 2)) for v in (scale, bias))
    return b.reshape(cast(b, b.add(b.mul(y, s), c0), x.type.dtype), shape=x.type.shape)


def _group_norm_ref(a: Attrs, x: Any, scale: Any, bias: Any) -> Any:
    x = np.asarray(x)
    w = x.astype(np.float64).reshape(x.shape[0], a.groups, math.prod(x.shape[1:]) // a.groups)
    d = w - w.mean(axis=2, keepdims=True)
    y = (d / np.sqrt((d * d).mean(axis=2, keepdims=True) + a.eps)).reshape(x.shape)
    return (y * _np_placed(scale, x.ndim, (1,)) + _np_placed(bias, x.ndim, (1,))).astype(x.dtype)


composite(
    "group_norm",
    _group_norm_type,
    _group_norm,
    _group_norm_ref,
    attrs={"groups": "int", "eps": ("float", 1e-5)},
    samples=(
        sample("f32[2,4,3,3]", "f32[4]", "f32[4]", groups=2),
        sample("f64[2,6]", "f64[6]", "f64[6]", groups=3),
        sample("f16[2,4,2]", "f16[4]", "f16[4]", groups=1),
        sample("bf16[2,4,2]", "bf16[4]", "bf16[4]", groups=2),
        sample("f32[0,4,2]", "f32[4]", "f32[4]", groups=2),
    ),
    doc="layer_norm over each of `groups` groups of channels (axis 1) and all of space; scale and bias for each channel.",
)
