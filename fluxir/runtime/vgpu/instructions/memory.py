"""Memory: loads, stores, atomics, asynchronous copies, addresses and their spaces, cache hints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomics import compare_and_swap, update
from ..isa import Form, machine, reject
from ..memory import GLOBAL_BASE, LOCAL_BASE, SHARED_BASE
from ..ptx import Address, Immediate, Instruction, Operand, Symbol, type_bytes
from ..values import Array, bf16_to_f32, dtype, f32_to_bf16, is_float, split

if TYPE_CHECKING:
    from ..code import Step
    from ..scope import Scope
    from ..wave import Mask, Wave

_SPACES = (
    "global",
    "shared",
    "local",
    "const",
    "param",
    "shared::cta",
    "shared::cluster",
    "param::entry",
    "param::func",
)
_CACHE = (
    "ca cg cs cv lu wb wt L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate L2::cache_hint "
    "L2::64B L2::128B L2::256B L2::evict_last L2::evict_normal L2::evict_first unified"
)
_ORDER = "weak relaxed acquire release acq_rel volatile mmio cta cluster gpu sys"
_TYPES = "b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"
_BITS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}


def _space(form: Form) -> str:
    return form.one_of(*_SPACES, default="generic").partition("::")[0]


def _group(form: Form) -> str:
    space = form.one_of(*_SPACES, default="generic").partition("::")[0]
    return f"memory.{space}"


def _order(form: Form) -> str:
    """The strength of an access; empty for a weak one."""
    return form.one_of("volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")


@machine("ld", _group, _TYPES, f"{' '.join(_SPACES)} v2 v4 v8 nc {_CACHE} {_ORDER}", section="9.7.9.8")
def ld(form: Form, scope: Scope) -> Step:
    """Load one element or a vector; a wider register is filled by the type's sign."""
    x = form.instruction
    kind = form.type
    unit = type_bytes(kind)
    targets = scope.items(x.operands[0])
    writes = [scope.write(o, kind, x) for o in targets]
    space = scope.space_of(x.operands[1], _space(form), x)
    view = dtype(kind)
    if space == "argument":
        return _argument(scope, x, kind, len(targets), writes)
    address, order = scope.address(x.operands[1], space, x), _order(form)
    carried: list[int | None] | None = None
    if space in ("local", "generic"):
        if len(targets) == 1 and scope.is_field(targets[0]):
            carried = [None]
        elif all(scope.carries(o) is not None for o in targets):
            carried = [scope.carries(o) for o in targets]

    def run(w: Wave, m: Mask) -> None:
        for put, v in zip(writes, w.memory.load(m, space, address(w), unit, len(writes), x, order, carried)):
            put(w, v.view(view), m)

    return run


def _argument(scope: Scope, x: Instruction, kind: str, count: int, writes: list[Any]) -> Step:
    """A kernel's parameter: the same for all threads."""
    operand = x.operands[1]
    base = operand.base if isinstance(operand, Address) else operand
    assert isinstance(base, Symbol)
    unit, view = type_bytes(kind), dtype(kind)
    at = scope.place(base.name, x).offset + base.offset + (operand.offset if isinstance(operand, Address) else 0)

    def run(w: Wave, m: Mask) -> None:
        raw = w.launch.parameters
        if not 0 <= at <= len(raw) - unit * count:
            w.report(
                "out-of-bounds", f"{unit * count} bytes at {at} of {len(raw)} bytes of kernel parameters", x, m.index
            )
            return
        for i, put in enumerate(writes):
            put(w, np.frombuffer(raw, view, 1, at + i * unit)[0], m)

    return run


machine("ldu", _group, _TYPES, f"global v2 v4 {_CACHE}", section="9.7.9.10")(ld)


