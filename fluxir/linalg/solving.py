"""Cholesky, triangular systems, LU, and what follows from them: solve, inverse, determinant.

The functions that carry a rule are the private ones; the public ones check, broadcast and call them. A solution has the
derivative of a solution (Giles, "Collected matrix derivative results for forward and reverse mode algorithmic
differentiation", 2008), never that of the elimination: `_solution` takes the factors it was computed from as arguments
without derivative, so that all orders go through the matrix itself and reuse one factorisation.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from fluxir.custom import custom_jvp, custom_vjp
from fluxir.errors import error
from fluxir.frontend.api_creation import iota, stop_gradient, tril, triu, zeros_like
from fluxir.frontend.api_elementwise import abs as abs_
from fluxir.frontend.api_elementwise import log, sign, where
from fluxir.frontend.api_indexing import argsort, take_along_axis
from fluxir.frontend.api_manipulation import broadcast_shapes, concat, moveaxis, reshape
from fluxir.frontend.api_reduce import prod
from fluxir.frontend.api_reduce import sum as sum_
from fluxir.frontend.linalg_loops import cholesky_loop, eye_like, lu_loop, mt, substitute, triangular_cofactors
from fluxir.frontend.tensor import Tensor, cast, constant, emit
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import minimum
from fluxir.linalg.operands import diagonal_of, matrix, on_diagonal, right_side, square, with_batch


class SlogdetResult(NamedTuple):
    """The sign of a determinant, and the logarithm of its size."""

    sign: Any
    logabsdet: Any


# ---- triangles ------------------------------------------------------------------------------------------------------------


@functools.cache
def _triangular(lower: bool, transposed: bool, unit: bool) -> custom_vjp:
    """x with a x = b, or a^T x = b; `lower` says which triangle of `a` counts."""

    def solve_triangular(a: Tensor, b: Tensor) -> Tensor:
        return substitute(mt(a) if transposed else a, b, lower=lower != transposed, unit=unit)

    f = custom_vjp(solve_triangular)

    def fwd(a: Tensor, b: Tensor) -> Any:
        x = f(a, b)
        return x, (a, x)

    def bwd(kept: Any, g: Tensor) -> Any:
        a, x = kept
        db = _triangular(lower, not transposed, unit)(a, g)
        da = x @ mt(db) if transposed else db @ mt(x)
        return -(tril(da, k=-1 if unit else 0) if lower else triu(da, k=1 if unit else 0)), db

    f.defvjp(fwd, bwd)
    return f


def right_divide(triangle: Tensor, b: Tensor, *, lower: bool = False, transposed: bool = False) -> Tensor:
    """x with x t = b, or x t^T = b."""
    return mt(_triangular(lower, not transposed, False)(triangle, mt(b)))


@public
def solve_triangular(a: Any, b: Any, trans: Any = 0, lower: bool = False, unit_diagonal: bool = False) -> Tensor:
    """x with a x = b (`trans` 0 or "N") or a^T x = b (1 or "T") for a triangular matrix; SciPy's arguments.

    Only the triangle that `lower` names is read, without its diagonal if that is all ones (`unit_diagonal`). `b` is a
    vector if it has one axis, else matrices; batch axes broadcast. A zero on the diagonal gives inf or NaN.
    """
    if trans not in (0, 1, "N", "T"):
        raise error("FX0221", f"solve_triangular: trans is 0, 1, 'N' or 'T', not {trans!r}", loc=here())
    m = square("solve_triangular", a)
    return _solved("solve_triangular", m, b, _triangular(bool(lower), trans in (1, "T"), bool(unit_diagonal)))


def _solved(name: str, a: Tensor, b: Any, run: Any) -> Tensor:
    """`run(a, b)` with `b` made matrices and batch axes broadcast."""
    a, x, vector = right_side(name, a, b)
    if a.ndim == 2 and x.ndim > 2:  # one matrix, many right sides: all are columns
        front = x.shape[:-2]
        columns = reshape(moveaxis(x, -2, 0), (x.shape[-2], -1))
        return moveaxis(reshape(run(a, columns), (x.shape[-2], *front, x.shape[-1])), 0, -2)
    batch = broadcast_shapes(a.shape[:-2], x.shape[:-2])
    y: Tensor = run(with_batch(a, batch), with_batch(x, batch))
    return y[..., 0] if vector else y


# ---- Cholesky -------------------------------------------------------------------------------------------------------------


@custom_jvp
def _cholesky(a: Tensor) -> Tensor:
    return cholesky_loop(a)


@_cholesky.defjvp
def _cholesky_rule(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    l = _cholesky(a)
    inner = right_divide(l, _triangular(True, False, False)(l, da), lower=True, transposed=True)
    half = where(on_diagonal(a.shape[-1]), inner * 0.5, tril(inner, k=-1))
    return l, l @ half


def symmetric(a: Tensor) -> Tensor:
    """The symmetric part: what functions of symmetric matrices are functions of, so that their gradients are symmetric."""
    return emit("mul", emit("add", a, mt(a)), constant(0.5, a.dtype))


@public
def cholesky(x: Any, /, *, upper: bool = False) -> Tensor:
    """The lower triangle l with l l^T = x (the upper one u with u^T u = x) of symmetric positive definite matrices.

    Of `x` its symmetric part counts. Where `x` is not positive definite the result holds NaN, from the first failing
    column on. The gradient is symmetric.
    """
    l: Tensor = _cholesky(symmetric(square("cholesky", x)))
    return mt(l) if upper else l


@public
def cho_solve(c_and_lower: tuple[Any, bool], b: Any) -> Tensor:
    """x with a x = b from the Cholesky factor of `a`: `cho_solve((c, lower), b)`, SciPy's arguments."""
    c, lower = c_and_lower
    m = square("cho_solve", c)

    def run(m: Tensor, b: Tensor) -> Tensor:
        y = _triangular(lower, not lower, False)(m, b)
        z: Tensor = _triangular(lower, bool(lower), False)(m, y)
        return z

    return _solved("cho_solve", m, b, run)


