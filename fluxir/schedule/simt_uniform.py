"""Which values of a GPU kernel differ between the threads of a block, and which ops threads meet in.

A value is uniform where it is computed, without reading memory, from uniform values alone; a loop's carry where what enters
and what comes back is uniform and all threads run it alike. Everything else counts as varying: the analysis may miss uniform
values, never the reverse. Results of branches and loops in which threads do not meet count as varying, since they are
computed inside of segments.
"""

from __future__ import annotations

from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.simt import MEETINGS

__all__ = ["HOISTED", "meets", "varying_values"]

HOISTED = frozenset(
    ("elementwise", "compare", "constant", "vector", "subview", "reinterpret", "block_id", "block_dim", "grid_dim")
)
"""Categories and names of ops that may be computed once for a block where their operands are uniform."""


def meets(op: Op) -> bool:
    """Whether threads meet at an op or inside of it."""
    return op.name in MEETINGS or any(meets(o) for k in op.blocks for o in k.ops)


def varying_values(f: Func) -> set[Value]:
    """The values of a kernel that may differ between threads."""
    out: set[Value] = set()
    while True:
        before = len(out)
        _see(f.block, out)
        if len(out) == before:
            return out


def _see(block: Block, out: set[Value]) -> None:
    for op in block.ops:
        if op.name in ("alloc", "dynamic_shared"):
            if op.name == "alloc" and op.attrs.type.space != "shared":
                out.update(op.results)
        elif op.blocks and meets(op):
            _see_regions(op, out)
        elif op.blocks:
            out.update(op.results)
            for k in op.blocks:
                _all(k, out)
        elif not (op.defn.category in HOISTED or op.name in HOISTED) or any(v in out for v in op.operands):
            out.update(op.results)


def _all(block: Block, out: set[Value]) -> None:
    """Everything in a region that belongs to one segment."""
    out.update(block.args)
    for op in block.ops:
        out.update(op.results)
        for k in op.blocks:
            _all(k, out)


def _see_regions(op: Op, out: set[Value]) -> None:
    """A branch or loop that threads meet in."""
    for k in op.blocks:
        _see(k, out)
    if op.name == "if":
        together = op.operands[0] not in out
        for i, r in enumerate(op.results):
            if not together or any(k.outs[i] in out for k in op.blocks):
                out.add(r)
        return
    if op.name == "for":
        (k,) = op.blocks
        together = all(v not in out for v in op.operands[:3])
        if not together:
            out.add(k.args[0])
        carries = list(zip(op.operands[3:], k.args[1:], k.outs, op.results, strict=True))
        for group in carries:
            if not together or any(v in out for v in group):
                out.update(group[1:2] + group[3:])
        return
    head, k = op.blocks
    # A loop's carry is kept for each thread all or none: its condition reads them together.
    mixed = head.outs[0] in out or any(v in out for v in (*op.operands, *head.args, *k.args, *k.outs, *op.results))
    if mixed:
        out.update((*head.args, *k.args, *op.results))
        out.add(head.outs[0])
