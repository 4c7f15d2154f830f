"""What an atomic operation makes of the number in memory, in LLVM IR, for one lane after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ptx import type_bytes
from .text import LANES, Text

if TYPE_CHECKING:
    from .accesses import Access

__all__ = ["OPERATIONS", "combine"]

_FLOATS = {"f32": "float", "f64": "double"}
_INTEGERS = ("b32", "b64", "u32", "u64", "s32", "s64", "b16", "u16")
OPERATIONS = {
    "add": ("u32", "s32", "u64", "s64", "b32", "b64", "f32", "f64"),
    **dict.fromkeys(("and", "or", "xor", "exch", "min", "max", "inc", "dec", "cas"), _INTEGERS),
}
"""The types on which each operation is executed natively."""


def combine(f: Text, x: Access, old: str, there: str) -> str:
    """The new bits; the operand's bits are at `there` (for `cas` those that are expected, and the new ones a vector further)."""
    name, kind = x.operation.split(".")
    bits = f"i{8 * type_bytes(kind)}"
    operand = f.load(bits, there)
    if name == "cas":
        new = f.load(bits, f(f"getelementptr {bits}, ptr {there}, i64 {LANES}"))
        return f(f"select i1 {f(f'icmp eq {bits} {old}, {operand}')}, {bits} {new}, {bits} {old}")
    if name == "exch":
        return operand
    if name in ("min", "max"):
        sign = "s" if kind[0] == "s" else "u"
        return f.call(bits, f"llvm.{sign}{name}.{bits}", (bits, old), (bits, operand))
    if name == "inc":
        least = f(f"icmp uge {bits} {old}, {operand}")
        return f(f"select i1 {least}, {bits} 0, {bits} {f.op('add', bits, old, 1)}")
    if name == "dec":
        none, more = f(f"icmp eq {bits} {old}, 0"), f(f"icmp ugt {bits} {old}, {operand}")
        return f(f"select i1 {f.op('or', 'i1', none, more)}, {bits} {operand}, {bits} {f.op('sub', bits, old, 1)}")
    if kind in _FLOATS:
        real = _FLOATS[kind]
        a, b = (f.cast("bitcast", bits, v, real) for v in (old, operand))
        if kind == "f32" and x.space != "shared":  # in global memory subnormal numbers are zero
            a, b = _flushed(f, a), _flushed(f, b)
        s = f.op("fadd", real, a, b)
        if kind == "f32" and x.space != "shared":
            s = _flushed(f, s)
        return f.cast("bitcast", real, s, bits)
    return f.op(name, bits, old, operand)


def _flushed(f: Text, a: str) -> str:
    size = f.call("float", "llvm.fabs.f32", ("float", a))
    zero = f.call("float", "llvm.copysign.f32", ("float", "0.0"), ("float", a))
    return f(f"select i1 {f(f'fcmp olt float {size}, 0x3810000000000000')}, float {zero}, float {a}")
