"""Blocks of a cluster: addresses in each other's shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..isa import Form, machine
from ..memory import RANK_SHIFT, SHARED_BASE
from ..ptx import Address, Operand, Symbol
from ..values import Array, dtype

if TYPE_CHECKING:
    from ..code import Step
    from ..ptx import Instruction
    from ..scope import Scope
    from ..wave import Mask, Wave

_OFFSET = (1 << RANK_SHIFT) - 1


def _shared(form: Form, scope: Scope, operand: Operand, x: Instruction) -> Any:
    """A reader of an address in shared memory, without the window of generic addresses, as uint64."""
    plain = form.has("shared::cluster")
    if isinstance(operand, Symbol | Address):
        read = scope.address(operand, "shared" if plain else "generic", x)
    else:
        read = scope.read(operand, form.type, x)
    return lambda w: np.asarray(read(w)).astype(np.uint64) & np.uint64((1 << 40) - 1)


@machine("mapa", "convert", "u32 u64", "shared::cluster", section="9.7.9.22")
def mapa(form: Form, scope: Scope) -> Step:
    """The address of the same place in the shared memory of the block with a given rank."""
    x = form.instruction
    kind = dtype(form.type)
    read, rank = _shared(form, scope, x.operands[1], x), scope.read(x.operands[2], "u32", x)
    write = scope.write(x.operands[0], form.type, x)
    window = np.uint64(0 if form.has("shared::cluster") else SHARED_BASE)

    def run(w: Wave, m: Mask) -> None:
        block = np.asarray(rank(w)).astype(np.uint64)
        size = w.launch.kernel.cluster_size
        outside: Array = m.bits & np.broadcast_to(block >= np.uint64(size), m.bits.shape)
        if outside.any():
            first = int(np.broadcast_to(block, m.bits.shape)[np.flatnonzero(outside)[0]])
            w.report("out-of-bounds", f"block {first} of a cluster of {size}", x, np.flatnonzero(outside))
        far = (read(w) & np.uint64(_OFFSET)) | (block + np.uint64(1)) << np.uint64(RANK_SHIFT) | window
        write(w, far.astype(kind), m)

    return run


@machine("getctarank", "convert", "u32 u64", "shared::cluster", section="9.7.9.23")
def getctarank(form: Form, scope: Scope) -> Step:
    """The rank of the block in whose shared memory an address is."""
    x = form.instruction
    read, write = _shared(form, scope, x.operands[1], x), scope.write(x.operands[0], "u32", x)

    def run(w: Wave, m: Mask) -> None:
        named = (read(w) >> np.uint64(RANK_SHIFT)).astype(np.uint32)
        own = np.asarray(w.special_register("cluster_ctarank")).astype(np.uint32)
        write(w, np.where(named == 0, own, named - np.uint32(1)), m)

    return run
