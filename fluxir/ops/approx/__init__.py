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

# (f32, f64). Measured maxima and how they were found are in docs/numerics.md; these are a quarter or so above.
_BOUNDS = {
    "exp": (1.0, 1.0),
    "exp2": (1.0, 1.0),
    "expm1": (1.75, 2.25),
    "sigmoid": (2.5, 2.5),
    "sinh": (2.0, 2.5),
    "cosh": (2.0, 2.0),
    "tanh": (1.5, 1.5),
    "log": (1.0, 1.0),
    "log2": (1.0, 1.0),
    "log10": (1.0, 1.0),
    "log1p": (1.25, 1.25),
    "asinh": (1.25, 1.25),
    "acosh": (1.25, 1.25),
    "atanh": (1.25, 1.25),
    "sin": (1.0, 1.0),
    "cos": (1.0, 1.0),
    "tan": (2.5, 2.5),
    "asin": (2.0, 2.0),
    "acos": (1.5, 1.5),
    "atan": (2.0, 2.25),
    "atan2": (2.5, 3.0),
    "erf": (1.25, 1.25),
    "erfc": (3.5, 3.5),
    "lgamma": (0.75, 3.0),
    "pow": (1.25, 1.5),
    "cbrt": (0.75, 0.75),
    "rsqrt": (1.5, 1.5),
}

BOUNDS: dict[str, dict[str, float]] = {n: {"f32": single, "f64": double} for n, (single, double) in _BOUNDS.items()}
"""f64 lgamma of negative arguments is the exception: terms cancel between the poles, and the error is at most 6 ulp of the
largest of 1, the result and lgamma(1 - x)."""
