"""Logic and shifts: of bits, whatever they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..isa import Form, Signature, lanewise, machine
from ..ptx import Immediate
from ..values import Array, dtype
from .packed import in_blocks

if TYPE_CHECKING:
    from ..code import Step
    from ..scope import Scope
    from ..wave import Mask, Wave


@lanewise("and.{pred b16 b32 b64}", "logic", section="9.7.8.1")
def and_(form: Form) -> Any:
    """a & b."""
    return np.bitwise_and


@lanewise("or.{pred b16 b32 b64}", "logic", section="9.7.8.2")
def or_(form: Form) -> Any:
    """a | b."""
    return np.bitwise_or


@lanewise("xor.{pred b16 b32 b64}", "logic", section="9.7.8.3")
def xor(form: Form) -> Any:
    """a ^ b."""
    return np.bitwise_xor


@lanewise("not.{pred b16 b32 b64}", "logic", 1, section="9.7.8.4")
def not_(form: Form) -> Any:
    """~a."""
    return np.invert


@lanewise("cnot.{b16 b32 b64}", "logic", 1, section="9.7.8.5")
def cnot(form: Form) -> Any:
    """1 where a is zero, else 0: the logical not of C."""
    kind = dtype(form.type)
    return lambda a: (a == 0).astype(kind)


# ---- any function of three bits
def _lop3(form: Form) -> Signature:
    return form.type, (form.type, form.type, form.type, "b32")


def lookup(a: Array, b: Array, c: Array, table: int) -> Array:
    """The bits of `table` that a, b and c select, bit by bit."""
    result = np.zeros_like(a | b | c)
    for i in range(8):
        if table >> i & 1:
            result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return result


@lanewise("lop3.b32", "logic", signature=_lop3, section="9.7.8.6")
def lop3(form: Form) -> Any:
    """The function of three bits whose table is the fourth operand: 0xF0 stands for a, 0xCC for b, 0xAA for c."""
    table = form.sources[3] if len(form.sources) > 3 else None
    if not isinstance(table, Immediate):
        form.reject("the table of lop3 is a constant")
    return lambda a, b, c, _: lookup(a, b, c, table.value & 0xFF)


@machine("lop3", "logic", "b32", "or and", section="9.7.8.6")
def lop3_and_test(form: Form, scope: Scope) -> Step:
    """`lop3.op.b32 d|p, a, b, c, table, q`: as lop3, and p is whether d is not zero, combined with q."""
    x = form.instruction
    if form.has("or") == form.has("and"):
        form.reject("`lop3` does not take these modifiers and types together")
    combine = np.logical_or if form.has("or") else np.logical_and
    (d, p), (a, b, c, table, q) = form.destinations, form.sources
    if not isinstance(table, Immediate):
        form.reject("the table of lop3 is a constant")
    bits = table.value & 0xFF
    first, second, third = (scope.read(o, "b32", x) for o in (a, b, c))
    test = scope.read(q, "pred", x)
    write, write_test = scope.write(d, "b32", x), scope.write(p, "pred", x)

    def run(w: Wave, m: Mask) -> None:
        result = lookup(first(w), second(w), third(w), bits)
        tested = combine(result != 0, test(w))
        write(w, result, m)
        write_test(w, np.asarray(tested), m)

    return run


# ---- shifts
def _shift(form: Form) -> Signature:
    return form.type, (form.type, "u32")


def _places(kind: np.dtype[Any]) -> Any:
    """A shift's distance in the type of what is shifted. (numpy shifts by the width or more as PTX does.)"""
    if kind.itemsize > 2:
        return lambda b: b.astype(kind)
    return lambda b: np.minimum(b, np.uint32(16)).astype(kind)


@lanewise("shl.{b16 b32 b64}", "logic", signature=_shift, section="9.7.8.8")
def shl(form: Form) -> Any:
    """a << b; zero where b is the width or more."""
    places = _places(dtype(form.type))
    return lambda a, b: np.left_shift(a, places(b))


