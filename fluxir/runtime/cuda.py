"""NVIDIA GPUs through PyCUDA (extra `cuda`): devices, programs on them, arrays on them. Nothing here falls back to a CPU.

`CudaDriver` implements `launch.Driver` for one program; the device itself (context, stream, memory) is `cuda_device.Gpu`, which
all programs on it share. `load_program` puts the two together. Importing this module costs nothing and needs no driver.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.runtime.choose import runs_on
from fluxir.runtime.cuda_device import Gpu, close_all, gpu, no_device, require
from fluxir.runtime.device_array import DeviceArray, Exchange
from fluxir.runtime.launch import GpuProgram, parameter_format
from fluxir.runtime.libcuda import Graph, capture, has_graphs
from fluxir.target import GpuTarget, all_targets

__all__ = [
    "CudaDriver",
    "Device",
    "capability",
    "close_all",
    "device_put",
    "devices",
    "load_program",
    "require",
    "runs_on",
    "target_of",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Device:
    """A GPU as its driver describes it. `capability` 90 is compute capability 9.0; `memory` is in bytes."""

    number: int
    name: str
    capability: int
    memory: int
    multiprocessors: int


def devices() -> list[Device]:
    """The GPUs of this machine, in the driver's order. FX0701 and FX0702."""
    cuda = require()
    try:
        return [_describe(cuda.Device(i), i) for i in range(cuda.Device.count())]
    except cuda.Error as reason:
        raise error("FX0701", f"the CUDA driver does not answer: {reason}", help="`nvidia-smi` tells more") from None


def _describe(d: Any, number: int) -> Device:
    major, minor = d.compute_capability()
    return Device(number, d.name(), 10 * major + minor, d.total_memory(), d.multiprocessor_count)


def capability(number: int) -> int:
    """The compute capability of the driver's GPU `number`, 90 for 9.0. FX0701 to FX0703."""
    found = devices()
    if number >= len(found):
        raise no_device(number, len(found))
    return found[number].capability


