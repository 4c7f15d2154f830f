"""The Mandelbrot set: how many rounds of z = z*z + c each point of the plane takes to leave the circle of radius 2."""

from __future__ import annotations

from common import blocks, device

import numpy as np

import fluxir as fx


@fx.kernel
def mandelbrot(out: fx.i32["H", "W"], left: fx.f32, top: fx.f32, step: fx.f32, most: fx.i32):
    column, row = fx.gpu.global_id.x, fx.gpu.global_id.y
    if row >= out.shape[0] or column >= out.shape[1]:
        return
    cx, cy = left + step * fx.f32(column), top + step * fx.f32(row)
    x = y = fx.f32(0)
    n = fx.i32(0)
    while n < most and x * x + y * y <= 4.0:
        x, y = x * x - y * y + cx, 2 * x * y + cy
        n += 1
    out[row, column] = n


def reference(height: int, width: int, left: float, top: float, step: float, most: int) -> np.ndarray:
    f = np.float32
    cx = (f(left) + f(step) * np.arange(width, dtype=f))[None, :] + np.zeros((height, 1), f)
    cy = (f(top) + f(step) * np.arange(height, dtype=f))[:, None] + np.zeros((1, width), f)
    x, y, n = np.zeros_like(cx), np.zeros_like(cx), np.zeros(cx.shape, np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(most):
            inside = x * x + y * y <= 4
            n += inside
            x, y = np.where(inside, x * x - y * y + cx, x), np.where(inside, 2 * x * y + cy, y)
    return n


def run(on: str, height: int = 24, width: int = 40, most: int = 60) -> float:
    """Returns the share of points whose count differs: rounding may move a few at the border (a GPU may fuse x*x + y*y)."""
    out = np.zeros((height, width), np.int32)
    place = (-2.0, -1.0, 3.0 / width)
    mandelbrot.on(on)[(blocks(width, 16), blocks(height, 8)), (16, 8)](out, *place, most)
    differ = float(np.mean(out != reference(height, width, *place, most)))
    assert differ < 0.02, f"{differ:.1%} of the points differ"
    return differ


if __name__ == "__main__":
    out = np.zeros((24, 64), np.int32)
    mandelbrot.on(device())[(4, 3), (16, 8)](out, -2.1, -1.2, 0.046, 50)
    for row in out:
        print("".join(" .:-=+*#%@"[min(9, int(n) // 5)] for n in row))
    print(f"{run(device()):.2%} of the points differ from numpy")
