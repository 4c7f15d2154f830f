"""The training steps in FluxIR: plain functions over dictionaries, one program a step, state donated."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.train import data


def _relu(x: Any) -> Any:
    import fluxir as fx

    return fx.where(x > 0, x, 0)


def _loss_of_logits(z: Any, y: Any) -> Any:
    import fluxir as fx

    chosen = fx.sum(fx.one_hot(y, 10) * z, axis=-1)
    return fx.mean(fx.logsumexp(z, axis=-1) - chosen)


def _mlp_loss(p: Any, x: Any, y: Any) -> Any:

    for i in range(3):
        x = x @ p[f"w{i}"] + p[f"b{i}"]
        x = _relu(x) if i < 2 else x
    return _loss_of_logits(x, y)


def adam(state: Any, x: Any, y: Any) -> Any:
    """One step of Adam (Kingma and Ba 2014) on the MLP."""
    import fluxir as fx

    p, m, v, t = state["p"], state["m"], state["v"], state["t"] + 1
    loss, g = fx.value_and_grad(_mlp_loss)(p, x, y)
    rate = data.LEARNING_RATE["mlp"] / (1 - data.BETA1**t)
    m = {k: data.BETA1 * m[k] + (1 - data.BETA1) * g[k] for k in g}
    v = {k: data.BETA2 * v[k] + (1 - data.BETA2) * g[k] * g[k] for k in g}
    p = {k: p[k] - rate * m[k] / (fx.sqrt(v[k] / (1 - data.BETA2**t)) + 1e-8) for k in g}
    return {"p": p, "m": m, "v": v, "t": t}, loss


def lstm_loss(p: Any, x: Any) -> Any:
    """The sum of all outputs of an LSTM (gates in the order input, forget, cell, output)."""
    import fluxir as fx

    def cell(carry: Any, xt: Any) -> Any:
        h, c = carry
        i, f, g, o = fx.split(xt @ p["wx"] + h @ p["wh"] + p["b"], 4, axis=-1)
        c = fx.sigmoid(f) * c + fx.sigmoid(i) * fx.tanh(g)
        h = fx.sigmoid(o) * fx.tanh(c)
        return (h, c), h

    zero = fx.zeros((x.shape[1], data.LSTM), dtype=fx.float32)
    return fx.sum(fx.scan(cell, (zero, zero), x)[1])


def _resnet_loss(p: Any, running: Any, x: Any, y: Any) -> Any:
    import fluxir as fx

    renewed = {}

    def conv(name: str, x: Any, stride: int = 1) -> Any:
        k = p[f"{name}.w"].shape[-1]
        z = fx.conv(x, p[f"{name}.w"], stride=stride, padding=k // 2)
        n = z.shape[0] * z.shape[2] * z.shape[3]
        mean = fx.mean(z, axis=(0, 2, 3), keepdims=True)
        var = fx.mean((z - mean) ** 2, axis=(0, 2, 3), keepdims=True)
        c = z.shape[1]
        for what, now in (("mean", mean), ("var", var * (n / (n - 1)))):
            old = running[f"{name}.{what}"]
            renewed[f"{name}.{what}"] = (1 - data.DECAY) * old + data.DECAY * fx.reshape(now, (c,))
        scale, shift = (fx.reshape(p[f"{name}.{s}"], (c, 1, 1)) for s in ("scale", "shift"))
        return (z - mean) / fx.sqrt(var + data.EPS) * scale + shift

    h = _relu(conv("stem", x))
    for name, _, _, stride in data.BLOCKS:
        inner = conv(f"{name}.b", _relu(conv(f"{name}.a", h, stride)))
        h = _relu(inner + (conv(f"{name}.skip", h, stride) if stride != 1 else h))
    return _loss_of_logits(fx.mean(h, axis=(2, 3)) @ p["head.w"] + p["head.b"], y), renewed


def momentum(state: Any, x: Any, y: Any) -> Any:
    """One step of gradient descent with momentum on the ResNet."""
    import fluxir as fx

    p, m = state["p"], state["m"]
    (loss, running), g = fx.value_and_grad(_resnet_loss, has_aux=True)(p, state["running"], x, y)
    m = {k: data.MOMENTUM * m[k] + g[k] for k in g}
    p = {k: p[k] - data.LEARNING_RATE["resnet"] * m[k] for k in g}
    return {"p": p, "m": m, "running": running}, loss


def lstm_step(state: Any, x: Any, y: Any) -> Any:
    import fluxir as fx

    return fx.value_and_grad(lstm_loss)(state["p"], x)


def initial(case: str) -> dict[str, Any]:
    """The state before the first step, in arrays of its own."""
    p = data.weights(case)

    def zeros() -> dict[str, Any]:
        return {k: np.zeros_like(a) for k, a in p.items()}

    if case == "mlp":
        return {"p": p, "m": zeros(), "v": zeros(), "t": np.float32(0)}
    return {"p": p} if case == "lstm" else {"p": p, "m": zeros(), "running": data.statistics(case)}


class Contender:
    """One case: compiled, stepped, asked for its memory."""

    def __init__(self, case: str, which: str) -> None:
        import fluxir as fx

        self.case = case
        step = {"mlp": adam, "lstm": lstm_step, "resnet": momentum}[case]
        self.jit = fx.jit(step, donate_argnums=() if case == "lstm" else 0)
        self.x, self.y = data.batch(case)
        self.reset()

    def reset(self) -> None:
        self.state = initial(self.case)

    def compile(self) -> float:
        start = time.perf_counter()
        self.lowered = self.jit.lower(self.state, self.x, self.y)
        self.lowered.compile(cache=False)
        return time.perf_counter() - start

    def step(self) -> Any:
        out = self.jit(self.state, self.x, self.y)
        if self.case == "lstm":
            return out
        self.state, loss = out
        return loss

    def probe(self) -> tuple[float, Any]:
        """The loss and one gradient, from the first step."""
        out, name = self.step(), data.PROBE[self.case]
        if self.case == "lstm":
            return float(out[0]), np.asarray(out[1][name])
        return float(out), np.asarray(self.state["m"][name]) / (1 - data.BETA1 if self.case == "mlp" else 1)

    def memory(self) -> int:
        """Bytes beside arguments and results: the arena that is planned, and what is allocated."""
        return int(self.lowered.cost().peak_memory)

    def describe(self) -> dict[str, Any]:
        cost = self.lowered.cost()
        return {"kernels": cost.kernels, "flops": cost.flops}
