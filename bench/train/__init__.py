"""Training steps beside PyTorch and JAX: time, compile time, memory.

Every contender runs in a process of its own (their thread pools would be in each other's way) with all cores, gets the same
weights and data, and has to give the same loss and gradient before it is timed. The processes take turns: one step at a
time is measured, a few in a row, from the same state. `--quick` runs FluxIR alone, on fewer rounds.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from bench.measure import ROOT, Report, clean_environment, median, shown
from bench.train.data import CASES

CONTENDERS = {"fluxir": "ours", "torch": "torch_", "torch.compile": "torch_", "jax": "jax_"}
NEEDS = {"torch": "torch", "torch.compile": "torch", "jax": "jax"}
BURST = 0.3  # seconds of steps a turn
WAIT = 900  # seconds until a contender is given up


def serve(which: str, case: str) -> None:
    """The worker: prepares, answers with what was measured and computed, then with the seconds of steps for every line."""
    made = importlib.import_module(f"bench.train.{CONTENDERS[which]}").Contender(case, which)
    seconds = made.compile()
    made.reset()
    loss, gradient = made.probe()
    made.reset()
    first = {
        "compile": seconds, "loss": loss, "gradient": base64.b64encode(np.ascontiguousarray(gradient)).decode(),
        "shape": list(gradient.shape), "memory": made.memory(), "about": made.describe(),
    }  # fmt: skip
    print(json.dumps(first), flush=True)
    for _ in sys.stdin:
        made.reset()
        made.step()
        times: list[float] = []
        while not times or (sum(times) < BURST and len(times) < 200):
            start = time.perf_counter()
            made.step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


class Worker:
    """A process that runs one case in one library."""

    def __init__(self, which: str, case: str) -> None:
        code = f"from bench.train import serve; serve({which!r}, {case!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=clean_environment(),
        )  # fmt: skip

    def answer(self) -> Any:
        """The next line of JSON; RuntimeError with the end of what the process said when it died."""
        assert self.process.stdout is not None and self.process.stderr is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        said = [s for s in self.process.stderr.read().strip().splitlines() if s]
        errors = [s for s in said if "rror" in s]
        raise RuntimeError((errors or said or ["it ended without a word"])[-1][:160])

    def burst(self) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return list(self.answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()


def _differences(found: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Relative difference of the losses, and largest difference of the gradients relative to their largest element."""
    a, b = (np.frombuffer(base64.b64decode(r["gradient"]), np.float32) for r in (found, other))
    return abs(found["loss"] - other["loss"]) / max(abs(other["loss"]), 1e-6), float(
        np.abs(a - b).max() / np.abs(b).max()
    )


def measure(case: str, names: list[str], rounds: int, notes: list[str]) -> dict[str, Any]:
    """What each contender that works gave: results of `serve`, with the times of its steps."""
    workers: dict[str, Worker] = {}
    results: dict[str, Any] = {}
    try:
        for name in names:  # one after the other: they compile with the machine to themselves
            worker = Worker(name, case)
            try:
                results[name] = worker.answer()
                workers[name] = worker
            except RuntimeError as problem:
                notes.append(f"{name} does not run {CASES[case]}: {problem}")
        for name in list(workers):
            if name != "fluxir" and "fluxir" in workers:
                loss, gradient = _differences(results["fluxir"], results[name])
                results[name] |= {"loss difference": loss, "gradient difference": gradient}
                # In f64 FluxIR and PyTorch give gradients of the ResNet that differ by 3e-14. In f32 each differs from its own
                # in f64 by some thousandths in the layer compared here: signs of activations near zero, through 18 layers.
                assert max(loss, gradient) < 1e-2, f"{name} computes something else: {case}, {loss:.1e}, {gradient:.1e}"
        times: dict[str, list[float]] = {name: [] for name in workers}
        for r in range(rounds):
            for name in list(workers)[:: 1 if r % 2 else -1]:
                times[name].append(median(workers[name].burst()))
    finally:
        for worker in workers.values():
            worker.close()
    for name, seconds in times.items():
        del results[name]["gradient"]
        results[name]["seconds"] = seconds
    return {n: r for n, r in results.items() if n in times}


def run(quick: bool) -> Report:
    """All cases; of what is not installed a note says so."""
    there = [n for n in CONTENDERS if n not in NEEDS or importlib.util.find_spec(NEEDS[n]) is not None]
    notes = []
    if quick:
        there = ["fluxir"]
    elif missing := [n for n in CONTENDERS if n not in there]:
        notes.append(f"not installed here, so not measured: {', '.join(missing)}")
    rows, data = [], {}
    for case, title in CASES.items():
        data[case] = measure(case, there, 3 if quick else 9, notes)
        ours = data[case].get("fluxir")
        for name, r in data[case].items():
            t = median(r["seconds"])
            ratio = f"{t / median(ours['seconds']):.2f}" if ours else "-"
            rows.append(
                [
                    title,
                    name,
                    shown(t),
                    ratio,
                    "-" if name == "torch" else shown(r["compile"]),
                    f"{r['memory'] / 2**20:.1f} MiB",
                ]
            )
    notes += [
        "a ratio is the contender's median time over ours: above 1 we are faster",
        "compile: cold, without caches; of torch.compile, the first step less a later one",
        "memory: beside weights, optimiser state and data; ours and JAX's as planned (gradients included where they are"
        " not results), PyTorch's the peak of what a step allocates",
    ]
    columns = ["step", "", "time", "ratio", "compile", "memory"]
    return Report("Training steps", columns, rows, {"cases": data}, notes)
