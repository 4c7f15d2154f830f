"""Rules that divide by a root of squares of past gradients: RMSProp, AdaGrad, AdaDelta.

In all formulas g is the gradient and p the parameter; what a rule returns is subtracted from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import fluxir as fx
from fluxir.optim.core import Optimiser, Setting, Slots, option, working_dtype
from fluxir.optim.plain import zeros


@dataclass(frozen=True, eq=False)
class RMSProp(Optimiser):
    """v = rho * v + (1 - rho) * g^2; lr * g / (sqrt(v) + eps) (Hinton, lecture 6e of "Neural networks for machine learning",
    2012).

    With `centred` the mean is taken out of the squares: sqrt(v - m^2), m = rho * m + (1 - rho) * g (Graves, "Generating
    sequences with recurrent neural networks", 2013). As PyTorch's RMSprop.
    """

    lr: Setting = 1e-2
    rho: Setting = 0.99
    eps: Setting = 1e-8
    centred: bool = option(False)

    def slots(self, p: Any) -> Slots:
        return {"v": zeros(p), "m": zeros(p)} if self.centred else {"v": zeros(p)}

    def scalars(self, h: dict[str, Any], t: Any, memory: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {**h, "rest": 1 - h["rho"]}, memory

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        new = {"v": c.rho * s["v"] + c.rest * d * d}
        spread = new["v"]
        if self.centred:
            new["m"] = s["m"] + c.rest * (d - s["m"])
            # Rounding can take the difference of two nearly equal numbers below 0.
            spread = fx.maximum(spread - new["m"] * new["m"], 0)
        return c.lr * d / (fx.sqrt(spread) + c.eps), new


@dataclass(frozen=True, eq=False)
class AdaGrad(Optimiser):
    """v = v + g^2; lr / (1 + (t - 1) * lr_decay) * g / (sqrt(v) + eps) (Duchi, Hazan and Singer, "Adaptive subgradient methods
    for online learning and stochastic optimization", 2011). v begins at `initial`. As PyTorch's Adagrad.
    """

    lr: Setting = 1e-2
    lr_decay: Setting = 0.0
    eps: Setting = 1e-10
    initial: float = option(0.0)

    def slots(self, p: Any) -> Slots:
        return {"v": fx.full(p.shape, float(self.initial), dtype=working_dtype(p))}

    def scalars(self, h: dict[str, Any], t: Any, memory: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"lr": h["lr"] / (1 + (t - 1) * h["lr_decay"]), "eps": h["eps"]}, memory

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        v = s["v"] + d * d
        return c.lr * d / (fx.sqrt(v) + c.eps), {"v": v}


@dataclass(frozen=True, eq=False)
class AdaDelta(Optimiser):
    """v = rho * v + (1 - rho) * g^2; d = sqrt(u + eps) / sqrt(v + eps) * g; u = rho * u + (1 - rho) * d^2; lr * d.

    Zeiler, "ADADELTA: an adaptive learning rate method", 2012 (lr = 1). As PyTorch's Adadelta.
    """

    lr: Setting = 1.0
    rho: Setting = 0.9
    eps: Setting = 1e-6

    def slots(self, p: Any) -> Slots:
        return {"v": zeros(p), "u": zeros(p)}

    def scalars(self, h: dict[str, Any], t: Any, memory: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {**h, "rest": 1 - h["rho"]}, memory

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        v = c.rho * s["v"] + c.rest * d * d
        change = fx.sqrt(s["u"] + c.eps) / fx.sqrt(v + c.eps) * d
        return c.lr * change, {"v": v, "u": c.rho * s["u"] + c.rest * change * change}


__all__ = ["AdaDelta", "AdaGrad", "RMSProp"]
