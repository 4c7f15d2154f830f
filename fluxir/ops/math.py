"""Elementwise ops: arithmetic, comparison, logic, bits, select, casts, transcendentals.

Integer arithmetic wraps (two's complement). Integer `div`/`fmod` truncate; by zero they give 0, on every target.
Comparisons with NaN are false except `ne`. `minimum`/`maximum` propagate NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dtypes import dtype_of
from fluxir.ir.opdef import ElementContext, op, sample
from fluxir.ir.types import TensorType, Type, VectorType
from fluxir.ops.rules import broadcast_index, elementwise, elementwise_element, elementwise_type

# ---- constants ------------------------------------------------------------------------------------------------------


def _const_element(cx: ElementContext, o: Op, index: Any) -> Value:
    a = o.attrs.value
    if a.size == 1 or (a == a.flat[0]).all():
        return cx.b.const(a.flat[0] if a.dtype.kind != "V" else float(a.flat[0]), dtype=dtype_of(a.dtype))
    return cx.at(o.result, index)  # a real array: the context reads it from memory


op("const", lambda t, a, k: [TensorType.of(dtype_of(a.value.dtype), a.value.shape)], attrs={"value": "array"}, level="both", category="constant",
   ref=lambda a: a.value, element=_const_element, doc="A constant array (rank 0: a scalar).")  # fmt: skip

# ---- arithmetic -----------------------------------------------------------------------------------------------------

_NUM = (("f32[3,4]", "f32[4]"), ("i32[5]", "i32[5]"), ("f64[2,1]", "f64[1,3]"), ("u8[4]", "u8"), ("f16[5]", "f16[5]"), ("bf16[5]", "bf16[5]"))

add = elementwise("add", ref=np.add, arity=2, commutes=True, llvm={"float": "fadd", "int": "add", "uint": "add"}, samples=_NUM, doc="x + y, elementwise, broadcasting.")
sub = elementwise("sub", ref=np.subtract, arity=2, llvm={"float": "fsub", "int": "sub", "uint": "sub"}, samples=_NUM, doc="x - y, elementwise, broadcasting.")
mul = elementwise("mul", ref=np.multiply, arity=2, commutes=True, llvm={"float": "fmul", "int": "mul", "uint": "mul"}, samples=_NUM, doc="x * y, elementwise, broadcasting.")


def _div(x: Any, y: Any) -> Any:
    if np.asarray(x).dtype.kind not in "iu":
        return np.divide(x, y)
    zero = np.equal(y, 0)
    safe = np.where(zero, np.ones_like(y), y)
    q = np.floor_divide(x, safe)
    q = q + ((np.remainder(x, safe) != 0) & ((np.asarray(x) < 0) != (safe < 0))).astype(q.dtype)  # floor -> truncate
    return np.where(zero, np.zeros_like(q), q)


div = elementwise("div", ref=_div, arity=2, llvm={"float": "fdiv", "int": "sdiv", "uint": "udiv"},
                  samples=(*_NUM, sample("i32[6]", "i32[6]", low=-9, high=9)), doc="x / y; integers truncate, and by zero give 0.")  # fmt: skip


def _fmod(x: Any, y: Any) -> Any:
    if np.asarray(x).dtype.kind not in "iu":
        return np.fmod(x, y)
    zero = np.equal(y, 0)
    return np.where(zero, np.zeros_like(x), np.fmod(x, np.where(zero, np.ones_like(y), y)))


fmod = elementwise("fmod", ref=_fmod, arity=2, llvm={"float": "frem", "int": "srem", "uint": "urem"}, samples=_NUM, doc="Remainder with the sign of x (C's fmod and %); integers by zero give 0.")
minimum = elementwise("minimum", ref=np.minimum, arity=2, commutes=True, llvm={"float": "@minimum", "int": "@smin", "uint": "@umin"}, samples=_NUM, doc="The smaller of x and y; NaN if either is.")
maximum = elementwise("maximum", ref=np.maximum, arity=2, commutes=True, llvm={"float": "@maximum", "int": "@smax", "uint": "@umax"}, samples=_NUM, doc="The larger of x and y; NaN if either is.")
neg = elementwise("neg", ref=np.negative, llvm={"float": "fneg"}, samples=(("f32[5]",), ("i32[3]",)), doc="-x.")

# ---- comparison, select -----------------------------------------------------------------------------------------------

for _name, _ref, _word, _doc in (
    ("lt", np.less, "lt", "x < y"), ("le", np.less_equal, "le", "x <= y"), ("gt", np.greater, "gt", "x > y"),
    ("ge", np.greater_equal, "ge", "x >= y"), ("eq", np.equal, "eq", "x == y"), ("ne", np.not_equal, "ne", "x != y"),
):  # fmt: skip
    elementwise(_name, ref=_ref, arity=2, types="any", result="bool", commutes=_name in ("eq", "ne"), category="compare", llvm=f"cmp.{_word}",
                samples=(("f32[3,4]", "f32[4]"), ("i32[5]", "i32[5]"), ("u8[5]", "u8[5]"), ("bool[4]", "bool[4]")), doc=f"{_doc}, elementwise, as bool.")  # fmt: skip


def _select(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    r = elementwise_type("select", t, same=(1, 2))
    if not t[0].dtype.is_bool:
        from fluxir.errors import error

        raise error("FX0209", f"select: the condition must be bool, not {t[0]}")
    return [r.with_dtype(t[1].dtype)]


op("select", _select, level="both", category="elementwise", ref=lambda a, c, x, y: np.where(c, x, y), element=elementwise_element, llvm="select",
   samples=(("bool[3,4]", "f32[4]", "f32[3,1]"), ("bool", "i32[5]", "i32[5]")), doc="x where c holds, else y; broadcasting.")  # fmt: skip

# ---- casts --------------------------------------------------------------------------------------------------------------


def _with_dtype(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x = t[0]
    assert isinstance(x, (TensorType, VectorType))
    return [x.with_dtype(a.dtype)]


def _cast_ref(a: Attrs, x: Any) -> Any:
    """Float to integer truncates and saturates, NaN gives 0: the same on every target."""
    x = np.asarray(x)
    if a.dtype.is_integer and x.dtype.kind not in "iub":
        lo, hi = a.dtype.limits
        w = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
        out = np.where(w <= lo, lo, np.where(w >= hi, hi, 0)).astype(a.dtype.numpy)
        inside = (w > lo) & (w < hi)
        return np.where(inside, np.where(inside, w, 0).astype(a.dtype.numpy), out)
    return x.astype(a.dtype.numpy)


op("cast", _with_dtype, attrs={"dtype": "dtype"}, level="both", category="elementwise", ref=_cast_ref, element=elementwise_element, llvm="cast",
   samples=(sample("f32[5]", dtype="i32"), sample("i32[5]", dtype="f32"), sample("f32[4]", dtype="bool"), sample("f64[4]", dtype="f16"), sample("f32[6]", dtype="u8", low=-300, high=300)),
   doc="Convert to `dtype`. Float to integer truncates towards zero and saturates; NaN gives 0; to bool: x != 0.")  # fmt: skip

# ---- transcendentals (the others are declared beside them by the same pattern) -----------------------------------------

exp = elementwise("exp", ref=np.exp, types="float", samples=(("f32[3,4]",), ("f64[5]",), ("f16[5]",)), doc="e ** x.")

__all__ = ["broadcast_index", "elementwise"]
