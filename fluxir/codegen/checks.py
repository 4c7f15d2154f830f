"""What compiled code must not contain. Runs on every object before anybody may load it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fluxir.errors import error

__all__ = ["ALLOWED", "check_object", "undefined_symbols"]

ALLOWED = frozenset({"memcpy", "memmove", "memset", "aligned_alloc", "free"})
"""Functions of the C library that compiled code may call."""


def undefined_symbols(data: bytes) -> Iterator[str]:
    """Names an ELF64 object refers to and does not define (System V ABI, "Symbol Table")."""
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, entry):
            name, _, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, at)
            if section == 0 and name:
                end = data.index(b"\0", names + name)
                yield data[names + name : end].decode("utf-8", "replace")


def check_object(data: bytes) -> None:
    """FX0514 where the object needs a function that is not `ALLOWED`."""
    wrong = sorted(set(undefined_symbols(data)) - ALLOWED)
    if wrong:
        raise error("FX0514", f"the object code calls {', '.join(wrong)}", help="this is a defect of fluxir: please report the program")
