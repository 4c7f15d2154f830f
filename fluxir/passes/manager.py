"""The pass manager: a registry of passes, a pipeline in text, and a run that verifies, times, snapshots and dumps.

A pass is a pure function `Func -> Func` (or `Module -> Module`); "unchanged" is identity. Its keyword-only arguments
are its options on the command line: `--passes "simplify,cse,fuse[max_ops=8]"`.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxir.errors import FluxError, error
from fluxir.ir.core import Func, Module
from fluxir.ir.dims import assuming
from fluxir.ir.parser import read_module
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_func, verify_module
from fluxir.target import Target


@dataclass
class PassContext:
    """What a pass may look at: the module its function is in, the target, and counters of the rules that fired."""

    module: Module
    target: Target | None = None
    rules: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class PassInfo:
    """A registered pass. `level` is the function level it works on; `scope` is "func" or "module"."""

    name: str
    run: Callable[..., Any]
    level: str
    scope: str
    options: dict[str, Any]
    doc: str


PASSES: dict[str, PassInfo] = {}


def pass_(
    name: str, *, level: str = "tensor", scope: str = "func"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a pass: `def fuse(func, cx, *, max_ops=64)`; keyword-only arguments become options."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        options = {p.name: p.default for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY}
        if name in PASSES:
            raise ValueError(f"pass {name!r} is registered twice")
        PASSES[name] = PassInfo(name, fn, level, scope, options, inspect.cleandoc(fn.__doc__ or ""))
        return fn

    return register


@dataclass(frozen=True)
class Step:
    """One use of a pass in a pipeline, with its options."""

    info: PassInfo
    options: dict[str, Any]

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return self.info.name + (f"[{shown}]" if shown else "")


def parse_pipeline(text: str | Sequence[str]) -> list[Step]:
    """Read `"simplify,fuse[max_ops=8]"`. FX0401 names an unknown pass, FX0402 a bad option."""
    from fluxir.ir.types import split_commas

    parts = split_commas(text) if isinstance(text, str) else list(text)
    steps = []
    for part in parts:
        part = part.strip()
        if not part:
            continue
        name, _, rest = part.partition("[")
        name = name.strip()
        if name not in PASSES:
            near = difflib.get_close_matches(name, PASSES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise error(
                "FX0401", f"there is no pass named {name!r}", help=hint + "the passes are " + ", ".join(sorted(PASSES))
            )
        info = PASSES[name]
        options: dict[str, Any] = {}
        if rest:
            if not rest.endswith("]"):
                raise error("FX0402", f"the options of {name!r} do not end with ']': {part!r}")
            for item in rest[:-1].split(","):
                key, eq, value = (s.strip() for s in item.partition("="))
                if key not in info.options or not eq:
                    known = ", ".join(f"{k}={v}" for k, v in info.options.items()) or "none"
                    raise error(
                        "FX0402", f"pass {name!r} has no option {item.strip()!r}", help=f"options and defaults: {known}"
                    )
                options[key] = _option(name, key, value, info.options[key])
        steps.append(Step(info, options))
    return steps


def _option(name: str, key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
        return text
    except (ValueError, KeyError):
        kind = type(default).__name__
        raise error("FX0402", f"option {key} of pass {name!r} must be {kind}, not {text!r}") from None


@dataclass
class Record:
    """What one pass did."""

    index: int
    name: str
    changed: bool
    ops_before: int
    ops_after: int
    ms: float
    rules: dict[str, int]
    after: Module

    def row(self) -> dict[str, Any]:
        return {
            "index": self.index, "pass": self.name, "changed": self.changed, "ops_before": self.ops_before,
            "ops_after": self.ops_after, "ms": round(self.ms, 3), "rules": self.rules,
        }  # fmt: skip


def count_ops(m: Module) -> int:
    return sum(f.op_count for f in m.funcs.values())


class PassManager:
    """Runs a pipeline. `verify`: "off", "changed" (type rules of what changed) or "numeric" (also run both on random inputs)."""

    def __init__(self, pipeline: str | Sequence[str] | list[Step], *, target: Target | None = None, verify: str = "changed",
                 dump_dir: str | Path | None = None, start: int = 0) -> None:  # fmt: skip
        parsed = isinstance(pipeline, list) and all(isinstance(s, Step) for s in pipeline)
        self.steps: list[Step] = pipeline if parsed else parse_pipeline(pipeline)  # type: ignore[assignment,arg-type]
        self.target, self.verify, self.start = target, verify, start
        self.dump_dir = Path(dump_dir) if dump_dir else None
        self.records: list[Record] = []

    def run(self, module: Module) -> Module:
        """The module after all passes; `records` tells what each did.

        Raises FX0499 if a pass fails with an exception of its own, FX0403 if it breaks the program, FX0404 if it
        changes the answer (`verify="numeric"`); each comes with a reproducer. A `FluxError` of a pass passes through.
        """
        if self.dump_dir:
            clear_dumps(self.dump_dir, self.start)
        if not self.start:
            self.dump(0, "input", module)
        self.write_index()
        for i, step in enumerate(self.steps, self.start + 1):
            before = module
            rules: Counter[str] = Counter()
            t = time.perf_counter()
            with assuming(module.facts):
                module = self.attempt(step, module, rules)
                if module is not before and self.verify != "off":
                    self.check(step, before, module)
            ms = (time.perf_counter() - t) * 1e3
            ops = count_ops(before), count_ops(module)
            self.records.append(Record(i, str(step), module is not before, *ops, ms, dict(rules), module))
            self.dump(i, step.info.name, module)
            self.write_index()
        return module

    def attempt(self, step: Step, module: Module, rules: Counter[str]) -> Module:
        """The module after one pass; a failure names the pass."""
        try:
            return self.apply(step, module, rules)
        except FluxError as e:
            e.notes.append(f"while running the pass {step}")
            raise
        except Exception as e:
            raise error("FX0499", f"the pass {step} failed: {type(e).__name__}: {e}", notes=[self.reproducer(step, module, e)],
                        help="this is a defect in fluxir; the reproducer is a test that shows it") from e  # fmt: skip

    def reproducer(self, step: Step, module: Module, e: BaseException) -> str:
        from fluxir.passes.reproducer import write_reproducer

        target = self.target.name if self.target else None
        try:
            return f"reproducer: {write_reproducer(module, str(step), e, self.dump_dir, verify=self.verify, target=target)}"
        except Exception as second:  # the failure itself matters more
            return f"no reproducer could be written: {type(second).__name__}: {second}"

    def apply(self, step: Step, module: Module, rules: Counter[str]) -> Module:
        if step.info.scope == "module":
            out: Module = step.info.run(module, PassContext(module, self.target, rules), **step.options)
            return out
        for f in list(module.funcs.values()):
            if f.level == step.info.level or step.info.level == "any":
                new: Func = step.info.run(f, PassContext(module, self.target, rules), **step.options)
                if new is not f:
                    module = module.with_func(new)
        return module

    def check(self, step: Step, before: Module, after: Module) -> None:
        try:
            if list(before.funcs) == list(after.funcs):
                for name, f in after.funcs.items():
                    if f is not before.funcs[name]:
                        verify_func(f, after)
            else:
                verify_module(after)
        except FluxError as e:
            raise error("FX0403", f"the pass {step} broke the program: {e.message}", loc=e.loc, labels=e.labels,
                        notes=[f"the verifier says {e.code}", *e.notes, self.reproducer(step, before, e)],
                        help="this is a defect of the pass; the reproducer is a test that shows it") from e  # fmt: skip
        if self.verify == "numeric":
            from fluxir.passes.numeric import compare

            compare(before, after, str(step), dump_dir=self.dump_dir)

    def dump(self, index: int, name: str, module: Module) -> None:
        if self.dump_dir:
            self.dump_dir.mkdir(parents=True, exist_ok=True)
            (self.dump_dir / dump_name(index, name)).write_text(print_module(module))

    def write_index(self) -> None:
        """`index.json`: what the passes did so far, and the whole pipeline. Managers that go on from `start` add to it."""
        if self.dump_dir:
            path = self.dump_dir / "index.json"
            known = read_index(path) if self.start and path.exists() else {"passes": [], "pipeline": []}
            rows = [r for r in known["passes"] if r["index"] <= self.start] + [r.row() for r in self.records]
            pipeline = known["pipeline"][: self.start] + [str(s) for s in self.steps]
            path.write_text(json.dumps({"pipeline": pipeline, "passes": rows}, indent=1) + "\n")


# ---- going on from a dump -------------------------------------------------------------------------------------------------


_STAGE_FILES = re.compile(r"k\d+-.*\.loop\.fx|(lowered|loops)\.fx|module\.(ll|s|ptx)|plan\.txt")


def clear_dumps(folder: Path, start: int) -> None:
    """Remove what an earlier compilation left in `folder` after its step `start`, so that no file there is of another
    program. A folder without our index is left alone, and so is every file that a compilation would not write."""
    if not (folder / "index.json").is_file():
        return
    for path in folder.iterdir():
        m = re.fullmatch(r"(\d+)-[\w.-]+\.fx", path.name)
        late = m is not None and (int(m[1]) > start or not start)
        if late or (not start and _STAGE_FILES.fullmatch(path.name)):
            path.unlink()


def dump_name(index: int, name: str) -> str:
    return f"{index:02d}-{name}.fx"


def read_index(path: Path) -> dict[str, Any]:
    """`index.json` of a dump directory; FX0409 if it is not one."""
    try:
        data = json.loads(path.read_text())
        rows, pipeline = data["passes"], data["pipeline"]
        if not (all(isinstance(r["index"], int) for r in rows) and all(isinstance(s, str) for s in pipeline)):
            raise TypeError("not the form that fluxir writes")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise error("FX0409", f"{path} cannot be read as the index of a dump directory: {e}") from None
    return {"passes": rows, "pipeline": pipeline}


@dataclass(frozen=True)
class ResumePoint:
    """A dump to go on from: the module it holds (edited or not), the number of its pass, and the passes after it.

    `remaining` is a pipeline of passes for the module's level; what comes after a change of level is the driver's.
    """

    module: Module
    index: int
    remaining: str


def resume_point(path: str | Path) -> ResumePoint:
    """Read `DIR/03-fuse.fx` to continue from it. FX0409 if it is not the dump of a pass beside its `index.json`."""
    p = Path(path)
    m = re.fullmatch(r"(\d+)-(.+)\.fx", p.name)
    if m is None:
        raise error(
            "FX0409", f"{p} is not the dump of a pass", help="a compilation goes on from a file such as 03-fuse.fx"
        )
    pipeline = read_index(p.with_name("index.json"))["pipeline"]
    index = int(m[1])
    known = (["input"] + [s.partition("[")[0] for s in pipeline])[index : index + 1]
    if known != [m[2]]:
        raise error(
            "FX0409", f"{p} is not in the index of its directory: its step {index} is {', '.join(known) or 'missing'}"
        )
    module = read_module(p, locate=False)
    verify_module(module)
    level = module.entry.level
    remaining = []
    for step in parse_pipeline(pipeline[index:]):
        if step.info.level not in (level, "any"):
            break
        remaining.append(str(step))
    return ResumePoint(module, index, ",".join(remaining))
