"""Which accesses to global memory are ordered between blocks.

A granule (the narrowest access of the kernel) remembers the last block that wrote it, the last two that read it and the last two
that changed it atomically; for kernels that synchronise, with the warp that did it and the period of the warp. Two accesses by
different blocks, one of them a write, are a race unless the first was released before the second's last acquire.

A warp's period ends at its fences and at its block's barriers. Warp w of a block releases, by an atomic or a volatile store, what
it had done before its last fence, and what others of its block had done if a barrier of the block stood between that and a
fence of w, or between a fence of theirs and the release; it acquires, by an atomic or a volatile load, everything
released so far, and its block does at the next barrier. All such accesses count as one channel, which may miss a race and
invents none. Any barrier of some threads of a block counts as one of all, for the same reason.

Within a block global memory is not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .races import differing_stores, granules
from .values import Array

if TYPE_CHECKING:
    from .launch import Launch

__all__ = ["BlockOrder", "GlobalRaces", "once"]

_NEVER = np.iinfo(np.int32).max
_WARPS = 5  # bits of a warp's number in its block


def once(block: Array, warp: Array) -> tuple[Array, Array]:
    """The warps of some threads, each once: (blocks, warps)."""
    found = np.unique(block.astype(np.int64) << _WARPS | warp)
    return found >> _WARPS, found & ((1 << _WARPS) - 1)


class BlockOrder:
    """What the warps of a launch have released and acquired. Blocks are numbers in the launch, warps numbers in the block."""

    def __init__(self, blocks: int, warps: int) -> None:
        self.periods = 64 if blocks * warps <= 1 << 16 else 16  # told apart; what comes after so many counts as ordered
        self.period, self.touched = np.ones((blocks, warps), np.int32), np.zeros((blocks, warps), bool)
        self.before = np.zeros((blocks, warps), np.int32)  # the period that the block's last barrier began
        self.fenced = np.zeros(
            (blocks, warps, warps), np.int32
        )  # [b, w, v]: w may release what v did before that period
        self.published = np.zeros((blocks, warps), np.int32)  # what v did before that period is released
        self.released = np.full((blocks, warps, self.periods), _NEVER, np.int32)  # when
        self.released[..., -1] = 0
        self.acquired = np.zeros((blocks, warps), np.int32)
        self.now = 0

    def fence(self, block: Array, warp: Array) -> None:
        """Warps (each once) order what they have done before what they do from now on."""
        self.period[block, warp] = np.minimum(self.period[block, warp] + self.touched[block, warp], self.periods - 1)
        self.touched[block, warp] = False
        fenced = np.maximum(self.fenced[block, warp], self.before[block])
        fenced[np.arange(len(block)), warp] = self.period[block, warp]
        self.fenced[block, warp] = fenced

    def meet(self, blocks: Array) -> None:
        """The threads of blocks (each once) have met."""
        self.period[blocks] = np.minimum(self.period[blocks] + self.touched[blocks], self.periods - 1)
        self.touched[blocks] = False
        self.before[blocks] = self.period[blocks]
        self.fenced[blocks] = self.fenced[blocks].max(axis=1, keepdims=True)
        self.acquired[blocks] = self.acquired[blocks].max(axis=1, keepdims=True)

    def meet_in_cluster(self, blocks: Array) -> None:
        """The threads of whole clusters have met, and see what the others did."""
        self.meet(blocks)
        self.fenced[blocks] = self.period[blocks][:, None, :]
        self.release(blocks, np.zeros_like(blocks))
        self.acquired[blocks] = self.now

    def release(self, block: Array, warp: Array) -> None:
        blocks, of = np.unique(block, return_inverse=True)
        until = np.zeros((len(blocks), self.period.shape[1]), np.int32)
        np.maximum.at(until, of, self.fenced[block, warp])
        fresh = (until > self.published[blocks]).any(axis=1)
        if fresh.any():
            blocks, until = blocks[fresh], until[fresh]
            self.now += 1
            done = self.released[blocks]
            now = (np.arange(self.periods) < until[:, :, None]) & (done > self.now)
            self.released[blocks] = np.where(now, self.now, done)
            self.published[blocks] = np.maximum(self.published[blocks], until)

    def acquire(self, block: Array, warp: Array) -> None:
        self.acquired[block, warp] = self.now

    def stamp(self, block: Array, warp: Array, atomic: bool) -> Array:
        """Warp and period of accesses that happen now. An atomic after a fence is a release: it belongs to what it releases."""
        period = self.period[block, warp]
        if atomic:
            fenced = self.fenced[block, warp, warp]
            period = np.where(fenced > 0, fenced - 1, period)
        self.touched[block, warp] = True
        return (period << _WARPS | warp).astype(np.int32)

    def ordered(self, other: Array, when: Array, block: Array, warp: Array) -> Array:
        """Whether the accesses of blocks `other`, with their stamps, are before what these warps do now."""
        released = self.released[other, when & ((1 << _WARPS) - 1), when >> _WARPS]
        return np.asarray(released <= self.acquired[block, warp])


class GlobalRaces:
    """The order of a launch's accesses to global memory, between blocks."""

    def __init__(self, launch: Launch, bytes_used: int, granule: int, synchronises: bool) -> None:
        self.granule = granule
        n = -(-bytes_used // granule)
        self.writer, self.reader, self.other = (np.zeros(n, np.int32) for _ in range(3))  # block plus 1
        self.adder: Array | None = None  # the last two blocks that changed it atomically, once any did
        self.order: BlockOrder | None = None
        if synchronises:
            self.written, self.read, self.other_read = (np.zeros(n, np.int32) for _ in range(3))
            bx, by, bz = launch.block
            self.order = BlockOrder(launch.block_count, -(-bx * by * bz // 32))

    # ---- accesses
    def load(self, at: Array, width: int, block: Array, warp: Array, report: Any) -> None:
        g = granules(at, width, self.granule)
        self._compare(self.writer, "written", g, block, warp, ("w", "r"), report)
        if self.adder is not None:
            self._compare(self.adder, "added", g, block, warp, ("w", "r"), report)
            self._compare(self.other_adder, "other_added", g, block, warp, ("w", "r"), report)
        self._remember(("reader", "read", "other", "other_read"), g, block, warp, False)

    def store(
        self, at: Array, width: int, block: Array, warp: Array, report: Any, atomic: bool = False, swap: bool = False
    ) -> None:
        """`swap`: an atomic that compares. A loop around it begins with a plain read, which may be late and does no harm."""
        g = granules(at, width, self.granule)
        self._compare(self.writer, "written", g, block, warp, ("w", "w"), report)
        if not swap:
            self._compare(self.reader, "read", g, block, warp, ("r", "w"), report)
            self._compare(self.other, "other_read", g, block, warp, ("r", "w"), report)
        if atomic:  # no race with other atomics
            if not swap:
                if self.adder is None:
                    self.adder, self.added, self.other_adder, self.other_added = np.zeros(
                        (4, len(self.writer)), np.int32
                    )
                self._remember(("adder", "added", "other_adder", "other_added"), g, block, warp, True)
            return
        if self.adder is not None:
            self._compare(self.adder, "added", g, block, warp, ("w", "w"), report)
            self._compare(self.other_adder, "other_added", g, block, warp, ("w", "w"), report)
        self.writer[g] = np.broadcast_to((block.astype(np.int32) + np.int32(1))[:, None], g.shape)
        if self.order is not None:
            self.written[g] = np.broadcast_to(self.order.stamp(block, warp, False)[:, None], g.shape)

    def _compare(
        self, who: Array, when: str, g: Array, block: Array, warp: Array, kind: tuple[str, str], report: Any
    ) -> None:
        """Report the granules that another block touched, as `who` and `when` have it, without an order between the two."""
        found = who[g]
        bad = (found != (block.astype(np.int32) + np.int32(1))[:, None]) & (found != 0)
        if bad.any():
            self._check(
                bad, found, getattr(self, when)[g] if self.order is not None else None, block, warp, kind, report
            )

    def _remember(self, names: tuple[str, str, str, str], g: Array, block: Array, warp: Array, atomic: bool) -> None:
        """Blocks touch granules: the last one and another, each with its stamp."""
        last, last_when, other, other_when = (getattr(self, n, None) for n in names)
        assert last is not None and other is not None
        me = np.broadcast_to((block.astype(np.int32) + np.int32(1))[:, None], g.shape)
        old = last[g]
        changed = (old != me) & (old != 0)
        if changed.any():
            other[g[changed]] = old[changed]
            if other_when is not None and last_when is not None:
                other_when[g[changed]] = last_when[g[changed]]
        last[g] = me
        again = last[g] != me  # several blocks touch one granule at once
        if again.any():
            other[g[again]] = me[again]
        if other_when is not None and last_when is not None and self.order is not None:
            now = np.broadcast_to(self.order.stamp(block, warp, atomic)[:, None], g.shape)
            last_when[g] = now
            if again.any():
                other_when[g[again]] = now[again]

    def same_instruction(self, at: Array, width: int, block: Array, values: list[Array], report: Any) -> None:
        """Blocks of one wave store to one place in one step: a race unless they store the same."""
        g = granules(at, width, self.granule)
        lost = (self.writer[g] != (block.astype(np.int32) + np.int32(1))[:, None]).any(axis=1)
        if not lost.any():
            return
        order, differ = differing_stores(at, values)
        bad = np.flatnonzero(differ & (block[order][1:] != block[order][:-1]))
        if len(bad):
            report(order[bad + 1], ("w", "w"), int(block[order[bad[0]]]))

    def _check(
        self,
        bad: Array,
        who: Array,
        when: Array | None,
        block: Array,
        warp: Array,
        kind: tuple[str, str],
        report: Any,
    ) -> None:
        rows, columns = np.nonzero(bad)
        other = who[rows, columns] - 1
        if when is not None and self.order is not None:
            ordered = self.order.ordered(other, when[rows, columns], block[rows], warp[rows])
            rows, other = rows[~ordered], other[~ordered]
        if len(rows):
            report(np.unique(rows), kind, int(other[0]))
