"""Comparisons and selections.

On floats, `lt` and its like are false where an operand is NaN, and `ltu` and its like are true; -0 equals +0. `lo ls hi hs` are
the unsigned orders by another name. A comparison may be combined with a predicate c: the first result is (a op b) combined
with c, the second one (`p|q`) is not(a op b) combined with c. On packed types the two results are those of the two halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..isa import Form, lanewise
from ..values import Array, bf16_to_f32, dtype, is_float, split
from .packed import halves, join

_Binary = Callable[[Any, Any], Any]

_ORDERED: dict[str, _Binary] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_FLOAT: dict[str, _Binary] = {
    **{order: _ORDERED[order] for order in ("eq", "lt", "le", "gt", "ge")},
    "ne": lambda a, b: (a < b) | (a > b),
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
_BOOLEAN: dict[str, _Binary] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_TINY = {"f16": 2.0**-14, "f32": 2.0**-126}

_BITS = "{eq ne}[.{and or xor}]"
_SIGNED = "{eq ne lt le gt ge}[.{and or xor}]"
_UNSIGNED = "{eq ne lt le gt ge lo ls hi hs}[.{and or xor}]"
_FLOATS = "{eq ne lt le gt ge equ neu ltu leu gtu geu num nan}[.{and or xor}]"


def _numbers(kind: str, ftz: bool) -> Callable[[Array], Array]:
    """The operands as numpy compares them."""
    if kind == "bf16":
        return bf16_to_f32
    if not ftz:
        return lambda x: x
    tiny, zero = dtype(kind).type(_TINY[kind]), dtype(kind).type(0)
    return lambda x: np.where(np.abs(x) < tiny, zero, x)


def _comparison(form: Form) -> Callable[[Array, Array], Any]:
    """a op b of the form, on operands of its type without the packing."""
    kind, _ = split(form.type)
    if not is_float(kind):
        return _ORDERED[form.one_of(*_ORDERED)]
    compare, numbers = _FLOAT[form.one_of(*_FLOAT)], _numbers(kind, form.has("ftz"))
    return lambda a, b: compare(numbers(a), numbers(b))


def _operands(form: Form) -> tuple[str, ...]:
    return (form.type, form.type, "pred") if form.one_of(*_BOOLEAN) else (form.type, form.type)


def _combine(form: Form) -> Callable[..., Any]:
    """How the outcome of the comparison becomes the result: f(outcome, [c])."""
    boolean = form.one_of(*_BOOLEAN)
    return _BOOLEAN[boolean] if boolean else lambda outcome: outcome


@lanewise(
    f"""setp.{_BITS}.{{b16 b32 b64}} setp.{_SIGNED}.{{s16 s32 s64}} setp.{_UNSIGNED}.{{u16 u32 u64}}
        setp.{_FLOATS}[.ftz].{{f32 f16 f16x2}} setp.{_FLOATS}.{{f64 bf16 bf16x2}}""",
    "compare",
    signature=lambda form: ("pred", _operands(form)),
    section="9.7.6.2",
)
def setp(form: Form) -> Any:
    """Whether a op b, combined with c where given; with two results also of its opposite, or of the two halves."""
    compare, combine, count = _comparison(form), _combine(form), len(form.destinations)
    kind, packed = split(form.type)
    if packed == 2:
        if count != 2:
            form.reject("a comparison of packed numbers has two results, `p|q`")

        def both(a: Array, b: Array, *c: Array) -> Any:
            return tuple(combine(compare(x, y), *c) for x, y in zip(halves(a, kind), halves(b, kind)))

        return both
    if count == 2:

        def pair(a: Array, b: Array, *c: Array) -> Any:
            outcome = compare(a, b)
            return combine(outcome, *c), combine(~outcome, *c)

        return pair
    return lambda a, b, *c: combine(compare(a, b), *c)


_ONE = {"f16": 0x3C00, "bf16": 0x3F80, "f32": 0x3F800000}  # what a true comparison gives; integers get all ones


@lanewise(
    f"""set.{_BITS}.{{u32 s32 f32 f16 bf16}}.{{b16 b32 b64}} set.{_SIGNED}.{{u32 s32 f32 f16 bf16}}.{{s16 s32 s64}}
        set.{_UNSIGNED}.{{u32 s32 f32 f16 bf16}}.{{u16 u32 u64}} set.{_FLOATS}[.ftz].{{u32 s32 f32 f16 bf16}}.f32
        set.{_FLOATS}.{{u32 s32 f32 f16 bf16}}.f64 set.{_FLOATS}[.ftz].{{u16 s16 u32 s32 f16}}.f16
        set.{_FLOATS}.{{u16 s16 u32 s32 bf16}}.bf16 set.{_FLOATS}[.ftz].{{f16x2 u32 s32}}.f16x2
        set.{_FLOATS}.{{bf16x2 u32 s32}}.bf16x2""",
    "compare",
    signature=lambda form: (form.types[0], _operands(form)),
    section="9.7.6.1",
)
def set_(form: Form) -> Any:
    """1.0, or all ones of an integer type, where a op b; else zero."""
    compare, combine, result = _comparison(form), _combine(form), dtype(form.types[0])
    kind, packed = split(form.type)
    element, _ = split(form.types[0])
    width = 2 if packed == 2 else result.itemsize
    word = np.dtype(f"u{width}")
    yes, no = word.type(_ONE.get(element, (1 << 8 * width) - 1)), word.type(0)

    def flags(a: Array, b: Array, *c: Array) -> Array:
        words: Array = np.where(combine(compare(a, b), *c), yes, no)
        return words

    if packed == 2:
        return lambda a, b, *c: join(*(flags(x, y, *c) for x, y in zip(halves(a, kind), halves(b, kind)))).view(result)
    return lambda a, b, *c: flags(a, b, *c).view(result)


@lanewise(
    "selp.{b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64}",
    "compare",
    signature=lambda form: (form.type, (form.type, form.type, "pred")),
    section="9.7.6.3",
)
def selp(form: Form) -> Any:
    """a where the predicate c holds, else b."""
    return lambda a, b, c: np.where(c, a, b)


@lanewise(
    "slct.{b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64}.s32 slct[.ftz].{b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64}.f32",
    "compare",
    signature=lambda form: (form.types[0], (form.types[0], form.types[0], form.type)),
    section="9.7.6.4",
)
def slct(form: Form) -> Any:
    """a where c >= 0 (-0 is), else b; b where c is NaN. `.ftz` makes a negative subnormal c zero."""
    number = _numbers(form.type, form.has("ftz"))
    return lambda a, b, c: np.where(number(c) >= 0, a, b)
