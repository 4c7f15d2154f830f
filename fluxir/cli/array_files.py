"""Owns the kinds of files that arrays come from and go to: ``.npy``, ``.npz``, ``.safetensors``, raw bytes (``.raw``, ``.bin``).

A file of several arrays is asked for one with ``FILE:NAME``. Invariants as of `arrays`: nothing is executed, no more memory is
taken than the setting max_file_size allows, and files appear whole. Raw files are little-endian, last axis fastest, without a
header: their dtype and shape are those of the input.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from .. import config
from ..errors import FluxError, error
from ..runtime.safetensors import load_safetensors, read_safetensors_header, save_safetensors
from ..runtime.whole import whole_file
from .arrays import array_of, read_array, write_array, write_npy

__all__ = ["RAW", "members", "read_file", "read_raw", "write_files"]

Array = np.ndarray[Any, Any]
RAW = (".raw", ".bin")
_SEVERAL = re.compile(r"(.*\.(?:npz|safetensors))(?::(.+))?\Z", re.IGNORECASE | re.DOTALL)


def members(path: str) -> list[str] | None:
    """The names of the arrays in a file of several; None where a file holds one. FX0803, FX0809, FX0812."""
    if _suffix(path) == ".safetensors":
        return list(read_safetensors_header(path).tensors)
    if _suffix(path) != ".npz":
        return None
    with _npz(path) as archive:
        return [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]


def read_file(place: str, name: str, dtype: np.dtype[Any]) -> Array:
    """The array at ``place``: FILE, or FILE:NAME in a file of several, where ``name`` or the only one there is taken without a
    NAME. FX0803, FX0808 for another kind of file, FX0809, FX0812, FX0905 for a name that is not there, FX0908."""
    found = _SEVERAL.match(place)
    if found is None:
        return read_array(place, dtype)
    path, wanted = found[1], found[2]
    there = members(path) or []
    key = wanted or (there[0] if len(there) == 1 else name)
    if key not in there:
        raise error("FX0905", f"{path} has no array {key!r}", help=f"it holds {', '.join(there[:20]) or 'nothing'}")
    if _suffix(path) == ".safetensors":
        return load_safetensors(path, names=[key])[key]
    limit = config.get().max_file_size
    with _npz(path) as archive:
        if archive.getinfo(f"{key}.npy").file_size > limit:
            raise error("FX0908", f"{key} in {path} is larger than max_file_size, which is {limit}")
        try:
            data = archive.read(f"{key}.npy")
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as reason:
            raise _wrong(path, f"{key} cannot be read: {reason}") from None
    return array_of(data, f"{path}:{key}", dtype)


@contextlib.contextmanager
def _npz(path: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as reason:
        raise _wrong(path, str(reason)) from None
    except OSError as reason:
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None


def read_raw(path: str, dtype: np.dtype[Any], shape: list[int | None]) -> Array:
    """A file of items alone. One size of ``shape`` may be None: it follows from how many items there are. FX0803, FX0812,
    FX0908."""
    try:
        size = os.stat(path).st_size
        if size > config.get().max_file_size:
            raise error("FX0908", f"{path} has {size} bytes, and max_file_size is {config.get().max_file_size}")
        with open(path, "rb") as file:
            data = file.read(size)
    except OSError as reason:
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None
    rest = dtype.itemsize
    for n in shape:
        rest *= 1 if n is None else n
    count = len(data) // rest if rest else 0
    whole = [count if n is None else n for n in shape]
    if (count if None in shape else 1) * rest != len(data):
        raise _wrong(
            path,
            f"it has {len(data)} bytes, and an array {dtype.name}{['?' if n is None else n for n in shape]} has not",
        )
    return np.frombuffer(data, dtype).reshape(whole)


def write_files(arrays: Mapping[str, tuple[str, Array]]) -> None:
    """Write arrays by name to their files, each whole or not at all; those of one ``.npz`` or ``.safetensors`` file together.
    FX0804, FX0809 for a dtype that such a file does not have."""
    together: dict[str, dict[str, Array]] = {}
    for name, (place, array) in arrays.items():
        found = _SEVERAL.match(place)
        if found is not None:
            together.setdefault(found[1], {})[found[2] or name] = array
        elif _suffix(place) in RAW:
            with whole_file(place) as file:
                file.write(np.ascontiguousarray(array).tobytes())
        else:
            write_array(place, array)
    for path, group in together.items():
        if _suffix(path) == ".safetensors":
            save_safetensors(path, group)
        else:
            with whole_file(path) as file:
                _write_npz(file, group)


def _write_npz(file: IO[bytes], arrays: Mapping[str, Array]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            out = io.BytesIO()
            write_npy(out, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), out.getvalue())


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _wrong(path: str, problem: str) -> FluxError:
    return error("FX0812", f"{path} is not an array file to be used: {problem}", help="write arrays with numpy.save")
