"""ATen operators of neural networks: products, convolutions, pools, normalisations, attention, recurrent layers, losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.aten.ops import as_type
from fluxir.frontend.aten.registry import Context, aten
from fluxir.frontend.bounds import at_least, ceil_padding

# ---- products ------------------------------------------------------------------------------------------------------

for _name in ("mm", "bmm", "matmul", "mv", "dot"):
    aten(_name)(lambda x, y: fx.matmul(x, y))


@aten("linear")
def linear(x: Any, w: Any, b: Any = None) -> Any:
    y = fx.matmul(x, fx.swapaxes(w, 0, 1)) if fx.rank(w) == 2 else fx.matmul(x, w)
    return y if b is None else fx.add(y, b)


@aten("addmm", "baddbmm")
def addmm(c: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    out = fx.matmul(x, y)
    out = out if alpha == 1 else fx.multiply(out, fx.scalar(alpha, out))
    if beta == 0:
        return out
    return fx.add(out, c if beta == 1 else fx.multiply(c, fx.scalar(beta, c)))


@aten("einsum")
def einsum(equation: str, xs: Sequence[Any], *, path: Any = None) -> Any:
    return fx.einsum(equation, *xs)


@aten("outer")
def outer(x: Any, y: Any) -> Any:
    return fx.outer(x, y)


# ---- convolutions --------------------------------------------------------------------------------------------------


def _each(v: Any, n: int) -> tuple[int, ...]:
    v = list(v) if isinstance(v, list | tuple) else [v]
    return tuple(v * n if len(v) == 1 else v)


@aten("convolution")
def convolution(
    x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int
) -> Any:
    n = fx.rank(w) - 2
    s, p, d = _each(stride, n), _each(padding, n), _each(dilation, n)
    if transposed:
        return fx.nn.conv_transpose(
            x, w, b, stride=s, padding=p, output_padding=_each(output_padding, n), dilation=d, groups=groups
        )
    for k in range(n):
        at_least(x.shape[2 + k], (w.shape[2 + k] - 1) * d[k] + 1 - 2 * p[k])
    return fx.nn.conv(x, w, b, stride=s, padding=p, dilation=d, groups=groups)


def _conv(name: str) -> None:
    def run(
        x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        if isinstance(padding, str):
            return fx.nn.conv(
                x,
                w,
                b,
                stride=_each(stride, fx.rank(w) - 2),
                padding=padding,
                dilation=_each(dilation, fx.rank(w) - 2),
                groups=groups,
            )
        return convolution(x, w, b, stride, padding, dilation, False, 0, groups)

    aten(name, f"{name}.padding")(run)


for _k in (1, 2, 3):
    _conv(f"conv{_k}d")


def _conv_transpose(*names: str) -> None:
    def run(
        x: Any,
        w: Any,
        b: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        return convolution(x, w, b, stride, padding, dilation, True, output_padding, groups)

    aten(*names)(run)


_conv_transpose("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")

# ---- pools ---------------------------------------------------------------------------------------------------------


def _max_pool(n: int, indices: bool) -> Any:
    def run(x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False) -> Any:
        k = _each(kernel, n)
        s = _each(stride, n) if stride else k
        p, d = _each(padding, n), _each(dilation, n)
        flat = fx.rank(x) == n + 1
        x = fx.expand_dims(x, axis=0) if flat else x
        pads = _with_ceil(x, k, s, p, d, ceil_mode)
        y = fx.nn.max_pool(x, k, stride=s, padding=pads, dilation=d)
        y = fx.squeeze(y, axis=0) if flat else y
        return (y, None) if indices else y

    return run


def _with_ceil(x: Any, k: Any, s: Any, p: Any, d: Any, ceil_mode: bool) -> list[tuple[int, int]]:
    if not ceil_mode:
        return [(q, q) for q in p]
    reach = [(n - 1) * g + 1 for n, g in zip(k, d, strict=True)]
    return [(q, q + ceil_padding(x.shape[2 + i], reach[i], s[i], q, q)) for i, q in enumerate(p)]


for _k in (1, 2, 3):
    aten(f"max_pool{_k}d")(_max_pool(_k, False))
    if _k > 1:
        aten(f"max_pool{_k}d_with_indices")(_max_pool(_k, True))


def _avg_pool(n: int) -> Any:
    def run(
        x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:  # fmt: skip
        k = _each(kernel, n)
        s = _each(stride, n) if stride else k
        p = _each(padding, n)
        if ceil_mode and any(m for (_, m), q in zip(_with_ceil(x, k, s, p, (1,) * n, True), p, strict=True) if m != q):
            raise error("FX1203", "avg_pool with ceil_mode where it makes a difference")
        if divisor_override:
            total = fx.nn.sum_pool(x, k, stride=s, padding=p)
            return fx.multiply(total, fx.scalar(1 / divisor_override, x))
        return fx.nn.avg_pool(x, k, stride=s, padding=p, count_include_pad=count_include_pad)

    return run


for _k in (1, 2, 3):
    aten(f"avg_pool{_k}d")(_avg_pool(_k))


def _adaptive(x: Any, output: Sequence[Any], f: Any) -> Any:
    """Each place of the output pools floor(i n / m) .. ceil((i + 1) n / m) of the input, axis by axis."""
    n = len(output)
    first = fx.rank(x) - n
    for k, m in enumerate(output):
        axis = first + k
        size = x.shape[axis]
        if m is None or (isinstance(m, int) and m == size):
            continue
        if m == 1:
            x = f(x, axis=axis, keepdims=True)
            continue
        if not isinstance(size, int):
            raise error("FX1205", f"adaptive pooling to {m} needs a size that is known when compiling, not {size}")
        parts = []
        for i in range(m):
            low, high = i * size // m, -(-((i + 1) * size) // m)
            parts.append(f(fx.item(x, (*[slice(None)] * axis, slice(low, high))), axis=axis, keepdims=True))
        x = fx.concat(parts, axis)
    return x


for _k in (1, 2, 3):
    aten(f"adaptive_avg_pool{_k}d", *([f"_adaptive_avg_pool{_k}d"] if _k > 1 else []))(
        lambda x, out: _adaptive(x, list(out), fx.mean)
    )


# ---- activations ---------------------------------------------------------------------------------------------------

for _name, _f in {
    "silu": fx.nn.silu, "hardsigmoid": fx.nn.hard_sigmoid, "hardswish": fx.nn.hard_swish, "mish": fx.nn.mish,
    "log_sigmoid": fx.nn.log_sigmoid, "selu": fx.nn.selu, "softsign": fx.nn.softsign,
}.items():  # fmt: skip
    aten(_name)(lambda x, f=_f: f(x))


@aten("gelu")
def gelu(x: Any, *, approximate: str = "none") -> Any:
    return fx.nn.gelu(x, approximate=approximate == "tanh")


@aten("leaky_relu")
def leaky_relu(x: Any, slope: float = 0.01) -> Any:
    return fx.nn.leaky_relu(x, slope)


@aten("elu")
def elu(x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    x = x if input_scale == 1 else fx.multiply(x, fx.scalar(input_scale, x))
    y = fx.nn.elu(x, alpha)
    return y if scale == 1 else fx.multiply(y, fx.scalar(scale, y))


@aten("hardtanh")
def hardtanh(x: Any, low: float = -1, high: float = 1) -> Any:
    return fx.clip(x, fx.scalar(low, x), fx.scalar(high, x))


@aten("softplus")
def softplus(x: Any, beta: float = 1, threshold: float = 20) -> Any:
    scaled = x if beta == 1 else fx.multiply(x, fx.scalar(beta, x))
    y = fx.nn.softplus(scaled)
    y = y if beta == 1 else fx.multiply(y, fx.scalar(1 / beta, x))
    return fx.where(fx.greater(scaled, fx.scalar(threshold, x)), x, y)


@aten("prelu", "_prelu_kernel")
def prelu(x: Any, w: Any) -> Any:
    if fx.rank(w) == 1 and fx.rank(x) > 1:
        w = fx.reshape(w, (-1, *[1] * (fx.rank(x) - 2)))
    return fx.where(fx.greater(x, fx.scalar(0, x)), x, fx.multiply(x, w))


@aten("glu")
def glu(x: Any, dim: int = -1) -> Any:
    return fx.nn.glu(x, dim)


@aten("softmax.int", "_softmax", "_safe_softmax")
def softmax(cx: Context, x: Any, dim: int, *_: Any, **__: Any) -> Any:
    return fx.nn.softmax(as_type(x, cx.dtype), axis=dim)


@aten("log_softmax.int", "_log_softmax")
def log_softmax(cx: Context, x: Any, dim: int, *_: Any, **__: Any) -> Any:
    return fx.nn.log_softmax(as_type(x, cx.dtype), axis=dim)


# ---- normalisations ------------------------------------------------------------------------------------------------


@aten("layer_norm")
def layer_norm(x: Any, shape: Sequence[Any], w: Any = None, b: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    axes = tuple(range(fx.rank(x) - len(shape), fx.rank(x)))
    return fx.nn.layer_norm(x, w, b, axis=axes, eps=eps)


@aten("native_layer_norm")
def native_layer_norm(x: Any, shape: Sequence[Any], w: Any, b: Any, eps: float) -> Any:
    axes = tuple(range(fx.rank(x) - len(shape), fx.rank(x)))
    mean = fx.mean(x, axis=axes, keepdims=True)
    var = fx.mean(fx.square(fx.subtract(x, mean)), axis=axes, keepdims=True)
    return layer_norm(x, shape, w, b, eps), mean, fx.rsqrt(fx.add(var, fx.scalar(eps, var)))


@aten("rms_norm")
def rms_norm(x: Any, shape: Sequence[Any], w: Any = None, eps: float | None = None) -> Any:
    axes = tuple(range(fx.rank(x) - len(shape), fx.rank(x)))
    return fx.nn.rms_norm(x, w, axis=axes, eps=float(np.finfo(np.float32).eps) if eps is None else eps)


@aten("group_norm")
def group_norm(x: Any, groups: int, w: Any = None, b: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    return fx.nn.group_norm(x, groups, w, b, eps=eps)


@aten("batch_norm")
def batch_norm(
    x: Any, w: Any, b: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> Any:
    if training or mean is None:
        axes = (0, *range(2, fx.rank(x)))
        mean = fx.mean(x, axis=axes)
        shape = (-1, *[1] * (fx.rank(x) - 2))
        var = fx.mean(fx.square(fx.subtract(x, fx.reshape(mean, shape))), axis=axes)
    shape = (-1, *[1] * (fx.rank(x) - 2))
    factor = fx.rsqrt(fx.add(var, fx.scalar(eps, var)))
    factor = factor if w is None else fx.multiply(factor, w)
    shift = fx.negative(fx.multiply(mean, factor))
    shift = shift if b is None else fx.add(shift, b)
    return fx.add(fx.multiply(x, fx.reshape(factor, shape)), fx.reshape(shift, shape))


@aten("_native_batch_norm_legit_no_training")
def native_batch_norm(x: Any, w: Any, b: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    return batch_norm(x, w, b, mean, var, False, momentum, eps), None, None


@aten("instance_norm")
def instance_norm(
    x: Any, w: Any, b: Any, mean: Any, var: Any, use_input: bool, momentum: float, eps: float, *_: Any
) -> Any:
    if not use_input:
        return batch_norm(x, w, b, mean, var, False, momentum, eps)
    axes = tuple(range(2, fx.rank(x)))
    centred = fx.subtract(x, fx.mean(x, axis=axes, keepdims=True))
    y = fx.multiply(centred, fx.rsqrt(fx.add(fx.mean(fx.square(centred), axis=axes, keepdims=True), fx.scalar(eps, x))))
    shape = (-1, *[1] * (fx.rank(x) - 2))
    y = y if w is None else fx.multiply(y, fx.reshape(w, shape))
    return y if b is None else fx.add(y, fx.reshape(b, shape))


# ---- attention -----------------------------------------------------------------------------------------------------


@aten("scaled_dot_product_attention")
def attention(
    q: Any, k: Any, v: Any, mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if enable_gqa and k.shape[-3] != q.shape[-3]:
        times = q.shape[-3] // k.shape[-3]
        k, v = (fx.repeat(t, times, axis=-3) for t in (k, v))
    if is_causal and mask is None:
        rows, columns = fx.reshape(fx.arange(q.shape[-2]), (-1, 1)), fx.arange(k.shape[-2])
        mask = fx.less_equal(columns, rows)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = fx.multiply(fx.matmul(q, fx.swapaxes(k, -1, -2)), fx.scalar(factor, q))
    if mask is not None:
        if fx.dtype(mask).is_bool:
            scores = fx.where(mask, scores, fx.scalar(-np.inf, scores))
        else:
            scores = fx.add(scores, mask)
    return fx.matmul(fx.nn.softmax(scores, axis=-1), v)


# ---- recurrent layers ----------------------------------------------------------------------------------------------


def _recurrent(
    x: Any, states: list[Any], params: Sequence[Any], has_biases: bool, layers: int, bidirectional: bool, batch_first: bool,
    step: Any,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Layers over layers of scans; `step(projected, state, recurrent weight, bias)` gives the next state."""
    x = fx.swapaxes(x, 0, 1) if batch_first else x
    directions = 2 if bidirectional else 1
    per = 4 if has_biases else 2
    lasts: list[list[Any]] = [[] for _ in states]
    for layer in range(layers):
        ys = []
        for d in range(directions):
            at = layer * directions + d
            weights = params[at * per : (at + 1) * per]
            w, r = weights[:2]
            bw, br = weights[2:] if has_biases else (None, None)
            projected = fx.matmul(x, fx.swapaxes(w, 0, 1))
            projected = projected if bw is None else fx.add(projected, bw)
            first = tuple(fx.item(s, at) for s in states)
            y, last = _layer(projected, first, fx.swapaxes(r, 0, 1), br, step, d == 1)
            ys.append(y)
            for kept, new in zip(lasts, last, strict=True):
                kept.append(new)
        x = ys[0] if directions == 1 else fx.concat(ys, 2)
    finals = [fx.stack(kept, axis=0) for kept in lasts]
    return (fx.swapaxes(x, 0, 1) if batch_first else x), finals


