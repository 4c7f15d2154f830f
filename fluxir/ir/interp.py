"""The meaning of a program: run it op by op on numpy arrays. The oracle for everything that compiles.

Works on every level: an op's `ref` (numpy in, numpy out) or, for regions and memory, its `eval`. Size symbols are
bound from the argument shapes; entry guards (facts) are checked. Slow and simple on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Func, Module, Op, Value
from fluxir.ir.dims import Dim, Poly, evaluate, facts, parse_dim, substitute, symbol, symbols_of
from fluxir.ir.types import MemType, TensorType, VectorType

Array = Any


RESOLVE: Callable[[Module, str, str, int], tuple[Module, str]] | None = None
"""What makes the function that a call's transform asks for, set by the pass that can: (module, callee, transform) -> a module
that holds it, and its name."""


class Interpreter:
    """Runs functions of one module. `dims` holds the values of the size symbols while a function runs."""

    def __init__(self, module: Module, dims: Mapping[str, int] | None = None, max_steps: int | None = None) -> None:
        self.module = module
        self.dims: dict[str, int] = dict(dims or {})
        self.max_steps = max_steps
        self.steps = 0
        self.depth = 0

    def call(self, func: Func | str, args: Sequence[Any], sizes: Mapping[str, int] | None = None) -> list[Any]:
        """Run a function on arrays; returns the list of results. `sizes`: size symbols that a caller states; those that
        neither it nor the shapes say keep the caller's value."""
        f = self.module.funcs[func] if isinstance(func, str) else func
        if len(args) != len(f.args):
            raise error("FX0601", f"@{f.name} takes {len(f.args)} arguments, {len(args)} given")
        saved = self.dims
        shapes = [np.shape(a) for a in args]
        if f.level == "tensor":
            self.dims = {**saved, **bind_dims(f, shapes, sizes, saved)}
        else:
            self.dims = bind_dims(f, shapes, saved)
        self.depth += 1
        try:
            if self.depth > 200:
                raise error("FX0109", f"calls are nested more than 200 deep in @{f.name}")
            arrays = [np.asarray(a) if isinstance(v.type, TensorType) else a for a, v in zip(args, f.args, strict=True)]
            return self.run(f.block, arrays, {})
        finally:
            self.depth -= 1
            self.dims = saved

    def run(self, block: Block, args: Sequence[Any], env: dict[Value, Any] | None = None) -> list[Any]:
        """Run a block. Open regions pass the enclosing `env`; closed ones start from none."""
        env = {} if env is None else env
        env.update(zip(block.args, args, strict=True))
        for op in block.ops:
            results = self.step(op, env)
            env.update(zip(op.results, results, strict=True))
        return [env[v] for v in block.outs]

    def step(self, op: Op, env: dict[Value, Any]) -> Sequence[Any]:
        self.steps += 1
        if self.max_steps is not None and self.steps > self.max_steps:
            raise error("FX0109", f"the interpreter stopped after {self.max_steps} steps")
        args = [env[v] for v in op.operands]
        attrs = self.resolve(op.attrs)
        if op.defn.eval is not None:
            return list(op.defn.eval(self, op, attrs, args, env))
        assert op.defn.ref is not None, f"{op.name} has no meaning"
        with np.errstate(all="ignore"):
            r = op.defn.ref(attrs, *args)
        return [self.typed(x, v) for x, v in zip(r if isinstance(r, (tuple, list)) else (r,), op.results, strict=True)]

    def typed(self, x: Any, v: Value) -> Any:
        """The array of a result in exactly the type that the type rule states."""
        t = v.type
        if isinstance(t, MemType):
            return x
        a = np.asarray(x)
        if a.dtype != t.dtype.numpy:
            a = a.astype(t.dtype.numpy)
        want = (t.lanes,) if isinstance(t, VectorType) else self.shape(t.shape)
        if a.shape != want:
            raise error(
                "FX0105",
                f"the numpy meaning gave shape {a.shape}, the type rule says {t} = {want}",
                loc=v.owner.loc if v.owner else None,
            )
        return a

    def shape(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else evaluate(d, self.dims) for d in dims)

    def resolve(self, attrs: Attrs) -> Attrs:
        """Attributes with sizes replaced by integers."""
        if not any(_has_poly(v) for v in attrs.values()):
            return attrs
        return Attrs({k: self._resolve(v) for k, v in attrs.items()})

    def _resolve(self, v: Any) -> Any:
        if isinstance(v, Poly):
            return evaluate(v, self.dims)
        if isinstance(v, tuple):
            return tuple(self._resolve(x) for x in v)
        if isinstance(v, (TensorType, MemType)):
            return type(v)(v.dtype, self.shape(v.shape), *(() if isinstance(v, TensorType) else (v.space,)))
        return v


def _has_poly(v: Any) -> bool:
    if isinstance(v, Poly):
        return True
    if isinstance(v, tuple):
        return any(_has_poly(x) for x in v)
    return isinstance(v, (TensorType, MemType)) and any(isinstance(d, Poly) for d in v.shape)