@machine(
    "st",
    _group,
    _TYPES,
    f"{' '.join(_SPACES)} v2 v4 v8 async mbarrier::complete_tx::bytes {_CACHE} {_ORDER}",
    section="9.7.9.11",
)
def st(form: Form, scope: Scope) -> Step:
    """Store one element or a vector; `st.async` is in `bulk`."""
    x = form.instruction
    if form.has("async"):
        from .bulk import send_step

        return send_step(form, scope)
    kind = form.type
    unit = type_bytes(kind)
    bits = _BITS[unit]
    reads = [scope.read(o, kind if isinstance(o, Immediate) else bits, x) for o in scope.items(x.operands[1])]
    space = scope.space_of(x.operands[0], _space(form), x)
    if space == "argument":
        reject(x, "kernel parameters cannot be written")
    address, order, view = scope.address(x.operands[0], space, x), _order(form), dtype(bits)
    carried = [scope.carries(o) for o in scope.items(x.operands[1])]

    def run(w: Wave, m: Mask) -> None:
        w.memory.store(m, space, address(w), unit, [r(w).view(view) for r in reads], x, order, carried)

    return run


# ---- atomics


def _bits16(f: Any) -> Any:
    """An operation of bf16 numbers on their bits."""
    return lambda a, b: f32_to_bf16(f(bf16_to_f32(a), bf16_to_f32(b)))


def _pairs(f: Any, part: Any) -> Any:
    """An operation on both halves of a packed register."""

    def both(a: Any, b: Any) -> Any:
        def half(v: Any, shift: int) -> Any:
            return ((v >> np.uint32(shift)) & np.uint32(0xFFFF)).astype(np.uint16).view(part)

        low, high = (np.asarray(f(half(a, s), half(b, s))).astype(part).view(np.uint16) for s in (0, 16))
        return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))

    return both


_TINY = 2.0**-126  # sums of f32 in global memory flush what is smaller


def _flush(x: Any) -> Any:
    return np.where(np.abs(x) < np.float32(_TINY), np.copysign(np.float32(0), x), x)


def _inc(a: Any, b: Any) -> Any:
    return np.where(a >= b, a.dtype.type(0), a + a.dtype.type(1))


def _dec(a: Any, b: Any) -> Any:
    return np.where((a == 0) | (a > b), b, a - a.dtype.type(1))


def _later(a: Any, b: Any) -> Any:
    return b


_COMBINE = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": _later,
    "inc": _inc,
    "dec": _dec,
}
_OPERATIONS = (*_COMBINE, "min", "max", "cas")


def operation(form: Form, space: str) -> tuple[Any, bool, np.dtype[Any]]:
    """(combine, whether it is associative, the numpy type it works in)."""
    op, kind = form.one_of(*_OPERATIONS), form.type
    if op in ("min", "max"):
        nan = (np.fmin if op == "min" else np.fmax) if is_float(kind) else (np.minimum if op == "min" else np.maximum)
        part, count = split(kind)
        if part == "bf16":
            return (_pairs(_bits16(nan), np.uint16) if count == 2 else _bits16(nan)), True, dtype(kind)
        if count == 2:
            return _pairs(nan, np.float16), True, dtype(kind)
        return nan, True, dtype(kind)
    part, count = split(kind)
    if op == "add" and part == "bf16":
        return (_pairs(_bits16(np.add), np.uint16) if count == 2 else _bits16(np.add)), False, dtype(kind)
    if op == "add" and count == 2 and part == "f16":
        return _pairs(np.add, np.float16), False, dtype(kind)
    if op == "add" and kind == "f32" and space != "shared":
        return (lambda a, b: _flush(_flush(a) + _flush(b))), False, dtype(kind)
    if op not in _COMBINE:
        reject(form.instruction, "it names no operation")
    return _COMBINE[op], op not in ("inc", "dec") and not is_float(kind), dtype(kind)


_ATOM_TYPES = "b16 b32 b64 u16 u32 u64 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"
_ATOM_FLAGS = (
    f"global shared shared::cta shared::cluster {' '.join(_OPERATIONS)} noftz v2 v4 v8 L2::cache_hint {_ORDER} level"
)


def _atomic_group(form: Form) -> str:
    return f"atomic.{form.one_of(*_SPACES, default='generic').partition('::')[0]}"


