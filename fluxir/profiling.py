"""Where the time of a program goes on this CPU: `fx.profile(f)(*args)`, and what `fluxir profile` prints.

The program is compiled once more with its launches timed (see codegen/x86_profile.py); its kernels are the same code. Operations
are those of the tensor program that a kernel computes, bytes those of the memories that it is given, each once: useful
work, not what the machine happens to do. The limit is `fluxir.roofline`; arrays that stay in the caches may pass it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fluxir import config
from fluxir.errors import error
from fluxir.ir.dims import Dim, assuming, evaluate, symbols_of
from fluxir.roofline import Roofline, roofline, ticks_per_second

if TYPE_CHECKING:
    from fluxir.driver import Build, Lowered
    from fluxir.ir.core import Func, Op

__all__ = ["KernelTime", "Profile", "Span", "profile", "profile_program"]

EVENTS = 200_000
"""Launches and ranges of threads that are written down one by one; sums know no bound."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel in one call of the program: the median over calls. `flops`, `moved` (bytes) and `share` of the limit are
    None where sizes inside the program are not known from outside."""

    name: str
    launches: float
    seconds: float
    flops: float | None
    moved: float | None
    least: float | None
    """Seconds that the machine needs at least."""
    template: str
    schedule: str
    lines: tuple[str, ...]
    """The lines of the model, as file:line."""

    @property
    def share(self) -> float | None:
        """The part of the machine's limit that is reached."""
        return self.least / self.seconds if self.least is not None and self.seconds else None


@dataclass(frozen=True)
class Span:
    """Something that ran: a launch (`kernel` is its name) or a range of one on a thread (None); seconds from the first one."""

    kernel: str | None
    start: float
    end: float
    thread: int


@dataclass(frozen=True)
class Profile:
    """What the calls of a program took. `seconds` is the median of a whole call; `results` those of the last one."""

    name: str
    calls: int
    seconds: float
    kernels: tuple[KernelTime, ...]
    spans: tuple[Span, ...]
    """Of all calls in order, as far as there was room."""
    limit: Roofline
    build: Build
    results: Any

    @property
    def outside(self) -> float:
        """Seconds of a call that no kernel accounts for: the call itself, and the launches."""
        return max(0.0, self.seconds - sum(k.seconds for k in self.kernels))

    def table(self) -> str:
        """The kernels as text, the longest first."""
        from fluxir.profile_report import table

        return table(self)

    def __repr__(self) -> str:
        return self.table()

    def as_json(self) -> dict[str, Any]:
        """Everything but the results, for programs."""
        from fluxir.profile_report import as_json

        return as_json(self)

    def trace(self) -> dict[str, Any]:
        """Launches and threads in Chrome's trace format, which Perfetto opens."""
        from fluxir.profile_report import trace

        return trace([self])

    def html(self) -> str:
        """A page of its own with the table, the passes, and each kernel's loops beside the lines of the model."""
        from fluxir.profile_report import page

        return page([self])


def profile(f: Callable[..., Any], *, repeat: int = 10, target: str | None = None) -> Callable[..., Profile]:
    """`fx.profile(f)(*args)` runs `f` (a function, or what `fx.jit` made of one) `repeat` times with its launches timed, and
    once before to warm up. Returns a `Profile`; print its `table()`.

    For CPU targets; FX0707 for others, which `fluxir run --device vgpu --profile` counts.
    """
    from fluxir.embed import Jit, jit

    made = f if isinstance(f, Jit) else jit(f)

    def call(*args: Any, **kwargs: Any) -> Profile:
        from fluxir.frontend import tree

        lowered = made.lower(*args, **kwargs)
        leaves = tree.flatten((args, {k: v for k, v in kwargs.items() if k not in made.static}))[0]
        found = profile_program(lowered, leaves, repeat=repeat, target=target or made.target)
        assert lowered.out_tree is not None
        return replace(found, results=lowered.out_tree.unflatten(found.results))

    return call


