"""Kernels against numpy: the time of one call on arrays that are in cache or not, as they come.

Ours and numpy's run in a process each (their thread pools would be in each other's way), which take turns. The numpy
process starts without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE. Everything is measured with one thread on either side and
with all cores on either side. What numpy has in several calls
(softmax) is written as a numpy user would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.measure import ROOT, Report, clean_environment, median, seconds_per_call, shown

Case = tuple[Callable[..., Any], Callable[..., Any], Callable[[], tuple[Any, ...]], bool]


def _normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _layer_norm(x: Any, s: Any, b: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * s + b


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _conv(x: Any, w: Any) -> Any:
    """3 by 3 with a border of 1, by windows and one matrix product."""
    n, c, h, v = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * v, c * 9)
    return (columns @ w.reshape(w.shape[0], -1).T).reshape(n, h, v, -1).transpose(0, 3, 1, 2)


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def cases() -> dict[str, Case]:
    """name -> (fluxir function, numpy function, its arguments, whether `--quick` runs it)."""
    import fluxir as fx

    def matmul(n: int) -> Case:
        return lambda x, y: x @ y, lambda x, y: x @ y, lambda: (_normal(n, n), _normal(n, n)), n <= 256

    return {
        "matmul 64": matmul(64),
        "matmul 256": matmul(256),
        "matmul 1024": matmul(1024),
        "matmul 1x1024 by 1024x1024": (lambda x, y: x @ y, lambda x, y: x @ y, lambda: (_normal(1, 1024), _normal(1024, 1024)), True),
        "relu(x @ w + b), 256x784x512": (
            lambda x, w, b: fx.maximum(x @ w + b, 0), lambda x, w, b: np.maximum(x @ w + b, 0),
            lambda: (_normal(256, 784), _normal(784, 512), _normal(512)), True,
        ),
        "softmax 512x1000": (lambda x: fx.nn.softmax(x, axis=-1), _softmax, lambda: (_normal(512, 1000),), True),
        "layer norm 512x1024": (
            lambda x, s, b: fx.nn.layer_norm(x, s, b, eps=1e-5), _layer_norm, lambda: (_normal(512, 1024), _normal(1024), _normal(1024)), True,
        ),
        "gelu (tanh) 1M": (_gelu_ours, _gelu, lambda: (_normal(1 << 20),), True),
        "x * y + z, 1M": (lambda x, y, z: x * y + z, lambda x, y, z: x * y + z, lambda: (_normal(1 << 20), _normal(1 << 20) + 1, _normal(1 << 20) + 2), True),
        "exp 1M": (lambda x: fx.exp(x), np.exp, lambda: (_normal(1 << 20),), True),
        "sum of all, 4M": (lambda x: fx.sum(x), np.sum, lambda: (_normal(1 << 22),), False),
        "sum over rows, 2048x1024": (lambda x: fx.sum(x, axis=0), lambda x: x.sum(0), lambda: (_normal(2048, 1024),), True),
        "max over columns, 2048x1024": (lambda x: fx.max(x, axis=1), lambda x: x.max(1), lambda: (_normal(2048, 1024),), True),
        "transpose 2048x2048": (lambda x: fx.transpose(x), lambda x: np.ascontiguousarray(x.T), lambda: (_normal(2048, 2048),), True),
        "conv 3x3, 16x32x28x28 to 64": (lambda x, w: fx.conv(x, w, padding=1), _conv, lambda: (_normal(16, 32, 28, 28), _normal(64, 32, 3, 3)), True),
        "sort 100k": (lambda x: fx.sort(x), np.sort, lambda: (_normal(100_000),), True),
    }  # fmt: skip


def _gelu_ours(x: Any) -> Any:
    import fluxir as fx

    return fx.nn.gelu(x, approximate=True)


def serve(which: str) -> None:
    """The worker: for each case name on stdin, seconds per call on stdout. `which` is `fluxir` or `numpy`."""
    import fluxir as fx

    known = cases()
    ready: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ours, theirs, make, _ = known[name]
            args = make()
            call = fx.jit(ours) if which == "fluxir" else theirs
            result = np.asarray(call(*args))
            if which == "fluxir":
                np.testing.assert_allclose(result, theirs(*args), rtol=2e-3, atol=2e-3)
            ready[name] = lambda call=call, args=args: call(*args)
        print(json.dumps(seconds_per_call(ready[name], 0.05)), flush=True)


class Worker:
    """A process that answers case names with seconds; `threads` 0 means all cores."""

    def __init__(self, which: str, threads: int) -> None:
        code = f"from bench.kernels import serve; serve({which!r})"
        limits = {"OPENBLAS_NUM_THREADS": str(threads), "FLUXIR_NUM_THREADS": str(threads)} if threads else {}
        env = {**clean_environment(), **limits}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )

    def time(self, name: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended while measuring {name}")
        return float(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def run(quick: bool) -> Report:
    """Interleaved rounds of all cases in worker processes; every result of ours is checked against numpy's first."""
    names = [n for n, case in cases().items() if case[3] or not quick]
    workers = {
        f"{which}, {label}": Worker(which, threads)
        for label, threads in (("1 thread", 1), ("all", 0))
        for which in ("fluxir", "numpy")
    }
    times: dict[str, dict[str, list[float]]] = {n: {w: [] for w in workers} for n in names}
    try:
        for r in range(3 if quick else 9):
            for name in names:
                for label in list(workers)[:: 1 if r % 2 else -1]:
                    times[name][label].append(workers[label].time(name))
    finally:
        for worker in workers.values():
            worker.close()
    rows = []
    for name, t in times.items():
        middle = {label: median(values) for label, values in t.items()}
        row = [name]
        for threads in ("1 thread", "all"):
            a, b = middle[f"fluxir, {threads}"], middle[f"numpy, {threads}"]
            row += [shown(a), shown(b), f"{b / a:.2f}"]
        rows.append(row)
    columns = ["kernel", "fluxir, 1 thread", "numpy, 1 thread", "ratio", "fluxir, all", "numpy, all", "ratio"]
    notes = [
        "f32; a ratio is numpy's median time over ours: above 1 we are faster",
        "first calls, which compile, are not counted",
    ]
    return Report("Kernels against numpy", columns, rows, {"seconds": times}, notes)
