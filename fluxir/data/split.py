"""Parts of a data set for training and testing, folds, and labels as vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.data.loader import as_key, count, take


def _order(n: int, key: Any) -> Any:
    return np.arange(n) if key is None else np.asarray(fx.random.permutation(as_key(key), n))


def split(data: Any, at: float | Sequence[float] = 0.8, *, key: Any = None) -> tuple[Any, ...]:
    """`data` in parts: `train, test = split((x, y), 0.8, key=0)`; with several fractions one part more than there are.

    With a key (or seed) the examples are shuffled first. Every example is in exactly one part. FX1102.
    """
    fractions = [at] if isinstance(at, int | float) else list(at)
    if any(not 0 <= f <= 1 for f in fractions) or sum(fractions) > 1 + 1e-12:
        raise fx.error("FX1102", f"split: the fractions {fractions} must lie in 0..1, and so must their sum")
    n = count(data)
    order = _order(n, key)
    cuts = [0]
    for i in range(len(fractions)):
        cuts.append(min(n, round(n * sum(fractions[: i + 1]))))
    cuts.append(n)
    # Without a key the parts are slices: no copy is made.
    places = [slice(a, b) if key is None else order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    return tuple(take(data, p) for p in places)


def kfold(data: Any, k: int = 5, *, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """The k pairs (training data, validation data) in which every example is for validation once. FX1102."""
    n = count(data)
    if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= n:
        raise fx.error("FX1102", f"kfold: k is {k!r}; it must be an integer from 2 to the number of examples, {n}")
    order = _order(n, key)
    cuts = [n * i // k for i in range(k + 1)]
    return (
        (take(data, np.concatenate([order[:a], order[b:]])), take(data, order[a:b]))
        for a, b in zip(cuts, cuts[1:], strict=False)
    )


def one_hot(labels: Any, classes: Sequence[Any] | int, dtype: Any = np.float32) -> Any:
    """Labels of any shape as vectors with a 1 at their place among the classes: [...] -> [..., C]. FX1105 for a label that is
    no class. `classes` are the values, or their number: 0 to C - 1. (`fx.one_hot` does it in compiled programs.)
    """
    values = np.arange(classes) if isinstance(classes, int) else np.asarray(classes)
    found = np.asarray(labels)[..., None] == values
    if not found.any(-1).all():
        odd = np.asarray(labels)[~found.any(-1)].ravel()[0]
        raise fx.error("FX1105", f"one_hot: the label {odd!r} is none of the {len(values)} classes")
    return found.astype(dtype)


def one_cold(scores: Any, classes: Sequence[Any] | int | None = None) -> Any:
    """The class with the largest score, [..., C] -> [...]: the inverse of `one_hot`."""
    best = np.asarray(scores).argmax(-1)
    return best if classes is None or isinstance(classes, int) else np.asarray(classes)[best]


__all__ = ["kfold", "one_cold", "one_hot", "split"]
