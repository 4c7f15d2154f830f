"""Conversions between all types.

To an integer: NaN becomes zero, or for f64 sources and 64-bit results the number with only the top bit set; what is too large
becomes the largest or smallest integer. To a float: one rounding, whatever the source; then `.satfinite` (the largest number in
place of what is larger), `.sat` or `.relu`. Pairs: the first operand is the upper half of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..double import toward
from ..isa import Form, lanewise
from ..narrowfloat import decode, encode, encode_scale, round_stochastically, saturate
from ..rounding import BF16, E2M1, E2M3, E3M2, E4M3, E5M2, F16, F32, TF32, Format, round_to, to_odd, two_sum
from ..values import Array, bf16_to_f32, dtype, f32_to_bf16, is_signed, split, unsigned
from .floating import canonical, flush
from .packed import in_blocks, join

_INTEGERS = "{u8 u16 u32 u64 s8 s16 s32 s64}"
_FORMATS: dict[str, Format] = {"f16": F16, "bf16": BF16, "f32": F32, "tf32": TF32}
_NARROW: dict[str, Format] = {"e4m3": E4M3, "e5m2": E5M2, "e2m3": E2M3, "e3m2": E3M2, "e2m1": E2M1}
_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _types(form: Form) -> tuple[str, tuple[str, ...]]:
    return form.types[0], (form.types[1],)


# ---- integers
@lanewise(f"cvt[.sat].{_INTEGERS}.{_INTEGERS}", "convert", signature=_types, section="9.7.9.21")
def cvt_integers(form: Form) -> Any:
    """To another width, with the sign or cut off; `.sat` clamps."""
    result = dtype(form.types[0])
    if not form.has("sat"):
        return lambda a: np.asarray(a).astype(result)
    to, of = np.iinfo(result), np.iinfo(dtype(form.type))
    low, high = max(int(to.min), int(of.min)), min(int(to.max), int(of.max))
    return lambda a: np.clip(a, dtype(form.type).type(low), dtype(form.type).type(high)).astype(result)


# ---- float to integer
def _number(kind: str, ftz: bool) -> Callable[[Array], Array]:
    """A float operand as f64."""

    def number(a: Array) -> Array:
        x = bf16_to_f32(a) if kind == "bf16" else np.asarray(a)
        return (flush(x, "f32") if ftz and kind == "f32" else x).astype(np.float64)

    return number


@lanewise(
    f"cvt.{{rni rzi rmi rpi}}[.ftz][.sat].{_INTEGERS}.f32 cvt.{{rni rzi rmi rpi}}[.sat].{_INTEGERS}.{{f16 bf16 f64}}",
    "convert",
    signature=_types,
    section="9.7.9.21",
)
def cvt_to_integer(form: Form) -> Any:
    """The integer near the float, or the nearest that the type has."""
    result, number = dtype(form.types[0]), _number(form.type, form.has("ftz"))
    integral = _TO_INTEGER[form.one_of(*_TO_INTEGER)]
    limits = np.iinfo(result)
    nan = result.type(0)
    if form.type == "f64" or result.itemsize == 8:
        nan = unsigned(result.itemsize).type(1 << (8 * result.itemsize - 1)).view(result)
    above = 2.0 ** (8 * result.itemsize - is_signed(form.types[0]))  # the first integer that is too large

    def convert(a: Array) -> Array:
        x = integral(number(a))
        inside = (x < above) & (x >= float(limits.min))
        n = np.where(inside, x, 0.0).astype(result)
        if inside.all():
            return n
        return np.where(inside, n, np.where(x != x, nan, np.where(x > 0, limits.max, limits.min).astype(result)))

    return in_blocks(convert)


# ---- to a float
def _finish(form: Form, kind: str, x: Array) -> Array:
    """A number of the type, as f64, with the form's modifiers and in the type's bits."""
    if form.has("ftz") and kind == "f32":
        x = np.where(np.abs(x) < 2.0**-126, np.copysign(0.0, x), x)
    if form.has("sat"):
        x = np.where(x > 0, np.minimum(x, 1.0), 0.0)
    if form.has("relu"):
        x = np.where(x <= 0, 0.0, x)
    if kind == "bf16":
        return f32_to_bf16(x.astype(np.float32))
    if kind == "tf32":
        return canonical(x.astype(np.float32)).view(np.uint32)
    return canonical(x.astype(dtype(kind)))


def _round(form: Form, kind: str, mode: str) -> Callable[[Array], Array]:
    """f64 (exact, or rounded to odd) to a number of the type."""
    if kind == "f64":
        return lambda x: x
    to = _FORMATS[kind]
    if form.has("satfinite"):
        return lambda x: round_to(saturate(x, to), to, mode)
    return lambda x: round_to(x, to, mode)


@lanewise(
    f"cvt.{{rn rz rm rp}}[.ftz][.sat].f32.{_INTEGERS} cvt.{{rn rz rm rp}}[.sat].{{f16 f64}}.{_INTEGERS}"
    f" cvt.{{rn rz rm rp}}.bf16.{_INTEGERS}",
    "convert",
    signature=_types,
    section="9.7.9.21",
)
def cvt_from_integer(form: Form) -> Any:
    """The float near the integer."""
    kind, mode = form.types[0], form.rounding
    if mode == "rn" and kind in ("f32", "f64") and not form.has("sat"):
        result = dtype(kind)
        return lambda a: np.asarray(a).astype(result)
    round_ = _round(form, kind, mode)

    def convert(a: Array) -> Array:
        n = np.asarray(a)
        if n.dtype.itemsize < 8:
            return _finish(form, kind, round_(n.astype(np.float64)))
        s, e = two_sum((n >> 32).astype(np.float64) * 2.0**32, (n & 0xFFFFFFFF).astype(np.float64))
        if kind == "f64":
            return _finish(form, kind, s if mode == "rn" else toward(s, e, mode))
        return _finish(form, kind, round_(to_odd(s, e)))

    return in_blocks(convert)


def _to(kind: Any) -> Callable[[Array], Array]:
    return lambda a: canonical(np.asarray(a).astype(kind))


_DIRECT: dict[tuple[str, str], Callable[[Array], Array]] = {  # one pass, exact or to nearest
    ("f32", "f16"): _to(np.float32),
    ("f16", "f32"): _to(np.float16),
    ("f32", "bf16"): lambda a: canonical(bf16_to_f32(a)),
    ("bf16", "f32"): f32_to_bf16,
    ("f32", "f64"): _to(np.float32),
    ("f64", "f32"): _to(np.float64),
}
_ROUNDED = """
    cvt.{rn rz rm rp}[.ftz][.sat].f32.f64 cvt.{rn rz rm rp}[.sat].f16.f64 cvt.{rn rz rm rp}.bf16.f64
    cvt.{rn rz rm rp}[.ftz][.sat].f16.f32 cvt.{rn rz}[.relu][.satfinite].f16.f32
    cvt.{rn rz rm rp}.bf16.f32 cvt.{rn rz}[.relu][.satfinite].bf16.f32
    cvt.{rn rz rm rp}.{bf16.f16 f16.bf16}
    cvt[.ftz][.sat].f32.{f16 f32 bf16} cvt[.ftz][.sat].f64.f32 cvt[.sat].f64.{f16 f64 bf16} cvt[.sat].f16.f16 cvt.bf16.bf16
    cvt.rna[.satfinite].tf32.f32 cvt.{rn rz}[.relu][.satfinite].tf32.f32
