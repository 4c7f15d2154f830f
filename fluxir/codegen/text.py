"""LLVM IR as text: a module under construction, and one function of it with its registers, blocks and types.

`Unit` is a module, `Dialect` says what differs between machines in spelling alone, `Writer` holds one function. What ops
mean is told by its subclasses (arithmetic.py, emit.py). Invariants: every value is a register or literal of
`Writer.register(type)`; bool is i1 in registers and i8 in memory; text depends on the program alone, so equal programs
give equal text; a pure instruction is written once in a place that dominates its uses. `prelude` holds what belongs into
the entry block: sizes and stack memory.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxir.errors import error
from fluxir.ir.core import Value
from fluxir.ir.dtypes import DType
from fluxir.ir.types import MemType, Type, VectorType

__all__ = ["Dialect", "Unit", "Writer"]


@dataclass(frozen=True)
class Dialect:
    """What differs between machines in spelling alone."""

    triple: str
    spaces: Mapping[str, int] = field(default_factory=dict)
    """LLVM address space of each memory space; 0 where absent."""
    half: str = "i16"
    """Register type of f16: `half` where the machine converts it, else its bits."""
    bfloat: str = "i16"
    """Register type of bf16."""
    layout: str = ""
    """The data layout line; empty: the target machine's own."""
    narrow_counts: bool = False
    """The machine's counts of 64-bit shifts have 32 bits. LLVM 22's NVPTX folds `n < 64 ? x << n : 0` into one instruction
    that saturates, and drops the upper half of n on the way: 1 << 2**32 is 1. A count it sees to be small is kept."""


class Unit:
    """One LLVM module under construction: declarations, definitions, globals and metadata, in order of first use."""

    def __init__(self, dialect: Dialect, name: str) -> None:
        self.dialect = dialect
        self.name = name
        self.globals: list[str] = []
        self.declares: dict[str, str] = {}
        self.defines: list[str] = []
        self.metadata: list[str] = []
        self.named_metadata: list[str] = []
        self._names: dict[str, int] = {}

    def unique(self, hint: str) -> str:
        """A function or global name (without @) not used before in this module."""
        clean = "".join(c if c.isalnum() or c in "_." else "_" for c in hint) or "f"
        n = self._names.get(clean, 0)
        self._names[clean] = n + 1
        return clean if n == 0 else f"{clean}.{n}"

    def declare(self, name: str, result: str, params: Sequence[str]) -> str:
        """`@name`, declared once."""
        self.declares.setdefault(name, f"declare {result} @{name}({', '.join(params)})")
        return "@" + name

    def meta(self, text: str, distinct: bool = False) -> str:
        """A metadata node with contents `text` (`!SELF` stands for the node itself); returns its name."""
        me = f"!{len(self.metadata)}"
        self.metadata.append(f"{me} = {'distinct ' if distinct else ''}!{{{text.replace('!SELF', me)}}}")
        return me

    def node(self, text: str, distinct: bool = False) -> str:
        """A specialised metadata node such as `!DIFile(...)`; returns its name."""
        me = f"!{len(self.metadata)}"
        self.metadata.append(f"{me} = {'distinct ' if distinct else ''}{text}")
        return me

    def text(self) -> str:
        """The whole module."""
        head = [f'source_filename = "{self.name}"', f'target triple = "{self.dialect.triple}"']
        if self.dialect.layout:
            head.insert(1, f'target datalayout = "{self.dialect.layout}"')
        return "\n".join(
            [*head, "", *self.globals, *self.defines, *self.declares.values(), *self.named_metadata, *self.metadata, ""]
        )


_PURE = frozenset(
    "add sub mul shl lshr ashr and or xor icmp fcmp select getelementptr bitcast zext sext trunc fpext fptrunc sitofp uitofp "
    "shufflevector insertelement extractelement fadd fsub fmul fdiv fneg sdiv udiv srem urem".split()
)
"""Instructions that give the same value wherever they stand. Divisions are guarded where they are written."""


