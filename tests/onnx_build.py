"""ONNX files for tests, without the package onnx: messages encoded field by field (see `fluxir/frontend/onnx/schema.py`)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11,
}  # fmt: skip


def varint(n: int) -> bytes:
    n &= (1 << 64) - 1
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(array: Any, name: str = "") -> bytes:
    a = np.asarray(array)
    return (
        b"".join(number(1, d) for d in a.shape)
        + number(2, TYPES[a.dtype.name])
        + chunk(8, name)
        + chunk(9, a.tobytes())
    )


def external(name: str, dims: Sequence[int], **where: str) -> bytes:
    pairs = b"".join(chunk(13, chunk(1, k) + chunk(2, v)) for k, v in where.items())
    return b"".join(number(1, d) for d in dims) + number(2, 1) + chunk(8, name) + pairs + number(14, 1)


def attribute(name: str, value: Any) -> bytes:
    head = chunk(1, name)
    if isinstance(value, bytes):  # a graph
        return head + chunk(6, value) + number(20, 5)
    if isinstance(value, int):
        return head + number(3, value) + number(20, 2)
    if isinstance(value, float):
        return head + varint(2 << 3 | 5) + struct.pack("<f", value) + number(20, 1)
    if isinstance(value, str):
        return head + chunk(4, value) + number(20, 3)
    if isinstance(value, np.ndarray):
        return head + chunk(5, tensor(value)) + number(20, 4)
    if value and isinstance(value[0], float):
        return head + b"".join(varint(7 << 3 | 5) + struct.pack("<f", v) for v in value) + number(20, 6)
    if value and isinstance(value[0], str):
        return head + b"".join(chunk(9, v) for v in value) + number(20, 8)
    return head + b"".join(number(8, v) for v in value) + number(20, 7)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> bytes:
    return (
        b"".join(chunk(1, n) for n in inputs)
        + b"".join(chunk(2, n) for n in outputs)
        + chunk(3, f"{op}_{outputs[0] if outputs else ''}")
        + chunk(4, op)
        + b"".join(chunk(5, attribute(k, v)) for k, v in attributes.items())
        + (chunk(7, domain) if domain else b"")
    )


def value(name: str, shape: Sequence[Any] = (), dtype: str = "float32") -> bytes:
    dims = b"".join(chunk(1, number(1, d) if isinstance(d, int) else chunk(2, d)) for d in shape)
    return chunk(1, name) + chunk(2, chunk(1, number(1, TYPES[dtype]) + chunk(2, dims)))


def graph(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], constants: Sequence[bytes] = ()
) -> bytes:
    return (
        b"".join(chunk(1, n) for n in nodes)
        + chunk(2, "test")
        + b"".join(chunk(5, c) for c in constants)
        + b"".join(chunk(11, i) for i in inputs)
        + b"".join(chunk(12, o) for o in outputs)
    )


def model(body: bytes, opset: int = 21, **domains: int) -> bytes:
    """A file. `domains` are further opsets, with `_` for `.` in their names."""
    opsets = chunk(8, number(2, opset)) + b"".join(
        chunk(8, chunk(1, d.replace("_", ".")) + number(2, v)) for d, v in domains.items()
    )
    return number(1, 10) + opsets + chunk(7, body)
