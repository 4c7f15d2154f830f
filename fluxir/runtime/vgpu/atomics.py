"""What many threads do to one place, one after the other, computed for all of them at once.

Threads that touch one element take their turn in the order of their numbers. Associative operations are scanned (Hillis and
Steele, Data parallel algorithms, 1986), sums of floats accumulated in that very order, since rounding depends on it; the rest
goes in rounds, one turn of every element each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .values import Array

__all__ = ["compare_and_swap", "update"]

Combine = Callable[[Any, Any], Any]


class _Turns:
    """Threads sorted by element. `rank`: whose turn it is, from 0; `starts`: where each element's threads begin."""

    def __init__(self, index: Array) -> None:
        self.order = np.argsort(index, kind="stable")
        self.index = index[self.order]
        first = np.concatenate(([True], self.index[1:] != self.index[:-1]))
        self.starts = np.flatnonzero(first)
        self.group = np.cumsum(first) - 1
        self.rank = np.arange(len(index)) - self.starts[self.group]
        self.ends = np.append(self.starts[1:], len(index)) - 1

    @property
    def rounds(self) -> int:
        return int(self.rank.max()) + 1

    def unsorted(self, values: Array) -> Array:
        out = np.empty_like(values)
        out[self.order] = values
        return out


def update(units: Array, index: Array, operand: Array, combine: Combine, associative: bool, tiny: float = 0.0) -> Array:
    """`units[i] = combine(units[i], b)` for each thread in turn; returns what each found. All arrays have one dtype. `tiny`:
    `combine` is a sum that flushes what is smaller than this to zero."""
    if len(index) == 0:
        return units[index]
    t = _Turns(index)
    base = units[t.index[t.starts]]
    if len(t.starts) == len(index):
        old = units[index]
        units[index] = combine(old, operand)
        return old
    b = operand[t.order]
    if associative:
        seen = _scan(t, b, combine)
        before = np.empty_like(b)
        before[1:] = seen[:-1]
        old = np.where(t.rank == 0, base[t.group], combine(base[t.group], before)).astype(b.dtype)
        units[t.index[t.starts]] = combine(base, seen[t.ends])
        return t.unsorted(old)
    old = np.empty_like(b)
    if (combine is np.add or tiny) and len(t.starts) <= t.rounds:
        last = np.empty_like(base)
        for i, (s, e) in enumerate(zip(t.starts, t.ends)):
            steps = np.add.accumulate(np.concatenate((base[i : i + 1], b[s : e + 1])))
            old[s : e + 1], last[i] = steps[:-1], steps[-1]
        if not tiny or not any(((np.abs(v) < tiny) & (v != 0)).any() for v in (b, old, last)):
            units[t.index[t.starts]] = last
            return t.unsorted(old)
    for turn in range(t.rounds):
        mine = np.flatnonzero(t.rank == turn)
        old[mine] = units[t.index[mine]]
        units[t.index[mine]] = combine(old[mine], b[mine])
    return t.unsorted(old)


def _scan(t: _Turns, values: Array, combine: Combine) -> Array:
    """Inclusive scan within each element's threads."""
    out, step = values.copy(), 1
    while step < t.rounds:
        later = np.flatnonzero(t.rank >= step)
        out[later] = combine(out[later - step], out[later])
        step *= 2
    return out


def compare_and_swap(units: Array, index: Array, expected: Array, new: Array) -> Array:
    """`if units[i] == expected: units[i] = new` for each thread in turn; returns what each found."""
    if len(index) == 0:
        return units[index]
    t = _Turns(index)
    e, n, old = expected[t.order], new[t.order], np.empty_like(expected)
    left = np.ones(len(index), bool)
    while True:
        old[left] = units[t.index[left]]
        hits = np.flatnonzero(left & (old == e))
        if not len(hits):
            break
        first = hits[np.unique(t.group[hits], return_index=True)[1]]  # the first of each element succeeds
        units[t.index[first]] = n[first]
        reached = np.full(len(t.starts), -1)
        reached[t.group[first]] = t.rank[first]
        left &= t.rank > reached[t.group]  # those before it failed, those after it look again
        left &= reached[t.group] >= 0
    return t.unsorted(old)
