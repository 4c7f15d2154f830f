"""Contractions: `dot` (general: batch and contracting axes) and `conv` (1 to 3 spatial axes and more).

Numerics: f16 and bf16 multiply and add in f32 and round each result once; other types accumulate in themselves,
integers wrap. The element rules add in row-major order of the contracted axes; kernels may use another fixed order.
A contraction over nothing gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, facts, maximum, product, prove_le, require_equal
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops import adjoint_contract
from fluxir.ops.nest import accumulator, cast, nest, whole
from fluxir.ops.reduce import pad_array, pairs, widened, window_extent, window_range, windows_of
from fluxir.ops.rules import check_dtype, normal_axes, tensor_operands

# ---- dot -------------------------------------------------------------------------------------------------------------


def _same_dtype(name: str, x: TensorType, y: TensorType) -> None:
    if x.dtype != y.dtype:
        raise error("FX0201", f"{name}: operand types differ: {x} and {y}", help="cast operands to one type")
    check_dtype(name, x.dtype, "number")


def dot_axes(x: Any, y: Any, a: Attrs) -> tuple[tuple[int, ...], ...]:
    """The axes of a dot counted from 0: lhs (batch, free, contract), then rhs (batch, free, contract).

    `x` and `y` are types or arrays (what has a shape). Errors: FX0205 and FX0206 for bad axes.
    """
    out: list[tuple[int, ...]] = []
    for side, shape, contract, batch in (
        ("lhs", x.shape, a.lhs_contract, a.lhs_batch),
        ("rhs", y.shape, a.rhs_contract, a.rhs_batch),
    ):
        named = normal_axes(f"dot ({side})", (*batch, *contract), len(shape))
        free = tuple(k for k in range(len(shape)) if k not in named)
        out += [named[: len(batch)], free, named[len(batch) :]]
    return tuple(out)


def _dot(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, y = tensor_operands("dot", t, 2)
    if a.dtype is None:
        _same_dtype("dot", x, y)
    elif a.dtype.name != "i32" or any(d.bits != 8 or not d.is_integer for d in (x.dtype, y.dtype)):
        raise error(
            "FX0201", f"dot: with a type of its own ({a.dtype}) it multiplies 8-bit integers to i32, not {x} by {y}"
        )
    for what, left, right in (("contract", a.lhs_contract, a.rhs_contract), ("batch", a.lhs_batch, a.rhs_batch)):
        if len(left) != len(right):
            raise error("FX0203", f"dot: lhs_{what} {left} and rhs_{what} {right} name different numbers of axes")
    lb, lf, lc, rb, rf, rc = dot_axes(x, y, a)
    for what, left, right in (("inner", lc, rc), ("batch", lb, rb)):
        for i, j in zip(left, right, strict=True):
            if not require_equal(x.shape[i], y.shape[j]):
                raise error(
                    "FX0203",
                    f"dot: {what} dimensions differ: {x.shape[i]} (lhs, axis {i} of {x}) is not {y.shape[j]} "
                    f"(rhs, axis {j} of {y})",
                    help="transpose or reshape one operand so that the sizes that are multiplied together agree",
                )
    return [TensorType(a.dtype or x.dtype, (*[x.shape[i] for i in (*lb, *lf)], *[y.shape[j] for j in rf]))]


def _dot_ref(a: Attrs, x: Any, y: Any) -> Any:
    x, y = np.asarray(x), np.asarray(y)
    if a.dtype is not None:
        x, y = x.astype(a.dtype.numpy), y.astype(a.dtype.numpy)
    lb, lf, lc, rb, rf, rc = dot_axes(x, y, a)
    batch, inner = [x.shape[i] for i in lb], prod(x.shape[i] for i in lc)
    rows, columns = [x.shape[i] for i in lf], [y.shape[j] for j in rf]
    left = widened(x).transpose(*lb, *lf, *lc).reshape(*batch, prod(rows), inner)
    right = widened(y).transpose(*rb, *rc, *rf).reshape(*batch, inner, prod(columns))
    return np.matmul(left, right).reshape((*batch, *rows, *columns)).astype(x.dtype)


def _dot_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    x, y = o.operands
    lb, lf, lc, rb, rf, rc = dot_axes(x, y, o.attrs)
    wide = accumulator(o.result.dtype)

    def body(c: Any, inner: tuple[Value, ...], carry: list[Value]) -> list[Value]:
        left = dict(zip((*lb, *lf, *lc), (*index[: len(lb) + len(lf)], *inner), strict=True))
        right = dict(zip((*rb, *rf, *rc), (*index[: len(rb)], *index[len(lb) + len(lf) :], *inner), strict=True))
        e = cast(c.b, c.at(x, [left[k] for k in range(len(x.shape))]), wide)
        f = cast(c.b, c.at(y, [right[k] for k in range(len(y.shape))]), wide)
        return [c.b.add(carry[0], c.b.mul(e, f))]

    start = cx.b.const(0, dtype=wide)
    (total,) = nest(cx, whole(cx, [x.shape[i] for i in lc]), [start], body)
    return cast(cx.b, total, o.result.dtype)


def _dot_cost(o: Op) -> Dim:
    x, y = o.operands
    contracted = dot_axes(x, y, o.attrs)[2]
    return product(o.result.shape) * product(x.shape[i] for i in contracted) * 2


def _dot_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    """A dot of the cotangent with the other operand over that one's free axes, its axes put back in order."""
    x, y = o.operands
    lb, lf, lc, rb, rf, rc = dot_axes(x, y, o.attrs)
    batch, rows = len(lb), len(lf)
    result_batch = tuple(range(batch))
    result_rows = tuple(range(batch, batch + rows))
    result_columns = tuple(range(batch + rows, batch + rows + len(rf)))

    def pull(other: Value, contract: Any, against: Any, other_batch: Any, axes: Any) -> Any:
        d = b.dot(
            cts[0], other, lhs_contract=contract, rhs_contract=against, lhs_batch=result_batch, rhs_batch=other_batch
        )
        order = tuple(axes.index(i) for i in range(len(axes)))
        return d if order == tuple(range(len(order))) else b.transpose(d, perm=order)

    # What the dots give has the axes batch, free, then contracted ones in the order in which the other operand has them.
    left = pull(y, result_columns, rf, rb, (*lb, *lf, *[lc[rc.index(k)] for k in sorted(rc)]))
    right = pull(x, result_rows, lf, lb, (*rb, *rf, *[rc[lc.index(k)] for k in sorted(lc)]))
    return [left, right]


