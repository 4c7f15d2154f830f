"""Recurrent networks over whole sequences: LSTM forward and gradient, GRU-like shapes of other sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bench.cpu.row import normal, row

F = 4


def _weights(n: int) -> dict[str, Any]:
    scale = n**-0.5
    return {
        "wx": normal(n, 4 * n, scale=scale), "wh": normal(n, 4 * n, scale=scale, seed=1), "b": normal(4 * n, scale=0.1),
    }  # fmt: skip


def _ours(x: Any, p: Any) -> Any:
    """All outputs [t, b, n]; gates in the order input, forget, cell, output."""
    import fluxir as fx

    n = p["wh"].shape[0]

    def cell(carry: Any, z: Any) -> Any:
        h, c = carry
        i, f, g, o = fx.split(z + h @ p["wh"], 4, axis=-1)
        c = fx.sigmoid(f) * c + fx.sigmoid(i) * fx.tanh(g)
        h = fx.sigmoid(o) * fx.tanh(c)
        return (h, c), h

    zero = fx.zeros((x.shape[1], n), dtype=fx.float32)
    return fx.scan(cell, (zero, zero), x @ p["wx"] + p["b"])[1]


def _numpy(x: Any, p: Any) -> Any:
    n = p["wh"].shape[0]
    z = x @ p["wx"] + p["b"]
    h = c = np.zeros((x.shape[1], n), np.float32)
    out = np.empty((*x.shape[:2], n), np.float32)

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    for t in range(len(x)):
        i, f, g, o = np.split(z[t] + h @ p["wh"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = out[t] = sigmoid(o) * np.tanh(c)
    return out


def _jax(x: Any, p: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def cell(carry: Any, z: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(z + h @ p["wh"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], p["wh"].shape[0]))
    return jax.lax.scan(cell, (zero, zero), x @ p["wx"] + p["b"])[1]


def _torch(row: Any, library: str, threads: int) -> Any:
    """`torch.nn.LSTM`; torch.compile does not trace into it, so that has no column of its own."""
    import torch

    from bench.cpu.libraries import Call

    x, p = row.inputs()
    n = p["wh"].shape[0]
    torch.set_num_threads(threads)
    module = torch.nn.LSTM(x.shape[2], n)
    with torch.no_grad():
        module.weight_ih_l0.copy_(torch.from_numpy(p["wx"].T))
        module.weight_hh_l0.copy_(torch.from_numpy(p["wh"].T))
        module.bias_ih_l0.copy_(torch.from_numpy(p["b"]))
        module.bias_hh_l0.zero_()
    given = torch.from_numpy(x)

    def run() -> Any:
        with torch.inference_mode():
            return module(given)[0]

    return Call(run, lambda: [run().numpy().copy()])


def _onnxruntime(row: Any, library: str, threads: int) -> Any:
    """ONNX has the gates in the order input, output, forget, cell, and the weights transposed."""
    from bench.cpu import libraries

    x, p = row.inputs()
    n = p["wh"].shape[0]

    def ordered(a: Any) -> Any:
        i, f, c, o = np.split(a, 4, axis=-1)
        return np.ascontiguousarray(np.concatenate([i, o, f, c], axis=-1).T[None])

    def graph(g: Any, x: Any) -> Any:
        bias = np.concatenate([ordered(p["b"]), np.zeros((1, 4 * n), np.float32)], axis=1)
        y = g.op("LSTM", x, ordered(p["wx"]), ordered(p["wh"]), bias, hidden_size=n)
        return g.op("Squeeze", y, np.array([1]))

    plain = dataclasses.replace(row, inputs=lambda: (x,), weights=0, functions={"onnx": graph}, workers={})
    return libraries.prepare("onnxruntime", plain, threads)


def lstm(n: int, t: int, b: int, share: float, held_out: bool = False) -> None:
    row(
        f"LSTM {n} seq {t} batch {b}, forward", "recurrent", lambda: (normal(t, b, n), _weights(n)), weights=1, share=share,
        flops=2.0 * t * b * n * 8 * n, moved=(F * (t * b * n + 8 * n * n), F * t * b * n), held_out=held_out,
        ours=_ours, numpy=_numpy, jax=_jax, workers={"torch": _torch, "onnxruntime": _onnxruntime},
    )  # fmt: skip


lstm(256, 64, 16, 0.9)
lstm(128, 100, 1, 0.0, held_out=True)
lstm(200, 30, 37, 0.85, held_out=True)


def _rnn_ours(x: Any, p: Any) -> Any:
    import fluxir as fx

    def cell(h: Any, xt: Any) -> Any:
        h = fx.tanh(xt @ p["w"] + h @ p["u"])
        return h, h

    return fx.scan(cell, fx.zeros((x.shape[1], p["u"].shape[0]), dtype=fx.float32), x)[1]


def _rnn_jax(x: Any, p: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def cell(h: Any, xt: Any) -> Any:
        h = jnp.tanh(xt @ p["w"] + h @ p["u"])
        return h, h

    return jax.lax.scan(cell, jnp.zeros((x.shape[1], p["u"].shape[0])), x)[1]


def _rnn_torch(x: Any, p: Any) -> Any:
    import torch

    h = torch.zeros(x.shape[1], p["u"].shape[0])
    outputs = []
    for t in range(x.shape[0]):
        h = torch.tanh(x[t] @ p["w"] + h @ p["u"])
        outputs.append(h)
    return torch.stack(outputs)


def _rnn_numpy(x: Any, p: Any) -> Any:
    h = np.zeros((x.shape[1], p["u"].shape[0]), np.float32)
    out = np.empty((*x.shape[:2], h.shape[1]), np.float32)
    for t in range(len(x)):
        h = out[t] = np.tanh(x[t] @ p["w"] + h @ p["u"])
    return out


row(
    "RNN 32 seq 50 batch 8, forward", "recurrent",
    lambda: (normal(50, 8, 32), {"w": normal(32, 32, scale=0.2), "u": normal(32, 32, scale=0.15, seed=1)}), weights=1,
    flops=2.0 * 50 * 8 * 64 * 32, held_out=True, ours=_rnn_ours, numpy=_rnn_numpy, jax=_rnn_jax,
    torch=_rnn_torch,
)  # fmt: skip
