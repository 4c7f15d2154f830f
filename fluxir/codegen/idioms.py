"""Loops that only move memory: `for i: dst[.., i + a] = src[.., i + b]` or `= 0` is one memcpy or memset.

LLVM would find most of them itself, but only in its optimiser, which kernels on vectors are spared (see backend.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxir.ir.core import Op, Value
from fluxir.ir.types import TensorType

__all__ = ["Move", "move_of"]


@dataclass(frozen=True)
class Move:
    """A loop that copies contiguous elements (`load` given) or clears them. `index`: the loop's index arithmetic."""

    index: tuple[Op, ...]
    store: Op
    load: Op | None


def move_of(op: Op) -> Move | None:
    """What a `for` moves, or None where it does anything else."""
    if len(op.operands) != 3 or not _is_one(op.operands[2]):
        return None
    (block,) = op.blocks
    load = store = None
    index = []
    for o in block.ops:
        if o.name == "load" and load is None and isinstance(o.result.type, TensorType):
            load = o
        elif o.name == "store" and store is None:
            store = o
        elif o.name in ("const", "dim", "add", "sub", "mul") and not o.blocks:
            index.append(o)
        else:
            return None
    if store is None or store.operands[1].dtype.is_bool:
        return None
    counter = block.args[0]
    varying = {counter}
    for o in index:
        if any(v in varying for v in o.operands):
            varying.add(o.result)
    stride_one = {counter}
    for o in index:
        if o.name == "add" and sum(v in varying for v in o.operands) == 1 and any(v in stride_one for v in o.operands):
            stride_one.add(o.result)
        elif o.name == "sub" and o.operands[0] in stride_one and o.operands[1] not in varying:
            stride_one.add(o.result)
        elif o.name == "mul" and any(v in stride_one for v in o.operands) and any(map(_is_one, o.operands)):
            stride_one.add(o.result)

    def contiguous(mem: Value, indices: tuple[Value, ...]) -> bool:
        inside = mem.owner is not None and mem.owner in block.ops
        return (
            not inside and bool(indices) and indices[-1] in stride_one and not any(i in varying for i in indices[:-1])
        )

    if not contiguous(store.operands[0], store.operands[2:]):
        return None
    value = store.operands[1]
    if load is None:
        return Move(tuple(index), store, None) if _is_zero(value) else None
    source = load.operands[0]
    if (
        value is not load.result
        or not contiguous(source, load.operands[1:])
        or _root(source) is _root(store.operands[0])
    ):
        return None
    return Move(tuple(index), store, load)


def _root(mem: Value) -> Value:
    while mem.owner is not None and mem.owner.name in ("subview", "reinterpret", "view"):
        mem = mem.owner.operands[0]
    return mem


def _is_one(v: Value) -> bool:
    return v.owner is not None and v.owner.name == "const" and bool((v.owner.attrs.value == 1).all())


def _is_zero(v: Value) -> bool:
    """Whether a constant is 0 in all its bits (-0.0 is not)."""
    return v.owner is not None and v.owner.name == "const" and not any(v.owner.attrs.value.tobytes())
