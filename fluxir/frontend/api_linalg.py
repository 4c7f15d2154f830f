"""Products of tensors: matmul and its kin, diagonals, norms of vectors.

All of them are one op, `dot`, with the axes arranged around it. Operands meet in a common type first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_creation import _diagonal_mask, iota
from fluxir.frontend.api_elementwise import float_operand
from fluxir.frontend.api_manipulation import moveaxis, reshape, swapaxes
from fluxir.frontend.api_reduce import max as max_
from fluxir.frontend.api_reduce import min as min_
from fluxir.frontend.api_reduce import sum as sum_
from fluxir.frontend.tensor import Tensor, as_tensor, cast, constant, emit, local_names, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, maximum, minimum, require_equal
from fluxir.ir.dtypes import i64
from fluxir.ops.rules import broadcast_shapes, normal_axes


def _numbers(name: str, *xs: Any) -> list[Tensor]:
    ts = promote_operands(*xs)
    if ts[0].dtype.is_bool:
        raise error(
            "FX0209", f"{name} takes numbers, not {ts[0].type}", help="cast it first: x.astype('i32')", loc=here()
        )
    return ts


def _check_inner(
    name: str, x: Tensor, y: Tensor, xs: Sequence[int], ys: Sequence[int], originals: Sequence[Any]
) -> None:
    """FX0203 unless the contracted sizes agree; names the operands as the user does."""
    for a, b in zip(xs, ys, strict=True):
        if not require_equal(x.shape[a], y.shape[b]):
            known = local_names()
            n1, n2 = (
                known.get(id(o), w) for o, w in zip(originals, ("the left operand", "the right operand"), strict=True)
            )
            raise error(
                "FX0203",
                f"{name}: inner dimensions differ: {x.shape[a]} ({n1}, axis {a}) is not {y.shape[b]} ({n2}, axis {b})",
                labels=[(n1, str(x.type)), (n2, str(y.type))],
                help=f"{n2} would need {x.shape[a]} there; if it is stored transposed, write {n2}.mT"
                if y.ndim > 1
                else None,
                loc=here(),
            )


@public
def matmul(x1: Any, x2: Any, /) -> Tensor:
    """The matrix product of the last two axes; other axes broadcast. A vector is a row on the left, a column on the right.

    FX0203 where the inner sizes differ, FX0220 for scalars.
    """
    x, y = _numbers("matmul", x1, x2)
    if not x.ndim or not y.ndim:
        raise error(
            "FX0220",
            f"matmul needs at least one axis on both sides: {x.type} and {y.type}",
            help="multiply by a scalar with *",
            loc=here(),
        )
    inner = max(y.ndim - 2, 0)
    _check_inner("matmul", x, y, (x.ndim - 1,), (inner,), (x1, x2))
    if y.ndim <= 2:  # no batch on the right: the left's axes are all rows
        return emit("dot", x, y, lhs_contract=(x.ndim - 1,), rhs_contract=(inner,))
    if x.ndim == 1:
        return emit("dot", x, y, lhs_contract=(0,), rhs_contract=(inner,))
    if x.ndim == 2:
        r = emit("dot", x, y, lhs_contract=(1,), rhs_contract=(inner,))  # rows, batch..., columns
        return moveaxis(r, 0, -2)
    batch = broadcast_shapes("matmul", [x.shape[:-2], y.shape[:-2]])
    x = _with_batch(x, batch)
    y = _with_batch(y, batch)
    n = len(batch)
    return emit(
        "dot", x, y, lhs_contract=(n + 1,), rhs_contract=(n,), lhs_batch=tuple(range(n)), rhs_batch=tuple(range(n))
    )


def _with_batch(x: Tensor, batch: tuple[Dim, ...]) -> Tensor:
    shape = (*batch, *x.shape[-2:])
    return x if x.shape == shape else emit("broadcast", x, shape=shape)


@public
def tensordot(x1: Any, x2: Any, /, axes: Any = 2) -> Tensor:
    """The sum of products over pairs of axes: the last `axes` of x1 with the first of x2, or two lists of axes."""
    x, y = _numbers("tensordot", x1, x2)
    if hasattr(axes, "__index__"):
        k = axes.__index__()
        if k < 0 or k > min(x.ndim, y.ndim):
            raise error("FX0205", f"tensordot: {k} axes of {x.type} and {y.type}", loc=here())
        xs, ys = tuple(range(x.ndim - k, x.ndim)), tuple(range(k))
    else:
        first, second = (a if isinstance(a, tuple | list) else (a,) for a in axes)
        xs, ys = normal_axes("tensordot", first, x.ndim), normal_axes("tensordot", second, y.ndim)
    if len(xs) != len(ys):
        raise error("FX0221", f"tensordot: {len(xs)} axes on the left, {len(ys)} on the right", loc=here())
    _check_inner("tensordot", x, y, xs, ys, (x1, x2))
    return emit("dot", x, y, lhs_contract=xs, rhs_contract=ys)


@public
def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Tensor:
    """The sum of products along one axis; the others broadcast."""
    x, y = _numbers("vecdot", x1, x2)
    x, y = moveaxis(x, axis, -1), moveaxis(y, axis, -1)
    _check_inner("vecdot", x, y, (x.ndim - 1,), (y.ndim - 1,), (x1, x2))
    batch = broadcast_shapes("vecdot", [x.shape[:-1], y.shape[:-1]])
    x, y = (t if t.shape[:-1] == batch else emit("broadcast", t, shape=(*batch, t.shape[-1])) for t in (x, y))
    n = tuple(range(len(batch)))
    return emit("dot", x, y, lhs_contract=(len(n),), rhs_contract=(len(n),), lhs_batch=n, rhs_batch=n)


@public
def matvec(x1: Any, x2: Any, /) -> Tensor:
    """Matrices times vectors: [..., m, n] and [..., n] give [..., m]."""
    return matmul(x1, reshape(x2, (*as_tensor(x2).shape, 1)))[..., 0]


@public
def vecmat(x1: Any, x2: Any, /) -> Tensor:
    """Vectors times matrices: [..., n] and [..., n, m] give [..., m]."""
    x = as_tensor(x1)
    return matmul(reshape(x, (*x.shape[:-1], 1, x.shape[-1])), x2)[..., 0, :]


@public
def dot(x1: Any, x2: Any, /) -> Tensor:
    """numpy's dot: a product with a scalar, else the last axis of x1 with the second to last (or only) one of x2."""
    x, y = promote_operands(x1, x2)
    if not x.ndim or not y.ndim:
        return emit("mul", x, y)
    x, y = _numbers("dot", x, y)
    inner = max(y.ndim - 2, 0)
    _check_inner("dot", x, y, (x.ndim - 1,), (inner,), (x1, x2))
    return emit("dot", x, y, lhs_contract=(x.ndim - 1,), rhs_contract=(inner,))


