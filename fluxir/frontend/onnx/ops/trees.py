"""ai.onnx.ml: forests of decision trees, in the form of TreeEnsemble and in the two forms before it.

A forest is walked for all rows and trees at once: each step of a loop moves every (row, tree) one level down. The choices
that the standard leaves open (one class with two labels, base values) are those of onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import few
from fluxir.frontend.onnx.graph import Results
from fluxir.frontend.onnx.ops.ml import ML, post_transformed, two_scores
from fluxir.frontend.onnx.registry import Const, Floats, Int, Ints, Text, Texts, op
from fluxir.ir.dtypes import f32, f64

_MODES = {
    "BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4, "BRANCH_NEQ": 5, "LEAF": 255,
}  # fmt: skip


@fx.public
def forest(
    x: Any,
    roots: Any,
    feature: Any,
    value: Any,
    mode: Any,
    yes: Any,
    no: Any,
    leaf: Any,
    missing: Any,
    depth: int,
    sets: Any,
) -> Any:
    """The leaf of each (row, tree): i64[rows, trees]. A node with mode 255 is a leaf."""
    rows, trees = x.shape[0], len(roots)
    at = fx.broadcast_to(fx.asarray(np.asarray(roots, np.int64)), (rows, trees))
    if depth == 0:
        return at

    def step(_: Any, at: Any) -> Any:
        f = fx.take(feature, at, axis=0)
        v = fx.take_along_axis(x, f, axis=1)
        t = fx.cast(fx.take(value, at, axis=0), fx.dtype(x))
        m = fx.take(mode, at, axis=0)
        hit = fx.equal(m, np.int64(255))
        for code, compare in enumerate((fx.less_equal, fx.less, fx.greater_equal, fx.greater, fx.equal, fx.not_equal)):
            if code in mode:
                hit = fx.logical_or(hit, fx.logical_and(fx.equal(m, np.int64(code)), compare(v, t)))
        if sets is not None:
            members = fx.take(sets, at, axis=0)
            inside = fx.any(fx.equal(fx.expand_dims(v, axis=-1), fx.cast(members, fx.dtype(x))), axis=-1)
            hit = fx.logical_or(hit, fx.logical_and(fx.equal(m, np.int64(6)), inside))
        hit = fx.logical_or(hit, fx.logical_and(fx.isnan(v), fx.take(missing, at, axis=0)))
        down = fx.where(hit, fx.take(yes, at, axis=0), fx.take(no, at, axis=0))
        return fx.where(fx.take(leaf, at, axis=0), at, down)

    return fx.fori_loop(0, depth, step, at)


def _depth(roots: Any, yes: Any, no: Any, leaf: Any) -> int:
    level, deepest = list(roots), 0
    seen = 0
    while True:
        level = [c for n in level if not leaf[n] for c in (int(yes[n]), int(no[n]))]
        if not level:
            return deepest
        deepest += 1
        seen += len(level)
        if seen > 2 * len(leaf) + 2:
            raise ValueError("the nodes of a tree form a cycle")


def _aggregate(values: Any, how: str, axis: int) -> Any:
    reductions: dict[str, Any] = {"SUM": fx.sum, "AVERAGE": fx.mean, "MIN": fx.min, "MAX": fx.max}
    return reductions[how](values, axis=axis)


@op("TreeEnsemble", since=5, domain=ML)
def tree_ensemble(
    x: Any, *, aggregate_function: Int = 1, leaf_targetids: Ints, leaf_weights: Const, membership_values: Const | None = None,
    n_targets: Int, nodes_falseleafs: Ints, nodes_falsenodeids: Ints, nodes_featureids: Ints, nodes_hitrates: Const | None = None,
    nodes_missing_value_tracks_true: Ints | None = None, nodes_modes: Const, nodes_splits: Const, nodes_trueleafs: Ints,
    nodes_truenodeids: Ints, post_transform: Int = 0, tree_roots: Ints,
) -> Any:  # fmt: skip
    n, leaves = len(nodes_featureids), len(leaf_targetids)
    yes = np.array(
        [i + n * l for i, l in zip(nodes_truenodeids, nodes_trueleafs, strict=True)] + [0] * leaves, np.int64
    )
    no = np.array(
        [i + n * l for i, l in zip(nodes_falsenodeids, nodes_falseleafs, strict=True)] + [0] * leaves, np.int64
    )
    mode = np.concatenate([np.asarray(nodes_modes).astype(np.int64), np.full(leaves, 255)])
    leaf = np.arange(n + leaves) >= n
    roots = list(tree_roots)
    sets = None
    if membership_values is not None:
        groups: list[list[float]] = [[]]
        for v in np.asarray(membership_values).tolist():
            if np.isnan(v):
                groups.append([])
            else:
                groups[-1].append(v)
        width = max(map(len, groups), default=1) or 1
        few((n + leaves) * width, "a forest")
        sets = np.full((n + leaves, width), np.nan, np.asarray(nodes_splits).dtype)
        for node, g in zip(np.flatnonzero(mode[:n] == 6), groups, strict=False):
            sets[node, : len(g)] = g

    def pad(a: Any, fill: Any) -> Any:
        return np.concatenate([np.asarray(a), np.full(leaves, fill, np.asarray(a).dtype)])

    missing = (
        np.zeros(n, bool)
        if nodes_missing_value_tracks_true is None
        else np.array(nodes_missing_value_tracks_true, bool)
    )
    ends = forest(x, roots, pad(np.array(nodes_featureids, np.int64), 0), pad(nodes_splits, 0), mode, yes, no, leaf,
                  pad(missing, False), _depth(roots, yes, no, leaf), sets)  # fmt: skip
    which = fx.subtract(ends, np.int64(n))
    target = np.array(leaf_targetids, np.int64)
    weights = fx.cast(fx.take(np.asarray(leaf_weights), which, axis=0), fx.dtype(x))
    hot = fx.one_hot(fx.take(target, which, axis=0), n_targets, dtype=fx.dtype(x))
    how = {0: "AVERAGE", 1: "SUM", 2: "MIN", 3: "MAX"}[aggregate_function]
    if how in ("MIN", "MAX"):
        worst = np.inf if how == "MIN" else -np.inf
        spread = fx.where(fx.greater(hot, fx.scalar(0, x)), fx.expand_dims(weights, axis=-1), fx.scalar(worst, x))
        total = _aggregate(spread, how, 1)
        total = fx.where(fx.isinf(total), fx.scalar(0, x), total)
    else:
        total = _aggregate(fx.multiply(hot, fx.expand_dims(weights, axis=-1)), how, 1)
    return post_transformed(
        total, {0: "NONE", 1: "SOFTMAX", 2: "LOGISTIC", 3: "SOFTMAX_ZERO", 4: "PROBIT"}[post_transform]
    )


# ---- the forms before TreeEnsemble ---------------------------------------------------------------------------------


@dataclass
class Nodes:
    """The nodes of a forest as arrays: inner nodes and leaves in the order of the file. `ids` finds one by (tree, node)."""

    ids: dict[tuple[int, int], int]
    feature: Any
    value: Any
    mode: Any
    yes: Any
    no: Any
    missing: Any
    roots: list[int]

    def ends(self, x: Any) -> Any:
        """The leaf of each (row, tree)."""
        leaf = self.mode == 255
        deep = _depth(self.roots, self.yes, self.no, leaf)
        return forest(
            x, self.roots, self.feature, self.value, self.mode, self.yes, self.no, leaf, self.missing, deep, None
        )


def nodes_of(
    trees: Ints,
    nodes: Ints,
    features: Ints,
    values: Any,
    modes: Texts,
    yes: Ints,
    no: Ints,
    missing: Ints | None,
    dtype: Any,
) -> Nodes:
    """The nodes as the attributes `nodes_*` say them."""
    ids = {key: i for i, key in enumerate(zip(trees, nodes, strict=True))}
    mode = np.array([_MODES[m] for m in modes], np.int64)

    def child(which: Ints) -> Any:
        return np.array([0 if m == 255 else ids[t, c] for m, t, c in zip(mode, trees, which, strict=True)], np.int64)

    down = child(yes), child(no)
    below = {int(c) for d in down for c, m in zip(d, mode, strict=True) if m != 255}
    first: dict[int, int] = {}  # of each tree, the node that no other leads to
    for (t, _), i in ids.items():
        if i not in below:
            first.setdefault(t, i)
    tracks = np.zeros(len(nodes), bool) if not missing else np.array(missing, bool)
    return Nodes(
        ids,
        np.array(features, np.int64),
        np.asarray(values).astype(dtype.numpy),
        mode,
        *down,
        tracks,
        list(first.values()),
    )


def _sums(
    n: Nodes, x: Any, trees: Ints, nodes: Ints, targets: Ints, weights: Any, count: int, how: str
) -> tuple[Any, Any]:
    """The values of the leaves that the rows reach, taken together: [rows, count], and whether there are any."""
    few(len(n.ids) * count, "a forest")
    table = np.zeros((len(n.ids), count), weights.dtype)
    given = np.zeros((len(n.ids), count), bool)
    for t, i, k, w in zip(trees, nodes, targets, weights, strict=True):
        table[n.ids[t, i], k] += w
        given[n.ids[t, i], k] = True
    ends = n.ends(x)
    values, there = fx.take(table, ends, axis=0), fx.take(given, ends, axis=0)  # [rows, trees, count]
    some = fx.any(there, axis=1)
    if how in ("MIN", "MAX"):
        worst = np.asarray(np.inf if how == "MIN" else -np.inf, weights.dtype)
        best = (fx.min if how == "MIN" else fx.max)(fx.where(there, values, worst), axis=1)
        return fx.where(some, best, np.zeros((), weights.dtype)), some
    total = fx.sum(values, axis=1)
    return (fx.divide(total, np.asarray(len(n.roots), weights.dtype)) if how == "AVERAGE" else total), some


def _wide(x: Any) -> tuple[Any, Any]:
    """The input in a float type, and that type."""
    d = f64 if fx.dtype(x) == f64 else f32
    return fx.cast(x, d), d


@op("TreeEnsembleRegressor", domain=ML)
def tree_ensemble_regressor(
    x: Any, *, aggregate_function: Text = "SUM", base_values: Floats | None = None, base_values_as_tensor: Const | None = None,
    n_targets: Int = 1, nodes_falsenodeids: Ints, nodes_featureids: Ints, nodes_hitrates: Floats | None = None,
    nodes_hitrates_as_tensor: Const | None = None, nodes_missing_value_tracks_true: Ints | None = None, nodes_modes: Texts,
    nodes_nodeids: Ints, nodes_treeids: Ints, nodes_truenodeids: Ints, nodes_values: Floats | None = None,
    nodes_values_as_tensor: Const | None = None, post_transform: Text = "NONE", target_ids: Ints, target_nodeids: Ints,
    target_treeids: Ints, target_weights: Floats | None = None, target_weights_as_tensor: Const | None = None,
) -> Any:  # fmt: skip
    x, d = _wide(x)
    values = nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor
    nodes = nodes_of(nodes_treeids, nodes_nodeids, nodes_featureids, values, nodes_modes, nodes_truenodeids,
                     nodes_falsenodeids, nodes_missing_value_tracks_true, d)  # fmt: skip
    weights = np.asarray(target_weights if target_weights_as_tensor is None else target_weights_as_tensor).astype(
        d.numpy
    )
    base = base_values if base_values_as_tensor is None else base_values_as_tensor
    total, some = _sums(nodes, x, target_treeids, target_nodeids, target_ids, weights, n_targets, aggregate_function)
    if base is not None and len(base):
        total = fx.where(some, fx.add(total, np.asarray(base).astype(d.numpy)), np.zeros((), d.numpy))
    # Of one score onnxruntime takes the probit only; the others would be of a vector of one.
    return fx.cast(
        post_transformed(total, post_transform if n_targets > 1 or post_transform == "PROBIT" else "NONE"), f32
    )


@op("TreeEnsembleClassifier", domain=ML)
def tree_ensemble_classifier(
    x: Any, *, base_values: Floats | None = None, base_values_as_tensor: Const | None = None, class_ids: Ints,
    class_nodeids: Ints, class_treeids: Ints, class_weights: Floats | None = None, class_weights_as_tensor: Const | None = None,
    classlabels_int64s: Ints | None = None, classlabels_strings: Texts | None = None, nodes_falsenodeids: Ints,
    nodes_featureids: Ints, nodes_hitrates: Floats | None = None, nodes_hitrates_as_tensor: Const | None = None,
    nodes_missing_value_tracks_true: Ints | None = None, nodes_modes: Texts, nodes_nodeids: Ints, nodes_treeids: Ints,
    nodes_truenodeids: Ints, nodes_values: Floats | None = None, nodes_values_as_tensor: Const | None = None,
    post_transform: Text = "NONE",
) -> Any:  # fmt: skip
    if classlabels_int64s is None:
        raise error("FX1208", "TreeEnsembleClassifier with texts as labels", help="export it with integer labels")
    x, d = _wide(x)
    values = nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor
    nodes = nodes_of(nodes_treeids, nodes_nodeids, nodes_featureids, values, nodes_modes, nodes_truenodeids,
                     nodes_falsenodeids, nodes_missing_value_tracks_true, d)  # fmt: skip
    weights = np.asarray(class_weights if class_weights_as_tensor is None else class_weights_as_tensor).astype(d.numpy)
    labels = np.array(classlabels_int64s, np.int64)
    given = base_values if base_values_as_tensor is None else base_values_as_tensor
    base = np.zeros(0, d.numpy) if given is None else np.asarray(given).astype(d.numpy)
    total, some = _sums(nodes, x, class_treeids, class_nodeids, class_ids, weights, max(len(labels), 2), "SUM")
    if len(labels) > 2 or len(labels) == 1 and len(base) > 2:
        total = fx.add(total, base) if len(base) else total
        best = total if len(base) else fx.where(some, total, np.asarray(-np.inf, d.numpy))
        return Results(
            (fx.take(labels, fx.argmax(best, axis=1)), fx.cast(post_transformed(total, post_transform), f32))
        )
    label, scores = _two_classes(
        total, some, labels, base, len(set(class_ids)) == 1, bool((weights >= 0).all()), post_transform
    )
    return Results((label, fx.cast(scores, f32)))


def _two_classes(
    total: Any, some: Any, labels: Any, base: Any, single: bool, positive: bool, post: str
) -> tuple[Any, Any]:
    """Label and scores where there are two labels. With leaves of one class only (`single`) the other's score is what is left
    of 1, or the negative one where weights may be negative."""
    zero, half = fx.scalar(0, total), fx.scalar(0.5, total)
    a, b = fx.item(total, (slice(None), 0)), fx.item(total, (slice(None), 1))
    first, has = fx.item(some, (slice(None), 0)), fx.item(some, (slice(None), 1))
    if len(base) == 2:
        b, alone = fx.add(a, base[1]), fx.add(a, base[0])
        a = fx.where(first, fx.where(has, fx.negative(b), alone), zero)
        b = fx.where(has, b, zero)
    elif len(base) == 1:
        a = fx.where(first, fx.add(a, base[0]), zero)
    pair = fx.stack([a, b], axis=1)
    if single:
        weight = fx.where(has, b, a)
        chosen = fx.cast(fx.greater(weight, half if positive else zero), "i64")
    else:
        chosen = fx.argmax(pair, axis=1)
    label = fx.take(labels, fx.minimum(chosen, np.int64(len(labels) - 1)), axis=0)
    both = post_transformed(pair, post)
    if len(base) == 2:
        return label, both
    other = two_scores(fx.expand_dims(a, axis=1), single and positive, post)
    return label, fx.where(fx.expand_dims(has, axis=1), both, other)
