"""What is made of the factorisations: pseudo-inverse, rank, norms, condition number, least squares, powers, exponential."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fluxir.custom import custom_jvp
from fluxir.errors import error
from fluxir.frontend.api_creation import eye, stop_gradient, zeros, zeros_like
from fluxir.frontend.api_elementwise import abs as abs_
from fluxir.frontend.api_elementwise import ceil, float_operand, log2, minimum, where
from fluxir.frontend.api_linalg import diagonal as _diagonal
from fluxir.frontend.api_linalg import matmul, root_of_squares, vector_norm
from fluxir.frontend.api_manipulation import broadcast_shapes, moveaxis, reshape
from fluxir.frontend.api_reduce import axes_of
from fluxir.frontend.api_reduce import max as max_
from fluxir.frontend.api_reduce import min as min_
from fluxir.frontend.api_reduce import sum as sum_
from fluxir.frontend.control import while_loop
from fluxir.frontend.linalg_loops import eye_like, is_zero, mt
from fluxir.frontend.tensor import Tensor, as_dtype, as_tensor, cast, constant, emit
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import maximum as larger
from fluxir.ir.dims import require_equal
from fluxir.linalg.operands import is_tall, matrix, right_side, square, with_batch
from fluxir.linalg.solving import inv, solve, solve_triangular
from fluxir.linalg.spectral import qr, svd, svdvals


class LstsqResult(NamedTuple):
    """NumPy's four results of `lstsq`."""

    x: Any
    residuals: Any
    rank: Any
    s: Any


# ---- diagonals ------------------------------------------------------------------------------------------------------------


@public
def diagonal(x: Any, /, *, offset: int = 0) -> Tensor:
    """The diagonal of the last two axes, as the last axis."""
    return _diagonal(x, offset, -2, -1)


