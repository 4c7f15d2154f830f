"""Artifacts with programs for several targets: what is shared, what is chosen, what is checked, and that old files load."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import FluxError, config
from fluxir.cli import main
from fluxir.ir.core import array_digest
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.runtime.archive import ALIGNMENT, Archive, write_archive
from fluxir.runtime.artifact import FORMAT, Part, artifact_bytes, open_artifact, read_artifact, write_artifact
from fluxir.runtime.choose import choose
from fluxir.runtime.safetensors import load_safetensors
from fluxir.runtime.weights import Weights, digest_of
from fluxir.target import host

FIXTURES = Path(__file__).parent / "fixtures" / "fxb"
W = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
BIAS = np.arange(48, dtype=np.float32)
X = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
TARGETS = ["cpu:x86-64-v1", "cpu:x86-64-v3", "sm_80", "sm_90"]


def model(x: Any) -> Any:
    return fx.tanh(x @ W + BIAS)


@pytest.fixture(scope="module")
def lowered() -> Any:
    return fx.jit(model).lower(fx.f32["B", 64])


@pytest.fixture(scope="module")
def several(lowered: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "m.fxb"
    first, *others = [lowered.compile(t) for t in TARGETS]
    first.save(path, *others)
    return path


def code_of(call: Any) -> str:
    with pytest.raises(FluxError) as e:
        call()
    return e.value.code


def forged(path: Path, change: Any) -> bytes:
    """The file with other members, and digests that fit."""
    import hashlib

    with zipfile.ZipFile(path) as z:
        members = {n: z.read(n) for n in z.namelist()}
    table = json.loads(members.pop("manifest.json"))
    change(table, members)
    table["members"] = {n: hashlib.sha256(b).hexdigest() for n, b in members.items()}
    text = json.dumps(table).encode()
    out = io.BytesIO()
    write_archive(out, {"manifest.json": text, **members}, hashlib.sha256(text).hexdigest().encode())
    return out.getvalue()


# ---- the file -------------------------------------------------------------------------------------------------------------------


def test_any_zip_tool_reads_it(several: Path) -> None:
    with zipfile.ZipFile(several) as z:
        assert z.testzip() is None and all(i.compress_type == zipfile.ZIP_STORED for i in z.infolist())
        names = z.namelist()
        manifest = json.loads(z.read("manifest.json"))
        weights = z.read("weights.safetensors")
    assert names[0] == "manifest.json" and {"program.fx", "weights.safetensors"} <= set(names)
    assert [t["target"] for t in manifest["targets"]] == TARGETS and manifest["fxb"] == FORMAT
    assert manifest["versions"]["fluxir"] == fx.__version__
    for t in TARGETS:
        folder = "targets/" + t.replace(":", "-")
        assert {f"{folder}/code", f"{folder}/plan.txt"} <= set(names)
    assert several.parent.joinpath("w").write_bytes(weights)
    assert load_safetensors(several.parent / "w")


def test_same_programs_same_bytes(lowered: Any, several: Path, tmp_path: Path) -> None:
    first, *others = [lowered.compile(t) for t in TARGETS]  # from the cache, this time
    first.save(tmp_path / "again.fxb", *others)
    assert (tmp_path / "again.fxb").read_bytes() == several.read_bytes()
    assert os.listdir(tmp_path) == ["again.fxb"], "no file is left beside it"
    fresh = lowered.compile(TARGETS[0], cache=False)
    fresh.save(tmp_path / "again.fxb", *others)
    assert (tmp_path / "again.fxb").read_bytes() == several.read_bytes()


def test_targets_and_the_program_share_weights(several: Path, lowered: Any) -> None:
    file = open_artifact(several)
    names = [row.get("constants", []) for row in file.rows]
    assert array_digest(BIAS) == digest_of(BIAS)
    assert all(array_digest(BIAS) in row for row in names), "one array, whatever the target"
    assert array_digest(W) in file.weights, "the program's own, which targets may have packed"
    assert len(file.weights) < 2 + sum(map(len, names))


def test_weights_are_views_of_the_mapped_file(several: Path) -> None:
    with Archive.open(str(several)).data as data:
        assert len(data) == several.stat().st_size
    a = read_artifact(several)
    archive = a.file.archive
    assert all(start % ALIGNMENT == 0 for start, end in archive.places.values())
    for x in a.constants:
        assert not x.flags.writeable and not x.flags.owndata
        assert x.ctypes.data % (ALIGNMENT if x.nbytes % ALIGNMENT == 0 else x.itemsize) == 0
    # What was mapped stays, whatever comes to stand under the name.
    program = fx.load(several, device="cpu")
    want = program(X)
    write_artifact(several.parent / "other.fxb", [Part(a.spec, a.code, a.constants)])
    os.replace(several.parent / "other.fxb", several.parent / "gone.fxb")
    np.testing.assert_array_equal(program(X), want)


def test_resources_leave_the_text(several: Path, lowered: Any) -> None:
    file = open_artifact(several)
    text = bytes(file.member("program.fx")).decode()
    assert "resource" not in text and len(text) < 2000
    module = parse_module(text, resources=file.weights)
    assert print_module(module) == print_module(lowered.module)
    assert code_of(lambda: parse_module(text)) == "FX0118"


# ---- choosing ---------------------------------------------------------------------------------------------------------------------


def cpu(name: str, *features: str, machine: str = "x86_64") -> dict[str, Any]:
    return {"name": name, "kind": "cpu", "triple": f"{machine}-unknown-linux-gnu", "features": list(features)}


def gpu(name: str) -> dict[str, Any]:
    return {"name": name, "kind": "nvptx"}


def test_the_best_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    import fluxir.runtime.choose as module

    this = dataclasses.replace(host(), machine="x86_64", features=("avx2", "fma", "sse2"))
    monkeypatch.setattr(module, "host", lambda: this)
    v1, v3, v4, arm = (
        cpu("v1", "sse2"), cpu("v3", "sse2", "avx2"), cpu("v4", "sse2", "avx2", "avx512f"),
        cpu("neon", machine="aarch64"),
    )  # fmt: skip
    assert choose([v1, v4, v3, arm], "cpu", "f") == 2 and choose([v4, v1, gpu("sm_80")], None, "f") == 1
    assert choose([v4, arm, gpu("sm_80"), gpu("sm_90")], None, "f") == 3
    assert choose([v4], "cpu", "f") == 0, "an only one is for its loader to refuse"
    assert code_of(lambda: choose([v4, arm], "cpu", "f")) == "FX0509"
    all_gpus = [v1, gpu("sm_80"), gpu("sm_90"), gpu("sm_90a"), gpu("sm_100f"), gpu("sm_120")]
    for device, want in (
        ("sm_80", 1), ("sm_86", 1), ("sm_90", 3), ("sm_100", 4), ("sm_103", 4), ("sm_110", 2), ("sm_121", 5),
    ):  # fmt: skip
        assert choose(all_gpus, f"vgpu:{device}", "f") == want, device
    assert code_of(lambda: choose(all_gpus, "vgpu:sm_75", "f")) == "FX0707"
    assert code_of(lambda: choose([v1, v3], "vgpu", "f")) == "FX0707"


def test_every_device_gets_its_program(several: Path) -> None:
    want = np.tanh(X @ W + BIAS)
    on_cpu = fx.load(several)
    assert on_cpu.spec["target"]["name"] == ("cpu:x86-64-v3" if host().level >= 3 else "cpu:x86-64-v1")
    np.testing.assert_allclose(on_cpu(X), want, rtol=1e-5, atol=1e-5)
    for device, target in (("vgpu:sm_86", "sm_80"), ("vgpu:sm_90", "sm_90")):
        program = fx.load(several, device=device)
        assert program.spec["target"]["name"] == target
        np.testing.assert_allclose(program(X), want, rtol=1e-5, atol=1e-5)
    with config.override(device="vgpu:sm_80"):
        assert fx.load(several).spec["target"]["name"] == "sm_80"


def test_an_artifact_holds_one_program_and_each_target_once(lowered: Any, tmp_path: Path) -> None:
    other = fx.jit(lambda x: x + 1).lower(fx.f32["B"]).compile("cpu:x86-64-v1")
    first = lowered.compile("cpu:x86-64-v1")
    assert code_of(lambda: first.save(tmp_path / "m.fxb", other)) == "FX0906"
    assert code_of(lambda: first.save(tmp_path / "m.fxb", first)) == "FX0906"
    assert not os.listdir(tmp_path)


# ---- old files --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.glob("*.fxb")))
def test_files_of_every_format_load(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Made by tests/fixtures/fxb/make.py of the version that wrote the format."""
    x = np.array([[1, 2, 3, 4], [0, -1, 0.5, 0]], np.float32)
    w = (np.arange(12).reshape(4, 3) / 8).astype(np.float32)
    a = read_artifact(FIXTURES / name)
    devices = {"cpu": ["cpu"] if host().machine == "x86_64" else [], "nvptx": ["vgpu:sm_80"]}
    for device in [d for kind in {t["kind"] for t in a.targets} for d in devices[kind]]:
        n, y = fx.load(FIXTURES / name, device=device)(x)
        np.testing.assert_allclose(y, np.tanh(x @ w), rtol=1e-6)
        np.testing.assert_allclose(n, x.sum(axis=1), rtol=1e-6)
    assert main(["verify", str(FIXTURES / name)]) == 0
    capsys.readouterr()