class CudaDriver:
    """One program's kernels on one device. Raises FX0704 where the PTX does not load, FX0707 where it is not for it."""

    def __init__(self, spec: Mapping[str, Any], ptx: bytes, device: int = 0) -> None:
        self.gpu: Gpu = gpu(device)
        self.cuda, self.name = self.gpu.cuda, str(spec["name"])
        with self.current():
            found = _describe(self.cuda.Context.get_device(), device)
            target = spec["target"]["name"]
            if not runs_on(target, found.capability):
                own = f"sm_{found.capability}"
                raise error(
                    "FX0707",
                    f"{self.name} was compiled for {target}, and {found.name} is {own}",
                    help=f"compile it with --target {own}",
                )
            self.module: Any = self._load(ptx)
            self.functions: dict[str, Any] = {}
            for k in spec["kernels"]:
                f = self.module.get_function(k["name"])
                f.prepare([f"{struct.calcsize(parameter_format(k['args']))}s"])  # the parameters come packed
                self.functions[k["name"]] = f
        self.has_graphs = has_graphs()

    def _load(self, ptx: bytes) -> Any:
        log: list[str] = []
        try:
            return self.cuda.module_from_buffer(
                ptx + b"\0", message_handler=lambda ok, info, problem: log.append(problem or info)
            )
        except self.cuda.MemoryError:
            raise
        except (self.cuda.Error, UnicodeDecodeError) as reason:  # PyCUDA reads a log that the driver has not written
            why = "without a word" if isinstance(reason, UnicodeDecodeError) else str(reason)
            raise error(
                "FX0704", f"{self.name}: the driver rejects the PTX: {why}", notes=[x for x in log if x]
            ) from None

    def current(self) -> AbstractContextManager[None]:
        return self.gpu.current(self.name)

    # ---- launch.Driver
    def allocate(self, nbytes: int) -> int:
        return self.gpu.allocate(nbytes, self.name)

    def free(self, address: int) -> None:
        self.gpu.free(address)

    def upload(self, address: int, array: Array) -> None:
        self.gpu.upload(address, array, self.name)

    def download(self, array: Array, address: int) -> None:
        self.gpu.download(array, address, self.name)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.gpu.copy(target, source, nbytes, self.name)

    def clear(self, address: int, nbytes: int) -> None:
        with self.current():
            self.cuda.memset_d8_async(address, 0, nbytes, self.gpu.stream)

    def launch(self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: bytes) -> None:
        with self.current():
            self.functions[kernel].prepared_async_call(grid, block, self.gpu.stream, parameters)

    def synchronize(self) -> None:
        self.gpu.synchronize(self.name)

    # ---- replay.Graphs
    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` launches and copies, as a graph."""
        with self.current():
            return capture(self.gpu.stream.handle, work)

    def replay(self, graph: Graph) -> None:
        with self.current():
            graph.launch(self.gpu.stream.handle)

    def drop(self, graph: Graph) -> None:
        with self.current():
            graph.destroy()

    # ---- timing
    def elapsed(self, work: Callable[[], Any]) -> float:
        """Seconds on the device between the start and the end of what `work` puts into the stream."""
        with self.current():
            start, end = self.cuda.Event(), self.cuda.Event()
            start.record(self.gpu.stream)
        work()
        with self.current():
            end.record(self.gpu.stream)
            end.synchronize()
            seconds = float(start.time_till(end)) / 1e3
            del start, end
            return seconds

    # ---- the end
    def close(self) -> None:
        """Unload the kernels. The driver cannot be used any more."""
        if self.module is not None and self.gpu.context is not None:
            with self.current():
                self.functions = {}
                self.module = None


def number_of(device: str) -> int:
    """The device number in `cuda` (the first) or `cuda:N`."""
    return int(device.partition(":")[2] or 0)


def target_of(device: str) -> str:
    """The name of the newest target that runs on `cuda` or `cuda:N`. FX0701 to FX0703."""
    found, number = devices(), number_of(device)
    if number >= len(found):
        raise no_device(number, len(found))
    known = [
        t for t in all_targets() if isinstance(t, GpuTarget) and not t.variant and t.sm <= found[number].capability
    ]
    if not known:
        raise error(
            "FX0707",
            f"{found[number].name} is older than every target of fluxir (compute capability {found[number].capability / 10})",
        )
    return max(known, key=lambda t: t.sm).name


def load_program(
    spec: Mapping[str, Any], ptx: bytes, constants: Sequence[Array] = (), device: str = "cuda"
) -> GpuProgram:
    """A GPU program on `cuda` or `cuda:N`. FX0701 to FX0704, FX0707 where it cannot run there."""
    if spec["target"].get("kind") != "nvptx":
        raise error("FX0707", f"{spec['name']} was compiled for {spec['target'].get('name')}, which is no GPU")
    driver = CudaDriver(spec, ptx, number_of(device))
    program = GpuProgram(
        spec, driver, constants, Exchange(driver.gpu), driver if driver.has_graphs else None, driver.gpu.lock
    )
    weakref.finalize(program, _end, driver, program.held)
    return program


def _end(driver: CudaDriver, held: Any) -> None:
    """What a program had on the device, given back when nobody holds it any more."""
    if driver.gpu.context is not None:
        held.release()
        with suppress(FluxError):  # a device that fails is told by the next call
            driver.close()


def device_put(array: Any, device: str = "cuda") -> DeviceArray:
    """A copy of a numpy array on `cuda` or `cuda:N`. FX0701 to FX0706."""
    a = np.asarray(array, order="C")
    g = gpu(number_of(device))
    address = g.allocate(a.nbytes, "device_put") if a.nbytes else 0
    out = DeviceArray(g, address, a.dtype, a.shape)
    if a.nbytes:
        g.upload(address, a, "device_put")
    return out
