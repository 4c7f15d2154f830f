"""From the sums of a convolution's task to its results, with what follows.

Sums lie as [place, output channel], results have their places as neighbours: squares of vectors are transposed, and what
follows is computed on vectors of neighbouring places of one channel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim
from fluxir.schedule.contraction import PostCode
from fluxir.schedule.conv_patch import Place
from fluxir.schedule.conv_space import Conv
from fluxir.schedule.loops import for_, if_, unravel
from fluxir.schedule.matmul_pack import lanes_of, pieces, transposed


class Finish:
    """From the sums [place, channel] of a tile of channels to the results, with what follows."""

    def __init__(
        self,
        conv: Conv,
        post: PostCode,
        sums: Value,
        block: tuple[int, int, int],
        width: int,
        lanes: int,
        space: Sequence[Dim],
        kept: Sequence[int],
        beyond: int = 0,
    ) -> None:
        """`beyond`: rows of the last block that are none of the image's."""
        self.conv, self.post, self.sums, self.block = conv, post, sums, block
        self.width, self.lanes, self.kept, self.beyond = width, lanes, kept, beyond
        # What follows may see the places of an image as one axis, along which those of a task are neighbours.
        self.space = tuple(d for d, kind in zip(space, kept) if kind == 2)

    def emit(self, b: Builder, at: Place, first: Value) -> None:
        """The tile of channels from `first` on."""
        (images, rows, columns), (_, outer, line) = self.block, self.conv.axes
        outputs, each = self.conv.outputs, rows * columns
        row = b.add(b.mul(at.depth, b.index(outer.out)), at.row)
        start = b.add(b.mul(row, b.index(line.out)), at.column)
        there, top = (b.index(n) for n in (each, each - self.lanes))
        if self.beyond:
            there = b.mul(b.minimum(b.index(rows), b.sub(b.index(outer.out), at.row)), b.index(columns))
            top = b.sub(there, b.index(self.lanes))

        def image(ib: Builder, i: Value) -> None:
            n, base = ib.add(at.image, i), ib.mul(i, ib.index(each))

            def vector(jb: Builder, v: int) -> None:
                def square(kb: Builder, p: Value, count: int = self.lanes) -> None:
                    self.square(kb, at.group, n, first, v, kb.add(base, p), kb.add(start, p), count)

                if each < self.lanes:
                    square(jb, jb.index(0), each)
                    return
                for_(jb, 0, there, lambda kb, p: square(kb, kb.minimum(p, top)), step=self.lanes, vectorize=False)

            for v in range(self.width // self.lanes):
                if outputs % self.width == 0 or outputs % self.lanes:
                    vector(ib, v)
                else:
                    exists = ib.lt(ib.add(first, ib.index(v * self.lanes)), ib.index(outputs))
                    if_(ib, exists, functools.partial(vector, v=v))

        count: Dim | Value = 1
        if images > 1:
            count = b.minimum(b.index(images), b.sub(b.index(self.conv.batch), at.image))
        for_(b, 0, count, image, vectorize=False)

    def square(
        self, b: Builder, g: Value, n: Value, first: Value, v: int, sums: Value, place: Value, count: int
    ) -> None:
        """`count` places of image n from `place` on, whose sums begin at `sums`, for vector v of the tile's channels."""
        conv = self.conv

        def channel(ib: Builder, o: Value, x: Value) -> None:
            c = ib.add(ib.mul(g, ib.index(conv.outputs)), o)
            for i, lanes in pieces(count, self.lanes if len(self.space) == 1 else 1):
                part = x if lanes == self.lanes else lanes_of(ib, x, i, lanes)
                q = ib.add(place, ib.index(i)) if i else place
                where = ((n,), (c,), unravel(ib, q, self.space))
                index = [at for kind in range(3) if kind in self.kept for at in where[kind]]
                self.post.store(ib, part, index, q, lanes)

        places = [b.add(sums, b.index(j)) for j in range(self.lanes)]
        rows = [b.emit("load", self.sums, p, b.index(v * self.lanes), lanes=self.lanes)[0] for p in places]
        for r, x in enumerate(transposed(b, rows)):
            o = b.add(first, b.index(v * self.lanes + r))
            if conv.outputs % self.lanes == 0:
                channel(b, o, x)
            else:
                if_(b, b.lt(o, b.index(conv.outputs)), functools.partial(channel, o=o, x=x))


__all__ = ["Finish"]
