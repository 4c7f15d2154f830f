"""The runtime's own machine code: the thread pool's loop and the fast way from Python arrays into a program.

Written as LLVM IR text, compiled once with llvmlite and kept in the compile cache; shared by all programs of a process.

`invoke(plan, inputs, outputs, arena, rt)` takes two Python lists of numpy arrays and reads their fields itself
(numpy's `PyArrayObject_fields` and CPython's `PyListObject`, both fixed by their binary interfaces, and checked by
`layout_is_known` before first use): where every input has exactly the type, dtype, shape and layout that the plan
expects, it calls the entry; else it returns NOT_READY and touches nothing.

`call` does the same as a function of Python: `bound(state)` gives a builtin that takes the arrays as its arguments, makes
the results through numpy's C interface and returns them in a list; None where the arguments do not fit; the error
number where the program failed. It holds the interpreter's lock but for the program itself. `state` is an int64 array
that it keeps alive: plan, context, api table (filled in by `bound`), arena, arena bytes, and a word that says whether
the arena is in use; a caller who finds it in use gets None and takes the way of `invoke` with an arena of its own.

`parallel` and `worker` are the pool. Invariants: chunks are claimed one by one with an atomic counter, by the caller too,
so a job ends even if no worker ever wakes; a job is reused only after `open` is 0 and no worker is `active`; `busy`
admits one job at a time, and whoever finds it taken (a nested or concurrent caller) runs alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from dataclasses import dataclass
from typing import Any

from fluxir.errors import IOFailure
from fluxir.runtime.native_source import NOT_READY, SOURCE

__all__ = ["NOT_READY", "Native", "bound", "calls_are_known", "layout_is_known", "native"]


@dataclass(frozen=True)
class Native:
    """Addresses of the compiled functions."""

    parallel: int
    worker: int
    invoke: Any  # ctypes function: (plan, list, list, arena, rt) -> int
    call: int


@functools.cache
def native() -> Native:
    """The runtime's machine code, compiled or taken from the cache when first asked for."""
    from fluxir.runtime.elf import load_object

    code = load_object(_object())
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p
    )
    return Native(code.address("parallel"), code.address("worker"), kind(code.address("invoke")), code.address("call"))


class _Method(ctypes.Structure):
    """CPython's `PyMethodDef`."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


_FASTCALL = 0x80
_NEW_FROM_DESCR = 94  # its place in numpy's table of functions, part of numpy's binary interface


@functools.cache
def _interface() -> tuple[Any, Any]:
    """The table of Python and numpy functions that `call` uses, and the method definition; kept forever."""
    import numpy as np

    python = ctypes.pythonapi
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    core = getattr(np, "_core", None) or np.core
    table = python.PyCapsule_GetPointer(core._multiarray_umath._ARRAY_API, None)
    words = ctypes.c_int64.from_address

    def function(name: str) -> int:
        return ctypes.cast(getattr(python, name), ctypes.c_void_p).value or 0

    names = ("Py_IncRef", "Py_DecRef", "PyEval_SaveThread", "PyEval_RestoreThread", "PyList_New", "PyList_SetItem")
    api = (ctypes.c_int64 * 10)(
        words(table + 8 * _NEW_FROM_DESCR).value, id(np.ndarray), *map(function, names), id(None), function("PyLong_FromLong")
    )  # fmt: skip
    return api, _Method(b"call", native().call, _FASTCALL, None)


def bound(state: Any) -> Any:
    """`call` as a Python function for `state`, an int64 array of six words."""
    api, method = _interface()
    state[2] = ctypes.addressof(api)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    return make(ctypes.addressof(method), state, None)


def _object() -> bytes:
    """The object code, from the compile cache where it is."""
    from fluxir.runtime.cache import open_cache

    cache = open_cache()
    key = "fluxir runtime native code\0" + SOURCE
    found = cache.get(key) if cache is not None else None
    if found is not None:
        return found.files["native.o"]
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    m = llvm.parse_assembly(SOURCE)
    m.verify()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        cpu="x86-64", opt=2, reloc="pic", codemodel="small"
    )
    data = bytes(machine.emit_object(m))
    if cache is not None:
        # On a full or read-only disk every process compiles it for itself, in 40 ms.
        with contextlib.suppress(IOFailure):
            cache.put(key, {"native.o": data}, {"name": "runtime", "kind": "native"})
    return data


@functools.cache
def layout_is_known() -> bool:
    """Whether this CPython and this numpy keep lists and arrays as `invoke` reads them (checked on live objects)."""
    import sys

    import numpy as np

    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    a = np.arange(15, dtype=np.float32).reshape(3, 5)[1:]
    items: list[Any] = [None, a]
    word = ctypes.c_int64.from_address
    base = id(a)
    listed = id(items)
    return bool(
        word(listed + 16).value == 2
        and word(word(listed + 24).value + 8).value == base
        and word(base + 8).value == id(np.ndarray)
        and word(base + 16).value == a.ctypes.data
        and ctypes.c_int.from_address(base + 24).value == 2
        and [word(word(base + 32).value + 8 * k).value for k in range(2)] == [2, 5]
        and word(base + 56).value == id(a.dtype)
        and ctypes.c_int.from_address(base + 64).value == a.flags.num
    )


@functools.cache
def calls_are_known() -> bool:
    """Whether `call` may be used: the layouts are as expected, and numpy's table makes arrays where we look."""
    import numpy as np

    if not layout_is_known():
        return False
    api, _ = _interface()
    pointer = ctypes.c_void_p
    kind = ctypes.PYFUNCTYPE(
        ctypes.py_object, pointer, pointer, ctypes.c_int, pointer, pointer, pointer, ctypes.c_int, pointer
    )
    sizes = (ctypes.c_int64 * 2)(3, 5)
    descr = np.dtype(np.float32)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(descr))  # the call takes this reference
    a = kind(api[0])(id(np.ndarray), id(descr), 2, ctypes.addressof(sizes), None, None, 0, None)
    return type(a) is np.ndarray and a.shape == (3, 5) and a.dtype is descr and bool(a.flags.owndata)
