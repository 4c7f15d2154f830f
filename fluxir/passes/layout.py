"""The `layout` pass: transposes disappear into the ops that can read any order of axes, or meet and cancel.

`dot`, reductions and `broadcast` name the axes they work on, so a transpose of an operand is a change of their
attributes; a transpose of a dot's result may be a dot of the operands in the other order. A transpose moves through
elementwise ops only where that removes one. Every rule leaves fewer transposes than it found, so the pass ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Func, Op, Value
from fluxir.ops.contract import dot_axes
from fluxir.ops.rules import normal_axes
from fluxir.ops.shape import broadcast_axes
from fluxir.passes import simplify_shape
from fluxir.passes.cleanup import dce
from fluxir.passes.manager import PassContext, pass_
from fluxir.passes.rules import Match, RuleSet
from fluxir.passes.simplify_reduce import axes_of
from fluxir.passes.simplify_shape import shape

RULES = RuleSet()
rewrite = RULES.rewrite
for _name in ("transpose_of_nothing", "transpose_transpose", "transpose_moves_only_ones"):
    RULES.add(simplify_shape.RULES.rules[_name])


@pass_("layout")
def layout(func: Func, cx: PassContext) -> Func:
    """Fold transposes into dots, reductions and broadcasts, and let them cancel through elementwise ops."""
    return RULES.run(func, cx.rules, between=lambda f: dce(f, cx))


def ascending(axes: list[int]) -> bool:
    return axes == sorted(axes)


@dataclass(frozen=True)
class Source:
    """A value that is elementwise ops, each used once, of the transpose `perm` of `x`."""

    x: Value
    perm: tuple[int, ...]
    chain: tuple[tuple[Op, int], ...]  # from the last op to the first, and the operand that has a shape

    def untransposed(self, b: Builder) -> Value:
        """The same ops on `x` itself: the value before the transpose."""
        return along(b, self.chain, self.x)


def along(b: Builder, chain: Sequence[tuple[Op, int]], x: Value) -> Value:
    """The ops of a chain applied to another value of the same number of axes."""
    for op, i in reversed(chain):
        x = b.clone(op, [*op.operands[:i], x, *op.operands[i + 1 :]])[0]
    return x


def upwards(m: Match, i: int) -> tuple[list[tuple[Op, int]], Value]:
    """The elementwise ops above operand `i`, each used once and with one operand that has a shape; and what they start from."""
    chain: list[tuple[Op, int]] = []
    v, once = m.operands[i], m.only_use(i)
    while v.owner is not None and once and elementwise(v.owner) and len(chain) < 64:
        shaped = [k for k, x in enumerate(v.owner.operands) if shape(x)]
        if len(shaped) != 1:
            break
        chain.append((v.owner, shaped[0]))
        v = v.owner.operands[shaped[0]]
        once = m.uses.get(v, 0) == 1
    return chain, v


def transposed(m: Match, i: int) -> Source | None:
    """Operand `i` as a transpose, seen through elementwise ops."""
    chain, v = upwards(m, i)
    if v.owner is None or v.owner.name != "transpose" or (chain and m.uses.get(v, 0) != 1):
        return None
    return Source(v.owner.operands[0], v.owner.attrs["perm"], tuple(chain))


# ---- dot ------------------------------------------------------------------------------------------------------------------

_BATCHED = {"lhs_batch": (0,), "rhs_batch": (0,)}


def _dots_of_transposed(b: Any, x: Value, y: Value) -> list[Value]:
    """x: [2,3,4], y: [2,4,5], multiplied through transposes of both."""
    u, v = b.transpose(x, perm=(0, 2, 1)), b.transpose(y, perm=(2, 0, 1))
    return [
        b.dot(u, y, lhs_contract=(1,), rhs_contract=(1,), **_BATCHED),
        b.dot(x, v, lhs_contract=(2,), rhs_contract=(2,), lhs_batch=(0,), rhs_batch=(1,)),
        b.dot(u, v, lhs_contract=(0, 1), rhs_contract=(1, 2)),
    ]


@rewrite("dot", sample=_dots_of_transposed, types=(("f32[2,3,4]", "f32[2,4,5]"), ("i32[2,3,4]", "i32[2,4,0]")))
def dot_of_transposed(m: Match) -> Any:
    """Axes of a transposed operand are axes of the operand; the free ones must come in the same order."""
    x, y = m.operands
    _, lhs_free, _, _, rhs_free, _ = dot_axes(x, y, m.attrs)
    attrs = dict(m.attrs)
    new = [x, y]
    for i, (side, free) in enumerate((("lhs", lhs_free), ("rhs", rhs_free))):
        source = transposed(m, i)
        if source is None or not ascending([source.perm[k] for k in free]):
            continue
        perm = source.perm
        for what in ("contract", "batch"):
            axes = normal_axes("dot", m.attrs[f"{side}_{what}"], len(perm))
            attrs[f"{side}_{what}"] = tuple(perm[k] for k in axes)
        new[i] = source.untransposed(m.b)
    return None if new == [x, y] else m.b.dot(*new, **attrs)


def _transposed_dots(b: Any, x: Value, y: Value) -> list[Value]:
    plain = b.dot(x, y, lhs_contract=(2,), rhs_contract=(1,), **_BATCHED)
    outer = b.dot(x, y, lhs_contract=(0,), rhs_contract=(0,))
    return [b.transpose(plain, perm=(0, 2, 1)), b.transpose(outer, perm=(2, 3, 0, 1))]


@rewrite("transpose", sample=_transposed_dots, types=(("f32[2,3,4]", "f32[2,4,5]"), ("i32[2,3,4]", "i32[2,4,5]")))
def transpose_of_dot(m: Match) -> Any:
    """A transpose that exchanges the free axes of the two operands, or the batch axes among each other."""
    chain, v = upwards(m, 0)
    if v.owner is None or v.owner.name != "dot" or m.uses.get(v if chain else m.op.operands[0], 0) != 1:
        return None
    turned = turned_dot(v.owner, m.attrs["perm"])
    if turned is None:
        return None
    x, y, attrs = turned
    return along(m.b, chain, m.b.dot(x, y, **attrs))


def turned_dot(dot: Op, perm: tuple[int, ...]) -> tuple[Value, Value, dict[str, Any]] | None:
    """Operands and attributes of the dot that gives the transpose of this one's result."""
    x, y = dot.operands
    lb, lf, lc, rb, rf, rc = dot_axes(x, y, dot.attrs)
    nb, nl, nr = len(lb), len(lf), len(rf)
    batch, rest = perm[:nb], perm[nb:]
    if sorted(batch) != list(range(nb)):
        return None
    lhs = (lc, tuple(lb[i] for i in batch))
    rhs = (rc, tuple(rb[i] for i in batch))
    kept, swapped = tuple(range(nb, nb + nl + nr)), (*range(nb + nl, nb + nl + nr), *range(nb, nb + nl))
    if rest == swapped and rest != kept:
        x, y, lhs, rhs = y, x, rhs, lhs
    elif rest != kept:
        return None
    return x, y, {"lhs_contract": lhs[0], "lhs_batch": lhs[1], "rhs_contract": rhs[0], "rhs_batch": rhs[1]}


