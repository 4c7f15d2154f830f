"""Text to IR: the inverse of printer.py, and the one door through which a stranger's program comes in.

`parse_module(print_module(m))` prints the same bytes again. The grammar (grammar.lark) gives a tree of coarse tokens;
`_Reader` builds the program from it, replaying each op's type rule against the declared types.

Invariants: no text makes this execute anything, take memory out of proportion to its length, or fail with anything but
a `FluxError` that shows file, line and column. Mistakes that do not hide each other are reported together.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxir.errors import FluxError, Location, combine, error, register_source
from fluxir.ir.attrtext import AttrReader, TextError, read_facts, read_resource, read_string, read_type
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Facts, assuming
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import REGISTRY, OpDef, lookup, normalise_attrs
from fluxir.ir.syntax import FRIENDLY, MAX_DEPTH, MAX_OPS, MAX_TOKENS, grammar
from fluxir.ir.types import Type
from fluxir.ir.verify import check_op, check_references, check_value_type, same_type

MAX_BYTES = 64 << 20
_RESULT_OF = re.compile(r"%\w+ *= *[a-z]")
MAX_ERRORS = 20  # reported in one go
LEVELS = {"func": "tensor", "kernel": "kernel", "host": "host"}


def parse_module(
    text: str, filename: str = "<text>", *, locate: bool = False, resources: Mapping[str, Any] | None = None
) -> Module:
    """The module that `text` holds. With `locate`, ops without a location get their place in the text. `resources`: constants
    that `#digest` may name beside those in the text.

    Raises FX0101-FX0118 (several in one error where they are independent), each with line, column and excerpt.
    """
    return _Reader(text, filename, locate, resources).module()


def parse_func(text: str, filename: str = "<text>", *, locate: bool = False) -> Func:
    """The only function of `text`."""
    m = parse_module(text, filename, locate=locate)
    if len(m.funcs) != 1:
        raise error("FX0116", f"expected one function, found {len(m.funcs)}: {', '.join('@' + n for n in m.funcs)}")
    return m.entry


def read_module(path: str | Path, *, locate: bool = True) -> Module:
    """The module in the file `path`; FX0109 before reading a file that is too large, FX0101 where it is not UTF-8."""
    p = Path(path)
    try:
        if p.stat().st_size > MAX_BYTES:
            raise error("FX0109", f"{p} is larger than {MAX_BYTES >> 20} MiB")
        text = p.read_bytes().decode()
    except UnicodeDecodeError as e:
        raise error("FX0101", f"{p} is not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise error("FX0803", f"cannot read {p}: {e.strerror}") from None
    return parse_module(text, str(p), locate=locate)


# ---- from the tree to the program ---------------------------------------------------------------------------------------


class _Reader:
    """One text being read. Types, attribute lists and locations repeat: each is read once."""

    def __init__(self, text: str, filename: str, locate: bool, resources: Mapping[str, Any] | None = None) -> None:
        if len(text) > MAX_BYTES:
            raise error("FX0109", f"the text is larger than {MAX_BYTES >> 20} MiB", loc=Location(filename, 1))
        # Said at once for a text of many ops; the lexer, which counts exactly, takes seconds to get there.
        if len(text) > 1 << 20 and sum(1 for _ in _RESULT_OF.finditer(text)) > MAX_OPS:
            raise error("FX0109", f"the program has more than {MAX_OPS} ops", loc=Location(filename, 1))
        self.text, self.filename, self.locate = text, filename, locate
        self.errors: list[FluxError] = []
        self.lines: list[int] = []
        self.types: dict[str, Type] = {}
        self.places: dict[str, Location] = {}
        self.raw_attrs: dict[str, dict[str, Any]] = {}
        self.attrs: dict[tuple[str, str], Attrs] = {}
        self.resources: dict[str, Any] = dict(resources or {})
        self.attr_reader = AttrReader(self.resources)
        self.calls: list[tuple[Op, Any]] = []
        self.level = "tensor"
        self.outer: list[Mapping[str, Value | None]] = []  # scopes that a closed region does not see

    # ---- failures
    def where(self, offset: int) -> Location:
        if not self.lines:
            self.lines = [0, *(m.end() for m in re.finditer("\n", self.text))]
        line = bisect.bisect_right(self.lines, offset)
        return Location(self.filename, line, offset - self.lines[line - 1] + 1)

    def fail(
        self, at: int, code: str, message: str, *, labels: Any = (), notes: Any = (), help: str | None = None
    ) -> None:
        """Record a mistake and go on, so that all independent ones are reported."""
        self.failed(error(code, message, loc=self.where(at), labels=labels, notes=notes, help=help))

    def failed(self, e: FluxError) -> None:
        self.errors.append(e)
        if len(self.errors) >= MAX_ERRORS:
            self.finish()

    def text_error(self, e: TextError, start: int) -> FluxError:
        return error(e.code, e.message, loc=self.where(start + e.offset), help=e.help)

    def finish(self) -> None:
        if self.errors:
            register_source(self.filename, self.text)
            raise combine(self.errors)

    # ---- the tree
    def tree(self) -> list[Any]:
        import lark

        try:
            return list(grammar().parse(self.text))
        except TextError as e:
            failure = self.text_error(e, 0) if e.message else self.unreadable(e.offset)
        except lark.exceptions.UnexpectedToken as e:
            at = len(self.text.rstrip()) if e.token.type == "$END" else e.token.start_pos
            failure = self.unexpected(e.token, at, set(e.accepts or e.expected))
        except lark.exceptions.UnexpectedInput as e:
            failure = error("FX0101", loc=self.where(getattr(e, "pos_in_stream", 0) or 0))
        register_source(self.filename, self.text)
        raise failure

    def unreadable(self, at: int) -> FluxError:
        c = self.text[at]
        message = {
            "[": "this `[` has no matching `]`",
            '"': "this string does not end on its line",
            "%": "a value's name has letters, digits, `_` and `.`",
            "@": "expected a name such as `@main` or a location such as `@ model.py:12`",
        }.get(c, f"unexpected {c!r}")
        return error("FX0101", message, loc=self.where(at))

    def unexpected(self, token: Any, at: int, expected: set[str]) -> FluxError:
        found = "the end of the text" if token.type == "$END" else f"`{str(token)[:40]}`"
        if token.type == "NAME" and "TYPE" in expected:
            return error("FX0113", f"{found} is not a type", loc=self.where(at),
                         help=f"the types of elements are {' '.join(DTYPES)}; types look like f32[B,784], f32x8")  # fmt: skip
        order = [n for n in FRIENDLY if n in expected]
        listed = [FRIENDLY[n] for n in order]
        wanted = " or ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
        return error("FX0101", f"expected {wanted}, found {found}", loc=self.where(at))

    # ---- pieces
    def type(self, token: Any) -> Type | None:
        t = self.types.get(token)
        if t is None:
            try:
                t = self.types[str(token)] = read_type(token)
            except TextError as e:
                self.failed(self.text_error(e, token.start_pos))
        return t

    def attributes(self, token: Any) -> dict[str, Any]:
        out = self.raw_attrs.get(token)
        if out is None:
            try:
                out = self.raw_attrs[str(token)] = self.attr_reader.read(token)
            except TextError as e:
                raise self.text_error(e, token.start_pos) from None
        return out

    def op_attrs(self, d: OpDef, token: Any) -> Attrs:
        key = (d.name, token or "")
        out = self.attrs.get(key)
        if out is None:
            out = self.attrs[key] = normalise_attrs(d, self.attributes(token) if token else {})
        return out

    def location(self, token: Any, at: int) -> Location | None:
        if token is None:
            return self.where(at) if self.locate else None
        out = self.places.get(token)
        if out is None:
            m = re.match(r'@\s+("(?:[^"\\]|\\.)*"|[\w./\-]+):(\d+)(?::(\d+))?(?:\s+in\s+(.+))?', token, re.S)
            assert m is not None
            try:
                if max(len(m[2]), len(m[3] or "")) > 9:
                    raise TextError("FX0109", "a line or column has more than 9 digits")
                names = [read_string(x) if x.startswith('"') else x for x in (m[1], m[4] or "")]
                out = self.places[str(token)] = Location(names[0], int(m[2]), int(m[3] or 0), names[1])
            except TextError as e:
                self.failed(self.text_error(e, token.start_pos))
        return out

    def symbol(self, token: Any) -> str:
        if not token.startswith('@"'):
            return str(token[1:])
        try:
            return read_string(token[1:])
        except TextError as e:
            self.failed(self.text_error(e, token.start_pos))
            return str(token[1:])

    # ---- structure
    def module(self) -> Module:
        items = self.tree()
        name, attrs, facts = "main", Attrs(), Facts()
        functions = []
        try:
            for item in items:
                kind, value = item if type(item) is tuple else ("facts", item)
                if kind == "resource":
                    self.resource(*value)
                elif kind == "facts":
                    facts = self.facts(value, facts)
                elif kind == "func":
                    functions.append(value)
            for item in items:
                if type(item) is tuple and item[0] == "header":
                    name = self.symbol(item[1][0])
                    attrs = Attrs(self.attributes(item[1][1])) if len(item[1]) > 1 else attrs
        except FluxError as e:
            self.failed(e)
        funcs: dict[str, Func] = {}
        with assuming(facts):
            for f in functions:
                made = self.func(f)
                if made.name in funcs:
                    self.fail(f[1].start_pos, "FX0112", f"the function @{made.name} is defined twice")
                funcs[made.name] = made
            if not funcs and not self.errors:
                self.fail(len(self.text.rstrip()), "FX0116", "the text holds no function")
            module = Module(name, funcs, facts, attrs)
            if not self.errors:
                for op, token in self.calls:
                    try:
                        check_references(op, module)
                    except FluxError as e:
                        self.failed(self.placed(e, op.loc, token))
        self.finish()
        return module

    def facts(self, token: Any, known: Facts) -> Facts:
        try:
            return read_facts(token[len("dims") :], known)
        except TextError as e:
            self.failed(self.text_error(e, token.start_pos + len("dims")))
            return known

    def resource(self, head: Any, type_token: Any, data: Any) -> None:
        digest = head.split("#")[1]
        t = self.type(type_token)
        if t is None:
            return
        try:
            self.resources[digest] = read_resource(digest, t, data[1:-1])
        except TextError as e:
            self.failed(error(e.code, e.message, loc=self.where(head.start_pos), help=e.help))

    def func(self, parts: list[Any]) -> Func:
        level, symbol, *rest = parts
        params: Any = ()
        outputs: Any = ()
        end: Any = None
        nodes: list[Any] = []
        attrs, loc_token = Attrs(), None
        for x in rest:
            if type(x) is not tuple:
                if x.type == "ATTRIBUTES":
                    try:
                        attrs = Attrs(self.attributes(x))
                    except FluxError as e:
                        self.failed(e)
                else:
                    loc_token = x
            elif x[0] == "op":
                nodes.append(x[1])
            elif x[0] == "params":
                params = x[1]
            elif x[0] == "outputs":
                outputs = x[1]
            else:
                end = x[1]
        self.level = LEVELS[str(level)]
        name = self.symbol(symbol)
        for i in range(1, len(params), 2):
            t = self.type(params[i])
            try:
                if t is not None:
                    check_value_type(t, self.level)
            except FluxError as e:
                self.failed(self.placed(e, None, params[i]))
        block = self.block(params, nodes, end or (), {})
        if self.level == "kernel" and (block.outs or outputs):
            self.fail(symbol.start_pos, "FX0111", "a kernel returns nothing, it writes memory")
        names, types = [], []
        for o in outputs:
            types.append(self.type(o[-1]))
            label = str(o[0]) if len(o) > 1 else ""
            names.append(read_string(label) if label.startswith('"') else label)
        if None not in types and not self.errors:
            got = [v.type for v in block.outs]
            if (types or self.level == "tensor") and (len(got) != len(types) or not all(map(same_type, got, types))):
                at = end[0].start_pos if end else symbol.start_pos
                self.fail(
                    at,
                    "FX0111",
                    f"@{name} returns ({', '.join(map(str, got))}), declared is ({', '.join(map(str, types))})",
                )
        loc = self.location(loc_token, level.start_pos)
        return Func(name, block, self.level, attrs, tuple(names) if any(names) else (), loc)

    def block(self, params: Any, nodes: list[Any], outs: Any, scope: dict[str, Value | None]) -> Block:
        args = []
        own: list[str] = []
        for i in range(0, len(params), 2):
            t = self.type(params[i + 1])
            v = Value(t, None, i // 2) if t is not None else None
            own.append(self.define(params[i], v, scope))
            if v is not None:
                args.append(v)
        ops: list[Op] = []
        for node in nodes:
            own += self.op(node, scope, ops)
        found = [self.use(t, scope) for t in outs]
        for name in own:  # what a region defines ends with it
            scope.pop(name, None)
        return Block(args, ops, [v for v in found if v is not None])

    def define(self, token: Any, v: Value | None, scope: dict[str, Value | None]) -> str:
        name = str(token[1:])
        if name in scope:
            self.fail(token.start_pos, "FX0104", f"{token} is already defined")
        scope[name] = v
        if v is not None and not name[0].isdigit():
            v.name = name
        return name

    def use(self, token: Any, scope: Mapping[str, Value | None]) -> Value | None:
        name = token[1:]
        if name in scope:
            return scope[name]  # None: its definition failed, and that was reported
        near = difflib.get_close_matches(name, scope, 3) if len(scope) < 10_000 else []
        help = "did you mean " + ", ".join("%" + n for n in near) + "?" if near else None
        if any(name in s for s in self.outer):
            help = "regions of tensor programs are closed: pass the value as an operand of the op that owns the region"
        self.fail(token.start_pos, "FX0103", f"{token} is not defined here", help=help)
        return None

    def op(self, node: Any, scope: dict[str, Value | None], ops: list[Op]) -> list[str]:
        """Append the op of `node` to `ops`; returns the names it defines."""
        results, name, operands, attr_token, type_tokens, loc_token, regions = node
        loc = self.location(loc_token, name.start_pos)
        before = len(self.errors)
        defn = REGISTRY.get(name)
        if defn is None:
            try:
                lookup(str(name))
            except FluxError as e:
                e.loc = self.where(name.start_pos)
                self.failed(e)
        values = [self.use(t, scope) for t in operands]
        declared = [self.type(t) for t in type_tokens]
        blocks = []
        for children in regions:
            params: Any = ()
            outs: Any = ()
            nodes = []
            for kind, value in children:
                if kind == "op":
                    nodes.append(value)
                elif kind == "params":
                    params = value
                else:
                    outs = value
            if self.level == "tensor":
                self.outer.append(scope)
                blocks.append(self.block(params, nodes, outs, {}))
                self.outer.pop()
            else:
                blocks.append(self.block(params, nodes, outs, scope))
        if len(results) != len(declared):
            at = type_tokens[0].start_pos if type_tokens else name.start_pos
            self.fail(
                at,
                "FX0105",
                f"{name}: {len(results)} results, {len(declared)} types",
                help="each result has one type behind the colon",
            )
        op = None
        if len(self.errors) == before and defn is not None and None not in values:
            try:
                attrs = self.op_attrs(defn, attr_token)
                op = check_op(defn, values, attrs, blocks, self.level, loc, declared)  # type: ignore[arg-type]
            except FluxError as e:
                self.failed(self.placed(e, loc, name, zip(operands, values, strict=True)))
        if op is not None:
            ops.append(op)
            if "callee" in op.attrs:
                self.calls.append((op, name))
        made = op.results if op is not None else [Value(t) if t is not None else None for t in declared]
        return [self.define(token, made[i] if i < len(made) else None, scope) for i, token in enumerate(results)]

    def placed(self, e: FluxError, written: Location | None, token: Any, values: Any = ()) -> FluxError:
        """A type rule's error at the op's place in the text, with the operands; the user's line becomes a note."""
        if e.loc is None or e.loc.file != self.filename:
            e.loc = self.where(token.start_pos)
            e.labels += [(str(name), str(v.type)) for name, v in values]
        if written is not None and written.file != self.filename:
            e.notes.append(f"the op was written at {written}")
        return e


__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_OPS", "MAX_TOKENS", "parse_func", "parse_module", "read_module"]
