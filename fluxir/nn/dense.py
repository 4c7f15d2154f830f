"""Dense, Bilinear, Scale, Embedding, EmbeddingBag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fluxir as fx
from fluxir.nn import init as inits
from fluxir.nn.module import Module, fold, function_name, require_features, static

Activation = Callable[[Any], Any] | None


def activated(activation: Activation, y: Any) -> Any:
    """`activation(y)`, or `y`."""
    return y if activation is None else activation(y)


def with_activation(text: str, activation: Activation) -> str:
    """A layer's description and the name of its activation."""
    return text if activation is None else f"{text}, {function_name(activation)}"


class Dense(Module):
    """activation(x @ weight + bias): x [..., in] -> [..., out]; weight [in, out], bias [out] or None.

    `init` makes the weight (Glorot's uniform), the bias begins at 0.
    """

    weight: Any
    bias: Any
    activation: Any

    def __init__(
        self, inputs: int, outputs: int, activation: Activation = None,
        *, key: Any, bias: bool = True, init: Callable[..., Any] = inits.glorot_uniform, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        self.weight = init(key, (inputs, outputs), (inputs, outputs), dtype)
        self.bias = fx.zeros((outputs,), dtype=dtype) if bias else None
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        require_features("Dense", x, -1, self.weight.shape[0])
        return activated(self.activation, fx.functional.linear(x, self.weight, self.bias))

    def about(self) -> str:
        i, o = self.weight.shape
        return with_activation(f"{i} => {o}", self.activation)


class Bilinear(Module):
    """y[..., o] = activation(x[..., i] weight[o, i, j] z[..., j] + bias[o]): x [..., in1], z [..., in2] -> [..., out].

    With one argument z is x. weight [out, in1, in2].
    """

    weight: Any
    bias: Any
    activation: Any

    def __init__(
        self, inputs: tuple[int, int], outputs: int, activation: Activation = None,
        *, key: Any, bias: bool = True, init: Callable[..., Any] = inits.glorot_uniform, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        a, b = inputs
        self.weight = init(key, (outputs, a, b), (a * b, outputs), dtype)
        self.bias = fx.zeros((outputs,), dtype=dtype) if bias else None
        self.activation = activation

    def __call__(self, x: Any, z: Any = None) -> Any:
        z = x if z is None else z
        require_features("Bilinear", x, -1, self.weight.shape[1])
        require_features("Bilinear", z, -1, self.weight.shape[2])
        o, a, b = self.weight.shape
        # x W for all outputs at once is one matrix product; the other factor is a product and a sum.
        left = fx.matmul(x, fx.reshape(fx.permute_dims(self.weight, (1, 0, 2)), (a, o * b)))
        left = fx.reshape(left, (*fx.shape(left)[:-1], o, b))
        y = fx.sum(left * fx.expand_dims(z, -2), axis=-1)
        return activated(self.activation, y if self.bias is None else y + self.bias)

    def about(self) -> str:
        o, a, b = self.weight.shape
        return with_activation(f"({a}, {b}) => {o}", self.activation)


class Scale(Module):
    """activation(x * scale + bias) elementwise: scale and bias of `shape`, which the last axes of x have or broadcast to."""

    scale: Any
    bias: Any
    activation: Any

    def __init__(self, *shape: int, activation: Activation = None, bias: bool = True, dtype: Any = "f32") -> None:
        self.scale = fx.ones(shape, dtype=dtype)
        self.bias = fx.zeros(shape, dtype=dtype) if bias else None
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        y = x * self.scale
        return activated(self.activation, y if self.bias is None else y + self.bias)

    def about(self) -> str:
        return with_activation(", ".join(map(str, self.scale.shape)), self.activation)


def unit_normal(key: Any, shape: Any, fans: Any, dtype: Any) -> Any:
    """Standard normal."""
    return inits.normal(key, shape, fans, dtype, std=1.0)


class Embedding(Module):
    """Rows of a table: integer indices [...] -> [..., size]; weight [count, size], normal with standard deviation 1.

    Indices out of range are clamped, as all gathers are.
    """

    weight: Any

    def __init__(
        self,
        count: int,
        size: int,
        *,
        key: Any,
        init: Callable[..., Any] = unit_normal,
        dtype: Any = "f32",
    ) -> None:
        self.weight = init(key, (count, size), (1, size), dtype)

    def __call__(self, indices: Any) -> Any:
        return fx.functional.embedding(indices, self.weight)

    def attend(self, x: Any) -> Any:
        """x @ weight^T: [..., size] -> [..., count], the table used as an output layer (Press and Wolf 2017)."""
        return fx.matmul(x, fx.matrix_transpose(self.weight))

    def about(self) -> str:
        n, d = self.weight.shape
        return f"{n} => {d}"


class EmbeddingBag(Module):
    """The mean (sum, max) of the rows of bags of indices: indices [..., N] -> [..., size]; weight [count, size].

    `weights` [..., N] scales each row. `mask` [..., N] (bool) marks the indices that are there: bags of different lengths
    are padded to one N. A bag of nothing gives 0. `mode` is "mean", "sum" or "max".
    """

    weight: Any
    mode: str = static()

    def __init__(
        self, count: int, size: int, mode: str = "mean",
        *, key: Any, init: Callable[..., Any] = unit_normal, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        if mode not in ("mean", "sum", "max"):
            raise fx.error("FX1003", f"EmbeddingBag: the mode is mean, sum or max, not {mode!r}")
        self.weight = init(key, (count, size), (1, size), dtype)
        self.mode = mode

    def __call__(self, indices: Any, weights: Any = None, *, mask: Any = None) -> Any:
        rows = fx.functional.embedding(indices, self.weight)
        if weights is not None:
            rows = rows * fx.expand_dims(weights, -1)
        keep = None if mask is None else fx.expand_dims(mask, -1)
        if self.mode == "max":
            if keep is None:
                return fx.max(rows, axis=-2)
            best = fx.max(fx.where(keep, rows, fx.full_like(rows, float("-inf"))), axis=-2)
            return fx.where(fx.any(keep, axis=-2), best, fx.zeros_like(best))
        total = fx.sum(rows if keep is None else fx.where(keep, rows, fx.zeros_like(rows)), axis=-2)
        if self.mode == "sum":
            return total
        if keep is None:
            return fx.mean(rows, axis=-2)
        there = fx.sum(fx.astype(keep, rows.dtype), axis=-2)
        return total / fx.maximum(there, 1)

    def about(self) -> str:
        n, d = self.weight.shape
        return f"{n} => {d}, {self.mode}"


def split_keys(key: Any, count: int) -> list[Any]:
    """`count` keys made from one."""
    return [fold(key, i) for i in range(count)]


__all__ = ["Bilinear", "Dense", "Embedding", "EmbeddingBag", "Scale", "activated", "split_keys", "with_activation"]
