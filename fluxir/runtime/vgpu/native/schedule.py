"""Runs blocks of a launch one after the other, in LLVM IR: `void blocks(ptr context)` from `block` to below `last_block`.

The warps of a block take turns: each runs until its lanes wait or have ended, and when nobody can run, those who wait at a
barrier go on. That is the order of `wave.Wave` for each warp, so the same instructions run for the same lanes. Here only a
barrier is complete at which every thread of the block waits; anything else (threads that have exited, two barriers at once) stops
the launch for the numpy executor to look at.
"""

from __future__ import annotations

from .context import DONE, FINDING, HEADER, WAITS_BLOCK, WAITS_WARP, field, field_address
from .order import THREAD_BITS
from .text import Text, splat, vector

__all__ = ["scheduler"]

PATIENCE = 1000  # rounds of spinning loops before other warps run
IDLE = 50  # times that all warps may have done so without a barrier
_V = vector("i32")
_NEWEST = 1 << (31 - THREAD_BITS)  # the clocks start again before they reach it


def scheduler() -> list[Text]:
    return [_blocks(), _release_warp()]


def _set(f: Text, name: str, value: str | int) -> None:
    f.store("i64", str(value), field_address(f, name))


def _stop_if(f: Text, condition: str) -> None:
    """Leave the function where the condition holds."""
    go, on = f.name("stop"), f.name("on")
    f.do(f"br i1 {condition}, label %{go}, label %{on}")
    f.label(go)
    f.do("ret void")
    f.label(on)


def _least(f: Text, state: str) -> str:
    return f.call("i32", "llvm.vector.reduce.umin.v32i32", (_V, f.load(_V, state, 64)))


def _copy(f: Text, to: str, source: str, n: str) -> None:
    f.call("void", "llvm.memcpy.p0.p0.i64", ("ptr", to), ("ptr", source), ("i64", n), ("i1", "false"))


def _zero(f: Text, to: str, n: str) -> None:
    f.call("void", "llvm.memset.p0.i64", ("ptr", to), ("i8", "0"), ("i64", n), ("i1", "false"))


def _blocks() -> Text:
    f = Text("define void @blocks(ptr %c) nounwind")
    states, size, warps = field(f, "warp_state", "ptr"), field(f, "warp_bytes"), field(f, "warps")
    clocks, warp, enter = field(f, "clocks", "ptr"), field(f, "code", "ptr"), field(f, "enter", "ptr")
    with f.loop("i64", field(f, "block"), field(f, "last_block")) as b:
        _begin(f, b, states, size, warps, clocks, enter)
        idle = f.var("i64", "0")
        again, done = f.name("again"), f.name("done")
        f.do(f"br label %{again}")
        f.label(again)
        spinning, waiting = f.var("i1", "false"), f.var("i32", str(DONE))
        f.store("i1", "false", spinning)
        f.store("i32", str(DONE), waiting)
        with f.loop("i64", "0", warps) as i:
            state = f.at(states, f.op("mul", "i64", i, size))
            _set(f, "first_thread", f.op("shl", "i64", i, 5))
            clock = f(f"getelementptr i64, ptr {clocks}, i64 {i}")
            _set(f, "clock", f.load("i64", clock))
            _set(f, "spins", PATIENCE)
            turn, rest = f.name("turn"), f.name("rest")
            f.do(f"br label %{turn}")
            f.label(turn)
            with f.when(f(f"icmp ult i32 {_least(f, state)}, {WAITS_BLOCK}")):
                f(f"call i32 {warp}(ptr %c, ptr {state})")
            _stop_if(f, f(f"icmp ne i64 {field(f, 'stop')}, 0"))
            least = _least(f, state)
            f.store("i64", field(f, "clock"), clock)
            with f.when(f(f"icmp ult i32 {least}, {WAITS_BLOCK}")):
                f.store("i1", "true", spinning)
            stuck = f(f"icmp uge i32 {least}, {WAITS_BLOCK}")
            some = f(f"icmp ne i32 {least}, {DONE}")
            highest = f.call(
                "i1", "release_warp", ("ptr", "%c"), ("ptr", state), ("i1", f.op("and", "i1", stuck, some))
            )
            f.store("i64", field(f, "clock"), clock)
            f.do(f"br i1 {highest}, label %{turn}, label %{rest}")
            f.label(rest)
            f.store("i32", f.call("i32", "llvm.umin.i32", ("i32", f.load("i32", waiting)), ("i32", least)), waiting)
        with f.when(f.load("i1", spinning)):
            f.add("i64", idle, 1)
            with f.when(f(f"icmp ugt i64 {f.load('i64', idle)}, {IDLE}")):
                _set(f, "stop", FINDING)
                f.do("ret void")
                f.label(f.name("never"))
            f.do(f"br label %{again}")
            f.label(f.name("never"))
        where = f.load("i32", waiting)
        ended = f(f"icmp eq i32 {where}, {DONE}")
        release = f.name("release")
        f.do(f"br i1 {ended}, label %{done}, label %{release}")
        f.label(release)
        _release_block(f, where, states, size, warps, clocks)
        _stop_if(f, f(f"icmp ne i64 {field(f, 'stop')}, 0"))
        f.store("i64", "0", idle)
        f.do(f"br label %{again}")
        f.label(done)
        _check_copies(f, warps)
    f.do("ret void")
    return f


