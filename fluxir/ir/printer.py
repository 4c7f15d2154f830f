"""Text of a program, derived from the op schema alone: no op writes a printer.

`print_module(m)` then `parser.parse_module` then `print_module` is byte-identical. Values are numbered `%0 %1 ...`
in order within a function unless they have a unique name. Constants of up to 16 elements are written out; larger
ones are `#digest` references into `resource` lines at the end of the module (base64 of the raw bytes). Attributes that
have their default value are left out. A rank-0 tensor type in an attribute is `!f32[]`, an element type `!f32`.
"""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import numpy as np

from fluxir.ir.core import Block, Func, Module, Op, Value, array_digest
from fluxir.ir.dims import Poly
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.types import MemType, TensorType, VectorType

INLINE_CONSTANT = 16  # elements
KEYWORD = {"tensor": "func", "kernel": "kernel", "host": "host"}
_IDENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_FILE = re.compile(r"[\w./-]+\Z")
_SCOPE = re.compile(r"[\w.<>]+\Z")
_KEY = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_RESULT = re.compile(
    r"(?!(?:bool|bf16|[iuf][0-9]+)(?:x[0-9]+)?\Z|module\Z|return\Z|yield\Z)[A-Za-z_]\w*\Z", re.ASCII
)  # neither a type nor a keyword


def print_module(m: Module, locations: bool = True, resources: dict[str, Any] | None = None) -> str:
    """The module as text; with `locations`, ops carry `@ file:line:col`. With `resources` large constants are put there by their
    digests, and only these are in the text."""
    p = _Printer(locations)
    out = [f"module {symbol_name(m.name)}" + p.attr_list(m.attrs)]
    facts = m.facts.describe()
    if facts:
        out.append("dims " + ", ".join(facts))
    for f in m.funcs.values():
        out.append(p.func(f))
    if resources is not None:
        resources.update(p.resources)
        return "\n".join(out) + "\n"
    for digest, a in p.resources.items():
        data = base64.b64encode(a.tobytes()).decode()
        out.append(f'resource #{digest} : {TensorType.of(dtype_of(a.dtype), a.shape)} = "{data}"')
    return "\n".join(out) + "\n"


def print_func(f: Func, locations: bool = True) -> str:
    """One function; large constants appear as `#digest` without their data."""
    return _Printer(locations).func(f)


def format_op(op: Op) -> str:
    """One op on one line, regions elided; for messages. It prints any op, a broken one too."""
    p = _Printer(False)
    p.lenient = True
    return p.op_head(op)


