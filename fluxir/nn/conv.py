"""Conv, ConvTranspose, DepthwiseConv in one to three dimensions: x [N, C, space...].

Like `fx.conv` they correlate: the window is not mirrored. (Flux mirrors it; see `convert`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import fluxir as fx
from fluxir.nn import init as inits
from fluxir.nn.dense import Activation, activated, with_activation
from fluxir.nn.module import Module, per_axis, require_features, static

Window = int | Sequence[int]
Padding = int | str | Sequence[Any]


def window_of(owner: str, window: Window, count: int | None = None) -> tuple[int, ...]:
    """The window's sizes; an integer needs the number of spatial axes. FX1003."""
    if isinstance(window, int):
        if count is None:
            raise fx.error("FX1003", f"{owner}: the window {window} has no number of axes",
                           help=f"write ({window},), ({window}, {window}) or ({window}, {window}, {window})")  # fmt: skip
        return (window,) * count
    out = tuple(int(k) for k in window)
    if not 1 <= len(out) <= 3 or min(out) < 1:
        raise fx.error("FX1003", f"{owner}: the window {out} has one to three sizes of at least 1")
    return out


def padding_of(owner: str, padding: Padding, count: int) -> Any:
    """`padding` as a hashable value: "same", "valid", or (low, high) for each axis."""
    if isinstance(padding, str):
        if padding.lower() not in ("same", "valid"):
            raise fx.error("FX1003", f"{owner}: padding is numbers, pairs, 'same' or 'valid', not {padding!r}")
        return padding.lower()
    if isinstance(padding, int):
        return ((padding, padding),) * count
    pairs = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
    if len(pairs) != count:
        raise fx.error("FX1003", f"{owner}: padding {padding} for {count} spatial axes")
    return pairs


class _Convolution(Module):
    """What Conv and ConvTranspose share: fields, and how they are made and shown."""

    weight: Any
    bias: Any
    activation: Any
    stride: tuple[int, ...] = static()
    padding: Any = static()
    dilation: tuple[int, ...] = static()
    groups: int = static()

    _transposed = False  # the first axis of the weight is that of the inputs

    def _make(
        self, inputs: int, outputs: int, window: Window, key: Any, stride: Window, padding: Padding, dilation: Window,
        groups: int, bias: bool, init: Callable[..., Any], dtype: Any,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        w = window_of(name, window)
        if groups < 1 or inputs % groups or outputs % groups:
            raise fx.error("FX1003", f"{name}: {groups} groups do not divide {inputs} and {outputs} channels")
        space, first, second = math.prod(w), outputs, inputs
        if self._transposed:
            first, second = inputs, outputs
        fans = (inputs // groups * space, outputs // groups * space)
        self.weight = init(key, (first, second // groups, *w), fans, dtype)
        self.bias = fx.zeros((outputs,), dtype=dtype) if bias else None
        self.groups = groups
        self.stride = per_axis(stride, len(w), name, "stride")
        self.dilation = per_axis(dilation, len(w), name, "dilation")
        self.padding = padding_of(name, padding, len(w))

    def about(self) -> str:
        first, second, *w = self.weight.shape
        second *= self.groups
        inputs, outputs = (first, second) if self._transposed else (second, first)
        return with_activation(f"{inputs} => {outputs}, {_times(w)}{_settings(self)}", self.activation)


class Conv(_Convolution):
    """activation(conv(x, weight) + bias): x [N, in, space...] -> [N, out, space...].

    weight [out, in / groups, window...], bias [out] or None. `padding` is a number, a number or (low, high) pair for each
    axis, "same" or "valid". A window (3,), (3, 3) or (3, 3, 3) says how many spatial axes there are.
    """

    def __init__(
        self, inputs: int, outputs: int, window: Window, activation: Activation = None,
        *, key: Any, stride: Window = 1, padding: Padding = 0, dilation: Window = 1, groups: int = 1,
        bias: bool = True, init: Callable[..., Any] = inits.glorot_uniform, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        self._make(inputs, outputs, window, key, stride, padding, dilation, groups, bias, init, dtype)
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        _, c, *w = self.weight.shape
        require_features(type(self).__name__, x, 1, c * self.groups, 2 + len(w))
        y = fx.conv(
            x, self.weight, self.bias,
            stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return activated(self.activation, y)


class DepthwiseConv(Conv):
    """A convolution of each channel by itself, `multiplier` outputs each: x [N, C, space...] -> [N, C * multiplier, ...].

    weight [C * multiplier, 1, window...].
    """

    def __init__(
        self, channels: int, window: Window, activation: Activation = None, *, multiplier: int = 1, **options: Any
    ) -> None:
        super().__init__(channels, channels * multiplier, window, activation, groups=channels, **options)


class ConvTranspose(_Convolution):
    """The transposed convolution, which goes from a convolution's output sizes to its input sizes (Zeiler et al. 2010).

    x [N, in, space...] -> [N, out, space...]; weight [in, out / groups, window...]. Sizes:
    (d - 1) * stride - low - high + dilation * (k - 1) + output_padding + 1; with padding "same": d * stride.
    """

    output_padding: tuple[int, ...] = static()

    _transposed = True

    def __init__(
        self, inputs: int, outputs: int, window: Window, activation: Activation = None,
        *, key: Any, stride: Window = 1, padding: Padding = 0, output_padding: Window = 0, dilation: Window = 1,
        groups: int = 1, bias: bool = True, init: Callable[..., Any] = inits.glorot_uniform, dtype: Any = "f32",
    ) -> None:  # fmt: skip
        self._make(inputs, outputs, window, key, stride, padding, dilation, groups, bias, init, dtype)
        self.activation = activation
        w = self.weight.shape[2:]
        extra = per_axis(output_padding, len(w), type(self).__name__, "output_padding")
        pads = self.padding
        if pads == "valid":
            pads = ((0, 0),) * len(w)
        if pads == "same":
            # What is there beyond d * stride is cut off at both ends; what is missing is added at the high end.
            over = [(k - 1) * d + 1 - s for k, d, s in zip(w, self.dilation, self.stride, strict=True)]
            pads = tuple((max(o, 0) // 2, max(o, 0) - max(o, 0) // 2) for o in over)
            extra = tuple(e + max(-o, 0) for e, o in zip(extra, over, strict=True))
        self.padding, self.output_padding = pads, extra

    def __call__(self, x: Any) -> Any:
        c, _, *w = self.weight.shape
        require_features(type(self).__name__, x, 1, c, 2 + len(w))
        y = fx.conv_transpose(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, output_padding=self.output_padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return activated(self.activation, y)


def _times(window: Sequence[int]) -> str:
    return "x".join(map(str, window))


def _settings(layer: Any) -> str:
    """The settings that are not the default, for printing."""
    parts = [f"{n}={getattr(layer, n)}" for n in ("stride", "dilation") if set(getattr(layer, n)) != {1}]
    if layer.padding != ((0, 0),) * len(layer.stride):
        parts.append(f"padding={layer.padding}")
    if layer.groups != 1:
        parts.append(f"groups={layer.groups}")
    return "".join(", " + p for p in parts)


__all__ = ["Conv", "ConvTranspose", "DepthwiseConv", "Padding", "Window", "padding_of", "window_of"]
