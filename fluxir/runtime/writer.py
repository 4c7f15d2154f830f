"""Writes LLVM IR as text with structured control flow: what the runtime's own machine code is written in.

A `Value` knows its LLVM type, so that `a + 1`, `a.lt(b)` and `p.word(3)` read like the code they stand for. Variables are
stack slots, which LLVM's optimiser makes registers of. Integers compare as signed numbers. Invariants: every block ends in
exactly one terminator; stack slots of fixed size are in the entry block; a `Module` names the functions of Python that
its code calls in `api`, in the order of the table `@api`, which the loader fills in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Function", "Module", "Value", "Variable"]

PTR, I64, I32, I1 = "ptr", "i64", "i32", "i1"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A value of LLVM: a register or a constant of the type `kind`, in the function `f`."""

    f: Function
    kind: str
    text: str

    def _with(self, opcode: str, other: Value | int) -> Value:
        right = self.f.constant(other, self.kind)
        return self.f.let(self.kind, f"{opcode} {self.kind} {self.text}, {right.text}")

    def __add__(self, other: Value | int) -> Value:
        return self._with("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._with("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._with("mul", other)

    def __floordiv__(self, other: Value | int) -> Value:
        """The quotient of numbers that are not negative."""
        return self._with("udiv", other)

    def __and__(self, other: Value | int) -> Value:
        return self._with("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._with("or", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._with("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        """Shifted to the right, filled with zeros."""
        return self._with("lshr", other)

    def __invert__(self) -> Value:
        return self._with("xor", 1 if self.kind == I1 else -1)

    def _compared(self, how: str, other: Value | int) -> Value:
        right = self.f.constant(other, self.kind)
        return self.f.let(I1, f"icmp {how} {self.kind} {self.text}, {right.text}")

    def eq(self, other: Value | int) -> Value:
        return self._compared("eq", other)

    def ne(self, other: Value | int) -> Value:
        return self._compared("ne", other)

    def lt(self, other: Value | int) -> Value:
        return self._compared("slt", other)

    def le(self, other: Value | int) -> Value:
        return self._compared("sle", other)

    def gt(self, other: Value | int) -> Value:
        return self._compared("sgt", other)

    def ge(self, other: Value | int) -> Value:
        return self._compared("sge", other)

    def is_null(self) -> Value:
        return self._compared("eq", 0)

    def choose(self, yes: Value | int, no: Value | int) -> Value:
        """`yes` where this condition holds, else `no`; one of them says the type."""
        kind = next(x.kind for x in (yes, no) if isinstance(x, Value))
        a, b = self.f.constant(yes, kind), self.f.constant(no, kind)
        return self.f.let(kind, f"select i1 {self.text}, {kind} {a.text}, {kind} {b.text}")

    def cast(self, opcode: str, kind: str) -> Value:
        return self.f.let(kind, f"{opcode} {self.kind} {self.text} to {kind}")

    def number(self) -> Value:
        """An address as a number."""
        return self.cast("ptrtoint", I64)

    # ---- memory
    def at(self, offset: Value | int) -> Value:
        """The address `offset` bytes further."""
        return self.f.let(PTR, f"getelementptr i8, ptr {self.text}, i64 {self.f.constant(offset, I64).text}")

    def item(self, i: Value | int, size: int = 8) -> Value:
        """The address of element `i` of an array of elements of `size` bytes."""
        return self.at(i * size)

    def load(self, kind: str, offset: Value | int = 0) -> Value:
        return self.f.let(kind, f"load {kind}, ptr {self.at(offset).text}")

    def store(self, value: Value | int, offset: Value | int = 0, kind: str = I64) -> None:
        v = self.f.constant(value, kind)
        self.f.do(f"store {v.kind} {v.text}, ptr {self.at(offset).text}")

    def word(self, i: Value | int) -> Value:
        """Word `i` of an array of 64-bit integers."""
        return self.load(I64, i * 8)

    def pointer(self, i: Value | int) -> Value:
        """Word `i`, which is an address."""
        return self.load(PTR, i * 8)

    # ---- memory that threads share; everything is sequentially consistent
    def shared(self, kind: str, offset: int = 0) -> Value:
        return self.f.let(kind, f"load atomic {kind}, ptr {self.at(offset).text} seq_cst, align {_size(kind)}")

    def share(self, value: Value | int, offset: int = 0, kind: str = I64) -> None:
        v = self.f.constant(value, kind)
        self.f.do(f"store atomic {v.kind} {v.text}, ptr {self.at(offset).text} seq_cst, align {_size(v.kind)}")

    def exchange(self, operation: str, value: Value | int, offset: int = 0, kind: str = I64) -> Value:
        """Combine in one step; the value before."""
        v = self.f.constant(value, kind)
        text = f"atomicrmw {operation} ptr {self.at(offset).text}, {v.kind} {v.text} seq_cst"
        return self.f.let(v.kind, text)

    def swap_if(self, old: Value | int, new: Value | int, offset: int = 0, kind: str = I64) -> Value:
        """Store `new` where `old` stands, in one step; whether it did."""
        a, b = self.f.constant(old, kind), self.f.constant(new, kind)
        place = self.at(offset).text
        pair = self.f.let(f"{{ {kind}, i1 }}", f"cmpxchg ptr {place}, {kind} {a.text}, {kind} {b.text} seq_cst seq_cst")
        return self.f.let(I1, f"extractvalue {pair.kind} {pair.text}, 1")


def _size(kind: str) -> int:
    return 8 if kind == PTR else int(kind[1:]) // 8


@dataclass(frozen=True, slots=True)
class Variable:
    """A stack slot that holds one value."""

    f: Function
    kind: str
    place: str

    def get(self) -> Value:
        return self.f.let(self.kind, f"load {self.kind}, ptr {self.place}")

    def set(self, value: Value | int) -> None:
        self.f.do(f"store {self.kind} {self.f.constant(value, self.kind).text}, ptr {self.place}")


@dataclass
class Module:
    """A module for one kind of machine: `x86_64` or `aarch64`."""

    machine: str
    functions: list[Function] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    api: list[str] = field(default_factory=list)
    """Names of functions and objects of Python and numpy, in the order of the table."""

    def function(self, result: str, name: str, params: Mapping[str, str], local: bool = False) -> Function:
        """A function to write; `local`: known inside the module only."""
        f = Function(self, result, name, dict(params), local)
        self.functions.append(f)
        return f

    def text(self, name: str, data: str = "") -> str:
        lines = [f'source_filename = "{name}"', f'target triple = "{self.machine}-unknown-linux-gnu"', data]
        if self.api:
            lines.append(f"@api = hidden global [{len(self.api)} x ptr] zeroinitializer, align 8")
        lines += [self.declared[n] for n in sorted(self.declared)]
        return "\n".join([*lines, *[f.written() for f in self.functions]])


class Function:
    """A function being written, its parameters under their names: `f["rt"]`."""

    def __init__(self, module: Module, result: str, name: str, params: dict[str, str], local: bool) -> None:
        self.module, self.result, self.name, self.local = module, result, name, local
        self.params = params
        self.lines: list[str] = []
        self.slots: list[str] = []
        self._count = 0
        self._open = True
        self._ends: list[str] = []  # where the loops around end

    def __getitem__(self, name: str) -> Value:
        return Value(self, self.params[name], f"%{name}")

    def constant(self, x: Value | int, kind: str) -> Value:
        if isinstance(x, Value):
            return x
        if kind == PTR:
            assert x == 0
            return Value(self, PTR, "null")
        return Value(self, kind, {0: "false", 1: "true"}[x] if kind == I1 else str(x))

    def null(self) -> Value:
        return Value(self, PTR, "null")

    def symbol(self, name: str) -> Value:
        """The address of a global or a function of this module."""
        return Value(self, PTR, "@" + name)

    def let(self, kind: str, text: str) -> Value:
        self._count += 1
        self.do(f"%r{self._count} = {text}")
        return Value(self, kind, f"%r{self._count}")

    def do(self, text: str) -> None:
        if not self._open:
            self.label(self._label("dead"))
        self.lines.append("  " + text)

    def _label(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def label(self, name: str) -> None:
        if self._open:
            self.lines.append(f"  br label %{name}")
        self.lines.append(f"{name}:")
        self._open = True

    def _end(self, text: str) -> None:
        self.do(text)
        self._open = False

    # ---- variables and calls
    def variable(self, kind: str, value: Value | int) -> Variable:
        self._count += 1
        place = f"%v{self._count}"
        self.slots.append(f"  {place} = alloca {kind}, align 8")
        v = Variable(self, kind, place)
        v.set(value)
        return v

    def room(self, nbytes: Value | int) -> Value:
        """Memory of this call, aligned to 16 bytes."""
        n = self.constant(nbytes, I64)
        if isinstance(nbytes, int):
            self._count += 1
            self.slots.append(f"  %v{self._count} = alloca i8, i64 {n.text}, align 16")
            return Value(self, PTR, f"%v{self._count}")
        return self.let(PTR, f"alloca i8, i64 {n.text}, align 16")

    def call(self, result: str, function: str | Value, *args: Value) -> Value:
        """Call a function of this module by its name, or the one at an address."""
        target = f"@{function}" if isinstance(function, str) else function.text
        given = ", ".join(f"{a.kind} {a.text}" for a in args)
        if result == "void":
            self.do(f"call void {target}({given})")
            return Value(self, "void", "")
        return self.let(result, f"call {result} {target}({given})")

    def outside(self, result: str, name: str, *args: Value, kinds: str | None = None) -> Value:
        """Call a function of the C library, or an intrinsic; `kinds`: its parameters where they are not those of `args`."""
        kinds = ", ".join(a.kind for a in args) if kinds is None else kinds
        self.module.declared[name] = f"declare {result} @{name}({kinds})"
        if "..." not in kinds:
            return self.call(result, name, *args)
        given = ", ".join(f"{a.kind} {a.text}" for a in args)
        return self.let(result, f"call {result} ({kinds}) @{name}({given})")

    def known(self, name: str) -> Value:
        """A function or object of Python or numpy."""
        api = self.module.api
        if name not in api:
            api.append(name)
        return self.symbol("api").pointer(api.index(name))

    def python(self, name: str, *args: Value, result: str = PTR) -> Value:
        """Call a function of Python or numpy."""
        return self.call(result, self.known(name), *args)

    # ---- structure
    def ret(self, value: Value | int | None = None) -> None:
        v = None if value is None else self.constant(value, self.result)
        self._end("ret void" if v is None else f"ret {v.kind} {v.text}")

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        inside, after = self._label("then"), self._label("end")
        self._end(f"br i1 {condition.text}, label %{inside}, label %{after}")
        self.label(inside)
        yield
        self.label(after)

    @contextmanager
    def forever(self) -> Iterator[None]:
        """A loop that ends by `leave` or `ret`."""
        head, after = self._label("loop"), self._label("done")
        self.label(head)
        self._ends.append(after)
        yield
        self._ends.pop()
        if self._open:
            self._end(f"br label %{head}")
        self.label(after)

    def leave(self) -> None:
        """Leave the innermost loop."""
        self._end(f"br label %{self._ends[-1]}")

    @contextmanager
    def count(self, n: Value | int, first: Value | int = 0) -> Iterator[Value]:
        """Count from `first` to below `n`."""
        i = self.variable(I64, first)
        with self.forever():
            now = i.get()
            with self.when(now.ge(n)):
                self.leave()
            yield now
            i.set(now + 1)

    def written(self) -> str:
        if self._open:
            self._end("ret void" if self.result == "void" else "unreachable")
        head = f"define {'internal ' if self.local else ''}{self.result} @{self.name}("
        head += ", ".join(f"{kind} %{name}" for name, kind in self.params.items()) + ") nounwind {"
        return "\n".join([head, "entry:", *self.slots, *self.lines, "}", ""])
