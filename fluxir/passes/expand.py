"""Expand composites (softmax, norms, gelu, ...) into the ops they are made of, so that fusion sees them."""

from __future__ import annotations

from typing import Any

from fluxir.ir.build import Builder, as_values
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.rewrite import rewrite_block, rewrite_func
from fluxir.passes.manager import PassContext, pass_


@pass_("expand")
def expand(func: Func, cx: PassContext, *, keep: str = "", whole: bool = True) -> Func:
    """Replace each op that has an `expand` rule by its definition; `keep` names ops to leave, joined by '+'. With `whole`
    the ops are left too for which the target has kernels of their own."""
    kept = set(keep.split("+")) if keep else set()
    kind = cx.target.kind if cx.target is not None and whole else ""

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.defn.expand is None or op.name in kept:
            return None
        if op.defn.whole is not None and op.defn.whole(op, kind):
            return None
        cx.rules[f"expand {op.name}"] += 1
        inner = Builder(op.loc)
        probe = op if operands == op.operands else Op(op.defn, operands, op.attrs, blocks, op.loc)
        outs = as_values(op.defn.expand(inner, probe))
        # A composite may be made of composites.
        body = rewrite_block(Block((), inner.ops, outs), visit)
        b.ops.extend(body.ops)
        return body.outs

    return rewrite_func(func, visit)
