"""Cases of `kernels/async.cu`."""

from __future__ import annotations

import numpy as np

from tests.vgpu.case import Launch, Out, case
from tests.vgpu.cases_elementwise import F, Rng, blocks

I = np.int32
BOTH = "async async_90"


@case(BOTH, "split_barrier", (1, 128, 1), (2, 96, 5), deep=[(20, 128, 9)])
def split_barrier(rng: Rng, grid: int, threads: int, rounds: int) -> Launch:
    x = rng.integers(-99, 99, (grid, threads)).astype(I)
    v = x
    for _ in range(rounds):
        v = v + np.roll(v, -1, axis=1)
    want = v + np.arange(threads, dtype=I) * (rounds * (rounds - 1) // 2)
    return Launch(grid, threads, [x, Out(x.shape, I), rounds], {1: want})


@case(BOTH, "pipeline_sum", (1,), (7,), deep=[(50,)])
def pipeline_sum(rng: Rng, rows: int) -> Launch:
    x = rng.integers(-9, 9, (rows, 128)).astype(F)
    want = (x[:, ::-1] * np.arange(1, rows + 1)[:, None]).sum(0)
    return Launch(1, 128, [x, Out(128), rows], {1: want})


@case(BOTH, "group_copy", (1,), (700,), deep=[(20_000,)])
def group_copy(rng: Rng, n: int) -> Launch:
    x = rng.integers(-99, 99, n).astype(I)
    want = np.concatenate([x[i : i + 256][::-1] for i in range(0, n, 256)])
    return Launch(blocks(n, 256), 64, [x, Out(n, I), n], {1: want}, shared=1024)


@case(BOTH, "barrier_copy", (1,), (3,), deep=[(50,)])
def barrier_copy(rng: Rng, grid: int) -> Launch:
    x = rng.integers(-99, 99, (grid, 64, 4)).astype(I)
    want = x[:, ::-1] + np.array([1, 0, 0, 0], I)
    return Launch(grid, 64, [x, Out(x.shape, I)], {1: want})
