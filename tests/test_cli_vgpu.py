"""`fluxir vgpu` and `fluxir run --device vgpu`: results, findings and their exit statuses, profiles, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxir import config
from fluxir.cli import main

SAXPY = """.version 7.0
.target sm_80
.address_size 64
.visible .entry saxpy(.param .u32 n, .param .f32 a, .param .u64 x, .param .u64 y)
{
  .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<6>;
  ld.param.u32 %r1, [n]; ld.param.f32 %f1, [a]; ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.u32 %p1, %r5, %r1;
  @%p1 bra done;
  mul.wide.u32 %rd3, %r5, 4;
  add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
  ld.global.f32 %f2, [%rd4]; ld.global.f32 %f3, [%rd5];
  fma.rn.f32 %f3, %f1, %f2, %f3;
  st.global.f32 [%rd5], %f3;
done: ret;
}
"""
TWO = SAXPY + ".visible .entry other() { ret; }\n"
MODEL = """import fluxir as fx

@fx.model(facts="B >= 1")
def scaled(x: fx.f32["B", 33]) -> fx.f32["B", 33]:
    return fx.nn.softmax(x * 2, axis=1)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXIR_CACHE_DIR", str(tmp_path / "cache"))
    config.reload()
    Path("saxpy.ptx").write_text(SAXPY)
    Path("two.ptx").write_text(TWO)
    np.save("x.npy", np.arange(1000, dtype=np.float32))
    yield tmp_path
    monkeypatch.undo()
    config.reload()


class Ran:
    def __init__(self, capsys: Any, *arguments: str) -> None:
        self.status = main(list(arguments))
        self.out, self.err = capsys.readouterr()

    @property
    def data(self) -> Any:
        return json.loads(self.out)


LAUNCH = ("--grid", "4", "--block", "256")


def saxpy(n: int = 1000, *more: str) -> list[str]:
    given = [f"n=i32:{n}", "f32:2", "x.npy", "y=zeros:f32:1000"]
    return ["vgpu", "run", "saxpy.ptx", *LAUNCH, *[w for a in given for w in ("--arg", a)], *more]


def test_run(capsys: Any) -> None:
    ran = Ran(capsys, *saxpy(1000, "--save", "y=out.npy"))
    assert ran.status == 0, ran.err
    np.testing.assert_array_equal(np.load("out.npy"), 2 * np.load("x.npy"))
    assert "saxpy: " in ran.out and "thread instructions" in ran.out and "written to out.npy" in ran.out


def test_run_as_json_with_a_profile(capsys: Any) -> None:
    ran = Ran(capsys, *saxpy(900, "--json", "--profile", "--target", "sm_90"))
    assert ran.status == 0, ran.err
    data = ran.data
    assert data["target"] == "sm_90" and data["grid"] == [4, 1, 1] and data["findings"] == []
    assert data["counters"]["requests"] == {"global load": 2 * 29, "global store": 29}
    assert data["counters"]["bytes"] == {"global load": 7200, "global store": 3600}
    assert data["arrays"]["y"]["max"] == 2 * 899
    profile = data["profile"]
    assert set(profile["bounds"]) == {"A100 SXM 80GB", "H100 SXM", "RTX 4090"}
    assert profile["occupancy"]["warps"] == 64 and profile["registers"] >= 8
    assert all(b["seconds"] > 0 for b in profile["bounds"].values())


def test_the_profile_as_tables(capsys: Any) -> None:
    ran = Ran(capsys, *saxpy(1000, "--profile"))
    assert "lower bound" in ran.out and "sectors/req." in ran.out and "no timings" in ran.out and "float32" in ran.out


def test_a_finding_ends_the_run(capsys: Any) -> None:
    ran = Ran(capsys, *saxpy(1001))
    assert ran.status == 1 and "FX0708" in ran.err
    assert "0 bytes past the end of the allocation `x`" in ran.err and "thread (232, 0, 0)" in ran.err
    assert "PTX line 14: ld.global.f32" in ran.err and not ran.out


def test_findings_are_collected(capsys: Any) -> None:
    ran = Ran(capsys, *saxpy(1001, "--check", "collect", "--json", "--save", "y=out.npy"))
    assert ran.status == 1 and not ran.err
    assert [f["line"] for f in ran.data["findings"]] == [14, 14, 16]
    assert {f["kind"] for f in ran.data["findings"]} == {"out-of-bounds"}
    np.testing.assert_array_equal(np.load("out.npy"), 2 * np.load("x.npy"))  # what is right was done


def test_findings_as_text(capsys: Any) -> None:
    ran = Ran(capsys, *saxpy(1001, "--check", "collect"))
    assert ran.status == 1 and ran.out.count("out-of-bounds in saxpy") == 3


def test_every_type_of_argument(capsys: Any) -> None:
    for kind in ("i8", "u16", "f64", "bf16", "bool"):
        given = ["--arg", "i32:0", "--arg", "f32:1", "--arg", f"ones:{kind}:3,2", "--arg", f"empty:{kind}:4"]
        assert Ran(capsys, "vgpu", "run", "saxpy.ptx", *given).status == 0
    ran = Ran(
        capsys, "vgpu", "run", "saxpy.ptx", "-a", "i32:4", "-a", "f32:1", "-a", "empty:f32:4", "-a", "zeros:f32:4"
    )
    assert ran.status == 1 and "uninitialised" in ran.err


