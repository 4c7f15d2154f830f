"""Losses, and the updates of optimisers that training graphs contain."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Results
from fluxir.frontend.onnx.registry import Float, Int, Text, op


@op("NegativeLogLikelihoodLoss", since=12)
def nll_loss(
    x: Any, target: Any, weight: Any = None, *, ignore_index: Int | None = None, reduction: Text = "mean"
) -> Any:
    return _nll(x, target, weight, ignore_index, reduction)


def _nll(x: Any, target: Any, weight: Any, ignore: int | None, reduction: str) -> Any:
    t = fx.cast(target, "i64")
    kept = None if ignore is None else fx.not_equal(t, np.int64(ignore))
    safe = t if kept is None else fx.where(kept, t, np.int64(0))
    picked = fx.squeeze(fx.take_along_axis(x, fx.expand_dims(safe, axis=1), axis=1), axis=1)
    loss = fx.negative(picked)
    w = None if weight is None else fx.take(weight, safe, axis=0)
    if kept is not None:
        ones = fx.full(loss.shape, fx.scalar(1, x)) if w is None else w
        w = fx.where(kept, ones, fx.scalar(0, x))
    if w is not None:
        loss = fx.multiply(loss, w)
    match reduction:
        case "none":
            return loss
        case "sum":
            return fx.sum(loss)
        case "mean":
            return fx.mean(loss) if w is None else fx.divide(fx.sum(loss), fx.sum(w))
    raise ValueError(f"there is no reduction {reduction!r}")


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy(
    x: Any, labels: Any, weight: Any = None, *, ignore_index: Int | None = None, reduction: Text = "mean"
) -> Any:
    log_prob = fx.nn.log_softmax(x, axis=1)
    return Results((_nll(log_prob, labels, weight, ignore_index, reduction), log_prob))


# ---- optimisers ----------------------------------------------------------------------------------------------------

TRAINING = "ai.onnx.preview.training"


def _rate(r: Any, t: Any, decay: float) -> Any:
    steps = fx.multiply(fx.cast(t, fx.dtype(r)), fx.scalar(decay, r))
    return fx.divide(r, fx.add(fx.scalar(1, r), steps))


def _groups(tensors: tuple[Any, ...], kinds: int) -> list[tuple[Any, ...]]:
    n = len(tensors) // kinds
    return [tuple(tensors[k * n + i] for k in range(kinds)) for i in range(n)]


@op("Adagrad", domain=TRAINING)
def adagrad(
    r: Any, t: Any, *tensors: Any, decay_factor: Float = 0.0, epsilon: Float = 0.0, norm_coefficient: Float = 0.0
) -> Any:
    rate = _rate(r, t, decay_factor)
    new = []
    for x, g, h in _groups(tensors, 3):
        g = fx.add(fx.multiply(x, fx.scalar(norm_coefficient, x)), g)
        h = fx.add(h, fx.square(g))
        new.append((fx.subtract(x, fx.divide(fx.multiply(rate, g), fx.add(fx.sqrt(h), fx.scalar(epsilon, x)))), h))
    return Results(v for kind in zip(*new, strict=True) for v in kind)


@op("Momentum", domain=TRAINING)
def momentum(r: Any, t: Any, *tensors: Any, alpha: Float, beta: Float, mode: Text, norm_coefficient: Float) -> Any:
    new = []
    for x, g, v in _groups(tensors, 3):
        g = fx.add(fx.multiply(x, fx.scalar(norm_coefficient, x)), g)
        first = fx.equal(t, np.int64(0))
        b = fx.where(first, fx.scalar(1, x), fx.scalar(beta, x))
        v = fx.add(fx.multiply(v, fx.scalar(alpha, x)), fx.multiply(g, b))
        step = fx.add(g, fx.multiply(v, fx.scalar(alpha, x))) if mode == "nesterov" else v
        new.append((fx.subtract(x, fx.multiply(r, step)), v))
    return Results(v for kind in zip(*new, strict=True) for v in kind)


@op("Adam", domain=TRAINING)
def adam(
    r: Any, t: Any, *tensors: Any, alpha: Float = 0.9, beta: Float = 0.999, epsilon: Float = 0.0,
    norm_coefficient: Float = 0.0, norm_coefficient_post: Float = 0.0,
) -> Any:  # fmt: skip
    new = []
    for x, g, v, h in _groups(tensors, 4):
        g = fx.add(fx.multiply(x, fx.scalar(norm_coefficient, x)), g)
        v = fx.add(fx.multiply(v, fx.scalar(alpha, x)), fx.multiply(g, fx.scalar(1 - alpha, x)))
        h = fx.add(fx.multiply(h, fx.scalar(beta, x)), fx.multiply(fx.square(g), fx.scalar(1 - beta, x)))
        steps = fx.cast(t, fx.dtype(x))
        grown = fx.divide(
            fx.multiply(r, fx.sqrt(fx.subtract(fx.scalar(1, x), fx.pow(fx.scalar(beta, x), steps)))),
            fx.subtract(fx.scalar(1, x), fx.pow(fx.scalar(alpha, x), steps)),
        )
        rate = fx.where(fx.greater(t, np.int64(0)), grown, r)
        y = fx.subtract(x, fx.divide(fx.multiply(rate, v), fx.add(fx.sqrt(h), fx.scalar(epsilon, x))))
        new.append((fx.multiply(y, fx.scalar(1 - norm_coefficient_post, x)), v, h))
    return Results(v for kind in zip(*new, strict=True) for v in kind)
