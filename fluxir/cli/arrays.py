"""Owns how arrays enter and leave the command line: ``x=@file.npy``, ``x=random``, ``y=@out.npy``.

Invariants: nothing in an array file is executed (no pickle), and no more memory is taken than the file has bytes;
output files appear whole, by rename; random inputs depend on the seed and the input's name only.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from .. import config
from ..errors import FluxError, error
from ..runtime.whole import whole_file

__all__ = [
    "array_of",
    "assignments",
    "describe",
    "dim_sizes",
    "generate",
    "read_array",
    "summary",
    "write_array",
    "write_npy",
]

Array = np.ndarray[Any, Any]


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a dict. Raises FX0905 where one has another form or a name comes twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise _bad(f"{option} {text!r} does not have the form NAME=VALUE", option)
        if name.strip() in found:
            raise _bad(f"{option} names {name.strip()!r} twice", option)
        found[name.strip()] = value.strip()
    return found


def dim_sizes(texts: Sequence[str]) -> dict[str, int]:
    """``--dim SYMBOL=SIZE`` texts as a dict. Raises FX0905."""
    found = assignments(texts, "--dim")
    for name, text in found.items():
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise error(
                "FX0905",
                f"--dim {name}={text}: a size is a whole number of at least 0",
                help="write for example --dim B=32",
            )
    return {name: int(text) for name, text in found.items()}


def generate(name: str, value: str, dtype: np.dtype[Any], shape: Sequence[int], seed: int = 0) -> Array:
    """The input ``name`` of ``dtype`` and ``shape`` as ``value`` describes it: ``random``, ``zeros``, ``ones`` or a
    number.

    ``random`` draws floats from the standard normal distribution, integers from 0 to 9, bools evenly. Raises FX0905.
    """
    size = tuple(shape)
    if value == "random":
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if dtype == np.bool_:
            return rng.integers(0, 2, size).astype(dtype)
        return (rng.integers(0, 10, size) if dtype.kind in "iu" else rng.standard_normal(size)).astype(dtype)
    if value in ("zeros", "ones"):
        return np.full(size, 0 if value == "zeros" else 1).astype(dtype)
    try:
        number = {"true": True, "false": False}[value] if value in ("true", "false") else _number(value)
    except ValueError:
        raise _bad(f"input {name}={value} is none of @FILE, random, zeros, ones or a number") from None
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    fits = isinstance(number, int) and (limits.min <= number <= limits.max if limits is not None else number in (0, 1))
    if dtype.kind in "iub" and not fits:
        raise error("FX0217", f"input {name}: {value} does not fit {dtype}")
    return np.full(size, number).astype(dtype)


def read_array(path: str, dtype: np.dtype[Any] | None = None) -> Array:
    """The array in the ``.npy`` file ``path``. Types that numpy does not know (bf16) are stored as raw 2-byte items:
    they are read as ``dtype`` where that has the same width.

    Raises FX0803 where the file cannot be read, FX0908 where it is larger than the setting max_file_size, FX0812
    where it is no array file, holds objects, or is cut short.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > config.get().max_file_size:
                raise error("FX0908", f"{path} has {size} bytes, and max_file_size is {config.get().max_file_size}")
            return _read(file, path, size, dtype)
    except OSError as reason:
        raise error("FX0803", f"{path} cannot be read: {reason.strerror or reason}") from None


def write_array(path: str, array: Array) -> None:
    """Write ``array`` as a ``.npy`` file, whole or not at all. Raises FX0804."""
    with whole_file(path) as file:
        write_npy(file, array)


def write_npy(file: IO[bytes], array: Array) -> None:
    """Write ``array`` in the ``.npy`` format; items of types that numpy does not know as raw bytes."""
    stored = array if array.dtype.isbuiltin else array.view(f"V{array.dtype.itemsize}")
    np.lib.format.write_array(file, np.ascontiguousarray(stored).reshape(stored.shape), allow_pickle=False)


def describe(array: Array) -> str:
    """Dtype and shape, such as ``float32[3, 4]``."""
    return f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"


def summary(array: Array) -> dict[str, Any]:
    """What an array is, as JSON-ready data: dtype, shape, and range and mean of its values."""
    data: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.size:
        values = array.astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            data |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean())}
        if finite.size < values.size:
            data["not_finite"] = int(values.size - finite.size)
    return data


def array_of(data: bytes, path: str, dtype: np.dtype[Any] | None = None) -> Array:
    """As `read_array`, of what such a file holds. Raises FX0812 naming ``path``."""
    file = io.BytesIO(data)
    kind, shape, fortran = _head(file, path, len(data))
    return _shaped(
        np.frombuffer(data[file.tell() :], kind) if kind.itemsize else np.empty(0, kind),
        kind,
        shape,
        fortran,
        path,
        dtype,
    )


def _read(file: Any, path: str, size: int, dtype: np.dtype[Any] | None) -> Array:
    kind, shape, fortran = _head(file, path, size)
    count = math.prod(shape)
    items = np.fromfile(file, kind, count) if count and kind.itemsize else np.empty(count, kind)
    return _shaped(items, kind, shape, fortran, path, dtype)


def _head(file: Any, path: str, size: int) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Dtype, shape and order of the array in a file of ``size`` bytes, which is at its items afterwards."""
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = reader(file)
    except Exception as reason:  # numpy's header reader lets through whatever Python's tokenizer and parser raise
        raise _wrong(
            path, f"its header cannot be read ({str(reason).splitlines()[0][:80] if str(reason) else 'empty'})"
        ) from None
    if kind.hasobject:
        raise _wrong(path, "it holds Python objects, which are never loaded")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * kind.itemsize != size - file.tell():
        raise _wrong(
            path, f"its header says {count} items of {kind.itemsize} bytes, and {size - file.tell()} bytes follow"
        )
    return kind, shape, fortran


def _shaped(
    items: Array, kind: np.dtype[Any], shape: tuple[int, ...], fortran: bool, path: str, dtype: np.dtype[Any] | None
) -> Array:
    array = items.reshape(shape[::-1]).T if fortran else items.reshape(shape)
    if kind.kind == "V":
        if dtype is None or kind.names is not None or kind.subdtype is not None or dtype.itemsize != kind.itemsize:
            raise _wrong(path, f"its items are raw bytes ({kind}), which is no dtype of a tensor")
        array = np.ascontiguousarray(array).view(dtype).reshape(shape)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _number(text: str) -> int | float:
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


_FORMS = {"--dim": "SYMBOL=SIZE, such as --dim B=32", "--output": "NAME=@FILE.npy, or @FILE.npz for all"}


def _bad(message: str, option: str = "--input") -> FluxError:
    forms = _FORMS.get(option, "NAME=@FILE, NAME=random, NAME=zeros, NAME=ones or NAME=NUMBER")
    return error("FX0905", message, help=f"write {forms}")


def _wrong(path: str, problem: str) -> FluxError:
    return error("FX0812", f"{path} is not an array file to be used: {problem}", help="write arrays with numpy.save")
