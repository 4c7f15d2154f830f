"""What the Array API standard wants to know of the namespace: `fx.__array_namespace_info__()`."""

from __future__ import annotations

from typing import Any

from fluxir.frontend.api_creation import isdtype
from fluxir.ir.dtypes import DTYPES, DType, bool_, f32, i64

_STANDARD = (
    "bool=bool int8=i8 int16=i16 int32=i32 int64=i64 uint8=u8 uint16=u16 uint32=u32 uint64=u64 float32=f32 float64=f64"
)


class Info:
    """The standard's inspection interface. There is one device before compilation: the trace."""

    def capabilities(self) -> dict[str, Any]:
        """What the namespace can do: sizes may depend on values, in a trace too."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": None}

    def default_device(self) -> str:
        """The device of traced tensors."""
        return "traced"

    def default_dtypes(self, *, device: Any = None) -> dict[str, DType]:
        """The types of Python numbers. There is no complex type."""
        return {"real floating": f32, "integral": i64, "indexing": i64}

    def devices(self) -> list[str]:
        """The devices of traced tensors."""
        return ["traced"]

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, DType]:
        """The standard's types by name, of one kind or all."""
        pairs = (entry.split("=") for entry in _STANDARD.split())
        found = {name: bool_ if ours == "bool" else DTYPES[ours] for name, ours in pairs}
        return {name: d for name, d in found.items() if kind is None or isdtype(d, kind)}


def info() -> Info:
    """The inspection interface of the namespace."""
    return Info()


__all__ = ["Info", "info"]
