"""What a name of an ONNX graph stands for while the graph is read.

- a traced `Tensor`, computed when the program runs;
- a numpy array, known now (all of shape arithmetic on fixed sizes is);
- `Sizes`: integers of which some are symbolic sizes; also known now, as expressions;
- `Narrow`: elements of a type that we only store (see `elements.py`), in a tensor or array of its carrier;
- an object array of texts, known now;
- a tuple: a sequence;   `None`: an input or optional that is not there.

Invariant: an array of objects outside this file holds texts; sizes are always wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxir.errors import error
from fluxir.frontend.onnx.elements import BY_DTYPE, MAX_RANK, STRING, Element
from fluxir.frontend.tensor import Tensor, as_tensor, cast
from fluxir.frontend.trace import here
from fluxir.ir.dims import Dim, Poly
from fluxir.ir.dtypes import DType, dtype_of, i64

__all__ = [
    "Array", "Narrow", "Quantised", "Sizes", "concrete", "dims_of", "element_of", "floats_of", "ints_of",
    "is_known", "is_texts", "known_array", "rewrapped", "scalar_of", "shape_of", "sizes_of", "tensor", "traced", "unwrapped",
]  # fmt: skip

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Integers known as sizes. `array` is an object array of ints and symbolic sizes."""

    array: Array
    dtype: DType = i64

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def tensor(self) -> Tensor:
        """The same numbers as a tensor of the current scope."""
        from fluxir.frontend.api_manipulation import reshape, stack

        parts = [cast(as_tensor(d if isinstance(d, Poly) else np.int64(d)), self.dtype) for d in self.array.reshape(-1)]
        for p in parts:
            p.weak = False
        if not parts:
            return as_tensor(np.zeros(self.shape, self.dtype.numpy))
        return reshape(stack(parts), self.shape)


@dataclass(frozen=True, slots=True)
class Narrow:
    """A tensor whose elements are of a type that is only stored; `data` has them in the type's carrier."""

    data: Any
    element: Element

    @property
    def shape(self) -> Any:
        return self.data.shape


@dataclass(frozen=True, slots=True)
class Quantised:
    """Floats that are known as 8-bit integers: (data - zero) * scale. `scale` and `zero` are single numbers, or have one for each
    place of `axis`. Products take the integers (see integer.py), everything else the floats."""

    data: Any
    scale: Any
    zero: Any
    axis: int | None
    floats: Callable[[], Any]

    @property
    def shape(self) -> Any:
        return self.data.shape


def known_array(x: Any) -> Array | None:
    """The array that a value is, or that a traced tensor is a constant of; None for other values."""
    if isinstance(x, Tensor):
        found = x.scope.array(x.value)
        return None if found is None else np.asarray(found)
    return np.asarray(x) if isinstance(x, np.ndarray | np.generic) else None


def unwrapped(x: Any) -> Any:
    """An object array for `Sizes`, the carrier for `Narrow`, everything else as it is."""
    return x.array if isinstance(x, Sizes) else x.data if isinstance(x, Narrow) else x


def rewrapped(x: Any, dtype: DType = i64) -> Any:
    """An array of objects that are sizes as `Sizes`, or as a plain array where all of them are integers."""
    if isinstance(x, tuple | list):
        return tuple(rewrapped(v, dtype) for v in x)
    if isinstance(x, Poly):  # numpy takes a single object out of its array
        x, single = np.empty((), object), x
        x[()] = single
    if not isinstance(x, np.ndarray) or x.dtype != object or is_texts(x):
        return np.asarray(x) if isinstance(x, np.generic) else x
    if all(isinstance(d, int | np.integer) for d in x.flat):
        return x.astype(dtype.numpy)
    return Sizes(x, dtype)


def is_texts(x: Any) -> bool:
    """Whether an array holds texts. An array of nothing counts as sizes only where it was made as such."""
    return isinstance(x, np.ndarray) and x.dtype == object and (x.size == 0 or isinstance(x.flat[0], str))


def concrete(x: Any) -> bool:
    """Whether a value is completely known now."""
    if isinstance(x, tuple):
        return all(map(concrete, x))
    if isinstance(x, Narrow):
        return concrete(x.data)
    return x is None or isinstance(x, np.ndarray | np.generic)


