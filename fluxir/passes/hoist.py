"""The `hoist` pass: what a loop computes anew from constants alone in every round is computed once before it.

Tensor level: the bodies of `scan` and `while` are closed, so what they may use of the outside are their constant
operands, and what is hoisted becomes one more of these. Worth hoisting is what costs more than reading its result from
memory; the cheap ops it is made from are copied out with it and stay inside where others use them. Only ops that surely
end are hoisted (no `while`, no `call`): the loop may make no round at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import prove_le
from fluxir.ir.rewrite import rewrite_func
from fluxir.ir.types import TensorType
from fluxir.passes.manager import PassContext, pass_

# Cheaper to compute again than to keep: a few instructions an element, or no computation at all.
CHEAP = frozenset(
    "add sub mul neg abs minimum maximum clamp select cast bitcast sign floor ceil round trunc copysign fma "
    "lt le gt ge eq ne isnan isinf isfinite logical_and logical_or logical_xor logical_not bit_and bit_or bit_xor bit_not "
    "shift_left shift_right const dim iota broadcast reshape slice reverse stop_gradient pad concat transpose".split()
)


@pass_("hoist")
def hoist(func: Func, cx: PassContext) -> Func:
    """Move loop-invariant work out of scan and while bodies."""

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name == "scan":
            first = op.attrs["carry"]
            last = first + op.attrs["consts"]
        elif op.name == "while":
            first, last = op.attrs["carry"], len(operands)
        else:
            return None
        found = [_invariants(k, range(first, last)) for k in blocks]
        if not any(out for _, out in found):
            return None
        extra: list[Value] = []
        types: list[Value] = []
        for k, (ops, out) in zip(blocks, found, strict=True):
            env = (
                dict(zip(k.args, operands, strict=True))
                if op.name == "while"
                else {k.args[i]: operands[i] for i in range(first, last)}
            )
            clone_ops(b, ops, env)
            extra += [env[v] for v in out]
            types += out
        cx.rules["hoist"] += sum(len(out) for _, out in found)
        new = [_body(k, out, types, last) for k, (_, out) in zip(blocks, found, strict=True)]
        changes = {"consts": op.attrs["consts"] + len(extra)} if op.name == "scan" else {}
        return b.clone(op, [*operands[:last], *extra, *operands[last:]], new, **changes)

    return rewrite_func(func, visit)


def _invariants(block: Block, constants: range) -> tuple[list[Op], list[Value]]:
    """The ops to copy out of a loop's block, and the values of them that the block then takes as arguments."""
    fixed = {block.args[i] for i in constants}
    invariant: list[Op] = []
    for op in block.ops:
        if surely_ends(op) and all(v in fixed for v in op.operands):
            fixed.update(op.results)
            invariant.append(op)
    moved: set[Value] = set()
    for op in invariant:
        if worth_moving(op) or _adds_no_memory(op, moved):
            moved.update(op.results)
    remaining = [op for op in block.ops if op.results and op.results[0] not in moved or not op.results]
    used = {v for op in remaining for v in op.operands} | set(block.outs)
    out = [r for op in invariant for r in op.results if r in moved and r in used]
    needed = set(out)
    ops = []
    for op in reversed(invariant):
        if any(r in needed for r in op.results):
            needed.update(op.operands)
            ops.append(op)
    return ops[::-1], out


def surely_ends(op: Op) -> bool:
    return (
        op.name not in ("while", "call")
        and not op.defn.effects
        and all(surely_ends(o) for k in op.blocks for o in k.ops)
    )


def worth_moving(op: Op) -> bool:
    """Work worth more than a read of its result. A value that depends on nothing (`const`, `iota`) is not work."""
    return op.name not in CHEAP and bool(op.results) and all(isinstance(r.type, TensorType) for r in op.results)


def _adds_no_memory(op: Op, moved: set[Value]) -> bool:
    """A cheap op behind a moved one is moved too where its result is no larger."""
    sizes = [v.type.size for v in op.operands if v in moved and isinstance(v.type, TensorType)]
    return bool(sizes) and all(
        isinstance(r.type, TensorType) and any(prove_le(r.type.size, s) for s in sizes) for r in op.results
    )


def _body(block: Block, out: Sequence[Value], types: Sequence[Value], at: int) -> Block:
    """A loop's block with arguments for all hoisted values put in before position `at`; its own are read from them."""
    old = [Value(a.type, None, i, a.name) for i, a in enumerate(block.args)]
    new = [Value(v.type, None, i, v.name) for i, v in enumerate(types)]
    env: dict[Value, Value] = dict(zip(block.args, old, strict=True))
    place = dict(zip(types, new, strict=True))
    env.update({v: place[v] for v in out})
    gone = set(out)
    b = Builder()
    used = _still_used(block, gone)
    clone_ops(b, [op for op in block.ops if op in used], env)
    args = [*old[:at], *new, *old[at:]]
    for i, a in enumerate(args):
        a.index = i
    return Block(args, b.ops, [env[v] for v in block.outs])


def _still_used(block: Block, gone: set[Value]) -> set[Op]:
    """The ops that the block needs when the values in `gone` come from outside."""
    live = set(block.outs) - gone
    kept = set()
    for op in reversed(block.ops):
        if any(r in live for r in op.results):
            live.update(v for v in op.operands if v not in gone)
            kept.add(op)
    return kept
