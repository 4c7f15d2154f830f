"""Upsample (nearest, linear, bilinear, trilinear) and PixelShuffle: x [N, C, space...]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fluxir as fx
from fluxir.nn.module import Module, per_axis, static

_AXES = {"nearest": None, "linear": 1, "bilinear": 2, "trilinear": 3}


class Upsample(Module):
    """Larger (or smaller) images: by the factor `scale` (a number, or one for each axis), or to `size`.

    `mode` is "nearest", or "linear", "bilinear", "trilinear" for one to three spatial axes. Element i stands for the
    interval i..i+1, so that corners are not aligned; with `align_corners` the outermost elements keep their places.
    Positions outside are those of the outermost elements.
    """

    scale: Any = static()
    size: Any = static()
    mode: str = static()
    align_corners: bool = static()

    def __init__(
        self, scale: float | Sequence[float] | None = None, mode: str = "nearest",
        *, size: int | Sequence[int] | None = None, align_corners: bool = False,
    ) -> None:  # fmt: skip
        if mode not in _AXES:
            raise fx.error("FX1003", f"Upsample: the mode is {', '.join(_AXES)}, not {mode!r}")
        if (scale is None) == (size is None):
            raise fx.error("FX1003", "Upsample takes a scale or a size, one of them")
        if align_corners and mode == "nearest":
            raise fx.error("FX1003", "Upsample: align_corners is for the linear modes")
        self.scale = tuple(scale) if isinstance(scale, Sequence) else scale
        self.size = tuple(size) if isinstance(size, Sequence) else size
        self.mode, self.align_corners = mode, align_corners

    def __call__(self, x: Any) -> Any:
        n = len(fx.shape(x)) - 2
        if n < 1 or _AXES[self.mode] not in (None, n):
            raise fx.error("FX1002", f"Upsample by {self.mode} is given {list(fx.shape(x))}: [N, C, space...]")
        shape = fx.shape(x)
        for k, d in enumerate(shape[2:]):
            scale = self.scale[k] if isinstance(self.scale, tuple) else self.scale
            if self.size is not None:
                out: Any = per_axis(self.size, n, "Upsample", "size")[k]
                # Of a symbolic size the ratio is computed when the program runs.
                ratio: Any = d / out if isinstance(d, int) else (fx.ones((), dtype="f64") * d) / out
            elif isinstance(scale, int) or float(scale).is_integer():
                out, ratio = d * int(scale), 1 / scale
            elif isinstance(d, int):
                out, ratio = math.floor(d * scale), 1 / scale
            else:
                raise fx.error(
                    "FX1002", f"Upsample by {scale} needs axis {2 + k} of {list(shape)} of known size, not {d}"
                )
            x = self._axis(x, 2 + k, d, out, ratio)
        return x

    def _axis(self, x: Any, axis: int, d: Any, out: Any, ratio: Any) -> Any:
        if self.mode == "nearest" and self.scale is not None and float(1 / ratio).is_integer():
            return fx.repeat(x, round(1 / ratio), axis=axis)
        at = fx.astype(fx.arange(out), "f64")
        if self.mode == "nearest":
            return fx.take(x, fx.minimum(fx.astype(fx.floor(at * ratio), "i64"), d - 1), axis=axis)
        if self.align_corners:
            one = fx.ones((), dtype="f64")
            step = (one * (d - 1)) / fx.maximum(one * (out - 1), 1.0)
            at = at * step
        else:
            at = fx.maximum((at + 0.5) * ratio - 0.5, 0.0)
        low = fx.minimum(fx.astype(fx.floor(at), "i64"), d - 1)
        high = fx.minimum(low + 1, d - 1)
        shape = (-1, *[1] * (len(fx.shape(x)) - axis - 1))
        part = fx.reshape(fx.astype(at - fx.astype(low, "f64"), x.dtype), shape)
        return fx.take(x, low, axis=axis) * (1 - part) + fx.take(x, high, axis=axis) * part


class PixelShuffle(Module):
    """Channels become space: [N, C * r^n, space...] -> [N, C, space * r...] (Shi et al. 2016)."""

    factor: int = static()

    def __call__(self, x: Any) -> Any:
        b, c, *space = fx.shape(x)
        r, n = self.factor, len(space)
        if n < 1 or c % r**n:
            raise fx.error(
                "FX1002", f"PixelShuffle({r}) is given {list(fx.shape(x))}: the channels are a multiple of {r**n}"
            )
        y = fx.reshape(x, (b, c // r**n, *[r] * n, *space))
        order = [0, 1]
        for k in range(n):
            order += [2 + n + k, 2 + k]
        return fx.reshape(fx.permute_dims(y, tuple(order)), (b, c // r**n, *[d * r for d in space]))


__all__ = ["PixelShuffle", "Upsample"]