@lanewise("shr.{b16 b32 b64 u16 u32 u64 s16 s32 s64}", "logic", signature=_shift, section="9.7.8.9")
def shr(form: Form) -> Any:
    """a >> b, with copies of the sign for signed types; as if b were the width where it is more."""
    kind = dtype(form.type)
    if kind.kind == "i":
        top = np.uint32(kind.itemsize * 8 - 1)
        return lambda a, b: a >> np.minimum(b, top).astype(kind)
    places = _places(kind)
    return lambda a, b: np.right_shift(a, places(b))


def _funnel(form: Form) -> Signature:
    return "b32", ("b32", "b32", "u32")


@lanewise("shf.{l r}.{clamp wrap}.b32", "logic", signature=_funnel, section="9.7.8.7")
def shf(form: Form) -> Any:
    """The 64 bits b:a shifted by c: their upper half after a left shift, their lower half after a right shift. c is taken
    modulo 32 (`.wrap`) or at most 32 (`.clamp`)."""

    def funnel(a: Array, b: Array, c: Array) -> Array:
        n = (c & np.uint32(31) if form.has("wrap") else np.minimum(c, np.uint32(32))).astype(np.uint64)
        word = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | np.asarray(a).astype(np.uint64)
        return ((word << n) >> np.uint64(32) if form.has("l") else word >> n).astype(np.uint32)

    return in_blocks(funnel)


# ---- bytes
_PERMUTE = {  # of the eight bytes, those that make up the result, by the lower two bits of c
    "f4e": ((3, 2, 1, 0), (4, 3, 2, 1), (5, 4, 3, 2), (6, 5, 4, 3)),
    "b4e": ((5, 6, 7, 0), (6, 7, 0, 1), (7, 0, 1, 2), (0, 1, 2, 3)),
    "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
    "ecl": ((3, 2, 1, 0), (3, 2, 1, 1), (3, 2, 2, 2), (3, 3, 3, 3)),
    "ecr": ((0, 0, 0, 0), (1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 0)),
    "rc16": ((1, 0, 1, 0), (3, 2, 3, 2), (1, 0, 1, 0), (3, 2, 3, 2)),
}


def _selectors(mode: str, c: Array) -> Array:
    """The selector of the default mode, four nibbles, that does what `c` does in another mode."""
    if not mode:
        return c
    words = [sum(byte << 4 * (3 - i) for i, byte in enumerate(row)) for row in _PERMUTE[mode]]
    return np.array(words, np.uint32)[np.asarray(c & np.uint32(3))]


def _chosen(a: Array, b: Array, selectors: int) -> Array:
    """The bytes that a constant selects."""
    result: Array = np.asarray(np.uint32(0))
    for i in range(4):
        nibble = selectors >> 4 * i & 15
        byte = ((b if nibble & 4 else a) >> np.uint32(8 * (nibble & 3))) & np.uint32(255)
        result = result | (((byte >> np.uint32(7)) * np.uint32(255) if nibble & 8 else byte) << np.uint32(8 * i))
    return result


@lanewise("prmt.b32[.{f4e b4e rc8 ecl ecr rc16}]", "logic", 3, section="9.7.9.7")
def prmt(form: Form) -> Any:
    """Four bytes of b:a. Each nibble of c chooses one, or with its top bit set eight copies of that byte's sign."""
    mode = form.one_of(*_PERMUTE)

    @in_blocks
    def blocked(a: Array, b: Array, c: Array) -> Array:
        word = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | np.asarray(a).astype(np.uint64)
        selectors = _selectors(mode, c)
        result: Array = np.asarray(np.uint32(0))
        for i in range(4):
            nibble = (selectors >> np.uint32(4 * i)) & np.uint32(15)
            byte = ((word >> (np.uint64(8) * (nibble & np.uint32(7)).astype(np.uint64))).astype(np.uint32)) & np.uint32(
                255
            )
            byte = np.where(nibble & np.uint32(8), (byte >> np.uint32(7)) * np.uint32(255), byte)
            result = result | (byte << np.uint32(8 * i))
        return np.asarray(result)

    return lambda a, b, c: _chosen(a, b, int(_selectors(mode, c))) if np.ndim(c) == 0 else blocked(a, b, c)
