"""Tensor-core instructions and asynchronous copies in LLVM IR: `mma.sync`, `ldmatrix`, `cp.async`.

A product of matrices is computed as in `fragments`: in f64, where products of 16-bit factors are exact, and rounded once to the
type of the accumulator. The f64 sums are added in another order than BLAS does it, which shows only where they are inexact there.

An asynchronous copy waits in its thread's queue until the thread waits for its group. A queue holds `QUEUE` copies of `COPY`
bytes: where they go (4 bytes), how many (4), the group (8), the bytes (16), where they come from (8; -1: nothing was read).
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import fragments as fr
from ..instructions.matrix import _space, _tiles, accumulator_type, shape_of
from ..isa import Form
from ..memory import ALLOCATED, GLOBAL_BASE, PENDING, READING, WRITTEN
from ..ptx import Immediate, Instruction, Operand
from ..scope import Scope
from ..values import Array
from .block import BlockWriter, Unsupported, lane_bits
from .context import FINDING, count_word, field, field_address
from .machine import object_to, on
from .text import LANES, Text, splat, vector

__all__ = ["COPY", "QUEUE", "tensor_helper"]

QUEUE, COPY = 64, 48
_SOURCES = 1024  # bytes in the buffer of values after which the addresses of sources lie
_V = vector("i32")


def _whole_warp(w: BlockWriter) -> None:
    """All lanes must execute it together, or none."""
    f = w.f
    some, all_of = f(f"icmp ne i32 {w.bits}, 0"), f(f"icmp ne i32 {w.bits}, -1")
    object_to(w, f.op("and", "i1", some, all_of))


# ---- products
@on("mma")
def _mma(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    to, left, right, of = form.types
    m, n, k = shape_of(form)
    if left not in ("f16", "bf16", "tf32", "s8", "u8") or to not in ("f32", "f16", "s32"):
        raise Unsupported(x, "this product is not executed natively")
    _whole_warp(w)
    a, b, c = (scope.items(o) for o in x.operands[1:4])
    kinds = ["b32"] * (len(a) + len(b)) + [accumulator_type(of)] * len(c)
    for i, (o, kind) in enumerate(zip((*a, *b, *c), kinds)):
        f.store(_V, _bits(w, o, kind, scope, x), _matrix_place(w, i), 64)
    with w.somebody():
        f.add("i64", field_address(f, "tensor_flops"), 2 * m * n * k)
        saturate = "_sat" if form.has("satfinite") else ""
        w.helper(f"mma_{m}_{n}_{k}_{to}_{left}_{right}_{of}{saturate}", ("ptr", field(f, "scratch", "ptr")))
    for i, o in enumerate(scope.items(x.operands[0])):
        kind = accumulator_type(to)
        w.write_bits(o, kind, f.load(_V, _matrix_place(w, i), 64), scope, x)


def _bits(w: BlockWriter, o: Operand, kind: str, scope: Scope, x: Instruction) -> str:
    v = w.read(o, kind, scope, x)
    return w.f.cast("bitcast", vector("float"), v, _V) if kind == "f32" else v


def _matrix_place(w: BlockWriter, i: int) -> str:
    """Where register i of the operands lies, then of the result."""
    return w.f.at(field(w.f, "scratch", "ptr"), 128 * i)


def tensor_helper(name: str) -> Text:
    """The function of a name that starts with `mma_`, `copy_`, `tiles_` or `rows_`, or is `wait` or `commit`."""
    if name.startswith("mma_"):
        m, n, k, *kinds = name.removeprefix("mma_").split("_")
        return _product(name, int(m), int(n), int(k), *kinds)
    if name.startswith("copy_"):
        return _copy_function(name)
    if name.startswith(("tiles_", "rows_")):
        return _tiles_function(name)
    return {"wait": _wait_function, "commit": _commit_function}[name]()


def _product(name: str, m: int, n: int, k: int, to: str, left: str, right: str, of: str, saturate: str = "") -> Text:
    """`void f(ptr registers)`: the registers of A, B and C, vectors of 32 words, are replaced by those of A B + C."""
    f = Text(f"define void @{name}(ptr %r) nounwind")
    per_a, per_b = 32 // fr.BITS[left], 32 // fr.BITS[right]
    count_a, count_b = m * k // 32 // per_a, k * n // 32 // per_b
    a = _decoded(f, "%r", count_a, left, fr.left_places(m, k, fr.BITS[left]))
    b = _decoded(f, f.at("%r", 128 * count_a), count_b, right, fr.right_places(k, n, fr.BITS[right]))
    c = _decoded(f, f.at("%r", 128 * (count_a + count_b)), m * n // 32 // (32 // fr.BITS[of]), of, fr.sum_places(m, n))
    row = f"<{n} x double>"
    sums = f.slot(f"[{m * n} x double]", 64)
    columns = [f.load(row, f.at(b, 8 * n * i), 64) for i in range(k)]
    for i in range(m):
        total = "zeroinitializer"
        for j in range(k):
            one = f(f"insertelement {row} poison, double {f.load('double', f.at(a, 8 * (i * k + j)))}, i64 0")
            each = f(f"shufflevector {row} {one}, {row} poison, <{n} x i32> zeroinitializer")
            total = f.call(row, f"llvm.fma.v{n}f64", (row, each), (row, columns[j]), (row, total))
        f.store(row, f.op("fadd", row, total, f.load(row, f.at(c, 8 * n * i), 64)), f.at(sums, 8 * n * i), 64)
    _encode(f, sums, m * n, to, fr.sum_places(m, n), bool(saturate))
    f.do("ret void")
    return f


def _decoded(f: Text, registers: str, count: int, kind: str, places: Array) -> str:
    """The matrix whose elements lie in registers, as f64 by rows, in memory."""
    bits = fr.BITS[kind]
    per = 32 // bits
    out = f.slot(f"[{len(places)} x double]", 64)
    element = f"i{bits}"
    flat = f.slot(f"[{32 * count * per} x double]", 64)  # by register, lane and part of the word
    step = 8
    for first in range(0, 32 * count * per, step):
        v = f.load(f"<{step} x {element}>", f.at(registers, first * bits // 8), step * bits // 8)
        f.store(f"<{step} x double>", _number(f, v, step, kind), f.at(flat, 8 * first), 64)
    for i, place in enumerate(places.tolist()):
        part, rest = place % per, place // per
        lane, register = rest // count, rest % count
        f.store("double", f.load("double", f.at(flat, 8 * ((register * 32 + lane) * per + part))), f.at(out, 8 * i))
    return out


def _number(f: Text, v: str, n: int, kind: str) -> str:
    """Elements' bits as f64."""
    bits, double = f"<{n} x i{fr.BITS[kind]}>", f"<{n} x double>"
    if kind == "f16":
        wide = f.cast("fpext", f"<{n} x half>", f.cast("bitcast", bits, v, f"<{n} x half>"), f"<{n} x float>")
        return f.cast("fpext", f"<{n} x float>", wide, double)
    if kind in ("s8", "u8", "s32"):
        return f.cast("uitofp" if kind == "u8" else "sitofp", bits, v, double)
    words = f"<{n} x i32>"
    if kind == "bf16":
        v = f.op("shl", words, f.cast("zext", bits, v, words), splat("i32", 16))
    elif kind == "tf32":
        v = f.op("and", words, v, splat("i32", -0x2000))
    return f.cast("fpext", f"<{n} x float>", f.cast("bitcast", words, v, f"<{n} x float>"), double)


