"""Activation functions of one float, as composites: the relu family, gelu, silu, softplus and their kin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.opdef import sample
from fluxir.ir.types import Type
from fluxir.ops import adjoint_nn, meaning
from fluxir.ops.composite import (
    INF,
    Builder,
    composite,
    float_operand,
    select,
    wide,
    wide_array,
)
from fluxir.ops.nest import cast


def _activation(
    name: str,
    expand: Callable[..., Any],
    ref: Callable[..., Any],
    doc: str,
    attrs: dict[str, Any] | None = None,
    vjp: Any = None,
    **samples: Any,
) -> None:
    """A function of one float: `expand(b, x, **attributes)` and `ref(x, **attributes)`, both in f32 for halves."""

    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        return [float_operand(name, t)]

    def expansion(b: Builder, o: Op) -> Any:
        (x,) = o.operands
        return cast(b, expand(b, wide(b, x), **o.attrs), x.type.dtype)

    def in_float(a: Attrs, x: Any) -> Any:
        return np.asarray(ref(wide_array(x), **a)).astype(np.asarray(x).dtype)

    given = [sample(t, low=-4, high=4) for t in ("f32[3,4]", "f64[5]", "f16[5]", "bf16[5]", "f32", "f32[0,3]")]
    given.append(sample("f32[8]", make=lambda rng: [np.array([0, -0.0, 30, -30, 200, -200, INF, 1e-6], np.float32)]))
    given += [sample("f32[7]", low=-3, high=3, **{key: v}) for key, v in samples.items()]
    # The derivative of a function of one element is symmetric: one rule serves both modes.
    composite(name, infer, expansion, in_float, attrs=attrs, samples=given, doc=doc, vjp=vjp, jvp=vjp)


def _softplus(b: Builder, x: Value) -> Any:
    return b.add(b.maximum(x, 0.0), b.log1p(b.exp(b.neg(b.abs(x)))))


def _np_softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(b: Builder, x: Value, alpha: float) -> Any:
    return select(b, b.gt(x, 0.0), x, b.mul(b.expm1(select(b, b.gt(x, 0.0), 0.0, x)), alpha))


def _np_elu(x: Any, alpha: float) -> Any:
    return np.where(x > 0, x, np.asarray(alpha, x.dtype) * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(b: Builder, x: Value) -> Any:
    return b.div(b.clamp(b.add(x, 3.0), 0.0, 6.0), 6.0)


def _np_hard_sigmoid(x: Any) -> Any:
    return np.clip(x + 3, 0, 6) / np.asarray(6, x.dtype)


def _gelu(b: Builder, x: Value, approximate: bool) -> Any:
    if approximate:  # x/2 (1 + tanh u) is x sigmoid(2u), which keeps its accuracy for negative x
        cube = b.mul(b.mul(x, x), x)
        u = b.mul(b.add(x, b.mul(cube, 0.044715)), 2.0 * math.sqrt(2.0 / math.pi))
        return select(b, b.eq(x, -INF), 0.0, b.mul(x, b.sigmoid(u)))
    return b.mul(b.mul(x, 0.5), b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1.0))


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

_activation("relu", lambda b, x: b.maximum(x, 0.0), lambda x: np.maximum(x, 0), "max(x, 0).", vjp=adjoint_nn.relu_vjp)
_activation(
    "relu6",
    lambda b, x: b.clamp(x, 0.0, 6.0),
    lambda x: np.clip(x, 0, 6),
    "min(max(x, 0), 6).",
    vjp=adjoint_nn.relu6_vjp,
)
_activation(
    "leaky_relu",
    lambda b, x, slope: select(b, b.ge(x, 0.0), x, b.mul(x, slope)),
    lambda x, slope: np.where(x >= 0, x, x * np.asarray(slope, x.dtype)),
    "x where x >= 0, else slope * x.",
    {"slope": ("float", 0.01)},
    slope=0.25,
)
_activation(
    "elu",
    _elu,
    _np_elu,
    "x where x > 0, else alpha * (e ** x - 1).",
    {"alpha": ("float", 1.0)},
    vjp=adjoint_nn.elu_vjp,
    alpha=0.5,
)
_activation(
    "selu",
    lambda b, x: b.mul(_elu(b, x, SELU_ALPHA), SELU_SCALE),
    lambda x: np.asarray(SELU_SCALE, x.dtype) * _np_elu(x, SELU_ALPHA),
    "The self-normalising elu.",
)
_activation("softplus", _softplus, _np_softplus, "log(1 + e ** x), without overflow.", vjp=adjoint_nn.softplus_vjp)
_activation("softsign", lambda b, x: b.div(x, b.add(b.abs(x), 1.0)), lambda x: x / (1 + np.abs(x)), "x / (1 + |x|).")
_activation("hard_sigmoid", _hard_sigmoid, _np_hard_sigmoid, "min(max(x + 3, 0), 6) / 6.")
_activation(
    "hard_swish", lambda b, x: b.mul(x, _hard_sigmoid(b, x)), lambda x: x * _np_hard_sigmoid(x), "x * hard_sigmoid(x)."
)
_activation(
    "mish",
    lambda b, x: b.mul(x, b.tanh(b.softplus(x))),
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
    vjp=adjoint_nn.gelu_vjp,
    approximate=True,
)
