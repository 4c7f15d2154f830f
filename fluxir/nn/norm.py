"""BatchNorm, LayerNorm, RMSNorm, InstanceNorm, GroupNorm, WeightNorm."""

from __future__ import annotations

from typing import Any

import fluxir as fx
from fluxir.nn.module import Module, call, require_features, state, static
from fluxir.nn.state import read_state, write_state


def _affine(owner: Any, size: Any, affine: bool, dtype: Any) -> None:
    owner.scale = fx.ones(size, dtype=dtype) if affine else None
    owner.bias = fx.zeros(size, dtype=dtype) if affine else None


def _statistics(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Mean, variance over n, and variance over n - 1, along `axes`."""
    mean = fx.mean(x, axis=axes)
    var = fx.var(x, axis=axes)
    n: Any = 1
    for a in axes:
        n = n * fx.shape(x)[a]
    count = fx.astype(fx.asarray(n), x.dtype)
    return mean, var, var * (count / fx.maximum(count - 1, 1))


class _ChannelNorm(Module):
    """What BatchNorm and InstanceNorm share: scale and bias, and running statistics, for each channel of x [N, C, ...]."""

    scale: Any
    bias: Any
    mean: Any = state()
    var: Any = state()
    momentum: float = static()
    eps: float = static()
    channels: int = static()

    def _make(self, channels: int, momentum: float, eps: float, affine: bool, track: bool, dtype: Any) -> None:
        _affine(self, (channels,), affine, dtype)
        self.mean = fx.zeros((channels,), dtype=dtype) if track else None
        self.var = fx.ones((channels,), dtype=dtype) if track else None
        self.momentum, self.eps, self.channels = momentum, eps, channels

    def _by_running(self, x: Any) -> Any:
        return fx.functional.batch_norm(
            x, read_state(self, "mean"), read_state(self, "var"), self.scale, self.bias, eps=self.eps
        )

    def _track(self, mean: Any, var: Any) -> None:
        """Move the running statistics towards these."""
        old_mean, old_var, m = read_state(self, "mean"), read_state(self, "var"), self.momentum
        mean, var = fx.astype(mean, old_mean.dtype), fx.astype(var, old_var.dtype)
        write_state(self, mean=old_mean * (1 - m) + mean * m, var=old_var * (1 - m) + var * m)

    def about(self) -> str:
        return str(self.channels)


class BatchNorm(_ChannelNorm):
    """(x - mean) / sqrt(var + eps) * scale + bias for each channel of x [N, C, ...] (Ioffe and Szegedy 2015).

    With `train=True` mean and variance are those of the batch, and the running ones move towards them by `momentum` (the
    variance over n - 1, as PyTorch does); they go into the model that `State` or `apply` returns (FX1005). Otherwise the
    running ones are used. With `track=False` the batch's are always used.
    """

    def __init__(
        self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True, track: bool = True,
        dtype: Any = "f32",
    ) -> None:  # fmt: skip
        self._make(channels, momentum, eps, affine, track, dtype)

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        require_features("BatchNorm", x, 1, self.channels)
        if not train and self.mean is not None:
            return self._by_running(x)
        mean, var, unbiased = _statistics(x, tuple(a for a in range(len(fx.shape(x))) if a != 1))
        if train and self.mean is not None:
            self._track(mean, unbiased)
        return fx.functional.batch_norm(x, mean, var, self.scale, self.bias, eps=self.eps)


class InstanceNorm(_ChannelNorm):
    """Normalisation of each channel of each example over space: x [N, C, space...] (Ulyanov et al. 2016).

    `affine` adds scale and bias; `track` keeps running statistics as BatchNorm does, means over the examples.
    """

    def __init__(
        self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = False, track: bool = False,
        dtype: Any = "f32",
    ) -> None:  # fmt: skip
        self._make(channels, momentum, eps, affine, track, dtype)

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        require_features("InstanceNorm", x, 1, self.channels)
        n = len(fx.shape(x))
        if n < 3:
            raise fx.error("FX1002", f"InstanceNorm takes [N, C, space...] and is given {list(fx.shape(x))}")
        if not train and self.mean is not None:
            return self._by_running(x)
        axes = tuple(range(2, n))
        if train and self.mean is not None:
            mean, _, unbiased = _statistics(x, axes)
            self._track(fx.mean(mean, axis=0), fx.mean(unbiased, axis=0))
        return fx.functional.group_norm(x, self.channels, self.scale, self.bias, eps=self.eps)


class GroupNorm(Module):
    """Normalisation over groups of channels and space: x [N, C, ...]; scale and bias per channel (Wu and He 2018)."""

    scale: Any
    bias: Any
    groups: int = static()
    eps: float = static()
    channels: int = static()

    def __init__(
        self, groups: int, channels: int, *, eps: float = 1e-5, affine: bool = True, dtype: Any = "f32"
    ) -> None:
        if groups < 1 or channels % groups:
            raise fx.error("FX1003", f"GroupNorm: {groups} groups do not divide {channels} channels")
        _affine(self, (channels,), affine, dtype)
        self.groups, self.channels, self.eps = groups, channels, eps

    def __call__(self, x: Any) -> Any:
        require_features("GroupNorm", x, 1, self.channels)
        return fx.functional.group_norm(x, self.groups, self.scale, self.bias, eps=self.eps)

    def about(self) -> str:
        return f"{self.groups} groups of {self.channels // self.groups}"


class LayerNorm(Module):
    """Normalisation over the last axes, which have the sizes `shape`: x [..., shape...] (Ba et al. 2016)."""

    scale: Any
    bias: Any
    shape: tuple[int, ...] = static()
    eps: float = static()

    def __init__(
        self, *shape: int, eps: float = 1e-5, affine: bool = True, bias: bool = True, dtype: Any = "f32"
    ) -> None:
        _affine(self, shape, affine, dtype)
        if not bias:
            self.bias = None
        self.shape, self.eps = shape, eps

    def __call__(self, x: Any) -> Any:
        for k, d in enumerate(self.shape):
            require_features("LayerNorm", x, k - len(self.shape), d)
        return fx.functional.layer_norm(x, self.scale, self.bias, axis=tuple(range(-len(self.shape), 0)), eps=self.eps)

    def about(self) -> str:
        return ", ".join(map(str, self.shape))


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axes (Zhang and Sennrich 2019)."""

    scale: Any
    shape: tuple[int, ...] = static()
    eps: float = static()

    def __init__(self, *shape: int, eps: float = 1e-6, affine: bool = True, dtype: Any = "f32") -> None:
        self.scale = fx.ones(shape, dtype=dtype) if affine else None
        self.shape, self.eps = shape, eps

    def __call__(self, x: Any) -> Any:
        for k, d in enumerate(self.shape):
            require_features("RMSNorm", x, k - len(self.shape), d)
        return fx.functional.rms_norm(x, self.scale, axis=tuple(range(-len(self.shape), 0)), eps=self.eps)

    def about(self) -> str:
        return ", ".join(map(str, self.shape))


class WeightNorm(Module):
    """A layer whose `field` is magnitude * direction / |direction| (Salimans and Kingma 2016).

    The norm is taken over all axes but `axis` (None: over all). By default that is the axis of the outputs: the last of a
    weight with two axes (Dense), the first of others (Conv).
    `layer` keeps the direction in the field; `magnitude` begins as its norm, so that wrapping changes nothing.
    """

    layer: Any
    magnitude: Any
    field: str = static()
    axis: int | None = static()

    def __init__(self, layer: Module, field: str = "weight", axis: int | str | None = "outputs") -> None:
        weight = getattr(layer, field)
        if isinstance(axis, str):
            axis = 1 if len(fx.shape(weight)) == 2 else 0
        self.layer, self.field, self.axis = layer, field, axis
        self.magnitude = self._norm(weight)

    def _norm(self, w: Any) -> Any:
        axes = tuple(a for a in range(len(fx.shape(w))) if a != self.axis)
        return fx.sqrt(fx.sum(w * w, axis=axes, keepdims=True))

    def __call__(self, *xs: Any, train: bool = False, key: Any = None) -> Any:
        direction = getattr(self.layer, self.field)
        weight = direction * (self.magnitude / self._norm(direction))
        return call(self.layer.replace(**{self.field: weight}), *xs, train=train, key=key)

    def about(self) -> str:
        return self.field


__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "WeightNorm"]
