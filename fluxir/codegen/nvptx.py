"""A lowered module (host functions and GPU kernels) to PTX and a launch manifest.

`compile_ptx(module, target)` is the only door. Invariants:

- Every kernel is one `.entry`; its parameters are the kernel's memories (64-bit global addresses), its scalars, then
  one `.u64` for each size symbol, sorted: the same order as on the CPU.
- The PTX is checked (`checks.check_ptx`): no external function (a mistyped intrinsic passes LLVM's verifier and becomes
  one), no stack the kernel did not ask for, the `.version` and `.target` of the target.
- Arithmetic is spelled as on the CPU, from the same recipes, with no fast-math flags: the same bits.
- The host functions are not compiled: the manifest holds them as JSON (see manifest.py), which the runtime executes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fluxir.codegen import abi, checks
from fluxir.codegen.atomics import expand_atomics
from fluxir.codegen.debuginfo import DebugInfo
from fluxir.codegen.emit import Dialect, Unit
from fluxir.codegen.legalize import legalize
from fluxir.codegen.manifest import host_manifest
from fluxir.codegen.nvptx_ops import GpuOps, check_features
from fluxir.errors import error
from fluxir.ir.core import Func, Module, Op
from fluxir.ir.dims import assuming
from fluxir.ir.types import MemType, TensorType
from fluxir.target import GpuTarget

__all__ = ["PtxCode", "compile_kernels", "compile_ptx"]

SPACES = {"global": 1, "shared": 3, "constant": 4}
PASSES = (
    "simplify_cfg",
    "instruction_combine",
    "loop_rotate",
    "loop_unroll",
    "sroa",
    "instruction_combine",
    "simplify_cfg",
)
"""What of LLVM's pipeline pays: our code has no repeated instructions, no calls, no memory to promote but `local` arrays
whose loops were unrolled; a thread is scalar, vectors are written by the templates; addresses in loops are strength-reduced
by the code generator. A third of the time of -O2 for the same registers."""


@dataclass
class PtxCode:
    """What `compile_ptx` returns. `spec` is JSON-able: the entry's signature, the kernels and the launch list."""

    ptx: str
    spec: dict[str, Any]
    constants: list[Any]
    source: str
    """The LLVM IR as we wrote it."""
    target: GpuTarget
    seconds: dict[str, float] = field(default_factory=dict)
    plain: bool = True

    @property
    def manifest(self) -> dict[str, Any]:
        """The launch manifest: what `spec` says."""
        return self.spec

    @property
    def kernels(self) -> list[str]:
        return [k["name"] for k in self.spec["kernels"]]

    @functools.cached_property
    def llvm(self) -> str:
        """The optimised LLVM IR (computed when first read)."""
        return str(_optimised(self.source, self.target, {}, self.plain))


def compile_ptx(module: Module, target: GpuTarget) -> PtxCode:
    """Compile a lowered module whose entry is a host function and whose kernels have a grid.

    Raises FX0502 for an op without code, FX0503 where LLVM rejects our text, FX0514 where a kernel would call a
    function that does not exist on the GPU.
    """
    with assuming(module.facts):
        host, constants = host_manifest(module)
        spec = abi.entry_spec(module, tuple(host["symbols"]))
    code = compile_kernels(module, target, plain=True)
    spec |= code.spec
    spec["constants"] = [
        {"name": f"c{i}", "dtype": a.dtype.name, "shape": list(a.shape)} for i, a in enumerate(constants)
    ]
    spec["host"] = host
    code.spec, code.constants = spec, constants
    return code


def compile_kernels(module: Module, target: GpuTarget, plain: bool = False) -> PtxCode:
    """Compile the kernels of a module, with all of LLVM's optimisation unless they are `plain` (made by templates).

    The spec says `target` and `kernels`; a kernel whose grid or block is given at launch has an empty one. Raises as
    `compile_ptx` does.
    """
    times: dict[str, float] = {}
    start = time.perf_counter()
    with assuming(module.facts):
        unit = Unit(
            Dialect(
                triple=target.triple,
                spaces=SPACES,
                half="half",
                bfloat="bfloat" if target.has("bf16") else "i16",
                narrow_counts=True,
            ),
            module.name,
        )
        shared_places, places = _in_place(module), DebugInfo(unit)
        kernels = []
        for f in module.funcs.values():
            if f.level == "kernel":
                check_features(f, target)
                legal = legalize(expand_atomics(f, target), target)
                aliased = shared_places.get(f.name, frozenset()) | frozenset(f.attrs.get("aliased", ()))
                kernels.append(_KernelEmitter.write(unit, legal, aliased, places, target))
        source = unit.text()
    times["emit"] = time.perf_counter() - start
    optimised = _optimised(source, target, times, plain)
    start = time.perf_counter()
    ptx = str(_machine(target).emit_assembly(optimised))
    times["codegen"] = time.perf_counter() - start
    checks.check_ptx(ptx, target, {k["name"]: k["local"] for k in kernels})
    described = {
        "name": target.name,
        "kind": "nvptx",
        "ptx_version": target.ptx_version,
        "features": list(target.features),
    }
    return PtxCode(ptx, {"target": described, "kernels": kernels}, [], source, target, times, plain)


def _in_place(module: Module) -> dict[str, frozenset[int]]:
    """By kernel, the arguments that some launch gives the same memory: LLVM must not take them for distinct."""
    out: dict[str, set[int]] = {}
    for f in module.funcs.values():
        for op in f.walk():
            if op.name == "launch":
                out.setdefault(op.attrs.callee, set()).update(i for pair in op.attrs.inplace for i in pair)
    return {k: frozenset(v) for k, v in out.items()}


# ---- LLVM -----------------------------------------------------------------------------------------------------------


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


