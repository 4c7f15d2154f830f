"""What a template gets: one fused group, normalised.

Owns `Group` and `group_of`. Invariants of a group: its block is closed and holds no control flow; every constant in it
is uniform (one bit pattern) and so costs no memory; other constants became extra block arguments, whose arrays stand in
`constants` (they follow the op's own operands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import Location
from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.types import TensorType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Group:
    """A closed block to be computed by one template; operands of the op first, then `constants`, are its arguments."""

    block: Block
    kind: str
    name: str
    loc: Location | None = None
    constants: tuple[Array, ...] = ()

    @property
    def args(self) -> tuple[Value, ...]:
        return self.block.args

    @property
    def outs(self) -> tuple[Value, ...]:
        return self.block.outs

    @property
    def ops(self) -> tuple[Op, ...]:
        return self.block.ops

    def users(self) -> dict[Value, list[Op]]:
        """The ops of the group that read each value."""
        found: dict[Value, list[Op]] = {v: [] for v in self.args}
        for op in self.ops:
            for v in dict.fromkeys(op.operands):
                found.setdefault(v, []).append(op)
        return found


def uniform(a: Array) -> bool:
    """Whether all elements have one bit pattern (so 0.0 and -0.0 differ, and NaN equals itself)."""
    if a.size <= 1:
        return a.size == 1
    flat = np.ascontiguousarray(a).reshape(-1)
    return (
        flat[:1].tobytes() * flat.size == flat.tobytes()
        if a.nbytes < 4096
        else bool((_bits(flat) == _bits(flat)[0]).all())
    )


def _bits(flat: Array) -> Array:
    return flat.view(f"u{flat.dtype.itemsize}")


def _in_registers(op: Op) -> bool:
    """Whether a constant can be spelled in the code: uniform, and its element rule sees that (NaN is not equal to itself)."""
    a = op.attrs["value"]
    return uniform(a) and (a.size == 1 or bool(a.flat[0] == a.flat[0]))


def shape_of(v: Value) -> tuple[Dim, ...]:
    assert isinstance(v.type, TensorType)
    return v.type.shape


def group_of(op: Op) -> tuple[Group, list[Value]]:
    """The group of a `fused` op or of a raw op, and the op's operands that it reads (constants are taken inside)."""
    if op.name == "fused":
        (region,) = op.blocks
        inputs, ops, outs, params = list(op.operands), region.ops, region.outs, region.args
        kind, name = op.attrs["kind"], op.attrs["name"] or "fused"
    else:
        inputs = list(dict.fromkeys(op.operands))
        ops, outs, params, kind, name = (op,), op.results, tuple(inputs), op.name, op.name
    b = Builder()
    env: dict[Value, Value] = {}
    args: list[Value] = []
    kept: list[Value] = []
    by_value: dict[Value, Value] = {}
    for value, param in zip(inputs, params):
        if value.owner is not None and value.owner.name == "const" and _in_registers(value.owner):
            env[param] = b.clone(value.owner, [])[0]
            continue
        if value not in by_value:
            by_value[value] = Value(param.type, None, len(args), value.name or param.name)
            args.append(by_value[value])
            kept.append(value)
        env[param] = by_value[value]
    constants: list[Array] = []
    for inner in ops:
        if inner.name == "const" and not _in_registers(inner):
            env[inner.result] = Value(inner.result.type, None, len(args), "table")
            args.append(env[inner.result])
            constants.append(inner.attrs["value"])
        else:
            clone_ops(b, [inner], env)
    block = Block(args, b.ops, [env.get(v, v) for v in outs])
    return Group(block, kind, name, op.loc, tuple(constants)), kept


def with_block(group: Group, block: Block) -> Group:
    return Group(block, group.kind, group.name, group.loc, group.constants)


def anchors(group: Group, names: Sequence[str]) -> list[Op]:
    """The ops of the group with one of these names, in order."""
    return [op for op in group.ops if op.name in names]
