"""A character-level LSTM learns a play and writes on: `python examples/char_lstm.py`.

Each step reads a batch of passages, predicts every next character, and updates the weights; loss, gradient (backward
through the loop over time) and Adam are one compiled program, which updates its arguments in place. The writing is
another: it reads the prompt, then draws a character, reads it, and draws the next.
"""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

# So that it runs in a checkout without installing FluxIR.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fluxir as fx
from fluxir.data import decode_text, load_text

ALPHABET, TRAIN, TEST = load_text()
SYMBOLS, WIDTH, HIDDEN = len(ALPHABET), 32, 128
BATCH, LENGTH = 32, 48

optimiser = fx.optim.Chain(fx.optim.ClipNorm(1.0), fx.optim.Adam(5e-3))


class CharLSTM(fx.nn.Module):
    """Characters [B, T] -> scores of what follows each [B, T, SYMBOLS], and the state after the last."""

    embedding: Any
    lstm: Any
    output: Any

    def __init__(self, key):
        k = fx.random.split(key, 3)
        self.embedding = fx.nn.Embedding(SYMBOLS, WIDTH, key=k[0])
        self.lstm = fx.nn.LSTM(WIDTH, HIDDEN, key=k[1])
        self.output = fx.nn.Dense(HIDDEN, SYMBOLS, key=k[2])

    def __call__(self, text, state=None):
        h, state = self.lstm(self.embedding(text), state, return_state=True)
        return self.output(h), state


def loss(model, text):
    """Mean cross-entropy, in bits, of each character of `text` [B, T + 1] given those before it."""
    scores, _ = model(text[:, :-1])
    return fx.nn.logit_crossentropy(scores, text[:, 1:]) / math.log(2)


@functools.partial(fx.jit, donate_argnums=(0, 1))
def step(model, memory, text):
    value, gradient = fx.value_and_grad(loss)(model, text)
    return *optimiser.update(model, gradient, memory), value


def batches(seed=0):
    """Passages of the play, at random places, for ever."""
    rng = np.random.default_rng(seed)
    while True:
        places = rng.integers(0, len(TRAIN) - LENGTH, BATCH)
        yield TRAIN[places[:, None] + np.arange(LENGTH + 1)].astype(np.int64)


def held_out(model):
    """Bits a character on the last scenes."""
    rows = TEST[: len(TEST) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return float(fx.jit(loss)(model, rows.astype(np.int64)))


@functools.partial(fx.jit, static_argnames=("count",))
def write(model, prompt, key, *, count):
    """`count` characters that follow the prompt [T]."""
    scores, state = model(prompt[None])

    def draw(carry, key):
        scores, state = carry
        symbol = fx.random.categorical(key, scores)
        scores, state = model(symbol[:, None], state)
        return (scores[:, -1], state), symbol[0]

    return fx.scan(draw, (scores[:, -1], state), fx.random.split(key, count))[1]


def train(steps, show=lambda line: None):
    model = CharLSTM(fx.random.key(0))
    memory = optimiser.init(model)
    for i, text in zip(range(steps), batches(), strict=False):
        model, memory, bits = step(model, memory, text)
        if i % 50 == 0 or i == steps - 1:
            show(f"step {i:4}: {bits:.3f} bits a character")
    return model


def main():
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 600, print)
    print(f"on scenes it has not seen: {held_out(model):.3f} bits a character\n")
    text = write(model, TEST[:200].astype(np.int64), fx.random.key(1), count=400)
    print(decode_text(text, ALPHABET))


if __name__ == "__main__":
    main()
