"""Ops that order and search: sort, argsort, topk, searchsorted, nonzero.

Order: `sort`, `argsort` and `topk` are stable and treat NaN as greater than everything in ascending order and smaller
than everything in descending order, so NaN always comes last; -0.0 and 0.0 are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import INDEX, TensorType, Type
from fluxir.ops import adjoint_index
from fluxir.ops.nest import require_fits
from fluxir.ops.reduce import widened
from fluxir.ops.rules import normal_axis, tensor_operands

# ---- sort, argsort, topk ---------------------------------------------------------------------------------------------


def stable_order(x: Any, axis: int, descending: bool) -> Any:
    """Indices (i64) that sort a numpy array along `axis`: stable, NaN last in either direction."""
    wide = widened(x)
    if not descending:
        return np.argsort(wide, axis=axis, kind="stable").astype(np.int64)  # numpy puts NaN last
    n = wide.shape[axis]
    order = np.flip(n - 1 - np.argsort(np.flip(wide, axis), axis=axis, kind="stable"), axis).astype(np.int64)
    if wide.dtype.kind == "f":  # NaN came first: move it behind the rest
        nan = np.isnan(np.take_along_axis(wide, order, axis))
        order = np.take_along_axis(order, np.argsort(nan, axis=axis, kind="stable"), axis)
    return order


def _along(name: str, t: tuple[Type, ...], axis: int) -> TensorType:
    (x,) = tensor_operands(name, t, 1)
    normal_axis(name, axis, x.rank)
    return x


def _sort_cost(o: Op) -> Dim:
    shape = o.operands[0].shape
    n = shape[normal_axis(o.name, o.attrs.get("axis", -1), len(shape))]
    return product(shape) * (max(1, (n - 1).bit_length()) if isinstance(n, int) else 16)  # comparisons, n log2 n a row


_SORTS = (
    sample("f32[3,5]", axis=1),
    sample("f32[5,2]", axis=0, descending=True),
    sample("i32[9]", axis=0, low=-3, high=3),
    sample("u8[2,4]", axis=-1, descending=True),
    sample("bool[6]", axis=0),
    sample("bf16[2,7]", axis=1),
    sample("f16[7]", axis=0, descending=True),
    sample("f64[1]", axis=0),
    sample("f32[0]", axis=0),
    sample("f32[0,3]", axis=1),
    sample("f32[6]", axis=0, make=lambda rng: [np.array([1, np.nan, -np.inf, 0.0, np.nan, -0.0], np.float32)]),
    sample(
        "f32[6]",
        axis=0,
        descending=True,
        make=lambda rng: [np.array([1, np.nan, -np.inf, 0.0, np.inf, -0.0], np.float32)],
    ),
)

op(
    "sort",
    lambda t, a, k: [_along("sort", t, a.axis)],
    attrs={"axis": "int", "descending": ("bool", False)},
    category="index",
    cost=_sort_cost,
    samples=_SORTS,
    ref=lambda a, x: np.take_along_axis(x, stable_order(x, a.axis, a.descending), a.axis),
    vjp=adjoint_index.sort_vjp,
    jvp=adjoint_index.sort_jvp,
    doc="x sorted along `axis`, stable; NaN comes last in either direction.",
)
op(
    "argsort",
    lambda t, a, k: [TensorType(INDEX.dtype, _along("argsort", t, a.axis).shape)],
    attrs={"axis": "int", "descending": ("bool", False)},
    category="index",
    cost=_sort_cost,
    samples=_SORTS,
    ref=lambda a, x: stable_order(x, a.axis, a.descending),
    constant="gives places",
    doc="Indices (i64) that sort x along `axis`: stable (equal elements keep their order, in descending order "
    "too); NaN comes last.",
)


def _topk(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("topk", t, 1)
    if not x.shape:
        raise error("FX0220", f"topk needs a last axis, {x} has none")
    if isinstance(a.k, int) and (a.k < 0 or (isinstance(x.shape[-1], int) and a.k > x.shape[-1])):
        raise error("FX0221", f"topk: k is {a.k}, it must be 0 to {x.shape[-1]}, the size of the last axis of {x}")
    require_fits("topk", "k", a.k, x.shape[-1], x.rank - 1)
    shape = (*x.shape[:-1], a.k)
    return [x.with_shape(shape), TensorType(INDEX.dtype, shape)]


def _topk_ref(a: Attrs, x: Any) -> Any:
    order = stable_order(x, -1, True)[..., : a.k]
    return np.take_along_axis(np.asarray(x), order, -1), order


op(
    "topk",
    _topk,
    attrs={"k": "dim"},
    category="index",
    ref=_topk_ref,
    cost=_sort_cost,
    vjp=adjoint_index.topk_vjp,
    jvp=adjoint_index.topk_jvp,
    doc="The `k` largest elements along the last axis, largest first, and their indices (i64); of equal ones "
    "the first comes first; NaN counts as smallest.",
    samples=(
        sample("f32[3,5]", k=2),
        sample("i32[6]", k=6, low=0, high=3),
        sample("bf16[2,5]", k=3),
        sample("f32[4]", k=0),
        sample("f32[0,4]", k=2),
        sample("u8[2,3]", k=1),
        sample("f32[5]", k=4, make=lambda rng: [np.array([np.nan, 1, np.inf, 1, -np.inf], np.float32)]),
    ),
)


# ---- searchsorted, nonzero -------------------------------------------------------------------------------------------


def _searchsorted(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, values = tensor_operands("searchsorted", t, 2)
    if x.rank != 1:
        raise error("FX0220", f"searchsorted searches a tensor of rank 1, not {x}")
    if x.dtype != values.dtype:
        raise error("FX0201", f"searchsorted: operand types differ: {x} and {values}", help="cast operands to one type")
    if a.side not in ("left", "right"):
        raise error("FX0221", f"searchsorted: side must be left or right, not {a.side!r}")
    return [TensorType(INDEX.dtype, values.shape)]


def _searchsorted_element(cx: Any, o: Op, index: Sequence[Value]) -> Value:
    x, values = o.operands
    b = cx.b
    v = cx.at(values, index)

    def before(ib: Any, p: Value, q: Value) -> Value:  # p < q in sort order, where NaN is greatest
        less = ib.lt(p, q)
        return ib.logical_or(less, ib.logical_and(ib.eq(p, p), ib.ne(q, q))) if x.dtype.is_float else less  # type: ignore[no-any-return]

    def halve(ib: Any, lo: Value, hi: Value) -> list[Value]:
        middle = ib.div(ib.add(lo, hi), ib.index(2))
        e = cx.inside(ib).at(x, (middle,))
        right = before(ib, e, v) if o.attrs.side == "left" else ib.logical_not(before(ib, v, e))
        return [ib.select(right, ib.add(middle, ib.index(1)), lo), ib.select(right, hi, middle)]

    blocks = [b.block([INDEX, INDEX], lambda ib, lo, hi: ib.lt(lo, hi)), b.block([INDEX, INDEX], halve)]
    return b.emit("while", b.index(0), cx.dim(x.shape[0]), blocks=blocks, carry=2)[0]  # type: ignore[no-any-return]


op(
    "searchsorted",
    _searchsorted,
    attrs={"side": ("str", "left")},
    category="index",
    element=_searchsorted_element,
    cost=lambda o: o.result.type.size * 32,
    ref=lambda a, x, v: np.asarray(np.searchsorted(widened(x), widened(v), side=a.side), np.int64),
    constant="gives places",
    doc="For each value the place (i64) where it goes into the ascending tensor x[n]: before equal elements "
    "(`left`) or after them (`right`). NaN is greatest.",
    samples=(
        sample(
            "f32[6]",
            "f32[2,3]",
            side="left",
            make=lambda rng: [
                np.sort(rng.standard_normal(6)).astype(np.float32),
                rng.standard_normal((2, 3)).astype(np.float32),
            ],
        ),
        sample(
            "i32[5]",
            "i32[4]",
            side="right",
            make=lambda rng: [np.array([1, 2, 2, 2, 5], np.int32), np.array([2, 0, 5, 9], np.int32)],
        ),
        sample(
            "i64[5]",
            "i64[4]",
            side="left",
            make=lambda rng: [np.array([1, 2, 2, 2, 5], np.int64), np.array([2, 0, 5, 9], np.int64)],
        ),
        sample(
            "f32[4]",
            "f32[4]",
            side="left",
            make=lambda rng: [
                np.array([0, 1, np.nan, np.nan], np.float32),
                np.array([np.nan, 1, -np.inf, np.inf], np.float32),
            ],
        ),
        sample("f32[0]", "f32[2]", side="right"),
        sample(
            "f32[3]", "f32[0]", side="left", make=lambda rng: [np.array([1, 2, 3], np.float32), np.zeros(0, np.float32)]
        ),
        sample("u8[3]", "u8", side="left", make=lambda rng: [np.array([1, 2, 3], np.uint8), np.uint8(2)]),
    ),
)


def _nonzero(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("nonzero", t, 1)
    if isinstance(a.bound, int) and a.bound < 0:
        raise error("FX0221", f"nonzero: the bound cannot be negative: {a.bound}")
    return [TensorType(INDEX.dtype, (a.bound, x.rank)), INDEX]


def _nonzero_ref(a: Attrs, x: Any) -> Any:
    x = np.asarray(x)
    found = np.flatnonzero(x)  # row-major; NaN counts
    out = np.zeros((a.bound, x.ndim), np.int64)
    n = min(len(found), a.bound)
    if x.ndim:
        out[:n] = np.stack(np.unravel_index(found[:n], x.shape), axis=1) if x.size else 0
    return out, np.int64(len(found))


op(
    "nonzero",
    _nonzero,
    attrs={"bound": "dim"},
    category="index",
    ref=_nonzero_ref,
    cost=lambda o: o.operands[0].type.size,
    constant="gives places",
    doc="Indices of the first `bound` nonzero (or true) elements in row-major order, padded with 0, as "
    "i64[bound, rank], and how many there are in all (which may exceed the bound). NaN is not zero.",
    samples=(
        sample("bool[3,4]", bound=12),
        sample("f32[5]", bound=3, make=lambda rng: [np.array([0, 2, np.nan, -0.0, 1], np.float32)]),
        sample("i32[2,2,2]", bound=4, low=0, high=2),
        sample("bool", bound=1),
        sample("bool[0,3]", bound=2),
        sample("bool[4]", bound=0),
        sample("bf16[4]", bound=4),
    ),
)

__all__ = ["stable_order"]
