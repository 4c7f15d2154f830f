"""The object file of a CPU bundle: the machine code of all its targets, the thread pool, and the weights where they are
embedded. Only the names in `exported` can be seen by C code, and only within the program or library it is linked into.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fluxir.codegen.link import join_objects
from fluxir.codegen.part import CODE
from fluxir.runtime import native, pool_code, writer

__all__ = ["bundle_object", "code_symbol"]

_NAMES = struct.Struct("<IBBHQQ")


def code_symbol(prefix: str, target: int) -> str:
    """The entry of the code for target number `target`."""
    return f"{prefix}_code_{target}"


def bundle_object(prefix: str, entry: str, codes: Sequence[bytes], machine: str, weights: bytes | None) -> bytes:
    """One relocatable object of the code of each target, which all call their entry `entry`; see the head of this file."""
    objects: list[tuple[bytes, tuple[str, str]]] = []
    keep: dict[str, str] = {}
    for i, code in enumerate(codes):
        name = code_symbol(prefix, i)
        objects.append((join_objects([(code, (CODE, f"{CODE}.{i}"))], {entry: name}), ("", "")))
        keep[name] = name
    objects.append((_pool(machine), ("", "")))
    keep |= {name: f"{prefix}_pool_{name}" for name in ("parallel", "worker", "state")}
    if weights is not None:
        objects.append((_data(weights, machine, "weights"), ("", "")))
        keep["weights"] = f"{prefix}_weights"
    return join_objects(objects, keep)


def _pool(machine: str) -> bytes:
    m = writer.Module(machine)
    data = pool_code.add_pool(m)
    return native.compiled(m, m.text("pool", data))


def _data(content: bytes, machine: str, name: str) -> bytes:
    """An object that holds read-only bytes under a name, at a multiple of 64."""
    number = {"x86_64": 62, "aarch64": 183}[machine]
    strings = b"\0.rodata\0.note.GNU-stack\0.symtab\0.strtab\0" + name.encode() + b"\0"

    def at(text: bytes) -> int:
        return strings.index(b"\0" + text + b"\0") + 1

    body = bytearray(64) + content
    body += b"\0" * (-len(body) % 8)
    symtab = len(body)
    body += _NAMES.pack(0, 0, 0, 0, 0, 0)
    body += _NAMES.pack(at(name.encode()), 1 << 4 | 1, 0, 1, 0, len(content))  # a global object of section 1
    strtab = len(body)
    body += strings
    body += b"\0" * (-len(body) % 8)
    table = len(body)
    for row in (
        (0,) * 10,
        (at(b".rodata"), 1, 2, 0, 64, len(content), 0, 0, 64, 0),
        (at(b".note.GNU-stack"), 1, 0, 0, 64, 0, 0, 0, 1, 0),
        (at(b".symtab"), 2, 0, 0, symtab, 48, 4, 1, 8, 24),
        (at(b".strtab"), 3, 0, 0, strtab, len(strings), 0, 0, 1, 0),
    ):
        body += struct.pack("<IIQQQQIIQQ", *row)
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    struct.pack_into("<16sHHIQQQIHHHHHH", body, 0, ident, 1, number, 1, 0, 0, table, 0, 64, 0, 0, 64, 5, 4)
    return bytes(body)
