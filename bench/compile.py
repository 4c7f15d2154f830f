"""Compile time against program size: three families of programs, cold (no cache), and the exponent of growth.

The exponent is the slope of a least-squares line through (log ops, log seconds). A fixed cost flattens the curve at
small sizes, so it is given twice: over all sizes, and over those of at least 300 ops, which is the one to watch.
Seconds are CPU seconds: compiling is one thread, so on an idle machine they are what the clock shows, and on a busy one
they still are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.measure import Report, median, shown

SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)
LARGE = 300


def chain(n: int) -> Callable[[Any], Any]:
    """x * c + d over and over: one long dependence."""

    def f(x: Any) -> Any:
        for i in range(n // 2):
            x = x * 1.0001 + float(i % 7)
        return x

    return f


def wide(n: int) -> Callable[[Any], Any]:
    """n/4 branches max(x * c + d, 0) of one input, all constants different, added up in a balanced tree."""

    def f(x: Any) -> Any:
        import fluxir as fx

        ys = [fx.maximum(x * (1.0 + i / 64) + i / 32, 0.0) for i in range(max(n // 4, 1))]
        while len(ys) > 1:
            ys = [a + b for a, b in zip(ys[::2], ys[1::2])] + ys[len(ys) // 2 * 2 :]
        return ys[0]

    return f


def mlp(n: int) -> Callable[[Any], Any]:
    """n/3 layers max(x @ w + b, 0) with eight different weights."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((32, 32)).astype(np.float32) / 6 for _ in range(8)]
    biases = [rng.standard_normal(32).astype(np.float32) for _ in range(8)]

    def f(x: Any) -> Any:
        import fluxir as fx

        for i in range(max(n // 3, 1)):
            x = fx.maximum(x @ weights[i % 8] + biases[i % 8], 0.0)
        return x

    return f


FAMILIES = {"chain": chain, "wide": wide, "mlp": mlp}
STAGES = ("trace", "passes", "code")


def once(make: Callable[[int], Callable[[Any], Any]], n: int) -> dict[str, float]:
    """Seconds of each stage for one program of about `n` ops, and its number of traced ops."""
    import fluxir as fx
    from fluxir import driver

    start = time.process_time()
    lowered = fx.jit(make(n)).lower(fx.f32[16, 32])
    traced = time.process_time()
    built = driver.build(lowered.module, driver.as_target("cpu"))
    passed = time.process_time()
    driver.generate(built.stages["loops"], built.target)
    done = time.process_time()
    parts = {"trace": traced - start, "passes": passed - traced, "code": done - passed, "total": done - start}
    slow = max(built.records, key=lambda r: r.ms)
    parts |= {
        "ops": lowered.module.entry.op_count,
        "kernels": len(built.stages["loops"].funcs) - 1,
        f"slowest pass: {slow.name}": slow.ms / 1e3,
    }
    return parts


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the least-squares line in log-log."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def run(quick: bool) -> Report:
    """Rounds over all families and sizes, interleaved; the first program of a process is compiled once before. All in this
    process: what others do would not be counted."""
    from fluxir import config

    with config.override(compile_workers=0):
        return _run(quick)


def _run(quick: bool) -> Report:
    once(mlp, 10)
    sizes, rounds = (SIZES[:5], 2) if quick else (SIZES, 3)
    measured: dict[str, dict[int, list[dict[str, float]]]] = {f: {n: [] for n in sizes} for f in FAMILIES}
    for _ in range(rounds):
        for n in sizes:
            for family, make in FAMILIES.items():
                measured[family][n].append(once(make, n))
    rows, fits = [], {}
    for family, by_size in measured.items():
        middle = {
            n: {k: median([r[k] for r in rs]) for k in (*STAGES, "total", "ops", "kernels")}
            for n, rs in by_size.items()
        }
        ops = {n: m["ops"] for n, m in middle.items()}
        for m in middle.values():
            rows.append(
                [
                    family,
                    f"{m['ops']:.0f}",
                    f"{m['kernels']:.0f}",
                    *[shown(m[k]) for k in STAGES],
                    shown(m["total"]),
                    f"{m['total'] / m['ops'] * 1e6:.0f}",
                ]
            )
        large = [n for n in sizes if n >= LARGE]
        fits[family] = {
            "all": exponent([ops[n] for n in sizes], [middle[n]["total"] for n in sizes]),
            **{f"large, {k}": exponent([ops[n] for n in large], [middle[n][k] for n in large]) for k in ("total", *STAGES)},
        }  # fmt: skip
    notes = ["CPU seconds; one thread"]
    for family, fit in fits.items():
        trace, passes, code = (f"{fit[f'large, {k}']:.2f}" for k in STAGES)
        notes.append(
            f"{family}: time grows with ops to the power {fit['all']:.2f} over all sizes, {fit['large, total']:.2f} from"
            f" {LARGE} ops on (trace {trace}, passes and lowering {passes}, code generation {code})"
        )
    data = {"exponents": fits, "seconds": {f: {str(n): rs for n, rs in by.items()} for f, by in measured.items()}}
    return Report(
        "Compile time against program size, cold",
        ["family", "ops", "kernels", *STAGES, "total", "us/op"],
        rows,
        data,
        notes,
    )