@public
def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sum of the diagonal of the last two axes."""
    d = diagonal(x, offset=offset)
    return sum_(d if dtype is None else cast(d, as_dtype(dtype)), axis=-1)


# ---- rank, pseudo-inverse -------------------------------------------------------------------------------------------------


def _cutoff(a: Tensor, s: Tensor, rtol: Any) -> Tensor:
    """The size below which singular values count as zero, [..., 1]; by default max(m, n) * eps of the largest."""
    r = _relative(a, rtol)
    return emit("mul", s[..., :1], r[..., None] if r.ndim else r)


def _relative(a: Tensor, rtol: Any) -> Tensor:
    if rtol is not None:
        return cast(as_tensor(rtol), a.dtype)
    n = cast(as_tensor(larger(*a.shape[-2:])), a.dtype)
    return emit("mul", n, constant(np.finfo(a.dtype.numpy).eps, a.dtype))


@custom_jvp
def _pinv(a: Tensor, rtol: Tensor) -> Tensor:
    if any(is_zero(d) for d in a.shape[-2:]):
        return zeros_like(mt(a))
    u, s, vh = svd(a, full_matrices=False)
    kept = s > _cutoff(a, s, rtol)
    inverse = where(kept, 1 / where(kept, s, 1), 0)[..., None, :]
    return matmul(mt(vh) * inverse, mt(u))


@_pinv.defjvp
def _pinv_rule(primals: Any, tangents: Any) -> Any:
    """Golub and Pereyra, "The differentiation of pseudo-inverses" (1973); the rank is taken as constant."""
    (a, rtol), (da, _) = primals, tangents
    p = _pinv(a, rtol)
    m, n = a.shape[-2:]
    pt, dat = mt(p), mt(da)
    rows = p @ pt @ dat @ (eye_like(a, m) - a @ p)
    columns = (eye_like(a, n) - p @ a) @ dat @ pt @ p
    return p, rows + columns - p @ da @ p


@public
def pinv(x: Any, /, *, rtol: Any = None) -> Tensor:
    """The Moore-Penrose inverse. Singular values up to `rtol` (default max(m, n) * eps) times the largest count as zero."""
    a = matrix("pinv", x)
    y: Tensor = _pinv(a, _relative(a, rtol))
    return y


@public
def matrix_rank(x: Any, /, *, rtol: Any = None, tol: Any = None) -> Tensor:
    """The number of singular values above `tol`, or above `rtol` (default max(m, n) * eps) times the largest; i64."""
    a = matrix("matrix_rank", x)
    s = svdvals(a)
    if tol is None:
        return sum_(s > _cutoff(a, s, rtol), axis=-1)
    t = cast(as_tensor(tol), a.dtype)
    return sum_(s > (t[..., None] if t.ndim else t), axis=-1)


# ---- norms ----------------------------------------------------------------------------------------------------------------


@public
def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Tensor:
    """The norm of the last two axes: "fro", "nuc" (sum of singular values), 1, -1, 2, -2, inf, -inf.

    The gradient of "fro" at a zero matrix is 0. Those of 2, -2 and "nuc" are those of the singular values: where the
    largest (smallest) one is double, that of the first of them.
    """
    t = float_operand("matrix_norm", x)
    if t.ndim < 2:
        raise error(
            "FX0220", f"a matrix has 2 axes, {t.type} has {t.ndim}", help="use fx.linalg.vector_norm", loc=here()
        )
    if ord == "fro":
        return root_of_squares(t, (-2, -1), keepdims)
    if ord in ("nuc", 2, -2):
        s = svdvals(t)
        r = sum_(s, axis=-1) if ord == "nuc" else s[..., 0 if ord == 2 else -1]
    elif ord in (1, -1, math.inf, -math.inf):
        sums = sum_(abs_(t), axis=-2 if abs(ord) == 1 else -1)
        r = (max_ if ord > 0 else min_)(sums, axis=-1)
    else:
        orders = 'orders: "fro", "nuc", 1, -1, 2, -2, inf, -inf'
        raise error("FX0221", f"matrix_norm: no order {ord!r}", help=orders, loc=here())
    return r[..., None, None] if keepdims else r


@public
def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Tensor:
    """numpy's norm: of vectors along one axis, of matrices along two, of all elements by default."""
    t = float_operand("norm", x)
    if axis is None and (ord is None or t.ndim == 1):
        return vector_norm(t, keepdims=keepdims, ord=2 if ord is None else ord)
    axes = axes_of("norm", t, axis) if axis is not None else tuple(range(t.ndim))
    if len(axes) == 1:
        return vector_norm(t, axis=axes[0], keepdims=keepdims, ord=2 if ord is None else ord)
    if len(axes) != 2:
        raise error("FX0220", f"norm of order {ord!r} over {len(axes)} axes", help="name one axis or two", loc=here())
    first, second = axis if axis is not None else axes
    r = matrix_norm(moveaxis(t, (first, second), (-2, -1)), ord="fro" if ord is None else ord)
    if not keepdims:
        return r
    return reshape(r, tuple(1 if i in axes else d for i, d in enumerate(t.shape)))


@public
def cond(x: Any, /, p: Any = None) -> Tensor:
    """The condition number: the largest singular value over the smallest (`p` None or 2; -2: the reverse), for other norms
    norm(x, p) * norm(inv(x), p)."""
    if p in (None, 2, -2):
        s = svdvals(matrix("cond", x))
        high, low = s[..., 0], s[..., -1]
        return emit("div", low, high) if p == -2 else emit("div", high, low)
    a = square("cond", x)
    return emit("mul", matrix_norm(a, ord=p), matrix_norm(inv(a), ord=p))


# ---- least squares --------------------------------------------------------------------------------------------------------


