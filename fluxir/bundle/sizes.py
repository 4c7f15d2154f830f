"""Size expressions as C statements.

Each step is a call of a checked function (`size_add`, `size_mul` ... of templates/sizes.c), which notes an overflow or a
division by 0; equal subexpressions are computed once.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from fluxir.errors import error
from fluxir.runtime import sizes

__all__ = ["SizeWriter"]

_FUNCTIONS: dict[Any, str] = {
    operator.add: "size_add", operator.sub: "size_sub", operator.mul: "size_mul", operator.floordiv: "size_floordiv",
    operator.mod: "size_mod", max: "size_max", min: "size_min",
}  # fmt: skip


class SizeWriter:
    """Collects statements in `lines`. `known`: the C expression of each symbol; they may not change meanwhile; `bad`: of the
    address of the int that notes what goes wrong."""

    def __init__(self, known: Mapping[str, str], bad: str = "&bad") -> None:
        self.known, self.bad = dict(known), bad
        self.lines: list[str] = []
        self._names: dict[tuple[str, ...], str] = {}

    def value(self, size: int | str) -> str:
        """The C expression of a size: a number or a name."""
        if isinstance(size, int):
            return _number(size)
        stack: list[str] = []
        for step in sizes.parsed(size):
            if isinstance(step, int):
                stack.append(_number(step))
            elif isinstance(step, str):
                stack.append(self.known[step])
            else:
                right = stack.pop()
                stack[-1] = self._let(_FUNCTIONS[step], stack[-1], right)
        return stack[-1]

    def product(self, shape: list[int | str], item: int = 1) -> str:
        """The elements of a shape, times `item`."""
        fixed, out = item, ""
        for d in shape:
            if isinstance(d, int):
                fixed *= d
            else:
                out = self._let("size_mul", out, self.value(d)) if out else self.value(d)
        if not out:
            return _number(fixed)
        return self._let("size_mul", out, _number(fixed)) if fixed != 1 else out

    def _let(self, function: str, left: str, right: str) -> str:
        key = (function, left, right)
        if key not in self._names:
            name = self._names[key] = f"t{len(self._names)}"
            self.lines.append(f"const int64_t {name} = {function}({left}, {right}, {self.bad});")
        return self._names[key]


def _number(n: int) -> str:
    if not -(2**63) < n < 2**63:
        raise error("FX0609", f"a size of {n} is larger than any machine can hold")
    return f"INT64_C({n})" if n >= 0 else f"(-INT64_C({-n}))"
