"""Numbers in kernels: operators, comparisons, conversions, and which type two operands meet in.

As everywhere in fluxir kinds do not mix (an integer with a float is an error that says so), and Python numbers take the
type of what they meet. `/` is for floats; `//` and `%` round down as Python's do.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from fluxir.errors import FluxError
from fluxir.frontend.kernel.context import Context
from fluxir.frontend.kernel.values import Array, Num, Struct, as_type, describe, is_number, joined_dtype, lifted
from fluxir.ir.core import Value
from fluxir.ir.dims import Poly, facts
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import INDEX, TensorType, VectorType

BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add), ast.Sub: ("sub", operator.sub), ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv), ast.FloorDiv: ("floordiv", operator.floordiv), ast.Mod: ("remainder", operator.mod),
    ast.Pow: ("pow", operator.pow), ast.LShift: ("shift_left", operator.lshift), ast.RShift: ("shift_right", operator.rshift),
    ast.BitAnd: ("bit_and", operator.and_), ast.BitOr: ("bit_or", operator.or_), ast.BitXor: ("bit_xor", operator.xor),
}  # fmt: skip
SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "remainder": "%", "pow": "**", "shift_left": "<<",
    "shift_right": ">>", "bit_and": "&", "bit_or": "|", "bit_xor": "^", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "eq": "==", "ne": "!=",
}  # fmt: skip
_KEEPS_SIGN = {"add", "mul", "floordiv", "remainder", "minimum", "bit_and", "bit_or", "bit_xor", "shift_right", "div"}
_POWERS = 8  # exponents up to which a power is written out


class Arithmetic(Context):
    """Operators on numbers of the kernel; on Python numbers alone Python computes."""

    def number(self, x: Any, what: str) -> Any:
        """`x` if it is a number or vector; FX0331 names what it should have been."""
        if isinstance(x, Poly):
            return self.size(x)
        if isinstance(x, Num) or is_number(x):
            return x
        raise self.wrong(f"{what} must be a number, not {describe(x)}")

    def size(self, d: Any) -> Any:
        """A size as a number: of a symbolic one its value at run time."""
        return Num(self.b.index(d), nonneg=True) if isinstance(d, Poly) else d

    def index(self, x: Any, what: str = "an index") -> Value:
        """A number as i64."""
        x = self.number(x, what)
        if not isinstance(x, Num):
            if isinstance(x, float):
                raise self.wrong(f"{what} must be an integer, not {x}")
            return self.b.index(int(x))
        if not x.dtype.is_integer or x.lanes:
            raise self.wrong(f"{what} must be an integer, not {x}", "convert it: int(x)")
        return as_type(self.b, x, INDEX)

    def pair(self, sign: str, x: Any, y: Any) -> tuple[Num, Num]:
        """Two operands in one type."""
        a, b = (
            lifted(self.b, self.number(x, f"an operand of {sign}")),
            lifted(self.b, self.number(y, f"an operand of {sign}")),
        )
        try:
            d = joined_dtype(a.dtype, a.weak, b.dtype, b.weak)
        except ValueError:
            raise self.mixed(sign, x, y, a, b) from None
        lanes = max(a.lanes, b.lanes)
        if a.lanes and b.lanes and a.lanes != b.lanes:
            raise self.wrong(f"{sign} of vectors of {a.lanes} and {b.lanes} lanes")
        t = VectorType(d, lanes) if lanes else TensorType(d)
        weak = a.weak and b.weak
        # A Python number is made in the type it takes, not converted to it.
        p = as_type(self.b, x if not isinstance(x, Num) else a, t) if a.dtype != d or a.lanes != lanes else a.value
        q = as_type(self.b, y if not isinstance(y, Num) else b, t) if b.dtype != d or b.lanes != lanes else b.value
        return Num(p, weak, a.nonneg), Num(q, weak, b.nonneg)

    def mixed(self, sign: str, x: Any, y: Any, a: Num, b: Num) -> FluxError:
        floats = [n for n in (a, b) if n.dtype.is_float]
        d = floats[0].dtype if floats else None
        hint = (
            f"kinds do not mix: convert the integer, as in fx.{d}(i)" if d else "convert one of them, as in fx.i64(x)"
        )
        return self.wrong(f"{describe(x)} {sign} {describe(y)}: no common type", hint)

    def binary(self, name: str, python: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
        """`x op y`."""
        if is_number(x) and is_number(y):
            try:
                return python(x, y)
            except (ArithmeticError, TypeError, ValueError) as reason:
                raise self.wrong(f"{x!r} {SIGNS.get(name, name)} {y!r}: {reason}") from None
        if isinstance(x, tuple) and isinstance(y, tuple) and name == "add":
            return x + y
        if isinstance(x, tuple) and isinstance(y, int) and name == "mul":
            return x * y
        if (
            name == "pow"
            and isinstance(y, int)
            and not isinstance(y, bool)
            and 0 <= y <= _POWERS
            and isinstance(x, Num)
        ):
            return self.power(x, y)
        if name in ("shift_left", "shift_right") and isinstance(x, Num) and isinstance(y, Num) and y.dtype != x.dtype:
            y = Num(as_type(self.b, y, TensorType(x.dtype)), nonneg=y.nonneg)  # a count of any integer type
        a, b = self.pair(SIGNS.get(name, name), x, y)
        if name == "div" and not a.dtype.is_float:
            raise self.wrong(
                f"{a} / {b}: true division is for floats",
                "use // for whole numbers, or convert: fx.f32(x) / fx.f32(y)",
            )
        if a.dtype.is_bool and name in ("add", "sub", "mul"):
            raise self.wrong(f"{SIGNS[name]} does not take bools", "convert them: fx.i32(x)")
        nonneg = a.dtype.is_integer and a.nonneg and b.nonneg and name in _KEEPS_SIGN
        if nonneg and name in ("floordiv", "remainder"):  # the machine's own division
            name = {"floordiv": "div", "remainder": "fmod"}[name]
        return Num(self.b.emit(name, a.value, b.value)[0], a.weak and b.weak, nonneg)

    def power(self, x: Num, n: int) -> Any:
        """A small whole power as products."""
        out: Any = None
        square: Num = x
        while n:
            if n & 1:
                out = square if out is None else self.binary("mul", operator.mul, out, square)
            n >>= 1
            if n:
                square = self.binary("mul", operator.mul, square, square)
        return lifted(self.b, 1) if out is None else out

    def compare(self, name: str, python: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
        if not isinstance(x, Num) and not isinstance(y, Num):
            if any(isinstance(v, (Array, Struct, Poly, tuple)) for v in (x, y)):
                if isinstance(x, Poly) or isinstance(y, Poly):
                    return self.compare(name, python, self.number(x, "a size"), self.number(y, "a size"))
                raise self.wrong(f"{describe(x)} {SIGNS[name]} {describe(y)}: only numbers are compared")
            return bool(python(x, y))
        a, b = self.pair(SIGNS[name], x, y)
        return Num(self.b.emit(name, a.value, b.value)[0])

    def negated(self, x: Any) -> Any:
        if is_number(x):
            return -x
        n = lifted(self.b, self.number(x, "the operand of -"))
        if n.dtype.is_bool:
            raise self.wrong("- does not take a bool", "convert it: fx.i32(x)")
        return Num(self.b.neg(n.value), n.weak)

    def inverted(self, x: Any) -> Any:
        if is_number(x):
            return ~x
        n = lifted(self.b, self.number(x, "the operand of ~"))
        if n.dtype.is_float:
            raise self.wrong(f"~ does not take {n}")
        return Num(self.b.bit_not(n.value), n.weak)

    def truth(self, x: Any) -> Any:
        """Python's truth of a value: a bool that is known, or a bool number."""
        if isinstance(x, Poly):
            x = self.size(x)
        if not isinstance(x, Num):
            if isinstance(x, (Array, Struct)):
                raise self.wrong(f"{describe(x)} has no truth value", "compare numbers")
            return bool(x)
        if x.lanes:
            raise self.wrong(f"a vector ({x}) has no truth value", "reduce it first")
        if x.dtype.is_bool:
            return x
        return Num(self.b.ne(x.value, self.b.const(0, dtype=x.dtype)))

    def opposite(self, x: Any) -> Any:
        """`not x`."""
        t = self.truth(x)
        return Num(self.b.logical_not(t.value)) if isinstance(t, Num) else not t

    def converted(self, x: Any, d: DType) -> Any:
        """A number as `d`, as `fx.f32(x)` writes it."""
        x = self.number(x, f"the argument of {d}")
        if isinstance(x, Num):
            t = VectorType(d, x.lanes) if x.lanes else TensorType(d)
            unsigned = d.kind == "uint" or (d.is_integer and x.nonneg and d.bits >= x.dtype.bits)
            return Num(as_type(self.b, x, t), nonneg=unsigned or x.dtype.is_bool and d.is_integer)
        if d.is_integer and isinstance(x, float):
            x = int(x)
        if d.is_integer and not d.limits[0] <= x <= d.limits[1]:
            raise self.wrong(f"{x} does not fit in {d}")
        return Num(self.b.const(bool(x) if d.is_bool else x, dtype=d), nonneg=d.is_integer and x >= 0)

    def stored(self, x: Any, d: DType, what: str, lanes: int = 0) -> Value:
        """A number as an element of memory: of the same kind, or a Python number that fits."""
        x = self.number(x, f"what is stored to {what}")
        n = lifted(self.b, x)
        rank = {"bool": 0, "int": 1, "uint": 1, "float": 2}
        fits = rank[n.dtype.kind] == rank[d.kind] or n.weak and rank[n.dtype.kind] <= rank[d.kind]
        if not fits:
            raise self.wrong(f"{n} is stored to {what}, which holds {d}", f"convert it: fx.{d}(x)")
        if n.lanes != lanes and n.lanes:
            raise self.wrong(f"{n} is stored where one {d} belongs", "use a.store(i, v) for vectors")
        t = VectorType(d, lanes) if lanes else TensorType(d)
        return as_type(self.b, n if isinstance(x, Num) else x, t)

    def known_nonneg(self, d: Any) -> bool:
        return facts().range(d)[0] >= 0 if not isinstance(d, Num) else d.nonneg

    def bool_(self, x: Any) -> Value:
        t = self.truth(x)
        return t.value if isinstance(t, Num) else self.b.const(t, dtype=DTYPES["bool"])
