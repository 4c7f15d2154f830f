"""The memory of a virtual GPU: bytes and, for every byte, what the sanitizer knows of it.

A `Region` is a run of bytes with its shadow. The heap (global memory) is one region for a device, reserved at once and touched
where it is used; shared and local memory are one region each for a wave of blocks. Addresses of global memory are far from
zero and from any host address, and allocations lie apart, so that an index that is off finds nothing.

Shadow of a byte: 0 nothing is there, ALLOCATED, ALLOCATED | WRITTEN, or FREED; PENDING as well while an asynchronous copy
into it has not been waited for, READING while one out of it has not; UNFENCED where a thread has stored and no
`fence.proxy.async` stands between that and what bulk copies and `wgmma` read.
"""

from __future__ import annotations

import bisect
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error

from .values import Array, unsigned

__all__ = [
    "ALLOCATED",
    "FREED",
    "GLOBAL_BASE",
    "LOCAL_BASE",
    "PENDING",
    "READING",
    "SHARED_BASE",
    "UNFENCED",
    "WRITTEN",
    "Allocation",
    "Heap",
    "Region",
]

ALLOCATED, WRITTEN, FREED, PENDING, READING, UNFENCED = 1, 2, 4, 8, 16, 32
GLOBAL_BASE = 0x7100_0000_0000
SHARED_BASE = 0x7200_0000_0000  # the windows of generic addresses
LOCAL_BASE = 0x7300_0000_0000
PARAM_BASE = 0x7400_0000_0000
WINDOW = 1 << 40
RANK_SHIFT = (
    24  # an address in a cluster's shared memory: the block's rank plus 1 (0 for the own block) above the offset
)
ALIGN = 256  # of an allocation, as cuMemAlloc's
RED_ZONE = 256  # bytes between allocations that belong to none
QUARANTINE = 1 << 28  # bytes freed before the oldest are handed out again


