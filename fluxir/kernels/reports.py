"""What kernels print and assert, read from the buffer of their reports (see `fluxir/schedule/simt_report.py`).

What threads printed is written to Python's standard output in the order of blocks and threads, so that it is the same on
every device. The first failed assertion in that order is FX0608, with the user's line, the block and the thread.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import Location, error
from fluxir.ops.gpu import formatted
from fluxir.schedule.simt_report import HEAD, WORDS

__all__ = ["empty_report", "tell"]


def empty_report() -> NDArray[Any]:
    """A buffer in which nothing is written yet."""
    return np.zeros(WORDS, np.int64)


def tell(
    name: str, buffer: NDArray[Any], table: Sequence[Mapping[str, Any]], grid: Sequence[int], block: Sequence[int]
) -> None:
    """Print what was printed; FX0608 where an assertion failed."""
    used = int(buffer[0])
    end = min(used + HEAD, WORDS)
    records = []
    at = HEAD
    while at < end:
        entry = table[int(buffer[at])]
        length = 3 + len(entry["types"])
        if at + length > WORDS:
            break
        words = buffer[at : at + length]
        records.append((int(words[1]), int(words[2]), at, entry, words[3:]))
        at += length
    failed: tuple[int, int, Mapping[str, Any]] | None = None
    lines = []
    for number, thread, _, entry, words in sorted(records, key=lambda r: r[:3]):
        if entry["kind"] == "assert":
            failed = failed or (number, thread, entry)
        else:
            lines.append(formatted(entry["text"], [_value(w, t) for w, t in zip(words, entry["types"], strict=True)]))
    if used + HEAD > end or at < end:
        lines.append(f"... {name}: the rest of what was printed did not fit\n")
    sys.stdout.write("".join(lines))
    if failed is not None:
        number, thread, entry = failed
        loc = Location(entry["file"], entry["line"], entry["col"], entry["func"]) if "file" in entry else None
        raise error(
            "FX0608",
            f"assertion failed: {entry['text']}",
            loc=loc,
            notes=[f"in block {_place(number, grid)}, thread {_place(thread, block)}"],
        )


def _value(word: Any, kind: str) -> Any:
    """A value from its 64 bits."""
    if kind[0] in "fb" and kind != "bool":
        return struct.unpack("<d", struct.pack("<q", int(word)))[0]
    n = int(word)
    return bool(n) if kind == "bool" else n & 0xFFFFFFFFFFFFFFFF if kind == "u64" else n


def _place(number: int, shape: Sequence[int]) -> tuple[int, int, int]:
    x, y = shape[0], shape[1]
    return number % x, number // x % y, number // (x * y)
