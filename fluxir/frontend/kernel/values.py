"""What names stand for while a kernel is compiled, and the forms in which values pass branches and loops.

A name holds a Python object that is known now (a number, a function, a dtype: `static`), or something that exists when the
kernel runs: a number or a vector (`Num`), memory (`Array`), or a tuple or struct of those. A number that came from a Python
literal is `weak`: it takes the type of what it meets, as everywhere in fluxir.

A `Form` is a value without its registers: how it is made of numbers. Two paths that meet must agree on one (`unify`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fluxir.errors import FluxError, error
from fluxir.ir.build import Builder
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim
from fluxir.ir.dtypes import DTYPES, DType, dtype_of, promote
from fluxir.ir.types import MemType, TensorType, Type, VectorType


@dataclass(frozen=True, eq=False)
class Num:
    """A number or vector at run time. `nonneg`: an integer that is known not to be negative."""

    value: Value
    weak: bool = False
    nonneg: bool = False

    @property
    def dtype(self) -> DType:
        d: DType = self.value.type.dtype
        return d

    @property
    def lanes(self) -> int:
        """Lanes of a vector; 0 for a scalar."""
        return self.value.type.lanes if isinstance(self.value.type, VectorType) else 0

    def __str__(self) -> str:
        return str(self.value.type)


@dataclass(frozen=True, eq=False)
class Array:
    """Memory with a shape: sizes that are known, symbolic, or numbers at run time. `flat`: the memory is a vector, and the
    row-major position in it is computed here."""

    mem: Value
    shape: tuple[Dim | Num, ...]
    flat: bool = False

    @property
    def type(self) -> MemType:
        assert isinstance(self.mem.type, MemType)
        return self.mem.type

    def __str__(self) -> str:
        sizes = ", ".join("?" if isinstance(d, Num) else str(d) for d in self.shape)
        space = "" if self.type.space == "global" else f"{self.type.space} "
        return f"{space}array {self.type.dtype}[{sizes}]"


@dataclass(frozen=True, eq=False)
class Struct:
    """An object of a named tuple or dataclass."""

    cls: type
    fields: tuple[str, ...]
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return self.cls.__name__


@dataclass(frozen=True, eq=False)
class Range:
    """A `range`. `static`: its iterations are written out; `unroll`: how often LLVM should unroll it, 0 for its choice."""

    start: Any
    stop: Any
    step: Any
    static: bool = False
    unroll: int = 0

    def numbers(self) -> range:
        return range(self.start, self.stop, self.step)


@dataclass(frozen=True, eq=False)
class Undefined:
    """A variable that not every path has assigned."""

    name: str
    why: str


def is_static(x: Any) -> bool:
    """Whether a value is known while compiling."""
    if isinstance(x, (Num, Array, Struct, Undefined)):
        return False
    return all(map(is_static, x)) if isinstance(x, tuple) else True


def is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float, np.number, np.bool_))


def struct_fields(cls: Any) -> tuple[str, ...] | None:
    """The field names of a named tuple or dataclass; None for other classes."""
    if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return tuple(cls._fields)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and not cls.__module__.startswith("fluxir."):
        return tuple(f.name for f in dataclasses.fields(cls))
    return None


def as_struct(x: Any) -> Any:
    """A Python object of a named tuple or dataclass as a `Struct`; all else as it is."""
    fields = struct_fields(type(x))
    if fields is None or isinstance(x, (Num, Array, Struct, Undefined)):
        return x
    return Struct(type(x), fields, tuple(as_struct(getattr(x, f)) for f in fields))


def describe(x: Any) -> str:
    """A value as messages name it: its type."""
    if isinstance(x, Undefined):
        return "nothing"
    if isinstance(x, tuple):
        return f"({', '.join(map(describe, x))})"
    if isinstance(x, (Num, Array, Struct)):
        return str(x)
    return repr(x) if is_number(x) or isinstance(x, str) else type(x).__name__


# ---- forms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a value is made: `kind` is static, number, array, tuple, struct or missing."""

    kind: str
    type: Type | None = None
    weak: bool = False
    nonneg: bool = False
    parts: tuple[Form, ...] = ()
    what: Any = None  # the static object, the struct's class, or an array's shape and flatness


MISSING = Form("missing")


