"""What the threads of a warp tell each other: shuffles, votes, matches, reductions.

The threads that a member mask names must execute the instruction together. One that exists and does not is a finding, and so
is a value that is read from a thread that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..isa import Form, machine
from ..ptx import Pair
from ..values import Array, lane_bits

if TYPE_CHECKING:
    from ..code import Step
    from ..ptx import Instruction
    from ..scope import Scope
    from ..wave import Mask, Wave


def _members(w: Wave, m: Mask, member: Any, x: Instruction) -> Array:
    """bool[warps, 32, 32]-free form of the mask: the mask of each thread, checked against who is here."""
    mask = np.broadcast_to(member, (w.size,)).astype(np.uint32)
    here = np.repeat(lane_bits(m.bits), 32)
    alive = np.repeat(lane_bits(w.exists), 32)
    absent = m.bits & ((mask & alive & ~here) != 0)
    if absent.any():
        i = int(np.flatnonzero(absent)[0])
        lanes = int(mask[i] & alive[i] & ~here[i])
        w.report("absent-lanes", f"the mask {int(mask[i]):#010x} names lanes {_lanes(lanes)}, which do not execute it", x,
                 np.flatnonzero(absent))  # fmt: skip
    alone = m.bits & (((mask >> w.lane) & np.uint32(1)) == 0)
    if alone.any():
        w.report("absent-lanes", "the thread is not in its own mask", x, np.flatnonzero(alone))
    return mask


def _lanes(bits: int) -> str:
    return ", ".join(str(i) for i in range(32) if bits >> i & 1)


@machine("shfl", "warp", "b32", "sync up down bfly idx", section="9.7.9.6")
def shfl(form: Form, scope: Scope) -> Step:
    """A register of another thread of the warp."""
    x = form.instruction
    mode = form.one_of("up", "down", "bfly", "idx")
    first = x.operands[0]
    target, valid = (first.first, first.second) if isinstance(first, Pair) else (first, None)
    write = scope.write(target, "b32", x)
    tell = scope.write(valid, "pred", x) if valid is not None else None
    value, by, clamp = (scope.read(o, "b32", x) for o in x.operands[1:4])
    member = scope.read(x.operands[4], "b32", x) if form.has("sync") else None

    def run(w: Wave, m: Mask) -> None:
        if member is not None:
            _members(w, m, member(w), x)
        lane = w.lane.astype(np.int64)
        b, c = (np.asarray(r(w)).astype(np.int64) for r in (by, clamp))
        b, limit, segment = b & 31, c & 31, (c >> 8) & 31
        most = (lane & segment) | (limit & ~segment)
        least = lane & segment
        if mode == "up":
            source = lane - b
            fine = source >= most
        elif mode == "down":
            source = lane + b
            fine = source <= most
        elif mode == "bfly":
            source = lane ^ b
            fine = source <= most
        else:
            source = least | (b & ~segment)
            fine = source <= most
        source = np.where(fine, source, lane)
        v = np.broadcast_to(value(w), (w.size,))
        at = (np.arange(w.size) & ~31) + source
        gone = m.bits & ~m.bits[at]
        if gone.any():
            i = int(np.flatnonzero(gone)[0])
            w.report(
                "absent-lanes", f"reads from lane {int(source[i])}, which does not execute it", x, np.flatnonzero(gone)
            )
        write(w, v[at], m)
        if tell is not None:
            tell(w, np.broadcast_to(fine, (w.size,)), m)

    return run


@machine("vote", "warp", "pred b32", "sync all any uni ballot", section="9.7.9.7")
def vote(form: Form, scope: Scope) -> Step:
    """A predicate of all threads in the mask, or their bits."""
    x = form.instruction
    how = form.one_of("all", "any", "uni", "ballot")
    value = scope.read(x.operands[1], "pred", x)
    member = scope.read(x.operands[2], "b32", x) if form.has("sync") else None
    write = scope.write(x.operands[0], "b32" if how == "ballot" else "pred", x)

    def run(w: Wave, m: Mask) -> None:
        here = np.repeat(lane_bits(m.bits), 32)
        mask = here if member is None else _members(w, m, member(w), x) & here
        yes = np.repeat(lane_bits(m.bits & np.broadcast_to(value(w), (w.size,))), 32) & mask
        if how == "ballot":
            write(w, yes, m)
        elif how == "all":
            write(w, yes == mask, m)
        elif how == "any":
            write(w, yes != 0, m)
        else:
            write(w, (yes == mask) | (yes == 0), m)

    return run


@machine("activemask", "warp", "b32", section="9.7.9.2")
def activemask(form: Form, scope: Scope) -> Step:
    """Which threads of the warp execute this."""
    write = scope.write(form.instruction.operands[0], "b32", form.instruction)
    return lambda w, m: write(w, np.repeat(lane_bits(m.bits), 32), m)


@machine("match", "warp", "b32 b64", "sync any all", section="9.7.13.9")
def match(form: Form, scope: Scope) -> Step:
    """Which threads in the mask hold the same value: of each thread's, or of all."""
    x = form.instruction
    first = x.operands[0]
    target, same = (first.first, first.second) if isinstance(first, Pair) else (first, None)
    write = scope.write(target, "b32", x)
    tell = scope.write(same, "pred", x) if same is not None else None
    value = scope.read(x.operands[1], form.type, x)
    member = scope.read(x.operands[2], "b32", x)

    def run(w: Wave, m: Mask) -> None:
        mask = _members(w, m, member(w), x) & np.repeat(lane_bits(m.bits), 32)
        v = np.broadcast_to(value(w), (w.size,)).reshape(-1, 32)
        equal = v[:, :, None] == v[:, None, :]  # [warps, thread, other]
        bits = np.packbits(equal, axis=2, bitorder="little").view("<u4").reshape(-1) & mask
        if form.has("any"):
            write(w, bits, m)
            return
        every = bits == mask
        write(w, np.where(every, mask, np.uint32(0)), m)
        if tell is not None:
            tell(w, every, m)

    return run


