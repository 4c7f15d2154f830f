"""The verb ``doctor``: what this installation and this machine can do, and what to do about what they cannot."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click

from .. import config
from ..errors import FluxError, combine, error
from ..runtime.cache import Cache, default_dir
from ..target import host, parse_target
from .common import Output, bytes_text, table, verb
from .versions import PACKAGES, fluxir_version, package_version

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``state``: ``ok``, ``none`` (an optional part is not there) or ``bad`` (needed and
    broken)."""

    what: str
    state: str
    detail: str
    advice: str = ""
    code: str = "FX0911"
    """The error to end with, where ``state`` is ``bad``."""


@verb("doctor", settings=("cache_dir", "device", "sanitizer", "ptxas"), help="Check this installation and machine.")
def command(output: Output) -> None:
    findings = [finding for check in CHECKS for finding in check()]
    data = {"ok": all(f.state != "bad" for f in findings), "findings": [asdict(f) for f in findings]}

    def text() -> str:
        rows = []
        for f in findings:
            color = {"ok": "green", "none": "yellow", "bad": "red"}[f.state]
            rows.append(
                (f.what, click.style(f.state.ljust(4), fg=color), f.detail + (f"; {f.advice}" if f.advice else ""))
            )
        return table(rows)

    output.result(data, text)
    bad = [f for f in findings if f.state == "bad"]
    if not bad:
        return
    problems = [error(f.code, f"{f.what}: {f.detail}", help=f.advice or None) for f in bad]
    raise combine(problems)


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    advice = "" if good else "fluxir needs Python 3.11 or newer"
    return [
        Finding("fluxir", "ok", fluxir_version()),
        Finding("python", "ok" if good else "bad", f"{version} at {sys.executable}", advice),
    ]


def _packages() -> list[Finding]:
    found = []
    for name in PACKAGES:
        version = package_version(name)
        if version is None:
            found.append(Finding(name, "bad", "not installed", f"pip install {name}"))
        elif name != "llvmlite":
            found.append(Finding(name, "ok", version))
    if package_version("llvmlite") is not None:
        found.append(_llvm())
    return found


def _llvm() -> Finding:
    try:
        import llvmlite
        import llvmlite.binding as llvm

        llvm.initialize_all_targets()
        llvm.Target.from_triple("nvptx64-nvidia-cuda")
        llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    except (ImportError, OSError, RuntimeError) as problem:
        return Finding(
            "llvmlite", "bad", f"does not work: {problem}", "reinstall it: pip install --force-reinstall llvmlite"
        )
    number = ".".join(map(str, llvm.llvm_version_info))
    return Finding(
        "llvmlite", "ok", f"{llvmlite.__version__}, LLVM {number}, x86-64 and NVPTX, host {llvm.get_host_cpu_name()}"
    )


def _processor() -> list[Finding]:
    machine = host()
    caches = f"L1 {bytes_text(machine.l1_bytes)}, L2 {bytes_text(machine.l2_bytes)}, L3 {bytes_text(machine.l3_bytes)}"
    threads = Finding("threads", "ok", f"{config.get().threads()} in use, {config.cores()} cores for this process")
    try:
        target = parse_target("cpu")
    except FluxError as problem:
        return [Finding("cpu", "none", problem.message, problem.help or ""), threads]
    detail = f"{machine.model}, {machine.target.removeprefix('cpu:')}, {target.vector_bits}-bit vectors, {caches}"
    return [Finding("cpu", "ok", detail), Finding("features", "ok", " ".join(machine.features)), threads]


def _cache_state() -> list[Finding]:
    cache = Cache(default_dir(), config.get().cache_size)
    try:
        used = cache.size()
        count = len(cache.ls())
        _try_to_write(cache.path)
    except FluxError as problem:
        return [Finding("cache", "bad", problem.message, problem.help or "", problem.code)]
    except OSError as problem:
        return [
            Finding(
                "cache",
                "bad",
                f"{cache.path}: {problem.strerror}",
                "set FLUXIR_CACHE_DIR or FLUXIR_CACHE=off",
                "FX0806",
            )
        ]
    switched = "" if config.get().cache else ", switched off"
    return [
        Finding(
            "cache",
            "ok",
            f"{cache.path}, {count} entries, {bytes_text(used)} of {bytes_text(cache.max_bytes)}{switched}",
        )
    ]


