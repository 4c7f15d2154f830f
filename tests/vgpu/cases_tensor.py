"""Cases of `kernels/tensor.cu`. Operands are small whole numbers, so that products are exact in any order and type."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.vgpu.case import BF16, Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng, blocks

H = np.float16


def small(rng: Rng, *shape: int, dtype: Any = F, most: int = 4) -> np.ndarray:
    return rng.integers(-most, most + 1, shape).astype(dtype)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) @ b.astype(np.float64)


@case("tensor", "matmul_f16", (64, 64, 32), (70, 72, 104), deep=[(200, 136, 520)])
def matmul_f16(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b = small(rng, m, k, dtype=H), small(rng, k, n, dtype=H)
    return Launch((blocks(n, 64), blocks(m, 64)), 128, [a, b, Out((m, n)), m, n, k], {2: product(a, b)})


@case("tensor", "matmul_bf16", (50, 80, 40), deep=[(200, 136, 520)])
def matmul_bf16(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b = small(rng, m, k, dtype=BF16), small(rng, k, n, dtype=BF16)
    return Launch((blocks(n, 64), blocks(m, 64)), 128, [a, b, Out((m, n)), m, n, k], {2: product(a, b)})


@case("tensor", "matmul_tf32", (32, 32, 16), (33, 44, 52), deep=[(200, 136, 520)])
def matmul_tf32(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b = small(rng, m, k), small(rng, k, n)
    return Launch((blocks(n, 32), blocks(m, 32)), 128, [a, b, Out((m, n)), m, n, k], {2: product(a, b)})


@case("tensor", "matmul_s8", (32, 32, 32), (45, 37, 80), deep=[(200, 130, 512)])
def matmul_s8(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b = small(rng, m, k, dtype=np.int8, most=127), small(rng, n, k, dtype=np.int8, most=127)
    args = [a, b, Out((m, n), np.int32), m, n, k]
    return Launch((blocks(n, 32), blocks(m, 32)), 128, args, {2: a.astype(np.int64) @ b.T})


@case("tensor", "mma_shapes")
def mma_shapes(rng: Rng) -> Launch:
    a, b = small(rng, 16, 16, dtype=H), small(rng, 16, 8, dtype=H)
    u, v = rng.normal(size=(8, 4)), rng.normal(size=(4, 8))
    x, y = rng.integers(0, 256, (16, 16)).astype(np.uint8), rng.integers(0, 256, (8, 16)).astype(np.uint8)
    first = np.tile([[1.0, 2.0]], (8, 4)), np.tile([[3.0, 4.0]], (8, 4))
    half = product(a[:, :8], b[:8]) + np.concatenate(first)
    sums = np.stack([half, product(a[:, :4], b[:4])])
    signed = x.view(np.int8).astype(np.int64) @ y.T.astype(np.int64)
    whole = np.concatenate([signed, x[:8].astype(np.int64) @ y.view(np.int8).T.astype(np.int64)])
    args = [
        a,
        b,
        Out((16, 8), H),
        Out((2, 16, 8)),
        u,
        v,
        Out((8, 8), np.float64),
        np.concatenate([x, y]),
        Out((24, 8), np.int32),
    ]
    wide = u @ v + np.tile([[0.5, -0.5]], (8, 4))
    return Launch(1, 32, args, {2: product(a, b), 3: sums, 6: wide, 8: whole}, rtol=1e-13)


@case("tensor", "wmma_f16", (16, 16, 16), (48, 32, 64), deep=[(160, 192, 256)])
def wmma_f16(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b, c = small(rng, m, k, dtype=H), small(rng, k, n, dtype=H), small(rng, m, n)
    return Launch((n // 16, m // 16), 32, [a, b, c, n, k], {2: (product(a, b) + c) / 2})


@case("tensor", "wmma_shapes")
def wmma_shapes(rng: Rng) -> Launch:
    a, b = small(rng, 16, 32, dtype=H), small(rng, 8, 16, dtype=H)  # both by columns: A is [32,16]
    e, g = small(rng, 2, 16, 16, dtype=np.int8, most=127), small(rng, 2, 16, 16, dtype=BF16)
    p, q, u, v = small(rng, 16, 8), small(rng, 8, 16), rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
    wide = e.astype(np.int64)
    want = {
        2: (product(a.T, b.T) + 1).T, 4: wide[0] @ wide[1].T - 5, 6: product(g[0], g[1]), 8: product(p, q), 10: u @ v.T + 0.25,
    }  # fmt: skip
    args = [
        a, b, Out((8, 32), H), e, Out((16, 16), np.int32), g, Out((16, 16)), np.concatenate([p.ravel(), q.ravel()]), Out((16, 16)),
        np.stack([u, v]), Out((8, 8), np.float64),
    ]  # fmt: skip
    return Launch(1, 32, args, want, rtol=1e-13)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool) -> np.ndarray:
    """softmax to base 2 of q k^T scale, times v; the weights rounded to v's type as the kernels do."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    s = q @ k.swapaxes(-1, -2) * scale
    if causal:
        s = np.where(np.tri(s.shape[-2], dtype=bool), s, -np.inf)
    w = np.exp2(s - s.max(-1, keepdims=True))
    return w @ v / w.sum(-1, keepdims=True)


@case("tensor", "flash_attention", (1, 64, 0), (2, 90, 1), deep=[(3, 300, 0), (3, 300, 1)])
def flash_attention(rng: Rng, heads: int, length: int, causal: int) -> Launch:
    q, k, v = rng.normal(size=(3, heads, length, 64)).astype(H)
    scale = F(1.4427 / 8)
    args = [q, k, v, Out(q.shape, H), length, scale, causal]
    want = attention(q, k, v, float(scale), bool(causal))
    return Launch((blocks(length, 64), heads), 128, args, {3: want}, rtol=4e-3, atol=2e-3)
