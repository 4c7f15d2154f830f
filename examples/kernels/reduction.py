"""The sum of a vector: each thread adds up its share, each warp by shuffles, each block through shared memory, the grid by an
atomic. The order of the atomics is not fixed, so the result may differ in the last places from run to run on a real GPU.
"""

from __future__ import annotations

from common import check, device

import numpy as np

import fluxir as fx

BLOCK = 128


@fx.kernel(block=BLOCK)
def total(x: fx.f32["N"], out: fx.f32[1]):
    warps = fx.gpu.shared((BLOCK // 32,), fx.f32)
    s = fx.f32(0)
    for i in range(fx.gpu.global_id.x, len(x), fx.gpu.global_size.x):
        s += x[i]
    for step in (16, 8, 4, 2, 1):
        s += fx.gpu.shuffle_xor(s, step)
    if fx.gpu.lane_id() == 0:
        warps[fx.gpu.warp_id()] = s
    fx.gpu.barrier()
    if fx.gpu.thread_id.x == 0:
        for w in range(1, BLOCK // 32):
            s += warps[w]
        fx.gpu.atomic_add(out, 0, s)


def run(on: str, n: int = 20_000, grid: int = 8) -> float:
    """Sum n numbers; returns the relative error."""
    x = np.random.default_rng(0).random(n).astype(np.float32)
    out = np.zeros(1, np.float32)
    total.on(on)[grid](x, out)
    return check("reduction", out, [x.sum(dtype=np.float64)], 1e-5)


if __name__ == "__main__":
    print(f"relative error {run(device()):.1e}")
