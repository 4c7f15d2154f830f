"""What the element rules of reductions, contractions and indexing share: loop nests, accumulators, guarded reads.

Everything here emits scalar loop-level code through an `ElementContext`. Loops run in row-major order, so an element
rule is deterministic; templates may use another fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.ir.core import Value
from fluxir.ir.dims import Dim, prove_le
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.opdef import ElementContext
from fluxir.ir.types import INDEX, TensorType

Range = tuple[Value, Value]  # from (inclusive), to (exclusive), as i64 scalars
Body = Callable[[Any, tuple[Value, ...], list[Value]], Sequence[Value]]


def accumulator(d: DType) -> DType:
    """The type in which sums and products of `d` are kept: f32 for f16 and bf16, else `d` itself."""
    return DTYPES["f32"] if d.is_float and d.bits == 16 else d


def identity(op: str, d: DType) -> Any:
    """The value that changes nothing under `op` (sum, prod, min, max, any, all), as a Python number."""
    match op:
        case "sum" | "any":
            return False if d.is_bool else 0
        case "prod" | "all":
            return True if d.is_bool else 1
        case "max":
            return float("-inf") if d.is_float else bool(d.limits[0]) if d.is_bool else d.limits[0]
        case "min":
            return float("inf") if d.is_float else bool(d.limits[1]) if d.is_bool else d.limits[1]
    raise AssertionError(op)


COMBINE = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum", "any": "logical_or", "all": "logical_and"}
_TRUTH = {"maximum": "logical_or", "minimum": "logical_and"}


def combine(b: Any, op: str, x: Value, y: Value) -> Value:
    """One step of the reduction `op`: `COMBINE`'s op, or for truth values, the largest of which is their disjunction and
    the smallest their conjunction, the logical one."""
    name = COMBINE[op]
    return b.emit(_TRUTH.get(name, name) if x.dtype.is_bool else name, x, y)[0]  # type: ignore[no-any-return]


def cast(b: Any, x: Value, d: DType) -> Value:
    """`x` as `d`; itself where it has that type already."""
    return x if x.dtype == d else b.cast(x, dtype=d)


def whole(cx: ElementContext, dims: Sequence[Dim]) -> list[Range]:
    """The ranges 0..d for each of `dims`."""
    zero = cx.b.index(0)
    return [(zero, cx.dim(d)) for d in dims]


def nest(cx: Any, ranges: Sequence[Range], carry: Sequence[Value], body: Body) -> list[Value]:
    """Nested `for` loops over `ranges`, the first outermost; `body(cx, indices, carry)` gives the next carry.

    `cx` is the context at the current depth (the body gets one for its own depth). Returns the last carry.
    """

    def level(inner: Any, at: tuple[Value, ...], values: list[Value]) -> list[Value]:
        if len(at) == len(ranges):
            return list(body(inner, at, values))
        lo, hi = ranges[len(at)]

        def step(b: Any, i: Value, *c: Value) -> list[Value]:
            return level(inner.inside(b), (*at, i), list(c))

        block = inner.b.block([INDEX, *[v.type for v in values]], step)
        return list(inner.b.emit("for", lo, hi, inner.b.index(1), *values, blocks=[block]))

    return level(cx, (), list(carry))


def clamp_index(b: Any, i: Value, high: Value) -> Value:
    """`i` as an i64 held between 0 and `high`."""
    return b.maximum(b.minimum(cast(b, i, INDEX.dtype), high), b.index(0))  # type: ignore[no-any-return]


def within(b: Any, i: Value, lo: Value, hi: Value) -> Value:
    """Whether `lo <= i < hi`."""
    return b.logical_and(b.le(lo, i), b.lt(i, hi))  # type: ignore[no-any-return]


def choose(cx: Any, condition: Value, then: Callable[[Any], Value], other: Callable[[Any], Value]) -> Value:
    """`then(cx)` or `other(cx)`, of which only the chosen one runs (so it may read where the other must not)."""
    blocks = [cx.b.block([], lambda b: then(cx.inside(b))), cx.b.block([], lambda b: other(cx.inside(b)))]
    return cx.b.emit("if", condition, blocks=blocks)[0]  # type: ignore[no-any-return]


def require_scalar_index(name: str, position: str, t: Any) -> None:
    """FX0214 unless `t` is an i64 scalar."""
    if t != INDEX:
        raise error(
            "FX0214",
            f"{name}: {position} must be an i64 scalar, not {t}",
            help="cast it to i64; index one element if it is a tensor",
        )


def require_fits(name: str, what: str, size: Dim, extent: Dim, axis: int) -> None:
    """FX0216 where `size > extent` for all sizes; FX0218 where that is not provable either way."""
    if prove_le(size, extent):
        return
    if prove_le(extent, size):
        raise error("FX0216", f"{name}: {what} {size} is larger than axis {axis} of size {extent}")
    raise error(
        "FX0218",
        f"{name}: {what} {size} may be larger than axis {axis} of size {extent}",
        help=f"state what makes {size} <= {extent} true, for example a bound on the symbol",
    )


def tensor_type(d: DType, shape: Sequence[Dim]) -> TensorType:
    return TensorType(d, tuple(shape))
