"""Two programs that must mean the same: run both on seeded random inputs and compare every result.

This is what `verify="numeric"` does after each pass. Sizes are drawn so that the facts hold; inputs are tame (floats in
[-2, 2], small integers, bools at even odds). Host functions get their outputs and arena allocated here, filled with
a pattern, so that reading memory nobody wrote shows up as a difference.

Kernels interpreted element by element are slow. When a host program takes more than `max_steps`, kernels are replaced
by a stand-in that fills their outputs with values derived from all they read: no arithmetic is checked then, but every
lifetime and alias is, and that is what passes at host level change.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.ir.core import Func, Module, Op, Value
from fluxir.ir.dims import INF, Facts, _solve, assuming, evaluate, symbols_of
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.interp import Interpreter, check_guards
from fluxir.ir.types import MemType, TensorType

RTOL = {"f64": 1e-9, "f32": 2e-4, "f16": 2e-2, "bf16": 1e-1}
"""Relative tolerance by element type, of an element or of what is usual in its array: sums may be taken in another order."""
MAX_STEPS = 2_000_000  # of the interpreter, for one run
GARBAGE = 0xCB
Array = Any


def compare(
    before: Module,
    after: Module,
    step: str,
    *,
    rtol: float | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    inputs: Sequence[Array] | None = None,
    max_steps: int = MAX_STEPS,
    reproduce: bool = True,
    dump_dir: str | Path | None = None,
) -> None:
    """Raise FX0404 if the entry functions of two modules give different results; `step` is the pass to blame.

    The modules may be of different levels (before and after lowering). `sizes` and `inputs` replace the random ones.
    The error names the result and its worst element; unless `reproduce` is off it comes with a reproducer.
    """
    name = before.entry.name
    old, new = before.entry, after.funcs.get(name, after.entry)
    rng = np.random.default_rng(seed)
    env = dict(sizes) if sizes is not None else choose_sizes(before, old, rng)
    arrays = list(inputs) if inputs is not None else [random_input(v, env, rng) for v in input_values(old)]
    want, got = _run_both(before, old, after, new, arrays, env, max_steps)
    problem = None
    if len(want) != len(got):
        problem = f"{len(want)} results before, {len(got)} after"
    names = old.result_names or new.result_names
    for i, (a, b) in enumerate(zip(want, got, strict=False)):
        problem = problem or difference(a, b, rtol, names[i] if i < len(names) and names[i] else f"result {i}")
    if problem is None:
        return
    given = ", ".join(
        f"{v.name or v.index}: {a.dtype}{list(a.shape)}" for v, a in zip(input_values(old), arrays, strict=True)
    )
    notes = [f"sizes {env or 'fixed'}, seed {seed}, arguments {given}"]
    failure = error("FX0404", f"the pass {step} changed the answer of @{name}: {problem}", notes=notes,
                    help="this is a defect of the pass, not of your program")  # fmt: skip
    if reproduce:
        from fluxir.passes.reproducer import write_reproducer

        failure.notes.append(f"reproducer: {write_reproducer(before, step, failure, dump_dir, verify='numeric')}")
    raise failure


def difference(want: Array, got: Array, rtol: float | None, what: str) -> str | None:
    """In words what differs, None if nothing does. NaN equals NaN; integers and bools must be equal."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{what} was {want.dtype}{list(want.shape)} and is {got.dtype}{list(got.shape)}"
    if want.size == 0:
        return None
    if want.dtype.kind in "biu":
        bad = want != got
        size = bad.astype(np.float64)
    else:
        a, b = want.astype(np.float64), got.astype(np.float64)
        tolerance = RTOL[dtype_of(want.dtype).name] if rtol is None else rtol
        with np.errstate(all="ignore"):
            finite = np.isfinite(a) & np.isfinite(b)
            usual = np.median(np.abs(a[finite])) if finite.any() else 0.0
            size = np.abs(a - b)
            close = finite & (size <= tolerance * np.maximum(np.abs(a), max(usual, 0.05)))
            same = close | (a == b) | (np.isnan(a) & np.isnan(b))
        bad = ~same
        size = np.where(bad, np.where(np.isnan(size), np.inf, size), 0.0)
    if not bad.any():
        return None
    at = np.unravel_index(int(np.argmax(size)), size.shape)
    index = f"[{', '.join(str(int(i)) for i in at)}]" if at else ""
    return f"{what}{index} was {want[at]!s} and is {got[at]!s} ({int(bad.sum())} of {bad.size} elements differ)"


# ---- inputs -----------------------------------------------------------------------------------------------------------


def input_values(f: Func) -> list[Value]:
    """The arguments that carry inputs: all of a tensor function's, the first `inputs` memories of a host function."""
    return list(f.args) if f.level == "tensor" else list(f.args[: f.attrs.get("inputs", 0)])


def choose_sizes(module: Module, func: Func, rng: np.random.Generator, tries: int = 400) -> dict[str, int]:
    """Small values of the size symbols under which the facts hold and no dimension is negative; FX0604 if none is found."""
    facts = module.facts
    dims = [d for v in func.args for d in getattr(v.type, "shape", ())]
    names = sorted({s for d in dims for s in symbols_of(d)} | set(func.symbols))
    names += [n for a, b in facts.equations for n in sorted(symbols_of(a) | symbols_of(b)) if n not in names]
    solved = [s for a, b in facts.equations if (s := _solve(a, b)) is not None]
    for attempt in range(tries):
        env = {n: _draw(n, facts, rng, attempt) for n in names}
        try:
            for _ in solved:  # in any order, so once for each
                for name, value in solved:
                    env[name] = evaluate(value, env)
            check_guards(module, env)
            if all(evaluate(d, env) >= 0 for d in dims) and all(n >= 0 for n in env.values()):
                return env
        except FluxError:
            continue
    raise error(
        "FX0604",
        f"no sizes were found for {', '.join(names)} that satisfy {', '.join(facts.describe())}",
        help="give sizes by name",
    )


