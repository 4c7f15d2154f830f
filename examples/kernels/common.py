"""What the examples share: the device they are asked for, and how they say that they are right."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # so that they run in a checkout

import numpy as np


def device() -> str:
    """The first word of the command line; the virtual GPU where there is none."""
    return sys.argv[1] if len(sys.argv) > 1 else "vgpu"


def check(name: str, got: np.ndarray, want: np.ndarray, tolerance: float = 0.0) -> float:
    """The largest difference, relative to the largest value. AssertionError where it is more than `tolerance`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    error = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)) if want.size else 0.0
    assert error <= tolerance, f"{name}: off by {error:.2e}"
    return error


def blocks(n: int, block: int) -> int:
    """How many blocks of that size cover n."""
    return -(-n // block)
