"""What differentiation costs: at run time, in ops, in compile time, and until the first gradient of a real model.

The chain is n elementwise ops of eight kinds, over 4,096 numbers, where arithmetic counts, and over 8, where what is left is
the overhead of an op and of the call. One thread; CPU seconds, so that a busy machine does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.compile import exponent
from bench.measure import ROOT, Report, interleaved, median, seconds_per_call, shown

SIZES = (10, 30, 100, 300, 1000, 3000)
LARGE = 100
WIDTH, NARROW = 4096, 8


def chain(n: int) -> Callable[[Any], Any]:
    """The sum of n elementwise ops, one on the other, which keep values near 1."""

    def f(x: Any) -> Any:
        import fluxir as fx

        steps: list[Callable[[Any], Any]] = [
            fx.sin, lambda v: v * 0.9, fx.exp, lambda v: v + 0.1, fx.tanh, lambda v: v * v, fx.sqrt, lambda v: 1.5 - v,
        ]  # fmt: skip
        for i in range(n):
            x = steps[i % len(steps)](x)
        return fx.sum(x)

    return f


def compiled_times(n: int, width: int, rounds: int) -> tuple[float, float]:
    """CPU seconds of a call of the compiled chain, and of its value and gradient."""
    import fluxir as fx

    x = np.linspace(0.2, 0.9, width).astype(np.float32)
    forward, both = fx.jit(chain(n)), fx.jit(fx.value_and_grad(chain(n)))
    calls: dict[str, Callable[[], object]] = {"forward": lambda: forward(x), "both": lambda: both(x)}
    for call in calls.values():
        call()
    times = interleaved({k: (lambda c=c: cpu_seconds(c)) for k, c in calls.items()}, rounds)
    return median(times["forward"]), median(times["both"])


def cpu_seconds(call: Callable[[], object], budget: float = 0.01) -> float:
    """The mean CPU time of one call in a burst of about `budget` seconds."""
    count = max(1, int(budget / max(seconds_per_call(call, 0.0), 1e-6)))
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


def derive_times(n: int, rounds: int) -> dict[str, float]:
    """CPU seconds of the pass, and the ops of the forward program and of the adjoint."""
    import fluxir as fx
    from fluxir import driver

    forward = fx.jit(chain(n)).lower(fx.f32[WIDTH]).module.entry.op_count
    module = fx.jit(fx.value_and_grad(chain(n))).lower(fx.f32[WIDTH]).module
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        derived, _records = driver.run_passes(module, driver.DERIVE, driver.as_target("cpu"))
        seconds.append(time.process_time() - start)
    ops = sum(f.op_count for f in derived.funcs.values())
    simple, _records = driver.run_passes(derived, driver.SIMPLIFY, driver.as_target("cpu"))
    return {
        "seconds": median(seconds),
        "forward ops": forward,
        "adjoint ops": ops,
        "simplified ops": simple.entry.op_count,
    }


def digits_times() -> dict[str, float]:
    """Seconds to the first gradient of the digits model with respect to all its weights, without a cache: tracing,
    compiling and the first call; and of the second call. Batch 64."""
    import fluxir as fx

    path = Path(ROOT) / "examples" / "digits.safetensors"
    weights = {k: np.asarray(v) for k, v in fx.load_safetensors(path).items()}

    def loss(w: Any, x: Any, y: Any) -> Any:
        h = fx.expand_dims(x, axis=1)
        for layer in ("conv1", "conv2"):
            h = fx.maximum(fx.conv(h, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=1), 0)
        h = fx.reshape(fx.max(fx.reshape(h, (x.shape[0], 24, 4, 2, 4, 2)), axis=(3, 5)), (x.shape[0], 24 * 4 * 4))
        h = fx.maximum(h @ w["dense1.weight"] + w["dense1.bias"], 0)
        z = h @ w["dense2.weight"] + w["dense2.bias"]
        return fx.mean(fx.logsumexp(z, axis=-1) - fx.sum(fx.one_hot(y, 10) * z, axis=-1))

    rng = np.random.default_rng(0)
    x, y = rng.random((64, 8, 8)).astype(np.float32), rng.integers(0, 10, 64)
    start = time.perf_counter()
    program = fx.jit(fx.value_and_grad(loss)).lower(weights, x, y).compile(cache=False)
    program(weights, x, y)
    first = time.perf_counter() - start
    return {"first": first, "later": seconds_per_call(lambda: program(weights, x, y), 0.05)}


def run(quick: bool) -> Report:
    """The chain at all sizes with one thread, then the digits model with all."""
    from fluxir import config

    with config.override(num_threads=1):
        report = _chain(quick)
    digits = [digits_times() for _ in range(2 if quick else 5)]
    report.data["digits"] = digits
    first, later = (median([d[k] for d in digits]) for k in ("first", "later"))
    report.notes.append(
        f"digits model, batch 64: first gradient of all weights {shown(first)} after the function is given (traced, compiled"
        f" without a cache, run); then {shown(later)}"
    )
    return report


def _chain(quick: bool) -> Report:
    sizes, rounds = (SIZES[:4], 3) if quick else (SIZES, 9)
    derive_times(10, 1)  # what the first use loads
    rows: list[list[str]] = []
    data: dict[str, Any] = {"chain": {}}
    for n in sizes:
        d = derive_times(n, 3)
        forward, both = compiled_times(n, WIDTH, rounds)
        least, most = compiled_times(n, NARROW, rounds)
        data["chain"][str(n)] = {**d, "forward": forward, "both": both, "forward, 8": least, "both, 8": most}
        grown = [f"{d[k] / d['forward ops']:.1f}" for k in ("adjoint ops", "simplified ops")]
        times = [shown(forward), shown(both), f"{both / forward:.2f}", shown(most / n)]
        rows.append([str(n), *times, *grown, shown(d["seconds"]), shown(d["seconds"] / n)])
    large = [n for n in sizes if n >= LARGE]
    seconds = {n: data["chain"][str(n)]["seconds"] for n in sizes}
    data["exponents"] = {
        "all": exponent(sizes, list(seconds.values())), "large": exponent(large, [seconds[n] for n in large]),
    }  # fmt: skip
    notes = [
        f"the pass takes time in proportion to ops to the power {data['exponents']['all']:.2f} over all sizes,"
        f" {data['exponents']['large']:.2f} from {LARGE} ops on",
        f"forward, value and gradient: {WIDTH} numbers, one thread; narrow, an op: value and gradient of {NARROW}"
        " numbers, the call included, by op",
        "adjoint ops: of forward and reverse together, for each traced op; what is left of them after simplification",
    ]
    columns = [
        "ops",
        "forward",
        "value and gradient",
        "ratio",
        "narrow, an op",
        "adjoint ops",
        "simplified",
        "derive",
        "derive, an op",
    ]
    return Report("Differentiation", columns, rows, data, notes)
