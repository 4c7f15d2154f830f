"""What a program can say: importing this package declares every op in the registry."""

from __future__ import annotations

from fluxir.ops import (
    compare,
    contract,
    control,
    extent,
    index,
    iterate,
    loop,
    math,
    nn,
    order,
    parts,
    random,
    reduce,
    shape,
)  # isort: skip
from fluxir.ops import gpu, kernel  # isort: skip
from fluxir.ops import batching, batching_index  # isort: skip  (rules for ops that are declared by now)

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
