"""How C code finds out whether a processor has what a target's code uses. Names are LLVM's, as in `fluxir/target.py`.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID; volume 1, 13.3 (XCR0); AMD64
Architecture Programmer's Manual, volume 3, appendix E; Linux, Documentation/arch/arm64/elf_hwcaps.rst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxir.errors import error

__all__ = ["feature_rows", "feature_source"]

_EAX, _EBX, _ECX, _EDX = range(4)
# feature: (leaf, subleaf, register, bit, bits of XCR0 that the system must have set)
_YMM, _ZMM, _TILE = 0x6, 0xE6, 0x60000
_X86: dict[str, tuple[int, int, int, int, int]] = {
    "sse": (1, 0, _EDX, 25, 0), "sse2": (1, 0, _EDX, 26, 0), "sse3": (1, 0, _ECX, 0, 0), "ssse3": (1, 0, _ECX, 9, 0),
    "cx16": (1, 0, _ECX, 13, 0), "sse4.1": (1, 0, _ECX, 19, 0), "sse4.2": (1, 0, _ECX, 20, 0),
    "movbe": (1, 0, _ECX, 22, 0), "popcnt": (1, 0, _ECX, 23, 0), "fma": (1, 0, _ECX, 12, _YMM),
    "avx": (1, 0, _ECX, 28, _YMM), "f16c": (1, 0, _ECX, 29, _YMM), "bmi": (7, 0, _EBX, 3, 0), "bmi2": (7, 0, _EBX, 8, 0),
    "avx2": (7, 0, _EBX, 5, _YMM), "avx512f": (7, 0, _EBX, 16, _ZMM), "avx512dq": (7, 0, _EBX, 17, _ZMM),
    "avx512cd": (7, 0, _EBX, 28, _ZMM), "avx512bw": (7, 0, _EBX, 30, _ZMM), "avx512vl": (7, 0, _EBX, 31, _ZMM),
    "avx512vnni": (7, 0, _ECX, 11, _ZMM), "avx512fp16": (7, 0, _EDX, 23, _ZMM), "amx-bf16": (7, 0, _EDX, 22, _TILE),
    "amx-tile": (7, 0, _EDX, 24, _TILE), "amx-int8": (7, 0, _EDX, 25, _TILE), "avxvnni": (7, 1, _EAX, 4, _YMM),
    "avx512bf16": (7, 1, _EAX, 5, _ZMM), "sahf": (0x80000001, 0, _ECX, 0, 0), "lzcnt": (0x80000001, 0, _ECX, 5, 0),
}  # fmt: skip
_ARM = {"neon": 1, "lse": 8, "fullfp16": 10, "dotprod": 20, "sve": 22}  # bits of AT_HWCAP
_ARM_BYTES = {"sve256": 32, "sve512": 64}  # the length that a register must have exactly


def feature_rows(machine: str, features: Sequence[str]) -> str:
    """The initialiser of a target's list of `struct feature`. FX0509 for a feature that cannot be asked for."""
    arm = {f: (bit, 0) for f, bit in _ARM.items()} | {f: (-1, n) for f, n in _ARM_BYTES.items()}
    known: Mapping[str, tuple[int, ...]] = _X86 if machine == "x86_64" else arm
    unknown = [f for f in features if f not in known]
    if unknown:
        raise error(
            "FX0509", f"C code cannot ask a processor for {', '.join(unknown)}", help="compile for another target"
        )
    return ", ".join("{" + ", ".join(f"{v:#x}" if v > 255 else str(v) for v in known[f]) + "}" for f in features)


def feature_source(machine: str) -> str:
    """The C text that defines `struct feature` and `has_feature`."""
    return _X86_SOURCE if machine == "x86_64" else _ARM_SOURCE


_X86_SOURCE = """\
#include <cpuid.h>

struct feature {
    unsigned leaf, subleaf;
    int reg, bit;
    uint64_t state; /* what the system must keep of a thread: bits of XCR0 */
};

static int has_feature(const struct feature *f)
{
    unsigned r[4] = {0, 0, 0, 0};
    if (f->state) {
        unsigned lo, hi;
        if (!__get_cpuid_count(1, 0, &r[0], &r[1], &r[2], &r[3]) || !(r[2] >> 27 & 1)) return 0;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        if (((((uint64_t)hi << 32) | lo) & f->state) != f->state) return 0;
    }
    if (f->leaf == 7 && f->state == 0x60000) syscall(SYS_arch_prctl, 0x1023, 18); /* tiles are given to who asks */
    if (!__get_cpuid_count(f->leaf, f->subleaf, &r[0], &r[1], &r[2], &r[3])) return 0;
    return r[f->reg] >> f->bit & 1;
}
"""

_ARM_SOURCE = """\
#include <sys/auxv.h>
#include <sys/prctl.h>

struct feature {
    int bit, bytes; /* of AT_HWCAP; else the length that a vector register must have */
};

static int has_feature(const struct feature *f)
{
    if (f->bit >= 0) return getauxval(AT_HWCAP) >> f->bit & 1;
    return (prctl(51 /* PR_SVE_GET_VL */) & 0xffff) == f->bytes;
}
"""
