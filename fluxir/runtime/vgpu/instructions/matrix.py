"""Matrices of a warp: `mma` multiplies them, `ldmatrix` and `stmatrix` move 8x8 tiles of them between registers and shared
memory, `movmatrix` transposes one.

A tile of 16-bit elements is 8 rows of 16 bytes; the address of row r of tile i is given by lane 8 i + r, and lane 4 r + c holds
elements 2 c and 2 c + 1 of row r.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fragments as fr
from ..isa import Form, machine, reject
from ..memory import ALLOCATED, WRITTEN
from ..values import Array

if TYPE_CHECKING:
    from ..code import Step
    from ..ptx import Instruction
    from ..scope import Scope
    from ..wave import Mask, Wave

# ---- products

_DEPTHS = {  # type of a factor: (m, k) of its shapes, n = 8
    "f16": {(16, 8), (16, 16)},
    "bf16": {(16, 8), (16, 16)},
    "tf32": {(16, 4), (16, 8)},
    "f64": {(8, 4), (16, 4), (16, 8), (16, 16)},
    "s8": {(8, 16), (16, 16), (16, 32)},
    "s4": {(8, 32), (16, 32), (16, 64)},
    "b1": {(8, 128), (16, 128), (16, 256)},
    "e4m3": {(16, 16), (16, 32)},
}
_LIKE = {"u8": "s8", "u4": "s4", "e5m2": "e4m3"}
_SHAPES = " ".join(sorted({f"m{m}n8k{k}" for some in _DEPTHS.values() for m, k in some}))
_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")


def shape_of(form: Form) -> tuple[int, int, int]:
    """(m, n, k) of a matrix instruction. FX0710 where none is named."""
    for flag in form.flags:
        found = _SHAPE.fullmatch(flag)
        if found:
            return int(found[1]), int(found[2]), int(found[3])
    form.reject("it names no shape")


_CLASSES = {"e4m3": "fp8", "e5m2": "fp8", "s8": "int8", "u8": "int8", "s4": "int4", "u4": "int4"}


def tensor_class(form: Form) -> str:
    """The class of a product, by the type of its factors: `tensor.f16`, `tensor.int8`, ..."""
    factor = form.types[1] if len(form.types) > 2 else "f16"  # wmma of halves names accumulators alone
    return f"tensor.{_CLASSES.get(factor, factor)}"


def accumulator_type(kind: str) -> str:
    """How the registers of an accumulator are read: halves are packed in pairs."""
    return "b32" if kind == "f16" else kind


@machine(
    "mma",
    tensor_class,
    "f16 bf16 tf32 f32 f64 s32 s8 u8 s4 u4 b1 e4m3 e5m2",
    f"sync aligned row col satfinite xor and popc rn rz rm rp kind::f8f6f4 {_SHAPES}",
    sync="warp",
    section="9.7.14.5.14",
)
def mma(form: Form, scope: Scope) -> Step:
    """D = A B + C of a warp: A [m, k] by rows, B [k, n] by columns."""
    x = form.instruction
    if len(form.types) != 4 or len(x.operands) != 4:
        reject(x, "four types and four operands are expected", "FX0711")
    to, left, right, of = form.types
    m_, n, k = shape_of(form)
    if (m_, k) not in _DEPTHS.get(_LIKE.get(left, left), ()):
        reject(x, f"the shape m{m_}n{n}k{k} is not one of `.{left}`")
    if not form.has("row") or not form.has("col"):
        reject(x, "the layouts `.row.col` are expected", "FX0711")
    word = "f64" if left == "f64" else "b32"
    a, b = ([scope.read(o, word, x) for o in scope.items(operand)] for operand in x.operands[1:3])
    c = [scope.read(o, accumulator_type(of), x) for o in scope.items(x.operands[3])]
    d = [scope.write(o, accumulator_type(to), x) for o in scope.items(x.operands[0])]
    bits, sums = fr.BITS[left], fr.sum_places(m_, n)
    places, places_b = fr.left_places(m_, k, bits), fr.right_places(k, n, fr.BITS[right])
    for name, held, kind, size in (
        ("A", a, left, m_ * k),
        ("B", b, right, k * n),
        ("C", c, of, m_ * n),
        ("D", d, to, m_ * n),
    ):
        fr.check_registers(x, len(held), kind, size, name)
    saturate, logic = form.has("satfinite"), form.one_of("xor", "and")

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        w.counters.count("tensor_flops", 2 * m_ * n * k * m.warp_count)
        first = fr.gather(w, m, [r(w) for r in a], left, places, (m_, k))
        second = fr.gather(w, m, [r(w) for r in b], right, places_b, (k, n))
        third = fr.gather(w, m, [r(w) for r in c], of, sums, (m_, n))
        product = fr.popc(first, second, logic == "xor") if logic else fr.multiply(first, second)
        result = fr.accumulate(product, third, to, saturate)
        for put, v in zip(d, fr.scatter(w, m, result, sums)):
            put(w, v, m)

    return run


# ---- tiles in shared memory


def _tiles(form: Form) -> int:
    return {"x1": 1, "x2": 2, "x4": 4}[form.one_of("x1", "x2", "x4", default="x1")]


def _space(form: Form) -> str:
    return "shared" if form.one_of("shared", "shared::cta") else "generic"


def _givers(w: Wave, m: Mask, lanes: int) -> Mask:
    """The threads whose addresses count: the first `lanes` of every warp."""
    return m if lanes == 32 else w.mask(m.bits & (w.lane < lanes))


def load_rows(w: Wave, m: Mask, space: str, address: Any, lanes: int, x: Instruction) -> Array:
    """The 16 bytes at the address of each of the first `lanes` lanes: uint8[warps, lanes, 16]."""
    out = np.zeros((w.size, 2), np.uint64)
    for kind, part, at in w.memory.parts(space, address, _givers(w, m, lanes)):
        if kind != "shared":
            w.report("out-of-bounds", f"the rows of a tile lie in shared memory, not in {kind}", x, part.index)
            continue
        good = w.memory.good(kind, part, at, 16, ALLOCATED | WRITTEN, x)
        safe = at if good is None else np.where(good, at, 0)
        where = w.memory.place(kind, part, safe)
        w.counters.access(kind, "load", part, at, 16)
        if w.memory.checks:
            w.races.load(where, 16, part, x, convergent=True)
        words = w.memory.region(kind).units(8)
        first = where // 8
        for i in range(2):
            out[part.index, i] = words[first + i]
        if good is not None:
            out[part.index[~good]] = 0
    return out.view(np.uint8).reshape(-1, 32, 16)[:, :lanes]


def store_rows(w: Wave, m: Mask, space: str, address: Any, rows: Array, x: Instruction) -> None:
    """Store uint8[warps, lanes, 16], 16 bytes at the address of each of the first lanes."""
    lanes = rows.shape[1]
    whole = np.zeros((w.size, 2), np.uint64)
    whole.reshape(-1, 32, 2)[:, :lanes] = np.ascontiguousarray(rows).view(np.uint64)
    w.memory.store(_givers(w, m, lanes), space, address, 8, [whole[:, 0], whole[:, 1]], x)


@machine(
    "ldmatrix",
    "memory.shared",
    "b16",
    "sync aligned m8n8 x1 x2 x4 trans shared shared::cta",
    sync="warp",
    section="9.7.14.5.15",
)
def ldmatrix(form: Form, scope: Scope) -> Step:
    """Load tiles from shared memory, one row of 16 bytes for each of the first lanes."""
    x = form.instruction
    tiles, transposed = _tiles(form), form.has("trans")
    writes = [scope.write(o, "b32", x) for o in scope.items(x.operands[0])]
    space = _space(form)
    address = scope.address(x.operands[1], space, x)
    arrange = _transposed if transposed else _straight
    if len(writes) != tiles:
        reject(x, f"{tiles} registers are expected", "FX0711")

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        rows = load_rows(w, m, space, address(w), 8 * tiles, x)
        for put, v in zip(writes, arrange(rows)):
            put(w, v, m)

    return run


def _straight(rows: Array) -> list[Array]:
    """The tiles' registers from uint8[warps, 8 tiles, 16]."""
    words = rows.view(np.uint32)
    return [np.ascontiguousarray(words[:, i : i + 8]).reshape(-1) for i in range(0, rows.shape[1], 8)]


