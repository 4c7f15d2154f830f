"""Losses between two tensors of one shape, and between class scores and labels.

All take `(prediction, target)` and return `agg` of the elements' losses: the mean by default, `fx.sum`, or `agg=None` for
the losses themselves. A prediction and a target of different shapes are an error that names both (FX1001); integer and bool
targets are taken as floats. Functions with `logit_` in the name take scores before softmax or sigmoid, which is the
numerically right way; the others take probabilities, with `eps` added inside the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fluxir as fx

Agg = Callable[[Any], Any] | None


def mean(x: Any) -> Any:
    """The mean of all elements."""
    return fx.mean(x)


def aggregate(agg: Agg, x: Any) -> Any:
    """`agg(x)`, or `x` for None."""
    return x if agg is None else agg(x)


def _shown(x: Any) -> str:
    return "[" + ", ".join(map(str, fx.shape(x))) + "]"


def _refuse(name: str, prediction: Any, target: Any) -> Exception:
    return fx.error("FX1001", f"{name}: the prediction is {_shown(prediction)}, the target is {_shown(target)}")


def _equal(a: Any, b: Any) -> bool:
    """Whether two shapes are the same, or known to be where sizes are symbols."""
    return len(a) == len(b) and all(
        x == y if isinstance(x, int) and isinstance(y, int) else fx.prove_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def same_shape(name: str, prediction: Any, target: Any) -> tuple[Any, Any]:
    """Both as tensors of one shape and of the prediction's type if the target is no float. FX1001."""
    if not _equal(fx.shape(prediction), fx.shape(target)):
        raise _refuse(name, prediction, target)
    prediction, target = as_float(prediction), fx.asarray(target)
    if not fx.isdtype(fx.dtype(target.dtype), "real floating"):
        target = fx.astype(target, prediction.dtype)
    return prediction, target


def as_float(x: Any) -> Any:
    """A tensor of floats: integers become f32."""
    x = fx.asarray(x)
    return x if fx.isdtype(fx.dtype(x.dtype), "real floating") else fx.astype(x, "f32")


def xlogy(x: Any, y: Any) -> Any:
    """x * log(y), 0 where x is 0; so are its derivatives there."""
    zero = x == 0
    return fx.where(zero, fx.zeros_like(x), x * fx.log(fx.where(zero, fx.ones_like(y), y)))


# ---- regression ------------------------------------------------------------------------------------------------------


def mae(prediction: Any, target: Any, *, agg: Agg = mean) -> Any:
    """|p - y|."""
    p, y = same_shape("mae", prediction, target)
    return aggregate(agg, fx.abs(p - y))


def mse(prediction: Any, target: Any, *, agg: Agg = mean) -> Any:
    """(p - y)^2."""
    p, y = same_shape("mse", prediction, target)
    return aggregate(agg, fx.square(p - y))


def msle(prediction: Any, target: Any, *, agg: Agg = mean, eps: float = 0.0) -> Any:
    """(log(1 + p) - log(1 + y))^2, for values above -1. (Flux takes log(p + eps) instead; both say: relative errors.)"""
    p, y = same_shape("msle", prediction, target)
    return aggregate(agg, fx.square(fx.log1p(p + eps) - fx.log1p(y + eps)))


def huber(prediction: Any, target: Any, *, delta: float = 1.0, agg: Agg = mean) -> Any:
    """d^2 / 2 where d = |p - y| <= delta, else delta * (d - delta / 2) (Huber 1964)."""
    p, y = same_shape("huber", prediction, target)
    d = fx.abs(p - y)
    small = fx.minimum(d, delta)
    return aggregate(agg, small * (d - 0.5 * small))


def poisson(prediction: Any, target: Any, *, agg: Agg = mean) -> Any:
    """p - y log(p): the negative log likelihood of counts y with rates p, but for a constant."""
    p, y = same_shape("poisson", prediction, target)
    return aggregate(agg, p - xlogy(y, p))


# ---- classes ---------------------------------------------------------------------------------------------------------


def label_smoothing(target: Any, amount: float, *, axis: int = -1) -> Any:
    """(1 - amount) * y + amount / classes along `axis` (Szegedy et al. 2016); y holds probabilities or is one-hot."""
    y = as_float(target)
    classes: Any = fx.shape(y)[axis]
    return y * (1 - amount) + amount / fx.astype(fx.asarray(classes), y.dtype)


def binary_label_smoothing(target: Any, amount: float) -> Any:
    """(1 - amount) * y + amount / 2, for targets of one class."""
    return as_float(target) * (1 - amount) + amount / 2


def crossentropy(prediction: Any, target: Any, *, axis: int = -1, agg: Agg = mean, eps: float = 0.0) -> Any:
    """-sum(y log(p + eps)) along the class axis `axis`; p and y are probabilities of one shape."""
    p, y = same_shape("crossentropy", prediction, target)
    return aggregate(agg, -fx.sum(xlogy(y, p + eps), axis=axis))


def logit_crossentropy(logits: Any, target: Any, *, axis: int = -1, agg: Agg = mean, smoothing: float = 0.0) -> Any:
    """-sum(y log softmax(x)) along the class axis `axis`.

    `target` has the shape of `logits` (probabilities, one-hot), or is integers without the class axis. `smoothing` is
    `label_smoothing`'s amount.
    """
    x, y = as_float(logits), fx.asarray(target)
    if fx.isdtype(fx.dtype(y.dtype), "integral") and len(fx.shape(y)) == len(fx.shape(x)) - 1:
        a = axis % len(fx.shape(x))
        if not _equal((*fx.shape(x)[:a], *fx.shape(x)[a + 1 :]), fx.shape(y)):
            raise _refuse("logit_crossentropy", x, y)
        if not smoothing:
            return aggregate(agg, fx.functional.cross_entropy(x, y, axis=axis))
        y = fx.moveaxis(fx.functional.one_hot(y, fx.shape(x)[a], dtype=x.dtype), -1, a)
    x, y = same_shape("logit_crossentropy", x, y)
    if smoothing:
        y = label_smoothing(y, smoothing, axis=axis)
    return aggregate(agg, -fx.sum(y * fx.functional.log_softmax(x, axis=axis), axis=axis))


