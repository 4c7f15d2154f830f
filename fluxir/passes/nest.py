"""The `nest` pass: a host loop over small launches becomes one kernel, with the code of what it launched inside.

A host-level pass for CPUs, before the plan. A loop whose rounds launch kernels of a few thousand operations (the steps of an
ODE solver, a filter, an optimiser of a small model) spends its time on calls, and on carries that go through memory. In one
function LLVM sees all of it: buffers of a round are local, and carries of a few elements stay in registers.

A loop is taken where everything in it is memory, arithmetic and loops, and no kernel would wake a thread. Invariants: the
same operations run in the same order, so results keep their bits; a memory that the loop reads or writes is passed once, by
its root, so that distinct parameters are distinct memories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.rewrite import rewrite_func
from fluxir.ir.types import MemType
from fluxir.passes.manager import PassContext, pass_

LOOPS = ("for", "while")
HOST = frozenset("launch alloc copy load store subview reinterpret constant if for while".split())
APART = frozenset(
    "halt_unless fence atomic atomic_rmw atomic_cas".split()
)  # what only makes sense in a kernel of its own
ADDRESSES = ("subview", "reinterpret")
TRIPS = 64  # the guess for a loop whose length is not known


@pass_("nest", level="host", scope="module")
def nest(
    module: Module, cx: PassContext, *, code: int = 6000, work: int = 8192, registers: int = 64, local: int = 16384
) -> Module:
    """Make one kernel of each host loop over small launches. `code`: ops it may have; `work`: operations of a launch on
    average; `registers`: elements of a memory that the loop keeps in a local copy; `local`: bytes of buffers made in it."""
    if cx.target is not None and cx.target.kind != "cpu":
        return module
    limits = _Limits(code, work, registers, local)
    made: dict[str, Func] = {}
    hosts = {n: f for n, f in module.funcs.items() if f.level == "host" and "arena" not in f.attrs}
    nested = {n: _with_nests(f, module, limits, made) for n, f in hosts.items()}
    if not made:
        return module
    cx.rules["nest"] += len(made)
    funcs = {**module.funcs, **nested, **made}
    used = {op.attrs["callee"] for f in funcs.values() for op in f.walk() if op.name in ("launch", "kernel")}
    entry = module.entry.name
    kept = {n: f for n, f in funcs.items() if f.level != "kernel" or n in used or n == entry}
    return Module(module.name, kept, module.facts, module.attrs)


def _with_nests(func: Func, module: Module, limits: _Limits, made: dict[str, Func]) -> Func:
    """The host function with launches in place of its small loops; adds their kernels to `made`."""
    chosen = set(_outermost(func.block, module, limits))

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Sequence[Value] | None:
        if op not in chosen:
            return None
        loop = _Nest(Op(op.defn, operands, op.attrs, blocks, op.loc), module, limits)
        name = _fresh("loop", {*module.funcs, *made})
        made[name] = Func(name, loop.kernel.block, "kernel", loop.kernel.attrs, (), op.loc)
        loop.launch(b, name)
        return ()

    return rewrite_func(func, visit)


@dataclass(frozen=True)
class _Limits:
    code: int
    work: int
    registers: int
    local: int


def _fresh(base: str, taken: set[str]) -> str:
    name, n = base, 1
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    return name


# ---- which loops -------------------------------------------------------------------------------------------------------


def _outermost(block: Block, module: Module, limits: _Limits) -> Iterable[Op]:
    """The loops to take, outermost first: one that is taken is not looked into."""
    for op in block.ops:
        if op.name in LOOPS and not op.results and _fits(op, module, limits):
            yield op
        else:
            for k in op.blocks:
                yield from _outermost(k, module, limits)


def _fits(loop: Op, module: Module, limits: _Limits) -> bool:
    launches = size = work = 0
    for op in _inside(loop):
        if op.name not in HOST and (op.blocks or op.defn.effects or op.name == "call"):
            return False
        if op.name == "alloc" and op.attrs["zero"]:
            return False
        size += 1
        if op.name == "launch":
            f = module.funcs[op.attrs["callee"]]
            if not _inlines(f):
                return False
            launches += 1
            size += sum(1 for _ in f.walk())
            work += _work(f.block)
    return launches > 0 and size <= limits.code and work <= limits.work * launches


def _inside(op: Op) -> Iterable[Op]:
    for k in op.blocks:
        yield from k.walk()


def _inlines(f: Func) -> bool:
    """Whether a kernel's code may stand in a loop: it wakes no thread, and nothing in it ends the kernel or meets others."""
    if set(f.attrs) - {"schedule"}:
        return False
    return not any(
        op.name in APART or op.defn.category == "gpu" or (op.name == "parallel" and not _alone(op)) for op in f.walk()
    )


