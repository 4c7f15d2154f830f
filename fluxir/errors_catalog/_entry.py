"""Owns the shape of one catalogue entry and the declaration helper the catalogue files use.

Invariants: a code is ``FX`` and four digits, is declared exactly once, and never changes its meaning once released.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ExitClass = Literal["user", "usage", "unsupported", "mismatch", "limit", "device", "internal", "io"]
"""Which exit status an error leads to; `fluxir.errors.EXIT_CLASSES` maps each name to an exception class."""

CODES: dict[str, CodeInfo] = {}
"""Every error code by name, filled by the imports in ``errors_catalog/__init__.py``."""

_CODE = re.compile(r"FX\d{4}")


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What the catalogue knows of one error code.

    ``title`` is one line without a full stop; ``text`` is what ``fluxir explain`` prints: what it means, an example,
    the fix.
    """

    code: str
    title: str
    exit_class: ExitClass
    source: str
    """The long text as it stands in the catalogue file, with that file's indentation."""
    hint: str = ""
    """The way out in one line, shown as ``help`` where the place that raises the error knows nothing more precise."""

    @property
    def text(self) -> str:
        """The long text, dedented, without blank lines at either end."""
        import textwrap

        return textwrap.dedent(self.source).strip()


def declare(code: str, title: str, exit_class: ExitClass, text: str, hint: str = "") -> CodeInfo:
    """Enter one code into the catalogue. Raises ValueError when the code is malformed or already declared."""
    if not _CODE.fullmatch(code):
        raise ValueError(f"{code!r} is not an error code: write FX and four digits")
    if code in CODES:
        raise ValueError(f"{code} is declared twice: as {CODES[code].title!r} and as {title!r}")
    info = CodeInfo(code, title, exit_class, text, hint)
    CODES[code] = info
    return info
