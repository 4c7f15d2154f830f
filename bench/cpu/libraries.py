"""How each library runs a row: `prepare(library, row)` gives a `Call`. Runs in the process of that library alone.

A call takes what the library's users hold (torch tensors, jax arrays, numpy arrays) and returns when the result is there. Ours,
numpy, numba and ONNX Runtime take and give numpy arrays.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.cpu.row import Row, leaves, tree_map

LIBRARIES = ("fluxir", "numpy", "torch", "torch.compile", "jax", "onnxruntime", "numba")
FUNCTIONS = {"fluxir": "ours", "torch.compile": "torch", "onnxruntime": "onnx"}
"""Whose function a library runs, where it has another name."""


@dataclass
class Call:
    """`run()` does the work once; `result()` gives what it computes as numpy arrays; `compile` is the seconds until the first
    result; `about` what else is worth a record, such as bytes of memory."""

    run: Callable[[], Any]
    result: Callable[[], list[Any]]
    compile: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


def environment(library: str, threads: int) -> dict[str, str]:
    """What has to stand in the environment before the library is loaded."""
    n = str(threads)
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "FLUXIR")
    found = {f"{k}_NUM_THREADS": n for k in names}
    if library == "jax" and threads == 1:
        found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return found


def can(library: str, row: Row) -> bool:
    """Whether the row says how this library does it."""
    return library in row.workers or FUNCTIONS.get(library, library) in row.functions


def prepare(library: str, row: Row, threads: int) -> Call:
    """Compiled, run once."""
    start = time.perf_counter()
    if library in row.workers:
        call = row.workers[library](row, library, threads)
        call.compile = call.compile or time.perf_counter() - start
        return call
    function = row.functions[FUNCTIONS.get(library, library)]
    inputs = row.inputs()
    start = time.perf_counter()
    run, arrays = _RUNNERS[library](row, function, inputs, threads)
    first = run()
    seconds = time.perf_counter() - start
    return Call(run, lambda: [np.array(arrays(a)) for a in leaves(first)], seconds)


def _split(row: Row, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    n = len(inputs) - row.weights
    return inputs[:n], inputs[n:]


def _fluxir(row: Row, function: Any, inputs: tuple[Any, ...], threads: int) -> Any:
    import fluxir as fx

    xs, weights = _split(row, inputs)
    f = fx.jit(lambda *xs: function(*xs, *weights))
    return functools.partial(f, *xs), np.asarray


def _numpy(row: Row, function: Any, inputs: tuple[Any, ...], threads: int) -> Any:
    return functools.partial(function, *inputs), np.asarray


def _numba(row: Row, function: Any, inputs: tuple[Any, ...], threads: int) -> Any:
    import numba

    numba.set_num_threads(threads)
    return functools.partial(function(), *inputs), np.asarray


def _torch(row: Row, function: Any, inputs: tuple[Any, ...], threads: int, compiled: bool = False) -> Any:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    xs, weights = _split(row, tree_map(torch.from_numpy, inputs))
    if not compiled:
        return functools.partial(function, *xs, *weights), _tensor
    import torch._inductor.config

    torch._inductor.config.freezing = bool(weights)  # weights are constants, laid out once

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = torch.nn.ParameterList([torch.nn.Parameter(t, requires_grad=False) for t in leaves(weights)])

        def forward(self, *xs: Any) -> Any:
            found = iter(self.all)
            return function(*xs, *(_rebuilt(w, found) for w in weights))

    return functools.partial(torch.compile(Model().eval() if weights else function), *xs), _tensor


def _rebuilt(like: Any, found: Any) -> Any:
    """A tree like `like` of the next values, in the order of `leaves`."""
    if isinstance(like, dict):
        return {k: _rebuilt(like[k], found) for k in sorted(like)}
    if isinstance(like, list | tuple):
        return type(like)(_rebuilt(v, found) for v in like)
    return next(found)


def _tensor(t: Any) -> Any:
    return t.detach().numpy()


def _jax(row: Row, function: Any, inputs: tuple[Any, ...], threads: int) -> Any:
    import jax

    f = jax.jit(function)
    given = inputs if row.kind == "call" else tree_map(jax.device_put, inputs)
    done = np.asarray if row.kind == "call" else jax.block_until_ready
    return lambda: done(f(*given)), np.asarray


def _onnxruntime(row: Row, function: Any, inputs: tuple[Any, ...], threads: int) -> Any:
    import onnxruntime

    from bench.cpu.onnx_graph import model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    data, names = model(function, inputs, row.weights)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    given = dict(zip(names, leaves(list(_split(row, inputs)[0])), strict=True))
    return lambda: session.run(None, given), np.asarray


_RUNNERS: dict[str, Callable[..., Any]] = {
    "fluxir": _fluxir, "numpy": _numpy, "numba": _numba, "torch": _torch, "jax": _jax, "onnxruntime": _onnxruntime,
    "torch.compile": functools.partial(_torch, compiled=True),
}  # fmt: skip