def _atomic(form: Form, scope: Scope) -> Step:
    x = form.instruction
    if form.has("async"):
        from .bulk import send_step

        return send_step(form, scope)
    returns = x.name == "atom"
    operands: list[Operand] = list(x.operands)
    targets = scope.items(operands.pop(0)) if returns else ()
    space, kind = _space(form), form.type
    unit, order = type_bytes(kind), _order(form)
    address = scope.address(operands[0], space, x)
    if form.has("cas"):
        expected, new = (scope.read(o, _BITS[unit], x) for o in operands[1:3])
        write = scope.write(targets[0], _BITS[unit], x)

        def swap(w: Wave, m: Mask) -> None:
            e, n = (np.broadcast_to(r(w), (w.size,)) for r in (expected, new))

            def apply(units: Array, index: Array, part: Mask) -> Array:
                return compare_and_swap(units, index, part.pick(e), part.pick(n))

            found = w.memory.atomic(m, space, address(w), unit, apply, x, order)
            write(w, found, m)

        return swap
    combine, associative, view = operation(form, space)
    tiny = _TINY if form.has("add") and kind == "f32" and space != "shared" else 0.0
    sources = scope.items(operands[1])
    reads = [scope.read(o, kind, x) for o in sources]
    writes = [scope.write(o, kind, x) for o in targets]

    def run(w: Wave, m: Mask) -> None:
        at = address(w)
        for i, read in enumerate(reads):
            b = np.broadcast_to(read(w), (w.size,))

            def apply(units: Array, index: Array, part: Mask, b: Array = b) -> Array:
                old = update(units.view(view), index, np.ascontiguousarray(part.pick(b)), combine, associative, tiny)
                return old.view(units.dtype)

            found = w.memory.atomic(m, space, at + np.uint64(i * unit), unit, apply, x, order)
            if writes:
                writes[i](w, found.view(view), m)

    return run


machine("atom", _atomic_group, _ATOM_TYPES, _ATOM_FLAGS, section="9.7.13.5")(_atomic)
machine("red", _atomic_group, _ATOM_TYPES, _ATOM_FLAGS + " async mbarrier::complete_tx::bytes", section="9.7.13.7")(
    _atomic
)


# ---- addresses


@machine("cvta", "convert", "u32 u64", f"to {' '.join(_SPACES)}", section="9.7.9.20")
def cvta(form: Form, scope: Scope) -> Step:
    """Between an address in a space and a generic one."""
    x = form.instruction
    kind = form.type
    base = {"shared": SHARED_BASE, "local": LOCAL_BASE}.get(_space(form), 0)
    read, write = scope.read(x.operands[1], kind, x), scope.write(x.operands[0], kind, x)
    if not base:
        return lambda w, m: write(w, read(w), m)
    by = dtype(kind).type(base & (256 ** type_bytes(kind) - 1))
    if form.has("to"):
        return lambda w, m: write(w, read(w) - by, m)
    return lambda w, m: write(w, read(w) + by, m)


@machine("isspacep", "compare", flags=" ".join(_SPACES), section="9.7.9.19")
def isspacep(form: Form, scope: Scope) -> Step:
    """Whether a generic address points into a space."""
    x = form.instruction
    read, write = scope.read(x.operands[1], "u64", x), scope.write(x.operands[0], "pred", x)
    base = {"shared": SHARED_BASE, "local": LOCAL_BASE, "global": GLOBAL_BASE}.get(_space(form), 0)
    window = np.uint64(base >> 40)
    constant = _space(form) in ("const", "param")

    def run(w: Wave, m: Mask) -> None:
        a = read(w)
        inside = (a >> np.uint64(40)) == window
        if constant:
            inside = np.asarray(a) != a
            bad = w.memory.heap.read_only(np.atleast_1d(a - np.uint64(GLOBAL_BASE)).view(np.int64))
            if bad is not None:
                inside = bad if np.ndim(a) else bad[0]
        write(w, np.asarray(inside), m)

    return run


# ---- asynchronous copies


