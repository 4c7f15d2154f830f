"""LU decomposition without pivoting, in place, in blocks of 16: the block on the diagonal, the row and the column of blocks
beside it, and the rest, which loses their product. After Rodinia's lud.
"""

from __future__ import annotations

from common import check, device

import numpy as np

import fluxir as fx

B = 16


@fx.kernel(block=B)
def diagonal(a: fx.f32["N", "N"], at: fx.i32):
    """Factors the block at (at, at): thread t owns column t, then row t."""
    s = fx.gpu.shared((B, B), fx.f32)
    t = fx.gpu.thread_id.x
    for r in range(B):
        s[r, t] = a[at + r, at + t]
    fx.gpu.barrier()
    for k in range(B - 1):
        if t > k:
            s[t, k] /= s[k, k]
        fx.gpu.barrier()
        if t > k:
            for c in range(k + 1, B):
                s[t, c] -= s[t, k] * s[k, c]
        fx.gpu.barrier()
    for r in range(B):
        a[at + r, at + t] = s[r, t]


@fx.kernel(block=2 * B)
def perimeter(a: fx.f32["N", "N"], at: fx.i32):
    """Half of the threads solve L x = a for a block to the right, half x U = a for one below."""
    d = fx.gpu.shared((B, B), fx.f32)
    t = fx.gpu.thread_id.x % B
    right = fx.gpu.thread_id.x < B
    other = at + (fx.gpu.block_id.x + 1) * B
    if right:
        for r in range(B):
            d[r, t] = a[at + r, at + t]
    fx.gpu.barrier()
    x = fx.gpu.local((B,), fx.f32)
    for k in range(B):
        v = a[at + k, other + t] if right else a[other + t, at + k]
        for j in range(k):
            v -= (d[k, j] if right else d[j, k]) * x[j]
        x[k] = v if right else v / d[k, k]
    for k in range(B):
        if right:
            a[at + k, other + t] = x[k]
        else:
            a[other + t, at + k] = x[k]


@fx.kernel(block=(B, B))
def internal(a: fx.f32["N", "N"], at: fx.i32):
    below, right = fx.gpu.shared((B, B), fx.f32), fx.gpu.shared((B, B), fx.f32)
    x, y = fx.gpu.thread_id.x, fx.gpu.thread_id.y
    row, column = at + (fx.gpu.block_id.y + 1) * B + y, at + (fx.gpu.block_id.x + 1) * B + x
    below[y, x] = a[row, at + x]
    right[y, x] = a[at + y, column]
    fx.gpu.barrier()
    s = fx.f32(0)
    for k in range(B):
        s += below[y, k] * right[k, x]
    a[row, column] -= s


def run(on: str, n: int = 64) -> float:
    """Factor an n x n matrix (a multiple of 16); returns the largest error of L U."""
    a = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32) + 2 * n * np.eye(n, dtype=np.float32)
    f = a.copy()
    for at in range(0, n, B):
        rest = (n - at) // B - 1
        diagonal.on(on)[1](f, at)
        if rest:
            perimeter.on(on)[rest](f, at)
            internal.on(on)[(rest, rest), (B, B)](f, at)
    lower = np.tril(f, -1).astype(np.float64) + np.eye(n)
    return check("lu", lower @ np.triu(f).astype(np.float64), a, 1e-6)


if __name__ == "__main__":
    print(f"relative error of L U: {run(device()):.1e}")
