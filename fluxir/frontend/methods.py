"""The methods of a Tensor that are public functions too: `x.sum(axis=0)` is `fx.sum(x, axis=0)`.

Owns nothing but the delegation, so that `tensor` needs no import of the functions, which are made of tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxir.frontend.tensor import Tensor


class Methods:
    """Base of `Tensor`: numpy's methods. `self` is always a Tensor."""

    __slots__ = ()

    # -- types
    def astype(self, dtype: Any, /, *, copy: bool = True) -> Tensor:
        """Converted to `dtype`; see `fx.astype`."""
        from fluxir.frontend.api_creation import astype

        return astype(self, dtype)

    def view(self, dtype: Any) -> Tensor:
        """The same bits as another type of the same width; see `fx.bitcast`."""
        from fluxir.frontend.api_creation import bitcast

        return bitcast(self, dtype)

    def copy(self) -> Tensor:
        """A tensor of its own, which `x[i] = v` may change."""
        from fluxir.frontend.api_creation import copy

        return copy(self)

    # -- shape
    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one size may be -1."""
        from fluxir.frontend.api_manipulation import reshape

        return reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """Axes permuted; without arguments reversed."""
        from fluxir.frontend.api_manipulation import transpose

        if not axes or axes == (None,):
            return transpose(self)
        return transpose(self, axes[0] if isinstance(axes[0], tuple | list) else axes)

    @property
    def T(self) -> Tensor:
        """The axes reversed (of a matrix: its transpose)."""
        from fluxir.frontend.api_manipulation import transpose

        return transpose(self)

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        from fluxir.frontend.api_linalg import matrix_transpose

        return matrix_transpose(self)

    def ravel(self) -> Tensor:
        """All elements in one axis."""
        from fluxir.frontend.api_manipulation import ravel

        return ravel(self)

    def flatten(self) -> Tensor:
        """All elements in one axis."""
        return self.ravel()

    def squeeze(self, axis: Any = None) -> Tensor:
        """Axes of size 1 removed."""
        from fluxir.frontend.api_manipulation import squeeze

        return squeeze(self, axis)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """Two axes swapped."""
        from fluxir.frontend.api_manipulation import swapaxes

        return swapaxes(self, axis1, axis2)

    def repeat(self, repeats: Any, axis: int | None = None) -> Tensor:
        """Every element `repeats` times."""
        from fluxir.frontend.api_manipulation import repeat

        return repeat(self, repeats, axis=axis)

    def take(self, indices: Any, axis: int | None = None) -> Tensor:
        """Elements at `indices` along `axis`."""
        from fluxir.frontend.api_indexing import take

        return take(self, indices, axis=axis)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
        """The diagonal of two axes, as the last axis."""
        from fluxir.frontend.api_linalg import diagonal

        return diagonal(self, offset, axis1, axis2)

    def trace(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
        """The sum of the diagonal."""
        from fluxir.frontend.api_linalg import trace

        return trace(self, offset, axis1, axis2)

    # -- reductions
    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
        """The sum over `axis` (default: all axes)."""
        from fluxir.frontend.api_reduce import sum

        return sum(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
        """The product over `axis` (default: all axes)."""
        from fluxir.frontend.api_reduce import prod

        return prod(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The mean over `axis` (default: all axes)."""
        from fluxir.frontend.api_reduce import mean

        return mean(self, axis=axis, keepdims=keepdims)

    def var(self, axis: Any = None, ddof: float = 0.0, keepdims: bool = False) -> Tensor:
        """The variance over `axis` (default: all axes), dividing by n - ddof."""
        from fluxir.frontend.api_reduce import var

        return var(self, axis=axis, correction=ddof, keepdims=keepdims)

    def std(self, axis: Any = None, ddof: float = 0.0, keepdims: bool = False) -> Tensor:
        """The standard deviation over `axis` (default: all axes), dividing by n - ddof."""
        from fluxir.frontend.api_reduce import std

        return std(self, axis=axis, correction=ddof, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The largest element over `axis` (default: all axes)."""
        from fluxir.frontend.api_reduce import max

        return max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The smallest element over `axis` (default: all axes)."""
        from fluxir.frontend.api_reduce import min

        return min(self, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Whether any element is true (not 0)."""
        from fluxir.frontend.api_reduce import any

        return any(self, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Whether all elements are true (not 0)."""
        from fluxir.frontend.api_reduce import all

        return all(self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Position of the first largest element, i64."""
        from fluxir.frontend.api_reduce import argmax

        return argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Position of the first smallest element, i64."""
        from fluxir.frontend.api_reduce import argmin

        return argmin(self, axis=axis, keepdims=keepdims)

    def cumsum(self, axis: int | None = None) -> Tensor:
        """Running sums along `axis` (default: of the flattened tensor)."""
        from fluxir.frontend.api_reduce import cumsum

        return cumsum(self, axis)

    def cumprod(self, axis: int | None = None) -> Tensor:
        """Running products along `axis` (default: of the flattened tensor)."""
        from fluxir.frontend.api_reduce import cumprod

        return cumprod(self, axis)

    # -- the rest
    def dot(self, other: Any) -> Tensor:
        """numpy's dot product with `other`."""
        from fluxir.frontend.api_linalg import dot

        return dot(self, other)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """Elements cut to min..max."""
        from fluxir.frontend.api_elementwise import clip

        return clip(self, min, max)

    def round(self, decimals: int = 0) -> Tensor:
        """Rounded, halves to even."""
        from fluxir.frontend.api_elementwise import round

        return round(self, decimals)

    def sort(self, axis: int = -1) -> Tensor:
        """A sorted copy (a tensor never changes)."""
        from fluxir.frontend.api_indexing import sort

        return sort(self, axis=axis)

    def argsort(self, axis: int = -1) -> Tensor:
        """The order that sorts, i64, stable."""
        from fluxir.frontend.api_indexing import argsort

        return argsort(self, axis=axis)

    # -- what Python's `math` asks for
    def __floor__(self) -> Tensor:
        return self._whole("floor")

    def __ceil__(self) -> Tensor:
        return self._whole("ceil")

    def __trunc__(self) -> Tensor:
        return self._whole("trunc")

    def _whole(self, word: str) -> Tensor:
        """`round(x)`, `math.floor(x)` and the like of one number are integers in Python."""
        from fluxir.frontend.pybuiltins import to_integer

        return to_integer(word, self)  # type: ignore[arg-type]
