"""What a launch did, in numbers: instructions by class, memory requests and what they cost, divergence, tensor-core work.

Units: a *warp instruction* is one instruction issued for a warp, a *thread instruction* one thread's part in it (predicated
off or not). A *request* is a warp instruction that accesses memory; a *sector* is 32 bytes of global memory, and a request
moves each sector it touches once. A *wavefront* is one pass through the 32 banks (4 bytes each) of shared memory; a request
without bank conflicts takes one for each 128 bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .values import Array

if TYPE_CHECKING:
    from .code import Block
    from .wave import Mask

__all__ = ["SECTOR", "Counters", "Recorder"]

SECTOR = 32
BANKS = 32


@dataclass
class Counters:
    """The counts of one launch (or of several, added)."""

    warp_instructions: int = 0
    thread_instructions: int = 0
    by_class: dict[str, int] = field(default_factory=dict)  # warp instructions
    branches: int = 0  # conditional branches of warps
    divergent_branches: int = 0  # whose threads went both ways
    requests: dict[str, int] = field(default_factory=dict)  # "global load", "shared store", ...
    sectors: dict[str, int] = field(default_factory=dict)  # "global load", "global store", "global atomic"
    bytes: dict[str, int] = field(default_factory=dict)  # asked for by threads
    wavefronts: dict[str, int] = field(default_factory=dict)  # "shared load", ...
    ideal_wavefronts: dict[str, int] = field(default_factory=dict)  # without conflicts
    dram_bytes: int = 0  # distinct sectors, read once and written once
    tensor_flops: int = 0  # 2 m n k for each matrix instruction (integer operations count too)
    flops: int = 0  # of ordinary instructions: 2 for fma
    barriers: int = 0  # warps that came to one

    @property
    def l2_bytes(self) -> int:
        return SECTOR * sum(self.sectors.values())

    @property
    def sectors_per_request(self) -> float:
        n = sum(v for k, v in self.requests.items() if k.startswith("global"))
        return sum(self.sectors.values()) / n if n else 0.0

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts beyond the necessary ones."""
        return sum(self.wavefronts.values()) - sum(self.ideal_wavefronts.values())

    @property
    def lane_use(self) -> float:
        """The share of the lanes of issued warp instructions that were active."""
        return self.thread_instructions / (32 * self.warp_instructions) if self.warp_instructions else 1.0

    def __add__(self, other: Counters) -> Counters:
        out = Counters()
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            setattr(out, name, dict(Counter(mine) + Counter(theirs)) if isinstance(mine, dict) else mine + theirs)
        return out


