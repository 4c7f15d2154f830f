"""Running a built kernel: on this CPU, on a virtual GPU, on a GPU through PyCUDA.

Each device takes the same `Given` and leaves written arrays changed in place. numpy arrays are copied to a GPU and back;
arrays that are on the device already are used where they are, and a launch whose arguments all are does not wait, unless the
kernel prints or asserts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.errors import error
from fluxir.ir.core import Func
from fluxir.ir.types import MemType
from fluxir.kernels.arguments import Given, Triple, device_address, is_device_array
from fluxir.kernels.build import Build, cpu_target, gpu_target
from fluxir.kernels.reports import empty_report, tell
from fluxir.runtime.launch import parameter_format

__all__ = ["run"]


def run(build: Build, device: str, given: Given, grid: Triple, block: Triple, shared: int, stream: Any) -> Any:
    """Run the kernel on `cpu`, `vgpu`, `vgpu:sm_NN`, `cuda` or `cuda:N`. Returns a virtual GPU's report, else None."""
    kind = device.partition(":")[0]
    if not shared and any(op.name == "dynamic_shared" for op in build.func.walk()):
        raise error("FX0335", f"{build.func.name} uses dynamic shared memory, and the launch gives none", loc=build.func.loc,
                    help="say how many bytes a block needs: kernel[grid, block, nbytes](...)")  # fmt: skip
    f, table = build.reported
    report = empty_report() if table else None
    try:
        if kind == "cpu":
            _on_cpu(build, given, grid, block, shared, stream, report)
            found = None
        elif kind == "vgpu":
            found = _on_vgpu(build, f, device, given, grid, block, shared, stream, report)
        else:
            _on_cuda(build, f, device, given, grid, block, shared, stream, report)
            found = None
    finally:
        if report is not None:
            tell(f.name, report, table, grid, block)
    for target, plain in given.back:
        target[...] = plain
    return found


# ---- the CPU ------------------------------------------------------------------------------------------------------------


def _on_cpu(
    build: Build, given: Given, grid: Triple, block: Triple, shared: int, stream: Any, report: NDArray[Any] | None
) -> None:
    if stream is not None:
        raise error("FX0335", f"{build.func.name}: the CPU has no streams")
    for v in given.values:
        if is_device_array(v):
            raise error("FX0707", f"{build.func.name}: an array that is on a GPU was given for the CPU",
                        help='pass numpy arrays, or run the kernel where the array is: kernel.on("vgpu")')  # fmt: skip
    program = build.program(cpu_target(), block, shared, given.aliased)
    arrays = [v if isinstance(v, np.ndarray) else np.asarray(v) for v in given.values]
    if report is not None:
        arrays.append(report)
    program.call_flat([*arrays, *[np.asarray(n, np.int64) for n in grid]])


# ---- GPUs -----------------------------------------------------------------------------------------------------------------


def _packed(entry: Mapping[str, Any], addresses: Sequence[int | None], given: Given, report: int) -> bytes:
    """The kernel's parameters as its entry in the manifest lays them out."""
    values: list[Any] = []
    position = 0
    for a in entry["args"]:
        if a["kind"] == "size":
            values.append(given.sizes[a["name"]])
            continue
        if position == len(given.values):
            values.append(report)
        elif a["kind"] == "memory":
            values.append(addresses[position])
        else:
            v = given.values[position]
            values.append(int(v.view(np.uint16)) if a["dtype"] == "bf16" else v.item())
        position += 1
    return struct.pack(parameter_format(entry["args"]), *values)


def _changes(i: int, given: Given, build: Build) -> bool:
    """Whether the kernel writes to the memory of an argument, through it or through another one that is the same."""
    return i in build.written or any(j in build.written for j, first in given.same.items() if first == i)


def _on_vgpu(
    build: Build, f: Func, device: str, given: Given, grid: Triple, block: Triple, shared: int, stream: Any, report: Any
) -> Any:
    from fluxir.runtime.vgpu import DeviceArray, SanitizerError
    from fluxir.runtime.vgpu.driver import as_error, shared_device

    if stream is not None:
        raise error("FX0335", f"{f.name}: a virtual GPU has no streams: every launch is over when it returns")
    arrays = [v for v in given.values if isinstance(v, DeviceArray)]
    target = gpu_target(device)
    gpu = arrays[0].device if arrays else shared_device(target.name)
    if any(a.device is not gpu for a in arrays):
        raise error("FX0707", f"{f.name}: the arrays are on different virtual GPUs")
    if arrays and device == "vgpu":
        target = gpu.target
    ptx, spec = build.machine(target, given.aliased)
    (entry,) = spec["kernels"]
    modules = build.codes.setdefault(("modules", id(gpu), target.name, given.aliased), {})
    with gpu.lock:
        if "module" not in modules:
            modules["module"], modules["device"] = gpu.load(ptx), gpu
        addresses: list[int | None] = []
        held: list[tuple[int, Any, bool]] = []
        try:
            for i, v in enumerate(given.values):
                if isinstance(v, DeviceArray):
                    addresses.append(v.address)
                elif i in given.same:
                    addresses.append(addresses[given.same[i]])
                elif isinstance(f.args[i].type, MemType):
                    addresses.append(_copied_in(gpu, v, f.args[i].name))
                    held.append((addresses[-1] or 0, v, _changes(i, given, build)))
                else:
                    addresses.append(None)
            place = 0
            if report is not None:
                place = _copied_in(gpu, report, "report")
                held.append((place, report, True))
            packed = _packed(entry, addresses, given, place)
            check = "raise" if config.get().sanitizer else "off"
            problem: SanitizerError | None = None
            try:
                found = modules["module"][entry["name"]].launch_packed(
                    grid, block, packed, shared, check=check, cooperative=build.cooperative
                )
            except SanitizerError as e:
                problem = e
            for address, v, back in held:
                if back and address:
                    v.reshape(-1).view(np.uint8)[:] = _bytes(gpu, address, v.nbytes)
            if problem is not None:
                if report is not None:
                    tell(f.name, report, build.reported[1], grid, block)
                    report[:] = 0
                raise as_error(problem, f.name, {entry["name"]: entry}) from None
            return found
        finally:
            for address, _, _ in held:
                if address:
                    gpu.heap.free(address)


def _copied_in(gpu: Any, array: NDArray[Any], label: str) -> int:
    if not array.nbytes:
        return 0
    address: int = gpu.heap.allocate(array.nbytes, label)
    gpu.heap.write(address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return address


def _bytes(gpu: Any, address: int, nbytes: int) -> NDArray[Any]:
    found: NDArray[Any] = gpu.heap.read(address, nbytes)
    return found


def _on_cuda(
    build: Build, f: Func, device: str, given: Given, grid: Triple, block: Triple, shared: int, stream: Any, report: Any
) -> None:
    from fluxir.kernels.cuda import CudaKernel

    target = gpu_target(device)
    key = ("cuda", device, given.aliased)
    if key not in build.codes:
        ptx, spec = build.machine(target, given.aliased)
        build.codes[key] = CudaKernel(f.name, spec, ptx.encode(), device, build.cooperative)
    k: CudaKernel = build.codes[key]
    driver = k.driver
    addresses: list[int | None] = []
    held: list[tuple[int, Any, bool]] = []
    try:
        for i, v in enumerate(given.values):
            if not isinstance(f.args[i].type, MemType):
                addresses.append(None)
            elif is_device_array(v):
                if not hasattr(v, "__cuda_array_interface__"):
                    raise error("FX0707", f"{f.name}: an array of a virtual GPU was given for {device}")
                addresses.append(device_address(v))
            elif i in given.same:
                addresses.append(addresses[given.same[i]])
            else:
                address = driver.allocate(v.nbytes) if v.nbytes else 0
                if address:
                    held.append((address, v, _changes(i, given, build)))
                    driver.upload(address, v)
                addresses.append(address)
        place = 0
        if report is not None:
            place = driver.allocate(report.nbytes)
            held.append((place, report, True))
            driver.upload(place, report)
        packed = _packed(k.entry, addresses, given, place)
        k.launch(grid, block, packed, shared, stream)
        for address, v, back in held:
            if back:
                driver.download(v, address)
        if held:
            k.wait()
    finally:
        for address, _, _ in held:
            driver.free(address)
