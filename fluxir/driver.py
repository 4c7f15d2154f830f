"""The pipeline as one page: a traced program goes in, checked machine code comes out.

    trace -> simplify -> fuse -> lower (loops) -> plan -> code generation -> program

`Lowered` is a traced program with every later stage computed on demand; `Compiled` runs. Stages are modules one can
print, parse back, verify and interpret; `Lowered.as_text(stage)` prints one, `dump_dir` writes them all.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluxir.ops
import fluxir.passes
from fluxir import config
from fluxir.errors import IOFailure, error
from fluxir.frontend import tree
from fluxir.ir.core import Func, Module
from fluxir.ir.dims import Dim, assuming, evaluate, symbols_of
from fluxir.ir.printer import print_func, print_module
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager, Record, parse_pipeline
from fluxir.target import CpuTarget, GpuTarget, Target, parse_target

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
) -> Build:
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
            raise error("FX0512", f"there is no stage {stage!r}", help="the stages are " + ", ".join(STAGES))
        if stage in ("traced", "simplified", "fused", "loops"):
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
        dump_dir: str | Path | None = None,
        passes: str | None = None,
        verify: str | None = None,
        cache: bool | None = None,
    ) -> Compiled:
        """Machine code for a target: from the compile cache when an equal program was compiled before."""
        return compile_module(
            self.module,
            target,
            in_tree=self.in_tree,
            out_tree=self.out_tree,
            dump_dir=dump_dir,
            passes=passes,
            verify=verify,
            cache=cache,
        )


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
    if isinstance(target, CpuTarget):
        from fluxir.codegen.x86 import compile_cpu

        return compile_cpu(module, target, settings.opt_level, settings.accuracy)
    from fluxir.codegen.nvptx import compile_ptx

    assert isinstance(target, GpuTarget)
    return compile_ptx(module, target)


class Compiled:
    """Machine code for one target, with what was learned on the way. On a CPU target it is callable.

    `build` is None when the code came from the compile cache: nothing was compiled then.
    """

    def __init__(
        self,
        target: Target,
        spec: dict[str, Any],
        code: bytes,
        constants: Sequence[Any],
        build: Build | None,
        texts: Mapping[str, str],
        in_tree: tree.TreeDef | None = None,
        out_tree: tree.TreeDef | None = None,
    ) -> None:
        self.target, self.spec, self.code, self.constants, self.build, self.texts = (
            target,
            spec,
            code,
            list(constants),
            build,
            dict(texts),
        )
        self.in_tree, self.out_tree = in_tree, out_tree

    @functools.cached_property
    def program(self) -> Program:
        """The loaded program (CPU targets; FX0703 for others: nothing falls back to another device)."""
        if self.target.kind != "cpu":
            raise error(
                "FX0703",
                f"a program for {self.target.name} cannot run on the CPU",
                help="compile with target='cpu', or run it with --device cuda",
            )
        from fluxir.runtime.program import Program

        return Program(self.spec, self.code, self.constants)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arrays (trees of arrays where the traced function took trees)."""
        if self.in_tree is None or self.out_tree is None:
            return self.program(*args, **kwargs)
        leaves, given = tree.flatten((args, kwargs))
        tree.check_same(given, self.in_tree, "the arguments", "the traced arguments")
        return self.out_tree.unflatten(self.program.call_flat(leaves))

    def save(self, path: str | Path) -> None:
        """Write a `.fxb` artifact, which `fluxir run` and `fluxir.load` run without the compiler."""
        from fluxir.runtime.artifact import write_artifact

        write_artifact(path, self.spec, self.code, self.constants, self.texts)


