"""Loop-level IR to LLVM IR text: values, arithmetic, memory and structured control flow of one function.

`Unit` is an LLVM module under construction, `Emitter` writes one function into it, `Dialect` says what differs between
machines (address spaces, register types of the small floats). A machine subclasses `Emitter` and adds `op_<name>`
methods for the ops it alone has (`parallel` on a CPU, `thread_id` on a GPU); everything else is spelled by the op's
own declaration (`OpDef.llvm`).

Invariants:
- Every value is an LLVM register or literal of `Emitter.register(type)`; bool is i1 in registers and i8 in memory.
- Memory is addressed by getelementptr from the memory's own pointer with a row-major linear i64 index.
- Text depends on the program alone (no ids, no hashes of objects), so equal programs give equal text.
- Regions become basic blocks and phis here and nowhere else. `prelude` holds what belongs into the entry block: sizes
  and stack memory.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxir.errors import error
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim, Opaque
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import MemType, TensorType, Type, VectorType

__all__ = ["Dialect", "Emitter", "Unit"]


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


class Unit:
    """One LLVM module under construction: declarations, definitions, globals and metadata, in order of first use."""

    def __init__(self, dialect: Dialect, name: str) -> None:
        self.dialect = dialect
        self.name = name
        self.globals: list[str] = []
        self.declares: dict[str, str] = {}
        self.defines: list[str] = []
        self.metadata: list[str] = []
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

    def text(self) -> str:
        """The whole module."""
        head = [f'source_filename = "{self.name}"', f'target triple = "{self.dialect.triple}"']
        if self.dialect.layout:
            head.insert(1, f'target datalayout = "{self.dialect.layout}"')
        return "\n".join([*head, "", *self.globals, *self.defines, *self.declares.values(), *self.metadata, ""])


_COMPARE = {
    "lt": ("olt", "slt", "ult"), "le": ("ole", "sle", "ule"), "gt": ("ogt", "sgt", "ugt"),
    "ge": ("oge", "sge", "uge"), "eq": ("oeq", "eq", "eq"), "ne": ("une", "ne", "ne"),
}  # fmt: skip
_PURE = frozenset(
    "add sub mul shl lshr ashr and or xor icmp fcmp select getelementptr bitcast zext sext trunc fpext fptrunc sitofp uitofp "
    "shufflevector insertelement extractelement fadd fsub fmul fdiv fneg sdiv udiv srem urem".split()
)
"""Instructions that give the same value wherever they stand. Divisions are guarded where they are written."""
_EXTRA_FALSE = ("ctlz", "cttz", "abs")  # intrinsics whose second parameter says "zero (minimum) is undefined": never
_LANE_OPS = {
    "add": ("add", "add", "fadd"), "mul": ("mul", "mul", "fmul"), "and": ("and", "and", ""), "or": ("or", "or", ""),
    "max": ("@smax", "@umax", "@maximum"), "min": ("@smin", "@umin", "@minimum"),
}  # fmt: skip


class Emitter:
    """Writes one function. `symbols` maps size symbols to the registers that hold them."""

    def __init__(self, unit: Unit, symbols: Mapping[str, str], fast: bool = False) -> None:
        self.unit = unit
        self.dialect = unit.dialect
        self.symbols = dict(symbols)
        self.fast = fast  # accuracy="fast": contraction everywhere
        self.values: dict[Value, str] = {}
        self.prelude: list[str] = []
        self.body: list[str] = []
        self.label = "entry"
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
        (self.prelude if prelude else self.body).append(f"  {r} = {text}")
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
        self.body.append(f"  {text}")

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

    # ---- blocks
    def run(self, block: Block) -> list[str]:
        """Emit a region's ops; its arguments must be bound. Returns what it yields."""
        for op in block.ops:
            self.op(op)
        return [self.get(v) for v in block.outs]

    def op(self, op: Op) -> None:
        result = self.recipe(op)
        if result is None:
            method: Callable[[Op], Any] | None = getattr(self, "op_" + op.name, None)
            result = method(op) if method else self.spelled(op)
        if isinstance(result, str):
            result = (result,)
        for v, r in zip(op.results, result or (), strict=True):
            self.values[v] = r

    def recipe(self, op: Op) -> Any:
        """The result of an op that is written by a recipe; None for all others. Machines hook in here."""
        return None

    # ---- arithmetic
    def flags(self, op: Op) -> str:
        """Fast-math flags of a float instruction: none unless asked for, so that results agree across machines."""
        if op.results[0] in self.relaxed:
            return " reassoc nsz contract"
        return " contract" if self.fast or op.attrs.get("contract") else ""

    def spelled(self, op: Op) -> str:
        """An op by the spelling in its declaration: an instruction, `@intrinsic`, or `cmp.<predicate>`."""
        t = op.operands[0].type if op.operands else op.results[0].type if op.results else None
        spell = op.defn.llvm
        if t is None or spell is None:
            raise error("FX0502", f"{op.name} has no code for {self.dialect.triple}", loc=op.loc)
        d = t.dtype
        if isinstance(spell, Mapping):
            spell = spell.get(d.kind)
        if callable(spell):
            return str(spell(self, op))
        if not isinstance(spell, str):
            raise error("FX0502", f"{op.name} on {t} has no code for {self.dialect.triple}", loc=op.loc)
        if spell.startswith("cmp."):
            return self.compare(spell[4:], t, *map(self.get, op.operands))
        flags = self.flags(op) if d.is_float else ""
        if spell.startswith("@"):
            return self.intrinsic(spell[1:], t, *map(self.get, op.operands), flags=flags)
        if d.name == "i64" and (known := _folded(spell, *map(self.get, op.operands))) is not None:
            return known
        args = ", ".join(self.get(v) for v in op.operands)
        return self.let(f"{spell}{flags} {self.register(t)} {args}")

    def compare(self, word: str, t: Type, x: str, y: str) -> str:
        f, s, u = _COMPARE[word]
        if t.dtype.is_float:
            return self.let(f"fcmp {f} {self.register(t)} {x}, {y}")
        return self.let(f"icmp {s if t.dtype.kind == 'int' else u} {self.register(t)} {x}, {y}")

    def intrinsic(self, name: str, t: Type, *args: str, flags: str = "") -> str:
        """Call `llvm.<name>.<type>` with all operands and the result of type `t`."""
        r = self.register(t)
        params, given = [r] * len(args), [f"{r} {a}" for a in args]
        if name in _EXTRA_FALSE:
            params.append("i1")
            given.append("i1 false")
        f = self.unit.declare(f"llvm.{name}.{self.suffix(t)}", r, params)
        return self.let(f"call{flags} {r} {f}({', '.join(given)})", pure=True)

    def op_const(self, op: Op) -> str:
        return self.literal(op.attrs.value.reshape(-1)[0], op.result.dtype)

    def op_dim(self, op: Op) -> str:
        return self.dim(op.attrs.value)

    def op_select(self, op: Op) -> str:
        c, x, y = op.operands
        return self.let(f"select {self.typed(c)}, {self.typed(x)}, {self.typed(y)}")

    def op_div(self, op: Op) -> str:
        return self.spelled(op) if op.result.dtype.is_float else self.divide(op, "div")

    def op_fmod(self, op: Op) -> str:
        return self.spelled(op) if op.result.dtype.is_float else self.divide(op, "rem")

    def divide(self, op: Op, word: str) -> str:
        """Integer division that is defined everywhere: by zero gives 0, and the minimum by -1 wraps."""
        x, y = op.operands
        t = y.type
        r, xs, ys = self.register(t), self.get(x), self.get(y)
        signed = t.dtype.kind == "int"
        inst = ("s" if signed else "u") + word
        if _is_literal(ys) and int(ys) not in (0, -1):
            return self.let(f"{inst} {r} {xs}, {ys}")
        zero = self.let(f"icmp eq {r} {ys}, {self.zero(t)}")
        bad = zero
        if signed:
            minus = self.let(f"icmp eq {r} {ys}, {self.constant(-1, t)}")
            bad = self.let(f"or {self.register(_bools(t))} {zero}, {minus}")
        safe = self.let(f"select {self.register(_bools(t))} {bad}, {r} {self.constant(1, t)}, {r} {ys}")
        q = self.let(f"{inst} {r} {xs}, {safe}")
        if signed and word == "div":
            negated = self.let(f"sub {r} {self.zero(t)}, {xs}")
            q = self.let(f"select {self.register(_bools(t))} {bad}, {r} {negated}, {r} {q}")
        return self.let(f"select {self.register(_bools(t))} {zero}, {r} {self.zero(t)}, {r} {q}")

    def op_shift_left(self, op: Op) -> str:
        return self.shift(op, "shl")

    def op_shift_right(self, op: Op) -> str:
        return self.shift(op, "ashr" if op.result.dtype.kind == "int" else "lshr")

    def shift(self, op: Op, word: str) -> str:
        """Shifts by a count outside [0, bits) give 0, or the sign in every bit for `ashr`."""
        x, n = op.operands
        t = x.type
        r, xs, ns, bits = self.register(t), self.get(x), self.get(n), t.dtype.bits
        if _is_literal(ns) and 0 <= int(ns) < bits:
            return self.let(f"{word} {r} {xs}, {ns}")
        if ns.startswith("splat") and 0 <= int(ns.split()[-1].rstrip(")")) < bits:
            return self.let(f"{word} {r} {xs}, {ns}")
        if word == "ashr":
            ns = self.intrinsic("umin", t, ns, self.constant(bits - 1, t))
            return self.let(f"ashr {r} {xs}, {ns}")
        inside = self.let(f"icmp ult {r} {ns}, {self.constant(bits, t)}")
        shifted = self.let(f"{word} {r} {xs}, {ns}")
        return self.let(f"select {self.register(_bools(t))} {inside}, {r} {shifted}, {r} {self.zero(t)}")

    def op_cast(self, op: Op) -> str:
        (x,) = op.operands
        a, b = x.type.dtype, op.result.dtype
        ra, rb, xs = self.register(x.type), self.register(op.result.type), self.get(x)
        if a == b:
            return xs
        if b.is_bool:
            return self.let(
                f"fcmp une {ra} {xs}, {self.zero(x.type)}" if a.is_float else f"icmp ne {ra} {xs}, {self.zero(x.type)}"
            )
        if a.is_float and b.is_float:
            if ra == rb or "i16" in (self.scalar(a), self.scalar(b)):
                raise error("FX0503", f"the cast from {a} to {b} was not legalised", loc=op.loc)
            return self.let(f"{'fpext' if b.bits > a.bits else 'fptrunc'} {ra} {xs} to {rb}")
        if a.is_float:
            name = (
                f"llvm.fpto{'s' if b.kind == 'int' else 'u'}i.sat.{self.suffix(op.result.type)}.{self.suffix(x.type)}"
            )
            return self.let(f"call {rb} {self.unit.declare(name, rb, [ra])}({ra} {xs})", pure=True)
        if b.is_float:
            return self.let(f"{'si' if a.kind == 'int' else 'ui'}tofp {ra} {xs} to {rb}")
        if not a.is_bool and a.bits == b.bits:
            return xs
        word = "trunc" if not a.is_bool and a.bits > b.bits else "sext" if a.kind == "int" else "zext"
        return self.let(f"{word} {ra} {xs} to {rb}")

    def op_bitcast(self, op: Op) -> str:
        (x,) = op.operands
        ra, rb, xs = self.register(x.type), self.register(op.result.type), self.get(x)
        if ra == rb:
            return xs
        if x.type.dtype.is_bool:
            return self.let(f"zext {ra} {xs} to {rb}")
        if op.result.dtype.is_bool:
            return self.let(f"icmp ne {ra} {xs}, {self.zero(x.type)}")
        return self.let(f"bitcast {ra} {xs} to {rb}")

    # ---- vectors
    def op_splat(self, op: Op) -> str:
        t = op.result.type
        (x,) = op.operands
        xs = self.get(x)
        if not xs.startswith("%"):
            return f"splat ({self.scalar(t.dtype)} {xs})"
        r = self.register(t)
        one = self.let(f"insertelement {r} poison, {self.typed(x)}, i64 0")
        assert isinstance(t, VectorType)
        return self.let(f"shufflevector {r} {one}, {r} poison, <{t.lanes} x i32> zeroinitializer")

    def op_extract(self, op: Op) -> str:
        return self.let(f"extractelement {self.typed(op.operands[0])}, i64 {op.attrs.lane}")

    def op_insert(self, op: Op) -> str:
        return self.let(
            f"insertelement {self.typed(op.operands[0])}, {self.typed(op.operands[1])}, i64 {op.attrs.lane}"
        )

    def op_shuffle(self, op: Op) -> str:
        x, y = op.operands
        mask = ", ".join(f"i32 {m}" for m in op.attrs.mask)
        return self.let(f"shufflevector {self.typed(x)}, {self.typed(y)}, <{len(op.attrs.mask)} x i32> <{mask}>")

    def op_reduce_lanes(self, op: Op) -> str:
        (x,) = op.operands
        t, v = x.type, self.get(x)
        assert isinstance(t, VectorType)
        s, u, f = _LANE_OPS[op.attrs.op]
        word = f if t.dtype.is_float else s if t.dtype.kind == "int" else u
        while t.lanes > 1:
            h, r = t.lanes // 2, self.register(t)
            parts = []
            for part in (range(h), range(h, t.lanes)):
                mask = ", ".join(f"i32 {i}" for i in part)
                parts.append(self.let(f"shufflevector {r} {v}, {r} poison, <{h} x i32> <{mask}>"))
            t = VectorType(t.dtype, h)
            v = (
                self.intrinsic(word[1:], t, *parts)
                if word.startswith("@")
                else self.let(f"{word} {self.register(t)} {parts[0]}, {parts[1]}")
            )
        return self.let(f"extractelement {self.register(t)} {v}, i64 0")

    # ---- sizes
    def dim(self, d: Dim) -> str:
        """A size as an i64 register or literal, computed once in the entry block."""
        if isinstance(d, int):
            return str(d)
        if d not in self._dims:
            total = ""
            for mono, c in d.terms:
                product = ""
                for atom, power in mono:
                    a = self.symbol(atom) if isinstance(atom, str) else self._opaque(atom)
                    for _ in range(power):
                        product = self.let(f"mul nsw i64 {product}, {a}", prelude=True) if product else a
                if not product:
                    product = str(c)
                elif c != 1:
                    product = self.let(f"mul nsw i64 {product}, {c}", prelude=True)
                total = self.let(f"add nsw i64 {total}, {product}", prelude=True) if total else product
            self._dims[d] = total
        return self._dims[d]

    def symbol(self, name: str) -> str:
        if name not in self.symbols:
            raise error("FX0218", f"the size {name} has no value in this function")
        return self.symbols[name]

    def _opaque(self, o: Opaque) -> str:
        a, b = self.dim(o.a), self.dim(o.b)
        if o.kind in ("max", "min"):
            f = self.unit.declare(f"llvm.s{o.kind}.i64", "i64", ["i64", "i64"])
            return self.let(f"call i64 {f}(i64 {a}, i64 {b})", prelude=True)
        if not _is_literal(b):  # never zero where the guards hold; division must not trap where they do not
            f = self.unit.declare("llvm.umax.i64", "i64", ["i64", "i64"])
            b = self.let(f"call i64 {f}(i64 {b}, i64 1)", prelude=True)
        q = self.let(f"sdiv i64 {a}, {b}", prelude=True)
        back = self.let(f"mul i64 {q}, {b}", prelude=True)
        above = self.let(f"icmp sgt i64 {back}, {a}", prelude=True)
        one = self.let(f"zext i1 {above} to i64", prelude=True)
        return self.let(f"sub i64 {q}, {one}", prelude=True)

    def product(self, dims: Sequence[Dim]) -> str:
        out: Dim = 1
        for d in dims:
            out = out * d
        return self.dim(out)

    # ---- memory
    def linear(self, t: MemType, indices: Sequence[str]) -> str:
        """Row-major linear index of the element (or sub-memory) at leading `indices`."""
        if not indices:
            return "0"
        at = indices[0]
        for k, i in enumerate(indices[1:], 1):
            d = t.shape[k]
            if d != 1 and at != "0":
                at = self.let(f"mul nsw i64 {at}, {self.dim(d)}")
            if i != "0":
                at = self.let(f"add nsw i64 {at}, {i}") if at != "0" else i
        rest = t.shape[len(indices) :]
        n = self.product(rest)
        return at if n == "1" or at == "0" else self.let(f"mul nsw i64 {at}, {n}")

    def address(self, mem: Value, indices: Sequence[Value]) -> str:
        t = mem.type
        assert isinstance(t, MemType)
        at = self.linear(t, [self.get(i) for i in indices])
        if at == "0":
            return self.get(mem)
        return self.let(f"getelementptr inbounds {self.stored(t.dtype)}, {self.typed(mem)}, i64 {at}")

    def op_load(self, op: Op) -> str:
        mem, *indices = op.operands
        t = op.result.type
        d = t.dtype
        p = self.address(mem, indices)
        r = f"<{t.lanes} x {self.stored(d)}>" if isinstance(t, VectorType) else self.stored(d)
        v = self.let(f"load {r}, {self.register(mem.type)} {p}, align {op.attrs.align or d.itemsize}{self.access(op)}")
        if d.is_bool:
            return self.let(f"icmp ne {r} {v}, {'zeroinitializer' if isinstance(t, VectorType) else '0'}")
        return v

    def op_store(self, op: Op) -> None:
        mem, x, *indices = op.operands
        t = x.type
        d = t.dtype
        p = self.address(mem, indices)
        r, v = self.register(t), self.get(x)
        if d.is_bool:
            wide = f"<{t.lanes} x i8>" if isinstance(t, VectorType) else "i8"
            v, r = self.let(f"zext {r} {v} to {wide}"), wide
        self.do(f"store {r} {v}, {self.register(mem.type)} {p}, align {op.attrs.align or d.itemsize}{self.access(op)}")

    def access(self, op: Op) -> str:
        """Metadata of a load or store; machines override it."""
        return ""

    def op_subview(self, op: Op) -> str:
        return self.address(op.operands[0], op.operands[1:])

    def op_reinterpret(self, op: Op) -> str:
        return self.get(op.operands[0])

    def op_view(self, op: Op) -> str:
        offset = self.dim(op.attrs.offset)
        if offset == "0":
            return self.get(op.operands[0])
        return self.let(f"getelementptr inbounds i8, {self.typed(op.operands[0])}, i64 {offset}")

    def op_alloc(self, op: Op) -> str:
        """`local` memory: static, on the stack, one for each entry of the function."""
        t = op.attrs.type
        if any(not isinstance(d, int) for d in t.shape):
            raise error("FX0508", f"{t}: local memory needs a fixed size", loc=op.loc)
        count = max(1, t.size)
        p = self.let(f"alloca [{count} x {self.stored(t.dtype)}], align 64", prelude=True)
        if op.attrs.zero:
            self.clear(p, str(count * t.dtype.itemsize))
        return p

    def clear(self, p: str, nbytes: str) -> None:
        f = self.unit.declare("llvm.memset.p0.i64", "void", ["ptr", "i8", "i64", "i1"])
        self.do(f"call void {f}(ptr {p}, i8 0, i64 {nbytes}, i1 false)")

    def op_copy(self, op: Op) -> None:
        dst, src = op.operands
        nbytes = self.product([*dst.type.shape, dst.type.dtype.itemsize])
        f = self.unit.declare("llvm.memmove.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
        self.do(f"call void {f}({self.typed(dst)}, {self.typed(src)}, i64 {nbytes}, i1 false)")

    def op_atomic(self, op: Op) -> None:
        mem, x, *indices = op.operands
        d, p = x.type.dtype, self.address(mem, indices)
        word = {"add": ("add", "fadd"), "max": ("max", "fmax"), "min": ("min", "fmin")}.get(op.attrs.op)
        if word is None or d.bits == 16 and d.is_float:
            raise error("FX0502", f"atomic {op.attrs.op} on {d} has no code", loc=op.loc)
        name = word[1] if d.is_float else word[0] if word[0] == "add" or d.kind == "int" else "u" + word[0]
        self.do(f"atomicrmw {name} {self.register(mem.type)} {p}, {self.typed(x)} monotonic")

    # ---- control flow
    def op_if(self, op: Op) -> list[str]:
        c, *args = op.operands
        labels = [self.new_label("then"), self.new_label("else")]
        join = self.new_label("join")
        self.do(f"br i1 {self.get(c)}, label %{labels[0]}, label %{labels[1]}")
        ends: list[tuple[list[str], str]] = []
        for label, block in zip(labels, op.blocks, strict=True):
            self.start(label)
            for a, v in zip(block.args, args, strict=True):
                self.values[a] = self.get(v)
            with self.scope():
                outs = self.region(block)
            ends.append((outs, self.label))
            self.do(f"br label %{join}")
        self.start(join)
        return [
            self.let(f"phi {self.register(r.type)} " + ", ".join(f"[ {outs[i]}, %{end} ]" for outs, end in ends))
            for i, r in enumerate(op.results)
        ]

    def region(self, block: Block) -> list[str]:
        """Emit a region in its own scope; machines hook in here."""
        return self.run(block)

    def op_for(self, op: Op) -> list[str]:
        lo, hi, step, *init = op.operands
        (block,) = op.blocks
        if op.attrs.get("fast"):
            self.relaxed |= _updates(block)
        return self.loop(
            self.get(lo),
            self.get(hi),
            self.get(step),
            [(self.register(v.type), self.get(v)) for v in init],
            block,
            self.loop_metadata(op),
        )

    def loop(
        self, lo: str, hi: str, step: str, init: Sequence[tuple[str, str]], block: Block, metadata: str
    ) -> list[str]:
        """A counted loop; `block` takes the counter and the carry. Returns the last carry."""
        before = self.label
        header, body, done = self.new_label("head"), self.new_label("body"), self.new_label("done")
        self.do(f"br label %{header}")
        self.start(header)
        hole = len(self.body)  # the phis, known once the body is
        i, carry = self.fresh(), [self.fresh() for _ in init]
        more = self.let(f"icmp slt i64 {i}, {hi}")
        self.do(f"br i1 {more}, label %{body}, label %{done}")
        self.start(body)
        for a, r in zip(block.args, [i, *carry], strict=True):
            self.values[a] = r
        with self.scope():
            outs = self.region(block)
        following = self.let(f"add nsw i64 {i}, {step}")
        latch = self.label
        self.do(f"br label %{header}{metadata}")
        phis = [f"  {i} = phi i64 [ {lo}, %{before} ], [ {following}, %{latch} ]"]
        for r, (t, start), out in zip(carry, init, outs, strict=True):
            phis.append(f"  {r} = phi {t} [ {start}, %{before} ], [ {out}, %{latch} ]")
        self.body[hole:hole] = phis
        self.start(done)
        return carry

    def loop_metadata(self, op: Op) -> str:
        """`, !llvm.loop !n` for a loop's wishes, or nothing."""
        wishes = []
        if op.attrs.unroll == 1:
            wishes.append(self.unit.meta('!"llvm.loop.unroll.disable"'))
        elif op.attrs.unroll > 1:
            wishes.append(self.unit.meta(f'!"llvm.loop.unroll.count", i32 {op.attrs.unroll}'))
        if len(op.operands) > 3 and op.attrs.vectorize:
            wishes.append(self.unit.meta('!"llvm.loop.interleave.count", i32 4'))
        if not op.attrs.vectorize:
            wishes.append(self.unit.meta('!"llvm.loop.vectorize.enable", i1 false'))
        return f", !llvm.loop {self.unit.meta(', '.join(['!SELF', *wishes]), distinct=True)}" if wishes else ""

    def op_while(self, op: Op) -> list[str]:
        n = op.attrs.carry
        init, consts = op.operands[:n], op.operands[n:]
        cond, block = op.blocks
        before = self.label
        header, body, done = self.new_label("while"), self.new_label("body"), self.new_label("done")
        self.do(f"br label %{header}")
        self.start(header)
        hole = len(self.body)
        carry = [self.fresh() for _ in init]
        for region in (cond, block):
            for a, r in zip(region.args, [*carry, *map(self.get, consts)], strict=True):
                self.values[a] = r
        with self.scope():
            (go,) = self.region(cond)
        self.do(f"br i1 {go}, label %{body}, label %{done}")
        self.start(body)
        with self.scope():
            outs = self.region(block)
        latch = self.label
        self.do(f"br label %{header}")
        self.body[hole:hole] = [
            f"  {r} = phi {self.register(v.type)} [ {self.get(v)}, %{before} ], [ {out}, %{latch} ]"
            for r, v, out in zip(carry, init, outs, strict=True)
        ]
        self.start(done)
        return carry


def _folded(spell: str, x: str, y: str = "") -> str | None:
    """Index arithmetic that needs no instruction, as its register or literal."""
    if _is_literal(x) and _is_literal(y):
        a, b = int(x), int(y)
        known = {"add": a + b, "sub": a - b, "mul": a * b}.get(spell)
        return str(known) if known is not None and abs(known) < 1 << 62 else None
    if spell in ("add", "sub") and y == "0" or spell == "mul" and y == "1":
        return x
    if spell == "add" and x == "0" or spell == "mul" and x == "1":
        return y
    return "0" if spell == "mul" and "0" in (x, y) else None


def _bools(t: Type) -> Type:
    b = DTYPES["bool"]
    return VectorType(b, t.lanes) if isinstance(t, VectorType) else TensorType(b)


def _is_literal(s: str) -> bool:
    return s.lstrip("-").isdigit()


def _updates(block: Block) -> set[Value]:
    """Float sums and products that carry a loop's accumulator on: what `for [fast]` may reassociate."""
    ops, out = set(block.ops), set()

    def reaches(v: Value, start: Value) -> bool:
        if v is start:
            return True
        o = v.owner
        if o is None or o not in ops or o.name not in ("add", "sub", "mul", "fma") or not v.dtype.is_float:
            return False
        found = [reaches(x, start) for x in o.operands]
        if any(found):
            out.add(v)
        return any(found)

    for start, end in zip(block.args[1:], block.outs, strict=True):
        reaches(end, start)
    return out
