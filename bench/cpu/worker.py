"""The process of one library: prepares rows and measures bursts of calls when asked; and its side in the parent.

Libraries have thread pools, which spin for a while after their work: a worker is stopped (SIGSTOP) when it is not its turn.
Requests and answers are lines of JSON; results of rows go through files. A worker that dies or takes too long is started again
for the next row, and the reason is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import ROOT, clean_environment

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
SLICE = 2e-4
"""Seconds that one reading of the clock covers at least."""


def burst(call: Callable[[], Any], budget: float) -> list[float]:
    """Seconds a call, of samples until `budget` seconds are spent; at least one, after a call that warms up."""
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-8)
    if once < SLICE:
        inner = range(min(2000, int(SLICE / once) + 1))
        start = time.perf_counter()
        for _ in inner:
            call()
        once = (time.perf_counter() - start) / len(inner)
    inner = range(max(1, int(SLICE / once)))
    samples: list[float] = []
    end = time.perf_counter() + budget
    while True:
        start = time.perf_counter()
        for _ in inner:
            call()
        now = time.perf_counter()
        samples.append((now - start) / len(inner))
        if now >= end:
            return samples


def serve(library: str, threads: int) -> None:
    """The worker's loop: answers `prepare`, `time` and `drop` requests on stdin, with lines on the first stdout."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            _DEATH_SIGNAL, signal.SIGKILL
        )  # a stopped process does not notice that its parent is gone
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-threads:])
    from bench.cpu import libraries
    from bench.cpu.row import load

    rows = load()
    calls: dict[str, libraries.Call] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["row"]
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "prepare":
                calls[name] = libraries.prepare(library, rows[name], threads)
                np.savez(request["to"], *calls[name].result())
                answer |= {"compile": calls[name].compile, **calls[name].about}
            elif request["do"] == "time":
                cpu, start = time.process_time(), time.perf_counter()
                answer["seconds"] = burst(calls[name].run, request["budget"])
                answer |= {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - start}
            else:
                calls.pop(name, None)
        except Exception as problem:  # the library's own: the table says why it has no time here
            text = str(problem).strip() or "no message"
            answer["error"] = f"{type(problem).__name__}: {text.splitlines()[0][:200]}"
        print(json.dumps(answer), file=out)


class Worker:
    """A library's process, seen from the parent."""

    def __init__(self, library: str, threads: int) -> None:
        from bench.cpu.libraries import environment

        self.library, self.threads = library, threads
        self.said = tempfile.TemporaryFile("w+")
        code = f"from bench.cpu.worker import serve; serve({library!r}, {threads})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, cwd=ROOT,
            env={**clean_environment(), **environment(library, threads)},
        )  # fmt: skip

    def ask(self, do: str, row: str, limit: float, **more: Any) -> dict[str, Any]:
        """The answer to one request, while which the process runs. RuntimeError where it fails, TimeoutError after `limit`
        seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write((json.dumps({"do": do, "row": row, **more}) + "\n").encode())
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], limit)
            if not ready:
                self.kill()
                raise TimeoutError(f"no answer in {limit:.0f} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(f"its process ended: {self._last_words()}")
        self.process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self.process.wait()
        self.said.seek(0)
        lines = [s for s in self.said.read().strip().splitlines() if s.strip()]
        return (lines[-1] if lines else f"exit code {code}")[:200]

    def prepare(self, row: str, limit: float) -> tuple[dict[str, Any], list[Any]]:
        """What the worker tells (`compile`, the seconds until the first result, ...), and the results."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.npz"
            answer = self.ask("prepare", row, limit, to=str(path))
            with np.load(path) as found:
                return answer, [found[k] for k in found.files]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.said.close()
