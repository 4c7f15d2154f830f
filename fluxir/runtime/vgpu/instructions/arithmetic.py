"""Integer arithmetic: sums, products, quotients, the extended-precision family, minima, dot products of bytes.

Integers wrap around, as numpy's do. What PTX leaves open is done as the hardware does it: a quotient by zero is all ones, and
the remainder is the dividend; the least negative number divided by -1 is itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..isa import Form, Signature, lanewise
from ..values import Array, dtype, is_signed
from .packed import by_halves, in_blocks

_TWICE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _bits(form: Form) -> int:
    return dtype(form.type).itemsize * 8


def _as(form: Form, x: Any) -> Array:
    return np.asarray(x).astype(dtype(form.type), copy=False)


def _clamp(x: Array, kind: str) -> Array:
    """A wide integer to the range of a narrower type."""
    limits = np.iinfo(dtype(kind))
    return np.clip(x, limits.min, limits.max).astype(dtype(kind))


# ---- sums
def _unsigned(x: Array) -> Array:
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _carry_of_sum(a: Array, b: Array, carry: Array | None) -> tuple[Array, Array]:
    """a + b + carry, and whether it carries out of the top bit."""
    u, v = _unsigned(np.asarray(a)), _unsigned(np.asarray(b))
    s = u + v
    out = s < u
    if carry is not None:
        s = s + carry.astype(s.dtype)
        out = out | (carry & (s == 0))
    return s.view(a.dtype), out


def _borrow_of_difference(a: Array, b: Array, borrow: Array | None) -> tuple[Array, Array]:
    u, v = _unsigned(np.asarray(a)), _unsigned(np.asarray(b))
    d = u - v
    out = u < v
    if borrow is not None:
        out = out | (borrow & (d == 0))
        d = d - borrow.astype(d.dtype)
    return d.view(a.dtype), out


@lanewise("add.{u16 u32 u64 s16 s32 s64 u16x2 s16x2} add.sat.s32 add.cc.{u32 s32 u64 s64}", "int", section="9.7.1.1")
def add(form: Form) -> Any:
    """a + b. `.sat` clamps to the range of s32; `.cc` gives the carry."""
    if form.has("cc"):
        return lambda a, b: _carry_of_sum(a, b, None)
    if form.has("sat"):
        return lambda a, b: _clamp(np.add(a, b, dtype=np.int64), "s32")
    return by_halves(form, np.add)


@lanewise("sub.{u16 u32 u64 s16 s32 s64} sub.sat.s32 sub.cc.{u32 s32 u64 s64}", "int", section="9.7.1.2")
def sub(form: Form) -> Any:
    """a - b. `.sat` clamps to the range of s32; `.cc` gives the borrow."""
    if form.has("cc"):
        return lambda a, b: _borrow_of_difference(a, b, None)
    if form.has("sat"):
        return lambda a, b: _clamp(np.subtract(a, b, dtype=np.int64), "s32")
    return np.subtract


@lanewise("addc[.cc].{u32 s32 u64 s64}", "int", reads_carry=True, section="9.7.2.2")
def addc(form: Form) -> Any:
    """a + b + carry."""
    if form.has("cc"):
        return _carry_of_sum
    return lambda a, b, carry: _carry_of_sum(a, b, carry)[0]


@lanewise("subc[.cc].{u32 s32 u64 s64}", "int", reads_carry=True, section="9.7.2.4")
def subc(form: Form) -> Any:
    """a - (b + borrow)."""
    if form.has("cc"):
        return _borrow_of_difference
    return lambda a, b, borrow: _borrow_of_difference(a, b, borrow)[0]


# ---- products
def _high(a: Array, b: Array, kind: str) -> Array:
    """The upper half of the product."""
    if kind in _TWICE:
        wide = dtype(_TWICE[kind])
        product: Array = np.multiply(a, b, dtype=wide)
        upper: Array = (product >> wide.type(dtype(kind).itemsize * 8)).astype(dtype(kind))
        return upper
    u, v = np.asarray(a).view(np.uint64), np.asarray(b).view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    u0, u1, v0, v1 = u & low, u >> half, v & low, v >> half
    middle = u1 * v0 + (u0 * v0 >> half)
    high = u1 * v1 + (middle >> half) + ((middle & low) + u0 * v1 >> half)
    if kind == "s64":  # the unsigned product counts a negative factor 2**64 too large
        high = high - np.where(a < 0, v, np.uint64(0)) - np.where(b < 0, u, np.uint64(0))
    result: Array = high.view(dtype(kind))
    return result


def _multiply(form: Form) -> Any:
    kind = form.type
    if form.has("wide"):
        return lambda a, b: np.multiply(a, b, dtype=dtype(_TWICE[kind]))
    if form.has("hi"):
        return in_blocks(lambda a, b: _high(a, b, kind))
    return np.multiply


def _product(form: Form) -> Signature:
    """Signature of mul and mad: `.wide` has a result (and a summand) of twice the width."""
    result = _TWICE[form.type] if form.has("wide") else form.type
    factors = (form.type, form.type)
    return result, factors if form.instruction.name.startswith("mul") else (*factors, result)


@lanewise(
    "mul.{hi lo}.{u16 u32 u64 s16 s32 s64} mul.wide.{u16 u32 s16 s32}", "int", signature=_product, section="9.7.1.3"
)
def mul(form: Form) -> Any:
    """a * b: the lower half, the upper half, or all of it."""
    return _multiply(form)


@lanewise(
    "mad.{hi lo}.{u16 u32 u64 s16 s32 s64} mad.wide.{u16 u32 s16 s32} mad.hi.sat.s32 mad.{hi lo}.cc.{u32 s32 u64 s64}",
    "int",
    signature=_product,
    section="9.7.1.4",
)
def mad(form: Form) -> Any:
    """a * b + c: of the product the lower half, the upper half, or all of it."""
    product = _multiply(form)
    if form.has("cc"):
        return lambda a, b, c: _carry_of_sum(product(a, b), c, None)
    if form.has("sat"):
        return lambda a, b, c: _clamp(np.add(product(a, b), c, dtype=np.int64), "s32")
    return lambda a, b, c: product(a, b) + c


@lanewise("madc.{hi lo}[.cc].{u32 s32 u64 s64}", "int", 3, reads_carry=True, section="9.7.2.6")
def madc(form: Form) -> Any:
    """a * b + c + carry."""
    product = _multiply(form)
    if form.has("cc"):
        return lambda a, b, c, carry: _carry_of_sum(product(a, b), c, carry)
    return lambda a, b, c, carry: _carry_of_sum(product(a, b), c, carry)[0]


def _product_24(form: Form) -> Any:
    """The product of the lower 24 bits: bits 0 to 31 of it, or 16 to 47."""
    kind = dtype(form.type)
    wide, shift = np.dtype(f"{kind.kind}8"), kind.type(8)

    def product(a: Array, b: Array) -> Array:
        p: Array = np.multiply((a << shift) >> shift, (b << shift) >> shift, dtype=wide)
        return (p >> wide.type(16) if form.has("hi") else p).astype(kind)

    return product


@lanewise("mul24.{hi lo}.{u32 s32}", "int", section="9.7.1.5")
def mul24(form: Form) -> Any:
    """The product of the lower 24 bits of a and b: its lower (`.lo`) or upper (`.hi`) 32 bits of 48."""
    return _product_24(form)


@lanewise("mad24.{hi lo}.{u32 s32} mad24.hi.sat.s32", "int", 3, section="9.7.1.6")
def mad24(form: Form) -> Any:
    """mul24 and a sum."""
    product = _product_24(form)
    if form.has("sat"):
        return lambda a, b, c: _clamp(np.add(product(a, b), c, dtype=np.int64), "s32")
    return lambda a, b, c: product(a, b) + c


# ---- quotients
def _divide(a: Array, b: Array) -> tuple[Array, Array]:
    """Quotient towards zero, and remainder with the sign of a."""
    kind = np.asarray(a).dtype
    if kind.kind == "u":
        zero = b == 0
        divisor = np.where(zero, kind.type(1), b)
        q, r = np.divmod(a, divisor)
        return np.where(zero, ~kind.type(0), q), np.where(zero, a, r)
    zero, minus = b == 0, b == -1
    divisor = np.where(zero | minus, kind.type(1), b)
    q, r = np.divmod(a, divisor)
    up = (r != 0) & ((a < 0) != (divisor < 0))  # numpy rounds down
    q, r = q + up.astype(kind), r - np.where(up, divisor, kind.type(0))
    return np.where(zero, kind.type(-1), np.where(minus, -a, q)), np.where(zero, a, r)


@lanewise("div.{u16 u32 u64 s16 s32 s64}", "int", section="9.7.1.8")
def div(form: Form) -> Any:
    """a / b, towards zero; all ones where b is zero."""
    return in_blocks(lambda a, b: _divide(a, b)[0])


@lanewise("rem.{u16 u32 u64 s16 s32 s64}", "int", section="9.7.1.9")
def rem(form: Form) -> Any:
    """The remainder of a / b, with the sign of a; a where b is zero."""
    return in_blocks(lambda a, b: _divide(a, b)[1])


# ---- one by one
@lanewise("abs.{s16 s32 s64}", "int", 1, section="9.7.1.10")
def abs_(form: Form) -> Any:
    """|a|; the least negative number is itself."""
    return np.abs


@lanewise("neg.{s16 s32 s64}", "int", 1, section="9.7.1.11")
def neg(form: Form) -> Any:
    """-a."""
    return np.negative


@lanewise("sad.{u16 u32 u64 s16 s32 s64}", "int", 3, section="9.7.1.7")
def sad(form: Form) -> Any:
    """c + |a - b|."""
    return lambda a, b, c: c + np.where(a < b, b - a, a - b)


def _relu(f: Any) -> Any:
    return lambda a, b: np.maximum(f(a, b), 0)


@lanewise("min.{u16 u32 u64 s16 s32 s64 u16x2 s16x2} min.relu.{s32 s16x2}", "int", section="9.7.1.12")
def min_(form: Form) -> Any:
    """The smaller; `.relu` gives zero for a negative one."""
    return by_halves(form, _relu(np.minimum) if form.has("relu") else np.minimum)


@lanewise("max.{u16 u32 u64 s16 s32 s64 u16x2 s16x2} max.relu.{s32 s16x2}", "int", section="9.7.1.13")
def max_(form: Form) -> Any:
    """The larger; `.relu` gives zero for a negative one."""
    return by_halves(form, _relu(np.maximum) if form.has("relu") else np.maximum)


# ---- dot products of bytes
def _dot_types(form: Form) -> Signature:
    a, b = form.types
    result = "s32" if "s32" in (a, b) else "u32"
    return result, ("b32", "b32", result)


def _field(x: Array, index: int, bits: int, signed: bool) -> Array:
    """A field of a word as int64."""
    left, right = np.int32(32 - bits * (index + 1)), np.int32(32 - bits)
    word = np.asarray(x).view(np.int32 if signed else np.uint32)
    return ((word << left.astype(word.dtype)) >> right.astype(word.dtype)).astype(np.int64)


@lanewise("dp4a.{u32 s32}.{u32 s32}", "int", signature=_dot_types, section="9.7.1.23")
def dp4a(form: Form) -> Any:
    """c plus the products of the four bytes of a and of b."""
    a_signed, b_signed = map(is_signed, form.types)
    result = dtype(_dot_types(form)[0])

    def dot(a: Array, b: Array, c: Array) -> Array:
        total = np.asarray(c).astype(np.int64)
        for i in range(4):
            total = total + _field(a, i, 8, a_signed) * _field(b, i, 8, b_signed)
        return total.astype(result)

    return in_blocks(dot)


@lanewise("dp2a.{lo hi}.{u32 s32}.{u32 s32}", "int", signature=_dot_types, section="9.7.1.24")
def dp2a(form: Form) -> Any:
    """c plus the products of the two halves of a and of the two lower (`.lo`) or upper bytes of b."""
    a_signed, b_signed = map(is_signed, form.types)
    result, first = dtype(_dot_types(form)[0]), 2 if form.has("hi") else 0

    def dot(a: Array, b: Array, c: Array) -> Array:
        total = np.asarray(c).astype(np.int64)
        for i in range(2):
            total = total + _field(a, i, 16, a_signed) * _field(b, first + i, 8, b_signed)
        return total.astype(result)

    return in_blocks(dot)
