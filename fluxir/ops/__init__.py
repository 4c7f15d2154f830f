"""What a program can say: importing this package declares every op in the registry."""

from __future__ import annotations

# isort: off
from fluxir.ops import compare, contract, control, extent, index, iterate, loop, math, nn, order, parts, random
from fluxir.ops import reduce, shape
from fluxir.ops import gpu, kernel
from fluxir.ops import batching, batching_index  # rules for ops that are declared by now

# isort: on

__all__ = [
    "batching",
    "batching_index",
    "compare",
    "contract",
    "control",
    "extent",
    "gpu",
    "index",
    "iterate",
    "kernel",
    "loop",
    "math",
    "nn",
    "order",
    "parts",
    "random",
    "reduce",
    "shape",
]
