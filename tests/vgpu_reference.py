"""What the lanewise instructions of PTX mean, once more and independently: on Python integers and fractions, one thread at a
time, from the semantics of the PTX ISA document. `tests/test_vgpu_instructions.py` compares the virtual GPU with it.

A value is held as a Python number: int for integers and bits, float for f16, bf16, f32 and f64 (all exact in a double), bool for
predicates, and the word's bits for packed types. A definition takes the form and the operands and returns the value, or the
bits where it says `Bits`, or a function that judges the bits (`Approximate`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from mpmath.ctx_mp import MPContext

mpmath = MPContext()  # a precision of our own: other tests set the library's
mpmath.prec = 200

PRECISION = {
    "f16": (11, -14, 5),
    "bf16": (8, -126, 8),
    "f32": (24, -126, 8),
    "f64": (53, -1022, 11),
    "tf32": (11, -126, 8),
}
NAN_BITS = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0xFFF8000000000000, "tf32": 0x7FFFFFFF}


@dataclass(frozen=True)
class Bits:
    value: int


@dataclass(frozen=True)
class Approximate:
    """Any number of the type between two, or exactly one of them where they are equal; `low` None: NaN."""

    low: Any
    high: Any


# ---- types
def is_float(kind: str) -> bool:
    return kind in PRECISION


def element(kind: str) -> str:
    return kind[:-2] if kind.endswith("x2") else kind


@cache
def width(kind: str) -> int:
    if kind == "pred":
        return 1
    if kind in ("bf16", "tf32"):
        return {"bf16": 16, "tf32": 32}[kind]
    base = element(kind)
    return int(base.lstrip("busf")) * (2 if base != kind else 1)


def wrap(value: int, kind: str) -> int:
    """An integer modulo 2**width, in the type's range."""
    value &= (1 << width(kind)) - 1
    if kind[0] == "s" and value >> (width(kind) - 1):
        value -= 1 << width(kind)
    return value


def bounds(kind: str) -> tuple[int, int]:
    n = width(kind)
    return (-(1 << n - 1), (1 << n - 1) - 1) if kind[0] == "s" else (0, (1 << n) - 1)


def clamp(value: int, kind: str) -> int:
    low, high = bounds(kind)
    return min(max(value, low), high)


def from_bits(bits: int, kind: str) -> Any:
    if kind == "f16":
        return struct.unpack("<e", struct.pack("<H", bits))[0]
    if kind == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    if kind == "f32":
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    if kind == "f64":
        return struct.unpack("<d", struct.pack("<Q", bits))[0]
    if kind == "pred":
        return bool(bits)
    return wrap(bits, kind)


def to_bits(value: Any, kind: str) -> int:
    if isinstance(value, Bits):
        return value.value
    if is_float(kind):
        if math.isnan(value):
            return NAN_BITS[kind]
        if kind == "f16":
            return int(struct.unpack("<H", struct.pack("<e", value))[0])
        if kind == "f64":
            return int(struct.unpack("<Q", struct.pack("<d", value))[0])
        word = int(struct.unpack("<I", struct.pack("<f", value))[0])
        return word >> 16 if kind == "bf16" else word
    return int(value) & ((1 << width(kind)) - 1)


# ---- rounding
@cache
def largest(kind: str) -> Fraction:
    p, emin, _ = PRECISION[kind]
    return (2 - Fraction(1, 2 ** (p - 1))) * Fraction(2) ** (1 - emin)


def unit(x: Fraction, kind: str) -> Fraction:
    """The distance of the type's numbers around x."""
    p, emin, _ = PRECISION[kind]
    n, d = abs(x.numerator), x.denominator
    e = n.bit_length() - d.bit_length()
    while Fraction(2) ** e > abs(x):
        e -= 1
    return Fraction(2) ** (max(e, emin) - p + 1)


def integral(x: Fraction, mode: str) -> int:
    low = math.floor(x)
    rest = x - low
    if mode == "rm" or not rest:
        return low
    if mode == "rp":
        return low + 1
    if mode == "rz":
        return low if x > 0 else low + 1
    if rest == Fraction(1, 2):
        return low + (low & 1) if mode == "rn" else low + (x > 0)
    return low + (rest > Fraction(1, 2))


def rounded(x: Fraction, kind: str, mode: str, zero: float = 0.0) -> float:
    """The number of the type that IEEE 754 gives for x; `zero` is the result for x = 0."""
    if x == 0:
        return zero
    p, emin, _ = PRECISION[kind]
    n, d, negative_ = abs(x.numerator), x.denominator, x < 0
    e = n.bit_length() - d.bit_length()
    if n < d << e if e >= 0 else n << -e < d:
        e -= 1
    last = max(e, emin) - p + 1  # the exponent of the last place
    q, r = divmod(n, d << last) if last >= 0 else divmod(n << -last, d)
    half = 2 * r - (d << last if last >= 0 else d)
    away = {
        "rn": half > 0 or (half == 0 and q & 1),
        "rna": half >= 0,
        "rz": False,
        "rm": r and negative_,
        "rp": r and not negative_,
    }[mode]
    q += bool(away)
    if q.bit_length() + last > 2 - emin:
        finite = not (mode in ("rn", "rna") or mode == ("rm" if negative_ else "rp"))
        y = float(largest(kind)) if finite else math.inf
    else:
        y = math.ldexp(q, last)
    return -y if negative_ else y


