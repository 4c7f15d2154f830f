"""What the composites share: their declaration, and f32 as the type they compute in.

A composite has an `expand(b, op)` into primitives that fuse and a numpy `ref`. Numerics: f16 and bf16 operands are
computed in f32 and the result is rounded once. An expansion writes no branch and no shape that depends on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxir.ir.core import Attrs, Block, Value
from fluxir.ir.opdef import op, sample
from fluxir.ir.types import TensorType, Type
from fluxir.ops import meaning
from fluxir.ops.nest import accumulator, cast
from fluxir.ops.rules import check_dtype, normal_axes, tensor_operands

Builder = Any
INF = float("inf")


def composite(name: str, infer: Any, expand: Any, ref: Any, **kw: Any) -> None:
    op(name, infer, expand=expand, ref=ref, category="composite", **kw)


def wide(b: Builder, x: Value) -> Any:
    """f16 and bf16 as f32."""
    return cast(b, x, accumulator(x.type.dtype))


def select(b: Builder, c: Value, x: Value | float, y: Value | float) -> Any:
    """`b.select`, where a number takes the type of the other branch."""
    like = x if isinstance(x, Value) else y
    return b.select(c, *[v if isinstance(v, Value) else b.const(v, like=TensorType(like.type.dtype)) for v in (x, y)])  # type: ignore[union-attr]


def wide_array(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(np.float32) if meaning.is_half(x) else x


def float_operand(name: str, t: Sequence[Type], count: int = 1) -> TensorType:
    x = tensor_operands(name, t, count)[0]
    check_dtype(name, x.dtype, "float")
    return x


def shifted(b: Builder, x: Value, axis: int) -> Any:
    """x less its largest element: what is made of it does not depend on which, so no derivative flows through that."""
    return b.sub(x, b.stop_gradient(b.max(x, axes=(axis,), keepdims=True)))


def np_max(x: Any, axes: Any, keepdims: bool = True) -> Any:
    return np.max(x, axis=axes, keepdims=keepdims, initial=-np.inf).astype(x.dtype)


def reduced(name: str) -> Any:
    def infer(t: tuple[Type, ...], a: Attrs, k: tuple[Block, ...]) -> list[Type]:
        x = float_operand(name, t)
        axes = normal_axes(name, a.axes, x.rank)
        kept = [1 if i in axes else d for i, d in enumerate(x.shape) if a.keepdims or i not in axes]
        return [x.with_shape(kept)]

    return infer


REDUCE_ATTRS = {"axes": "ints", "keepdims": ("bool", False)}
REDUCE_SAMPLES = (
    sample("f32[3,5]", axes=(1,)),
    sample("f32[2,3,4]", axes=(0, -1), keepdims=True),
    sample("f64[4,2]", axes=(0, 1)),
    sample("f16[3,6]", axes=(1,)),
    sample("bf16[3,6]", axes=(0,)),
    sample("f32[0,3]", axes=(1,)),
    sample("f32", axes=()),
)
