"""Attention: causal and not, odd lengths, a query against a cache of keys, its gradient; and an encoder block."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bench.cpu.row import normal, row

F = 4


def _ours(causal: bool, q: Any, k: Any, v: Any) -> Any:
    import fluxir as fx

    return fx.functional.attention(q, k, v, is_causal=causal)


def _numpy(causal: bool, q: Any, k: Any, v: Any) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) * np.float32(q.shape[-1] ** -0.5)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, np.float32(-np.inf))
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)) @ v


def _torch(causal: bool, q: Any, k: Any, v: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _jax(causal: bool, q: Any, k: Any, v: Any) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bhsd,bhtd->bhst", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhst,bhtd->bhsd", jax.nn.softmax(scores, axis=-1), v)


def _onnx(causal: bool, sizes: tuple[int, int, int], g: Any, q: Any, k: Any, v: Any) -> Any:
    s, t, depth = sizes
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), float(depth**-0.5))
    if causal:
        scores = g.op("Add", scores, np.where(np.tri(s, t, dtype=bool), 0, -np.inf).astype(np.float32))
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), v)


def attention(b: int, h: int, s: int, t: int, d: int, causal: bool, *, name: str = "", share: float = 0.8,
              held_out: bool = False) -> None:  # fmt: skip
    """b sequences, h heads, s queries, t keys of depth d. Only the half that a causal mask leaves counts."""
    how = functools.partial
    part = (t + 1) / (2 * t) if causal else 1.0
    row(
        name or f"attention{' causal' if causal else ''} b{b} h{h} s{s} t{t} d{d}", "attention",
        lambda: (normal(b, h, s, d), normal(b, h, t, d, seed=1), normal(b, h, t, d, seed=2)), share=share,
        flops=4.0 * b * h * s * t * d * part, moved=(F * b * h * (s + 2 * t) * d, F * b * h * s * d), held_out=held_out,
        ours=how(_ours, causal), numpy=how(_numpy, causal), torch=how(_torch, causal), jax=how(_jax, causal),
        onnx=how(_onnx, causal, (s, t, d)),
    )  # fmt: skip


attention(1, 12, 1024, 1024, 64, True, name="causal attention h12 s1024 d64")
attention(1, 12, 128, 128, 64, False, held_out=True)
attention(2, 8, 501, 501, 80, True, held_out=True)
attention(1, 32, 1, 2048, 128, False, name="decode: 1 query, 2048 keys, h32 d128", held_out=True)
attention(16, 4, 33, 33, 32, True, held_out=True)


def _gradient_ours(q: Any, k: Any, v: Any) -> Any:
    import fluxir as fx

    return fx.grad(lambda q, k, v: fx.sum(_ours(True, q, k, v) ** 2), argnums=(0, 1, 2))(q, k, v)


def _gradient_jax(q: Any, k: Any, v: Any) -> Any:
    import jax

    return jax.grad(lambda q, k, v: (_jax(True, q, k, v) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)


def _gradient_torch(q: Any, k: Any, v: Any) -> Any:
    import torch

    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad((_torch(True, *given) ** 2).sum(), given)


row(
    "gradient of causal attention h8 s512 d64", "attention", lambda: tuple(normal(1, 8, 512, 64, seed=i) for i in range(3)),
    share=0.6, flops=(4.0 + 10.0) * 8 * 512 * 512 * 64 / 2, held_out=True, tolerance=1e-3,
    ours=_gradient_ours, jax=_gradient_jax, torch=_gradient_torch,
)  # fmt: skip

# ---- an encoder block -----------------------------------------------------------------------------------------------------


def _weights(d: int, ff: int) -> dict[str, Any]:
    """Layer norms before attention and before the two dense layers (the order of GPT-2 and ViT)."""
    p = {"n1.s": normal(d, scale=0.1, shift=1.0), "n1.b": normal(d, scale=0.1), "n2.s": normal(d, scale=0.1, shift=1.0, seed=1),
         "n2.b": normal(d, scale=0.1, seed=1)}  # fmt: skip
    for i, (name, a, b) in enumerate((("qkv", d, 3 * d), ("out", d, d), ("up", d, ff), ("down", ff, d))):
        p[f"{name}.w"], p[f"{name}.b"] = normal(a, b, scale=a**-0.5, seed=i), normal(b, scale=0.1, seed=i)
    return p


def _block(lib: Any, heads: int, x: Any, p: Any) -> Any:
    """x [s, d] -> [s, d] in terms of `lib`: norm, linear, attend (of q, k, v side by side), gelu, add."""
    h = lib.linear(lib.norm(x, p["n1.s"], p["n1.b"]), p["qkv.w"], p["qkv.b"])
    x = lib.add(x, lib.linear(lib.attend(h, heads), p["out.w"], p["out.b"]))
    h = lib.gelu(lib.linear(lib.norm(x, p["n2.s"], p["n2.b"]), p["up.w"], p["up.b"]))
    return lib.add(x, lib.linear(h, p["down.w"], p["down.b"]))


class _Plain:
    """What the libraries with arrays of Python operators share."""

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x @ w + b


class _Ours(_Plain):
    def norm(self, x: Any, s: Any, b: Any) -> Any:
        import fluxir as fx

        return fx.functional.layer_norm(x, s, b, eps=1e-5)

    def gelu(self, x: Any) -> Any:
        import fluxir as fx

        return fx.functional.gelu(x)

    def attend(self, h: Any, heads: int) -> Any:
        import fluxir as fx

        s, d = h.shape[0], h.shape[1] // 3
        q, k, v = fx.transpose(fx.reshape(h, (s, 3, heads, d // heads)), (1, 2, 0, 3))
        return fx.reshape(fx.transpose(fx.functional.attention(q, k, v), (1, 0, 2)), (s, d))


class _Torch(_Plain):
    def norm(self, x: Any, s: Any, b: Any) -> Any:
        import torch

        return torch.nn.functional.layer_norm(x, s.shape, s, b, 1e-5)

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        import torch

        return torch.addmm(b, x, w)

    def gelu(self, x: Any) -> Any:
        import torch

        return torch.nn.functional.gelu(x, approximate="tanh")

    def attend(self, h: Any, heads: int) -> Any:
        s, d = h.shape[0], h.shape[1] // 3
        q, k, v = h.view(s, 3, heads, d // heads).permute(1, 2, 0, 3)
        return _torch(False, q[None], k[None], v[None])[0].permute(1, 0, 2).reshape(s, d)


class _Jax(_Plain):
    def norm(self, x: Any, s: Any, b: Any) -> Any:
        import jax.numpy as jnp

        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * s + b

    def gelu(self, x: Any) -> Any:
        import jax

        return jax.nn.gelu(x)

    def attend(self, h: Any, heads: int) -> Any:
        s, d = h.shape[0], h.shape[1] // 3
        q, k, v = h.reshape(s, 3, heads, d // heads).transpose(1, 2, 0, 3)
        return _jax(False, q[None], k[None], v[None])[0].transpose(1, 0, 2).reshape(s, d)


class _Onnx:
    def __init__(self, g: Any, s: int, d: int) -> None:
        self.g, self.s, self.d = g, s, d

    def add(self, x: Any, y: Any) -> Any:
        return self.g.op("Add", x, y)

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return self.g.op("Gemm", x, w, b)

    def norm(self, x: Any, s: Any, b: Any) -> Any:
        return self.g.op("LayerNormalization", x, s, b, axis=-1, epsilon=1e-5)

    def gelu(self, x: Any) -> Any:
        return self.g.op("Gelu", x, approximate="tanh")

    def attend(self, h: Any, heads: int) -> Any:
        # The fused op of ONNX Runtime's own transformer exports: q, k, v are [batch, s, d].
        parts = self.g.op("Split", h, np.array([self.d] * 3), outputs=3, axis=1)
        q, k, v = (self.g.op("Unsqueeze", p, np.array([0])) for p in parts)
        y = self.g.op("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=heads)
        return self.g.op("Squeeze", y, np.array([0]))


def encoder(d: int, s: int, heads: int, share: float, held_out: bool = False) -> None:
    ff = 4 * d
    row(
        f"encoder block d{d} s{s}", "attention", lambda: (normal(s, d), _weights(d, ff)), weights=1, share=share,
        flops=2.0 * s * d * (4 * d + 2 * ff) + 4.0 * s * s * d, held_out=held_out, tolerance=1e-3,
        ours=lambda x, p: _block(_Ours(), heads, x, p), torch=lambda x, p: _block(_Torch(), heads, x, p),
        jax=lambda x, p: _block(_Jax(), heads, x, p), onnx=lambda g, x, p: _block(_Onnx(g, s, d), heads, x, p),
    )  # fmt: skip


encoder(768, 128, 12, 0.92)
encoder(384, 197, 6, 0.9, held_out=True)
encoder(256, 33, 4, 0.8, held_out=True)
