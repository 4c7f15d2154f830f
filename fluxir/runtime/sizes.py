"""Evaluates size expressions as compiled programs name them: `B*784+3`, `((B+7)//8)`, `max(B,4)`. No `eval`.

The compiler writes them (`fluxir.ir.dims`); this reads them on its own, since the runtime knows nothing of the
compiler. Integers, names, `+ - * // %`, unary minus, parentheses, `max` and `min` of two.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from fluxir.errors import error

__all__ = ["evaluate", "names", "parsed"]

_TOKEN = re.compile(r"\s*(?:(\d+)|((?!(?:max|min)\()[A-Za-z_]\w*)|(max\(|min\(|//|[-+*%(),]))", re.ASCII)
_RANK = {"+": 1, "-": 1, "*": 2, "//": 2, "%": 2, "negate": 3}
_MAX_TOKENS, _MAX_DEPTH, _MAX_DIGITS = 200_000, 500, 40
_MAX_BITS = 4096
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "max": max, "min": min, "//": operator.floordiv,
    "%": operator.mod, "negate": operator.sub,
}  # fmt: skip

Step = Any  # int | str (a symbol) | an operator of _OPERATORS: the steps of a machine with a stack


def evaluate(size: int | str, env: Mapping[str, int]) -> int:
    """The value of a size. Raises FX0802 for text that is no size expression, FX0604 for a symbol without value."""
    return size if isinstance(size, int) else _value(parsed(size), env)


def names(size: int | str) -> frozenset[str]:
    """The symbols in a size."""
    return frozenset() if isinstance(size, int) else frozenset(s for s in parsed(size) if isinstance(s, str))


def _value(steps: tuple[Step, ...], env: Mapping[str, int]) -> int:
    stack: list[int] = []
    for step in steps:
        if isinstance(step, int):
            stack.append(step)
        elif isinstance(step, str):
            if step not in env:
                raise error("FX0604", f"the size {step} is not determined by the arguments")
            stack.append(env[step])
        else:
            right = stack.pop()
            if right == 0 and step in (operator.floordiv, operator.mod):
                raise error("FX0604", "a size is divided by a size that is 0")
            stack[-1] = step(stack[-1], right)
            if stack[-1].bit_length() > _MAX_BITS:
                raise error("FX0604", "a size is larger than any machine can hold")
    return stack[-1]


@functools.lru_cache(4096)
def parsed(text: str) -> tuple[Step, ...]:
    """The steps of an expression, by operator precedence with a stack of what waits: no depth of nesting recurses."""
    steps: list[Step] = []
    waiting: list[str] = []  # operators, "(", "max(" and "max," (its second argument follows)
    value = True  # whether a value comes next, not an operator
    at, count, stripped = 0, 0, text.strip()

    def settle(rank: int) -> None:
        """Apply the waiting operators that bind at least as strongly as `rank`."""
        while waiting and _RANK.get(waiting[-1], 0) >= rank:
            steps.append(_OPERATORS[waiting.pop()])

    while at < len(stripped):
        found = _TOKEN.match(stripped, at)
        count += 1
        if found is None or count > _MAX_TOKENS or len(waiting) > _MAX_DEPTH or len(found[1] or "") > _MAX_DIGITS:
            raise _unreadable(text)
        at = found.end()
        token = found[0].strip()
        if value:
            if token in ("max(", "min(", "("):
                waiting.append(token)
            elif token == "-":
                steps.append(0)
                waiting.append("negate")
            elif found[1] or found[2]:
                steps.append(int(token) if found[1] else token)
                value = False
            else:
                raise _unreadable(text)
        elif token in _RANK:
            settle(_RANK[token])
            waiting.append(token)
            value = True
        elif token in (",", ")"):
            settle(1)
            opened = waiting.pop() if waiting else ""
            if token == "," and opened in ("max(", "min("):
                waiting.append(opened[:3] + ",")
                value = True
            elif token == ")" and opened in ("max,", "min,"):
                steps.append(_OPERATORS[opened[:3]])
            elif token != ")" or opened != "(":
                raise _unreadable(text)
        else:
            raise _unreadable(text)
    settle(1)
    if value or waiting:
        raise _unreadable(text)
    return tuple(steps)


def _unreadable(text: str) -> Exception:
    return error("FX0802", f"cannot read the size {text[:80]!r}")
