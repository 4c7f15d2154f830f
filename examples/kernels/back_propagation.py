"""One layer of a network: forward in blocks of 16 inputs whose partial sums are added up on the host, and the update of its
weights with momentum. After Rodinia's backprop.
"""

from __future__ import annotations

from common import blocks, check, device

import numpy as np

import fluxir as fx

TILE = 16
RATE, MOMENTUM = 0.3, 0.3


@fx.kernel
def forward(inputs: fx.f32["I"], weights: fx.f32["I", "O"], sums: fx.f32["B", "O"]):
    """A block adds up 16 inputs for 16 outputs, in a tree along the inputs."""
    x = fx.gpu.shared((TILE,), fx.f32)
    products = fx.gpu.shared((TILE, TILE), fx.f32)
    o, i = fx.gpu.thread_id.x, fx.gpu.thread_id.y
    row, column = fx.gpu.block_id.y * TILE + i, fx.gpu.block_id.x * TILE + o
    if o == 0:
        x[i] = inputs[row] if row < len(inputs) else 0.0
    fx.gpu.barrier()
    inside = row < len(inputs) and column < weights.shape[1]
    products[i, o] = weights[row, column] * x[i] if inside else 0.0
    fx.gpu.barrier()
    step = TILE // 2
    while step > 0:
        if i < step:
            products[i, o] += products[i + step, o]
        fx.gpu.barrier()
        step //= 2
    if i == 0 and column < weights.shape[1]:
        sums[fx.gpu.block_id.y, column] = products[0, o]


@fx.kernel
def adjust(inputs: fx.f32["I"], delta: fx.f32["O"], weights: fx.f32["I", "O"], last: fx.f32["I", "O"]):
    column, row = fx.gpu.global_id.x, fx.gpu.global_id.y
    if row < weights.shape[0] and column < weights.shape[1]:
        change = RATE * delta[column] * inputs[row] + MOMENTUM * last[row, column]
        weights[row, column] += change
        last[row, column] = change


def run(on: str, inputs: int = 100, outputs: int = 24) -> float:
    rng = np.random.default_rng(0)
    x, delta = rng.random(inputs).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
    w, last = rng.normal(size=(2, inputs, outputs)).astype(np.float32)
    grid = (blocks(outputs, TILE), blocks(inputs, TILE))
    sums = np.zeros((grid[1], outputs), np.float32)
    forward.on(on)[grid, (TILE, TILE)](x, w, sums)
    hidden = 1 / (1 + np.exp(-sums.sum(0)))
    worst = check("forward", hidden, 1 / (1 + np.exp(-(x @ w))), 1e-5)
    want_change = RATE * np.outer(x, delta) + MOMENTUM * last
    want = w + want_change
    adjust.on(on)[grid, (TILE, TILE)](x, delta, w, last)
    return max(worst, check("weights", w, want, 1e-6), check("change", last, want_change, 1e-6))


if __name__ == "__main__":
    print(f"relative error {run(device()):.1e}")
