"""How fast a launch can be at best on a real GPU: a lower bound from what was counted and from published peaks.

It is a bound, never a timing: every resource is taken to run at its peak, all of them at once, without latency, from the first
cycle on. The largest of the times that the resources need by themselves is the bound, and that resource the limiter:

    dram    distinct sectors of global memory, from a cold L2: read once, written once
    l2      at least those, and every store and atomic
    l1      global and local requests: one a clock, 128 bytes a clock
    shared  wavefronts (32 banks of 4 bytes), one a clock
    issue   warp instructions but moves, four a clock; as the PTX has them: ptxas merges some and splits others
    others  the lanes of the unit that computes them

A launch of fewer blocks than a GPU has multiprocessors uses that many. `occupancy` says how many blocks a multiprocessor holds.

Sources: NVIDIA, "A100 Tensor Core GPU Architecture" (2020); "H100 Tensor Core GPU Architecture" (2022); "Ada GPU Architecture"
(2022); CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions" and "Technical Specifications per Compute
Capability". NVIDIA gives no L2 bandwidth for H100 and RTX 4090: there it is the 64 bytes a clock of every multiprocessor's port.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluxir.target import GpuTarget

from .counters import Counters

__all__ = ["GPUS", "Bound", "Gpu", "Occupancy", "bounds", "lower_bound", "occupancy"]

WARP = 32
SCHEDULERS = 4  # of a multiprocessor, each issues one warp instruction a clock
REGISTER_UNIT = 256  # registers are given to warps in these units
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # bytes of shared memory that the driver takes for each block, from compute capability 8.0 on


@dataclass(frozen=True)
class Gpu:
    """A GPU's peaks. `clock` in Hz; `dram` and `l2` in bytes a second; `lanes`: results a clock and multiprocessor by class of
    instruction; `tensor`: operations a second (2 for a multiply-add) of matrices without sparsity, by type."""

    name: str
    sm: int
    multiprocessors: int
    clock: float
    dram: float
    l2: float
    lanes: Mapping[str, int]
    tensor: Mapping[str, float]


_LANES = {"int": 64, "logic": 64, "compare": 64, "special": 16, "warp": 32}

GPUS: tuple[Gpu, ...] = (
    Gpu("A100 SXM 80GB", 80, 108, 1.41e9, 2.039e12, 5120 * 1.41e9,
        {**_LANES, "float32": 64, "float64": 32, "float16": 128},
        {"f16": 312e12, "bf16": 312e12, "tf32": 156e12, "int8": 624e12, "f64": 19.5e12}),
    Gpu("H100 SXM", 90, 132, 1.98e9, 3.352e12, 132 * 64 * 1.98e9,
        {**_LANES, "float32": 128, "float64": 64, "float16": 128},
        {"f16": 989.4e12, "bf16": 989.4e12, "tf32": 494.7e12, "int8": 1978.9e12, "fp8": 1978.9e12, "f64": 66.9e12}),
    Gpu("RTX 4090", 89, 128, 2.52e9, 1.008e12, 128 * 64 * 2.52e9,
        {**_LANES, "float32": 128, "float64": 2, "float16": 64},
        {"f16": 330.3e12, "bf16": 165.2e12, "tf32": 82.6e12, "int8": 660.6e12, "fp8": 660.6e12, "f64": 1.29e12}),
)  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """The least time of a launch on a GPU, in seconds. `limiter`: the resource that needs it; `times`: what each needs."""

    gpu: str
    seconds: float
    limiter: str
    times: Mapping[str, float]


def lower_bound(c: Counters, blocks: int, gpu: Gpu) -> Bound:
    """The bound of a launch of so many blocks that was counted as `c`."""
    busy = max(1, min(blocks, gpu.multiprocessors))
    clocks = gpu.clock * busy  # clocks a second of all multiprocessors that have work
    sectors, requests = c.sectors, c.requests
    written = 32 * sum(n for k, n in sectors.items() if not k.endswith("load"))
    through_l1 = sum(n for k, n in requests.items() if k.split()[0] in ("global", "local"))
    times = {
        "dram": c.dram_bytes / gpu.dram,
        "l2": max(c.dram_bytes, written) / gpu.l2,
        "l1": max(through_l1, 32 * sum(sectors.values()) / 128) / clocks,
        "shared": sum(c.wavefronts.values()) / clocks,
        "issue": (c.warp_instructions - c.by_class.get("move", 0)) / (SCHEDULERS * clocks),
    }
    for name, lanes in gpu.lanes.items():
        times[name] = WARP * c.by_class.get(name, 0) / (lanes * clocks)
    if c.tensor_flops:
        kinds = [k.partition(".")[2] for k in c.by_class if k.startswith("tensor")]
        fastest = max(gpu.tensor.values())  # also for what a GPU computes in another way, or not at all
        peak = max((gpu.tensor.get(k, fastest) for k in kinds), default=fastest)
        times["tensor"] = c.tensor_flops / (peak * busy / gpu.multiprocessors)
    limiter = max(times, key=lambda k: times[k])
    return Bound(gpu.name, times[limiter], limiter, times)


def bounds(c: Counters, blocks: int, gpus: Sequence[Gpu] = GPUS) -> list[Bound]:
    """The bounds on several GPUs."""
    return [lower_bound(c, blocks, g) for g in gpus]


@dataclass(frozen=True)
class Occupancy:
    """What fits a multiprocessor at a time. `limiter`: "registers", "shared memory", "threads" or "blocks"."""

    blocks: int
    warps: int
    most_warps: int
    limiter: str

    @property
    def share(self) -> float:
        return self.warps / self.most_warps


def occupancy(target: GpuTarget, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """For blocks of so many threads, 32-bit registers a thread, and bytes of shared memory, static and dynamic."""
    warps = math.ceil(threads / WARP)
    most_warps = target.max_threads_per_sm // WARP
    of_warp = math.ceil(max(registers, 1) * WARP / REGISTER_UNIT) * REGISTER_UNIT
    reserved = SHARED_RESERVED if target.sm >= 80 else 0
    shared = math.ceil((shared_bytes + reserved) / SHARED_UNIT) * SHARED_UNIT
    # A scheduler has a quarter of the registers, and a warp belongs to one scheduler.
    by_registers = target.registers_per_sm // SCHEDULERS // of_warp * SCHEDULERS // warps
    fit = {
        "threads": most_warps // warps,
        "blocks": target.max_blocks_per_sm,
        "registers": by_registers,
        "shared memory": target.shared_per_sm // shared if shared else target.max_blocks_per_sm,
    }
    limiter = min(fit, key=lambda k: fit[k])
    return Occupancy(fit[limiter], fit[limiter] * warps, most_warps, limiter)
