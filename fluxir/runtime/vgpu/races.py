"""Which accesses are ordered: shared memory between the threads of a block, global memory between blocks.

Shared memory. Every warp has a vector clock: what it has seen of every warp of its block. A barrier joins the clocks of those
who meet, an atomic operation or an mbarrier those who touch it, and starts a new period of the warp. A granule (the
narrowest access of the kernel) remembers the last thread that wrote it, two threads that read it and two that changed it
atomically, with the period of each.
Two accesses by different threads, one of them a write, are a race unless one had been seen by the other: threads of one
warp see each other's after `bar.warp.sync` or any barrier. Several lanes that store one value at once are none.

Global memory. The same between blocks, with one period for each fence: block b has seen what block a wrote if a has released
it (an atomic or a volatile store after a fence) before b's last acquire (an atomic or a volatile load). All such accesses count
as one channel, which may miss a race and invents none. Within a block global memory is not looked at.

Source: C. Flanagan, S. Freund, FastTrack: efficient and precise dynamic race detection, 2009.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .ptx import Instruction
from .values import Array

if TYPE_CHECKING:
    from .launch import Launch
    from .wave import Mask, Wave

__all__ = ["GlobalRaces", "SharedRaces"]

_WORDS = {("r", "w"): "write after read", ("w", "r"): "read after write", ("w", "w"): "write after write"}


class SharedRaces:
    """The order of a wave's accesses to shared memory."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        launch = wave.launch
        self.on: bool = (
            launch.check != "off" and launch.shared_stride > 0 and wave.threads * launch.kernel.cluster_size > 1
        )
        if not self.on:
            return
        self.granule = launch.shared_granule
        n = wave.block_count * launch.shared_stride // self.granule
        self.writer, self.reader, self.other = (np.zeros(n, np.int32) for _ in range(3))  # thread in group, plus 1
        self.written, self.read, self.other_read = (np.zeros(n, np.int32) for _ in range(3))  # its warp's clock
        self.adder: Array | None = None  # the last two that changed it atomically, once any did
        # those who see each other's shared memory: a block, or a cluster of blocks
        self.blocks = launch.kernel.cluster_size
        groups, w = wave.block_count // self.blocks, wave.stride // 32 * self.blocks
        self.group, self.thread = wave.block, wave.thread.astype(np.int32)
        if self.blocks > 1:
            self.group = wave.block // self.blocks
            self.thread = self.thread + (wave.block % self.blocks * wave.stride).astype(np.int32)
        self.clock = np.ones((groups, w), np.int32)  # a warp's own
        self.seen = np.zeros((groups, w, w), np.int32)
        self.now = np.ones(groups, np.int32)  # the newest clock of the group
        self.floor = np.zeros(groups, np.int32)  # everybody has seen up to here
        self.named: dict[tuple[int, int], Array] = {}
        self.channels: dict[tuple[int, int], Array] = {}

    # ---- synchronisation
    def group_barrier(self, groups: Array) -> None:
        """All threads of these groups (bool[groups]) have met."""
        if self.on and groups.any():
            self.floor[groups] = self.now[groups]
            self.now[groups] += 1
            self.seen[groups] = self.floor[groups][:, None, None]
            self.clock[groups] = self.now[groups][:, None]

    def block_barrier(self, blocks: Array) -> None:
        """All threads of these blocks (bool[blocks]) have met."""
        if not self.on:
            return
        if self.blocks == 1:
            self.group_barrier(blocks)
            return
        for block in np.flatnonzero(blocks).tolist():
            group, warps = self._of(block)
            self._join(group, list(range(warps.start, warps.stop)), [])

    def _of(self, block: int) -> tuple[int, slice]:
        """(group, its warps) of a block."""
        n = self.wave.stride // 32
        first = block % self.blocks * n
        return block // self.blocks, slice(first, first + n)

    def _join(self, group: int, warps: list[int], early: list[Array]) -> None:
        """Warps of a group have met each other, and what `early` ones had seen."""
        joined = np.maximum.reduce([self._view(group, x) for x in warps] + early)
        self.now[group] += 1
        self.seen[group, warps] = joined
        self.clock[group, warps] = self.now[group]

    def _warps(self, bits: Array) -> Array:
        """(group, warp) of the threads `bits`, once each."""
        found: Array = np.argwhere(bits.reshape(len(self.now), -1, 32).any(axis=2))
        return found

    def _renew(self, group: int, warp: int) -> None:
        self.now[group] += 1
        self.clock[group, warp] = self.now[group]

    def _view(self, group: int, warp: int) -> Array:
        """What a warp has seen, itself included."""
        view: Array = self.seen[group, warp].copy()
        view[warp] = self.clock[group, warp]
        return view

    def warp_sync(self, bits: Array) -> None:
        """The threads `bits` of each warp have met."""
        if self.on:
            met = bits.reshape(len(self.now), -1, 32).any(axis=2)
            some = np.any(met, axis=1)
            self.now[some] += 1
            self.clock = np.where(met, self.now[:, None], self.clock)

    def named_barrier(self, bits: Array, number: int, blocks: Array) -> None:
        """The threads `bits` of the blocks `blocks` (bool) have met at a barrier of some threads."""
        if not self.on:
            return
        for block in np.flatnonzero(blocks).tolist():
            group, own = self._of(block)
            warps = [int(x) for g, x in self._warps(bits) if g == group and own.start <= x < own.stop]
            early = self.named.pop((block, number), None)
            self._join(group, warps, [] if early is None else [early])

    def arrive(self, m: Mask, number: Array) -> None:
        """The threads of `m` have come to barriers of some threads, and went on."""
        if not self.on:
            return
        n = self.wave.stride // 32
        for group, warp in self._warps(m.bits).tolist():
            block = group * self.blocks + warp // n
            key = (block, int(number[block * self.wave.stride + warp % n * 32]))
            view, known = self._view(group, warp), self.named.get(key)
            self.named[key] = view if known is None else np.maximum(known, view)
            self._renew(group, warp)

    def channel(self, bits: Array, key: Array, release: bool, acquire: bool) -> None:
        """Threads `bits` synchronise through the objects `key` (an integer of each thread): mbarriers, atomics."""
        if not self.on:
            return
        lanes = np.flatnonzero(bits)
        keys = np.broadcast_to(key, bits.shape)[lanes]
        rows = np.stack([self.group[lanes], self.thread[lanes] >> 5, keys], axis=1)
        changes = np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1  # lanes of a warp mostly have one key
        pairs = sorted({(g, x, k) for g, x, k in rows[np.concatenate(([0], changes))].tolist()}) if len(rows) else []
        if release:
            for group, warp, k in pairs:
                view = self._view(group, warp)
                known = self.channels.get((group, k))
                self.channels[group, k] = view if known is None else np.maximum(known, view)
        if acquire:
            for group, warp, k in pairs:
                known = self.channels.get((group, k))
                if known is not None:
                    np.maximum(self.seen[group, warp], known, out=self.seen[group, warp])
        for group, warp in sorted({(g, x) for g, x, _ in pairs}):
            self._renew(group, warp)

    # ---- accesses
    def granules(self, at: Array, width: int) -> Array:
        """[lanes, granules] of the accesses of `width` bytes at the offsets `at` in the region."""
        first = at // self.granule
        n = max(1, width // self.granule)
        return first[:, None] + np.arange(n) if n > 1 else first[:, None]

    def load(self, at: Array, width: int, m: Mask, instruction: Instruction, convergent: bool = False) -> None:
        """`at`: offsets of the threads of `m`, in order. `convergent`: all lanes of a warp read together (ldmatrix)."""
        if not self.on:
            return
        g = self.granules(at, width)
        thread = m.pick(self.thread)[:, None] + np.int32(1)
        block = m.pick(self.group)[:, None]
        self._compare(self.writer[g], self.written[g], thread, block, convergent, ("w", "r"), m, instruction, at)
        self._after_atomics(g, thread, block, convergent, ("w", "r"), m, instruction, at)
        self._remember((self.reader, self.read, self.other, self.other_read), g, thread, block)

    def _remember(self, of: tuple[Array, Array, Array, Array], g: Array, thread: Array, block: Array) -> None:
        """Threads touch granules: the last one and, from another warp where there is one, another."""
        last, last_when, other, other_when = of
        mine = self.clock[block, (thread - 1) >> 5]
        who, when = np.broadcast_to(thread, g.shape), np.broadcast_to(mine, g.shape)
        old, old_when = last[g], last_when[g]
        keep = (old != 0) & (old != who) & (((old - 1) >> 5 != (who - 1) >> 5) | (other[g] == 0))
        if keep.any():
            other[g[keep]], other_when[g[keep]] = old[keep], old_when[keep]
        last[g], last_when[g] = who, when
        again = last[g] != who  # several lanes touch one granule: remember two of them
        if again.any():
            other[g[again]], other_when[g[again]] = who[again], when[again]

    def _after_atomics(
        self, g: Array, thread: Array, block: Array, convergent: bool, kind: tuple[str, str], m: Mask,
        instruction: Instruction, at: Array,
    ) -> None:  # fmt: skip
        if self.adder is not None:
            self._compare(self.adder[g], self.added[g], thread, block, convergent, kind, m, instruction, at)
            self._compare(self.other_adder[g], self.other_added[g], thread, block, convergent, kind, m, instruction, at)

    def store(
        self,
        at: Array,
        width: int,
        m: Mask,
        instruction: Instruction,
        values: list[Array] | None = None,
        atomic: bool = False,
    ) -> None:
        if not self.on:
            return
        g = self.granules(at, width)
        thread = m.pick(self.thread)[:, None] + np.int32(1)
        block = m.pick(self.group)[:, None]
        self._compare(self.writer[g], self.written[g], thread, block, False, ("w", "w"), m, instruction, at)
        swap = "cas" in instruction.modifiers  # a loop around it begins with a plain read, which may be late
        if not swap:
            self._compare(self.reader[g], self.read[g], thread, block, False, ("r", "w"), m, instruction, at)
            self._compare(self.other[g], self.other_read[g], thread, block, False, ("r", "w"), m, instruction, at)
        if atomic:  # no race with other atomics
            if not swap:
                if self.adder is None:
                    self.adder, self.added, self.other_adder, self.other_added = np.zeros(
                        (4, len(self.writer)), np.int32
                    )
                self._remember((self.adder, self.added, self.other_adder, self.other_added), g, thread, block)
            return
        self._after_atomics(g, thread, block, False, ("w", "w"), m, instruction, at)
        who = np.broadcast_to(thread, g.shape)
        self.writer[g] = who
        self.written[g] = np.broadcast_to(self.clock[block, (thread - 1) >> 5], g.shape)
        lost = (self.writer[g] != who).any(axis=1)
        if lost.any() and values is not None:
            self._same_instruction(at, values, lost, m, instruction)

    def _same_instruction(self, at: Array, values: list[Array], lost: Array, m: Mask, instruction: Instruction) -> None:
        """Several threads store to one place in one step: a race unless they store the same."""
        order = np.argsort(at, kind="stable")
        same = at[order][1:] == at[order][:-1]
        differ = np.zeros_like(same)
        for v in values:
            x = np.broadcast_to(v, at.shape)[order]
            differ |= x[1:] != x[:-1]
        bad = np.flatnonzero(same & differ)
        if len(bad):
            first, second = order[bad[0]], order[bad[0] + 1]
            lanes = m.index[order[bad + 1]]
            _, other = self.wave.coordinates(int(m.index[first]))
            self.wave.report("shared-race", f"write after write: thread {other} stores another value to the same place at once",
                             instruction, lanes, self._address(int(at[second])))  # fmt: skip

    def _address(self, at: int) -> int:
        return at % self.wave.launch.shared_stride

    def _compare(
        self,
        who: Array,
        when: Array,
        thread: Array,
        block: Array,
        convergent: bool,
        kind: tuple[str, str],
        m: Mask,
        instruction: Instruction,
        at: Array,
    ) -> None:
        maybe = (when > self.floor[block]) & (who != thread) & (who != 0)
        if not maybe.any():
            return
        rows, columns = np.nonzero(maybe)
        other, clock = who[rows, columns] - 1, when[rows, columns]
        b, mine, theirs = block[rows, 0], (thread[rows, 0] - 1) >> 5, other >> 5
        same = mine == theirs
        ordered = np.where(same, convergent | (clock < self.clock[b, mine]), clock <= self.seen[b, mine, theirs])
        if ordered.all():
            return
        bad = np.flatnonzero(~ordered)
        lanes = m.index[rows[bad]]
        _, t = self.wave.coordinates(int(b[bad[0]]) * self.blocks * self.wave.stride + int(other[bad[0]]))
        self.wave.report(
            "shared-race",
            f"{_WORDS[kind]}: thread {t} {'wrote' if kind[0] == 'w' else 'read'} there, and nothing orders the two",
            instruction,
            np.unique(lanes),
            self._address(int(at[rows[bad[0]]])),
        )


class GlobalRaces:
    """The order of a launch's accesses to global memory, between blocks."""

    PERIODS = 64  # fences of a block that are told apart; what comes after so many counts as ordered

    def __init__(self, launch: Launch, bytes_used: int, granule: int, synchronises: bool) -> None:
        self.granule = granule
        n = -(-bytes_used // granule)
        self.writer, self.reader, self.other = (np.zeros(n, np.int32) for _ in range(3))  # block plus 1
        self.adder: Array | None = None  # the last two blocks that changed it atomically, once any did
        self.synchronises = synchronises
        if synchronises:
            blocks = launch.block_count
            self.written, self.read, self.other_read = (np.zeros(n, np.int32) for _ in range(3))
            self.period = np.zeros(blocks, np.int32)
            self.released = np.full((blocks, self.PERIODS), np.iinfo(np.int64).max)  # when
            self.released[:, -1] = 0
            self.acquired = np.zeros(blocks, np.int64)
            self.now = 0

    # ---- synchronisation, of blocks by their number in the launch
    def fence(self, blocks: Array) -> None:
        if self.synchronises:
            self.period[blocks] = np.minimum(self.period[blocks] + 1, self.PERIODS - 1)

    def touch(self, blocks: Array, release: bool, acquire: bool) -> None:
        """An atomic or volatile access: what was written before the last fence is released, what is released acquired."""
        if not self.synchronises:
            return
        self.now += 1
        if release:
            done = self.released[blocks]
            before = (np.arange(self.PERIODS) < self.period[blocks][:, None]) & (done > self.now)
            self.released[blocks] = np.where(before, self.now, done)
        if acquire:
            self.acquired[blocks] = self.now

    # ---- accesses
    def _granules(self, at: Array, width: int) -> Array:
        first = at // self.granule
        n = max(1, width // self.granule)
        return first[:, None] + np.arange(n) if n > 1 else first[:, None]

    def load(self, at: Array, width: int, block: Array, report: Any) -> None:
        g = self._granules(at, width)
        self._compare(self.writer, "written", g, block, ("w", "r"), report)
        if self.adder is not None:
            self._compare(self.adder, "added", g, block, ("w", "r"), report)
            self._compare(self.other_adder, "other_added", g, block, ("w", "r"), report)
        self._remember(("reader", "read", "other", "other_read"), g, block, 0)

    def store(self, at: Array, width: int, block: Array, report: Any, atomic: bool = False, swap: bool = False) -> None:
        """`swap`: an atomic that compares. A loop around it begins with a plain read, which may be late and does no harm."""
        g = self._granules(at, width)
        self._compare(self.writer, "written", g, block, ("w", "w"), report)
        if not swap:
            self._compare(self.reader, "read", g, block, ("r", "w"), report)
            self._compare(self.other, "other_read", g, block, ("r", "w"), report)
        if atomic:  # no race with other atomics
            if not swap:
                if self.adder is None:
                    self.adder, self.added, self.other_adder, self.other_added = np.zeros(
                        (4, len(self.writer)), np.int32
                    )
                # where a fence stands before it, the atomic is a release itself: it belongs to the period that it ends
                self._remember(("adder", "added", "other_adder", "other_added"), g, block, 1)
            return
        if self.adder is not None:
            self._compare(self.adder, "added", g, block, ("w", "w"), report)
            self._compare(self.other_adder, "other_added", g, block, ("w", "w"), report)
        self.writer[g] = np.broadcast_to((block.astype(np.int32) + np.int32(1))[:, None], g.shape)
        if self.synchronises:
            self.written[g] = np.broadcast_to(self.period[block][:, None], g.shape)

    def _compare(self, who: Array, when: str, g: Array, block: Array, kind: tuple[str, str], report: Any) -> None:
        """Report the granules that another block touched, as `who` and `when` have it, without an order between the two."""
        found = who[g]
        bad = (found != (block.astype(np.int32) + np.int32(1))[:, None]) & (found != 0)
        if bad.any():
            self._check(bad, found, getattr(self, when)[g] if self.synchronises else None, block, kind, report)

    def _remember(self, names: tuple[str, str, str, str], g: Array, block: Array, earlier: int) -> None:
        """Blocks touch granules: the last one and another, each with its period, or one of those before it."""
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
        if other_when is not None and last_when is not None and self.synchronises:
            now = np.broadcast_to(np.maximum(self.period[block] - earlier, 0)[:, None], g.shape)
            last_when[g] = now
            if again.any():
                other_when[g[again]] = now[again]

    def same_instruction(self, at: Array, width: int, block: Array, values: list[Array], report: Any) -> None:
        """Blocks of one wave store to one place in one step: a race unless they store the same."""
        g = self._granules(at, width)
        lost = (self.writer[g] != (block.astype(np.int32) + np.int32(1))[:, None]).any(axis=1)
        if not lost.any():
            return
        order = np.argsort(at, kind="stable")
        same = (at[order][1:] == at[order][:-1]) & (block[order][1:] != block[order][:-1])
        differ = np.zeros_like(same)
        for v in values:
            x = np.broadcast_to(v, at.shape)[order]
            differ |= x[1:] != x[:-1]
        bad = np.flatnonzero(same & differ)
        if len(bad):
            report(order[bad + 1], ("w", "w"), int(block[order[bad[0]]]))

    def _check(
        self, bad: Array, who: Array, when: Array | None, block: Array, kind: tuple[str, str], report: Any
    ) -> None:
        rows, columns = np.nonzero(bad)
        other = who[rows, columns] - 1
        if when is not None:
            ordered = self.released[other, when[rows, columns]] <= self.acquired[block[rows]]
            rows, other = rows[~ordered], other[~ordered]
        if len(rows):
            report(np.unique(rows), kind, int(other[0]))


def words(kind: tuple[str, str]) -> str:
    return _WORDS[kind]
