"""What one call costs: adding two arrays of eight f32 numbers, compiled, from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.measure import Report, interleaved, median, seconds_per_call, shown


def _fluxir(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import fluxir as fx

    add = fx.jit(lambda a, b: a + b)
    add(x, y)
    program = add.lower(x, y).compile().program
    out = [np.empty_like(x)]
    inputs = [x, y]
    program.call_flat(inputs, out)
    return {
        "fluxir (jit)": lambda: add(x, y),
        "fluxir (program, checked, into given arrays)": lambda: program.call_flat(inputs, out),
    }


def _numpy(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    return {"numpy": lambda: x + y}


def _numba(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import numba

    add = numba.njit(lambda a, b: a + b)
    add(x, y)
    return {"numba": lambda: add(x, y)}


def _torch(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import torch

    a, b = torch.from_numpy(x), torch.from_numpy(y)
    add = torch.compile(lambda p, q: p + q)
    add(a, b)
    return {"torch (eager)": lambda: a + b, "torch (compile)": lambda: add(a, b)}


def _jax(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import jax

    add = jax.jit(lambda a, b: a + b)
    add(x, y)
    return {"jax (jit, numpy in and out)": lambda: np.asarray(add(x, y))}


def _onnxruntime(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import onnx
    import onnxruntime

    one = onnx.TensorProto.FLOAT
    a, b, c = (onnx.helper.make_tensor_value_info(n, one, [8]) for n in "abc")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["a", "b"], ["c"])], "add", [a, b], [c])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"a": x, "b": y}
    return {"onnxruntime": lambda: session.run(None, given)}


def run(quick: bool) -> Report:
    """Medians over interleaved rounds; a library that is not installed is left out and named."""
    x, y = np.arange(8, dtype=np.float32), np.ones(8, np.float32)
    calls: dict[str, Callable[[], Any]] = {}
    missing = []
    for name, make in {
        "fluxir": _fluxir,
        "numpy": _numpy,
        "numba": _numba,
        "torch": _torch,
        "jax": _jax,
        "onnxruntime": _onnxruntime,
    }.items():
        try:
            calls |= make(x, y)
        except ImportError:
            missing.append(name)
    timed = {name: (lambda call=call: seconds_per_call(call)) for name, call in calls.items()}
    times = interleaved(timed, 21 if quick else 201)
    base = median(times["numpy"])
    rows = [
        [n, shown(median(t)), shown(min(t)), f"{median(t) / base:.2f}"]
        for n, t in sorted(times.items(), key=lambda e: median(e[1]))
    ]
    notes = [f"not installed here, so not measured: {', '.join(missing)}"] if missing else []
    return Report(
        "Overhead of one call: f32[8] + f32[8]", ["", "median", "best", "times numpy"], rows, {"seconds": times}, notes
    )
