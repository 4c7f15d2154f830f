"""Initialisers: functions `(key, shape, fans=None, dtype="f32")` of an explicit key.

`fans = (fan_in, fan_out)` is how many numbers go into one output and out of one input; layers give it. Without it the shape
is read as [in, out] (two axes) or [out, in, space...] (more), the layouts of Dense and Conv. `gain` and the like are set
with `functools.partial`: `partial(kaiming_normal, gain=1.0)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fluxir as fx

Fans = tuple[int, int] | None


def fans_of(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight by its shape."""
    shape = tuple(shape)
    if not shape:
        return 1, 1
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) == 2:
        return shape[0], shape[1]
    space = math.prod(shape[2:])
    return shape[1] * space, shape[0] * space


def _uniform(key: Any, shape: Any, limit: float, dtype: Any) -> Any:
    return fx.random.uniform(key, tuple(shape), low=-limit, high=limit, dtype=dtype)


def _normal(key: Any, shape: Any, std: float, dtype: Any) -> Any:
    return fx.random.normal(key, tuple(shape), scale=std, dtype=dtype)


def zeros(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32") -> Any:
    """All 0; the key is not used."""
    return fx.zeros(tuple(shape), dtype=dtype)


def ones(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32") -> Any:
    """All 1; the key is not used."""
    return fx.ones(tuple(shape), dtype=dtype)


def constant(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, value: float = 0.0) -> Any:
    """All `value`; the key is not used."""
    return fx.full(tuple(shape), value, dtype=dtype)


def uniform(
    key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, low: float = -0.05, high: float = 0.05
) -> Any:
    """Uniform in [low, high)."""
    return fx.random.uniform(key, tuple(shape), low=low, high=high, dtype=dtype)


def normal(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, mean: float = 0.0, std: float = 0.01) -> Any:
    """Normal with this mean and standard deviation."""
    return fx.random.normal(key, tuple(shape), loc=mean, scale=std, dtype=dtype)


def truncated_normal(
    key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32",
    *, mean: float = 0.0, std: float = 1.0, low: float = -2.0, high: float = 2.0,
) -> Any:  # fmt: skip
    """Normal with `mean` and `std` conditioned on [low, high], bounds of the result, not of the standard normal."""
    a, b = (low - mean) / std, (high - mean) / std
    return fx.random.truncated_normal(key, a, b, tuple(shape), dtype=dtype) * std + mean


def glorot_uniform(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, gain: float = 1.0) -> Any:
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    i, o = fans or fans_of(shape)
    return _uniform(key, shape, gain * math.sqrt(6 / (i + o)), dtype)


def glorot_normal(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, gain: float = 1.0) -> Any:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    i, o = fans or fans_of(shape)
    return _normal(key, shape, gain * math.sqrt(2 / (i + o)), dtype)


def kaiming_uniform(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, gain: float = math.sqrt(2)) -> Any:
    """Uniform in +-gain * sqrt(3 / fan_in) (He et al. 2015); the default gain is that of relu."""
    i, _ = fans or fans_of(shape)
    return _uniform(key, shape, gain * math.sqrt(3 / i), dtype)


def kaiming_normal(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, gain: float = math.sqrt(2)) -> Any:
    """Normal with standard deviation gain / sqrt(fan_in) (He et al. 2015); the default gain is that of relu."""
    i, _ = fans or fans_of(shape)
    return _normal(key, shape, gain / math.sqrt(i), dtype)


def lecun_uniform(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32") -> Any:
    """Uniform in +-sqrt(3 / fan_in) (LeCun et al. 1998)."""
    return kaiming_uniform(key, shape, fans, dtype, gain=1.0)


def lecun_normal(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32") -> Any:
    """Normal with variance 1 / fan_in, truncated at two standard deviations and rescaled (LeCun et al. 1998)."""
    i, _ = fans or fans_of(shape)
    # 0.8796... is the standard deviation of the standard normal truncated to [-2, 2].
    return fx.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype=dtype) * (
        1 / math.sqrt(i) / 0.87962566103423978
    )


def orthogonal(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, gain: float = 1.0) -> Any:
    """gain times a matrix with orthonormal rows or columns, whichever are fewer (Saxe et al. 2014).

    The leading axis against all others; uniform over such matrices (QR of a normal matrix with the signs of R's diagonal
    taken out, Mezzadri 2007).
    """
    shape = tuple(shape)
    if len(shape) < 2:
        raise fx.error("FX1003", f"orthogonal: a weight of two axes or more, not {list(shape)}")
    rows, columns = shape[0], math.prod(shape[1:])
    a = fx.random.normal(key, (max(rows, columns), min(rows, columns)), dtype=dtype)
    q, r = fx.linalg.qr(a)
    q = q * fx.copysign(fx.ones_like(fx.diagonal(r)), fx.diagonal(r))
    return fx.reshape((q if rows >= columns else fx.matrix_transpose(q)) * gain, shape)


def sparse(
    key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, sparsity: float = 0.9, std: float = 0.01
) -> Any:
    """[in, out] with ceil(sparsity * in) zeros among the inputs of each output, else normal (Martens 2010)."""
    shape = tuple(shape)
    if len(shape) != 2:
        raise fx.error("FX1003", f"sparse: a weight of two axes, not {list(shape)}")
    values, order = fx.random.split(key)
    w = _normal(values, shape, std, dtype)
    rank = fx.argsort(fx.argsort(fx.random.uniform(order, shape), axis=0), axis=0)
    return fx.where(rank < math.ceil(sparsity * shape[0]), fx.zeros_like(w), w)


def identity(key: Any, shape: Any, fans: Fans = None, dtype: Any = "f32", *, gain: float = 1.0) -> Any:
    """gain times the identity: 1 where input and output are the same, in the middle of the window for convolutions.

    Where there are more outputs than inputs or the reverse, the surplus is 0. The key is not used.
    """
    shape = tuple(shape)
    if len(shape) < 2:
        return fx.full(shape, gain, dtype=dtype)
    eye = fx.eye(shape[0], shape[1], dtype=dtype) * gain
    space = shape[2:]
    window = fx.reshape(eye, (*shape[:2], *[1] * len(space)))
    middle = [(0, 0), (0, 0), *[((k - 1) // 2, k - 1 - (k - 1) // 2) for k in space]]
    return fx.pad(window, middle) if space else eye


__all__ = [
    "constant", "fans_of", "glorot_normal", "glorot_uniform", "identity", "kaiming_normal", "kaiming_uniform",
    "lecun_normal", "lecun_uniform", "normal", "ones", "orthogonal", "sparse", "truncated_normal", "uniform", "zeros",
]  # fmt: skip
