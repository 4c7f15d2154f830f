"""The numpy executor: all threads of a wave of blocks as one axis of every register.

A `Wave` is the state of some thread blocks that run at once: registers, shared and local memory, barriers, and where every
thread stands. Scheduling: of the basic blocks that have waiting threads, the one that comes first in the order of `flow` runs
for all of them. Threads that part therefore meet again at the earliest place, and a barrier in divergent code cannot
deadlock by the order of execution. A loop that spins (on memory that another thread writes) gives way to the others after
some rounds: the `patience` of the block that closes it.

Invariants: a register is an array over all threads, or a numpy scalar where all live threads agree; arrays are never written
in place. Threads that do not exist (a block is padded to whole warps) or have exited are in no mask; what their registers
hold does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .access import Memory
from .barriers import Barriers
from .bulk import BulkCopies
from .clusters import ClusterBarriers
from .copies import Copies
from .mbarriers import Mbarriers
from .races import SharedRaces
from .values import Array
from .warpgroups import Warpgroups

if TYPE_CHECKING:
    from .code import Code, Place
    from .launch import Launch

__all__ = ["WARP", "Mask", "Stop", "Wave"]

WARP = 32
POISON = 0xDEADBEEF_DEADBEEF  # what a register holds that was never written


class Stop(Exception):
    """The launch cannot go on: a trap, a deadlock, or a finding under `check="raise"`."""


class Mask:
    """A set of threads of a wave. Immutable."""

    __slots__ = ("_index", "_warps", "bits", "count", "full", "wave")

    def __init__(self, wave: Wave, bits: Array) -> None:
        self.wave, self.bits = wave, bits
        self.count = int(np.count_nonzero(bits))
        self.full = self.count == wave.live_count
        self._index: Array | None = None
        self._warps: Array | None = None

    @property
    def index(self) -> Array:
        """The threads' numbers, ascending."""
        if self._index is None:
            self._index = np.flatnonzero(self.bits)
        return self._index

    @property
    def by_warp(self) -> Array:
        """bool[warps, 32]."""
        return self.bits.reshape(-1, WARP)

    @property
    def warps(self) -> Array:
        """Which warps have a thread in it."""
        if self._warps is None:
            self._warps = np.asarray(self.by_warp.any(axis=1))
        return self._warps

    @property
    def warp_count(self) -> int:
        return int(np.count_nonzero(self.warps))

    def pick(self, value: Any) -> Any:
        """The elements of a register for these threads, in ascending order (a scalar stays one)."""
        if np.ndim(value) == 0 or self.count == self.wave.size:
            return value
        return value[self.index]

    def picked(self, value: Any) -> Array:
        """As `pick`, and a scalar as an array."""
        found = self.pick(value)
        return np.full(self.count, found) if np.ndim(found) == 0 else found

    def spread(self, values: Array) -> Array:
        """An array over all threads with `values` at these; elsewhere zero."""
        if self.count == self.wave.size:
            return values
        out = np.zeros(self.wave.size, values.dtype)
        out[self.index] = values
        return out

    def only(self, chosen: Array) -> Mask:
        """Those of these threads for which `chosen` (bool, one for each of them, in order) holds."""
        return self.wave.mask_of(self.index[chosen])