def flushed(x: float, kind: str) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0 ** PRECISION[kind][1] else x


def negative(x: float) -> bool:
    return math.copysign(1.0, x) < 0


# ---- IEEE 754 operations on one kind
def sum_of(a: float, b: float, kind: str, mode: str) -> float:
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b) and a != b):
        return math.nan
    if math.isinf(a) or math.isinf(b):
        return a if math.isinf(a) else b
    zero = a if a == 0 and b == 0 and negative(a) == negative(b) else (-0.0 if mode == "rm" else 0.0)
    return rounded(Fraction(a) + Fraction(b), kind, mode, zero)


def product_of(a: float, b: float, kind: str, mode: str) -> float:
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and b == 0) or (math.isinf(b) and a == 0):
        return math.nan
    sign = -1.0 if negative(a) != negative(b) else 1.0
    if math.isinf(a) or math.isinf(b):
        return sign * math.inf
    return rounded(Fraction(a) * Fraction(b), kind, mode, math.copysign(0.0, sign))


def fma_of(a: float, b: float, c: float, kind: str, mode: str) -> float:
    if any(map(math.isnan, (a, b, c))) or (math.isinf(a) and b == 0) or (math.isinf(b) and a == 0):
        return math.nan
    sign = -1.0 if negative(a) != negative(b) else 1.0
    if math.isinf(a) or math.isinf(b):
        return math.nan if math.isinf(c) and negative(c) != (sign < 0) else sign * math.inf
    if math.isinf(c):
        return c
    same = (a == 0 or b == 0) and c == 0 and negative(c) == (sign < 0)
    zero = c if same else (-0.0 if mode == "rm" else 0.0)
    return rounded(Fraction(a) * Fraction(b) + Fraction(c), kind, mode, zero)


def quotient_of(a: float, b: float, kind: str, mode: str) -> float:
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or (a == 0 and b == 0):
        return math.nan
    sign = -1.0 if negative(a) != negative(b) else 1.0
    if math.isinf(a) or b == 0:
        return sign * math.inf
    if math.isinf(b) or a == 0:
        return math.copysign(0.0, sign)
    return rounded(Fraction(a) / Fraction(b), kind, mode)


def root_of(a: float, kind: str, mode: str) -> float:
    if math.isnan(a) or a < 0:
        return math.nan
    if a == 0 or math.isinf(a):
        return a
    root = mpmath.sqrt(mpmath.mpf(a))  # 200 bits: no rational root of 53 bits is missed, and none is a tie
    man, exp = int(root.man), int(root.exp)
    return rounded(Fraction(man) * Fraction(2) ** exp, kind, mode)


# ---- definitions by name
DEFINITIONS: dict[str, Callable[..., Any]] = {}


