"""Trains a convolutional network on handwritten digits from scratch: `python examples/train_digits_fx.py`.

The network is that of `digits.py`. Everything in a step is one compiled program: moving, turning and noising the images, the
network, its derivative, and AdamW with one cycle of the learning rate. Weights, order of the images and noise come from
one key. It trains on one half of the digits and looks at the other, by other writers, once at the end.
`fluxir demo` runs `train` too, and compiles `digits.py` with the weights.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

if __name__ == "__main__":  # so that it runs in a checkout without installing FluxIR
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import fluxir as fx
from fluxir.data import DataLoader, load_digits, scale_digits

SEED, EPOCHS, BATCH = 0, 120, 64
PEAK_LEARNING_RATE, WEIGHT_DECAY, DROPOUT, NOISE = 4e-3, 2e-2, 0.1, 0.1


def network(key):
    """[B, 1, 8, 8] in 0..1 -> [B, 10] logits."""
    k = fx.random.split(key, 4)
    return fx.nn.Chain(
        fx.nn.Conv(1, 16, (3, 3), fx.nn.relu, padding=1, key=k[0]),
        fx.nn.Conv(16, 24, (3, 3), fx.nn.relu, padding=1, key=k[1]),
        fx.nn.MaxPool(2),
        fx.nn.Flatten(),
        fx.nn.Dropout(DROPOUT),
        fx.nn.Dense(24 * 4 * 4, 32, fx.nn.relu, key=k[2]),
        fx.nn.Dense(32, 10, key=k[3]),
    )


def augmented(x, key):
    """The images [B, 8, 8], each moved by up to a pixel, turned, sheared and scaled a little, with noise on each pixel."""
    k = fx.random.split(key, 7)
    b = x.shape[0]

    def uniform(i, bound):
        return fx.random.uniform(k[i], (b, 1), low=-bound, high=bound)

    # Where each pixel of the new image lies in the old one, [B, 64], counted from the middle.
    middle = np.arange(8, dtype=np.float32) - 3.5
    row, column = np.repeat(middle, 8), np.tile(middle, 8)
    angle, shear = uniform(0, math.radians(12)), uniform(1, 0.2)
    width, height = 1 + uniform(2, 0.15), 1 + uniform(3, 0.15)
    y = fx.sin(angle) * column + fx.cos(angle) * height * row + uniform(4, 1.0)
    x0 = fx.cos(angle) * width * column + (shear - fx.sin(angle)) * row + uniform(5, 1.0)
    # Linear interpolation between pixels, as products with hat functions; outside the image is paper.
    hat_y = fx.maximum(1 - fx.abs(fx.expand_dims(y, -1) - middle), 0)  # [B, 64, 8]
    hat_x = fx.maximum(1 - fx.abs(fx.expand_dims(x0, -1) - middle), 0)
    moved = fx.reshape(fx.sum((hat_y @ x) * hat_x, axis=-1), (b, 8, 8))
    return moved + NOISE * fx.random.normal(k[6], (b, 8, 8))


def loss(model, x, y, *, key=None):
    """The cross-entropy of a batch; with a key, of its images changed, with dropout."""
    if key is not None:
        a, b = fx.random.split(key)
        x = augmented(x, a)
    logits = model(fx.expand_dims(x, 1), train=key is not None, key=None if key is None else b)
    return fx.nn.logit_crossentropy(logits, y)


def accuracy(model, x, y):
    """The share of images [B, 8, 8] that the model reads as their label."""
    return fx.mean(fx.astype(fx.argmax(model(fx.expand_dims(x, 1)), axis=-1) == y, "f32"))


def half(name):
    """The training half ("train") or the test half ("test"): images f32[N, 8, 8] and labels i64[N]."""
    digits = load_digits()
    return scale_digits(digits[f"{name}_images"]), digits[f"{name}_labels"].astype(np.int64)


def train(epochs=EPOCHS, seed=SEED, **options):
    """The finished run."""
    images, labels = half("train")
    data = DataLoader((images, labels), BATCH, shuffle=seed)
    rate = fx.optim.one_cycle(PEAK_LEARNING_RATE, epochs * len(data))
    model = network(fx.random.key(seed))
    return fx.train.fit(model, loss, data, fx.optim.AdamW(rate, decay=WEIGHT_DECAY), epochs=epochs, key=seed, **options)


def weights(model):
    """The arrays of a trained network under the names that `digits.py` reads."""
    layers = {"conv1": model[0], "conv2": model[1], "dense1": model[5], "dense2": model[6]}
    return {f"{n}.{part}": np.asarray(getattr(x, part)) for n, x in layers.items() for part in ("weight", "bias")}


def main():
    run = train()
    print(run.model)
    for row in run.history[:: EPOCHS // 6]:
        print(f"epoch {row['epoch']:3}: loss {row['loss']:.4f}")
    right = fx.train.evaluate(accuracy, run.model, DataLoader(half("test"), 256))
    print(f"test half: {right:.2%} right")


if __name__ == "__main__":
    main()
