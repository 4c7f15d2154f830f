"""`fx.gpu`: what kernels say beside Python itself. Every name has a meaning inside `@fx.kernel` functions only.

Indices are i64, lanes 0 to 31, member masks u32; a mask that is not given names all lanes of the warp. `axis` is 0, 1, 2 for
x, y, z, and `thread_id.x` is `thread_id(0)`. Where an element of an array is named, `i` is an index or a tuple of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from fluxir.frontend.kernel.calls import Calls, Intrinsic
from fluxir.frontend.kernel.values import (
    Array,
    Num,
    Range,
    as_type,
    describe,
    is_static,
    joined_dtype,
    lifted,
    literal_dtype,
)
from fluxir.ir.dims import floordiv, symbol
from fluxir.ir.dtypes import DTYPES, dtype_of
from fluxir.ir.simt import SHARED_BYTES
from fluxir.ir.types import MemType, TensorType, VectorType
from fluxir.ops.gpu import FULL, I32, U32
from fluxir.ops.mma import SHAPES

warp_size = 32
_AXES = "xyz"


class Index(Intrinsic):
    """An index along an axis, also as an attribute: `thread_id.x`."""

    @property
    def x(self) -> Any:
        return IndexAt(self, 0)

    @property
    def y(self) -> Any:
        return IndexAt(self, 1)

    @property
    def z(self) -> Any:
        return IndexAt(self, 2)


class IndexAt:
    """`thread_id.x`, before it is read."""

    def __init__(self, index: Index, axis: int) -> None:
        self.index, self.axis = index, axis

    def read(self, cx: Calls) -> Num:
        found: Num = self.index.rule(cx, self.axis)
        return found


def _axis(cx: Calls, axis: Any) -> int:
    if axis not in (0, 1, 2):
        raise cx.wrong(f"an axis is 0, 1 or 2, not {describe(axis)}")
    return int(axis)


# ---- where a thread is --------------------------------------------------------------------------------------------------


@Index
def thread_id(cx: Calls, axis: int = 0) -> Any:
    """Index of this thread in its block along `axis`."""
    return Num(cx.b.thread_id(axis=_axis(cx, axis)), nonneg=True)


@Index
def block_id(cx: Calls, axis: int = 0) -> Any:
    """Index of this block in the grid along `axis`."""
    return Num(cx.b.block_id(axis=_axis(cx, axis)), nonneg=True)


@Index
def block_dim(cx: Calls, axis: int = 0) -> Any:
    """Threads of a block along `axis`."""
    return Num(cx.b.block_dim(axis=_axis(cx, axis)), nonneg=True)


@Index
def grid_dim(cx: Calls, axis: int = 0) -> Any:
    """Blocks of the grid along `axis`."""
    return Num(cx.b.grid_dim(axis=_axis(cx, axis)), nonneg=True)


@Index
def global_id(cx: Calls, axis: int = 0) -> Any:
    """Index of this thread in the whole grid along `axis`: block_id * block_dim + thread_id."""
    at = _axis(cx, axis)
    b = cx.b
    return Num(b.add(b.mul(b.block_id(axis=at), b.block_dim(axis=at)), b.thread_id(axis=at)), nonneg=True)


@Index
def global_size(cx: Calls, axis: int = 0) -> Any:
    """Threads of the whole grid along `axis`: the step of a grid-stride loop."""
    at = _axis(cx, axis)
    return Num(cx.b.mul(cx.b.grid_dim(axis=at), cx.b.block_dim(axis=at)), nonneg=True)


@Intrinsic
def lane_id(cx: Calls) -> Any:
    """Index of this thread in its warp, 0 to 31."""
    return Num(cx.b.lane_id(), nonneg=True)


@Intrinsic
def warp_id(cx: Calls) -> Any:
    """Index of this thread's warp in its block."""
    b = cx.b
    at = b.add(b.mul(b.thread_id(axis=2), b.block_dim(axis=1)), b.thread_id(axis=1))
    at = b.add(b.mul(at, b.block_dim(axis=0)), b.thread_id(axis=0))
    return Num(b.div(at, b.index(warp_size)), nonneg=True)


# ---- memory ---------------------------------------------------------------------------------------------------------------


