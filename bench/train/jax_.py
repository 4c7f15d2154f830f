"""The training steps in JAX: the whole step under jit, state donated."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.train import data
from bench.train.ours import initial


def _cross_entropy(z: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))


def _mlp_loss(p: Any, x: Any, y: Any) -> Any:
    import jax

    for i in range(3):
        x = x @ p[f"w{i}"] + p[f"b{i}"]
        x = jax.nn.relu(x) if i < 2 else x
    return _cross_entropy(x, y)


def _adam(state: Any, x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    p, m, v, t = state["p"], state["m"], state["v"], state["t"] + 1
    loss, g = jax.value_and_grad(_mlp_loss)(p, x, y)
    rate = data.LEARNING_RATE["mlp"] / (1 - data.BETA1**t)
    m = {k: data.BETA1 * m[k] + (1 - data.BETA1) * g[k] for k in g}
    v = {k: data.BETA2 * v[k] + (1 - data.BETA2) * g[k] * g[k] for k in g}
    p = {k: p[k] - rate * m[k] / (jnp.sqrt(v[k] / (1 - data.BETA2**t)) + 1e-8) for k in g}
    return {"p": p, "m": m, "v": v, "t": t}, loss


def _lstm_loss(p: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def cell(carry: Any, xt: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(xt @ p["wx"] + h @ p["wh"] + p["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], data.LSTM))
    return jax.lax.scan(cell, (zero, zero), x)[1].sum()


def _lstm(state: Any, x: Any, y: Any) -> Any:
    import jax

    return jax.value_and_grad(_lstm_loss)(state["p"], x)


def _resnet_loss(p: Any, running: Any, x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    renewed = {}

    def conv(name: str, x: Any, stride: int = 1) -> Any:
        k = p[f"{name}.w"].shape[-1]
        z = jax.lax.conv(x, p[f"{name}.w"], (stride, stride), "SAME" if stride == 1 else [(k // 2, k // 2)] * 2)
        n = z.shape[0] * z.shape[2] * z.shape[3]
        mean, var = z.mean((0, 2, 3), keepdims=True), z.var((0, 2, 3), keepdims=True)
        for what, now in (("mean", mean), ("var", var * (n / (n - 1)))):
            renewed[f"{name}.{what}"] = (1 - data.DECAY) * running[f"{name}.{what}"] + data.DECAY * now.ravel()
        scale, shift = (p[f"{name}.{s}"][:, None, None] for s in ("scale", "shift"))
        return (z - mean) * jax.lax.rsqrt(var + data.EPS) * scale + shift

    h = jax.nn.relu(conv("stem", x))
    for name, _, _, stride in data.BLOCKS:
        inner = conv(f"{name}.b", jax.nn.relu(conv(f"{name}.a", h, stride)))
        h = jax.nn.relu(inner + (conv(f"{name}.skip", h, stride) if stride != 1 else h))
    return _cross_entropy(jnp.mean(h, axis=(2, 3)) @ p["head.w"] + p["head.b"], y), renewed


def _momentum(state: Any, x: Any, y: Any) -> Any:
    import jax

    p, m = state["p"], state["m"]
    (loss, running), g = jax.value_and_grad(_resnet_loss, has_aux=True)(p, state["running"], x, y)
    m = {k: data.MOMENTUM * m[k] + g[k] for k in g}
    p = {k: p[k] - data.LEARNING_RATE["resnet"] * m[k] for k in g}
    return {"p": p, "m": m, "running": running}, loss


class Contender:
    def __init__(self, case: str, which: str) -> None:
        import jax

        step = {"mlp": _adam, "lstm": _lstm, "resnet": _momentum}[case]
        self.case = case
        self.jit = jax.jit(step, donate_argnums=() if case == "lstm" else 0)
        x, y = data.batch(case)
        self.x, self.y = jax.device_put(x), None if y is None else jax.device_put(y.astype(np.int32))
        self.reset()

    def reset(self) -> None:
        import jax

        self.state = jax.tree.map(jax.device_put, initial(self.case))

    def compile(self) -> float:
        start = time.perf_counter()
        self.run = self.jit.lower(self.state, self.x, self.y).compile()
        return time.perf_counter() - start

    def step(self) -> Any:
        import jax

        out = jax.block_until_ready(self.run(self.state, self.x, self.y))
        if self.case == "lstm":
            return out
        self.state, loss = out
        return loss

    def probe(self) -> tuple[float, Any]:
        out, name = self.step(), data.PROBE[self.case]
        if self.case == "lstm":
            return float(out[0]), np.asarray(out[1][name])
        return float(out), np.asarray(self.state["m"][name]) / (1 - data.BETA1 if self.case == "mlp" else 1)

    def memory(self) -> int:
        """What XLA plans beside arguments and results."""
        return int(self.run.memory_analysis().temp_size_in_bytes)

    def describe(self) -> dict[str, Any]:
        import jax

        return {"version": jax.__version__}
