"""Fourier transforms, windows, and mel weights. Complex numbers are pairs along the last axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxir.frontend import fft
from fluxir.frontend import library as fx
from fluxir.frontend.onnx.elements import element, few
from fluxir.frontend.onnx.registry import Int, Known, op
from fluxir.frontend.onnx.values import dims_of, ints_of, scalar_of
from fluxir.frontend.trace import public


@public
def _transform(x: Any, n: Any, axis: int, inverse: bool, onesided: bool) -> Any:
    """The transform of pairs or reals along `axis` (which is not the last) as pairs."""
    from fluxir.frontend.tensor import as_tensor

    x = as_tensor(x)
    size = x.shape[axis] if n is None else n
    if isinstance(size, int):
        few(size, "a transform")
    real = fx.item(x, (..., 0))
    pair = x.shape[-1] == 2
    if onesided and inverse:
        return fx.expand_dims(fft.irfft((real, fx.item(x, (..., 1))), n, axis=axis), axis=-1)
    if onesided:
        y = fft.rfft(real, n, axis=axis)
    else:
        parts = (real, fx.item(x, (..., 1))) if pair else real
        y = fft.ifft(parts, n, axis=axis) if inverse else fft.fft(parts, n, axis=axis)
    return fx.stack([y[0], y[1]], axis=-1)


@op("DFT", since=20)
def dft(x: Any, length: Known = None, axis: Known = None, *, inverse: Int = 0, onesided: Int = 0) -> Any:
    a = -2 if axis is None else int(scalar_of(axis, "the axis"))
    n = None if length is None else dims_of(length, "the length")[0]
    return _transform(x, n, fx.axis_of(a, fx.rank(x)), bool(inverse), bool(onesided))


@op("DFT", since=17)
def dft_17(x: Any, length: Known = None, *, axis: Int = 1, inverse: Int = 0, onesided: Int = 0) -> Any:
    return dft(x, length, np.asarray(axis), inverse=inverse, onesided=onesided)


@op("STFT", since=17)
def stft(x: Any, step: Known, window: Any = None, length: Known = None, *, onesided: Int = 1) -> Any:
    hop = int(ints_of(step, "the step")[0])
    n = int(ints_of(length, "the frame length")[0]) if length is not None else int(window.shape[0])
    samples = x.shape[1]
    if fx.rank(x) == 2:
        x = fx.expand_dims(x, axis=2)
    frames = (samples - n) // hop + 1
    starts = fx.multiply(fx.arange(frames), np.int64(hop))
    places = fx.add(fx.reshape(starts, (-1, 1)), np.arange(few(n, "a frame")))
    parts = fx.take(x, places, axis=1)  # [batch, frames, n, 1 or 2]
    if window is not None:
        parts = fx.multiply(parts, fx.reshape(fx.cast(window, fx.dtype(x)), (1, 1, n, 1)))
    return _transform(parts, None, 2, False, bool(onesided) and x.shape[-1] == 1)


def _window(name: str, weights: tuple[float, ...]) -> None:
    def run(size: Known, *, output_datatype: Int = 1, periodic: Int = 1) -> Any:
        (n,) = dims_of(size, "the size")
        d = element(output_datatype, name).carrier
        assert d is not None
        if isinstance(n, int):
            angle = 2 * math.pi * np.arange(few(n, name)) / (n if periodic else max(n - 1, 1))
            values = sum(w * np.cos(k * angle) for k, w in enumerate(weights))
            return np.asarray(values).astype(d.numpy)
        last = fx.cast(fx.asarray(n if periodic else n - 1), "f32")
        angle = fx.divide(fx.multiply(fx.cast(fx.arange(n), "f32"), np.float32(2 * math.pi)), last)
        total: Any = np.float32(0)
        for k, w in enumerate(weights):
            total = fx.add(total, fx.multiply(fx.cos(fx.multiply(angle, np.float32(k))), np.float32(w)))
        return fx.cast(total, d)

    op(name, since=17)(run)


_window("HannWindow", (0.5, -0.5))
_window("HammingWindow", (25 / 46, -21 / 46))
_window("BlackmanWindow", (0.42, -0.5, 0.08))


@op("MelWeightMatrix", since=17)
def mel_weight_matrix(
    bins: Known, length: Known, rate: Known, low: Known, high: Known, *, output_datatype: Int = 1
) -> Any:
    """Triangles between points that are equally far apart on the mel scale."""
    n, size, hz = (int(ints_of(v, "the mel weights")[0]) for v in (bins, length, rate))
    few(n * max(size, 4096), "a matrix of filters")
    edges = [float(scalar_of(v, "the mel weights")) for v in (low, high)]
    mel = [2595 * math.log10(1 + e / 700) for e in edges]
    step = (mel[1] - mel[0]) / (n + 2)
    centres = 700 * (10 ** ((mel[0] + step * np.arange(n + 2)) / 2595) - 1)
    spots = np.floor((size + 1) * centres / hz).astype(np.int64)
    out = np.zeros((size // 2 + 1, n))
    for i in range(n):
        a, b, c = spots[i : i + 3]
        if b == a:
            out[b, i] = 1
        else:
            out[a : b + 1, i] = np.arange(b - a + 1) / (b - a)
        if c > b:
            out[b:c, i] = (c - np.arange(b, c)) / (c - b)
    d = element(output_datatype, "MelWeightMatrix").carrier
    assert d is not None
    return out.astype(d.numpy)
