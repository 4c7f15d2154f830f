"""`fx.random`: random numbers from an explicit key (u32[2]), the same bits on every target.

In eager mode too where only exact operations follow the bits; the distributions that take a logarithm or a cosine use
numpy's there, which differ from the compiled ones in the last places.

Everything is composed from one op, `random_bits` (Philox 4x32-10, Salmon et al. 2011), element by element from its
position, so results do not depend on the number of threads. A key is used once: make new ones with `split` or `fold_in`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_creation import as_shape, finfo
from fluxir.frontend.api_manipulation import reshape
from fluxir.frontend.tensor import Tensor, as_dtype, as_tensor, cast, constant, emit, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, product
from fluxir.ir.dtypes import DTYPES, DType, f32, i64, u32, u64
from fluxir.ops.rules import broadcast_shapes, normal_axis


def _key(key: Any) -> Tensor:
    t = as_tensor(key)
    if t.dtype != u32 or t.shape != (2,):
        raise error(
            "FX0227", f"a random key is u32[2], not {t.type}", help="make one with fx.random.key(seed)", loc=here()
        )
    return t


@public
def key(seed: Any, /) -> Tensor:
    """A key, u32[2], from a seed: an integer (its low 64 bits count) or an integer scalar tensor."""
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        n = int(seed) & (2**64 - 1)
        return as_tensor(np.array([n & 0xFFFFFFFF, n >> 32], np.uint32))
    t = as_tensor(seed)
    if not t.dtype.is_integer or t.ndim:
        raise error("FX0227", f"a seed is an integer scalar, not {t.type}", loc=here())
    wide = emit("bitcast", cast(t, i64), dtype=u64) if t.dtype.is_signed else cast(t, u64)
    parts = [wide, emit("shift_right", wide, constant(32, u64))]
    return emit(
        "concat", *[reshape(cast(emit("bit_and", p, constant(0xFFFFFFFF, u64)), u32), (1,)) for p in parts], axis=0
    )


# Derived keys are drawn with a salted key, so that they share no block with what the key itself gives.
_SPLIT, _FOLD = 0x5851F42D, 0x2545F491


def _salted(k: Tensor, salt: int) -> Tensor:
    return emit("bit_xor", k, as_tensor(np.array([salt, salt ^ 0xFFFFFFFF], np.uint32)))


@public
def split(key: Any, num: Any = 2, /) -> Tensor:
    """`num` new keys, u32[num, 2], independent of each other and of what `key` gives."""
    (n,) = as_shape(num)
    return emit("random_bits", _salted(_key(key), _SPLIT), shape=(n, 2))


@public
def fold_in(key: Any, data: Any, /) -> Tensor:
    """A new key from a key and an integer (a step number, a layer number)."""
    k = _salted(_key(key), _FOLD)
    d = as_tensor(np.uint32(int(data) & 0xFFFFFFFF)) if isinstance(data, int | np.integer) else as_tensor(data)
    if not d.dtype.is_integer or d.ndim:
        raise error("FX0227", f"fold_in takes an integer scalar, not {d.type}", loc=here())
    mask = as_tensor(np.array([0xFFFFFFFF, 0], np.uint32))
    word = emit("bit_and", emit("broadcast", cast(d, u32), shape=(2,)), mask)
    return emit("random_bits", emit("bit_xor", emit("random_bits", k, shape=(2,)), word), shape=(2,))


@public
def bits(key: Any, /, shape: Any = (), *, dtype: Any = "u32") -> Tensor:
    """Random bits of an unsigned type: u8, u16, u32 or u64."""
    d, s = as_dtype(dtype), as_shape(shape)
    if d.kind != "uint":
        raise error("FX0209", f"random bits have an unsigned type, not {d}", loc=here())
    if d == u64:
        words = emit("random_bits", _key(key), shape=(*s, 2))
        low, high = (reshape(emit("slice", words, start=(*[0] * len(s), i), limit=(*s, i + 1)), s) for i in (0, 1))
        return emit("bit_or", cast(low, u64), emit("shift_left", cast(high, u64), constant(32, u64)))
    r = emit("random_bits", _key(key), shape=s)
    return r if d == u32 else cast(emit("shift_right", r, constant(32 - d.bits, u32)), d)


_MANTISSA = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}


def _unit(key: Any, shape: tuple[Dim, ...], d: DType) -> Tensor:
    """Uniform in [0, 1): as many random bits as the type's mantissa holds, times a power of two (exact)."""
    if not d.is_float:
        raise error("FX0209", f"random floats have a float type, not {d}", loc=here())
    m = _MANTISSA[d.name] + 1
    wide = DTYPES["u64"] if d.bits == 64 else u32
    r = bits(key, shape, dtype=wide)
    r = emit("shift_right", r, constant(wide.bits - m, wide))
    # Fewer than 2**24 (2**53) different integers: the conversion is exact.
    signed = emit("bitcast", r, dtype=DTYPES[f"i{wide.bits}"])
    middle = d if d.bits >= 32 else f32
    return cast(emit("mul", cast(signed, middle), constant(2.0**-m, middle)), d)


