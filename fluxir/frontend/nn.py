"""`fx.nn`: activations, normalisation, convolution, pooling, attention, losses, as functions of tensors.

Layouts: images are [batch, channels, space...], weights [out, in / groups, space...], attention [..., sequence, depth].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.frontend.api_creation import ones, zeros
from fluxir.frontend.api_elementwise import float_function, float_operand
from fluxir.frontend.api_indexing import one_hot
from fluxir.frontend.api_linalg import matmul
from fluxir.frontend.api_manipulation import moveaxis, reshape
from fluxir.frontend.api_reduce import axes_of, logsumexp
from fluxir.frontend.attention import attention, scaled_dot_product_attention
from fluxir.frontend.tensor import Tensor, as_tensor, cast, constant, emit, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim
from fluxir.ops.rules import normal_axis

# ---- activations -----------------------------------------------------------------------------------------------------

relu = float_function("relu", "max(x, 0).")
relu6 = float_function("relu6", "min(max(x, 0), 6).")
selu = float_function("selu", "The self-normalising exponential unit (Klambauer et al. 2017).")
softplus = float_function("softplus", "log(1 + exp(x)).")
softsign = float_function("softsign", "x / (1 + |x|).")
hard_sigmoid = float_function("hard_sigmoid", "relu6(x + 3) / 6.")
hard_swish = float_function("hard_swish", "x * hard_sigmoid(x).")
mish = float_function("mish", "x * tanh(softplus(x)) (Misra 2019).")
silu = swish = float_function("silu", "x * sigmoid(x).")
sigmoid = float_function("sigmoid", "1 / (1 + exp(-x)).")
tanh = float_function("tanh", "The hyperbolic tangent.")


@public
def leaky_relu(x: Any, /, negative_slope: float = 0.01) -> Tensor:
    """x where positive, else negative_slope * x."""
    return emit("leaky_relu", float_operand("leaky_relu", x), slope=negative_slope)


@public
def elu(x: Any, /, alpha: float = 1.0) -> Tensor:
    """x where positive, else alpha * (exp(x) - 1)."""
    return emit("elu", float_operand("elu", x), alpha=alpha)


@public
def gelu(x: Any, /, approximate: bool | str = True) -> Tensor:
    """x * Phi(x) (Hendrycks and Gimpel 2016): by tanh if `approximate`, else by erf."""
    how = approximate if isinstance(approximate, bool) else approximate == "tanh"
    return emit("gelu", float_operand("gelu", x), approximate=how)


@public
def glu(x: Any, /, axis: int = -1) -> Tensor:
    """The first half along `axis` times the sigmoid of the second (Dauphin et al. 2017)."""
    from fluxir.frontend.api_manipulation import split

    a, b = split(float_operand("glu", x), 2, axis)
    return emit("mul", a, emit("sigmoid", b))


@public
def log_sigmoid(x: Any, /) -> Tensor:
    """log(sigmoid(x)) without overflow."""
    return emit("neg", emit("softplus", emit("neg", float_operand("log_sigmoid", x))))


@public
def softmax(x: Any, /, axis: int = -1, *, where: Any = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`; elements where the mask `where` is false get 0."""
    t = float_operand("softmax", x)
    a = normal_axis("softmax", axis, t.ndim)
    if where is None:
        return emit("softmax", t, axis=a)
    from fluxir.frontend.api_elementwise import truth

    mask = truth(where)
    kept = emit("select", mask, t, constant(float("-inf"), t.dtype))
    return emit("select", mask, emit("softmax", kept, axis=a), constant(0, t.dtype))


@public
def log_softmax(x: Any, /, axis: int = -1) -> Tensor:
    """log(softmax(x)) along `axis`, without overflow."""
    t = float_operand("log_softmax", x)
    return emit("logsoftmax", t, axis=normal_axis("log_softmax", axis, t.ndim))


# ---- normalisation ---------------------------------------------------------------------------------------------------


def _parameters(t: Tensor, shape: tuple[Dim, ...], scale: Any, bias: Any) -> tuple[Tensor, Tensor]:
    s = ones(shape, t.dtype) if scale is None else cast(as_tensor(scale), t.dtype)
    b = zeros(shape, t.dtype) if bias is None else cast(as_tensor(bias), t.dtype)
    return s, b


