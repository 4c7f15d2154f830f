"""A kernel on every device against its meaning: the SIMT interpreter, native CPU code, its loops, and the virtual GPU agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.frontend.kernel.signature import flattened
from fluxir.ir.core import Module
from fluxir.ir.interp import Interpreter, bind_dims
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.simt import run_grid
from fluxir.ir.verify import verify_module
from fluxir.kernels import Kernel

DEVICES = ("cpu", "vgpu:sm_80")


def interpreted(k: Kernel, grid: Any, block: Any, args: Sequence[Any], shared: int = 0) -> None:
    """Run a kernel by the interpreter of loop IR; arrays are written in place."""
    build = k.build(*args)
    f = build.func
    module = Module(f.name, {f.name: f})
    verify_module(module)
    text = print_module(module)
    assert print_module(parse_module(text)) == text, "the text form is stable"
    values = list(k.bound(args, {}).values())
    flat = [x for p, v in zip(build.params, values, strict=True) for x in flattened(p, v)]
    given = [
        x if isinstance(x, np.ndarray) else np.asarray(x).astype(a.type.dtype.numpy)[()]
        for x, a in zip(flat, f.args, strict=True)
    ]
    it = Interpreter(module, bind_dims(f, [np.shape(x) for x in given]))
    run_grid(it, f, given, _shape(grid), _shape(block), shared)


def _shape(n: Any) -> tuple[int, ...]:
    return tuple(n) if isinstance(n, tuple) else (n,)


def arrays(args: Sequence[Any]) -> list[Any]:
    return [a for a in args if isinstance(a, np.ndarray)]


def agree(
    k: Kernel,
    grid: Any,
    block: Any,
    *args: Any,
    shared: int = 0,
    want: Sequence[Any] = (),
    tol: float = 0.0,
    devices: Sequence[str] = DEVICES,
    interpret: bool = True,
) -> list[Any]:
    """The arrays after the kernel has run, the same on every device; `want`: what the last of them must hold."""
    results: dict[str, list[Any]] = {}
    for device in (*(["interpreter"] if interpret else []), *devices):
        mine = copy.deepcopy(args)
        if device == "interpreter":
            interpreted(k, grid, block, mine, shared)
        else:
            k.on(device)[grid, block, shared](*mine)
        results[device] = arrays(mine)
    (first, expected), *rest = results.items()
    for device, found in rest:
        for i, (x, y) in enumerate(zip(expected, found, strict=True)):
            _equal(x, y, tol, f"{device} and {first} differ in array {i}")
    for x, y in zip(reversed(expected), reversed(list(want))):
        _equal(np.asarray(y), x, tol, f"{first} and numpy differ")
    return expected


def _equal(x: Any, y: Any, tol: float, what: str) -> None:
    wide = [a.astype(np.float64) if a.dtype.kind in "fV" else a for a in (x, y)]
    if tol:
        np.testing.assert_allclose(wide[1], wide[0], rtol=tol, atol=tol, err_msg=what)
    else:
        np.testing.assert_array_equal(wide[1], wide[0], err_msg=what)
