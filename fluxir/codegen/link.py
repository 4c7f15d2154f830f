"""Joins relocatable ELF objects into one: what `ld -r` does, for the little that LLVM makes of our kernels.

Sections of the same name, type and flags are laid behind one another, symbols and relocations follow. A global symbol is
bound by name; locals that are no functions (constants) are replaced by their section. Invariants: works for any 64-bit
little-endian machine with RELA relocations, since these hold all that depends on a section's place; the result depends on
the objects and their order alone; nothing is resolved here, which is the loader's work (runtime/elf.py).

Source: System V Application Binary Interface, "Object Files".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["join_objects"]

_PROGBITS, _SYMTAB, _STRTAB, _RELA, _NOBITS = 1, 2, 3, 4, 8
_ALLOC, _MERGE, _INFO_LINK = 2, 0x30, 0x40
_FUNCTION, _SECTION = 2, 3  # symbol types
_HIDDEN = 2  # a symbol's visibility
_HEADER, _ENTRY, _SYMBOL, _RELOCATION = (
    struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq"),
)  # fmt: skip


@dataclass
class _Out:
    """A section of the result. `index` counts from 1; `relocations` are (offset, symbol, type, addend)."""

    name: bytes
    kind: int
    flags: int
    entry: int
    index: int
    align: int = 1
    size: int = 0
    parts: list[bytes] = field(default_factory=list)
    relocations: list[tuple[int, object, int, int]] = field(default_factory=list)

    def add(self, data: bytes, size: int, align: int) -> int:
        """Append a section's contents; returns where they begin."""
        at = -(-self.size // align) * align
        if self.kind != _NOBITS:
            self.parts += [b"\0" * (at - self.size), data]
        self.size, self.align = at + size, max(self.align, align)
        return at


@dataclass
class _Symbol:
    """A named symbol of the result: `section` is None while nobody has defined it."""

    name: bytes
    info: int
    other: int
    section: _Out | None = None
    value: int = 0
    size: int = 0


def join_objects(objects: Sequence[tuple[bytes, tuple[str, str]]], keep: Mapping[str, str] | None = None) -> bytes:
    """One object of several: each with a pair (old, new): its symbols `old` and `old.*` are called `new` and `new.*`.

    With `keep` the result is to be linked with other people's code: of what it defines only the names in `keep` can be seen
    from outside, under the names that they have there, and only within one program or shared library.
    Raises ValueError where two of them define the same global symbol.
    """
    outs: dict[tuple[bytes, int, int, int], _Out] = {}
    symbols: dict[bytes, _Symbol] = {}
    local: list[_Symbol] = []
    flags = machine = 0
    for data, (old, new) in objects:
        machine, flags = struct.unpack_from("<H", data, 18)[0], struct.unpack_from("<I", data, 48)[0]
        _add(data, old.encode(), new.encode(), outs, symbols, local)
    if keep is not None:
        _close(symbols, local, keep)
    return _written(list(outs.values()), local, list(symbols.values()), machine, flags)


def _close(symbols: dict[bytes, _Symbol], local: list[_Symbol], keep: Mapping[str, str]) -> None:
    """Make local what is defined and not in `keep`, and rename what is."""
    for name, s in list(symbols.items()):
        if s.section is None:
            continue
        shown = keep.get(name.decode())
        if shown is None:
            s.info &= 15  # STB_LOCAL
            local.append(symbols.pop(name))
        else:
            s.name, s.other = shown.encode(), _HIDDEN


def _add(
    data: bytes, old: bytes, new: bytes, outs: dict[tuple[bytes, int, int, int], _Out], symbols: dict[bytes, _Symbol],
    local: list[_Symbol],
) -> None:  # fmt: skip
    (table,) = struct.unpack_from("<Q", data, 0x28)
    count, names_at = struct.unpack_from("<HH", data, 0x3C)
    sections = [_ENTRY.unpack_from(data, table + i * _ENTRY.size) for i in range(count)]

    def text(strings: int, at: int) -> bytes:
        start = sections[strings][4] + at
        return data[start : data.index(b"\0", start)]

    place: dict[int, tuple[_Out, int]] = {}
    for i, (name, kind, flags, _, offset, size, _, _, align, entry) in enumerate(sections):
        if kind in (_PROGBITS, _NOBITS) and (size or not flags & _ALLOC):
            # Not to be merged any more: a linker that merges constants needs a symbol for each of them.
            key = (text(names_at, name), kind, flags & ~_MERGE, 0 if flags & _MERGE else entry)
            if key not in outs:
                outs[key] = _Out(*key, len(outs) + 1)
            place[i] = outs[key], outs[key].add(data[offset : offset + size], size, max(1, align))

    seen: list[tuple[object, int]] = []  # of each symbol: what a relocation names, and what is added to its addend
    for kind, offset, size, link in [(s[1], s[4], s[5], s[6]) for s in sections]:
        if kind != _SYMTAB:
            continue
        for at in range(offset, offset + size, _SYMBOL.size):
            name_at, info, other, section, value, length = _SYMBOL.unpack_from(data, at)
            name = text(link, name_at)
            if name == old or name.startswith(old + b"."):
                name = new + name[len(old) :]
            out, base = place.get(section, (None, 0))
            if info >> 4 == 0:
                if out is not None and info & 15 == _FUNCTION:
                    local.append(_Symbol(name, info, other, out, base + value, length))
                seen.append((out, base + value))
                continue
            s = symbols.setdefault(name, _Symbol(name, info, other))
            if out is not None:
                if s.section is not None:
                    raise ValueError(f"the symbol {name.decode()} is defined twice")
                s.info, s.other, s.section, s.value, s.size = info, other, out, base + value, length
            seen.append((s, 0))
    for kind, offset, size, info in [(s[1], s[4], s[5], s[7]) for s in sections]:
        if kind == _RELA and info in place:
            out, base = place[info]
            for where, which, addend in _RELOCATION.iter_unpack(data[offset : offset + size]):
                target, more = seen[which >> 32]
                out.relocations.append((base + where, target, which & 0xFFFFFFFF, addend + more))


def _written(outs: list[_Out], local: list[_Symbol], named: list[_Symbol], machine: int, flags: int) -> bytes:
    strings = bytearray(b"\0")

    def string(name: bytes) -> int:
        at = len(strings)
        strings.extend(name + b"\0")
        return at

    # Symbols: nothing, one for each section, local functions, then all that have a name.
    table = [_SYMBOL.pack(0, 0, 0, 0, 0, 0)]
    number: dict[int, int] = {}
    for o in outs:
        number[id(o)] = len(table)
        table.append(_SYMBOL.pack(0, _SECTION, 0, o.index, 0, 0))
    for s in [*local, *named]:
        number[id(s)] = len(table)
        where = s.section.index if s.section else 0
        table.append(_SYMBOL.pack(string(s.name), s.info, s.other, where, s.value, s.size))
    first_global = 1 + len(outs) + len(local)

    rows: list[tuple[int, ...]] = [(0,) * 10]
    body = bytearray(_HEADER.size)

    def place(align: int, data: bytes) -> int:
        body.extend(b"\0" * (-len(body) % align))
        at = len(body)
        body.extend(data)
        return at

    for o in outs:
        at = place(o.align, b"".join(o.parts))
        rows.append((string(o.name), o.kind, o.flags, 0, at, o.size, 0, 0, o.align, o.entry))
    symtab = len(outs) + sum(1 for o in outs if o.relocations) + 1
    for o in outs:
        if o.relocations:
            packed = [_RELOCATION.pack(at, number[id(to)] << 32 | kind, add) for at, to, kind, add in o.relocations]
            at = place(8, b"".join(packed))
            size = _RELOCATION.size * len(packed)
            name = string(b".rela" + o.name)
            rows.append((name, _RELA, _INFO_LINK, 0, at, size, symtab, o.index, 8, _RELOCATION.size))
    at = place(8, b"".join(table))
    size = _SYMBOL.size * len(table)
    rows.append((string(b".symtab"), _SYMTAB, 0, 0, at, size, symtab + 1, first_global, 8, _SYMBOL.size))
    name = string(b".strtab")
    rows.append((name, _STRTAB, 0, 0, place(1, bytes(strings)), len(strings), 0, 0, 1, 0))
    at = place(8, b"".join(_ENTRY.pack(*row) for row in rows))
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    sizes = (_HEADER.size, 0, 0, _ENTRY.size, len(rows), len(rows) - 1)
    _HEADER.pack_into(body, 0, ident, 1, machine, 1, 0, 0, at, flags, *sizes)
    return bytes(body)
