"""Counting, finding, reversing, extracting and inserting bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..isa import Form, Signature, lanewise
from ..values import Array, dtype, is_signed
from .packed import in_blocks

_NOT_FOUND = np.uint32(0xFFFFFFFF)


def _count(form: Form) -> Signature:
    return "u32", (form.type,)


def top_bit(x: Array) -> Array:
    """The position of the highest bit that is set, as int64; -1 where there is none. `x`: unsigned."""
    high, low = (np.asarray(x) >> x.dtype.type(x.dtype.itemsize * 4)).astype(np.float64), np.asarray(x)
    half = x.dtype.itemsize * 4
    low = (low & x.dtype.type((1 << half) - 1)).astype(np.float64)

    def exponent(v: Array) -> Array:
        return (v.view(np.int64) >> np.int64(52)) - np.int64(1023)

    return np.where(high > 0, exponent(high) + half, np.where(low > 0, exponent(low), np.int64(-1)))


@lanewise("popc.{b32 b64}", "int", signature=_count, section="9.7.1.14")
def popc(form: Form) -> Any:
    """How many bits are set."""
    return lambda a: np.bitwise_count(a).astype(np.uint32)


@lanewise("clz.{b32 b64}", "int", signature=_count, section="9.7.1.15")
def clz(form: Form) -> Any:
    """How many zeros stand before the highest bit that is set; the width where there is none."""
    width = dtype(form.type).itemsize * 8
    return in_blocks(lambda a: (width - 1 - top_bit(a)).astype(np.uint32))


@lanewise("bfind[.shiftamt].{u32 u64 s32 s64}", "int", signature=_count, section="9.7.1.16")
def bfind(form: Form) -> Any:
    """The position of the highest bit that is not the sign; all ones where there is none. `.shiftamt`: how far left it would
    have to move to become the highest."""
    kind, shift = dtype(form.type), form.has("shiftamt")
    word, top = np.dtype(f"u{kind.itemsize}"), kind.itemsize * 8 - 1

    def find(a: Array) -> Array:
        x = (a ^ (a >> kind.type(top)) if is_signed(form.type) else a).view(word)
        at = top_bit(x)
        return np.where(at < 0, _NOT_FOUND, (top - at if shift else at).astype(np.uint32))

    return in_blocks(find)


_REVERSED = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)


@lanewise("brev.{b32 b64}", "int", 1, section="9.7.1.18")
def brev(form: Form) -> Any:
    """The bits in reverse order."""
    kind = dtype(form.type)

    def reverse(a: Array) -> Array:
        octets = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        return _REVERSED[octets].view(kind).byteswap().reshape(np.shape(a))

    return reverse


# ---- fields
def _ones(count: Array, kind: np.dtype[Any]) -> Array:
    """The lowest `count` bits set, all of them where count is the width or more. `kind`: unsigned."""
    width = kind.itemsize * 8
    some = (kind.type(1) << np.minimum(count, width - 1).astype(kind)) - kind.type(1)
    ones: Array = np.where(count >= width, ~kind.type(0), some)
    return ones


def _left(x: Array, n: Array) -> Array:
    kind = np.asarray(x).dtype
    width = kind.itemsize * 8
    shifted: Array = np.where(n < width, x << np.minimum(n, width - 1).astype(kind), kind.type(0))
    return shifted


@lanewise(
    "bfe.{u32 u64 s32 s64}", "int", signature=lambda form: (form.type, (form.type, "u32", "u32")), section="9.7.1.19"
)
def bfe(form: Form) -> Any:
    """The field of c bits at position b of a (both modulo 256), extended with its sign for signed types. Bits above the top one
    are zeros, or copies of the sign."""
    kind = dtype(form.type)
    wide = np.dtype(f"{kind.kind}8")

    def extract(a: Array, b: Array, c: Array) -> Array:
        at, count = (b & np.uint32(255)).astype(np.int64), (c & np.uint32(255)).astype(np.int64)
        x = np.asarray(a).astype(wide)
        field: Array
        if wide.kind == "u":
            field = np.where(at < 64, x >> np.minimum(at, 63).astype(wide), wide.type(0)) & _ones(count, wide)
        else:
            rest = np.clip(64 - count, 0, 63)
            field = np.where(count > 0, ((x >> np.minimum(at, 63)) << rest) >> rest, 0)
        return field.astype(kind)

    return in_blocks(extract)


@lanewise(
    "bfi.{b32 b64}", "int", signature=lambda form: (form.type, (form.type, form.type, "u32", "u32")), section="9.7.1.20"
)
def bfi(form: Form) -> Any:
    """b with the lowest d bits of a at position c (c and d modulo 256)."""
    kind = dtype(form.type)

    def insert(a: Array, b: Array, c: Array, d: Array) -> Array:
        at, count = c & np.uint32(255), d & np.uint32(255)
        mask = _left(_ones(count, kind), at)
        return (b & ~mask) | (_left(a, at) & mask)

    return in_blocks(insert)


@lanewise("bmsk.{clamp wrap}.b32", "int", signature=lambda form: ("b32", ("u32", "u32")), section="9.7.1.22")
def bmsk(form: Form) -> Any:
    """A mask of b ones at position a. `.wrap` takes both modulo 32; `.clamp` cuts what is above the top bit."""
    wrap, word = form.has("wrap"), np.dtype(np.uint32)

    def mask(a: Array, b: Array) -> Array:
        at, count = (a & np.uint32(31), b & np.uint32(31)) if wrap else (a, b)
        return _left(_ones(count, word), at)

    return mask


@lanewise(
    "szext.{clamp wrap}.{u32 s32}", "int", signature=lambda form: (form.type, (form.type, "u32")), section="9.7.1.21"
)
def szext(form: Form) -> Any:
    """The lowest b bits of a, extended with zeros or with their sign. b modulo 32 (`.wrap`) or at most 32 (`.clamp`)."""
    wrap, kind = form.has("wrap"), dtype(form.type)

    def extend(a: Array, b: Array) -> Array:
        count = (b & np.uint32(31)) if wrap else np.minimum(b, np.uint32(32))
        mask = _ones(count, np.dtype(np.uint32))
        x = np.asarray(a).view(np.uint32) & mask
        if is_signed(form.type):
            sign = (x >> np.minimum(np.maximum(count, 1) - np.uint32(1), np.uint32(31))) & np.uint32(1)
            x = np.where((sign != 0) & (count > 0), x | ~mask, x)
        return x.view(kind)

    return extend


@lanewise("fns.b32", "int", signature=lambda form: ("b32", ("b32", "b32", "s32")), section="9.7.1.17")
def fns(form: Form) -> Any:
    """The position of the n-th bit set in a, counted upwards (or downwards, for negative n) from position b on; for n = 0 of
    bit b itself, if it is set. All ones where there is none."""

    def find(a: Array, b: Array, n: Array) -> Array:
        a, b, n = np.broadcast_arrays(a, b, n)
        result, left = np.full(a.shape, _NOT_FOUND), np.maximum(np.abs(n.astype(np.int64)), 1)
        for step in range(32):
            at = np.where(n < 0, b.astype(np.int64) - step, b.astype(np.int64) + step)
            inside = (at >= 0) & (at < 32) & (b < 32) & ((n != 0) | (step == 0))
            found = inside & ((a >> np.clip(at, 0, 31).astype(np.uint32)) & np.uint32(1)).astype(bool)
            left = left - found
            result = np.where(found & (left == 0), at.astype(np.uint32), result)
        return result

    return in_blocks(find)
