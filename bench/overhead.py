"""What one call costs from Python, by what it is given: arrays of eight f32 numbers, numbers, views, trees, buffers.

Every library does the same little work (an addition; a tree is scaled), so that what differs is the way into it and back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.measure import Report, interleaved, median, seconds_per_call, shown

ARRAYS, NUMBER, SCALAR, VIEW, NAMED, OUT, TREE, GIVEN, KERNEL = (
    "two arrays", "array and Python number", "array and numpy number", "strided view", "named arguments",
    "into a given array", "dict of 100 arrays", "dict of 100 arrays, given away", "kernel launch",
)  # fmt: skip
Calls = dict[str, Callable[[], Any]]


def leaves(make: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    return {f"layer{i}": {"w": make(np.ones(8, np.float32)), "b": make(np.ones(8, np.float32))} for i in range(50)}


def handed_on(step: Callable[[Any], Any], first: Any) -> Callable[[], Any]:
    """Calls of `step`, each on the result of the one before."""
    held = [first]

    def call() -> None:
        held[0] = step(held[0])

    return call


def _fluxir(x: Any, y: Any) -> Calls:
    import fluxir as fx

    add = fx.jit(lambda a, b: a + b)
    program = add.lower(x, y).compile().program
    scale = fx.jit(lambda t: fx.tree.map(lambda a: a * 0.5, t))
    give = fx.jit(lambda t: fx.tree.map(lambda a: a * 0.5, t), donate_argnums=0)
    out, wide, tree, seven = np.empty_like(x), np.zeros(16, np.float32)[::2], leaves(np.copy), np.float32(7)

    @fx.kernel
    def saxpy(a: Any, x: Any, y: Any) -> None:
        i = fx.gpu.global_id.x
        if i < len(x):
            y[i] += a * x[i]

    return {
        ARRAYS: lambda: add(x, y),
        NUMBER: lambda: add(x, 2.0),
        SCALAR: lambda: add(x, seven),
        VIEW: lambda: add(wide, y),
        NAMED: lambda: add(a=x, b=y),
        OUT: lambda: program(x, y, out=out),
        TREE: lambda: scale(tree),
        GIVEN: handed_on(give, leaves(np.copy)),
        KERNEL: lambda: saxpy[1, 8](2.0, x, out),
    }


def _numpy(x: Any, y: Any) -> Calls:
    out, wide, tree, seven = np.empty_like(x), np.zeros(16, np.float32)[::2], leaves(np.copy), np.float32(7)

    def scale() -> Any:
        return {k: {n: a * np.float32(0.5) for n, a in t.items()} for k, t in tree.items()}

    return {
        ARRAYS: lambda: x + y, NUMBER: lambda: x + 2.0, SCALAR: lambda: x + seven, VIEW: lambda: wide + y,
        OUT: lambda: np.add(x, y, out=out), TREE: scale,
    }  # fmt: skip


def _numba(x: Any, y: Any) -> Calls:
    import numba

    add = numba.njit(lambda a, b: a + b)
    wide, seven = np.zeros(16, np.float32)[::2], np.float32(7)
    return {
        ARRAYS: lambda: add(x, y), NUMBER: lambda: add(x, 2.0), SCALAR: lambda: add(x, seven), VIEW: lambda: add(wide, y),
        NAMED: lambda: add(a=x, b=y),
    }  # fmt: skip


def _torch(x: Any, y: Any) -> Calls:
    import torch

    a, b = torch.from_numpy(x), torch.from_numpy(y)
    out, wide, tree = torch.empty(8), torch.zeros(16)[::2], leaves(lambda v: torch.from_numpy(v.copy()))

    def scale() -> Any:
        return {k: {n: v * 0.5 for n, v in t.items()} for k, t in tree.items()}

    return {
        ARRAYS: lambda: a + b, NUMBER: lambda: a + 2.0, VIEW: lambda: wide + b, OUT: lambda: torch.add(a, b, out=out),
        TREE: scale,
    }  # fmt: skip


def _jax(x: Any, y: Any) -> Calls:
    import jax
    import jax.numpy as jnp

    add, a, b = jax.jit(lambda a, b: a + b), jnp.asarray(x), jnp.asarray(y)
    scale = jax.jit(lambda t: jax.tree.map(lambda v: v * 0.5, t))
    give = jax.jit(lambda t: jax.tree.map(lambda v: v * 0.5, t), donate_argnums=0)
    tree, wide, seven = leaves(jnp.array), np.zeros(16, np.float32)[::2], np.float32(7)
    return {
        ARRAYS: lambda: add(a, b), NUMBER: lambda: add(a, 2.0), SCALAR: lambda: add(a, seven), VIEW: lambda: add(wide, b),
        NAMED: lambda: add(a=a, b=b), TREE: lambda: scale(tree), GIVEN: handed_on(give, leaves(jnp.array)),
    }  # fmt: skip


def _onnxruntime(x: Any, y: Any) -> Calls:
    import onnx
    import onnxruntime

    one = onnx.TensorProto.FLOAT
    a, b, c = (onnx.helper.make_tensor_value_info(n, one, [8]) for n in "abc")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["a", "b"], ["c"])], "add", [a, b], [c])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"a": x, "b": y}
    return {ARRAYS: lambda: session.run(None, given)}


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
            calls |= {f"{kind} / {name}": call for kind, call in make(x, y).items()}
        except ImportError:
            missing.append(name)
    timed = {name: (lambda call=call: seconds_per_call(call, 0.002)) for name, call in calls.items()}
    times = interleaved(timed, 9 if quick else 101)
    rows = []
    for name in sorted(times, key=lambda n: (list(calls).index(n.split(" / ")[0] + " / fluxir"), median(times[n]))):
        kind, library = name.split(" / ")
        ours = median(times[f"{kind} / fluxir"])
        rows.append(
            [kind, library, shown(median(times[name])), shown(min(times[name])), f"{median(times[name]) / ours:.2f}"]
        )
    notes = [f"not installed here, so not measured: {', '.join(missing)}"] if missing else []
    head = ["given", "library", "median", "best", "times fluxir"]
    return Report("Overhead of one call", head, rows, {"seconds": times}, notes)
