"""Attention: softmax(q k^T * scale + bias) v as one op, and its gradient as another.

Both are composites: `expand` writes them as products and a softmax, which is how targets without a kernel for the whole
compute them, and how their own derivatives are made. `attention` gives the logarithm of each row's sum beside the weighted
values, so that the gradient can compute any weight again from its score (Dao et al. 2022): nothing of the size of the scores
needs to be kept. The products take their operands in the given type, so that tensor cores can do them; the softmax between
them is f32. Axes before the last two are batch axes; those of k, v and the masks broadcast to those of q, which is how
several heads of queries share one of keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, product, require_equal
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops.adjoint import unbroadcast, zeros
from fluxir.ops.composite import INF, Builder, composite, select, wide
from fluxir.ops.nest import accumulator, cast
from fluxir.ops.rules import broadcast_shapes, check_dtype, tensor_operands

WIDEST = 256  # columns of q, k or v up to which a kernel keeps a row of each at hand


# ---- types -----------------------------------------------------------------------------------------------------------


def _operand_types(name: str, t: Sequence[Type], masks: Sequence[Type]) -> tuple[TensorType, TensorType, TensorType]:
    """q, k and v, checked against each other and against the masks."""
    q, key, v = tensor_operands(name, t, 3)
    check_dtype(name, q.dtype, "float")
    if not q.dtype == key.dtype == v.dtype:
        raise error("FX0201", f"{name}: q, k, v are {q}, {key}, {v}", help="cast them to one type")
    if not q.rank == key.rank == v.rank or q.rank < 2:
        raise error(
            "FX0220",
            f"{name}: q[...,S,D], k[...,T,D], v[...,T,E] have the same rank of at least 2, not {q}, {key}, {v}",
        )
    pairs = [(q.shape[i], x.shape[i]) for x in (key, v) for i in range(q.rank - 2) if x.shape[i] != 1]
    pairs += [(q.shape[-1], key.shape[-1]), (key.shape[-2], v.shape[-2])]
    for d, e in pairs:
        if not require_equal(d, e):
            raise error(
                "FX0203",
                f"{name}: {d} is not {e} in q: {q}, k: {key}, v: {v}",
                help="q[...,S,D], k[...,T,D], v[...,T,E]",
            )
    scores = (*q.shape[:-1], key.shape[-2])
    for mask in tensor_operands(name, masks):
        if not (mask.dtype.is_bool or mask.dtype == q.dtype):
            raise error("FX0209", f"{name}: the mask must be bool or {q.dtype}, not {mask}")
        if broadcast_shapes(name, [mask.shape, scores]) != scores:
            raise error(
                "FX0202", f"{name}: the mask {mask} does not broadcast to the scores [{','.join(map(str, scores))}]"
            )
    if len(masks) > 2 or (len(masks) == 2 and [m.dtype.is_bool for m in masks] != [False, True]):
        raise error("FX0108", f"{name} takes a float mask, a bool mask, or one of each in this order")
    return q, key, v


def _attention_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) not in (3, 4, 5):
        raise error("FX0108", f"attention takes q, k, v and optionally masks, {len(t)} operands given")
    q, _, v = _operand_types("attention", t[:3], t[3:])
    return [q.with_shape((*q.shape[:-1], v.shape[-1])), TensorType(accumulator(q.dtype), q.shape[:-1])]


def _gradient_type(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) not in (6, 7, 8):
        raise error("FX0108", f"attention_grad takes q, k, v, ct, lse, delta and masks, {len(t)} operands given")
    q, key, v = _operand_types("attention_grad", t[:3], t[6:])
    rows = TensorType(accumulator(q.dtype), q.shape[:-1])
    for have, want in zip(t[3:6], (q.with_shape((*q.shape[:-1], v.shape[-1])), rows, rows), strict=True):
        if have != want:
            raise error("FX0202", f"attention_grad: ct, lse and delta must be {want} here, not {have}")
    return [q, key, v]


# ---- meaning in numpy ---------------------------------------------------------------------------------------------------


def default_scale(scale: float | None, depth: int) -> float:
    return 1.0 / math.sqrt(max(depth, 1)) if scale is None else scale


def _ref_scores(a: Attrs, q: Any, k: Any, masks: Sequence[Any]) -> tuple[Any, Any]:
    """The scores in f64, and which of them are those of the operands (None: all): the others are `fill`."""
    s = q @ np.swapaxes(k, -1, -2) * default_scale(a.scale, q.shape[-1])
    seen = None
    for m in masks:
        if m.dtype == np.bool_:
            seen = np.broadcast_to(m, s.shape)
        else:
            s = s + m.astype(np.float64)
    if a.causal:
        lower = np.tri(*s.shape[-2:], dtype=np.bool_)
        seen = np.broadcast_to(lower, s.shape) if seen is None else seen & lower
    return (s if seen is None else np.where(seen, s, a.fill)), seen


def _attention_ref(a: Attrs, q: Any, k: Any, v: Any, *masks: Any) -> Any:
    q64, k64, v64 = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    s, _ = _ref_scores(a, q64, k64, [np.asarray(m) for m in masks])
    top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    base = np.where(np.isneginf(top), 0.0, top)
    e = np.exp(s - base)
    total = e.sum(axis=-1, keepdims=True)
    some = total if a.undefined else np.where(total == 0, 1.0, total)
    d = np.asarray(q).dtype
    lse = (np.log(some) + base)[..., 0]
    return (e / some @ v64).astype(d), lse.astype(d if d.itemsize > 2 else np.float32)


def _gradient_ref(a: Attrs, q: Any, k: Any, v: Any, ct: Any, lse: Any, delta: Any, *masks: Any) -> Any:
    q64, k64, v64, ct64, lse64, delta64 = (np.asarray(x).astype(np.float64) for x in (q, k, v, ct, lse, delta))
    s, seen = _ref_scores(a, q64, k64, [np.asarray(m) for m in masks])
    p = np.exp(s - lse64[..., None])
    ds = p * (ct64 @ np.swapaxes(v64, -1, -2) - delta64[..., None])
    ds = (ds if seen is None else np.where(seen, ds, 0.0)) * default_scale(a.scale, q64.shape[-1])
    turned = np.swapaxes(ds, -1, -2)
    out = ds @ k64, turned @ q64, np.swapaxes(p, -1, -2) @ ct64
    return tuple(_ref_unbroadcast(g, np.shape(x)).astype(np.asarray(q).dtype) for g, x in zip(out, (q, k, v)))


def _ref_unbroadcast(x: Any, shape: tuple[int, ...]) -> Any:
    axes = tuple(i for i, (n, m) in enumerate(zip(x.shape, shape)) if n != m)
    return x.sum(axis=axes, keepdims=True) if axes else x


# ---- expansion -------------------------------------------------------------------------------------------------------------


class _Scores:
    """The pieces of an expansion: scores, which of them count, products over the batch axes."""

    def __init__(self, b: Builder, o: Op, masks: Sequence[Value]) -> None:
        q, k, v = o.operands[:3]
        self.b, self.o, self.masks = b, o, masks
        self.rank, self.dtype = len(q.type.shape), q.type.dtype
        self.batch = tuple(q.type.shape[:-2])
        self.q, self.k, self.v = q, self.spread(k), self.spread(v)

    def spread(self, x: Value) -> Value:
        shape = (*self.batch, *x.type.shape[-2:])
        return x if tuple(x.type.shape) == shape else self.b.broadcast(x, shape=shape)

    def dot(self, x: Value, y: Value, along_x: int, along_y: int) -> Value:
        """The product over axis `along_x` and `along_y` (0 or 1, after the batch axes), in the wide type."""
        n, batch = self.rank - 2, tuple(range(self.rank - 2))
        out = self.b.dot(
            x, y, lhs_contract=(n + along_x,), rhs_contract=(n + along_y,), lhs_batch=batch, rhs_batch=batch
        )
        return wide(self.b, out)  # type: ignore[no-any-return]

    def scaled(self, s: Value) -> Value:
        b, depth, scale = self.b, self.q.type.shape[-1], self.o.attrs.scale
        if scale is not None or isinstance(depth, int):
            return b.mul(s, default_scale(scale, depth if isinstance(depth, int) else 1))  # type: ignore[no-any-return]
        some = b.maximum(b.dim(value=depth), b.index(1))
        return b.mul(s, b.rsqrt(b.cast(some, dtype=s.type.dtype)))  # type: ignore[no-any-return]

    def seen(self, s: Value) -> list[Value]:
        """The conditions under which a score counts, each of which broadcasts to the scores."""
        b, found = self.b, [m for m in self.masks if m.type.dtype.is_bool]
        if self.o.attrs.causal:
            row, column = (b.iota(shape=s.type.shape[-2:], axis=i, dtype="i64") for i in (0, 1))
            found.append(b.le(column, row))
        return found

    def scores(self) -> Value:
        b = self.b
        s = self.scaled(self.dot(self.q, self.k, 1, 1))
        for m in self.masks:
            if not m.type.dtype.is_bool:
                s = b.add(s, wide(b, m))
        for c in self.seen(s):
            s = select(b, c, s, self.o.attrs.fill)
        return s


def _attention(b: Builder, o: Op) -> Any:
    """Scores, softmax in f32, and the weighted sum; and the logarithm of the sum of exponentials."""
    x = _Scores(b, o, o.operands[3:])
    last, s = (x.rank - 1,), x.scores()
    top = b.max(s, axes=last, keepdims=True)
    base = select(b, b.eq(top, -INF), 0.0, top)
    e = b.exp(b.sub(s, base))
    total = b.sum(e, axes=last, keepdims=True)
    some = total if o.attrs.undefined else select(b, b.eq(total, 0.0), 1.0, total)
    y = cast(b, x.dot(cast(b, b.div(e, some), x.dtype), x.v, 1, 0), x.dtype)
    return y, b.reshape(b.add(b.log(some), base), shape=o.results[1].type.shape)


def _weights(b: Builder, s: Value, lse: Value) -> Value:
    """softmax again from the scores."""
    return b.exp(b.sub(s, _column(b, lse)))  # type: ignore[no-any-return]


def _column(b: Builder, x: Value) -> Value:
    return b.reshape(x, shape=(*x.type.shape, 1))  # type: ignore[no-any-return]


def _score_gradient(b: Builder, x: _Scores, s: Value, p: Value, ct: Value, delta: Value) -> Value:
    """The cotangent of the scores (with their bias, before they are replaced)."""
    ds = b.mul(p, b.sub(x.dot(ct, x.v, 1, 1), _column(b, delta)))
    for c in x.seen(s):
        ds = select(b, c, ds, 0.0)
    return ds  # type: ignore[no-any-return]


def _gradient(b: Builder, o: Op) -> Any:
    _, _, _, ct, lse, delta, *masks = o.operands
    x = _Scores(b, o, masks)
    s = x.scores()
    p = _weights(b, s, lse)
    ds = cast(b, x.scaled(_score_gradient(b, x, s, p, ct, delta)), x.dtype)
    grads = x.dot(ds, x.k, 1, 0), x.dot(ds, x.q, 0, 0), x.dot(cast(b, p, x.dtype), ct, 0, 0)
    return [cast(b, unbroadcast_to(b, g, v), x.dtype) for g, v in zip(grads, o.operands[:3], strict=True)]


def unbroadcast_to(b: Builder, x: Value, like: Value) -> Value:
    return unbroadcast(b, x, like.type.shape)


# ---- derivatives -----------------------------------------------------------------------------------------------------------


def _attention_vjp(b: Builder, o: Op, cts: Sequence[Value | None]) -> list[Any]:
    """`attention_grad`; delta = sum(y ct) less the cotangent of the rows' logarithms is all that it needs to know of them.
    The cotangent of a bias has the size of the scores where the bias has, and is computed apart."""
    q, k, v, *masks = o.operands
    y, lse = o.results
    ct = zeros(b, y.type) if cts[0] is None else cts[0]
    delta = b.sum(b.mul(wide(b, y), wide(b, ct)), axes=(len(y.type.shape) - 1,))
    if cts[1] is not None:
        delta = b.sub(delta, cts[1])
    out: list[Any] = list(b.attention_grad(q, k, v, ct, lse, delta, *masks, **o.attrs))
    for m in masks:
        if m.type.dtype.is_bool:
            out.append(None)
            continue
        x = _Scores(b, o, masks)
        s = x.scores()
        ds = _score_gradient(b, x, s, _weights(b, s, lse), ct, delta)
        out.append(cast(b, unbroadcast_to(b, ds, m), x.dtype))
    return out


def _attention_jvp(b: Builder, o: Op, tangents: Sequence[Value | None]) -> list[Any]:
    """With ds the tangent of the scores: lse' = sum(p ds), y' = (p (ds - lse')) v + p v'."""
    _, _, _, *masks = o.operands
    x = _Scores(b, o, masks)
    s = x.scores()
    p = _weights(b, s, o.results[1])
    dq, dk, dv, *dmasks = tangents
    parts = []
    if dq is not None:
        parts.append(x.scaled(x.dot(dq, x.k, 1, 1)))
    if dk is not None:
        parts.append(x.scaled(x.dot(x.q, x.spread(dk), 1, 1)))
    parts += [wide(b, t) for t in dmasks if t is not None]
    y: Value | None = None if dv is None else x.dot(cast(b, p, x.dtype), x.spread(dv), 1, 0)
    if not parts:
        return [None if y is None else cast(b, y, x.dtype), None]
    ds = parts[0]
    for part in parts[1:]:
        ds = b.add(ds, part)
    if tuple(ds.type.shape) != tuple(s.type.shape):
        ds = b.broadcast(ds, shape=s.type.shape)
    for c in x.seen(s):
        ds = select(b, c, ds, 0.0)
    dlse = b.sum(b.mul(p, ds), axes=(x.rank - 1,))
    moved = x.dot(cast(b, b.mul(p, b.sub(ds, _column(b, dlse))), x.dtype), x.v, 1, 0)
    y = moved if y is None else b.add(y, moved)
    return [cast(b, y, x.dtype), dlse]


# ---- what a compiler asks ------------------------------------------------------------------------------------------------


def in_one_kernel(o: Op, kind: str) -> bool:
    """Whether a target has a kernel for the whole op: on CPUs, where rows of q, k and v have a known, moderate width."""
    q, k, v = (x.type for x in o.operands[:3])
    widths = (q.shape[-1], v.shape[-1])
    some = all(isinstance(d, int) and 0 < d <= WIDEST for d in widths)
    together = o.name == "attention" or k.shape[:-2] == v.shape[:-2]  # the gradients of keys and values go side by side
    return kind == "cpu" and some and together and 0 not in (*q.shape, *k.shape)


def _cost(products: int) -> Any:
    def cost(o: Op) -> Dim:
        q, k, v = (x.type.shape for x in o.operands[:3])
        return product(q[:-1]) * k[-2] * (q[-1] + v[-1]) * products

    return cost


_ATTRS = {"causal": ("bool", False), "scale": ("float", None), "fill": ("float", -INF), "undefined": ("bool", False)}


def _first_row_only(rng: Any) -> list[Any]:
    mask = np.array([[True, False], [False, False]])
    return [*rng.uniform(-1, 1, (3, 2, 3)).astype(np.float32), mask]


composite(
    "attention",
    _attention_type,
    _attention,
    _attention_ref,
    attrs=_ATTRS,
    vjp=_attention_vjp,
    jvp=_attention_jvp,
    whole=in_one_kernel,
    cost=_cost(2),
    samples=(
        sample("f32[2,3,4]", "f32[2,5,4]", "f32[2,5,6]"),
        sample("f32[4,4]", "f32[4,4]", "f32[4,4]", causal=True),
        sample("f32[2,2,3,4]", "f32[2,2,3,4]", "f32[2,2,3,4]", "bool[3,3]", scale=0.5),
        sample("f64[3,4]", "f64[5,4]", "f64[5,2]", "f64[3,5]"),
        sample("f16[2,3,8]", "f16[2,3,8]", "f16[2,3,8]", causal=True, low=-1, high=1, rtol=4e-3),
        sample("bf16[3,8]", "bf16[3,8]", "bf16[3,8]", low=-1, high=1, rtol=3e-2),
        sample("f32[0,3,4]", "f32[0,3,4]", "f32[0,3,4]"),
        sample("f32[2,3]", "f32[2,3]", "f32[2,3]", "bool[2,2]", make=_first_row_only),
        sample("f32[2,3,5,4]", "f32[2,1,7,4]", "f32[2,1,7,4]", "f32[5,7]", "bool[2,1,1,7]", fill=-3.0),
    ),
    doc="(softmax(q k^T * scale + mask) v, log of the sum of each row's exponentials) for q[...,S,D], k[...,T,D], v[...,T,E]. A "
    "float mask is added; where a bool one is false, or `causal` and the column above the row, the score is `fill`. Batch axes "
    "of k, v and the masks broadcast. `scale` defaults to 1/sqrt(D). A row that sees nothing gives 0, or NaN with `undefined`.",
)


def _gradient_inputs(
    rng: Any, group: int = 1, dtype: Any = np.float64, masked: bool = False, **attrs: Any
) -> list[Any]:
    """Operands of which `lse` and `delta` are those of the forward pass."""
    q, ct = rng.uniform(-1, 1, (2, 2, 3, 4))
    k, v = rng.uniform(-1, 1, (2, 2 // group, 5, 4))
    masks = [rng.uniform(-1, 1, (3, 5)), rng.random((2, 1, 5)) < 0.6] if masked else []
    a = Attrs({"causal": False, "scale": None, "fill": -INF, "undefined": False, **attrs})
    y, lse = _attention_ref(a, q, k, v, *masks)
    rows = dtype if np.dtype(dtype).itemsize > 2 else np.float32
    tensors, sums = [x.astype(dtype) for x in (q, k, v, ct)], [x.astype(rows) for x in (lse, (y * ct).sum(-1))]
    return [*tensors, *sums, *[m.astype(dtype) for m in masks[:1]], *masks[1:]]


composite(
    "attention_grad",
    _gradient_type,
    _gradient,
    _gradient_ref,
    attrs=_ATTRS,
    whole=in_one_kernel,
    cost=_cost(5),
    samples=(
        sample("f32[2,3,4]", "f32[2,5,4]", "f32[2,5,4]", "f32[2,3,4]", "f32[2,3]", "f32[2,3]",
               make=lambda rng: _gradient_inputs(rng, dtype=np.float32)),
        sample("f64[2,3,4]", "f64[1,5,4]", "f64[1,5,4]", "f64[2,3,4]", "f64[2,3]", "f64[2,3]", causal=True,
               make=lambda rng: _gradient_inputs(rng, 2, causal=True)),
        sample("f32[2,3,4]", "f32[2,5,4]", "f32[2,5,4]", "f32[2,3,4]", "f32[2,3]", "f32[2,3]", "f32[3,5]", "bool[2,1,5]",
               fill=-1.0, make=lambda rng: _gradient_inputs(rng, dtype=np.float32, masked=True, fill=-1.0)),
        sample("f32[0,3,4]", "f32[0,3,4]", "f32[0,3,4]", "f32[0,3,4]", "f32[0,3]", "f32[0,3]",
               make=lambda rng: [np.zeros((0, 3, 4)[: 3 - i // 4], np.float32) for i in range(6)]),
        sample("bf16[2,3,4]", "bf16[2,5,4]", "bf16[2,5,4]", "bf16[2,3,4]", "f32[2,3]", "f32[2,3]",
               make=lambda rng: _gradient_inputs(rng, dtype=DTYPES["bf16"].numpy)),
    ),
    doc="Cotangents of q, k and v of `attention` from that of its result, ct[...,S,E], the logarithms lse[...,S] that it gave, "
    "and delta[...,S] = sum(y ct) less the cotangent of lse. Weights are computed again from scores and lse.",
)  # fmt: skip


__all__ = ["default_scale", "in_one_kernel"]
