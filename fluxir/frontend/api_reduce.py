"""Reductions, running sums, statistics and differences (Array API statistical and utility functions, and NumPy's).

`axis=None` means all axes. Sums and products of small integers use i64 (u64 for unsigned), as the standard says; those
of f16 and bf16 accumulate in f32. Means and variances take floats. The maximum of nothing is FX0225.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_elementwise import float_operand, isnan, largest, truth
from fluxir.frontend.api_manipulation import concat, moveaxis, ravel, reshape
from fluxir.frontend.tensor import Tensor, as_dtype, as_tensor, cast, constant, emit, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, floordiv, prove_le
from fluxir.ir.dims import product as product_of
from fluxir.ir.dtypes import DType, f64, i64, u64
from fluxir.ops.rules import normal_axes, normal_axis


def axes_of(name: str, t: Tensor, axis: Any) -> tuple[int, ...]:
    """The axes meant by an `axis` argument, counted from 0."""
    if axis is None:
        return tuple(range(t.ndim))
    return tuple(sorted(normal_axes(name, axis if isinstance(axis, tuple | list) else (axis,), t.ndim)))


def _reduce(name: str, x: Any, axis: Any, keepdims: bool) -> Tensor:
    t = as_tensor(x)
    axes = axes_of(name, t, axis)
    return emit(name, t, axes=axes, keepdims=keepdims) if axes else t


def _wide(t: Tensor, dtype: Any) -> Tensor:
    """The operand of a sum or product in the type of the result."""
    if dtype is not None:
        return cast(t, as_dtype(dtype))
    if t.dtype.is_bool or t.dtype.kind == "int":
        return cast(t, i64)
    return cast(t, u64) if t.dtype.kind == "uint" else t


@public
def sum(x: Any, /, axis: Any = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis`; of bools, how many are true."""
    return _reduce("sum", _wide(as_tensor(x), dtype), axis, keepdims)


