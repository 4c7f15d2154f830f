"""The pipeline as one page: a traced program goes in, checked machine code comes out.

    trace -> derive -> simplify -> fuse -> lower (loops) -> plan -> code generation -> program

`Lowered` is a traced program with every later stage computed on demand; `Compiled` runs. Stages are modules one can
print, parse back, verify and interpret; `Lowered.as_text(stage)` prints one, `dump_dir` writes them all.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluxir.ops
import fluxir.passes
from fluxir import config
from fluxir.dump import Cost, cost_of, plan_text, write_dumps
from fluxir.errors import IOFailure, error
from fluxir.frontend import tree
from fluxir.ir.core import Func, Module
from fluxir.ir.dims import assuming
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager, Record
from fluxir.routes import remember
from fluxir.runtime.route import Routed
from fluxir.target import CpuTarget, GpuTarget, Target, parse_target

if TYPE_CHECKING:
    from fluxir.runtime.launch import GpuProgram
    from fluxir.runtime.program import Program
    from fluxir.schedule.tuned import State

# The stages of the pipeline and the passes that lead to each. Lowering sits between "fused" and "loops".
DERIVE = "extents,find_attention,derive"
SIMPLIFY = "inline,find_attention,expand,conv,simplify,fold,cse,merge,hoist,lift,dce"
FUSE = "iterate,dce,layout,narrow,simplify,cse,gather_attention,fuse,dce"
LOOPS = "nest,plan"
_YOUNG = 200_000  # new objects after which Python looks for garbage while a program is compiled
STAGES = ("traced", "adjoint", "simplified", "fused", "loops", "llvm", "asm", "ptx")


@dataclass
class Build:
    """One run of the pipeline: the module after each stage and what every pass did."""

    module: Module
    target: Target
    stages: dict[str, Module] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


def run_passes(
    module: Module,
    passes: str,
    target: Target | None = None,
    *,
    verify: str | None = None,
    dump_dir: str | Path | None = None,
    start: int = 0,
) -> tuple[Module, list[Record]]:
    """Run a pipeline given as text on a module."""
    manager = PassManager(passes, target=target, verify=verify or config.get().verify, dump_dir=dump_dir, start=start)
    return manager.run(module), manager.records


def build(
    module: Module,
    target: Target,
    *,
    passes: str | None = None,
    verify: str | None = None,
    dump_dir: str | Path | None = None,
    ahead: Callable[[Func], None] | None = None,
) -> Build:
    """Take a tensor module through every stage to planned loop IR. `passes` replaces the tensor-level pipeline; `ahead` is
    told each kernel as soon as it is made (see `lower`)."""
    with few_collections():
        return _build(module, target, passes, verify, dump_dir, ahead)


def _build(
    module: Module,
    target: Target,
    passes: str | None,
    verify: str | None,
    dump_dir: str | Path | None,
    ahead: Callable[[Func], None] | None,
) -> Build:
    from fluxir.schedule import lower
    from fluxir.schedule.tuned import using

    out = Build(module, target, {"traced": module})
    pipelines = (
        [("adjoint", DERIVE), ("simplified", SIMPLIFY), ("fused", FUSE)] if passes is None else [("fused", passes)]
    )
    count = 0
    for stage, text in pipelines:
        module, records = run_passes(module, text, target, verify=verify, dump_dir=dump_dir, start=count)
        count += len(records)
        out.records += records
        out.stages[stage] = module
    for stage in ("adjoint", "simplified"):
        out.stages.setdefault(stage, module)
    with assuming(module.facts), using(tuned_state()):
        module = lower(module, target, ahead=ahead)
    if dump_dir is not None:
        (Path(dump_dir) / "lowered.fx").write_text(print_module(module))
    if (verify or config.get().verify) != "off":
        verify_module(module)
    module, records = run_passes(module, LOOPS, target, verify=verify, dump_dir=dump_dir, start=count)
    out.records += records
    out.stages["loops"] = module
    return out


_lock = threading.Lock()
_compiling: list[int] = []  # of each compilation in progress: the collector's threshold when it began


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage seldom: programs are many small objects that stay, and looking at all of them
    again and again was a fifth of the time it takes to compile."""
    with _lock:
        young, *rest = gc.get_threshold()
        _compiling.append(_compiling[0] if _compiling else young)
        if young:  # 0: somebody has switched it off
            gc.set_threshold(max(young, _YOUNG), *rest)
    try:
        yield
    finally:
        with _lock:
            before = _compiling.pop()
            if not _compiling:
                gc.set_threshold(before, *gc.get_threshold()[1:])


