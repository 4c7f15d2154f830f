"""Python's own functions and the methods of arrays and numbers, as kernels have them.

`PYTHON` maps a function to its rule, `METHODS` a method's name to its: `rule(cx, *arguments)` compiles a call. What is known
while compiling is computed by Python itself.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fluxir.frontend.kernel.values import Array, Num, Range, describe, is_number
from fluxir.ir.dtypes import DTYPES

if TYPE_CHECKING:
    from fluxir.frontend.kernel.calls import Calls

__all__ = ["METHODS", "PYTHON", "dtype_or_none"]


def dtype_or_none(x: Any) -> Any:
    """The element type that an object names, or None."""
    from fluxir.ir.dtypes import dtype_of

    try:
        return dtype_of(x)
    except Exception:
        return None


def _len(cx: Calls, x: Any) -> Any:
    if isinstance(x, Array):
        return cx.size(x.shape[0])
    return len(cx.elements(x, "the argument of len"))


def _extreme(name: str, python: Any) -> Callable[..., Any]:
    def rule(cx: Calls, *args: Any) -> Any:
        xs = cx.elements(args[0], f"the argument of {python.__name__}") if len(args) == 1 else list(args)
        if not xs:
            raise cx.wrong(f"{python.__name__} of nothing")
        out = xs[0]
        for x in xs[1:]:
            a, b = cx.plain(out), cx.plain(x)
            out = cx.op(name, [a, b]) if isinstance(a, Num) or isinstance(b, Num) else python(a, b)
        return out

    return rule


def _range(cx: Calls, *args: Any) -> Range:
    if not 1 <= len(args) <= 3:
        raise cx.wrong(f"range takes 1 to 3 arguments, {len(args)} given")
    values = [cx.number(a, "an argument of range") for a in args]
    for v in values:
        if isinstance(v, float) or (isinstance(v, Num) and not v.dtype.is_integer):
            raise cx.wrong(f"range takes integers, not {describe(v)}", "convert it: int(x)")
    start, stop, step = (0, *values, 1) if len(values) == 1 else (*values, 1) if len(values) == 2 else values
    if isinstance(step, int) and step == 0:
        raise cx.wrong("range: the step is 0")
    return Range(start, stop, step)


def _absolute(cx: Calls, x: Any) -> Any:
    x = cx.plain(x)
    return cx.op("abs", [x]) if isinstance(x, Num) else abs(x)


def _pow(cx: Calls, x: Any, y: Any) -> Any:
    return cx.binary("pow", operator.pow, cx.plain(x), cx.plain(y))


def _int(cx: Calls, x: Any) -> Any:
    return cx.converted(x, DTYPES["i64"]) if isinstance(x, Num) else cx.size(x) if not is_number(x) else int(x)


def _float(cx: Calls, x: Any) -> Any:
    """A float stays what it is; an integer becomes f32."""
    x = cx.plain(x)
    if isinstance(x, Num):
        return x if x.dtype.is_float else cx.converted(x, DTYPES["f32"])
    return float(x)


def _bool(cx: Calls, x: Any) -> Any:
    return cx.truth(x)


def _rounded(name: str, python: Any) -> Callable[..., Any]:
    def rule(cx: Calls, x: Any) -> Any:
        x = cx.plain(x)
        if not isinstance(x, Num):
            return python(x)
        return cx.converted(cx.op(name, [x]), DTYPES["i64"]) if x.dtype.is_float else x

    return rule


def _sum(cx: Calls, xs: Any, start: Any = 0) -> Any:
    out = start
    for x in cx.elements(xs, "the argument of sum"):
        out = cx.binary("add", operator.add, cx.plain(out), cx.plain(x))
    return out


def _static(python: Any) -> Callable[..., Any]:
    """A function of iterables whose number of elements is known."""

    def rule(cx: Calls, *args: Any, **named: Any) -> Any:
        lists = [
            a.numbers() if isinstance(a, Range) else a if is_number(a) else cx.elements(a, "the argument") for a in args
        ]
        return tuple(python(*lists, **named))

    return rule


def _printf(cx: Calls, *args: Any) -> None:
    raise cx.refuse("print as a value", "call it: print(x)")


def _divmod(cx: Calls, x: Any, y: Any) -> Any:
    x, y = cx.plain(x), cx.plain(y)
    return (cx.binary("floordiv", operator.floordiv, x, y), cx.binary("remainder", operator.mod, x, y))


PYTHON: dict[Any, Callable[..., Any]] = {
    builtins.len: _len, builtins.min: _extreme("minimum", min), builtins.max: _extreme("maximum", max),
    builtins.range: _range, builtins.abs: _absolute, builtins.pow: _pow, builtins.int: _int, builtins.float: _float,
    builtins.bool: _bool, builtins.round: _rounded("round", round), builtins.sum: _sum, builtins.divmod: _divmod,
    builtins.zip: _static(zip), builtins.enumerate: _static(enumerate), builtins.reversed: _static(reversed),
    builtins.tuple: lambda cx, x=(): tuple(cx.elements(x, "the argument of tuple")),
    math.floor: _rounded("floor", math.floor), math.ceil: _rounded("ceil", math.ceil), math.trunc: _rounded("trunc", math.trunc),
    math.fabs: _absolute, math.pow: _pow, builtins.print: _printf,
}  # fmt: skip


# ---- methods --------------------------------------------------------------------------------------------------------------


def _load(cx: Calls, a: Any, *at: Any, lanes: int = 0, aligned: bool = True) -> Any:
    """`a.load(i, ..., lanes=n)`: n neighbouring elements of the last axis as a vector; `i` is a multiple of n, unless not
    `aligned`."""
    if not isinstance(a, Array):
        raise cx.wrong(f"{describe(a)} has no memory to load from")
    return cx.read(a, at, lanes, _alignment(a, lanes, aligned))


def _store(cx: Calls, a: Any, *given: Any, aligned: bool = True) -> None:
    """`a.store(i, ..., v)`: write a number, or a vector to neighbouring elements of the last axis."""
    if not isinstance(a, Array):
        raise cx.wrong(f"{describe(a)} has no memory to store to")
    *at, x = given
    lanes = x.lanes if isinstance(x, Num) else 0
    cx.write(a, at, x, lanes, _alignment(a, lanes, aligned))


def _alignment(a: Array, lanes: int, aligned: bool) -> int:
    nbytes = lanes * a.type.dtype.itemsize
    return min(16, nbytes & -nbytes) if lanes and aligned else 0


def _astype(cx: Calls, x: Any, dtype: Any) -> Any:
    return cx.converted(x, dtype_or_none(dtype) or dtype)


def _item(cx: Calls, x: Any) -> Any:
    return x


METHODS: dict[str, Callable[..., Any]] = {"load": _load, "store": _store, "astype": _astype, "item": _item}
