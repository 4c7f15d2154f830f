"""`fx.nn.attention` with its masks: positions, lengths, windows and shared heads, all in terms of the one op.

What depends on positions alone is written as comparisons of counters, which the compiler reads: nothing of it is stored.
"""

from __future__ import annotations

from typing import Any

from fluxir.errors import error
from fluxir.frontend.api_elementwise import float_operand
from fluxir.frontend.tensor import Tensor, as_tensor, cast, constant, emit, emit_many, promote_operands
from fluxir.frontend.trace import public
from fluxir.ir.dims import Dim, floordiv, require_equal
from fluxir.ir.dtypes import i64
from fluxir.ops.rules import broadcast_shapes


@public
def scaled_dot_product_attention(
    q: Any, k: Any, v: Any, /, mask: Any = None,
    *, is_causal: bool = False, scale: float | None = None, bias: Any = None, window: int | None = None, lengths: Any = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale + mask) v (Vaswani et al. 2017): q [..., S, D], k [..., T, D], v [..., T, E] -> [..., S, E].

    `scale` is 1 / sqrt(D) by default. A bool mask is true where attention is allowed, a float mask is added; it
    broadcasts to [..., S, T]; so does `bias`, which is added as well. Leading axes of q, k, v broadcast, and q may have a
    multiple of the heads of k and v (axis -3): then as many neighbouring heads of q share one of theirs (Ainslie et al. 2023).

    `is_causal` lets position s attend to t <= s, `window` to t > s - window, and `lengths` (integers that broadcast to the
    leading axes, such as [B, 1] for [B, heads]) to t < length. A position that may attend to nothing gives 0.
    """
    a, b, c = (float_operand("attention", t) for t in promote_operands(q, k, v))
    scores = (a.shape[-2], b.shape[-2])
    seen = [_counter(scores, 1) > _counter(scores, 0) - constant(window, i64)] if window is not None else []
    if lengths is not None:
        n = as_tensor(lengths)
        if not n.dtype.is_integer:
            raise error("FX0209", f"attention: lengths are integers, not {n.dtype}")
        seen.append(_counter(scores, 1) < emit("reshape", cast(n, i64), shape=(*n.shape, 1, 1)))
    biases = []
    for given in (mask, bias):
        if given is not None:
            m = as_tensor(given)
            if m.dtype.is_bool:
                seen.append(m)
            else:
                biases.append(cast(m, a.dtype))
    masks = [_joined("add", biases), _joined("logical_and", seen)]
    group = _heads_to_a_head(a, b, c)
    if group != 1:
        masks = [m if m is None or m.ndim < 3 else _grouped(m, group) for m in masks]
        a = _grouped(a, group)
        b, c = (emit("reshape", t, shape=(*t.shape[:-2], 1, *t.shape[-2:])) for t in (b, c))
    batch = broadcast_shapes("attention", [t.shape[:-2] for t in (a, b, c)])
    rank = len(batch) + 2
    a = a if a.shape[:-2] == batch else emit("broadcast", a, shape=(*batch, *a.shape[-2:]))
    b, c = (t if t.ndim == rank else emit("reshape", t, shape=(*[1] * (rank - t.ndim), *t.shape)) for t in (b, c))
    y, _ = emit_many("attention", a, b, c, *[m for m in masks if m is not None], causal=is_causal, scale=scale)
    return y if group == 1 else emit("reshape", y, shape=(*y.shape[:-4], y.shape[-4] * group, *y.shape[-2:]))


attention = scaled_dot_product_attention


def _counter(scores: tuple[Dim, Dim], axis: int) -> Tensor:
    return emit("iota", shape=scores, axis=axis, dtype="i64")


def _joined(op: str, parts: list[Tensor]) -> Tensor | None:
    """The parts as one mask."""
    out: Tensor | None = None
    for p in parts:
        out = p if out is None else emit(op, out, p)
    return out


def _heads_to_a_head(q: Tensor, k: Tensor, v: Tensor) -> Dim:
    """How many heads of q share a head of k and v."""
    if (
        min(q.ndim, k.ndim, v.ndim) < 3
        or k.shape[-3] != v.shape[-3]
        or k.shape[-3] in (1, q.shape[-3])
        or q.shape[-3] == 1
    ):
        return 1
    group = floordiv(q.shape[-3], k.shape[-3])
    return group if require_equal(group * k.shape[-3], q.shape[-3]) else 1


def _grouped(x: Tensor, group: Dim) -> Tensor:
    """[..., heads, S, T] -> [..., heads / group, group, S, T]; one head broadcasts to both."""
    heads = x.shape[-3]
    apart = (1, 1) if heads == 1 else (floordiv(heads, group), group)
    return emit("reshape", x, shape=(*x.shape[:-3], *apart, *x.shape[-2:]))


__all__ = ["attention", "scaled_dot_product_attention"]
