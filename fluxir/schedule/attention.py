"""What the attention templates of a CPU share: a group read as one attention, its operands as strided views, 2**x in vectors.

A group holds one `attention` or `attention_grad`, views of its operands before it (heads split off a row, a slice of one
product that gave q, k and v), what its masks are computed from, and transposes of its results. Scores are kept in units of
log 2: queries are scaled by scale * log2(e) as they are read, and weights are powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, product, prove_le
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType
from fluxir.ops.attention import default_scale
from fluxir.ops.nest import accumulator, cast
from fluxir.ops.views import View, row_major, view_of
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import Size, for_, index

LOG2E = math.log2(math.e)
NEVER = float("-inf")


@dataclass(frozen=True, eq=False)
class Attention:
    """q [batch, s, d], k [batch, t, d], v [batch, t, e] of a group; `masks` are values of the group. `others` are the further
    operands of a gradient (ct, lse, delta). `results[i]` says where result i of the op goes, if anywhere."""

    group: Group
    op: Op
    q: View
    k: View
    v: View
    others: tuple[View, ...]
    masks: tuple[Value, ...]
    results: tuple[tuple[int, View] | None, ...]

    @property
    def batch(self) -> tuple[Dim, ...]:
        return self.q.shape[:-2]

    @property
    def s(self) -> Dim:
        return self.q.shape[-2]

    @property
    def t(self) -> Dim:
        return self.k.shape[-2]

    @property
    def d(self) -> int:
        return int(self.q.shape[-1])

    @property
    def e(self) -> int:
        return int(self.v.shape[-1])

    @property
    def dtype(self) -> DType:
        """The type that is computed in."""
        return accumulator(self.op.operands[0].type.dtype)

    @property
    def scale(self) -> float:
        """What a product of a query and a key is multiplied with."""
        return default_scale(self.op.attrs["scale"], self.d)

    @property
    def fill(self) -> float:
        """The score of what is not seen, in units of log 2."""
        return float(self.op.attrs["fill"]) * LOG2E

    @property
    def skips(self) -> bool:
        """Whether what is not seen has no weight, so that blocks of it may be left out."""
        return self.fill == NEVER


def read(group: Group, name: str) -> Attention | None:
    """The group as one op `name` with views around it; None where it is not that."""
    ops = [op for op in group.ops if op.name == name]
    if len(ops) != 1:
        return None
    (op,) = ops
    count = 3 if name == "attention" else 6
    found = [view_of(v, lambda x: x in group.args or _is_number(x)) for v in op.operands[:count]]
    if any(f is None for f in found):
        return None
    q, k, v, *others = [f for f in found if f is not None]
    results: list[tuple[int, View] | None] = [None] * len(op.results)
    for j, out in enumerate(group.outs):
        turned = _turned(out, op)
        if turned is None:
            return None
        i, perm = turned
        strides = row_major(shape_of(out))
        back = [0] * len(perm)
        for axis, k_ in enumerate(perm):
            back[k_] = axis
        if results[i] is not None or (perm and perm[-1] != len(perm) - 1):
            return None
        shape = shape_of(op.results[i])
        results[i] = (j, View(out, shape, 0, tuple(strides[back[a]] for a in range(len(shape)))))
    return Attention(group, op, q, k, v, tuple(others), tuple(op.operands[count:]), tuple(results))


def _is_number(v: Value) -> bool:
    """A constant of the group: it is uniform, and lies in no memory."""
    return v.owner is not None and v.owner.name == "const"


def _turned(out: Value, op: Op) -> tuple[int, tuple[int, ...]] | None:
    """Which result of the op a value is a transpose of, and its axes' places there."""
    perm = tuple(range(len(shape_of(out))))
    while out.owner is not None and out.owner is not op and out.owner.name == "transpose":
        inner = out.owner.attrs["perm"]
        perm = tuple(inner[k] for k in perm)
        out = out.owner.operands[0]
    return (out.index, perm) if out.owner is op else None


