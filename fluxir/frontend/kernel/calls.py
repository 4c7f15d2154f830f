"""Calls in kernels: `fx.gpu` names, mathematics, Python's own functions, structs, and functions of the user, inlined.

A function of `fx`, `math` or numpy is an op of the same meaning, found by name in the op registry. A function of the user is
compiled where it is called, with the types at hand; a call of one that is being compiled already is recursion, and refused.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import operator
import os
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.frontend.kernel.context import DEPTH, Frame, LocalFunction, frame_of
from fluxir.frontend.kernel.escapes import VALUE, straightened
from fluxir.frontend.kernel.expressions import Expressions
from fluxir.frontend.kernel.pyfunctions import METHODS, PYTHON, dtype_or_none
from fluxir.frontend.kernel.values import (
    Array,
    Num,
    Struct,
    Undefined,
    as_struct,
    as_type,
    describe,
    is_number,
    is_static,
    joined_dtype,
    lifted,
    struct_fields,
)
from fluxir.ir.dtypes import DType
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.types import TensorType, VectorType

ALIASES = {
    "absolute": "abs", "fabs": "abs", "power": "pow", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
    "arctan2": "atan2", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "rint": "round", "negative": "neg",
    "where": "select", "floor_divide": "floordiv", "mod": "remainder", "clip": "clamp", "add": "add", "subtract": "sub",
    "multiply": "mul", "divide": "div", "true_divide": "div", "fmax": "maximum", "fmin": "minimum", "less": "lt",
    "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne", "bitwise_and": "bit_and",
    "bitwise_or": "bit_or", "bitwise_xor": "bit_xor", "bitwise_invert": "bit_not", "left_shift": "shift_left",
    "right_shift": "shift_right", "bitwise_left_shift": "shift_left", "bitwise_right_shift": "shift_right", "invert": "bit_not",
    "bitwise_count": "popcount", "gamma": "",
}  # fmt: skip
"""Names of functions whose op is called otherwise."""
_WHOLE = ("floor", "ceil", "trunc", "round")


class Intrinsic:
    """A name of `fx.gpu`: `rule(cx, *arguments)` compiles a call of it. Calling it outside of a kernel is FX0333."""

    def __init__(self, rule: Callable[..., Any]) -> None:
        self.rule, self.__doc__, self.__name__ = rule, rule.__doc__, rule.__name__.rstrip("_")
        self.__qualname__ = self.__name__
        self.__module__ = rule.__module__
        parameters = list(inspect.signature(rule).parameters.values())[1:]
        self.__signature__ = inspect.Signature(parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from fluxir.frontend.trace import here

        raise error("FX0333", f"fx.gpu.{self.__name__} has a meaning inside kernels only", help="call it in a function "
                    "under @fx.kernel, or in one that a kernel calls", loc=here())  # fmt: skip

    def __repr__(self) -> str:
        return f"<fx.gpu.{self.__name__}>"


@dataclass(frozen=True, eq=False)
class Method:
    """A method of a number or an array."""

    subject: Any
    name: str


class Calls(Expressions):
    """`call` compiles a call of anything."""

    def block(self, stmts: Sequence[ast.stmt]) -> None:
        raise NotImplementedError  # in Statements

    def on_Call(self, node: ast.Call) -> Any:
        f = self.method(node.func) or self.expr(node.func)
        args: list[Any] = []
        for a in node.args:
            if isinstance(a, ast.Starred):
                args += self.elements(self.expr(a.value), "what is unpacked")
            else:
                args.append(a)
        named: dict[str, Any] = {}
        for k in node.keywords:
            if k.arg is None:
                raise self.refuse("**", "write the arguments")
            named[k.arg] = k.value
        if f is builtins.print:
            return self.print_([self.given(a) for a in args if not isinstance(a, ast.JoinedStr)] if not any(
                isinstance(a, ast.JoinedStr) for a in args) else args, named)  # fmt: skip
        values = [self.given(a) for a in args]
        return self.call(f, values, {k: self.given(v) for k, v in named.items()})

    def given(self, a: Any) -> Any:
        return self.expr(a) if isinstance(a, ast.expr) else a

    def method(self, node: ast.expr) -> Method | None:
        """`a.load`, `x.astype`: a method of something that exists at run time."""
        if not isinstance(node, ast.Attribute) or node.attr not in METHODS:
            return None
        x = self.expr(node.value)
        return Method(x, node.attr) if isinstance(x, (Array, Num)) or is_number(x) else None

    def call(self, f: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        match f:
            case Method():
                return self.bound(METHODS[f.name], f.name, (f.subject, *args), named)
            case Intrinsic():
                return self.bound(f.rule, f"fx.gpu.{f.__name__}", args, named)
            case DType():
                (x,) = args or (0,)
                return self.converted(x, f)
            case LocalFunction():
                inner = Frame(getattr(f.node, "name", "<lambda>"), f.frame.file, f.frame.offset, f.node,
                              {**f.frame.closure, **f.frame.names}, f.frame.space)  # fmt: skip
                return self.inlined(inner, f.node, None, args, named)
            case type() if struct_fields(f) is not None:
                return self.struct(f, args, named)
        special = PYTHON.get(f) if _hashable(f) else None
        if special is not None:
            return self.bound(special, getattr(f, "__name__", str(f)), args, named)
        if is_static(tuple(args)) and _is_mathematics(f):
            return self.known(f, args, named)
        name = self.op_name(f)
        if name:
            return self.op(name, [*args, *named.values()])
        if isinstance(f, np.dtype | type) and not isinstance(f, types.FunctionType) and dtype_or_none(f) is not None:
            return self.converted(args[0], dtype_or_none(f))
        if isinstance(f, types.FunctionType):
            return self.inlined(*frame_of(f), f, args, named)
        kernel = getattr(f, "__wrapped_kernel__", None)
        if kernel is not None:
            return self.call(kernel, args, named)
        word = getattr(f, "__name__", type(f).__name__)
        raise self.refuse(f"a call of {word!r}", "call functions of fx.gpu, fx, math, or plain Python functions")

    def bound(self, rule: Callable[..., Any], name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        try:
            inspect.signature(rule).bind(self, *args, **named)
        except TypeError as reason:
            raise self.wrong(f"{name}: {reason}") from None
        try:
            return rule(self, *args, **named)
        except FluxError as e:
            if e.code in ("FX0106", "FX0108"):  # a type rule of the IR: here the user's own call
                raise self.wrong(f"{name}: {e.message}", "see docs/kernels.md for what it takes") from None
            raise

    def known(self, f: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        try:
            found = f(*args, **named)
        except (ArithmeticError, ValueError, TypeError) as reason:
            raise self.wrong(f"{getattr(f, '__name__', f)}: {reason}") from None
        return found.item() if isinstance(found, np.ndarray) and not found.ndim else found

    # ---- ops
    def op_name(self, f: Any) -> str:
        """The op that a function of `fx`, `math` or numpy stands for; empty where it is none."""
        if not _is_mathematics(f):
            return ""
        name = getattr(f, "__name__", "")
        name = ALIASES.get(name, name)
        d = REGISTRY.get(name)
        return name if d is not None and d.category in ("elementwise", "compare") and d.level == "both" else ""

    def op(self, name: str, args: Sequence[Any]) -> Any:
        """An elementwise op of numbers, in the type they meet in."""
        numbers = [self.number(x, f"an argument of {name}") for x in args]
        if name == "select":
            c, x, y = numbers
            if not isinstance(c, Num):
                return x if c else y
            a, b = self.pair("where", x, y)
            return Num(self.b.select(c.value, a.value, b.value), a.weak and b.weak, a.nonneg and b.nonneg)
        if name in ("add", "sub", "mul", "div", "floordiv", "remainder", "pow"):
            return self.binary(
                name, getattr(operator, {"div": "truediv", "remainder": "mod"}.get(name, name)), *numbers
            )
        nums = [lifted(self.b, x) for x in numbers]
        d, weak = nums[0].dtype, nums[0].weak
        for x, n in zip(numbers[1:], nums[1:], strict=True):
            try:
                d, weak = joined_dtype(d, weak, n.dtype, n.weak), weak and n.weak
            except ValueError:
                raise self.mixed(name, numbers[0], x, nums[0], n) from None
        if d.is_integer and "float" in _kinds(name):
            raise self.wrong(f"{name} takes floats, not {d}", "convert it: fx.f32(x)")
        lanes = max(n.lanes for n in nums)
        t = VectorType(d, lanes) if lanes else TensorType(d)
        values = [as_type(self.b, n if isinstance(x, Num) else x, t) for x, n in zip(numbers, nums, strict=True)]
        nonneg = d.is_integer and (
            (name in ("minimum", "clamp") and all(n.nonneg for n in nums))
            or (name == "maximum" and any(n.nonneg for n in nums))
            or name in ("popcount", "clz")
        )
        return Num(self.b.emit(name, *values)[0], weak, nonneg)

    # ---- structs and functions
    def struct(self, cls: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        if is_static(tuple(args)) and is_static(tuple(named.values())):
            return as_struct(cls(*args, **named))
        fields = struct_fields(cls)
        assert fields is not None
        try:
            bound = inspect.signature(cls).bind(*args, **named)
        except TypeError as reason:
            raise self.wrong(f"{cls.__name__}: {reason}") from None
        bound.apply_defaults()
        if "__post_init__" in vars(cls) or cls.__new__ is object.__new__ and "__init__" not in vars(cls):
            raise self.refuse(f"{cls.__name__}, whose making runs code,", "use a plain named tuple or dataclass")
        return Struct(cls, fields, tuple(as_struct(bound.arguments[f]) for f in fields))

    def inlined(self, frame: Frame, node: Any, fn: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """The body of a function here; what it returns."""
        if any(f.code is frame.code for f in self.frames):
            raise error(
                "FX0332",
                f"{frame.name!r} calls itself",
                help="a GPU has no stack to speak of: write a loop, with fx.gpu.local memory as the stack",
                loc=self.here,
            )
        if len(self.frames) > DEPTH:
            raise self.refuse(f"calls nested more than {DEPTH} deep", "write a loop")
        self.bind(frame, node, fn, args, named)
        saved = self.places, self.b.loc
        caller = self.here
        self.frames.append(frame)
        self.places = []
        try:
            if isinstance(node, ast.Lambda):
                return self.expr(node.body)
            body, ends = straightened(node.body)
            self.block(body)
            value = frame.names.get(VALUE)
            if isinstance(value, Undefined) or (value is not None and not ends):
                raise self.wrong(f"{frame.name!r} returns a value on some paths only", "return one on all paths", node)
            return value
        except FluxError as e:
            e.notes.append(f"{frame.name} is called at {os.path.basename(caller.file)}:{caller.line}" if caller else "")
            raise
        finally:
            self.frames.pop()
            self.places, self.b.loc = saved

    def bind(self, frame: Frame, node: Any, fn: Any, args: Sequence[Any], named: dict[str, Any]) -> None:
        """The parameters of a function as its first variables."""
        a = node.args
        if a.vararg or a.kwarg:
            raise self.refuse("a function with *args", "name its parameters")
        parameters = [p.arg for p in (*a.posonlyargs, *a.args)]
        every = [*parameters, *[p.arg for p in a.kwonlyargs]]
        if len(args) > len(parameters):
            raise self.wrong(f"{frame.name} takes {len(parameters)} arguments, {len(args)} given")
        values = dict(zip(parameters, args))
        for k, x in named.items():
            if k not in every or k in values:
                raise self.wrong(f"{frame.name} has no argument {k!r}" if k not in every else f"{k!r} is given twice")
            values[k] = x
        if fn is not None:
            defaults = dict(zip(parameters[len(parameters) - len(fn.__defaults__ or ()) :], fn.__defaults__ or ()))
            defaults |= fn.__kwdefaults__ or {}
        else:
            given = [self.expr(d) for d in a.defaults]
            defaults = dict(zip(parameters[len(parameters) - len(given) :], given))
            defaults |= {p.arg: self.expr(d) for p, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
        for name in every:
            if name not in values and name not in defaults:
                raise self.wrong(f"{frame.name} needs the argument {name!r}")
            x = values[name] if name in values else as_struct(defaults[name])
            wanted = (getattr(fn, "__annotations__", None) or {}).get(name)
            frame.names[name] = self.converted(x, wanted) if isinstance(wanted, DType) else x

    # ---- printing
    def print_(self, args: Sequence[Any], named: dict[str, Any]) -> None:
        """`print` with numbers and f-strings."""
        sep, end = (self.given(named.pop(k)) if k in named else d for k, d in (("sep", " "), ("end", "\n")))
        if named:
            raise self.refuse("print(..., file=...)", "a kernel prints to the standard output")
        parts: list[str] = []
        values: list[Any] = []
        for a in args:
            if isinstance(a, ast.JoinedStr):
                text = "".join(self.piece(p, values) for p in a.values)
            else:
                text = self.piece_of(self.given(a), "", values)
            parts.append(text)
        self.printf(sep.join(parts) + end, values)

    def piece(self, node: ast.expr, values: list[Any]) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value).replace("%", "%%")
        assert isinstance(node, ast.FormattedValue)
        spec = self.expr(node.format_spec) if node.format_spec is not None else ""
        return self.piece_of(self.expr(node.value), spec, values)

    def piece_of(self, x: Any, spec: str, values: list[Any]) -> str:
        x = self.plain(x)
        if isinstance(x, (Array, Struct)):
            raise self.refuse(f"printing {describe(x)}", "print its elements")
        if not isinstance(x, Num):
            return format(x, spec).replace("%", "%%")
        if x.lanes:
            raise self.refuse("printing a vector", "print its lanes")
        values.append(x)
        if not spec:
            return "%s"
        return (
            "%" + spec.lstrip("><=^")
            if spec[-1] in "dfegxoEGX"
            else "%" + spec + ("s" if not spec[-1].isalpha() else "")
        )

    def printf(self, template: str, values: Sequence[Any]) -> None:
        self.b.emit(
            "printf", *[lifted(self.b, self.number(v, "what is printed")).value for v in values], format=template
        )


# ---- what a function is ------------------------------------------------------------------------------------------------


def _hashable(f: Any) -> bool:
    try:
        hash(f)
        return True
    except TypeError:
        return False


def _is_mathematics(f: Any) -> bool:
    """Whether a function belongs to math, numpy or fx, and may stand for an op."""
    if isinstance(f, np.ufunc):
        return True
    module = str(getattr(f, "__module__", "") or "")
    return module in ("math", "numpy", "_operator") or module.startswith(("numpy.", "fluxir.frontend.api_"))


def _kinds(name: str) -> tuple[str, ...]:
    """The kinds of type that an op is for, as far as it says so."""
    d = REGISTRY[name]
    names = [s.types[0] for s in d.samples if s.types]
    floats = all(t.startswith(("f", "bf")) for t in names) and bool(names)
    return ("float",) if floats else ()


__all__ = ["Calls", "Intrinsic", "Method"]
