"""PTX types as numpy types. A register holds bits; an instruction says what they mean.

Registers are kept as unsigned integers of their width (predicates as bool), one element a thread. bf16 has no numpy type: its
bits are uint16, widened to float32 to compute. Packed types (`f16x2`) are the uint32 that holds them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ptx import type_bytes

__all__ = [
    "Array",
    "bf16_to_f32",
    "dtype",
    "f32_to_bf16",
    "is_float",
    "is_signed",
    "lane_bits",
    "register_dtype",
    "split",
    "unsigned",
]

Array = NDArray[Any]

_UNSIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
_SIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
    8: np.dtype(np.int64),
}
_FLOAT: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}


def unsigned(nbytes: int) -> np.dtype[Any]:
    return _UNSIGNED[nbytes]


@functools.cache
def dtype(kind: str) -> np.dtype[Any]:
    """The numpy type in which a PTX type computes: `s32` is int32, `f16` float16; bit and packed types are unsigned."""
    if kind == "pred":
        return np.dtype(np.bool_)
    if kind in _FLOAT:
        return _FLOAT[kind]
    nbytes = type_bytes(kind)
    if kind[0] == "s" and "x" not in kind:
        return _SIGNED[nbytes]
    return _UNSIGNED[nbytes]


@functools.cache
def register_dtype(kind: str) -> np.dtype[Any]:
    """How a register of a type is kept."""
    return np.dtype(np.bool_) if kind == "pred" else _UNSIGNED[type_bytes(kind)]


def is_float(kind: str) -> bool:
    return kind[0] == "f" or kind[:2] in ("bf", "tf")


def is_signed(kind: str) -> bool:
    return kind[0] == "s"


def bf16_to_f32(bits: Array) -> Array:
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x: Array) -> Array:
    """The bits of the nearest bf16, ties to even; every NaN becomes the canonical one, 0x7fff, as PTX says."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def split(kind: str) -> tuple[str, int]:
    """`f16x2` as (`f16`, 2); a type that is not packed as itself and 1."""
    if "x" in kind and kind[-2] == "x":
        return kind[:-2], int(kind[-1])
    return kind, 1


def lane_bits(bits: Array) -> Array:
    """bool[threads], warp by warp, as uint32[warps], lane 0 lowest."""
    packed: Array = np.packbits(bits.reshape(-1, 32), axis=1, bitorder="little").view("<u4").reshape(-1)
    return packed
