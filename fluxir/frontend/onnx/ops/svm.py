"""ai.onnx.ml: support vector machines, as LIBSVM has them (Chang and Lin, 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Results
from fluxir.frontend.onnx.ops.ml import ML, post_transformed, two_scores
from fluxir.frontend.onnx.registry import Floats, Int, Ints, Text, Texts, op
from fluxir.ir.dtypes import f32

ROUNDS = 100  # of the fixed point that joins the probabilities of pairs


def _kernel(x: Any, vectors: Any, kind: str, params: Floats) -> Any:
    """Kernel values [rows, vectors]; `params` are gamma, the constant and the degree."""
    gamma, constant, degree = (np.float32(v) for v in (*params, 0.0, 0.0, 0.0)[:3])
    if kind == "RBF":
        apart = fx.subtract(fx.expand_dims(x, axis=1), vectors)
        return fx.exp(fx.multiply(fx.sum(fx.square(apart), axis=2), -gamma))
    products = fx.matmul(x, vectors.T)
    if kind == "LINEAR":
        return products
    shifted = fx.add(fx.multiply(products, gamma), constant)
    if kind == "POLY":
        return fx.pow(shifted, degree)
    if kind == "SIGMOID":
        return fx.tanh(shifted)
    raise ValueError(f"there is no kernel {kind!r}")


def _floats(x: Any) -> Any:
    x = fx.cast(x, f32)
    return x if fx.rank(x) > 1 else fx.reshape(x, (1, -1))


@op("SVMRegressor", domain=ML)
def svm_regressor(
    x: Any, *, coefficients: Floats = (), kernel_params: Floats = (), kernel_type: Text = "LINEAR", n_supports: Int = 0,
    one_class: Int = 0, post_transform: Text = "NONE", rho: Floats = (0.0,), support_vectors: Floats = (),
) -> Any:  # fmt: skip
    x, weights = _floats(x), np.array(coefficients, np.float32)
    if n_supports:
        vectors = np.array(support_vectors, np.float32).reshape(n_supports, -1)
        y = fx.matmul(_kernel(x, vectors, kernel_type, kernel_params), weights.reshape(-1, 1))
    else:
        y = fx.matmul(x, weights.reshape(-1, 1))
    y = fx.add(y, np.float32(rho[0]))
    if one_class:
        return fx.where(fx.greater(y, np.float32(0)), np.float32(1), np.float32(-1))
    return post_transformed(y, post_transform if post_transform == "PROBIT" else "NONE")


@op("SVMClassifier", domain=ML)
def svm_classifier(
    x: Any, *, classlabels_ints: Ints | None = None, classlabels_strings: Texts | None = None, coefficients: Floats,
    kernel_params: Floats = (), kernel_type: Text = "LINEAR", post_transform: Text = "NONE", prob_a: Floats = (),
    prob_b: Floats = (), rho: Floats = (), support_vectors: Floats = (), vectors_per_class: Ints = (),
) -> Any:  # fmt: skip
    if not classlabels_ints:
        raise error("FX1208", "SVMClassifier with texts as labels", help="export it with integer labels")
    x, labels = _floats(x), np.array(classlabels_ints, np.int64)
    if not vectors_per_class:
        return _linear(x, labels, np.array(coefficients, np.float32), rho, post_transform)
    n = len(labels)
    vectors = np.array(support_vectors, np.float32).reshape(sum(vectors_per_class), -1)
    weights = _pair_weights(np.array(coefficients, np.float32).reshape(n - 1, -1), vectors_per_class)
    scores = fx.matmul(_kernel(x, vectors, kernel_type, kernel_params), weights)
    scores = fx.add(scores, np.array(rho, np.float32))  # [rows, pairs]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    label = fx.take(labels, fx.argmax(_votes(scores, pairs, n), axis=1))
    if prob_a:
        return Results(
            (label, post_transformed(_joined(_pair_chances(scores, prob_a, prob_b), pairs, n), post_transform))
        )
    if n == 2:
        return Results((label, two_scores(scores, post_transform != "NONE", post_transform)))
    return Results((label, post_transformed(scores, post_transform)))


def _votes(scores: Any, pairs: list[tuple[int, int]], n: int) -> Any:
    """How many pairs each class wins: the first class of a pair where its score is positive."""
    first, second = np.zeros((len(pairs), n), np.float32), np.zeros((len(pairs), n), np.float32)
    for k, (i, j) in enumerate(pairs):
        first[k, i] = second[k, j] = 1
    won = fx.cast(fx.greater(scores, np.float32(0)), f32)
    return fx.add(fx.matmul(won, first), fx.matmul(fx.subtract(np.float32(1), won), second))


def _pair_weights(coefficients: Any, counts: Ints) -> Any:
    """[vectors, pairs]: the vectors of both classes of a pair, each with its coefficients against the other one."""
    n, ends = len(counts), np.cumsum((0, *counts))
    out = np.zeros((int(ends[-1]), n * (n - 1) // 2), np.float32)
    k = 0
    for i in range(n):
        for j in range(i + 1, n):
            first, second = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
            out[first, k], out[second, k] = coefficients[j - 1, first], coefficients[i, second]
            k += 1
    return out


def _pair_chances(scores: Any, a: Floats, b: Floats) -> Any:
    """The probability that the first class of each pair is the right one (Platt, 2000)."""
    z = fx.add(fx.multiply(scores, np.array(a, np.float32)), np.array(b, np.float32))
    return fx.clip(fx.sigmoid(fx.negative(z)), np.float32(1e-7), np.float32(1 - 1e-7))


def _joined(chances: Any, pairs: list[tuple[int, int]], n: int) -> Any:
    """Probabilities [rows, classes] from those of pairs: the second method of Wu, Lin and Weng (2004), whose fixed point is
    found by the iteration that they give."""
    rows = chances.shape[0]
    first = np.zeros((len(pairs), n, n), np.float32)
    second = first.copy()
    for k, (i, j) in enumerate(pairs):
        first[k, i, j] = second[k, j, i] = 1
    flat = len(pairs), n * n
    r = fx.add(
        fx.matmul(chances, first.reshape(flat)), fx.matmul(fx.subtract(np.float32(1), chances), second.reshape(flat))
    )
    r = fx.reshape(r, (rows, n, n))  # r[i, j]: i rather than j
    turned = fx.transpose(r, (0, 2, 1))
    own = fx.sum(fx.square(turned), axis=2, keepdims=True)
    q = fx.subtract(fx.multiply(own, np.eye(n, dtype=np.float32)), fx.multiply(turned, r))
    limit = np.float32(0.005 / n)

    def more(s: Any) -> Any:
        t, p = s
        qp, pqp = _products(q, p)
        far = fx.max(fx.abs(fx.subtract(qp, pqp)), axis=1)
        return fx.logical_and(fx.less(t, np.int64(max(ROUNDS, n))), fx.any(fx.greater_equal(far, limit)))

    def step(s: Any) -> Any:
        t, p = s
        qp, pqp = _products(q, p)
        done = fx.less(fx.max(fx.abs(fx.subtract(qp, pqp)), axis=1, keepdims=True), limit)
        new = p
        for k in range(n):
            diagonal = fx.item(q, (slice(None), k, slice(k, k + 1)))
            change = fx.divide(fx.subtract(pqp, _at(qp, k)), diagonal)
            total = fx.add(change, np.float32(1))
            mine = np.eye(n, dtype=np.float32)[k]
            column = fx.item(q, (slice(None), k))
            inner = fx.add(
                pqp, fx.multiply(change, fx.add(fx.multiply(change, diagonal), fx.multiply(np.float32(2), _at(qp, k))))
            )
            pqp = fx.divide(fx.divide(inner, total), total)
            qp = fx.divide(fx.add(qp, fx.multiply(change, column)), total)
            new = fx.divide(fx.add(new, fx.multiply(change, mine)), total)
        return fx.add(t, np.int64(1)), fx.where(done, p, new)

    start = fx.full((rows, n), np.float32(1 / n))
    return fx.while_loop(more, step, (fx.asarray(np.int64(0)), start))[1]


def _at(v: Any, k: int) -> Any:
    return fx.item(v, (slice(None), slice(k, k + 1)))


def _products(q: Any, p: Any) -> tuple[Any, Any]:
    """Q p and p' Q p."""
    qp = fx.reshape(fx.matmul(q, fx.expand_dims(p, axis=2)), p.shape)
    return qp, fx.sum(fx.multiply(qp, p), axis=1, keepdims=True)


def _linear(x: Any, labels: Any, coefficients: Any, rho: Floats, post: str) -> Results:
    """Without vectors: a weight a feature for each class."""
    n = len(labels)
    scores = fx.add(fx.matmul(x, coefficients.reshape(n, -1).T), np.float32(rho[0] if rho else 0))
    return Results((fx.take(labels, fx.argmax(scores, axis=1)), post_transformed(scores, post)))
