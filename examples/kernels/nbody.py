"""The pull that n bodies have on each other: each thread owns a body, blocks walk over the others in tiles of shared memory.

After L. Nyland, M. Harris, J. Prins, Fast N-body simulation with CUDA, GPU Gems 3, 2007 (the tiles; code and data are ours).
"""

from __future__ import annotations

from typing import NamedTuple

from common import blocks, check, device

import numpy as np

import fluxir as fx

BLOCK = 64
SOFTENING = 1e-3


class Bodies(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    mass: np.ndarray


def pull(dx, dy, dz, mass):
    """How strongly a body at a distance pulls, over that distance."""
    r2 = dx * dx + dy * dy + dz * dz + SOFTENING
    inverse = fx.rsqrt(r2)
    return mass * inverse * inverse * inverse


@fx.kernel(block=BLOCK)
def accelerate(bodies: Bodies, out: fx.f32["N", 3]):
    tile = fx.gpu.shared((4, BLOCK), fx.f32)
    i, t, n = fx.gpu.global_id.x, fx.gpu.thread_id.x, len(bodies.x)
    mine = min(i, n - 1)
    x, y, z = bodies.x[mine], bodies.y[mine], bodies.z[mine]
    ax = ay = az = fx.f32(0)
    for base in range(0, n, BLOCK):
        other = base + t
        inside = other < n
        tile[0, t] = bodies.x[other] if inside else 0.0
        tile[1, t] = bodies.y[other] if inside else 0.0
        tile[2, t] = bodies.z[other] if inside else 0.0
        tile[3, t] = bodies.mass[other] if inside else 0.0  # what is not there pulls nobody
        fx.gpu.barrier()
        for j in range(BLOCK):
            dx, dy, dz = tile[0, j] - x, tile[1, j] - y, tile[2, j] - z
            s = pull(dx, dy, dz, tile[3, j])
            ax, ay, az = ax + s * dx, ay + s * dy, az + s * dz
        fx.gpu.barrier()
    if i < n:
        out[i, 0], out[i, 1], out[i, 2] = ax, ay, az


def reference(b: Bodies) -> np.ndarray:
    p = np.stack([b.x, b.y, b.z], 1).astype(np.float64)
    d = p[None] - p[:, None]
    s = b.mass[None, :] / ((d * d).sum(-1) + SOFTENING) ** 1.5
    return (s[..., None] * d).sum(1)


def run(on: str, n: int = 150) -> float:
    rng = np.random.default_rng(0)
    bodies = Bodies(*rng.normal(size=(3, n)).astype(np.float32), rng.uniform(0.5, 2, n).astype(np.float32))
    out = np.zeros((n, 3), np.float32)
    accelerate.on(on)[blocks(n, BLOCK)](bodies, out)
    return check("n-body", out, reference(bodies), 1e-5)


if __name__ == "__main__":
    print(f"relative error {run(device()):.1e}")