def compile_module(
    module: Module,
    target: str | Target | None = None,
    *,
    in_tree: tree.TreeDef | None = None,
    out_tree: tree.TreeDef | None = None,
    dump_dir: str | Path | None = None,
    passes: str | None = None,
    verify: str | None = None,
    cache: bool | None = None,
) -> Compiled:
    """Compile a tensor module for a target.

    The compile cache is asked first, by the program's structure, the target, the pipeline, the settings that change code
    and the versions. With `dump_dir` everything is compiled anew and every stage is written there.
    """
    from fluxir.runtime.cache import open_cache

    t = as_target(target)
    dump_dir = dump_dir or config.get().dump_dir
    store = open_cache() if cache is not False and dump_dir is None else None
    parts = key_parts(module, t, passes)
    key = json.dumps(parts, default=str)
    if store is not None and (found := _from_cache(store.get(key), t, in_tree, out_tree)) is not None:
        return found
    b = build(module, t, passes=passes, verify=verify, dump_dir=dump_dir)
    code = generate(b.stages["loops"], t)
    data = code.object if t.kind == "cpu" else code.ptx.encode()
    spec = {**code.spec, "digest": module.digest}
    if in_tree is not None and out_tree is not None:
        spec |= {"in_tree": in_tree.to_json(), "out_tree": out_tree.to_json()}
    texts = {"program.fx": print_module(module)}
    out = Compiled(t, spec, data, code.constants, b, texts, in_tree, out_tree)
    if dump_dir is not None:
        write_dumps(Path(dump_dir), b, code)
    if store is not None:
        from fluxir.runtime.artifact import artifact_bytes

        meta = {"name": module.name, "target": t.name, "key_parts": parts}
        try:
            store.put(key, {"program.fxb": artifact_bytes(spec, data, code.constants, texts)}, meta)
        except IOFailure as problem:  # a full or read-only disk: the program itself is there
            warnings.warn(f"the compiled program was not cached: {problem.message}", stacklevel=2)
    return out


def key_parts(module: Module, target: Target, passes: str | None) -> dict[str, Any]:
    """Everything that machine code depends on, by name; `fluxir cache explain` shows in which of them entries differ."""
    from importlib.metadata import version

    return {
        "name": module.name,
        "program": module.digest,
        "arguments": [a.name for a in module.entry.args],
        "results": list(module.entry.result_names),
        "target": target.fingerprint(),
        "passes": passes or [SIMPLIFY, FUSE, LOOPS],
        "settings": dict(config.get().key()),
        "fluxir": fluxir.__version__,
        "llvmlite": version("llvmlite"),
        "compiler": _sources_digest(),
    }


@functools.cache
def _sources_digest() -> str:
    """A digest of the compiler's own files by size and time, so that a changed compiler does not use old code."""
    import hashlib

    root = Path(__file__).parent
    stats = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*.py"))]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _from_cache(
    entry: Any, target: Target, in_tree: tree.TreeDef | None, out_tree: tree.TreeDef | None
) -> Compiled | None:
    if entry is None:
        return None
    from fluxir.runtime.artifact import read_artifact

    a = read_artifact(entry.files["program.fxb"])
    texts = {k: v.decode() for k, v in a.texts.items()}
    return Compiled(target, a.spec, a.code, a.constants, None, texts, in_tree, out_tree)


def write_dumps(folder: Path, b: Build, code: Any) -> None:
    """Beside the passes' own dumps: each kernel's loop IR, LLVM IR, assembly or PTX, and the memory plan."""
    folder.mkdir(parents=True, exist_ok=True)
    loops = b.stages["loops"]
    (folder / "loops.fx").write_text(print_module(loops))
    for i, f in enumerate(f for f in loops.funcs.values() if f.level == "kernel"):
        (folder / f"k{i:02d}-{f.name}.loop.fx").write_text(print_func(f) + "\n")
    (folder / "module.ll").write_text(code.llvm)
    if b.target.kind == "cpu":
        (folder / "module.s").write_text(code.asm)
    else:
        (folder / "module.ptx").write_text(code.ptx)
    (folder / "plan.txt").write_text(plan_text(loops))


def plan_text(loops: Module) -> str:
    """The memory plan for readers: each buffer's type, offset and bytes, and the peak."""
    out = []
    for f in loops.funcs.values():
        if f.level != "host":
            continue
        out.append(f"@{f.name}: {f.attrs.get('buffers', 0)} buffers, peak {f.attrs.get('arena', 0)} bytes")
        for op in f.walk():
            if op.name == "view":
                out.append(
                    f"  offset {op.attrs['offset']!s:>12}  {op.attrs['type'].nbytes!s:>12} bytes  {op.attrs['type']}"
                )
            elif op.name == "launch":
                out.append(f"  launch {op.attrs['callee']}" + (f"  ({op.loc})" if op.loc else ""))
    return "\n".join(out) + "\n"


# ---- Python functions -----------------------------------------------------------------------------------------------------


def lower_function(
    fn: Callable[..., Any], *args: Any, facts: Any = None, name: str | None = None, **kwargs: Any
) -> Lowered:
    """Trace `fn` on abstract arguments: tensor types (`fx.f32["B", 784]`), arrays or numbers."""
    from fluxir.frontend.staging import staged
    from fluxir.frontend.trace import trace

    fn = (
        functools.partial(staged(fn.func), *fn.args, **fn.keywords) if isinstance(fn, functools.partial) else staged(fn)
    )
    t = trace(fn, args, kwargs, name=name, facts=facts)
    verify_module(t.module)
    return Lowered(t.module, t.in_tree, t.out_tree)


