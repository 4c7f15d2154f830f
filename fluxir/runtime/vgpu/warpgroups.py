"""What `wgmma` leaves open until a warpgroup waits: which registers a product still writes, and which shared memory it reads.

Results are computed when a product is issued; a register that holds one counts as unwritten until `wgmma.wait_group`. An
instruction that reads it before is a finding, and so is a store into the shared memory that a product reads. A plain `mov`
carries the mark along, because compilers put copies between products that the assembler removes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .isa import Form, flat
from .memory import READING
from .ptx import Instruction, Operand, Register
from .values import Array

if TYPE_CHECKING:
    from .code import Step
    from .scope import Scope
    from .wave import Mask, Wave

__all__ = ["Warpgroups", "watched"]


@dataclass
class _Product:
    """Products of one instruction that are under way: threads, the group of each, and the places of shared memory read."""

    instruction: Instruction
    threads: Array
    group: Array
    source: Array  # [threads of the first lanes, bytes]: offsets in the region
    owner: Array  # the thread whose group a row of `source` waits with


class Warpgroups:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.group = np.ones(wave.size, np.int64)  # that a thread's next product belongs to
        self.fenced = np.zeros(wave.size, bool)
        self.products: list[_Product] = []
        self.open: dict[int, Array] = {}  # by register: the group that writes it, of each thread; 0 for none

    def fence(self, m: Mask) -> None:
        self.fenced[m.index] = True

    def start(self, m: Mask, slots: list[int], source: Array, owner: Array, x: Instruction) -> None:
        """The threads of `m` have issued a product into registers; `source`: places of 16 bytes in the region of shared memory
        that it reads, and `owner` the thread each belongs to."""
        w = self.wave
        early = m.bits & ~self.fenced
        if early.any():
            w.report("async-copy", "no `wgmma.fence` has ordered the registers before it", x, np.flatnonzero(early))
        spread = source[:, None] + np.arange(16)
        w.memory.shared.shadow[spread] |= READING
        w.memory.pending_copies = True
        self.products.append(_Product(x, m.index, self.group[m.index], spread, owner))
        for slot in slots:
            known = self.open.get(slot)
            self.open[slot] = np.where(m.bits, self.group, 0 if known is None else known)

    def commit(self, m: Mask) -> None:
        self.group[m.index] += 1

    def wait(self, m: Mask, newest: int) -> None:
        """All groups but the `newest` ones of each thread have ended."""
        last = np.where(m.bits, self.group - newest - 1, 0)
        for slot, groups in list(self.open.items()):
            left = np.where(groups <= last, 0, groups)
            if left.any():
                self.open[slot] = left
            else:
                del self.open[slot]
        products = []
        shadow = self.wave.memory.shared.shadow
        for p in self.products:
            done = p.group <= last[p.threads]
            ended = np.zeros(self.wave.size, bool)
            ended[p.threads[done]] = True
            over = ended[p.owner]
            shadow[p.source[over]] &= np.uint8(255 - READING)
            if not done.all():
                rest = ~done
                products.append(
                    _Product(p.instruction, p.threads[rest], p.group[rest], p.source[~over], p.owner[~over])
                )
        self.products = products
        self.wave.bulk.idle()

    def check(self, reads: list[int], m: Mask, x: Instruction) -> None:
        """A finding where an instruction reads what a product has not written yet."""
        for slot in reads:
            groups = self.open.get(slot)
            if groups is not None:
                early = m.bits & (groups != 0)
                if early.any():
                    self.wave.report("async-copy", "it uses a register that `wgmma` writes, before `wgmma.wait_group`", x,
                                     np.flatnonzero(early))  # fmt: skip
                    return

    def move(self, source: int | None, target: int, m: Mask) -> None:
        """`target` is written: with what is in `source`, or with something that no product writes."""
        groups = self.open.get(source) if source is not None else None
        known = self.open.get(target)
        if groups is None and known is None:
            return
        left = np.where(m.bits, 0 if groups is None else groups, 0 if known is None else known)
        if left.any():
            self.open[target] = left
        else:
            del self.open[target]

    def finish(self) -> None:
        for p in self.products:
            self.wave.report("async-copy", "the product was never waited for", p.instruction, p.threads)


def watched(step: Step, form: Form, scope: Scope, lanewise: bool) -> Step:
    """A step that checks the registers it reads, in functions that use `wgmma`."""
    x = form.instruction
    source_scope: Scope = getattr(scope, "source", scope)  # arguments of inlined calls are read in another one
    reads = _slots(form.sources if lanewise else tuple(flat(x.operands)), source_scope.slots)
    targets = _slots(form.destinations, scope.slots) if lanewise else []
    if x.name == "mov" and len(reads) == len(targets) == 1:
        (source,), (target,) = reads, targets

        def moving(w: Wave, m: Mask) -> None:
            if w.warpgroups.open:
                w.warpgroups.move(source, target, m)
            step(w, m)

        return moving

    def watching(w: Wave, m: Mask) -> None:
        if w.warpgroups.open:
            w.warpgroups.check(reads, m, x)
            for target in targets:
                w.warpgroups.move(None, target, m)
        step(w, m)

    return watching


def _slots(operands: tuple[Operand, ...], slots: dict[str, int]) -> list[int]:
    """The registers among operands, those in addresses too."""
    found = []
    for o in operands:
        base = getattr(o, "base", getattr(o, "register", o))
        if isinstance(base, Register) and base.name in slots:
            found.append(slots[base.name])
    return found
