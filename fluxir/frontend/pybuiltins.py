"""Python's own functions (`min`, `sum`, `enumerate`, `math.sqrt`, ...) in a `@fx.function`: what a call means on tensors.

Each stands in for the function of the same name, and is that function where no argument is traced. `Range` and `Items`
are what `range`, `enumerate`, `zip` and `reversed` give when the number of turns is known only at run time.
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fluxir.errors import error
from fluxir.frontend import tree
from fluxir.frontend.tensor import Tensor, all_weak, as_tensor, binary, cast, emit, is_scalar, promote_operands, unary
from fluxir.frontend.trace import here
from fluxir.ir.dims import Poly, minimum
from fluxir.ir.dtypes import bool_, f32, i64


def staged_form(f: Any) -> Any:
    """The function to call in place of `f`."""
    try:
        return _FORMS.get(f, f)
    except TypeError:  # not hashable
        return f


def _traced(x: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree.leaves(x))


def _scalar(word: str, x: Any) -> Tensor:
    """A number or scalar tensor; FX0219 for more elements than one."""
    t = as_tensor(x)
    if t.ndim:
        shape = ",".join(map(str, t.shape))
        raise error("FX0219", f"{word} compares single values, not tensors of shape [{shape}]", loc=here(),
                    help=f"use fx.{word}imum(x, y) element by element, or fx.{word}(x, axis=...)")  # fmt: skip
    return t


# ---- iteration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """`range` with a traced or symbolic bound."""

    start: Any
    stop: Any
    step: int

    def __getitem__(self, k: Any) -> Any:
        return self.start + k * self.step

    def __iter__(self) -> Iterator[Any]:
        raise error("FX0302", "a range whose bounds are known only at run time has no known length here", loc=here(),
                    help="use it in a for statement, or fx.arange(n) for a size n")  # fmt: skip


def range_(*args: Any) -> Any:
    """`range(...)`: Python's own where all bounds are integers."""
    if not any(isinstance(a, Tensor | Poly) for a in args):
        return builtins.range(*args)
    start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    for bound in (start, stop):
        if isinstance(bound, Tensor) and (bound.ndim or not bound.dtype.is_integer):
            raise error("FX0302", f"the bounds of range are integer scalars, not {bound.type}",
                        help="cast it: x.astype('i64')", loc=here())  # fmt: skip
    if isinstance(step, Tensor | Poly) or step == 0:
        raise error("FX0302", "the step of a staged range is a Python integer that is not 0", loc=here(),
                    help="count the turns: for k in range((stop - start) // step): i = start + k * step")  # fmt: skip
    return Range(start, stop, step)


@dataclass(frozen=True)
class Items:
    """`enumerate`, `zip` or `reversed` of tensors: `make(k)` is turn k of `length`."""

    length: Any
    make: Callable[[Any], Any]

    @property
    def unrolls(self) -> bool:
        """Whether the number of turns is known, so that a loop runs in Python."""
        return isinstance(self.length, int)

    def __getitem__(self, k: Any) -> Any:
        return self.make(k)

    def __len__(self) -> int:
        if not self.unrolls:
            raise error("FX0302", f"the length {self.length} is known only at run time", loc=here())
        return int(self.length)

    def __iter__(self) -> Iterator[Any]:
        if not self.unrolls:
            raise error("FX0314", f"iterating {self.length} times needs the number now, and it is known only at run time",
                        help="use it in a for statement, or fx.scan(body, init, xs)", loc=here())  # fmt: skip
        return (self.make(k) for k in builtins.range(self.length))


def _staged_length(x: Any) -> Any:
    """The number of items if it is known only at run time, else None."""
    if isinstance(x, Items):
        return None if x.unrolls else x.length
    return x.shape[0] if isinstance(x, Tensor) and x.ndim and not isinstance(x.shape[0], int) else None


def _enumerate(iterable: Any, start: Any = 0) -> Any:
    n = _staged_length(iterable)
    if n is None and not isinstance(start, Tensor):
        return builtins.enumerate(iterable, start)
    return Items(len_(iterable) if n is None else n, lambda k: (start + k, iterable[k]))


def _zip(*iterables: Any, strict: bool = False) -> Any:
    if all(_staged_length(x) is None for x in iterables):
        return builtins.zip(*iterables, strict=strict)
    for x in iterables:
        if not isinstance(x, Tensor | Items):
            raise error("FX0302", f"zip of a {type(x).__name__} and a tensor whose length is known only at run time",
                        help="make all of them tensors: fx.asarray(items)", loc=here())  # fmt: skip
    sizes = [x.length if isinstance(x, Items) else x.shape[0] for x in iterables]
    return Items(functools.reduce(minimum, sizes), lambda k: tuple(x[k] for x in iterables))


def _reversed(x: Any) -> Any:
    n = _staged_length(x)
    if n is None:
        return builtins.reversed(list(x) if isinstance(x, Tensor | Items) else x)
    return Items(n, lambda k: x[n - 1 - k])


def len_(x: Any) -> Any:
    """`len`: of a tensor its leading size, which may be a symbol."""
    if isinstance(x, Tensor) and x.ndim:
        return x.shape[0]
    return builtins.len(x)


# ---- reductions -----------------------------------------------------------------------------------------------------


def _elements(x: Any) -> Any:
    """The items of an iterable; a tensor as it is."""
    return x if isinstance(x, Tensor) else list(x)


