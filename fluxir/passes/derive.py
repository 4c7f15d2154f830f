"""Resolve the transforms that calls ask for: `call @f [transform="vjp[0;0]"]` becomes a call of a function made for it.

The frontend only states what is wanted; here it is made, inner transforms first, so that they nest to any depth. A function
is prepared before it is transformed: calls in it are inlined, composites without a derivative of their own expanded, dead
and repeated code removed. A derived function is made once for each kind and set of positions, and its name is known before
its body, so that the derivative of a recursive function calls itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.ir import interp
from fluxir.ir.build import Builder
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.rewrite import rewrite_func
from fluxir.ops.control import Transform
from fluxir.passes.batch import batch_block
from fluxir.passes.cleanup import cse, dce, inline_calls
from fluxir.passes.expand import expand
from fluxir.passes.extents import extents
from fluxir.passes.forward import jvp_block
from fluxir.passes.manager import PassContext, pass_
from fluxir.passes.residuals import POLICIES
from fluxir.passes.reverse import Context, vjp_block
from fluxir.passes.simplify import simplify

MAX_FUNCTIONS = 2000  # a function whose derivative needs the derivative of its derivative ... never ends

Body = Callable[..., Sequence[Value]]


@pass_("derive", scope="module")
def derive(module: Module, cx: PassContext, *, save: str = "auto") -> Module:
    """Resolve the transforms of calls: derivatives (vjp, pullback, jvp) and batching. `save`: what reverse mode keeps from
    the forward pass, "auto" (the cheapest cut in bytes between what is dear and what is needed), "all" or "none"."""
    if save not in POLICIES:
        raise error("FX0402", f"derive: save must be one of {', '.join(POLICIES)}, not {save!r}")
    wanted = [f for f in module.funcs.values() if f.level == "tensor" and any(map(_to_resolve, f.walk()))]
    if not wanted:
        return module
    made = _Derived(module, cx, save)
    entry = made.resolved(module.entry.name)
    funcs: dict[str, Func] = {}
    todo = [entry]
    while todo:
        f = todo.pop()
        if f.name not in funcs:
            funcs[f.name] = f = f if f.level != "tensor" else rewrite_func(made.resolved(f.name), _without_rules)
            todo += [made.funcs[o.attrs["callee"]] for o in f.walk() if o.attrs.get("callee")]
    return Module(module.name, funcs, module.facts, module.attrs)


def _to_resolve(op: Op) -> bool:
    return op.name == "call" and bool(op.attrs["transform"] or op.attrs["rules"])


def _without_rules(b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
    """After all derivatives are made, a call with rules of its own is a call like any other."""
    return b.clone(op, operands, rules=()) if op.name == "call" and op.attrs["rules"] else None


class _Derived:
    """The functions of a module, with those derived from them; what reverse and forward mode need of them."""

    def __init__(self, module: Module, cx: PassContext, save: str) -> None:
        self.module, self.cx = module, cx
        self.funcs: dict[str, Func] = dict(module.funcs)
        self.names: dict[tuple[str, Transform, Dim, Any], str] = {}
        self.done: dict[str, Func] = {}
        self.ready: dict[str, Func] = {}
        self.symbols = {s for f in module.funcs.values() for s in f.symbols}
        self.context = Context(self, save)

    # ---- what the modes ask for
    def function(self, name: str) -> Func:
        return self.funcs[name]

    def add(self, base: str, block: Block) -> str:
        """A new function with this block; its name."""
        name = self.fresh(base)
        self.funcs[name] = Func(name, block)
        return name

    def add_kernel(self, func: Func) -> str:
        """A kernel that a derivative calls; its name. Equal ones are one."""
        for name, known in self.funcs.items():
            if known.level == "kernel" and known.digest == func.digest:
                return name
        name = self.fresh(func.name)
        self.funcs[name] = Func(name, func.block, func.level, func.attrs, (), func.loc)
        return name

    def fresh(self, base: str) -> str:
        name, n = base, 1
        while name in self.funcs:
            name, n = f"{base}_{n}", n + 1
        if len(self.funcs) > MAX_FUNCTIONS:
            raise error(
                "FX0410",
                f"differentiation makes more than {MAX_FUNCTIONS} functions, the last is a {base}",
                help="a recursive function that takes the derivative of itself has no end",
            )
        return name

    def fresh_symbol(self, base: str) -> str:
        n = 0
        while f"{base}{n}" in self.symbols:
            n += 1
        self.symbols.add(f"{base}{n}")
        return f"{base}{n}"

    def derived(
        self,
        name: str,
        kind: str,
        wrt: Sequence[int],
        of: Sequence[int] = (),
        *,
        size: Dim = 0,
        varying: Sequence[tuple[str, int]] = (),
    ) -> str:
        """The name of the function that a transform makes of `name`; `size` and `varying` are for `batch`, see there."""
        t = Transform(kind, tuple(wrt), tuple(of))
        key = (name, t, size, tuple(varying))
        if key not in self.names:
            self.names[key] = new = self.fresh(f"{name}_{kind}")
            self.funcs[new] = Func(new, Block((), (), ()))  # holds the name
            self.cx.rules[kind] += 1
            f = self.prepared(name)
            self.funcs[new] = Func(new, self.block(f, t, size, varying), attrs=_lasting(f.attrs), loc=f.loc)
        return self.names[key]

    # ---- one function
    def resolved(self, name: str) -> Func:
        """The function with every transform that it asks for resolved."""
        if name not in self.done:
            self.done[name] = self.funcs[name]
            self.done[name] = self.funcs[name] = rewrite_func(self.funcs[name], self.resolve)
        return self.done[name]

    def resolve(self, b: Builder, op: Op, operands: tuple[Value, ...], blocks: tuple[Block, ...]) -> Any:
        if op.name != "call" or not op.attrs["transform"]:
            return None
        t = Transform.parse(op.attrs["transform"])
        self.resolved(op.attrs["callee"])
        size: Dim = operands[t.wrt[0]].shape[0] if t.kind == "batch" else 0
        new = self.derived(op.attrs["callee"], t.kind, t.wrt, t.of, size=size)
        return b.clone(op, operands, callee=new, transform="")

    def prepared(self, name: str) -> Func:
        """The function as it is transformed: small, without calls that could be inlined, in ops that have rules."""
        if name not in self.ready:
            self.resolved(name)
            reach, todo = dict[str, Func](), [name]
            while todo:
                n = todo.pop()
                if n not in reach:
                    reach[n] = self.resolved(n)
                    todo += [o.attrs["callee"] for o in reach[n].walk() if o.attrs.get("callee")]
            m = inline_calls(Module(name, reach, self.module.facts), self.cx)
            f = expand(m.funcs[name], self.cx, keep=_differentiable_composites(), whole=False)
            cx = PassContext(m, self.cx.target, self.cx.rules)
            for run in (simplify, cse, dce):
                f = run(f, cx)
            self.ready[name] = f
        return self.ready[name]

    def block(self, f: Func, t: Transform, size: Dim, varying: Sequence[tuple[str, int]]) -> Block:
        args = [a.type for a in f.args]
        names = [a.name for a in f.args]
        n = len(args)
        if t.kind == "batch":
            return batch_block(self.context, f, t.wrt, size, varying)
        extra = [f.outs[j].type for j in t.of] if t.kind in ("vjp", "pullback") else [args[i] for i in t.wrt]
        labels = [f.outs[j].name for j in t.of] if t.kind in ("vjp", "pullback") else [names[i] for i in t.wrt]

        def body(b: Builder, *values: Value) -> Sequence[Value]:
            given = values[n:]
            if t.kind == "jvp":
                outs, tangents = jvp_block(self.context, b, f.block, values[:n], t.wrt, given, t.of)
                return [*outs, *tangents]
            outs, grads = vjp_block(self.context, b, f.block, values[:n], t.wrt, t.of, given)
            return [*outs, *grads] if t.kind == "vjp" else grads

        made: Block = Builder(f.loc).block([*args, *extra], body, [*names, *[f"d{x}" if x else "" for x in labels]])
        return made


def _lasting(attrs: Attrs) -> Attrs:
    return Attrs({k: v for k, v in attrs.items() if k == "noinline"})


def _differentiable_composites() -> str:
    """Ops that have an expansion and a derivative of their own: they are not taken apart before."""
    return "+".join(n for n, d in REGISTRY.items() if d.expand is not None and (d.vjp is not None or d.constant))


def resolve_call(module: Module, callee: str, transform: str, size: int = 0) -> tuple[Module, str]:
    """The module with the function that a transform makes of `callee`, and its name. Made once for each function (and batch
    size)."""
    key = (module.funcs[callee].block, transform, size)
    if key not in _RESOLVED:
        made = _Derived(extents(module, PassContext(module)), PassContext(module), "auto")
        t = Transform.parse(transform)
        made.resolved(callee)
        name = made.derived(callee, t.kind, t.wrt, t.of, size=size)
        for n in list(made.funcs):
            made.resolved(n)
        if len(_RESOLVED) > 256:
            _RESOLVED.clear()
        _RESOLVED[key] = Module(module.name, dict(made.funcs), module.facts), name
    return _RESOLVED[key]


_RESOLVED: dict[tuple[Block, str, int], tuple[Module, str]] = {}
interp.RESOLVE = resolve_call

__all__ = ["derive", "resolve_call"]
