"""Constants that lie in other files: opened beneath the model's folder and nowhere else.

Invariants: a name is relative, without `..`; no part of the path is a symbolic link (each part is opened by itself
with O_NOFOLLOW relative to the one before, so that nobody can exchange one in between); the file is a regular one with
a single name; offset and length lie inside it and are what the shape needs. FX1206 for everything else.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from pathlib import Path

from fluxir.errors import error
from fluxir.frontend.onnx import elements, schema

__all__ = ["ExternalData"]


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
        count = math.prod(t.dims)
        size = elements.raw_bytes(elements.element(t.data_type, f"the constant {t.name!r}"), count)
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
        at = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for i, part in enumerate(parts):
                last = i == len(parts) - 1
                # Without O_NONBLOCK opening a pipe would wait for a writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
                following = os.open(part, flags, dir_fd=at)
                os.close(at)
                at = following
            status = os.fstat(at)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise _refused(name, "is not a regular file with a single name")
            return memoryview(mmap.mmap(at, 0, access=mmap.ACCESS_READ) if status.st_size else b"")
        except OSError as e:
            raise _refused(name, f"cannot be opened beneath the model's folder: {e.strerror}") from None
        finally:
            os.close(at)
