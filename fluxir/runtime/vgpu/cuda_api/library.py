"""The shared library in front of the virtual driver: `libcuda.so.1`, made by gcc, loaded before anything else asks for it.

Every entry point is a jump through a slot of a table. The slots are filled with callbacks into `VirtualDriver.call`; at the end
of the process they are emptied, so that C++ destructors that run after Python find a driver that agrees to everything.
Invariants: the library is built from the names alone and kept by their digest; at most one driver is behind it at a time;
a real driver that is loaded already is never replaced (FX0712).
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fluxir.errors import error

from . import devices, launches, modules, streams, transfers
from .entry import ENTRIES, UNSUPPORTED
from .state import VirtualDriver

__all__ = ["Library", "entry_points", "source"]

_PARTS = (devices, streams, transfers, launches, modules)  # importing them declares the entry points
_TABLE = "fluxir_slots"


def entry_points() -> list[str]:
    """All names that the library defines, sorted."""
    return sorted({*ENTRIES, *UNSUPPORTED})


def source(names: Iterable[str]) -> str:
    """The C source: per name one function without a prologue that jumps, with all its arguments in place, to its slot."""
    lines = ["/* Made by fluxir: entry points of the CUDA driver as jumps through a table. */"]
    names = list(names)
    lines += [f"static int empty(void) {{ return 0; }}\nvoid *{_TABLE}[{len(names)}] = {{"]
    lines += ["    empty," for _ in names] + ["};"]
    for i, name in enumerate(names):
        lines.append(
            f'__asm__(".text\\n.globl {name}\\n.type {name},@function\\n{name}:\\n'
            f'    movq {_TABLE}@GOTPCREL(%rip), %rax\\n    jmp *{8 * i}(%rax)\\n.size {name},.-{name}\\n");'
        )
    return "\n".join(lines) + "\n"


def build(folder: Path) -> Path:
    """The library in `folder`, compiled where it is not there. FX0712 without gcc."""
    text = source(entry_points())
    home = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    made = home / "libcuda.so.1"
    if made.exists():
        return made
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise error("FX0712", "there is no C compiler to build the library with", help="install gcc")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        c, so = Path(scratch, "cuda.c"), Path(scratch, "libcuda.so.1")
        c.write_text(text)
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", str(so), str(c)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise error("FX0712", f"the library could not be built: {done.stderr.strip()[:2000]}")
        os.replace(so, made)
    return made


class Library:
    """The loaded library. `connect` puts a driver behind it; another one may follow it."""

    def __init__(self, folder: Path) -> None:
        path = build(folder)
        already = _loaded_driver()
        if already is not None and Path(already).resolve() != path.resolve():
            raise error("FX0712", f"this process has loaded another CUDA driver: {already}")
        self.path = path
        self.dll = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self.names = entry_points()
        self.slots = (ctypes.c_void_p * len(self.names)).in_dll(self.dll, _TABLE)
        self._empty = int(self.slots[0] or 0)
        self.driver: VirtualDriver | None = None
        self._callbacks = [self._callback(name) for name in self.names]
        for i, c in enumerate(self._callbacks):
            self.slots[i] = ctypes.cast(c, ctypes.c_void_p).value
        atexit.register(self.close)

    def _callback(self, name: str) -> Any:
        found = ENTRIES.get(name)
        types = found.types if found is not None else ()

        def call(*args: int) -> int:
            driver = self.driver
            return driver.call(name, *args) if driver is not None else 100  # CUDA_ERROR_NO_DEVICE

        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(call)

    def connect(self, driver: VirtualDriver) -> None:
        self.driver = driver

    def close(self) -> None:
        """Every call succeeds and does nothing from here on."""
        for i in range(len(self.names)):
            self.slots[i] = self._empty


def _loaded_driver() -> str | None:
    """The path of a libcuda.so that the process has loaded."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                path = line.split(None, 5)[-1].strip()
                if os.path.basename(path).startswith("libcuda.so"):
                    return path
    except OSError:
        return None
    return None