def define(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def declare(f: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            DEFINITIONS[name] = f
        return f

    return declare


PAIRWISE = ("add", "sub", "mul", "fma", "min", "max", "abs", "neg", "ex2", "tanh")


def expected(form: Any, kinds: tuple[str, ...], result: str, operands: tuple[Any, ...]) -> Any:
    """What the instruction gives: a value, Bits, Approximate, or a tuple of them."""
    define_ = DEFINITIONS[form.instruction.name]
    if form.type.endswith("x2") and form.instruction.name in PAIRWISE:
        kind = form.type[:-2]
        half = width(kind)
        parts = [
            define_(form, kind, *(operand(form, x >> s & ((1 << half) - 1), kind) for x in operands)) for s in (0, half)
        ]
        if any(isinstance(p, Approximate) for p in parts):
            return tuple(parts)
        return Bits(to_bits(parts[0], kind) | to_bits(parts[1], kind) << half)
    return define_(form, form.type, *operands)


class Outside(float):
    """The NaN that stands for what was read out of bounds."""


def operand(form: Any, bits: int, kind: str) -> Any:
    return Outside(math.nan) if form.has("oob") and bits == 0x7FF7 else from_bits(bits, kind)


def rounding(form: Any) -> str:
    return next((m for m in ("rn", "rz", "rm", "rp") if m in form.flags), "rn")


def arithmetic(form: Any, kind: str, f: Callable[..., float], *operands: float) -> float:
    """A float operation with its modifiers."""
    if form.has("ftz"):
        operands = tuple(flushed(x, kind) for x in operands)
    r = f(*operands, kind, rounding(form))
    if form.has("ftz"):
        r = flushed(r, kind)
    if form.has("sat"):
        r = min(r, 1.0) if r > 0 else 0.0
    if form.has("relu") and r <= 0:
        r = 0.0
    return r


def carried(form: Any, kind: str, total: int, out: bool) -> Any:
    return (wrap(total, kind), out) if form.has("cc") else wrap(total, kind)


@define("add", "addc")
def _(form: Any, kind: str, a: Any, b: Any, carry: bool = False) -> Any:
    if len(form.types) == 2:
        return arithmetic(form, "f32", sum_of, a, b)
    if is_float(kind):
        return arithmetic(form, kind, sum_of, a, b)
    if form.has("sat"):
        return clamp(a + b, kind)
    mask = (1 << width(kind)) - 1
    return carried(form, kind, a + b + carry, (a & mask) + (b & mask) + carry > mask)


@define("sub", "subc")
def _(form: Any, kind: str, a: Any, b: Any, borrow: bool = False) -> Any:
    if len(form.types) == 2:
        return arithmetic(form, "f32", lambda x, y, k, m: sum_of(x, -y, k, m), a, b)
    if is_float(kind):
        return arithmetic(form, kind, lambda x, y, k, m: sum_of(x, -y, k, m), a, b)
    if form.has("sat"):
        return clamp(a - b, kind)
    mask = (1 << width(kind)) - 1
    return carried(form, kind, a - b - borrow, (a & mask) < (b & mask) + borrow)


def product(form: Any, kind: str, a: int, b: int) -> int:
    p = a * b
    return p >> width(kind) if form.has("hi") else p if form.has("wide") else wrap(p, kind)


@define("mul")
def _(form: Any, kind: str, a: Any, b: Any) -> Any:
    return arithmetic(form, kind, product_of, a, b) if is_float(kind) else product(form, kind, a, b)


@define("mad", "madc")
def _(form: Any, kind: str, a: Any, b: Any, c: Any, carry: bool = False) -> Any:
    if is_float(kind):
        return arithmetic(form, kind, fma_of, a, b, c)
    p = product(form, kind, a, b)
    if form.has("wide"):
        return Bits((p + c) & ((1 << 2 * width(kind)) - 1))
    if form.has("sat"):
        return clamp(p + c, kind)
    mask = (1 << width(kind)) - 1
    return carried(form, kind, p + c + carry, (p & mask) + (c & mask) + carry > mask)


@define("fma")
def _(form: Any, kind: str, a: float, b: float, c: float) -> float:
    if form.has("oob") and any(isinstance(x, Outside) for x in (a, b, c)):
        return 0.0
    return arithmetic(form, "f32" if len(form.types) == 2 else kind, fma_of, a, b, c)


@define("mul24", "mad24")
def _(form: Any, kind: str, a: int, b: int, c: int = 0) -> int:
    def low(x: int) -> int:
        x &= 0xFFFFFF
        return x - (1 << 24) if kind == "s32" and x >> 23 else x

    p = low(a) * low(b)
    p = wrap(p >> 16 if form.has("hi") else p, kind)
    return clamp(p + c, kind) if form.has("sat") else wrap(p + c, kind)


@define("div")
def _(form: Any, kind: str, a: Any, b: Any) -> Any:
    if form.has("full") or form.has("approx"):
        return approximate_quotient(form, a, b)
    if is_float(kind):
        return arithmetic(form, kind, quotient_of, a, b)
    if b == 0:
        return Bits((1 << width(kind)) - 1)
    return wrap(abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1), kind)


@define("rem")
def _(form: Any, kind: str, a: int, b: int) -> int:
    return a if b == 0 else int(math.copysign(1, a)) * (abs(a) % abs(b))


@define("sad")
def _(form: Any, kind: str, a: int, b: int, c: int) -> int:
    return wrap(c + abs(a - b), kind)


ANY_NAN = Approximate(None, None)


@define("abs", "neg")
def _(form: Any, kind: str, a: Any) -> Any:
    absolute = form.instruction.name == "abs"
    if not is_float(kind):
        return wrap(abs(a) if absolute else -a, kind)
    if math.isnan(a):
        return ANY_NAN
    if form.has("ftz"):
        a = flushed(a, kind)
    return abs(a) if absolute else -a


@define("min", "max")
def _(form: Any, kind: str, *operands: Any) -> Any:
    smaller = form.instruction.name == "min"
    if not is_float(kind):
        r = min(operands) if smaller else max(operands)
        return max(r, 0) if form.has("relu") else r
    sign = -1.0 if form.has("xorsign") and negative(operands[0]) != negative(operands[1]) else 1.0
    values = [flushed(x, kind) if form.has("ftz") else x for x in operands]
    if form.has("abs"):
        values = [abs(x) for x in values]
    numbers = [x for x in values if not math.isnan(x)]
    if not numbers or (form.has("NaN") and len(numbers) < len(values)):
        return math.nan
    order = sorted(numbers, key=lambda x: (x, not negative(x)))  # -0 before +0
    return (order[0] if smaller else order[-1]) * sign


@define("rcp")
def _(form: Any, kind: str, a: float) -> Any:
    if form.has("approx"):
        return upper_word(a, lambda x: 1 / x) if kind == "f64" else approximate(form, kind, a)
    return arithmetic(form, kind, lambda x, k, m: quotient_of(1.0, x, k, m), a)


@define("sqrt")
def _(form: Any, kind: str, a: float) -> Any:
    return approximate(form, kind, a) if form.has("approx") else arithmetic(form, kind, root_of, a)


@define("copysign")
def _(form: Any, kind: str, a: float, b: float) -> Any:
    return ANY_NAN if math.isnan(b) else math.copysign(b, a)


@define("testp")
def _(form: Any, kind: str, a: float) -> bool:
    tiny = 2.0 ** PRECISION[kind][1]
    return {
        "finite": math.isfinite(a),
        "infinite": math.isinf(a),
        "number": not math.isnan(a),
        "notanumber": math.isnan(a),
        "normal": math.isfinite(a) and abs(a) >= tiny,
        "subnormal": 0 < abs(a) < tiny,
    }[form.flags[0]]


# ---- bits
@define("popc")
def _(form: Any, kind: str, a: int) -> int:
    return a.bit_count()


@define("clz")
def _(form: Any, kind: str, a: int) -> int:
    return width(kind) - a.bit_length()


@define("bfind")
def _(form: Any, kind: str, a: int) -> int:
    at = (~a if a < 0 else a).bit_length() - 1
    if at < 0:
        return 0xFFFFFFFF
    return width(kind) - 1 - at if form.has("shiftamt") else at


@define("brev")
def _(form: Any, kind: str, a: int) -> int:
    return int(f"{a:0{width(kind)}b}"[::-1], 2)


@define("bfe")
def _(form: Any, kind: str, a: int, b: int, c: int) -> int:
    position, length, top = b & 255, c & 255, width(kind) - 1
    bit = [(a >> i) & 1 for i in range(top + 1)]
    sign = bit[min(position + length - 1, top)] if kind[0] == "s" and length else 0
    r = sum((bit[position + i] if i < length and position + i <= top else sign) << i for i in range(top + 1))
    return wrap(r, kind)


@define("bfi")
def _(form: Any, kind: str, a: int, b: int, c: int, d: int) -> int:
    position, length = c & 255, d & 255
    for i in range(length):
        if position + i < width(kind):
            b = b & ~(1 << position + i) | (a >> i & 1) << position + i
    return b


@define("bmsk")
def _(form: Any, kind: str, a: int, b: int) -> int:
    if form.has("wrap"):
        a, b = a & 31, b & 31
    return sum(1 << i for i in range(32) if a <= i < a + b)


@define("szext")
def _(form: Any, kind: str, a: int, b: int) -> int:
    n = b & 31 if form.has("wrap") else min(b, 32)
    low = a & ((1 << n) - 1)
    return wrap(low - (1 << n) if kind == "s32" and n and low >> (n - 1) else low, kind)


@define("fns")
def _(form: Any, kind: str, a: int, b: int, n: int) -> int:
    if b > 31:
        return 0xFFFFFFFF
    if n == 0:
        return b if a >> b & 1 else 0xFFFFFFFF
    positions = range(b, 32) if n > 0 else range(b, -1, -1)
    found = [i for i in positions if a >> i & 1]
    return found[abs(n) - 1] if len(found) >= abs(n) else 0xFFFFFFFF


def octets(x: int, size: int, signed: bool) -> list[int]:
    parts = [x >> i & ((1 << size) - 1) for i in range(0, 32, size)]
    return [p - (1 << size) if signed and p >> (size - 1) else p for p in parts]


@define("dp4a", "dp2a")
def _(form: Any, kind: str, a: int, b: int, c: int) -> Any:
    left, right = (t == "s32" for t in form.types)
    if form.instruction.name == "dp4a":
        pairs = zip(octets(a, 8, left), octets(b, 8, right))
    else:
        pairs = zip(octets(a, 16, left), octets(b, 8, right)[2 if form.has("hi") else 0 :])
    return Bits((c + sum(x * y for x, y in pairs)) & 0xFFFFFFFF)


# ---- logic
LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


@define("and", "or", "xor")
def _(form: Any, kind: str, a: int, b: int) -> int:
    return LOGIC[form.instruction.name](a, b)


@define("not")
def _(form: Any, kind: str, a: int) -> int:
    return not a if kind == "pred" else ~a


@define("cnot")
def _(form: Any, kind: str, a: int) -> int:
    return int(a == 0)


@define("lop3")
def _(form: Any, kind: str, a: int, b: int, c: int, table: int, q: bool = False) -> Any:
    r = sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))
    return r


