"""Sizes that are known only at run time: a value of the program becomes a size of what follows."""

from __future__ import annotations

from typing import Any

from fluxir.errors import error
from fluxir.frontend.tensor import Tensor, as_tensor, cast, emit
from fluxir.frontend.trace import here, public, scope
from fluxir.ir.dims import Dim, Facts, as_dim, symbol
from fluxir.ir.dtypes import i64

__all__ = ["count_of", "extent"]


@public
def extent(n: Any, /, most: Any = None) -> Dim:
    """The value of an integer scalar as a size: `fx.arange(fx.extent(n, most=64))`.

    Outside a trace, and for a constant, it is a plain integer. In a traced program it is a new size symbol from here on, at
    least 0 and at most `most` (a size or None), which the program checks when it runs (FX0608). A result of such a size is
    computed in memory of the largest one and comes back cut to size, so it needs a `most`. FX0230 where the symbol leaves
    the branch, loop or function that it was made in, and for vmap.
    """
    t = as_tensor(n)
    if t.ndim or not t.dtype.is_integer:
        raise error("FX0230", f"extent: a size is an integer scalar, not {t.type}", loc=here())
    limit = None if most is None else as_dim(most)
    now = t._now()
    if now is None:
        now = t.scope.array(t.value)
    if now is not None:
        if int(now) < 0 or isinstance(limit, int) and int(now) > limit:
            raise error("FX0230", f"extent: the size {int(now)} is not between 0 and {limit}", loc=here())
        return int(now)
    if limit == 0:
        return 0
    trace = scope().trace
    name = trace.fresh_size()
    s = scope()
    count = cast(t, i64)
    s.emit("extent", (s.use(count.value, count.scope),), (), {"size": name, "most": limit})
    s.sizes.add(name)
    f = trace.assumptions.facts
    if limit is None:
        trace.unbounded.add(name)
    elif isinstance(limit, int):
        trace.assumptions.facts = Facts({**f.bounds, name: (0, limit)}, f.multiples, f.equations, f.ceilings)
    else:
        trace.assumptions.facts = Facts(f.bounds, f.multiples, f.equations, {**f.ceilings, name: limit})
    return symbol(name)


def count_of(mask: Tensor) -> Dim:
    """How many elements of a bool tensor hold, as a size of what follows."""
    total = emit("sum", cast(mask, i64), axes=tuple(range(mask.ndim)))
    return extent(total, most=mask.size)
