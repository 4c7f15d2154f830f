"""Bulk copies between global and shared memory that are under way. The instructions are in `instructions.bulk`.

A copy is one thread's. Its source is read when it is issued, and is READING in the shadow until the copy has been waited for (or
its reads). Into shared memory, the bytes are PENDING until a thread has seen the end of the mbarrier phase that counts them;
into global memory, they are written when the thread waits for their group. Bytes are handled as pieces of 16, which is what
sizes and addresses are multiples of; elements of a tensor in global memory one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .mbarriers import Debt
from .memory import ALLOCATED, PENDING, READING, WRITTEN, Region
from .ptx import Instruction
from .values import Array

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = [
    "PIECE",
    "BulkCopies",
    "Merge",
    "Source",
    "check_shared_target",
    "check_target",
    "pieces",
    "places_of",
    "read",
    "thread_pieces",
]

PIECE = 16
Merge = Callable[[Region, Array, Array], None]
"""Combine data (uint8[n, width]) with what is at offsets in a region."""


class Pieces:
    """Pieces of memory that threads (`index`, one for each piece) touch in one instruction, as the checks and counters take the
    threads of a mask."""

    warp_count = 1

    def __init__(self, wave: Wave, index: Array) -> None:
        self.wave, self.index, self.count = wave, index, len(index)

    def pick(self, value: Any) -> Any:
        return value if np.ndim(value) == 0 else value[self.index]


def pieces(wave: Wave, index: Array) -> Mask:
    return cast("Mask", Pieces(wave, index))


def thread_pieces(wave: Wave, thread: int, count: int) -> Mask:
    return pieces(wave, np.full(count, thread))


@dataclass(frozen=True)
class Source:
    """What a copy reads: bytes of a region, all that are at most `width` after an offset."""

    region: Region
    at: Array
    width: int

    def mark(self, on: bool) -> None:
        """Set or clear READING in the shadow."""
        spread = self.at[:, None] + np.arange(self.width)
        if on:
            self.region.shadow[spread] |= READING
        else:
            self.region.shadow[spread] &= np.uint8(255 - READING)


@dataclass
class _Store:
    """A copy out of shared memory that its thread has not waited for. `apply` writes; it is called once."""

    instruction: Instruction
    thread: int
    group: int
    source: Source
    apply: Callable[[], None]
    reading: bool = True


class BulkCopies:
    """The bulk copies of a wave that are under way."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.group = np.zeros(wave.size, np.int64)  # that a thread's next copy out belongs to
        self.stores: list[_Store] = []
        self.loads: dict[int, tuple[Instruction, Array, Source | None]] = {}  # by a number: (instruction, threads, ...)
        self.serial = 0

    @property
    def busy(self) -> bool:
        return bool(self.loads) or any(s.reading for s in self.stores)

    # ---- into shared memory
    def deliver(
        self, threads: Array, places: Array, data: Array, barrier: int, x: Instruction,
        source: Source | None = None, combine: Merge | None = None,
    ) -> None:  # fmt: skip
        """uint8[n, width] of the threads go to the places (in the region of shared memory) when the mbarrier's phase has ended:
        they replace what is there, or `combine(units, index, data)` adds them to it."""
        w = self.wave
        spread = places[:, None] + np.arange(data.shape[1])
        if source is not None:
            source.mark(True)
        if combine is None:
            w.memory.shared.shadow[spread] |= PENDING
        self.serial, mine = self.serial + 1, self.serial
        self.loads[mine] = (x, threads, source)
        w.memory.pending_copies = True

        def settle() -> None:
            if source is not None:
                source.mark(False)
            if combine is None:
                w.memory.shared.data[spread] = data
                w.memory.shared.shadow[spread] = ALLOCATED | WRITTEN
            else:
                combine(w.memory.shared, places, data)
            del self.loads[mine]
            self.idle()

        w.mbarriers.owe(barrier, Debt(0, data.size, settle))
        bits = np.zeros(w.size, bool)
        bits[threads] = True
        w.races.channel(bits, np.asarray(barrier), True, False)

    # ---- out of shared memory
    def store(self, thread: int, source: Source, apply: Callable[[], None], x: Instruction) -> None:
        """A thread's copy; `apply` writes the data."""
        source.mark(True)
        self.wave.memory.pending_copies = True
        self.stores.append(_Store(x, thread, int(self.group[thread]), source, apply))

    def commit(self, m: Mask) -> None:
        self.group[m.index] += 1

    def wait(self, m: Mask, newest: int, reads_only: bool) -> None:
        """All groups but the `newest` ones of each thread have been read, and unless `reads_only` written."""
        left = []
        for s in self.stores:
            if not m.bits[s.thread] or s.group >= self.group[s.thread] - newest:
                left.append(s)
                continue
            self._read(s)
            if reads_only:
                left.append(s)
            else:
                s.apply()
        self.stores = left
        self.idle()

    def _read(self, s: _Store) -> None:
        if s.reading:
            s.reading = False
            s.source.mark(False)

    def idle(self) -> None:
        """Let the checks know when nothing is under way any more."""
        w = self.wave
        if not self.busy and not w.copies.pending and not w.warpgroups.products:
            w.memory.pending_copies = False

    def finish(self) -> None:
        """The blocks have ended: what is still under way was not waited for, or only its reads were."""
        w = self.wave
        for s in self.stores:
            s.apply()
            if s.reading:
                w.report("async-copy", "the block ends before the copy has read its shared memory: nobody waited for it",
                         s.instruction, [s.thread])  # fmt: skip
        for x, threads, _ in self.loads.values():
            w.report("async-copy", "the copy was never waited for", x, threads)

    def abandon(self) -> None:
        """The wave is over, however it ended: nothing reads global memory any more."""
        for _, _, source in self.loads.values():
            if source is not None:
                source.mark(False)


