"""What a call itself costs: a few numbers, several arguments, a tiny network."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cpu.row import normal, row


def _numba_add() -> Any:
    import numba

    return numba.njit(lambda x, y: x + y)


def _numba_sum5() -> Any:
    import numba

    return numba.njit(lambda a, b, c, d, e: a * b + c * d + e)


row(
    "call on 8 elements", "call", lambda: (np.arange(8, dtype=np.float32), np.ones(8, np.float32)), seconds=3e-6, ratio=0,
    ours=lambda x, y: x + y, numpy=lambda x, y: x + y, torch=lambda x, y: x + y, jax=lambda x, y: x + y,
    onnx=lambda g, x, y: g.op("Add", x, y), numba=_numba_add,
)  # fmt: skip
row(
    "call on five arrays of 8", "call", lambda: tuple(normal(8, seed=i) for i in range(5)), seconds=4e-6, ratio=0, held_out=True,
    ours=lambda a, b, c, d, e: a * b + c * d + e, numpy=lambda a, b, c, d, e: a * b + c * d + e,
    torch=lambda a, b, c, d, e: a * b + c * d + e, jax=lambda a, b, c, d, e: a * b + c * d + e,
    onnx=lambda g, a, b, c, d, e: g.op("Add", g.op("Add", g.op("Mul", a, b), g.op("Mul", c, d)), e), numba=_numba_sum5,
)  # fmt: skip


def _tiny(tanh: Any) -> Any:
    return lambda x, w, v: tanh(x @ w) @ v


def _tiny_ours(x: Any, w: Any, v: Any) -> Any:
    import fluxir as fx

    return _tiny(fx.tanh)(x, w, v)


def _tiny_jax(x: Any, w: Any, v: Any) -> Any:
    import jax.numpy as jnp

    return _tiny(jnp.tanh)(x, w, v)


row(
    "call of a network 4-8-2, batch 1", "call", lambda: (normal(1, 4), normal(4, 8), normal(8, 2)), weights=2, seconds=4e-6,
    ratio=0, held_out=True, ours=_tiny_ours, numpy=_tiny(np.tanh), torch=lambda x, w, v: (x @ w).tanh() @ v, jax=_tiny_jax,
    onnx=lambda g, x, w, v: g.op("MatMul", g.op("Tanh", g.op("MatMul", x, w)), v),
)  # fmt: skip
