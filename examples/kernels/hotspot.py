"""Heat in a chip: a temperature for each cell, moved by the power it takes and by its neighbours, step by step.

After Rodinia's hotspot (the model is Huang et al., HotSpot, 2006). A block loads its tile and a border of one cell into shared
memory; cells at the edge of the chip are their own neighbours.
"""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx

TILE = 16
AMBIENT = 80.0


@fx.kernel
def step(temperature: fx.f32["H", "W"], power: fx.f32["H", "W"], out: fx.f32["H", "W"],
         rx: fx.f32, ry: fx.f32, rz: fx.f32, capacity: fx.f32):  # fmt: skip
    t = fx.gpu.shared((TILE + 2, TILE + 2), fx.f32)
    height, width = temperature.shape
    row0, column0 = fx.gpu.block_id.y * TILE - 1, fx.gpu.block_id.x * TILE - 1
    here = fx.gpu.thread_id.y * TILE + fx.gpu.thread_id.x
    for k in range(here, (TILE + 2) * (TILE + 2), TILE * TILE):
        r, c = k // (TILE + 2), k % (TILE + 2)
        t[r, c] = temperature[min(max(row0 + r, 0), height - 1), min(max(column0 + c, 0), width - 1)]
    fx.gpu.barrier()
    y, x = fx.gpu.thread_id.y + 1, fx.gpu.thread_id.x + 1
    row, column = row0 + y, column0 + x
    if row < height and column < width:
        middle = t[y, x]
        flow = (t[y + 1, x] + t[y - 1, x] - 2 * middle) / ry + (t[y, x + 1] + t[y, x - 1] - 2 * middle) / rx
        out[row, column] = middle + (power[row, column] + flow + (AMBIENT - middle) / rz) / capacity


def reference(t: np.ndarray, power: np.ndarray, rx: float, ry: float, rz: float, capacity: float) -> np.ndarray:
    p = np.pad(t, 1, mode="edge")
    flow = (p[2:, 1:-1] + p[:-2, 1:-1] - 2 * t) / ry + (p[1:-1, 2:] + p[1:-1, :-2] - 2 * t) / rx
    return t + (power + flow + (AMBIENT - t) / rz) / capacity


def run(on: str, height: int = 50, width: int = 70, steps: int = 3) -> float:
    rng = np.random.default_rng(0)
    t = rng.uniform(70, 90, (height, width)).astype(np.float32)
    power = rng.uniform(0, 2, (height, width)).astype(np.float32)
    constants = tuple(np.float32(v) for v in (1.5, 2.0, 8.0, 10.0))
    want, other = t.astype(np.float64), np.zeros_like(t)
    for _ in range(steps):
        step.on(on)[(blocks(width, TILE), blocks(height, TILE)), (TILE, TILE)](t, power, other, *constants)
        t, other = other, t
        want = reference(want, power, *map(float, constants))
    return check("hotspot", t, want, 1e-6)


if __name__ == "__main__":
    print(f"relative error {run(device()):.1e}")
