"""The `.fxb` file: compiled programs to keep, send and run without the compiler; see docs/artefacts.md.

A zip archive (see archive.py) of `manifest.json`, `weights.safetensors`, for each target `targets/NAME/code` (object code or
PTX) and `plan.txt`, and texts for readers such as `program.fx`. The manifest holds the specs of `fluxir/codegen/abi.py`, the
versions that made the file, which weights are the constants of each target, and the SHA-256 of every other member; the
archive's comment is the manifest's SHA-256. Weights are named by digests of their contents, so that targets share them, and
`program.fx` with them: its large constants are weights too.

Invariants: nothing of a file is believed before its digest is checked, and only what is used is read (a weight has its digest
in its name); constants are read-only
views of the mapped file; a file appears under its name complete or not at all; files of format 1 keep being read. The digest
finds damage, not malice: the code of an artifact is machine code and runs with your rights, so run only artifacts from
whom you would run a program.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fluxir.errors import FluxError, error
from fluxir.runtime.archive import Archive, damaged, write_archive
from fluxir.runtime.choose import choose
from fluxir.runtime.safetensors import map_safetensors
from fluxir.runtime.spec import spec_problem
from fluxir.runtime.weights import Weights, digest_of
from fluxir.runtime.whole import whole_file

__all__ = [
    "FORMAT",
    "Artifact",
    "ArtifactFile",
    "Part",
    "artifact_bytes",
    "cached_artifact",
    "open_artifact",
    "read_artifact",
    "write_artifact",
]

FORMAT = 2
_MANIFEST, _WEIGHTS = "manifest.json", "weights.safetensors"
_OLD_CODE, _OLD_CONSTANTS = "code", "constants.safetensors"  # members of format 1

Array = NDArray[Any]


# ---- writing ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A program for one target. `constants` in the order of `spec["constants"]`; `plan`: the memory plan, for readers."""

    spec: Mapping[str, Any]
    code: bytes
    constants: Sequence[Array] = ()
    plan: str = ""


def artifact_bytes(
    spec: Mapping[str, Any],
    code: bytes,
    constants: Sequence[Array] = (),
    texts: Mapping[str, str | bytes] | None = None,
    plan: str = "",
) -> bytes:
    """An artifact for one target, as bytes. `texts` are kept for readers alone."""
    out = io.BytesIO()
    members, comment = _members([Part(spec, code, constants, plan)], texts or {}, {}, {})
    write_archive(out, members, comment)
    return out.getvalue()


