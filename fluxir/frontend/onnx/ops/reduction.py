"""Operators that reduce axes, scan along them, or order elements; and normalisations that are made of such."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.frontend import library as fx
from fluxir.frontend.onnx.graph import Results
from fluxir.frontend.onnx.registry import Int, Ints, Known, op
from fluxir.frontend.onnx.values import ints_of, scalar_of, sizes_of
from fluxir.ir import dims

# ---- reductions ----------------------------------------------------------------------------------------------------


def _norm2(x: Any, **how: Any) -> Any:
    return fx.sqrt(fx.sum(fx.multiply(x, x), **how))


REDUCTIONS: dict[str, tuple[Any, int]] = {
    "ReduceSum": (lambda x, **how: fx.sum(x, dtype=fx.dtype(x), **how), 13),
    "ReduceProd": (lambda x, **how: fx.prod(x, dtype=fx.dtype(x), **how), 18),
    "ReduceMean": (lambda x, **how: _mean(x, **how), 18),
    "ReduceMax": (lambda x, **how: _extreme(x, fx.max, fx.any, **how), 18),
    "ReduceMin": (lambda x, **how: _extreme(x, fx.min, fx.all, **how), 18),
    "ReduceL1": (lambda x, **how: fx.sum(fx.abs(x), dtype=fx.dtype(x), **how), 18),
    "ReduceL2": (lambda x, **how: _in_floats(x, _norm2, **how), 18),
    "ReduceSumSquare": (lambda x, **how: fx.sum(fx.multiply(x, x), dtype=fx.dtype(x), **how), 18),
    "ReduceLogSum": (lambda x, **how: _in_floats(x, lambda y, **h: fx.log(fx.sum(y, **h)), **how), 18),
    "ReduceLogSumExp": (lambda x, **how: _in_floats(x, fx.logsumexp, **how), 18),
}


def _in_floats(x: Any, f: Any, **how: Any) -> Any:
    """`f` of floats; integers go through f32 and come back."""
    d = fx.dtype(x)
    return f(x, **how) if d.is_float else fx.cast(f(fx.cast(x, "f64"), **how), d)


def _mean(x: Any, **how: Any) -> Any:
    return _in_floats(x, fx.mean, **how)


def _extreme(x: Any, f: Any, of_truths: Any, *, axis: Any, keepdims: bool) -> Any:
    if fx.dtype(x).is_bool:
        return of_truths(x, axis=axis, keepdims=keepdims)
    if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axis):  # of nothing: what changes nothing
        d = fx.dtype(x)
        lowest = f is fx.max
        fill = (-np.inf if lowest else np.inf) if d.is_float else d.limits[0 if lowest else 1]
        shape = [1 if i in axis else n for i, n in enumerate(x.shape) if keepdims or i not in axis]
        return fx.full(tuple(shape), np.asarray(fill).astype(d.numpy))
    return f(x, axis=axis, keepdims=keepdims)


def _reduction(name: str, f: Any, since: int) -> None:
    def run(x: Any, axes: Known = None, *, keepdims: Int = 1, noop_with_empty_axes: Int = 0) -> Any:
        named = () if axes is None else ints_of(axes, "the axes")
        if not named and noop_with_empty_axes:
            return elementwise_part(name, x)
        return reduced(f, x, named or None, keepdims)

    def old(x: Any, *, axes: Ints | None = None, keepdims: Int = 1) -> Any:
        return reduced(f, x, axes, keepdims)

    op(name, since=since)(run)
    op(name)(old)


def elementwise_part(name: str, x: Any) -> Any:
    """A reduction over no axes: what it does to each element."""
    parts = {
        "ReduceSumSquare": lambda y: fx.multiply(y, y), "ReduceL1": fx.abs, "ReduceL2": fx.abs, "ReduceLogSum": fx.log,
    }  # fmt: skip
    return parts.get(name, fx.asarray)(x)


def reduced(f: Any, x: Any, axes: Any, keepdims: int) -> Any:
    n = fx.rank(x)
    over = tuple(range(n)) if axes is None else fx.axes_of(axes, n)
    return f(x, axis=over, keepdims=bool(keepdims))


for _name, (_f, _since) in REDUCTIONS.items():
    _reduction(_name, _f, _since)


def _arg(name: str, f: Any) -> None:
    def run(x: Any, *, axis: Int = 0, keepdims: Int = 1, select_last_index: Int = 0) -> Any:
        a = fx.axis_of(axis, fx.rank(x))
        if not select_last_index:
            return f(x, axis=a, keepdims=bool(keepdims))
        last = f(fx.flip(x, axis=a), axis=a, keepdims=bool(keepdims))
        return fx.subtract(fx.asarray(x.shape[a] - 1), last)

    op(name)(run)


_arg("ArgMax", fx.argmax)
_arg("ArgMin", fx.argmin)


def _cumulative(name: str, f: Any, since: int, neutral: int) -> None:
    def run(x: Any, axis: Known, *, exclusive: Int = 0, reverse: Int = 0) -> Any:
        a = fx.axis_of(int(scalar_of(axis, "the axis")), fx.rank(x))
        if reverse:
            x = fx.flip(x, axis=a)
        if exclusive:
            n = x.shape[a]
            pads = [(1, 0) if k == a else (0, 0) for k in range(fx.rank(x))]
            x = fx.pad(x, pads, constant_values=fx.scalar(neutral, x))
            x = fx.item(x, (slice(None),) * a + (slice(0, n),))
        y = f(x, axis=a, dtype=fx.dtype(x))
        return fx.flip(y, axis=a) if reverse else y

    op(name, since=since)(run)


_cumulative("CumSum", fx.cumsum, 11, 0)
_cumulative("CumProd", fx.cumprod, 26, 1)


@op("TopK", since=10)
def top_k(x: Any, k: Known, *, axis: Int = -1, largest: Int = 1, sorted: Int = 1) -> Any:
    (n,) = sizes_of(k, "k", most=x.shape[fx.axis_of(axis, fx.rank(x))])
    return _top(x, n, axis, bool(largest))


@op("TopK")
def top_k_old(x: Any, *, k: Int, axis: Int = -1) -> Any:
    return _top(x, k, axis, True)


def _top(x: Any, k: Any, axis: int, largest: bool) -> Results:
    a = fx.axis_of(axis, fx.rank(x))
    order = fx.item(_stable_order(x, a, largest), (slice(None),) * a + (slice(0, k),))
    return Results((fx.take_along_axis(x, order, axis=a), order))


def _stable_order(x: Any, axis: int, largest: bool) -> Any:
    """Positions in order, equal elements by position."""
    return fx.argsort(x, axis=axis, descending=largest)


# ---- normalisations ------------------------------------------------------------------------------------------------


def _softmax(name: str, f: Any) -> None:
    def run(x: Any, *, axis: Int = -1) -> Any:
        return f(x, axis=fx.axis_of(axis, fx.rank(x)))

    def old(x: Any, *, axis: Int = 1) -> Any:  # of all axes from `axis` on, as if they were one
        a = fx.axis_of(axis, fx.rank(x))
        flat = fx.reshape(x, (dims.product(x.shape[:a]), dims.product(x.shape[a:])))
        return fx.reshape(f(flat, axis=1), x.shape)

    op(name, since=13)(run)
    op(name)(old)


def _hardmax(x: Any, axis: int) -> Any:
    return fx.one_hot(fx.argmax(x, axis=axis), x.shape[axis], dtype=fx.dtype(x), axis=axis)


_softmax("Softmax", fx.nn.softmax)
_softmax("LogSoftmax", fx.nn.log_softmax)
_softmax("Hardmax", _hardmax)


@op("LpNormalization")
def lp_normalization(x: Any, *, axis: Int = -1, p: Int = 2) -> Any:
    a = fx.axis_of(axis, fx.rank(x))
    norm = fx.sum(fx.abs(x), axis=a, keepdims=True) if p == 1 else _norm2(x, axis=a, keepdims=True)
    return fx.where(fx.equal(norm, fx.scalar(0, x)), fx.scalar(0, x), fx.divide(x, norm))


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Any, *, axes: Ints = (0, 2, 3)) -> Any:
    over = fx.axes_of(axes, fx.rank(x))
    centred = fx.subtract(x, fx.mean(x, axis=over, keepdims=True))
    deviation = fx.sqrt(fx.mean(fx.multiply(centred, centred), axis=over, keepdims=True))
    return fx.divide(centred, fx.add(deviation, fx.scalar(1e-9, x)))
