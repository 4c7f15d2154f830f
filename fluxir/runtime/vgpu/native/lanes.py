"""What the lanes of a warp tell each other, in LLVM IR: shuffles, votes, matches, reductions.

As in `instructions/warp.py`, the lanes that a member mask names must execute the instruction together; else the launch is left to
the numpy executor.
"""

from __future__ import annotations

from collections.abc import Callable

from ..isa import Form
from ..ptx import Immediate, Instruction, Operand, Pair, type_bytes
from ..scope import Scope
from .block import BlockWriter, Unsupported, lane_bits
from .context import DONE, HEADER
from .machine import object_to, on
from .text import LANES, Text, splat, vector

__all__ = ["HELPERS"]

_V = vector("i32")
HELPERS: dict[str, Callable[[], Text]] = {}


def _helper(function: Callable[[], Text]) -> Callable[[], Text]:
    HELPERS[function().head.partition("@")[2].partition("(")[0]] = function
    return function


def _members(w: BlockWriter, operand: Operand | None, scope: Scope, x: Instruction) -> str:
    """The mask of each lane, of lanes that are here; all that are here where the instruction names none."""
    f = w.f
    here = f.spread("i32", w.bits)
    if operand is None:
        return here
    mask = w.read(operand, "b32", scope, x)
    start = f.load(_V, f.at("%w", HEADER["start"]), 64)
    exist = f.op("xor", "i32", lane_bits(f, f(f"icmp eq {_V} {start}, {splat('i32', DONE)}")), -1)
    elsewhere = f.op("and", "i32", exist, f.op("xor", "i32", w.bits, -1))
    absent = f.op("and", _V, mask, f.spread("i32", elsewhere))
    own = f.op("and", _V, mask, w.special("lanemask_eq", x))
    wrong = f.op("or", "<32 x i1>", f(f"icmp ne {_V} {absent}, zeroinitializer"),
                 f(f"icmp eq {_V} {own}, zeroinitializer"))  # fmt: skip
    object_to(w, f(f"icmp ne i32 {lane_bits(f, f.op('and', '<32 x i1>', wrong, w.mask))}, 0"))
    return f.op("and", _V, mask, here)


def _two(operand: Operand) -> tuple[Operand, Operand | None]:
    return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, None)


# ---- shuffles
def _source(mode: str, lane: int, by: int, clamp: int) -> tuple[int, bool]:
    """(the lane that is read, whether it lies in the segment)."""
    b, limit, segment = by & 31, clamp & 31, clamp >> 8 & 31
    most, least = (lane & segment) | (limit & ~segment), lane & segment
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | (b & ~segment)}[mode]
    fine = source >= most if mode == "up" else source <= most
    return (source if fine else lane), fine


