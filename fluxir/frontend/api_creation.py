"""Making tensors: constants, ranges, grids, triangles, and element types (Array API creation and data type functions).

Default element types: f32 for floats, i64 for integers. Sizes may be symbolic wherever a shape is given.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.tensor import (
    Tensor,
    as_dtype,
    as_tensor,
    cast,
    constant,
    emit,
    is_scalar,
    promote_operands,
    result_dtype,
)
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, Poly, ceildiv, facts, maximum
from fluxir.ir.dtypes import DTYPES, DType, f32, i64, scalar_dtype

e, inf, nan, newaxis, pi = math.e, math.inf, math.nan, None, math.pi


def as_shape(shape: Any) -> tuple[Dim, ...]:
    """A shape from a size or a sequence of sizes; FX0218 for a negative one, FX0302 for a tensor."""
    items = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    out: list[Dim] = []
    for d in items:
        if isinstance(d, Poly):
            out.append(d)
            continue
        if isinstance(d, builtins.float) or not hasattr(d, "__index__"):
            raise error(
                "FX0218",
                f"{d!r} is not a size",
                help="a size is an integer or part of a shape, such as x.shape[0]",
                loc=here(),
            )
        n = d.__index__()
        if n < 0:
            raise error("FX0218", f"a size cannot be negative: {n}", loc=here())
        out.append(n)
    return tuple(out)


def fill(shape: tuple[Dim, ...], value: Any, dtype: DType) -> Tensor:
    """A tensor of one repeated number."""
    t = constant(value, dtype)
    return emit("broadcast", t, shape=shape) if shape else t


# ---- from data ----------------------------------------------------------------------------------------------------------


@public
def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor from a tensor, numpy array, number, or nested list; cast to `dtype` if given. FX0229 for other data.

    Python floats become f32 and integers i64; numpy arrays keep their type.
    """
    if dtype is not None and is_scalar(obj):
        d = as_dtype(dtype)
        scalar_dtype(obj, d) if not d.is_bool else None
        return constant(obj, d)
    t = as_tensor(obj)
    if t.weak:
        t = Tensor(t.value, t.scope)
    return t if dtype is None else cast(t, as_dtype(dtype))


@public
def array(object: Any, dtype: Any = None, *, copy: bool = True) -> Tensor:
    """numpy's name for `asarray`."""
    return asarray(object, dtype=dtype)


@public
def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor from any object with `__dlpack__`."""
    return as_tensor(x if isinstance(x, Tensor) else np.from_dlpack(x))


@public
def copy(x: Any, /) -> Tensor:
    """A tensor of its own with the same value: `x[i] = v` on it changes nothing else."""
    t = as_tensor(x)
    return Tensor(t.value, t.scope, t.weak)


@public
def astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor:
    """Converted to `dtype`. Float to integer truncates and saturates, NaN gives 0; to bool: x != 0."""
    t = cast(as_tensor(x), as_dtype(dtype))
    return Tensor(t.value, t.scope)


@public
def bitcast(x: Any, dtype: Any, /) -> Tensor:
    """The same bits read as another element type of the same width (FX0226 otherwise)."""
    return emit("bitcast", x, dtype=as_dtype(dtype))


@public
def stop_gradient(x: Any, /) -> Tensor:
    """`x` itself, through which no gradient flows."""
    return emit("stop_gradient", x)


# ---- filled -------------------------------------------------------------------------------------------------------------


@public
def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of `shape` filled with a number or a tensor that broadcasts to it."""
    if is_scalar(fill_value):
        d = as_dtype(dtype) if dtype is not None else result_dtype(fill_value)
        return fill(as_shape(shape), fill_value, d)
    t = as_tensor(fill_value)
    t = cast(t, as_dtype(dtype)) if dtype is not None else t
    return emit("broadcast", t, shape=as_shape(shape))


@public
def zeros(shape: Any, dtype: Any = None, *, device: Any = None) -> Tensor:
    """Zeros, f32 unless `dtype` says otherwise."""
    return fill(as_shape(shape), 0, f32 if dtype is None else as_dtype(dtype))


