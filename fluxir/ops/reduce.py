"""Reductions: sums and extrema over axes, argmax/argmin, cumulative ops, sliding windows.

Numerics: `sum`, `prod` and their cumulative and windowed forms keep f16 and bf16 in f32 and round each result once;
integers keep their type and wrap. `max` and `min` give NaN if any element is NaN. The sum of nothing is 0, the
product 1, `any` false, `all` true; `max` and `min` over an axis that is empty for certain are an error (FX0225), over
one whose symbolic size happens to be 0 at run time they give the identity (-inf/inf, or the integer type's end), and
`argmax`/`argmin` give 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, product, prove_le, prove_lt
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import INDEX, TensorType, Type
from fluxir.ops import adjoint_reduce, adjoint_window
from fluxir.ops.nest import accumulator, cast, combine, identity, nest, whole
from fluxir.ops.rules import check_dtype, normal_axes, normal_axis, tensor_operands


def reduced_shape(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """`shape` without `axes` (counted from 0), or with size 1 there."""
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _require_nonempty(name: str, x: TensorType, axes: Sequence[int]) -> None:
    for axis in axes:
        if isinstance(x.shape[axis], int) and x.shape[axis] == 0:
            raise error(
                "FX0225",
                f"{name} over axis {axis} of {x}, which is empty",
                help="join a starting value to the axis first, or give `initial` where the function takes it",
            )


def widened(x: Any) -> Any:
    """A half-precision array as f32 (exact), anything else as it is: numpy's reductions do not know bfloat16."""
    x = np.asarray(x)
    return x.astype(accumulator(dtype_of(x.dtype)).numpy)


def _operand_index(
    index: Sequence[Value], axes: Sequence[int], inner: Sequence[Value], keepdims: bool, rank: int
) -> list[Value]:
    """The operand's index from the result's and the indices along the reduced axes."""
    rest = iter([i for k, i in enumerate(index) if not keepdims or k not in axes])
    return [inner[list(axes).index(k)] if k in axes else next(rest) for k in range(rank)]


# ---- sum, prod, max, min, any, all -----------------------------------------------------------------------------------

_REDUCE: dict[str, Any] = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min, "any": np.any, "all": np.all}


def _reduce_ref(name: str) -> Any:
    f = _REDUCE[name]

    def ref(a: Attrs, x: Any) -> Any:
        x = np.asarray(x)
        wide = widened(x)
        how: dict[str, Any] = {"axis": normal_axes(name, a.axes, x.ndim), "keepdims": a.keepdims}
        if name in ("sum", "prod"):
            how["dtype"] = wide.dtype
        elif name in ("max", "min"):
            how["initial"] = wide.dtype.type(identity(name, dtype_of(wide.dtype)))
        return np.asarray(f(wide, **how)).astype(x.dtype)

    return ref


def _reduce_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    (x,) = o.operands
    t = x.type
    axes = sorted(normal_axes(o.name, o.attrs.axes, len(t.shape)))
    wide = accumulator(t.dtype) if o.name in ("sum", "prod") else t.dtype
    start = cx.b.const(identity(o.name, t.dtype), dtype=wide)

    def body(c: Any, inner: tuple[Value, ...], carry: list[Value]) -> list[Value]:
        e = c.at(x, _operand_index(index, axes, inner, o.attrs.keepdims, len(t.shape)))
        return [combine(c.b, o.name, carry[0], cast(c.b, e, wide))]

    (total,) = nest(cx, whole(cx, [t.shape[k] for k in axes]), [start], body)
    return cast(cx.b, total, t.dtype)


def _reduction(name: str, types: str, doc: str, samples: Sequence[Any], **rules: Any) -> None:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        (x,) = tensor_operands(name, t, 1)
        check_dtype(name, x.dtype, types)
        axes = normal_axes(name, a.axes, x.rank)
        if name in ("max", "min"):
            _require_nonempty(name, x, axes)
        return [x.with_shape(reduced_shape(x.shape, axes, a.keepdims))]

    op(
        name,
        infer,
        attrs={"axes": "ints", "keepdims": ("bool", False)},
        category="reduce",
        ref=_reduce_ref(name),
        element=_reduce_element,
        cost=lambda o: o.operands[0].type.size,
        samples=samples,
        doc=doc,
        **rules,
    )


