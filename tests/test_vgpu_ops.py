"""Every op on the virtual GPU, from the PTX text we emit, with the sanitizer on: against the op's meaning.

What runs is what a GPU would be given: kernels, launch list, packed parameters, arena. A finding of the sanitizer fails a test
as a wrong number does.
"""

from __future__ import annotations

import pytest

from fluxir.ir.interp import interpret
from fluxir.ir.opdef import OpDef
from tests.op_harness import (
    OPS,
    STATIC_ONLY,
    all_samples,
    assert_close,
    awkward_program,
    owners,
    symbolic_program,
)
from tests.vgpu_harness import loaded, on_vgpu

EACH_OP = pytest.mark.parametrize("defn", [pytest.param(d, id=d.name) for d in OPS])
ELEMENTWISE = [pytest.param(d, id=d.name) for d in OPS if d.category in ("elementwise", "compare")]


def check_samples(defn: OpDef, target: str) -> None:
    module, arrays = all_samples(defn)
    got = on_vgpu(module, arrays, target)
    for case, g, w in zip(owners(defn, defn.samples), got, interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


@EACH_OP
def test_samples(defn: OpDef) -> None:
    check_samples(defn, "sm_80")


@pytest.mark.deep
@EACH_OP
def test_samples_on_hopper(defn: OpDef) -> None:
    check_samples(defn, "sm_90")


@pytest.mark.deep
@pytest.mark.parametrize("defn", ELEMENTWISE)
def test_awkward_values(defn: OpDef) -> None:
    """Zeros of both signs, infinities, NaN, the ends of integer types, division by zero, shifts beyond the width."""
    module, arrays, owner = awkward_program(defn)
    got = on_vgpu(module, arrays, "sm_90")
    for case, g, w in zip(owner, got, interpret(module, arrays), strict=True):
        assert_close(g, w, defn, case)


@pytest.mark.deep
@EACH_OP
def test_symbolic_sizes(defn: OpDef) -> None:
    """One program for all sizes, run at two of them."""
    found = symbolic_program(defn)
    if found is None:
        assert defn.name in STATIC_ONLY
        return
    module, sets, owner = found
    program = loaded(module, "sm_80")
    for arrays in sets:
        for case, g, w in zip(owner, program.call_flat(arrays), interpret(module, arrays), strict=True):
            assert_close(g, w, defn, case)
