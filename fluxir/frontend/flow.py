"""What the rewritten control flow of a `@fx.function` does: run on Python values, stage on traced ones.

`pyast` turns `if`, `while`, `for`, ... into calls of the functions here. A condition that is a Python value decides now,
exactly as Python does; one that is a traced scalar makes `fx.cond` or a loop of the variables its body assigns. A
loop starts in Python and goes over to a staged loop when its condition becomes traced. This module is the `__fx` of
rewritten functions; it holds no state.
"""

from __future__ import annotations

import builtins
import copy
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import FluxError, error
from fluxir.frontend import control, tree
from fluxir.frontend.effects import unchanged
from fluxir.frontend.indexing import has_mask, where_mask
from fluxir.frontend.pybuiltins import Items, Range, staged_form
from fluxir.frontend.tensor import Tensor, as_tensor, binary, constant, emit
from fluxir.frontend.trace import Region, Scope, close_regions, here, inside, is_tracing, scope, trace_region
from fluxir.frontend.undefined import Undefined
from fluxir.ir.dtypes import bool_, i64

RETURN = ("__fx_value",)  # variables that are read only where a flag says that they are set


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
    """`x and y()`. On a traced `x` that is no bool the result is one of the two values, as in Python."""
    return _choose(x, y, True, False) if traced(x) else x and y()


def or_(x: Any, y: Callable[[], Any]) -> Any:
    """`x or y()`; see `and_`."""
    return _choose(x, y, False, False) if traced(x) else x or y()


def both(x: Any, y: Callable[[], Any]) -> Any:
    """`x and y()` where only the truth counts: in conditions."""
    return _choose(x, y, True, True) if traced(x) else x and y()


def either(x: Any, y: Callable[[], Any]) -> Any:
    """`x or y()` where only the truth counts: in conditions."""
    return _choose(x, y, False, True) if traced(x) else x or y()


def _choose(x: Tensor, y: Callable[[], Any], conjunction: bool, truth: bool) -> Any:
    """`and`, `or` of a traced scalar.

    `y` runs only where Python would evaluate it; where it holds no branches, calls and asserts, that makes no difference.
    """
    p = _truth(x)
    s = scope()
    mark = len(s.builder.ops)
    try:
        right = y()
    except Pending:
        return p  # looking for the result type of a recursive function
    simple = not any(op.blocks or op.name in ("call", "assert") for op in s.builder.ops[mark:])
    are_bool = x.dtype.is_bool and (isinstance(right, bool) or isinstance(right, Tensor) and right.dtype.is_bool)
    if (truth or are_bool) and simple:
        return _logic("logical_and" if conjunction else "logical_or", p, right)
    roll_back(s, mark)
    then: Callable[[], Any]
    other: Callable[[], Any]
    if truth or are_bool:
        then, other = (lambda: _bool(y())), (lambda: not conjunction)
    else:
        then, other = y, (lambda: x)
    return control.cond(p, then, other) if conjunction else control.cond(p, other, then)


def _bool(x: Any) -> Any:
    return _truth(as_tensor(x))


def _logic(name: str, x: Tensor, y: Any) -> Any:
    return binary(name, _truth(x), _truth(as_tensor(y)))


def roll_back(s: Scope, mark: int) -> None:
    """Forget the ops of an attempt, and the constants made for them."""
    gone = set(s.builder.ops[mark:])
    del s.builder.ops[mark:]
    for key in [k for k, v in s._constants.items() if v.owner in gone]:
        del s._constants[key]
    s.builder._consts = {k: v for k, v in s.builder._consts.items() if v.owner not in gone}


def _truth(x: Tensor) -> Tensor:
    return control._scalar_condition("the condition", x)


def not_(x: Any) -> Any:
    if not traced(x):
        return not x
    return emit("logical_not", _truth(x))


def none_of(*flags: Any) -> Any:
    """Whether no flag is set; flags are Python bools or traced."""
    out: Any = True
    for f in flags:
        if not traced(f):
            if f:
                return False
        else:
            out = not_(f) if out is True else _logic("logical_and", not_(f), out)
    return out


def ifexp(c: Any, x: Callable[[], Any], y: Callable[[], Any]) -> Any:
    """`x() if c else y()`."""
    if not traced(c):
        return x() if c else y()
    try:
        return control.cond(_truth(c), x, y)
    except Pending as e:
        return _first_known((x, y), e)


def _first_known(paths: Sequence[Callable[[], Any]], pending: Pending) -> Any:
    """While the result type of a recursive function is looked for, a choice is the path that does not recurse."""
    for path in paths:
        try:
            return path()
        except Pending:
            continue
    raise pending


def given(x: Any) -> Any:
    """A value that a function returns: an error at this line if it has none."""
    for leaf in tree.leaves(x):
        if isinstance(leaf, Undefined):
            leaf._fail()
    return x


