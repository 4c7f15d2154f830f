"""Connectionist temporal classification (Graves et al. 2006): the forward recursion in log space, as an `fx.scan`."""

from __future__ import annotations

from typing import Any

import fluxir as fx
from fluxir.nn.losses import Agg, aggregate, as_float, mean

# Stands for the log of 0. Finite, so that differences of two of them are no NaN; far below any sum of log probabilities.
_NONE = -1e30


def ctc(
    logits: Any,
    labels: Any,
    input_lengths: Any = None,
    label_lengths: Any = None,
    *,
    blank: int = 0,
    agg: Agg = mean,
) -> Any:
    """-log of the probability that softmax(logits) spells the labels: logits [B, T, C], labels [B, L] -> [B] before `agg`.

    A spelling takes one class each step; repeated classes are merged, then blanks removed. `input_lengths` and
    `label_lengths` [B] say how much of each sequence counts (all by default); labels are classes other than `blank`.
    Where no spelling exists, because the input is too short, the loss is about 1e30. The gradient is that of the recursion.
    """
    x, y = as_float(logits), fx.asarray(labels)
    if len(fx.shape(x)) != 3 or len(fx.shape(y)) != 2 or not fx.isdtype(fx.dtype(y.dtype), "integral"):
        raise fx.error("FX1001", f"ctc: logits [B, T, C] and integer labels [B, L], not {list(fx.shape(x))} and "
                       f"{y.dtype}{list(fx.shape(y))}")  # fmt: skip
    b, t, _ = fx.shape(x)
    if fx.shape(y)[0] != b:
        raise fx.error("FX1001", f"ctc: the logits are {list(fx.shape(x))}, the labels are {list(fx.shape(y))}")
    n = fx.shape(y)[1]
    kind = x.dtype
    count = fx.full((b,), n, dtype="i64") if label_lengths is None else fx.astype(fx.asarray(label_lengths), "i64")
    ends = fx.full((b,), t, dtype="i64") if input_lengths is None else fx.astype(fx.asarray(input_lengths), "i64")

    # States: blank, label 1, blank, label 2, ..., blank. State s may be entered from s, s - 1, and from s - 2 if that skips
    # a blank between two different labels.
    y = fx.astype(y, "i64")
    blanks = fx.full_like(y, blank)
    states = fx.reshape(fx.stack([blanks, y], axis=2), (b, 2 * n))
    states = fx.concat([states, fx.full((b, 1), blank, dtype="i64")], axis=1)
    size = 2 * n + 1
    place = fx.arange(size)
    before = fx.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, :size]
    skips = fx.logical_and(states != blank, fx.logical_and(states != before, fx.expand_dims(place >= 2, 0)))

    logp = fx.functional.log_softmax(x, axis=-1)
    index = fx.broadcast_to(fx.expand_dims(states, 1), (b, t, size))
    emit = fx.moveaxis(fx.take_along_axis(logp, index, axis=2), 1, 0)  # [T, B, S]

    def shifted(a: Any, by: int) -> Any:
        return fx.pad(a, ((0, 0), (by, 0)), constant_values=_NONE)[:, :size]

    # Before the first step only a state before the first one is possible; from there the first two are entered.
    first = fx.where(
        fx.expand_dims(place <= 1, 0), fx.zeros((b, size), dtype=kind), fx.full((b, size), _NONE, dtype=kind)
    )
    steps = fx.arange(t)

    def step(alpha: Any, given: Any) -> tuple[Any, None]:
        e, now = given
        ways = fx.stack([alpha, shifted(alpha, 1), fx.where(skips, shifted(alpha, 2), fx.full_like(alpha, _NONE))])
        later = fx.logsumexp(ways, axis=0)
        new = fx.where(now == 0, first, later) + e
        return fx.where(fx.expand_dims(now < ends, 1), new, alpha), None

    alpha, _ = fx.scan(step, first, (emit, steps))
    last = fx.expand_dims(2 * count, 1)
    end_blank = fx.take_along_axis(alpha, last, axis=1)
    end_label = fx.take_along_axis(alpha, fx.maximum(last - 1, 0), axis=1)
    end_label = fx.where(last > 0, end_label, fx.full_like(end_label, _NONE))
    total = fx.logsumexp(fx.concat([end_blank, end_label], axis=1), axis=1)
    return aggregate(agg, -total)


__all__ = ["ctc"]
