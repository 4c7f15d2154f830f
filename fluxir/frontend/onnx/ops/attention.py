"""Attention, rotary embeddings, and gated units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import element
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.registry import Float, Int, Subgraph, Text, op
from fluxir.frontend.onnx.values import tensor
from fluxir.ir import dims
from fluxir.ir.dtypes import f32


def heads_of(x: Any, heads: int) -> Any:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    y = fx.reshape(x, (x.shape[0], x.shape[1], heads, dims.floordiv(x.shape[2], heads)))
    return fx.transpose(y, (0, 2, 1, 3))


def merged(y: Any) -> Any:
    """[batch, heads, length, size] as [batch, length, heads * size]."""
    b, h, t, d = y.shape
    return fx.reshape(fx.transpose(y, (0, 2, 1, 3)), (b, t, h * d))


def repeated(x: Any, times: int) -> Any:
    """Each head `times` times, one after the other."""
    if times == 1:
        return x
    b, h, t, d = x.shape
    wide = fx.broadcast_to(fx.reshape(x, (b, h, 1, t, d)), (b, h, times, t, d))
    return fx.reshape(wide, (b, h * times, t, d))


@op("Attention", since=23)
def attention(
    cx: Context, q: Any, k: Any, v: Any, mask: Any = None, past_key: Any = None, past_value: Any = None,
    lengths: Any = None, *, is_causal: Int = 0, kv_num_heads: Int = 0, left_window_size: Int = -1, q_num_heads: Int = 0,
    qk_matmul_output_mode: Int = 0, right_window_size: Int = -1, scale: Float | None = None, softcap: Float = 0.0,
    softmax_precision: Int | None = None,
) -> Any:  # fmt: skip
    flat = fx.rank(q) == 3
    if flat:
        q, k, v = heads_of(q, q_num_heads), heads_of(k, kv_num_heads), heads_of(v, kv_num_heads)
    if past_key is not None:
        k, v = fx.concat([past_key, k], axis=2), fx.concat([past_value, v], axis=2)
    present = (k, v)
    d = fx.dtype(q)
    past = 0 if past_key is None else past_key.shape[2]
    groups = q.shape[1] // k.shape[1]
    k, v = repeated(k, groups), repeated(v, groups)
    factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    root = math.sqrt(abs(factor))
    sign = -1 if factor < 0 else 1
    scores = fx.matmul(
        fx.multiply(q, fx.scalar(root * sign, q)), fx.multiply(fx.transpose(k, (0, 1, 3, 2)), fx.scalar(root, k))
    )
    raw = scores
    bias: Any = None
    rows, columns = fx.reshape(fx.arange(q.shape[2]), (-1, 1)), fx.reshape(fx.arange(k.shape[2]), (1, -1))
    here = fx.add(rows, fx.asarray(past))
    if lengths is not None and past_key is None:  # the queries are the last of the keys that are there
        here = fx.add(rows, fx.reshape(fx.subtract(fx.cast(lengths, "i64"), fx.asarray(q.shape[2])), (-1, 1, 1, 1)))
    allowed = []
    if is_causal:
        allowed.append(fx.less_equal(columns, here))
    if left_window_size >= 0:
        allowed.append(fx.less_equal(fx.subtract(here, columns), np.int64(left_window_size)))
    if right_window_size >= 0:
        allowed.append(fx.less_equal(fx.subtract(columns, here), np.int64(right_window_size)))
    if lengths is not None:
        allowed.append(fx.less(columns, fx.reshape(fx.cast(lengths, "i64"), (-1, 1, 1, 1))))
    for part in allowed:
        part = _blocked(part, scores)
        bias = part if bias is None else fx.add(bias, part)
    if mask is not None:
        short = k.shape[2] - mask.shape[-1]
        mask = _blocked(mask, scores) if fx.dtype(mask).is_bool else fx.cast(mask, d)
        if not (isinstance(short, int) and short == 0):
            mask = fx.pad(mask, [(0, 0)] * (fx.rank(mask) - 1) + [(0, short)], constant_values=fx.scalar(-np.inf, mask))
        bias = mask if bias is None else fx.add(bias, mask)
    capped = scores
    if softcap:
        capped = fx.multiply(fx.tanh(fx.divide(scores, fx.scalar(softcap, scores))), fx.scalar(softcap, scores))
    biased = capped if bias is None else fx.add(capped, bias)
    wide = f32 if softmax_precision is None else element(softmax_precision, "Attention").carrier
    assert wide is not None
    weights = fx.cast(fx.nn.softmax(fx.cast(biased, wide), axis=-1), d)
    if bias is not None:  # a row with nothing to look at gives zeros
        nothing = fx.equal(fx.max(bias, axis=-1, keepdims=True), fx.scalar(-np.inf, bias))
        weights = fx.where(nothing, fx.scalar(0, weights), weights)
    y = fx.matmul(weights, v)
    shown = {0: raw, 1: capped, 2: biased, 3: weights}[qk_matmul_output_mode]
    return Results((merged(y) if flat else y, *present, shown))


def _blocked(allowed: Any, like: Any) -> Any:
    """0 where looking is allowed, minus infinity elsewhere."""
    return fx.where(allowed, fx.scalar(0, like), fx.scalar(-np.inf, like))


@op("FlexAttention", domain="ai.onnx.preview", pure=False)
def flex_attention(
    cx: Context, q: Any, k: Any, v: Any, *, prob_mod: Subgraph | None = None, scale: Float | None = None,
    score_mod: Subgraph | None = None, softmax_precision: Int | None = None,
) -> Any:  # fmt: skip
    groups = q.shape[1] // k.shape[1]
    k, v = repeated(k, groups), repeated(v, groups)
    d = fx.dtype(q)
    wide = f32 if softmax_precision is None else element(softmax_precision, "FlexAttention").carrier
    assert wide is not None
    factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    scores = fx.matmul(fx.cast(q, wide), fx.transpose(fx.cast(k, wide), (0, 1, 3, 2)))
    scores = fx.multiply(scores, fx.scalar(factor, scores))
    if score_mod is not None:
        (scores,) = (tensor(x) for x in score_mod(scores))
    weights = fx.nn.softmax(fx.cast(scores, wide), axis=-1)
    if prob_mod is not None:
        (weights,) = (tensor(x) for x in prob_mod(weights))
    return fx.cast(fx.matmul(fx.cast(weights, wide), fx.cast(v, wide)), d)


def turned(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """The first pairs of the last axis turned by the angles whose cosines and sines are given; the rest as it is."""
    half = cos.shape[-1]
    width = 2 * half
    part, rest = fx.item(x, (..., slice(0, width))), fx.item(x, (..., slice(width, None)))
    if interleaved:
        a, b = fx.item(part, (..., slice(0, None, 2))), fx.item(part, (..., slice(1, None, 2)))
    else:
        a, b = fx.item(part, (..., slice(0, half))), fx.item(part, (..., slice(half, None)))
    real = fx.subtract(fx.multiply(cos, a), fx.multiply(sin, b))
    imaginary = fx.add(fx.multiply(sin, a), fx.multiply(cos, b))
    y = (
        fx.reshape(fx.stack([real, imaginary], axis=-1), part.shape)
        if interleaved
        else fx.concat([real, imaginary], axis=-1)
    )
    return y if isinstance(x.shape[-1], int) and x.shape[-1] == width else fx.concat([y, rest], axis=-1)


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Any,
    cos: Any,
    sin: Any,
    positions: Any = None,
    *,
    interleaved: Int = 0,
    num_heads: Int = 0,
    rotary_embedding_dim: Int = 0,
) -> Any:
    """Su et al. 2021."""
    flat = fx.rank(x) == 3
    if flat:
        x = heads_of(x, num_heads)
    half = (rotary_embedding_dim or x.shape[3]) // 2
    if positions is not None:
        cos, sin = fx.take(cos, positions, axis=0), fx.take(sin, positions, axis=0)
    cos, sin = (fx.expand_dims(fx.item(t, (..., slice(0, half))), axis=1) for t in (cos, sin))
    y = turned(x, cos, sin, bool(interleaved))
    return merged(y) if flat else y


@op("SwiGLU", since=28)
def swiglu(x: Any, gate: Any, *, alpha: Float = 1.0) -> Any:
    return fx.multiply(fx.multiply(x, fx.sigmoid(fx.multiply(x, fx.scalar(alpha, x)))), gate)


@op("LinearAttention", since=27)
def linear_attention(
    q: Any, k: Any, v: Any, state: Any = None, decay: Any = None, beta: Any = None, *, chunk_size: Int = 64, kv_num_heads: Int,
    q_num_heads: Int, scale: Float = 0.0, update_rule: Text = "gated_delta",
) -> Any:  # fmt: skip
    """Attention by a state of keys times values (Katharopoulos et al. 2020), with decay and the delta rule (Yang et al.
    2024): one step of a scan for each position, in f32."""
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise ValueError(f"there is no update_rule {update_rule!r}")
    gated, corrected = update_rule in ("gated", "gated_delta"), update_rule in ("delta", "gated_delta")
    if (decay is None) == gated or (beta is None) == corrected:
        raise ValueError(f"the inputs decay and beta do not go with the update_rule {update_rule!r}")
    d, batch = fx.dtype(q), q.shape[0]
    steps = [
        fx.transpose(fx.cast(heads_of(x, n), f32), (2, 0, 1, 3))
        for x, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
    ]
    size, width = steps[1].shape[3], steps[2].shape[3]
    for extra in (decay, beta):
        if extra is not None:
            n = extra.shape[-1] if extra.shape[-1] == 1 else kv_num_heads
            steps.append(fx.transpose(fx.cast(heads_of(extra, n), f32), (2, 0, 1, 3)))
    first = fx.full((batch, kv_num_heads, size, width), np.float32(0)) if state is None else fx.cast(state, f32)
    factor = np.float32(scale or 1 / math.sqrt(size))
    groups = q_num_heads // kv_num_heads

    def step(s: Any, row: Any) -> Any:
        rest = list(row[3:])
        qt, kt, vt = row[:3]
        if gated:
            s = fx.multiply(s, fx.expand_dims(fx.exp(rest.pop(0)), axis=-1))
        if corrected:
            found = fx.squeeze(fx.matmul(fx.expand_dims(kt, axis=2), s), axis=2)
            vt = fx.multiply(rest.pop(0), fx.subtract(vt, found))
        s = fx.add(s, fx.multiply(fx.expand_dims(kt, axis=3), fx.expand_dims(vt, axis=2)))
        y = fx.squeeze(fx.matmul(fx.expand_dims(qt, axis=2), repeated(s, groups)), axis=2)
        return s, fx.multiply(y, factor)

    last, ys = fx.scan(step, fx.asarray(first), tuple(map(fx.asarray, steps)))
    y = fx.reshape(fx.transpose(ys, (1, 0, 2, 3)), (batch, q.shape[1], q_num_heads * width))
    return Results((fx.cast(y, d), fx.cast(last, d if state is None else fx.dtype(state))))
