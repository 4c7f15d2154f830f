"""Branches and loops that threads meet in, on a CPU: lifted out of the segments, under a mask where threads part.

A part of `simt_cpu`. What all threads take alike stays a branch or a loop of the block; its carries that differ between threads
are kept in slots. Anything else runs for as long as some thread takes part: a mask over the threads says which, and every
segment inside runs for those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.types import BOOL, INDEX, MemType
from fluxir.schedule.loops import region
from fluxir.schedule.simt_uniform import meets
from fluxir.schedule.simt_warp import WarpOps

if TYPE_CHECKING:
    from fluxir.schedule.simt_cpu import Action, Segment

__all__ = ["CHOSEN", "Meetings"]

CHOSEN = "an array that is chosen at run time lives across a barrier or shuffle"


class Meetings(WarpOps):
    """Methods of the lowering; what they need of the rest is declared here."""

    varying: set[Value]
    crossing: set[Value]
    uniform: dict[Value, Value]
    blocks_of: Callable[[Block], None]
    keep: Callable[..., None]
    is_uniform: Callable[[Op], bool]

    # ---- places
    def meet_barrier(self, op: Op) -> None:
        self.flush()

    meet_warp_sync = meet_barrier

    def meet_grid_barrier(self, op: Op) -> None:
        raise self.refuse("a barrier of the whole grid: the blocks of a CPU run one after the other", op)

    def store_outs(self, outs: Sequence[Value], targets: Sequence[Value]) -> None:
        """Keep the values that a region yields, each for its target."""

        def action(b: Builder, s: Segment) -> None:
            found = [self.value(b, s, v) for v in outs]  # all before the first is overwritten
            for target, v in zip(targets, found, strict=True):
                self.keep(b, s, target, v)

        if targets:
            self.act(action)

    def check_kept(self, op: Op, values: Sequence[Value]) -> None:
        if any(isinstance(v.type, MemType) for v in values):
            raise self.refuse(CHOSEN, op)

    @contextmanager
    def level(self) -> Iterator[Builder]:
        """Code of the block level in a region of its own."""
        inner = Builder(self.b.loc)
        inner._consts.update(self.b._consts)
        saved, self.b = self.b, inner
        known = dict(self.uniform)
        try:
            yield inner
        finally:
            self.b = saved
            self.uniform = {**known}

    def meet_if(self, op: Op) -> None:
        c, *args = op.operands
        assert not args
        kept = [r for r in op.results if r in self.varying]
        self.check_kept(op, kept)
        self.crossing.update(kept)
        if c not in self.varying:
            self.flush()
            regions = []
            for k in op.blocks:
                with self.level() as inner:
                    self.blocks_of(k)
                    self.store_outs([v for v, r in zip(k.outs, op.results, strict=True) if r in self.varying], kept)
                    self.flush()
                    outs = [
                        self.uniform.get(v, v) for v, r in zip(k.outs, op.results, strict=True) if r not in self.varying
                    ]
                regions.append(Block((), inner.ops, outs))
            results = self.b.emit("if", self.uniform.get(c, c), blocks=regions)
            self.uniform.update(zip([r for r in op.results if r not in self.varying], results, strict=True))
            return
        before = self.mask
        masks = [self.per_thread(BOOL), self.per_thread(BOOL)]

        def split(b: Builder, s: Segment) -> None:
            p = self.value(b, s, c)
            b.store(masks[0], p, s.thread)
            b.store(masks[1], b.logical_not(p), s.thread)

        if before is not None:
            self.flush()
            self.clear(masks)
        self.act(split)
        self.flush()
        for k, mask in zip(op.blocks, masks, strict=True):
            if not k.ops and not kept:
                continue
            self.mask = mask
            self.blocks_of(k)
            self.store_outs([v for v, r in zip(k.outs, op.results, strict=True) if r in self.varying], kept)
            self.flush()
        self.mask = before
        for i, r in enumerate(op.results):
            if r not in self.varying:
                self.uniform[r] = self.uniform.get(op.blocks[0].outs[i], op.blocks[0].outs[i])

    def clear(self, masks: Sequence[Value]) -> None:
        """Set masks to false for all threads, those that do not take part included."""

        def body(b: Builder, t: Value) -> None:
            for m in masks:
                b.store(m, b.const(False, dtype="bool"), t)

        zero, one = self.b.index(0), self.b.index(1)
        self.b.emit("for", zero, self.b.index(self.threads), one, blocks=[region(self.b, [INDEX], body, ["thread"])])

    def meet_for(self, op: Op) -> None:
        lo, hi, step, *init = op.operands
        (k,) = op.blocks
        i, *carry = k.args
        if any(v in self.varying for v in (lo, hi, step)):
            self.masked_for(op)
            return
        kept = [n for n, a in enumerate(carry) if a in self.varying]
        self.check_kept(op, [carry[n] for n in kept])
        self.crossing.update(carry[n] for n in kept)
        self.store_outs([init[n] for n in kept], [carry[n] for n in kept])
        self.flush()
        plain = [n for n in range(len(carry)) if n not in kept]
        args = [
            Value(INDEX, None, 0, i.name),
            *[Value(carry[n].type, None, 1 + j, carry[n].name) for j, n in enumerate(plain)],
        ]
        with self.level() as inner:
            self.uniform[i] = args[0]
            self.uniform.update({carry[n]: a for n, a in zip(plain, args[1:], strict=True)})
            self.blocks_of(k)
            self.store_outs([k.outs[n] for n in kept], [carry[n] for n in kept])
            self.flush()
            outs = [self.uniform.get(k.outs[n], k.outs[n]) for n in plain]
        bounds = [self.uniform.get(v, v) for v in (lo, hi, step)]
        starts = [self.uniform.get(init[n], init[n]) for n in plain]
        results = self.b.emit("for", *bounds, *starts, blocks=[Block(args, inner.ops, outs)], vectorize=False)
        self.uniform.update({op.results[n]: r for n, r in zip(plain, results, strict=True)})
        self.forward([(carry[n], op.results[n]) for n in kept])

    def forward(self, pairs: Sequence[tuple[Value, Value]]) -> None:
        """The results of a loop are its last carry."""

        def action(b: Builder, s: Segment) -> None:
            self.define(b, s, [r for _, r in pairs], [self.value(b, s, v) for v, _ in pairs])

        if pairs:
            self.act(action)

    def masked_for(self, op: Op) -> None:
        """Threads that count differently: as a `while` over each thread's own counter."""
        lo, hi, step, *init = op.operands
        (k,) = op.blocks
        i, *carry = k.args
        self.check_kept(op, carry)
        self.crossing.update((i, *carry))

        def condition() -> Action:
            def action(b: Builder, s: Segment) -> None:
                going = b.lt(self.value(b, s, i), self.value(b, s, hi))
                b.store(self.mask, going, s.thread)

            return action

        def following() -> None:
            def action(b: Builder, s: Segment) -> None:
                found = [self.value(b, s, v) for v in k.outs]
                after = b.add(self.value(b, s, i), self.value(b, s, step))
                for target, v in zip((i, *carry), (after, *found), strict=True):
                    self.keep(b, s, target, v)

            self.act(action)

        self.store_outs([lo, *init], [i, *carry])
        self.masked(lambda: self.act(condition()), k, following)
        self.forward(list(zip(carry, op.results, strict=True)))

    def meet_while(self, op: Op) -> None:
        n = op.attrs.carry
        head, k = op.blocks
        init, consts = op.operands[:n], op.operands[n:]
        assert not consts
        (go,) = head.outs
        uniform = go not in self.varying and all(a not in self.varying for a in k.args)
        if uniform and not any(meets(o) for o in head.ops) and all(self.is_uniform(o) for o in head.ops):
            self.uniform_while(op)
            return
        self.check_kept(op, k.args)
        self.crossing.update((*head.args, *k.args))

        def copy_carry(source: Sequence[Value], targets: Sequence[Value]) -> None:
            self.store_outs(source, targets)

        def condition() -> None:
            self.blocks_of(head)

            def action(b: Builder, s: Segment) -> None:
                b.store(self.mask, self.value(b, s, go), s.thread)
                for target, v in zip(k.args, [self.value(b, s, a) for a in head.args], strict=True):
                    self.keep(b, s, target, v)

            self.act(action)

        copy_carry(init, head.args)
        self.masked(condition, k, lambda: copy_carry(k.outs, head.args))
        self.forward(list(zip(head.args, op.results, strict=True)))

    def masked(self, condition: Callable[[], None], body: Block, following: Callable[[], None]) -> None:
        """A loop that runs while some thread goes on: `condition` sets the mask for the threads that still take part."""
        before, mask = self.mask, self.per_thread(BOOL)
        self.flush()
        self.start_mask(mask, before)
        self.mask = mask
        with self.level() as head:
            condition()
            self.flush()
            any_ = self.any_of(mask)
        with self.level() as inner:
            self.blocks_of(body)
            following()
            self.flush()
        self.b.emit("while", blocks=[Block((), head.ops, [any_]), Block((), inner.ops, ())], carry=0)
        self.mask = before

    def start_mask(self, mask: Value, before: Value | None) -> None:
        def body(b: Builder, t: Value) -> None:
            b.store(mask, b.const(True, dtype="bool") if before is None else b.load(before, t), t)

        zero, one = self.b.index(0), self.b.index(1)
        self.b.emit("for", zero, self.b.index(self.threads), one, blocks=[region(self.b, [INDEX], body, ["thread"])])

    def any_of(self, mask: Value) -> Value:
        """Whether a mask holds for any thread; emitted in the builder at hand, which is that of the loop's condition."""

        def body(b: Builder, t: Value, found: Value) -> Value:
            out: Value = b.logical_or(found, b.load(mask, t))
            return out

        b = self.b
        block = region(b, [INDEX, BOOL], body, ["thread"])
        return b.emit(
            "for", b.index(0), b.index(self.threads), b.index(1), b.const(False, dtype="bool"), blocks=[block]
        )[0]

    def uniform_while(self, op: Op) -> None:
        head, k = op.blocks
        starts = [self.uniform.get(v, v) for v in op.operands]
        self.flush()
        regions = []
        for block in (head, k):
            args = [Value(a.type, None, j, a.name) for j, a in enumerate(block.args)]
            with self.level() as inner:
                self.uniform.update(zip(block.args, args, strict=True))
                self.blocks_of(block)
                self.flush()
                outs = [self.uniform.get(v, v) for v in block.outs]
            regions.append(Block(args, inner.ops, outs))
        results = self.b.emit("while", *starts, blocks=regions, carry=op.attrs.carry)
        self.uniform.update(zip(op.results, results, strict=True))
