"""Arrays on the device: into programs and out of them without a copy, by DLPack and the CUDA array interface."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.interp import interpret
from fluxir.runtime import dlpack
from fluxir.runtime.cuda import device_put
from fluxir.runtime.cuda_device import gpu
from fluxir.runtime.device_array import DeviceArray
from fluxir.runtime.vgpu.cuda_api import VirtualCuda
from tests.cuda.harness import close, compiled, on_cuda
from tests.cuda.test_programs import MLP, f32, mlp

Drivers = Callable[..., VirtualCuda]


@pytest.fixture
def driver(driver_of: Drivers) -> VirtualCuda:
    return driver_of("sm_80")


class Library:
    """An array of another library on the device: its own stream, work still under way, one protocol. What it does with the
    driver, it does inside `outside`."""

    outside: Any = contextlib.nullcontext

    def __init__(
        self, values: Any, protocol: str, offset: int = 0, read_only: bool = False, strides: Any = None
    ) -> None:
        g = gpu(0)
        self.g, self.protocol, self.read_only, self.strides = g, protocol, read_only, strides
        self.values = np.asarray(values, order="C")
        with self.outside(), g.current("test"):
            self.stream = g.cuda.Stream()
            self.memory = g.cuda.mem_alloc(self.values.nbytes + offset)
            self.source = g.cuda.pagelocked_empty(self.values.nbytes, np.uint8)
            self.source[:] = self.values.reshape(-1).view(np.uint8)
            self.address = int(self.memory) + offset
            g.cuda.memcpy_htod_async(self.address, self.source, self.stream)

    def __del__(self) -> None:
        with self.outside():
            self.__dict__.clear()

    def __getattr__(self, name: str) -> Any:
        protocol = self.__dict__.get("protocol")
        if name == "__cuda_array_interface__" and protocol == "interface":
            return {
                "shape": self.values.shape, "typestr": self.values.dtype.str, "data": (self.address, self.read_only),
                "strides": self.strides, "version": 3, "stream": self.stream.handle,
            }  # fmt: skip
        if protocol in ("dlpack", "old dlpack"):
            if name == "__dlpack_device__":
                return lambda: (2, 0)
            if name == "__dlpack__":
                return self.new if protocol == "dlpack" else self.old
        raise AttributeError(name)

    def new(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None) -> Any:
        g = self.g
        with g.current("test"):
            from fluxir.runtime import libcuda

            libcuda.wait_for_stream(stream, self.stream.handle)
        return dlpack.export(self.address, self.values.dtype, self.values.shape, 0, self, max_version is not None)

    def old(self, stream: Any = None) -> Any:
        return self.new(stream=stream)


PROTOCOLS = ["interface", "dlpack", "old dlpack"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_foreign_arrays_go_in_without_a_copy(driver: VirtualCuda, protocol: str) -> None:
    module, code = compiled(mlp, *MLP)
    program = on_cuda(code)
    arrays = [Library(a, protocol) for a in MLP]
    copies = {n: driver.calls[n] for n in ("cuMemcpyDtoDAsync_v2", "cuMemcpyHtoDAsync_v2")}
    waits = driver.calls["cuStreamSynchronize"]
    (out,) = program.call_flat(arrays)
    assert isinstance(out, DeviceArray)
    assert copies == {n: driver.calls[n] for n in copies}
    assert driver.calls["cuStreamSynchronize"] == waits, "the call does not wait"
    close([out.numpy()], interpret(module, list(MLP)), 1e-4, 1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_foreign_memory_lives_until_the_work_is_done(driver: VirtualCuda, protocol: str) -> None:
    module, code = compiled(lambda x: fx.exp(x) + 1, f32(64))
    program, x = on_cuda(code), f32(64)
    frees = driver.calls["cuMemFree_v2"]
    (out,) = program.call_flat([Library(x, protocol)])  # nobody else holds it
    gc.collect()
    assert driver.calls["cuMemFree_v2"] == frees
    close([out.numpy()], interpret(module, [x]))
    gc.collect()
    assert driver.calls["cuMemFree_v2"] == frees + 1


def test_results_go_from_program_to_program(driver: VirtualCuda) -> None:
    module, code = compiled(lambda x: fx.sin(x) * 2, f32(32))
    first, second = on_cuda(code), on_cuda(code)
    x = f32(32)
    y = second(first(device_put(x)))
    assert repr(y) == "DeviceArray(float32[32] on cuda:0)" and len(y) == 32 and y.ndim == 1
    close([y.numpy()], interpret(module, interpret(module, [x])))
    before = gpu(0).in_use
    del y
    gc.collect()
    assert gpu(0).in_use == before - 128


def test_host_and_device_arguments_mix(driver: VirtualCuda) -> None:
    module, code = compiled(mlp, *MLP)
    program = on_cuda(code)
    weights = [device_put(w) for w in MLP[1:]]
    for _ in range(4):
        x = f32(5, 16)
        (out,) = program.call_flat([x, *weights])
        close([out.numpy()], interpret(module, [x, *MLP[1:]]), 1e-4, 1e-4)


def test_a_result_is_offered_by_both_protocols(driver: VirtualCuda) -> None:
    x = f32(3, 4)
    d = device_put(x)
    i = d.__cuda_array_interface__
    assert i["shape"] == (3, 4) and i["typestr"] == "<f4" and i["version"] == 3 and i["strides"] is None
    assert i["data"] == (d.address, False) and i["stream"] == gpu(0).stream.handle
    assert d.__dlpack_device__() == (2, 0)
    for version, stream in ((None, None), ((1, 0), 1), ((1, 1), 2), ((1, 1), -1), (None, gpu(0).stream.handle)):
        t = dlpack.read(d.__dlpack__(stream=stream, max_version=version))
        assert (t.address, t.dtype, t.shape, t.device) == (d.address, np.float32, (3, 4), (2, 0)) and t.contiguous
    copied = dlpack.read(d.__dlpack__(copy=True))
    assert copied.address != d.address
    with pytest.raises(ValueError, match="stream 0"):
        d.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="numpy"):
        d.__dlpack__(dl_device=(1, 0))
    with pytest.raises(fx.FluxError, match="FX0610"):
        np.asarray(d)


def test_round_trips_through_dlpack(driver: VirtualCuda) -> None:
    """A taker that renames the capsule and calls the deleter, as libraries do."""
    import ctypes

    kinds = (np.float32, np.float16, np.float64, np.int8, np.uint16, np.int64, np.bool_, ml_dtypes.bfloat16)
    for kind in kinds:
        x = f32(5).astype(kind)
        d = device_put(x)
        for version in (None, (1, 0)):
            t = dlpack.read(d.__dlpack__(max_version=version))
            assert t.dtype == x.dtype
            back = DeviceArray(gpu(0), t.address, t.dtype, t.shape, keep=t.capsule)
            np.testing.assert_array_equal(back.numpy().view(np.uint8), x.view(np.uint8))
    alive = len(dlpack._alive)
    capsule = d.__dlpack__()
    set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    at = dlpack._pointer_at(id(capsule), b"dltensor")
    used = b"used_dltensor"
    set_name(capsule, used)
    del capsule
    gc.collect()
    assert len(dlpack._alive) == alive + 1, "the taker has it now"
    dlpack._Managed.from_address(at).deleter(at)
    assert len(dlpack._alive) == alive


def test_pycuda_arrays_take_part(driver: VirtualCuda) -> None:
    from pycuda import gpuarray

    module, code = compiled(lambda x: fx.exp(x) * 2, f32(4, 3))
    program, x = on_cuda(code), f32(4, 3)
    g = gpu(0)
    with g.current("test"):
        given = gpuarray.to_gpu(x)
        (out,) = program.call_flat([given])
        close([out.numpy()], interpret(module, [x]))
        del given


def test_memory_that_is_not_aligned_is_copied_on_the_device(driver: VirtualCuda) -> None:
    module, code = compiled(lambda x: fx.exp(x) * 2, f32(33))
    program, x = on_cuda(code), f32(33)
    (out,) = program.call_flat([Library(x, "interface", offset=4)])
    assert driver.calls["cuMemcpyDtoDAsync_v2"] == 1
    close([out.numpy()], interpret(module, [x]))


@pytest.mark.parametrize("protocol", ["ours", *PROTOCOLS])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_donated_array_becomes_the_result(driver: VirtualCuda, protocol: str, read_only: bool) -> None:
    module, code = compiled(lambda x, y: (x + y, x * y), f32(16), f32(16), donate_argnums=0)
    program, x, y = on_cuda(code), f32(16), f32(16)
    given = device_put(x) if protocol == "ours" else Library(x, protocol, read_only=read_only)
    got = program.call_flat([given, device_put(y)])
    close([a.numpy() for a in got], interpret(module, [x, y]))
    written_over = got[0].address == given.address
    assert written_over == (protocol != "interface" or not read_only)
    with pytest.raises(fx.FluxError, match="FX0614"):
        program.call_flat([got[0], got[0]])


def test_what_cannot_be_shared_says_why(driver_of: Drivers) -> None:
    driver_of("sm_80", "sm_80")
    _, code = compiled(lambda x: fx.exp(x), f32(4, 4))
    program = on_cuda(code)
    for given, words, number in (
        (Library(f32(4, 4), "interface", strides=(4, 16)), "it is strided", "FX0612"),
        (Library(f32(4, 5), "interface"), "expected 4", "FX0602"),
        (Library(f32(16), "dlpack"), "rank 1 instead of 2", "FX0602"),
        (Library(np.zeros((4, 4)), "dlpack"), "given float64", "FX0603"),
        (device_put(f32(4, 4), "cuda:1"), "is on cuda:1, the program runs on cuda:0", "FX0610"),
    ):
        with pytest.raises(fx.FluxError, match=words) as e:
            program.call_flat([given])
        assert e.value.code == number
    del given
    with pytest.raises(fx.FluxError, match="FX0610"):  # a CPU program does not take it either
        fx.jit(lambda x: fx.exp(x))(device_put(f32(4, 4)))


def test_arrays_that_outlive_their_device_say_so(driver: VirtualCuda) -> None:
    from fluxir.runtime import cuda

    d = device_put(f32(4))
    cuda.close_all()
    with pytest.raises(fx.FluxError, match="FX0705"):
        d.numpy()
