"""Shared type rules and the `elementwise` declaration: what most ops have in common.

One arithmetic vocabulary: an elementwise op is the same op on tensors (with numpy broadcasting), on vectors
(`f32x8`) and on scalars (`f32`), so it needs no lowering rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxir.errors import error
from fluxir.ir.build import copies
from fluxir.ir.core import Attrs, Block, Op, Value
from fluxir.ir.dims import Dim, require_equal
from fluxir.ir.dtypes import DTYPES, DType
from fluxir.ir.opdef import ElementContext, OpDef, op
from fluxir.ir.types import MemType, TensorType, Type, VectorType
from fluxir.ops.adjoint import Partial, rules_of

CLASSES: dict[str, Callable[[DType], bool]] = {
    "any": lambda d: True,
    "number": lambda d: d.is_float or d.is_integer,
    "float": lambda d: d.is_float,
    "integer": lambda d: d.is_integer,
    "signed": lambda d: d.is_signed,
    "bits": lambda d: d.is_integer or d.is_bool,
    "bool": lambda d: d.is_bool,
}


def check_dtype(name: str, d: DType, types: str) -> None:
    """FX0209 unless `d` belongs to the class `types`."""
    if not CLASSES[types](d):
        allowed = ", ".join(x.name for x in DTYPES.values() if CLASSES[types](x))
        raise error("FX0209", f"{name} does not take {d}", help=f"it takes {allowed}; cast the operand first")


def broadcast_shapes(name: str, shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """Numpy's broadcasting over dims; FX0202 names the axis that differs. A size-1 axis stretches."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for axis in range(rank):
        best: Dim = 1
        for s in shapes:
            k = axis - (rank - len(s))
            if k < 0 or s[k] == 1:
                continue
            if best == 1:
                best = s[k]
            elif not require_equal(best, s[k]):
                shown = " and ".join(f"[{','.join(map(str, x))}]" for x in shapes)
                raise error(
                    "FX0202",
                    f"{name}: shapes {shown} do not broadcast: {best} is not {s[k]} (axis {axis - rank})",
                    help="sizes must be equal or 1, counted from the last axis; insert axes with x[:, None] or reshape",
                )
        out.append(best)
    return tuple(out)


def tensor_operands(name: str, types: Sequence[Type], count: int | None = None) -> list[TensorType]:
    """The operand types, which must be tensors; FX0108 otherwise."""
    if count is not None and len(types) != count:
        raise error("FX0108", f"{name} takes {count} operands, {len(types)} given")
    for t in types:
        if not isinstance(t, TensorType):
            raise error("FX0108", f"{name} takes tensors, not {t}")
    return list(types)  # type: ignore[arg-type]


def elementwise_type(name: str, types: Sequence[Type], same: Sequence[int] | None = None) -> TensorType | VectorType:
    """Common type of elementwise operands: equal dtypes (at positions `same`, default all), broadcast shapes."""
    which = range(len(types)) if same is None else same
    dtypes = {types[i].dtype for i in which}
    if len(dtypes) > 1:
        raise error(
            "FX0201",
            f"{name}: operand types differ: {', '.join(str(types[i]) for i in which)}",
            help="cast operands to one type",
        )
    dtype = types[which[0]].dtype
    vectors = [t for t in types if isinstance(t, VectorType)]
    if vectors:
        if len(vectors) != len(types) or len({t.lanes for t in vectors}) > 1:
            raise error(
                "FX0108",
                f"{name}: vectors and scalars do not mix: {', '.join(map(str, types))}",
                help="splat the scalar",
            )
        return VectorType(dtype, vectors[0].lanes)
    if any(isinstance(t, MemType) for t in types):
        raise error("FX0108", f"{name} takes values, not memory")
    return TensorType(dtype, broadcast_shapes(name, [t.shape for t in types]))


def broadcast_index(value: Value, index: Sequence[Value], cx: ElementContext) -> list[Value]:
    """The index into an operand that broadcasts to the result: drop leading axes, 0 on axes of size 1."""
    shape = value.type.shape
    tail = index[len(index) - len(shape) :]
    return [cx.b.const(0, dtype="i64") if d == 1 else i for d, i in zip(shape, tail, strict=True)]


def elementwise_element(cx: ElementContext, o: Op, index: Sequence[Value]) -> Value:
    """One element of an elementwise op: the same op on scalars."""
    scalars = [cx.at(v, broadcast_index(v, index, cx)) for v in o.operands]
    out: Value = cx.b.emit(o.name, *scalars, blocks=copies(o.blocks), **o.attrs)[0]
    return out


def elementwise(
    name: str,
    *,
    ref: Callable[..., Any],
    doc: str,
    types: str = "number",
    arity: int = 1,
    result: str = "same",  # "same" | a dtype name
    attrs: Any = None,
    samples: Sequence[Any] = (),
    partials: Sequence[Partial | None] = (),
    **kw: Any,
) -> OpDef:
    """Declare an elementwise op; `ref(*arrays)` (or `ref(attrs, *arrays)` when it has attributes) is its meaning.
    `partials`: its partial derivatives, from which both derivative rules follow; see `ops/adjoint.py`."""
    if partials:
        assert len(partials) == arity, f"{name} has {arity} operands and {len(partials)} partial derivatives"
        kw["vjp"], kw["jvp"] = rules_of(partials)

    def infer(operands: tuple[Type, ...], a: Attrs, blocks: tuple[Block, ...]) -> list[Type]:
        if len(operands) != arity:
            raise error("FX0108", f"{name} takes {arity} operands, {len(operands)} given")
        t = operands[0]
        if isinstance(t, MemType) or any(o is not t and o != t for o in operands[1:]):
            t = elementwise_type(name, operands)
        check_dtype(name, t.dtype, types)
        return [t if result == "same" else t.with_dtype(DTYPES[result])]

    meaning = ref if attrs else (lambda a, *xs: ref(*xs))
    return op(
        name,
        infer,
        doc=doc,
        ref=meaning,
        attrs=attrs,
        category=kw.pop("category", "elementwise"),
        level="both",
        element=elementwise_element,
        samples=samples,
        **kw,
    )


def normal_axis(name: str, axis: int, rank: int) -> int:
    """`axis` counted from 0; FX0205 if it is out of range, FX0221 if it is no integer."""
    if not hasattr(axis, "__index__"):
        raise error("FX0221", f"{name}: an axis is an integer, not {axis!r}")
    if not -rank <= axis < rank:
        raise error(
            "FX0205",
            f"{name}: axis {axis} is out of range for rank {rank}",
            help=f"axes run from {-rank} to {rank - 1}",
        )
    return axis % rank


def normal_axes(name: str, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """All axes counted from 0, in the given order; FX0206 on a repeated one."""
    out = tuple(normal_axis(name, a, rank) for a in axes)
    if len(set(out)) != len(out):
        raise error("FX0206", f"{name}: an axis is repeated in {tuple(axes)}")
    return out
