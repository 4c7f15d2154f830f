"""The k records nearest to a place: distances on the GPU, the choice on the host. After Rodinia's nn (k-nearest neighbours)."""

from __future__ import annotations

from typing import NamedTuple

from common import blocks, check, device

import numpy as np

import fluxir as fx


class Place(NamedTuple):
    latitude: float
    longitude: float


@fx.kernel
def distances(latitude: fx.f32["N"], longitude: fx.f32["N"], target: Place, out: fx.f32["N"]):
    i = fx.gpu.global_id.x
    if i < len(out):
        dy, dx = latitude[i] - target.latitude, longitude[i] - target.longitude
        out[i] = fx.sqrt(dx * dx + dy * dy)


def run(on: str, n: int = 2000, k: int = 5, block: int = 256) -> list[int]:
    """The numbers of the k nearest of n records, nearest first."""
    rng = np.random.default_rng(0)
    latitude, longitude = rng.uniform(-60, 60, n).astype(np.float32), rng.uniform(-180, 180, n).astype(np.float32)
    target, out = Place(np.float32(30.0), np.float32(90.0)), np.zeros(n, np.float32)
    distances.on(on)[blocks(n, block), block](latitude, longitude, target, out)
    want = np.hypot(latitude.astype(np.float64) - 30, longitude.astype(np.float64) - 90)
    check("nearest neighbour", out, want, 1e-6)
    nearest = np.argsort(out, kind="stable")[:k]
    check("the choice", nearest, np.argsort(want, kind="stable")[:k])
    return nearest.tolist()


if __name__ == "__main__":
    print("nearest records:", run(device()))
