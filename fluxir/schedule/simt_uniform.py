"""Which values of a GPU kernel differ between the threads of a block, which ops threads meet in, and which loops pay when
all threads go through a round before the next one begins.

A value is uniform where it is computed, without reading memory, from uniform values alone; a loop's carry where what enters
and what comes back is uniform and all threads run it alike. Everything else counts as varying: the analysis may miss uniform
values, never the reverse. Results of branches and loops in which threads do not meet count as varying, since they are
computed inside of segments.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.simt import MEETINGS
from fluxir.ir.types import INDEX, MemType

__all__ = ["HOISTED", "Guard", "guards_of", "meets", "runs_across", "varying_values"]

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
        elif op.blocks and (meets(op) or (op.name == "if" and not op.results)):
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


# ---- loops across the threads --------------------------------------------------------------------------------------------

_MOST_CARRIES = 4


def runs_across(op: Op, varying: set[Value]) -> bool:
    """Whether a `for` in which threads do not meet is better run round by round for all threads: its bounds are the same for
    all, its body is straight, and neighbouring threads touch neighbouring elements (or the same), as kernels for GPUs are
    written. Each round is then a loop over the threads that LLVM makes vectors of; its carries are kept for each thread."""
    (body,) = op.blocks
    if any(v in varying for v in op.operands[:3]) or not 1 <= len(op.operands) - 3 <= _MOST_CARRIES:
        return False
    if any(isinstance(v.type, MemType) for v in body.args):
        return False
    counter = body.args[0]
    memory = False
    for o in body.ops:
        if o.blocks or o.defn.effects or o.name == "alloc":
            return False
        if o.name == "load":
            memory = True
            *outer, last = [_step(v, varying, counter) for v in o.operands[1:]] or [0]
            if last not in (0, 1) or any(n != 0 for n in outer):
                return False
    return memory


@dataclass(frozen=True, eq=False)
class Guard:
    """`index < size`, where the index grows by 1 from thread to thread along `axis` and with no other."""

    axis: int
    index: Value
    size: Value


def guards_of(op: Op, varying: set[Value]) -> tuple[list[Guard], Block] | None:
    """What an `if` tests and the body that runs where all of it holds, if it does nothing elsewhere; None for others. Threads
    do not meet in it."""
    if op.name != "if" or op.results or op.operands[0] not in varying:
        return None
    then, other = op.blocks
    wanted = not other.ops
    body = then if wanted else other
    guards = _guards(op.operands[0], varying, wanted)
    return (guards, body) if guards and not (then.ops and other.ops) else None


def _guards(test: Value, varying: set[Value], wanted: bool) -> list[Guard] | None:
    """The guards that hold together where a test is `wanted`."""
    op = test.owner
    if op is None:
        return None
    if op.name == ("logical_and" if wanted else "logical_or"):
        parts = [_guards(x, varying, wanted) for x in op.operands]
        return None if None in parts else [g for p in parts if p for g in p]
    less = {"lt": (0, 1), "gt": (1, 0)} if wanted else {"ge": (0, 1), "le": (1, 0)}
    if op.name not in less:
        return None
    i, n = (op.operands[k] for k in less[op.name])
    if i.type != INDEX or n in varying:
        return None
    steps = [_step(i, varying, n, axis) for axis in range(3)]
    return [Guard(steps.index(1), i, n)] if sorted(steps, key=str) == [0, 0, 1] else None


def _step(v: Value, varying: set[Value], counter: Value, axis: int = 0) -> int | None:
    """By how much an index grows from a thread to its neighbour along an axis; None where that is not known."""
    if v not in varying or v is counter:
        return 0
    op = v.owner
    if op is None:
        return None
    if op.name == "thread_id":
        return 1 if op.attrs.axis == axis else 0
    if op.name not in ("add", "sub", "mul", "cast"):
        return None
    steps = [_step(x, varying, counter, axis) for x in op.operands]
    if None in steps:
        return None
    first, *rest = [n for n in steps if n is not None]
    if op.name == "cast":
        return first
    if op.name == "mul":
        known = [_constant(x) for x in op.operands]
        if first == rest[0] == 0:
            return 0
        factor = known[1] if first else known[0]
        return None if factor is None or (first and rest[0]) else factor * (first or rest[0])
    return first + rest[0] if op.name == "add" else first - rest[0]


def _constant(v: Value) -> int | None:
    return int(v.owner.attrs["value"]) if v.owner is not None and v.owner.name == "const" else None
