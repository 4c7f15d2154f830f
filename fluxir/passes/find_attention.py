"""Attention found where it was written out: softmax(q k^T * scale + bias, masked) v becomes the one op.

It runs before derivatives are made, so that the written-out form has the fused gradient too, and again after calls are
inlined. What the result does not depend on is found by value, not by spelling: the axes of the products may come in any
order, the softmax may be the op or exponentials over their sum, the scale may stand anywhere. Exact where the written-out
form is, to the order of sums; a row of which nothing is seen stays NaN, and a masked score may be any number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ops.contract import dot_axes
from fluxir.ops.maps import axes_of
from fluxir.passes.manager import PassContext, pass_

MAX_CHAIN = 16  # elementwise ops between the two products


@pass_("find_attention")
def find_attention(func: Func, cx: PassContext) -> Func:
    """Replace a product with a softmax of a scaled, masked product by `attention`."""
    if sum(op.name == "dot" for op in func.walk()) < 2:
        return func
    return func.with_block(_rewritten(func.block, cx))


def _rewritten(block: Block, cx: PassContext) -> Block:
    inner = {op: tuple(_rewritten(k, cx) for k in op.blocks) for op in block.ops if op.blocks}
    uses: dict[Value, int] = {}
    for v in [*[v for op in block.ops for v in op.operands], *block.outs]:
        uses[v] = uses.get(v, 0) + 1
    found = {op: f for op in block.ops if op.name == "dot" and (f := _read(op, uses)) is not None}
    if not found and all(k is old for op, new in inner.items() for k, old in zip(new, op.blocks, strict=True)):
        return block
    b = Builder()
    env: dict[Value, Value] = {}
    for op in block.ops:
        b.loc = op.loc
        if op in found:
            cx.rules["find attention"] += 1
            env[op.result] = found[op].emit(b, lambda v: env.get(v, v))
            env[op.result].name = op.result.name
            continue
        operands = [env.get(v, v) for v in op.operands]
        for old, new in zip(op.results, b.clone(op, operands, inner.get(op, op.blocks)), strict=True):
            env[old] = new
            new.name = old.name
    return Block(block.args, b.ops, [env.get(v, v) for v in block.outs])


@dataclass(eq=False)
class _Found:
    """q, k, v with the order of their axes (batch, rows, columns), and what was done to the scores."""

    v: tuple[Value, tuple[int, ...]]
    q: tuple[Value, tuple[int, ...]] | None = None
    k: tuple[Value, tuple[int, ...]] | None = None
    scale: float = 1.0
    biases: list[Value] = field(default_factory=list)
    conditions: list[Value] = field(default_factory=list)
    fill: float | None = None

    def emit(self, b: Builder, now: Callable[[Value], Value]) -> Value:
        assert self.q is not None and self.k is not None
        sides = []
        for x, order in (self.q, self.k, self.v):
            y = now(x)
            sides.append(y if order == tuple(range(len(order))) else b.transpose(y, perm=order))
        masks = []
        for parts, name in ((self.biases, "add"), (self.conditions, "logical_and")):
            for i, part in enumerate(parts):
                if i == 0:
                    masks.append(now(part))
                else:
                    masks[-1] = b.emit(name, masks[-1], now(part))[0]
        fill = float("-inf") if self.fill is None else self.fill
        return b.emit("attention", *sides, *masks, scale=self.scale, undefined=True, fill=fill)[0]


def _read(op: Op, uses: dict[Value, int]) -> _Found | None:
    """A product as the last one of an attention; None where it is not that."""
    p, v = op.operands
    if not p.dtype.is_float:
        return None
    lb, lf, lc, rb, rf, rc = dot_axes(p, v, op.attrs)
    rank = len(p.shape)
    leading = tuple(range(rank - 2))
    if (lb, lf, lc) != (leading, (rank - 2,), (rank - 1,)) or len(rf) != 1 or len(v.shape) != rank:
        return None
    found = _Found((v, (*rb, *rc, *rf)))
    read = _softmax(p, uses)
    return found if read is not None and _scores(found, *read, uses) else None


def _once(v: Value, uses: dict[Value, int], times: int = 1) -> Op | None:
    """The op that makes a value which is needed nowhere else."""
    return v.owner if uses.get(v, 0) == times else None


def _softmax(p: Value, uses: dict[Value, int]) -> tuple[Value, int] | None:
    """What `p` is the softmax of, along its last axis, and how often it reads that."""
    op = _once(p, uses)
    last = len(p.shape) - 1
    if op is None:
        return None
    if op.name == "softmax":
        return (op.operands[0], 1) if op.attrs["axis"] % len(p.shape) == last else None
    if op.name != "div":
        return None
    e, total = op.operands
    if e.owner is None or e.owner.name != "exp" or uses.get(e) != 2 or _reduced(total, "sum", e, last) is None:
        return None
    shifted = e.owner.operands[0]
    if shifted.owner is None or shifted.owner.name != "sub" or uses.get(shifted) != 1:
        return None
    s, top = shifted.owner.operands
    return (s, 2) if _reduced(top, "max", s, last) is not None else None


def _reduced(v: Value, name: str, of: Value, axis: int) -> Op | None:
    """The reduction `name` of a value along one axis, which is kept, or put back by a reshape or broadcast."""
    op = v.owner
    while op is not None and op.name in ("stop_gradient", "reshape", "broadcast") and op.operands[0] is not of:
        if op.name == "broadcast" and tuple(op.result.shape) != tuple(of.shape):
            return None
        shape = tuple(op.result.shape)
        if op.name == "reshape" and shape != (*of.shape[:-1], 1):
            return None
        if op.name == "broadcast" and tuple(op.operands[0].shape) != (*of.shape[:-1], 1):
            return None
        op = op.operands[0].owner
    if op is None or op.name != name or op.operands[0] is not of or axes_of(op) != (axis,):
        return None
    kept = op.attrs["keepdims"] or tuple(v.shape) != tuple(op.result.shape)
    return op if kept else None


def _scores(found: _Found, v: Value, times: int, uses: dict[Value, int]) -> bool:
    """Read what was done to the product of q and k, from the last to the first: replaced, biased, scaled. `times`: how often
    the softmax reads the scores."""
    shape, dtype = tuple(v.shape), v.dtype
    for _ in range(MAX_CHAIN):
        op = _once(v, uses, times)
        times = 1
        if op is None:
            return False
        if op.name == "dot":
            return _product(found, op)
        if op.name == "select" and not found.biases and found.scale == 1.0:
            c, x, y = op.operands
            fill = _number(y)
            if fill is None or found.fill not in (None, fill) or tuple(x.shape) != shape or fill != fill:
                return False
            found.fill = fill
            found.conditions.insert(0, c)
            v = x
        elif op.name == "add" and found.scale == 1.0:
            x, y = op.operands if _leads_to_product(op.operands[0], shape, uses) else op.operands[::-1]
            if tuple(x.shape) != shape or y.dtype != dtype:
                return False
            found.biases.insert(0, y)
            v = x
        elif op.name in ("mul", "div"):
            x, y = op.operands
            factor = _number(y)
            if factor is None and op.name == "mul":
                x, y, factor = y, x, _number(x)
            if factor is None or tuple(x.shape) != shape or (op.name == "div" and factor == 0):
                return False
            found.scale *= factor if op.name == "mul" else 1 / factor
            v = x
        else:
            return False
    return False


def _leads_to_product(v: Value, shape: tuple[object, ...], uses: dict[Value, int]) -> bool:
    """Whether a term of a sum is the product, scaled or biased: the other is a bias then."""
    for _ in range(MAX_CHAIN):
        op = _once(v, uses)
        if op is None or tuple(v.shape) != shape:
            return False
        if op.name == "dot":
            return True
        if op.name not in ("add", "mul", "div"):
            return False
        first = op.operands[0]
        v = first if tuple(first.shape) == shape and _number(first) is None else op.operands[-1]
    return False


def _product(found: _Found, op: Op) -> bool:
    """q and k of the scores [batch, s, t]."""
    q, k = op.operands
    lb, lf, lc, rb, rf, rc = dot_axes(q, k, op.attrs)
    if not len(lf) == len(lc) == len(rf) == 1 or len(q.shape) != len(k.shape):
        return False
    found.q, found.k = (q, (*lb, *lf, *lc)), (k, (*rb, *rf, *rc))
    return True


def _number(v: Value) -> float | None:
    """The one number that a value is everywhere."""
    while v.owner is not None and v.owner.name in ("broadcast", "reshape", "cast", "stop_gradient"):
        v = v.owner.operands[0]
    if v.owner is None or v.owner.name != "const":
        return None
    a = v.owner.attrs["value"]
    return float(a.flat[0]) if a.size == 1 else None


__all__ = ["find_attention"]
