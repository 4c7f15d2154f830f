"""Products of integers in the width that their operands come in.

A dot of i32 operands that are 8-bit integers less a zero point (what quantised models compute) is a dot of the 8-bit integers
themselves, with the zero points taken off afterwards:

    sum (x - a) (w - c)  =  sum x w  -  a sum w  -  c sum x  +  k a c

which holds modulo 2**32, so that results keep their bits. The sums of a constant operand are constants. A constant whose
values lie within 256 of each other is 8-bit integers less a number too; of the two signs it takes the other operand's
opposite, which is what x86 multiplies fastest, or the same on AArch64. CPU targets only; where an operand is no such
thing, or its zero points vary along the contracted axes, a dot stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, product
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.rewrite import rewrite_func
from fluxir.ops.contract import dot_axes
from fluxir.passes.manager import PassContext, pass_
from fluxir.target import CpuTarget

I8, U8, I32 = DTYPES["i8"], DTYPES["u8"], DTYPES["i32"]


@dataclass(frozen=True)
class Narrow:
    """8-bit integers `x` less `zero`, an i32 value that broadcasts to their shape; None: less nothing."""

    x: Value
    zero: Value | None = None


@pass_("narrow")
def narrow(func: Func, cx: PassContext) -> Func:
    """Multiply 8-bit integers as such where a program multiplies them as i32 less their zero points."""
    if not isinstance(cx.target, CpuTarget) or not any(_is_wide(op) for op in func.walk()):
        return func
    same = cx.target.machine == "aarch64"

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if not _is_wide(op):
            return None
        inner = Builder(op.loc)
        found = _sides(inner, operands[0], operands[1], same)
        made = None if found is None else _narrowed(inner, op, *found)
        if made is None:
            return None
        cx.rules["narrow dot"] += 1
        b.ops.extend(inner.ops)
        return (made,)

    return rewrite_func(func, visit)


def _is_wide(op: Op) -> bool:
    return op.name == "dot" and op.attrs["dtype"] is None and op.result.type.dtype == I32


def _sides(b: Builder, x: Value, y: Value, same: bool) -> tuple[Narrow, Narrow] | None:
    """Both operands as 8-bit integers, of which constants take the sign that suits the other one."""
    left, right = _read(b, x), _read(b, y)
    if left is None and right is not None:
        left = _constant(b, x, _partner(right, same))
    elif right is None and left is not None:
        right = _constant(b, y, _partner(left, same))
    return None if left is None or right is None else (left, right)


def _partner(other: Narrow, same: bool) -> DType:
    return I8 if (other.x.dtype == I8) == same else U8


def _read(b: Builder, v: Value) -> Narrow | None:
    """A value as a cast of 8-bit integers, less what is subtracted from it."""
    op = v.owner
    if (x := _bytes(v)) is not None:
        return Narrow(x)
    if op is None or op.name not in ("sub", "add"):
        return None
    for i in (0, 1) if op.name == "add" else (0,):
        x, zero = _bytes(op.operands[i]), op.operands[1 - i]
        if x is not None and x.shape == v.shape:
            return Narrow(x, zero if op.name == "sub" else b.neg(zero))
    return None


def _bytes(v: Value) -> Value | None:
    """The 8-bit integers that a value is a cast of."""
    op = v.owner
    return op.operands[0] if op is not None and op.name == "cast" and op.operands[0].dtype in (I8, U8) else None


def _constant(b: Builder, v: Value, kind: DType) -> Narrow | None:
    """A constant as 8-bit integers of one sign less a number."""
    known = _known(v)
    if known is None or not known.size:
        return None
    a = known.astype(np.int64)
    low, high = (int(n) for n in kind.limits)
    least, most = int(a.min()), int(a.max())
    if most - least > high - low:
        return None
    shift = 0 if low <= least and most <= high else low - least
    x = b.const((a + shift).astype(kind.numpy))
    return Narrow(x, b.const(shift, dtype=I32) if shift else None)


def _narrowed(b: Builder, op: Op, left: Narrow, right: Narrow) -> Value | None:
    """The dot of two such operands; None where a zero point varies in a way that is not followed."""
    lb, lf, lc, rb, rf, rc = dot_axes(left.x.type, right.x.type, op.attrs)
    a = _along(b, left, lc, bool(lb) or len(lf) > 1, lf)
    c = _along(b, right, rc, bool(rb) or len(rf) > 1, rf)
    if a is NotImplemented or c is NotImplemented:
        return None
    batch, rows, columns = len(lb), len(lf), len(rf)
    out = b.emit("dot", left.x, right.x, **{**op.attrs, "dtype": I32})[0]
    if a is not None and a.shape:
        a = _shaped(b, a, (a.shape[0], *[1] * columns))
    if a is not None:
        total = _sum(b, right.x, rb, rf, rc)
        total = _shaped(b, total, (*total.shape[:batch], *[1] * rows, *total.shape[batch:]))
        out = b.sub(out, _times(b, total, a))
    if c is not None:
        total = _sum(b, left.x, lb, lf, lc)
        total = _shaped(b, total, (*total.shape, *[1] * columns))
        if a is not None:  # sum (x - a) c
            count = b.emit("dim", value=product(left.x.shape[i] for i in lc))[0]
            total = b.sub(total, _times(b, b.cast(count, dtype=I32), a))
        out = b.sub(out, _times(b, total, c))
    return out


def _shaped(b: Builder, x: Value, shape: tuple[Dim, ...]) -> Value:
    if x.shape == shape:
        return x
    if (known := _known(x)) is not None:
        return b.const(known.reshape([int(d) for d in shape]))
    return b.reshape(x, shape=shape)  # type: ignore[no-any-return]


def _known(v: Value) -> Any:
    """The array of a constant; None for other values."""
    return v.owner.attrs["value"].reshape(v.shape) if v.owner is not None and v.owner.name == "const" else None


def _times(b: Builder, x: Value, y: Value) -> Value:
    """The product of two i32 values, of constants as a constant."""
    left, right = _known(x), _known(y)
    if left is not None and right is not None:
        return b.const(np.multiply(left, right, dtype=np.int64).astype(np.int32))
    return b.mul(x, y)  # type: ignore[no-any-return]


def _along(b: Builder, side: Narrow, contracted: tuple[int, ...], many: bool, free: tuple[int, ...]) -> Any:
    """The zero point as a scalar, or as a vector along the only free axis; NotImplemented where it is neither."""
    if side.zero is None:
        return None
    zero, rank = side.zero, len(side.x.shape)
    sizes = (*[1] * (rank - len(zero.shape)), *zero.shape)
    if all(d == 1 for d in sizes):
        return _shaped(b, zero, ())
    if many or not free or any(d != 1 for i, d in enumerate(sizes) if i != free[0]):
        broadcast = zero.owner if zero.owner is not None and zero.owner.name == "broadcast" else None
        if broadcast is not None and broadcast.operands[0].shape == ():
            return broadcast.operands[0]
        return NotImplemented
    return _shaped(b, zero, (sizes[free[0]],))


def _sum(b: Builder, x: Value, batch: tuple[int, ...], free: tuple[int, ...], axes: tuple[int, ...]) -> Value:
    """Sums of 8-bit integers over the contracted axes, as i32 with the axes batch, free."""
    kept = [i for i in range(len(x.shape)) if i not in axes]
    order = tuple(kept.index(i) for i in (*batch, *free))
    if (known := _known(x)) is not None:
        total = known.sum(axis=axes, dtype=np.int64).astype(np.int32)
        return b.const(total.transpose(order))
    total = b.emit("sum", b.cast(x, dtype=I32), axes=axes)[0]
    return total if order == tuple(range(len(order))) else b.transpose(total, perm=order)
