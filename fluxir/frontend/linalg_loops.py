"""Factorisations as loops over columns: Cholesky, LU with partial pivoting, triangular substitution, Householder QR.

Written in the language itself, so that they compile for every target and take leading batch axes. Each loop carries a
matrix of full size and masks what does not take part yet: one trip costs a pass over the matrix, or a product of a row with
it. No derivative is taken of these loops where a closed rule exists: `fluxir/linalg` gives the rules.
Operands are float tensors of at least two axes whose sizes fit; the callers check.
"""

from __future__ import annotations

from typing import Any

from fluxir.frontend.api_creation import eye, iota, tril, triu, zeros
from fluxir.frontend.api_elementwise import where
from fluxir.frontend.api_indexing import take, take_along_axis
from fluxir.frontend.api_manipulation import broadcast_to, concat, swapaxes
from fluxir.frontend.api_reduce import argmax
from fluxir.frontend.api_reduce import max as max_
from fluxir.frontend.api_reduce import sum as sum_
from fluxir.frontend.control import scan, while_loop
from fluxir.frontend.tensor import Tensor, as_tensor, constant, emit
from fluxir.ir.dims import Dim, minimum
from fluxir.ir.dtypes import i64

# ---- parts of matrices ----------------------------------------------------------------------------------------------------


def _starts(t: Tensor, i: Any, j: Any) -> list[Tensor]:
    zero = constant(0, i64)
    at = [constant(x, i64) if isinstance(x, int) else as_tensor(x) for x in (i, j)]
    return [*[zero] * (t.ndim - 2), *at]


def row(t: Tensor, i: Any) -> Tensor:
    """Row `i` of each matrix, as [..., 1, n]."""
    return emit("dynamic_slice", t, *_starts(t, i, 0), sizes=(*t.shape[:-2], 1, t.shape[-1]))


def column(t: Tensor, j: Any) -> Tensor:
    """Column `j` of each matrix, as [..., n, 1]."""
    return emit("dynamic_slice", t, *_starts(t, 0, j), sizes=(*t.shape[:-1], 1))


def element(t: Tensor, i: Any, j: Any) -> Tensor:
    """Element (i, j) of each matrix, as [..., 1, 1]."""
    return emit("dynamic_slice", t, *_starts(t, i, j), sizes=(*t.shape[:-2], 1, 1))


def put(t: Tensor, part: Tensor, i: Any, j: Any) -> Tensor:
    """`t` with `part` written at (i, j) of each matrix."""
    return emit("dynamic_update", t, part, *_starts(t, i, j))


def eye_like(t: Tensor, rows: Dim, cols: Dim | None = None) -> Tensor:
    """Identities with the batch axes and type of `t`."""
    one = eye(rows, cols, dtype=t.dtype)
    return one if t.ndim == 2 else broadcast_to(one, (*t.shape[:-2], *one.shape))


def mt(t: Tensor) -> Tensor:
    """The last two axes swapped."""
    return swapaxes(t, -1, -2)


def is_zero(n: Dim) -> bool:
    """Whether a size is known to be 0: loops over nothing are left out, since there is no row to read."""
    return isinstance(n, int) and n == 0


def _rows(n: Dim) -> Tensor:
    return iota((n, 1))


def _zeros(t: Tensor, rows: Dim, cols: Dim) -> Tensor:
    return zeros((*t.shape[:-2], rows, cols), dtype=t.dtype)


# ---- triangles ------------------------------------------------------------------------------------------------------------


def substitute(a: Tensor, b: Tensor, *, lower: bool, unit: bool) -> Tensor:
    """x with a x = b for triangles a [..., n, n] and b [..., n, m]; the other triangle of `a` is not read.

    Row by row: what is solved already times a row of `a` is one product, rows still to come are zeros.
    """
    n = a.shape[-1]
    if is_zero(n):
        return b
    a = tril(a, -1 if unit else 0) if lower else triu(a, 1 if unit else 0)

    def step(x: Tensor, i: Tensor) -> tuple[Tensor, None]:
        r = row(a, i)
        t = row(b, i) - r @ x
        return put(x, t if unit else t / element(r, 0, i), i, 0), None

    return scan(step, _zeros(b, n, b.shape[-1]), iota((n,)), reverse=not lower)[0]  # type: ignore[no-any-return]


