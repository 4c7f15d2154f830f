"""Recurrent layers: cells RNNCell, LSTMCell, GRUCell; sequence layers RNN, LSTM, GRU; Recurrence of any cell.

A cell is called as `y, state = cell(x, state)`, with x [..., in]. Sequences are [..., T, in], so [B, T, in] for a batch. The
projection of the inputs is one matrix product for the whole sequence; what depends on the state is an `fx.scan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fluxir as fx
from fluxir.nn import init as inits
from fluxir.nn.dense import Activation, with_activation
from fluxir.nn.module import Module, fold, require_features, static

Init = Callable[..., Any] | None


def _weights(cell: Any, inputs: int, hidden: int, gates: int, key: Any, bias: bool, init: Init, dtype: Any) -> None:
    """Weights of all gates side by side, uniform in +-1/sqrt(hidden) by default; biases begin at 0."""

    def make(k: Any, shape: tuple[int, int]) -> Any:
        if init is not None:
            return init(k, shape, (shape[0], hidden), dtype)
        limit = 1 / math.sqrt(hidden)
        return inits.uniform(k, shape, None, dtype, low=-limit, high=limit)

    cell.weight = make(fold(key, 0), (inputs, gates * hidden))
    cell.recurrent = make(fold(key, 1), (hidden, gates * hidden))
    cell.bias = fx.zeros((gates * hidden,), dtype=dtype) if bias else None


class _Cell(Module):
    """What cells share. `project` does the part of a step that needs no state; `step` the rest."""

    weight: Any
    recurrent: Any
    bias: Any

    @property
    def hidden(self) -> int:
        """The size of the output."""
        return int(self.recurrent.shape[0])

    def project(self, x: Any) -> Any:
        """x @ weight + bias: [..., in] -> [..., gates * hidden]."""
        require_features(type(self).__name__, x, -1, self.weight.shape[0])
        return fx.functional.linear(x, self.weight, self.bias)

    def step(self, p: Any, state: Any) -> tuple[Any, Any]:
        """One step from projected inputs: `(y, state)`."""
        raise NotImplementedError

    def initial(self, batch: Any = (), dtype: Any = None) -> Any:
        """The state before the first step: zeros [batch..., hidden]."""
        return fx.zeros((*batch, self.hidden), dtype=dtype or self.weight.dtype)

    def __call__(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        p = self.project(x)
        return self.step(p, self.initial(fx.shape(p)[:-1], p.dtype) if state is None else state)

    def _gates(self, p: Any) -> list[Any]:
        n = fx.shape(p)[-1] // self.hidden
        return [p[..., i * self.hidden : (i + 1) * self.hidden] for i in range(n)]

    def about(self) -> str:
        return with_activation(f"{self.weight.shape[0]} => {self.hidden}", getattr(self, "activation", None))


class RNNCell(_Cell):
    """h' = activation(x W + h U + b), y = h' (Elman 1990)."""

    activation: Any

    def __init__(
        self, inputs: int, hidden: int, activation: Activation = None,
        *, key: Any, bias: bool = True, init: Init = None, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        _weights(self, inputs, hidden, 1, key, bias, init, dtype)
        self.activation = fx.tanh if activation is None else activation

    def step(self, p: Any, state: Any) -> tuple[Any, Any]:
        h = self.activation(p + fx.matmul(state, self.recurrent))
        return h, h


class LSTMCell(_Cell):
    """Long short-term memory with forget gate (Hochreiter and Schmidhuber 1997, Gers et al. 2000); the state is (h, c).

    Gates i, f, g, o side by side: c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    """

    def __init__(
        self, inputs: int, hidden: int, *, key: Any, bias: bool = True, init: Init = None, dtype: Any = "f32"
    ) -> None:
        _weights(self, inputs, hidden, 4, key, bias, init, dtype)

    def initial(self, batch: Any = (), dtype: Any = None) -> Any:
        zeros = super().initial(batch, dtype)
        return zeros, zeros

    def step(self, p: Any, state: Any) -> tuple[Any, Any]:
        h, c = state
        i, f, g, o = self._gates(p + fx.matmul(h, self.recurrent))
        c = fx.sigmoid(f) * c + fx.sigmoid(i) * fx.tanh(g)
        h = fx.sigmoid(o) * fx.tanh(c)
        return h, (h, c)


class GRUCell(_Cell):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as cuDNN and PyTorch have it.

    Gates r, z, n side by side: n = tanh(x_n + r (h U_n + b_h)), h' = (1 - z) n + z h. `bias_state` is b_h [hidden].
    """

    bias_state: Any

    def __init__(
        self, inputs: int, hidden: int, *, key: Any, bias: bool = True, init: Init = None, dtype: Any = "f32"
    ) -> None:
        _weights(self, inputs, hidden, 3, key, bias, init, dtype)
        self.bias_state = fx.zeros((hidden,), dtype=dtype) if bias else None

    def step(self, p: Any, state: Any) -> tuple[Any, Any]:
        xr, xz, xn = self._gates(p)
        hr, hz, hn = self._gates(fx.matmul(state, self.recurrent))
        r, z = fx.sigmoid(xr + hr), fx.sigmoid(xz + hz)
        n = fx.tanh(xn + r * (hn if self.bias_state is None else hn + self.bias_state))
        h = (1 - z) * n + z * state
        return h, h