_MATMUL: dict[str, Any] = {"lhs_contract": (1,), "rhs_contract": (0,)}
op(
    "dot",
    _dot,
    attrs={
        "lhs_contract": "ints",
        "rhs_contract": "ints",
        "lhs_batch": ("ints", ()),
        "rhs_batch": ("ints", ()),
        "dtype": ("dtype", None),
    },
    category="contract",
    ref=_dot_ref,
    element=_dot_element,
    cost=_dot_cost,
    doc="Sum of products over the contracting axes, for each index of the batch axes. Result axes: batch, then "
    "the rest of x, then the rest of y. "
    "f16 and bf16 accumulate in f32. `dtype`: i32, for operands of 8-bit integers of any two signs.",
    linear="each",
    vjp=_dot_vjp,
    samples=(
        sample("f32[3,4]", "f32[4,5]", **_MATMUL),
        sample("f32[4]", "f32[4]", lhs_contract=(0,), rhs_contract=(0,)),
        sample("f32[2,3,4]", "f32[2,4,5]", lhs_contract=(2,), rhs_contract=(1,), lhs_batch=(0,), rhs_batch=(0,)),
        sample("f64[3,2,4]", "f64[4,5,3]", lhs_contract=(0, 2), rhs_contract=(2, 0)),
        sample("i32[2,3]", "i32[4,3]", lhs_contract=(1,), rhs_contract=(1,)),
        sample("f16[3,7]", "f16[7,2]", **_MATMUL),
        sample("bf16[3,7]", "bf16[7,2]", **_MATMUL),
        sample("u8[2,3]", "u8[3,2]", **_MATMUL),
        sample("u8[5,7]", "i8[7,3]", dtype="i32", **_MATMUL),
        sample("f32[2]", "f32[3]", lhs_contract=(), rhs_contract=()),
        sample("f32", "f32", lhs_contract=(), rhs_contract=()),
        sample("f32[3,0]", "f32[0,2]", **_MATMUL),
        sample("f32[0,3]", "f32[3,2]", **_MATMUL),
        sample("f32[3,2,4]", "f32[5,2]", lhs_contract=(1,), rhs_contract=(1,)),
    ),
)


# ---- conv ------------------------------------------------------------------------------------------------------------


def dilated(n: Dim, factor: int) -> Dim:
    """The size of an axis of `n` elements with `factor - 1` zeros put between neighbours: (n-1)*factor + 1, 0 "
    "for 0."""
    if factor == 1 or (isinstance(n, int) and n == 0):
        return n
    full = (n - 1) * factor + 1
    return full if prove_le(1, n) else maximum(full, 0)