def _check_copies(f: Text, warps: str) -> None:
    """Asynchronous copies that nobody waited for when the block has ended."""
    with f.loop("i64", "0", f.op("shl", "i64", warps, 5)) as thread:
        head = f.at(field(f, "groups", "ptr"), f.op("shl", "i64", thread, 5))
        taken, put = f.load("i64", f.at(head, 8)), f.load("i64", f.at(head, 16))
        with f.when(f(f"icmp ne i64 {taken}, {put}")):
            _set(f, "stop", FINDING)
    _stop_if(f, f(f"icmp ne i64 {field(f, 'stop')}, 0"))


def _begin(f: Text, b: str, states: str, size: str, warps: str, clocks: str, enter: str) -> None:
    """Everything as it is when a block starts."""
    x, y = field(f, "nctaid.x"), field(f, "nctaid.y")
    _set(f, "block", b)
    _set(f, "ctaid.x", f.op("urem", "i64", b, x))
    rest = f.op("udiv", "i64", b, x)
    _set(f, "ctaid.y", f.op("urem", "i64", rest, y))
    _set(f, "ctaid.z", f.op("udiv", "i64", rest, y))
    shared = field(f, "shared_bytes")
    _copy(f, field(f, "shared_shadow", "ptr"), field(f, "shared_states", "ptr"), shared)
    with f.when(f(f"icmp eq i64 {field(f, 'checks')}, 0")):
        _zero(f, field(f, "shared", "ptr"), shared)
    local = f.op("mul", "i64", field(f, "local_bytes"), f.op("shl", "i64", warps, 5))
    _copy(f, field(f, "local_shadow", "ptr"), field(f, "local_states", "ptr"), local)
    with f.when(f(f"icmp eq i64 {field(f, 'checks')}, 0")):
        _zero(f, field(f, "local", "ptr"), local)
    with f.when(f(f"icmp ugt i64 {field(f, 'now')}, {_NEWEST // 2}")):  # the clocks start again
        _set(f, "now", 1)
        with f.when(f(f"icmp ne i64 {field(f, 'shared_races')}, 0")):
            for who in ("writer", "reader", "other", "adder", "other_adder"):
                _zero(f, field(f, f"shared_{who}", "ptr"), field(f, "shared_race_bytes"))
    _meet(f, warps, clocks)
    _set(f, "steps", f.op("mul", "i64", field(f, "step_limit"), warps))
    with f.loop("i64", "0", warps) as i:
        state = f.at(states, f.op("mul", "i64", i, size))
        f.store(_V, f.load(_V, f.at(state, HEADER["start"]), 64), state, 64)
        f.store("i32", "0", f.at(state, HEADER["turn"]))
        f.do(f"call void {enter}(ptr {state})")


def _meet(f: Text, warps: str, clocks: str) -> None:
    """All threads of the block have met."""
    now = field(f, "now")
    _set(f, "floor", now)
    _set(f, "now", f.op("add", "i64", now, 1))
    with f.loop("i64", "0", warps) as i:
        f.store("i64", field(f, "now"), f(f"getelementptr i64, ptr {clocks}, i64 {i}"))


