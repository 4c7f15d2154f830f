"""Owns the safetensors file format: named arrays after a JSON header, readable without trusting or executing anything.

The layout (huggingface/safetensors, "Format"): 8 bytes little-endian header length; that many bytes of JSON, which may
end in spaces; the data. The header gives each name its dtype, shape and `[begin, end)` in the data, and `__metadata__`
a table of texts.

Invariants: a file from a stranger is checked completely before an array is made: every size and offset is bounded, the
tensors tile the data exactly (no gap, no overlap), and no name occurs twice. What is written depends on the arguments
alone, starts its data at a multiple of 64 bytes, and appears under its name complete or not at all.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import FluxError, error
from .whole import whole_file

__all__ = [
    "SafetensorsHeader", "TensorEntry", "load_safetensors", "map_safetensors", "parse_safetensors",
    "parse_safetensors_header", "read_safetensors_header", "safetensors_bytes", "save_safetensors",
]  # fmt: skip

MAX_HEADER = 100_000_000
"""The largest header accepted, in bytes: the limit of the format's own implementation."""

_MAX_RANK = 64  # numpy's limit
_ALIGNMENT = 64  # of the start of the data in a file we write: a cache line, and any vector register
_METADATA = "__metadata__"

_DTYPES = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_NAMES = {numpy_name: name for name, numpy_name in _DTYPES.items()}
_ITEM_BYTES = {"BOOL": 1, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1} | {
    name: int("".join(c for c in name if c.isdigit())) // 8 for name in _DTYPES if name[1:].isdigit()
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the header: `dtype` as the file names it ("F32"); `begin` and `end` count bytes of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A checked header. `tensors` are in the order of their data; `data_start` is the data's offset in the file."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


# -- reading -----------------------------------------------------------------------------------------------------------


def load_safetensors(
    path: str | os.PathLike[str], *, names: Iterable[str] | None = None, map_file: bool = True
) -> dict[str, NDArray[Any]]:
    """The arrays of the file, by name: all of them, or those in `names`.

    The arrays are read-only. With `map_file` they are views of the mapped file, read from disk where they are touched
    (the file must not be shortened meanwhile); without it, and where the file leaves an array misaligned for its dtype,
    they are copies. Small float types are ml_dtypes' (`bfloat16`, `float8_e4m3fn`, `float8_e5m2`, `float8_e8m0fnu`).

    Raises FX0803 when the file cannot be read and FX0809 when it is not a well-formed safetensors file or lacks a name.
    """
    shown = os.fspath(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size, shown)
        try:
            if map_file:
                buffer: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                file.seek(0)
                buffer = file.read(size)
        except OSError as reason:
            raise _unreadable(shown, reason) from None
    if len(buffer) < size:
        raise _wrong(shown, f"it became shorter while it was read: {len(buffer)} of {size} bytes")
    return _arrays(buffer, header, names, shown)


def parse_safetensors(data: bytes, *, source: str = "<bytes>") -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file held in `data`, as read-only views of it. Raises FX0809 naming `source`."""
    return _arrays(data, parse_safetensors_header(data, source=source), None, source)


def map_safetensors(data: memoryview, source: str, names: Container[str] | None = None) -> dict[str, NDArray[Any]]:
    """As `parse_safetensors`, of a part of a larger file: its arrays are read-only views of it. Only those in `names`, where
    they are given and there. Raises FX0809."""
    length = min(int.from_bytes(data[:8], "little"), MAX_HEADER, len(data))
    header = _parse_header(bytes(data[:8]), bytes(data[8 : 8 + length]), len(data), source)
    return _arrays(data, header, None if names is None else [n for n in header.tensors if n in names], source)


def parse_safetensors_header(data: bytes, *, source: str = "<bytes>") -> SafetensorsHeader:
    """The header of a file held in `data`. Raises FX0809 naming `source`."""
    length = min(int.from_bytes(data[:8], "little"), MAX_HEADER, len(data))
    return _parse_header(data[:8], data[8 : 8 + length], len(data), source)  # not a copy of all that follows


def read_safetensors_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """The names, dtypes, shapes, places and metadata of a file, without touching its data. Raises FX0803 and FX0809."""
    with _open(path) as file:
        return _read_header(file, os.fstat(file.fileno()).st_size, os.fspath(path))


def _open(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked first: opening a named pipe would wait for its other end
            raise error("FX0803", f"{os.fspath(path)} is not a regular file", help="name a .safetensors file")
        return open(path, "rb")
    except (OSError, ValueError) as reason:
        raise _unreadable(os.fspath(path), reason) from None


def _read_header(file: IO[bytes], size: int, source: str) -> SafetensorsHeader:
    try:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        text = file.read(length) if length <= min(MAX_HEADER, size) else b""
    except OSError as reason:
        raise _unreadable(source, reason) from None
    return _parse_header(prefix, text, size, source)


def _parse_header(prefix: bytes, rest: bytes, size: int, source: str) -> SafetensorsHeader:
    """Checks the header and its agreement with the file's `size`; `rest` holds at least the header where that fits."""
    if len(prefix) < 8:
        raise _wrong(source, f"it has {size} bytes; the length of the header alone takes 8")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER:
        raise _wrong(source, f"its header claims {length} bytes; at most {MAX_HEADER} are accepted")
    if length > size - 8:
        raise _wrong(source, f"its header claims {length} bytes, and only {size - 8} follow: the file is cut off")
    text = rest[:length]
    if text[:1] != b"{":
        raise _wrong(source, "its header does not begin with '{': this is not a safetensors file")
    try:
        decoded = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise _wrong(source, "its header is nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as reason:
        raise _wrong(source, f"its header is not valid JSON: {_brief(reason)}") from None
    metadata = _metadata(decoded.pop(_METADATA, {}), source)
    entries = [_entry(name, value, source) for name, value in decoded.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    reached = 0
    for entry in entries:
        if entry.begin != reached:
            what = "overlaps the tensor before it" if entry.begin < reached else "leaves a gap before it"
            raise _wrong(source, f"tensor {entry.name!r} {what}: it begins at byte {entry.begin}, not {reached}")
        reached = entry.end
    available = size - 8 - length
    if reached != available:
        what = "the file is cut off" if reached > available else "bytes that belong to no tensor"
        raise _wrong(source, f"its tensors take {reached} bytes and {available} are there: {what}")
    return SafetensorsHeader({entry.name: entry for entry in entries}, metadata, 8 + length)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _metadata(value: object, source: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong(source, f"{_METADATA} is not a table of texts")
    return dict(value)


def _entry(name: str, value: object, source: str) -> TensorEntry:
    def wrong(problem: str) -> FluxError:
        return _wrong(source, f"tensor {_brief(name)!r}: {problem}")

    if not _encodable(name):
        raise wrong("its name is not valid Unicode")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("its entry must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise wrong(f"dtype {_brief(dtype)!r} is not supported; these are: {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise wrong("its shape is not a list of sizes")
    if len(shape) > _MAX_RANK:
        raise wrong(f"it has {len(shape)} axes; at most {_MAX_RANK} are supported")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise wrong("data_offsets is not a pair of byte positions")
    begin, end = offsets
    item = _ITEM_BYTES[dtype]
    # Where one size is zero the others can still be too large for an array, so the bound leaves the zeros out.
    if math.prod(max(size, 1) for size in shape) * item >= 2**63:
        raise wrong("its shape is too large")
    wanted = math.prod(shape) * item
    if end - begin != wanted:
        raise wrong(f"{dtype} of shape {shape} takes {wanted} bytes; data_offsets give {end - begin}")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _arrays(
    buffer: bytes | mmap.mmap | memoryview, header: SafetensorsHeader, names: Iterable[str] | None, source: str
) -> dict[str, NDArray[Any]]:
    wanted = list(header.tensors) if names is None else list(names)
    missing = [name for name in wanted if name not in header.tensors]
    if missing:
        there = ", ".join(sorted(header.tensors)[:20]) or "nothing"
        raise error(
            "FX0809", f"{source} has no tensor named {', '.join(map(repr, missing))}", help=f"the file holds: {there}"
        )
    return {name: _array(buffer, header, header.tensors[name], source) for name in wanted}


def _array(
    buffer: bytes | mmap.mmap | memoryview, header: SafetensorsHeader, entry: TensorEntry, source: str
) -> NDArray[Any]:
    count = math.prod(entry.shape)
    raw = (
        np.frombuffer(buffer, np.uint8, entry.end - entry.begin, header.data_start + entry.begin) if count else _NOTHING
    )
    if entry.dtype == "BOOL" and count and raw.max() > 1:
        raise _wrong(source, f"tensor {entry.name!r}: a BOOL is neither 0 nor 1")
    dtype = _numpy_dtype(entry.dtype)
    if raw.ctypes.data % dtype.alignment and count:
        raw = raw.copy()
    array = raw.view(dtype).reshape(entry.shape)
    array.flags.writeable = False
    return array


_NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    numpy_name = _DTYPES[name]
    if numpy_name == "bfloat16" or numpy_name.startswith("float8"):
        import ml_dtypes  # lazily: most files have none of these, and the import is not free

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, numpy_name))
        return small
    return np.dtype(numpy_name).newbyteorder("<")


# -- writing -----------------------------------------------------------------------------------------------------------


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` (contiguous or not, any byte order) and `metadata` to `path`, replacing what was there at once.

    The same arguments always give the same bytes. Raises FX0804 when the file cannot be written, FX0809 for a name,
    dtype or metadata the format does not have.
    """
    parts = _layout(tensors, metadata)
    with whole_file(path, durable=True) as file:
        for part in parts:
            file.write(part)


def safetensors_bytes(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `save_safetensors` would write, as bytes. Raises FX0809."""
    return b"".join(_layout(tensors, metadata))


def _layout(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None) -> list[bytes]:
    """The file in pieces: header, then the data of each tensor."""
    arrays = {name: _writable(name, array) for name, array in tensors.items()}
    # Without gaps, which the format forbids: whole cache lines first, which all begin at one, then wide items first, which
    # keeps every tensor aligned to its own item size.
    order = sorted(arrays, key=lambda name: (arrays[name].nbytes % _ALIGNMENT > 0, -arrays[name].itemsize, name))
    header: dict[str, object] = {}
    if metadata:
        for key, text in metadata.items():
            if not (isinstance(key, str) and isinstance(text, str) and _encodable(key) and _encodable(text)):
                raise error("FX0809", f"metadata {key!r}: keys and values must be text")
        header[_METADATA] = dict(sorted(metadata.items()))
    parts = []
    reached = 0
    for name in order:
        array = arrays[name]
        end = reached + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [reached, end]}
        parts.append(array.tobytes())
        reached = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
    if len(encoded) > MAX_HEADER:
        raise error("FX0809", f"the names and metadata take {len(encoded)} bytes; at most {MAX_HEADER} are allowed")
    return [struct.pack("<Q", len(encoded)) + encoded, *parts]


def _writable(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(name, str) or not _encodable(name) or name == _METADATA:
        raise error("FX0809", f"{name!r} cannot be the name of a tensor", help="use text other than __metadata__")
    array = np.asarray(array)
    if array.dtype.name not in _NAMES:
        raise error(
            "FX0809",
            f"tensor {name!r}: dtype {array.dtype.name} has no place in a safetensors file",
            help=f"cast it to one of: {', '.join(_NAMES)}",
        )
    # ml_dtypes' types have one byte order only, and numpy cannot turn them.
    return array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"), copy=False)


# -- errors ------------------------------------------------------------------------------------------------------------


def _encodable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)  # a lone surrogate has no UTF-8 form


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _wrong(source: str, problem: str) -> FluxError:
    return error(
        "FX0809", f"{source}: {problem}", help="write the file anew, or fetch it again from where it came from"
    )


def _unreadable(source: str, reason: Exception) -> FluxError:
    detail = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    return error("FX0803", f"{source} cannot be read: {_brief(detail)}")
