"""Merge loops and branches that do the same work: `scan`s over the same operands, `if`s on the same condition.

A function and its derivative share their forward pass, but the loop in the derivative yields more (what its reverse keeps),
so that equality of whole ops does not find it. Two `scan`s with equal operands, attributes and carries become one that yields
what either did; the ops of their bodies are numbered, equal ones are kept once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.rewrite import has_effects
from fluxir.ops.control import scan_length
from fluxir.passes.cleanup import op_key
from fluxir.passes.manager import PassContext, pass_


@pass_("merge")
def merge(func: Func, cx: PassContext) -> Func:
    """Make one of loops over the same operands and branches on the same condition, where the shared work is the same."""
    return func.with_block(_merge_block(func.block, cx))


def _merge_block(block: Block, cx: PassContext) -> Block:
    groups: dict[Any, list[Op]] = {}
    for op in block.ops:
        if op.name in ("scan", "if") and not has_effects(op):
            groups.setdefault(_key(op), []).append(op)
    merged = {op: g for g in groups.values() if len(g) > 1 for op in g}
    changed = False
    ops: list[Op] = []
    env: dict[Value, Value] = {}
    done: set[Op] = set()
    for op in block.ops:
        if op in done:
            continue
        operands = tuple(env.get(v, v) for v in op.operands)
        blocks = tuple(_merge_block(k, cx) for k in op.blocks)
        if op in merged:
            together = _united(op, merged[op], operands)
            if together is not None:
                cx.rules[f"merge {op.name}"] += len(merged[op]) - 1
                new, places = together
                ops.append(new)
                done.update(merged[op])
                for old, where in places.items():
                    for r, k in zip(old.results, where, strict=True):
                        env[r] = new.results[k]
                        if r.name and not new.results[k].name:
                            new.results[k].name = r.name
                changed = True
                continue
        if operands != op.operands or any(x is not y for x, y in zip(blocks, op.blocks, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            for old_result, r in zip(op.results, new.results, strict=True):
                r.name = old_result.name
                env[old_result] = r
            op, changed = new, True
        ops.append(op)
    if not changed:
        return block
    return Block(block.args, ops, [env.get(v, v) for v in block.outs])


def _key(op: Op) -> Any:
    attrs = dict(op.attrs)
    if op.name == "scan":
        attrs["length"] = scan_length(op.attrs, op.operands)
    attrs = {k: str(v) for k, v in sorted(attrs.items())}
    return op.name, op.operands, tuple(attrs.items())


def _united(first: Op, group: Sequence[Op], operands: Sequence[Value]) -> tuple[Op, dict[Op, list[int]]] | None:
    """One op for the group in the place of its first, and where the results of each are; None where they differ in a carry."""
    regions = []
    for k in range(len(first.blocks)):
        args = [Value(a.type, None, i, a.name) for i, a in enumerate(first.blocks[k].args)]
        b = _Numbering()
        regions.append((args, b, [b.copy(op.blocks[k], args) for op in group]))
    carry = first.attrs["carry"] if first.name == "scan" else 0
    for _, _, outs in regions:
        if any(o[:carry] != outs[0][:carry] for o in outs):
            return None
    # A result of the new op is a tuple of values, one in each region; equal tuples are one result.
    places: dict[tuple[Any, ...], int] = {(*[outs[0][i] for _, _, outs in regions], i): i for i in range(carry)}
    where: dict[Op, list[int]] = {}
    for n, op in enumerate(group):
        where[op] = list(range(carry))
        for i in range(carry, len(op.results)):
            key = tuple(outs[n][i] for _, _, outs in regions)
            where[op].append(places.setdefault(key, len(places)))
    yields = list(places)
    blocks = [Block(args, b.builder.ops, [key[k] for key in yields]) for k, (args, b, _) in enumerate(regions)]
    new = Op(first.defn, operands, first.attrs, blocks, first.loc)
    return new, where


class _Numbering:
    """A block under construction in which equal ops are one."""

    def __init__(self) -> None:
        self.builder = Builder()
        self.known: dict[Any, Op] = {}

    def copy(self, block: Block, args: Sequence[Value]) -> list[Value]:
        """Copy a closed block's ops; returns what it yields."""
        env: dict[Value, Value] = dict(zip(block.args, args, strict=True))
        for op in block.ops:
            operands = tuple(env[v] for v in op.operands)
            key = op_key(op, operands, op.blocks)
            if key not in self.known or has_effects(op):
                clone_ops(self.builder, [op], env)
                self.known[key] = self.builder.ops[-1]
            else:
                env.update(zip(op.results, self.known[key].results, strict=True))
        return [env[v] for v in block.outs]


__all__ = ["merge"]