def profile_program(
    lowered: Lowered,
    inputs: Sequence[Any] | Callable[[Mapping[str, Any]], Sequence[Any]],
    *,
    repeat: int = 10,
    target: str | None = None,
) -> Profile:
    """Profile a traced program on flat inputs, or on those that a function makes for the program's spec (see codegen/abi.py);
    the results are a flat list."""
    import numpy as np

    from fluxir.codegen.x86 import compile_cpu
    from fluxir.driver import as_target
    from fluxir.runtime.program import Program
    from fluxir.target import CpuTarget

    t = as_target(target)
    if not isinstance(t, CpuTarget):
        raise error("FX0707", f"programs are profiled on the CPU, and {t.name} is no CPU target",
                    help="`fluxir run --device vgpu --profile` counts what kernels do on the virtual GPU")  # fmt: skip
    settings = config.get()
    build = lowered.build(t)
    code = compile_cpu(build.stages["loops"], t, settings.opt_level, settings.accuracy, events=EVENTS)
    program = Program(code.spec, code.object, code.constants)
    record = program.constants[-1]
    given = _Inputs(inputs(code.spec) if callable(inputs) else inputs, code.spec)
    results = program.call_flat(given.fresh())
    first = int(record[2])
    record[0], record[3:first] = 0, 0
    times, sums = [], []
    for _ in range(repeat):
        arrays = given.fresh()
        start = time.perf_counter()
        results = program.call_flat(arrays)
        times.append(time.perf_counter() - start)
        sums.append(record[3:first].reshape(-1, 2).copy())
    rate = ticks_per_second()
    limit = roofline()
    names = [op.attrs.callee for op in code.launches]
    per_call = np.diff(np.stack(sums), axis=0, prepend=0)  # [call, launch, (how often, ticks)]
    kernels = _kernels(build, code.launches, per_call, rate, limit, _sizes(program, given.arrays))
    spans = _spans(names, record[first:].reshape(-1, 4)[: min(int(record[0]), EVENTS)], rate)
    return Profile(
        lowered.module.entry.name,
        repeat,
        statistics.median(times),
        tuple(kernels),
        tuple(spans),
        limit,
        build,
        results,
    )


class _Inputs:
    """The inputs of every call: donated ones are copied anew for each."""

    def __init__(self, arrays: Sequence[Any], spec: Mapping[str, Any]) -> None:
        import numpy as np

        from fluxir.runtime.arguments import dtype

        types = [dtype(one["dtype"]) for one in spec["inputs"]]
        self.arrays = [a if hasattr(a, "__dlpack__") else np.asarray(a, t) for a, t in zip(arrays, types, strict=True)]
        self.donated = {i for _, i in spec["donated"]}

    def fresh(self) -> list[Any]:
        return [a.copy() if i in self.donated else a for i, a in enumerate(self.arrays)]


def _sizes(program: Any, arrays: Sequence[Any]) -> dict[str, int]:
    """The values of the size symbols."""
    from fluxir.runtime.arguments import solve

    return dict(solve(program.spec, [tuple(a.shape) for a in arrays])) if program.spec["symbols"] else {}


# ---- kernels ----------------------------------------------------------------------------------------------------------------


def _kernels(
    build: Build, launches: Sequence[Op], per_call: Any, rate: float, limit: Roofline, sizes: Mapping[str, int]
) -> list[KernelTime]:
    """The time of each kernel in a call, the longest first."""
    funcs = build.stages["loops"].funcs
    work = _work(build)
    places: dict[str, list[int]] = {}
    for i, op in enumerate(launches):
        places.setdefault(op.attrs.callee, []).append(i)
    found = []
    for name, numbers in places.items():
        often, ticks = per_call[:, numbers].sum(axis=1).T
        total = float(often.mean())
        if not total:
            continue
        f = funcs[name]
        template, operations = work.get(f.digest, ("", None))
        reads, writes = _traffic(launches[numbers[0]])
        known = [_value(d, sizes) for d in (operations, reads, writes)]
        flops, read, written = known
        least = limit.seconds(flops or 0.0, read, written) if read is not None and written is not None else None
        lines = {place for i in numbers for place in _lines(launches[i], f)}
        found.append(
            KernelTime(
                name, total, float(statistics.median(ticks)) / rate,
                None if flops is None else flops * total,
                None if read is None or written is None else (read + written) * total,
                None if least is None else least * total, template, str(f.attrs.get("schedule", "")), tuple(sorted(lines)),
            )
        )  # fmt: skip
    return sorted(found, key=lambda k: -k.seconds)


