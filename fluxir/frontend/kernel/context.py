"""The state of one kernel's compilation: the builder, the variables, the functions being inlined, and how things are refused.

Expressions, statements and calls are written as methods on top of this (`Context` -> `Arithmetic` -> `Expressions` ->
`Calls` -> `Statements`). A `Frame` is one Python function: its names are looked up as Python would, in its variables, its
closure, its globals and the builtins.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fluxir.errors import FluxError, Location, error
from fluxir.frontend.kernel.values import Undefined, as_struct
from fluxir.ir.build import Builder

DEPTH = 40  # of functions called from functions


@dataclass
class Frame:
    """One Python function whose body is being compiled."""

    name: str
    file: str
    offset: int  # what to add to the syntax tree's line numbers
    code: Any  # identifies the function, for recursion
    closure: Mapping[str, Any]
    space: Mapping[str, Any]
    names: dict[str, Any] = field(default_factory=dict)

    def location(self, node: ast.AST) -> Location:
        line = self.offset + getattr(node, "lineno", 1)
        return Location(self.file, line, getattr(node, "col_offset", -1) + 1, self.name)


@dataclass(frozen=True, eq=False)
class LocalFunction:
    """A `def` or `lambda` inside a kernel; it sees the variables of the frame it stands in."""

    node: ast.FunctionDef | ast.Lambda
    frame: Frame


class Context:
    """Where code goes and what names mean. `b` is the builder of the region at hand."""

    def __init__(self) -> None:
        self.b = Builder()
        self.frames: list[Frame] = []
        self.places: list[ast.AST] = []
        self.shared_end: Any = 0  # first free byte of the dynamic shared memory

    # ---- places and refusals
    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    @property
    def here(self) -> Location | None:
        return self.frame.location(self.places[-1]) if self.places else None

    def refuse(self, what: str, instead: str, node: ast.AST | None = None) -> FluxError:
        """FX0330: something that has no meaning in a kernel."""
        return error("FX0330", f"{what} cannot be used in a kernel", help=instead, loc=self._place(node))

    def wrong(
        self, message: str, instead: str | None = None, node: ast.AST | None = None, labels: Any = ()
    ) -> FluxError:
        """FX0331: types that do not fit."""
        return error("FX0331", message, help=instead, loc=self._place(node), labels=labels)

    def _place(self, node: ast.AST | None) -> Location | None:
        return self.frame.location(node) if node is not None else self.here

    @contextmanager
    def at(self, node: ast.AST) -> Iterator[None]:
        """What is emitted, and what goes wrong, belongs to `node`."""
        self.places.append(node)
        saved = self.b.loc
        self.b.loc = self.here
        try:
            yield
        except FluxError as e:
            if e.loc is None:
                e.loc = self.here
            raise
        finally:
            self.places.pop()
            self.b.loc = saved

    # ---- names
    def lookup(self, name: str) -> Any:
        f = self.frame
        if name in f.names:
            x = f.names[name]
            if isinstance(x, Undefined):
                raise self.wrong(
                    f"the variable {name!r} may be unassigned here{x.why}", "assign it before, on every path"
                )
            return x
        for space in (f.closure, f.space, vars(builtins)):
            if name in space:
                return as_struct(space[name])
        raise self.wrong(f"the name {name!r} is not defined", "kernels see their arguments, closure and globals")

    # ---- regions
    @contextmanager
    def region(self) -> Iterator[Region]:
        """Code in a builder and with variables of its own."""
        inner = Builder(self.b.loc)
        inner._consts.update(self.b._consts)
        r = Region(inner, dict(self.frame.names))
        saved = self.b, self.frame.names
        self.b, self.frame.names = r.builder, r.names
        try:
            yield r
        finally:
            r.names = self.frame.names  # loops replace the dictionary
            self.b, self.frame.names = saved


@dataclass
class Region:
    """The code of a branch or a loop's body, and the variables at its end."""

    builder: Builder
    names: dict[str, Any]
    value: Any = None


def frame_of(fn: Callable[..., Any]) -> tuple[Frame, ast.FunctionDef | ast.Lambda]:
    """The frame and the syntax tree of a Python function. FX0312 where its source is not available."""
    from fluxir.frontend.pyast import _parse

    code = fn.__code__
    node: ast.FunctionDef | ast.Lambda
    if fn.__name__ == "<lambda>":
        node, offset = _lambda(fn)
    else:
        node, offset = _parse(fn)
    closure = {}
    for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            closure[name] = cell.cell_contents
    return Frame(fn.__name__, code.co_filename, offset, code, closure, fn.__globals__), node


def _lambda(fn: Callable[..., Any]) -> tuple[ast.Lambda, int]:
    """The syntax tree of a lambda that stands alone on its line."""
    code = fn.__code__
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse("".join(lines).strip())
    except (OSError, TypeError, SyntaxError):
        tree, first = ast.Module([], []), code.co_firstlineno
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda)]
    if len(found) != 1:
        raise error("FX0312", "the source of a lambda is not available", help="write it with def",
                    loc=Location(code.co_filename, code.co_firstlineno))  # fmt: skip
    return found[0], first - 1


__all__ = ["DEPTH", "Context", "Frame", "LocalFunction", "Region", "frame_of"]