class Writer:
    """The text of one function so far, and how types and values are written in it."""

    def __init__(self, unit: Unit, symbols: Mapping[str, str], fast: bool = False) -> None:
        self.unit = unit
        self.dialect = unit.dialect
        self.symbols = dict(symbols)
        self.fast = fast  # accuracy="fast": contraction everywhere
        self.values: dict[Value, str] = {}
        self.prelude: list[str] = []
        self.body: list[str] = []
        self.label = "entry"
        self.debug = ""  # metadata that says where in the user's source an instruction comes from
        self.relaxed: set[Value] = set()  # values that a `for [fast]` allows to be reassociated
        self._next = 0
        self._labels = 0
        self._dims: dict[Any, str] = {}
        # Instructions known here by their text: of the entry block, then of each region around this place.
        self._known: list[dict[str, str]] = [{}, {}]

    # ---- text
    def fresh(self) -> str:
        self._next += 1
        return f"%v{self._next}"

    def let(self, text: str, prelude: bool = False, pure: bool = False) -> str:
        """The value of an instruction: appended, or taken from an equal pure one that dominates this place."""
        if pure or text.split(" ", 1)[0] in _PURE:
            found = next((r for seen in self._known if (r := seen.get(text))), None)
            if found is not None:
                return found
            r = self.fresh()
            (self._known[0] if prelude else self._known[-1])[text] = r
        else:
            r = self.fresh()
        (self.prelude if prelude else self.body).append(f"  {r} = {text}{self.debug}")
        return r

    def reserve(self, count: int) -> int:
        """Room for `count` registers `%v<n + 1>` to `%v<n + count>`; returns n."""
        n = self._next
        self._next += count
        return n

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Code that does not dominate what follows: what is computed in it is forgotten behind it."""
        self._known.append({})
        try:
            yield
        finally:
            self._known.pop()

    def do(self, text: str) -> None:
        """Append an instruction without a value."""
        self.body.append(f"  {text}{self.debug}")

    def new_label(self, hint: str) -> str:
        self._labels += 1
        return f"{hint}{self._labels}"

    def start(self, label: str) -> None:
        """Begin a basic block; the one before must have been ended."""
        self.body.append(f"{label}:")
        self.label = label

    def text_of_body(self) -> str:
        return "\n".join(["entry:", *self.prelude, *self.body])

    # ---- types
    def scalar(self, d: DType) -> str:
        """Register type of one element."""
        if d.kind == "bool":
            return "i1"
        if d.kind != "float":
            return f"i{d.bits}"
        return {"f16": self.dialect.half, "bf16": self.dialect.bfloat, "f32": "float", "f64": "double"}[d.name]

    def stored(self, d: DType) -> str:
        """Memory type of one element."""
        return "i8" if d.kind == "bool" else self.scalar(d)

    def register(self, t: Type) -> str:
        """Register type of a value."""
        if isinstance(t, MemType):
            return self.pointer(t.space)
        if isinstance(t, VectorType):
            return f"<{t.lanes} x {self.scalar(t.dtype)}>"
        if t.shape:
            raise error(
                "FX0503", f"a value of type {t} reached code generation: loop-level values are scalars or vectors"
            )
        return self.scalar(t.dtype)

    def pointer(self, space: str) -> str:
        n = self.dialect.spaces.get(space, 0)
        return f"ptr addrspace({n})" if n else "ptr"

    def suffix(self, t: Type) -> str:
        """The type as it stands in the name of an overloaded intrinsic."""
        name = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}
        s = self.scalar(t.dtype)
        return (f"v{t.lanes}" if isinstance(t, VectorType) else "") + name.get(s, s)

    def literal(self, value: Any, d: DType) -> str:
        """A scalar constant."""
        kind = self.scalar(d)
        if kind == "i1":
            return "true" if bool(value) else "false"
        if d.kind != "float":
            return str(int(value))
        if d.bits == 16:
            bits = int.from_bytes(d.numpy.type(value).tobytes(), "little")
            if kind == "half":
                return f"0xH{bits:04X}"
            return f"0xR{bits:04X}" if kind == "bfloat" else str(bits)
        # LLVM writes a float constant as the double of the same value.
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"

    def zero(self, t: Type) -> str:
        return "zeroinitializer" if isinstance(t, VectorType) else self.literal(0, t.dtype)

    def constant(self, value: Any, t: Type) -> str:
        """A Python number as a constant of `t`, in every lane of a vector."""
        s = self.literal(value, t.dtype)
        return f"splat ({self.scalar(t.dtype)} {s})" if isinstance(t, VectorType) else s

    def get(self, v: Value) -> str:
        return self.values[v]

    def typed(self, v: Value) -> str:
        return f"{self.register(v.type)} {self.get(v)}"