def _extreme(word: str) -> Callable[..., Any]:
    python = getattr(builtins, word)
    compare = "lt" if word == "min" else "gt"

    def extreme(*args: Any, **options: Any) -> Any:
        items = _elements(args[0]) if len(args) == 1 else list(args)
        if not _traced(items) and not _traced(options):
            return python(items, **options) if len(args) == 1 else python(*args, **options)
        if isinstance(items, Tensor) and not options and items.ndim == 1:
            if items.shape[0] == 0:
                return python([])
            return emit("min" if word == "min" else "max", items, axes=(0,), keepdims=False)
        items = list(items)
        key = options.get("key")
        if not items:
            return python(items, **options)
        best = items[0]
        for x in items[1:]:
            a, b = (x, best) if key is None else (key(x), key(best))
            c = binary(compare, _scalar(word, a), _scalar(word, b))
            best = _pick(c, x, best)
        return best

    return extreme


def _pick(c: Tensor, x: Any, y: Any) -> Any:
    """`x` where the scalar `c` holds, else `y`, as Python's `min` returns one of its arguments."""
    if tree.flatten(x)[1] != tree.flatten(0)[1]:
        from fluxir.frontend.control import cond

        return cond(c, lambda: x, lambda: y)
    a, b = promote_operands(x, y)
    r = emit("select", c, a, b)
    r.weak = all_weak((x, y))
    return r


def _sum(iterable: Any, /, start: Any = 0) -> Any:
    items = _elements(iterable)
    if isinstance(items, Tensor) and items.ndim:
        if items.dtype.is_bool:
            items = cast(items, i64)
        return emit("sum", items, axes=(0,), keepdims=False) + start
    total = start
    for x in items:
        if isinstance(x, Tensor) and x.dtype.is_bool:
            x = cast(x, i64)
        total = total + x
    return total


def _all_any(word: str) -> Callable[[Any], Any]:
    python = getattr(builtins, word)

    def reduce(iterable: Any) -> Any:
        from fluxir.frontend.control import _scalar_condition

        items = _elements(iterable)
        if isinstance(items, Tensor) and items.ndim == 1:
            return emit(word, cast(items, bool_), axes=(0,), keepdims=False)
        out: Tensor | None = None
        for x in items:
            if isinstance(x, Tensor):
                c = _scalar_condition(f"an element of {word}(...)", x)
                out = c if out is None else emit("logical_and" if word == "all" else "logical_or", out, c)
            elif bool(x) != (word == "all"):
                return word == "any"
        return python(()) if out is None else out

    return reduce


def _sorted(iterable: Any, *, key: Any = None, reverse: bool = False) -> Any:
    items = _elements(iterable)
    if not _traced(items):
        return builtins.sorted(items, key=key, reverse=reverse)
    if key is not None:
        raise error("FX0302", "sorted(..., key=...) of traced values is not staged", loc=here(),
                    help="sort by an index: x[fx.argsort(keys)]")  # fmt: skip
    from fluxir.frontend.api_indexing import sort

    out = list(sort(items if isinstance(items, Tensor) else as_tensor(items)))
    return out[::-1] if reverse else out


# ---- numbers --------------------------------------------------------------------------------------------------------


def to_integer(word: str, x: Tensor) -> Tensor:
    """`round`, `floor`, `ceil`, `trunc` of a scalar as Python gives them: an integer."""
    if x.shape:
        raise error(
            "FX0219", f"{word} as Python has it takes one number, not {x.type}", help=f"write fx.{word}(x)", loc=here()
        )
    if x.dtype.is_float:
        x = cast(unary(word, x), i64)
    return Tensor(x.value, x.scope, weak=True)


def _math(name: str) -> Callable[..., Any]:
    """`math.name`: a float of each argument's own precision."""
    python = getattr(math, name)

    def call(*args: Any, **options: Any) -> Any:
        if not _traced(args):
            return python(*args, **options)
        from fluxir.frontend import api_elementwise

        given = [_float(name, x) for x in args]
        return getattr(api_elementwise, name)(*given, **options)

    return call


def _float(name: str, x: Any) -> Any:
    if is_scalar(x):
        return float(x)
    t = as_tensor(x)
    if t.ndim:
        raise error("FX0219", f"math.{name} takes one number, not {t.type}", help=f"write fx.{name}(x)", loc=here())
    if t.dtype.is_float:
        return t
    r = cast(t, f32)
    r.weak = True
    return r


def _log(x: Any, base: Any = None) -> Any:
    log = _math("log")
    if not _traced((x, base)):
        return math.log(x) if base is None else math.log(x, base)
    return log(x) if base is None else log(x) / log(base)


def _fsum(xs: Any) -> Any:
    items = _elements(xs)
    return math.fsum(items) if not _traced(items) else _sum(items, 0.0)


def _prod(xs: Any, *, start: Any = 1) -> Any:
    items = _elements(xs)
    if not _traced(items):
        return math.prod(items, start=start)
    if isinstance(items, Tensor):
        return emit("prod", items, axes=(0,), keepdims=False) * start
    return functools.reduce(lambda a, b: a * b, items, start)


_FORMS: dict[Any, Callable[..., Any]] = {
    builtins.range: range_,
    builtins.enumerate: _enumerate, builtins.zip: _zip, builtins.reversed: _reversed, builtins.len: len_,
    builtins.min: _extreme("min"), builtins.max: _extreme("max"), builtins.sum: _sum, builtins.any: _all_any("any"),
    builtins.all: _all_any("all"), builtins.sorted: _sorted, math.log: _log, math.fsum: _fsum, math.prod: _prod,
    **{
        getattr(math, n): _math(n)
        for n in ("sqrt exp exp2 expm1 log1p log2 log10 sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh "
                  "pow hypot erf erfc lgamma fmod copysign fabs degrees radians isnan isinf isfinite cbrt").split()
        if hasattr(math, n)
    },
}  # fmt: skip

__all__ = ["Items", "Range", "len_", "range_", "staged_form", "to_integer"]