@machine("redux", "warp", "u32 s32 b32 f32", "sync add min max and or xor abs NaN", section="9.7.13.11")
def redux(form: Form, scope: Scope) -> Step:
    """A register reduced over the threads in the mask."""
    x = form.instruction
    op = form.one_of("add", "min", "max", "and", "or", "xor")
    value, write = scope.read(x.operands[1], form.type, x), scope.write(x.operands[0], form.type, x)
    member = scope.read(x.operands[2], "b32", x)

    def run(w: Wave, m: Mask) -> None:
        mask = _members(w, m, member(w), x) & np.repeat(lane_bits(m.bits), 32)
        v = np.broadcast_to(value(w), (w.size,))
        if form.has("abs"):
            v = np.abs(v)
        rows = v.reshape(-1, 32)[:, None, :]
        named = ((mask.reshape(-1, 32)[:, :, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)) != 0
        neutral, reduce = _reduction(op, v.dtype, form.has("NaN"))
        found = reduce(np.where(named, rows, neutral), axis=2).astype(v.dtype).reshape(-1)
        write(w, found, m)

    return run


def _reduction(op: str, kind: np.dtype[Any], nan: bool) -> tuple[Any, Any]:
    """(neutral element, reduction along an axis)."""
    if kind.kind == "f":
        if nan:
            return (kind.type(np.inf), np.min) if op == "min" else (kind.type(-np.inf), np.max)
        return (kind.type(np.nan), np.fmin.reduce) if op == "min" else (kind.type(np.nan), np.fmax.reduce)
    info = np.iinfo(kind)
    table: dict[str, tuple[Any, Any]] = {
        "add": (0, np.add.reduce),
        "min": (info.max, np.min),
        "max": (info.min, np.max),
        "and": (kind.type(0) ^ ~kind.type(0), np.bitwise_and.reduce),
        "or": (0, np.bitwise_or.reduce),
        "xor": (0, np.bitwise_xor.reduce),
    }
    neutral, reduce = table[op]
    if op == "add":
        return kind.type(0), lambda a, axis: np.add.reduce(a, axis=axis, dtype=kind)
    return kind.type(neutral), reduce


@machine("elect", "warp", flags="sync", section="9.7.13.15")
def elect(form: Form, scope: Scope) -> Step:
    """One thread of the mask is told that it is the one: the lowest."""
    x = form.instruction
    first = x.operands[0]
    target, chosen = (first.first, first.second) if isinstance(first, Pair) else (first, first)
    write, tell = scope.write(target, "b32", x), scope.write(chosen, "pred", x)
    member = scope.read(x.operands[1], "b32", x)

    def run(w: Wave, m: Mask) -> None:
        mask = _members(w, m, member(w), x) & np.repeat(lane_bits(m.bits), 32)
        lowest = mask & (np.uint32(0) - mask)
        leader = np.log2(np.maximum(lowest, 1).astype(np.float64)).astype(np.uint32)
        write(w, leader, m)
        tell(w, w.lane == leader, m)

    return run
