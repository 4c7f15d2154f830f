"""The container of an artifact: a zip archive whose members are stored as they are, at multiples of 64 bytes, and mapped.

Any zip tool opens one. Invariants: the same members give the same bytes (fixed dates, the order given); what a reader hands out
lies within the file and is no copy of it; members neither overlap nor occur twice, so a small file cannot become large in
memory. Nothing here knows what the members mean, and no digest is checked here.

Source: PKWARE's APPNOTE.TXT, ".ZIP File Format Specification", 4.3; the extra field 0xd935 is the one that Android's zipalign
pads with.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Mapping
from typing import IO

from fluxir import config
from fluxir.errors import FluxError, error

__all__ = ["ALIGNMENT", "Archive", "damaged", "write_archive"]

ALIGNMENT = 64
"""Of the contents of a member in the file: a cache line, and any vector register."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LOCAL = struct.Struct("<4s5H3I2H")
_PADDING, _ZIP64 = 0xD935, 20


def write_archive(out: IO[bytes], members: Mapping[str, bytes], comment: bytes) -> None:
    """Write an archive of `members` in their order to a file that can seek."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            wide = len(content) * 1.05 > zipfile.ZIP64_LIMIT  # when zipfile adds a field of its own
            start = out.tell() + _LOCAL.size + len(name.encode()) + (_ZIP64 if wide else 0)
            if gap := -start % ALIGNMENT:
                gap += ALIGNMENT if gap < 4 else 0
                info.extra = struct.pack("<2H", _PADDING, gap - 4) + bytes(gap - 4)
            archive.writestr(info, content)
        archive.comment = comment


class Archive:
    """An open archive. `shown` is what messages call it; `comment` the archive's comment; `places` where members lie."""

    def __init__(self, data: bytes | mmap.mmap | memoryview, shown: str) -> None:
        """FX0801 where the file is no archive of ours."""
        self.data, self.shown = memoryview(data), shown
        try:
            with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else _Mapped(self.data)) as archive:
                entries = archive.infolist()
                self.comment = archive.comment
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error) as reason:
            raise damaged(shown, str(reason)) from None
        if sum(e.file_size for e in entries) > len(self.data):
            raise damaged(shown, "its members are larger than the file")
        self.places = {e.filename: self._place(e) for e in entries}
        if len(self.places) != len(entries):
            raise damaged(shown, "a member occurs twice")
        reached = 0
        for start, end in sorted(self.places.values()):
            if start < reached:
                raise damaged(shown, "two members share bytes")
            reached = max(reached, end)

    def _place(self, e: zipfile.ZipInfo) -> tuple[int, int]:
        """Where the contents of a member begin and end."""
        if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size or e.flag_bits & 1:
            raise damaged(self.shown, f"{e.filename} is compressed or encrypted, which fluxir never does")
        at = e.header_offset
        if not 0 <= at <= len(self.data) - _LOCAL.size:
            raise damaged(self.shown, f"{e.filename} lies outside the file")
        magic, *_, name, extra = _LOCAL.unpack_from(self.data, at)
        start = at + _LOCAL.size + name + extra
        found = bytes(self.data[at + _LOCAL.size : at + _LOCAL.size + name])
        if magic != b"PK\3\4" or found != e.orig_filename.encode() or start + e.file_size > len(self.data):
            raise damaged(self.shown, f"{e.filename} is not where the directory says")
        return start, start + e.file_size

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> memoryview:
        """The contents of a member, without a copy."""
        start, end = self.places[name]
        return self.data[start:end]

    @classmethod
    def open(cls, path: str) -> Archive:
        """A file, mapped: pages are read when they are touched, and shared with whoever maps it too. What is there stays there
        when the file is replaced, as long as that is done by a rename. FX0803 where it cannot be read or is too large."""
        limit = config.get().max_file_size
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise error("FX0803", f"{path} is not a regular file", help="name a .fxb file")
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > limit:
                    raise error(
                        "FX0803",
                        f"{path} is larger than {limit} bytes",
                        help="raise the setting max_file_size if you trust the file",
                    )
                data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as reason:
            raise error("FX0803", f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}") from None
        return cls(data, path)


class _Mapped(io.RawIOBase):
    """Memory as a file with a position of its own, for zipfile."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self.at, len(self.data))[whence]
        if at < 0:
            raise ValueError("a negative position")
        self.at = at
        return at

    def tell(self) -> int:
        return self.at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self.data) if size is None or size < 0 else min(len(self.data), self.at + size)
        found = bytes(self.data[self.at : end])
        self.at += len(found)
        return found


def damaged(shown: str, why: str) -> FluxError:
    return error("FX0801", f"{shown} is damaged or no artifact: {why}")