def _try_to_write(path: str) -> None:
    """Create and remove a file in ``path``, or in the nearest directory above it that exists."""
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    with tempfile.TemporaryFile(dir=path) as file:
        file.write(b"fluxir")


def _assembler() -> list[Finding]:
    from ..codegen.checks import find_ptxas

    advice = "optional, checks PTX: pip install nvidia-cuda-nvcc"
    try:
        path = find_ptxas()
    except FluxError as problem:
        if config.get().ptxas is None:
            return [Finding("ptxas", "none", "not found", advice)]
        return [Finding("ptxas", "bad", problem.message, problem.help or "", problem.code)]
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as problem:
        return [Finding("ptxas", "bad", f"{path} does not run: {problem}", advice, "FX0511")]
    version = re.search(r"release ([\d.]+)", told)
    return [Finding("ptxas", "ok", f"{version[1] if version else 'unknown version'} at {path}")]


def _gpu() -> list[Finding]:
    wanted = config.get().device.startswith("cuda")
    driver_name = "device" if wanted else "cuda driver"
    pycuda = package_version("pycuda")
    missing = "bad" if wanted else "none"
    found = []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_int()
        status = driver.cuDriverGetVersion(ctypes.byref(number))
        count = ctypes.c_int()
        status = status or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        advice = "only GPUs need NVIDIA's driver"
        found.append(Finding(driver_name, missing, "no CUDA driver (libcuda.so.1)", advice, "FX0701"))
    else:
        version = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
        if status or not count.value:
            detail = f"{version}, no usable GPU (status {status})"
            found.append(Finding(driver_name, missing, detail, "`nvidia-smi` tells more", "FX0701"))
        else:
            found.append(Finding("cuda driver", "ok", f"{version}, {count.value} devices"))
    if pycuda is None:
        advice = "optional, runs on GPUs: pip install 'fluxir[cuda]'"
        found.append(Finding("device" if wanted else "pycuda", missing, "PyCUDA is not installed", advice, "FX0702"))
    else:
        found.append(Finding("pycuda", "ok", pycuda))
    return found


_PROBE = """.version 7.0
.target sm_80
.address_size 64
.visible .entry probe(.param .u64 out) { .reg .b64 %a; ld.param.u64 %a, [out]; st.global.u32 [%a], 42; ret; }
"""


def _virtual_gpu() -> list[Finding]:
    """Run a kernel of one thread on the virtual GPU, as the architecture that the setting `device` names."""
    from ..runtime.vgpu import Device
    from ..runtime.vgpu.isa import opcodes

    device = config.get().device
    target = device.partition(":")[2] if device.startswith("vgpu:") else "sm_90"
    name = "device" if device.startswith("vgpu") else "virtual gpu"
    try:
        gpu = Device(target, 1 << 20)
        out = gpu.zeros(1, "uint32")
        gpu.load(_PROBE)["probe"].launch(1, 1, [out])
    except FluxError as problem:
        return [Finding(name, "bad", problem.message, problem.help or "", problem.code)]
    if int(out.numpy()[0]) != 42:
        return [Finding(name, "bad", "a kernel's result is wrong", "please report this", "FX0911")]
    return [
        Finding(
            name,
            "ok",
            f"{target}, {len(opcodes())} PTX instructions, sanitizer {'on' if config.get().sanitizer else 'off'}",
        )
    ]


def _settings() -> list[Finding]:
    now = config.get()
    changed = [f"{n}={getattr(now, n)}" for n, s in config.SETTINGS.items() if getattr(now, n) != s.default]
    return [Finding("settings", "ok", ", ".join(changed) or "all at their defaults")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python, _packages, _processor, _cache_state, _assembler, _gpu, _virtual_gpu, _settings,
)  # fmt: skip