def _value(d: Dim | None, sizes: Mapping[str, int]) -> float | None:
    return float(evaluate(d, dict(sizes))) if d is not None and symbols_of(d) <= set(sizes) else None


def _traffic(launch: Op) -> tuple[Dim, Dim]:
    """Bytes of the memories that a launch reads and writes, each once."""
    from fluxir.ir.types import MemType

    sizes = [v.type.nbytes if isinstance(v.type, MemType) else 0 for v in launch.operands]
    count = len(sizes) - int(launch.attrs.outputs)
    reads: Dim = 0
    writes: Dim = 0
    for n in sizes[:count]:
        reads = reads + n
    for n in sizes[count:]:
        writes = writes + n
    return reads, writes


def _work(build: Build) -> dict[str, tuple[str, Dim | None]]:
    """By kernel digest: the template it comes from, and the operations of what it computes. Of the kernels of one group
    the one with the most arithmetic in its innermost loops has them all: the others move data."""
    from fluxir.driver import tuned_state
    from fluxir.dump import operations
    from fluxir.schedule.lower import Origin, lower
    from fluxir.schedule.tuned import using

    fused = build.stages["fused"]
    origins: list[Origin] = []
    with using(tuned_state()):
        lower(fused, build.target, origins)
    found: dict[str, tuple[str, Dim | None]] = {}
    with assuming(fused.facts):
        for o in origins:
            heavy = max((s.kernel for s in o.steps), key=_arithmetic, default=None)
            for step in o.steps:
                flops: Dim = operations(fused, o.op) if step.kernel is heavy else 0
                found.setdefault(step.kernel.digest, (o.template, flops))
    return found


def _arithmetic(kernel: Func) -> float:
    """Arithmetic ops of a kernel, each a thousand times as much for every loop around it."""

    def weight(ops: Sequence[Op]) -> float:
        return sum(
            float(o.defn.category == "elementwise") + (1000.0 if o.name in ("for", "while", "parallel") else 1.0)
            * sum(weight(b.ops) for b in o.blocks)
            for o in ops
        )  # fmt: skip

    return weight(kernel.block.ops)


def _lines(launch: Op, kernel: Func) -> set[str]:
    """The lines of the model behind a launch: its own, and those of the ops in its kernel."""
    places = [launch.loc, kernel.loc, *(op.loc for op in kernel.walk())]
    return {f"{p.file}:{p.line}" for p in places if p}


# ---- time lines -------------------------------------------------------------------------------------------------------------


def _spans(names: Sequence[str], events: Any, rate: float) -> list[Span]:
    """Events in order of time; threads are numbered by where their stacks lie, 0 the one that calls."""
    if not len(events):
        return []
    callers = {int(e[3]) for e in events if e[0] >= 0}
    stacks = sorted({int(e[3]) for e in events})
    numbers: dict[int, int] = {}
    groups: list[list[int]] = []
    for at in stacks:  # frames of one thread lie close together
        if groups and at - groups[-1][-1] < _APART:
            groups[-1].append(at)
        else:
            groups.append([at])
    groups.sort(key=lambda g: not callers & set(g))
    for n, g in enumerate(groups):
        numbers |= dict.fromkeys(g, n)
    origin = int(min(e[1] for e in events))
    spans = [
        Span(names[int(k)] if k >= 0 else None, (int(a) - origin) / rate, (int(b) - origin) / rate, numbers[int(s)])
        for k, a, b, s in events
    ]
    return sorted(spans, key=lambda s: (s.start, -s.end))


_APART = 1 << 18
"""Bytes between frames of different threads; those of one thread's events are closer."""