def test_there_is_a_fixture_of_the_current_format() -> None:
    assert any(open_artifact(p).format == FORMAT for p in FIXTURES.glob("*.fxb"))


# ---- damage -----------------------------------------------------------------------------------------------------------------------


def test_what_is_used_is_checked(several: Path) -> None:
    data = several.read_bytes()
    places = dict(Archive(data, "f").places)
    chosen = fx.load(several).spec["target"]["name"].replace(":", "-")
    used = next(a for a in read_artifact(several, "cpu").constants if a.nbytes > 1000)
    start = data.index(used.tobytes())
    assert places["weights.safetensors"][0] < start
    places["weights.safetensors"] = start, start + used.nbytes
    for name, (start, end) in places.items():
        hurt = bytearray(data)
        hurt[(start + end) // 2] ^= 4
        file_ = several.parent / "hurt.fxb"
        file_.write_bytes(hurt)
        if name in ("manifest.json", "weights.safetensors", f"targets/{chosen}/code"):
            assert code_of(lambda p=file_: fx.load(p)) == "FX0801", name
        else:  # what is not used is not read, and found by who asks
            assert fx.load(file_)(X).shape == (5, 48)
            assert code_of(lambda p=file_: open_artifact(p).check_all()) == "FX0801", name
            assert main(["verify", str(file_)]) == 74


def test_forged_manifests(several: Path) -> None:
    """The digests are right; what they cover is not."""

    def check(change: Any, code: str) -> None:
        assert code_of(lambda: read_artifact(forged(several, change), "cpu")) == code

    check(lambda t, m: t.update(fxb=99), "FX0802")
    check(lambda t, m: t.update(fxb=[1]), "FX0802")
    check(lambda t, m: t.update(targets=[]), "FX0801")
    check(lambda t, m: t.update(targets={"a": 1}), "FX0801")
    check(lambda t, m: t["targets"].append(7), "FX0801")
    check(lambda t, m: t["targets"][0].pop("spec"), "FX0802")
    check(lambda t, m: [r.update(code=3) for r in t["targets"]], "FX0802")
    check(lambda t, m: [r.update(code="nowhere") for r in t["targets"]], "FX0801")
    check(lambda t, m: [r.update(constants="abc") for r in t["targets"]], "FX0802")
    check(lambda t, m: [r.update(constants=["x"] * 9) for r in t["targets"]], "FX0801")
    check(lambda t, m: [r.update(constants=[]) for r in t["targets"]], "FX0801")
    check(lambda t, m: m.pop("weights.safetensors"), "FX0801")
    check(lambda t, m: m.update({"weights.safetensors": b"12345678"}), "FX0801")
    check(lambda t, m: [r["spec"]["target"].update(features=[1]) for r in t["targets"]], "FX0802")
    check(lambda t, m: [r["spec"]["target"].update(kind=None) for r in t["targets"]], "FX0802")
    check(lambda t, m: [r["spec"].update(solve=3) for r in t["targets"]], "FX0802")
    plan = forged(several, lambda t, m: [r.update(plan="none") for r in t["targets"]])
    assert code_of(lambda: read_artifact(plan).plan) == "FX0801"


def test_other_weights_under_a_digest_are_found(several: Path, tmp_path: Path) -> None:
    def change(table: Any, members: dict[str, bytes]) -> None:
        w = Weights()
        for name, a in open_artifact(several).weights.items():
            w.add(a + 1 if name == digest_of(W) else a, name)
        members["weights.safetensors"] = w.file()

    (tmp_path / "m.fxb").write_bytes(forged(several, change))
    assert main(["show", str(tmp_path / "m.fxb")]) == 74


def test_archives_of_other_forms(tmp_path: Path) -> None:
    def archive(write: Any) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as z:
            write(z)
        return out.getvalue()

    assert (
        code_of(lambda: Archive(archive(lambda z: z.writestr("a", b"x" * 99, zipfile.ZIP_DEFLATED)), "f")) == "FX0801"
    )
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive(lambda z: (z.writestr("a", b"1"), z.writestr("a", b"2")))
    assert code_of(lambda: Archive(twice, "f")) == "FX0801"
    for data in (b"", b"PK", b"PK\5\6" + bytes(18)):
        (tmp_path / "f").write_bytes(data)
        assert code_of(lambda: read_artifact(tmp_path / "f")) == "FX0801"
    # A directory that names other places than the members have.
    good = archive(lambda z: (z.writestr("a", b"1" * 50), z.writestr("b", b"2" * 50)))
    at = good.index(b"PK\1\2", good.index(b"PK\1\2") + 4) + 42  # where the second member's header is
    for place in (b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\1\0\0\0"):
        assert code_of(lambda p=place: Archive(good[:at] + p + good[at + 4 :], "f")) == "FX0801"


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096])
def test_members_begin_at_cache_lines(size: int) -> None:
    for name in ("a", "ab", "x" * 33, "é" * 20):
        out = io.BytesIO()
        write_archive(out, {name: b"z" * size, "b": b"1"}, b"note")
        found = Archive(out.getvalue(), "f")
        assert bytes(found[name]) == b"z" * size and found.comment == b"note"
        assert all(start % ALIGNMENT == 0 for start, _ in found.places.values())


