"""fx.nn against PyTorch's answers and gradients in f64 (`tests/oracle/nn.py` wrote them), through `load_torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from tests.oracle.nn import ACTIVATIONS, FIXTURE, GRID, LAYERS, LOSSES, Layer

nn = fx.nn
ANSWERS = dict(np.load(FIXTURE))


def close(got: Any, want: Any, tol: float = 1e-10) -> None:
    got = np.asarray(got)
    assert got.shape == np.shape(want)
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol)


def entries(name: str, part: str) -> dict[str, Any]:
    prefix = f"{name}/{part}/"
    return {k[len(prefix) :]: v for k, v in ANSWERS.items() if k.startswith(prefix)}


def flat_result(out: Any) -> Any:
    """(y, states) as the fixture has them: the result, then all h, then all c."""
    y, states = out
    kinds = [list(s) if isinstance(s, tuple) else [s] for s in states]
    return fx.concat([fx.reshape(y, (-1,)), *[fx.reshape(s[i], (-1,)) for i in range(len(kinds[0])) for s in kinds]])


def run(case: Layer, model: Any, xs: Any) -> tuple[Any, Any]:
    out, model = nn.apply(model, *xs, train=case.train, **case.ours_options)
    return flat_result(out) if case.ours_options.get("return_state") else out, model


def as_gradients(case: Layer, grads: dict[str, Any]) -> dict[str, Any]:
    """Gradients of PyTorch's two biases of a recurrent layer as `load_torch` adds them up: each of ours counted once."""
    out = dict(grads)
    for k, g in grads.items():
        if "bias_hh" in k:
            keep = 2 * len(g) // 3 if case.name.startswith("gru") else 0
            out[k] = np.concatenate([np.zeros_like(g[:keep]), g[keep:]]) if keep else np.zeros_like(g)
    return out


@pytest.mark.parametrize("case", LAYERS, ids=[c.name for c in LAYERS])
def test_layer_is_pytorchs(case: Layer) -> None:
    model = nn.cast(case.ours(nn, fx.random.key(0)), "f64")
    model = nn.load_torch(model, entries(case.name, "param"))
    xs = tuple(entries(case.name, "in").values())
    y, after = run(case, model, xs)
    close(y, ANSWERS[f"{case.name}/out"])
    if case.train:
        close_trees(after, nn.load_torch(model, entries(case.name, "param") | entries(case.name, "after")))

    def loss(m: Any, xs: Any) -> Any:
        return fx.sum(run(case, m, xs)[0] * ANSWERS[f"{case.name}/ct"])

    floats = any(x.dtype.kind == "f" for x in xs)
    wrt = (0, 1) if floats and nn.count(model)[0] else 1 if floats else 0
    g = fx.grad(loss, wrt)(model, xs)
    of_model, of_inputs = g if wrt == (0, 1) else (None, g) if wrt == 1 else (g, None)
    if of_model is not None:
        assert fx.tree.flatten(of_model)[1] == fx.tree.flatten(model)[1]
        state = {k: np.zeros_like(v) for k, v in entries(case.name, "param").items() if "running" in k}
        want = nn.load_torch(model, as_gradients(case, entries(case.name, "gparam")) | state)
        close_trees(of_model, want)
    if of_inputs is not None:
        for i, x in entries(case.name, "gin").items():
            close(of_inputs[int(i)], x)


def close_trees(a: Any, b: Any) -> None:
    assert fx.tree.flatten(a)[1] == fx.tree.flatten(b)[1]
    for x, y in zip(fx.tree.leaves(a), fx.tree.leaves(b), strict=True):
        close(x, y)


COMPILED = [
    "conv2",
    "transpose2",
    "maxpool2",
    "adaptive_mean",
    "bilinear_up",
    "LSTM_2b",
    "gru_2b",
    "mha_cross",
    "sequential_train",
]


@pytest.mark.parametrize("name", [c.name for c in LAYERS if c.name in COMPILED or c.name.upper() in COMPILED])
def test_compiled_layer_and_its_gradient(name: str) -> None:
    case = next(c for c in LAYERS if c.name == name)
    model = nn.load_torch(nn.cast(case.ours(nn, fx.random.key(0)), "f64"), entries(name, "param"))
    xs = tuple(entries(name, "in").values())

    @fx.jit
    def both(m: Any, xs: Any) -> Any:
        def loss(m: Any, xs: Any) -> Any:
            y, new = run(case, m, xs)
            return fx.sum(y * ANSWERS[f"{name}/ct"]), (y, new)

        (_, aux), g = fx.value_and_grad(loss, 1, has_aux=True)(m, xs)
        return aux, g

    (y, _), g = both(model, xs)
    close(y, ANSWERS[f"{name}/out"])
    for i, x in entries(name, "gin").items():
        close(g[int(i)], x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_pytorchs(name: str) -> None:
    ours = ACTIVATIONS[name][1]
    close(ours(nn, GRID), ANSWERS[f"activation/{name}/out"], 1e-12)
    close(fx.grad(lambda x: fx.sum(ours(nn, x)))(GRID), ANSWERS[f"activation/{name}/grad"], 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_pytorchs(name: str) -> None:
    at, _, ours = LOSSES[name]
    value, grad = fx.value_and_grad(lambda x: ours(nn, x))(at)
    close(value, ANSWERS[f"loss/{name}/out"])
    close(grad, ANSWERS[f"loss/{name}/grad"])
