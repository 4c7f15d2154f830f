"""Composites: what networks are made of, each expanded into primitives that fuse, with a numpy meaning beside it.

Numerics: f16 and bf16 operands are computed in f32 and the result rounded once (the two products of `attention` take
their operands in the given type, so that tensor cores can do them). Softmax and its kin subtract the largest element;
`var` takes two passes. An expansion writes no branch and no shape that depends on values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, facts, floordiv, product, require_equal
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops import meaning
from fluxir.ops.nest import accumulator, cast
from fluxir.ops.rules import broadcast_shapes, check_dtype, normal_axes, normal_axis, tensor_operands

Builder = Any
INF = float("inf")


def _declare(name: str, infer: Any, expand: Any, ref: Any, **kw: Any) -> None:
    op(name, infer, expand=expand, ref=ref, category="composite", **kw)


def _wide(b: Builder, x: Value) -> Value:
    """f16 and bf16 as f32."""
    return cast(b, x, accumulator(x.type.dtype))


def _select(b: Builder, c: Value, x: Value | float, y: Value | float) -> Value:
    """`b.select`, where a number takes the type of the other branch."""
    like = x if isinstance(x, Value) else y
    return b.select(c, *[v if isinstance(v, Value) else b.const(v, like=TensorType(like.type.dtype)) for v in (x, y)])  # type: ignore[no-any-return,union-attr]


def _wide_array(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(np.float32) if meaning.is_half(x) else x


def _float_operand(name: str, t: Sequence[Type], count: int = 1) -> TensorType:
    x = tensor_operands(name, t, count)[0]
    check_dtype(name, x.dtype, "float")
    return x


# ---- activations -----------------------------------------------------------------------------------------------------


def _activation(
    name: str,
    expand: Callable[..., Value],
    ref: Callable[..., Any],
    doc: str,
    attrs: dict[str, Any] | None = None,
    **samples: Any,
) -> None:
    """A function of one float: `expand(b, x, **attributes)` and `ref(x, **attributes)`, both in f32 for halves."""

    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        return [_float_operand(name, t)]

    def expansion(b: Builder, o: Op) -> Value:
        (x,) = o.operands
        return cast(b, expand(b, _wide(b, x), **o.attrs), x.type.dtype)

    def in_float(a: Attrs, x: Any) -> Any:
        return np.asarray(ref(_wide_array(x), **a)).astype(np.asarray(x).dtype)

    given = [sample(t, low=-4, high=4) for t in ("f32[3,4]", "f64[5]", "f16[5]", "bf16[5]", "f32", "f32[0,3]")]
    given.append(sample("f32[8]", make=lambda rng: [np.array([0, -0.0, 30, -30, 200, -200, INF, 1e-6], np.float32)]))
    given += [sample("f32[7]", low=-3, high=3, **{key: v}) for key, v in samples.items()]
    _declare(name, infer, expansion, in_float, attrs=attrs, samples=given, doc=doc)


def _softplus(b: Builder, x: Value) -> Value:
    return b.add(b.maximum(x, 0.0), b.log1p(b.exp(b.neg(b.abs(x)))))  # type: ignore[no-any-return]


def _np_softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(b: Builder, x: Value, alpha: float) -> Value:
    return _select(b, b.gt(x, 0.0), x, b.mul(b.expm1(b.minimum(x, 0.0)), alpha))  # type: ignore[no-any-return]


def _np_elu(x: Any, alpha: float) -> Any:
    return np.where(x > 0, x, np.asarray(alpha, x.dtype) * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(b: Builder, x: Value) -> Value:
    return b.div(b.clamp(b.add(x, 3.0), 0.0, 6.0), 6.0)  # type: ignore[no-any-return]


def _np_hard_sigmoid(x: Any) -> Any:
    return np.clip(x + 3, 0, 6) / np.asarray(6, x.dtype)


def _gelu(b: Builder, x: Value, approximate: bool) -> Value:
    if approximate:  # x/2 (1 + tanh u) is x sigmoid(2u), which keeps its accuracy for negative x
        cube = b.mul(b.mul(x, x), x)
        u = b.mul(b.add(x, b.mul(cube, 0.044715)), 2.0 * math.sqrt(2.0 / math.pi))
        return _select(b, b.eq(x, -INF), 0.0, b.mul(x, b.sigmoid(u)))  # type: ignore[no-any-return]
    return b.mul(b.mul(x, 0.5), b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1.0))  # type: ignore[no-any-return]


def _np_gelu(x: Any, approximate: bool) -> Any:
    w = x.astype(np.float64)
    if approximate:
        return np.where(
            np.isinf(w) & (w < 0), 0, 0.5 * w * (1 + np.tanh(math.sqrt(2 / math.pi) * (w + 0.044715 * w**3)))
        ).astype(x.dtype)
    return (0.5 * w * (1 + meaning.erf(w * math.sqrt(0.5)))).astype(x.dtype)


SELU_ALPHA, SELU_SCALE = (
    1.6732632423543772,
    1.0507009873554805,
)  # Klambauer et al., "Self-normalizing neural networks", 2017

_activation("relu", lambda b, x: b.maximum(x, 0.0), lambda x: np.maximum(x, 0), "max(x, 0).")
_activation("relu6", lambda b, x: b.clamp(x, 0.0, 6.0), lambda x: np.clip(x, 0, 6), "min(max(x, 0), 6).")
_activation(
    "leaky_relu",
    lambda b, x, slope: _select(b, b.ge(x, 0.0), x, b.mul(x, slope)),
    lambda x, slope: np.where(x >= 0, x, x * np.asarray(slope, x.dtype)),
    "x where x >= 0, else slope * x.",
    {"slope": ("float", 0.01)},
    slope=0.25,
)
_activation("elu", _elu, _np_elu, "x where x > 0, else alpha * (e ** x - 1).", {"alpha": ("float", 1.0)}, alpha=0.5)
_activation(
    "selu",
    lambda b, x: b.mul(_elu(b, x, SELU_ALPHA), SELU_SCALE),
    lambda x: np.asarray(SELU_SCALE, x.dtype) * _np_elu(x, SELU_ALPHA),
    "The self-normalising elu.",
)
_activation("softplus", _softplus, _np_softplus, "log(1 + e ** x), without overflow.")
_activation("softsign", lambda b, x: b.div(x, b.add(b.abs(x), 1.0)), lambda x: x / (1 + np.abs(x)), "x / (1 + |x|).")
_activation("hard_sigmoid", _hard_sigmoid, _np_hard_sigmoid, "min(max(x + 3, 0), 6) / 6.")
_activation(
    "hard_swish", lambda b, x: b.mul(x, _hard_sigmoid(b, x)), lambda x: x * _np_hard_sigmoid(x), "x * hard_sigmoid(x)."
)
_activation(
    "mish",
    lambda b, x: b.mul(x, b.tanh(_softplus(b, x))),
    lambda x: x * np.tanh(_np_softplus(x)),
    "x * tanh(softplus(x)).",
)
_activation(
    "silu", lambda b, x: b.mul(x, b.sigmoid(x)), lambda x: x * meaning.sigmoid(x), "x * sigmoid(x), also called swish."
)
_activation(
    "gelu",
    _gelu,
    _np_gelu,
    "x times the normal distribution function of x; `approximate` takes its tanh form.",
    {"approximate": ("bool", False)},
    approximate=True,
)

# ---- softmax and its kin ---------------------------------------------------------------------------------------------


def _along(name: str) -> Any:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        x = _float_operand(name, t)
        normal_axis(name, a.axis, x.rank)
        return [x]

    return infer


def _shifted(b: Builder, x: Value, axis: int) -> Value:
    return b.sub(x, b.max(x, axes=(axis,), keepdims=True))  # type: ignore[no-any-return]


def _softmax(b: Builder, o: Op) -> Value:
    (x,) = o.operands
    e = b.exp(_shifted(b, _wide(b, x), o.attrs.axis))
    return cast(b, b.div(e, b.sum(e, axes=(o.attrs.axis,), keepdims=True)), x.type.dtype)


def _logsoftmax(b: Builder, o: Op) -> Value:
    (x,) = o.operands
    d = _shifted(b, _wide(b, x), o.attrs.axis)
    return cast(b, b.sub(d, b.log(b.sum(b.exp(d), axes=(o.attrs.axis,), keepdims=True))), x.type.dtype)


def _np_max(x: Any, axes: Any, keepdims: bool = True) -> Any:
    return np.max(x, axis=axes, keepdims=keepdims, initial=-np.inf).astype(x.dtype)


def _softmax_ref(a: Attrs, x: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    e = np.exp(w - _np_max(w, a.axis))
    return (e / e.sum(axis=a.axis, keepdims=True)).astype(np.asarray(x).dtype)


def _logsoftmax_ref(a: Attrs, x: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    d = w - _np_max(w, a.axis)
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
_declare("softmax", _along("softmax"), _softmax, _softmax_ref, attrs={"axis": "int"}, samples=_SOFTMAX_SAMPLES,
         doc="exp(x) / sum(exp(x)) along `axis`, without overflow. A row of -inf only gives NaN.")  # fmt: skip
_declare("logsoftmax", _along("logsoftmax"), _logsoftmax, _logsoftmax_ref, attrs={"axis": "int"}, samples=_SOFTMAX_SAMPLES,
         doc="log(softmax(x)), accurate where softmax is tiny.")  # fmt: skip


def _reduced(name: str) -> Any:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        x = _float_operand(name, t)
        axes = normal_axes(name, a.axes, x.rank)
        kept = [1 if i in axes else d for i, d in enumerate(x.shape) if a.keepdims or i not in axes]
        return [x.with_shape(kept)]

    return infer


def _logsumexp(b: Builder, o: Op) -> Value:
    (x,) = o.operands
    axes, w = o.attrs.axes, _wide(b, x)
    top = b.max(w, axes=axes, keepdims=True)
    base = _select(b, b.isfinite(top), top, 0.0)  # -inf - -inf would be NaN
    total = b.add(b.log(b.sum(b.exp(b.sub(w, base)), axes=axes, keepdims=True)), base)
    out = cast(b, total, x.type.dtype)
    return out if o.attrs.keepdims else b.reshape(out, shape=o.result.type.shape)  # type: ignore[no-any-return]


def _logsumexp_ref(a: Attrs, x: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    top = _np_max(w, a.axes)
    base = np.where(np.isfinite(top), top, 0.0)
    out = np.log(np.exp(w - base).sum(axis=a.axes, keepdims=True)) + base
    return (
        out
        if a.keepdims
        else out.reshape([d for i, d in enumerate(w.shape) if i not in normal_axes("", a.axes, w.ndim)])
    ).astype(np.asarray(x).dtype)


_REDUCE_ATTRS = {"axes": "ints", "keepdims": ("bool", False)}
_REDUCE_SAMPLES = (
    sample("f32[3,5]", axes=(1,)),
    sample("f32[2,3,4]", axes=(0, -1), keepdims=True),
    sample("f64[4,2]", axes=(0, 1)),
    sample("f16[3,6]", axes=(1,)),
    sample("bf16[3,6]", axes=(0,)),
    sample("f32[0,3]", axes=(1,)),
    sample("f32", axes=()),
)
_declare("logsumexp", _reduced("logsumexp"), _logsumexp, _logsumexp_ref, attrs=_REDUCE_ATTRS,
         samples=(*_REDUCE_SAMPLES, sample("f32[3,2]", axes=(1,), make=lambda rng: [np.array([[-INF, -INF], [INF, 0], [800, 800]], np.float32)])),
         doc="log(sum(exp(x))) over `axes`, without overflow; of -inf only: -inf.")  # fmt: skip

# ---- mean and variance -----------------------------------------------------------------------------------------------


def _count(b: Builder, x: Value, axes: Sequence[int], dtype: DType) -> Value:
    """The number of elements along `axes` as a scalar of `dtype`."""
    n = product(x.type.shape[i] for i in normal_axes("mean", axes, len(x.type.shape)))
    return b.const(float(n), dtype=dtype) if isinstance(n, int) else b.cast(b.dim(value=n), dtype=dtype)  # type: ignore[no-any-return]


def _mean_of(b: Builder, w: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    return b.div(b.sum(w, axes=axes, keepdims=keepdims), _count(b, w, axes, w.type.dtype))  # type: ignore[no-any-return]


def _mean(b: Builder, o: Op) -> Value:
    (x,) = o.operands
    return cast(b, _mean_of(b, _wide(b, x), o.attrs.axes, o.attrs.keepdims), x.type.dtype)


def _var_of(
    b: Builder, w: Value, axes: Sequence[int], keepdims: bool = True, correction: float = 0.0
) -> tuple[Value, Value]:
    """(the variance, w minus its mean)."""
    d = b.sub(w, _mean_of(b, w, axes))
    n = _count(b, w, axes, w.type.dtype)
    if correction:
        n = b.maximum(b.sub(n, correction), 0.0)
    return b.div(b.sum(b.mul(d, d), axes=axes, keepdims=keepdims), n), d


def _var(b: Builder, o: Op) -> Value:
    (x,) = o.operands
    a = o.attrs
    return cast(b, _var_of(b, _wide(b, x), a.axes, a.keepdims, a.correction)[0], x.type.dtype)


def _mean_ref(a: Attrs, x: Any) -> Any:
    x = np.asarray(x)
    return np.asarray(np.mean(x.astype(np.float64), axis=a.axes, keepdims=a.keepdims)).astype(x.dtype)


def _var_ref(a: Attrs, x: Any) -> Any:
    x = np.asarray(x)
    w = x.astype(np.float64)
    d = w - np.mean(w, axis=a.axes, keepdims=True)
    n = math.prod(w.shape[i] for i in a.axes)
    return np.asarray((d * d).sum(axis=a.axes, keepdims=a.keepdims) / np.float64(max(n - a.correction, 0))).astype(
        x.dtype
    )


_declare("mean", _reduced("mean"), _mean, _mean_ref, attrs=_REDUCE_ATTRS, samples=(*_REDUCE_SAMPLES, sample("f32[0,3]", axes=(0,))),
         doc="The mean over `axes`; of nothing: NaN.")  # fmt: skip
_declare("var", _reduced("var"), _var, _var_ref, attrs={**_REDUCE_ATTRS, "correction": ("float", 0.0)},
         samples=(*_REDUCE_SAMPLES, sample("f32[3,5]", axes=(1,), correction=1.0), sample("f32[2,40]", axes=(1,), low=1000, high=1001, rtol=1e-3)),
         doc="The variance over `axes`, in two passes, divided by n - correction.")  # fmt: skip

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


def _placed(b: Builder, v: Value, shape: Sequence[Dim], axes: Sequence[int]) -> Value:
    """`v` (one axis for each of `axes`) ready to broadcast against `shape`, in wide form."""
    v = _wide(b, v)
    if list(axes) == list(range(len(shape) - len(axes), len(shape))):
        return v
    return b.broadcast(v, shape=shape, axes=axes)  # type: ignore[no-any-return]


def _np_placed(v: Any, rank: int, axes: Sequence[int]) -> Any:
    shape = [1] * rank
    for i, n in zip(axes, np.shape(v), strict=True):
        shape[i] = n
    return np.asarray(v).astype(np.float64).reshape(shape)


def _layer_norm_type(name: str, extra: Sequence[str]) -> Any:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        x = _float_operand(name, t, 1 + len(extra))
        axes = _sorted_axes(name, a.axes, x.rank)
        for what, other in zip(extra, t[1:], strict=True):
            _require_shape(name, what, other, x, [x.shape[i] for i in axes])  # type: ignore[arg-type]
        return [x]

    return infer


def _layer_norm(b: Builder, o: Op) -> Value:
    x, scale, bias = o.operands
    shape = x.type.shape
    axes = normal_axes("layer_norm", o.attrs.axes, len(shape))
    variance, d = _var_of(b, _wide(b, x), axes)
    y = b.mul(d, b.rsqrt(b.add(variance, o.attrs.eps)))
    return cast(b, b.add(b.mul(y, _placed(b, scale, shape, axes)), _placed(b, bias, shape, axes)), x.type.dtype)


def _layer_norm_ref(a: Attrs, x: Any, scale: Any, bias: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    axes = normal_axes("layer_norm", a.axes, w.ndim)
    d = w - w.mean(axis=axes, keepdims=True)
    y = d / np.sqrt((d * d).mean(axis=axes, keepdims=True) + a.eps)
    return (y * _np_placed(scale, w.ndim, axes) + _np_placed(bias, w.ndim, axes)).astype(np.asarray(x).dtype)


def _rms_norm(b: Builder, o: Op) -> Value:
    x, scale = o.operands
    shape = x.type.shape
    axes = normal_axes("rms_norm", o.attrs.axes, len(shape))
    w = _wide(b, x)
    y = b.mul(w, b.rsqrt(b.add(_mean_of(b, b.mul(w, w), axes), o.attrs.eps)))
    return cast(b, b.mul(y, _placed(b, scale, shape, axes)), x.type.dtype)


def _rms_norm_ref(a: Attrs, x: Any, scale: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    axes = normal_axes("rms_norm", a.axes, w.ndim)
    y = w / np.sqrt((w * w).mean(axis=axes, keepdims=True) + a.eps)
    return (y * _np_placed(scale, w.ndim, axes)).astype(np.asarray(x).dtype)


_NORM_ATTRS = {"axes": "ints", "eps": ("float", 1e-5)}
_declare("layer_norm", _layer_norm_type("layer_norm", ("scale", "bias")), _layer_norm, _layer_norm_ref, attrs=_NORM_ATTRS,
         samples=(sample("f32[3,8]", "f32[8]", "f32[8]", axes=(-1,)), sample("f32[2,3,4]", "f32[3,4]", "f32[3,4]", axes=(1, 2)),
                  sample("f64[4,3]", "f64[4]", "f64[4]", axes=(0,)), sample("f16[2,8]", "f16[8]", "f16[8]", axes=(1,)),
                  sample("bf16[2,8]", "bf16[8]", "bf16[8]", axes=(1,), eps=1e-3), sample("f32[0,4]", "f32[4]", "f32[4]", axes=(1,))),
         doc="(x - mean) / sqrt(var + eps) * scale + bias over `axes`; scale and bias have the shape of those axes.")  # fmt: skip
_declare("rms_norm", _layer_norm_type("rms_norm", ("scale",)), _rms_norm, _rms_norm_ref, attrs=_NORM_ATTRS,
         samples=(sample("f32[3,8]", "f32[8]", axes=(-1,)), sample("f64[2,3,4]", "f64[2,4]", axes=(0, 2)), sample("f16[2,8]", "f16[8]", axes=(1,)),
                  sample("bf16[2,8]", "bf16[8]", axes=(1,)), sample("f32[0,4]", "f32[4]", axes=(1,))),
         doc="x / sqrt(mean(x * x) + eps) * scale over `axes`.")  # fmt: skip


def _batch_norm_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x = _float_operand("batch_norm", t, 5)
    axis = normal_axis("batch_norm", a.axis, x.rank)
    for what, other in zip(("scale", "bias", "mean", "var"), t[1:], strict=True):
        _require_shape("batch_norm", what, other, x, [x.shape[axis]])  # type: ignore[arg-type]
    return [x]


def _batch_norm(b: Builder, o: Op) -> Value:
    """The factor is computed once for each channel; what is left for each element is a subtraction and a fused one."""
    x, scale, bias, mean, var = o.operands
    shape = x.type.shape
    axes = (normal_axis("batch_norm", o.attrs.axis, len(shape)),)
    factor = b.mul(_wide(b, scale), b.rsqrt(b.add(_wide(b, var), o.attrs.eps)))
    d = b.sub(_wide(b, x), _placed(b, mean, shape, axes))
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


_declare("batch_norm", _batch_norm_type, _batch_norm, _batch_norm_ref, attrs={"axis": ("int", 1), "eps": ("float", 1e-5)},
         samples=(_batch_sample("f32[2,3,4,4]", "f32[3]"), _batch_sample("f64[5,2]", "f64[2]", axis=-1), _batch_sample("f16[2,3]", "f16[3]"),
                  _batch_sample("bf16[2,3]", "bf16[3]"), _batch_sample("f32[0,3]", "f32[3]")),
         doc="(x - mean) / sqrt(var + eps) * scale + bias with given mean and var for each channel along `axis`: batch normalisation at inference.")  # fmt: skip


def _group_norm_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x = _float_operand("group_norm", t, 3)
    if x.rank < 2:
        raise error("FX0220", f"group_norm: x has the axes batch, channels, space..., not {x}")
    if a.groups < 1 or not facts().divides(a.groups, x.shape[1]):
        raise error("FX0221", f"group_norm: {a.groups} groups do not divide the {x.shape[1]} channels of {x}")
    for what, other in zip(("scale", "bias"), t[1:], strict=True):
        _require_shape("group_norm", what, other, x, [x.shape[1]])  # type: ignore[arg-type]
    return [x]


def _group_norm(b: Builder, o: Op) -> Value:
    x, scale, bias = o.operands
    n, c, *space = x.type.shape
    g = o.attrs.groups
    w = b.reshape(_wide(b, x), shape=(n, g, floordiv(c, g) * product(space)))
    variance, d = _var_of(b, w, (2,))
    y = b.reshape(b.mul(d, b.rsqrt(b.add(variance, o.attrs.eps))), shape=x.type.shape)
    shape = x.type.shape
    return cast(b, b.add(b.mul(y, _placed(b, scale, shape, (1,))), _placed(b, bias, shape, (1,))), x.type.dtype)


def _group_norm_ref(a: Attrs, x: Any, scale: Any, bias: Any) -> Any:
    x = np.asarray(x)
    w = x.astype(np.float64).reshape(x.shape[0], a.groups, math.prod(x.shape[1:]) // a.groups)
    d = w - w.mean(axis=2, keepdims=True)
    y = (d / np.sqrt((d * d).mean(axis=2, keepdims=True) + a.eps)).reshape(x.shape)
    return (y * _np_placed(scale, x.ndim, (1,)) + _np_placed(bias, x.ndim, (1,))).astype(x.dtype)


_declare("group_norm", _group_norm_type, _group_norm, _group_norm_ref, attrs={"groups": "int", "eps": ("float", 1e-5)},
         samples=(sample("f32[2,4,3,3]", "f32[4]", "f32[4]", groups=2), sample("f64[2,6]", "f64[6]", "f64[6]", groups=3),
                  sample("f16[2,4,2]", "f16[4]", "f16[4]", groups=1), sample("bf16[2,4,2]", "bf16[4]", "bf16[4]", groups=2),
                  sample("f32[0,4,2]", "f32[4]", "f32[4]", groups=2)),
         doc="layer_norm over each of `groups` groups of channels (axis 1) and all of space; scale and bias for each channel.")  # fmt: skip

# ---- attention -------------------------------------------------------------------------------------------------------


def _attention_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) not in (3, 4):
        raise error("FX0108", f"attention takes q, k, v and optionally a mask, {len(t)} operands given")
    q, key, v = tensor_operands("attention", t[:3], 3)
    check_dtype("attention", q.dtype, "float")
    if not q.dtype == key.dtype == v.dtype:
        raise error("FX0201", f"attention: q, k, v are {q}, {key}, {v}", help="cast them to one type")
    if not q.rank == key.rank == v.rank or q.rank < 2:
        raise error(
            "FX0220",
            f"attention: q[...,S,D], k[...,T,D], v[...,T,E] have the same rank of at least 2, not {q}, {key}, {v}",
        )
    pairs = [(q.shape[i], x.shape[i]) for x in (key, v) for i in range(q.rank - 2)]
    pairs += [(q.shape[-1], key.shape[-1]), (key.shape[-2], v.shape[-2])]
    for d, e in pairs:
        if not require_equal(d, e):
            raise error(
                "FX0203",
                f"attention: {d} is not {e} in q: {q}, k: {key}, v: {v}",
                help="q[...,S,D], k[...,T,D], v[...,T,E]",
            )
    scores = (*q.shape[:-1], key.shape[-2])
    if len(t) == 4:
        (mask,) = tensor_operands("attention", t[3:], 1)
        if not (mask.dtype.is_bool or mask.dtype == q.dtype):
            raise error("FX0209", f"attention: the mask must be bool or {q.dtype}, not {mask}")
        if broadcast_shapes("attention", [mask.shape, scores]) != scores:
            raise error(
                "FX0202", f"attention: the mask {mask} does not broadcast to the scores [{','.join(map(str, scores))}]"
            )
    return [q.with_shape((*q.shape[:-1], v.shape[-1]))]


def _attention_scale(scale: float | None, depth: int) -> float:
    return 1.0 / math.sqrt(max(depth, 1)) if scale is None else scale


def _attention(b: Builder, o: Op) -> Value:
    """Scores, mask, softmax in f32, and the weighted sum. A row with nothing to attend to has the sum 0, not NaN."""
    q, k, v, *masks = o.operands
    rank, dtype = len(q.type.shape), q.type.dtype
    batch = tuple(range(rank - 2))
    s = _wide(b, b.dot(q, k, lhs_contract=(rank - 1,), rhs_contract=(rank - 1,), lhs_batch=batch, rhs_batch=batch))
    depth = q.type.shape[-1]
    if o.attrs.scale is not None or isinstance(depth, int):
        s = b.mul(s, _attention_scale(o.attrs.scale, depth if isinstance(depth, int) else 1))
    else:
        s = b.mul(s, b.rsqrt(b.cast(b.dim(value=depth), dtype=s.type.dtype)))
    for mask in masks:
        s = _select(b, mask, s, -INF) if mask.type.dtype.is_bool else b.add(s, _wide(b, mask))
    if o.attrs.causal:
        shape = s.type.shape[-2:]
        row, column = (b.iota(shape=shape, axis=i, dtype="i64") for i in (0, 1))
        s = _select(b, b.le(column, row), s, -INF)
    top = b.max(s, axes=(rank - 1,), keepdims=True)
    e = b.exp(b.sub(s, _select(b, b.eq(top, -INF), 0.0, top)))
    total = b.sum(e, axes=(rank - 1,), keepdims=True)
    p = cast(b, b.div(e, _select(b, b.eq(total, 0.0), 1.0, total)), dtype)
    return b.dot(p, v, lhs_contract=(rank - 1,), rhs_contract=(rank - 2,), lhs_batch=batch, rhs_batch=batch)  # type: ignore[no-any-return]


def _attention_ref(a: Attrs, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    wide = [np.asarray(x).astype(np.float64) for x in (q, k, v)]
    depth = wide[0].shape[-1]
    s = wide[0] @ np.swapaxes(wide[1], -1, -2) * _attention_scale(a.scale, depth)
    if mask is not None:
        m = np.asarray(mask)
        s = np.where(m, s, -np.inf) if m.dtype == np.bool_ else s + m.astype(np.float64)
    if a.causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf)
    top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isneginf(top), 0.0, top))
    total = e.sum(axis=-1, keepdims=True)
    return (e / np.where(total == 0, 1.0, total) @ wide[2]).astype(np.asarray(q).dtype)


_declare("attention", _attention_type, _attention, _attention_ref, attrs={"causal": ("bool", False), "scale": ("float", None)},
         samples=(sample("f32[2,3,4]", "f32[2,5,4]", "f32[2,5,6]"), sample("f32[4,4]", "f32[4,4]", "f32[4,4]", causal=True),
                  sample("f32[2,2,3,4]", "f32[2,2,3,4]", "f32[2,2,3,4]", "bool[3,3]", scale=0.5), sample("f64[3,4]", "f64[5,4]", "f64[5,2]", "f64[3,5]"),
                  sample("f16[2,3,8]", "f16[2,3,8]", "f16[2,3,8]", causal=True, low=-1, high=1), sample("bf16[3,8]", "bf16[3,8]", "bf16[3,8]", low=-1, high=1),
                  sample("f32[0,3,4]", "f32[0,3,4]", "f32[0,3,4]"),
                  sample("f32[2,3]", "f32[2,3]", "f32[2,3]", "bool[2,2]",
                         make=lambda rng: [*rng.uniform(-1, 1, (3, 2, 3)).astype(np.float32), np.array([[True, False], [False, False]])])),
         doc="softmax(q k^T * scale + mask) v for q[...,S,D], k[...,T,D], v[...,T,E]. A bool mask keeps where true, a float one is added; `causal` lets row s see "
             "columns up to s. `scale` defaults to 1/sqrt(D). A row that may see nothing gives 0.")  # fmt: skip

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
            f"cross_entropy: the labels {labels} must have the shape [{','.join(map(str, rest))}] of the logits {x} without axis {axis}",
        )
    return [x.with_shape(rest)]


def _cross_entropy(b: Builder, o: Op) -> Value:
    """The label's logit is picked by a select under the sum, which fuses with the row's other reductions."""
    x, labels = o.operands
    shape = x.type.shape
    axis = normal_axis("cross_entropy", o.attrs.axis, len(shape))
    d = _shifted(b, _wide(b, x), axis)
    last = b.dim(value=shape[axis] - 1) if not isinstance(shape[axis], int) else b.const(shape[axis] - 1, dtype="i64")
    wanted = b.clamp(cast(b, labels, DTYPES["i64"]), b.const(0, dtype="i64"), last)
    wanted = b.broadcast(wanted, shape=shape, axes=tuple(i for i in range(len(shape)) if i != axis))
    hit = b.eq(b.iota(shape=shape, axis=axis, dtype="i64"), wanted)
    picked = b.sum(_select(b, hit, d, 0.0), axes=(axis,))
    return cast(b, b.sub(b.log(b.sum(b.exp(d), axes=(axis,))), picked), x.type.dtype)


def _cross_entropy_ref(a: Attrs, x: Any, labels: Any) -> Any:
    w = np.asarray(x).astype(np.float64)
    d = w - _np_max(w, a.axis)
    at = np.expand_dims(np.clip(labels, 0, w.shape[a.axis] - 1).astype(np.int64), a.axis)
    picked = np.take_along_axis(d, at, a.axis).squeeze(a.axis)
    return (np.log(np.exp(d).sum(axis=a.axis)) - picked).astype(np.asarray(x).dtype)


_declare("cross_entropy", _cross_entropy_type, _cross_entropy, _cross_entropy_ref, attrs={"axis": ("int", -1)},
         samples=(sample("f32[4,5]", "i32[4]", low=0, high=4), sample("f64[2,3,4]", "i64[2,4]", axis=1, low=-1, high=5), sample("f16[3,4]", "u8[3]", low=0, high=4),
                  sample("bf16[3,4]", "i32[3]", low=0, high=4), sample("f32[6]", "i32", low=0, high=6), sample("f32[0,4]", "i32[0]", low=0, high=3)),
         doc="-log(softmax(logits)[label]) for each example; labels out of range are clamped.")  # fmt: skip

__all__ = ["SELU_ALPHA", "SELU_SCALE"]
