"""The few calls of NVIDIA's driver that PyCUDA does not wrap: graphs captured from a stream, events on others' streams, and
the stack of contexts.

They go to the `libcuda.so.1` that PyCUDA has loaded, with the context that is current. A call that fails raises `DriverFailure`
with the driver's words, which `cuda_device` turns into one of our errors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

__all__ = ["DriverFailure", "Graph", "capture", "drop_context", "has_graphs", "wait_for_stream"]

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate while we capture
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_P, _U, _I, _Q = ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_uint64
_TYPES: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (_P, _I),
    "cuStreamEndCapture": (_P, _P),
    "cuGraphInstantiateWithFlags": (_P, _P, _Q),
    "cuGraphLaunch": (_P, _P),
    "cuGraphExecDestroy": (_P,),
    "cuGraphDestroy": (_P,),
    "cuEventCreate": (_P, _U),
    "cuEventRecord": (_P, _P),
    "cuEventDestroy_v2": (_P,),
    "cuStreamWaitEvent": (_P, _P, _U),
    "cuCtxPopCurrent_v2": (_P,),
    "cuCtxPushCurrent_v2": (_P,),
    "cuGetErrorString": (_I, _P),
}


class DriverFailure(Exception):
    """A call of the driver that failed. `code`: its CUresult."""

    def __init__(self, name: str, code: int) -> None:
        self.code = code
        text = ctypes.c_char_p()
        _function("cuGetErrorString")(code, ctypes.byref(text))
        super().__init__(f"{name} failed: {(text.value or b'unknown error').decode(errors='replace')}")


def _function(name: str) -> Any:
    found = getattr(ctypes.CDLL("libcuda.so.1"), name)
    found.argtypes, found.restype = _TYPES[name], ctypes.c_int
    return found


def _call(name: str, *args: Any) -> None:
    code = _function(name)(*args)
    if code:
        raise DriverFailure(name, code)


def has_graphs() -> bool:
    """Whether the driver knows graphs (since CUDA 12 in this form)."""
    library = ctypes.CDLL("libcuda.so.1")
    return all(hasattr(library, n) for n in _TYPES if "Graph" in n or "Capture" in n)


class Graph:
    """Work of a stream that can be launched again as a whole."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def launch(self, stream: int) -> None:
        _call("cuGraphLaunch", self.handle, stream)

    def destroy(self) -> None:
        """Give it back. It must not be used afterwards."""
        handle, self.handle = self.handle, 0
        if handle:
            _call("cuGraphExecDestroy", handle)


def capture(stream: int, work: Callable[[], None]) -> Graph:
    """What `work` puts into the stream, as a graph; nothing of it runs. The stream is as before, whatever happens."""
    _call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        work()
        _call("cuStreamEndCapture", stream, ctypes.byref(graph))
    except BaseException:
        _function("cuStreamEndCapture")(stream, ctypes.byref(graph))  # a stream that goes on capturing is of no use
        if graph.value:
            _function("cuGraphDestroy")(graph)
        raise
    try:
        _call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, 0)
    finally:
        _function("cuGraphDestroy")(graph)
    return Graph(ready.value or 0)


def wait_for_stream(waiting: int, other: int) -> None:
    """What is put into stream `waiting` from now on runs after what is in stream `other` now."""
    event = ctypes.c_void_p()
    _call("cuEventCreate", ctypes.byref(event), _NO_TIMING)
    try:
        _call("cuEventRecord", event, other)
        _call("cuStreamWaitEvent", waiting, event, 0)
    finally:
        _function("cuEventDestroy_v2")(event)


def drop_context(handle: int) -> None:
    """Take a context that was released off this thread's stack: PyCUDA leaves it there, below the one that was current."""
    above: list[int] = []
    while len(above) < 2:
        top = ctypes.c_void_p()
        if _function("cuCtxPopCurrent_v2")(ctypes.byref(top)) or top.value == handle:
            break
        above.append(top.value or 0)
    for context in reversed(above):
        _call("cuCtxPushCurrent_v2", context)