def _conv(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, w = tensor_operands("conv", t, 2)
    _same_dtype("conv", x, w)
    if x.rank < 3 or w.rank != x.rank:
        raise error(
            "FX0210",
            f"conv: the input {x} needs at least 3 axes (batch, channels, space...) and the weight {w} as many "
            f"(out, in, space...)",
            help="add the missing axes with reshape, for example x[None] for a batch of one",
        )
    space = x.rank - 2
    for key in ("strides", "lhs_dilation", "rhs_dilation"):
        if len(a[key]) != space:
            raise error("FX0210", f"conv: {key} {a[key]} has {len(a[key])} numbers, there are {space} spatial axes")
    if any(d < 1 for d in a.lhs_dilation):
        raise error("FX0210", f"conv: lhs_dilation {a.lhs_dilation} must be positive")
    if a.groups < 1 or not facts().divides(a.groups, w.shape[0]):
        raise error(
            "FX0210",
            f"conv: {w.shape[0]} output channels (axis 0 of the weight {w}) do not divide into {a.groups} groups",
        )
    if not require_equal(x.shape[1], w.shape[1] * a.groups):
        raise error(
            "FX0210",
            f"conv: {x.shape[1]} input channels (axis 1 of {x}) are not {w.shape[1]} (axis 1 of the weight {w}) "
            f"times {a.groups} groups",
            help="the layout is batch, channels, space for the input and out, in/groups, space for the weight",
        )
    padding = pairs("conv", a.padding, space)
    out = [
        window_extent(
            "conv",
            i + 2,
            dilated(x.shape[i + 2], a.lhs_dilation[i]),
            padding[i],
            w.shape[i + 2],
            a.strides[i],
            a.rhs_dilation[i],
        )
        for i in range(space)
    ]
    return [TensorType(x.dtype, (x.shape[0], w.shape[0], *out))]


def _conv_ref(a: Attrs, x: Any, w: Any) -> Any:
    x, w = np.asarray(x), np.asarray(w)
    space, g = x.ndim - 2, a.groups
    wide, weight = widened(x), widened(w)
    if any(d > 1 for d in a.lhs_dilation):
        spread: Any = np.zeros(
            (*wide.shape[:2], *[dilated(n, d) for n, d in zip(wide.shape[2:], a.lhs_dilation, strict=True)]), wide.dtype
        )
        spread[(..., *[slice(None, None, d) for d in a.lhs_dilation])] = wide
        wide = spread
    wide = pad_array(wide, [(0, 0), (0, 0), *pairs("conv", a.padding, space)], 0)
    kernel = w.shape[2:]
    view = windows_of(wide, (1, 1, *kernel), (1, 1, *a.strides), (1, 1, *a.rhs_dilation))
    n, c = wide.shape[:2]
    places = view.shape[2 : 2 + space]
    # One matrix product a group: (batch and places) x (channels and window) @ (channels and window) x (output channels).
    view = view.reshape(n, g, c // g, *places, *kernel)
    s = list(range(3, 3 + space))
    left = view.transpose(1, 0, *s, 2, *[k + space for k in s]).reshape(g, n * prod(places), (c // g) * prod(kernel))
    right = weight.reshape(g, w.shape[0] // g, (c // g) * prod(kernel)).transpose(0, 2, 1)
    out = np.matmul(left, right).reshape(g, n, *places, w.shape[0] // g)
    return out.transpose(1, 0, space + 2, *range(2, space + 2)).reshape(n, w.shape[0], *places).astype(x.dtype)


def _conv_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    x, w = o.operands
    a, b = o.attrs, cx.b
    space = len(x.shape) - 2
    wide = accumulator(x.dtype)
    padding = pairs("conv", a.padding, space)
    plan = []
    for i in range(space):
        # A transposed convolution reads the input with zeros between its elements: all positions that hold an element
        # are multiples of the dilation and lie in range, so the guard is a select.
        size = cx.dim(dilated(x.shape[i + 2], a.lhs_dilation[i]))
        plan.append(window_range(cx, index[i + 2], size, w.shape[i + 2], a.strides[i], padding[i], a.rhs_dilation[i]))
    n, out = index[0], index[1]
    first = None
    if a.groups > 1:
        group = b.div(out, cx.dim(w.shape[0] // a.groups))
        first = b.mul(group, cx.dim(w.shape[1]))

    def body(c: Any, inner: tuple[Value, ...], carry: list[Value]) -> list[Value]:
        ib = c.b
        channel, window = inner[0], inner[1:]
        at, here = [], None
        for i, k in enumerate(window):
            p = ib.add(plan[i][2], ib.mul(k, ib.index(a.rhs_dilation[i])) if a.rhs_dilation[i] != 1 else k)
            if a.lhs_dilation[i] != 1:
                step = ib.index(a.lhs_dilation[i])
                real = ib.eq(ib.fmod(p, step), ib.index(0))
                here = real if here is None else ib.logical_and(here, real)
                p = ib.div(p, step)
            at.append(p)
        e = cast(ib, c.at(x, [n, channel if first is None else ib.add(first, channel), *at]), wide)
        f = cast(ib, c.at(w, [out, channel, *window]), wide)
        total = ib.add(carry[0], ib.mul(e, f))
        return [total if here is None else ib.select(here, total, carry[0])]

    ranges = [*whole(cx, [w.shape[1]]), *[p[:2] for p in plan]]
    (total,) = nest(cx, ranges, [b.const(0, dtype=wide)], body)
    return cast(b, total, x.dtype)


_SAME2: dict[str, Any] = {
    "strides": (1, 1),
    "padding": (0, 0, 0, 0),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "groups": 1,
}
_LINE: dict[str, Any] = {"strides": (1,), "padding": (0, 0), "lhs_dilation": (1,), "rhs_dilation": (1,), "groups": 1}


def _conv_sample(x: str, w: str, base: dict[str, Any], **changes: Any) -> Any:
    return sample(x, w, **{**base, **changes})


op(
    "conv",
    _conv,
    attrs={"strides": "ints", "padding": "ints", "lhs_dilation": "ints", "rhs_dilation": "ints", "groups": ("int", 1)},
    category="contract",
    ref=_conv_ref,
    element=_conv_element,
    cost=lambda o: o.result.type.size * product(o.operands[1].type.shape[1:]) * 2,
    linear="each",
    vjp=adjoint_contract.conv_vjp,
    doc="Convolution (cross-correlation) of x[N, C, space...] with w[O, C/groups, space...]. `padding` is "
    "(low, high) for each spatial axis (negative: crops); "
    "`rhs_dilation` spaces the window, `lhs_dilation` puts zeros between the input's elements (a transposed "
    "convolution). f16 and bf16 accumulate in f32.",
    samples=(
        _conv_sample("f32[2,3,5,5]", "f32[4,3,3,3]", _SAME2),
        _conv_sample("f32[1,2,5,4]", "f32[3,2,3,3]", _SAME2, padding=(1, 1, 1, 1)),
        _conv_sample("f32[1,2,7,6]", "f32[2,2,2,3]", _SAME2, strides=(2, 3), padding=(0, 1, 2, 0)),
        _conv_sample("f32[2,2,7]", "f32[3,2,3]", _LINE, rhs_dilation=(2,), padding=(2, 1)),
        _conv_sample("f32[1,4,5]", "f32[6,2,3]", _LINE, groups=2),
        _conv_sample("f64[1,3,6]", "f64[3,1,2]", _LINE, groups=3, strides=(2,)),
        _conv_sample("f32[1,2,3,4]", "f32[2,2,3,3]", _SAME2, lhs_dilation=(2, 3), padding=(2, 2, 1, 2)),
        _conv_sample("f32[1,2,4]", "f32[2,2,2]", _LINE, lhs_dilation=(3,), strides=(2,), padding=(1, 1)),
        _conv_sample("bf16[1,2,5]", "bf16[2,2,3]", _LINE),
        _conv_sample("f16[1,2,5]", "f16[2,2,3]", _LINE, padding=(1, 1)),
        _conv_sample("i32[1,1,5]", "i32[2,1,2]", _LINE),
        _conv_sample("f32[0,2,5]", "f32[2,2,3]", _LINE),
        _conv_sample("f32[1,0,5]", "f32[2,0,3]", _LINE),
        _conv_sample("f32[1,1,6]", "f32[1,1,2]", _LINE, padding=(-1, -2)),
        _conv_sample(
            "f32[1,1,3,3,3]",
            "f32[2,1,2,2,2]",
            {
                "strides": (1, 2, 1),
                "padding": (0, 0, 1, 0, 0, 1),
                "lhs_dilation": (1, 1, 1),
                "rhs_dilation": (1, 1, 2),
                "groups": 1,
            },
        ),
    ),
)

__all__ = ["dilated", "dot_axes"]
