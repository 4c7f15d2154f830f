"""Measure the error of the recipes of `fluxir/ops/approx`: the table in docs/numerics.md comes from here.

    python tools/sweep_approx.py            every function: an hour
    python tools/sweep_approx.py NAME ...   these only

f32 functions of one argument are run on all 2**32 arguments, against the C library's f64 function (odd and even ones on
the positive half: a test shows that they are odd or even to the bit). The rest are run on some millions of stratified
arguments (those of `tests/test_approx.py`, with other seeds).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fluxir.ops.approx import RECIPES
from tests.approx_harness import compile_error
from tests.test_approx import BINARY, arity, inputs, oracle

CHUNK = 1 << 21
SYMMETRIC = set("sin cos tan asin atan sinh cosh tanh asinh atanh erf cbrt".split())


def every_f32(name: str) -> tuple[float, float]:
    """(largest error, where) over all f32 arguments."""
    run = compile_error(RECIPES[name], oracle(name), "f32")
    worst = (0.0, 0.0)
    for start in range(0, 1 << 31 if name in SYMMETRIC else 1 << 32, CHUNK):
        x = np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32)
        errors = run(x)
        at = int(np.argmax(errors))
        worst = max(worst, (float(errors[at]), float(x[at])))
    return worst


def some(name: str, dtype: str, count: int, rounds: int) -> tuple[float, tuple[float, ...]]:
    """(largest error, where) over stratified arguments."""
    run = compile_error(RECIPES[name], oracle(name), dtype, arity(name))
    worst: tuple[float, tuple[float, ...]] = (0.0, ())
    for seed in range(100, 100 + rounds):
        x = inputs(name, dtype, count, seed)
        errors = run(*x)
        at = int(np.argmax(errors))
        worst = max(worst, (float(errors[at]), tuple(float(a[at]) for a in x)))
    return worst


def main(names: list[str]) -> None:
    for name in names or sorted(RECIPES):
        single = some(name, "f32", 1 << 22, 16) if name in BINARY else every_f32(name)
        double = some(name, "f64", 1 << 20, 8)
        print(f"| {name} | {single[0]:.3f} | {double[0]:.3f} |   at {single[1]} and {double[1]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
