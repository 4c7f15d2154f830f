"""Small PTX kernels for tests: the frame around a few instructions, and how a test runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.runtime import vgpu

Array = np.ndarray[Any, np.dtype[Any]]

HEAD = ".version 9.0\n.target {target}\n.address_size 64\n"
REGISTERS = """
    .reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<256>; .reg .b64 %rd<64>; .reg .f32 %f<256>; .reg .f64 %d<64>;
"""


def kernel(body: str, arguments: int, target: str = "sm_90a", shared: str = "", limits: str = "", maps: int = 0) -> str:
    """A kernel `k` whose pointers `%rd0`, `%rd1`, ... are loaded; %r0 is the thread's number and %r1 its lane. `maps`: tensor maps
    after the pointers, with their addresses in `%rd40`, `%rd41`, ..."""
    parameters = [f".param .u64 a{i}" for i in range(arguments)]
    parameters += [f".param .align 64 .b8 map{i}[128]" for i in range(maps)]
    loads = "\n".join(f"    ld.param.u64 %rd{i}, [a{i}]; cvta.to.global.u64 %rd{i}, %rd{i};" for i in range(arguments))
    loads += "\n".join(
        f"    mov.b64 %rd{40 + i}, map{i}; cvta.param.u64 %rd{40 + i}, %rd{40 + i};" for i in range(maps)
    )
    return (
        f"{HEAD.format(target=target)}.visible .entry k({', '.join(parameters)}) {limits} {{\n{REGISTERS}    {shared}\n{loads}\n"
        f"    mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 31;\n{body}\n    ret;\n}}\n"
    )


BARRIER = ".shared .align 8 .b64 bar[4]; .shared .align 1024 .b8 buffer[4096];"
SLOT = "mul.wide.u32 %rd9, %r0, 4; add.s64 %rd9, %rd0, %rd9;"  # the thread's word of the first array


def wait(barrier: str, parity: str, label: str = "again") -> str:
    """A loop until the phase of an mbarrier has ended."""
    return (
        f"{label}: mbarrier.try_wait.parity.shared::cta.b64 %p9, [{barrier}], {parity};\n"
        f"    @%p9 bra done_{label};\n    bra {label};\ndone_{label}:\n"
    )


def run(
    text: str,
    arrays: Sequence[Array],
    grid: Any = 1,
    block: Any = 32,
    check: str = "raise",
    target: str = "sm_90a",
    shared_bytes: int = 0,
    maps: Sequence[Callable[[list[vgpu.DeviceArray]], bytes]] = (),
) -> tuple[list[Array], vgpu.Report]:
    """Launch the kernel `k` on copies of the arrays and on the tensor maps that `maps` make of them: (what is in the arrays
    afterwards, the report)."""
    gpu = vgpu.Device(target, capacity=1 << 26)
    there = [gpu.array(a) for a in arrays]
    arguments = [*there, *(make(there) for make in maps)]
    report = gpu.load(text)["k"].launch(grid, block, arguments, shared_bytes=shared_bytes, check=check)
    return [a.numpy() for a in there], report


def kinds(report: vgpu.Report) -> set[str]:
    return {f.kind for f in report.findings}