def _release_block(f: Text, where: str, states: str, size: str, warps: str, clocks: str) -> None:
    """Let all threads go on, who must wait at the place `where`; else stop."""
    count, every, fine = f.var("i64", "0"), f.var("i64", "0"), f.var("i1", "true")
    f.store("i64", "0", count)
    f.store("i64", "0", every)
    f.store("i1", "true", fine)
    here, one = f.spread("i32", where), splat("i32", DONE)
    with f.loop("i64", "0", warps) as i:
        state = f.at(states, f.op("mul", "i64", i, size))
        pc, start = f.load(_V, state, 64), f.load(_V, f.at(state, HEADER["start"]), 64)
        absent = f(f"icmp eq {_V} {start}, {one}")
        there = f.op("or", "<32 x i1>", f(f"icmp eq {_V} {pc}, {here}"), absent)
        f.store("i1", f.op("and", "i1", f.load("i1", fine), f.call("i1", "llvm.vector.reduce.and.v32i1", ("<32 x i1>", there))),
                fine)  # fmt: skip
        exists = f.op("xor", "<32 x i1>", absent, splat("i1", "true"))
        brought = f(f"icmp ne {_V} {f.load(_V, f.at(state, HEADER['brought']), 64)}, zeroinitializer")
        for place, mask in ((count, f.op("and", "<32 x i1>", brought, exists)), (every, exists)):
            bits = f.cast("bitcast", "<32 x i1>", mask, "i32")
            f.add("i64", place, f.cast("zext", "i32", f.call("i32", "llvm.ctpop.i32", ("i32", bits)), "i64"))
    of_block = f(f"icmp ult i32 {where}, {WAITS_WARP}")
    good = f.op("and", "i1", f.load("i1", fine), of_block)
    with f.when(f.op("xor", "i1", good, "true")):
        _set(f, "stop", FINDING)
    with f.when(good):
        yes, all_of = f.load("i64", count), f.load("i64", every)
        _set(f, "popc", yes)
        _set(f, "and", f.cast("zext", "i1", f(f"icmp eq i64 {yes}, {all_of}"), "i64"))
        _set(f, "or", f.cast("zext", "i1", f(f"icmp ne i64 {yes}, 0"), "i64"))
        number = f.op("sub", "i32", where, WAITS_BLOCK)
        next_ = f.load("i32", f(f"getelementptr i32, ptr {field(f, 'resume', 'ptr')}, i32 {number}"))
        go = f.spread("i32", next_)
        with f.loop("i64", "0", warps) as i:
            state = f.at(states, f.op("mul", "i64", i, size))
            start = f.load(_V, f.at(state, HEADER["start"]), 64)
            absent = f(f"icmp eq {_V} {start}, {one}")
            f.store(_V, f(f"select <32 x i1> {absent}, {_V} {one}, {_V} {go}"), state, 64)
        _meet(f, warps, clocks)


def _release_warp() -> Text:
    """`i1 release_warp(context, state, i1 stuck)`: let those lanes go on whose barrier of the warp is complete, if the warp
    cannot run otherwise; whether there were any."""
    f = Text("define internal i1 @release_warp(ptr %c, ptr %w, i1 %stuck) nounwind")
    look, none = f.name("look"), f.name("none")
    f.do(f"br i1 %stuck, label %{look}, label %{none}")
    f.label(none)
    f.do("ret i1 false")
    f.label(look)
    pc = f.load(_V, "%w", 64)
    ended = f(f"icmp eq {_V} {pc}, {splat('i32', DONE)}")
    beyond = f(f"icmp uge {_V} {pc}, {splat('i32', WAITS_WARP)}")
    waits = f.op("and", "<32 x i1>", beyond, f.op("xor", "<32 x i1>", ended, splat("i1", "true")))
    present, gone = (f.cast("bitcast", "<32 x i1>", v, "i32") for v in (waits, ended))
    missing = f.op("xor", "i32", f.op("or", "i32", present, gone), -1)  # alive and elsewhere
    some, all_name = f.var("i1", "false"), f.var("i32", "-1")  # the lanes that all masks name
    left = f.var("i32", gone)
    with f.bits(present) as lane:
        member = f.load("i32", f(f"getelementptr i32, ptr {f.at('%w', HEADER['member'])}, i64 {lane}"))
        needed = f.op("and", "i32", member, missing)
        with f.when(f(f"icmp eq i32 {needed}, 0")):
            place = f(f"getelementptr i32, ptr %w, i64 {lane}")
            number = f.op("sub", "i32", f.load("i32", place), WAITS_WARP)
            f.store("i32", f.load("i32", f(f"getelementptr i32, ptr {field(f, 'resume', 'ptr')}, i32 {number}")), place)
            f.store("i1", "true", some)
            f.store("i32", f.op("and", "i32", f.load("i32", all_name), f.op("or", "i32", member, gone)), all_name)
            f.store(
                "i32",
                f.op("or", "i32", f.load("i32", left), f.op("shl", "i32", 1, f.cast("trunc", "i64", lane, "i32"))),
                left,
            )
    whole = f.op("and", "i32", f.load("i32", all_name), f.load("i32", left))
    with f.when(f(f"icmp eq i32 {whole}, -1")):  # lanes that only met some others are left to the numpy executor
        now = f.op("add", "i64", field(f, "now"), 1)
        _set(f, "now", now)
        _set(f, "clock", now)
    f.do(f"ret i1 {f.load('i1', some)}")
    return f
