"""Every public function against the numpy function of the same name: eagerly, traced, and traced with symbolic sizes.

Each case is one expression of a module `m`, evaluated with `m = numpy` for the expected answer and `m = fluxir` for ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend import tree
from fluxir.frontend.trace import trace
from fluxir.ir.dims import Facts
from fluxir.ir.interp import interpret
from fluxir.ir.types import TensorType
from fluxir.ir.verify import verify_module

RNG = np.random.default_rng(7)
A = RNG.uniform(-2, 2, (4, 6)).astype(np.float32)
B = RNG.uniform(-2, 2, (4, 6)).astype(np.float32)
C = RNG.uniform(-2, 2, (3, 4, 6)).astype(np.float32)
D = RNG.uniform(-2, 2, (3, 6, 5)).astype(np.float32)
P = RNG.uniform(0.1, 2, (4, 6)).astype(np.float32)
U = RNG.uniform(-0.95, 0.95, (4, 6)).astype(np.float32)
V = RNG.uniform(-2, 2, 6).astype(np.float32)
W = RNG.uniform(-2, 2, 6).astype(np.float32)
S = RNG.uniform(-2, 2, (4, 4)).astype(np.float32)
I = RNG.integers(-9, 9, (4, 6)).astype(np.int64)
J = RNG.integers(1, 9, (4, 6)).astype(np.int64)
K = RNG.integers(0, 5, 7).astype(np.int64)
U8 = RNG.integers(0, 255, (4, 6)).astype(np.uint8)
T = RNG.uniform(size=(4, 6)) > 0.5
Q = RNG.uniform(size=(4, 6)) > 0.5
NANS = np.array([[1.0, np.nan, 3.0, -np.inf], [np.inf, 2.0, np.nan, -1.0]], np.float32)
SORTED = np.sort(V)


def case(f: Callable[..., Any], *args: Any, symbolic: bool = True, eager: bool = True, id: str = "") -> Any:
    return pytest.param(SimpleNamespace(f=f, args=args, symbolic=symbolic, eager=eager), id=id or None)


def unary(names: str, x: Any) -> list[Any]:
    return [case(lambda m, x, n=n: getattr(m, n)(x), x, id=f"{n}-{x.dtype}") for n in names.split()]


def binary(names: str, x: Any, y: Any) -> list[Any]:
    return [case(lambda m, x, y, n=n: getattr(m, n)(x, y), x, y, id=f"{n}-{x.dtype}") for n in names.split()]


ELEMENTWISE = [
    *unary("abs negative sign exp exp2 expm1 sin cos tan atan sinh cosh tanh asinh ceil floor trunc rint positive square deg2rad rad2deg "
           "sinc cbrt isnan isinf isfinite isposinf isneginf signbit absolute fabs arctan radians degrees fix reciprocal", A),
    *unary("sqrt log log2 log10 log1p", P), *unary("asin acos atanh arcsin arctanh", U), *unary("acosh", P + 1),
    *unary("abs sign negative square bitwise_invert bitwise_count ceil floor isnan isfinite", I), *unary("logical_not bitwise_invert", T),
    *unary("isnan isinf isfinite signbit", NANS), *unary("real conj imag", A),
    *binary("add subtract multiply divide maximum minimum fmax fmin hypot logaddexp logaddexp2 atan2 arctan2 copysign heaviside fmod "
            "remainder floor_divide less less_equal greater greater_equal equal not_equal nextafter isclose logical_and", A, B),
    *binary("add subtract multiply maximum minimum less equal bitwise_and bitwise_or bitwise_xor", I, J),
    *binary("floor_divide remainder fmod left_shift right_shift", I, J), *binary("logical_and logical_or logical_xor bitwise_and bitwise_or", T, Q),
    *binary("fmax fmin maximum", NANS, NANS[::-1].copy()), *binary("pow", P, B), *binary("nextafter", A, A), *binary("add multiply", A, V),
    case(lambda m, x: m.round(x, 1), A), case(lambda m, x: m.round(x), A * 3), case(lambda m, x, y: m.divmod(x, y), I, J),
    case(lambda m, x: m.modf(x), A), case(lambda m, x, y: m.ldexp(x, y), A, J), case(lambda m, x: m.clip(x, -0.5, 1), A),
    case(lambda m, x: m.clip(x, None, 1.0), A), case(lambda m, x, y: m.clip(x, y, y + 1), A, B), case(lambda m, c, x, y: m.where(c, x, y), T, A, V),
    case(lambda m, c, x: m.where(c, x, 0), T, I), case(lambda m, x: m.nan_to_num(x), NANS), case(lambda m, x: m.nan_to_num(x, nan=7.0, posinf=1.0), NANS),
    case(lambda m, x, y: m.isclose(x, y, equal_nan=True), NANS, NANS), case(lambda m, x, y: m.allclose(x, y), A, A + 1e-9),
    case(lambda m, x, y: m.array_equal(x, y), A, A), case(lambda m, x, y: m.select([x > 1, x > 0], [x, y], 5.0), A, B),
    case(lambda m, x, y: x + y * 2 - 1 / (x * x + 1) + x**2 - (x**3) % 2 + abs(-x), A, B), case(lambda m, x, y: (x // y, x % y, x << 1, x >> 2, ~x & y, x ^ 3 | y), I, J),
    case(lambda m, x, y: (x < y, x <= 1, x > y, 2 >= x, x == y, x != y), A, B), case(lambda m, x: (3 - x, 2.0 / x, 2**x, 7 // x, 7 % x), P),
    case(lambda m, t, q: (t & q, t | q, t ^ q, ~t, t == q), T, Q), case(lambda m, x: x.astype(m.int32), A * 3, eager=False), case(lambda m, x: m.astype(x, m.float32), I),
    case(lambda m, x: x + x.astype(m.int16), U8, eager=False), case(lambda m, x: m.ldexp(x, 3), A),
]  # fmt: skip

REDUCE = [
    *[case(lambda m, x, n=n, a=a: getattr(m, n)(x, axis=a), A, id=f"{n}-{a}") for n in "sum prod max min mean var std any all argmax argmin ptp median count_nonzero nansum nanmax nanmean nanmin nanprod average".split() for a in (None, 0, -1)],
    *[case(lambda m, x, n=n: getattr(m, n)(x, axis=(0, 2), keepdims=True), C, id=n) for n in "sum prod max min mean var std any all".split()],
    *[case(lambda m, x, n=n: getattr(m, n)(x, axis=1), I, id=f"{n}-int") for n in "sum prod max min argmax argmin any all cumsum cumprod".split()],
    *[case(lambda m, x, n=n: getattr(m, n)(x, axis=0), U8, id=f"{n}-u8") for n in "sum max min argmax".split()], case(lambda m, x: m.sum(x), T), case(lambda m, x: m.sum(x, 0), T),
    *[case(lambda m, x, n=n, a=a: getattr(m, n)(x, axis=a), A, id=f"{n}-{a}") for n in ("cumsum", "cumprod") for a in (None, 0, 1)],
    case(lambda m, x: m.max(x, axis=1), NANS), case(lambda m, x: m.argmax(x, axis=1), NANS), case(lambda m, x: m.nanmax(x, axis=0), NANS),
    case(lambda m, x: m.var(x, axis=0, ddof=1) if m is np else m.var(x, axis=0, correction=1), A), case(lambda m, x: m.max(x, axis=0, initial=0.5), A),
    case(lambda m, x, w: m.average(x, axis=1, weights=w), A, P[0]), case(lambda m, x: m.diff(x), A), case(lambda m, x: m.diff(x, n=2, axis=0), A),
    case(lambda m, x: m.diff(x, axis=1, prepend=0), I), case(lambda m, x: m.trapezoid(x, axis=1), A), case(lambda m, x: m.trapezoid(x, dx=0.5, axis=0), A),
    case(lambda m, y, x: m.trapezoid(y, x), V, SORTED), case(lambda m, x: m.quantile(x, 0.3), A), case(lambda m, x: m.quantile(x, [0.25, 0.5, 1.0], axis=1), A),
    case(lambda m, x: m.percentile(x, 40, axis=0), A), *[case(lambda m, x, k=k: m.quantile(x, 0.37, axis=1, method=k), A, id=f"quantile-{k}") for k in ("lower", "higher", "nearest", "midpoint")],
    case(lambda m, x: m.median(x), V[:5]), case(lambda m, x: m.cov(x), A), case(lambda m, x: m.max(x, axis=()), A), case(lambda m, x: x.sum(axis=0).mean() + x.std() - x.min(), A),
    case(lambda m, x: m.cumulative_sum(x, axis=1), A), case(lambda m, x: m.cumulative_sum(x, include_initial=True), V), case(lambda m, x: m.cumulative_prod(x, axis=0), A),
]  # fmt: skip

SHAPE = [
    case(lambda m, x: m.reshape(x, (-1, 3)), A, symbolic=False), case(lambda m, x: m.reshape(x, (2, -1)), A.T.copy(), symbolic=False), case(lambda m, x: x.reshape(x.shape[0], 2, 3), A),
    case(lambda m, x: x.reshape(-1), A), case(lambda m, x: m.ravel(x), C), case(lambda m, x: m.transpose(x), C), case(lambda m, x: m.transpose(x, (1, 0, 2)), C),
    case(lambda m, x: m.permute_dims(x, (2, 0, 1)), C), case(lambda m, x: x.T, A), case(lambda m, x: x.mT, C), case(lambda m, x: m.swapaxes(x, 0, -1), C),
    case(lambda m, x: m.moveaxis(x, 0, 2), C), case(lambda m, x: m.moveaxis(x, (0, 1), (-1, 0)), C), case(lambda m, x: m.squeeze(x[None, :, None]), A), case(lambda m, x: m.squeeze(x[:, None], axis=1), A),
    case(lambda m, x: m.expand_dims(x, axis=(0, 2)), A), case(lambda m, x: m.expand_dims(x, axis=-1), A), case(lambda m, x: m.flip(x), A), case(lambda m, x: m.flip(x, axis=1), A),
    case(lambda m, x: (m.fliplr(x), m.flipud(x)), A), *[case(lambda m, x, k=k: m.rot90(x, k), A, id=f"rot90-{k}") for k in range(4)],
    case(lambda m, x: m.broadcast_to(x, (4, 6)), V), case(lambda m, x, y: m.broadcast_arrays(x, y), A, V), case(lambda m, x, y: m.concat([x, y], axis=0), A, B),
    case(lambda m, x, y: m.concatenate((x, y), axis=1), A, B), case(lambda m, x, y: m.concat([x, y], axis=None), A, V), case(lambda m, x, y: m.stack([x, y], axis=1), A, B),
    case(lambda m, x, y: m.hstack([x, y]), A, B), case(lambda m, x, y: m.hstack([x, y]), V, W), case(lambda m, x, y: m.vstack([x, y]), A, V), case(lambda m, x, y: m.dstack([x, y]), A, B),
    case(lambda m, x, y: m.column_stack([x, y]), V, W), case(lambda m, x, y: m.append(x, y, axis=0), A, B), case(lambda m, x: m.block([[x, x], [x, x]]), A),
    case(lambda m, x: m.split(x, 2, axis=1), A), case(lambda m, x: m.split(x, [1, 4], axis=1), A), case(lambda m, x: m.array_split(x, 4, axis=1), A), case(lambda m, x: m.hsplit(x, 3), A),
    case(lambda m, x: m.unstack(x, axis=1), A), case(lambda m, x: m.vsplit(x, 2), A, symbolic=False), case(lambda m, x: m.tile(x, (2, 3)), A), case(lambda m, x: m.tile(x, 2), V), case(lambda m, x: m.tile(x, (2, 1, 1)), A),
    case(lambda m, x: m.repeat(x, 3, axis=1), A), case(lambda m, x: m.repeat(x, 2), A), case(lambda m, x: m.repeat(x, [1, 0, 2, 1, 3, 1], axis=1), A), case(lambda m, x: m.roll(x, 2, axis=1), A),
    case(lambda m, x: m.roll(x, -1, axis=0), A), case(lambda m, x: m.roll(x, 1, axis=0), A), case(lambda m, x: m.roll(x, 9, axis=0), A), case(lambda m, x: m.roll(x, 5), A), case(lambda m, x: m.roll(x, (1, 2), axis=(0, 1)), A),
    case(lambda m, x: m.pad(x, 1), A), case(lambda m, x: m.pad(x, ((1, 2), (0, 3)), constant_values=7), A), case(lambda m, x: m.pad(x, (2, 1)), V), case(lambda m, x: m.pad(x, ((0, 1), (2, 0))), I),
    *[case(lambda m, x, k=k: m.pad(x, ((1, 2), (2, 1)), mode=k), A, id=f"pad-{k}") for k in ("edge", "reflect", "symmetric", "wrap")],
    case(lambda m, x: (m.atleast_1d(x), m.atleast_2d(x), m.atleast_3d(x)), V), case(lambda m, x: m.atleast_3d(x), A), case(lambda m, x: (m.ndim(x), m.size(x, 1)), A),
    case(lambda m, x: x.flatten().squeeze().copy(), A), case(lambda m, x: m.swapaxes(x, 0, 1).repeat(2, axis=0), A),
]  # fmt: skip

CREATE = [
    case(lambda m: m.arange(5)), case(lambda m: m.arange(2, 11, 3)), case(lambda m: m.arange(10, 0, -3)), case(lambda m: m.arange(0.0, 1.0, 0.25, dtype=m.float32)), case(lambda m: m.arange(5, dtype=m.float32)),
    case(lambda m: m.zeros((2, 3), dtype=m.float32)), case(lambda m: m.ones(4, dtype=m.int32)), case(lambda m: m.full((2, 2), 7, dtype=m.float64)), case(lambda m, x: m.full_like(x, 3), A),
    case(lambda m, x: (m.zeros_like(x), m.ones_like(x)), A), case(lambda m, x: m.ones_like(x, dtype=m.int32), A), case(lambda m: m.linspace(0, 1, 7, dtype=m.float32)), case(lambda m: m.linspace(0, 1, 7, endpoint=False, dtype=m.float32)),
    case(lambda m, a, b: m.linspace(a, b, 5), A, B), case(lambda m: m.logspace(0, 2, 5, dtype=m.float32)), case(lambda m: m.geomspace(1, 8, 4, dtype=m.float32)), case(lambda m: m.eye(3, dtype=m.float32)),
    case(lambda m: m.eye(3, 5, k=1, dtype=m.float32)), case(lambda m: m.eye(4, k=-1, dtype=m.int32)), case(lambda m: m.identity(3, dtype=m.float32)), case(lambda m: m.tri(3, 4, 1, dtype=m.float32)),
    case(lambda m, x: (m.tril(x), m.triu(x)), A), case(lambda m, x: (m.tril(x, k=-1), m.triu(x, k=1)), C), case(lambda m, x, y: m.meshgrid(x, y), V, W[:4]), case(lambda m, x, y: m.meshgrid(x, y, indexing="ij"), V, W[:4]),
    case(lambda m: m.asarray([[1, 2], [3, 4]])), case(lambda m: m.array([1.5, 2.5], dtype=m.float32)), case(lambda m: m.indices((2, 3))), case(lambda m: m.fromfunction(lambda i, j: i + j, (2, 3), dtype=m.int64)),
    case(lambda m, x: m.asarray([x[0], x[1] * 2]), V), case(lambda m, x: m.diag(x), V), case(lambda m, x: m.diag(x, k=2), V), case(lambda m, x: m.diag(x, k=-1), V), case(lambda m, x: m.diag(x, k=1), A), case(lambda m, x: m.diagflat(x), A[:2]),
]  # fmt: skip

LINALG = [
    case(lambda m, x, y: x @ y, A, B.T.copy()), case(lambda m, x, y: m.matmul(x, y), A, V), case(lambda m, x, y: m.matmul(x, y), V, D[0]), case(lambda m, x, y: m.matmul(x, y), V, W), case(lambda m, x, y: m.matmul(x, y), C, D),
    case(lambda m, x, y: m.matmul(x, y), A, D), case(lambda m, x, y: m.matmul(x, y), C, D[0]), case(lambda m, x, y: m.matmul(x, y), V, D), case(lambda m, x, y: m.matmul(x, y), C[:, None], D[None, :1]), case(lambda m, x, y: m.matmul(x, y), I, J.T.copy()),
    case(lambda m, x, y: m.tensordot(x, y, axes=1), C, D[0]), case(lambda m, x, y: m.tensordot(x, y, axes=([0, 2], [0, 1])), C, D), case(lambda m, x, y: m.tensordot(x, y, axes=0), V, W), case(lambda m, x, y: m.vecdot(x, y), C, A),
    case(lambda m, x, y: m.dot(x, y), A, V), case(lambda m, x, y: m.dot(x, y), C, D[0]), case(lambda m, x: m.dot(x, 2), A), case(lambda m, x, y: m.dot(x, y), A, D), case(lambda m, x, y: m.vdot(x, y), A, B), case(lambda m, x, y: m.inner(x, y), A, B), case(lambda m, x, y: m.inner(x, y), C, A),
    case(lambda m, x, y: m.outer(x, y), V, W), case(lambda m, x, y: m.kron(x, y), A, S[:2]), case(lambda m, x, y: m.kron(x, y), V, W), case(lambda m, x, y: m.cross(x, y), A[:, :3].copy(), B[:, 3:].copy()), case(lambda m, x: m.matrix_transpose(x), C),
    case(lambda m, x: m.trace(x), A), case(lambda m, x: m.trace(x, 1), A), case(lambda m, x: m.diagonal(x), A), case(lambda m, x: m.diagonal(x, -1), A), case(lambda m, x: m.diagonal(x, 2, 1, 2), C), case(lambda m, x: m.linalg.diagonal(x), C), case(lambda m, x: m.linalg.trace(x), C),
    case(lambda m, x: m.linalg.norm(x), A), case(lambda m, x: m.linalg.norm(x, axis=1), A), *[case(lambda m, x, o=o: m.linalg.norm(x, ord=o), V, id=f"norm-{o}") for o in (1, 2, 3, 0, math.inf, -math.inf)],
    *[case(lambda m, x, o=o: m.linalg.norm(x, ord=o, axis=(1, 2)), C, id=f"mnorm-{o}") for o in ("fro", 1, -1, math.inf, -math.inf)], case(lambda m, x: m.linalg.norm(x, ord=1, axis=(2, 0), keepdims=True), C), case(lambda m, x: m.linalg.vector_norm(x, axis=0, ord=3), A),
    case(lambda m, x: m.linalg.matrix_norm(x), C), case(lambda m, x: m.linalg.matrix_power(x, 5), S, symbolic=False), case(lambda m, x: m.linalg.matrix_power(x, 0), S, symbolic=False), case(lambda m, x, y, z: m.linalg.multi_dot([x, y, z]), A, B.T.copy(), S), case(lambda m, x, y, z: m.linalg.multi_dot([x, y, z]), V, A.T.copy(), W[:4]),
    case(lambda m, x: m.vander(x), V, symbolic=False), case(lambda m, x, y: m.matvec(x, y), C, V), case(lambda m, x, y: m.vecmat(x, y), V, D),
]  # fmt: skip

INDEX = [
    case(lambda m, x: m.take(x, m.asarray([0, 3, -1]), axis=1), A), case(lambda m, x: m.take(x, m.asarray([[0, 1], [2, 3]]), axis=0), A), case(lambda m, x, i: m.take(x, i), V, K), case(lambda m, x, i: m.take(x, i, axis=1), A, K),
    case(lambda m, x, i: m.take_along_axis(x, i, axis=1), A, np.argsort(A, axis=1)), case(lambda m, x, i: m.take_along_axis(x, i, axis=0), A, np.argsort(A, axis=0)[:2]), case(lambda m, x: m.sort(x), A), case(lambda m, x: m.sort(x, axis=0), NANS),
    case(lambda m, x: m.sort(x, axis=None), A), case(lambda m, x: m.argsort(x, axis=0), A), case(lambda m, x, y: m.searchsorted(x, y), SORTED, A), case(lambda m, x, y: m.searchsorted(x, y, side="right"), np.array([1, 2, 2, 3]), np.array([2, 0, 9])),
    case(lambda m, x: m.digitize(x, m.asarray([-1.0, 0.0, 1.5], dtype=m.float32)), A), case(lambda m, x, p, f: m.interp(x, p, f), A[0], SORTED, W), case(lambda m, x, p, f: m.interp(x, p, f, left=-9.0, right=9.0), np.linspace(-3, 3, 9).astype(np.float32), SORTED, W),
    case(lambda m, x: m.histogram(x, bins=5, range=(-2, 2)), A), case(lambda m, x: m.histogram(x, bins=4), A), case(lambda m, x: m.histogram(x, bins=m.asarray([-2.0, 0.0, 0.5, 2.0], dtype=m.float32)), A), case(lambda m, x, y: m.isin(x, y), I, K),
    case(lambda m, x: m.where(x > 0, x, x[::-1]), A), case(lambda m, x: x[::-1, ::2], A), case(lambda m, x: x[1:, :-1], A), case(lambda m, x: x[-2:, 1:5:2], A), case(lambda m, x: x[:, ::-2], A), case(lambda m, x: x[:, 4:0:-2], A), case(lambda m, x: x[:, 5:0:-3], A), case(lambda m, x: x[:, -2:-5:-1], A),
    case(lambda m, x: x[0], A), case(lambda m, x: x[..., 1], C), case(lambda m, x: x[:, None, 2:4, ...], A), case(lambda m, x: x[None], A), case(lambda m, x: x[-1, -1], A), case(lambda m, x: x[1:1], A), case(lambda m, x: x[10:], A), case(lambda m, x: x[:, 3:2], A), case(lambda m, x: x[:100, -100:], A),
    case(lambda m, x, i: x[i], A, K % 4), case(lambda m, x, i: x[:, i], A, K - 3), case(lambda m, x, i: x[i, i + 1], A, K % 4), case(lambda m, x, i: x[:, i, ::2], C, K % 4), case(lambda m, x, i: x[i[:, None] % 3, :, i % 5], C, K), case(lambda m, x, i: x[0, :, i], C, K % 6), case(lambda m, x, i: x[0, i], C, K % 4), case(lambda m, x, i: x[..., i, None], C, K),
    case(lambda m, x: x[np.array([True, False, True, False, False, True])], V, symbolic=False), case(lambda m, x: x[[0, 2], 1:3], A), case(lambda m, x: x[np.array([[0, -1], [1, 2]]), ..., 0], A), case(lambda m, x: x[:, [1, 1, 0]][:, 1], A), case(lambda m, x, i: x[i[0], 1:], A, K % 4), case(lambda m, x, i: x[i[0], i[1]], A, K % 4),
]  # fmt: skip

ALL = [*ELEMENTWISE, *REDUCE, *SHAPE, *CREATE, *LINALG, *INDEX]


def flat(x: Any) -> list[Any]:
    return tree.flatten(x)[0]


def assert_same(got: Any, want: Any) -> None:
    """Equal values, shapes and kinds of type. numpy computes in f64 where Python numbers stand alone; see the types test."""
    got, want = flat(got), flat(want)
    assert len(got) == len(want)
    for g, w in zip(got, want):
        g, w = np.asarray(g), np.asarray(w)
        assert g.shape == w.shape
        assert g.dtype.kind == w.dtype.kind, f"{g.dtype} is not {w.dtype}"
        if w.dtype.kind == "f":
            np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-6)
        else:
            np.testing.assert_array_equal(g, w)


def expected(c: Any) -> Any:
    with np.errstate(all="ignore"):
        return c.f(np, *c.args)


@pytest.mark.parametrize("c", [p for p in ALL if p.values[0].eager])
def test_eager_is_numpy(c: Any) -> None:
    with np.errstate(all="ignore"):
        got = c.f(fx, *c.args)
    assert_same(got, expected(c))


@pytest.mark.parametrize("c", ALL)
def test_traced_is_numpy(c: Any) -> None:
    t = trace(lambda *xs: c.f(fx, *xs), [x.copy() for x in c.args])
    verify_module(t.module)
    got = interpret(t.module, c.args)
    assert_same(t.out_tree.unflatten(got), expected(c))


SYMBOLIC = [p for p in ALL if p.values[0].symbolic and p.values[0].args]


def symbolic_types(args: Any) -> tuple[list[TensorType], Facts]:
    """Leading axes become symbols, equal ones the same; each is at least 2."""
    names: dict[int, str] = {}
    types = []
    for x in args:
        shape: list[Any] = list(x.shape)
        if shape and shape[0] > 1:
            shape[0] = names.setdefault(shape[0], f"N{shape[0]}")
        types.append(TensorType.of(x.dtype, shape))
    return types, Facts({n: (4 if d >= 4 else 2, 1 << 62) for d, n in names.items() if d >= 2})


@pytest.mark.parametrize("c", SYMBOLIC)
def test_symbolic_is_numpy(c: Any) -> None:
    types, facts = symbolic_types(c.args)
    t = trace(lambda *xs: c.f(fx, *xs), types, facts=facts)
    verify_module(t.module)
    assert_same(t.out_tree.unflatten(interpret(t.module, c.args)), expected(c))


@pytest.mark.deep
@pytest.mark.parametrize("c", [p for p in ALL if p.values[0].args])
def test_native_code_is_numpy(c: Any) -> None:
    compiled = fx.jit(lambda *xs: c.f(fx, *xs)).lower(*c.args).compile("cpu", cache=False)
    assert_same(compiled(*c.args), expected(c))


@pytest.mark.deep
@pytest.mark.parametrize("c", SYMBOLIC)
def test_native_code_of_symbolic_sizes_is_numpy(c: Any) -> None:
    types, facts = symbolic_types(c.args)
    compiled = fx.jit(lambda *xs: c.f(fx, *xs), facts=facts).lower(*types).compile("cpu", cache=False)
    assert_same(compiled(*c.args), expected(c))


def test_results_are_typed_like_numpy_where_arrays_decide() -> None:
    assert fx.sum(np.ones(3, np.float32)).dtype == np.float32
    assert fx.sum(np.ones(3, np.int32)).dtype == np.int64
    assert fx.sum(np.ones(3, np.uint8)).dtype == np.uint64
    assert fx.mean(np.ones(3, np.float16)).dtype == np.float16
    assert fx.add(np.ones(3, np.float32), 1).dtype == np.float32
    assert fx.add(np.ones(3, np.int8), np.ones(3, np.uint8)).dtype == np.int16
    assert fx.argmax(np.ones(3, np.float32)).dtype == np.int64
    assert fx.arange(3).dtype == np.int64
    assert fx.zeros(3).dtype == np.float32
    assert fx.asarray([1.0, 2.0]).dtype == np.float32


def test_eager_calls_give_numpy_arrays() -> None:
    assert type(fx.exp(A)) is np.ndarray
    assert type(fx.top_k(V, 2)) is tuple
    assert isinstance(fx.unique_all(K), tuple) and type(fx.unique_all(K).values) is np.ndarray


def test_sets_without_bound_outside_a_trace() -> None:
    r = fx.unique_all(np.array([3, 1, 3, 2, 1]))
    v, i, inv, n = np.unique(np.array([3, 1, 3, 2, 1]), return_index=True, return_inverse=True, return_counts=True)
    for a, b in zip(r, (v, i, inv, n)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.stack(fx.nonzero(T)), np.stack(np.nonzero(T)))
    np.testing.assert_array_equal(fx.argwhere(T), np.argwhere(T))
    np.testing.assert_array_equal(fx.bincount(K), np.bincount(K))
    np.testing.assert_array_equal(
        fx.bincount(K, weights=np.ones(7, np.float32), minlength=9), np.bincount(K, minlength=9)
    )


def test_sets_with_bound_in_a_trace() -> None:
    t = trace(
        lambda x: (fx.unique_counts(x, size=5), fx.nonzero(x > 1, size=4, fill_value=-1), fx.bincount(x, length=3)), [K]
    )
    x = np.array([3, 1, 3, 2, 1, 0, 3])
    (values, counts), (places,), bins = t.out_tree.unflatten(interpret(t.module, [x]))
    np.testing.assert_array_equal(values, [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(counts, [1, 2, 1, 3, 0])
    np.testing.assert_array_equal(places, [0, 2, 3, 6])
    np.testing.assert_array_equal(bins, [1, 2, 1])


@pytest.mark.parametrize(
    ("code", "f"),
    [
        ("FX0221", lambda x: fx.where(x > 0)), ("FX0230", lambda x: fx.extent(x)), ("FX0214", lambda x: x[x]),
        ("FX0216", lambda x: x[9]), ("FX0216", lambda x: x[0, 0, 0]), ("FX0216", lambda x: x[::0]), ("FX0216", lambda x: x[fx.asarray([0, 7])]), ("FX0302", lambda x: x[fx.argmax(x) :]),
        ("FX0205", lambda x: fx.sum(x, axis=2)), ("FX0206", lambda x: fx.sum(x, axis=(1, -1))), ("FX0207", lambda x: fx.transpose(x, (0,))), ("FX0204", lambda x: x.reshape(5, -1)), ("FX0204", lambda x: x.reshape(-1, -1)),
        ("FX0203", lambda x: x @ x), ("FX0202", lambda x: x + x.T), ("FX0201", lambda x: x + fx.arange(6)), ("FX0209", lambda x: fx.exp(fx.arange(6))), ("FX0209", lambda x: fx.arange(6) / 2), ("FX0201", lambda x: fx.arange(6) * 0.5),
        ("FX0217", lambda x: fx.zeros(3, "u8") + 256), ("FX0218", lambda x: fx.zeros((3, -1))), ("FX0208", lambda x: fx.stack([x, x.T])), ("FX0215", lambda x: fx.einsum("ij->k", x)), ("FX0215", lambda x: fx.einsum("ij,jk->ik", x)),
        ("FX0203", lambda x: fx.einsum("ij,ij->i", x, x.T)), ("FX0223", lambda x: fx.pad(x, ((1, 1), (1, 1), (1, 1)))), ("FX0223", lambda x: fx.pad(x, 9, mode="reflect")), ("FX0225", lambda x: fx.max(x[:0], axis=0)), ("FX0220", lambda x: fx.matmul(x, 2.0)),
        ("FX0226", lambda x: fx.bitcast(x, fx.i64)), ("FX0227", lambda x: fx.random.normal(0, (3,))), ("FX0229", lambda x: fx.asarray("abc")), ("FX0229", lambda x: fx.asarray([[1, 2], [3]])), ("FX0325", lambda x: fx.asarray(np.ones(2, complex))), ("FX0302", lambda x: fx.arange(fx.sum(x))),
        ("FX0210", lambda x: fx.conv(x[None, None], fx.ones((1, 2, 3, 3)))), ("FX0221", lambda x: fx.split(x, 5, axis=1)), ("FX0215", lambda x: fx.einsum("i->", x)),
    ],
)  # fmt: skip
def test_mistakes_are_explained_at_the_users_line(code: str, f: Callable[..., Any]) -> None:
    with pytest.raises(FluxError) as caught:
        trace(f, [A])
    assert caught.value.code == code
    assert caught.value.loc is not None and caught.value.loc.file == __file__