def _transposed(rows: Array) -> list[Array]:
    halves = rows.view(np.uint16)
    return [
        np.ascontiguousarray(halves[:, i : i + 8].transpose(0, 2, 1)).view(np.uint32).reshape(-1)
        for i in range(0, rows.shape[1], 8)
    ]


@machine(
    "stmatrix",
    "memory.shared",
    "b16",
    "sync aligned m8n8 x1 x2 x4 trans shared shared::cta",
    sync="warp",
    section="9.7.14.5.16",
)
def stmatrix(form: Form, scope: Scope) -> Step:
    """Store tiles to shared memory: the inverse of `ldmatrix`."""
    x = form.instruction
    tiles, transposed = _tiles(form), form.has("trans")
    reads = [scope.read(o, "b32", x) for o in scope.items(x.operands[1])]
    if len(reads) != tiles:
        reject(x, f"{tiles} registers are expected", "FX0711")
    space = _space(form)
    address = scope.address(x.operands[0], space, x)

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        parts = []
        for r in reads:
            tile = np.ascontiguousarray(np.broadcast_to(r(w), (w.size,))).reshape(-1, 8, 4)
            if transposed:
                tile = np.ascontiguousarray(tile.view(np.uint16).transpose(0, 2, 1))
            parts.append(tile.view(np.uint8))
        store_rows(w, m, space, address(w), np.concatenate(parts, axis=1), x)

    return run


@machine("movmatrix", "warp", "b16", "sync aligned m8n8 trans", sync="warp", section="9.7.14.5.17")
def movmatrix(form: Form, scope: Scope) -> Step:
    """Transpose an 8x8 tile that a warp holds in one register."""
    x = form.instruction
    write, read = scope.write(x.operands[0], "b32", x), scope.read(x.operands[1], "b32", x)

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        tile = np.ascontiguousarray(np.broadcast_to(read(w), (w.size,))).view(np.uint16).reshape(-1, 8, 8)
        write(w, np.ascontiguousarray(tile.transpose(0, 2, 1)).view(np.uint32).reshape(-1), m)

    return run
