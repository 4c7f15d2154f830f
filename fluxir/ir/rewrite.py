"""Rebuild a block with some ops replaced; what does not change is shared, and "nothing changed" is identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Op, Value

# visit(builder, op, operands, blocks) -> None to keep the op, or the values that replace its results
Visit = Callable[[Builder, Op, tuple[Value, ...], tuple[Block, ...]], Sequence[Value] | None]


def rewrite_block(block: Block, visit: Visit, env: dict[Value, Value] | None = None) -> Block:
    """`block` with `visit` applied to each op, inner regions first. Returns `block` itself if nothing changed."""
    env = {} if env is None else env
    b = Builder()
    changed = False
    for op in block.ops:
        operands = tuple(env.get(v, v) for v in op.operands)
        blocks = tuple(rewrite_block(k, visit, env) for k in op.blocks)
        same = operands == op.operands and all(x is y for x, y in zip(blocks, op.blocks, strict=True))
        emitted = len(b.ops)
        b.loc = op.loc
        new = visit(b, op, operands, blocks)
        if new is None:
            assert len(b.ops) == emitted, f"the visit of {op.name} emitted ops and kept it"
            if same:
                b.append(op)
                continue
            new = b.clone(op, operands, blocks)
        changed = True
        for old, v in zip(op.results, new, strict=True):
            if v is not old:
                env[old] = v
                if not v.name:
                    v.name = old.name
    if not changed:
        return block
    return Block(block.args, b.ops, [env.get(v, v) for v in block.outs])


def rewrite_func(func: Func, visit: Visit) -> Func:
    return func.with_block(rewrite_block(func.block, visit))


def has_effects(op: Op) -> bool:
    """Whether removing or repeating the op could be noticed: it writes memory, or an op in its regions does."""
    if op.name == "for":
        return any(has_effects(o) for k in op.blocks for o in k.ops)
    return op.defn.effects or any(has_effects(o) for k in op.blocks for o in k.ops)
