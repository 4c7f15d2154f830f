"""Constant arrays of several programs as one safetensors file: equal ones once, named by a digest of their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.runtime.safetensors import parse_safetensors_header, safetensors_bytes

__all__ = ["Weights", "digest_of"]

Array = NDArray[Any]


def digest_of(a: Array) -> str:
    """The digest of dtype, shape and bytes of an array: that of `fluxir.ir.core.array_digest`, which IR text names it by."""
    h = hashlib.sha256(f"{a.dtype.name}{a.shape}".encode())
    h.update(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)
    return h.hexdigest()[:24]


class Weights:
    """Arrays by name, in no order: the file depends on what is there alone."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def add(self, a: Array, name: str | None = None) -> str:
        """Keep an array; returns its name, which is its digest (`name`, where that is known)."""
        name = name or digest_of(a)
        self.arrays.setdefault(name, a)
        return name

    def add_all(self, arrays: Sequence[Array]) -> list[str]:
        return [self.add(a) for a in arrays]

    def file(self) -> bytes:
        """The safetensors file; nothing where there are no arrays."""
        return safetensors_bytes(self.arrays) if self.arrays else b""

    @staticmethod
    def offsets(file: bytes) -> dict[str, int]:
        """Where the data of each array begins in the file."""
        if not file:
            return {}
        header = parse_safetensors_header(file)
        return {name: header.data_start + entry.begin for name, entry in header.tensors.items()}
