"""Single functions of `fx` and `fx.nn` beside their PyTorch twins."""

from __future__ import annotations

import math
from typing import Any

from tests.oracle.cases import Case, F, Ints, M, case

INF, NAN = math.inf, math.nan


def both(name: str, *inputs: Any, **options: Any) -> Case:
    """A function of the same name and arguments on both sides: `torch.name` and `fx.name`."""
    return case(
        name,
        *inputs,
        torch=lambda t, f, *xs: getattr(t, name)(*xs),
        ours=lambda fx, *xs: getattr(fx, name)(*xs),
        **options,
    )


def activation(name: str, torch: Any = None, ours: Any = None, x: Any = None) -> Case:
    return case(
        f"nn.{name}",
        F(3, 7, low=-8, high=8) if x is None else x,
        torch=torch or (lambda t, f, x: getattr(f, name)(x)),
        ours=ours or (lambda fx, x: getattr(fx.nn, name)(x)),
        batch={0: 0},
    )


X = F(3, 7)
SPECIALS = F(3, 4, special=(NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0))

ELEMENTWISE = [
    *[both(n, F(2, 9, low=-3, high=3)) for n in "exp exp2 expm1 sin cos tan sinh cosh tanh asinh atan sigmoid erf erfc sign floor ceil trunc round square abs".split()],
    *[both(n, F(2, 9, low=0.25, high=4)) for n in "sqrt rsqrt log log2 log10 log1p reciprocal lgamma".split()],
    *[both(n, F(2, 9, low=-0.96875, high=0.96875)) for n in "asin acos atanh".split()],
    both("acosh", F(2, 9, low=1.0, high=2)),
    *[both(n, F(3, 1, 4), F(2, 4)) for n in "atan2 hypot copysign fmod remainder maximum minimum fmax fmin logaddexp logaddexp2 floor_divide".split()],
    both("pow", F(2, 5, low=0.25, high=2), F(2, 5)),
    case("clip", X, torch=lambda t, f, x: x.clip(-0.5, 1.0), ours=lambda fx, x: fx.clip(x, -0.5, 1.0)),
    case("where", M(3, 7), X, F(7), torch=lambda t, f, m, x, y: t.where(m, x, y), ours=lambda fx, m, x, y: fx.where(m, x, y)),
    case("special/maximum", SPECIALS, torch=lambda t, f, x: t.maximum(x, t.zeros(4)), ours=lambda fx, x: fx.maximum(x, fx.zeros(4, dtype=x.dtype))),
    case("special/sqrt", SPECIALS, torch=lambda t, f, x: t.sqrt(x), ours=lambda fx, x: fx.sqrt(x)),
    case("special/exp", SPECIALS, torch=lambda t, f, x: t.exp(x), ours=lambda fx, x: fx.exp(x)),
    case("special/log", SPECIALS, torch=lambda t, f, x: t.log(x), ours=lambda fx, x: fx.log(x)),
    case("special/tanh", SPECIALS, torch=lambda t, f, x: t.tanh(x), ours=lambda fx, x: fx.tanh(x)),
    case("special/erf", SPECIALS, torch=lambda t, f, x: t.erf(x), ours=lambda fx, x: fx.erf(x)),
    case("special/sigmoid", SPECIALS, torch=lambda t, f, x: t.sigmoid(x), ours=lambda fx, x: fx.sigmoid(x)),
    case("special/sign", F(3, 4, special=(INF, -INF, 0.0, -0.0)), torch=lambda t, f, x: t.sign(x), ours=lambda fx, x: fx.sign(x)),
    case("special/atan2", F(6, special=(0.0, -0.0, 0.0, -0.0, 1.0, INF)), F(6, special=(0.0, 0.0, -0.0, -0.0, 0.0, -INF)), torch=lambda t, f, y, x: t.atan2(y, x), ours=lambda fx, y, x: fx.atan2(y, x)),
    case("special/pow", F(8, special=(0.0, -1.0, -2.0, INF, -INF, 0.0, 1.0, NAN)), F(8, special=(0.0, 3.0, 0.5, -1.0, 3.0, -1.0, NAN, 0.0)), torch=lambda t, f, x, y: t.pow(x, y), ours=lambda fx, x, y: fx.pow(x, y)),
    case("special/fmod", F(6, special=(5.5, -5.5, 5.5, -5.5, INF, 1.0)), F(6, special=(2.0, 2.0, -2.0, -2.0, 2.0, INF)), torch=lambda t, f, x, y: (t.fmod(x, y), t.remainder(x, y)), ours=lambda fx, x, y: (fx.fmod(x, y), fx.remainder(x, y))),
    case("integers", Ints(3, 5, low=-20, high=20), Ints(5, low=1, high=7), torch=lambda t, f, x, y: (x // y, x % y, t.fmod(x, y), x * y - x, t.abs(x), x & y, x | y, x ^ y, x << y, x >> y), ours=lambda fx, x, y: (x // y, x % y, fx.fmod(x, y), x * y - x, fx.abs(x), x & y, x | y, x ^ y, x << y, x >> y), half=False),
    case("casts", F(3, 5, low=-100, high=100), torch=lambda t, f, x: (x.to(t.int32), x.to(t.int8), x.to(t.bool), x.to(t.int32).to(t.float64)), ours=lambda fx, x: (fx.astype(x, fx.i32), fx.astype(x, fx.i8), fx.astype(x, fx.bool), fx.astype(fx.astype(x, fx.i32), x.dtype))),
]  # fmt: skip

ACTIVATIONS = [
    *[activation(n) for n in "relu relu6 selu softsign mish silu elu softplus sigmoid tanh".split()],
    activation("leaky_relu", lambda t, f, x: f.leaky_relu(x, 0.2), lambda fx, x: fx.nn.leaky_relu(x, 0.2)),
    activation("elu2", lambda t, f, x: f.elu(x, 1.5), lambda fx, x: fx.nn.elu(x, 1.5)),
    activation("hard_sigmoid", lambda t, f, x: f.hardsigmoid(x)), activation("hard_swish", lambda t, f, x: f.hardswish(x)),
    activation("gelu_tanh", lambda t, f, x: f.gelu(x, approximate="tanh"), lambda fx, x: fx.nn.gelu(x)),
    activation("gelu", lambda t, f, x: f.gelu(x), lambda fx, x: fx.nn.gelu(x, approximate=False)),
    activation("gelu_wide", lambda t, f, x: (f.gelu(x), f.gelu(x, approximate="tanh")), lambda fx, x: (fx.nn.gelu(x, approximate=False), fx.nn.gelu(x, "tanh")), F(3, 7, low=-64, high=64)),
    activation("glu", lambda t, f, x: f.glu(x, 1), lambda fx, x: fx.nn.glu(x), F(3, 8)), activation("log_sigmoid", lambda t, f, x: f.logsigmoid(x), x=F(3, 7, low=-64, high=64)),
    activation("softplus_wide", lambda t, f, x: f.softplus(x, threshold=1e9), lambda fx, x: fx.nn.softplus(x), F(3, 7, low=-64, high=64)),
    activation("softmax", lambda t, f, x: f.softmax(x, -1)), activation("log_softmax", lambda t, f, x: f.log_softmax(x, -1)),
    activation("softmax0", lambda t, f, x: f.softmax(x, 1), lambda fx, x: fx.nn.softmax(x, axis=1), F(3, 6, 2)), activation("log_softmax1", lambda t, f, x: f.log_softmax(x, 1), lambda fx, x: fx.nn.log_softmax(x, axis=1), F(3, 6, 2, low=-64, high=64)),
    activation("softmax_inf", lambda t, f, x: f.softmax(x, -1), lambda fx, x: fx.nn.softmax(x), F(3, 6, special=(-INF, 1.0, -INF))), activation("softmax_big", lambda t, f, x: f.softmax(x * 1000, -1), lambda fx, x: fx.nn.softmax(x * 1000), F(3, 6, low=-32, high=32)),
    activation("logsumexp", lambda t, f, x: t.logsumexp(x, -1), lambda fx, x: fx.nn.logsumexp(x, axis=-1)),
    activation("logsumexp_inf", lambda t, f, x: t.logsumexp(x, -1), lambda fx, x: fx.logsumexp(x, axis=-1), F(4, 3, special=(-INF, -INF, -INF, -INF, 1.0, -INF, INF, 1.0, 2.0))),
    activation("logsumexp_all", lambda t, f, x: t.logsumexp(x, (0, 2), keepdim=True), lambda fx, x: fx.logsumexp(x, axis=(0, 2), keepdims=True), F(3, 4, 5)),
    activation("cross_entropy", lambda t, f, x: f.cross_entropy(x, t.tensor([0, 3, 6]), reduction="none"), lambda fx, x: fx.nn.cross_entropy(x, fx.arange(x.shape[0]) * 3 % 7)),
    case("nn.cross_entropy_space", F(2, 5, 3), Ints(2, 3, high=5), torch=lambda t, f, x, y: f.cross_entropy(x, y, reduction="none"), ours=lambda fx, x, y: fx.nn.cross_entropy(x, y, axis=1), batch={0: 0, 1: 0}),
    case("nn.soft_cross_entropy", X, F(3, 7, low=0.125, high=1), torch=lambda t, f, x, y: f.cross_entropy(x, y / y.sum(1, keepdim=True), reduction="none"), ours=lambda fx, x, y: fx.nn.soft_cross_entropy(x, y / y.sum(axis=1, keepdims=True)), batch={0: 0, 1: 0}),
    case("nn.mse_loss", X, F(3, 7), torch=lambda t, f, x, y: f.mse_loss(x, y), ours=lambda fx, x, y: fx.nn.mse_loss(x, y), batch={0: 0, 1: 0}),
    case("nn.bce", F(3, 7, low=-64, high=64), F(3, 7, low=0, high=1), torch=lambda t, f, x, y: f.binary_cross_entropy_with_logits(x, y, reduction="none"), ours=lambda fx, x, y: fx.nn.binary_cross_entropy_with_logits(x, y), batch={0: 0, 1: 0}),
    case("nn.linear", F(3, 7), F(4, 7), F(4), torch=lambda t, f, x, w, b: f.linear(x, w, b), ours=lambda fx, x, w, b: fx.nn.linear(x, w.T, b), batch={0: 0}),
    case("nn.embedding", Ints(3, 4, high=6), F(6, 5), torch=lambda t, f, i, w: f.embedding(i, w), ours=lambda fx, i, w: fx.nn.embedding(i, w), batch={0: 0}),
    case("nn.one_hot", Ints(3, 4, high=6), torch=lambda t, f, i: f.one_hot(i, 6), ours=lambda fx, i: fx.nn.one_hot(i, 6, dtype=fx.i64), half=False, batch={0: 0}),
]  # fmt: skip


def norm(name: str, *inputs: Any, torch: Any, ours: Any, **options: Any) -> Case:
    return case(f"nn.{name}", *inputs, torch=torch, ours=ours, **{"batch": {0: 0}, **options})


NORMS = [
    norm("layer_norm", F(3, 9), F(9), F(9), torch=lambda t, f, x, s, b: f.layer_norm(x, (9,), s, b), ours=lambda fx, x, s, b: fx.nn.layer_norm(x, s, b)),
    norm("layer_norm_plain", F(3, 33, low=30, high=32), torch=lambda t, f, x: f.layer_norm(x, (33,), eps=1e-3), ours=lambda fx, x: fx.nn.layer_norm(x, eps=1e-3), tolerance=30),
    norm("layer_norm2", F(2, 3, 4, 5), F(4, 5), F(4, 5), torch=lambda t, f, x, s, b: f.layer_norm(x, (4, 5), s, b), ours=lambda fx, x, s, b: fx.nn.layer_norm(x, s, b, axis=(-2, -1))),
    norm("rms_norm", F(3, 9), F(9), torch=lambda t, f, x, s: f.rms_norm(x, (9,), s, eps=1e-6), ours=lambda fx, x, s: fx.nn.rms_norm(x, s)),
    norm("rms_norm2", F(2, 3, 4), torch=lambda t, f, x: f.rms_norm(x, (3, 4), eps=1e-2), ours=lambda fx, x: fx.nn.rms_norm(x, axis=(1, 2), eps=1e-2)),
    norm("group_norm", F(2, 6, 3, 4), F(6), F(6), torch=lambda t, f, x, s, b: f.group_norm(x, 3, s, b), ours=lambda fx, x, s, b: fx.nn.group_norm(x, 3, s, b)),
    norm("instance_norm", F(2, 3, 5), torch=lambda t, f, x: f.instance_norm(x), ours=lambda fx, x: fx.nn.group_norm(x, 3)),
    norm("batch_norm", F(3, 4, 2, 3), F(4), F(4, low=0.25, high=2), F(4), F(4), torch=lambda t, f, x, m, v, s, b: f.batch_norm(x, m, v, s, b), ours=lambda fx, x, m, v, s, b: fx.nn.batch_norm(x, m, v, s, b)),
    norm("batch_norm_2d", F(3, 4), F(4), F(4, low=0.25, high=2), torch=lambda t, f, x, m, v: f.batch_norm(x, m, v, eps=1e-2), ours=lambda fx, x, m, v: fx.nn.batch_norm(x, m, v, eps=1e-2)),
]  # fmt: skip


def conv(name: str, x: Any, w: Any, bias: bool = False, **options: Any) -> Case:
    """A convolution with the same keywords on both sides."""
    n = len(x.shape) - 2
    inputs = [x, w] + ([F(w.shape[0])] if bias else [])
    return case(
        f"nn.{name}",
        *inputs,
        torch=lambda t, f, *a: getattr(f, f"conv{n}d")(*a, **options),
        ours=lambda fx, *a: fx.nn.conv(*a, **options),
        batch={0: 0},
    )


def conv_transpose(name: str, x: Any, w: Any, bias: bool = False, **options: Any) -> Case:
    n = len(x.shape) - 2
    inputs = [x, w] + ([F(w.shape[1] * options.get("groups", 1))] if bias else [])
    return case(
        f"nn.{name}",
        *inputs,
        torch=lambda t, f, *a: getattr(f, f"conv_transpose{n}d")(*a, **options),
        ours=lambda fx, *a: fx.nn.conv_transpose(*a, **options),
        batch={0: 0},
    )


CONVS = [
    conv("conv1d", F(2, 3, 8), F(4, 3, 3)), conv("conv1d_s2p1", F(2, 3, 9), F(4, 3, 3), True, stride=2, padding=1), conv("conv1d_d3", F(2, 3, 11), F(2, 3, 3), dilation=3, padding=3), conv("conv1d_g", F(2, 4, 8), F(6, 2, 3), groups=2),
    conv("conv1d_depthwise", F(2, 5, 8), F(5, 1, 3), True, groups=5, padding=1), conv("conv1d_same", F(2, 3, 8), F(2, 3, 4), padding="same"), conv("conv1d_same_d2", F(2, 3, 8), F(2, 3, 3), padding="same", dilation=2), conv("conv1d_valid", F(2, 3, 8), F(2, 3, 3), padding="valid"),
    conv("conv2d", F(2, 3, 5, 6), F(4, 3, 3, 2)), conv("conv2d_p", F(1, 3, 5, 6), F(4, 3, 3, 3), True, padding=1), conv("conv2d_s", F(2, 3, 7, 6), F(4, 3, 3, 2), stride=(2, 1), padding=(0, 2)), conv("conv2d_d", F(1, 2, 7, 8), F(3, 2, 3, 3), dilation=(2, 3), padding=(2, 1)),
    conv("conv2d_g", F(1, 4, 5, 5), F(6, 2, 3, 3), True, groups=2, padding=1), conv("conv2d_depthwise", F(1, 4, 6, 6), F(4, 1, 3, 3), groups=4, stride=2, padding=1), conv("conv2d_multiplier", F(1, 3, 5, 5), F(6, 1, 3, 3), groups=3), conv("conv2d_1x1", F(2, 5, 3, 4), F(4, 5, 1, 1), True),
    conv("conv2d_1x1s2", F(1, 5, 5, 5), F(4, 5, 1, 1), stride=2), conv("conv2d_7x7", F(1, 3, 9, 9), F(2, 3, 7, 7), stride=2, padding=3), conv("conv2d_17ch", F(1, 17, 4, 4), F(9, 17, 3, 3), padding=1), conv("conv2d_all", F(1, 4, 9, 8), F(4, 2, 2, 3), True, stride=(3, 2), padding=(1, 2), dilation=(2, 1), groups=2),
    conv("conv2d_whole", F(2, 3, 4, 4), F(5, 3, 4, 4)), conv("conv3d", F(1, 2, 4, 5, 3), F(3, 2, 2, 2, 2)), conv("conv3d_all", F(1, 4, 5, 4, 5), F(2, 2, 2, 3, 2), True, stride=(2, 1, 2), padding=(1, 1, 0), dilation=(1, 1, 2), groups=2),
    conv_transpose("convt1d", F(2, 3, 5), F(3, 4, 3)), conv_transpose("convt1d_all", F(2, 4, 5), F(4, 2, 3), True, stride=3, padding=1, output_padding=2, dilation=2, groups=2), conv_transpose("convt2d", F(1, 3, 4, 3), F(3, 2, 3, 3)),
    conv_transpose("convt2d_up", F(1, 3, 4, 4), F(3, 2, 4, 4), True, stride=2, padding=1), conv_transpose("convt2d_all", F(1, 4, 3, 4), F(4, 3, 3, 2), True, stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(1, 2), groups=2), conv_transpose("convt2d_depthwise", F(1, 3, 3, 3), F(3, 1, 2, 2), stride=2, groups=3),
    conv_transpose("convt2d_overpad", F(1, 2, 5, 5), F(2, 2, 2, 2), padding=2), conv_transpose("convt3d", F(1, 2, 2, 3, 2), F(2, 3, 2, 2, 2), stride=2, padding=1, output_padding=1),
    case("nn.conv2d_asymmetric", F(1, 3, 5, 6), F(2, 3, 3, 3), torch=lambda t, f, x, w: f.conv2d(f.pad(x, (2, 0, 0, 1)), w), ours=lambda fx, x, w: fx.nn.conv(x, w, padding=((0, 1), (2, 0))), batch={0: 0}),
]  # fmt: skip


def pool(name: str, x: Any, torch: Any, ours: Any) -> Case:
    return case(f"nn.{name}", x, torch=torch, ours=ours, batch={0: 0})


IMAGE = F(2, 2, 5, 6)
POOLS = [
    pool("max_pool1d", F(2, 3, 7), lambda t, f, x: f.max_pool1d(x, 3), lambda fx, x: fx.nn.max_pool(x, 3)), pool("max_pool1d_sp", F(2, 3, 7), lambda t, f, x: f.max_pool1d(x, 3, 2, 1), lambda fx, x: fx.nn.max_pool(x, 3, stride=2, padding=1)),
    pool("max_pool2d", IMAGE, lambda t, f, x: f.max_pool2d(x, 2), lambda fx, x: fx.nn.max_pool(x, 2)), pool("max_pool2d_neg", F(1, 2, 4, 4, low=-2, high=-1), lambda t, f, x: f.max_pool2d(x, 3, 1, 1), lambda fx, x: fx.nn.max_pool(x, 3, stride=1, padding=1)),
    pool("max_pool2d_all", IMAGE, lambda t, f, x: f.max_pool2d(x, (2, 3), (2, 1), (1, 1), (2, 1)), lambda fx, x: fx.nn.max_pool(x, (2, 3), stride=(2, 1), padding=1, dilation=(2, 1))),
    pool("max_pool2d_ceil", IMAGE, lambda t, f, x: f.max_pool2d(x, 2, ceil_mode=True), lambda fx, x: fx.nn.max_pool(x, 2, padding=((0, 1), (0, 0)))), pool("max_pool2d_nan", F(1, 1, 4, 4, special=(0.0, NAN, INF, -INF)), lambda t, f, x: f.max_pool2d(x, 2), lambda fx, x: fx.nn.max_pool(x, 2)),
    pool("max_pool3d", F(1, 2, 4, 3, 4), lambda t, f, x: f.max_pool3d(x, 2), lambda fx, x: fx.nn.max_pool(x, 2)), pool("min_pool2d", IMAGE, lambda t, f, x: -f.max_pool2d(-x, 2, 1, 1), lambda fx, x: fx.nn.min_pool(x, 2, stride=1, padding=1)),
    pool("avg_pool1d", F(2, 3, 7), lambda t, f, x: f.avg_pool1d(x, 2), lambda fx, x: fx.nn.avg_pool(x, 2)), pool("avg_pool2d", IMAGE, lambda t, f, x: f.avg_pool2d(x, 3, 2, 1), lambda fx, x: fx.nn.avg_pool(x, 3, stride=2, padding=1)),
    pool("avg_pool2d_nopad", IMAGE, lambda t, f, x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False), lambda fx, x: fx.nn.avg_pool(x, 3, stride=2, padding=1, count_include_pad=False)), pool("avg_pool2d_ceil", IMAGE, lambda t, f, x: f.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), lambda fx, x: fx.nn.avg_pool(x, 2, padding=((0, 1), (0, 0)), count_include_pad=False)),
    pool("avg_pool3d", F(1, 2, 4, 4, 3), lambda t, f, x: f.avg_pool3d(x, (2, 2, 3)), lambda fx, x: fx.nn.avg_pool(x, (2, 2, 3))), pool("sum_pool2d", IMAGE, lambda t, f, x: f.avg_pool2d(x, 2, 1) * 4, lambda fx, x: fx.nn.sum_pool(x, 2, stride=1)), pool("global_avg_pool", IMAGE, lambda t, f, x: f.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], lambda fx, x: fx.nn.global_avg_pool(x)),
]  # fmt: skip


