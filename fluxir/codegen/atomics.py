"""Atomic ops that a machine does not have, as loops of compare-and-swap, in loop IR.

`expand_atomics(func, target)` is the only door; it gives back `func` itself where nothing had to change. LLVM replaces what
it knows of itself (minima of f32 on GPUs); this is for products, for 16-bit floats, whose arithmetic is ours (see legalize.py),
and for all of 16 bits on GPUs, where LLVM would read beyond the element. GPUs have no atomics of 8 bits (FX0502). The loop
starts from a compare-and-swap of 0 by 0, which reads the memory without a race.
"""

from __future__ import annotations

from typing import Any

from fluxir.errors import error
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import BOOL, MemType, TensorType
from fluxir.target import Target

__all__ = ["expand_atomics"]

_NEW: dict[str, str] = {
    "add": "add", "sub": "sub", "mul": "mul", "min": "minimum", "max": "maximum", "and": "bit_and", "or": "bit_or",
    "xor": "bit_xor",
}  # fmt: skip


def expand_atomics(f: Func, target: Target) -> Func:
    """`f` with the atomics that `target` lacks as loops."""
    if not any(_lacks(op, target) for op in f.walk()):
        return f
    b = Builder()
    env: dict[Value, Value] = {}
    _rewrite(b, f.block, env, target)
    return f.with_block(Block(f.block.args, b.ops, f.block.outs))


def _lacks(op: Op, target: Target) -> bool:
    if op.name != "atomic_rmw":
        return False
    d = op.operands[0].dtype
    if target.kind == "nvptx" and d.bits == 8:
        raise error(
            "FX0502", f"{target.name} has no atomics of 8 bits", loc=op.loc, help="use elements of 16 or 32 bits"
        )
    if op.attrs.op == "mul":
        return True
    if d.bits != 16:
        return False
    if target.kind != "nvptx":
        return bool(d.is_float and op.attrs.op != "exch")
    added = d.name == "f16" or (d.name == "bf16" and target.has("bf16.add"))
    return not (added and op.attrs["op"] == "add")


def _rewrite(b: Builder, block: Block, env: dict[Value, Value], target: Target) -> None:
    for op in block.ops:
        operands = [env.get(v, v) for v in op.operands]
        blocks = []
        for k in op.blocks:
            inner, scope = Builder(), dict(env)
            _rewrite(inner, k, scope, target)
            blocks.append(Block(k.args, inner.ops, [scope.get(v, v) for v in k.outs]))
        b.loc = op.loc
        if _lacks(op, target):
            env[op.result] = _loop(b, op.attrs.op, operands)
        elif blocks or any(x is not y for x, y in zip(operands, op.operands, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            env.update(zip(op.results, b.append(new), strict=True))
        else:
            b.append(op)


def _changed(b: Any, name: str, old: Value, x: Value) -> Value:
    """The new value."""
    zero, one = b.const(0, dtype=x.dtype), b.const(1, dtype=x.dtype)
    if name == "inc":
        found: Value = b.select(b.ge(old, x), zero, b.add(old, one))
    elif name == "dec":
        found = b.select(b.logical_or(b.eq(old, zero), b.gt(old, x)), x, b.sub(old, one))
    else:
        found = x if name == "exch" else b.emit(_NEW[name], old, x)[0]
    return found


def _loop(b: Any, name: str, operands: list[Value]) -> Value:
    """The old value: compare-and-swap until nobody came between."""
    mem, x, *at = operands
    t = mem.type
    assert isinstance(t, MemType)
    word: DType = DTYPES[f"u{t.dtype.bits}"]
    bits = b.emit("reinterpret", mem, type=MemType(word, t.shape, t.space))[0]
    zero = b.const(0, dtype=word)
    first = b.emit("atomic_cas", bits, zero, zero, *at)[0]
    types = [TensorType(word), BOOL]

    def condition(inner: Any, old: Value, done: Value) -> Value:
        again: Value = inner.logical_not(done)
        return again

    def body(inner: Any, old: Value, done: Value) -> list[Value]:
        new = inner.bitcast(_changed(inner, name, inner.bitcast(old, dtype=t.dtype), x), dtype=word)
        seen = inner.emit("atomic_cas", bits, old, new, *at)[0]
        return [seen, inner.eq(seen, old)]

    start = [first, b.const(False, dtype="bool")]
    old = b.emit("while", *start, blocks=[b.block(types, condition), b.block(types, body)], carry=2)[0]
    found: Value = b.bitcast(old, dtype=t.dtype)
    return found
