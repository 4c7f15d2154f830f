"""Expressions of kernels: names, constants, operators, subscripts, attributes; short circuits and ternaries.

What Python evaluates only sometimes (the right of `and`, a side of a ternary) is a branch where it reads memory or does
anything but compute, and a plain `select` or `and` of bits elsewhere.
"""

from __future__ import annotations

import ast
import operator
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.frontend.kernel.arithmetic import BINARY, Arithmetic
from fluxir.frontend.kernel.context import LocalFunction, Region
from fluxir.frontend.kernel.values import (
    Array,
    Form,
    Num,
    Struct,
    Undefined,
    as_struct,
    describe,
    form_of,
    into,
    is_number,
    is_static,
    out_of,
    types_in,
    unify,
)
from fluxir.ir.core import Block, Value
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType

COMPARE = {
    ast.Lt: ("lt", operator.lt), ast.LtE: ("le", operator.le), ast.Gt: ("gt", operator.gt), ast.GtE: ("ge", operator.ge),
    ast.Eq: ("eq", operator.eq), ast.NotEq: ("ne", operator.ne),
}  # fmt: skip
SPECULATED = 12  # ops that are computed on both sides rather than branched around
_FREE = ("elementwise", "compare", "constant", "vector")
_MODULES = (types.ModuleType,)


