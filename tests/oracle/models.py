"""Whole models, written twice with the same weights: with PyTorch's modules and functions, and with `fx`.

Weights are a mapping of names to arrays, drawn small enough that activations stay of order one. The FluxIR versions take
the batch as a symbol wherever the model allows it.
"""

from __future__ import annotations

import math
from typing import Any

from tests.oracle.cases import Case, F, Ints, case

CASES: list[Case] = []


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """Uniform weights of variance 1 / fan-in; names that end in `var` are positive."""
    out = {}
    for name, shape in shapes.items():
        fan_in = math.prod(shape[:-1]) if len(shape) == 2 else math.prod(shape[1:]) if len(shape) > 2 else 4
        bound = math.sqrt(3 / fan_in)
        out[name] = F(*shape, low=0.5, high=2) if name.endswith("var") else F(*shape, low=-bound, high=bound)
    return out


# ---- MLP -----------------------------------------------------------------------------------------------------------------


def mlp_torch(t: Any, f: Any, x: Any, w: Any) -> Any:
    h = f.relu(x @ w.w1 + w.b1)
    h = f.gelu(h @ w.w2 + w.b2, approximate="tanh")
    return f.log_softmax(h @ w.w3 + w.b3, -1)


def mlp(fx: Any, x: Any, w: Any) -> Any:
    h = fx.nn.relu(x @ w["w1"] + w["b1"])
    h = fx.nn.gelu(h @ w["w2"] + w["b2"])
    return fx.nn.log_softmax(h @ w["w3"] + w["b3"])


CASES.append(
    case("mlp", F(5, 20), weights(w1=(20, 33), b1=(33,), w2=(33, 17), b2=(17,), w3=(17, 10), b3=(10,)), torch=mlp_torch, ours=mlp, batch={0: 0}, tolerance=8)
)  # fmt: skip

# ---- recurrent -----------------------------------------------------------------------------------------------------------

D, H = 6, 9


def rnn_torch(kind: str) -> Any:
    def run(t: Any, f: Any, x: Any, w: Any) -> Any:
        module = getattr(t.nn, kind)(D, H)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(module, name).copy_(getattr(w, name))
        ys, state = module(x)
        return (ys, *(state if isinstance(state, tuple) else (state,)))

    return run


