"""QR, eigenvalues of symmetric matrices and singular values, with their rules.

Eigenvalues and singular values come from one-sided Jacobi rotations (`orthogonal_rows`): accurate, the same for a batch, and
made of passes over whole rows. Rules: Giles (2008); Seeger et al., "Auto-differentiating linear algebra" (2017).

Vectors of equal eigenvalues (singular values) are not determined, so they have no derivative: the rules divide by the
differences and give inf or NaN there, never a number that only looks right. Values alone have one where they are simple;
`eigvalsh` and `svdvals` never divide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fluxir.custom import custom_jvp
from fluxir.errors import error
from fluxir.frontend.api_creation import full_like, stop_gradient, tril, triu, zeros
from fluxir.frontend.api_elementwise import abs as abs_
from fluxir.frontend.api_elementwise import maximum, sqrt, where
from fluxir.frontend.api_indexing import argsort, take_along_axis
from fluxir.frontend.api_manipulation import concat
from fluxir.frontend.api_reduce import max as max_
from fluxir.frontend.api_reduce import sum as sum_
from fluxir.frontend.linalg_loops import eye_like, is_zero, mt, orthogonal_rows, qr_loop
from fluxir.frontend.tensor import Tensor, as_tensor, cast, emit
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim
from fluxir.linalg.operands import diagonal_of, is_tall, matrix, on_diagonal, square
from fluxir.linalg.solving import right_divide, symmetric


class QRResult(NamedTuple):
    """An orthogonal factor and a triangle."""

    Q: Any
    R: Any


class EighResult(NamedTuple):
    """Eigenvalues in ascending order, and the eigenvectors as columns."""

    eigenvalues: Any
    eigenvectors: Any


class SVDResult(NamedTuple):
    """a = U diag(S) Vh, S in descending order."""

    U: Any
    S: Any
    Vh: Any


# ---- QR -------------------------------------------------------------------------------------------------------------------


def _scale(a: Tensor) -> Tensor:
    """What to divide by so that squares neither overflow nor vanish: the largest element, or 1 where all is well."""
    limits = np.finfo(a.dtype.numpy)
    s = max_(abs_(stop_gradient(a)), axis=(-2, -1), keepdims=True)
    far = (s > float(limits.max) ** 0.25) | ((s < float(limits.tiny) ** 0.25) & (s > 0))
    return where(far, s, 1)


@custom_jvp
def _qr(a: Tensor) -> tuple[Tensor, Tensor]:
    """(q, r) of a tall matrix, q as tall."""
    n = a.shape[-1]
    q, r = _reflected(a, n)
    return q, r[..., :n, :]


def _reflected(a: Tensor, cols: Dim) -> tuple[Tensor, Tensor]:
    if is_zero(a.shape[-1]) or is_zero(a.shape[-2]):
        return qr_loop(a, cols)
    scale = _scale(a)
    q, r = qr_loop(a / scale, cols)
    return q, triu(r) * scale


@_qr.defjvp
def _qr_rule(primals: Any, tangents: Any) -> Any:
    q, r = _qr(primals[0])
    moved = right_divide(r, tangents[0])  # da r^-1
    inner = mt(q) @ moved
    low = tril(inner, k=-1)
    turn = low - mt(low)
    return (q, r), (q @ (turn - inner) + moved, (inner - turn) @ r)


@public
def qr(x: Any, /, *, mode: str = "reduced") -> Any:
    """a = Q R by Householder reflections: Q has orthonormal columns, R is upper triangular.

    `mode` "reduced": [..., m, k] and [..., k, n] with k = min(m, n); "complete": [..., m, m] and [..., m, n]; "r": R of
    "reduced" alone. The diagonal of R may be negative, as in NumPy. The derivative needs linearly independent columns (the
    first m of them for a wide matrix). In "complete" the columns beyond n are one basis of many: their derivative is that
    of the reflections, taken through the loop.
    """
    a = matrix("qr", x)
    if mode not in ("reduced", "complete", "r"):
        raise error("FX0221", f"qr: mode is 'reduced', 'complete' or 'r', not {mode!r}", loc=here())
    m, n = a.shape[-2:]
    if not is_tall("qr", a):  # the first m columns give q, the others are turned with them
        q, r = _qr(a[..., :, :m])
        r = concat([r, mt(q) @ a[..., :, m:]], axis=-1)
    elif mode == "complete" and m != n:
        q, r = _reflected(a, m)
    else:
        q, r = _qr(a)
    return r if mode == "r" else QRResult(q, r)


# ---- eigenvalues ----------------------------------------------------------------------------------------------------------


def _tolerance(t: Tensor, n: Dim) -> Tensor:
    """The cosine below which rows of n elements count as orthogonal: rounding errors of a dot product."""
    eps = float(np.finfo(t.dtype.numpy).eps)
    if isinstance(n, int):
        return as_tensor(np.asarray(eps * max(8.0, n**0.5), t.dtype.numpy))
    r: Tensor = maximum(sqrt(cast(as_tensor(n), t.dtype)), 8.0) * eps
    return r


def _eigen(a: Tensor) -> tuple[Tensor, Tensor]:
    """Shifted by a bound of the spectrum the matrix is well conditioned and positive, so that its singular vectors are its
    eigenvectors; the eigenvalues are Rayleigh quotients, which owe nothing to the shift."""
    n = a.shape[-1]
    if is_zero(n):
        return zeros(a.shape[:-1], dtype=a.dtype), a
    shift = 2 * max_(sum_(abs_(a), axis=-1, keepdims=True), axis=-2, keepdims=True)
    shift = where(shift == 0, 1, shift)
    w, _ = orthogonal_rows(a / shift + eye_like(a, n), None, _tolerance(a, n))
    v = mt(w / sqrt(sum_(w * w, axis=-1, keepdims=True)))
    values = sum_(v * (a @ v), axis=-2)
    order = argsort(values, axis=-1)
    return take_along_axis(values, order, axis=-1), take_along_axis(v, order[..., None, :], axis=-1)


@custom_jvp
def _eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    return _eigen(a)


def _gaps(x: Tensor, y: Tensor) -> Tensor:
    """1 / (x_j - x_i) / (y_j + y_i) off the diagonal, 0 on it; inf where x_i = x_j."""
    diagonal = on_diagonal(x.shape[-1])
    gap = (x[..., None, :] - x[..., :, None]) * (y[..., None, :] + y[..., :, None])
    return where(diagonal, 0, 1 / where(diagonal, 1, gap))


@_eigh.defjvp
def _eigh_rule(primals: Any, tangents: Any) -> Any:
    w, v = _eigh(primals[0])
    inner = mt(v) @ tangents[0] @ v
    return (w, v), (diagonal_of(inner), v @ (_gaps(w, full_like(w, 0.5)) * inner))


@custom_jvp
def _eigvalsh(a: Tensor) -> Tensor:
    return _eigen(a)[0]


@_eigvalsh.defjvp
def _eigvalsh_rule(primals: Any, tangents: Any) -> Any:
    w, v = _eigh(primals[0])
    return w, sum_(v * (tangents[0] @ v), axis=-2)


@public
def eigh(x: Any, /) -> EighResult:
    """Eigenvalues (ascending) and eigenvectors (columns) of symmetric matrices; of `x` its symmetric part counts.

    Signs of eigenvectors are arbitrary. Equal eigenvalues: the derivative of eigenvectors is inf or NaN.
    """
    w, v = _eigh(symmetric(square("eigh", x)))
    return EighResult(w, v)


@public
def eigvalsh(x: Any, /) -> Tensor:
    """The eigenvalues of symmetric matrices, ascending. Where some are equal, the derivative is that of one order of them:
    right for what treats them alike, such as their sum."""
    w: Tensor = _eigvalsh(symmetric(square("eigvalsh", x)))
    return w


# ---- singular values ------------------------------------------------------------------------------------------------------


def _tall_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(u, s, vh) of [..., m, n], m >= n: QR, then rotations of the rows of r.

    With g r = diag(s) y: a = (q g^T) diag(s) y. The rows of `g r`, largest first, are made the orthonormal y by one more
    QR, which fills in directions where s is zero.
    """
    n = a.shape[-1]
    if is_zero(n):
        return a, zeros((*a.shape[:-2], 0), dtype=a.dtype), eye_like(a, 0)
    scale = _scale(a)
    q, r = qr_loop(a / scale, n)
    w, g = orthogonal_rows(triu(r[..., :n, :]), eye_like(a, n), _tolerance(a, n))
    assert g is not None
    s = sqrt(sum_(w * w, axis=-1))
    order = argsort(s, axis=-1, descending=True)
    w, g = (take_along_axis(t, order[..., None], axis=-2) for t in (w, g))
    y, signs = qr_loop(mt(w), n)
    y = where(diagonal_of(signs)[..., None, :] < 0, -y, y)
    return q @ mt(g), take_along_axis(s, order, axis=-1) * scale[..., 0], mt(y)


