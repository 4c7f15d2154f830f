"""Dropout and AlphaDropout: with `train=True` they need a key (FX1004), without they do nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fluxir as fx
from fluxir.nn.module import Module, static


def _checked(owner: str, rate: float) -> float:
    if not 0 <= rate < 1:
        raise fx.error("FX1003", f"{owner}: the rate is at least 0 and below 1, not {rate}")
    return float(rate)


def require_key(owner: str, key: Any) -> None:
    if key is None:
        raise fx.error("FX1004", f"{owner} in training needs a random key")


class Dropout(Module):
    """Elements become 0 with probability `rate`, the others are divided by 1 - rate (Srivastava et al. 2014).

    `axes` are those along which elements are dropped independently, all by default; (0, 1) drops whole channels of
    [N, C, space...] (Tompson et al. 2015).
    """

    rate: float = static()
    axes: Any = static()

    def __init__(self, rate: float, *, axes: int | Sequence[int] | None = None) -> None:
        self.rate = _checked("Dropout", rate)
        self.axes = (axes,) if isinstance(axes, int) else None if axes is None else tuple(axes)

    def __call__(self, x: Any, *, train: bool = False, key: Any = None) -> Any:
        if not train or self.rate == 0:
            return x
        require_key("Dropout", key)
        if self.axes is None:
            return fx.functional.dropout(x, key, self.rate)
        shape = fx.shape(x)
        own = {a % len(shape) for a in self.axes}
        ones = fx.ones(tuple(d if a in own else 1 for a, d in enumerate(shape)), dtype=x.dtype)
        return x * fx.functional.dropout(ones, key, self.rate)

    def about(self) -> str:
        return f"{self.rate}" if self.axes is None else f"{self.rate}, axes={self.axes}"


class AlphaDropout(Module):
    """Dropout for selu networks: keeps mean 0 and variance 1 (Klambauer et al. 2017, section 2).

    Dropped elements take selu's limit at -infinity, -1.7581; the result is scaled and shifted.
    """

    rate: float = static()

    def __init__(self, rate: float) -> None:
        self.rate = _checked("AlphaDropout", rate)

    def __call__(self, x: Any, *, train: bool = False, key: Any = None) -> Any:
        if not train or self.rate == 0:
            return x
        require_key("AlphaDropout", key)
        low, keep = -1.0507009873554805 * 1.6732632423543772, 1 - self.rate
        a = 1 / math.sqrt(keep + low * low * keep * self.rate)
        b = -a * low * self.rate
        kept = fx.random.bernoulli(key, keep, fx.shape(x))
        return fx.where(kept, x, fx.full_like(x, low)) * a + b

    def about(self) -> str:
        return str(self.rate)


__all__ = ["AlphaDropout", "Dropout", "require_key"]