@public
def prod(x: Any, /, axis: Any = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product over `axis`."""
    return _reduce("prod", _wide(as_tensor(x), dtype), axis, keepdims)


def _extreme(name: str, x: Any, axis: Any, keepdims: bool, initial: Any) -> Tensor:
    t = as_tensor(x)
    if initial is None and builtins.any(t.shape[a] == 0 for a in axes_of(name, t, axis)):
        raise error(
            "FX0225",
            f"the {name} over an empty axis of {t.type} has no value",
            help="give initial=-fx.inf if that is what you mean",
            loc=here(),
        )
    if initial is None:
        return _reduce(name, t, axis, keepdims)
    start = promote_operands(t, initial)[1]
    if builtins.any(t.shape[a] == 0 for a in axes_of(name, t, axis)):
        axes = axes_of(name, t, axis)
        shape = tuple(1 if i in axes else d for i, d in enumerate(t.shape) if keepdims or i not in axes)
        return emit("broadcast", start, shape=shape) if shape else start
    return emit("maximum" if name == "max" else "minimum", _reduce(name, t, axis, keepdims), start)


@public
def max(x: Any, /, axis: Any = None, *, keepdims: bool = False, initial: Any = None) -> Tensor:
    """The largest element over `axis`; NaN if there is one."""
    return _extreme("max", x, axis, keepdims, initial)


@public
def min(x: Any, /, axis: Any = None, *, keepdims: bool = False, initial: Any = None) -> Tensor:
    """The smallest element over `axis`; NaN if there is one."""
    return _extreme("min", x, axis, keepdims, initial)


amax, amin = max, min


@public
def any(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """Whether any element over `axis` is true (not 0)."""
    return _reduce("any", truth(x), axis, keepdims)


@public
def all(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """Whether all elements over `axis` are true (not 0)."""
    return _reduce("all", truth(x), axis, keepdims)


@public
def count_nonzero(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """How many elements over `axis` are not 0, i64."""
    return sum(truth(x), axis=axis, keepdims=keepdims)


def _arg(name: str, x: Any, axis: int | None, keepdims: bool) -> Tensor:
    t = as_tensor(x)
    if axis is None:
        r = emit(name, ravel(t), axis=0)
        return reshape(r, (1,) * t.ndim) if keepdims else r
    a = normal_axis(name, axis, t.ndim)
    if t.shape[a] == 0:
        raise error("FX0225", f"{name} over an empty axis of {t.type} has no value", loc=here())
    return emit(name, t, axis=a, keepdims=keepdims)


@public
def argmax(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """Position of the first largest element, i64; a NaN counts as largest."""
    return _arg("argmax", x, axis, keepdims)


@public
def argmin(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """Position of the first smallest element, i64; a NaN counts as smallest."""
    return _arg("argmin", x, axis, keepdims)


# ---- statistics -------------------------------------------------------------------------------------------------------------


@public
def mean(x: Any, /, axis: Any = None, *, keepdims: bool = False, dtype: Any = None) -> Tensor:
    """The mean over `axis`, of floats."""
    t = float_operand("mean", x if dtype is None else cast(as_tensor(x), as_dtype(dtype)))
    axes = axes_of("mean", t, axis)
    return emit("mean", t, axes=axes, keepdims=keepdims) if axes else t


@public
def var(
    x: Any, /, axis: Any = None, *, correction: float = 0.0, ddof: float | None = None, keepdims: bool = False
) -> Tensor:
    """The variance over `axis`, dividing by n - correction (numpy: `ddof`)."""
    t = float_operand("var", x)
    axes = axes_of("var", t, axis)
    return emit("var", t, axes=axes, keepdims=keepdims, correction=float(correction if ddof is None else ddof))


@public
def std(
    x: Any, /, axis: Any = None, *, correction: float = 0.0, ddof: float | None = None, keepdims: bool = False
) -> Tensor:
    """The standard deviation over `axis`, dividing by n - correction (numpy: `ddof`)."""
    return emit("sqrt", var(x, axis=axis, correction=correction, ddof=ddof, keepdims=keepdims))


@public
def ptp(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The largest minus the smallest element."""
    return emit("sub", max(x, axis=axis, keepdims=keepdims), min(x, axis=axis, keepdims=keepdims))


@public
def average(x: Any, /, axis: Any = None, weights: Any = None, *, keepdims: bool = False) -> Tensor:
    """The weighted mean; weights have x's shape, or the length of one axis."""
    t = float_operand("average", x)
    if weights is None:
        return mean(t, axis=axis, keepdims=keepdims)
    t, w = promote_operands(t, weights)
    if w.ndim == 1 and t.ndim > 1:
        a = normal_axis("average", axis, t.ndim)
        w = reshape(w, tuple(d if i == a else 1 for i, d in enumerate(t.shape)))
    w = emit("broadcast", w, shape=t.shape) if w.shape != t.shape else w
    return emit("div", sum(emit("mul", t, w), axis=axis, keepdims=keepdims), sum(w, axis=axis, keepdims=keepdims))


def _last_axis(name: str, t: Tensor, axis: Any) -> tuple[Tensor, tuple[int, ...]]:
    """The axes to reduce moved to the end and joined into one."""
    axes = axes_of(name, t, axis)
    kept = [i for i in range(t.ndim) if i not in axes]
    perm = [*kept, *axes]
    t = emit("transpose", t, perm=tuple(perm)) if perm != list(range(t.ndim)) else t
    n = product_of(t.shape[len(kept) :])
    return reshape(t, (*t.shape[: len(kept)], n)), axes


def _quantile(name: str, x: Any, q: Any, axis: Any, keepdims: bool, method: str) -> Tensor:
    t = float_operand(name, x)
    if isinstance(q, Tensor):
        raise error("FX0302", f"{name}: q is a traced tensor", help="give q as numbers", loc=here())
    points = np.asarray(q, np.float64)
    if points.size and not (0 <= points.min() and points.max() <= 1):
        raise error("FX0221", f"{name}: q is outside its range", loc=here())
    if method not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise error(
            "FX0221",
            f"{name}: no method {method!r}",
            help="methods: linear, lower, higher, midpoint, nearest",
            loc=here(),
        )
    flat, axes = _last_axis(name, t, axis)
    n = flat.shape[-1]
    if n == 0:
        raise error("FX0225", f"{name} of an empty axis has no value", loc=here())
    last = flat.ndim - 1
    ordered = emit("sort", flat, axis=last)
    # Positions are computed in f64 also for symbolic sizes, so that both give the same.
    size = promote_operands(constant(0.0, f64), n)[1] if isinstance(n, int) else cast(as_tensor(n), f64)
    position = emit("mul", as_tensor(points.reshape(-1)), emit("sub", size, constant(1.0, f64)))
    low, high = emit("floor", position), emit("ceil", position)
    weight = cast(emit("sub", position, low), t.dtype)
    if method == "nearest":
        low = high = emit("round", position)
    elif method == "lower":
        high = low
    elif method == "higher":
        low = high
    elif method == "midpoint":
        weight = emit("select", emit("eq", low, high), constant(0.0, t.dtype), constant(0.5, t.dtype))
    a = emit("gather", ordered, cast(low, i64), axes=(last,))  # the quantiles come first
    b = emit("gather", ordered, cast(high, i64), axes=(last,))
    weight = reshape(weight, (points.size, *[1] * last))
    r = emit("add", a, emit("mul", emit("sub", b, a), weight)) if method in ("linear", "midpoint") else a
    r = emit("select", emit("eq", a, b), a, r)  # equal infinities have no difference
    has_nan = emit("any", emit("isnan", flat), axes=(last,))
    r = emit("select", has_nan, constant(math.nan, t.dtype), r)
    shape = tuple(1 if i in axes else d for i, d in enumerate(t.shape) if keepdims or i not in axes)
    return reshape(r, (*points.shape, *shape))


@public
def quantile(x: Any, q: Any, axis: Any = None, *, method: str = "linear", keepdims: bool = False) -> Tensor:
    """The q-quantile (q from 0 to 1, numbers); several q give a leading axis. NaN if any element is."""
    return _quantile("quantile", x, q, axis, keepdims, method)


@public
def percentile(x: Any, q: Any, axis: Any = None, *, method: str = "linear", keepdims: bool = False) -> Tensor:
    """The q-th percentile (q from 0 to 100, numbers)."""
    if isinstance(q, Tensor):
        return _quantile("percentile", x, q, axis, keepdims, method)
    return _quantile("percentile", x, np.asarray(q, np.float64) / 100, axis, keepdims, method)


@public
def median(x: Any, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The middle element, or the mean of the two middle ones."""
    t = float_operand("median", x)
    flat, axes = _last_axis("median", t, axis)
    n = flat.shape[-1]
    if n == 0:
        raise error("FX0225", "median of an empty axis has no value", loc=here())
    last = flat.ndim - 1
    ordered = emit("sort", flat, axis=last)
    low, high = (promote_operands(constant(0, i64), floordiv(d, 2))[1] for d in (n - 1, n))
    a, b = (emit("gather", ordered, k, axes=(last,)) for k in (low, high))
    r = emit("select", emit("eq", a, b), a, emit("mul", emit("add", a, b), constant(0.5, t.dtype)))
    r = emit("select", emit("any", emit("isnan", flat), axes=(last,)), constant(math.nan, t.dtype), r)
    shape = tuple(1 if i in axes else d for i, d in enumerate(t.shape) if keepdims or i not in axes)
    return reshape(r, shape)


@public
def logsumexp(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) without overflow."""
    t = float_operand("logsumexp", x)
    axes = axes_of("logsumexp", t, axis)
    return emit("logsumexp", t, axes=axes, keepdims=keepdims) if axes else t


@public
def cov(m: Any, /, *, rowvar: bool = True, ddof: float = 1.0) -> Tensor:
    """The covariance matrix of variables in rows (or columns)."""
    t = float_operand("cov", m)
    t = reshape(t, (1, -1)) if t.ndim == 1 else t if rowvar else moveaxis(t, 0, 1)
    centred = emit("sub", t, mean(t, axis=1, keepdims=True))
    s = emit("dot", centred, centred, lhs_contract=(1,), rhs_contract=(1,))
    n = emit("sub", promote_operands(s, t.shape[1])[1], constant(ddof, s.dtype))
    return emit("div", s, n)


# ---- ignoring NaN -------------------------------------------------------------------------------------------------------------


def _replaced(name: str, x: Any, value: float) -> tuple[Tensor, Tensor]:
    t = float_operand(name, x)
    bad = isnan(t)
    return emit("select", bad, constant(value, t.dtype), t), bad


@public
def nansum(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The sum of the elements that are not NaN."""
    return sum(_replaced("nansum", x, 0.0)[0], axis=axis, keepdims=keepdims)


@public
def nanprod(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The product of the elements that are not NaN."""
    return prod(_replaced("nanprod", x, 1.0)[0], axis=axis, keepdims=keepdims)


@public
def nanmean(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The mean of the elements that are not NaN."""
    t, bad = _replaced("nanmean", x, 0.0)
    n = sum(cast(emit("logical_not", bad), t.dtype), axis=axis, keepdims=keepdims)
    return emit("div", sum(t, axis=axis, keepdims=keepdims), n)


def _nan_extreme(name: str, x: Any, axis: Any, keepdims: bool, empty: float) -> Tensor:
    t, bad = _replaced("nan" + name, x, empty)
    r = _reduce(name, t, axis, keepdims)
    return emit("select", _reduce("all", bad, axis, keepdims), constant(math.nan, t.dtype), r)


@public
def nanmax(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The largest element that is not NaN."""
    return _nan_extreme("max", x, axis, keepdims, -math.inf)


@public
def nanmin(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """The smallest element that is not NaN."""
    return _nan_extreme("min", x, axis, keepdims, math.inf)


# ---- running ------------------------------------------------------------------------------------------------------------------


def _running(name: str, x: Any, axis: int | None, reverse: bool) -> Tensor:
    t = as_tensor(x)
    if axis is None:
        t, axis = ravel(t), 0
    return emit(name, t, axis=normal_axis(name, axis, t.ndim), reverse=reverse)


@public
def cumsum(x: Any, axis: int | None = None, *, dtype: Any = None, reverse: bool = False) -> Tensor:
    """Running sums along `axis` (None: of the raveled tensor); `reverse` starts at the end."""
    return _running("cumsum", _wide(as_tensor(x), dtype), axis, reverse)


@public
def cumprod(x: Any, axis: int | None = None, *, dtype: Any = None, reverse: bool = False) -> Tensor:
    """Running products along `axis` (None: of the raveled tensor)."""
    return _running("cumprod", _wide(as_tensor(x), dtype), axis, reverse)


@public
def cummax(x: Any, axis: int | None = None, *, reverse: bool = False) -> Tensor:
    """Running maxima along `axis` (None: of the raveled tensor)."""
    return _running("cummax", x, axis, reverse)


@public
def cummin(x: Any, axis: int | None = None, *, reverse: bool = False) -> Tensor:
    """Running minima along `axis` (None: of the raveled tensor)."""
    return _running("cummin", x, axis, reverse)


def _cumulative(
    run: Callable[..., Tensor], first: int, x: Any, axis: int | None, dtype: Any, include_initial: bool
) -> Tensor:
    t = as_tensor(x)
    if axis is None:
        if t.ndim != 1:
            raise error("FX0221", f"a tensor of rank {t.ndim} needs an axis", loc=here())
        axis = 0
    r = run(t, axis, dtype=dtype)
    if not include_initial:
        return r
    a = normal_axis("cumulative", axis, t.ndim)
    start = emit("broadcast", constant(first, r.dtype), shape=(*r.shape[:a], 1, *r.shape[a + 1 :]))
    return concat([start, r], axis=a)


@public
def cumulative_sum(x: Any, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running sums (Array API); `include_initial` puts a 0 in front."""
    return _cumulative(cumsum, 0, x, axis, dtype, include_initial)


@public
def cumulative_prod(x: Any, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """Running products (Array API); `include_initial` puts a 1 in front."""
    return _cumulative(cumprod, 1, x, axis, dtype, include_initial)


def _along(t: Tensor, axis: int, start: Dim, stop: Dim) -> Tensor:
    low: list[Dim] = [0] * t.ndim
    high: list[Dim] = list(t.shape)
    low[axis], high[axis] = start, stop
    return emit("slice", t, start=tuple(low), limit=tuple(high))


@public
def diff(x: Any, /, axis: int = -1, *, n: int = 1, prepend: Any = None, append: Any = None) -> Tensor:
    """Differences of neighbours along `axis`, `n` times."""
    t = as_tensor(x)
    a = normal_axis("diff", axis, t.ndim)
    parts = [p for p in (prepend, t, append) if p is not None]
    if len(parts) > 1:
        parts = promote_operands(*parts)
        parts = [p if p.ndim else emit("broadcast", p, shape=(*t.shape[:a], 1, *t.shape[a + 1 :])) for p in parts]
        t = concat(parts, axis=a)
    for _ in range(n):
        size = t.shape[a]
        if not prove_le(1, size):
            raise error(
                "FX0218",
                f"diff: the axis of size {size} may be empty",
                help=f"state the fact {size} >= {n}",
                loc=here(),
            )
        t = emit("ne" if t.dtype.is_bool else "sub", _along(t, a, 1, size), _along(t, a, 0, size - 1))
    return t


@public
def trapezoid(y: Any, x: Any = None, dx: float = 1.0, axis: int = -1) -> Tensor:
    """The integral by the trapezoidal rule."""
    t = float_operand("trapezoid", y)
    a = normal_axis("trapezoid", axis, t.ndim)
    size = t.shape[a]
    pairs = emit("add", _along(t, a, 1, size), _along(t, a, 0, size - 1))
    half = constant(0.5, t.dtype)
    if x is None:
        return sum(emit("mul", pairs, constant(0.5 * dx, t.dtype)), axis=a)
    w = diff(x, axis=-1 if as_tensor(x).ndim == 1 else a)
    if w.ndim == 1 and t.ndim > 1:
        w = reshape(w, tuple(w.shape[0] if i == a else 1 for i in range(t.ndim)))
    pairs, w = promote_operands(pairs, w)
    return sum(emit("mul", emit("mul", pairs, w), half), axis=a)


def extreme_value(d: DType, largest_value: bool) -> Any:
    """The identity of min (or max): +-infinity, or the type's limit."""
    if d.is_float:
        return math.inf if largest_value else -math.inf
    return builtins.int(largest(d)) if largest_value else d.limits[0]


__all__ = [
    "all", "amax", "amin", "any", "argmax", "argmin", "average", "count_nonzero", "cov", "cummax", "cummin",
    "cumprod", "cumsum", "cumulative_prod", "cumulative_sum", "diff", "logsumexp", "max", "mean", "median", "min",
    "nanmax", "nanmean", "nanmin", "nanprod", "nansum", "percentile", "prod", "ptp", "quantile", "std", "sum",
    "trapezoid", "var",
]  # fmt: skip
