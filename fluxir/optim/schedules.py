"""Schedules: settings that change over time, as functions of the number of updates made so far (0 at the first).

    opt = fx.optim.Adam(lr=fx.optim.warm_up(fx.optim.cosine(1e-3, 1000), 100))

A schedule takes an integer or a traced one, and is part of the compiled step. Any function of this kind is a schedule.
Results are f64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import fluxir as fx

Schedule = Callable[[Any], Any]


def _float(step: Any) -> Any:
    return fx.astype(fx.asarray(step), "f64")


def _count(name: str, what: str, n: Any, least: int = 1) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise fx.error("FX1102", f"{name}: {what} is {n!r}, it must be an integer of at least {least}")


def constant(value: float) -> Schedule:
    """`value` at every step."""
    return lambda step: fx.full_like(_float(step), value)


def step_decay(initial: float, every: int, factor: float = 0.1) -> Schedule:
    """initial * factor^floor(step / every): a stair."""
    _count("step_decay", "every", every)
    return lambda step: initial * fx.pow(fx.asarray(factor, dtype="f64"), fx.floor(_float(step) / every))


def exponential(initial: float, factor: float, every: int = 1) -> Schedule:
    """initial * factor^(step / every): the stair made smooth."""
    _count("exponential", "every", every)
    return lambda step: initial * fx.pow(fx.asarray(factor, dtype="f64"), _float(step) / every)


def inverse(initial: float, rate: float, power: float = 1.0) -> Schedule:
    """initial / (1 + rate * step)^power."""
    return lambda step: initial / fx.pow(1 + rate * _float(step), fx.asarray(power, dtype="f64"))


def linear(initial: float, final: float, steps: int) -> Schedule:
    """From `initial` in a line to `final`, reached after `steps` steps and kept."""
    _count("linear", "steps", steps)
    return lambda step: initial + (final - initial) * fx.minimum(_float(step) / steps, 1.0)


def polynomial(initial: float, final: float, steps: int, power: float = 2.0) -> Schedule:
    """final + (initial - final) * (1 - step / steps)^power, `final` after `steps` steps."""
    _count("polynomial", "steps", steps)
    exponent = float(power)

    def at(step: Any) -> Any:
        left = 1 - fx.minimum(_float(step) / steps, 1.0)
        return final + (initial - final) * fx.pow(left, fx.asarray(exponent, dtype="f64"))

    return at


def cosine(initial: float, steps: int, final: float = 0.0, *, restarts: bool = False) -> Schedule:
    """Half a wave from `initial` down to `final` in `steps` steps (Loshchilov and Hutter, "SGDR: stochastic gradient descent
    with warm restarts", 2017). Then `final`, or with `restarts` the same again.
    """
    _count("cosine", "steps", steps)

    def at(step: Any) -> Any:
        t = _float(step)
        part = fx.remainder(t, float(steps)) / steps if restarts else fx.minimum(t / steps, 1.0)
        return final + (initial - final) * 0.5 * (1 + fx.cos(math.pi * part))

    return at


def one_cycle(peak: float, steps: int, *, rise: float = 0.3, begin: float = 25.0, end: float = 1e4) -> Schedule:
    """Up from peak / begin to `peak` in the first part `rise` of the steps, then down to peak / begin / end, both as half a
    cosine wave (Smith and Topin, "Super-convergence", 2018), as
    PyTorch's OneCycleLR: the last of `steps` steps has the end value.
    """
    _count("one_cycle", "steps", steps, 2)
    low, last = peak / begin, peak / begin / end
    top, length = rise * steps - 1, steps - 1

    def wave(a: float, b: float, part: Any) -> Any:
        return b + (a - b) * 0.5 * (1 + fx.cos(math.pi * part))

    def at(step: Any) -> Any:
        t = fx.minimum(_float(step), float(length))
        down = wave(peak, last, (t - top) / (length - top))
        return fx.where(t <= top, wave(low, peak, t / top), down) if top > 0 else down

    return at


def warm_up(then: Schedule | float, steps: int, start: float = 0.0) -> Schedule:
    """In a line from `start` times the first value of `then` to that value in `steps` steps, and then `then` from its step 0."""
    _count("warm_up", "steps", steps)
    after = then if callable(then) else constant(then)

    def at(step: Any) -> Any:
        t = _float(step)
        rising = start + (1 - start) * fx.minimum(t / steps, 1.0)
        return rising * after(fx.maximum(t - steps, 0.0))

    return at


def piecewise(boundaries: Sequence[int], parts: Sequence[Schedule | float]) -> Schedule:
    """parts[i] from step boundaries[i - 1] to before boundaries[i]; a schedule among the parts begins at its own step 0."""
    if len(parts) != len(boundaries) + 1 or any(a >= b for a, b in zip(boundaries, list(boundaries)[1:], strict=False)):
        raise fx.error("FX1102", f"piecewise: {len(boundaries)} boundaries in rising order separate {len(boundaries) + 1} parts, "
                       f"given are {list(boundaries)} and {len(parts)} parts")  # fmt: skip
    made = [p if callable(p) else constant(p) for p in parts]

    def at(step: Any) -> Any:
        t = _float(step)
        out = made[0](t)
        for start, part in zip(boundaries, made[1:], strict=True):
            out = fx.where(t >= start, part(fx.maximum(t - start, 0.0)), out)
        return out

    return at


__all__ = [
    "constant", "cosine", "exponential", "inverse", "linear", "one_cycle", "piecewise", "polynomial", "step_decay", "warm_up",
]  # fmt: skip
