"""Names, texts and types as C writes them. Names of a model come from strangers: nothing of one reaches C unescaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["C_TYPES", "ITEM_BYTES", "comment", "identifier", "identifiers", "prefix", "string"]

C_TYPES = {"bool": "uint8_t", "f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double"} | {
    f"{k}{n}": f"{w}{n}_t" for k, w in (("i", "int"), ("u", "uint")) for n in (8, 16, 32, 64)
}
"""The C type of an element. A bool is 0 or 1; 16-bit floats are their bits."""

ITEM_BYTES = {name: 1 if name == "bool" else int(name.lstrip("biuf")) // 8 for name in C_TYPES}

_RESERVED = frozenset(
    """alignas alignof and asm auto bool break case catch char class const constexpr continue default delete do double else enum
    explicit export extern false float for friend goto if inline int long mutable namespace new nullptr operator or private
    protected public register restrict return short signed sizeof static static_assert struct switch template this thread_local
    throw true try typedef typeid typename typeof union unsigned using virtual void volatile while xor not
    model dims workspace workspace_bytes stream status errno main NULL bad s sizes arguments target arena start context number
    hosts bytes call popped code arrays i lock""".split()
)
"""Words of C and C++, and the names that the entry points use themselves."""
_CMAKE = frozenset("all clean help install package test".split())


def identifier(text: str) -> str:
    """`text` as a name in C: letters, digits and underscores, not a word of the language. Never begins with an underscore."""
    name = _plain(text)
    return name + "_" if name in _RESERVED else name


def prefix(text: str) -> str:
    """`text` as what the names of a bundle begin with, before an underscore; CMake has a target of that name."""
    name = _plain(text)
    return name + "_" if name in _CMAKE else name


def _plain(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60] or "x"
    return "x" + name if name[0].isdigit() else name


def identifiers(texts: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """A name for each text, all different."""
    used = set(taken)
    out = []
    for text in texts:
        name = first = identifier(text)
        count = 2
        while name in used:
            name, count = f"{first}_{count}", count + 1
        used.add(name)
        out.append(name)
    return out


def string(text: str) -> str:
    """A string literal. Bytes beyond ASCII are octal, so that no source encoding matters; `?` too, for trigraphs."""
    plain = set(range(32, 127)) - {ord('"'), ord("\\"), ord("?")}
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'


def comment(text: str) -> str:
    """Text for the inside of a comment, on one line."""
    shown = "".join(c if " " <= c <= "~" else "?" for c in text.replace("\n", " "))
    return shown.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")
