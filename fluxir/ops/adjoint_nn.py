"""Derivatives of composites that have a better one than their expansion's: shorter, or right where that has a kink.

Half-precision operands are computed in f32 and the cotangent is rounded once, as in the expansions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ops.adjoint import Builder
from fluxir.ops.adjoint_reduce import Cotangents, number, stretched, where
from fluxir.ops.nest import accumulator, cast


def _wide(b: Builder, *xs: Value) -> list[Value]:
    return [cast(b, x, accumulator(x.dtype)) for x in xs]


def _narrow(b: Builder, o: Op, x: Value) -> list[Any]:
    return [cast(b, x, o.operands[0].dtype)]


def _along(b: Builder, o: Op, x: Value) -> Value:
    return b.sum(x, axes=(o.attrs.axis,), keepdims=True)  # type: ignore[no-any-return]


def softmax_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """y (ct - sum(y ct)): symmetric, so that it serves both modes."""
    y, ct = _wide(b, o.result, cts[0])
    return _narrow(b, o, b.mul(y, b.sub(ct, _along(b, o, b.mul(y, ct)))))


def logsoftmax_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    out, ct = _wide(b, o.result, cts[0])
    return _narrow(b, o, b.sub(ct, b.mul(b.exp(out), _along(b, o, ct))))


def logsoftmax_jvp(b: Builder, o: Op, tangents: Sequence[Any]) -> list[Any]:
    out, t = _wide(b, o.result, tangents[0])
    return _narrow(b, o, b.sub(t, _along(b, o, b.mul(b.exp(out), t))))


def _weights(b: Builder, o: Op) -> Value:
    """softmax over the reduced axes; zeros where all elements are -inf."""
    x, out = _wide(b, o.operands[0], o.result)
    base = b.select(b.eq(out, number(b, float("-inf"), out)), number(b, 0, out), out)
    return b.exp(b.sub(x, stretched(b, o, base)))  # type: ignore[no-any-return]


def logsumexp_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    (ct,) = _wide(b, cts[0])
    return _narrow(b, o, b.mul(_weights(b, o), stretched(b, o, ct)))


def logsumexp_jvp(b: Builder, o: Op, tangents: Sequence[Any]) -> list[Any]:
    (t,) = _wide(b, tangents[0])
    total = b.sum(b.mul(_weights(b, o), t), axes=o.attrs.axes, keepdims=o.attrs.keepdims)
    return _narrow(b, o, total)


def relu_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """1 above 0, else 0, at 0 too."""
    (x,) = o.operands
    return [where(b, b.gt(x, number(b, 0, x)), cts[0])]


def relu6_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    (x,) = o.operands
    return [where(b, b.logical_and(b.gt(x, number(b, 0, x)), b.lt(x, number(b, 6, x))), cts[0])]


def elu_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """1 above 0, alpha e**x below and at 0."""
    x, ct = _wide(b, o.operands[0], cts[0])
    above, zero = b.gt(x, number(b, 0, x)), number(b, 0, x)
    below = b.mul(b.exp(b.select(above, zero, x)), o.attrs.alpha)
    return _narrow(b, o, b.select(above, ct, b.mul(ct, below)))


def softplus_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """sigmoid(x): smooth at 0, where the parts of the expansion have kinks that cancel in the first derivative only."""
    x, ct = _wide(b, o.operands[0], cts[0])
    return _narrow(b, o, b.mul(ct, b.sigmoid(x)))


FLAT = 40.0  # beyond it the slope of gelu is 0 or 1 in every type


def gelu_vjp(b: Builder, o: Op, cts: Cotangents) -> list[Any]:
    """P(x) + x P'(x), where P is the normal distribution function or its tanh form; 0 and 1 at infinity."""
    x, ct = _wide(b, o.operands[0], cts[0])
    near = b.clamp(x, number(b, -FLAT, x), number(b, FLAT, x))
    square = b.mul(near, near)
    if o.attrs.approximate:
        scale = 2.0 * math.sqrt(2.0 / math.pi)
        p = b.sigmoid(b.mul(b.mul(near, b.add(b.mul(square, 0.044715), 1.0)), scale))
        inner = b.mul(b.add(b.mul(square, 3 * 0.044715), 1.0), scale)
        density = b.mul(b.mul(p, b.sub(number(b, 1, x), p)), inner)
    else:
        p = b.mul(b.add(b.erf(b.mul(near, math.sqrt(0.5))), 1.0), 0.5)
        density = b.mul(b.exp(b.mul(square, -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
    return _narrow(b, o, b.mul(ct, b.add(p, b.mul(near, density))))
