"""Packed types: the meaning of an instruction on `f16x2`, `s16x2` or `f32x2` is that on `f16`, `s16` or `f32`, for each half."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..isa import Form
from ..values import Array, dtype, split

__all__ = ["by_halves", "halves", "join", "lanes_of"]


def halves(x: Array, kind: str) -> tuple[Array, Array]:
    """The lower and the upper half of packed words, as numbers of the type `kind`."""
    element = dtype(kind)
    word = np.asarray(x)
    narrow, shift = np.dtype(f"u{element.itemsize}"), word.dtype.type(8 * element.itemsize)
    return word.astype(narrow).view(element), (word >> shift).astype(narrow).view(element)


def join(low: Array, high: Array) -> Array:
    """The words of two halves."""
    low, high = np.asarray(low), np.asarray(high)
    narrow, wide = np.dtype(f"u{low.dtype.itemsize}"), np.dtype(f"u{2 * low.dtype.itemsize}")
    shift = wide.type(8 * low.dtype.itemsize)
    word: Array = (high.view(narrow).astype(wide) << shift) | low.view(narrow).astype(wide)
    return word


def lanes_of(kind: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` for the type `kind`: as it is, or for each half of a packed type."""
    element, count = split(kind)
    if count == 1:
        return f

    def packed(*operands: Array) -> Array:
        parts: Sequence[tuple[Array, Array]] = [halves(x, element) for x in operands]
        return join(f(*(p[0] for p in parts)), f(*(p[1] for p in parts)))

    return packed


def by_halves(form: Form, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` for the form's type."""
    return lanes_of(form.type, f)
