"""Loop-level ops: what kernels and host functions are made of, beside the shared arithmetic.

Memory (`load store subview alloc view constant copy`), loops (`for parallel`, and `if while` shared with the tensor
level), vectors (`splat extract insert shuffle reduce_lanes dot_packed`), GPU indices and cooperation, and the host's `launch`.
Regions are open: they see the values around them. In the interpreter a memory is a writable numpy array.

Kernel ABI: memory and scalar arguments in order, then one i64 for each of `func.symbols` (sorted by name).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.ir import simt
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.dtypes import DTYPES, dtype_of
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import INDEX, MemType, TensorType, Type, VectorType

I32 = TensorType(DTYPES["i32"])


def _mem(name: str, t: Type) -> MemType:
    if not isinstance(t, MemType):
        raise error("FX0108", f"{name} needs memory, not {t}")
    return t


def _indices(name: str, types: Sequence[Type], count: int) -> None:
    if len(types) != count or any(t != INDEX for t in types):
        raise error("FX0108", f"{name} needs {count} i64 indices, given ({', '.join(map(str, types))})")


def _element(m: MemType, lanes: int) -> Type:
    return VectorType(m.dtype, lanes) if lanes else TensorType(m.dtype)


# ---- sizes, constants, vectors -------------------------------------------------------------------------------------

op(
    "dim",
    lambda t, a, k: [INDEX],
    attrs={"value": "dim"},
    level="both",
    category="constant",
    ref=lambda a: np.int64(a.value),
    element=lambda cx, o, index: cx.dim(o.attrs.value),
    samples=(sample(value=7),),
    doc="The value of a size expression, as i64.",
    constant="takes no value",
)


def _splat(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    (x,) = t
    if not isinstance(x, TensorType) or x.shape:
        raise error("FX0108", f"splat takes a scalar, not {x}")
    return [VectorType(x.dtype, a.lanes)]


op(
    "splat",
    _splat,
    attrs={"lanes": "int"},
    level="loop",
    category="vector",
    ref=lambda a, x: np.full(a.lanes, x),
    doc="A vector with the scalar in every lane.",
)


def _lane(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if not isinstance(t[0], VectorType) or not 0 <= a.lane < t[0].lanes:
        raise error("FX0108", f"there is no lane {a.lane} in {t[0]}")
    return [TensorType(t[0].dtype)] if len(t) == 1 else [t[0]]


op(
    "extract",
    _lane,
    attrs={"lane": "int"},
    level="loop",
    category="vector",
    ref=lambda a, v: v[a.lane],
    doc="One lane of a vector.",
)


def _insert_ref(a: Attrs, v: Any, x: Any) -> Any:
    out = v.copy()
    out[a.lane] = x
    return out


op(
    "insert",
    _lane,
    attrs={"lane": "int"},
    level="loop",
    category="vector",
    ref=_insert_ref,
    doc="insert(vector, scalar): the vector with one lane replaced.",
)


def _shuffle(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if (
        len(t) != 2
        or t[0] != t[1]
        or not isinstance(t[0], VectorType)
        or any(not 0 <= m < 2 * t[0].lanes for m in a.mask)
    ):
        raise error("FX0108", f"shuffle takes two equal vectors and lanes of both, given {t} {a.mask}")
    return [VectorType(t[0].dtype, len(a.mask))]


op(
    "shuffle",
    _shuffle,
    attrs={"mask": "ints"},
    level="loop",
    category="vector",
    ref=lambda a, v, w: np.concatenate([v, w])[list(a.mask)],
    doc="Lanes picked from the concatenation of two vectors.",
)

_LANE_OPS = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
}


def _reduce_lanes_ref(a: Attrs, v: Any) -> Any:
    while len(v) > 1:  # halves, as the compiled code does it: the same bits
        h = len(v) // 2
        v = _LANE_OPS[a.op](v[:h], v[h:])
    return v[0]


op(
    "reduce_lanes",
    lambda t, a, k: [TensorType(t[0].dtype)],
    attrs={"op": "str"},
    level="loop",
    category="vector",
    ref=_reduce_lanes_ref,
    doc="A vector (power-of-two lanes) reduced to a scalar by halving; `op` is add, mul, max, min, and, or.",
)


def _dot_packed(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if len(t) != 3 or any(x != t[0] for x in t) or isinstance(t[0], MemType) or t[0].dtype != I32.dtype:
        raise error(
            "FX0108", f"dot_packed takes three i32 scalars or vectors of one type, not ({', '.join(map(str, t))})"
        )
    if a.left.bits != a.right.bits or a.left.bits not in (8, 16) or not (a.left.is_integer and a.right.is_integer):
        raise error("FX0108", f"dot_packed multiplies integers of 8 or of 16 bits, not {a.left} by {a.right}")
    return [t[0]]


def _dot_packed_ref(a: Attrs, acc: Any, x: Any, y: Any) -> Any:
    def parts(v: Any, d: Any) -> Any:
        wide = np.atleast_1d(np.asarray(v, np.int32))
        return wide.view(d.numpy).reshape(wide.shape[0], -1).astype(np.int64)

    total = (parts(x, a.left) * parts(y, a.right)).sum(-1) + np.atleast_1d(acc)
    return total.astype(np.int32).reshape(np.shape(acc))[()]


op(
    "dot_packed",
    _dot_packed,
    attrs={"left": "dtype", "right": "dtype"},
    level="loop",
    category="vector",
    ref=_dot_packed_ref,
    doc="acc plus the products of the small integers that each i32 of x and y holds: 4 of 8 bits, or 2 of 16 bits, of the "
    "types `left` and `right`. Exact modulo 2**32.",
)


# ---- memory ---------------------------------------------------------------------------------------------------------


def _load(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    m = _mem("load", t[0])
    _indices("load", t[1:], m.rank)
    return [_element(m, a.lanes)]


def _load_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    mem, *idx = args
    at = tuple(int(i) for i in idx)
    _in_bounds(o, mem, at, a.lanes or 1)
    return [mem[at] if not a.lanes else mem[at[:-1]][at[-1] : at[-1] + a.lanes].copy()]


def _in_bounds(o: Op, mem: Any, at: tuple[int, ...], lanes: int) -> None:
    if any(not 0 <= i < n for i, n in zip(at, mem.shape, strict=True)) or (at and at[-1] + lanes > mem.shape[-1]):
        raise error("FX0515", f"{o.name} out of bounds: index {at} (lanes {lanes}) of memory {mem.shape}", loc=o.loc)


op(
    "load",
    _load,
    attrs={"lanes": ("int", 0), "align": ("int", 0)},
    level="loop",
    category="memory",
    eval=_load_eval,
    doc=(
        "load(mem, i, j, ...): one element, or `lanes` of them contiguous in the last axis. `align` in bytes, "
        "0 = that of an element."
    ),
)


def _store(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    m = _mem("store", t[0])
    lanes = t[1].lanes if isinstance(t[1], VectorType) else 0
    if t[1] != _element(m, lanes):
        raise error("FX0108", f"store of {t[1]} into {m}")
    _indices("store", t[2:], m.rank)
    return []


def _store_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    mem, x, *idx = args
    at = tuple(int(i) for i in idx)
    lanes = np.shape(x)[0] if np.ndim(x) else 0
    _in_bounds(o, mem, at, lanes or 1)
    if lanes:
        mem[at[:-1]][at[-1] : at[-1] + lanes] = x
    else:
        mem[at] = x
    return []


op(
    "store",
    _store,
    attrs={"align": ("int", 0), "streaming": ("bool", False)},
    level="loop",
    category="memory",
    effects=True,
    eval=_store_eval,
    doc=(
        "store(mem, value, i, j, ...): write an element or a vector contiguous in the last axis. `streaming`: past the "
        "caches, for what is not read soon; a vector at an address that is a multiple of `align`, at least 16 bytes."
    ),
)


op(
    "misalignment",
    lambda t, a, k: [INDEX] if _mem("misalignment", t[0]) else [],
    attrs={"bytes": "int"},
    level="loop",
    category="memory",
    eval=lambda it, o, a, args, env: [np.int64(args[0].ctypes.data % a.bytes)],
    doc="misalignment(mem): the address of the memory modulo `bytes`. What a program computes must not depend on it.",
)


def _subview(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    m = _mem("subview", t[0])
    _indices("subview", t[1:], min(len(t) - 1, m.rank))
    return [MemType(m.dtype, m.shape[len(t) - 1 :], m.space)]


op(
    "subview",
    _subview,
    level="loop",
    category="memory",
    eval=lambda it, o, a, args, env: [args[0][(*[int(i) for i in args[1:]], ...)]],
    doc="subview(mem, i, ...): the sub-memory at leading indices; no copy.",
)


def _as_mem(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if not isinstance(a.type, MemType):
        raise error("FX0106", f"the attribute type must be a memory type, not {a.type}")
    return [a.type]


op(
    "reinterpret",
    _as_mem,
    attrs={"type": "type"},
    level="loop",
    category="memory",
    eval=lambda it, o, a, args, env: [
        np.reshape(args[0], a.type.shape)
        if args[0].dtype == a.type.dtype.numpy
        else args[0].reshape(-1).view(a.type.dtype.numpy).reshape(a.type.shape)
    ],
    doc="The same memory with another shape (same number of bytes) and/or element type; no copy.",
)

op(
    "alloc",
    _as_mem,
    attrs={"type": "type", "zero": ("bool", False)},
    level="loop",
    category="memory",
    effects=True,
    eval=lambda it, o, a, args, env: [np.zeros(a.type.shape, a.type.dtype.numpy)],
    doc=(
        "Fresh memory, uninitialised unless `zero`. In a kernel: `local` (per thread, static size, on the "
        "stack) or `shared`. On the host: a buffer, which the plan pass turns into a view of the arena."
    ),
)


def _view_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    shape = a.type.shape
    nbytes = int(np.prod(shape, dtype=np.int64)) * a.type.dtype.itemsize
    return [args[0][a.offset : a.offset + nbytes].view(a.type.dtype.numpy).reshape(shape)]


op(
    "view",
    _as_mem,
    attrs={"type": "type", "offset": "dim"},
    level="loop",
    category="memory",
    eval=_view_eval,
    doc="view(arena): the memory of `type` at byte `offset` of an arena (&u8[n]).",
)

op(
    "constant",
    lambda t, a, k: [MemType(dtype_of(a.value.dtype), tuple(a.value.shape))],
    attrs={"value": "array"},
    level="loop",
    category="memory",
    eval=lambda it, o, a, args, env: [a.value],
    doc="Host: the memory that holds a constant array (shared, read only).",
)


def _copy(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    dst, src = _mem("copy", t[0]), _mem("copy", t[1])
    if (dst.dtype, dst.shape) != (src.dtype, src.shape):
        raise error("FX0108", f"copy from {src} to {dst}")
    return []


def _copy_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    args[0][...] = args[1]
    return []


op(
    "copy",
    _copy,
    level="loop",
    category="memory",
    effects=True,
    eval=_copy_eval,
    doc="copy(dst, src): all elements; the memories are equal or do not overlap.",
)


def _prefetch(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    _indices("prefetch", t[1:], _mem("prefetch", t[0]).rank)
    return []


op(
    "prefetch",
    _prefetch,
    level="loop",
    category="memory",
    effects=True,
    eval=lambda it, o, a, args, env: [],
    doc=(
        "prefetch(mem, i, j, ...): bring the line of an element that is soon read and written to the caches. A hint: "
        "the element may lie outside."
    ),
)


# ---- loops ------------------------------------------------------------------------------------------------------------


def _for(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    _indices("for", t[:3], 3)
    carry = list(t[3:])
    (body,) = blocks
    if [v.type for v in body.args] != [INDEX, *carry] or [v.type for v in body.outs] != carry:
        raise error("FX0108", f"for: the body must take (i64, {', '.join(map(str, carry))}) and yield the same carry")
    return carry


def _for_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    lo, hi, step, *carry = args
    for i in range(int(lo), int(hi), int(step)):
        carry = it.run(o.blocks[0], [np.int64(i), *carry], env)
    return carry


op(
    "for",
    _for,
    attrs={"unroll": ("int", 0), "vectorize": ("bool", True), "fast": ("bool", False)},
    level="loop",
    category="loop",
    regions=1,
    effects=True,
    eval=_for_eval,
    doc=(
        "for(lo, hi, step, carry...): the body takes (i, carry...) and yields the next carry; step is "
        "positive. Results: the last carry. `fast`: float sums and products in a carry may be reassociated "
        "(and so vectorised)."
    ),
)


def _parallel(t: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
    _indices("parallel", t, 1)
    (body,) = blocks
    if [v.type for v in body.args] != [INDEX] or body.outs:
        raise error("FX0108", "parallel: the body takes one i64 and yields nothing")
    return []


def _parallel_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    for i in range(int(args[0])):
        it.run(o.blocks[0], [np.int64(i)], env)
    return []


op(
    "parallel",
    _parallel,
    attrs={"grain": ("dim", 1)},
    level="loop",
    category="loop",
    regions=1,
    effects=True,
    eval=_parallel_eval,
    doc=(
        "parallel(n): the body runs for i in 0..n in any order on any thread. `grain`: the fewest iterations "
        "worth a thread of their own."
    ),
)


# ---- the host -----------------------------------------------------------------------------------------------------------


def _launch_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    kernel = it.module.funcs[a.callee]
    if "grid" in kernel.attrs:
        simt.run_grid(it, kernel, args)
    else:
        saved, it.dims = it.dims, dict(it.dims)
        it.run(kernel.block, args, {})
        it.dims = saved
    return []


op(
    "launch",
    lambda t, a, k: [],
    attrs={"callee": "str", "outputs": ("int", 1), "inplace": ("any", ())},
    level="loop",
    category="host",
    effects=True,
    eval=_launch_eval,
    doc=(
        "launch(mem..., scalar...): run kernel `callee`. Its last `outputs` memory arguments are written, the "
        "others read. `inplace`: pairs (output argument, input argument) that may share memory."
    ),
)


# ---- GPU ----------------------------------------------------------------------------------------------------------------

for _name, _doc in {
    "thread_id": "Index of this thread in its block along `axis`.",
    "block_id": "Index of this block in the grid along `axis`.",
    "block_dim": "Threads in a block along `axis`.",
    "grid_dim": "Blocks in the grid along `axis`.",
}.items():
    op(
        _name,
        lambda t, a, k: [INDEX],
        attrs={"axis": ("int", 0)},
        level="loop",
        category="gpu",
        eval=lambda it, o, a, args, env: [it.simt_index(o.name, a.axis)],
        doc=_doc,
    )

op(
    "barrier",
    lambda t, a, k: [],
    level="loop",
    category="gpu",
    effects=True,
    eval=lambda it, o, a, args, env: it.simt_meet(o, "block", None, args, None),
    doc="All threads of the block wait here for each other.",
)

simt.MEETINGS.update(("barrier", "shuffle_xor"))


def _exchanged(a: Attrs, lanes: Any) -> Any:
    """A lane whose partner does not exist keeps its value."""
    return {i: lanes.get(i ^ a.mask, given) for i, given in lanes.items()}


op(
    "shuffle_xor",
    lambda t, a, k: [t[0]],
    attrs={"mask": "int"},
    level="loop",
    category="gpu",
    effects=True,
    eval=lambda it, o, a, args, env: it.simt_meet(o, "warp", None, args, lambda lanes: _exchanged(a, lanes)),
    doc="The value of the lane whose index differs by xor `mask` (within a warp of 32; all lanes take part).",
)

_ATOMIC = {"add": np.add, "max": np.maximum, "min": np.minimum, "mul": np.multiply}


def _atomic(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    m = _mem("atomic", t[0])
    if t[1] != TensorType(m.dtype) or a.op not in _ATOMIC:
        raise error("FX0108", f"atomic {a.op} of {t[1]} on {m}")
    _indices("atomic", t[2:], m.rank)
    return []


def _atomic_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    mem, x, *idx = args
    at = tuple(int(i) for i in idx)
    _in_bounds(o, mem, at, 1)
    mem[at] = _ATOMIC[a.op](mem[at], x)
    return []


op(
    "atomic",
    _atomic,
    attrs={"op": "str"},
    level="loop",
    category="gpu",
    effects=True,
    eval=_atomic_eval,
    doc="atomic(mem, value, i, ...): mem[i...] = op(mem[i...], value), indivisible.",
)
