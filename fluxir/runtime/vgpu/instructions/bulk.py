"""Bulk copies: `cp.async.bulk` and `cp.reduce.async.bulk`, with and without tensor maps, and their groups; `st.async` and
`red.async`, which end at an mbarrier too. `memory` declares the instructions and hands them over. What becomes of a copy that
is under way is in `vgpu.bulk`.

Source: PTX ISA 9.0, sections 9.7.9.25.4 and 9.7.9.25.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..atomics import update
from ..bulk import PIECE, Merge, Source, check_shared_target, check_target, places_of, read, thread_pieces
from ..isa import Form, reject
from ..mbarriers import Debt
from ..memory import ALLOCATED, GLOBAL_BASE, WRITTEN, Region
from ..ptx import Address, Immediate, Operand, Vector, type_bytes
from ..tensor_maps import SWIZZLES, TensorMap, decode, swizzled
from ..values import Array
from .memory import operation

if TYPE_CHECKING:
    from ..code import Step
    from ..scope import Read, Scope
    from ..wave import Mask, Wave

__all__ = ["arrive_when_copied", "bulk_step", "send_step"]


def bulk_step(form: Form, scope: Scope) -> Step:
    """A bulk copy, or a commit of or wait for a group of them."""
    x = form.instruction
    if form.has("commit_group"):
        return lambda w, m: w.bulk.commit(m)
    if form.has("wait_group"):
        newest, reads_only = x.operands[0], form.has("read")
        if not isinstance(newest, Immediate):
            reject(x, "a number of groups is expected", "FX0711")
        return lambda w, m: w.bulk.wait(m, newest.value, reads_only)
    if form.has("prefetch"):
        return lambda w, m: None
    if form.has("tile::gather4") or form.has("tile::scatter4") or form.has("cp_mask"):
        form.reject("this kind of bulk copy is not executed")
    spaces = [f for f in form.flags if f in ("global", "shared::cta", "shared::cluster")]
    if len(spaces) != 2:
        reject(x, "two spaces are expected", "FX0711")
    return _Copy(form, scope, spaces).step()


class _Copy:
    """One copying instruction, taken apart."""

    def __init__(self, form: Form, scope: Scope, spaces: list[str]) -> None:
        x = self.x = form.instruction
        self.form, self.scope, (self.to, self.source) = form, scope, spaces
        operands = list(x.operands)
        self.tensor = form.has("tensor")
        self.coordinates: list[Read] = []
        self.offsets: list[Read] = []
        first, second = operands.pop(0), operands.pop(0)
        self.to_address = self._address(first, self.to)
        self.source_address = self._address(second, self.source)
        self.size = scope.read(operands.pop(0), "u32", x) if not self.tensor else None
        self.barrier = None
        if form.has("mbarrier::complete_tx::bytes"):
            self.barrier = scope.address(operands.pop(0), "shared", x)
        if operands and isinstance(operands[0], Vector):
            self.offsets = [scope.read(o, "u32", x) for o in scope.items(operands.pop(0))]
        self.cast = scope.read(operands.pop(0), "b16", x) if form.has("multicast::cluster") else None
        if self.to == "global" and self.barrier is not None or self.to != "global" and self.barrier is None:
            reject(x, "copies into shared memory end at an mbarrier, others in a group", "FX0711")

    def _address(self, operand: Operand, space: str) -> Read:
        x = self.x
        if isinstance(operand, Address) and operand.coordinates is not None:
            self.coordinates = [self.scope.read(o, "s32", x) for o in operand.coordinates.items]
            return self.scope.address(replace(operand, coordinates=None), "generic", x)
        return self.scope.address(operand, "global" if space == "global" else "shared", x)

    def step(self) -> Step:
        return self._store if self.to == "global" else self._load

    # ---- what every thread copies
    def _map(self, w: Wave, kind: str, at: int, thread: int) -> TensorMap | None:
        """The tensor map at an address."""
        m = thread_pieces(w, thread, 8)
        good = w.memory.good(kind, m, at + np.arange(0, 128, 16), 16, ALLOCATED | WRITTEN, self.x)
        found = None
        if good is None or good.all():
            where = int(w.memory.place(kind, m, np.full(8, at))[0])
            found = decode(w.memory.region(kind).data[where : where + 128].tobytes())
        if found is None:
            w.report(
                "uninitialised",
                "there is no tensor map",
                self.x,
                [thread],
                at + (GLOBAL_BASE if kind == "global" else 0),
            )
        elif at % 64:
            w.report("misaligned", f"the tensor map at {at + GLOBAL_BASE:#x}: not a multiple of 64", self.x, [thread])
        elif found.rank != len(self.coordinates):
            w.report(
                "out-of-bounds",
                f"{len(self.coordinates)} coordinates for a tensor of {found.rank} dimensions",
                self.x,
                [thread],
            )
            found = None
        return found

    def _box(self, w: Wave, of: TensorMap, thread: int) -> tuple[Array, Array]:
        """(offsets in global memory, which are inside of the tensor) of the elements that a thread copies."""

        def one(read: Read, kind: type) -> int:
            v = np.asarray(read(w))
            return int((v if v.ndim == 0 else v[thread]).astype(kind))

        at = [one(r, np.int32) for r in self.coordinates]
        if of.im2col:
            offset, inside = of.columns(at, [one(r, np.uint16) for r in self.offsets] or [0] * (of.rank - 2))
        else:
            offset, inside = of.tile(at)
        return offset + (of.address - GLOBAL_BASE), inside

    def _bytes(self, w: Wave, m: Mask) -> dict[int, int]:
        """How many bytes every thread copies, where it is no tensor."""
        if self.size is None:
            return {}
        n = m.picked(self.size(w)).astype(np.int64)
        odd = n % PIECE != 0
        if odd.any():
            w.report("misaligned", f"{int(n[odd][0])} bytes: not a multiple of {PIECE}", self.x, m.index[odd])
        return dict(zip(m.index.tolist(), (n // PIECE * PIECE).tolist()))

    def _fetch(
        self, w: Wave, thread: int, kind: str, at: int, nbytes: int
    ) -> tuple[Array, Source, TensorMap | None] | None:
        """The data of a thread's copy into shared memory, uint8[pieces, 16], and where they are from."""
        if not self.tensor:
            return *read(w, kind, thread, at + np.arange(0, nbytes, PIECE), PIECE, self.x), None
        of = self._map(w, kind, at, thread)
        if of is None:
            return None
        offset, inside = self._box(w, of, thread)
        data = np.empty((len(offset), of.itemsize), np.uint8)
        data[:] = np.frombuffer(of.outside.to_bytes(of.itemsize, "little"), np.uint8)
        data[inside], source = read(w, "global", thread, offset[inside], of.itemsize, self.x)
        if of.flushes:
            words = data.view(np.uint32)
            words[(words & 0x7F800000) == 0] &= np.uint32(0x80000000)
        return data.reshape(-1, PIECE), source, of

    def _places(self, kind: str, at: int, count: int, of: TensorMap | None, w: Wave, thread: int) -> Array:
        """The offsets of the pieces in shared memory."""
        if of is not None and at % 128:
            w.report("misaligned", f"a box at {at} of shared memory: not a multiple of 128", self.x, [thread], at)
        linear = at + np.arange(count) * PIECE
        if of is None or not of.swizzle:
            return linear
        base = linear // w.memory.stride * w.memory.stride if kind == "cluster" else np.zeros_like(linear)
        return base + swizzled(linear - base, SWIZZLES[of.swizzle])

    # ---- into shared memory
    def _load(self, w: Wave, m: Mask) -> None:
        x = self.x
        assert self.barrier is not None
        combine = merging(self.form, "shared") if self.form.has("reduce") else None
        barriers = self._barriers(w, m)
        sources, targets = (
            places_of(w, m, self._space(self.source), self.source_address(w)),
            places_of(w, m, "shared", self.to_address(w)),
        )
        sizes = self._bytes(w, m)
        for thread, (kind, at) in targets.items():
            barrier = barriers.get(thread)
            fetched = self._fetch(w, thread, *sources[thread], sizes.get(thread, 0))
            if fetched is None or barrier is None:
                continue
            data, source, of = fetched
            for to_kind, start, at_barrier in self._receivers(w, thread, kind, at, barrier):
                at_pieces = self._places(to_kind, start, len(data), of, w, thread)
                places = check_shared_target(w, to_kind, thread, at_pieces, x, combine is not None)
                if places is not None:
                    w.bulk.deliver(np.array([thread]), places, data, at_barrier, x, source, combine)

    def _space(self, space: str) -> str:
        return "generic" if self.tensor else "global" if space == "global" else "shared"

    def _barriers(self, w: Wave, m: Mask) -> dict[int, int]:
        assert self.barrier is not None
        found = w.mbarriers.find(m, "shared", self.barrier(w), self.x)
        return dict(zip(found[0].index.tolist(), found[1].tolist())) if found is not None else {}

    def _receivers(self, w: Wave, thread: int, kind: str, at: int, barrier: int) -> Iterator[tuple[str, int, int]]:
        """(kind, offset, mbarrier) of everyone whom the data go to: the same places in the blocks of a multicast."""
        if self.cast is None:
            yield kind, at, barrier
            return
        v = np.asarray(self.cast(w))
        bits = int(v if v.ndim == 0 else v[thread])
        size, stride = w.launch.kernel.cluster_size, w.memory.stride
        own = int(w.block[thread])
        inside = at % stride
        for rank in range(16):
            if not bits >> rank & 1:
                continue
            if rank >= size:
                w.report("out-of-bounds", f"block {rank} of a cluster of {size}", self.x, [thread])
                continue
            block = own // size * size + rank
            yield "cluster", block * stride + inside, block * stride + barrier % stride

    # ---- out of shared memory
    def _store(self, w: Wave, m: Mask) -> None:
        x, form = self.x, self.form
        sources = places_of(w, m, "shared", self.source_address(w))
        targets = places_of(w, m, self._space("global"), self.to_address(w))
        sizes = self._bytes(w, m)
        what = "atomic" if form.has("reduce") else "store"
        for thread, (kind, at) in sources.items():
            to_kind, to_at = targets[thread]
            of = None
            if self.tensor:
                of = self._map(w, to_kind, to_at, thread)
                if of is None:
                    continue
                offset, inside = self._box(w, of, thread)
                width, count = of.itemsize, of.box_elements * of.itemsize // PIECE
            else:
                count, width = sizes[thread] // PIECE, PIECE
                offset, inside = to_at + np.arange(count) * PIECE, np.ones(count, bool)
            places = self._places(kind, at, count, of, w, thread)
            raw, source = read(w, kind, thread, places, PIECE, x)
            data = raw.reshape(-1, width)[inside]
            offset = offset[inside]
            good = check_target(w, thread, offset, width, x, what) if len(offset) else None
            if good is not None:
                offset, data = offset[good], data[good]
            w.bulk.store(thread, source, self._writer(w, of, offset, data), x)

    def _writer(self, w: Wave, of: TensorMap | None, offset: Array, data: Array) -> Callable[[], None]:
        """What writes the data (uint8[n, width]) to offsets in global memory, or combines them with what is there."""
        region = w.memory.heap.region
        if self.form.has("reduce"):
            merge = merging(self.form if of is None else replace(self.form, types=(of.element,)), "global")
            return lambda: merge(region, offset, data)
        where = offset[:, None] + np.arange(data.shape[1])

        def put() -> None:
            region.data[where] = data
            region.shadow[where] = ALLOCATED | WRITTEN

        return put