def attention(name: str, *inputs: Any, **options: Any) -> Case:
    def ours(fx: Any, q: Any, k: Any, v: Any, *mask: Any) -> Any:
        return fx.nn.scaled_dot_product_attention(q, k, v, *mask, **options)

    def torch(t: Any, f: Any, q: Any, k: Any, v: Any, *mask: Any) -> Any:
        return f.scaled_dot_product_attention(q, k, v, *mask, **options)

    return case(f"nn.attention{name}", *inputs, torch=torch, ours=ours, batch={0: 0, 1: 0, 2: 0})


QKV = (F(2, 2, 4, 3), F(2, 2, 5, 3), F(2, 2, 5, 6))
ATTENTION = [
    attention("", *QKV), attention("_scale", *QKV, scale=0.25), attention("_causal", F(2, 6, 4), F(2, 6, 4), F(2, 6, 4), is_causal=True), attention("_causal_long", *QKV, is_causal=True),
    attention("_mask", *QKV, M(4, 5)), attention("_float_mask", *QKV, F(2, 4, 5)), attention("_row_mask", *QKV, F(1, 5, special=(-INF, 0.0))), attention("_big", F(1, 3, 8, low=-32, high=32), F(1, 5, 8, low=-32, high=32), F(1, 5, 2)),
]  # fmt: skip