# ---- sequences -------------------------------------------------------------------------------------------------------


def run_cell(cell: Any, x: Any, state: Any, reverse: bool = False) -> tuple[Any, Any]:
    """A cell over x [..., T, in] from `state` (None: its initial one): (y [..., T, out], the last state)."""
    if isinstance(cell, _Cell):
        x, step = cell.project(x), cell.step
    else:
        step = cell
    if state is None:
        if not hasattr(cell, "initial"):
            raise fx.error("FX1002", f"{type(cell).__name__} has no `initial` method: give the state")
        state = cell.initial(fx.shape(x)[:-2], x.dtype)
    xs = fx.moveaxis(x, -2, 0)

    def body(s: Any, p: Any) -> tuple[Any, Any]:
        y, s = step(p, s)
        return s, y

    state, ys = fx.scan(body, state, xs, reverse=reverse)
    return fx.moveaxis(ys, 0, -2), state


class Recurrence(Module):
    """A cell over a sequence: x [..., T, in] -> [..., T, out].

    A cell is anything called as `y, state = cell(x, state)`; with a method `initial(batch, dtype)` it makes its first state.
    `return_state=True` gives `(y, state)`; `reverse` begins at the end.
    """

    cell: Any
    reverse: bool = static(default=False)

    def __call__(self, x: Any, state: Any = None, *, return_state: bool = False) -> Any:
        y, last = run_cell(self.cell, x, state, self.reverse)
        return (y, last) if return_state else y


class _Sequence(Module):
    """Layers of cells; see RNN."""

    cells: tuple[Any, ...]
    bidirectional: bool = static()
    dropout: float = static()

    def __init__(
        self, inputs: int, hidden: int, *, key: Any, layers: int = 1, bidirectional: bool = False, dropout: float = 0.0,
        **options: Any,
    ) -> None:  # fmt: skip
        if layers < 1:
            raise fx.error("FX1003", f"{type(self).__name__} has at least one layer, not {layers}")
        directions = 2 if bidirectional else 1
        cells = []
        for i in range(layers):
            size = inputs if i == 0 else hidden * directions
            cells += [self._cell(size, hidden, key=fold(key, directions * i + d), **options) for d in range(directions)]
        self.cells, self.bidirectional, self.dropout = tuple(cells), bidirectional, dropout

    def _cell(self, inputs: int, hidden: int, **options: Any) -> Any:
        raise NotImplementedError

    def __call__(
        self, x: Any, state: Any = None, *, return_state: bool = False, train: bool = False, key: Any = None
    ) -> Any:
        directions = 2 if self.bidirectional else 1
        given = (None,) * len(self.cells) if state is None else tuple(state)
        if len(given) != len(self.cells):
            raise fx.error(
                "FX1002", f"{type(self).__name__} has {len(self.cells)} cells and is given {len(given)} states"
            )
        last = []
        for i in range(0, len(self.cells), directions):
            if i and self.dropout and train:
                if key is None:
                    raise fx.error("FX1004", f"{type(self).__name__} with dropout between layers needs a random key")
                x = fx.functional.dropout(x, fold(key, i), self.dropout)
            ys = []
            for d in range(directions):
                y, s = run_cell(self.cells[i + d], x, given[i + d], reverse=d == 1)
                ys.append(y)
                last.append(s)
            x = ys[0] if directions == 1 else fx.concat(ys, axis=-1)
        return (x, tuple(last)) if return_state else x

    def about(self) -> str:
        parts = ["bidirectional"] if self.bidirectional else []
        return ", ".join(parts + ([f"dropout={self.dropout}"] if self.dropout else []))


class RNN(_Sequence):
    """Elman networks over a sequence: x [..., T, in] -> [..., T, hidden] (twice hidden if bidirectional).

    `layers` stacked, with `dropout` between them in training; `return_state=True` gives `(y, states)`, one state for each
    layer and direction, which a later call takes as `state`. `activation` is tanh by default.
    """

    def _cell(self, inputs: int, hidden: int, **options: Any) -> Any:
        return RNNCell(inputs, hidden, **options)


class LSTM(_Sequence):
    """LSTMs over a sequence, as `RNN`; each state is (h, c)."""

    def _cell(self, inputs: int, hidden: int, **options: Any) -> Any:
        return LSTMCell(inputs, hidden, **options)


class GRU(_Sequence):
    """GRUs over a sequence, as `RNN`."""

    def _cell(self, inputs: int, hidden: int, **options: Any) -> Any:
        return GRUCell(inputs, hidden, **options)


__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell", "Recurrence", "run_cell"]
