"""Entry points of the CUDA driver: each is one Python function under its C name, declared with `@entry`.

    @entry(P, U32)
    def cuEventCreate(driver, context, out, flags): ...

`ENTRIES` has them by name. A declared function gets plain integers (pointers and handles too), writes its results through
`put` and returns nothing, a `Result`, or raises `CudaError`. What it `needs` is there when it runs: an initialised driver,
and for most a current context that has not failed. `UNSUPPORTED` are the names that programs may link with and that the
virtual GPU has no meaning for: textures, surfaces, arrays, sharing between processes. They say so and do nothing.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .results import CudaError, Result

__all__ = [
    "ADDRESS", "CHAR", "ENTRIES", "F32", "I32", "P", "SIZE", "U8", "U16", "U32", "U64", "UNSUPPORTED", "Entry", "entry",
    "host_view", "put", "take", "text_at",
]  # fmt: skip

P = SIZE = ctypes.c_size_t  # a pointer as a number, so that NULL is 0
ADDRESS = U64 = ctypes.c_uint64
I32, U32, F32 = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float
U16, U8, CHAR = ctypes.c_uint16, ctypes.c_uint8, ctypes.c_char_p

Needs = Literal["nothing", "driver", "context"]


@dataclass(frozen=True)
class Entry:
    name: str
    types: tuple[Any, ...]
    function: Callable[..., Any]
    needs: Needs


ENTRIES: dict[str, Entry] = {}


def entry(*types: Any, needs: Needs = "context", also: tuple[str, ...] = (), named: str = "") -> Callable[[Any], Any]:
    """Declare a function as the entry point of its name (or `named`), and of other names `also` of the same signature."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in (named or function.__name__, *also):
            assert name not in ENTRIES, name
            ENTRIES[name] = Entry(name, types, function, needs)
        return function

    return declare


def put(pointer: int, letter: str, *values: Any) -> None:
    """Write numbers where the caller wants a result; `letter` as in `struct`. INVALID_VALUE for NULL."""
    if not pointer:
        raise CudaError(Result.INVALID_VALUE, "a result pointer is NULL")
    raw = struct.pack(f"<{len(values)}{letter}", *values)
    ctypes.memmove(pointer, raw, len(raw))


def take(pointer: int, letters: str) -> tuple[Any, ...]:
    """Read numbers from the caller's memory; `letters` as in `struct`, with C's alignment."""
    if not pointer:
        raise CudaError(Result.INVALID_VALUE, "a pointer is NULL")
    return struct.unpack(letters, ctypes.string_at(pointer, struct.calcsize(letters)))


def host_view(pointer: int, nbytes: int) -> NDArray[np.uint8]:
    """The bytes at a host address, which the caller vouches for."""
    if not pointer:
        raise CudaError(Result.INVALID_VALUE, "a host pointer is NULL")
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


def text_at(pointer: int) -> str:
    """A C string."""
    if not pointer:
        raise CudaError(Result.INVALID_VALUE, "a text is NULL")
    return ctypes.string_at(pointer).decode(errors="replace")


UNSUPPORTED = tuple(
    """
    cuArray3DCreate_v2 cuArray3DGetDescriptor_v2 cuArrayCreate_v2 cuArrayDestroy cuArrayGetDescriptor_v2
    cuIpcCloseMemHandle cuIpcGetEventHandle cuIpcGetMemHandle cuIpcOpenEventHandle cuIpcOpenMemHandle_v2
    cuMemcpyAtoA_v2 cuMemcpyAtoD_v2 cuMemcpyAtoH_v2 cuMemcpyDtoA_v2 cuMemcpyHtoA_v2
    cuModuleGetSurfRef cuModuleGetTexRef cuParamSetTexRef cuSurfRefGetArray cuSurfRefSetArray
    cuTexRefCreate cuTexRefDestroy cuTexRefGetAddressMode cuTexRefGetAddress_v2 cuTexRefGetArray cuTexRefGetFilterMode
    cuTexRefGetFlags cuTexRefGetFormat cuTexRefSetAddress2D_v3 cuTexRefSetAddressMode cuTexRefSetAddress_v2
    cuTexRefSetArray cuTexRefSetFilterMode cuTexRefSetFlags cuTexRefSetFormat
    """.split()
)
