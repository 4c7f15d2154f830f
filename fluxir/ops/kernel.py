"""`kernel`: a GPU kernel function of the module, called by a tensor function.

Kernels write to memory and tensors do not change, so a result is what the memory of an operand that the kernel writes
holds afterwards; the operand itself keeps its value. Scalars are tensors of rank 0 here as elsewhere: the kernel takes them
from memory. The kernel's sizes are its caller's, under the same names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.opdef import op
from fluxir.ir.simt import run_grid
from fluxir.ir.types import TensorType, Type


def _kernel(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    if not all(0 <= i < len(t) for i in a.writes) or len(set(a.writes)) != len(a.writes):
        raise error("FX0108", f"kernel: {a.writes} are no positions of its {len(t)} operands")
    if not all(isinstance(x, TensorType) for x in t):
        raise error("FX0108", "kernel takes tensors")
    if not 1 <= len(a.grid) <= 3 or not 1 <= len(a.block) <= 3 or min(a.block) < 1:
        raise error("FX0108", f"kernel: a grid and a block have 1 to 3 sizes, not {a.grid} and {a.block}")
    return [t[i] for i in a.writes]


def _kernel_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    memories = [np.array(x, copy=True, order="C") if i in a.writes else np.asarray(x) for i, x in enumerate(args)]
    grid = it.shape(a.grid)
    if 0 not in grid:
        run_grid(it, it.module.funcs[a.callee], memories, grid, a.block)
    return [memories[i] for i in a.writes]


op(
    "kernel",
    _kernel,
    attrs={"callee": "str", "grid": "dims", "block": "ints", "writes": "ints"},
    level="tensor",
    category="control",
    eval=_kernel_eval,
    doc=(
        "kernel(xs...): run the GPU kernel `callee` over `grid` blocks of `block` threads; the results are the operands "
        "`writes` as the kernel leaves them. Its reverse derivative is made from the kernel where that is provably right (see "
        "passes/kernel_adjoint)."
    ),
)
