"""The `.fxb` file: a compiled program to keep, send and run without the compiler.

A zip archive (members stored, not compressed; same arguments, same bytes) of `manifest.json` (the spec of
`fluxir/codegen/abi.py` with versions and the SHA-256 of every other member), `code` (object code or PTX),
`constants.safetensors`, and texts for readers such as `program.fx`; the archive's comment is the manifest's SHA-256.

Invariants: nothing of a file is believed before its digests are checked; members are bounded by the setting
`max_file_size`; a file appears under its name complete or not at all. The digest finds damage, not malice: the code of an
artifact is machine code and runs with your rights, so run only artifacts from whom you would run a program.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fluxir import config
from fluxir.errors import FluxError, error
from fluxir.runtime.safetensors import parse_safetensors, safetensors_bytes
from fluxir.runtime.spec import spec_problem

__all__ = ["FORMAT", "Artifact", "artifact_bytes", "read_artifact", "write_artifact"]

FORMAT = 1
_MANIFEST, _CODE, _CONSTANTS = "manifest.json", "code", "constants.safetensors"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds. `texts`: the other members by name (`program.fx`, `kernels.ll` ...)."""

    spec: dict[str, Any]
    code: bytes
    constants: list[NDArray[Any]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)


def artifact_bytes(
    spec: Mapping[str, Any],
    code: bytes,
    constants: Sequence[NDArray[Any]] = (),
    texts: Mapping[str, str | bytes] | None = None,
) -> bytes:
    """The artifact as bytes. `constants` in the order of `spec["constants"]`; `texts` are kept for readers alone."""
    members: dict[str, bytes] = {_CODE: code}
    if constants:
        names = [c["name"] for c in spec["constants"]]
        members[_CONSTANTS] = safetensors_bytes(dict(zip(names, constants, strict=True)))
    for name, content in sorted((texts or {}).items()):
        members[name] = content.encode() if isinstance(content, str) else content
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    manifest = json.dumps(
        {"fxb": FORMAT, "spec": dict(spec), "members": digests}, indent=1, sort_keys=True, allow_nan=False
    ).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {_MANIFEST: manifest, **members}.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
        archive.comment = hashlib.sha256(manifest).hexdigest().encode()
    return out.getvalue()


def write_artifact(
    path: str | os.PathLike[str],
    spec: Mapping[str, Any],
    code: bytes,
    constants: Sequence[NDArray[Any]] = (),
    texts: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write the artifact to `path`, replacing what was there at once. FX0804 where it cannot be written."""
    target = os.fspath(path)
    data = artifact_bytes(spec, code, constants, texts)
    temporary = f"{target}.{secrets.token_hex(6)}.tmp"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    except OSError as reason:
        raise error("FX0804", f"{target} cannot be written: {reason.strerror or reason}") from None


def read_artifact(source: str | os.PathLike[str] | bytes) -> Artifact:
    """Read and check an artifact. FX0803 unreadable, FX0801 damaged, FX0802 of another version."""
    shown, data = ("<bytes>", source) if isinstance(source, bytes) else (os.fspath(source), _read(os.fspath(source)))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # Members that share their bytes would make a small file large in memory.
            if sum(i.file_size for i in archive.infolist()) > len(data):
                raise _damaged(shown, "its members are larger than the file")
            members = {i.filename: _member(archive, i, shown) for i in archive.infolist()}
            digest = archive.comment.decode("ascii", "replace")
            if len(members) != len(archive.infolist()):
                raise _damaged(shown, "a member occurs twice")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as reason:
        raise _damaged(shown, str(reason)) from None
    manifest = members.pop(_MANIFEST, b"")
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise _damaged(shown, "the manifest does not match its digest")
    try:
        table = json.loads(manifest)
        version, spec, digests = table["fxb"], table["spec"], table["members"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(shown, "the manifest cannot be read") from None
    if version != FORMAT:
        raise error(
            "FX0802",
            f"{shown} has format {version}; this version of fluxir reads format {FORMAT}",
            help="compile the model again with this version",
        )
    if not isinstance(digests, dict):
        raise _damaged(shown, "the manifest cannot be read")
    for name in digests.keys() | members.keys():
        if hashlib.sha256(members.get(name, b"")).hexdigest() != digests.get(name) or name not in members:
            raise _damaged(shown, f"{name} does not match its digest")
    if _CODE not in members:
        raise _damaged(shown, "it holds no code")
    if problem := spec_problem(spec):
        raise error("FX0802", f"{shown}: {problem}", help="compile the model again with this version")
    stored = parse_safetensors(members.pop(_CONSTANTS), source=shown) if _CONSTANTS in members else {}
    try:
        constants = [stored[c["name"]] for c in spec.get("constants", [])]
    except KeyError as name:
        raise _damaged(shown, f"it lacks the constant {name}") from None
    return Artifact(spec, members.pop(_CODE), constants, members)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, shown: str) -> bytes:
    # Stored members cannot grow: no archive of a few bytes fills the memory.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _damaged(shown, f"{info.filename} is compressed, which fluxir never does")
    return archive.read(info)


def _read(path: str) -> bytes:
    limit = config.get().max_file_size
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error("FX0803", f"{path} is not a regular file", help="name a .fxb file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as reason:
        raise error("FX0803", f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}") from None
    if len(data) > limit:
        raise error(
            "FX0803",
            f"{path} is larger than {limit} bytes",
            help="raise the setting max_file_size if you trust the file",
        )
    return data


def _damaged(shown: str, why: str) -> FluxError:
    return error("FX0801", f"{shown} is damaged or no artifact: {why}")
