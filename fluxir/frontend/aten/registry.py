"""The registry of ATen operators: `@aten("add.Tensor")` registers a function that takes what the operator takes.

Tensors come as tensors or numpy arrays, sizes as integers or symbolic sizes, everything else as Python values. A function
whose first parameter is `cx` is given the `Context`: what torch says the result is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxir.ir.dtypes import DType

__all__ = ["ATEN", "Context", "aten"]


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of a node's results: their element types and shapes, in order."""

    name: str
    dtypes: Sequence[DType | None]
    shapes: Sequence[Any]

    @property
    def dtype(self) -> DType:
        """The element type of the first result."""
        d = self.dtypes[0]
        assert d is not None
        return d


ATEN: dict[str, tuple[Callable[..., Any], bool]] = {}
"""The function of each operator, `name.overload`, and whether it takes a `Context`."""


def aten(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for operators; `.default` may be left out."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        first = next(iter(inspect.signature(fn).parameters), "")
        for name in names:
            full = name if "." in name else f"{name}.default"
            if full in ATEN:
                raise ValueError(f"aten.{full} is registered twice")
            ATEN[full] = fn, first == "cx"
        return fn

    return register
