"""Write `optim.npz` with PyTorch: parameters after each of ten steps of its optimisers, and its learning rates.

`python -m tests.oracle.optim` (needs the extra `oracle`). The problem is small and in f64: the loss of two matrices W, V on
random data, sum(tanh(x W) V - y)^2 / 8, so that gradients change sign and size. `tests/test_optim.py` runs the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).resolve().with_name("optim.npz")
STEPS = 10

# Name of the case: PyTorch's class and its options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "descent": ("SGD", {"lr": 0.05}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "momentum_decay": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "rmsprop": ("RMSprop", {"lr": 0.02, "alpha": 0.9}),
    "rmsprop_centred": ("RMSprop", {"lr": 0.02, "alpha": 0.9, "centered": True}),
    "rprop": ("Rprop", {"lr": 0.05}),
    "adam": ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6}),
    "adam_decay": ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.05, "weight_decay": 0.1}),
    "amsgrad": ("Adam", {"lr": 0.1, "betas": (0.9, 0.7), "amsgrad": True}),
    "adamax": ("Adamax", {"lr": 0.05}),
    "nadam": ("NAdam", {"lr": 0.05, "momentum_decay": 0.1}),
    "radam": ("RAdam", {"lr": 0.05, "betas": (0.9, 0.99)}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.01}),
    "adadelta": ("Adadelta", {"lr": 0.5}),
    "clip_norm": ("SGD", {"lr": 0.1}),
}
CLIP = 0.7
"""The norm to which the case `clip_norm` clips."""

SCHEDULES = {
    "step": ("StepLR", {"step_size": 7, "gamma": 0.5}),
    "exponential": ("ExponentialLR", {"gamma": 0.9}),
    "cosine": ("CosineAnnealingLR", {"T_max": 30, "eta_min": 0.01}),
    "one_cycle": ("OneCycleLR", {"max_lr": 0.1, "total_steps": 30}),
    "linear": ("LinearLR", {"start_factor": 1.0, "end_factor": 0.25, "total_iters": 20}),
}


def problem() -> dict[str, np.ndarray[Any, Any]]:
    """Data and first parameters."""
    rng = np.random.default_rng(7)
    shapes = {"x": (6, 4), "y": (6, 3), "w": (4, 5), "v": (5, 3)}
    return {k: rng.standard_normal(s) for k, s in shapes.items()}


def main() -> None:
    import torch

    torch.set_default_dtype(torch.float64)  # NAdam keeps a product in the default type
    out: dict[str, np.ndarray[Any, Any]] = {}
    for name, (cls, options) in CASES.items():
        a = {k: torch.from_numpy(v.copy()) for k, v in problem().items()}
        w, v = a["w"].requires_grad_(), a["v"].requires_grad_()
        opt = getattr(torch.optim, cls)([w, v], **options)
        rows = []
        for _ in range(STEPS):
            opt.zero_grad()
            (((torch.tanh(a["x"] @ w) @ v - a["y"]) ** 2).sum() / 8).backward()
            if name == "clip_norm":
                torch.nn.utils.clip_grad_norm_([w, v], CLIP)
            opt.step()
            rows.append(np.concatenate([w.detach().numpy().ravel(), v.detach().numpy().ravel()]))
        out[name] = np.stack(rows)
    for name, (cls, options) in SCHEDULES.items():
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        schedule = getattr(torch.optim.lr_scheduler, cls)(opt, **options)
        rates = []
        for _ in range(30):
            rates.append(opt.param_groups[0]["lr"])
            opt.step()
            schedule.step()
        out[f"schedule.{name}"] = np.array(rates)
    np.savez_compressed(PATH, **out)
    print(f"{PATH.name}: {len(out)} arrays, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