@custom_jvp
def _svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if is_tall("svd", a):
        return _tall_svd(a)
    v, s, uh = _tall_svd(mt(a))
    return mt(uh), s, mt(v)


@_svd.defjvp
def _svd_rule(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    u, s, vh = _svd(a)
    v = mt(vh)
    inner = mt(u) @ da @ v
    gaps = _gaps(s, s)
    left, right = inner * s[..., None, :], s[..., :, None] * inner
    du = u @ (gaps * (left + mt(left)))
    dv = v @ (gaps * (right + mt(right)))
    m, n = a.shape[-2:]
    if m != n and is_tall("svd", a):  # what of da lies outside the columns of u
        out = da @ v
        du = du + (out - u @ (mt(u) @ out)) / s[..., None, :]
    elif m != n:
        out = mt(da) @ u
        dv = dv + (out - v @ (mt(v) @ out)) / s[..., None, :]
    return (u, s, vh), (du, diagonal_of(inner), mt(dv))


@custom_jvp
def _svdvals(a: Tensor) -> Tensor:
    a = a if is_tall("svdvals", a) else mt(a)
    n = a.shape[-1]
    if is_zero(n):
        return zeros((*a.shape[:-2], 0), dtype=a.dtype)
    scale = _scale(a)
    _, r = qr_loop(a / scale, None)
    w, _ = orthogonal_rows(triu(r[..., :n, :]), None, _tolerance(a, n))
    s = sqrt(sum_(w * w, axis=-1))
    s = take_along_axis(s, argsort(s, axis=-1, descending=True), axis=-1)
    return emit("mul", s, scale[..., 0])


@_svdvals.defjvp
def _svdvals_rule(primals: Any, tangents: Any) -> Any:
    u, s, vh = _svd(primals[0])
    return s, sum_((mt(u) @ tangents[0]) * vh, axis=-1)


def _completed(u: Tensor) -> Tensor:
    """Orthonormal columns u [..., m, n] and others that make them a basis, [..., m, m]."""
    q, _ = qr_loop(u, u.shape[-2])
    if is_zero(u.shape[-1]):
        return q
    return concat([u, q[..., :, u.shape[-1] :]], axis=-1)


@public
def svd(x: Any, /, *, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    """a = U diag(S) Vh with orthogonal U, Vh and S descending: [..., m, m], [..., k], [..., n, n] with k = min(m, n).

    Without `full_matrices` only the first k columns of U and rows of Vh; without `compute_uv` S alone. Signs of a pair of
    vectors are arbitrary. Equal singular values, and zeros among those of matrices that are not square: derivatives of U
    and Vh are inf or NaN.
    """
    if not compute_uv:
        return svdvals(x)
    a = matrix("svd", x)
    u, s, vh = _svd(a)
    if full_matrices and a.shape[-2] != a.shape[-1]:
        if is_tall("svd", a):
            u = _completed(u)
        else:
            vh = mt(_completed(mt(vh)))
    return SVDResult(u, s, vh)


@public
def svdvals(x: Any, /) -> Tensor:
    """The singular values, descending. Their derivative is right where they are simple and not zero."""
    s: Tensor = _svdvals(matrix("svdvals", x))
    return s


__all__ = ["EighResult", "QRResult", "SVDResult", "eigh", "eigvalsh", "qr", "svd", "svdvals"]
