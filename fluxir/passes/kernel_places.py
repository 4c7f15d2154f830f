"""Which elements of an array the threads of a kernel touch: whether two threads, or two rounds of a loop, can meet in one.

An index is an affine form over digits: a thread's and a block's number along an axis, and the round of a loop; what is the same
for all threads only shifts it. A list of indices tells the threads apart (`distinct`) if every digit can be read off one of
them, as a number in mixed radix shows its digits: the weight of each covers the whole range of those below. Everything not
shown so counts as not known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxir.ir.core import Func, Op, Value
from fluxir.ir.dims import Dim, mul, prove_le
from fluxir.ir.types import TensorType

__all__ = ["Digit", "Places"]

Digit = tuple[str, Any]  # ("thread", axis), ("block", axis), ("round", the loop's index)


@dataclass(frozen=True)
class Form:
    """weights[d] for each digit d, plus something that is the same for all threads (`shift`, where it is a known number)."""

    weights: Mapping[Digit, Dim] = field(default_factory=dict)
    shift: Dim | None = 0

    def plus(self, other: Form, sign: int = 1) -> Form:
        weights = dict(self.weights)
        for d, w in other.weights.items():
            weights[d] = weights.get(d, 0) + sign * w
        shift = None if self.shift is None or other.shift is None else self.shift + sign * other.shift
        return Form({d: w for d, w in weights.items() if w != 0}, shift)

    def times(self, n: Dim) -> Form:
        return Form({d: mul(w, n) for d, w in self.weights.items()}, None if self.shift is None else mul(self.shift, n))


class Places:
    """The indices of one kernel, launched with `grid` blocks of `block` threads."""

    def __init__(self, f: Func, grid: Sequence[Dim], block: Sequence[int]) -> None:
        self.grid, self.block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        self.forms: dict[Value, Form | None] = {}
        self.loops: dict[Value, Op] = {}  # by the index of the loop
        for op in f.walk():
            if op.name == "for":
                self.loops[op.blocks[0].args[0]] = op

    # ---- forms
    def form(self, v: Value) -> Form | None:
        """The index as an affine form; None where it is none."""
        if v not in self.forms:
            self.forms[v] = None  # while it is being found
            self.forms[v] = self._form(v)
        return self.forms[v]

    def number(self, v: Value) -> Dim | None:
        """The value, where it is known before the launch."""
        f = self.form(v)
        return f.shift if f is not None and not f.weights else None

    def _form(self, v: Value) -> Form | None:
        if v in self.loops:
            lo, _, step = self.loops[v].operands[:3]
            start, by = self.form(lo), self.number(step)
            return start.plus(Form({("round", v): by})) if start is not None and by is not None else None
        op = v.owner
        if op is None:
            return None
        if op.name == "thread_id":
            return Form({("thread", op.attrs.axis): 1})
        if op.name == "block_id":
            return Form({("block", op.attrs.axis): 1})
        if op.name == "block_dim":
            return Form(shift=self.block[op.attrs.axis])
        if op.name == "grid_dim":
            return Form(shift=self.grid[op.attrs.axis])
        if op.name == "dim":
            return Form(shift=op.attrs.value)
        if op.name == "const":
            a = op.attrs["value"]
            return Form(shift=int(a)) if a.dtype.kind in "iu" else None
        if op.name == "load":
            rank0 = len(op.operands) == 1  # a number that the kernel was given
            return Form(shift=None) if rank0 else None
        if op.name == "cast" and isinstance(v.type, TensorType) and v.type.dtype.is_integer:
            return self.form(op.operands[0])
        if op.name in ("add", "sub", "mul", "maximum"):
            a, b = (self.form(x) for x in op.operands)
            if a is None or b is None:
                return None
            if op.name == "mul":
                n = self.number(op.operands[1])
                if n is not None:
                    return a.times(n)
                n = self.number(op.operands[0])
                return b.times(n) if n is not None else None
            if op.name == "maximum":  # the step of a loop over the whole grid: at least 1
                n, least = self.number(op.operands[0]), self.number(op.operands[1])
                return Form(shift=n) if n is not None and least == 1 else None
            return a.plus(b, 1 if op.name == "add" else -1)
        return None

    # ---- what they tell
    def _range(self, d: Digit) -> Dim | None:
        """How many values a digit takes; None where that is not known."""
        kind, axis = d
        return self.block[axis] if kind == "thread" else self.grid[axis] if kind == "block" else None

    def distinct(self, index: Sequence[Value], loops: Sequence[Value]) -> bool:
        """Whether no two threads, and no two rounds of the loops (given by their indices), have this index."""
        shapes = (("thread", self.block), ("block", self.grid))
        left: set[Digit] = {(kind, axis) for kind, sizes in shapes for axis, n in enumerate(sizes) if n != 1}
        left |= {("round", v) for v in loops}
        forms = [f for f in map(self.form, index) if f is not None]
        changed = True
        while left and changed:
            changed = False
            for f in forms:
                mine = [d for d in f.weights if d in left]
                if mine and self._readable(f, mine):
                    left -= set(mine)
                    changed = True
        return not left

    def _readable(self, f: Form, digits: list[Digit]) -> bool:
        """Whether the digits can be read off the form: in some order each weighs at least the range of all below."""
        if len(digits) > 5:
            return False
        sized = {d: (w if prove_le(1, w) else -1 * w, self._range(d)) for d, w in f.weights.items() if d in digits}
        return any(self._radix([sized[d] for d in order]) for order in itertools.permutations(digits))

    @staticmethod
    def _radix(digits: list[tuple[Dim, Dim | None]]) -> bool:
        below: Dim = 1
        for i, (weight, n) in enumerate(digits):
            if not prove_le(below, weight) or not prove_le(1, weight):
                return False
            if n is None and i + 1 < len(digits):
                return False
            below = mul(weight, n) if n is not None else weight
        return True

    def same(self, a: Sequence[Value], b: Sequence[Value]) -> bool:
        """Whether two lists of indices are equal in every thread."""
        return all(x is y or self._equal(self.form(x), self.form(y)) for x, y in zip(a, b, strict=True))

    @staticmethod
    def _equal(a: Form | None, b: Form | None) -> bool:
        return a is not None and b is not None and a.shift is not None and b.shift is not None and a == b

    def apart(self, a: Sequence[Value], b: Sequence[Value]) -> bool:
        """Whether two lists of indices differ at some axis by being different numbers."""
        pairs = [(self.number(x), self.number(y)) for x, y in zip(a, b, strict=True)]
        return any(isinstance(m, int) and isinstance(n, int) and m != n for m, n in pairs)
