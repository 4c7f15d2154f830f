"""Timing, machine description, and reports: what all benchmarks share."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def seconds_per_call(call: Callable[[], object], budget: float = 0.005) -> float:
    """The mean time of one call in a burst of about `budget` seconds. The loop around it costs some 20 ns a call."""
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-8)
    rounds = range(max(1, min(100_000, int(budget / once))))
    start = time.perf_counter()
    for _ in rounds:
        call()
    return (time.perf_counter() - start) / len(rounds)


def interleaved(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """`rounds` measurements of each, in turn; the order is reversed every other round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for r in range(rounds):
        for name in list(calls) if r % 2 == 0 else list(calls)[::-1]:
            times[name].append(calls[name]())
    return times


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def clean_environment() -> dict[str, str]:
    """The environment without what slows numpy's BLAS down, and without settings of ours."""
    slow = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {k: v for k, v in os.environ.items() if k not in slow and not k.startswith("FLUXIR_")}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    names = ["numpy", "llvmlite", "numba", "torch", "jax", "onnxruntime"]
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(), "cpu": cpu, "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), "versions": versions,
        "commit": commit.stdout.strip(),
    }  # fmt: skip


@dataclass
class Report:
    """A table with its raw data. `rows` are cells as shown; `data` is what the JSON file holds."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def markdown(self, where: dict[str, Any]) -> str:
        widths = [max(len(str(r[i])) for r in [self.columns, *self.rows]) for i in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

        about = (
            f"{where['date']}, {where['cpu']}, {where['cores']} cores, load {where['load']}, Python {where['python']},"
            f" commit {where['commit']}"
        )
        table = [line(self.columns), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *[line(r) for r in self.rows]]
        return (
            "\n".join([f"# {self.title}", "", about, "", *table, "", *[f"- {n}" for n in self.notes]]).rstrip() + "\n"
        )

    def write(self, name: str, folder: Path = RESULTS) -> str:
        """Write `NAME.json` and `NAME.md`; returns the Markdown."""
        where = machine()
        text = self.markdown(where)
        folder.mkdir(parents=True, exist_ok=True)
        document = {"title": self.title, "machine": where, "data": self.data, "notes": self.notes}
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        (folder / f"{name}.md").write_text(text)
        return text


def shown(seconds: float) -> str:
    """A time with three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= scale or unit == "ns":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError


def run_python(*args: str) -> float:
    """Wall time of a Python process, seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, capture_output=True, env=clean_environment(), cwd=ROOT)
    return time.perf_counter() - start
