"""Batches, splits, folds and labels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.data import DataLoader, kfold, one_cold, one_hot, split
from fluxir.data.loader import ahead
from fluxir.errors import FluxError

X, Y = np.arange(20).reshape(10, 2), np.arange(10)


def test_batches_in_order_are_views() -> None:
    d = DataLoader((X, Y), 4)
    batches = list(d)
    assert len(d) == 3 and [len(y) for _, y in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
    assert all(x.base is not None and np.shares_memory(x, X) for x, _ in batches)
    whole = DataLoader((X, Y), 4, partial=False)
    assert len(whole) == 2 and [len(y) for _, y in whole] == [4, 4]
    assert [len(x) for x in DataLoader(X, 100)] == [10]


def test_shuffling_depends_on_key_and_epoch_alone() -> None:
    def order(d: DataLoader, n: int, start: int = 0) -> list[int]:
        return [int(i) for _, y in d.epoch(n, start) for i in y]

    a, b = DataLoader((X, Y), 3, shuffle=7), DataLoader((X, Y), 3, shuffle=fx.random.key(7), prefetch=2)
    assert sorted(order(a, 0)) == list(range(10)) and order(a, 0) == order(a, 0) == order(b, 0)
    assert order(a, 0) != order(a, 1) == order(b, 1) and order(DataLoader((X, Y), 3, shuffle=8), 0) != order(a, 0)
    assert order(a, 1, 2) == order(a, 1)[6:] and order(a, 1, 4) == []
    runs = [[int(i) for _, y in a for i in y] for _ in range(2)]
    assert runs == [order(a, 0), order(a, 1)]
    for x, y in a:
        np.testing.assert_array_equal(x, X[y])


def test_sequences_of_examples() -> None:
    examples = [{"x": X[i], "n": i} for i in range(10)]
    batches = list(DataLoader(examples, 4))
    assert batches[0]["x"].shape == (4, 2) and batches[2]["n"].tolist() == [8, 9]

    class Words:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Any:
            return np.ones(i + 1)

    def padded(items: list[Any]) -> Any:
        n = max(map(len, items))
        return np.stack([np.pad(x, (0, n - len(x))) for x in items])

    np.testing.assert_array_equal(next(iter(DataLoader(Words(), 3, collate=padded))), np.tril(np.ones((3, 3))))
    with pytest.raises(FluxError, match="FX1105"):
        next(iter(DataLoader(Words(), 3)))
    with pytest.raises(FluxError, match="FX1105"):
        next(iter(DataLoader([{"a": 1}, {"b": 1}], 2)))
    doubled = DataLoader((X, Y), 5, collate=lambda b: (b[0] * 2, b[1]))
    np.testing.assert_array_equal(next(iter(doubled))[0], X[:5] * 2)


def test_a_thread_makes_batches_ahead() -> None:
    made: list[int] = []

    class Slow:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            made.append(i)
            if i == 6:
                raise ValueError("example 6 is broken")
            return i

    it = iter(DataLoader(Slow(), 2, prefetch=2))
    assert next(it).tolist() == [0, 1]
    got = [next(it).tolist() for _ in range(2)]
    assert got == [[2, 3], [4, 5]]
    with pytest.raises(ValueError, match="example 6"):
        next(it)
    assert not [t for t in threading.enumerate() if t.name == "fluxir-prefetch"]


def test_the_thread_ends_with_its_reader() -> None:
    def forever() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    it = ahead(forever(), 3)
    assert [next(it) for _ in range(5)] == [0, 1, 2, 3, 4]
    it.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "fluxir-prefetch"]


@pytest.mark.parametrize(
    ("data", "size", "code"),
    [
        ((X, Y[:9]), 2, "FX1105"),
        ({"x": X, "n": 3}, 2, "FX1105"),
        ((), 2, "FX1105"),
        (X, 0, "FX1102"),
        (X, 2.0, "FX1102"),
        (X, True, "FX1102"),
    ],
)
def test_loaders_that_are_refused(data: Any, size: Any, code: str) -> None:
    with pytest.raises(FluxError, match=code):
        DataLoader(data, size)


def test_splits() -> None:
    (a, p), (b, q) = split((X, Y), 0.7)
    assert p.tolist() == list(range(7)) and q.tolist() == [7, 8, 9] and len(a) == 7 and np.shares_memory(b, X)
    parts = split(Y, [0.5, 0.3], key=1)
    assert [len(p) for p in parts] == [5, 3, 2] and sorted(np.concatenate(parts)) == list(range(10))
    assert (
        [p.tolist() for p in split(Y, [0.5, 0.3], key=1)]
        == [p.tolist() for p in parts]
        != [p.tolist() for p in split(Y, [0.5, 0.3])]
    )
    assert [len(p) for p in split(list(range(5)), 1.0)] == [5, 0]
    for bad in (1.5, -0.1, [0.6, 0.6]):
        with pytest.raises(FluxError, match="FX1102"):
            split(Y, bad)


@pytest.mark.parametrize("key", [None, 4])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_folds(k: int, key: Any) -> None:
    folds = list(kfold((X, Y), k, key=key))
    assert len(folds) == k
    assert sorted(np.concatenate([v[1] for _, v in folds])) == list(range(10))
    for (x, y), (_, held) in folds:
        assert sorted([*y, *held]) == list(range(10)) and np.array_equal(x, X[y])
    assert max(len(v[1]) for _, v in folds) - min(len(v[1]) for _, v in folds) <= 1


def test_fold_counts() -> None:
    for k in (1, 11, 2.5):
        with pytest.raises(FluxError, match="FX1102"):
            kfold(Y, k)  # type: ignore[arg-type]


def test_labels() -> None:
    np.testing.assert_array_equal(one_hot([1, 0], 3), [[0, 1, 0], [1, 0, 0]])
    words = np.array([["b", "a"], ["c", "c"]])
    hot = one_hot(words, ["a", "b", "c"])
    assert hot.shape == (2, 2, 3) and hot.dtype == np.float32
    np.testing.assert_array_equal(one_cold(hot, ["a", "b", "c"]), words)
    np.testing.assert_array_equal(one_cold(hot), [[1, 0], [2, 2]])
    for labels in ([3], [-1], [0.5]):
        with pytest.raises(FluxError, match="FX1105"):
            one_hot(labels, 3)
