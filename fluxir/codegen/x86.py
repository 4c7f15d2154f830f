"""A lowered module (host functions and kernels) to x86-64 object code: one LLVM module, one native entry.

`compile_cpu(module, target)` is the only door. Invariants:

- The object refers to nothing outside but the C library's memory functions (checked): no libm, no compiler runtime.
- Host level is native: launches are direct calls, `if`/`for`/`while`/`call` are branches and calls. Functions on a call
  cycle check their depth. Memory that `alloc` asks for at run time is freed when its region ends, errors included.
- Kernels equal in structure are emitted once. A launch whose output shares memory with an input (`inplace`) gets a
  variant of the kernel that takes one pointer for both, so that LLVM sees the dependence and still vectorises.
- `parallel` becomes a function over a range of its index, called directly when one thread is enough, else by the pool that
  the runtime context names (see abi.py).
- Code uses exactly the features in `target.features`; the machine's own name only tunes it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxir.codegen import abi, backend, checks
from fluxir.codegen.atomics import expand_atomics
from fluxir.codegen.emit import Dialect, Unit
from fluxir.codegen.hosts import host_symbols, reachable, reachable_from
from fluxir.codegen.inline import Recipes
from fluxir.codegen.legalize import legalize
from fluxir.codegen.x86_host import HostEmitter
from fluxir.codegen.x86_kernel import KernelEmitter
from fluxir.ir.core import Func, Module, array_digest
from fluxir.ir.dims import assuming
from fluxir.target import CpuTarget

__all__ = ["CompiledCode", "compile_cpu"]


@dataclass
class CompiledCode:
    """What `compile_cpu` returns. `spec` is JSON-able and holds all that the runtime needs beside `object` and `constants`."""

    object: bytes
    spec: dict[str, Any]
    constants: list[Any]
    """Arrays in the order of `spec["constants"]`."""
    source: str
    """The LLVM IR as we wrote it, but for kernels on vectors."""
    vector_source: str
    """The LLVM IR of kernels that are written on vectors, which LLVM's optimiser is spared."""
    target: CpuTarget
    level: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by step: emit (IR to text), parse, optimise, codegen."""

    @functools.cached_property
    def llvm(self) -> str:
        """The optimised LLVM IR (computed when first read)."""
        return backend.llvm_of(self.source, self.vector_source, self.target, self.level)

    @functools.cached_property
    def asm(self) -> str:
        """The assembly text (computed when first read)."""
        return backend.asm_of(self.source, self.vector_source, self.target, self.level)


def compile_cpu(module: Module, target: CpuTarget, opt_level: int = 2, accuracy: str = "standard") -> CompiledCode:
    """Compile a lowered module whose entry is a host function.

    `opt_level` 0 to 3 as in the settings; `accuracy="fast"` lets LLVM contract multiplications and additions everywhere.
    Raises FX0502 for an op without code, FX0503 where LLVM rejects our text, FX0508 for local memory of unknown size,
    FX0514 where the object would need a library function, FX0604 where the inputs do not determine a size.
    """
    times: dict[str, float] = {}
    start = time.perf_counter()
    with assuming(module.facts):
        unit = ModuleEmitter(module, target, accuracy == "fast")
        source, vector_source = unit.main.text(), unit.plain.text()
    times["emit"] = time.perf_counter() - start
    code = backend.object_of(source, vector_source, target, opt_level, times)
    checks.check_object(code)
    spec = abi.entry_spec(module, unit.symbols)
    spec["target"] = {"name": target.name, "kind": "cpu", "triple": target.triple, "features": list(target.features)}
    spec["recursive"] = bool(unit.cyclic)
    spec["errors"] |= {k: list(v) for k, v in unit.failures.items()}
    spec["constants"] = [
        {"name": f"c{i}", "dtype": a.dtype.name, "shape": list(a.shape)} for i, a in enumerate(unit.constants)
    ]
    return CompiledCode(code, spec, unit.constants, source, vector_source, target, opt_level, times)


# ---- the module -----------------------------------------------------------------------------------------------------


class ModuleEmitter:
    """Everything of one module that is shared between its functions."""

    def __init__(self, module: Module, target: CpuTarget, fast: bool) -> None:
        self.module, self.target, self.fast = module, target, fast
        half = "half" if target.has("f16c") else "i16"
        dialect = Dialect(triple=target.triple, half=half)
        self.main, self.plain = Unit(dialect, module.name), Unit(dialect, module.name)
        self.constants: list[Any] = []
        self.failures: dict[str, tuple[str, str]] = {}
        self._constant_index: dict[str, int] = {}
        self._kernels: dict[Any, str] = {}
        self._sizes: dict[str, tuple[str, ...]] = {}
        self.hosts = reachable(module)
        self.host_symbols = host_symbols(module, self.hosts)
        self.cyclic = {n for n in self.hosts if n in reachable_from(module, n)}
        self.names = {n: self.main.unique("host." + n) for n in self.hosts}
        tune = backend.host_name() if target.native else "generic"
        self.attributes = f'nounwind "tune-cpu"="{tune}"'
        self.recipes = Recipes(target, dialect, fast, self.attributes)
        self.symbols = self.host_symbols[module.entry.name]
        for name in self.hosts:
            self._host(legalize(module.funcs[name], target, defer=True))
        self._entry()

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

    def kernel(self, f: Func, shared: tuple[tuple[int, int], ...]) -> str:
        """The LLVM name of kernel `f` with the arguments paired in `shared` being the same memory."""
        key = (f.digest, shared)
        if key not in self._kernels:
            name = self._kernels[key] = self.main.unique("kernel." + f.name)
            legal = legalize(expand_atomics(f, self.target), self.target, defer=True)
            KernelEmitter.write(self, name, legal, dict(shared))
        return self._kernels[key]

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
        self.define(self.plain, "i32", self.names[f.name], params, e.text_of_body())

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
        args += ["ptr %consts", "ptr %rt", "i64 0"]
        lines += [f"  %r = call i32 @{self.names[f.name]}({', '.join(args)})", "  ret i32 %r"]
        self.plain.defines.append(
            f"define i32 @{abi.ENTRY}(ptr %args, ptr %dims, ptr %arena, ptr %rt) {self.attributes} {{\n"
            + "\n".join(lines)
            + "\n}\n"
        )

    def define(
        self, unit: Unit, result: str, name: str, params: Sequence[str], body: str, shared: bool = False
    ) -> None:
        """A function of this module. One that is `shared` is called from both units."""
        if shared:
            other = self.main if unit is self.plain else self.plain
            other.declare(name, f"hidden {result}", [p.rsplit(" ", 1)[0] for p in params])
        linkage = "hidden" if shared else "internal"
        unit.defines.append(
            f"define {linkage} {result} @{name}({', '.join(params)}) noinline {self.attributes} {{\n{body}\n}}\n"
        )