class Wave:
    """Blocks `first` to `last - 1` of a launch, in linear order."""

    def __init__(self, launch: Launch, first: int, last: int) -> None:
        self.launch = launch
        self.blocks = launch.order(first, last)
        self.block_count = last - first
        bx, by, bz = launch.block
        gx, gy, _ = launch.grid
        self.threads: int = bx * by * bz
        self.stride: int = -(-self.threads // WARP) * WARP  # threads of a block, padded to warps
        self.size: int = self.block_count * self.stride
        self.warps = self.size // WARP
        t = np.tile(np.arange(self.stride, dtype=np.uint32), self.block_count)
        b = np.repeat(self.blocks.astype(np.uint32), self.stride)
        u = np.uint32
        self.thread: Array = t  # in its block
        self.block: Array = np.repeat(np.arange(self.block_count), self.stride)  # in this wave
        self.lane: Array = t & u(31)
        self.special: dict[str, Any] = {
            "tid.x": t % u(bx),
            "tid.y": t // u(bx) % u(by),
            "tid.z": t // u(bx * by),
            "ctaid.x": b % u(gx),
            "ctaid.y": b // u(gx) % u(gy),
            "ctaid.z": b // u(gx * gy),
            "laneid": self.lane,
            "warpid": t >> u(5),
            "smid": b % u(launch.multiprocessors),
        }
        if bx == self.stride:  # one row of whole warps: the same array
            self.special["tid.x"] = t
        exists = t < u(self.threads)
        self.exists = exists
        self.exists_count = int(np.count_nonzero(exists))
        self.live = exists.copy()
        self.live_count: int = int(np.count_nonzero(exists))
        self.registers: list[Any] = []
        self.code: Code | None = None
        self.pending: dict[int, Array] = {}  # where threads stand: basic block -> which
        self.spinning: dict[int, Array] = {}  # threads in loops that wait for other threads
        self.depth = 0  # of calls that were not inlined
        self.frame = 0  # where the local variables of the running function start
        self.frame_top = launch.code.local_bytes
        self.last_registers: list[Any] = []  # of the function that ended last
        self.findings, self.counters = launch.findings, launch.counters
        self.races = SharedRaces(self)
        self.memory = Memory(self)
        self.copies = Copies(self)
        self.barriers = Barriers(self)
        self.clusters = ClusterBarriers(self)
        self.mbarriers = Mbarriers(self)
        self.bulk = BulkCopies(self)
        self.warpgroups = Warpgroups(self)
        self.progress = False  # something that a spinning thread may wait for has happened
        self.steps = 0
        self._guards: dict[tuple[int, bool], tuple[Any, Mask, Mask | None]] = {}

    # ---- masks
    def mask(self, bits: Array) -> Mask:
        return Mask(self, bits)

    def mask_of(self, threads: Array) -> Mask:
        """The threads with these numbers."""
        bits = np.zeros(self.size, bool)
        bits[threads] = True
        return Mask(self, bits)

    def guard(self, slot: int, negated: bool, m: Mask) -> Mask | None:
        """The threads of `m` whose predicate holds; None where there are none."""
        p = self.registers[slot]
        known = self._guards.get((slot, negated))
        if known is not None and known[0] is p and known[1] is m:
            return known[2]
        if np.ndim(p) == 0:
            found: Mask | None = m if bool(p) != negated else None
        else:
            found = Mask(self, m.bits & (~p if negated else p))
            if not found.count:
                found = None
            elif found.count == m.count:
                found = m
        self._guards[slot, negated] = (p, m, found)
        return found

    # ---- running
    def run(self, code: Code, entry: Mask, registers: list[Any]) -> None:
        """Run a function for the threads `entry` until all of them have returned or exited. Blocks are entered by
        `go`, left for good by `leave`."""
        outer = (self.registers, self.pending, self.spinning, self.code) if self.depth else None
        self.registers, self.code = registers, code
        self.pending, self.spinning = {0: entry.bits}, {}
        rounds: dict[int, int] = {}
        idle = 0
        counts, limit = self.counters, self.launch.max_steps
        while True:
            if not self.pending:
                if outer is None and (self.barriers.release() or self.clusters.release()):
                    idle = 0
                elif self.spinning:
                    self.pending, self.spinning = self.spinning, {}
                    idle = 0 if self.progress else idle + 1
                    self.progress = False
                    if idle in (self.launch.max_idle // 25, self.launch.max_idle):
                        why = self.mbarriers.explain()  # of these it is known; other loops may only be long
                        if why or idle == self.launch.max_idle:
                            self.stuck("deadlock", why or "threads spin on memory that nobody writes any more")
                elif self.barriers.waiting and outer is None:
                    self.barriers.deadlock()
                elif self.clusters.waiting and outer is None:
                    self.clusters.deadlock()
                else:
                    break
                if not self.pending:
                    continue
            at = min(self.pending)
            m = Mask(self, self.pending.pop(at))
            block = code.blocks[at]
            counts.enter(block, m)
            self._guards.clear()
            self.steps += len(block.steps) + 1
            if self.steps > limit:
                self.stuck("deadlock", f"the launch did not end within {limit} steps")
            for step in block.steps:
                step(self, m)
            if block.spins:
                rounds[at] = rounds.get(at, 0) + 1
                if rounds[at] > block.patience:
                    held, self.pending = self.pending, {}
                    block.end(self, m)
                    for target, bits in self.pending.items():
                        into = self.spinning if target <= at else held
                        into[target] = into[target] | bits if target in into else bits
                    self.pending = held
                    continue
            block.end(self, m)
        self.last_registers = self.registers
        if outer is not None:
            self.registers, self.pending, self.spinning, self.code = outer
            self._guards.clear()

    def go(self, block: int, bits: Array) -> None:
        """The threads `bits` continue at a basic block."""
        there = self.pending.get(block)
        self.pending[block] = bits if there is None else there | bits

    def exit(self, m: Mask) -> None:
        """The threads end."""
        self.live &= ~m.bits
        self.live_count = int(np.count_nonzero(self.live))

    def stuck(self, kind: str, message: str) -> None:
        """A finding for the threads that wait, and the end of the launch."""
        everyone = list(self.pending.values()) + list(self.spinning.values())
        lanes = np.flatnonzero(np.logical_or.reduce(everyone)) if everyone else np.flatnonzero(self.live)
        where = min([*self.pending, *self.spinning], default=0)
        first = self.code.blocks[where].first if everyone and self.code is not None else None
        self.report(kind, message, first, lanes)
        raise Stop

    def finish(self) -> None:
        """What only shows at the end of the blocks."""
        self.copies.finish()
        self.bulk.finish()
        self.warpgroups.finish()

    # ---- names
    def address(self, place: Place) -> int:
        """The address of a variable in its own space."""
        if place.space == "local":
            return place.offset + self.frame
        if place.space == "argument":
            return place.offset + self.launch.parameter_address
        return place.offset

    def cluster_register(self, name: str) -> Any:
        """A block's place in its cluster; None for other registers. Clusters are consecutive blocks along x, then y, then z."""
        shape = self.launch.kernel.function.limits.get("reqnctapercluster", (1,))
        cx, cy, cz = (*shape, 1, 1)[:3]
        u = np.uint32
        counts = {"cluster_nctaid.x": cx, "cluster_nctaid.y": cy, "cluster_nctaid.z": cz, "cluster_nctarank": cx * cy * cz,
                  "is_explicit_cluster": 1 if cx * cy * cz > 1 else 0}  # fmt: skip
        if name in counts:
            return u(counts[name])
        axis = {"x": 0, "y": 1, "z": 2}.get(name[-1], 0)
        if name.startswith("nclusterid."):
            return u(self.launch.grid[axis] // (cx, cy, cz)[axis])
        x, y, z = (self.special[f"ctaid.{a}"] for a in "xyz")
        inside = (x % u(cx), y % u(cy), z % u(cz))
        if name.startswith("cluster_ctaid."):
            return inside[axis]
        if name == "cluster_ctarank":
            return inside[0] + u(cx) * (inside[1] + u(cy) * inside[2])
        if name.startswith("clusterid."):
            return self.special[f"ctaid.{name[-1]}"] // u((cx, cy, cz)[axis])
        return None

    def special_register(self, name: str) -> Any:
        found = self.special.get(name)
        if found is None:
            found = self.special[name] = _special(self, name)
        if name in ("clock", "clock64", "clock_hi", "globaltimer", "globaltimer_lo", "globaltimer_hi"):
            del self.special[name]
        return found

    # ---- reporting
    def coordinates(self, lane: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(block, thread) of a thread of the wave."""
        block = int(self.blocks[self.block[lane]])
        thread = int(self.thread[lane])
        gx, gy, _ = self.launch.grid
        bx, by, _ = self.launch.block
        return (block % gx, block // gx % gy, block // (gx * gy)), (thread % bx, thread // bx % by, thread // (bx * by))

    def report(
        self, kind: str, message: str, instruction: Any, lanes: Iterable[int], address: int | None = None
    ) -> None:
        """Add a finding for the threads `lanes`, of which the first is named. Raises `Stop` under check="raise"."""
        who = [int(x) for x in lanes]
        block, thread = self.coordinates(who[0]) if who else (None, None)
        self.findings.add(kind, message, instruction, block, thread, address, max(1, len(who)))
        if self.launch.check == "raise":
            raise Stop


def _special(w: Wave, name: str) -> Any:
    """A special register that is computed when asked for. Time is the number of steps so far."""
    launch = w.launch
    bx, by, bz = launch.block
    gx, gy, gz = launch.grid
    u = np.uint32
    sizes = {"ntid.x": bx, "ntid.y": by, "ntid.z": bz, "nctaid.x": gx, "nctaid.y": gy, "nctaid.z": gz,
             "nwarpid": w.stride // WARP, "nsmid": launch.multiprocessors, "gridid": 1,
             "dynamic_smem_size": launch.shared_bytes, "total_smem_size": launch.kernel.static_shared + launch.shared_bytes,
             "aggr_smem_size": launch.kernel.static_shared + launch.shared_bytes}  # fmt: skip
    if name in sizes:
        return u(sizes[name])
    if name in ("clock", "globaltimer_lo"):
        return u(w.steps & 0xFFFFFFFF)
    if name in ("clock64", "globaltimer"):
        return np.uint64(w.steps)
    if name in ("envreg1", "envreg2"):  # the workspace of a cooperative grid, upper and lower half
        return u(launch.workspace >> (32 if name == "envreg1" else 0) & 0xFFFFFFFF)
    if name.startswith("lanemask_"):
        one = u(1) << w.lane
        below = one - u(1)
        return {"eq": one, "lt": below, "le": below | one, "gt": ~(below | one), "ge": ~below}[name[9:]]
    found = w.cluster_register(name)
    return u(0) if found is None else found
