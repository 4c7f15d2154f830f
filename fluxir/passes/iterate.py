"""The `iterate` pass: a loop that runs while any element goes on becomes a loop of each element.

It looks for a `while` whose condition is `any` of a mask in its carry, whose body works on elements alone, and which
keeps the elements that the mask leaves out as they are (`mask_of`): what such an element is does not depend on how long
others run. `vmap` makes such loops of a `while` over scalars, and array programs with `where` are written like that.
Tensor level, behind all transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.build import Builder, copies
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.rewrite import rewrite_func
from fluxir.ir.types import TensorType
from fluxir.ops.maps import Map, identity_map, is_elementwise, propagate
from fluxir.passes.manager import PassContext, pass_

MOVES = ("broadcast", "reshape", "stop_gradient")


@pass_("iterate")
def iterate(func: Func, cx: PassContext) -> Func:
    """Make loops over masked arrays loops of their elements."""

    def visit(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        loop = _element_loop(b, op, operands) if op.name == "while" else None
        if loop is None:
            return None
        cx.rules["iterate"] += 1
        given, regions = loop
        n = op.attrs["carry"]
        return [b.emit("iterate", *given, blocks=copies(regions), carry=n, result=k, loc=op.loc)[0] for k in range(n)]

    return rewrite_func(func, visit)


def mask_of(op: Op, starts: Sequence[Value] = ()) -> int | None:
    """The carry of a `while` that says which elements go on: the loop runs while any of them does, and an element that does
    not keeps its part of every carry for good. `starts`: the first carries, where they are known."""
    n = op.attrs["carry"]
    cond, body = op.blocks
    v = cond.outs[0]
    while v.owner is not None and v.owner.name in ("any", "reshape"):
        v = v.owner.operands[0]
    if v not in cond.args[:n] or not v.type.dtype.is_bool:
        return None
    i = cond.args.index(v)
    mask = body.args[i]
    for k, (out, arg) in enumerate(zip(body.outs, body.args, strict=False)):
        if k != i and out is not arg and not _keeps(out, mask, arg):
            return None
    if mask in _conjuncts(body.outs[i]):
        return i
    return i if starts and _all_true(starts[i]) and _depends_only_on(body, i) else None


def _keeps(out: Value, mask: Value, old: Value) -> bool:
    """Whether a value is `old` where the mask is false."""
    op = out.owner
    return op is not None and op.name == "select" and _moved(op.operands[0]) is mask and op.operands[2] is old


def _moved(v: Value) -> Value:
    """What a value is a broadcast of."""
    while v.owner is not None and v.owner.name in MOVES:
        v = v.owner.operands[0]
    return v


def _conjuncts(v: Value) -> list[Value]:
    op = v.owner
    return [c for x in op.operands for c in _conjuncts(x)] if op is not None and op.name == "logical_and" else [v]


def _all_true(v: Value) -> bool:
    op = _moved(v).owner
    return op is not None and op.name == "const" and bool(op.attrs["value"].all())


def _depends_only_on(body: Block, i: int) -> bool:
    """Whether the next mask is a function of the other next carries: of an element that was kept, it is what it was. (At
    first all go on, so no element is left out for another reason.)"""
    known = {v for k, v in enumerate(body.outs) if k != i}
    todo, seen = [body.outs[i]], set()
    while todo:
        v = todo.pop()
        if v in known or v in seen:
            continue
        seen.add(v)
        if v.owner is None:
            if v in body.args[: len(body.outs)]:
                return False
        else:
            todo += v.owner.operands
    return True


def _element_loop(b: Builder, op: Op, operands: Sequence[Value]) -> tuple[list[Value], list[Block]] | None:
    """The operands and regions of the `iterate` that does the same, or None."""
    i = mask_of(op, operands)
    n = op.attrs["carry"]
    body = op.blocks[1]
    if i is None or not all(isinstance(v.type, TensorType) for v in operands):
        return None
    shape: tuple[Dim, ...] = operands[i].type.shape
    if not shape or any(v.type.shape != shape for v in operands[:n]):
        return None
    flow = propagate(body.ops, [(v, identity_map(shape)) for v in body.outs], shape)
    if flow is None or flow.pinned or not all(_on_elements(o) for o in body.ops):
        return None
    given = list(operands[:n])
    for a, v in zip(body.args, operands, strict=True):
        maps = flow.found.get(a, set())
        if a in body.args[:n]:
            if maps - {identity_map(shape)}:
                return None
        else:
            aligned = _aligned(b, v, maps, shape)
            if aligned is None:
                return None
            given.append(aligned)
    types = [TensorType(v.type.dtype) for v in operands]
    return given, [
        b.block(types, lambda kb, *args: args[i]),
        b.block(types, lambda kb, *args: _body(kb, body, i, args)),
    ]


def _on_elements(op: Op) -> bool:
    if op.name == "const":
        a = op.attrs["value"]
        return a.size > 0 and bool((a == a.flat[0]).all())
    return not op.blocks and (is_elementwise(op) or op.name in MOVES)


def _aligned(b: Builder, v: Value, maps: set[Map], shape: tuple[Dim, ...]) -> Value | None:
    """A value that broadcasts against `shape` as the loop reads it, by its one map."""
    if len(maps) > 1:
        return None
    own = v.type.shape
    for m in maps:
        rank = len(shape)
        if any(k not in (-1, rank - len(own) + axis) for axis, k in enumerate(m)):
            axes = tuple(k for k in m if k >= 0)
            if len(axes) != len(m) or list(axes) != sorted(axes):
                return None
            return b.emit("broadcast", v, shape=tuple(d if k in axes else 1 for k, d in enumerate(shape)), axes=axes)[0]
    return v if maps else b.const(0, dtype=v.type.dtype)


def _body(b: Builder, body: Block, i: int, args: Sequence[Value]) -> list[Value]:
    """The body for one element that goes on: its mask is true, so a `select` by it takes the new value."""
    env: dict[Value, Value] = dict(zip(body.args, args, strict=True))
    on = {body.args[i]}
    for op in body.ops:
        r = op.result
        if op.name == "const":
            env[r] = b.const(op.attrs["value"].reshape(-1)[0], dtype=r.type.dtype)
        elif op.name in MOVES:
            env[r] = env[op.operands[0]]
            on |= {r} if op.operands[0] in on else set()
        elif op.name == "select" and op.operands[0] in on:
            env[r] = env[op.operands[1]]
        elif op.name == "logical_and" and (rest := [v for v in op.operands if v not in on]) != list(op.operands):
            env[r] = env[rest[0]] if rest else env[op.operands[0]]
            on |= set() if rest else {r}
        else:
            env[r] = b.emit(op.name, *[env[v] for v in op.operands], loc=op.loc, **op.attrs)[0]
    return [env[v] for v in body.outs]


__all__ = ["iterate", "mask_of"]
