"""Searching for faster schedules: `fx.tune(f, args)`, and what `fluxir tune` does.

Every op of the fused program is tuned by itself, as a program of its own on random numbers: those that take longest first. From
the heuristic schedule (or what is known) the search walks to better neighbours (`Question.neighbours`) until none is better
or the bounds are reached. A schedule is accepted only if its results are those of the default, and if it is faster in
two races of interleaved rounds. What is found goes to a file that names questions by structure and target, not by names: it
serves every program that has the same kernel, on every machine that compiles for the same target.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxir import config, driver
from fluxir.errors import FluxError, error
from fluxir.ir.build import Builder, clone_ops
from fluxir.ir.core import Attrs, Block, Func, Module, Value
from fluxir.ir.dims import Facts, assuming, evaluate, symbols_of
from fluxir.ir.types import TensorType
from fluxir.schedule.lower import Origin, lower
from fluxir.schedule.tuned import Question, State, read_answers, using, write_answers
from fluxir.target import CpuTarget

if TYPE_CHECKING:
    from fluxir.driver import Lowered
    from fluxir.runtime.program import Program
    from fluxir.schedule.templates import Schedule

__all__ = ["Found", "Tuning", "tune", "tune_program"]

BURST = 0.002
"""Seconds of calls between two readings of the clock."""
ROUNDS = 5
GAIN = 0.97
"""A schedule is better where it takes at most this part of the time."""
TOLERANCE = {"float64": 1e-11, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""Largest difference of results, by the largest element: schedules add up in different orders."""


@dataclass(frozen=True)
class Found:
    """One question and its answer: seconds of the kernel under the default schedule and under the one found."""

    key: str
    name: str
    kernel: str
    default: str
    schedule: str
    answer: Mapping[str, Any]
    before: float
    after: float

    @property
    def gain(self) -> float:
        """How many times faster."""
        return self.before / self.after if self.after else 1.0


@dataclass(frozen=True)
class Tuning:
    """What a search did: all questions, the most important first; those with an empty answer keep their default."""

    found: tuple[Found, ...]
    evaluations: int
    refused: int
    """Schedules that gave other results, or did not compile."""
    seconds: float
    file: str

    def table(self) -> str:
        """One line for each question."""
        rows = [("kernel", "template", "default", "found", "times faster", "schedule")]
        for f in self.found:
            kept = "" if f.answer else "(the default)"
            rows.append((f.kernel, f.name, _shown(f.before), _shown(f.after), f"{f.gain:.2f}", kept or f.schedule))
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths)).rstrip() for r in rows]
        about = f"{self.evaluations} schedules measured in {self.seconds:.1f} s, {self.refused} refused; in {self.file}"
        return "\n".join([*lines, "", about])


def tune(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    seconds: float = 60.0,
    evaluations: int = 1000,
    file: str | Path | None = None,
    target: str | None = None,
) -> Tuning:
    """Search schedules for `f` (a function, or what `fx.jit` made of one) called with `args` (arrays or types), for at most
    so many seconds and measured schedules, and write them to `file` (default: `tuned.json` in the cache folder).

    They are used where the setting `tuned` names the file: `fluxir.config.configure(tuned=...)`, `FLUXIR_TUNED`, `--tuned`.
    FX0707 for targets that do not run on this CPU.
    """
    from fluxir.embed import Jit, jit

    made = f if isinstance(f, Jit) else jit(f)
    return tune_program(
        made.lower(*args), {}, seconds=seconds, evaluations=evaluations, file=file, target=target or made.target
    )


