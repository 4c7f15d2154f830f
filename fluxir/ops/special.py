"""Functions defined by their expansion that calculus needs: digamma, the derivative of lgamma."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxir.ir.core import Op
from fluxir.ir.opdef import sample
from fluxir.ops.composite import Builder, composite, float_operand, wide, wide_array
from fluxir.ops.nest import cast

# Asymptotic series of digamma: B_2k / 2k (Abramowitz & Stegun 6.3.18).
SERIES = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)
SHIFT = 10  # the series is used from here on; smaller arguments step up by psi(x + 1) = psi(x) + 1/x


def _digamma(b: Builder, o: Op) -> Any:
    (given,) = o.operands
    x = wide(b, given)
    one = b.const(1, dtype=x.dtype)
    low = b.le(x, b.const(0, dtype=x.dtype))
    y = b.select(low, b.sub(one, x), x)  # psi(x) = psi(1 - x) - pi / tan(pi x)
    steps = b.div(one, y)
    for k in range(1, SHIFT):
        steps = b.add(steps, b.div(one, b.add(y, float(k))))
    z = b.add(y, float(SHIFT))
    inverse = b.div(one, z)
    square = b.mul(inverse, inverse)
    series = b.const(SERIES[-1], dtype=x.dtype)
    for c in reversed(SERIES[:-1]):
        series = b.add(b.mul(series, square), c)
    above = b.sub(b.sub(b.log(z), b.mul(inverse, 0.5)), b.add(b.mul(series, square), steps))
    turn = b.mul(b.sub(x, b.round(x)), math.pi)
    angle = b.select(low, turn, one)  # cos / sin: 1 / tan is not differentiable at a right angle, where tan overflows
    below = b.sub(above, b.mul(b.div(b.cos(angle), b.sin(angle)), math.pi))
    return cast(b, b.select(low, below, above), given.type.dtype)


def _digamma_ref(x: Any) -> Any:
    w = np.asarray(wide_array(x), np.float64)
    low = w <= 0
    y = np.where(low, 1 - w, w)
    steps = sum(1 / (y + k) for k in range(SHIFT))
    z = y + SHIFT
    series = sum(c / z ** (2 * k + 2) for k, c in enumerate(SERIES))
    above = np.log(z) - 0.5 / z - series - steps
    with np.errstate(all="ignore"):
        below = above - np.pi / np.tan(np.pi * (w - np.rint(w)))
    return np.where(low, below, above).astype(np.asarray(x).dtype)


composite(
    "digamma",
    lambda t, a, k: [float_operand("digamma", t)],
    _digamma,
    lambda a, x: _digamma_ref(x),
    samples=tuple(sample(t, low=0.1, high=9) for t in ("f32[3,4]", "f64[5]", "f16[5]", "bf16[5]", "f32", "f32[0,3]"))
    + (sample("f64[6]", make=lambda rng: [np.array([-0.5, -1.25, -7.75, 1e-3, 40.0, 1e6])]),),
    doc="The derivative of lgamma. Infinite at 0 and the negative integers.",
)