def _encode(f: Text, sums: str, count: int, kind: str, places: Array, saturate: bool) -> None:
    """Numbers in f64 to the registers at `%r`."""
    bits = fr.BITS[kind]
    per = 32 // bits
    registers = count // 32 // per
    step = 4
    for first in range(0, count, step):
        v = f.load(f"<{step} x double>", f.at(sums, 8 * first), 32)
        if saturate and kind != "f32":
            v = _within(f, v, f"<{step} x double>", (-(2.0**31), 2.0**31 - 1) if kind == "s32" else (-65504.0, 65504.0))
        if kind == "s32":
            whole = f.cast("fptosi", f"<{step} x double>", v, f"<{step} x i64>")
            words = f.cast("trunc", f"<{step} x i64>", whole, f"<{step} x i32>")
        elif kind == "f32":
            words = f.cast("bitcast", f"<{step} x float>", f.cast("fptrunc", f"<{step} x double>", v, f"<{step} x float>"),
                           f"<{step} x i32>")  # fmt: skip
        else:
            words = _half(f, v, step)
        for i in range(step):
            place = int(places[first + i])
            part, rest = place % per, place // per
            lane, register = rest // registers, rest % registers
            e = f(f"extractelement <{step} x i{bits}> {words}, i64 {i}")
            f.store(f"i{bits}", e, f.at("%r", (register * 32 + lane) * 4 + part * bits // 8))


def _within(f: Text, v: str, kind: str, limits: tuple[float, float]) -> str:
    """Between two numbers; NaN stays."""
    for order, limit in zip(("olt", "ogt"), limits):
        bound = splat("double", f"{limit:.1f}")
        outside = f(f"fcmp {order} {kind} {v}, {bound}")
        v = f(f"select <{kind[1:].split()[0]} x i1> {outside}, {kind} {bound}, {kind} {v}")
    return v


def _half(f: Text, v: str, n: int) -> str:
    """f64 to f16, rounded once: to odd in f32 first."""
    double, single, words = f"<{n} x double>", f"<{n} x float>", f"<{n} x i32>"
    s = f.cast("fptrunc", double, v, single)
    back = f.cast("fpext", single, s, double)
    bits = f.cast("bitcast", single, s, words)
    off = f(f"fcmp one {double} {back}, {v}")
    even = f(f"icmp eq {words} {f.op('and', words, bits, splat('i32', 1))}, zeroinitializer")
    size, have = (f.call(double, f"llvm.fabs.v{n}f64", (double, q)) for q in (v, back))
    outwards = f(f"fcmp ogt {double} {size}, {have}")
    step = f(f"select <{n} x i1> {outwards}, {words} {splat('i32', 1)}, {words} {splat('i32', -1)}")
    move = f(f"select <{n} x i1> {f.op('and', f'<{n} x i1>', off, even)}, {words} {step}, {words} zeroinitializer")
    odd = f.cast("bitcast", words, f.op("add", words, bits, move), single)
    return f.cast("bitcast", f"<{n} x half>", f.cast("fptrunc", single, odd, f"<{n} x half>"), f"<{n} x i16>")


# ---- tiles
@on("ldmatrix")
def _load_tiles(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    tiles, transposed = _tiles(form), form.has("trans")
    if _space(form) != "shared":
        raise Unsupported(x, "tiles are not loaded natively from generic addresses")
    _whole_warp(w)
    f.store(vector("i64"), w.address(x.operands[1], "shared", scope, x), w.addresses, 64)
    some = f(f"icmp ne i32 {w.bits}, 0")
    givers = f(f"select i1 {some}, i32 {-1 if tiles == 4 else (1 << 8 * tiles) - 1}, i32 0")
    w.access("load", "shared", 8, 2, lanes=givers, convergent=True)
    w.helper(f"tiles_{tiles}_{'trans' if transposed else 'straight'}", ("ptr", w.values))
    for i, o in enumerate(scope.items(x.operands[0])):
        w.write_bits(o, "b32", f.load(_V, f.at(w.values, 128 * i), 64), scope, x)


@on("stmatrix")
def _store_tiles(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    tiles, transposed = _tiles(form), form.has("trans")
    if _space(form) != "shared":
        raise Unsupported(x, "tiles are not stored natively at generic addresses")
    _whole_warp(w)
    f.store(vector("i64"), w.address(x.operands[0], "shared", scope, x), w.addresses, 64)
    for i, o in enumerate(scope.items(x.operands[1])):
        f.store(_V, w.read(o, "b32", scope, x), f.at(w.values, 128 * i), 64)
    w.helper(f"rows_{tiles}_{'trans' if transposed else 'straight'}", ("ptr", w.values))
    some = f(f"icmp ne i32 {w.bits}, 0")
    w.tag()
    w.access(
        "store", "shared", 8, 2, lanes=f(f"select i1 {some}, i32 {-1 if tiles == 4 else (1 << 8 * tiles) - 1}, i32 0")
    )


def _tiles_function(name: str) -> Text:
    """`tiles_`: from rows of 16 bytes, as lanes load them (two vectors of 64-bit words), to the registers of the tiles, where
    lane 4 r + c has the elements 2 c and 2 c + 1 of row r, or where they are transposed of column r. `rows_`: the way back."""
    what, tiles, how = name.split("_")
    f = Text(f"define void @{name}(ptr %values) nounwind")
    copy = f.slot("[512 x i8]", 64)
    f.store("<128 x i32>", f.load("<128 x i32>", "%values", 64), copy, 64)
    for row, column, place in _elements(int(tiles), how == "trans"):
        in_rows = (column // 4 * 32 + row) * 8 + column % 4 * 2
        source, to = (in_rows, place) if what == "tiles" else (place, in_rows)
        f.store("i16", f.load("i16", f.at(copy, source)), f.at("%values", to))
    f.do("ret void")
    return f


def _elements(tiles: int, transposed: bool) -> Iterator[tuple[int, int, int]]:
    """(the lane whose address is that of the row, the column, the byte among the tiles' registers) of each element."""
    for i in range(tiles):
        for lane in range(LANES):
            r, c = divmod(lane, 4)
            for h in (0, 1):
                row, column = (2 * c + h, r) if transposed else (r, 2 * c + h)
                yield 8 * i + row, column, 128 * i + 4 * lane + 2 * h


# ---- asynchronous copies
@on("cp")
def _copy(w: BlockWriter, form: Form, scope: Scope) -> None:
    x, f = form.instruction, w.f
    if form.has("bulk") or form.has("bulk_group") or form.has("reduce") or form.has("mbarrier"):
        raise Unsupported(x, "bulk copies are not executed natively")
    if form.has("commit_group"):
        w.helper("commit", ("ptr", "%c"), ("i32", w.bits))
        return
    if form.has("wait_all") or form.has("wait_group"):
        newest = Immediate(0) if form.has("wait_all") else x.operands[0]
        assert isinstance(newest, Immediate)
        if form.has("wait_all"):
            w.helper("commit", ("ptr", "%c"), ("i32", w.bits))
        w.helper("wait", ("ptr", "%c"), ("i32", w.bits), ("i64", str(newest.value)))
        return
    operands = list(x.operands)
    size, rest = operands[2], operands[3 : -1 if form.has("L2::cache_hint") else None]
    assert isinstance(size, Immediate)
    nbytes = size.value
    unit = min(nbytes, 8)
    source = w.bits
    if rest:
        from ..instructions.memory import _is_predicate

        if _is_predicate(rest[0], scope):
            p = w.read(rest[0], "pred", scope, x)
            reads = f.op("xor", "<32 x i1>", p, splat("i1", "true"))
        else:
            n = w.read(rest[0], "u32", scope, x)
            reads = f(f"icmp uge {_V} {n}, {splat('i32', nbytes)}")
            part = f.op("and", "<32 x i1>", f(f"icmp ne {_V} {n}, zeroinitializer"),
                        f.op("xor", "<32 x i1>", reads, splat("i1", "true")))  # fmt: skip
            object_to(w, f(f"icmp ne i32 {lane_bits(f, f.op('and', '<32 x i1>', part, w.mask))}, 0"))
        source = f.op("and", "i32", w.bits, lane_bits(f, reads))
        for k in range(nbytes // unit):
            f.store(vector(f"i{8 * unit}"), "zeroinitializer", f.at(w.values, 32 * unit * k), 32)
    come_from = w.address(operands[1], "global", scope, x)
    f.store(vector("i64"), come_from, w.addresses, 64)
    w.access("load", "global", unit, nbytes // unit, lanes=source)
    f.store(vector("i64"), come_from, f.at(w.values, _SOURCES), 64)
    f.store(vector("i64"), w.address(operands[0], "shared", scope, x), w.addresses, 64)
    w.tag()
    with w.somebody():
        arguments = ("ptr", "%c"), ("ptr", w.addresses), ("i32", w.bits), ("ptr", w.values), ("i32", source)
        w.helper(f"copy_{nbytes}_{w.granules[1]}", *arguments)


def _queue(f: Text, lane: str) -> tuple[str, str]:
    """(address of a lane's counts: group, copies taken out, copies put in, unused; address of its queue)."""
    thread = f.op("add", "i64", field(f, "first_thread"), lane)
    head = f.at(field(f, "groups", "ptr"), f.op("shl", "i64", thread, 5))
    return head, f.at(field(f, "queues", "ptr"), f.op("mul", "i64", thread, COPY * QUEUE))


def _copy_function(name: str) -> Text:
    """The second half of `cp.async`: bytes that were read go into the threads' queues, their places are PENDING."""
    from . import order
    from .accesses import Access, count_banks, end_of, good, shared_offsets

    nbytes, granule = (int(n) for n in name.removeprefix("copy_").split("_"))
    unit = min(nbytes, 8)
    x = Access("store", "shared", unit, nbytes // unit, granule, operation="copy")
    f = Text(f"define void @{name}(ptr noalias %c, ptr noalias %a, i32 %mask, ptr noalias %values, i32 %read) nounwind")
    lanes = f.cast("zext", "i32", f.call("i32", "llvm.ctpop.i32", ("i32", "%mask")), "i64")
    f.add("i64", field_address(f, count_word("requests", "shared", "store")), 1)
    f.add("i64", field_address(f, count_word("bytes", "shared", "store")), f.op("mul", "i64", lanes, nbytes))
    shadow = field(f, "shared_shadow", "ptr")
    end = end_of(f, field(f, "shared_bytes"), nbytes)
    offsets, every = shared_offsets(f)
    with f.bits("%mask") as lane:
        good(f, x, f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}")), end, shadow)
    fine = f(f"icmp eq i64 {field(f, 'stop')}, 0")
    right = f(f"select i1 {fine}, i32 %mask, i32 0")
    order.check_shared(f, x, offsets, right)
    count_banks(f, x, offsets, every, right)
    with f.bits(right) as lane:
        at = f.load("i64", f(f"getelementptr i64, ptr {offsets}, i64 {lane}"))
        head, queue = _queue(f, lane)
        taken, put = f.load("i64", f.at(head, 8)), f.load("i64", f.at(head, 16))
        full = f(f"icmp uge i64 {f.op('sub', 'i64', put, taken)}, {QUEUE}")
        with f.when(full):
            f.store("i64", str(FINDING), field_address(f, "stop"))
        entry = f.at(queue, f.op("mul", "i64", f.op("urem", "i64", put, QUEUE), COPY))
        _mark_source(f, lane, entry, nbytes, granule)
        f.store("i32", f.cast("trunc", "i64", at, "i32"), entry)
        f.store("i32", str(nbytes), f.at(entry, 4))
        f.store("i64", f.load("i64", head), f.at(entry, 8))
        kind = f"i{8 * unit}"
        for k in range(nbytes // unit):
            v = f.load(kind, f(f"getelementptr {kind}, ptr %values, i64 {f.op('add', 'i64', lane, 32 * k)}"))
            f.store(kind, v, f.at(entry, 16 + unit * k))
        whole = f"i{8 * nbytes}"
        states = f.at(shadow, at)
        pending = int.from_bytes(bytes([PENDING]) * nbytes, "little")
        f.store(whole, f.op("or", whole, f.load(whole, states, 1), pending), states, 1)
        f.store("i64", f.op("add", "i64", put, 1), f.at(head, 16))
    f.do("ret void")
    return f


def _mark_source(f: Text, lane: str, entry: str, nbytes: int, granule: int) -> None:
    """The bytes that a lane's copy reads must not change until it has arrived."""
    from . import order

    come_from = f.at(entry, 32)
    f.store("i64", "-1", come_from)
    bit = f.op("and", "i32", f.op("lshr", "i32", "%read", f.cast("trunc", "i64", lane, "i32")), 1)
    checks = f(f"icmp ne i64 {field(f, 'checks')}, 0")
    with f.when(f.op("and", "i1", checks, f(f"icmp ne i32 {bit}, 0"))):
        address = f.load("i64", f(f"getelementptr i64, ptr {f.at('%values', _SOURCES)}, i64 {lane}"))
        at = f.op("sub", "i64", address, GLOBAL_BASE)
        with f.when(f(f"icmp eq i64 {field(f, 'stop')}, 0")):  # else it may lie anywhere
            order.check_source(f, at, granule)
            f.store("i64", at, come_from)
            whole, states = f"i{8 * nbytes}", f.at(field(f, "heap_shadow", "ptr"), at)
            reading = int.from_bytes(bytes([READING]) * nbytes, "little")
            f.store(whole, f.op("or", whole, f.load(whole, states, 1), reading), states, 1)


def _commit_function() -> Text:
    f = Text("define void @commit(ptr noalias %c, i32 %mask) nounwind")
    with f.bits("%mask") as lane:
        f.add("i64", _queue(f, lane)[0], 1)
    f.do("ret void")
    return f


def _wait_function() -> Text:
    """All groups of each lane arrive but the newest ones."""
    f = Text("define void @wait(ptr noalias %c, i32 %mask, i64 %newest) nounwind")
    data, shadow = field(f, "shared", "ptr"), field(f, "shared_shadow", "ptr")
    with f.bits("%mask") as lane:
        head, queue = _queue(f, lane)
        before = f.op("sub", "i64", f.load("i64", head), "%newest")
        look, take, done = f.name("look"), f.name("take"), f.name("done")
        ready = f.name("ready")
        f.do(f"br label %{look}")
        f.label(look)
        taken, put = f.load("i64", f.at(head, 8)), f.load("i64", f.at(head, 16))
        f.do(f"br i1 {f(f'icmp ult i64 {taken}, {put}')}, label %{ready}, label %{done}")
        f.label(ready)
        entry = f.at(queue, f.op("mul", "i64", f.op("urem", "i64", taken, QUEUE), COPY))
        f.do(f"br i1 {f(f'icmp slt i64 {f.load(_LONG, f.at(entry, 8))}, {before}')}, label %{take}, label %{done}")
        f.label(take)
        at = f.cast("zext", "i32", f.load("i32", entry), "i64")
        n = f.cast("zext", "i32", f.load("i32", f.at(entry, 4)), "i64")
        copy = ("ptr", f.at(data, at)), ("ptr", f.at(entry, 16)), ("i64", n), ("i1", "false")
        f.call("void", "llvm.memcpy.p0.p0.i64", *copy)
        states = ("ptr", f.at(shadow, at)), ("i8", str(ALLOCATED | WRITTEN)), ("i64", n), ("i1", "false")
        f.call("void", "llvm.memset.p0.i64", *states)
        source = f.load("i64", f.at(entry, 32))
        with f.when(f(f"icmp sge i64 {source}, 0")), f.loop("i64", "0", n) as i:
            read = f.at(f.at(field(f, "heap_shadow", "ptr"), source), i)
            f.store("i8", f.op("and", "i8", f.load("i8", read), READING ^ -1), read)
        f.store("i64", f.op("add", "i64", taken, 1), f.at(head, 8))
        f.do(f"br label %{look}")
        f.label(done)
    f.do("ret void")
    return f


_LONG = "i64"
