"""Simplification of control flow: what is decided is taken, what is not used is not computed or carried.

Tensor level only: regions are closed and pure, so taking one out of its op is copying its ops, and what nobody uses may
go, whatever it computes. A loop that may run for ever still does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fluxir.ir.build import Builder, inline
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.types import TensorType
from fluxir.ops.control import scan_length
from fluxir.passes.rules import Match, RuleSet, constant_like, scalar_of

RULES = RuleSet()
rewrite = RULES.rewrite


# ---- regions ----------------------------------------------------------------------------------------------------------------


def rebuilt(block: Block, args: Sequence[int], outs: Sequence[int]) -> Block:
    """A copy of a closed block that takes only `args` and yields only `outs` of the old, in that order.

    What is left out is not needed by what stays, but an inner loop may still hand it on to itself: that gets a zero,
    until the loop loses it too.
    """
    live, kept = _backward(block, outs)
    fresh = [Value(block.args[i].type, None, n, block.args[i].name) for n, i in enumerate(args)]
    b = Builder()
    place = dict(zip(args, fresh, strict=True))
    used = {v for op in kept for v in op.operands}
    for i, a in enumerate(block.args):
        if i not in place and a in used:
            assert a not in live, "a region argument that is needed was left out"
            assert isinstance(a.type, TensorType)
            place[i] = constant_like(b, np.zeros((), a.type.dtype.numpy)[()], a.type)
    slim = Block(block.args, kept, [block.outs[i] for i in outs])
    yielded = inline(b, slim, [place.get(i, v) for i, v in enumerate(block.args)])
    return Block(fresh, b.ops, yielded)


def _backward(block: Block, outs: Collection[int]) -> tuple[set[Value], list[Op]]:
    """The values of a closed block that its results `outs` depend on, and the ops that make them."""
    live = {block.outs[i] for i in outs}
    kept = []
    for op in reversed(block.ops):
        results = [i for i, r in enumerate(op.results) if r in live]
        if results:
            live.update(op.operands[i] for i in needed_operands(op, results))
            kept.append(op)
    return live, kept[::-1]


def _needed(block: Block, outs: Collection[int]) -> set[int]:
    """Which arguments of a closed block its results `outs` depend on."""
    live, _ = _backward(block, outs)
    return {i for i, a in enumerate(block.args) if a in live}


def needed_operands(op: Op, results: Collection[int]) -> Collection[int]:
    """Which operands the given results of an op depend on; for loops through any number of rounds."""
    match op.name:
        case "if":
            return {0} | {i + 1 for k in op.blocks for i in _needed(k, results)}
        case "fused":
            return _needed(op.blocks[0], results)
        case "scan":
            return needed_by_scan(op.blocks[0], op.attrs["carry"], results)
        case "while":
            return needed_by_while(op.blocks[0], op.blocks[1], op.attrs["carry"], results)
    return range(len(op.operands))


def needed_by_scan(body: Block, carry: int, results: Collection[int]) -> set[int]:
    """The body's arguments that some results depend on. A carry that is needed once is needed in every round."""
    carries = {i for i in results if i < carry}
    while True:
        needed = carries | _needed(body, carries | {i for i in results if i >= carry})
        more = {i for i in needed if i < carry}
        if more == carries:
            return needed
        carries = more


def needed_by_while(cond: Block, body: Block, carry: int, results: Collection[int]) -> set[int]:
    """As `needed_by_scan`; what the condition looks at is needed whatever else is."""
    condition = _needed(cond, [0])
    carries = set(results) | {i for i in condition if i < carry}
    while True:
        needed = carries | condition | _needed(body, carries)
        more = {i for i in needed if i < carry}
        if more == carries:
            return needed
        carries = more


def indices(flags: Sequence[bool]) -> list[int]:
    return [i for i, f in enumerate(flags) if f]


def spread(results: Sequence[Value], kept: Sequence[int], given: dict[int, Value], old: Sequence[Value]) -> list[Value]:
    """Values for all old results: new ones, given ones, and for the unused anything of the right type."""
    place = dict(zip(kept, results, strict=True))
    return [place.get(i) or given.get(i) or r for i, r in enumerate(old)]


def _branches(b: Builder, p: Value, xs: Sequence[Value], then: Any, other: Any) -> Any:
    types = [x.type for x in xs]
    out = b.emit("if", p, *xs, blocks=[b.block(types, then), b.block(types, other)])
    return out[0] if len(out) == 1 else out


# ---- if -----------------------------------------------------------------------------------------------------------------------


@rewrite(
    "if",
    sample=lambda b, x, y: [
        _branches(b, b.const(p, dtype="bool"), [x, y], lambda k, u, v: k.add(u, v), lambda k, u, v: k.neg(u))
        for p in (True, False)
    ],
    types=(("f32[3]", "f32[3]"), ("i32[2]", "i32[2]")),
)
def if_decided(m: Match) -> Any:
    p = scalar_of(m.operands[0])
    return None if p is None else inline(m.b, m.blocks[0 if bool(p) else 1], m.operands[1:])