# ---- reading and writing, of one thread


def read(w: Wave, kind: str, thread: int, at: Array, width: int, x: Instruction) -> tuple[Array, Source]:
    """uint8[len(at), width]: what lies at offsets in global memory or in a block's shared memory. Bad places give zeros."""
    if not len(at):
        return np.zeros((0, width), np.uint8), Source(w.memory.region(kind), at, width)
    memory, m = w.memory, thread_pieces(w, thread, len(at))
    good = memory.good(kind, m, at, width, ALLOCATED | WRITTEN, x)
    safe = at if good is None else np.where(good, at, 0)
    where = memory.place(kind, m, safe)
    data = memory.region(kind).data[where[:, None] + np.arange(width)]
    if good is not None:
        data[~good] = 0
    if kind == "global":
        w.counters.access("global", "load", m, where, width)
        if memory.global_races is not None:
            memory._global(m, where, width, x, "load")
    else:
        w.counters.bulk(f"{kind} load", len(at) * width)
        if memory.checks:
            memory.check_fenced(m, where, width, x)
            w.races.load(where, width, m, x)
    return data, Source(memory.region(kind), where if good is None else where[good], width)


def check_target(w: Wave, thread: int, at: Array, width: int, x: Instruction, what: str) -> Array | None:
    """Check a write to offsets in global memory: which are good, None where all are."""
    memory, m = w.memory, thread_pieces(w, thread, len(at))
    good = memory.good("global", m, at, width, ALLOCATED, x)
    if good is not None and not good.all():
        return good
    w.counters.access("global", what, m, at, width)
    if memory.checks:
        memory._writable(m, at, x)
        if memory.global_races is not None:
            memory._global(m, at, width, x, what)
    return good


def check_shared_target(
    w: Wave, kind: str, thread: int, at: Array, x: Instruction, merges: bool = False
) -> Array | None:
    """The places in the region of shared memory for pieces that go to the offsets `at`; None where they are not all there.
    `merges`: they are combined with what is there."""
    memory, m = w.memory, thread_pieces(w, thread, len(at))
    good = memory.good(kind, m, at, PIECE, ALLOCATED | WRITTEN if merges else ALLOCATED, x)
    w.counters.bulk(f"{kind} store", len(at) * PIECE)
    if good is not None and not good.all():
        return None
    where = memory.place(kind, m, at)
    if memory.checks:
        w.races.store(where, PIECE, m, x, atomic=merges)
    return where


def places_of(w: Wave, m: Mask, space: str, address: Any) -> dict[int, tuple[str, int]]:
    """Of every thread, where its address points: (kind, offset)."""
    found = {}
    for kind, part, at in w.memory.parts(space, address, m):
        for thread, offset in zip(part.index.tolist(), at.tolist()):
            found[thread] = (kind, offset)
    return found