def _shape(cx: Calls, shape: Any) -> tuple[Any, ...]:
    sizes = cx.elements(shape, "a shape") if not isinstance(shape, (int, Num)) or isinstance(shape, bool) else [shape]
    for n in sizes:
        if isinstance(n, int) and n < 1:
            raise cx.wrong(f"a size of {n}: an array has at least one element along each axis")
    return tuple(cx.number(n, "a size") for n in sizes)


@Intrinsic
def shared(cx: Calls, shape: Any, dtype: Any) -> Any:
    """An array that the threads of a block share. With sizes known when compiling it is static; with sizes that are known at
    launch it is a part of the dynamic shared memory, which the launch must give: `k[grid, block, nbytes](...)`."""
    sizes, d = _shape(cx, shape), dtype_of(dtype)
    if is_static(sizes):
        t = MemType(d, tuple(int(n) for n in sizes), "shared")
        return Array(cx.b.emit("alloc", type=t)[0], t.shape)
    t = MemType(d, (floordiv(symbol(SHARED_BYTES), d.itemsize),), "shared")
    start = cx.size(cx.shared_end) if not isinstance(cx.shared_end, Num) else cx.shared_end
    mem = cx.b.emit("dynamic_shared", cx.index(start), type=t)[0]
    count: Any = d.itemsize
    for n in sizes:
        count = cx.binary("mul", operator.mul, count, n)
    end = cx.binary("add", operator.add, cx.binary("add", operator.add, start, count), 15)
    cx.shared_end = cx.binary("mul", operator.mul, cx.binary("floordiv", operator.floordiv, end, 16), 16)
    return Array(mem, sizes, flat=True)


@Intrinsic
def local(cx: Calls, shape: Any, dtype: Any, zero: bool = False) -> Any:
    """An array of this thread alone, of a size known when compiling; filled with zeros if `zero`."""
    sizes = _shape(cx, shape)
    if not is_static(sizes):
        raise cx.wrong("the size of local memory must be known when compiling", "use fx.gpu.shared, or a constant size")
    t = MemType(dtype_of(dtype), tuple(int(n) for n in sizes), "local")
    a = Array(cx.b.emit("alloc", type=t)[0], t.shape)
    if zero:
        flat = cx.b.emit("reinterpret", a.mem, type=MemType(t.dtype, (int(t.size),), "local"))[0]
        for i in range(int(t.size)):
            cx.write(Array(flat, (int(t.size),)), (i,), 0 if not t.dtype.is_bool else False)
    return a


@Intrinsic
def async_copy(cx: Calls, dst: Any, i: Any, src: Any, j: Any, lanes: int = 1) -> None:
    """Begin to copy `lanes` elements (4, 8 or 16 bytes, and so aligned) from src[j] in global to dst[i] in shared memory.
    The thread reads them after `async_wait`, the others after a barrier too."""
    if not (isinstance(dst, Array) and isinstance(src, Array)):
        raise cx.wrong(f"async_copy goes from an array to an array, not from {describe(src)} to {describe(dst)}")
    to, at, _ = cx.place(dst, _tuple(i))
    of, there, _ = cx.place(src, _tuple(j))
    cx.b.emit("async_copy", to, of, *at, *there, lanes=lanes)


@Intrinsic
def async_commit(cx: Calls) -> None:
    """The copies begun since the last commit are one group."""
    cx.b.emit("async_commit")


@Intrinsic
def async_wait(cx: Calls, pending: int = 0) -> None:
    """Wait until at most the `pending` newest groups of this thread's copies are unfinished."""
    cx.b.emit("async_wait", pending=pending)


def _tuple(i: Any) -> tuple[Any, ...]:
    return i if isinstance(i, tuple) else (i,)


# ---- together -------------------------------------------------------------------------------------------------------------


@Intrinsic
def barrier(cx: Calls) -> None:
    """All threads of the block wait here for each other, and see what the others have written."""
    cx.b.emit("barrier")


@Intrinsic
def syncwarp(cx: Calls, mask: Any = FULL) -> None:
    """The lanes of `mask` wait for each other."""
    cx.b.emit("warp_sync", _mask(cx, mask))


@Intrinsic
def grid_sync(cx: Calls) -> None:
    """All threads of all blocks wait for each other; the launch is cooperative, so all blocks must fit on the GPU at once."""
    cx.b.emit("grid_barrier")


@Intrinsic
def fence(cx: Calls, scope: str = "device") -> None:
    """What this thread has written before is seen by the others of `scope` (block, device, system) before what follows."""
    cx.b.emit("fence", scope=scope)