@on("shfl")
def _shuffle(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    mode = form.one_of("up", "down", "bfly", "idx")
    target, valid = _two(x.operands[0])
    if form.has("sync"):
        _members(w, x.operands[4], scope, x)
    value = w.read(x.operands[1], "b32", scope, x)
    by, clamp = x.operands[2:4]
    if isinstance(by, Immediate) and isinstance(clamp, Immediate):
        found = [_source(mode, lane, by.value, clamp.value) for lane in range(LANES)]
        pick = "<" + ", ".join(f"i32 {s}" for s, _ in found) + ">"
        r = f(f"shufflevector {_V} {value}, {_V} poison, {_V} {pick}")
        here = f(f"shufflevector <32 x i1> {w.mask}, <32 x i1> poison, {_V} {pick}")
        fine = "<" + ", ".join(f"i1 {'true' if ok else 'false'}" for _, ok in found) + ">"
    else:
        at, fine = _sources(w, mode, w.read(by, "b32", scope, x), w.read(clamp, "b32", scope, x), x)
        shift = f(f"lshr {_V} {f.spread('i32', w.bits)}, {at}")
        here = f.cast("trunc", _V, shift, "<32 x i1>")
        f.store(_V, value, w.values, 64)
        f.store(_V, at, w.addresses, 64)
        w.helper("permute", ("ptr", w.values), ("ptr", w.addresses))
        r = f.load(_V, w.values, 64)
    gone = f.op("and", "<32 x i1>", w.mask, f.op("xor", "<32 x i1>", here, splat("i1", "true")))
    object_to(w, f(f"icmp ne i32 {lane_bits(f, gone)}, 0"))
    w.write_bits(target, "b32", r, scope, x)
    if valid is not None:
        w.write(valid, "pred", fine, scope, x)


def _sources(w: BlockWriter, mode: str, by: str, clamp: str, x: Instruction) -> tuple[str, str]:
    """`_source` for numbers in registers."""
    f = w.f

    def both(name: str, a: str, b: str) -> str:
        return f.op(name, _V, a, b)

    def low(v: str) -> str:
        return both("and", v, splat("i32", 31))

    lane = w.special("laneid", x)
    b, limit, segment = low(by), low(clamp), low(both("lshr", clamp, splat("i32", 8)))
    least, outside = both("and", lane, segment), both("xor", segment, splat("i32", -1))
    most = both("or", least, both("and", limit, outside))
    source = {"up": ("sub", lane, b), "down": ("add", lane, b), "bfly": ("xor", lane, b),
              "idx": ("or", least, both("and", b, outside))}[mode]  # fmt: skip
    at = both(*source)
    fine = f(f"icmp {'sge' if mode == 'up' else 'sle'} {_V} {at}, {most}")
    return f(f"select <32 x i1> {fine}, {_V} {at}, {_V} {lane}"), fine


@_helper
def _permute() -> Text:
    """`values[i] = values[lanes[i] & 31]`, for 32 words."""
    f = Text("define void @permute(ptr %values, ptr noalias %lanes) nounwind")
    copy = f.slot(_V, 64)
    f.store(_V, f.load(_V, "%values", 64), copy, 64)
    for i in range(LANES):
        at = f.op("and", "i32", f.load("i32", f.at("%lanes", 4 * i)), 31)
        f.store("i32", f.load("i32", f(f"getelementptr i32, ptr {copy}, i32 {at}")), f.at("%values", 4 * i))
    f.do("ret void")
    return f


# ---- votes
@on("vote")
def _vote(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    how = form.one_of("all", "any", "uni", "ballot")
    p = w.read(x.operands[1], "pred", scope, x)
    mask = _members(w, x.operands[2] if form.has("sync") else None, scope, x)
    yes = f.op("and", _V, f.spread("i32", lane_bits(f, f.op("and", "<32 x i1>", p, w.mask))), mask)
    if how == "ballot":
        w.write_bits(x.operands[0], "b32", yes, scope, x)
        return
    every, none = f(f"icmp eq {_V} {yes}, {mask}"), f(f"icmp eq {_V} {yes}, zeroinitializer")
    if how == "any":
        found = f.op("xor", "<32 x i1>", none, splat("i1", "true"))
    else:
        found = every if how == "all" else f.op("or", "<32 x i1>", every, none)
    w.write(x.operands[0], "pred", found, scope, x)


@on("activemask")
def _active(w: BlockWriter, form: Form, scope: Scope) -> None:
    w.write_bits(form.instruction.operands[0], "b32", w.f.spread("i32", w.bits), scope, form.instruction)


@on("elect")
def _elect(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    target, chosen = _two(x.operands[0])
    mask = _members(w, x.operands[1], scope, x)
    leader = f.call(_V, "llvm.cttz.v32i32", (_V, mask), ("i1", "false"))
    w.write_bits(target, "b32", leader, scope, x)
    if chosen is not None:
        w.write(chosen, "pred", f(f"icmp eq {_V} {leader}, {w.special('laneid', x)}"), scope, x)


# ---- matches and reductions, by a loop over the lanes that a mask names
@on("match")
def _match(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    target, same = _two(x.operands[0])
    mask = _members(w, x.operands[2], scope, x)
    value = w.read(x.operands[1], form.type, scope, x)
    if type_bytes(form.type) == 4:
        value = f.cast("zext", _V, value, vector("i64"))
    f.store(vector("i64"), value, w.values, 64)
    f.store(_V, mask, w.addresses, 64)
    w.helper("match_lanes", ("ptr", w.values), ("ptr", w.addresses))
    equal = f.load(_V, w.addresses, 64)
    if form.has("any"):
        w.write_bits(target, "b32", equal, scope, x)
        return
    every = f(f"icmp eq {_V} {equal}, {mask}")
    w.write_bits(target, "b32", f(f"select <32 x i1> {every}, {_V} {mask}, {_V} zeroinitializer"), scope, x)
    if same is not None:
        w.write(same, "pred", every, scope, x)


@_helper
def _match_lanes() -> Text:
    """`masks[i] &= ` the lanes that hold what lane i does; values are 64 bits wide."""
    f = Text("define void @match_lanes(ptr noalias %values, ptr noalias %masks) nounwind")
    kind = vector("i64")
    values = f.load(kind, "%values", 64)
    with f.loop("i64", "0", str(LANES)) as i:
        mine = f.spread("i64", f.load("i64", f(f"getelementptr i64, ptr %values, i64 {i}")))
        bits = lane_bits(f, f(f"icmp eq {kind} {values}, {mine}"))
        place = f(f"getelementptr i32, ptr %masks, i64 {i}")
        f.store("i32", f.op("and", "i32", f.load("i32", place), bits), place)
    f.do("ret void")
    return f


_NEUTRAL = {"add": 0, "or": 0, "xor": 0, "and": -1, "umin": -1, "umax": 0, "smin": (1 << 31) - 1, "smax": -(1 << 31)}


@on("redux")
def _reduce(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    op = form.one_of("add", "min", "max", "and", "or", "xor")
    if form.type not in ("u32", "s32", "b32"):
        raise Unsupported(x, "sums of floats over a warp are not executed natively")
    name = op if op not in ("min", "max") else ("s" if form.type == "s32" else "u") + op
    mask = _members(w, x.operands[2], scope, x)
    f.store(_V, w.read(x.operands[1], form.type, scope, x), w.values, 64)
    f.store(_V, mask, w.addresses, 64)
    w.helper(f"reduce_{name}", ("ptr", w.values), ("ptr", w.addresses))
    w.write_bits(x.operands[0], form.type, f.load(_V, w.addresses, 64), scope, x)


def _reduction(name: str) -> Callable[[], Text]:
    def make() -> Text:
        """`masks[i] = ` the values of the lanes that it names, reduced."""
        f = Text(f"define void @reduce_{name}(ptr noalias %values, ptr noalias %masks) nounwind")
        values = f.load(_V, "%values", 64)
        with f.loop("i64", "0", str(LANES)) as i:
            place = f(f"getelementptr i32, ptr %masks, i64 {i}")
            named = f.cast("bitcast", "i32", f.load("i32", place), "<32 x i1>")
            some = f(f"select <32 x i1> {named}, {_V} {values}, {_V} {splat('i32', _NEUTRAL[name])}")
            f.store("i32", f.call("i32", f"llvm.vector.reduce.{name}.v32i32", (_V, some)), place)
        f.do("ret void")
        return f

    return make


for _name in _NEUTRAL:
    _helper(_reduction(_name))
