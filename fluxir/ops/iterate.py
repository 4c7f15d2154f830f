"""iterate: a loop for each element, which goes round as often as that element needs.

What `vmap` makes of a `while` over scalars, or a program of a `while` over arrays with masks, is such a loop (the pass
`iterate` finds them). It is elementwise, so it fuses with what is around it, and a kernel runs it on a vector of
elements until none of them goes on (`codegen/iterate.py`). It is made behind all transforms and has no rules for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.opdef import op
from fluxir.ir.types import BOOL, TensorType, Type, VectorType
from fluxir.ops.rules import elementwise_element, elementwise_type

__all__: list[str] = []


def _iterate(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    cond, body = blocks
    scalars = [TensorType(x.dtype) for x in t]
    for block, outs in ((cond, [BOOL]), (body, scalars[: a.carry])):
        if [v.type for v in block.args] != scalars or [v.type for v in block.outs] != outs:
            shown = ", ".join(map(str, scalars))
            raise error("FX0213", f"iterate: the regions work on the elements of the operands, ({shown})")
    if not 0 <= a.result < a.carry <= len(t):
        raise error("FX0213", f"iterate: there is no carry {a.result}")
    carried = scalars[a.result].dtype
    if all(isinstance(x, VectorType) for x in t):
        return [VectorType(carried, t[0].lanes)]  # type: ignore[union-attr]
    shape = elementwise_type("iterate", [TensorType(carried, x.shape) for x in t if isinstance(x, TensorType)])
    return [TensorType(carried, shape.shape)] if isinstance(shape, TensorType) else [shape]


def _eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    arrays = np.broadcast_arrays(*args)
    out = np.empty(arrays[0].shape, arrays[a.result].dtype)
    cond, body = o.blocks
    for at in np.ndindex(out.shape):
        state = [x[at] for x in arrays]
        carry, consts = state[: a.carry], state[a.carry :]
        while bool(it.run(cond, [*carry, *consts])[0]):
            carry = it.run(body, [*carry, *consts])
            it.steps += 1
        out[at] = carry[a.result]
    return [out]


op(
    "iterate",
    _iterate,
    attrs={"carry": "int", "result": "int"},
    level="both",
    category="elementwise",
    regions=2,
    eval=_eval,
    element=elementwise_element,
    constant="made after all derivatives",
    doc=(
        "iterate(carry..., consts...) {cond} {body}: for each element, run body while cond yields true; the last value of "
        "carry `result`. The regions work on scalars."
    ),
)
