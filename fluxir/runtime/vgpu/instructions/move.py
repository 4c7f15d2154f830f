"""Moves: copies of registers, and packing them into wider ones and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..isa import Form, Signature, lanewise
from ..ptx import Vector, type_bytes
from ..values import Array, dtype


def _types(form: Form) -> Signature:
    """`mov.b64 d, {a, b}` packs, `mov.b64 {d, e}, a` unpacks; the parts have equal widths."""
    kind, packed, unpacked = form.type, len(form.sources), len(form.destinations)
    operands = form.instruction.operands
    if len(operands) == 2 and isinstance(operands[1], Vector):
        return kind, (f"b{type_bytes(kind) * 8 // packed}",) * packed
    if operands and isinstance(operands[0], Vector):
        return f"b{type_bytes(kind) * 8 // unpacked}", (kind,)
    return kind, (kind,)


@lanewise("mov.{pred b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64}", "move", signature=_types, section="9.7.9.2")
def mov(form: Form) -> Any:
    """The operand; with braces, its parts or the whole of them, the first part lowest."""
    if len(form.destinations) > 1:
        return lambda a: unpack(a, len(form.destinations))
    if len(form.sources) > 1:
        return lambda *parts: pack(parts, form.type)
    return lambda a: a


def pack(parts: tuple[Array, ...], kind: str) -> Array:
    """The register made up of `parts`, the first one lowest."""
    whole = dtype(kind)
    width = whole.itemsize * 8 // len(parts)
    result = np.asarray(parts[0]).astype(whole)
    for i, part in enumerate(parts[1:], 1):
        result = result | (np.asarray(part).astype(whole) << whole.type(width * i))
    return result


def unpack(whole: Array, count: int) -> tuple[Array, ...]:
    """`count` parts of a register, the lowest first."""
    kind = np.asarray(whole).dtype
    part = np.dtype(f"u{kind.itemsize // count}")
    return tuple((whole >> kind.type(part.itemsize * 8 * i)).astype(part) for i in range(count))
