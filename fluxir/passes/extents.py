"""Sizes known only at run time become sizes of functions: what follows an `extent` in its block is a function of its own.

    extent(%n) [size="K", most=N]              %r = call @f_sized(%n, %x) [sized=(("K", 0),)]
    %r = ... on f32[K]                  ->     func @f_sized(%n, %x) { ... on f32[K] }

The caller reads the size when it makes the call, and gives the callee its memory then (see `call`), so nothing below this
pass knows of such sizes: for the callee they are sizes like any other. Results whose shapes depend on them leave the callee
in memory of the largest shape they may have. The entry has one result more, the sizes; attributes `extents` (their names)
and `shapes` (of the results, as text: they are no sizes of the entry) say how the runtime cuts the others.

First of the pipeline, since passes move ops that no operand ties to the `extent` before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fluxir.errors import error
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Dim, Opaque, floordiv, maximum, minimum, mul, symbol, symbols_of
from fluxir.ir.types import Type
from fluxir.ops.control import Transform
from fluxir.ops.extent import beyond
from fluxir.passes.manager import PassContext, pass_

SMALL = 16  # elements of a constant that the callee gets anew; larger ones are passed to it


@pass_("extents", scope="module")
def extents(module: Module, cx: PassContext) -> Module:
    """Make what follows an `extent` a function that is called with the size. FX0230 where such a size leaves a region or a
    function that is not the entry, where a result of that size has no bound, and for vmap over one."""
    born = {n for n, f in module.funcs.items() if f.level == "tensor" and any(op.name == "extent" for op in f.walk())}
    if not born:
        return module
    _refuse_batches(module, born)
    split = _Split(module)
    for name in born:
        split.func(module.funcs[name])
    cx.rules["extents"] += split.count
    return Module(module.name, split.funcs, module.facts, module.attrs)


def _refuse_batches(module: Module, born: set[str]) -> None:
    """FX0230 for a vmap over a function with a size known at run time: each lane would have a size of its own."""
    reaching = set(born)
    while True:
        more = {
            name
            for name, f in module.funcs.items()
            if name not in reaching and any(op.attrs.get("callee") in reaching for op in f.walk())
        }
        if not more:
            break
        reaching |= more
    for f in module.funcs.values():
        for op in f.walk():
            if op.name == "call" and op.attrs["callee"] in reaching and op.attrs["transform"]:
                if Transform.parse(op.attrs["transform"]).kind == "batch":
                    raise error(
                        "FX0230",
                        f"vmap over @{op.attrs['callee']}: a size known at run time would differ from call to call",
                        help="give a bound, such as fx.nonzero(x, size=n), so that all have the same size",
                        loc=op.loc,
                    )


@dataclass
class _Split:
    module: Module
    funcs: dict[str, Func] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.funcs = dict(self.module.funcs)

    def func(self, f: Func) -> None:
        born = _births(f.block)
        block, attrs, names = f.block, dict(f.attrs), f.result_names
        leaving = {s for v in f.outs for d in v.type.shape for s in symbols_of(d) if s in born}
        if leaving and f.name != self.module.entry.name:
            raise _leaves(f.outs, leaving, f"the function @{f.name}")
        if leaving:
            kept = tuple(n for n in born if n in leaving)
            attrs |= {"extents": kept, "shapes": tuple(tuple(map(str, v.type.shape)) for v in f.outs)}
            names = (*names, "extents") if names else ()
            block = _with_sizes(block, kept)
        self.funcs[f.name] = replace(f, block=self.block(block, f.name), attrs=Attrs(attrs), result_names=names)

    def block(self, block: Block, name: str) -> Block:
        """The block with everything after its first `extent` in a function."""
        ops: list[Op] = []
        env: dict[Value, Value] = {}
        for op in block.ops:
            ops += _renamed([self.inside(op, name, env)], env)
        outs = [env.get(v, v) for v in block.outs]
        at = next((i for i, op in enumerate(ops) if op.name == "extent"), None)
        if at is None:
            return Block(block.args, ops, outs)
        self.count += 1
        born, before, after = ops[at], ops[:at], ops[at + 1 :]
        made = {r for op in after for r in op.results}
        kept = [j for j, v in enumerate(outs) if v in made]
        b = Builder(born.loc)
        for op in before:
            b.append(op)
        results = self.call(b, born, after, [outs[j] for j in kept], name)
        given = dict(zip(kept, results, strict=True))
        return Block(block.args, b.ops, [given.get(j, v) for j, v in enumerate(outs)])

    def inside(self, op: Op, name: str, env: dict[Value, Value]) -> Op:
        """An op whose regions are done; `env` grows by its results where it is made anew."""
        if not any(o.name == "extent" for k in op.blocks for o in k.walk()):
            return op
        for k in op.blocks:
            leaving = {s for v in k.outs for d in v.type.shape for s in symbols_of(d)} & set(_births(k))
            if leaving:
                raise _leaves(k.outs, leaving, f"a region of {op.name}")
        blocks = [self.block(k, name) for k in op.blocks]
        return _again(op, [env.get(v, v) for v in op.operands], blocks, env)

    def call(self, b: Builder, born: Op, after: Sequence[Op], outs: Sequence[Value], name: str) -> tuple[Value, ...]:
        """The call of a function of `after`, which gives `outs` in memory of their largest shapes."""
        size, most = born.attrs["size"], born.attrs["most"]
        count = born.operands[0]
        inner = Builder(born.loc)
        mapped: dict[Value, Value] = {}
        made = {r for op in after for r in op.results}
        captured: list[Value] = [count]
        args = [Value(count.type, None, 0, size)]
        for v in [v for op in after for v in op.operands]:
            if v in made or v in mapped:
                continue
            if v.owner is not None and v.owner.name == "const" and v.owner.attrs["value"].size <= SMALL:
                mapped[v] = inner.const(v.owner.attrs["value"])
            else:
                mapped[v] = Value(v.type, None, len(args), v.name)
                args.append(mapped[v])
                captured.append(v)
        self.checks(inner, born, args[0])
        for op in _renamed(after, mapped):
            inner.append(op)
        block = self.block(Block(args, inner.ops, [mapped.get(v, v) for v in outs]), name)
        callee = self.fresh(f"{name}_sized")
        self.funcs[callee] = Func(callee, _bounded(block, size, most))
        types = tuple(v.type for v in self.funcs[callee].outs)
        return b.emit("call", *captured, callee=callee, results=types, sized=((size, 0),), loc=born.loc)

    def checks(self, b: Builder, born: Op, count: Value) -> None:
        """What must hold of the size, and of the sizes that are known with it."""
        size, most = born.attrs["size"], born.attrs["most"]
        holds = b.ge(count, b.index(0))
        if most is not None:
            holds = b.logical_and(holds, b.le(count, b.emit("dim", value=most)[0]))
        b.emit("assert", holds, message=beyond(born.attrs))
        for x, y in self.module.facts.equations:
            if size in symbols_of(x) | symbols_of(y) and self.known(size, symbols_of(x) | symbols_of(y)):
                same = b.eq(b.emit("dim", value=x)[0], b.emit("dim", value=y)[0])
                b.emit("assert", same, message=f"the program needs {x} == {y}, a size known at run time")

    def known(self, size: str, names: set[str]) -> bool:
        """Whether `size` is the last of `names` to become known."""
        order = [n for f in self.module.funcs.values() for n in _births(f.block)]
        return all(order.index(n) <= order.index(size) for n in names if n in order)

    def fresh(self, base: str) -> str:
        name, n = base, 1
        while name in self.funcs:
            name, n = f"{base}_{n}", n + 1
        return name


def _births(block: Block) -> list[str]:
    """The sizes that become known in a block and its regions, in order."""
    return [op.attrs["size"] for op in block.walk() if op.name == "extent"]


def _leaves(outs: Sequence[Value], names: set[str], where: str) -> Exception:
    shown = next(v.type for v in outs if any(symbols_of(d) & names for d in v.type.shape))
    return error(
        "FX0230",
        f"a result of {where} is {shown}, where {', '.join(sorted(names))} is known only at run time, inside it",
        help="give a bound, such as fx.nonzero(x, size=n), or reduce the result to a fixed size",
    )


def _with_sizes(block: Block, names: Sequence[str]) -> Block:
    """The block with one result more: the values of the sizes `names`."""
    b = Builder()
    for op in block.ops:
        b.append(op)
    parts = [b.reshape(b.emit("dim", value=symbol(n))[0], shape=(1,)) for n in names]
    return Block(block.args, b.ops, [*block.outs, parts[0] if len(parts) == 1 else b.concat(*parts, axis=0)])


def _renamed(ops: Sequence[Op], env: dict[Value, Value]) -> list[Op]:
    """The ops with operands replaced; `env` grows by the results of those that are made anew."""
    out = []
    for op in ops:
        if any(v in env for v in op.operands):
            op = _again(op, [env.get(v, v) for v in op.operands], op.blocks, env)
        out.append(op)
    return out


def _again(op: Op, operands: Sequence[Value], blocks: Sequence[Block], env: dict[Value, Value]) -> Op:
    """The op with other operands and regions; `env` grows by its results."""
    new = Op(op.defn, operands, op.attrs, blocks, op.loc, [r.type for r in op.results])
    for old, r in zip(op.results, new.results, strict=True):
        r.name = old.name
        env[old] = r
    return new


# ---- bounds of sizes ---------------------------------------------------------------------------------------------------


def _bounded(block: Block, size: str, most: Dim | None) -> Block:
    """The block with results in the largest shapes they have for `size` from 0 to `most`, filled up with zeros."""
    b = Builder()
    for op in block.ops:
        b.append(op)
    outs = []
    for v in block.outs:
        if not any(size in symbols_of(d) for d in v.type.shape):
            outs.append(v)
            continue
        shape = [_largest(d, size, most, v.type) for d in v.type.shape]
        more = tuple(n - d for n, d in zip(shape, v.type.shape, strict=True))
        outs.append(b.pad(v, b.const(0, dtype=v.type.dtype), low=(0,) * len(shape), high=more))
    return Block(block.args, b.ops, outs)


def _largest(d: Dim, size: str, most: Dim | None, t: Type) -> Dim:
    if size not in symbols_of(d):
        return d
    found = None if most is None else _extreme(d, {size: most}, True)
    if found is None:
        raise error(
            "FX0230",
            f"a result is {t}, and nothing bounds {d}, in which {size} is known only at run time",
            help="its memory is allocated before it is known: give it a bound",
        )
    return found


def _extreme(d: Dim, limits: Mapping[str, Dim], largest: bool) -> Dim | None:
    """A size that `d` does not exceed (or fall below) where each of the symbols runs from 0 to its limit; None if unknown."""
    if isinstance(d, int) or not symbols_of(d) & set(limits):
        return d
    total: Dim = 0
    for mono, c in d.terms:
        up = largest == (c > 0)
        term: Dim = c
        for atom, power in mono:
            value = _atom(atom, limits, up)
            if value is None:
                return None
            for _ in range(power):
                term = mul(term, value)
        total = total + term
    return total


def _atom(atom: str | Opaque, limits: Mapping[str, Dim], largest: bool) -> Dim | None:
    if isinstance(atom, str):
        return symbol(atom) if atom not in limits else limits[atom] if largest else 0
    a, b = _extreme(atom.a, limits, largest), _extreme(atom.b, limits, largest)
    if atom.kind == "floordiv":
        b = atom.b if not symbols_of(atom.b) & set(limits) else None
    if a is None or b is None:
        return None
    how = {"floordiv": floordiv, "max": maximum, "min": minimum}[atom.kind]
    return how(a, b)


__all__ = ["extents"]
