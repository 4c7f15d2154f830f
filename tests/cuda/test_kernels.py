"""`fx.kernel` through the real PyCUDA: launches, device arrays, streams, dynamic shared memory, reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.runtime import cuda as runtime


def test_kernels_run_on_arrays_of_the_host_and_of_the_device(driver_of: Callable[..., Any]) -> None:
    driver_of("sm_80")

    @fx.kernel
    def saxpy(a: fx.f32, x: fx.f32["N"], y: fx.f32["N"]):
        i = fx.gpu.global_id.x
        if i < len(x):
            y[i] += a * x[i]

    x, y = np.arange(100, dtype="f4"), np.ones(100, "f4")
    k = saxpy.on("cuda")
    k[4, 32](2.0, x, y)
    np.testing.assert_array_equal(y, 1 + 2 * x)
    k[4, 32](2.0, y, y)
    np.testing.assert_array_equal(y, 3 * (1 + 2 * x))
    on = runtime.device_put(np.ones(100, "f4"))
    k[4, 32](2.0, x, on)
    k[4, 32](2.0, runtime.device_put(x), on)
    np.testing.assert_array_equal(on.numpy(), 1 + 4 * x)


def test_shared_memory_and_streams(driver_of: Callable[..., Any]) -> None:
    driver_of("sm_80")
    import pycuda.driver as cuda

    @fx.kernel
    def k(x, part, out, n: fx.i32):
        s = fx.gpu.shared((n,), fx.f32)
        b, t = fx.gpu.block_id.x, fx.gpu.thread_id.x
        s[t] = x[b * n + t]
        fx.gpu.barrier()
        if t == 0:
            total = 0.0
            for i in range(n):
                total += s[i]
            part[b] = total
        fx.gpu.barrier()
        out[b * n + t] = part[b]

    x = np.arange(64, dtype="f4")
    k.on("cuda")[2, 32, 128](x, np.zeros(2, "f4"), out := np.zeros(64, "f4"), 32)
    np.testing.assert_array_equal(out, np.repeat([x[:32].sum(), x[32:].sum()], 32))

    @fx.kernel
    def big(out, n: fx.i32):
        s = fx.gpu.shared((n,), fx.f32)
        s[n - 1] = 2.0
        out[0] = s[n - 1]

    found = np.zeros(1, "f4")
    big.on("cuda")[1, 1, 80 * 1024](found, 20 * 1024)
    assert found[0] == 2
    with runtime_gpu().current("test"):
        stream = cuda.Stream()
    big.on("cuda")[1, 1, 1024, stream](found, 256)
    assert found[0] == 2


def runtime_gpu() -> Any:
    from fluxir.runtime.cuda_device import gpu

    return gpu(0)


def test_what_kernels_print_and_assert(driver_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    driver_of("sm_80")

    @fx.kernel
    def k(x):
        i = fx.gpu.thread_id.x
        print(i, x[i])
        assert x[i] < 2, "too large"

    with pytest.raises(fx.FluxError, match="FX0608") as e:
        k.on("cuda")[1, 4](np.arange(4, dtype="f4"))
    assert e.value.notes == ["in block (0, 0, 0), thread (2, 0, 0)"]
    assert capsys.readouterr().out == "0 0.0\n1 1.0\n2 2.0\n3 3.0\n"
