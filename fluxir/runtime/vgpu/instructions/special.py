"""Approximate functions: reciprocals, roots, logarithm, exponential, sine, cosine, hyperbolic tangent, fast division.

Each is computed in f64, moved within the error that the PTX ISA gives (`approximate`), and rounded once. What the ISA lists
for zeros, infinities and NaN holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..approximate import absolute, relative, ulps
from ..isa import Form, lanewise
from ..rounding import BF16, F16, F32, Format, round_to
from ..values import Array, split
from .floating import finish
from .packed import lanes_of

_FORMATS: dict[str, Format] = {"f32": F32, "f16": F16, "bf16": BF16}
_F64 = Format("f64", 53, 11, float(np.finfo(np.float64).max))
_Exact = Callable[..., Array]


def _approximate(form: Form, exact: _Exact, move: Callable[..., Array]) -> Any:
    """`exact`, a function of f64, on the form's type; `move(value, format, operands)` is the error."""
    kind, _ = split(form.type)
    to = _FORMATS[kind]

    def f(*operands: Array) -> Array:
        value = np.asarray(exact(*(np.asarray(x).astype(np.float64) for x in operands)))
        moved = move(value, to, *operands)
        return (moved if kind == "f32" else round_to(moved, to)).astype(np.float32)

    return lanes_of(form.type, finish(form, kind, f))


def _exact_where_possible(move: Callable[..., Array]) -> Callable[..., Array]:
    """`move`, but a value that the format has stays: a power of two's reciprocal, inverse root and logarithm, and two to a whole
    number. The ISA does not promise it, but devices do it, and NVIDIA's f64 `exp` and `tanh` take 2**n from `ex2.approx`."""
    return lambda value, to, *operands: np.where(round_to(value, to) == value, value, move(value, to, *operands))


def _within_ulps(bound: float) -> Callable[..., Array]:
    return lambda value, to, *operands: ulps(value, bound, to, *operands)


def _within_relative(bound: float) -> Callable[..., Array]:
    return lambda value, to, *operands: relative(value, bound, to, *operands)


@lanewise("rcp.approx[.ftz].f32", "special", 1, section="9.7.3.13")
def rcp(form: Form) -> Any:
    """1 / a, to 1 ulp."""
    return _approximate(form, np.reciprocal, _exact_where_possible(_within_ulps(1)))


@lanewise("sqrt.approx[.ftz].f32", "special", 1, section="9.7.3.15")
def sqrt(form: Form) -> Any:
    """The square root, to a relative error of 2**-23."""
    return _approximate(form, np.sqrt, _within_relative(2.0**-23))


@lanewise("rsqrt.approx[.ftz].f32", "special", 1, section="9.7.3.16")
def rsqrt(form: Form) -> Any:
    """One over the square root, to a relative error of 2**-22.9; -infinity for -0."""
    return _approximate(form, _inverse_root, _exact_where_possible(_within_relative(2.0**-22.9)))


def _inverse_root(a: Array) -> Array:
    return 1.0 / np.sqrt(a)


@lanewise("lg2.approx[.ftz].f32", "special", 1, section="9.7.3.20")
def lg2(form: Form) -> Any:
    """The logarithm to base 2: an absolute error of 2**-22 for a between 0.5 and 2, elsewhere a relative one."""

    def move(value: Array, to: Format, a: Array) -> Array:
        near = np.abs(value) < 1
        return np.where(near, absolute(value, 2.0**-22, to, a), relative(value, 2.0**-22, to, a))

    return _approximate(form, lambda a: np.log2(np.where(a == 0, 0.0, a)), _exact_where_possible(move))


@lanewise("ex2.approx[.ftz].f32 ex2.approx.{f16 f16x2} ex2.approx.ftz.{bf16 bf16x2}", "special", 1, section="9.7.3.21")
def ex2(form: Form) -> Any:
    """2 to the power a: to 2 ulp in f32, to relative errors of 2**-9.9 in f16 and 2**-7 in bf16. 1 for zero."""
    kind, _ = split(form.type)
    error = {"f32": _within_ulps(2), "f16": _within_relative(2.0**-9.9), "bf16": _within_relative(2.0**-7)}[kind]
    return _approximate(form, np.exp2, _exact_where_possible(error))