def shape_of(x: Any) -> tuple[Dim, ...]:
    """The shape; sizes may be symbolic."""
    return tuple(unwrapped(x).shape)


def element_of(x: Any) -> Element:
    """The ONNX element type of a value that is a tensor."""
    if isinstance(x, Narrow):
        return x.element
    if is_texts(x):
        return STRING
    return BY_DTYPE[x.dtype if isinstance(x, Tensor | Sizes) else dtype_of(x.dtype)]


def tensor(x: Any) -> Any:
    """A value that functions of the frontend take: a tensor or an array."""
    if isinstance(x, Sizes):
        return x.tensor()
    if isinstance(x, Quantised):
        return x.floats()
    if isinstance(x, Narrow):
        raise error(
            "FX1208",
            f"{x.element.name} elements are only stored and moved",
            help="convert them with Cast or DequantizeLinear before computing with them",
            loc=here(),
        )
    if is_texts(x) and x.size:
        raise error("FX1208", "texts cannot be computed with when a program runs", loc=here())
    if isinstance(x, tuple):
        raise error("FX1204", "a sequence stands where a tensor is wanted", loc=here())
    return x


def is_known(x: Any) -> bool:
    """Whether a value is known now, as itself or as a constant of the program."""
    return concrete(x) or isinstance(x, Tensor) and x.scope.array(x.value) is not None


# ---- what must be known now ----------------------------------------------------------------------------------------


def _unknown(what: str) -> Exception:
    return error(
        "FX1205",
        f"{what} is computed from the inputs of the model, and must be known when compiling",
        help="make it a constant: simplify the export, or fix the size that it comes from with --dim NAME=N",
        loc=here(),
    )


def known(x: Any, what: str) -> Array:
    """A value as an array, which may hold symbolic sizes (as objects); FX1205 for a traced tensor that is no constant."""
    if isinstance(x, Sizes):
        return x.array
    if isinstance(x, Tensor):
        found = x.scope.array(x.value)
        if found is None:
            raise _unknown(what)
        return found
    return np.asarray(x)


def dims_of(x: Any, what: str) -> tuple[Dim, ...]:
    """The numbers of a tensor of one axis (or none) as sizes."""
    return tuple(d if isinstance(d, Poly) else int(d) for d in known(x, what).reshape(-1))


def traced(x: Any) -> bool:
    """Whether a value is computed when the program runs."""
    return isinstance(x, Tensor) and not is_known(x)


def sizes_of(x: Any, what: str, most: Dim | None = None) -> tuple[Dim, ...]:
    """As `dims_of`, where numbers computed when the program runs become sizes then, which are at least 0 and at most `most`."""
    if not traced(x):
        return dims_of(x, what)
    from fluxir.frontend.extent import extent

    count = x.shape[0] if x.shape else 1
    if not isinstance(count, int) or len(x.shape) > 1:
        raise _unknown(what)
    if count > MAX_RANK:
        raise error("FX1202", f"{what} are {count}; at most {MAX_RANK} are accepted", loc=here())
    return tuple(extent(x[i] if x.shape else x, most=most) for i in range(count))


def ints_of(x: Any, what: str) -> tuple[int, ...]:
    """The numbers as plain integers; FX1205 where one is a symbolic size."""
    found = dims_of(x, what)
    if any(isinstance(d, Poly) for d in found):
        raise _unknown(f"{what}, {', '.join(map(str, found))},")
    return tuple(int(d) for d in found)


def floats_of(x: Any, what: str) -> tuple[float, ...]:
    """The numbers as floats."""
    return tuple(float(v) for v in known(x, what).reshape(-1))


def scalar_of(x: Any, what: str) -> Any:
    """The only number of a tensor."""
    a = known(x, what).reshape(-1)
    if a.size != 1:
        raise error("FX1204", f"{what} has {a.size} elements, not one", loc=here())
    return a[0] if isinstance(a[0], Poly) else a[0].item() if isinstance(a[0], np.generic) else a[0]
