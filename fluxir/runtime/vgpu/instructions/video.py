"""Packed arithmetic on the bytes and halves of words, as the video instructions have it (nvcc writes `vabsdiff4`).

The fields of a and b are extended by their types; without a mask every field takes part. The result is put together again, each
field cut to its width (or clamped, with `.sat`); with `.add` it is c and the sum of all fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..isa import Form, Signature, lanewise
from ..values import Array, dtype, is_signed
from .packed import in_blocks


def _types(form: Form) -> Signature:
    return form.types[0], ("b32", "b32", form.types[0])


def _fields(x: Array, width: int, signed: bool) -> list[Array]:
    """The fields of a word, the lowest first, as int64."""
    word = np.asarray(x).astype(np.int64)
    up = np.int64(64 - width)
    low = [word << np.int64(64 - width - at) for at in range(0, 32, width)]
    return [f >> up if signed else (f >> up) & np.int64((1 << width) - 1) for f in low]


def _packed(form: Form, f: Callable[[Array, Array], Array]) -> Any:
    width = 8 if form.instruction.name.endswith("4") else 16
    a_signed, b_signed = is_signed(form.types[1]), is_signed(form.types[2])
    result, signed = dtype(form.types[0]), is_signed(form.types[0])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    mask = np.int64((1 << width) - 1)

    def operate(a: Array, b: Array, c: Array) -> Array:
        found = [f(x, y) for x, y in zip(_fields(a, width, a_signed), _fields(b, width, b_signed))]
        total: Array = np.asarray(c).astype(np.int64) if form.has("add") else np.asarray(np.int64(0))
        for i, t in enumerate(found):
            if form.has("sat"):
                t = np.clip(t, low, high)
            total = total + (t if form.has("add") else (t & mask) << np.int64(width * i))
        return total.astype(np.uint32).view(result)

    return in_blocks(operate)


def _average(a: Array, b: Array) -> Array:
    s = a + b
    return (s + (s >= 0)) >> np.int64(1)


_FORMS = "NAME{2 4}.{u32 s32}.{u32 s32}.{u32 s32} NAME{2 4}.{u32 s32}.{u32 s32}.{u32 s32}.{sat add}"


def _declare(name: str, doc: str, f: Callable[[Array, Array], Array]) -> None:
    for fields in "24":

        def meaning(form: Form) -> Any:
            return _packed(form, f)

        meaning.__doc__, meaning.__name__ = doc, f"{name}{fields}"
        forms = _FORMS.replace("NAME{2 4}", f"{name}{fields}")
        lanewise(forms, "int", 3, signature=_types, section="9.7.17.3" if fields == "4" else "9.7.17.2")(meaning)


_declare("vadd", "The sums of the fields.", np.add)
_declare("vsub", "The differences of the fields.", np.subtract)
_declare("vavrg", "The averages of the fields, rounded away from zero at the half.", _average)
_declare("vabsdiff", "The absolute differences of the fields.", lambda a, b: np.abs(a - b))
_declare("vmin", "The smaller of the fields.", np.minimum)
_declare("vmax", "The larger of the fields.", np.maximum)
