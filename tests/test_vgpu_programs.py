"""Whole programs on the virtual GPU, from the PTX text we emit, with the sanitizer on: against the interpreter.

Random programs (every fusion there is), the example models, and steps of their training: gradients, optimisers, control flow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.interp import interpret
from tests.model_cases import CASES, LONG, Case, assert_like
from tests.programs import assert_same, random_program
from tests.vgpu_harness import on_vgpu

TARGETS = ("sm_80", "sm_90")


# ---- random programs --------------------------------------------------------------------------------------------------


def check_random(seed: int, **options: Any) -> None:
    p = random_program(seed, **options)
    got = on_vgpu(p.module, p.arrays, TARGETS[seed % 2])
    assert_same(got, interpret(p.module, p.arrays), note=f"seed {seed}")


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_random_programs(seed: int) -> None:
    check_random(seed)


@pytest.mark.deep
@pytest.mark.parametrize("block", range(16))
def test_many_random_programs(block: int) -> None:
    """The programs that the CPU runs, on the other architecture than above, and as many more."""
    for seed in range(1001 + 10 * block, 1011 + 10 * block):
        check_random(seed)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2000, 2016))
def test_without_fusion(seed: int) -> None:
    p = random_program(seed)
    got = on_vgpu(p.module, p.arrays, TARGETS[seed % 2], passes="expand")
    assert_same(got, interpret(p.module, p.arrays), note=f"seed {seed}")


# ---- models -----------------------------------------------------------------------------------------------------------


def check(case: Case, target: str) -> None:
    module, meaning, arrays = case
    assert_like(on_vgpu(module, arrays, target), interpret(meaning, arrays))


LESS_OFTEN = ("attention", "vae-step", "equilibrium-step")
"""Compiling these takes longest; the others have what is in them."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.deep if n in (*LESS_OFTEN, *LONG) else ()) for n in [*CASES, *LONG]]
)
def test_models(name: str) -> None:
    check((CASES | LONG)[name](), "sm_80")


@pytest.mark.deep
@pytest.mark.parametrize("name", [*CASES, *LONG])
def test_models_on_hopper(name: str) -> None:
    check((CASES | LONG)[name](), "sm_90")


def test_a_training_run() -> None:
    """`fx.train.fit` on the virtual GPU, donated arguments and all: the losses are the CPU's."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    data = fx.data.DataLoader((x, (x.sum(1) > 0).astype(np.int64)), 16, shuffle=0)
    losses = []
    for device in ("cpu", "vgpu:sm_80"):
        k = fx.random.split(fx.random.key(0), 2)
        model = fx.nn.Chain(fx.nn.Dense(5, 8, fx.tanh, key=k[0]), fx.nn.Dense(8, 2, key=k[1]))

        def loss(m: Any, x: Any, y: Any) -> Any:
            return fx.nn.logit_crossentropy(m(x), y)

        run = fx.train.fit(model, loss, data, fx.optim.Adam(1e-2), epochs=2, device=device)
        losses.append([row["loss"] for row in run.history])
    assert losses[0][1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
