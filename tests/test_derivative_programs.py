"""Derivatives of random programs: reverse against forward mode, and native code against the interpreter.

For any program, cotangents times the tangents that come out equal the cotangents that come out times the tangents that went
in, whatever the program does at kinks, and to the precision of its narrowest type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fluxir.driver import DERIVE, compile_module, run_passes
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Module, Value
from fluxir.ir.interp import interpret
from fluxir.ops.control import Transform
from tests.programs import Program, random_program


def floats(values: Sequence[Value]) -> list[int]:
    return [i for i, v in enumerate(values) if v.type.dtype.is_float]


def asking(p: Program, kind: str, wrt: list[int], of: list[int]) -> Module:
    """A module whose entry asks for a derivative of the program."""
    f = p.module.entry
    extra = [f.args[i].type for i in wrt] if kind == "jvp" else [f.outs[j].type for j in of]
    args = [Value(t, None, i) for i, t in enumerate([*[a.type for a in f.args], *extra])]
    types = [f.args[i].type for i in wrt]
    if kind == "jvp":
        types = [*[v.type for v in f.outs], *[f.outs[j].type for j in of]]
    b = Builder()
    transform = str(Transform(kind, tuple(wrt), tuple(of)))
    outs = b.emit("call", *args, callee="callee", results=tuple(types), transform=transform)
    others = {n: g for n, g in p.module.funcs.items() if n != f.name}
    funcs = {"derived": Func("derived", Block(args, b.ops, outs)), "callee": Func("callee", f.block), **others}
    return Module("m", funcs, p.module.facts)


def wide(x: Any) -> Any:
    return np.asarray(x).astype(np.float64)


def check(seed: int, ops: int) -> None:
    p = random_program(seed, ops=ops)
    f = p.module.entry
    wrt, of = floats(f.args), floats(f.outs)
    if not wrt or not of:
        return
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        outs = interpret(p.module, p.arrays)
        vs = [rng.standard_normal(p.arrays[i].shape).astype(p.arrays[i].dtype) for i in wrt]
        cts = [rng.standard_normal(outs[j].shape).astype(outs[j].dtype) for j in of]
        jvp, pullback = asking(p, "jvp", wrt, of), asking(p, "pullback", wrt, of)
        tangents = interpret(run_passes(jvp, DERIVE)[0], [*p.arrays, *vs])[len(f.outs) :]
        grads = interpret(run_passes(pullback, DERIVE)[0], [*p.arrays, *cts])
        pairs = [*zip(grads, vs, strict=True)], [*zip(cts, tangents, strict=True)]
        lhs, rhs = (sum(np.sum(wide(a) * wide(b)) for a, b in side) for side in pairs)
        scale = sum(np.sum(np.abs(wide(a) * wide(b))) for side in pairs for a, b in side)
    half = any(r.type.dtype.is_float and r.type.dtype.bits == 16 for op in f.walk() for r in op.results)
    if np.isfinite(lhs) and np.isfinite(rhs):
        assert abs(lhs - rhs) <= (2e-2 if half else 1e-4) * (1 + scale), f"seed {seed}: {lhs} and {rhs}"
    program = compile_module(pullback, "cpu", cache=False).program
    for a, b in zip(grads, program.call_flat([np.copy(x) for x in [*p.arrays, *cts]]), strict=True):
        a, b = wide(a), wide(b)
        known = np.isfinite(a) & np.isfinite(b)
        limit = (5e-2 if half else 2e-3) * (1 + np.max(np.abs(a[known]), initial=0))
        assert np.max(np.abs(a - b)[known], initial=0) <= limit, f"seed {seed}"


@pytest.mark.parametrize("seed", range(40))
def test_derivatives_of_random_programs(seed: int) -> None:
    check(seed, ops=10)


@pytest.mark.deep
@pytest.mark.parametrize("block", range(8))
def test_derivatives_of_many_more(block: int) -> None:
    for seed in range(20_000 + 60 * block, 20_060 + 60 * block):
        check(seed, ops=16)
