"""Statements of kernels: assignments, branches, loops, assertions; and what passes through branches and loops.

A variable that a branch or a loop assigns is a result of the `if`, or a carry of the loop, in the form that all paths agree
on. What type a loop carries is found by compiling its body with a guess and joining what comes out, until nothing changes.
A variable that not every path assigns is unusable afterwards: reading it is an error that says so.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fluxir.errors import FluxError
from fluxir.frontend.kernel.arithmetic import BINARY
from fluxir.frontend.kernel.calls import Calls
from fluxir.frontend.kernel.context import LocalFunction, Region
from fluxir.frontend.kernel.escapes import VALUE, stops_of
from fluxir.frontend.kernel.values import (
    Array,
    Form,
    Num,
    Range,
    Undefined,
    at_run_time,
    describe,
    form_of,
    into,
    out_of,
    types_in,
    unify,
)
from fluxir.ir.core import Block, Value
from fluxir.ir.dtypes import DType
from fluxir.ir.types import INDEX

TRIES = 8  # guesses of what a loop carries
T = TypeVar("T")
UNROLLED = 1024  # iterations of a loop that is written out


class Statements(Calls):
    """`block` compiles statements in order."""

    def block(self, stmts: Sequence[ast.stmt]) -> None:
        for s in stmts:
            self.statement(s)

    def statement(self, s: ast.stmt) -> None:
        with self.at(s):
            method: Callable[[Any], None] | None = getattr(self, "do_" + type(s).__name__, None)
            if method is None:
                raise self.refuse(*_REFUSED.get(type(s), ("this statement", "kernels take a subset of Python")))
            method(s)

    def do_Pass(self, s: ast.Pass) -> None:
        pass

    def do_Expr(self, s: ast.Expr) -> None:
        if not isinstance(s.value, ast.Constant):  # a docstring
            self.expr(s.value)

    def do_FunctionDef(self, s: ast.FunctionDef) -> None:
        if s.decorator_list:
            raise self.refuse("a decorator", "write a plain function")
        self.frame.names[s.name] = LocalFunction(s, self.frame)

    def do_Import(self, s: ast.Import) -> None:
        raise self.refuse("import", "import at the top of the file")

    do_ImportFrom = do_Import

    # ---- assignments
    def do_Assign(self, s: ast.Assign) -> None:
        value = self.expr(s.value)
        for target in s.targets:
            self.assign(target, value)

    def do_AnnAssign(self, s: ast.AnnAssign) -> None:
        if s.value is None:
            return
        value = self.expr(s.value)
        wanted = self.expr(s.annotation) if not isinstance(s.annotation, ast.Constant) else None
        if isinstance(wanted, DType):
            value = self.converted(value, wanted)
        self.assign(s.target, value)

    def do_AugAssign(self, s: ast.AugAssign) -> None:
        if type(s.op) not in BINARY:
            raise self.refuse("@=", "write the loops")
        name, python = BINARY[type(s.op)]
        if isinstance(s.target, ast.Subscript):
            x = self.expr(s.target.value)
            at = self.subscripts(s.target.slice)
            if not isinstance(x, Array):
                raise self.refuse(f"assignment to an element of {describe(x)}", "assign the whole value anew")
            old = self.read(x, at)
            self.write(x, at, self.binary(name, python, self.plain(old), self.plain(self.expr(s.value))))
            return
        if not isinstance(s.target, ast.Name):
            raise self._attribute(s.target)
        old = self.lookup(s.target.id)
        self.assign(s.target, self.binary(name, python, self.plain(old), self.plain(self.expr(s.value))))

    def assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name():
                if isinstance(value, Num) and not value.value.name and not target.id.startswith("__fx"):
                    value.value.name = target.id if value.value.owner is not None else value.value.name
                self.frame.names[target.id] = value
            case ast.Tuple() | ast.List():
                parts = self.elements(value, "what is unpacked")
                if any(isinstance(t, ast.Starred) for t in target.elts):
                    raise self.refuse("a starred target", "name the parts")
                if len(parts) != len(target.elts):
                    raise self.wrong(f"{len(parts)} values are unpacked into {len(target.elts)} names")
                for t, x in zip(target.elts, parts, strict=True):
                    self.assign(t, x)
            case ast.Subscript():
                x = self.expr(target.value)
                at = self.subscripts(target.slice)
                if isinstance(x, Num) and x.lanes:
                    raise self.refuse("assignment to a lane", "make the vector anew: fx.gpu.vector(...)")
                if not isinstance(x, Array):
                    raise self.refuse(f"assignment to an element of {describe(x)}", "assign the whole value anew")
                self.write(x, at, value)
            case _:
                raise self._attribute(target)

    def _attribute(self, target: ast.expr) -> FluxError:
        return self.refuse("assignment to an attribute", "make the object anew: p = Point(p.x + 1, p.y)", target)

    def do_Assert(self, s: ast.Assert) -> None:
        c = self.truth(self.expr(s.test))
        message = ast.unparse(s.test) if s.msg is None else str(self.expr(s.msg))
        if isinstance(c, Num):
            self.b.emit("assert", c.value, message=message)
        elif not c:
            raise self.wrong(f"the assertion does not hold: {message}")

    # ---- branches
    def do_If(self, s: ast.If) -> None:
        c = self.truth(self.expr(s.test))
        if not isinstance(c, Num):
            self.block(s.body if c else s.orelse)
            return
        sides = []
        for body in (s.body, s.orelse):
            with self.region() as r:
                self.block(body)
            sides.append(r)
        self.join(c, sides)

    def join(self, c: Num, sides: Sequence[Region]) -> None:
        """Emit an `if`, and give the variables that its branches assign their common forms."""
        yes, no = (r.names for r in sides)
        changed = [n for n in {**yes, **no} if yes.get(n, _NONE) is not no.get(n, _NONE)]
        forms: dict[str, Form] = {}
        outs: list[list[Value]] = [[], []]
        for n in changed:
            x, y = (names.get(n, Undefined(n, "")) for names in (yes, no))
            try:
                forms[n] = unify(form_of(x), form_of(y), fill=n == VALUE)
            except ValueError as reason:
                if n == VALUE:
                    raise self.wrong(
                        f"the paths return different types: {reason}", "return one type on all paths"
                    ) from None
                hint = "give it one type on all paths, converting where needed: fx.f32(x)"
                raise self.wrong(f"{n!r} has different types after the branches: {reason}", hint) from None
            for r, o, value in zip(sides, outs, (x, y), strict=True):
                o += into(r.builder, forms[n], value) if forms[n].kind != "missing" else []
        if any(r.builder.ops for r in sides) or any(outs):
            results = iter(self.branch(c, sides, outs))
        else:
            results = iter(())
        for n in changed:
            if forms[n].kind == "missing":
                where = f": the `if` at line {self.here.line} assigns it on one path only" if self.here else ""
                self.frame.names[n] = Undefined(n, where)
            else:
                self.frame.names[n] = out_of(forms[n], results, "" if n.startswith("__fx") else n)

    # ---- loops
    def do_While(self, s: ast.While) -> None:
        stops = stops_of(s)

        def condition() -> Any:
            out: Any = True
            for flag in stops:
                out = self.both(out, self.opposite(self.lookup(flag)))
            if isinstance(out, Num) and not (isinstance(s.test, ast.Constant) and s.test.value):
                with self.region() as rest:
                    rest.value = Num(self.bool_(self.truth(self.expr(s.test))))
                with self.region() as never:
                    never.value = Num(self.b.const(False, dtype="bool"))
                return self.choice(out, rest, never)
            return self.both(out, self.truth(self.expr(s.test)))

        with self.region():
            first = condition()
        if not isinstance(first, Num) and not first:
            return
        self.loop_while(condition, lambda: self.block(s.body), _names([*s.body, s.test]))

    def loop_while(self, condition: Callable[[], Any], body: Callable[[], None], assigned: set[str]) -> None:
        outer = dict(self.frame.names)

        def attempt(forms: dict[str, Form]) -> tuple[Region, tuple[Block, list[Value]]]:
            with self.region() as head:
                args = self.enter(forms)
                go = self.bool_(condition())
            with self.region() as inside:
                body_args = self.enter(forms)
                body()
            return inside, (Block(args, head.builder.ops, [go]), body_args)

        forms, inits, inside, (test, body_args) = self.settled(self.starting(assigned), outer, attempt)
        blocks = [test, Block(body_args, inside.builder.ops, self.leaving(forms, inside))]
        results = self.b.emit("while", *inits, blocks=blocks, carry=len(inits))
        self.after(forms, results, assigned, outer)

    def do_For(self, s: ast.For) -> None:
        x = self.expr(s.iter)
        stops = stops_of(s)
        assigned = _names([*s.body, s.target])
        if not isinstance(x, Range) or x.static:
            self.unrolled(s, x.numbers() if isinstance(x, Range) else self.elements(x, "what a `for` runs over"), stops)
            return
        start, count, step = self.counted(x)
        forward = isinstance(step, int) or step.nonneg
        nonneg = isinstance(x.start, int) and x.start >= 0 or isinstance(x.start, Num) and x.start.nonneg

        def number(i: Value) -> Num:
            if forward:
                return Num(i, nonneg=nonneg)
            return Num(self.b.add(start, self.b.mul(i, self.index(step))))

        if stops:
            self.stopped(s, start, count, step if forward else 1, number, stops, assigned)
            return
        outer = dict(self.frame.names)

        def attempt(forms: dict[str, Form]) -> tuple[Region, list[Value]]:
            with self.region() as inside:
                i = Value(INDEX, None, 0, s.target.id if isinstance(s.target, ast.Name) else "i")
                args = [i, *self.enter(forms, 1)]
                self.assign(s.target, number(i))
                self.block(s.body)
            return inside, args

        forms, inits, inside, args = self.settled(self.starting(assigned - _names([s.target])), outer, attempt)
        block = Block(args, inside.builder.ops, self.leaving(forms, inside))
        lo, hi, by = (start, count, self.index(step)) if forward else (self.b.index(0), count, self.b.index(1))
        results = self.b.emit("for", lo, hi, by, *inits, blocks=[block], unroll=x.unroll)
        self.after(forms, results, assigned, outer)

    def counted(self, x: Range) -> tuple[Value, Value, Any]:
        """(start, stop, step) of a loop that runs upwards by a known step; else (start, number of rounds, step)."""
        start, stop = self.index(x.start), self.index(x.stop)
        if isinstance(x.step, int) and x.step > 0:
            return start, stop, x.step
        step = self.index(x.step)
        if isinstance(x.step, Num) and x.step.nonneg:
            return start, stop, Num(self.b.maximum(step, self.b.index(1)), nonneg=True)
        zero, one = self.b.index(0), self.b.index(1)
        up = self.b.gt(step, zero)
        span = self.b.select(up, self.b.sub(stop, start), self.b.sub(start, stop))
        size = self.b.maximum(self.b.select(up, step, self.b.sub(zero, step)), one)
        rounds = self.b.div(self.b.add(span, self.b.sub(size, one)), size)
        return start, self.b.select(self.b.gt(span, zero), rounds, zero), Num(step)

    def stopped(
        self, s: ast.For, start: Value, count: Value, step: int, number: Any, stops: Any, assigned: set[str]
    ) -> None:
        """A counted loop that a `break` or `return` ends: a `while` over the counter."""
        counter = f"__fx_i_{s.lineno}_{s.col_offset}"
        first = number(start)
        self.frame.names[counter] = (
            Num(start, nonneg=first.nonneg) if first.value is start else Num(self.b.index(0), nonneg=True)
        )

        def condition() -> Any:
            out: Any = Num(self.b.lt(self.lookup(counter).value, count))
            for flag in stops:
                out = self.both(out, self.opposite(self.lookup(flag)))
            return out

        def body() -> None:
            i = self.lookup(counter)
            self.assign(s.target, number(i.value))
            self.block(s.body)
            self.frame.names[counter] = self.binary("add", operator.add, i, step)

        self.loop_while(condition, body, assigned | {counter})
        del self.frame.names[counter]

    def unrolled(self, s: ast.For, items: Sequence[Any], stops: Sequence[str]) -> None:
        """The body once for each item."""
        if len(items) > UNROLLED:
            raise self.wrong(f"the loop would be written out {len(items)} times", "use range(...), which stays a loop")

        def once(item: Any) -> None:
            self.assign(s.target, item)
            self.block(s.body)

        for item in items:
            going: Any = True
            for flag in stops:
                going = self.both(going, self.opposite(self.lookup(flag)))
            if not isinstance(going, Num):
                if not going:
                    return
                once(item)
                continue
            with self.region() as yes:
                once(item)
            with self.region() as no:
                pass
            self.join(going, (yes, no))

    # ---- what loops carry
    def starting(self, assigned: set[str]) -> dict[str, Form]:
        """First guess: the variables that exist before the loop, as numbers of the kernel."""
        names = self.frame.names
        out = {n: at_run_time(form_of(names[n])) for n in sorted(assigned) if n in names}
        if VALUE in assigned and VALUE not in out:
            self.frame.names[VALUE] = Undefined(VALUE, "")
            out[VALUE] = form_of(names[VALUE])
        return out

    def settled(
        self, forms: dict[str, Form], outer: dict[str, Any], attempt: Callable[[dict[str, Form]], tuple[Region, T]]
    ) -> tuple[dict[str, Form], list[Value], Region, T]:
        """Compile a loop until what it carries keeps its types: (these, what enters, the body, what else `attempt` made)."""
        for _ in range(TRIES):
            inits = self.carried(forms)
            inside, made = attempt(forms)
            found = self.joined(forms, inside)
            if found == forms:
                return forms, inits, inside, made
            forms = found
            self.frame.names = dict(outer)
        raise self.wrong("the types of this loop's variables do not settle", "give them their types before the loop")

    def carried(self, forms: dict[str, Form]) -> list[Value]:
        names = self.frame.names
        return [
            v for n, f in forms.items() if f.kind != "missing" for v in into(self.b, f, names.get(n, Undefined(n, "")))
        ]

    def enter(self, forms: dict[str, Form], first: int = 0) -> list[Value]:
        """Arguments of a loop's region, bound to the variables it carries."""
        args: list[Value] = []
        for n, f in forms.items():
            plain = "" if n.startswith("__fx") else n
            made = [Value(t, None, first + len(args) + k, plain) for k, t in enumerate(types_in(f))]
            args += made
            if f.kind != "missing":
                self.frame.names[n] = out_of(f, iter(made))
        return args

    def joined(self, forms: dict[str, Form], inside: Region) -> dict[str, Form]:
        out = {}
        for n, f in forms.items():
            try:
                out[n] = unify(f, form_of(inside.names.get(n, Undefined(n, ""))), fill=n == VALUE)
            except ValueError as reason:
                hint = f"give it its type before the loop, as in {n} = fx.f32(0), or another name inside"
                if f.kind == "array":
                    hint = (
                        'arrays that take turns need equal types: annotate them, as in a: fx.f32["N"], b: fx.f32["N"]'
                    )
                raise self.wrong(f"{n!r} changes its type in the loop: {reason}", hint) from None
        return out

    def leaving(self, forms: dict[str, Form], inside: Region) -> list[Value]:
        return [v for n, f in forms.items() for v in into(inside.builder, f, inside.names[n]) if f.kind != "missing"]

    def after(
        self, forms: dict[str, Form], results: Sequence[Value], assigned: set[str], outer: dict[str, Any]
    ) -> None:
        self.frame.names = outer
        registers = iter(results)
        for n, f in forms.items():
            if f.kind != "missing":
                self.frame.names[n] = out_of(f, registers, "" if n.startswith("__fx") else n)
        for n in assigned:
            if n not in forms:
                line = f": it is first assigned in the loop at line {self.here.line}" if self.here else ""
                self.frame.names[n] = Undefined(n, line)


_NONE = object()


def _names(nodes: Sequence[ast.AST]) -> set[str]:
    """Variables that statements assign in their own scope."""
    from fluxir.frontend.pyast import _Names

    v = _Names()
    for n in nodes:
        v.visit(n)
    return set(v.found)


_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.Try: ("try", "check what could go wrong with an `if`; assert stops the kernel"),
    ast.Raise: ("raise", "use assert, which stops the kernel with a message"),
    ast.With: ("with", "kernels have no context managers"),
    ast.ClassDef: ("a class definition", "define it outside"),
    ast.Delete: ("del", "variables end with the kernel"),
    ast.Global: ("global", "pass an array and write to it"),
    ast.Nonlocal: ("nonlocal", "return the value instead"),
    ast.AsyncFunctionDef: ("async", "kernels have no coroutines"),
    ast.AsyncFor: ("async", "kernels have no coroutines"),
    ast.AsyncWith: ("async", "kernels have no coroutines"),
    ast.Match: ("match", "use if and elif"),
}

__all__ = ["Statements"]
