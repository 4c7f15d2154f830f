"""mbarriers: 8 bytes of shared memory that count arrivals and bytes until a phase ends.

The state is kept in the 8 bytes themselves, so that it moves with them: 20 bits of arrivals that are still pending, 20 bits of
how many a phase takes, 22 bits of bytes that are still expected (signed), and the parity of the phase. All zero is no mbarrier.
What asynchronous copies owe to an mbarrier is settled when a thread asks whether the phase has ended (`Debts`): until then
their data have not arrived.

Source: PTX ISA 9.0, section 9.7.13.15.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import ALLOCATED, WRITTEN
from .ptx import Instruction
from .values import Array

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = ["Debt", "Mbarriers", "State"]

MOST = (1 << 20) - 1  # arrivals of a phase, and bytes


@dataclass
class State:
    """States of some mbarriers, one field an array (int64)."""

    pending: Array
    expected: Array
    bytes: Array
    phase: Array

    @classmethod
    def unpack(cls, words: Array) -> State:
        w = words.view(np.int64)
        return cls(w & MOST, (w >> 20) & MOST, (w << 2) >> 42, (w >> 63) & 1)

    def pack(self) -> Array:
        low = self.pending & MOST | (self.expected & MOST) << 20 | (self.bytes & ((1 << 22) - 1)) << 40
        packed: Array = (low | self.phase << 63).view(np.uint64)
        return packed

    def end_phases(self) -> Array:
        """Begin the next phase where nothing is pending; which did."""
        done: Array = (self.pending == 0) & (self.bytes == 0) & (self.expected > 0)
        self.phase = self.phase ^ done
        self.pending = np.where(done, self.expected, self.pending)
        return done


@dataclass
class Debt:
    """What asynchronous copies bring to one mbarrier when they arrive. `settle` makes their data visible."""

    arrivals: int
    bytes: int
    settle: Callable[[], None]


class Mbarriers:
    """The mbarriers of a wave, by the offset of their 8 bytes in the region of shared memory."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.debts: dict[int, list[Debt]] = {}
        self.failed: tuple[Instruction, Array] | None = None  # the last wait that did not succeed, and its mbarriers

    # ---- memory
    def find(self, m: Mask, space: str, address: Any, x: Instruction, fresh: bool = False) -> tuple[Mask, Array] | None:
        """(threads, offsets in the region) of valid mbarriers; None where there is none. `fresh`: of what becomes one."""
        w = self.wave
        index, places = [], []
        for kind, part, at in w.memory.parts(space, address, m):
            if kind not in ("shared", "cluster"):
                w.report("out-of-bounds", f"an mbarrier lies in shared memory, not in {kind}", x, part.index)
                continue
            good = w.memory.good(kind, part, at, 8, ALLOCATED if fresh else ALLOCATED | WRITTEN, x)
            where = w.memory.place(kind, part, at)
            index.append(part.index if good is None else part.index[good])
            places.append(where if good is None else where[good])
        if not index:
            return None
        lanes, where = np.concatenate(index), np.concatenate(places)
        if not fresh and len(lanes):
            dead = State.unpack(self._words[where >> 3]).expected == 0
            if dead.any():
                w.report("uninitialised", "there is no mbarrier: `mbarrier.init` has not been executed, or `inval` has", x,
                         lanes[dead], int(where[dead][0]) % w.launch.shared_stride)  # fmt: skip
                lanes, where = lanes[~dead], where[~dead]
        if not len(lanes):
            return None
        order = np.argsort(lanes)
        return (m if len(lanes) == m.count else w.mask_of(lanes)), where[order]

    @property
    def _words(self) -> Array:
        return self.wave.memory.shared.units(8)

    def init(self, m: Mask, where: Array, count: Array, x: Instruction) -> None:
        w = self.wave
        bad = (count < 1) | (count > MOST)
        if bad.any():
            w.report("limit", f"an mbarrier counts 1 to {MOST} arrivals, not {int(count[bad][0])}", x, m.index[bad])
        zero = np.zeros(len(where), np.int64)
        self._words[where >> 3] = State(count, count, zero, zero).pack()
        self._store(m, where, x)
        w.memory.shared.states(8)[where >> 3] = np.uint64(0x0101010101010101 * (ALLOCATED | WRITTEN))

    def invalidate(self, m: Mask, where: Array, x: Instruction) -> None:
        self._words[where >> 3] = 0
        self._store(m, where, x)

    def _store(self, m: Mask, where: Array, x: Instruction) -> None:
        if self.wave.memory.checks:
            self.wave.races.store(where, 8, m, x)

    def _touch(self, m: Mask, where: Array, x: Instruction, release: bool, acquire: bool) -> None:
        """Order memory: an mbarrier is an object that threads meet at."""
        w = self.wave
        if w.memory.checks:
            w.races.store(where, 8, m, x, atomic=True)
            if release or acquire:
                w.races.channel(m.bits, m.spread(where), release, acquire)

    # ---- arrivals
    def arrive(
        self, m: Mask, where: Array, count: Array, nbytes: Array, x: Instruction,
        drop: bool = False, release: bool = True, complete: bool = True,
    ) -> Array:  # fmt: skip
        """Each thread expects `nbytes` more bytes and arrives `count` times; what it found (uint64) is returned. `drop`: the
        next phases take so many fewer. `complete`: it may end the phase."""
        self._touch(m, where, x, release, False)
        places, which = np.unique(where, return_inverse=True)
        state = State.unpack(self._words[places >> 3])
        total = np.bincount(which, count, len(places)).astype(np.int64)
        state.bytes = state.bytes + np.bincount(which, nbytes, len(places)).astype(np.int64)
        if (total > state.pending).any() or (not complete and (total >= state.pending).any()):
            found = self._one_by_one(m, places, which, state, count, drop, complete, x)
        else:
            order = np.argsort(which, kind="stable")
            before = np.cumsum(count[order]) - count[order]
            first = np.searchsorted(which[order], np.arange(len(places)))
            earlier = np.empty(len(where), np.int64)
            earlier[order] = before - before[first][which[order]]  # arrivals of lanes before it
            found = State(
                state.pending[which] - earlier, state.expected[which], state.bytes[which], state.phase[which]
            ).pack()
            state.pending = state.pending - total
            if drop:
                state.expected = state.expected - total
            state.end_phases()
        self._words[places >> 3] = state.pack()
        self.wave.progress = True
        return found

    def _one_by_one(
        self,
        m: Mask,
        places: Array,
        which: Array,
        state: State,
        count: Array,
        drop: bool,
        complete: bool,
        x: Instruction,
    ) -> Array:
        """Arrivals of which some are more than a phase takes, or end one and begin the next."""
        found = np.empty(len(which), np.uint64)
        for i, (b, n) in enumerate(zip(which.tolist(), count.tolist())):
            one = State(*(f[b : b + 1] for f in (state.pending, state.expected, state.bytes, state.phase)))
            found[i] = one.pack()[0]
            left = int(one.pending[0]) - n
            if left < 0 or (left == 0 and not complete):
                why = "a phase takes no more arrivals" if left < 0 else "`.noComplete` ends the phase"
                self.wave.report("limit", why, x, m.index[i : i + 1], int(places[b]) % self.wave.launch.shared_stride)
                left = max(left, 0)
            one.pending = np.array([left])
            if drop:
                one.expected = np.maximum(one.expected - n, 0)
            one.end_phases()
            state.pending[b], state.expected[b], state.phase[b] = one.pending[0], one.expected[0], one.phase[0]
        return found

    def expect(self, m: Mask, where: Array, nbytes: Array, x: Instruction) -> None:
        """`nbytes` more bytes (fewer, where they are negative) for this phase."""
        self._touch(m, where, x, False, False)
        self._add(where, nbytes)

    def expect_arrivals(self, m: Mask, where: Array, x: Instruction) -> None:
        """One more arrival of every thread for this phase."""
        self._touch(m, where, x, False, False)
        places, count = np.unique(where, return_counts=True)
        state = State.unpack(self._words[places >> 3])
        state.pending = state.pending + count
        self._words[places >> 3] = state.pack()

    def _add(self, where: Array, nbytes: Array) -> None:
        places, which = np.unique(where, return_inverse=True)
        state = State.unpack(self._words[places >> 3])
        state.bytes = state.bytes + np.bincount(which, nbytes, len(places)).astype(np.int64)
        state.end_phases()
        self._words[places >> 3] = state.pack()
        self.wave.progress = True

    # ---- waiting
    def owe(self, where: int, debt: Debt) -> None:
        """An asynchronous copy will bring something to the mbarrier at an offset."""
        self.debts.setdefault(where, []).append(debt)

    def _settle(self, where: Array, phase: Array) -> None:
        """Let the copies arrive that end the phase which is waited for."""
        for at in np.unique(where).tolist():
            owed = self.debts.get(at)
            if not owed:
                continue
            state = State.unpack(self._words[at >> 3 : (at >> 3) + 1])
            if not (phase[where == at] == state.phase[0]).any():
                continue  # that phase has ended already: these belong to the next one
            state.pending = state.pending - sum(d.arrivals for d in owed)
            state.bytes = state.bytes - sum(d.bytes for d in owed)
            if state.end_phases()[0]:
                self._words[at >> 3] = state.pack()[0]
                for debt in self.debts.pop(at):
                    debt.settle()
                self.wave.progress = True

    def test(self, m: Mask, where: Array, phase: Array, x: Instruction, acquire: bool = True) -> Array:
        """Whether the phase of the given parity has ended (bool, of the threads of `m`)."""
        if self.debts:
            self._settle(where, phase)
        ended: Array = State.unpack(self._words[where >> 3]).phase != phase
        if ended.all():
            self._touch(m, where, x, False, acquire)
            return ended
        self.failed = (x, np.unique(where[~ended]))
        if ended.any():
            self._touch(m.only(ended), where[ended], x, False, acquire)
        return ended

    def explain(self) -> str:
        """What the last wait that failed waits for; empty where none did."""
        if self.failed is None:
            return ""
        x, places = self.failed
        state = State.unpack(self._words[places[:1] >> 3])
        owed = self.debts.get(int(places[0]), [])
        arrivals = int(state.pending[0]) - sum(d.arrivals for d in owed)
        nbytes = int(state.bytes[0]) - sum(d.bytes for d in owed)
        missing = [f"{n} {what}" for n, what in ((arrivals, "arrivals"), (nbytes, "bytes")) if n]
        return f"the phase of the mbarrier in line {x.line} never ends: {' and '.join(missing) or 'nothing'} missing"
