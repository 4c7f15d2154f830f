"""Write `digits_curve.npz` with PyTorch: the first twenty losses of the digits network, in f32 and f64.

`python -m tests.oracle.digits_curve` (needs the extra `oracle`). Initial weights and batches are numpy's, so that
`tests/test_train_examples.py` begins with the same: no noise, no dropout, Adam.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PATH = HERE / "digits_curve.npz"
STEPS, BATCH, RATE = 20, 64, 2e-3

Array = np.ndarray[Any, np.dtype[Any]]


def weights(dtype: str) -> dict[str, Array]:
    """In PyTorch's layout: [out, in, ...]; dense matrices [out, in]."""
    rng = np.random.default_rng(12)
    shapes = {"conv1": (16, 1, 3, 3), "conv2": (24, 16, 3, 3), "dense1": (32, 384), "dense2": (10, 32)}
    out = {}
    for name, s in shapes.items():
        out[f"{name}.weight"] = rng.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))
        out[f"{name}.bias"] = 0.01 * rng.standard_normal(s[0])
    return {k: v.astype(dtype) for k, v in out.items()}


def batches(dtype: str) -> list[tuple[Array, Array]]:
    """Images [B, 8, 8] in 0..1 and labels, of which the last are fewer: 898 is no multiple of 64."""
    with np.load(HERE.parent.parent / "fluxir" / "data" / "digits.npz") as archive:
        images, labels = archive["images"][:898] / 16, archive["labels"][:898].astype(np.int64)
    rng = np.random.default_rng(13)
    out: list[tuple[Array, Array]] = []
    while len(out) < STEPS:
        order = rng.permutation(len(images))
        out += [
            (images[order[i : i + BATCH]].astype(dtype), labels[order[i : i + BATCH]])
            for i in range(0, len(images), BATCH)
        ]
    return out[:STEPS]


def main() -> None:
    import torch
    from torch.nn import functional as f

    torch.set_num_threads(1)
    out = {}
    for dtype in ("float32", "float64"):
        p = {k: torch.from_numpy(v).requires_grad_() for k, v in weights(dtype).items()}
        opt = torch.optim.Adam(p.values(), lr=RATE)
        losses = []
        for x, y in batches(dtype):
            h = torch.from_numpy(x)[:, None]
            h = f.relu(f.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1))
            h = f.relu(f.conv2d(h, p["conv2.weight"], p["conv2.bias"], padding=1))
            h = f.max_pool2d(h, 2).flatten(1)
            h = f.relu(f.linear(h, p["dense1.weight"], p["dense1.bias"]))
            loss = f.cross_entropy(f.linear(h, p["dense2.weight"], p["dense2.bias"]), torch.from_numpy(y))
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        out[f"{dtype}.losses"] = np.array(losses)
        out[f"{dtype}.norms"] = np.array([float(v.detach().norm()) for v in p.values()])
    np.savez_compressed(PATH, **out)
    print(f"{PATH.name}: {PATH.stat().st_size} bytes, last losses {out['float64.losses'][-3:]}")


if __name__ == "__main__":
    main()
