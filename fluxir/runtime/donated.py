"""Donated arrays: their memory went to a result of a call, and using them again is an error that names both lines.

What is known here is the array object that was passed. Another view of the same memory, or numpy itself reading the array,
cannot be seen.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fluxir.errors import Location, error

__all__ = ["DONATED", "check", "mark", "revive"]

DONATED: dict[int, tuple[weakref.ref[Any], str, Location | None]] = {}
"""By the id of a donated array that is still alive: the array, its name as an input, and where it was donated."""

_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"


def user_line() -> Location | None:
    """The innermost line outside fluxir."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE) or code.co_filename.startswith(_PACKAGE + "examples/"):
            return Location(code.co_filename, frame.f_lineno, 0, code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def mark(taken: Iterable[tuple[Any, str]]) -> None:
    """Remember that the memory of these arrays, donated by the line of the user that runs, belongs to results now."""
    line = user_line()
    for a, name in taken:
        _mark(a, name, line)


def _mark(a: Any, name: str, line: Location | None) -> None:
    key = id(a)
    DONATED[key] = (weakref.ref(a, lambda _: DONATED.pop(key, None)), name, line)


def revive(a: Any) -> None:
    """Forget that `a` was donated: it is what a call gave back."""
    DONATED.pop(id(a), None)


def check(arrays: Iterable[Any]) -> None:
    """FX0614 if one of the arrays was donated."""
    for a in arrays:
        found = DONATED.get(id(a))
        if found is not None and found[0]() is a:
            _, name, line = found
            raise error(
                "FX0614",
                f"an array is used whose memory was given away: it was donated as {name!r}"
                + (f" at {line}" if line else ""),
                loc=user_line(),
                help="use the result that took its place, or pass a copy to the call that donates it",
            )
