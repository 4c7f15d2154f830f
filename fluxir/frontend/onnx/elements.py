"""Element types of ONNX and what carries them here; constants of a file as arrays.

Most element types are ours. Narrow ones (4 and 2 bit integers, 8 bit and 4 bit floats) are *storage*: their values are
carried exactly by a wider type of ours (`Element.carrier`), and the importer keeps beside them what they are
(`values.Narrow`). Texts are object arrays, known when compiling. Complex numbers have no carrier.

Formats of the narrow floats: https://onnx.ai/onnx/technical/float8.html and float4.html (OCP MX and the FNUZ variants).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.onnx import schema
from fluxir.ir.dtypes import DTYPES, DType

__all__ = [
    "BY_DTYPE", "ELEMENTS", "MAX_BYTES", "MAX_DENSE", "MAX_RANK", "MAX_TABLE", "STRING", "Element", "count_of", "dense",
    "element", "few", "named", "raw_bytes", "to_array",
]  # fmt: skip

MAX_RANK = 32  # as in IR text
MAX_BYTES = 1 << 46  # of one tensor; sizes of 0 count as 1, so that the others stay bounded, too
MAX_DENSE = 1 << 26  # elements of a sparse constant written out
MAX_TABLE = 1 << 22  # elements of a table that an operator computes while the model is read

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Element:
    """An element type: its number and name in ONNX, the dtype whose values include its own (None: there is none), and the
    bits it takes in a file."""

    number: int
    name: str
    carrier: DType | None
    bits: int
    narrow: bool = False


def _elements() -> dict[int, Element]:
    plain = (
        "1:float:f32 2:uint8:u8 3:int8:i8 4:uint16:u16 5:int16:i16 6:int32:i32 7:int64:i64 9:bool:bool 10:float16:f16"
    )
    plain += " 11:double:f64 12:uint32:u32 13:uint64:u64 16:bfloat16:bf16"
    out = {}
    for entry in plain.split():
        number, name, carrier = entry.split(":")
        d = DTYPES[carrier]
        out[int(number)] = Element(int(number), name, d, d.bits)
    out[8] = Element(8, "string", None, 0)
    out[14], out[15] = Element(14, "complex64", None, 64), Element(15, "complex128", None, 128)
    narrow = "17:float8e4m3fn:f32:8 18:float8e4m3fnuz:f32:8 19:float8e5m2:f32:8 20:float8e5m2fnuz:f32:8 21:uint4:u8:4"
    narrow += " 22:int4:i8:4 23:float4e2m1:f32:4 24:float8e8m0:f32:8 25:uint2:u8:2 26:int2:i8:2"
    for entry in narrow.split():
        number, name, carrier, bits = entry.split(":")
        out[int(number)] = Element(int(number), name, DTYPES[carrier], int(bits), narrow=True)
    return out


ELEMENTS: dict[int, Element] = _elements()
"""The element types by their number in ONNX."""

BY_DTYPE: dict[DType, Element] = {e.carrier: e for e in ELEMENTS.values() if e.carrier is not None and not e.narrow}
"""The element type that a dtype of ours is."""

STRING = ELEMENTS[8]


def element(number: int, what: str) -> Element:
    """The element type of this number; FX1208 for one that there is not."""
    found = ELEMENTS.get(number)
    if found is None:
        raise error("FX1208", f"{what} has the element type {number}, which ONNX does not define")
    return found


def named(e: Element, what: str) -> DType:
    """The dtype that carries an element type; FX1208 for one without."""
    if e.carrier is None:
        raise error("FX1208", f"{what} holds {e.name} elements, which programs here have no type for")
    return e.carrier


# ---- narrow formats ------------------------------------------------------------------------------------------------


def float_table(e: Element) -> Array:
    """The value of each bit pattern of a narrow float, f32."""
    if e.name == "float8e8m0":
        with np.errstate(over="ignore"):
            out = np.exp2(np.arange(256, dtype=np.float64) - 127).astype(np.float32)
        out[255] = np.nan
        return out
    exponent, mantissa = {"float8e4m3": (4, 3), "float8e5m2": (5, 2), "float4e2m1": (2, 1)}[e.name[:10]]
    fnuz = e.name.endswith("fnuz")
    bias = (1 << (exponent - 1)) - (0 if fnuz else 1)
    out = np.zeros(1 << e.bits, np.float32)
    for bits in range(1 << e.bits):
        high, low = (bits >> mantissa) & ((1 << exponent) - 1), bits & ((1 << mantissa) - 1)
        value = math.ldexp(low / (1 << mantissa) + (high > 0), max(high, 1) - bias)
        if not fnuz and e.name == "float8e4m3fn" and high == 15 and low == 7:
            value = math.nan
        if not fnuz and e.name == "float8e5m2" and high == 31:
            value = math.nan if low else math.inf
        out[bits] = -value if bits >> (e.bits - 1) else value
    if fnuz:  # one zero; the pattern of the other is the only NaN
        out[1 << (e.bits - 1)] = np.nan
    return out


def unpacked(data: Array, e: Element, count: int) -> Array:
    """Elements of 4 or 2 bits, from bytes that hold several (the first in the low bits), as bytes of their bit patterns."""
    per = 8 // e.bits
    parts = [(data >> (e.bits * k)) & ((1 << e.bits) - 1) for k in range(per)]
    return np.stack(parts, axis=-1).reshape(-1)[:count]


def carried(bits: Array, e: Element) -> Array:
    """The values of bit patterns (u8) of a narrow element type, in its carrier."""
    if e.name.startswith("float"):
        return np.take(float_table(e), bits)
    if e.name.startswith("int"):  # sign extension
        half = 1 << (e.bits - 1)
        return ((bits.astype(np.int16) ^ half) - half).astype(np.int8)
    return bits


# ---- constants -----------------------------------------------------------------------------------------------------


def raw_bytes(e: Element, count: int) -> int:
    """Bytes that `count` elements take in a file."""
    return -(-count * e.bits // 8)


def count_of(dims: Sequence[int], what: str, bits: int = 8) -> int:
    """The number of elements of a shape from a file. FX1201 for sizes that are negative, FX1202 for too many axes or bytes.

    Python's integers do not overflow; the limit is for all that computes with 64 bits later.
    """
    if len(dims) > MAX_RANK:
        raise error("FX1202", f"{what} has {len(dims)} axes; at most {MAX_RANK} are accepted")
    if any(d < 0 for d in dims):
        raise error("FX1201", f"{what} has the shape {list(dims)}")
    if math.prod(max(int(d), 1) for d in dims) * max(bits, 8) > 8 * MAX_BYTES:
        raise error("FX1202", f"{what} has the shape {list(dims)}, which takes more than {MAX_BYTES >> 40} TiB")
    return math.prod(int(d) for d in dims)


def few(count: int, what: str) -> int:
    """A number of elements that are computed with numpy while a model is read; FX1202 where they are too many for that."""
    if count > MAX_TABLE:
        raise error("FX1202", f"{what} takes a table of {count} numbers; at most {MAX_TABLE} are made")
    return count


def to_array(t: schema.Tensor, data: memoryview | None = None) -> tuple[Array, Element]:
    """The elements of a constant, in the carrier of their type or as texts, and the type. `data` replaces `t.raw` where the
    elements lie in another file. FX1201 where their number is not what the shape says."""
    what = f"the constant {t.name!r}"
    e = element(t.data_type, what)
    count = count_of(t.dims, what, e.bits)
    if e is STRING:
        texts = [bytes(s).decode("utf-8", "replace") for s in t.strings]
        _expect(what, len(texts), count)
        out = np.empty(count, object)
        out[:] = texts
        return out.reshape(t.dims), e
    named(e, what)
    raw = data if data is not None else t.raw
    if raw is not None:
        _expect(what, raw.nbytes, raw_bytes(e, count), "bytes")
        return _from_raw(raw, e, count).reshape(t.dims), e
    return _from_lists(t, e, count, what).reshape(t.dims), e


def _expect(what: str, got: int, wanted: int, unit: str = "elements") -> None:
    if got != wanted:
        raise error("FX1201", f"{what} holds {got} {unit}, its shape says {wanted}")


def dense(s: schema.SparseTensor) -> tuple[Array, Element]:
    """A sparse constant with its zeros, and its element type. `indices` are places in the flat tensor, or rows of one index an
    axis. FX1201 where they do not fit, FX1202 where all elements are more than `MAX_DENSE`."""
    what = f"the sparse constant {s.values.name!r}"
    values, e = to_array(s.values)
    indices, kind = to_array(s.indices)
    count, dims = count_of(s.dims, what, e.bits), tuple(int(d) for d in s.dims)
    if count > MAX_DENSE:
        raise error("FX1202", f"{what} has {count} elements with its zeros; at most {MAX_DENSE} are accepted")
    rows = indices.ndim == 2
    if e is STRING or kind.name != "int64" or values.shape != indices.shape[:1] or indices.ndim not in (1, 2):
        raise error("FX1201", f"{what} has {values.shape} values and {indices.shape} {kind.name} places")
    if rows and indices.shape[1] != len(dims):
        raise error("FX1201", f"{what} has {indices.shape[1]} indices a value and {len(dims)} axes")
    if indices.size and (indices.min() < 0 or (indices >= (np.array(dims, np.int64) if rows else count)).any()):
        raise error("FX1201", f"{what} has a value outside of its shape {list(dims)}")
    out = np.zeros(dims, values.dtype)
    if rows:
        out[tuple(indices.T)] = values
    else:
        out.reshape(-1)[indices] = values
    return out, e


def _from_raw(raw: memoryview, e: Element, count: int) -> Array:
    if e.narrow:
        data = np.frombuffer(raw, np.uint8)
        return carried(data if e.bits == 8 else unpacked(data, e, count), e)
    assert e.carrier is not None
    if e.name == "bool":
        return np.asarray(np.frombuffer(raw, np.uint8) != 0)
    out = np.frombuffer(raw, e.carrier.numpy)
    # A file keeps its data where it likes; machine code wants elements at multiples of their size.
    return out if out.flags.aligned else out.copy()


def _from_lists(t: schema.Tensor, e: Element, count: int, what: str) -> Array:
    assert e.carrier is not None
    if e.name == "float":
        _expect(what, len(t.floats), count)
        return np.array(t.floats, np.float32)
    if e.name == "double":
        _expect(what, len(t.doubles), count)
        return np.array(t.doubles, np.float64)
    if e.name == "int64":
        _expect(what, len(t.int64s), count)
        return np.array(t.int64s, np.int64)
    if e.name in ("uint64", "uint32"):
        _expect(what, len(t.uint64s), count)
        return (np.array(t.uint64s, np.int64).view(np.uint64)).astype(e.carrier.numpy)
    per = 8 // e.bits if e.bits < 8 else 1
    _expect(what, len(t.int32s), -(-count // per))
    words = np.array(t.int32s, np.int64)
    if e.narrow:
        data = words.astype(np.uint8)
        return carried(data if e.bits == 8 else unpacked(data, e, count), e)
    if e.name in ("float16", "bfloat16"):
        return words.astype(np.uint16).view(e.carrier.numpy)
    return words.astype(e.carrier.numpy)
