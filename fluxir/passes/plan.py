"""Memory plan: every host buffer gets a place in one arena, by lifetime; launches may work in place.

A host-level pass. Each `alloc` becomes a `view` of the arena at an offset; buffers whose lifetimes overlap never
overlap in memory. Offsets and the peak are size expressions, so one plan serves all sizes: two buffers share a place
only where the facts prove that they fit. The function gets a last argument `%arena: &u8[peak]` and attributes
`arena` (bytes) and `buffers` (their number). Placement is greedy by size (Pisarchyk & Lee, "Efficient Memory
Management for Deep Neural Net Inference", 2020), with symbolic comparisons.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

from fluxir.errors import FluxError
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Dim, Facts, ceildiv, evaluate, facts, maximum, prove_equal, prove_le, substitute, symbols_of
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.rewrite import rewrite_block, rewrite_func
from fluxir.ir.types import MemType
from fluxir.passes.manager import PassContext, pass_

ALIGN = 64  # bytes: a cache line, and the widest vector


@dataclass(eq=False)
class Buffer:
    """One `alloc`: its bytes (aligned), and the first and last position at which it is used."""

    op: Op
    nbytes: Dim
    start: int
    end: int
    depth: int  # of the region it is allocated in
    offset: Dim = 0
    shares: Buffer | None = None  # works in place of this one

    def root(self) -> Buffer:
        return self.shares.root() if self.shares else self


def aligned(nbytes: Dim, known: Facts) -> Dim:
    """Bytes rounded up to `ALIGN`."""
    if known.divides(ALIGN, nbytes):
        return nbytes
    return ceildiv(nbytes, ALIGN) * ALIGN


@pass_("plan", level="host", scope="module")
def plan(module: Module, cx: PassContext, *, in_place: bool = True, reuse: bool = True) -> Module:
    """Place every buffer in one arena; reuse memory after its last use and let launches write over dead inputs.

    Callees come first: the arena of a function that is called once at a time is a buffer of its caller. A recursive function,
    or one with a size known only at run time, gets its arena when it is called.
    """
    for name in _callees_first(module):
        f = module.funcs[name]
        if f.level == "host" and "arena" not in f.attrs:
            module = module.with_func(_plan(_with_arenas(f, module), cx, in_place, reuse))
    return module


def _callees_first(module: Module) -> list[str]:
    order: dict[str, None] = {}
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name not in entered:
            entered.add(name)
            for op in module.funcs[name].walk():
                if op.name == "call":
                    visit(op.attrs["callee"])
            order[name] = None

    for name in module.funcs:
        visit(name)
    return list(order)


def _with_arenas(func: Func, module: Module) -> Func:
    """Calls of planned functions with a buffer for the callee's arena as their last operand."""

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name != "call" or op.attrs["sized"]:
            return None
        f = module.funcs[op.attrs["callee"]]
        if "arena" not in f.attrs or len(operands) != len(f.args) - 1:
            return None
        nbytes = substitute(f.attrs["arena"], dict(op.attrs["dims"]))
        return b.clone(op, [*operands, b.alloc(type=MemType(DTYPES["u8"], (nbytes,)))])

    return rewrite_func(func, visit)


def _plan(func: Func, cx: PassContext, in_place: bool, reuse: bool) -> Func:
    buffers = _lifetimes(func)
    if in_place and reuse:
        _share(func, buffers)
    peak = _place([b for b in buffers.values() if b.shares is None], reuse)
    arena = Value(MemType(DTYPES["u8"], (peak,)), None, len(func.args), "arena")

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name != "alloc" or op not in buffers:
            return None
        return b.emit("view", arena, type=op.attrs["type"], offset=buffers[op].root().offset)

    block = rewrite_block(func.block, visit)
    block = Block((*block.args, arena), block.ops, block.outs)
    cx.rules["buffers"] += len(buffers)
    cx.rules["in place"] += sum(b.shares is not None for b in buffers.values())
    return replace(func, block=block, attrs=Attrs({**func.attrs, "arena": peak, "buffers": len(buffers)}))


