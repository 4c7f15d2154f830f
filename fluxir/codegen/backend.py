"""LLVM for CPUs: text in, optimised module and machine code out. The only file of the CPU path that knows llvmlite.

Most of LLVM's time goes into its optimisation pipeline, which does nothing for kernels that are written on vector
registers already (measured: equal speed, half the compile time). So code comes as two texts: `main` is optimised,
`plain` only translated; they are linked before code generation, which optimises both.

Processes beside this one translate too (see workers.py): this file loads next to nothing, and a `Machine` is plain data.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fluxir.errors import error

if TYPE_CHECKING:
    from fluxir.target import CpuTarget

__all__ = ["HOST", "Machine", "asm_of", "attributes_of", "llvm_of", "machine_of", "object_of", "translate"]

LEVELS = {0: 1, 1: 1, 2: 2, 3: 3}
"""LLVM's speed level for each `opt_level`. Code generation below its default level halves the speed of the code."""


class Machine(NamedTuple):
    """What code is generated for: LLVM's names. It has exactly the features of the target, which the runtime checks
    before it loads code."""

    triple: str
    cpu: str
    features: str


_BASE = {"x86_64": "x86-64", "aarch64": "generic"}  # the processor without any feature of its own


def machine_of(target: CpuTarget) -> Machine:
    cpu = _BASE[target.machine] if target.native else target.llvm_cpu
    known = [f for f in target.features if not re.fullmatch(r"sve\d+", f)]  # LLVM is told the length by `attributes_of`
    return Machine(target.triple, cpu, ",".join("+" + f for f in known))


def attributes_of(target: CpuTarget) -> str:
    """The attributes of every function."""
    tune = f'nounwind "tune-cpu"="{HOST if target.native else "generic"}"'
    if target.machine == "aarch64" and target.vector_bits > 128:
        n = target.vector_bits // 128
        tune += f" vscale_range({n},{n})"
    return tune


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


HOST = "this-host"
"""Stands in texts for LLVM's name of this machine's processor, which code is tuned for: only who translates needs LLVM."""


@functools.cache
def _target_machine(m: Machine) -> Any:
    return (
        _llvm()
        .Target.from_triple(m.triple)
        .create_target_machine(cpu=m.cpu, features=m.features, opt=2, reloc="pic", codemodel="small")
    )


def translate(main: str, plain: str, machine: Machine, level: int, times: dict[str, float]) -> bytes:
    """Object code of the two texts; adds the CPU seconds of its steps to `times`. FX0503 where LLVM rejects them."""
    m = _optimised(main, plain, machine, level, times)
    start = time.thread_time()
    data = bytes(_target_machine(machine).emit_object(m))
    times["codegen"] = times.get("codegen", 0.0) + time.thread_time() - start
    return data


def object_of(main: str, plain: str, target: CpuTarget, level: int, times: dict[str, float]) -> bytes:
    """`translate` for a target."""
    return translate(main, plain, machine_of(target), level, times)


def llvm_of(parts: Sequence[tuple[str, str]], target: CpuTarget, level: int) -> str:
    """The optimised LLVM IR of several pairs of texts, joined, as text."""
    return str(_joined(parts, target, level))


def asm_of(parts: Sequence[tuple[str, str]], target: CpuTarget, level: int) -> str:
    """The assembly text of several pairs of texts, joined."""
    return str(_target_machine(machine_of(target)).emit_assembly(_joined(parts, target, level)))


def _joined(parts: Sequence[tuple[str, str]], target: CpuTarget, level: int) -> Any:
    first, *rest = [_optimised(main, plain, machine_of(target), level, {}) for main, plain in parts]
    for m in rest:
        first.link_in(m)
    return first


def _optimised(main: str, plain: str, machine: Machine, level: int, times: dict[str, float]) -> Any:
    """The module of both texts, one of which may be empty."""
    start = time.thread_time()
    m = _parsed(main) if main else None
    rest = _parsed(plain) if plain else None
    parsed = time.thread_time()
    if m is not None:
        llvm = _llvm()
        tuning = llvm.create_pipeline_tuning_options(speed_level=LEVELS[level])
        tuning.loop_vectorization = level >= 1
        tuning.slp_vectorization = level >= 2
        # Interleaving doubles the code and its compile time, and changes nothing measurable: the processor overlaps
        # iterations itself. Loops with a carry ask for it, because there it breaks the chain.
        tuning.loop_interleaving = False
        builder = llvm.create_pass_builder(_target_machine(machine), tuning)
        builder.getModulePassManager().run(m, builder)
        if rest is not None:
            m.link_in(rest)
    times["parse"] = times.get("parse", 0.0) + parsed - start
    times["optimise"] = times.get("optimise", 0.0) + time.thread_time() - parsed
    return rest if m is None else m


def _parsed(text: str) -> Any:
    try:
        llvm = _llvm()
        m = llvm.parse_assembly(text.replace(HOST, llvm.get_host_cpu_name()))
        m.verify()
    except RuntimeError as reason:
        raise error(
            "FX0503", f"LLVM rejected the generated code: {reason}", notes=_excerpt(text, str(reason))
        ) from None
    return m


def _excerpt(text: str, reason: str) -> list[str]:
    """The line LLVM complains about."""
    found = re.search(r":(\d+):\d+: error", reason)
    lines = text.splitlines()
    return [lines[int(found[1]) - 1].strip()] if found and 0 < int(found[1]) <= len(lines) else []
