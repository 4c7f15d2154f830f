"""Kernels on x86: loops as they stand, `parallel` as a function over a range of its index.

A kernel is up to three functions: the kernel itself, which decides whether one thread is enough; the range function
with all the work, whose parameters keep what is known of the memories (`noalias`, `readonly`); and a thunk that unpacks
what the range function needs for a thread of the pool. Code that is written on vectors goes to the unit that LLVM's
optimiser is spared (see backend.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fluxir.codegen.emit import Emitter, Unit
from fluxir.codegen.idioms import Move, move_of
from fluxir.codegen.part import CODE, Part
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.types import MemType, TensorType, VectorType

if TYPE_CHECKING:
    from fluxir.codegen.x86 import Pieces

__all__ = ["KernelEmitter", "is_vector_code"]

_I32 = TensorType(DTYPES["i32"])
_MEMSET = ("llvm.memset.p0.i64", "void", ("ptr", "i8", "i64", "i1"))
_MEMCPY = ("llvm.memcpy.p0.p0.i64", "void", ("ptr", "ptr", "i64", "i1"))


class KernelEmitter(Emitter):
    """A kernel on the CPU: plain loops; `parallel` is outlined."""

    def __init__(
        self, owner: Pieces, part: Part, unit: Unit, symbols: Mapping[str, str], code: Unit | None = None
    ) -> None:
        super().__init__(unit, symbols, owner.fast)
        self.owner, self.part = owner, part
        self.code = code or unit  # where the bodies of `parallel` go
        self.parameters: dict[str, str] = {}  # register -> "ptr noalias ..." as it is declared
        self.streams = False  # whether it stores past the caches, which others see in order only behind a fence

    def recipe(self, op: Op) -> Any:
        return self.owner.recipes.expand(self, op, call=self.unit is self.part.plain)

    @classmethod
    def write(cls, owner: Pieces, part: Part, f: Func, shared: Mapping[int, int]) -> None:
        """Define kernel `f` in `part`; `shared` maps output argument positions to the input they coincide with."""
        written = _written(f)
        symbols = {s: f"%s{i}" for i, s in enumerate(f.symbols)}
        code = part.plain if is_vector_code(f) else part.main
        unit = part.plain if _only_distributes(f) else code
        e = cls(owner, part, unit, symbols, code)
        params = []
        for i, a in enumerate(f.args):
            r = f"%a{shared.get(i, i)}"
            e.values[a] = r
            if isinstance(a.type, MemType):
                readonly = (
                    ""
                    if any(f.args[j] in written for j in range(len(f.args)) if shared.get(j, j) == shared.get(i, i))
                    else "readonly "
                )
                distinct = "" if i in f.attrs.get("aliased", ()) else f"noalias {readonly}"
                declared = f"ptr {distinct}noundef align {a.type.dtype.itemsize}"
            else:
                declared = e.register(a.type)
            if i in shared:
                params.append(f"ptr %unused{i}")
            else:
                params.append(f"{declared} {r}")
                e.parameters[r] = declared
        params += [f"i64 %s{i}" for i in range(len(f.symbols))] + ["ptr noundef %rt"]
        e.run(f.block)
        e.end()
        part.define(unit, "void", CODE, params, e.text_of_body(), shared=True)

    def end(self) -> None:
        """The end of the function."""
        if self.streams and self.owner.target.triple.startswith("x86_64"):  # elsewhere they are ordered as others are
            self.do(f"call void {self.unit.declare('llvm.x86.sse.sfence', 'void', [])}()")
        self.do("ret void")

    def access(self, op: Op) -> str:
        if op.name != "store" or not op.attrs.streaming:
            return ""
        self.streams = True
        return f", !nontemporal {self.unit.meta('i32 1')}"

    def op_halt_unless(self, op: Op) -> None:
        on, stop = self.new_label("on"), self.new_label("halt")
        self.do(f"br i1 {self.get(op.operands[0])}, label %{on}, label %{stop}")
        self.start(stop)
        self.do("ret void")
        self.start(on)

    def op_cast(self, op: Op) -> str:
        """From floats to integers of up to 32 bits through numbers in range: LLVM has no vector code for its saturating casts."""
        (x,) = op.operands
        a, b = x.type.dtype, op.result.type.dtype
        if not a.is_float or a.bits < 32 or not b.is_integer or b.bits > 32 or b.name == "u32":
            return super().op_cast(op)
        low, high = (int(n) for n in b.limits)
        exact = b.bits < 32 or a.bits == 64  # whether the largest integer is such a float
        t, wide = x.type, VectorType(DTYPES["i32"], x.type.lanes) if isinstance(x.type, VectorType) else _I32
        r, i, xs = self.register(t), self.register(wide), self.get(x)
        y = self.intrinsic("maxnum", t, xs, self.constant(float(low), t))  # NaN gives the constant
        y = self.intrinsic("minnum", t, y, self.constant(float(high if exact else high - 127), t))
        n = self.let(f"fptosi {r} {y} to {i}")
        mask = f"<{t.lanes} x i1>" if isinstance(t, VectorType) else "i1"
        if not exact:
            above = self.let(f"fcmp oge {r} {xs}, {self.constant(float(high + 1), t)}")
            n = self.let(f"select {mask} {above}, {i} {self.constant(high, wide)}, {i} {n}")
        if low:
            nan = self.let(f"fcmp uno {r} {xs}, {xs}")
            n = self.let(f"select {mask} {nan}, {i} {self.zero(wide)}, {i} {n}")
        return n if b.bits == 32 else self.let(f"trunc {i} {n} to {self.register(op.result.type)}")

    def op_dot_packed(self, op: Op) -> str:
        """Bytes without a sign by bytes with one have an instruction of their own (VNNI), which LLVM does not find."""
        acc, x, y = op.operands
        t, kinds = acc.type, (op.attrs.left.name, op.attrs.right.name)
        bits = t.lanes * 32 if isinstance(t, VectorType) else 32
        target = self.owner.target
        there = target.has("avx512vnni") and target.has("avx512vl") or (target.has("avxvnni") and bits < 512)
        if bits < 128 or not there or sorted(kinds) != ["i8", "u8"]:
            return super().op_dot_packed(op)
        if kinds[0] == "i8":
            x, y = y, x
        r = self.register(t)
        f = self.unit.declare(f"llvm.x86.avx512.vpdpbusd.{bits}", r, [r, r, r])
        return self.let(f"call {r} {f}({self.typed(acc)}, {self.typed(x)}, {self.typed(y)})", pure=True)

    def op_fence(self, op: Op) -> None:
        self.do("fence seq_cst")

    def op_for(self, op: Op) -> list[str]:
        move = move_of(op)
        return super().op_for(op) if move is None or self.unit is self.part.main else self.move(op, move)

    def move(self, op: Op, move: Move) -> list[str]:
        """A loop that only moves memory, as memcpy or memset from where its first element lies."""
        lo, hi = self.get(op.operands[0]), self.get(op.operands[1])
        with self.scope():
            self.values[op.blocks[0].args[0]] = lo
            for o in move.index:
                self.op(o)
            dst, _, *to = move.store.operands
            count = self.let(f"sub i64 {hi}, {lo}")
            f = self.unit.declare("llvm.smax.i64", "i64", ["i64", "i64"])
            count = self.let(f"call i64 {f}(i64 {count}, i64 0)", pure=True)
            nbytes = self.let(f"mul i64 {count}, {dst.type.dtype.itemsize}")
            p = self.address(dst, to)
            if move.load is None:
                self.do(f"call void {self.unit.declare(*_MEMSET)}(ptr {p}, i8 0, i64 {nbytes}, i1 false)")
            else:
                src, *start = move.load.operands
                q = self.address(src, start)
                self.do(f"call void {self.unit.declare(*_MEMCPY)}(ptr {p}, ptr {q}, i64 {nbytes}, i1 false)")
        return []

    def op_parallel(self, op: Op) -> None:
        """The body as a function over [lo, hi); called directly, or by the pool through a thunk that unpacks its captures."""
        (block,) = op.blocks
        n, grain = self.get(op.operands[0]), self.dim(op.attrs.grain)
        captured: dict[str, str] = {}  # register here -> declaration
        for v in _free_values(block):
            r = self.get(v)
            if r.startswith("%"):
                captured.setdefault(r, self.parameters.get(r) or self.register(v.type))
        for r in self.symbols.values():
            captured.setdefault(r, "i64")
        inside = {r: f"%c{i}" for i, r in enumerate(captured)}
        types = [d.split(" ", 1)[0] if d.startswith("ptr") else d for d in captured.values()]
        name = self.part.main.unique(CODE + ".range")
        e = KernelEmitter(self.owner, self.part, self.code, {s: inside[r] for s, r in self.symbols.items()})
        for v in _free_values(block):
            e.values[v] = inside.get(self.get(v), self.get(v))
        e.parameters = {inside[r]: d for r, d in captured.items()}
        e.loop("%lo", "%hi", "1", [], block, "")
        e.end()
        params = [f"{d} {inside[r]}" for r, d in captured.items()] + ["i64 %lo", "i64 %hi"]
        self.part.define(self.code, "void", name, params, e.text_of_body(), shared=self.code is not self.unit)
        frame = f"{{ {', '.join(types)} }}" if types else "{ i64 }"
        thunk = self._thunk(name, frame, types)
        direct, pooled, join = self.new_label("direct"), self.new_label("pooled"), self.new_label("join")
        threads = self.let("load i64, ptr %rt, align 8")
        small = self.let(f"icmp sle i64 {n}, {grain}")
        alone = self.let(f"icmp sle i64 {threads}, 1")
        either = self.let(f"or i1 {small}, {alone}")
        self.do(f"br i1 {either}, label %{direct}, label %{pooled}")
        self.start(direct)
        given = [f"{t} {r}" for t, r in zip(types, captured, strict=True)]
        self.do(f"call void @{name}({', '.join([*given, 'i64 0', f'i64 {n}'])})")
        self.do(f"br label %{join}")
        self.start(pooled)
        with self.scope():
            context = self.let(f"alloca {frame}, align 64", prelude=True)
            for i, (t, r) in enumerate(zip(types, captured, strict=True)):
                p = self.let(f"getelementptr {frame}, ptr {context}, i32 0, i32 {i}")
                self.do(f"store {t} {r}, ptr {p}")
            slot = self.let("getelementptr i8, ptr %rt, i64 8")
            run = self.let(f"load ptr, ptr {slot}, align 8")
            self.do(f"call void {run}(ptr %rt, ptr @{thunk}, ptr {context}, i64 {n}, i64 {grain})")
            self.do(f"br label %{join}")
        self.start(join)

    def _thunk(self, name: str, frame: str, types: Sequence[str]) -> str:
        thunk = name + ".thunk"
        lines = []
        for i, t in enumerate(types):
            lines += [
                f"  %p{i} = getelementptr {frame}, ptr %context, i32 0, i32 {i}",
                f"  %c{i} = load {t}, ptr %p{i}",
            ]
        given = [f"{t} %c{i}" for i, t in enumerate(types)] + ["i64 %lo", "i64 %hi"]
        lines += [f"  call void @{name}({', '.join(given)})", "  ret void"]
        self.part.define(self.unit, "void", thunk, ["ptr %context", "i64 %lo", "i64 %hi"], "\n".join(lines))
        return thunk


def _only_distributes(f: Func) -> bool:
    """Whether a kernel's own code does nothing but hand its `parallel` bodies out."""
    names = {op.name for op in f.ops}
    return "parallel" in names and not names & {"for", "while", "if", "alloc"}


