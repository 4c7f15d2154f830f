"""Matrices spread over the registers of a warp: where every element of a fragment is, how its bits are a number, and the
product of two of them. Used by `mma`, `wmma` and `wgmma`.

All of this works on many warps at once: an operand is gathered as [warps, rows, columns] in float64. Products of operands of
up to 16 bits are exact in it and sums of them nearly so; the result is rounded once, to the accumulator's type. Hardware
truncates while it adds: results agree exactly on small integers and to a few units in the last place elsewhere.
tf32 operands keep their sign, exponent and upper 10 bits of the fraction.

Source: PTX ISA 9.0, section 9.7.14 (warp-level matrix instructions).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .isa import reject
from .narrowfloat import decode as codes_of
from .rounding import E4M3, E5M2
from .values import Array, bf16_to_f32

if TYPE_CHECKING:
    from .ptx import Instruction
    from .wave import Mask, Wave

__all__ = [
    "BITS",
    "accumulate",
    "check_registers",
    "check_warps",
    "decode",
    "gather",
    "left_places",
    "multiply",
    "popc",
    "right_places",
    "scatter",
    "sum_places",
    "units",
]

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "f32": 32, "f64": 64, "s32": 32, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1,
        "e4m3": 8, "e5m2": 8}  # fmt: skip
"""Bits of an element by its type."""


def check_warps(w: Wave, m: Mask, x: Instruction) -> None:
    """An instruction that all 32 lanes of a warp must execute together: a finding for those warps where some do not."""
    rows = m.by_warp
    if m.count == w.size:
        return
    partial = m.warps & ~rows.all(axis=1)
    if partial.any():
        first = int(np.flatnonzero(partial)[0])
        gone = ", ".join(str(i) for i in np.flatnonzero(~rows[first]))
        w.report("absent-lanes", f"all lanes of the warp must execute it together; lanes {gone} do not", x,
                 np.flatnonzero(m.bits & np.repeat(partial, 32)))  # fmt: skip


# ---- elements


def units(kind: str, words: Array) -> Array:
    """Registers (uint32 or float64) [..., registers] as the elements' codes [..., elements], lowest bits first."""
    bits = BITS[kind]
    words = np.ascontiguousarray(words)
    if bits >= 32:
        return words
    if bits >= 8:
        return words.view(f"u{bits // 8}")
    raw = words.view(np.uint8)
    if bits == 1:
        return np.unpackbits(raw, axis=-1, bitorder="little")
    return np.stack([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1).reshape(*raw.shape[:-1], -1)


def decode(kind: str, codes: Array) -> Array:
    """The numbers (float64) that the codes of a type stand for."""
    if kind == "f16":
        return codes.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return bf16_to_f32(codes).astype(np.float64)
    if kind == "tf32":
        return (codes.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if kind in ("e4m3", "e5m2"):
        return _table(kind)[codes]
    if kind == "s8":
        return codes.view(np.int8).astype(np.float64)
    if kind == "s4":
        return ((codes ^ np.uint8(8)).astype(np.float64)) - 8.0
    if kind in ("u8", "u4", "b1"):
        return codes.astype(np.float64)
    view = {"f32": np.float32, "f64": np.float64, "s32": np.int32}[kind]
    return codes.view(view).astype(np.float64)


@functools.cache
def _table(kind: str) -> Array:
    return codes_of(E4M3 if kind == "e4m3" else E5M2).astype(np.float64)


# ---- places: for every element of the matrix, by rows, its number among all elements of the warp's registers


@functools.cache
def left_places(m: int, k: int, bits: int) -> Array:
    """Of the first factor [m, k] of `mma`: 8 rows and 4 registers' width of columns at a time."""
    per = max(1, 32 // bits)
    row, column = np.indices((m, k))
    lane = row % 8 * 4 + column // per % 4
    register = column // (4 * per) * (m // 8) + row // 8
    registers = m // 8 * (k // (4 * per))
    return ((lane * registers + register) * per + column % per).reshape(-1)


@functools.cache
def right_places(k: int, n: int, bits: int) -> Array:
    """Of the second factor [k, n], n = 8."""
    return left_places(n, k, bits).reshape(n, k).T.reshape(-1).copy()


@functools.cache
def sum_places(m: int, n: int) -> Array:
    """Of the accumulator [m, n]: pairs of columns, then 8 rows further, then 8 columns further."""
    row, column = np.indices((m, n))
    lane = row % 8 * 4 + column % 8 // 2
    register = (column // 8 * (m // 8) + row // 8) * 2 + column % 2
    return (lane * (m * n // 32) + register).reshape(-1)


def check_registers(x: Instruction, count: int, kind: str, elements: int, name: str) -> None:
    """FX0711 unless `count` registers of each lane hold so many elements of a matrix, once or (`wmma`) more often."""
    held = 32 * count * max(1, 32 // BITS[kind])
    if held < elements or held % elements:
        reject(x, f"{count} registers do not hold {name}", "FX0711")


@functools.cache
def _inverse(places: bytes) -> Array:
    return np.asarray(np.argsort(np.frombuffer(places, np.int64)))


def gather(w: Wave, m: Mask, registers: list[Any], kind: str, places: Array, shape: tuple[int, int]) -> Array:
    """The matrices of all warps that have a thread in `m`, as float64 [warps, *shape]."""
    packed = units(kind, _stack(w, m, registers))
    codes = packed.reshape(packed.shape[0], -1)[:, places]
    return decode(kind, codes).reshape(-1, *shape)


def _stack(w: Wave, m: Mask, registers: list[Any]) -> Array:
    """[warps, 32, registers] of a fragment, as uint32 (float64 where they are double)."""
    out = np.empty((w.size, len(registers)), np.float64 if registers[0].dtype == np.float64 else np.uint32)
    for i, r in enumerate(registers):
        out[:, i] = r if r.dtype == out.dtype else r.view(out.dtype)
    rows = out.reshape(-1, 32, len(registers))
    return rows if m.count == w.size else rows[m.warps]


def scatter(w: Wave, m: Mask, matrix: Array, places: Array) -> list[Array]:
    """The registers that hold matrices [warps, rows, columns] of numbers of 16, 32 or 64 bits; 16-bit ones are packed."""
    flat = matrix.reshape(len(matrix), -1)[:, _inverse(places.astype(np.int64).tobytes())]
    flat = np.ascontiguousarray(flat)
    if flat.dtype.itemsize == 2:
        flat = flat.view(np.uint32)
    rows = flat.reshape(-1, flat.shape[1] // 32)
    if m.count != w.size:
        whole = np.zeros((w.size, rows.shape[1]), rows.dtype)
        whole.reshape(-1, 32, rows.shape[1])[m.warps] = rows.reshape(-1, 32, rows.shape[1])
        rows = whole
    return [np.ascontiguousarray(rows[:, i]) for i in range(rows.shape[1])]


# ---- products


def multiply(a: Array, b: Array) -> Array:
    """[warps, m, k] times [warps, k, n]."""
    return np.asarray(np.matmul(a, b))


def popc(a: Array, b: Array, xor: bool) -> Array:
    """The same on bits: how many positions are set in both, or (`xor`) in one of the two."""
    both = np.matmul(a, b)
    return np.asarray(a.sum(axis=-1, keepdims=True) + b.sum(axis=-2, keepdims=True) - 2 * both if xor else both)


def accumulate(product: Array, c: Array, kind: str, saturate: bool = False) -> Array:
    """product + c, rounded once to the type; integers wrap around, or stay in range with `saturate`."""
    total: Array = product + c
    if kind == "s32":
        if saturate:
            total = np.clip(total, -(2.0**31), 2.0**31 - 1)
        return total.astype(np.int64).astype(np.int32)
    to = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]
    if saturate and kind == "f16":
        total = np.clip(total, -65504.0, 65504.0)
    return total.astype(to)
