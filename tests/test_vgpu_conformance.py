"""Kernels that our compiler did not write, run on the virtual GPU: CUDA C through nvcc, and Triton. Results match numpy, and the
sanitizer has nothing to say. `tests/vgpu/` holds the kernels, their PTX and what they should compute.
"""

from __future__ import annotations

import pytest

import tests.vgpu.cases_async
import tests.vgpu.cases_atomics
import tests.vgpu.cases_collective
import tests.vgpu.cases_elementwise
import tests.vgpu.cases_hopper
import tests.vgpu.cases_language
import tests.vgpu.cases_tensor
import tests.vgpu.cases_triton  # noqa: F401  (each declares its cases)
from fluxir.runtime.vgpu.parser import parse
from tests.vgpu.case import CASES, HERE, Case, run, text

PARAMETERS = [pytest.param(c, id=c.name, marks=[pytest.mark.deep] if c.deep else []) for c in CASES]


@pytest.mark.parametrize("case", PARAMETERS)
def test_kernels_of_other_compilers(case: Case) -> None:
    run(case)


def test_every_kernel_has_a_case() -> None:
    run_ones = {(c.path, c.kernel) for c in CASES}
    for path in sorted([*HERE.glob("ptx/*.ptx"), *HERE.glob("triton/*.ptx")]):
        for kernel in parse(text(path)).entries:
            assert (path, kernel) in run_ones, f"{path.name}: {kernel} is never run"