class Region:
    """Bytes, seen in units of 1, 2, 4 or 8, and their shadow."""

    def __init__(self, data: Array, shadow: Array) -> None:
        self.data, self.shadow = data, shadow
        whole = len(data) // 8 * 8
        self._data = {n: data[:whole].view(unsigned(n)) for n in (1, 2, 4, 8)}
        self._shadow = {n: shadow[:whole].view(unsigned(n)) for n in (1, 2, 4, 8)}

    @classmethod
    def zeros(cls, nbytes: int, state: int) -> Region:
        size = -(-max(nbytes, 1) // 16) * 16
        shadow = np.zeros(size, np.uint8)
        shadow[:nbytes] = state
        return cls(np.zeros(size, np.uint8), shadow)

    def units(self, width: int) -> Array:
        return self._data[width]

    def states(self, width: int) -> Array:
        return self._shadow[width]

    def __len__(self) -> int:
        return len(self.data)


@dataclass
class Allocation:
    address: int
    nbytes: int
    label: str = ""
    freed: bool = False
    constant: bool = False  # kernels may not write to it
    internal: bool = False  # a module's variable, which nobody frees

    def __str__(self) -> str:
        name = f"`{self.label}`, " if self.label else ""
        return f"{name}{self.nbytes} bytes at {self.address:#x}{', freed' if self.freed else ''}"


class Heap:
    """Global memory. `capacity` bytes are reserved, not used."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        flags = (
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        )  # its value on Linux, which Python 3.13 names
        self._maps = [mmap.mmap(-1, capacity, flags=flags) for _ in range(2)]
        data, shadow = (np.frombuffer(m, np.uint8) for m in self._maps)
        self.region = Region(data, shadow)
        self.live: dict[int, Allocation] = {}
        self._starts: list[int] = []  # of all allocations that may still be named in a report
        self._by_start: dict[int, Allocation] = {}
        self._constants: list[tuple[int, int]] = []
        self._top = ALIGN
        self._quarantine: list[Allocation] = []
        self._holes: list[tuple[int, int]] = []  # (offset, bytes) to hand out again

    def allocate(self, nbytes: int, label: str = "", constant: bool = False, internal: bool = False) -> int:
        """The address of `nbytes` new bytes, aligned to 256. FX0706 where the device is full. The flags: see `Allocation`."""
        size = -(-max(nbytes, 1) // ALIGN) * ALIGN + RED_ZONE
        offset = self._find(size)
        self.region.shadow[offset : offset + nbytes] = ALLOCATED
        found = Allocation(GLOBAL_BASE + offset, nbytes, label, constant=constant, internal=internal)
        if constant:
            self._constants.append((offset, offset + nbytes))
        self.live[found.address] = found
        if found.address not in self._by_start:
            bisect.insort(self._starts, found.address)
        self._by_start[found.address] = found
        return found.address

    def _find(self, size: int) -> int:
        for i, (offset, room) in enumerate(self._holes):
            if room >= size:
                self._holes[i] = (offset + size, room - size)
                return offset
        if self._top + size > self.capacity:
            while self._quarantine:
                self._recycle(self._quarantine.pop(0))
                if self._holes[-1][1] >= size:
                    offset, room = self._holes.pop()
                    self._holes.append((offset + size, room - size))
                    return offset
            raise error(
                "FX0706", f"the virtual GPU's memory of {self.capacity} bytes has no room for {size} more bytes"
            )
        offset, self._top = self._top, self._top + size
        return offset

    def _recycle(self, old: Allocation) -> None:
        offset = old.address - GLOBAL_BASE
        size = -(-max(old.nbytes, 1) // ALIGN) * ALIGN + RED_ZONE
        self.region.shadow[offset : offset + size] = 0
        self._holes.append((offset, size))

    def free(self, address: int) -> None:
        """Give an allocation back. Its bytes stay apart for a while: touching them is use after free. FX0711 for an address
        that is no live allocation's."""
        found = self.live.pop(address, None)
        if found is None:
            raise error("FX0711", f"{address:#x} is not the address of a live allocation")
        found.freed = True
        offset = address - GLOBAL_BASE
        if found.constant:
            self._constants.remove((offset, offset + found.nbytes))
        self.region.shadow[offset : offset + found.nbytes] = FREED
        self._quarantine.append(found)
        while sum(a.nbytes for a in self._quarantine) > QUARANTINE:
            self._recycle(self._quarantine.pop(0))

    def place(self, address: int, nbytes: int) -> slice:
        """Where the bytes lie that the host copies. FX0711 unless they are inside one live allocation."""
        found = self.nearest(address)
        if found is None or found.freed or address < found.address or address + nbytes > found.address + found.nbytes:
            raise error("FX0711", f"{nbytes} bytes at {address:#x} are not inside a live allocation")
        return slice(address - GLOBAL_BASE, address - GLOBAL_BASE + nbytes)

    def nearest(self, address: int) -> Allocation | None:
        """The allocation that holds an address, or else the last one before it."""
        i = bisect.bisect_right(self._starts, address)
        return self._by_start[self._starts[i - 1]] if i else None

    def next_after(self, address: int) -> Allocation | None:
        """The first allocation that starts after an address."""
        i = bisect.bisect_right(self._starts, address)
        return self._by_start[self._starts[i]] if i < len(self._starts) else None

    def read_only(self, at: Array) -> Array | None:
        """Which of the offsets lie in constant allocations; None where none does."""
        bad = None
        for low, high in self._constants:
            inside = (at >= low) & (at < high)
            if inside.any():
                bad = inside if bad is None else bad | inside
        return bad

    @property
    def top(self) -> int:
        """No allocation reaches beyond this offset."""
        return self._top

    def write(self, address: int, data: Any) -> None:
        raw = np.frombuffer(data, np.uint8)
        if raw.nbytes:
            where = self.place(address, raw.nbytes)
            self.region.data[where] = raw
            self.region.shadow[where] |= WRITTEN

    def unwritten(self, address: int, nbytes: int) -> int:
        """How many of the bytes nobody has written to."""
        return nbytes - int(np.count_nonzero(self.region.shadow[self.place(address, nbytes)] & WRITTEN))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy between allocations; bytes that were not written at `source` are not written at `target` either."""
        to, at = self.place(target, nbytes), self.place(source, nbytes)
        self.region.data[to] = self.region.data[at]
        self.region.shadow[to] = self.region.shadow[at]

    def read(self, address: int, nbytes: int) -> Array:
        return self.region.data[self.place(address, nbytes)].copy() if nbytes else np.zeros(0, np.uint8)

    @property
    def used(self) -> int:
        return sum(a.nbytes for a in self.live.values())
