"""What compiled code must not contain. Runs on every object before anybody may load it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fluxir import config
from fluxir.errors import error
from fluxir.target import GpuTarget

__all__ = ["ALLOWED", "SassInfo", "assemble", "check_object", "check_ptx", "find_ptxas", "undefined_symbols"]

ALLOWED = frozenset({"memcpy", "memmove", "memset", "aligned_alloc", "free"})
"""Functions of the C library that compiled code may call."""


def undefined_symbols(data: bytes) -> Iterator[str]:
    """Names an ELF64 object refers to and does not define (System V ABI, "Symbol Table")."""
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, entry):
            name, _, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, at)
            if section == 0 and name:
                end = data.index(b"\0", names + name)
                yield data[names + name : end].decode("utf-8", "replace")


def check_object(data: bytes) -> None:
    """FX0514 where the object needs a function that is not `ALLOWED`."""
    wrong = sorted(set(undefined_symbols(data)) - ALLOWED)
    if wrong:
        raise error(
            "FX0514",
            f"the object code calls {', '.join(wrong)}",
            help="this is a defect of fluxir: please report the program",
        )


# ---- PTX ------------------------------------------------------------------------------------------------------------


def check_ptx(ptx: str, target: GpuTarget, local: Mapping[str, int]) -> None:
    """FX0514 where the PTX calls a function it does not hold; FX0503 for a wrong header or a stack nobody asked for.

    `local`: bytes of `local` memory that each kernel's IR asks for.
    """
    external = sorted(
        set(re.findall(r"^\s*\.extern\s+\.func\b[^;]*?\b([\w$]+)\s*\(", ptx, re.M))
        | set(re.findall(r"^\s*\.extern\s+\.func\s+([\w$]+)\s*;", ptx, re.M))
    )
    if external or re.search(r"^\s*\.extern\s+\.func", ptx, re.M):
        raise error(
            "FX0514",
            f"the PTX calls {', '.join(external) or 'an external function'}",
            help="this is a defect of fluxir: please report the program",
        )
    version = re.search(r"^\.version\s+(\S+)", ptx, re.M)
    if version is None or version[1] != target.ptx_version:
        raise error(
            "FX0503",
            f"the PTX says .version {version[1] if version else 'nothing'}, {target.name} needs {target.ptx_version}",
        )
    named = re.search(r"^\.target\s+(\w+)", ptx, re.M)
    if named is None or named[1] != target.name:
        raise error("FX0503", f"the PTX says .target {named[1] if named else 'nothing'} instead of {target.name}")
    entries = re.split(r"^(?:\.visible\s+)?\.entry\s+", ptx, flags=re.M)[1:]
    names = {re.match(r"[\w$]+", e)[0]: e for e in entries}  # type: ignore[index]
    missing = sorted(set(local) - set(names))
    if missing:
        raise error("FX0503", f"the PTX lacks the kernels {', '.join(missing)}")
    for name, body in names.items():
        if "__local_depot" in body and not local.get(name, 0):
            raise error(
                "FX0503",
                f"the kernel {name} uses a stack it did not ask for",
                help="this is a defect of fluxir: please report the program",
            )


@dataclass(frozen=True)
class SassInfo:
    """What ptxas says of one kernel: registers a thread, bytes spilled, static shared memory and stack in bytes."""

    name: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    stack: int


def find_ptxas() -> str:
    """The ptxas program: the setting `ptxas`, NVIDIA's Python wheels, or PATH. FX0511 where there is none."""
    chosen = config.get().ptxas
    if chosen:
        return chosen
    for root in [Path(p) for p in sys.path if p.endswith("site-packages")]:
        for pattern in ("nvidia/cu*/bin/ptxas", "nvidia/cuda_nvcc/bin/ptxas"):
            for found in sorted(root.glob(pattern)):
                return str(found)
    on_path = shutil.which("ptxas")
    if on_path:
        return on_path
    raise error("FX0511", "ptxas was not found", help="pip install nvidia-cuda-nvcc, or set FLUXIR_PTXAS")


def assemble(ptx: str, arch: str) -> list[SassInfo]:
    """Assemble PTX with ptxas for `arch` and report each kernel. FX0506 with ptxas's words where it refuses."""
    with tempfile.TemporaryDirectory(prefix="fluxir-ptxas-") as folder:
        source = Path(folder, "kernels.ptx")
        source.write_text(ptx)
        done = subprocess.run(
            [find_ptxas(), "-arch", arch, "-v", "-o", str(Path(folder, "kernels.cubin")), str(source)],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise error("FX0506", f"ptxas refuses the PTX for {arch}: {done.stderr.strip()[:2000]}")
    out = []
    for part in re.split(r"Compiling entry function '", done.stderr)[1:]:
        name = part.split("'")[0]

        def number(pattern: str, text: str = part) -> int:
            found = re.search(pattern, text)
            return int(found[1]) if found else 0

        facts = [
            "Used (\\d+) registers",
            *[f"(\\d+) bytes {k}" for k in ("spill stores", "spill loads", "smem", "stack frame")],
        ]
        out.append(SassInfo(name, *[number(f) for f in facts]))
    return out
