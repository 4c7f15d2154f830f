"""The source of a `@fx.function`, rewritten so that Python control flow can be staged.

Owns the AST rewrite and nothing of its meaning: `if`, `for`, `while`, `and`, `or`, `not`, chained comparisons, the
ternary, `assert` and `x[i] = v` become calls of `flow`, which decides at run time: a Python value runs as Python
does, a traced value becomes IR control flow. Bodies become local functions of the variables they assign.

`return`, `break` and `continue` are first moved into place: statements after an `if` that always returns go to its
other branch; what is left becomes a flag that guards the statements after it. Line and column numbers survive, so
errors and IR locations show the user's source. Only the user's own function is compiled again, never data.
"""

from __future__ import annotations

import ast
import copy
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import Location, error
from fluxir.frontend.pyexpr import (
    AUGMENTED,
    RUNTIME,
    Expressions,
    Matches,
    assign,
    call,
    name_,
    placed,
    spread,
    strings,
    thunk,
)

# Names of ours that are read in the block that assigns them, and nowhere after it.
PASSING = ("__fx_key_", "__fx_whole_", "__fx_element_", "__fx_subject_")
COPY_LIMIT = 2000  # syntax nodes; what follows an `if` with returns on some paths is copied up to this size
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def convert(fn: Callable[..., Any], runtime: Any) -> Callable[..., Any]:
    """`fn` rewritten, sharing its globals, closure and defaults. FX0312 without source, FX0308 for what has no meaning."""
    where = fn.__code__
    if RUNTIME in where.co_freevars:
        return fn  # defined inside a rewritten function, and rewritten with it
    tree, offset = _parse(fn)
    rewriter = _Function(fn.__code__.co_filename, offset)
    new = rewriter.function(tree)
    free = list(where.co_freevars)
    factory = ast.parse(f"def __fx_factory({', '.join([RUNTIME, *free])}):\n return None").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body = [new, ast.Return(ast.Name(new.name, ast.Load()))]
    module = ast.Module([factory], [])
    ast.fix_missing_locations(module)
    ast.increment_lineno(module, offset)
    space: dict[str, Any] = {}
    exec(compile(module, where.co_filename, "exec"), fn.__globals__, space)  # noqa: S102  (the user's own function)
    template = space["__fx_factory"](runtime, *[None] * len(free))
    cells = dict(zip(free, fn.__closure__ or (), strict=True))
    cells[RUNTIME] = types.CellType(runtime)
    closure = tuple(cells[n] for n in template.__code__.co_freevars)
    code = _named(template.__code__, where.co_name).replace(co_qualname=where.co_qualname)
    out = types.FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__, closure)
    out.__kwdefaults__ = fn.__kwdefaults__
    out.__dict__.update(fn.__dict__)
    return out


def _named(code: types.CodeType, name: str) -> types.CodeType:
    """The code of a function and of the pieces it was cut into, all under the user's name for it, as locations show it."""
    inner = []
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            piece = c.co_name.startswith("__fx_") or c.co_name == "<lambda>" and not c.co_argcount
            c = _named(c, name if piece else c.co_name)
        inner.append(c)
    return code.replace(co_consts=tuple(inner), co_name=name)


def _parse(fn: Callable[..., Any]) -> tuple[ast.FunctionDef, int]:
    """The function's definition, and what to add to its line numbers."""
    name = getattr(fn, "__name__", "the function")
    try:
        # Of the code: asked about the function, inspect would give what a decorator's wrapper wraps.
        lines, first = inspect.getsourcelines(fn.__code__)
    except (OSError, TypeError):
        raise error(
            "FX0312",
            f"the source of {name!r} is not available",
            help="define it in a file, or use fx.cond, fx.while_loop and fx.scan",
        ) from None
    source = "".join(lines)
    try:
        # An indented definition is parsed inside an `if`, which keeps its columns.
        indented = source[:1].isspace()
        body = ast.parse("if 1:\n" + source if indented else source).body
        tree = body[0].body[0] if indented else body[0]  # type: ignore[attr-defined]
    except SyntaxError:
        tree = None
    if not isinstance(tree, ast.FunctionDef):
        kind = "a lambda" if name == "<lambda>" else "no plain function"
        raise error("FX0312", f"{name!r} is {kind}: its source cannot be rewritten", help="write it with def",
                    loc=Location(fn.__code__.co_filename, fn.__code__.co_firstlineno))  # fmt: skip
    return tree, first - 1 - indented


