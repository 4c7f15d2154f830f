"""Inclusive prefix sums of any length by three kernels: each block scans its part and notes its sum, one block scans these
sums, each block adds what came before it. Within a block: Hillis and Steele, Data parallel algorithms, 1986.
"""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx

BLOCK = 256


@fx.kernel(block=BLOCK)
def scan_blocks(x: fx.i32["N"], out: fx.i32["N"], sums: fx.i32["B"]):
    part = fx.gpu.shared((BLOCK,), fx.i32)
    t, i = fx.gpu.thread_id.x, fx.gpu.global_id.x
    value = x[i] if i < len(x) else 0
    part[t] = value
    fx.gpu.barrier()
    step = 1
    while step < BLOCK:
        before = part[t - step] if t >= step else 0
        fx.gpu.barrier()
        value += before
        part[t] = value
        fx.gpu.barrier()
        step *= 2
    if i < len(x):
        out[i] = value
    if t == BLOCK - 1:
        sums[fx.gpu.block_id.x] = value


@fx.kernel
def add_before(out: fx.i32["N"], sums: fx.i32["B"]):
    i, b = fx.gpu.global_id.x, fx.gpu.block_id.x
    if b > 0 and i < len(out):
        out[i] += sums[b - 1]


def prefix_sums(on: str, x: np.ndarray) -> np.ndarray:
    """Prefix sums of i32[N] (modulo 2**32)."""
    n = len(x)
    grid = blocks(n, BLOCK)
    out, sums = np.zeros(n, np.int32), np.zeros(grid, np.int32)
    scan_blocks.on(on)[grid](x, out, sums)
    if grid > 1:
        add_before.on(on)[grid, BLOCK](out, prefix_sums(on, sums))
    return out


def run(on: str, n: int = 3000) -> float:
    x = np.random.default_rng(0).integers(-50, 100, n).astype(np.int32)
    return check("scan", prefix_sums(on, x), np.cumsum(x))


if __name__ == "__main__":
    print(f"right: {run(device())}")
