"""Cases of `kernels/collective.cu`."""

from __future__ import annotations

import numpy as np

from tests.vgpu.case import Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng, blocks

I = np.int32


@case("collective", "block_sum", (1, 32), (1000, 128), (777, 96), deep=[(100_000, 256)])
def block_sum(rng: Rng, n: int, threads: int) -> Launch:
    x = rng.integers(-20, 20, n).astype(F)
    grid = 3
    padded = np.zeros(-(-n // (grid * threads)) * grid * threads, F)
    padded[:n] = x
    return Launch(grid, threads, [x, Out(grid), n], {1: padded.reshape(-1, grid, threads).sum((0, 2))})


@case("collective", "tree_sum", (1,), (1300,), deep=[(60_000,)])
def tree_sum(rng: Rng, n: int) -> Launch:
    x = rng.integers(-(2**31), 2**31, n).astype(I)
    grid = blocks(n, 512)
    padded = np.zeros(grid * 512, np.int64)
    padded[:n] = x
    return Launch(grid, 256, [x, Out(grid, I), n], {1: padded.reshape(grid, 512).sum(1).astype(I)})


@case("collective", "softmax", (1, 1), (3, 65), (2, 1000), deep=[(64, 3000)])
def softmax(rng: Rng, rows: int, columns: int) -> Launch:
    x = (5 * rng.normal(size=(rows, columns))).astype(F)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return Launch(rows, 96, [x, Out(x.shape), columns], {1: e / e.sum(1, keepdims=True)}, rtol=3e-5)


@case("collective", "layernorm", (2, 31), (3, 500), deep=[(64, 2000)])
def layernorm(rng: Rng, rows: int, columns: int) -> Launch:
    x = (3 + rng.normal(size=(rows, columns))).astype(F)
    gain, bias = rng.normal(size=(2, columns)).astype(F)
    d = x - x.mean(1, keepdims=True, dtype=np.float64)
    want = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * gain + bias
    return Launch(rows, 128, [x, gain, bias, Out(x.shape), columns, F(1e-5)], {3: want}, rtol=1e-4, atol=1e-5)


@case("collective", "blelloch", (1, 16), (700, 128), deep=[(40_000, 256)])
def blelloch(rng: Rng, n: int, threads: int) -> Launch:
    x, width = rng.integers(-100, 100, n).astype(I), 2 * threads
    grid = blocks(n, width)
    padded = np.zeros(grid * width, I)
    padded[:n] = x
    rows = padded.reshape(grid, width)
    sums = rows.cumsum(1) - rows
    args = [x, Out(n, I), Out(grid, I), n]
    return Launch(grid, threads, args, {1: sums.reshape(-1)[:n], 2: rows.sum(1)}, shared=4 * width)


@case("collective", "lookback_scan", (5,), (2000,), deep=[(50_000,)])
def lookback_scan(rng: Rng, n: int) -> Launch:
    x, grid = rng.integers(-100, 100, n).astype(I), blocks(n, 256)
    sums = np.cumsum(x)
    ends = sums[np.minimum(np.arange(1, grid + 1) * 256, n) - 1].astype(np.uint32).astype(np.uint64)
    args = [x, Out(n, I), np.zeros(grid, np.uint64), np.zeros(1, np.uint32), n]
    return Launch(grid, 256, args, {1: sums, 2: ends << 2 | 2, 3: [grid]})


@case("collective", "last_block_sum", (1,), (3000,), deep=[(100_000,)])
def last_block_sum(rng: Rng, n: int) -> Launch:
    x = rng.integers(-20, 20, n).astype(F)
    padded = np.zeros(-(-n // 640) * 640, F)
    padded[:n] = x
    return Launch(5, 128, [x, Out(5), Out(1), n], {1: padded.reshape(-1, 5, 128).sum((0, 2)), 2: x.sum()})


@case("collective", "grid_barrier", (300, 1), (300, 4), deep=[(5000, 8)])
def grid_barrier(rng: Rng, n: int, rounds: int) -> Launch:
    states = [rng.integers(-5, 5, n).astype(F)]
    for _ in range(rounds):
        states.append(np.roll(states[-1], -1) + np.roll(states[-1], 1))
    last, before = states[-1], states[-2]
    args = [states[0], np.full(n, np.nan, F), n, rounds]
    return Launch(blocks(n, 64), 64, args, {rounds % 2: last, 1 - rounds % 2: before}, fresh=True)


@case("collective", "bitonic", (1, 32), (300, 64), deep=[(4096, 256)])
def bitonic(rng: Rng, n: int, threads: int) -> Launch:
    x, width = rng.integers(0, 2**32, n).astype(np.uint32), 2 * threads
    want = np.concatenate([np.sort(x[i : i + width]) for i in range(0, n, width)])
    return Launch(blocks(n, width), threads, [x, n], {0: want}, shared=4 * width)


@case("collective", "histogram", (1,), (5000,), deep=[(200_000,)])
def histogram(rng: Rng, n: int) -> Launch:
    x = np.minimum(rng.geometric(0.03, n), 255).astype(np.uint8)
    return Launch(3, 128, [x, np.zeros(256, np.uint32), n], {1: np.bincount(x, minlength=256)})


@case("collective", "warp_votes", (2,), deep=[(50,)])
def warp_votes(rng: Rng, warps: int) -> Launch:
    x = rng.integers(-2, 8, (warps, 32)).astype(I)
    x[-1] = 3
    bit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    out = np.zeros((warps, 32, 8), np.uint32)
    for w, v in enumerate(x):
        out[w, :, 0] = bit[v > 0].sum()
        out[w, :, 1] = int((v > 6).any()) | int((v < 7).all()) << 1 | int((v == 3).all()) << 2
        out[w, :, 2] = [bit[v == a].sum() for a in v]
        same = (v == v[0]).all()
        out[w, :, 3] = (0xFFFFFFFF + 2) & 0xFFFFFFFF if same else 0
        out[w, :, 4] = np.uint32(int(v.sum()) & 0xFFFFFFFF)
        out[w, :, 5] = (int(v.max()) & 0xFFFF) | (int(v.min()) << 16) & 0xFFFFFFFF
        out[w, :, 6] = np.bitwise_xor.reduce(v.view(np.uint32))
        odd, even = v & 1 == 1, v & 1 == 0
        out[w, odd, 7] = bit[odd & (v > 2)].sum()
        if even.any():
            out[w, even, 7] = v.view(np.uint32)[even][-1]
    return Launch(warps, 32, [x, Out(out.shape, np.uint32)], {1: out})


@case("collective", "shuffles", (2,), deep=[(30,)])
def shuffles(rng: Rng, warps: int) -> Launch:
    x = rng.integers(-1000, 1000, (warps, 32)).astype(I)
    lane = np.arange(32)
    out = np.stack(
        [
            x.reshape(warps, 4, 8).cumsum(2).reshape(warps, 32), x[:, lane // 16 * 16 + (lane + 5) % 16],
            x[:, np.where(lane % 4 == 0, lane + 3, lane)], x[:, lane ^ 31], 2 * x[:, lane ^ 1], x[:, np.full(32, 31)],
        ], 2,
    )  # fmt: skip
    return Launch(1, 32 * warps, [x, Out(out.shape, I)], {1: out})


@case("collective", "groups", (64,), (100,), deep=[(3000,)])
def groups(rng: Rng, n: int) -> Launch:
    x, size = rng.integers(-30, 30, n).astype(I), blocks(n, 64) * 64
    v = np.zeros(size, I)
    v[:n] = x
    tiles = v.reshape(-1, 8)
    out = np.zeros((size, 4), I)
    out[:, 0], out[:, 1] = tiles.sum(1).repeat(8), tiles.max(1).repeat(8)
    out[:, 2] = (tiles.cumsum(1) - tiles).reshape(-1)
    out[:, 3] = -1
    for w in range(0, size, 32):
        here = [i for i in range(w, min(w + 32, n)) if v[i] % 3 == 0]
        for rank, i in enumerate(here):
            out[i, 3] = rank * 1000 + len(here) * 10 + (v[i] == v[here[0]])
    return Launch(size // 64, 64, [x, Out((n, 4), I), n], {1: out[:n]})


@case("collective", "block_votes", (3, 70), deep=[(50, 256)])
def block_votes(rng: Rng, grid: int, threads: int) -> Launch:
    x = rng.integers(-4, 10, (grid, threads)).astype(I)
    x[0] = 5
    want = np.stack([(x > 0).sum(1), (x > 8).any(1), (x < 9).all(1)], 1)
    return Launch(grid, threads, [x, Out((grid, 3), I)], {1: want})


@case("collective", "producer_consumer", (1,), (5,), deep=[(40,)])
def producer_consumer(rng: Rng, rounds: int) -> Launch:
    x = rng.integers(-1000, 1000, (rounds, 64)).astype(I)
    return Launch(1, 128, [x, Out(x.shape, I), rounds], {1: 3 * x[:, ::-1] + np.arange(rounds)[:, None]})


@case("collective", "bfs", (1, 0), (60, 150), deep=[(3000, 6000)])
def bfs(rng: Rng, n: int, edges: int) -> Launch:
    ends = rng.integers(0, n, (edges, 2))
    rows, neighbours = [0], []
    for v in range(n):
        neighbours += [b for a, b in ends.tolist() if a == v] if n < 100 else ends[ends[:, 0] == v, 1].tolist()
        rows.append(len(neighbours))
    level, frontier = np.full(n, -1, I), [0]
    level[0] = 0
    while frontier:
        frontier = [b for a in frontier for b in neighbours[rows[a] : rows[a + 1]] if _visit(level, b, level[a] + 1)]
    start = np.full(n, -1, I)
    start[0] = 0
    return Launch(1, 64, [np.array(rows, I), np.array(neighbours or [0], I), start, n], {2: level})


def _visit(level: np.ndarray, v: int, depth: int) -> bool:
    if level[v] >= 0:
        return False
    level[v] = depth
    return True
