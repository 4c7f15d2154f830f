"""The examples that train: digits from scratch, a loop whose length is learnt, a recursive network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import optim, train
from tests.oracle.digits_curve import PATH, RATE, STEPS, batches, weights

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Array = np.ndarray[Any, np.dtype[Any]]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def differences(f: Any, p: dict[str, Array], names: list[str], count: int = 4, eps: float = 1e-6) -> list[tuple[str, tuple[int, ...], float]]:  # fmt: skip
    """Central differences of `f` at some random elements of each array."""
    rng = np.random.default_rng(2)
    out = []
    for name in names:
        for _ in range(count):
            at = tuple(int(rng.integers(n)) for n in p[name].shape)
            ends = []
            for e in (eps, -eps):
                moved = {k: v.copy() for k, v in p.items()}
                moved[name][at] += e
                ends.append(float(f(moved)))
            out.append((name, at, (ends[0] - ends[1]) / (2 * eps)))
    return out


# ---- digits ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    return example("train_digits_fx")


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-9)])
def test_twenty_losses_of_pytorch(digits: ModuleType, dtype: str, rtol: float) -> None:
    """The network of the example with the weights, batches and optimiser of the fixture; one program for both batch sizes."""
    w = {k: v.T if "dense" in k and v.ndim == 2 else v for k, v in weights(dtype).items()}
    leaves, structure = fx.tree.flatten(digits.network(fx.random.key(0)))
    order = [w[f"{layer}.{part}"] for layer in ("conv1", "conv2", "dense1", "dense2") for part in ("weight", "bias")]
    assert [x.shape for x in leaves] == [x.shape for x in order]
    losses: list[float] = []
    run = train.fit(structure.unflatten(order), digits.loss, batches(dtype), optim.Adam(RATE),
                    callbacks=[train.throttle(lambda run: losses.append(run.loss), 0)])  # fmt: skip
    with np.load(PATH) as archive:
        np.testing.assert_allclose(losses, archive[f"{dtype}.losses"], rtol=rtol)
        norms = [float(np.linalg.norm(x.ravel())) for x in fx.tree.leaves(run.model)]
        np.testing.assert_allclose(norms, archive[f"{dtype}.norms"], rtol=rtol)
    assert len(losses) == STEPS and losses[-1] < losses[0] / 2


def test_augmented_images(digits: ModuleType) -> None:
    x, _ = digits.half("train")
    x = x[:256]
    moved = fx.jit(digits.augmented)(x, fx.random.key(1))
    again = fx.jit(digits.augmented)(x, fx.random.key(1))
    np.testing.assert_array_equal(moved, again)
    assert moved.shape == x.shape and np.abs(moved - x).mean() > 0.05
    # They are still the same digits: noise aside, mean brightness and place are nearly kept.
    assert moved.mean() == pytest.approx(x.mean(), rel=0.1)
    assert np.corrcoef(moved.mean(0).ravel(), x.mean(0).ravel())[0, 1] > 0.95


def test_digits_learnt_in_a_few_epochs(digits: ModuleType) -> None:
    run = digits.train(epochs=20)
    right = train.evaluate(digits.accuracy, run.model, fx.data.DataLoader(digits.half("test"), 256))
    assert run.step == 300 and right > 0.93  # 120 epochs: 99 %, in 20 s


# ---- ponder ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ponder() -> ModuleType:
    return example("ponder")


def ponder_by_hand(p: dict[str, Array], x: Array, enough: float, most: int) -> tuple[Array, list[int], list[float]]:
    """One problem after the other, each with its own loop."""
    logits, steps, rest = [], [], []
    for row in x:
        h, mean, done = np.zeros_like(p["bias"]), np.zeros_like(p["bias"]), 0.0
        for n in range(most):
            first = p["input"][-1] if n == 0 else 0
            h = np.tanh(row @ p["input"][:-1] + p["bias"] + first + h @ p["cell"])
            halting = 1 / (1 + np.exp(-(h @ p["halt"] + p["halt_bias"])[0]))
            if done + halting >= enough or n == most - 1:
                mean = mean + (1 - done) * h
                steps.append(n + 1)
                rest.append(1 - done)
                break
            mean, done = mean + halting * h, done + halting
        logits.append(mean @ p["answer"])
    return np.stack(logits), steps, rest


def test_every_problem_is_pondered_by_itself(ponder: ModuleType) -> None:
    p = {k: np.asarray(v, np.float64) for k, v in ponder.parameters(fx.random.key(3)).items()}
    p["halt_bias"] -= 1.5
    x, y = ponder.problems(5, 40)
    x = x.astype(np.float64)
    logits, steps, rest = fx.jit(ponder.ponder)(p, x)
    want = ponder_by_hand(p, x, ponder.ENOUGH, ponder.MOST)
    np.testing.assert_allclose(logits, want[0], rtol=1e-9)
    np.testing.assert_array_equal(steps, want[1])
    np.testing.assert_allclose(rest, want[2], rtol=1e-9)
    assert len(set(want[1])) >= 3

    # The gradient through the loop, compiled.
    def value(p: Any) -> Any:
        return ponder.loss(p, x, y)[0]

    grads = fx.jit(fx.grad(value))(p)
    forward = fx.jit(value)
    for name, at, d in differences(forward, p, list(p)):
        assert grads[name][at] == pytest.approx(d, rel=2e-6, abs=1e-9), (name, at)


def test_pondering_is_learnt(ponder: ModuleType) -> None:
    run = ponder.train(epochs=5)
    assert run.history[-1]["loss"] < 0.12 < 0.5 < run.history[0]["loss"] and run.history[-1]["right"] > 0.97
    x, y = ponder.problems(1, 1024)
    logits, steps, _ = fx.jit(ponder.ponder)(run.model, x)
    assert (logits.argmax(1) == y).mean() > 0.97
    assert steps.min() >= 1 and steps.max() <= ponder.MOST and len(set(steps.tolist())) > 1


# ---- trees ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trees() -> ModuleType:
    return example("expression_trees")


def meaning_by_hand(p: dict[str, Array], tree: Array, node: int = 0) -> Array:
    kind, left, right = tree[:, node]
    if kind < 2:
        leaf: Array = p["leaf"][kind]
        return leaf
    both = np.concatenate([meaning_by_hand(p, tree, left), meaning_by_hand(p, tree, right)])
    vector: Array = np.tanh(both @ p["weight"][kind - 2] + p["bias"][kind - 2])
    return vector


def test_expressions_are_right(trees: ModuleType) -> None:
    names = ["&", "|", "^", "nand"]

    def evaluated(t: Array, i: int = 0) -> int:
        if t[0, i] < 2:
            return int(t[0, i])
        a, b = evaluated(t, t[1, i]), evaluated(t, t[2, i])
        return {"&": a & b, "|": a | b, "^": a ^ b, "nand": int(not (a and b))}[names[t[0, i] - 2]]

    made, values = trees.expressions(3, 50, range(1, 6))
    assert made.shape == (50, 3, 63) and [evaluated(t) for t in made] == values.tolist()
    assert 10 < values.sum() < 40


def test_recursion_is_differentiated(trees: ModuleType) -> None:
    p = {k: np.asarray(v, np.float64) for k, v in trees.parameters(fx.random.key(3)).items()}
    made, values = trees.expressions(4, 6, range(1, 5))
    got = fx.jit(trees.logits)(p, made)
    np.testing.assert_allclose(got, [meaning_by_hand(p, t) @ p["answer"] for t in made], rtol=1e-9)
    grads = fx.jit(fx.grad(trees.loss))(p, made, values)
    forward = fx.jit(trees.loss)
    for name, at, d in differences(lambda q: forward(q, made, values), p, list(p)):
        assert grads[name][at] == pytest.approx(d, rel=2e-6, abs=1e-9), (name, at)


def test_logic_is_learnt(trees: ModuleType) -> None:
    run = trees.train(epochs=6)
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < 0.12 < 0.5 < losses[0]
    deep = fx.data.DataLoader(trees.expressions(9, 200, [5]), 100)
    assert train.evaluate(trees.right, run.model, deep) > 0.75