def merging(form: Form, space: str) -> Merge:
    """The reduction that a form names, for data in bytes."""
    combine, associative, view = operation(form, space)

    def merge(region: Region, at: Array, data: Array) -> None:
        size = view.itemsize
        where = (at[:, None] + np.arange(0, data.shape[1], size)).reshape(-1) // size
        operand = np.ascontiguousarray(data).reshape(-1).view(view)
        update(region.units(size).view(view), where, operand, combine, associative)
        region.states(size)[where] = int.from_bytes(bytes([ALLOCATED | WRITTEN]) * size, "little")

    return merge


def send_step(form: Form, scope: Scope) -> Step:
    """`st.async` and `red.async`: every thread stores into (or adds to) shared memory of its cluster, and an mbarrier there
    counts the bytes."""
    x = form.instruction
    target, value, bar = x.operands
    unit, bits = type_bytes(form.type), f"b{8 * type_bytes(form.type)}"
    address, barrier = scope.address(target, "shared", x), scope.address(bar, "shared", x)
    reads = [scope.read(o, form.type if isinstance(o, Immediate) else bits, x) for o in scope.items(value)]
    merge = merging(form, "shared") if x.name == "red" else None
    width, need = unit * len(reads), ALLOCATED | WRITTEN if merge else ALLOCATED

    def run(w: Wave, m: Mask) -> None:
        found = w.mbarriers.find(m, "shared", barrier(w), x)
        if found is None:
            return
        at_barrier = np.full(w.size, -1)
        at_barrier[found[0].index] = found[1]
        values = [np.broadcast_to(r(w), (w.size,)) for r in reads]
        for kind, part, at in w.memory.parts("shared", address(w), m):
            good = w.memory.good(kind, part, at, width, need, x)
            fine = at_barrier[part.index] >= 0
            fine = fine if good is None else fine & good
            where = w.memory.place(kind, part, np.where(fine, at, 0))
            w.counters.access(kind, "atomic" if merge else "store", part, at, width)
            if w.memory.checks and fine.all():
                w.races.store(where, width, part, x, atomic=merge is not None)
            data = np.stack([v[part.index] for v in values], axis=1).view(np.uint8)
            to = np.where(fine, at_barrier[part.index], -1)
            for one in np.unique(to[fine]).tolist():
                rows = to == one
                w.bulk.deliver(part.index[rows], where[rows], data[rows], one, x, None, merge)

    return run


def arrive_when_copied(form: Form, scope: Scope) -> Step:
    """`cp.async.mbarrier.arrive`: an arrival at an mbarrier when all `cp.async` of the thread so far have arrived. Unless
    `.noinc`, the phase takes one arrival more for it."""
    x = form.instruction
    space = "shared" if form.one_of("shared", "shared::cta") else "generic"
    address, extra = scope.address(x.operands[0], space, x), not form.has("noinc")

    def run(w: Wave, m: Mask) -> None:
        found = w.mbarriers.find(m, space, address(w), x)
        if found is None:
            return
        part, where = found
        if extra:
            w.mbarriers.expect_arrivals(part, where, x)
        w.races.channel(part.bits, part.spread(where), True, False)
        for barrier in np.unique(where).tolist():
            lanes = part.index[where == barrier]
            w.mbarriers.owe(barrier, Debt(len(lanes), 0, w.copies.landing(lanes)))

    return run
