"""The parameters of a kernel: their types from annotations or from the arguments of a launch, and how objects are taken apart.

A parameter is an array (`fx.f32["N", "M"]`), a scalar (`fx.i32`), a named tuple, dataclass or tuple of those, or anything
else, which is a constant of the kernel: it is compiled for each. Without annotation an array of the arguments has sizes of its
own, named after it; a Python integer is i64, a Python float f32, a numpy number what it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.kernel.values import Array, Num, Struct, literal_dtype, struct_fields
from fluxir.ir.core import Value
from fluxir.ir.dims import symbol
from fluxir.ir.dtypes import DType, dtype_of
from fluxir.ir.types import MemType, TensorType


@dataclass(frozen=True)
class Param:
    """One parameter or part of one: `kind` is array, scalar, struct, tuple or constant."""

    name: str
    kind: str
    type: TensorType | None = None
    parts: tuple[Param, ...] = ()
    value: Any = None  # the struct's class, or the constant

    def key(self) -> Any:
        """Equal for parameters that lead to the same code."""
        value = self.value
        try:
            hash(value)
        except TypeError:
            value = id(value)
        return (self.name, self.kind, self.type, tuple(p.key() for p in self.parts), type(value), value)


def annotations_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """The evaluated annotations of a function. FX0323 where one cannot be evaluated."""
    try:
        return inspect.get_annotations(fn, eval_str=True)
    except Exception as reason:
        raise error("FX0323", f"an annotation of {fn.__name__!r} cannot be evaluated: {reason}") from None


def declared(name: str, annotation: Any) -> Param | None:
    """The parameter that an annotation describes; None where it does not describe one fully."""
    if isinstance(annotation, TensorType):
        return Param(name, "array" if annotation.shape else "scalar", annotation)
    if isinstance(annotation, DType):
        return Param(name, "scalar", TensorType(annotation))
    if annotation in (int, float, bool):
        return Param(name, "scalar", TensorType(literal_dtype(annotation())))
    fields = struct_fields(annotation)
    if fields is not None:
        hints = annotations_of(annotation) if hasattr(annotation, "__annotations__") else {}
        parts = [declared(f"{name}.{f}", hints.get(f)) for f in fields]
        if all(p is not None for p in parts):
            return Param(name, "struct", parts=tuple(p for p in parts if p), value=annotation)
    return None


def found(name: str, x: Any, annotation: Any = None) -> Param:
    """The parameter that an argument of a launch asks for; what an annotation says goes first."""
    said = declared(name, annotation)
    if said is not None:
        return said
    array = array_type(name, x)
    if array is not None:
        return Param(name, "array" if array.shape else "scalar", array)
    if isinstance(x, (bool, int, float, np.number, np.bool_)):
        return Param(name, "scalar", TensorType(literal_dtype(x)))
    fields = struct_fields(type(x))
    if fields is not None:
        hints = getattr(type(x), "__annotations__", {})
        parts = tuple(found(f"{name}.{f}", getattr(x, f), hints.get(f)) for f in fields)
        return Param(name, "struct", parts=parts, value=type(x))
    if isinstance(x, tuple):
        return Param(name, "tuple", parts=tuple(found(f"{name}.{i}", v) for i, v in enumerate(x)))
    if isinstance(x, (list, dict, set)):
        raise error("FX0601", f"{name} is a {type(x).__name__}, which a kernel cannot take", help="pass arrays, numbers, "
                    "tuples and named tuples")  # fmt: skip
    return Param(name, "constant", value=x)


def array_type(name: str, x: Any) -> TensorType | None:
    """The type of anything array-like (numpy, device arrays, tensor types), with a symbol for each size; None for others."""
    if isinstance(x, TensorType):
        return x
    if isinstance(x, np.generic) or not (hasattr(x, "shape") and hasattr(x, "dtype")) or isinstance(x, type):
        return None
    plain = "".join(c if c.isalnum() else "_" for c in name)
    shape = tuple(symbol(f"{plain}_{axis}") for axis in range(len(x.shape)))
    return TensorType(dtype_of(x.dtype), shape)


def leaves(params: Sequence[Param]) -> Iterator[Param]:
    """The arrays and scalars of parameters, in order."""
    for p in params:
        if p.kind in ("array", "scalar"):
            yield p
        yield from leaves(p.parts)


def arguments(params: Sequence[Param]) -> list[Value]:
    """The arguments of the kernel function."""
    out: list[Value] = []
    for p in leaves(params):
        assert p.type is not None
        t = MemType(p.type.dtype, p.type.shape) if p.kind == "array" else p.type
        out.append(Value(t, None, len(out), p.name.replace(".", "_")))
    return out


def bound(p: Param, values: Iterator[Value]) -> Any:
    """What the name of a parameter stands for in the kernel."""
    match p.kind:
        case "array":
            v = next(values)
            return Array(v, v.type.shape)
        case "scalar":
            v = next(values)
            return Num(v, nonneg=v.type.dtype.kind == "uint")
        case "struct":
            fields = struct_fields(p.value)
            assert fields is not None
            return Struct(p.value, fields, tuple(bound(q, values) for q in p.parts))
        case "tuple":
            return tuple(bound(q, values) for q in p.parts)
    return p.value


def flattened(p: Param, x: Any) -> Iterator[Any]:
    """The arrays and scalars of an argument, in the order of `leaves`."""
    if p.kind in ("array", "scalar"):
        yield x
    elif p.kind == "struct":
        for f, q in zip(struct_fields(p.value) or (), p.parts, strict=True):
            yield from flattened(q, getattr(x, f))
    elif p.kind == "tuple":
        for y, q in zip(x, p.parts, strict=True):
            yield from flattened(q, y)


__all__ = ["Param", "annotations_of", "arguments", "array_type", "bound", "declared", "flattened", "found", "leaves"]