# ---- the command ------------------------------------------------------------------------------------------------------------------


def test_several_targets_from_the_command_line(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text("import fluxir as fx\n\n@fx.model\ndef f(x: fx.f32['B', 4]):\n    return fx.tanh(x) * 2\n")
    options = [o for t in ("cpu:x86-64-v1", "cpu:x86-64-v3", "sm_80") for o in ("--target", t)]
    assert main(["compile", "m.py", *options, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["targets"] == ["cpu:x86-64-v1", "cpu:x86-64-v3", "sm_80"] and list(data["files"]) == ["m.fxb"]
    for device in ("cpu", "vgpu:sm_80"):
        assert main(["run", "m.fxb", "--input", "x=ones", "--dim", "B=2", "--device", device, "--json"]) == 0
        out = json.loads(capsys.readouterr().out)["outputs"]
        assert abs(next(iter(out.values()))["mean"] - 2 * np.tanh(1)) < 1e-6
    # The program inside is compiled again for other targets.
    assert main(["compile", "m.fxb", "--target", "sm_90", "-o", "again.fxb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"] == ["sm_90"]
    assert main(["compile", "m.py", *options, "-o", "folder", "--json"]) == 2
    assert main(["compile", "m.py", "--target", "sm_80", "--target", "sm_80", "--json"]) == 2
    capsys.readouterr()


def test_loading_imports_no_compiler(several: Path) -> None:
    script = f"""
import sys
import numpy as np
from fluxir.runtime.artifact import open_artifact
from fluxir.runtime.devices import load_artifact
load_artifact(open_artifact({str(several)!r}), "cpu")(np.zeros((2, 64), np.float32))
rooms = ("ir", "ops", "frontend", "passes", "schedule", "codegen", "driver")
print([m for m in sys.modules if m.startswith("llvmlite") or m.startswith(tuple(f"fluxir.{{r}}" for r in rooms))])
"""
    fx.load(several)(X)  # the runtime's own code is in the cache from here on
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_bytes_are_read_as_files_are() -> None:
    low = fx.jit(lambda x: x * 2).lower(fx.f32["N"])
    c = low.compile("cpu:x86-64-v1")
    a = read_artifact(artifact_bytes(c.spec, c.code, c.constants, {"note.txt": "hello"}, "the plan"))
    assert a.texts == {"note.txt": b"hello"} and a.plan == "the plan" and a.spec == c.spec and a.code == c.code