# ---- LU -------------------------------------------------------------------------------------------------------------------


@custom_jvp
def _lu(a: Tensor) -> tuple[Tensor, Tensor]:
    return lu_loop(a)


@_lu.defjvp
def _lu_rule(primals: Any, tangents: Any) -> Any:
    """With l^-1 da[perm] u^-1 = x: dl = l tril(x, -1), du = triu(x) u; l and u made square by parts of identities."""
    (a,), (da,) = primals, tangents
    packed, perm = _lu(a)
    m, n = a.shape[-2:]
    k = minimum(m, n)
    l, u = _triangles(packed)
    if m != k:
        l = concat([l, eye_like(a, m)[..., :, k:]], axis=-1)
    if n != k:
        u = concat([u, eye_like(a, n)[..., k:, :]], axis=-2)
    x = _triangular(True, False, True)(l, take_along_axis(da, perm[..., None], axis=-2))
    x = right_divide(u, x, lower=False)
    return (packed, perm), (l @ tril(x, k=-1) + triu(x) @ u, zeros_like(perm))


def _triangles(packed: Tensor) -> tuple[Tensor, Tensor]:
    m, n = packed.shape[-2:]
    k = minimum(m, n)
    return tril(packed[..., :, :k], k=-1) + eye_like(packed, m, k), triu(packed[..., :k, :])


@public
def lu_factor(a: Any) -> tuple[Tensor, Tensor]:
    """(lu, perm): both triangles in one matrix (the ones on the diagonal of l are left out), and the row order, with
    l u = a[perm]. `a` is [..., m, n]. SciPy returns the swaps instead of the order."""
    packed, perm = _lu(matrix("lu_factor", a))
    return packed, perm


@public
def lu(a: Any, permute_l: bool = False, p_indices: bool = False) -> tuple[Tensor, ...]:
    """(p, l, u) with a = p l u, by partial pivoting; SciPy's arguments.

    `permute_l`: (p l, u). `p_indices`: p as an order of rows, with a = l[p]. `a` is [..., m, n], l [..., m, k] and u
    [..., k, n] with k = min(m, n).
    """
    t = matrix("lu", a)
    packed, perm = _lu(t)
    l, u = _triangles(packed)
    back = argsort(perm, axis=-1)
    if permute_l:
        return take_along_axis(l, back[..., None], axis=-2), u
    if p_indices:
        return back, l, u
    return cast(back[..., None] == iota((t.shape[-2],)), t.dtype), l, u


def _substituted(packed: Tensor, perm: Tensor, b: Tensor, transposed: bool) -> Tensor:
    if not transposed:
        y = substitute(packed, take_along_axis(b, perm[..., None], axis=-2), lower=True, unit=True)
        return substitute(packed, y, lower=False, unit=False)
    y = substitute(mt(packed), b, lower=True, unit=False)
    y = substitute(mt(packed), y, lower=False, unit=True)
    return take_along_axis(y, argsort(perm, axis=-1)[..., None], axis=-2)


@functools.cache
def _solution(transposed: bool) -> custom_vjp:
    """x with a x = b, or a^T x = b, computed from a's factors, which have no derivative of their own."""

    def solve(a: Tensor, packed: Tensor, perm: Tensor, b: Tensor) -> Tensor:
        return _substituted(packed, perm, b, transposed)

    f = custom_vjp(solve)

    def fwd(a: Tensor, packed: Tensor, perm: Tensor, b: Tensor) -> Any:
        x = f(a, packed, perm, b)
        return x, (a, packed, perm, x)

    def bwd(kept: Any, g: Tensor) -> Any:
        a, packed, perm, x = kept
        db = _solution(not transposed)(a, packed, perm, g)
        return -(x @ mt(db) if transposed else db @ mt(x)), None, None, db

    f.defvjp(fwd, bwd)
    return f


def _factors(a: Tensor) -> tuple[Tensor, Tensor]:
    packed, perm = lu_loop(stop_gradient(a))
    return stop_gradient(packed), perm


