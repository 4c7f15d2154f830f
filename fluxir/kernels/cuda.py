"""One kernel on one CUDA device: the driver's module, launches with dynamic shared memory, streams, cooperative launches.

PyCUDA has no cooperative launch, so that goes to the driver library itself, on a second load of the same PTX.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from fluxir.errors import error
from fluxir.kernels.arguments import Triple
from fluxir.runtime.cuda import CudaDriver, number_of

__all__ = ["CudaKernel"]

_STATIC = 48 * 1024  # bytes of shared memory that need no asking


class CudaKernel:
    """A kernel loaded on `cuda` or `cuda:N`. FX0704 where the PTX does not load, FX0705 where a launch fails."""

    def __init__(self, name: str, spec: Mapping[str, Any], ptx: bytes, device: str, cooperative: bool) -> None:
        self.driver = CudaDriver({"name": name, **spec}, ptx, number_of(device))
        (self.entry,) = spec["kernels"]
        self.name, self.cooperative = name, cooperative
        self.function = self.driver.functions[self.entry["name"]]
        self._raw = self._load(ptx) if cooperative else None
        self._most = _STATIC

    def _load(self, ptx: bytes) -> tuple[Any, Any]:
        """The driver library, and the handle of the kernel in it."""
        library = ctypes.CDLL("libcuda.so.1")
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with self.driver.current():
            self._check(library.cuModuleLoadData(ctypes.byref(module), ptx + b"\0"), "cuModuleLoadData")
            name = self.entry["name"].encode()
            self._check(library.cuModuleGetFunction(ctypes.byref(function), module, name), "cuModuleGetFunction")
        return library, function

    def _check(self, status: int, what: str) -> None:
        if status:
            raise error("FX0705", f"{self.name}: {what} failed with error {status} of the CUDA driver")

    def launch(self, grid: Triple, block: Triple, parameters: bytes, shared: int, stream: Any) -> None:
        """Start the kernel in `stream` (a `pycuda.driver.Stream`), or in ours."""
        gpu = self.driver.gpu
        s = stream if stream is not None else gpu.stream
        if stream is not None:  # after what we have put into ours, such as copies of the arguments
            gpu.let_wait(stream.handle)
        self._start(grid, block, parameters, shared, s)
        if stream is not None:
            gpu.wait_for(stream.handle)

    def _start(self, grid: Triple, block: Triple, parameters: bytes, shared: int, s: Any) -> None:
        with self.driver.current():
            if shared > self._most:
                attribute = self.driver.cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
                self.function.set_attribute(attribute, shared)
                self._most = shared
            if self._raw is None:
                self.function.prepared_async_call(grid, block, s, parameters, shared_size=shared)
                return
            library, function = self._raw
            pointers = (ctypes.c_void_p * len(self.entry["args"]))()
            buffer = ctypes.create_string_buffer(parameters, len(parameters))
            for i, a in enumerate(self.entry["args"]):
                pointers[i] = ctypes.addressof(buffer) + a["offset"]
            handle = ctypes.c_void_p(s.handle)
            status = library.cuLaunchCooperativeKernel(function, *grid, *block, shared, handle, pointers)
            self._check(status, "cuLaunchCooperativeKernel")

    def wait(self) -> None:
        """Wait for all work; ours comes after that of the streams that launches named."""
        self.driver.synchronize()
