"""c = a + b, one element a thread."""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx


@fx.kernel
def add(a: fx.f32["N"], b: fx.f32["N"], c: fx.f32["N"]):
    i = fx.gpu.global_id.x
    if i < len(c):
        c[i] = a[i] + b[i]


def run(on: str, n: int = 10_000, block: int = 256) -> float:
    """Add two vectors of n numbers; returns the largest relative error."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n)).astype(np.float32)
    c = np.zeros(n, np.float32)
    add.on(on)[blocks(n, block), block](a, b, c)
    return check("vector add", c, a + b)


if __name__ == "__main__":
    print(f"right: {run(device())}")
