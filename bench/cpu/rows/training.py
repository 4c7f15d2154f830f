"""Training steps and gradients: the contenders of `bench.train`, with weights that stay where they are."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import numpy as np

from bench.cpu.row import row

CONTENDERS = {"fluxir": "ours", "torch": "torch_", "torch.compile": "torch_", "jax": "jax_"}


def _worker(case: str) -> Any:
    def make(row: Any, library: str, threads: int) -> Any:
        from bench.cpu.libraries import Call

        with _gradients(library, threads):
            contender = importlib.import_module(f"bench.train.{CONTENDERS[library]}").Contender(case, library)
            seconds = contender.compile()
            contender.reset()
            loss, gradient = contender.probe()
            contender.reset()
            about = {"memory": contender.memory()}

        def run() -> Any:
            with _gradients(library, threads):
                return contender.step()

        return Call(run, lambda: [np.array([loss]), np.asarray(gradient)], seconds, about)

    return make


def _gradients(library: str, threads: int) -> Any:
    """Where PyTorch records derivatives, which it does not for the other rows."""
    if not library.startswith("torch"):
        return contextlib.nullcontext()
    import torch
    import torch._inductor.config

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = False
    return torch.enable_grad()


def _resnet_flops() -> float:
    """Forward, and twice that backward, of a batch of 32 images of 32 by 32."""
    from bench.train.data import BLOCKS

    total, side = 2.0 * 27 * 64 * 32**2, 32
    for _, i, o, stride in BLOCKS:
        side //= stride
        total += 2.0 * side**2 * (9 * o * (i + o) + (i * o if stride != 1 else 0))
    return 32 * 3 * (total + 2.0 * 512 * 10)


def training(case: str, name: str, flops: float, share: float) -> None:
    # Convolutions through 18 layers with signs of activations near zero: in f32 gradients differ by some thousandths.
    row(
        name, "training", tuple, flops=flops, share=share, tolerance=1e-2,
        workers={library: _worker(case) for library in CONTENDERS},
    )  # fmt: skip


training(
    "lstm", "LSTM 256 seq 64 batch 16, gradient", 2 * 2.0 * 64 * 16 * 256 * 8 * 256 + 2.0 * 64 * 16 * 256 * 4 * 256, 0.9
)
training(
    "mlp", "MLP training step, batch 64, Adam", 2.0 * 64 * (3 * (784 * 512 + 512 * 256 + 256 * 10) - 784 * 512), 0.8
)
training("resnet", "ResNet-18 CIFAR training step b32", _resnet_flops(), 0.85)
