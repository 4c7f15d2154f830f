"""Our GPU kernels beside Triton's and nvcc's, on the virtual GPU: what each costs a GPU, counted and not timed.

The peers' PTX are the fixtures of the conformance tests (`tests/vgpu`, whose scripts name the compilers' versions). Registers
and spills are those that ptxas reports for the architecture. Every result is compared with numpy before it counts.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import ROOT, Report
from fluxir.runtime import vgpu

TARGET = "sm_80"
FIXTURES = ROOT / "tests" / "vgpu"


@dataclass
class Run:
    """One contender's kernels for one task."""

    task: str
    who: str
    reports: list[vgpu.Report]
    ptx: str

    def row(self) -> list[str]:
        c = self.reports[0].counters
        for r in self.reports[1:]:
            c = c + r.counters
        used = [resources(self.ptx, r.kernel) for r in self.reports]
        threads = sum(np.prod(r.grid) * np.prod(r.block) for r in self.reports)
        requests = sum(v for k, v in c.requests.items() if k.startswith("global"))
        return [
            self.task, self.who, str(len(self.reports)), f"{int(threads):,}", "/".join(str(u[0]) for u in used),
            "/".join(str(u[1]) for u in used), f"{c.warp_instructions:,}", f"{requests:,}", f"{c.sectors_per_request:.1f}",
            f"{c.l2_bytes / 1024:,.0f}", f"{c.dram_bytes / 1024:,.0f}", f"{sum(c.wavefronts.values()):,}",
            f"{c.bank_conflicts:,}", f"{100 * c.lane_use:.0f} %",
        ]  # fmt: skip


COLUMNS = ["task", "compiler", "kernels", "threads", "registers", "spilled bytes", "warp instructions", "global requests",
           "sectors a request", "L2 KiB", "DRAM KiB", "shared wavefronts", "bank conflicts", "active lanes"]  # fmt: skip


@cache
def resources(ptx: str, kernel: str) -> tuple[int, int]:
    """(registers of a thread, bytes spilled) by ptxas -v."""
    tool = next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/ptxas"), None)
    if tool is None:
        raise SystemExit("ptxas is not installed: pip install 'fluxir[test]'")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "k.ptx")
        source.write_text(ptx)
        told = subprocess.run(
            [tool, "-v", f"-arch={TARGET}", source, "-o", "/dev/null"], capture_output=True, text=True, check=True
        )
    lines = told.stderr.splitlines()
    at = next(i for i, line in enumerate(lines) if re.search(rf"entry function '{re.escape(kernel)}'", line))
    text = "\n".join(lines[at : at + 5])
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
    used = re.search(r"Used (\d+) registers", text)
    assert used
    return int(used[1]), spills


def close(got: np.ndarray, want: np.ndarray, who: str) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3, err_msg=who)


def ours(f: Callable[..., Any], args: list[np.ndarray], want: np.ndarray) -> tuple[list[vgpu.Report], str]:
    """Our compiler's kernels for a function, run on the virtual GPU."""
    import fluxir as fx

    program = fx.jit(f).lower(*args).compile(device=f"vgpu:{TARGET}")
    driver = program.program.driver
    driver.profiling = True
    close(np.asarray(program(*args)), want, "fluxir")
    driver.reports.clear()
    program(*args)  # constants are there by now
    driver.profiling = False
    return list(driver.reports), driver.module.ptx.text


def peer(
    path: Path, kernel: str, grid: Any, block: Any, args: list[Any], out: int, want: np.ndarray, shared: int = 0
) -> tuple[list[vgpu.Report], str]:
    """A kernel of a fixture; argument `out` is the result."""
    text = path.read_text()
    gpu = vgpu.Device(TARGET)
    given = [gpu.array(a) if isinstance(a, np.ndarray) and a.ndim else a for a in args]
    report = gpu.load(text)[kernel].launch(grid, block, given, shared)
    close(given[out].numpy(), want, str(path))
    return [report], text


