"""Convolutional networks at inference: ResNet-18 (He et al. 2015), and a small one."""

from __future__ import annotations

import functools
from typing import Any

from bench.cpu.row import normal, row

F = 4
BLOCKS = [
    (f"s{s}.{i}", 64 if s == 0 else (64 << s) // (2 if i == 0 else 1), 64 << s, 2 if s > 0 and i == 0 else 1)
    for s in range(4)
    for i in range(2)
]
"""Of each block of ResNet-18: its name, channels in and out, stride."""


@functools.cache
def resnet_weights() -> dict[str, Any]:
    p: dict[str, Any] = {}

    def conv(name: str, i: int, o: int, k: int) -> None:
        p[f"{name}.w"] = normal(o, i, k, k, scale=(2 / (i * k * k)) ** 0.5, seed=len(p))
        for s in ("scale", "shift", "mean"):
            p[f"{name}.{s}"] = normal(o, scale=0.1, shift=float(s == "scale"), seed=len(p))
        p[f"{name}.var"] = abs(normal(o, scale=0.1, shift=1.0, seed=len(p)))

    conv("stem", 3, 64, 7)
    for name, i, o, stride in BLOCKS:
        conv(f"{name}.a", i, o, 3)
        conv(f"{name}.b", o, o, 3)
        if stride != 1:
            conv(f"{name}.skip", i, o, 1)
    p["head.w"], p["head.b"] = normal(512, 1000, scale=512**-0.5), normal(1000, scale=0.1)
    return p


def resnet(lib: Any, x: Any, p: dict[str, Any]) -> Any:
    """The network in terms of `lib`: conv_norm, relu, max_pool, add, head."""

    def conv(name: str, x: Any, stride: int = 1, pad: int = 1) -> Any:
        return lib.conv_norm(x, *(p[f"{name}.{s}"] for s in ("w", "scale", "shift", "mean", "var")), stride, pad)

    h = lib.max_pool(lib.relu(conv("stem", x, 2, 3)))
    for name, _, _, stride in BLOCKS:
        inner = conv(f"{name}.b", lib.relu(conv(f"{name}.a", h, stride)))
        skip = conv(f"{name}.skip", h, stride, 0) if stride != 1 else h
        h = lib.relu(lib.add(inner, skip))
    return lib.head(h, p["head.w"], p["head.b"])


class _Ours:
    def __init__(self) -> None:
        import fluxir as fx

        self.fx = fx

    def conv_norm(self, x: Any, w: Any, scale: Any, shift: Any, mean: Any, var: Any, stride: int, pad: int) -> Any:
        return self.fx.functional.batch_norm(self.fx.conv(x, w, stride=stride, padding=pad), mean, var, scale, shift)

    def relu(self, x: Any) -> Any:
        return self.fx.maximum(x, 0)

    def max_pool(self, x: Any) -> Any:
        return self.fx.functional.max_pool(x, 3, stride=2, padding=1)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def head(self, x: Any, w: Any, b: Any) -> Any:
        return self.fx.mean(x, axis=(2, 3)) @ w + b


class _Torch:
    def conv_norm(self, x: Any, w: Any, scale: Any, shift: Any, mean: Any, var: Any, stride: int, pad: int) -> Any:
        import torch.nn.functional as f

        return f.batch_norm(f.conv2d(x, w, None, stride, pad), mean, var, scale, shift)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def max_pool(self, x: Any) -> Any:
        import torch

        return torch.nn.functional.max_pool2d(x, 3, 2, 1)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def head(self, x: Any, w: Any, b: Any) -> Any:
        import torch

        return torch.addmm(b, x.mean((2, 3)), w)


class _Jax:
    def conv_norm(self, x: Any, w: Any, scale: Any, shift: Any, mean: Any, var: Any, stride: int, pad: int) -> Any:
        import jax

        z = jax.lax.conv(x, w, (stride, stride), ((pad, pad),) * 2)
        s = scale * jax.lax.rsqrt(var + 1e-5)
        return z * s[:, None, None] + (shift - mean * s)[:, None, None]

    def relu(self, x: Any) -> Any:
        import jax

        return jax.nn.relu(x)

    def max_pool(self, x: Any) -> Any:
        import jax

        pads = ((0, 0), (0, 0), (1, 1), (1, 1))
        return jax.lax.reduce_window(x, -float("inf"), jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), pads)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def head(self, x: Any, w: Any, b: Any) -> Any:
        return x.mean((2, 3)) @ w + b