def _mask(cx: Calls, mask: Any) -> Any:
    if isinstance(mask, int):
        mask &= FULL
    return as_type(cx.b, mask, U32)


def _shuffle(cx: Calls, mode: str, x: Any, by: Any, mask: Any) -> Any:
    n = lifted(cx.b, cx.number(x, "what is shuffled"))
    if n.lanes:
        parts = [_shuffle(cx, mode, p, by, mask) for p in cx.elements(n, "a vector")]
        return vector.rule(cx, *parts)
    if not isinstance(by, int) and not (isinstance(by, Num) and by.dtype.is_integer):
        raise cx.wrong(f"a lane is an integer, not {describe(by)}")
    return Num(
        cx.b.emit("warp_shuffle", n.value, as_type(cx.b, by, I32), _mask(cx, mask), mode=mode)[0], n.weak, n.nonneg
    )


@Intrinsic
def shuffle(cx: Calls, x: Any, lane: Any, mask: Any = FULL) -> Any:
    """x of the lane `lane` (modulo 32)."""
    return _shuffle(cx, "idx", x, lane, mask)


@Intrinsic
def shuffle_xor(cx: Calls, x: Any, bits: Any, mask: Any = FULL) -> Any:
    """x of the lane whose index differs by xor `bits`."""
    return _shuffle(cx, "xor", x, bits, mask)


@Intrinsic
def shuffle_up(cx: Calls, x: Any, by: Any, mask: Any = FULL) -> Any:
    """x of the lane that is `by` below; the lanes that have none keep their own."""
    return _shuffle(cx, "up", x, by, mask)


@Intrinsic
def shuffle_down(cx: Calls, x: Any, by: Any, mask: Any = FULL) -> Any:
    """x of the lane that is `by` above; the lanes that have none keep their own."""
    return _shuffle(cx, "down", x, by, mask)


def _vote(cx: Calls, mode: str, p: Any, mask: Any) -> Any:
    return Num(cx.b.emit("warp_vote", cx.bool_(p), _mask(cx, mask), mode=mode)[0], nonneg=True)


@Intrinsic
def all_(cx: Calls, p: Any, mask: Any = FULL) -> Any:
    """Whether p holds in all lanes of `mask`."""
    return _vote(cx, "all", p, mask)


@Intrinsic
def any_(cx: Calls, p: Any, mask: Any = FULL) -> Any:
    """Whether p holds in any lane of `mask`."""
    return _vote(cx, "any", p, mask)


@Intrinsic
def ballot(cx: Calls, p: Any, mask: Any = FULL) -> Any:
    """The lanes of `mask` in which p holds, as bits."""
    return _vote(cx, "ballot", p, mask)


def _match(cx: Calls, mode: str, x: Any, mask: Any) -> Any:
    n = lifted(cx.b, cx.number(x, "what is matched"))
    if n.dtype.bits < 32:
        n = cx.converted(n, DTYPES["f32" if n.dtype.is_float else "u32"])
    return Num(cx.b.emit("warp_match", n.value, _mask(cx, mask), mode=mode)[0], nonneg=True)


@Intrinsic
def match_any(cx: Calls, x: Any, mask: Any = FULL) -> Any:
    """The lanes of `mask` that hold the same x as this one, as bits."""
    return _match(cx, "any", x, mask)


@Intrinsic
def match_all(cx: Calls, x: Any, mask: Any = FULL) -> Any:
    """`mask` if all its lanes hold the same x, else 0."""
    return _match(cx, "all", x, mask)


@Intrinsic
def activemask(cx: Calls) -> Any:
    """The lanes of the warp that run together here, as bits."""
    return Num(cx.b.active_mask(), nonneg=True)


# ---- atomics ---------------------------------------------------------------------------------------------------------------


def _atomic(op: str, doc: str) -> Intrinsic:
    def rule(cx: Calls, a: Any, i: Any, x: Any) -> Any:
        if not isinstance(a, Array):
            raise cx.wrong(f"atomic_{op} changes an element of an array, not {describe(a)}")
        mem, at, rest = cx.place(a, _tuple(i))
        if rest:
            raise cx.wrong(f"{len(_tuple(i))} indices of {describe(a)}")
        value = cx.stored(x, a.type.dtype, describe(a))
        return Num(cx.b.emit("atomic_rmw", mem, value, *at, op=op)[0])

    rule.__name__, rule.__doc__ = f"atomic_{op}", f"{doc}, indivisible; the result is the old value."
    return Intrinsic(rule)


