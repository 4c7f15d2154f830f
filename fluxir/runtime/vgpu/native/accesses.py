"""Memory accesses of a warp in LLVM IR: addresses to bytes, with all that `access.Memory`, `races` and `counters` do there.

One function for each kind of access (`Access`): `void f(ptr context, ptr addresses, i32 lanes, ptr values)`. The addresses are 32
numbers of 64 bits, the values `count` vectors of 32 elements. What the sanitizer objects to only sets `stop`: the launch is then
run again by the numpy executor, which says what it was. So a check here may object too often, never too seldom.

Lanes that lie side by side, the common case, are looked at all at once; else one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import memory as mem
from ..memory import ALLOCATED, GLOBAL_BASE, LOCAL_BASE, PENDING, READING, SHARED_BASE, WRITTEN
from . import order
from .context import FINDING, count_word, field, field_address
from .text import LANES, Text, splat, vector

__all__ = ["READ_ONLY", "Access", "access_functions", "count_banks", "end_of", "good", "object_to", "shared_offsets"]

READ_ONLY = 32  # in the shadow while native code runs: bytes of constant allocations


@dataclass(frozen=True)
class Access:
    """`what`: load, store or atomic. `space`: global, shared, local or generic. `count` elements of `unit` bytes. `granule`:
    bytes that the race checks tell apart. `sync`: a volatile or ordered access, which is no race."""

    what: str
    space: str
    unit: int
    count: int
    granule: int
    sync: bool = False
    operation: str = ""  # of an atomic: `add.s32`
    convergent: bool = False  # all lanes of a warp load together: what the warp itself wrote is no race

    @property
    def width(self) -> int:
        return self.unit * self.count

    @property
    def symbol(self) -> str:
        more = [*["sync"] * self.sync, *["convergent"] * self.convergent, *[self.operation] * bool(self.operation)]
        return "_".join([self.what, self.space, f"{self.unit}x{self.count}", str(self.granule), *more])

    def within(self, space: str) -> Access:
        return Access(self.what, space, self.unit, self.count, self.granule, self.sync, self.operation)


_HEAD = "define {linkage} void @{name}(ptr noalias %c, ptr noalias %a, i32 %mask, ptr noalias %values) nounwind"


def object_to(f: Text, condition: str) -> None:
    """The sanitizer has something to say where the condition (i1) holds."""
    with f.when(condition):
        f.store("i64", str(FINDING), field_address(f, "stop"))


def access_functions(x: Access) -> list[Text]:
    """The function `x.symbol`, and those that it calls."""
    if x.space != "generic":
        return [_one_space(x, x.symbol, "")]
    kinds = ("shared", "local", "global")
    parts = [_one_space(x.within(kind), f"{x.symbol}.{kind}", "internal") for kind in kinds]
    f = Text(_HEAD.format(linkage="", name=x.symbol))
    shared, local = f.var("i32", "0"), f.var("i32", "0")
    with f.bits("%mask") as lane:
        window = f(f"lshr i64 {_address(f, lane)}, 40")
        bit = f(f"shl i32 1, {f(f'trunc i64 {lane} to i32')}")
        for place, base in ((shared, SHARED_BASE), (local, LOCAL_BASE)):
            here = f(f"select i1 {f(f'icmp eq i64 {window}, {base >> 40}')}, i32 {bit}, i32 0")
            f.store("i32", f(f"or i32 {f.load('i32', place)}, {here}"), place)
    s, l = f.load("i32", shared), f.load("i32", local)
    elsewhere = f(f"xor i32 {f(f'or i32 {s}, {l}')}, -1")
    for kind, lanes in zip(kinds, (s, l, f(f"and i32 %mask, {elsewhere}"))):
        with f.when(f(f"icmp ne i32 {lanes}, 0")):
            f.call("void", f"{x.symbol}.{kind}", ("ptr", "%c"), ("ptr", "%a"), ("i32", lanes), ("ptr", "%values"))
    f.do("ret void")
    return [f, *parts]


def _address(f: Text, lane: str) -> str:
    return f.load("i64", f(f"getelementptr i64, ptr %a, i64 {lane}"))


def _one_space(x: Access, name: str, linkage: str) -> Text:
    f = Text(_HEAD.format(linkage=linkage, name=name))
    many = f.call("i32", "llvm.ctpop.i32", ("i32", "%mask"))
    lanes = f(f"zext i32 {many} to i64")
    f.add("i64", field_address(f, count_word("requests", x.space, x.what)), 1)
    asked = f(f"mul i64 {lanes}, {x.width}")
    f.add("i64", field_address(f, count_word("bytes", x.space, x.what)), asked)
    {"global": _global, "shared": _shared, "local": _local}[x.space](f, x)
    f.do("ret void")
    return f


# ---- where
def _global(f: Text, x: Access) -> None:
    data, shadow = field(f, "heap", "ptr"), field(f, "heap_shadow", "ptr")
    end = end_of(f, field(f, "heap_bytes"), x.width)
    sectors = _Sectors(f, x)
    done = "false" if x.what == "atomic" else _side_by_side(f, x, data, shadow)
    with f.when(f.op("xor", "i1", done, "true")):
        at = f.op("sub", vector("i64"), f.load(vector("i64"), "%a", 8), splat("i64", GLOBAL_BASE))
        offsets = f.slot(vector("i64"), 64)
        f.store(vector("i64"), at, offsets, 64)
        looked_at, _ = runs(f, x, "%mask", at)
        with f.bits(looked_at) as lane:
            one = f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}"))
            with f.when(good(f, x, one, end, shadow)):
                sectors.touch(one)
                if not x.sync:
                    order.check_global(f, x, one)
        _move_all(f, x, "%mask", offsets, data, shadow)
    sectors.count()


def _shared(f: Text, x: Access) -> None:
    data, shadow = field(f, "shared", "ptr"), field(f, "shared_shadow", "ptr")
    end = end_of(f, field(f, "shared_bytes"), x.width)
    offsets, at = shared_offsets(f)
    looked_at, ends = runs(f, x, "%mask", at)
    with f.bits(looked_at) as lane:
        good(f, x, f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}")), end, shadow)
    with f.when(_nothing_stops(f)):
        order.check_shared(f, x, offsets, f.op("or", "i32", looked_at, ends))
        _move_all(f, x, "%mask", offsets, data, shadow)
        order.check_same_values(f, x, offsets, "%mask", data)
        count_banks(f, x, offsets, at, "%mask")


def shared_offsets(f: Text) -> tuple[str, str]:
    """Where the offsets of all lanes in shared memory lie, and the offsets."""
    kind = vector("i64")
    a = f.load(kind, "%a", 8)
    generic = f(f"icmp uge {kind} {a}, {splat('i64', mem.WINDOW)}")
    at = f(f"select <32 x i1> {generic}, {kind} {f.op('sub', kind, a, splat('i64', SHARED_BASE))}, {kind} {a}")
    offsets = f.slot(kind, 64)
    f.store(kind, at, offsets, 64)
    return offsets, at


def runs(f: Text, x: Access, mask: str, at: str) -> tuple[str, str]:
    """(the first, the last) of neighbouring lanes that load the same: what holds for both holds for those between them. All lanes
    of other accesses."""
    if x.what != "load":
        return mask, mask
    kind = vector("i64")
    left = ", ".join(f"i32 {max(0, lane - 1)}" for lane in range(LANES))
    same = f(f"icmp eq {kind} {at}, {f(f'shufflevector {kind} {at}, {kind} poison, <32 x i32> <{left}>')}")
    both = f.op("and", "i32", mask, f.op("shl", "i32", mask, 1))
    again = f.op("and", "i32", f.cast("bitcast", "<32 x i1>", same, "i32"), both)
    first = f.op("and", "i32", mask, f.op("xor", "i32", again, -1))
    return first, f.op("and", "i32", mask, f.op("xor", "i32", f.op("lshr", "i32", again, 1), -1))


def _nothing_stops(f: Text) -> str:
    return f(f"icmp eq i64 {field(f, 'stop')}, 0")


def _move_all(f: Text, x: Access, mask: str, offsets: str, data: str, shadow: str) -> None:
    """The access itself, one lane after the other; nothing where the sanitizer has objected, for then an offset may be any."""
    with f.when(_nothing_stops(f)), f.bits(mask) as lane:
        at = f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}"))
        _move(f, x, data, at, lane)
        _mark_written(f, x, shadow, at)


def _local(f: Text, x: Access) -> None:
    data, shadow, size = field(f, "local", "ptr"), field(f, "local_shadow", "ptr"), field(f, "local_bytes")
    end = end_of(f, size, x.width)
    first = field(f, "first_thread")
    with f.bits("%mask") as lane:
        at = _in_window(f, _address(f, lane), LOCAL_BASE)
        start = f(f"mul i64 {f(f'add i64 {first}, {lane}')}, {size}")
        mine, states = f.at(data, start), f.at(shadow, start)
        with f.when(good(f, x, at, end, states)):
            _move(f, x, mine, at, lane)
            _mark_written(f, x, states, at)


def _in_window(f: Text, address: str, base: int) -> str:
    """The offset in a space of an address in it; a generic address is taken too."""
    inside = f(f"icmp uge i64 {address}, {mem.WINDOW}")
    return f(f"select i1 {inside}, i64 {f(f'sub i64 {address}, {base}')}, i64 {address}")


# ---- checks
def _pattern(x: Access) -> tuple[int, int]:
    """(bits of a byte's shadow that matter, what they have to be)."""
    need = ALLOCATED if x.what == "store" else ALLOCATED | WRITTEN
    care = need | (PENDING if x.space == "shared" else 0)
    if x.space == "global" and x.what != "load":
        care |= READ_ONLY | READING
    return care, need


def _times(byte: int, n: int) -> int:
    return int.from_bytes(bytes([byte]) * n, "little")


def end_of(f: Text, size: str, width: int) -> str:
    """The first offset at which so many bytes do not lie in a space of a size any more."""
    return f.call("i64", "llvm.usub.sat.i64", ("i64", f.op("add", "i64", size, 1)), ("i64", str(width)))


def good(f: Text, x: Access, at: str, end: str, shadow: str) -> str:
    """Whether an access is right, as i1; objects where it is not. `end`: where a space of this memory ends for it."""
    outside = f(f"icmp uge i64 {at}, {end}")
    low = f(f"and i64 {at}, {x.width - 1}")
    crooked = f(f"icmp ne i64 {low}, 0")
    place = f(f"or i1 {outside}, {crooked}")
    ok = f.var("i1", "false")
    with f.when(f(f"xor i1 {place}, true")):
        care, need = (_times(b, x.width) for b in _pattern(x))
        kind = f"i{8 * x.width}"
        found = f(f"and {kind} {f.load(kind, f.at(shadow, at), min(x.width, 16))}, {care}")
        right = f(f"icmp eq {kind} {found}, {need}")
        off = f(f"icmp eq i64 {field(f, 'checks')}, 0")
        f.store("i1", f(f"or i1 {right}, {off}"), ok)
    right = f.load("i1", ok)
    object_to(f, f.op("xor", "i1", right, "true"))
    return right


def _mark_written(f: Text, x: Access, shadow: str, at: str) -> None:
    if x.what == "load":
        return
    kind = f"i{8 * x.width}"
    f.store(kind, str(_times(ALLOCATED | WRITTEN, x.width)), f.at(shadow, at), min(x.width, 16))


def _move(f: Text, x: Access, data: str, at: str, lane: str) -> None:
    """Between memory and the values of a lane."""
    from .atomic import combine

    kind = f"i{8 * x.unit}"
    where = f.at(data, at)
    for k in range(x.count):
        here = f.at(where, k * x.unit)
        there = f(f"getelementptr {kind}, ptr %values, i64 {f(f'add i64 {lane}, {k * LANES}') if k else lane}")
        if x.what == "load":
            f.store(kind, f.load(kind, here, x.unit), there)
        elif x.what == "store":
            f.store(kind, f.load(kind, there), here, x.unit)
        else:
            old = f.load(kind, here, x.unit)
            f.store(kind, combine(f, x, old, there), here, x.unit)
            f.store(kind, old, there)


# ---- all lanes at once
def _side_by_side(f: Text, x: Access, data: str, shadow: str) -> str:
    """Global accesses of all 32 lanes to consecutive places, all of them right: done here. Whether it was (i1)."""
    done = f.var("i1", "false")
    if x.width > 16:
        return f.load("i1", done)
    total = LANES * x.width
    kind = vector("i64")
    a = f.load(kind, "%a", 32)
    first = f(f"extractelement {kind} {a}, i64 0")
    spread = f.spread("i64", first)
    steps = ", ".join(f"i64 {x.width * i}" for i in range(LANES))
    expected = f(f"add {kind} {spread}, <{steps}>")
    differ = f(f"xor {kind} {a}, {expected}")
    any_differ = f.call("i64", "llvm.vector.reduce.or.v32i64", (kind, differ))
    at = f(f"sub i64 {first}, {GLOBAL_BASE}")
    last = f(f"sub i64 {field(f, 'heap_bytes')}, {total}")
    low = f(f"and i64 {at}, {x.width - 1}")
    tests = [
        f("icmp eq i32 %mask, -1"),
        f(f"icmp eq i64 {any_differ}, 0"),
        f(f"icmp ule i64 {at}, {last}"),
        f(f"icmp eq i64 {low}, 0"),
    ]
    together = tests[0]
    for t in tests[1:]:
        together = f(f"and i1 {together}, {t}")
    with f.when(together):
        states = f"<{total} x i8>"
        place = f.at(shadow, at)
        care, need = _pattern(x)
        found = f(f"and {states} {f.load(states, place, min(x.width, 16))}, {splat('i8', care)}")
        wrong = f(f"xor {states} {found}, {splat('i8', need)}")
        bad = f.call("i8", f"llvm.vector.reduce.or.v{total}i8", (states, wrong))
        right = f(f"icmp eq i8 {bad}, 0")
        off = f(f"icmp eq i64 {field(f, 'checks')}, 0")
        right = f(f"or i1 {right}, {off}")
        if not x.sync:
            right = f(f"and i1 {right}, {order.side_by_side_global(f, x, at, total)}")
        with f.when(right):
            f.store("i1", "true", done)
            if x.what == "store":
                f.store(states, splat("i8", ALLOCATED | WRITTEN), place, min(x.width, 16))
            _move_row(f, x, f.at(data, at))
            _touch_row(f, x, at, total)
    return f.load("i1", done)


def _move_row(f: Text, x: Access, where: str) -> None:
    kind, n = f"i{8 * x.unit}", LANES * x.count
    part, whole = vector(kind), f"<{n} x {kind}>"
    places = [f.at("%values", k * LANES * x.unit) for k in range(x.count)]
    if x.what == "load":
        row = f.load(whole, where, x.unit)
        for k, place in enumerate(places):
            pick = ", ".join(f"i32 {x.count * i + k}" for i in range(LANES))
            v = row if x.count == 1 else f(f"shufflevector {whole} {row}, {whole} poison, <32 x i32> <{pick}>")
            f.store(part, v, place, 8)
        return
    parts = [f.load(part, place, 8) for place in places]
    while len(parts) > 1:
        size = LANES * x.count // len(parts)
        ones = ", ".join(f"i32 {i}" for i in range(2 * size))
        have = f"<{size} x {kind}>"
        parts = [
            f(f"shufflevector {have} {a}, {have} {b}, <{2 * size} x i32> <{ones}>")
            for a, b in zip(parts[::2], parts[1::2])
        ]
    if x.count > 1:
        mix = ", ".join(f"i32 {k * LANES + i}" for i in range(LANES) for k in range(x.count))
        parts = [f(f"shufflevector {whole} {parts[0]}, {whole} poison, <{n} x i32> <{mix}>")]
    f.store(whole, parts[0], where, x.unit)


def _touch_row(f: Text, x: Access, at: str, total: int) -> None:
    first, last = f(f"lshr i64 {at}, 5"), f(f"lshr i64 {f(f'add i64 {at}, {total - 1}')}, 5")
    many = f(f"add i64 {f(f'sub i64 {last}, {first}')}, 1")
    f.add("i64", field_address(f, count_word("sectors", x.space, x.what)), many)
    touched = f.at(field(f, f"touched_{x.what}", "ptr"), first)
    with f.loop("i64", "0", many) as i:
        f.store("i8", "1", f.at(touched, i))


# ---- what a GPU would move
class _Sectors:
    """The 32-byte sectors that a request touches, each counted once."""

    def __init__(self, f: Text, x: Access) -> None:
        self.f, self.x = f, x
        self.seen = f.slot("[32 x i64]")
        self.many = f.var("i64", "0")
        self.top = f.var("i64", "-1")
        self.touched = [
            field(f, f"touched_{w}", "ptr") for w in (("load", "store") if x.what == "atomic" else (x.what,))
        ]

    def touch(self, at: str) -> None:
        f = self.f
        sector = f(f"lshr i64 {at}, 5")
        many, top = f.load("i64", self.many), f.load("i64", self.top)
        new = f.var("i1", f(f"icmp sgt i64 {sector}, {top}"))
        below = f(f"icmp slt i64 {sector}, {top}")
        with f.when(below):  # not in order: look through all
            f.store("i1", "true", new)
            with f.loop("i64", "0", many) as i:
                same = f(f"icmp eq i64 {f.load('i64', f(f'getelementptr i64, ptr {self.seen}, i64 {i}'))}, {sector}")
                with f.when(same):
                    f.store("i1", "false", new)
        with f.when(f.load("i1", new)):
            f.store("i64", sector, f(f"getelementptr i64, ptr {self.seen}, i64 {many}"))
            f.add("i64", self.many, 1)
            f.store("i64", f.call("i64", "llvm.smax.i64", ("i64", sector), ("i64", top)), self.top)
            for touched in self.touched:
                f.store("i8", "1", f.at(touched, sector))

    def count(self) -> None:
        f = self.f
        word = field_address(f, count_word("sectors", self.x.space, self.x.what))
        f.add("i64", word, f.load("i64", self.many))


def count_banks(f: Text, x: Access, offsets: str, at: str, mask: str) -> None:
    """Wavefronts of shared memory, in groups of lanes that ask for at most 128 bytes. `at`: the offsets that lie at `offsets`."""
    n = max(1, x.width // 4)
    lanes = min(LANES, 128 // max(x.width, 4)) or 1
    count, words = f.slot("[32 x i32]"), f.slot("[1024 x i32]")
    ideal, fronts = (field_address(f, count_word(c, x.space, x.what)) for c in ("ideal_wavefronts", "wavefronts"))
    kind, part = vector("i32"), f"<{lanes} x i32>"
    word = f.cast("trunc", vector("i64"), f.op("lshr", vector("i64"), at, splat("i64", 2)), kind)
    active = f.cast("bitcast", "i32", mask, "<32 x i1>")
    bounds = {
        "umin": f(f"select <32 x i1> {active}, {kind} {word}, {kind} {splat('i32', -1)}"),
        "umax": f(f"select <32 x i1> {active}, {kind} {word}, {kind} zeroinitializer"),
    }
    for group in range(LANES // lanes):
        those = f.op("and", "i32", mask, _as_i32(((1 << lanes) - 1) << group * lanes))
        pick = ", ".join(f"i32 {group * lanes + i}" for i in range(lanes))
        with f.when(f(f"icmp ne i32 {those}, 0")):
            f.add("i64", ideal, 1)
            low, high = (
                f.call("i32", f"llvm.vector.reduce.{how}.v{lanes}i32",
                       (part, f(f"shufflevector {kind} {v}, {kind} poison, <{lanes} x i32> <{pick}>")))
                for how, v in bounds.items()
            )  # fmt: skip
            reach = f.op("add", "i32", f.op("sub", "i32", high, low), n - 1)
            most = f.var("i32", "1")
            with f.when(f(f"icmp uge i32 {reach}, 32")):
                _conflicts(f, offsets, those, n, count, words, most)
            f.add("i64", fronts, f.cast("zext", "i32", f.load("i32", most), "i64"))


def _as_i32(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def _word(f: Text, offsets: str, lane: str) -> str:
    at = f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}"))
    return f.cast("trunc", "i64", f.op("lshr", "i64", at, 2), "i32")


def _conflicts(f: Text, offsets: str, those: str, n: int, count: str, words: str, most: str) -> None:
    """The largest number of different words that one bank is asked for."""
    f.store("i32", "0", most)
    f.store("[32 x i32]", "zeroinitializer", count)
    with f.bits(those) as lane, f.loop("i32", "0", str(n)) as j:
        w = f.op("add", "i32", _word(f, offsets, lane), j)
        bank = f.cast("zext", "i32", f.op("and", "i32", w, 31), "i64")
        place = f(f"getelementptr i32, ptr {count}, i64 {bank}")
        row = f(f"getelementptr [32 x i32], ptr {words}, i64 {bank}")
        have = f.load("i32", place)
        new = f.var("i1", "true")
        with f.loop("i32", "0", have) as i:
            here = f.load("i32", f(f"getelementptr i32, ptr {row}, i32 {i}"))
            with f.when(f(f"icmp eq i32 {here}, {w}")):
                f.store("i1", "false", new)
        with f.when(f.load("i1", new)):
            f.store("i32", w, f(f"getelementptr i32, ptr {row}, i32 {have}"))
            more = f.op("add", "i32", have, 1)
            f.store("i32", more, place)
            f.store("i32", f.call("i32", "llvm.umax.i32", ("i32", f.load("i32", most)), ("i32", more)), most)
