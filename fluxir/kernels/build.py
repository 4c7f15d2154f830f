"""From a Python function and its parameters to machine code: frontend, clean-up, reports, then PTX or a CPU program.

A `Build` is one kernel for one set of parameter types. What is made of it for a target is made once and kept; CPU code also
depends on the threads of a block and on the bytes of shared memory, which are constants in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fluxir import config
from fluxir.driver import as_target, key_parts, run_passes
from fluxir.errors import IOFailure, error
from fluxir.frontend.kernel.compiler import compile_kernel
from fluxir.frontend.kernel.signature import Param
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Module, Value
from fluxir.ir.types import MemType, TensorType
from fluxir.ir.verify import verify_func
from fluxir.schedule.simt_report import with_reports
from fluxir.target import CpuTarget, GpuTarget, Target

__all__ = ["Build", "written"]

PASSES = "fold,cse,dce"
_WRITES = ("store", "copy", "atomic", "atomic_rmw", "atomic_cas")


class Build:
    """A kernel for given parameters. `typed`: as the frontend made it; `func`: cleaned up."""

    def __init__(self, fn: Callable[..., Any], params: Sequence[Param], block: Sequence[int] = ()) -> None:
        self.params = tuple(params)
        self.typed = compile_kernel(fn, params, block)
        verify_func(self.typed)
        module, _ = run_passes(Module(self.typed.name, {self.typed.name: self.typed}), PASSES)
        self.func = module.entry
        self.written = written(self.func)
        self.cooperative = any(op.name == "grid_barrier" for op in self.func.walk())
        self.codes: dict[Any, Any] = {}

    @functools.cached_property
    def reported(self) -> tuple[Func, list[dict[str, Any]]]:
        """The kernel with its reports in a buffer, and the table of them."""
        return with_reports(self.func)

    def ptx(self, target: GpuTarget, aliased: tuple[int, ...] = ()) -> Any:
        """The `PtxCode` of the kernel for a GPU. `aliased`: arguments that may share memory with others."""
        key = (target.name, aliased)
        if key not in self.codes:
            from fluxir.codegen.nvptx import compile_kernels

            f, _ = self.reported
            f = replace(f, attrs=Attrs({**f.attrs, "aliased": aliased})) if aliased else f
            self.codes[key] = compile_kernels(Module(f.name, {f.name: f}), target)
        return self.codes[key]

    def machine(self, target: GpuTarget, aliased: tuple[int, ...] = ()) -> tuple[str, dict[str, Any]]:
        """The PTX for a GPU and its spec, from the compile cache where they are."""
        key = ("machine", target.name, aliased)
        if key not in self.codes:
            f, _ = self.reported

            def make() -> tuple[bytes, dict[str, Any]]:
                code = self.ptx(target, aliased)
                return code.ptx.encode(), code.spec

            found, spec = kept(Module(f.name, {f.name: f}), target, f"kernel aliased={aliased}", make)
            self.codes[key] = (found.decode(), spec)
        return self.codes[key]  # type: ignore[no-any-return]

    def loops(self, block: Sequence[int], shared: int, aliased: tuple[int, ...] = ()) -> Func:
        """The kernel as loops of a CPU."""
        from fluxir.schedule.simt_cpu import on_cpu

        f = on_cpu(self.reported[0], block, shared)
        f = replace(f, attrs=Attrs({**f.attrs, "aliased": aliased})) if aliased else f
        module, _ = run_passes(Module(f.name, {f.name: f}), PASSES)
        return module.entry

    def native(self, target: CpuTarget, block: Sequence[int], shared: int, aliased: tuple[int, ...] = ()) -> Any:
        """The `CompiledCode` of a program that runs the kernel on a CPU; its inputs are the kernel's arguments and the grid."""
        key = (target.name, tuple(block), shared, aliased, config.get().opt_level, config.get().accuracy)
        if key not in self.codes:
            from fluxir.codegen.x86 import compile_cpu

            settings = config.get()
            module = hosted(self.loops(block, shared, aliased))
            self.codes[key] = compile_cpu(module, target, settings.opt_level, settings.accuracy)
        return self.codes[key]

    def program(self, target: CpuTarget, block: tuple[int, ...], shared: int, aliased: tuple[int, ...] = ()) -> Any:
        """The loaded program of `native`."""
        settings = config.get()
        key = ("program", target.name, block, shared, aliased, settings.opt_level, settings.accuracy)
        if key not in self.codes:
            from fluxir.runtime.program import Program

            def make() -> tuple[bytes, dict[str, Any]]:
                code = self.native(target, block, shared, aliased)
                return code.object, code.spec

            f, _ = self.reported
            what = f"kernel block={block} shared={shared} aliased={aliased}"
            code, spec = kept(Module(f.name, {f.name: f}), target, what, make)
            self.codes[key] = Program(spec, code)
        return self.codes[key]