@define("shl")
def _(form: Any, kind: str, a: int, b: int) -> int:
    return wrap(a << min(b, 64), kind)


@define("shr")
def _(form: Any, kind: str, a: int, b: int) -> int:
    return a >> min(b, 64)


@define("shf")
def _(form: Any, kind: str, a: int, b: int, c: int) -> int:
    n = c & 31 if form.has("wrap") else min(c, 32)
    word = b << 32 | a
    return (word << n) >> 32 & 0xFFFFFFFF if form.has("l") else word >> n & 0xFFFFFFFF


@define("prmt")
def _(form: Any, kind: str, a: int, b: int, c: int) -> int:
    byte = [(b << 32 | a) >> 8 * i & 255 for i in range(8)]
    n = c & 3
    modes = {
        "f4e": [n, n + 1, n + 2, n + 3],
        "b4e": [n, (n - 1) % 8, (n - 2) % 8, (n - 3) % 8],
        "rc8": [n] * 4,
        "ecl": [max(n, i) for i in range(4)],
        "ecr": [min(n, i) for i in range(4)],
        "rc16": [2 * (n & 1), 2 * (n & 1) + 1] * 2,
    }
    for mode, chosen in modes.items():
        if form.has(mode):
            return sum(byte[s] << 8 * i for i, s in enumerate(chosen))
    r = 0
    for i in range(4):
        s = c >> 4 * i & 15
        r |= (255 * (byte[s & 7] >> 7) if s & 8 else byte[s & 7]) << 8 * i
    return r