def _lifetimes(func: Func) -> dict[Op, Buffer]:
    """First and last use of every `alloc`, in positions counted over all ops in program order."""
    known = facts()
    spans: dict[Op, tuple[int, int]] = {}
    buffers: dict[Op, Buffer] = {}
    roots = _aliases(func)
    clock = 0

    def number(block: Block, depth: int) -> None:
        nonlocal clock
        for op in block.ops:
            first, clock = clock, clock + 1
            for k in op.blocks:
                number(k, depth + 1)
            spans[op] = (first, clock)
            clock += 1
            if op.name == "alloc" and op.attrs["type"].space == "global":
                buffers[op] = Buffer(op, aligned(op.attrs["type"].nbytes, known), 1 << 60, -1, depth)

    def use(v: Value, at: int, enclosing: list[Op]) -> None:
        for a in roots.get(v, ()):
            buf = buffers[a]
            # Used deeper than allocated: alive during the whole of the outermost region op in between.
            lo, hi = spans[enclosing[buf.depth]] if buf.depth < len(enclosing) else (at, at)
            buf.start, buf.end = min(buf.start, lo), max(buf.end, hi)

    def visit(block: Block, enclosing: list[Op]) -> None:
        for op in block.ops:
            for v in op.operands:
                use(v, spans[op][0], enclosing)
            for k in op.blocks:
                visit(k, [*enclosing, op])
                for v in k.outs:
                    use(v, spans[op][1], enclosing)
        if not enclosing:
            for v in block.outs:
                use(v, clock, enclosing)

    number(func.block, 0)
    visit(func.block, [])
    for op, buf in buffers.items():
        if buf.end < 0:  # never used
            buf.start = buf.end = spans[op][0]
    return buffers


def _aliases(func: Func) -> dict[Value, set[Op]]:
    """For each memory value, the allocs it may point into; what a loop carries is a fixed point."""
    roots: dict[Value, set[Op]] = defaultdict(set)

    def flow(source: Value, target: Value) -> bool:
        if isinstance(target.type, MemType) and not roots[source] <= roots[target]:
            roots[target] |= roots[source]
            return True
        return False

    def visit(block: Block) -> bool:
        changed = False
        for op in block.ops:
            if op.name == "alloc" and op.attrs["type"].space == "global":
                roots[op.result] = {op}
            elif op.name in ("reinterpret", "subview"):
                changed |= flow(op.operands[0], op.result)
            carried = op.operands[3:] if op.name == "for" else op.operands[op.name == "if" :]
            for k in op.blocks:
                params = k.args[1:] if op.name in ("for", "parallel") else k.args
                for v, p in zip(carried, params, strict=False):
                    changed |= flow(v, p)
                changed |= visit(k)
                if op.name in ("for", "while"):
                    for v, p in zip(k.outs, params, strict=False):
                        changed |= flow(v, p)
                for v, r in zip(k.outs, op.results, strict=False):
                    changed |= flow(v, r)
            if op.name in ("for", "while"):  # no iteration at all
                for v, r in zip(carried, op.results, strict=False):
                    changed |= flow(v, r)
        return changed

    while visit(func.block):
        pass
    return roots


def _share(func: Func, buffers: dict[Op, Buffer]) -> None:
    """Let an output take the place of an input that dies in the same launch and is read only where it is written."""
    for op in func.walk():
        if op.name != "launch":
            continue
        for out_arg, in_arg in op.attrs["inplace"]:
            o, i = op.operands[out_arg].owner, op.operands[in_arg].owner
            if o is None or i is None or o not in buffers or i not in buffers or o is i:
                continue
            out, src = buffers[o], buffers[i].root()
            once = sum(v is op.operands[in_arg] for v in op.operands) == 1
            dies_here = out.start == src.end == buffers[i].end
            if (
                out.shares
                or not once
                or not dies_here
                or out.depth != src.depth
                or not prove_equal(out.nbytes, src.nbytes)
            ):
                continue
            out.shares = src
            src.end = out.end