@public
def vdot(x1: Any, x2: Any, /) -> Tensor:
    """The sum of products of all elements."""
    x, y = _numbers("vdot", x1, x2)
    x, y = reshape(x, (-1,)), reshape(y, (-1,))
    _check_inner("vdot", x, y, (0,), (0,), (x1, x2))
    return emit("dot", x, y, lhs_contract=(0,), rhs_contract=(0,))


@public
def inner(x1: Any, x2: Any, /) -> Tensor:
    """The sum of products over the last axis of both."""
    x, y = promote_operands(x1, x2)
    if not x.ndim or not y.ndim:
        return emit("mul", x, y)
    _check_inner("inner", x, y, (x.ndim - 1,), (y.ndim - 1,), (x1, x2))
    return emit("dot", x, y, lhs_contract=(x.ndim - 1,), rhs_contract=(y.ndim - 1,))


@public
def outer(x1: Any, x2: Any, /) -> Tensor:
    """All products of an element of x1 with one of x2 (both raveled)."""
    x, y = promote_operands(x1, x2)
    return emit("mul", reshape(x, (-1, 1)), reshape(y, (-1,)))


@public
def kron(x1: Any, x2: Any, /) -> Tensor:
    """The Kronecker product."""
    x, y = promote_operands(x1, x2)
    rank = max(x.ndim, y.ndim)
    xs = (*[1] * (rank - x.ndim), *x.shape)
    ys = (*[1] * (rank - y.ndim), *y.shape)
    r = emit("mul", reshape(x, tuple(d for n in xs for d in (n, 1))), reshape(y, tuple(d for n in ys for d in (1, n))))
    return reshape(r, tuple(a * b for a, b in zip(xs, ys, strict=True)))


