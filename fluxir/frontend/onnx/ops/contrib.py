"""com.microsoft: the operators that onnxruntime's exporters and optimisers write into models.

Semantics are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import ELEMENTS, few
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.ops.attention import heads_of, merged, repeated, turned
from fluxir.frontend.onnx.ops.integer import product_of
from fluxir.frontend.onnx.ops.products import conv, gemm, less_zero
from fluxir.frontend.onnx.ops.quantised import (
    QuantisedWeight,
    aligned,
    dequantize_linear,
    dynamic_quantize_linear,
    quantised,
    quantize_linear,
)
from fluxir.frontend.onnx.ops.recurrent import run_lstm
from fluxir.frontend.onnx.registry import Float, Floats, Int, Ints, Known, Raw, Text, Texts, op
from fluxir.frontend.onnx.values import known, unwrapped
from fluxir.ir import dims
from fluxir.ir.dtypes import f32

MS = "com.microsoft"

# ---- elementwise and products --------------------------------------------------------------------------------------


@op("Gelu", domain=MS)
def gelu(x: Any) -> Any:
    return fx.nn.gelu(x, approximate=False)


@op("QuickGelu", domain=MS)
def quick_gelu(x: Any, *, alpha: Float = 1.702) -> Any:
    return fx.multiply(x, fx.sigmoid(fx.multiply(x, fx.scalar(alpha, x))))


@op("FastGelu", domain=MS)
def fast_gelu(x: Any, bias: Any = None) -> Any:
    return fx.nn.gelu(x if bias is None else fx.add(x, bias), approximate=True)


@op("BiasGelu", domain=MS)
def bias_gelu(x: Any, bias: Any) -> Any:
    return fx.nn.gelu(fx.add(x, bias), approximate=False)


@op("BiasSplitGelu", domain=MS)
def bias_split_gelu(x: Any, bias: Any) -> Any:
    left, right = fx.split(fx.add(x, bias), 2, axis=-1)
    return fx.multiply(left, fx.nn.gelu(right, approximate=False))


@op("BiasAdd", domain=MS)
def bias_add(x: Any, bias: Any, skip: Any) -> Any:
    return fx.add(fx.add(x, bias), skip)


@op("BiasSoftmax", domain=MS)
def bias_softmax(x: Any, bias: Any, *, axis: Int = 1, is_inner_broadcast: Int) -> Any:
    return fx.nn.softmax(fx.add(x, bias), axis=-1)


_ACTIVATIONS: dict[str, Any] = {
    "": lambda x, p: x, "Relu": lambda x, p: fx.maximum(x, fx.scalar(0, x)), "Tanh": lambda x, p: fx.tanh(x),
    "Sigmoid": lambda x, p: fx.sigmoid(x), "LeakyRelu": lambda x, p: fx.nn.leaky_relu(x, p[0] if p else 0.01),
    "Clip": lambda x, p: fx.clip(x, fx.scalar(p[0], x), fx.scalar(p[1], x)),
    "HardSigmoid": lambda x, p: fx.clip(
        fx.add(fx.multiply(x, fx.scalar(p[0], x)), fx.scalar(p[1], x)), fx.scalar(0, x), fx.scalar(1, x)
    ),
    "HardSwish": lambda x, p: fx.nn.hard_swish(x), "Silu": lambda x, p: fx.nn.silu(x),
}  # fmt: skip


def activated(x: Any, name: str, parameters: Floats) -> Any:
    """An activation by name, as fused operators have it."""
    f = _ACTIVATIONS.get(name)
    if f is None:
        raise ValueError(f"there is no activation {name!r}")
    return f(x, parameters)


@op("FusedConv", domain=MS)
def fused_conv(
    x: Any, w: Any, b: Any = None, z: Any = None, *, activation: Text = "", activation_params: Floats = (),
    auto_pad: Text = "NOTSET", dilations: Ints | None = None, group: Int = 1, kernel_shape: Ints | None = None,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return activated(y if z is None else fx.add(y, z), activation, activation_params)


@op("FusedMatMul", "TransposeMatMul", domain=MS)
def fused_matmul(
    a: Any, b: Any, *, alpha: Float = 1.0, transA: Int = 0, transB: Int = 0, transBatchA: Int = 0, transBatchB: Int = 0
) -> Any:
    def turned(x: Any, batch: int, inner: int) -> Any:
        order = list(range(fx.rank(x)))
        if batch:
            order = [*order[1:-1], order[0], order[-1]]
        if inner:
            order[-1], order[-2] = order[-2], order[-1]
        return fx.transpose(x, tuple(order))

    y = fx.matmul(turned(a, transBatchA, transA), turned(b, transBatchB, transB))
    return y if alpha == 1 else fx.multiply(y, fx.scalar(alpha, y))


@op("FusedGemm", domain=MS)
def fused_gemm(
    a: Any, b: Any, c: Any = None, *, activation: Text = "", activation_alpha: Float = 0.01, activation_beta: Float = 0.0,
    activation_gamma: Float = 0.0, alpha: Float = 1.0, beta: Float = 1.0, transA: Int = 0, transB: Int = 0,
) -> Any:  # fmt: skip
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, (activation_alpha, activation_beta, activation_gamma))


@op("Inverse", domain=MS)
def inverse(x: Any) -> Any:
    from fluxir.frontend.onnx.ops.products import det

    n = x.shape[-1]
    if not isinstance(n, int) or n > 4:
        raise error("FX1203", f"Inverse of matrices of {n} rows; up to 4 are supported")
    d = det(x)
    rows = []
    for i in range(n):
        row = []
        for j in range(n):
            keep_r = np.array([k for k in range(n) if k != j], np.int64)
            keep_c = np.array([k for k in range(n) if k != i], np.int64)
            minor = fx.take(fx.take(x, keep_r, axis=-2), keep_c, axis=-1)
            m = det(minor) if n > 1 else fx.full(x.shape[:-2], fx.scalar(1, x))
            row.append(m if (i + j) % 2 == 0 else fx.negative(m))
        rows.append(fx.stack(row, axis=-1))
    return fx.divide(fx.stack(rows, axis=-2), fx.expand_dims(d, axis=(-1, -2)))


# ---- normalisation -------------------------------------------------------------------------------------------------


def _normalised(x: Any, scale: Any, bias: Any, epsilon: float, simple: bool) -> tuple[Any, Any, Any]:
    wide = fx.cast(x, f32) if fx.dtype(x).bits < 32 else x
    mean = fx.mean(wide, axis=-1, keepdims=True)
    centred = wide if simple else fx.subtract(wide, mean)
    inverse_ = fx.rsqrt(fx.add(fx.mean(fx.square(centred), axis=-1, keepdims=True), fx.scalar(epsilon, wide)))
    y = fx.multiply(fx.cast(fx.multiply(centred, inverse_), fx.dtype(x)), scale)
    return (y if bias is None else fx.add(y, bias)), mean, inverse_


@op("SkipLayerNormalization", domain=MS)
def skip_layer_norm(
    x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None, *, epsilon: Float = 1e-12
) -> Any:
    total = fx.add(x, skip)
    total = total if bias is None else fx.add(total, bias)
    y, mean, inv = _normalised(total, gamma, beta, epsilon, False)
    return Results((y, mean, inv, total))


@op("SkipSimplifiedLayerNormalization", domain=MS)
def skip_rms_norm(x: Any, skip: Any, gamma: Any, bias: Any = None, *, epsilon: Float = 1e-12) -> Any:
    total = fx.add(x, skip)
    total = total if bias is None else fx.add(total, bias)
    y, mean, inv = _normalised(total, gamma, None, epsilon, True)
    return Results((y, mean, inv, total))


@op("SimplifiedLayerNormalization", domain=MS)
@op("SimplifiedLayerNormalization")
def rms_norm(cx: Context, x: Any, scale: Any, *, axis: Int = -1, epsilon: Float = 1e-5, stash_type: Int = 1) -> Any:
    y, _, inv = _normalised(x, scale, None, epsilon, True)
    return Results((y, inv))


@op("EmbedLayerNormalization", domain=MS)
def embed_layer_norm(
    ids: Any, segments: Any, words: Any, positions: Any, segment_table: Any, gamma: Any, beta: Any, mask: Any = None,
    places: Any = None, *, epsilon: Float = 1e-12, mask_index_type: Int = 1,
) -> Any:  # fmt: skip
    at = fx.expand_dims(fx.arange(ids.shape[1]), axis=0) if places is None else places
    total = fx.add(fx.take(words, ids, axis=0), fx.take(positions, at, axis=0))
    if segments is not None:
        total = fx.add(total, fx.take(segment_table, segments, axis=0))
    counts = fx.full((ids.shape[0],), np.int32(0)) if mask is None else fx.sum(fx.cast(mask, "i32"), axis=1)
    y, _, _ = _normalised(total, gamma, beta, epsilon, False)
    return Results((y, fx.cast(counts, "i32"), total))


@op("GroupNorm", domain=MS)
def group_norm(
    x: Any, gamma: Any, beta: Any, *, activation: Int, channels_last: Int = 1, epsilon: Float = 1e-5, groups: Int
) -> Any:
    if channels_last:
        x = fx.moveaxis(x, -1, 1)
    wide = fx.reshape(fx.cast(x, f32), (x.shape[0], groups, -1))
    centred = fx.subtract(wide, fx.mean(wide, axis=-1, keepdims=True))
    y = fx.multiply(centred, fx.rsqrt(fx.add(fx.mean(fx.square(centred), axis=-1, keepdims=True), np.float32(epsilon))))
    shape = (-1, *[1] * (fx.rank(x) - 2))
    y = fx.add(fx.multiply(fx.reshape(y, x.shape), fx.reshape(gamma, shape)), fx.reshape(beta, shape))
    y = fx.cast(fx.nn.silu(y) if activation else y, fx.dtype(x))
    return fx.moveaxis(y, 1, -1) if channels_last else y


# ---- attention -----------------------------------------------------------------------------------------------------


def _attend(q: Any, k: Any, v: Any, bias: Any, scale: float | None, causal: bool, lengths: Any = None) -> Any:
    """softmax(q k^T * scale + bias) v of [batch, heads, length, size]; `lengths` says how many keys are there."""
    factor = scale or 1 / math.sqrt(q.shape[3])
    scores = fx.multiply(fx.matmul(q, fx.transpose(k, (0, 1, 3, 2))), fx.scalar(factor, q))
    scores = scores if bias is None else fx.add(scores, fx.cast(bias, fx.dtype(scores)))
    columns = fx.arange(k.shape[2])
    low = fx.scalar(np.finfo(np.float32).min if fx.dtype(scores).bits >= 32 else -65504.0, scores)
    if causal:
        rows = fx.add(fx.reshape(fx.arange(q.shape[2]), (-1, 1)), fx.asarray(k.shape[2] - q.shape[2]))
        scores = fx.where(fx.less_equal(columns, rows), scores, low)
    if lengths is not None:
        there = fx.less(columns, fx.reshape(fx.cast(lengths, "i64"), (-1, 1, 1, 1)))
        scores = fx.where(there, scores, low)
    return fx.matmul(fx.nn.softmax(scores, axis=-1), v)


def _mask_bias(mask: Any, like: Any, low: float, length: Any) -> tuple[Any, Any]:
    """What a mask index means: (bias, key lengths)."""
    if mask is None:
        return None, None
    n = fx.rank(mask)
    if n == 1:
        return None, mask
    if n == 2:
        mask = fx.reshape(mask, (mask.shape[0], 1, 1, mask.shape[1]))
    elif n == 3:
        mask = fx.expand_dims(mask, axis=1)
    hidden = fx.equal(mask, fx.scalar(0, mask))
    return fx.where(hidden, fx.scalar(low, like), fx.scalar(0, like)), None


@op("Attention", domain=MS)
def attention(
    cx: Context, x: Any, w: Any, b: Any = None, mask: Any = None, past: Any = None, bias: Any = None, past_length: Any = None,
    *, do_rotary: Int = 0, mask_filter_value: Float = -10000.0, num_heads: Int, past_present_share_buffer: Int = 0,
    qkv_hidden_sizes: Ints | None = None, rotary_embedding_dim: Int = 0, scale: Float = 0.0, unidirectional: Int = 0,
) -> Any:  # fmt: skip
    if do_rotary or past_present_share_buffer:
        raise error("FX1203", "Attention of com.microsoft with rotary embeddings or a shared buffer")
    z = fx.matmul(x, w)
    z = z if b is None else fx.add(z, b)
    third = dims.floordiv(z.shape[2], 3)
    sizes = qkv_hidden_sizes or (third, third, third)
    ends = [0, sizes[0], sizes[0] + sizes[1], sizes[0] + sizes[1] + sizes[2]]
    q, k, v = (heads_of(fx.item(z, (..., slice(a, e))), num_heads) for a, e in zip(ends[:-1], ends[1:], strict=True))
    if past is not None:
        k, v = fx.concat([fx.item(past, 0), k], axis=2), fx.concat([fx.item(past, 1), v], axis=2)
    extra, lengths = _mask_bias(mask, q, mask_filter_value, k.shape[2])
    total = bias if extra is None else extra if bias is None else fx.add(extra, bias)
    y = merged(_attend(q, k, v, total, scale or None, bool(unidirectional), lengths))
    return Results((y, fx.stack([k, v], axis=0))) if cx.wants(1) else y


@op("MultiHeadAttention", domain=MS)
def multi_head_attention(
    cx: Context, q: Any, k: Any = None, v: Any = None, b: Any = None, mask: Any = None, bias: Any = None,
    past_key: Any = None, past_value: Any = None, *, mask_filter_value: Float = -10000.0, num_heads: Int, scale: Float = 0.0,
    unidirectional: Int = 0,
) -> Any:  # fmt: skip
    if fx.rank(q) == 5:  # packed: [batch, length, heads, 3, size]
        q, k, v = (
            fx.reshape(fx.item(q, (..., i, slice(None))), (*q.shape[:2], q.shape[2] * q.shape[4])) for i in range(3)
        )
    elif k is not None and fx.rank(k) == 5:  # packed keys and values
        packed = k
        k, v = (
            fx.reshape(fx.item(packed, (..., i, slice(None))), (*packed.shape[:2], packed.shape[2] * packed.shape[4]))
            for i in range(2)
        )
    if b is not None:
        nq, nk = q.shape[-1], k.shape[-1] if fx.rank(k) == 3 else q.shape[-1]
        q = fx.add(q, fx.item(b, slice(0, nq)))
        if fx.rank(k) == 3:
            k = fx.add(k, fx.item(b, slice(nq, nq + nk)))
            v = fx.add(v, fx.item(b, slice(nq + nk, nq + nk + v.shape[-1])))
    q = heads_of(q, num_heads)
    k, v = (heads_of(t, num_heads) if fx.rank(t) == 3 else t for t in (k, v))
    if past_key is not None:
        k, v = fx.concat([past_key, k], axis=2), fx.concat([past_value, v], axis=2)
    extra, lengths = _mask_bias(mask, q, mask_filter_value, k.shape[2])
    total = bias if extra is None else extra if bias is None else fx.add(extra, bias)
    y = merged(_attend(q, k, v, total, scale or None, bool(unidirectional), lengths))
    return Results((y, k, v))


@op("GroupQueryAttention", domain=MS)
def group_query_attention(
    cx: Context, q: Any, k: Any, v: Any, past_key: Any, past_value: Any, lengths: Any, total: Any, cos: Any = None,
    sin: Any = None, places: Any = None, bias: Any = None, sink: Any = None, *, do_rotary: Int = 0, kv_num_heads: Int,
    local_window_size: Int = -1, num_heads: Int, qk_output: Int = 0, rotary_interleaved: Int = 0, scale: Float = 0.0,
    smooth_softmax: Int = 0, softcap: Float = 0.0,
) -> Any:  # fmt: skip
    if smooth_softmax or softcap or sink is not None or local_window_size != -1:
        raise error("FX1203", "GroupQueryAttention with windows, sinks or softcap")
    if k is None:
        size = dims.floordiv(q.shape[2], num_heads + 2 * kv_num_heads)
        ends = [0, num_heads * size, (num_heads + kv_num_heads) * size, (num_heads + 2 * kv_num_heads) * size]
        q, k, v = (fx.item(q, (..., slice(a, e))) for a, e in zip(ends[:-1], ends[1:], strict=True))
    q, k, v = heads_of(q, num_heads), heads_of(k, kv_num_heads), heads_of(v, kv_num_heads)
    last = fx.reshape(fx.cast(lengths, "i64"), (-1, 1))  # places of the last key of each sequence
    new = q.shape[2]
    at = fx.add(fx.subtract(last, fx.asarray(new - 1)), fx.reshape(fx.arange(new), (1, -1)))
    if do_rotary:
        rows = (fx.expand_dims(fx.take(t, at, axis=0), axis=1) for t in (cos, sin))
        c, s = rows
        q, k = (turned(t, c, s, bool(rotary_interleaved)) for t in (q, k))
    if past_key is not None and not (isinstance(past_key.shape[2], int) and past_key.shape[2] == 0):
        k, v = fx.concat([past_key, k], axis=2), fx.concat([past_value, v], axis=2)
    keys, values = repeated(k, num_heads // kv_num_heads), repeated(v, num_heads // kv_num_heads)
    factor = scale or 1 / math.sqrt(q.shape[3])
    scores = fx.multiply(fx.matmul(q, fx.transpose(keys, (0, 1, 3, 2))), fx.scalar(factor, q))
    scores = scores if bias is None else fx.add(scores, fx.cast(bias, fx.dtype(scores)))
    allowed = fx.less_equal(fx.arange(k.shape[2]), fx.reshape(at, (at.shape[0], 1, new, 1)))
    scores = fx.where(allowed, scores, fx.scalar(-np.inf, scores))
    return Results((merged(fx.matmul(fx.nn.softmax(scores, axis=-1), values)), k, v))


@op("RotaryEmbedding", domain=MS)
def rotary_embedding(
    x: Any, places: Any, cos: Any, sin: Any, *, interleaved: Int = 0, is_packed_batching: Int = 0, num_heads: Int = 0,
    rotary_embedding_dim: Int = 0, scale: Float = 1.0,
) -> Any:  # fmt: skip
    flat = fx.rank(x) == 3
    heads = num_heads
    if flat and not heads:
        size = rotary_embedding_dim or 2 * cos.shape[1]
        heads = x.shape[2] // size
    y = heads_of(x, heads) if flat else x
    length = y.shape[2]
    at = places
    if fx.rank(places) == 1:
        at = fx.reshape(fx.add(fx.reshape(places, ()), fx.arange(length)), (1, length))
    c, s = (fx.expand_dims(fx.take(t, at, axis=0), axis=1) for t in (cos, sin))
    y = turned(y, c, s, bool(interleaved))
    return merged(y) if flat else y


# ---- quantised -----------------------------------------------------------------------------------------------------

op("QuantizeLinear", domain=MS)(quantize_linear)
op("DequantizeLinear", domain=MS)(dequantize_linear)


@op("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(a: Any, b: Any, b_scale: Any, b_zero: Any = None, bias: Any = None) -> Any:
    q, scale, zero = dynamic_quantize_linear(a)
    total = fx.cast(product_of(q, zero, b, b_zero), f32)
    y = fx.multiply(total, fx.multiply(scale, b_scale))
    return y if bias is None else fx.add(y, bias)


@op("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(
    a: Any, b: Any, a_scale: Any, b_scale: Any, a_zero: Any = None, b_zero: Any = None, bias: Any = None
) -> Any:
    total = product_of(a, a_zero, b, b_zero)
    y = fx.multiply(fx.cast(total, fx.dtype(a_scale)), fx.multiply(a_scale, b_scale))
    return y if bias is None else fx.add(y, bias)


def _qlinear(name: str, f: Any) -> None:
    def run(
        a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, c_scale: Any, c_zero: Any = None
    ) -> Any:
        left = fx.multiply(fx.cast(less_zero(a, a_zero), f32), a_scale)
        right = fx.multiply(fx.cast(less_zero(b, b_zero), f32), b_scale)
        return _back(f(left, right), c_scale, c_zero, a)

    op(name, domain=MS)(run)


def _back(y: Any, scale: Any, zero: Any, like: Any) -> Any:
    from fluxir.frontend.onnx.values import element_of

    return quantised(y, scale, zero, element_of(like if zero is None else zero))


_qlinear("QLinearAdd", fx.add)
_qlinear("QLinearMul", fx.multiply)


def _qlinear_unary(name: str, f: Any) -> None:
    def run(x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any = None) -> Any:
        return _back(f(fx.multiply(fx.cast(less_zero(x, x_zero), f32), x_scale)), y_scale, y_zero, x)

    op(name, domain=MS)(run)


_qlinear_unary("QLinearSigmoid", fx.sigmoid)


@op("QLinearLeakyRelu", domain=MS)
def qlinear_leaky_relu(
    x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any = None, *, alpha: Float = 0.01
) -> Any:
    y = fx.nn.leaky_relu(fx.multiply(fx.cast(less_zero(x, x_zero), f32), x_scale), alpha)
    return _back(y, y_scale, y_zero, x)


@op("QLinearSoftmax", domain=MS)
def qlinear_softmax(x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any, *, axis: Int = -1, opset: Int) -> Any:
    y = fx.nn.softmax(fx.multiply(fx.cast(less_zero(x, x_zero), f32), x_scale), axis=axis)
    return _back(y, y_scale, y_zero, x)


@op("QLinearGlobalAveragePool", domain=MS)
def qlinear_global_average_pool(
    x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any, *, channels_last: Int = 0
) -> Any:
    axes = tuple(range(1, fx.rank(x) - 1)) if channels_last else tuple(range(2, fx.rank(x)))
    y = fx.mean(fx.multiply(fx.cast(less_zero(x, x_zero), f32), x_scale), axis=axes, keepdims=True)
    return _back(y, y_scale, y_zero, x)


@op("QLinearAveragePool", domain=MS)
def qlinear_average_pool(
    x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any = None, *, auto_pad: Text = "NOTSET", ceil_mode: Int = 0,
    channels_last: Int = 0, count_include_pad: Int = 0, kernel_shape: Ints, pads: Ints | None = None,
    strides: Ints | None = None,
) -> Any:  # fmt: skip
    from fluxir.frontend.onnx.ops.windows import average_pool

    y = fx.multiply(fx.cast(less_zero(x, x_zero), f32), x_scale)
    y = fx.moveaxis(y, -1, 1) if channels_last else y
    y = average_pool(y, auto_pad=auto_pad, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
                     kernel_shape=kernel_shape, pads=pads, strides=strides)  # fmt: skip
    return _back(fx.moveaxis(y, 1, -1) if channels_last else y, y_scale, y_zero, x)


@op("QLinearConcat", domain=MS)
def qlinear_concat(y_scale: Any, y_zero: Any, *parts: Any, axis: Int) -> Any:
    floats = [
        fx.multiply(fx.cast(less_zero(x, z), f32), s)
        for x, s, z in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    return _back(fx.concat(floats, fx.axis_of(axis, fx.rank(floats[0]))), y_scale, y_zero, parts[0])


@op("QGemm", domain=MS)
def qgemm(
    a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, c: Any = None, y_scale: Any = None,
    y_zero: Any = None, *, alpha: Float = 1.0, transA: Int = 0, transB: Int = 0,
) -> Any:  # fmt: skip
    left, right = fx.transpose(a, (1, 0)) if transA else a, fx.transpose(b, (1, 0)) if transB else b
    total = product_of(left, a_zero, right, b_zero)
    total = total if c is None else fx.add(total, c)
    y = fx.multiply(fx.cast(total, f32), fx.multiply(fx.multiply(a_scale, b_scale), np.float32(alpha)))
    return y if y_scale is None else _back(y, y_scale, y_zero, a)


@op("MatMulNBits", domain=MS)
def matmul_n_bits(
    a: Any, b: Raw, scales: Any, zeros: Raw = None, groups: Raw = None, bias: Any = None, *, K: Int, N: Int,
    accuracy_level: Int = 0, bits: Int = 4, block_size: Int,
) -> Any:  # fmt: skip
    """A product with a weight of `bits`-bit blocks, [N, blocks, bytes]; the weight is unpacked, when it is a constant when
    compiling."""
    if groups is not None:
        raise error("FX1203", "MatMulNBits with g_idx")
    blocks = -(-K // block_size)
    data = known(b, "the packed weight").reshape(N, blocks, -1).astype(np.uint8)
    values = _unpacked(data, bits)[:, :, :block_size].astype(np.float32)
    scale = fx.reshape(scales, (N, blocks, 1))
    if zeros is None:
        offset: Any = np.float32(1 << (bits - 1))
    elif fx.dtype(unwrapped(zeros)).is_float:
        offset = fx.reshape(unwrapped(zeros), (N, blocks, 1))
    else:
        packed = known(zeros, "the zero points").reshape(N, -1).astype(np.uint8)
        offset = _unpacked(packed, bits)[:, :blocks].astype(np.float32).reshape(N, blocks, 1)
    weight = fx.multiply(fx.subtract(values.astype(fx.dtype(scale).numpy), fx.cast(offset, fx.dtype(scale))), scale)
    weight = fx.item(fx.reshape(weight, (N, blocks * block_size)), (slice(None), slice(0, K)))
    y = fx.matmul(a, fx.transpose(fx.cast(weight, fx.dtype(a)), (1, 0)))
    return y if bias is None else fx.add(y, bias)


def _unpacked(data: Any, bits: int) -> Any:
    """Numbers of `bits` bits from bytes, the first in the low bits."""
    if bits == 8:
        return data
    per = 8 // bits
    parts = [(data >> (bits * k)) & ((1 << bits) - 1) for k in range(per)]
    return np.stack(parts, axis=-1).reshape(*data.shape[:-1], data.shape[-1] * per)


@op("DynamicQuantizeLSTM", domain=MS)
def dynamic_quantize_lstm(
    x: Any, w: Any, r: Any, bias: Any = None, lengths: Any = None, h: Any = None, c: Any = None, peep: Any = None,
    w_scale: Any = None, w_zero: Any = None, r_scale: Any = None, r_zero: Any = None, *, activation_alpha: Floats = (),
    activation_beta: Floats = (), activations: Texts = (), clip: Float | None = None, direction: Text = "forward",
    hidden_size: Int | None = None, input_forget: Int = 0,
) -> Any:  # fmt: skip
    """An LSTM with 8-bit weights, [directions, inputs, gates]. The input of all steps, and the state of each, are quantised to u8
    (as DynamicQuantizeLinear does) and multiplied as integers."""

    def weights(data: Any, scale: Any, zero: Any) -> list[QuantisedWeight]:
        zeros = fx.full(scale.shape, fx.scalar(0, data)) if zero is None else zero
        return [QuantisedWeight(*(fx.item(t, k) for t in (data, scale, zeros))) for k in range(w.shape[0])]

    return run_lstm(x, weights(w, w_scale, w_zero), weights(r, r_scale, r_zero), bias, lengths, h, c, peep, activation_alpha,
                    activation_beta, activations, clip, direction, input_forget, 0)  # fmt: skip


# ---- other ---------------------------------------------------------------------------------------------------------


@op("NhwcConv", domain=MS)
def nhwc_conv(
    x: Any, w: Any, b: Any = None, *, auto_pad: Text = "NOTSET", dilations: Ints | None = None, group: Int = 1,
    kernel_shape: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Any:  # fmt: skip
    y = conv(fx.moveaxis(x, -1, 1), fx.moveaxis(w, -1, 1), b, auto_pad=auto_pad, dilations=dilations, group=group,
             pads=pads, strides=strides)  # fmt: skip
    return fx.moveaxis(y, 1, -1)


@op("GatherBlockQuantized", domain=MS)
def gather_block_quantized(
    data: Raw, indices: Any, scales: Any, zeros: Raw = None, *, bits: Int = 4, block_size: Int = 128, gather_axis: Int = 0,
    quantize_axis: Int = 1,
) -> Any:  # fmt: skip
    table = unwrapped(data)
    n = fx.rank(table)
    axis = fx.axis_of(quantize_axis, n)
    if fx.dtype(table).name == "u8" and bits == 4 and table is data:  # two numbers in a byte, along the last axis
        table = _unpacked(known(data, "the packed table").astype(np.uint8), bits)
        zeros = None if zeros is None else _unpacked(known(zeros, "the zero points").astype(np.uint8), bits)
    s = aligned(scales, table, axis, block_size)
    z: Any = np.int32(1 << (bits - 1) if ELEMENTS[2].carrier == fx.dtype(table) else 0)
    if zeros is not None:
        z = aligned(unwrapped(zeros), table, axis, block_size)
    whole = fx.multiply(fx.cast(fx.subtract(fx.cast(table, "i32"), fx.cast(z, "i32")), fx.dtype(scales)), s)
    return fx.take(whole, indices, axis=fx.axis_of(gather_axis, n))


@op("CropAndResize", domain=MS)
def crop_and_resize(
    x: Any, rois: Any, batch: Any, size: Known, *, extrapolation_value: Float = 0.0, mode: Text = "bilinear"
) -> Any:
    from fluxir.frontend.onnx.ops.image import sampled
    from fluxir.frontend.onnx.values import ints_of

    h, w = ints_of(size, "the crop's size")
    image = fx.take(x, batch, axis=0)
    points, inside = [], None
    for k, (n, length) in enumerate(((x.shape[2], h), (x.shape[3], w))):
        low, high = (fx.reshape(fx.item(rois, (slice(None), k + 2 * j)), (-1, 1)) for j in range(2))
        last = fx.cast(fx.asarray(n - 1), fx.dtype(rois))
        step = np.arange(few(length, "a crop"), dtype=np.float32).reshape(1, -1) / np.float32(max(length - 1, 1))
        at = fx.multiply(fx.add(low, fx.multiply(fx.subtract(high, low), step)), last)
        if length == 1:
            at = fx.multiply(fx.multiply(fx.add(low, high), np.float32(0.5)), last)
        ok = fx.logical_and(fx.greater_equal(at, np.float32(0)), fx.less_equal(at, last))
        shape = (-1, length, 1) if k == 0 else (-1, 1, length)
        points.append(fx.broadcast_to(fx.reshape(at, shape), (rois.shape[0], h, w)))
        ok = fx.reshape(ok, shape)
        inside = ok if inside is None else fx.logical_and(inside, ok)
    y = sampled(image, points, "linear" if mode == "bilinear" else "nearest", "border")
    return fx.where(fx.expand_dims(inside, axis=1), y, fx.scalar(extrapolation_value, x))
