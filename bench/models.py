"""Trained models beside onnxruntime: agreement, time on one and two threads, time to load, peak memory.

Each library has processes of its own, which take turns. Ours is one program for all sizes where the model leaves them open,
from the compile cache; loading is `fluxir.load` of its artifact beside the creation of a
session. Peak memory is that of a process which loads one of the two and calls it once.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import ROOT, Report, clean_environment, median, seconds_per_call, shown
from bench.zoo import MODELS, Inputs, Trained, find, installed

LIBRARIES = ("fluxir", "onnxruntime")
WAIT = 900  # seconds until a model is given up
CLOSE, ROUGH = 1e-4, 0.3  # largest difference, relative to the largest result: of floats, and of 8 bits in many layers


def chosen(name: str) -> tuple[Trained, Path]:
    model = next(m for m in MODELS if m.name == name)
    path = find(model.file)
    assert path is not None
    return model, path


def samples(model: Trained) -> list[Inputs]:
    import numpy as np

    return model.inputs(np.random.default_rng(0))


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def disagreement(found: Any, want: Any) -> tuple[float, float]:
    """The largest difference relative to the largest result, and the share of rows whose largest element is another one."""
    import numpy as np

    most, moved = 0.0, 0.0
    for a, b in zip(found if isinstance(found, tuple) else (found,), want, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            return math.inf, 1.0
        most = max(most, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-2)) if b.size else 0.0)
        if b.ndim > 1:
            top = np.take_along_axis(b, a.argmax(-1)[..., None], -1)[..., 0]  # ties within the tolerance are none
            moved = max(moved, float((b.max(-1) - top > CLOSE * np.abs(b).max()).mean()))
    return most, moved


def agreement(name: str) -> list[dict[str, Any]]:
    """For each size how far the results of both are apart; ours is compiled on the way."""
    import fluxir as fx

    model, path = chosen(name)
    theirs, ours = session(path, 1), fx.onnx.load(path)
    rows = []
    for given in samples(model):
        most, moved = disagreement(ours(*[given[n] for n in ours.inputs]), theirs.run(None, given))
        sizes = "; ".join("x".join(map(str, v.shape)) for v in given.values() if v.ndim)
        rows.append({"sizes": sizes, "open": ours.is_open, "difference": most, "moved": moved})
    return rows


def timed(name: str, library: str, threads: int) -> list[float]:
    """Seconds of a call for each size, medians of some bursts. One library in a process: threads of ONNX Runtime keep spinning
    for a while after a call, and would take a core from what comes next."""
    model, path = chosen(name)
    calls: list[Any] = []
    if library == "fluxir":
        import fluxir as fx
        from fluxir import config

        config.configure(num_threads=threads)
        ours = fx.onnx.load(path)
        calls = [lambda args=[given[n] for n in ours.inputs]: ours(*args) for given in samples(model)]
    else:
        theirs = session(path, threads)
        calls = [lambda given=given: theirs.run(None, given) for given in samples(model)]
    for call in calls:
        call()
    return [median([seconds_per_call(call, 0.03) for _ in range(5)]) for call in calls]


def saved(name: str, path: str) -> None:
    """Write the artifact for a model's first size, and the names of its inputs beside it."""
    import fluxir as fx

    model, file = chosen(name)
    ours = fx.onnx.load(file)
    args = tuple(samples(model)[0][n] for n in ours.inputs)
    program, names = ours.program(*args)
    program.save(path)
    Path(path + ".inputs").write_text(json.dumps(names))


def loaded(name: str, library: str, path: str) -> dict[str, float]:
    """Seconds to load, and the peak of memory after one call, in a process that knows one library only."""
    import resource

    model, file = chosen(name)
    given = samples(model)[0]
    if library == "fluxir":
        import fluxir

        start = time.perf_counter()
        program = fluxir.load(path)
        seconds = time.perf_counter() - start
        program(*[given[n] for n in json.loads(Path(path + ".inputs").read_text())])
    else:
        import onnxruntime  # noqa: F401

        start = time.perf_counter()
        made = session(file, 1)
        seconds = time.perf_counter() - start
        made.run(None, given)
    return {"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def child(call: str, cache: str) -> Any:
    """What a call in a process of its own gives; {"error": ...} where it fails."""
    code = f"import json; from bench import models as m; print('\\n' + json.dumps(m.{call}))"
    extra = {"FLUXIR_CACHE_DIR": cache, "TRAINED_MODELS": os.environ.get("TRAINED_MODELS", "")}
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=WAIT,
                              env={**clean_environment(), **extra})  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {WAIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:160]}
    return json.loads(done.stdout.splitlines()[-1])