def bind_dims(
    func: Func,
    shapes: Sequence[Sequence[int]],
    known: Mapping[str, int] | None = None,
    around: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Values of the size symbols from argument shapes; FX0602 if the shapes do not fit the signature. Those that the shapes do
    not say are taken from `around`, what the caller knows."""
    env = dict(known or {})
    pending: list[tuple[Value, int, Dim, int]] = []
    for arg, shape in zip(func.args, shapes, strict=True):
        if isinstance(arg.type, VectorType):
            continue
        if len(shape) != len(arg.type.shape):
            raise error(
                "FX0602",
                f"argument {arg.name or arg.index} of @{func.name} has shape {tuple(shape)}, expected {arg.type}",
            )
        for axis, (dim, n) in enumerate(zip(arg.type.shape, shape, strict=True)):
            pending.append((arg, axis, dim, int(n)))
    for _ in range(len(pending) + 2):
        rest = []
        for item in pending:
            arg, axis, dim, n = item
            dim = substitute(dim, env) if isinstance(dim, Poly) else dim
            if isinstance(dim, int):
                if dim != n:
                    raise error(
                        "FX0602",
                        f"argument {arg.name or arg.index} of @{func.name}: axis {axis} is {n}, expected {item[2]} = {dim}",
                    )
            elif not _solve_for_symbol(dim, n, env):
                rest.append(item)
        if not rest:
            break
        if len(rest) == len(pending):
            names = sorted({s for r in rest for s in symbols_of(r[2])} - set(env))
            if around is not None and all(s in around for s in names):
                env.update((s, around[s]) for s in names)
                continue
            raise error("FX0604", f"the argument shapes of @{func.name} do not determine the size {', '.join(names)}")
        pending = rest
    return env


def _solve_for_symbol(dim: Poly, n: int, env: dict[str, int]) -> bool:
    """Bind the one symbol of `c*S + k == n`."""
    free = symbols_of(dim) - set(env)
    if len(free) != 1:
        return False
    (name,) = free
    k = substitute(dim, {name: 0})
    c = substitute(dim, {name: 1})
    if not isinstance(k, int) or not isinstance(c, int) or c == k or dim - k != (c - k) * symbol(name):
        return False
    if (n - k) % (c - k) or (n - k) // (c - k) < 0:
        return False
    env[name] = (n - k) // (c - k)
    return True


def check_guards(module: Module, dims: Mapping[str, int]) -> None:
    """Check the module's facts for given sizes; FX0604 names the fact that fails."""
    f = module.facts
    for name, (lo, hi) in f.bounds.items():
        if name in dims and not lo <= dims[name] <= hi:
            raise error(
                "FX0604",
                f"the size {name} is {dims[name]}, the program needs {name} >= {lo}"
                + (f" and <= {hi}" if dims[name] > hi else ""),
            )
    for name, k in f.multiples.items():
        if name in dims and dims[name] % k:
            raise error("FX0604", f"the size {name} is {dims[name]}, the program needs {name} % {k} == 0")
    for name, limit in f.ceilings.items():
        if {name, *symbols_of(limit)} <= set(dims) and dims[name] > evaluate(limit, dims):
            raise error(
                "FX0604",
                f"the program needs {name} <= {limit}, which are {dims[name]} and {evaluate(limit, dims)} here",
            )
    for a, b in f.equations:
        if (symbols_of(a) | symbols_of(b)) <= set(dims) and evaluate(a, dims) != evaluate(b, dims):
            raise error(
                "FX0604", f"the program needs {a} == {b}, which are {evaluate(a, dims)} and {evaluate(b, dims)} here"
            )


def interpret(module: Module, args: Sequence[Any], entry: str | None = None, max_steps: int | None = None) -> list[Any]:
    """Run a module's entry (or `entry`) on arrays; returns the list of result arrays."""
    func = module.funcs[entry] if entry else module.entry
    it = Interpreter(module, max_steps=max_steps)
    dims = bind_dims(func, [np.shape(a) for a in args])
    check_guards(module, dims)
    results = it.call(func, args)
    return trimmed(func.attrs, results, dims) if func.level == "tensor" else results


def trimmed(attrs: Attrs, results: list[Any], dims: Mapping[str, int]) -> list[Any]:
    """The results of a function that gives them by their bounds, with the sizes that were known only at run time last."""
    if "extents" not in attrs:
        return results
    *results, born = results
    known = {**dims, **{name: int(n) for name, n in zip(attrs["extents"], np.asarray(born), strict=True)}}
    shapes = [tuple(evaluate(parse_dim(d), known) for d in shape) for shape in attrs["shapes"]]
    return [x[tuple(slice(n) for n in shape)] for x, shape in zip(results, shapes, strict=True)]


__all__ = ["Interpreter", "bind_dims", "check_guards", "facts", "interpret", "trimmed"]
