"""Rules that change gradients and are used in a chain: weight decay and clipping."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import fluxir as fx
from fluxir.optim.core import Optimiser, Setting, Slots, option


@dataclass(frozen=True, eq=False)
class WeightDecay(Optimiser):
    """g + decay * p: the gradient of the penalty decay/2 * |p|^2 is added (ridge, L2).

    Before a rule it is part of the gradient, as `weight_decay` of PyTorch's SGD and Adam; the decay that goes past the rule is
    in `AdamW` and `Lion`.
    """

    decay: Setting = 5e-4

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        return d + c.decay * p, s


@dataclass(frozen=True, eq=False)
class SignDecay(Optimiser):
    """g + decay * sign(p): the gradient of the penalty decay * |p|_1 is added (lasso, L1)."""

    decay: Setting = 1e-3

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        return d + c.decay * fx.sign(p), s


@dataclass(frozen=True, eq=False)
class ClipGrad(Optimiser):
    """Every element of the gradient is brought into [-limit, limit]."""

    limit: Setting = 10.0

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        return fx.clip(d, -c.limit, c.limit), s


@dataclass(frozen=True, eq=False)
class ClipNorm(Optimiser):
    """g * min(1, limit / (norm + 1e-6)): gradients with a norm above `limit` are scaled down to it (Pascanu, Mikolov and
    Bengio, "On the difficulty of training recurrent neural networks", 2013).

    The norm is that of all gradients together, or with `each` of every array by itself. `order` is 1, 2 or infinity
    (`float("inf")`). As PyTorch's `clip_grad_norm_`.
    """

    limit: Setting = 1.0
    order: float = option(2.0)
    each: bool = option(False)

    def check(self) -> None:
        super().check()
        if self.order not in (1, 2, float("inf")):
            raise fx.error("FX1102", f"ClipNorm: the order is 1, 2 or infinity, not {self.order!r}")

    def together(self, ds: dict[str, Any], c: dict[str, SimpleNamespace]) -> dict[str, Any]:
        if not ds:
            return ds
        if self.each:
            return {path: d * self._factor(self._norm([d]), c[path], d) for path, d in ds.items()}
        norm = self._norm(list(ds.values()))
        return {path: d * self._factor(norm, c[path], d) for path, d in ds.items()}

    def _norm(self, ds: list[Any]) -> Any:
        """The norm of several arrays as one vector, f64."""
        if self.order == float("inf"):
            # An array without elements adds nothing.
            parts = [fx.max(fx.abs(d)) for d in ds if 0 not in tuple(d.shape)]
        else:
            parts = [fx.sum(fx.abs(d) if self.order == 1 else d * d) for d in ds]
        wide = [fx.astype(p, "f64") for p in parts]
        total = wide[0] if wide else fx.asarray(0.0, dtype="f64")
        for p in wide[1:]:
            total = fx.maximum(total, p) if self.order == float("inf") else total + p
        return fx.sqrt(total) if self.order == 2 else total

    def _factor(self, norm: Any, c: SimpleNamespace, d: Any) -> Any:
        return fx.astype(fx.minimum(fx.astype(c.limit, "f64") / (norm + 1e-6), 1.0), d.dtype)


__all__ = ["ClipGrad", "ClipNorm", "SignDecay", "WeightDecay"]
