"""Order and time on the virtual driver: what runs when, events, graphs. Late streams find programs that forget to wait."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fluxir.runtime import libcuda
from fluxir.runtime.vgpu.cuda_api import Result, VirtualCuda
from fluxir.runtime.vgpu.cuda_api.library import Library
from tests.cuda.conftest import Setup
from tests.cuda.kernels import MODULE

Drivers = Callable[..., VirtualCuda]


@pytest.fixture
def late(driver_of: Drivers) -> Iterator[Setup]:
    """A device whose work runs when it must."""
    import pycuda.driver as cuda

    s = Setup(cuda, driver_of("sm_80"))
    context = s.open()
    yield s
    context.pop()
    context.detach()


def pinned(cuda: Any, *values: float) -> Any:
    a = cuda.pagelocked_empty(len(values), np.float32)
    a[:] = values
    return a


# ---- what a program sees that does not wait


def test_a_result_is_there_after_the_wait_and_not_before(late: Setup) -> None:
    cuda = late.cuda
    d, s, out = cuda.to_device(np.float32([1, 2, 3])), cuda.Stream(), pinned(cuda, 0, 0, 0)
    cuda.memcpy_dtoh_async(out, d, s)
    assert out.tolist() == [0, 0, 0]
    s.synchronize()
    assert out.tolist() == [1, 2, 3]


def test_pinned_memory_is_read_when_the_copy_runs(late: Setup) -> None:
    cuda = late.cuda
    d, s, source = cuda.mem_alloc(4), cuda.Stream(), pinned(cuda, 1)
    cuda.memcpy_htod_async(d, source, s)
    source[0] = 2  # too early
    s.synchronize()
    assert cuda.from_device(d, 1, np.float32)[0] == 2


def test_ordinary_memory_is_read_at_once_and_written_at_once(late: Setup) -> None:
    cuda = late.cuda
    d, s, a = cuda.mem_alloc(4), cuda.Stream(), np.float32([1])
    cuda.memcpy_htod_async(d, a, s)
    a[0] = 2
    cuda.memcpy_dtoh_async(a, d, s)
    assert a[0] == 1


def test_streams_do_not_wait_for_each_other_unless_told(late: Setup) -> None:
    cuda = late.cuda
    d, out = cuda.to_device(np.float32([1])), pinned(cuda, 0)
    a, b, event = cuda.Stream(), cuda.Stream(), cuda.Event()
    cuda.memset_d32_async(d, 0x40000000, 1, a)
    cuda.memcpy_dtoh_async(out, d, b)
    b.synchronize()
    assert out[0] == 1, "stream a has not run"
    event.record(a)
    b.wait_for_event(event)
    cuda.memcpy_dtoh_async(out, d, b)
    b.synchronize()
    assert out[0] == 2


def test_the_default_stream_and_blocking_streams_wait_for_each_other(late: Setup) -> None:
    cuda = late.cuda
    d, s = cuda.to_device(np.float32([1])), cuda.Stream()
    cuda.memset_d32_async(d, 0x40000000, 1, s)
    assert cuda.from_device(d, 1, np.float32)[0] == 2, "a copy in the default stream waits for s"
    cuda.memset_d32(d, 0x40400000, 1)
    out = pinned(cuda, 0)
    cuda.memcpy_dtoh_async(out, d, s)
    s.synchronize()
    assert out[0] == 3


def test_freeing_waits(late: Setup) -> None:
    cuda = late.cuda
    d, s, out = cuda.to_device(np.float32([5])), cuda.Stream(), pinned(cuda, 0)
    cuda.memcpy_dtoh_async(out, d, s)
    d.free()
    assert out[0] == 5


def test_polling_makes_progress(late: Setup) -> None:
    cuda = late.cuda
    d, s, event = cuda.mem_alloc(4), cuda.Stream(), cuda.Event()
    for i in range(3):
        cuda.memset_d32_async(d, i, 1, s)
    event.record(s)
    assert not s.is_done() and not event.query()
    polls = 0
    while not event.query():
        polls += 1
        assert polls < 10
    assert s.is_done() and cuda.from_device(d, 1, np.uint32)[0] == 2


def test_a_failure_comes_with_the_wait(late: Setup) -> None:
    cuda = late.cuda
    f, s = cuda.module_from_buffer(MODULE.encode() + b"\0").get_function("stop"), cuda.Stream()
    f(block=(1, 1, 1), stream=s)
    with pytest.raises(cuda.LaunchError, match="unspecified launch failure"):
        s.synchronize()


# ---- events


def test_events_and_time(setup: Setup) -> None:
    cuda = setup.cuda
    s, a, b = cuda.Stream(), cuda.Event(), cuda.Event()
    assert a.query(), "an event that was never recorded is done"
    with pytest.raises(cuda.LogicError, match="invalid resource handle"):
        a.time_till(b)
    a.record(s)
    d = cuda.mem_alloc(1 << 16)
    cuda.memset_d8_async(d, 1, 1 << 16, s)
    b.record(s)
    if not setup.driver.eager:
        with pytest.raises(cuda.RuntimeError, match="not ready"):
            a.time_till(b)
    b.synchronize()
    assert 0 < a.time_till(b) < 1e4 and b.time_since(a) == a.time_till(b)
    untimed = cuda.Event(cuda.event_flags.DISABLE_TIMING)
    untimed.record(s)
    untimed.synchronize()
    with pytest.raises(cuda.LogicError):
        a.time_till(untimed)
    a.record(s)  # an event can be recorded again
    a.synchronize()
    assert b.time_till(a) > 0


# ---- graphs


def test_a_graph_is_captured_and_runs_each_time_it_is_launched(setup: Setup) -> None:
    cuda = setup.cuda
    m = cuda.module_from_buffer(MODULE.encode() + b"\0")
    f, d, s = m.get_function("scale"), cuda.to_device(np.float32([1, 2])), cuda.Stream()
    f.prepare("PI")

    def work() -> None:
        f.prepared_async_call((1, 1), (2, 1, 1), s, d, 2)
        f.prepared_async_call((1, 1), (2, 1, 1), s, d, 1)

    graph = libcuda.capture(s.handle, work)
    assert cuda.from_device(d, 2, np.float32).tolist() == [1, 2], "capturing runs nothing"
    for _ in range(3):
        graph.launch(s.handle)
    s.synchronize()
    assert cuda.from_device(d, 2, np.float32).tolist() == [64, 16]
    graph.destroy()
    graph.destroy()


def test_waiting_spoils_a_capture(setup: Setup, library: Library) -> None:
    cuda = setup.cuda
    s, out = cuda.Stream(), ctypes.c_void_p()
    d = cuda.mem_alloc(4)

    def bad() -> None:
        cuda.memset_d32_async(d, 1, 1, s)
        s.synchronize()

    with pytest.raises(cuda.LogicError, match="not permitted when stream is capturing"):
        libcuda.capture(s.handle, bad)
    assert library.dll.cuStreamEndCapture(ctypes.c_size_t(s.handle), ctypes.byref(out)) == Result.ILLEGAL_STATE
    with pytest.raises(cuda.LogicError, match="not permitted"):
        libcuda.capture(s.handle, lambda: cuda.mem_alloc(16))
    cuda.memset_d32_async(d, 3, 1, s)  # the stream is as before
    s.synchronize()
    assert cuda.from_device(d, 1, np.uint32)[0] == 3


def test_the_default_stream_cannot_be_captured(setup: Setup) -> None:
    with pytest.raises(libcuda.DriverFailure, match="not permitted") as e:
        libcuda.capture(0, lambda: None)
    assert e.value.code == Result.STREAM_CAPTURE_UNSUPPORTED


def test_a_stream_waits_for_a_foreign_one(late: Setup) -> None:
    cuda = late.cuda
    d, a, b, out = cuda.to_device(np.float32([1])), cuda.Stream(), cuda.Stream(), pinned(cuda, 0)
    cuda.memset_d32_async(d, 0x40000000, 1, a)
    libcuda.wait_for_stream(b.handle, a.handle)
    cuda.memcpy_dtoh_async(out, d, b)
    b.synchronize()
    assert out[0] == 2
