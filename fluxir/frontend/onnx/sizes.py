"""Arithmetic on symbolic sizes: what operators that compute do with integers that stand for sizes.

A rule takes numpy arrays of objects (ints and symbolic sizes, mixed with plain arrays) and returns such an array, or a
plain one of truth values, or None where the answer is no expression of sizes. A comparison that the known facts do not
decide raises FX0301; then the importer makes tensors of the sizes and lets the program compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fluxir.frontend.onnx.values import Array
from fluxir.ir import dims
from fluxir.ir.dims import Poly

__all__ = ["RULES"]

RULES: dict[str, Callable[..., Any]] = {}


def _each(name: str, f: Callable[..., Any], n: int) -> None:
    ufunc = np.frompyfunc(f, n, 1)

    def rule(*xs: Any, **_: Any) -> Any:
        return np.asarray(ufunc(*xs), object)

    RULES[name] = rule


def _quotient(a: Any, b: Any) -> Any:
    """ONNX divides towards zero; that is rounding down where neither number is negative."""
    if isinstance(a, int | np.integer) and isinstance(b, int | np.integer):
        q = abs(int(a)) // abs(int(b))
        return q if (a < 0) == (b < 0) else -q
    if not (dims.prove_le(0, a) and dims.prove_le(1, b)):
        return _undecided(a)
    return dims.floordiv(a, b)


def _remainder(a: Any, b: Any) -> Any:
    return dims.mod(a, b) if dims.prove_le(1, b) else _undecided(a)


def _undecided(a: Any) -> Any:
    from fluxir.errors import error

    raise error("FX0301", f"{a} has no value while the model is read")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Poly) or isinstance(b, Poly):
        if dims.prove_equal(a, b):
            return True
        if dims.prove_lt(a, b) or dims.prove_lt(b, a):
            return False
        _undecided(a)
    return bool(a == b)


def _integer(x: Any) -> Any:
    return x if isinstance(x, Poly) else int(x)


_each("Add", lambda a, b: _integer(a) + _integer(b), 2)
_each("Sub", lambda a, b: _integer(a) - _integer(b), 2)
_each("Mul", lambda a, b: _integer(a) * _integer(b), 2)
_each("Div", _quotient, 2)
_each("Mod", _remainder, 2)
_each("Neg", lambda a: -_integer(a), 1)
for _name in ("Identity", "Floor", "Ceil", "Round"):
    _each(_name, _integer, 1)


def _extreme(name: str, f: Callable[[Any, Any], Any]) -> None:
    def rule(*xs: Any) -> Any:
        out = xs[0]
        for x in xs[1:]:
            out = np.asarray(np.frompyfunc(f, 2, 1)(out, x), object)
        return out

    RULES[name] = rule


_extreme("Max", dims.maximum)
_extreme("Min", dims.minimum)


def _relation(name: str, f: Callable[[Any, Any], bool]) -> None:
    RULES[name] = lambda a, b: np.asarray(np.frompyfunc(f, 2, 1)(a, b)).astype(bool)


_relation("Equal", _equal)
_relation("Less", lambda a, b: bool(_integer(a) < _integer(b)))
_relation("Greater", lambda a, b: bool(_integer(a) > _integer(b)))
_relation("LessOrEqual", lambda a, b: bool(_integer(a) <= _integer(b)))
_relation("GreaterOrEqual", lambda a, b: bool(_integer(a) >= _integer(b)))


def _where(condition: Array, a: Any, b: Any) -> Any:
    return None if condition.dtype == object else np.where(condition, a, b)


RULES["Where"] = _where


def _reduction(name: str, f: Callable[[Any, Any], Any], empty: int) -> None:
    def rule(x: Array, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **old: Any) -> Any:
        named = old.get("axes", axes)
        over = tuple(range(x.ndim)) if named is None or len(named) == 0 else tuple(int(a) for a in np.ravel(named))
        if named is not None and len(named) == 0 and noop_with_empty_axes:
            return x
        out: Any = x
        for axis in sorted((a % x.ndim for a in over), reverse=True):
            parts = [np.take(out, i, axis) for i in range(out.shape[axis])]
            total: Any = np.full(out.shape[:axis] + out.shape[axis + 1 :], empty, object)
            for p in parts:
                total = np.asarray(np.frompyfunc(f, 2, 1)(total, p), object)
            out = np.expand_dims(total, axis) if keepdims else total
        return np.asarray(out, object)

    RULES[name] = rule


_reduction("ReduceSum", lambda a, b: a + b, 0)
_reduction("ReduceProd", lambda a, b: a * b, 1)
