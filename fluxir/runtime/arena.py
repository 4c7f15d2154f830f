"""Memory for the temporaries of a program's calls: a few arenas that calls take in turn, kept between calls.

The native way of a call (`call_code.py`) takes a free arena that is large enough, the Python way any free one, which it
makes larger where need be. Invariant: an arena belongs to whoever has set its word `busy` from 0 to 1, in one atomic step.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from fluxir.runtime import native
from fluxir.runtime.call_code import ARENA_WORDS, ARENAS

__all__ = ["Arenas"]


@dataclass
class _Taken:
    """An arena in use. `place`: the address of its word `busy`, 0 for memory of this call alone."""

    address: int
    place: int = 0
    memory: Any = None

    def give_back(self) -> None:
        if self.place:
            ctypes.c_int64.from_address(self.place).value = 0


class Arenas:
    """The arenas of one program. `address`: of the table (address, bytes, busy) that machine code reads."""

    def __init__(self) -> None:
        self._words = (ctypes.c_int64 * (ARENAS * ARENA_WORDS))()
        self.address = ctypes.addressof(self._words)
        self._memory: list[Any] = [None] * ARENAS

    def take(self, nbytes: int) -> _Taken:
        """At least `nbytes` bytes aligned to 64, for one call. MemoryError where there are none."""
        if not nbytes:
            return _Taken(0)
        for i in range(ARENAS):
            place = self.address + 8 * (i * ARENA_WORDS + 2)
            if not native.native().claim(place):
                continue
            taken = _Taken(0, place)
            try:
                if self._words[i * ARENA_WORDS + 1] < nbytes:
                    self._grow(i, nbytes)
            except MemoryError:
                taken.give_back()
                raise
            taken.address = int(self._words[i * ARENA_WORDS])
            return taken
        memory = _aligned(nbytes)
        return _Taken(memory.ctypes.data, 0, memory)

    def _grow(self, i: int, nbytes: int) -> None:
        at = i * ARENA_WORDS
        self._words[at + 1] = 0
        self._memory[i] = None  # freed before the larger one is asked for
        memory = _aligned(nbytes)
        self._memory[i] = memory
        self._words[at] = memory.ctypes.data
        self._words[at + 1] = nbytes


def _aligned(nbytes: int) -> Any:
    """An uninitialised byte array that starts at a multiple of 64."""
    import numpy as np

    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]