@fx.public
def _layer(projected: Any, first: Any, recurrent: Any, bias: Any, step: Any, backwards: bool) -> Any:
    from fluxir.frontend.tensor import as_tensor

    projected = fx.flip(projected, axis=0) if backwards else projected

    def body(state: Any, p: Any) -> Any:
        new = step(p, state, recurrent, bias)
        return new, new[0]

    last, y = fx.scan(body, tuple(map(as_tensor, first)), projected)
    return (fx.flip(y, axis=0) if backwards else y), last


@aten("lstm.input")
def lstm(
    x: Any, hx: Sequence[Any], params: Sequence[Any], has_biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    def step(p: Any, state: Any, recurrent: Any, bias: Any) -> Any:
        h, c = state
        z = fx.add(p, fx.matmul(h, recurrent))
        i, f, g, o = fx.split(z if bias is None else fx.add(z, bias), 4, axis=-1)
        c = fx.add(fx.multiply(fx.sigmoid(f), c), fx.multiply(fx.sigmoid(i), fx.tanh(g)))
        return fx.multiply(fx.sigmoid(o), fx.tanh(c)), c

    y, (h, c) = _recurrent(x, list(hx), params, has_biases, layers, bidirectional, batch_first, step)
    return y, h, c


@aten("gru.input")
def gru(
    x: Any, hx: Any, params: Sequence[Any], has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> Any:  # fmt: skip
    def step(p: Any, state: Any, recurrent: Any, bias: Any) -> Any:
        (h,) = state
        q = fx.matmul(h, recurrent)
        q = q if bias is None else fx.add(q, bias)
        (pr, pz, pn), (qr, qz, qn) = fx.split(p, 3, axis=-1), fx.split(q, 3, axis=-1)
        r, z = fx.sigmoid(fx.add(pr, qr)), fx.sigmoid(fx.add(pz, qz))
        n = fx.tanh(fx.add(pn, fx.multiply(r, qn)))
        return (fx.add(n, fx.multiply(z, fx.subtract(h, n))),)

    y, (h,) = _recurrent(x, [hx], params, has_biases, layers, bidirectional, batch_first, step)
    return y, h


def _rnn(name: str, f: Any) -> None:
    def run(
        x: Any, hx: Any, params: Sequence[Any], has_biases: bool, layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> Any:  # fmt: skip
        def step(p: Any, state: Any, recurrent: Any, bias: Any) -> Any:
            z = fx.add(p, fx.matmul(state[0], recurrent))
            return (f(z if bias is None else fx.add(z, bias)),)

        y, (h,) = _recurrent(x, [hx], params, has_biases, layers, bidirectional, batch_first, step)
        return y, h

    aten(name)(run)


_rnn("rnn_tanh.input", fx.tanh)
_rnn("rnn_relu.input", lambda x: fx.maximum(x, fx.scalar(0, x)))

# ---- images --------------------------------------------------------------------------------------------------------


@aten("upsample_nearest2d.vec", "upsample_nearest1d.vec", "upsample_nearest2d", "upsample_nearest1d")
def upsample_nearest(cx: Context, x: Any, *_: Any, **__: Any) -> Any:
    for axis, (old, new) in enumerate(zip(x.shape, cx.shapes[0], strict=True)):
        if old != new:
            if not (isinstance(old, int) and isinstance(new, int)):
                k = fx.arange(new)
                places: Any = fx.floor_divide(fx.multiply(k, fx.asarray(old)), fx.asarray(new))
            else:
                places = np.arange(new) * old // new
            x = fx.take(x, places, axis=axis)
    return x


@aten("upsample_bilinear2d.vec", "upsample_bilinear2d")
def upsample_bilinear(cx: Context, x: Any, size: Any, align: bool, *_: Any) -> Any:
    from fluxir.frontend.onnx.ops.image import resize

    mode = "align_corners" if align else "half_pixel"
    new = np.empty(4, object)
    new[:] = cx.shapes[0]
    return resize(x, sizes=new, mode="linear", coordinate_transformation_mode=mode)


# ---- losses --------------------------------------------------------------------------------------------------------


@aten("cross_entropy_loss")
def cross_entropy(
    x: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    from fluxir.frontend.onnx.ops.losses import _nll

    if label_smoothing or fx.dtype(target).is_float:
        raise error("FX1203", "cross_entropy_loss with label smoothing or probabilities as targets")
    flat = fx.rank(x) == 1
    x, target = (fx.expand_dims(x, axis=0), fx.expand_dims(target, axis=0)) if flat else (x, target)
    y = _nll(fx.nn.log_softmax(x, axis=1), target, weight, ignore_index, ("none", "mean", "sum")[reduction])
    return fx.squeeze(y, axis=0) if flat and reduction == 0 else y


@aten("mse_loss")
def mse_loss(x: Any, y: Any, reduction: int = 1) -> Any:
    e = fx.square(fx.subtract(x, y))
    return (e, fx.mean(e), fx.sum(e))[reduction]
