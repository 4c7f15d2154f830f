"""What the lanes of a warp do together, on a CPU: each lane puts what it brings into an array, then reads the others'.

A part of `simt_cpu`: every op here ends a segment and defines its result at the start of the next. Lanes that the block does
not have, or that do not take part (`mask`), count as the ops' declarations in `ops/gpu.py` say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Op, Value
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.simt import WARP
from fluxir.ir.types import BOOL, INDEX, MemType, TensorType
from fluxir.ops.mma import SHAPES, Place
from fluxir.schedule.loops import region

U32 = TensorType(DTYPES["u32"])


class WarpOps:
    """Methods of the lowering; `Any` because the class that has the rest is not known here."""

    threads: int
    b: Builder
    mask: Value | None
    per_thread: Callable[[Any], Value]
    act: Callable[[Any], None]
    flush: Callable[[], None]
    value: Callable[..., Value]
    define: Callable[..., None]
    refuse: Callable[[str, Op | None], Exception]
    clear: Callable[[Sequence[Value]], None]

    def put(self, v: Value) -> Value:
        """An array over the threads with what each brings of `v`; ends the segment."""
        mem = self.per_thread(v.type)

        def action(b: Any, s: Any) -> None:
            x = self.value(b, s, v)
            b.store(mem, x, s.thread, *([b.index(0)] if mem.type.rank == 2 else []))  # type: ignore[union-attr]

        self.act(action)
        self.flush()
        return mem

    def result(self, op: Op, compute: Callable[[Any, Any], Value]) -> None:
        """The op's result in the next segment."""

        def action(b: Any, s: Any) -> None:
            b.loc = op.loc
            self.define(b, s, op.results, [compute(b, s)])

        self.act(action)

    def has(self, b: Any, mask: Value, lane: Value) -> Value:
        """Whether a mask (u32) names a lane (u32)."""
        out: Value = b.ne(b.bit_and(b.shift_right(mask, lane), 1), 0)
        return out

    # ---- shuffles
    def meet_warp_shuffle(self, op: Op) -> None:
        x, by, mask = op.operands
        mem = self.put(x)
        mode = op.attrs.mode

        def compute(b: Any, s: Any) -> Value:
            own = b.load(mem, s.thread)
            lane = b.fmod(s.thread, b.index(WARP))
            step = b.cast(self.value(b, s, by), dtype="i64")
            if mode == "idx":
                at = b.bit_and(step, WARP - 1)
            else:
                at = b.emit({"xor": "bit_xor", "up": "sub", "down": "add"}[mode], lane, step)[0]
            source = b.add(b.sub(s.thread, lane), at)
            there = b.logical_and(b.ge(at, 0), b.lt(at, WARP))
            there = b.logical_and(there, b.lt(source, self.threads))
            inside = b.bit_and(at, WARP - 1)
            there = b.logical_and(there, self.has(b, self.value(b, s, mask), b.cast(inside, dtype="u32")))
            found: Value = b.select(there, b.load(mem, b.select(there, source, s.thread)), own)
            return found

        self.result(op, compute)

    # ---- votes
    def ballots(self, p: Value | None) -> Value:
        """An array over the warps: the lanes that take part and where `p` holds (all of them for None)."""
        mem = self.per_thread(BOOL)
        if self.mask is not None:
            self.flush()
            self.clear([mem])

        def action(b: Any, s: Any) -> None:
            b.store(mem, b.const(True, dtype="bool") if p is None else self.value(b, s, p), s.thread)

        self.act(action)
        self.flush()
        words = self.warp_array(MemType(DTYPES["u32"], (-(-self.threads // WARP),), "local"))

        def warp(b: Any, w: Value) -> None:
            def lane(ib: Any, i: Value, word: Value) -> Value:
                t = ib.add(ib.mul(w, ib.index(WARP)), i)
                inside = ib.lt(t, self.threads)
                held = ib.logical_and(inside, ib.load(mem, ib.select(inside, t, ib.index(0))))
                bit = ib.shift_left(ib.cast(held, dtype="u32"), ib.cast(i, dtype="u32"))
                out: Value = ib.bit_or(word, bit)
                return out

            block = region(b, [INDEX, U32], lane, ["lane"])
            zero = b.const(0, dtype="u32")
            word = b.emit("for", b.index(0), b.index(WARP), b.index(1), zero, blocks=[block])[0]
            b.store(words, word, w)

        count = self.b.index(-(-self.threads // WARP))
        self.b.emit("for", self.b.index(0), count, self.b.index(1), blocks=[region(self.b, [INDEX], warp, ["warp"])])
        return words

    def warp_array(self, t: MemType) -> Value:
        found: Value = self.allocations.emit("alloc", type=t)[0]  # type: ignore[attr-defined]
        return found

    def word(self, b: Any, s: Any, words: Value) -> Value:
        found: Value = b.load(words, b.div(s.thread, b.index(WARP)))
        return found

    def existing(self, b: Any, s: Any, mask: Value) -> Value:
        """The lanes of a mask that the block has."""
        first = b.sub(s.thread, b.fmod(s.thread, b.index(WARP)))
        count = b.minimum(b.sub(b.index(self.threads), first), b.index(WARP))
        ones = b.sub(b.shift_left(b.const(1, dtype="i64"), count), 1)
        out: Value = b.bit_and(mask, b.cast(ones, dtype="u32"))
        return out

    def meet_warp_vote(self, op: Op) -> None:
        p, mask = op.operands
        words = self.ballots(p)

        def compute(b: Any, s: Any) -> Value:
            members = self.existing(b, s, self.value(b, s, mask))
            held = b.bit_and(self.word(b, s, words), members)
            if op.attrs.mode == "ballot":
                found: Value = held
            else:
                found = b.eq(held, members) if op.attrs.mode == "all" else b.ne(held, 0)
            return found

        self.result(op, compute)

    def meet_active_mask(self, op: Op) -> None:
        words = self.ballots(None)
        self.result(op, lambda b, s: self.word(b, s, words))

    def meet_warp_match(self, op: Op) -> None:
        x, mask = op.operands
        mem = self.put(x)
        kind = f"u{x.dtype.bits}"

        def compute(b: Any, s: Any) -> Value:
            members = self.existing(b, s, self.value(b, s, mask))
            own = b.bitcast(b.load(mem, s.thread), dtype=kind)
            first = b.sub(s.thread, b.fmod(s.thread, b.index(WARP)))

            def lane(ib: Any, i: Value, word: Value) -> Value:
                t = ib.add(first, i)
                inside = ib.lt(t, self.threads)
                bit = ib.cast(i, dtype="u32")
                other = ib.bitcast(ib.load(mem, ib.select(inside, t, s.thread)), dtype=kind)
                same = ib.logical_and(ib.logical_and(inside, self.has(ib, members, bit)), ib.eq(own, other))
                out: Value = ib.bit_or(word, ib.shift_left(ib.cast(same, dtype="u32"), bit))
                return out

            block = region(b, [INDEX, U32], lane, ["lane"])
            zero = b.const(0, dtype="u32")
            found: Value = b.emit("for", b.index(0), b.index(WARP), b.index(1), zero, blocks=[block])[0]
            return found if op.attrs.mode == "any" else b.select(b.eq(found, members), found, zero)

        self.result(op, compute)

    # ---- tensor cores
    def meet_mma(self, op: Op) -> None:
        """Every lane multiplies its own four elements of the result, from the parts of the lanes that hold what it needs."""
        if self.threads % WARP:
            raise self.refuse(f"mma needs whole warps; a block has {self.threads} threads", op)
        shape = SHAPES[op.attrs.shape]
        a, b_, c = op.operands
        mems = [self.put(a), self.put(b_)]

        def element(b: Any, mem: Value, thread: Value, i: int) -> Value:
            x = b.load(mem, thread, b.index(i))
            if x.dtype.name == "f32":  # the tensor core reads the upper 19 bits
                return b.bitcast(b.bit_and(b.bitcast(x, dtype="u32"), 0xFFFFE000), dtype="f32")  # type: ignore[no-any-return]
            out: Value = b.cast(x, dtype="f32")
            return out

        def compute(b: Any, s: Any) -> Value:
            lane = b.fmod(s.thread, b.index(WARP))
            first = b.sub(s.thread, lane)
            row_lane = b.add(
                first, b.mul(b.div(lane, b.index(4)), b.index(4))
            )  # the lanes that hold this lane's rows of A
            total = self.value(b, s, c)
            for j in range(4):
                row, _ = shape.c[j](0)
                pair = shape.c[j](0)[1]
                column = b.add(b.mul(b.fmod(lane, b.index(4)), b.index(2)), b.index(pair))
                column_lane = b.add(first, b.mul(column, b.index(4)))
                sum_ = b.emit("extract", total, lane=j)[0]
                for k in range(shape.k):
                    by, i = _holder(shape.a, (row, k))
                    x = element(b, mems[0], b.add(row_lane, b.index(by)), i)
                    by, i = _holder(shape.b, (k, 0))
                    y = element(b, mems[1], b.add(column_lane, b.index(by)), i)
                    sum_ = b.fma(x, y, sum_)
                total = b.emit("insert", total, sum_, lane=j)[0]
            return total

        self.result(op, compute)


def _holder(places: Sequence[Place], place: tuple[int, int]) -> tuple[int, int]:
    """(lane, element) that holds a place of a tile, among the first four lanes."""
    return next((lane, i) for lane in range(4) for i, p in enumerate(places) if p(lane) == place)


__all__ = ["WarpOps"]
