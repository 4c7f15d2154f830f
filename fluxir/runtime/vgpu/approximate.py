"""What `.approx` means: the exact value, moved within the error that the PTX ISA documents, by a hash of the operands and a seed.

A real device has one answer; the document allows many. Runs with different seeds give different ones, so that a program whose
result hangs on them is found; one seed gives the same bits always. With the seed None the result is the nearest number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from .rounding import Format, round_to, spacing
from .values import Array

__all__ = ["absolute", "relative", "seeded", "ulps"]

_SEED: ContextVar[int | None] = ContextVar("seed of approximate instructions", default=0)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run approximate instructions with a seed; None takes their error away."""
    token = _SEED.set(seed)
    try:
        yield
    finally:
        _SEED.reset(token)


def _noise(*operands: Array) -> Array:
    """A number in (-1, 1) for each thread, from the bits of its operands (of 16, 32 or 64 bits) and the seed."""
    seed = _SEED.get()
    if seed is None:
        return np.asarray(0.0)
    h: Array = np.asarray(np.uint64(seed * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF))
    for x in operands:
        x = np.asarray(x)
        h = (h ^ x.view(np.dtype(f"u{x.dtype.itemsize}"))) * np.uint64(0xBF58476D1CE4E5B9)
        h = h ^ (h >> np.uint64(29))
    h = h * np.uint64(0x94D049BB133111EB)
    return (h >> np.uint64(11)).astype(np.float64) * 2.0**-52 - (1 - 2.0**-53)


def _moved(x: Array, by: Array | float) -> Array:
    return np.where(np.isfinite(x) & (x != 0), x + by, x)


def ulps(x: Array, bound: float, to: Format, *operands: Array) -> Array:
    """A number of the format within `bound` (1 or more) of its units in the last place of `x` (f64, exact). As f64."""
    step = spacing(x, to)
    y = round_to(_moved(x, _noise(*operands) * (bound - 0.5) * step), to)
    far = np.abs(y - x) > bound * step  # above a power of two units are longer
    return np.where(far, round_to(x, to), y) if far.any() else y


def relative(x: Array, bound: float, to: Format, *operands: Array) -> Array:
    """`x` moved such that its error is at most `bound` times its value once it is rounded to the format; where the format's
    numbers are sparser than that, it is rounded only."""
    return _moved(x, _noise(*operands) * max(bound - 2.0**-to.precision, 0.0) * np.abs(x))


def absolute(x: Array, bound: float | Array, to: Format, *operands: Array) -> Array:
    """The same for an error of `bound`, where |x| is at most 1."""
    return _moved(x, _noise(*operands) * (bound - 2.0**-to.precision))
