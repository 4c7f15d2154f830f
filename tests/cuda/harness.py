"""Programs compiled to PTX and loaded through PyCUDA, beside the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

import fluxir as fx
from fluxir.ir.interp import interpret
from fluxir.runtime import cuda
from fluxir.runtime.launch import GpuProgram

__all__ = ["close", "compiled", "on_cuda", "same"]


def compiled(f: Any, *args: Any, target: str = "sm_80", **options: Any) -> tuple[Any, Any]:
    """The traced module and its machine code for a GPU."""
    low = fx.jit(f, **options).lower(*args)
    return low.module, low.compile(target)


def on_cuda(code: Any, device: str = "cuda") -> GpuProgram:
    return cuda.load_program(code.spec, code.code, code.constants, device)


def close(got: Any, want: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.dtype.kind in "fV":
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(a, b)


def same(f: Any, *args: Any, calls: int = 3, rtol: float = 1e-5, atol: float = 1e-6, **options: Any) -> GpuProgram:
    """Run several times (launch list, capture, replay) and compare with the interpreter."""
    module, code = compiled(f, *args, **options)
    program = on_cuda(code)
    want = interpret(module, [np.asarray(a) for a in args])
    for _ in range(calls):
        close(program.call_flat(list(args)), want, rtol, atol)
    return program
