"""Matrix products: square, tall, skinny, odd, transposed, batched; few rows; with an epilogue."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from bench.cpu.row import normal, row

F = 4  # bytes of an f32


def numba_dot() -> Any:
    import numba

    return numba.njit(lambda x, y: np.dot(x, y))


def _product(m: int, k: int, n: int) -> dict[str, Any]:
    """What an m x k by k x n product costs."""
    return {"flops": 2.0 * m * k * n, "moved": (F * (m * k + k * n), F * m * n)}


def product(
    m: int, k: int, n: int, *, kind: str = "matmul", name: str = "", share: float = 0.9, held_out: bool = False
) -> None:
    """x[m, k] @ y[k, n], both arguments."""
    row(
        name or f"matmul {m}x{k} @ {k}x{n}", kind, lambda: (normal(m, k), normal(k, n, seed=1)), share=share,
        held_out=held_out, **_product(m, k, n),
        ours=lambda x, y: x @ y, numpy=lambda x, y: x @ y, torch=lambda x, y: x @ y, jax=lambda x, y: x @ y,
        onnx=lambda g, x, y: g.op("MatMul", x, y), numba=numba_dot,
    )  # fmt: skip


for n in (256, 512, 1024, 2048):
    product(n, n, n, name=f"matmul {n}")
product(1, 4096, 4096, kind="vector", name="1x4096 @ 4096x4096 (decode)")
product(32, 768, 3072, name="32x768 @ 768x3072")

for m, k, n in ((64, 64, 64), (511, 513, 509), (1000, 1000, 1000), (8192, 64, 96), (64, 8192, 64), (77, 4096, 300),
                (4, 1024, 4096)):  # fmt: skip
    product(m, k, n, held_out=True)
for m, k, n in ((1, 1000, 1001), (2048, 2048, 1), (2, 4096, 4096)):
    product(m, k, n, kind="vector", held_out=True)

row(
    "x^T @ y, 512x384 and 512x640", "matmul", lambda: (normal(512, 384), normal(512, 640)), held_out=True, share=0.9,
    **_product(384, 512, 640),
    ours=lambda x, y: x.T @ y, numpy=lambda x, y: x.T @ y, torch=lambda x, y: x.T @ y, jax=lambda x, y: x.T @ y,
    onnx=lambda g, x, y: g.op("MatMul", g.op("Transpose", x, perm=[1, 0]), y),
)  # fmt: skip
row(
    "x @ y^T, 300x700 and 500x700", "matmul", lambda: (normal(300, 700), normal(500, 700)), held_out=True, share=0.9,
    **_product(300, 700, 500),
    ours=lambda x, y: x @ y.T, numpy=lambda x, y: x @ y.T, torch=lambda x, y: x @ y.T, jax=lambda x, y: x @ y.T,
    onnx=lambda g, x, y: g.op("MatMul", x, g.op("Transpose", y, perm=[1, 0])),
)  # fmt: skip
for b, m, k, n in ((256, 32, 32, 32), (96, 17, 65, 33), (8, 256, 64, 256)):
    row(
        f"batched {b} of {m}x{k} @ {k}x{n}", "matmul", lambda b=b, m=m, k=k, n=n: (normal(b, m, k), normal(b, k, n)),
        held_out=True, share=0.9, flops=2.0 * b * m * k * n, moved=(F * b * (m * k + k * n), F * b * m * n),
        ours=lambda x, y: x @ y, numpy=lambda x, y: x @ y, torch=lambda x, y: x @ y, jax=lambda x, y: x @ y,
        onnx=lambda g, x, y: g.op("MatMul", x, y),
    )  # fmt: skip

# ---- with an epilogue -----------------------------------------------------------------------------------------------------


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _gelu_ours(approximate: bool, x: Any, w: Any, b: Any) -> Any:
    import fluxir as fx

    return fx.functional.gelu(x @ w + b, approximate=approximate)


def _gelu_torch(approximate: bool, x: Any, w: Any, b: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(torch.addmm(b, x, w), approximate="tanh" if approximate else "none")


def _gelu_jax(approximate: bool, x: Any, w: Any, b: Any) -> Any:
    import jax

    return jax.nn.gelu(x @ w + b, approximate=approximate)


def _gelu_onnx(approximate: bool, g: Any, x: Any, w: Any, b: Any) -> Any:
    if approximate:
        return g.op("FastGelu", g.op("MatMul", x, w), b, domain="com.microsoft")
    return g.op("BiasGelu", g.op("MatMul", x, w), b, domain="com.microsoft")


def linear_gelu(m: int, k: int, n: int, approximate: bool, held_out: bool = False) -> None:
    how = functools.partial
    peers = {"numpy": lambda x, w, b: _gelu(x @ w + b)} if approximate else {}
    row(
        f"matmul + bias + gelu{'' if approximate else ' (erf)'} {m}x{k}x{n}", "linear",
        lambda: (normal(m, k), normal(k, n, scale=k**-0.5), normal(n, scale=0.1)), weights=2, share=0.92,
        held_out=held_out, **_product(m, k, n),
        ours=how(_gelu_ours, approximate), torch=how(_gelu_torch, approximate), jax=how(_gelu_jax, approximate),
        onnx=how(_gelu_onnx, approximate), **peers,
    )  # fmt: skip


linear_gelu(512, 768, 3072, True)
linear_gelu(197, 384, 1536, False, held_out=True)
linear_gelu(33, 1000, 300, True, held_out=True)


def _relu_ours(x: Any, w: Any, b: Any) -> Any:
    import fluxir as fx

    return fx.maximum(x @ w + b, 0)


def _relu_jax(x: Any, w: Any, b: Any) -> Any:
    import jax

    return jax.nn.relu(x @ w + b)


row(
    "relu(x @ w + b) 1000x300x777", "linear", lambda: (normal(1000, 300), normal(300, 777, scale=0.05), normal(777)),
    weights=2, share=0.9, held_out=True, **_product(1000, 300, 777),
    ours=_relu_ours, numpy=lambda x, w, b: np.maximum(x @ w + b, 0), jax=_relu_jax,
    torch=lambda x, w, b: (x @ w + b).relu(),
    onnx=lambda g, x, w, b: g.op("Relu", g.op("Gemm", x, w, b)),
)  # fmt: skip