def binary_crossentropy(prediction: Any, target: Any, *, agg: Agg = mean, eps: float = 0.0) -> Any:
    """-y log(p + eps) - (1 - y) log(1 - p + eps)."""
    p, y = same_shape("binary_crossentropy", prediction, target)
    return aggregate(agg, -xlogy(y, p + eps) - xlogy(1 - y, 1 - p + eps))


def logit_binary_crossentropy(logits: Any, target: Any, *, agg: Agg = mean) -> Any:
    """-y log s(x) - (1 - y) log(1 - s(x)) with the sigmoid s, as (1 - y) x + softplus(-x): without overflow."""
    x, y = same_shape("logit_binary_crossentropy", logits, target)
    return aggregate(agg, (1 - y) * x - fx.functional.log_sigmoid(x))


def focal(
    prediction: Any, target: Any, *, gamma: float = 2.0, axis: int = -1, agg: Agg = mean, eps: float = 0.0
) -> Any:
    """-sum((1 - p)^gamma y log p) along the class axis: easy examples count less (Lin et al. 2017)."""
    p, y = same_shape("focal", prediction, target)
    return aggregate(agg, -fx.sum((1 - p) ** gamma * xlogy(y, p + eps), axis=axis))


def binary_focal(prediction: Any, target: Any, *, gamma: float = 2.0, agg: Agg = mean, eps: float = 0.0) -> Any:
    """-y (1 - p)^gamma log p - (1 - y) p^gamma log(1 - p) (Lin et al. 2017)."""
    p, y = same_shape("binary_focal", prediction, target)
    return aggregate(agg, -((1 - p) ** gamma) * xlogy(y, p + eps) - p**gamma * xlogy(1 - y, 1 - p + eps))


def kl_divergence(prediction: Any, target: Any, *, axis: int = -1, agg: Agg = mean, eps: float = 0.0) -> Any:
    """sum(y log(y / p)) along `axis`: from the distribution p to y (Kullback and Leibler 1951)."""
    p, y = same_shape("kl_divergence", prediction, target)
    return aggregate(agg, fx.sum(xlogy(y, y) - xlogy(y, p + eps), axis=axis))


# ---- margins and overlaps --------------------------------------------------------------------------------------------


def hinge(prediction: Any, target: Any, *, agg: Agg = mean) -> Any:
    """max(0, 1 - p y), with targets -1 and 1 (Cortes and Vapnik 1995)."""
    p, y = same_shape("hinge", prediction, target)
    return aggregate(agg, fx.maximum(1 - p * y, 0))


def squared_hinge(prediction: Any, target: Any, *, agg: Agg = mean) -> Any:
    """max(0, 1 - p y)^2, with targets -1 and 1."""
    p, y = same_shape("squared_hinge", prediction, target)
    return aggregate(agg, fx.square(fx.maximum(1 - p * y, 0)))


def _per_example(x: Any) -> tuple[int, ...]:
    n = len(fx.shape(x))
    return tuple(range(1, n)) if n > 1 else (0,)


def dice(prediction: Any, target: Any, *, smooth: float = 1.0, agg: Agg = mean) -> Any:
    """1 - (2 sum(p y) + smooth) / (sum(p^2) + sum(y^2) + smooth) for each example (Milletari et al. 2016)."""
    p, y = same_shape("dice", prediction, target)
    axes = _per_example(p)
    both, all_p, all_y = fx.sum(p * y, axis=axes), fx.sum(p * p, axis=axes), fx.sum(y * y, axis=axes)
    return aggregate(agg, 1 - (2 * both + smooth) / (all_p + all_y + smooth))


def tversky(prediction: Any, target: Any, *, beta: float = 0.7, smooth: float = 1.0, agg: Agg = mean) -> Any:
    """1 - (tp + smooth) / (tp + beta fn + (1 - beta) fp + smooth) for each example (Salehi et al. 2017)."""
    p, y = same_shape("tversky", prediction, target)
    axes = _per_example(p)
    tp, fn, fp = fx.sum(p * y, axis=axes), fx.sum((1 - p) * y, axis=axes), fx.sum(p * (1 - y), axis=axes)
    return aggregate(agg, 1 - (tp + smooth) / (tp + beta * fn + (1 - beta) * fp + smooth))


def siamese_contrastive(distance: Any, target: Any, *, margin: float = 1.0, agg: Agg = mean) -> Any:
    """(1 - y) d^2 + y max(0, margin - d)^2 of distances d >= 0; y is 1 where the pair differs (Hadsell et al. 2006)."""
    if margin <= 0 or not math.isfinite(margin):
        raise fx.error("FX1003", f"siamese_contrastive: the margin is positive, not {margin}")
    d, y = same_shape("siamese_contrastive", distance, target)
    return aggregate(agg, (1 - y) * fx.square(d) + y * fx.square(fx.maximum(margin - d, 0)))


__all__ = [
    "aggregate", "binary_crossentropy", "binary_focal", "binary_label_smoothing", "crossentropy", "dice", "focal",
    "hinge", "huber", "kl_divergence", "label_smoothing", "logit_binary_crossentropy", "logit_crossentropy", "mae", "mse",
    "msle", "poisson", "same_shape", "siamese_contrastive", "squared_hinge", "tversky",
]  # fmt: skip