class _Printer:
    def __init__(self, locations: bool) -> None:
        self.locations = locations
        self.lenient = False  # print what has no text form as its repr
        self.resources: dict[str, np.ndarray[Any, Any]] = {}
        self.names: dict[Value, str] = {}
        self.used: set[str] = set()
        self.next = 0
        self.places: dict[Any, str] = {}

    # ---- names
    def define(self, v: Value) -> str:
        if v.name and _IDENT.match(v.name) and v.name not in self.used:
            name = v.name
        else:
            name = str(self.next)
            self.next += 1
        self.used.add(name)
        self.names[v] = name
        return "%" + name

    def use(self, v: Value) -> str:
        return "%" + self.names[v] if v in self.names else f"%?{v.name or v.index}"

    # ---- structure
    def func(self, f: Func) -> str:
        self.names, self.used, self.next = {}, set(), 0
        args = ", ".join(f"{self.define(a)}: {a.type}" for a in f.args)
        head = f"{KEYWORD[f.level]} {symbol_name(f.name)}({args})"
        if f.outs or f.level == "tensor":
            results = [
                (f"{_result_name(f.result_names[i])}: " if i < len(f.result_names) and f.result_names[i] else "")
                + str(v.type)
                for i, v in enumerate(f.outs)
            ]
            head += f" -> ({', '.join(results)})"
        head += self.attr_list(f.attrs) + self.location(f.loc)
        lines = [head + " {"]
        self.body(f.block, "  ", lines, "return")
        lines.append("}")
        return "\n".join(lines)

    def body(self, block: Block, indent: str, lines: list[str], terminator: str) -> None:
        for op in block.ops:
            self.op(op, indent, lines)
        outs = ", ".join(self.use(v) for v in block.outs)
        if outs or terminator == "return":
            lines.append(f"{indent}{terminator} {outs}".rstrip())

    def op(self, op: Op, indent: str, lines: list[str]) -> None:
        operands = ", ".join(self.use(v) for v in op.operands)
        tail = op.name + (f"({operands})" if op.operands else "") + self.attr_list(op.attrs, op)
        if op.results:
            types = ", ".join(str(r.type) for r in op.results)
            tail += f" : {types}"
        tail += self.location(op.loc)
        body: list[str] = []
        for i, block in enumerate(op.blocks):
            args = ", ".join(f"{self.define(a)}: {a.type}" for a in block.args)
            body.append((" {" if i == 0 else f"{indent}}} {{") + (f"\n{indent}  ({args}) ->" if args else ""))
            self.body(block, indent + "  ", body, "yield")
        head = ", ".join(self.define(r) for r in op.results)
        line = f"{indent}{head} = {tail}" if head else indent + tail
        if body:
            lines.append(line + body[0])
            lines.extend(body[1:])
            lines.append(indent + "}")
        else:
            lines.append(line)

    def op_head(self, op: Op) -> str:
        operands = ", ".join(f"{v.name or '_'}: {v.type}" for v in op.operands)
        return f"{op.name}({operands}){self.attr_list(op.attrs, op)} : {', '.join(str(r.type) for r in op.results)}"

    def location(self, loc: Any) -> str:
        if not (self.locations and loc):
            return ""
        known = self.places.get(loc)
        if known is None:
            func = " in " + (loc.func if _SCOPE.match(loc.func) else quote(loc.func)) if loc.func else ""
            file = loc.file if _FILE.match(loc.file) else quote(loc.file)
            col = f":{loc.col}" if loc.col > 0 else ""
            known = self.places[loc] = f"  @ {file}:{max(loc.line, 0)}{col}{func}"
        return known

    # ---- attributes
    def attr_list(self, attrs: dict[str, Any], op: Op | None = None) -> str:
        shown = []
        for k, v in attrs.items():
            spec = op.defn.attrs.get(k) if op else None
            if spec is not None and (
                v is spec.default or (type(v) is type(spec.default) and self.attr(v) == self.attr(spec.default))
            ):
                continue
            shown.append(f"{_attr_key(k)}={self.attr(v)}")
        return f" [{', '.join(shown)}]" if shown else ""

    def attr(self, v: Any) -> str:
        match v:
            case np.ndarray():
                return self.array(v)
            case bool() | np.bool_():
                return "true" if v else "false"
            case None:
                return "none"
            case int() | np.integer():
                return str(int(v))
            case float() | np.floating():
                return format_float(float(v))
            case str():
                return quote(v)
            case Poly():
                return f"<{v}>"
            case TensorType() if not v.shape:
                return f"!{v}[]"
            case DType() | TensorType() | VectorType() | MemType():
                return f"!{v}"
            case tuple() | list():
                return "(" + ", ".join(self.attr(x) for x in v) + ("," if len(v) == 1 else "") + ")"
            case dict():
                return "{" + ", ".join(f"{_attr_key(k)}: {self.attr(x)}" for k, x in v.items()) + "}"
        if self.lenient:
            return repr(v)
        raise TypeError(f"attribute {v!r} of type {type(v).__name__} has no text form")

    def array(self, a: np.ndarray[Any, Any]) -> str:
        dtype = dtype_of(a.dtype)
        a = np.asarray(a, dtype.numpy)  # the machine's own byte order
        t = TensorType.of(dtype, a.shape)
        if a.size > INLINE_CONSTANT:
            digest = array_digest(a)
            self.resources[digest] = a
            return f"#{digest}"
        if dtype.is_float:
            bits = a.ravel().view(f"u{dtype.itemsize}")
            items = [f"nan:{int(w):x}" if x != x else format_element(x) for x, w in zip(a.ravel(), bits, strict=True)]
        else:
            items = ["true" if x is True else "false" if x is False else str(x) for x in a.ravel().tolist()]
        return f"dense<{t}: {' '.join(items)}>"


def format_float(x: float) -> str:
    """Shortest text that reads back to the same double."""
    if math.isnan(x):
        return "nan"
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    return repr(x)


def format_element(x: Any) -> str:
    """Shortest text that reads back, by way of a double, to the same element of a float array."""
    short = str(x)
    if short.lstrip("-").isdigit():
        short += ".0"
    return short if type(x)(float(short)) == x else format_float(float(x))


def quote(s: str) -> str:
    """A string literal: JSON rules, ASCII only."""
    import json

    return json.dumps(s)


def symbol_name(name: str) -> str:
    """A module's or function's name as it is printed: `@main`, or `@"any text"`."""
    return "@" + (name if _IDENT.match(name) else quote(name))


def _attr_key(key: str) -> str:
    return key if _KEY.match(key) else quote(key)


def _result_name(name: str) -> str:
    return name if _RESULT.match(name) else quote(name)
