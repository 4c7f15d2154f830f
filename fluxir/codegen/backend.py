"""LLVM for x86: text in, optimised module and machine code out. The only file of the CPU path that knows llvmlite.

Most of LLVM's time goes into its optimisation pipeline, which does nothing for kernels that are written on vector
registers already (measured: equal speed, half the compile time). So a program comes as two texts: `main` is optimised,
`plain` only translated; they are linked before code generation, which optimises both.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Any

from fluxir.errors import error
from fluxir.target import CpuTarget

__all__ = ["asm_of", "host_name", "llvm_of", "object_of"]

LEVELS = {0: 1, 1: 1, 2: 2, 3: 3}
"""LLVM's speed level for each `opt_level`. Code generation below its default level halves the speed of the code."""


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


def host_name() -> str:
    """LLVM's name of this machine's processor, which code is tuned for."""
    return str(_llvm().get_host_cpu_name())


@functools.cache
def _machine(target: CpuTarget) -> Any:
    """The target machine. It has exactly the features of the target: what the runtime checks before it loads code."""
    llvm = _llvm()
    cpu = "x86-64" if target.native else target.llvm_cpu
    features = ",".join("+" + f for f in target.features)
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=cpu, features=features, opt=2, reloc="pic", codemodel="small"
    )


def object_of(main: str, plain: str, target: CpuTarget, level: int, times: dict[str, float]) -> bytes:
    """Object code; adds the seconds of its steps to `times`. FX0503 where LLVM rejects the text."""
    m = _optimised(main, plain, target, level, times)
    start = time.perf_counter()
    data = bytes(_machine(target).emit_object(m))
    times["codegen"] = time.perf_counter() - start
    return data


def llvm_of(main: str, plain: str, target: CpuTarget, level: int) -> str:
    """The optimised LLVM IR as text."""
    return str(_optimised(main, plain, target, level, {}))


def asm_of(main: str, plain: str, target: CpuTarget, level: int) -> str:
    """The assembly text."""
    return str(_machine(target).emit_assembly(_optimised(main, plain, target, level, {})))


def _optimised(main: str, plain: str, target: CpuTarget, level: int, times: dict[str, float]) -> Any:
    llvm = _llvm()
    start = time.perf_counter()
    m = _parsed(main)
    rest = _parsed(plain) if plain else None
    times["parse"] = time.perf_counter() - start
    start = time.perf_counter()
    tuning = llvm.create_pipeline_tuning_options(speed_level=LEVELS[level])
    tuning.loop_vectorization = level >= 1
    tuning.slp_vectorization = level >= 2
    # Interleaving doubles the code and its compile time, and changes nothing measurable: the processor overlaps
    # iterations itself. Loops with a carry ask for it, because there it breaks the chain.
    tuning.loop_interleaving = False
    builder = llvm.create_pass_builder(_machine(target), tuning)
    builder.getModulePassManager().run(m, builder)
    if rest is not None:
        m.link_in(rest)
    times["optimise"] = time.perf_counter() - start
    return m


def _parsed(text: str) -> Any:
    try:
        m = _llvm().parse_assembly(text)
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