def is_vector_code(f: Func) -> bool:
    """Whether a kernel is written on vectors throughout, so that LLVM's optimiser would only take time.

    Not so with a scalar innermost loop that could be vectorised, a loop to be unrolled, or local memory that could
    become registers because all its indices are constants.
    """
    if "simt" in f.attrs or not any(isinstance(r.type, VectorType) for op in f.walk() for r in op.results):
        return False
    local = {op.result for op in f.walk() if op.name == "alloc"}
    for op in f.walk():
        if op.name in ("subview", "reinterpret", "view"):
            local.discard(op.operands[0])
        elif op.name in ("load", "store") and op.operands[0] in local:
            indices = op.operands[2:] if op.name == "store" else op.operands[1:]
            if any(v.owner is None or v.owner.name != "const" for v in indices):
                local.discard(op.operands[0])
    if local:
        return False
    for op in f.walk():
        if op.name == "for":
            inside = list(op.blocks[0].walk())
            innermost = not any(o.name in ("for", "while") for o in inside)
            vectors = any(isinstance(v.type, VectorType) for o in inside for v in (*o.operands, *o.results))
            scalar = innermost and op.attrs.vectorize and not vectors and move_of(op) is None
            if op.attrs.unroll > 1 or scalar:
                return False
    return True


def _free_values(block: Block) -> list[Value]:
    """Values a region uses and does not define, in order of first use."""
    defined: set[Value] = set()
    free: dict[Value, None] = {}

    def see(b: Block) -> None:
        defined.update(b.args)
        for op in b.ops:
            for v in op.operands:
                if v not in defined:
                    free[v] = None
            for inner in op.blocks:
                see(inner)
            defined.update(op.results)
        for v in b.outs:
            if v not in defined:
                free[v] = None

    see(block)
    return list(free)


def _written(f: Func) -> set[Value]:
    """Arguments that a kernel writes through, directly or through a subview or reinterpretation."""
    base: dict[Value, Value] = {a: a for a in f.args}
    out: set[Value] = set()
    for op in f.walk():
        if op.name in ("subview", "reinterpret", "view") and op.operands[0] in base:
            base[op.result] = base[op.operands[0]]
        elif op.name in ("store", "copy", "atomic", "atomic_rmw", "atomic_cas"):
            if op.operands[0] in base:
                out.add(base[op.operands[0]])
        elif op.name in ("if", "for", "while") and any(isinstance(v.type, MemType) for v in op.operands):
            out.update(a for a in f.args if isinstance(a.type, MemType))  # memory in a carry: assume the worst
    return out
