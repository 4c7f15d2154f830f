"""Templates: the C files of `templates/` with `@WORD@` replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["filled"]

_FOLDER = Path(__file__).with_name("templates")


def filled(name: str, words: Mapping[str, str]) -> str:
    """The template `name` with every `@WORD@` replaced; lines that an empty word leaves empty are dropped. KeyError for a word
    that has no value."""

    def line(text: str) -> str:
        out = re.sub(r"@([A-Z_]+)@", lambda m: words[m[1]], text)
        return "" if not out.strip() and text.strip() else out + "\n"

    return "".join(line(text) for text in (_FOLDER / name).read_text(encoding="utf-8").splitlines())
