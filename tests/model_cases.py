"""The example models and steps of their training, at sizes that an interpreter runs: programs with their inputs.

`CASES[name]()` is (a program, the same with its transforms resolved, which the interpreter takes, and its inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.frontend import tree
from fluxir.ir.core import Module
from tests.oracle.training import beginning, example

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Case = tuple[Module, Module, list[Any]]
"""A program, the same with its transforms resolved (which the interpreter takes), and its inputs."""


def entry(name: str, *args: Any) -> Case:
    t = fx.load_model(EXAMPLES / f"{name}.py").entry().trace()
    return t.module, t.module, list(args)


def traced(f: Any, *args: Any) -> Case:
    low = (f if hasattr(f, "lower") else fx.jit(f)).lower(*args)
    return low.module, low.stage("adjoint", "sm_80"), [np.asarray(a) for a in tree.leaves(args)]


def rng() -> Any:
    return np.random.default_rng(3)


def mlp() -> Case:
    k = fx.random.split(fx.random.key(1), 3)
    model = fx.nn.Chain(
        fx.nn.Dense(20, 33, fx.nn.relu, key=k[0]), fx.nn.Dense(33, 17, fx.tanh, key=k[1]), fx.nn.Dense(17, 5, key=k[2])
    )
    return traced(lambda m, x: fx.nn.softmax(m(x), axis=-1), model, rng().normal(size=(6, 20)).astype(np.float32))


def forward(name: str, length: int) -> Case:
    """The loss of a language model on a short text."""
    ex = example(name)
    model, arguments = beginning(ex, name, "f32")
    (text,) = next(arguments)
    return traced(ex.loss, model, text[:1, : length + 1])


def step(name: str, *slices: slice) -> Case:
    """A step of an example's own training, on a part of a batch."""
    ex = example(name)
    model, arguments = beginning(ex, name, "f32")
    batch, *rest = next(arguments)
    return traced(ex.step, model, ex.optimiser.init(model), batch[slices], *rest)


def digits_step() -> Case:
    """A step of the digits network: changed images, dropout, convolutions, AdamW."""
    ex = example("train_digits_fx")
    images, labels = ex.half("train")
    optimiser = fx.optim.AdamW(4e-3, decay=ex.WEIGHT_DECAY)
    model = ex.network(fx.random.key(0))

    def one(model: Any, memory: Any, x: Any, y: Any, key: Any) -> Any:
        value, gradient = fx.value_and_grad(lambda m: ex.loss(m, x, y, key=key))(model)
        return *optimiser.update(model, gradient, memory), value

    return traced(one, model, optimiser.init(model), images[:3], labels[:3], fx.random.key(5))


def equilibrium_step() -> Case:
    ex = example("equilibrium")
    model = ex.Equilibrium(fx.random.key(0))
    x, label = ex.half("train")
    return traced(ex.step, model, ex.optimiser.init(model), x[:3], label[:3])


def tree_gradient() -> Case:
    """Recursion, and its reverse."""
    ex = example("expression_trees")
    trees, values = ex.expressions(0, 2, [2])
    return traced(fx.value_and_grad(ex.loss), ex.parameters(fx.random.key(0)), trees, values)


def ponder_gradient() -> Case:
    """A while loop, and its reverse."""
    ex = example("ponder")
    x, y = ex.problems(0, 4)
    return traced(fx.value_and_grad(ex.loss, has_aux=True), ex.parameters(fx.random.key(0)), x, y)


CASES: dict[str, Callable[[], Case]] = {
    "newton": lambda: entry("newton", rng().uniform(0, 100, 5).astype(np.float32)),
    "attention": lambda: entry("attention", rng().normal(size=(2, 5, 16)).astype(np.float32)),
    "text": lambda: entry("text", np.frombuffer(b"hello", np.uint8).astype(np.int64), np.int64(6), np.uint32(1)),
    "digits": lambda: entry("digits", rng().uniform(size=(2, 8, 8)).astype(np.float32)),
    "mlp": mlp,
    "lstm": lambda: forward("char_lstm", 3),
    "gpt": lambda: forward("gpt", 6),
    "vae-step": lambda: step("vae", slice(3)),
    "digits-step": digits_step,
    "equilibrium-step": equilibrium_step,
    "tree-gradient": tree_gradient,
    "ponder-gradient": ponder_gradient,
}
LONG: dict[str, Callable[[], Case]] = {
    "lstm-step": lambda: step("char_lstm", slice(2), slice(5)),
    "gpt-step": lambda: step("gpt", slice(2), slice(9)),
}


def assert_like(got: Sequence[Any], want: Sequence[Any]) -> None:
    """Equal within what sums in another order do to f32."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * max(1, np.max(np.abs(b), initial=0)), err_msg=f"{i}")
