"""A variational autoencoder learns to draw digits: `python examples/vae.py`.

An image becomes a normal distribution over 8 numbers, and a draw from it an image again (Kingma and Welling 2014). The noise
comes from an explicit key, so that a run can be repeated to the bit; it is drawn inside the compiled training step.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

# So that it runs in a checkout without installing FluxIR.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fluxir as fx
from fluxir.data import load_digits, scale_digits

PIXELS, HIDDEN, LATENT = 64, 128, 8
BATCH = 64

optimiser = fx.optim.Adam(3e-3)


class VAE(fx.nn.Module):
    """The encoder gives mean and logarithm of the variance of the code; the decoder gives scores (logits) of the pixels."""

    encoder: Any
    decoder: Any

    def __init__(self, key):
        k = fx.random.split(key, 4)
        dense = fx.nn.Dense
        self.encoder = fx.nn.Chain(dense(PIXELS, HIDDEN, fx.tanh, key=k[0]), dense(HIDDEN, 2 * LATENT, key=k[1]))
        self.decoder = fx.nn.Chain(dense(LATENT, HIDDEN, fx.tanh, key=k[2]), dense(HIDDEN, PIXELS, key=k[3]))

    def __call__(self, x, noise):
        mean, logvar = fx.split(self.encoder(x), 2, axis=-1)
        return self.decoder(mean + fx.exp(logvar / 2) * noise), mean, logvar


def loss(model, x, noise):
    """The negative evidence lower bound in nats an image, x [B, PIXELS] from 0 to 1 taken as probabilities of ink."""
    scores, mean, logvar = model(x, noise)
    reconstruction = fx.nn.logit_binary_crossentropy(scores, x, agg=None)
    divergence = (fx.exp(logvar) + mean * mean - 1 - logvar) / 2  # from the standard normal distribution
    return (fx.sum(reconstruction) + fx.sum(divergence)) / x.shape[0]


@functools.partial(fx.jit, donate_argnums=(0, 1))
def step(model, memory, x, key):
    noise = fx.random.normal(key, (x.shape[0], LATENT)).astype(x.dtype)
    value, gradient = fx.value_and_grad(loss)(model, x, noise)
    return *optimiser.update(model, gradient, memory), value


def images(half):
    """The training half ("train") or the test half ("test") of the digits, f32[N, PIXELS] from 0 to 1."""
    return scale_digits(load_digits()[f"{half}_images"]).reshape(-1, PIXELS)


def batches(seed=0):
    """Batches of one epoch after the other, each in an order of its own, with a key for each."""
    rng, key, data, count = np.random.default_rng(seed), fx.random.key(seed), images("train"), 0
    while True:
        order = rng.permutation(len(data))
        for i in range(0, len(data) - BATCH + 1, BATCH):
            yield data[order[i : i + BATCH]], fx.random.fold_in(key, count)
            count += 1


def held_out(model):
    """Nats an image on the test half, one draw each."""
    x = images("test")
    return float(fx.jit(loss)(model, x, fx.random.normal(fx.random.key(2), (len(x), LATENT))))


@functools.partial(fx.jit, static_argnames=("count",))
def dream(model, key, *, count):
    """`count` images [count, 8, 8] that the model makes of noise."""
    return fx.sigmoid(model.decoder(fx.random.normal(key, (count, LATENT)))).reshape(count, 8, 8)


def train(steps, show=lambda line: None):
    model = VAE(fx.random.key(0))
    memory = optimiser.init(model)
    for i, (x, key) in zip(range(steps), batches(), strict=False):
        model, memory, nats = step(model, memory, x, key)
        if i % 100 == 0 or i == steps - 1:
            show(f"step {i:4}: {nats:.2f} nats an image")
    return model


def main():
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 1400, print)
    print(f"on writers it has not seen: {held_out(model):.2f} nats an image\n")
    pictures = np.asarray(dream(model, fx.random.key(3), count=5))
    for row in pictures.swapaxes(0, 1):  # the rows of all, side by side
        print("   ".join("".join(" .:-=+*%#@"[int(9.99 * ink)] * 2 for ink in line) for line in row))


if __name__ == "__main__":
    main()
