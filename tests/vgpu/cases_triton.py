"""Cases of `kernels/triton_kernels.py`. `launch.json` says with how many threads and how much shared memory a kernel runs, and how
many bytes of scratch memory it wants through the two pointers that Triton adds to the parameters.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.vgpu.case import BF16, HERE, Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng, blocks
from tests.vgpu.cases_tensor import H, attention, product, small

I = np.int32
LAUNCHES = json.loads((HERE / "triton" / "launch.json").read_text())


def triton(fixtures: str, *sizes: tuple[Any, ...], deep: Sequence[tuple[Any, ...]] = ()) -> Callable[..., Any]:
    """`case` for kernels that Triton compiled: the function gives the grid, the arguments and what they become."""

    def declare(make: Callable[..., Launch]) -> Callable[..., Launch]:
        for fixture in fixtures.split():
            facts = LAUNCHES[fixture]

            def launch(rng: Rng, *size: Any, facts: dict[str, Any] = facts) -> Launch:
                x = make(rng, *size)
                scratch = [Out(n, np.uint8) if n else None for n in facts["scratch"]]
                expect = {**x.expect, **{len(x.args) + i: lambda got: True for i, s in enumerate(scratch) if s}}
                return Launch(x.grid, facts["threads"], [*x.args, *scratch], expect, facts["shared"], x.rtol, x.atol)

            functools.update_wrapper(launch, make)
            case(fixture, facts["kernel"], *sizes, deep=deep, folder="triton")(launch)
        return make

    return declare


def made(grid: Any, args: list[Any], expect: dict[int, Any], rtol: float = 0.0, atol: float = 0.0) -> Launch:
    return Launch(grid, 0, args, expect, rtol=rtol, atol=atol)


@triton("add", (1,), (1500,), deep=[(100_000,)])
def add(rng: Rng, n: int) -> Launch:
    x, y = rng.normal(size=(2, n)).astype(F)
    return made(blocks(n, 512), [x, y, Out(n), n], {2: x + y})


@triton("add_unaligned", (1,), (700,), deep=[(50_001,)])
def add_unaligned(rng: Rng, n: int) -> Launch:
    x, y = rng.normal(size=(2, n)).astype(BF16)
    return made(blocks(n, 256), [x, y, Out(n, BF16), n], {2: (x.astype(F) + y.astype(F)).astype(BF16)}, rtol=1e-30)


@triton("row_sums", (1, 1), (3, 700), deep=[(50, 3000)])
def row_sums(rng: Rng, rows: int, columns: int) -> Launch:
    x = rng.integers(-99, 99, (rows, columns)).astype(F)
    args = [x, Out(rows), Out(rows), Out(rows, I), columns]
    return made(rows, args, {1: x.sum(1), 2: x.max(1), 3: x.argmax(1)})


@triton("argmax", (1, 1), (4, 500), deep=[(100, 512)])
def argmax(rng: Rng, rows: int, columns: int) -> Launch:
    x = rng.integers(-20, 20, (rows, columns)).astype(F)
    return made(rows, [x, Out(rows, I), columns], {1: x.argmax(1)})


@triton("softmax softmax_90", (1, 1), (3, 1000), deep=[(100, 1024)])
def softmax(rng: Rng, rows: int, columns: int) -> Launch:
    x = (5 * rng.normal(size=(rows, columns))).astype(F)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return made(rows, [x, Out(x.shape), columns], {1: e / e.sum(1, keepdims=True)}, rtol=2e-5)


@triton("layernorm", (1, 16), (3, 400), deep=[(100, 512)])
def layernorm(rng: Rng, rows: int, columns: int) -> Launch:
    x, (gain, bias) = (3 + rng.normal(size=(rows, columns))).astype(F), rng.normal(size=(2, columns)).astype(F)
    d = x - x.mean(1, keepdims=True, dtype=np.float64)
    want = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * gain + bias
    return made(rows, [x, gain, bias, Out(x.shape), columns, F(1e-5)], {3: want}, 1e-4, 1e-5)


def matmul(rng: Rng, sizes: tuple[int, int, int], tile: tuple[int, int], kind: Any, out: Any, most: int = 4) -> Launch:
    m, n, k = sizes
    a, b = small(rng, m, k, dtype=kind, most=most), small(rng, k, n, dtype=kind, most=most)
    return made((blocks(m, tile[0]), blocks(n, tile[1])), [a, b, Out((m, n), out), m, n, k], {2: product(a, b)})


@triton("matmul_f16 matmul_f16_90", (64, 64, 32), (70, 80, 112), deep=[(200, 144, 512)])
def matmul_f16(rng: Rng, *sizes: int) -> Launch:
    return matmul(rng, sizes, (64, 64), H, F)  # type: ignore[arg-type]


@triton("matmul_tf32 matmul_tf32_90", (64, 32, 32), (70, 48, 80), deep=[(200, 144, 512)])
def matmul_tf32(rng: Rng, *sizes: int) -> Launch:
    return matmul(rng, sizes, (64, 32), F, F)  # type: ignore[arg-type]


@triton("matmul_s8", (32, 32, 64), (33, 48, 208), deep=[(200, 144, 512)])
def matmul_s8(rng: Rng, *sizes: int) -> Launch:
    return matmul(rng, sizes, (32, 32), np.int8, I, 127)  # type: ignore[arg-type]


@triton("matmul_odd", (1, 1, 1), (35, 33, 71), deep=[(201, 145, 333)])
def matmul_odd(rng: Rng, *sizes: int) -> Launch:
    return matmul(rng, sizes, (32, 32), BF16, F)  # type: ignore[arg-type]


@triton("attention attention_90", (1, 64), (2, 90), deep=[(3, 300)])
def attention_full(rng: Rng, heads: int, length: int) -> Launch:
    q, k, v = rng.normal(size=(3, heads, length, 64)).astype(H)
    want = attention(q, k, v, float(F(0.18)), False)
    return made((blocks(length, 64), heads), [q, k, v, Out(q.shape, H), length, F(0.18)], {3: want}, 4e-3, 2e-3)


@triton("attention_causal", (1, 32), (2, 75), deep=[(3, 300)])
def attention_causal(rng: Rng, heads: int, length: int) -> Launch:
    q, k, v = rng.normal(size=(3, heads, length, 32)).astype(BF16)
    want = attention(q, k, v, float(F(0.25)), True)
    return made((blocks(length, 32), heads), [q, k, v, Out(q.shape, BF16), length, F(0.25)], {3: want}, 2e-2, 2e-2)


@triton("stencil", (1, 1), (37, 50), deep=[(200, 300)])
def stencil(rng: Rng, height: int, width: int) -> Launch:
    x = rng.integers(-99, 99, (height, width)).astype(F)
    p = np.pad(x, 1)
    want = (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]) / 4
    return made((blocks(height, 16), blocks(width, 32)), [x, Out(x.shape), height, width], {1: want})


@triton("histogram", (1,), (700,), deep=[(30_000,)])
def histogram(rng: Rng, n: int) -> Launch:
    x = np.minimum(rng.geometric(0.1, n), 63).astype(I)
    return made(blocks(n, 256), [x, np.zeros(128, I), n], {1: np.tile(np.bincount(x, minlength=64), 2)})


@triton("scans", (1, 1), (3, 400), deep=[(50, 512)])
def scans(rng: Rng, rows: int, columns: int) -> Launch:
    x = rng.integers(0, 99, (rows, columns)).astype(I)
    want = {1: x.cumsum(1), 2: np.maximum.accumulate(x, 1), 3: x[:, ::-1].cumsum(1)[:, ::-1]}
    return made(rows, [x, Out(x.shape, I), Out(x.shape, I), Out(x.shape, I), columns], want)


def philox(seed: int, offsets: np.ndarray) -> np.ndarray:
    """The first word of Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011)."""
    c = [offsets.astype(np.uint64), *(np.zeros(len(offsets), np.uint64) for _ in range(3))]
    k, low = [seed & 0xFFFFFFFF, seed >> 32], np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [b >> np.uint64(32) ^ c[1] ^ np.uint64(k[0]), b & low, a >> np.uint64(32) ^ c[3] ^ np.uint64(k[1]), a & low]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return c[0].astype(np.uint32)


@triton("dropout", (1, 5), (1000, 123), deep=[(50_000, 7)])
def dropout(rng: Rng, n: int, seed: int) -> Launch:
    x, p = rng.normal(size=n).astype(F), F(0.3)
    bits = philox(seed, np.arange(n)).view(I)
    uniform = np.where(bits < 0, -bits - 1, bits).astype(F) * F(4.6566127342e-10)
    want = np.where(uniform > p, x / (F(1) - p), F(0))
    return made(blocks(n, 256), [x, Out(n), n, p, seed], {1: want}, rtol=1e-6)


@triton("gather_scatter gather_scatter_90", (1, 1), (40, 30), deep=[(1000, 32)])
def gather_scatter(rng: Rng, n: int, columns: int) -> Launch:
    x, index = rng.integers(-9, 9, (n, columns)).astype(F), rng.integers(0, n, n).astype(I)
    want = np.zeros((2 * n, columns), F)
    np.add.at(want, index, x)
    want[n:] = x[index]
    return made(blocks(n, 16), [x, index, np.zeros_like(want), n, columns], {2: want + 0})


@triton("sort_rows", (1, 1), (3, 60), deep=[(200, 64)])
def sort_rows(rng: Rng, rows: int, columns: int) -> Launch:
    x = rng.integers(-(2**31), 2**31, (rows, columns)).astype(I)
    return made(rows, [x, Out(x.shape, I), columns], {1: np.sort(x)})


@triton("unary", (300,), deep=[(20_000,)])
def unary(rng: Rng, n: int) -> Launch:
    x = (3 * rng.normal(size=n)).astype(F)
    a = x.astype(np.float64)
    b, third = abs(a), float(F(3.7))
    rows = [
        np.exp(a), np.log(b), np.sin(a), np.cos(a), np.sqrt(b), b**-0.5, np.array([math.erf(t) for t in a]), np.floor(a),
        1 / (1 + np.exp(-a)), a / third, a / third, np.sqrt(b), x.astype(H), x.astype(BF16), a * a + b,
    ]  # fmt: skip
    return made(blocks(n, 256), [x, Out((15, n)), n], {1: np.stack([np.asarray(r, F) for r in rows])}, 2e-6, 1e-6)
