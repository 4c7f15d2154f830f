"""`DataLoader`: data as batches, in an order that depends on a key and the number of the epoch alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fluxir as fx

Collate = Callable[[list[Any]], Any]


class DataLoader:
    """Batches of `data`: each run through it is an epoch.

    `data` is a tree of arrays (an array, a tuple, a dict) with the examples along the first axis, of which batches are slices;
    or a sequence of examples (a list, or an object with `__len__` and `__getitem__`), which `collate` makes batches of: by
    default it stacks the leaves. `shuffle` is None, or a seed or key: epoch n is shuffled by it and n, so a run that is resumed
    sees the batches that it would have seen. The last batch may be smaller; with `partial=False` it is left out. With
    `prefetch` a thread makes that many batches ahead.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 1,
        *,
        shuffle: Any = None,
        partial: bool = True,
        collate: Collate | None = None,
        prefetch: int = 0,
    ) -> None:
        for name, n, least in (("batch_size", batch_size, 1), ("prefetch", prefetch, 0)):
            if isinstance(n, bool) or not isinstance(n, int) or n < least:
                raise fx.error("FX1102", f"DataLoader: {name} is {n!r}, it must be an integer of at least {least}")
        self.data, self.batch_size, self.partial = data, batch_size, partial
        self.shuffle = as_key(shuffle)
        self.collate, self.prefetch = collate, prefetch
        self.examples = count(data)
        self._epochs = 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(self.examples, self.batch_size)
        return whole + (1 if rest and self.partial else 0)

    def __iter__(self) -> Iterator[Any]:
        """The next epoch: the n-th run through the loader (from 0) gives `epoch(n)`."""
        n = self._epochs
        self._epochs += 1
        return self.epoch(n)

    def epoch(self, n: int, start: int = 0) -> Iterator[Any]:
        """The batches of epoch n from batch `start` on."""
        order = None
        if self.shuffle is not None:
            order = np.asarray(fx.random.permutation(fx.random.fold_in(self.shuffle, n), self.examples))
        made = self._batches(order, start)
        return ahead(made, self.prefetch) if self.prefetch else made

    def _batches(self, order: Any, start: int) -> Iterator[Any]:
        for i in range(start, len(self)):
            low, high = i * self.batch_size, min((i + 1) * self.batch_size, self.examples)
            yield self._batch(slice(low, high) if order is None else order[low:high])

    def _batch(self, chosen: Any) -> Any:
        if is_sequence(self.data):
            numbers = range(self.examples)[chosen] if isinstance(chosen, slice) else chosen
            examples = [self.data[int(i)] for i in numbers]
            return (self.collate or stack)(examples)
        batch = take(self.data, chosen)
        return self.collate(batch) if self.collate is not None else batch


def as_key(key: Any) -> Any:
    """A key from a seed or a key; None is none."""
    if key is None:
        return None
    return fx.random.key(key) if isinstance(key, int | np.integer) else np.asarray(key)


def is_sequence(data: Any) -> bool:
    """Whether data are a sequence of examples, and not a tree of arrays."""
    if isinstance(data, list):
        return True
    leaf = fx.tree.flatten(data)[1].kind == "leaf"
    return leaf and not hasattr(data, "dtype") and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def count(data: Any) -> int:
    """The number of examples. FX1105 if arrays disagree about it."""
    if is_sequence(data):
        return len(data)
    leaves, structure = fx.tree.flatten(data)
    sizes = {}
    for path, x in zip(structure.paths(), leaves, strict=True):
        shape = getattr(x, "shape", ())
        where = fx.tree.path_text(path) or "the data"
        if not shape:
            raise fx.error("FX1105", f"{where}: a {type(x).__name__} has no axis of examples")
        sizes[where] = int(shape[0])
    if not sizes:
        raise fx.error("FX1105", "the data have no array")
    if len(set(sizes.values())) > 1:
        raise fx.error("FX1105", "arrays of one data set differ in their number of examples: "
                       + ", ".join(f"{w} has {n}" for w, n in sizes.items()))  # fmt: skip
    return next(iter(sizes.values()))


def take(data: Any, chosen: Any) -> Any:
    """The examples with these numbers (a slice or an index array)."""
    if is_sequence(data):
        return data[chosen] if isinstance(chosen, slice) else [data[int(i)] for i in chosen]
    return fx.tree.map(lambda x: x[chosen], data)


def stack(examples: list[Any]) -> Any:
    """Examples of one structure as a batch: their leaves stacked. FX1105 if shapes differ."""
    leaves, structure = fx.tree.flatten(examples[0])
    columns: list[list[Any]] = [[x] for x in leaves]
    for e in examples[1:]:
        more, s = fx.tree.flatten(e)
        if s != structure:
            raise fx.error(
                "FX1105", "examples of one batch differ in structure", help="give the loader a collate function"
            )
        for column, x in zip(columns, more, strict=True):
            column.append(x)
    shapes = [{np.shape(x) for x in c} for c in columns]
    for found in shapes:
        if len(found) > 1:
            raise fx.error("FX1105", f"examples of one batch differ in shape: {', '.join(map(str, sorted(found)))}",
                           help="give the loader a collate function that pads them")  # fmt: skip
    return structure.unflatten([np.stack(c) for c in columns])


def ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """The items, of which a thread makes up to `depth` ahead. What it raises is raised here; it ends when this iterator does."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    done = threading.Event()

    def put(kind: str, x: Any) -> bool:
        while not done.is_set():
            try:
                ready.put((kind, x), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for x in items:
                if not put("item", x):
                    return
            put("end", None)
        except BaseException as e:
            put("error", e)

    def run() -> Iterator[Any]:
        worker = threading.Thread(target=work, name="fluxir-prefetch", daemon=True)
        worker.start()
        try:
            while True:
                kind, x = ready.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise x
                yield x
        finally:
            done.set()
            worker.join()

    return run()


__all__ = ["DataLoader", "ahead", "as_key", "count", "is_sequence", "stack", "take"]
