"""Indexing: `x[key]`, `x[key] = v` and `x.at[key]` in terms of slice, gather, scatter and dynamic_update.

Owns the reading of an index key (numpy's rules) into one `Plan`, used by reading and writing alike. Bounds: constant
indices are checked (FX0216); slices are cut to the axis as in Python; indices known only at run time count from the end
when negative, and are then clamped when reading or writing one position, and dropped when writing through index tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import FluxError, error
from fluxir.frontend.tensor import Tensor, as_tensor, cast, constant, emit, is_scalar, promote_operands
from fluxir.frontend.trace import here, scope
from fluxir.ir.dims import Dim, Poly, ceildiv, facts, maximum, minimum, prove_le
from fluxir.ir.dtypes import i64
from fluxir.ops.bounds import at_most
from fluxir.ops.rules import broadcast_shapes


@dataclass
class AxisSlice:
    """Elements start, start+step, ... (`count` of them) of one axis of size `size`."""

    axis: int
    size: Dim
    start: Dim
    step: int
    count: Dim

    @property
    def full(self) -> bool:
        return self.start == 0 and self.step == 1 and self.count == self.size


@dataclass
class Plan:
    """An index key read against a shape.

    `slices` has one entry per axis that stays; `fixed` the static integer of every axis that an integer removes;
    `tensors` the index tensor of every axis that one selects. `layout` says what each result axis is: an AxisSlice, None
    for a new axis, or "index" once, where the axes of the broadcast index tensors go.
    """

    slices: list[AxisSlice]
    fixed: dict[int, Dim]
    tensors: dict[int, Tensor]
    layout: list[Any]
    index_shape: tuple[Dim, ...] = ()

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of `x[key]`."""
        out: list[Dim] = []
        for part in self.layout:
            if isinstance(part, AxisSlice):
                out.append(part.count)
            elif part is None:
                out.append(1)
            else:
                out.extend(self.index_shape)
        return tuple(out)


# ---- reading a key ------------------------------------------------------------------------------------------------------


def plan(x: Tensor, key: Any) -> Plan:
    """Read `key`; FX0214 for masks and non-integers, FX0216 for constants out of range or too many indices."""
    items = _expand(x, key)
    advanced = any(isinstance(i, Tensor) for i in items)
    out = Plan([], {}, {}, [])
    axis = 0
    where: list[int] = []  # positions in the key of what numpy counts as advanced indices
    for position, item in enumerate(items):
        if item is None:
            out.layout.append(None)
            continue
        size = x.shape[axis]
        if isinstance(item, slice):
            part = _slice(axis, size, item)
            out.slices.append(part)
            out.layout.append(part)
        elif isinstance(item, Tensor):
            out.tensors[axis] = _wrap(item, size)
            where.append(position)
            if "index" not in out.layout:
                out.layout.append("index")
        else:
            out.fixed[axis] = _integer(x, axis, size, item)
            if advanced:
                where.append(position)
                if "index" not in out.layout:
                    out.layout.append("index")
        axis += 1
    if out.tensors:
        out.index_shape = broadcast_shapes("index", [t.shape for t in out.tensors.values()])
        if where[-1] - where[0] + 1 != len(where):  # separated by a slice: numpy puts the index axes first
            out.layout = ["index", *[p for p in out.layout if not isinstance(p, str)]]
    return out


def _expand(x: Tensor, key: Any) -> list[Any]:
    """One item per axis (plus None for new axes): an int or size, a slice, or an integer Tensor."""
    given = list(key) if isinstance(key, tuple) else [key]
    items: list[Any] = []
    for k in given:
        items += _item(k)
    used = sum(1 for k in items if k is not None and k is not Ellipsis)
    if used > x.ndim:
        raise error("FX0216", f"{used} indices for a tensor of rank {x.ndim} ({x.type})", loc=here())
    dots = [i for i, k in enumerate(items) if k is Ellipsis]
    if len(dots) > 1:
        raise error("FX0216", "an index has at most one '...'", loc=here())
    fill = [slice(None)] * (x.ndim - used)
    return [*items[: dots[0]], *fill, *items[dots[0] + 1 :]] if dots else [*items, *fill]


def _item(k: Any) -> list[Any]:
    if k is None or k is Ellipsis or isinstance(k, slice | Poly):
        return [k]
    if isinstance(k, bool | np.bool_):
        raise error("FX0214", "a bool is no index", help="use fx.where(c, x, y)", loc=here())
    if isinstance(k, int | np.integer):
        return [int(k)]
    if isinstance(k, list | tuple) and not any(isinstance(v, Tensor) for v in k):
        k = np.asarray(k, dtype=np.int64 if len(k) == 0 else None)
    if isinstance(k, np.ndarray) and k.dtype.kind == "b":
        return [as_tensor(a) for a in k.nonzero()]  # a mask that is known now is a list of positions
    t = as_tensor(k)
    if t.dtype.is_bool and t.ndim:
        from fluxir.frontend.api_indexing import nonzero

        return list(nonzero(t))
    if t.dtype.is_bool:
        raise error("FX0214", "a bool scalar is no index", help="use fx.where(c, x, y)", loc=here())
    if not t.dtype.is_integer:
        raise error(
            "FX0214", f"an index must have an integer type, not {t.type}", help="cast it: i.astype('i64')", loc=here()
        )
    return [t]


def _known(t: Tensor) -> np.ndarray[Any, Any] | None:
    owner = t.value.owner
    return owner.attrs["value"] if owner is not None and owner.name == "const" else None


def _wrap(t: Tensor, size: Dim) -> Tensor:
    """An index tensor as i32 or i64, with negative entries counted from the end."""
    known = _known(t)
    if known is not None:
        a = known.astype(np.int64)
        if isinstance(size, int):
            if a.size and (a.min() < -size or a.max() >= size):
                bad = int(a[(a < -size) | (a >= size)].flat[0])
                raise error("FX0216", f"the index {bad} is out of range for an axis of size {size}", loc=here())
            return as_tensor(np.where(a < 0, a + size, a))
        if not a.size or a.min() >= 0:
            return as_tensor(a)
    if not t.dtype.is_signed:
        return cast(t, i64)
    if t.dtype.bits < 32:
        t = cast(t, i64)
    n, zero = promote_operands(t, size)[1], constant(0, t.dtype)
    return emit("select", emit("lt", t, zero), emit("add", t, n), t)


def _integer(x: Tensor, axis: int, size: Dim, i: Any) -> Dim:
    """A static integer index counted from the start; checked where the size is known."""
    if isinstance(i, int):
        if isinstance(size, int) and not -size <= i < size:
            raise error(
                "FX0216",
                f"the index {i} is out of range for axis {axis} of {x.type}",
                help=f"indices run from {-size} to {size - 1}" if size else "the axis is empty",
                loc=here(),
            )
        d: Dim = i if i >= 0 else size + i
    else:
        d = i
    if not prove_le(0, d) or not prove_le(d + 1, size):
        need = f"{size} >= {i + 1 if i >= 0 else -i}" if isinstance(i, int) else f"0 <= {i} < {size}"
        raise error("FX0216", f"the index {i} may be out of range for axis {axis} of {x.type}",
                    help=f"state the fact {need}, for example with facts=\"{need}\"", loc=here())  # fmt: skip
    return d


def _bound(v: Any, size: Dim, lowest: Dim, highest: Dim) -> Dim:
    """A slice bound, counted from the end if negative, cut to lowest..highest."""
    if isinstance(v, Tensor):
        raise error("FX0302", "a slice bound is a traced tensor, so the size of the slice is not known",
                    help="use fx.dynamic_slice(x, starts, sizes), with sizes known now", loc=here())  # fmt: skip
    if not isinstance(v, Poly):
        try:
            v = v.__index__()
        except AttributeError:
            raise error("FX0216", f"{v!r} is no slice bound", loc=here()) from None
    lo, hi = facts().range(v)
    if hi < 0:
        v = size + v
    elif lo < 0 and not at_most(0, v):
        raise error("FX0218", f"the slice bound {v} may be negative, and would then count from the end",
                    help="state a fact about the sizes, for example B >= 1", loc=here())  # fmt: skip
    return minimum(maximum(v, lowest), highest)


def _slice(axis: int, size: Dim, s: slice) -> AxisSlice:
    step = 1 if s.step is None else s.step
    if isinstance(step, Tensor | Poly) or not hasattr(step, "__index__"):
        raise error("FX0216", f"a slice step must be an integer, not {step!r}", loc=here())
    step = step.__index__()
    if step == 0:
        raise error("FX0216", "a slice step cannot be 0", loc=here())
    if step > 0:
        start = 0 if s.start is None else _bound(s.start, size, 0, size)
        stop = size if s.stop is None else _bound(s.stop, size, 0, size)
        return AxisSlice(axis, size, start, step, ceildiv(maximum(stop - start, 0), step))
    start = size - 1 if s.start is None else _bound(s.start, size, -1, size - 1)
    stop = -1 if s.stop is None else _bound(s.stop, size, -1, size - 1)
    return AxisSlice(axis, size, start, step, ceildiv(maximum(start - stop, 0), -step))


