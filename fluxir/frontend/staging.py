"""`@fx.function`: a Python function whose control flow is staged, and recursion as functions of the module.

`pyast` rewrites the source, `flow` is what the rewritten source calls. A function that calls itself on traced values
becomes a function of the module and a `call`: it is traced once to learn the types of its result, from the paths that do
not recurse, and once for good.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.errors import FluxError, error
from fluxir.frontend import flow, tree
from fluxir.frontend.flow import Pending, roll_back
from fluxir.frontend.tensor import Tensor, as_tensor, is_scalar
from fluxir.frontend.trace import Scope, entered, function_name, here, is_ours, is_tracing, scope
from fluxir.ir.core import Block, Func, Value
from fluxir.ir.types import TensorType

# ---- functions and recursion --------------------------------------------------------------------------------------------


UNROLLED = 32  # calls in progress after which numbers that change from call to call become values of the program


class _Recursion(BaseException):
    """A function in progress was called again on the same types: it must become a function of the module."""

    def __init__(self, key: Any) -> None:
        self.key = key


@dataclass
class _Known:
    """A function of the module: its name and the types, weakness and structure of its result."""

    name: str
    types: tuple[TensorType, ...]
    weak: tuple[bool, ...]
    structure: tree.TreeDef


class Function:
    """A Python function whose control flow can be staged; see `function`."""

    def __init__(self, fn: Callable[..., Any], rewritten: bool = False) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self._converted: Callable[..., Any] | None = fn if rewritten else None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<fx.function {function_name(self.fn)}>"

    @property
    def converted(self) -> Callable[..., Any]:
        """The rewritten function (made when first needed)."""
        if self._converted is None:
            from fluxir.frontend.pyast import convert  # only now: most processes rewrite nothing

            self._converted = convert(self.fn, flow)
        return self._converted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_tracing():
            return self.fn(*args, **kwargs)  # on arrays and numbers Python's own control flow is right
        leaves, structure = tree.flatten((args, kwargs))
        t = scope().trace
        if sum(1 for k in t.calls if k[0] is self) >= UNROLLED:
            # A Python number that changes with each call: from here on it is a value of the program.
            leaves = [as_tensor(x) if is_scalar(x) else x for x in leaves]
            args, kwargs = structure.unflatten(leaves)
        key = (self, structure, tuple((x.type, x.weak) if isinstance(x, Tensor) else _static(x) for x in leaves))
        state = t.calls.get(key)
        if isinstance(state, _Known):
            return _emit_call(state, leaves)
        if state == "inline":
            raise _Recursion(key)
        if state == "looking":
            raise Pending(key, function_name(self.fn))
        t.calls[key] = "inline"
        s = scope()
        mark = len(s.builder.ops)
        try:
            return flow.given(self.converted(*args, **kwargs))
        except _Recursion as e:
            if e.key != key:
                raise
            roll_back(s, mark)
        except RecursionError:
            if len(t.calls) > 1:
                raise
            raise error(
                "FX0310",
                f"{function_name(self.fn)!r} leads to calls without end while it is traced",
                help="mark every function that takes part in the recursion with @fx.function",
                loc=here(),
            ) from None
        finally:
            t.calls.pop(key, None)
        t.calls[key] = self._define(key, leaves, structure)
        return _emit_call(t.calls[key], leaves)

    def _define(self, key: Any, leaves: list[Any], structure: tree.TreeDef) -> _Known:
        """Make the function of the module: once to learn the result's types, once for good.

        While they are looked for, paths that recurse are left out; so what was defined on the way is forgotten.
        """
        t = scope().trace
        word = function_name(self.fn)
        name = t.fresh_name(word)
        t.funcs[name] = Func(name, Block((), (), ()))  # holds the name
        calls, funcs = dict(t.calls), dict(t.funcs)
        t.calls[key] = "looking"
        try:
            _, outs, out_tree, weak = self._trace(leaves, structure)
            t.calls.clear()
            t.calls.update(calls)
            t.funcs.clear()
            t.funcs.update(funcs)
            known = t.calls[key] = _Known(name, tuple(v.type for v in outs), weak, out_tree)  # type: ignore[misc]
            final: list[Any] = []
            args, outs, out_tree, weak = self._trace(leaves, structure, final)
        except Pending:
            outer = next((k for k, state in calls.items() if state == "looking"), None)
            t.calls.pop(key, None)
            t.funcs.pop(name, None)
            if outer is not None:  # the other function's types may come from a path that does not lead here
                raise Pending(outer, function_name(outer[0].fn)) from None
            raise error("FX0310", f"{word!r} calls itself on every path: its recursion has no end",
                        help="return without a recursive call where a traced condition holds", loc=here()) from None  # fmt: skip
        except BaseException as e:
            if isinstance(e, FluxError) and e.code == "FX0311" and self._converted is self.fn:
                e.message = (
                    f"{word!r} calls itself on traced values and uses {e.message.removesuffix(' made it')} around it"
                )
                e.help = "pass the tensor to it as an argument"
            t.calls.pop(key, None)
            t.funcs.pop(name, None)
            raise
        types = tuple(v.type for v in outs)
        if types != known.types or out_tree != known.structure:
            called, ended = (", ".join(map(str, ts)) for ts in (types, known.types))
            raise error(
                "FX0310",
                f"the recursive calls of {word!r} give {called}, its end gives {ended}",
                help="all paths must return the same types",
                loc=here(),
            )
        t.funcs[name] = Func(name, Block(args, final[0], outs))
        return known

    def _trace(
        self, leaves: list[Any], structure: tree.TreeDef, ops: list[Any] | None = None
    ) -> tuple[list[Value], list[Value], tree.TreeDef, tuple[bool, ...]]:
        s = Scope(scope().trace)
        values = [Value(x.type, None, i) for i, x in enumerate(x for x in leaves if isinstance(x, Tensor))]
        with entered(s):
            fresh = iter(values)
            tensors = [Tensor(next(fresh), s, x.weak) if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = structure.unflatten(tensors)
            out, out_tree = tree.flatten(flow.given(self.converted(*args, **kwargs)))
            results = [as_tensor(x) for x in out]
            outs = [s.use(x.value, x.scope) for x in results]
        if ops is not None:
            ops.append(s.builder.ops)
        return values, outs, out_tree, tuple(x.weak for x in results)


class _Same:
    """A key for an object that cannot be hashed: equal to itself only, and keeping it alive."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.x is self.x

    def __hash__(self) -> int:
        return id(self.x)