def run(quick: bool) -> Report:
    """All models that are installed."""
    missing = [m.name for m in MODELS if find(m.file) is None]
    rows, data, notes = [], {}, [f"not installed (`make models`): {', '.join(missing)}"] if missing else []
    ratios: dict[int, list[float]] = {1: [], 2: []}
    models = installed() if importlib.util.find_spec("onnxruntime") else []
    if not models:
        notes.append("nothing was measured: onnxruntime and the packages of tools/models.txt are needed")
    with tempfile.TemporaryDirectory(prefix="fluxir-bench-") as cache:
        for m in models:
            agreed = child(f"agreement({m.name!r})", cache)
            if isinstance(agreed, dict):
                notes.append(f"{m.name}: {agreed['error']}")
                continue
            found = {t: turns(m, t, cache, 1 if quick else 3) for t in (1, 2)}
            load = {} if quick else loading(m, cache)
            data[m.name] = {"agreement": agreed, "threads": found, "load": load}
            for size, one in enumerate(agreed):
                cells = []
                for t in (1, 2):
                    ours, theirs = (found[t][library][size] for library in LIBRARIES)
                    ratios[t].append(theirs / ours)
                    cells += [shown(ours), f"{theirs / ours:.2f}"]
                worst = one["difference"]
                rows.append([m.name, one["sizes"], "all" if one["open"] else "each", *cells, f"{worst:.0e}"])
                if worst > (ROUGH if m.quantised else m.close) or (one["moved"] > 0 and not m.quantised):
                    notes.append(f"{m.name} {one['sizes']}: DISAGREES: {worst:.1e}, {one['moved']:.1%} of rows")
            if load and not any("error" in v for v in load.values()):
                ours, theirs = load["fluxir"], load["onnxruntime"]
                rows[-1] = [*rows[-1], *_loads(ours, theirs)]
    rows = [r + [""] * (11 - len(r)) for r in rows]
    for t, values in ratios.items():
        if values:
            mean = math.exp(sum(map(math.log, values)) / len(values))
            slow = sum(v < 0.9 for v in values)
            notes.append(
                f"{t} thread(s): {mean:.2f} times onnxruntime's speed in geometric mean; {slow} of {len(values)} below 0.9"
            )
    notes += [
        "a ratio is onnxruntime's time over ours: above 1 ours is faster; programs: one for all sizes, or one for each",
        "loading: an artifact beside a session; peak memory of a process with one library after one call",
    ]
    columns = [
        "model",
        "sizes",
        "program for",
        "1 thread",
        "ratio",
        "2 threads",
        "ratio",
        "difference",
        "load",
        "theirs",
        "peak, theirs",
    ]
    return Report("Trained models beside onnxruntime", columns, rows, data, notes)


def turns(m: Trained, threads: int, cache: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of both for each size: medians over processes in turns."""
    times: dict[str, list[list[float]]] = {library: [] for library in LIBRARIES}
    for turn in range(rounds):
        for library in LIBRARIES if turn % 2 == 0 else LIBRARIES[::-1]:
            found = child(f"timed({m.name!r}, {library!r}, {threads})", cache)
            times[library].append([math.nan] if isinstance(found, dict) else found)
    return {library: [median(list(size)) for size in zip(*runs)] for library, runs in times.items()}


def _loads(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    peaks = f"{ours['bytes'] / 2**20:.0f}, {theirs['bytes'] / 2**20:.0f} MiB"
    return [shown(ours["seconds"]), shown(theirs["seconds"]), peaks]


def loading(m: Trained, cache: str) -> dict[str, Any]:
    """Time to load and peak memory, of both."""
    path = os.path.join(cache, "model.fxb")
    done = child(f"saved({m.name!r}, {path!r})", cache)
    if isinstance(done, dict):
        return {"fluxir": done}
    return {lib: child(f"loaded({m.name!r}, {lib!r}, {path!r})", cache) for lib in LIBRARIES}
