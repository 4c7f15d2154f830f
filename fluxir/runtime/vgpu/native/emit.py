"""A linked kernel as one LLVM function: `i32 warp(ptr context, ptr state)` runs a warp until all its lanes wait or have ended.

It goes round: of the basic blocks in which a lane stands, that with the lowest number runs for its lanes, as in `wave.Wave`.
Every register is a vector of 32 lanes. Within a block it is an LLVM value; a register that later blocks need is written back to
the warp's state at the end of the block, for the lanes that ran it (`block`).
"""

from __future__ import annotations

from ..code import Code
from ..ptx import type_bytes
from .block import BlockWriter, Emitted, Unsupported
from .context import REGISTERS, field, field_address
from .text import LANES, Text, splat, vector, word

__all__ = ["Emitted", "Unsupported", "emit"]


def emit(code: Code, granules: tuple[int, int]) -> Emitted:
    """`granules`: bytes that the race checks tell apart in global and shared memory. `Unsupported` where it cannot be done."""
    live = _Liveness(code, granules)
    offsets, top = {}, REGISTERS
    for slot, kind in enumerate(code.registers):
        offsets[slot] = top
        top += LANES * (4 if kind == "pred" else max(1, type_bytes(kind)))
        top = -(-top // 64) * 64
    f = Text("define i32 @warp(ptr noalias %c, ptr noalias %w) nounwind")
    out = Emitted(f, top)
    addresses, values = f.slot("[32 x i64]", 64), f.slot("[8 x [32 x i64]]", 64)
    f.do("br label %dispatch")
    for number, block in enumerate(code.blocks):
        f.label(f"B{number}")
        BlockWriter(code, block, number, f, out, offsets, live.out[number], (addresses, values), granules).run()
    for i, (how, kind, slot, after) in enumerate(out.resumptions):
        _resumption(f, len(code.blocks) + i, how, kind, code.registers[slot], offsets[slot], after)
    _dispatch(f, len(code.blocks) + len(out.resumptions))
    out.enter = _enter(code, offsets, live.entry)
    return out


def _enter(code: Code, offsets: dict[int, int], slots: set[int]) -> Text:
    """`void enter(ptr state)`: registers that may be read before they are written hold what `Code.fresh` says."""
    f = Text("define void @enter(ptr noalias %w) nounwind")
    fresh = code.fresh()
    for slot in sorted(slots):
        kind = code.registers[slot]
        held = "i32" if kind == "pred" else word(kind)
        value = int(fresh[slot]) if kind != "pred" else 0
        bits = int(held[1:])
        f.store(
            vector(held),
            splat(held, value - (1 << bits) if value >> (bits - 1) else value),
            f.at("%w", offsets[slot]),
            64,
        )
    f.do("ret void")
    return f


def _dispatch(f: Text, blocks: int) -> None:
    """Choose the block to run next."""
    f.label("dispatch")
    stop = f(f"load i64, ptr {field_address(f, 'stop')}")
    f.do(f"br i1 {f(f'icmp ne i64 {stop}, 0')}, label %leave, label %choose")
    f.label("choose")
    pc = f.load(vector("i32"), "%w", 64)
    least = f.call("i32", "llvm.vector.reduce.umin.v32i32", (vector("i32"), pc))
    cases = " ".join(f"i32 {i}, label %B{i}" for i in range(blocks))
    f.do(f"switch i32 {least}, label %leave [ {cases} ]")
    f.label("leave")
    f.do("ret i32 0")


def _resumption(f: Text, number: int, how: str, kind: str, register: str, offset: int, after: int) -> None:
    """The block of `BlockWriter.resumption`. All lanes that wait are released together, so nobody else stands here."""
    f.label(f"B{number}")
    pc = f.load(vector("i32"), "%w", 64)
    mask = f(f"icmp eq {vector('i32')} {pc}, {splat('i32', number)}")
    found = f.spread("i32", field(f, how, "i32"))
    if register == "pred":
        nonzero = f(f"icmp ne {vector('i32')} {found}, zeroinitializer")
        found = f.cast("sext", vector("i1"), nonzero, vector("i32"))
    held = vector("i32" if register == "pred" else word(register))
    found = f.cast("trunc" if word(register) == "i16" else "zext", vector("i32"), found, held)
    place = f.at("%w", offset)
    f.store(held, f(f"select <32 x i1> {mask}, {held} {found}, {held} {f.load(held, place, 64)}"), place, 64)
    f.store(
        vector("i32"),
        f(f"select <32 x i1> {mask}, {vector('i32')} {splat('i32', after)}, {vector('i32')} {pc}"),
        "%w",
        64,
    )
    f.do("br label %dispatch")


class _Liveness:
    """Which registers are needed after a block. Found by writing each block once, to see what it reads and writes."""

    def __init__(self, code: Code, granules: tuple[int, int]) -> None:
        seen = []
        offsets = dict.fromkeys(range(len(code.registers)), 0)
        for number, block in enumerate(code.blocks):
            f = Text("")
            writer = BlockWriter(code, block, number, f, Emitted(f, 0), offsets, frozenset(), ("%a", "%v"), granules)
            writer.run()
            seen.append(writer)
        into: list[set[int]] = [set(w.loaded) for w in seen]
        self.out: list[frozenset[int]] = [frozenset()] * len(seen)
        changed = True
        while changed:
            changed = False
            for i in reversed(range(len(seen))):
                out = frozenset().union(*(into[s] for s in seen[i].successors)) if seen[i].successors else frozenset()
                if out != self.out[i]:
                    self.out[i] = out
                    changed = True
                more = out - seen[i].settled
                if not more <= into[i]:
                    into[i] |= more
                    changed = True
        self.entry = into[0]