@public
def cross(x1: Any, x2: Any, /, *, axis: int = -1) -> Tensor:
    """The cross product of vectors of 3 along `axis`."""
    x, y = promote_operands(x1, x2)
    x, y = moveaxis(x, axis, -1), moveaxis(y, axis, -1)
    if x.shape[-1] != 3 or y.shape[-1] != 3:
        raise error("FX0221", f"cross takes vectors of 3, not {x.shape[-1]} and {y.shape[-1]}", loc=here())
    a, b, c = (x[..., i] for i in range(3))
    d, e, f = (y[..., i] for i in range(3))
    from fluxir.frontend.api_manipulation import stack

    return stack([b * f - c * e, c * d - a * f, a * e - b * d], axis=axis)


@public
def matrix_transpose(x: Any, /) -> Tensor:
    """The last two axes swapped."""
    t = as_tensor(x)
    if t.ndim < 2:
        raise error("FX0220", f"a matrix needs two axes, {t.type} has {t.ndim}", loc=here())
    return swapaxes(t, -1, -2)


# ---- diagonals --------------------------------------------------------------------------------------------------------------


@public
def diagonal(x: Any, /, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The diagonal of two axes, as the last axis."""
    t = as_tensor(x)
    if t.ndim < 2:
        raise error("FX0220", f"a diagonal needs two axes, {t.type} has {t.ndim}", loc=here())
    a, b = normal_axes("diagonal", (axis1, axis2), t.ndim)
    rows, cols = t.shape[a], t.shape[b]
    n = maximum(minimum(rows, cols - offset) if offset >= 0 else minimum(rows + offset, cols), 0)
    i = iota((n,))
    shifted = emit("add", i, constant(abs(offset), i64)) if offset else i
    r = emit("gather", t, *((i, shifted) if offset >= 0 else (shifted, i)), axes=(a, b))
    return moveaxis(r, 0, -1)


@public
def trace(x: Any, /, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The sum of the diagonal of two axes (numpy's first two by default)."""
    return sum_(diagonal(x, offset, axis1, axis2), axis=-1)


@public
def diag(x: Any, /, k: int = 0) -> Tensor:
    """A vector on the k-th diagonal of a matrix of zeros, or the k-th diagonal of a matrix."""
    t = as_tensor(x)
    if t.ndim == 2:
        return diagonal(t, k)
    if t.ndim != 1:
        raise error("FX0220", f"diag takes a vector or a matrix, not {t.type}", loc=here())
    n = t.shape[0] + abs(k)
    mask = _diagonal_mask(n, n, k, "eq")
    zero = constant(0, t.dtype)
    row = emit("pad", t, zero, low=(max(k, 0),), high=(max(-k, 0),))
    return emit("select", mask, row if k >= 0 else reshape(_shifted(t, -k), (n, 1)), zero)


def _shifted(t: Tensor, k: int) -> Tensor:
    return emit("pad", t, constant(0, t.dtype), low=(k,), high=(0,))


@public
def diagflat(x: Any, k: int = 0) -> Tensor:
    """All elements on the k-th diagonal of a matrix of zeros."""
    return diag(reshape(x, (-1,)), k)


@public
def vander(x: Any, n: int | None = None, increasing: bool = False) -> Tensor:
    """Powers of the elements as columns."""
    t = as_tensor(x)
    count = n if n is not None else t.shape[0]
    powers = np.arange(int(count)) if increasing else np.arange(int(count))[::-1]
    return emit("pow", reshape(t, (-1, 1)), as_tensor(powers.astype(t.dtype.numpy)))


# ---- fx.linalg ----------------------------------------------------------------------------------------------------------------


def root_of_squares(t: Tensor, axis: Any, keepdims: bool) -> Tensor:
    """The Euclidean norm over `axis`. Its gradient at 0 is 0: the root is taken of 1 there, and not used."""
    s = sum_(emit("mul", t, t), axis=axis, keepdims=keepdims)
    zero = constant(0, t.dtype)
    none = emit("eq", s, zero)
    return emit("select", none, zero, emit("sqrt", emit("select", none, constant(1, t.dtype), s)))


@public
def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Tensor:
    """The norm of the elements along `axis`: any order, including 0 (count of non-zeros), inf, -inf.

    The gradient of the 2-norm at a zero vector is 0.
    """
    t = float_operand("norm", x)
    if isinstance(ord, str):
        raise error(
            "FX0220",
            f"the norm {ord!r} is one of matrices, {t.type} is taken as a vector",
            help="give two axes",
            loc=here(),
        )
    size = emit("abs", t)
    if ord == math.inf:
        return max_(size, axis=axis, keepdims=keepdims)
    if ord == -math.inf:
        return min_(size, axis=axis, keepdims=keepdims)
    if ord == 0:
        return sum_(cast(emit("ne", t, constant(0, t.dtype)), t.dtype), axis=axis, keepdims=keepdims)
    if ord == 1:
        return sum_(size, axis=axis, keepdims=keepdims)
    if ord == 2:
        return root_of_squares(t, axis, keepdims)
    p = float(ord)
    total = sum_(emit("pow", size, constant(p, t.dtype)), axis=axis, keepdims=keepdims)
    return emit("pow", total, constant(1 / p, t.dtype))


@public
def multi_dot(arrays: Sequence[Any]) -> Tensor:
    """The product of a chain of matrices in the cheapest order (by dynamic programming where all sizes are known)."""
    ts = promote_operands(*arrays)
    if len(ts) == 1:
        return ts[0]
    first, last = ts[0].ndim == 1, ts[-1].ndim == 1
    ts[0] = reshape(ts[0], (1, -1)) if first else ts[0]
    ts[-1] = reshape(ts[-1], (-1, 1)) if last else ts[-1]
    sizes = [t.shape[0] for t in ts] + [ts[-1].shape[1]]
    r = _chain(ts, sizes) if all(isinstance(d, int) for d in sizes) else _left_to_right(ts)
    return reshape(r, tuple(d for i, d in enumerate(r.shape) if not (i == 0 and first) and not (i == 1 and last)))


def _left_to_right(ts: list[Tensor]) -> Tensor:
    r = ts[0]
    for t in ts[1:]:
        r = matmul(r, t)
    return r


def _chain(ts: list[Tensor], sizes: list[Any]) -> Tensor:
    """Cormen et al., Introduction to Algorithms, matrix-chain order."""
    n = len(ts)
    cost = [[0] * n for _ in range(n)]
    cut = [[0] * n for _ in range(n)]
    for width in range(1, n):
        for i in range(n - width):
            j = i + width
            best = min((cost[i][k] + cost[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j))
            cost[i][j], cut[i][j] = best

    def build(i: int, j: int) -> Tensor:
        return ts[i] if i == j else matmul(build(i, cut[i][j]), build(cut[i][j] + 1, j))

    return build(0, n - 1)


__all__ = [
    "cross", "diag", "diagflat", "diagonal", "dot", "inner", "kron", "matmul", "matrix_transpose", "matvec",
    "outer", "tensordot", "trace", "vander", "vdot", "vecdot", "vecmat",
]  # fmt: skip
