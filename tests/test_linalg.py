"""`fx.linalg`: against NumPy and by residuals, derivatives of both modes and orders against finite differences, and the
rest of NumPy's differentiable surface.

Values are checked interpreted, and compiled for every function once in each type; residuals are measured in units of
n * eps, where the project's bound is 50.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError

L = fx.linalg
BOUND = 50  # residuals, in n * eps


def mt(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensors(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


# ---- values -----------------------------------------------------------------------------------------------------------------


def exponential(x: Any) -> Any:
    """The exponential by its series, in extended precision."""
    x = x.astype(np.longdouble) / 1024
    term = total = np.eye(x.shape[-1], dtype=np.longdouble) + 0 * x
    for k in range(1, 20):
        term = term @ x / k
        total = total + term
    for _ in range(10):
        total = total @ total
    return total.astype(np.float64)


def singular_values(x: Any) -> Any:
    return np.linalg.svd(x.astype(np.float64))[1]


# name: (function, its argument from a random matrix, residuals of the results: list of (what should vanish, its scale))
def _cholesky(a: Any, l: Any) -> Any:
    return [(l @ mt(l) - a, a), (np.triu(l, 1), 1)]


def _lu(a: Any, p: Any, l: Any, u: Any) -> Any:
    return [(p @ l @ u - a, a), (np.tril(u, -1), 1), (np.maximum(np.abs(l) - 1, 0), 1)]


def _qr(a: Any, q: Any, r: Any) -> Any:
    return [(q @ r - a, a), (mt(q) @ q - np.eye(q.shape[-1]), 1), (np.tril(r, -1), 1)]


def _eigh(a: Any, w: Any, v: Any) -> Any:
    values = np.linalg.eigvalsh(a.astype(np.float64))
    return [(a @ v - v * w[..., None, :], a), (mt(v) @ v - np.eye(a.shape[-1]), 1), (w - values, values)]


def _svd(a: Any, u: Any, s: Any, vh: Any) -> Any:
    k = s.shape[-1]
    values = singular_values(a)
    return [
        ((u[..., :k] * s[..., None, :]) @ vh[..., :k, :] - a, a),
        (mt(u) @ u - np.eye(u.shape[-1]), 1),
        (vh @ mt(vh) - np.eye(vh.shape[-2]), 1),
        (s - values, values),
    ]


def positive(a: Any) -> Any:
    n = a.shape[-1]
    return a @ mt(a) / a.dtype.type(n) + np.eye(n, dtype=a.dtype)


def regular(a: Any) -> Any:
    n = a.shape[-1]
    return a + a.dtype.type(3 * math.sqrt(n)) * np.eye(n, dtype=a.dtype)


def small(a: Any) -> Any:
    return a * a.dtype.type(2 / math.sqrt(a.shape[-1]))


def same(a: Any) -> Any:
    return a


VALUES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "cholesky": (L.cholesky, positive, _cholesky),
    "cholesky upper": (lambda a: L.cholesky(a, upper=True), positive, lambda a, u: _cholesky(a, mt(u))),
    "solve": (lambda a: L.solve(a, a[..., :1]), regular, lambda a, x: [(a @ x - a[..., :1], a)]),
    "inv": (L.inv, regular, lambda a, x: [(a @ x - np.eye(a.shape[-1]), 1)]),
    "det": (L.det, lambda a: small(regular(a)), lambda a, d: [(d / np.linalg.det(a.astype(np.float64)) - 1, 1)]),
    "slogdet": (L.slogdet, same, lambda a, s, l: [(s - np.linalg.slogdet(a)[0], 1), (l - np.linalg.slogdet(a)[1], 1 + abs(l))]),
    "lu": (L.lu, same, _lu),
    "lu tall": (L.lu, lambda a: a[..., : (a.shape[-1] + 1) // 2], _lu),
    "lu wide": (L.lu, lambda a: a[..., : (a.shape[-2] + 1) // 2, :], _lu),
    "lu, p joined": (lambda a: L.lu(a, permute_l=True), same, lambda a, l, u: [(l @ u - a, a)]),
    "lu, p as order": (lambda a: L.lu(a, p_indices=True), same, lambda a, p, l, u: [(np.take_along_axis(l, p[..., None], -2) @ u - a, a)]),
    "lu_solve": (lambda a: L.lu_solve(L.lu_factor(a), a[..., :1], trans=1), regular, lambda a, x: [(mt(a) @ x - a[..., :1], a)]),
    "cho_solve": (lambda a: L.cho_solve((L.cholesky(a), True), a[..., :1]), positive, lambda a, x: [(a @ x - a[..., :1], a)]),
    "qr": (L.qr, same, _qr),
    "qr tall": (L.qr, lambda a: a[..., : (a.shape[-1] + 1) // 2], _qr),
    "qr wide": (L.qr, lambda a: a[..., : (a.shape[-2] + 1) // 2, :], _qr),
    "qr complete": (lambda a: L.qr(a, mode="complete"), lambda a: a[..., : (a.shape[-1] + 1) // 2], _qr),
    "eigh": (L.eigh, lambda a: a + mt(a), _eigh),
    "eigvalsh": (L.eigvalsh, lambda a: a + mt(a), lambda a, w: [(w - np.linalg.eigvalsh(a.astype(np.float64)), w)]),
    "svd": (L.svd, same, _svd),
    "svd tall": (L.svd, lambda a: a[..., : (a.shape[-1] + 1) // 2], _svd),
    "svd wide": (lambda a: L.svd(a, full_matrices=False), lambda a: a[..., : (a.shape[-2] + 1) // 2, :], _svd),
    "svdvals": (L.svdvals, same, lambda a, s: [(s - singular_values(a), s)]),
    "expm": (L.expm, small, lambda a, e: [(e - exponential(a), e)]),
}  # fmt: skip


def check_value(name: str, shape: tuple[int, ...], dtype: Any, run: Callable[..., Any] = lambda f: f) -> None:
    f, make, residuals = VALUES[name]
    a = make(rng(len(shape) + shape[-1]).standard_normal(shape).astype(dtype))
    got = tensors(run(lambda x: tuple(tensors(f(x))))(a))
    unit = shape[-1] * np.finfo(dtype).eps
    assert all(x.dtype == dtype for x in got if x.dtype.kind == "f")
    for what, scale in residuals(a, *got):
        assert np.max(np.abs(what)) <= BOUND * unit * np.max(np.abs(scale)), name


@pytest.mark.parametrize("name", VALUES)
def test_interpreted_values(name: str) -> None:
    for shape in ((1, 1), (2, 2), (5, 5), (17, 17), (3, 4, 4), (2, 2, 3, 3)):
        for dtype in (np.float64, np.float32):
            check_value(name, shape, dtype)
    check_value(name, (64, 64), np.float64)


@pytest.mark.parametrize("name", VALUES)
def test_compiled_values(name: str) -> None:
    if list(VALUES).index(name) % 2:
        check_value(name, (64, 64), np.float64, fx.jit)
    else:
        check_value(name, (3, 7, 7), np.float32, fx.jit)


@pytest.mark.parametrize("name", ["cholesky", "slogdet", "qr", "svd"])
def test_one_program_for_all_sizes(name: str) -> None:
    f, make, _ = VALUES[name]
    run = fx.jit(lambda x: tuple(tensors(f(x)))).lower(fx.f64["N", "N"]).compile()
    for n in (1, 2, 5):
        a = make(rng(n).standard_normal((n, n)))
        for got, want in zip(run(a), tensors(f(a)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(FluxError, match="N"):
        run(np.zeros((0, 0)))


@pytest.mark.parametrize(("shape", "facts"), [(("M", 3), "M >= 3"), (("N+K", "N"), None)])
def test_sizes_that_are_known_to_be_tall(shape: Any, facts: Any) -> None:
    a = rng(1).standard_normal((5, 3))

    def f(x: Any) -> Any:
        return fx.sum(L.qr(x)[1] ** 3) + fx.sum(L.svdvals(x) ** 3)

    run = fx.jit(fx.value_and_grad(f), facts=facts).lower(fx.f64[shape]).compile()
    for got, want in zip(run(a), fx.value_and_grad(f)(a), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("trans", [0, "T"])
@pytest.mark.parametrize("unit", [False, True])
def test_triangles(lower: bool, trans: Any, unit: bool) -> None:
    a, b = regular(rng(1).standard_normal((2, 6, 6))) / 5, rng(2).standard_normal((2, 6, 3))
    t = np.tril(a) if lower else np.triu(a)
    if unit:
        t = t * (1 - np.eye(6)) + np.eye(6)
    want = np.linalg.solve(mt(t) if trans else t, b)
    x = L.solve_triangular(np.where(t != 0, a, np.nan), b, trans=trans, lower=lower, unit_diagonal=unit)
    np.testing.assert_allclose(x, want, rtol=1e-11)  # what is not part of the triangle is not read


def test_every_factorisation_is_made_for_a_gpu() -> None:
    for f in (L.cholesky, L.qr, fx.grad(lambda x: fx.sum(L.solve(x, x)))):
        assert ".entry" in fx.jit(f).lower(fx.f32[8, 8]).as_text("ptx", "sm_80")


def test_shapes_of_right_sides() -> None:
    a, many = regular(rng(3).standard_normal((4, 4))), regular(rng(4).standard_normal((3, 1, 4, 4)))
    for m, b in (
        (a, (4,)),
        (a, (4, 2)),
        (a, (5, 4, 2)),
        (many, (4,)),
        (many, (2, 4, 2)),
        (many, (4, 2)),
        (a, (0, 4, 2)),
    ):
        y = rng(5).standard_normal(b)
        np.testing.assert_allclose(L.solve(m, y), np.linalg.solve(m, y), rtol=1e-12)
    assert L.solve(a, np.ones(4, np.float32)).dtype == np.float64


def test_functions_of_the_factorisations() -> None:
    a = rng(6).standard_normal((3, 5, 4))
    deficient = a @ np.diag([1.0, 2.0, 0.0, 0.0])
    for x in (a, mt(a), deficient, np.zeros((2, 3)), np.ones((4, 4))):
        np.testing.assert_allclose(L.pinv(x), np.linalg.pinv(x), atol=1e-12)
        np.testing.assert_array_equal(L.matrix_rank(x), np.linalg.matrix_rank(x))
        for o in (None, "fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
            for keep in (False, True):
                want = np.linalg.norm(x, o, axis=(-2, -1), keepdims=keep)
                np.testing.assert_allclose(L.norm(x, o, axis=(-2, -1), keepdims=keep), want, atol=1e-12)
    assert L.matrix_rank(a[0], tol=100.0) == 0 and L.matrix_rank(np.diag([1.0, 1e-3]), rtol=1e-2) == 1
    np.testing.assert_allclose(L.pinv(np.diag([1.0, 1e-3]), rtol=1e-2), np.diag([1.0, 0.0]), atol=1e-15)
    s = regular(rng(7).standard_normal((2, 4, 4)))
    for p in (None, 1, -1, 2, -2, math.inf, "fro", "nuc"):
        np.testing.assert_allclose(L.cond(s, p), np.linalg.cond(s, p), rtol=1e-11)
    for n in (-3, -1, 0, 1, 5):
        np.testing.assert_allclose(L.matrix_power(s, n), np.linalg.matrix_power(s, n), rtol=1e-10)
    for b in ((5,), (5, 2)):
        y = rng(8).standard_normal(b)
        for got, want in zip(L.lstsq(a[0], y), np.linalg.lstsq(a[0], y), strict=True):
            np.testing.assert_allclose(np.ravel(got), np.ravel(want), rtol=1e-10)
    y = rng(9).standard_normal((4, 2))
    np.testing.assert_allclose(
        L.lstsq(a[0].T, y)[0], np.linalg.lstsq(a[0].T, y)[0], rtol=1e-10
    )  # the shortest solution


def test_what_is_not_used_is_not_computed() -> None:
    least = fx.jit(lambda a, b: L.lstsq(a, b)[0]).lower(fx.f64[6, 3], fx.f64[6]).as_text("fused")
    assert "while" not in least  # no singular values
    whole = fx.jit(lambda a, b: L.lstsq(a, b)[2]).lower(fx.f64[6, 3], fx.f64[6]).as_text("fused")
    assert "while" in whole


def test_empty_matrices() -> None:
    for shape in ((0, 0), (2, 0, 0), (0, 3, 3)):
        z = np.zeros(shape)
        for f in (L.cholesky, L.inv, L.expm, L.pinv):
            assert f(z).shape == shape
        np.testing.assert_array_equal(L.det(z), np.linalg.det(z))
        np.testing.assert_array_equal(L.slogdet(z)[1], np.linalg.slogdet(z)[1])
        for ours, theirs in ((L.qr(z), np.linalg.qr(z)), (L.eigh(z), np.linalg.eigh(z)), (L.svd(z), np.linalg.svd(z))):
            assert [x.shape for x in ours] == [x.shape for x in theirs]
        assert L.solve(z, z).shape == shape
    for ours, theirs in zip(L.svd(np.zeros((3, 0))), np.linalg.svd(np.zeros((3, 0))), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert L.pinv(np.zeros((3, 0))).shape == (0, 3) and L.qr(np.zeros((3, 0)))[0].shape == (3, 0)


def test_matrices_without_an_answer() -> None:
    singular = np.ones((2, 2))
    assert not np.isfinite(L.inv(singular)).any() and not np.isfinite(L.solve(singular, np.ones(2))).all()
    assert L.det(singular) == 0 and tuple(L.slogdet(singular)) == (0, -np.inf)
    l = L.cholesky(np.array([[1.0, 2.0], [2.0, 1.0]]))
    np.testing.assert_array_equal(l, [[1, 0], [2, np.nan]])
    for bad in (np.nan, np.inf):  # loops that wait for convergence end
        x = np.array([[bad, 1.0], [1.0, 2.0]])
        assert np.isnan(L.svdvals(x)).all() and np.isnan(L.eigvalsh(x)).all() and np.isnan(L.expm(x)).all()


def test_matrices_out_of_the_ordinary() -> None:
    u, s, vh = L.svd(np.ones((4, 3)) * 1e-200)  # one singular value beside zeros, and squares that underflow
    np.testing.assert_allclose(s, [math.sqrt(12) * 1e-200, 0, 0], atol=1e-214)
    np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(vh @ vh.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(L.svdvals(np.diag([1e190, 1e200])), [1e200, 1e190])
    for factor in (1e-200, 1e200):
        a = rng(1).standard_normal((5, 3)) * factor
        q, r = L.qr(a)
        np.testing.assert_allclose(q @ r / factor, a / factor, atol=1e-14)
        np.testing.assert_allclose(L.qr(a, mode="complete")[1][:3] / factor, r / factor, atol=1e-14)
    w, v = L.eigh(np.diag([3.0, -1.0, 3.0, 0.0]))
    np.testing.assert_allclose(w, [-1, 0, 3, 3], atol=1e-15)
    np.testing.assert_allclose(v.T @ v, np.eye(4), atol=1e-15)
    np.testing.assert_allclose(L.eigvalsh(np.array([[1.0, 5.0], [5.0, -1.0]])), [-math.sqrt(26), math.sqrt(26)])
    hilbert = 1 / (np.arange(8)[:, None] + np.arange(8) + 1.0)
    np.testing.assert_allclose(L.svdvals(hilbert), np.linalg.svd(hilbert)[1], atol=1e-15)
    np.testing.assert_allclose(L.expm(np.array([[0.0, 1e3], [0.0, 0.0]])), [[1, 1e3], [0, 1]], rtol=1e-14)
    np.testing.assert_allclose(L.expm(np.diag([-800.0, 1.0])), np.diag([0, math.e]), atol=1e-13)


@pytest.mark.parametrize(
    ("run", "code", "words"),
    [
        (lambda: L.inv(np.ones((2, 3))), "FX0220", "inv takes square matrices, not f64[2,3]"),
        (lambda: L.cholesky(np.ones(3)), "FX0220", "a matrix has 2 axes"),
        (lambda: L.det(np.ones((2, 2), np.float16)), "FX0209", "f32 and f64"),
        (lambda: L.svd(np.ones((2, 2), int)), "FX0209", "i64[2,2]"),
        (lambda: L.solve(np.ones((2, 2)), np.ones(3)), "FX0203", "3 rows"),
        (lambda: L.qr(np.ones((2, 2)), mode="full"), "FX0221", "'full'"),
        (lambda: L.solve_triangular(np.ones((2, 2)), np.ones(2), trans=3), "FX0221", "trans"),
        (lambda: L.norm(np.ones((2, 2)), "spectral"), "FX0221", "nuc"),
        (lambda: fx.jit(L.svdvals).lower(fx.f32["M", "N"]), "FX0220", "N+K"),
        (lambda: L.matrix_power(np.ones((2, 3)), 2), "FX0220", "square"),
    ],
)
def test_mistakes_are_named(run: Any, code: str, words: str) -> None:
    with pytest.raises(FluxError) as e:
        run()
    assert e.value.code == code and words in str(e.value)


# ---- derivatives ------------------------------------------------------------------------------------------------------------


def numeric(f: Callable[..., Any], a: Any, eps: float = 1e-6) -> Any:
    """Central differences of the scalar `f`."""
    out = np.zeros_like(a)
    for i in np.ndindex(*a.shape):
        lo, hi = a.copy(), a.copy()
        lo[i] -= eps
        hi[i] += eps
        out[i] = (f(hi) - f(lo)) / (2 * eps)
    return out


def error(got: Any, want: Any) -> float:
    return float(np.max(np.abs(got - want)) / (1 + np.max(np.abs(want))))


def check_derivatives(f: Callable[..., Any], a: Any, *, order: int = 2, compiled: bool = False) -> None:
    """Reverse mode against differences, forward against reverse, and the same for the gradient along a direction."""
    weights = [rng(11).standard_normal(np.shape(x)) for x in tensors(f(a))]

    def loss(x: Any) -> Any:
        return sum(fx.sum(fx.sin(y) * w) for y, w in zip(tensors(f(x)), weights, strict=True))

    g = fx.grad(loss)(a)
    d = rng(12).standard_normal(a.shape)
    assert g.dtype == a.dtype and error(g, numeric(loss, a)) <= 1e-6
    assert error(fx.jvp(loss, (a,), (d,))[1], np.sum(g * d)) <= 1e-10
    if compiled:
        assert error(fx.jit(fx.grad(loss))(a), g) <= 1e-10
    if order > 1:

        def slope(x: Any) -> Any:
            return fx.sum(fx.grad(loss)(x) * d)

        h = fx.grad(slope)(a)
        assert error(h, numeric(slope, a)) <= 1e-6
        assert error(fx.jvp(fx.grad(loss), (a,), (d,))[1], h) <= 1e-9


A = rng(20).standard_normal((3, 3)) + 3 * np.eye(3)
S = A @ A.T
T = rng(21).standard_normal((4, 3))
W = T.T.copy()
B = rng(22).standard_normal((3, 2))
C = A[None] + 0.3 * rng(23).standard_normal((2, 3, 3))

# name: (function, argument, highest order checked, whether the gradient is compiled too)
DERIVATIVES: dict[str, tuple[Callable[..., Any], Any, int, bool]] = {
    "cholesky": (L.cholesky, S, 2, True),
    "cholesky, batch": (lambda x: L.cholesky(x @ fx.matrix_transpose(x), upper=True), C, 1, True),
    "triangle": (lambda x: L.solve_triangular(x, B), A, 2, False),
    "triangle, right side": (lambda b: L.solve_triangular(A, b, trans=1, lower=True, unit_diagonal=True), B, 2, False),
    "triangle, unit": (lambda x: L.solve_triangular(x, B, trans="T", unit_diagonal=True), A, 1, False),
    "solve": (lambda x: L.solve(x, B), A, 2, True),
    "solve, right side": (lambda b: L.solve(A, b), B[:, 0], 2, False),
    "solve, both": (lambda x: L.solve(x, x @ x), A, 2, False),
    "solve, batch": (lambda x: L.solve(x, B), C, 1, True),
    "inv": (L.inv, A, 2, False),
    "det": (L.det, A / 2, 2, False),
    "det, batch": (L.det, C / 2, 1, False),
    "slogdet": (lambda x: L.slogdet(x)[1], A, 2, True),
    "lu": (lambda x: L.lu(x)[1:], A, 1, True),
    "lu tall": (lambda x: L.lu(x)[1:], T, 1, False),
    "lu wide": (lambda x: L.lu(x, permute_l=True), W, 1, False),
    "lu_solve": (lambda x: L.lu_solve(L.lu_factor(x), B), A, 1, False),
    "cho_solve": (lambda x: L.cho_solve((L.cholesky(x), True), B), S, 1, False),
    "qr": (L.qr, A, 1, True),
    "qr tall": (L.qr, T, 2, False),
    "qr wide": (L.qr, W, 1, False),
    "qr complete": (lambda x: L.qr(x, mode="complete"), T, 1, False),
    "eigh": (L.eigh, S[:3, :3], 2, True),
    "eigvalsh": (L.eigvalsh, S, 1, False),
    "svd": (L.svd, A[:3, :3], 1, True),
    "svd tall": (lambda x: L.svd(x, full_matrices=False), T[:, :2], 2, False),
    "svd wide": (lambda x: L.svd(x, full_matrices=False), W, 1, False),
    "svd full": (L.svd, T, 1, False),
    "svdvals": (L.svdvals, T, 1, False),
    "pinv": (L.pinv, T[:, :2], 1, True),
    "pinv wide": (L.pinv, W, 1, False),
    "norm": (L.norm, A, 2, False),
    "norm nuc": (lambda x: L.norm(x, "nuc"), T, 1, False),
    "norm 2": (lambda x: L.norm(x, 2), T, 1, False),
    "norm -2": (lambda x: L.norm(x, -2), W, 1, False),
    "cond": (L.cond, A, 1, False),
    "cond 1": (lambda x: L.cond(x, 1), A, 1, False),
    "lstsq": (lambda x: L.lstsq(x, np.arange(4.0))[:2], T, 1, False),
    "lstsq wide": (lambda x: L.lstsq(x, B[:3])[0], W, 1, False),
    "expm": (L.expm, A / 4, 2, False),
    "expm, squarings": (lambda x: L.expm(x) / 100, A, 1, False),
    "matrix_power": (lambda x: L.matrix_power(x, -3) * 20, A, 1, False),
    "multi_dot": (lambda x: L.multi_dot([B.T, x, x, B]), A / 3, 1, False),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives(name: str) -> None:
    f, a, order, compiled = DERIVATIVES[name]
    check_derivatives(lambda x: tuple(tensors(f(x))), a, order=order, compiled=compiled)


def test_third_order_through_a_solution() -> None:
    d = rng(30).standard_normal(A.shape)

    def f(x: Any) -> Any:
        return fx.sum(fx.sin(L.solve(x, B)))

    def slope(g: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: fx.sum(fx.grad(g)(x) * d)

    third = slope(slope(f))
    assert error(fx.grad(third)(A), numeric(third, A)) <= 1e-6


def test_gradients_are_symmetric_where_the_function_is_one_of_symmetric_matrices() -> None:
    for f in (L.cholesky, L.eigvalsh, lambda x: L.eigh(x)[1]):
        g = fx.grad(lambda x, f=f: fx.sum(f(x) ** 3))(S)
        np.testing.assert_allclose(g, g.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "a",
    [
        np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]]),  # rank 2
        np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 3.0, 4.0]]),  # rank 2, without a first pivot
        np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 2.0]),  # rank 1: all cofactors are 0
        np.zeros((3, 3)),
        np.array([[0.0, 1.0], [0.0, 0.0]]),
    ],
)
def test_the_determinant_of_a_singular_matrix_has_a_gradient(a: Any) -> None:
    np.testing.assert_allclose(fx.grad(L.det)(a), numeric(L.det, a), atol=1e-8)


def test_the_norm_at_zero_has_gradient_zero() -> None:
    z = np.zeros((2, 3))
    for o in (None, "fro"):
        np.testing.assert_array_equal(fx.grad(lambda x, o=o: L.norm(x, o))(z), z)
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(fx.grad(lambda x: fx.sum(L.vector_norm(x, axis=1)))(rows), [[0, 0], [0.6, 0.8]])
    assert not np.isnan(fx.grad(lambda x: fx.sum(fx.grad(L.norm)(x)))(z)).any()


def test_equal_eigenvalues() -> None:
    one = np.eye(3)
    # Values alone have a derivative, however the vectors are chosen, also when they come from eigh and svd.
    for f in (L.eigvalsh, L.svdvals, lambda x: L.eigh(x)[0], lambda x: L.svd(x)[1]):
        np.testing.assert_allclose(fx.grad(lambda x, f=f: fx.sum(f(x)))(one), one, atol=1e-15)
    # Vectors have none: not a number, rather than one that only looks right.
    for f in (lambda x: L.eigh(x)[1], lambda x: L.svd(x)[0]):
        assert np.isnan(fx.grad(lambda x, f=f: fx.sum(f(x) ** 3))(one)).any()


@pytest.mark.parametrize("name", ["cholesky", "solve", "slogdet", "qr tall", "eigh", "pinv", "expm"])
def test_batched_like_a_loop(name: str) -> None:
    f, a, _, _ = DERIVATIVES[name]
    many = np.stack([a, a + 0.1 * np.eye(*a.shape), a * 1.3])

    def loss(x: Any) -> Any:
        return sum(fx.sum(fx.sin(y)) for y in tensors(f(x)))

    alone = np.stack([fx.grad(loss)(x) for x in many])
    np.testing.assert_allclose(fx.vmap(fx.grad(loss))(many), alone, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fx.grad(lambda x: fx.sum(fx.vmap(loss)(x)))(many), alone, rtol=1e-12, atol=1e-13)


# ---- the rest of the surface --------------------------------------------------------------------------------------------------

V = np.array([0.7, -1.3, 0.2, 2.1])
M = rng(40).standard_normal((3, 4))

SURFACE: dict[str, tuple[Callable[..., Any], Any]] = {
    "diag of a vector": (lambda x: fx.diag(x, 1), V),
    "diag of a matrix": (lambda x: fx.diag(x, -1), M),
    "diagonal": (lambda x: fx.diagonal(x, 1), M),
    "trace": (lambda x: fx.trace(x @ x.T), M),
    "tril": (lambda x: fx.tril(x, -1), M),
    "triu": (lambda x: fx.triu(x, 1), M),
    "outer": (lambda x: fx.outer(x, x * x), V),
    "kron": (lambda x: fx.kron(x, x[:2]), M),
    "cross": (lambda x: fx.cross(x[:, 0], x[:, 1]), M),
    "pad": (lambda x: fx.pad(x, ((1, 0), (2, 1))), M),
    "pad edge": (lambda x: fx.pad(x, 2, mode="edge"), V),
    "pad reflect": (lambda x: fx.pad(x, 2, mode="reflect"), V),
    "flip": (lambda x: fx.flip(x, axis=1), M),
    "roll": (lambda x: fx.roll(x, 2, axis=1), M),
    "hypot": (lambda x: fx.hypot(x, x[::-1] + 0.3), V),
    "logaddexp": (lambda x: fx.logaddexp(x, x[::-1] * 2), V),
    "logaddexp2": (lambda x: fx.logaddexp2(x, x[::-1] * 2), V),
    "std": (lambda x: fx.std(x, axis=1), M),
    "var": (lambda x: fx.var(x, axis=0, correction=1), M),
    "sort": (lambda x: fx.sort(x, axis=1), M),
    "sort descending": (lambda x: fx.sort(x, axis=0, descending=True), M),
    "take_along_axis": (lambda x: fx.take_along_axis(x, np.argsort(M, axis=1)[:, [0, 2, 2]], axis=1), M),
    "take": (lambda x: fx.take(x, np.array([0, 2, 0, -1]), axis=1), M),
    "einsum": (lambda x: fx.einsum("ij,kj->ik", x, x), M),
    "cumsum": (lambda x: fx.cumsum(x, axis=1), M),
    "cumprod": (lambda x: fx.cumprod(x, axis=1), M),
    "median": (lambda x: fx.median(x, axis=1), M),
    "cov": (fx.cov, M),
    "interp": (lambda x: fx.interp(x, np.array([-2.0, 0.0, 3.0]), np.array([1.0, -1.0, 2.0])), V),
    "trapezoid": (lambda x: fx.trapezoid(x, axis=1), M),
}


@pytest.mark.parametrize("name", SURFACE)
def test_the_rest_of_numpy(name: str) -> None:
    f, a = SURFACE[name]
    check_derivatives(f, a, order=2)
