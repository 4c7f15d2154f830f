"""LLVM IR as text: a function that is written instruction by instruction, with loops and conditions as `with` blocks.

A value is its LLVM name or constant. `Text` keeps the order of what is written; `var`, `when` and `bits` are for the helpers of
`accesses`, which LLVM optimises: variables are stack slots there, and its passes make registers of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..values import dtype

__all__ = ["LANES", "Text", "splat", "vector", "word"]

LANES = 32


def word(kind: str) -> str:
    """The LLVM integer type as wide as a PTX type: `i32` for `f32`; `i1` for predicates."""
    return "i1" if kind == "pred" else f"i{8 * dtype(kind).itemsize}"


def scalar(kind: str) -> str:
    """The LLVM type in which a PTX type computes: `float` for `f32`; bf16 and packed types are integers."""
    return {"f16": "half", "f32": "float", "f64": "double"}.get(kind) or word(kind)


def vector(element: str) -> str:
    """One element for each lane of a warp."""
    return f"<{LANES} x {element}>"


def splat(element: str, value: int | str) -> str:
    """A constant, the same in all lanes."""
    return f"splat ({element} {value})"


class Text:
    """A function's text. Calling it appends an instruction that has a value, and gives the value's name."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.lines: list[str] = []
        self.slots: list[str] = []  # stack slots, at the entry
        self.count = 0
        self.declared: dict[str, str] = {}

    def name(self, stem: str = "v") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def __call__(self, instruction: str) -> str:
        value = "%" + self.name()
        self.lines.append(f"  {value} = {instruction}")
        return value

    def op(self, name: str, kind: str, a: str | int, b: str | int) -> str:
        """An instruction of two operands of a type."""
        return self(f"{name} {kind} {a}, {b}")

    def cast(self, name: str, of: str, value: str, to: str) -> str:
        """A conversion; the value itself where the types are the same."""
        return value if of == to else self(f"{name} {of} {value} to {to}")

    def do(self, instruction: str) -> None:
        """Append an instruction without a value."""
        self.lines.append(f"  {instruction}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def slot(self, kind: str, align: int = 32) -> str:
        """A stack slot."""
        value = "%" + self.name("s")
        self.slots.append(f"  {value} = alloca {kind}, align {align}")
        return value

    def call(self, result: str, function: str, *arguments: tuple[str, str]) -> str:
        """Call a function, which is declared by this; `arguments`: (type, value)."""
        self.declared[function] = f"declare {result} @{function}({', '.join(kind for kind, _ in arguments)})"
        text = f"call {result} @{function}({', '.join(f'{kind} {value}' for kind, value in arguments)})"
        if result == "void":
            self.do(text)
            return ""
        return self(text)

    def at(self, base: str, offset: int | str, kind: str = "i64") -> str:
        """The address `offset` bytes after `base`."""
        return self(f"getelementptr i8, ptr {base}, {kind} {offset}")

    def load(self, kind: str, address: str, align: int = 0) -> str:
        return self(f"load {kind}, ptr {address}" + (f", align {align}" if align else ""))

    def store(self, kind: str, value: str, address: str, align: int = 0) -> None:
        self.do(f"store {kind} {value}, ptr {address}" + (f", align {align}" if align else ""))

    def spread(self, element: str, value: str) -> str:
        """A number to all lanes."""
        one = self(f"insertelement {vector(element)} poison, {element} {value}, i64 0")
        kind = vector(element)
        return self(f"shufflevector {kind} {one}, {kind} poison, <{LANES} x i32> zeroinitializer")

    # ---- structure, for code that LLVM optimises
    def var(self, kind: str, value: str) -> str:
        place = self.slot(kind, 8)
        self.store(kind, value, place)
        return place

    def add(self, kind: str, place: str, value: str | int) -> None:
        """Add to a number in memory."""
        self.store(kind, self(f"add {kind} {self.load(kind, place)}, {value}"), place)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        inside, after = self.name("then"), self.name("end")
        self.do(f"br i1 {condition}, label %{inside}, label %{after}")
        self.label(inside)
        yield
        self.do(f"br label %{after}")
        self.label(after)

    @contextmanager
    def loop(self, kind: str, first: str, end: str) -> Iterator[str]:
        """Count from `first` to below `end`."""
        i = self.var(kind, first)
        head, inside, after = self.name("head"), self.name("body"), self.name("after")
        self.do(f"br label %{head}")
        self.label(head)
        now = self.load(kind, i)
        self.do(f"br i1 {self(f'icmp ult {kind} {now}, {end}')}, label %{inside}, label %{after}")
        self.label(inside)
        yield now
        self.add(kind, i, 1)
        self.do(f"br label %{head}")
        self.label(after)

    @contextmanager
    def bits(self, mask: str) -> Iterator[str]:
        """For every bit that is set in an i32, from the lowest: its number, as i64."""
        rest = self.var("i32", mask)
        head, inside, after = self.name("head"), self.name("body"), self.name("after")
        self.do(f"br label %{head}")
        self.label(head)
        now = self.load("i32", rest)
        self.do(f"br i1 {self(f'icmp ne i32 {now}, 0')}, label %{inside}, label %{after}")
        self.label(inside)
        lane = self.call("i32", "llvm.cttz.i32", ("i32", now), ("i1", "true"))
        yield self(f"zext i32 {lane} to i64")
        below = self(f"sub i32 {now}, 1")
        self.store("i32", self(f"and i32 {now}, {below}"), rest)
        self.do(f"br label %{head}")
        self.label(after)

    def text(self) -> str:
        """The definition, and the declarations that it needs."""
        return "\n".join([f"{self.head} {{", "entry:", *self.slots, *self.lines, "}", ""])


def module(*functions: Text) -> str:
    """A module of functions."""
    declared: dict[str, str] = {}
    for f in functions:
        declared |= f.declared
    defined = {f.head.partition("@")[2].partition("(")[0] for f in functions}
    return "\n".join([*(f.text() for f in functions), *(d for name, d in declared.items() if name not in defined), ""])