@define("mov")
def _(form: Any, kind: str, *parts: Any) -> Any:
    if len(parts) == 1 and len(form.destinations) == 1:
        return parts[0]
    if len(parts) == 1:
        size = width(kind) // len(form.destinations)
        return tuple(Bits(parts[0] >> size * i & ((1 << size) - 1)) for i in range(len(form.destinations)))
    size = width(kind) // len(parts)
    return Bits(sum(p << size * i for i, p in enumerate(parts)))


# ---- comparisons
def compares(order: str, a: Any, b: Any) -> bool:
    unordered = a != a or b != b
    if order in ("num", "nan"):
        return unordered == (order == "nan")
    plain = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(order, order)
    if plain.endswith("u") and plain != "u":
        return unordered or compares(plain[:-1], a, b)
    return not unordered and {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[plain]


def outcome(form: Any, kind: str, a: Any, b: Any, *c: bool) -> tuple[bool, bool]:
    if form.has("ftz"):
        a, b = flushed(a, kind), flushed(b, kind)
    t = compares(form.flags[0], a, b)
    if not c:
        return t, not t
    op = LOGIC[next(f for f in form.flags if f in LOGIC)]
    return bool(op(t, c[0])), bool(op(not t, c[0]))


def both_halves(form: Any, a: int, b: int, *c: bool) -> tuple[bool, bool]:
    kind = form.type[:-2]
    return tuple(
        outcome(form, kind, from_bits(a >> s & 0xFFFF, kind), from_bits(b >> s & 0xFFFF, kind), *c)[0] for s in (0, 16)
    )  # type: ignore[return-value]


@define("setp")
def _(form: Any, kind: str, a: Any, b: Any, *c: bool) -> Any:
    if kind.endswith("x2"):
        return both_halves(form, a, b, *c)
    p, q = outcome(form, kind, a, b, *c)
    return (p, q) if len(form.destinations) == 2 else p


@define("set")
def _(form: Any, kind: str, a: Any, b: Any, *c: bool) -> Any:
    to = form.types[0]
    if kind.endswith("x2"):
        one = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(to, 0xFFFF)
        low, high = both_halves(form, a, b, *c)
        return Bits(one * low | one * high << 16)
    p, _ = outcome(form, kind, a, b, *c)
    return float(p) if is_float(to) else Bits((1 << width(to)) - 1 if p else 0)


@define("selp")
def _(form: Any, kind: str, a: Any, b: Any, c: bool) -> Any:
    return a if c else b


@define("slct")
def _(form: Any, kind: str, a: Any, b: Any, c: Any) -> Any:
    if form.has("ftz"):
        c = flushed(c, "f32")
    return a if c >= 0 else b


# ---- conversions
NARROW = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
SIZE = {"e4m3": 8, "e5m2": 8, "e2m3": 6, "e3m2": 6, "e2m1": 4}


@cache
def codes(kind: str) -> tuple[float, ...]:
    """The value of every code, as ml_dtypes has it."""
    return tuple(np.arange(1 << SIZE[kind], dtype=np.uint8).view(NARROW[kind]).astype(np.float64).tolist())


@cache
def ladder(kind: str) -> list[tuple[float, int]]:
    """The finite numbers that are not negative, ascending, with their codes."""
    return [(v, c) for c, v in enumerate(codes(kind)[: 1 << SIZE[kind] - 1]) if math.isfinite(v)]


def narrow(x: float, kind: str, random: int | None, relu: bool) -> int:
    """The code of x, to nearest even or by random bits, with `.satfinite`."""
    steps, sign = ladder(kind), 1 << SIZE[kind] - 1
    if math.isnan(x):
        return steps[-1][1] if SIZE[kind] < 8 else 0x7F
    if relu and x <= 0:
        return 0
    code = steps[-1][1]
    for (low, c), (high, above) in zip(steps, steps[1:]):
        if low <= abs(x) < high:
            rest = (Fraction(abs(x)) - Fraction(low)) / (Fraction(high) - Fraction(low))
            if random is None:
                up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and c & 1)
            else:
                up = math.floor(rest * 65536) + random >= 65536
            code = above if up else c
            break
    return code | (sign if negative(x) else 0)


