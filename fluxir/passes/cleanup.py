"""Clean-up passes: dead code, common subexpressions, constant folding, inlining. They work on every level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.build import Builder, inline
from fluxir.ir.core import Block, Func, Module, Op, Value, plain
from fluxir.ir.dims import symbols_of
from fluxir.ir.interp import Interpreter
from fluxir.ir.rewrite import has_effects, rewrite_func
from fluxir.ir.types import TensorType
from fluxir.passes.manager import PassContext, pass_


@pass_("dce", level="any")
def dce(func: Func, cx: PassContext) -> Func:
    """Remove ops whose results nobody uses."""
    dead: set[Op] = set()
    _find_dead(func.block, set(func.outs), dead)
    return func.with_block(_without(func.block, dead, {})) if dead else func


def _find_dead(block: Block, used: set[Value], dead: set[Op]) -> None:
    """Collect dead ops, backwards; `used` grows by what is used here (values of enclosing blocks among them)."""
    used.update(block.outs)
    for op in reversed(block.ops):
        if not has_effects(op) and not any(r in used for r in op.results):
            dead.add(op)
            continue
        used.update(op.operands)
        for inner in op.blocks:
            _find_dead(inner, used, dead)


def _without(block: Block, dead: set[Op], env: dict[Value, Value]) -> Block:
    """The block without dead ops. An op is made anew only where something inside it, or before it, went."""
    ops: list[Op] = []
    for op in block.ops:
        if op in dead:
            continue
        blocks = tuple(_without(k, dead, env) for k in op.blocks)
        operands = tuple(env.get(v, v) for v in op.operands)
        if operands != op.operands or any(x is not y for x, y in zip(blocks, op.blocks, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            for old, r in zip(op.results, new.results, strict=True):
                r.name = old.name
                env[old] = r
            op = new
        ops.append(op)
    outs = [env.get(v, v) for v in block.outs]
    same = len(ops) == len(block.ops) and all(x is y for x, y in zip(ops, block.ops, strict=True))
    return block if same and outs == list(block.outs) else Block(block.args, ops, outs)


def op_key(op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
    """Equal for ops that compute the same values from the same operands."""
    ids = [id(v) for v in operands]
    if op.defn.commutes:
        ids.sort()
    return op.name, tuple(ids), plain(op.attrs), tuple([k.digest for k in blocks])


@pass_("cse", level="any")
def cse(func: Func, cx: PassContext) -> Func:
    """Compute equal expressions once. Ops that touch memory are left alone; open regions see what is known outside."""
    return func.with_block(_cse_block(func.block, {}, {}, cx, func.level == "tensor"))


def _cse_block(block: Block, known: dict[Any, Op], env: dict[Value, Value], cx: PassContext, closed: bool) -> Block:
    ops: list[Op] = []
    changed = False
    known = {} if closed else dict(known)
    for op in block.ops:
        operands = tuple(_follow(env, v) for v in op.operands)
        blocks = tuple(_cse_block(k, known, env, cx, closed) for k in op.blocks)
        if operands != op.operands or any(x is not y for x, y in zip(blocks, op.blocks, strict=True)):
            new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
            for old, r in zip(op.results, new.results, strict=True):
                r.name = old.name
                env[old] = r
            op, changed = new, True
        # Open regions refer to outer values, which the structural hash cannot see: only closed ones are compared.
        mergeable = not has_effects(op) and op.defn.category != "memory" and (closed or not op.blocks) and op.results
        key = op_key(op, op.operands, op.blocks) if mergeable else None
        if key is not None and key in known:
            for old, r in zip(op.results, known[key].results, strict=True):
                env[old] = r
            changed = True
            cx.rules["cse"] += 1
            continue
        if key is not None:
            known[key] = op
        ops.append(op)
    outs = [_follow(env, v) for v in block.outs]  # an open region may yield an outer value that is another one now
    return Block(block.args, ops, outs) if changed or outs != list(block.outs) else block


def _follow(env: dict[Value, Value], v: Value) -> Value:
    while v in env:
        v = env[v]
    return v


FOLD_LIMIT = 4096  # elements; folding must not turn a small program into a large constant


@pass_("fold")
def fold(func: Func, cx: PassContext, *, limit: int = FOLD_LIMIT) -> Func:
    """Evaluate ops on constants, as long as the result is small or not larger than the operands."""
    it = Interpreter(cx.module)

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name == "const" or blocks or op.defn.ref is None or not operands or op.defn.category == "random":
            return None
        if any(v.owner is None or v.owner.name != "const" for v in operands):
            return None
        if any(not isinstance(r.type, TensorType) or symbols_of(r.type.size) for r in op.results):
            return None
        if any(symbols_of(d) for d in _dims_in(op.attrs)):
            return None
        total = sum(int(r.type.size) for r in op.results if isinstance(r.type, TensorType))
        if total > max([limit, *(v.owner.attrs["value"].size for v in operands if v.owner)]):
            return None
        with np.errstate(all="ignore"):
            out = op.defn.ref(op.attrs, *[v.owner.attrs["value"] for v in operands if v.owner])
        cx.rules["fold"] += 1
        arrays = out if isinstance(out, (tuple, list)) else (out,)
        return [b.const(np.array(it.typed(x, r))) for x, r in zip(arrays, op.results, strict=True)]

    return rewrite_func(func, visit)


def _dims_in(attrs: Any) -> list[Any]:
    out: list[Any] = []
    for v in attrs.values():
        out += [d for d in (v if isinstance(v, tuple) else (v,)) if type(d).__name__ == "Poly"]
    return out


MAX_INLINED = 1_000_000  # ops


def _check_inlined(module: Module, graph: Mapping[str, set[str]]) -> set[str]:
    """The functions that call themselves, directly or by others. FX0109 where inlining the rest makes too many ops: functions
    that call the next one twice stand for as many as anybody likes.

    Functions are taken in the order in which a walk along the calls leaves them, callees first (Tarjan's strongly connected
    components, without recursion: texts may hold chains of any length).
    """
    recursive: set[str] = set()
    number: dict[str, int] = {}  # in the order of the walk
    low: dict[str, int] = {}  # the first function, by number, that is reached from here and still open
    open_: list[str] = []
    size: dict[str, int] = {}
    for root in graph:
        walk = [] if root in number else [(root, iter(graph[root]))]
        while walk:
            name, rest = walk[-1]
            if name not in number:
                number[name] = low[name] = len(number)
                open_.append(name)
            for callee in rest:
                if callee not in graph:
                    continue
                if callee not in number:
                    walk.append((callee, iter(graph[callee])))
                    break
                if callee not in size:  # still open: on the way to here, or tied to what is
                    low[name] = min(low[name], number[callee])
            else:
                walk.pop()
                if walk:
                    low[walk[-1][0]] = min(low[walk[-1][0]], low[name])
                if low[name] == number[name]:
                    tied = open_[open_.index(name) :]
                    del open_[-len(tied) :]
                    if len(tied) > 1 or name in graph[name]:
                        recursive.update(tied)
                    for n in tied:
                        size[n] = _inlined_ops(module, n, size, recursive)
    return recursive


def _inlined_ops(module: Module, name: str, size: Mapping[str, int], recursive: set[str]) -> int:
    """How many ops a function has once the calls in it are inlined."""
    total = 0
    for op in module.funcs[name].walk():
        callee = op.attrs["callee"] if op.name == "call" and not op.attrs["transform"] else ""
        total += 1 if callee in recursive else size.get(callee, 1)
        if total > MAX_INLINED:
            raise error("FX0109", f"calls in @{name} stand for more than {MAX_INLINED} ops", loc=op.loc)
    return total


@pass_("inline", scope="module")
def inline_calls(module: Module, cx: PassContext) -> Module:
    """Replace calls of functions that are not recursive (and not kept by `checkpoint`) by their bodies."""
    graph = {n: {o.attrs["callee"] for o in f.walk() if o.name == "call"} for n, f in module.funcs.items()}

    recursive = _check_inlined(module, graph)

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name != "call" or op.attrs["transform"] or op.attrs["callee"] in recursive:
            return None
        f = current.funcs[op.attrs["callee"]]
        if f.attrs.get("noinline") or any(op.attrs[k] for k in ("dims", "sized", "rules")):
            return None
        cx.rules["inline"] += 1
        return inline(b, f.block, operands)

    current = module
    for _ in range(64):  # each round removes one level of calls
        new = current
        for f in current.funcs.values():
            if f.level == "tensor":
                g = rewrite_func(f, visit)
                if g is not f:
                    new = new.with_func(g)
        if new is current:
            break
        current = new
    if current is module:
        return module
    used, todo = set(), [current.entry.name]
    while todo:
        n = todo.pop()
        if n not in used:
            used.add(n)
            todo += [o.attrs["callee"] for o in current.funcs[n].walk() if o.attrs.get("callee")]
    return Module(current.name, {n: f for n, f in current.funcs.items() if n in used}, current.facts, current.attrs)
