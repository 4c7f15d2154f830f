"""Activations under NNlib's names. Those that the compiler has as ops are the same functions as in `fluxir.functional`.

Each takes and gives a float tensor of any shape. Derivatives at kinks are those of the parts they are made of; relu'(0) = 0.
"""

from __future__ import annotations

import math
from typing import Any

import fluxir as fx

_f: Any = fx.functional

relu, relu6, elu, selu, gelu, mish, softplus, softsign = (
    _f.relu, _f.relu6, _f.elu, _f.selu, _f.gelu, _f.mish, _f.softplus, _f.softsign,
)  # fmt: skip
sigmoid = sigmoid_fast = _f.sigmoid
tanh = tanh_fast = _f.tanh
swish = silu = _f.swish
glu = _f.glu
hard_sigmoid = hardsigmoid = _f.hard_sigmoid
hard_swish = hardswish = _f.hard_swish
leaky_relu = leakyrelu = _f.leaky_relu
log_sigmoid = logsigmoid = _f.log_sigmoid


def gelu_tanh(x: Any) -> Any:
    """gelu by its tanh approximation (Hendrycks and Gimpel 2016)."""
    return gelu(x, approximate=True)


def gelu_erf(x: Any) -> Any:
    """x * Phi(x), exactly (Hendrycks and Gimpel 2016)."""
    return gelu(x, approximate=False)


def gelu_sigmoid(x: Any) -> Any:
    """x * sigmoid(1.702 x), the quick approximation of gelu (Hendrycks and Gimpel 2016)."""
    return x * sigmoid(1.702 * x)


def celu(x: Any, alpha: float = 1.0) -> Any:
    """x where positive, else alpha * (exp(x / alpha) - 1) (Barron 2017)."""
    return fx.maximum(x, 0) + alpha * fx.expm1(fx.minimum(x, 0) / alpha)


def hardtanh(x: Any, low: float = -1.0, high: float = 1.0) -> Any:
    """x clipped to [low, high] (Collobert 2004)."""
    return fx.clip(x, low, high)


def hardshrink(x: Any, limit: float = 0.5) -> Any:
    """x where |x| > limit, else 0 (Donoho and Johnstone 1994)."""
    return fx.where(fx.abs(x) > limit, x, fx.zeros_like(x))


def softshrink(x: Any, limit: float = 0.5) -> Any:
    """x - sign(x) * limit where |x| > limit, else 0 (Donoho and Johnstone 1994)."""
    return fx.where(x > limit, x - limit, fx.where(x < -limit, x + limit, fx.zeros_like(x)))


def tanhshrink(x: Any) -> Any:
    """x - tanh(x)."""
    return x - tanh(x)


def trelu(x: Any, theta: float = 1.0) -> Any:
    """x where x > theta, else 0: thresholded relu (Konda et al. 2014)."""
    return fx.where(x > theta, x, fx.zeros_like(x))


def lisht(x: Any) -> Any:
    """x * tanh(x) (Roy et al. 2019)."""
    return x * tanh(x)


def logcosh(x: Any) -> Any:
    """log(cosh(x)), without overflow."""
    return fx.abs(x) + softplus(-2 * fx.abs(x)) - math.log(2)


def rrelu(x: Any, low: float = 1 / 8, high: float = 1 / 3, *, key: Any = None, train: bool = False) -> Any:
    """x where positive, else x times a slope: random in [low, high) in training, their mean otherwise (Xu et al. 2015).

    In training it needs a key (FX1004).
    """
    if not train:
        return leaky_relu(x, (low + high) / 2)
    if key is None:
        raise fx.error("FX1004", "rrelu in training needs a random key")
    slope = fx.random.uniform(key, fx.shape(x), low=low, high=high, dtype=x.dtype)
    return fx.where(x > 0, x, x * slope)


__all__ = [
    "celu", "elu", "gelu", "gelu_erf", "gelu_sigmoid", "gelu_tanh", "glu", "hard_sigmoid", "hard_swish", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "leakyrelu", "lisht", "log_sigmoid", "logcosh", "logsigmoid",
    "mish", "relu", "relu6", "rrelu", "selu", "sigmoid", "sigmoid_fast", "silu", "softplus", "softshrink", "softsign",
    "swish", "tanh", "tanh_fast", "tanhshrink", "trelu",
]  # fmt: skip
