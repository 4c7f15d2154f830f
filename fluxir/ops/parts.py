"""Ops that take tensors apart and join them: slice, pad, concat.

Every size may be symbolic. That a slice lies inside its axis is proven by the type rule (FX0218 names the fact that is
missing), never left to run time: the element rules read without checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, ceildiv, maximum, mul, prove_lt, require_equal
from fluxir.ir.opdef import Sample, op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops.bounds import at_most
from fluxir.ops.nest import choose
from fluxir.ops.rules import normal_axis, tensor_operands
from fluxir.ops.shape import require_sizes

# ---- slice -----------------------------------------------------------------------------------------------------------


def _strides(a: Attrs, rank: int) -> tuple[int, ...]:
    return a.stride if a.stride is not None else (1,) * rank


def _slice(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = tensor_operands("slice", t, 1)
    strides = _strides(a, x.rank)
    if not len(a.start) == len(a.limit) == len(strides) == x.rank:
        raise error(
            "FX0216",
            f"slice: {x} has {x.rank} axes, start, limit and stride name {len(a.start)}, {len(a.limit)} and {len(strides)}",
        )
    out: list[Dim] = []
    for axis, (size, start, limit, step) in enumerate(zip(x.shape, a.start, a.limit, strides, strict=True)):
        if step < 1:
            raise error(
                "FX0216",
                f"slice: the stride of axis {axis} is {step}, it must be positive",
                help="`reverse` first for a negative step",
            )
        for low, high in ((0, start), (start, limit), (limit, size)):
            if not at_most(low, high):
                raise _slice_error(x, axis, start, limit, low, high)
        out.append(ceildiv(limit - start, step))
    return [x.with_shape(out)]


def _slice_error(x: TensorType, axis: int, start: Dim, limit: Dim, low: Dim, high: Dim) -> FluxError:
    head = f"slice [{start}:{limit}] of axis {axis} of {x}"
    if prove_lt(high, low):
        return error(
            "FX0216", f"{head}: {low} is larger than {high}", help="bounds satisfy 0 <= start <= limit <= size"
        )
    return error(
        "FX0218",
        f"{head}: {low} <= {high} is not known",
        help=f"state a fact that makes {low} <= {high} true, such as a bound on a symbol",
    )


def _slice_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    b = cx.b
    at = []
    for i, start, step in zip(index, o.attrs.start, _strides(o.attrs, len(index)), strict=True):
        scaled = i if step == 1 else b.mul(i, b.index(step))
        at.append(scaled if start == 0 else b.add(scaled, cx.dim(start)))
    return cx.at(o.operands[0], at)


def _slice_ref(a: Attrs, x: Any) -> Any:
    parts = zip(a.start, a.limit, _strides(a, np.ndim(x)), strict=True)
    return np.asarray(x)[tuple(slice(s, e, k) for s, e, k in parts)].copy()


def _slice_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    """Zeros around and between the elements that were taken."""
    (x,), a = o.operands, o.attrs
    steps = _strides(a, len(x.shape))
    spread = [step_extent(d, k) for d, k in zip(o.result.shape, steps, strict=True)]
    high = [n - s - d for n, s, d in zip(x.shape, a.start, spread, strict=True)]
    gaps = tuple(k - 1 for k in steps) if any(k > 1 for k in steps) else None
    return [b.pad(cts[0], b.const(0, dtype=x.dtype), low=a.start, high=tuple(high), interior=gaps)]


def step_extent(count: Dim, step: int) -> Dim:
    """The size of `count` elements with `step - 1` between neighbours."""
    return count if step == 1 else maximum((count - 1) * step + 1, 0)


op(
    "slice",
    _slice,
    attrs={"start": "dims", "limit": "dims", "stride": ("ints", None)},
    category="shape",
    ref=_slice_ref,
    element=_slice_element,
    cost=lambda o: 0,
    samples=(
        sample("f32[5,6]", start=(1, 0), limit=(4, 6)),
        sample("f32[7]", start=(1,), limit=(6,), stride=(2,)),
        sample("i32[5,6]", start=(0, 2), limit=(5, 2)),
        sample("f64", start=(), limit=()),
        sample("bf16[0,4]", start=(0, 1), limit=(0, 3)),
        sample("bool[4,3]", start=(0, 0), limit=(4, 3), stride=(3, 2)),
    ),
    doc="The elements start, start + stride, ... below limit of each axis; strides are positive.",
    linear="all",
    vjp=_slice_vjp,
)

# ---- pad -------------------------------------------------------------------------------------------------------------


def _interior(a: Attrs, rank: int) -> tuple[int, ...]:
    return a.interior if a.interior is not None else (0,) * rank


def _pad(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x, value = tensor_operands("pad", t, 2)
    if value != TensorType(x.dtype):
        raise error(
            "FX0201", f"pad: the value must be a {x.dtype} scalar, not {value}", help="cast it to the tensor's type"
        )
    between = _interior(a, x.rank)
    if not len(a.low) == len(a.high) == len(between) == x.rank:
        raise error(
            "FX0223",
            f"pad: {x} has {x.rank} axes, low, high and interior name {len(a.low)}, {len(a.high)} and {len(between)}",
        )
    if any(n < 0 for n in between):
        raise error("FX0223", f"pad: interior padding cannot be negative: {between}")
    shape = []
    for d, low, high, gap in zip(x.shape, a.low, a.high, between, strict=True):
        spread = maximum(mul(d - 1, gap + 1) + 1, 0) if gap else d
        shape.append(spread + low + high)
    return [x.with_shape(require_sizes("pad", shape))]


def _pad_ref(a: Attrs, x: Any, value: Any) -> Any:
    x = np.asarray(x)
    between = _interior(a, x.ndim)
    spread = tuple(max((n - 1) * (g + 1) + 1, 0) if g else n for n, g in zip(x.shape, between, strict=True))
    wide = np.full(
        tuple(s + max(lo, 0) + max(hi, 0) for s, lo, hi in zip(spread, a.low, a.high, strict=True)), value, x.dtype
    )
    inside = tuple(slice(max(lo, 0), max(lo, 0) + s, g + 1) for lo, s, g in zip(a.low, spread, between, strict=True))
    wide[inside] = x
    cut = tuple(slice(max(-lo, 0), n - max(-hi, 0)) for lo, hi, n in zip(a.low, a.high, wide.shape, strict=True))
    return wide[cut]


def _pad_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    """The element read where all indices fall on one of the operand, under a branch: an empty operand has none to read."""
    b = cx.b
    x, value = o.operands
    a = o.attrs
    at: list[Value] = []
    tests: list[Value] = []
    for i, size, low, high, gap in zip(index, x.type.shape, a.low, a.high, _interior(a, len(index)), strict=True):
        p = i if low == 0 else b.sub(i, cx.dim(low))
        before = not at_most(low, 0)  # some result elements lie before the first of the operand
        if before:
            tests.append(b.ge(p, b.index(0)))
        if gap:
            step = b.index(gap + 1)
            tests.append(b.eq(b.fmod(p, step), b.index(0)))
            p = b.div(p, step)  # negative p is excluded by the first test
        if gap or not at_most(high, 0):
            tests.append(b.lt(p, cx.dim(size)))
        at.append(p)
    if not tests:
        return cx.at(x, at)
    inside = tests[0]
    for test in tests[1:]:
        inside = b.logical_and(inside, test)
    return choose(cx, inside, lambda c: c.at(x, at), lambda c: c.at(value, ()))


def _pad_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    """The operand's cotangent is what is left without the padding; the value's is the sum of the rest."""
    x, a, ct = o.operands[0], o.attrs, cts[0]
    gaps = _interior(a, len(x.shape))
    inner = b.pad(ct, b.const(0, dtype=x.dtype), low=tuple(-n for n in a.low), high=tuple(-n for n in a.high))
    if any(gaps):
        steps = tuple(g + 1 for g in gaps)
        inner = b.slice(inner, start=(0,) * len(gaps), limit=tuple(inner.shape), stride=steps)
    inner = b.reshape(inner, shape=x.shape)
    every = tuple(range(len(x.shape)))
    ones = b.broadcast(b.const(1, dtype=x.dtype), shape=x.shape)
    inside = b.pad(ones, b.const(0, dtype=x.dtype), **a)
    outside = b.select(b.eq(inside, b.const(0, dtype=x.dtype)), ct, b.const(0, dtype=x.dtype))
    return [inner, b.sum(outside, axes=every) if every else b.const(0, dtype=x.dtype)]


def _padded(*types: str, **attrs: Any) -> Sample:
    """A sample whose `low` and `high` are the op's attributes, not the range of its inputs."""
    return Sample(types, attrs)


