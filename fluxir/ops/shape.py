"""Ops that give all elements another place or shape: reshape, transpose, broadcast, reverse, iota, stop_gradient.

Every size may be symbolic. What a type rule cannot prove about sizes (that both sides of a reshape hold as many
elements, that a result is not negative) is an error that names the fact to state, never a check left to run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, facts, mul, product, prove_equal, require_equal
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops import meaning
from fluxir.ops.bounds import at_most
from fluxir.ops.rules import normal_axes, normal_axis, tensor_operands

Shape = tuple[Dim, ...]


def show(shape: Sequence[Dim]) -> str:
    return f"[{','.join(map(str, shape))}]"


def require_sizes(name: str, shape: Sequence[Dim]) -> Shape:
    """FX0218 unless every size is at least 0 for all values the facts allow."""
    for axis, d in enumerate(shape):
        if not at_most(0, d):
            _, hi = facts().range(d)
            word = "is" if hi < 0 else "may be"
            raise error(
                "FX0218",
                f"{name}: the size {d} of axis {axis} {word} negative",
                help=None if hi < 0 else "state a bound on the symbol that makes it at least 0, such as B >= 2",
            )
    return tuple(shape)


# ---- reshape ---------------------------------------------------------------------------------------------------------


def _reshape(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("reshape", t, 1)
    shape = require_sizes("reshape", a.shape)
    old, new = x.size, product(shape)
    if not require_equal(old, new):
        raise _size_error(x, shape, old, new)
    return [x.with_shape(shape)]


def _size_error(x: TensorType, shape: Shape, old: Dim, new: Dim) -> FluxError:
    head = f"reshape of {x} to {show(shape)}: {old} elements cannot become {new}"
    if facts().equal(old, new) is None:
        return error(
            "FX0204",
            f"{head} unless {old} == {new}, which is not known",
            help=f"state the fact {old} == {new}, or give the shape in terms of {old}",
        )
    fits = []
    for i, d in enumerate(shape):
        rest = product(shape[:i] + shape[i + 1 :])
        if isinstance(old, int) and isinstance(rest, int) and rest and old % rest == 0 and d != old // rest:
            fits.append(f"axis {i} would have to be {old // rest}")
    return error(
        "FX0204", head, help=" or ".join(fits) or "use a slice, pad or broadcast to change the number of elements"
    )


def factor_groups(source: Shape, target: Shape) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes of `source` and `target` with equal products, in order; axes of size 1 are left out.

    Both shapes hold the same number of elements. `[B,4,4] -> [B,16]` gives `[([0], [0]), ([1, 2], [1])]`.
    """
    old = [i for i, d in enumerate(source) if d != 1]
    new = [i for i, d in enumerate(target) if d != 1]
    ends = [product(target[i] for i in new[: m + 1]) for m in range(len(new))]
    groups: list[tuple[list[int], list[int]]] = []
    start, used = 0, 0
    total: Dim = 1
    for n, axis in enumerate(old):
        total = mul(total, source[axis])
        cut = next((m for m in range(used, len(new)) if prove_equal(total, ends[m])), None)
        if cut is not None and n + 1 < len(old):
            groups.append((old[start : n + 1], new[used : cut + 1]))
            start, used = n + 1, cut + 1
    if start < len(old) or used < len(new):
        groups.append((old[start:], new[used:]))
    return groups


def _reshape_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    """Per group the linear index; only a split divides. Merging [B,4,4] -> [B,16] reads from i*4 + j undone."""
    b, source, target = cx.b, o.operands[0].type.shape, o.attrs.shape
    at = [b.index(0)] * len(source)
    for old, new in factor_groups(source, target):
        linear: Value | None = None
        for axis in new:
            linear = index[axis] if linear is None else b.add(b.mul(linear, cx.dim(target[axis])), index[axis])
        if linear is None:
            continue  # all these axes have size 1 at run time
        for axis in reversed(old[1:]):
            n = cx.dim(source[axis])
            at[axis], linear = b.fmod(linear, n), b.div(linear, n)
        if old:
            at[old[0]] = linear
    return cx.at(o.operands[0], at)


