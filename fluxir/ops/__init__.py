"""What a program can say: importing this package declares every op in the registry."""

from __future__ import annotations

from fluxir.ops import compare, contract, control, index, loop, math, nn, order, parts, random, reduce, shape

__all__ = [
    "compare",
    "contract",
    "control",
    "index",
    "loop",
    "math",
    "nn",
    "order",
    "parts",
    "random",
    "reduce",
    "shape",
]