_SHAPES = (
    sample("f32[3,4]", axes=(1,)),
    sample("f32[2,3,4]", axes=(0, 2), keepdims=True),
    sample("f64[5]", axes=(0,)),
    sample("i32[2,3]", axes=(0,)),
    sample("u8[7]", axes=(0,)),
    sample("f16[3,5]", axes=(1,)),
    sample("bf16[3,5]", axes=(0,)),
    sample("i8[4,3]", axes=(0, 1)),
)
_EMPTY = (sample("f32[0,3]", axes=(0,)), sample("f32[3,0]", axes=(0,)), sample("f32", axes=()))
_ORDER = (*_SHAPES, sample("f32[3,0]", axes=(0,)), sample("f32", axes=()), sample("i64[2,2]", axes=(-1,)))

_reduction(
    "sum",
    "number",
    "Sum over `axes`. f16 and bf16 add up in f32 and round once; integers wrap; of nothing: 0.",
    (*_SHAPES, *_EMPTY),
    linear="all",
    vjp=adjoint_reduce.sum_vjp,
)
_reduction(
    "prod",
    "number",
    "Product over `axes`. f16 and bf16 multiply in f32 and round once; integers wrap; of nothing: 1.",
    (*_SHAPES, *_EMPTY),
    vjp=adjoint_reduce.prod_vjp,
    jvp=adjoint_reduce.prod_jvp,
)
_reduction(
    "max",
    "any",
    "Largest element over `axes`; NaN if any is NaN. An empty axis is an error.",
    (*_ORDER, sample("bool[2,3]", axes=(1,))),
    vjp=adjoint_reduce.extremum_vjp,
    jvp=adjoint_reduce.extremum_jvp,
)
_reduction(
    "min",
    "any",
    "Smallest element over `axes`; NaN if any is NaN. An empty axis is an error.",
    (*_ORDER, sample("bool[2,3]", axes=(1,))),
    vjp=adjoint_reduce.extremum_vjp,
    jvp=adjoint_reduce.extremum_jvp,
)
_BOOLS = (
    sample("bool[3,4]", axes=(1,)),
    sample("bool[2,3]", axes=(0, 1), keepdims=True),
    sample("bool[0,2]", axes=(0,)),
    sample("bool", axes=()),
)
_reduction("any", "bool", "Whether any element over `axes` is true; of nothing: false.", _BOOLS, constant="takes bools")
_reduction(
    "all", "bool", "Whether all elements over `axes` are true; of nothing: true.", _BOOLS, constant="takes bools"
)


# ---- argmax, argmin --------------------------------------------------------------------------------------------------


def _arg_ref(name: str) -> Any:
    f = {"argmax": np.argmax, "argmin": np.argmin}[name]

    def ref(a: Attrs, x: Any) -> Any:
        wide = widened(x)
        axis = normal_axis(name, a.axis, wide.ndim)
        if wide.shape[axis] == 0:
            return np.zeros(reduced_shape(wide.shape, (axis,), a.keepdims), np.int64)
        return np.asarray(f(wide, axis=axis, keepdims=a.keepdims), np.int64)

    return ref


def _arg_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    (x,) = o.operands
    t = x.type
    axis = normal_axis(o.name, o.attrs.axis, len(t.shape))
    largest = o.name == "argmax"
    start = [cx.b.const(identity("max" if largest else "min", t.dtype), dtype=t.dtype), cx.b.index(0)]

    def body(c: Any, inner: tuple[Value, ...], carry: list[Value]) -> list[Value]:
        b, (best, at) = c.b, carry
        e = c.at(x, _operand_index(index, (axis,), inner, o.attrs.keepdims, len(t.shape)))
        better = b.gt(e, best) if largest else b.lt(e, best)
        if t.dtype.is_float:  # the first NaN wins and stays
            better = b.logical_or(better, b.logical_and(b.ne(e, e), b.eq(best, best)))
        return [b.select(better, e, best), b.select(better, inner[0], at)]

    return nest(cx, whole(cx, [t.shape[axis]]), start, body)[1]


