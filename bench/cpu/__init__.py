"""Ours beside numpy, PyTorch (eager and compiled), JAX, ONNX Runtime and numba, on one machine, in one run.

Every library has a process of its own; they take turns round by round; results are compared before anything is timed;
the machine's limits are measured in the same run. Rows are declared in `bench/cpu/rows/`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.cpu.libraries import LIBRARIES
from bench.cpu.limits import Limits
from bench.cpu.report import as_json, cells, markdown, plot, summary
from bench.cpu.row import Row, load
from bench.cpu.session import OURS, Result, Session
from bench.measure import machine

NEEDS = {"torch.compile": "torch"}
"""The module a library comes in, where it has another name."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench cpu", description=__doc__)
    p.add_argument(
        "--row", action="append", metavar="TEXT", help="only rows whose name or class contains this text (repeatable)"
    )
    p.add_argument("--held-out", action="store_true", help="also rows of other shapes than the table's")
    p.add_argument("--threads", default="1,2", help="numbers of threads, by commas (default: 1,2)")
    p.add_argument("--rounds", type=int, default=0, help="rounds of each row (default: 5, quick: 3)")
    p.add_argument("--budget", type=float, default=0.06, help="seconds of a burst of calls (default: 0.06)")
    p.add_argument(
        "--peers", default="", help="libraries to compare with, by commas (default: all; quick: no torch.compile)"
    )
    p.add_argument("--list", action="store_true", help="print the rows and end")
    return p


def chosen(options: Any) -> list[Row]:
    """The rows that the options ask for."""
    texts = [t.lower() for t in options.row or [""]]
    rows = [r for r in load().values() if any(t in r.name.lower() or t == r.kind for t in texts)]
    return [r for r in rows if options.held_out or not r.held_out]


def available(options: Any) -> tuple[list[str], list[str]]:
    """Libraries that are installed, ours first, and those that are not."""
    everything = [n for n in LIBRARIES[1:] if not (options.quick and n == "torch.compile")]
    wanted = [OURS, *(options.peers.split(",") if options.peers else everything)]
    there = [n for n in wanted if importlib.util.find_spec(NEEDS.get(n, n)) is not None]
    return there, [n for n in wanted if n not in there]


def run(
    options: Any,
    alone: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    chunk: int = 1,
) -> tuple[list[Result], dict[int, Limits], list[str]]:
    """Prepare and measure the chosen rows, `chunk` at a time. `alone` is entered around timing."""
    rounds = options.rounds or (3 if options.quick else 5)
    names, missing = available(options)
    rows = chosen(options)
    results: list[Result] = []
    limits: dict[int, Limits] = {}
    for threads in map(int, options.threads.split(",")):
        limit = limits[threads] = Limits(threads)
        session = Session(names, threads)
        try:
            for at in range(0, len(rows), chunk):
                part = rows[at : at + chunk]
                found = [session.prepare(r) for r in part]
                with alone():
                    for r in part:
                        limit.measure(r)
                        session.measure([r.name], rounds, options.budget)
                session.drop([r.name for r in part])
                results += found
                for result in found:
                    line = [c for c in cells(result, limit)[:9] if c]
                    show(
                        f"{threads} thr. "
                        + " | ".join(line)
                        + "".join(f" [{k}: {v}]" for k, v in result.failed.items())
                    )
        finally:
            session.close()
    return results, limits, missing


def write(results: list[Result], limits: dict[int, Limits], missing: list[str], folder: Path, started: float) -> str:
    """Write `cpu.json`, `cpu.md` and `cpu.svg`; returns the Markdown."""
    where = machine()
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    about = (
        f"{where['date']}, {where['cpu']}, {where['cores']} cores, load {where['load']}, commit {where['commit']}; {versions};"
        f" {time.time() - started:.0f} s"
        + (f"; not installed here, so not measured: {', '.join(missing)}" if missing else "")
    )
    text = markdown(results, limits, about)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"title": "CPU speed beside other libraries", "machine": where, "rows": as_json(results, limits)}
    (folder / "cpu.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "cpu.md").write_text(text)
    (folder / "cpu.svg").write_text(plot(results))
    return text


def main(rest: list[str], quick: bool, out: Path) -> str:
    """The subject `cpu` of `python -m bench`; returns what is printed."""
    options = parser().parse_args(rest)
    options.quick = quick
    if quick:
        options.budget = min(options.budget, 0.02)
    if options.list:
        return "\n".join(
            f"{r.kind:12} {'held out  ' if r.held_out else '          '} {r.name}" for r in chosen(options)
        )
    started = time.time()
    results, limits, missing = run(options)
    text = write(results, limits, missing, out, started)
    return text + "\n" + "\n".join(summary(results, limits))