GREEDY_NUMBERS, GREEDY_SYMBOLS = 1024, 128  # buffers; beyond it placement goes by time, in linear time


def _place(buffers: list[Buffer], reuse: bool) -> Dim:
    """Give each buffer an offset; returns the peak in bytes."""
    known = facts()
    sample = {s: max(known.bounds.get(s, (0, 0))[0], 64) for b in buffers for s in symbols_of(b.nbytes)}
    if len(buffers) > (GREEDY_SYMBOLS if sample else GREEDY_NUMBERS) or not reuse:
        return _place_by_time(buffers, sample, reuse)
    try:
        return _place_greedily(buffers, sample)
    except FluxError as e:  # offsets of many sizes nobody can compare may become too long to write
        if e.code != "FX0109":
            raise
        return _place_by_time(buffers, sample, reuse)


def _place_greedily(buffers: list[Buffer], sample: dict[str, int]) -> Dim:
    """Placement of the largest first, each in the first gap between the buffers that live at the same time."""
    placed: list[tuple[int, Buffer]] = []  # by the sampled offset
    peak: Dim = 0
    for buf in sorted(buffers, key=lambda b: -evaluate(b.nbytes, sample)):
        rivals = [p for _, p in placed if p.start <= buf.end and buf.start <= p.end]
        buf.offset = _first_gap(buf.nbytes, rivals)
        insort(placed, (evaluate(buf.offset, sample), buf), key=lambda entry: entry[0])
        peak = maximum(peak, _end(buf))
    return peak


def _first_gap(nbytes: Dim, rivals: list[Buffer]) -> Dim:
    """The first offset at which `nbytes` fit between the rivals, which come in the order of their (sampled) offsets."""
    at: Dim = 0
    for i, p in enumerate(rivals):
        end, need = _end(p), at + nbytes
        if isinstance(need, int) and isinstance(p.offset, int):  # the order says that the rest lies behind p
            if need <= p.offset:
                return at
        elif prove_le(need, p.offset) and all(_apart(at, nbytes, q) for q in rivals[i + 1 :]):
            return at
        if isinstance(at, int) and isinstance(end, int):
            at = max(at, end)
        else:
            at = end if prove_le(at, end) else maximum(at, end)
    return at


def _place_by_time(buffers: list[Buffer], sample: dict[str, int], reuse: bool) -> Dim:
    """Placement in order of the first use: a buffer takes the smallest slot that is free and provably large enough, or a new one.

    Linear in the number of buffers for a fixed number of different sizes.
    """
    free: dict[Dim, list[Dim]] = {}  # offsets of the free slots of a size
    sizes: list[tuple[int, Dim]] = []  # the keys of `free`, by sampled size
    busy: list[tuple[int, int, Dim, Dim]] = []  # heap: last use, a tie-breaker, size and offset of the slot
    peak: Dim = 0
    for n, buf in enumerate(sorted(buffers, key=lambda b: b.start)):
        while busy and busy[0][0] < buf.start:
            _, _, size, offset = heappop(busy)
            free[size].append(offset)
        slot = None
        if reuse:
            first = bisect_left(sizes, evaluate(buf.nbytes, sample), key=lambda entry: entry[0])
            slot = next((s for _, s in sizes[first:] if free[s] and prove_le(buf.nbytes, s)), None)
        if slot is not None:
            buf.offset = free[slot].pop()
        else:
            slot, buf.offset, peak = buf.nbytes, peak, peak + buf.nbytes
            if slot not in free:
                free[slot] = []
                insort(sizes, (evaluate(slot, sample), slot), key=lambda entry: entry[0])
        heappush(busy, (buf.end, n, slot, buf.offset))
    return peak


def _end(b: Buffer) -> Dim:
    return b.offset + b.nbytes


def _apart(offset: Dim, nbytes: Dim, p: Buffer) -> bool:
    return prove_le(offset + nbytes, p.offset) or prove_le(_end(p), offset)
