"""Element types: their names, kinds, widths, numpy twins, and how two of them promote.

Owns the closed set of element types (`DTYPES`). Promotion follows the Python Array API standard
(https://data-apis.org/array-api/latest/API_specification/type_promotion.html): kinds do not mix
(`i32 + f32` is an error, never a silent widening), and a Python scalar takes the tensor's type.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `bits` is the storage width; `bool` is stored in one byte."""

    name: str
    kind: str  # "bool" | "int" | "uint" | "float"
    bits: int

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    def __getitem__(self, dims: Any) -> Any:
        """`f32["B", 784]` is the tensor type with that shape; the public way to write a signature."""
        from fluxir.ir.types import TensorType

        return TensorType.of(self, dims if isinstance(dims, tuple) else (dims,))

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory."""
        return self.bits // 8

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype with the same values (`ml_dtypes` supplies bfloat16)."""
        return _numpy_dtype(self.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The same as `numpy`: numpy takes anything with this attribute as a dtype (`array.astype(fx.f32)`)."""
        return self.numpy

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_signed(self) -> bool:
        return self.kind in ("int", "float")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer or bool type."""
        match self.kind:
            case "bool":
                return 0, 1
            case "int":
                return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
            case "uint":
                return 0, (1 << self.bits) - 1
        raise TypeError(f"{self.name} has no integer limits")


bool_ = DType("bool", "bool", 8)
i8, i16, i32, i64 = (DType(f"i{n}", "int", n) for n in (8, 16, 32, 64))
u8, u16, u32, u64 = (DType(f"u{n}", "uint", n) for n in (8, 16, 32, 64))
f16, f32, f64 = (DType(f"f{n}", "float", n) for n in (16, 32, 64))
bf16 = DType("bf16", "float", 16)

DTYPES: dict[str, DType] = {d.name: d for d in (bool_, i8, i16, i32, i64, u8, u16, u32, u64, f16, bf16, f32, f64)}


@functools.cache
def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bf16":
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return small
    d = DTYPES[name]
    word = {"bool": "bool", "int": f"int{d.bits}", "uint": f"uint{d.bits}", "float": f"float{d.bits}"}[d.kind]
    out: np.dtype[Any] = np.dtype(word)
    return out


@functools.cache
def _by_numpy() -> dict[str, DType]:
    return {d.numpy.name: d for d in DTYPES.values()}


def dtype_of(x: Any) -> DType:
    """The DType meant by a DType, a name (`"f32"`, `"float32"`), a numpy dtype or a Python scalar type."""
    if isinstance(x, DType):
        return x
    if isinstance(x, str) and x in DTYPES:
        return DTYPES[x]
    if x is float:
        return f32
    if x is int:
        return i32
    if x is bool:
        return bool_
    if isinstance(x, str) and x == "bfloat16":
        return bf16
    try:
        return _by_numpy()[np.dtype(x).name]
    except (TypeError, KeyError):
        names = ", ".join(DTYPES)
        raise error("FX0209", f"{x!r} is not an element type", help=f"the element types are {names}") from None


def promote(a: DType, b: DType) -> DType:
    """The type two tensors meet in (Array API table); raises FX0201 where the standard leaves it undefined."""
    if a == b:
        return a
    if a.kind == b.kind:
        if a.bits == b.bits:  # f16 and bf16: neither holds the other
            raise _mixed(a, b, "cast one of them, for example .astype('f32')")
        return a if a.bits > b.bits else b
    if a.is_integer and b.is_integer:
        signed, unsigned = (a, b) if a.kind == "int" else (b, a)
        if unsigned.bits < signed.bits:
            return signed
        if unsigned.bits < 64:
            return DTYPES[f"i{unsigned.bits * 2}"]
        raise _mixed(a, b, "no integer type holds both u64 and a signed type: cast one of them")
    raise _mixed(a, b, "kinds do not mix silently: cast one of them, for example x.astype('f32')")


def _mixed(a: DType, b: DType, hint: str) -> Exception:
    return error("FX0201", f"{a} and {b} do not promote to a common type", help=hint)


def scalar_dtype(value: bool | int | float, like: DType) -> DType:
    """The type a Python scalar takes next to a tensor of type `like`; never wider than `like` (FX0201 if it cannot)."""
    if isinstance(value, bool):
        ok = True
    elif isinstance(value, int):
        ok = not like.is_bool
    else:
        ok = like.is_float
    if not ok:
        raise error(
            "FX0201",
            f"the Python {type(value).__name__} {value!r} does not fit next to a {like} tensor",
            help="a Python scalar never changes a tensor's type: cast the tensor first, for example x.astype('f32')",
        )
    if like.is_integer and not isinstance(value, bool):
        lo, hi = like.limits
        if not lo <= value <= hi:
            raise error(
                "FX0217", f"{value} does not fit in {like} ({lo} to {hi})", help="cast the tensor to a wider type"
            )
    return like