@rewrite(
    "if",
    sample=lambda b, p, x: _branches(b, p, [x], lambda k, u: k.exp(u), lambda k, u: k.exp(u)),
    types=(("bool", "f32[3]"),),
)
def if_of_equal_branches(m: Match) -> Any:
    return inline(m.b, m.blocks[0], m.operands[1:]) if m.blocks[0].digest == m.blocks[1].digest else None


@rewrite(
    "if",
    sample=lambda b, p, x: _branches(b, b.logical_not(p), [x], lambda k, u: k.exp(u), lambda k, u: u),
    types=(("bool", "f32[3]"),),
)
def if_not(m: Match) -> Any:
    inner = m.made_by(0, "logical_not")
    return None if inner is None else m.b.emit("if", inner.operands[0], *m.operands[1:], blocks=m.blocks[::-1])


def _half_used_if(b: Builder, p: Value, x: Value, y: Value) -> Any:
    r = _branches(b, p, [x, y], lambda k, u, v: (k.exp(u), k.neg(v)), lambda k, u, v: (u, k.abs(v)))
    return r[1]


@rewrite("if", sample=_half_used_if, types=(("bool", "f32[3]", "f32[2]"), ("bool", "f16", "i32[2]")))
def if_of_unused(m: Match) -> Any:
    """Drop results that nobody uses and operands that neither branch needs."""
    outs = indices(m.live)
    needed = sorted(_needed(m.blocks[0], outs) | _needed(m.blocks[1], outs))
    if len(outs) == len(m.live) and len(needed) == len(m.operands) - 1:
        return None
    if not outs:
        return None  # dce's business
    blocks = [rebuilt(k, needed, outs) for k in m.blocks]
    return spread(
        m.b.emit("if", m.operands[0], *[m.operands[i + 1] for i in needed], blocks=blocks), outs, {}, m.op.results
    )


# ---- scan ---------------------------------------------------------------------------------------------------------------------


def _scan(
    b: Builder, carry: Sequence[Value], consts: Sequence[Value], xs: Sequence[Value], body: Any, **attrs: Any
) -> Any:
    types = [v.type for v in (*carry, *consts)] + [TensorType(x.type.dtype, x.type.shape[1:]) for x in xs]
    return b.emit(
        "scan", *carry, *consts, *xs, blocks=[b.block(types, body)], carry=len(carry), consts=len(consts), **attrs
    )


@rewrite(
    "scan",
    sample=lambda b, c, x: list(_scan(b, [c], [], [x], lambda k, c, e: (k.add(c, e), k.neg(e)))),
    types=(("f32[3]", "f32[0,3]"), ("i32", "i32[0]")),
)
def scan_of_nothing(m: Match) -> Any:
    if scan_length(m.attrs, m.operands) != 0:
        return None
    nc = m.attrs["carry"]
    empty = []
    for r in m.op.results[nc:]:
        assert isinstance(r.type, TensorType)
        empty.append(constant_like(m.b, np.zeros((), r.type.dtype.numpy)[()], r.type))
    return [*m.operands[:nc], *empty]


@rewrite(
    "scan",
    sample=lambda b, c, x: list(_scan(b, [c], [c], [x], lambda k, c, w, e: (k.add(c, e), k.mul(w, e)), reverse=True)),
    types=(("f32[3]", "f32[1,3]"), ("i32", "i32[1]")),
)
def scan_of_one(m: Match) -> Any:
    if scan_length(m.attrs, m.operands) != 1:
        return None
    nc, head = m.attrs["carry"], m.attrs["carry"] + m.attrs["consts"]
    slices = [m.b.reshape(x, shape=x.type.shape[1:]) for x in m.operands[head:]]
    outs = inline(m.b, m.blocks[0], [*m.operands[:head], *slices])
    return [*outs[:nc], *[m.b.reshape(y, shape=(1, *y.type.shape)) for y in outs[nc:]]]


@rewrite(
    "scan",
    sample=lambda b, c, w, x: list(_scan(b, [c, w], [], [x], lambda k, c, w, e: (k.add(c, k.mul(w, e)), w))),
    types=(("f32[3]", "f32[3]", "f32[4,3]"), ("f32", "f32", "f32[0]")),
)
def scan_carries_a_constant(m: Match) -> Any:
    """A carry that the body hands on unchanged is a constant."""
    nc, nk = m.attrs["carry"], m.attrs["consts"]
    (body,) = m.blocks
    fixed = [i for i in range(nc) if body.outs[i] is body.args[i]]
    if not fixed:
        return None
    moving = [i for i in range(nc) if i not in fixed]
    order = [*moving, *range(nc, nc + nk), *fixed, *range(nc + nk, len(body.args))]
    outs = [*moving, *range(nc, len(body.outs))]
    results = m.b.emit("scan", *[m.operands[i] for i in order], blocks=[rebuilt(body, order, outs)],
                       **{**m.attrs, "carry": len(moving), "consts": nk + len(fixed)})  # fmt: skip
    return spread(results, outs, {i: m.operands[i] for i in fixed}, m.op.results)


