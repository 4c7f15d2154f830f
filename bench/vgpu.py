"""The virtual GPU's executors: thread instructions per second, all checks on, on kernels that nvcc compiled.

The numbers are of this machine's CPU and say nothing about a GPU. A thread instruction is one thread's part in an instruction of
its warp (`vgpu.Counters`). The native executor's compile time is given apart: it is paid once for a kernel and kept in the
compile cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import Report, median, shown
from fluxir.runtime import vgpu

FIXTURES = Path(__file__).parent.parent / "tests" / "vgpu" / "ptx"
EXECUTORS = ("numpy", "llvm")

Prepared = tuple[vgpu.Kernel, Any, Any, list[Any], vgpu.DeviceArray, Any]
"""(kernel, grid, block, arguments, the result's array, what it has to be)."""


def _saxpy(gpu: vgpu.Device, n: int) -> Prepared:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, n)).astype(np.float32)
    to = gpu.array(y)
    kernel = _kernel(gpu, "elementwise", "saxpy")
    return kernel, -(-n // 1024), 256, [2.5, gpu.array(x), to, n], to, np.float32(2.5) * x + y


def _softmax(gpu: vgpu.Device, rows: int) -> Prepared:
    x = np.random.default_rng(2).normal(size=(rows, 1024)).astype(np.float32)
    to = gpu.empty(x.shape)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return (
        _kernel(gpu, "collective", "softmax"),
        rows,
        128,
        [gpu.array(x), to, 1024],
        to,
        e / e.sum(axis=1, keepdims=True),
    )


def _matmul(gpu: vgpu.Device, n: int) -> Prepared:
    a, b = np.random.default_rng(3).integers(-4, 5, (2, n, n)).astype(np.float16)
    to = gpu.empty((n, n))
    want = a.astype(np.float32) @ b.astype(np.float32)
    kernel = _kernel(gpu, "tensor", "matmul_f16")
    return kernel, (n // 64, n // 64), 128, [gpu.array(a), gpu.array(b), to, n, n, n], to, want


def _kernel(gpu: vgpu.Device, fixture: str, name: str) -> vgpu.Kernel:
    return gpu.load((FIXTURES / f"{fixture}.ptx").read_text())[name]


CASES: dict[str, tuple[Callable[[vgpu.Device, int], Prepared], int, int]] = {
    "saxpy": (_saxpy, 1 << 22, 1 << 18),
    "softmax": (_softmax, 2048, 128),
    "f16 tensor-core matmul": (_matmul, 512, 128),
}
"""What is run, with its size and that of a quick run."""


def run(quick: bool) -> Report:
    rows, data = [], {}
    for name, (prepare, size, small) in CASES.items():
        n = small if quick else size
        found = {executor: _measured(prepare, n, executor, 3 if quick else 5) for executor in EXECUTORS}
        counters = [found[e]["report"].counters for e in EXECUTORS]
        if counters[0] != counters[1]:
            raise AssertionError(f"{name}: the executors count differently")
        work = counters[0].thread_instructions
        speeds = {e: work / found[e]["seconds"] for e in EXECUTORS}
        rows.append([f"{name} ({n})", f"{work / 1e6:.1f} M",
                     *[f"{shown(found[e]['seconds'])}, {speeds[e] / 1e6:.0f} M/s" for e in EXECUTORS],
                     f"{speeds['llvm'] / speeds['numpy']:.1f}x", shown(found["llvm"]["first"])])  # fmt: skip
        data[name] = {"size": n, "thread_instructions": work,
                      **{e: {"seconds": found[e]["seconds"], "per_second": speeds[e]} for e in EXECUTORS},
                      "first_launch_seconds": found["llvm"]["first"]}  # fmt: skip
    return Report(
        "The virtual GPU's executors",
        ["kernel (size)", "thread instructions", "numpy", "native", "ratio", "native, first launch"],
        rows, data,
        ["All checks of the sanitizer are on; both executors give the same results and counts (checked here).",
         "Medians. The first native launch compiles, or finds the code in the compile cache."],
    )  # fmt: skip


def _measured(prepare: Callable[[vgpu.Device, int], Prepared], n: int, executor: str, rounds: int) -> dict[str, Any]:
    gpu = vgpu.Device("sm_80")
    kernel, grid, block, args, to, want = prepare(gpu, n)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        report = kernel.launch(grid, block, args, executor=executor)
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            np.testing.assert_allclose(to.numpy(), want, rtol=1e-4, atol=1e-5)
    if report.executor != executor:
        raise AssertionError(f"{kernel.name} ran on the executor {report.executor}")
    return {"seconds": median(times[1:]), "first": times[0], "report": report}