@public
def lstsq(a: Any, b: Any, rcond: Any = None) -> LstsqResult:
    """(x, residuals, rank, s): x with the least |a x - b|, and the least |x| where a is wide; NumPy's results.

    Solved by QR, so `a` must have full rank: `rank` and the singular values `s` (with `rcond` as in `matrix_rank`) show
    whether it has, and are computed only if they are used. For other matrices take `pinv(a) @ b`. `residuals` are sums of
    squares of a x - b for each column, empty unless a has more rows than columns. Batch axes broadcast.
    """
    m = matrix("lstsq", a)
    m, y, vector = right_side("lstsq", m, b)
    batch = broadcast_shapes(m.shape[:-2], y.shape[:-2])
    m, y = with_batch(m, batch), with_batch(y, batch)
    rows, columns = m.shape[-2:]
    residuals = zeros((*batch, 0), dtype=m.dtype)
    if is_tall("lstsq", m):
        q, r = qr(m)
        x = solve_triangular(r, mt(q) @ y)
        if rows != columns:
            left = y - m @ x
            residuals = sum_(left * left, axis=-2)
    else:
        q, r = qr(mt(m))
        x = q @ solve_triangular(r, y, trans=1)
    s = svdvals(m)
    return LstsqResult(x[..., 0] if vector else x, residuals, sum_(s > _cutoff(m, s, rcond), axis=-1), s)


# ---- powers, exponential --------------------------------------------------------------------------------------------------


@public
def matrix_power(x: Any, n: int, /) -> Tensor:
    """A square matrix multiplied with itself n times; the inverse is for negative n."""
    t = as_tensor(x)
    if t.ndim < 2 or not require_equal(t.shape[-1], t.shape[-2]):
        raise error("FX0220", f"matrix_power takes square matrices, not {t.type}", loc=here())
    if n < 0:
        t, n = inv(t), -n
    if n == 0:
        return emit("broadcast", eye(t.shape[-1], dtype=t.dtype), shape=t.shape)
    result: Tensor | None = None
    while n:
        if n & 1:
            result = t if result is None else result @ t
        n >>= 1
        t = t @ t if n else t
    assert result is not None
    return result


# Higham, "The scaling and squaring method for the matrix exponential revisited" (2005): the coefficients of the Pade
# approximant of degree 13, and the norm up to which it is exact in double precision.
_PADE = (64764752532480000., 32382376266240000., 7771770303897600., 1187353796428800., 129060195264000., 10559470521600.,
         670442572800., 33522128640., 1323241920., 40840800., 960960., 16380., 182., 1.)  # fmt: skip
_THETA = 5.371920351148152


@public
def expm(x: Any, /) -> Tensor:
    """The matrix exponential of square matrices: scaling and squaring with the Pade approximant of degree 13 (Higham 2005).

    How often to square follows from the norm at run time. Derivatives of every order go through the squarings.
    """
    a = square("expm", x)
    if is_zero(a.shape[-1]):
        return a
    size = max_(sum_(abs_(stop_gradient(a)), axis=-2, keepdims=True), axis=-1, keepdims=True)
    count = where(size > _THETA, ceil(log2(where(size > _THETA, size, 1) / _THETA)), 0)
    count = minimum(count, 1024)  # a matrix with inf in it ends too
    a = a * emit("exp2", -count)
    one = eye_like(a, a.shape[-1])
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a2 @ a4
    c = _PADE
    odd = a6 @ (c[13] * a6 + c[11] * a4 + c[9] * a2) + c[7] * a6 + c[5] * a4 + c[3] * a2 + c[1] * one
    even = a6 @ (c[12] * a6 + c[10] * a4 + c[8] * a2) + c[6] * a6 + c[4] * a4 + c[2] * a2 + c[0] * one
    odd = a @ odd
    r = solve(even - odd, even + odd)
    last = max_(count, initial=0)

    def square_again(state: Any) -> Any:
        r, k = state
        return where(k < count, r @ r, r), k + 1

    return while_loop(lambda s: s[1] < last, square_again, (r, zeros((), dtype=a.dtype)))[0]  # type: ignore[no-any-return]


__all__ = [
    "LstsqResult", "cond", "diagonal", "expm", "lstsq", "matrix_norm", "matrix_power", "matrix_rank", "norm", "pinv",
    "trace",
]  # fmt: skip
