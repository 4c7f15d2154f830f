"""Builder: the only way to make IR. Appends typed ops to one block.

`b.add(x, y)` emits an op and returns its value (a tuple if it has several results). A Python scalar among the
operands becomes a constant of the other operand's element type. Type errors are raised here, at the op, with the
user's location and the operands by name and type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import FluxError, Location
from fluxir.ir.core import Attrs, Block, Func, Op, Value
from fluxir.ir.dims import Dim
from fluxir.ir.dtypes import dtype_of, scalar_dtype
from fluxir.ir.opdef import lookup, normalise_attrs
from fluxir.ir.types import INDEX, TensorType, Type, VectorType


class Builder:
    """Collects ops. `loc` is attached to each op emitted until it is changed."""

    def __init__(self, loc: Location | None = None) -> None:
        self.ops: list[Op] = []
        self.loc = loc
        self._consts: dict[Any, Value] = {}

    # ---- ops
    def emit(
        self, name: str, /, *operands: Any, blocks: Sequence[Block] = (), loc: Location | None = None, **attrs: Any
    ) -> tuple[Value, ...]:
        """Append op `name`; returns its results. Raises the type rule's error with location and operand types."""
        defn = lookup(name)
        values = self._operands(operands)
        loc = loc or self.loc
        try:
            op = Op(defn, values, normalise_attrs(defn, attrs), blocks, loc)
        except FluxError as e:
            raise with_operands(e, name, values, loc) from None
        self.ops.append(op)
        return op.results

    def append(self, op: Op) -> tuple[Value, ...]:
        """Append an op made elsewhere."""
        self.ops.append(op)
        return op.results

    def clone(
        self, op: Op, operands: Sequence[Value], blocks: Sequence[Block] | None = None, **changes: Any
    ) -> tuple[Value, ...]:
        """`op` again with other operands (and blocks, attributes); types are inferred anew."""
        attrs = Attrs({**op.attrs, **changes}) if changes else op.attrs
        try:
            new = Op(op.defn, operands, attrs, op.blocks if blocks is None else blocks, op.loc or self.loc)
        except FluxError as e:
            raise with_operands(e, op.name, operands, op.loc or self.loc) from None
        self.ops.append(new)
        for old, r in zip(op.results, new.results, strict=True):
            r.name = old.name
        return new.results

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def make(*operands: Any, **kw: Any) -> Any:
            r = self.emit(name, *operands, **kw)
            return r[0] if len(r) == 1 else r

        return make

    # ---- constants
    def const(self, value: Any, like: Any = None, dtype: Any = None) -> Value:
        """A constant: an array as it is, or a Python scalar as a rank-0 constant of `dtype` or of the type of `like`.

        With `like` a vector the constant is splat over its lanes.
        """
        quick = None
        if type(value) in (int, bool):  # most of them: sizes and indices; not floats, where 0.0 equals -0.0
            quick = (value, type(value), dtype, like.type if isinstance(like, Value) else like)
            if (known := self._consts.get(quick)) is not None:
                return known
        if isinstance(value, np.ndarray):
            return self.emit("const", value=value if dtype is None else value.astype(dtype_of(dtype).numpy))[0]
        t = like.type if isinstance(like, Value) else like
        if dtype is not None:
            d = dtype_of(dtype)
        elif t is not None:
            d = t.dtype
            scalar_dtype(value.item() if isinstance(value, np.generic) else value, d)
        else:
            d = dtype_of(value.dtype) if isinstance(value, np.generic) else dtype_of(type(value))
        array = np.asarray(value).astype(d.numpy)
        key = (d.name, array.tobytes(), t.lanes if isinstance(t, VectorType) else 0)
        if key not in self._consts:
            v = self.emit("const", value=array)[0]
            if isinstance(t, VectorType):
                v = self.emit("splat", v, lanes=t.lanes)[0]
            self._consts[key] = v
        if quick is not None:
            self._consts[quick] = self._consts[key]
        return self._consts[key]

    def index(self, value: Dim) -> Value:
        """A size as an i64 scalar: a constant, or a `dim` op for a symbolic one."""
        if isinstance(value, int):
            return self.const(value, dtype="i64")
        key = ("dim", value)
        if key not in self._consts:
            self._consts[key] = self.emit("dim", value=value)[0]
        return self._consts[key]

    def _operands(self, operands: Sequence[Any]) -> Sequence[Value]:
        values = [o for o in operands if isinstance(o, Value)]
        if len(values) == len(operands):
            return values
        return [o if isinstance(o, Value) else self._scalar(o, values) for o in operands]

    def _scalar(self, x: Any, values: Sequence[Value]) -> Value:
        """A constant of the type of the operand it belongs to: a bool goes with the first bool, a number with the first
        that is no bool, a float with the first float. A condition says nothing of the type of the numbers beside it, so
        a number that stands beside bools only has the type it would have alone, in as many lanes."""
        if isinstance(x, np.ndarray) or not values:
            return self.const(x)
        if isinstance(x, (bool, np.bool_)):
            return self.const(x, like=next((v for v in values if v.dtype.is_bool), values[0]))
        numbers = [v for v in values if not v.dtype.is_bool]
        if not numbers:
            return self.const(x, like=values[0], dtype=x.dtype if isinstance(x, np.generic) else type(x))
        if isinstance(x, (float, np.floating)):
            numbers = [v for v in numbers if v.dtype.is_float] or numbers
        return self.const(x, like=numbers[0])

    # ---- blocks
    def child(self) -> Builder:
        """A builder for a region of an op that will be appended here. Open regions may use values of this one."""
        return type(self)(self.loc)

    def block(self, arg_types: Sequence[Type], body: Callable[..., Any], names: Sequence[str] = ()) -> Block:
        """A block whose ops `body(builder, *args)` emits; it returns the value(s) to yield (None for none)."""
        args = [Value(t, None, i, names[i] if i < len(names) else "") for i, t in enumerate(arg_types)]
        inner = self.child()
        outs = body(inner, *args)
        return Block(args, inner.ops, as_values(outs))


