"""Loads, stores and atomics of a wave: from addresses to bytes, with what the sanitizer checks and the counters count.

`Memory` holds the three memories a thread sees: global (the device's heap), shared (one stretch for each block of the wave)
and local (one for each thread). Everything here works on the *picked* threads of a mask: arrays with one element for each
thread in the mask, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import memory as mem
from .global_races import once
from .memory import ALLOCATED, FREED, GLOBAL_BASE, LOCAL_BASE, RANK_SHIFT, SHARED_BASE, WRITTEN, Region
from .ptx import Instruction
from .races import words
from .values import Array, unsigned

if TYPE_CHECKING:
    from .wave import Mask, Wave

__all__ = ["Memory"]

_RELEASES = ("release", "acq_rel")
_NEAR = 1 << 20  # bytes: allocations further away are not named in a report
_SHARED = ("shared", "cluster")
_NO_BLOCK, _ENDED = (
    -1,
    -2,
)  # what stands for the place of an address in no block of the cluster, or in one that has ended
_ONES = {n: int.from_bytes(b"\1" * n, "little") for n in (1, 2, 4, 8)}


@dataclass
class _Carried:
    """A register that only carries what was loaded. `empty`: bool[threads, bytes], those that nobody has written; `source`: where
    in the thread's local memory they are from."""

    empty: Array
    source: Array


