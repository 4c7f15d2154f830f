"""Give symbolic sizes their values: `specialise(module, {"B": 32})`. The facts about them are checked, and gone after.

Only the entry's own sizes are replaced. A called function keeps a size that some call gives it by name (`dims`), since it
may be another size there; calls that meant the entry's size name its value from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fluxir.errors import FluxError, error
from fluxir.ir.build import Builder, with_operands
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import INF, Dim, Facts, Poly, assuming, substitute, symbols_of
from fluxir.ir.types import MemType, TensorType, Type

__all__ = ["check_symbols", "specialise", "specialise_facts", "specialise_type"]


def specialise(module: Module, sizes: Mapping[str, int]) -> Module:
    """`module` with its entry's size symbols in `sizes` replaced. FX0604 for a size that is not there or breaks a fact."""
    if not sizes:
        return module
    check_symbols(module.entry.symbols, sizes, module.entry.name)
    facts = specialise_facts(module.facts, sizes)
    fixed = _fixed(module, frozenset(sizes))
    with assuming(facts):
        funcs = {n: _Rewriter(sizes, fixed, n).func(f) for n, f in module.funcs.items()}
    return Module(module.name, funcs, facts, module.attrs)


def check_symbols(known: Iterable[str], sizes: Mapping[str, int], name: str) -> None:
    """FX0604 where `sizes` names a symbol that the entry point `name` does not have, or a size is negative."""
    have = sorted(known)
    for symbol, size in sizes.items():
        if symbol not in have:
            help = f"its sizes are {', '.join(have)}" if have else "all its sizes are fixed"
            raise error("FX0604", f"@{name} has no size {symbol}", help=help)
        if size < 0:
            raise error("FX0604", f"the size {symbol} is {size}, a size is at least 0")


def specialise_facts(facts: Facts, sizes: Mapping[str, int]) -> Facts:
    """What is left to know when `sizes` are given; FX0604 names a fact that they break."""
    for name, (lo, hi) in facts.bounds.items():
        if name in sizes and not lo <= sizes[name] <= hi:
            bound = f"{name} >= {lo}" if sizes[name] < lo else f"{name} <= {hi}"
            raise error("FX0604", f"the size {name} is {sizes[name]}, the program needs {bound}")
    for name, k in facts.multiples.items():
        if name in sizes and sizes[name] % k:
            raise error("FX0604", f"the size {name} is {sizes[name]}, the program needs {name} % {k} == 0")
    bounds = {n: b for n, b in facts.bounds.items() if n not in sizes}
    multiples = {n: k for n, k in facts.multiples.items() if n not in sizes}
    rest = Facts(bounds, multiples)
    equations = []
    for a, b in facts.equations:
        left, right = substitute(a, sizes), substitute(b, sizes)
        if rest.equal(left, right) is False:
            raise error("FX0604", f"the program needs {a} == {b}, which are {left} and {right} here")
        if left != right:
            equations.append((left, right))
    ceilings: dict[str, Dim] = {}
    for name, limit in facts.ceilings.items():
        value = substitute(limit, sizes)
        if name in sizes:
            if rest.range(value)[1] < sizes[name]:
                raise error("FX0604", f"the program needs {name} <= {limit}, which are {sizes[name]} and {value} here")
        elif isinstance(value, int):
            lo, hi = bounds.get(name, (0, INF))
            bounds[name] = lo, min(hi, value)
        else:
            ceilings[name] = value
    return Facts(bounds, multiples, tuple(equations), ceilings)


def specialise_type(t: Type, sizes: Mapping[str, int]) -> Type:
    """A type with sizes replaced; FX0604 where one becomes negative."""
    if not isinstance(t, (TensorType, MemType)):
        return t
    shape = tuple(substitute(d, sizes) for d in t.shape)
    for before, d in zip(t.shape, shape, strict=True):
        if isinstance(d, int) and d < 0:
            raise error("FX0604", f"the size {before} of {t} is {d} here, a size is at least 0")
    return TensorType(t.dtype, shape) if isinstance(t, TensorType) else MemType(t.dtype, shape, t.space)


def _named(op: Op) -> set[str]:
    """The callee's sizes that a call names."""
    return {s for key in ("dims", "sized") for s, _ in op.attrs.get(key, ())}


def _callees(op: Op) -> list[str]:
    callee = op.attrs.get("callee")
    return ([callee] if callee else []) + [r for r in op.attrs.get("rules", ()) if isinstance(r, str)]


def _fixed(module: Module, names: frozenset[str]) -> dict[str, frozenset[str]]:
    """For each function, those of `names` that are the entry's sizes in it, whoever calls it."""
    fixed = dict.fromkeys(module.funcs, names)
    changed = True
    while changed:
        changed = False
        for name, f in module.funcs.items():
            for op in f.walk():
                for callee in _callees(op):
                    left = fixed[callee] & (fixed[name] - _named(op)) if callee in fixed else None
                    if left is not None and left != fixed[callee]:
                        fixed[callee] = left
                        changed = True
    return fixed


class _Rewriter:
    """Copies the function `name` with its fixed sizes replaced; all types are inferred anew."""

    def __init__(self, sizes: Mapping[str, int], fixed: Mapping[str, frozenset[str]], name: str) -> None:
        self.all, self.fixed, self.name = sizes, fixed, name
        self.sizes = {s: sizes[s] for s in fixed[name]}

    def func(self, f: Func) -> Func:
        attrs = Attrs({k: self.attr(v) for k, v in f.attrs.items()})
        return Func(f.name, self.block(f.block, {}), f.level, attrs, f.result_names, f.loc)

    def block(self, block: Block, env: dict[Value, Value]) -> Block:
        """A copy; the block of an open region sees the values around it through `env`."""
        args = [Value(specialise_type(a.type, self.sizes), None, a.index, a.name) for a in block.args]
        inner = {**env, **dict(zip(block.args, args, strict=True))}
        b = Builder()
        for op in block.ops:
            for old, new in zip(op.results, self.op(b, op, inner), strict=True):
                specialise_type(old.type, self.sizes)
                new.name = old.name
                inner[old] = new
        return Block(args, b.ops, [inner[v] for v in block.outs])

    def op(self, b: Builder, op: Op, env: dict[Value, Value]) -> tuple[Value, ...]:
        attrs = {k: self.attr(v) for k, v in op.attrs.items()}
        if op.name == "call":
            kept = [s for s in sorted(self.sizes) if any(s not in self.fixed[c] for c in _callees(op))]
            attrs["dims"] = (*attrs["dims"], *[(s, self.sizes[s]) for s in kept if s not in _named(op)])
        operands = [env[v] for v in op.operands]
        blocks = [self.block(k, env) for k in op.blocks]
        try:
            return b.append(Op(op.defn, operands, Attrs(attrs), blocks, op.loc))
        except FluxError as e:
            raise with_operands(e, op.name, operands, op.loc) from None

    def attr(self, v: Any) -> Any:
        if isinstance(v, Poly):
            return _size(v, self.sizes)
        if isinstance(v, tuple):
            return tuple(self.attr(x) for x in v)
        return specialise_type(v, self.sizes) if isinstance(v, (TensorType, MemType)) else v


def _size(d: Dim, sizes: Mapping[str, int]) -> Dim:
    return substitute(d, sizes) if symbols_of(d) & set(sizes) else d
