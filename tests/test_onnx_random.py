"""Random graphs whose sizes come from sizes and values of others, against the reference evaluator of the package onnx.

One program of open sizes serves all shapes. Each step appends nodes to a graph and a value (a name and its number of axes)
to what later steps draw from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fluxir.embed import lower_function
from fluxir.frontend.onnx.model import Model, parse
from fluxir.ir.interp import interpret

onnx = pytest.importorskip("onnx")
SHAPES = [(3, 4), (1, 1), (6, 5), (2, 7)]


class Graph:
    """A graph under construction."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.values: list[tuple[str, int]] = [("x", 2)]

    def name(self) -> str:
        return f"v{len(self.nodes)}_{len(self.constants)}"

    def const(self, array: Any) -> str:
        name = self.name()
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        base = self.name()
        names = [f"{base}_{k}" for k in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def pick(self, rank: int | None = None) -> tuple[str, int] | None:
        found = [v for v in self.values if rank is None or v[1] == rank]
        return found[int(self.rng.integers(len(found)))] if found else None

    def size(self, value: str, axis: int) -> str:
        return self.node("Gather", self.node("Shape", value), self.const(np.array([axis])))  # type: ignore[no-any-return]

    def model(self) -> Any:
        outputs = [v for v in self.values if v[0] != "x"][-3:]
        float_ = onnx.TensorProto.FLOAT
        infos = [onnx.helper.make_tensor_value_info(n, float_, [None] * r) for n, r in outputs]
        x = onnx.helper.make_tensor_value_info("x", float_, ["n", "m"])
        graph = onnx.helper.make_graph(self.nodes, "g", [x], infos, self.constants)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


Step = Callable[[Graph, str, int], "list[tuple[str, int]]"]


def mask(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    places = g.node("NonZero", g.node("Greater", v, g.const(np.float32(g.rng.normal()))))
    return [(g.node("GatherND", v, g.node("Transpose", places)), 1), (g.node("Cast", places, to=1), 2)]


def unique(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    y = g.node("Unique", g.node("Round", v), outputs=4)
    return [(y[0], 1), (g.node("Cast", y[3], to=1), 1)]


def compress(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    flat = g.node("Reshape", v, g.const(np.array([-1])))
    return [(g.node("Compress", v, g.node("Less", flat, g.const(np.float32(0.1)))), 1)]


def top(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    k = g.node("Min", g.size(v, r - 1), g.const(np.array([3])))
    return [(g.node("TopK", v, k, outputs=2)[0], r)]


def halves(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    n = g.size(v, 0)
    half = g.node("Div", n, g.const(np.array([2])))
    return [(g.node("Slice", v, half, n, g.const(np.array([0]))), r)]


def parts(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    n = g.size(v, 0)
    first = g.node("Sub", n, g.node("Div", n, g.const(np.array([3]))))
    sizes = g.node("Concat", first, g.node("Sub", n, first), axis=0)
    return [(y, r) for y in g.node("Split", v, sizes, outputs=2, axis=0)]


def joined(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    w = g.pick(r)
    return [(g.node("Concat", v, w[0], axis=0), 1)] if r == 1 and w else [(g.node("Concat", v, v, axis=1), 2)]


def product(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    if r == 2:
        return [(g.node("MatMul", v, g.node("Transpose", v, perm=[1, 0])), 2)]
    w = g.pick(1)
    assert w is not None
    return [(g.node("Mul", g.node("Unsqueeze", v, g.const(np.array([1]))), w[0]), 2)]


def shaped(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    count = g.node("ReduceProd", g.node("Shape", v), keepdims=1)
    row = g.node("Reshape", v, g.node("Concat", g.const(np.array([1])), count, axis=0), allowzero=1)
    wide = g.node("Expand", row, g.node("Concat", g.const(np.array([2])), count, axis=0))
    ramp = g.node("Range", g.const(np.array(0)), g.node("Squeeze", count), g.const(np.array(1)))
    return [(wide, 2), (g.node("Cast", ramp, to=1), 1)]


def moved(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    pads = g.node("Pad", v, g.const(np.array([1] * r + [0] * r)))
    return [(g.node("Tile", pads, g.const(np.array([2] + [1] * (r - 1)))), r)]


def computed(g: Graph, v: str, r: int) -> list[tuple[str, int]]:
    y = g.node(str(g.rng.choice(["Tanh", "Relu", "Neg"])), g.node("CumSum", v, g.const(np.array(r - 1))))
    total = g.node("Unsqueeze", g.node("ReduceSum", v, keepdims=0), g.const(np.array([0])))
    return [(y, r), (total, 1)]


STEPS: list[Step] = [mask, unique, compress, top, halves, parts, joined, product, shaped, moved, computed]


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    from onnx.reference import ReferenceEvaluator

    g = Graph(seed)
    for _ in range(int(g.rng.integers(2, 8))):
        v = g.pick()
        assert v is not None
        g.values += STEPS[int(g.rng.integers(len(STEPS)))](g, *v)
    if len(g.values) == 1:
        g.values += mask(g, "x", 2)
    made = g.model()
    m = Model(parse(made.SerializeToString(), "m"), "m")
    lowered = lower_function(m, *m.inputs.values())
    reference = ReferenceEvaluator(made)
    for k, shape in enumerate(SHAPES):
        x = np.round(np.random.default_rng(k).normal(size=shape), 1).astype(np.float32)
        for got, want in zip(interpret(lowered.module, [x]), reference.run(None, {"x": x}), strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
