"""What a launch is given: the grid, the block, and the arguments, checked against the kernel's parameters.

An array argument is a numpy array, an array in the memory of the device, or anything with `__array__` or DLPack to read from.
Two arguments may be the same array; arrays that overlap in part are refused where one of them is written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.ir.core import Func
from fluxir.ir.dims import Poly
from fluxir.ir.dtypes import DType
from fluxir.ir.interp import bind_dims
from fluxir.ir.simt import SHARED_BYTES
from fluxir.ir.types import MemType

__all__ = ["Given", "given", "triple"]

Triple = tuple[int, int, int]
MAX_THREADS = 1024


@dataclass
class Given:
    """The arguments of one launch, in the order of the kernel's. `arrays`: numpy arrays (contiguous, of the right type) or
    device arrays by position; `scalars`: numpy scalars. `back`: where to copy a contiguous stand-in when it has been written."""

    values: list[Any]
    sizes: dict[str, int]
    aliased: tuple[int, ...] = ()
    same: dict[int, int] = field(default_factory=dict)  # an argument whose memory is that of an earlier one
    back: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)


def triple(name: str, what: str, n: Any) -> Triple:
    """A grid or block as three positive integers. FX0335 for anything else. A grid in a traced program may have sizes that are
    not known yet."""
    parts = tuple(n) if isinstance(n, (tuple, list)) else (n,)
    if what == "grid" and 1 <= len(parts) <= 3 and any(isinstance(p, Poly) for p in parts):
        return (*parts, 1, 1)[:3]
    good = 1 <= len(parts) <= 3 and all(hasattr(p, "__index__") and not isinstance(p, bool) for p in parts)
    if not good or min(int(p) for p in parts) < 1:
        raise error("FX0335", f"{name}: a {what} is 1 to 3 positive integers, not {n!r}")
    x, y, z = (*(int(p) for p in parts), 1, 1)[:3]
    return x, y, z


def check_block(name: str, block: Triple) -> None:
    if math.prod(block) > MAX_THREADS or block[2] > 64:
        raise error("FX0335", f"{name}: a block of {block} has {math.prod(block)} threads, the most is {MAX_THREADS}",
                    help="use more blocks of fewer threads")  # fmt: skip


def given(f: Func, leaves: Sequence[Any], written: frozenset[int], shared: int) -> Given:
    """The arguments of a launch of `f`. FX0602 and FX0603 for shapes and types that do not fit, FX0335 for overlaps."""
    values: list[Any] = []
    back: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for i, (a, x) in enumerate(zip(f.args, leaves, strict=True)):
        if not isinstance(a.type, MemType):
            values.append(scalar(f.name, a.name, a.type.dtype, x))
            continue
        if is_device_array(x):
            _check(f.name, a.name, a.type, tuple(x.shape), x.dtype)
            values.append(x)
            continue
        array = x if isinstance(x, np.ndarray) else _as_array(f.name, a.name, x)
        _check(f.name, a.name, a.type, array.shape, array.dtype)
        if i in written and (array is not x or not array.flags.writeable):
            raise error("FX0335", f"{f.name} writes to {a.name}, and the argument given for it cannot be written",
                        help="pass a numpy array that is not read-only")  # fmt: skip
        if not (array.flags.c_contiguous and array.flags.aligned):
            plain = np.array(array, order="C", copy=True)
            if i in written:
                back.append((array, plain))
            array = plain
        values.append(array)
    shapes = [tuple(v.shape) if isinstance(a.type, MemType) else () for a, v in zip(f.args, values, strict=True)]
    sizes = _sizes(f, tuple(shapes), shared)
    same, aliased = _sharing(f, values, written)
    return Given(values, sizes, aliased, same, back)


@functools.lru_cache(1024)
def _sizes(f: Func, shapes: tuple[tuple[int, ...], ...], shared: int) -> dict[str, int]:
    """What the size symbols are, which launches of the same shapes need not solve again."""
    return bind_dims(f, shapes, {SHARED_BYTES: shared})


def is_device_array(x: Any) -> bool:
    """Whether an array lives on a device: a virtual GPU's, or one with CUDA's array interface."""
    return hasattr(x, "__cuda_array_interface__") or type(x).__name__ == "DeviceArray"


def device_address(x: Any) -> int:
    """The address of a device array on its device."""
    if hasattr(x, "__cuda_array_interface__"):
        return int(x.__cuda_array_interface__["data"][0])
    return int(x.address)


def _as_array(name: str, what: str, x: Any) -> NDArray[Any]:
    if isinstance(x, (bool, int, float, str, list, tuple, dict)) or x is None:
        raise error("FX0606", f"{name}: {what} is an array, given {type(x).__name__}", help="pass a numpy array")
    return np.from_dlpack(x) if hasattr(x, "__dlpack__") and not hasattr(x, "__array__") else np.asarray(x)


def _check(name: str, what: str, t: MemType, shape: tuple[int, ...], d: Any) -> None:
    if d != t.dtype.numpy:
        raise error("FX0603", f"{name}: {what} holds {t.dtype}, given {np.dtype(d).name}",
                    help=f"convert it: {what}.astype({t.dtype.numpy.name!r})")  # fmt: skip
    if len(shape) != t.rank:
        raise error("FX0602", f"{name}: {what} is {t}, given shape {shape}")


def scalar(name: str, what: str, d: DType, x: Any) -> Any:
    """A number as a numpy scalar of the parameter's type. FX0603 where it does not fit."""

    def wrong(reason: str) -> FluxError:
        return error("FX0603", f"{name}: {what} is {d}, given {x!r}{reason}")

    if isinstance(x, np.ndarray) and x.ndim == 0:
        x = x[()]
    if not isinstance(x, (bool, int, float, np.number, np.bool_)):
        raise wrong("")
    fits = (
        d.is_float
        or (d.is_bool and isinstance(x, (bool, np.bool_)))
        or (d.is_integer and not isinstance(x, (float, np.floating)))
    )
    if not fits:
        raise wrong("")
    if d.is_integer and not d.limits[0] <= int(x) <= d.limits[1]:
        raise wrong(", which does not fit")
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(d.numpy)[()]


def _sharing(f: Func, values: Sequence[Any], written: frozenset[int]) -> tuple[dict[int, int], tuple[int, ...]]:
    """Arguments that are the memory of an earlier one, and all arguments that share theirs."""
    spans = []
    for i, v in enumerate(values):
        if isinstance(f.args[i].type, MemType):
            start = v.__array_interface__["data"][0] if isinstance(v, np.ndarray) else device_address(v)
            nbytes = math.prod(v.shape) * np.dtype(v.dtype).itemsize
            if nbytes:
                spans.append((start, start + nbytes, i))
    same: dict[int, int] = {}
    aliased: set[int] = set()
    for n, (start, end, i) in enumerate(spans):
        for other, stop, j in spans[:n]:
            if start >= stop or other >= end or not ({i, j} & written):
                continue
            if (start, end) != (other, stop):
                names = f"{f.args[j].name} and {f.args[i].name}"
                raise error("FX0335", f"{f.name}: {names} overlap in part, and one of them is written",
                            help="pass a copy of one of them")  # fmt: skip
            same.setdefault(i, j)
            aliased.update((i, j))
    return same, tuple(sorted(aliased))