def cholesky_loop(a: Tensor) -> Tensor:
    """The lower triangle l with l l^T = a; reads the lower triangle. NaN from the first column on that has no root."""
    n = a.shape[-1]
    if is_zero(n):
        return a
    i = _rows(n)

    def step(l: Tensor, j: Tensor) -> tuple[Tensor, None]:
        c = column(a, j) - sum_(l * row(l, j), axis=-1, keepdims=True)
        d = emit("sqrt", element(c, j, 0))
        return put(l, where(i > j, c / d, where(i == j, d, 0)), 0, j), None

    return scan(step, _zeros(a, n, n), iota((n,)))[0]  # type: ignore[no-any-return]


# ---- LU -------------------------------------------------------------------------------------------------------------------


def _chosen_row(a: Tensor, p: Tensor) -> Tensor:
    """Row p of each matrix, its own for each: [..., 1, n]. `p` is [..., 1, 1]."""
    if a.ndim == 2:
        return row(a, emit("reshape", p, shape=()))
    return take_along_axis(a, p, axis=-2)


def lu_loop(a: Tensor) -> tuple[Tensor, Tensor]:
    """(lu, perm) for a [..., m, n]: l below the diagonal (ones on it) and u from it on, with l u = a[perm].

    A column without any pivot keeps zeros below the diagonal, so that l u = a[perm] holds for singular matrices too.
    """
    m, n = a.shape[-2:]
    i, j = _rows(m), iota((n,))
    perm = broadcast_to(iota((m, 1)), (*a.shape[:-2], m, 1))
    if is_zero(m) or is_zero(n):
        return a, perm[..., 0]

    def step(carry: tuple[Tensor, Tensor], k: Tensor) -> tuple[tuple[Tensor, Tensor], None]:
        x, perm = carry
        c = column(x, k)
        p = argmax(where(i >= k, emit("abs", c), -1), axis=-2, keepdims=True)
        new, old = _chosen_row(x, p), row(x, k)
        pivot = element(new, 0, k)
        factor = where(i == p, element(old, 0, k), c) / where(pivot == 0, 1, pivot)
        x = where(i == k, new, where(i == p, old, x))
        x = where((i > k) & (j > k), x - factor * new, where((i > k) & (j == k), factor, x))
        other = _chosen_row(perm, p)
        perm = where(i == k, other, where(i == p, row(perm, k), perm))
        return (x, perm), None

    (x, perm), _ = scan(step, (a, perm), iota((minimum(m, n),)))
    return x, perm[..., 0]


def triangular_cofactors(u: Tensor) -> Tensor:
    """The adjugates of upper triangles u [..., n, n], without a division: right for singular ones.

    From the last row up: row i of the adjugate is u_ii's own minor on the diagonal and -u[i, :] @ rows below to its right,
    where the rows below have been multiplied by u_ii.
    """
    n = u.shape[-1]
    if is_zero(n):
        return u
    i, j = _rows(n), iota((n,))

    def step(carry: tuple[Tensor, Tensor], k: Tensor) -> tuple[tuple[Tensor, Tensor], None]:
        z, below = carry
        r = row(u, k)
        d = element(r, 0, k)
        new = where(j == k, below, -(where(j > k, r, 0) @ z))
        return (where(i == k, new, z * d), below * d), None

    start = (_zeros(u, n, n), zeros((*u.shape[:-2], 1, 1), dtype=u.dtype) + 1)
    (z, _), _ = scan(step, start, iota((n,)), reverse=True)
    return z  # type: ignore[no-any-return]


# ---- QR -------------------------------------------------------------------------------------------------------------------


def qr_loop(a: Tensor, cols: Dim | None) -> tuple[Tensor, Tensor]:
    """(q, r) of a [..., m, n] by Householder reflections; q has `cols` columns (None: no q), r is [..., m, n].

    The signs are those of the reflections (LAPACK's): the diagonal of r is of either sign. Safe to differentiate: a column
    that is zero already is left alone.
    """
    m, n = a.shape[-2:]
    k = minimum(m, n)
    if is_zero(k):
        return a if cols is None else eye_like(a, m, cols), a
    i = _rows(m)

    def step(carry: tuple[Tensor, Tensor], t: Tensor) -> tuple[tuple[Tensor, Tensor], None]:
        x, vs = carry
        c = where(i >= t, column(x, t), 0)
        rest = sum_(where(i > t, c * c, 0), axis=-2, keepdims=True)
        head = element(c, t, 0)
        done = rest == 0
        norm = emit("sqrt", where(done, 1, rest + head * head))
        v0 = where(done, 1, head + where(head < 0, -norm, norm))
        v = where(i == t, 1, where(i > t, c / v0, 0))
        tau = where(done, 0, v0 / where(head < 0, -norm, norm))
        x = x - tau * v * (mt(v) @ x)
        x = where((i > t) & (iota((n,)) == t), 0, x)
        return (x, put(put(vs, v, 0, t), tau, m, t)), None

    vs = _zeros(a, m + 1, k)  # the reflections, and their factors below them
    (r, vs), _ = scan(step, (a, vs), iota((k,)))
    if cols is None:
        return r, r

    def back(q: Tensor, t: Tensor) -> tuple[Tensor, None]:
        c = column(vs, t)
        v, tau = c[..., :-1, :], c[..., -1:, :]
        return q - tau * v * (mt(v) @ q), None

    return scan(back, eye_like(a, m, cols), iota((k,)), reverse=True)[0], r


