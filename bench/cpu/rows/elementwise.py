"""Chains of elementwise operations: with transcendental functions, with arithmetic alone, broadcast, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cpu.row import normal, row

F = 4
LARGE = 1 << 22


def chain8(xp: Any, x: Any, y: Any) -> Any:
    """Eight operations, tanh and exp among them."""
    return xp.tanh(x * y + 0.5) * xp.exp(-xp.abs(x)) + y * 0.25


def arithmetic(x: Any, y: Any) -> Any:
    """Six multiplications and additions."""
    return ((x * y + 0.5) * x - y) * 0.25 + x


def _chain8_ours(x: Any, y: Any) -> Any:
    import fluxir as fx

    return chain8(fx, x, y)


def _chain8_torch(x: Any, y: Any) -> Any:
    import torch

    return chain8(torch, x, y)


def _chain8_jax(x: Any, y: Any) -> Any:
    import jax.numpy as jnp

    return chain8(jnp, x, y)


def _chain8_onnx(g: Any, x: Any, y: Any) -> Any:
    t = g.op("Tanh", g.op("Add", g.op("Mul", x, y), 0.5))
    e = g.op("Exp", g.op("Neg", g.op("Abs", x)))
    return g.op("Add", g.op("Mul", t, e), g.op("Mul", y, 0.25))


def _chain8_numba() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def f(x: Any, y: Any) -> Any:
        out = np.empty_like(x)
        for i in numba.prange(x.size):
            a, b = x[i], y[i]
            out[i] = np.tanh(a * b + np.float32(0.5)) * np.exp(-abs(a)) + b * np.float32(0.25)
        return out

    return f


def _arithmetic_onnx(g: Any, x: Any, y: Any) -> Any:
    a = g.op("Sub", g.op("Mul", g.op("Add", g.op("Mul", x, y), 0.5), x), y)
    return g.op("Add", g.op("Mul", a, 0.25), x)


def _arithmetic_numba() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def f(x: Any, y: Any) -> Any:
        out = np.empty_like(x)
        for i in numba.prange(x.size):
            a, b = x[i], y[i]
            out[i] = ((a * b + np.float32(0.5)) * a - b) * np.float32(0.25) + a
        return out

    return f


def pair(name: str, n: int, *, share: float, ratio: float = 0.95, held_out: bool = False, **functions: Any) -> None:
    """A row of two inputs and one output of n numbers."""
    row(
        name, "elementwise", lambda: (normal(n), normal(n, seed=1)), share=share, ratio=ratio,
        moved=(2 * F * n, F * n), held_out=held_out, **functions,
    )  # fmt: skip


CHAIN8 = {
    "ours": _chain8_ours, "numpy": lambda x, y: chain8(np, x, y), "torch": _chain8_torch, "jax": _chain8_jax,
    "onnx": _chain8_onnx, "numba": _chain8_numba,
}  # fmt: skip
ARITHMETIC = {
    "ours": arithmetic, "numpy": arithmetic, "torch": arithmetic, "jax": arithmetic, "onnx": _arithmetic_onnx,
    "numba": _arithmetic_numba,
}  # fmt: skip
pair("chain of 8 with tanh, exp, 4M", LARGE, share=0, ratio=1.5, **CHAIN8)
pair("arithmetic chain, 4M", LARGE, share=0.9, **ARITHMETIC)
pair("chain of 8 with tanh, exp, 100,003", 100_003, share=0, ratio=1.5, held_out=True, **CHAIN8)
pair("arithmetic chain, 10,000", 10_000, share=0, held_out=True, **ARITHMETIC)
pair("arithmetic chain, 1,000,003", 1_000_003, share=0, held_out=True, **ARITHMETIC)


def _logistic(xp: Any, x: Any, y: Any) -> Any:
    """log, sqrt and a sigmoid."""
    return xp.log(x * x + 1) / xp.sqrt(y * y + 1) + 1 / (1 + xp.exp(-y))


def _logistic_ours(x: Any, y: Any) -> Any:
    import fluxir as fx

    return _logistic(fx, x, y)


def _logistic_torch(x: Any, y: Any) -> Any:
    import torch

    return _logistic(torch, x, y)


def _logistic_jax(x: Any, y: Any) -> Any:
    import jax.numpy as jnp

    return _logistic(jnp, x, y)


def _logistic_numba() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def f(x: Any, y: Any) -> Any:
        out = np.empty_like(x)
        one = np.float32(1)
        for i in numba.prange(x.size):
            a, b = x[i], y[i]
            out[i] = np.log(a * a + one) / np.sqrt(b * b + one) + one / (one + np.exp(-b))
        return out

    return f


pair(
    "log, sqrt, sigmoid, 2M", 2_000_000, share=0, held_out=True, ours=_logistic_ours, torch=_logistic_torch,
    jax=_logistic_jax, numba=_logistic_numba, numpy=lambda x, y: _logistic(np, x, y),
)  # fmt: skip


def _bias_ours(x: Any, s: Any, b: Any) -> Any:
    import fluxir as fx

    return fx.maximum(x * s + b, 0)


def _bias_jax(x: Any, s: Any, b: Any) -> Any:
    import jax.numpy as jnp

    return jnp.maximum(x * s + b, 0)


row(
    "relu(x * s + b) by channel, 8x64x56x57", "elementwise",
    lambda: (normal(8, 64, 56, 57), normal(64, 1, 1), normal(64, 1, 1, seed=1)), held_out=True, share=0.9,
    moved=(F * 8 * 64 * 56 * 57, F * 8 * 64 * 56 * 57),
    ours=_bias_ours, numpy=lambda x, s, b: np.maximum(x * s + b, 0), torch=lambda x, s, b: (x * s + b).relu(), jax=_bias_jax,
    onnx=lambda g, x, s, b: g.op("Relu", g.op("Add", g.op("Mul", x, s), b)),
)  # fmt: skip
