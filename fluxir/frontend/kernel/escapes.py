"""`return`, `break` and `continue` moved into place: what is left of a function has one way through it.

What follows an `if` that always leaves goes to its other branch; an escape that is then the last thing to run needs nothing
more. Others become flags: assigned where the escape stands, tested around what follows and by the loops around. A loop says
in `stops` which flags end it, a function returns what `VALUE` holds. Places in the source survive.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence

VALUE, DONE = "__fx_value", "__fx_done"
_ESCAPES = (ast.Return, ast.Break, ast.Continue)


def straightened(body: Sequence[ast.stmt]) -> tuple[list[ast.stmt], bool]:
    """A function's body without escapes, and whether it ends only by returning a value."""
    stmts = _absorbed([copy.deepcopy(s) for s in body])
    flagged = not _at_end(stmts, ast.Return)
    ends = _leaves(stmts)
    out = _Escapes(flagged).block(stmts)
    if flagged:
        out.insert(0, _assign(DONE, ast.Constant(False), body[0]))
    return out, ends


def stops_of(loop: ast.For | ast.While) -> tuple[str, ...]:
    """The flags that end a loop."""
    found: tuple[str, ...] = getattr(loop, "stops", ())
    return found


def _assign(name: str, value: ast.expr, place: ast.AST) -> ast.stmt:
    made = ast.Assign([ast.Name(name, ast.Store())], value)
    for n in ast.walk(made):
        if not hasattr(n, "lineno"):
            ast.copy_location(n, place)
    return made


def _contains(s: ast.AST, kind: type[ast.stmt]) -> bool:
    """Whether a statement holds an escape that leaves it: `return` from everywhere, the others not out of inner loops."""
    if isinstance(s, kind):
        return True
    if isinstance(s, ast.If):
        return any(_contains(x, kind) for x in [*s.body, *s.orelse])
    if isinstance(s, ast.For | ast.While):
        return kind is ast.Return and any(_contains(x, kind) for x in [*s.body, *s.orelse])
    return False


def _leaves(stmts: Sequence[ast.stmt]) -> bool:
    """Whether control never runs past the end of `stmts`."""
    for s in stmts:
        if isinstance(s, (*_ESCAPES, ast.Raise)):
            return True
        if isinstance(s, ast.If) and _leaves(s.body) and _leaves(s.orelse):
            return True
        forever = isinstance(s, ast.While) and isinstance(s.test, ast.Constant) and bool(s.test.value)
        if forever and not any(_contains(x, ast.Break) for x in s.body):  # type: ignore[attr-defined]
            return True
    return False


def _absorbed(stmts: list[ast.stmt]) -> list[ast.stmt]:
    """What follows an `if` that always leaves by one branch, in the other branch; in loops too."""
    for i, s in enumerate(stmts):
        if isinstance(s, ast.For | ast.While):
            s.body = _absorbed(s.body)
        if isinstance(s, _ESCAPES):
            return stmts[: i + 1]
        if not isinstance(s, ast.If):
            continue
        rest = stmts[i + 1 :]
        if any(_contains(s, kind) for kind in _ESCAPES):
            if _leaves(s.body):
                s.orelse, rest = [*s.orelse, *rest], []
            elif _leaves(s.orelse):
                s.body, rest = [*s.body, *rest], []
        s.body, s.orelse = _absorbed(s.body), _absorbed(s.orelse)
        if not rest and i + 1 < len(stmts):
            return stmts[: i + 1]
    return stmts


def _at_end(stmts: Sequence[ast.stmt], kind: type[ast.stmt]) -> bool:
    """Whether every escape of a kind is the last thing that runs in `stmts`."""
    for i, s in enumerate(stmts):
        if not _contains(s, kind) or isinstance(s, kind):
            continue
        if i < len(stmts) - 1 or not isinstance(s, ast.If):
            return False
        if not (_at_end(s.body, kind) and _at_end(s.orelse, kind)):
            return False
    return True


class _Escapes:
    """Replaces the escapes of one function."""

    def __init__(self, flagged: bool) -> None:
        self.flagged = flagged
        self.count = 0
        self.loops: list[tuple[str, str]] = []  # the flags of break and continue of the loops around; "" where not used

    def block(self, stmts: Sequence[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for i, s in enumerate(stmts):
            flags = self.flags_of(s)
            out += self.statement(s)
            rest = stmts[i + 1 :]
            if flags and rest and not isinstance(s, _ESCAPES):
                guard = ast.If(_none_of(flags), self.block(rest), [])
                out.append(_placed(guard, rest[0]))
                break
        return out

    def flags_of(self, s: ast.stmt) -> list[str]:
        """The flags that a statement may set, on which what follows it depends."""
        flags = [DONE] if self.flagged and _contains(s, ast.Return) else []
        if self.loops:
            for kind, flag in zip((ast.Break, ast.Continue), self.loops[-1]):
                if flag and _contains(s, kind):
                    flags.append(flag)
        return flags

    def statement(self, s: ast.stmt) -> list[ast.stmt]:
        match s:
            case ast.Return():
                out = [_assign(VALUE, s.value or ast.Constant(None), s)]
                return [*out, _assign(DONE, ast.Constant(True), s)] if self.flagged else out
            case ast.Break() | ast.Continue() if self.loops:
                flag = self.loops[-1][isinstance(s, ast.Continue)]
                return [_assign(flag, ast.Constant(True), s)] if flag else [_placed(ast.Pass(), s)]
            case ast.If():
                s.body, s.orelse = self.block(s.body) or [_placed(ast.Pass(), s)], self.block(s.orelse)
                return [s]
            case ast.For() | ast.While():
                return self.loop(s)
        return [s]

    def loop(self, s: ast.For | ast.While) -> list[ast.stmt]:
        self.count += 1
        breaks = any(_contains(x, ast.Break) for x in s.body)
        skips = not _at_end(s.body, ast.Continue)
        stop, skip = f"__fx_break_{self.count}" if breaks else "", f"__fx_continue_{self.count}" if skips else ""
        returns = self.flagged and any(_contains(x, ast.Return) for x in s.body)
        self.loops.append((stop, skip))
        body = self.block(s.body) or [_placed(ast.Pass(), s)]
        self.loops.pop()
        before = [_assign(stop, ast.Constant(False), s)] if stop else []
        s.body = [_assign(skip, ast.Constant(False), s), *body] if skip else body
        s.stops = (*([stop] if stop else []), *([DONE] if returns else []))  # type: ignore[union-attr]
        otherwise, s.orelse = self.block(s.orelse), []
        if otherwise and stops_of(s):
            otherwise = [_placed(ast.If(_none_of(stops_of(s)), otherwise, []), s)]
        return [*before, s, *otherwise]


def _none_of(flags: Sequence[str]) -> ast.expr:
    free: list[ast.expr] = [ast.UnaryOp(ast.Not(), ast.Name(f, ast.Load())) for f in flags]
    return ast.BoolOp(ast.And(), free) if len(free) > 1 else free[0]


def _placed(node: ast.stmt, place: ast.AST) -> ast.stmt:
    for n in ast.walk(node):
        if not hasattr(n, "lineno") and isinstance(n, ast.expr | ast.stmt):
            ast.copy_location(n, place)
    return node


__all__ = ["DONE", "VALUE", "stops_of", "straightened"]
