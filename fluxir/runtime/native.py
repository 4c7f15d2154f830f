"""The runtime's own machine code, loaded: the thread pool and the way from Python's arguments into a program.

Written as LLVM IR (`pool_code.py`, `call_code.py`), compiled once with llvmlite and kept in the compile cache; shared by all
programs of a process. Its table of functions and objects of Python and numpy is filled in here. Invariant: `call` is used only
where `calls_are_known`, which has looked at live objects.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxir.errors import IOFailure
from fluxir.runtime import call_code, pool_code, writer
from fluxir.runtime.call_code import CALLS
from fluxir.runtime.writer import Module

__all__ = ["CALLS", "Native", "calls_are_known", "compiled", "machine", "method", "module", "native"]


@dataclass(frozen=True)
class Native:
    """Addresses of the compiled functions, of the pool's state and of the table that `call` uses."""

    parallel: int
    worker: int
    call: int
    state: int
    api: int
    names: tuple[str, ...]
    """What stands in that table."""
    claim: Any  # ctypes function: (address of a word) -> whether it was 0 and is 1 now


def machine() -> str:
    """What LLVM calls this kind of machine: `x86_64` or `aarch64`."""
    name = os.uname().machine
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@functools.cache
def native() -> Native:
    """The runtime's machine code, compiled or taken from the cache when first asked for."""
    from fluxir.runtime.elf import load_object

    data, names = _object()
    code = load_object(data)
    parallel, worker, call, state, api = (code.address(n) for n in ("parallel", "worker", "call", "state", "api"))
    claim = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(code.address("claim"))
    return Native(parallel, worker, call, state, api, names, claim)


def module(kind: str) -> tuple[Module, str]:
    """The code for a kind of machine, and its text."""
    m = Module(kind)
    data = pool_code.add_pool(m)
    call_code.add_call(m)
    return m, m.text("fluxir_runtime", data)


def _object() -> tuple[bytes, tuple[str, ...]]:
    """The object code and the names of its table, from the compile cache where they are."""
    from fluxir.runtime.cache import open_cache

    cache = open_cache()
    # Writing the text takes some milliseconds, which a process whose code is in the cache need not spend.
    sources = [Path(str(m.__file__)).read_text(encoding="utf-8") for m in (writer, pool_code, call_code)]
    key = "\0".join(["fluxir runtime native code", machine(), *sources])
    found = cache.get(key) if cache is not None else None
    if found is not None:
        return bytes(found.files["native.o"]), tuple(bytes(found.files["names"]).decode().split())
    m, text = module(machine())
    data = compiled(m, text)
    if cache is not None:
        # On a full or read-only disk every process compiles it for itself, in some 100 ms.
        with contextlib.suppress(IOFailure):
            files = {"native.o": data, "names": " ".join(m.api).encode()}
            cache.put(key, files, {"name": "runtime", "kind": "native"})
    return data, tuple(m.api)


def compiled(m: Module, text: str) -> bytes:
    """Object code of a module's text."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(text)
    parsed.verify()
    target = llvm.Target.from_triple(f"{m.machine}-unknown-linux-gnu").create_target_machine(
        cpu="x86-64" if m.machine == "x86_64" else "generic", opt=2, reloc="pic", codemodel="small"
    )
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(parsed, builder)
    return bytes(target.emit_object(parsed))


# ---- Python's and numpy's side ----------------------------------------------------------------------------------------

_NUMPY = {"PyArray_ScalarAsCtype": 62, "PyArray_NewCopy": 85, "PyArray_NewFromDescr": 94, "PyArray_SetBaseObject": 282}
"""Places in numpy's table of functions, part of its binary interface."""


@functools.cache
def _table() -> int:
    """The address of numpy's table of functions."""
    import numpy as np

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    core: Any = getattr(np, "_core", None) or np.core
    return int(pointer(core._multiarray_umath._ARRAY_API, None))


def _address(name: str) -> int:
    """The address of a function of Python or numpy."""
    if name in _NUMPY:
        return ctypes.c_int64.from_address(_table() + 8 * _NUMPY[name]).value
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


@functools.cache
def _objects() -> dict[str, Any]:
    """The objects that `call` knows, kept alive."""
    import numpy as np

    from fluxir import config

    return {
        "None": None,
        "True": True,
        "list": list,
        "dict": dict,
        "ndarray": np.ndarray,
        "u8": np.dtype(np.uint8),
        "override": config._override,
        "config": vars(config),
        "_process": sys.intern("_process"),
    }


class _Definition(ctypes.Structure):
    """CPython's `PyMethodDef`."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


_FASTCALL, _KEYWORDS = 0x80, 0x2
_definitions: list[_Definition] = []  # never freed: Python keeps their addresses


def method(cls: type, name: str) -> Any:
    """`call` as a method of a class whose objects keep their table where `call` looks."""
    for i, word in enumerate(native().names):
        objects = _objects()
        address = id(objects[word]) if word in objects else _address(word)
        ctypes.c_int64.from_address(native().api + 8 * i).value = address
    _definitions.append(_Definition(name.encode(), native().call, _FASTCALL | _KEYWORDS, None))
    make = ctypes.pythonapi.PyDescr_NewMethod
    make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    return make(cls, ctypes.addressof(_definitions[-1]))


@functools.cache
def calls_are_known() -> bool:
    """Whether this CPython and this numpy keep tuples and arrays as `call` reads them, on a machine that we have code for."""
    import numpy as np

    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    if sys.platform != "linux" or machine() not in pool_code.MACHINES:
        return False
    a = np.arange(15, dtype=np.float32).reshape(3, 5)[1:]
    pair = (None, a)
    word = ctypes.c_int64.from_address
    at, listed = id(a), id(pair)
    known = (
        word(listed + call_code.LENGTH).value == 2
        and word(listed + call_code.ITEMS + 8).value == at
        and word(at + call_code.TYPE).value == id(np.ndarray)
        and word(at + call_code.DATA).value == a.ctypes.data
        and ctypes.c_int.from_address(at + call_code.RANK).value == 2
        and [word(word(at + call_code.SIZES).value + 8 * k).value for k in range(2)] == [2, 5]
        and word(at + call_code.DESCR).value == id(a.dtype)
        and ctypes.c_int.from_address(at + call_code.FLAGS).value == a.flags.num
    )
    return known and _makes_arrays()


def _makes_arrays() -> bool:
    """Whether numpy's table makes arrays where we look."""
    import numpy as np

    pointer = ctypes.c_void_p
    kind = ctypes.PYFUNCTYPE(
        ctypes.py_object, pointer, pointer, ctypes.c_int, pointer, pointer, pointer, ctypes.c_int, pointer
    )
    sizes = (ctypes.c_int64 * 2)(3, 5)
    descr = np.dtype(np.float32)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(descr))  # the call takes this reference
    make = kind(_address("PyArray_NewFromDescr"))
    a = make(id(np.ndarray), id(descr), 2, ctypes.addressof(sizes), None, None, 0, None)
    return type(a) is np.ndarray and a.shape == (3, 5) and a.dtype is descr and bool(a.flags.owndata)