# ---- a traced program -------------------------------------------------------------------------------------------------


class Lowered:
    """A traced program. Every later stage is computed when asked for, and kept."""

    def __init__(
        self, module: Module, in_tree: tree.TreeDef | None = None, out_tree: tree.TreeDef | None = None
    ) -> None:
        self.module, self.in_tree, self.out_tree = module, in_tree, out_tree
        self._builds: dict[tuple[str, str | None], Build] = {}

    def build(self, target: str | Target | None = None, **options: Any) -> Build:
        """All IR stages for a target (default: the setting `target`)."""
        t = as_target(target)
        if options:
            return build(self.module, t, **options)
        key = (t.name, config.get().tuned)
        if key not in self._builds:
            self._builds[key] = build(self.module, t)
        return self._builds[key]

    def stage(self, stage: str, target: str | Target | None = None) -> Module:
        """The module at an IR stage: traced, adjoint (transforms resolved), simplified, fused or loops."""
        return self.module if stage == "traced" else self.build(target).stages[stage]

    def as_text(self, stage: str = "traced", target: str | Target | None = None, locations: bool = True) -> str:
        """The program at a stage as text. `ptx` needs a GPU target (default sm_80), `asm` and `llvm` follow the target."""
        if stage not in STAGES:
            raise error("FX0512", f"there is no stage {stage!r}", help="the stages are " + ", ".join(STAGES))
        if stage in ("traced", "adjoint", "simplified", "fused", "loops"):
            return print_module(self.stage(stage, target), locations)
        t = as_target(target if target is not None or stage != "ptx" else "sm_80")
        if (stage == "ptx") != (t.kind == "nvptx") and stage != "llvm":
            raise error(
                "FX0512",
                f"the stage {stage!r} does not exist for the target {t.name}",
                help="ptx belongs to sm_* targets, asm to cpu targets",
            )
        code = generate(self.build(t).stages["loops"], t)
        return str(getattr(code, stage))

    def cost(self, target: str | Target | None = None, **sizes: int) -> Cost:
        """Flops, bytes, peak memory and kernels; symbolic unless the size symbols are given as keywords."""
        return cost_of(self.build(target), sizes)

    def compile(
        self,
        target: str | Target | None = None,
        *,
        device: str | None = None,
        dump_dir: str | Path | None = None,
        passes: str | None = None,
        verify: str | None = None,
        cache: bool | None = None,
    ) -> Compiled:
        """Machine code for a target, to run on a device (`cpu`, `cuda:1`, `vgpu`, `vgpu:sm_80`): from the compile cache when
        an equal program was compiled before. Either may be left out: see `as_target`."""
        return compile_module(
            self.module,
            target,
            device=device,
            in_tree=self.in_tree,
            out_tree=self.out_tree,
            dump_dir=dump_dir,
            passes=passes,
            verify=verify,
            cache=cache,
        )


def as_target(target: str | Target | None, device: str | None = None) -> Target:
    """A target from its name. None means: what `device` runs, else the setting `target`, else (where that is at its default)
    what the setting `device` names runs."""
    if target is None:
        settings = config.get()
        target = settings.target
        if device is not None or (target == "cpu" and settings.device != "cpu"):
            target = _target_on(device or settings.device, target)
    return parse_target(target) if isinstance(target, str) else target


def _target_on(device: str, setting: str) -> str:
    """What to compile for to run on `device`: the setting `target` where that is its kind and leaves it open."""
    from fluxir.runtime.devices import target_of

    if device == "vgpu" and setting.startswith("sm_"):
        return setting
    if device == "cpu" and setting.startswith("cpu"):
        return setting
    return target_of(device)


# ---- machine code ---------------------------------------------------------------------------------------------------------


def generate(module: Module, target: Target) -> Any:
    """Machine code of a planned loop module: `CompiledCode` for a CPU, `PtxCode` for a GPU."""
    settings = config.get()
    if isinstance(target, CpuTarget):
        from fluxir.codegen.x86 import compile_cpu

        return compile_cpu(module, target, settings.opt_level, settings.accuracy)
    from fluxir.codegen.nvptx import compile_ptx

    assert isinstance(target, GpuTarget)
    return compile_ptx(module, target)


