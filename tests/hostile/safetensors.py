"""Safetensors files whose header lies about what follows."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

from tests.hostile import add


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: object, end: object, shape: object = (2,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def declare(name: str, attacks: str, data: bytes) -> None:
    def write(folder: Path) -> Path:
        (path := folder / "file.safetensors").write_bytes(data)
        return path

    add(name, attacks, "FX0809", ".safetensors", write)


declare("empty", "No bytes at all.", b"")
declare("short", "Less than the length of the header takes.", b"\1\0\0\0\0\0\0")
declare(
    "header_of_exabytes",
    "A header of 2^63 bytes: whoever makes room for it has none.",
    packed({}, length=(1 << 63) - 1),
)
declare("header_beyond", "A header longer than the file.", packed({}, length=1000))
declare("header_wraps", "A length that is small again when 8 is added to it.", packed({}, length=(1 << 64) - 8))
declare("no_table", "A header that is a list.", packed([1]))
declare("no_json", "A header that Python would take.", packed(b"{'a': __import__('os')}"))
declare("nested", "Lists in lists, a hundred thousand deep.", packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
declare(
    "many_digits",
    "A number of a million digits.",
    packed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,8]}}'),
)
declare(
    "infinite", "A number without an end.", packed(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}')
)
declare(
    "one_name_twice",
    "Two tensors of one name, of which readers take different ones.",
    packed(
        b'{"a":' + json.dumps(entry(0, 8)).encode() + b',"a":' + json.dumps(entry(8, 16)).encode() + b"}", bytes(16)
    ),
)
declare("overlap", "Two tensors in the same bytes.", packed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)))
declare(
    "gap",
    "Bytes that belong to nobody, to hide something in.",
    packed({"a": entry(0, 8), "b": entry(16, 24)}, bytes(24)),
)
declare("rest", "Bytes behind the last tensor.", packed({"a": entry(0, 8)}, bytes(100)))
declare("beyond", "A tensor that reaches beyond the file.", packed({"a": entry(0, 1 << 40, (1 << 38,))}, bytes(8)))
declare("backwards", "An end before its beginning.", packed({"a": entry(8, 0, (-2,))}, bytes(8)))
declare("negative", "Bytes before the data: the header itself.", packed({"a": entry(-8, 0)}, bytes(8)))
declare("product_overflows", "A shape whose product is 0 in 64 bits.", packed({"a": entry(0, 0, (1 << 32, 1 << 32))}))
declare("empty_but_huge", "No elements, and sizes that overflow.", packed({"a": entry(0, 0, (0, 1 << 62, 1 << 62))}))
declare("thousand_axes", "More axes than arrays have.", packed({"a": entry(0, 4, [1] * 1000)}, bytes(4)))
declare(
    "true_for_one",
    "A size that is a truth value, which Python takes for 1.",
    packed({"a": entry(0, 4, [True])}, bytes(4)),
)
declare("fraction", "A size that is no integer.", packed({"a": entry(0, 8, [2.0])}, bytes(8)))
declare("unknown_dtype", "A dtype that numpy would make objects of.", packed({"a": entry(0, 8, (1,), "O")}, bytes(8)))
declare("dtype_of_another_kind", "A dtype that is a list.", packed({"a": entry(0, 8, (2,), ["F32"])}, bytes(8)))
declare("more_keys", "A key that nobody knows.", packed({"a": {**entry(0, 8), "__class__": "x"}}, bytes(8)))
declare("metadata_of_objects", "Metadata that is no table of texts.", packed({"__metadata__": {"a": {"b": 1}}}))
declare(
    "half_a_character",
    "A name that cannot be written.",
    packed(b'{"\\ud800":' + json.dumps(entry(0, 8)).encode() + b"}", bytes(8)),
)
declare("neither_true_nor_false", "A truth value that is 2.", packed({"a": entry(0, 1, (1,), "BOOL")}, b"\2"))
declare(
    "control_characters",
    "A name that commands the terminal which shows it.",
    packed({"\x1b[2J": entry(0, 9)}, bytes(8)),
)


def pipe(folder: Path) -> Path:
    import os

    os.mkfifo(path := folder / "file.safetensors")
    return path


def device(folder: Path) -> Path:
    (path := folder / "file.safetensors").symlink_to("/dev/zero")
    return path


SPECIAL: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "pipe": ("A named pipe: opening it waits for ever.", pipe),
    "device": ("A device without an end.", device),
}
for _name, (_attacks, _write) in SPECIAL.items():
    add(_name, _attacks, "FX0803", ".safetensors", _write)
