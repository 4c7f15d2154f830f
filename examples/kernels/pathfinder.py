"""The cheapest way from the bottom to the top of a grid of costs, one row up at a time, straight or to a neighbouring column.

After Rodinia's pathfinder: a launch works several rows; a block computes a strip that is wider than its result by one column
on each side for each row, so that it needs nothing of its neighbours meanwhile (a ghost zone).
"""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx

BLOCK, HEIGHT = 128, 5
KEPT = BLOCK - 2 * HEIGHT


@fx.kernel(block=BLOCK)
def climb(wall: fx.i32["R", "C"], before: fx.i32["C"], after: fx.i32["C"], first: fx.i32):
    best = fx.gpu.shared((BLOCK,), fx.i32)
    t = fx.gpu.thread_id.x
    rows, columns = wall.shape
    column = fx.gpu.block_id.x * KEPT + t - HEIGHT
    inside = column >= 0 and column < columns
    mine = before[column] if inside else fx.i32(2**30)
    for k in range(HEIGHT):
        best[t] = mine
        fx.gpu.barrier()
        if first + k < rows and inside:
            left, right = best[max(t - 1, 0)], best[min(t + 1, BLOCK - 1)]
            mine = min(mine, min(left, right)) + wall[first + k, column]
        fx.gpu.barrier()
    if inside and t >= HEIGHT and t < BLOCK - HEIGHT:
        after[column] = mine


def reference(wall: np.ndarray) -> np.ndarray:
    best = wall[0].astype(np.int64)
    for row in wall[1:]:
        padded = np.pad(best, 1, constant_values=2**30)
        best = np.minimum(best, np.minimum(padded[:-2], padded[2:])) + row
    return best


def run(on: str, rows: int = 14, columns: int = 300) -> float:
    wall = np.random.default_rng(0).integers(0, 10, (rows, columns)).astype(np.int32)
    now, after = wall[0].copy(), np.zeros(columns, np.int32)
    for first in range(1, rows, HEIGHT):
        climb.on(on)[blocks(columns, KEPT)](wall, now, after, first)
        now, after = after, now
    return check("pathfinder", now, reference(wall))


if __name__ == "__main__":
    print(f"right: {run(device())}")
