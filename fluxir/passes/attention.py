"""What an attention kernel reads in place and writes in place joins the op in a `fused` group, and costs nothing.

Views of q, k and v (heads split off rows, slices of one product that gave all three), what masks are computed from, and a
transpose of the result (heads put together again). An op is copied into each group that reads it; dead code goes later.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.types import TensorType
from fluxir.ops.views import MOVES, view_of
from fluxir.passes.fuse_group import CHEAP, small_constant
from fluxir.passes.manager import PassContext, pass_

OPERANDS = {"attention": 3, "attention_grad": 6}  # how many stand before the masks
MOST = 64  # ops of a group


@pass_("gather_attention")
def gather_attention(func: Func, cx: PassContext) -> Func:
    """Put attention ops with the views around them and the arithmetic of their masks into groups of their own."""
    if not any(op.name in OPERANDS for op in func.walk()):
        return func
    return func.with_block(_gathered(func.block, cx))


def _gathered(block: Block, cx: PassContext) -> Block:
    inner = {op: tuple(_gathered(k, cx) for k in op.blocks) for op in block.ops if op.blocks and op.name != "fused"}
    users: dict[Value, list[Op]] = {}
    for op in block.ops:
        for v in op.operands:
            users.setdefault(v, []).append(op)
    returned = set(block.outs)
    changed = any(k is not old for op, new in inner.items() for k, old in zip(new, op.blocks, strict=True))
    b = Builder()
    env: dict[Value, Value] = {}
    for op in block.ops:
        if all(r in env for r in op.results) and op.results:
            continue  # a transpose that a group took
        b.loc = op.loc
        if op.name in OPERANDS:
            members = _members(op)
            outs = [_turned(r, users, returned) for r in op.results if users.get(r) or r in returned]
            if len(members) > 1 or any(o not in op.results for o in outs):
                cx.rules["gather attention"] += 1
                changed = True
                for old, new in zip(outs, _emit(b, op, members, outs, env), strict=True):
                    env[old] = new
                    new.name = old.name
                continue
        results = b.clone(op, [env.get(v, v) for v in op.operands], inner.get(op, op.blocks))
        for old, new in zip(op.results, results, strict=True):
            env[old] = new
            new.name = old.name
    return Block(block.args, b.ops, [env.get(v, v) for v in block.outs]) if changed else block


def _members(op: Op) -> list[Op]:
    """The ops before `op` that its kernel takes, in order, and itself."""
    found: dict[Op, None] = {}
    for v in op.operands[: OPERANDS[op.name]]:
        _take_views(v, found)
    for mask in op.operands[OPERANDS[op.name] :]:
        taken: dict[Op, None] = {}
        if _take_arithmetic(mask, taken) and len(taken) <= MOST:
            found.update(taken)
    return [*found, op]


def _take_views(v: Value, found: dict[Op, None]) -> None:
    """The chain of views above a value, where its rows can be read in place: their elements are neighbours in memory."""
    chain: list[Op] = []
    x = v
    while x.owner is not None and x.owner.name in MOVES:
        chain.append(x.owner)
        x = x.owner.operands[0]
    if all(o.name in ("reshape", "stop_gradient") for o in chain):
        return
    view = view_of(v, lambda y: y is x)
    if view is not None and view.strides[-1] == 1:
        found.update(dict.fromkeys(reversed(chain)))


def _take_arithmetic(v: Value, found: dict[Op, None]) -> bool:
    """What a mask is computed from by cheap ops, down to what has to be in memory. Whether anything is taken."""
    op = v.owner
    if op is None or op in found:
        return op is not None
    if op.name == "const":
        if not small_constant(op):
            return False
    elif op.name not in CHEAP or op.blocks or not isinstance(v.type, TensorType):
        return False
    for x in op.operands:
        _take_arithmetic(x, found)
    found[op] = None
    return True


def _turned(v: Value, users: dict[Value, list[Op]], returned: set[Value]) -> Value:
    """The transpose that is all that is done with a result, if its rows stay rows."""
    read = users.get(v, [])
    if len(read) == 1 and v not in returned and read[0].name == "transpose":
        perm = read[0].attrs["perm"]
        if perm and perm[-1] == len(perm) - 1:
            return read[0].result
    return v


def _emit(
    b: Builder, op: Op, members: Sequence[Op], outs: Sequence[Value], env: dict[Value, Value]
) -> tuple[Value, ...]:
    inside = {r for m in members for r in m.results}
    inputs = list(dict.fromkeys(v for m in members for v in m.operands if v not in inside))
    args = [Value(v.type, None, i, v.name) for i, v in enumerate(inputs)]
    inner: dict[Value, Value] = dict(zip(inputs, args, strict=True))
    body = Builder(op.loc)
    after = [o.owner for o in outs if o not in op.results and o.owner is not None]
    clone_ops(body, [*members, *after], inner)
    region = Block(args, body.ops, [inner[o] for o in outs])
    given = [env.get(v, v) for v in inputs]
    return b.emit("fused", *given, blocks=[region], loc=op.loc, kind=op.name, name=op.name)


__all__ = ["gather_attention"]