_LARGEST_F32 = float(np.finfo(np.float32).max)


def literal_dtype(x: Any) -> DType:
    """The type a Python number takes alone: bool, i64 or f32."""
    if isinstance(x, (np.number, np.bool_)):
        return dtype_of(x.dtype)
    if isinstance(x, float) and math.isfinite(x) and abs(x) > _LARGEST_F32:
        return DTYPES["f64"]
    return DTYPES["bool" if isinstance(x, bool) else "i64" if isinstance(x, int) else "f32"]


def form_of(x: Any) -> Form:
    if isinstance(x, Undefined):
        return MISSING
    if isinstance(x, Num):
        return Form("number", x.value.type, x.weak, x.nonneg)
    if isinstance(x, Array):
        return Form("array", x.type, what=(x.shape, x.flat, x.mem))
    if isinstance(x, Struct):
        return Form("struct", parts=tuple(map(form_of, x.values)), what=(x.cls, x.fields))
    if isinstance(x, tuple) and not is_static(x):
        return Form("tuple", parts=tuple(map(form_of, x)))
    return Form("static", what=x)


def at_run_time(f: Form) -> Form:
    """The form with Python numbers as numbers of the kernel: what a loop carries."""
    if f.kind == "static" and is_number(f.what):
        x = f.what
        negative = not isinstance(x, (bool, np.bool_)) and x < 0
        return Form("number", TensorType(literal_dtype(x)), not isinstance(x, np.generic), not negative)
    if f.kind == "static" and isinstance(f.what, tuple):
        return Form("tuple", parts=tuple(at_run_time(form_of(p)) for p in f.what))
    return Form(f.kind, f.type, f.weak, f.nonneg, tuple(map(at_run_time, f.parts)), f.what)


def unify(a: Form, b: Form, fill: bool = False) -> Form:
    """The form that holds both. With `fill` a missing one takes the other's form, else it stays missing.

    Raises ValueError with the reason where there is none.
    """
    if a == b:
        return a
    if MISSING in (a, b):
        other = b if a is MISSING or a == MISSING else a
        return at_run_time(other) if fill else MISSING
    if a.kind == b.kind == "static" and _same(a.what, b.what):
        return a
    a, b = at_run_time(a), at_run_time(b)
    if a.kind == b.kind == "number":
        return Form("number", _joined(a, b), a.weak and b.weak, a.nonneg and b.nonneg)
    if a.kind == b.kind == "array":
        (shape, flat, mem), (other, also, mem2) = a.what, b.what
        if a.type != b.type or flat != also or not _same(shape, other):
            raise ValueError(f"two different arrays, {a.type} and {b.type}")
        return Form("array", a.type, what=(shape, flat, mem if mem is mem2 else None))
    if a.kind == b.kind and a.kind in ("tuple", "struct") and len(a.parts) == len(b.parts) and a.what == b.what:
        return Form(a.kind, parts=tuple(unify(x, y, fill) for x, y in zip(a.parts, b.parts, strict=True)), what=a.what)
    raise ValueError(f"{shown(a)} and {shown(b)}")


def shown(f: Form) -> str:
    if f.kind == "static":
        return describe(f.what)
    if f.kind == "struct":
        return str(f.what[0].__name__)
    return f"({', '.join(map(shown, f.parts))})" if f.kind == "tuple" else str(f.type)


def _same(x: Any, y: Any) -> bool:
    if x is y:
        return True
    try:
        return type(x) is type(y) and bool(x == y)
    except Exception:
        return False


_RANK = {"bool": 0, "int": 1, "uint": 1, "float": 2}


def _joined(a: Form, b: Form) -> Type:
    x, y = a.type, b.type
    assert x is not None and y is not None
    d = joined_dtype(x.dtype, a.weak, y.dtype, b.weak)
    lanes = {t.lanes for t in (x, y) if isinstance(t, VectorType)}
    if len(lanes) > 1 or (lanes and any(isinstance(t, TensorType) and not f.weak for t, f in ((x, a), (y, b)))):
        raise ValueError(f"{x} and {y}")
    return VectorType(d, lanes.pop()) if lanes else TensorType(d)