class Jit:
    """A function compiled on first call for each structure, dtype and shape of its arguments; see `jit`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        target: str | None = None,
        static_argnames: Sequence[str] = (),
        signature: Sequence[Any] | None = None,
        facts: Any = None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn, self.target, self.static = fn, target, frozenset(static_argnames)
        self.signature, self.facts = signature, facts
        self._programs: dict[Any, Compiled] = {}
        self._last: tuple[int, Program, tree.TreeDef | None] | None = None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        last = self._last
        if last is not None and not kwargs and len(args) == last[0]:
            results = last[1].call_same(list(args))  # None unless the arguments look like those of the last call
            if results is not None:
                return results[0] if last[2] is None else last[2].unflatten(results)
        return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from fluxir.frontend.tensor import Tensor

        static = {k: v for k, v in kwargs.items() if k in self.static}
        traced = {k: v for k, v in kwargs.items() if k not in self.static}
        leaves, structure = tree.flatten((args, traced))
        if any(isinstance(x, Tensor) for x in leaves):
            return self.fn(*args, **kwargs)  # inside another trace: part of that program
        compiled = self._compiled(args, traced, static, leaves, structure)
        arrays = [x if hasattr(x, "__dlpack__") or hasattr(x, "__array__") else _scalar(x) for x in leaves]
        results = compiled.program.call_flat(arrays)
        assert compiled.out_tree is not None
        if not kwargs and len(leaves) == len(args) and all(x is y for x, y in zip(leaves, args, strict=True)):
            flat = compiled.out_tree == tree.flatten(0)[1]
            self._last = (len(args), compiled.program, None if flat else compiled.out_tree)
        return compiled.out_tree.unflatten(results)

    def _compiled(
        self, args: Any, traced: Any, static: dict[str, Any], leaves: list[Any], structure: tree.TreeDef
    ) -> Compiled:
        if self.signature is not None:
            key: Any = (structure, tuple(sorted(static.items())), "signature")
        else:
            key = (
                structure,
                tuple(sorted(static.items())),
                tuple(_abstract_key(x) for x in leaves),
                config.get().key(),
            )
        if key not in self._programs:
            if self.signature is not None:
                args = tuple(self.signature)
            self._programs[key] = self.lower(*args, **traced, **static).compile(self.target)
        return self._programs[key]

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Trace without compiling; arguments may be types: `f.lower(fx.f32["B", 784])`. Without any, the signature."""
        static = {k: v for k, v in kwargs.items() if k in self.static}
        traced = {k: v for k, v in kwargs.items() if k not in self.static}
        if not args and not traced and self.signature is not None:
            args = tuple(self.signature)
        fn = functools.partial(self.fn, **static) if static else self.fn
        return lower_function(fn, *args, facts=self.facts, name=getattr(self.fn, "__name__", None), **traced)


def _scalar(x: Any) -> Any:
    import numpy as np

    from fluxir.frontend.trace import abstract

    return np.asarray(x, abstract(x).dtype.numpy)


def _abstract_key(x: Any) -> Any:
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    return (tuple(shape), str(dtype)) if shape is not None and dtype is not None else type(x)


def jit(
    fn: Callable[..., Any] | None = None,
    *,
    target: str | None = None,
    static_argnames: Sequence[str] = (),
    signature: Sequence[Any] | None = None,
    facts: Any = None,
) -> Any:
    """Compile a function: `f = fx.jit(g)`, `@fx.jit`, `@fx.jit(signature=(fx.f32["B", 784],))`.

    Without a signature the function is compiled once for each structure, dtype and shape of its arguments; with one (or
    annotations that are all tensor types) once for all sizes, which entry guards check. `static_argnames` are Python
    values that the trace may branch on. Returns a `Jit`: callable, with `.lower(...)`.
    """
    if fn is None:
        return functools.partial(jit, target=target, static_argnames=static_argnames, signature=signature, facts=facts)
    return Jit(fn, target=target, static_argnames=static_argnames, signature=signature, facts=facts)


def load(path: str | Path) -> Any:
    """A `.fxb` artifact as a callable program (never imports the frontend or the passes)."""
    from fluxir.runtime.program import Program

    return Program.load(path)


__all__ = [
    "STAGES",
    "Build",
    "Compiled",
    "Cost",
    "Func",
    "Jit",
    "Lowered",
    "as_target",
    "build",
    "compile_module",
    "cost_of",
    "generate",
    "jit",
    "load",
    "lower_function",
    "parse_pipeline",
    "run_passes",
]
