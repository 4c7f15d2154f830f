"""C = A B in f32: a block computes 64 x 64, through tiles in shared memory; a thread 4 x 4 of them, in registers."""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx

TILE, DEPTH, OWN = 64, 16, 4
SIDE = TILE // OWN  # threads along each axis


@fx.kernel(block=SIDE * SIDE)
def sgemm(a: fx.f32["M", "K"], b: fx.f32["K", "N"], c: fx.f32["M", "N"]):
    left, right = fx.gpu.shared((DEPTH, TILE + 4), fx.f32), fx.gpu.shared((DEPTH, TILE), fx.f32)
    sums = fx.gpu.local((OWN, OWN), fx.f32, zero=True)
    t = fx.gpu.thread_id.x
    row0, column0 = fx.gpu.block_id.y * TILE, fx.gpu.block_id.x * TILE
    ty, tx = t // SIDE * OWN, t % SIDE
    m, k = a.shape
    n = b.shape[1]
    for base in range(0, k, DEPTH):
        for i in range(t, TILE * DEPTH, SIDE * SIDE):
            r, d = i // DEPTH, i % DEPTH
            left[d, r] = a[row0 + r, base + d] if row0 + r < m and base + d < k else 0.0
            d2, q = i // TILE, i % TILE
            right[d2, q] = b[base + d2, column0 + q] if base + d2 < k and column0 + q < n else 0.0
        fx.gpu.barrier()
        for d in range(DEPTH):
            for i in fx.gpu.static_range(OWN):
                for j in fx.gpu.static_range(OWN):
                    sums[i, j] += left[d, ty + i] * right[d, tx + SIDE * j]
        fx.gpu.barrier()
    for i in fx.gpu.static_range(OWN):
        for j in fx.gpu.static_range(OWN):
            if row0 + ty + i < m and column0 + tx + SIDE * j < n:
                c[row0 + ty + i, column0 + tx + SIDE * j] = sums[i, j]


def run(on: str, m: int = 70, n: int = 90, k: int = 40) -> float:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    c = np.zeros((m, n), np.float32)
    sgemm.on(on)[(blocks(n, TILE), blocks(m, TILE)), SIDE * SIDE](a, b, c)
    return check("sgemm", c, a.astype(np.float64) @ b, 1e-6)


if __name__ == "__main__":
    print(f"relative error {run(device()):.1e}")
