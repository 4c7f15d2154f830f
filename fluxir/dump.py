"""What a compilation leaves for readers: the cost estimate, the memory plan as text, the files of a dump folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxir.ir.core import Block, Module, Op
from fluxir.ir.dims import Dim, assuming, evaluate, substitute, symbols_of
from fluxir.ir.printer import print_func, print_module

if TYPE_CHECKING:
    from fluxir.driver import Build


@dataclass(frozen=True)
class Cost:
    """Estimates for given sizes: floating-point operations, bytes of kernel arguments read and written, the planned
    peak of temporary memory in bytes, and kernel launches.

    Operations count as often as they run: a scan's body for each of its rounds, a function for each of its calls. Where
    that is not known before the run they count once: `while` is per iteration, a recursive function per frame, and all
    branches of an `if` are added. Bytes and launches are those of the straight path: a loop's body counts once.
    """

    flops: int | str
    bytes: int | str
    peak_memory: int | str
    kernels: int


def cost_of(b: Build, sizes: Mapping[str, int] | None = None) -> Cost:
    """The cost of a built program (see `Cost`)."""
    moved: Dim = 0
    kernels = 0
    fused, loops = b.stages["fused"], b.stages["loops"]
    with assuming(fused.facts):
        flops = _flops(fused, fused.entry.block, (fused.entry.name,))
        peak: Dim = loops.entry.attrs.get("arena", 0)
        for name in _with_arenas_of_their_own(loops):
            peak = peak + loops.funcs[name].attrs.get("arena", 0)
        for f in loops.funcs.values():
            if f.level == "host":
                for op in f.walk():
                    if op.name == "launch":
                        kernels += 1
                        for v in op.operands:
                            moved = moved + getattr(v.type, "nbytes", 0)

    def value(d: Dim) -> int | str:
        known = dict(sizes or {})
        return evaluate(d, known) if symbols_of(d) <= set(known) else str(d)

    return Cost(value(flops), value(moved), value(peak), kernels)


def operations(module: Module, op: Op) -> Dim:
    """The operations of one op of a module's tensor level, counted as in `Cost`."""
    return _flops(module, Block((), (op,), ()), ())


def _flops(module: Module, block: Block, inside: tuple[str, ...]) -> Dim:
    """Floating-point operations of a block; `inside` are the functions that it is called from, itself included."""
    total: Dim = 0
    for op in block.ops:
        if op.name == "call":
            callee = op.attrs["callee"]
            if callee not in inside:
                body = _flops(module, module.funcs[callee].block, (*inside, callee))
                total = total + substitute(body, dict(op.attrs["dims"]))
            continue
        if op.defn.cost is not None:
            total = total + op.defn.cost(op)
        elif op.defn.category in ("elementwise", "compare") and op.results:
            total = total + op.results[0].type.size  # type: ignore[union-attr]
        rounds = op.defn.rounds(op) if op.defn.rounds is not None else 1
        for inner in op.blocks:
            total = total + rounds * _flops(module, inner, inside)
    return total


def _with_arenas_of_their_own(loops: Module) -> list[str]:
    """Functions whose arena is not part of their caller's: recursive ones (one frame is counted), and those with sizes that
    are known only at run time (which count for the symbols they have)."""
    calls = [op for f in loops.funcs.values() if f.level == "host" for op in f.walk() if op.name == "call"]
    return sorted({c.attrs["callee"] for c in calls if len(c.operands) < len(loops.funcs[c.attrs["callee"]].args)})


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


def pass_reports(b: Build) -> list[Any]:
    """What each tensor-level pass did, as `fluxir.report.PassReport`."""
    found = []
    before = b.module
    for record in b.records:
        if record.name.startswith("plan"):
            continue
        found.append(
            {
                "name": record.name, "ms": record.ms, "ops_before": record.ops_before, "ops_after": record.ops_after,
                "changed": record.changed, "before": print_module(before, False),
                "after": print_module(record.after, False), "rules": record.rules,
            }
        )  # fmt: skip
        before = record.after
    return found


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


__all__ = ["Cost", "cost_of", "operations", "pass_reports", "plan_text", "write_dumps"]
