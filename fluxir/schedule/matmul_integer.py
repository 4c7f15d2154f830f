"""Products of 8-bit integers with sums of 32 bits: the matrix template on words that hold several numbers each.

Four neighbours along the contracted index are one i32 word where the target multiplies them in one instruction (x86 with
VNNI: numbers without a sign by numbers with one; AArch64 with dot products: both alike), else two, widened to 16 bits, which
every x86 multiplies and adds in pairs without loss. Operands are packed into panels of words, constants when compiling, with
zeros beyond the last k; a left operand whose lines are words already is read in place. Sums are those of the numbers, exact
modulo 2**32, in any order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import ceildiv, floordiv, product
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import (
    BATCH,
    CONTRACT,
    FREE,
    Dot,
    Operand,
    OperandCode,
    analyse_dot,
    prologue_reads,
    views,
)
from fluxir.schedule.gemv_cpu import turned
from fluxir.schedule.group import Array, Group
from fluxir.schedule.loops import for_, grain_of, if_, is_small, kernel, nest, parallel, unravel
from fluxir.schedule.matmul_choice import choose
from fluxir.schedule.matmul_cpu import TINY, Matmul
from fluxir.schedule.matmul_pack import pieces, plus
from fluxir.schedule.split import split_at
from fluxir.schedule.templates import Kernels, Ref, Step, template

I16, I32 = DTYPES["i16"], DTYPES["i32"]
LINE = 16  # numbers read at a time along the free index


@template("matmul_integer", target="cpu", anchors=("dot",), priority=30)
def matmul_integer(group: Group, target: Any) -> Kernels | None:
    """One dot of 8-bit integers with pointwise operations after it."""
    dot = analyse_dot(group)
    if dot is None or dot.op.attrs["dtype"] is None or 0 in (dot.batch, dot.m, dot.n, dot.k):
        return None
    dot = turned(dot)
    work = product((dot.batch, dot.m, dot.n, dot.k))
    if dot.lhs.computed or dot.rhs.computed or (isinstance(work, int) and work <= TINY):
        return None
    if len(dot.post_dims[2]) > 1:  # what follows does not see the columns as one axis
        return split_at(group, dot.op, target)
    return _IntegerMatmul(dot, target, factors(dot.lhs.value.dtype, dot.rhs.value.dtype, target)).kernels()


def factors(left: DType, right: DType, target: Any) -> tuple[DType, DType]:
    """The types in which numbers of these types are multiplied."""
    vnni = target.has("avx512vnni") or (target.has("avxvnni") and target.vector_bits < 512)
    if (left != right and vnni) or (left == right and target.has("dotprod")):
        return left, right
    return I16, I16


@dataclass(frozen=True, eq=False)
class Words(Operand):
    """An operand whose lines along k are words of four numbers, wherever they begin."""

    align = 1

    @property
    def memory(self) -> MemType:
        return MemType(I32, self.shape)


def in_words(side: Operand, kind: DType) -> Words | None:
    """The operand as words of four numbers of type `kind`; None where its memory is none."""
    (k,) = side.dims[CONTRACT] if len(side.dims[CONTRACT]) == 1 else (None,)
    if side.contiguous() != CONTRACT or kind != side.value.dtype or not isinstance(k, int) or k % 4:
        return None
    dims = (side.dims[BATCH], side.dims[FREE], (k // 4,))
    return Words(side.value, False, (*side.shape[:-1], k // 4), dims, side.axes)


class _IntegerMatmul(Matmul):
    """The product in words: its k counts these."""

    def __init__(self, dot: Dot, target: Any, kinds: tuple[DType, DType]) -> None:
        self.numbers, self.parts = dot.k, 32 // kinds[0].bits
        words = replace(dot, k=ceildiv(dot.k, self.parts))
        alone = dot.lhs.value is not dot.rhs.value
        if alone and (lhs := in_words(dot.lhs, kinds[0])) is not None:
            words = replace(words, lhs=lhs)
        schedule = choose(words, target, packed=True)
        super().__init__(words, target, replace(schedule, lhs="in place" if words.lhs is not dot.lhs else "packed"))
        self.packed = kinds

    def stored(self, which: str) -> DType:
        """Words."""
        return I32

    def pack(self, which: str, target: Ref) -> Step:
        """The step that packs an operand whole: panels [batch and panel, word, width], a word the numbers of some k."""
        side, size, panels, width = self.side(which)
        assert self.packed is not None
        kind = self.packed[which == "rhs"]
        used = prologue_reads(self.dot, side)
        out = self.packed_types[which]
        small = MemType(kind, (*out.shape[:-1], width * self.parts))
        full = floordiv(size, width)

        def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            code = OperandCode(side, views(b, self.dot, dict(zip(used, ins)))[0], kind)
            pack = _Words(code, b.emit("reinterpret", outs[0], type=small)[0], width, self.parts, self.numbers)

            def panel(ib: Builder, at: tuple[Value, ...]) -> None:
                t, p = at
                row, first = ib.add(ib.mul(t, ib.index(panels)), p), ib.mul(p, ib.index(width))

                def edge(jb: Builder) -> None:
                    pack.edge(jb, row, t, first, jb.sub(jb.index(size), first))

                if full == panels:
                    pack.panel(ib, row, t, first)
                elif full == 0:
                    edge(ib)
                else:
                    if_(ib, ib.lt(p, ib.index(full)), lambda jb: pack.panel(jb, row, t, first), edge)

            shape = (self.dot.batch, panels)
            if is_small(product((*shape, self.numbers, width)), 32768):
                nest(b, shape, panel)
            else:
                grain = grain_of(self.numbers * width)
                parallel(b, product(shape), lambda ib, x: panel(ib, unravel(ib, x, shape)), grain=grain)

        made = kernel(
            f"{self.dot.group.name}_pack_{which}",
            [self.inputs[i] for i in used],
            [out],
            body,
            names=[self.dot.group.args[i].name for i in used],
            schedule=self.schedule,
            loc=self.dot.group.loc,
        )
        fold = functools.partial(pack_words, side, width, kind.numpy)
        return Step(made, (*[("input", i) for i in used], target), fold=fold)


class _Words:
    """Copies an operand into the panels `mem[row, word, column and part]`."""

    def __init__(self, code: OperandCode, mem: Value, width: int, parts: int, numbers: Any) -> None:
        self.code, self.mem, self.width, self.parts, self.numbers = code, mem, width, parts, numbers
        self.run = code.operand.contiguous()
        self.whole = floordiv(numbers, parts)
        self.left = numbers % parts if isinstance(numbers, int) else None  # numbers of the last word; None: not known

    def _place(self, b: Builder, column: Value, part: int = 0) -> Value:
        return plus(b, b.mul(column, b.index(self.parts)), part)

    def panel(self, b: Builder, row: Value, t: Value, first: Value) -> None:
        """A panel all of whose columns exist."""
        if self.run == FREE:
            for_(b, 0, self.whole, lambda ib, k: self._across(ib, row, t, first, k), name="word", vectorize=False)
            self._last(b, row, t, first, self.width)
        else:
            self._columns(b, row, t, first, self.width)

    def edge(self, b: Builder, row: Value, t: Value, first: Value, count: Value) -> None:
        """A panel of `count` columns; zeros beyond."""
        self._columns(b, row, t, first, count)
        zero = b.const(0, dtype=self.code.dtype)

        def nothing(ib: Builder, k: Value, c: Value) -> None:
            for j in range(self.parts):
                ib.store(self.mem, zero, row, k, self._place(ib, c, j))

        def line(ib: Builder, k: Value) -> None:
            for_(ib, count, self.width, lambda jb, c: nothing(jb, k, c), vectorize=False)

        for_(b, 0, ceildiv(self.numbers, self.parts), line, name="word", vectorize=False)

    def _columns(self, b: Builder, row: Value, t: Value, first: Value, count: Any) -> None:
        """Column by column, along k."""

        def column(ib: Builder, c: Value) -> None:
            r = ib.add(first, c)

            def word(jb: Builder, k: Value) -> None:
                at = jb.mul(k, jb.index(self.parts))
                if self.run == CONTRACT:
                    jb.store(self.mem, self.code.vector(jb, t, r, at, self.parts), row, k, self._place(jb, c))
                    return
                for j in range(self.parts):
                    jb.store(self.mem, self.code.at(jb, t, r, plus(jb, at, j)), row, k, self._place(jb, c, j))

            for_(ib, 0, self.whole, word, name="word", vectorize=False)

        for_(b, 0, count, column, name="column", vectorize=False)
        self._last(b, row, t, first, count)

    def _last(self, b: Builder, row: Value, t: Value, first: Value, count: Any) -> None:
        """The word in which k ends, if there is one."""
        if self.left == 0:
            return

        def word(ib: Builder, c: Value) -> None:
            k, r = ib.index(self.whole), ib.add(first, c)
            for j in range(self.parts):
                at = plus(ib, ib.mul(k, ib.index(self.parts)), j)

                def there(jb: Builder, at: Value = at) -> Value:
                    return self.code.at(jb, t, r, at)

                def beyond(jb: Builder) -> Value:
                    return jb.const(0, dtype=self.code.dtype)

                if self.left is not None:
                    x = there(ib) if j < self.left else beyond(ib)
                else:
                    (x,) = if_(ib, ib.lt(at, ib.index(self.numbers)), there, beyond)
                ib.store(self.mem, x, row, k, self._place(ib, c, j))

        def column(ib: Builder) -> None:
            for_(ib, 0, count, word, name="column", vectorize=False)

        if self.left is not None:
            column(b)
        else:
            if_(b, b.lt(b.mul(b.index(self.whole), b.index(self.parts)), b.index(self.numbers)), column)

    def _across(self, b: Builder, row: Value, t: Value, first: Value, k: Value) -> None:
        """One word of every column: numbers that are neighbours along the free index, of some k, take turns."""
        at = b.mul(k, b.index(self.parts))
        for c, n in pieces(self.width, LINE):
            r = plus(b, first, c)
            if n == 1:
                for j in range(self.parts):
                    b.store(self.mem, self.code.at(b, t, r, plus(b, at, j)), row, k, b.index(c * self.parts + j))
                continue
            lines = [self.code.vector(b, t, r, plus(b, at, j), n) for j in range(self.parts)]
            b.store(self.mem, in_turns(b, lines), row, k, b.index(c * self.parts))


def in_turns(b: Builder, lines: Sequence[Value]) -> Value:
    """The first lanes of 2 or 4 vectors, then the second lanes, and so on."""
    n = getattr(lines[0].type, "lanes", 1)
    if len(lines) == 2:
        mask = [i + n * j for i in range(n) for j in (0, 1)]
        return b.emit("shuffle", *lines, mask=tuple(mask))[0]
    x, y = in_turns(b, lines[:2]), in_turns(b, lines[2:])
    mask = [2 * i + j for i in range(n) for j in (0, 1, 2 * n, 2 * n + 1)]
    return b.emit("shuffle", x, y, mask=tuple(mask))[0]


def pack_words(side: Operand, width: int, dtype: Any, a: Array) -> Array:
    """What packing an operand whole gives, for a constant: i32[batch and panel, word, width]."""
    a = np.asarray(a).reshape(tuple(int(d) for d in side.shape))
    order = [side.axes.index((c, p)) for c in (BATCH, CONTRACT, FREE) for p in range(len(side.dims[c]))]
    batch, free, depth = (int(product(d)) for d in side.dims)
    parts = 4 // np.dtype(dtype).itemsize
    words, panels = -(-depth // parts), -(-free // width)
    padded = np.zeros((batch, words * parts, panels * width), dtype)
    padded[:, :depth, :free] = a.transpose(order).reshape(batch, depth, free)
    turned = padded.reshape(batch, words, parts, panels, width).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(turned).view(np.int32).reshape(-1, words, width)


__all__ = ["factors", "matmul_integer", "pack_words"]