@public
def layer_norm(x: Any, /, scale: Any = None, bias: Any = None, *, axis: Any = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * scale + bias over `axis` (Ba et al. 2016); scale and bias have those axes' shape."""
    t = float_operand("layer_norm", x)
    axes = axes_of("layer_norm", t, axis)
    s, b = _parameters(t, tuple(t.shape[a] for a in axes), scale, bias)
    return emit("layer_norm", t, s, b, axes=axes, eps=eps)


@public
def rms_norm(x: Any, /, scale: Any = None, *, axis: Any = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * scale over `axis` (Zhang and Sennrich 2019)."""
    t = float_operand("rms_norm", x)
    axes = axes_of("rms_norm", t, axis)
    s, _ = _parameters(t, tuple(t.shape[a] for a in axes), scale, None)
    return emit("rms_norm", t, s, axes=axes, eps=eps)


@public
def batch_norm(
    x: Any, mean: Any, var: Any, scale: Any = None, bias: Any = None, *, axis: int = 1, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * scale + bias with one of each per channel: the inference form."""
    t = float_operand("batch_norm", x)
    a = normal_axis("batch_norm", axis, t.ndim)
    s, b = _parameters(t, (t.shape[a],), scale, bias)
    m, v = (cast(as_tensor(p), t.dtype) for p in (mean, var))
    return emit("batch_norm", t, s, b, m, v, axis=a, eps=eps)


@public
def group_norm(x: Any, groups: int, scale: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Tensor:
    """Layer norm over groups of channels and space (Wu and He 2018); scale and bias per channel."""
    t = float_operand("group_norm", x)
    s, b = _parameters(t, (t.shape[1],), scale, bias)
    return emit("group_norm", t, s, b, groups=groups, eps=eps)


# ---- convolution and pooling -----------------------------------------------------------------------------------------


def _each(name: str, value: Any, count: int, what: str) -> tuple[int, ...]:
    """One number per spatial axis, from a number or a sequence."""
    if hasattr(value, "__index__"):
        return (value.__index__(),) * count
    out = tuple(v.__index__() for v in value)
    if len(out) != count:
        raise error("FX0210", f"{name}: {what} has {len(out)} numbers for {count} spatial axes", loc=here())
    return out


def _padding(
    name: str,
    padding: Any,
    space: Sequence[Dim],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """(low, high) for each spatial axis, flat; from a number, one number or pair per axis, "valid" or "same"."""
    n = len(window)
    if isinstance(padding, str):
        if padding.lower() == "valid":
            return (0,) * (2 * n)
        if padding.lower() != "same":
            raise error("FX0210", f"{name}: padding is a number, pairs, 'same' or 'valid', not {padding!r}", loc=here())
        out: list[int] = []
        for d, k, s, dil in zip(space, window, strides, dilation, strict=True):
            extent = (k - 1) * dil + 1
            if s == 1:
                total = extent - 1
            elif isinstance(d, int):
                total = max((-(-d // s) - 1) * s + extent - d, 0)
            else:
                raise error("FX0210", f"{name}: padding 'same' with stride {s} needs a known size, not {d}",
                            help="give the padding as numbers", loc=here())  # fmt: skip
            out += [total // 2, total - total // 2]
        return tuple(out)
    if hasattr(padding, "__index__"):
        return (padding.__index__(),) * (2 * n)
    pairs = [(p, p) if hasattr(p, "__index__") else tuple(p) for p in padding]
    if len(pairs) != n or any(len(p) != 2 for p in pairs):
        raise error(
            "FX0210",
            f"{name}: padding {padding} for {n} spatial axes",
            help="give one number or pair for each",
            loc=here(),
        )
    return tuple(int(v) for p in pairs for v in p)


def _channel_bias(y: Tensor, bias: Any) -> Tensor:
    if bias is None:
        return y
    b = cast(as_tensor(bias), y.dtype)
    return emit("add", y, reshape(b, (-1, *[1] * (y.ndim - 2))))


@public
def conv(
    x: Any,
    w: Any,
    /,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    input_dilation: Any = 1,
) -> Tensor:
    """Convolution (cross-correlation) of x [N, C, space...] with w [O, C / groups, space...], 1 to 3 spatial axes.

    `padding` is a number, one number or (low, high) pair per axis, "same" or "valid". `bias` has one element per output
    channel. FX0210 where channels, groups or windows do not fit.
    """
    a, k = (float_operand("conv", t) for t in promote_operands(x, w))
    n = max(a.ndim - 2, 0)
    strides, dil = _each("conv", stride, n, "stride"), _each("conv", dilation, n, "dilation")
    if k.ndim != a.ndim or any(not isinstance(d, int) for d in k.shape[2:]):
        if k.ndim == a.ndim and isinstance(padding, str):
            raise error("FX0210", f"conv: padding {padding!r} needs a window of known size, not {k.type}", loc=here())
        window: tuple[Any, ...] = (1,) * n
    else:
        window = k.shape[2:]
    pads = _padding("conv", padding, a.shape[2:], window, strides, dil)
    y = emit(
        "conv",
        a,
        k,
        strides=strides,
        padding=pads,
        lhs_dilation=_each("conv", input_dilation, n, "input_dilation"),
        rhs_dilation=dil,
        groups=groups,
    )
    return _channel_bias(y, bias)


@public
def conv_transpose(
    x: Any,
    w: Any,
    /,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution of x [N, C, space...] with w [C, O / groups, space...]: the gradient of `conv` as a layer.

    Sizes: (d - 1) * stride - 2 * padding + dilation * (k - 1) + output_padding + 1 (PyTorch's rule).
    """
    a, k = (float_operand("conv_transpose", t) for t in promote_operands(x, w))
    n = max(a.ndim - 2, 0)
    sizes = [d for d in k.shape if isinstance(d, int)]
    if k.ndim != a.ndim or len(sizes) != k.ndim:
        raise error(
            "FX0210",
            f"conv_transpose: x is {a.type}, w is {k.type}",
            help="w has the axes in, out / groups, space..., of known sizes",
            loc=here(),
        )
    strides, dil = _each("conv_transpose", stride, n, "stride"), _each("conv_transpose", dilation, n, "dilation")
    extra = _each("conv_transpose", output_padding, n, "output_padding")
    pads = _padding("conv_transpose", padding, a.shape[2:], sizes[2:], (1,) * n, dil)
    c, o = sizes[:2]
    if groups < 1 or c % groups:
        raise error("FX0210", f"conv_transpose: {groups} groups do not divide {c} input channels", loc=here())
    # A transposed convolution is a convolution of the input with zeros between its elements and the weight mirrored,
    # with in and out exchanged inside each group.
    k = emit("reverse", k, axes=tuple(range(2, k.ndim))) if n else k
    k = reshape(k, (groups, c // groups, o, *k.shape[2:]))
    k = reshape(moveaxis(k, 2, 1), (groups * o, c // groups, *k.shape[3:]))
    flat: list[int] = []
    for i in range(n):
        reach = dil[i] * (sizes[2 + i] - 1)
        flat += [reach - pads[2 * i], reach - pads[2 * i + 1] + extra[i]]
    y = emit("conv", a, k, strides=(1,) * n, padding=tuple(flat), lhs_dilation=strides, rhs_dilation=dil, groups=groups)
    return _channel_bias(y, bias)


def _pool(
    name: str, x: Any, window: Any, stride: Any, padding: Any, dilation: Any, op: str
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    t = as_tensor(x)
    n = t.ndim - 2
    if n < 1:
        raise error(
            "FX0210", f"{name}: {t.type} has no spatial axes", help="the axes are batch, channels, space...", loc=here()
        )
    w = _each(name, window, n, "window")
    s = w if stride is None else _each(name, stride, n, "stride")
    d = _each(name, dilation, n, "dilation")
    pads = _padding(name, padding, t.shape[2:], w, s, d)

    def run(v: Tensor) -> Tensor:
        return emit(
            "reduce_window",
            v,
            op=op,
            window=(1, 1, *w),
            strides=(1, 1, *s),
            padding=(0, 0, 0, 0, *pads),
            dilation=(1, 1, *d),
        )

    return t, run


@public
def max_pool(x: Any, window: Any, *, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> Tensor:
    """The largest element of each window of x [N, C, space...]; `stride` defaults to the window; padding counts as lowest."""
    t, run = _pool("max_pool", x, window, stride, padding, dilation, "max")
    return run(t)


@public
def min_pool(x: Any, window: Any, *, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> Tensor:
    """The smallest element of each window of x [N, C, space...]."""
    t, run = _pool("min_pool", x, window, stride, padding, dilation, "min")
    return run(t)


@public
def sum_pool(x: Any, window: Any, *, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> Tensor:
    """The sum of each window of x [N, C, space...]; padding counts as 0."""
    t, run = _pool("sum_pool", x, window, stride, padding, dilation, "sum")
    return run(t)


@public
def avg_pool(x: Any, window: Any, *, stride: Any = None, padding: Any = 0, count_include_pad: bool = True) -> Tensor:
    """The mean of each window of x [N, C, space...]; padding counts as 0, or not at all."""
    t, run = _pool("avg_pool", float_operand("avg_pool", x), window, stride, padding, 1, "sum")
    total = run(t)
    if count_include_pad or padding == 0:
        size = 1
        for k in _each("avg_pool", window, t.ndim - 2, "window"):
            size *= k
        return emit("mul", total, constant(1 / size, t.dtype))
    return emit("div", total, run(ones((1, 1, *t.shape[2:]), t.dtype)))


@public
def global_avg_pool(x: Any, /) -> Tensor:
    """The mean over all spatial axes: [N, C, space...] -> [N, C]."""
    t = float_operand("global_avg_pool", x)
    return emit("mean", t, axes=tuple(range(2, t.ndim)), keepdims=False)


# ---- layers as functions ---------------------------------------------------------------------------------------------


@public
def linear(x: Any, w: Any, /, bias: Any = None) -> Tensor:
    """x @ w + bias, with w [in, out]."""
    y = matmul(x, w)
    return y if bias is None else y + bias


@public
def embedding(indices: Any, table: Any, /) -> Tensor:
    """Rows of `table` [V, D] at integer `indices` [...] -> [..., D]; out-of-range indices are clamped."""
    from fluxir.frontend.api_indexing import take

    return take(table, indices, axis=0)


@public
def dropout(x: Any, key: Any, /, rate: float = 0.5) -> Tensor:
    """Elements set to 0 with probability `rate`, the others divided by 1 - rate; the random key is explicit."""
    from fluxir.frontend.random import bernoulli

    t = float_operand("dropout", x)
    if rate == 0:
        return t
    keep = bernoulli(key, 1 - rate, t.shape)
    return emit(
        "select", keep, emit("mul", t, constant(1 / (1 - rate) if rate < 1 else 0.0, t.dtype)), constant(0, t.dtype)
    )


# ---- losses ----------------------------------------------------------------------------------------------------------


@public
def cross_entropy(logits: Any, labels: Any, /, *, axis: int = -1) -> Tensor:
    """-log softmax(logits) at the label, for each example; labels are integers without the class axis."""
    t, y = float_operand("cross_entropy", logits), as_tensor(labels)
    if not y.dtype.is_integer:
        raise error(
            "FX0214",
            f"cross_entropy: labels are integers, not {y.type}",
            help="for probabilities use fx.nn.soft_cross_entropy",
            loc=here(),
        )
    return emit("cross_entropy", t, y, axis=normal_axis("cross_entropy", axis, t.ndim))


@public
def soft_cross_entropy(logits: Any, targets: Any, /, *, axis: int = -1) -> Tensor:
    """-sum(targets * log softmax(logits)) along `axis`."""
    t, y = promote_operands(logits, targets)
    a = normal_axis("soft_cross_entropy", axis, t.ndim)
    return emit("neg", emit("sum", emit("mul", y, emit("logsoftmax", t, axis=a)), axes=(a,)))


@public
def mse_loss(prediction: Any, target: Any, /) -> Tensor:
    """The mean of the squared differences."""
    p, y = promote_operands(prediction, target)
    d = emit("sub", p, y)
    return emit("mean", emit("mul", d, d), axes=tuple(range(d.ndim)), keepdims=False)


@public
def binary_cross_entropy_with_logits(logits: Any, targets: Any, /) -> Tensor:
    """-(y log s(x) + (1 - y) log(1 - s(x))) for each element, without overflow."""
    x, y = promote_operands(logits, targets)
    zero = constant(0, x.dtype)
    tail = emit("log1p", emit("exp", emit("neg", emit("abs", x))))
    return emit("add", emit("sub", emit("maximum", x, zero), emit("mul", x, y)), tail)


__all__ = [
    "attention", "avg_pool", "batch_norm", "binary_cross_entropy_with_logits", "conv", "conv_transpose",
    "cross_entropy", "dropout", "elu", "embedding", "gelu", "global_avg_pool", "glu", "group_norm", "hard_sigmoid",
    "hard_swish", "layer_norm", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "logsumexp", "max_pool",
    "min_pool", "mish", "mse_loss", "one_hot", "relu", "relu6", "rms_norm", "scaled_dot_product_attention", "selu",
    "sigmoid", "silu", "soft_cross_entropy", "softmax", "softplus", "softsign", "sum_pool", "swish", "tanh",
]  # fmt: skip
