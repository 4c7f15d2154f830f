"""Types of values: tensors (any rank; a scalar is rank 0), vectors of lanes, and memory.

`TensorType` prints `f32[B,784]` (`f32` for rank 0), `VectorType` `f32x8`, `MemType` `&f32[B,784]` or
`&shared.f32[16,16]`. A memory is row-major and contiguous; strided user arrays are made contiguous at entry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fluxir.errors import error
from fluxir.ir.dims import Dim, as_dim, parse_dim, product, substitute
from fluxir.ir.dtypes import DTYPES, DType, dtype_of

SPACES = ("global", "shared", "local", "constant")


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense tensor of `dtype` with `shape` (a tuple of dims); rank 0 is a scalar."""

    dtype: DType
    shape: tuple[Dim, ...] = ()

    @classmethod
    def of(cls, dtype: Any, shape: Any = ()) -> TensorType:
        dims = tuple(as_dim(d) for d in shape)
        for d in dims:
            if isinstance(d, int) and d < 0:
                raise error("FX0218", f"a size cannot be negative: {d}")
        return cls(dtype_of(dtype), dims)

    def __str__(self) -> str:
        return self.dtype.name + (f"[{','.join(map(str, self.shape))}]" if self.shape else "")

    __repr__ = __str__

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        return self.size * self.dtype.itemsize

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def with_shape(self, shape: Any) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def substitute(self, env: Any) -> TensorType:
        return TensorType(self.dtype, tuple(substitute(d, env) for d in self.shape))


@dataclass(frozen=True, slots=True)
class VectorType:
    """`lanes` elements of `dtype` in one register."""

    dtype: DType
    lanes: int

    def __str__(self) -> str:
        return f"{self.dtype.name}x{self.lanes}"

    __repr__ = __str__

    @property
    def shape(self) -> tuple[Dim, ...]:
        return ()

    def with_dtype(self, dtype: DType) -> VectorType:
        return VectorType(dtype, self.lanes)


@dataclass(frozen=True, slots=True)
class MemType:
    """A row-major contiguous memory of `dtype` elements in an address space."""

    dtype: DType
    shape: tuple[Dim, ...] = ()
    space: str = "global"

    def __str__(self) -> str:
        space = "" if self.space == "global" else self.space + "."
        return f"&{space}{TensorType(self.dtype, self.shape)}"

    __repr__ = __str__

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        return self.size * self.dtype.itemsize


Type = TensorType | VectorType | MemType

_TYPE = re.compile(
    r"(?P<mem>&(?:(?P<space>[a-z]+)\.)?)?(?P<dtype>bool|bf16|[iuf]\d+)(?:x(?P<lanes>\d+)|\[(?P<dims>.*)\])?\Z", re.S
)
INDEX = TensorType(DTYPES["i64"])  # loop counters, offsets and sizes
BOOL = TensorType(DTYPES["bool"])


def split_commas(text: str) -> list[str]:
    """Split at commas that stand outside parentheses and brackets."""
    out, depth, cur = [], 0, ""
    for c in text:
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            out.append(cur)
            cur = ""
        else:
            cur += c
    return [*out, cur] if cur.strip() or out else []


def parse_type(text: str) -> Type:
    """Read a type as it is printed. Raises FX0101."""
    m = _TYPE.match(text.strip())
    if not m or m["dtype"] not in DTYPES or (m["space"] and m["space"] not in SPACES):
        raise error("FX0101", f"{text!r} is not a type", help="types look like f32[B,784], f32x8 or &f32[16,16]")
    dtype = DTYPES[m["dtype"]]
    if m["lanes"]:
        return VectorType(dtype, int(m["lanes"]))
    shape = tuple(parse_dim(d) for d in split_commas(m["dims"])) if m["dims"] else ()
    return MemType(dtype, shape, m["space"] or "global") if m["mem"] else TensorType.of(dtype, shape)


def tensor(text_or_type: Any) -> TensorType:
    """A tensor type from its text or itself; TypeError for other types."""
    t = parse_type(text_or_type) if isinstance(text_or_type, str) else text_or_type
    if not isinstance(t, TensorType):
        raise TypeError(f"{t} is not a tensor type")
    return t
