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


def post_transformed(scores: Any, how: str) -> Any:
    """Scores [rows, classes] as the attribute `post_transform` wants them."""
    match how:
        case "NONE":
            return scores
        case "SOFTMAX":
            return fx.nn.softmax(scores, axis=-1)
        case "LOGISTIC":
            return fx.sigmoid(scores)
        case "SOFTMAX_ZERO":
            e = fx.exp(fx.subtract(scores, fx.max(scores, axis=-1, keepdims=True)))
            kept = fx.where(fx.less_equal(fx.abs(scores), fx.scalar(1e-7, scores)), fx.scalar(0, scores), e)
            return fx.divide(kept, fx.sum(kept, axis=-1, keepdims=True))
        case "PROBIT":
            centred = fx.subtract(fx.multiply(scores, fx.scalar(2, scores)), fx.scalar(1, scores))
            found = fx.multiply(fx.public(fx.random.erfinv)(centred), fx.scalar(2**0.5, scores))
            size = fx.abs(centred)  # no probability outside of 0 to 1
            found = fx.where(
                fx.equal(size, fx.scalar(1, scores)), fx.multiply(centred, fx.scalar(np.inf, scores)), found
            )
            return fx.where(fx.greater(size, fx.scalar(1, scores)), fx.scalar(np.nan, scores), found)
    raise ValueError(f"there is no post_transform {how!r}")


def two_scores(s: Any, positive: bool, how: str) -> Any:
    """Scores [rows, 2] of two classes from the one score [rows, 1] of the second, as onnxruntime has them: of the logistic
    function, else what is left of 1, or where weights may be negative the negative score."""
    if how == "LOGISTIC":
        return fx.concat([fx.sigmoid(fx.negative(s)), fx.sigmoid(s)], axis=1)
    return fx.concat([fx.subtract(fx.scalar(1, s), s) if positive else fx.negative(s), s], axis=1)


@op("LinearRegressor", domain=ML)
def linear_regressor(
    x: Any, *, coefficients: Floats, intercepts: Floats = (), post_transform: Text = "NONE", targets: Int = 1
) -> Any:
    w = np.array(coefficients, np.float32).reshape(targets, -1)
    y = fx.matmul(fx.cast(x, f32), w.T)
    how = post_transform if targets > 1 or post_transform == "PROBIT" else "NONE"  # as onnxruntime has it
    return post_transformed(fx.add(y, np.array(intercepts, np.float32)) if intercepts else y, how)


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
        return Results((fx.where(positive, labels[1], labels[0]), two_scores(scores, True, post_transform)))
    best = fx.argmax(scores, axis=1)
    return Results((fx.take(labels, best, axis=0), post_transformed(scores, post_transform)))


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
