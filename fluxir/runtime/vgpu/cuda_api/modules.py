"""Entry points: modules (PTX only) and the linker.

A module's text is checked for the device it is loaded on, as the driver's compiler does; what is wrong goes into the log buffers
of the caller, in the words that `ptxas` uses. Machine code (cubin, fatbin) cannot be run here and is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .entry import I32, SIZE, U32, P, entry, put, take, text_at
from .launches import Function, Module
from .results import CudaError, Result
from .state import Context, VirtualCuda

__all__: list[str] = []

D = VirtualCuda
_ERROR_LOG, _ERROR_LOG_BYTES, _INFO_LOG, _INFO_LOG_BYTES = 5, 6, 3, 4  # CUjit_option


# ---- modules
class _Log:
    """The log buffers among the options of a load: (address of the buffer, its bytes, where the size is told) for errors and
    for the rest. What was written becomes the size, as callers expect."""

    def __init__(self, count: int = 0, options: int = 0, values: int = 0) -> None:
        numbers = take(options, f"{count}i") if count else ()
        slots = {n: values + 8 * i for i, n in enumerate(numbers)}
        self.errors, self.notes = (
            (take(slots[b], "Q")[0], take(slots[n], "Q")[0], slots[n]) if b in slots and n in slots else None
            for b, n in ((_ERROR_LOG, _ERROR_LOG_BYTES), (_INFO_LOG, _INFO_LOG_BYTES))
        )
        self.write("")

    def write(self, errors: str, notes: str = "") -> None:
        for place, text in ((self.errors, errors), (self.notes, notes)):
            if place is not None:
                at, room, size = place
                raw = text.encode()[: max(0, room - 1)]
                if at and room:
                    ctypes.memmove(at, raw + b"\0", len(raw) + 1)
                put(size, "Q", len(raw))


@contextmanager
def _logged(log: _Log) -> Iterator[None]:
    """Failures go into the log as well."""
    try:
        yield
    except CudaError as reason:
        log.write(reason.detail)
        raise


def _text(image: int) -> str:
    """The PTX at an address. NO_BINARY_FOR_GPU for machine code."""
    start = ctypes.string_at(image, 4)
    if start == b"\x7fELF" or start == b"\x50\xed\x55\xba":
        raise CudaError(Result.NO_BINARY_FOR_GPU, "the virtual GPU runs PTX, and this is machine code")
    return text_at(image)


def _load(driver: D, context: Context, out: int, image: int, log: _Log) -> None:
    with _logged(log):
        module = Module(context, _text(image))
    log.write("", f"{len(module.loaded.ptx.entries)} kernels for {context.gpu.target.name}")
    put(out, "Q", driver.add(module))


@entry(P, P, U32, P, P)
def cuModuleLoadDataEx(
    driver: D, context: Context, out: int, image: int, count: int, options: int, values: int
) -> None:
    _load(driver, context, out, image, _Log(count, options, values))


@entry(P, P)
def cuModuleLoadData(driver: D, context: Context, out: int, image: int) -> None:
    _load(driver, context, out, image, _Log())


@entry(P, P)
def cuModuleLoad(driver: D, context: Context, out: int, path: int) -> None:
    try:
        with open(text_at(path), "rb") as file:
            raw = file.read()
    except OSError:
        raise CudaError(Result.FILE_NOT_FOUND, text_at(path)) from None
    image = ctypes.create_string_buffer(raw)
    _load(driver, context, out, ctypes.addressof(image), _Log())


@entry(P)
def cuModuleUnload(driver: D, context: Context, handle: int) -> None:
    module = driver.remove(handle, Module)
    module.context.settle()
    driver.forget(lambda x: isinstance(x, Function) and x.module is module)
    module.loaded.unload()


@entry(P, P, P)
def cuModuleGetFunction(driver: D, context: Context, out: int, handle: int, name: int) -> None:
    module, wanted = driver.find(handle, Module), text_at(name)
    if wanted not in module.loaded.ptx.entries:
        raise CudaError(Result.NOT_FOUND, f"there is no kernel {wanted}")
    put(out, "Q", driver.add(Function(module, wanted)))


@entry(P, P, P, P)
def cuModuleGetGlobal_v2(driver: D, context: Context, address: int, nbytes: int, handle: int, name: int) -> None:
    module, wanted = driver.find(handle, Module), text_at(name)
    found = module.loaded.ptx.variables.get(wanted)
    if found is None or found.space not in ("global", "const"):
        raise CudaError(Result.NOT_FOUND, f"there is no variable {wanted}")
    if address:
        put(address, "Q", module.loaded.global_array(wanted).address)
    if nbytes:
        put(nbytes, "Q", found.nbytes)


# ---- linking: of one PTX text
class Link:
    """PTX that a linker was given; `image` keeps the result alive until the linker goes."""

    def __init__(self, context: Context, log: _Log) -> None:
        self.context, self.log = context, log
        self.texts: list[str] = []
        self.image: Any = None


@entry(U32, P, P, P)
def cuLinkCreate_v2(driver: D, context: Context, count: int, options: int, values: int, out: int) -> None:
    put(out, "Q", driver.add(Link(context, _Log(count, options, values))))


_PTX = 1  # CU_JIT_INPUT_PTX


def _add(link: Link, kind: int, text: str) -> None:
    with _logged(link.log):
        if kind != _PTX:
            raise CudaError(Result.NOT_SUPPORTED, "the virtual GPU links PTX only")
        if link.texts:
            raise CudaError(Result.NOT_SUPPORTED, "the virtual GPU links one PTX text, not several")
        link.texts.append(text)


@entry(P, I32, P, SIZE, P, U32, P, P)
def cuLinkAddData_v2(
    driver: D, context: Context, handle: int, kind: int, data: int, nbytes: int, name: int, count: int, o: int, v: int
) -> None:
    raw = ctypes.string_at(data, nbytes).rstrip(b"\0")
    _add(driver.find(handle, Link), kind, raw.decode(errors="replace"))


@entry(P, I32, P, U32, P, P)
def cuLinkAddFile_v2(
    driver: D, context: Context, handle: int, kind: int, path: int, count: int, o: int, v: int
) -> None:
    try:
        with open(text_at(path), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        raise CudaError(Result.FILE_NOT_FOUND, text_at(path)) from None
    _add(driver.find(handle, Link), kind, text)


@entry(P, P, P)
def cuLinkComplete(driver: D, context: Context, handle: int, image: int, nbytes: int) -> None:
    link = driver.find(handle, Link)
    if not link.texts:
        raise CudaError(Result.INVALID_VALUE, "nothing to link")
    with _logged(link.log):
        Module(context, link.texts[0])
    raw = link.texts[0].encode()
    link.image = ctypes.create_string_buffer(raw)
    put(image, "Q", ctypes.addressof(link.image))
    if nbytes:
        put(nbytes, "Q", len(raw) + 1)


@entry(P)
def cuLinkDestroy(driver: D, context: Context, handle: int) -> None:
    driver.remove(handle, Link)