@machine(
    "cp",
    "memory.async",
    flags="async ca cg shared shared::cta shared::cluster global commit_group wait_group wait_all L2::64B L2::128B L2::256B "
    "L2::cache_hint mbarrier arrive noinc bulk read tensor 1d 2d 3d 4d 5d tile im2col multicast::cluster reduce prefetch L2 "
    "mbarrier::complete_tx::bytes bulk_group add min max inc dec and or xor tile::gather4 tile::scatter4 im2col_no_offs noftz "
    "im2col::w im2col::w::128 cp_mask",
    types="b64 b32 u32 s32 u64 s64 f16 bf16 f32 f64",
    section="9.7.9.25",
)
def cp(form: Form, scope: Scope) -> Step:
    """Copy into shared memory without waiting: `cp.async`, its groups and waits; `cp.async.bulk` is in `bulk`."""
    x = form.instruction
    if form.has("bulk") or form.has("bulk_group") or form.has("reduce"):
        from .bulk import bulk_step

        return bulk_step(form, scope)
    if form.has("mbarrier"):
        from .bulk import arrive_when_copied

        return arrive_when_copied(form, scope)
    if form.has("commit_group"):
        return lambda w, m: w.copies.commit(m)
    if form.has("wait_all"):
        return lambda w, m: w.copies.wait_all(m)
    if form.has("wait_group"):
        newest = x.operands[0]
        if not isinstance(newest, Immediate):
            reject(x, "a number of groups is expected", "FX0711")
        return lambda w, m: w.copies.wait(m, newest.value)
    return _copy(form, scope)


def _copy(form: Form, scope: Scope) -> Step:
    x = form.instruction
    operands = list(x.operands)
    to, source = scope.address(operands[0], "shared", x), scope.address(operands[1], "global", x)
    size = operands[2]
    if not isinstance(size, Immediate) or size.value not in (4, 8, 16):
        reject(x, "4, 8 or 16 bytes are copied", "FX0711")
    nbytes = size.value
    rest = operands[3:]
    if form.has("L2::cache_hint"):
        rest = rest[:-1]
    keep = scope.read(rest[0], "pred" if _is_predicate(rest[0], scope) else "u32", x) if rest else None

    def run(w: Wave, m: Mask) -> None:
        count = np.full(m.count, nbytes)
        if keep is not None:
            v = m.picked(keep(w))
            count = np.where(v, 0, nbytes) if v.dtype == np.bool_ else np.minimum(v.astype(np.int64), nbytes)
        data = np.zeros((m.count, nbytes), np.uint8)
        sources = np.full(m.count, -1)
        reads = count > 0
        if reads.any():
            some = m if reads.all() else m.only(reads)
            address = source(w)
            unit = min(nbytes, 8)
            if (count[reads] == nbytes).all():
                words = w.memory.load(some, "global", address, unit, nbytes // unit, x)
                found = np.stack([some.pick(v) for v in words], axis=1)
                data[reads] = np.ascontiguousarray(found).view(np.uint8)
                sources[reads] = w.memory.offsets(some, address, nbytes)
            else:  # fewer bytes than the copy has: only those are read, the rest is zero
                for k in range(nbytes):
                    there = reads & (count > k)
                    one = m.only(there)
                    data[there, k] = one.pick(w.memory.load(one, "global", address + np.uint64(k), 1, 1, x)[0])
        for kind, part, at in w.memory.parts("shared", to(w), m):
            good = w.memory.good(kind, part, at, nbytes, 1, x)
            if good is not None and not good.all():
                part, at, data, sources = part.only(good), at[good], data[good], sources[good]
            where = w.memory.place(kind, part, at)
            w.counters.access(kind, "store", part, at, nbytes)
            w.races.store(where, nbytes, part, x)
            w.copies.start(part, where, data, sources, x)

    return run


def _is_predicate(operand: Operand, scope: Scope) -> bool:
    name = getattr(operand, "name", "")
    return name in scope.slots and scope.frame.registers[scope.slots[name]] == "pred"


# ---- hints


def _hint(form: Form, scope: Scope) -> Step:
    """Something about caches: nothing to do."""
    x = form.instruction
    if x.name == "createpolicy":
        write = scope.write(x.operands[0], "b64", x)
        return lambda w, m: write(w, np.uint64(0), m)
    return lambda w, m: None


machine("prefetch", "memory.hint", flags="global local const param generic L1 L2 tensormap L2::evict_last L2::evict_normal",
        section="9.7.9.15")(_hint)  # fmt: skip
machine("prefetchu", "memory.hint", flags="L1", section="9.7.9.15")(_hint)
machine("applypriority", "memory.hint", flags="global L2::evict_normal", section="9.7.9.16")(_hint)
machine("discard", "memory.hint", flags="global L2", section="9.7.9.17")(_hint)
machine(
    "createpolicy",
    "memory.hint",
    "b64",
    "fractional range cvt global L2 L2::evict_last L2::evict_normal L2::evict_first L2::evict_unchanged",
    section="9.7.9.18",
)(_hint)
