"""Trains the network of `examples/digits.py` in PyTorch and writes its weights and reference answers.

Needs the `oracle` extra (`pip install '.[oracle]'`) and half a minute: `python examples/train_digits.py`. It writes

    examples/digits.safetensors       the weights, f32
    examples/digits_reference.npz     the first test images, `images` f32[16,8,8], and PyTorch's `logits` f32[16,10]

It trains on the training half of the digits alone (`fluxir.data`), with shifted, turned and noisy copies, and looks
at the test half once, at the end. The seeds are fixed; another version of PyTorch may still round differently.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs in a checkout without installing FluxIR

from fluxir.data import load_digits, scale_digits

SEED = 1
EPOCHS = 300
BATCH = 64
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 2e-2
DROPOUT = 0.1
NOISE = 0.1
REFERENCE_IMAGES = 16


class Digits(nn.Module):
    """[B,8,8] in 0..1 -> [B,10] logits. The dropout acts while training only; `examples/digits.py` has none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.dense1 = nn.Linear(24 * 4 * 4, 32)
        self.dense2 = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.reshape(-1, 1, 8, 8)
        h = functional.relu(self.conv1(h))
        h = functional.relu(self.conv2(h))
        h = functional.max_pool2d(h, 2).flatten(1)
        h = functional.dropout(h, DROPOUT, self.training)
        h = functional.relu(self.dense1(h))
        return self.dense2(h)


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves each image [B,8,8] by up to a pixel, turns, shears and scales it a little, and adds noise to each pixel."""
    count = len(x)

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, shear = uniform(math.radians(12)), uniform(0.2)
    width, height = 1 + uniform(0.15), 1 + uniform(0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift_x, shift_y = uniform(1.0) / 4, uniform(1.0) / 4  # affine_grid counts in half images: 4 pixels
    rows = [torch.stack([cos * width, -sin + shear, shift_x], 1), torch.stack([sin, cos * height, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 1, 8, 8], align_corners=False)
    moved = functional.grid_sample(x[:, None], grid, align_corners=False)[:, 0]
    return moved + NOISE * torch.randn(moved.shape, generator=generator)


def train(model: Digits, images: torch.Tensor, labels: torch.Tensor, epochs: int = EPOCHS) -> None:
    """AdamW with one cycle of the learning rate (Smith 2017); `images` f32[N,8,8], `labels` i64[N]."""
    generator = torch.Generator().manual_seed(SEED)
    steps = epochs * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.split(BATCH):
            logits = model(augment(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if epoch % 50 == 49:
            print(f"epoch {epoch + 1:3}: training loss {total / len(images):.4f}")
    model.eval()


def weights(model: Digits) -> dict[str, np.ndarray]:
    """The parameters as f32 arrays; the dense matrices are turned to [in, out], as `x @ w` takes them."""
    arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    for name in ("dense1.weight", "dense2.weight"):
        arrays[name] = arrays[name].T
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in arrays.items()}


def main() -> None:
    from fluxir.runtime.safetensors import save_safetensors

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of the sums, and so the weights, must not depend on the machine's cores
    digits = load_digits()
    model = Digits()
    train(
        model, torch.from_numpy(scale_digits(digits["train_images"])), torch.from_numpy(digits["train_labels"]).long()
    )

    test = scale_digits(digits["test_images"])
    with torch.no_grad():
        logits = model(torch.from_numpy(test)).numpy()
        reference = model(torch.from_numpy(test[:REFERENCE_IMAGES])).numpy()
    right = int((logits.argmax(1) == digits["test_labels"]).sum())
    print(f"test half: {right} of {len(test)} right, {right / len(test):.2%}")

    note = {
        "model": "examples/digits.py",
        "written by": "examples/train_digits.py",
        "test accuracy": f"{right / len(test):.4f}",
    }
    save_safetensors(HERE / "digits.safetensors", weights(model), note)
    np.savez_compressed(HERE / "digits_reference.npz", images=test[:REFERENCE_IMAGES], logits=reference)


if __name__ == "__main__":
    main()
