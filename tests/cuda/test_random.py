"""Random programs and the bundled models through the real PyCUDA: what the interpreter says, bit patterns of integers included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fluxir as fx
from fluxir import driver as compiler
from fluxir.ir.interp import interpret
from fluxir.runtime import cuda
from fluxir.runtime.vgpu.cuda_api import VirtualCuda
from tests.programs import assert_same, random_program

Drivers = Callable[..., VirtualCuda]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(s, marks=pytest.mark.deep) for s in range(12, 120))])
def test_random_programs(driver_of: Drivers, seed: int) -> None:
    target = ("sm_80", "sm_90")[seed % 2]
    driver = driver_of(target, eager=seed % 4 > 1)
    p = random_program(seed, control=seed % 3 == 0)
    want = interpret(p.module, p.arrays)
    code = compiler.compile_module(p.module, target)
    program = cuda.load_program(code.spec, code.code, code.constants)
    for _ in range(3):
        assert_same(program.call_flat(p.arrays), want)
    if p.arrays:
        placed = [cuda.device_put(a) for a in p.arrays]
        assert_same([a.numpy() for a in program.call_flat(placed)], want)
        del placed
    program.close()
    del program
    cuda.close_all()
    assert driver.leaks() == []


def test_the_digits_model(driver_of: Drivers) -> None:
    """The bundled network on real images: logits equal PyTorch's, which are committed beside it."""
    driver_of("sm_80")
    reference = np.load(EXAMPLES / "digits_reference.npz")
    images = reference["images"][:4]
    traced = fx.load_model(EXAMPLES / "digits.py").entry().trace()
    program = compiler.compile_module(traced.module, "sm_80")
    loaded = cuda.load_program(program.spec, program.code, program.constants)
    for _ in range(2):
        got = loaded.call_flat([images])[0]
        np.testing.assert_allclose(got, reference["logits"][:4], rtol=1e-3, atol=1e-3)