@public
def ones(shape: Any, dtype: Any = None, *, device: Any = None) -> Tensor:
    """Ones, f32 unless `dtype` says otherwise."""
    return fill(as_shape(shape), 1, f32 if dtype is None else as_dtype(dtype))


@public
def empty(shape: Any, dtype: Any = None, *, device: Any = None) -> Tensor:
    """The same as `zeros`: no tensor holds leftovers of other programs."""
    return zeros(shape, dtype)


@public
def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of the shape (and type) of `x`, filled."""
    t = as_tensor(x)
    d = t.dtype if dtype is None else as_dtype(dtype)
    if is_scalar(fill_value):
        scalar_dtype(fill_value, d)
    return full(t.shape, fill_value, dtype=d)


@public
def zeros_like(x: Any, /, dtype: Any = None, *, device: Any = None) -> Tensor:
    """Zeros of the shape (and type) of `x`."""
    t = as_tensor(x)
    return fill(t.shape, 0, t.dtype if dtype is None else as_dtype(dtype))


@public
def ones_like(x: Any, /, dtype: Any = None, *, device: Any = None) -> Tensor:
    """Ones of the shape (and type) of `x`."""
    t = as_tensor(x)
    return fill(t.shape, 1, t.dtype if dtype is None else as_dtype(dtype))


@public
def empty_like(x: Any, /, dtype: Any = None, *, device: Any = None) -> Tensor:
    """The same as `zeros_like`."""
    return zeros_like(x, dtype)


# ---- ranges -------------------------------------------------------------------------------------------------------------


def iota(shape: Any, axis: int = 0, dtype: DType = i64) -> Tensor:
    """0, 1, 2, ... along `axis`, the same along the others."""
    return emit("iota", shape=as_shape(shape), axis=axis, dtype=dtype)


@public
def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Tensor:
    """start, start+step, ... below `stop`: i64 for integers and sizes, f32 if a float is among the arguments.

    The bounds fix the size of the result, so they are numbers or sizes, not tensors (FX0302).
    """
    if stop is None:
        start, stop = 0, start
    for v in (start, stop, step):
        if isinstance(v, Tensor):
            raise error("FX0302", "a bound of arange is a traced tensor, so the size of the result is not known",
                        help="use a bound that is known now and a mask, or fx.fori_loop", loc=here())  # fmt: skip
    numbers = [v.item() if isinstance(v, np.generic) else v for v in (start, stop, step)]
    start, stop, step = numbers
    if any(isinstance(v, builtins.float) for v in numbers):
        count = builtins.max(0, math.ceil((stop - start) / step))
        d = f32 if dtype is None else as_dtype(dtype)
        return as_tensor((start + step * np.arange(count, dtype=np.float64)).astype(d.numpy))
    if step == 0 or isinstance(step, Poly):
        raise error("FX0221", f"the step of arange must be a number other than 0, not {step}", loc=here())
    span = stop - start if step > 0 else start - stop
    size = ceildiv(span if facts().range(span)[0] >= 0 else maximum(span, 0), abs(step))
    d = i64 if dtype is None else as_dtype(dtype)
    r = iota((size,), 0, d if d.is_integer else i64)
    r = r if step == 1 else emit("mul", r, constant(step, r.dtype))
    if isinstance(start, Poly) or start != 0:
        r = emit("add", r, promote_operands(r, start)[1])
    return cast(r, d)


@public
def linspace(
    start: Any, stop: Any, /, num: int = 50, *, dtype: Any = None, device: Any = None, endpoint: bool = True
) -> Tensor:
    """`num` evenly spaced numbers from `start` to `stop` (included if `endpoint`); tensors give a new leading axis."""
    d = as_dtype(dtype) if dtype is not None else result_dtype(start, stop, 1.0)
    (count,) = as_shape(num)
    if not isinstance(count, int):
        raise error("FX0302", f"linspace needs a number of points that is known now, not {num}", loc=here())
    parts = num - 1 if endpoint else num
    if is_scalar(start) and is_scalar(stop):
        return as_tensor(np.linspace(start, stop, num, endpoint=endpoint).astype(d.numpy))
    first, last = (cast(t, d) for t in promote_operands(start, stop))
    where = np.arange(num, dtype=np.float64) / builtins.max(parts, 1)
    t = as_tensor(where.astype(d.numpy))
    rank = builtins.max(first.ndim, last.ndim)
    t = emit("reshape", t, shape=(num, *[1] * rank)) if rank else t
    # (1-t)*a + t*b meets both ends exactly, unlike a + t*(b-a).
    return emit("add", emit("mul", emit("sub", constant(1, d), t), first), emit("mul", t, last))


@public
def logspace(
    start: Any, stop: Any, num: int = 50, *, endpoint: bool = True, base: float = 10.0, dtype: Any = None
) -> Tensor:
    """`base` to the powers `linspace(start, stop)`."""
    if is_scalar(start) and is_scalar(stop):
        d = f32 if dtype is None else as_dtype(dtype)
        return as_tensor(np.logspace(start, stop, num, endpoint=endpoint, base=base).astype(d.numpy))
    x = linspace(start, stop, num, dtype=dtype, endpoint=endpoint)
    return emit("exp", emit("mul", x, constant(math.log(base), x.dtype)))


@public
def geomspace(start: float, stop: float, num: int = 50, *, endpoint: bool = True, dtype: Any = None) -> Tensor:
    """`num` numbers from `start` to `stop` with equal ratios."""
    d = f32 if dtype is None else as_dtype(dtype)
    return as_tensor(np.geomspace(start, stop, num, endpoint=endpoint).astype(d.numpy))


@public
def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Tensor]:
    """Coordinate grids of one-axis tensors; "xy" swaps the first two axes, "ij" keeps the order."""
    xs = [as_tensor(a) for a in arrays]
    if indexing not in ("xy", "ij"):
        raise error("FX0221", f"meshgrid: indexing is 'xy' or 'ij', not {indexing!r}", loc=here())
    for x in xs:
        if x.ndim > 1:
            raise error("FX0220", f"meshgrid takes tensors of one axis, not {x.type}", loc=here())
    xs = [x if x.ndim else emit("reshape", x, shape=(1,)) for x in xs]
    order = list(range(len(xs)))
    if indexing == "xy" and len(xs) > 1:
        order[:2] = [1, 0]
    shape: list[Dim] = [1] * len(xs)
    for i, x in enumerate(xs):
        shape[order[i]] = x.shape[0]
    return [emit("broadcast", x, shape=tuple(shape), axes=(order[i],)) for i, x in enumerate(xs)]


@public
def fromfunction(function: Callable[..., Any], shape: Any, *, dtype: Any = None) -> Any:
    """`function` of the coordinate grids of `shape`."""
    s = as_shape(shape)
    return function(*[iota(s, k, i64 if dtype is None else as_dtype(dtype)) for k in range(len(s))])


@public
def indices(dimensions: Any, dtype: Any = None) -> Tensor:
    """The coordinate grids of a shape, stacked on a leading axis."""
    s = as_shape(dimensions)
    d = i64 if dtype is None else as_dtype(dtype)
    return emit("concat", *[emit("reshape", iota(s, k, d), shape=(1, *s)) for k in range(len(s))], axis=0)


# ---- matrices -----------------------------------------------------------------------------------------------------------


def _diagonal_mask(rows: Dim, cols: Dim, k: int, compare: str) -> Tensor:
    """bool[rows, cols]: column `compare` row + k."""
    row = emit("reshape", iota((rows,)), shape=(rows, 1))
    row = emit("add", row, constant(k, i64)) if k else row
    return emit(compare, iota((cols,)), row)


@public
def eye(n_rows: Any, n_cols: Any = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones on the `k`-th diagonal, zeros elsewhere."""
    rows, cols = as_shape((n_rows, n_rows if n_cols is None else n_cols))
    return cast(_diagonal_mask(rows, cols, k, "eq"), f32 if dtype is None else as_dtype(dtype))


