"""DLPack: the C structures that array libraries pass each other in capsules, made and read with ctypes.

Source: DLPack 1.1, `dlpack.h`, and the Python array API standard, "Data interchange mechanisms". A capsule that nobody took
frees what it holds when it goes; one that was taken leaves that to who took it. We never take a foreign capsule: holding it
keeps the memory alive just as well.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CUDA", "Tensor", "element", "export", "read"]

CUDA, CUDA_MANAGED = 2, 13  # kDLCUDA, kDLCUDAManaged
READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_NEW, _OLD = b"dltensor_versioned", b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device", _Device), ("ndim", ctypes.c_int32), ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
    ]  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", _Deleter),
        ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    ]  # fmt: skip


_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4


def element(d: np.dtype[Any]) -> tuple[int, int]:
    """(code, bits) of an element type; numpy's `bfloat16` of ml_dtypes has a code of its own."""
    if d.name == "bfloat16":
        return _BFLOAT, 16
    return _CODES[d.kind], 8 * d.itemsize


def _dtype(t: _Type) -> np.dtype[Any] | None:
    """The numpy dtype; None where there is none."""
    if t.lanes != 1:
        return None
    if (t.code, t.bits) == (_BFLOAT, 16):
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return small
    letter = {code: kind for kind, code in _CODES.items()}.get(t.code)
    if letter is None or t.bits not in (8, 16, 32, 64):
        return None
    return np.dtype(bool) if letter == "b" else np.dtype(f"{letter}{t.bits // 8}")


_api = ctypes.pythonapi
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_at = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _api)
)

_alive: dict[int, Any] = {}  # what exported structures point to, by their address


def _forget(address: int) -> None:
    _alive.pop(address, None)


def _forget_untaken(capsule: int) -> None:
    """A capsule goes: free what it holds unless somebody took it, which renames it."""
    for name in (_NEW, _OLD):
        if _is_valid(capsule, name):
            _alive.pop(_pointer_at(capsule, name), None)


_delete, _destroy = _Deleter(_forget), _Destructor(_forget_untaken)


def export(
    address: int, d: np.dtype[Any], shape: Sequence[int], number: int, keep: Any, versioned: bool, copied: bool = False
) -> Any:
    """A capsule for contiguous memory on CUDA device `number`; `keep` lives until the last taker is done."""
    made: Any = _Versioned() if versioned else _Managed()
    sizes = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    steps = (ctypes.c_int64 * max(1, len(shape)))(*[math.prod(shape[i + 1 :]) for i in range(len(shape))])
    code, bits = element(d)
    made.tensor = _Tensor(address, _Device(CUDA, number), len(shape), _Type(code, bits, 1), sizes, steps, 0)
    made.deleter = _delete
    if versioned:
        made.major, made.minor, made.flags = 1, 1, 2 if copied else 0
    at = ctypes.addressof(made)
    _alive[at] = (made, sizes, steps, keep)
    return _new_capsule(at, _NEW if versioned else _OLD, _destroy)


@dataclass(frozen=True)
class Tensor:
    """What a capsule says. `dtype` is None where numpy has no such type; `device` is DLPack's (kind, number)."""

    address: int
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    contiguous: bool
    device: tuple[int, int]
    read_only: bool
    capsule: Any


def read(capsule: Any) -> Tensor:
    """Look into a capsule. ValueError where it is none, or of a newer major version."""
    at = id(capsule)
    read_only = False
    if _is_valid(at, _NEW):
        new = _Versioned.from_address(_pointer_at(at, _NEW))
        if new.major != 1:
            raise ValueError(f"DLPack version {new.major}.{new.minor}")
        t, read_only = new.tensor, bool(new.flags & READ_ONLY)
    elif _is_valid(at, _OLD):
        t = _Managed.from_address(_pointer_at(at, _OLD)).tensor
    else:
        raise ValueError("not a DLPack capsule, or one that was taken already")
    shape = tuple(t.shape[i] for i in range(t.ndim))
    device = (t.device.kind, t.device.number)
    return Tensor((t.data or 0) + t.offset, _dtype(t.type), shape, _contiguous(t, shape), device, read_only, capsule)


def _contiguous(t: _Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the elements lie in C order without gaps."""
    if not t.strides or 0 in shape:
        return True
    step = 1
    for i in reversed(range(len(shape))):
        if shape[i] != 1 and t.strides[i] != step:
            return False
        step *= shape[i]
    return True
