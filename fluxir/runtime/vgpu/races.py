"""Which accesses to shared memory are ordered. (Global memory: `global_races`.)

Every warp has a vector clock: what it has seen of every warp of its block. A barrier joins the clocks of those
who meet, an atomic operation or an mbarrier those who touch it, and starts a new period of the warp. A granule (the
narrowest access of the kernel) remembers the last thread that wrote it, two threads that read it and two that changed it
atomically, with the period of each.
Two accesses by different threads, one of them a write, are a race unless one had been seen by the other: threads of one
warp see each other's after `bar.warp.sync` or any barrier. Several lanes that store one value at once are none.

Source: C. Flanagan, S. Freund, FastTrack: efficient and precise dynamic race detection, 2009.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .ptx import Instruction
from .values import Array

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = ["SharedRaces", "words"]

_WORDS = {("r", "w"): "write after read", ("w", "r"): "read after write", ("w", "w"): "write after write"}


def granules(at: Array, width: int, granule: int) -> Array:
    """[lanes, granules] of accesses of `width` bytes at the offsets `at`."""
    first = at // granule
    n = max(1, width // granule)
    return first[:, None] + np.arange(n) if n > 1 else first[:, None]


def differing_stores(at: Array, values: list[Array]) -> tuple[Array, Array]:
    """Stores of one instruction, in the order of their places: (that order, whether each but the first goes to the place of the
    one before it with another value)."""
    order = np.argsort(at, kind="stable")
    differ = np.zeros(max(len(at) - 1, 0), bool)
    for v in values:
        x = np.broadcast_to(v, at.shape)[order]
        differ |= x[1:] != x[:-1]
    return order, (at[order][1:] == at[order][:-1]) & differ


class SharedRaces:
    """The order of a wave's accesses to shared memory."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        launch = wave.launch
        self.on: bool = (
            launch.check != "off" and launch.shared_stride > 0 and wave.threads * launch.kernel.cluster_size > 1
        )
        of_blocks = launch.global_races if launch.check != "off" else None
        self.between = (
            of_blocks.order if of_blocks is not None else None
        )  # what orders threads of a block orders global memory too
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
        self.met = np.zeros((groups, w), np.int32)  # the period that began when all lanes of the warp last met
        self.some_met: Array | None = (
            None  # [.., i, j]: the one that began when j last saw what i did, once only some lanes met
        )
        self.seen = np.zeros((groups, w, w), np.int32)
        self.now = np.ones(groups, np.int32)  # the newest clock of the group
        self.floor = np.zeros(groups, np.int32)  # everybody has seen up to here
        self.named: dict[tuple[int, int], Array] = {}
        self.channels: dict[tuple[int, int], Array] = {}

    # ---- synchronisation
    def group_barrier(self, groups: Array) -> None:
        """All threads of these groups (bool[groups]), which are clusters, have met."""
        if self.between is not None and groups.any():
            self.between.meet_in_cluster(self.wave.blocks[np.repeat(groups, self.wave.block_count // len(groups))])
        self._all_met(groups)

    def _all_met(self, groups: Array) -> None:
        if self.on and groups.any():
            self.floor[groups] = self.now[groups]
            self.now[groups] += 1
            self.seen[groups] = self.floor[groups][:, None, None]
            self.clock[groups] = self.now[groups][:, None]

    def block_barrier(self, blocks: Array) -> None:
        """All threads of these blocks (bool[blocks]) have met."""
        if self.between is not None and blocks.any():
            self.between.meet(self.wave.blocks[blocks])
        if not self.on:
            return
        if self.blocks == 1:
            self._all_met(blocks)
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
        self.clock[group, warps] = self.met[group, warps] = self.now[group]

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

    def warp_sync(self, bits: Array, member: Array) -> None:
        """The threads `bits` of each warp have met those that their masks (of each thread) name."""
        if self.on:
            lanes = bits.reshape(len(self.now), -1, 32)
            met = lanes.any(axis=2)
            some = np.any(met, axis=1)
            self.now[some] += 1
            self.clock = np.where(met, self.now[:, None], self.clock)
            masks = np.unique(member[bits])
            for mask in masks.tolist():
                self._lanes_met(lanes & (member == mask).reshape(lanes.shape) if len(masks) > 1 else lanes)

    def _lanes_met(self, lanes: Array, sources: Array | None = None) -> None:
        """In the period that begins the lanes (bool[groups, warps, 32]) see what they, or `sources`, did before."""
        live = self.wave.live.reshape(lanes.shape)
        whole = lanes.any(axis=2) & ~(live & ~lanes).any(axis=2)
        self.met = np.where(whole, self.clock, self.met)
        at = np.nonzero(lanes.any(axis=2) & ~whole)
        if len(at[0]):
            if self.some_met is None:
                self.some_met = np.zeros((*self.clock.shape, 32, 32), np.int32)
            seen = lanes[at] if sources is None else sources[at]
            pairs = seen[:, :, None] & lanes[at][:, None, :]
            self.some_met[at] = np.where(pairs, self.clock[at][:, None, None], self.some_met[at])

    def named_barrier(self, bits: Array, number: int, blocks: Array) -> None:
        """The threads `bits` of the blocks `blocks` (bool) have met at a barrier of some threads."""
        if self.between is not None and blocks.any():
            self.between.meet(self.wave.blocks[blocks])
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
        if self.between is not None and acquire and bits.any():
            self.between.meet(self.wave.blocks[np.unique(self.wave.block[bits])])
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
        if acquire:
            mine = bits.reshape(len(self.now), -1, 32)
            self._lanes_met(mine, np.ones_like(mine))

    # ---- accesses
    def load(self, at: Array, width: int, m: Mask, instruction: Instruction, convergent: bool = False) -> None:
        """`at`: offsets of the threads of `m`, in order. `convergent`: all lanes of a warp read together (ldmatrix)."""
        if not self.on:
            return
        g = granules(at, width, self.granule)
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
        g = granules(at, width, self.granule)
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
            self._same_instruction(at, values, m, instruction)

    def _same_instruction(self, at: Array, values: list[Array], m: Mask, instruction: Instruction) -> None:
        """Several threads store to one place in one step: a race unless they store the same."""
        order, differ = differing_stores(at, values)
        bad = np.flatnonzero(differ)
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
        together = clock < self.met[b, mine]
        if self.some_met is not None:
            together |= clock < self.some_met[b, mine, other & 31, (thread[rows, 0] - 1) & 31]
        ordered = np.where(same, convergent | together, clock <= self.seen[b, mine, theirs])
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


def words(kind: tuple[str, str]) -> str:
    return _WORDS[kind]