def fn(f: Any) -> Any:
    """What a call of `f` calls: for Python's own functions one that knows tensors."""
    return staged_form(f) if is_tracing() else f


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "in": lambda x, y: x in y, "not_in": lambda x, y: x not in y, "is": operator.is_, "is_not": operator.is_not,
}  # fmt: skip


def chain(words: Sequence[str], first: Any, *rest: Callable[[], Any]) -> Any:
    """`a < b < c`: each operand evaluated at most once, and none after a comparison that says no."""
    right = rest[0]()
    step = _COMPARE[words[0]](first, right)
    if len(rest) == 1:
        return step
    return and_(step, lambda: chain(words[1:], right, *rest[1:]))


slice = builtins.slice


def setitem(x: Any, index: Any, value: Any, name: str) -> Any:
    """`x[index] = value` as the variable's new value: functional on a tensor, in place on anything else."""
    if isinstance(x, Tensor):
        return x.at[index].set(value)
    if isinstance(x, Undefined):
        x._fail()
    staged = is_tracing() and scope().parent is not None
    if is_tracing() and hasattr(x, "__array_interface__") and (staged or traced(value) or _any_traced(index)):
        return as_tensor(x).at[index].set(value)
    if staged and type(x) in (dict, list):
        x = copy.copy(x)  # in a branch or loop body the change is this variable's alone
    x[index] = value
    return x


def augitem(x: Any, index: Any, word: str, value: Any, name: str) -> Any:
    """`x[index] += value` (and the like) as the variable's new value."""
    update = getattr(operator, word)
    if isinstance(x, Tensor) and has_mask(index):
        return where_mask(x, index, value, update)
    return setitem(x, index, update(x[index], value), name)


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
    pending: Pending | None = None
    for branch in (then, other):
        try:
            regions.append(_region(branch, values))
        except Pending as e:
            pending = e
    if pending is not None:  # looking for the result type of a recursive function: the other branch tells it
        return tuple(_first_known((lambda: then(*values), lambda: other(*values)), pending))
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
            missing = next(
                (x for x in (left[k], right[k]) if isinstance(x, Undefined) and x.__dict__["name"] != name), None
            )
            # `y = z` where z may have no value: the message is about z.
            left[k] = right[k] = missing if missing is not None else Undefined(name, why)
    a.out, b.out = tuple(left), tuple(right)
    try:
        rebuild = control.unify_branches([a, b], ("the if branch", "the else branch"))
    except FluxError as e:
        raise _with_names(e, names) from None
    captured, blocks = close_regions([a, b])
    results: tuple[Any, ...] = rebuild(control._emit("if", [*control._values([p]), *captured], blocks))
    return results


def _with_names(e: FluxError, names: Sequence[str]) -> FluxError:
    """Name the variables instead of their position in the tuple."""

    def named(m: re.Match[str]) -> str:
        name = names[int(m[1])]
        return " in the returned value" if name.startswith("__fx") else f" in {name + m[2]!r}"

    e.message = re.sub(r" at (\d+)((?:\.\w+)*)", named, e.message)
    return e


def if_return(c: Any, then: Callable[..., Any], other: Callable[..., Any], values: tuple[Any, ...]) -> Any:
    """The value of an `if` whose branches both return, or raise."""
    if not traced(c):
        return then(*values) if c else other(*values)
    p = _truth(c)
    try:
        a, b = _region(then, values), _region(other, values)
    except Pending as e:
        return _first_known((lambda: then(*values), lambda: other(*values)), e)
    for region, opposite in ((a, b), (b, a)):
        if region.out is RAISED:
            with inside(region):
                region.out = tree.map(_zeros_of, () if opposite.out is RAISED else opposite.out)
    try:
        rebuild = control.unify_branches([a, b], ("the if branch", "the else branch"))
    except FluxError as e:
        if e.code in ("FX0212", "FX0313", "FX0322"):
            e.notes.append("the two branches of an if return different things")
        raise
    captured, blocks = close_regions([a, b])
    return rebuild(control._emit("if", [*control._values([p]), *captured], blocks))


def _region(fn: Callable[..., Any], values: tuple[Any, ...]) -> Region:
    """A branch as a region; FX0304 if it changes Python objects, which would happen whatever the condition."""
    with unchanged(fn, values):
        return trace_region([], lambda: fn(*values))


RAISED: Any = object()  # what a staged branch gives that ends in `raise`


