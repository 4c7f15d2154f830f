"""`python -m bench.gpu_check [--device cuda] [--quick] [--out DIR]`: all that FluxIR does on a GPU, checked on one and timed.

Correctness: every op's samples, random programs and the example models with their training steps run on the device and are
compared with the interpreter. Speed: tasks of the sizes that models have, as one program each, beside PyTorch and Triton where
they are installed, all on arrays that are on the device already; results are compared before a time counts. The virtual GPU
has no times: there the sanitizer watches, and the table holds lower bounds instead (see `fluxir.runtime.vgpu.roofline`).

The report is `gpu_check.md` and `gpu_check.json`. A part that fails is a row that says so, and exit status 1.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fluxir as fx
from bench import gpu_peers
from bench.gpu_tasks import TASKS, Task
from bench.measure import RESULTS, Report, shown
from fluxir import driver
from fluxir.errors import FluxError
from fluxir.ir.core import Module
from fluxir.ir.interp import interpret
from fluxir.runtime import arguments, sizes
from fluxir.runtime.devices import load_program, target_of
from fluxir.runtime.frame import Memory
from fluxir.runtime.launch import GpuProgram

QUICK_OPS = 12  # every twelfth op


@dataclass
class Part:
    """One kind of check: how many there are, and what is wrong with those that fail."""

    name: str
    count: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def check(self, what: str, test: Callable[[], None]) -> None:
        self.count += 1
        start = time.perf_counter()
        try:
            test()
        except (AssertionError, FluxError, ArithmeticError) as problem:
            lines = str(problem).strip().splitlines() or [type(problem).__name__]
            self.failures.append(f"{what}: {' '.join(lines[:4])[:300]}")
        self.seconds += time.perf_counter() - start


def loaded(module: Module, device: str) -> GpuProgram:
    compiled = driver.compile_module(module, device=device, cache=False)
    program = load_program(compiled.spec, compiled.code, compiled.constants, device)
    assert isinstance(program, GpuProgram)
    return program


# ---- correctness ------------------------------------------------------------------------------------------------------


def ops(device: str, quick: bool) -> Part:
    from tests.op_harness import OPS, all_samples, assert_close, owners

    def one(defn: Any) -> None:
        module, arrays = all_samples(defn)
        got = loaded(module, device).call_flat(arrays)
        for case, g, w in zip(owners(defn, defn.samples), got, interpret(module, arrays), strict=True):
            assert_close(g, w, defn, case)

    part = Part("samples of ops")
    for defn in OPS[:: QUICK_OPS if quick else 1]:
        part.check(defn.name, lambda defn=defn: one(defn))
    return part


def programs(device: str, quick: bool) -> Part:
    from tests.programs import assert_same, random_program

    def one(seed: int) -> None:
        p = random_program(seed)
        assert_same(loaded(p.module, device).call_flat(p.arrays), interpret(p.module, p.arrays))

    part = Part("random programs")
    for seed in range(1000, 1003 if quick else 1100):
        part.check(f"seed {seed}", lambda seed=seed: one(seed))
    return part


def models(device: str, quick: bool) -> Part:
    from tests.model_cases import CASES, LONG, assert_like

    def one(name: str) -> None:
        module, meaning, arrays = (CASES | LONG)[name]()
        assert_like(loaded(module, device).call_flat(arrays), interpret(meaning, arrays))

    part = Part("models and training steps")
    for name in ("mlp", "newton") if quick else [*CASES, *LONG]:
        part.check(name, lambda name=name: one(name))
    return part


# ---- speed ------------------------------------------------------------------------------------------------------------


def seconds(program: GpuProgram, arrays: Sequence[Any], rounds: int) -> float:
    """The time of one call whose arrays are on the device, on the device's own clock."""
    d: Any = program.driver
    known = arguments.solve(program.spec, [a.shape for a in arrays])
    with program.memories() as allocate:
        inputs = []
        for a in arrays:
            inputs.append(Memory(allocate(a.nbytes), a.dtype, a.shape))
            d.upload(inputs[-1].address, a)
        outputs = []
        for t, kind in zip(program.spec["outputs"], program.output_dtypes, strict=True):
            shape = tuple(sizes.evaluate(n, known) for n in t["shape"])
            outputs.append(Memory(allocate(math.prod(shape) * kind.itemsize), kind, shape))

        def work() -> None:
            for _ in range(rounds):
                program.run_on(inputs, outputs, known)

        work()  # warm
        d.synchronize()
        return min(d.elapsed(work) for _ in range(3)) / rounds


