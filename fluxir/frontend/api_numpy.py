"""NumPy's functions beyond the Array API standard that are made of the other public functions alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_elementwise import isnan, where
from fluxir.frontend.api_indexing import take_along_axis
from fluxir.frontend.api_linalg import diagonal
from fluxir.frontend.api_manipulation import broadcast_arrays, expand_dims, flip, pad, squeeze, stack
from fluxir.frontend.api_reduce import argmax, argmin, cov, cumprod, cumsum, nanmean, nansum
from fluxir.frontend.tensor import Tensor, as_tensor, cast, emit, promote_operands
from fluxir.frontend.trace import here, public
from fluxir.ir.dtypes import i64

# ---- ignoring NaN ---------------------------------------------------------------------------------------------------


@public
def nanvar(x: Any, /, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Tensor:
    """The variance of the elements that are not NaN."""
    t = as_tensor(x)
    # NaN is taken out before it is computed with: in the derivative 0 times NaN would be no zero.
    none = isnan(t)
    centred = where(none, 0, where(none, 0, t) - nanmean(t, axis=axis, keepdims=True))
    n = nansum(cast(emit("logical_not", none), t.dtype), axis=axis, keepdims=keepdims)
    return emit("div", nansum(centred * centred, axis=axis, keepdims=keepdims), as_tensor(n - ddof))


@public
def nanstd(x: Any, /, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation of the elements that are not NaN."""
    return emit("sqrt", nanvar(x, axis=axis, ddof=ddof, keepdims=keepdims))


@public
def nancumsum(x: Any, /, axis: Any = None) -> Tensor:
    """Running sums in which NaN counts as 0."""
    t = as_tensor(x)
    return cumsum(where(isnan(t), 0, t), axis=axis)


@public
def nancumprod(x: Any, /, axis: Any = None) -> Tensor:
    """Running products in which NaN counts as 1."""
    t = as_tensor(x)
    return cumprod(where(isnan(t), 1, t), axis=axis)


@public
def nanargmax(x: Any, /, axis: Any = None) -> Tensor:
    """The position of the largest element that is not NaN; 0 where all are NaN."""
    t = as_tensor(x)
    return argmax(where(isnan(t), -math.inf, t), axis=axis)


@public
def nanargmin(x: Any, /, axis: Any = None) -> Tensor:
    """The position of the smallest element that is not NaN; 0 where all are NaN."""
    t = as_tensor(x)
    return argmin(where(isnan(t), math.inf, t), axis=axis)


# ---- choosing and indexing ------------------------------------------------------------------------------------------


@public
def choose(a: Any, /, choices: Any, mode: str = "raise") -> Tensor:
    """numpy's choose: element i comes from `choices[a[i]]`. An index out of range is cut to the range (`mode` "clip")
    or, with "wrap", taken modulo the number of choices."""
    index, *parts = broadcast_arrays(a, *promote_operands(*[choices[k] for k in range(len(choices))]))
    if mode == "wrap":
        index = index % len(parts)
    options = stack(parts, axis=0)
    return squeeze(take_along_axis(options, expand_dims(index, axis=0), axis=0), axis=0)


@public
def piecewise(x: Any, /, condlist: Sequence[Any], funclist: Sequence[Any]) -> Tensor:
    """numpy's piecewise: the function (or number) of the last condition that holds; one more function is the default.

    Every function is evaluated on all of `x`.
    """
    t = as_tensor(x)
    conditions = list(condlist) if isinstance(condlist, list | tuple) else [condlist]
    extra = len(funclist) - len(conditions)
    if extra not in (0, 1):
        raise error("FX0221", f"piecewise: {len(conditions)} conditions and {len(funclist)} functions", loc=here())
    values: list[Any] = [f(t) if callable(f) else f for f in funclist]
    r = cast(as_tensor(values[-1] if extra else 0), t.dtype)
    for c, v in zip(conditions, values, strict=False):
        r = where(c, cast(as_tensor(v), t.dtype), r)
    return r if r.shape == t.shape else emit("broadcast", r, shape=t.shape)


