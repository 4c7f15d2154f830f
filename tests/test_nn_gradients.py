"""Derivatives of every layer against central differences in f64, and programs compiled once for every batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from tests.oracle.nn import LAYERS

nn = fx.nn
KEY = fx.random.key(7)
EPS = 1e-5


def random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return fx.tree.map(lambda x: rng.normal(size=np.shape(x)), tree)


def check(f: Callable[..., Any], *args: Any) -> None:
    """The gradient of f at `args` (trees of f64) in a random direction, against a central difference."""
    move = random_like(args, 3)
    grads = fx.grad(f, tuple(range(len(args))))(*args)
    along = sum(float(np.sum(g * d)) for g, d in zip(fx.tree.leaves(grads), fx.tree.leaves(move), strict=True))
    up = f(*fx.tree.map(lambda x, d: x + EPS * d, args, move))
    down = f(*fx.tree.map(lambda x, d: x - EPS * d, args, move))
    slope = (float(up) - float(down)) / (2 * EPS)
    assert abs(slope) > 1e-8, "the direction says nothing"
    assert abs(along - slope) <= 1e-6 * max(1.0, abs(slope)), (along, slope)


def dense(i: int, o: int, at: int = 0) -> Any:
    return nn.Dense(i, o, key=fx.random.fold_in(KEY, at))


# Layers that PyTorch has not, with the shapes of their inputs and how they are called.
OTHERS: dict[str, tuple[Callable[[], Any], tuple[Any, ...], dict[str, Any]]] = {
    "scale": (lambda: nn.Scale(4, activation=fx.tanh), ((3, 4),), {}),
    "weightnorm dense": (lambda: nn.WeightNorm(dense(4, 3)), ((2, 4),), {}),
    "weightnorm conv": (lambda: nn.WeightNorm(nn.Conv(2, 3, (3,), key=KEY)), ((2, 2, 5),), {}),
    "chain": (lambda: nn.Chain(dense(4, 5), nn.mish, dense(5, 2, 1)), ((3, 4),), {}),
    "parallel": (lambda: nn.Parallel(fx.add, dense(4, 3), dense(4, 3, 1)), ((3, 4),), {}),
    "skip": (lambda: nn.SkipConnection(nn.Chain(dense(4, 4), nn.selu), None), ((3, 4),), {}),
    "maxout": (lambda: nn.Maxout(dense(4, 3), dense(4, 3, 1), dense(4, 3, 2)), ((3, 4),), {}),
    "fusion": (
        lambda: nn.Chain(nn.PairwiseFusion(fx.add, dense(4, 3), dense(3, 3, 1)), lambda ys: ys[0] * ys[1]),
        ((2, 4), (2, 3)),
        {},
    ),
    "dropout": (lambda: nn.Chain(dense(4, 6), nn.Dropout(0.4)), ((3, 4),), {"train": True, "key": KEY}),
    "alpha dropout": (lambda: nn.Chain(dense(4, 6), nn.AlphaDropout(0.3)), ((3, 4),), {"train": True, "key": KEY}),
    "recurrence": (lambda: nn.Recurrence(nn.GRUCell(3, 4, key=KEY), reverse=True), ((2, 5, 3),), {}),
    "rnn dropout": (lambda: nn.LSTM(3, 4, layers=2, dropout=0.3, key=KEY), ((2, 5, 3),), {"train": True, "key": KEY}),
    "mha dropout": (lambda: nn.MultiHeadAttention(6, 2, dropout=0.3, key=KEY), ((2, 5, 6),), {"train": True, "key": KEY}),
    "mha bias": (lambda: nn.MultiHeadAttention(6, 2, key=KEY), ((2, 5, 6),), {"bias": np.linspace(-1, 1, 25).reshape(5, 5), "causal": True}),
    "bag weights": (lambda: nn.Chain(lambda w: nn.EmbeddingBag(6, 3, "sum", key=KEY)(np.array([[1, 1, 4], [0, 2, 5]]), w)), ((2, 3),), {}),
    "transpose same": (lambda: nn.ConvTranspose(2, 3, (3, 2), stride=(2, 3), padding="same", key=KEY), ((2, 2, 3, 2),), {}),
    "global mean": (lambda: nn.Chain(nn.GlobalMeanPool(), dense(3, 2)), ((2, 3, 4, 5),), {}),
    "global max": (lambda: nn.Chain(nn.GlobalMaxPool(keepdims=True), nn.Flatten(), dense(3, 2)), ((2, 3, 4, 5),), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_gradient_is_the_difference_quotient(name: str) -> None:
    make, shapes, options = OTHERS[name]
    rng = np.random.default_rng(1)
    model = nn.cast(make(), "f64")
    xs = tuple(rng.normal(size=s) for s in shapes)

    def f(m: Any, xs: Any) -> Any:
        y, _ = nn.apply(m, *xs, **options)
        return fx.sum(fx.sin(3 * y))

    if fx.tree.leaves(model):
        check(f, model, xs)
    else:
        check(lambda xs: f(model, xs), xs)


@pytest.mark.parametrize("case", LAYERS, ids=[c.name for c in LAYERS])
def test_gradient_of_layers_that_pytorch_has(case: Any) -> None:
    rng = np.random.default_rng(2)
    model = nn.cast(case.ours(nn, KEY), "f64")
    xs = tuple(
        rng.integers(0, s[1], s[0]) if isinstance(s[0], tuple) else rng.normal(size=s) for s in case.inputs
    )  # fmt: skip
    train = case.name.startswith("batchnorm") or case.train  # running statistics have no gradient
    flags = fx.tree.leaves(nn.trainable(model))
    leaves, structure = fx.tree.flatten(model)
    kept = [x for x, p in zip(leaves, flags, strict=True) if p]

    def f(kept: Any, xs: Any) -> Any:
        fresh = iter(kept)
        m = structure.unflatten([next(fresh) if p else x for x, p in zip(leaves, flags, strict=True)])
        y, _ = nn.apply(m, *xs, train=train, **{k: v for k, v in case.ours_options.items() if k != "return_state"})
        return fx.sum(fx.sin(2 * y))

    if xs[0].dtype.kind == "i":
        check(lambda kept: f(kept, xs), kept)
    elif kept:
        check(f, kept, xs)
    else:
        check(lambda xs: f(kept, xs), xs)


# ---- one program for every batch size ----------------------------------------------------------------------------------

SYMBOLIC: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "dense": (lambda: nn.Chain(dense(6, 5), nn.gelu, dense(5, 3, 1)), (6,)),
    "cnn": (
        lambda: nn.Chain(
            nn.Conv(2, 4, (3, 3), nn.relu, padding="same", key=KEY),
            nn.BatchNorm(4),
            nn.MaxPool(2),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            dense(36, 5),
        ),
        (2, 6, 6),
    ),
    "transpose": (lambda: nn.ConvTranspose(2, 3, (3,), stride=2, padding=1, key=KEY), (2, 4)),
    "upsample": (lambda: nn.Chain(nn.Upsample(2, "bilinear"), nn.AdaptiveMeanPool(3), nn.InstanceNorm(2)), (2, 4, 4)),
    "shuffle": (lambda: nn.Chain(nn.PixelShuffle(2), nn.MeanPool(2, stride=1), nn.GlobalMaxPool()), (8, 3, 3)),
    "lstm": (lambda: nn.Chain(nn.LSTM(3, 4, layers=2, bidirectional=True, key=KEY), nn.LayerNorm(8)), (5, 3)),
    "gru": (lambda: nn.GRU(3, 4, key=KEY), (5, 3)),
    "attention": (lambda: nn.Chain(nn.MultiHeadAttention(6, 2, key=KEY), nn.RMSNorm(6)), (5, 6)),
    "bilinear": (lambda: nn.Bilinear((4, 4), 3, key=KEY), (4,)),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_batch(name: str) -> None:
    make, shape = SYMBOLIC[name]
    model = make()
    rng = np.random.default_rng(4)

    def loss(m: Any, x: Any) -> Any:
        y, _ = nn.apply(m, x, train=True)
        return fx.sum(fx.tanh(y))

    kind, wrt = fx.f32[("B", *shape)], 0 if fx.tree.leaves(model) else 1
    forward = fx.jit(lambda x: model(x), signature=(kind,))
    backward = fx.jit(lambda x: fx.value_and_grad(loss, wrt)(model, x), signature=(kind,), facts="B >= 1")
    for b in (3, 8):
        x = rng.normal(size=(b, *shape)).astype(np.float32)
        y = forward(x)
        np.testing.assert_allclose(y, model(x), rtol=2e-5, atol=2e-5)
        assert nn.outputsize(model, ("B", *shape)) == ("B", *y.shape[1:]) and nn.outputsize(model, x.shape) == y.shape
        value, grads = backward(x)
        want, want_grads = fx.value_and_grad(loss, wrt)(model, x)
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)
        for g, w in zip(fx.tree.leaves(grads), fx.tree.leaves(want_grads), strict=True):
            np.testing.assert_allclose(g, w, rtol=2e-3, atol=2e-4)


# ---- vmap --------------------------------------------------------------------------------------------------------------


def f64(model: Any) -> Any:
    return nn.cast(model, "f64")


VMAPPED = {
    "cnn": (
        lambda: nn.Chain(
            nn.Conv(2, 3, (3, 3), nn.relu, padding=1, key=KEY),
            nn.MaxPool(2),
            nn.Flatten(),
            dense(12, 4),
            nn.LayerNorm(4),
        ),
        (2, 4, 4),
    ),
    "lstm": (lambda: nn.LSTM(3, 4, bidirectional=True, key=KEY), (5, 3)),
    "attention": (lambda: nn.MultiHeadAttention(6, 2, key=KEY), (5, 6)),
}


@pytest.mark.parametrize("name", VMAPPED)
def test_gradients_of_single_examples(name: str) -> None:
    make, shape = VMAPPED[name]
    model, xs = f64(make()), np.random.default_rng(5).normal(size=(4, *shape))

    def gradient(m: Any, x: Any) -> Any:
        return fx.grad(lambda m: fx.sum(fx.sin(m(x[None]))))(m)

    want = [fx.tree.leaves(gradient(model, x)) for x in xs]
    for f in (fx.vmap(gradient, in_axes=(None, 0)), fx.jit(fx.vmap(gradient, in_axes=(None, 0)))):
        got = f(model, xs)
        assert fx.tree.flatten(got)[1] == fx.tree.flatten(model)[1]
        for g, w in zip(fx.tree.leaves(got), zip(*want, strict=True), strict=True):
            np.testing.assert_allclose(g, np.stack(w), rtol=1e-9, atol=1e-10)


def test_several_models_as_one() -> None:
    """An ensemble: parameters and running statistics with one more axis, made and run under vmap."""

    def make(key: Any) -> Any:
        return nn.Chain(nn.Dense(3, 4, fx.tanh, key=key), nn.BatchNorm(4), nn.Dropout(0.5))

    keys, x = fx.random.split(KEY, 3), np.random.default_rng(6).normal(size=(8, 3)).astype(np.float32)
    all_models = fx.vmap(make)(keys)
    assert all_models[0].weight.shape == (3, 3, 4)
    y, new = fx.vmap(lambda m, k: nn.apply(m, x, train=True, key=k))(all_models, keys)
    for i in range(3):
        want, after = nn.apply(make(keys[i]), x, train=True, key=keys[i])
        np.testing.assert_allclose(y[i], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new[1].mean[i], after[1].mean, rtol=1e-5, atol=1e-6)
