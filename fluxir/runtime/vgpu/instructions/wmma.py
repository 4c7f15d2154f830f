"""`wmma`: matrices of a warp whose place in the registers is the machine's own affair.

Here a fragment's elements go through the lanes in the order of memory: factors by rows or by columns as their layout says,
accumulators by rows. Where a fragment has room for more elements than the matrix has, later lanes hold them again.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fragments as fr
from ..isa import Form, machine, reject
from ..values import Array
from .matrix import accumulator_type, shape_of, tensor_class

if TYPE_CHECKING:
    from ..code import Step
    from ..scope import Scope
    from ..wave import Mask, Wave

_SHAPES = "m16n16k16 m32n8k16 m8n32k16 m16n16k8 m8n8k4 m8n8k32 m8n8k128"
_FACTORS = {
    "m16n16k16": ("f16", "bf16", "s8", "u8"),
    "m32n8k16": ("f16", "bf16", "s8", "u8"),
    "m8n32k16": ("f16", "bf16", "s8", "u8"),
    "m16n16k8": ("tf32",),
    "m8n8k4": ("f64",),
    "m8n8k32": ("s4", "u4"),
    "m8n8k128": ("b1",),
}


def _group(form: Form) -> str:
    if form.has("mma"):
        return tensor_class(form)
    return f"memory.{form.one_of('global', 'shared', 'shared::cta', default='generic').partition('::')[0]}"


@machine(
    "wmma",
    _group,
    "f16 bf16 tf32 f32 f64 s32 s8 u8 s4 u4 b1",
    f"load store mma a b c d sync aligned row col global shared shared::cta satfinite xor and popc rn rz rm rp {_SHAPES}",
    sync="warp",
    section="9.7.14.4",
)
def wmma(form: Form, scope: Scope) -> Step:
    """Load, multiply or store matrices of a warp in opaque fragments."""
    if form.has("mma"):
        return _multiply(form, scope)
    return _move(form, scope)


def _word(kind: str) -> str:
    return "f64" if kind == "f64" else "b32"


@functools.cache
def _places(rows: int, columns: int, layout: str) -> Array:
    """For every element by rows: its number in the order of the layout."""
    if layout == "row":
        return np.arange(rows * columns)
    return np.arange(rows * columns).reshape(columns, rows).T.reshape(-1).copy()


def _multiply(form: Form, scope: Scope) -> Step:
    x = form.instruction
    m_, n, k = shape_of(form)
    layouts = [f for f in form.flags if f in ("row", "col")]
    if len(layouts) != 2 or len(form.types) not in (2, 4) or len(x.operands) != 4:
        reject(x, "two layouts, the types and four operands are expected", "FX0711")
    to, of = form.types[0], form.types[-1]
    left, right = form.types[1:3] if len(form.types) == 4 else ("f16", "f16")
    if left not in _FACTORS[f"m{m_}n{n}k{k}"]:
        reject(x, f"the shape m{m_}n{n}k{k} is not one of `.{left}`")
    a, b = ([scope.read(o, _word(left), x) for o in scope.items(operand)] for operand in x.operands[1:3])
    c = [scope.read(o, accumulator_type(of), x) for o in scope.items(x.operands[3])]
    d = [scope.write(o, accumulator_type(to), x) for o in scope.items(x.operands[0])]
    places_a, places_b = _places(m_, k, layouts[0]), _places(k, n, layouts[1])
    for name, held, kind, size in (
        ("A", a, left, m_ * k),
        ("B", b, right, k * n),
        ("C", c, of, m_ * n),
        ("D", d, to, m_ * n),
    ):
        fr.check_registers(x, len(held), kind, size, name)
    sums, logic, saturate = _places(m_, n, "row"), form.one_of("xor", "and"), form.has("satfinite")

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        w.counters.count("tensor_flops", 2 * m_ * n * k * m.warp_count)
        first = fr.gather(w, m, [r(w) for r in a], left, places_a, (m_, k))
        second = fr.gather(w, m, [r(w) for r in b], right, places_b, (k, n))
        third = fr.gather(w, m, [r(w) for r in c], of, sums, (m_, n))
        product = fr.popc(first, second, logic == "xor") if logic else fr.multiply(first, second)
        for put, v in zip(d, fr.scatter(w, m, fr.accumulate(product, third, to, saturate), sums)):
            put(w, v, m)

    return run


# ---- memory


def _chunks(rows: int, columns: int, which: str, layout: str, bits: int, held: int) -> tuple[Array, Array, int]:
    """How a lane reaches its `held` elements: (line, first element in it) [lanes, chunks] of the matrix in memory, and the
    bytes of a chunk (16 at most)."""
    lines, length = (rows, columns) if layout == "row" else (columns, rows)
    if which in "cd" and layout == "col":  # elements go by rows and memory by columns: one at a time
        each = 1
        e = np.arange(32)[:, None] * held + np.arange(held)
        return e % columns, e // columns, bits // 8
    each = min(held, length, 128 // bits)
    e = (np.arange(32)[:, None] * held + np.arange(0, held, each)) % (lines * length)
    return e // length, e % length, each * bits // 8


def _move(form: Form, scope: Scope) -> Step:
    """`wmma.load` and `wmma.store`: the matrix's lines are `stride` elements apart."""
    x = form.instruction
    m_, n, k = shape_of(form)
    which, kind = form.one_of("a", "b", "c", "d"), form.type
    layout = form.one_of("row", "col")
    rows, columns = {"a": (m_, k), "b": (k, n)}.get(which, (m_, n))
    bits, space = fr.BITS[kind], form.one_of("global", "shared", "shared::cta", default="generic").partition("::")[0]
    operands = list(x.operands)
    if form.has("load"):
        registers, pointer, *rest = operands
    else:
        pointer, registers, *rest = operands
    count = len(scope.items(registers))
    held = count * max(1, 32 // bits)
    total = rows * columns
    if not layout or held * 32 % total or total % held:
        reject(x, f"{count} registers hold no fragment of it", "FX0711")
    line, first, nbytes = _chunks(rows, columns, which, layout, bits, held)
    address = scope.address(pointer, space, x)
    stride = scope.read(rest[0], "u32", x) if rest else None
    dense = columns if layout == "row" else rows
    unit = min(nbytes, _unit(bits))
    word = accumulator_type(kind) if which in "cd" else _word(kind)
    view = np.float64 if word == "f64" else np.uint32

    def places(w: Wave, i: int) -> Any:
        """The address of each thread's chunk i."""
        by = np.asarray(stride(w)).astype(np.int64) if stride is not None else dense
        at = np.tile(line[:, i], w.warps) * by + np.tile(first[:, i], w.warps)
        return address(w) + (at * bits // 8).astype(np.uint64)

    if form.has("load"):
        writes = [scope.write(o, word, x) for o in scope.items(registers)]

        def load(w: Wave, m: Mask) -> None:
            fr.check_warps(w, m, x)
            parts = []
            for i in range(line.shape[1]):
                parts += w.memory.load(m, space, places(w, i), unit, nbytes // unit, x)
            whole = np.ascontiguousarray(np.stack(parts, axis=1)).view(view)
            for i, put in enumerate(writes):
                put(w, np.ascontiguousarray(whole[:, i]), m)

        return load
    reads = [scope.read(o, word, x) for o in scope.items(registers)]

    def store(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        whole = np.stack([np.broadcast_to(r(w), (w.size,)) for r in reads], axis=1)
        pieces = np.ascontiguousarray(whole).view(f"u{unit}")
        each = nbytes // unit
        for i in range(line.shape[1]):
            values = [np.ascontiguousarray(pieces[:, i * each + j]) for j in range(each)]
            w.memory.store(m, space, places(w, i), unit, values, x)

    return store


def _unit(bits: int) -> int:
    """Bytes of one access: of an element, or of a word of small ones."""
    return max(4, bits // 8)
