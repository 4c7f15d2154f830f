"""Chain, Parallel, SkipConnection, Maxout, PairwiseFusion, Flatten, Recurrence (in `recurrent`): layers made of layers.

Any function of tensors is a layer. `train` and `key` given to a container go to the layers in it that take them, each with a
key of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fluxir as fx
from fluxir.nn.module import Module, call, fold, static


def _named(
    owner: str, layers: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], tuple[str, ...] | None]:
    if layers and named:
        raise fx.error("FX1003", f"{owner}: name all layers or none of them")
    for x in (*layers, *named.values()):
        if not callable(x):
            raise fx.error("FX1003", f"{owner}: a {type(x).__name__} is no layer: it cannot be called")
    return (tuple(named.values()), tuple(named)) if named else (layers, None)


class _Layers(Module):
    """Layers by position or name."""

    layers: tuple[Any, ...]
    names: Any = static()

    def layer_names(self) -> list[str] | None:
        return None if self.names is None else list(self.names)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, i: Any) -> Any:
        """A layer by position or name; a slice is a container of the same kind."""
        if isinstance(i, slice):
            return self.replace(layers=self.layers[i], names=None if self.names is None else self.names[i])
        if isinstance(i, str):
            if self.names is None or i not in self.names:
                raise KeyError(i)
            i = self.names.index(i)
        return self.layers[i]

    def about(self) -> str:
        return ""


class Chain(_Layers):
    """One layer after the other: `Chain(f, g)(x)` is g(f(x)).

    `Chain(encoder=f, decoder=g)` names them; `chain[0]`, `chain["encoder"]`, `chain[:2]`, `len(chain)`, iteration. Several
    arguments go to the first layer; a chain of nothing gives back what it is given.
    """

    def __init__(self, *layers: Callable[..., Any], **named: Callable[..., Any]) -> None:
        self.layers, self.names = _named("Chain", layers, named)

    def __call__(self, *xs: Any, train: bool = False, key: Any = None) -> Any:
        if not self.layers:
            return xs[0] if len(xs) == 1 else xs
        y = call(self.layers[0], *xs, train=train, key=fold(key, 0))
        for i, layer in enumerate(self.layers[1:], 1):
            y = call(layer, y, train=train, key=fold(key, i))
        return y


class Parallel(_Layers):
    """`connection(f(x), g(x), ...)`; given as many inputs as layers, each layer takes its own.

    `connection` takes all results, `fx.add` for two or a function of several; None returns them as a tuple.
    """

    connection: Any

    def __init__(
        self, connection: Callable[..., Any] | None, *layers: Callable[..., Any], **named: Callable[..., Any]
    ) -> None:
        self.layers, self.names = _named("Parallel", layers, named)
        self.connection = connection

    def __call__(self, *xs: Any, train: bool = False, key: Any = None) -> Any:
        if len(xs) == 1 and isinstance(xs[0], tuple):
            xs = xs[0]
        if len(xs) not in (1, len(self.layers)):
            raise fx.error("FX1002", f"Parallel of {len(self.layers)} layers is given {len(xs)} inputs")
        given = xs * len(self.layers) if len(xs) == 1 else xs
        keys = [fold(key, i) for i in range(len(self.layers) + 1)]
        ys = [call(f, x, train=train, key=k) for f, x, k in zip(self.layers, given, keys, strict=False)]
        return tuple(ys) if self.connection is None else call(self.connection, *ys, train=train, key=keys[-1])


class SkipConnection(Module):
    """`connection(layer(x), x)`, by default their sum (He et al. 2016)."""

    layer: Any
    connection: Any

    def __init__(self, layer: Callable[..., Any], connection: Callable[..., Any] | None = None) -> None:
        self.layer, self.connection = layer, fx.add if connection is None else connection

    def __call__(self, x: Any, *, train: bool = False, key: Any = None) -> Any:
        y = call(self.layer, x, train=train, key=fold(key, 0))
        return call(self.connection, y, x, train=train, key=fold(key, 1))


class Maxout(_Layers):
    """The largest result of several layers, elementwise (Goodfellow et al. 2013)."""

    def __init__(self, *layers: Callable[..., Any]) -> None:
        if not layers:
            raise fx.error("FX1003", "Maxout takes at least one layer")
        self.layers, self.names = _named("Maxout", layers, {})

    def __call__(self, *xs: Any, train: bool = False, key: Any = None) -> Any:
        ys = [call(f, *xs, train=train, key=fold(key, i)) for i, f in enumerate(self.layers)]
        out = ys[0]
        for y in ys[1:]:
            out = fx.maximum(out, y)
        return out


class PairwiseFusion(_Layers):
    """A cascade over several inputs: y1 = f1(x1), yi = fi(connection(yi-1, xi)); all y as a tuple (Flux's layer).

    One input is used for all layers.
    """

    connection: Any

    def __init__(
        self, connection: Callable[..., Any], *layers: Callable[..., Any], **named: Callable[..., Any]
    ) -> None:
        self.layers, self.names = _named("PairwiseFusion", layers, named)
        self.connection = connection

    def __call__(self, *xs: Any, train: bool = False, key: Any = None) -> tuple[Any, ...]:
        if len(xs) == 1 and isinstance(xs[0], tuple):
            xs = xs[0]
        if len(xs) not in (1, len(self.layers)):
            raise fx.error("FX1002", f"PairwiseFusion of {len(self.layers)} layers is given {len(xs)} inputs")
        given = xs * len(self.layers) if len(xs) == 1 else xs
        ys: list[Any] = []
        for i, (f, x) in enumerate(zip(self.layers, given, strict=True)):
            ys.append(call(f, self.connection(ys[-1], x) if ys else x, train=train, key=fold(key, i)))
        return tuple(ys)


class Flatten(Module):
    """All axes from `start` on as one: [N, C, H, W] -> [N, C * H * W]."""

    start: int = static(default=1)

    def __call__(self, x: Any) -> Any:
        shape = fx.shape(x)
        size: Any = 1
        for d in shape[self.start :]:
            size = size * d
        return fx.reshape(x, (*shape[: self.start], size))

    def about(self) -> str:
        return "" if self.start == 1 else f"start={self.start}"


__all__ = ["Chain", "Flatten", "Maxout", "PairwiseFusion", "Parallel", "SkipConnection"]