def _arg(name: str, doc: str) -> None:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        (x,) = tensor_operands(name, t, 1)
        axis = normal_axis(name, a.axis, x.rank)
        _require_nonempty(name, x, (axis,))
        return [TensorType(INDEX.dtype, reduced_shape(x.shape, (axis,), a.keepdims))]

    op(
        name,
        infer,
        attrs={"axis": "int", "keepdims": ("bool", False)},
        category="reduce",
        ref=_arg_ref(name),
        element=_arg_element,
        cost=lambda o: o.operands[0].type.size,
        doc=doc,
        constant="gives places",
        samples=(
            sample("f32[3,5]", axis=1),
            sample("f32[3,5]", axis=0, keepdims=True),
            sample("i32[6]", axis=0),
            sample("u8[2,9]", axis=-1),
            sample("bf16[2,7]", axis=1),
            sample("f16[7]", axis=0),
            sample("bool[2,3]", axis=1),
            sample("f64[0,3]", axis=1),
        ),
    )


_arg(
    "argmax", "Index (i64) of the largest element along `axis`: the first of equal ones; the first NaN if there is one."
)
_arg(
    "argmin",
    "Index (i64) of the smallest element along `axis`: the first of equal ones; the first NaN if there is one.",
)


# ---- cumulative ops --------------------------------------------------------------------------------------------------

CUMULATIVE = {"cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min"}
_ACCUMULATE = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def _cumulative_ref(name: str) -> Any:
    f = _ACCUMULATE[CUMULATIVE[name]]

    def ref(a: Attrs, x: Any) -> Any:
        x = np.asarray(x)
        axis = normal_axis(name, a.axis, x.ndim)
        wide = widened(x)
        wide = np.flip(wide, axis) if a.reverse else wide
        out = f.accumulate(wide, axis=axis, dtype=wide.dtype).astype(x.dtype)
        return np.flip(out, axis) if a.reverse else out

    return ref


def _cumulative(name: str, types: str, doc: str, **rules: Any) -> None:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        (x,) = tensor_operands(name, t, 1)
        check_dtype(name, x.dtype, types)
        normal_axis(name, a.axis, x.rank)
        return [x]

    op(
        name,
        infer,
        attrs={"axis": "int", "reverse": ("bool", False)},
        category="reduce",
        ref=_cumulative_ref(name),
        cost=lambda o: o.operands[0].type.size,
        doc=doc + " `reverse` runs from the end of the axis. f16 and bf16 accumulate in f32.",
        samples=(
            sample("f32[3,5]", axis=1),
            sample("f32[3,5]", axis=0, reverse=True),
            sample("i32[6]", axis=0),
            sample("f64[2,3,4]", axis=1),
            sample("f16[9]", axis=0),
            sample("bf16[2,9]", axis=-1, reverse=True),
            sample("u8[4,2]", axis=0),
            sample("f32[0,3]", axis=0),
            sample("f32[3,0]", axis=0),
        ),
        **rules,
    )


_RUNNING = {"vjp": adjoint_reduce.running_vjp, "jvp": adjoint_reduce.running_jvp}
_cumulative(
    "cumsum",
    "number",
    "Sums of the elements up to each place along `axis` (that one included).",
    linear="all",
    vjp=adjoint_reduce.cumsum_vjp,
)
_cumulative(
    "cumprod",
    "number",
    "Products of the elements up to each place along `axis` (that one included).",
    vjp=adjoint_reduce.cumprod_vjp,
)
_cumulative("cummax", "number", "Largest element up to each place along `axis`; NaN from the first NaN on.", **_RUNNING)
_cumulative(
    "cummin", "number", "Smallest element up to each place along `axis`; NaN from the first NaN on.", **_RUNNING
)


# ---- sliding windows -------------------------------------------------------------------------------------------------