@public
def uniform(key: Any, /, shape: Any = (), *, low: Any = 0.0, high: Any = 1.0, dtype: Any = "f32") -> Tensor:
    """Uniform in [low, high)."""
    d, s = as_dtype(dtype), as_shape(shape)
    u = _unit(key, s, d)
    if isinstance(low, int | float) and isinstance(high, int | float):
        if low == 0 and high == 1:
            return u
        r = emit("add", constant(low, d), emit("mul", u, constant(high - low, d)))
        below = np.nextafter(np.asarray(high).astype(d.numpy), np.asarray(low).astype(d.numpy))
        return emit("minimum", r, as_tensor(np.asarray(below))) if high > low else r  # rounding must not give `high`
    a, b = (cast(as_tensor(v), d) for v in (low, high))
    return emit("add", a, emit("mul", u, emit("sub", b, a)))


@public
def normal(key: Any, /, shape: Any = (), *, loc: Any = 0.0, scale: Any = 1.0, dtype: Any = "f32") -> Tensor:
    """Normal with mean `loc` and standard deviation `scale` (Box and Muller 1958, on two uniform numbers each)."""
    d, s = as_dtype(dtype), as_shape(shape)
    middle = d if d.bits >= 32 else f32
    u = _unit(key, (2, *s), middle)
    first, second = (reshape(emit("slice", u, start=(i, *[0] * len(s)), limit=(i + 1, *s)), s) for i in (0, 1))
    one = constant(1.0, middle)
    radius = emit("sqrt", emit("mul", constant(-2.0, middle), emit("log", emit("sub", one, first))))  # 1 - u is never 0
    r = cast(emit("mul", radius, emit("cos", emit("mul", second, constant(2 * math.pi, middle)))), d)
    if isinstance(loc, int | float) and isinstance(scale, int | float) and loc == 0 and scale == 1:
        return r
    a, b = (cast(as_tensor(v), d) for v in (loc, scale))
    return emit("add", a, emit("mul", r, b))


@public
def truncated_normal(
    key: Any, lower: float = -2.0, upper: float = 2.0, shape: Any = (), *, dtype: Any = "f32"
) -> Tensor:
    """Standard normal conditioned on [lower, upper], by inversion: sqrt(2) * erfinv of a uniform number."""
    d, s = as_dtype(dtype), as_shape(shape)
    middle = d if d.bits >= 32 else f32
    a, b = math.erf(lower / math.sqrt(2)), math.erf(upper / math.sqrt(2))
    u = emit("add", constant(a, middle), emit("mul", _unit(key, s, middle), constant(b - a, middle)))
    x = emit("mul", constant(math.sqrt(2), middle), erfinv(u))
    return cast(emit("clamp", x, constant(lower, middle), constant(upper, middle)), d)


def erfinv(x: Tensor) -> Tensor:
    """The inverse of erf on (-1, 1): Winitzki's closed form, then Newton steps to full precision."""
    d = x.dtype
    one = constant(1.0, d)
    edge = float(np.nextafter(np.asarray(1.0).astype(d.numpy), np.asarray(0.0).astype(d.numpy)))
    x = emit("clamp", x, constant(-edge, d), constant(edge, d))
    w = emit("log", emit("mul", emit("sub", one, x), emit("add", one, x)))
    c = 0.147
    t = emit("add", constant(2 / (math.pi * c), d), emit("mul", w, constant(0.5, d)))
    inner = emit("sub", emit("mul", t, t), emit("mul", w, constant(1 / c, d)))
    y = emit("copysign", emit("sqrt", emit("sub", emit("sqrt", inner), t)), x)
    half_sqrt_pi = constant(math.sqrt(math.pi) / 2, d)
    for _ in range(2 if d == f32 else 4):
        slope = emit("mul", half_sqrt_pi, emit("exp", emit("mul", y, y)))
        y = emit("sub", y, emit("mul", emit("sub", emit("erf", y), x), slope))
    return y


