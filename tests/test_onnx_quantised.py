"""Quantised graphs: products on the integers themselves, exactly, for all signs and zero points; what exporters write as
DequantizeLinear around a product, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from tests.onnx_build import graph, model, node, tensor, value

Array = np.ndarray[Any, Any]


def loaded(tmp_path: Path, body: bytes, **domains: int) -> Any:
    path = tmp_path / "quantised.onnx"
    path.write_bytes(model(body, **domains))
    return fx.onnx.load(path)


def text(m: Any) -> str:
    return str(m.lower().as_text("traced", locations=False))


def integers(rng: Any, dtype: str, *shape: int) -> Array:
    i = np.iinfo(dtype)
    return rng.integers(i.min, i.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("left", ["uint8", "int8"])
@pytest.mark.parametrize("right", ["uint8", "int8"])
@pytest.mark.parametrize("zeros", ["none", "scalar", "each"])
@pytest.mark.parametrize("constant", [True, False])
def test_products_are_exact(tmp_path: Path, left: str, right: str, zeros: str, constant: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = integers(rng, left, 7, 37), integers(rng, right, 37, 19)
    za = {"scalar": integers(rng, left), "each": integers(rng, left, 7)}.get(zeros)
    zb = {"scalar": integers(rng, right), "each": integers(rng, right, 19)}.get(zeros)
    given = [] if za is None else ["za", "zb"]
    names = {"za": za, "zb": zb} if za is not None else {}
    constants = [tensor(v, k) for k, v in names.items()] + ([tensor(b, "b")] if constant else [])
    inputs = [value("a", ["m", 37], left)] + ([] if constant else [value("b", [37, 19], right)])
    m = loaded(
        tmp_path,
        graph([node("MatMulInteger", ["a", "b", *given], ["y"])], inputs, [value("y", ["m", 19], "int32")], constants),
    )
    wide = a.astype(np.int64) - (0 if za is None else za.astype(np.int64).reshape(-1, 1) if za.ndim else int(za))
    want = wide @ (b.astype(np.int64) - (0 if zb is None else zb.astype(np.int64)))
    found = m(a) if constant else m(a, b)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, want)
    assert "dtype=!i32" in text(m)


CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"w": (24, 16, 3, 3), "x": (2, 16, 9, 11), "pads": [1, 1, 1, 1]},
    "1x1": {"w": (20, 70, 1, 1), "x": (1, 70, 5, 6)},
    "strided, dilated": {
        "w": (8, 33, 3, 2),
        "x": (1, 33, 12, 13),
        "strides": [2, 1],
        "dilations": [1, 2],
        "pads": [0, 1, 2, 0],
    },
    "grouped, long sums": {"w": (12, 40, 3, 3), "x": (1, 80, 6, 7), "group": 2},
    "depthwise": {"w": (16, 1, 5, 5), "x": (2, 16, 8, 9), "group": 16, "pads": [2, 2, 2, 2]},
    "few channels": {"w": (8, 3, 3, 3), "x": (1, 3, 10, 10), "strides": [2, 2]},
    "line": {"w": (8, 30, 4), "x": (1, 30, 21)},
}


def convolved(x: Array, w: Array, case: dict[str, Any]) -> Array:
    """The convolution of integers by its definition."""
    n, group = w.ndim - 2, case.get("group", 1)
    strides, dilations = case.get("strides", [1] * n), case.get("dilations", [1] * n)
    pads = case.get("pads", [0] * 2 * n)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], pads[n:])])
    out = [(s - (k - 1) * d - 1) // t + 1 for s, k, d, t in zip(x.shape[2:], w.shape[2:], dilations, strides)]
    y = np.zeros((x.shape[0], w.shape[0], *out), np.int64)
    each = w.shape[0] // group
    for tap in np.ndindex(*w.shape[2:]):
        part = tuple(slice(k * d, k * d + (o - 1) * t + 1, t) for k, d, o, t in zip(tap, dilations, out, strides))
        seen = x[(slice(None), slice(None), *part)]
        for g in range(group):
            own = seen[:, g * w.shape[1] : (g + 1) * w.shape[1]]
            y[:, g * each : (g + 1) * each] += np.einsum(
                "nc...,mc->nm...", own, w[(slice(g * each, (g + 1) * each), slice(None), *tap)]
            )
    return y


@pytest.mark.parametrize("signs", [("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")])
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_are_exact(tmp_path: Path, name: str, signs: tuple[str, str]) -> None:
    case = CONVS[name]
    rng = np.random.default_rng(2)
    x, w = integers(rng, signs[0], *case["x"]), integers(rng, signs[1], *case["w"])
    zx, zw = integers(rng, signs[0]), integers(rng, signs[1])
    attributes = {k: v for k, v in case.items() if k not in ("x", "w")}
    body = graph(
        [node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], **attributes)], [value("x", ["n", *case["x"][1:]], signs[0])],
        [value("y", ["n"] * len(case["x"]), "int32")], [tensor(w, "w"), tensor(zx, "zx"), tensor(zw, "zw")],
    )  # fmt: skip
    found = loaded(tmp_path, body)(x)
    np.testing.assert_array_equal(found, convolved(x.astype(np.int64) - int(zx), w.astype(np.int64) - int(zw), case))


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_dequantised_operands_are_multiplied_as_integers(tmp_path: Path, op: str) -> None:
    """x and w dequantised, multiplied, quantised: within one quantum of the computation in floats, and no product of floats."""
    rng = np.random.default_rng(3)
    shape, wshape = ((2, 70, 6, 5), (24, 70, 3, 3)) if op == "Conv" else ((9, 50), (50, 24))
    x, w = integers(rng, "uint8", *shape), integers(rng, "int8", *wshape)
    if op == "Gemm":
        w = np.ascontiguousarray(w.T)
    axis = 1 if op == "MatMul" else 0
    scales = (rng.random(24) * 0.01 + 0.001).astype(np.float32)
    bias = rng.standard_normal(24).astype(np.float32)
    sx, zx, sy, zy = np.float32(0.05), np.uint8(131), np.float32(0.9), np.uint8(120)
    nodes = [
        node("DequantizeLinear", ["x", "sx", "zx"], ["fx"]), node("DequantizeLinear", ["w", "sw"], ["fw"], axis=axis),
        node(op, ["fx", "fw", *(["bias"] if op != "MatMul" else [])], ["h"], **({"transB": 1} if op == "Gemm" else {})),
        node("QuantizeLinear", ["h", "sy", "zy"], ["y"]),
    ]  # fmt: skip
    constants = [
        tensor(v, k) for k, v in {"w": w, "sw": scales, "sx": sx, "zx": zx, "sy": sy, "zy": zy, "bias": bias}.items()
    ]
    m = loaded(
        tmp_path,
        graph(nodes, [value("x", ["n", *shape[1:]], "uint8")], [value("y", ["n"] * len(shape), "uint8")], constants),
    )
    per = scales.astype(np.float64).reshape(tuple(-1 if k == axis else 1 for k in range(w.ndim)))
    fw = w.astype(np.float64) * per
    fxs = (x.astype(np.float64) - 131) * float(sx)
    want = convolved_floats(fxs, fw) if op == "Conv" else fxs @ (fw.T if op == "Gemm" else fw)
    if op != "MatMul":
        want = want + bias.astype(np.float64).reshape(1, -1, *[1] * (want.ndim - 2))
    want = np.clip(np.round(want / float(sy)) + 120, 0, 255)
    assert np.abs(m(x).astype(np.float64) - want).max() <= 1
    program = text(m)
    assert "dtype=!i32" in program
    assert program.count("dot(") == 1 and "conv(" not in program


def convolved_floats(x: Array, w: Array) -> Array:
    out = [s - k + 1 for s, k in zip(x.shape[2:], w.shape[2:])]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for i, j in np.ndindex(*w.shape[2:]):
        y += np.einsum("nchw,mc->nmhw", x[:, :, i : i + out[0], j : j + out[1]], w[:, :, i, j])
    return y


def test_dequantised_values_that_others_read_are_floats(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.uint8).reshape(3, 4)
    w = np.arange(8, dtype=np.int8).reshape(4, 2)
    nodes = [
        node("DequantizeLinear", ["x", "s"], ["a"]), node("DequantizeLinear", ["w", "s"], ["b"]),
        node("MatMul", ["a", "b"], ["y"]), node("Relu", ["a"], ["z"]),
    ]  # fmt: skip
    s = np.float32(0.5)
    outs = [value("y", [3, 2]), value("z", [3, 4])]
    m = loaded(tmp_path, graph(nodes, [value("x", [3, 4], "uint8")], outs, [tensor(w, "w"), tensor(s, "s")]))
    y, z = m(x)
    np.testing.assert_allclose(y, (x * 0.5) @ (w * 0.5))
    np.testing.assert_allclose(z, x * 0.5)


def dynamic(x: Array) -> tuple[Array, np.float32]:
    """What DynamicQuantizeLinear makes of x, less the zero point, and the scale."""
    low, high = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero = np.clip(np.round(-low / scale), 0, 255)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero).astype(np.int64), scale


def test_dynamically_quantised_lstm(tmp_path: Path) -> None:
    """Inputs and states are quantised step by step; gates in the order i o f c."""
    rng = np.random.default_rng(4)
    steps, batch, n, hidden = 6, 2, 10, 16
    w, r = integers(rng, "int8", 1, n, 4 * hidden), integers(rng, "int8", 1, hidden, 4 * hidden)
    bias = rng.standard_normal((1, 8 * hidden)).astype(np.float32)
    scales = {"ws": np.array([0.01], np.float32), "rs": np.array([0.008], np.float32)}
    zeros = {"wz": np.zeros(1, np.int8), "rz": np.zeros(1, np.int8)}
    constants = [tensor(v, k) for k, v in {"w": w, "r": r, "b": bias, **scales, **zeros}.items()]
    body = graph(
        [node("DynamicQuantizeLSTM", ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"], ["y"], "com.microsoft", hidden_size=hidden)],
        [value("x", ["t", "n", n])], [value("y", ["t", 1, "n", hidden])], constants,
    )  # fmt: skip
    x = rng.standard_normal((steps, batch, n)).astype(np.float32)
    found = loaded(tmp_path, body, com_microsoft=1)(x)
    q, s = dynamic(x)
    projected = (q @ w[0].astype(np.int64)) * (s * scales["ws"]) + bias[0, : 4 * hidden] + bias[0, 4 * hidden :]
    h, c = np.zeros((batch, hidden), np.float32), np.zeros((batch, hidden), np.float32)
    for t in range(steps):
        q, s = dynamic(h)
        i, o, f, g = np.split(projected[t] + (q @ r[0].astype(np.int64)) * (s * scales["rs"]), 4, axis=-1)
        i, o, f = (1 / (1 + np.exp(-v)) for v in (i, o, f))
        c = f * c + i * np.tanh(g)
        h = (o * np.tanh(c)).astype(np.float32)
        np.testing.assert_allclose(
            found[t, 0], h, atol=2e-3
        )  # a state at the edge of two quanta may fall to either side