class Compiled(Routed):
    """Machine code for one target, with what was learned on the way. Callable where its device is there: `device`, or the
    CPU for a CPU target, or else what the setting `device` names.

    `build` is None when the code came from the compile cache: nothing was compiled then. `plan`: the memory plan as text.
    """

    def __init__(
        self,
        target: Target,
        spec: dict[str, Any],
        code: bytes,
        constants: Sequence[Any],
        build: Build | None,
        module: Module,
        in_tree: tree.TreeDef | None = None,
        out_tree: tree.TreeDef | None = None,
        device: str | None = None,
        plan: str = "",
    ) -> None:
        super().__init__()
        self.device, self.plan = device, plan
        self.target, self.spec, self.code, self.constants = target, spec, code, list(constants)
        self.build, self.module = build, module
        self.in_tree, self.out_tree = in_tree, out_tree

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """What an artifact holds for readers: the traced program."""
        return {"program.fx": print_module(self.module)}

    @functools.cached_property
    def program(self) -> Program | GpuProgram:
        """The loaded program: on the device it was compiled for, else by its target on the CPU or the device of the setting
        `device`. FX0703 for a GPU target while that is the CPU: nothing falls back to another device.
        """
        from fluxir.runtime.devices import load_program

        device = self.device or ("cpu" if self.target.kind == "cpu" else config.get().device)
        return load_program(self.spec, self.code, self.constants, device)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arrays (trees of arrays where the traced function took trees)."""
        if self.in_tree is None or self.out_tree is None:
            return self.program(*args, **kwargs)
        leaves, given = tree.flatten((args, kwargs))
        tree.check_same(given, self.in_tree, "the arguments", "the traced arguments")
        results = self.program.checked(leaves)
        remember(self, self.program, (args, kwargs), given, leaves, self.out_tree)
        return self.out_tree.unflatten(results)

    def save(self, path: str | Path, *others: Compiled) -> None:
        """Write a `.fxb` artifact, which `fluxir run` and `fluxir.load` run without the compiler. `others`: the same program for
        other targets; who loads the file takes the best that there is. FX0804, FX0906."""
        from fluxir.runtime.artifact import Part, write_artifact

        programs = (self, *others)
        if any(c.module.digest != self.module.digest for c in others):
            raise error(
                "FX0906", "an artifact holds one program, for several targets", help="write one for each program"
            )
        resources: dict[str, Any] = {}
        text = print_module(self.module, resources=resources)
        parts = [Part(c.spec, c.code, c.constants, c.plan) for c in programs]
        write_artifact(path, parts, {"program.fx": text}, resources, versions())


def compile_module(
    module: Module,
    target: str | Target | None = None,
    *,
    device: str | None = None,
    in_tree: tree.TreeDef | None = None,
    out_tree: tree.TreeDef | None = None,
    dump_dir: str | Path | None = None,
    passes: str | None = None,
    verify: str | None = None,
    cache: bool | None = None,
) -> Compiled:
    """Compile a tensor module for a target, to run on a device.

    The compile cache is asked first, by the program's structure, the target, the pipeline, the settings that change code
    and the versions. With `dump_dir` everything is compiled anew and every stage is written there.
    """
    from fluxir.runtime.cache import open_cache

    t = as_target(target, device)
    dump_dir = dump_dir or config.get().dump_dir
    store = open_cache() if cache is not False and dump_dir is None else None
    parts = key_parts(module, t, passes)
    key = json.dumps(parts, default=str)
    if store is not None and (found := _from_cache(store.get(key), t, module, in_tree, out_tree)) is not None:
        found.device = device
        return found
    b, code = _compiled(module, t, passes, verify, dump_dir)
    data = code.object if t.kind == "cpu" else code.ptx.encode()
    spec = {**code.spec, "digest": module.digest}
    if in_tree is not None and out_tree is not None:
        spec |= {"in_tree": in_tree.to_json(), "out_tree": out_tree.to_json()}
    plan = plan_text(b.stages["loops"])
    out = Compiled(t, spec, data, code.constants, b, module, in_tree, out_tree, device, plan)
    if dump_dir is not None:
        write_dumps(Path(dump_dir), b, code)
    if store is not None:
        from fluxir.runtime.artifact import artifact_bytes

        meta = {"name": module.name, "target": t.name, "key_parts": parts}
        try:
            store.put(key, {"program.fxb": artifact_bytes(spec, data, code.constants, plan=plan)}, meta)
        except IOFailure as problem:  # a full or read-only disk: the program itself is there
            warnings.warn(f"the compiled program was not cached: {problem.message}", stacklevel=2)
    return out


def _compiled(
    module: Module, t: Target, passes: str | None, verify: str | None, dump_dir: str | Path | None
) -> tuple[Build, Any]:
    """All stages and the machine code. For a CPU, kernels are translated while later ones are still being made."""
    with few_collections():
        if not isinstance(t, CpuTarget):
            b = build(module, t, passes=passes, verify=verify, dump_dir=dump_dir)
            return b, generate(b.stages["loops"], t)
        from fluxir.codegen.x86 import Compilation

        settings = config.get()
        with Compilation(t, settings.opt_level, settings.accuracy) as c:
            b = build(module, t, passes=passes, verify=verify, dump_dir=dump_dir, ahead=c.ahead)
            return b, c.finish(b.stages["loops"])


def key_parts(module: Module, target: Target, passes: str | None) -> dict[str, Any]:
    """Everything that machine code depends on, by name; `fluxir cache explain` shows in which of them entries differ."""
    from importlib.metadata import version

    return {
        "name": module.name,
        "program": module.digest,
        "arguments": [a.name for a in module.entry.args],
        "results": list(module.entry.result_names),
        "target": target.fingerprint(),
        "passes": passes or [DERIVE, SIMPLIFY, FUSE, LOOPS],
        "settings": dict(config.get().key()),
        "fluxir": fluxir.__version__,
        "llvmlite": version("llvmlite"),
        "compiler": _sources_digest(),
        "tuned": _tuned_digest(),
    } | ({"places": _places_digest(module)} if target.kind == "nvptx" else {})


def versions() -> dict[str, str]:
    """What an artifact says that it was made by."""
    from importlib.metadata import version

    return {"fluxir": fluxir.__version__, **{name: version(name) for name in ("llvmlite", "numpy")}}


def tuned_file() -> Path | None:
    """The file of tuned schedules that the setting `tuned` names."""
    from fluxir.runtime.cache import default_dir

    chosen = config.get().tuned
    return Path(default_dir()) / "tuned.json" if chosen == "cache" else None if chosen is None else Path(chosen)


def tuned_state() -> State | None:
    """The answers of that file to what templates ask; None where there is none in force. FX0803 where a file that was named
    cannot be read."""
    from fluxir.schedule.tuned import State, read_answers

    path = tuned_file()
    if path is None:
        return None
    entries = read_answers(path, missing_ok=config.get().tuned == "cache")
    return State({key: entry["schedule"] for key, entry in entries.items()})


def _tuned_digest() -> str | None:
    """A digest of the schedules in force; None where none are."""
    import hashlib

    state = tuned_state()
    if state is None or not state.answers:
        return None
    return hashlib.sha256(json.dumps(state.answers, sort_keys=True).encode()).hexdigest()[:32]


def _places_digest(module: Module) -> str:
    """A digest of the places that PTX names: code for a GPU says which line of the user's source it comes from."""
    import hashlib

    places = [str(op.loc) for f in module.funcs.values() for op in f.walk()]
    return hashlib.sha256("\n".join(places).encode()).hexdigest()[:32]


