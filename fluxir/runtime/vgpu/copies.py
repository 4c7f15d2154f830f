"""Asynchronous copies into shared memory: `cp.async`. Data arrive when the thread that asked for them waits, not before.

The source is read when the copy is issued; until a wait of the same thread covers the copy's group, the destination's bytes are
PENDING in the shadow and the source's READING. Source: PTX ISA 9.0, section 9.7.9.25.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import ALLOCATED, PENDING, READING, WRITTEN, Region
from .ptx import Instruction
from .values import Array

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = ["Copies"]


@dataclass
class _Copy:
    """One instruction's copies: of each thread the destination in the region, the bytes, and the thread's group."""

    instruction: Instruction
    threads: Array
    where: Array
    data: Array  # uint8[threads, bytes]
    group: Array
    serial: int
    source: Array  # offsets in global memory

    def part(self, which: Array) -> _Copy:
        """The copies of some of its threads."""
        of = (x[which] for x in (self.threads, self.where, self.data, self.group, self.source))
        threads, where, data, group, source = of
        return _Copy(self.instruction, threads, where, data, group, self.serial, source)


def _mark(region: Region, where: Array, nbytes: int, state: int, on: bool) -> None:
    """Set or clear one bit of the shadow of `nbytes` bytes at each of some offsets, which are multiples of `nbytes`."""
    unit = min(nbytes, 8)
    states, first = region.states(unit), where // unit
    bits = states.dtype.type(int.from_bytes(bytes([state]) * unit, "little"))
    for k in range(nbytes // unit):
        found = states[first + k]
        states[first + k] = found | bits if on else found & ~bits


class Copies:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.pending: list[_Copy] = []
        self.group = np.zeros(wave.size, np.int64)  # the group that a thread's next copy belongs to
        self.serial = 0

    def start(self, m: Mask, where: Array, data: Array, source: Array, instruction: Instruction) -> None:
        """`where`: offsets in the region of shared memory, `data`: uint8[threads, bytes], `source`: offsets in global memory, of
        the threads of `m`; -1 where nothing is read."""
        memory = self.wave.memory
        if memory.checks:
            _mark(memory.shared, where, data.shape[1], PENDING, True)
            _mark(memory.heap.region, source[source >= 0], data.shape[1], READING, True)
            memory.pending_copies = True
        self.serial += 1
        self.pending.append(_Copy(instruction, m.index, where, data, self.group[m.index], self.serial, source))

    def commit(self, m: Mask) -> None:
        self.group[m.index] += 1

    def wait(self, m: Mask, newest: int) -> None:
        """All groups but the `newest` ones of each thread arrive."""
        self._arrive(m, self.group - newest)

    def wait_all(self, m: Mask) -> None:
        """Everything arrives, committed or not."""
        self.group[m.index] += 1
        self._arrive(m, self.group)

    def landing(self, threads: Array) -> Callable[[], None]:
        """What lets all copies arrive that these threads have issued so far."""
        last = self.serial
        mine = np.zeros(self.wave.size, bool)
        mine[threads] = True

        def land() -> None:
            self._land(lambda c: mine[c.threads] & (c.serial <= last))

        return land

    def _arrive(self, m: Mask, before: Array) -> None:
        self._land(lambda c: m.bits[c.threads] & (c.group < before[c.threads]))

    def _land(self, which: Callable[[_Copy], Array]) -> None:
        """Those threads' copies arrive that `which` says."""
        if not self.pending:
            return
        left: list[_Copy] = []
        for c in self.pending:
            done = which(c)
            if not done.any():
                left.append(c)
                continue
            self._write(c.where[done], c.data[done])
            self._free(c.source[done], c.data.shape[1])
            if not done.all():
                left.append(c.part(~done))
        self.pending = left
        if not left:
            self.wave.bulk.idle()

    def _write(self, where: Array, data: Array) -> None:
        shared, unit = self.wave.memory.shared, min(data.shape[1], 8)
        units, states, first = shared.units(unit), shared.states(unit), where // unit
        words = np.ascontiguousarray(data).view(units.dtype)
        written = states.dtype.type(int.from_bytes(bytes([ALLOCATED | WRITTEN]) * unit, "little"))
        for k in range(words.shape[1]):
            units[first + k] = words[:, k]
            states[first + k] = written

    def _free(self, source: Array, nbytes: int) -> None:
        """The source is not read any more."""
        memory = self.wave.memory
        if memory.checks:
            _mark(memory.heap.region, source[source >= 0], nbytes, READING, False)

    def abandon(self) -> None:
        """The wave is over, however it ended: nothing reads global memory any more."""
        for c in self.pending:
            self._free(c.source, c.data.shape[1])

    def finish(self) -> None:
        """Copies that nobody waited for."""
        for c in self.pending:
            self.wave.report("async-copy", "the copy was never waited for", c.instruction, c.threads)
