"""TfIdfVectorizer: how often n-grams of a list occur in rows of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.registry import Floats, Int, Ints, Raw, Text, Texts, op
from fluxir.frontend.onnx.values import is_texts, tensor
from fluxir.ir.dtypes import f32, i64


@op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(
    x: Raw, *, max_gram_length: Int, max_skip_count: Int, min_gram_length: Int, mode: Text, ngram_counts: Ints,
    ngram_indexes: Ints, pool_int64s: Ints | None = None, pool_strings: Texts | None = None, weights: Floats | None = None,
) -> Any:  # fmt: skip
    """Counts f32[..., columns] of the n-grams of lengths min to max, with up to `max_skip_count` tokens between neighbours
    (the same number between all). `ngram_counts` says where the pool's unigrams, bigrams, ... begin."""
    pool: Any = pool_int64s
    if pool is None:
        if pool_strings is None or not is_texts(x):
            raise error("FX1208", "TfIdfVectorizer of texts that are computed when the program runs")
        number = {t: i for i, t in enumerate(dict.fromkeys(pool_strings))}
        pool = [number[t] for t in pool_strings]
        x = np.array([number.get(t, -1) for t in x.reshape(-1).tolist()], np.int64).reshape(x.shape)
    columns = max(ngram_indexes) + 1
    rows = fx.cast(tensor(x), i64)
    rows = rows if fx.rank(rows) == 2 else fx.reshape(rows, (1, -1))
    counts = _counts(
        rows, _grams(pool, ngram_counts, ngram_indexes), min_gram_length, max_gram_length, max_skip_count, columns
    )
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ValueError(f"there is no mode {mode!r}")
    out = fx.cast(counts, f32)
    if mode == "IDF":
        out = fx.cast(fx.greater(counts, np.int64(0)), f32)
    if mode != "TF" and weights:
        out = fx.multiply(out, np.array(weights, np.float32))
    return out if len(x.shape) == 2 else fx.reshape(out, (columns,))


def _grams(pool: Any, starts: Ints, columns: Ints) -> dict[int, tuple[Any, Any]]:
    """For each length n: the n-grams i64[grams, n] and the column that each counts in."""
    out, seen = {}, 0
    ends = [*starts[1:], len(pool)]
    for n, (begin, end) in enumerate(zip(starts, ends, strict=True), 1):
        grams = np.array(pool[begin:end], np.int64).reshape(-1, n)
        if len(grams):
            out[n] = grams, np.array(columns[seen : seen + len(grams)], np.int64)
        seen += len(grams)
    return out


MAX_STEPS = 256  # distances of the tokens of a gram, each some ops


def _counts(rows: Any, grams: dict[int, tuple[Any, Any]], shortest: int, longest: int, skips: int, columns: int) -> Any:
    batch, length = rows.shape
    place = fx.arange(length)
    total = fx.zeros((batch, columns), i64)
    for n, (wanted, column) in grams.items():
        if not shortest <= n <= longest:
            continue
        # A unigram has nothing between its tokens, and no gram reaches beyond the row.
        steps = 1 if n == 1 else skips + 1 if not isinstance(length, int) else min(skips + 1, (length - 1) // (n - 1))
        if steps > MAX_STEPS:
            raise error("FX1202", f"grams of {steps} distances; at most {MAX_STEPS} are looked for")
        for step in range(1, steps + 1):
            inside = fx.less(fx.add(place, np.int64(step * (n - 1))), fx.asarray(length))
            hit = fx.reshape(inside, (1, length, 1))
            for k in range(n):
                at = fx.minimum(fx.add(place, np.int64(step * k)), fx.subtract(fx.asarray(length), np.int64(1)))
                token = fx.expand_dims(fx.take(rows, at, axis=1), axis=2)
                hit = fx.logical_and(hit, fx.equal(token, wanted[:, k]))
            found = fx.sum(fx.cast(hit, i64), axis=1)  # [batch, grams]
            into = fx.broadcast_to(fx.asarray(column), (batch, len(column)))
            own = fx.broadcast_to(fx.reshape(fx.arange(batch), (batch, 1)), (batch, len(column)))
            total = fx.put(total, (own, into), found, "add")
    return total
