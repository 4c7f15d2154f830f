"""A network that decides how long to think: `python examples/ponder.py`.

Adaptive computation time (Graves, "Adaptive computation time for recurrent neural networks", 2016) on the parity of up to six
signs. A recurrent cell runs again and again on the same input, and at each step gives a probability of halting; it stops when
these add up to 1. So the number of steps depends on data and on the parameters, and the `while` below, which is a loop of
the compiled program, is differentiated with it. A price on steps makes the network use few.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it runs in a checkout without installing FluxIR

import numpy as np

import fluxir as fx
from fluxir.data import DataLoader

BITS, HIDDEN, BATCH = 6, 64, 128
ENOUGH, MOST, PRICE = 0.99, 12, 1e-2


def parameters(key):
    """The weights: input and the mark of the first step, the cell, the halting unit, the answer."""
    k = fx.random.split(key, 4)

    def normal(key, inputs, outputs):
        return fx.random.normal(key, (inputs, outputs)) / np.float32(np.sqrt(inputs))

    return {
        "input": normal(k[0], BITS + 1, HIDDEN),
        "cell": normal(k[1], HIDDEN, HIDDEN),
        "bias": np.zeros(HIDDEN, np.float32),
        "halt": normal(k[2], HIDDEN, 1),
        "halt_bias": np.ones(1, np.float32),
        "answer": normal(k[3], HIDDEN, 2),
    }


@fx.function
def ponder(p, x):
    """x [B, BITS] -> (logits [B, 2], steps [B], the probability left to the last step [B])."""
    seen = x @ p["input"][:BITS] + p["bias"]
    h = fx.zeros_like(seen)
    mean = fx.zeros_like(seen)
    done = fx.zeros_like(x[:, 0])
    steps = fx.zeros_like(done)
    rest = fx.ones_like(done)
    n = 0
    while n < MOST and fx.any(done < ENOUGH):
        first = fx.where(n == 0, p["input"][BITS], fx.zeros_like(p["bias"]))
        h = fx.tanh(seen + first + h @ p["cell"])
        halting = fx.sigmoid(fx.squeeze(h @ p["halt"], -1) + p["halt_bias"])
        going = done < ENOUGH
        last = going & ((done + halting >= ENOUGH) | (n == MOST - 1))
        share = fx.where(going, fx.where(last, 1 - done, halting), fx.zeros_like(done))
        mean = mean + fx.expand_dims(share, -1) * h
        rest = fx.where(last, 1 - done, rest)
        steps = steps + fx.astype(going, steps.dtype)
        done = fx.where(last, fx.ones_like(done), done + share)
        n = n + 1
    return mean @ p["answer"], steps, rest


def loss(p, x, y):
    """Cross-entropy and the price of steps. The number of steps has no slope; what is left to the last one has."""
    logits, steps, rest = ponder(p, x)
    right = fx.mean(fx.astype(fx.argmax(logits, axis=-1) == y, "f32"))
    return fx.nn.logit_crossentropy(logits, y) + PRICE * fx.mean(steps + rest), {
        "right": right,
        "steps": fx.mean(steps),
    }


def problems(seed, count):
    """Rows of 1 to BITS signs, then zeros; the answer is whether the number of +1 is odd."""
    rng = np.random.default_rng(seed)
    used = np.arange(BITS) < rng.integers(1, BITS + 1, count)[:, None]
    x = (rng.choice([-1, 1], (count, BITS)) * used).astype(np.float32)
    return x, (x == 1).sum(1) % 2


def train(epochs=20, count=8192, **options):
    """The finished run."""
    data = DataLoader(problems(0, count), BATCH, shuffle=0)
    return fx.train.fit(parameters(fx.random.key(0)), loss, data, fx.optim.Adam(3e-3), epochs=epochs, **options)


def main():
    run = train()
    for row in run.history[::4]:
        print(f"epoch {row['epoch']:2}: loss {row['loss']:.3f}, {row['right']:.1%} right in {row['steps']:.2f} steps")
    x, y = problems(1, 4096)
    logits, steps, _ = fx.jit(ponder)(run.model, x)
    print(f"new problems: {(logits.argmax(1) == y).mean():.1%} right")
    for n in range(1, BITS + 1):
        print(f"  {n} signs: {steps[np.abs(x).sum(1) == n].mean():.2f} steps")


if __name__ == "__main__":
    main()
