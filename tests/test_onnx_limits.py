"""What keeps a file in bounds, and that it changes nothing for files that are: see tests/hostile for those that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend.onnx import external, wire
from fluxir.frontend.onnx.model import identifiers
from fluxir.passes.cleanup import _check_inlined
from tests.onnx_build import chunk, graph, model, node, number, tensor, value, varint
from tests.onnx_build import external as elsewhere


def load(folder: Path, data: bytes) -> fx.onnx.Model:
    (path := folder / "m.onnx").write_bytes(data)
    return fx.onnx.load(path)


def test_many_packed_numbers_are_those_read_one_by_one() -> None:
    rng = np.random.default_rng(0)
    numbers = [*map(int, rng.integers(-(2**63), 2**63 - 1, 3000)), *map(int, rng.integers(0, 300, 200_000)), -1, 2**62]
    data = b"".join(map(varint, numbers))
    assert wire._Reader(memoryview(data), "m").varints(0, len(data)).tolist() == numbers


@pytest.mark.parametrize("spelling", ["packed", "one by one", "both"])
def test_numbers_in_lists(spelling: str, tmp_path: Path) -> None:
    """Of a field that is repeated, numbers may lie in several places, packed or not."""
    n = np.arange(3000)

    def packed(part: np.ndarray) -> bytes:  # type: ignore[type-arg]
        return chunk(7, b"".join(varint(int(v)) for v in part))

    def single(part: np.ndarray) -> bytes:  # type: ignore[type-arg]
        return b"".join(number(7, int(v)) for v in part)

    body = {"packed": packed(n), "one by one": single(n), "both": packed(n[:2900]) + single(n[2900:])}[spelling]
    constant = number(1, 3000) + number(2, 7) + chunk(8, "w") + body
    m = load(
        tmp_path, model(graph([node("Add", ["x", "w"], ["y"])], [value("x", [1], "int64")], [value("y")], [constant]))
    )
    assert (m(np.array([5])) == n + 5).all()


@pytest.mark.parametrize("kernel", [True, False])
def test_data_beneath_the_folder_is_read(kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel's own call, and part by part where it has none."""
    if not kernel:
        monkeypatch.setattr(external, "_syscall", lambda: None)
    (tmp_path / "a" / "b").mkdir(parents=True)
    w = np.arange(4, dtype=np.float32)
    (tmp_path / "a" / "b" / "w.bin").write_bytes(bytes(8) + w.tobytes())
    (tmp_path / "inside").symlink_to("a")
    for location, fine in (
        ("a/b/w.bin", True),
        ("./a//b/w.bin", True),
        ("inside/b/w.bin", False),
        ("a/b", False),
        ("b/w.bin", False),
    ):
        data = elsewhere("w", (4,), location=location, offset="8", length="16")
        m = load(tmp_path, model(graph([node("Add", ["x", "w"], ["y"])], [value("x", [4])], [value("y")], [data])))
        if fine:
            assert (m(np.ones(4, np.float32)) == w + 1).all()
        else:
            with pytest.raises(FluxError, match="FX1206"):
                m(np.ones(4, np.float32))


def test_names_that_become_the_same_stay_apart(tmp_path: Path) -> None:
    assert identifiers(["a.b", "a-b", "a_b", "", "é"], ["p", "q", "r", "s", "t"]) == ["a_b", "a_b_2", "a_b_3", "s", "t"]
    body = graph(
        [node("Concat", ["x.1", "x-1"], ["y"], axis=0)], [value("x.1", ["a.b"]), value("x-1", ["a-b"])], [value("y")]
    )
    m = load(tmp_path, model(body))
    assert [str(t) for t in m.inputs.values()] == ["f32[a_b]", "f32[a_b_2]"]
    assert m(np.ones(2, np.float32), np.zeros(3, np.float32)).tolist() == [1, 1, 0, 0, 0]


def test_what_would_be_large_becomes_part_of_the_program(tmp_path: Path) -> None:
    """A constant of 16 million elements, made of three numbers: not while the model is read."""
    nodes = [
        node("ConstantOfShape", ["n"], ["c"]),
        node("ReduceSum", ["c"], ["s"], keepdims=0),
        node("Add", ["x", "s"], ["y"]),
    ]
    m = load(tmp_path, model(graph(nodes, [value("x", [1])], [value("y")], [tensor(np.array([256, 256, 256]), "n")])))
    assert "const [value=#" not in m.lower().as_text("traced") and m(np.ones(1, np.float32)).tolist() == [1.0]


def test_chains_and_circles_of_calls() -> None:
    """Inlining walks along calls of any length without recursion, and knows which functions call themselves."""
    from fluxir.ir.parser import parse_module

    one = 'func @f{0}(%x: f32) -> (f32) {{\n  %0 = call(%x) [callee="f{1}", results=(!f32[],)] : f32\n  return %0\n}}\n'
    text = "module @m\n" + "".join(one.format(i, i + 1) for i in range(1500)) + one.format(1500, 1499)
    module = parse_module(text)
    calls = {n: {o.attrs["callee"] for o in f.walk() if o.name == "call"} for n, f in module.funcs.items()}
    assert _check_inlined(module, calls) == {"f1499", "f1500"}