op(
    "pad",
    _pad,
    attrs={"low": "dims", "high": "dims", "interior": ("ints", None)},
    category="shape",
    ref=_pad_ref,
    element=_pad_element,
    cost=lambda o: 0,
    samples=(
        _padded("f32[3,4]", "f32", low=(1, 0), high=(2, 1)),
        _padded("f32[5]", "f32", low=(-1,), high=(-2,)),
        _padded("f32[4]", "f32", low=(1,), high=(-3,), interior=(2,)),
        _padded("i32[2,3]", "i32", low=(0, -1), high=(1, 2), interior=(1, 0)),
        _padded("f64[0,2]", "f64", low=(2, 0), high=(1, 0)),
        _padded("f16[0]", "f16", low=(1,), high=(1,), interior=(1,)),
        _padded("bf16", "bf16", low=(), high=()),
        _padded("bool[3]", "bool", low=(-2,), high=(4,)),
        _padded("f32[4]", "f32", low=(-2,), high=(0,), interior=(1,)),
    ),
    doc="pad(x, value): `low` and `high` elements around each axis (negative ones crop) and `interior` between neighbours.",
    linear="all",
    vjp=_pad_vjp,
)

# ---- concat ----------------------------------------------------------------------------------------------------------


def _concat(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    xs = tensor_operands("concat", t)
    if not xs:
        raise error("FX0208", "concat needs at least one operand")
    first = xs[0]
    if first.rank == 0:
        raise error("FX0220", "concat: scalars have no axis to join along", help="give them one with reshape or stack")
    axis = normal_axis("concat", a.axis, first.rank)
    total: Dim = 0
    for n, x in enumerate(xs):
        if x.dtype != first.dtype:
            raise error("FX0201", f"concat: operand 0 is {first}, operand {n} is {x}", help="cast them to one type")
        if x.rank != first.rank:
            raise error("FX0208", f"concat: operand 0 is {first}, operand {n} is {x}: their ranks differ")
        for i, (d, e) in enumerate(zip(first.shape, x.shape, strict=True)):
            if i != axis and not require_equal(d, e):
                raise error(
                    "FX0208",
                    f"concat: {d} (operand 0, axis {i}) is not {e} (operand {n}, axis {i})",
                    help=f"only axis {axis} may differ",
                )
        total = total + x.shape[axis]
    return [first.with_shape(total if i == axis else d for i, d in enumerate(first.shape))]


def _concat_element(cx: Any, o: Op, index: Sequence[Value]) -> Any:
    """A balanced tree of branches over the offsets: log2(n) comparisons for n operands."""
    axis = normal_axis("concat", o.attrs.axis, len(index))
    sizes = [x.type.shape[axis] for x in o.operands]
    offsets: list[Dim] = [0]
    for d in sizes:
        offsets.append(offsets[-1] + d)

    def pick(c: Any, lo: int, hi: int) -> Any:
        if hi - lo == 1:
            p = index[axis] if offsets[lo] == 0 else c.b.sub(index[axis], c.dim(offsets[lo]))
            return c.at(o.operands[lo], [*index[:axis], p, *index[axis + 1 :]])
        mid = (lo + hi) // 2
        before = c.b.lt(index[axis], c.dim(offsets[mid]))
        return choose(c, before, lambda inner: pick(inner, lo, mid), lambda inner: pick(inner, mid, hi))

    return pick(cx, 0, len(o.operands))


def _concat_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    axis = normal_axis("concat", o.attrs.axis, len(o.result.shape))
    out, at = [], 0
    for x in o.operands:
        start = [0] * len(x.shape)
        limit = list(x.shape)
        start[axis], limit[axis] = at, at + x.shape[axis]
        out.append(b.slice(cts[0], start=tuple(start), limit=tuple(limit)))
        at = limit[axis]
    return out


op(
    "concat",
    _concat,
    attrs={"axis": "int"},
    category="shape",
    ref=lambda a, *xs: np.concatenate(xs, axis=a.axis),
    element=_concat_element,
    cost=lambda o: 0,
    samples=(
        sample("f32[2,3]", "f32[4,3]", axis=0),
        sample("i32[2,3]", "i32[2,1]", "i32[2,2]", axis=-1),
        sample("f64[0]", "f64[3]", "f64[1]", "f64[2]", "f64[2]", axis=0),
        sample("bool[2]", axis=0),
        sample("bf16[2,0]", "bf16[2,0]", axis=1),
        sample("f16[1,2,2]", "f16[1,3,2]", axis=1),
    ),
    linear="all",
    vjp=_concat_vjp,
    doc="The operands joined along `axis`; all other sizes are equal.",
)
