"""Evaluates size expressions as compiled programs name them: `B*784+3`, `((B+7)//8)`, `max(B,4)`. No `eval`.

The compiler writes them (`fluxir.ir.dims`); this reads them on its own, since the runtime knows nothing of the
compiler. Integers, names, `+ - * // %`, unary minus, parentheses, `max` and `min` of two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from fluxir.errors import error

__all__ = ["evaluate", "names"]

_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(//|[-+*%(),]))")
_MAX_TOKENS, _MAX_DEPTH = 20_000, 200

Tree = Any  # int | str | (operator, tree, tree)


def evaluate(size: int | str, env: Mapping[str, int]) -> int:
    """The value of a size. Raises FX0802 for text that is no size expression, FX0604 for a symbol without value."""
    return size if isinstance(size, int) else _value(_parsed(size), env)


def names(size: int | str) -> frozenset[str]:
    """The symbols in a size."""
    return frozenset() if isinstance(size, int) else frozenset(_names(_parsed(size)))


def _value(t: Tree, env: Mapping[str, int]) -> int:
    if isinstance(t, int):
        return t
    if isinstance(t, str):
        if t not in env:
            raise error("FX0604", f"the size {t} is not determined by the arguments")
        return env[t]
    op, left, right = t
    a, b = _value(left, env), _value(right, env)
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "max":
            return max(a, b)
        case "min":
            return min(a, b)
    if b == 0:
        raise error("FX0604", "a size is divided by a size that is 0")
    return a // b if op == "//" else a % b


def _names(t: Tree) -> set[str]:
    if isinstance(t, tuple):
        return _names(t[1]) | _names(t[2])
    return {t} if isinstance(t, str) else set()


@functools.lru_cache(4096)
def _parsed(text: str) -> Tree:
    tokens: list[str] = []
    at = 0
    stripped = text.strip()
    while at < len(stripped):
        found = _TOKEN.match(stripped, at)
        if found is None or len(tokens) > _MAX_TOKENS:
            raise _unreadable(text)
        tokens.append(found[0].strip())
        at = found.end()
    tokens.append("")
    place = 0

    def take() -> str:
        nonlocal place
        place += 1
        return tokens[place - 1]

    def expect(token: str) -> None:
        if take() != token:
            raise _unreadable(text)

    def primary(depth: int) -> Tree:
        t = take()
        if depth > _MAX_DEPTH:
            raise _unreadable(text)
        if t == "(":
            v = total(depth + 1)
            expect(")")
            return v
        if t == "-":
            return ("-", 0, primary(depth + 1))
        if t.isdigit():
            return int(t)
        if t in ("max", "min") and tokens[place] == "(":
            take()
            a = total(depth + 1)
            expect(",")
            b = total(depth + 1)
            expect(")")
            return (t, a, b)
        if t and (t[0].isalpha() or t[0] == "_"):
            return t
        raise _unreadable(text)

    def term(depth: int) -> Tree:
        v = primary(depth)
        while tokens[place] in ("*", "//", "%"):
            v = (take(), v, primary(depth))
        return v

    def total(depth: int) -> Tree:
        v = term(depth)
        while tokens[place] in ("+", "-"):
            v = (take(), v, term(depth))
        return v

    tree = total(0)
    expect("")
    return tree


def _unreadable(text: str) -> Exception:
    return error("FX0802", f"cannot read the size {text[:80]!r}")