def _half_used_scan(b: Builder, c: Value, d: Value, w: Value, x: Value) -> Any:
    """Of two carries, two constants, two sequences and two outputs one each is used."""

    def body(k: Builder, c: Value, d: Value, w: Value, u: Value, e: Value, f: Value) -> Any:
        return k.add(c, k.mul(w, e)), k.add(d, f), k.neg(c), k.mul(d, u)

    r = _scan(b, [c, d], [w, w], [x, b.abs(x)], body)
    return [r[0], r[2]]


@rewrite(
    "scan", sample=_half_used_scan, types=(("f32[3]", "f32[3]", "f32[3]", "f32[4,3]"), ("i32", "i32", "i32", "i32[0]"))
)
def scan_of_unused(m: Match) -> Any:
    """Drop outputs nobody uses, carries that neither a result nor a live carry needs, operands nobody reads."""
    nc, nk = m.attrs["carry"], m.attrs["consts"]
    (body,) = m.blocks
    live = indices(m.live)
    args = sorted(needed_by_scan(body, nc, live))
    carries = [i for i in args if i < nc]
    outputs = [i for i in live if i >= nc]
    if len(args) == len(body.args) and len(outputs) == len(body.outs) - nc:
        return None
    if not live:
        return None
    outs = [*carries, *outputs]
    attrs = {**m.attrs, "carry": len(carries), "consts": sum(nc <= i < nc + nk for i in args)}
    if all(i < nc + nk for i in args):  # no sequence is left to say how long
        attrs["length"] = scan_length(m.attrs, m.operands)
    results = m.b.emit("scan", *[m.operands[i] for i in args], blocks=[rebuilt(body, args, outs)], **attrs)
    return spread(results, outs, {}, m.op.results)


# ---- while --------------------------------------------------------------------------------------------------------------------


def _while(b: Builder, carry: Sequence[Value], consts: Sequence[Value], cond: Any, body: Any) -> Any:
    types = [v.type for v in (*carry, *consts)]
    return list(b.emit("while", *carry, *consts, blocks=[b.block(types, cond), b.block(types, body)], carry=len(carry)))


@rewrite(
    "while",
    sample=lambda b, x: _while(b, [x], [], lambda k, x: k.const(False, dtype="bool"), lambda k, x: k.exp(x)),
    types=(("f32[3]",),),
)
def while_false(m: Match) -> Any:
    done = scalar_of(m.blocks[0].outs[0])
    return list(m.operands[: m.attrs["carry"]]) if done is not None and not bool(done) else None


def _counting(b: Builder, x: Value, w: Value) -> Any:
    """A loop of three rounds that carries `w` unchanged, and a value that nobody needs."""
    zero = b.const(0, dtype="i64")
    r = _while(
        b,
        [zero, x, w, x],
        [],
        lambda k, i, x, w, u: k.lt(i, 3),
        lambda k, i, x, w, u: (k.add(i, 1), k.add(x, w), w, k.neg(u)),
    )
    return [r[1], r[2]]


@rewrite("while", sample=_counting, types=(("f32[3]", "f32[3]"), ("i32", "i32")))
def while_carries_a_constant(m: Match) -> Any:
    nc = m.attrs["carry"]
    cond, body = m.blocks
    fixed = [i for i in range(nc) if body.outs[i] is body.args[i]]
    if not fixed or len(fixed) == nc:
        return None
    moving = [i for i in range(nc) if i not in fixed]
    order = [*moving, *fixed, *range(nc, len(body.args))]
    results = m.b.emit(
        "while",
        *[m.operands[i] for i in order],
        blocks=[rebuilt(cond, order, [0]), rebuilt(body, order, moving)],
        carry=len(moving),
    )
    return spread(results, moving, {i: m.operands[i] for i in fixed}, m.op.results)


@rewrite("while", sample=_counting, types=(("f32[3]", "f32[3]"), ("i32", "i32")))
def while_of_unused(m: Match) -> Any:
    """Drop carries that neither a result, nor the condition, nor a live carry needs, and constants nobody reads."""
    nc = m.attrs["carry"]
    cond, body = m.blocks
    args = sorted(needed_by_while(cond, body, nc, indices(m.live)))
    kept = [i for i in args if i < nc]
    if len(args) == len(body.args) or not any(m.live):
        return None
    results = m.b.emit(
        "while",
        *[m.operands[i] for i in args],
        blocks=[rebuilt(cond, args, [0]), rebuilt(body, args, kept)],
        carry=len(kept),
    )
    return spread(results, kept, {}, m.op.results)


__all__ = ["RULES", "rebuilt"]
