"""Elementwise comparison, logic, bits, selection and casts.

Comparisons with NaN are false except `ne`. A shift by a negative amount or by the width or more shifts everything out:
0, or the sign for `shift_right` of a signed integer. Casts to and from f16 and bf16 go through f32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type, VectorType
from fluxir.ops import meaning, recipes
from fluxir.ops.adjoint import unbroadcast
from fluxir.ops.rules import elementwise, elementwise_element, elementwise_type

# ---- comparison -------------------------------------------------------------------------------------------------------

_ANY_PAIRS = (
    ("f32[3,4]", "f32[4]"),
    ("i32[5]", "i32[5]"),
    ("u8[5]", "u8[5]"),
    ("bool[4]", "bool[4]"),
    ("f16[3]", "f16[3]"),
    ("bf16[3]", "bf16[3]"),
    ("f64", "f64"),
    ("i64[0]", "i64[0]"),
)

for _name, _ref, _doc in (
    ("lt", np.less, "x < y"),
    ("le", np.less_equal, "x <= y"),
    ("gt", np.greater, "x > y"),
    ("ge", np.greater_equal, "x >= y"),
    ("eq", np.equal, "x == y"),
    ("ne", np.not_equal, "x != y"),
):
    elementwise(
        _name,
        ref=_ref,
        arity=2,
        types="any",
        result="bool",
        commutes=_name in ("eq", "ne"),
        category="compare",
        llvm=f"cmp.{_name}",
        samples=_ANY_PAIRS,
        doc=f"{_doc}, elementwise, as bool.",
        constant="gives bool",
    )

_FLOATS = tuple(sample(t, make=lambda rng, t=t: [_specials(t)]) for t in ("f32[6]", "f64[6]", "f16[6]", "bf16[6]"))


def _specials(text: str) -> Any:
    dtype = DTYPES[text.split("[")[0]].numpy
    return np.array([0.0, -1.5, np.inf, -np.inf, np.nan, 2.0]).astype(dtype)


for _name, _test, _recipe, _doc in (
    ("isnan", np.isnan, recipes.isnan, "Whether x is NaN."),
    ("isinf", np.isinf, recipes.isinf, "Whether x is infinite."),
    ("isfinite", np.isfinite, recipes.isfinite, "Whether x is neither NaN nor infinite."),
):
    elementwise(
        _name,
        ref=_test,
        types="float",
        result="bool",
        category="compare",
        approx=_recipe,
        samples=(*_FLOATS, ("f32",), ("f32[0,2]",)),
        doc=_doc,
        constant="gives bool",
    )

# ---- logic and bits ---------------------------------------------------------------------------------------------------

_INTEGERS = "takes integers"
_BOOL_PAIRS = (("bool[3,4]", "bool[4]"), ("bool", "bool"), ("bool[0]", "bool[0]"))
_BIT_PAIRS = (
    ("i32[5]", "i32[5]"),
    ("u8[4]", "u8"),
    ("bool[4]", "bool[4]"),
    ("i64[2,3]", "i64[3]"),
    ("u32", "u32"),
    ("i16[0]", "i16[0]"),
)
_BIT_ONE = tuple((t,) for t in ("i32[5]", "u8[4]", "i64[2,3]", "u32", "i8[0]"))


def _bitwise(name: str, ref: Callable[..., Any], doc: str, word: str, commutes: bool = True) -> None:
    elementwise(
        f"logical_{word}",
        ref=ref,
        arity=2,
        types="bool",
        commutes=commutes,
        llvm={"bool": word},
        samples=_BOOL_PAIRS,
        doc=f"{doc} of bools.",
        constant="takes bools",
    )
    kinds = dict.fromkeys(("int", "uint", "bool"), word)
    elementwise(
        f"bit_{word}",
        ref=ref,
        arity=2,
        types="bits",
        commutes=commutes,
        llvm=kinds,
        samples=_BIT_PAIRS,
        doc=f"Bitwise {doc.lower()} of integers or bools.",
        constant=_INTEGERS,
    )


_bitwise("and", np.bitwise_and, "And", "and")
_bitwise("or", np.bitwise_or, "Or", "or")
_bitwise("xor", np.bitwise_xor, "Exclusive or", "xor")

elementwise(
    "logical_not",
    ref=np.logical_not,
    types="bool",
    approx=recipes.logical_not,
    samples=(("bool[3,4]",), ("bool",), ("bool[0]",)),
    doc="Not, of a bool.",
    constant="takes bools",
)
elementwise(
    "bit_not",
    ref=np.invert,
    types="bits",
    approx=recipes.bit_not,
    samples=(*_BIT_ONE, ("bool[4]",)),
    doc="All bits flipped.",
    constant=_INTEGERS,
)

_SHIFTS = tuple(sample(t, t, low=0, high=12) for t in ("i32[5]", "u8[6]", "i64[2,3]", "u32", "i16[0]")) + (
    sample("i8[6]", "i8[6]", low=-9, high=9),
)
elementwise(
    "shift_left",
    ref=np.left_shift,
    arity=2,
    types="integer",
    llvm={"int": "shl", "uint": "shl"},
    samples=_SHIFTS,
    doc="x shifted left by y bits; by the width or more (or a negative number) gives 0.",
    constant=_INTEGERS,
)
elementwise(
    "shift_right",
    ref=np.right_shift,
    arity=2,
    types="integer",
    llvm={"int": "ashr", "uint": "lshr"},
    samples=_SHIFTS,
    doc="x shifted right by y bits, with copies of the sign of a signed integer; by the width or more leaves 0 or the sign.",
    constant=_INTEGERS,
)
elementwise(
    "popcount",
    ref=meaning.popcount,
    types="integer",
    llvm={"int": "@ctpop", "uint": "@ctpop"},
    samples=_BIT_ONE,
    doc="The number of 1 bits.",
    constant=_INTEGERS,
)
elementwise(
    "clz",
    ref=meaning.clz,
    types="integer",
    llvm={"int": "@ctlz", "uint": "@ctlz"},
    samples=_BIT_ONE,
    doc="The number of leading 0 bits; the width for 0.",
    constant=_INTEGERS,
)

# ---- select -----------------------------------------------------------------------------------------------------------


def _select(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) != 3:
        raise error("FX0108", f"select takes 3 operands, {len(t)} given")
    r = elementwise_type("select", t, same=(1, 2))
    if not t[0].dtype.is_bool:
        raise error(
            "FX0209",
            f"select: the condition must be bool, not {t[0]}",
            help="compare it with something: select(x != 0, ...)",
        )
    return [r.with_dtype(t[1].dtype)]


def _select_vjp(b: Any, o: Op, cts: Sequence[Any]) -> list[Any]:
    """The cotangent goes to the side that was taken: a NaN in the other one stays there."""
    (c, x, y), (ct,) = o.operands, cts
    zero = b.const(0, dtype=ct.dtype)
    return [None, unbroadcast(b, b.select(c, ct, zero), x.shape), unbroadcast(b, b.select(c, zero, ct), y.shape)]


op(
    "select",
    _select,
    level="both",
    category="elementwise",
    ref=lambda a, c, x, y: np.where(c, x, y),
    element=elementwise_element,
    llvm="select",
    samples=(
        ("bool[3,4]", "f32[4]", "f32[3,1]"),
        ("bool", "i32[5]", "i32[5]"),
        ("bool[2]", "bool[2]", "bool"),
        ("bool[3]", "bf16[3]", "bf16[3]"),
        ("bool[3]", "f16[3]", "f16"),
        ("bool[0]", "u8[0]", "u8"),
        ("bool", "f64", "f64"),
    ),
    doc="x where c holds, else y; broadcasting.",
    linear="all",
    vjp=_select_vjp,
)

# ---- casts ------------------------------------------------------------------------------------------------------------


def _one_value(name: str, t: Sequence[Type]) -> TensorType | VectorType:
    if len(t) != 1 or not isinstance(t[0], (TensorType, VectorType)):
        raise error("FX0108", f"{name} takes one value, given ({', '.join(map(str, t))})")
    return t[0]


def _cast(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    return [_one_value("cast", t).with_dtype(a.dtype)]


_CASTS = (
    ("f32[5]", "i32"),
    ("i32[5]", "f32"),
    ("f32[4]", "bool"),
    ("f64[4]", "f16"),
    ("f16[4]", "f32"),
    ("f32[4]", "bf16"),
    ("bf16[4]", "f64"),
    ("bool[4]", "f32"),
    ("i32[4]", "u8"),
    ("i8[4]", "i64"),
    ("u32[4]", "f16"),
    ("bool", "i32"),
    ("f32[0,2]", "f64"),
    ("i64[3]", "bool"),
)

op(
    "cast",
    _cast,
    attrs={"dtype": "dtype"},
    level="both",
    category="elementwise",
    ref=lambda a, x: meaning.cast(x, a.dtype),
    element=elementwise_element,
    llvm="cast",
    samples=(
        *(sample(t, dtype=d) for t, d in _CASTS),
        sample("f32[6]", dtype="u8", low=-300, high=300),
        sample(
            "f32[6]", dtype="i8", make=lambda rng: [np.array([np.nan, np.inf, -np.inf, 127.9, -128.9, 0.5], np.float32)]
        ),
    ),
    doc="Convert to `dtype`. Float to integer truncates towards zero and saturates, NaN gives 0; integers wrap; "
    "to bool: x != 0; to and from f16 and bf16 through f32.",
    linear="all",
    vjp=lambda b, o, cts: [b.cast(cts[0], dtype=o.operands[0].dtype)],
)


def _bitcast(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    x = _one_value("bitcast", t)
    if x.dtype.bits != a.dtype.bits:
        raise error(
            "FX0226",
            f"bitcast: {x.dtype.bits} bits of {x.dtype} cannot become {a.dtype.bits} of {a.dtype}",
            help="both types need the same width; `cast` converts the value",
        )
    if x.dtype.is_bool != a.dtype.is_bool:
        raise error("FX0226", "bitcast: bool has no bit form", help="cast to u8, or compare with 0")
    return [x.with_dtype(a.dtype)]


op(
    "bitcast",
    _bitcast,
    attrs={"dtype": "dtype"},
    level="both",
    category="elementwise",
    ref=lambda a, x: np.asarray(x).view(a.dtype.numpy),
    element=elementwise_element,
    llvm="bitcast",
    samples=tuple(
        sample(t, dtype=d)
        for t, d in (
            ("f32[5]", "i32"),
            ("u32[5]", "f32"),
            ("f64", "u64"),
            ("bf16[3]", "u16"),
            ("f16[3]", "bf16"),
            ("i8[0]", "u8"),
        )
    ),
    doc="The same bits read as another type of the same width.",
    constant="reads bits",
)