class _Onnx:
    def __init__(self, g: Any) -> None:
        self.g = g

    def conv_norm(self, x: Any, w: Any, scale: Any, shift: Any, mean: Any, var: Any, stride: int, pad: int) -> Any:
        z = self.g.op("Conv", x, w, strides=[stride] * 2, pads=[pad] * 4)
        return self.g.op("BatchNormalization", z, scale, shift, mean, var, epsilon=1e-5)

    def relu(self, x: Any) -> Any:
        return self.g.op("Relu", x)

    def max_pool(self, x: Any) -> Any:
        return self.g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def add(self, x: Any, y: Any) -> Any:
        return self.g.op("Add", x, y)

    def head(self, x: Any, w: Any, b: Any) -> Any:
        return self.g.op("Gemm", self.g.op("Flatten", self.g.op("GlobalAveragePool", x)), w, b)


def _flops(size: int) -> float:
    """Of one image of size x size."""
    total, side = 2.0 * 3 * 64 * 49 * (size // 2) ** 2, size // 4
    for _, i, o, stride in BLOCKS:
        side //= stride
        total += 2.0 * side**2 * (9 * o * (i + o) + (i * o if stride != 1 else 0))
    return total + 2.0 * 512 * 1000


def network(
    name: str, model: Any, weights: Any, shape: tuple[int, ...], flops: float, share: float, held_out: bool
) -> None:
    row(
        name, "model", lambda: (normal(*shape), weights()), weights=1, flops=flops, share=share,
        held_out=held_out, tolerance=2e-3, ours=lambda x, p: model(_Ours(), x, p), torch=lambda x, p: model(_Torch(), x, p),
        jax=lambda x, p: model(_Jax(), x, p), onnx=lambda g, x, p: model(_Onnx(g), x, p),
    )  # fmt: skip


network("ResNet-18 b1 224x224", resnet, resnet_weights, (1, 3, 224, 224), _flops(224), 0.95, False)
network("ResNet-18 b4 160x160", resnet, resnet_weights, (4, 3, 160, 160), 4 * _flops(160), 0.9, True)


@functools.cache
def small_weights() -> dict[str, Any]:
    p: dict[str, Any] = {}
    for name, i, o in (("a", 1, 16), ("b", 16, 24), ("c", 24, 40)):
        p[f"{name}.w"] = normal(o, i, 3, 3, scale=(2 / (9 * i)) ** 0.5)
        p |= {
            f"{name}.{s}": normal(o, scale=0.1, shift=float(s == "scale"), seed=i) for s in ("scale", "shift", "mean")
        }
        p[f"{name}.var"] = abs(normal(o, scale=0.1, shift=1.0))
    p["head.w"], p["head.b"] = normal(40, 10, scale=0.1), normal(10, scale=0.1)
    return p


def small(lib: Any, x: Any, p: dict[str, Any]) -> Any:
    """Three convolutions with pooling between them."""
    for name in "abc":
        x = lib.relu(lib.conv_norm(x, *(p[f"{name}.{s}"] for s in ("w", "scale", "shift", "mean", "var")), 1, 1))
        x = lib.max_pool(x)
    return lib.head(x, p["head.w"], p["head.b"])


_SMALL = 2.0 * 9 * (16 * 28**2 + 16 * 24 * 14**2 + 24 * 40 * 7**2) + 800
network("small network of 28x28 images, batch 32", small, small_weights, (32, 1, 28, 28), 32 * _SMALL, 0.0, True)
