"""What the rewritten control flow of a `@fx.function` does: run on Python values, stage on traced ones.

`pyast` turns `if`, `while`, `for`, ... into calls of the functions here. A condition that is a Python value decides now,
exactly as Python does; one that is a traced scalar makes `fx.cond` or a loop of the variables its body assigns. A
loop starts in Python and goes over to a staged loop when its condition becomes traced. A function that calls itself on
traced values becomes a function of the module and a `call`.
"""

from __future__ import annotations

import builtins
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.errors import FluxError, error
from fluxir.frontend import control, tree
from fluxir.frontend.tensor import Tensor, as_tensor, binary, constant
from fluxir.frontend.trace import (
    Scope,
    close_regions,
    entered,
    function_name,
    here,
    inside,
    is_ours,
    is_tracing,
    scope,
    trace_region,
)
from fluxir.ir.core import Block, Func, Value
from fluxir.ir.dims import Poly
from fluxir.ir.types import TensorType

RETURN = ("__fx_value",)  # variables that are read only where a flag says that they are set


class Undefined:
    """The value of a variable that was not assigned on the way here; any use is FX0306."""

    def __init__(self, name: str, why: str = "") -> None:
        self.__dict__.update(name=name, why=why)

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise error("FX0306", f"the variable {self.__dict__['name']!r} may have no value here{self.__dict__['why']}",
                    help="assign it before the if or the loop, with the type it has later", loc=here())  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail()

    __bool__ = __call__ = __iter__ = __len__ = __getitem__ = __index__ = __float__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = (
        __rmatmul__
    ) = _fail
    __floordiv__ = __mod__ = __pow__ = __rpow__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = _fail


def undefined(name: str) -> Undefined:
    return Undefined(name)


def get(read: Callable[[], Any], name: str) -> Any:
    """The variable's value, or `Undefined`."""
    try:
        return read()
    except NameError:
        return Undefined(name)


def traced(x: Any) -> bool:
    return isinstance(x, Tensor)


# ---- expressions ------------------------------------------------------------------------------------------------------


def and_(x: Any, y: Callable[[], Any]) -> Any:
    """`x and y()`; on traced scalars both are evaluated, as `logical_and`."""
    return _logic("logical_and", x, y()) if traced(x) else x and y()


def or_(x: Any, y: Callable[[], Any]) -> Any:
    return _logic("logical_or", x, y()) if traced(x) else x or y()


def _logic(name: str, x: Tensor, y: Any) -> Any:
    return binary(name, _truth(x), _truth(as_tensor(y)))


def _truth(x: Tensor) -> Tensor:
    return control._scalar_condition("the condition", x)


def not_(x: Any) -> Any:
    if not traced(x):
        return not x
    from fluxir.frontend.tensor import emit

    return emit("logical_not", _truth(x))


def _given(x: Any) -> Any:
    return x


def none_of(*flags: Any) -> Any:
    """Whether no flag is set; flags are Python bools or traced."""
    out: Any = True
    for f in flags:
        out = and_(not_(f), functools.partial(_given, out)) if traced(f) else (False if f else out)
        if out is False:
            return False
    return out


def ifexp(c: Any, x: Callable[[], Any], y: Callable[[], Any]) -> Any:
    """`x() if c else y()`."""
    if not traced(c):
        return x() if c else y()
    return control.cond(c, x, y)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "in": lambda x, y: x in y, "not_in": lambda x, y: x not in y, "is": operator.is_, "is_not": operator.is_not,
}  # fmt: skip


def chain(words: Sequence[str], first: Any, *rest: Callable[[], Any]) -> Any:
    """`a < b < c`: each operand evaluated once, stopping where a Python value says no."""
    out: Any = True
    left = first
    for i, (word, read) in enumerate(zip(words, rest, strict=True)):
        right = read()
        step = _COMPARE[word](left, right)
        out = (
            step
            if i == 0
            else (
                _logic("logical_and", out, step)
                if traced(out)
                else (_logic("logical_and", step, out) if traced(step) else step)
            )
        )
        if not traced(out) and not out:
            return out
        left = right
    return out


slice = builtins.slice


