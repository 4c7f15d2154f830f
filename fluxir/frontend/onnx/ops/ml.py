"""ai.onnx.ml: classical models and the preparation of their inputs, where both are tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Results
from fluxir.frontend.onnx.registry import Const, Float, Floats, Int, Ints, Raw, Text, Texts, op
from fluxir.frontend.onnx.values import is_texts, tensor
from fluxir.ir.dtypes import f32

ML = "ai.onnx.ml"


@op("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(x: Any, places: Any) -> Any:
    return fx.take(x, fx.reshape(places, (-1,)), axis=fx.rank(x) - 1)


@op("Binarizer", domain=ML)
def binarizer(x: Any, *, threshold: Float = 0.0) -> Any:
    return fx.cast(fx.greater(x, fx.scalar(threshold, x)), fx.dtype(x))


@op("Scaler", domain=ML)
def scaler(x: Any, *, offset: Floats = (0.0,), scale: Floats = (1.0,)) -> Any:
    return fx.multiply(fx.subtract(fx.cast(x, f32), np.array(offset, np.float32)), np.array(scale, np.float32))


@op("Normalizer", domain=ML)
def normalizer(x: Any, *, norm: Text = "MAX") -> Any:
    x = fx.cast(x, f32)
    size = {"MAX": lambda: fx.max(x, axis=-1, keepdims=True), "L1": lambda: fx.sum(fx.abs(x), axis=-1, keepdims=True),
            "L2": lambda: fx.sqrt(fx.sum(fx.square(x), axis=-1, keepdims=True))}[norm]()  # fmt: skip
    return fx.where(fx.equal(size, np.float32(0)), x, fx.divide(x, size))


@op("Imputer", domain=ML)
def imputer(
    x: Any, *, imputed_value_floats: Floats | None = None, imputed_value_int64s: Ints | None = None,
    replaced_value_float: Float = 0.0, replaced_value_int64: Int = 0,
) -> Any:  # fmt: skip
    floats = fx.dtype(x).is_float
    new = np.asarray(imputed_value_floats if floats else imputed_value_int64s).astype(fx.dtype(x).numpy)
    old = replaced_value_float if floats else replaced_value_int64
    hit = fx.isnan(x) if floats and np.isnan(old) else fx.equal(x, fx.scalar(old, x))
    return fx.where(hit, new, x)


@op("FeatureVectorizer", domain=ML)
def feature_vectorizer(*xs: Any, inputdimensions: Ints = ()) -> Any:
    parts = [fx.cast(fx.reshape(x, (x.shape[0], -1)), f32) for x in xs]
    return fx.concat(
        [fx.item(p, (slice(None), slice(0, n))) for p, n in zip(parts, inputdimensions, strict=True)], axis=1
    )


@op("OneHotEncoder", domain=ML)
def one_hot_encoder(
    x: Any, *, cats_int64s: Ints | None = None, cats_strings: Texts | None = None, zeros: Int = 1
) -> Any:
    if cats_int64s is None:
        raise error("FX1208", "OneHotEncoder of texts")
    return fx.cast(fx.equal(fx.expand_dims(fx.cast(x, "i64"), axis=-1), np.array(cats_int64s, np.int64)), f32)


# ---- linear models, and kernels ------------------------------------------------------------------------------------


def _post(scores: Any, how: str) -> Any:
    match how:
        case "NONE":
            return scores
        case "SOFTMAX":
            return fx.nn.softmax(scores, axis=-1)
        case "LOGISTIC":
            return fx.sigmoid(scores)
        case "SOFTMAX_ZERO":
            e = fx.exp(fx.subtract(scores, fx.max(scores, axis=-1, keepdims=True)))
            kept = fx.where(fx.equal(scores, np.float32(0)), np.float32(0), e)
            return fx.divide(kept, fx.sum(kept, axis=-1, keepdims=True))
        case "PROBIT":
            centred = fx.subtract(fx.multiply(scores, np.float32(2)), np.float32(1))
            return fx.multiply(fx.public(fx.random.erfinv)(centred), np.float32(2**0.5))
    raise ValueError(f"there is no post_transform {how!r}")


@op("LinearRegressor", domain=ML)
def linear_regressor(
    x: Any, *, coefficients: Floats, intercepts: Floats = (), post_transform: Text = "NONE", targets: Int = 1
) -> Any:
    w = np.array(coefficients, np.float32).reshape(targets, -1)
    y = fx.matmul(fx.cast(x, f32), w.T)
    return _post(fx.add(y, np.array(intercepts, np.float32)) if intercepts else y, post_transform)


@op("LinearClassifier", domain=ML)
def linear_classifier(
    x: Any, *, classlabels_ints: Ints | None = None, classlabels_strings: Texts | None = None, coefficients: Floats,
    intercepts: Floats = (), multi_class: Int = 0, post_transform: Text = "NONE",
) -> Any:  # fmt: skip
    if classlabels_ints is None:
        raise error("FX1208", "LinearClassifier with texts as labels")
    rows = len(intercepts) or len(classlabels_ints)
    scores = fx.matmul(fx.cast(x, f32), np.array(coefficients, np.float32).reshape(rows, -1).T)
    scores = fx.add(scores, np.array(intercepts, np.float32)) if intercepts else scores
    labels = np.array(classlabels_ints, np.int64)
    if rows == 1 and len(labels) == 2:
        positive = fx.greater(fx.item(scores, (slice(None), 0)), np.float32(0))
        both = fx.concat([fx.negative(scores), scores], axis=1)
        probability = _post(both, post_transform)
        return Results((fx.where(positive, labels[1], labels[0]), probability))
    best = fx.argmax(scores, axis=1)
    return Results((fx.take(labels, best, axis=0), _post(scores, post_transform)))


# ---- labels --------------------------------------------------------------------------------------------------------


@op("LabelEncoder", since=2, domain=ML)
def label_encoder(
    x: Raw, *, default_float: Float = -0.0, default_int64: Int = -1, default_string: Text = "_Unused",
    default_tensor: Const | None = None, keys_floats: Floats | None = None, keys_int64s: Ints | None = None,
    keys_strings: Texts | None = None, keys_tensor: Const | None = None, values_floats: Floats | None = None,
    values_int64s: Ints | None = None, values_strings: Texts | None = None, values_tensor: Const | None = None,
) -> Any:  # fmt: skip
    keys = _first(keys_tensor, keys_int64s, keys_floats, keys_strings)
    values = _first(values_tensor, values_int64s, values_floats, values_strings)
    if default_tensor is not None:
        default: Any = np.asarray(default_tensor).reshape(-1)[0]
    else:
        default = (
            default_int64
            if values_int64s is not None
            else default_float
            if values_floats is not None
            else default_string
        )
    if is_texts(x) or keys.dtype == object or values.dtype == object:
        if not isinstance(x, np.ndarray):
            raise error("FX1208", "LabelEncoder of texts that are computed when the program runs")
        table = dict(zip(keys.tolist(), values.tolist(), strict=True))
        out = [table.get(v, default) for v in x.reshape(-1).tolist()]
        return np.array(out, object if values.dtype == object else values.dtype).reshape(x.shape)
    data = tensor(x)
    wide = fx.expand_dims(data, axis=-1)
    known = keys.astype(fx.dtype(data).numpy)
    hit = fx.equal(wide, known)
    if fx.dtype(data).is_float and np.isnan(known).any():
        hit = fx.logical_or(hit, fx.logical_and(fx.isnan(wide), np.isnan(known)))
    found = fx.take(values, fx.argmax(fx.cast(hit, "u8"), axis=-1), axis=0)
    return fx.where(fx.any(hit, axis=-1), found, np.asarray(default).astype(values.dtype))


def _first(*choices: Any) -> Any:
    for c, d in zip(choices, (None, np.int64, np.float32, object), strict=True):
        if c is not None:
            return np.asarray(c) if d is None else np.array(c, d)
    raise ValueError("the keys or values are missing")


# ---- trees ---------------------------------------------------------------------------------------------------------
# A forest is walked for all rows and trees at once: each step of a loop moves every (row, tree) one level down.


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
    return _post(total, {0: "NONE", 1: "SOFTMAX", 2: "LOGISTIC", 3: "SOFTMAX_ZERO", 4: "PROBIT"}[post_transform])
