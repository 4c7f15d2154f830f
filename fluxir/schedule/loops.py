"""Short spellings of loop-level code that all templates use: loops with carries, index arithmetic, kernel functions.

Owns no decisions. Sizes are dims or i64 values alike; a region sees the constants of the code around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import Location
from fluxir.ir.build import Builder, as_values
from fluxir.ir.core import Attrs, Block, Func, Value
from fluxir.ir.dims import Dim, Poly, ceildiv, floordiv, maximum
from fluxir.ir.types import INDEX, MemType, Type

Size = Value | int | Poly
GRAIN = 16384  # element operations that are worth a thread of their own


def index(b: Builder, x: Size) -> Value:
    """A size as an i64 value."""
    return x if isinstance(x, Value) else b.index(x)


def region(b: Builder, types: Sequence[Type], body: Callable[..., Any], names: Sequence[str] = ()) -> Block:
    """A block of an open region; `body(builder, *args)` returns what it yields."""
    args = [Value(t, None, i, names[i] if i < len(names) else "") for i, t in enumerate(types)]
    inner = b.child()
    inner._consts.update(b._consts)
    outs = body(inner, *args)
    return Block(args, inner.ops, as_values(outs))


def for_(
    b: Builder,
    lo: Size,
    hi: Size,
    body: Callable[..., Any],
    carry: Sequence[Value] = (),
    *,
    step: Size = 1,
    name: str = "i",
    unroll: int = 0,
    vectorize: bool = True,
) -> tuple[Value, ...]:
    """`for i in lo..hi by step` with carried values; `body(builder, i, *carry)` returns the next carry."""
    block = region(b, [INDEX, *[v.type for v in carry]], body, [name])
    return b.emit(
        "for", index(b, lo), index(b, hi), index(b, step), *carry, blocks=[block], unroll=unroll, vectorize=vectorize
    )


def whole_blocks(b: Builder, lo: Size, hi: Size, block: int) -> tuple[Size, Size]:
    """`lo` and the end of the last whole block of `lo..hi`; one object where there is none for certain."""
    if isinstance(lo, int) and isinstance(hi, int):
        end = lo + (hi - lo) // block * block
        return (lo, lo) if end == lo else (lo, end)
    start, stop = index(b, lo), index(b, hi)
    return start, b.sub(stop, b.fmod(b.sub(stop, start), b.index(block)))


def parallel(
    b: Builder, n: Size, body: Callable[[Builder, Value], None], *, grain: Dim = 1, name: str = "task"
) -> None:
    """`body(builder, i)` for i in 0..n on any thread."""
    b.emit("parallel", index(b, n), blocks=[region(b, [INDEX], body, [name])], grain=grain)


def if_(
    b: Builder, condition: Value, then: Callable[[Builder], Any], other: Callable[[Builder], Any] | None = None
) -> tuple[Value, ...]:
    """`if` with open regions; both give the same types."""
    return b.emit("if", condition, blocks=[region(b, [], then), region(b, [], other or (lambda ib: None))])


def nest(
    b: Builder, shape: Sequence[Dim], body: Callable[..., Any], carry: Sequence[Value] = (), at: tuple[Value, ...] = ()
) -> tuple[Value, ...]:
    """Nested loops over `shape`, the first outermost; `body(builder, indices, *carry)` returns the next carry."""
    if not shape:
        return as_values(body(b, at, *carry))
    return for_(b, 0, shape[0], lambda ib, i, *c: nest(ib, shape[1:], body, c, (*at, i)), carry)


def unravel(b: Builder, i: Value, shape: Sequence[Dim]) -> tuple[Value, ...]:
    """The multi-index of row-major position `i` in `shape`."""
    out: list[Value] = []
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] == 1:
            out.append(b.index(0))
            continue
        size = b.index(shape[axis])
        out.append(b.fmod(i, size))
        i = b.div(i, size)
    return (i, *reversed(out)) if shape else ()


def grain_of(work: Dim, worth: int = GRAIN) -> Dim:
    """How many iterations of `work` element operations each are worth a thread; safe where `work` may be 0."""
    if isinstance(work, int):
        return max(1, worth // max(1, work))
    return maximum(1, floordiv(worth, maximum(1, work)))


def is_small(work: Dim, limit: int = GRAIN) -> bool:
    """Whether the work is known to be too little for threads."""
    return isinstance(work, int) and work <= limit


def memory(t: Any) -> MemType:
    """The memory type that holds a tensor type."""
    return MemType(t.dtype, t.shape)


def kernel(
    name: str,
    inputs: Sequence[MemType],
    outputs: Sequence[MemType],
    body: Callable[..., None],
    *,
    names: Sequence[str] = (),
    schedule: Any = None,
    loc: Location | None = None,
    given: Sequence[MemType] = (),
) -> Func:
    """A kernel function; `body(builder, input memories, output memories)` emits it. Where its arguments have other shapes
    than the body works with (merged axes), `given` holds their types, all of them in order."""
    types = [*inputs, *outputs]
    args = [Value(t, None, i, names[i] if i < len(names) else "") for i, t in enumerate(given or types)]
    b = Builder(loc)
    seen = [a if a.type == t else b.emit("reinterpret", a, type=t)[0] for a, t in zip(args, types, strict=True)]
    body(b, seen[: len(inputs)], seen[len(inputs) :])
    attrs = Attrs({"schedule": str(schedule)}) if schedule is not None else Attrs()
    return Func(name, Block(args, b.ops, ()), "kernel", attrs, (), loc)


__all__ = [
    "GRAIN",
    "Size",
    "ceildiv",
    "for_",
    "grain_of",
    "if_",
    "index",
    "is_small",
    "kernel",
    "memory",
    "nest",
    "parallel",
    "region",
    "unravel",
    "whole_blocks",
]
