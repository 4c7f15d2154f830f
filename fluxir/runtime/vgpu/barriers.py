"""Where threads wait for each other: `bar`/`barrier` of a block, and of a warp.

A barrier is looked at when no thread can run (`release`): by then every thread that can come has come, so one look says who
waits with whom. Source: PTX ISA 9.0, section 9.7.13 (bar, barrier, bar.warp.sync).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .isa import reject
from .ptx import Instruction
from .values import Array, lane_bits

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = ["Barriers", "Waiting"]


@dataclass
class Waiting:
    """Threads that wait at one instruction. `number`: the barrier's, of each thread of the wave; `expected`: threads that it
    takes, 0 for the whole block; `member`: for a warp's barrier, the mask of each thread. `reduce` turns the predicates of
    the threads that meet into a result, and `write` stores it."""

    instruction: Instruction
    next: int
    bits: Array
    number: Array
    expected: Array
    aligned: bool
    member: Array | None = None
    value: Any = None
    reduce: Callable[[Array], Any] | None = None
    write: Callable[[Wave, Any, Mask], None] | None = None


class Barriers:
    NUMBERS = 16

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.waiting: list[Waiting] = []
        self.arrived: Array | None = None  # threads that went on (bar.arrive), by block and barrier
        self.expected_by_arrival: Array | None = None

    def wait(self, w: Waiting) -> None:
        if self.wave.depth:
            reject(
                w.instruction, "a barrier in a function that is called through a pointer or from itself is not executed"
            )
        for known in self.waiting:
            if known.instruction is w.instruction:
                new = w.bits
                known.number = np.where(new, w.number, known.number)
                known.expected = np.where(new, w.expected, known.expected)
                if w.member is not None and known.member is not None:
                    known.member = np.where(new, w.member, known.member)
                if w.value is not None:
                    known.value = np.where(new, w.value, known.value)
                known.bits = known.bits | new
                return
        self.waiting.append(w)

    def meet_at_once(self, m: Mask, number: Any, expected: Any) -> bool:
        """Whether all threads of all blocks are at one barrier of the whole block: then nobody has to wait."""
        w = self.wave
        whole = np.ndim(number) == 0 and np.ndim(expected) == 0 and not int(expected) and int(number) < self.NUMBERS
        if not whole or m.count != w.exists_count or self.waiting or self.arrived is not None or w.depth:
            return False
        w.races.block_barrier(np.ones(w.block_count, bool))
        return True

    def arrive(self, m: Mask, number: Array, expected: Array) -> None:
        """`bar.arrive`: counted, and the threads go on."""
        w = self.wave
        if self.arrived is None:
            self.arrived = np.zeros((w.block_count, self.NUMBERS), np.int64)
        np.add.at(self.arrived, (w.block[m.index], number[m.index]), 1)
        w.races.arrive(m, number)

    # ---- release
    def release(self) -> bool:
        """Let those go on whose barrier is complete. False where nobody could."""
        if not self.waiting:
            return False
        done = self._release_warps()
        return self._release_blocks() or done

    def _release_warps(self) -> bool:
        w, done = self.wave, False
        records = [r for r in self.waiting if r.member is not None]
        if not records:
            return False
        there = np.logical_or.reduce([r.bits for r in records])
        present = lane_bits(there)
        live = lane_bits(w.live)
        for r in records:
            assert r.member is not None
            needed = r.member & np.repeat(live, 32)
            ready = r.bits & ((needed & ~np.repeat(present, 32)) == 0)
            if ready.any():
                done = True
                r.bits = r.bits & ~ready
                w.races.warp_sync(ready, r.member)
                w.go(r.next, ready)
        self._tidy()
        return done

    def _release_blocks(self) -> bool:
        w = self.wave
        records = [r for r in self.waiting if r.member is None]
        if not records:
            return False
        count = np.zeros((w.block_count, self.NUMBERS), np.int64)
        if self.arrived is not None:
            count += self.arrived
        expected = np.zeros_like(count)
        sites = np.zeros_like(count)
        alive = w.live.reshape(w.block_count, -1).sum(axis=1)
        for r in records:
            lanes = np.flatnonzero(r.bits)
            at = (w.block[lanes], r.number[lanes])
            np.add.at(count, at, 1)
            wanted = np.where(r.expected[lanes] == 0, alive[at[0]], r.expected[lanes])
            np.maximum.at(expected, at, wanted)
            here = np.zeros_like(count)
            here[at] = 1
            sites += here
        ready = (expected > 0) & (count >= expected)
        if not ready.any():
            return False
        for r in records:
            free = r.bits & ready[w.block, r.number]
            if free.any():
                self._check(r, free, records, sites)
        self._reduce(records, ready)
        whole = ready & (expected == alive[:, None])
        w.races.block_barrier(whole.any(axis=1))
        for number in np.flatnonzero((ready & ~whole).any(axis=0)):
            w.races.named_barrier(
                np.logical_or.reduce([r.bits & (r.number == number) for r in records]),
                int(number),
                (ready & ~whole)[:, number],
            )
        for r in records:
            free = r.bits & ready[w.block, r.number]
            if free.any():
                r.bits = r.bits & ~free
                w.go(r.next, free)
        if self.arrived is not None:
            self.arrived[ready] = 0
        self._tidy()
        return True

    def _check(self, r: Waiting, free: Array, records: list[Waiting], sites: Array) -> None:
        """Findings for barriers that happen to complete, and yet are no agreement of all threads."""
        w = self.wave
        whole = free & (r.expected == 0)
        if whole.any():
            exited = w.threads - w.live.reshape(w.block_count, -1).sum(axis=1)
            short = whole & (exited[w.block] > 0)
            if short.any():
                n = int(exited[w.block[np.flatnonzero(short)[0]]])
                w.report("divergent-barrier", f"{n} threads of the block have exited and never reach this barrier", r.instruction,
                         np.flatnonzero(short))  # fmt: skip
            parted = whole & (sites[w.block, r.number] > 1)
            if parted.any():
                other = next(x for x in records if x is not r)
                message = f"other threads of the block wait at another barrier, in line {other.instruction.line}"
                w.report("divergent-barrier", message, r.instruction, np.flatnonzero(parted))
                return
        if r.aligned:
            rows = free.reshape(-1, 32)
            alone = rows.any(axis=1) & (rows != w.live.reshape(-1, 32)).any(axis=1)
            if alone.any():
                w.report("divergent-barrier", "some threads of the warp are elsewhere", r.instruction,
                         np.flatnonzero(free & np.repeat(alone, 32)))  # fmt: skip

    def _reduce(self, records: list[Waiting], ready: Array) -> None:
        w = self.wave
        for r in records:
            if r.reduce is None or r.write is None:
                continue
            for block, number in np.argwhere(ready):
                here = r.bits & (w.block == block) & (r.number == number)
                if here.any():
                    taken = np.concatenate([
                        np.asarray(x.value)[x.bits & (w.block == block) & (x.number == number)]
                        for x in records if x.value is not None
                    ])  # fmt: skip
                    r.write(w, r.reduce(taken), w.mask(here))

    def _tidy(self) -> None:
        self.waiting = [r for r in self.waiting if r.bits.any()]

    def deadlock(self) -> None:
        """Nobody can go on: say who waits for whom."""
        from .wave import Stop

        w = self.wave
        r = self.waiting[0]
        lanes = np.flatnonzero(r.bits)
        if r.member is not None:
            w.report("deadlock", "waits for threads of the warp that never come", r.instruction, lanes)
        else:
            block, number = w.block[lanes[0]], int(r.number[lanes[0]])
            count = sum(int(np.count_nonzero(x.bits & (w.block == block) & (x.number == number))) for x in self.waiting)
            expected = int(r.expected[lanes[0]]) or int(np.count_nonzero(w.live[w.block == block]))
            others = [x for x in self.waiting if x is not r]
            more = f"; others wait at line {others[0].instruction.line}" if others else ""
            w.report(
                "deadlock",
                f"barrier {number} waits for {expected} threads and {count} came{more}",
                r.instruction,
                lanes,
            )
        raise Stop
