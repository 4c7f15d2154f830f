"""Convolution and pooling: square windows, strides, pointwise, depthwise, odd sizes, groups, dilation."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from bench.cpu.row import normal, row

F = 4


@dataclass(frozen=True)
class Conv:
    """Sizes of a two-dimensional convolution of square windows, padded by `pad` on all sides."""

    batch: int
    inputs: int
    outputs: int
    height: int
    width: int
    window: int = 3
    stride: int = 1
    pad: int = 1
    groups: int = 1
    dilation: int = 1

    @property
    def reach(self) -> int:
        return (self.window - 1) * self.dilation + 1

    @property
    def points(self) -> int:
        """Output positions of a channel."""
        h, w = ((d + 2 * self.pad - self.reach) // self.stride + 1 for d in (self.height, self.width))
        return h * w

    def arrays(self) -> tuple[Any, ...]:
        fan = self.inputs // self.groups * self.window**2
        return (normal(self.batch, self.inputs, self.height, self.width),
                normal(self.outputs, self.inputs // self.groups, self.window, self.window, scale=fan**-0.5))  # fmt: skip


def _ours(c: Conv, x: Any, w: Any) -> Any:
    import fluxir as fx

    return fx.conv(x, w, stride=c.stride, padding=c.pad, groups=c.groups, dilation=c.dilation)


def _torch(c: Conv, x: Any, w: Any) -> Any:
    import torch

    return torch.nn.functional.conv2d(x, w, None, c.stride, c.pad, c.dilation, c.groups)


def _jax(c: Conv, x: Any, w: Any) -> Any:
    import jax

    return jax.lax.conv_general_dilated(
        x, w, (c.stride, c.stride), ((c.pad, c.pad),) * 2, rhs_dilation=(c.dilation,) * 2, feature_group_count=c.groups
    )


def _onnx(c: Conv, g: Any, x: Any, w: Any) -> Any:
    return g.op("Conv", x, w, strides=[c.stride] * 2, pads=[c.pad] * 4, dilations=[c.dilation] * 2, group=c.groups)


def conv(c: Conv, name: str, *, share: float = 0.95, held_out: bool = False) -> None:
    """The weight is a constant, as in a deployed model."""
    outputs = c.batch * c.outputs * c.points
    per = c.inputs // c.groups * c.window**2
    row(
        name, "conv", c.arrays, weights=1, flops=2.0 * outputs * per,
        moved=(F * (c.batch * c.inputs * c.height * c.width + c.outputs * per), F * outputs), share=share,
        held_out=held_out, tolerance=1e-3,
        **{k: functools.partial(f, c) for k, f in (("ours", _ours), ("torch", _torch), ("jax", _jax), ("onnx", _onnx))},
    )  # fmt: skip


conv(Conv(1, 64, 64, 56, 56), "conv 3x3 64-64 56x56")
conv(Conv(1, 96, 96, 56, 56, groups=96), "depthwise 3x3 96 56x56", share=0.6)

_out = functools.partial(conv, held_out=True)
_out(Conv(1, 3, 64, 224, 224, 7, 2, 3), "conv 7x7 / 2 3-64 224x224", share=0.9)
_out(Conv(1, 256, 64, 56, 56, 1, 1, 0), "conv 1x1 256-64 56x56")
_out(Conv(1, 128, 256, 28, 28, 3, 2), "conv 3x3 / 2 128-256 28x28")
_out(Conv(1, 512, 512, 7, 7), "conv 3x3 512-512 7x7")
_out(Conv(4, 17, 33, 29, 31), "conv 3x3 17-33 29x31, batch 4", share=0.9)
_out(Conv(2, 32, 48, 40, 40, 5, 1, 2), "conv 5x5 32-48 40x40, batch 2")
_out(Conv(1, 64, 64, 40, 40, 3, 1, 2, dilation=2), "conv 3x3 dilated by 2, 64-64 40x40")
_out(Conv(1, 64, 128, 28, 28, groups=4), "conv 3x3 64-128 28x28, 4 groups")
_out(Conv(2, 144, 144, 57, 55, 5, 2, 2, groups=144), "depthwise 5x5 / 2 144 57x55, batch 2", share=0.5)
_out(Conv(1, 512, 512, 14, 14, groups=512), "depthwise 3x3 512 14x14", share=0.5)


def _pool_ours(x: Any) -> Any:
    import fluxir as fx

    return fx.functional.max_pool(x, 3, stride=2, padding=1)


def _pool_torch(x: Any) -> Any:
    import torch

    return torch.nn.functional.max_pool2d(x, 3, 2, 1)


def _pool_jax(x: Any) -> Any:
    import jax

    return jax.lax.reduce_window(
        x, -float("inf"), jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1))
    )


row(
    "max pool 3x3 / 2, 64 112x112", "conv", lambda: (normal(1, 64, 112, 112),), share=0.6,
    moved=(F * 64 * 112 * 112, F * 64 * 56 * 56), held_out=True, ours=_pool_ours, torch=_pool_torch, jax=_pool_jax,
    onnx=lambda g, x: g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
)  # fmt: skip