atomic_add = _atomic("add", "a[i] += x")
atomic_sub = _atomic("sub", "a[i] -= x")
atomic_mul = _atomic("mul", "a[i] *= x (by compare-and-swap)")
atomic_min = _atomic("min", "a[i] = min(a[i], x); NaN if either is")
atomic_max = _atomic("max", "a[i] = max(a[i], x); NaN if either is")
atomic_and = _atomic("and", "a[i] &= x")
atomic_or = _atomic("or", "a[i] |= x")
atomic_xor = _atomic("xor", "a[i] ^= x")
atomic_exch = _atomic("exch", "a[i] = x")
atomic_inc = _atomic("inc", "a[i] = 0 if a[i] >= x else a[i] + 1, of unsigned integers")
atomic_dec = _atomic("dec", "a[i] = x if a[i] == 0 or a[i] > x else a[i] - 1, of unsigned integers")


@Intrinsic
def atomic_cas(cx: Calls, a: Any, i: Any, expected: Any, new: Any) -> Any:
    """a[i] = new if a[i] holds the bits of `expected`, indivisible; the result is the old value."""
    if not isinstance(a, Array):
        raise cx.wrong(f"atomic_cas changes an element of an array, not {describe(a)}")
    mem, at, _ = cx.place(a, _tuple(i))
    pair = [cx.stored(x, a.type.dtype, describe(a)) for x in (expected, new)]
    return Num(cx.b.emit("atomic_cas", mem, *pair, *at)[0])


# ---- numbers and loops -------------------------------------------------------------------------------------------------------


@Intrinsic
def vector(cx: Calls, *lanes: Any) -> Any:
    """A vector of the numbers given (2, 4, 8, 16 of them), in the type they meet in."""
    if not lanes:
        raise cx.wrong("a vector needs lanes")
    numbers = [cx.number(x, "a lane") for x in lanes]
    d, weak = None, True
    for x in numbers:
        n, w = (x.dtype, x.weak) if isinstance(x, Num) else (literal_dtype(x), True)
        d, weak = (n, w) if d is None else (joined_dtype(d, weak, n, w), weak and w)
    assert d is not None
    values = [as_type(cx.b, x, TensorType(d)) for x in numbers]
    v = cx.b.emit("splat", values[0], lanes=len(values))[0]
    for i, x in enumerate(values[1:], 1):
        v = cx.b.emit("insert", v, x, lane=i)[0]
    return Num(v, weak)