class Flat:
    """Elements of a view in a kernel, at `base + row * row stride + column * column stride`, in the type computed in."""

    def __init__(self, b: Builder, view: View, reads: dict[Value, Value], dtype: DType) -> None:
        self.view, self.dtype = view, dtype
        self.mem: Value | None = None
        if not _is_number(view.source):
            mem = reads[view.source]
            assert isinstance(mem.type, MemType)
            flat = MemType(mem.type.dtype, (product(mem.type.shape),))
            self.mem = mem if mem.type == flat else b.emit("reinterpret", mem, type=flat)[0]
        self.row_stride = view.strides[-2] if len(view.shape) > 1 else 0
        self.column_stride = view.strides[-1]

    @property
    def contiguous(self) -> bool:
        """Whether the columns of a row are neighbours."""
        return self.column_stride == 1

    def base(self, b: Builder, batch: Sequence[Value]) -> Value:
        """Where the matrix (or vector) of a batch index begins."""
        at = b.index(self.view.offset)
        for i, stride, d in zip(batch, self.view.strides, self.view.shape):
            if stride != 0 and d != 1:
                at = b.add(at, b.mul(i, b.index(stride)))
        return at

    def row(self, b: Builder, base: Value, i: Value) -> Value:
        return b.add(base, b.mul(i, b.index(self.row_stride)))  # type: ignore[no-any-return]

    def column(self, b: Builder, row: Value, j: Value | int) -> Value:
        if isinstance(j, int):
            return b.add(row, b.index(self.column_stride * j)) if j else row
        return b.add(row, b.mul(j, b.index(self.column_stride)) if self.column_stride != 1 else j)  # type: ignore[no-any-return]

    def load(self, b: Builder, at: Value, lanes: int = 0) -> Value:
        if self.mem is None:
            assert self.view.source.owner is not None
            return number(b, float(self.view.source.owner.attrs["value"].flat[0]), self.dtype, lanes)
        return cast(b, b.emit("load", self.mem, at, lanes=lanes)[0], self.dtype)

    def store(self, b: Builder, x: Value, at: Value) -> None:
        assert self.mem is not None and isinstance(self.mem.type, MemType)
        b.store(self.mem, cast(b, x, self.mem.type.dtype), at)


def splat(b: Builder, x: Value, lanes: int) -> Value:
    return b.emit("splat", x, lanes=lanes)[0]


def number(b: Builder, value: float, dtype: DType, lanes: int = 0) -> Value:
    """A constant, in every lane of a vector with `lanes`."""
    x = b.const(value, dtype=dtype)
    return splat(b, x, lanes) if lanes else x


def greater(b: Builder, x: Value, y: Value) -> Value:
    """The larger of two; y where one is NaN: one instruction, and a NaN among scores shows in their weights anyway."""
    return b.select(b.gt(x, y), x, y)  # type: ignore[no-any-return]


def finite_base(b: Builder, top: Value) -> Value:
    """What is subtracted from scores whose largest is `top`: 0 where there is none, for -inf less -inf would be NaN."""
    zero = b.const(0.0, like=top)
    return b.select(b.eq(top, b.const(NEVER, like=top)), zero, top)  # type: ignore[no-any-return]


def unrolled(
    b: Builder,
    lo: Size,
    hi: Size,
    body: Callable[..., Sequence[Value]],
    carry: Sequence[Value],
    times: int = 4,
    name: str = "i",
) -> list[Value]:
    """`for_` with `times` rounds in one, and the rest one by one: a loop of so many rounds that its end is not foreseen costs
    as much as some rounds of it."""
    lo, hi = index(b, lo), index(b, hi)
    whole = b.sub(hi, b.fmod(b.sub(hi, lo), b.index(times)))

    def several(ib: Builder, i: Value, *c: Value) -> Sequence[Value]:
        out: Sequence[Value] = c
        for k in range(times):
            out = body(ib, ib.add(i, ib.index(k)) if k else i, *out)
        return out

    done = for_(b, lo, whole, several, carry, step=times, name=name, vectorize=False)
    return list(for_(b, whole, hi, body, done, name=name, vectorize=False))


def divisors(b: Builder, a: Attention, totals: Sequence[Value], lanes: int = 0) -> list[Value]:
    """What weighted sums are divided by: 1 in place of 0, which stays only where a row that sees nothing is `undefined` and
    there is something to see."""
    one, zero = number(b, 1.0, a.dtype, lanes), number(b, 0.0, a.dtype, lanes)
    if a.op.attrs["undefined"] and prove_le(1, a.t):
        return list(totals)
    out = []
    for x in totals:
        nothing = b.eq(x, zero)
        if a.op.attrs["undefined"]:
            empty = b.eq(b.index(a.t), b.index(0))
            nothing = b.logical_and(nothing, splat(b, empty, lanes) if lanes else empty)
        out.append(b.select(nothing, one, x))
    return out


def multiply_add(b: Builder, fma: bool, x: Value, y: Value, z: Value) -> Any:
    return b.fma(x, y, z) if fma else b.add(b.mul(x, y), z)


__all__ = [
    "LOG2E", "NEVER", "Attention", "Flat", "divisors", "finite_base", "greater", "multiply_add", "number", "read",
    "splat", "unrolled",
]  # fmt: skip
