"""The pipeline as one page: a traced program goes in, checked machine code comes out.

    trace -> simplify -> fuse -> lower (loops) -> plan -> code generation -> program

`Lowered` is a traced program with every later stage computed on demand; `Compiled` runs. Stages are modules one can
print, parse back, verify and interpret; `Lowered.as_text(stage)` prints one, `dump_dir` writes them all.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluxir.ops
import fluxir.passes
from fluxir import config
from fluxir.errors import error
from fluxir.frontend import tree
from fluxir.ir.core import Func, Module
from fluxir.ir.dims import Dim, assuming, evaluate, symbols_of
from fluxir.ir.printer import print_func, print_module
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager, Record, parse_pipeline
from fluxir.target import Target, parse_target

if TYPE_CHECKING:
    from fluxir.runtime.program import Program

# The stages of the pipeline and the passes that lead to each. Lowering sits between "fused" and "loops".
SIMPLIFY = "inline,expand,fold,cse,dce"
FUSE = "fuse,dce"
LOOPS = "plan"
STAGES = ("traced", "simplified", "fused", "loops", "llvm", "asm", "ptx")


@dataclass
class Build:
    """One run of the pipeline: the module after each stage and what every pass did."""

    module: Module
    target: Target
    stages: dict[str, Module] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


def run_passes(module: Module, passes: str, target: Target | None = None, *, verify: str | None = None, dump_dir: str | Path | None = None, start: int = 0) -> tuple[Module, list[Record]]:
    """Run a pipeline given as text on a module."""
    manager = PassManager(passes, target=target, verify=verify or config.get().verify, dump_dir=dump_dir, start=start)
    return manager.run(module), manager.records


def build(module: Module, target: Target, *, passes: str | None = None, verify: str | None = None, dump_dir: str | Path | None = None) -> Build:
    """Take a tensor module through every stage to planned loop IR. `passes` replaces the tensor-level pipeline."""
    from fluxir.schedule import lower

    out = Build(module, target, {"traced": module})
    pipelines = [("simplified", SIMPLIFY), ("fused", FUSE)] if passes is None else [("fused", passes)]
    count = 0
    for stage, text in pipelines:
        module, records = run_passes(module, text, target, verify=verify, dump_dir=dump_dir, start=count)
        count += len(records)
        out.records += records
        out.stages[stage] = module
    out.stages.setdefault("simplified", module)
    with assuming(module.facts):
        module = lower(module, target)
    if (verify or config.get().verify) != "off":
        verify_module(module)
    module, records = run_passes(module, LOOPS, target, verify=verify, dump_dir=dump_dir, start=count)
    out.records += records
    out.stages["loops"] = module
    return out


# ---- a traced program -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Estimates for given sizes: floating-point operations, bytes of kernel arguments read and written, the planned
    peak of temporary memory in bytes, and kernel launches on the straight path (a loop's body counts once)."""

    flops: int | str
    bytes: int | str
    peak_memory: int | str
    kernels: int


class Lowered:
    """A traced program. Every later stage is computed when asked for, and kept."""

    def __init__(self, module: Module, in_tree: tree.TreeDef | None = None, out_tree: tree.TreeDef | None = None) -> None:
        self.module, self.in_tree, self.out_tree = module, in_tree, out_tree
        self._builds: dict[tuple[str, str | None], Build] = {}

    def build(self, target: str | Target | None = None, **options: Any) -> Build:
        """All IR stages for a target (default: the setting `target`)."""
        t = as_target(target)
        if options:
            return build(self.module, t, **options)
        key = (t.name, None)
        if key not in self._builds:
            self._builds[key] = build(self.module, t)
        return self._builds[key]

    def stage(self, stage: str, target: str | Target | None = None) -> Module:
        """The module at an IR stage: traced, simplified, fused or loops."""
        return self.module if stage == "traced" else self.build(target).stages[stage]

    def as_text(self, stage: str = "traced", target: str | Target | None = None, locations: bool = True) -> str:
        """The program at a stage as text. `ptx` needs a GPU target (default sm_80), `asm` and `llvm` follow the target."""
        if stage not in STAGES:
            raise error("FX0901", f"there is no stage {stage!r}", help="the stages are " + ", ".join(STAGES))
        if stage in ("traced", "simplified", "fused", "loops"):
            return print_module(self.stage(stage, target), locations)
        t = as_target(target if target is not None or stage != "ptx" else "sm_80")
        if (stage == "ptx") != (t.kind == "nvptx") and stage != "llvm":
            raise error("FX0901", f"the stage {stage!r} does not exist for the target {t.name}", help="ptx belongs to sm_* targets, asm to cpu targets")
        code = generate(self.build(t).stages["loops"], t)
        return str(getattr(code, stage))

    def cost(self, target: str | Target | None = None, **sizes: int) -> Cost:
        """Flops, bytes, peak memory and kernels; symbolic unless the size symbols are given as keywords."""
        return cost_of(self.build(target), sizes)

    def compile(self, target: str | Target | None = None, *, dump_dir: str | Path | None = None, passes: str | None = None, verify: str | None = None, cache: bool | None = None) -> Compiled:
        """Machine code for a target: from the compile cache when an equal program was compiled before."""
        return compile_module(self.module, target, in_tree=self.in_tree, out_tree=self.out_tree, dump_dir=dump_dir, passes=passes, verify=verify, cache=cache)


def cost_of(b: Build, sizes: Mapping[str, int] | None = None) -> Cost:
    """The cost of a built program (see `Cost`)."""
    flops: Dim = 0
    moved: Dim = 0
    kernels = 0
    fused, loops = b.stages["fused"], b.stages["loops"]
    with assuming(fused.facts):
        for f in fused.funcs.values():
            for op in f.walk():
                if op.defn.cost is not None:
                    flops = flops + op.defn.cost(op)
                elif op.defn.category in ("elementwise", "compare") and op.results:
                    flops = flops + op.results[0].type.size  # type: ignore[union-attr]
        peak: Dim = 0
        for f in loops.funcs.values():
            if f.level == "host":
                peak = peak + f.attrs.get("arena", 0)
                for op in f.walk():
                    if op.name == "launch":
                        kernels += 1
                        for v in op.operands:
                            moved = moved + getattr(v.type, "nbytes", 0)

    def value(d: Dim) -> int | str:
        known = dict(sizes or {})
        return evaluate(d, known) if symbols_of(d) <= set(known) else str(d)

    return Cost(value(flops), value(moved), value(peak), kernels)


def as_target(target: str | Target | None) -> Target:
    """A target from its name; None means the setting `target`."""
    if target is None:
        target = config.get().target
    return parse_target(target) if isinstance(target, str) else target


# ---- machine code ---------------------------------------------------------------------------------------------------------


def generate(module: Module, target: Target) -> Any:
    """Machine code of a planned loop module: `CompiledCode` for a CPU, `PtxCode` for a GPU."""
    settings = config.get()
    if target.kind == "cpu":
        from fluxir.codegen.x86 import compile_cpu

        return compile_cpu(module, target, settings.opt_level, settings.accuracy)
    from fluxir.codegen.nvptx import compile_ptx

    return compile_ptx(module, target)