class Recorder:
    """Counts while a launch runs. `enter` is called for every basic block, so it only notes how often each ran; the classes
    of its instructions are multiplied in at the end."""

    def __init__(self, heap_bytes: int) -> None:
        self.entered: dict[Block, list[int]] = {}
        self.c = Counters()
        self._requests: Counter[str] = Counter()
        self._sectors: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._wavefronts: Counter[str] = Counter()
        self._ideal: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()
        self._touched = {what: np.zeros(heap_bytes // SECTOR + 1, bool) for what in ("load", "store")}

    def enter(self, block: Block, m: Mask) -> None:
        known = self.entered.get(block)
        if known is None:
            self.entered[block] = [m.warp_count, m.count]
        else:
            known[0] += m.warp_count
            known[1] += m.count

    def count(self, name: str, n: int) -> None:
        """Add to one of the plain counts."""
        setattr(self.c, name, getattr(self.c, name) + n)

    def branch(self, taken: Array, not_taken: Array) -> None:
        t, f = taken.reshape(-1, 32).any(axis=1), not_taken.reshape(-1, 32).any(axis=1)
        self.c.branches += int(np.count_nonzero(t | f))
        self.c.divergent_branches += int(np.count_nonzero(t & f))

    def access(self, kind: str, what: str, m: Mask, at: Array, width: int) -> None:
        """One memory instruction: `at` are byte offsets of the threads of `m`, `width` the bytes of each."""
        name = f"{kind} {what}"
        requests = m.warp_count
        self._requests[name] += requests
        self._bytes[name] += m.count * width
        if kind == "global":
            sector = at >> 5
            keys = sector if m.wave.warps == 1 else (self._warp(m) << np.int64(40)) | sector
            self._sectors[name] += _distinct(keys)
            if width > SECTOR:  # 64-byte rows of bulk copies
                self._sectors[name] += m.count * (width // SECTOR - 1)
            touched = self._touched["load" if what == "load" else "store"]
            touched[sector] = True
            if what == "atomic":
                self._touched["load"][sector] = True
        elif kind == "shared":
            self._shared(name, m, at, width, requests)

    def bulk(self, name: str, nbytes: int) -> None:
        """One bulk copy's part in shared memory: whole lines of all banks."""
        self._requests[name] += 1
        self._bytes[name] += nbytes
        lines = -(-nbytes // (4 * BANKS))
        self._wavefronts[name] += lines
        self._ideal[name] += lines

    def _warp(self, m: Mask) -> Array:
        return m.index >> 5

    def _shared(self, name: str, m: Mask, at: Array, width: int, requests: int) -> None:
        """Bank conflicts. Threads take turns in groups that ask for at most 128 bytes."""
        lanes = min(32, 128 // max(width, 4)) or 1
        shift = lanes.bit_length() - 1
        group = m.index >> shift
        if len(group) == 0:
            return
        starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
        self._ideal[name] += len(starts)
        word = at >> 2
        low = np.minimum.reduceat(word, starts)
        high = np.maximum.reduceat(word, starts) + (max(width, 4) // 4 - 1)
        wide = high - low >= BANKS
        self._wavefronts[name] += len(starts) - int(np.count_nonzero(wide))
        if not wide.any():
            return
        sizes = np.diff(np.append(starts, len(group)))
        keep = np.repeat(wide, sizes)
        which = np.repeat(np.arange(len(starts)), sizes)[keep].astype(np.int64)
        n = max(1, width // 4)
        if not int(np.bitwise_or.reduce(at)) & (width - 1):  # whole rows of n banks: as if n banks were one
            row, banks_of_row = word[keep] // n, BANKS // n
        else:
            row, banks_of_row = (word[keep][:, None] + np.arange(n)).reshape(-1), BANKS
            which = np.repeat(which, n)
        keys = np.sort((which << np.int64(32)) | (row & np.int64(0xFFFFFFFF)))
        keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]  # a word that several ask for is read once
        banks = np.bincount((keys >> 32) * banks_of_row + keys % banks_of_row, minlength=len(starts) * banks_of_row)
        self._wavefronts[name] += int(banks.reshape(-1, banks_of_row).max(axis=1).sum())

    def finish(self) -> Counters:
        c = self.c
        for block, (warps, threads) in self.entered.items():
            c.warp_instructions += warps * block.size
            c.thread_instructions += threads * block.size
            c.flops += threads * block.flops
            for name, n in block.classes.items():
                self._classes[name] += warps * n
        c.by_class = dict(sorted(self._classes.items()))
        c.requests, c.sectors, c.bytes = dict(self._requests), dict(self._sectors), dict(self._bytes)
        c.wavefronts, c.ideal_wavefronts = dict(self._wavefronts), dict(self._ideal)
        c.dram_bytes = SECTOR * sum(int(np.count_nonzero(t)) for t in self._touched.values())
        return c


def _distinct(keys: Array) -> int:
    """How many different values; cheap where they are in order."""
    if len(keys) < 2:
        return len(keys)
    steps = np.diff(keys)
    if (steps < 0).any():
        steps = np.diff(np.sort(keys))
    return 1 + int(np.count_nonzero(steps))


def merged(all_of: list[Counters]) -> Counters:
    out = Counters()
    for c in all_of:
        out = out + c
    return out


def as_dict(c: Counters) -> dict[str, Any]:
    """JSON-ready."""
    return {**vars(c), "l2_bytes": c.l2_bytes, "bank_conflicts": c.bank_conflicts}
