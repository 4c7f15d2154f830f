"""Sizes that are known only at run time: `extent` makes a value of the program a size symbol.

What comes after it uses the symbol like any other size. The pass `extents` turns the rest of the block into a function
that is called with the size (`call [sized=...]`), so nothing below knows the op.
"""

from __future__ import annotations

from typing import Any

from fluxir.errors import error
from fluxir.ir.core import Attrs, Block, Op
from fluxir.ir.interp import check_guards
from fluxir.ir.opdef import op
from fluxir.ir.types import INDEX, Type


def _extent(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
    if list(t) != [INDEX]:
        raise error("FX0230", f"extent: a size is the value of an i64 scalar, not of {', '.join(map(str, t))}")
    if not a.size.isidentifier():
        raise error("FX0230", f"extent: {a.size!r} is no name for a size")
    return []


def _extent_eval(it: Any, o: Op, a: Attrs, args: list[Any], env: Any) -> list[Any]:
    n = int(args[0])
    if n < 0 or a.most is not None and n > a.most:
        raise error("FX0608", f"assertion failed: {beyond(o.attrs)}", loc=o.loc)
    it.dims[a.size] = n
    check_guards(it.module, it.dims)
    return []


def beyond(a: Attrs) -> str:
    """What a size out of range breaks."""
    return f"a size known at run time is at least 0{'' if a.most is None else f' and at most {a.most}'}"


op(
    "extent",
    _extent,
    attrs={"size": "str", "most": ("dim", None)},
    category="control",
    effects=True,
    eval=_extent_eval,
    constant="gives nothing",
    doc="extent(n): from here to the end of the block `size` is a size, the value of the i64 scalar n; it is at least 0 and at "
    "most `most`, which bounds the memory of results of that size. The program stops (FX0608) where it is not.",
)

__all__ = ["beyond"]
