"""Tokens and the tree of the text form: lark's LALR on grammar.lark, over a lexer of our own.

Lark is imported by the first text that a process reads, and its tables come from `grammar.tables` (see tables.py). The
tree is plain tuples of tokens, which are strings that know their position (`start_pos`). Limits are kept here, before a
token takes memory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from fluxir.ir.attrtext import TextError
from fluxir.ir.tables import GRAMMAR, load_tables

MAX_TOKENS = 4_000_000
MAX_OPS = 250_000
MAX_DEPTH = 64  # of regions

# What the reader of an error calls the grammar's terminals.
FRIENDLY = {
    "FACTS": "a line `dims B >= 1`", "LEVEL": "`func @name`, `kernel @name` or `host @name`", "RESOURCE": "`resource #digest`",
    "LOCATION": "a location such as `@ model.py:12`", "SYMBOL": "a name such as `@main`", "VALUE": "a value such as `%x`",
    "TYPE": "a type such as f32[B,4]", "NAME": "an op", "STRING": "a string", "ATTRIBUTES": "attributes in brackets",
    "LPAR": "`(`", "RPAR": "`)`", "LBRACE": "`{`", "RBRACE": "`}`", "COMMA": "`,`", "COLON": "`:`", "EQUAL": "`=`",
    "MODULE": "`module @name`", "RETURN": "`return`", "YIELD": "`yield`", "$END": "the end of the text",
}  # fmt: skip


@functools.cache
def grammar() -> Any:
    """The lark parser: from the ready tables (15 ms), or where they are not for this lark, from the grammar (100 ms)."""
    return load_tables(*parts()) or from_grammar()


def from_grammar() -> Any:
    """The lark parser, built from grammar.lark."""
    import lark

    lexer, transformer = parts()
    return lark.Lark(GRAMMAR.read_text(), parser="lalr", lexer=lexer, transformer=transformer)


@functools.cache
def parts() -> tuple[Any, Any]:
    """What lark's tables do not hold: the lexer class, and the transformer that makes the tree."""
    import lark

    class Lexer(lark.lexer.Lexer):
        """One regular expression for all terminals of the grammar, in its order: three times as fast as lark's own."""

        __future_interface__ = 2  # lark hands its own states to `lex`

        def __init__(self, conf: Any) -> None:
            words = {t.pattern.value: t.name for t in conf.terminals if t.pattern.type == "str"}
            self.keywords = {w: n for w, n in words.items() if w.isidentifier()}
            source = GRAMMAR.read_text()
            patterns = {t.name: t.pattern.to_regexp() for t in conf.terminals if t.pattern.type == "re"}
            order = [n for n in re.findall(r"^([A-Z]+):", source, re.M) if n not in conf.ignore]
            skip = "|".join(patterns[n] for n in conf.ignore)
            kinds = [f"(?P<{n}>{patterns[n]})" for n in order]
            kinds += [
                f"(?P<{n}>{re.escape(w)})"
                for w, n in sorted(words.items(), key=lambda t: -len(t[0]))
                if n not in self.keywords.values()
            ]
            self.next = re.compile(rf"(?:{skip})*+(?:{'|'.join(kinds)}|(?P<END>\Z))").match

        def lex(self, lexer_state: Any, parser_state: Any) -> Iterator[Any]:
            match, keywords, token = self.next, self.keywords, lark.Token
            text: str = getattr(lexer_state.text, "text", lexer_state.text)
            at = ops = depth = count = 0
            while True:
                m = match(text, at)
                if m is None:
                    raise TextError("FX0101", "", _skip(text, at))
                group = kind = str(m.lastgroup)
                if kind == "END":
                    return
                at = m.end()
                value = m[kind]
                count += 1
                if kind == "NAME":
                    kind = keywords.get(value, kind)
                    ops += 1
                elif kind == "LBRACE":
                    depth += 1
                elif kind == "RBRACE":
                    depth -= 1
                if ops > MAX_OPS or depth > MAX_DEPTH or count > MAX_TOKENS:
                    nested = f"regions nested more than {MAX_DEPTH} deep"
                    what = (
                        f"more than {MAX_OPS} ops"
                        if ops > MAX_OPS
                        else nested
                        if depth > MAX_DEPTH
                        else "too many tokens"
                    )
                    raise TextError("FX0109", f"the program has {what}", m.start(group))
                yield token(kind, value, m.start(group))

    class Shape(lark.Transformer):  # type: ignore[type-arg]
        """Rules become plain tuples: the tree of a program is never held as lark's own."""

        def op(self, c: list[Any]) -> Any:
            results: Any = ()
            operands: Any = ()
            types: Any = ()
            regions: list[Any] = []
            name = attributes = location = None
            for x in c:
                if type(x) is tuple:
                    kind, value = x
                    if kind == "operands":
                        operands = value
                    elif kind == "types":
                        types = value
                    elif kind == "results":
                        results = value
                    else:
                        regions.append(value)
                elif x.type == "NAME":
                    name = x
                elif x.type == "ATTRIBUTES":
                    attributes = x
                else:
                    location = x
            return "op", (results, name, operands, attributes, types, location, regions)

        def results(self, c: list[Any]) -> Any:
            return "results", c

        def types(self, c: list[Any]) -> Any:
            return "types", c

        def values(self, c: list[Any]) -> Any:
            return c

        def operands(self, c: list[Any]) -> Any:
            return "operands", c[0] if c else ()

        def region(self, c: list[Any]) -> Any:
            return "region", c

        def arguments(self, c: list[Any]) -> Any:
            return "params", c[0][1] if c else ()

        def params(self, c: list[Any]) -> Any:
            return "params", c

        def output(self, c: list[Any]) -> Any:
            return c

        def outputs(self, c: list[Any]) -> Any:
            return "outputs", c

        def header(self, c: list[Any]) -> Any:
            return "header", c

        def resource(self, c: list[Any]) -> Any:
            return "resource", c

        def func(self, c: list[Any]) -> Any:
            return "func", c

        def start(self, c: list[Any]) -> Any:
            return c

    def terminator(self: Any, c: list[Any]) -> Any:
        return "end", c[0] if c else ()

    setattr(Shape, "return", terminator)
    setattr(Shape, "yield", terminator)
    return Lexer, Shape()


def _skip(text: str, at: int) -> int:
    """The first position from `at` that is neither space nor comment."""
    m = re.compile(r"(?:\s+|(?:#|//)[^\n]*)*+").match(text, at)
    return m.end() if m else at