def raise_(problem: Callable[[], Any]) -> Any:
    """`raise`: now, or in a staged branch as an assertion that fails when the program gets there."""
    e = problem()
    s = scope() if is_tracing() else None
    if s is None or s.parent is None:
        raise e
    kind = e.__name__ if isinstance(e, type) else type(e).__name__
    text = "" if isinstance(e, type) else str(e)
    no = constant(False, bool_)
    s.emit("assert", [s.use(no.value, no.scope)], (), {"message": f"{kind}: {text}" if text else kind})
    return RAISED


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
            if self.names[k] in RETURN and isinstance(self.values[k], Undefined) and not isinstance(v, Undefined):
                raise AssertionError("a staged loop returns a value whose type was not found")
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

    def run(
        self, loop: Callable[[tuple[Any, ...]], Any], body: Callable[..., Any], prefix: str = "carry.", shift: int = 0
    ) -> tuple[Any, ...]:
        """Run a staged loop of `body`. Its messages have the variables at `prefix`, after `shift` other values."""

        def named(m: re.Match[str]) -> str:
            k, path = int(m[1]) - shift, m[2]
            return repr(self.names[self.carried[k]] + path) if 0 <= k < len(self.carried) else m[0]

        try:
            with unchanged(body, self.values):
                out = loop(self.init)
        except FluxError as e:
            if e.code == "FX0213" and e.message.startswith("the carry of "):
                _, _, detail = e.message.partition(": ")
                detail = re.sub(re.escape(prefix) + r"(\d+)((?:\.\w+)*)", named, detail)
                e.message = f"a variable changes its type in the loop: {detail}"
                e.help = "give it this type before the loop, or cast it inside: x = x.astype(...)"
            raise
        return self.after(out)


def _with_result(names: Sequence[str], values: Sequence[Any], turn: Callable[..., Any]) -> tuple[Any, ...]:
    """The variables before a staged loop that may return: the result gets a placeholder of the type one turn gives it.

    It is read only where the flag beside it says that it was set. In that turn everything that can change is traced: a
    number would decide conditions as they are in the first turn only.
    """
    out = list(values)
    for k, name in enumerate(names):
        if name in RETURN and isinstance(values[k], Undefined):
            given = trace_region([], lambda: turn(*map(_unknown, values))).out[k]
            if not isinstance(given, Undefined):
                leaves, structure = tree.flatten(given)
                out[k] = structure.unflatten([_zeros_of(x) for x in leaves])
    return tuple(out)


def _unknown(x: Any) -> Any:
    """A variable's value with its numbers as traced values."""
    return tree.map(as_tensor, x) if not isinstance(x, Undefined) and _all_data(x) else x


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

    return v.run(lambda init: control.while_loop(condition, lambda s: v.kept(body(*v.full(s))), init), body)


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


def for_(
    it: Any, body: Callable[..., Any], names: Sequence[str], values: tuple[Any, ...], stops: Sequence[str]
) -> tuple[Any, ...]:
    """The variables after a `for` loop. A tensor is iterated along its first axis, as a scan."""
    flags = [names.index(s) for s in stops]
    if isinstance(it, Tensor | Range) or isinstance(it, Items) and not it.unrolls:
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
    if isinstance(it, Tensor) and not it.ndim:
        raise error("FX0314", f"a scalar tensor ({it.type}) cannot be iterated", help="x[None] gives it an axis",
                    loc=here())  # fmt: skip
    counter = (
        next((x.dtype for x in (it.stop, it.start) if isinstance(x, Tensor)), i64) if isinstance(it, Range) else i64
    )

    def first(*vs: Any) -> Any:
        # Only the types of this turn count, so an axis that may be empty is no reason to refuse.
        i = control.as_counter(constant(0, counter))
        return body(i if isinstance(it, Range) else it[i], *vs)

    v = _Variables(names, _with_result(names, values, first) if flags else values)
    if isinstance(it, Tensor):
        if not flags:
            return v.run(lambda init: control.scan(lambda s, x: (v.kept(body(x, *v.full(s))), None), init, it)[0], body)
        length: Any = it.shape[0]
    elif isinstance(it, Items):
        length = it.length
    else:
        if not flags and it.step == 1:
            return v.run(
                lambda init: control.fori_loop(it.start, it.stop, lambda i, s: v.kept(body(i, *v.full(s))), init),
                body,
                "carry.1.",
            )
        span = it.stop - it.start if it.step > 0 else it.start - it.stop
        length = (span + (abs(it.step) - 1)) // abs(it.step)
    if not flags:
        return v.run(
            lambda init: control.fori_loop(0, length, lambda i, s: v.kept(body(it[i], *v.full(s))), init),
            body,
            "carry.1.",
        )

    def go(s: Any) -> Any:
        i, *rest = s
        full = v.full(rest)
        return and_(as_tensor(i) < length, lambda: none_of(*[full[f] for f in flags]))

    def turn(s: Any) -> Any:
        i, *rest = s
        return (i + 1, *v.kept(body(it[control.as_counter(i)], *v.full(rest))))

    return v.run(lambda init: control.while_loop(go, turn, (constant(0, counter), *init))[1:], body, shift=1)


def nested(f: Callable[..., Any]) -> Any:
    """A local function that uses its own name, and so may call itself on traced values."""
    from fluxir.frontend.staging import Function

    return Function(f, rewritten=True)


class Pending(BaseException):
    """The result types of a recursive function are not known yet; see `staging`."""

    def __init__(self, key: Any, name: str) -> None:
        self.key, self.name = key, name
