"""Loop-level IR to LLVM IR text: sizes, memory and structured control flow of one function.

A machine subclasses `Emitter` and adds `op_<name>` methods for the ops it alone has (`parallel` on a CPU, `thread_id` on a
GPU). Invariants: memory is addressed by getelementptr from the memory's own pointer with a row-major linear i64 index;
regions become basic blocks and phis here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxir.codegen.arithmetic import Arithmetic, is_literal
from fluxir.codegen.text import Dialect, Unit
from fluxir.errors import error
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim, Opaque
from fluxir.ir.types import MemType, VectorType

__all__ = ["Dialect", "Emitter", "Unit"]

_RMW = {
    "add": ("add", "add", "fadd"), "sub": ("sub", "sub", "fsub"), "min": ("min", "umin", "fminimum"),
    "max": ("max", "umax", "fmaximum"), "and": ("and", "and", ""), "or": ("or", "or", ""), "xor": ("xor", "xor", ""),
    "exch": ("xchg", "xchg", "xchg"), "inc": ("", "uinc_wrap", ""), "dec": ("", "udec_wrap", ""),
}  # fmt: skip
"""LLVM's names of atomic operations: on signed integers, on unsigned ones, on floats."""


class Emitter(Arithmetic):
    """Writes one function. `symbols` maps size symbols to the registers that hold them."""

    atomic_scope = ""  # who sees atomics as indivisible, as LLVM writes it; empty for everybody

    # ---- sizes
    def op_dim(self, op: Op) -> str:
        return self.dim(op.attrs.value)

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
        if not is_literal(b):  # never zero where the guards hold; division must not trap where they do not
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

    def op_prefetch(self, op: Op) -> None:
        mem, *indices = op.operands
        f = self.unit.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        at = self.linear(mem.type, [self.get(i) for i in indices])  # type: ignore[arg-type]
        p = self.let(f"getelementptr {self.stored(mem.type.dtype)}, {self.typed(mem)}, i64 {at}")
        self.do(f"call void {f}(ptr {p}, i32 1, i32 3, i32 1)")

    def op_misalignment(self, op: Op) -> str:
        address = self.let(f"ptrtoint {self.typed(op.operands[0])} to i64")
        return self.let(f"and i64 {address}, {op.attrs.bytes - 1}")

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

    def op_atomic_rmw(self, op: Op) -> str:
        mem, x, *indices = op.operands
        d = x.dtype
        word = _RMW[op.attrs.op][2 if d.is_float else d.kind == "uint"]
        assert word, f"atomic {op.attrs.op} on {d} was not expanded"
        p = self.address(mem, indices)
        return self.let(f"atomicrmw {word} {self.register(mem.type)} {p}, {self.typed(x)}{self.atomic_scope} monotonic")

    def op_atomic_cas(self, op: Op) -> str:
        mem, expected, new, *indices = op.operands
        p, d = self.address(mem, indices), expected.dtype
        word, r = f"i{d.bits}", self.register(expected.type)

        def bits(v: Value) -> str:
            return self.get(v) if r == word else self.let(f"bitcast {r} {self.get(v)} to {word}")

        old = self.swapped(f"{self.register(mem.type)} {p}", word, bits(expected), bits(new))
        return old if r == word else self.let(f"bitcast {word} {old} to {r}")

    def swapped(self, place: str, word: str, expected: str, new: str) -> str:
        """Compare and swap at a typed pointer; the old value."""
        order = f"{self.atomic_scope} monotonic monotonic"
        pair = self.let(f"cmpxchg {place}, {word} {expected}, {word} {new}{order}")
        return self.let(f"extractvalue {{ {word}, i1 }} {pair}, 0")

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
