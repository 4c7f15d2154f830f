"""Random numbers. A node's numbers follow from its seed alone (or, without one, from its name), so that a program gives
the same ones on every call; ONNX leaves the generator open."""

from __future__ import annotations

import zlib
from typing import Any

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import element
from fluxir.frontend.onnx.graph import Context, Results
from fluxir.frontend.onnx.registry import Float, Int, Ints, op
from fluxir.ir.dtypes import f32


def key_of(cx: Context, seed: float | None) -> Any:
    text = f"{seed}" if seed is not None else f"{cx.node.name}/{','.join(cx.node.outputs)}"
    return fx.random.key(zlib.crc32(text.encode()))


def dropped(cx: Context, x: Any, rate: float, seed: Any) -> Results:
    """`x` with elements dropped at random and the others scaled up, and which were kept."""
    if rate >= 1:
        return Results((fx.zeros_like(x), fx.zeros_like(x, dtype="bool")))
    kept = fx.random.bernoulli(key_of(cx, seed), 1 - rate, x.shape)
    return Results((fx.where(kept, fx.multiply(x, fx.scalar(1 / (1 - rate), x)), fx.scalar(0, x)), kept))


def _uniform(cx: Context, shape: Any, d: Any, low: float, high: float, seed: Any) -> Any:
    wide = d if d.bits >= 32 else f32
    return fx.cast(fx.random.uniform(key_of(cx, seed), shape, low=low, high=high, dtype=wide), d)


def _normal(cx: Context, shape: Any, d: Any, mean: float, scale: float, seed: Any) -> Any:
    wide = d if d.bits >= 32 else f32
    return fx.cast(fx.random.normal(key_of(cx, seed), shape, loc=mean, scale=scale, dtype=wide), d)


@op("RandomUniform", pure=False)
def random_uniform(
    cx: Context, *, dtype: Int = 1, high: Float = 1.0, low: Float = 0.0, seed: Float | None = None, shape: Ints
) -> Any:
    return _uniform(cx, shape, element(dtype, "RandomUniform").carrier, low, high, seed)


@op("RandomUniformLike", pure=False)
def random_uniform_like(
    cx: Context, x: Any, *, dtype: Int | None = None, high: Float = 1.0, low: Float = 0.0, seed: Float | None = None
) -> Any:
    d = fx.dtype(x) if dtype is None else element(dtype, "RandomUniformLike").carrier
    return _uniform(cx, x.shape, d, low, high, seed)


@op("RandomNormal", pure=False)
def random_normal(
    cx: Context, *, dtype: Int = 1, mean: Float = 0.0, scale: Float = 1.0, seed: Float | None = None, shape: Ints
) -> Any:
    return _normal(cx, shape, element(dtype, "RandomNormal").carrier, mean, scale, seed)


@op("RandomNormalLike", pure=False)
def random_normal_like(
    cx: Context, x: Any, *, dtype: Int | None = None, mean: Float = 0.0, scale: Float = 1.0, seed: Float | None = None
) -> Any:
    d = fx.dtype(x) if dtype is None else element(dtype, "RandomNormalLike").carrier
    return _normal(cx, x.shape, d, mean, scale, seed)


@op("Bernoulli", since=15, pure=False)
def bernoulli(cx: Context, p: Any, *, dtype: Int | None = None, seed: Float | None = None) -> Any:
    d = fx.dtype(p) if dtype is None else element(dtype, "Bernoulli").carrier
    drawn = _uniform(cx, p.shape, f32, 0.0, 1.0, seed)
    return fx.cast(fx.less(drawn, fx.cast(p, f32)), d)


@op("Multinomial", since=7, pure=False)
def multinomial(cx: Context, x: Any, *, dtype: Int = 6, sample_size: Int = 1, seed: Float | None = None) -> Any:
    """Classes drawn by log-probabilities [batch, classes], by the Gumbel trick."""
    shape = (x.shape[0], sample_size, x.shape[1])
    noise = fx.random.gumbel(key_of(cx, seed), shape, dtype=fx.dtype(x))
    drawn = fx.argmax(fx.add(fx.expand_dims(x, axis=1), noise), axis=-1)
    return fx.cast(drawn, element(dtype, "Multinomial").carrier)
