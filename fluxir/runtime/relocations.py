"""How object code of each machine refers to addresses: relocations, and jumps to functions that are far away.

A relocation writes into `memory` at `at`, from `target` (both offsets in the mapping) and the address `base` of the mapping,
which lies on a page of 4 KiB. It raises ValueError where a distance does not fit or the type is not known.

Sources: System V Application Binary Interface, AMD64 supplement, table "Relocation Types"; ELF for the Arm 64-bit
Architecture, section "Relocation".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MACHINES", "Machine"]


@dataclass(frozen=True)
class Machine:
    """A kind of machine. `apply(memory, base, kind, at, target)` relocates; `got` are types that refer to the slot that
    holds a symbol's address, in place of the symbol; `stub(distance)` is a jump through the slot at that distance."""

    name: str
    apply: Callable[[memoryview, int, int, int, int], None]
    got: frozenset[int]
    stub: Callable[[int], bytes]


def _x86(memory: memoryview, base: int, kind: int, at: int, target: int) -> None:
    match kind:
        case 1:  # R_X86_64_64
            struct.pack_into("<Q", memory, at, (base + target) & (2**64 - 1))
        case 24:  # PC64
            struct.pack_into("<q", memory, at, target - at)
        case 2 | 4 | 9 | 41 | 42:  # PC32, PLT32 and the kinds of GOTPCREL
            struct.pack_into("<i", memory, at, target - at)
        case _:
            raise ValueError(f"it has a relocation of type {kind}")


_LOW_SHIFTS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4, 312: 3}
"""Of relocations of the low 12 bits of an address, by how much the instruction counts in larger units."""


def _arm(memory: memoryview, base: int, kind: int, at: int, target: int) -> None:
    def patch(mask: int, bits: int) -> None:
        (old,) = struct.unpack_from("<I", memory, at)
        struct.pack_into("<I", memory, at, old & ~mask | bits)

    def near(distance: int, bits: int) -> int:
        if not -(1 << bits - 1) <= distance < 1 << bits - 1:
            raise ValueError("a distance is too large")
        return distance & (1 << bits) - 1

    match kind:
        case 257:  # ABS64
            struct.pack_into("<Q", memory, at, (base + target) & (2**64 - 1))
        case 260:  # PREL64
            struct.pack_into("<q", memory, at, target - at)
        case 261:  # PREL32
            struct.pack_into("<i", memory, at, target - at)
        case 282 | 283:  # JUMP26, CALL26
            patch(0x3FFFFFF, near(target - at >> 2, 26))
        case 279 | 280:  # TSTBR14, CONDBR19
            bits = 14 if kind == 279 else 19
            patch((1 << bits) - 1 << 5, near(target - at >> 2, bits) << 5)
        case 274 | 275 | 311:  # ADR_PREL_LO21, ADR_PREL_PG_HI21, ADR_GOT_PAGE
            distance = near(target - at if kind == 274 else (target >> 12) - (at >> 12), 21)
            patch(0x60FFFFE0, (distance & 3) << 29 | distance >> 2 << 5)
        case _ if kind in _LOW_SHIFTS:
            shift = _LOW_SHIFTS[kind]
            if target & (1 << shift) - 1:
                raise ValueError("an address is not aligned")
            patch(0xFFF << 10, (target & 0xFFF) >> shift << 10)
        case _:
            raise ValueError(f"it has a relocation of type {kind}")


def _x86_stub(distance: int) -> bytes:
    """`jmp *distance(%rip)`; the distance is that from the stub."""
    return b"\xff\x25" + struct.pack("<i", distance - 6)


def _arm_stub(distance: int) -> bytes:
    """`ldr x16, distance` and `br x16`."""
    if not 0 <= distance < 1 << 20:
        raise ValueError("too many functions of the C library")
    return struct.pack("<II", 0x58000010 | distance >> 2 << 5, 0xD61F0200)


MACHINES = {
    62: Machine("x86_64", _x86, frozenset({9, 41, 42}), _x86_stub),
    183: Machine("aarch64", _arm, frozenset({311, 312}), _arm_stub),
}
"""By the machine's number in an ELF file."""