def _planned(x: Tensor, key: Any) -> Plan:
    """`plan`, whose errors show the types of the tensor and the indices."""
    try:
        return plan(x, key)
    except FluxError as e:
        from fluxir.frontend.labels import label

        label(e, {"the tensor": x, "the index": key})
        raise


# ---- reading --------------------------------------------------------------------------------------------------------------


def getitem(x: Tensor, key: Any) -> Tensor:
    """`x[key]`."""
    p = _planned(x, key)
    y = _take_slices(x, p)
    if not p.tensors:
        shape = p.shape
        y = y if y.shape == shape else emit("reshape", y, shape=shape)
    else:
        y = _gather(y, p)
    if y is x:
        y = Tensor(x.value, x.scope, x.weak)
    y.is_view = not p.tensors and bool(y.shape)
    return y


def _take_slices(x: Tensor, p: Plan) -> Tensor:
    """Apply slices and static integers, every axis kept (an integer leaves size 1)."""
    backwards = tuple(s.axis for s in p.slices if s.step < 0)
    y = emit("reverse", x, axes=backwards) if backwards else x
    start: list[Dim] = [0] * x.ndim
    limit: list[Dim] = list(x.shape)
    stride = [1] * x.ndim
    for s in p.slices:
        if s.full or (s.step < 0 and s.step == -1 and s.count == s.size):
            continue
        step = abs(s.step)
        start[s.axis] = s.start if s.step > 0 else s.size - 1 - s.start
        # The end of the last element taken, not the stop the user gave: it never exceeds the axis.
        limit[s.axis] = start[s.axis] + s.count if step == 1 else _end(start[s.axis], s.count, step, s.size)
        stride[s.axis] = step
    for axis, i in p.fixed.items():
        start[axis], limit[axis] = i, i + 1
    if all(a == 0 for a in start) and tuple(limit) == x.shape and all(k == 1 for k in stride):
        return y
    return emit("slice", y, start=tuple(start), limit=tuple(limit), stride=tuple(stride))


def _end(start: Dim, count: Dim, step: int, size: Dim) -> Dim:
    if isinstance(start, int) and isinstance(count, int):
        return start + (count - 1) * step + 1 if count else start
    return minimum(start + count * step, size)


def _gather(y: Tensor, p: Plan) -> Tensor:
    """Index tensors applied to `y`, whose integer axes have size 1 still."""
    kept = [a for a in range(y.ndim) if a not in p.fixed]
    y = y if not p.fixed else emit("reshape", y, shape=tuple(y.shape[a] for a in kept))
    axes = tuple(kept.index(a) for a in p.tensors)
    y = emit("gather", y, *p.tensors.values(), axes=axes)  # index axes first, then the slices in order
    n = len(p.index_shape)
    slices = [part for part in p.layout if isinstance(part, AxisSlice)]
    perm: list[int] = []
    for part in p.layout:
        if isinstance(part, AxisSlice):
            perm.append(n + slices.index(part))
        elif part is not None:
            perm.extend(range(n))
    if perm != sorted(perm):
        y = emit("transpose", y, perm=tuple(perm))
    return y if y.shape == p.shape else emit("reshape", y, shape=p.shape)


# ---- writing --------------------------------------------------------------------------------------------------------------


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """`x[key] = value`: the object `x` stands for the changed tensor from now on. FX0304 where that would be lost."""
    s = scope()
    if x.scope is not s:
        raise error(
            "FX0304",
            "a tensor from outside is changed inside a branch or loop body, where the change would be lost",
            help="return it from the body: x = x.at[i].set(v); return x",
            loc=here(),
        )
    if x.is_view:
        raise error(
            "FX0304",
            f"this tensor ({x.type}) was taken out of another by indexing; the change would not reach that one",
            help="write x[i, j] = v in place of x[i][j] = v, or change a copy: row = fx.copy(x[i])",
            loc=here(),
        )
    x.value = update(x, key, value, "set").value


