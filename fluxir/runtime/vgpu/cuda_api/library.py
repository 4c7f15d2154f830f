"""The shared library in front of the virtual driver: `libcuda.so.1`, made by gcc, loaded before anything else asks for it.

Every entry point is a call through a slot of a table. The slots are filled with callbacks into `VirtualCuda.call`; at the
end of the process the library is put to rest, so that C++ destructors that run after Python find a driver that agrees.
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
from fluxir.runtime.cache import default_dir

from ..device import Device
from . import devices, launches, modules, streams, transfers
from .entry import ENTRIES, UNSUPPORTED
from .state import VirtualCuda

__all__ = ["Library", "entry_points", "install", "source"]

_PARTS = (devices, streams, transfers, launches, modules)  # importing them declares the entry points
_TABLE = "fluxir_slots"


def entry_points() -> list[str]:
    """All names that the library defines, sorted."""
    return sorted({*ENTRIES, *UNSUPPORTED})


_C_NAMES: dict[Any, str] = {
    ctypes.c_size_t: "size_t", ctypes.c_uint64: "uint64_t", ctypes.c_int32: "int32_t", ctypes.c_uint32: "uint32_t",
    ctypes.c_uint16: "uint16_t", ctypes.c_uint8: "uint8_t", ctypes.c_float: "float",
}  # fmt: skip

_PREAMBLE = """\
/* Made by fluxir: entry points of the CUDA driver, each a call through a table of callbacks into Python. */
#include <stddef.h>
#include <stdint.h>
extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int);
extern void PyErr_Fetch(void **, void **, void **);
extern void PyErr_Restore(void *, void *, void *);
int fluxir_live = 1;
"""


def source(names: Iterable[str]) -> str:
    """The C source. A driver may be called while a Python exception is on its way (by a destructor): it is put aside."""
    names = list(names)
    lines = [_PREAMBLE, f"void *{_TABLE}[{len(names)}];"]
    for i, name in enumerate(names):
        types = [_C_NAMES[t] for t in ENTRIES[name].types] if name in ENTRIES else []
        parameters = ", ".join(f"{t} a{k}" for k, t in enumerate(types)) or "void"
        given = ", ".join(f"a{k}" for k in range(len(types)))
        lines.append(
            f"int {name}({parameters}) {{\n"
            f"    if (!fluxir_live) return 0;\n"
            f"    void *type, *value, *trace;\n"
            f"    int gil = PyGILState_Ensure();\n"
            f"    PyErr_Fetch(&type, &value, &trace);\n"
            f"    int result = ((int (*)({', '.join(types) or 'void'})){_TABLE}[{i}])({given});\n"
            f"    PyErr_Restore(type, value, trace);\n"
            f"    PyGILState_Release(gil);\n"
            f"    return result;\n"
            f"}}"
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
        self.driver: VirtualCuda | None = None
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

    def connect(self, driver: VirtualCuda) -> None:
        self.driver = driver

    def close(self) -> None:
        """Every call succeeds and does nothing from here on."""
        ctypes.c_int.in_dll(self.dll, "fluxir_live").value = 0


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


def install(*targets: str, memory: int = 1 << 33, eager: bool = False) -> VirtualCuda:
    """Virtual GPUs as the CUDA devices of this process: call it before PyCUDA (or anything that loads the driver) is imported.

    `targets`: an architecture for each device, one `sm_80` where none is named; `memory`: bytes of each; `eager`: run work at
    once, not when something waits for it. FX0712 where the library cannot be built or another driver is loaded.
    """
    global _installed
    if _installed is None:
        _installed = Library(Path(default_dir()) / "libcuda")
    driver = VirtualCuda([Device(t, capacity=max(1 << 30, 2 * memory)) for t in targets or ("sm_80",)], memory, eager)
    _installed.connect(driver)
    return driver


_installed: Library | None = None
