"""Classical models of ai.onnx.ml against plain loops over rows, on random models; n-grams; random numbers by their statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from tests.onnx_build import graph, model, node, value

ML = "ai.onnx.ml"
COMPARE = {
    "BRANCH_LEQ": np.less_equal, "BRANCH_LT": np.less, "BRANCH_GTE": np.greater_equal, "BRANCH_GT": np.greater,
    "BRANCH_EQ": np.equal, "BRANCH_NEQ": np.not_equal,
}  # fmt: skip


def load(path: Path, n: bytes, outputs: list[str], *inputs: bytes) -> Any:
    (path / "m.onnx").write_bytes(
        model(graph([n], inputs or [value("x", ["n", 3])], [value(o) for o in outputs]), ai_onnx_ml=3)
    )
    return fx.onnx.load(path / "m.onnx")


def forest(rng: Any, trees: int, depth: int) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Random trees as attributes, and the leaves (tree, node)."""
    keys = "treeids nodeids featureids values modes truenodeids falsenodeids missing_value_tracks_true"
    a: dict[str, list[Any]] = {f"nodes_{k}": [] for k in keys.split()}
    leaves: list[tuple[int, int]] = []
    for t in range(trees):
        count = 0

        def grow(d: int, t: int = t) -> int:
            nonlocal count
            me, count = count, count + 1
            leaf = d == 0 or d < depth and rng.random() < 0.3
            row = [
                t,
                me,
                int(rng.integers(3)),
                float(np.float32(round(rng.normal(), 1))),
                "LEAF" if leaf else str(rng.choice(list(COMPARE))),
                0,
                0,
                int(rng.integers(2)),
            ]
            at = len(a["nodes_nodeids"])
            for k, v in zip(a, row, strict=True):
                a[k].append(v)
            if leaf:
                leaves.append((t, me))
            else:
                a["nodes_truenodeids"][at], a["nodes_falsenodeids"][at] = grow(d - 1), grow(d - 1)
            return me

        grow(depth)
    return a, leaves


def reached(a: dict[str, Any], row: Any) -> list[tuple[int, int]]:
    """The leaf of each tree that a row comes to."""
    by = {(t, n): k for k, (t, n) in enumerate(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))}
    out = []
    for t in sorted(set(a["nodes_treeids"])):
        n = 0
        while a["nodes_modes"][k := by[t, n]] != "LEAF":
            v = row[a["nodes_featureids"][k]]
            yes = COMPARE[a["nodes_modes"][k]](v, np.float32(a["nodes_values"][k]))
            yes = yes or np.isnan(v) and a["nodes_missing_value_tracks_true"][k]
            n = a["nodes_truenodeids" if yes else "nodes_falsenodeids"][k]
        out.append((t, n))
    return out


def rows(rng: Any, n: int = 9) -> Any:
    x = rng.normal(size=(n, 3)).round(1).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("seed", range(3))
