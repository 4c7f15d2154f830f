"""Cases of `kernels/elementwise.cu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.vgpu.case import BF16, Launch, Out, case

F = np.float32
Rng = np.random.Generator


def blocks(n: int, size: int) -> int:
    return max(1, -(-n // size))


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of f32, rounded once: exact in the 64 bits of a long double's mantissa for what the cases draw."""
    return (np.longdouble(a) * np.longdouble(b) + np.longdouble(c)).astype(F)


@case("elementwise", "add", (1,), (257,), (5000,), deep=[(200_003,)])
def add(rng: Rng, n: int) -> Launch:
    x, y = rng.normal(size=(2, n)).astype(F)
    return Launch(min(8, blocks(n, 256)), 256, [x, y, Out(n), n], {2: x + y})


@case("elementwise", "saxpy", (1,), (4,), (1026,), deep=[(100_001,)])
def saxpy(rng: Rng, n: int) -> Launch:
    x, y = rng.normal(size=(2, n)).astype(F)
    a = F(1.7)
    return Launch(blocks(n, 512), 128, [a, x, y, n], {2: fma(a, x, y)})


@case("elementwise", "transpose", (1, 1), (33, 70), (64, 32), deep=[(500, 300)])
def transpose(rng: Rng, rows: int, columns: int) -> Launch:
    x = rng.normal(size=(rows, columns)).astype(F)
    grid = (blocks(columns, 32), blocks(rows, 32))
    return Launch(grid, (32, 8), [x, Out((columns, rows)), rows, columns], {1: x.T})


@case("elementwise", "stencil2d", (1, 1), (16, 16), (35, 50), deep=[(300, 200)])
def stencil2d(rng: Rng, height: int, width: int) -> Launch:
    x = rng.normal(size=(height, width)).astype(F)
    p = np.pad(x, 1).astype(np.float64)
    want = x + 0.125 * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4.0 * x)
    grid = (blocks(width, 16), blocks(height, 16))
    return Launch(grid, (16, 16), [x, Out(x.shape), height, width, F(0.125)], {1: want}, rtol=1e-5, atol=1e-6)


@case("elementwise", "stencil3d", (3, 3, 3), (5, 17, 34), deep=[(20, 40, 70)])
def stencil3d(rng: Rng, nz: int, ny: int, nx: int) -> Launch:
    x = rng.integers(-50, 50, (nz, ny, nx)).astype(F)
    want = np.full_like(x, 7.0)
    c = slice(1, -1)
    want[c, c, c] = x[c, c, c] + x[:-2, c, c] + x[2:, c, c] + x[c, :-2, c] + x[c, 2:, c] + x[c, c, :-2] + x[c, c, 2:]
    grid = (blocks(nx, 16), blocks(ny, 8))
    return Launch(grid, (16, 8), [x, np.full_like(x, 7.0), nz, ny, nx], {1: want})


def _halves(rng: Rng, n: int, kind: Any) -> Any:
    x = (rng.normal(size=(n, 2)) * 10.0 ** rng.integers(-3, 4, (n, 2))).astype(kind)
    if n > 4:
        x[:4] = [[0.0, -0.0], [np.inf, 1.0], [6e-8, -6e-8], [1.0, 1.0]]
    return x


@case("elementwise", "half2_arithmetic", (3,), (300,), deep=[(20_000,)])
def half2_arithmetic(rng: Rng, n: int) -> Launch:
    a, b = _halves(rng, n, np.float16), _halves(rng, n, np.float16)[::-1].copy()
    u, v = a.astype(np.float64), b.astype(np.float64)
    rows = [
        u + v, u - v, u * v, u * v + u, np.minimum(u, v), np.maximum(u, v), abs(u), -v, np.maximum(u * v + u, 0),
        np.clip(u + v, 0, 1), np.stack([a[:, 0], b[:, 0]], 1), a[:, ::-1], a > b,
        np.stack([F(a[:, 0]) * F(3), F(b[:, 1]) + F(1)], 1),
    ]  # fmt: skip
    with np.errstate(over="ignore"):
        want = np.stack([np.asarray(r).astype(np.float16) for r in rows])
    # how min and max order zeros of two signs, and fma's NaN of infinity, are not asked: only values
    return Launch(blocks(n, 128), 128, [a, b, Out(want.shape, np.float16), n], {2: want}, rtol=1e-30)