D = F(4, 6)
REDUCE = [
    *[case(f"{n}{s}", F(3, 4, 5), torch=lambda t, f, x, n=n, a=a: getattr(t, n)(x, dim=a), ours=lambda fx, x, n=n, a=a: getattr(fx, n)(x, axis=a), batch={0: 0}) for n in ("sum", "mean", "amax", "amin") for s, a in (("", (0, 1, 2)), ("_0", 0), ("_1", 1), ("_02", (0, 2)), ("_12", (1, 2)))],
    *[case(f"var{c}{s}", F(3, 4, 5), torch=lambda t, f, x, c=c, a=a: (t.var(x, a, correction=c), t.std(x, a, correction=c, keepdim=True)), ours=lambda fx, x, c=c, a=a: (fx.var(x, axis=a, correction=c), fx.std(x, axis=a, correction=c, keepdims=True)), tolerance=4) for c in (0, 1) for s, a in (("", (0, 1, 2)), ("_1", 1), ("_02", (0, 2)))],
    case("prod", F(3, 4, low=0.5, high=2), torch=lambda t, f, x: t.prod(x, 1), ours=lambda fx, x: fx.prod(x, axis=1)), case("argmax", D, torch=lambda t, f, x: (t.argmax(x, 1), t.argmin(x, 0), t.argmax(x)), ours=lambda fx, x: (fx.argmax(x, axis=1), fx.argmin(x, axis=0), fx.argmax(x)), half=False),
    case("max_nan", F(3, 4, special=(1.0, NAN)), torch=lambda t, f, x: (t.amax(x, 1), t.amin(x, 0), t.argmax(x, 1)), ours=lambda fx, x: (fx.max(x, axis=1), fx.min(x, axis=0), fx.argmax(x, axis=1)), half=False), case("any_all", M(3, 5), torch=lambda t, f, m: (t.any(m, 1), t.all(m, 0), m.sum(1)), ours=lambda fx, m: (fx.any(m, axis=1), fx.all(m, axis=0), fx.sum(m, axis=1)), half=False),
    *[case(f"cum{n}{a}", F(3, 5, low=-1.5, high=1.5), torch=lambda t, f, x, n=n, a=a: getattr(t, f"cum{n}")(x, a), ours=lambda fx, x, n=n, a=a: getattr(fx, f"cum{n}")(x, axis=a), tolerance=8) for n in ("sum", "prod") for a in (0, 1)], *[case(f"cum{n}{a}", F(3, 5), torch=lambda t, f, x, n=n, a=a: getattr(t, f"cum{n}")(x, a).values, ours=lambda fx, x, n=n, a=a: getattr(fx, f"cum{n}")(x, axis=a)) for n in ("max", "min") for a in (0, 1)],
    case("cumsum_reverse", F(3, 5), torch=lambda t, f, x: t.flip(t.cumsum(t.flip(x, (1,)), 1), (1,)), ours=lambda fx, x: fx.cumsum(x, axis=1, reverse=True), tolerance=8), case("median", F(3, 5), torch=lambda t, f, x: t.median(x, 1).values, ours=lambda fx, x: fx.median(x, axis=1)), case("quantile", F(3, 6), torch=lambda t, f, x: t.quantile(x, 0.3, 1), ours=lambda fx, x: fx.quantile(x, 0.3, axis=1), half=False),
    *[case(f"norm{o}", F(3, 4, 5), torch=lambda t, f, x, o=o: (t.linalg.vector_norm(x, o, 1), t.linalg.vector_norm(x, o)), ours=lambda fx, x, o=o: (fx.linalg.vector_norm(x, ord=o, axis=1), fx.linalg.vector_norm(x, ord=o)), tolerance=4) for o in (1, 2, 3, 0.5, INF, -INF)], *[case(f"matrix_norm_{o}", F(3, 4, 5), torch=lambda t, f, x, o=o: t.linalg.matrix_norm(x, o), ours=lambda fx, x, o=o: fx.linalg.matrix_norm(x, ord=o), tolerance=2) for o in ("fro", 1, -1, INF, -INF)],
]  # fmt: skip