def _wave_error(value: Array, to: Format, a: Array) -> Array:
    """Of sine and cosine: 2**-20.5 up to 2 pi, 2**-14.7 up to 100 pi and, where nothing is promised, beyond."""
    bound = np.where(np.abs(a) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7)
    return np.where(a == 0, value, np.clip(absolute(value, bound, to, a), -1.0, 1.0))


@lanewise("sin.approx[.ftz].f32", "special", 1, section="9.7.3.18")
def sin(form: Form) -> Any:
    """The sine of a in radians, to an absolute error of 2**-20.5 up to 2 pi."""
    return _approximate(form, np.sin, _wave_error)


@lanewise("cos.approx[.ftz].f32", "special", 1, section="9.7.3.19")
def cos(form: Form) -> Any:
    """The cosine of a in radians, to an absolute error of 2**-20.5 up to 2 pi."""
    return _approximate(form, np.cos, _wave_error)


@lanewise("tanh.approx.{f32 f16 f16x2 bf16 bf16x2}", "special", 1, section="9.7.3.22")
def tanh(form: Form) -> Any:
    """The hyperbolic tangent: to a relative error of 2**-11 in f32, to absolute ones of 2**-10.987 in f16 and 2**-8 in bf16.
    Subnormal f32 and infinities are exact."""
    kind, _ = split(form.type)

    def move(value: Array, to: Format, a: Array) -> Array:
        if kind == "f32":
            moved = relative(value, 2.0**-11, to, a)
        else:
            moved = absolute(value, {"f16": 2.0**-10.987, "bf16": 2.0**-8}[kind], to, a)
        return np.where(np.isinf(a) | (np.abs(a) < 2.0**-126), value, np.clip(moved, -1.0, 1.0))

    return _approximate(form, np.tanh, move)


@lanewise("div.full[.ftz].f32", "special", section="9.7.3.8")
def div_full(form: Form) -> Any:
    """a / b, to 2 ulp."""
    return _approximate(form, np.divide, _within_ulps(2))


@lanewise("div.approx[.ftz].f32", "special", section="9.7.3.8")
def div_approx(form: Form) -> Any:
    """a times 1 / b, to 2 ulp for |b| up to 2**126; above it 1 / b is zero."""

    def quotient(a: Array, b: Array) -> Array:
        huge = (np.abs(b) > 2.0**126) & np.isfinite(b)
        return np.where(huge, a * np.copysign(0.0, b), a / b)

    return _approximate(form, quotient, _within_ulps(2))


# ---- f64: only the upper word is computed, or a library function stands behind
def _upper_word(exact: _Exact) -> Any:
    def f(a: Array) -> Array:
        bits = np.asarray(a).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)
        x = bits.view(np.float64)
        x = np.where(np.abs(x) < 2.0**-1022, np.copysign(0.0, x), x)
        value = relative(exact(x), 2.0**-20, _F64, a)
        value = np.where(np.abs(value) < 2.0**-1022, np.copysign(0.0, value), value)
        upper = value.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)
        return np.where((a != a) | (value != value), np.uint64(0x7FFFFFFF00000000), upper).view(np.float64)

    return f


@lanewise("rcp.approx.ftz.f64", "special", 1, section="9.7.3.14")
def rcp_f64(form: Form) -> Any:
    """1 / a from the upper word of a, to the 20 bits of the upper word of the result; the lower one is zero."""
    return _upper_word(np.reciprocal)


@lanewise("rsqrt.approx.ftz.f64", "special", 1, section="9.7.3.17")
def rsqrt_f64_ftz(form: Form) -> Any:
    """One over the square root, from and to the upper word."""
    return _upper_word(_inverse_root)


@lanewise("rsqrt.approx.f64", "special", 1, section="9.7.3.16")
def rsqrt_f64(form: Form) -> Any:
    """One over the square root; the ISA gives no bound, the library has 2 ulp."""
    return finish(form, "f64", lambda a: ulps(_inverse_root(a), 1.0, _F64, a))
