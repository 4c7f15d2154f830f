"""`fx.linalg`: the Array API linear algebra extension and numpy's names, without decompositions."""

from __future__ import annotations

from typing import Any

from fluxir.frontend.api_linalg import (
    cross,
    matmul,
    matrix_norm,
    matrix_power,
    matrix_transpose,
    multi_dot,
    norm,
    outer,
    tensordot,
    vecdot,
    vector_norm,
)
from fluxir.frontend.api_linalg import diagonal as _diagonal
from fluxir.frontend.api_reduce import sum as _sum
from fluxir.frontend.tensor import Tensor, as_dtype, cast
from fluxir.frontend.trace import public


@public
def diagonal(x: Any, /, *, offset: int = 0) -> Tensor:
    """The diagonal of the last two axes, as the last axis."""
    return _diagonal(x, offset, -2, -1)


@public
def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sum of the diagonal of the last two axes."""
    d = diagonal(x, offset=offset)
    return _sum(d if dtype is None else cast(d, as_dtype(dtype)), axis=-1)


__all__ = [
    "cross", "diagonal", "matmul", "matrix_norm", "matrix_power", "matrix_transpose", "multi_dot", "norm", "outer",
    "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip
