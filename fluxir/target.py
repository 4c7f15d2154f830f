"""Owns what a compile target is: its name, its instruction set, and the sizes that schedules are chosen by.

Names are ``cpu`` (this machine), ``cpu:native`` (the same), ``cpu:x86-64-v1`` to ``-v4``, ``cpu:aarch64+neon``, ``+sve``,
``+sve256`` and ``+sve512``, and ``sm_70`` to ``sm_121`` with the suffixes ``a`` and ``f`` where NVIDIA defines them. Invariants:
a target is a frozen value; two targets that compare equal get the same code; everything code generation may depend on is in
`Target.fingerprint`. The host is read from /proc and /sys and not through LLVM, so that a cache hit never pays for
loading a compiler. This is a leaf: it imports only ``errors``.

Sources: x86-64 levels from the x86-64 psABI, section 3.1.1. AArch64's vector registers from the Arm Architecture Reference
Manual, A1.4; the cache sizes of its named targets are those of Arm's Neoverse N1 and V1. GPU limits from the CUDA C++
Programming Guide, table "Technical Specifications per Compute Capability". PTX versions from the PTX ISA, section "Release
Notes" (a test compares them with what LLVM writes).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

from .errors import FluxError, error

__all__ = ["CpuTarget", "GpuTarget", "Host", "Target", "all_targets", "host", "parse_target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What both kinds of target have: the canonical name, LLVM's name of the processor, and its feature names."""

    name: str
    kind: Literal["cpu", "nvptx"]
    triple: str
    llvm_cpu: str
    features: tuple[str, ...]
    """Sorted. For a CPU LLVM's names without ``+``, such as ``avx2``; for a GPU ours, such as ``cp.async``
    (`GPU_FEATURES`)."""
    vector_bits: int
    """Width in bits of the widest vector register (CPU) or of the widest single load of one thread (GPU)."""

    def has(self, feature: str) -> bool:
        """Whether the target has ``feature``."""
        return feature in self.features

    def fingerprint(self) -> str:
        """All that generated code may depend on, as one line of text: a part of every cache key."""
        return " ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.compare)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTarget(Target):
    """An x86-64 or AArch64 processor. ``native`` says that it is this machine, whose LLVM name code generation asks LLVM for."""

    kind: Literal["cpu", "nvptx"] = "cpu"
    triple: str = "x86_64-unknown-linux-gnu"
    native: bool = False
    vector_registers: int = 16
    cache_line: int = 64
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024
    l3_bytes: int = 8 * 1024 * 1024
    """Data cache sizes, of one core for L1 and L2, of the whole package for L3."""

    @property
    def machine(self) -> str:
        """The architecture as LLVM and Linux name it: ``x86_64`` or ``aarch64``."""
        return self.triple.partition("-")[0]

    def has(self, feature: str) -> bool:
        """Whether the target has ``feature``, or the ability of that name (`ABILITIES`)."""
        return feature in self.features or any(f in self.features for f in ABILITIES.get(feature, ()))

    def lanes(self, bits: int) -> int:
        """How many elements of ``bits`` bits one vector register holds (at least 1)."""
        return max(1, self.vector_bits // bits)

    def missing_on(self, machine: Host) -> tuple[str, ...]:
        """Features that code for this target uses and ``machine`` lacks; empty where the code can run."""
        return tuple(f for f in self.features if f not in machine.features)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTarget(Target):
    """An NVIDIA GPU architecture. Sizes are in bytes and in 32-bit registers."""

    kind: Literal["cpu", "nvptx"] = "nvptx"
    triple: str = "nvptx64-nvidia-cuda"
    vector_bits: int = 128
    sm: int
    """The compute capability as NVIDIA writes it in names: 80 for 8.0, 120 for 12.0."""
    variant: Literal["", "a", "f"] = ""
    ptx_version: str
    """The lowest PTX ISA version that knows the target: it goes into ``.version``, and older drivers can load it."""
    warp: int = 32
    max_threads_per_block: int = 1024
    max_threads_per_sm: int
    max_blocks_per_sm: int
    max_block: tuple[int, int, int] = (1024, 1024, 64)
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    shared_static: int = 48 * 1024
    """Shared memory a block may declare statically; more must be asked for dynamically, up to ``shared_per_block``."""
    shared_per_block: int
    shared_per_sm: int
    registers_per_sm: int = 65536
    registers_per_thread: int = 255

    @property
    def capability(self) -> tuple[int, int]:
        """(major, minor), such as (9, 0)."""
        return divmod(self.sm, 10)

    @property
    def llvm_features(self) -> str:
        """The feature string LLVM wants, which fixes the PTX version: ``+ptx78``."""
        return "+ptx" + self.ptx_version.replace(".", "")

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of ``capability`` can load this PTX: plain targets on newer ones too, ``a`` only on the same
        one, ``f`` within the family (same major number)."""
        if self.variant == "a":
            return capability == self.capability
        if self.variant == "f":
            return capability[0] == self.capability[0] and capability >= self.capability
        return capability >= self.capability


ABILITIES: dict[str, tuple[str, ...]] = {
    "fma": ("fma", "neon"),
    "half": ("f16c", "neon"),
    "round": ("sse4.1", "neon"),
}
"""What code for a CPU asks for, with the features of which each brings it: multiply and add in one rounding, conversion
between f16 and f32, rounding to an integer in a given direction."""

GPU_FEATURES: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    # feature, lowest sm, major versions whose `a` variants alone have it (empty: every architecture from there on)
    ("mma.f16", 70, ()),
    ("ldmatrix", 75, ()),
    ("mma.int8", 75, ()),
    ("bf16", 80, ()),
    ("mma.bf16", 80, ()),
    ("mma.tf32", 80, ()),
    ("mma.f64", 80, ()),
    ("cp.async", 80, ()),
    ("redux.sync", 80, ()),
    ("mma.fp8", 89, ()),
    ("cluster", 90, ()),
    ("tma", 90, ()),
    ("bf16.add", 90, ()),
    ("wgmma", 90, (9,)),
    ("tcgen05", 100, (10, 11)),
)
"""Hardware abilities that templates ask for, each with the first architecture that has it."""

# sm: (PTX version, threads per SM, blocks per SM, shared KiB per SM, shared KiB per block, {variant: PTX version})
_GPUS: dict[int, tuple[str, int, int, int, int, dict[str, str]]] = {
    70: ("6.0", 2048, 32, 96, 96, {}),
    72: ("6.1", 2048, 32, 96, 96, {}),
    75: ("6.3", 1024, 16, 64, 64, {}),
    80: ("7.0", 2048, 32, 164, 163, {}),
    86: ("7.1", 1536, 16, 100, 99, {}),
    87: ("7.4", 1536, 16, 164, 163, {}),
    89: ("7.8", 1536, 24, 100, 99, {}),
    90: ("7.8", 2048, 32, 228, 227, {"a": "8.0"}),
    100: ("8.6", 2048, 32, 228, 227, {"a": "8.6", "f": "8.8"}),
    103: ("8.8", 2048, 32, 228, 227, {"a": "8.8", "f": "8.8"}),
    110: ("9.0", 1536, 24, 228, 227, {"a": "9.0", "f": "9.0"}),
    120: ("8.7", 1536, 24, 100, 99, {"a": "8.7", "f": "8.8"}),
    121: ("8.8", 1536, 24, 100, 99, {"a": "8.8", "f": "8.8"}),
}

_LEVELS: dict[int, tuple[str, ...]] = {
    1: ("sse", "sse2"),
    2: ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"),
    3: ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    4: ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
}
_SVE = ("dotprod", "fullfp16", "lse", "neon", "sve")
_ARM: dict[str, tuple[str, ...]] = {
    "neon": ("neon",),
    "sve": _SVE,
    "sve256": (*_SVE, "sve256"),
    "sve512": (*_SVE, "sve512"),
}
"""Features of the AArch64 targets by name. ``sve256`` says that the registers have exactly this many bits; without such a word
code uses the 128 bits that all of them have."""
_ARM_BITS = {"lse": 8, "fullfp16": 10, "dotprod": 20, "sve": 22}  # of Linux's AT_HWCAP
_BEYOND = ("amx-bf16", "amx-int8", "amx-tile", "avx512bf16", "avx512fp16", "avx512vnni", "avxvnni")
# Linux writes some features under other names than LLVM.
_LINUX_NAMES = {
    "abm": "lzcnt", "amx_bf16": "amx-bf16", "amx_int8": "amx-int8", "amx_tile": "amx-tile", "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16", "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni", "bmi1": "bmi", "lahf_lm": "sahf",
    "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine is. ``features`` carries LLVM's names, of those that code generation makes use of."""

    model: str
    machine: str
    features: tuple[str, ...]
    level: int
    """The highest x86-64 level (1 to 4) all of whose features are there; 0 on another architecture."""
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int

    @property
    def target(self) -> str:
        """The named target that is nearest to this machine; empty where there is none."""
        if self.level:
            return f"cpu:x86-64-v{self.level}"
        found = [name for name, needs in _ARM.items() if set(needs) <= set(self.features)]
        return f"cpu:aarch64+{found[-1]}" if found else ""


@cache
def host() -> Host:
    """This machine, read once. What /proc or /sys do not say is taken from the weakest x86-64 there is."""
    machine = os.uname().machine if hasattr(os, "uname") else "unknown"
    model, flags = _cpuinfo()
    features: set[str] = set()
    level = 0
    if machine in ("x86_64", "amd64"):
        machine = "x86_64"
        known = {name for names in _LEVELS.values() for name in names} | set(_BEYOND)
        features = ({_LINUX_NAMES.get(flag, flag) for flag in flags} & known) | set(_LEVELS[1])
        level = 1
        while level < 4 and features.issuperset(_LEVELS[level + 1]):
            level += 1
    elif machine in ("aarch64", "arm64"):
        machine = "aarch64"
        features = {"neon"} | {name for name, bit in _ARM_BITS.items() if _capabilities() >> bit & 1}
        if "sve" in features:
            features.add(f"sve{_sve_bits()}")
    sizes = _cache_sizes()
    l1, l2, l3 = sizes.get(1, 32 * 1024), sizes.get(2, 512 * 1024), sizes.get(3, 8 * 1024 * 1024)
    return Host(model, machine, tuple(sorted(features)), level, l1, l2, l3)


def parse_target(name: str) -> Target:
    """The target called ``name``; see the head of this file for the names.

    Raises FX0501 for a name that is no target, FX0509 for ``cpu`` where this machine is neither x86-64 nor AArch64.
    """
    text = name.strip()
    if text in ("cpu", "cpu:native"):
        return _native()
    found = re.fullmatch(r"cpu:x86-64-v([1-4])", text)
    if found:
        return _level(int(found[1]))
    found = re.fullmatch(r"cpu:aarch64\+(\w+)", text)
    if found and found[1] in _ARM:
        return _arm(found[1])
    found = re.fullmatch(r"sm_(\d{2,3})([af]?)", text)
    if found:
        sm, variant = int(found[1]), found[2]
        if sm in _GPUS and (not variant or variant in _GPUS[sm][5]):
            return _gpu(sm, variant)
    raise _unknown(name)


def all_targets() -> list[Target]:
    """Every target by name, CPUs first; ``cpu`` itself only where this machine is one we compile for."""
    native: list[Target] = [_native()] if host().target else []
    cpus: list[Target] = [*(_level(n) for n in _LEVELS), *(_arm(name) for name in _ARM)]
    gpus: list[Target] = [_gpu(sm, variant) for sm, row in _GPUS.items() for variant in ("", *row[5])]
    return native + cpus + gpus


@cache
def _native() -> CpuTarget:
    machine = host()
    if not machine.target:
        raise error(
            "FX0509",
            f"this machine is {machine.machine}, and fluxir compiles CPU code for x86-64 and AArch64",
            help="compile for a named target such as cpu:x86-64-v3 or sm_90 and run the artifact there",
        )
    arm = not machine.level
    return CpuTarget(
        name="cpu", native=True, triple=f"{machine.machine}-unknown-linux-gnu", llvm_cpu="native", features=machine.features,
        vector_bits=_vector_bits(machine.features),
        vector_registers=32 if arm or "avx512f" in machine.features else 16, l1_bytes=machine.l1_bytes,
        l2_bytes=machine.l2_bytes, l3_bytes=machine.l3_bytes,
    )  # fmt: skip


@cache
def _arm(name: str) -> CpuTarget:
    return CpuTarget(
        name=f"cpu:aarch64+{name}", triple="aarch64-unknown-linux-gnu", llvm_cpu="generic", features=_ARM[name],
        vector_bits=_vector_bits(_ARM[name]), vector_registers=32,
        l1_bytes=64 * 1024, l2_bytes=1024 * 1024, l3_bytes=32 * 1024 * 1024,
    )  # fmt: skip


@cache
def _level(level: int) -> CpuTarget:
    features = tuple(sorted(name for n in range(1, level + 1) for name in _LEVELS[n]))
    return CpuTarget(
        name=f"cpu:x86-64-v{level}", llvm_cpu="x86-64" if level == 1 else f"x86-64-v{level}", features=features,
        vector_bits=_vector_bits(features), vector_registers=32 if level == 4 else 16,
    )  # fmt: skip


@cache
def _gpu(sm: int, variant: str) -> GpuTarget:
    version, threads, blocks, shared_sm, shared_block, variants = _GPUS[sm]
    assert variant == "" or variant in variants
    features = tuple(
        sorted(f for f, low, only in GPU_FEATURES if (sm // 10 == low // 10 and variant == "a" if only else sm >= low))
    )
    return GpuTarget(
        name=f"sm_{sm}{variant}", llvm_cpu=f"sm_{sm}{variant}", features=features, sm=sm,
        variant="a" if variant == "a" else "f" if variant == "f" else "", ptx_version=variants.get(variant, version),
        max_threads_per_sm=threads, max_blocks_per_sm=blocks,
        shared_per_block=shared_block * 1024, shared_per_sm=shared_sm * 1024,
        shared_static=min(48, shared_block) * 1024,
    )  # fmt: skip


def _vector_bits(features: Iterable[str]) -> int:
    names = set(features)
    wide = 512 if names.issuperset(_LEVELS[4]) or "sve512" in names else 128
    return max(wide, 256 if names & {"avx2", "sve256"} else 128)


def _cpuinfo() -> tuple[str, set[str]]:
    """The processor's name and Linux feature flags, which already leave out what the kernel does not enable."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return "unknown", set()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", text, re.MULTILINE)
    return (model[1].strip() if model else "unknown"), set(flags[1].split() if flags else ())


def _capabilities() -> int:
    """What Linux says that an AArch64 processor has beyond the base (getauxval, AT_HWCAP)."""
    import ctypes

    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return int(ask(16))


def _sve_bits() -> int:
    """The length of SVE's registers in this process (prctl, PR_SVE_GET_VL)."""
    import ctypes

    return 8 * (int(ctypes.CDLL(None).prctl(51)) & 0xFFFF)


def _cache_sizes() -> dict[int, int]:
    """Data cache bytes by level, as the kernel reports them for the first core."""
    sizes: dict[int, int] = {}
    root = "/sys/devices/system/cpu/cpu0/cache"
    for index in range(8):
        try:
            facts = [_read(f"{root}/index{index}/{name}") for name in ("type", "level", "size")]
        except OSError:
            break
        found = re.fullmatch(r"(\d+)([KMG]?)", facts[2])
        if facts[0] in ("Data", "Unified") and facts[1].isdigit() and found:
            sizes[int(facts[1])] = int(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
    return sizes


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(4096).strip()


def _unknown(name: str) -> FluxError:
    import difflib

    names = [
        "cpu",
        *(f"cpu:x86-64-v{n}" for n in _LEVELS),
        *(f"cpu:aarch64+{name}" for name in _ARM),
        *(f"sm_{sm}{v}" for sm, row in _GPUS.items() for v in ("", *row[5])),
    ]
    near = difflib.get_close_matches(name.strip(), names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    if name.strip() in ("cuda", "gpu", "nvptx"):
        hint = "name the GPU's architecture, such as sm_80 (A100), sm_89 (RTX 40xx) or sm_90 (H100). "
    return error("FX0501", f"there is no target {name!r}", help=f"{hint}`fluxir targets` lists all: {', '.join(names)}")
