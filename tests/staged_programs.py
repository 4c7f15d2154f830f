"""Random Python functions with control flow, as source text: what `@fx.function` makes of them must be what Python does.

The programs are bounded: loops count to small numbers, integers stay in -50..50 through `%`. Floats are cut to -4..4 and to
quarters, so that sums and products are exact and a comparison never depends on rounding. Every variable has a value and one
type from the first line on, so that each program can be staged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

INTS, FLOATS, ARRAY = ("a", "b", "c"), ("u", "v"), "x"


class Source:
    """One random program, written line by line."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.depth = 1
        self.loops: list[str] = []  # the kinds of loops around
        self.counter = 0
        self.helper = self.flip(0.5)

    def flip(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def put(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def fresh(self) -> str:
        self.counter += 1
        return f"k{self.counter}"

    # ---- expressions
    def integer(self, depth: int = 0) -> str:
        kinds = (
            ["name", "name", "number", "loop"]
            if depth > 2
            else ["name", "number", "loop", "sum", "mod", "if", "minmax", "call", "div", "round"]
        )
        match self.pick(kinds):
            case "number":
                return str(int(self.rng.integers(-4, 6)))
            case "loop" if self.loops and self.loops[-1] != "-":
                return str(self.pick([k for k in self.loops if k != "-"]))
            case "sum":
                return f"({self.integer(depth + 1)} {self.pick('+-*')} {self.integer(depth + 1)})"
            case "mod":
                return f"({self.integer(depth + 1)} % {self.pick((2, 3, 5, 7))})"
            case "div":
                return f"({self.integer(depth + 1)} // {self.pick((2, 3, -4))})"
            case "if":
                return f"({self.integer(depth + 1)} if {self.condition(depth + 1)} else {self.integer(depth + 1)})"
            case "minmax":
                return f"{self.pick(('min', 'max'))}({self.integer(depth + 1)}, {self.integer(depth + 1)})"
            case "round":
                return f"abs({self.integer(depth + 1)})"
            case "call" if self.helper:
                return f"helper({self.integer(depth + 1)} % 4, {self.pick(INTS)})"
        return str(self.pick(INTS))

    def number(self, depth: int = 0) -> str:
        kinds = (
            ["name", "element"]
            if depth > 2
            else ["name", "literal", "sum", "element", "if", "squash", "minmax", "total"]
        )
        match self.pick(kinds):
            case "literal":
                return str(float(self.rng.integers(-6, 7)) / 4)
            case "sum":
                return f"({self.number(depth + 1)} {self.pick('+-*')} {self.number(depth + 1)})"
            case "element":
                return f"x[{self.integer(depth + 1)} % 4]"
            case "if":
                return f"({self.number(depth + 1)} if {self.condition(depth + 1)} else {self.number(depth + 1)})"
            case "squash":
                return f"abs({self.number(depth + 1)} * 0.5)"
            case "minmax":
                return f"{self.pick(('min', 'max'))}({self.number(depth + 1)}, {self.number(depth + 1)})"
            case "total":
                return "x.sum()"
        return str(self.pick(FLOATS))

    def condition(self, depth: int = 0) -> str:
        match self.pick(["int", "float", "and", "or", "not", "chain", "even"] if depth < 3 else ["int", "even"]):
            case "float":
                return f"{self.number(depth + 1)} {self.pick('<>')} {self.number(depth + 1)}"
            case "and":
                return f"({self.condition(depth + 1)} and {self.condition(depth + 1)})"
            case "or":
                return f"({self.condition(depth + 1)} or {self.condition(depth + 1)})"
            case "not":
                return f"(not {self.condition(depth + 1)})"
            case "chain":
                return f"({self.integer(depth + 1)} < {self.pick(INTS)} <= {self.integer(depth + 1)})"
            case "even":
                return f"{self.pick(INTS)} % 2 == {self.pick((0, 1))}"
        return f"{self.integer(depth + 1)} {self.pick(('<', '>', '==', '!=', '<=', '>='))} {self.integer(depth + 1)}"

    # ---- statements
    def block(self, size: int) -> None:
        self.depth += 1
        before = len(self.lines)
        for _ in range(size):
            self.statement()
        if len(self.lines) == before:
            self.put("pass")
        self.depth -= 1

    def statement(self) -> None:
        simple = ["int", "int", "float", "float", "write", "write", "swap", "walrus"]
        if self.loops:
            simple += ["break", "continue"]
        nested = ["if", "if", "for", "while", "return", "rows", "zip"] if self.depth < 5 else []
        size = int(self.rng.integers(1, 4))
        match self.pick(simple + nested):
            case "int":
                if self.flip(0.4):
                    name = self.pick(INTS)
                    self.put(f"{name} {self.pick(('+=', '-=', '*='))} {self.integer()}")
                    self.put(f"{name} = {name} % 50")
                else:
                    self.put(f"{self.pick(INTS)} = {self.integer()} % 50")
            case "float":
                name = self.pick(FLOATS)
                self.put(f"{name} = {self.number()}")
                self.put(f"{name} = max(-4.0, min(4.0, {name})) * 4.0 // 1.0 / 4.0")
            case "write":
                what = self.pick(["set", "set", "add", "mask", "slice", "pair"])
                if what == "set":
                    self.put(f"x[{self.integer(1)} % 4] = {self.pick(FLOATS)}")
                elif what == "add":
                    self.put(f"x[{self.integer(1)} % 4] += {self.pick(FLOATS)}")
                elif what == "mask":
                    self.put(f"x[x > {self.pick(FLOATS)}] = {self.pick(('0.5', *FLOATS))}")
                elif what == "slice":
                    self.put(f"x[{self.pick(('1:', ':3', '::2'))}] -= {self.pick(FLOATS)}")
                else:
                    self.put(f"x[0], x[{self.integer(1)} % 4] = {self.pick(FLOATS)}, {self.pick(FLOATS)}")
            case "swap":
                p, q = self.rng.permutation(len(INTS))[:2]
                self.put(f"{INTS[p]}, {INTS[q]} = {INTS[q]}, {INTS[p]}")
            case "walrus":
                self.put(
                    f"if {self.pick(INTS)} > 0 {self.pick(('and', 'or'))} ({self.pick(INTS)} := {self.integer(1)} % 50) < 3:"
                )
                self.block(1)
            case "break" | "continue" as word:
                self.put(f"if {self.condition()}:")
                self.put(f"    {word}")
            case "return":
                self.put(f"if {self.condition()}:")
                self.put(f"    return {self.integer()} % 50, {self.pick(FLOATS)}, x")
            case "if":
                self.put(f"if {self.condition()}:")
                self.block(size)
                if self.flip(0.3):
                    self.put(f"elif {self.condition()}:")
                    self.block(1)
                if self.flip(0.6):
                    self.put("else:")
                    self.block(int(self.rng.integers(1, 3)))
            case "for":
                k = self.fresh()
                bound = self.pick(
                    (
                        f"({self.integer(1)}) % 5",
                        "3",
                        "2",
                        f"1, {self.pick(INTS)} % 6",
                        f"{self.pick(INTS)} % 5, -1, -2",
                    )
                )
                self.loop(f"for {k} in range({bound}):", k, size)
            case "rows":
                self.put("w = 0.0")
                self.loop(
                    self.pick(("for w in x + 0.0:", "for k0, w in enumerate(x + 0.0):", "for w in reversed(x + 0.0):")),
                    "-",
                    size,
                )
            case "zip":
                self.put("w = 0.0")
                self.loop("for w, t in zip(x + 0.0, (1, 2, 3)):", "-", size)
            case "while":
                k = self.fresh()
                self.put(f"{k} = 0")
                self.put(f"while {k} < {self.pick((2, 4))} and {self.condition(2)}:")
                self.depth += 1
                self.put(f"{k} += 1")
                self.depth -= 1
                self.loop("", k, size)

    def loop(self, header: str, name: str, size: int) -> None:
        if header:
            self.put(header)
        self.loops.append(name)
        self.block(size)
        self.loops.pop()
        if self.flip(0.25):
            self.put("else:")
            self.block(1)


HELPER = """
def helper(n, m):
    if n <= 0:
        return m % 7
    if m > 3:
        return helper(n - 1, m - 2) + 1
    return helper(n - 2, m + 1)
"""


def random_source(seed: int, size: int = 6) -> str:
    """The source of a function `program(a, b, u, x)` and of a recursive `helper`."""
    s = Source(seed)
    s.put("c, v = 1, 0.25")
    for _ in range(size):
        s.statement()
    s.put(
        "return a, u + v, x, b, c" if not any("return" in line for line in s.lines) else "return (a + b + c) % 50, v, x"
    )
    return HELPER + "\n\ndef program(a, b, u, x):\n" + "\n".join(s.lines) + "\n"


def arguments(seed: int) -> tuple[Any, ...]:
    """Arguments for a program."""
    rng = np.random.default_rng(seed)
    a, b = (np.int64(n) for n in rng.integers(-9, 10, 2))
    return a, b, np.float32(rng.integers(-9, 10) / 4), (rng.integers(-9, 10, 4) / 4).astype(np.float32)


__all__ = ["arguments", "random_source"]
