"""How a meaning is spread: over both halves of packed types (`f16x2` is `f16` twice), and over blocks of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..isa import Form
from ..values import Array, dtype, split

__all__ = ["by_halves", "halves", "in_blocks", "join", "lanes_of"]

_BLOCK = 8192  # elements: the temporaries of a long expression stay in the cache and below malloc's threshold for mapping pages


def in_blocks(f: Callable[..., Array]) -> Callable[..., Array]:
    """`f`, an expression of many steps with one result, on blocks of threads: three to five times faster on large arrays."""

    def blocked(*operands: Array) -> Array:
        size = max(np.size(x) for x in operands)
        if size <= _BLOCK:
            return f(*operands)
        starts = range(0, size, _BLOCK)
        return np.concatenate([f(*(x if np.ndim(x) == 0 else x[i : i + _BLOCK] for x in operands)) for i in starts])

    return blocked


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

    return in_blocks(packed)


def by_halves(form: Form, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` for the form's type."""
    return lanes_of(form.type, f)
