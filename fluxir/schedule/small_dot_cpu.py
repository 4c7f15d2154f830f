"""The small_dot template for CPUs: products of a few hundred to a few thousand multiplications, unrolled over their vectors.

Such a product is no use to blocks and panels: it fits in the first cache, its sizes are known, and it often stands in a
loop (a layer of a neural ODE, a filter's covariance). What matters is along which index the vectors run, since each
operand lies along one of its indices only:

- "columns": along n; a vector of `rhs` times one element of `lhs`;
- "rows": along m; the same with the operands' roles exchanged; results are stored one by one;
- "dots": along k; both operands as vectors, and the lanes of a result are added up at the end.

The cheapest by a count of instructions is taken. An operand that does not lie as it is needed is copied before, which the
host does once where a loop does not change it. The order of additions depends on sizes and target alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.types import MemType
from fluxir.schedule.contraction import (
    BATCH,
    CONTRACT,
    FREE,
    Dot,
    Operand,
    OperandCode,
    PostCode,
    analyse_dot,
    prologue_reads,
    types_of,
    views,
)
from fluxir.schedule.cost import element_cost
from fluxir.schedule.group import Array, Group
from fluxir.schedule.loops import for_, kernel, memory, nest
from fluxir.schedule.matmul_pack import pieces
from fluxir.schedule.space import inplace_pairs
from fluxir.schedule.templates import Kernels, Ref, Schedule, Step, template

WORK = 8192  # multiplications up to which a product is small
UNROLLED = 4  # rounds of a loop that are written out
ALONG = {"columns": FREE, "rows": FREE, "dots": CONTRACT}


@dataclass(frozen=True)
class SmallDotSchedule(Schedule):
    """`along`: the index that vectors run along, see above. `tile`: results that are computed together, on each side.
    `copied`: the operands that are copied before."""

    along: str
    tile: str
    lanes: int
    copied: str | None = None


@template("small_dot", target="cpu", anchors=("dot",), priority=25)
def small_dot(group: Group, target: Any) -> Kernels | None:
    """One dot of small known sizes with pointwise operations after it."""
    dot = analyse_dot(group)
    if dot is None or len(dot.post_dims[2]) > 1 or not dot.dtype.is_float or target.lanes(dot.dtype.bits) < 4:
        return None
    sizes = dot.batch, dot.m, dot.n, dot.k
    if not all(isinstance(d, int) for d in sizes) or 0 in sizes or 1 in (dot.m, dot.n) or _product(sizes) > WORK:
        return None
    return min((_Small(dot, target, along) for along in ALONG), key=lambda s: s.cost).kernels()


def _product(sizes: Iterable[Any]) -> int:
    return int(np.prod([int(d) for d in sizes]))


class _Small:
    """The kernels of one product with vectors along one of its indices. Sides are 0 (`lhs`, m) and 1 (`rhs`, n); the side
    `wide` is the one read as vectors ("dots": both are)."""

    def __init__(self, dot: Dot, target: Any, along: str) -> None:
        self.dot, self.along, self.lanes = dot, along, target.lanes(dot.dtype.bits)
        self.fma = target.has("fma")
        self.sizes = int(dot.m), int(dot.n)
        self.batch, self.k = int(dot.batch), int(dot.k)
        self.sides = dot.lhs, dot.rhs
        self.wide = 0 if along == "rows" else 1
        self.copied = [i for i in (0, 1) if not self.fits(i)]
        self.run = self.k if along == "dots" else self.sizes[self.wide]
        self.parts = pieces(self.run, self.lanes)
        self.tile = self.choose_tile(target.vector_registers)

    def fits(self, side: int) -> bool:
        """Whether an operand can be read where it is: along the vectors, or one element at a time."""
        vectors = self.along == "dots" or side == self.wide
        return not vectors or self.sides[side].contiguous() == ALONG[self.along]

    def choose_tile(self, registers: int) -> tuple[int, int]:
        """Results computed together as (m, n) for "dots", else as (narrow elements, vectors of the wide side)."""
        if self.along == "dots":
            m, n = self.sizes
            tiles = [
                (r, c) for r in range(1, min(m, 6) + 1) for c in range(1, min(n, 6) + 1) if r * c + r + 1 < registers
            ]
            return min(tiles, key=lambda t: (-(-m // t[0]) * -(-n // t[1]) * sum(t), -t[1]))
        vectors = len(self.parts)
        across = vectors if vectors <= 8 else -(-vectors // -(-vectors // 6))
        narrow = self.sizes[1 - self.wide]
        return max(1, min(narrow, (registers - 2) // across, 6)), across

    @property
    def cost(self) -> float:
        """Instructions, roughly."""
        m, n = self.sizes
        post = element_cost(self.dot.post)
        vectors = len(self.parts)
        if self.along == "dots":
            r, c = self.tile
            loads = -(-m // r) * -(-n // c) * (r + c) * vectors
            total = m * n * (vectors + 7 + post) + loads
        else:
            narrow = self.sizes[1 - self.wide]
            total = self.k * vectors * (narrow - (-narrow // self.tile[0])) + self.k * narrow
            total += narrow * vectors * post if self.along == "columns" else m * n * (1 + post)
        copies = sum(self.sizes[i] * self.k for i in self.copied)
        return self.batch * (total + copies)

    # ---- kernels
    def kernels(self) -> Kernels:
        dot = self.dot
        inputs, outputs = types_of(dot)
        scratch = [MemType(dot.dtype, self.order(i)) for i in self.copied]
        steps = [self.copy(i, scratch[s], ("scratch", s)) for s, i in enumerate(self.copied)]
        read = {v for op in dot.post.ops for v in op.operands} | set(dot.post.outs)
        used = {i for i, a in enumerate(dot.post.args[:-1]) if a in read}
        for i in (0, 1):
            if i not in self.copied:
                used |= set(prologue_reads(dot, self.sides[i]))
        order = sorted(used)
        types = [*[inputs[i] for i in order], *scratch]
        made = kernel(
            dot.group.name,
            types,
            outputs,
            lambda b, ins, outs: self.body(b, order, ins, outs),
            names=[*[dot.group.args[i].name for i in order], *["lhs" if i == 0 else "rhs" for i in self.copied]],
            schedule=SmallDotSchedule(self.along, "x".join(map(str, self.tile)), self.lanes, self.about()),
            loc=dot.group.loc,
            given=[*types, *[memory(v.type) for v in dot.group.outs]],
        )
        refs: list[Ref] = [("input", i) for i in order]
        refs += [("scratch", s) for s in range(len(scratch))]
        first = len(refs)
        refs += [("output", j) for j in range(len(outputs))]
        operands = {i for side in self.sides for i in prologue_reads(dot, side)}
        pairs = inplace_pairs(dot.post, dot.post.outs, dot.post_shape())
        inplace = [(first + j, order.index(i)) for j, i in pairs if i in used and i not in operands]
        return Kernels((*steps, Step(made, tuple(refs), len(outputs), tuple(inplace))), tuple(scratch))

    def about(self) -> str | None:
        return "+".join(("lhs", "rhs")[i] for i in self.copied) or None

    def order(self, side: int) -> tuple[int, int, int]:
        """The shape of a copied operand: batch, then the index that vectors run along last."""
        free = self.sizes[side]
        return (self.batch, free, self.k) if self.along == "dots" else (self.batch, self.k, free)

    def copy(self, side: int, t: MemType, target: Ref) -> Step:
        """A kernel that copies an operand so that vectors of it can be read."""
        operand, dot = self.sides[side], self.dot
        used = prologue_reads(dot, operand)
        swap = self.along != "dots"

        def body(b: Builder, ins: Sequence[Value], outs: Sequence[Value]) -> None:
            code = OperandCode(operand, views(b, dot, dict(zip(used, ins)))[0], dot.dtype)

            def one(ib: Builder, at: tuple[Value, ...]) -> None:
                batch, *rest = at
                k, r = rest if swap else rest[::-1]
                ib.store(outs[0], code.at(ib, batch, r, k), *at)

            nest(b, t.shape, one)

        name = f"{dot.group.name}_copy_{('lhs', 'rhs')[side]}"
        names = [dot.group.args[i].name for i in used]
        made = kernel(name, [types_of(dot)[0][i] for i in used], [t], body, names=names, loc=dot.group.loc)
        fold = None if operand.computed else functools.partial(_copied, operand, swap, dot.dtype.numpy)
        return Step(made, (*[("input", i) for i in used], target), fold=fold)

    # ---- code
    def body(self, b: Builder, used: Sequence[int], ins: Sequence[Value], outs: Sequence[Value]) -> None:
        reads, after = views(b, self.dot, dict(zip(used, ins)))
        copies = dict(zip(self.copied, ins[len(used) :]))
        post = PostCode(self.dot.post, after, outs)
        code = [_Reads(self.sides[i], reads, self.dot, copies.get(i), self.along != "dots") for i in (0, 1)]
        emit = self.dots if self.along == "dots" else self.outer
        for_each(b, self.batch, 1, lambda ib, t, _: emit(ib, t, code, post))

    def outer(self, b: Builder, t: Value, code: Sequence[_Reads], post: PostCode) -> None:
        """Vectors of the wide side times elements of the other."""
        narrow, wide = code[1 - self.wide], code[self.wide]
        height, across = self.tile

        def block(ib: Builder, first: Value, count: int) -> None:
            at = [ib.add(first, ib.index(i)) for i in range(count)]
            for c in range(0, len(self.parts), across):
                parts = self.parts[c : c + across]

                def step(kb: Builder, k: Value, *acc: Value, parts: Sequence[tuple[int, int]] = parts) -> list[Value]:
                    xs = [wide.vector(kb, t, kb.index(p), k, n) for p, n in parts]
                    out = []
                    for i, r in enumerate(at):
                        y = narrow.at(kb, t, r, k)
                        for j, x in enumerate(xs):
                            out.append(self.multiply(kb, x, self.spread(kb, y, x), acc[i * len(xs) + j]))
                    return out

                acc = rounds(ib, self.k, step, [self.zero(ib, n) for _ in at for _, n in parts])
                for i, r in enumerate(at):
                    for j, (p, n) in enumerate(parts):
                        self.store(ib, t, r, p, n, acc[i * len(parts) + j], post)

        for_each(b, self.sizes[1 - self.wide], height, block)

    def store(self, b: Builder, t: Value, r: Value, first: int, count: int, x: Value, post: PostCode) -> None:
        """A vector of results from index `first` of the wide side on, at r of the other."""
        if self.along == "columns":
            n = b.index(first)
            post.store(b, x, self.dot.post_index(b, t, r, n), n, count)
            return
        for lane in range(count):
            e = b.emit("extract", x, lane=lane)[0] if count > 1 else x
            post.store(b, e, self.dot.post_index(b, t, b.index(first + lane), r), r)

    def dots(self, b: Builder, t: Value, code: Sequence[_Reads], post: PostCode) -> None:
        """Sums of vectors along k."""
        lhs, rhs = code
        height, width = self.tile
        whole = [p for p, n in self.parts if n == self.lanes]
        rest = [(p, n) for p, n in self.parts if n < self.lanes]

        def block(ib: Builder, first: Value, rows: int) -> None:
            def strip(jb: Builder, start: Value, cols: int) -> None:
                ms = [jb.add(first, jb.index(i)) for i in range(rows)]
                ns = [jb.add(start, jb.index(i)) for i in range(cols)]

                def step(kb: Builder, k: Value, *acc: Value, count: int = self.lanes) -> list[Value]:
                    ys = [self.widened(kb, rhs.vector(kb, t, n, k, count)) for n in ns]
                    out = []
                    for i, m in enumerate(ms):
                        x = self.widened(kb, lhs.vector(kb, t, m, k, count))
                        out += [self.multiply(kb, x, y, acc[i * cols + j]) for j, y in enumerate(ys)]
                    return out

                acc = rounds(jb, len(whole), step, [self.zero(jb, self.lanes)] * (rows * cols), self.lanes)
                for p, n in rest:
                    acc = step(jb, jb.index(p), *acc, count=n)
                for i, m in enumerate(ms):
                    for j, n in enumerate(ns):
                        total = jb.emit("reduce_lanes", acc[i * cols + j], op="add")[0]
                        post.store(jb, total, self.dot.post_index(jb, t, m, n), n)

            for_each(ib, self.sizes[1], width, strip)

        for_each(b, self.sizes[0], height, block)

    def zero(self, b: Builder, lanes: int) -> Value:
        return self.spread(b, b.const(0, dtype=self.dot.dtype), lanes)

    def spread(self, b: Builder, x: Value, like: Value | int) -> Value:
        """A scalar in all lanes of a vector like `like`."""
        lanes = like if isinstance(like, int) else getattr(like.type, "lanes", 1)
        return b.emit("splat", x, lanes=lanes)[0] if lanes > 1 else x

    def widened(self, b: Builder, x: Value) -> Value:
        """A short vector with zeros up to the full width."""
        lanes = getattr(x.type, "lanes", 1)
        if lanes == self.lanes:
            return x
        if lanes == 1:
            return b.emit("insert", self.zero(b, self.lanes), x, lane=0)[0]
        return b.emit("shuffle", x, self.zero(b, lanes), mask=tuple(min(i, lanes) for i in range(self.lanes)))[0]

    def multiply(self, b: Builder, x: Value, y: Value, acc: Value) -> Value:
        return b.fma(x, y, acc) if self.fma else b.add(b.mul(x, y), acc)  # type: ignore[no-any-return]


class _Reads:
    """Reads one side: where it is, or from its copy."""

    def __init__(self, side: Operand, reads: dict[Value, Value], dot: Dot, copied: Value | None, swap: bool) -> None:
        self.code, self.copied, self.swap = OperandCode(side, reads, dot.dtype), copied, swap

    def place(self, r: Value, k: Value) -> tuple[Value, Value]:
        return (k, r) if self.swap else (r, k)

    def at(self, b: Builder, t: Value, r: Value, k: Value) -> Value:
        if self.copied is None:
            return self.code.at(b, t, r, k)
        return b.emit("load", self.copied, t, *self.place(r, k))[0]

    def vector(self, b: Builder, t: Value, r: Value, k: Value, lanes: int) -> Value:
        if lanes == 1:
            return self.at(b, t, r, k)
        if self.copied is None:
            return self.code.vector(b, t, r, k, lanes)
        return b.emit("load", self.copied, t, *self.place(r, k), lanes=lanes)[0]


def for_each(b: Builder, size: int, step: int, body: Callable[[Builder, Value, int], None]) -> None:
    """`body(builder, first, count)` for pieces of `step` of 0..size; the last may be shorter."""
    whole = size // step
    if whole == 1:
        body(b, b.index(0), step)
    elif whole:
        for_(b, 0, whole * step, lambda ib, i: body(ib, i, step), step=step, vectorize=False)
    if size % step:
        body(b, b.index(whole * step), size % step)


def rounds(
    b: Builder, count: int, step: Callable[..., list[Value]], start: Sequence[Value], by: int = 1
) -> list[Value]:
    """`step(builder, i, *carry)` for i = 0, by, ...: written out if these are few."""
    if count > UNROLLED:
        return list(for_(b, 0, count * by, step, start, step=by, name="k", vectorize=False))
    acc = list(start)
    for i in range(count):
        acc = step(b, b.index(i * by), *acc)
    return acc


def _copied(side: Operand, swap: bool, dtype: Any, a: Array) -> Array:
    """What the copying kernel does, for a constant."""
    a = np.asarray(a).reshape(tuple(int(d) for d in side.shape))
    classes = (BATCH, CONTRACT, FREE) if swap else (BATCH, FREE, CONTRACT)
    axes = [side.axes.index((c, p)) for c in classes for p in range(len(side.dims[c]))]
    return np.ascontiguousarray(a.transpose(axes).reshape([_product(side.dims[c]) for c in classes])).astype(dtype)


__all__ = ["SmallDotSchedule", "small_dot"]
