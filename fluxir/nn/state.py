"""`State` and `apply`: how new running statistics get into the model, which cannot change itself.

A layer that has some hands them to the innermost open `State` that holds it, and finds them there when it runs again in the
same step. The model with all of them comes out of it, as a value like any other: so the pair works inside `fx.jit`,
`fx.grad` (as aux) and the body of a loop that carries the model.

    def loss(model, x, y, key):
        logits, model = fx.nn.apply(model, x, train=True, key=key)
        return fx.mean(fx.nn.cross_entropy(logits, y)), model

    (value, model), grads = fx.value_and_grad(loss, has_aux=True)(model, x, y, key)

The model must be the one that runs: open the `State` in the same function of a transform or loop body, not around it.
"""

from __future__ import annotations

import contextvars
from typing import Any

import fluxir as fx
from fluxir.nn.module import Module, call, children, modules

_open: contextvars.ContextVar[tuple[State, ...]] = contextvars.ContextVar("fluxir_nn_state", default=())


class State:
    """Takes the statistics that the layers of `model` compute while it is open; `model` then has them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._holds = {id(m): m for m in modules(model)}
        self._new: dict[int, dict[str, Any]] = {}
        self._token: Any = None

    def __enter__(self) -> State:
        self._token = _open.set((*_open.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        _open.reset(self._token)

    @property
    def model(self) -> Any:
        """The model with the statistics computed so far. FX1005 if they were computed inside a loop or a transform."""
        for i, values in self._new.items():
            # Under an outer trace the frontend finds these tensors itself (FX0311); here no trace is left to ask.
            if not fx.is_tracing() and any(isinstance(v, fx.Tensor) for v in values.values()):
                raise fx.error(
                    "FX1005",
                    f"{type(self._holds[i]).__name__} computed its statistics inside a loop or a transform that has ended",
                    help="open the State inside it, where the model is an argument, and return state.model",
                )
        return self._rebuilt(self._model) if self._new else self._model

    def _rebuilt(self, x: Any) -> Any:
        below = children(x)
        if not below and not (isinstance(x, Module) and id(x) in self._new):
            return x
        leaves, structure = fx.tree.flatten(x, lambda y: y is not x and isinstance(y, Module))
        out = structure.unflatten([self._rebuilt(c) if isinstance(c, Module) else c for c in leaves])
        return out.replace(**self._new[id(x)]) if isinstance(x, Module) and id(x) in self._new else out


def read_state(layer: Module, name: str) -> Any:
    """The statistics `name` of a layer as they are now in this step; they are no parameters and have no gradient."""
    value = getattr(layer, name)
    for s in reversed(_open.get()):
        if id(layer) in s._holds:
            value = s._new.get(id(layer), {}).get(name, value)
            break
    return fx.stop_gradient(value)


def write_state(layer: Module, **values: Any) -> None:
    """Hand new statistics of a layer to the `State` that holds it. FX1005 if there is none."""
    for s in reversed(_open.get()):
        if id(layer) in s._holds:
            s._new.setdefault(id(layer), {}).update({k: fx.stop_gradient(v) for k, v in values.items()})
            return
    raise fx.error(
        "FX1005", f"{type(layer).__name__} in training computes new {' and '.join(values)}, which nobody takes"
    )


def apply(model: Any, *args: Any, train: bool = False, key: Any = None, **options: Any) -> tuple[Any, Any]:
    """`(model(*args), model)`: the result, and the model with the statistics it computed.

    `train` and `key` are handed to the model if it takes them.
    """
    with State(model) as s:
        y = call(model, *args, train=train, key=key, **options)
    return y, s.model


__all__ = ["State", "apply", "read_state", "write_state"]