def einsum(equation: str, *inputs: Any) -> Case:
    return case(f"einsum {equation}", *inputs, torch=lambda t, f, *xs: t.einsum(equation, *xs), ours=lambda fx, *xs: fx.einsum(equation, *xs), tolerance=4)  # fmt: skip


ALGEBRA = [
    einsum("ij,jk->ik", F(3, 4), F(4, 5)), einsum("ij,kj->ki", F(3, 4), F(5, 4)), einsum("bij,bjk->bik", F(2, 3, 4), F(2, 4, 5)), einsum("bhqd,bhkd->bhqk", F(2, 2, 3, 4), F(2, 2, 5, 4)), einsum("bqhd,bkhd->bhqk", F(2, 3, 2, 4), F(2, 5, 2, 4)), einsum("bhqk,bkhd->bqhd", F(2, 2, 3, 5), F(2, 5, 2, 4)),
    einsum("ijk,jkl->il", F(2, 3, 4), F(3, 4, 5)), einsum("ii->i", F(4, 4)), einsum("iij->j", F(3, 3, 4)), einsum("i,j,k->kji", F(3), F(2), F(4)), einsum("ij,jk,kl->il", F(2, 3), F(3, 4), F(4, 2)), einsum("...ij,...jk->...ik", F(2, 1, 3, 4), F(3, 4, 2)), einsum("abc,cd,b->ad", F(2, 3, 4), F(4, 3), F(3)), einsum("ij,ij->", F(3, 4), F(3, 4)),
    *[case(f"matmul{i}", F(*a), F(*b), torch=lambda t, f, x, y: x @ y, ours=lambda fx, x, y: x @ y, tolerance=4) for i, (a, b) in enumerate([((5,), (5,)), ((3, 5), (5,)), ((5,), (5, 2)), ((7, 5), (5, 9)), ((2, 3, 4), (4, 5)), ((3, 1, 3, 4), (2, 4, 2)), ((17, 33), (33, 19)), ((1, 40), (40, 33)), ((33, 40), (40, 1))])],
    case("matmul_turned", F(9, 5), F(7, 9), torch=lambda t, f, x, y: (x.T @ y.T, (y @ x).T, x.T @ x, y.sum(0) @ x), ours=lambda fx, x, y: (x.T @ y.T, (y @ x).T, x.T @ x, y.sum(axis=0) @ x), tolerance=8), case("tensordot", F(2, 3, 4), F(4, 3, 5), torch=lambda t, f, x, y: t.tensordot(x, y, ([1, 2], [1, 0])), ours=lambda fx, x, y: fx.tensordot(x, y, ([1, 2], [1, 0])), tolerance=4),
    case("cross", F(4, 3), F(4, 3), torch=lambda t, f, x, y: t.linalg.cross(x, y), ours=lambda fx, x, y: fx.linalg.cross(x, y), tolerance=2), case("kron", F(2, 3), F(2, 2), torch=lambda t, f, x, y: t.kron(x, y), ours=lambda fx, x, y: fx.kron(x, y)), case("outer", F(3), F(4), torch=lambda t, f, x, y: (t.outer(x, y), t.trace(t.outer(x, x))), ours=lambda fx, x, y: (fx.outer(x, y), fx.trace(fx.outer(x, x)))),
    case("triangles", F(4, 5), torch=lambda t, f, x: (t.tril(x), t.triu(x, 1), t.tril(x, -2), t.diagonal(x, 1), t.rot90(x), t.roll(x, (1, -2), (0, 1))), ours=lambda fx, x: (fx.tril(x), fx.triu(x, 1), fx.tril(x, -2), fx.diagonal(x, 1), fx.rot90(x), fx.roll(x, (1, -2), (0, 1)))), case("matrix_power", F(3, 3), torch=lambda t, f, x: t.linalg.matrix_power(x, 4), ours=lambda fx, x: fx.linalg.matrix_power(x, 4), tolerance=16),
]  # fmt: skip