@case("elementwise", "bf16_arithmetic", (3,), (300,), deep=[(20_000,)])
def bf16_arithmetic(rng: Rng, n: int) -> Launch:
    a, b = _halves(rng, n, BF16), _halves(rng, n, BF16)[::-1].copy()
    u, v = a.astype(np.longdouble), b.astype(np.longdouble)

    def rounded(x: Any) -> Any:  # to odd at 32 bits first, so that the second rounding is the only one
        near = np.asarray(x, np.float64).astype(F)
        toward = np.where(abs(near.astype(np.longdouble)) > abs(x), np.nextafter(near, F(0)), near)
        bits = toward.astype(F).view(np.uint32)
        return np.where(toward == x, bits, bits | 1).astype(np.uint32).view(F).astype(BF16)

    both = np.stack([F(a[:, 0]) * F(3), F(b[:, 1]) + F(1)], 1).astype(BF16)
    rows = [rounded(r) for r in (u + v, u - v, u * v, u * v + u, np.minimum(u, v), np.maximum(u, v), abs(u), -v)]
    want = np.stack([*rows, both])
    first = np.clip(np.nan_to_num(b[:, 0].astype(np.float64), posinf=2**31 - 1), -(2**31), 2**31 - 1).astype(np.int64)
    flags = (a[:, 0] < b[:, 0]) * 1 | (a[:, 1] == b[:, 1]) * 2 | np.isnan(a[:, 0]) * 4 | first << 8
    args = [a, b, Out(want.shape, BF16), Out(n, np.int32), n]
    return Launch(blocks(n, 128), 128, args, {2: want, 3: flags.astype(np.int32)}, rtol=1e-30)


@case("elementwise", "mandelbrot", (1, 1), (40, 30), deep=[(200, 150)])
def mandelbrot(rng: Rng, width: int, height: int) -> Launch:
    x0, y0, step, limit = F(-2.0), F(-1.2), F(2.4 / height), 60
    cx, cy = np.meshgrid(x0 + np.arange(width, dtype=F) * step, y0 + np.arange(height, dtype=F) * step)
    x, y, count = np.zeros_like(cx), np.zeros_like(cx), np.zeros(cx.shape, np.int32)
    going = np.ones(cx.shape, bool)
    for _ in range(limit):
        going &= x * x + y * y <= 4
        x, y = np.where(going, x * x - y * y + cx, x), np.where(going, F(2) * x * y + cy, y)
        count += going
    grid = (blocks(width, 16), blocks(height, 4))
    return Launch(grid, (16, 4), [Out(count.shape, np.int32), width, height, x0, y0, step, limit], {0: count})


@case("elementwise", "nbody", (1,), (100,), deep=[(700,)])
def nbody(rng: Rng, n: int) -> Launch:
    bodies = rng.normal(size=(n, 4)).astype(F)
    d = bodies[None, :, :3].astype(np.float64) - bodies[:, None, :3]
    scale = bodies[None, :, 3] / ((d * d).sum(-1) + F(0.05)) ** 1.5
    want = (d * scale[..., None]).sum(1)
    args = [bodies, Out((n, 3)), n, F(0.05)]
    return Launch(blocks(n, 64), 64, args, {1: want}, shared=64 * 16, rtol=2e-4, atol=2e-3)


def pcg(state: Any) -> Any:
    state = (state * 747796405 + 2891336453) & 0xFFFFFFFF
    word = (((state >> ((state >> 28) + 4)) ^ state) * 277803737) & 0xFFFFFFFF
    return (word >> 22) ^ word


@case("elementwise", "monte_carlo", (1000,), deep=[(100_000,)])
def monte_carlo(rng: Rng, n: int) -> Launch:
    h = pcg((pcg(np.uint64(77)) + np.arange(n, dtype=np.uint64)) & np.uint64(0xFFFFFFFF))
    x, y = h & 0xFFFF, h >> 16
    hits = np.array([1 + (x * x + y * y < 1 << 32).sum()], np.uint64)
    return Launch(4, 64, [np.array([1], np.uint64), 77, n], {0: hits})


@case("elementwise", "find", (3,), (700,), deep=[(50_000,)])
def find(rng: Rng, n: int) -> Launch:
    text, pattern = rng.integers(97, 99, n).astype(np.uint8), np.frombuffer(b"abba", np.uint8)
    s = text.tobytes()
    places = [i for i in range(n) if s.startswith(b"abba", i)]
    args = [text, n, pattern, 4, np.zeros(1, np.int32), np.array([n], np.int32)]
    return Launch(blocks(n, 128), 128, args, {4: [len(places)], 5: [min(places, default=n)]})


@case("elementwise", "ddot", (1,), (1000,), deep=[(50_000,)])
def ddot(rng: Rng, n: int) -> Launch:
    x, y = rng.normal(size=(2, n))
    return Launch(3, 128, [x, y, np.zeros(1), n], {2: np.dot(x, y)}, rtol=1e-12, atol=1e-12)


@case("elementwise", "sgemm", (1, 1, 1), (33, 18, 40), deep=[(100, 120, 90)])
def sgemm(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b, c = (rng.integers(-5, 6, s).astype(F) for s in ((m, k), (k, n), (m, n)))
    args = [a, b, c, m, n, k, F(2), F(-3)]
    return Launch((blocks(n, 16), blocks(m, 16)), (16, 16), args, {2: 2 * (a @ b) - 3 * c})


@case("elementwise", "sgemm_tiled", (64, 64, 16), (70, 65, 21), deep=[(200, 130, 100)])
def sgemm_tiled(rng: Rng, m: int, n: int, k: int) -> Launch:
    a, b = (rng.integers(-5, 6, s).astype(F) for s in ((m, k), (k, n)))
    return Launch((blocks(n, 64), blocks(m, 64)), 256, [a, b, Out((m, n)), m, n, k], {2: a @ b})