def _alone(op: Op) -> bool:
    """Whether a `parallel` is known to be too little for a second thread."""
    count, grain = _number(op.operands[0]), op.attrs["grain"]
    return count is not None and isinstance(grain, int) and count <= grain


def _number(v: Value) -> int | None:
    return int(v.owner.attrs["value"]) if v.owner is not None and v.owner.name == "const" else None


def _work(block: Block) -> int:
    """Operations that one run of a block takes, roughly."""
    total = 0
    for op in block.ops:
        trips = 1
        if op.name == "for":
            lo, hi, step = map(_number, op.operands[:3])
            trips = TRIPS if lo is None or hi is None or not step else max(0, -(-(hi - lo) // step))
        elif op.name == "parallel":
            trips = _number(op.operands[0]) or 0
        elif op.name == "while":
            trips = TRIPS
        total += 1 + trips * sum(_work(k) for k in op.blocks)
    return total


# ---- one loop as a kernel --------------------------------------------------------------------------------------------------


class _Nest:
    """The kernel of one loop. Its arguments are the roots of the memories that the loop uses, those it writes last, and then
    numbers; `operands` are what the host passes for them."""

    def __init__(self, loop: Op, module: Module, limits: _Limits) -> None:
        self.module, self.limits = module, limits
        inside = list(_inside(loop))
        allocs = [op for op in inside if op.name == "alloc"]
        self.local = _fitting(allocs, limits.local)
        self.moved = {
            op.result: op for op in inside if op.name == "constant" or (op.name == "alloc" and op not in self.local)
        }
        free = [v for v in _free(loop) if not _is_number(v)]
        chains = [op for v in free for op in _chain(v)]
        written = {_root(v) for v in _written(inside)} | {op.result for op in allocs}
        memories = dict.fromkeys([*[_root(v) for v in free if isinstance(v.type, MemType)], *self.moved])
        roots = sorted(memories, key=lambda v: v in written)
        numbers = [v for op in chains for v in op.operands[1:] if not _is_number(v)]
        scalars = list(dict.fromkeys([*[v for v in free if not isinstance(v.type, MemType)], *numbers]))
        self.operands = [*roots, *scalars]
        self.outputs = sum(v in written for v in roots)
        self.launches = 0
        self.kernel = self.build(loop, [v for v in roots if v in written and self.small(v)])

    def small(self, v: Value) -> bool:
        size = v.type.size  # type: ignore[union-attr]
        return isinstance(size, int) and size <= self.limits.registers and v not in self.moved

    def build(self, loop: Op, kept: Sequence[Value]) -> Func:
        b = Builder(loop.loc)
        args = [Value(v.type, None, i, v.name) for i, v in enumerate(self.operands)]
        env: dict[Value, Value] = dict(zip(self.operands, args, strict=True))
        given = dict(env)
        for v in kept:
            env[v] = b.alloc(type=_local(v.type))
            b.copy(env[v], given[v])
        for v in _free(loop):
            self.bring(b, v, env)
        self.op(b, loop, env)
        for v in kept:
            b.copy(given[v], env[v])
        about = f"nest(launches={self.launches}, local={len(self.local)}, kept={len(kept)})"
        return Func("loop", Block(args, b.ops, ()), "kernel", Attrs({"schedule": about}), (), loop.loc)

    def bring(self, b: Builder, v: Value, env: dict[Value, Value]) -> None:
        """Make a value of the host known in the kernel: a number, or a part of a memory the kernel has."""
        if v not in env:
            assert v.owner is not None and (v.owner.name in ADDRESSES or _is_number(v)), f"{v!r} is not passed"
            for x in v.owner.operands:
                self.bring(b, x, env)
            self.op(b, v.owner, env)

    def op(self, b: Builder, op: Op, env: dict[Value, Value]) -> None:
        """One op of the loop, or of a kernel that it launches."""
        b.loc = op.loc
        if op.name == "launch":
            self.launches += 1
            f = self.module.funcs[op.attrs["callee"]]
            inner = dict(zip(f.args, (env[v] for v in op.operands), strict=True))
            for o in f.block.ops:
                self.op(b, o, inner)
            return
        if op.name in ("constant", "alloc") and op.result in self.moved:
            return
        operands = [env[v] for v in op.operands]
        blocks = [self.region(k, env) for k in op.blocks]
        if op.name == "parallel":  # which one thread does anyway
            b.emit("for", b.index(0), *operands, b.index(1), blocks=blocks)
            return
        if not any(isinstance(r.type, MemType) for r in op.results):  # the types are the same: no rule is asked again
            copy = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            env.update(zip(op.results, b.append(copy), strict=True))
            return
        changes = {}
        if op.name == "alloc":
            changes = {"type": _local(op.attrs["type"])}
        elif op.name == "reinterpret":  # a part of local memory is local memory
            t = op.attrs["type"]
            changes = {"type": MemType(t.dtype, t.shape, operands[0].type.space)}  # type: ignore[union-attr]
        env.update(zip(op.results, b.clone(op, operands, blocks, **changes), strict=True))

    def region(self, block: Block, env: dict[Value, Value]) -> Block:
        b = Builder()
        args = [Value(a.type, None, i, a.name) for i, a in enumerate(block.args)]
        env.update(zip(block.args, args, strict=True))
        for op in block.ops:
            self.op(b, op, env)
        return Block(args, b.ops, [env[v] for v in block.outs])

    def launch(self, b: Builder, name: str) -> None:
        """The launch on the host. Constants and buffers that the kernel cannot hold are made there."""
        new = {v: b.clone(op, [])[0] for v, op in self.moved.items()}
        b.emit("launch", *[new.get(v, v) for v in self.operands], callee=name, outputs=self.outputs)


def _local(t: Any) -> MemType:
    return MemType(t.dtype, t.shape, "local")


def _fitting(allocs: Sequence[Op], limit: int) -> set[Op]:
    """The buffers that are local memory of the kernel: the smallest, as long as they fit in `limit` bytes."""
    out: set[Op] = set()
    sizes = {op: op.attrs["type"].nbytes for op in allocs}
    for op in sorted((op for op in allocs if isinstance(sizes[op], int)), key=sizes.__getitem__):
        limit -= sizes[op]
        if limit < 0:
            break
        out.add(op)
    return out


def _free(loop: Op) -> list[Value]:
    """What a loop uses and does not define, in order."""
    free: dict[Value, None] = dict.fromkeys(loop.operands)
    defined = {r for op in _inside(loop) for r in op.results} | {a for k in _blocks(loop) for a in k.args}
    for k in _blocks(loop):
        for v in [*[x for op in k.ops for x in op.operands], *k.outs]:
            if v not in defined:
                free[v] = None
    return list(free)


def _blocks(op: Op) -> Iterable[Block]:
    for k in op.blocks:
        yield k
        for o in k.ops:
            yield from _blocks(o)


def _is_number(v: Value) -> bool:
    """A value that is the same everywhere, so that a kernel makes its own."""
    return v.owner is not None and v.owner.name in ("const", "dim")


def _chain(v: Value) -> list[Op]:
    """The ops that lead from the root of a memory to a part of it, the last first."""
    out = []
    while v.owner is not None and v.owner.name in ADDRESSES:
        out.append(v.owner)
        v = v.owner.operands[0]
    return out


def _root(v: Value) -> Value:
    chain = _chain(v)
    return chain[-1].operands[0] if chain else v


def _written(inside: Sequence[Op]) -> Iterable[Value]:
    """The memories that ops write."""
    for op in inside:
        if op.name == "launch":
            memories = [v for v in op.operands if isinstance(v.type, MemType)]
            yield from memories[len(memories) - op.attrs["outputs"] :]
        elif op.name in ("copy", "store"):
            yield op.operands[0]
