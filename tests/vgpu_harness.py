"""Programs of ours on the virtual GPU, from the PTX text that we emit, with the sanitizer on.

`loaded(module, target)` compiles and loads, `on_vgpu(module, arrays, target)` also runs. A device of its own for each program:
what one leaves in memory is no other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxir import driver
from fluxir.ir.core import Module
from fluxir.runtime.launch import GpuProgram
from fluxir.runtime.vgpu import Device
from fluxir.runtime.vgpu.driver import VirtualDriver

CAPACITY = 1 << 30


def loaded(module: Module, target: str = "sm_80", passes: str | None = None) -> GpuProgram:
    """A tensor module compiled to PTX and loaded on a virtual GPU."""
    t = driver.as_target(target)
    code = driver.generate(driver.build(module, t, passes=passes).stages["loops"], t)
    return GpuProgram(code.spec, VirtualDriver(code.spec, code.ptx, Device(target, CAPACITY)), code.constants)


def on_vgpu(module: Module, arrays: Sequence[Any], target: str = "sm_80", passes: str | None = None) -> list[Any]:
    """The results; whatever the sanitizer finds is raised. Nothing may be left on the device but arena and constants."""
    program = loaded(module, target, passes)
    results = program.call_flat(list(arrays))
    program.close()
    left = program.driver.device.leaks()  # type: ignore[attr-defined]
    assert not left, left
    return results
