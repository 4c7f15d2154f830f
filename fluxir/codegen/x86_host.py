"""Host functions on x86: launches as direct calls, branches and loops as they stand, memory, recursion, assertions.

A host function `i32 f(memories, sizes, consts, rt, depth)` returns 0 or the number of an error (see abi.py), which every
caller passes on after it has freed what it holds. Nothing here is hot; there may be thousands of launches in a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fluxir.codegen import abi
from fluxir.codegen.emit import Emitter
from fluxir.errors import error
from fluxir.ir.core import Block, Func, Op, Value
from fluxir.ir.dims import Dim, substitute, symbol

if TYPE_CHECKING:
    from fluxir.codegen.x86 import ModuleEmitter

__all__ = ["HostEmitter"]

_BLOCK = 32  # launches in a basic block: LLVM's instruction selection takes more than linear time in its length
_Place = tuple[Any, Any]


class HostEmitter(Emitter):
    """A host function: `%a<i>` memories, sizes, `%consts`, `%rt`, `%depth`; returns an error number."""

    def __init__(self, owner: ModuleEmitter, symbols: Mapping[str, str]) -> None:
        super().__init__(owner.plain, symbols, owner.fast)
        self.owner = owner
        self.scopes: list[list[str]] = []  # memory to free, by region
        self.places: dict[Value, _Place] = {}
        self.addresses: dict[Value, Callable[[], str]] = {}  # how to compute an address anew
        self.launches = 0
        self.late = False  # sizes are computed where they are needed, not in the entry block

    def let(self, text: str, prelude: bool = False, pure: bool = False) -> str:
        """Nothing is kept for later: addresses that live through thousands of launches only fill the stack."""
        r = self.fresh()
        (self.prelude if prelude and not self.late else self.body).append(f"  {r} = {text}")
        return r

    @contextlib.contextmanager
    def known(self, sizes: Mapping[str, str]) -> Iterator[None]:
        """Sizes computed here may depend on `sizes`, which are known only now."""
        if not sizes:
            yield
            return
        saved = self.symbols, self._dims, self.late
        self.symbols, self._dims, self.late = {**self.symbols, **sizes}, {}, True
        try:
            yield
        finally:
            self.symbols, self._dims, self.late = saved

    def count(self, v: Value) -> str:
        """A size in memory: an i64 scalar, which is never negative."""
        p = self.typed(v).split()[-1]
        return self.let(f"load i64, ptr {p}, align 8")

    def get(self, v: Value) -> str:
        again = self.addresses.get(v)
        return again() if again else super().get(v)

    def recipe(self, op: Op) -> Any:
        return self.owner.recipes.expand(self, op)

    def function(self, f: Func, guarded: bool) -> None:
        if guarded:
            # Two bounds: of calls, so that a program fails alike everywhere, and of this thread's stack (see abi.py).
            counted = self.let(f"icmp sgt i64 %depth, {abi.MAX_DEPTH}")
            here = self.let(f"call ptr {self.unit.declare('llvm.frameaddress.p0', 'ptr', ['i32 immarg'])}(i32 0)")
            limit = self.let(f"load ptr, ptr {self.let('getelementptr i8, ptr %rt, i64 24')}, align 8")
            deep = self.let(f"or i1 {counted}, {self.let(f'icmp ult ptr {here}, {limit}')}")
            fine, stop = self.new_label("fine"), self.new_label("stop")
            self.do(f"br i1 {deep}, label %{stop}, label %{fine}")
            self.start(stop)
            self.do(f"ret i32 {abi.TOO_DEEP}")
            self.start(fine)
        self.region(f.block)
        self.do("ret i32 0")

    def region(self, block: Block) -> list[str]:
        self.scopes.append([])
        outs = self.run(block)
        for p in self.scopes.pop():
            self._free(p)
        return outs

    def op_alloc(self, op: Op) -> str:
        t = op.attrs.type
        nbytes = self.product([*t.shape, t.dtype.itemsize])
        p = self.allocate(nbytes)
        if op.attrs.zero:
            self.clear(p, nbytes)
        return p

    def allocate(self, nbytes: str) -> str:
        """Run-time memory, aligned to 64 bytes, freed when this region ends; the function returns OUT_OF_MEMORY without it."""
        f = self.unit.declare("aligned_alloc", "ptr", ["i64", "i64"])
        padded = self.let(f"add i64 {nbytes}, 64")
        whole = self.let(f"and i64 {padded}, -64")
        p = self.let(f"call ptr {f}(i64 64, i64 {whole})")
        self.fail_if(self.let(f"icmp eq ptr {p}, null"), str(abi.OUT_OF_MEMORY))
        self.scopes[-1].append(p)
        return p

    def _free(self, p: str) -> None:
        self.do(f"call void {self.unit.declare('free', 'void', ['ptr'])}(ptr {p})")

    def fail_if(self, condition: str, number: str) -> None:
        """Free what is held and return `number` where `condition` holds."""
        bad, good = self.new_label("fail"), self.new_label("good")
        self.do(f"br i1 {condition}, label %{bad}, label %{good}")
        self.start(bad)
        for scope in reversed(self.scopes):
            for p in scope:
                self._free(p)
        self.do(f"ret i32 {number}")
        self.start(good)

    def op_constant(self, op: Op) -> str:
        index = self.owner.constant(op.attrs.value)

        def address() -> str:
            at = self.let(f"getelementptr ptr, ptr %consts, i64 {index}")
            return self.let(f"load ptr, ptr {at}, align 8")

        self.addresses[op.result] = address
        return ""

    def op_assert(self, op: Op) -> None:
        where = f" ({op.loc})" if op.loc else ""
        number = self.owner.failure("FX0608", f"assertion failed: {op.attrs.message}{where}")
        self.fail_if(self.let(f"xor i1 {self.get(op.operands[0])}, true"), number)

    def op_view(self, op: Op) -> str:
        root, base = self.place(op.operands[0])
        self.places[op.result] = (root, base + op.attrs.offset)
        self.dim(op.attrs.offset)  # in the entry block, once
        self.addresses[op.result] = lambda: super(HostEmitter, self).op_view(op)
        return ""

    def op_reinterpret(self, op: Op) -> str:
        (x,) = op.operands
        self.places[op.result] = self.place(x)
        if x in self.addresses:
            self.addresses[op.result] = self.addresses[x]
            return ""
        return super().op_reinterpret(op)

    def place(self, v: Value) -> _Place:
        """(root memory, byte offset in it) as far as it is known when compiling."""
        return self.places.get(v, (v, 0))

    def op_launch(self, op: Op) -> None:
        f = self.owner.module.funcs[op.attrs.callee]
        if len(f.args) != len(op.operands):
            raise error(
                "FX0108", f"launch of @{f.name} with {len(op.operands)} arguments, it takes {len(f.args)}", loc=op.loc
            )
        shared = tuple(
            sorted({(o, i) for o, i in op.attrs.inplace if self.place(op.operands[o]) == self.place(op.operands[i])})
        )
        shared = tuple(dict(shared).items())
        name = self.owner.kernel(f, shared)
        given = [self.typed(v) for v in op.operands]
        given += [f"i64 {self.symbol(s)}" for s in f.symbols] + ["ptr %rt"]
        self.unit.declare(name, "hidden void", [g.rsplit(" ", 1)[0] for g in given])
        recorder = self.owner.recorder
        start = "" if recorder is None else self.let(f"call i64 {recorder.clock}()")
        self.do(f"call void @{name}({', '.join(given)})")
        if recorder is not None:
            self.do(f"call void {recorder.record}(ptr %rt, i64 {recorder.number(op)}, i64 {start})")
        self.launches += 1
        if self.launches % _BLOCK == 0:
            label = self.new_label("more")
            self.do(f"br label %{label}")
            self.start(label)

    def op_call(self, op: Op) -> None:
        f = self.owner.module.funcs[op.attrs.callee]
        given = [self.typed(v) for v in op.operands]
        sizes: dict[str, Dim] = dict(op.attrs.dims)
        needed = self.owner.host_symbols[f.name]
        read = {name: self.count(op.operands[i]) for name, i in op.attrs.sized}
        if len(given) == len(f.args) - 1 and "arena" in f.attrs:
            env = {s: sizes.get(s, symbol(s)) for s in needed}
            with self.known(read):
                given.append("ptr " + self.allocate(self.dim(substitute(f.attrs["arena"], env))))
        if len(given) != len(f.args):
            raise error("FX0108", f"call of @{f.name} with {len(given)} arguments, it takes {len(f.args)}", loc=op.loc)
        given += [
            f"i64 {read[s] if s in read else self.dim(sizes[s]) if s in sizes else self.symbol(s)}" for s in needed
        ]
        depth = self.let("add i64 %depth, 1")
        r = self.let(
            f"call i32 @{self.owner.names[f.name]}({', '.join([*given, 'ptr %consts', 'ptr %rt', f'i64 {depth}'])})"
        )
        self.fail_if(self.let(f"icmp ne i32 {r}, 0"), r)