class Memory:
    """What the threads of a wave can read and write."""

    def __init__(self, wave: Wave) -> None:
        launch = wave.launch
        self.wave = wave
        self.heap = launch.heap
        self.checks = launch.check != "off"
        self.spins = launch.kernel.facts.spins
        self.global_races = launch.global_races if self.checks else None
        self.stride = launch.shared_stride
        self.shared = Region.zeros(wave.block_count * self.stride, 0)
        self.sizes = {"shared": self.stride, "local": launch.local_stride, "cluster": wave.block_count * self.stride,
                      "global": launch.reach}  # fmt: skip
        if self.stride:
            self.shared.shadow[: wave.block_count * self.stride].reshape(wave.block_count, -1)[:] = launch.shared_shadow
        self.local = Region.zeros(wave.size * launch.local_stride, 0)
        if launch.local_stride:
            self.local.shadow[: wave.size * launch.local_stride].reshape(wave.size, -1)[:] = launch.local_shadow
        self.carried: dict[tuple[int, int], _Carried] = {}  # by call depth and register
        self.pending_copies = False  # some shared bytes wait for an asynchronous copy
        self.cluster = launch.kernel.cluster_size
        self.unfenced = mem.UNFENCED if self.checks and launch.kernel.facts.reads_by_proxy else 0

    # ---- where
    def parts(self, space: str, address: Any, m: Mask) -> Iterator[tuple[str, Mask, Array]]:
        """(space, threads, byte offsets in its region) of the accesses; a generic address says by itself where it points.
        Offsets of shared and local memory are those of the block's or thread's own stretch; those of "cluster", the shared
        memory of other blocks, are offsets in the whole region."""
        a = m.picked(address).astype(np.uint64, copy=False)
        if space in ("global", "const", "param"):
            yield "global", m, (a - np.uint64(GLOBAL_BASE)).view(np.int64)
        elif space != "generic":
            base = SHARED_BASE if space == "shared" else LOCAL_BASE
            inside = a >= np.uint64(mem.WINDOW)  # a generic address used as one of the space
            if inside.any():
                a = np.where(inside, a - np.uint64(base), a)
            if space == "shared" and self.cluster > 1:
                yield from self._blocks(m, a.view(np.int64))
            else:
                yield space, m, a.view(np.int64)
        else:
            window = a >> np.uint64(40)
            kinds = (("shared", SHARED_BASE), ("local", LOCAL_BASE), ("global", GLOBAL_BASE))
            first = window[0] if len(window) else 0
            if (window == first).all():
                for kind, base in kinds:
                    if first == base >> 40:
                        at = (a - np.uint64(base)).view(np.int64)
                        if kind == "shared" and self.cluster > 1:
                            yield from self._blocks(m, at)
                        else:
                            yield kind, m, at
                        return
                yield "global", m, (a - np.uint64(GLOBAL_BASE)).view(np.int64)  # nowhere: the check says so
                return
            rest = np.ones(len(a), bool)
            for kind, base in kinds:
                here = window == base >> 40 if kind != "global" else rest
                rest = rest & ~here
                if here.any():
                    part, at = m.only(here), (a[here] - np.uint64(base)).view(np.int64)
                    if kind == "shared" and self.cluster > 1:
                        yield from self._blocks(part, at)
                    else:
                        yield kind, part, at

    def _blocks(self, m: Mask, at: Array) -> Iterator[tuple[str, Mask, Array]]:
        """Addresses in the shared memory of a cluster's blocks, parted into those of the own block and of others."""
        w = self.wave
        rank, offset = (at >> RANK_SHIFT) - 1, at & ((1 << RANK_SHIFT) - 1)
        own = m.pick(w.block)
        target = np.where(rank < 0, own, own - own % self.cluster + rank)
        outside = (rank >= self.cluster) | (offset >= self.stride)
        far = (target != own) | outside
        if not far.any():
            yield "shared", m, offset
            return
        ended = np.asarray(~w.live.reshape(w.block_count, -1).any(axis=1))
        place = np.where(outside, _NO_BLOCK, target * self.stride + offset)
        place[~outside] = np.where(ended[target[~outside]], _ENDED, place[~outside])
        if far.all():
            yield "cluster", m, place
            return
        for kind, here, where in (("shared", ~far, offset), ("cluster", far, place)):
            yield kind, m.only(here), where[here]

    def offsets(self, m: Mask, address: Any, align: int) -> Array:
        """Where addresses of global memory are in the heap; -1 for those that are nowhere or no multiples of `align`."""
        at = (m.picked(address).astype(np.uint64, copy=False) - np.uint64(GLOBAL_BASE)).view(np.int64)
        return np.where((at < 0) | (at > self.heap.top) | (at % align != 0), -1, at)

    def region(self, kind: str) -> Region:
        return self.heap.region if kind == "global" else self.local if kind == "local" else self.shared

    def place(self, kind: str, m: Mask, at: Array) -> Array:
        """Offsets in the whole region from offsets in the block's or thread's stretch."""
        if kind in ("global", "cluster"):
            return at
        if kind == "shared":
            at = at + m.pick(self.wave.block) * self.stride
        else:
            at = at + m.index * self.sizes["local"]
        return at

    # ---- checks
    def good(
        self,
        kind: str,
        m: Mask,
        at: Array,
        width: int,
        need: int,
        instruction: Instruction,
        align: int = 0,
        carried: bool = False,
    ) -> Array | None:
        """Check accesses of `width` bytes at the offsets `at`: None where all are right, else which are (bool). `need`: the
        shadow that every byte must have; bytes that are only `carried` elsewhere need not be written."""
        if not len(at):
            return None
        size = self.sizes[kind]
        low, high = int(at.min()), int(at.max())
        align = align or width
        wrong_place = low < 0 or high > size - width
        if not wrong_place and not int(np.bitwise_or.reduce(at)) & (align - 1):
            if not self.checks:
                return None
            where = self.place(kind, m, at)
            unit = min(width, 8) if width & (width - 1) == 0 and align >= min(width, 8) else 1
            states = self.region(kind).states(unit)
            want = _ONES[unit] * need
            pattern = states.dtype.type(want)
            first = where // unit
            waits = None
            if self.pending_copies and (kind in _SHARED or not need & WRITTEN):
                waits = states.dtype.type(_ONES[unit] * (mem.PENDING if need & WRITTEN else mem.PENDING | mem.READING))
            for k in range(width // unit):
                found = states[first + k]
                if not ((found & pattern) == pattern).all() or (waits is not None and (found & waits).any()):
                    break
            else:
                return None
        return self._diagnose(kind, m, at, width, need, instruction, align, size, carried)

    def _diagnose(
        self,
        kind: str,
        m: Mask,
        at: Array,
        width: int,
        need: int,
        instruction: Instruction,
        align: int,
        size: int,
        carried: bool,
    ) -> Array:
        w = self.wave
        good = np.ones(len(at), bool)
        base = GLOBAL_BASE if kind == "global" else 0

        def tell(what: str, bad: Array, message: Callable[[int], str]) -> None:
            bad = bad & good
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                w.report(what, message(i), instruction, m.index[bad], int(at[i]) + base)

        def place(i: int) -> str:
            return (
                f"{width} bytes at {int(at[i]) + base:#x}"
                if kind == "global"
                else f"{width} bytes at {int(at[i])} of {kind} memory"
            )

        outside = (at < 0) | (at > size - width)
        inner = np.where(outside, 0, at)
        states = np.zeros((len(at), width), np.uint8)
        if size >= width:
            states = self.region(kind).shadow[self.place(kind, m, inner)[:, None] + np.arange(width)]
        states = np.where(outside[:, None], np.uint8(0), states)
        freed = ((states & FREED) != 0).any(axis=1)
        tell("use-after-free", freed, lambda i: f"{place(i)}: {self._owner(kind, int(at[i]))}")
        good &= ~freed
        nowhere = ((states & ALLOCATED) == 0).any(axis=1)
        tell("out-of-bounds", nowhere, lambda i: f"{place(i)}: {self._owner(kind, int(at[i]), width)}")
        good &= ~nowhere
        crooked = (at % align) != 0
        tell("misaligned", crooked, lambda i: f"{place(i)}: not a multiple of {align}")
        good &= ~crooked
        if not self.checks:
            return good
        if kind in _SHARED:
            early = ((states & mem.PENDING) != 0).any(axis=1)
            tell("async-copy", early, lambda i: f"{place(i)}: an asynchronous copy into it was not waited for")
        if not need & WRITTEN and self.pending_copies:
            early = ((states & mem.READING) != 0).any(axis=1)
            tell("async-copy", early, lambda i: f"{place(i)}: an asynchronous copy still reads it")
        if need & WRITTEN and not carried:
            empty = (((states & (WRITTEN | mem.PENDING)) == 0) & _used(instruction, width)).any(axis=1)
            tell(
                "uninitialised",
                empty,
                lambda i: f"{place(i)}: nobody has written there; {self._owner(kind, int(at[i]))}",
            )
        return good

    def _owner(self, kind: str, at: int, width: int = 1) -> str:
        if kind == "cluster" and at < 0:
            return "its block has ended" if at == _ENDED else "the cluster has no such block, or its memory ends before"
        if kind == "cluster":
            return (
                f"{self.wave.launch.describe('shared', at % self.stride)} of block {at // self.stride % self.cluster}"
            )
        if kind != "global":
            return self.wave.launch.describe(kind, at)
        address = at + GLOBAL_BASE
        near = self.heap.nearest(address)
        after = self.heap.next_after(address)
        if near is not None and address - near.address - near.nbytes > _NEAR:
            near = None
        if after is not None and after.address - address > _NEAR:
            after = None
        if (
            after is not None
            and address < after.address
            and (near is None or after.address - address < address - near.address - near.nbytes)
        ):
            return f"{after.address - address} bytes before the allocation {after}"
        if near is None:
            return "no allocation is near"
        if address >= near.address + near.nbytes:
            return f"{address - near.address - near.nbytes} bytes past the end of the allocation {near}"
        if address + width > near.address + near.nbytes:
            return f"{address + width - near.address - near.nbytes} bytes reach past the end of the allocation {near}"
        return f"the allocation {near}"

    # ---- accesses
    def load(
        self,
        m: Mask,
        space: str,
        address: Any,
        unit: int,
        count: int,
        instruction: Instruction,
        order: str = "",
        carried: list[int | None] | None = None,
    ) -> list[Array]:
        """`count` elements of `unit` bytes for each thread, as unsigned integers over all threads of the wave. `carried`: the
        registers of values that are only stored again (`copying`)."""
        out: list[Array] | None = None
        width = unit * count
        for kind, part, at in self.parts(space, address, m):
            loose = carried is not None and kind == "local"
            good = self.good(kind, part, at, width, ALLOCATED | WRITTEN, instruction, carried=loose)
            safe = at if good is None else np.where(good, at, 0)
            where = self.place(kind, part, safe)
            self.wave.counters.access(kind, "load", part, safe, width)
            if self.checks and carried is not None and (self.carried or (loose and good is not None)):
                self._carry(part, kind, where, unit, carried, instruction)
            if self.checks:
                if kind in _SHARED and order and self.spins:
                    self._channel(part, where, False, True)
                elif kind in _SHARED:
                    self.wave.races.load(where, width, part, instruction)
                elif kind == "global" and self.global_races is not None:
                    self._global(part, where, width, instruction, "load", strength=order)
            units = self.region(kind).units(unit)
            first = where // unit
            found = []
            for k in range(count):
                v = units[first + k] if len(units) > 0 else np.zeros(len(first), unsigned(unit))
                if good is not None:
                    v = np.where(good, v, v.dtype.type(0))
                found.append(v)
            if part is m:
                return [m.spread(v) for v in found]
            if out is None:
                out = [np.zeros(self.wave.size, unsigned(unit)) for _ in range(count)]
            for o, v in zip(out, found):
                o[part.index] = v
        return out if out is not None else [np.zeros(self.wave.size, unsigned(unit)) for _ in range(count)]

    def store(
        self,
        m: Mask,
        space: str,
        address: Any,
        unit: int,
        values: list[Any],
        instruction: Instruction,
        order: str = "",
        carried: list[int | None] | None = None,
    ) -> None:
        """Store `values`, each an array over all threads or a scalar, as consecutive elements of `unit` bytes."""
        width = unit * len(values)
        for kind, part, at in self.parts(space, address, m):
            good = self.good(kind, part, at, width, ALLOCATED, instruction)
            mine = [np.asarray(part.pick(v)) for v in values]
            if good is not None:
                if not good.any():
                    continue
                part, at = part.only(good), at[good]
                mine = [v if v.ndim == 0 else v[good] for v in mine]
            if kind == "global" and self.checks:
                self._writable(part, at, instruction)
            where = self.place(kind, part, at)
            self.wave.counters.access(kind, "store", part, at, width)
            if self.checks:
                if kind in _SHARED and order and self.spins:
                    self._channel(part, where, True, False)
                elif kind in _SHARED:
                    self.wave.races.store(where, width, part, instruction, mine)
                elif kind == "global" and self.global_races is not None:
                    self._global(part, where, width, instruction, "store", mine, order)
            region = self.region(kind)
            units, first = region.units(unit), where // unit
            for k, v in enumerate(mine):
                if self.spins and not self.wave.progress:
                    self.wave.progress = bool((units[first + k] != v).any())
                units[first + k] = v
            self._written(region, where, width)
            if self.carried and carried is not None:
                self._drop(part, kind, where, unit, carried, instruction)

    def _carry(
        self, m: Mask, kind: str, where: Array, unit: int, carried: list[int | None], instruction: Instruction
    ) -> None:
        """Remember which bytes of the registers `carried` nobody has written."""
        for k, slot in enumerate(carried):
            if slot is None:
                continue
            key = (self.wave.depth, slot)
            empty = np.zeros((m.count, unit), bool)
            if kind == "local":
                states = self.local.shadow[where[:, None] + np.arange(k * unit, (k + 1) * unit)]
                empty = ((states & WRITTEN) == 0) & _used(instruction, unit * len(carried))[k * unit : (k + 1) * unit]
            if empty.any() and key not in self.carried:
                self.carried[key] = _Carried(np.zeros((self.wave.size, unit), bool), np.zeros(self.wave.size, np.int64))
            if key in self.carried:
                self.carried[key].empty[m.index] = empty
                self.carried[key].source[m.index] = where - m.index * self.sizes["local"] + k * unit

    def _drop(self, m: Mask, kind: str, where: Array, unit: int, carried: list[int | None], x: Instruction) -> None:
        """What was stored from the registers `carried` is as unwritten as what was loaded; other threads are not to get it."""
        region = self.region(kind)
        for k, slot in enumerate(carried):
            known = None if slot is None else self.carried.get((self.wave.depth, slot))
            if known is None or known.empty.shape[1] != unit:
                continue
            empty = known.empty[m.index]
            rows, columns = np.nonzero(empty)
            if len(rows):
                region.shadow[where[rows] + k * unit + columns] &= np.uint8(~WRITTEN & 255)
            whole = empty.all(axis=1)
            if kind != "local" and whole.any():
                first = int(known.source[m.index[whole]][0])
                self.wave.report("uninitialised", f"stores {unit} bytes from {first} of local memory: nobody has written there; "
                                 f"{self._owner('local', first)}", x, m.index[whole], first)  # fmt: skip

    def _written(self, region: Region, where: Array, width: int) -> None:
        unit = min(width, 8)
        states = region.states(unit)
        pattern = states.dtype.type(
            _ONES[unit] * (ALLOCATED | WRITTEN | (self.unfenced if region is self.shared else 0))
        )
        first = where // unit
        for k in range(width // unit):
            states[first + k] = pattern

    def fence_proxy(self, m: Mask) -> None:
        """`fence.proxy.async`: what the threads of these clusters have stored is visible to bulk copies and `wgmma`."""
        if self.unfenced and self.stride:
            w = self.wave
            rows = self.shared.shadow[: w.block_count * self.stride].reshape(-1, self.cluster * self.stride)
            rows[np.unique(m.pick(w.block) // self.cluster)] &= np.uint8(255 - mem.UNFENCED)

    def check_fenced(self, m: Mask, where: Array, width: int, instruction: Instruction) -> None:
        """A finding where the async proxy reads bytes at places in the region of shared memory that no fence has made visible."""
        if self.unfenced:
            states = self.shared.shadow[where[:, None] + np.arange(width)]
            bad = ((states & mem.UNFENCED) != 0).any(axis=1)
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                why = "it reads what threads have stored, with no `fence.proxy.async` between"
                self.wave.report("async-copy", why, instruction, m.index[bad], int(where[i]) % self.stride)

    def atomic(
        self,
        m: Mask,
        space: str,
        address: Any,
        unit: int,
        apply: Callable[[Any, Array, Mask], Array],
        instruction: Instruction,
        order: str = "",
    ) -> Array:
        """`apply(units, index, threads)` changes the elements at `index` one thread after the other and returns what each
        found. The result is over all threads."""
        out = np.zeros(self.wave.size, unsigned(unit))
        for kind, part, at in self.parts(space, address, m):
            good = self.good(kind, part, at, unit, ALLOCATED | WRITTEN, instruction)
            if good is not None:
                if not good.any():
                    continue
                part, at = part.only(good), at[good]
            if kind == "global" and self.checks:
                self._writable(part, at, instruction)
            where = self.place(kind, part, at)
            self.wave.counters.access(kind, "atomic", part, at, unit)
            if self.checks:
                if kind in _SHARED:
                    if self.spins:
                        self._channel(part, where, True, True)
                    self.wave.races.store(where, unit, part, instruction, atomic=True)
                elif kind == "global" and self.global_races is not None:
                    self._global(part, where, unit, instruction, "atomic", strength=order)
            region = self.region(kind)
            units, first = region.units(unit), where // unit
            before = units[first] if self.spins else None
            out[part.index] = apply(units, first, part)
            if before is not None:
                self.wave.progress |= bool((units[first] != before).any())
            self._written(region, where, unit)
        return out

    def _channel(self, m: Mask, where: Array, release: bool, acquire: bool) -> None:
        """In a kernel whose threads wait for each other in loops, strong accesses to shared memory order the others."""
        self.wave.races.channel(m.bits, m.spread(where), release, acquire)

    def _writable(self, m: Mask, at: Array, instruction: Instruction) -> None:
        bad = self.heap.read_only(at)
        if bad is not None:
            i = int(np.flatnonzero(bad)[0])
            self.wave.report("out-of-bounds", f"a store into constant memory: {self._owner('global', int(at[i]))}", instruction,
                             m.index[bad], int(at[i]) + GLOBAL_BASE)  # fmt: skip

    def _global(
        self, m: Mask, at: Array, width: int, instruction: Instruction, what: str, values: list[Array] | None = None,
        strength: str = "",
    ) -> None:  # fmt: skip
        races = self.global_races
        assert races is not None
        block = self.wave.blocks[m.pick(self.wave.block)]
        warp = (m.pick(self.wave.thread) >> np.uint32(5)).astype(np.int64)
        order = races.order

        def report(rows: Array, kind: tuple[str, str], other: int) -> None:
            gx, gy, _ = self.wave.launch.grid
            name = (other % gx, other // gx % gy, other // (gx * gy))
            did = "wrote" if kind[0] == "w" else "read"
            self.wave.report("global-race", f"{words(kind)}: block {name} {did} there, and nothing orders the two", instruction,
                             m.index[rows], int(at[rows[0]]) + GLOBAL_BASE)  # fmt: skip

        if order is not None and (strength or what == "atomic"):
            warps = once(block, warp)
            if strength in _RELEASES:
                order.fence(*warps)
            if what != "load":
                order.release(*warps)
            if what != "store":
                order.acquire(*warps)
        if what == "load":
            if not strength:
                races.load(at, width, block, warp, report)
        elif what == "atomic" or not strength:
            races.store(at, width, block, warp, report, what == "atomic", "cas" in instruction.modifiers)
            if values is not None:
                races.same_instruction(at, width, block, values, report)


def _used(instruction: Instruction, width: int) -> Array:
    """Which of the bytes of a load matter."""
    mask = instruction.used_bytes
    return np.ones(width, bool) if mask is None else (mask >> np.arange(width)) & 1 != 0
