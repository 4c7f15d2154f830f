"""Adam and its family: AdamW, AMSGrad, AdaMax, NAdam, RAdam, OAdam, AdaBelief.

In all formulas g is the gradient, p the parameter, t the number of the update from 1, and

    m = beta1 * m + (1 - beta1) * g        M = m / (1 - beta1^t)
    v = beta2 * v + (1 - beta2) * g^2      V = v / (1 - beta2^t)

What depends on t alone is computed once for a group of parameters, in f64; what a rule returns is subtracted from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import fluxir as fx
from fluxir.optim.core import Optimiser, Setting, Slots, scalar
from fluxir.optim.plain import zeros

Numbers = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Adam(Optimiser):
    """lr * M / (sqrt(V) + eps) (Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1).

    As PyTorch's Adam; its `weight_decay` is a `WeightDecay` before this one in a chain.
    """

    lr: Setting = 1e-3
    beta1: Setting = 0.9
    beta2: Setting = 0.999
    eps: Setting = 1e-8

    def slots(self, p: Any) -> Slots:
        return {"m": zeros(p), "v": zeros(p)}

    def scalars(self, h: Numbers, t: Any, memory: Numbers) -> tuple[Numbers, Numbers]:
        rest1, rest2 = 1 - fx.pow(h["beta1"], t), 1 - fx.pow(h["beta2"], t)
        more = {
            "gain1": 1 - h["beta1"],
            "gain2": 1 - h["beta2"],
            "rate": h["lr"] / rest1,
            "root": fx.sqrt(rest2),
        }
        return {**h, **more}, memory

    def moments(self, d: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Any]:
        """The new m and v."""
        return s["m"] + c.gain1 * (d - s["m"]), c.beta2 * s["v"] + c.gain2 * d * d

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        m, v = self.moments(d, s, c)
        return c.rate * m / (fx.sqrt(v) / c.root + c.eps), {"m": m, "v": v}


@dataclass(frozen=True, eq=False)
class AdamW(Adam):
    """lr * M / (sqrt(V) + eps) + lr * decay * p: the decay goes past the division (Loshchilov and Hutter, "Decoupled weight
    decay regularization", 2019). As PyTorch's AdamW.
    """

    decay: Setting = 1e-2

    def scalars(self, h: Numbers, t: Any, memory: Numbers) -> tuple[Numbers, Numbers]:
        c, memory = super().scalars(h, t, memory)
        return {**c, "shrink": h["lr"] * h["decay"]}, memory

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        change, new = super().rule(d, p, s, c)
        return change + c.shrink * p, new


@dataclass(frozen=True, eq=False)
class AMSGrad(Adam):
    """w = max(w, v); lr * M / (sqrt(w / (1 - beta2^t)) + eps) (Reddi, Kale and Kumar, "On the convergence of Adam and beyond",
    2018). As PyTorch's Adam with amsgrad=True.
    """

    def slots(self, p: Any) -> Slots:
        return {**super().slots(p), "w": zeros(p)}

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        m, v = self.moments(d, s, c)
        w = fx.maximum(s["w"], v)
        return c.rate * m / (fx.sqrt(w) / c.root + c.eps), {"m": m, "v": v, "w": w}


@dataclass(frozen=True, eq=False)
class AdaMax(Adam):
    """u = max(beta2 * u, |g| + eps); lr * M / u (Kingma and Ba 2015, algorithm 2). As PyTorch's Adamax."""

    lr: Setting = 2e-3

    def slots(self, p: Any) -> Slots:
        return {"m": zeros(p), "u": zeros(p)}

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        m = s["m"] + c.gain1 * (d - s["m"])
        u = fx.maximum(c.beta2 * s["u"], fx.abs(d) + c.eps)
        return c.rate * m / u, {"m": m, "u": u}


@dataclass(frozen=True, eq=False)
class NAdam(Adam):
    """Adam with Nesterov's momentum (Dozat, "Incorporating Nesterov momentum into Adam", 2016), as PyTorch's NAdam:

    b(t) = beta1 * (1 - 0.96^(t * momentum_decay) / 2), B the product of b(1) to b(t);
    lr * (b(t + 1) / (1 - B * b(t + 1)) * m + (1 - b(t)) / (1 - B) * g) / (sqrt(V) + eps).
    """

    lr: Setting = 2e-3
    momentum_decay: Setting = 4e-3

    def memory(self) -> Numbers:
        return {"product": scalar(1.0)}

    def scalars(self, h: Numbers, t: Any, memory: Numbers) -> tuple[Numbers, Numbers]:
        c, _ = super().scalars(h, t, memory)
        base = fx.asarray(0.96, dtype="f64")
        now = h["beta1"] * (1 - 0.5 * fx.pow(base, t * h["momentum_decay"]))
        after = h["beta1"] * (1 - 0.5 * fx.pow(base, (t + 1) * h["momentum_decay"]))
        product = memory["product"] * now
        rates = {"of_g": h["lr"] * (1 - now) / (1 - product), "of_m": h["lr"] * after / (1 - product * after)}
        return {**c, **rates}, {"product": product}

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        m, v = self.moments(d, s, c)
        return (c.of_g * d + c.of_m * m) / (fx.sqrt(v) / c.root + c.eps), {"m": m, "v": v}


@dataclass(frozen=True, eq=False)
class RAdam(Adam):
    """Adam whose adaptive step is held back while its variance is large (Liu et al., "On the variance of the adaptive learning
    rate and beyond", 2020, algorithm 2), as PyTorch's RAdam: with

    R = 2 / (1 - beta2) - 1, r = R - 2 t beta2^t / (1 - beta2^t):
    lr * M while r <= 5, and then lr * M * sqrt((r - 4)(r - 2) R / ((R - 4)(R - 2) r)) * sqrt(1 - beta2^t) / (sqrt(v) + eps).
    """

    def scalars(self, h: Numbers, t: Any, memory: Numbers) -> tuple[Numbers, Numbers]:
        c, memory = super().scalars(h, t, memory)
        decayed = fx.pow(h["beta2"], t)
        whole = 2 / (1 - h["beta2"]) - 1
        r = whole - 2 * t * decayed / (1 - decayed)
        ready = r > 5
        inner = fx.where(ready, r, fx.full_like(r, 6.0))  # no root of a negative number in the branch that is not taken
        factor = fx.sqrt((inner - 4) * (inner - 2) * whole / ((whole - 4) * (whole - 2) * inner))
        # One formula for both: M * (plain + adaptive / (sqrt(v) + eps)).
        zero, one = fx.zeros_like(r), fx.ones_like(r)
        return {
            **c,
            "plain": c["rate"] * fx.where(ready, zero, one),
            "adaptive": c["rate"] * fx.where(ready, factor * c["root"], zero),
        }, memory

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        m, v = self.moments(d, s, c)
        return m * (c.plain + c.adaptive / (fx.sqrt(v) + c.eps)), {"m": m, "v": v}


@dataclass(frozen=True, eq=False)
class OAdam(Adam):
    """Optimistic Adam: d = lr * M / (sqrt(V) + eps); 2 * d minus the d of the update before (Daskalakis, Ilyas, Syrgkanis and
    Zeng, "Training GANs with optimism", 2018, algorithm 1).
    """

    beta1: Setting = 0.5
    beta2: Setting = 0.9

    def slots(self, p: Any) -> Slots:
        return {**super().slots(p), "d": zeros(p)}

    def rule(self, d: Any, p: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Slots]:
        change, new = super().rule(d, p, s, c)
        return 2 * change - s["d"], {**new, "d": change}


@dataclass(frozen=True, eq=False)
class AdaBelief(Adam):
    """v = beta2 * v + (1 - beta2) * (g - m)^2 + eps; lr * M / (sqrt(V) + eps) (Zhuang et al., "AdaBelief optimizer: adapting
    stepsizes by the belief in observed gradients", 2020, algorithm 2).
    """

    eps: Setting = 1e-16

    def moments(self, d: Any, s: Slots, c: SimpleNamespace) -> tuple[Any, Any]:
        m = s["m"] + c.gain1 * (d - s["m"])
        return m, c.beta2 * s["v"] + c.gain2 * (d - m) * (d - m) + c.eps


__all__ = ["AMSGrad", "AdaBelief", "AdaMax", "Adam", "AdamW", "NAdam", "OAdam", "RAdam"]
