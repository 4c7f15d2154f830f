"""Small dense networks at inference: weights are constants of the program."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from bench.cpu.row import normal, row

F = 4


def _weights(sizes: tuple[int, ...]) -> dict[str, Any]:
    pairs = list(enumerate(itertools.pairwise(sizes)))
    return {f"w{i}": normal(a, b, scale=(2 / a) ** 0.5, seed=i) for i, (a, b) in pairs} | {
        f"b{i}": normal(b, scale=0.1, seed=i) for i, (_, b) in pairs
    }


def _layers(p: dict[str, Any]) -> list[tuple[Any, Any, bool]]:
    """(weight, bias, whether a relu follows) in order."""
    n = len(p) // 2
    return [(p[f"w{i}"], p[f"b{i}"], i < n - 1) for i in range(n)]


def _ours(x: Any, p: Any) -> Any:
    import fluxir as fx

    for w, b, more in _layers(p):
        x = x @ w + b
        x = fx.maximum(x, 0) if more else x
    return x


def _numpy(x: Any, p: Any) -> Any:
    for w, b, more in _layers(p):
        x = x @ w + b
        x = np.maximum(x, 0) if more else x
    return x


def _torch(x: Any, p: Any) -> Any:
    import torch

    for w, b, more in _layers(p):
        x = torch.addmm(b, x, w)
        x = torch.relu(x) if more else x
    return x


def _jax(x: Any, p: Any) -> Any:
    import jax

    for w, b, more in _layers(p):
        x = x @ w + b
        x = jax.nn.relu(x) if more else x
    return x


def _onnx(g: Any, x: Any, p: Any) -> Any:
    for w, b, more in _layers(p):
        x = g.op("Gemm", x, w, b)
        x = g.op("Relu", x) if more else x
    return x


def mlp(sizes: tuple[int, ...], batch: int, *, share: float = 0.0, ratio: float = 0.95, held_out: bool = False) -> None:
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    row(
        f"MLP {'-'.join(map(str, sizes))}, batch {batch}", "mlp",
        lambda: (normal(batch, sizes[0]), _weights(sizes)), weights=1, flops=2.0 * batch * products,
        moved=(F * (products + sum(sizes[1:]) + batch * sizes[0]), F * batch * sizes[-1]),
        share=share, ratio=ratio, held_out=held_out,
        ours=_ours, numpy=_numpy, torch=_torch, jax=_jax, onnx=_onnx,
    )  # fmt: skip


mlp((784, 512, 256, 10), 1, ratio=1.5)
mlp((784, 512, 256, 10), 32, share=0.9)
mlp((784, 512, 256, 10), 256, share=0.92)
mlp((13, 64, 32, 1), 7, held_out=True)
mlp((128, 300, 300, 50), 100, share=0.9, held_out=True)
mlp((20, 40, 40, 40, 40, 2), 1, held_out=True)
