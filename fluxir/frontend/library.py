"""The functions that importers write operators with: those of the public API under one roof, some of them wider.

Functions that only move elements (`reshape`, `take`, `concat`, ...) also take numpy arrays of objects, which are symbolic
sizes or texts while a graph is read: numpy moves those. Invariant: what is an array of objects goes in and out as one.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend import api_manipulation as _m
from fluxir.frontend import nn as nn
from fluxir.frontend import random as random
from fluxir.frontend.api_creation import *  # noqa: F403
from fluxir.frontend.api_elementwise import *  # noqa: F403
from fluxir.frontend.api_indexing import *  # noqa: F403
from fluxir.frontend.api_linalg import *  # noqa: F403
from fluxir.frontend.api_manipulation import *  # noqa: F403
from fluxir.frontend.api_reduce import *  # noqa: F403
from fluxir.frontend.control import cond as cond
from fluxir.frontend.control import fori_loop as fori_loop
from fluxir.frontend.control import scan as scan
from fluxir.frontend.control import while_loop as while_loop
from fluxir.frontend.einsum import einsum as einsum
from fluxir.frontend.extent import extent as extent
from fluxir.frontend.tensor import Tensor as Tensor
from fluxir.frontend.tensor import as_dtype as as_dtype
from fluxir.frontend.trace import public as public
from fluxir.ir.dims import Dim as Dim
from fluxir.ir.dims import Poly as Poly
from fluxir.ir.dtypes import dtype_of


def dtype(x: Any) -> Any:  # type: ignore[no-redef]
    """The element type of a tensor or array, as a dtype of ours."""
    return x.dtype if isinstance(x, Tensor) else dtype_of(np.asarray(x).dtype)


def is_objects(x: Any) -> bool:
    """Whether `x` is an array of symbolic sizes or texts."""
    return isinstance(x, np.ndarray) and x.dtype == object


MAX_OBJECTS = 1 << 20  # sizes or texts in one array


def _moving(ours: Callable[..., Any], numpys: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes arrays of objects, too, and for these is numpy's."""

    def call(x: Any, *args: Any, **options: Any) -> Any:
        return numpys(x, *args, **options) if is_objects(x) else ours(x, *args, **options)

    call.__doc__ = ours.__doc__
    return call


reshape = _moving(_m.reshape, np.reshape)
transpose = _moving(_m.permute_dims, np.transpose)
squeeze = _moving(_m.squeeze, lambda x, axis=None: np.squeeze(x, axis))
expand_dims = _moving(_m.expand_dims, lambda x, axis: np.expand_dims(x, axis))
broadcast_to = _moving(_m.broadcast_to, lambda x, shape: np.broadcast_to(x, _few(tuple(map(int, shape)))))
tile = _moving(_m.tile, lambda x, repeats: np.tile(x, repeats) if _few((x.size, *map(int, repeats))) else x)
flip = _moving(_m.flip, np.flip)
take = _moving(take, lambda x, i, axis=0: np.take(x, i, axis) if _few((*_others(x, axis), np.size(i))) else x)  # noqa: F405


def _others(x: Any, axis: int) -> tuple[int, ...]:
    """The sizes of all axes but one."""
    return tuple(n for a, n in enumerate(x.shape) if a != axis % x.ndim)


def _few(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, where an array of objects may have it; FX0109 for more than `MAX_OBJECTS` elements."""
    if math.prod(shape) > MAX_OBJECTS:
        raise error("FX0109", f"an array of {math.prod(shape)} sizes or texts is more than {MAX_OBJECTS}")
    return shape


@public
def _item(x: Any, key: Any) -> Any:
    from fluxir.frontend.tensor import as_tensor

    return as_tensor(x)[key]


def item(x: Any, key: Any) -> Any:
    """x[key]."""
    return x[key] if is_objects(x) else _item(x, key)


def concat(parts: Sequence[Any], axis: int = 0) -> Any:  # type: ignore[no-redef]
    """Tensors joined along an axis."""
    if builtins.any(map(is_objects, parts)):
        return np.concatenate(parts, axis)
    return _m.concat(list(parts), axis=axis)


def stack(parts: Sequence[Any], axis: int = 0) -> Any:  # type: ignore[no-redef]
    """Tensors joined along a new axis."""
    if builtins.any(map(is_objects, parts)):
        return np.stack(parts, axis)
    return _m.stack(list(parts), axis=axis)


def cast(x: Any, to: Any) -> Any:
    """`x` with elements of the dtype `to`."""
    return astype(x, to)  # noqa: F405


def rank(x: Any) -> int:
    """The number of axes."""
    return len(x.shape)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front; IndexError where there is none."""
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} of a tensor of {rank} axes")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, ascending; ValueError for one that is named twice."""
    out = sorted(axis_of(a, rank) for a in axes)
    if len(set(out)) != len(out):
        raise ValueError(f"an axis is named twice in {list(axes)}")
    return tuple(out)


def scalar(value: Any, like: Any) -> Any:
    """A number as an array of no axes of the element type of `like`."""
    with np.errstate(invalid="ignore", over="ignore"):  # a number that the type does not have
        return np.asarray(value).astype(dtype(like).numpy)


@public
def primitive(name: str, *xs: Any, **attributes: Any) -> Any:
    """An op of the IR by name, on operands of one element type."""
    from fluxir.frontend.tensor import emit, promote_operands

    return emit(name, *promote_operands(*xs), **attributes)


# ---- parts and places along an axis -----------------------------------------------------------------------------------


def part(x: Any, axis: int, low: Any, high: Any, step: int = 1) -> Any:
    """The elements `low` to `high` of an axis that is counted from the front."""
    return item(x, (*[slice(None)] * axis, slice(low, high, step)))


def gather_along(x: Any, indices: Any, axis: int) -> Any:
    """`take_along_axis` where the other axes of the indices may be shorter than those of `x`."""
    for k in range(rank(x)):
        if k != axis and x.shape[k] != indices.shape[k]:
            x = part(x, k, 0, indices.shape[k])
    return take_along_axis(x, indices, axis=axis)  # noqa: F405


def own_places(shape: Sequence[Any], axis: int, rank: int) -> Any:
    """0, 1, ... along `axis` of a tensor of `shape`, broadcasting against tensors of `rank` axes."""
    return reshape(arange(shape[axis]), tuple(shape[axis] if k == axis else 1 for k in range(rank)))  # noqa: F405


def places_along(indices: Any, axis: int, shape: Sequence[Any]) -> tuple[Any, ...]:
    """Index tensors of `shape` for all axes: `indices` along one, the own place along the others."""
    n = len(shape)
    return tuple(
        broadcast_to(cast(indices, "i64") if k == axis else own_places(shape, k, n), tuple(shape)) for k in range(n)
    )


@public
def put(x: Any, key: Any, values: Any, how: str) -> Any:
    """x.at[key].how(values); `how` is set, add, multiply, max or min."""
    from fluxir.frontend.tensor import as_tensor

    return getattr(as_tensor(x).at[key], how)(values)