def setitem(x: Any, index: Any, value: Any, name: str) -> Any:
    """`x[index] = value` as the variable's new value: functional on a tensor, in place on anything else."""
    if isinstance(x, Tensor):
        return x.at[index].set(value)
    if isinstance(x, Undefined):
        x._fail()
    if is_tracing() and hasattr(x, "__array_interface__") and (traced(value) or _any_traced(index)):
        return as_tensor(x).at[index].set(value)
    x[index] = value
    return x


def _any_traced(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(traced(p) for p in parts)


def assert_(test: Callable[[], Any], message: Callable[[], Any], source: str) -> None:
    """`assert test, message`: a Python value is checked now, a traced one when the program runs."""
    value = test()
    if not traced(value):
        if not value:
            text = message()
            raise AssertionError(source if text is None else text)
        return
    text = message()
    s = scope()
    p = _truth(value)
    s.emit("assert", [s.use(p.value, p.scope)], (), {"message": source if text is None else str(text)})


# ---- branches ---------------------------------------------------------------------------------------------------------


def if_(
    c: Any, then: Callable[..., Any], other: Callable[..., Any], names: Sequence[str], values: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The variables after an `if` statement."""
    if not traced(c):
        out: tuple[Any, ...] = then(*values) if c else other(*values)
        return out
    p = _truth(c)
    regions = []
    pending: _Pending | None = None
    for branch in (then, other):
        try:
            regions.append(trace_region([], lambda branch=branch: branch(*values)))
        except _Pending as e:
            pending = e
    if pending is not None:  # looking for the result type of a recursive function: the other branch tells it
        return tuple(_Again(then, other, pending).run(values))
    a, b = regions
    left, right = list(a.out), list(b.out)
    for k, name in enumerate(names):
        u, v = isinstance(left[k], Undefined), isinstance(right[k], Undefined)
        if not (u or v):
            continue
        if name in RETURN and u != v:
            region, given = (a, right[k]) if u else (b, left[k])
            with inside(region):
                filled = tree.map(_zeros_of, given)
            (left if u else right)[k] = filled
        else:
            why = "" if u and v else ": it is assigned in only one branch of the if"
            left[k] = right[k] = Undefined(name, why)
    a.out, b.out = tuple(left), tuple(right)
    try:
        rebuild = control.unify_branches([a, b], ("the if branch", "the else branch"))
    except FluxError as e:
        raise _with_names(e, names) from None
    captured, blocks = close_regions([a, b])
    results: tuple[Any, ...] = rebuild(control._emit("if", [*control._values([p]), *captured], blocks))
    return results


@dataclass
class _Again:
    """While the result type of a recursive function is looked for, an `if` is the branch that does not recurse."""

    then: Callable[..., Any]
    other: Callable[..., Any]
    pending: _Pending

    def run(self, values: tuple[Any, ...]) -> Any:
        for branch in (self.then, self.other):
            try:
                return branch(*values)
            except _Pending:
                continue
        raise self.pending


def _with_names(e: FluxError, names: Sequence[str]) -> FluxError:
    """Name the variables instead of their position in the tuple."""
    for k, n in enumerate(names):
        e.message = e.message.replace(
            f" at [{k}]", f" in {n!r}" if not n.startswith("__fx") else " in the returned value"
        )
    return e


def if_return(c: Any, then: Callable[..., Any], other: Callable[..., Any], values: tuple[Any, ...]) -> Any:
    """The value of an `if` whose branches both return."""
    if not traced(c):
        return then(*values) if c else other(*values)
    try:
        return control.cond(c, lambda: then(*values), lambda: other(*values))
    except _Pending as e:
        return _Again(then, other, e).run(values)
    except FluxError as e:
        if e.code in ("FX0212", "FX0313", "FX0322"):
            e.notes.append("the two branches of an if return different things")
        raise


def result(done: Any, value: Any, always: bool) -> Any:
    """What a function returns whose returns became flags."""
    if done is False:
        return None
    if traced(done) and not always:
        raise error("FX0305", "the function returns a value only where a traced condition holds, and nothing otherwise",
                    help="add a return at the end", loc=here())  # fmt: skip
    return value


# ---- loops ------------------------------------------------------------------------------------------------------------


class _Variables:
    """The variables of a staged loop: those that carry data are the loop's carry, the others stay outside."""

    def __init__(self, names: Sequence[str], values: Sequence[Any]) -> None:
        self.names, self.values = names, list(values)
        self.carried = [k for k, v in enumerate(values) if not isinstance(v, Undefined) and _all_data(v)]

    @property
    def init(self) -> tuple[Any, ...]:
        return tuple(self.values[k] for k in self.carried)

    def full(self, carry: Sequence[Any]) -> list[Any]:
        """All variables, with the carried ones as given."""
        out = list(self.values)
        for k, v in zip(self.carried, carry, strict=True):
            out[k] = v
        return out

    def kept(self, after: Sequence[Any]) -> tuple[Any, ...]:
        """The carried variables after one turn of the body; FX0322 if a Python object changed."""
        for k, v in enumerate(after):
            if k not in self.carried and not isinstance(self.values[k], Undefined) and v is not self.values[k]:
                kind = type(self.values[k]).__name__
                raise error(
                    "FX0322",
                    f"the variable {self.names[k]!r} is a Python {kind} that a staged loop changes",
                    help="only tensors and numbers can change in a loop over traced values",
                    loc=here(),
                )
        return tuple(after[k] for k in self.carried)

    def after(self, carry: Sequence[Any]) -> tuple[Any, ...]:
        out = self.full(carry)
        for k, v in enumerate(out):
            if isinstance(v, Undefined):
                out[k] = Undefined(self.names[k], ": it is assigned in a loop that may not run at all")
        return tuple(out)

    def run(self, loop: Callable[[tuple[Any, ...]], Any]) -> tuple[Any, ...]:
        try:
            return self.after(loop(self.init))
        except FluxError as e:
            for k, j in enumerate(self.carried):
                e.message = e.message.replace(f"carry[{k}]", repr(self.names[j]))
            raise


def _with_result(names: Sequence[str], values: Sequence[Any], turn: Callable[..., Any]) -> tuple[Any, ...]:
    """The variables before a staged loop that may return: the result gets a placeholder of the type one turn gives it.

    It is read only where the flag beside it says that it was set.
    """
    out = list(values)
    for k, name in enumerate(names):
        if name in RETURN and isinstance(values[k], Undefined):
            probe = trace_region([], lambda: turn(*values))
            given = probe.out[k]
            if not isinstance(given, Undefined):
                leaves, structure = tree.flatten(given)
                out[k] = structure.unflatten([_zeros_of(x) for x in leaves])
    return tuple(out)


def _zeros_of(x: Any) -> Any:
    """Zeros of the type of a tensor that belongs to another region; numbers and objects as they are."""
    if not isinstance(x, Tensor):
        return x
    from fluxir.frontend.api_creation import zeros

    made = zeros(x.shape, dtype=x.dtype)
    made.weak = x.weak
    return made


def _all_data(x: Any) -> bool:
    leaves = tree.leaves(x)
    return bool(leaves) and all(control._is_data(v) for v in leaves)


def _staged_while(test: Callable[..., Any], body: Callable[..., Any], v: _Variables) -> tuple[Any, ...]:
    def condition(state: Any) -> Any:
        return _truth(as_tensor(test(*v.full(state))))

    return v.run(lambda init: control.while_loop(condition, lambda s: v.kept(body(*v.full(s))), init))


def while_(
    test: Callable[..., Any], body: Callable[..., Any], names: Sequence[str], values: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The variables after a `while` loop: in Python as long as the condition is a Python value, then staged."""
    while True:
        c = test(*values)
        if traced(c):
            return _staged_while(test, body, _Variables(names, _with_result(names, values, body)))
        if not c:
            return values
        values = body(*values)


@dataclass(frozen=True)
class _Range:
    """`range` with a traced or symbolic bound."""

    start: Any
    stop: Any
    step: int


def range_(python_range: Any, *args: Any) -> Any:
    """`range(...)`: Python's own where all bounds are integers."""
    if python_range is not builtins.range or not any(isinstance(a, Tensor | Poly) for a in args):
        return python_range(*args)
    start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    if isinstance(step, Tensor | Poly) or step == 0:
        raise error("FX0302", "the step of a staged range is a Python integer that is not 0", loc=here())
    return _Range(start, stop, step)


def for_(
    it: Any, body: Callable[..., Any], names: Sequence[str], values: tuple[Any, ...], stops: Sequence[str]
) -> tuple[Any, ...]:
    """The variables after a `for` loop. A tensor is iterated along its first axis, as a scan."""
    flags = [names.index(s) for s in stops]
    if isinstance(it, Tensor | _Range):
        return _staged_for(it, body, names, values, flags)
    for item in it:
        now = [values[f] for f in flags]
        if any(f is True for f in now):
            break
        if any(traced(f) for f in now):
            values = if_(none_of(*now), lambda *vs, item=item: body(item, *vs), lambda *vs: vs, names, values)
        else:
            values = body(item, *values)
    return values


def _staged_for(
    it: Any, body: Callable[..., Any], names: Sequence[str], values: tuple[Any, ...], flags: Sequence[int]
) -> tuple[Any, ...]:
    from fluxir.ir.dtypes import i64

    if isinstance(it, Tensor) and not it.ndim:
        raise error("FX0314", "a scalar tensor cannot be iterated", loc=here())

    def first(*vs: Any) -> Any:
        # Only the types of this iteration count, so an axis that may be empty is no reason to refuse.
        return body(it[constant(0, i64)] if isinstance(it, Tensor) else it.start, *vs)

    v = _Variables(names, _with_result(names, values, first) if flags else values)
    if isinstance(it, Tensor):
        if not flags:
            return v.run(lambda init: control.scan(lambda s, x: (v.kept(body(x, *v.full(s))), None), init, it)[0])
        length: Any = it.shape[0]

        def item(i: Any) -> Any:
            return it[i]
    else:
        low, high, step = it.start, it.stop, it.step
        if not flags and step == 1:
            return v.run(lambda init: control.fori_loop(low, high, lambda i, s: v.kept(body(i, *v.full(s))), init))
        span = high - low if step > 0 else low - high
        length = (span + (abs(step) - 1)) // abs(step)

        def item(i: Any) -> Any:
            return low + i * step

    counter = (
        i64 if isinstance(it, Tensor) else next((x.dtype for x in (it.stop, it.start) if isinstance(x, Tensor)), i64)
    )

    def go(s: Any) -> Any:
        i, *rest = s
        full = v.full(rest)
        return and_(as_tensor(i) < length, lambda: none_of(*[full[f] for f in flags]))

    def turn(s: Any) -> Any:
        i, *rest = s
        return (i + 1, *v.kept(body(item(i), *v.full(rest))))

    return v.run(lambda init: control.while_loop(go, turn, (constant(0, counter), *init))[1:])


# ---- functions and recursion --------------------------------------------------------------------------------------------


class _Recursion(BaseException):
    """A function in progress was called again on the same types: it must become a function of the module."""

    def __init__(self, key: Any) -> None:
        self.key = key


class _Pending(BaseException):
    """The result types of a recursive function are not known yet."""

    def __init__(self, key: Any, name: str) -> None:
        self.key, self.name = key, name


@dataclass
class _Known:
    """A function of the module: its name and the structure, types and weakness of its result."""

    name: str
    types: tuple[TensorType, ...]
    structure: tree.TreeDef


class Function:
    """A Python function whose control flow can be staged; see `function`."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self._converted: Callable[..., Any] | None = None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<fx.function {function_name(self.fn)}>"

    @property
    def converted(self) -> Callable[..., Any]:
        """The rewritten function (made when first needed)."""
        if self._converted is None:
            from fluxir.frontend.pyast import convert

            runtime = __import__("fluxir.frontend.staging", fromlist=["staging"])
            self._converted = convert(self.fn, runtime)
        return self._converted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_tracing():
            return self.fn(*args, **kwargs)  # on arrays and numbers Python's own control flow is right
        leaves, structure = tree.flatten((args, kwargs))
        t = scope().trace
        key = (self, structure, tuple(x.type if isinstance(x, Tensor) else _static(x) for x in leaves))
        state = t.calls.get(key)
        if isinstance(state, _Known):
            return _emit_call(state, leaves)
        if state == "inline":
            raise _Recursion(key)
        if state == "looking":
            raise _Pending(key, function_name(self.fn))
        t.calls[key] = "inline"
        s = scope()
        mark = len(s.builder.ops)
        try:
            return _defined(self.converted(*args, **kwargs))
        except _Recursion as e:
            if e.key != key:
                raise
            _roll_back(s, mark)
        finally:
            t.calls.pop(key, None)
        t.calls[key] = self._define(key, leaves, structure)
        return _emit_call(t.calls[key], leaves)

    def _define(self, key: Any, leaves: list[Any], structure: tree.TreeDef) -> _Known:
        """Make the function of the module: once to learn the result's types, once for good."""
        t = scope().trace
        name = t.fresh_name(function_name(self.fn))
        t.calls[key] = "looking"
        try:
            _, outs, out_tree = self._trace(leaves, structure)
        except _Pending:
            raise error("FX0310", f"{function_name(self.fn)!r} calls itself on every path: its recursion has no end",
                        help="return without a recursive call where a traced condition holds", loc=here()) from None  # fmt: skip
        known = _Known(name, tuple(v.type for v in outs), out_tree)  # type: ignore[misc]
        t.calls[key] = known
        t.funcs[name] = Func(name, Block((), (), ()))  # holds the name
        final: list[Any] = []
        args, outs, out_tree = self._trace(leaves, structure, final)
        types = tuple(v.type for v in outs)
        if types != known.types:
            called, ended = (", ".join(map(str, ts)) for ts in (types, known.types))
            raise error(
                "FX0310",
                f"the recursive calls of {function_name(self.fn)!r} give {called}, its end gives {ended}",
                help="all paths must return the same types",
                loc=here(),
            )
        t.funcs[name] = Func(name, Block(args, final[0], outs))
        return known

    def _trace(
        self, leaves: list[Any], structure: tree.TreeDef, ops: list[Any] | None = None
    ) -> tuple[list[Value], list[Value], tree.TreeDef]:
        s = Scope(scope().trace)
        values = [Value(x.type, None, i) for i, x in enumerate(x for x in leaves if isinstance(x, Tensor))]
        with entered(s):
            fresh = iter(values)
            tensors = [Tensor(next(fresh), s, x.weak) if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = structure.unflatten(tensors)
            out, out_tree = tree.flatten(_defined(self.converted(*args, **kwargs)))
            outs = [s.use(x.value, x.scope) for x in map(as_tensor, out)]
        if ops is not None:
            ops.append(s.builder.ops)
        return values, outs, out_tree


def _defined(x: Any) -> Any:
    """The result of a function, none of whose parts may be undefined."""
    for leaf in tree.leaves(x):
        if isinstance(leaf, Undefined):
            leaf._fail()
    return x


def _static(x: Any) -> Any:
    try:
        hash(x)
        return (type(x), x)
    except TypeError:
        return ("object", id(x))


def _emit_call(known: _Known, leaves: Sequence[Any]) -> Any:
    s = scope()
    operands = [s.use(x.value, x.scope) for x in leaves if isinstance(x, Tensor)]
    results = s.emit("call", operands, (), {"callee": known.name, "results": known.types})
    return known.structure.unflatten([Tensor(v, s) for v in results])


def _roll_back(s: Scope, mark: int) -> None:
    """Forget the ops of an attempt, and the constants made for them."""
    gone = set(s.builder.ops[mark:])
    del s.builder.ops[mark:]
    for key in [k for k, v in s._constants.items() if v.owner in gone]:
        del s._constants[key]
    s.builder._consts = {k: v for k, v in s.builder._consts.items() if v.owner not in gone}


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
    made = Function(fn)
    try:
        _ = made.converted
    except FluxError as e:
        if e.code in ("FX0308", "FX0312"):
            return fn
        raise
    return made


__all__ = ["Function", "Undefined", "function", "staged"]
