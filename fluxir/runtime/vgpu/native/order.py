"""The race checks of `races.py` in LLVM IR: who touched a granule of memory last, and whether something orders the two.

Global memory: of each granule the last block that wrote it, one that read it, and one that changed it atomically. Any conflict
between blocks is objected to, fences or not: whether they order it the numpy executor says. Blocks have numbers above `many` that
no earlier launch has used, so what is there from those counts for nothing; `many` itself stands for several blocks.

Shared memory: of each granule the last thread that wrote it, two that read it and two that changed it atomically, each with its
warp's clock, packed as `clock << 10 | thread`. Only barriers of the whole block and of a warp order anything here (others are
left to the numpy executor), so a clock not above `floor` has been seen by everybody. Unlike there, a reader that a barrier has
overtaken gives its place away, and atomics conflict with earlier reads: warps run one after the other here, and nothing may be
missed for it.
Stores of one value by several warps "at once" are no race: at once is the same instruction after as many blocks (`tag`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .context import FINDING, field, field_address
from .text import Text, splat

if TYPE_CHECKING:
    from .accesses import Access

__all__ = ["THREAD_BITS", "check_global", "check_source", "check_same_values", "check_shared", "side_by_side_global"]

THREAD_BITS = 10


def _object(f: Text, condition: str) -> None:
    with f.when(condition):
        f.store("i64", str(FINDING), field_address(f, "stop"))


def _tested(x: Access) -> tuple[str, ...]:
    """Whose earlier accesses an access conflicts with."""
    return {"load": ("writer", "atomic"), "store": ("writer", "reader", "atomic"), "atomic": ("writer", "reader")}[
        x.what
    ]


# ---- global memory, between blocks
_NOTED = {"load": "reader", "store": "writer", "atomic": "atomic"}


def _me(f: Text) -> tuple[str, str]:
    """(this block's number among those of all launches, the number that stands for several of this launch)."""
    many = field(f, "many", "i32")
    return f.op("add", "i32", f.op("add", "i32", many, 1), field(f, "block", "i32")), many


def check_global(f: Text, x: Access, at: str) -> None:
    with f.when(f(f"icmp ne i64 {field(f, 'global_races')}, 0")):
        me, many = _me(f)
        first = f.op("udiv", "i64", at, x.granule)
        with f.loop("i64", first, f.op("add", "i64", first, max(1, x.width // x.granule))) as g:
            place = {
                who: f(f"getelementptr i32, ptr {field(f, who, 'ptr')}, i64 {g}")
                for who in ("writer", "reader", "atomic")
            }
            swaps = x.operation.startswith("cas")
            for who in ("writer",) if swaps else _tested(x):
                found = f.load("i32", place[who])
                other, there = f(f"icmp ne i32 {found}, {me}"), f(f"icmp uge i32 {found}, {many}")
                _object(f, f.op("and", "i1", other, there))
            mine = me
            if x.what != "store":  # by several blocks: none of them may touch it otherwise
                old = f.load("i32", place[_NOTED[x.what]])
                alone = f.op("or", "i1", f(f"icmp eq i32 {old}, {me}"), f(f"icmp ult i32 {old}, {many}"))
                mine = f(f"select i1 {alone}, i32 {me}, i32 {many}")
            if not swaps:
                f.store("i32", mine, place[_NOTED[x.what]])


def check_source(f: Text, at: str, granule: int) -> None:
    """The source of an asynchronous copy: objects where this block has written it, for whether that was before the copy in the
    order of the numpy executor is not known here."""
    with f.when(f(f"icmp ne i64 {field(f, 'global_races')}, 0")):
        me, _ = _me(f)
        writer = f(f"getelementptr i32, ptr {field(f, 'writer', 'ptr')}, i64 {f.op('udiv', 'i64', at, granule)}")
        _object(f, f(f"icmp eq i32 {f.load('i32', writer)}, {me}"))


def side_by_side_global(f: Text, x: Access, at: str, total: int) -> str:
    """The same for `total` bytes in a row, where no other block was before; i1: whether that is so, and then it is noted."""
    fine = f.var("i1", "true")
    n = total // x.granule
    row = f"<{n} x i32>"
    with f.when(f(f"icmp ne i64 {field(f, 'global_races')}, 0")):
        me, many = (_row(f, row, v) for v in _me(f))
        first = f.op("udiv", "i64", at, x.granule)
        bad = ""
        for who in _tested(x):
            found = f.load(row, f(f"getelementptr i32, ptr {field(f, who, 'ptr')}, i64 {first}"), 4)
            both = f.op("and", f"<{n} x i1>", f(f"icmp ne {row} {found}, {me}"), f(f"icmp uge {row} {found}, {many}"))
            bad = f.op("or", f"<{n} x i1>", bad, both) if bad else both
        conflict = f.call("i1", f"llvm.vector.reduce.or.v{n}i1", (f"<{n} x i1>", bad))
        f.store("i1", f.op("xor", "i1", conflict, "true"), fine)
        with f.when(f.load("i1", fine)):
            to = f(f"getelementptr i32, ptr {field(f, _NOTED[x.what], 'ptr')}, i64 {first}")
            if x.what == "load":
                old = f.load(row, to, 4)
                alone = f.op("or", f"<{n} x i1>", f(f"icmp eq {row} {old}, {me}"), f(f"icmp ult {row} {old}, {many}"))
                me = f(f"select <{n} x i1> {alone}, {row} {me}, {row} {many}")
            f.store(row, me, to, 4)
    return f.load("i1", fine)


def _row(f: Text, kind: str, value: str) -> str:
    one = f(f"insertelement {kind} poison, i32 {value}, i64 0")
    return f(f"shufflevector {kind} {one}, {kind} poison, <{kind[1:].split()[0]} x i32> zeroinitializer")


# ---- shared memory, between threads
_WHO = ("writer", "reader", "other", "adder", "other_adder", "tag")
_CONFLICTS = {
    "load": ("writer", "adder", "other_adder"),
    "store": ("writer", "reader", "other", "adder", "other_adder"),
    "atomic": ("writer", "reader", "other"),
}
_THREADS = (1 << THREAD_BITS) - 1


class _Granule:
    """A granule of a lane's access, or `n` of them from number `k` (i64) on: who touched them, and who touches them now."""

    def __init__(self, f: Text, x: Access, offsets: str, lane: str, k: str, n: int = 1) -> None:
        self.kind, self.n = f"<{n} x i32>", n
        self.offset = f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}"))
        self.lane, self.k = lane, k
        g = f.op("add", "i64", f.op("udiv", "i64", self.offset, x.granule), k)
        self.me = f.op("add", "i32", field(f, "first_thread", "i32"), f.cast("trunc", "i64", lane, "i32"))
        self.place = {w: f(f"getelementptr i32, ptr {field(f, f'shared_{w}', 'ptr')}, i64 {g}") for w in _WHO}

    def load(self, f: Text, who: str) -> str:
        return f.load(self.kind, self.place[who], 4)

    def store(self, f: Text, who: str, value: str) -> None:
        f.store(self.kind, value, self.place[who], 4)

    def test(self, f: Text, order: str, a: str, b: str) -> str:
        return f(f"icmp {order} {self.kind} {a}, {b}")

    def both(self, f: Text, how: str, a: str, b: str) -> str:
        return f.op(how, f"<{self.n} x i1>", a, b)

    def apart(self, f: Text, found: str) -> str:
        """The bits in which the thread of an entry differs from this one: zero for the same, below 32 within a warp."""
        differ = f.op("xor", self.kind, found, _row(f, self.kind, self.me))
        return f.op("and", self.kind, differ, splat("i32", _THREADS))


def check_shared(f: Text, x: Access, offsets: str, mask: str) -> None:
    """For the lanes `mask` of a warp, whose byte offsets are at `offsets`, before anything is stored."""
    conflicts = ("writer",) if x.operation.startswith("cas") else _CONFLICTS[x.what]  # a loop around cas may read late
    with f.when(f(f"icmp ne i64 {field(f, 'shared_races')}, 0")):
        stale = _first_fresh(f)
        clock = f.op("shl", "i32", field(f, "clock", "i32"), THREAD_BITS)
        many = max(1, x.width // x.granule)
        with f.bits(mask) as lane:
            whole = _Granule(f, x, offsets, lane, "0", many)
            seen = _row(f, whole.kind, stale)
            open_ = ""
            for who in conflicts:  # those that not everybody has seen
                fresh = whole.test(f, "uge", whole.load(f, who), seen)
                open_ = whole.both(f, "or", open_, fresh) if open_ else fresh
            with f.when(f.call("i1", f"llvm.vector.reduce.or.v{many}i1", (f"<{many} x i1>", open_))):
                with f.loop("i64", "0", str(many)) as k:
                    _compare(f, x, _Granule(f, x, offsets, lane, k), conflicts, _row(f, "<1 x i32>", stale), clock)
        if not x.operation.startswith("cas"):
            with f.bits(mask) as lane:
                _note(f, x, _Granule(f, x, offsets, lane, "0", many), stale, clock)


def _compare(f: Text, x: Access, g: _Granule, conflicts: tuple[str, ...], seen: str, clock: str) -> None:
    """Object to an access of one granule that nothing orders after the earlier ones."""
    for who in conflicts:
        found = g.load(f, who)
        apart = g.apart(f, found)
        bad = g.both(f, "and", g.test(f, "uge", found, seen), g.test(f, "ne", apart, "zeroinitializer"))
        other_warp = g.test(f, "uge", apart, splat("i32", 32))
        not_synced = "zeroinitializer" if x.convergent else g.test(f, "uge", found, _row(f, g.kind, clock))
        bad = g.both(f, "and", bad, g.both(f, "or", other_warp, not_synced))
        conflict = f(f"extractelement <1 x i1> {bad}, i64 0")
        if who == "writer" and x.what == "store":
            conflict = f.op("and", "i1", conflict, f.op("xor", "i1", _at_once(f, x, g), "true"))
        _object(f, conflict)


def _note(f: Text, x: Access, g: _Granule, stale: str, clock: str) -> None:
    """Who it was."""
    now = _row(f, g.kind, f.op("or", "i32", clock, g.me))
    if x.what == "store":
        g.store(f, "writer", now)
        g.store(f, "tag", _row(f, g.kind, field(f, "tag", "i32")))
        return
    first, other = ("reader", "other") if x.what == "load" else ("adder", "other_adder")
    old, second = g.load(f, first), g.load(f, other)
    apart, seen = g.apart(f, old), _row(f, g.kind, stale)
    fresh, another = g.test(f, "uge", old, seen), g.test(f, "ne", apart, "zeroinitializer")
    free, my_own = g.test(f, "ult", second, seen), g.test(f, "eq", g.apart(f, second), "zeroinitializer")
    better = g.both(f, "or", g.test(f, "uge", apart, splat("i32", 32)), g.both(f, "or", free, my_own))
    keep = g.both(f, "and", g.both(f, "and", fresh, another), better)
    g.store(f, other, f(f"select <{g.n} x i1> {keep}, {g.kind} {old}, {g.kind} {second}"))
    g.store(f, first, now)


def _at_once(f: Text, x: Access, g: _Granule) -> str:
    """Whether the last writer of a granule stored the lane's value by the same instruction at the same turn (i1)."""
    same = f(f"icmp eq i32 {f.load('i32', g.place['tag'])}, {field(f, 'tag', 'i32')}")
    if x.operation == "copy":  # nobody looks at the values of asynchronous copies
        return same
    kind, there = f"i{8 * x.granule}", f"i{8 * x.unit}"
    byte = f.op("mul", "i64", g.k, x.granule)  # of the access
    element = f.op("add", "i64", g.lane, f.op("mul", "i64", f.op("udiv", "i64", byte, x.unit), 32))
    value = f.at(f(f"getelementptr {there}, ptr %values, i64 {element}"), f.op("urem", "i64", byte, x.unit))
    held = f.load(kind, f.at(field(f, "shared", "ptr"), f.op("add", "i64", g.offset, byte)), 1)
    return f.op("and", "i1", same, f(f"icmp eq {kind} {held}, {f.load(kind, value, 1)}"))


def _first_fresh(f: Text) -> str:
    """Packed entries below this have been seen by everybody."""
    floor = field(f, "floor", "i32")
    return f(f"shl i32 {f(f'add i32 {floor}, 1')}, {THREAD_BITS}")


def check_same_values(f: Text, x: Access, offsets: str, mask: str, data: str) -> None:
    """After a store: lanes that stored to one place must have stored the same value."""
    if x.what != "store":
        return
    kind = f"i{8 * x.unit}"
    with f.when(f(f"icmp ne i64 {field(f, 'shared_races')}, 0")), f.bits(mask) as lane:
        at = f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}"))
        for k in range(x.count):
            mine = f.load(kind, f(f"getelementptr {kind}, ptr %values, i64 {f(f'add i64 {lane}, {32 * k}')}"))
            there = f.load(kind, f.at(f.at(data, at), k * x.unit), x.unit)
            _object(f, f(f"icmp ne {kind} {mine}, {there}"))
