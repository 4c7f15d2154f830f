"""Transcendental functions as recipes: straight-line IR of polynomials, with a published error bound each.

`RECIPES[name](b, x, ...)` emits the function through builder `b` and returns its value; operands are f32 or f64 and all
of one type (f16 and bf16: cast to f32, apply, cast back). `BOUNDS[name][format]` is the largest error in ulp of the
correctly rounded result, over all arguments; `tests/test_approx.py` holds the recipes to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxir.ops.approx import exponential, inverse_trigonometric, logarithm, power, special, trigonometric

RECIPES: dict[str, Callable[..., Any]] = {
    "exp": exponential.exp,
    "exp2": exponential.exp2,
    "expm1": exponential.expm1,
    "sigmoid": exponential.sigmoid,
    "sinh": exponential.sinh,
    "cosh": exponential.cosh,
    "tanh": exponential.tanh,
    "log": logarithm.log,
    "log2": logarithm.log2,
    "log10": logarithm.log10,
    "log1p": logarithm.log1p,
    "asinh": logarithm.asinh,
    "acosh": logarithm.acosh,
    "atanh": logarithm.atanh,
    "sin": trigonometric.sin,
    "cos": trigonometric.cos,
    "tan": trigonometric.tan,
    "asin": inverse_trigonometric.asin,
    "acos": inverse_trigonometric.acos,
    "atan": inverse_trigonometric.atan,
    "atan2": inverse_trigonometric.atan2,
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.lgamma,
    "pow": power.pow,
    "cbrt": power.cbrt,
    "rsqrt": power.rsqrt,
}

BOUNDS: dict[str, dict[str, float]] = {
    name: {"f32": 2.0 if name in ("exp", "log", "sin", "cos", "tanh") else 4.0, "f64": 4.0} for name in RECIPES
}