@Intrinsic
def fma(cx: Calls, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    return cx.op("fma", [x, y, z])


@Intrinsic
def bitcast(cx: Calls, x: Any, dtype: Any) -> Any:
    """The bits of x as another type of the same width."""
    n = lifted(cx.b, cx.number(x, "the argument of bitcast"))
    d = dtype_of(dtype)
    return Num(cx.b.bitcast(n.value, dtype=d), nonneg=d.kind == "uint")


@Intrinsic
def static_range(cx: Calls, *args: Any) -> Any:
    """A `range` of known numbers whose loop is written out: its variable may index tuples."""
    if not all(isinstance(a, int) for a in args):
        raise cx.wrong("the bounds of static_range must be known when compiling", "use range")
    r = range(*args)
    return Range(r.start, r.stop, r.step, static=True)


@Intrinsic
def unroll(cx: Calls, loop: Any, by: int = 0) -> Any:
    """A `range` whose loop stays a loop, with `by` rounds at once."""
    if not isinstance(loop, Range):
        raise cx.wrong(f"unroll takes a range, not {describe(loop)}")
    return Range(loop.start, loop.stop, loop.step, unroll=by)


@Intrinsic
def printf(cx: Calls, template: str, *values: Any) -> None:
    """Print on the host, formatted as Python's `template % values`."""
    if not isinstance(template, str):
        raise cx.wrong("the template of printf must be text that is known when compiling")
    cx.printf(template, values)


# ---- tensor cores ----------------------------------------------------------------------------------------------------------


@Intrinsic
def mma(cx: Calls, a: Any, b: Any, c: Any) -> Any:
    """c + a b of a warp's tiles: a 16 x 16 and b 16 x 8 in f16 or bf16, or a 16 x 8 and b 8 x 8 in f32 (read as tf32); c is
    16 x 8 in f32. All 32 lanes take part; each holds parts of the tiles, which `mma_load_a`, ... make."""
    for x in (a, b, c):
        if not isinstance(x, Num) or not x.lanes:
            raise cx.wrong(
                f"mma takes parts of tiles, not {describe(x)}", "make them with mma_load_a, mma_load_b, mma_zero"
            )
    shape = "m16n8k8" if a.dtype == DTYPES["f32"] else "m16n8k16"
    return Num(cx.b.emit("mma", a.value, b.value, c.value, shape=shape)[0])


def _tile(cx: Calls, a: Any, row: Any, col: Any, which: str) -> tuple[Array, list[tuple[Any, Any]]]:
    """The array, and the place in it of each element of this lane's part of a tile."""
    if not isinstance(a, Array) or len(a.shape) != 2:
        raise cx.wrong(f"a tile is a part of an array of rank 2, not of {describe(a)}")
    shape = SHAPES["m16n8k8" if which != "c" and a.type.dtype == DTYPES["f32"] else "m16n8k16"]
    lane = _Lane(cx, lane_id.rule(cx))
    places = []
    for place in getattr(shape, which):
        r, c = place(lane)
        places.append((_plus(cx, row, r.x), _plus(cx, col, c.x)))
    return a, places


class _Lane:
    """A lane's number, as the maps of `ops/mma.py` compute with it."""

    def __init__(self, cx: Calls, x: Any) -> None:
        self.cx, self.x = cx, x

    def _do(self, name: str, python: Callable[[Any, Any], Any], y: int) -> _Lane:
        return _Lane(self.cx, self.cx.binary(name, python, self.x, y) if y or name != "add" else self.x)

    def __add__(self, y: int) -> _Lane:
        return self._do("add", operator.add, y)

    def __mul__(self, y: int) -> _Lane:
        return self._do("mul", operator.mul, y)

    def __floordiv__(self, y: int) -> _Lane:
        return self._do("floordiv", operator.floordiv, y)

    def __mod__(self, y: int) -> _Lane:
        return self._do("remainder", operator.mod, y)


def _plus(cx: Calls, x: Any, y: Any) -> Any:
    return cx.binary("add", operator.add, cx.plain(x), y)


def _part(cx: Calls, a: Any, row: Any, col: Any, which: str) -> Any:
    mem, places = _tile(cx, a, row, col, which)
    parts = [cx.read(mem, place) for place in places]
    if which != "c" and mem.type.dtype == DTYPES["f32"]:
        parts = [_tf32(cx, p) for p in parts]
    found: Num = vector.rule(cx, *parts)
    return found


def _tf32(cx: Calls, x: Num) -> Num:
    """An f32 rounded to 10 bits of fraction, halves away from 0, as `cvt.rna.tf32` does."""
    b = cx.b
    bits = b.bit_and(b.add(b.bitcast(x.value, dtype="u32"), 0x1000), 0xFFFFE000)
    return Num(b.bitcast(bits, dtype="f32"))


@Intrinsic
def mma_load_a(cx: Calls, a: Any, row: Any, col: Any) -> Any:
    """This lane's part of the tile of A whose first element is a[row, col]."""
    return _part(cx, a, row, col, "a")


@Intrinsic
def mma_load_b(cx: Calls, a: Any, row: Any, col: Any) -> Any:
    """This lane's part of the tile of B whose first element is a[row, col]."""
    return _part(cx, a, row, col, "b")


@Intrinsic
def mma_load_c(cx: Calls, a: Any, row: Any, col: Any) -> Any:
    """This lane's part of the tile of C (16 x 8) whose first element is a[row, col], in f32."""
    found: Num = _part(cx, a, row, col, "c")
    return cx.converted(found, DTYPES["f32"])


@Intrinsic
def mma_zero(cx: Calls) -> Any:
    """This lane's part of a tile of C that is 0."""
    return Num(cx.b.const(0.0, like=VectorType(DTYPES["f32"], 4)))


@Intrinsic
def mma_store(cx: Calls, a: Any, row: Any, col: Any, c: Any) -> None:
    """Write a tile of C to the array whose elements start at a[row, col], converted to its type."""
    mem, places = _tile(cx, a, row, col, "c")
    for place, x in zip(places, cx.elements(c, "a tile"), strict=True):
        cx.write(mem, place, x)
