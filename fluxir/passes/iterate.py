"""The `iterate` pass: a loop that runs while any element goes on becomes a loop of each element.

It looks for a `while` whose condition is `any` of a mask, whose body works on elements alone, and which keeps the
elements that the mask leaves out as they are: what such an element is does not depend on how long others run. The mask
is in the carry (`mask_of`), or the body computes it from the carry like the condition does (`_computed_mask`). `vmap`
makes such loops of a `while` over scalars, and array programs with `where` are written like that. Tensor level, behind
all transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir.ir.build import Builder, copies
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.rewrite import has_effects, rewrite_func
from fluxir.ir.types import TensorType
from fluxir.ops.maps import Map, identity_map, is_elementwise, propagate
from fluxir.passes.cleanup import op_key
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
    v = _under_any(cond)
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


def _under_any(cond: Block) -> Value:
    """What a condition is true for any element of."""
    v = cond.outs[0]
    while v.owner is not None and v.owner.name in ("any", "reshape"):
        v = v.owner.operands[0]
    return v


def _computed_mask(op: Op) -> Value | None:
    """The value in the body of a `while` that is computed from the carry like what the condition is `any` of, where every
    carry stays as it is without it. An element that it leaves out keeps all it is computed from, so it stays left out."""
    cond, body = op.blocks
    moving = [(out, arg) for out, arg in zip(body.outs, body.args, strict=False) if out is not arg]
    masks = {_moved(out.owner.operands[0]) for out, _ in moving if out.owner is not None and out.owner.name == "select"}
    if len(masks) != 1:
        return None
    mask = masks.pop()
    if not mask.type.dtype.is_bool or not all(_keeps(out, mask, arg) for out, arg in moving):
        return None
    goes_on = _under_any(cond)
    same = dict(zip(cond.args, body.args, strict=True))  # what values of the condition are in the body
    there = {op_key(o, o.operands, o.blocks): o.result for o in body.ops if len(o.results) == 1 and not has_effects(o)}
    for o in _needed_for(goes_on, cond):
        operands = [same.get(v) for v in o.operands]
        twin = (
            there.get(op_key(o, tuple(v for v in operands if v is not None), o.blocks))
            if None not in operands
            else None
        )
        if twin is not None:
            same[o.result] = twin
    return mask if same.get(goes_on) is mask else None


def _keeps(out: Value, mask: Value, old: Value) -> bool:
    """Whether a value is `old` where the mask is false."""
    op = out.owner
    return op is not None and op.name == "select" and _moved(op.operands[0]) is mask and op.operands[2] is old


def _moved(v: Value) -> Value:
    """What a value is a broadcast of."""
    while v.owner is not None and v.owner.name in MOVES:
        v = v.owner.operands[0]
    return v


def _conjuncts(v: Value) -> set[Value]:
    """What a value is the conjunction of, with the conjunctions on the way."""
    found, todo = {v}, [v]
    while todo:
        op = todo.pop().owner
        if op is not None and op.name == "logical_and":
            new = set(op.operands) - found
            found |= new
            todo += new
    return found


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
    n = op.attrs["carry"]
    cond, body = op.blocks
    i = mask_of(op, operands)
    mask = body.args[i] if i is not None else _computed_mask(op)
    if mask is None or not all(isinstance(v.type, TensorType) for v in operands):
        return None
    goes_on = _under_any(cond)
    going = _needed_for(goes_on, cond)
    shape: tuple[Dim, ...] = goes_on.type.shape
    if not shape or any(v.type.shape != shape for v in operands[:n]):
        return None
    found = [
        _maps_of_arguments(cond, going, [goes_on], shape),
        _maps_of_arguments(body, body.ops, body.outs, shape),
    ]
    given = list(operands[:n])
    for k, v in enumerate(operands):
        maps: set[Map] = set()
        for f in found:
            if f is None:
                return None
            maps |= f[k]
        if k < n:
            if maps - {identity_map(shape)}:
                return None
        else:
            aligned = _aligned(b, v, maps, shape)
            if aligned is None:
                return None
            given.append(aligned)
    types = [TensorType(v.type.dtype) for v in operands]
    return given, [
        b.block(types, lambda kb, *args: _on_one_element(kb, cond, going, [goes_on], args)[0]),
        b.block(types, lambda kb, *args: _on_one_element(kb, body, body.ops, body.outs, args, mask)),
    ]


def _needed_for(v: Value, block: Block) -> list[Op]:
    """The ops of a block that a value is computed by, in order."""
    needed, ops = {v}, []
    for op in reversed(block.ops):
        if any(r in needed for r in op.results):
            ops.append(op)
            needed.update(op.operands)
    return ops[::-1]


def _maps_of_arguments(
    block: Block, ops: Sequence[Op], outs: Sequence[Value], shape: tuple[Dim, ...]
) -> list[set[Map]] | None:
    """By which maps `outs`, element by element, read the arguments of a block; None where they need more than elements."""
    flow = propagate(ops, [(v, identity_map(shape)) for v in outs], shape)
    if flow is None or flow.pinned or not all(_on_elements(o) for o in ops):
        return None
    return [flow.found.get(a, set()) for a in block.args]


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


def _on_one_element(
    b: Builder, block: Block, ops: Sequence[Op], outs: Sequence[Value], args: Sequence[Value], mask: Value | None = None
) -> list[Value]:
    """`outs` of a block for one element. It goes on, so `mask` is true of it and a `select` by it takes the new value."""
    env: dict[Value, Value] = dict(zip(block.args, args, strict=True))
    on = {mask} if mask is not None else set()
    for op in ops:
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
    return [env[v] for v in outs]


__all__ = ["iterate", "mask_of"]