def as_values(x: Any) -> tuple[Value, ...]:
    if x is None:
        return ()
    return (x,) if isinstance(x, Value) else tuple(x)


def build_func(
    name: str,
    arg_types: Sequence[Type],
    body: Callable[..., Any],
    names: Sequence[str] = (),
    level: str = "tensor",
    **attrs: Any,
) -> Func:
    """A function from a Python body that emits its ops: `build_func("f", [f32[3]], lambda b, x: b.exp(x))`."""
    return Func(name, Builder().block(arg_types, body, names), level, Attrs(attrs))


def scalar(dtype: Any) -> TensorType:
    return INDEX if dtype == "i64" else TensorType(dtype_of(dtype))


def inline(b: Builder, block: Block, args: Sequence[Value]) -> list[Value]:
    """Copy a block's ops into `b` with its arguments replaced; returns what it yields."""
    env: dict[Value, Value] = dict(zip(block.args, args, strict=True))
    clone_ops(b, block.ops, env)
    return [env.get(v, v) for v in block.outs]


def clone_ops(b: Builder, ops: Sequence[Op], env: dict[Value, Value]) -> None:
    """Copy ops into `b`, mapping operands through `env` and recording results in it. Open regions are copied too."""
    for op in ops:
        operands = [env.get(v, v) for v in op.operands]
        blocks = [clone_block(k, env) for k in op.blocks]
        for old, new in zip(op.results, b.clone(op, operands, blocks), strict=True):
            env[old] = new


def clone_block(block: Block, env: dict[Value, Value]) -> Block:
    """A copy of a block with fresh arguments and ops (a value is defined once); free values are mapped through `env`."""
    inner = dict(env)
    args = [Value(a.type, None, a.index, a.name) for a in block.args]
    inner.update(zip(block.args, args, strict=True))
    b = Builder()
    clone_ops(b, block.ops, inner)
    return Block(args, b.ops, [inner.get(v, v) for v in block.outs])


def copies(blocks: Sequence[Block]) -> list[Block]:
    """Closed regions once more, for an op that is emitted again."""
    return [clone_block(k, {}) for k in blocks]


def with_operands(e: FluxError, name: str, operands: Sequence[Value], loc: Location | None) -> FluxError:
    """Add to a type rule's error what it cannot know: the op, where the user wrote it, operands by name and type."""
    if e.loc is None:
        e.loc = loc
        e.labels += [(v.name or f"operand {i}", str(v.type)) for i, v in enumerate(operands)]
        e.notes.append(f"in the op {name}")
    return e