@functools.cache
def _machine(target: GpuTarget) -> Any:
    return (
        _llvm()
        .Target.from_triple(target.triple)
        .create_target_machine(cpu=target.llvm_cpu, features=target.llvm_features, opt=3)
    )


def _optimised(source: str, target: GpuTarget, times: dict[str, float], plain: bool = True) -> Any:
    """The parsed, verified and optimised LLVM module. `plain`: the code comes from templates, for which `PASSES` do."""
    llvm = _llvm()
    start = time.perf_counter()
    try:
        m = llvm.parse_assembly(source)
        m.verify()
    except RuntimeError as reason:
        raise error("FX0503", f"LLVM rejected the generated code: {reason}") from None
    times["parse"] = time.perf_counter() - start
    start = time.perf_counter()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(_machine(target), tuning)
    if plain:
        passes = llvm.create_new_module_pass_manager()
        for name in PASSES:
            getattr(passes, f"add_{name}_pass")()
    else:
        passes = builder.getModulePassManager()
    passes.run(m, builder)
    times["optimise"] = time.perf_counter() - start
    return m


# ---- kernels --------------------------------------------------------------------------------------------------------


class _KernelEmitter(GpuOps):
    """A kernel of a grid of blocks of threads."""

    def __init__(self, unit: Unit, name: str, symbols: Mapping[str, str], places: DebugInfo) -> None:
        super().__init__(unit, symbols)
        self.name = name
        self.places, self.debug_scope = places, ""
        self.shared_bytes = 0
        self.local_bytes = 0

    @classmethod
    def write(
        cls, unit: Unit, f: Func, aliased: frozenset[int], places: DebugInfo, target: GpuTarget
    ) -> dict[str, Any]:
        """Define kernel `f`; returns its entry in the manifest."""
        if "grid" not in f.attrs or "block" not in f.attrs:
            raise error("FX0503", f"the kernel @{f.name} has no grid: it was lowered for another target", loc=f.loc)
        name = unit.unique(f.name.replace(".", "_"))
        e = cls(unit, name, {s: f"%s{i}" for i, s in enumerate(f.symbols)}, places)
        e.ptx_version = tuple(map(int, target.ptx_version.split(".")))
        loc = f.loc or next((op.loc for op in f.walk() if op.loc), None)
        debug = ""
        if loc is not None:
            e.debug_scope = places.function(name, loc)
            e.debug, debug = places.place(e.debug_scope, loc), f" !dbg {e.debug_scope}" if e.debug_scope else ""
        params, layout, offset = [], [], 0
        for i, a in enumerate(f.args):
            e.values[a] = f"%a{i}"
            shown = a.name or f"a{i}"
            if isinstance(a.type, MemType):
                distinct = "" if i in aliased else "noalias "
                params.append(f"ptr addrspace(1) {distinct}noundef align {a.type.dtype.itemsize} %a{i}")
                entry, size = (
                    {
                        "name": shown,
                        "kind": "memory",
                        "dtype": a.type.dtype.name,
                        "shape": [abi.text(d) for d in a.type.shape],
                    },
                    8,
                )
            else:
                assert isinstance(a.type, TensorType)
                params.append(f"{e.register(a.type)} %a{i}")
                entry, size = {"name": shown, "kind": "scalar", "dtype": a.type.dtype.name}, a.type.dtype.itemsize
            offset = -(-offset // size) * size
            layout.append({**entry, "size": size, "offset": offset})
            offset += size
        for i, s in enumerate(f.symbols):
            params.append(f"i64 %s{i}")
            offset = -(-offset // 8) * 8
            layout.append({"name": s, "kind": "size", "dtype": "i64", "size": 8, "offset": offset})
            offset += 8
        e.run(f.block)
        e.do("ret void")
        if e.shared_bytes > target.shared_static:
            raise error("FX0508", f"{f.name} declares {e.shared_bytes} bytes of shared memory; a block of {target.name} has "
                        f"{target.shared_static}", loc=f.loc, help="make it dynamic: with a size known at launch it may be "
                        f"up to {target.shared_per_block} bytes")  # fmt: skip
        block = tuple(int(n) for n in f.attrs["block"])
        threads = f'"nvvm.maxntid"="{",".join(map(str, block))}"' if block else ""
        unit.defines.append(
            f"define ptx_kernel void @{name}({', '.join(params)}) nounwind {threads}{debug} {{\n{e.text_of_body()}\n}}\n"
        )
        return {
            "name": name,
            "kernel": f.name,
            "args": layout,
            "grid": [abi.text(d) for d in f.attrs["grid"]],
            "block": list(block),
            "shared": e.shared_bytes,
            "local": e.local_bytes,
            "schedule": f.attrs.get("schedule", ""),
            "source": str(f.loc) if f.loc else "",
        }

    def enter(self, op: Op) -> None:
        assert op.loc is not None
        if self.debug_scope:
            self.debug = self.places.place(self.debug_scope, op.loc)

    # ---- memory
    def op_alloc(self, op: Op) -> str:
        """`shared`: one for the block; `local`: the thread's own, on its stack."""
        t = op.attrs.type
        if t.space != "shared":
            if isinstance(t.size, int):
                self.local_bytes += max(1, t.size) * t.dtype.itemsize
            return super().op_alloc(op)
        if not isinstance(t.size, int):
            raise error("FX0508", f"{t}: shared memory needs a fixed size", loc=op.loc)
        name = self.unit.unique(f"{self.name}_shared")
        self.unit.globals.append(
            f"@{name} = internal unnamed_addr addrspace(3) global [{max(1, t.size)} x {self.stored(t.dtype)}] undef, align 16"
        )
        self.shared_bytes = -(-self.shared_bytes // 16) * 16 + max(1, t.size) * t.dtype.itemsize
        return f"@{name}"
