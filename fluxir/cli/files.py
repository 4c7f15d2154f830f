"""Owns how verbs write text files and directories: whole or not at all, and with our errors."""

from __future__ import annotations

import os

from ..errors import error
from ..runtime.whole import whole_file

__all__ = ["make_directory", "write_bytes", "write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, replacing what was there at once. Raises FX0804."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what was there at once. Raises FX0804."""
    with whole_file(path) as file:
        file.write(data)


def make_directory(path: str | os.PathLike[str]) -> None:
    """Create ``path`` and what is above it, where they are not there. Raises FX0804."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as reason:
        raise error("FX0804", f"the directory {os.fspath(path)} cannot be made: {reason.strerror or reason}") from None
