"""A small GPT learns a play, character by character, and writes on: `python examples/gpt.py`.

The network is that of GPT-2 (Radford et al. 2019) with 0.1 million parameters: blocks of causal attention and a perceptron,
each on normalised inputs and added to the stream. Loss, gradient and AdamW are one compiled program.
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
SYMBOLS, WIDTH, HEADS, LAYERS = len(ALPHABET), 64, 4, 2
BATCH, LENGTH = 32, 48

optimiser = fx.optim.AdamW(3e-3, beta2=0.95, decay=0.1)


class Block(fx.nn.Module):
    """Each place takes in what those up to it hold, then changes by itself: [B, T, WIDTH] -> the same."""

    norm1: Any
    attention: Any
    norm2: Any
    perceptron: Any

    def __init__(self, key):
        k = fx.random.split(key, 3)
        self.norm1, self.norm2 = fx.nn.LayerNorm(WIDTH), fx.nn.LayerNorm(WIDTH)
        self.attention = fx.nn.MultiHeadAttention(WIDTH, HEADS, key=k[0])
        up, down = fx.nn.Dense(WIDTH, 4 * WIDTH, fx.nn.gelu, key=k[1]), fx.nn.Dense(4 * WIDTH, WIDTH, key=k[2])
        self.perceptron = fx.nn.Chain(up, down)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x), causal=True)
        return x + self.perceptron(self.norm2(x))


class GPT(fx.nn.Module):
    """Characters [B, T] -> scores of what follows each [B, T, SYMBOLS]."""

    symbols: Any
    places: Any
    blocks: Any
    norm: Any

    def __init__(self, key):
        k = fx.random.split(key, 2 + LAYERS)
        small = functools.partial(fx.nn.init.normal, std=0.02)
        self.symbols = fx.nn.Embedding(SYMBOLS, WIDTH, key=k[0], init=small)
        self.places = fx.nn.Embedding(LENGTH, WIDTH, key=k[1], init=small)
        self.blocks = fx.nn.Chain(*[Block(x) for x in k[2:]])
        self.norm = fx.nn.LayerNorm(WIDTH)

    def __call__(self, text):
        x = self.symbols(text) + self.places(fx.arange(text.shape[1]))
        return self.symbols.attend(self.norm(self.blocks(x)))


def loss(model, text):
    """Mean cross-entropy, in bits, of each character of `text` [B, T + 1] given those before it."""
    return fx.nn.logit_crossentropy(model(text[:, :-1]), text[:, 1:]) / math.log(2)


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
    """`count` characters that follow the prompt [LENGTH], each drawn from what the last LENGTH make likely."""

    def draw(window, key):
        symbol = fx.random.categorical(key, model(window)[:, -1])
        return fx.concat([window[:, 1:], symbol[:, None]], axis=1), symbol[0]

    return fx.scan(draw, prompt[None], fx.random.split(key, count))[1]


def train(steps, show=lambda line: None):
    model = GPT(fx.random.key(0))
    memory = optimiser.init(model)
    for i, text in zip(range(steps), batches(), strict=False):
        model, memory, bits = step(model, memory, text)
        if i % 100 == 0 or i == steps - 1:
            show(f"step {i:4}: {bits:.3f} bits a character")
    return model


def main():
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 1500, print)
    print(f"on scenes it has not seen: {held_out(model):.3f} bits a character\n")
    print(decode_text(write(model, TEST[:LENGTH].astype(np.int64), fx.random.key(1), count=400), ALPHABET))


if __name__ == "__main__":
    main()
