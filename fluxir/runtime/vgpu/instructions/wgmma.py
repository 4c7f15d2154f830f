"""`wgmma`: four warps multiply matrices in shared memory, asynchronously.

A matrix in shared memory is named by a descriptor: where it starts, two strides, and over how many bytes its 16-byte chunks are
swizzled. It is made of core matrices of 8 lines of 16 bytes; lines go along K ("K-major") or along M or N. The formulas of
`_chunks` give the place of every chunk. Accumulators lie as those of `mma`, 16 rows for each of the four warps.

Source: PTX ISA 9.0, section 9.7.15 (asynchronous warpgroup-level matrix instructions).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fragments as fr
from ..bulk import pieces
from ..isa import Form, machine, reject
from ..memory import ALLOCATED, WRITTEN
from ..ptx import Immediate, Register, Vector
from ..tensor_maps import swizzled
from ..values import Array
from .matrix import accumulator_type, shape_of, tensor_class

if TYPE_CHECKING:
    from ..code import Step
    from ..ptx import Instruction, Operand
    from ..scope import Read, Scope
    from ..wave import Mask, Wave

_SHAPES = " ".join(f"m64n{n}k{k}" for k in (8, 16, 32, 256) for n in range(8, 257, 8))
_DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32, "b1": 256}
_SPANS = (0, 128, 64, 32)  # bytes of a swizzle, by the descriptor's mode


def _group(form: Form) -> str:
    return tensor_class(form) if form.has("mma_async") else "barrier"


@machine(
    "wgmma",
    _group,
    "f16 bf16 tf32 f32 s32 s8 u8 b1 e4m3 e5m2",
    f"fence commit_group wait_group mma_async sync aligned satfinite and popc {_SHAPES}",
    sync="warp",
    section="9.7.15",
)
def wgmma(form: Form, scope: Scope) -> Step:
    """Multiply matrices by a warpgroup, and wait for it."""
    x = form.instruction
    if form.has("mma_async"):
        return _multiply(form, scope)
    act = _fence
    if form.has("commit_group"):
        act = _commit
    elif form.has("wait_group"):
        newest = x.operands[0]
        if not isinstance(newest, Immediate):
            reject(x, "a number of groups is expected", "FX0711")
        act = functools.partial(_wait, newest.value)

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        act(w, m)

    return run


def _fence(w: Wave, m: Mask) -> None:
    w.warpgroups.fence(m)


def _commit(w: Wave, m: Mask) -> None:
    w.warpgroups.commit(m)


def _wait(newest: int, w: Wave, m: Mask) -> None:
    w.warpgroups.wait(m, newest)


def _leaders(w: Wave, m: Mask, x: Instruction) -> Array | None:
    """The first thread of every warpgroup that executes it; None where one does so in part, which is a finding."""
    per_block = w.stride // 32
    warp = np.flatnonzero(m.warps)
    group = warp // per_block * ((per_block + 3) // 4) + warp % per_block // 4
    _, first, count = np.unique(group, return_index=True, return_counts=True)
    if (count == 4).all() and m.count == 128 * len(first):
        return warp[first] * 32
    whole = np.isin(group, group[first][count == 4])
    alone = m.bits & np.repeat(np.isin(np.arange(w.warps), warp[~whole]) | ~m.by_warp.all(axis=1), 32)
    w.report("absent-lanes", "all 128 threads of a warpgroup must execute it together", x, np.flatnonzero(alone))
    return None


# ---- matrices in shared memory


@functools.cache
def _chunks(lines: int, nbytes: int, along_k: bool, span: int) -> tuple[Array, Array, Array]:
    """Of a matrix of `lines` lines of `nbytes` bytes: for every 16-byte chunk by lines, its place as (bytes, leading byte
    offsets, stride byte offsets). Lines are rows where they go along K, else they are steps along K."""
    line, chunk = np.indices((lines, nbytes // 16))
    wide = max(1, span // 16)
    if along_k and not span:
        return line % 8 * 16, chunk, line // 8
    if along_k:
        return line % 8 * span + chunk * 16, np.zeros_like(line), line // 8
    inner = line % 8 * wide * 16 + chunk % wide * 16
    if not span:
        return inner, line // 8, chunk
    return inner, chunk // wide, line // 8


def _load(
    w: Wave, leaders: Array, descriptor: Array, lines: int, nbytes: int, along_k: bool, x: Instruction
) -> tuple[Array, Array]:
    """(uint8[groups, lines, nbytes], the places of their chunks) that the descriptors (uint64, of each leader) name."""
    d = descriptor.astype(np.int64)
    start, leading, stride = (((d >> s) & 0x3FFF) << 4 for s in (0, 16, 32))
    phase, mode = (d >> 49) & 7, int(d[0] >> 62) & 3
    span = _SPANS[mode]
    inner, by_leading, by_stride = _chunks(lines, nbytes, along_k, span)
    place = start[:, None, None] + inner + by_leading * leading[:, None, None] + by_stride * stride[:, None, None]
    at = swizzled(place - (phase << 7)[:, None, None], span) + (phase << 7)[:, None, None]
    m = pieces(w, np.repeat(leaders, inner.size))
    flat = at.reshape(-1)
    good = w.memory.good("shared", m, flat, 16, ALLOCATED | WRITTEN, x)
    where = w.memory.place("shared", m, flat if good is None else np.where(good, flat, 0))
    w.counters.bulk("shared load", where.size * 16)
    if w.memory.checks:
        w.memory.check_fenced(m, where, 16, x)
        w.races.load(where, 16, m, x, convergent=True)
    units = w.memory.shared.units(8)
    data = np.stack([units[where >> 3], units[(where >> 3) + 1]], axis=1).view(np.uint8)
    return data.reshape(len(leaders), lines, nbytes), where


class _Factor:
    """One factor of a product: `size` rows of A or columns of B."""

    def __init__(
        self, form: Form, scope: Scope, operand: Operand, kind: str, size: int, depth: int, transposed: bool
    ) -> None:
        x = self.x = form.instruction
        self.kind, self.size, self.depth, self.transposed = kind, size, depth, transposed
        self.bits = fr.BITS[kind]
        self.registers: list[Read] = []
        if isinstance(operand, Vector):
            self.registers = [scope.read(o, "b32", x) for o in operand.items]
            if len(self.registers) != 16 * depth * self.bits // 1024:
                reject(x, f"A has {len(self.registers)} registers, not {16 * depth * self.bits // 1024}", "FX0711")
            self.slots = [scope.slot(o, x) for o in operand.items if isinstance(o, Register)]
        else:
            self.descriptor = scope.read(operand, "b64", x)
            self.slots = []

    def values(self, w: Wave, m: Mask, leaders: Array) -> tuple[Array, Array]:
        """(float64[groups, size, depth], the places in shared memory that were read)."""
        if self.registers:
            places = fr.left_places(16, self.depth, self.bits)
            found = fr.gather(w, m, [r(w) for r in self.registers], self.kind, places, (16, self.depth))
            return found.reshape(-1, self.size, self.depth), np.zeros(0, np.int64)
        d = np.broadcast_to(self.descriptor(w), (w.size,))[leaders]
        lines, length = (self.depth, self.size) if self.transposed else (self.size, self.depth)
        raw, where = _load(w, leaders, d, lines, length * self.bits // 8, not self.transposed, self.x)
        codes = fr.units(self.kind, raw.view(np.uint32))
        found = fr.decode(self.kind, codes)
        return (found.transpose(0, 2, 1) if self.transposed else found), where


def _multiply(form: Form, scope: Scope) -> Step:
    """D = A B, or A B + D: A [64, k] in registers or shared memory, B [k, n] in shared memory."""
    x = form.instruction
    if len(form.types) != 3 or len(x.operands) < 4:
        reject(x, "three types and at least four operands are expected", "FX0711")
    m_, n, k = shape_of(form)
    to, left, right = form.types
    if _DEPTH.get(left) != k:
        reject(x, f"the shape m{m_}n{n}k{k} is not one of `.{left}`")
    numbers = [o.value for o in x.operands[4:] if isinstance(o, Immediate)]
    signs, trans = (numbers[:2], numbers[2:]) if to in ("f16", "f32") else ([1, 1], [])
    if any(s not in (1, -1) for s in signs) or any(t not in (0, 1) for t in trans):
        reject(x, "scales of 1 or -1 and transpositions of 0 or 1 are expected", "FX0711")
    if trans and fr.BITS[left] != 16:
        reject(x, "only factors of 16 bits are transposed", "FX0711")
    in_registers = isinstance(x.operands[1], Vector)
    trans_a, trans_b = (
        (False, bool(trans and trans[-1])) if in_registers else (bool(trans and trans[0]), bool(trans and trans[-1]))
    )
    a = _Factor(form, scope, x.operands[1], left, m_, k, trans_a)
    b = _Factor(form, scope, x.operands[2], right, n, k, trans_b)
    keep = scope.read(x.operands[3], "pred", x)
    outputs = scope.items(x.operands[0])
    word = accumulator_type(to)
    reads, writes = [scope.read(o, word, x) for o in outputs], [scope.write(o, word, x) for o in outputs]
    slots = [scope.slot(o, x) for o in outputs if isinstance(o, Register)]
    if len(outputs) != n * 16 // 32 // (2 if to == "f16" else 1):
        reject(x, f"D has {len(outputs)} registers", "FX0711")
    places = fr.sum_places(16, n)
    sign = float(np.prod(signs)) if signs else 1.0
    saturate, logic = form.has("satfinite"), form.has("and")

    def run(w: Wave, m: Mask) -> None:
        fr.check_warps(w, m, x)
        leaders = _leaders(w, m, x)
        if leaders is None:
            return
        w.warpgroups.check(a.slots, m, x)
        first, read_a = a.values(w, m, leaders)
        second, read_b = b.values(w, m, leaders)
        w.counters.count("tensor_flops", 2 * m_ * n * k * len(leaders))
        third: Any = fr.gather(w, m, [r(w) for r in reads], to, places, (16, n)).reshape(-1, m_, n)
        kept = np.broadcast_to(keep(w), (w.size,))[leaders][:, None, None]
        product = (
            fr.popc(first, second.transpose(0, 2, 1), False) if logic else fr.multiply(first, second.transpose(0, 2, 1))
        )
        result = fr.accumulate(product * sign, np.where(kept, third, 0.0), to, saturate)
        for put, v in zip(writes, fr.scatter(w, m, result.reshape(-1, 16, n), places)):
            put(w, v, m)
        owner = np.concatenate([np.repeat(leaders, len(r) // len(leaders)) for r in (read_a, read_b)])
        w.warpgroups.start(m, slots, np.concatenate([read_a, read_b]), owner, x)

    return run
