"""A GPU kernel as a CPU kernel: blocks in parallel, the threads of a block as loops between the places where they meet.

`on_cpu(func, block, shared_bytes)` splits the body at barriers, shuffles and votes (thread-loop fission: Stratton et al., MCUDA,
2008). What stands between two of them is a *segment*, a loop over the threads. Control flow that threads meet in is lifted out:
a loop or branch that all threads take alike stays one; any other runs as long as some thread takes part, and its segments run
for the threads that do (`mask`). A value that another segment reads is kept for each thread in a *slot*, an array over the
threads. Values that are the same for all threads of a block are computed once, outside of the segments.

The result takes the kernel's arguments and three i64 more, the grid. `block` and `shared_bytes` are fixed: sizes are known to
LLVM. FX0334 for what cannot run so: barriers of the grid, arrays chosen at run time across a meeting, mma without whole warps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Op, Value
from fluxir.ir.dims import substitute
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.simt import MEETINGS, SHARED_BYTES, WARP
from fluxir.ir.types import INDEX, MemType, VectorType
from fluxir.schedule.loops import region
from fluxir.schedule.simt_meetings import CHOSEN, Meetings
from fluxir.schedule.simt_uniform import HOISTED, Guard, guards_of, meets, runs_across, varying_values

__all__ = ["on_cpu"]

MOST_STACK = 4 << 20  # bytes that a block may keep: shared memory, and what lives across meetings for each thread
BLOCK_WORK = 2048  # threads that are worth a thread of the CPU
_DROPPED = ("async_commit", "async_wait")
Action = Callable[[Builder, "Segment"], None]


def on_cpu(f: Func, block: Sequence[int], shared_bytes: int = 0) -> Func:
    """The kernel for blocks of `block` threads with `shared_bytes` of dynamic shared memory each, on a CPU."""
    slots: frozenset[Value] = frozenset()
    while True:  # once more as long as segments turn out to read of each other what had no slot
        lowering = _Lowering(f, block, shared_bytes, slots)
        lowering.run()
        if lowering.crossing <= slots:
            return lowering.finish()
        slots |= lowering.crossing


class Segment:
    """The code of one loop over the threads, in the making. `env`: what its values have become."""

    def __init__(self, owner: _Lowering, thread: Value, ids: Sequence[Value]) -> None:
        self.owner, self.thread, self.ids = owner, thread, ids
        self.env: dict[Value, Value] = {}

    def get(self, v: Value) -> Value:
        found = self.env.get(v)
        return found if found is not None else self.owner.uniform.get(v, v)


class _Lowering(Meetings):
    def __init__(self, f: Func, block: Sequence[int], shared_bytes: int, slots: frozenset[Value]) -> None:
        self.f, self.block, self.shared_bytes = f, (*block, 1, 1)[:3], shared_bytes
        self.threads = math.prod(self.block)
        self.slotted = slots
        self.varying = varying_values(f)
        self.crossing: set[Value] = set()
        self.uniform: dict[Value, Value] = {}
        self.offsets: dict[
            Value, tuple[Value, Value]
        ] = {}  # dynamic shared memory: the whole of it, and where it starts
        self.slots: dict[Value, Value] = {}
        self.remade: dict[Value, Op] = {}  # memories of a thread, which other segments compute anew
        self.pending: list[Op | Action] = []
        self.mask: Value | None = None
        self.limits: dict[int, Value] = {}  # how many threads along an axis take part, where not all do
        self.allocations = Builder(f.loc)
        self.b = Builder(f.loc)
        self.dynamic: Value | None = None
        self.grid = [Value(INDEX, None, len(f.args) + i, f"grid_{x}") for i, x in enumerate("xyz")]
        self.meeting = any(op.name in MEETINGS for op in f.walk())

    # ---- the whole
    def run(self) -> None:
        self.number = Value(INDEX, None, 0, "block")
        x, y, _ = self.grid
        b = self.b
        rest = b.div(self.number, x)
        self.at = [b.fmod(self.number, x), b.fmod(rest, y), b.div(rest, y)]
        self.blocks_of(self.f.block)
        self.flush()

    def finish(self) -> Func:
        b = Builder(self.f.loc)
        self.check_stack()
        count = b.mul(b.mul(self.grid[0], self.grid[1]), self.grid[2])
        body = Block([self.number], [*self.allocations.ops, *self.b.ops], ())
        b.emit("parallel", count, blocks=[body], grain=max(1, BLOCK_WORK // max(1, self.threads)))
        attrs = {k: v for k, v in self.f.attrs.items() if k not in ("grid", "block")}
        args = [*self.f.args, *self.grid]
        return Func(self.f.name, Block(args, b.ops, ()), "kernel", Attrs({**attrs, "simt": True}), (), self.f.loc)

    def check_stack(self) -> None:
        """What a block keeps lies on the stack of the thread that runs it."""
        taken = sum(int(op.attrs.type.size) * op.attrs.type.dtype.itemsize for op in self.allocations.ops)
        if taken > MOST_STACK:
            raise self.refuse(
                f"a block keeps {taken >> 10} KiB, a thread of the CPU has room for {MOST_STACK >> 10}", None
            )

    def refuse(self, what: str, op: Op | None) -> Exception:
        return error(
            "FX0334",
            f"{self.f.name}: {what}",
            loc=op.loc if op else self.f.loc,
            help='run it with .on("vgpu") or on a GPU',
        )

    # ---- ops of the block level
    def blocks_of(self, block: Block) -> None:
        for op in block.ops:
            self.op(op)

    def op(self, op: Op) -> None:
        if meets(op):
            method = getattr(self, "meet_" + op.name, None)
            if method is None:
                raise self.refuse(f"{op.name} has no meaning between the threads of a CPU", op)
            method(op)
        elif op.name == "alloc" and op.attrs.type.space == "shared":
            t = op.attrs.type
            self.uniform[op.result] = self.allocations.emit("alloc", type=MemType(t.dtype, t.shape, "local"))[0]
        elif op.name == "dynamic_shared":
            self.dynamic_shared(op)
        elif self.is_uniform(op):
            self.hoist(op)
        elif op.name == "if" and (found := guards_of(op, self.varying)) is not None:
            self.guarded(op, *found)
        elif op.name == "for" and runs_across(op, self.varying):
            self.meet_for(op)
        elif op.name not in _DROPPED:
            self.pending.append(op)

    def is_uniform(self, op: Op) -> bool:
        return (op.defn.category in HOISTED or op.name in HOISTED) and all(r not in self.varying for r in op.results)

    def hoist(self, op: Op) -> None:
        self.b.loc = op.loc
        self.uniform[op.result] = self.copied(self.b, op, lambda v: self.uniform.get(v, v), None)[0]

    def dynamic_shared(self, op: Op) -> None:
        """All of it is one array of bytes; a part of it an array of its elements, and an offset."""
        (start,) = op.operands
        if start in self.varying:
            raise self.refuse("dynamic shared memory of a size that differs between threads", op)
        if self.dynamic is None:
            t = MemType(DTYPES["u8"], (-(-self.shared_bytes // 16) * 16,), "local")
            self.dynamic = self.allocations.emit("alloc", type=t)[0]
        d = op.attrs.type.dtype
        t = MemType(d, (-(-self.shared_bytes // 16) * 16 // d.itemsize,), "local")
        whole = self.b.emit("reinterpret", self.dynamic, type=t)[0]
        self.offsets[op.result] = (whole, self.b.div(self.uniform.get(start, start), self.b.index(d.itemsize)))

    # ---- segments
    def act(self, action: Action) -> None:
        """Have `action` emit code in the segment at hand."""
        self.pending.append(action)

    def flush(self) -> None:
        """End the segment: its loop over the threads."""
        pending, self.pending = self.pending, []
        if not pending:
            return

        def body(b: Builder, t: Value, ids: Sequence[Value]) -> None:
            s = Segment(self, t, ids)
            if self.mask is None:
                self.fill(b, s, pending)
            else:
                here = b.load(self.mask, t)
                inner = region(b, [], lambda ib: self.fill(ib, s, pending))
                b.emit("if", here, blocks=[inner, Block((), (), ())])

        self.each_thread(self.b, body)

    def guarded(self, op: Op, guards: Sequence[Guard], body: Block) -> None:
        """`if i < n: ...` with an i that grows with the threads, as segments of just the threads that it lets through."""
        self.flush()
        before = self.limits
        self.limits = dict(before)
        b = self.b
        for g in guards:
            left = b.sub(self.uniform.get(g.size, g.size), self.of_first(g.index))
            count = b.maximum(b.minimum(left, b.index(self.block[g.axis])), b.index(0))
            known = self.limits.get(g.axis)
            self.limits[g.axis] = count if known is None else b.minimum(known, count)
        self.blocks_of(body)
        self.flush()
        self.limits = before

    def of_first(self, v: Value) -> Value:
        """An index as the first thread of the block has it."""
        if v not in self.varying:
            return self.uniform.get(v, v)
        op = v.owner
        assert op is not None
        if op.name == "thread_id":
            return self.b.index(0)
        return self.b.emit(op.name, *map(self.of_first, op.operands), **op.attrs)[0]

    def each_thread(self, b: Builder, body: Callable[[Builder, Value, Sequence[Value]], None]) -> None:
        """`body(builder, thread, (x, y, z))` for all threads (within `limits`): a loop for each axis of the block, x
        innermost, so that what depends on y alone is computed once a row and x may become lanes of a vector."""
        axes = [axis for axis in (2, 1, 0) if self.block[axis] > 1 or axis in self.limits] or [0]

        def nest(b: Builder, rest: Sequence[int], ids: dict[int, Value]) -> None:
            if rest:
                axis, *inner = rest
                block = region(
                    b, [INDEX], lambda ib, i: nest(ib, inner, {**ids, axis: i}), ["thread" if axis == 0 else "row"]
                )
                b.emit(
                    "for", b.index(0), self.limits.get(axis) or b.index(self.block[axis]), b.index(1), blocks=[block]
                )
                return
            at = [ids.get(axis) or b.index(0) for axis in range(3)]
            row = None
            for axis in (2, 1):
                if axis in ids:
                    row = ids[axis] if row is None else b.add(b.mul(row, b.index(self.block[axis])), ids[axis])
                elif row is not None:
                    row = b.mul(row, b.index(self.block[axis]))
            t = at[0] if row is None else b.add(b.mul(row, b.index(self.block[0])), at[0])
            body(b, t, at)

        nest(b, axes, {})

    def fill(self, b: Builder, s: Segment, pending: Sequence[Op | Action]) -> None:
        for x in pending:
            if isinstance(x, Op):
                self.prepare(b, s, x)
                b.loc = x.loc
                self.define(b, s, x.results, self.copied(b, x, s.get, s))
            else:
                x(b, s)

    def define(self, b: Builder, s: Segment, results: Sequence[Value], values: Sequence[Value]) -> None:
        """Values of this segment; those that others read are kept."""
        for r, v in zip(results, values, strict=True):
            s.env[r] = v
            if r in self.slotted and not isinstance(r.type, MemType):
                self.keep(b, s, r, v)

    def keep(self, b: Builder, s: Segment, r: Value, v: Value) -> None:
        mem = self.slot(r)
        b.store(mem, v, s.thread, *([b.index(0)] if isinstance(r.type, VectorType) else []))

    def slot(self, v: Value) -> Value:
        """The array over the threads that keeps `v`."""
        if v not in self.slots:
            self.slots[v] = self.per_thread(v.type)
        return self.slots[v]

    def per_thread(self, t: Any) -> Value:
        shape = (self.threads, t.lanes) if isinstance(t, VectorType) else (self.threads,)
        return self.allocations.emit("alloc", type=MemType(t.dtype, shape, "local"))[0]

    def value(self, b: Builder, s: Segment, v: Value) -> Value:
        """A value of the kernel in a segment, from where it was kept if it belongs to another one."""
        if v in s.env or v in self.uniform or v in self.offsets or v not in self.varying:
            return s.get(v)
        if isinstance(v.type, MemType):
            maker = self.remade.get(v)
            if maker is None:
                raise self.refuse(CHOSEN, v.owner)
            self.prepare(b, s, maker)
            s.env[v] = self.copied(b, maker, s.get, s)[0]
            return s.env[v]
        if self.is_cheap(v):
            assert v.owner is not None
            for x in v.owner.operands:
                self.value(b, s, x)
            s.env[v] = self.copied(b, v.owner, s.get, s)[0]
            return s.env[v]
        self.crossing.add(v)
        lanes = v.type.lanes if isinstance(v.type, VectorType) else 0
        at = [s.thread, b.index(0)] if lanes else [s.thread]
        s.env[v] = b.emit("load", self.slot(v), *at, lanes=lanes)[0]
        return s.env[v]

    def is_cheap(self, v: Value, depth: int = 3) -> bool:
        """Whether a value is rather computed anew than kept: index arithmetic of the thread's own place."""
        op = v.owner
        if v not in self.varying:
            return True
        if op is None or depth == 0 or op.blocks:
            return False
        if op.name in ("thread_id", "lane_id"):
            return True
        return (
            op.name in ("add", "sub", "mul")
            and v.type == INDEX
            and all(self.is_cheap(x, depth - 1) for x in op.operands)
        )

    def prepare(self, b: Builder, s: Segment, op: Op) -> None:
        """Load what an op, and the ops in its regions, read of other segments."""
        inside: set[Value] = set()

        def see(o: Op) -> None:
            for v in o.operands:
                if v not in inside:
                    self.value(b, s, v)
            for k in o.blocks:
                inside.update(k.args)
                for p in k.ops:
                    see(p)
                for v in k.outs:
                    if v not in inside:
                        self.value(b, s, v)
            inside.update(o.results)

        see(op)

    # ---- copies of ops
    def copied(self, b: Builder, op: Op, get: Callable[[Value], Value], s: Segment | None) -> Sequence[Value]:
        """The op for one thread on the CPU; its results."""
        match op.name:
            case "thread_id":
                assert s is not None
                return [s.ids[op.attrs.axis]]
            case "lane_id":
                assert s is not None
                return [b.fmod(s.thread, b.index(WARP))]
            case "block_id":
                return [self.at[op.attrs.axis]]
            case "block_dim":
                return [b.index(self.block[op.attrs.axis])]
            case "grid_dim":
                return [self.grid[op.attrs.axis]]
            case "alloc":
                return [self.local(b, op, s)]
            case "async_copy":
                dst, src, *at = op.operands
                n = dst.type.rank if isinstance(dst.type, MemType) else 0
                of = self.placed(b, src, at[n:], get)
                v = b.emit("load", *of, lanes=op.attrs.lanes)[0]
                to, *there = self.placed(b, dst, at[:n], get)
                b.emit("store", to, v, *there)
                return []
        if op.name in _DROPPED:
            return []
        if op.name in ("subview", "reinterpret"):
            self.remade[op.results[0]] = op
        operands = self.operands(b, op, get)
        first = {"for": 3, "if": 1}.get(op.name, 0)
        taken = [v.type for v in operands[first:]]
        kinds = [INDEX, *taken] if op.name == "for" else taken
        blocks = [self.copied_block(b, k, kinds, get, s) for k in op.blocks]
        attrs = op.attrs
        if op.name == "reinterpret":
            t = attrs.type
            space = operands[0].type.space if isinstance(operands[0].type, MemType) else t.space
            attrs = Attrs({**attrs, "type": MemType(t.dtype, t.shape, space)})
        if op.name == "dim":
            attrs = Attrs({**attrs, "value": substitute(attrs.value, {SHARED_BYTES: self.shared_bytes})})
        return b.append(Op(op.defn, operands, attrs, blocks, op.loc))

    def copied_block(
        self, b: Builder, k: Block, kinds: Sequence[Any], get: Callable[[Value], Value], s: Segment | None
    ) -> Block:
        inner = Builder(b.loc)
        inner._consts.update(b._consts)
        env: dict[Value, Value] = {}

        def inside(v: Value) -> Value:
            return env[v] if v in env else get(v)

        args = [Value(t, None, a.index, a.name) for a, t in zip(k.args, kinds, strict=True)]
        env.update(zip(k.args, args, strict=True))
        for op in k.ops:
            inner.loc = op.loc
            env.update(zip(op.results, self.copied(inner, op, inside, s), strict=True))
        return Block(args, inner.ops, [inside(v) for v in k.outs])

    def operands(self, b: Builder, op: Op, get: Callable[[Value], Value]) -> list[Value]:
        if not any(v in self.offsets for v in op.operands):
            return [get(v) for v in op.operands]
        mem, *rest = op.operands
        count = {"store": 1, "atomic_rmw": 1, "atomic_cas": 2, "load": 0}.get(op.name)
        if count is None or any(v in self.offsets for v in rest):
            raise self.refuse(f"{op.name} of dynamic shared memory", op)
        whole, *at = self.placed(b, mem, rest[count:], get)
        return [whole, *map(get, rest[:count]), *at]

    def placed(self, b: Builder, mem: Value, at: Sequence[Value], get: Callable[[Value], Value]) -> list[Value]:
        """A memory and indices, those of dynamic shared memory in the whole of it."""
        indices = [get(i) for i in at]
        if mem not in self.offsets:
            return [get(mem), *indices]
        whole, start = self.offsets[mem]
        return [whole, b.add(indices[0], start)]

    def local(self, b: Builder, op: Op, s: Segment | None) -> Value:
        """Memory of one thread: a row of an array over the threads where others run between its uses."""
        t = op.attrs.type
        if not self.meeting or s is None:
            return b.emit("alloc", **op.attrs)[0]
        self.remade.setdefault(op.result, op)
        if op.result not in self.slots:
            self.slots[op.result] = self.allocations.emit(
                "alloc", type=MemType(t.dtype, (self.threads, *t.shape), "local")
            )[0]
        return b.emit("subview", self.slots[op.result], s.thread)[0]
