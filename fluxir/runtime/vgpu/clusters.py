"""`barrier.cluster`: the threads of a cluster's blocks arrive, go on, and wait for each other later.

A phase ends when every thread of the cluster that has not exited has arrived. Blocks of a cluster follow each other in a wave,
by their rank. An arrival with `.relaxed` orders memory like the others: programs put a fence before it, and a missing one is
not looked for. Source: PTX ISA 9.0, section 9.7.13.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .isa import reject
from .ptx import Instruction
from .values import Array

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = ["ClusterBarriers"]

_AWAY, _ARRIVED, _RELEASED = 0, 1, 2


class ClusterBarriers:
    """What every thread has done in the current phase, and who waits for its end."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.state = np.full(wave.size, _AWAY, np.int8)
        self.waiting: list[tuple[Instruction, int, Array]] = []  # (instruction, the block after it, threads)

    def arrive(self, m: Mask, x: Instruction) -> None:
        again = m.bits & (self.state != _AWAY)
        if again.any():
            self.wave.report(
                "divergent-barrier", "the thread arrives again before it has waited", x, np.flatnonzero(again)
            )
        self.state[m.index] = _ARRIVED

    def wait(self, m: Mask, x: Instruction, after: int) -> None:
        """The threads of `m` continue at the block `after` when the phase they arrived in has ended."""
        if self.wave.depth:
            reject(x, "a barrier in a function that is called through a pointer or from itself is not executed")
        never = m.bits & (self.state == _AWAY)
        if never.any():
            self.wave.report("divergent-barrier", "the thread waits and has not arrived", x, np.flatnonzero(never))
        passed = m.bits & (self.state != _ARRIVED)
        if passed.any():
            self.state[passed] = _AWAY
            self.wave.go(after, passed)
        left = m.bits & ~passed
        if left.any():
            self.waiting.append((x, after, left))

    def release(self) -> bool:
        """End the phases in which everybody has arrived. False where nobody who waits can go on."""
        if not self.waiting:
            return False
        w = self.wave
        size = w.launch.kernel.cluster_size
        absent = (w.live & (self.state != _ARRIVED)).reshape(-1, size * w.stride).any(axis=1)
        there = (self.state == _ARRIVED).reshape(-1, size * w.stride).any(axis=1)
        ended = there & ~absent
        if not ended.any():
            return False
        w.races.group_barrier(ended)
        free = np.repeat(ended, size * w.stride) & (self.state == _ARRIVED)
        self.state[free] = _RELEASED
        left = []
        for x, after, bits in self.waiting:
            done = bits & free
            if done.any():
                self.state[done] = _AWAY
                w.go(after, done)
            if (bits & ~free).any():
                left.append((x, after, bits & ~free))
        self.waiting = left
        return True

    def deadlock(self) -> None:
        """Nobody can go on: say for whom the first ones wait."""
        from .wave import Stop

        w = self.wave
        x, _, bits = self.waiting[0]
        size = w.launch.kernel.cluster_size * w.stride
        first = int(np.flatnonzero(bits)[0]) // size * size
        absent = first + np.flatnonzero((w.live & (self.state != _ARRIVED))[first : first + size])
        block, thread = w.coordinates(int(absent[0])) if len(absent) else ((0, 0, 0), (0, 0, 0))
        w.report("deadlock", f"{len(absent)} threads of the cluster never arrive, the first one is {thread} of block {block}", x,
                 np.flatnonzero(bits))  # fmt: skip
        raise Stop
