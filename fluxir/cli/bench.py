"""The verb ``bench``: the time of a model, beside ONNX Runtime where wanted."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np

from .. import config
from ..errors import error
from . import sandbox
from .arrays import dim_sizes
from .common import Output, table, verb
from .models import ENTRY, TRUST, load_file, lowered
from .run import input_values, make_inputs

__all__ = ["command"]

BURST = 0.02  # seconds of a measurement
CLOSE = 1e-4  # largest difference, relative to the largest result, that counts as agreement

_HELP = """Time calls of FILE (.onnx, .py, .fx or .fxb) on arrays, given as for `fluxir run`; inputs without a value are random.

With --against onnxruntime an ONNX file is also run by ONNX Runtime on the same inputs and as many threads: rounds of both in
turns, the medians and their ratio (above 1 ours is faster), and how far the results are apart; exit status 4 where that is more
than 1e-4 of the largest. Example:

fluxir bench model.onnx --against onnxruntime --dim batch=8 --num-threads 2
"""


@verb("bench", settings=("target", "num_threads", "opt_level", "accuracy", "tuned", "cache", "cache_dir"), help=_HELP)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--against", type=click.Choice(["onnxruntime"]), help="Run this library beside ours.")
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="The value of an input.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE", help="The size of generated inputs, such as B=32.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of random inputs.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1, 10**4), help="Measurements of each.")
@ENTRY
@TRUST
def command(
    output: Output,
    file: str,
    against: str | None,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    seed: int,
    rounds: int,
    entry: str | None,
    trust: bool,
) -> int:
    if against and os.path.splitext(file)[1] != ".onnx":
        raise error("FX0904", f"--against {against} is for ONNX files, not for {file}")
    make_session = _onnxruntime() if against else None
    output.progress(f"reading {file}")
    spec, call = _onnx(file) if os.path.splitext(file)[1] == ".onnx" else _program(file, entry, trust)
    given = {one["name"]: "random" for one in spec["inputs"]} | input_values(spec, inputs)
    arrays = make_inputs(spec, given, dim_sizes(dims), seed)
    output.progress(f"compiling {file}")
    begin = time.perf_counter()
    results = call(arrays)
    first = time.perf_counter() - begin
    sandbox.lift()
    calls: dict[str, Callable[[], Any]] = {"fluxir": lambda: call(arrays)}
    rows: list[dict[str, Any]] = []
    if make_session is not None:
        begin = time.perf_counter()
        session = make_session(file)
        loading = time.perf_counter() - begin
        named = {one["name"]: a for one, a in zip(spec["inputs"], arrays)}
        rows = _differences([o.name for o in session.get_outputs()], results, session.run(None, named))
        calls["onnxruntime"] = lambda: session.run(None, named)
    times = _in_turns(calls, rounds, output)
    medians = {name: statistics.median(t) for name, t in times.items()}
    agrees = all(row["difference"] <= CLOSE for row in rows)
    data: dict[str, Any] = {
        "file": file,
        "threads": config.get().num_threads or len(os.sched_getaffinity(0)),
        "inputs": {one["name"]: list(a.shape) for one, a in zip(spec["inputs"], arrays)},
        "first_ms": round(first * 1e3, 3),
        "median_ms": {name: round(t * 1e3, 5) for name, t in medians.items()},
        "least_ms": {name: round(min(t) * 1e3, 5) for name, t in times.items()},
    }
    if rows:
        data |= {
            "ratio": round(medians["onnxruntime"] / medians["fluxir"], 3),
            "session_ms": round(loading * 1e3, 3),
            "agrees": agrees,
            "outputs": rows,
        }

    def text() -> str:
        lines = [table([(n, f"{medians[n] * 1e3:.4f} ms", f"{min(times[n]) * 1e3:.4f} ms") for n in times],
                       ("", "median", "least"), right=(1, 2))]  # fmt: skip
        if rows:
            lines.append(f"onnxruntime's time by ours: {data['ratio']:.2f}")
            lines.append(
                table([(r["name"], f"{r['difference']:.1e}") for r in rows], ("result", "difference"), right=(1,))
            )
        return "\n".join(lines)

    output.result(data, text)
    return 0 if agrees else 4


def _onnx(file: str) -> tuple[dict[str, Any], Callable[[Sequence[Any]], Sequence[Any]]]:
    """The inputs of an ONNX file as a program's are described, and a call with arrays for them."""
    from ..ir.dims import symbols_of
    from ..onnx import load

    model = load(file)
    known = {name: t for name, t in model.inputs.items() if t is not None}
    if len(known) < len(model.inputs):
        raise error("FX1208", f"{file} has inputs that are no tensors, which cannot be generated")
    spec = {
        "inputs": [
            {"name": n, "dtype": t.dtype.name, "shape": [d if isinstance(d, int) else str(d) for d in t.shape]}
            for n, t in known.items()
        ],
        "symbols": sorted({s for t in known.values() for d in t.shape for s in symbols_of(d)}),
    }

    def call(arrays: Sequence[Any]) -> Sequence[Any]:
        found = model(*arrays)
        return found if isinstance(found, tuple) else (found,)

    return spec, call


def _program(
    file: str, entry: str | None, trust: bool
) -> tuple[Mapping[str, Any], Callable[[Sequence[Any]], Sequence[Any]]]:
    """The same for a model of ours, or an artifact."""
    if os.path.splitext(file)[1] == ".fxb":
        from ..runtime.artifact import read_artifact
        from ..runtime.devices import load_program

        found = read_artifact(file)
        program = load_program(found.spec, found.code, found.constants, "cpu")
        return found.spec, program.call_flat
    compiled = lowered(load_file(file, trust), entry).compile()
    return compiled.spec, compiled.program.call_flat


def _onnxruntime() -> Callable[[str], Any]:
    """What makes a session of a file. Raises FX1209 where the package is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise error(
            "FX1209",
            "onnxruntime is not installed, so there is nothing to compare with",
            help="pip install onnxruntime",
        ) from None

    def make(file: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = config.get().num_threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    return make


def _differences(names: Sequence[str], ours: Sequence[Any], theirs: Sequence[Any]) -> list[dict[str, Any]]:
    """For each result its largest difference, relative to the largest of its numbers; infinite for another shape."""
    rows = []
    for name, a, b in zip(names, ours, theirs):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            rows.append({"name": name, "difference": float("inf")})
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        both = np.isfinite(x) & np.isfinite(y)
        same = np.array_equal(x[~both], y[~both], equal_nan=True)
        far = float(np.abs(x - y)[both].max()) if both.any() else 0.0
        scale = float(np.abs(y)[both].max()) if both.any() else 0.0
        rows.append({"name": name, "difference": far / (scale or 1.0) if same else float("inf")})
    return rows


def _in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, output: Output) -> dict[str, list[float]]:
    """Seconds a call of each, `rounds` times in turns; the order is reversed every other round."""
    counts = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        counts[name] = max(1, min(10_000, int(BURST / max(time.perf_counter() - begin, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        output.progress(f"round {turn + 1} of {rounds}")
        for name in list(calls) if turn % 2 == 0 else list(calls)[::-1]:
            call, count = calls[name], counts[name]
            begin = time.perf_counter()
            for _ in range(count):
                call()
            times[name].append((time.perf_counter() - begin) / count)
    return times
