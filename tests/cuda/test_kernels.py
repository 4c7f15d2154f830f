"""Kernels written in Python (`fx.kernel`) through the real PyCUDA: arrays of the host and of the device, streams, grids that meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.runtime.cuda_device import gpu
from fluxir.runtime.vgpu.cuda_api import VirtualCuda

Drivers = Callable[..., VirtualCuda]


def saxpy() -> Any:
    @fx.kernel
    def saxpy(a: fx.f32, x: fx.f32["N"], y: fx.f32["N"]):
        i = fx.gpu.global_id.x
        if i < len(x):
            y[i] += a * x[i]

    return saxpy


def test_a_kernel_on_arrays_of_the_host_and_of_the_device(driver_of: Drivers) -> None:
    driver_of("sm_80")
    k, x = saxpy().on("cuda"), np.arange(100, dtype="f4")
    y = np.ones(100, "f4")
    k[4, 32](2.0, x, y)
    np.testing.assert_array_equal(y, 1 + 2 * x)
    there, result = fx.device_put(x), fx.device_put(y)
    k[4, 32](2.0, there, result)
    np.testing.assert_array_equal(result.numpy(), 1 + 4 * x)


def test_a_kernel_in_a_stream_of_the_caller(driver_of: Drivers) -> None:
    driver_of("sm_80")
    k, x = saxpy().on("cuda"), np.arange(100, dtype="f4")
    there, result = fx.device_put(x), fx.device_put(np.ones(100, "f4"))
    g = gpu(0)
    with g.current("test"):
        stream = g.cuda.Stream()
    k[4, 32, 0, stream](2.0, there, result)
    np.testing.assert_array_equal(result.numpy(), 1 + 2 * x)
    with g.current("test"):
        del stream


def test_blocks_that_wait_for_each_other(driver_of: Drivers) -> None:
    driver_of("sm_80")

    @fx.kernel
    def k(x: fx.f32["N"], part: fx.f32["N"], out: fx.f32["N"]):
        i = fx.gpu.global_id.x
        part[i] = x[i] + 1.0
        fx.gpu.grid_sync()
        s = 0.0
        for j in range(len(part)):
            s += part[j]
        out[i] = s

    x, out = np.arange(12, dtype="f4"), np.zeros(12, "f4")
    k.on("cuda")[3, 4](x, np.zeros(12, "f4"), out)
    np.testing.assert_array_equal(out, np.full(12, x.sum() + 12))


def test_the_blocks_of_a_grid_meet_in_a_cooperative_launch(driver_of: Callable[..., Any]) -> None:
    driver_of("sm_80")

    @fx.kernel
    def k(x, part, out, n: fx.i32):
        b, t = fx.gpu.block_id.x, fx.gpu.thread_id.x
        part[b * n + t] = x[b * n + t]
        fx.gpu.grid_sync()
        total = 0.0
        for i in range(len(part)):
            total += part[i]
        out[b * n + t] = total

    x = np.arange(24, dtype="f4")
    k.on("cuda")[3, 8](x, np.zeros(24, "f4"), out := np.zeros(24, "f4"), 8)
    np.testing.assert_array_equal(out, x.sum())