def joined_dtype(x: DType, x_weak: bool, y: DType, y_weak: bool) -> DType:
    """The type in which two numbers meet; a weak one takes the other's type. ValueError where there is none."""
    if x == y:
        return x
    if x_weak and y_weak and _RANK[x.kind] != _RANK[y.kind]:
        return x if _RANK[x.kind] > _RANK[y.kind] else y
    if x_weak and _RANK[x.kind] <= _RANK[y.kind]:
        return y
    if y_weak and _RANK[y.kind] <= _RANK[x.kind]:
        return x
    try:
        return promote(x, y)
    except FluxError:
        raise ValueError(f"{x} and {y}") from None


def types_in(f: Form) -> Iterator[Type]:
    """Types of the registers that a value of this form takes, in order."""
    if f.kind == "number" or (f.kind == "array" and f.what[2] is None):
        assert f.type is not None
        yield f.type
    for p in f.parts:
        yield from types_in(p)


def into(b: Builder, f: Form, x: Any) -> list[Value]:
    """The registers of `x` in the form `f`, converted in `b`."""
    if f.kind == "number":
        assert f.type is not None and not isinstance(f.type, MemType)
        if isinstance(x, Undefined):
            return [as_type(b, 0, f.type)]
        return [as_type(b, x, f.type)]
    if f.kind == "array":
        return [] if f.what[2] is not None else [x.mem]
    if f.kind in ("tuple", "struct"):
        if isinstance(x, Undefined):
            values: Sequence[Any] = [x] * len(f.parts)
        else:
            values = x.values if isinstance(x, Struct) else x
        return [v for p, y in zip(f.parts, values, strict=True) for v in into(b, p, y)]
    return []


def out_of(f: Form, registers: Iterator[Value], name: str = "") -> Any:
    """A value of the form from registers. A missing one is `Undefined`."""
    if f.kind == "number":
        v = next(registers)
        v.name = v.name or name
        return Num(v, f.weak, f.nonneg)
    if f.kind == "array":
        shape, flat, mem = f.what
        return Array(next(registers) if mem is None else mem, shape, flat)
    if f.kind == "tuple":
        return tuple(out_of(p, registers) for p in f.parts)
    if f.kind == "struct":
        cls, fields = f.what
        return Struct(cls, fields, tuple(out_of(p, registers) for p in f.parts))
    if f.kind == "missing":
        return Undefined(name, "")
    return f.what


# ---- numbers -----------------------------------------------------------------------------------------------------------


def _largest(d: DType) -> float:
    """The largest finite value of a float type."""
    found: Any = ml_dtypes.finfo(d.numpy)  # type: ignore[no-untyped-call]
    return float(found.max)


def as_type(b: Builder, x: Any, t: TensorType | VectorType) -> Value:
    """A number as a register of type `t`, converted where it is of another type."""
    if not isinstance(x, Num):
        if isinstance(x, float) and t.dtype.is_float and math.isfinite(x) and abs(x) > _largest(t.dtype):
            raise error("FX0217", f"{x} does not fit in {t.dtype}", help="use a wider type")
        return b.const(x, like=t)
    v = x.value
    if v.type.dtype != t.dtype:
        v = b.cast(v, dtype=t.dtype)
    if isinstance(t, VectorType) and not isinstance(v.type, VectorType):
        v = b.emit("splat", v, lanes=t.lanes)[0]
    return v


def lifted(b: Builder, x: Any) -> Num:
    """A number of the kernel from a Python number or itself."""
    if isinstance(x, Num):
        return x
    d = literal_dtype(x)
    if d.is_integer and not d.limits[0] <= int(x) <= d.limits[1]:
        raise error("FX0217", f"{x} does not fit in {d}", help="use a float, or a smaller number")
    weak = not isinstance(x, np.generic)
    return Num(b.const(x, dtype=d), weak, d.is_bool or (d.is_integer and bool(x >= 0)))


__all__ = [
    "MISSING",
    "Array",
    "Form",
    "Num",
    "Range",
    "Struct",
    "Undefined",
    "as_struct",
    "as_type",
    "at_run_time",
    "describe",
    "form_of",
    "into",
    "is_number",
    "is_static",
    "joined_dtype",
    "lifted",
    "literal_dtype",
    "out_of",
    "shown",
    "struct_fields",
    "types_in",
    "unify",
]