def triton(name: str, grid: Any, args: list[Any], out: int, want: np.ndarray) -> tuple[list[vgpu.Report], str]:
    """A Triton kernel: its block and shared memory are in the fixtures' JSON, and two pointers to scratch memory follow."""
    facts = json.loads((FIXTURES / "triton" / "launch.json").read_text())[name]
    return peer(
        FIXTURES / "triton" / f"{name}.ptx",
        facts["kernel"],
        grid,
        facts["threads"],
        [*args, 0, 0],
        out,
        want,
        facts["shared"],
    )


def tasks(quick: bool) -> list[Run]:
    import fluxir as fx

    rng = np.random.default_rng(0)
    rows, columns = (16, 1024) if quick else (128, 1024)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    half = np.ascontiguousarray(x[:, :512])  # what the fixture of Triton's layer norm takes in one block
    gain, bias = rng.normal(size=(2, 512)).astype(np.float32)
    e = np.exp(x - x.max(1, keepdims=True))
    soft = e / e.sum(1, keepdims=True)
    d = half - half.mean(1, keepdims=True)
    norm = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * gain + bias
    n = 64 if quick else 256
    a, b = rng.normal(size=(2, n, n)).astype(np.float32)
    nvcc, out, out_half = FIXTURES / "ptx", np.zeros_like(x), np.zeros_like(half)

    def layer(x: Any, gain: Any, bias: Any) -> Any:
        return fx.nn.layer_norm(x, gain, bias)

    found: list[Run] = []

    def add(task: str, who: str, result: tuple[list[vgpu.Report], str]) -> None:
        found.append(Run(task, who, *result))

    task = f"softmax {rows}x{columns}"
    add(task, "fluxir", ours(lambda x: fx.nn.softmax(x, axis=-1), [x], soft))
    add(task, "triton", triton("softmax", rows, [x, out, columns], 1, soft))
    add(task, "nvcc", peer(nvcc / "collective.ptx", "softmax", rows, 96, [x, out, columns], 1, soft))
    task = f"layer norm {rows}x512"
    add(task, "fluxir", ours(layer, [half, gain, bias], norm))
    add(task, "triton", triton("layernorm", rows, [half, gain, bias, out_half, 512, np.float32(1e-5)], 3, norm))
    add(
        task,
        "nvcc",
        peer(
            nvcc / "collective.ptx",
            "layernorm",
            rows,
            128,
            [half, gain, bias, out_half, 512, np.float32(1e-5)],
            3,
            norm,
        ),
    )
    task = f"row sums {rows}x{columns}"
    one = np.zeros(rows, np.float32)
    add(task, "fluxir", ours(lambda x: fx.sum(x, axis=-1), [x], x.sum(1)))
    add(task, "triton (with maximum and its place)",
        triton("row_sums", rows, [x, one, one.copy(), np.zeros(rows, np.int32), columns], 1, x.sum(1)))  # fmt: skip
    flat = x.reshape(-1)
    grid = max(1, rows // 4)
    parts = np.zeros(grid * 256 * -(-len(flat) // (grid * 256)), np.float32)
    parts[: len(flat)] = flat
    add(f"sum of {len(flat):,}", "fluxir", ours(fx.sum, [flat], flat.sum()))
    add(f"sum of {len(flat):,}", f"nvcc (to {grid} partial sums)",
        peer(nvcc / "collective.ptx", "block_sum", grid, 256, [flat, np.zeros(grid, np.float32), len(flat)], 1,
             parts.reshape(-1, grid, 256).sum((0, 2))))  # fmt: skip
    task = f"f32 matmul {n}x{n}x{n}"
    add(task, "fluxir", ours(lambda a, b: a @ b, [a, b], a @ b))
    add(task, "nvcc (tiles in shared memory)",
        peer(nvcc / "elementwise.ptx", "sgemm_tiled", (-(-n // 64), -(-n // 64)), 256,
             [a, b, np.zeros_like(a), n, n, n], 2, a @ b))  # fmt: skip
    return found


def run(quick: bool) -> Report:
    found = tasks(quick)
    data = {f"{r.task}, {r.who}": [vars(x.counters) for x in r.reports] for r in found}
    notes = [
        f"counts of {TARGET} on the virtual GPU, all checks on; registers and spills by ptxas; results compared with numpy"
    ]
    return Report("GPU kernels beside Triton's and nvcc's", COLUMNS, [r.row() for r in found], data, notes)
