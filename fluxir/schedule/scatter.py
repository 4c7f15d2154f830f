"""The template of scatter: copy x, then apply the updates in row-major order of the index space.

The order is that of the op's meaning, on every target and for any number of threads, because the work is divided by
*where* an update goes, never by which update it is: each task owns some of the result's elements, walks all updates
in order and applies those that fall on its own. The index ranges are guarded: what is out of range is dropped.

- CPU: a task owns a chunk of the last axis that is not indexed (one task if every axis is indexed).
- GPU: a thread owns one position of the axes that are not indexed, and of the indexed places those whose row-major
  number is its own modulo the number of parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Op, Value
from fluxir.ir.dims import Dim, ceildiv, product
from fluxir.ir.types import INDEX
from fluxir.ops.index import rest_axes
from fluxir.ops.nest import cast, within
from fluxir.ops.rules import broadcast_index, normal_axes
from fluxir.schedule.group import Group, shape_of
from fluxir.schedule.loops import for_, if_, memory, nest, unravel
from fluxir.schedule.special import inputs_of, over, reader, register, step_of
from fluxir.schedule.templates import Kernels, Ref, Step, select

CHUNK = 64  # elements of the last axis that a CPU task owns
PARTS = 1024  # most parts of the indexed places on a GPU
FILL = 16384  # threads that keep a GPU busy
COMBINE = {"add": "add", "mul": "mul", "min": "minimum", "max": "maximum"}


def kernel_scatter(group: Group, op: Op, target: Any) -> Kernels:
    """Copy (or compute) x into the result, then apply the updates."""
    x, updates, *indices = op.operands
    shape, rank = shape_of(x), len(shape_of(x))
    axes = normal_axes("scatter", op.attrs["axes"], rank)
    rest = rest_axes(rank, axes)
    common = shape_of(updates)[: len(shape_of(updates)) - len(rest)]
    mode = op.attrs["mode"]
    kind = target.kind

    def apply(
        b: Builder,
        ins: Sequence[Value],
        out: Value,
        own: Callable[[Builder, list[Value]], Value | None],
        rows: Callable[..., None],
    ) -> None:
        """For each index in order: if it is in range and `own`, `rows(b, write)` calls write for each place "
        "of the rest."""

        def one(ib: Builder, at: tuple[Value, ...]) -> None:
            read = reader(ib, group, ins)
            places = [cast(ib, read.at(i, broadcast_index(i, at, read)), INDEX.dtype) for i in indices]
            inside: Any = own(ib, places)
            for place, axis in zip(places, axes):
                here = within(ib, place, ib.index(0), ib.index(shape[axis]))
                inside = here if inside is None else ib.logical_and(inside, here)

            def write(jb: Builder, others: Sequence[Value]) -> None:
                where: list[Any] = [None] * rank
                for place, axis in [*zip(places, axes), *zip(others, rest)]:
                    where[axis] = place
                value = reader(jb, group, ins).at(updates, (*at, *others))
                if mode != "set":
                    value = jb.emit(COMBINE[mode], jb.load(out, *where), value)[0]
                jb.store(out, value, *where)

            if_(ib, inside, lambda jb: rows(jb, write))

        nest(b, common, one)

    def cpu(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        if not rest:
            apply(b, ins, outs[0], lambda ib, places: None, lambda ib, write: write(ib, ()))
            return
        *at, chunk = unravel(b, task, split)
        lo = b.mul(chunk, b.index(CHUNK))
        hi = b.minimum(b.add(lo, b.index(CHUNK)), b.index(shape[rest[-1]]))

        def rows(ib: Builder, write: Callable[..., None]) -> None:
            for_(ib, lo, hi, lambda jb, j: write(jb, (*at, j)))

        apply(b, ins, outs[0], lambda ib, places: None, rows)

    def gpu(b: Builder, task: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        part, *at = unravel(b, task, (parts, *[shape[k] for k in rest]))

        def own(ib: Builder, places: list[Value]) -> Value:
            number = places[0]
            for place, axis in zip(places[1:], axes[1:]):
                number = ib.add(ib.mul(number, ib.index(shape[axis])), place)
            return ib.eq(ib.fmod(number, ib.index(parts)), part)  # type: ignore[no-any-return]

        apply(b, ins, outs[0], own, lambda ib, write: write(ib, at))

    split: tuple[Dim, ...] = (*[shape[k] for k in rest[:-1]], ceildiv(shape[rest[-1]], CHUNK)) if rest else ()
    others = product(shape[k] for k in rest)
    parts = _parts(others, product(shape[k] for k in axes))
    tasks = product(split) if kind == "cpu" else others * parts
    name = f"scatter_{mode}"
    made = over(
        kind,
        name,
        tasks,
        inputs_of(group),
        [memory(x.type)],
        cpu if kind == "cpu" else gpu,
        names=[v.name for v in group.args],
        method="owner",
        loc=group.loc,
    )
    start = copy_of(group, x, target)
    return Kernels((*start.steps, step_of(made, group, [0])), start.scratch, start.copies)


def _parts(others: Dim, indexed: Dim) -> int:
    """Into how many parts a GPU divides the indexed places: enough for `FILL` threads, not more than there are places."""
    parts = min(PARTS, FILL // max(1, others)) if isinstance(others, int) else PARTS // 16
    return max(1, min(parts, indexed) if isinstance(indexed, int) else parts)


def copy_of(group: Group, x: Value, target: Any) -> Kernels:
    """The kernels that compute one value of the group into result 0, with only the arguments they need."""
    if target.kind == "cpu" and x in group.args:
        return Kernels((), copies=((0, group.args.index(x)),))
    needed, ops = {x}, []
    for op in reversed(group.ops):
        if any(r in needed for r in op.results):
            ops.append(op)
            needed.update(op.operands)
    which = [i for i, v in enumerate(group.args) if v in needed]
    part = Group(Block([group.args[i] for i in which], ops[::-1], [x]), "pointwise", "copy", group.loc)
    made = select(part, target)[1] if target.kind == "cpu" else _copy_by_threads(part, x)

    def ref(r: Ref) -> Ref:
        return ("input", which[r[1]]) if r[0] == "input" else r

    steps = tuple(Step(s.kernel, tuple(ref(r) for r in s.operands), s.outputs, s.inplace) for s in made.steps)
    return Kernels(steps, made.scratch)


def _copy_by_threads(part: Group, x: Value) -> Kernels:
    """One GPU thread an element, so that neighbours read and write neighbours."""
    shape = shape_of(x)

    def copy(b: Builder, i: Value, ins: Sequence[Value], outs: Sequence[Value]) -> None:
        at = unravel(b, i, shape)
        b.store(outs[0], reader(b, part, ins).at(x, at), *at)

    made = over(
        "nvptx", "copy", product(shape), inputs_of(part), [memory(x.type)], copy, method="threads", loc=part.loc
    )
    return Kernels((step_of(made, part, [0]),))


register(("scatter",), kernel_scatter)

__all__ = ["kernel_scatter"]
