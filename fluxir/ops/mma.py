"""Which elements of its matrices each lane holds in a tensor-core product, by shape.

`A` is m x k, `B` is k x n, `C` is m x n; a part is a vector of elements in the order of the hardware's registers. The
maps are data: the interpreter, the loads and stores of parts, and the CPU's version of `mma` all read them here.

Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Place = Callable[[Any], tuple[Any, Any]]
"""(row, column) of an element from the lane: of a Python int, an array, or anything with `//`, `%`, `+` and `*`."""


@dataclass(frozen=True)
class MmaShape:
    """One shape: sizes, element types of A and B, and the place of each element of a lane's parts."""

    m: int
    n: int
    k: int
    dtypes: tuple[str, ...]
    a: tuple[Place, ...]
    b: tuple[Place, ...]
    c: tuple[Place, ...]

    def rounded(self, value: Any) -> float:
        """An element as the tensor core reads it: f32 gives its upper 19 bits (tf32)."""
        if np.asarray(value).dtype == np.float32:
            bits = np.asarray(value).view(np.uint32) & np.uint32(0xFFFFE000)
            return float(bits.view(np.float32))
        return float(value)


def _at(row: int, column: int, pair: int, step: int) -> Place:
    """`row` and `column` of the tile, plus the lane's group of four and its place in it; see below."""
    return lambda lane: (lane // 4 + row, lane % 4 * step + column + pair)


def _turned(place: Place) -> Place:
    return lambda lane: place(lane)[::-1]


_C = tuple(_at(8 * (i // 2), 0, i % 2, 2) for i in range(4))
SHAPES: dict[str, MmaShape] = {
    "m16n8k16": MmaShape(
        16, 8, 16, ("f16", "bf16"),
        tuple(_at(8 * (i // 2 % 2), 8 * (i // 4), i % 2, 2) for i in range(8)),
        tuple(_turned(_at(0, 8 * (i // 2), i % 2, 2)) for i in range(4)),
        _C,
    ),
    "m16n8k8": MmaShape(
        16, 8, 8, ("f32",),
        tuple(_at(8 * (i % 2), 4 * (i // 2), 0, 1) for i in range(4)),
        tuple(_turned(_at(0, 4 * i, 0, 1)) for i in range(2)),
        _C,
    ),
}  # fmt: skip

__all__ = ["SHAPES", "MmaShape", "Place"]