"""


@lanewise(
    _ROUNDED,
    "convert",
    signature=lambda form: ("b32" if form.types[0] == "tf32" else form.types[0], (form.type,)),
    section="9.7.9.21",
)
def cvt_floats(form: Form) -> Any:
    """To another float format, rounded where it is narrower."""
    kind, of = form.types
    if (kind, of) in _DIRECT and form.flags in ((), ("rn",)):
        return _DIRECT[kind, of]
    number = _number(of, form.has("ftz"))
    round_ = _round(form, kind, "rna" if form.has("rna") else form.rounding)
    return in_blocks(lambda a: _finish(form, kind, round_(number(a))))


@lanewise(
    "cvt.{rni rzi rmi rpi}[.ftz][.sat].f32.f32 cvt.{rni rzi rmi rpi}[.sat].{f16.f16 f64.f64} cvt.{rni rzi rmi rpi}.bf16.bf16",
    "convert",
    signature=_types,
    section="9.7.9.21",
)
def cvt_to_integral(form: Form) -> Any:
    """The integer near a float, as a float."""
    number, integral = _number(form.type, form.has("ftz")), _TO_INTEGER[form.one_of(*_TO_INTEGER)]
    return in_blocks(lambda a: _finish(form, form.type, integral(number(a))))


# ---- pairs of 16 bits
@lanewise(
    "cvt.{rn rz}[.relu][.satfinite].{f16x2 bf16x2}.f32",
    "convert",
    signature=lambda form: (form.types[0], ("f32", "f32")),
    section="9.7.9.21",
)
def cvt_pair(form: Form) -> Any:
    """a to the upper half, b to the lower half."""
    kind, _ = split(form.types[0])
    if form.flags == ("rn",):
        direct = _DIRECT[kind, "f32"]
        return in_blocks(lambda a, b: join(direct(b), direct(a)))
    round_ = _round(form, kind, form.rounding)

    def one(x: Array) -> Array:
        return _finish(form, kind, round_(np.asarray(x).astype(np.float64)))

    return in_blocks(lambda a, b: join(one(b), one(a)))


@lanewise(
    "cvt.rs[.relu][.satfinite].{f16x2 bf16x2}.f32",
    "convert",
    signature=lambda form: (form.types[0], ("f32", "f32", "b32")),
    section="9.7.9.21",
)
def cvt_pair_stochastic(form: Form) -> Any:
    """a to the upper half, b to the lower half, rounded by the random bits in the halves of the third operand (13 for f16)."""
    kind, _ = split(form.types[0])
    to, bits = _FORMATS[kind], 13 if kind == "f16" else 16

    def one(x: Array, random: Array) -> Array:
        number = np.asarray(x).astype(np.float64)
        y = round_stochastically(number, to, random & np.uint32((1 << bits) - 1), bits)
        return _finish(form, kind, saturate(y, to) if form.has("satfinite") else y)

    return in_blocks(lambda a, b, random: join(one(b, random), one(a, random >> np.uint32(16))))


# ---- 8, 6 and 4 bits
def _code(form: Form, to: Format, x: Array, round_: Callable[[Array], Array]) -> Array:
    y = saturate(round_(np.asarray(x).astype(np.float64)), to)
    return encode(np.where(y <= 0, 0.0, y) if form.has("relu") else y, to)


def _holder(form: Form) -> str:
    """The type of the register with two or four codes."""
    kind, count = split(form.types[0])
    return f"b{(4 if kind == 'e2m1' else 8) * count}"


def _together(codes: list[Array], kind: str) -> Array:
    """Codes, the first one highest, in the register that `_holder` names."""
    width = 4 if kind == "e2m1" else 8
    word = unsigned(width * len(codes) // 8)
    result = codes[0].astype(word)
    for code in codes[1:]:
        result = (result << word.type(width)) | code.astype(word)
    return np.asarray(result)


@lanewise(
    "cvt.rn.satfinite[.relu].{e4m3x2 e5m2x2 e2m3x2 e3m2x2 e2m1x2}.f32",
    "convert",
    signature=lambda form: (_holder(form), ("f32", "f32")),
    section="9.7.9.21",
)
def cvt_narrow(form: Form) -> Any:
    """a to the upper, b to the lower number."""
    kind, _ = split(form.types[0])
    to = _NARROW[kind]

    def one(x: Array) -> Array:
        return _code(form, to, x, lambda y: round_to(y, to))

    return in_blocks(lambda a, b: _together([one(a), one(b)], kind))


def _halves_as_floats(x: Array, kind: str) -> tuple[Array, Array]:
    """The upper and the lower half of an f16x2 or bf16x2, as f32."""
    word = np.asarray(x)
    parts = (word >> np.uint32(16)).astype(np.uint16), word.astype(np.uint16)
    if kind == "bf16":
        return bf16_to_f32(parts[0]), bf16_to_f32(parts[1])
    return parts[0].view(np.float16).astype(np.float32), parts[1].view(np.float16).astype(np.float32)


@lanewise(
    "cvt.rn.satfinite[.relu].{e4m3x2 e5m2x2 e2m3x2 e3m2x2 e2m1x2}.{f16x2 bf16x2}",
    "convert",
    signature=lambda form: (_holder(form), (form.type,)),
    section="9.7.9.21",
)
def cvt_narrow_pair(form: Form) -> Any:
    """Both halves of a."""
    kind, _ = split(form.types[0])
    to, (of, _) = _NARROW[kind], split(form.type)

    def one(x: Array) -> Array:
        return _code(form, to, x, lambda y: round_to(y, to))

    return in_blocks(lambda a: _together([one(x) for x in _halves_as_floats(a, of)], kind))


@lanewise(
    "cvt.rs[.relu].satfinite.{e4m3x4 e5m2x4 e2m3x4 e3m2x4 e2m1x4}.f32",
    "convert",
    signature=lambda form: (_holder(form), ("f32",) * 4 + ("b32",)),
    section="9.7.9.21",
)
def cvt_narrow_stochastic(form: Form) -> Any:
    """Four numbers, the first one highest, rounded by 16 random bits each. The ISA names the 16 bits that two of them share; the
    hardware takes them in reverse order for the first of the two."""
    kind, _ = split(form.types[0])
    to = _NARROW[kind]

    def convert(a: Array, b: Array, e: Array, f: Array, random: Array) -> Array:
        u32 = np.uint32
        if kind == "e2m1":  # the upper bytes of both halves, and the lower bytes
            upper = (random >> u32(16) & u32(0xFF00)) | (random >> u32(8) & u32(0xFF))
            lower = (random >> u32(8) & u32(0xFF00)) | (random & u32(0xFF))
        else:
            upper, lower = random >> u32(16), random & u32(0xFFFF)
        bits = (_reverse_16(upper), upper, _reverse_16(lower), lower)

        def one(x: Array, r: Array) -> Array:
            return _code(form, to, x, lambda y: round_stochastically(y, to, r, 16))

        return _together([one(x, r) for x, r in zip((a, b, e, f), bits)], kind)

    return in_blocks(convert)


def _reverse_16(x: Array) -> Array:
    """The lower 16 bits in reverse order."""
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        n, m = np.uint32(shift), np.uint32(mask)
        x = ((x >> n) & m) | ((x & m) << n)
    return x


@lanewise(
    "cvt.rn[.relu].f16x2.{e4m3x2 e5m2x2 e2m3x2 e3m2x2 e2m1x2}",
    "convert",
    signature=lambda form: ("f16x2", ("b8" if form.type == "e2m1x2" else "b16",)),
    section="9.7.9.21",
)
def cvt_widen_pair(form: Form) -> Any:
    """Both numbers as f16; every number of the narrow formats is one."""
    kind, _ = split(form.type)
    table = decode(_NARROW[kind])
    values = _finish(form, "f16", table.astype(np.float64))
    shift, mask = (4, 0xF) if kind == "e2m1" else (8, table.size - 1)

    def convert(a: Array) -> Array:
        codes = np.asarray(a).astype(np.int64)
        return join(values[codes & mask], values[(codes >> shift) & mask])

    return in_blocks(convert)


@lanewise(
    "cvt.{rz rp}[.satfinite].ue8m0x2.f32",
    "convert",
    signature=lambda form: ("b16", ("f32", "f32")),
    section="9.7.9.21",
)
def cvt_scale(form: Form) -> Any:
    """The powers of two at a (upper byte) and b."""

    def one(x: Array) -> Array:
        return encode_scale(np.asarray(x).astype(np.float64), form.rounding, form.has("satfinite"))

    return in_blocks(lambda a, b: join(one(b), one(a)))


@lanewise(
    "cvt.{rz rp}[.satfinite].ue8m0x2.bf16x2", "convert", signature=lambda form: ("b16", ("bf16x2",)), section="9.7.9.21"
)
def cvt_scale_pair(form: Form) -> Any:
    """The powers of two at both halves of a."""

    def convert(a: Array) -> Array:
        high, low = (
            encode_scale(x.astype(np.float64), form.rounding, form.has("satfinite"))
            for x in _halves_as_floats(a, "bf16")
        )
        return join(low, high)

    return in_blocks(convert)


@lanewise("cvt.rn.bf16x2.ue8m0x2", "convert", signature=lambda form: ("bf16x2", ("b16",)), section="9.7.9.21")
def cvt_from_scale(form: Form) -> Any:
    """Both powers of two as bf16."""
    exponents = np.arange(256) - 127.0
    values = f32_to_bf16(np.where(exponents == 128, np.nan, 2.0**exponents).astype(np.float32))

    def convert(a: Array) -> Array:
        codes = np.asarray(a).astype(np.int64)
        return join(values[codes & 255], values[codes >> 8])

    return in_blocks(convert)


# ---- packing integers
@lanewise(
    "cvt.pack.sat.{u16 s16}.s32 cvt.pack.sat.{u2 s2 u4 s4 u8 s8}.s32.b32",
    "convert",
    signature=lambda form: ("b32", ("s32", "s32") if form.type == "s32" else ("s32", "s32", "b32")),
    section="9.7.9.22",
)
def cvt_pack(form: Form) -> Any:
    """a and b, clamped to the narrow type, in the lower bits, b lowest; above them the lower bits of c."""
    width, signed = int(form.types[0][1:]), is_signed(form.types[0])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    mask, shift = np.uint32((1 << width) - 1), np.uint32(width)

    def field(x: Array) -> Array:
        return np.clip(x, low, high).astype(np.int32).view(np.uint32) & mask

    def pack(a: Array, b: Array, *c: Array) -> Array:
        word = (field(a) << shift) | field(b)
        return word | (c[0] << np.uint32(2 * width)) if c else word

    return pack
