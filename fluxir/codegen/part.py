"""A part of a program that is translated by itself: a kernel, a recipe, or the host functions.

Invariants: a part names itself `@code` and whatever else it defines `@code.*`, so that its text depends on what it does
alone: equal parts are translated once, and the linker gives them their names. Other parts see only `@code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fluxir.codegen.text import Dialect, Unit

__all__ = ["CODE", "Part", "Piece"]

CODE = "code"


class Piece(NamedTuple):
    """A part's name in the program, and its texts: what LLVM optimises, and what it only translates; one may be empty."""

    name: str
    main: str
    plain: str

    def named(self) -> Piece:
        """The piece with its name in the texts."""
        return Piece(self.name, *(t.replace("@" + CODE, "@" + self.name) for t in (self.main, self.plain)))


class Part:
    """A part under construction: the unit that is optimised, and the unit that is only translated."""

    def __init__(self, dialect: Dialect, attributes: str) -> None:
        self.main, self.plain = Unit(dialect, CODE), Unit(dialect, CODE)
        self.attributes = attributes

    def define(
        self, unit: Unit, result: str, name: str, params: Sequence[str], body: str, shared: bool = False
    ) -> None:
        """A function of this part. One that is `shared` may be called from its other unit, and from other parts."""
        if shared:
            other = self.main if unit is self.plain else self.plain
            other.declare(name, f"hidden {result}", [p.rsplit(" ", 1)[0] for p in params])
        linkage = "hidden" if shared else "internal"
        unit.defines.append(
            f"define {linkage} {result} @{name}({', '.join(params)}) noinline {self.attributes} {{\n{body}\n}}\n"
        )

    def texts(self) -> tuple[str, str]:
        """The units as text; empty where nothing is defined."""
        main, plain = (u.text() if u.defines else "" for u in (self.main, self.plain))
        return main, plain
