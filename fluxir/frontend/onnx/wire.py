"""Protocol Buffers, as far as an ONNX file needs them: bytes in, the dataclasses of `schema.py` out.

Reading is lazy where it counts: data of type `bytes` stays a view of the (memory-mapped) file, so that a model of
gigabytes is looked through without its weights being read. Invariants: a field lands where the table of its message
says and nowhere else (no name in a file becomes an attribute); fields that the table does not know are skipped; every
length is checked against the message around it; messages nest at most `MAX_NESTING` deep, a file has at most `MAX_PARTS`
fields and numbers that become Python objects, and a text at most `MAX_TEXT` bytes. Long packed numbers become numpy
arrays, which take no more than eight times their bytes in the file. Encoding:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fluxir.errors import error

__all__ = ["MAX_NESTING", "MAX_PARTS", "MAX_TEXT", "Field", "Message", "decode"]

MAX_NESTING = 60
MAX_PARTS = 1_500_000  # a graph of 10,000 nodes has some 200,000
_MESSAGE = 3  # what a message counts more than a number
MAX_TEXT = 1 << 20  # bytes of a name, or of metadata (such as all characters that a model reads)
_LONG = 4096  # bytes of packed numbers from which on they become an array
_PIECE = 1 << 18  # bytes of packed numbers that are decoded at a time


@dataclass(slots=True)
class Field:
    """A field of a message: where it goes and how it is spelled. `kind` is `int`, `float`, `double`, `text`, `bytes` or,
    for a nested message, a function that gives its table (tables refer to each other)."""

    name: str
    kind: str | Callable[[], Message]
    repeated: bool = False


@dataclass(slots=True)
class Message:
    """A message: its class, built with the fields found as keywords, and its fields by number."""

    make: Callable[..., Any]
    fields: dict[int, Field] = field(default_factory=dict)


class _Reader:
    __slots__ = ("data", "file", "left")

    def __init__(self, data: memoryview, file: str) -> None:
        self.data, self.file, self.left = data, file, MAX_PARTS

    def broken(self, at: int, what: str) -> Exception:
        return error(
            "FX1201",
            f"{self.file} is no ONNX model: {what} at byte {at}",
            help="copy the file again in binary mode, or export the model again",
        )

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned number of up to 64 bits, and the place behind it."""
        data, value, shift = self.data, 0, 0
        start = at
        while at < end:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
            shift += 7
            if shift > 63:
                break
        raise self.broken(start, "a number does not end")

    def spend(self, parts: int) -> None:
        """Count parts that become Python objects."""
        self.left -= parts
        if self.left < 0:
            raise error("FX1202", f"{self.file} has too many parts (fields, names, numbers)")

    def message(self, table: Message, at: int, end: int, depth: int) -> Any:
        if depth > MAX_NESTING:
            raise error("FX1202", f"{self.file} nests more than {MAX_NESTING} deep")
        self.spend(_MESSAGE)
        data, fields = self.data, table.fields
        found: dict[str, Any] = {}
        while at < end:
            start = at
            key = data[at]
            at += 1
            self.left -= 1
            if self.left < 0:
                self.spend(0)
            if key >= 0x80:
                key, at = self.varint(start, end)
            wire, entry = key & 7, fields.get(key >> 3)
            value: Any
            if wire == 2:
                if at < end and data[at] < 0x80:
                    length = data[at]
                    at += 1
                else:
                    length, at = self.varint(at, end)
                stop = at + length
                if stop > end:
                    raise self.broken(start, "a field reaches beyond the message it is in")
                if entry is not None:
                    kind = entry.kind
                    if kind == "text":
                        value = self.text(at, stop)
                    elif kind == "bytes":
                        value = data[at:stop]
                    elif callable(kind):
                        value = self.message(kind(), at, stop, depth + 1)
                    else:
                        if not entry.repeated:
                            raise self.broken(start, f"the field {entry.name!r} is not a number")
                        values = self.packed(kind, at, stop)
                        if entry.name in found:  # rare: writers put all numbers of a field in one place
                            self.spend(len(found[entry.name]) + len(values))
                            values = [*found[entry.name], *values]
                        found[entry.name] = values
                        at = stop
                        continue
                at = stop
            elif wire == 0:
                value, at = self.varint(at, end)
                if value >= 1 << 63:
                    value -= 1 << 64
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
                if at + size > end:
                    raise self.broken(start, "a field reaches beyond the message it is in")
                (value,) = struct.unpack_from("<d" if wire == 1 else "<f", data, at)
                at += size
            else:
                raise self.broken(start, f"there is no wire type {wire}")
            if entry is None:
                continue
            if wire != _WIRE.get(entry.kind, 2) if isinstance(entry.kind, str) else wire != 2:
                raise self.broken(start, f"the field {entry.name!r} has the wire type {wire}")
            if entry.repeated:
                values = found.setdefault(entry.name, [])
                if not isinstance(values, list):
                    self.spend(len(values))
                    values = found[entry.name] = list(values)
                values.append(value)
            else:
                found[entry.name] = value
        return table.make(**found)

    def text(self, at: int, end: int) -> str:
        if end - at > MAX_TEXT:
            raise error("FX1202", f"{self.file} has a name of {end - at} bytes; at most {MAX_TEXT} are accepted")
        try:
            return str(self.data[at:end], "utf-8")
        except UnicodeDecodeError:
            raise self.broken(at, "a name is not UTF-8") from None

    def packed(self, kind: str, at: int, end: int) -> Any:
        """The numbers of a packed field: a list or tuple of a few, an array of many."""
        if kind == "int":
            if end - at > _LONG:
                return self.varints(at, end)
            numbers = []
            while at < end:
                byte = self.data[at]
                if byte < 0x80:
                    numbers.append(byte)
                    at += 1
                else:
                    value, at = self.varint(at, end)
                    numbers.append(value - (1 << 64) if value >= 1 << 63 else value)
            return numbers
        size, letter = (4, "f") if kind == "float" else (8, "d")
        count, rest = divmod(end - at, size)
        if rest:
            raise self.broken(at, "packed numbers are cut short")
        if end - at > _LONG:
            return np.frombuffer(self.data, f"<{letter}{size}", count, at)
        return struct.unpack_from(f"<{count}{letter}", self.data, at)

    def varints(self, at: int, end: int) -> np.ndarray[Any, Any]:
        """Many packed integers, piece by piece so that it takes little memory besides the result, i64[n]."""
        pieces = []
        while at < end:
            stop = min(at + _PIECE, end)
            data = np.frombuffer(self.data, np.uint8, stop - at, at)
            last = np.flatnonzero(data < 0x80)  # the last byte of each number
            if not len(last) or (last[0] + 1 if len(last) == 1 else max(last[0] + 1, np.diff(last).max())) > 10:
                raise self.broken(at, "a number does not end")
            first = np.concatenate(([0], last[:-1] + 1))
            values = np.zeros(len(last), np.uint64)
            for k in range(int((last - first).max()) + 1):
                bits = data[np.minimum(first + k, last)].astype(np.uint64) & np.uint64(0x7F)
                values |= np.where(first + k <= last, bits << np.uint64(7 * k), np.uint64(0))
            pieces.append(values.view(np.int64))
            at += int(last[-1]) + 1
        return np.concatenate(pieces)


_WIRE = {"int": 0, "double": 1, "text": 2, "bytes": 2, "float": 5}


def decode(data: memoryview, table: Message, file: str) -> Any:
    """The message that `data` holds, as `table` describes it. FX1201 where it holds none, FX1202 beyond a limit."""
    return _Reader(data, file).message(table, 0, len(data), 0)
