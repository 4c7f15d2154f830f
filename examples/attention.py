"""Attention: one pre-norm transformer block for any batch and sequence length, causal, with two heads.

The weights are made by the random functions from a fixed key, while tracing: the same on every machine.
"""

from __future__ import annotations

import fluxir as fx

WIDTH, HEADS = 16, 2


def weight(key, rows, columns):
    return fx.random.normal(key, (rows, columns)) / rows**0.5


@fx.model(facts="B >= 1, T >= 1")
def block(x: fx.f32["B", "T", WIDTH]) -> fx.f32["B", "T", WIDTH]:
    keys = fx.random.split(fx.random.key(0), 4)
    b, t, _ = x.shape
    h = fx.nn.layer_norm(x, axis=-1)
    q, k, v = fx.unstack(fx.reshape(h @ weight(keys[0], WIDTH, 3 * WIDTH), (b, t, 3, HEADS, WIDTH // HEADS)), axis=2)
    a = fx.nn.scaled_dot_product_attention(*(fx.swapaxes(y, 1, 2) for y in (q, k, v)), is_causal=True)
    x = x + fx.reshape(fx.swapaxes(a, 1, 2), (b, t, WIDTH)) @ weight(keys[1], WIDTH, WIDTH)
    h = fx.nn.gelu(fx.nn.layer_norm(x, axis=-1) @ weight(keys[2], WIDTH, 4 * WIDTH))
    return x + h @ weight(keys[3], 4 * WIDTH, WIDTH)
