"""Python functions as programs: `fx.jit`, and `lower_function` which traces without compiling.

Owns the choice of what is compiled when: once for each structure, dtype and shape of the arguments, or once for a
signature with symbolic sizes. A call that looks like the last one goes straight to native code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fluxir import config
from fluxir.driver import Compiled, Lowered, few_collections
from fluxir.errors import error
from fluxir.frontend import tree
from fluxir.ir.core import Attrs, Module
from fluxir.ir.dtypes import DType
from fluxir.ir.verify import verify_module
from fluxir.routes import remember
from fluxir.runtime.route import Routed


def lower_function(
    fn: Callable[..., Any],
    *args: Any,
    facts: Any = None,
    name: str | None = None,
    donate: Sequence[int] = (),
    **kwargs: Any,
) -> Lowered:
    """Trace `fn` on abstract arguments: tensor types (`fx.f32["B", 784]`), arrays or numbers. The memory of the positional
    arguments `donate` goes to results of the same types, in order."""
    from fluxir.frontend.staging import staged
    from fluxir.frontend.trace import trace

    fn = (
        functools.partial(staged(fn.func), *fn.args, **fn.keywords) if isinstance(fn, functools.partial) else staged(fn)
    )
    with few_collections():
        t = trace(fn, args, kwargs, name=name, facts=facts)
    module = _with_donated(t.module, args, donate) if donate else t.module
    verify_module(module)
    return Lowered(module, t.in_tree, t.out_tree)


def _with_donated(module: Module, args: Sequence[Any], donate: Sequence[int]) -> Module:
    """The module whose entry says which result takes the memory of which argument: `donated=((result, argument), ...)`."""
    ends = [0]
    for a in args:
        ends.append(ends[-1] + len(tree.flatten(a)[0]))
    for n in donate:
        if not 0 <= n < len(args):
            raise error("FX0601", f"donate_argnums names argument {n}, there are {len(args)}")
    entry = module.entry
    free = [i for n in donate for i in range(ends[n], ends[n + 1])]
    pairs = []
    for j, v in enumerate(entry.outs):
        i = next((i for i in free if entry.args[i].type == v.type), None)
        if i is not None:
            free.remove(i)
            pairs.append((j, i))
    return module.with_func(replace(entry, attrs=Attrs({**entry.attrs, "donated": tuple(pairs)})))


class Jit(Routed):
    """A function compiled on first call for each structure, dtype and shape of its arguments; see `jit`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        target: str | None = None,
        device: str | None = None,
        static_argnames: str | Sequence[str] = (),
        signature: Sequence[Any] | None = None,
        facts: Any = None,
        donate_argnums: int | Sequence[int] = (),
    ) -> None:
        super().__init__()
        functools.update_wrapper(self, fn)
        self.fn, self.target, self.device = fn, target, device
        self.static = frozenset([static_argnames] if isinstance(static_argnames, str) else static_argnames)
        self.signature, self.facts = signature, facts
        self.donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
        self._programs: dict[Any, Compiled] = {}

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        from fluxir.frontend.tensor import Tensor

        static = {k: v for k, v in kwargs.items() if k in self.static}
        traced = {k: v for k, v in kwargs.items() if k not in self.static}
        given = args
        leaves, structure = tree.flatten((args, traced))
        if any(isinstance(x, DType) for x in leaves):
            # In a call a dtype is a choice; only where types are given (`lower`) it is the type of a scalar.
            args, traced = tree.map(lambda x: tree.fixed(x) if isinstance(x, DType) else x, (args, traced))
            leaves, structure = tree.flatten((args, traced))
        if any(isinstance(x, Tensor) for x in leaves):
            return self.fn(*args, **kwargs)  # inside another trace: part of that program
        compiled = self._compiled(args, traced, static, leaves, structure)
        arrays = [x if hasattr(x, "__dlpack__") or hasattr(x, "__array__") else _scalar(x) for x in leaves]
        results = compiled.program.checked(arrays)
        assert compiled.out_tree is not None
        remember(self, compiled.program, (given, kwargs), structure, leaves, compiled.out_tree)
        return compiled.out_tree.unflatten(results)

    def _compiled(
        self, args: Any, traced: Any, static: dict[str, Any], leaves: list[Any], structure: tree.TreeDef
    ) -> Compiled:
        from fluxir.frontend.trace import here

        for name, value in static.items():
            try:
                hash(value)
            except TypeError:
                raise error("FX0318", f"the static argument {name!r} is a {type(value).__name__}") from None
        if self.signature is not None:
            key: Any = (structure, tuple(sorted(static.items())), "signature", config.get().device)
        else:
            key = (
                structure,
                tuple(sorted(static.items())),
                tuple(_abstract_key(x) for x in leaves),
                config.get().key(),
                config.get().device,
            )
        if key not in self._programs:
            if self.signature is not None:
                declared = tuple(self.signature)
                if len(args) == len(declared):
                    a, b = tree.flatten(args)[1], tree.flatten(declared)[1]
                    tree.check_same(a, b, "the arguments", "the signature", loc=here())
                args = declared
            self._programs[key] = self.lower(*args, **traced, **static).compile(self.target, device=self.device)
        return self._programs[key]

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Trace without compiling; arguments may be types: `f.lower(fx.f32["B", 784])`. Without any, the signature."""
        static = {k: v for k, v in kwargs.items() if k in self.static}
        traced = {k: v for k, v in kwargs.items() if k not in self.static}
        if not args and not traced and self.signature is not None:
            args = tuple(self.signature)
        fn = functools.partial(self.fn, **static) if static else self.fn
        name = getattr(self.fn, "__name__", None)
        return lower_function(fn, *args, facts=self.facts, name=name, donate=self.donate, **traced)


def _scalar(x: Any) -> Any:
    import numpy as np

    from fluxir.frontend.trace import abstract

    return np.asarray(x, abstract(x).dtype.numpy)


def _abstract_key(x: Any) -> Any:
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    return (tuple(shape), dtype) if shape is not None and dtype is not None else type(x)


def jit(
    fn: Callable[..., Any] | None = None,
    *,
    target: str | None = None,
    device: str | None = None,
    static_argnames: str | Sequence[str] = (),
    signature: Sequence[Any] | None = None,
    facts: Any = None,
    donate_argnums: int | Sequence[int] = (),
) -> Any:
    """Compile a function: `f = fx.jit(g)`, `@fx.jit`, `@fx.jit(signature=(fx.f32["B", 784],))`.

    Without a signature the function is compiled once for each structure, dtype and shape of its arguments; with one (or
    annotations that are all tensor types) once for all sizes, which entry guards check. `static_argnames` are Python
    values that the trace may branch on. `donate_argnums`: positional arguments whose memory results of the same types take
    over; using such an array afterwards is FX0614. `device`: where it runs (`cpu`, `cuda`, `cuda:1`, `vgpu`, `vgpu:sm_80`;
    default: the setting `device`); it decides what is compiled for unless `target` does. Returns a `Jit`: callable, with
    `.lower(...)`.
    """
    options: dict[str, Any] = {
        "target": target,
        "device": device,
        "static_argnames": static_argnames,
        "signature": signature,
        "facts": facts,
        "donate_argnums": donate_argnums,
    }
    return functools.partial(jit, **options) if fn is None else Jit(fn, **options)


__all__ = ["Jit", "jit", "lower_function"]
