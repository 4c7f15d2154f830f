"""`fx.fft` against NumPy, interpreted and compiled, and its derivatives, which are transforms again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError

F = fx.fft


def complex_(z: Any) -> Any:
    return np.asarray(z[0]) + 1j * np.asarray(z[1])


def data(*shape: int, seed: int = 0, dtype: Any = np.float64) -> tuple[Any, Any]:
    r = np.random.default_rng(seed)
    return r.standard_normal(shape).astype(dtype), r.standard_normal(shape).astype(dtype)


def near(got: Any, want: Any, tol: float = 1e-13) -> None:
    np.testing.assert_allclose(got, want, atol=tol * (1 + np.max(np.abs(want), initial=0)), rtol=0)


# One product; two, three and four levels; large primes, by a convolution; a large prime as a factor.
@pytest.mark.parametrize("n", [*range(1, 34), 36, 64, 97, 131, 210, 211, 262, 509, 1000, 1024])
def test_one_axis(n: int) -> None:
    x, y = data(2, n, seed=n)
    z = x + 1j * y
    near(complex_(F.fft(x)), np.fft.fft(x))
    near(complex_(F.fft((x, y))), np.fft.fft(z))
    near(complex_(F.ifft((x, y))), np.fft.ifft(z))
    near(complex_(F.rfft(x)), np.fft.rfft(x))
    near(F.irfft((x, y), n), np.fft.irfft(z, n))
    near(F.irfft(F.rfft(x), n), x)
    if n > 1:
        near(F.irfft((x, y)), np.fft.irfft(z))


@pytest.mark.parametrize("norm", [None, "backward", "ortho", "forward"])
def test_scaling_and_length(norm: Any) -> None:
    x, y = data(5, 6)
    z = x + 1j * y
    for n in (None, 3, 9):
        for axis in (0, -1):
            near(complex_(F.fft((x, y), n, axis, norm)), np.fft.fft(z, n, axis, norm))
            near(complex_(F.ifft((x, y), n, axis, norm)), np.fft.ifft(z, n, axis, norm))
            near(complex_(F.rfft(x, n, axis, norm)), np.fft.rfft(x, n, axis, norm))
            near(F.irfft((x, y), n, axis, norm), np.fft.irfft(z, n, axis, norm))


def test_several_axes() -> None:
    x, y = data(3, 4, 6)
    z = x + 1j * y
    for name in ("fftn", "ifftn", "fft2", "ifft2"):
        near(complex_(getattr(F, name)((x, y))), getattr(np.fft, name)(z))
        near(complex_(getattr(F, name)(x)), getattr(np.fft, name)(x))
    for name in ("rfftn", "rfft2"):
        near(complex_(getattr(F, name)(x)), getattr(np.fft, name)(x))
    for name in ("irfftn", "irfft2"):
        near(getattr(F, name)((x, y)), getattr(np.fft, name)(z))
    near(complex_(F.rfftn(x, (5, 3), (0, 2))), np.fft.rfftn(x, (5, 3), (0, 2)))
    near(complex_(F.fftn((x, y), (5, 3), (2, 0), "ortho")), np.fft.fftn(z, (5, 3), (2, 0), "ortho"))
    near(complex_(F.fftn((x, y), axes=())), z)


def test_frequencies_and_shifts() -> None:
    x, y = data(3, 4)
    for n in (4, 5):
        near(F.fftfreq(n, 0.5), np.fft.fftfreq(n, 0.5), 1e-6)
        near(F.rfftfreq(n, 0.5), np.fft.rfftfreq(n, 0.5), 1e-6)
    for axes in (None, 1, (0,)):
        near(F.fftshift(x, axes), np.fft.fftshift(x, axes))
        near(F.ifftshift(x, axes), np.fft.ifftshift(x, axes))
    near(complex_(F.fftshift((x, y))), np.fft.fftshift(x + 1j * y))


@pytest.mark.parametrize("n", [12, 211, 360])
def test_compiled(n: int) -> None:
    x, y = data(3, n)
    near(complex_(fx.jit(lambda x, y: F.fft((x, y)))(x, y)), np.fft.fft(x + 1j * y))
    single = fx.jit(F.rfft)(x.astype(np.float32))
    assert single.real.dtype == np.float32
    near(complex_(single), np.fft.rfft(x), 1e-6)


def test_a_length_that_is_a_symbol() -> None:
    def both(x: Any) -> Any:
        return F.rfft(x), F.irfft(F.rfft(x), x.shape[-1])

    run = fx.jit(both, facts="N >= 1").lower(fx.f64["B", "N"]).compile()
    for n in (1, 2, 7, 50):
        x, _ = data(2, n)
        z, back = run(x)
        near(complex_(z), np.fft.rfft(x))
        near(back, x)


def numeric(f: Any, a: Any) -> Any:
    out = np.zeros_like(a)
    for i in np.ndindex(*a.shape):
        lo, hi = a.copy(), a.copy()
        lo[i] -= 1e-6
        hi[i] += 1e-6
        out[i] = (f(hi) - f(lo)) / 2e-6
    return out


def test_derivatives() -> None:
    w, v = data(2, 40, seed=1)

    def spectrum(x: Any) -> Any:
        z = F.rfft(x)
        return fx.sum(fx.sin(z.real) * w[:, :21] + fx.cos(z.imag) * v[:, :21])

    def signal(x: Any) -> Any:
        z = F.ifft((x, x * x))
        return fx.sum(fx.sin(z.real) * w + fx.cos(z.imag) * v) + fx.sum(F.irfft((x, x), 7) ** 2)

    x, d = data(2, 40, seed=2)
    for f in (spectrum, signal):
        g = fx.grad(f)(x)
        near(g, numeric(f, x), 1e-8)
        near(fx.jvp(f, (x,), (d,))[1], np.sum(g * d), 1e-12)
        near(fx.jit(fx.grad(f))(x), g, 1e-12)

        def slope(x: Any, f: Any = f) -> Any:
            return fx.sum(fx.grad(f)(x) * d)

        near(fx.grad(slope)(x), numeric(slope, x), 1e-8)


@pytest.mark.parametrize(
    ("run", "code", "words"),
    [
        (lambda: F.fft(np.ones(3, np.float16)), "FX0209", "f32 and f64"),
        (lambda: F.fft(np.ones(3), 0), "FX0221", "at least one point"),
        (lambda: F.fft((np.ones(3), np.ones(4))), "FX0221", "imaginary part is f64[4]"),
        (lambda: F.fft(np.ones(3), norm="none"), "FX0221", "ortho"),
        (lambda: F.fftn(np.ones((3, 3)), s=(2,), axes=(0, 1)), "FX0221", "1 sizes for 2 axes"),
        (lambda: F.ifft((np.ones(3),)), "FX0229", "a pair"),
        (lambda: F.fft(np.ones(3), axis=2), "FX0205", "axis"),
    ],
)
def test_mistakes_are_named(run: Any, code: str, words: str) -> None:
    with pytest.raises(FluxError) as e:
        run()
    assert e.value.code == code and words in str(e.value)
