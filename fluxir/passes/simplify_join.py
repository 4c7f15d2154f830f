"""Simplification of sums of padded parts: the derivative of what was split or sliced apart is what is joined again."""

from __future__ import annotations

from typing import Any

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, prove_equal, prove_le
from fluxir.ops.rules import normal_axis
from fluxir.passes.rules import Match, RuleSet, scalar_of
from fluxir.passes.simplify_shape import no_interior, shape

RULES = RuleSet()
MOST = 32  # parts of a sum that are looked at


@RULES.rewrite(
    "add",
    sample=lambda b, x, y, z: [
        b.add(_padded(b, x, 2, 5), _padded(b, y, 0, 8)),
        b.add(b.add(_padded(b, x, 0, 7), _padded(b, z, 5, 3)), _padded(b, y, 3, 5)),
    ],
    types=(("f32[4,3]", "f32[4,2]", "f32[4,2]"), ("i32[1,3]", "i32[1,2]", "i32[1,2]")),
)
def sum_of_neighbouring_pads(m: Match) -> Any:
    """Parts that are padded with zeros to stand side by side along one axis, and added up, are a concat. An element and the
    zeros that were added to it are the element plus 0, which is not the element where that is -0.0."""
    parts: list[Op] = []
    if not all(_collect(v, parts, m, m.only_use(i)) for i, v in enumerate(m.operands)) or len(parts) > MOST:
        return None
    axes = {i for p in parts for i, (lo, hi) in enumerate(zip(p.attrs["low"], p.attrs["high"], strict=True))
            if lo != 0 or hi != 0}  # fmt: skip
    if len(axes) != 1:
        return None
    (axis,) = axes
    row = _side_by_side(parts, axis)
    if row is None:
        return None
    whole = m.b.concat(*[x for p in row for x in _terms(m, p.operands[0], axis)], axis=axis)
    low, high = row[0].attrs["low"], row[-1].attrs["high"]
    return whole if low[axis] == 0 and high[axis] == 0 else m.b.pad(whole, row[0].operands[1], low=low, high=high)


def _terms(m: Match, x: Value, axis: int) -> list[Value]:
    """What `x` plus 0 is the concat of: of what this rule has joined already, that is itself."""
    op = x.owner
    if op is not None and op.name == "concat" and normal_axis("concat", op.attrs["axis"], len(shape(x))) == axis:
        return [t for v in op.operands for t in _terms(m, v, axis)]
    zero = scalar_of(op.operands[1]) if op is not None and op.name == "add" else None
    return [x if zero is not None and not any(zero.tobytes()) else m.b.add(x, 0)]


def _padded(b: Any, x: Value, low: int, high: int) -> Any:
    return b.pad(x, b.const(0, like=x), low=(0, low), high=(0, high))


def _collect(v: Value, parts: list[Op], m: Match, alone: bool) -> bool:
    """The zero pads that a sum adds up; False where it adds anything else, or a partial sum that others need too."""
    op = v.owner
    if op is None or v.type != m.type or len(parts) > MOST:
        return False
    if op.name == "add":
        return alone and all(_collect(x, parts, m, m.uses.get(x, 1) == 1) for x in op.operands)
    if op.name != "pad" or not no_interior(op):
        return False
    filler = scalar_of(op.operands[1])
    amounts = (*op.attrs["low"], *op.attrs["high"])
    if filler is None or any(filler.tobytes()) or not all(prove_le(0, d) for d in amounts):
        return False
    parts.append(op)
    return True


def _side_by_side(parts: list[Op], axis: int) -> list[Op] | None:
    """The pads in the order in which their operands follow each other along `axis`, without a gap; None where they do not."""

    def after(p: Op) -> Dim:
        return p.attrs["low"][axis] + shape(p.operands[0])[axis]  # type: ignore[no-any-return]

    rest = list(parts)
    row = [rest.pop(0)]
    while rest:
        for p in rest:
            if prove_equal(p.attrs["low"][axis], after(row[-1])):
                row.append(p)
                break
            if prove_equal(after(p), row[0].attrs["low"][axis]):
                row.insert(0, p)
                break
        else:
            return None
        rest.remove(p)
    return row