def test_tree_regressors(tmp_path: Path, how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, leaves = forest(rng, trees=3, depth=seed + 1)
    weights = {(leaf, k): float(np.float32(rng.normal())) for leaf in leaves for k in range(2)}
    n = node("TreeEnsembleRegressor", ["x"], ["y"], ML, n_targets=2, aggregate_function=how, base_values=[0.5, -1.0],
             target_treeids=[t for (t, _), _ in weights], target_nodeids=[i for (_, i), _ in weights],
             target_ids=[k for _, k in weights], target_weights=list(weights.values()), **a)  # fmt: skip
    m, x = load(tmp_path, n, ["y"]), rows(rng)
    joined = {"SUM": np.sum, "AVERAGE": np.mean, "MIN": np.min, "MAX": np.max}[how]
    want = [[joined([weights[leaf, k] for leaf in reached(a, row)]) for k in range(2)] for row in x]
    np.testing.assert_allclose(m(x), np.array(want) + [0.5, -1.0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_tree_classifiers(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(10 + seed)
    a, leaves = forest(rng, trees=4, depth=2)
    labels = [7, 3, 5]
    weights = {(leaf, k): float(np.float32(rng.random())) for leaf in leaves for k in range(3)}
    n = node("TreeEnsembleClassifier", ["x"], ["label", "y"], ML, classlabels_int64s=labels, post_transform="SOFTMAX",
             class_treeids=[t for (t, _), _ in weights], class_nodeids=[i for (_, i), _ in weights],
             class_ids=[k for _, k in weights], class_weights=list(weights.values()), **a)  # fmt: skip
    m, x = load(tmp_path, n, ["label", "y"]), rows(rng)
    scores = np.array([[sum(weights[leaf, k] for leaf in reached(a, row)) for k in range(3)] for row in x])
    label, y = m(x)
    np.testing.assert_array_equal(label, np.array(labels)[scores.argmax(1)])
    np.testing.assert_allclose(y, np.exp(scores) / np.exp(scores).sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("post", "negative"), [("NONE", False), ("NONE", True), ("LOGISTIC", True), ("LOGISTIC", False)]
)
def test_one_score_for_two_classes(tmp_path: Path, post: str, negative: bool) -> None:
    """Boosted trees say only the score of the second class."""
    rng = np.random.default_rng(5)
    a, leaves = forest(rng, trees=2, depth=2)
    weights = {leaf: float(np.float32(rng.random() - 0.5 * negative)) for leaf in leaves}
    n = node("TreeEnsembleClassifier", ["x"], ["label", "y"], ML, classlabels_int64s=[4, 9], post_transform=post, base_values=[0.25],
             class_treeids=[t for t, _ in weights], class_nodeids=[i for _, i in weights], class_ids=[0] * len(weights),
             class_weights=list(weights.values()), **a)  # fmt: skip
    m, x = load(tmp_path, n, ["label", "y"]), rows(rng)
    s = np.array([sum(weights[leaf] for leaf in reached(a, row)) for row in x]) + 0.25
    label, y = m(x)
    np.testing.assert_array_equal(label, np.where(s > (0 if negative else 0.5), 9, 4))
    p = 1 / (1 + np.exp(-s))
    want = [1 - p, p] if post == "LOGISTIC" else [-s if negative else 1 - s, s]
    np.testing.assert_allclose(y, np.stack(want, 1), rtol=1e-5, atol=1e-6)


def test_texts_as_labels_are_refused(tmp_path: Path) -> None:
    a, leaves = forest(np.random.default_rng(0), trees=1, depth=1)
    n = node("TreeEnsembleClassifier", ["x"], ["label", "y"], ML, classlabels_strings=["a", "b"], class_treeids=[0] * len(leaves),
             class_nodeids=[i for _, i in leaves], class_ids=[0] * len(leaves), class_weights=[1.0] * len(leaves), **a)  # fmt: skip
    with pytest.raises(FluxError) as e:
        load(tmp_path, n, ["label", "y"])(np.zeros((1, 3), np.float32))
    assert e.value.code == "FX1208" and "texts" in e.value.message


def kernel(kind: str, x: Any, v: Any, gamma: float, c: float, d: float) -> float:
    dot = float(x @ v)
    return {
        "LINEAR": dot,
        "POLY": (gamma * dot + c) ** d,
        "SIGMOID": np.tanh(gamma * dot + c),
        "RBF": np.exp(-gamma * ((x - v) ** 2).sum()),
    }[kind]


@pytest.mark.parametrize("kind", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_support_vectors(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    v, x = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    params = [0.5, 0.25, 2.0]
    k = np.array([[kernel(kind, row, u, *params) for u in v] for row in x])
    c = rng.normal(size=5).astype(np.float32)
    n = node("SVMRegressor", ["x"], ["y"], ML, n_supports=5, coefficients=c.tolist(), support_vectors=v.ravel().tolist(),
             kernel_type=kind, kernel_params=params, rho=[0.75])  # fmt: skip
    np.testing.assert_allclose(load(tmp_path, n, ["y"])(x)[:, 0], k @ c + 0.75, rtol=1e-4, atol=1e-5)

    # Three classes with 2, 1 and 2 vectors: votes of pairs, LIBSVM's layout of coefficients.
    counts, c = [2, 1, 2], rng.normal(size=(2, 5)).astype(np.float32)
    rho = rng.normal(size=3).astype(np.float32)
    n = node("SVMClassifier", ["x"], ["label", "y"], ML, classlabels_ints=[5, 6, 7], coefficients=c.ravel().tolist(),
             support_vectors=v.ravel().tolist(), vectors_per_class=counts, kernel_type=kind, kernel_params=params,
             rho=rho.tolist())  # fmt: skip
    label, y = load(tmp_path, n, ["label", "y"])(x)
    ends, votes, scores = np.cumsum([0, *counts]), np.zeros((6, 3)), []
    for p, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        first, second = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
        s = k[:, first] @ c[j - 1, first] + k[:, second] @ c[i, second] + rho[p]
        scores.append(s)
        votes[:, i] += s > 0
        votes[:, j] += s <= 0
    np.testing.assert_allclose(y, np.stack(scores, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(label, 5 + votes.argmax(1))


def test_probabilities_of_support_vectors_solve_their_equations(tmp_path: Path) -> None:
    """Wu, Lin and Weng: the probabilities p minimise the sum of (r[j,i] p[i] - r[i,j] p[j])^2 over the pairs, with sum 1."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    c, v = rng.normal(size=(2, 3)), rng.normal(size=(3, 3))
    n = node("SVMClassifier", ["x"], ["label", "y"], ML, classlabels_ints=[0, 1, 2], coefficients=c.ravel().tolist(),
             support_vectors=v.ravel().tolist(), vectors_per_class=[1, 1, 1], kernel_type="LINEAR", rho=[0.1, 0.2, 0.3],
             prob_a=[-1.0, -1.5, -0.5], prob_b=[0.1, 0.0, -0.2])  # fmt: skip
    _, p = load(tmp_path, n, ["label", "y"])(x)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    k = x @ v.T
    pairs = [(0, 1), (0, 2), (1, 2)]
    r = np.zeros((4, 3, 3))
    for q, (i, j) in enumerate(pairs):
        s = k[:, i] * c[j - 1, i] + k[:, j] * c[i, j] + [0.1, 0.2, 0.3][q]
        r[:, i, j] = 1 / (1 + np.exp(s * [-1.0, -1.5, -0.5][q] + [0.1, 0.0, -0.2][q]))
        r[:, j, i] = 1 - r[:, i, j]
    for row in range(4):
        m = np.array(
            [
                [
                    sum(r[row, b, i] ** 2 for b in range(3) if b != i) if i == j else -r[row, j, i] * r[row, i, j]
                    for j in range(3)
                ]
                for i in range(3)
            ]
        )
        want = np.linalg.solve(np.block([[m, -np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]]), [0, 0, 0, 1])[:3]
        np.testing.assert_allclose(p[row], want, atol=5e-3)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("skips", [0, 2])
def test_grams(tmp_path: Path, mode: str, skips: int) -> None:
    rng = np.random.default_rng(3)
    grams = [(1,), (3,), (2, 1), (0, 0), (3, 2), (1, 2, 3), (0, 1, 0)]
    columns = [5, 0, 3, 1, 6, 2, 4]
    weights = rng.random(7).astype(np.float32)
    n = node("TfIdfVectorizer", ["x"], ["y"], max_gram_length=3, min_gram_length=1, max_skip_count=skips, mode=mode,
             ngram_counts=[0, 2, 8], ngram_indexes=columns, pool_int64s=[t for g in grams for t in g], weights=weights.tolist())  # fmt: skip
    m = load(tmp_path, n, ["y"], value("x", ["n", "m"], "int64"))
    for shape in [(2, 9), (1, 1), (4, 5)]:
        x = rng.integers(0, 4, shape)
        counts = np.zeros((shape[0], 7))
        for row in range(shape[0]):
            for g, column in zip(grams, columns, strict=True):
                for step in range(1, skips + 2 if len(g) > 1 else 2):
                    for at in range(shape[1] - step * (len(g) - 1)):
                        counts[row, column] += all(x[row, at + step * k] == t for k, t in enumerate(g))
        want = {"TF": counts, "IDF": (counts > 0) * weights, "TFIDF": counts * weights}[mode]
        np.testing.assert_allclose(m(x), want, rtol=1e-6)


def test_the_largest_element_of_regions(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    rois = np.array([[0, 0, 0, 6, 5], [1, 2, 1, 3, 4], [1, 5, 4, 9, 9], [0, 3, 3, 3, 3]], np.float32)
    n = node("MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=[2, 3], spatial_scale=0.9)
    got = load(tmp_path, n, ["y"], value("x", ["n", 3, 6, 7]), value("rois", ["r", 5]))(x, rois)
    assert got.shape == (4, 3, 2, 3)
    for r, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (int(np.floor(v * np.float32(0.9) + 0.5)) for v in box)
        h, w = max(y2 - y1 + 1, 1) / 2, max(x2 - x1 + 1, 1) / 3
        for i in range(2):
            for j in range(3):
                part = x[
                    int(image),
                    :,
                    y1 + int(np.floor(i * h)) : y1 + int(np.ceil((i + 1) * h)),
                    x1 + int(np.floor(j * w)) : x1 + int(np.ceil((j + 1) * w)),
                ]
                want = part.max((1, 2)) if part.size else np.zeros(3)
                np.testing.assert_array_equal(got[r, :, i, j], want)


def test_random_numbers_have_the_statistics_that_were_asked_for(tmp_path: Path) -> None:
    """Shape and dtype; mean and spread within five standard errors; the same numbers on every call; others for other seeds."""
    size, n = (100, 200), 20_000

    def draw(op: str, seed: float, **attributes: Any) -> Any:
        m = load(tmp_path, node(op, ["x"], ["y"], seed=seed, **attributes), ["y"], value("x", list(size)))
        x = np.full(size, 0.3, np.float32)
        first = m(x)
        np.testing.assert_array_equal(first, m(x))
        assert first.shape == size
        return first

    u = draw("RandomUniformLike", 1.0, low=-1.0, high=3.0)
    assert u.dtype == np.float32 and u.min() >= -1 and u.max() < 3 and abs(u.mean() - 1) < 5 * 4 / 12**0.5 / n**0.5
    g = draw("RandomNormalLike", 1.0, mean=2.0, scale=0.5, dtype=11)
    assert (
        g.dtype == np.float64 and abs(g.mean() - 2) < 5 * 0.5 / n**0.5 and abs(g.std() - 0.5) < 5 * 0.5 / (2 * n) ** 0.5
    )
    b = draw("Bernoulli", 1.0, dtype=6)
    assert b.dtype == np.int32 and set(np.unique(b)) == {0, 1} and abs(b.mean() - 0.3) < 5 * (0.21 / n) ** 0.5
    assert (draw("Bernoulli", 2.0, dtype=6) != b).any()
    p = np.log(np.array([[0.1, 0.2, 0.7]], np.float32))
    m = load(tmp_path, node("Multinomial", ["x"], ["y"], sample_size=n, seed=3.0), ["y"], value("x", [1, 3]))
    share = np.bincount(m(p)[0], minlength=3) / n
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=5 * (0.25 / n) ** 0.5)
