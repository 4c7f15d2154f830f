"""The innermost loop of a pointwise kernel on vectors: wide ones, then single ones, then single elements.

Owns which groups have such a loop (`vectors_of`) and its code (`VectorLine`). Invariants:

- Elements are the same, bit for bit, wherever a line begins and ends.
- What does not vary along the line is computed before it.
- Results that do not fit into the last cache together with what is read are stored past it, where their addresses
  allow: a line is written as fast as memory takes it, without being read first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, facts, product
from fluxir.ops.maps import CONSTANTS, Map, identity_map, operand_maps
from fluxir.schedule.cost import element_cost
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import Size, for_, if_, index, whole_blocks
from fluxir.schedule.space import index_in
from fluxir.schedule.vectors import Lanes, in_flight
from fluxir.target import CpuTarget

ITERATED = 2  # vectors in flight where a loop runs for each element: more would wait for the longest of more elements
LEAST_STREAMED = 16  # bytes of a vector from which it can be stored past the caches


@dataclass(frozen=True)
class Vectors:
    """`lanes` of one vector, `wide` lanes of several in flight; `stream_from`: bytes of all arrays together from which
    results are stored past the caches."""

    lanes: int
    wide: int
    stream_from: int


def vectors_of(group: Group, space: tuple[Dim, ...], outs: Sequence[Value], target: Any) -> Vectors | None:
    """How the last axis is walked where `outs` of a group are computed over `space`; None where a value is not walked along
    it, it is too short, or the target is another kind of machine."""
    if not space or not isinstance(target, CpuTarget):
        return None
    if not _along_the_last(group, space, outs):
        return None
    last = len(space) - 1
    types = [v.type.dtype for v in (*group.args, *(r for op in group.ops for r in op.results))]
    bits = [32 if d.is_float and d.bits < 32 else d.bits for d in types if not d.is_bool]
    lanes = target.lanes(max(bits, default=8))
    n, work = space[last], element_cost(group)
    if isinstance(n, int) and n < lanes:
        return None
    flight = ITERATED if any(op.name == "iterate" for op in group.ops) else in_flight(work)
    while isinstance(n, int) and flight > 1 and n < 2 * flight * lanes:
        flight //= 2
    return Vectors(lanes, lanes * flight, target.l3_bytes // 4 * 3)


def _along_the_last(group: Group, space: tuple[Dim, ...], outs: Sequence[Value]) -> bool:
    """Whether all memory is read along its last axis, or not at all, where the last axis of `space` is walked: all ops but
    slices move whole axes, and a slice without strides begins elsewhere on the same ones."""
    last = len(space) - 1
    maps: dict[Value, set[Map]] = {v: {identity_map(space)} for v in outs}
    for op in reversed(group.ops):
        for m in {m for r in op.results for m in maps.get(r, ())}:
            if op.name in CONSTANTS:
                continue
            sliced = op.name == "slice" and all(s == 1 for s in op.attrs["stride"] or ())
            read = [m] if sliced else operand_maps(op, m, space, ())
            if read is None:
                return False
            for v, vm in zip(op.operands, read, strict=True):
                maps.setdefault(v, set()).add(vm)
    return not any(last in m[:-1] for v in group.args for m in maps.get(v, ()))


class VectorLine:
    """Emits lines of a group: elements along the last axis at given indices of the others. `moved[k]` says where element
    `index` of result k lies in its memory, where that is elsewhere."""

    def __init__(
        self,
        b: Builder,
        group: Group,
        space: tuple[Dim, ...],
        vectors: Vectors,
        reads: dict[Value, Value],
        results: Sequence[Value],
        outs: Sequence[Value],
        moved: Mapping[int, Callable[[Builder, tuple[Value, ...]], tuple[Value, ...]]] | None = None,
    ) -> None:
        self.space, self.vectors, self.reads, self.moved = space, vectors, reads, moved or {}
        self.outs, self.results = outs, results
        self.streamed = [m for m in results if m.type.dtype.itemsize * vectors.lanes >= LEAST_STREAMED]
        nbytes: Dim = sum((product(shape_of(v)) * v.type.dtype.itemsize for v in (*group.args, *outs)), start=0)
        small = bool(moved) or (isinstance(nbytes, int) and nbytes < vectors.stream_from)
        # Lines that are short or many cannot afford to look for their first whole vector: they all begin with one, or none.
        self.whole_lines = len(space) > 1 and facts().divides(vectors.lanes, space[-1])
        self.phase: Value | None = None
        if not small and self.streamed:
            self.phase, self.streams = self._phase(b, nbytes)

    def _phase(self, b: Builder, nbytes: Dim) -> tuple[Value, Value]:
        """How many elements behind a multiple of a vector the results begin; whether that is one number and much is written."""
        large = b.ge(b.index(nbytes), b.index(self.vectors.stream_from))
        phases = []
        for m in self.streamed:
            size = m.type.dtype.itemsize
            offset = b.emit("misalignment", m, bytes=size * self.vectors.lanes)[0]
            phases.append(b.div(offset, b.index(size)))
        for p in phases[1:]:
            large = b.logical_and(large, b.eq(p, phases[0]))
        if self.whole_lines:
            large = b.logical_and(large, b.eq(phases[0], b.index(0)))
        return phases[0], large

    def emit(self, b: Builder, at: tuple[Value, ...], lo: Size, hi: Size) -> None:
        """Elements lo..hi at the indices `at` of the axes before the last; where there are none, lo begins a vector."""
        b.index(0)
        outside = Elements(b, self.reads)
        if self.phase is None:
            self._stretch(b, outside, at, lo, hi)
            return
        phase = self.phase

        def streaming(ib: Builder) -> None:
            if self.whole_lines:
                self._stretch(ib, outside.inside(ib), at, lo, hi, streaming=True)
                return
            place = index(ib, lo)
            lanes = ib.index(self.vectors.lanes)
            behind = phase
            if at:
                flat = ib.index(0)
                for i, d in zip((*at, place), self.space):
                    flat = ib.add(ib.mul(flat, ib.index(d)), i)
                behind = ib.fmod(ib.add(flat, phase), lanes)
            start = ib.minimum(ib.add(place, ib.fmod(ib.sub(lanes, behind), lanes)), index(ib, hi))
            inside = outside.inside(ib)
            for_(ib, place, start, lambda jb, i: self._elements(jb, inside, at, i, 1), vectorize=False)
            self._stretch(ib, inside, at, start, hi, streaming=True)

        if_(b, self.streams, streaming, lambda ib: self._stretch(ib, outside.inside(ib), at, lo, hi))

    def _stretch(
        self, b: Builder, outside: Elements, at: tuple[Value, ...], lo: Size, hi: Size, streaming: bool = False
    ) -> None:
        """Elements lo..hi, the widest vectors first; when `streaming` lo is where a vector begins in all results."""
        for lanes in dict.fromkeys((self.vectors.wide, self.vectors.lanes, 1)):
            first, end = whole_blocks(b, lo, hi, lanes) if lanes > 1 else (lo, hi)
            if first is end or (isinstance(first, int) and first == end):
                continue
            for_(
                b,
                first,
                end,
                lambda ib, i, n=lanes: self._elements(ib, outside, at, i, n, streaming),
                step=lanes,
                vectorize=False,
            )
            lo = end

    def _elements(
        self, b: Builder, outside: Elements, at: tuple[Value, ...], i: Value, lanes: int, streaming: bool = False
    ) -> None:
        """`lanes` elements from index `i` on."""
        where = (*at, i)
        elements = outside.inside(b)
        if lanes == 1:
            values = [elements.at(v, index_in(b, v, where)) for v in self.outs]
        else:
            vec = Lanes(elements, i, lanes, invariants=outside)
            values = [vec.vector(v, index_in(b, v, where)) for v in self.outs]
        for k, (mem, x) in enumerate(zip(self.results, values, strict=True)):
            past = streaming and lanes > 1 and mem in self.streamed
            align = mem.type.dtype.itemsize * self.vectors.lanes if past else 0
            place = self.moved[k](b, where) if k in self.moved else where
            b.store(mem, x, *place, align=align, streaming=past)


__all__ = ["VectorLine", "Vectors", "vectors_of"]
