"""Row-wise work: softmax, layer norm, reductions along either axis and over everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cpu.row import normal, row

F = 4


def _softmax_numpy(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax_ours(x: Any) -> Any:
    import fluxir as fx

    return fx.functional.softmax(x, axis=-1)


def _softmax_jax(x: Any) -> Any:
    import jax

    return jax.nn.softmax(x, axis=-1)


def _softmax_numba() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def f(x: Any) -> Any:
        out = np.empty_like(x)
        for i in numba.prange(x.shape[0]):
            most = x[i, 0]
            for j in range(x.shape[1]):
                most = max(most, x[i, j])
            total = np.float32(0)
            for j in range(x.shape[1]):
                out[i, j] = np.exp(x[i, j] - most)
                total += out[i, j]
            for j in range(x.shape[1]):
                out[i, j] /= total
        return out

    return f


def softmax(m: int, n: int, held_out: bool = False) -> None:
    row(
        f"softmax {m}x{n}", "row", lambda: (normal(m, n),), share=0.75, moved=(F * m * n, F * m * n),
        held_out=held_out, ours=_softmax_ours, numpy=_softmax_numpy, torch=lambda x: x.softmax(-1), jax=_softmax_jax,
        onnx=lambda g, x: g.op("Softmax", x, axis=-1), numba=_softmax_numba,
    )  # fmt: skip


def _norm_numpy(x: Any, s: Any, b: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * s + b


def _norm_ours(x: Any, s: Any, b: Any) -> Any:
    import fluxir as fx

    return fx.functional.layer_norm(x, s, b, eps=1e-5)


def _norm_torch(x: Any, s: Any, b: Any) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, s.shape, s, b, 1e-5)


def _norm_jax(x: Any, s: Any, b: Any) -> Any:
    import jax.numpy as jnp

    mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * s + b


def layer_norm(m: int, n: int, held_out: bool = False) -> None:
    row(
        f"layer norm {m}x{n}", "row", lambda: (normal(m, n), normal(n, shift=1.0), normal(n, seed=1)), share=0.75,
        moved=(F * m * n, F * m * n), held_out=held_out, ours=_norm_ours, numpy=_norm_numpy,
        torch=_norm_torch, jax=_norm_jax,
        onnx=lambda g, x, s, b: g.op("LayerNormalization", x, s, b, axis=-1, epsilon=1e-5),
    )  # fmt: skip


softmax(4096, 1024)
layer_norm(4096, 1024)
softmax(333, 4097, held_out=True)
softmax(50_000, 10, held_out=True)
layer_norm(128, 768, held_out=True)
layer_norm(10_000, 100, held_out=True)


def reduction(name: str, axis: int | None, m: int, n: int) -> None:
    """sum, max or mean of an m x n array."""
    out = 1 if axis is None else (n, m)[axis]

    def with_module(module: str) -> Any:
        def f(x: Any) -> Any:
            import importlib

            return getattr(importlib.import_module(module), name)(x, axis=axis)

        return f

    def torch_(x: Any) -> Any:
        return getattr(x, "a" + name if name == "max" else name)(*(() if axis is None else (axis,)))

    kinds = {"sum": "ReduceSum", "max": "ReduceMax", "mean": "ReduceMean"}

    def onnx(g: Any, x: Any) -> Any:
        axes = [] if axis is None else [np.array([axis], np.int64)]
        return g.op(kinds[name], x, *axes, keepdims=0)

    row(
        f"{name} {'of all' if axis is None else f'over axis {axis}'}, {m}x{n}", "row", lambda: (normal(m, n, shift=0.5),),
        share=0.75, moved=(F * m * n, F * out), held_out=True,
        ours=with_module("fluxir"), numpy=with_module("numpy"), jax=with_module("jax.numpy"), torch=torch_, onnx=onnx,
    )  # fmt: skip


reduction("sum", None, 2048, 2048)
reduction("sum", 0, 2048, 1024)
reduction("max", 1, 3000, 1001)
reduction("mean", 0, 100_000, 10)
