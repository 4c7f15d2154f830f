"""Compile times of whole models beside torch.compile and JAX, cold and from our cache; where our time goes.

Each library compiles each model in a process of its own, in which it has compiled something small before, with its caches
empty and both cores its own. Weights of inference are constants of the program. Ours is measured as tracing, compiling and
loading; the others as their first call less a later one. "Fresh" is ours in a process that has compiled nothing: it loads
the compiler, and LLVM beside it. Models are rows of `bench.cpu`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from bench.measure import ROOT, Report, clean_environment, median, shown

MODELS = {
    "MLP 784-512-256-10, batch 32": 0.3, "encoder block d768 s128": 1.0, "ResNet-18 b1 224x224": 3.0,
    "ResNet-18 CIFAR training step b32": 6.0, "MLP training step, batch 64, Adam": 1.0,
    "LSTM 256 seq 64 batch 16, gradient": 1.0,
}  # fmt: skip
"""Rows, and the seconds that ours may take cold."""
CACHED = 0.1  # seconds that ours may take when an equal program was compiled before
CASES = {"MLP training": "mlp", "LSTM": "lstm", "ResNet-18 CIFAR": "resnet"}
PEERS = {"torch.compile": "torch", "jax": "jax"}
WAIT = 600  # seconds until a library is given up


def program(row: Any) -> tuple[Any, tuple[Any, ...], tuple[int, ...]]:
    """A row's function, arguments, and which of them are donated."""
    if not row.functions:
        from bench.train import data, ours

        case = next(c for start, c in CASES.items() if row.name.startswith(start))
        step = {"mlp": ours.adam, "lstm": ours.lstm_step, "resnet": ours.momentum}[case]
        return step, (ours.initial(case), *data.batch(case)), () if case == "lstm" else (0,)
    inputs, function = row.inputs(), row.functions["ours"]
    xs, weights = inputs[: len(inputs) - row.weights], inputs[len(inputs) - row.weights :]
    return lambda *xs: function(*xs, *weights), xs, ()


def ours(name: str, warm: bool) -> dict[str, Any]:
    """Seconds of our stages for one model, cold; with `warm` after another program, and then cached."""
    import fluxir as fx
    from bench.cpu.row import load

    fn, args, donated = program(load()[name])
    if warm:
        fx.jit(lambda x: fx.tanh(x @ x)).lower(fx.f32[8, 8]).compile(cache=False)

    def once(cache: bool | None) -> tuple[dict[str, float], Any]:
        start = time.perf_counter()
        lowered = fx.jit(fn, donate_argnums=donated).lower(*args)
        traced = time.perf_counter()
        compiled = lowered.compile(cache=cache)
        made = time.perf_counter()
        _ = compiled.program
        done = time.perf_counter()
        return {"trace": traced - start, "compile": made - traced, "load": done - made, "total": done - start}, compiled

    seconds, compiled = once(False)
    found: dict[str, Any] = {"seconds": seconds["total"], "stages": seconds}
    if warm:
        loops = compiled.build.stages["loops"]
        found["kernels"] = sum(f.level == "kernel" for f in loops.funcs.values())
        found["launches"] = sum(op.name == "launch" for f in loops.funcs.values() for op in f.walk())
        found["passes"] = {f"{r.index} {r.name}": r.ms / 1e3 for r in compiled.build.records}
        once(None)
        found["cached"] = median([once(None)[0]["total"] for _ in range(5)])
    return found


def peer(library: str, name: str) -> dict[str, Any]:
    """Seconds of the first call of a model less a later one."""
    from bench.cpu import libraries
    from bench.cpu.row import load

    if library == "jax":
        import jax

        jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))).block_until_ready()
    else:
        import torch

        torch.compile(lambda x: torch.tanh(x @ x))(torch.ones(8, 8))
    call = libraries.prepare(library, load()[name], len(os.sched_getaffinity(0)))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call.run()
        times.append(time.perf_counter() - start)
    # Contenders of training steps have subtracted a step already.
    return {"seconds": call.compile - (median(times) if load()[name].functions else 0.0)}


def measured(library: str, name: str, warm: bool = True) -> dict[str, Any]:
    """What a process of `library` says of a model; {"error": ...} where it fails."""
    call = f"ours({name!r}, {warm})" if library == "fluxir" else f"peer({library!r}, {name!r})"
    code = f"import json; from bench import compile_models as c; print('\\n' + json.dumps(c.{call}))"
    with tempfile.TemporaryDirectory(prefix="fluxir-bench-") as empty:
        extra = {"FLUXIR_CACHE_DIR": empty, "TORCHINDUCTOR_CACHE_DIR": empty, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        try:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                                  env={**clean_environment(), **extra}, timeout=WAIT)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"no answer in {WAIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:160]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(quick: bool) -> Report:
    """All models, libraries in turn; `quick`: ours alone, one round."""
    peers = [] if quick else [p for p, needs in PEERS.items() if importlib.util.find_spec(needs) is not None]
    rounds = 1 if quick else 3
    rows, data, notes = [], {}, []
    for name, limit in MODELS.items():
        results: dict[str, list[dict[str, Any]]] = {p: [] for p in ("fluxir", "fresh", *peers)}
        for _ in range(rounds):
            results["fluxir"].append(measured("fluxir", name))
            results["fresh"].append(measured("fluxir", name, warm=False))
        for p in peers:
            results[p].append(measured(p, name))
        middle: dict[str, float] = {}
        for p, found in results.items():
            notes += [f"{p} does not compile {name}: {r['error']}" for r in found if "error" in r]
            if good := [r["seconds"] for r in found if "error" not in r]:
                middle[p] = median(good)
        cached = [r["cached"] for r in results["fluxir"] if "cached" in r]
        if "fluxir" not in middle or not cached:
            continue
        one = results["fluxir"][0]
        others = [shown(middle[p]) if p in middle else "-" for p in PEERS]
        ratios = [f"{middle[p] / middle['fluxir']:.0f}x" if p in middle else "-" for p in PEERS]
        rows.append([name, f"{one['launches']} / {one['kernels']}", shown(middle["fluxir"]), f"{limit:g} s",
                     shown(middle["fresh"]), shown(median(cached)),
                     *[x for pair in zip(others, ratios, strict=True) for x in pair]])  # fmt: skip
        data[name] = results
        if middle["fluxir"] > limit:
            notes.append(f"{name}: {shown(middle['fluxir'])} cold is more than {limit:g} s")
        if median(cached) > CACHED:
            notes.append(f"{name}: {shown(median(cached))} cached is more than {CACHED:g} s")
    notes += [
        "cold: in a process that has compiled another program; fresh: the first of a process; cached: traced, found, loaded",
        "a ratio is the other's time over ours: above 1 we are faster",
    ]
    columns = ["model", "launches / kernels", "cold", "limit", "fresh", "cached"]
    columns += [c for p in PEERS for c in (p, "ratio")]
    return Report("Compile times of models", columns, rows, data, notes)
