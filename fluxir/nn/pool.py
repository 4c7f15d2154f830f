"""Pooling over the spatial axes of x [N, C, space...]: MaxPool, MeanPool, AdaptiveMaxPool, AdaptiveMeanPool, GlobalMaxPool,
GlobalMeanPool."""

from __future__ import annotations

from typing import Any

import numpy as np

import fluxir as fx
from fluxir.nn.conv import Padding, Window, padding_of
from fluxir.nn.module import Module, per_axis, static


def _spatial(owner: str, x: Any) -> int:
    n = len(fx.shape(x)) - 2
    if n < 1:
        raise fx.error("FX1002", f"{owner} takes [N, C, space...] and is given {list(fx.shape(x))}")
    return n


def _pads(padding: Any, n: int, owner: str) -> Any:
    return padding if isinstance(padding, str) else padding_of(owner, padding, n)


def _frozen(value: Any) -> Any:
    """Numbers and nested sequences of them as tuples, which can be hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class MaxPool(Module):
    """The largest element of each window; `stride` is the window by default; padding counts as lowest."""

    window: Any = static()
    stride: Any = static()
    padding: Any = static()
    dilation: Any = static()

    def __init__(
        self, window: Window, *, stride: Window | None = None, padding: Padding = 0, dilation: Window = 1
    ) -> None:
        self.window, self.stride = _frozen(window), _frozen(stride)
        self.padding, self.dilation = _frozen(padding), _frozen(dilation)

    def __call__(self, x: Any) -> Any:
        n = _spatial("MaxPool", x)
        return fx.functional.max_pool(
            x, self.window, stride=self.stride, padding=_pads(self.padding, n, "MaxPool"), dilation=self.dilation
        )


class MeanPool(Module):
    """The mean of each window; padding counts as 0, or not at all with `count_include_pad=False`."""

    window: Any = static()
    stride: Any = static()
    padding: Any = static()
    count_include_pad: bool = static()

    def __init__(
        self, window: Window, *, stride: Window | None = None, padding: Padding = 0, count_include_pad: bool = True
    ) -> None:
        self.window, self.stride = _frozen(window), _frozen(stride)
        self.padding, self.count_include_pad = _frozen(padding), count_include_pad

    def __call__(self, x: Any) -> Any:
        n = _spatial("MeanPool", x)
        return fx.functional.avg_pool(
            x, self.window, stride=self.stride, padding=_pads(self.padding, n, "MeanPool"),
            count_include_pad=self.count_include_pad,
        )  # fmt: skip


class GlobalMaxPool(Module):
    """The maximum over all spatial axes: [N, C, space...] -> [N, C], or [N, C, 1, ...] with `keepdims`."""

    keepdims: bool = static(default=False)

    def __call__(self, x: Any) -> Any:
        n = _spatial("GlobalMaxPool", x)
        return fx.max(x, axis=tuple(range(2, 2 + n)), keepdims=self.keepdims)


class GlobalMeanPool(Module):
    """The mean over all spatial axes: [N, C, space...] -> [N, C], or [N, C, 1, ...] with `keepdims`."""

    keepdims: bool = static(default=False)

    def __call__(self, x: Any) -> Any:
        n = _spatial("GlobalMeanPool", x)
        return fx.mean(x, axis=tuple(range(2, 2 + n)), keepdims=self.keepdims)


def _bounds(size: int, out: int) -> list[tuple[int, int]]:
    """The window of each output: from floor(i * size / out) to ceil((i + 1) * size / out), which may overlap."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


class _Adaptive(Module):
    size: Any = static()

    def __init__(self, size: Window) -> None:
        self.size = _frozen(size)

    def __call__(self, x: Any) -> Any:
        name = type(self).__name__
        n = _spatial(name, x)
        sizes = per_axis(self.size, n, name, "size")
        shape = fx.shape(x)
        for k, (d, o) in enumerate(zip(shape[2:], sizes, strict=True)):
            if o == 1:
                # One window, the whole axis, whatever its size.
                x = self._whole(x, 2 + k)
                continue
            if not isinstance(d, int):
                raise fx.error(
                    "FX1002",
                    f"{name} to {o} windows needs an axis of known size: axis {2 + k} of {list(shape)} is {d}",
                )
            x = self._axis(x, 2 + k, d, o)
        return x

    def _axis(self, x: Any, axis: int, size: int, out: int) -> Any:
        raise NotImplementedError

    def _whole(self, x: Any, axis: int) -> Any:
        raise NotImplementedError

    def _split(self, x: Any, axis: int, size: int, out: int) -> Any:
        """The axis as [out, size / out], where the windows do not overlap."""
        shape = fx.shape(x)
        return fx.reshape(x, (*shape[:axis], out, size // out, *shape[axis + 1 :]))


class AdaptiveMaxPool(_Adaptive):
    """Maximum over windows chosen so that the spatial sizes become `size`: [N, C, space...] -> [N, C, size...]."""

    def _axis(self, x: Any, axis: int, size: int, out: int) -> Any:
        if size % out == 0:
            return fx.max(self._split(x, axis, size, out), axis=axis + 1)
        bounds = _bounds(size, out)
        widest = max(b - a for a, b in bounds)
        # A shorter window repeats its last element, which does not change the maximum.
        index = np.array([[min(a + j, b - 1) for j in range(widest)] for a, b in bounds])
        return fx.max(fx.take(x, index, axis=axis), axis=axis + 1)

    def _whole(self, x: Any, axis: int) -> Any:
        return fx.max(x, axis=axis, keepdims=True)


class AdaptiveMeanPool(_Adaptive):
    """Mean over windows chosen so that the spatial sizes become `size`: [N, C, space...] -> [N, C, size...]."""

    def _axis(self, x: Any, axis: int, size: int, out: int) -> Any:
        if size % out == 0:
            return fx.mean(self._split(x, axis, size, out), axis=axis + 1)
        weight = np.zeros((size, out))
        for i, (a, b) in enumerate(_bounds(size, out)):
            weight[a:b, i] = 1 / (b - a)
        return fx.moveaxis(fx.matmul(fx.moveaxis(x, axis, -1), fx.astype(weight, x.dtype)), -1, axis)

    def _whole(self, x: Any, axis: int) -> Any:
        return fx.mean(x, axis=axis, keepdims=True)


__all__ = ["AdaptiveMaxPool", "AdaptiveMeanPool", "GlobalMaxPool", "GlobalMeanPool", "MaxPool", "MeanPool"]
