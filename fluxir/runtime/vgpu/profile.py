"""What launches on the virtual GPU say about a real one: one `KernelProfile` for each kernel, of all its launches.

Counts are added up; bounds (see `roofline`) are added too, since one launch starts when the one before has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from .counters import Counters, as_dict
from .device import Kernel
from .launch import Report
from .registers import estimate
from .roofline import GPUS, Occupancy, bounds, occupancy

__all__ = ["KernelProfile", "profile"]


@dataclass(frozen=True)
class KernelProfile:
    """`grid` and `block` of the launch with the most threads. `registers` of a thread, by `registers_from`: "ptxas" or
    "estimate". `bounds`: by GPU, the least seconds of all launches and the resource that most of it is due to. `seconds`: how
    long this machine took, which says nothing about a GPU."""

    kernel: str
    source: str
    launches: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    counters: Counters
    registers: int
    registers_from: str
    shared_bytes: int
    occupancy: Occupancy
    bounds: Mapping[str, tuple[float, str]]
    seconds: float
    executor: str

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        c, o = self.counters, self.occupancy
        return {
            "kernel": self.kernel, "source": self.source, "launches": self.launches,
            "grid": list(self.grid), "block": list(self.block),
            "registers": self.registers, "registers_from": self.registers_from, "shared_bytes": self.shared_bytes,
            "occupancy": {"blocks": o.blocks, "warps": o.warps, "of": o.most_warps, "limiter": o.limiter},
            "sectors_per_request": round(c.sectors_per_request, 3), "lane_use": round(c.lane_use, 4),
            "divergence": round(c.divergent_branches / c.branches, 4) if c.branches else 0.0,
            "bounds": {gpu: {"seconds": s, "limiter": limiter} for gpu, (s, limiter) in self.bounds.items()},
            "counters": as_dict(c), "seconds": round(self.seconds, 6), "executor": self.executor,
        }  # fmt: skip


def profile(
    reports: Iterable[Report],
    kernels: Mapping[str, Kernel],
    registers: Mapping[str, int] | None = None,
    sources: Mapping[str, str] | None = None,
    dynamic_shared: int = 0,
) -> list[KernelProfile]:
    """Profiles in the order of the kernels' first launches. `registers`: what ptxas says of them; `sources`: where they come
    from."""
    of: dict[str, list[Report]] = {}
    for r in reports:
        of.setdefault(r.kernel, []).append(r)
    return [
        _profile(found, kernels[name], (registers or {}).get(name), (sources or {}).get(name, ""), dynamic_shared)
        for name, found in of.items()
    ]


def _profile(reports: list[Report], kernel: Kernel, known: int | None, source: str, dynamic: int) -> KernelProfile:
    counters = Counters()
    least: dict[str, dict[str, float]] = {g.name: {} for g in GPUS}
    for r in reports:
        counters = counters + r.counters
        for b in bounds(r.counters, prod(r.grid)):
            by = least[b.gpu]
            by[b.limiter] = by.get(b.limiter, 0.0) + b.seconds
    largest = max(reports, key=lambda r: prod(r.grid) * prod(r.block))
    used = known if known is not None else estimate(kernel.code)
    shared = kernel.static_shared + dynamic
    target = kernel.module.device.target
    return KernelProfile(
        kernel.name, source, len(reports), largest.grid, largest.block, counters,
        used, "ptxas" if known is not None else "estimate", shared, occupancy(target, prod(largest.block), used, shared),
        {gpu: (sum(by.values()), max(by, key=lambda k: by[k])) for gpu, by in least.items()},
        sum(r.seconds for r in reports), largest.executor,
    )  # fmt: skip