op(
    "reshape",
    _reshape,
    attrs={"shape": "dims"},
    category="shape",
    ref=lambda a, x: np.reshape(x, a.shape),
    element=_reshape_element,
    cost=lambda o: 0,
    samples=(
        sample("f32[3,4,4]", shape=(3, 16)),
        sample("f32[3,16]", shape=(3, 4, 2, 2)),
        sample("i32[6,4]", shape=(4, 6)),
        sample("f64[2,3]", shape=(1, 6, 1)),
        sample("f16[1]", shape=()),
        sample("bf16", shape=(1, 1)),
        sample("bool[0,3]", shape=(5, 0)),
        sample("u8[4,1,3,5]", shape=(12, 5)),
    ),
    doc="The same elements in row-major order with another shape of the same number of elements.",
    linear="all",
    vjp=lambda b, o, cts: [b.reshape(cts[0], shape=o.operands[0].shape)],
)

# ---- transpose -------------------------------------------------------------------------------------------------------


def _transpose(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("transpose", t, 1)
    if sorted(a.perm) != list(range(x.rank)):
        raise error(
            "FX0207",
            f"transpose: {a.perm} is not a permutation of the {x.rank} axes of {x}",
            help=f"name each of {', '.join(map(str, range(x.rank))) or 'no axes'} once",
        )
    return [x.with_shape(x.shape[i] for i in a.perm)]


def _transpose_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    at: list[Any] = [None] * len(index)
    for i, source in zip(index, o.attrs.perm, strict=True):
        at[source] = i
    return cx.at(o.operands[0], at)


def _transpose_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    perm = normal_axes("transpose", o.attrs.perm, len(o.attrs.perm))
    return [b.transpose(cts[0], perm=tuple(perm.index(i) for i in range(len(perm))))]


op(
    "transpose",
    _transpose,
    attrs={"perm": "ints"},
    category="shape",
    ref=lambda a, x: np.transpose(x, a.perm),
    element=_transpose_element,
    cost=lambda o: 0,
    samples=(
        sample("f32[3,4]", perm=(1, 0)),
        sample("i32[2,3,4]", perm=(2, 0, 1)),
        sample("f64", perm=()),
        sample("bool[0,2]", perm=(1, 0)),
        sample("bf16[2,3]", perm=(1, 0)),
    ),
    doc="Axis i of the result is axis perm[i] of x.",
    linear="all",
    vjp=_transpose_vjp,
)

# ---- broadcast -------------------------------------------------------------------------------------------------------


def broadcast_axes(a: Attrs, rank: int) -> tuple[int, ...]:
    """The result axis of each operand axis of a `broadcast`."""
    return a.axes if a.axes is not None else tuple(range(len(a.shape) - rank, len(a.shape)))


def _broadcast(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("broadcast", t, 1)
    shape = require_sizes("broadcast", a.shape)
    axes = broadcast_axes(a, x.rank)
    if len(axes) != x.rank or any(not 0 <= i < len(shape) for i in axes):
        raise error(
            "FX0202",
            f"broadcast: {x} has {x.rank} axes, which cannot become axes {axes} of {show(shape)}",
            help="`axes` gives for each axis of the operand its place in the result",
        )
    if len(set(axes)) != len(axes):
        raise error("FX0206", f"broadcast: an axis is repeated in {axes}")
    for i, d in zip(axes, x.shape, strict=True):
        if d != 1 and not require_equal(d, shape[i]):
            raise error(
                "FX0202",
                f"broadcast of {x} to {show(shape)}: {d} is not {shape[i]} (axis {i} of the result)",
                help="an axis must have the size of the result's or 1",
            )
    return [x.with_shape(shape)]


def _broadcast_ref(a: Attrs, x: Any) -> Any:
    axes = broadcast_axes(a, np.ndim(x))
    order = np.argsort(axes)
    shape = [1] * len(a.shape)
    for i, d in zip(axes, np.shape(x), strict=True):
        shape[i] = d
    return np.broadcast_to(np.transpose(x, order).reshape(shape), a.shape).copy()


def _broadcast_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    (x,) = o.operands
    axes = broadcast_axes(o.attrs, len(x.type.shape))
    at = [cx.b.index(0) if d == 1 else index[i] for i, d in zip(axes, x.type.shape, strict=True)]
    return cx.at(x, at)


def _broadcast_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    """Sums over the axes that are new or were stretched."""
    (x,), shape = o.operands, o.attrs.shape
    axes = broadcast_axes(o.attrs, len(x.shape))
    kept = [i for i, d in zip(axes, x.shape, strict=True) if not (d == 1 and shape[i] != 1)]
    total = b.sum(cts[0], axes=tuple(i for i in range(len(shape)) if i not in kept))
    order = sorted(kept)
    if order != kept:
        total = b.transpose(total, perm=tuple(order.index(i) for i in kept))
    return [b.reshape(total, shape=x.shape)]


op(
    "broadcast",
    _broadcast,
    attrs={"shape": "dims", "axes": ("ints", None)},
    category="shape",
    ref=_broadcast_ref,
    element=_broadcast_element,
    cost=lambda o: 0,
    samples=(
        sample("f32[4]", shape=(3, 4)),
        sample("f32[3]", shape=(3, 4), axes=(0,)),
        sample("i32[2,3]", shape=(3, 5, 2), axes=(2, 0)),
        sample("f64[1,3]", shape=(2, 4, 3)),
        sample("bool", shape=(2, 2)),
        sample("bf16[1]", shape=(0, 3)),
        sample("u8", shape=()),
    ),
    doc="Repeat along new axes and axes of size 1; `axes` gives the result axis of each operand axis (default: the last ones).",
    linear="all",
    vjp=_broadcast_vjp,
)

# ---- reverse, iota, stop_gradient ------------------------------------------------------------------------------------


def _reverse(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("reverse", t, 1)
    normal_axes("reverse", a.axes, x.rank)
    return [x]


def _reverse_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    (x,) = o.operands
    axes = normal_axes("reverse", o.attrs.axes, len(index))
    at = [
        cx.b.sub(cx.dim(d - 1), i) if n in axes else i for n, (i, d) in enumerate(zip(index, x.type.shape, strict=True))
    ]
    return cx.at(x, at)


op(
    "reverse",
    _reverse,
    attrs={"axes": "ints"},
    category="shape",
    ref=lambda a, x: np.flip(x, a.axes).copy(),
    element=_reverse_element,
    cost=lambda o: 0,
    samples=(
        sample("f32[3,4]", axes=(1,)),
        sample("i32[3,2,2]", axes=(0, -1)),
        sample("f64[4]", axes=()),
        sample("bool[0,2]", axes=(0,)),
        sample("bf16", axes=()),
    ),
    doc="The elements of the given axes in reverse order.",
    linear="all",
    vjp=lambda b, o, cts: [b.reverse(cts[0], **o.attrs)],
)


def _iota(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    tensor_operands("iota", t, 0)
    shape = require_sizes("iota", a.shape)
    normal_axis("iota", a.axis, len(shape))
    if a.dtype.is_bool:
        raise error("FX0209", "iota does not make bool", help="compare an integer iota with something")
    return [TensorType(a.dtype, shape)]


def _iota_ref(a: Attrs) -> Any:
    axis = normal_axis("iota", a.axis, len(a.shape))
    line = meaning.cast(np.arange(a.shape[axis], dtype=np.int64), a.dtype)
    return np.broadcast_to(line.reshape([-1 if i == axis else 1 for i in range(len(a.shape))]), a.shape).copy()


def _iota_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    i = index[normal_axis("iota", o.attrs.axis, len(index))]
    return i if o.attrs.dtype.name == "i64" else cx.b.cast(i, dtype=o.attrs.dtype)


op(
    "iota",
    _iota,
    attrs={"shape": "dims", "axis": "int", "dtype": "dtype"},
    category="shape",
    ref=_iota_ref,
    element=_iota_element,
    cost=lambda o: 0,
    samples=(
        sample(shape=(5,), axis=0, dtype="i64"),
        sample(shape=(2, 3), axis=-1, dtype="f32"),
        sample(shape=(3, 2), axis=0, dtype="u8"),
        sample(shape=(0, 2), axis=1, dtype="i32"),
        sample(shape=(4,), axis=0, dtype="bf16"),
    ),
    doc="The index along `axis`, 0 to n - 1, as `dtype` (integers wrap).",
    constant="takes no value",
)


def _stop_gradient(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    return [tensor_operands("stop_gradient", t, 1)[0]]


op(
    "stop_gradient",
    _stop_gradient,
    category="shape",
    ref=lambda a, x: x,
    element=lambda cx, o, index: cx.at(o.operands[0], index),
    cost=lambda o: 0,
    samples=(("f32[3]",), ("i32[2,2]",), ("bool",), ("bf16[0]",)),
    doc="x itself; derivatives do not flow through it.",
    constant="stops derivatives",
    expand=lambda b, o: o.operands[0],
)

__all__ = ["broadcast_axes", "factor_groups", "show"]
