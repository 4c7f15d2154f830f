"""`fluxir import`, `bench`, `verify --reference` and `--dim` on ONNX files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxir.cli import main
from fluxir.frontend.loader import load_model
from fluxir.ir.interp import interpret
from fluxir.runtime.safetensors import load_safetensors
from tests.onnx_build import graph, model, node, tensor, value

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """relu(x @ w) with an open batch."""
    body = graph(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], [value("x", ["batch", 4])],
        [value("y", ["batch", 3])], [tensor(W, "w")],
    )  # fmt: skip
    path = tmp_path / "layer.onnx"
    path.write_bytes(model(body))
    return path


def run(*arguments: Any) -> int:
    return main([*map(str, arguments), "--no-sandbox"])


def said(capsys: Any) -> Any:
    return json.loads(capsys.readouterr().out)


def test_import_writes_a_complete_program(file: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "layer.fx"
    assert run("import", file, "-o", out, "--json") == 0
    data = said(capsys)
    assert data["arguments"] == [{"name": "x", "type": "f32[batch,4]"}] and data["results"][0]["name"] == "y"
    program = load_model(out).entry(None).trace()
    np.testing.assert_allclose(interpret(program.module, [X])[0], np.maximum(X @ W, 0), rtol=1e-5)


def test_import_for_one_size_with_weights_as_arguments(file: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "layer.fx"
    assert run("import", file, "-o", out, "--dim", "batch=5", "--weights-as-args", "--json") == 0
    assert [a["type"] for a in said(capsys)["arguments"]] == ["f32[4,3]", "f32[5,4]"]
    weights = load_safetensors(tmp_path / "layer.safetensors")
    np.testing.assert_array_equal(weights["w"], W)
    assert "dense<f32[4,3]" not in out.read_text()
    assert run("import", file, "-o", out, "--dim", "b=5", "--json") != 0
    assert said(capsys)["error"]["code"] == "FX0604"
    assert run("import", file, "-o", tmp_path / "layer.txt") == 2


def test_dim_on_show_and_run(file: Path, capsys: Any) -> None:
    assert run("show", file, "--dim", "batch=7") == 0
    assert "f32[7,4]" in capsys.readouterr().out
    assert run("run", file, "--dim", "batch=7", "-i", "x=random", "--json") == 0
    assert said(capsys)["outputs"]["y"]["shape"] == [7, 3]


def test_bench(file: Path, capsys: Any) -> None:
    assert run("bench", file, "--dim", "batch=3", "--rounds", 2, "--json") == 0
    data = said(capsys)
    assert data["inputs"] == {"x": [3, 4]} and set(data["median_ms"]) == {"fluxir"}


def test_bench_against_onnxruntime(file: Path, tmp_path: Path, capsys: Any) -> None:
    there = importlib.util.find_spec("onnxruntime") is not None
    status = run("bench", file, "--dim", "batch=3", "--rounds", 2, "--against", "onnxruntime", "--json")
    data = said(capsys)
    if there:
        assert status == 0 and data["agrees"] and set(data["median_ms"]) == {"fluxir", "onnxruntime"}
    else:
        assert status == 3 and data["error"]["code"] == "FX1209"
    out = tmp_path / "layer.fx"
    run("import", file, "-o", out)
    capsys.readouterr()
    assert run("bench", out, "--against", "onnxruntime", "--json") == 2
    assert said(capsys)["error"]["code"] == "FX0904"


def reference(folder: Path, y: Any) -> Path:
    for n in range(2):
        data = folder / f"test_data_set_{n}"
        data.mkdir(parents=True)
        (data / "input_0.pb").write_bytes(tensor(X * (n + 1), "x"))
        (data / "output_0.pb").write_bytes(tensor((y * (n + 1)).astype(np.float32), "y"))
    return folder


def test_verify_against_reference_inputs(file: Path, tmp_path: Path, capsys: Any) -> None:
    right = np.maximum(X @ W, 0)
    assert run("verify", file, "--reference", reference(tmp_path / "right", right), "--json") == 0
    rows = said(capsys)["results"]
    assert [r["set"] for r in rows] == ["test_data_set_0", "test_data_set_1"] and all(
        r["difference"] < 1e-6 for r in rows
    )
    assert run("verify", file, "--reference", reference(tmp_path / "wrong", right * 1.1), "--json") == 4
    assert said(capsys)["error"]["code"] == "FX0404"
    np.savez(tmp_path / "some.npz", x=X, y=right)
    assert run("verify", file, "--reference", tmp_path / "some.npz") == 0
    np.savez(tmp_path / "none.npz", x=X)
    capsys.readouterr()
    assert run("verify", file, "--reference", tmp_path / "none.npz", "--json") != 0
    assert said(capsys)["error"]["code"] == "FX0812"
    assert run("verify", file, "--reference", tmp_path / "missing") != 0
