"""RNN, GRU, LSTM: one scan over the steps, with the input's product for all steps before it.

Weights are as ONNX lays them out: gates in the order i o f c (LSTM) and z r h (GRU), [directions, gates * hidden, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.ops.quantised import QuantisedWeight
from fluxir.frontend.onnx.registry import Float, Floats, Int, Text, Texts, op

# ---- activations ---------------------------------------------------------------------------------------------------


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Any], Any]:
    def of(value: float | None, default: float) -> float:
        return default if value is None else value

    def number(v: float, x: Any) -> Any:
        return fx.scalar(v, x)

    known: dict[str, Callable[[Any], Any]] = {
        "sigmoid": fx.sigmoid,
        "tanh": fx.tanh,
        "relu": lambda x: fx.maximum(x, number(0, x)),
        "softsign": fx.nn.softsign,
        "softplus": fx.nn.softplus,
        "affine": lambda x: fx.add(fx.multiply(x, number(of(alpha, 1.0), x)), number(of(beta, 0.0), x)),
        "leakyrelu": lambda x: fx.nn.leaky_relu(x, of(alpha, 0.01)),
        "thresholdedrelu": lambda x: fx.where(fx.greater(x, number(of(alpha, 1.0), x)), x, number(0, x)),
        "scaledtanh": lambda x: fx.multiply(
            fx.tanh(fx.multiply(x, number(of(beta, 1.0), x))), number(of(alpha, 1.0), x)
        ),
        "hardsigmoid": lambda x: fx.clip(
            fx.add(fx.multiply(x, number(of(alpha, 0.2), x)), number(of(beta, 0.5), x)), number(0, x), number(1, x)
        ),
        "elu": lambda x: fx.nn.elu(x, of(alpha, 1.0)),
    }
    f = known.get(name.lower())
    if f is None:
        raise ValueError(f"there is no activation {name!r}")
    return f


def _activations(names: Sequence[str], alphas: Any, betas: Any, default: list[str], directions: int) -> list[list[Any]]:
    """The functions of each direction. Their numbers come in order, for those that take one."""
    names = list(names) if names else default * directions
    if len(names) != len(default) * directions:
        raise ValueError(f"{len(names)} activations for {directions} directions")
    takes_alpha = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
    takes_beta = {"affine", "scaledtanh", "hardsigmoid"}
    a, b = list(alphas or ()), list(betas or ())
    out = []
    for name in names:
        alpha = a.pop(0) if name.lower() in takes_alpha and a else None
        beta = b.pop(0) if name.lower() in takes_beta and b else None
        out.append(_activation(name, alpha, beta))
    n = len(default)
    return [out[k * n : (k + 1) * n] for k in range(directions)]


# ---- the scan over steps -------------------------------------------------------------------------------------------


def _directions(direction: str) -> list[bool]:
    """Whether each direction runs backwards."""
    known = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    if direction not in known:
        raise ValueError(f"there is no direction {direction!r}")
    return known[direction]


def _run(
    x: Any, w: Any, r: Any, bias: Any, lengths: Any, states: list[Any], backwards: list[bool], gates: int, step: Any,
    layout: int, clip: float | None,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """All steps of all directions. `step(direction, projected, state, recurrent weight, bias)` gives the next state, whose
    first part is the output. Weights may be lists of `QuantisedWeight`. Returns Y [steps, directions, batch, hidden] and the
    last states."""
    if layout:
        x = fx.transpose(x, (1, 0, 2))
        states = [None if s is None else fx.transpose(s, (1, 0, 2)) for s in states]
    steps, batch = x.shape[0], x.shape[1]
    hidden = hidden_of(r)
    ys, lasts = [], []
    for k, reverse in enumerate(backwards):
        wk, recurrent = (v[k] if isinstance(v, list) else fx.transpose(fx.item(v, k), (1, 0)) for v in (w, r))
        bk = None if bias is None else fx.item(bias, k)
        projected = times(x, wk)
        if bk is not None:
            projected = fx.add(projected, fx.item(bk, slice(0, gates * hidden)))
        rb = None if bk is None else fx.item(bk, slice(gates * hidden, 2 * gates * hidden))
        first = [fx.full((batch, hidden), fx.scalar(0, x)) if s is None else fx.item(s, k) for s in states]
        y, last = _scan(k, projected, recurrent, rb, first, lengths, reverse, step, steps)
        ys.append(y)
        lasts.append(last)
    y = fx.stack(ys, axis=1)
    finals = [fx.stack([last[i] for last in lasts], axis=0) for i in range(len(states))]
    if layout:
        y = fx.transpose(y, (2, 0, 1, 3))
        finals = [fx.transpose(f, (1, 0, 2)) for f in finals]
    return y, finals


def times(x: Any, weight: Any) -> Any:
    """x @ weight [inputs, gates]."""
    return weight.after(x) if isinstance(weight, QuantisedWeight) else fx.matmul(x, weight)


def hidden_of(r: Any) -> Any:
    """The size of the state."""
    return r[0].data.shape[0] if isinstance(r, list) else r.shape[-1]


@fx.public
def _scan(
    k: int, projected: Any, recurrent: Any, rb: Any, first: Any, lengths: Any, reverse: bool, step: Any, steps: Any
) -> Any:
    from fluxir.frontend.tensor import as_tensor

    if reverse:
        projected = _reversed(projected, lengths)
    positions = fx.arange(steps)
    limit = None if lengths is None else fx.reshape(fx.cast(lengths, "i64"), (-1, 1))

    def body(state: Any, at: Any) -> Any:
        p, t = at
        new = step(k, p, state, recurrent, rb)
        y = new[0]
        if limit is not None:  # a sequence that has ended keeps its state and gives zeros
            alive = fx.less(t, limit)
            new = tuple(fx.where(alive, n, s) for n, s in zip(new, state, strict=True))
            y = fx.where(alive, y, fx.scalar(0, y))
        return new, y

    last, y = fx.scan(body, tuple(map(as_tensor, first)), (projected, positions))
    if reverse:
        y = _reversed(y, lengths)
    return y, last


def _reversed(x: Any, lengths: Any) -> Any:
    """The steps in reverse order: of each sequence the first ones, as many as it has."""
    if lengths is None:
        return fx.flip(x, axis=0)
    t = fx.reshape(fx.arange(x.shape[0]), (-1, 1))
    m = fx.reshape(fx.cast(lengths, "i64"), (1, -1))
    places = fx.where(fx.less(t, m), fx.subtract(fx.subtract(m, np.int64(1)), t), t)
    return fx.take_along_axis(x, fx.expand_dims(places, axis=2), axis=0)


def _clipped(x: Any, clip: float | None) -> Any:
    return x if clip is None else fx.clip(x, fx.scalar(-clip, x), fx.scalar(clip, x))


def _parts(x: Any, n: int) -> list[Any]:
    return list(fx.split(x, n, axis=-1))


# ---- cells ---------------------------------------------------------------------------------------------------------


@op("RNN")
def rnn(
    x: Any, w: Any, r: Any, bias: Any = None, lengths: Any = None, h: Any = None, *, activation_alpha: Floats = (),
    activation_beta: Floats = (), activations: Texts = (), clip: Float | None = None, direction: Text = "forward",
    hidden_size: Int | None = None, layout: Int = 0, output_sequence: Int = 0,
) -> Any:  # fmt: skip
    backwards = _directions(direction)
    acts = _activations(activations, activation_alpha, activation_beta, ["Tanh"], len(backwards))

    def step(k: int, p: Any, state: Any, recurrent: Any, rb: Any) -> Any:
        z = fx.add(p, fx.matmul(state[0], recurrent))
        return (acts[k][0](_clipped(z if rb is None else fx.add(z, rb), clip)),)

    y, (last,) = _run(x, w, r, bias, lengths, [h], backwards, 1, step, layout, clip)
    return Results((y, last))


@op("GRU")
def gru(
    x: Any, w: Any, r: Any, bias: Any = None, lengths: Any = None, h: Any = None, *, activation_alpha: Floats = (),
    activation_beta: Floats = (), activations: Texts = (), clip: Float | None = None, direction: Text = "forward",
    hidden_size: Int | None = None, layout: Int = 0, linear_before_reset: Int = 0, output_sequence: Int = 0,
) -> Any:  # fmt: skip
    backwards = _directions(direction)
    acts = _activations(activations, activation_alpha, activation_beta, ["Sigmoid", "Tanh"], len(backwards))
    n = r.shape[-1]

    def step(k: int, p: Any, state: Any, recurrent: Any, rb: Any) -> Any:
        f, g = acts[k]
        (h_,) = state
        pz, pr, ph = _parts(p, 3)
        both = fx.matmul(h_, fx.item(recurrent, (slice(None), slice(0, 2 * n))))
        if rb is not None:
            both = fx.add(both, fx.item(rb, slice(0, 2 * n)))
        rz, rr = _parts(both, 2)
        z = f(_clipped(fx.add(pz, rz), clip))
        reset = f(_clipped(fx.add(pr, rr), clip))
        third = fx.item(recurrent, (slice(None), slice(2 * n, 3 * n)))
        bh = None if rb is None else fx.item(rb, slice(2 * n, 3 * n))
        if linear_before_reset:
            inner = fx.matmul(h_, third)
            inner = fx.multiply(reset, inner if bh is None else fx.add(inner, bh))
        else:
            inner = fx.matmul(fx.multiply(reset, h_), third)
            inner = inner if bh is None else fx.add(inner, bh)
        new = g(_clipped(fx.add(ph, inner), clip))
        return (fx.add(fx.multiply(fx.subtract(fx.scalar(1, z), z), new), fx.multiply(z, h_)),)

    y, (last,) = _run(x, w, r, bias, lengths, [h], backwards, 3, step, layout, clip)
    return Results((y, last))


@op("LSTM")
def lstm(
    cx: Context, x: Any, w: Any, r: Any, bias: Any = None, lengths: Any = None, h: Any = None, c: Any = None, peep: Any = None,
    *, activation_alpha: Floats = (), activation_beta: Floats = (), activations: Texts = (), clip: Float | None = None,
    direction: Text = "forward", hidden_size: Int | None = None, input_forget: Int = 0, layout: Int = 0,
    output_sequence: Int = 0,
) -> Any:  # fmt: skip
    return run_lstm(x, w, r, bias, lengths, h, c, peep, activation_alpha, activation_beta, activations, clip, direction,
                    input_forget, layout)  # fmt: skip


def run_lstm(
    x: Any, w: Any, r: Any, bias: Any, lengths: Any, h: Any, c: Any, peep: Any, alphas: Any, betas: Any, names: Any,
    clip: float | None, direction: str, input_forget: int, layout: int,
) -> Results:  # fmt: skip
    backwards = _directions(direction)
    acts = _activations(names, alphas, betas, ["Sigmoid", "Tanh", "Tanh"], len(backwards))
    n = hidden_of(r)

    def step(k: int, p: Any, state: Any, recurrent: Any, rb: Any) -> Any:
        f, g, last = acts[k]
        h_, c_ = state
        z = fx.add(p, times(h_, recurrent))
        i, o, forget, cell = _parts(z if rb is None else fx.add(z, rb), 4)
        if peep is not None:
            pi, po, pf = (fx.item(peep, (k, slice(j * n, (j + 1) * n))) for j in range(3))
            i, forget = fx.add(i, fx.multiply(pi, c_)), fx.add(forget, fx.multiply(pf, c_))
        i = f(_clipped(i, clip))
        forget = fx.subtract(fx.scalar(1, i), i) if input_forget else f(_clipped(forget, clip))
        new = fx.add(fx.multiply(forget, c_), fx.multiply(i, g(_clipped(cell, clip))))
        if peep is not None:
            o = fx.add(o, fx.multiply(po, new))
        return fx.multiply(f(_clipped(o, clip)), last(new)), new

    y, (hs, cs) = _run(x, w, r, bias, lengths, [h, c], backwards, 4, step, layout, clip)
    return Results((y, hs, cs))
