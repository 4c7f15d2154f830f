"""A lowered module (host functions and kernels) to object code for a CPU, x86-64 or AArch64, with one native entry.

`compile_cpu(module, target)` is the only door. Invariants:

- The object refers to nothing outside but the C library's memory functions (checked): no libm, no compiler runtime.
- Host level is native: launches are direct calls, `if`/`for`/`while`/`call` are branches and calls. Functions on a call
  cycle check their depth. Memory that `alloc` asks for at run time is freed when its region ends, errors included.
- Every kernel is translated by itself, in processes beside this one (see workers.py), and the objects are joined.
- Kernels equal in structure, or in what is written for them, are translated once. A launch whose output shares memory
  with an input (`inplace`) gets a variant of the kernel that takes one pointer for both, so that LLVM sees the dependence
  and still vectorises.
- `parallel` becomes a function over a range of its index, called directly when one thread is enough, else by the pool that
  the runtime context names (see abi.py).
- Code uses exactly the features in `target.features`; the machine's own name only tunes it.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fluxir.codegen import abi, backend, checks, workers
from fluxir.codegen.atomics import expand_atomics
from fluxir.codegen.emit import Dialect, Unit
from fluxir.codegen.hosts import host_symbols, reachable, reachable_from
from fluxir.codegen.inline import Recipes
from fluxir.codegen.legalize import legalize
from fluxir.codegen.link import join_objects
from fluxir.codegen.part import CODE, Part, Piece
from fluxir.codegen.x86_host import HostEmitter
from fluxir.codegen.x86_kernel import KernelEmitter
from fluxir.codegen.x86_profile import Recorder
from fluxir.ir.core import Func, Module, Op, array_digest
from fluxir.ir.dims import assuming
from fluxir.target import CpuTarget

__all__ = ["Compilation", "CompiledCode", "compile_cpu"]


@dataclass
class CompiledCode:
    """What `compile_cpu` returns. `spec` is JSON-able and holds all that the runtime needs beside `object` and `constants`."""

    object: bytes
    spec: dict[str, Any]
    constants: list[Any]
    """Arrays in the order of `spec["constants"]`."""
    pieces: list[Piece]
    """What was translated by itself: kernels, recipes that are called, and last the host functions."""
    target: CpuTarget
    level: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by step: emit (IR to text; translation goes on meanwhile), wait (for the translation), link; of the
    translation: parse, optimise, codegen, CPU time added up over processes."""
    launches: list[Op] = field(default_factory=list)
    """Of a profiled build the launches by their numbers in the record."""

    @functools.cached_property
    def source(self) -> str:
        """The LLVM IR as we wrote it, but for kernels on vectors."""
        return "\n".join(p.named().main for p in self.pieces if p.main)

    @functools.cached_property
    def vector_source(self) -> str:
        """The LLVM IR of kernels that are written on vectors, which LLVM's optimiser is spared."""
        return "\n".join(p.named().plain for p in self.pieces if p.plain)

    @functools.cached_property
    def llvm(self) -> str:
        """The optimised LLVM IR (computed when first read)."""
        return backend.llvm_of([p.named()[1:] for p in self.pieces], self.target, self.level)

    @functools.cached_property
    def asm(self) -> str:
        """The assembly text (computed when first read)."""
        return backend.asm_of([p.named()[1:] for p in self.pieces], self.target, self.level)


def compile_cpu(
    module: Module, target: CpuTarget, opt_level: int = 2, accuracy: str = "standard", events: int = 0
) -> CompiledCode:
    """Compile a lowered module whose entry is a host function.

    `opt_level` 0 to 3 as in the settings; `accuracy="fast"` lets LLVM contract multiplications and additions everywhere.
    With `events` launches are timed, and so many are written down one by one (see x86_profile.py): the last constant is
    the record.
    Raises FX0502 for an op without code, FX0503 where LLVM rejects our text, FX0508 for local memory of unknown size,
    FX0514 where the object would need a library function, FX0517 where LLVM crashes, FX0604 where the inputs do not
    determine a size.
    """
    with Compilation(target, opt_level, accuracy) as c:
        return c.finish(module, events)


