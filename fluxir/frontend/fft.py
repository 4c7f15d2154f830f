"""`fx.fft`: discrete Fourier transforms. A complex tensor is a pair of real ones, `Complex(real, imag)`.

Names, arguments and conventions are NumPy's. A transform is a program of products with constant matrices, so that it is
compiled, batched and differentiated like any other, and its derivative is a transform again. A length that is known is
split into factors (Cooley and Tukey, 1965): each level is a product with a small matrix and a multiplication by twiddle
factors. A large prime becomes a convolution of a convenient length (Bluestein, 1970). A length that is a symbol is
one product with a matrix made at run time. docs/design/fft.md says why there are no complex element types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fluxir.errors import error
from fluxir.frontend.api_creation import as_shape, iota, zeros_like
from fluxir.frontend.api_elementwise import cos, float_operand, sin
from fluxir.frontend.api_linalg import matmul
from fluxir.frontend.api_manipulation import concat, flip, moveaxis, pad, reshape, roll, swapaxes
from fluxir.frontend.tensor import Tensor, as_tensor, cast
from fluxir.frontend.trace import here, public
from fluxir.ir.dims import Dim, prove_le
from fluxir.ir.dtypes import f64
from fluxir.ops.rules import normal_axis

DENSE = 32  # up to this length a transform is one product
LARGEST_PRIME = 128  # beyond, a convolution is cheaper than a product


class Complex(NamedTuple):
    """A complex tensor: two real ones of the same shape and type."""

    real: Any
    imag: Any


Parts = tuple[Tensor, Tensor | None]  # None: no imaginary part


# ---- one axis, the last -----------------------------------------------------------------------------------------------------


def _constant(a: np.ndarray[Any, Any], like: Tensor) -> Tensor:
    return as_tensor(np.ascontiguousarray(a).astype(like.dtype.numpy))


def _times(z: Parts, c: Tensor, s: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Parts:
    """(re + i im) times (c - i s), elementwise or as a product of matrices."""
    re, im = z
    if im is None:
        return product(re, c), -product(re, s)
    return product(re, c) + product(im, s), product(im, c) - product(re, s)


def _angles(rows: int, cols: int, n: int) -> tuple[Any, Any]:
    """cos and sin of 2 pi j k / n; j k is reduced first, so that no digits are lost."""
    at = np.outer(np.arange(rows), np.arange(cols)) % n * (2 * math.pi / n)
    return np.cos(at), np.sin(at)


def _mul(x: Tensor, y: Tensor) -> Tensor:
    r: Tensor = x * y
    return r


def _dense(z: Parts, n: Dim) -> Parts:
    re = z[0]
    if isinstance(n, int):
        c, s = (_constant(t, re) for t in _angles(n, n, n))
    else:
        at = cast(iota((n, 1)) * iota((n,)) % n, f64) * (2 * math.pi / cast(as_tensor(n), f64))
        c, s = cast(cos(at), re.dtype), cast(sin(at), re.dtype)
    return _times(z, c, s, matmul)


def _smaller_factor(n: int) -> int:
    """The largest divisor up to the square root: 1 for a prime."""
    return max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)


def _each(z: Parts, f: Callable[[Tensor], Tensor]) -> Parts:
    return f(z[0]), None if z[1] is None else f(z[1])


def _transform(z: Parts, n: Dim) -> Parts:
    """The transform of the last axis, with exp(-2 pi i j k / n)."""
    if not isinstance(n, int) or n <= DENSE:
        return _dense(z, n)
    a = _smaller_factor(n)
    if a == 1:
        return _dense(z, n) if n <= LARGEST_PRIME else _bluestein(z, n)
    b = n // a
    # With j = j1 b + j2 and k = k1 + a k2: first over j1, then twiddle factors for j2 k1, then over j2.
    z = _each(z, lambda x: swapaxes(reshape(x, (*x.shape[:-1], a, b)), -1, -2))  # [..., j2, j1]
    z = _transform(z, a)  # [..., j2, k1]
    c, s = (_constant(t, z[0]) for t in _angles(b, a, n))
    z = _each(_times(z, c, s, _mul), lambda x: swapaxes(x, -1, -2))  # [..., k1, j2]
    z = _transform(z, b)  # [..., k1, k2]
    return _each(z, lambda x: reshape(swapaxes(x, -1, -2), (*x.shape[:-2], n)))


def _bluestein(z: Parts, n: int) -> Parts:
    """j k = (j^2 + k^2 - (k - j)^2) / 2: a convolution with a chirp, done by transforms of a power of two."""
    size = 1 << (2 * n - 2).bit_length()
    at = np.arange(n) ** 2 % (2 * n) * (math.pi / n)
    c, s = np.cos(at), np.sin(at)
    chirp = np.zeros(size, complex)
    chirp[:n] = c + 1j * s
    chirp[size - n + 1 :] = chirp[1:n][::-1]
    filtered = np.fft.fft(chirp)
    re = z[0]
    tail = [(0, 0)] * (re.ndim - 1) + [(0, size - n)]
    z = _each(_times(z, _constant(c, re), _constant(s, re), _mul), lambda x: pad(x, tail))
    z = _times(_transform(z, size), _constant(filtered.real, re), _constant(-filtered.imag, re), _mul)
    x, y = _transform((z[0], -_imag(z)), size)  # the inverse transform, conjugated
    z = _each((x / size, -_imag((x, y)) / size), lambda t: t[..., :n])
    return _times(z, _constant(c, re), _constant(s, re), _mul)


def _imag(z: Parts) -> Tensor:
    return zeros_like(z[0]) if z[1] is None else z[1]


# ---- arguments --------------------------------------------------------------------------------------------------------------


def _float(name: str, x: Any) -> Tensor:
    t = float_operand(f"fft.{name}", x)
    if t.dtype.bits < 32:
        raise error(
            "FX0209", f"{name} takes f32 and f64, not {t.type}", help="cast it first: x.astype('f32')", loc=here()
        )
    return t


def _parts(name: str, x: Any) -> Parts:
    """A real tensor, or a pair of the real and the imaginary part."""
    if isinstance(x, tuple):
        if len(x) != 2:
            raise error("FX0229", f"{name}: a complex tensor is a pair (real, imag), not {len(x)} tensors", loc=here())
        re, im = (_float(name, p) for p in x)
        if re.type != im.type:
            raise error("FX0221", f"{name}: the real part is {re.type}, the imaginary part {im.type}", loc=here())
        return re, im
    return _float(name, x), None


def _resized(z: Parts, n: Dim) -> Parts:
    """The last axis cut or filled with zeros to n."""

    def fit(x: Tensor) -> Tensor:
        have = x.shape[-1]
        if prove_le(n, have):
            return x if n == have else x[..., :n]
        return pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n - have)])

    return _each(z, fit)


def _scaled(z: Parts, n: Dim, norm: str | None, inverse: bool) -> Parts:
    powers = {"backward": 1.0 if inverse else 0.0, "ortho": 0.5, "forward": 0.0 if inverse else 1.0}
    power = powers.get("backward" if norm is None else norm)
    if power is None:
        raise error("FX0221", f"norm is 'backward', 'ortho' or 'forward', not {norm!r}", loc=here())
    if not power:
        return z
    factor = _each((cast(as_tensor(n), z[0].dtype), None), lambda x: x**-power)[0]
    return _each(z, lambda x: x * factor)


def _one_axis(name: str, x: Any, n: Any, axis: int, norm: str | None, inverse: bool) -> Complex:
    z = _parts(name, x)
    axis = normal_axis(name, axis, z[0].ndim)
    z = _each(z, lambda t: moveaxis(t, axis, -1))
    size = _size(name, z[0].shape[-1] if n is None else as_shape(n)[0])
    z = _resized(z, size)
    if inverse:  # the conjugate of the transform of the conjugate
        re, im = _transform((z[0], None if z[1] is None else -z[1]), size)
        z = re, -_imag((re, im))
    else:
        z = _transform(z, size)
    z = _scaled((z[0], _imag(z)), size, norm, inverse)
    return Complex(*(moveaxis(t, -1, axis) for t in (z[0], _imag(z))))


def _size(name: str, n: Dim) -> Dim:
    if isinstance(n, int) and n < 1:
        raise error("FX0221", f"{name}: a transform has at least one point, not {n}", loc=here())
    return n


# ---- public -----------------------------------------------------------------------------------------------------------------


@public
def fft(x: Any, n: Any = None, axis: int = -1, norm: str | None = None) -> Complex:
    """The discrete Fourier transform along `axis`, of a real tensor or a pair (real, imag)."""
    return _one_axis("fft", x, n, axis, norm, False)


@public
def ifft(x: Any, n: Any = None, axis: int = -1, norm: str | None = None) -> Complex:
    """The inverse of `fft`."""
    return _one_axis("ifft", x, n, axis, norm, True)


@public
def rfft(x: Any, n: Any = None, axis: int = -1, norm: str | None = None) -> Complex:
    """The first n // 2 + 1 values of the transform of a real tensor; the others are their conjugates."""
    t = _float("rfft", x)
    z = _one_axis("rfft", t, n, axis, norm, False)
    axis = normal_axis("rfft", axis, t.ndim)
    keep = z.real.shape[axis] // 2 + 1
    at = (*[slice(None)] * axis, slice(0, keep))
    return Complex(z.real[at], z.imag[at])


