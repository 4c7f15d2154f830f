"""Writing ONNX graphs op by op: values are names, `Graph.op` adds a node and returns the name of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cpu.row import leaves, tree_map

OPSET = 20


class Graph:
    """The nodes and initializers of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def op(self, kind: str, *inputs: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node; inputs are names, or numbers and arrays, which become initializers. "" leaves an input out."""
        import onnx

        names = [self.name() for _ in range(outputs)]
        given = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self.nodes.append(onnx.helper.make_node(kind, given, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any) -> str:
        """An initializer: integers become i64, Python floats f32."""
        import onnx

        a = np.asarray(value)
        a = a.astype(np.float32) if isinstance(value, float) else a
        name = self.name()
        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(a), name))
        return name


def model(function: Callable[..., Any], inputs: tuple[Any, ...], weights: int) -> tuple[bytes, list[str]]:
    """The model `function(graph, *inputs)` and the names of its inputs in the order of `leaves`."""
    import onnx

    g = Graph()
    count = len(inputs) - weights
    names: list[str] = []
    infos: list[Any] = []

    def argument(a: Any) -> str:
        name = g.name()
        names.append(name)
        infos.append(onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape))
        return name

    values = [tree_map(argument, x) for x in inputs[:count]] + [tree_map(g.constant, x) for x in inputs[count:]]
    outputs = leaves(function(g, *values))
    results = [onnx.helper.make_empty_tensor_value_info(o) for o in outputs]
    graph = onnx.helper.make_graph(g.nodes, "row", infos, results, g.initializers)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), names