def window_extent(
    name: str, axis: int, size: Dim, padding: tuple[int, int], window: Dim, stride: int, dilation: int
) -> Dim:
    """How many places a dilated window takes along an axis of `size` with `padding` before and after.

    Errors: FX0210 if the window is larger than the padded axis for all sizes, FX0218 if it may be.
    """
    if stride < 1 or dilation < 1:
        raise error(
            "FX0210",
            f"{name}: strides and dilations must be positive (axis {axis}: stride {stride}, dilation {dilation})",
        )
    reach = (window - 1) * dilation + 1
    room = size + padding[0] + padding[1]
    if reach == 1 and prove_le(0, room):  # no window along this axis, which may then be empty
        return (room - 1) // stride + 1
    shown = f"{name}: axis {axis}: the window covers {reach}, the axis with padding has {room}"
    if prove_lt(room, reach):
        raise error("FX0210", shown, help="use a smaller window or dilation, or more padding")
    if not prove_le(reach, room):
        raise error("FX0218", shown + ", which may be less", help=f"state a bound that makes {reach} <= {room} hold")
    return (room - reach) // stride + 1


def pairs(name: str, padding: Sequence[int], axes: int) -> list[tuple[int, int]]:
    """`(lo0, hi0, lo1, hi1, ...)` as pairs, one for each of `axes`; FX0223 if the count is wrong."""
    if len(padding) != 2 * axes:
        raise error(
            "FX0223",
            f"{name}: padding has {len(padding)} numbers, {axes} axes need {2 * axes}: low and high for each",
            help="padding=(low0, high0, low1, high1, ...)",
        )
    return [(padding[2 * i], padding[2 * i + 1]) for i in range(axes)]


def pad_array(x: Any, padding: Sequence[tuple[int, int]], fill: Any) -> Any:
    """A numpy array padded with `fill` on every axis; negative padding crops, what was padded on the other side too."""
    if any(lo > 0 or hi > 0 for lo, hi in padding):
        x = np.pad(x, [(max(0, lo), max(0, hi)) for lo, hi in padding], constant_values=fill)
    return x[tuple(slice(max(0, -lo), max(0, n + min(0, hi))) for n, (lo, hi) in zip(x.shape, padding, strict=True))]