def tune_program(
    lowered: Lowered,
    sizes: Mapping[str, int],
    *,
    seconds: float = 60.0,
    evaluations: int = 1000,
    file: str | Path | None = None,
    target: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Search schedules for a traced program; `sizes` are values for its size symbols (FX0604 where one is missing)."""
    from fluxir.runtime.cache import default_dir

    t = driver.as_target(target)
    if not isinstance(t, CpuTarget):
        raise error("FX0707", f"programs are tuned on the CPU, and {t.name} is no CPU target")
    missing = sorted(set(lowered.module.entry.symbols) - set(sizes))
    if missing:
        raise error("FX0604", f"tuning needs the size {', '.join(missing)}", help="name it: --dim B=32, or give arrays")
    path = Path(file) if file is not None else driver.tuned_file() or Path(default_dir()) / "tuned.json"
    entries = read_answers(path, missing_ok=True)
    start = time.perf_counter()
    fused = lowered.build(t).stages["fused"]
    search = _Search(t, sizes, start + seconds, evaluations, {k: e["schedule"] for k, e in entries.items()}, progress)
    found = search.run(fused)
    about = {"target": t.name, "threads": config.get().threads()}
    for f in found:
        entries.pop(f.key, None)
        if f.answer:
            entries[f.key] = {
                "template": f.name, "schedule": dict(f.answer), "text": f.schedule, "default": f.default,
                "gain": round(f.gain, 3), **about,
            }  # fmt: skip
    write_answers(path, entries)
    return Tuning(tuple(found), search.evaluations, search.refused, time.perf_counter() - start, str(path))


# ---- one op as a program ----------------------------------------------------------------------------------------------------


@dataclass
class _Kernel:
    """One op of the fused program as a program of its own, with numbers to run it on."""

    module: Module
    inputs: list[Any]
    kernel: str
    count: int = 1
    """How often the op, or one like it, stands in the program."""
    expected: list[Any] = field(default_factory=list)

    def build(self, target: CpuTarget, state: State) -> Program:
        """The loaded program with the answers of `state`, which keeps what was asked for kernels that are there."""
        from fluxir.codegen.x86 import compile_cpu
        from fluxir.runtime.program import Program

        with using(state), assuming(self.module.facts):
            loops = lower(self.module, target)
        keep_used(state, loops)
        loops, _ = driver.run_passes(loops, driver.LOOPS, target, verify="off")
        settings = config.get()
        code = compile_cpu(loops, target, settings.opt_level, settings.accuracy)
        return Program(code.spec, code.object, code.constants)


def keep_used(state: State, loops: Module) -> None:
    """Forget questions whose schedule no kernel has: a template may ask for kernels that are not taken."""
    there = {str(f.attrs.get("schedule", "")).replace(", tuned)", ")") for f in loops.funcs.values()}
    answers = {k: q.schedule(state.answers.get(k, {})) or q.default for k, q in state.asked.items()}
    state.asked = {k: q for k, q in state.asked.items() if str(answers[k]) in there}


def _alone(origin: Origin, facts: Facts, sizes: Mapping[str, int], rng: Any) -> _Kernel | None:
    """The op alone; None where it depends on sizes that are not known. Constants stay constants, and so do operands that
    are prepared for nothing in its place."""
    op = origin.op
    if any(not symbols_of(d) <= set(sizes) for v in (*op.operands, *op.results) for d in _shape(v)):
        return None
    prepared = _prepared(origin) if origin.prepared else frozenset()
    b, inputs = Builder(), []
    env: dict[Value, Value] = {}
    args: list[Value] = []
    for i, v in enumerate(op.operands):
        if v in env:
            continue
        if v.owner is not None and v.owner.name == "const":
            clone_ops(b, [v.owner], env)
        elif i in prepared:
            (env[v],) = b.emit("const", value=_numbers(v, sizes, rng), type=v.type)
        else:
            env[v] = Value(v.type, None, len(args), v.name or f"x{i}")
            args.append(env[v])
            inputs.append(_numbers(v, sizes, rng))
    clone_ops(b, [op], env)
    outs = [env[r] for r in op.results]
    entry = Func("tuned", Block(args, b.ops, outs), "tensor", Attrs(), tuple(f"out{i}" for i in range(len(outs))))
    names = [s.kernel.name for s in origin.steps]
    return _Kernel(Module("tuned", {"tuned": entry}, facts), inputs, names[-1] if names else op.name)


def _prepared(origin: Origin) -> frozenset[int]:
    """Operands that the steps with a `fold` read."""
    reads = [r for s in origin.steps if s.fold is not None for r in s.operands[: -s.outputs]]
    return frozenset(i for kind, i in reads if kind == "input")


def _shape(v: Value) -> tuple[Any, ...]:
    return v.type.shape if isinstance(v.type, TensorType) else ()


def _numbers(v: Value, sizes: Mapping[str, int], rng: Any) -> Any:
    """Numbers of a value's type that every op takes: near 1, small indices, both truths."""
    assert isinstance(v.type, TensorType)
    shape = tuple(int(evaluate(d, dict(sizes))) for d in v.type.shape)
    d = v.type.dtype
    if d.is_bool:
        return rng.random(shape) < 0.5
    if d.is_integer:
        return rng.integers(0, 2, shape).astype(d.numpy)
    return (0.5 + rng.random(shape, np.float32)).astype(d.numpy)


# ---- the search -------------------------------------------------------------------------------------------------------------


class _Search:
    """The search over all kernels of a program, within bounds."""

    def __init__(
        self, target: CpuTarget, sizes: Mapping[str, int], end: float, most: int, known: Mapping[str, Any],
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.target, self.sizes, self.end, self.most = target, sizes, end, most
        self.known, self.progress = known, progress
        self.evaluations = self.refused = 0

    @property
    def over(self) -> bool:
        return self.evaluations >= self.most or time.perf_counter() >= self.end

    def run(self, fused: Module) -> list[Found]:
        """Every question of the program, that of the kernel which takes most time first."""
        origins: list[Origin] = []
        with using(State(self.known)), assuming(fused.facts):
            lower(fused, self.target, origins)
        rng = np.random.default_rng(0)
        kernels: dict[tuple[str, ...], _Kernel] = {}
        for origin in origins:
            key = tuple(s.kernel.digest for s in origin.steps)
            if key in kernels:
                kernels[key].count += 1
                continue
            with assuming(fused.facts):
                alone = _alone(origin, fused.facts, self.sizes, rng)
            if alone is not None:
                kernels[key] = alone
        ranked: list[tuple[float, _Kernel, Question]] = []
        for k in kernels.values():
            state = State(self.known)
            program = k.build(self.target, state)
            k.expected = k.build(self.target, State()).call_flat(k.inputs)
            cost = _seconds(program, k.inputs) * k.count
            ranked += [(cost, k, q) for q in state.asked.values()]
        ranked.sort(key=lambda r: -r[0])
        found: dict[str, Found] = {}
        for _, k, q in ranked:
            if q.key not in found:
                self.progress(f"{k.kernel} ({q.name}): {self.evaluations} schedules measured")
                found[q.key] = self.climb(k, q)
        return list(found.values())

    def climb(self, k: _Kernel, q: Question) -> Found:
        """From what is known to better neighbours, until there is none."""
        others = {key: a for key, a in self.known.items() if key != q.key}

        def program(schedule: Schedule) -> Program | None:
            """The kernel under a schedule; None where it does not compile, or computes something else."""
            try:
                made = k.build(self.target, State({**others, q.key: q.answer(schedule)}))
                right = _agree(made.call_flat(k.inputs), k.expected)
            except FluxError:
                right = False
            self.refused += not right
            return made if right else None

        default = k.build(self.target, State(others))
        best, best_program = q.default, default
        start = q.schedule(self.known[q.key]) if q.key in self.known else None
        if start is not None and start != q.default and (made := program(start)) is not None:
            best, best_program = start, made
        tried = {q.default, best}
        moved = True
        while moved and not self.over:
            moved = False
            for schedule in self._untried(q, best, tried):
                if self.over:
                    break
                self.evaluations += 1
                made = program(schedule)
                if made is not None and _faster(made, best_program, k.inputs):
                    best, best_program, moved = schedule, made, True
                    break
        ratio = _ratio(best_program, default, k.inputs, 2 * ROUNDS) if best != q.default else 1.0
        if ratio > GAIN:
            best, ratio = q.default, 1.0
        before = _seconds(default, k.inputs)
        return Found(q.key, q.name, k.kernel, str(q.default), str(best), q.answer(best), before, before * ratio)

    @staticmethod
    def _untried(q: Question, best: Schedule, tried: set[Schedule]) -> Iterator[Schedule]:
        for schedule in q.neighbours(best):
            if schedule not in tried:
                tried.add(schedule)
                yield schedule


def _agree(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether results are the same up to rounding."""
    for a, b in zip(found, expected, strict=True):
        if a.dtype.name not in TOLERANCE:
            if not np.array_equal(a, b):
                return False
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return False
        size = float(np.abs(y[np.isfinite(y)]).max(initial=0.0)) or 1.0
        if float(np.abs(x - y)[np.isfinite(y)].max(initial=0.0)) > TOLERANCE[a.dtype.name] * size:
            return False
    return True


def _burst(program: Program, inputs: list[Any], budget: float) -> float:
    """Seconds a call, over about `budget` seconds."""
    count, start = 0, time.perf_counter()
    while True:
        program.call_flat(inputs)
        count += 1
        now = time.perf_counter()
        if now - start >= budget:
            return (now - start) / count


def _seconds(program: Program, inputs: list[Any]) -> float:
    program.call_flat(inputs)
    return min(_burst(program, inputs, BURST) for _ in range(3))


def _ratio(a: Program, b: Program, inputs: list[Any], rounds: int) -> float:
    """Time of `a` by that of `b`: the median over rounds in which both have a turn."""
    a.call_flat(inputs)
    b.call_flat(inputs)
    ratios = []
    for r in range(rounds):
        pair = (a, b) if r % 2 == 0 else (b, a)
        times = {id(p): _burst(p, inputs, BURST) for p in pair}
        ratios.append(times[id(a)] / times[id(b)])
    return statistics.median(ratios)


def _faster(candidate: Program, best: Program, inputs: list[Any]) -> bool:
    """Whether the candidate wins twice: once in a short race, then in a longer one."""
    return _ratio(candidate, best, inputs, 3) < GAIN and _ratio(candidate, best, inputs, ROUNDS) < GAIN


def _shown(seconds: float) -> str:
    from fluxir.profile_report import seconds as shown

    return shown(seconds)
