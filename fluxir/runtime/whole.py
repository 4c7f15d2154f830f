"""How files are written: whole or not at all. Who reads meanwhile sees what was there before, never half a file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from fluxir.errors import error

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to write and seek in, which replaces what is at `path` when the block ends, and is gone if it fails. `durable`:
    its contents are on the disk before it has its name. FX0804 where it cannot be written."""
    target = os.fspath(path)
    temporary = f"{target}.{secrets.token_hex(6)}.tmp"
    try:
        try:
            with open(temporary, "x+b") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    except OSError as reason:
        raise error("FX0804", f"{target} cannot be written: {reason.strerror or reason}") from None