class Compilation:
    """One compilation in progress. Kernels may be given `ahead`, while the program around them is still being made."""

    def __init__(self, target: CpuTarget, opt_level: int = 2, accuracy: str = "standard") -> None:
        self.target, self.level = target, opt_level
        self.translation = workers.Translation(backend.machine_of(target), opt_level)
        self.pieces = Pieces(target, accuracy == "fast", self.translation.add)
        self.emitting = 0.0

    def __enter__(self) -> Compilation:
        self.translation.__enter__()
        return self

    def __exit__(self, *what: Any) -> None:
        self.translation.__exit__(*what)

    def ahead(self, f: Func) -> None:
        """Begin to translate a kernel that shares no memory between its arguments."""
        start = time.perf_counter()
        # What is wrong with it is said when the program is verified and written as a whole.
        with contextlib.suppress(Exception):
            self.pieces.kernel(f, ())
        self.emitting += time.perf_counter() - start

    def finish(self, module: Module, events: int = 0) -> CompiledCode:
        """The whole program; see `compile_cpu`."""
        start = time.perf_counter()
        with assuming(module.facts):
            unit = ModuleEmitter(module, self.pieces, events)
        written = time.perf_counter()
        objects = self.translation.objects()
        done = time.perf_counter()
        pieces = self.pieces.all
        code = join_objects([(o, (CODE, p.name)) for o, p in zip(objects, pieces, strict=True)])
        checks.check_object(code)
        times = {"emit": self.emitting + written - start, "wait": done - written, "link": time.perf_counter() - done}
        times |= self.translation.seconds()
        spec = abi.entry_spec(module, unit.symbols)
        t = self.target
        spec["target"] = {"name": t.name, "kind": "cpu", "triple": t.triple, "features": list(t.features)}
        spec["recursive"] = bool(unit.cyclic)
        spec["errors"] |= {k: list(v) for k, v in unit.failures.items()}
        spec["constants"] = [
            {"name": f"c{i}", "dtype": a.dtype.name, "shape": list(a.shape)} for i, a in enumerate(unit.constants)
        ]
        launches = unit.recorder.launches if unit.recorder is not None else []
        return CompiledCode(code, spec, unit.constants, pieces, t, self.level, times, launches)


# ---- kernels --------------------------------------------------------------------------------------------------------


class Pieces:
    """Kernels and recipes, each handed to `publish` as soon as it is written; equal ones once."""

    def __init__(self, target: CpuTarget, fast: bool, publish: Callable[[Piece], None]) -> None:
        self.target, self.fast = target, fast
        half = "half" if target.has("half") else "i16"
        self.dialect = Dialect(triple=target.triple, half=half)
        self.attributes = backend.attributes_of(target)
        self.recipes = Recipes(target, self.dialect, fast, self.attributes, self.add)
        self.all: list[Piece] = []
        self._publish = publish
        self._names = Unit(self.dialect, CODE)
        self._kernels: dict[Any, str] = {}
        self._known: dict[tuple[str, str], str] = {}  # texts and names

    def add(self, part: Part, name: str) -> str:
        """Have a finished part translated; returns its name in the program, that of an equal one if there is one."""
        texts = part.texts()
        if texts not in self._known:
            piece = Piece(self._names.unique(name), *texts)
            self._known[texts] = piece.name
            self.all.append(piece)
            self._publish(piece)
        return self._known[texts]

    def kernel(self, f: Func, shared: tuple[tuple[int, int], ...]) -> str:
        """The LLVM name of kernel `f` with the arguments paired in `shared` being the same memory."""
        key = (f.digest, shared)
        if key not in self._kernels:
            part = Part(self.dialect, self.attributes)
            legal = legalize(expand_atomics(f, self.target), self.target, defer=True)
            KernelEmitter.write(self, part, legal, dict(shared))
            self._kernels[key] = self.add(part, "kernel." + f.name)
        return self._kernels[key]


