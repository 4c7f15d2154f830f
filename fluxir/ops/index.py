"""Ops that index: gather, scatter and dynamic slices.

Out of range is defined, never undefined: `gather` clamps each index to its axis, `scatter` drops the update, dynamic
slices clamp their start so that the slice fits. Negative indices are not wrapped (the frontend does that). A gather
from an axis whose symbolic size happens to be 0 at run time gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, prove_le, require_equal
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops import adjoint_index
from fluxir.ops.nest import choose, clamp_index, require_fits, require_scalar_index, within
from fluxir.ops.rules import broadcast_index, broadcast_shapes, check_dtype, normal_axes, tensor_operands

# What samples are made of, where random numbers in a range do not do.


def _ints(low: int, high: int, *shape: int, dtype: str = "i64") -> Any:
    return lambda rng: rng.integers(low, high, shape).astype(DTYPES[dtype].numpy)


def _floats(*shape: int, dtype: str = "f32") -> Any:
    return lambda rng: rng.standard_normal(shape).astype(DTYPES[dtype].numpy)


def _made(*parts: Any) -> Any:
    return lambda rng: [p(rng) for p in parts]


# ---- gather, scatter -------------------------------------------------------------------------------------------------


def _index_shape(
    name: str, x: TensorType, indices: Sequence[TensorType], axes: Sequence[int]
) -> tuple[tuple[int, ...], tuple[Dim, ...]]:
    """The indexed axes counted from 0 and the common shape of the index tensors."""
    at = normal_axes(name, axes, x.rank)
    if len(at) != len(indices) or not indices:
        raise error(
            "FX0224",
            f"{name}: {len(indices)} index tensors for axes {tuple(axes)}",
            help="give one index tensor for each indexed axis",
        )
    for i in indices:
        if i.dtype.name not in ("i32", "i64"):
            raise error(
                "FX0214",
                f"{name}: an index must be i32 or i64, not {i}",
                help="cast it; for a bool mask use select or nonzero",
            )
    return at, broadcast_shapes(name, [i.shape for i in indices])


def rest_axes(rank: int, axes: Sequence[int]) -> list[int]:
    """The axes that are not indexed, in order."""
    return [k for k in range(rank) if k not in axes]


def _gather(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, *indices = tensor_operands("gather", t)
    axes, common = _index_shape("gather", x, indices, a.axes)
    for axis in axes:
        if isinstance(x.shape[axis], int) and x.shape[axis] == 0 and 0 not in common:
            raise error("FX0216", f"gather from axis {axis} of {x}, which is empty")
    return [x.with_shape((*common, *[x.shape[k] for k in rest_axes(x.rank, axes)]))]


def _gather_ref(a: Attrs, x: Any, *indices: Any) -> Any:
    x = np.asarray(x)
    axes = normal_axes("gather", a.axes, x.ndim)
    front = np.moveaxis(x, axes, range(len(axes)))
    common = np.broadcast_shapes(*[np.shape(i) for i in indices])
    if 0 in front.shape[: len(axes)]:
        return np.zeros((*common, *front.shape[len(axes) :]), x.dtype)
    at = tuple(np.clip(np.asarray(i, np.int64), 0, n - 1) for i, n in zip(indices, front.shape, strict=False))
    return front[at]


def _gather_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    x, *indices = o.operands
    rank = len(x.shape)
    axes = normal_axes("gather", o.attrs.axes, rank)
    common = len(index) - (rank - len(axes))
    at: dict[int, Value] = dict(zip(rest_axes(rank, axes), index[common:], strict=True))

    def read(c: Any) -> Value:
        places = dict(at)
        for axis, i in zip(axes, indices, strict=True):
            high = (
                c.b.sub(c.dim(x.shape[axis]), c.b.index(1))
                if not isinstance(x.shape[axis], int)
                else c.b.index(x.shape[axis] - 1)
            )
            places[axis] = clamp_index(c.b, c.at(i, broadcast_index(i, index[:common], c)), high)
        return c.at(x, [places[k] for k in range(rank)])  # type: ignore[no-any-return]

    unsure = [x.shape[k] for k in axes if not prove_le(1, x.shape[k])]
    if not unsure:
        return read(cx)
    some = None  # reading an empty axis is not possible: such a gather gives zeros
    for d in unsure:
        more = cx.b.lt(cx.b.index(0), cx.dim(d))
        some = more if some is None else cx.b.logical_and(some, more)
    assert some is not None
    return choose(cx, some, read, lambda c: c.b.const(0 if not x.dtype.is_bool else False, dtype=x.dtype))


op(
    "gather",
    _gather,
    attrs={"axes": "ints"},
    category="index",
    ref=_gather_ref,
    element=_gather_element,
    linear="all",
    vjp=adjoint_index.gather_vjp,
    doc="Elements of x at the index tensors (one for each of `axes`, i32 or i64, broadcast together to shape "
    "I). Result shape: I, then x's other axes. "
    "Out-of-range indices are clamped; negative ones are not wrapped.",
    samples=(
        sample("f32[5,3]", "i64[4]", axes=(0,), make=_made(_floats(5, 3), _ints(0, 5, 4))),
        sample("f32[5,3]", "i32[2,2]", axes=(1,), make=_made(_floats(5, 3), _ints(-2, 6, 2, 2, dtype="i32"))),
        sample(
            "f32[2,3,4]",
            "i64[3,1]",
            "i64[2]",
            axes=(0, 2),
            make=_made(_floats(2, 3, 4), _ints(0, 2, 3, 1), _ints(0, 4, 2)),
        ),
        sample("f32[4]", "i64", axes=(0,)),
        sample("i32[6]", "i32[3]", axes=(0,), low=0, high=9),
        sample("bool[3,2]", "i64[2]", axes=(0,)),
        sample("bf16[3,2]", "i64[4]", axes=(-2,)),
        sample("f32[4,2]", "i64[0]", axes=(0,)),
        sample("f32[3,0]", "i64[2]", axes=(0,)),
        sample("u8[2,3]", "i64[2]", "i64[2]", axes=(1, 0)),
    ),
)

SCATTER_MODES = ("set", "add", "mul", "min", "max")


def _scatter(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) < 3:
        raise error("FX0108", f"scatter takes x, updates and at least one index tensor, {len(t)} operands given")
    x, updates, *indices = tensor_operands("scatter", t)
    if a.mode not in SCATTER_MODES:
        raise error("FX0221", f"scatter: mode must be one of {', '.join(SCATTER_MODES)}, not {a.mode!r}")
    if a.mode != "set":
        check_dtype(f"scatter with mode {a.mode!r}", x.dtype, "number")
    if updates.dtype != x.dtype:
        raise error(
            "FX0201", f"scatter: operand types differ: {x} and updates {updates}", help="cast the updates to x's type"
        )
    axes, common = _index_shape("scatter", x, indices, a.axes)
    want = x.with_shape((*common, *[x.shape[k] for k in rest_axes(x.rank, axes)]))
    if updates.rank != want.rank or not all(
        require_equal(u, w) for u, w in zip(updates.shape, want.shape, strict=True)
    ):
        raise error(
            "FX0224",
            f"scatter: updates are {updates}, the indices and {x} need {want}",
            help="broadcast the updates to that shape",
        )
    return [x]


_SCATTER_AT = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def _scatter_ref(a: Attrs, x: Any, updates: Any, *indices: Any) -> Any:
    x = np.asarray(x)
    axes = normal_axes("scatter", a.axes, x.ndim)
    front = np.moveaxis(x.copy(), axes, range(len(axes)))
    places = np.broadcast_arrays(*[np.asarray(i, np.int64) for i in indices])
    inside = np.ones(places[0].shape, bool)
    for i, n in zip(places, front.shape, strict=False):
        inside &= (i >= 0) & (i < n)
    at = tuple(i[inside] for i in places)  # row-major order of I
    values = np.asarray(updates)[inside]
    if a.mode != "set":
        _SCATTER_AT[a.mode].at(front, at, values)
    elif len(values):  # numpy leaves the order of repeated places open: keep the last update of each
        backwards = np.ravel_multi_index(at, front.shape[: len(axes)])[::-1]
        last = len(values) - 1 - np.unique(backwards, return_index=True)[1]
        front[tuple(i[last] for i in at)] = values[last]
    return np.moveaxis(front, range(len(axes)), axes)


op(
    "scatter",
    _scatter,
    attrs={"axes": "ints", "mode": ("str", "set")},
    category="index",
    ref=_scatter_ref,
    cost=lambda o: o.operands[1].type.size,
    vjp=adjoint_index.scatter_vjp,
    jvp=adjoint_index.scatter_jvp,
    doc="x with `updates` (shape I + x's other axes) put, or combined by `mode` (add, mul, min, max), at the "
    "index tensors (as in gather). Out-of-range indices are dropped; "
    "repeated indices apply in row-major order of I, so that the last one wins in mode set.",
    samples=(
        sample(
            "f32[5,3]",
            "f32[4,3]",
            "i64[4]",
            axes=(0,),
            mode="set",
            make=_made(_floats(5, 3), _floats(4, 3), _ints(0, 5, 4)),
        ),
        sample(
            "f32[5,3]",
            "f32[4,3]",
            "i64[4]",
            axes=(0,),
            mode="add",
            make=_made(_floats(5, 3), _floats(4, 3), _ints(0, 3, 4)),
        ),
        sample(
            "f32[2,4]",
            "f32[3,2,2]",
            "i32[3,2]",
            axes=(1,),
            mode="mul",
            make=_made(_floats(2, 4), _floats(3, 2, 2), _ints(-2, 6, 3, 2, dtype="i32")),
        ),
        sample("i32[4,4]", "i32[3]", "i64[3]", "i64[3]", axes=(0, 1), mode="max"),
        sample("f64[3,2,4]", "f64[3,2,2]", "i64[3,1]", "i64[2]", axes=(0, 2), mode="min"),
        sample("bool[4]", "bool[2]", "i64[2]", axes=(0,), mode="set"),
        sample("f32[4]", "f32", "i64", axes=(0,), mode="add"),
        sample("f32[4]", "f32[0]", "i64[0]", axes=(0,), mode="add"),
        sample("f32[0,2]", "f32[3,2]", "i64[3]", axes=(0,), mode="add"),
        sample("bf16[4]", "bf16[5]", "i64[5]", axes=(0,), mode="add"),
        sample("u8[4]", "u8[5]", "i64[5]", axes=(0,), mode="mul"),
    ),
)


# ---- dynamic slices --------------------------------------------------------------------------------------------------


def _starts(name: str, x: TensorType, starts: Sequence[Type], sizes: Sequence[Dim]) -> None:
    if len(starts) != x.rank or len(sizes) != x.rank:
        raise error("FX0220", f"{name}: {x} has {x.rank} axes; given {len(starts)} starts and {len(sizes)} sizes")
    for i, s in enumerate(starts):
        require_scalar_index(name, f"start {i}", s)
    for axis, (size, n) in enumerate(zip(sizes, x.shape, strict=True)):
        if isinstance(size, int) and size < 0:
            raise error("FX0218", f"{name}: a size cannot be negative: {size} (axis {axis})")
        require_fits(name, "size", size, n, axis)


def _clamped_starts(cx: Any, starts: Sequence[Value], sizes: Sequence[Dim], shape: Sequence[Dim]) -> list[Value]:
    return [clamp_index(cx.b, cx.at(s, ()), cx.dim(n - size)) for s, size, n in zip(starts, sizes, shape, strict=True)]


def _slices(starts: Sequence[Any], sizes: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    at = [min(max(int(s), 0), n - size) for s, size, n in zip(starts, sizes, shape, strict=True)]
    return tuple(slice(i, i + size) for i, size in zip(at, sizes, strict=True))


def _dynamic_slice(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, *starts = tensor_operands("dynamic_slice", t)
    _starts("dynamic_slice", x, starts, a.sizes)
    return [x.with_shape(a.sizes)]


def _dynamic_slice_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    x, *starts = o.operands
    at = _clamped_starts(cx, starts, o.attrs.sizes, x.shape)
    return cx.at(x, [cx.b.add(s, i) for s, i in zip(at, index, strict=True)])  # type: ignore[no-any-return]


op(
    "dynamic_slice",
    _dynamic_slice,
    attrs={"sizes": "dims"},
    category="index",
    ref=lambda a, x, *s: x[_slices(s, a.sizes, x.shape)],
    element=_dynamic_slice_element,
    linear="all",
    vjp=adjoint_index.dynamic_slice_vjp,
    doc="The part of x of `sizes` that begins at the starts (one i64 scalar for each axis), which are clamped "
    "so that it fits.",
    samples=(
        sample("f32[5,4]", "i64", "i64", sizes=(2, 3)),
        sample("f32[5]", "i64", sizes=(2,), make=lambda rng: [np.arange(5, dtype=np.float32), np.int64(4)]),
        sample("i32[5]", "i64", sizes=(2,), make=lambda rng: [np.arange(5, dtype=np.int32), np.int64(-3)]),
        sample("bool[3,2]", "i64", "i64", sizes=(3, 1)),
        sample("f32", sizes=()),
        sample("f32[4]", "i64", sizes=(0,)),
        sample("bf16[4]", "i64", sizes=(4,)),
    ),
)


def _dynamic_update(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) < 2:
        raise error("FX0108", f"dynamic_update takes x, update and a start for each axis, {len(t)} operands given")
    x, update, *starts = tensor_operands("dynamic_update", t)
    if x.dtype != update.dtype:
        raise error(
            "FX0201", f"dynamic_update: operand types differ: {x} and {update}", help="cast the update to x's type"
        )
    if x.rank != update.rank:
        raise error("FX0220", f"dynamic_update: the update {update} must have as many axes as {x}")
    _starts("dynamic_update", x, starts, update.shape)
    return [x]


def _dynamic_update_ref(a: Attrs, x: Any, update: Any, *starts: Any) -> Any:
    out = np.array(x)
    out[_slices(starts, update.shape, out.shape)] = update
    return out


def _dynamic_update_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    x, update, *starts = o.operands
    if not index:
        return cx.at(update, ())  # type: ignore[no-any-return]
    at = _clamped_starts(cx, starts, update.shape, x.shape)
    inside = None
    for s, i, n in zip(at, index, update.shape, strict=True):
        here = within(cx.b, i, s, cx.b.add(s, cx.dim(n)))
        inside = here if inside is None else cx.b.logical_and(inside, here)
    assert inside is not None
    return choose(
        cx,
        inside,
        lambda c: c.at(update, [c.b.sub(i, s) for i, s in zip(index, at, strict=True)]),
        lambda c: c.at(x, index),
    )


op(
    "dynamic_update",
    _dynamic_update,
    category="index",
    ref=_dynamic_update_ref,
    element=_dynamic_update_element,
    linear="all",
    vjp=adjoint_index.dynamic_update_vjp,
    doc="x with `update` written over the part that begins at the starts (one i64 scalar for each axis), which "
    "are clamped so that it fits.",
    samples=(
        sample("f32[5,4]", "f32[2,3]", "i64", "i64"),
        sample(
            "i32[5]",
            "i32[2]",
            "i64",
            make=lambda rng: [np.arange(5, dtype=np.int32), np.array([7, 8], np.int32), np.int64(9)],
        ),
        sample("f32", "f32"),
        sample("f32[4]", "f32[0]", "i64"),
        sample("bf16[4]", "bf16[4]", "i64"),
        sample("bool[3,2]", "bool[1,2]", "i64", "i64"),
    ),
)


__all__ = ["SCATTER_MODES", "rest_axes"]
