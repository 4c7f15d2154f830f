"""Constants that lie in other files: opened beneath the model's folder and nowhere else.

Invariants: a name is relative, without `..`; no part of the path is a symbolic link; the file is a regular one with a single
name; offset and length lie inside it and are what the shape needs. FX1206 for everything else. The kernel keeps the path
beneath the folder (`openat2`, Linux 5.6); where it does not know that call, each part is opened by itself with O_NOFOLLOW
relative to the one before. Either way nobody can exchange a part in between.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from fluxir.errors import error
from fluxir.frontend.onnx import elements, schema

__all__ = ["ExternalData", "open_beneath"]

_OPENAT2 = 437  # the number of the system call, the same on all machines
_RESOLVE = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
# Without O_NONBLOCK opening a pipe would wait for a writer.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def _refused(name: str, why: str) -> Exception:
    return error("FX1206", f"the data file {name!r} {why}")


class ExternalData:
    """The data files of one model; each is opened once and mapped into memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[str, memoryview] = {}

    def of(self, t: schema.Tensor) -> memoryview:
        """The bytes of a constant that says it lies in another file."""
        given = {p.key: p.value for p in t.external}
        name = given.get("location", "")
        what = f"the constant {t.name!r}"
        e = elements.element(t.data_type, what)
        size = elements.raw_bytes(e, elements.count_of(t.dims, what, e.bits))
        offset, length = (self._number(name, given, key) for key in ("offset", "length"))
        if length is not None and length != size:
            raise _refused(name, f"has {length} bytes for {t.name!r}, whose shape says {size}")
        data = self._file(name)
        start = offset or 0
        if start > data.nbytes or size > data.nbytes - start:
            raise _refused(name, f"has {data.nbytes} bytes; {t.name!r} should be {size} bytes from byte {start} on")
        return data[start : start + size]

    @staticmethod
    def _number(name: str, given: dict[str, str], key: str) -> int | None:
        text = given.get(key)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise _refused(name, f"has the {key} {text!r}, which is no number of bytes")
        return int(text)

    def _file(self, name: str) -> memoryview:
        found = self._files.get(name)
        if found is None:
            found = self._files[name] = self._opened(name)
        return found

    def _opened(self, name: str) -> memoryview:
        if self.folder is None:
            raise _refused(name, "cannot be found: the model itself is not a file")
        parts = name.replace("\\", "/").split("/")
        if not name or name.startswith(("/", "\\")) or "\0" in name or ".." in parts or ":" in parts[0]:
            raise _refused(name, "is not named by a relative path beneath the model's folder")
        parts = [p for p in parts if p not in ("", ".")]
        if not parts or len(parts) > 20:
            raise _refused(name, "is not named by a relative path beneath the model's folder")
        at = -1
        try:
            at = open_beneath(self.folder, parts)
            status = os.fstat(at)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise _refused(name, "is not a regular file with a single name")
            return memoryview(mmap.mmap(at, 0, access=mmap.ACCESS_READ) if status.st_size else b"")
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or "its name cannot be one of a file"
            raise _refused(name, f"cannot be opened beneath the model's folder: {why}") from None
        finally:
            if at >= 0:
                os.close(at)


def open_beneath(folder: Path, parts: list[str]) -> int:
    """A descriptor of the file `parts[0]/parts[1]/...` beneath `folder`, reached through no symbolic link. Raises OSError."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            return _openat2(at, "/".join(parts))
        except OSError as e:
            if e.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):  # some containers forbid what they do not know
                raise
        for part in parts[:-1]:
            following = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = following
        return os.open(parts[-1], _FLAGS, dir_fd=at)
    finally:
        os.close(at)


def _openat2(folder: int, name: str) -> int:
    call = _syscall()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    sys.audit("open", name, None, _FLAGS)  # as `os.open` does: who watches this process sees this file, too
    how = struct.pack("=QQQ", _FLAGS, 0, _RESOLVE)
    found = call(ctypes.c_long(_OPENAT2), ctypes.c_int(folder), os.fsencode(name), how, ctypes.c_size_t(len(how)))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(found)


@functools.cache
def _syscall() -> Any:
    """The C library's `syscall`; None where there is none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_long
    return function
