"""Rows measured in all libraries for one number of threads: prepared and checked, then timed in rounds, taking turns.

`prepare` compiles a row in every library and compares the results; a library that fails or computes something else is
named with the reason and takes no further part. `measure` times what is prepared: in each round every library has one
burst of calls, in an order that is turned round from round to round, so that a busy moment meets all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.cpu import libraries
from bench.cpu.load import Load, Ticks
from bench.cpu.row import Row
from bench.cpu.worker import Worker
from bench.measure import median

OURS = "fluxir"
PREPARE, BURST = 300.0, 60.0
"""Seconds until a worker is given up."""
NOISY = 0.1
"""Spread (of the middle half of the rounds, by the median), or share of a processor that others took, that marks a row."""


@dataclass
class Result:
    """What one row gave for one number of threads; times are in seconds, one a round."""

    row: Row
    threads: int
    times: dict[str, list[float]] = field(default_factory=dict)
    compile: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    load: Load = field(default_factory=Load)

    def time(self, library: str) -> float:
        """The median over the rounds; NaN where there is none."""
        return median(self.times[library]) if self.times.get(library) else float("nan")

    def best_peer(self) -> str | None:
        """The fastest library but ours."""
        peers = [p for p in self.times if p != OURS and self.times[p]]
        return min(peers, key=self.time) if peers else None

    def ratio(self) -> float:
        """The best peer's time by ours: above 1 we are faster."""
        peer = self.best_peer()
        return self.time(peer) / self.time(OURS) if peer else float("nan")

    def spread(self, library: str) -> float:
        """The width of the middle half of the rounds, by the median."""
        t = self.times.get(library, [])
        if len(t) < 3:
            return 0.0
        low, high = np.percentile(t, [25, 75])
        return float((high - low) / self.time(library))

    def noise(self) -> str:
        """Why the row is not to be trusted; empty where it is."""
        parts = []
        for library in (OURS, self.best_peer()):
            if library and self.spread(library) > NOISY:
                parts.append(f"{library} +-{self.spread(library) / 2:.0%}")
        other, stolen = self.load.shares()
        parts += [f"other load {other:.0%}"] if other > NOISY else []
        parts += [f"stolen {stolen:.0%}"] if stolen > NOISY / 5 else []
        return ", ".join(parts)


class Session:
    """The workers of all libraries for one number of threads."""

    def __init__(self, names: Iterable[str], threads: int) -> None:
        self.names, self.threads = list(names), threads
        self.workers: dict[str, Worker] = {}
        self.results: dict[str, Result] = {}

    def _worker(self, library: str) -> Worker:
        found = self.workers.get(library)
        if found is None or not found.alive:
            found = self.workers[library] = Worker(library, self.threads)
        return found

    def prepare(self, row: Row) -> Result:
        """Compile and run the row once in every library that can do it, and compare."""
        result = self.results[row.name] = Result(row, self.threads)
        values: dict[str, list[Any]] = {}
        for library in self.names:
            if not libraries.can(library, row):
                continue
            try:
                told, values[library] = self._worker(library).prepare(row.name, PREPARE)
            except (RuntimeError, TimeoutError) as problem:
                result.failed[library] = str(problem)
                continue
            result.compile[library] = told["compile"]
            if "memory" in told:
                result.memory[library] = told["memory"]
            result.times[library] = []
        compare(result, values)
        return result

    def measure(self, rows: Iterable[str], rounds: int, budget: float) -> None:
        """Time prepared rows: `rounds` bursts of `budget` seconds in each library."""
        for name in rows:
            result = self.results[name]
            for r in range(rounds):
                for library in list(result.times)[:: 1 if r % 2 else -1]:
                    before = Ticks.now()
                    try:
                        told = self.workers[library].ask("time", name, BURST, budget=budget)
                    except (RuntimeError, TimeoutError) as problem:
                        result.failed[library] = str(problem)
                        del result.times[library]
                        continue
                    result.load.add(before, Ticks.now(), told["wall"], told["cpu"])
                    result.times[library].append(median(told["seconds"]))

    def drop(self, rows: Iterable[str]) -> None:
        """Free what the workers hold for these rows."""
        for name in rows:
            for library in self.results[name].times:
                if self.workers[library].alive:
                    self.workers[library].ask("drop", name, BURST)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()


def difference(a: list[Any], b: list[Any], outliers: float = 0.0) -> float:
    """The largest difference of two lists of arrays, by the largest element of each array of the second; a share
    `outliers` of the elements does not count."""
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.size != y.size:
            return float("inf")
        x, y = (v.astype(np.float64).ravel() for v in (x, y))
        if np.isnan(x).any() != np.isnan(y).any():
            return float("inf")
        size = float(np.abs(y).max(initial=0.0)) or 1.0
        if x.size:
            worst = max(worst, float(np.quantile(np.abs(x - y), 1 - outliers)) / size)
    return worst


def compare(result: Result, values: dict[str, list[Any]]) -> None:
    """Take out who differs from most others by more than the row's tolerance. Where ours does, ours is out."""
    tolerance, outliers = result.row.tolerance, result.row.outliers
    agreeing = {a: sum(difference(values[a], values[b], outliers) <= tolerance for b in values) for a in values}
    if not values:
        return
    judge = max(values, key=lambda a: (agreeing[a], a == OURS))
    for library, found in values.items():
        result.differences[library] = difference(found, values[judge], outliers)
        if result.differences[library] > tolerance:
            result.failed[library] = f"its result differs from {judge}'s by {result.differences[library]:.1e}"
            del result.times[library]
