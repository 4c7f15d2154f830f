"""Ops on values: the spelling in an op's declaration (`OpDef.llvm`), and what needs more than one instruction.

Everything is defined for every operand: integer division by zero gives 0, a shift by the width or more shifts all out,
a cast from float to integer saturates. Works on scalars and vectors alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fluxir.codegen.text import Writer
from fluxir.errors import error
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import TensorType, Type, VectorType

__all__ = ["Arithmetic", "is_literal"]

_COMPARE = {
    "lt": ("olt", "slt", "ult"), "le": ("ole", "sle", "ule"), "gt": ("ogt", "sgt", "ugt"),
    "ge": ("oge", "sge", "uge"), "eq": ("oeq", "eq", "eq"), "ne": ("une", "ne", "ne"),
}  # fmt: skip
_EXTRA_FALSE = ("ctlz", "cttz", "abs")  # intrinsics whose second parameter says "zero (minimum) is undefined": never
_LANE_OPS = {
    "add": ("add", "add", "fadd"), "mul": ("mul", "mul", "fmul"), "and": ("and", "and", ""), "or": ("or", "or", ""),
    "max": ("@smax", "@umax", "@maximum"), "min": ("@smin", "@umin", "@minimum"),
}  # fmt: skip


class Arithmetic(Writer):
    """Writes ops on values. `op_<name>` writes an op that its declaration does not spell."""

    # ---- blocks
    def run(self, block: Block) -> list[str]:
        """Emit a region's ops; its arguments must be bound. Returns what it yields."""
        for op in block.ops:
            self.op(op)
        return [self.get(v) for v in block.outs]

    def op(self, op: Op) -> None:
        if op.loc is not None:
            self.enter(op)
        result = self.recipe(op)
        if result is None:
            method: Callable[[Op], Any] | None = getattr(self, "op_" + op.name, None)
            result = method(op) if method else self.spelled(op)
        if isinstance(result, str):
            result = (result,)
        for v, r in zip(op.results, result or (), strict=True):
            self.values[v] = r

    def enter(self, op: Op) -> None:
        """The instructions that follow belong to `op`, which has a location. Machines hook in here."""

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
        if is_literal(ys) and int(ys) not in (0, -1):
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
        if is_literal(ns) and 0 <= int(ns) < bits:
            return self.let(f"{word} {r} {xs}, {ns}")
        if ns.startswith("splat") and 0 <= int(ns.split()[-1].rstrip(")")) < bits:
            return self.let(f"{word} {r} {xs}, {ns}")
        if word == "ashr":
            ns = self.intrinsic("umin", t, ns, self.constant(bits - 1, t))
            return self.let(f"ashr {r} {xs}, {ns}")
        inside = self.let(f"icmp ult {r} {ns}, {self.constant(bits, t)}")
        if bits == 64 and self.dialect.narrow_counts:
            ns = self.let(f"and {r} {ns}, {self.constant(63, t)}")
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
        if a.is_float and isinstance(x.type, VectorType) and b.bits <= 32:
            return self.saturated(xs, x.type, op.result.type)
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

    def saturated(self, xs: str, t: VectorType, to: Type) -> str:
        """Floats of a vector as integers of at most 32 bits. LLVM's saturating conversion goes lane by lane; this one cuts off
        what is beyond, which selects do (they are one instruction each), and converts what is left to 32 bits."""
        b, r, signed = to.dtype, self.register(t), to.dtype.kind == "int"
        low, high = (-(1 << (b.bits - 1)), (1 << (b.bits - 1)) - 1) if signed else (0, (1 << b.bits) - 1)
        flags = self.register(_bools(t))

        def chosen(condition: str, x: str, other: str, limit: str) -> str:
            """x where it compares so with the limit, else the other: also for NaN."""
            return self.let(f"select {flags} {self.let(f'fcmp {condition} {r} {x}, {limit}')}, {r} {x}, {r} {other}")

        if signed:  # NaN is 0; below, it is the lower limit
            xs = chosen("ord", xs, self.zero(t), self.zero(t))
        least = self.constant(float(low), t)
        xs = chosen("ogt", xs, least, least)
        exact = b.bits < 32 or t.dtype.bits == 64
        beyond = ""
        if exact:
            most = self.constant(float(high), t)
            xs = chosen("olt", xs, most, most)
        else:  # the upper limit is no float: what reaches the next one is put right afterwards
            top = self.constant(float(high + 1), t)
            beyond = self.let(f"fcmp oge {r} {xs}, {top}")
            xs = chosen("olt", xs, self.zero(t), top)
        wide = VectorType(DTYPES["i32" if b.bits < 32 or signed else "u32"], t.lanes)
        rw = self.register(wide)
        y = self.let(f"fpto{'s' if wide.dtype.kind == 'int' else 'u'}i {r} {xs} to {rw}")
        if beyond:
            y = self.let(f"select {flags} {beyond}, {rw} {self.constant(high, wide)}, {rw} {y}")
        return y if b.bits == 32 else self.let(f"trunc {rw} {y} to {self.register(to)}")

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
        if t.dtype.is_bool and op.attrs.op in ("and", "or"):  # LLVM knows the machine's way to ask all bits of a mask
            r = self.register(t)
            f = self.unit.declare(f"llvm.vector.reduce.{op.attrs.op}.{self.suffix(t)}", "i1", [r])
            return self.let(f"call i1 {f}({r} {v})", pure=True)
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

    def op_dot_packed(self, op: Op) -> str:
        """Products of neighbours, added up: LLVM knows this form and the instructions for it."""
        acc, x, y = op.operands
        t, left, right = acc.type, op.attrs.left, op.attrs.right
        n = t.lanes if isinstance(t, VectorType) else 1
        many = n * 32 // left.bits
        r, wide, narrow = f"<{n} x i32>", f"<{many} x i32>", f"<{many} x i{left.bits}>"

        def spread(v: Value, d: DType) -> str:
            bits = self.let(f"bitcast {self.typed(v)} to {narrow}")
            return self.let(f"{'sext' if d.kind == 'int' else 'zext'} {narrow} {bits} to {wide}")

        m = self.let(f"mul {wide} {spread(x, left)}, {spread(y, right)}")
        start = self.get(acc) if n > 1 else self.let(f"bitcast i32 {self.get(acc)} to {r}")
        if left.bits == 8:
            f = self.unit.declare(f"llvm.vector.partial.reduce.add.v{n}i32.v{many}i32", r, [r, wide])
            total = self.let(f"call {r} {f}({r} {start}, {wide} {m})", pure=True)
        else:
            halves = []
            for first in (0, 1):
                mask = ", ".join(f"i32 {i}" for i in range(first, many, 2))
                halves.append(self.let(f"shufflevector {wide} {m}, {wide} poison, <{n} x i32> <{mask}>"))
            pairs = self.let(f"add {r} {halves[0]}, {halves[1]}")
            total = self.let(f"add {r} {start}, {pairs}")
        return total if n > 1 else self.let(f"bitcast {r} {total} to i32")


def _folded(spell: str, x: str, y: str = "") -> str | None:
    """Index arithmetic that needs no instruction, as its register or literal."""
    if is_literal(x) and is_literal(y):
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


def is_literal(s: str) -> bool:
    """Whether an operand is an integer written out."""
    return s.lstrip("-").isdigit()