def write_artifact(
    path: str | os.PathLike[str],
    parts: Sequence[Part],
    texts: Mapping[str, str | bytes] | None = None,
    resources: Mapping[str, Array] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write an artifact of `parts`, one for each target, to `path`, replacing what was there at once. `resources`: what
    `#digest` in `texts` stands for. FX0804 where it cannot be written, FX0906 for two parts of one target."""
    members, comment = _members(parts, texts or {}, resources or {}, versions or {})
    with whole_file(path, durable=True) as file:
        write_archive(file, members, comment)


def _members(
    parts: Sequence[Part],
    texts: Mapping[str, str | bytes],
    resources: Mapping[str, Array],
    versions: Mapping[str, str],
) -> tuple[dict[str, bytes], bytes]:
    """The members in their order, and the archive's comment."""
    weights = Weights()
    members: dict[str, bytes] = {name: b.encode() if isinstance(b, str) else b for name, b in sorted(texts.items())}
    targets = []
    for p in parts:
        name = str(p.spec["target"]["name"])
        folder = "targets/" + re.sub(r"[^\w.+-]", "-", name)
        row: dict[str, Any] = {"target": name, "spec": dict(p.spec), "code": f"{folder}/code"}
        if row["code"] in members:
            raise error("FX0906", f"the artifact would hold two programs for {name}")
        members[row["code"]] = p.code
        if p.plan:
            row["plan"] = f"{folder}/plan.txt"
            members[row["plan"]] = p.plan.encode()
        if p.constants:
            row["constants"] = weights.add_all(p.constants)
        targets.append(row)
    for digest, a in sorted(resources.items()):
        weights.add(a, digest)
    manifest: dict[str, Any] = {"fxb": FORMAT, "targets": targets, "versions": dict(versions)}
    if weights.arrays:
        members[_WEIGHTS] = weights.file()
    manifest["members"] = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    return {_MANIFEST: text, **members}, hashlib.sha256(text).hexdigest().encode()


# ---- reading ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds for one target, and beside it. `targets`: of all programs in it, as their specs say."""

    spec: dict[str, Any]
    code: bytes
    constants: list[Array]
    file: ArtifactFile = field(repr=False)

    @functools.cached_property
    def texts(self) -> dict[str, bytes]:
        """The members for readers, by name (`program.fx` ...). FX0801 where one is damaged."""
        return {name: bytes(self.file.member(name)) for name in self.file.texts}

    @functools.cached_property
    def plan(self) -> str:
        """The memory plan; empty where there is none."""
        row = self.file.rows[self.file.row_of(self.spec)]
        return bytes(self.file.member(row["plan"])).decode("utf-8", "replace") if "plan" in row else ""

    @property
    def targets(self) -> list[Mapping[str, Any]]:
        return self.file.targets

    @property
    def resources(self) -> dict[str, Array]:
        """The weights by digest, which `program.fx` names them by."""
        return self.file.weights


class ArtifactFile:
    """An open artifact: its manifest is checked, its members are when they are asked for."""

    def __init__(self, archive: Archive, checked: bool = False) -> None:
        """FX0801 damaged, FX0802 of a version that this one does not read. `checked`: a digest of all was compared."""
        self.archive, self.shown = archive, archive.shown
        manifest = bytes(archive[_MANIFEST]) if _MANIFEST in archive else b""
        if hashlib.sha256(manifest).hexdigest() != archive.comment.decode("ascii", "replace"):
            raise damaged(self.shown, "the manifest does not match its digest")
        try:
            table = json.loads(manifest)
            self.format, self.digests = table["fxb"], table["members"]
            rows = self._rows(table)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise damaged(self.shown, "the manifest cannot be read") from None
        if not isinstance(self.digests, dict) or not all(isinstance(d, str) for d in self.digests.values()):
            raise damaged(self.shown, "the manifest cannot be read")
        if self.digests.keys() | {_MANIFEST} != archive.places.keys():
            raise damaged(self.shown, "the manifest names other members than there are")
        for row in rows:
            self._fine(_row_problem(row))
        self.rows: list[dict[str, Any]] = rows
        self.targets: list[Mapping[str, Any]] = [row["spec"]["target"] for row in rows]
        used = {row.get(key) for row in rows for key in ("code", "plan")} | {_WEIGHTS, _OLD_CONSTANTS}
        self.texts = sorted(self.digests.keys() - used)
        self._checked: set[str] = set(self.digests) if checked else set()

    def _rows(self, table: Any) -> list[dict[str, Any]]:
        """What the manifest says of each target."""
        if self.format == 1:
            return [{"spec": table["spec"], "code": _OLD_CODE}]
        if self.format != FORMAT:
            raise error(
                "FX0802",
                f"{self.shown} has format {str(self.format)[:20]}; this version of fluxir reads formats 1 to {FORMAT}",
                help="compile the model again with this version",
            )
        rows = table["targets"]
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError
        return rows

    def member(self, name: str) -> memoryview:
        """The contents of a member, once its digest is found right. FX0801."""
        content = self.archive[name] if name in self.archive else memoryview(b"")
        if name not in self._checked:
            if hashlib.sha256(content).hexdigest() != self.digests.get(name) or name not in self.archive:
                raise damaged(self.shown, f"{name} does not match its digest")
            self._checked.add(name)
        return content

    def _fine(self, problem: str) -> None:
        if problem:
            raise error("FX0802", f"{self.shown}: {problem}", help="compile the model again with this version")

    @functools.cached_property
    def weights(self) -> dict[str, Array]:
        """All weights, checked. FX0801."""
        name = _OLD_CONSTANTS if self.format == 1 else _WEIGHTS
        return self._mapped(self.member(name)) if name in self.archive else {}

    def _mapped(self, data: memoryview, names: Container[str] | None = None) -> dict[str, Array]:
        try:
            return map_safetensors(data, self.shown, names)
        except FluxError as problem:
            raise damaged(self.shown, problem.message) from None

    def some_weights(self, names: Sequence[str]) -> dict[str, Array]:
        """Those of the weights that have these names, checked: they are digests of the contents, so no other one is looked at."""
        if self.format == 1 or _WEIGHTS in self._checked or _WEIGHTS not in self.archive:
            return self.weights
        found = self._mapped(self.archive[_WEIGHTS], set(names))
        for name, a in found.items():
            if digest_of(a) != name:
                raise damaged(self.shown, f"the weights {name} do not match their digest")
        return found

    def row_of(self, spec: Mapping[str, Any]) -> int:
        return next(i for i, row in enumerate(self.rows) if row["spec"] is spec)

    def part(self, i: int) -> Artifact:
        """The program for target number `i`. FX0801."""
        row = self.rows[i]
        self._fine(spec_problem(row["spec"]))
        if row["code"] not in self.archive:
            raise damaged(self.shown, "it holds no code")
        wanted = row["spec"].get("constants", [])
        names = [c["name"] for c in wanted] if self.format == 1 else row.get("constants", [])
        weights = self.some_weights(names) if names else {}
        try:
            constants = [weights[name] for name in names]
        except KeyError as name:
            raise damaged(self.shown, f"it lacks the constant {name}") from None
        if len(constants) != len(wanted):
            raise damaged(self.shown, "it lacks a constant")
        return Artifact(row["spec"], bytes(self.member(row["code"])), constants, self)

    def check_all(self) -> None:
        """Check every member. FX0801."""
        for name in self.digests:
            self.member(name)


def _row_problem(row: Mapping[str, Any]) -> str:
    """What is wrong with the form of what the manifest says of a target; its spec is looked at when it is used."""
    spec, names = row.get("spec"), row.get("constants", [])
    target = spec.get("target") if isinstance(spec, dict) else None
    if not isinstance(target, dict) or not all(isinstance(target.get(k), str) for k in ("name", "kind")):
        return "the manifest's targets cannot be read"
    features, triple = target.get("features", []), target.get("triple", "")
    fine = isinstance(row.get("code"), str) and isinstance(row.get("plan", ""), str) and isinstance(triple, str)
    fine = fine and all(isinstance(x, list) and all(isinstance(t, str) for t in x) for x in (names, features))
    return "" if fine else "the manifest's targets cannot be read"


def open_artifact(source: str | os.PathLike[str] | bytes) -> ArtifactFile:
    """An artifact whose manifest has been checked. FX0803 unreadable, FX0801 damaged, FX0802 of another version."""
    if isinstance(source, bytes):
        return ArtifactFile(Archive(source, "<bytes>"))
    return ArtifactFile(Archive.open(os.fspath(source)))


def read_artifact(source: str | os.PathLike[str] | bytes, device: str | None = None) -> Artifact:
    """The program of an artifact for `device` (None: this machine's processor, or where there is none for it the first), checked.
    FX0801 to FX0803; FX0509 and FX0707 where several programs are there and none runs on the device."""
    file = open_artifact(source)
    return file.part(choose(file.targets, device, file.shown))


def cached_artifact(source: memoryview) -> Artifact:
    """The program of an artifact for one target that the compile cache gives, which has checked its digest: no weight is hashed
    again, and none is copied."""
    return ArtifactFile(Archive(source, "<cache>"), checked=True).part(0)
