"""MultiHeadAttention."""

from __future__ import annotations

import math
from typing import Any

import fluxir as fx
from fluxir.nn.dense import Dense
from fluxir.nn.dropout import require_key
from fluxir.nn.module import Module, fold, require_features, static


class MultiHeadAttention(Module):
    """Attention of several heads (Vaswani et al. 2017): query [..., S, in], key and value [..., T, in] -> [..., S, out].

    `inputs` is a number, or (query, key, value) where they differ; `inner` the width of all query and key heads together,
    `inner_value` that of the values (both `inputs` of the query by default), `outputs` the width of the result.
    Called with one argument it is self-attention; with two, the second is key and value.

    `mask` (bool: true where attention is allowed; float: added to the scores) broadcasts to [..., heads, S, T]; so does
    `bias`, which is added as well. `causal` lets position s attend to t <= s. `dropout` works on the weights, in training.
    `return_weights=True` gives `(y, weights [..., heads, S, T])`.
    """

    query: Dense
    key: Dense
    value: Dense
    output: Dense
    heads: int = static()
    dropout: float = static()

    def __init__(
        self, inputs: int | tuple[int, int, int], heads: int,
        *, key: Any, inner: int | None = None, inner_value: int | None = None, outputs: int | None = None,
        bias: bool = False, dropout: float = 0.0, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        q, k, v = (inputs,) * 3 if isinstance(inputs, int) else inputs
        width = inner or q
        width_v = inner_value or width
        if heads < 1 or width % heads or width_v % heads:
            raise fx.error("FX1003", f"MultiHeadAttention: {heads} heads do not divide {width} and {width_v}")
        if not 0 <= dropout < 1:
            raise fx.error("FX1003", f"MultiHeadAttention: the dropout is at least 0 and below 1, not {dropout}")
        self.query = Dense(q, width, key=fold(key, 0), bias=bias, dtype=dtype)
        self.key = Dense(k, width, key=fold(key, 1), bias=bias, dtype=dtype)
        self.value = Dense(v, width_v, key=fold(key, 2), bias=bias, dtype=dtype)
        self.output = Dense(width_v, outputs or q, key=fold(key, 3), bias=bias, dtype=dtype)
        self.heads, self.dropout = heads, dropout

    def __call__(
        self, query: Any, context: Any = None, value: Any = None,
        *, mask: Any = None, bias: Any = None, causal: bool = False, return_weights: bool = False,
        train: bool = False, key: Any = None,
    ) -> Any:  # fmt: skip
        context = query if context is None else context
        value = context if value is None else value
        for layer, x in ((self.query, query), (self.key, context), (self.value, value)):
            require_features("MultiHeadAttention", x, -1, layer.weight.shape[0])
        q, k, v = self._split(self.query(query)), self._split(self.key(context)), self._split(self.value(value))
        dropping = train and self.dropout > 0
        if dropping:
            require_key("MultiHeadAttention", key)
        if not dropping and not return_weights:
            y = fx.functional.attention(q, k, v, _added(mask, bias, q.dtype), is_causal=causal)
            return self.output(self._join(y))
        scores = fx.matmul(q, fx.matrix_transpose(k)) * (1 / math.sqrt(fx.shape(q)[-1]))
        if bias is not None:
            scores = scores + bias
        allowed = None
        if mask is not None and not fx.isdtype(fx.dtype(mask.dtype), "bool"):
            scores = scores + mask
        elif mask is not None:
            allowed = fx.broadcast_to(fx.asarray(mask), fx.shape(scores))
        if causal:
            s, t = fx.shape(scores)[-2:]
            lower = fx.expand_dims(fx.arange(s), 1) >= fx.expand_dims(fx.arange(t), 0)
            allowed = fx.broadcast_to(lower, fx.shape(scores)) if allowed is None else fx.logical_and(allowed, lower)
        weights = fx.functional.softmax(scores, where=allowed)
        used = fx.functional.dropout(weights, key, self.dropout) if dropping else weights
        y = self.output(self._join(fx.matmul(used, v)))
        return (y, weights) if return_weights else y

    def _split(self, x: Any) -> Any:
        """[..., S, heads * d] -> [..., heads, S, d]."""
        shape = fx.shape(x)
        return fx.moveaxis(fx.reshape(x, (*shape[:-1], self.heads, shape[-1] // self.heads)), -2, -3)

    def _join(self, x: Any) -> Any:
        """[..., heads, S, d] -> [..., S, heads * d]."""
        x = fx.moveaxis(x, -3, -2)
        shape = fx.shape(x)
        return fx.reshape(x, (*shape[:-2], shape[-2] * shape[-1]))

    def about(self) -> str:
        return f"heads={self.heads}" + (f", dropout={self.dropout}" if self.dropout else "")


def _added(mask: Any, bias: Any, dtype: Any) -> Any:
    """Mask and bias as the one mask of the fused op: a bias is a mask that is added, and -inf is not allowed."""
    if bias is None:
        return mask
    bias = fx.astype(fx.asarray(bias), dtype)
    if mask is None:
        return bias
    if fx.isdtype(fx.dtype(mask.dtype), "bool"):
        return fx.where(mask, bias, -math.inf)
    return bias + mask


__all__ = ["MultiHeadAttention"]
