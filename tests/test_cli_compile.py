"""The verbs that compile and run: check, compile, run, opt, show, diff, verify, on small models in every form of file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import FluxError, config
from fluxir.cli import main
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module

ROOT = Path(__file__).resolve().parent.parent

MODEL = """
import fluxir as fx

@fx.model(facts="B >= 1")
def scale(x: fx.f32["B", 4], k: fx.f32) -> fx.f32["B", 4]:
    y = x * k
    return fx.tanh(y) + fx.tanh(y)

@fx.model
def total(x: fx.f32["N", 3]):
    return {"sum": fx.sum(x, axis=0), "count": fx.sum(x > 0)}
"""

TEXT = """
module @m
dims B >= 1
func @f(%x: f32[B,4], %k: f32) -> (y: f32[B,4]) {
  %1 = mul(%x, %k) : f32[B,4]
  %2 = tanh(%1) : f32[B,4]
  %3 = tanh(%1) : f32[B,4]
  %4 = add(%2, %3) : f32[B,4]
  return %4
}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the models in it, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXIR_CACHE_DIR", str(tmp_path / "cache"))
    config.reload()
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "m.fx").write_text(TEXT)
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))
    yield tmp_path
    monkeypatch.undo()
    config.reload()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    capsys.readouterr()
    got = main([*arguments, "--json"])
    shown = capsys.readouterr()
    assert got == status, shown.err
    return json.loads(shown.out)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, int, str]:
    """(code, exit status, text on stderr) of a run that fails."""
    capsys.readouterr()
    status = main(list(arguments))
    text = capsys.readouterr().err
    found = re.match(r"error\[(FX\d{4})\]", text)
    assert found, text
    return found[1], status, text


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_lists_entries_with_types(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "check", "model.py")["entries"]
    assert [row["name"] for row in rows] == ["scale", "total"]
    assert rows[0]["arguments"] == [{"name": "x", "type": "f32[B,4]"}, {"name": "k", "type": "f32"}]
    assert rows[0]["facts"] == ["B >= 1"] and rows[0]["kernels"] == 1
    assert main(["check", "m.fx"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("f: ok, 4 ops, 1 kernels") and "where B >= 1" in shown
    assert run_json(capsys, "check", "model.py", "--entry", "total")["entries"][0]["name"] == "total"


def test_check_reports_every_wrong_entry_with_its_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.py").write_text(
        textwrap.dedent("""
            import fluxir as fx
            @fx.model
            def one(x: fx.f32["B", 4], w: fx.f32[5, 6]):
                return x @ w
            @fx.model
            def two(x: fx.f32[3]):
                return x.reshape(2, 2)
            """)
    )
    code, status, text = failure(capsys, "check", "bad.py")
    assert status == 1 and code == "FX0203" and "error[FX0204]" in text
    assert "bad.py:5" in text and "return x @ w" in text and "bad.py:8" in text


@pytest.mark.parametrize(
    ("file", "content", "code", "status"),
    [
        ("none.py", None, "FX0803", 74),
        ("none.fx", None, "FX0803", 74),
        ("m.txt", "", "FX0808", 1),
        ("empty.py", "x = 1\n", "FX0316", 1),
        ("raises.py", "1 / 0\n", "FX0317", 1),
        ("wrong.py", "def f(:\n", "FX0317", 1),
        ("wrong.fx", "func @f(", "FX0101", 1),
        ("wrong.fxb", "PK\x03\x04 no", "FX0801", 74),
    ],
)
def test_check_of_files_that_are_no_models(
    place: Path, file: str, content: str | None, code: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (place / file).write_text(content)
    assert failure(capsys, "check", file)[:2] == (code, status)


# -- compile and run ---------------------------------------------------------------------------------------------------


def test_compile_then_run_in_a_process_without_the_compiler(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run_json(capsys, "compile", "model.py", "--entry", "scale", "-o", "out.fxb")
    assert data["cached"] is False and list(data["files"]) == ["out.fxb"]
    assert run_json(capsys, "compile", "model.py", "--entry", "scale", "-o", "again.fxb")["cached"] is True
    assert (place / "out.fxb").read_bytes() == (place / "again.fxb").read_bytes()
    code = (
        "import sys; from fluxir.cli import main\n"
        "status = main(['run', 'out.fxb', '--input', 'x=@x.npy', '--input', 'k=2', '--output', 'y=@y.npy'])\n"
        "rooms = ('frontend', 'passes', 'schedule', 'codegen', 'ir', 'ops', 'driver')\n"
        "print(status, [r for r in rooms if f'fluxir.{r}' in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
    assert "y: float32[3, 4] written to y.npy" in done.stdout
    np.testing.assert_allclose(np.load("y.npy"), 2 * np.tanh(2 * np.load("x.npy")), rtol=1e-6)


@pytest.mark.parametrize("file", ["model.py", "m.fx"])
def test_run_compiles_models(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = ["--entry", "scale"] if file == "model.py" else []
    data = run_json(capsys, "run", file, *entry, "-i", "x=@x.npy", "-i", "k=1", "-o", "y=-", "--repeat", "3")
    np.testing.assert_allclose(data["outputs"]["y"]["values"], 2 * np.tanh(np.load("x.npy")), rtol=1e-6)
    assert data["runs"] == 3 and data["median_ms"] > 0


def test_run_with_generated_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    data = run_json(capsys, "run", "model.py", "--entry", "total", "-i", "x=ones", "--dim", "N=7")
    outputs = data["outputs"]
    assert len(outputs) == 2 and {"min": 7.0, "max": 7.0} in [
        {k: o[k] for k in ("min", "max")} for o in outputs.values()
    ]
    first = run_json(capsys, "run", "m.fx", "-i", "x=random", "-i", "k=random", "--dim", "B=2", "-o", "y=-")
    again = run_json(capsys, "run", "m.fx", "-i", "x=random", "-i", "k=random", "--dim", "B=2", "-o", "y=-")
    other = run_json(
        capsys, "run", "m.fx", "-i", "x=random", "-i", "k=random", "--dim", "B=2", "-o", "y=-", "--seed", "1"
    )
    assert first["outputs"] == again["outputs"] != other["outputs"]


def test_values_without_a_json_form_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    data = run_json(capsys, "run", "m.fx", "-i", "x=nan", "-i", "k=1", "--dim", "B=1", "-o", "y=-")
    assert data["outputs"]["y"]["values"] == [["nan"] * 4] and data["outputs"]["y"]["not_finite"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["-i", "x=@x.npy"], "FX0905", 2),
        (["-i", "x=@x.npy", "-i", "k=1", "-i", "z=1"], "FX0607", 1),
        (["-i", "x=random", "-i", "k=1"], "FX0905", 2),
        (["-i", "x=random", "-i", "k=1", "--dim", "B=-1"], "FX0905", 2),
        (["-i", "x=random", "-i", "k=1", "--dim", "B=0"], "FX0604", 1),
        (["-i", "x=@none.npy", "-i", "k=1"], "FX0803", 74),
        (["-i", "x=@m.fx", "-i", "k=1"], "FX0812", 1),
        (["-i", "x=@wide.npy", "-i", "k=1"], "FX0603", 1),
        (["-i", "x=@flat.npy", "-i", "k=1"], "FX0602", 1),
        (["-i", "x=@x.npy", "-i", "k=1", "-o", "z=-"], "FX0607", 1),
        (["-i", "x=@x.npy", "-i", "k=1", "-o", "y=y.npy"], "FX0905", 2),
        (["-i", "x=@x.npy", "-i", "k=1", "-o", "y=@no/y.npy"], "FX0804", 74),
        (["-i", "x=@x.npy", "-i", "k=1", "--device", "cuda"], "FX0701", 6),
        (["-i", "x=@x.npy", "-i", "k=1", "--device", "vgpu:sm_1"], "FX0902", 2),
        (["-i", "x=@x.npy", "-i", "k=1", "--device", "tpu"], "FX0902", 2),
        (["-i", "x=@x.npy", "-i", "k=1", "--entry", "g"], "FX0613", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_runs(
    place: Path, arguments: list[str], code: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(place / "wide.npy", np.zeros((3, 4)))
    np.save(place / "flat.npy", np.zeros(12, np.float32))
    assert failure(capsys, "run", "m.fx", *arguments)[:2] == (code, status)


def test_a_damaged_artifact_is_not_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "m.fx"]) == 0
    data = bytearray((place / "m.fxb").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "m.fxb").write_bytes(bytes(data))
    assert failure(capsys, "run", "m.fxb", "-i", "x=@x.npy", "-i", "k=1")[:2] == ("FX0801", 74)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_compile_for_a_gpu_writes_ptx_and_manifest(
    place: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run_json(capsys, "compile", "m.fx", "--target", target, "-o", "out", "--assemble")
    assert [kernel["spill_loads"] for kernel in data["assembled"]] == [0]
    ptx = (place / "out" / "module.ptx").read_text()
    assert f".target {target}" in ptx and ".extern .func" not in ptx
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["inputs"][0] == {"name": "x", "dtype": "f32", "shape": ["B", 4]}
    parse_module((place / "out" / "program.fx").read_text())


def test_wrong_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "compile", "m.fx", "--target", "sm_1")[:2] == ("FX0501", 2)
    assert failure(capsys, "compile", "m.fx", "-o", "out")[:2] == ("FX0906", 2)
    assert failure(capsys, "compile", "m.fx", "--assemble")[:2] == ("FX0904", 2)
    assert failure(capsys, "compile", "m.fx", "--passes", "nope")[:2] == ("FX0401", 2)
    assert failure(capsys, "compile", "model.py")[:2] == ("FX0613", 1)
    assert failure(capsys, "compile", "m.fx", "-o", "no/m.fxb")[:2] == ("FX0804", 74)


# -- opt, show, diff, verify -------------------------------------------------------------------------------------------


def test_opt_runs_the_passes_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run_json(capsys, "opt", "m.fx", "--passes", "cse,dce")
    assert (
        data["changed"]
        and data["text"].count("tanh") == 1
        and [row["pass"] for row in data["passes"]] == ["cse", "dce"]
    )
    assert main(["opt", "m.fx", "--passes", "cse", "-o", "after.fx", "--stats"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "cse" in shown.err
    module = parse_module((place / "after.fx").read_text())
    assert print_module(module).count("tanh") == 1
    assert failure(capsys, "opt", "m.fx", "--passes", "cse[x=1]")[:2] == ("FX0402", 2)
    assert failure(capsys, "opt")[:2] == ("FX0904", 2)


def test_opt_resumes_from_an_edited_dump(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "m.fx", "--passes", "fold,cse,dce", "--dump-dir", "dumps"]) == 0
    names = sorted(os.listdir("dumps"))
    assert names == ["00-input.fx", "01-fold.fx", "02-cse.fx", "03-dce.fx", "index.json"]
    dump = place / "dumps" / "01-fold.fx"
    dump.write_text(dump.read_text().replace("add(", "sub("))
    data = run_json(capsys, "opt", "--from", "dumps/01-fold.fx")
    assert [row["pass"] for row in data["passes"]] == ["cse", "dce"] and [row["index"] for row in data["passes"]] == [
        2,
        3,
    ]
    assert "sub(" in data["text"] and data["text"].count("tanh") == 1
    assert failure(capsys, "opt", "--from", "m.fx")[:2] == ("FX0409", 2)
    (place / "01-x.fx").write_text(TEXT)  # no index.json beside it
    assert failure(capsys, "opt", "--from", "01-x.fx")[:2] == ("FX0409", 2)


@pytest.mark.parametrize(
    ("stage", "arguments", "expected"),
    [
        ("traced", [], "func @f("),
        ("simplified", [], "func @f("),
        ("fused", [], "fused("),
        ("loops", [], "kernel @"),
        ("plan", [], "launch"),
        ("llvm", [], "define"),
        ("asm", [], ".text"),
        ("ptx", [], ".target sm_80"),
        ("ptx", ["--target", "sm_90"], ".target sm_90"),
        ("llvm", ["--target", "sm_90"], "nvptx64"),
    ],
)
def test_show_every_stage(stage: str, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "m.fx", "--stage", stage, *arguments]) == 0
    assert expected in capsys.readouterr().out


def test_show_ir_is_valid_input(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("traced", "simplified", "fused", "loops"):
        assert main(["show", "m.fx", "--stage", stage]) == 0
        text = capsys.readouterr().out
        assert print_module(parse_module(text)) == text
    assert failure(capsys, "show", "m.fx", "--stage", "soup")[:2] == ("FX0512", 2)
    assert failure(capsys, "show", "m.fx", "--stage", "asm", "--target", "sm_80")[:2] == ("FX0512", 2)


def test_diff(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "renamed.fx").write_text(TEXT.replace("%1", "%scaled").replace("@f", "@f"))
    (place / "other.fx").write_text(TEXT.replace("add(", "sub("))
    assert run_json(capsys, "diff", "m.fx", "renamed.fx")["same"] is True
    data = run_json(capsys, "diff", "m.fx", "other.fx", status=1)
    assert data["same"] is False and any(line.startswith("+") and "sub(" in line for line in data["diff"])
    assert run_json(capsys, "diff", "m.fx", "other.fx", "--stage", "fused", status=1)["same"] is False
    assert main(["compile", "m.fx"]) == 0
    assert run_json(capsys, "diff", "m.fx", "m.fxb")["same"] is True


def test_verify(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "verify", "model.py", "--numeric")["entries"]
    assert [row["entry"] for row in rows] == ["scale", "total"]
    assert all(result["difference"] < 1e-5 for row in rows for result in row["numeric"]["results"])
    rows = run_json(capsys, "verify", "m.fx", "--numeric", "--dim", "B=9")["entries"]
    assert rows[0]["numeric"]["sizes"] == {"B": 9}
    assert failure(capsys, "verify", "m.fx", "--numeric", "--dim", "B=0")[0] == "FX0604"
    (place / "wrong.fx").write_text(TEXT.replace("%4 = add(%2, %3) : f32[B,4]", "%4 = add(%2, %3) : f32[B,5]"))
    code, status, text = failure(capsys, "verify", "wrong.fx")
    assert (code, status) == ("FX0105", 1) and "wrong.fx:8" in text


def test_verify_numeric_finds_a_wrong_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fluxir.runtime.program import Program

    honest = Program.call_flat
    monkeypatch.setattr(
        Program, "call_flat", lambda self, arrays, out=None: [a * 1.01 for a in honest(self, arrays, out)]
    )
    assert failure(capsys, "verify", "m.fx", "--numeric")[:2] == ("FX0404", 4)


def test_ops_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    ops = run_json(capsys, "ops")
    assert len(ops) > 100 and all(op["doc"] for op in ops)
    one = run_json(capsys, "ops", "dot")
    assert one["rules"]["meaning"] and any("f32[3,5]" in line for line in one["examples"])
    assert {op["category"] for op in run_json(capsys, "ops", "--category", "reduce")} == {"reduce"}
    assert all(not op["rules"]["samples"] for op in run_json(capsys, "ops", "--lacking", "samples"))
    assert failure(capsys, "ops", "ad")[:2] == ("FX0102", 1)
    names = {one["name"] for one in run_json(capsys, "passes")}
    assert {"fold", "cse", "dce", "inline", "expand", "fuse", "plan"} <= names
    assert run_json(capsys, "passes", "fuse")["options"]["max_ops"]["default"] == 64
    assert failure(capsys, "passes", "fusee")[:2] == ("FX0401", 2)


def test_lowered_ir_is_compiled_only_where_it_is_trusted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compile", "m.fx", "--dump-dir", str(tmp_path / "d")]) == 0
    capsys.readouterr()
    dump = str(tmp_path / "d" / "loops.fx")
    for verb in (
        ["compile", dump, "-o", str(tmp_path / "l.fxb")],
        ["run", dump, "-i", "x=random", "-i", "k=1", "--dim", "B=2"],
    ):
        assert failure(capsys, *verb)[:2] == ("FX0813", 1)
        assert main([*verb, "--trust"]) == 0
        capsys.readouterr()
    assert main(["show", dump, "--stage", "loops"]) == 0 and main(["verify", dump]) == 0
    with pytest.raises(FluxError, match="FX0813"):
        fx.load_model(dump)
    assert fx.load_model(dump, trust=True).entries


def test_cache_explain_says_why_an_entry_is_another(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--opt-level", "1"], ["--target", "sm_80", "-o", "m80.fxb"]):
        assert main(["compile", "m.fx", *arguments]) == 0
    entries = run_json(capsys, "cache", "ls")["entries"]
    assert len(entries) == 3
    default = next(
        e for e in entries if e["meta"]["key_parts"]["settings"]["opt_level"] == 2 and e["meta"]["target"] == "cpu"
    )
    told = run_json(capsys, "cache", "explain", default["digest"][:16])
    assert told["intact"]
    assert sorted(told["differs"].values()) == [["places", "target"], ["settings"]]  # code for a GPU names lines


def test_a_full_disk_costs_the_cache_entry_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fluxir.runtime.cache as module

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_entry", full)
    with pytest.warns(UserWarning, match="not cached: .*No space left"):
        assert main(["compile", "m.fx"]) == 0
    monkeypatch.undo()


def test_wrong_options_are_told_before_anything_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, says in (
        (["compile", "nowhere.fx", "-o", "out.txt"], "FX0906", "ends in .fxb"),
        (["compile", "nowhere.fx", "--assemble"], "FX0904", "GPU"),
        (["compile", "m.fx", "--dim", "B=2", "--dim", "B=3"], "FX0905", "write SYMBOL=SIZE"),
        (["run", "m.fx", "--input", "x"], "FX0905", "NAME=random"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert code in said and says in said


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) in (0, 2)
    said = "".join(capsys.readouterr())
    assert said.lower().startswith("usage: fluxir") and "error[" not in said
