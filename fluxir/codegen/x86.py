"""A lowered module (host functions and kernels) to x86-64 object code: one LLVM module, one native entry.

`compile_cpu(module, target)` is the only door. Invariants:

- The object refers to nothing outside but the C library's memory functions (checked): no libm, no compiler runtime.
- Host level is native: launches are direct calls, `if`/`for`/`while`/`call` are branches and calls. Functions on a call
  cycle check their depth. Memory that `alloc` asks for at run time is freed when its region ends, errors included.
- Kernels equal in structure are emitted once. A launch whose output shares memory with an input (`inplace`) gets a
  variant of the kernel that takes one pointer for both, so that LLVM sees the dependence and still vectorises.
- `parallel` becomes a function over a range of its index, called directly when one thread is enough, else by the pool that
  the runtime context names (see abi.py).
- Code uses exactly the features in `target.features`; the machine's own name only tunes it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxir.codegen import abi, backend, checks
from fluxir.codegen.emit import Dialect, Emitter, Unit
from fluxir.codegen.idioms import Move, move_of
from fluxir.codegen.inline import Recipes
from fluxir.codegen.legalize import legalize
from fluxir.errors import error
from fluxir.ir.core import Block, Func, Module, Op, Value, array_digest
from fluxir.ir.dims import Dim, assuming, substitute, symbol
from fluxir.ir.types import MemType, VectorType
from fluxir.target import CpuTarget

__all__ = ["CompiledCode", "compile_cpu"]

_MEMSET = ("llvm.memset.p0.i64", "void", ("ptr", "i8", "i64", "i1"))
_MEMCPY = ("llvm.memcpy.p0.p0.i64", "void", ("ptr", "ptr", "i64", "i1"))
_Place = tuple[Any, Any]


@dataclass
class CompiledCode:
    """What `compile_cpu` returns. `spec` is JSON-able and holds all that the runtime needs beside `object` and `constants`."""

    object: bytes
    spec: dict[str, Any]
    constants: list[Any]
    """Arrays in the order of `spec["constants"]`."""
    source: str
    """The LLVM IR as we wrote it, but for kernels on vectors."""
    vector_source: str
    """The LLVM IR of kernels that are written on vectors, which LLVM's optimiser is spared."""
    target: CpuTarget
    level: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by step: emit (IR to text), parse, optimise, codegen."""

    @functools.cached_property
    def llvm(self) -> str:
        """The optimised LLVM IR (computed when first read)."""
        return backend.llvm_of(self.source, self.vector_source, self.target, self.level)

    @functools.cached_property
    def asm(self) -> str:
        """The assembly text (computed when first read)."""
        return backend.asm_of(self.source, self.vector_source, self.target, self.level)


def compile_cpu(module: Module, target: CpuTarget, opt_level: int = 2, accuracy: str = "standard") -> CompiledCode:
    """Compile a lowered module whose entry is a host function.

    `opt_level` 0 to 3 as in the settings; `accuracy="fast"` lets LLVM contract multiplications and additions everywhere.
    Raises FX0502 for an op without code, FX0503 where LLVM rejects our text, FX0508 for local memory of unknown size,
    FX0514 where the object would need a library function, FX0604 where the inputs do not determine a size.
    """
    times: dict[str, float] = {}
    start = time.perf_counter()
    with assuming(module.facts):
        unit = _ModuleEmitter(module, target, accuracy == "fast")
        source, vector_source = unit.unit.text(), unit.plain.text() if unit.plain.defines else ""
    times["emit"] = time.perf_counter() - start
    code = backend.object_of(source, vector_source, target, opt_level, times)
    checks.check_object(code)
    spec = abi.entry_spec(module, unit.symbols)
    spec["target"] = {"name": target.name, "kind": "cpu", "triple": target.triple, "features": list(target.features)}
    spec["errors"] |= {k: list(v) for k, v in unit.failures.items()}
    spec["constants"] = [
        {"name": f"c{i}", "dtype": a.dtype.name, "shape": list(a.shape)} for i, a in enumerate(unit.constants)
    ]
    return CompiledCode(code, spec, unit.constants, source, vector_source, target, opt_level, times)


# ---- the module -----------------------------------------------------------------------------------------------------


class _ModuleEmitter:
    """Everything of one module that is shared between its functions."""

    def __init__(self, module: Module, target: CpuTarget, fast: bool) -> None:
        self.module, self.target, self.fast = module, target, fast
        half = "half" if target.has("f16c") else "i16"
        dialect = Dialect(triple=target.triple, half=half)
        self.unit, self.plain = Unit(dialect, module.name), Unit(dialect, module.name)
        self.constants: list[Any] = []
        self.failures: dict[str, tuple[str, str]] = {}
        self._constant_index: dict[str, int] = {}
        self._kernels: dict[Any, str] = {}
        self._sizes: dict[str, tuple[str, ...]] = {}
        self.hosts = _reachable(module)
        self.host_symbols = _host_symbols(module, self.hosts)
        self.cyclic = {n for n in self.hosts if n in _reachable_from(module, n)}
        self.names = {n: self.unit.unique("host." + n) for n in self.hosts}
        tune = backend.host_name() if target.native else "generic"
        self.attributes = f'nounwind "tune-cpu"="{tune}"'
        self.recipes = Recipes(target, dialect, fast, self.attributes)
        self.symbols = self.host_symbols[module.entry.name]
        for name in self.hosts:
            self._host(legalize(module.funcs[name], target, defer=True))
        self._entry()

    def failure(self, code: str, message: str) -> str:
        """The number that the entry returns for an error of this program, beside those of `abi.ERRORS`."""
        number = str(len(abi.ERRORS) + 1 + len(self.failures))
        self.failures[number] = (code, message)
        return number

    def constant(self, a: Any) -> int:
        """The number of a constant array; equal arrays share one."""
        digest = array_digest(a)
        if digest not in self._constant_index:
            self._constant_index[digest] = len(self.constants)
            self.constants.append(a)
        return self._constant_index[digest]

    def kernel(self, f: Func, shared: tuple[tuple[int, int], ...]) -> str:
        """The LLVM name of kernel `f` with the arguments paired in `shared` being the same memory."""
        key = (f.digest, shared)
        if key not in self._kernels:
            name = self._kernels[key] = self.unit.unique("kernel." + f.name)
            _KernelEmitter.write(self, name, legalize(f, self.target, defer=True), dict(shared))
        return self._kernels[key]

    def _host(self, f: Func) -> None:
        symbols = self.host_symbols[f.name]
        e = _HostEmitter(self, {s: f"%s{i}" for i, s in enumerate(symbols)})
        params = []
        for i, a in enumerate(f.args):
            e.values[a] = f"%a{i}"
            params.append(f"ptr noundef %a{i}")
        params += [f"i64 %s{i}" for i in range(len(symbols))]
        params += ["ptr %consts", "ptr %rt", "i64 %depth"]
        e.function(f, f.name in self.cyclic)
        self.unit.defines.append(
            f"define internal i32 @{self.names[f.name]}({', '.join(params)}) {self.attributes} {{\n{e.text_of_body()}\n}}\n"
        )

    def _entry(self) -> None:
        f = self.module.entry
        count = len(f.args) - ("arena" in f.attrs)
        lines, args = [], []
        for i in range(count):
            lines += [f"  %p{i} = getelementptr ptr, ptr %args, i64 {i}", f"  %a{i} = load ptr, ptr %p{i}, align 8"]
            args.append(f"ptr %a{i}")
        if "arena" in f.attrs:
            args.append("ptr %arena")
        for i in range(len(self.symbols)):
            lines += [f"  %q{i} = getelementptr i64, ptr %dims, i64 {i}", f"  %s{i} = load i64, ptr %q{i}, align 8"]
            args.append(f"i64 %s{i}")
        lines.append(f"  %consts = getelementptr ptr, ptr %args, i64 {count}")
        args += ["ptr %consts", "ptr %rt", "i64 0"]
        lines += [f"  %r = call i32 @{self.names[f.name]}({', '.join(args)})", "  ret i32 %r"]
        body = "\n".join(lines)
        self.unit.defines.append(
            f"define i32 @{abi.ENTRY}(ptr %args, ptr %dims, ptr %arena, ptr %rt) {self.attributes} {{\n{body}\n}}\n"
        )


def _calls(f: Func) -> list[Op]:
    return [op for op in f.walk() if op.name == "call"]


def _reachable_from(module: Module, name: str) -> set[str]:
    """Functions called from `name`, directly or not."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for op in _calls(module.funcs[todo.pop()]):
            if op.attrs.callee not in seen:
                seen.add(op.attrs.callee)
                todo.append(op.attrs.callee)
    return seen


