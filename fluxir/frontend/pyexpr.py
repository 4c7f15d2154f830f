"""Expressions of a rewritten function, and the small pieces of syntax that the rewrite is made of.

`and`, `or`, `not`, ternaries, chained comparisons and calls inside one expression become calls of `flow`. What Python
evaluates later or not at all goes there as a lambda. A lambda has variables of its own, so an expression that assigns in
such a place (`a and (n := f())`) is first spread over statements by `spread`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

N = TypeVar("N", bound=ast.AST)
RUNTIME = "__fx"
_OPERATORS = {
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
    ast.In: "in", ast.NotIn: "not_in", ast.Is: "is", ast.IsNot: "is_not",
}  # fmt: skip
AUGMENTED = {
    ast.Add: "iadd", ast.Sub: "isub", ast.Mult: "imul", ast.Div: "itruediv", ast.FloorDiv: "ifloordiv", ast.Mod: "imod",
    ast.Pow: "ipow", ast.MatMult: "imatmul", ast.BitAnd: "iand", ast.BitOr: "ior", ast.BitXor: "ixor",
    ast.LShift: "ilshift", ast.RShift: "irshift",
}  # fmt: skip
KEPT_CALLS = ("super", "locals", "globals", "vars", "eval", "exec", "dir")  # they look at the frame that calls them


class Expressions(ast.NodeTransformer):
    """The rewrite of one expression or simple statement. `test` is for conditions, where only the truth counts."""

    def test(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.BoolOp):
            word = "both" if isinstance(node.op, ast.And) else "either"
            return self._fold(word, node, [self.test(v) for v in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return placed(call("not_", self.test(node.operand)), node)
        out: ast.expr = self.visit(node)
        return out

    def _fold(self, word: str, node: ast.expr, values: list[ast.expr]) -> ast.expr:
        out = values[-1]
        for v in reversed(values[:-1]):
            out = placed(call(word, v, thunk(out)), node)
        return out

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        return self._fold("and_" if isinstance(node.op, ast.And) else "or_", node, node.values)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.Not):
            return self.test(node)
        self.generic_visit(node)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        return placed(
            call("ifexp", self.test(node.test), thunk(self.visit(node.body)), thunk(self.visit(node.orelse))), node
        )

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) == 1:
            return node
        words = ast.Tuple([ast.Constant(_OPERATORS[type(o)]) for o in node.ops], ast.Load())
        return placed(call("chain", words, node.left, *[thunk(c) for c in node.comparators]), node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        f = node.func
        plain = isinstance(f, ast.Name) and not f.id.startswith(RUNTIME) and f.id not in KEPT_CALLS
        if plain or isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and f.value.id != RUNTIME:
            node.func = placed(call("fn", f), f)
        return node


# ---- assignments inside expressions ---------------------------------------------------------------------------------


def spread(node: ast.expr, fresh: Callable[[str], str]) -> tuple[list[ast.stmt], ast.expr]:
    """Statements, and the expression with what they compute: for expressions that assign where Python may not get to.

    The first such part is moved before the expression, and with it everything that Python evaluates before it.
    """
    if not _needs(node):
        return [], node
    name = fresh("part")
    value = ast.Name(name, ast.Load())
    match node:
        case ast.BoolOp():
            before, first = spread(node.values[0], fresh)
            rest = node.values[1] if len(node.values) == 2 else ast.BoolOp(node.op, node.values[1:])
            if rest is not node.values[1]:
                placed(rest, node)
            inner, second = spread(rest, fresh)
            then: list[ast.stmt] = [*inner, assign(name, second)]
            nothing: list[ast.stmt] = [ast.Pass()]
            yes, no = (then, nothing) if isinstance(node.op, ast.And) else (nothing, then)
            made = [*before, assign(name, first), ast.If(value, yes, no)]
        case ast.IfExp():
            before, test = spread(node.test, fresh)
            sides = [spread(e, fresh) for e in (node.body, node.orelse)]
            blocks = [[*s, assign(name, e)] for s, e in sides]
            made = [*before, ast.If(test, blocks[0], blocks[1])]
        case ast.Compare() if len(node.ops) > 1:
            before, left = spread(node.left, fresh)
            inner, right = spread(node.comparators[0], fresh)
            a, b = fresh("part"), fresh("part")
            rest = placed(ast.Compare(ast.Name(b, ast.Load()), node.ops[1:], node.comparators[1:]), node)
            more, last = spread(rest, fresh)
            first = ast.Compare(ast.Name(a, ast.Load()), node.ops[:1], [ast.Name(b, ast.Load())])
            made = [*before, assign(a, left), *inner, assign(b, right), assign(name, first),
                    ast.If(value, [*more, assign(name, last)], [ast.Pass()])]  # fmt: skip
        case _:
            return _spread_parts(node, fresh)
    return [placed(s, node) for s in made], placed(value, node)


def _spread_parts(node: ast.expr, fresh: Callable[[str], str]) -> tuple[list[ast.stmt], ast.expr]:
    """The parts of an expression that are evaluated in order, up to the last one that assigns, as statements."""
    node = copy.copy(node)
    slots: list[tuple[Any, Any]] = []  # where each part stands: (object, attribute) or (list, index)
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.expr):
            slots.append((node, field))
        elif isinstance(value, list):
            copied = [copy.copy(v) if isinstance(v, ast.keyword) else v for v in value]
            setattr(node, field, copied)
            slots += [
                (v, "value") if isinstance(v, ast.keyword) else (copied, i)
                for i, v in enumerate(copied)
                if isinstance(v, ast.expr | ast.keyword)
            ]
    if isinstance(node, ast.NamedExpr):
        slots = [(node, "value")]
    parts = [where[key] if isinstance(key, int) else getattr(where, key) for where, key in slots]
    last = max((i for i, p in enumerate(parts) if _needs(p)), default=-1)
    out: list[ast.stmt] = []
    for i, ((where, key), part) in enumerate(zip(slots, parts, strict=True)):
        if i > last:
            break
        made, new = spread(part, fresh)
        out += made
        if i < last and not isinstance(part, ast.Constant | ast.Starred):
            name = fresh("part")
            out.append(placed(assign(name, new), part))
            new = placed(ast.Name(name, ast.Load()), part)
        if isinstance(key, int):
            where[key] = new
        else:
            setattr(where, key, new)
    return out, node


def _needs(node: ast.AST) -> bool:
    """Whether a part that Python may not evaluate assigns a variable."""
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return False
    late: list[ast.expr] = []
    if isinstance(node, ast.BoolOp):
        late = node.values[1:]
    elif isinstance(node, ast.IfExp):
        late = [node.body, node.orelse]
    elif isinstance(node, ast.Compare) and len(node.ops) > 1:
        late = node.comparators
    if any(isinstance(n, ast.NamedExpr) for e in late for n in ast.walk(e)):
        return True
    return any(_needs(child) for child in ast.iter_child_nodes(node))


# ---- match --------------------------------------------------------------------------------------------------------


class Matches(ast.NodeTransformer):
    """`match` statements that only compare values, turned into `if` statements."""

    def __init__(self, fresh: Callable[[str], str]) -> None:
        self.fresh = fresh

    def statements(self, s: ast.stmt) -> list[ast.stmt]:
        made = self.visit(s)
        return made if isinstance(made, list) else [made]

    def visit_FunctionDef(self, s: ast.FunctionDef) -> Any:
        return s  # rewritten on its own

    def visit_Match(self, s: ast.Match) -> Any:
        """`match` on values alone: a chain of `if`s, which can be staged."""
        self.generic_visit(s)
        if not all(is_test(c.pattern) for c in s.cases):
            return s
        subject = self.fresh("subject")
        out: list[ast.stmt] = []
        for c in reversed(s.cases):
            test, capture = read_pattern(c.pattern, subject)
            body: list[ast.stmt] = [placed(assign(capture, name_(subject)), c.pattern)] if capture else []
            if c.guard is not None:
                if capture:
                    # The guard reads the captured name: it is tested inside, and what follows runs where it fails.
                    body.append(placed(ast.If(c.guard, c.body, out), c.pattern))
                    if test is None:
                        out = body
                        continue
                    out = [placed(ast.If(test, body, copy.deepcopy(out)), c.pattern)]
                    continue
                test = c.guard if test is None else placed(ast.BoolOp(ast.And(), [test, c.guard]), c.pattern)
            body += c.body
            out = body if test is None else [placed(ast.If(test, body, out), c.pattern)]
        return [placed(assign(subject, s.subject), s.subject), *out]


def is_test(p: ast.pattern) -> bool:
    """Whether a pattern compares with values, or takes everything."""
    if isinstance(p, ast.MatchOr):
        return all(isinstance(q, ast.MatchValue | ast.MatchSingleton) for q in p.patterns)
    return isinstance(p, ast.MatchValue | ast.MatchSingleton) or isinstance(p, ast.MatchAs) and p.pattern is None


def read_pattern(p: ast.pattern, subject: str) -> tuple[ast.expr | None, str | None]:
    """A simple pattern as a condition on `subject` (None: always true), and the name that takes the value."""
    match p:
        case ast.MatchValue():
            return placed(ast.Compare(name_(subject), [ast.Eq()], [p.value]), p), None
        case ast.MatchSingleton():
            return placed(ast.Compare(name_(subject), [ast.Is()], [ast.Constant(p.value)]), p), None
        case ast.MatchOr():
            tests = [t for t in (read_pattern(q, subject)[0] for q in p.patterns) if t is not None]
            return placed(ast.BoolOp(ast.Or(), tests), p), None
        case ast.MatchAs():
            return None, p.name
    raise AssertionError(f"no simple pattern: {type(p).__name__}")


# ---- pieces ---------------------------------------------------------------------------------------------------------


def name_(n: str) -> ast.expr:
    return ast.Name(n, ast.Load())


def assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def call(word: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(name_(RUNTIME), word, ast.Load()), list(args), [])


def thunk(e: ast.expr) -> ast.expr:
    return ast.Lambda(ast.arguments([], [], None, [], [], None, []), e)


def strings(names: Sequence[str]) -> ast.expr:
    return ast.Tuple([ast.Constant(n) for n in names], ast.Load())


def placed(new: N, old: ast.AST) -> N:
    """Give `new` and its parts without a place the place of `old`."""
    ast.copy_location(new, old)
    if getattr(new, "end_lineno", None) != getattr(new, "lineno", None) and not isinstance(new, ast.FunctionDef):
        # A call over several lines would be reported where its last line ends.
        new.end_lineno, new.end_col_offset = new.lineno, new.col_offset + 1  # type: ignore[attr-defined]
    for n in ast.walk(new):
        if "lineno" in getattr(n, "_attributes", ()) and not hasattr(n, "lineno"):
            ast.copy_location(n, new if hasattr(new, "lineno") else old)
    return new