@public
def irfft(x: Any, n: Any = None, axis: int = -1, norm: str | None = None) -> Tensor:
    """The real tensor of length `n` (by default 2 (m - 1)) whose `rfft` is x, of m values.

    As in NumPy the imaginary parts of the first value, and of the middle one for even `n`, count as 0.
    """
    z = _parts("irfft", x)
    axis = normal_axis("irfft", axis, z[0].ndim)
    z = _each(z, lambda t: moveaxis(t, axis, -1))
    size = _size("irfft", 2 * (z[0].shape[-1] - 1) if n is None else as_shape(n)[0])
    z = _resized(z, size // 2 + 1)
    rest = (size - 1) // 2  # the values 1 ... rest come back, conjugated, from the end
    re, im = z[0], _imag(z)
    im = pad(im[..., 1 : rest + 1], [(0, 0)] * (im.ndim - 1) + [(1, size // 2 - rest)])
    re = concat([re, flip(re[..., 1 : rest + 1], axis=-1)], axis=-1)
    im = concat([im, -flip(im[..., 1 : rest + 1], axis=-1)], axis=-1)
    y = _transform((re, -im), size)[0]  # the imaginary part is 0
    return moveaxis(_scaled((y, None), size, norm, True)[0], -1, axis)


def _axes(name: str, x: Any, s: Any, axes: Any) -> tuple[list[int], list[Any]]:
    rank = _parts(name, x)[0].ndim
    if axes is None:
        axes = range(rank) if s is None else range(rank - len(s), rank)
    found = [normal_axis(name, a, rank) for a in axes]
    sizes = [None] * len(found) if s is None else list(s)
    if len(sizes) != len(found):
        raise error("FX0221", f"{name}: {len(sizes)} sizes for {len(found)} axes", loc=here())
    return found, sizes


@public
def fftn(x: Any, s: Any = None, axes: Any = None, norm: str | None = None) -> Complex:
    """`fft` along several axes, by default all."""
    return _several("fftn", fft, x, s, axes, norm)


@public
def ifftn(x: Any, s: Any = None, axes: Any = None, norm: str | None = None) -> Complex:
    """The inverse of `fftn`."""
    return _several("ifftn", ifft, x, s, axes, norm)


def _several(name: str, f: Callable[..., Complex], x: Any, s: Any, axes: Any, norm: str | None) -> Complex:
    where, sizes = _axes(name, x, s, axes)
    if not where:
        re, im = _parts(name, x)
        return Complex(re, _imag((re, im)))
    z = x
    for axis, n in zip(reversed(where), reversed(sizes), strict=True):
        z = f(z, n, axis, norm)
    return z  # type: ignore[no-any-return]


@public
def rfftn(x: Any, s: Any = None, axes: Any = None, norm: str | None = None) -> Complex:
    """`rfft` along the last of the axes, `fft` along the others."""
    where, sizes = _axes("rfftn", x, s, axes)
    z = rfft(x, sizes[-1], where[-1], norm)
    return fftn(z, None if s is None else sizes[:-1], where[:-1], norm) if len(where) > 1 else z


@public
def irfftn(x: Any, s: Any = None, axes: Any = None, norm: str | None = None) -> Tensor:
    """The inverse of `rfftn`."""
    where, sizes = _axes("irfftn", x, s, axes)
    z = ifftn(x, None if s is None else sizes[:-1], where[:-1], norm) if len(where) > 1 else x
    return irfft(z, sizes[-1], where[-1], norm)


@public
def fft2(x: Any, s: Any = None, axes: Sequence[int] = (-2, -1), norm: str | None = None) -> Complex:
    """`fft` along two axes."""
    return fftn(x, s, axes, norm)


@public
def ifft2(x: Any, s: Any = None, axes: Sequence[int] = (-2, -1), norm: str | None = None) -> Complex:
    """The inverse of `fft2`."""
    return ifftn(x, s, axes, norm)


@public
def rfft2(x: Any, s: Any = None, axes: Sequence[int] = (-2, -1), norm: str | None = None) -> Complex:
    """`rfft` along the second axis, `fft` along the first."""
    return rfftn(x, s, axes, norm)


@public
def irfft2(x: Any, s: Any = None, axes: Sequence[int] = (-2, -1), norm: str | None = None) -> Tensor:
    """The inverse of `rfft2`."""
    return irfftn(x, s, axes, norm)


@public
def fftfreq(n: int, d: float = 1.0) -> Tensor:
    """The frequencies of the values of `fft`, f32: 0, 1, ..., -1, over n d."""
    return as_tensor(np.fft.fftfreq(n, d).astype(np.float32))


@public
def rfftfreq(n: int, d: float = 1.0) -> Tensor:
    """The frequencies of the values of `rfft`, f32: 0, 1, ..., n // 2, over n d."""
    return as_tensor(np.fft.rfftfreq(n, d).astype(np.float32))


def _shift(x: Any, axes: Any, by: Callable[[Dim], Dim]) -> Any:
    if isinstance(x, tuple):
        return Complex(*(_shift(part, axes, by) for part in x))
    t = as_tensor(x)
    chosen = range(t.ndim) if axes is None else axes if isinstance(axes, tuple | list) else (axes,)
    for axis in chosen:
        a = normal_axis("fftshift", axis, t.ndim)
        t = roll(t, by(t.shape[a]), axis=a)
    return t


@public
def fftshift(x: Any, axes: Any = None) -> Any:
    """The zero frequency moved to the middle of the axes (by default all), of a tensor or a pair."""
    return _shift(x, axes, lambda n: n // 2)


@public
def ifftshift(x: Any, axes: Any = None) -> Any:
    """The inverse of `fftshift`."""
    return _shift(x, axes, lambda n: -(n // 2))


__all__ = [
    "Complex", "fft", "fft2", "fftfreq", "fftn", "fftshift", "ifft", "ifft2", "ifftn", "ifftshift", "irfft", "irfft2",
    "irfftn", "rfft", "rfft2", "rfftfreq", "rfftn",
]  # fmt: skip
