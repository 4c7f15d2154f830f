"""Launches of the planted bugs of `bugs/hostile_90.cu`: see `planted`."""

from __future__ import annotations

import numpy as np

from tests.vgpu.case import Launch, Out
from tests.vgpu.cases_elementwise import Rng
from tests.vgpu.planted import I, ints, planted


@planted("hostile_90", "refilled_unread")
def refilled_unread(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 4 * 32).reshape(4, 32)
    return Launch(1, 64, [x, Out(32, I), 4], {1: (x[:, ::-1] * np.arange(1, 5)[:, None]).sum(0)})


@planted("hostile_90", "phase_not_flipped")
def phase_not_flipped(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 2 * 32).reshape(2, 32)
    return Launch(1, 32, [x, Out(32, I)], {1: x[0, ::-1] + 2 * x[1, ::-1]})


@planted("hostile_90", "arrived_before_store")
def arrived_before_store(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 64)
    return Launch(1, 64, [x, Out(64, I)], {1: x[::-1]})


@planted("hostile_90", "lanes_of_one_warp")
def lanes_of_one_warp(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 32)
    return Launch(1, 32, [x, Out(16, I)], {1: x[15::-1]})


@planted("hostile_90", "through_global")
def through_global(rng: Rng, bug: bool) -> Launch:
    data = np.arange(2)[:, None] * 1000 + np.arange(64)
    return Launch(2, 64, [Out((2, 64), I), Out((2, 64), I)], {0: data, 1: data[::-1]})


@planted("hostile_90", "left_early")
def left_early(rng: Rng, bug: bool) -> Launch:
    x = ints(rng, 2 * 64).reshape(2, 64)
    return Launch(2, 64, [x, Out((2, 64), I)], {1: x.sum(1)[::-1].repeat(64)})
