"""The models whose compile time is measured: each as (function, arguments, donated arguments).

Weights are arguments: compile time is that of the program, not of copying its weights. Training steps are those of
`bench.train`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.train import data

Made = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]


def _normal(*shape: int) -> Any:
    scale = (shape[0] if len(shape) == 2 else int(np.prod(shape[1:])) or 1) ** -0.5
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)


def mlp(batch: int = 32) -> Made:
    """MLP 784-512-256-10 with relu, inference."""
    sizes = (784, 512, 256, 10)
    weights = [(_normal(a, b), np.zeros(b, np.float32)) for a, b in zip(sizes, sizes[1:])]

    def forward(weights: Any, x: Any) -> Any:
        import fluxir as fx

        for i, (w, b) in enumerate(weights):
            x = x @ w + b
            x = fx.maximum(x, 0) if i < 2 else x
        return x

    return forward, (weights, _normal(batch, 784)), ()


def encoder(d: int = 768, length: int = 128, heads: int = 12) -> Made:
    """A transformer encoder block: attention and a feed-forward of four times the width."""
    shapes = {
        "ln1": (d,), "ln1b": (d,), "qkv": (d, 3 * d), "qkvb": (3 * d,), "out": (d, d), "outb": (d,),
        "ln2": (d,), "ln2b": (d,), "up": (d, 4 * d), "upb": (4 * d,), "down": (4 * d, d), "downb": (d,),
    }  # fmt: skip
    weights = {k: _normal(*s) if len(s) == 2 else np.ones(s, np.float32) for k, s in shapes.items()}

    def forward(w: Any, x: Any) -> Any:
        import fluxir as fx

        b, s, _ = x.shape
        h = fx.functional.layer_norm(x, w["ln1"], w["ln1b"])
        parts = fx.split(h @ w["qkv"] + w["qkvb"], 3, axis=-1)
        q, k, v = (fx.swapaxes(fx.reshape(y, (b, s, heads, d // heads)), 1, 2) for y in parts)
        a = fx.functional.scaled_dot_product_attention(q, k, v)
        x = x + fx.reshape(fx.swapaxes(a, 1, 2), (b, s, d)) @ w["out"] + w["outb"]
        h = fx.functional.layer_norm(x, w["ln2"], w["ln2b"])
        return x + fx.functional.gelu(h @ w["up"] + w["upb"]) @ w["down"] + w["downb"]

    return forward, (weights, _normal(1, length, d)), ()


def resnet(batch: int = 1, size: int = 224) -> Made:
    """ResNet-18 (He et al. 2015) for images of 224 by 224, inference."""
    blocks = [(s, i, 64 if s == 0 else (64 << s) // (2 if i == 0 else 1), 64 << s) for s in range(4) for i in range(2)]
    p: dict[str, Any] = {"head.w": _normal(512, 1000), "head.b": np.zeros(1000, np.float32)}

    def conv(name: str, i: int, o: int, k: int) -> None:
        p[f"{name}.w"] = _normal(o, i, k, k)
        for part in ("mean", "var", "scale", "shift"):
            p[f"{name}.{part}"] = np.ones(o, np.float32)

    conv("stem", 3, 64, 7)
    for s, i, c, o in blocks:
        conv(f"{s}.{i}.a", c, o, 3)
        conv(f"{s}.{i}.b", o, o, 3)
        if c != o:
            conv(f"{s}.{i}.skip", c, o, 1)

    def forward(p: Any, x: Any) -> Any:
        import fluxir as fx

        nn = fx.functional

        def unit(name: str, x: Any, stride: int = 1) -> Any:
            k = p[f"{name}.w"].shape[-1]
            z = fx.conv(x, p[f"{name}.w"], stride=stride, padding=k // 2)
            return nn.batch_norm(z, *(p[f"{name}.{part}"] for part in ("mean", "var", "scale", "shift")))

        h = nn.max_pool(nn.relu(unit("stem", x, 2)), 3, stride=2, padding=1)
        for s, i, c, o in blocks:
            stride = 2 if c != o else 1
            inner = unit(f"{s}.{i}.b", nn.relu(unit(f"{s}.{i}.a", h, stride)))
            h = nn.relu(inner + (unit(f"{s}.{i}.skip", h, stride) if c != o else h))
        return fx.mean(h, axis=(2, 3)) @ p["head.w"] + p["head.b"]

    return forward, (p, _normal(batch, 3, size, size)), ()


def digits(batch: int = 32) -> Made:
    """The model of `examples/digits.py`."""
    from examples import digits as source

    return source.forward, (), ()


def _training(case: str) -> Made:
    from bench.train import ours

    step = {"mlp": ours.adam, "lstm": ours.lstm_step, "resnet": ours.momentum}[case]
    return step, (ours.initial(case), *data.batch(case)), () if case == "lstm" else (0,)


MODELS: dict[str, tuple[str, Callable[[], Made]]] = {
    "mlp": ("MLP 784-512-256-10", mlp),
    "encoder": ("encoder block, d 768, s 128", encoder),
    "resnet": ("ResNet-18, 224 by 224", resnet),
    "resnet step": ("ResNet-18 (CIFAR), training step", lambda: _training("resnet")),
    "mlp step": ("MLP training step, Adam", lambda: _training("mlp")),
    "lstm step": ("LSTM 256, 64 steps, gradient", lambda: _training("lstm")),
}
"""Title and maker of each model."""
