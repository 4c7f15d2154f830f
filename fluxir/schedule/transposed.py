"""Tiles of a pointwise kernel that reads some memory across its last axis: squares are transposed in registers.

A tile is `LINE` bytes along the last axis by one vector along the axis in which that memory is contiguous, so that lines
of memory are read and written whole. `Transposed.of` says whether a group can be computed so; the rest of a space that is
no multiple of a tile is left to single elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dims import Dim, facts, product
from fluxir.ops.maps import Map, identity_map
from fluxir.schedule.access import analyse
from fluxir.schedule.element import Elements
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import Size, for_, if_, whole_blocks
from fluxir.schedule.space import index_in
from fluxir.schedule.vectors import Lanes

LINE = 64  # bytes of memory that come and go together


@dataclass(frozen=True, eq=False)
class Transposed:
    """`moves`: the transposes of arguments that are contiguous along loop `across`, and the maps of their results.
    A tile has `lanes` rows of `wide` elements; `stream_from` as in `vector_loops.Vectors`."""

    space: tuple[Dim, ...]
    across: int
    moves: tuple[tuple[Op, Map], ...]
    lanes: int
    wide: int
    stream_from: int

    @staticmethod
    def of(group: Group, space: tuple[Dim, ...], across: int, target: Any) -> Transposed | None:
        """How a group over `space` is computed in tiles, if all that is read across the last axis has 4 or 8 bytes an
        element and is contiguous along `across`."""
        last = len(space) - 1
        access = analyse(group, space, [(v, identity_map(space)) for v in group.outs])
        if access is None:
            return None
        moves: list[tuple[Op, Map]] = []
        for op in group.ops:
            if op.name == "transpose" and op.result in access.maps:
                (read,) = _operand_maps(op, access.maps[op.result])
                if last in read[:-1]:
                    if op.operands[0].owner is not None or read[-1] != across:
                        return None
                    moves.append((op, access.maps[op.result]))
        across_read = sum(last in m[:-1] for maps in access.leaves.values() for m in maps)
        types = [
            v.type.dtype
            for v in (*group.args, *(r for op in group.ops for r in op.results))
            if not v.type.dtype.is_bool
        ]
        widest = max(t.itemsize for t in types) if types else 0
        moved = {op.operands[0].type.dtype.itemsize for op, _ in moves}
        if not moves or across_read != len(moves) or moved - {4, 8} or widest > 8:
            return None
        lanes = target.lanes(8 * widest)
        return Transposed(space, across, tuple(moves), lanes, LINE // widest, target.l3_bytes // 4 * 3)

    def streams(self, b: Builder, results: Sequence[Value], args: Sequence[Value]) -> Value | None:
        """Whether rows are stored past the caches (see vector_loops.py): where all begin at whole vectors and are much."""
        size = results[0].type.dtype.itemsize
        aligned = size * self.lanes >= 16 and all(m.type.dtype.itemsize == size for m in results)
        if not aligned or not facts().divides(self.lanes, self.space[-1]):
            return None
        nbytes: Dim = sum((product(shape_of(v)) * v.type.dtype.itemsize for v in args), start=0)
        nbytes = nbytes + product(self.space) * size * len(results)
        if isinstance(nbytes, int) and nbytes < self.stream_from:
            return None
        yes = b.ge(b.index(nbytes), b.index(self.stream_from))
        for m in results:
            yes = b.logical_and(yes, b.eq(b.emit("misalignment", m, bytes=size * self.lanes)[0], b.index(0)))
        return yes  # type: ignore[no-any-return]

    def emit(
        self,
        b: Builder,
        reads: dict[Value, Value],
        outs: Sequence[Value],
        results: Sequence[Value],
        at: dict[int, Value],
        rows: tuple[Size, Size],
        streams: Value | None,
        element: Callable[[Builder, dict[int, Value]], None],
    ) -> None:
        """All elements whose `across` index is in `rows`, at the indices `at` of the other axes before the last."""
        last = len(self.space) - 1

        def all_tiles(ib: Builder, past: bool) -> None:
            lo, hi = rows
            first, end = whole_blocks(ib, lo, hi, self.lanes)
            _, edge = whole_blocks(ib, 0, self.space[last], self.wide)

            def tile_column(jb: Builder, k: Value) -> None:
                for_(jb, first, end, lambda kb, i: self._tile(kb, reads, outs, results, at, i, k, past), step=self.lanes,
                     vectorize=False)  # fmt: skip

            def single(jb: Builder, i: Value, start: Size) -> None:
                for_(
                    jb,
                    start,
                    self.space[last],
                    lambda kb, k: element(kb, {**at, self.across: i, last: k}),
                    vectorize=False,
                )

            for_(ib, 0, edge, tile_column, step=self.wide, vectorize=False)
            for_(ib, first, end, lambda jb, i: single(jb, i, edge), vectorize=False)
            for_(ib, end, hi, lambda jb, i: single(jb, i, 0), vectorize=False)

        if streams is None:
            all_tiles(b, False)
        else:
            if_(b, streams, lambda ib: all_tiles(ib, True), lambda ib: all_tiles(ib, False))

    def _tile(
        self,
        b: Builder,
        reads: dict[Value, Value],
        outs: Sequence[Value],
        results: Sequence[Value],
        at: dict[int, Value],
        i: Value,
        k: Value,
        past: bool,
    ) -> None:
        last = len(self.space) - 1
        zero = b.index(0)
        rows: dict[Value, list[Value]] = {}
        for op, m in self.moves:
            (read,) = _operand_maps(op, m)
            halves = []
            for part in range(0, self.wide, self.lanes):
                lines = []
                for r in range(self.lanes):
                    here = {**at, self.across: i, last: b.add(k, b.index(part + r)), -1: zero}
                    where = [here[axis] for axis in read]
                    lines.append(b.emit("load", reads[op.operands[0]], *where, lanes=self.lanes)[0])
                halves.append(transposed(b, lines))
            rows[op.result] = [joined(b, parts) for parts in zip(*halves, strict=True)]
        elements = Elements(b, reads)
        for c in range(self.lanes):
            index = {**at, self.across: b.add(i, b.index(c)), last: k}
            place = tuple(index[axis] for axis in range(last + 1))
            vec = Lanes(elements, k, self.wide, {v: found[c] for v, found in rows.items()})
            for mem, x in zip(results, [vec.vector(v, index_in(b, v, place)) for v in outs]):
                align = mem.type.dtype.itemsize * self.lanes if past else 0
                b.store(mem, x, *place, align=align, streaming=past)


def _operand_maps(op: Op, m: Map) -> list[Map]:
    """The map of a transpose's operand."""
    perm = [k % len(m) for k in op.attrs["perm"]]
    back = [0] * len(m)
    for j, k in enumerate(perm):
        back[k] = m[j]
    return [tuple(back)]


def transposed(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """The columns of a square of vectors: at each power of two, blocks off the diagonal change places (Eklundh, 1972)."""
    lines, n = list(rows), len(rows)
    k = n // 2
    while k:
        low = tuple(j if not j & k else n + j - k for j in range(n))
        high = tuple(j + k if not j & k else n + j for j in range(n))
        for i in range(n):
            if not i & k:
                x, y = lines[i], lines[i + k]
                lines[i] = b.emit("shuffle", x, y, mask=low)[0]
                lines[i + k] = b.emit("shuffle", x, y, mask=high)[0]
        k //= 2
    return lines


def joined(b: Builder, parts: Sequence[Value]) -> Value:
    """Vectors one behind the other; a power of two of them."""
    while len(parts) > 1:
        both = range(2 * parts[0].type.lanes)  # type: ignore[union-attr]
        parts = [b.emit("shuffle", x, y, mask=tuple(both))[0] for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


__all__ = ["Transposed", "joined", "transposed"]
