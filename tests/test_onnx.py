"""ONNX files: what they compute, open sizes, errors that name the node, and files that must be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from tests.onnx_build import chunk, external, graph, model, node, number, tensor, value, varint


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def mlp() -> bytes:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["y"])]
    return model(graph(nodes, [value("x", ["batch", 4])], [value("y", ["batch", 3])], [tensor(w, "w"), tensor(b, "b")]))


def run(tmp_path: Path, data: bytes, *args: Any, **options: Any) -> Any:
    return fx.onnx.load(write(tmp_path / "m.onnx", data), **options)(*args)


def refused(tmp_path: Path, data: bytes, code: str, *args: Any) -> FluxError:
    with pytest.raises(FluxError) as e:
        run(tmp_path, data, *args)
    assert e.value.code == code, e.value
    return e.value


def test_one_program_for_all_sizes(tmp_path: Path) -> None:
    m = fx.onnx.load(write(tmp_path / "m.onnx", mlp()))
    w, b = m.weights["w"], m.weights["b"]
    for n in (1, 5):
        x = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
        np.testing.assert_allclose(m(x=x), np.maximum(x @ w + b, 0), rtol=1e-5, atol=1e-6)
    assert m.is_open and str(m.inputs["x"]) == "f32[batch,4]"


def test_a_loaded_model_is_a_function_like_others(tmp_path: Path) -> None:
    m = fx.onnx.load(write(tmp_path / "m.onnx", mlp()), weights_as_args=True)
    x = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)
    g = fx.grad(lambda weights: fx.sum(m(weights, x) ** 2))(m.weights)
    assert set(g) == {"w", "b"} and g["w"].shape == (4, 3) and np.abs(g["w"]).max() > 0
    plain = fx.onnx.load(tmp_path / "m.onnx")
    rows = fx.vmap(lambda v: plain(v[None])[0])(np.stack([x[0], 2 * x[0]]))
    np.testing.assert_allclose(rows, plain(np.stack([x[0], 2 * x[0]])), rtol=1e-6)


def test_shape_arithmetic_leaves_nothing_in_the_program(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Mul", ["n", "two"], ["twice"]),
        node("Unsqueeze", ["twice", "zero1"], ["u"]),
        node("Concat", ["u", "rest"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["y"]),
    ]
    constants = [
        tensor(np.int64(0), "zero"), tensor(np.int64(2), "two"), tensor(np.array([0]), "zero1"), tensor(np.array([3]), "rest")
    ]  # fmt: skip
    data = model(graph(nodes, [value("x", ["n", 6])], [value("y", ["m", 3])], constants))
    m = fx.onnx.load(write(tmp_path / "m.onnx", data))
    assert [op.name for op in m.lower().module.entry.block.ops] == ["reshape"]
    assert m(np.zeros((5, 6), np.float32)).shape == (10, 3)


def test_windows_bound_the_sizes(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"], strides=(2,))]
    w = np.ones((1, 1, 5), np.float32)
    data = model(graph(nodes, [value("x", [1, 1, "n"])], [value("y", [1, 1, "m"])], [tensor(w, "w")]))
    m = fx.onnx.load(write(tmp_path / "m.onnx", data))
    np.testing.assert_allclose(m(np.ones((1, 1, 9), np.float32)), np.full((1, 1, 3), 5.0))
    with pytest.raises(FluxError, match="n"):
        m(np.ones((1, 1, 4), np.float32))


def test_values_that_decide_shapes_are_compiled_for(tmp_path: Path) -> None:
    data = model(
        graph(
            [node("Reshape", ["x", "s"], ["y"])], [value("x", [6]), value("s", [2], "int64")], [value("y", ["a", "b"])]
        )
    )
    m = fx.onnx.load(write(tmp_path / "m.onnx", data))
    x = np.arange(6, dtype=np.float32)
    assert m(x, np.array([2, 3])).shape == (2, 3) and m(x, np.array([3, -1])).shape == (3, 2) and not m.is_open


def test_control_flow(tmp_path: Path) -> None:
    body = graph(
        [node("Identity", ["c"], ["c2"]), node("Add", ["a", "x"], ["a2"]), node("Mul", ["a2", "x"], ["row"])],
        [value("i", [], "int64"), value("c", [], "bool"), value("a", [2])],
        [value("c2", [], "bool"), value("a2", [2]), value("row", [2])],
    )
    data = model(
        graph(
            [node("Loop", ["trips", "", "x"], ["last", "rows"], body=body)],
            [value("x", [2])],
            [value("last", [2]), value("rows", [3, 2])],
            [tensor(np.int64(3), "trips")],
        )
    )
    x = np.array([1.0, 2.0], np.float32)
    last, rows = run(tmp_path, data, x)
    np.testing.assert_allclose(last, 4 * x)
    np.testing.assert_allclose(rows, np.stack([2 * x, 3 * x, 4 * x]) * x)


def test_integer_products_are_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (3, 50)).astype(np.uint8), rng.integers(-128, 128, (50, 4)).astype(np.int8)
    data = model(
        graph(
            [node("MatMulInteger", ["a", "b", "z"], ["y"])],
            [value("a", [3, 50], "uint8"), value("b", [50, 4], "int8")],
            [value("y", [3, 4], "int32")],
            [tensor(np.uint8(7), "z")],
        )
    )
    np.testing.assert_array_equal(run(tmp_path, data, a, b), (a.astype(np.int32) - 7) @ b.astype(np.int32))


def test_errors_name_the_node(tmp_path: Path) -> None:
    data = model(graph([node("Conv", ["x", "w"], ["y"])], [value("x", [1, 2, 8]), value("w", [4, 3, 3])], [value("y")]))
    problem = refused(tmp_path, data, "FX0210", np.zeros((1, 2, 8), np.float32), np.zeros((4, 3, 3), np.float32))
    assert any("Conv 'Conv_y'" in n for n in problem.notes) and problem.loc is not None and problem.loc.line == 1


def test_all_problems_at_once(tmp_path: Path) -> None:
    nodes = [node("Nothing", ["x"], ["a"]), node("Relu", ["a"], ["b"], axis=1), node("Swish", ["b"], ["y"])]
    path = write(tmp_path / "m.onnx", model(graph(nodes, [value("x", [2])], [value("y", [2])]), opset=17))
    found = {o.name: o for o in fx.onnx.check(path).operators}
    assert "not supported" in found["Nothing"].problem and "axis" in found["Relu"].problem
    assert "from opset 24 on" in found["Swish"].problem
    out = subprocess.run(
        [sys.executable, "-m", "fluxir.cli", "check", str(path), "--json"], capture_output=True, text=True, check=False
    )
    shown = json.loads(out.stdout)
    assert out.returncode == 3 and not shown["ok"] and len(shown["operators"]) == 3


def test_nodes_that_nothing_needs_are_not_read(tmp_path: Path) -> None:
    nodes = [node("Nothing", ["x"], ["a"]), node("Neg", ["x"], ["y"])]
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(run(tmp_path, model(graph(nodes, [value("x", [2])], [value("y", [2])])), x), -x)


# ---- files that must be refused -------------------------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1",
    "cut": mlp()[:-20],
    "length beyond the end": chunk(7, b"x" * 10)[:-4],
    "endless number": varint(7 << 3 | 2) + b"\xff" * 20,
    "group": varint(7 << 3 | 3) + b"\0" * 8,
    "wrong wire type": number(7, 5) + chunk(8, number(2, 17)),
    "no graph": number(1, 10) + chunk(8, number(2, 17)),
    "name of bytes": model(chunk(1, chunk(4, b"\xff\xfe"))),
    "shape of more elements": model(graph([node("Neg", ["w"], ["y"])], [], [value("y")], [tensor(np.zeros(4, np.float32), "w") + number(1, 9)])),
    "negative size": model(graph([node("Neg", ["w"], ["y"])], [], [value("y")], [number(1, -4) + number(2, 1) + chunk(8, "w") + chunk(9, b"")])),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_files(tmp_path: Path, name: str) -> None:
    refused(tmp_path, BROKEN[name], "FX1201")


def test_nesting_is_limited(tmp_path: Path) -> None:
    body = graph([node("Identity", ["x"], ["y"])], [], [value("y")])
    for _ in range(80):
        body = graph([node("If", ["c"], ["y"], then_branch=body, else_branch=body[:0])], [], [value("y")])
    refused(tmp_path, model(body), "FX1202", np.zeros(1, np.float32))


def test_graphs_that_are_not_valid(tmp_path: Path) -> None:
    missing = model(graph([node("Neg", ["nowhere"], ["y"])], [value("x", [2])], [value("y", [2])]))
    refused(tmp_path, missing, "FX1207", np.zeros(2, np.float32))
    bad = model(graph([node("Transpose", ["x"], ["y"], perm=(0, 7))], [value("x", [2, 2])], [value("y", [2, 2])]))
    refused(tmp_path, bad, "FX1204", np.zeros((2, 2), np.float32))


def using(where: dict[str, str]) -> bytes:
    return model(
        graph([node("Add", ["x", "w"], ["y"])], [value("x", [4])], [value("y", [4])], [external("w", [4], **where)])
    )


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    w = np.arange(6, dtype=np.float32)
    (folder / "w.bin").write_bytes(w.tobytes())
    x = np.ones(4, np.float32)
    np.testing.assert_array_equal(
        run(folder, using({"location": "w.bin", "offset": "8", "length": "16"}), x), w[2:] + 1
    )
    (tmp_path / "outside.bin").write_bytes(w.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    os.link(tmp_path / "outside.bin", folder / "hard.bin")
    (folder / "down").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    for where in (
        {"location": "../outside.bin"}, {"location": str(tmp_path / "outside.bin")}, {"location": "link.bin"},
        {"location": "hard.bin"}, {"location": "down/outside.bin"}, {"location": "pipe"}, {"location": ""}, {"location": "."},
        {"location": "none.bin"}, {"location": "w.bin", "offset": "16"}, {"location": "w.bin", "offset": "-4"},
        {"location": "w.bin", "offset": str(2**64)}, {"location": "w.bin", "length": "8"}, {"location": "w\0.bin"},
    ):  # fmt: skip
        refused(folder, using(where), "FX1206", x)