@public
def unravel_index(indices: Any, /, shape: Any) -> tuple[Tensor, ...]:
    """Positions in a flat tensor as positions along the axes of `shape`."""
    rest = as_tensor(indices)
    out: list[Tensor] = []
    for size in reversed(tuple(shape) if isinstance(shape, tuple | list) else (shape,)):
        out.append(rest % size)
        rest = rest // size
    return tuple(reversed(out))


@public
def ravel_multi_index(multi_index: Any, /, dims: Any) -> Tensor:
    """Positions along the axes of `dims` as positions in the flat tensor."""
    total: Any = 0
    for index, size in zip(multi_index, dims, strict=True):
        total = total * size + as_tensor(index)
    return as_tensor(total)


def _positions(found: tuple[np.ndarray[Any, Any], ...]) -> tuple[Tensor, ...]:
    return tuple(as_tensor(a.astype(np.int64)) for a in found)


@public
def tril_indices(n: int, k: int = 0, m: int | None = None) -> tuple[Tensor, ...]:
    """The positions of the lower triangle of an n x m matrix."""
    return _positions(np.tril_indices(n, k, m))


@public
def triu_indices(n: int, k: int = 0, m: int | None = None) -> tuple[Tensor, ...]:
    """The positions of the upper triangle of an n x m matrix."""
    return _positions(np.triu_indices(n, k, m))


@public
def diag_indices(n: int, ndim: int = 2) -> tuple[Tensor, ...]:
    """The positions of the main diagonal."""
    i = emit("iota", shape=(n,), axis=0, dtype=i64)
    return (i,) * ndim


# ---- signals and polynomials ----------------------------------------------------------------------------------------


@public
def convolve(a: Any, v: Any, /, mode: str = "full") -> Tensor:
    """The discrete convolution of two vectors; `mode` is "full", "same" or "valid"."""
    x, y = promote_operands(a, v)
    if x.ndim != 1 or y.ndim != 1:
        raise error("FX0220", f"convolve takes two vectors, not {x.type} and {y.type}", loc=here())
    m, n = x.shape[0], y.shape[0]
    if not isinstance(n, int) or isinstance(m, int) and m < n:
        (x, m), (y, n) = (y, n), (x, m)
    if not isinstance(n, int) or not n:
        raise error("FX0218", f"convolve needs one vector of a known length, not {x.type} and {y.type}", loc=here())
    sides = {"full": (n - 1, n - 1), "same": (n // 2, (n - 1) // 2), "valid": (0, 0)}
    if mode not in sides:
        raise error(
            "FX0215", f"convolve has no mode {mode!r}", help='the modes are "full", "same" and "valid"', loc=here()
        )
    wide = pad(x, sides[mode])
    length = wide.shape[0] - (n - 1)
    total: Any = None
    for k in range(n):  # one product per tap: the taps are few and the vector is long
        part = wide[k : k + length] * y[n - 1 - k]
        total = part if total is None else total + part
    return as_tensor(total)


@public
def correlate(a: Any, v: Any, /, mode: str = "valid") -> Tensor:
    """The cross-correlation of two vectors of real numbers."""
    return convolve(a, flip(v), mode=mode)


@public
def polyval(p: Any, x: Any, /) -> Tensor:
    """The polynomial with coefficients `p`, highest power first, at `x` (Horner's scheme)."""
    c, t = promote_operands(p, x)
    n = c.shape[0]
    if not isinstance(n, int):
        raise error("FX0218", f"polyval needs a known number of coefficients, not {n}", loc=here())
    r: Any = t * 0
    for k in range(n):
        r = r * t + c[k]
    return as_tensor(r)


@public
def corrcoef(x: Any, /, *, rowvar: bool = True) -> Tensor:
    """Correlation coefficients of variables in rows (or columns)."""
    c = cov(x, rowvar=rowvar)
    s = emit("sqrt", diagonal(c))
    return emit("div", emit("div", c, expand_dims(s, axis=1)), expand_dims(s, axis=0))


__all__ = [
    "choose", "convolve", "corrcoef", "correlate", "diag_indices", "nanargmax", "nanargmin", "nancumprod", "nancumsum",
    "nanstd", "nanvar", "piecewise", "polyval", "ravel_multi_index", "tril_indices", "triu_indices", "unravel_index",
]  # fmt: skip