def windows_of(x: Any, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Any:
    """All windows of an array over all its axes as a view [places..., window...] (numpy stride tricks, read only)."""
    places = [(n - (w - 1) * d - 1) // s + 1 for n, w, s, d in zip(x.shape, window, strides, dilation, strict=True)]
    steps = [s * k for s, k in zip(strides, x.strides, strict=True)] + [
        d * k for d, k in zip(dilation, x.strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(x, (*places, *window), steps, writeable=False)


def window_range(
    cx: Any, place: Value, size: Value, window: Dim, stride: int, padding: tuple[int, int], dilation: int
) -> tuple[Value, Value, Value]:
    """For one axis: which window offsets k read inside the axis (from, to), and the position `base` of k = 0.

    Offset k reads position base + k*dilation, which for from <= k < to lies in 0..size: no other guard is needed.
    """
    b = cx.b
    base = b.sub(b.mul(place, b.index(stride)), b.index(padding[0])) if padding[0] else b.mul(place, b.index(stride))
    lo, hi = b.index(0), cx.dim(window)
    # ceil(-base / dilation) and ceil((size - base) / dilation); truncation of a negative quotient ends at or below 0.
    if padding[0] > 0:
        lo = b.maximum(lo, b.div(b.sub(b.index(dilation - 1), base), b.index(dilation)))
    if padding[1] > 0:
        hi = b.minimum(hi, b.div(b.add(b.sub(size, base), b.index(dilation - 1)), b.index(dilation)))
    return lo, hi, base


def _window(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    name = "reduce_window"
    (x,) = tensor_operands(name, t, 1)
    if a.op not in _ACCUMULATE:
        raise error("FX0221", f"{name}: op must be max, min, sum or prod, not {a.op!r}")
    check_dtype(name, x.dtype, "number")
    for key in ("window", "strides", "dilation"):
        if len(a[key]) != x.rank:
            raise error(
                "FX0210",
                f"{name}: {key} {a[key]} has {len(a[key])} numbers, {x} has {x.rank} axes",
                help="give 1 for axes the window does not slide over",
            )
    if any(w < 1 for w in a.window):
        raise error("FX0210", f"{name}: the window {a.window} must be positive")
    padding = pairs(name, a.padding, x.rank)
    every = zip(x.shape, padding, a.window, a.strides, a.dilation, strict=True)
    return [x.with_shape(window_extent(name, i, n, p, w, s, d) for i, (n, p, w, s, d) in enumerate(every))]


def _window_ref(a: Attrs, x: Any) -> Any:
    x = np.asarray(x)
    wide = widened(x)
    start = wide.dtype.type(identity(a.op, dtype_of(wide.dtype)))
    view = windows_of(
        pad_array(wide, pairs("reduce_window", a.padding, x.ndim), start), a.window, a.strides, a.dilation
    )
    return np.asarray(
        _ACCUMULATE[a.op].reduce(view, axis=tuple(range(x.ndim, 2 * x.ndim)), dtype=wide.dtype, initial=start)
    ).astype(x.dtype)


def _window_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    (x,) = o.operands
    a, t = o.attrs, x.type
    wide: DType = accumulator(t.dtype) if a.op in ("sum", "prod") else t.dtype
    padding = pairs("reduce_window", a.padding, len(t.shape))
    every = zip(index, t.shape, a.window, a.strides, padding, a.dilation, strict=True)
    plan = [window_range(cx, i, cx.dim(n), w, s, p, d) for i, n, w, s, p, d in every]
    loops = [
        k for k, w in enumerate(a.window) if w != 1 or padding[k][0] > 0 or padding[k][1] > 0
    ]  # else: read at base

    def body(c: Any, inner: tuple[Value, ...], carry: list[Value]) -> list[Value]:
        at = [base for _, _, base in plan]
        for k, i in zip(loops, inner, strict=True):
            at[k] = c.b.add(at[k], c.b.mul(i, c.b.index(a.dilation[k])) if a.dilation[k] != 1 else i)
        return [combine(c.b, a.op, carry[0], cast(c.b, c.at(x, at), wide))]

    start = cx.b.const(identity(a.op, t.dtype), dtype=wide)
    (total,) = nest(cx, [plan[k][:2] for k in loops], [start], body)
    return cast(cx.b, total, t.dtype)


op(
    "reduce_window",
    _window,
    attrs={"op": "str", "window": "ints", "strides": "ints", "padding": "ints", "dilation": "ints"},
    category="reduce",
    ref=_window_ref,
    element=_window_element,
    cost=lambda o: o.result.type.size * product(o.attrs.window),
    vjp=adjoint_window.window_vjp,
    jvp=adjoint_window.window_jvp,
    doc="Slide a window over all axes of x and reduce it with `op` (max, min, sum, prod). `padding` is (low, "
    "high) for each axis and holds the op's identity "
    "(negative: crops); `dilation` spaces the window's elements. A window with nothing but padding gives the "
    "identity.",
    samples=(
        sample(
            "f32[1,2,4,5]", op="max", window=(1, 1, 2, 2), strides=(1, 1, 2, 2), padding=(0,) * 8, dilation=(1,) * 4
        ),
        sample("f32[2,6]", op="sum", window=(1, 3), strides=(1, 2), padding=(0, 0, 1, 1), dilation=(1, 1)),
        sample("f32[7]", op="min", window=(3,), strides=(1,), padding=(2, 1), dilation=(2,)),
        sample("f64[5]", op="prod", window=(2,), strides=(2,), padding=(0, 1), dilation=(1,)),
        sample("i32[4,4]", op="sum", window=(2, 3), strides=(1, 1), padding=(1, 0, 0, 2), dilation=(1, 1)),
        sample("bf16[6]", op="sum", window=(4,), strides=(1,), padding=(0, 0), dilation=(1,)),
        sample("u8[6]", op="max", window=(2,), strides=(3,), padding=(-1, 0), dilation=(1,)),
        sample("f32[0,4]", op="max", window=(1, 2), strides=(1, 1), padding=(0,) * 4, dilation=(1, 1)),
    ),
)

__all__ = ["CUMULATIVE", "pad_array", "pairs", "reduced_shape", "window_extent", "window_range", "windows_of"]
