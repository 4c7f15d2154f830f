"""Loop-level ops of GPU kernels: what the threads of a warp, a block and the grid do together.

Shuffles, votes and matches of a warp, barriers, atomics, asynchronous copies, tensor-core products, printing and leaving a
kernel. Each is declared with its meaning for the SIMT interpreter (`ir/simt.py`): an op at which threads meet says who
meets (`warp`, `block`, `grid`) and what each of them gets (`Meet`), as a function of what all of them brought.

A warp is 32 threads, neighbours in the order x, y, z of a block. A member mask is a u32 with a bit for each lane; lanes that
the block does not have may be named. Lane numbers are i32.

Sources: PTX ISA, sections "Parallel Synchronization and Communication Instructions" and "Matrix Fragments for mma".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir import simt
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.opdef import op
from fluxir.ir.types import BOOL, INDEX, MemType, TensorType, Type, VectorType
from fluxir.ops.mma import SHAPES, MmaShape

WARP = 32
FULL = 0xFFFFFFFF
I32, U32, U16 = (TensorType(DTYPES[n]) for n in ("i32", "u32", "u16"))

Lanes = Mapping[int, Sequence[Any]]
"""What each lane that takes part has brought."""
Meet = Callable[[Attrs, Lanes], Mapping[int, Sequence[Any]]]


def _expect(name: str, t: Sequence[Type], *wanted: Type) -> list[Type]:
    """No results, of an op with the operand types `wanted`."""
    if tuple(t) != wanted:
        raise error("FX0108", f"{name} takes ({', '.join(map(str, wanted))}), given ({', '.join(map(str, t))})")
    return []


def _scalar(name: str, t: Type) -> TensorType:
    if not isinstance(t, TensorType) or t.shape:
        raise error("FX0108", f"{name} takes a scalar, not {t}")
    return t


def _one_of(name: str, what: str, given: str, known: Sequence[str]) -> list[Type]:
    if given not in known:
        raise error("FX0106", f"{name}: {what} {given!r} is none of {', '.join(known)}")
    return []


def _meeting(name: str, infer: Any, who: str, meet: Meet, mask: int | None, doc: str, attrs: Any = None) -> None:
    """Declare an op at which threads wait for each other. `mask`: which operand names the lanes."""

    def evaluate(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> Sequence[Any]:
        members = None if mask is None else int(args[mask])
        found: Sequence[Any] = it.simt_meet(o, who, members, args, lambda lanes: meet(a, lanes))
        return found

    simt.MEETINGS.add(name)
    op(name, infer, attrs=attrs or {}, level="loop", category="gpu", effects=True, eval=evaluate, doc=doc)


def _nothing(a: Attrs, lanes: Lanes) -> Mapping[int, Sequence[Any]]:
    return dict.fromkeys(lanes, ())


# ---- warps --------------------------------------------------------------------------------------------------------------

SHUFFLES = ("xor", "up", "down", "idx")
VOTES = ("all", "any", "ballot")


def _warp_shuffle(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    _one_of("warp_shuffle", "mode", a.mode, SHUFFLES)
    _expect("warp_shuffle", t, _scalar("warp_shuffle", t[0]), I32, U32)
    return [t[0]]


def source_lane(mode: str, lane: int, by: int) -> int:
    """Whose value a lane gets; itself where that is outside of the warp."""
    at = {"xor": lane ^ by, "up": lane - by, "down": lane + by, "idx": by % WARP}[mode]
    return at if 0 <= at < WARP else lane


def _shuffled(a: Attrs, lanes: Lanes) -> Mapping[int, Sequence[Any]]:
    out = {}
    for lane, (x, by, _) in lanes.items():
        at = source_lane(a.mode, lane, int(by))
        out[lane] = (lanes[at][0] if at in lanes else x,)
    return out


_meeting(
    "warp_shuffle",
    _warp_shuffle,
    "warp",
    _shuffled,
    2,
    "warp_shuffle(x, by, mask): x of another lane of the warp: `lane xor by`, `lane - by` (up), `lane + by` (down) or "
    "`by` (idx, modulo 32); its own x where there is no such lane. All lanes of `mask` take part.",
    {"mode": "str"},
)


def _warp_vote(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    _one_of("warp_vote", "mode", a.mode, VOTES)
    _expect("warp_vote", t, BOOL, U32)
    return [U32 if a.mode == "ballot" else BOOL]


def _ballot(lanes: Mapping[int, bool]) -> int:
    return sum(1 << lane for lane, p in lanes.items() if p)


def _voted(a: Attrs, lanes: Lanes) -> Mapping[int, Sequence[Any]]:
    given = {lane: bool(p) for lane, (p, _) in lanes.items()}
    held = _ballot(given)
    found: Any = np.uint32(held)
    if a.mode != "ballot":
        found = np.bool_(all(given.values()) if a.mode == "all" else held != 0)
    return dict.fromkeys(lanes, (found,))


_meeting(
    "warp_vote",
    _warp_vote,
    "warp",
    _voted,
    1,
    "warp_vote(p, mask): whether p holds in all lanes of `mask`, in any, or the mask of the lanes where it holds (ballot).",
    {"mode": "str"},
)


def _warp_match(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    _one_of("warp_match", "mode", a.mode, ("any", "all"))
    if not t or t[0].dtype.bits not in (32, 64):
        raise error("FX0108", f"warp_match takes a value of 32 or 64 bits, not {t[0] if t else 'nothing'}")
    _expect("warp_match", t, _scalar("warp_match", t[0]), U32)
    return [U32]


def _matched(a: Attrs, lanes: Lanes) -> Mapping[int, Sequence[Any]]:
    bits = {lane: np.asarray(x).tobytes() for lane, (x, _) in lanes.items()}
    if a.mode == "all":
        found = _ballot(dict.fromkeys(lanes, True)) if len(set(bits.values())) == 1 else 0
        return {lane: (np.uint32(found),) for lane in lanes}
    return {lane: (np.uint32(_ballot({k: bits[k] == bits[lane] for k in lanes})),) for lane in lanes}


_meeting(
    "warp_match",
    _warp_match,
    "warp",
    _matched,
    1,
    "warp_match(x, mask): the lanes of `mask` that hold the same bits as this one (any); or all of them if all do, else 0 "
    "(all).",
    {"mode": "str"},
)

_meeting(
    "active_mask",
    lambda t, a, k: [U32],
    "active",
    lambda a, lanes: {lane: (np.uint32(_ballot(dict.fromkeys(lanes, True))),) for lane in lanes},
    None,
    "The lanes of the warp that run together here.",
)

_meeting(
    "warp_sync",
    lambda t, a, k: _expect("warp_sync", t, U32),
    "warp",
    _nothing,
    0,
    "The lanes of the mask wait for each other, and see what the others have written.",
)

_meeting(
    "grid_barrier",
    lambda t, a, k: [],
    "grid",
    _nothing,
    None,
    "All threads of all blocks wait for each other (the launch must be cooperative: all blocks run at once).",
)

op(
    "lane_id",
    lambda t, a, k: [INDEX],
    level="loop",
    category="gpu",
    eval=lambda it, o, a, args, env: [np.int64(it.lane)],
    doc="Index of this thread in its warp, 0 to 31.",
)

op(
    "fence",
    lambda t, a, k: _one_of("fence", "scope", a.scope, ("block", "device", "system")),
    attrs={"scope": ("str", "device")},
    level="loop",
    category="gpu",
    effects=True,
    eval=lambda it, o, a, args, env: [],
    doc="What this thread has written before is seen by the others of `scope` before what it writes after.",
)


# ---- atomics --------------------------------------------------------------------------------------------------------------

Number = Any
ATOMIC_OPS: dict[str, Callable[[Number, Number], Number]] = {
    "add": lambda old, x: old + x,
    "sub": lambda old, x: old - x,
    "mul": lambda old, x: old * x,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, x: x,
    "inc": lambda old, x: old * 0 if old >= x else old + 1,
    "dec": lambda old, x: x if old == 0 or old > x else old - 1,
}
"""The new value from the old one and the operand."""
ATOMIC_KINDS = {
    **dict.fromkeys(("add", "sub", "mul", "min", "max"), "number"),
    **dict.fromkeys(("and", "or", "xor"), "integer"),
    **dict.fromkeys(("inc", "dec"), "unsigned"),
    "exch": "any",
}


def _place(name: str, t: tuple[Type, ...], values: int) -> MemType:
    """The memory of an atomic op with `values` values between it and the indices."""
    m = t[0]
    if not isinstance(m, MemType) or len(t) != 1 + values + m.rank or any(i != INDEX for i in t[1 + values :]):
        raise error("FX0108", f"{name}(mem, values, i...) does not fit ({', '.join(map(str, t))})")
    if any(x != TensorType(m.dtype) for x in t[1 : 1 + values]):
        raise error("FX0108", f"{name} of {', '.join(map(str, t[1 : 1 + values]))} on {m}")
    return m


def _atomic_rmw(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    _one_of("atomic_rmw", "op", a.op, tuple(ATOMIC_OPS))
    d = _place("atomic_rmw", t, 1).dtype
    fits = {"number": not d.is_bool, "integer": d.is_integer, "unsigned": d.kind == "uint", "any": not d.is_bool}
    if not fits[ATOMIC_KINDS[a.op]]:
        raise error("FX0209", f"atomic {a.op} does not take {d}", help=f"it takes {ATOMIC_KINDS[a.op]} types")
    return [TensorType(d)]


def _atomic_place(o: Op, mem: Any, indices: Sequence[Any]) -> tuple[int, ...]:
    at = tuple(int(i) for i in indices)
    if any(not 0 <= i < n for i, n in zip(at, mem.shape, strict=True)):
        raise error("FX0515", f"{o.name} out of bounds: index {at} of memory {mem.shape}", loc=o.loc)
    return at


def _atomic_rmw_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    mem, x, *indices = args
    at = _atomic_place(o, mem, indices)
    old = mem[at].copy()
    wide = np.float32 if old.dtype.itemsize == 2 and old.dtype.kind in "fV" else old.dtype
    with np.errstate(all="ignore"):
        mem[at] = np.asarray(ATOMIC_OPS[a.op](old.astype(wide), np.asarray(x).astype(wide))).astype(old.dtype)
    return [old]


op(
    "atomic_rmw",
    _atomic_rmw,
    attrs={"op": "str"},
    level="loop",
    category="gpu",
    effects=True,
    eval=_atomic_rmw_eval,
    doc="atomic_rmw(mem, value, i, ...): mem[i...] = op(mem[i...], value), indivisible; the result is the old value. `inc` "
    "wraps to 0 after `value`, `dec` to `value` after 0.",
)


def _atomic_cas(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    m = _place("atomic_cas", t, 2)
    if m.dtype.bits < 16 or m.dtype.is_bool:
        raise error("FX0209", f"atomic_cas does not take {m.dtype}", help="it takes types of 16, 32 and 64 bits")
    return [TensorType(m.dtype)]


def _atomic_cas_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    mem, expected, new, *indices = args
    at = _atomic_place(o, mem, indices)
    old = mem[at].copy()
    if old.tobytes() == np.asarray(expected).tobytes():  # compared as bits
        mem[at] = new
    return [old]


op(
    "atomic_cas",
    _atomic_cas,
    level="loop",
    category="gpu",
    effects=True,
    eval=_atomic_cas_eval,
    doc="atomic_cas(mem, expected, new, i, ...): mem[i...] = new if it holds the bits of `expected`; the result is the old "
    "value.",
)


# ---- memory -----------------------------------------------------------------------------------------------------------------


def _dynamic_shared(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    _expect("dynamic_shared", t, INDEX)
    if not isinstance(a.type, MemType) or a.type.space != "shared" or a.type.rank != 1:
        raise error("FX0106", f"dynamic_shared: {a.type} is no shared memory of rank 1")
    return [a.type]


op(
    "dynamic_shared",
    _dynamic_shared,
    attrs={"type": "type"},
    level="loop",
    category="gpu",
    eval=lambda it, o, a, args, env: [it.dynamic_shared(o, int(args[0]), a.type)],
    doc="dynamic_shared(offset): the block's dynamic shared memory from byte `offset` on, as a vector. Its type states the "
    "length it has from offset 0: the launch's bytes are the size `shared_bytes`.",
)


def _async_copy(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    dst, src = t[0], t[1]
    if not (isinstance(dst, MemType) and isinstance(src, MemType)) or dst.dtype != src.dtype:
        raise error("FX0108", f"async_copy from {src} to {dst}")
    if dst.space != "shared" or src.space not in ("global", "constant"):
        raise error("FX0108", f"async_copy goes from global to shared memory, not from {src} to {dst}")
    if len(t) != 2 + dst.rank + src.rank or any(i != INDEX for i in t[2:]):
        raise error("FX0108", "async_copy(dst, src, i..., j...) needs the indices of both")
    if a.lanes * dst.dtype.itemsize not in (4, 8, 16):
        raise error("FX0108", f"async_copy moves 4, 8 or 16 bytes, not {a.lanes} x {dst.dtype}")
    return []


def _async_copy_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    dst, src, *indices = args
    to, of = tuple(map(int, indices[: dst.ndim])), tuple(map(int, indices[dst.ndim :]))
    for mem, at in ((dst, to), (src, of)):
        if any(not 0 <= i < n for i, n in zip(at, mem.shape, strict=True)) or at[-1] + a.lanes > mem.shape[-1]:
            raise error("FX0515", f"{o.name} out of bounds: index {at} of memory {mem.shape}", loc=o.loc)
    value = src[of[:-1]][of[-1] : of[-1] + a.lanes].copy()
    it.copies.append((dst[to[:-1]][to[-1] : to[-1] + a.lanes], value))
    return []


op(
    "async_copy",
    _async_copy,
    attrs={"lanes": "int"},
    level="loop",
    category="gpu",
    effects=True,
    eval=_async_copy_eval,
    doc="async_copy(dst, src, i..., j...): begin to copy `lanes` elements (4, 8 or 16 bytes, so aligned) from src[j...] in "
    "global to dst[i...] in shared memory. They are there for this thread after a wait, for others after a barrier too.",
)

op(
    "async_commit",
    lambda t, a, k: [],
    level="loop",
    category="gpu",
    effects=True,
    eval=lambda it, o, a, args, env: it.commit_copies(),
    doc="The copies begun since the last commit are one group.",
)

op(
    "async_wait",
    lambda t, a, k: [],
    attrs={"pending": ("int", 0)},
    level="loop",
    category="gpu",
    effects=True,
    eval=lambda it, o, a, args, env: it.wait_copies(a.pending),
    doc="Wait until at most the `pending` newest groups of this thread's copies are unfinished.",
)


# ---- tensor cores -----------------------------------------------------------------------------------------------------------


def _mma(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if a.shape not in SHAPES:
        raise error("FX0106", f"mma: shape {a.shape!r} is none of {', '.join(SHAPES)}")
    s = SHAPES[a.shape]
    d = t[0].dtype
    if d.name not in s.dtypes:
        raise error("FX0209", f"mma {a.shape} does not multiply {d}", help=f"it takes {', '.join(s.dtypes)}")
    acc = VectorType(DTYPES["f32"], len(s.c))
    _expect("mma", t, VectorType(d, len(s.a)), VectorType(d, len(s.b)), acc)
    return [acc]


def _multiplied(a: Attrs, lanes: Lanes) -> Mapping[int, Sequence[Any]]:
    s: MmaShape = SHAPES[a.shape]
    if len(lanes) != WARP:
        raise error("FX0516", f"mma needs all 32 lanes of a warp, {len(lanes)} take part")
    x, y, z = np.zeros((s.m, s.k)), np.zeros((s.k, s.n)), np.zeros((s.m, s.n))
    for lane, parts in lanes.items():
        for matrix, places, part in zip((x, y, z), (s.a, s.b, s.c), parts, strict=True):
            for place, value in zip(places, part, strict=True):
                matrix[place(lane)] = s.rounded(value) if matrix is not z else float(value)
    r = (x @ y + z).astype(np.float32)
    return {lane: (np.array([r[place(lane)] for place in s.c], np.float32),) for lane in lanes}


_meeting(
    "mma",
    _mma,
    "warp",
    _multiplied,
    None,
    "mma(a, b, c): a b + c of the matrices whose parts the 32 lanes hold, in f32; `shape` is m16n8k16 (f16, bf16) or "
    "m16n8k8 (tf32: f32 rounded to 10 bits). Which elements a lane holds: `ops/mma.py`.",
    {"shape": "str"},
)


# ---- talking to the host ------------------------------------------------------------------------------------------------------


def formatted(template: str, values: Sequence[Any]) -> str:
    """What `printf` writes: Python's %-formatting of the values as Python numbers."""
    return template % tuple(v.item() if hasattr(v, "item") else v for v in values)


def _printf(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    for x in t:
        _scalar("printf", x)
    try:
        formatted(a.format, [1.0 if x.dtype.is_float else 1 for x in t])
    except (TypeError, ValueError) as reason:
        raise error("FX0106", f"printf: {a.format!r} does not fit ({', '.join(map(str, t))}): {reason}") from None
    return []


op(
    "printf",
    _printf,
    attrs={"format": "str"},
    level="loop",
    category="gpu",
    effects=True,
    eval=lambda it, o, a, args, env: (
        print(formatted(a.format, [float(x) if np.asarray(x).dtype.kind == "V" else x for x in args]), end="") or []
    ),
    doc="printf(values...): write `format` with the values in it (as Python's %) to the standard output of the host.",
)


def _halt_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    if not bool(args[0]):
        raise error("FX0608", "the kernel was left by a failed assertion", loc=o.loc)
    return []


op(
    "halt_unless",
    lambda t, a, k: _expect("halt_unless", t, BOOL),
    level="loop",
    category="gpu",
    effects=True,
    eval=_halt_eval,
    doc="The thread ends here unless p; on a CPU the blocks that it would have run after this one are not run.",
)
