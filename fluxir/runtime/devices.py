"""Devices by name: `cpu`, `cuda`, `cuda:N`, `vgpu`, `vgpu:sm_80`. What to compile for one, and how to load a program onto one.

This is the only place that tells devices apart. Invariant: a name stands for one device; nothing falls back to another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fluxir import config
from fluxir.errors import error
from fluxir.runtime.choose import choose
from fluxir.target import parse_target

if TYPE_CHECKING:
    from fluxir.runtime.artifact import ArtifactFile
    from fluxir.runtime.launch import GpuProgram
    from fluxir.runtime.program import Program

__all__ = ["check_name", "load_artifact", "load_program", "target_of"]


def check_name(device: str) -> str:
    """`device` itself. FX0902 where it names none, FX0501 and FX0707 where the virtual GPU is of an unknown kind."""
    if not re.fullmatch(config.DEVICE, device):
        raise error("FX0902", f"there is no device {device!r}", help="choose cpu, cuda, cuda:N, vgpu or vgpu:sm_80")
    kind, _, which = device.partition(":")
    if kind == "vgpu" and which:
        parse_target(which)
    return device


def target_of(device: str) -> str:
    """The name of the target to compile for where programs shall run on `device`: for a GPU the newest that it takes."""
    kind, _, which = check_name(device).partition(":")
    if kind == "cpu":
        return "cpu"
    if kind == "vgpu":
        from fluxir.runtime.vgpu.driver import DEFAULT_TARGET

        return which or DEFAULT_TARGET
    from fluxir.runtime import cuda

    return cuda.target_of(device)


def load_program(spec: Mapping[str, Any], code: bytes, constants: Sequence[Any], device: str) -> Program | GpuProgram:
    """A compiled program on a device. FX0703 and FX0707 where it is for another one, and what loading it raises."""
    kind, target = check_name(device).partition(":")[0], spec["target"]
    if kind == "cpu":
        if target["kind"] != "cpu":
            raise error(
                "FX0703",
                f"a program for {target['name']} cannot run on the CPU",
                help="compile with target='cpu', or run it with --device cuda or --device vgpu",
            )
        from fluxir.runtime.program import Program

        return Program(spec, code, constants)
    if target["kind"] == "cpu":
        raise error(
            "FX0707",
            f"{spec['name']} was compiled for {target['name']}, and {device} is a GPU",
            help=f"compile it for {target_of(device)}"
            if kind == "vgpu"
            else "compile it for the device's architecture",
        )
    if kind == "vgpu":
        from fluxir.runtime.vgpu import driver

        return driver.load_program(spec, code, constants, device)
    from fluxir.runtime import cuda

    return cuda.load_program(spec, code, constants, device)


def load_artifact(file: ArtifactFile, device: str | None = None) -> Program | GpuProgram:
    """The program of an artifact that is best for a device. None: the device of the setting, where the file has a program for a
    device of that kind, else the CPU. FX0703, FX0707 and FX0509 where it has none, and what loading it raises."""
    if device is None:
        device = config.get().device
        if device != "cpu" and all(t["kind"] == "cpu" for t in file.targets):
            device = "cpu"
    a = file.part(choose(file.targets, check_name(device), file.shown))
    return load_program(a.spec, a.code, a.constants, device)