# ---- reductions, broadcast ----------------------------------------------------------------------------------------------------


def _reductions_of_transposed(b: Any, x: Value) -> list[Value]:
    t = b.transpose(x, perm=(2, 0, 1))
    return [b.sum(t, axes=(0,)), b.max(t, axes=(-2, 0), keepdims=True), b.argmax(t, axis=0)]


@rewrite(
    "sum",
    "prod",
    "max",
    "min",
    "any",
    "all",
    "argmax",
    "argmin",
    sample=_reductions_of_transposed,
    types=(("f32[2,3,4]",), ("i32[2,3,4]",)),
)
def reduce_of_transposed(m: Match) -> Any:
    source = transposed(m, 0)
    if source is None:
        return None
    perm = source.perm
    axes = normal_axes(m.op.name, axes_of(m.op), len(perm))
    inside = [perm[i] for i in sorted(axes)]
    if not ascending([perm[i] for i in range(len(perm)) if i not in axes]):
        return None
    if m.op.name in ("sum", "prod") and m.type.dtype.is_float and not ascending(inside):
        return None  # the order of the terms would change
    which = {"axis": inside[0]} if "axis" in m.attrs else {"axes": tuple(sorted(inside))}
    r = m.b.emit(m.op.name, source.untransposed(m.b), **{**m.attrs, **which, "keepdims": False})[0]
    return m.b.reshape(r, shape=m.type.shape) if m.attrs["keepdims"] else r


@rewrite(
    "broadcast",
    sample=lambda b, x: b.broadcast(b.transpose(x, perm=(1, 0)), shape=(5, 3, 2)),
    types=(("f32[2,3]",), ("bool[1,3]",)),
)
def broadcast_of_transposed(m: Match) -> Any:
    inner = m.made_by(0, "transpose")
    if inner is None:
        return None
    perm = inner.attrs["perm"]
    placed = broadcast_axes(m.attrs, len(perm))
    return m.b.broadcast(
        inner.operands[0], shape=m.type.shape, axes=tuple(placed[perm.index(i)] for i in range(len(perm)))
    )


# ---- elementwise -----------------------------------------------------------------------------------------------------


def elementwise(op: Op) -> bool:
    return op.defn.category in ("elementwise", "compare")


@rewrite(
    *simplify_shape.ELEMENTWISE,
    sample=lambda b, x, y: b.clamp(b.add(b.transpose(x, perm=(2, 0, 1)), b.transpose(y, perm=(2, 0, 1))), -1, 1),
    types=(("f32[2,3,4]", "f32[2,3,4]"), ("i32[2,3,4]", "i32[2,3,4]"), ("f16[2,1,4]", "f16[2,3,1]")),
)
def elementwise_of_transposed(m: Match) -> Any:
    """Operands transposed alike: one transpose of the result instead of one of each operand."""
    sources = []
    perm = None
    gone = set()
    for i, v in enumerate(m.operands):
        if not shape(v):
            sources.append(v)
            continue
        inner = m.made_by(i, "transpose")
        if inner is None or (perm is not None and inner.attrs["perm"] != perm):
            return None
        perm = inner.attrs["perm"]
        sources.append(inner.operands[0])
        alone = m.only_use(i) or all(v is w or not shape(w) for w in m.operands)
        gone |= {v} if alone else set()
    if perm is None or len(gone) < 2:
        return None
    return m.b.transpose(m.b.clone(m.op, sources)[0], perm=perm)


@rewrite(
    "transpose",
    sample=lambda b, x: b.transpose(b.mul(b.exp(b.transpose(x, perm=(2, 0, 1))), 2), perm=(1, 0, 2)),
    types=(("f32[2,3,4]",), ("f64[2,3,1]",)),
)
def transposes_around_elementwise(m: Match) -> Any:
    """transpose, elementwise ops used once, transpose: one transpose before them, or none if the two cancel."""
    source = transposed(m, 0)
    if source is None or not source.chain:
        return None
    combined = tuple(source.perm[i] for i in m.attrs["perm"])
    x = source.x if combined == tuple(range(len(combined))) else m.b.transpose(source.x, perm=combined)
    return along(m.b, source.chain, x)