def _static(x: Any) -> Any:
    try:
        hash(x)
        return (type(x), x)
    except TypeError:
        return _Same(x)


def _emit_call(known: _Known, leaves: Sequence[Any]) -> Any:
    s = scope()
    operands = [s.use(x.value, x.scope) for x in leaves if isinstance(x, Tensor)]
    results = s.emit("call", operands, (), {"callee": known.name, "results": known.types})
    return known.structure.unflatten([Tensor(v, s, weak) for v, weak in zip(results, known.weak, strict=True)])


def function(fn: Callable[..., Any]) -> Any:
    """Let Python control flow over traced values become program control flow: `@fx.function`.

    `if`, `while`, `for`, `break`, `continue`, early `return`, `and`/`or`/`not`, ternaries, chained comparisons, `assert`
    and `x[i] = v` work on traced values; over Python values they run while tracing, as everywhere. Recursion on traced
    values becomes a `call`. Functions called from it are rewritten only if they are marked too. FX0312 where the source
    is not available, FX0308 for statements without a staged meaning.
    """
    return fn if isinstance(fn, Function) else Function(fn)


def staged(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as a `Function` where its source can be rewritten, else as it is: what `fx.jit` and `fx.model` trace.

    A lambda, a builtin or a callable object is traced without the rewrite; a traced condition in it is FX0301.
    """
    import inspect

    if isinstance(fn, Function) or not inspect.isfunction(fn) or fn.__name__ == "<lambda>" or is_ours(fn.__code__):
        return fn
    if fn.__qualname__.startswith("__fx_factory."):
        return fn  # defined inside a rewritten function, and rewritten with it
    made = Function(fn)
    try:
        _ = made.converted
    except FluxError as e:
        if e.code in ("FX0308", "FX0312"):
            return fn
        raise
    return made


__all__ = ["Function", "function", "staged"]
