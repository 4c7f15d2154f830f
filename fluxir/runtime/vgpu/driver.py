"""Compiled programs on the virtual GPU: `launch.Driver` on a `Device`, and findings as errors that name the user's line.

`vgpu` and `vgpu:sm_80` name virtual GPUs: the second pretends to be that architecture, the first to be the one that the
program was compiled for. All programs of a process share one device for each architecture. Invariants:

- Every launch runs with the sanitizer (unless the setting `sanitizer` is off); what it finds ends the call: FX0708 (memory),
  FX0709 (races), FX0714 (cooperation), FX0705 (limits).
- A launch is over when `launch` returns, so nothing is ever in flight.
- What a program has on the device goes back when nobody holds the program any more.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxir import config
from fluxir.errors import FluxError, Location, error
from fluxir.runtime.launch import GpuProgram
from fluxir.runtime.vgpu.device import Device
from fluxir.runtime.vgpu.findings import Finding, SanitizerError
from fluxir.runtime.vgpu.launch import Report
from fluxir.runtime.vgpu.profile import KernelProfile, profile

__all__ = ["DEFAULT_TARGET", "VirtualDriver", "architecture", "as_error", "load_program", "shared_device"]

Array = NDArray[Any]
DEFAULT_TARGET = "sm_90"
"""What programs for `vgpu` are compiled for where nothing says otherwise."""

_CODES = {
    **dict.fromkeys(("out-of-bounds", "misaligned", "uninitialised", "use-after-free", "read-only", "leak"), "FX0708"),
    **dict.fromkeys(("shared-race", "global-race"), "FX0709"),
    "limit": "FX0705",
}


def architecture(device: str) -> str | None:
    """`sm_80` for `vgpu:sm_80`, None for `vgpu`."""
    return device.partition(":")[2] or None


@functools.cache
def shared_device(target: str) -> Device:
    """The virtual GPU of this process that is a `target`. FX0501 where that is no target, FX0707 where it is no GPU."""
    return Device(target)


class VirtualDriver:
    """One program's kernels on a virtual GPU. `reports`: what each launch did, in order, while `profiling`."""

    def __init__(self, spec: Mapping[str, Any], ptx: bytes | str, device: Device) -> None:
        """FX0707 where the program is for another architecture, FX0710 and FX0711 where its PTX does not load."""
        self.device, self.name = device, str(spec["name"])
        self.entries: dict[str, Mapping[str, Any]] = {k["name"]: k for k in spec["kernels"]}
        self.ptx = ptx.decode() if isinstance(ptx, bytes | bytearray) else ptx
        self.module = device.load(self.ptx)
        self.live: set[int] = set()
        self.profiling = False
        self.reports: list[Report] = []

    # ---- launch.Driver
    def allocate(self, nbytes: int) -> int:
        with self.device.lock:
            address = self.device.heap.allocate(nbytes, self.name)
            self.live.add(address)
        return address

    def free(self, address: int) -> None:
        with self.device.lock:
            self.live.discard(address)
            self.device.heap.free(address)

    def upload(self, address: int, array: Array) -> None:
        with self.device.lock:
            self.device.heap.write(address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def download(self, array: Array, address: int) -> None:
        """FX0708 where some of the bytes were never written."""
        with self.device.lock:
            missing = self.device.heap.unwritten(address, array.nbytes) if config.get().sanitizer else 0
            if missing:
                raise error("FX0708", f"{self.name}: {missing} of {array.nbytes} bytes of a result were never written")
            array.reshape(-1).view(np.uint8)[:] = self.device.heap.read(address, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """What was not written at `source` is not written at `target` either."""
        with self.device.lock:
            self.device.heap.copy(target, source, nbytes)

    def clear(self, address: int, nbytes: int) -> None:
        with self.device.lock:
            self.device.heap.write(address, np.zeros(nbytes, np.uint8))

    def launch(self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: bytes) -> None:
        check = "raise" if config.get().sanitizer else "off"
        with self.device.lock:
            try:
                report = self.module[kernel].launch_packed(grid, block, parameters, check=check)
            except SanitizerError as found:
                raise as_error(found, self.name, self.entries) from None
            if self.profiling:
                self.reports.append(report)

    def synchronize(self) -> None:
        pass

    def profile(self, registers: Mapping[str, int] | None = None) -> list[KernelProfile]:
        """What the launches in `reports` say about a GPU, by kernel. `registers`: what ptxas says of them, where known."""
        sources = {name: str(e.get("source", "")) for name, e in self.entries.items()}
        kernels = {r.kernel: self.module[r.kernel] for r in self.reports}
        return profile(self.reports, kernels, registers, sources)

    def close(self) -> None:
        """Give back everything the program has on the device."""
        with self.device.lock:
            for address in self.live:
                self.device.heap.free(address)
            self.live.clear()
            self.module.unload()


def load_program(
    spec: Mapping[str, Any], ptx: bytes, constants: Sequence[Array] = (), device: str = "vgpu"
) -> GpuProgram:
    """A GPU program on `vgpu` or `vgpu:sm_80`. FX0707 where it is for another device."""
    if spec["target"].get("kind") != "nvptx":
        raise error("FX0707", f"{spec['name']} was compiled for {spec['target'].get('name')}, which is no GPU")
    own = str(spec["target"]["name"])
    driver = VirtualDriver(spec, ptx, shared_device(architecture(device) or own))
    program = GpuProgram(spec, driver, constants)
    weakref.finalize(program, driver.close).atexit = False
    return program


# ---- findings -----------------------------------------------------------------------------------------------------------


def as_error(found: SanitizerError, program: str, entries: Mapping[str, Mapping[str, Any]]) -> FluxError:
    """The error of a launch's findings: the first names kernel, our op and the user's line, the rest are notes."""
    named = [_named(f, entries) for f in found.findings]
    first, *rest = named
    notes = [f"the kernel is {first.operation}"] if first.operation else []
    if first.text:
        notes.append(f"PTX line {first.line}: {first.text}")
    if first.count > 1:
        notes.append(f"{first.count} threads did it")
    notes += [str(f) for f in rest[:7]]
    if len(rest) > 7:
        notes.append(f"and {len(rest) - 7} more findings")
    who = f", block {first.block}, thread {first.thread}" if first.thread is not None else ""
    return error(
        _CODES.get(first.kind, "FX0714"),
        f"{program}: {first.kind} in the kernel {first.kernel}{who}: {first.message}",
        loc=first.location,
        notes=notes,
    )


def _named(f: Finding, entries: Mapping[str, Mapping[str, Any]]) -> Finding:
    """The finding with what the manifest says of its kernel."""
    entry = entries.get(f.kernel)
    if entry is None:
        return f
    schedule = f" by {entry['schedule']}" if entry.get("schedule") else ""
    return replace(
        f, operation=f"{entry['kernel']}{schedule}", location=f.location or _location(entry.get("source", ""))
    )


def _location(text: str) -> Location | None:
    """`model.py:12:5` or `model.py:12` as a place."""
    found = re.fullmatch(r"(.+?):(\d+)(?::(\d+))?", text)
    return Location(found[1], int(found[2]), int(found[3] or 0)) if found else None