def test_without_checks(capsys: Any) -> None:
    assert Ran(capsys, *saxpy(1001, "--check", "off")).status == 0


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (["--block", "2000"], 6, "FX0705"),
        (["--grid", "0"], 6, "FX0705"),
        (["--target", "sm_75"], 6, "FX0707"),
        (["--target", "sm_81"], 2, "FX0501"),
        (["--kernel", "nothing"], 1, "FX0711"),
        (["--arg", "i32:1"], 2, "FX0905"),
        (["--grid", "1,2,3,4"], 2, "FX0905"),
        (["--save", "n=out.npy"], 2, "FX0905"),
        (["--check", "maybe"], 2, "FX0906"),
    ],
)
def test_what_cannot_be_run(capsys: Any, change: list[str], status: int, says: str) -> None:
    ran = Ran(capsys, *saxpy(1000, *change))
    assert says in ran.err and ran.status == status, ran.err


@pytest.mark.parametrize("arg", ["i99:1", "i32:x", "u8:256", "zeros:f32:", "nothing", "f32:", "bf16:x", "null:"])
def test_arguments_that_are_none(capsys: Any, arg: str) -> None:
    ran = Ran(capsys, "vgpu", "run", "saxpy.ptx", "--arg", arg, "--arg", "f32:1", "--arg", "null", "--arg", "null")
    assert ran.status == 2 and "FX0905" in ran.err and "write FILE.npy" in ran.err


def test_which_kernel(capsys: Any) -> None:
    ran = Ran(capsys, "vgpu", "run", "two.ptx")
    assert ran.status == 2 and "saxpy or other" in ran.err
    assert Ran(capsys, "vgpu", "run", "two.ptx", "--kernel", "other").status == 0


def test_files(capsys: Any) -> None:
    assert Ran(capsys, "vgpu", "run", "missing.ptx").status == 74
    Path("bad.ptx").write_text("this is not PTX\n")
    ran = Ran(capsys, "vgpu", "run", "bad.ptx")
    assert ran.status == 1 and "FX0711" in ran.err


def test_check(capsys: Any) -> None:
    ran = Ran(capsys, "vgpu", "check", "two.ptx", "--json")
    assert ran.status == 0 and ran.data["kernels"] == {"saxpy": 18, "other": 1} and ran.data["target"] == "sm_80"
    Path("odd.ptx").write_text(SAXPY.replace("fma.rn.f32", "frob.f32").replace("setp.ge.u32", "setp.gg.u32"))
    ran = Ran(capsys, "vgpu", "check", "odd.ptx")
    assert ran.status == 3 and "`frob`" in ran.err and "`.gg`" in ran.err, "all in one go"


def test_instructions(capsys: Any) -> None:
    ran = Ran(capsys, "vgpu", "instructions", "--json")
    rows = {r["name"]: r for r in ran.data["instructions"]}
    assert len(rows) > 80 and rows["shfl"]["class"] == "warp" and rows["fma"]["forms"] > 10
    assert all(r["section"].startswith("9.7") and r["class"] for r in rows.values())
    shown = Ran(capsys, "vgpu", "instructions", "mad").out
    assert "madc" in shown and "shfl" not in shown
    assert Ran(capsys, "vgpu", "instructions", "frob").status == 3


# ---- fluxir run -------------------------------------------------------------------------------------------------------


def test_run_a_model(capsys: Any) -> None:
    Path("model.py").write_text(MODEL)
    given = ["run", "model.py", "-i", "x=random", "--dim", "B=5"]
    assert Ran(capsys, *given, "-o", "y=@cpu.npy", "--device", "cpu").status == 0
    ran = Ran(capsys, *given, "-o", "y=@vgpu.npy", "--device", "vgpu:sm_80", "--profile", "--json", "--repeat", "2")
    assert ran.status == 0, ran.err
    np.testing.assert_allclose(np.load("vgpu.npy"), np.load("cpu.npy"), rtol=1e-5)
    assert ran.data["device"] == "vgpu:sm_80" and all(p["launches"] == 1 for p in ran.data["profile"])
    assert all("model.py:5" in p["source"] for p in ran.data["profile"])
    ran = Ran(capsys, *given, "--profile")
    assert ran.status == 2 and "--device vgpu" in ran.err


def test_run_an_artifact(capsys: Any) -> None:
    Path("model.py").write_text(MODEL)
    assert Ran(capsys, "compile", "model.py", "--target", "cpu", "-o", "m.fxb").status == 0
    ran = Ran(capsys, "run", "m.fxb", "-i", "x=random", "--dim", "B=5", "--device", "vgpu")
    assert ran.status == 6 and "FX0707" in ran.err


def test_doctor(capsys: Any) -> None:
    ran = Ran(capsys, "doctor", "--device", "vgpu:sm_80", "--json")
    (found,) = [f for f in ran.data["findings"] if f["what"] == "device"]
    assert found["state"] == "ok" and "sm_80" in found["detail"]
    assert Ran(capsys, "doctor", "--device", "vgpu:sm_12").status == 2
