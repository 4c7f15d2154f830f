"""Looking inside a kernel: its texts, the resources it takes, and the grid that suits them.

Occupancy follows the CUDA Programming Guide ("Multiprocessor level"): blocks of a multiprocessor are limited by threads,
by their number, by registers (given to warps in units of 256) and by shared memory.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fluxir import config
from fluxir.errors import FluxError, error
from fluxir.ir.printer import print_func
from fluxir.kernels.build import Build, cpu_target, gpu_target
from fluxir.target import GpuTarget

if TYPE_CHECKING:
    from fluxir.kernels.kernel import Kernel

__all__ = ["Attributes", "Suggestion", "attributes", "code", "occupancy", "suggest", "target_of"]

STAGES = ("typed", "loops", "llvm", "ptx", "sass", "asm")
DEFAULT_BLOCK = (256, 1, 1)
_UNIT = 256  # registers that warps get at once


@dataclass(frozen=True)
class Attributes:
    """What a kernel takes of a GPU: registers of a thread, bytes of static shared memory of a block, bytes of local memory of
    a thread and of registers that were spilled to it. `source`: "ptxas", or "estimate" where it is not installed."""

    target: str
    registers: int
    shared: int
    local: int
    spilled: int
    source: str


class Suggestion(NamedTuple):
    """`k[s.grid, s.block]` runs the threads asked for; `occupancy` is the part of a multiprocessor's threads that are busy."""

    grid: int
    block: int
    occupancy: float


def target_of(device: str) -> GpuTarget:
    """The GPU that a kernel's resources are asked of; for the CPU that of the setting `target`, or sm_90."""
    if device != "cpu":
        return gpu_target(device)
    return gpu_target("vgpu")


def code(kernel: Kernel, stage: str, build: Build, block: Any) -> str:
    if stage not in STAGES:
        raise error("FX0512", f"a kernel has no stage {stage!r}", help="its stages are " + ", ".join(STAGES))
    if stage == "typed":
        return print_func(build.typed, locations=False) + "\n"
    device = kernel.device
    shape = block or kernel.block or DEFAULT_BLOCK
    shape = (*(shape if isinstance(shape, tuple) else (shape,)), 1, 1)[:3]
    if device == "cpu" and stage in ("loops", "llvm", "asm"):
        if stage == "loops":
            return print_func(build.loops(shape, 0), locations=False) + "\n"
        native = build.native(cpu_target(), shape, 0)
        return str(native.llvm if stage == "llvm" else native.asm)
    if stage == "asm":
        raise error(
            "FX0512", f"asm is code of a CPU, and {kernel.fn.__name__} is for {device}", help="ask for ptx or sass"
        )
    if stage == "loops":
        return print_func(build.reported[0], locations=False) + "\n"
    target = target_of(device)
    ptx = build.ptx(target)
    return str(ptx.llvm) if stage == "llvm" else str(ptx.ptx) if stage == "ptx" else sass(ptx.ptx, target)


def sass(ptx: str, target: GpuTarget) -> str:
    """The machine code of the GPU. FX0511 where ptxas or nvdisasm are not installed."""
    from fluxir.codegen.checks import find_ptxas

    with tempfile.TemporaryDirectory(prefix="fluxir-sass-") as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        done = subprocess.run(
            [find_ptxas(), "-arch", target.name, "-o", str(binary), str(source)], capture_output=True, text=True
        )
        if done.returncode:
            raise error("FX0506", f"ptxas refuses the PTX for {target.name}: {done.stderr.strip()[:2000]}")
        shown = subprocess.run([_nvdisasm(), "-c", str(binary)], capture_output=True, text=True)
        if shown.returncode:
            raise error("FX0506", f"nvdisasm: {shown.stderr.strip()[:2000]}")
        return shown.stdout


def _nvdisasm() -> str:
    import shutil

    for root in [Path(p) for p in sys.path if p.endswith("site-packages")]:
        for found in sorted(root.glob("nvidia/cu*/bin/nvdisasm")):
            return str(found)
    on_path = shutil.which("nvdisasm")
    if on_path:
        return on_path
    raise error("FX0511", "nvdisasm was not found", help="pip install nvidia-cuda-nvdisasm")


def attributes(build: Build, target: GpuTarget) -> Attributes:
    from fluxir.codegen.checks import assemble

    key = ("attributes", target.name, config.get().ptxas)
    if key in build.codes:
        return build.codes[key]  # type: ignore[no-any-return]
    ptx = build.ptx(target)
    (entry,) = ptx.spec["kernels"]
    try:
        (info,) = assemble(ptx.ptx, target.name)
        found = Attributes(target.name, info.registers, info.shared, info.stack, info.spill_stores, "ptxas")
    except FluxError as e:
        if e.code != "FX0511":
            raise
        found = Attributes(target.name, _estimate(ptx.ptx), entry["shared"], entry["local"], 0, "estimate")
    build.codes[key] = found
    return found


def _estimate(ptx: str) -> int:
    """Registers as far as the PTX tells: its virtual registers, of which at most half live together in longer code."""
    words = sum(int(n) * (2 if bits == "64" else 1) for bits, n in re.findall(r"\.reg \.b(\d+)\s+%\w+<(\d+)>", ptx))
    return max(16, min(255, words if words <= 32 else 32 + (words - 32) // 2))


def occupancy(target: GpuTarget, threads: int, registers: int, shared: int) -> float:
    """The part of a multiprocessor's threads that blocks of `threads` keep busy."""
    warps = -(-threads // target.warp)
    per_warp = -(-registers * target.warp // _UNIT) * _UNIT
    limits = [target.max_blocks_per_sm, target.max_threads_per_sm // (warps * target.warp)]
    limits.append(target.registers_per_sm // per_warp // warps if per_warp else limits[0])
    if shared:
        limits.append(target.shared_per_sm // (shared + 1024))  # each block keeps 1 KiB for the system
    return min(limits) * warps * target.warp / target.max_threads_per_sm


def suggest(kernel: Kernel, build: Build, n: int, shared: int) -> Suggestion:
    if n < 1:
        raise error("FX0335", f"{kernel.fn.__name__}: there is no grid for {n} threads")
    target = target_of(kernel.device)
    known = attributes(build, target)
    if kernel.block is not None:
        sizes = [math.prod(kernel.block)]
    else:
        sizes = [64, 128, 256, 512, 1024]
    # Of equals the one nearest to 256: enough to hide latency, little to wait for at barriers.
    best = max(
        sizes, key=lambda t: (occupancy(target, t, known.registers, known.shared + shared), -abs(math.log2(t) - 8))
    )
    return Suggestion(-(-n // best), best, occupancy(target, best, known.registers, known.shared + shared))
