"""ATen operators on elements, shapes, reductions and indices.

Where torch promotes operands (an integer tensor and a float, say), the result's type is what torch says it is (`cx.dtype`)
and the operands are cast to it first.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import library as fx
from fluxir.frontend.aten.registry import Context, aten
from fluxir.ir import dims
from fluxir.ir.dims import Poly
from fluxir.ir.dtypes import DType, f32, i64, promote

Tensors = Sequence[Any]


def number(x: Any) -> bool:
    """Whether an operand is no tensor: a Python number or a size."""
    return isinstance(x, bool | int | float | Poly)


def as_type(x: Any, d: DType) -> Any:
    """An operand (tensor, number or size) with elements of `d`."""
    if isinstance(x, Poly):
        return fx.cast(fx.asarray(x), d)
    if isinstance(x, bool | int | float):
        return np.asarray(x).astype(d.numpy)
    if fx.dtype(x) == d:
        return x
    return fx.not_equal(x, fx.scalar(0, x)) if d.is_bool else fx.cast(x, d)


def met(x: Any, y: Any) -> tuple[Any, Any]:
    """Two operands in the type they meet in, by torch's rule: numbers do not widen tensors of their kind, tensors of no
    axes none of theirs."""
    if number(x) and number(y):
        return fx.asarray(x), fx.asarray(y)
    d = _meeting(x, y)
    return as_type(x, d), as_type(y, d)


_KINDS = {"bool": 0, "uint": 1, "int": 1, "float": 2}


def _meeting(x: Any, y: Any) -> DType:
    if number(x) or number(y):
        t, n = (y, x) if number(x) else (x, y)
        kind = 2 if isinstance(n, float) else 0 if isinstance(n, bool) else 1
        d = fx.dtype(t)
        return d if _KINDS[d.kind] >= kind else f32 if kind == 2 else i64
    a, b = fx.dtype(x), fx.dtype(y)
    if a == b:
        return a
    if (fx.rank(x) == 0) != (fx.rank(y) == 0):
        wide, narrow = (b, a) if fx.rank(x) == 0 else (a, b)
        if _KINDS[wide.kind] >= _KINDS[narrow.kind]:
            return wide
    if _KINDS[a.kind] != _KINDS[b.kind]:
        return a if _KINDS[a.kind] > _KINDS[b.kind] else b
    return promote(a, b)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@aten("add.Tensor", "add.Scalar")
def add(cx: Context, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    y = as_type(y, cx.dtype)
    y = y if alpha == 1 else fx.multiply(y, as_type(alpha, cx.dtype))
    if cx.dtype.is_bool:
        return fx.logical_or(as_type(x, cx.dtype), y)
    return fx.add(as_type(x, cx.dtype), y)


@aten("sub.Tensor", "sub.Scalar")
def sub(cx: Context, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    y = as_type(y, cx.dtype)
    y = y if alpha == 1 else fx.multiply(y, as_type(alpha, cx.dtype))
    return fx.subtract(as_type(x, cx.dtype), y)


@aten("rsub.Scalar", "rsub.Tensor")
def rsub(cx: Context, x: Any, y: Any, alpha: Any = 1) -> Any:
    return sub(cx, y, x, alpha=alpha)


def _same(f: Callable[..., Any], *names: str) -> None:
    """Operators whose operands have the type of the result."""

    def run(cx: Context, *xs: Any) -> Any:
        return f(*[as_type(x, cx.dtype) for x in xs])

    aten(*names)(run)


def _multiply(x: Any, y: Any) -> Any:
    return fx.logical_and(x, y) if fx.dtype(x).is_bool else fx.multiply(x, y)


_same(_multiply, "mul.Tensor", "mul.Scalar")
_same(fx.divide, "div.Tensor", "div.Scalar", "true_divide.Tensor")
_same(fx.maximum, "maximum")
_same(fx.minimum, "minimum")
_same(fx.remainder, "remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
_same(fx.fmod, "fmod.Tensor", "fmod.Scalar")
_same(fx.atan2, "atan2")
_same(fx.fmax, "fmax")
_same(fx.fmin, "fmin")
_same(fx.hypot, "hypot")
_same(fx.copysign, "copysign.Tensor", "copysign.Scalar")
_same(fx.logaddexp, "logaddexp")
_same(fx.floor_divide, "floor_divide", "floor_divide.Scalar")
_same(fx.bitwise_and, "bitwise_and.Tensor", "bitwise_and.Scalar", "__and__.Tensor", "__and__.Scalar")
_same(fx.bitwise_or, "bitwise_or.Tensor", "bitwise_or.Scalar", "__or__.Tensor", "__or__.Scalar")
_same(fx.bitwise_xor, "bitwise_xor.Tensor", "bitwise_xor.Scalar", "__xor__.Tensor", "__xor__.Scalar")
_same(fx.bitwise_left_shift, "__lshift__.Scalar", "__lshift__.Tensor", "bitwise_left_shift.Tensor")
_same(fx.bitwise_right_shift, "__rshift__.Scalar", "__rshift__.Tensor", "bitwise_right_shift.Tensor")


@aten("div.Tensor_mode", "div.Scalar_mode")
def div_mode(cx: Context, x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    x, y = as_type(x, cx.dtype), as_type(y, cx.dtype)
    if rounding_mode == "floor":
        return fx.floor_divide(x, y)
    q = fx.primitive("div", x, y)
    return fx.trunc(q) if rounding_mode == "trunc" and cx.dtype.is_float else q


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def pow_(cx: Context, x: Any, y: Any) -> Any:
    if y == 2 and number(y):
        x = as_type(x, cx.dtype)
        return fx.multiply(x, x)
    if isinstance(y, float) and y == 0.5:
        return fx.sqrt(as_type(x, cx.dtype))
    if isinstance(y, float) and y == -0.5:
        return fx.rsqrt(as_type(x, cx.dtype))
    return fx.pow(as_type(x, cx.dtype), as_type(y, cx.dtype))


def _compare(f: Callable[..., Any], name: str) -> None:
    aten(f"{name}.Tensor", f"{name}.Scalar")(lambda x, y: f(*met(x, y)))


for _name, _relation in (
    ("eq", fx.equal), ("ne", fx.not_equal), ("lt", fx.less), ("le", fx.less_equal), ("gt", fx.greater),
    ("ge", fx.greater_equal),
):  # fmt: skip
    _compare(_relation, _name)


def _truth(x: Any) -> Any:
    return x if fx.dtype(x).is_bool else fx.not_equal(x, fx.scalar(0, x))


aten("logical_and")(lambda x, y: fx.logical_and(_truth(x), _truth(y)))
aten("logical_or")(lambda x, y: fx.logical_or(_truth(x), _truth(y)))
aten("logical_xor")(lambda x, y: fx.logical_xor(_truth(x), _truth(y)))
aten("logical_not")(lambda x: fx.logical_not(_truth(x)))
aten("bitwise_not")(lambda x: fx.bitwise_invert(x))

# ---- functions of one number ---------------------------------------------------------------------------------------

_FLOATS: dict[str, Callable[..., Any]] = {
    "exp": fx.exp, "exp2": fx.exp2, "expm1": fx.expm1, "log": fx.log, "log2": fx.log2, "log10": fx.log10,
    "log1p": fx.log1p, "sqrt": fx.sqrt, "rsqrt": fx.rsqrt, "sin": fx.sin, "cos": fx.cos, "tan": fx.tan, "asin": fx.asin,
    "acos": fx.acos, "atan": fx.atan, "sinh": fx.sinh, "cosh": fx.cosh, "tanh": fx.tanh, "asinh": fx.asinh,
    "acosh": fx.acosh, "atanh": fx.atanh, "erf": fx.erf, "erfc": fx.erfc, "sigmoid": fx.sigmoid,
    "reciprocal": fx.reciprocal, "lgamma": fx.lgamma, "digamma": fx.digamma, "special_expm1": fx.expm1,
}  # fmt: skip
for _name, _f in _FLOATS.items():
    _same(_f, _name)

_ANY: dict[str, Callable[..., Any]] = {
    "abs": fx.abs, "neg": fx.negative, "sign": fx.sign, "sgn": fx.sign, "ceil": fx.ceil, "floor": fx.floor,
    "round": fx.round, "trunc": fx.trunc, "isnan": fx.isnan, "isinf": fx.isinf, "isfinite": fx.isfinite, "square": fx.square,
    "frac": lambda x: fx.subtract(x, fx.trunc(x)), "relu": lambda x: fx.maximum(x, fx.scalar(0, x)),
    "relu6": lambda x: fx.clip(x, fx.scalar(0, x), fx.scalar(6, x)), "deg2rad": fx.deg2rad, "rad2deg": fx.rad2deg,
    "signbit": fx.signbit, "erfinv": lambda x: fx.public(fx.random.erfinv)(x),
}  # fmt: skip
for _name, _f in _ANY.items():
    aten(_name)(lambda x, f=_f: f(x))


@aten("round.decimals")
def round_decimals(x: Any, *, decimals: int = 0) -> Any:
    return fx.round(x, decimals)


@aten("clamp", "clamp.Tensor", "clip")
def clamp(cx: Context, x: Any, min: Any = None, max: Any = None) -> Any:
    x = as_type(x, cx.dtype)
    x = x if min is None else fx.maximum(x, as_type(min, cx.dtype))
    return x if max is None else fx.minimum(x, as_type(max, cx.dtype))


aten("clamp_min", "clamp_min.Tensor")(lambda cx, x, low: clamp(cx, x, low))
aten("clamp_max", "clamp_max.Tensor")(lambda cx, x, high: clamp(cx, x, None, high))


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(cx: Context, c: Any, x: Any, y: Any) -> Any:
    return fx.where(_truth(c), as_type(x, cx.dtype), as_type(y, cx.dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    return fx.where(mask, as_type(value, fx.dtype(x)), x)


@aten("lerp.Scalar", "lerp.Tensor")
def lerp(x: Any, y: Any, w: Any) -> Any:
    return fx.add(x, fx.multiply(fx.subtract(y, x), as_type(w, fx.dtype(x))))


@aten("addcmul")
def addcmul(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return fx.add(x, fx.multiply(fx.multiply(a, b), fx.scalar(value, x)))


@aten("addcdiv")
def addcdiv(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return fx.add(x, fx.multiply(fx.divide(a, b), fx.scalar(value, x)))


# ---- types and copies ----------------------------------------------------------------------------------------------


@aten("_to_copy", "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as")
def to_copy(cx: Context, x: Any, *_: Any, **__: Any) -> Any:
    return as_type(x, cx.dtype)


for _name in ("clone", "detach", "alias", "contiguous", "lift_fresh_copy", "lift_fresh", "dropout", "feature_dropout",
              "_assert_tensor_metadata", "detach_"):  # fmt: skip
    aten(_name)(lambda x, *_, **__: x)


@aten("copy")
def copy(cx: Context, x: Any, y: Any, non_blocking: bool = False) -> Any:
    return fx.broadcast_to(as_type(y, cx.dtype), x.shape)


@aten("view.dtype")
def view_dtype(cx: Context, x: Any, _: Any) -> Any:
    return fx.bitcast(x, cx.dtype)


# ---- new tensors ---------------------------------------------------------------------------------------------------


def _filled(*names: str, value: Any = None) -> None:
    def run(cx: Context, *args: Any, **_: Any) -> Any:
        v = value if value is not None else args[-1]
        return fx.full(cx.shapes[0], as_type(v, cx.dtype))

    aten(*names)(run)


_filled("full", "full_like", "new_full")
_filled("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty", "empty_permuted",
        "empty_strided", "new_empty_strided", value=0)  # fmt: skip
_filled("ones", "ones_like", "new_ones", value=1)


@aten("scalar_tensor")
def scalar_tensor(cx: Context, x: Any, **_: Any) -> Any:
    return as_type(x, cx.dtype)


@aten("fill.Scalar", "fill.Tensor")
def fill(cx: Context, x: Any, value: Any) -> Any:
    return fx.broadcast_to(as_type(value, cx.dtype), cx.shapes[0])


@aten("arange.start_step", "arange", "arange.start")
def arange(cx: Context, *args: Any, **_: Any) -> Any:
    start, stop, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    if all(isinstance(v, int | Poly) for v in (start, stop, step)) and step == 1:
        return as_type(fx.arange(start, stop), cx.dtype)
    return as_type(fx.arange(start, stop, step), cx.dtype)


@aten("linspace")
def linspace(cx: Context, start: float, end: float, steps: int, **_: Any) -> Any:
    return fx.cast(fx.linspace(start, end, steps), cx.dtype)


@aten("eye", "eye.m")
def eye(cx: Context, n: Any, m: Any = None, **_: Any) -> Any:
    return fx.eye(n, m, dtype=cx.dtype)


aten("tril")(lambda x, diagonal=0: fx.tril(x, k=diagonal))
aten("triu")(lambda x, diagonal=0: fx.triu(x, k=diagonal))


# ---- shapes --------------------------------------------------------------------------------------------------------


@aten("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")
def view(cx: Context, x: Any, *_: Any) -> Any:
    return fx.reshape(x, cx.shapes[0])


for _name in ("unsqueeze", "squeeze.dim", "squeeze.dims", "squeeze", "flatten.using_ints", "unflatten.int"):
    aten(_name)(view)

aten("permute", "permute_copy")(lambda x, order: fx.transpose(x, tuple(fx.axis_of(a, fx.rank(x)) for a in order)))
aten("transpose.int")(lambda x, a, b: fx.swapaxes(x, a, b))
aten("t")(lambda x: fx.transpose(x, tuple(reversed(range(fx.rank(x))))))
aten("numpy_T")(lambda x: fx.transpose(x, tuple(reversed(range(fx.rank(x))))))
aten("movedim.int")(lambda x, a, b: fx.moveaxis(x, a, b))


@aten("expand", "broadcast_to", "expand_copy", "expand_as")
def expand(cx: Context, x: Any, *_: Any, **__: Any) -> Any:
    return fx.broadcast_to(x, cx.shapes[0])


@aten("repeat")
def repeat(x: Any, times: Sequence[Any]) -> Any:
    return fx.tile(x, tuple(times))


@aten("repeat_interleave.self_int")
def repeat_interleave(x: Any, times: int, dim: int | None = None, **_: Any) -> Any:
    return fx.repeat(x, times, axis=dim)


@aten("cat", "concat", "concatenate")
def cat(cx: Context, parts: Tensors, dim: int = 0) -> Any:
    kept = [
        as_type(p, cx.dtype)
        for p in parts
        if not (fx.rank(p) == 1 and len(parts) > 1 and p.shape[0] == 0 and len(cx.shapes[0]) > 1)
    ]
    return fx.concat(kept, fx.axis_of(dim, fx.rank(kept[0])))


@aten("stack")
def stack(cx: Context, parts: Tensors, dim: int = 0) -> Any:
    return fx.stack([as_type(p, cx.dtype) for p in parts], axis=dim % (fx.rank(parts[0]) + 1))


@aten("slice.Tensor", "slice_copy.Tensor")
def slice_(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    axis = fx.axis_of(dim, fx.rank(x))
    if isinstance(end, int) and end >= 1 << 62:
        end = None
    return fx.part(x, axis, start, end, step)


@aten("select.int", "select_copy.int")
def select(x: Any, dim: int, index: Any) -> Any:
    return fx.item(x, (*[slice(None)] * fx.axis_of(dim, fx.rank(x)), index))


@aten("narrow")
def narrow(x: Any, dim: int, start: Any, length: Any) -> Any:
    return fx.part(x, fx.axis_of(dim, fx.rank(x)), start, start + length)


@aten("split_with_sizes", "split_with_sizes_copy", "split.sizes")
def split_with_sizes(x: Any, sizes: Sequence[Any], dim: int = 0) -> Any:
    axis, at, out = fx.axis_of(dim, fx.rank(x)), 0, []
    for n in sizes:
        out.append(fx.part(x, axis, at, at + n))
        at = at + n
    return out


@aten("split.Tensor")
def split(x: Any, size: int, dim: int = 0) -> Any:
    n = x.shape[fx.axis_of(dim, fx.rank(x))]
    return split_with_sizes(x, [builtins.min(size, n - at) for at in range(0, n, size)] or [n], dim)


@aten("chunk")
def chunk(x: Any, chunks: int, dim: int = 0) -> Any:
    n = x.shape[fx.axis_of(dim, fx.rank(x))]
    each = dims.ceildiv(n, chunks)
    if isinstance(n, int):
        return split(x, each, dim)
    return split_with_sizes(x, [each] * (chunks - 1) + [n - each * (chunks - 1)], dim)


@aten("unbind.int")
def unbind(x: Any, dim: int = 0) -> Any:
    axis = fx.axis_of(dim, fx.rank(x))
    return [fx.item(x, (*[slice(None)] * axis, i)) for i in range(int(x.shape[axis]))]


@aten("flip")
def flip(x: Any, over: Sequence[int]) -> Any:
    return fx.flip(x, axis=tuple(over))


@aten("roll")
def roll(x: Any, shifts: Sequence[int], over: Sequence[int] = ()) -> Any:
    return fx.roll(x, tuple(shifts), axis=tuple(over) or None)


@aten("constant_pad_nd", "pad")
def constant_pad(x: Any, pads: Sequence[int], value: Any = 0.0, *rest: Any) -> Any:
    if isinstance(value, str):
        if value != "constant":
            raise error("FX1203", f"aten.pad with the mode {value!r}")
        value = rest[0] if rest and rest[0] is not None else 0.0
    return _padded(x, pads, "constant", value)


def _padded(x: Any, pads: Sequence[Any], mode: str, value: Any = 0.0) -> Any:
    """torch lists pairs from the last axis on; widths below 0 cut."""
    n = fx.rank(x)
    widths: list[tuple[Any, Any]] = [(0, 0)] * n
    for k in range(len(pads) // 2):
        widths[n - 1 - k] = pads[2 * k], pads[2 * k + 1]
    if builtins.any(isinstance(w, int) and w < 0 for p in widths for w in p):
        key = tuple(slice(-a if a < 0 else None, b if b < 0 else None) for a, b in widths)
        x = fx.item(x, key)
        widths = [(builtins.max(a, 0), builtins.max(b, 0)) for a, b in widths]
    if mode == "constant":
        return fx.pad(x, widths, "constant", constant_values=as_type(value, fx.dtype(x)))
    return fx.pad(x, widths, mode)


for _k in (1, 2, 3):
    aten(f"reflection_pad{_k}d")(lambda x, pads: _padded(x, pads, "reflect"))
    aten(f"replication_pad{_k}d")(lambda x, pads: _padded(x, pads, "edge"))


@aten("diagonal", "diagonal_copy")
def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    return fx.diagonal(x, offset=offset, axis1=dim1, axis2=dim2)


@aten("sym_size.int")
def sym_size(x: Any, dim: int) -> Any:
    return x.shape[dim]


@aten("sym_numel")
def sym_numel(x: Any) -> Any:
    return dims.product(x.shape)


@aten("meshgrid.indexing", "meshgrid")
def meshgrid(parts: Tensors, *, indexing: str = "ij") -> Any:
    return list(fx.meshgrid(*parts, indexing=indexing))


@aten("pixel_shuffle")
def pixel_shuffle(x: Any, factor: int) -> Any:
    *lead, c, h, w = x.shape
    y = fx.reshape(x, (*lead, c // factor**2, factor, factor, h, w))
    n = len(lead)
    y = fx.transpose(y, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return fx.reshape(y, (*lead, c // factor**2, h * factor, w * factor))


# ---- reductions ----------------------------------------------------------------------------------------------------


def _axes(dim: Any) -> Any:
    return (
        None
        if dim is None or (isinstance(dim, list | tuple) and not dim)
        else tuple(dim)
        if isinstance(dim, list | tuple)
        else dim
    )


@aten("sum.dim_IntList", "sum")
def sum_(cx: Context, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return fx.sum(as_type(x, cx.dtype), axis=_axes(dim), keepdims=keepdim, dtype=cx.dtype)


@aten("mean.dim", "mean")
def mean(cx: Context, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return fx.mean(as_type(x, cx.dtype), axis=_axes(dim), keepdims=keepdim)


@aten("prod", "prod.dim_int")
def prod(cx: Context, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return fx.prod(as_type(x, cx.dtype), axis=dim, keepdims=keepdim, dtype=cx.dtype)


@aten("amax")
def amax(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return fx.max(x, axis=_axes(dim), keepdims=keepdim)


@aten("amin")
def amin(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return fx.min(x, axis=_axes(dim), keepdims=keepdim)


aten("max")(lambda x: fx.max(x))
aten("min")(lambda x: fx.min(x))


@aten("max.dim")
def max_dim(x: Any, dim: int, keepdim: bool = False) -> Any:
    return fx.max(x, axis=dim, keepdims=keepdim), fx.argmax(x, axis=dim, keepdims=keepdim)


@aten("min.dim")
def min_dim(x: Any, dim: int, keepdim: bool = False) -> Any:
    return fx.min(x, axis=dim, keepdims=keepdim), fx.argmin(x, axis=dim, keepdims=keepdim)


@aten("argmax")
def argmax(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return fx.argmax(x, axis=dim, keepdims=keepdim)


@aten("argmin")
def argmin(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return fx.argmin(x, axis=dim, keepdims=keepdim)


@aten("any", "any.dim", "any.dims")
def any_(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return fx.any(_truth(x), axis=_axes(dim), keepdims=keepdim)


@aten("all", "all.dim", "all.dims")
def all_(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return fx.all(_truth(x), axis=_axes(dim), keepdims=keepdim)


@aten("var.correction", "var.dim", "var")
def var(x: Any, dim: Any = None, unbiased: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    c = correction if correction is not None else 1 if unbiased is None or unbiased is True else 0
    return fx.var(x, axis=_axes(dim), correction=c, keepdims=keepdim)


@aten("std.correction")
def std(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return fx.sqrt(var(x, dim, correction=correction, keepdim=keepdim))


@aten("var_mean.correction")
def var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return var(x, dim, correction=correction, keepdim=keepdim), fx.mean(x, axis=_axes(dim), keepdims=keepdim)


@aten("cumsum")
def cumsum(cx: Context, x: Any, dim: int, *, dtype: Any = None) -> Any:
    return fx.cumsum(as_type(x, cx.dtype), axis=dim, dtype=cx.dtype)


@aten("cumprod")
def cumprod(cx: Context, x: Any, dim: int, *, dtype: Any = None) -> Any:
    return fx.cumprod(as_type(x, cx.dtype), axis=dim, dtype=cx.dtype)


@aten("logsumexp")
def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    return fx.logsumexp(x, axis=_axes(dim), keepdims=keepdim)


@aten("linalg_vector_norm", "norm.ScalarOpt_dim")
def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    axes = _axes(dim)
    if ord == 2:
        return fx.sqrt(fx.sum(fx.multiply(x, x), axis=axes, keepdims=keepdim))
    if ord == 1:
        return fx.sum(fx.abs(x), axis=axes, keepdims=keepdim)
    if ord in (math.inf, -math.inf):
        return (fx.max if ord > 0 else fx.min)(fx.abs(x), axis=axes, keepdims=keepdim)
    if ord == 0:
        return fx.sum(fx.cast(fx.not_equal(x, fx.scalar(0, x)), fx.dtype(x)), axis=axes, keepdims=keepdim)
    return fx.pow(fx.sum(fx.pow(fx.abs(x), fx.scalar(ord, x)), axis=axes, keepdims=keepdim), fx.scalar(1 / ord, x))


@aten("sort")
def sort(x: Any, dim: int = -1, descending: bool = False) -> Any:
    order = fx.argsort(x, axis=dim, descending=descending)
    return fx.take_along_axis(x, order, axis=dim), order


@aten("argsort", "argsort.stable")
def argsort(x: Any, dim: int = -1, descending: bool = False, **_: Any) -> Any:
    return fx.argsort(x, axis=dim, descending=descending)


@aten("topk")
def topk(x: Any, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    axis = fx.axis_of(dim, fx.rank(x))
    order = fx.part(fx.argsort(x, axis=axis, descending=largest), axis, 0, k)
    return fx.take_along_axis(x, order, axis=axis), order


# ---- indices -------------------------------------------------------------------------------------------------------


@aten("embedding")
def embedding(table: Any, indices: Any, *_: Any, **__: Any) -> Any:
    return fx.take(table, indices, axis=0)


@aten("index_select")
def index_select(x: Any, dim: int, index: Any) -> Any:
    return fx.take(x, index, axis=fx.axis_of(dim, fx.rank(x)))


@aten("gather")
def gather(x: Any, dim: int, index: Any, **_: Any) -> Any:
    return fx.gather_along(x, index, fx.axis_of(dim, fx.rank(x)))


def _key(indices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else i for i in indices)


@aten("index.Tensor", "_unsafe_index.Tensor")
def index(x: Any, indices: Sequence[Any]) -> Any:
    if builtins.any(i is not None and fx.dtype(i).is_bool for i in indices):
        raise error("FX1205", "how many elements a boolean index picks is computed from the inputs of the model")
    return fx.item(x, _key(indices))


@aten("index_put", "_unsafe_index_put")
def index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    masks = [i for i in indices if i is not None and fx.dtype(i).is_bool]
    if len(masks) == 1 and len(indices) == 1 and not accumulate:
        mask = fx.reshape(masks[0], (*masks[0].shape, *[1] * (fx.rank(x) - fx.rank(masks[0]))))
        return fx.where(mask, values, x)
    return fx.put(x, _key(indices), values, "add" if accumulate else "set")


def _places(x: Any, dim: int, index: Any) -> tuple[Any, ...]:
    return fx.places_along(index, fx.axis_of(dim, fx.rank(x)), index.shape)


@aten("scatter.src", "scatter.value")
def scatter(x: Any, dim: int, index: Any, src: Any) -> Any:
    values = fx.full(index.shape, as_type(src, fx.dtype(x))) if number(src) else _corner(src, index.shape)
    return fx.put(x, _places(x, dim, index), values, "set")


@aten("scatter_add")
def scatter_add(x: Any, dim: int, index: Any, src: Any) -> Any:
    return fx.put(x, _places(x, dim, index), _corner(src, index.shape), "add")


def _corner(x: Any, shape: Sequence[Any]) -> Any:
    for k, n in enumerate(shape):
        if x.shape[k] != n:
            x = fx.part(x, k, 0, n)
    return x


@aten("slice_scatter")
def slice_scatter(x: Any, src: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    axis = fx.axis_of(dim, fx.rank(x))
    end = None if isinstance(end, int) and end >= 1 << 62 else end
    return fx.put(x, (*[slice(None)] * axis, slice(start, end, step)), src, "set")


@aten("select_scatter")
def select_scatter(x: Any, src: Any, dim: int, index: Any) -> Any:
    return fx.put(x, (*[slice(None)] * fx.axis_of(dim, fx.rank(x)), index), src, "set")


@aten("index_copy")
def index_copy(x: Any, dim: int, index: Any, src: Any) -> Any:
    return fx.put(x, (*[slice(None)] * fx.axis_of(dim, fx.rank(x)), index), src, "set")


@aten("index_add")
def index_add(x: Any, dim: int, index: Any, src: Any, *, alpha: Any = 1) -> Any:
    src = src if alpha == 1 else fx.multiply(src, fx.scalar(alpha, src))
    return fx.put(x, (*[slice(None)] * fx.axis_of(dim, fx.rank(x)), index), src, "add")


@aten("one_hot")
def one_hot(x: Any, classes: int = -1) -> Any:
    return fx.one_hot(x, classes, dtype=i64)


@aten("bucketize.Tensor", "searchsorted.Tensor")
def bucketize(x: Any, edges: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    return fx.searchsorted(edges, x, side="right" if right else "left")