def _reachable(module: Module) -> list[str]:
    """Names of the host functions the entry needs, in the module's order."""
    entry = module.entry
    if entry.level != "host":
        raise error("FX0503", f"the entry @{entry.name} is a {entry.level} function: lower the module first")
    needed = _reachable_from(module, entry.name) | {entry.name}
    return [n for n in module.funcs if n in needed]


def _host_symbols(module: Module, hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The size symbols each host function needs: its own, its kernels', and what its callees take by name."""
    need: dict[str, set[str]] = {}
    for name in hosts:
        f = module.funcs[name]
        need[name] = set(f.symbols)
        for op in f.walk():
            if op.name == "launch":
                need[name] |= set(module.funcs[op.attrs.callee].symbols)
    changed = True
    while changed:
        changed = False
        for name in hosts:
            for op in _calls(module.funcs[name]):
                given = {s for s, _ in op.attrs.dims}
                more = need[op.attrs.callee] - given - need[name]
                if more:
                    need[name] |= more
                    changed = True
    return {n: tuple(sorted(s)) for n, s in need.items()}


# ---- kernels --------------------------------------------------------------------------------------------------------


class _KernelEmitter(Emitter):
    """A kernel on the CPU: plain loops; `parallel` is outlined."""

    def __init__(self, owner: _ModuleEmitter, unit: Unit, name: str, symbols: Mapping[str, str]) -> None:
        super().__init__(unit, symbols, owner.fast)
        self.owner, self.name = owner, name
        self.parameters: dict[str, str] = {}  # register -> "ptr noalias ..." as it is declared

    def recipe(self, op: Op) -> Any:
        return self.owner.recipes.expand(self, op, call=self.unit is self.owner.plain)

    @classmethod
    def write(cls, owner: _ModuleEmitter, name: str, f: Func, shared: Mapping[int, int]) -> None:
        """Define kernel `f` as @`name`; `shared` maps output argument positions to the input they coincide with."""
        written = _written(f)
        symbols = {s: f"%s{i}" for i, s in enumerate(f.symbols)}
        unit = owner.plain if _is_vector_code(f) else owner.unit
        e = cls(owner, unit, name, symbols)
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
                declared = f"ptr noalias noundef {readonly}align {a.type.dtype.itemsize}"
            else:
                declared = e.register(a.type)
            if i in shared:
                params.append(f"ptr %unused{i}")
            else:
                params.append(f"{declared} {r}")
                e.parameters[r] = declared
        params += [f"i64 %s{i}" for i in range(len(f.symbols))] + ["ptr noundef %rt"]
        e.run(f.block)
        e.do("ret void")
        linkage = "internal" if unit is owner.unit else "hidden"
        if unit is not owner.unit:
            owner.unit.declare(name, "hidden void", [p.rsplit(" ", 1)[0] for p in params])
        unit.defines.append(
            f"define {linkage} void @{name}({', '.join(params)}) noinline {owner.attributes} {{\n{e.text_of_body()}\n}}\n"
        )

    def op_for(self, op: Op) -> list[str]:
        move = move_of(op)
        return super().op_for(op) if move is None or self.unit is self.owner.unit else self.move(op, move)

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
        name = self.unit.unique(self.name + ".range")
        e = _KernelEmitter(self.owner, self.unit, self.name, {s: inside[r] for s, r in self.symbols.items()})
        for v in _free_values(block):
            e.values[v] = inside.get(self.get(v), self.get(v))
        e.parameters = {inside[r]: d for r, d in captured.items()}
        e.loop("%lo", "%hi", "1", [], block, "")
        e.do("ret void")
        params = [f"{d} {inside[r]}" for r, d in captured.items()] + ["i64 %lo", "i64 %hi"]
        self.unit.defines.append(
            f"define internal void @{name}({', '.join(params)}) noinline {self.owner.attributes} {{\n{e.text_of_body()}\n}}\n"
        )
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
        thunk = self.unit.unique(name + ".thunk")
        lines = []
        for i, t in enumerate(types):
            lines += [
                f"  %p{i} = getelementptr {frame}, ptr %context, i32 0, i32 {i}",
                f"  %c{i} = load {t}, ptr %p{i}",
            ]
        given = [f"{t} %c{i}" for i, t in enumerate(types)] + ["i64 %lo", "i64 %hi"]
        lines += [f"  call void @{name}({', '.join(given)})", "  ret void"]
        body = "\n".join(lines)
        self.unit.defines.append(
            f"define internal void @{thunk}(ptr %context, i64 %lo, i64 %hi) {self.owner.attributes} {{\n{body}\n}}\n"
        )
        return thunk


def _is_vector_code(f: Func) -> bool:
    """Whether a kernel is written on vectors throughout, so that LLVM's optimiser would only take time.

    Not so with a scalar innermost loop that could be vectorised, a loop to be unrolled, or local memory that could
    become registers because all its indices are constants.
    """
    if not any(isinstance(r.type, VectorType) for op in f.walk() for r in op.results):
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
        elif op.name in ("store", "copy", "atomic"):
            if op.operands[0] in base:
                out.add(base[op.operands[0]])
        elif op.name in ("if", "for", "while") and any(isinstance(v.type, MemType) for v in op.operands):
            out.update(a for a in f.args if isinstance(a.type, MemType))  # memory in a carry: assume the worst
    return out


# ---- host functions -------------------------------------------------------------------------------------------------


class _HostEmitter(Emitter):
    """A host function: `%a<i>` memories, sizes, `%consts`, `%rt`, `%depth`; returns an error number."""

    def __init__(self, owner: _ModuleEmitter, symbols: Mapping[str, str]) -> None:
        super().__init__(owner.unit, symbols, owner.fast)
        self.owner = owner
        self.scopes: list[list[str]] = []  # memory to free, by region
        self.places: dict[Value, _Place] = {}

    def recipe(self, op: Op) -> Any:
        return self.owner.recipes.expand(self, op)

    def function(self, f: Func, guarded: bool) -> None:
        if guarded:
            deep, fine, stop = (
                self.let(f"icmp sgt i64 %depth, {abi.MAX_DEPTH}"),
                self.new_label("fine"),
                self.new_label("stop"),
            )
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
        at = self.let(f"getelementptr ptr, ptr %consts, i64 {self.owner.constant(op.attrs.value)}", prelude=True)
        return self.let(f"load ptr, ptr {at}, align 8", prelude=True)

    def op_assert(self, op: Op) -> None:
        where = f" ({op.loc})" if op.loc else ""
        number = self.owner.failure("FX0608", f"assertion failed: {op.attrs.message}{where}")
        self.fail_if(self.let(f"xor i1 {self.get(op.operands[0])}, true"), number)

    def op_view(self, op: Op) -> str:
        root, base = self.place(op.operands[0])
        self.places[op.result] = (root, base + op.attrs.offset)
        return super().op_view(op)

    def op_reinterpret(self, op: Op) -> str:
        self.places[op.result] = self.place(op.operands[0])
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
        self.do(f"call void @{name}({', '.join(given)})")

    def op_call(self, op: Op) -> None:
        f = self.owner.module.funcs[op.attrs.callee]
        given = [self.typed(v) for v in op.operands]
        sizes: dict[str, Dim] = dict(op.attrs.dims)
        needed = self.owner.host_symbols[f.name]
        if len(given) == len(f.args) - 1 and "arena" in f.attrs:
            env = {s: sizes.get(s, symbol(s)) for s in needed}
            given.append("ptr " + self.allocate(self.dim(substitute(f.attrs["arena"], env))))
        if len(given) != len(f.args):
            raise error("FX0108", f"call of @{f.name} with {len(given)} arguments, it takes {len(f.args)}", loc=op.loc)
        given += [f"i64 {self.dim(sizes[s]) if s in sizes else self.symbol(s)}" for s in needed]
        depth = self.let("add i64 %depth, 1")
        r = self.let(
            f"call i32 @{self.owner.names[f.name]}({', '.join([*given, 'ptr %consts', 'ptr %rt', f'i64 {depth}'])})"
        )
        self.fail_if(self.let(f"icmp ne i32 {r}, 0"), r)