@public
def bernoulli(key: Any, p: Any = 0.5, shape: Any = None) -> Tensor:
    """True with probability `p`, bool."""
    t = promote_operands(p, constant(0.0, f32))[0] if isinstance(p, int | float) else as_tensor(p)
    s = t.shape if shape is None else as_shape(shape)
    return emit("lt", _unit(key, s, t.dtype), t)


@public
def randint(key: Any, /, low: Any, high: Any, shape: Any = (), *, dtype: Any = "i64") -> Tensor:
    """Integers in low..high-1. The bias is below 2**-32 for ranges up to 2**32: 64 random bits are reduced."""
    d, s = as_dtype(dtype), as_shape(shape)
    a, b = (cast(as_tensor(v), i64) for v in (low, high))
    span = emit("bitcast", emit("sub", b, a), dtype=u64)
    r = emit("remainder", bits(key, s, dtype="u64"), emit("maximum", span, constant(1, u64)))
    return cast(emit("add", a, emit("bitcast", r, dtype=i64)), d)


@public
def gumbel(key: Any, /, shape: Any = (), *, dtype: Any = "f32") -> Tensor:
    """Standard Gumbel: -log(-log(u))."""
    d = as_dtype(dtype)
    u = _unit(key, as_shape(shape), d)
    u = emit("maximum", u, constant(float(finfo(d).tiny), d))
    return emit("neg", emit("log", emit("neg", emit("log", u))))


@public
def exponential(key: Any, /, shape: Any = (), *, dtype: Any = "f32") -> Tensor:
    """Exponential with rate 1."""
    d = as_dtype(dtype)
    return emit("neg", emit("log", emit("sub", constant(1.0, d), _unit(key, as_shape(shape), d))))


@public
def categorical(key: Any, logits: Any, /, axis: int = -1, shape: Any = None) -> Tensor:
    """A class from each distribution softmax(logits) along `axis`, i64 (the Gumbel-max rule). `shape` is the result's."""
    t = as_tensor(logits)
    a = normal_axis("categorical", axis, t.ndim)
    batch = tuple(d for i, d in enumerate(t.shape) if i != a)
    out = batch if shape is None else as_shape(shape)
    if broadcast_shapes("categorical", [batch, out]) != out:
        raise error(
            "FX0202", f"categorical: the result shape {out} does not end in the batch shape {batch}", loc=here()
        )
    from fluxir.frontend.api_manipulation import moveaxis

    t = moveaxis(t, a, -1)
    noisy = emit("add", gumbel(key, (*out, t.shape[-1]), dtype=t.dtype), t)
    return emit("argmax", noisy, axis=noisy.ndim - 1)


@public
def permutation(key: Any, x: Any, /, axis: int = 0) -> Tensor:
    """0..n-1 in random order (x a size), or x with its slices along `axis` in random order.

    Sorts by 64 random bits; equal ones (probability n**2 / 2**65) keep their order.
    """
    from fluxir.frontend.api_indexing import take
    from fluxir.ir.dims import Poly

    if isinstance(x, Poly) or hasattr(x, "__index__") and not isinstance(x, Tensor | np.ndarray):
        (n,) = as_shape(x)
        return emit("argsort", bits(key, (n,), dtype="u64"), axis=0)
    t = as_tensor(x)
    a = normal_axis("permutation", axis, t.ndim)
    return take(t, emit("argsort", bits(key, (t.shape[a],), dtype="u64"), axis=0), axis=a)


@public
def choice(key: Any, a: Any, /, shape: Any = (), *, replace: bool = True) -> Tensor:
    """Elements of `a` (or of 0..a-1 for a size) at random, with or without replacement."""
    from fluxir.frontend.api_creation import arange
    from fluxir.frontend.api_indexing import take
    from fluxir.ir.dims import Poly

    pool = (
        arange(a)
        if isinstance(a, Poly) or hasattr(a, "__index__") and not isinstance(a, Tensor | np.ndarray)
        else as_tensor(a)
    )
    s = as_shape(shape)
    n = pool.shape[0]
    if replace:
        return take(pool, randint(key, 0, n, s), axis=0)
    order = permutation(key, n)
    count = product(s)
    if isinstance(count, int) and isinstance(n, int) and count > n:
        raise error("FX0221", f"choice: {count} of {n} elements without replacement", loc=here())
    return reshape(take(pool, emit("slice", order, start=(0,), limit=(count,)), axis=0), (*s, *pool.shape[1:]))


__all__ = [
    "bernoulli", "bits", "categorical", "choice", "exponential", "fold_in", "gumbel", "key", "normal",
    "permutation", "randint", "split", "truncated_normal", "uniform",
]  # fmt: skip