def resized(fx: Any, x: Any, n: int) -> Any:
    """Linear resizing with aligned corners, from interp."""
    return fx.interp(fx.linspace(0, x.shape[0] - 1, n, dtype=x.dtype), fx.arange(x.shape[0], dtype=x.dtype), x)


INDEX = [
    case("sort", F(3, 7), torch=lambda t, f, x: (t.sort(x, 1).values, t.sort(x, 0, descending=True).values), ours=lambda fx, x: (fx.sort(x, axis=1), fx.sort(x, axis=0, descending=True))), case("argsort", D, torch=lambda t, f, x: (t.argsort(x, dim=1, stable=True), t.argsort(x, dim=0, descending=True, stable=True)), ours=lambda fx, x: (fx.argsort(x, axis=1), fx.argsort(x, axis=0, descending=True))), case("sort_nan", F(2, 6, special=(1.0, NAN, -INF, INF, NAN)), torch=lambda t, f, x: t.sort(x, 1).values, ours=lambda fx, x: fx.sort(x)),
    case("topk", F(3, 8), torch=lambda t, f, x: tuple(t.topk(x, 3)), ours=lambda fx, x: fx.topk(x, 3), half=False), case("searchsorted", F(6), F(3, 4), torch=lambda t, f, s, x: (t.searchsorted(s.sort().values, x), t.searchsorted(s.sort().values, x, right=True)), ours=lambda fx, s, x: (fx.searchsorted(fx.sort(s), x), fx.searchsorted(fx.sort(s), x, side="right"))),
    case("gather", F(4, 6), Ints(4, 3, high=6), torch=lambda t, f, x, i: t.gather(x, 1, i), ours=lambda fx, x, i: fx.take_along_axis(x, i, axis=1)), case("gather0", F(4, 6), Ints(2, 6, high=4), torch=lambda t, f, x, i: t.gather(x, 0, i), ours=lambda fx, x, i: fx.take_along_axis(x, i, axis=0)), case("take", F(4, 6), Ints(3, 2, high=6), torch=lambda t, f, x, i: (x[:, i], x[i % 4], x[-1, i]), ours=lambda fx, x, i: (fx.take(x, i, axis=1), x[i % 4], x[-1, i])), case("fancy", F(4, 5, 6), Ints(3, high=4), torch=lambda t, f, x, i: (x[i, i], x[i, :, i], x[:, i, 1:4], x[i][:, None] * x[i][:, :, :1]), ours=lambda fx, x, i: (x[i, i], x[i, :, i], x[:, i, 1:4], x[i][:, None] * x[i][:, :, :1])),
    case("scatter_add", F(4, 5), Ints(7, high=4), F(7, 5), torch=lambda t, f, x, i, u: x.index_add(0, i, u), ours=lambda fx, x, i, u: x.at[i].add(u), tolerance=4), case("index_put", F(6, 3), F(2, 3), torch=lambda t, f, x, u: x.index_copy(0, t.tensor([4, 1]), u), ours=lambda fx, x, u: x.at[fx.asarray([4, 1])].set(u)), case("scatter_amax", F(4, 5), Ints(7, high=4), F(7, 5), torch=lambda t, f, x, i, u: (x.index_reduce(0, i, u, "amax"), x.index_reduce(0, i, u, "amin")), ours=lambda fx, x, i, u: (x.at[i].max(u), x.at[i].min(u))),
    case("put_along", F(3, 6), F(3, 1), torch=lambda t, f, x, v: x.scatter(1, t.tensor([[1], [5], [0]]), v), ours=lambda fx, x, v: fx.put_along_axis(x, fx.asarray([[1], [5], [0]]), v, axis=1)), case("bincount", Ints(20, high=6), torch=lambda t, f, i: t.bincount(i, minlength=8), ours=lambda fx, i: fx.bincount(i, length=8), half=False), case("bincount_weights", Ints(20, high=6), F(20), torch=lambda t, f, i, w: t.bincount(i, w), ours=lambda fx, i, w: fx.bincount(i, w, length=6), half=False),
    *[case(f"interp_{n}_{m}", F(n), torch=lambda t, f, x, m=m: f.interpolate(x[None, None], size=m, mode="linear", align_corners=True)[0, 0], ours=lambda fx, x, m=m: resized(fx, x, m), half=False, tolerance=8) for n, m in ((7, 13), (5, 3), (2, 9), (9, 9))], case("masked_fill", F(3, 4), M(3, 4), torch=lambda t, f, x, m: x.masked_fill(m, -INF), ours=lambda fx, x, m: fx.where(m, -INF, x)),
    case("slices", F(5, 8), torch=lambda t, f, x: (x[1:4, ::3], x[-2:, :-3], t.flip(x, (0,))[::2], x[..., None, 1], x[2]), ours=lambda fx, x: (x[1:4, ::3], x[-2:, :-3], x[::-1][::2], x[..., None, 1], x[2])), case("pad", F(3, 4), torch=lambda t, f, x: (f.pad(x, (1, 2, 0, 1), value=0.5), f.pad(x[None], (2, 1), "reflect")[0], f.pad(x[None], (2, 1), "replicate")[0], f.pad(x[None], (2, 1), "circular")[0]), ours=lambda fx, x: (fx.pad(x, ((0, 1), (1, 2)), constant_values=0.5), fx.pad(x, ((0, 0), (2, 1)), mode="reflect"), fx.pad(x, ((0, 0), (2, 1)), mode="edge"), fx.pad(x, ((0, 0), (2, 1)), mode="wrap"))),
    case("joins", F(2, 3), F(2, 3), torch=lambda t, f, x, y: (t.cat([x, y, x], 1), t.stack([x, y], 1), *t.split(x, [1, 2], 1), t.tile(x, (2, 1)), t.repeat_interleave(x, 2, 1)), ours=lambda fx, x, y: (fx.concat([x, y, x], axis=1), fx.stack([x, y], axis=1), *fx.split(x, [1], axis=1), fx.tile(x, (2, 1)), fx.repeat(x, 2, axis=1))), case("turns", F(2, 3, 4), torch=lambda t, f, x: (x.permute(2, 0, 1), x.permute(2, 0, 1).reshape(4, 6), t.movedim(x, 0, 2) + 1, x.permute(1, 2, 0).sum(1), x.permute(2, 1, 0).softmax(1)), ours=lambda fx, x: (fx.permute_dims(x, (2, 0, 1)), fx.permute_dims(x, (2, 0, 1)).reshape(4, 6), fx.moveaxis(x, 0, 2) + 1, fx.permute_dims(x, (1, 2, 0)).sum(axis=1), fx.nn.softmax(fx.permute_dims(x, (2, 1, 0)), axis=1))),
]  # fmt: skip

FUNCTIONS: list[Case] = [*ELEMENTWISE, *ACTIVATIONS, *NORMS, *CONVS, *POOLS, *ATTENTION, *REDUCE, *ALGEBRA, *INDEX]
assert len({c.name for c in FUNCTIONS}) == len(FUNCTIONS)
