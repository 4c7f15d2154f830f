"""Trained models beside onnxruntime: agreement, time on one and two threads, time to load, peak memory.

Every model, and every number of threads, has a process of its own, in which both take turns. Ours is one program for all
sizes where the model leaves them open, from the compile cache; loading is `fluxir.load` of its artifact beside the creation of a
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

from bench.measure import ROOT, Report, clean_environment, interleaved, median, seconds_per_call, shown
from bench.zoo import MODELS, Inputs, Trained, find, installed

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


def timed(name: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """For each size: seconds of both in turns, and how far the results are apart."""
    import fluxir as fx
    from fluxir import config

    config.configure(num_threads=threads)
    model, path = chosen(name)
    theirs, ours = session(path, threads), fx.onnx.load(path)
    rows = []
    for given in samples(model):
        args = [given[n] for n in ours.inputs]
        most, moved = disagreement(ours(*args), theirs.run(None, given))
        calls = {
            "fluxir": lambda args=args: seconds_per_call(lambda: ours(*args), 0.02),
            "onnxruntime": lambda given=given: seconds_per_call(lambda: theirs.run(None, given), 0.02),
        }
        times = {k: median(v) for k, v in interleaved(calls, rounds).items()}
        sizes = "; ".join("x".join(map(str, v.shape)) or "1" for v in given.values() if v.ndim)
        rows.append({"sizes": sizes, "open": ours.is_open, "difference": most, "moved": moved, **times})
    return rows


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
            child(f"timed({m.name!r}, 1, 1)", cache)  # compile
            found = {t: child(f"timed({m.name!r}, {t}, {3 if quick else 9})", cache) for t in (1, 2)}
            if bad := [f["error"] for f in found.values() if isinstance(f, dict)]:
                notes.append(f"{m.name}: {bad[0]}")
                continue
            load = {} if quick else loading(m, cache)
            data[m.name] = {"threads": found, "load": load}
            for one, two in zip(found[1], found[2], strict=True):
                pair = [r["onnxruntime"] / r["fluxir"] for r in (one, two)]
                ratios[1].append(pair[0])
                ratios[2].append(pair[1])
                worst = max(one["difference"], two["difference"])
                times = [x for r, q in zip((one, two), pair, strict=True) for x in (shown(r["fluxir"]), f"{q:.2f}")]
                rows.append([m.name, one["sizes"], "all" if one["open"] else "each", *times, f"{worst:.0e}"])
                if worst > (ROUGH if m.quantised else CLOSE) or (one["moved"] > 0 and not m.quantised):
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


def _loads(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    peaks = f"{ours['bytes'] / 2**20:.0f}, {theirs['bytes'] / 2**20:.0f} MiB"
    return [shown(ours["seconds"]), shown(theirs["seconds"]), peaks]


def loading(m: Trained, cache: str) -> dict[str, Any]:
    """Time to load and peak memory, of both."""
    path = os.path.join(cache, "model.fxb")
    done = child(f"saved({m.name!r}, {path!r})", cache)
    if isinstance(done, dict):
        return {"fluxir": done}
    return {lib: child(f"loaded({m.name!r}, {lib!r}, {path!r})", cache) for lib in ("fluxir", "onnxruntime")}
