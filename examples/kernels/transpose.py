"""The transpose of a matrix, three ways.

Naively, each warp writes a column: 32 sectors a request. Through a square of shared memory both reads and writes are rows, but
the threads of a warp then read a column of that square: 32 elements of one bank. A pad of one column puts them into 32 banks.
"""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx

TILE, ROWS = 32, 8


@fx.kernel
def naive(x: fx.f32["M", "N"], out: fx.f32["N", "M"]):
    column, row = fx.gpu.global_id.x, fx.gpu.block_id.y * TILE + fx.gpu.thread_id.y
    for r in range(0, TILE, ROWS):
        if column < x.shape[1] and row + r < x.shape[0]:
            out[column, row + r] = x[row + r, column]


def through_shared(pad: int) -> fx.Kernel:
    """The kernel with a tile of 32 rows of 32 + `pad` elements."""

    @fx.kernel
    def transpose(x: fx.f32["M", "N"], out: fx.f32["N", "M"]):
        tile = fx.gpu.shared((TILE, TILE + pad), fx.f32)
        tx, ty = fx.gpu.thread_id.x, fx.gpu.thread_id.y
        row0, column0 = fx.gpu.block_id.y * TILE, fx.gpu.block_id.x * TILE
        for r in range(ty, TILE, ROWS):
            if row0 + r < x.shape[0] and column0 + tx < x.shape[1]:
                tile[r, tx] = x[row0 + r, column0 + tx]
        fx.gpu.barrier()
        for r in range(ty, TILE, ROWS):
            if column0 + r < x.shape[1] and row0 + tx < x.shape[0]:
                out[column0 + r, row0 + tx] = tile[tx, r]

    return transpose


KERNELS = {"naive": naive, "shared": through_shared(0), "padded": through_shared(1)}


def run(on: str, m: int = 64, n: int = 96) -> dict[str, tuple[float, int]]:
    """Transpose an m x n matrix by each kernel: (sectors a request, bank conflicts), which a virtual GPU counts."""
    x = np.random.default_rng(0).normal(size=(m, n)).astype(np.float32)
    found = {}
    for name, kernel in KERNELS.items():
        out = np.zeros((n, m), np.float32)
        report = kernel.on(on)[(blocks(n, TILE), blocks(m, TILE)), (TILE, ROWS)](x, out)
        check(name, out, x.T)
        c = report.counters if report is not None else None
        found[name] = (c.sectors_per_request, c.bank_conflicts) if c else (0.0, 0)
    return found


if __name__ == "__main__":
    for name, (sectors, conflicts) in run(device()).items():
        print(f"{name:8} {sectors:5.1f} sectors a request, {conflicts:5} bank conflicts")