@public
def lu_solve(lu_and_perm: tuple[Any, Any], b: Any, trans: int = 0) -> Tensor:
    """x with a x = b, or a^T x = b (`trans` 1), from `lu_factor(a)`. `b` as in `solve`."""
    packed, perm = lu_and_perm
    m = square("lu_solve", packed)

    def run(m: Tensor, b: Tensor) -> Tensor:
        order = perm if perm.ndim == m.ndim - 1 else with_batch(perm[..., None], m.shape[:-2])[..., 0]
        if trans:
            y = _triangular(True, True, True)(m, _triangular(False, True, False)(m, b))
            return take_along_axis(y, argsort(order, axis=-1)[..., None], axis=-2)
        y = _triangular(True, False, True)(m, take_along_axis(b, order[..., None], axis=-2))
        z: Tensor = _triangular(False, False, False)(m, y)
        return z

    return _solved("lu_solve", m, b, run)


@public
def solve(x1: Any, x2: Any, /) -> Tensor:
    """x with x1 x = x2, by LU with partial pivoting. `x2` is a vector if it has one axis, else matrices (as NumPy 2).

    Batch axes broadcast. A singular matrix gives inf or NaN, where NumPy raises. FX0203 where sizes differ.
    """
    a = square("solve", x1)

    def run(a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = _solution(False)(a, *_factors(a), b)
        return y

    return _solved("solve", a, x2, run)


# ---- inverse, determinant -------------------------------------------------------------------------------------------------


@custom_jvp
def _inv(a: Tensor) -> Tensor:
    packed, perm = lu_loop(a)
    return _substituted(packed, perm, eye_like(a, a.shape[-1]), False)


@_inv.defjvp
def _inv_rule(primals: Any, tangents: Any) -> Any:
    x = _inv(primals[0])
    return x, -(x @ tangents[0] @ x)


@public
def inv(x: Any, /) -> Tensor:
    """The inverse of square matrices. A singular one gives inf or NaN. To solve a system, `solve` is better."""
    y: Tensor = _inv(square("inv", x))
    return y


def _parity(perm: Tensor) -> Tensor:
    """Whether a row order is odd: by counting the pairs that stand in the wrong order."""
    n = perm.shape[-1]
    wrong = (perm[..., :, None] > perm[..., None, :]) & (iota((n, 1)) < iota((n,)))
    odd: Tensor = sum_(wrong, axis=(-2, -1)) % 2 == 1
    return odd


@custom_jvp
def _det(a: Tensor) -> Tensor:
    packed, perm = lu_loop(a)
    d = prod(diagonal_of(packed), axis=-1)
    return where(_parity(perm), -d, d)


@custom_jvp
def _cofactors(a: Tensor) -> Tensor:
    """The derivative of the determinant by the matrix: det(a) a^-T, and right where `a` is singular too.

    a[perm] = l u, so the adjugate of `a` is that of u, times l^-1, times the order and its sign.
    """
    packed, perm = lu_loop(a)
    adjugate = triangular_cofactors(triu(packed))
    x = substitute(mt(packed), mt(adjugate), lower=False, unit=True)  # the rows of this are those of a[perm]
    x = take_along_axis(x, argsort(perm, axis=-1)[..., None], axis=-2)
    return where(_parity(perm)[..., None, None], -x, x)


@_det.defjvp
def _det_rule(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    return _det(a), sum_(_cofactors(a) * da, axis=(-2, -1))


@_cofactors.defjvp
def _cofactors_rule(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    c = _cofactors(a)
    along = sum_(c * da, axis=(-2, -1), keepdims=True)
    return c, (along * c - c @ mt(da) @ c) / _det(a)[..., None, None]


@public
def det(x: Any, /) -> Tensor:
    """The determinant of square matrices.

    The gradient is right for singular matrices too (the cofactors); second derivatives there are NaN.
    """
    y: Tensor = _det(square("det", x))
    return y


@custom_jvp
def _slogdet(a: Tensor, packed: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    d = diagonal_of(packed)
    s = prod(sign(d), axis=-1)
    return where(_parity(perm), -s, s), sum_(log(abs_(d)), axis=-1)


@_slogdet.defjvp
def _slogdet_rule(primals: Any, tangents: Any) -> Any:
    a, packed, perm = primals
    s, size = _slogdet(a, packed, perm)
    moved = _solution(False)(a, packed, perm, tangents[0])
    return (s, size), (zeros_like(s), sum_(diagonal_of(moved), axis=-1))


@public
def slogdet(x: Any, /) -> SlogdetResult:
    """(sign, logabsdet): the determinant as sign * exp(logabsdet), without overflow. A singular matrix gives (0, -inf)."""
    a = square("slogdet", x)
    s, size = _slogdet(a, *_factors(a))
    return SlogdetResult(s, size)


__all__ = [
    "SlogdetResult", "cho_solve", "cholesky", "det", "inv", "lu", "lu_factor", "lu_solve", "right_divide", "slogdet", "solve",
    "solve_triangular", "symmetric",
]  # fmt: skip
