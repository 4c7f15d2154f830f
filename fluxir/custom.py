"""Derivatives that the user gives: `custom_vjp`, `custom_jvp`; and `checkpoint`, which computes again instead of keeping.

A call of such a function stays a `call` in the program until derivatives are resolved; its `rules` name the functions of the
module that take the place of its derivative. One rule serves both modes: the map that it computes is linear, and its transpose
is what the other mode needs. Where a rule cannot be transposed (an iterative solver), there may be one for each mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.frontend import derived, tree
from fluxir.frontend.api_creation import zeros
from fluxir.frontend.derived import Closed
from fluxir.frontend.tensor import Tensor, as_tensor
from fluxir.frontend.trace import function_name, here, is_tracing, scope
from fluxir.frontend.tree import TreeDef
from fluxir.transform import Arguments, matching, named_like


class _Custom:
    """What both kinds share: the function, and which positional arguments are Python values that rules get as they are.

    The rules are traced where the function is called. A rule that calls the function itself (as `fwd` does to get the value)
    finds the names of the rules under way.
    """

    kind = ""

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: Sequence[int] = ()) -> None:
        named_like(fun)(self)
        self.fun, self.nondiff = fun, tuple(nondiff_argnums)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_tracing():
            return self.fun(*args, **kwargs)
        rules = self.given()
        if any(r is None for rs in rules.values() for r in rs):
            raise error("FX0413", f"{function_name(self.fun)!r} has no rule yet", loc=here(),
                        help=f"define it first: .def{self.kind}(...)")  # fmt: skip
        static = [args[i] for i in self.nondiff]
        moving = [a for i, a in enumerate(args) if i not in self.nondiff]
        c = Arguments(lambda *a: self.fun(*self.whole(static, a), **kwargs), moving, {}, None, name=self.fun)
        known = scope().trace.calls
        key = (self, c.structure, *[t.type for t in c.tensors], *[id(x) for x in (*static, *kwargs.values())])
        if key not in known:
            f = c.close(alone=True)
            names = {kind: [derived.reserve(r) for r in rs] for kind, rs in rules.items()}
            known[key] = f, names
            try:
                self.define(names, f, c, static, moving, kwargs)
            except BaseException:
                del known[key]
                raise
        f, names = known[key]
        return f.out_tree.unflatten(derived.call(f, c.tensors, rules=tuple((k, *ns) for k, ns in names.items())))

    def whole(self, static: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        """All arguments from the Python values among them and the others."""
        fixed, moving = iter(static), iter(rest)
        return [next(fixed) if i in self.nondiff else next(moving) for i in range(len(static) + len(rest))]

    def given(self) -> dict[str, list[Any]]:
        """The rules as the user gave them: `vjp` a forward and a backward function, `jvp` one function."""
        raise AssertionError

    def define(
        self, names: dict[str, list[str]], f: Closed, c: Arguments, static: list[Any], moving: list[Any], kwargs: Any
    ) -> None:
        """Trace the rules under their names."""
        raise AssertionError


class custom_vjp(_Custom):
    """A function whose reverse derivative is given by `defvjp(fwd, bwd)`, as in JAX.

    `fwd(*args)` returns `(out, residuals)`; `bwd(residuals, cotangent)` returns a tuple with a cotangent (or None for zero)
    for each argument. With `nondiff_argnums` those arguments are Python values, which `bwd` gets first. The function may not
    use traced values from outside: pass them as arguments. Works in forward mode too, by transposition. Where a loop or
    branch in `bwd` is decided by the cotangent (an iterative solver) it cannot be transposed (FX0413): then `defjvp(rule)`
    gives a rule for forward mode beside it, as in `custom_jvp`.
    """

    kind = "vjp"
    fwd: Callable[..., Any] | None = None
    bwd: Callable[..., Any] | None = None
    rule: Callable[..., Any] | None = None

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Set the rule."""
        self.fwd, self.bwd = fwd, bwd

    def defjvp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set a rule for forward mode beside the reverse one; usable as a decorator."""
        self.rule = rule
        return rule

    def given(self) -> dict[str, list[Any]]:
        return {"vjp": [self.fwd, self.bwd]} | ({} if self.rule is None else {"jvp": [self.rule]})

    def define(
        self, names: dict[str, list[str]], f: Closed, c: Arguments, static: list[Any], moving: list[Any], kwargs: Any
    ) -> None:
        trees: list[TreeDef] = []

        def forward(*a: Any) -> Any:
            assert self.fwd is not None
            out, residuals = _pair(
                self.fwd(*self.whole(static, a), **kwargs), f"fwd of {f.fn_name!r}", "(out, residuals)"
            )
            leaves, structure = tree.flatten(out)
            tree.check_same(f.out_tree, structure, f"the result of {f.fn_name!r}", "that of its fwd", "FX0413")
            kept, kept_tree = tree.flatten(residuals)
            trees.append(kept_tree)
            return [*leaves, *kept]

        fwd = Arguments(forward, moving, {}, None, name=self.fwd).close(alone=True, reserved=names["vjp"][0])
        n = len(f.types)
        if fwd.types[:n] != f.types:
            gives, wants = (", ".join(map(str, ts)) for ts in (fwd.types[:n], f.types))
            raise error("FX0413", f"fwd of {f.fn_name!r} returns ({gives}), the function ({wants})", loc=here())
        kept = fwd.types[n:]

        def backward(*xs: Tensor) -> list[Tensor]:
            assert self.bwd is not None
            residuals, ct = trees[-1].unflatten(xs[: len(kept)]), f.out_tree.unflatten(xs[len(kept) :])
            grads = self.bwd(*static, residuals, ct)
            if not isinstance(grads, tuple | list) or len(grads) != len(moving):
                count = len(grads) if isinstance(grads, tuple | list) else 1
                message = f"bwd of {f.fn_name!r} returns {count} cotangents for {len(moving)} arguments"
                raise error("FX0413", message, loc=here(), help="return a tuple; None is a cotangent of zeros")
            return [t for argument, g in zip(moving, grads, strict=True) for t in _cotangents(argument, g)]

        derived.close_types(backward, [*kept, *f.types], self.bwd, names["vjp"][1])
        if self.rule is not None:
            _define_forward(self.rule, names["jvp"][0], f, c, static)


def _cotangents(argument: Any, given: Any) -> list[Tensor]:
    """The cotangents of the float leaves of one argument."""
    leaves, structure = tree.flatten(argument)
    tensors = [as_tensor(x) for x in leaves]
    if given is None:
        return [zeros(t.shape, dtype=t.dtype) for t in tensors if t.dtype.is_float]
    whole = matching("the cotangent that bwd gives", given, structure, [t.type for t in tensors], "the argument")
    return [v for v, t in zip(whole, tensors, strict=True) if t.dtype.is_float]


class custom_jvp(_Custom):
    """A function whose forward derivative is given by `defjvp(rule)`, as in JAX: `rule(primals, tangents)` returns
    `(out, tangent_out)`, linear in the tangents. Reverse mode transposes it, unless a tangent decides a loop or branch.
    FX0413."""

    kind = "jvp"
    rule: Callable[..., Any] | None = None

    def defjvp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule; usable as a decorator."""
        self.rule = rule
        return rule

    def given(self) -> dict[str, list[Any]]:
        return {"jvp": [self.rule]}

    def define(
        self, names: dict[str, list[str]], f: Closed, c: Arguments, static: list[Any], moving: list[Any], kwargs: Any
    ) -> None:
        assert self.rule is not None
        _define_forward(self.rule, names["jvp"][0], f, c, static)