def lstm(fx: Any, x: Any, w: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        z = x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        i, f, g, o = fx.split(z, 4, axis=-1)
        c = fx.sigmoid(f) * c + fx.sigmoid(i) * fx.tanh(g)
        h = fx.sigmoid(o) * fx.tanh(c)
        return (h, c), h

    zero = fx.zeros((x.shape[1], H), dtype=x.dtype)
    (h, c), ys = fx.scan(step, (zero, zero), x)
    return ys, h[None], c[None]


def gru(fx: Any, x: Any, w: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        a = fx.split(x @ w["weight_ih_l0"].T + w["bias_ih_l0"], 3, axis=-1)
        b = fx.split(h @ w["weight_hh_l0"].T + w["bias_hh_l0"], 3, axis=-1)
        r, z = fx.sigmoid(a[0] + b[0]), fx.sigmoid(a[1] + b[1])
        h = (1 - z) * fx.tanh(a[2] + r * b[2]) + z * h
        return h, h

    h, ys = fx.scan(step, fx.zeros((x.shape[1], H), dtype=x.dtype), x)
    return ys, h[None]


for kind, ours, gates in (("LSTM", lstm, 4), ("GRU", gru, 3)):
    CASES.append(
        case(kind.lower(), F(7, 3, D), {k: F(*s, low=-0.5, high=0.5) for k, s in {"weight_ih_l0": (gates * H, D), "weight_hh_l0": (gates * H, H), "bias_ih_l0": (gates * H,), "bias_hh_l0": (gates * H,)}.items()}, torch=rnn_torch(kind), ours=ours, batch={0: 1}, tolerance=8)
    )  # fmt: skip

# ---- transformers --------------------------------------------------------------------------------------------------------


def block_weights(d: int, prefix: str = "") -> dict[str, Any]:
    return {
        prefix + k: v
        for k, v in weights(ln1=(d,), ln1b=(d,), qkv=(d, 3 * d), qkvb=(3 * d,), out=(d, d), outb=(d,), ln2=(d,), ln2b=(d,), up=(d, 4 * d), upb=(4 * d,), down=(4 * d, d), downb=(d,)).items()
    }  # fmt: skip


def block_torch(t: Any, f: Any, x: Any, w: Any, heads: int, mask: Any, causal: bool) -> Any:
    b, s, d = x.shape
    h = f.layer_norm(x, (d,), w("ln1"), w("ln1b"))
    q, k, v = (y.view(b, s, heads, d // heads).transpose(1, 2) for y in (h @ w("qkv") + w("qkvb")).split(d, -1))
    a = f.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    x = x + a.transpose(1, 2).reshape(b, s, d) @ w("out") + w("outb")
    h = f.layer_norm(x, (d,), w("ln2"), w("ln2b"))
    return x + f.gelu(h @ w("up") + w("upb")) @ w("down") + w("downb")


def block(fx: Any, x: Any, w: Any, heads: int, mask: Any, causal: bool) -> Any:
    b, s, d = x.shape
    h = fx.nn.layer_norm(x, w("ln1"), w("ln1b"))
    q, k, v = (
        fx.swapaxes(y.reshape(b, s, heads, d // heads), 1, 2) for y in fx.split(h @ w("qkv") + w("qkvb"), 3, axis=-1)
    )
    a = fx.nn.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    x = x + fx.swapaxes(a, 1, 2).reshape(b, s, d) @ w("out") + w("outb")
    h = fx.nn.layer_norm(x, w("ln2"), w("ln2b"))
    return x + fx.nn.gelu(h @ w("up") + w("upb"), approximate=False) @ w("down") + w("downb")


def encoder_torch(t: Any, f: Any, x: Any, lengths: Any, w: Any) -> Any:
    mask = (t.arange(x.shape[1]) < lengths[:, None])[:, None, None, :]
    return block_torch(t, f, x, lambda k: getattr(w, k), 2, mask, False)


def encoder(fx: Any, x: Any, lengths: Any, w: Any) -> Any:
    mask = (fx.arange(x.shape[1]) < lengths[:, None])[:, None, None, :]
    return block(fx, x, w.__getitem__, 2, mask, False)


CASES.append(
    case("encoder_block", F(3, 6, 8), Ints(3, low=2, high=7), block_weights(8), torch=encoder_torch, ours=encoder, batch={0: 0, 1: 0}, tolerance=8)
)  # fmt: skip

V, T, C = 13, 5, 8


def gpt_torch(t: Any, f: Any, tokens: Any, w: Any) -> Any:
    x = f.embedding(tokens, w.tok) + w.pos[: tokens.shape[1]]
    for i in range(2):
        x = block_torch(t, f, x, lambda k, i=i: getattr(w, f"h{i}_{k}"), 2, None, True)
    return f.layer_norm(x, (C,), w.ln, w.lnb) @ w.tok.T


def gpt(fx: Any, tokens: Any, w: Any) -> Any:
    x = fx.nn.embedding(tokens, w["tok"]) + w["pos"][: tokens.shape[1]]
    for i in range(2):
        x = block(fx, x, lambda k, i=i: w[f"h{i}_{k}"], 2, None, True)
    return fx.nn.layer_norm(x, w["ln"], w["lnb"]) @ w["tok"].T


CASES.append(
    case("gpt", Ints(2, T, high=V), {**weights(tok=(V, C), pos=(T + 2, C), ln=(C,), lnb=(C,)), **block_weights(C, "h0_"), **block_weights(C, "h1_")}, torch=gpt_torch, ours=gpt, batch={0: 0}, tolerance=16)
)  # fmt: skip


def cached_torch(t: Any, f: Any, x: Any, w: Any) -> Any:
    """The whole sequence at once: what decoding with a cache must reproduce, token by token."""
    q, k, v = x @ w.q, x @ w.k, x @ w.v
    return f.scaled_dot_product_attention(q, k, v, is_causal=True) @ w.o, k, v


def cached(fx: Any, x: Any, w: Any) -> Any:
    steps, size = x.shape[1], 8  # the cache is longer than the sequence, as caches are

    def step(carry: Any, token: Any) -> Any:
        position, ks, vs = carry
        q, k, v = (token[:, None] @ w[n] for n in "qkv")
        ks, vs = fx.dynamic_update(ks, k, (0, position, 0)), fx.dynamic_update(vs, v, (0, position, 0))
        mask = fx.arange(size) <= position
        y = fx.nn.scaled_dot_product_attention(q, ks, vs, mask[None, :]) @ w["o"]
        return (position + 1, ks, vs), y[:, 0]

    empty = fx.zeros((x.shape[0], size, x.shape[2]), dtype=x.dtype)
    carry, ys = fx.scan(step, (fx.asarray(0), empty, empty), fx.moveaxis(x, 1, 0))
    return fx.moveaxis(ys, 0, 1), carry[1][:, :steps], carry[2][:, :steps]


CASES.append(
    case("kv_cache", F(2, 6, 4), weights(q=(4, 4), k=(4, 4), v=(4, 4), o=(4, 4)), torch=cached_torch, ours=cached, batch={0: 0}, tolerance=8)
)  # fmt: skip

# ---- convolutional -------------------------------------------------------------------------------------------------------


def resnet_torch(t: Any, f: Any, x: Any, w: Any) -> Any:
    def bn(y: Any, p: str) -> Any:
        return f.batch_norm(y, getattr(w, p + "mean"), getattr(w, p + "var"), getattr(w, p + "s"), getattr(w, p + "b"))

    h = f.relu(bn(f.conv2d(x, w.c1, stride=2, padding=1), "n1"))
    h = bn(f.conv2d(h, w.c2, padding=1), "n2")
    return f.relu(h + bn(f.conv2d(x, w.c3, stride=2), "n3"))


def resnet(fx: Any, x: Any, w: Any) -> Any:
    def bn(y: Any, p: str) -> Any:
        return fx.nn.batch_norm(y, w[p + "mean"], w[p + "var"], w[p + "s"], w[p + "b"])

    h = fx.nn.relu(bn(fx.nn.conv(x, w["c1"], stride=2, padding=1), "n1"))
    h = bn(fx.nn.conv(h, w["c2"], padding=1), "n2")
    return fx.nn.relu(h + bn(fx.nn.conv(x, w["c3"], stride=2), "n3"))


CASES.append(
    case("resnet_block", F(2, 3, 7, 6), weights(c1=(5, 3, 3, 3), c2=(5, 5, 3, 3), c3=(5, 3, 1, 1), **{f"n{i}{k}": (5,) for i in (1, 2, 3) for k in ("mean", "var", "s", "b")}), torch=resnet_torch, ours=resnet, batch={0: 0}, tolerance=8)
)  # fmt: skip


def separable_torch(t: Any, f: Any, x: Any, w: Any) -> Any:
    h = f.relu6(f.conv2d(x, w.stem, w.stemb, stride=2, padding=1))
    h = f.relu6(f.group_norm(f.conv2d(h, w.depth, padding=2, dilation=2, groups=6), 3))
    h = f.hardswish(f.conv2d(h, w.point, w.pointb))
    h = h * f.sigmoid(f.adaptive_avg_pool2d(h, 1) @ t.ones(1, 1))  # a gate for each channel
    return f.avg_pool2d(h, 2, 2, 1, count_include_pad=False).flatten(1) @ w.head


def separable(fx: Any, x: Any, w: Any) -> Any:
    h = fx.nn.relu6(fx.nn.conv(x, w["stem"], w["stemb"], stride=2, padding=1))
    h = fx.nn.relu6(fx.nn.group_norm(fx.nn.conv(h, w["depth"], padding=2, dilation=2, groups=6), 3))
    h = fx.nn.hard_swish(fx.nn.conv(h, w["point"], w["pointb"]))
    h = h * fx.sigmoid(fx.nn.global_avg_pool(h))[:, :, None, None]
    h = fx.nn.avg_pool(h, 2, padding=1, count_include_pad=False)
    return h.reshape(h.shape[0], h.shape[1] * h.shape[2] * h.shape[3]) @ w["head"]


CASES.append(
    case("separable_net", F(2, 3, 8, 8), weights(stem=(6, 3, 3, 3), stemb=(6,), depth=(6, 1, 3, 3), point=(8, 6, 1, 1), pointb=(8,), head=(72, 5)), torch=separable_torch, ours=separable, batch={0: 0}, tolerance=8)
)  # fmt: skip


def decoder_torch(t: Any, f: Any, z: Any, w: Any) -> Any:
    h = f.elu(z @ w.dense + w.denseb).view(-1, 6, 3, 3)
    h = f.leaky_relu(f.conv_transpose2d(h, w.t1, w.t1b, stride=2, padding=1), 0.1)
    return t.sigmoid(f.conv_transpose2d(h, w.t2, w.t2b, stride=2, padding=1, output_padding=1))


def decoder(fx: Any, z: Any, w: Any) -> Any:
    h = fx.nn.elu(z @ w["dense"] + w["denseb"]).reshape(z.shape[0], 6, 3, 3)
    h = fx.nn.leaky_relu(fx.nn.conv_transpose(h, w["t1"], w["t1b"], stride=2, padding=1), 0.1)
    return fx.sigmoid(fx.nn.conv_transpose(h, w["t2"], w["t2b"], stride=2, padding=1, output_padding=1))


CASES.append(
    case("vae_decoder", F(2, 4), weights(dense=(4, 54), denseb=(54,), t1=(6, 4, 4, 4), t1b=(4,), t2=(4, 1, 3, 3), t2b=(1,)), torch=decoder_torch, ours=decoder, batch={0: 0}, tolerance=8)
)  # fmt: skip

MODELS = CASES
