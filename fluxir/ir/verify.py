"""The verifier replays the type rules: a program is well formed when building it again gives the same types.

Checks: values defined before use and inside the right region (closed at tensor level), declared result types equal
the type rule's, attributes fit the schema, the op belongs to the level, called functions exist, no value defined
twice. Errors name function, op path, location, and show the op.
"""

from __future__ import annotations

from fluxir.errors import FluxError, error
from fluxir.ir.core import Block, Func, Module, Op, Value
from fluxir.ir.dims import assuming
from fluxir.ir.opdef import REGISTRY, normalise_attrs
from fluxir.ir.printer import format_op


def verify_module(m: Module) -> None:
    """Raise the first violation found in `m`."""
    with assuming(m.facts):
        for f in m.funcs.values():
            verify_func(f, m)


def verify_func(f: Func, m: Module | None = None) -> None:
    """Raise the first violation found in `f` (FX0101-FX0109, or the type rule's own error)."""
    _Verifier(f, m).block(f.block, set(), f"@{f.name}")


class _Verifier:
    def __init__(self, func: Func, module: Module | None) -> None:
        self.func, self.module = func, module
        self.closed = func.level == "tensor"
        self.defined: set[Value] = set()

    def block(self, block: Block, visible: set[Value], path: str) -> None:
        scope = set() if self.closed else set(visible)
        for v in block.args:
            self.define(v, scope, path)
        for i, op in enumerate(block.ops):
            here = f"{path}/{i}:{op.name}"
            for v in op.operands:
                if v not in scope:
                    raise error("FX0103", f"{here}: operand {v!r} is not defined here", loc=op.loc, notes=[format_op(op)],
                                help="regions of tensor programs are closed: pass the value as an operand" if self.closed else None)  # fmt: skip
            self.op(op, here)
            for j, inner in enumerate(op.blocks):
                self.block(inner, scope, f"{here}.{j}")
            for r in op.results:
                self.define(r, scope, here)
        for v in block.outs:
            if v not in scope:
                raise error("FX0103", f"{path}: yields {v!r}, which is not defined here")

    def define(self, v: Value, scope: set[Value], path: str) -> None:
        if v in self.defined:
            raise error("FX0104", f"{path}: value {v!r} is defined twice")
        self.defined.add(v)
        scope.add(v)

    def op(self, op: Op, here: str) -> None:
        d = op.defn
        if REGISTRY.get(op.name) is not d:
            raise error("FX0102", f"{here}: {op.name!r} is not a registered op", loc=op.loc)
        if d.level != "both" and (d.level == "tensor") != self.closed:
            raise error("FX0108", f"{here}: {op.name} is a {d.level}-level op in a {self.func.level} function", loc=op.loc)
        if d.regions >= 0 and len(op.blocks) != d.regions:
            raise error("FX0108", f"{here}: {op.name} has {len(op.blocks)} regions, needs {d.regions}", loc=op.loc)
        try:
            normalise_attrs(d, op.attrs)
            inferred = tuple(d.infer(tuple(v.type for v in op.operands), op.attrs, op.blocks))
        except FluxError as e:
            e.loc = e.loc or op.loc
            e.notes += [f"at {here}", format_op(op)]
            raise
        declared = tuple(r.type for r in op.results)
        if inferred != declared:
            want, got = ", ".join(map(str, inferred)), ", ".join(map(str, declared))
            raise error("FX0105", f"{here}: the type rule gives {want}, the program says {got}", loc=op.loc, notes=[format_op(op)])
        callee = op.attrs.get("callee")
        if callee is not None and self.module is not None:
            if callee not in self.module.funcs:
                raise error("FX0107", f"{here}: there is no function @{callee}", loc=op.loc, help="functions: " + ", ".join(self.module.funcs))
            f = self.module.funcs[callee]
            if op.name == "call":
                self.signature(op, f, here)

    def signature(self, op: Op, f: Func, here: str) -> None:
        given, wanted = [v.type for v in op.operands], [a.type for a in f.args]
        if op.attrs.get("transform"):
            return
        if len(given) != len(wanted) or any(getattr(g, "dtype", None) != getattr(w, "dtype", None) for g, w in zip(given, wanted, strict=True)):
            raise error("FX0108", f"{here}: @{f.name} takes ({', '.join(map(str, wanted))}), given ({', '.join(map(str, given))})", loc=op.loc)