# ---- the module -----------------------------------------------------------------------------------------------------


class ModuleEmitter:
    """The host functions of a module, and everything that is shared between them."""

    def __init__(self, module: Module, pieces: Pieces, events: int = 0) -> None:
        self.module, self.pieces = module, pieces
        self.target, self.fast, self.recipes = pieces.target, pieces.fast, pieces.recipes
        self.attributes = pieces.attributes
        self.kernel = pieces.kernel
        self.constants: list[Any] = []
        self.failures: dict[str, tuple[str, str]] = {}
        self._constant_index: dict[str, int] = {}
        self.hosts = reachable(module)
        self.host_symbols = host_symbols(module, self.hosts)
        self.cyclic = {n for n in self.hosts if n in reachable_from(module, n)}
        self.symbols = self.host_symbols[module.entry.name]
        self.host = Part(pieces.dialect, self.attributes)
        self.plain = self.host.plain
        self.recorder = Recorder(self.host, events) if events else None
        self.names = {n: self.plain.unique("host." + n) for n in self.hosts}
        for name in self.hosts:
            self._host(legalize(module.funcs[name], self.target, defer=True))
        self._entry()
        pieces.add(self.host, "host")

    def failure(self, code: str, message: str) -> str:
        """The number that the entry returns for an error of this program, beside those of `abi.ERRORS`."""
        number = str(len(abi.ERRORS) + 1 + len(self.failures))
        self.failures[number] = (code, message)
        return number

    def constant(self, a: Any) -> int:
        """The number of a constant array; equal arrays share one."""
        digest = array_digest(a)
        if digest not in self._constant_index:
            self._constant_index[digest] = len(self.constants)
            self.constants.append(a)
        return self._constant_index[digest]

    def _host(self, f: Func) -> None:
        symbols = self.host_symbols[f.name]
        e = HostEmitter(self, {s: f"%s{i}" for i, s in enumerate(symbols)})
        params = []
        for i, a in enumerate(f.args):
            e.values[a] = f"%a{i}"
            params.append(f"ptr noundef %a{i}")
        params += [f"i64 %s{i}" for i in range(len(symbols))]
        params += ["ptr %consts", "ptr %rt", "i64 %depth"]
        e.function(f, f.name in self.cyclic)
        self.host.define(self.plain, "i32", self.names[f.name], params, e.text_of_body())

    def _entry(self) -> None:
        f = self.module.entry
        count = len(f.args) - ("arena" in f.attrs)
        lines, args = [], []
        for i in range(count):
            lines += [f"  %p{i} = getelementptr ptr, ptr %args, i64 {i}", f"  %a{i} = load ptr, ptr %p{i}, align 8"]
            args.append(f"ptr %a{i}")
        if "arena" in f.attrs:
            args.append("ptr %arena")
        for i in range(len(self.symbols)):
            lines += [f"  %q{i} = getelementptr i64, ptr %dims, i64 {i}", f"  %s{i} = load i64, ptr %q{i}, align 8"]
            args.append(f"i64 %s{i}")
        lines.append(f"  %consts = getelementptr ptr, ptr %args, i64 {count}")
        context = "%rt"
        if self.recorder is not None:
            lines += self.recorder.context(len(self.constants))
            self.plain.declare("llvm.memcpy.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
            self.constants.append(self.recorder.array())
            context = "%profiled"
        args += ["ptr %consts", f"ptr {context}", "i64 0"]
        lines += [f"  %r = call i32 @{self.names[f.name]}({', '.join(args)})", "  ret i32 %r"]
        self.plain.defines.append(
            f"define i32 @{abi.ENTRY}(ptr %args, ptr %dims, ptr %arena, ptr %rt) {self.attributes} {{\n"
            + "\n".join(lines)
            + "\n}\n"
        )
