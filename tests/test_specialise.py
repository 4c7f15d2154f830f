"""Sizes given when compiling: `fluxir compile --dim B=32`, and `specialise` under it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fluxir
import fluxir.ops
from fluxir.cli import main
from fluxir.driver import Lowered
from fluxir.errors import FluxError
from fluxir.frontend.loader import load_model
from fluxir.ir.interp import interpret
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.specialise import specialise
from fluxir.ir.verify import verify_module
from tests.test_calls import HALVES, TWICE

MODEL = """import fluxir as fx

@fx.model(facts="B >= 1, T % 8 == 0")
def main(x: fx.f32["B", "T"]) -> fx.f32["B"]:
    fx.assume("B <= 64")
    if x.shape[0] <= 4:  # not known while tracing unless B is given
        return x.sum(axis=1)
    return x.max(axis=1)
"""


def fails(code: str, *args: object) -> FluxError:
    with pytest.raises(FluxError) as e:
        specialise(*args)  # type: ignore[arg-type]
    assert e.value.code == code
    return e.value


@pytest.mark.parametrize("text", [TWICE, HALVES, HALVES.replace("S", "B"), TWICE.replace("S", "B")])
def test_the_specialised_program_is_the_program_at_that_size(text: str) -> None:
    module = parse_module(text)
    fixed = specialise(module, {"B": 5})
    verify_module(fixed)
    assert "B" not in fixed.entry.symbols and not fixed.facts.bounds
    assert parse_module(print_module(fixed)).digest == fixed.digest
    rng = np.random.default_rng(0)
    shapes = [(5, *a.type.shape[1:]) if a.type.shape else () for a in module.entry.args]
    args = [
        rng.integers(0, 4, s).astype(a.dtype.numpy) if a.dtype.is_integer else rng.standard_normal(s).astype("f4")
        for a, s in zip(module.entry.args, shapes, strict=True)
    ]
    want = interpret(module, args)
    for got in (interpret(fixed, args), Lowered(fixed).compile("cpu", cache=False).program.call_flat(args)):
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_function_called_at_two_sizes_keeps_its_own() -> None:
    """@h is called for the entry's B and for twice of it."""
    module = parse_module("""module @m
dims B >= 1
func @main(%x: f32[B]) -> (i64, i64) {
  %z = concat(%x, %x) [axis=0] : f32[2*B]
  %y = call(%x) [callee="h", results=(!i64[],)] : i64
  %w = call(%z) [callee="h", results=(!i64[],), dims=(("B", <2*B>),)] : i64
  return %y, %w
}
func @h(%x: f32[B]) -> (i64) {
  %n = dim [value=<B>] : i64
  return %n
}
""")
    fixed = specialise(module, {"B": 3})
    verify_module(fixed)
    x = np.zeros(3, "f4")
    assert [int(v) for v in interpret(fixed, [x])] == [3, 6]
    assert [int(v) for v in Lowered(fixed).compile("cpu", cache=False).program.call_flat([x])] == [3, 6]


FACTS = """module @m
dims B >= 2, B <= 9, T % 8 == 0, N == B*2
func @main(%x: f32[B,T], %y: f32[N]) -> (f32[B,T]) {
  %0 = exp(%x) : f32[B,T]
  return %0
}
"""


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"B": 1}, "the program needs B >= 2"),
        ({"B": 10}, "the program needs B <= 9"),
        ({"T": 12}, "the program needs T % 8 == 0"),
        ({"B": 3, "N": 7}, "which are"),
        ({"Q": 7}, "@main has no size Q"),
        ({"T": -8}, "a size is at least 0"),
    ],
)
def test_every_fact_is_checked(sizes: dict[str, int], says: str) -> None:
    assert says in fails("FX0604", parse_module(FACTS), sizes).message


def test_facts_about_the_other_sizes_stay() -> None:
    fixed = specialise(parse_module(FACTS), {"B": 3})
    assert fixed.facts.describe() == ["T % 8 == 0", "N == 6"]
    verify_module(fixed)
    all_fixed = specialise(fixed, {"N": 6, "T": 0})
    assert all_fixed.facts.describe() == [] and str(all_fixed.entry.outs[0].type) == "f32[3,0]"


def test_a_size_that_becomes_negative_is_refused() -> None:
    text = (
        "func @f(%x: f32[B]) -> (f32[B-4]) {\n %0 = slice(%x) [start=(0,), limit=(<B-4>,)] : f32[B-4]\n return %0\n}\n"
    )
    module = parse_module("module @m\ndims B >= 4\n" + text)
    assert str(specialise(module, {"B": 4}).entry.outs[0].type) == "f32[0]"
    with pytest.raises(FluxError):
        specialise(Lowered(module).module.with_func(module.entry), {"B": 3})


# ---- models and the command line ---------------------------------------------------------------------------------------


def test_a_model_may_branch_on_a_size_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    entry = load_model(path).entry()
    with pytest.raises(FluxError, match="specialise the size with --dim"):
        entry.trace()
    x = np.arange(32, dtype="f4").reshape(4, 8)
    np.testing.assert_array_equal(interpret(entry.trace({"B": 4}).module, [x])[0], x.sum(1))
    y = np.arange(40, dtype="f4").reshape(5, 8)
    np.testing.assert_array_equal(interpret(entry.trace({"B": 5, "T": 8}).module, [y])[0], y.max(1))
    for sizes in ({"B": 0}, {"T": 9}, {"B": 65}, {"K": 1}):
        with pytest.raises(FluxError) as e:
            entry.trace(sizes)
        assert e.value.code == "FX0604", sizes


@pytest.mark.parametrize("suffix", [".py", ".fx"])
def test_compile_for_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    path, out = tmp_path / ("model" + suffix), tmp_path / "out.fxb"
    path.write_text(MODEL if suffix == ".py" else "module @m\ndims B >= 1, T % 8 == 0\n" + SUM)
    assert main(["compile", str(path), "-o", str(out), "--dim", "B=3", "--no-cache", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["dims"] == {"B": 3} and data["inputs"][0]["shape"] == [3, "T"]
    program = fluxir.load(out)
    x = np.arange(48, dtype="f4").reshape(3, 16)
    np.testing.assert_array_equal(program(x), x.sum(1))
    with pytest.raises(FluxError) as e:
        program(np.zeros((2, 16), "f4"))
    assert e.value.code == "FX0602"
    for wrong, status, code in (("B=0", 1, "FX0604"), ("Q=1", 1, "FX0604"), ("B", 2, "FX0905"), ("B=x", 2, "FX0905")):
        assert main(["compile", str(path), "-o", str(out), "--dim", wrong, "--no-cache"]) == status
        assert code in capsys.readouterr().err


SUM = """func @main(%x: f32[B,T]) -> (f32[B]) {
  %0 = sum(%x) [axes=(1,)] : f32[B]
  return %0
}
"""