def to_float(form: Any, kind: str, x: Fraction | float, of: str = "") -> float:
    mode = "rna" if form.has("rna") else rounding(form)
    if isinstance(x, float) and of == "f32" and form.has("ftz"):
        x = flushed(x, "f32")
    if isinstance(x, Fraction) or math.isfinite(x):
        zero = x if isinstance(x, float) and x == 0 else 0.0
        y = rounded(Fraction(x), kind, mode, zero)
        if form.has("satfinite") and abs(Fraction(x)) > largest(kind):
            y = math.copysign(float(largest(kind)), x)
    elif form.has("satfinite") and math.isinf(x):
        y = math.copysign(float(largest(kind)), x)
    else:
        y = x
    return modified(form, kind, y)


def modified(form: Any, kind: str, y: float) -> float:
    if kind == "f32" and form.has("ftz"):
        y = flushed(y, kind)
    if form.has("sat"):
        y = min(y, 1.0) if y > 0 else 0.0
    return 0.0 if form.has("relu") and y <= 0 else y


def stochastic(form: Any, kind: str, x: float, random: int) -> float:
    if math.isfinite(x) and x != 0:
        step, bits = unit(Fraction(x), kind), 13 if kind == "f16" else 16
        scaled = abs(Fraction(x)) / step
        whole = math.floor(scaled)
        whole += math.floor((scaled - whole) * 2**bits) + (random & (1 << bits) - 1) >= 2**bits
        y = whole * step
        x = math.copysign(float(y) if y <= largest(kind) else math.inf, x)
    if form.has("satfinite") and math.isinf(x):
        x = math.copysign(float(largest(kind)), x)
    return modified(form, kind, x)


def reversed_bits(x: int) -> int:
    return int(f"{x:016b}"[::-1], 2)


def join(parts: list[int], size: int) -> Bits:
    """Codes, the first one highest."""
    word = 0
    for p in parts:
        word = word << size | p
    return Bits(word)


def scale_code(x: float, mode: str, satfinite: bool) -> int:
    if math.isnan(x):
        return 255
    x = abs(x)
    if math.isinf(x):
        return 254 if satfinite else 255
    if x <= 2.0**-127:
        return 0
    mantissa, exponent = math.frexp(x)
    code = exponent - 1 + 127 + (mode == "rp" and mantissa != 0.5)
    return min(code, 254 if satfinite else 255)