class At:
    """`x.at`: pick positions with `[key]`, then say what becomes of them."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, key: Any) -> AtKey:
        return AtKey(self.tensor, key)


class AtKey:
    """`x.at[key]`: each method returns a changed copy of `x`; the value is broadcast and cast to x's element type."""

    __slots__ = ("tensor", "key")

    def __init__(self, tensor: Tensor, key: Any) -> None:
        self.tensor, self.key = tensor, key

    def get(self) -> Tensor:
        """`x[key]`."""
        return getitem(self.tensor, self.key)

    def set(self, value: Any) -> Tensor:
        """The positions replaced; where an index repeats, the last update in row-major order stays."""
        return update(self.tensor, self.key, value, "set")

    def add(self, value: Any) -> Tensor:
        """`value` added at the positions; repeated indices add up."""
        return update(self.tensor, self.key, value, "add")

    def mul(self, value: Any) -> Tensor:
        """The positions multiplied by `value`; repeated indices multiply."""
        return update(self.tensor, self.key, value, "mul")

    multiply = mul

    def min(self, value: Any) -> Tensor:
        """The smaller of the position and `value`."""
        return update(self.tensor, self.key, value, "min")

    def max(self, value: Any) -> Tensor:
        """The larger of the position and `value`."""
        return update(self.tensor, self.key, value, "max")


_COMBINE = {"add": "add", "mul": "mul", "min": "minimum", "max": "maximum"}


def update(x: Tensor, key: Any, value: Any, mode: str) -> Tensor:
    """A copy of `x` with `value` set, added, ... at `key`. A mask takes a value that fits each place it picks."""
    if has_mask(key):
        return where_mask(
            x, key, value, lambda old, v: v if mode == "set" else emit(_COMBINE[mode], *promote_operands(old, v))
        )
    p = _planned(x, key)
    from fluxir.frontend.api_manipulation import same_shape

    v = _fitting(value, x)
    shape = p.shape
    if not same_shape(broadcast_shapes("index assignment", [v.shape, shape]), shape):
        raise error(
            "FX0202", f"a value of shape {_show(v.shape)} does not fit the indexed shape {_show(shape)}", loc=here()
        )
    one_place = all(t.ndim == 0 for t in p.tensors.values()) and all(s.step == 1 for s in p.slices)
    if one_place:
        return _update_window(x, p, v, mode)
    return _scatter(x, p, emit("broadcast", v, shape=shape) if v.shape != shape else v, mode)


def _fitting(value: Any, x: Tensor) -> Tensor:
    """`value` in the element type of `x`, into which it is written; FX0201 where that would lose digits."""
    v = as_tensor(value)
    v = promote_operands(value, x)[0] if is_scalar(value) or v.weak else v
    if v.dtype != x.dtype and promote_operands(v, x)[0].dtype != x.dtype:
        raise error("FX0201", f"a {v.dtype} tensor cannot be written into a {x.dtype} tensor without losing digits",
                    help=f"cast it: v.astype('{x.dtype}')", loc=here())  # fmt: skip
    return cast(v, x.dtype)


def has_mask(key: Any) -> bool:
    """Whether one of the indices is a traced bool tensor."""
    return any(isinstance(k, Tensor) and k.dtype.is_bool for k in (key if isinstance(key, tuple) else (key,)))


def where_mask(x: Tensor, key: Any, value: Any, change: Callable[[Tensor, Any], Any]) -> Tensor:
    """A copy of `x` with `change(old, value)` where the mask in `key` holds; numbers and slices beside the mask pick a part.

    The number of places is known only at run time, so the new value is one that broadcasts to what lies behind each.
    """
    given = list(key) if isinstance(key, tuple) else [key]
    places = [i for i, k in enumerate(given) if isinstance(k, Tensor) and k.dtype.is_bool]
    plain = all(
        k is Ellipsis
        or isinstance(k, int | np.integer | slice | Poly)
        and not isinstance(k, bool)
        or isinstance(k, Tensor)
        and not k.ndim
        for i, k in enumerate(given)
        if i not in places
    )
    mask = given[places[0]]
    if len(places) > 1 or not plain or any(k is Ellipsis for k in given[: places[0]]):
        raise error("FX0214", "a mask is combined here with other index tensors", loc=here(),
                    help="write x = fx.where(mask, v, x) with a mask of x's shape")  # fmt: skip
    part = (*given[: places[0]], *[slice(None)] * mask.ndim, *given[places[0] + 1 :])
    old = getitem(x, part)
    before = sum(1 for k in given[: places[0]] if isinstance(k, slice))
    covered = old.shape[before : before + mask.ndim]
    from fluxir.frontend.api_manipulation import same_shape

    if not same_shape(mask.shape, covered):
        raise error("FX0216", f"a mask of shape {_show(mask.shape)} picks from axes of shape {_show(covered)}", loc=here(),
                    help="a mask has the sizes of the axes it stands for")  # fmt: skip
    behind = old.shape[before + mask.ndim :]
    shape = () if is_scalar(value) else as_tensor(value).shape
    if not same_shape(broadcast_shapes("index assignment", [shape, behind]), behind):
        raise error("FX0202", f"a value of shape {_show(shape)} does not fit each place of a mask, {_show(behind)}",
                    help="write x = fx.where(mask, v, x), with v of x's shape", loc=here())  # fmt: skip
    v = _fitting(change(old, value), x)
    wide = emit("reshape", mask, shape=(*mask.shape, *[1] * len(behind))) if behind else mask
    wide = wide if wide.shape == old.shape else emit("broadcast", wide, shape=old.shape)
    v = v if v.shape == old.shape else emit("broadcast", v, shape=old.shape)
    return update(x, part, emit("select", wide, v, old), "set")


