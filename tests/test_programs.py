"""Whole programs: random ones, run in every way there is, give one answer.

The interpreter on the traced program is the reference. Against it: each pass alone, passes in random orders, the
lowered loops in the interpreter, and native code with and without optimisation, with one thread and two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxir.passes  # noqa: F401
from fluxir import config, driver
from fluxir.ir.interp import interpret
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PASSES, PassManager
from tests.programs import Program, assert_same, random_program

TENSOR_PASSES = sorted(name for name, p in PASSES.items() if p.level in ("tensor", "any"))


def native(p: Program, **options: Any) -> list[Any]:
    """The program's results from native code."""
    compiled = driver.compile_module(p.module, "cpu", cache=False, **options)
    return compiled.program.call_flat([a.copy() for a in p.arrays])


@pytest.mark.parametrize("seed", range(1000, 1080))
def test_native_code_gives_the_interpreters_answer(seed: int) -> None:
    p = random_program(seed)
    want = interpret(p.module, p.arrays)
    assert_same(native(p), want, note=f"seed {seed}, optimised")


@pytest.mark.parametrize("seed", range(2000, 2030))
def test_without_fusion_the_answer_is_the_same(seed: int) -> None:
    p = random_program(seed)
    want = interpret(p.module, p.arrays)
    assert_same(native(p, passes="expand"), want, note=f"seed {seed}, unoptimised")


@pytest.mark.parametrize("seed", range(3000, 3020))
def test_the_number_of_threads_does_not_change_a_bit(seed: int) -> None:
    p = random_program(seed, ops=8)
    compiled = driver.compile_module(p.module, "cpu", cache=False)
    results = []
    for threads in (1, 2, 3):
        with config.override(num_threads=threads):
            results.append(compiled.program.call_flat([a.copy() for a in p.arrays]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", TENSOR_PASSES)
def test_each_pass_alone(name: str) -> None:
    for seed in range(4000, 4025):
        p = random_program(seed)
        m = PassManager(f"expand,{name}" if name != "expand" else "expand").run(p.module)
        verify_module(m)
        assert_same(interpret(m, p.arrays), interpret(p.module, p.arrays), note=f"seed {seed}, pass {name}")


@pytest.mark.parametrize("seed", range(5000, 5040))
def test_passes_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = [TENSOR_PASSES[int(i)] for i in rng.integers(0, len(TENSOR_PASSES), size=8)]
    p = random_program(seed)
    m = PassManager(",".join(order)).run(p.module)
    verify_module(m)
    assert_same(interpret(m, p.arrays), interpret(p.module, p.arrays), note=f"seed {seed}, passes {order}")


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**20),
    ops=st.integers(1, 14),
    order=st.lists(st.sampled_from(TENSOR_PASSES), max_size=5),
)
def test_any_program_through_any_passes(seed: int, ops: int, order: list[str]) -> None:
    """Hypothesis shrinks what fails to few ops and few passes."""
    p = random_program(seed, ops=ops)
    want = interpret(p.module, p.arrays)
    if order:
        m = PassManager(",".join(order)).run(p.module)
        verify_module(m)
        assert_same(interpret(m, p.arrays), want, note=f"seed {seed}, ops {ops}, passes {order}")
    assert_same(native(p), want, note=f"seed {seed}, ops {ops}, native")


@pytest.mark.deep
@pytest.mark.parametrize("block", range(10))
def test_many_more_programs(block: int) -> None:
    """100 programs each: larger ones, natively."""
    for seed in range(10_000 + 100 * block, 10_100 + 100 * block):
        p = random_program(seed, ops=25)
        assert_same(native(p), interpret(p.module, p.arrays), rtol=2e-3, atol=2e-4, note=f"seed {seed}")
