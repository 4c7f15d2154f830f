"""Asynchronous copies into shared memory: `cp.async`. Data arrive when the thread that asked for them waits, not before.

The source is read when the copy is issued; the destination's bytes are PENDING in the shadow until a wait of the same thread
covers the copy's group. Source: PTX ISA 9.0, section 9.7.9.25.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import ALLOCATED, PENDING, WRITTEN
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


class Copies:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.pending: list[_Copy] = []
        self.group = np.zeros(wave.size, np.int64)  # the group that a thread's next copy belongs to
        self.serial = 0

    def start(self, m: Mask, where: Array, data: Array, instruction: Instruction) -> None:
        """`where`: offsets in the region of shared memory, `data`: uint8[threads, bytes], of the threads of `m`."""
        shadow = self.wave.memory.shared.shadow
        shadow[where[:, None] + np.arange(data.shape[1])] |= PENDING
        self.wave.memory.pending_copies = True
        self.serial += 1
        self.pending.append(_Copy(instruction, m.index, where, data, self.group[m.index], self.serial))

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
            if not done.all():
                rest = ~done
                left.append(_Copy(c.instruction, c.threads[rest], c.where[rest], c.data[rest], c.group[rest], c.serial))
        self.pending = left
        if not left:
            self.wave.bulk.idle()

    def _write(self, where: Array, data: Array) -> None:
        shared = self.wave.memory.shared
        places = where[:, None] + np.arange(data.shape[1])
        shared.data[places] = data
        shared.shadow[places] = ALLOCATED | WRITTEN

    def finish(self) -> None:
        """Copies that nobody waited for."""
        for c in self.pending:
            self.wave.report("async-copy", "the copy was never waited for", c.instruction, c.threads)
