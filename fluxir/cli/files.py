"""Owns how verbs write text files and directories: whole or not at all, and with our errors."""

from __future__ import annotations

import os
import secrets

from ..errors import error

__all__ = ["make_directory", "write_bytes", "write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, replacing what was there at once. Raises FX0804."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what was there at once. Raises FX0804."""
    target = os.fspath(path)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    except OSError as reason:
        raise error("FX0804", f"{target} cannot be written: {reason.strerror or reason}") from None


def make_directory(path: str | os.PathLike[str]) -> None:
    """Create ``path`` and what is above it, where they are not there. Raises FX0804."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as reason:
        raise error("FX0804", f"the directory {os.fspath(path)} cannot be made: {reason.strerror or reason}") from None