@public
def identity(n: Any, dtype: Any = None) -> Tensor:
    """The identity matrix."""
    return eye(n, dtype=dtype)


@public
def tri(N: Any, M: Any = None, k: int = 0, dtype: Any = None) -> Tensor:
    """Ones at and below the `k`-th diagonal."""
    rows, cols = as_shape((N, N if M is None else M))
    return cast(_diagonal_mask(rows, cols, k, "le"), f32 if dtype is None else as_dtype(dtype))


def _triangle(x: Any, k: int, compare: str) -> Tensor:
    t = as_tensor(x)
    if t.ndim < 2:
        raise error("FX0220", f"a triangle needs at least two axes, {t.type} has {t.ndim}", loc=here())
    mask = _diagonal_mask(t.shape[-2], t.shape[-1], k, compare)
    return emit("select", mask, t, constant(0, t.dtype))


@public
def tril(x: Any, /, k: int = 0) -> Tensor:
    """The lower triangle of the last two axes (up to the `k`-th diagonal), zeros above."""
    return _triangle(x, k, "le")


@public
def triu(x: Any, /, k: int = 0) -> Tensor:
    """The upper triangle of the last two axes (from the `k`-th diagonal), zeros below."""
    return _triangle(x, k, "ge")


# ---- element types ------------------------------------------------------------------------------------------------------


