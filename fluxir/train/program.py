"""Compiled programs over a model and batches: one for all sizes of the last batch.

`Program` compiles a function of trees with their leaves as flat arguments, since a call with arrays alone takes the shortest way
to native code. The first axis of the arrays of a batch is the symbol B, so that a smaller last batch runs the same code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fluxir as fx


def is_array(x: Any) -> bool:
    """Whether a leaf becomes an argument of the program; numbers and texts are part of it."""
    return hasattr(x, "dtype") and hasattr(x, "shape")


def as_batch(batch: Any) -> Any:
    """A batch whose numbers are arrays."""
    return fx.tree.map(lambda x: x if is_array(x) else np.asarray(x), batch)


def batch_size(batch: Any) -> int:
    """The number of examples in a batch: the first size of its first array that has one, else 1."""
    return next((int(x.shape[0]) for x in fx.tree.leaves(batch) if getattr(x, "shape", ())), 1)


def own(tree: Any) -> Any:
    """A copy of a tree whose arrays share memory with nothing."""
    return fx.tree.map(lambda x: np.array(x) if is_array(x) else x, tree)


class Program:
    """`fn(fixed tree..., batch) -> tree` as compiled programs, one for each structure and type of what it is called with.

    Arrays of the first `donated` trees are given away to the results of their types.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str,
        donated: int = 0,
        symbolic: bool = True,
        target: str | None = None,
        device: str | None = None,
    ) -> None:
        self.fn, self.name, self.donated = fn, name, donated
        self.symbolic, self.target, self.device = symbolic, target, device
        self._made: dict[Any, tuple[Any, list[Any]]] = {}

    def __call__(self, trees: Sequence[Any], batch: Any) -> Any:
        leaves, structures = [], []
        for t in trees:
            xs, s = fx.tree.flatten(t)
            leaves.append(xs)
            structures.append(s)
        more, s = fx.tree.flatten(batch)
        flat = [x for xs in leaves for x in xs]
        size = batch_size(batch)
        shapes = [self._shape(x, size) for x in more]
        constants = tuple((type(x), x) for x in flat if not is_array(x))
        key = (
            tuple(structures), s, constants, tuple((x.dtype, x.shape) for x in flat if is_array(x)),
            tuple((x.dtype, shape) for x, shape in zip(more, shapes, strict=True)),
        )  # fmt: skip
        if key not in self._made:
            self._made[key] = self._make(leaves, structures, s, more, shapes)
        run, out = self._made[key]
        results = run(*[x for x in flat if is_array(x)], *more)
        return out[0].unflatten(list(results))

    def _shape(self, x: Any, size: int) -> tuple[Any, ...]:
        """The shape of an array of the batch in the signature."""
        shape = tuple(x.shape)
        return ("B", *shape[1:]) if self.symbolic and shape and shape[0] == size else shape

    def _make(
        self, leaves: list[list[Any]], structures: list[Any], last: Any, batch: list[Any], shapes: list[tuple[Any, ...]]
    ) -> tuple[Any, list[Any]]:
        # Places of what is an argument; whatever else is in the trees (numbers, texts) is part of the program.
        fixed = [[None if is_array(x) else x for x in xs] for xs in leaves]
        places = [[i for i, x in enumerate(xs) if is_array(x)] for xs in leaves]
        out: list[Any] = []

        def call(*args: Any) -> Any:
            at, trees = 0, []
            for xs, ps, s in zip(fixed, places, structures, strict=True):
                full = list(xs)
                for p in ps:
                    full[p] = args[at]
                    at += 1
                trees.append(s.unflatten(full))
            results, structure = fx.tree.flatten(self.fn(*trees, last.unflatten(list(args[at:]))))
            out[:] = [structure]
            return tuple(results)

        call.__name__ = self.name
        types = [fx.dtype(x.dtype)[tuple(x.shape)] for xs in leaves for x in xs if is_array(x)]
        types += [fx.dtype(x.dtype)[shape] for x, shape in zip(batch, shapes, strict=True)]
        given_away = sum(len(ps) for ps in places[: self.donated])
        facts = "B >= 1" if any(shape and shape[0] == "B" for shape in shapes) else None
        run = fx.jit(
            call,
            signature=tuple(types),
            donate_argnums=tuple(range(given_away)),
            facts=facts,
            target=self.target,
            device=self.device,
        )
        return run, out


def batches(data: Any, epoch: int, start: int = 0) -> Any:
    """The batches of an epoch, from batch `start` on. FX1105 for data that can be run through only once."""
    if hasattr(data, "epoch"):
        return data.epoch(epoch, start)
    if isinstance(data, tuple | dict) or is_array(data):  # arrays: one batch with all of them
        return iter([data][start:])
    if iter(data) is data:
        raise fx.error("FX1105", f"the data are a {type(data).__name__}, which is used up after one epoch",
                       help="give a list of batches or a fx.data.DataLoader")  # fmt: skip
    found = iter(data)
    for _ in range(start):
        next(found, None)
    return found


def arguments(batch: Any) -> tuple[Any, ...]:
    """What a function is called with after the model: the parts of a tuple or list, or the batch itself."""
    return tuple(batch) if isinstance(batch, tuple | list) and not hasattr(batch, "_fields") else (batch,)


def staged(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with its control flow over traced values staged, as `fx.jit` does, where its source can be had."""
    if not inspect.isfunction(fn) or fn.__name__ == "<lambda>":
        return fn
    made: Callable[..., Any] = fx.function(fn)
    try:
        made.converted  # type: ignore[attr-defined]  # noqa: B018
    except fx.FluxError as e:
        if e.code in ("FX0308", "FX0312"):
            return fn
        raise
    return made


def evaluate(fn: Callable[..., Any], model: Any, data: Any, *, symbolic: bool = True) -> Any:
    """The mean of `fn(model, *batch)` over the examples: a number, or a dict of them, each a mean over its batch.

    Compiled, once for all sizes of the last batch.
    """
    fn = staged(fn)

    def named(m: Any, b: Any) -> Any:
        out = fn(m, *arguments(b))
        return out if isinstance(out, dict) else {"": out}

    found = means(Program(named, name="evaluate", symbolic=symbolic), model, data)
    return found[""] if list(found) == [""] else found


def means(program: Program, model: Any, data: Any) -> dict[str, float]:
    """The means over the examples of the scalars that a program gives for each batch."""
    sums: dict[str, float] = {}
    total = 0
    for batch in batches(data, 0):
        b = as_batch(batch)
        n = batch_size(b)
        for k, v in program((model,), b).items():
            sums[k] = sums.get(k, 0.0) + float(v) * n
        total += n
    if not total:
        raise fx.error("FX1105", "the data have no batch")
    return {k: v / total for k, v in sums.items()}


__all__ = [
    "Program",
    "arguments",
    "as_batch",
    "batch_size",
    "batches",
    "evaluate",
    "is_array",
    "means",
    "own",
    "staged",
]
