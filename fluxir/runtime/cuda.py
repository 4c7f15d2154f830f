"""NVIDIA GPUs through PyCUDA (extra `cuda`): devices, loading PTX, memory, launches. Nothing here falls back to a CPU.

`CudaDriver` implements `launch.Driver` for one program on one device; `load_program` puts the two together. PyCUDA is
imported when the first driver is made: importing this module costs nothing and needs no driver. Invariants:

- One CUDA context for each device, the primary one, shared with other libraries of the process; it is current only
  while one of our calls runs.
- Every operation goes into the driver's own stream, in order.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.runtime.launch import GpuProgram, parameter_format
from fluxir.target import GpuTarget, all_targets

__all__ = ["CudaDriver", "Device", "devices", "load_program", "require", "runs_on", "target_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Device:
    """A GPU as its driver describes it. `capability` 90 is compute capability 9.0; `memory` is in bytes."""

    number: int
    name: str
    capability: int
    memory: int
    multiprocessors: int


def require() -> Any:
    """PyCUDA's driver module, initialised. FX0701 without an NVIDIA driver or device, FX0702 without PyCUDA."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise error(
            "FX0701",
            "no CUDA driver (libcuda.so.1) was found",
            help="use --device cpu; compiling for a GPU needs none",
        ) from None
    if find_spec("pycuda") is None:
        raise error("FX0702", "PyCUDA is not installed", help="pip install 'fluxir[cuda]'")
    import pycuda.driver as cuda

    try:
        cuda.init()
    except cuda.Error as reason:
        raise error("FX0701", f"the CUDA driver does not start: {reason}", help="`nvidia-smi` tells more") from None
    return cuda


def devices() -> list[Device]:
    """The GPUs of this machine, in the driver's order. FX0701 and FX0702."""
    cuda = require()
    return [_describe(cuda.Device(i), i) for i in range(cuda.Device.count())]


def _describe(d: Any, number: int) -> Device:
    major, minor = d.compute_capability()
    return Device(number, d.name(), 10 * major + minor, d.total_memory(), d.multiprocessor_count)


@functools.cache
def _context(number: int) -> Any:
    """The primary context of a device, not current. FX0703 where there is no such device."""
    cuda = require()
    count = cuda.Device.count()
    if number >= count:
        raise error(
            "FX0703", f"there is no device cuda:{number}: the driver reports {count}", help="`fluxir doctor` lists them"
        )
    return cuda.Device(number).retain_primary_context()


def runs_on(target: str, capability: int) -> bool:
    """Whether PTX for `target` runs on a GPU: `sm_80` on 8.0 and later, `sm_90a` on 9.0 alone, `sm_100f` on its family."""
    digits, variant = target.removeprefix("sm_").rstrip("af"), target[-1]
    needed = int(digits)
    if variant == "a":
        return needed == capability
    if variant == "f":
        return needed <= capability and needed // 10 == capability // 10
    return needed <= capability


class CudaDriver:
    """One program's kernels on one device. Raises FX0704 where the PTX does not load, FX0707 where it is not for it."""

    def __init__(self, spec: Mapping[str, Any], ptx: bytes, device: int = 0) -> None:
        self.cuda = require()
        self.context = _context(device)
        self.name = spec["name"]
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
            self.stream = self.cuda.Stream()
            self.module = self._load(ptx)
            self.functions = {}
            for k in spec["kernels"]:
                f = self.module.get_function(k["name"])
                f.prepare([f"{struct.calcsize(parameter_format(k['args']))}s"])  # the parameters come packed
                self.functions[k["name"]] = f
        self.memory: dict[int, Any] = {}

    def _load(self, ptx: bytes) -> Any:
        log: list[str] = []
        try:
            return self.cuda.module_from_buffer(
                ptx + b"\0", message_handler=lambda ok, info, problem: log.append(problem or info)
            )
        except self.cuda.Error as reason:
            raise error(
                "FX0704", f"{self.name}: the driver rejects the PTX: {reason}", notes=[x for x in log if x]
            ) from None

    @contextmanager
    def current(self) -> Iterator[None]:
        """The device's context current, and the driver's errors as ours."""
        self.context.push()
        try:
            yield
        except self.cuda.MemoryError as reason:
            raise self.failure("FX0706", reason) from None
        except self.cuda.Error as reason:
            raise self.failure("FX0705", reason) from None
        finally:
            self.cuda.Context.pop()

    def failure(self, code: str, reason: Exception) -> FluxError:
        return error(code, f"{self.name}: {reason}")

    # ---- launch.Driver
    def allocate(self, nbytes: int) -> int:
        with self.current():
            free, total = self.cuda.mem_get_info()
            try:
                memory = self.cuda.mem_alloc(nbytes)
            except self.cuda.MemoryError:
                raise error("FX0706", f"{self.name} asks for {nbytes} bytes, {free} of {total} are free") from None
        address = int(memory)
        self.memory[address] = memory
        return address

    def free(self, address: int) -> None:
        with self.current():
            self.memory.pop(address).free()  # cuMemFree waits for the work that may use it

    def upload(self, address: int, array: Array) -> None:
        with self.current():
            self.cuda.memcpy_htod_async(address, array.reshape(-1).view(np.uint8), self.stream)
            self.stream.synchronize()  # the caller may change the array afterwards

    def download(self, array: Array, address: int) -> None:
        with self.current():
            self.cuda.memcpy_dtoh_async(array.reshape(-1).view(np.uint8), address, self.stream)
            self.stream.synchronize()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        with self.current():
            self.cuda.memcpy_dtod_async(target, source, nbytes, self.stream)

    def clear(self, address: int, nbytes: int) -> None:
        with self.current():
            self.cuda.memset_d8_async(address, 0, nbytes, self.stream)

    def launch(self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: bytes) -> None:
        with self.current():
            self.functions[kernel].prepared_async_call(grid, block, self.stream, parameters)

    def synchronize(self) -> None:
        with self.current():
            self.stream.synchronize()

    # ---- timing
    def elapsed(self, work: Callable[[], Any]) -> float:
        """Seconds on the device between the start and the end of what `work` puts into the stream."""
        with self.current():
            start, end = self.cuda.Event(), self.cuda.Event()
            start.record(self.stream)
        work()
        with self.current():
            end.record(self.stream)
            end.synchronize()
            return float(start.time_till(end)) / 1e3


def number_of(device: str) -> int:
    """The device number in `cuda` (the first) or `cuda:N`."""
    return int(device.partition(":")[2] or 0)


def target_of(device: str) -> str:
    """The name of the newest target that runs on `cuda` or `cuda:N`. FX0701 to FX0703."""
    found, number = devices(), number_of(device)
    if number >= len(found):
        raise error(
            "FX0703", f"there is no device {device}: the driver reports {len(found)}", help="`fluxir doctor` lists them"
        )
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
    return GpuProgram(spec, CudaDriver(spec, ptx, number_of(device)), constants)