def _show(shape: Any) -> str:
    return f"[{','.join(map(str, shape))}]"


def _update_window(x: Tensor, p: Plan, v: Tensor, mode: str) -> Tensor:
    """Positions that form one box: replace it. Run-time starts are clamped so that the box fits."""
    window: list[Dim] = [1] * x.ndim
    starts: list[Any] = [0] * x.ndim
    for s in p.slices:
        window[s.axis], starts[s.axis] = s.count, s.start
    for axis, i in p.fixed.items():
        starts[axis] = i
    for axis, t in p.tensors.items():
        starts[axis] = cast(t, i64)
    sizes = tuple(window)
    full = p.shape
    v = emit("broadcast", v, shape=full) if v.shape != full else v
    box = emit("reshape", v, shape=sizes) if v.shape != sizes else v
    if mode == "set" and sizes == x.shape:
        return Tensor(box.value, box.scope)
    at = [d if isinstance(d, Tensor) else promote_operands(constant(0, i64), d)[1] for d in starts]
    if mode != "set":
        box = emit(_COMBINE[mode], emit("dynamic_slice", x, *at, sizes=sizes), box)
    return emit("dynamic_update", x, box, *at)


def _scatter(x: Tensor, p: Plan, v: Tensor, mode: str) -> Tensor:
    """The general case: every axis that is not taken whole gets an index tensor."""
    n = len(p.index_shape)
    partial = [s for s in p.slices if not s.full]
    whole = [s for s in p.slices if s.full]
    # Drop new axes, then bring the updates to (index axes, partial slices, whole slices in axis order).
    source: list[Any] = []
    for part in p.layout:
        if isinstance(part, AxisSlice):
            source.append(part)
        elif part is not None:
            source.extend(range(n))
    shape: list[Dim] = [part.count if isinstance(part, AxisSlice) else p.index_shape[part] for part in source]
    v = emit("reshape", v, shape=tuple(shape)) if v.shape != tuple(shape) else v
    order = [*range(n), *partial, *whole]
    perm = tuple(_position(source, part) for part in order)
    v = emit("transpose", v, perm=perm) if perm != tuple(range(len(perm))) else v
    indices: dict[int, Tensor] = {}
    for axis, t in p.tensors.items():
        indices[axis] = emit("reshape", t, shape=(*t.shape, *[1] * len(partial))) if partial else t
    for k, s in enumerate(partial):
        i = emit("iota", shape=(s.count,), axis=0, dtype=i64)
        i = i if s.step == 1 else emit("mul", i, constant(s.step, i64))
        i = i if s.start == 0 else emit("add", i, promote_operands(i, s.start)[1])
        indices[s.axis] = (
            emit("reshape", i, shape=(s.count, *[1] * (len(partial) - 1 - k))) if k + 1 < len(partial) else i
        )
    for axis, d in p.fixed.items():
        indices[axis] = promote_operands(constant(0, i64), d)[1]
    axes = tuple(sorted(indices))
    dtypes = {indices[a].dtype for a in axes}
    tensors = [cast(indices[a], i64) if len(dtypes) > 1 else indices[a] for a in axes]
    return emit("scatter", x, v, *tensors, axes=axes, mode=mode)


def _position(source: list[Any], part: Any) -> int:
    return next(
        i for i, s in enumerate(source) if s is part or (isinstance(part, int) and isinstance(s, int) and s == part)
    )


__all__ = [
    "At", "AtKey", "Plan", "getitem", "has_mask", "plan", "setitem", "update", "where_mask",
]  # fmt: skip