@define("cvt")
def _(form: Any, kind: str, *operands: Any) -> Any:
    to = form.types[0]
    if form.has("pack"):
        n = int(to[1:])
        a, b = (clamp(x, to) & (1 << n) - 1 for x in operands[:2])
        return Bits((operands[2] << 2 * n if len(operands) == 3 else 0) & 0xFFFFFFFF | a << n | b)
    base, count = (to[:-2], int(to[-1])) if to[-2] == "x" else (to, 1)
    if base in NARROW:
        size = 4 if base == "e2m1" else 8
        relu = form.has("relu")
        if count == 4:
            r = operands[4]
            high, low = r >> 16, r & 0xFFFF
            if base == "e2m1":
                high, low = (r >> 24) << 8 | r >> 8 & 255, (r >> 16 & 255) << 8 | r & 255
            bits = (reversed_bits(high), high, reversed_bits(low), low)
            return join([narrow(x, base, b, relu) for x, b in zip(operands, bits)], size)
        if kind != "f32":
            operands = tuple(from_bits(operands[0] >> s & 0xFFFF, kind[:-2]) for s in (16, 0))
        return join([narrow(x, base, None, relu) for x in operands], size)
    if to == "ue8m0x2":
        if kind != "f32":
            operands = tuple(from_bits(operands[0] >> s & 0xFFFF, "bf16") for s in (16, 0))
        return join([scale_code(x, rounding(form), form.has("satfinite")) for x in operands], 8)
    if kind == "ue8m0x2":
        parts = [operands[0] >> 8, operands[0] & 255]
        return join([to_bits(math.nan if p == 255 else 2.0 ** (p - 127), "bf16") for p in parts], 16)
    if count == 2 and kind != "f32":
        size = 4 if kind == "e2m1x2" else 8
        parts = [operands[0] >> size, operands[0]]
        values = [codes(kind[:-2])[p & (1 << SIZE[kind[:-2]]) - 1] for p in parts]
        return join([to_bits(modified(form, "f16", v), "f16") for v in values], 16)
    if count == 2:
        if form.has("rs"):
            a, b, r = operands
            return join([to_bits(stochastic(form, base, x, s), base) for x, s in ((a, r >> 16), (b, r & 0xFFFF))], 16)
        return join([to_bits(to_float(form, base, x), base) for x in operands], 16)
    (a,) = operands
    whole = next((m for m in ("rni", "rzi", "rmi", "rpi") if form.has(m)), "")
    if is_float(to) and whole:
        a = flushed(a, kind) if form.has("ftz") else a
        if math.isfinite(a):
            a = math.copysign(float(integral(Fraction(a), whole[:-1])), a)
        return modified(form, to, a)
    if is_float(to):
        y = to_float(form, to, a if is_float(kind) else Fraction(a), kind)
        return Bits(to_bits(y, to)) if to == "tf32" else y
    if not is_float(kind):
        return clamp(a, to) if form.has("sat") else wrap(a, to)
    if math.isnan(a):
        return Bits(1 << width(to) - 1 if kind == "f64" or width(to) == 64 else 0)
    if math.isinf(a):
        return bounds(to)[a > 0]
    a = flushed(a, kind) if form.has("ftz") else a
    return clamp(integral(Fraction(a), whole[:-1]), to)


# ---- approximations
def interval(value: Any, error: Any) -> Approximate:
    return Approximate(value - error, value + error)


def ulp_of(value: Any, kind: str) -> Any:
    p, emin, _ = PRECISION[kind]
    e = int(mpmath.floor(mpmath.log(abs(value), 2))) if value else emin
    return mpmath.mpf(2) ** (max(e, emin) - p + 1)


def approximate(form: Any, kind: str, a: float) -> Any:
    """rcp, sqrt, rsqrt, lg2, ex2, sin, cos and tanh: the bounds and the special values of the ISA document."""
    name = form.instruction.name
    if form.has("ftz"):
        a = flushed(a, kind)
    if math.isnan(a):
        return math.nan
    special: dict[str, dict[float, float]] = {
        "rcp": {math.inf: 0.0, -math.inf: -0.0},
        "sqrt": {math.inf: math.inf},
        "rsqrt": {math.inf: 0.0},
        "lg2": {math.inf: math.inf},
        "ex2": {math.inf: math.inf, -math.inf: 0.0, 0.0: 1.0},
        "sin": {math.inf: math.nan, -math.inf: math.nan, 0.0: a},
        "cos": {math.inf: math.nan, -math.inf: math.nan, 0.0: 1.0},
        "tanh": {math.inf: 1.0, -math.inf: -1.0, 0.0: a},
    }
    if a == 0 and name in ("rcp", "rsqrt"):
        return math.copysign(math.inf, a)
    if a == 0 and name == "sqrt":
        return a
    if a == 0 and name == "lg2":
        return -math.inf
    if a < 0 and name in ("sqrt", "rsqrt", "lg2"):
        return math.nan
    if a in special[name]:
        return special[name][a]
    x = mpmath.mpf(a)
    if name == "ex2" and abs(a) > 2000:
        return math.inf if a > 0 else Approximate(mpmath.mpf(0), 2 * ulp_of(mpmath.mpf(0), kind))
    value = {
        "rcp": lambda: 1 / x,
        "sqrt": lambda: mpmath.sqrt(x),
        "rsqrt": lambda: 1 / mpmath.sqrt(x),
        "lg2": lambda: mpmath.log(x, 2),
        "ex2": lambda: mpmath.power(2, x),
        "sin": lambda: mpmath.sin(x),
        "cos": lambda: mpmath.cos(x),
        "tanh": lambda: mpmath.tanh(x),
    }[name]()
    two = mpmath.mpf(2)
    if name == "rcp":
        error = ulp_of(value, kind)
    elif name == "sqrt":
        error = two**-23 * value
    elif name == "rsqrt":
        error = two ** mpmath.mpf("-22.9") * value
    elif name == "lg2":
        error = two**-22 * (1 if 0.5 < a < 2 else abs(value))
    elif name == "ex2":
        relative = {"f16": two ** mpmath.mpf("-9.9"), "bf16": two**-7}.get(kind)
        if relative is None:  # "2 ulp from correctly rounded result"
            near = rounded(Fraction(int(value.man)) * Fraction(2) ** int(value.exp), kind, "rn")
            return near if math.isinf(near) else interval(mpmath.mpf(near), 2 * ulp_of(mpmath.mpf(near), kind))
        error = max(relative * value, ulp_of(value, kind))
    elif name in ("sin", "cos"):
        error = two ** mpmath.mpf("-20.5" if abs(a) <= 2 * math.pi else "-14.7")
    else:
        error = {"f32": two**-11 * abs(value), "f16": two ** mpmath.mpf("-10.987"), "bf16": two**-8}[kind]
    return interval(value, error)


