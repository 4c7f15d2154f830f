"""How often each byte occurs: a histogram of each block in shared memory, added to that of the grid at the end."""

from __future__ import annotations

from common import check, device

import numpy as np

import fluxir as fx


@fx.kernel
def histogram(data: fx.u8["N"], bins: fx.i32[256]):
    mine = fx.gpu.shared((256,), fx.i32)
    for b in range(fx.gpu.thread_id.x, 256, fx.gpu.block_dim.x):
        mine[b] = 0
    fx.gpu.barrier()
    for i in range(fx.gpu.global_id.x, len(data), fx.gpu.global_size.x):
        fx.gpu.atomic_add(mine, data[i], 1)
    fx.gpu.barrier()
    for b in range(fx.gpu.thread_id.x, 256, fx.gpu.block_dim.x):
        if mine[b] > 0:
            fx.gpu.atomic_add(bins, b, mine[b])


def run(on: str, n: int = 5000, grid: int = 4, block: int = 128) -> float:
    rng = np.random.default_rng(0)
    data = np.clip(rng.normal(100, 30, n), 0, 255).astype(np.uint8)
    bins = np.zeros(256, np.int32)
    histogram.on(on)[grid, block](data, bins)
    return check("histogram", bins, np.bincount(data, minlength=256))


if __name__ == "__main__":
    print(f"right: {run(device())}")
