"""Donated arrays: their memory went to a result of a call, and using them again is an error that names both lines.

An array that was given away carries a mark of its own, a bit of its flags (`DONATED` in `call_code.py`), which views made of
it later have too; views made before, or numpy itself reading the array, cannot be seen. Where the layout of arrays is not
known the mark is its entry in a table. Who gave what is remembered for the last calls, for the message.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxir.errors import Location, error
from fluxir.runtime.call_code import DONATED, FLAGS

__all__ = ["check", "mark", "note"]

_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"
_calls: deque[tuple[Sequence[str], tuple[int, ...], Location | None]] = deque(maxlen=64)
_marked: dict[int, weakref.ref[Any]] = {}


def user_line() -> Location | None:
    """The innermost line outside fluxir."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE) or code.co_filename.startswith(_PACKAGE + "examples/"):
            return Location(code.co_filename, frame.f_lineno, 0, code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def note(names: Sequence[str], ids: bytes) -> None:
    """Remember that the line of the user that runs gave these arrays away, as inputs of these names. `ids`: the numbers that
    `id` gives, as native 64-bit integers."""
    _calls.append((names, struct.unpack(f"={len(ids) // 8}q", ids), user_line()))


def mark(taken: Sequence[tuple[Any, str]]) -> None:
    """Mark arrays, each with its name as an input: their memory belongs to results now."""
    note([name for _, name in taken], struct.pack(f"={len(taken)}q", *[id(a) for a, _ in taken]))
    for a, _ in taken:
        if _layout_is_known():
            _flags(a).value |= DONATED
        else:
            key = id(a)
            _marked[key] = weakref.ref(a, lambda _, key=key: _marked.pop(key, None))  # type: ignore[misc]


def check(arrays: Iterable[Any]) -> None:
    """FX0614 if one of the arrays was donated."""
    for a in arrays:
        if isinstance(a, np.ndarray) and _is_marked(a):
            name, line = next(
                ((names[ids.index(id(a))], at) for names, ids, at in reversed(_calls) if id(a) in ids), ("", None)
            )
            raise error(
                "FX0614",
                "an array is used whose memory was given away: it was donated"
                + (f" as {name!r}" if name else "")
                + (f" at {line}" if line else ""),
                loc=user_line(),
                help="use the result that took its place, or pass a copy to the call that donates it",
            )


def _is_marked(a: Any) -> bool:
    return bool(a.flags.num & DONATED) or (id(a) in _marked and _marked[id(a)]() is a)


def _flags(a: Any) -> ctypes.c_int:
    return ctypes.c_int.from_address(id(a) + FLAGS)


def _layout_is_known() -> bool:
    from fluxir.runtime.native import calls_are_known

    return calls_are_known()
