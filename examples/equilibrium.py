"""A deep equilibrium model reads digits: `python examples/equilibrium.py`.

Its one hidden layer is applied to its own result until that no longer changes: z = f(z, x) (Bai et al. 2019). How it was
found does not matter for the derivative: at the equilibrium dz = (1 - df/dz)^-1 (df/dx) dx, so the backward pass solves
u = ct + (df/dz)^T u, another equilibrium, and keeps nothing of the iteration. `fx.custom_vjp` says so; a rule of its own
serves forward mode.
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

PIXELS, HIDDEN, CLASSES = 64, 64, 10
BATCH = 64
TOLERANCE, MOST = 1e-6, 200

optimiser = fx.optim.Momentum(0.1)


@fx.function
def iterated(f, z):
    """The equilibrium of a contraction f, from z on: as many rounds as it takes."""
    moved, rounds = 1.0, 0
    while moved > TOLERANCE and rounds < MOST:
        new = f(z)
        moved = fx.max(fx.abs(new - z))
        z = new
        rounds += 1
    return z


@functools.partial(fx.custom_vjp, nondiff_argnums=(0,))
def equilibrium(f, inputs, z):
    """z with z = f(inputs, z), from a first guess; f is a contraction in z."""
    return iterated(lambda z: f(inputs, z), z)


def forward(f, inputs, z):
    z = equilibrium(f, inputs, z)
    return z, (inputs, z)


def backward(f, residuals, ct):
    inputs, z = residuals
    _, pull = fx.vjp(f, inputs, z)
    u = iterated(lambda u: ct + pull(u)[1], ct)
    return pull(u)[0], None  # the first guess has no influence


equilibrium.defvjp(forward, backward)


@equilibrium.defjvp
def moved(f, primals, tangents):
    """Forward mode: dz = df/dx dx + df/dz dz. `backward` cannot be transposed: its cotangent says when its loop stops."""
    (inputs, z), (direction, _) = primals, tangents
    z = equilibrium(f, inputs, z)
    push = fx.jvp(lambda x: f(x, z), (inputs,), (direction,))[1]
    return z, iterated(lambda dz: push + fx.jvp(lambda z: f(inputs, z), (z,), (dz,))[1], push)


class Equilibrium(fx.nn.Module):
    """Images [B, PIXELS] -> scores of the digits [B, CLASSES]."""

    inner: Any
    outer: Any
    output: Any

    def __init__(self, key):
        k = fx.random.split(key, 3)
        self.inner = fx.random.normal(k[0], (HIDDEN, HIDDEN), scale=0.5 / HIDDEN**0.5)
        self.outer = fx.nn.Dense(PIXELS, HIDDEN, key=k[1])
        self.output = fx.nn.Dense(HIDDEN, CLASSES, key=k[2])

    def __call__(self, x, rounds=None):
        """With `rounds` the layer is applied so many times and differentiated as any loop is, which is to be compared with."""
        size = fx.max(fx.sum(fx.abs(self.inner), axis=0))  # tanh(z w + y) contracts by this factor, or more
        w = self.inner * (0.9 / fx.maximum(size, 0.9))
        inputs = w, self.outer(x)
        z = fx.zeros_like(inputs[1])
        if rounds is None:
            z = equilibrium(layer, inputs, z)
        else:
            z = fx.fori_loop(0, rounds, lambda i, z: layer(inputs, z), z)
        return self.output(z)


def layer(inputs, z):
    w, y = inputs
    return fx.tanh(z @ w + y)


def loss(model, x, label, rounds=None):
    return fx.nn.logit_crossentropy(model(x, rounds), label)


@functools.partial(fx.jit, donate_argnums=(0, 1))
def step(model, memory, x, label):
    value, gradient = fx.value_and_grad(loss)(model, x, label)
    return *optimiser.update(model, gradient, memory), value


def half(name):
    digits = load_digits()
    return scale_digits(digits[f"{name}_images"]).reshape(-1, PIXELS), digits[f"{name}_labels"].astype(np.int64)


def accuracy(model):
    x, label = half("test")
    return float(np.mean(np.argmax(fx.jit(Equilibrium.__call__)(model, x), axis=1) == label))


def gradients(model, x, label, rounds):
    """The gradient by the implicit function theorem and by unrolling, and the memory that each plans, in bytes."""
    made = []
    for n in (None, rounds):
        f = fx.jit(lambda model, x, label, n=n: fx.grad(lambda m: loss(m, x, label, n))(model))
        made.append((f(model, x, label), f.lower(model, x, label).cost().peak_memory))
    return made


def train(epochs, show=lambda line: None):
    (x, label), rng, model = half("train"), np.random.default_rng(0), Equilibrium(fx.random.key(0))
    memory = optimiser.init(model)
    for epoch in range(epochs):
        order, total = rng.permutation(len(x)), 0.0
        for i in range(0, len(x) - BATCH + 1, BATCH):
            chosen = order[i : i + BATCH]
            model, memory, value = step(model, memory, x[chosen], label[chosen])
            total += float(value)
        show(f"epoch {epoch:2}: loss {total / (len(x) // BATCH):.4f}")
    return model


def main():
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 20, print)
    print(f"writers it has not seen: {accuracy(model):.1%} right")
    (implicit, memory), (unrolled, more) = gradients(model, *(a[:BATCH] for a in half("train")), 100)
    difference = np.abs(implicit.inner - unrolled.inner).max() / np.abs(unrolled.inner).max()
    print(f"gradient: {difference:.0e} from that through 100 rounds, in {memory >> 10} KiB instead of {more >> 10} KiB")


if __name__ == "__main__":
    main()