@functools.cache
def _sources_digest() -> str:
    """A digest of the compiler's own files by size and time, so that a changed compiler does not use old code."""
    import hashlib

    root = Path(__file__).parent
    stats = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*.py"))]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _from_cache(
    entry: Any, target: Target, module: Module, in_tree: tree.TreeDef | None, out_tree: tree.TreeDef | None
) -> Compiled | None:
    if entry is None:
        return None
    from fluxir.runtime.artifact import cached_artifact

    a = cached_artifact(entry.files["program.fxb"])
    return Compiled(target, a.spec, a.code, a.constants, None, module, in_tree, out_tree, plan=a.plan)


def load(path: str | Path, device: str | None = None) -> Any:
    """A `.fxb` artifact as a callable program on `device` (default: what the setting `device` names where the file has a program
    for it, else the CPU), of its programs the best for it. Never imports the frontend or the passes."""
    from fluxir.runtime.artifact import open_artifact
    from fluxir.runtime.devices import load_artifact

    return load_artifact(open_artifact(path), device)


__all__ = [
    "FUSE",
    "LOOPS",
    "SIMPLIFY",
    "STAGES",
    "Build",
    "Compiled",
    "Lowered",
    "as_target",
    "build",
    "compile_module",
    "generate",
    "load",
    "run_passes",
]