def speed(device: str, quick: bool, report: Report) -> Part:
    part = Part("tasks")
    peers = gpu_peers.installed() if device.startswith("cuda") else {}
    for task in TASKS:
        part.check(task.name, lambda task=task: _task(task, device, quick, peers, report))
    return part


def _task(task: Task, device: str, quick: bool, peers: dict[str, gpu_peers.Peer], report: Report) -> None:
    arrays = task.inputs(np.random.default_rng(0), task.small if quick or device.startswith("vgpu") else task.large)
    compiled = fx.jit(task.ours).lower(*arrays).compile(device=device)
    program: Any = compiled.program
    (got,) = program.call_flat(list(arrays))
    task.check(got, arrays)
    flops, nbytes = task.work(arrays)
    data: dict[str, Any] = {"shapes": [list(a.shape) for a in arrays], "flops": flops, "bytes": nbytes}
    row = [task.name, " ".join("x".join(map(str, a.shape)) for a in arrays)[:40], str(len(program.spec["kernels"]))]
    if device.startswith("vgpu"):
        d = program.driver
        d.profiling, d.reports = True, []
        program.call_flat(list(arrays))
        d.profiling = False
        profiles = d.profile()
        bounds = {g: sum(p.bounds[g][0] for p in profiles) for g in profiles[0].bounds}
        data |= {"bounds": bounds, "kernels": [p.as_json() for p in profiles]}
        row += [shown(s) for s in bounds.values()]
    else:
        ours = seconds(program, arrays, 5 if quick else 20)
        data["fluxir"] = ours
        row += [shown(ours), f"{flops / ours / 1e12:.2f}", f"{nbytes / ours / 1e9:.0f}"]
        for name, peer in peers.items():
            told = "-"
            if name in task.peers:
                try:
                    theirs = peer(task.peers[name], arrays, got, task.rtol, 5 if quick else 20)
                    data[name] = theirs
                    told = f"{shown(theirs)} ({theirs / ours:.2f})"
                except Exception as problem:  # what another library raises is a row of the report
                    data[name] = f"failed: {problem}"
                    told = "failed"
            row.append(told)
    report.rows.append(row)
    report.data[task.name] = data


def columns(device: str) -> list[str]:
    start = ["task", "arrays", "kernels"]
    if device.startswith("vgpu"):
        from fluxir.runtime.vgpu.roofline import GPUS

        return [*start, *[f"bound {g.name}" for g in GPUS]]
    return [*start, "fluxir", "TFLOP/s", "GB/s", *[f"{n} (times ours)" for n in gpu_peers.installed()]]


def describe(device: str) -> str:
    if device.startswith("vgpu"):
        return f"the virtual GPU as {target_of(device)}, sanitizer on"
    from fluxir.runtime import cuda

    found = cuda.devices()[cuda.number_of(device)]
    return f"{found.name}, compute capability {found.capability / 10}, {found.multiprocessors} multiprocessors, driven by PyCUDA"


def run(device: str, quick: bool) -> tuple[Report, list[Part]]:
    """All parts; the report's rows are the tasks, its notes say how the checks went."""
    report = Report(f"GPU check on {describe(device)}", columns(device), [])
    parts = []
    for make in (ops, programs, models, lambda d, q: speed(d, q, report)):
        part = make(device, quick)
        parts.append(part)
        print(f"{part.name}: {part.count - len(part.failures)} of {part.count} right, {part.seconds:.1f} s", flush=True)
        report.notes.append(f"{part.name}: {part.count - len(part.failures)} of {part.count} right")
        report.notes += [f"FAILED {f}" for f in part.failures]
    report.data = {
        "device": device,
        "checks": {p.name: {"count": p.count, "seconds": round(p.seconds, 2), "failures": p.failures} for p in parts},
        "tasks": report.data,
    }
    return report, parts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, vgpu or vgpu:sm_80 (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="a sample of the checks and small sizes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report (default: bench/results)")
    options = parser.parse_args(argv)
    try:
        report, parts = run(options.device, options.quick)
    except FluxError as problem:
        print(problem.render(), file=sys.stderr)
        return problem.exit_code
    print(report.write("gpu_check", options.out))
    return 1 if any(p.failures for p in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
