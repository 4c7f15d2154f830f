"""`iterate` as a `while`, in loop IR: of one element, or of a vector of elements with a mask.

`expand_iterate(func)` is the only door; it gives back `func` itself where there is nothing to do. On vectors the loop
goes on while any element does, and an element that is done keeps its state, so its value does not depend on which others
are beside it. The mask is carried as integers as wide as the widest elements: a vector of bits that lives across blocks
would be packed and unpacked in every round.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import VectorType

__all__ = ["expand_iterate"]


def expand_iterate(f: Func) -> Func:
    """`f` without `iterate`."""
    if all(op.name != "iterate" for op in f.walk()):
        return f
    b = Builder()
    env: dict[Value, Value] = {}
    _rewrite(b, f.block, env)
    return f.with_block(Block(f.block.args, b.ops, [env.get(v, v) for v in f.block.outs]))


def _rewrite(b: Builder, block: Block, env: dict[Value, Value]) -> None:
    for op in block.ops:
        operands = [env.get(v, v) for v in op.operands]
        b.loc = op.loc
        if op.name == "iterate":
            env[op.result] = _vectors(b, op, operands) if _lanes(operands) else _scalar(b, op, operands)
            continue
        blocks = []
        for k in op.blocks:
            inner, scope = Builder(), dict(env)
            _rewrite(inner, k, scope)
            blocks.append(Block(k.args, inner.ops, [scope.get(v, v) for v in k.outs]))
        if blocks or any(x is not y for x, y in zip(operands, op.operands, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            env.update(zip(op.results, b.append(new), strict=True))
        else:
            b.append(op)


def _lanes(operands: Sequence[Value]) -> int:
    t = operands[0].type
    return t.lanes if isinstance(t, VectorType) else 0


def _inline(b: Builder, block: Block, args: Sequence[Value]) -> list[Value]:
    """The ops of a region on scalars, on what `args` are."""
    env: dict[Value, Value] = dict(zip(block.args, args, strict=True))
    lanes = _lanes(args) if args else 0
    for op in block.ops:
        if op.name == "const":
            x = b.const(op.attrs["value"], dtype=op.result.dtype)
            env[op.result] = b.emit("splat", x, lanes=lanes)[0] if lanes else x
        else:
            env[op.result] = b.emit(op.name, *[env[v] for v in op.operands], loc=op.loc, **op.attrs)[0]
    return [env[v] for v in block.outs]


def _scalar(b: Builder, op: Op, operands: Sequence[Value]) -> Value:
    n = op.attrs["carry"]
    cond, body = op.blocks
    types = [v.type for v in operands[:n]]
    test = b.block(types, lambda ib, *c: _inline(ib, cond, [*c, *operands[n:]]))
    step = b.block(types, lambda ib, *c: _inline(ib, body, [*c, *operands[n:]]))
    found = b.emit("while", *operands[:n], blocks=[test, step], carry=n)
    return found[int(op.attrs["result"])]


def _vectors(b: Builder, op: Op, operands: Sequence[Value]) -> Value:
    n, lanes = op.attrs["carry"], _lanes(operands)
    cond, body = op.blocks
    wide = DTYPES["i64" if any(v.dtype.bits == 64 for v in operands) else "i32"]

    def packed(ib: Builder, values: Sequence[Value]) -> list[Value]:
        """Truth values as integers: all bits set, or none."""
        ones, none = (ib.emit("splat", ib.const(x, dtype=wide), lanes=lanes)[0] for x in (-1, 0))
        return [ib.select(v, ones, none) if v.dtype.is_bool else v for v in values]

    def unpacked(ib: Builder, values: Sequence[Value], like: Sequence[Value]) -> list[Value]:
        none = ib.emit("splat", ib.const(0, dtype=wide), lanes=lanes)[0]
        return [ib.lt(v, none) if o.dtype.is_bool else v for v, o in zip(values, like, strict=True)]

    first, consts = operands[:n], operands[n:]
    (goes_on,) = _inline(b, cond, operands)
    start = packed(b, [goes_on, *first])
    types = [v.type for v in start]

    def test(ib: Builder, *c: Value) -> Value:
        return ib.emit("reduce_lanes", *unpacked(ib, c[:1], [goes_on]), op="or")[0]

    def step(ib: Builder, *c: Value) -> list[Value]:
        mask, *state = unpacked(ib, c, [goes_on, *first])
        new = _inline(ib, body, [*state, *consts])
        kept = [x if x is old else ib.select(mask, x, old) for x, old in zip(new, state, strict=True)]
        (more,) = _inline(ib, cond, [*kept, *consts])
        return packed(ib, [ib.logical_and(mask, more), *kept])

    found = b.emit("while", *start, blocks=[b.block(types, test), b.block(types, step)], carry=len(types))[1:]
    return unpacked(b, found, first)[int(op.attrs["result"])]