def _draw(name: str, facts: Facts, rng: np.random.Generator, attempt: int) -> int:
    lo, hi = facts.bounds.get(name, (0, INF))
    k = facts.multiples.get(name, 1)
    lo = max(-(-lo // k), 0)
    spread = 5 + attempt // 20  # wider and wider
    value = lo + int(rng.integers(0, spread))
    if lo == 0 and attempt < 50:
        value += 1  # empty tensors hide differences: they come only where nothing else fits
    return min(value * k, hi - hi % k)


def random_input(v: Value, env: Mapping[str, int], rng: np.random.Generator) -> Array:
    """An array for an argument of tensor or memory type."""
    t = v.type
    assert isinstance(t, (TensorType, MemType))
    return random_array(t.dtype, tuple(evaluate(d, env) for d in t.shape), rng)


def random_array(d: DType, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if d.is_bool:
        return np.asarray(rng.random(shape) < 0.5)
    if d.is_integer:
        return np.asarray(rng.integers(0 if d.kind == "uint" else -4, 8, shape)).astype(d.numpy)
    return np.asarray(rng.uniform(-2.0, 2.0, shape)).astype(d.numpy)


# ---- running ------------------------------------------------------------------------------------------------------------


def run(
    module: Module,
    func: Func,
    inputs: Sequence[Array],
    env: Mapping[str, int],
    max_steps: int | None = None,
    standins: bool = False,
) -> list[Array]:
    """The results of a tensor or host function. FX0109 after `max_steps`."""
    it = _StandIn(module, env, max_steps) if standins else Interpreter(module, env, max_steps)
    with assuming(module.facts):
        if func.level == "tensor":
            return [np.asarray(x) for x in it.call(func, [np.array(a) for a in inputs])]
        args = [np.array(a) for a in inputs]
        for v in func.args[len(args) :]:
            assert isinstance(v.type, MemType)
            args.append(garbage(v.type.dtype, tuple(evaluate(d, env) for d in v.type.shape)))
        it.call(func, args)
    outputs = len(func.args) - len(inputs) - ("arena" in func.attrs)
    return args[len(inputs) : len(inputs) + outputs]


def garbage(d: DType, shape: tuple[int, ...]) -> Array:
    """Memory as nobody left it on purpose."""
    count = int(np.prod(shape, dtype=np.int64))
    if d.is_bool:
        return np.ones(shape, np.bool_)
    return np.full(count * d.itemsize, GARBAGE, np.uint8).view(d.numpy).reshape(shape)


def _run_both(
    before: Module, old: Func, after: Module, new: Func, arrays: Sequence[Array], env: Mapping[str, int], max_steps: int
) -> tuple[list[Array], list[Array]]:
    for standins in (False, True):
        if standins and (old.level == "tensor" or new.level == "tensor"):
            break
        try:
            return run(before, old, arrays, env, max_steps, standins), run(after, new, arrays, env, max_steps, standins)
        except FluxError as e:
            if e.code != "FX0109":
                raise
    raise error(
        "FX0109",
        f"comparing @{old.name} takes more than {max_steps} interpreter steps",
        help="use verify=changed, or smaller sizes",
    )


class _StandIn(Interpreter):
    """Runs host functions with kernels replaced by a function of the bytes they read."""

    def step(self, op: Op, env: dict[Value, Any]) -> Sequence[Any]:
        if op.name != "launch":
            return super().step(op, env)
        self.steps += 1
        args = [env[v] for v in op.operands]
        memories = [a for a, v in zip(args, op.operands, strict=True) if isinstance(v.type, MemType)]
        outputs = op.attrs["outputs"]
        read, written = memories[: len(memories) - outputs], memories[len(memories) - outputs :]
        h = hashlib.blake2b(op.attrs["callee"].encode())
        for a in itertools.chain(
            read, (np.asarray(a) for a, v in zip(args, op.operands, strict=True) if not isinstance(v.type, MemType))
        ):
            h.update(np.ascontiguousarray(a).tobytes())
        for i, a in enumerate(written):
            rng = np.random.default_rng(np.frombuffer(h.digest(), np.uint64) + np.uint64(i))
            a[...] = random_array(_dtype(op, i), a.shape, rng)
        return []


def _dtype(op: Op, output: int) -> DType:
    memories = [v.type for v in op.operands if isinstance(v.type, MemType)]
    t: MemType = memories[len(memories) - op.attrs["outputs"] + output]
    return t.dtype


@dataclass(frozen=True)
class Drawn:
    """Inputs for a function with the sizes they were drawn for."""

    sizes: dict[str, int]
    arrays: list[Array]


def draw(module: Module, func: Func | None = None, seed: int = 0) -> Drawn:
    """Sizes and random inputs for a function (default: the entry)."""
    f = func or module.entry
    rng = np.random.default_rng(seed)
    env = choose_sizes(module, f, rng)
    return Drawn(env, [random_input(v, env, rng) for v in input_values(f)])