for _name in ("rsqrt", "lg2", "ex2", "sin", "cos", "tanh"):

    @define(_name)
    def _(form: Any, kind: str, a: float) -> Any:
        if kind == "f64":
            if form.has("ftz"):
                return upper_word(a, lambda x: 1 / mpmath.sqrt(x))
            if a > 0 and math.isfinite(a):
                value = 1 / mpmath.sqrt(mpmath.mpf(a))
                return interval(value, 2 * ulp_of(value, "f64"))
            return math.nan if math.isnan(a) or a < 0 else math.copysign(math.inf, a) if a == 0 else 0.0
        return approximate(form, kind, a)


def upper_word(a: float, f: Callable[[Any], Any]) -> Any:
    """rcp and rsqrt on the upper word of an f64: about 20 bits."""
    if math.isnan(a):
        return Bits(0x7FFFFFFF00000000)
    bits = to_bits(a, "f64") >> 32 << 32
    x = flushed(from_bits(bits, "f64"), "f64")
    if x == 0:
        return math.copysign(math.inf, x)
    if x < 0 and f(4.0) == 0.5:
        return Bits(0x7FFFFFFF00000000)
    if math.isinf(x):
        return math.copysign(0.0, x)
    value = f(mpmath.mpf(x))
    if abs(value) < mpmath.mpf(2) ** -1022:
        return math.copysign(0.0, x)
    return interval(value, abs(value) * mpmath.mpf(2) ** -19)


def approximate_quotient(form: Any, a: float, b: float) -> Any:
    if form.has("ftz"):
        a, b = flushed(a, "f32"), flushed(b, "f32")
    if form.has("approx") and 2.0**126 < abs(b) < math.inf and not math.isnan(a):
        return math.nan if math.isinf(a) else math.copysign(0.0, math.copysign(1, a) * math.copysign(1, b))
    exact = quotient_of(a, b, "f32", "rn")
    if math.isnan(exact) or a == 0 or b == 0 or math.isinf(a) or math.isinf(b):
        return exact
    value = mpmath.mpf(a) / mpmath.mpf(b)
    return interval(value, 2 * ulp_of(value, "f32"))


def agrees(bits: int, want: Any, kind: str, ftz: bool = False) -> bool:
    """Whether the bits of a result are what the definition wants."""
    if not isinstance(want, Approximate):
        return bits == to_bits(want, kind)
    got = from_bits(bits, kind)
    if want.low is None:
        return math.isnan(got)
    if math.isnan(got):
        return False
    low, high = want.low, want.high
    if math.isinf(got):
        return bool((high if got > 0 else -low) > float(largest(kind)))
    if ftz and got == 0 and min(abs(low), abs(high)) < mpmath.mpf(2) ** PRECISION[kind][1]:
        return True
    # half a unit of the last place: the bounds are those of the value before it is rounded to a subnormal
    slack = ulp_of(mpmath.mpf(got), kind) / 2 if abs(got) < 2.0 ** PRECISION[kind][1] else 0
    return bool(low - slack <= got <= high + slack)


# ---- fields of words
VIDEO: dict[str, Callable[[int, int], int]] = {
    "vadd": lambda a, b: a + b,
    "vsub": lambda a, b: a - b,
    "vavrg": lambda a, b: (a + b + 1) // 2 if a + b >= 0 else (a + b) // 2,
    "vabsdiff": lambda a, b: abs(a - b),
    "vmin": min,
    "vmax": max,
}


def fields(form: Any, kind: str, a: int, b: int, c: int) -> Bits:
    name = form.instruction.name
    size = 8 if name.endswith("4") else 16
    to, left, right = form.types
    pairs = zip(octets(a, size, left == "s32"), octets(b, size, right == "s32"))
    values = [VIDEO[name[:-1]](x, y) for x, y in pairs]
    if form.has("sat"):
        low, high = (-(1 << size - 1), (1 << size - 1) - 1) if to == "s32" else (0, (1 << size) - 1)
        values = [min(max(v, low), high) for v in values]
    if form.has("add"):
        return Bits((c + sum(values)) & 0xFFFFFFFF)
    return Bits(sum((v & (1 << size) - 1) << size * i for i, v in enumerate(values)))


for _name in VIDEO:
    define(f"{_name}2", f"{_name}4")(fields)