class Expressions(Arithmetic):
    """`expr` gives what an expression stands for."""

    def expr(self, node: ast.expr) -> Any:
        with self.at(node):
            method = getattr(self, "on_" + type(node).__name__, None)
            if method is None:
                raise self.refuse(*_REFUSED.get(type(node), ("this expression", "write it with simpler expressions")))
            return method(node)

    def on_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def on_Name(self, node: ast.Name) -> Any:
        return self.lookup(node.id)

    def on_Tuple(self, node: ast.Tuple) -> Any:
        out: list[Any] = []
        for e in node.elts:
            if isinstance(e, ast.Starred):
                out += self.elements(self.expr(e.value), "what is unpacked")
            else:
                out.append(self.expr(e))
        return tuple(out)

    def on_BinOp(self, node: ast.BinOp) -> Any:
        if type(node.op) not in BINARY:
            raise self.refuse("@", "write the loops, or use fx.gpu.mma")
        name, python = BINARY[type(node.op)]
        x, y = self.expr(node.left), self.expr(node.right)
        return self.binary(name, python, self.plain(x), self.plain(y))

    def plain(self, x: Any) -> Any:
        return self.size(x)

    def on_UnaryOp(self, node: ast.UnaryOp) -> Any:
        x = self.plain(self.expr(node.operand))
        match node.op:
            case ast.USub():
                return self.negated(x)
            case ast.Not():
                return self.opposite(x)
            case ast.Invert():
                return self.inverted(x)
        return self.number(x, "the operand of +")

    # ---- truth
    def on_Compare(self, node: ast.Compare) -> Any:
        left = self.expr(node.left)
        out: Any = True
        for op, e in zip(node.ops, node.comparators, strict=True):
            right = self.expr(e)
            if type(op) in COMPARE:
                found = self.compare(*COMPARE[type(op)], left, right)
            else:
                found = self.identity(op, left, right)
            out = self.both(out, found)
            left = right
        return out

    def identity(self, op: ast.cmpop, x: Any, y: Any) -> Any:
        """`is` of what is known while compiling, and `in` of a tuple."""
        if isinstance(op, ast.Is | ast.IsNot):
            if x is None or y is None or (is_static(x) and is_static(y)):
                return (x is y) == isinstance(op, ast.Is)
            raise self.refuse("`is` of numbers", "compare them with ==")
        if is_static(x) and is_static(y):
            return bool((x in y) == isinstance(op, ast.In))
        found: Any = False
        for e in self.elements(y, "the right side of `in`"):
            if isinstance(e, Num) or (isinstance(x, Num) and is_number(e)):
                same = self.compare("eq", operator.eq, x, e)
                found = Num(self.b.logical_or(self.bool_(found), self.bool_(same)))
            else:
                found = found or (not isinstance(x, Num) and x == e)
        return found if isinstance(op, ast.In) else self.opposite(found)

    def both(self, x: Any, y: Any) -> Any:
        """`x and y` of two truths."""
        if not isinstance(x, Num):
            return y if x else x
        if not isinstance(y, Num):
            return x if y else y
        return Num(self.b.logical_and(self.bool_(x), self.bool_(y)))

    def on_BoolOp(self, node: ast.BoolOp) -> Any:
        stops = isinstance(node.op, ast.Or)  # the truth that ends it
        out = self.expr(node.values[0])
        for e in node.values[1:]:
            if not isinstance(out, Num):
                if bool(self.truth(out)) == stops:
                    return out
                out = self.expr(e)
                continue
            word = "or" if stops else "and"
            if not out.dtype.is_bool:
                raise self.refuse(f"`{word}` of {out}", "it takes bools: write x != 0, or a ternary for values")
            with self.region() as rest:
                value = self.truth(self.expr(e))
                rest.value = Num(self.bool_(value))
            if _is_free(rest):
                self.take(rest)
                name = "logical_or" if stops else "logical_and"
                out = Num(self.b.emit(name, out.value, rest.value.value)[0])
            else:
                with self.region() as known:
                    known.value = Num(self.b.const(stops, dtype="bool"))
                out = self.choice(out, *((known, rest) if stops else (rest, known)))
        return out

    def on_IfExp(self, node: ast.IfExp) -> Any:
        c = self.truth(self.expr(node.test))
        if not isinstance(c, Num):
            return self.expr(node.body if c else node.orelse)
        sides = []
        for e in (node.body, node.orelse):
            with self.region() as r:
                r.value = self.expr(e)
            sides.append(r)
        return self.choice(c, *sides)

    def choice(self, c: Num, yes: Region, no: Region) -> Any:
        """The value of one of two regions."""
        try:
            form = unify(form_of(yes.value), form_of(no.value))
        except ValueError as reason:
            raise self.wrong(f"the two sides of a choice have no common type: {reason}") from None
        outs = [into(r.builder, form, r.value) for r in (yes, no)]
        if all(map(_is_free, (yes, no))) and form.kind == "number" and _cost(yes) + _cost(no) <= SPECULATED:
            self.take(yes)
            self.take(no)
            return out_of(form, iter([self.b.select(c.value, outs[0][0], outs[1][0])]))
        results = self.branch(c, (yes, no), outs)
        return out_of(form, iter(results))

    def branch(self, c: Num, sides: Sequence[Region], outs: Sequence[Sequence[Value]]) -> tuple[Value, ...]:
        blocks = [Block((), r.builder.ops, o) for r, o in zip(sides, outs, strict=True)]
        return self.b.emit("if", c.value, blocks=blocks)

    def take(self, r: Region) -> None:
        """The code of a region at this place."""
        for op in r.builder.ops:
            self.b.append(op)

    # ---- parts
    def on_Attribute(self, node: ast.Attribute) -> Any:
        x = self.expr(node.value)
        name = node.attr
        if isinstance(x, Array):
            if name == "size":
                return self.count(x)
            if name in ("shape", "ndim", "dtype"):
                return {"shape": x.shape, "ndim": len(x.shape), "dtype": x.type.dtype}[name]
        elif isinstance(x, Num):
            if name == "dtype":
                return x.dtype
        elif isinstance(x, Struct):
            if name in x.fields:
                return x.values[x.fields.index(name)]
        else:
            return self.static_attribute(x, name)
        raise self.wrong(f"{describe(x)} has no attribute {name!r}")

    def static_attribute(self, x: Any, name: str) -> Any:
        if isinstance(x, tuple) or not hasattr(x, name):
            raise self.wrong(f"{describe(x)} has no attribute {name!r}")
        return as_struct(getattr(x, name))

    def count(self, a: Array) -> Any:
        out: Any = 1
        for d in a.shape:
            out = self.binary("mul", operator.mul, self.size(out), self.size(d)) if isinstance(d, Num) else out * d
        return out

    def on_Subscript(self, node: ast.Subscript) -> Any:
        x = self.expr(node.value)
        if isinstance(x, DType):
            return x[self.expr(node.slice)]
        return self.element(x, self.subscripts(node.slice))

    def subscripts(self, node: ast.expr) -> tuple[Any, ...]:
        for part in node.elts if isinstance(node, ast.Tuple) else [node]:
            if isinstance(part, ast.Slice):
                raise self.refuse("a slice", "index element by element, or a row: a[i]", part)
        x = self.expr(node)
        return x if isinstance(x, tuple) else (x,)

    def element(self, x: Any, at: tuple[Any, ...]) -> Any:
        """`x[at]`."""
        if isinstance(x, Array):
            return self.read(x, at)
        if isinstance(x, Num) and x.lanes:
            return Num(self.b.emit("extract", x.value, lane=self.static_index(at, x.lanes, "a lane"))[0])
        if isinstance(x, Struct) and issubclass(x.cls, tuple):
            x = x.values
        if isinstance(x, tuple):
            return x[self.static_index(at, len(x), "the index of a tuple")]
        if isinstance(x, (Num, Struct, Undefined)):
            raise self.wrong(f"{describe(x)} cannot be indexed")
        if not is_static(at):
            instead = "pass it as an argument of the kernel"
            raise self.refuse(f"a {type(x).__name__} of the surrounding code, indexed at run time,", instead)
        try:
            found = x[at[0] if len(at) == 1 else at]
        except (TypeError, LookupError) as reason:
            raise self.wrong(f"{describe(x)} cannot be indexed so: {reason}") from None
        if isinstance(found, np.ndarray) and found.ndim:
            return found
        return as_struct(found.item() if isinstance(found, np.ndarray) else found)

    def static_index(self, at: tuple[Any, ...], n: int, what: str) -> int:
        (i,) = at if len(at) == 1 else (None,)
        if isinstance(i, Num) or not isinstance(i, int):
            raise self.wrong(
                f"{what} must be known when compiling", "loop over fx.gpu.static_range, or use fx.gpu.local"
            )
        if not -n <= i < n:
            raise self.wrong(f"{what} is {i}, there are {n}")
        return i % n

    def elements(self, x: Any, what: str) -> list[Any]:
        """The parts of something whose number of parts is known."""
        if isinstance(x, Struct) and issubclass(x.cls, tuple):
            return list(x.values)
        if isinstance(x, tuple):
            return list(x)
        if isinstance(x, Num) and x.lanes:
            return [Num(self.b.emit("extract", x.value, lane=i)[0]) for i in range(x.lanes)]
        if isinstance(x, (list, range, set, frozenset, dict, str)):
            return [as_struct(v) for v in x]
        raise self.wrong(f"{what} must be a tuple, not {describe(x)}")

    # ---- memory
    def place(self, a: Array, at: Sequence[Any]) -> tuple[Value, list[Value], tuple[Any, ...]]:
        """Memory, indices and the shape that is left, of `a[at]`."""
        if len(at) > len(a.shape):
            raise self.wrong(f"{len(at)} indices of {describe(a)}")
        indices = []
        for i, d in zip(at, a.shape):
            if isinstance(i, int) and not isinstance(i, bool) and i < 0:
                i = self.binary("add", operator.add, self.size(d), i)
            if isinstance(i, int) and isinstance(d, int) and not 0 <= i < d:
                raise self.wrong(f"index {i} of {describe(a)}: the axis has {d} elements")
            indices.append(self.index(i))
        rest = a.shape[len(at) :]
        if not a.flat:
            return a.mem, indices, rest
        position = Num(indices[0]) if indices else Num(self.b.index(0))
        for i, d in zip(indices[1:], a.shape[1:]):
            scaled = self.b.mul(position.value, self.index(self.size(d)))
            position = Num(self.b.add(scaled, i))
        for d in rest:
            position = Num(self.b.mul(position.value, self.index(self.size(d))))
        return a.mem, [position.value], rest

    def read(self, a: Array, at: Sequence[Any], lanes: int = 0, align: int = 0) -> Any:
        if len(at) < len(a.shape) and not lanes:
            mem, indices, rest = self.place(a, at)
            if a.flat:
                raise self.refuse("a row of a dynamic array", "index all of its axes")
            return Array(self.b.emit("subview", mem, *indices)[0], rest)
        mem, indices, _ = self.place(a, at)
        return Num(self.b.emit("load", mem, *indices, lanes=lanes, align=align)[0], nonneg=a.type.dtype.kind == "uint")

    def write(self, a: Array, at: Sequence[Any], x: Any, lanes: int = 0, align: int = 0) -> None:
        if len(at) != len(a.shape):
            raise self.wrong(f"{len(at)} indices of {describe(a)}", "a kernel stores one element at a time")
        if a.type.space == "constant":
            raise self.wrong("constant memory cannot be written")
        mem, indices, _ = self.place(a, at)
        self.b.emit("store", mem, self.stored(x, a.type.dtype, describe(a), lanes), *indices, align=align)

    # ---- functions
    def on_Lambda(self, node: ast.Lambda) -> Any:
        return LocalFunction(node, self.frame)

    def on_NamedExpr(self, node: ast.NamedExpr) -> Any:
        value = self.expr(node.value)
        self.frame.names[node.target.id] = value
        return value

    def on_JoinedStr(self, node: ast.JoinedStr) -> Any:
        """An f-string of what is known; `print` and messages take others apart themselves."""
        out = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                out += str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            x = self.expr(part.value)
            if not is_static(x):
                raise self.refuse("text of a value at run time", "print it: fx.gpu.printf('%d', x), or print(x)")
            out += format(x)
        return out

    def registers(self, form: Form) -> list[Any]:
        return list(types_in(form))


def _is_free(r: Region) -> bool:
    """Whether a region only computes, so that it may run where Python would not have."""
    return all(op.defn.category in _FREE and not op.blocks for op in r.builder.ops) and not any(
        isinstance(x.type, MemType) for op in r.builder.ops for x in op.results
    )


def _cost(r: Region) -> int:
    return sum(op.defn.category != "constant" for op in r.builder.ops)


_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.List: ("a list", "use a tuple, or fx.gpu.local((n,), dtype) for memory"),
    ast.ListComp: ("a list comprehension", "use a loop; fx.gpu.local((n,), dtype) is memory of a thread"),
    ast.GeneratorExp: ("a generator expression", "use a loop"),
    ast.SetComp: ("a set", "use fx.gpu.local memory"),
    ast.Set: ("a set", "use fx.gpu.local memory"),
    ast.Dict: ("a dict", "use a named tuple"),
    ast.DictComp: ("a dict", "use a named tuple"),
    ast.Await: ("await", "kernels have no coroutines"),
    ast.Yield: ("yield", "kernels have no generators"),
    ast.YieldFrom: ("yield", "kernels have no generators"),
    ast.Starred: ("*", "write the elements"),
}

__all__ = ["COMPARE", "Expressions", "is_number"]
