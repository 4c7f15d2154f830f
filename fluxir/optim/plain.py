"""Descent and rules without an average of squares over time but for RMSProp's: Descent, Momentum, Nesterov, Rprop, Lion.

In all formulas g is the gradient and p the parameter; what a rule returns is subtracted from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import fluxir as fx
from fluxir.optim.core import Optimiser, Setting, Slots, working_dtype


def zeros(p: Any) -> Any:
    """A slot of zeros for a parameter, in the type in which its updates are computed."""
    return fx.zeros(p.shape, dtype=working_dtype(p))


@dataclass(frozen=True, eq=False)
class Descent(Optimiser):
    """Gradient descent: lr * g. PyTorch's SGD."""

    lr: Setting = 0.1

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        return c.lr * d, s


@dataclass(frozen=True, eq=False)
class Momentum(Optimiser):
    """v = rho * v + g; lr * v (Polyak, "Some methods of speeding up the convergence of iteration methods", 1964).

    PyTorch's SGD with momentum: v is a sum of gradients, so that a change of lr acts at once.
    """

    lr: Setting = 0.01
    rho: Setting = 0.9

    def slots(self, p: Any) -> Slots:
        return {"v": zeros(p)}

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        v = c.rho * s["v"] + d
        return c.lr * v, {"v": v}


@dataclass(frozen=True, eq=False)
class Nesterov(Momentum):
    """v = rho * v + g; lr * (g + rho * v): Nesterov's accelerated gradient in the form of Sutskever, Martens, Dahl and
    Hinton, "On the importance of initialization and momentum in deep learning", 2013. PyTorch's SGD with nesterov=True.
    """

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        v = c.rho * s["v"] + d
        return c.lr * (d + c.rho * v), {"v": v}


@dataclass(frozen=True, eq=False)
class Rprop(Optimiser):
    """A step size for each element, which grows while the sign of its gradient stays and shrinks where it turns (Riedmiller
    and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993).

    size = clip(size * (grow | shrink | 1), least, most); size * sign(g), and nothing where the sign has just turned.
    `lr` is the first size. For whole batches: the signs of small batches are noise. As PyTorch's Rprop.
    """

    lr: float = 1e-2
    shrink: Setting = 0.5
    grow: Setting = 1.2
    least: Setting = 1e-6
    most: Setting = 50.0

    def check(self) -> None:
        super().check()
        if callable(self.lr):
            raise fx.error("FX1102", "Rprop: lr is the first step size and follows no schedule")

    def slots(self, p: Any) -> Slots:
        return {"g": zeros(p), "size": fx.full(p.shape, float(self.lr), dtype=working_dtype(p))}

    def hyper(self) -> dict[str, Any]:
        out = super().hyper()
        del out["lr"]  # each element has its own
        return out

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        turn = fx.sign(d) * fx.sign(s["g"])
        one = fx.ones_like(d)
        factor = fx.where(turn > 0, c.grow * one, fx.where(turn < 0, c.shrink * one, one))
        size = fx.clip(s["size"] * factor, c.least, c.most)
        g = fx.where(turn < 0, fx.zeros_like(d), d)
        return size * fx.sign(g), {"g": g, "size": size}


@dataclass(frozen=True, eq=False)
class Lion(Optimiser):
    """lr * (sign(beta1 * m + (1 - beta1) * g) + decay * p); m = beta2 * m + (1 - beta2) * g.

    Chen et al., "Symbolic discovery of optimization algorithms", 2023, program 1 and algorithm 2. Every element moves by lr:
    take a tenth of Adam's learning rate, or less.
    """

    lr: Setting = 1e-4
    beta1: Setting = 0.9
    beta2: Setting = 0.99
    decay: Setting = 0.0

    def slots(self, p: Any) -> Slots:
        return {"m": zeros(p)}

    def scalars(self, h: dict[str, Any], t: Any, memory: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {**h, "gain1": 1 - h["beta1"], "gain2": 1 - h["beta2"]}, memory

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        u = c.beta1 * s["m"] + c.gain1 * d
        return c.lr * (fx.sign(u) + c.decay * p), {"m": c.beta2 * s["m"] + c.gain2 * d}


__all__ = ["Descent", "Lion", "Momentum", "Nesterov", "Rprop", "zeros"]
