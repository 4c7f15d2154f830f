"""LLVM IR text to machine code in this process, by way of the compile cache.

Kernels are compiled without optimisation: a vector instruction of the text is a few of the machine already, and LLVM's passes
cost seconds for them. What is compiled apart (accesses, the scheduler) is written with variables in memory, and is optimised.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from fluxir.errors import IOFailure

from .accesses import Access, access_functions
from .schedule import scheduler
from .text import module

__all__ = ["available", "compile_text", "helper"]

_NEEDED = ("avx2", "fma", "f16c")


@functools.cache
def _host() -> tuple[str, str]:
    """(name, features) of the CPU."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@functools.cache
def available() -> str:
    """Why native code does not run here; empty where it does."""
    try:
        _, features = _host()
    except ImportError:
        return "llvmlite is not installed"
    missing = [n for n in _NEEDED if f"+{n}" not in features.split(",")]
    return f"the CPU lacks {', '.join(missing)}" if missing else ""


@functools.cache
def _machine(level: int) -> Any:
    import llvmlite.binding as llvm

    name, features = _host()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    return target.create_target_machine(cpu=name, features=features, opt=level, reloc="pic", codemodel="small")


def compile_text(text: str, optimise: int) -> dict[str, int]:
    """The addresses of the functions of a module."""
    from fluxir.runtime.cache import open_cache
    from fluxir.runtime.elf import load_object

    cache = open_cache()
    key = "\0".join(("fluxir vgpu native", *_host(), str(optimise), text))
    found = cache.get(key) if cache is not None else None
    if found is not None:
        return load_object(bytes(found.files["native.o"])).symbols
    data = _object(text, optimise)
    if cache is not None:
        with contextlib.suppress(IOFailure):  # a full or read-only disk
            cache.put(key, {"native.o": data}, {"name": "vgpu", "kind": "native"})
    return load_object(data).symbols


def _object(text: str, optimise: int) -> bytes:
    import llvmlite.binding as llvm

    m = llvm.parse_assembly(text)
    m.verify()
    machine = _machine(optimise)
    if optimise:
        builder = llvm.create_pass_builder(machine, _options(optimise))
        builder.getModulePassManager().run(m, builder)
    return bytes(machine.emit_object(m))


def _options(level: int) -> Any:
    """What is vectorised is written as vectors, and loops over lanes gain nothing from being unrolled."""
    import llvmlite.binding as llvm

    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = False
    return options


@functools.cache
def helper(which: Access | str) -> int:
    """The address of an access's function, of a helper of `lanes` or `tensor`, or of the scheduler (`blocks`)."""
    if isinstance(which, Access):
        return compile_text(module(*access_functions(which)), 2)[which.symbol]
    if which == "blocks":
        return compile_text(module(*scheduler()), 2)[which]
    from .lanes import HELPERS
    from .tensor import tensor_helper

    make = HELPERS.get(which)
    return compile_text(module(make() if make is not None else tensor_helper(which)), 2)[which]
