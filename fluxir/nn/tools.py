"""outputsize (shapes without computing) and destructure (a model as one vector)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import fluxir as fx
from fluxir.nn.module import trainable
from fluxir.nn.state import apply


def outputsize(model: Callable[..., Any], *shapes: Sequence[Any], dtype: Any = "f32", train: bool = False) -> Any:
    """The shape of `model`'s result for inputs of these shapes: nothing is computed. Sizes may be symbols.

    `outputsize(model, ("B", 3, 32, 32))` gives `("B", 10)`, with sizes as integers or text; for a tree of results, a tree
    of shapes. In a chain the error names the layer that does not fit, as a call would.
    """
    kind = fx.dtype(dtype)
    # A tensor type takes its sizes in brackets: fx.f32["B", 3].
    types = [kind[tuple(s)] if len(s) else kind for s in shapes]

    def traced(m: Any, xs: Any) -> Any:
        return apply(m, *xs, train=train, key=fx.random.key(0) if train else None)[0]

    entry = fx.jit(traced).lower(model, tuple(types))
    results = [tuple(d if isinstance(d, int) else str(d) for d in v.type.shape) for v in entry.module.entry.outs]
    return entry.out_tree.unflatten(results)


def destructure(model: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`(flat, rebuild)`: all parameters as one vector, and the function from such a vector to a model.

    Other leaves (integers, running statistics) stay in `rebuild`. Parts of the vector are converted to the types of the
    leaves. FX1007 for a vector of another length.
    """
    leaves, structure = fx.tree.flatten(model)
    places = [i for i, is_parameter in enumerate(fx.tree.leaves(trainable(model))) if is_parameter]
    shapes = [fx.shape(leaves[i]) for i in places]
    types = [leaves[i].dtype for i in places]
    sizes = []
    for s in shapes:
        n: Any = 1
        for d in s:
            n = n * d
        sizes.append(n)
    if not places:
        raise fx.error("FX1007", "destructure: the model has no parameters")
    wide = fx.result_type(*[fx.dtype(t) for t in types])
    flat = fx.concat([fx.astype(fx.reshape(leaves[i], (-1,)), wide) for i in places], axis=0)
    total = sum(sizes)

    def rebuild(vector: Any) -> Any:
        given = fx.shape(vector)
        if len(given) != 1 or (isinstance(given[0], int) and given[0] != total):
            raise fx.error("FX1007", f"the model has {total} parameters and is given {list(given)}")
        out, at = list(leaves), 0
        for i, s, n, t in zip(places, shapes, sizes, types, strict=True):
            out[i] = fx.astype(fx.reshape(vector[at : at + n], s), t)
            at += n
        return structure.unflatten(out)

    return flat, rebuild


__all__ = ["destructure", "outputsize"]
