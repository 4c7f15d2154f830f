"""Rough work of a group's elements, for deciding what is worth a thread and what is cheap to compute twice.

One unit is one simple arithmetic operation. Only orders of magnitude matter.
"""

from __future__ import annotations

from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, product
from fluxir.schedule.group import Group, shape_of

FREE = frozenset({"const", "dim", "broadcast", "reshape", "transpose", "stop_gradient", "iota", "bitcast"})
SLOW = {
    "div": 4,
    "sqrt": 4,
    "rsqrt": 5,
    "fmod": 15,
    "remainder": 15,
    "floordiv": 8,
    "pow": 40,
    "lgamma": 60,
    "atan2": 30,
    "erf": 20,
    "erfc": 30,
}
TRANSCENDENTAL = frozenset(
    (
        "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh cbrt sigmoid "
        "erf erfc lgamma pow atan2"
    ).split()
)
UNKNOWN_TRIPS = 64  # the guess for a loop whose length is a symbol


def op_cost(op: Op) -> int:
    """Work of one element of the op, without its operands."""
    if op.name in FREE:
        return 0
    if op.name == "iterate":
        return UNKNOWN_TRIPS * sum(op_cost(o) for k in op.blocks for o in k.ops)
    trips = _trips(op)
    if trips is not None:
        return max(1, trips)
    return SLOW.get(op.name, 12 if op.name in TRANSCENDENTAL else 1)


def _trips(op: Op) -> int | None:
    """Inner iterations of one element of a reduction, window or contraction."""

    def known(d: Dim) -> int:
        return d if isinstance(d, int) else UNKNOWN_TRIPS

    a = op.attrs
    if op.name == "dot":
        x = shape_of(op.operands[0])
        return known(product(x[i] for i in a["lhs_contract"]))
    if op.name == "conv":
        w = shape_of(op.operands[1])
        return 2 * known(product(w[1:]))
    if op.name == "reduce_window":
        return 3 * int(product(a["window"]))
    if op.defn.category == "reduce":
        x = shape_of(op.operands[0])
        axes = a["axes"] if "axes" in a else (a["axis"],)
        return known(product(x[i] for i in axes))
    return None


def element_cost(group: Group) -> int:
    """Work of one element of the outputs, each op counted once."""
    return max(1, len(group.args) + sum(op_cost(op) for op in group.ops))


def is_expensive(v: Value) -> bool:
    """Whether recomputing the value costs much more than a load."""
    return v.owner is not None and op_cost(v.owner) >= 8


__all__ = ["element_cost", "is_expensive", "op_cost"]