# ---- Jacobi ---------------------------------------------------------------------------------------------------------------

SWEEPS = 40  # Jacobi converges quadratically; 6 to 12 sweeps are usual


def orthogonal_rows(w: Tensor, v: Tensor | None, tolerance: Any) -> tuple[Tensor, Tensor | None]:
    """Rotate pairs of rows of w [..., n, m] until all are orthogonal; rows of `v` go along. One-sided Jacobi.

    In a round n / 2 disjoint pairs are rotated at once; rows then move on as teams in a tournament (the circle method), so
    that in n - 1 rounds, a sweep, each meets each other and all are back where they were. Sweeps go on while some pair was
    further from orthogonal than `tolerance`, the cosine of their angle; at most SWEEPS.
    """
    n, m = w.shape[-2:]
    if is_zero(n):
        return w, v
    rows = w if v is None else concat([w, v], axis=-1)
    half = (n + 1) // 2
    if 2 * half != n:
        rows = concat([rows, _zeros(rows, 2 * half - n, rows.shape[-1])], axis=-2)
    came = _moves(half)  # the row that stands at each place after the round
    partner = where(came < half, came + half, came - half)
    pair, first = where(came < half, came, came - half), (came < half)[:, None]

    def round_(carry: tuple[Tensor, Tensor], _: Any) -> tuple[tuple[Tensor, Tensor], None]:
        rows, worst = carry
        top, low = rows[..., :half, :m], rows[..., half:, :m]
        a, b, c = (sum_(p * q, axis=-1, keepdims=True) for p, q in ((top, top), (low, low), (top, low)))
        size = emit("sqrt", a) * emit("sqrt", b)
        off = emit("abs", c) / where(size == 0, 1, size)
        straight = off <= tolerance / 8
        zeta = (b - a) / where(straight, 1, 2 * c)
        t = 1 / (emit("abs", zeta) + emit("sqrt", 1 + zeta * zeta))  # the tangent of the smaller angle
        t = where(straight, 0, where(zeta < 0, -t, t))
        cos = 1 / emit("sqrt", 1 + t * t)
        sin = take(cos * t, pair, axis=-2)
        worst = emit("maximum", worst, max_(off, initial=0))
        rows = take(cos, pair, axis=-2) * take(rows, came, axis=-2) + where(first, -sin, sin) * take(
            rows, partner, axis=-2
        )
        return (rows, worst), None

    def sweep(state: Any) -> Any:
        rows, _, count = state
        (rows, worst), _ = scan(round_, (rows, constant(0, w.dtype)), None, length=2 * half - 1)
        return rows, worst, count + 1

    start = (rows, constant(1, w.dtype), constant(0, i64))
    rows, _, _ = while_loop(lambda s: (s[1] > tolerance) & (s[2] < SWEEPS), sweep, start)
    if 2 * half != n:
        rows = take(rows, iota((n,)), axis=-2)  # not a slice, whose size a symbol would leave as a minimum of two
    return rows[..., :m], None if v is None else rows[..., m:]


def _moves(half: Dim) -> Tensor:
    """The circle method on the places 0, 1, ... half - 1 above half, ... 2 half - 1: place 0 stays, the others go round."""
    i = iota((2 * half,))
    last = where(as_tensor(half) == 1, half, half - 1)
    above = where(i == 0, 0, where(i == 1, half, i - 1))
    return where(i < half, above, where(i == 2 * half - 1, last, i + 1))


__all__ = [
    "cholesky_loop", "column", "element", "eye_like", "is_zero", "lu_loop", "mt", "orthogonal_rows", "put", "qr_loop",
    "row", "substitute", "triangular_cofactors",
]  # fmt: skip