def dtype(x: Any) -> DType:
    """The element type of a tensor or array, or the one named by `x`."""
    return as_dtype(getattr(x, "dtype", x))


def finfo(type: Any, /) -> Any:
    """Limits of a float type: numpy's `finfo` (ml_dtypes' for bf16), with eps, max, min, smallest_normal."""
    d = dtype(type)
    if not d.is_float:
        raise error("FX0209", f"finfo takes a float type, not {d}")
    if d.name == "bf16":
        import ml_dtypes

        return ml_dtypes.finfo(d.numpy)  # type: ignore[no-untyped-call]
    return np.finfo(d.numpy)


def iinfo(type: Any, /) -> Any:
    """Limits of an integer type: numpy's `iinfo`."""
    d = dtype(type)
    if not d.is_integer:
        raise error("FX0209", f"iinfo takes an integer type, not {d}")
    return np.iinfo(d.numpy)


_KINDS = {
    "bool": ("bool",), "signed integer": ("int",), "unsigned integer": ("uint",), "integral": ("int", "uint"),
    "real floating": ("float",), "complex floating": (), "numeric": ("int", "uint", "float"),
}  # fmt: skip


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether an element type is of a kind (Array API names: "integral", "real floating", ...) or equals a type."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    d = as_dtype(dtype)
    if isinstance(kind, str) and kind in _KINDS:
        return d.kind in _KINDS[kind]
    return d == as_dtype(kind)


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The element type these tensors, arrays, types and numbers meet in (FX0201 if none)."""
    return result_dtype(*[DTYPES.get(x, x) if isinstance(x, str) else x for x in arrays_and_dtypes])


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether values of one type promote to another without loss under the standard's rules."""
    from fluxir.errors import FluxError
    from fluxir.ir.dtypes import promote

    try:
        return promote(dtype(from_), as_dtype(to)) == as_dtype(to)
    except FluxError:
        return False


def broadcast_sizes(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    from fluxir.ops.rules import broadcast_shapes

    return broadcast_shapes("broadcast", shapes)


__all__ = [
    "arange", "array", "asarray", "astype", "bitcast", "can_cast", "copy", "dtype", "e", "empty", "empty_like",
    "eye", "finfo", "from_dlpack", "fromfunction", "full", "full_like", "geomspace", "identity", "iinfo", "indices",
    "inf", "isdtype", "linspace", "logspace", "meshgrid", "nan", "newaxis", "ones", "ones_like", "pi",
    "result_type", "stop_gradient", "tri", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip
