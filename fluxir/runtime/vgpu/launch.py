"""One launch: a kernel over a grid. Splits the grid into waves, runs them one after the other, and says what happened.

The blocks of a wave are resident together; a wave takes as many as fit `LANES` threads and the memory limits below. A
cooperative launch runs all its blocks as one wave, and so does one whose threads wait for each other in loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import native
from .approximate import seeded
from .code import Code
from .counters import Counters, Recorder
from .findings import Finding, Findings, SanitizerError
from .global_races import GlobalRaces
from .memory import ALLOCATED
from .values import Array
from .wave import Stop, Wave

if TYPE_CHECKING:
    from .device import Kernel

__all__ = ["Launch", "Report", "triple"]

LANES = 1 << 16
RESIDENT = 1 << 18  # threads that are resident together where blocks may wait for each other
SHARED_LIMIT = 16 << 20  # bytes of shared memory of a wave's blocks
LOCAL_LIMIT = 128 << 20
STACK = 16384  # bytes of a thread's stack for real calls (recursion, pointers to functions)
DEVICE_HEAP = 8 << 20  # bytes that kernels may `malloc` in a launch
MAX_STEPS = 2_000_000_000
MAX_IDLE = 5000  # rounds in which every runnable thread spins and memory stays as it is

Triple = tuple[int, int, int]


@dataclass
class Report:
    """What a launch did. `findings`: what the sanitizer found (with check="collect"). `seconds`: it took on this machine,
    which says nothing about a GPU."""

    kernel: str
    grid: Triple
    block: Triple
    counters: Counters
    findings: list[Finding]
    seconds: float
    executor: str = "numpy"


class Launch:
    def __init__(
        self,
        kernel: Kernel,
        grid: Triple,
        block: Triple,
        parameters: bytes,
        shared_bytes: int,
        check: str,
        seed: int | None,
        cooperative: bool,
        max_steps: int | None = None,
    ) -> None:
        device = kernel.module.device
        self.device, self.kernel, self.heap = device, kernel, device.heap
        self.grid, self.block, self.parameters = grid, block, parameters
        self.block_count = math.prod(grid)
        self.check, self.seed, self.cooperative = check, seed, cooperative
        self.max_steps, self.max_idle = max_steps or MAX_STEPS, MAX_IDLE
        self.multiprocessors = device.multiprocessors
        own = len(parameters) + 2048  # parameters, workspace and the space between
        self.reach = self.heap.top + (DEVICE_HEAP if kernel.facts.calls else 0) + own  # bytes that may be touched
        self.code: Code = kernel.code
        self.shared_bytes = shared_bytes
        image = kernel.image
        self.shared_stride: int = -(-(image.dynamic_offset + shared_bytes) // 128) * 128
        self.shared_shadow: Array = np.zeros(self.shared_stride, np.uint8)
        for offset, size, _ in image.shared:
            self.shared_shadow[offset : offset + size] = ALLOCATED
        self.shared_shadow[image.dynamic_offset : image.dynamic_offset + shared_bytes] = ALLOCATED
        stack = STACK if kernel.facts.calls else 0
        self.local_stride: int = -(-(self.code.local_bytes + stack) // 16) * 16
        self.local_shadow: Array = np.zeros(self.local_stride, np.uint8)
        for offset, size, _ in self.code.locals:
            self.local_shadow[offset : offset + size] = ALLOCATED
        self.shared_granule: int = kernel.facts.granule
        self.parameter_address: int = 0
        self.workspace: int = 0
        self.allocated = self.allocations = 0
        self._order: Array | None = None
        self.clear()

    def clear(self) -> None:
        """Nothing has been found or counted yet."""
        facts = self.kernel.facts
        self.findings, self.counters = Findings(self.kernel.name), Recorder(self.reach)
        self.global_races: GlobalRaces | None = None
        if self.check != "off" and self.block_count > 1 and facts.writes_global:
            self.global_races = GlobalRaces(self, self.reach, facts.granule, facts.synchronises)

    def order(self, first: int, last: int) -> Array:
        """The numbers of the blocks `first` to `last - 1` of the launch, where those of a cluster follow each other by rank."""
        if self.kernel.cluster_size == 1:
            return np.arange(first, last)
        if self._order is None:
            (gx, gy, gz), (cx, cy, cz) = self.grid, self.kernel.cluster
            parts = np.arange(self.block_count).reshape(gz // cz, cz, gy // cy, cy, gx // cx, cx)
            self._order = parts.transpose(0, 2, 4, 1, 3, 5).reshape(-1)
        return self._order[first:last]

    def describe(self, kind: str, at: int) -> str:
        return self.kernel.image.describe(kind, at, self.code.locals, self.shared_bytes)

    # ---- memory that kernels ask for
    def device_malloc(self, nbytes: int) -> int:
        """The address of new memory, 0 where there is none left."""
        if self.allocated + nbytes > DEVICE_HEAP // 2 or self.allocations >= DEVICE_HEAP // 2048:
            return 0
        self.allocated, self.allocations = self.allocated + nbytes, self.allocations + 1
        return self.heap.allocate(nbytes, "device malloc")

    def device_free(self, address: int) -> bool:
        """Whether there was such an allocation."""
        if address not in self.heap.live:
            return False
        self.heap.free(address)
        return True

    @property
    def wave_blocks(self) -> int:
        """How many blocks a wave takes."""
        threads = math.prod(self.block)
        if self.cooperative or (self.kernel.facts.spins and self.block_count * threads <= RESIDENT):
            return self.block_count
        fit = [LANES // max(1, threads)]
        if self.shared_stride:
            fit.append(SHARED_LIMIT // self.shared_stride)
        if self.local_stride:
            fit.append(LOCAL_LIMIT // (self.local_stride * threads))
        cluster = self.kernel.cluster_size
        return max(1, min(fit) // cluster) * cluster

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The parameters, and what `grid.sync()` counts in, are in memory."""
        if self.parameters:
            self.parameter_address = self.heap.allocate(len(self.parameters), "kernel parameters", constant=True)
            self.heap.write(self.parameter_address, self.parameters)
        if self.cooperative:
            self.workspace = self.heap.allocate(64, "grid workspace", internal=True)
            self.heap.write(self.workspace, bytes(64))
        try:
            yield
        finally:
            if self.parameter_address:
                self.heap.free(self.parameter_address)
            if self.workspace:
                self.heap.free(self.workspace)

    def run(self, executor: str = "numpy") -> str:
        """Run all blocks, and say which executor did. Findings are in `self.findings` afterwards. FX0710 where the executor is
        "llvm" and cannot run the kernel."""
        natively = native.choose(self, executor)
        with self.prepared():
            if natively and native.run_native(self):
                return "llvm"
            per = self.wave_blocks
            with suppress(Stop), np.errstate(all="ignore"), seeded(self.seed):
                for first in range(0, self.block_count, per):
                    w = Wave(self, first, min(self.block_count, first + per))
                    try:
                        w.run(self.code, w.mask(w.live.copy()), self.code.fresh())
                        w.finish()
                    finally:
                        w.copies.abandon()
                        w.bulk.abandon()
        return "numpy"

    def report(self, seconds: float, executor: str = "numpy") -> Report:
        """The report; raises `SanitizerError` for findings under check="raise" (and for what ended the launch)."""
        found = self.findings.list()
        if found and self.check != "collect":
            raise SanitizerError(found)
        return Report(self.kernel.name, self.grid, self.block, self.counters.finish(), found, seconds, executor)


def triple(x: Any) -> Triple:
    """A grid or block as given: an integer or up to three."""
    items = [int(v) for v in (x if isinstance(x, tuple | list) else (x,))]
    if not 1 <= len(items) <= 3:
        raise ValueError(f"a grid or block has one to three sizes, not {len(items)}")
    return tuple(items + [1] * (3 - len(items)))  # type: ignore[return-value]
