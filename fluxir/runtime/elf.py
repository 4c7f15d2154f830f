"""Loads relocatable object code into this process: what a linker and a loader do, for the little that we emit.

One anonymous mapping holds all sections, a table of addresses for symbols of the C library, and a jump to each of
them. It is made readable and executable, never writable again where code is, and is never unmapped: pool threads may
be inside. Only ELF64 for this kind of machine is accepted (see relocations.py), and every offset is checked against the
file, but the code itself is run: load only objects whose origin you trust (the cache checks owner and digest, artifacts
their digest).

An instruction cache that is not kept up to date by the processor is by Linux, when it makes memory executable.

Source: System V Application Binary Interface, "Object Files".
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fluxir.errors import FluxError, error
from fluxir.runtime.relocations import MACHINES, Machine
from fluxir.target import host

__all__ = ["Code", "load_object"]

_ALLOC, _TLS = 2, 0x400
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8
_RELOCATION = struct.Struct("<QQq")
_PAGE = mmap.PAGESIZE
_MAX_BYTES = 1 << 30  # of all sections: what lies uninitialised takes no room in the file


@dataclass(frozen=True)
class Code:
    """Loaded code: addresses of its global symbols."""

    symbols: dict[str, int]

    def address(self, name: str) -> int:
        """The address of a function. Raises FX0514 where the object has none of this name."""
        if name not in self.symbols:
            raise error("FX0514", f"the object code has no function {name}")
        return self.symbols[name]


def load_object(data: bytes) -> Code:
    """Load an object file. FX0514 where it is malformed or needs a symbol that the C library does not have."""
    try:
        return _load(data)
    except (struct.error, IndexError, ValueError, OverflowError) as reason:
        raise error("FX0514", f"the object code is malformed: {reason}") from None


@dataclass
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    at: int = -1  # offset in the mapping


def _load(data: bytes) -> Code:
    kind, number = struct.unpack_from("<HH", data, 16)
    here = host().machine
    if data[:7] != b"\x7fELF\x02\x01\x01" or kind != 1 or number not in MACHINES or MACHINES[number].name != here:
        raise _broken(f"it is no relocatable ELF file for {here}")
    machine = MACHINES[number]
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry, count = struct.unpack_from("<HH", data, 0x3A)
    sections = []
    for i in range(count):
        _, kind, flags, _, offset, size, link, info, align, _ = struct.unpack_from(
            "<IIQQQQIIQQ", data, table + i * entry
        )
        if kind != _NOBITS and offset + size > len(data):
            raise _broken("a section lies outside the file")
        sections.append(_Section(kind, flags, offset, size, link, info, max(1, align)))

    # Code and read-only data first, then writable data on pages of its own.
    at = 0
    kept = [s for s in sections if s.flags & _ALLOC and s.kind in (_PROGBITS, _NOBITS)]
    if any(s.flags & _TLS for s in kept):
        raise _broken("it has thread-local data")
    fixed, changing = [s for s in kept if not s.flags & 1], [s for s in kept if s.flags & 1]
    for s in fixed:
        at = -(-at // s.align) * s.align
        s.at, at = at, at + s.size
    raw, names = _symbols(data, sections)
    outside = sorted({name for name, section, _ in raw if section == 0 and name})
    stubs = -(-at // 16) * 16
    slots = stubs + 8 * len(outside)
    writable = -(-(slots + 8 * len(outside)) // _PAGE) * _PAGE
    at = writable
    for s in changing:
        at = -(-at // s.align) * s.align
        s.at, at = at, at + s.size
    length = max(_PAGE, -(-at // _PAGE) * _PAGE)
    if length > _MAX_BYTES or any(s.align & (s.align - 1) or s.align > _PAGE for s in kept):
        raise _broken("its sections are too large or oddly aligned")

    base = _map(length)
    try:
        return _fill(machine, data, sections, kept, raw, names, outside, stubs, slots, writable, base, length)
    except BaseException:
        ctypes.CDLL(None).munmap(ctypes.c_void_p(base), ctypes.c_size_t(length))
        raise


def _fill(
    machine: Machine, data: bytes, sections: list[_Section], kept: list[_Section], raw: list[tuple[str, int, int]],
    names: dict[str, int], outside: list[str], stubs: int, slots: int, writable: int, base: int, length: int,
) -> Code:  # fmt: skip
    """Copy the sections to their places in the mapping, resolve symbols, relocate, and close it to writing."""
    memory = memoryview((ctypes.c_char * length).from_address(base)).cast("B")
    for s in kept:
        if s.kind == _PROGBITS:
            memory[s.at : s.at + s.size] = data[s.offset : s.offset + s.size]
    slot: dict[str, int] = {}
    stub: dict[str, int] = {}
    for i, name in enumerate(outside):
        slot[name], stub[name] = slots + 8 * i, stubs + 8 * i
        struct.pack_into("<Q", memory, slot[name], _outside(name))
        jump = machine.stub(slot[name] - stub[name])
        memory[stub[name] : stub[name] + len(jump)] = jump

    place: list[int] = []  # of each symbol, as an offset in the mapping
    for name, section, value in raw:
        if section == 0:
            place.append(stub.get(name, 0))
        elif section < len(sections) and sections[section].at >= 0:
            place.append(sections[section].at + value)
        else:
            place.append(-1)
    for s in sections:
        if s.kind == _RELA and sections[s.info].at >= 0:
            entries = _RELOCATION.iter_unpack(data[s.offset : s.offset + s.size - s.size % _RELOCATION.size])
            _relocate(machine, memory, base, sections[s.info], entries, raw, place, slot)
    _protect(base, writable, mmap.PROT_READ | mmap.PROT_EXEC)
    return Code({n: base + place[i] for n, i in names.items() if place[i] >= 0})


def _symbols(data: bytes, sections: list[_Section]) -> tuple[list[tuple[str, int, int]], dict[str, int]]:
    """All symbols as (name, section, value), and the index of each defined global one."""
    raw: list[tuple[str, int, int]] = []
    names: dict[str, int] = {}
    for s in sections:
        if s.kind != _SYMTAB:
            continue
        text = sections[s.link]
        for at in range(s.offset, s.offset + s.size, 24):
            name_at, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            start = text.offset + name_at
            name = data[start : data.index(b"\0", start)].decode() if name_at < text.size else ""
            if section == 0 and info >> 4 != 1:
                name = ""
            if section and info >> 4 == 1:
                names[name] = len(raw)
            raw.append((name, section, value))
    return raw, names


def _relocate(
    machine: Machine, memory: memoryview, base: int, section: _Section, entries: Iterator[tuple[int, int, int]],
    raw: list[tuple[str, int, int]], place: list[int], slot: dict[str, int],
) -> None:  # fmt: skip
    """Write the addresses that a section names; there may be thousands, so what is the same for all is done once."""
    within, apply, got, at, size = (
        memory[: section.at + section.size],
        machine.apply,
        machine.got,
        section.at,
        section.size,
    )
    for where, info, addend in entries:
        kind, symbol = info & 0xFFFFFFFF, info >> 32
        if where + 4 > size:
            raise _broken("a relocation lies outside its section")
        target = slot.get(raw[symbol][0], -1) if kind in got else place[symbol]
        if target < 0:
            raise _broken(f"a relocation refers to {raw[symbol][0] or 'a symbol'} in a section that is not loaded")
        apply(within, base, kind, at + where, target + addend)


def _outside(name: str) -> int:
    """The address of a function of the C library."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except AttributeError:
        raise error("FX0514", f"the object code calls {name}, which the C library does not have") from None


def _map(length: int) -> int:
    """Fresh zeroed memory. Not an `mmap` object, which the end of the interpreter would unmap under running threads."""
    c = ctypes.CDLL(None, use_errno=True)
    c.mmap.restype = ctypes.c_void_p
    c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    base = c.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if base is None or base == ctypes.c_void_p(-1).value:
        raise MemoryError(f"no {length} bytes for code")
    return int(base)


def _protect(base: int, length: int, how: int) -> None:
    if not length:
        return
    c = ctypes.CDLL(None, use_errno=True)
    c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if c.mprotect(base, length, how) != 0:
        raise error("FX0514", "the system does not allow this process to make memory executable",
                    help="a security policy (such as SELinux execmem) forbids compiled code in this process")  # fmt: skip


def _broken(what: str) -> FluxError:
    return error("FX0514", f"the object code cannot be loaded: {what}")