class _Names(ast.NodeVisitor):
    """Names that statements assign in their own scope, in order of appearance."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store | ast.Del):
            self.found[node.id] = None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not node.name.startswith("__fx_"):
            self.found[node.name] = None

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.found[node.name] = None

    def visit_Lambda(self, node: ast.Lambda) -> None:
        pass

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)  # its targets are its own

    def visit_alias(self, node: ast.alias) -> None:
        self.found[(node.asname or node.name).split(".")[0]] = None

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.generic_visit(node)


def assigned(stmts: Sequence[ast.AST]) -> list[str]:
    v = _Names()
    for s in stmts:
        v.visit(s)
    return [n for n in v.found if not n.startswith(PASSING)]


def _contains(stmts: Sequence[ast.AST], kinds: tuple[type, ...], into_loops: bool = True) -> bool:
    """Whether statements hold one of `kinds` in this function (and, without `into_loops`, for this loop)."""
    for s in stmts:
        if isinstance(s, kinds):
            return True
        if isinstance(s, _SCOPES) or (not into_loops and isinstance(s, ast.For | ast.While)):
            if not into_loops and isinstance(s, ast.For | ast.While) and _contains(s.orelse, kinds, False):
                return True
            continue
        if _contains(list(ast.iter_child_nodes(s)), kinds, into_loops):
            return True
    return False


def _terminates(stmts: Sequence[ast.stmt]) -> bool:
    """Whether control never runs past the end of `stmts`."""
    for s in stmts:
        if isinstance(s, ast.Return | ast.Raise):
            return True
        if isinstance(s, ast.If) and _terminates(s.body) and _terminates(s.orelse):
            return True
        if isinstance(s, ast.With) and _terminates(s.body):
            return True
    return False


def _absorb(stmts: list[ast.stmt]) -> list[ast.stmt]:
    """Move what follows an `if` that returns in one branch into the other branch."""
    for i, s in enumerate(stmts):
        if isinstance(s, ast.If) and _contains([s], (ast.Return,)):
            rest = stmts[i + 1 :]
            if _terminates(s.body) and not _terminates(s.orelse):
                s.orelse = [*s.orelse, *rest]
            elif _terminates(s.orelse) and not _terminates(s.body):
                s.body = [*s.body, *rest]
            elif rest and not _terminates(s.body):
                # Each branch returns on some path only: what follows is copied into both, so that a variable is read
                # only on paths that assign it.
                if sum(1 for r in rest for _ in ast.walk(r)) > COPY_LIMIT:
                    continue
                s.body, s.orelse = [*s.body, *copy.deepcopy(rest)], [*s.orelse, *rest]
            s.body, s.orelse = _absorb(s.body), _absorb(s.orelse)
            return [*stmts[:i], s]
    return stmts


def _only_tail_returns(stmts: Sequence[ast.stmt]) -> bool:
    """Whether every return is the last thing that runs, so that an `if` that returns can return its result."""
    for i, s in enumerate(stmts):
        last = i == len(stmts) - 1
        if isinstance(s, ast.If) and _contains([s], (ast.Return,)):
            if not last or not (_terminates(s.body) and _terminates(s.orelse)):
                return False
            if not _only_tail_returns(s.body) or not _only_tail_returns(s.orelse):
                return False
        elif not isinstance(s, ast.Return) and _contains([s], (ast.Return,)):
            return False
    return True


class _Function:
    """Rewrites one function. Statement lists go through `block`, expressions through `_Expressions`."""

    def __init__(self, file: str, offset: int) -> None:
        self.file, self.offset = file, offset
        self.count = 0
        self.flags = False  # returns are flags
        self.branch_returns = False  # in a branch of an `if` whose branches both return
        self.loops: list[tuple[str | None, str | None]] = []  # (break flag, continue flag) of the loops around
        # Names this function binds. `x[i] = v` on any other changes an object of someone else, which a rebinding here
        # would hide; it stays as it is, and the tensor refuses it where the change would be lost (FX0304).
        self.locals: set[str] = set()

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"__fx_{kind}_{self.count}"

    def refuse(self, node: ast.AST, what: str, instead: str) -> Exception:
        return error("FX0308", f"{what} cannot be used in @fx.function", help=instead,
                     loc=Location(self.file, self.offset + getattr(node, "lineno", 1),
                                  getattr(node, "col_offset", -1) + 1))  # fmt: skip

    def function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        new = copy.deepcopy(node)
        new.name = "__fx_function"  # its own name in the body means the caller's, which recursion goes through
        new.decorator_list = []
        new.returns = None
        for a in [*new.args.posonlyargs, *new.args.args, *new.args.kwonlyargs, new.args.vararg, new.args.kwarg]:
            if a is not None:
                a.annotation = None
        new.args.defaults = [ast.Constant(None) for _ in new.args.defaults]
        new.args.kw_defaults = [None if d is None else ast.Constant(None) for d in new.args.kw_defaults]
        self.check(new)
        new.body = self.body(new.body)
        return new

    def check(self, node: ast.FunctionDef) -> None:
        a = node.args
        parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *[p for p in (a.vararg, a.kwarg) if p is not None]]
        self.locals = {p.arg for p in parameters}
        for n in _own_nodes(node.body):
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
                self.locals.add(n.id)
            if isinstance(n, ast.Yield | ast.YieldFrom):
                raise self.refuse(n, "a generator (yield)", "return a list, or use fx.scan")
            if isinstance(n, ast.Await | ast.AsyncFor | ast.AsyncWith):
                raise self.refuse(n, "async code", "make it an ordinary function")
            if isinstance(n, ast.Global | ast.Nonlocal):
                word = "global" if isinstance(n, ast.Global) else "nonlocal"
                raise self.refuse(
                    n,
                    f"{word} {', '.join(n.names)}",
                    "return the value instead: a staged branch cannot assign outer variables",
                )

    def body(self, stmts: list[ast.stmt]) -> list[ast.stmt]:
        """A function body: returns first, then everything else."""
        chains = Matches(self.fresh)
        stmts = _absorb([made for b in stmts for made in chains.statements(b)])
        self.flags = not _only_tail_returns(stmts)
        if not self.flags:
            return self.block(stmts) or [ast.Pass()]
        start = (
            assign("__fx_done", ast.Constant(False)),
            assign("__fx_value", call("undefined", ast.Constant("the result"))),
        )
        always = ast.Constant(_terminates(stmts))
        end = ast.Return(call("result", name_("__fx_done"), name_("__fx_value"), always))
        return [*start, *self.block(stmts), end]

    # ---- statements
    def block(self, stmts: Sequence[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for i, s in enumerate(stmts):
            flags = self.may_set(s)
            out += self.statement(s)
            if isinstance(s, ast.Return | ast.Break | ast.Continue):
                break  # nothing runs after it
            if flags and i + 1 < len(stmts):
                rest = ast.If(call("none_of", *[name_(f) for f in flags]), list(stmts[i + 1 :]), [])
                out += self.statement(placed(rest, stmts[i + 1]))
                break
        return out

    def may_set(self, s: ast.stmt) -> list[str]:
        """The flags that `s` may set, on which what follows it depends."""
        flags = []
        if self.flags and _contains([s], (ast.Return,)):
            flags.append("__fx_done")
        if self.loops:
            stop, skip = self.loops[-1]
            if stop and _contains([s], (ast.Break,), False):
                flags.append(stop)
            if skip and _contains([s], (ast.Continue,), False):
                flags.append(skip)
        return flags

    def statement(self, s: ast.stmt) -> list[ast.stmt]:
        if isinstance(
            s, ast.Expr | ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Assert | ast.If | ast.For
        ):
            field = {ast.If: "test", ast.Assert: "test", ast.For: "iter"}.get(type(s), "value")
            value = getattr(s, field)
            if value is not None:
                before, value = spread(value, self.fresh)
                if before:
                    s = copy.copy(s)
                    setattr(s, field, value)
                    return [made for b in [*before, s] for made in self.statement(b)]
        match s:
            case ast.If():
                return self.if_(s)
            case ast.While():
                return self.while_(s)
            case ast.For():
                return self.for_(s)
            case ast.Return():
                value = placed(call("given", self.expr(s.value)), s) if s.value is not None else ast.Constant(None)
                if not self.flags:
                    return [placed(ast.Return(value), s)]
                return [placed(assign("__fx_value", value), s), placed(assign("__fx_done", ast.Constant(True)), s)]
            case ast.Break() | ast.Continue():
                flag = self.loops[-1][0 if isinstance(s, ast.Break) else 1]
                assert flag is not None
                return [placed(assign(flag, ast.Constant(True)), s)]
            case ast.Assert():
                message = ast.Constant(None) if s.msg is None else self.expr(s.msg)
                return [
                    placed(
                        ast.Expr(
                            call("assert_", thunk(self.test(s.test)), thunk(message), ast.Constant(ast.unparse(s.test)))
                        ),
                        s,
                    )
                ]
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name)) as target]) if name in self.locals:
                return [
                    placed(
                        assign(
                            name,
                            call(
                                "setitem", name_(name), self.index(target.slice), self.expr(s.value), ast.Constant(name)
                            ),
                        ),
                        s,
                    )
                ]
            case ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name)) as target) if name in self.locals:
                key = self.fresh("key")
                word = ast.Constant(AUGMENTED[type(s.op)])
                update = call("augitem", name_(name), name_(key), word, self.expr(s.value), ast.Constant(name))
                return [placed(assign(key, self.index(target.slice)), s), placed(assign(name, update), s)]
            case ast.Assign() if any(map(self.takes_apart, s.targets)):
                return self.take_apart(s)
            case ast.AnnAssign(target=ast.Subscript()) if s.value is not None:
                return self.statement(placed(ast.Assign([s.target], s.value), s))
            case ast.FunctionDef():
                inner = _Function(self.file, self.offset)
                inner.count = self.count + 1000
                new = copy.deepcopy(s)
                inner.check(new)
                new.body = inner.body(new.body)
                if any(isinstance(n, ast.Name) and n.id == s.name for b in s.body for n in ast.walk(b)):
                    # It may call itself on traced values.
                    return [new, placed(assign(s.name, call("nested", name_(s.name))), s)]
                return [new]
            case ast.With():
                new_with = copy.copy(s)
                new_with.items = [self.expr(i) for i in s.items]
                new_with.body = self.block(s.body) or [ast.Pass()]
                return [new_with]
            case ast.Try():
                new_try = copy.copy(s)
                new_try.body, new_try.orelse, new_try.finalbody = (
                    self.block(s.body),
                    self.block(s.orelse),
                    self.block(s.finalbody),
                )
                new_try.handlers = [
                    placed(ast.ExceptHandler(h.type, h.name, self.block(h.body)), h) for h in s.handlers
                ]
                return [new_try]
            case ast.Delete() if all(isinstance(t, ast.Name) for t in s.targets):
                gone = [t.id for t in s.targets if isinstance(t, ast.Name)]
                return [placed(assign(n, call("undefined", ast.Constant(n))), s) for n in gone]
            case ast.Raise() if s.exc is not None and s.cause is None:
                problem = call("raise_", thunk(self.expr(s.exc)))
                return [placed(ast.Return(problem) if self.branch_returns else ast.Expr(problem), s)]
            case ast.Match():
                new_match = copy.copy(s)
                new_match.subject = self.expr(s.subject)
                new_match.cases = [
                    ast.match_case(c.pattern, c.guard and self.expr(c.guard), self.block(c.body)) for c in s.cases
                ]
                return [new_match]
        return [self.expr(s)]

    def takes_apart(self, target: ast.expr) -> bool:
        """Whether an assignment changes elements of local variables among several targets."""
        return any(isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name)
                   and n.value.id in self.locals for n in ast.walk(target))  # fmt: skip

    def take_apart(self, s: ast.Assign) -> list[ast.stmt]:
        """`x[i], y = a, b` and `x[i] = y = a`: the value first, then the targets one by one."""
        value = self.fresh("whole")
        out = self.statement(placed(assign(value, s.value), s))
        for target in s.targets:
            later: list[ast.stmt] = []
            parts = _Elements(self, later).visit(copy.deepcopy(target))
            out.append(placed(ast.Assign([parts], name_(value)), s))
            out += [made for b in later for made in self.statement(placed(b, s))]
        return out

    def if_(self, s: ast.If) -> list[ast.stmt]:
        test = self.test(s.test)
        if not self.flags and _terminates(s.body) and _terminates(s.orelse) and _contains([s], (ast.Return,)):
            then, other = self.fresh("then"), self.fresh("else")
            outer, self.branch_returns = self.branch_returns, True
            body, orelse = self.block(s.body), self.block(s.orelse)
            names = assigned([*body, *orelse])
            functions = [self.local(then, names, body, s, False), self.local(other, names, orelse, s, False)]
            self.branch_returns = outer
            return [
                *functions,
                placed(ast.Return(call("if_return", test, name_(then), name_(other), self.values(names))), s),
            ]
        then, other = self.fresh("then"), self.fresh("else")
        outer, self.branch_returns = self.branch_returns, False
        body, orelse = self.block(s.body), self.block(s.orelse)
        self.branch_returns = outer
        names = assigned([*body, *orelse])
        functions = [self.local(then, names, body, s), self.local(other, names, orelse, s)]
        run = call("if_", test, name_(then), name_(other), strings(names), self.values(names))
        return [*functions, placed(self.unpack(names, run), s)]

    def loop_flags(self, body: Sequence[ast.stmt]) -> tuple[str | None, str | None]:
        stop = self.fresh("break") if _contains(body, (ast.Break,), False) else None
        skip = self.fresh("continue") if _contains(body, (ast.Continue,), False) else None
        return stop, skip

    def loop_body(self, stmts: Sequence[ast.stmt], flags: tuple[str | None, str | None]) -> list[ast.stmt]:
        self.loops.append(flags)
        outer, self.branch_returns = self.branch_returns, False
        out = self.block(stmts)
        self.branch_returns = outer
        self.loops.pop()
        return [assign(flags[1], ast.Constant(False)), *out] if flags[1] else out

    def while_(self, s: ast.While) -> list[ast.stmt]:
        flags = self.loop_flags(s.body)
        body = self.loop_body(s.body, flags)
        stops = [f for f in (flags[0], "__fx_done" if self.flags and _contains(s.body, (ast.Return,)) else None) if f]
        first: list[ast.stmt] = []
        if any(isinstance(n, ast.NamedExpr) for n in ast.walk(s.test)):
            # A condition that assigns is evaluated before the loop and after each turn that does not end it.
            again = self.fresh("again")
            step: ast.stmt = placed(assign(again, s.test), s.test)
            first = self.statement(step)
            if stops:
                step = placed(ast.If(call("none_of", *[name_(f) for f in stops]), [step], []), s.test)
            body = [*body, *self.statement(step)]
            s = placed(ast.While(placed(name_(again), s.test), s.body, s.orelse), s)
        test, each = self.fresh("test"), self.fresh("body")
        names = assigned(body)
        condition = self.test(s.test)
        if stops:
            condition = call("both", call("none_of", *[name_(f) for f in stops]), thunk(condition))
        functions = [
            self.local(test, names, [placed(ast.Return(condition), s.test)], s, False),
            self.local(each, names, body, s),
        ]
        run = call("while_", name_(test), name_(each), strings(names), self.values(names))
        return [*self.before(flags), *first, *functions, placed(self.unpack(names, run), s), *self.loop_else(s, flags)]

    def for_(self, s: ast.For) -> list[ast.stmt]:
        flags = self.loop_flags(s.body)
        item, each = self.fresh("item"), self.fresh("body")
        body = [*self.statement(placed(ast.Assign([s.target], name_(item)), s)), *self.loop_body(s.body, flags)]
        names = assigned(body)
        stops = [f for f in (flags[0], "__fx_done" if self.flags and _contains(s.body, (ast.Return,)) else None) if f]
        source = self.expr(s.iter)
        function = self.local(each, [item, *names], body, s, True, names)
        run = call("for_", source, name_(each), strings(names), self.values(names), strings(stops))
        return [*self.before(flags), function, placed(self.unpack(names, run), s), *self.loop_else(s, flags)]

    def before(self, flags: tuple[str | None, str | None]) -> list[ast.stmt]:
        return [assign(f, ast.Constant(False)) for f in flags if f]

    def loop_else(self, s: ast.While | ast.For, flags: tuple[str | None, str | None]) -> list[ast.stmt]:
        if not s.orelse:
            return []
        stops = [f for f in (flags[0], "__fx_done" if self.flags and _contains(s.body, (ast.Return,)) else None) if f]
        if not stops:
            return self.block(s.orelse)
        return self.statement(placed(ast.If(call("none_of", *[name_(f) for f in stops]), s.orelse, []), s.orelse[0]))

    # ---- pieces
    def local(
        self,
        name: str,
        params: Sequence[str],
        body: list[ast.stmt],
        at: ast.AST,
        give: bool = True,
        names: Sequence[str] | None = None,
    ) -> ast.stmt:
        """`def name(params): body; return (names,)`."""
        end: list[ast.stmt] = []
        if give:
            given = ast.Tuple([name_(n) for n in (params if names is None else names)], ast.Load())
            end = [ast.Return(given)]
        args = ast.arguments([], [ast.arg(p) for p in params], None, [], [], None, [])
        made = ast.FunctionDef(name, args, [*body, *end] or [ast.Pass()], [], None)
        if hasattr(ast, "TypeAlias"):  # Python 3.12 and later
            made.type_params = []  # type: ignore[attr-defined]
        return placed(made, at)

    def values(self, names: Sequence[str]) -> ast.expr:
        """A tuple of the variables as they are now; one that has no value yet becomes `Undefined`."""
        return ast.Tuple([call("get", thunk(name_(n)), ast.Constant(n)) for n in names], ast.Load())

    def unpack(self, names: Sequence[str], value: ast.expr) -> ast.stmt:
        if not names:
            return ast.Expr(value)
        return ast.Assign([ast.Tuple([ast.Name(n, ast.Store()) for n in names], ast.Store())], value)

    def index(self, node: ast.expr) -> ast.expr:
        """A subscript as a value: slices become `slice(...)`."""
        if isinstance(node, ast.Slice):
            parts = [ast.Constant(None) if p is None else self.expr(p) for p in (node.lower, node.upper, node.step)]
            return call("slice", *parts)
        if isinstance(node, ast.Tuple):
            return ast.Tuple([self.index(e) for e in node.elts], ast.Load())
        out: ast.expr = self.expr(node)
        return out

    def test(self, node: ast.expr) -> ast.expr:
        """A condition."""
        return Expressions().test(copy.deepcopy(node))

    def expr(self, node: Any) -> Any:
        return Expressions().visit(copy.deepcopy(node))


class _Elements(ast.NodeTransformer):
    """Targets `x[i]` on local variables replaced by names, which `later` assigns to the elements."""

    def __init__(self, function: _Function, later: list[ast.stmt]) -> None:
        self.function, self.later = function, later

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if not self.function.takes_apart(node):
            return node
        name: str = self.function.fresh("element")
        self.later.append(ast.Assign([node], name_(name)))
        return ast.Name(name, ast.Store())


def _own_nodes(stmts: Sequence[ast.AST]) -> Any:
    """All nodes of these statements outside nested scopes."""
    for s in stmts:
        yield s
        if not isinstance(s, _SCOPES):
            yield from _own_nodes(list(ast.iter_child_nodes(s)))