def _define_forward(rule: Callable[..., Any], name: str, f: Closed, c: Arguments, static: list[Any]) -> None:
    """Trace a rule for forward mode: arguments, tangents of the float ones -> results, tangents of the float ones."""
    n = len(c.tensors)
    floats = [k for k, t in enumerate(c.tensors) if t.dtype.is_float]

    def run(*xs: Tensor) -> list[Tensor]:
        moved = dict(zip(floats, xs[n:], strict=True))
        still = [moved[k] if k in moved else zeros(t.shape, dtype=t.dtype) for k, t in enumerate(c.tensors)]
        (primals, _), (tangents, _) = c.rebuild(xs[:n]), c.rebuild(still)
        given = _pair(rule(*static, primals, tangents), f"the rule of {f.fn_name!r}", "(out, tangent_out)")
        result = f"the result of {f.fn_name!r}"
        outs = matching("the value that the rule gives", given[0], f.out_tree, f.types, result)
        moves = matching("the tangent that the rule gives", given[1], f.out_tree, f.types, result)
        return [*outs, *[v for v, t in zip(moves, f.types, strict=True) if t.dtype.is_float]]

    types = [*[t.type for t in c.tensors], *[c.tensors[k].type for k in floats]]
    derived.close_types(run, types, rule, name)


def _pair(x: Any, what: str, names: str) -> tuple[Any, Any]:
    if not isinstance(x, tuple) or len(x) != 2:
        raise error("FX0413", f"{what} returns a {type(x).__name__}, not a pair {names}", loc=here())
    return x


def checkpoint(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` with nothing kept for its reverse pass but the arguments: the reverse computes it again.

    Trades time for memory: a chain of n layers cut into sqrt(n) checkpointed pieces keeps O(sqrt(n)) values (Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost", 2016). In the program it is a call that is not inlined.
    """

    @named_like(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not is_tracing():
            return fun(*args, **kwargs)
        c = Arguments(fun, args, kwargs, None)
        f = c.close(noinline=True)
        return f.out_tree.unflatten(derived.call(f, c.tensors))

    return run


__all__ = ["checkpoint", "custom_jvp", "custom_vjp"]
