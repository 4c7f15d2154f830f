"""Weights and data of the training steps: the same numpy arrays for every contender.

All weights are flat dictionaries. The convolutional network is ResNet-18 (He et al. 2015) in its form for 32 by 32
images: a 3 by 3 stem of 64 channels and no pooling before the first stage.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CASES = {
    "mlp": "MLP 784-512-256-10, batch 64, Adam",
    "lstm": "LSTM 256, 64 steps, batch 16, gradient",
    "resnet": "ResNet-18 (CIFAR), batch 32, momentum",
}
MLP = (784, 512, 256, 10)
LSTM = 256
# Of each block: its name, channels in, channels out, stride.
BLOCKS = [
    (f"s{s}.{i}", 64 if s == 0 else (64 << s) // (2 if i == 0 else 1), 64 << s, 2 if s > 0 and i == 0 else 1)
    for s in range(4)
    for i in range(2)
]


def _normal(rng: Any, *shape: int, scale: float = 1.0) -> Any:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def weights(case: str) -> dict[str, Any]:
    """The trained arrays."""
    rng = np.random.default_rng(1)
    if case == "mlp":
        pairs = list(enumerate(zip(MLP, MLP[1:])))
        return {f"w{i}": _normal(rng, a, b, scale=(2 / a) ** 0.5) for i, (a, b) in pairs} | {
            f"b{i}": np.zeros(b, np.float32) for i, (_, b) in pairs
        }
    if case == "lstm":
        scale = LSTM**-0.5
        return {
            "wx": _normal(rng, LSTM, 4 * LSTM, scale=scale), "wh": _normal(rng, LSTM, 4 * LSTM, scale=scale),
            "b": _normal(rng, 4 * LSTM, scale=0.1),
        }  # fmt: skip
    p: dict[str, Any] = {}

    def conv(name: str, i: int, o: int, k: int) -> None:
        p[f"{name}.w"] = _normal(rng, o, i, k, k, scale=(2 / (o * k * k)) ** 0.5)
        p[f"{name}.scale"], p[f"{name}.shift"] = np.ones(o, np.float32), np.zeros(o, np.float32)

    conv("stem", 3, 64, 3)
    for name, i, o, stride in BLOCKS:
        conv(f"{name}.a", i, o, 3)
        conv(f"{name}.b", o, o, 3)
        if stride != 1:
            conv(f"{name}.skip", i, o, 1)
    p["head.w"], p["head.b"] = _normal(rng, 512, 10, scale=512**-0.5), np.zeros(10, np.float32)
    return p


def statistics(case: str) -> dict[str, Any]:
    """The running means and variances of batch normalisation."""
    found = {}
    for name, a in weights(case).items():
        if name.endswith(".scale"):
            key = name.removesuffix(".scale")
            found |= {f"{key}.mean": np.zeros_like(a), f"{key}.var": np.ones_like(a)}
    return found


def batch(case: str) -> tuple[Any, Any]:
    """Input and labels (i64; none for the LSTM)."""
    rng = np.random.default_rng(2)
    if case == "mlp":
        return _normal(rng, 64, 784), rng.integers(0, 10, 64)
    if case == "lstm":
        return _normal(rng, 64, 16, LSTM), None
    return _normal(rng, 32, 3, 32, 32), rng.integers(0, 10, 32)


# The gradient that contenders are compared by.
PROBE = {"mlp": "w0", "lstm": "wh", "resnet": "s1.0.a.w"}
LEARNING_RATE = {"mlp": 1e-3, "resnet": 0.05}
EPS, DECAY, BETA1, BETA2, MOMENTUM = 1e-5, 0.1, 0.9, 0.999, 0.9
