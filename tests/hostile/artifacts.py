"""Artifacts that are damaged, or forged with digests that fit."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile import add, hostile

MANIFEST = "manifest.json"


@functools.cache
def good() -> bytes:
    """An artifact as it should be."""
    import fluxir as fx
    from fluxir.runtime.artifact import artifact_bytes

    c = (
        fx.jit(lambda x: x @ np.arange(120, dtype="f4").reshape(4, 30), signature=(fx.f32["B", 4],))
        .lower()
        .compile("cpu")
    )
    return artifact_bytes(c.spec, c.code, c.constants, {"program.fx": "module @m\n"})


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good())) as z:
        return {n: z.read(n) for n in z.namelist()}


def zipped(content: dict[str, bytes], kind: int = zipfile.ZIP_STORED, digests: bool = True) -> bytes:
    """An archive of these members, with digests that fit."""
    if digests:
        table = json.loads(content[MANIFEST])
        table["members"] = {n: hashlib.sha256(c).hexdigest() for n, c in content.items() if n != MANIFEST}
        content = {**content, MANIFEST: json.dumps(table).encode()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as z:
        for name, data in content.items():
            z.writestr(zipfile.ZipInfo(name), data, kind)
        z.comment = hashlib.sha256(content[MANIFEST]).hexdigest().encode()
    return out.getvalue()


def fxb(code: str) -> Callable[[Callable[[], bytes | str]], None]:
    return hostile(code, ".fxb")


def manifest(change: Callable[[Any], Any]) -> bytes:
    """An artifact whose manifest is changed."""
    content = members()
    table = json.loads(content[MANIFEST])
    change(table)
    return zipped({**content, MANIFEST: json.dumps(table).encode()})


def target(table: Any) -> Any:
    """What the manifest says of the only target."""
    return table["targets"][0]


@fxb("FX0801")
def empty() -> bytes:
    """No bytes at all."""
    return b""


@fxb("FX0801")
def other_file() -> bytes:
    """No archive."""
    return b"\x7fELF" + bytes(1000)


@fxb("FX0801")
def cut_off() -> bytes:
    """The directory, which is at the end, is gone."""
    return good()[:-100]


@fxb("FX0801")
def one_bit() -> bytes:
    """One bit of the code is another one."""
    data = bytearray(good())
    data[data.index(b"\x7fELF") + 200] ^= 1
    return bytes(data)


@fxb("FX0801")
def compressed() -> bytes:
    """Members that are compressed: a gigabyte of zeros in a megabyte."""
    return zipped({**members(), "zeros": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)


@fxb("FX0801")
def encrypted() -> bytes:
    """A member that asks for a password."""
    data = bytearray(good())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


@fxb("FX0801")
def members_that_share_bytes() -> bytes:
    """A thousand entries of the directory for one member."""
    data = good()
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    first = data[start : data.index(b"PK\1\2", start + 4)]
    extra = b"".join(first[:46] + b"%04d" % i + first[50:] for i in range(1000))
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, count + 1000, count + 1000, size + len(extra))
    return data[: start + size] + extra + bytes(tail)


@fxb("FX0801")
def member_beyond() -> bytes:
    """A member that lies beyond the file."""
    data = bytearray(good())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 42, 0x7FFFFFFF)
    return bytes(data)


@fxb("FX0801")
def member_larger_than_the_file() -> bytes:
    """A member of two gigabytes in a small file."""
    data = bytearray(good())
    struct.pack_into("<II", data, data.rindex(b"PK\1\2") + 20, 0x7FFFFFFF, 0x7FFFFFFF)
    return bytes(data)


@fxb("FX0801")
def member_twice() -> bytes:
    """Two members of one name: one is checked, the other is read."""
    out = io.BytesIO(good())
    with zipfile.ZipFile(out, "a") as z, warnings.catch_warnings(action="ignore"):
        z.writestr(zipfile.ZipInfo(MANIFEST), b"{}")
    return out.getvalue()


@fxb("FX0801")
def member_that_nobody_names() -> bytes:
    """A member that the manifest does not know."""
    content = {**members(), "other": b"x"}
    return zipped(content, digests=False)


@fxb("FX0801")
def member_missing() -> bytes:
    """The manifest names a member that is not there."""
    content = members()
    del content["program.fx"]
    return zipped(content, digests=False)


@fxb("FX0801")
def no_manifest() -> bytes:
    """An archive without a manifest."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("code", b"x")
    return out.getvalue()


@fxb("FX0801")
def manifest_of_others() -> bytes:
    """The digest of the manifest is that of another one."""
    content = members()
    data = zipped(content)
    return data[:-1] + (b"0" if data[-1:] != b"0" else b"1")


@fxb("FX0801")
def manifest_nested() -> bytes:
    """Lists in lists, a hundred thousand deep."""
    return zipped({**members(), MANIFEST: b"[" * 100_000 + b"]" * 100_000}, digests=False)


@fxb("FX0801")
def manifest_of_a_list() -> bytes:
    """A manifest that is no table."""
    return zipped({**members(), MANIFEST: b"[1, 2]"}, digests=False)


@fxb("FX0802")
def version_of_tomorrow() -> bytes:
    """A format that is not known yet."""
    return manifest(lambda t: t.update(fxb=99))


@fxb("FX0802")
def version_that_is_none() -> bytes:
    """A version that is a table."""
    return manifest(lambda t: t.update(fxb={"a": 1}))


@fxb("FX0801")
def code_elsewhere() -> bytes:
    """Code in a file above the folder."""
    return manifest(lambda t: target(t).update(code="../secret"))


@fxb("FX0801")
def no_targets() -> bytes:
    """No program."""
    return manifest(lambda t: t.update(targets=[]))


@fxb("FX0802")
def no_spec() -> bytes:
    """A program without a description."""
    return manifest(lambda t: target(t).update(spec=[]))


@fxb("FX0801")
def constant_missing() -> bytes:
    """A constant that is not among the weights."""
    return manifest(lambda t: target(t).update(constants=["f" * 24] * len(target(t).get("constants", [0]))))


@fxb("FX0802")
def size_that_nests() -> bytes:
    """A size of an output in five thousand parentheses."""
    return manifest(lambda t: target(t)["spec"]["outputs"][0].update(shape=["(" * 5000 + "B" + ")" * 5000]))


@fxb("FX0802")
def donated_to_another_type() -> bytes:
    """A result that is to be written over an argument that is smaller."""
    return manifest(lambda t: target(t)["spec"].update(donated=[[0, 0]]))


@fxb("FX0514")
def code_that_is_none() -> bytes:
    """Zeros instead of machine code."""
    content = members()
    name = next(n for n in content if n.endswith("code"))
    return zipped({**content, name: bytes(1000)})


@fxb("FX0801")
def weights_that_overlap() -> bytes:
    """Weights whose header lies."""
    content = members()
    name = next(n for n in content if n.endswith(".safetensors"))
    return zipped({**content, name: struct.pack("<Q", 1 << 62) + content[name][8:]})


def _pipe(folder: Path) -> Path:
    import os

    os.mkfifo(path := folder / "file.fxb")
    return path


add("pipe", "A named pipe: opening it waits for ever.", "FX0803", ".fxb", _pipe)