def kept(module: Module, target: Target, what: str, make: Callable[[], tuple[bytes, dict[str, Any]]]) -> Any:
    """Machine code and its spec from the compile cache, else made and kept there. The key is that of programs, and `what`."""
    from fluxir.runtime.cache import open_cache

    store = open_cache()
    parts = key_parts(module, target, what)
    key = json.dumps(parts, default=str)
    found = store.get(key) if store is not None else None
    if found is not None:
        return bytes(found.files["code"]), json.loads(bytes(found.files["spec.json"]))
    code, spec = make()
    if store is not None:
        with contextlib.suppress(IOFailure):  # a full or read-only disk: it is compiled again next time
            files = {"code": code, "spec.json": json.dumps(spec).encode()}
            store.put(key, files, {"name": module.name, "target": target.name, "key_parts": parts})
    return code, spec


def hosted(f: Func) -> Module:
    """A module whose entry launches the CPU kernel `f`: scalars come as memories of rank 0, all arguments are inputs."""
    args = []
    b = Builder(f.loc)
    given: list[Value] = []
    for i, a in enumerate(f.args):
        t = a.type if isinstance(a.type, MemType) else MemType(a.type.dtype, ())
        assert isinstance(a.type, (MemType, TensorType))
        v = Value(t, None, i, a.name)
        args.append(v)
        given.append(v if isinstance(a.type, MemType) else b.emit("load", v)[0])
    b.emit("launch", *given, callee=f.name, outputs=0)
    name = f.name + "_host"
    host = Func(name, Block(args, b.ops, ()), "host", Attrs({"inputs": len(args)}), (), f.loc)
    return Module(f.name, {name: host, f.name: f})


def written(f: Func) -> frozenset[int]:
    """Positions of the arguments that a kernel writes to; all of them where an array is chosen at run time."""
    base: dict[Value, int] = {a: i for i, a in enumerate(f.args) if isinstance(a.type, MemType)}
    out: set[int] = set()
    for op in f.walk():
        if op.name in ("subview", "reinterpret") and op.operands[0] in base:
            base[op.result] = base[op.operands[0]]
        elif op.name in _WRITES and op.operands[0] in base:
            out.add(base[op.operands[0]])
        elif op.blocks and any(isinstance(r.type, MemType) for r in op.results):
            out.update(base.values())
    return frozenset(out)


def gpu_target(device: str) -> GpuTarget:
    """The architecture that code for a device is made for. FX0334 for the CPU, which has none."""
    kind, _, rest = device.partition(":")
    if kind == "vgpu":
        from fluxir.runtime.vgpu.driver import DEFAULT_TARGET

        named = config.get().target
        target = as_target(rest or (named if named.startswith("sm_") else DEFAULT_TARGET))
    elif kind == "cuda":
        from fluxir.runtime.cuda import target_of

        target = as_target(target_of(device))
    else:
        raise error("FX0335", f"{device} is no GPU")
    assert isinstance(target, GpuTarget)
    return target


def cpu_target() -> CpuTarget:
    """The CPU that kernels are compiled for: the setting `target` where it is one, else this machine."""
    named: Target = as_target(None)
    found = named if isinstance(named, CpuTarget) else as_target("cpu")
    assert isinstance(found, CpuTarget)
    return found
