"""ONNX files that are well formed and stand for more than a machine has, or for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.hostile import add
from tests.onnx_build import chunk, graph, model, node, number, tensor, value

I64 = np.int64
HUGE = 1 << 62


def declare(
    name: str, attacks: str, code: str, nodes: Sequence[bytes], constants: Mapping[str, Any] | None = None, shape: Sequence[Any] = (4,), extra: bytes = b"",
    opset: int = 21, **domains: int,
) -> None:  # fmt: skip
    """A model from x (f32) to y."""
    body = graph(nodes, [value("x", shape)], [value("y")], [tensor(a, n) for n, a in (constants or {}).items()])
    data = model(body, opset, **domains) + extra

    def write(folder: Any) -> Any:
        (path := folder / "file.onnx").write_bytes(data)
        return path

    add(name, attacks, code, ".onnx", write)


def function(name: str, *calls: str) -> bytes:
    """A function of the model that calls others one after the other."""
    names = ["a", *[f"t{i}" for i in range(len(calls) - 1)], "b"]
    nodes = [
        chunk(7, node(c, [names[i]], [names[i + 1]], "own" if c.startswith("F") else "")) for i, c in enumerate(calls)
    ]
    return chunk(25, chunk(1, name) + chunk(4, "a") + chunk(5, "b") + b"".join(nodes) + chunk(10, "own"))


CALL = [node("F0", ["x"], ["y"], "own")]

declare("function_calls_itself", "A function without an end.", "FX1207", CALL, extra=function("F0", "F0"), own=1)
declare(
    "functions_in_a_circle",
    "Two functions that call each other.",
    "FX1207",
    CALL,
    extra=function("F0", "F1") + function("F1", "F0"),
    own=1,
)
declare(
    "billion_laughs", "Fifty functions that call the next one twice stand for 2^50 nodes.", "FX1202", CALL,
    extra=b"".join(function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(50)) + function("F50", "Neg"), own=1,
)  # fmt: skip
declare(
    "functions_in_functions", "A thousand functions, each in the one before: overflows the stack.", "FX1202", CALL,
    extra=b"".join(function(f"F{i}", f"F{i + 1}") for i in range(1000)) + function("F1000", "Neg"), own=1,
)  # fmt: skip

declare("value_from_nowhere", "A node takes a value that nothing gives.", "FX1207", [node("Neg", ["z"], ["y"])])
declare(
    "values_in_a_circle",
    "Two nodes that wait for each other.",
    "FX1207",
    [node("Neg", ["b"], ["y"]), node("Neg", ["y"], ["b"])],
)
declare(
    "unknown_operator",
    "An operator called like an attribute of Python objects.",
    "FX1203",
    [node("__class__", ["x"], ["y"])],
)
declare("unknown_domain", "A domain that is a path.", "FX1203", [node("Add", ["x", "x"], ["y"], "../../etc")])
declare(
    "attribute_of_python",
    "An attribute that would change an object if names were set on it.",
    "FX1204",
    [node("Neg", ["x"], ["y"], __class__=1)],
)
declare(
    "attribute_of_importer",
    "An attribute called as what the importer itself passes.",
    "FX1204",
    [node("Split", ["x"], ["y"], cx=1, self=2)],
)
declare(
    "attribute_of_another_kind", "Text where numbers are meant.", "FX1204", [node("Transpose", ["x"], ["y"], perm="x")]
)
declare(
    "too_many_inputs",
    "A hundred thousand inputs of a node that takes one.",
    "FX1204",
    [node("Neg", ["x"] * 100_000, ["y"])],
)
declare(
    "more_outputs_than_there_are",
    "Outputs that an operator does not have.",
    "FX1207",
    [node("Neg", ["x"], ["y", "z", "u"])],
)

same = graph([node("Neg", ["x"], ["y"])], [value("x", [2]), value("x", [3])], [value("y")])
add("two_inputs_of_one_name", "Two inputs called alike: one of them has no value.", "FX1207", ".onnx",
    lambda folder: _written(folder, model(same)))  # fmt: skip


def _written(folder: Any, data: bytes) -> Any:
    (path := folder / "file.onnx").write_bytes(data)
    return path


# ---- loops ---------------------------------------------------------------------------------------------------------


def body(*inner: bytes, result: str = "s") -> bytes:
    """The body of a loop that carries one value."""
    inputs = [value("i", [], "int64"), value("c", [], "bool"), value("s", [4])]
    return graph([node("Identity", ["c"], ["go"]), *inner], inputs, [value("go", [], "bool"), value(result, [4])])


grow = body(node("SequenceInsert", ["s", "x"], ["s2"]), result="s2")
inner_loop = body(node("Loop", ["many", "", "s"], ["s2"], body=grow), result="s2")
SEQUENCE = node("SequenceConstruct", ["x"], ["q"])
JOIN = node("ConcatFromSequence", ["r"], ["y"], axis=0)
declare(
    "loop_over_a_sequence",
    "2^62 steps, one by one while the model is read.",
    "FX1202",
    [SEQUENCE, node("Loop", ["many", "", "q"], ["r"], body=grow), JOIN],
    {"many": I64(HUGE)},
)
declare(
    "loops_in_loops",
    "A loop of 4,000 steps in one of 4,000.",
    "FX1202",
    [SEQUENCE, node("Loop", ["many", "", "q"], ["r"], body=inner_loop), JOIN],
    {"many": I64(4000)},
)
declare("sequence_of_sequences", "A sequence that holds itself twice, sixty times: 2^60 tensors.", "FX1204",
        [node("SequenceConstruct", ["x"], ["q0"]), *[node("SequenceConstruct", [f"q{i}", f"q{i}"], [f"q{i + 1}"]) for i in range(60)],
         node("SequenceLength", ["q60"], ["n"]), node("Cast", ["n"], ["y"], to=1)])  # fmt: skip
declare("loop_body_of_other_types", "A loop whose state changes its shape in every step.", "FX0213",
        [node("Loop", ["many", "", "x"], ["y"], body=body(node("Concat", ["s", "s"], ["s2"], axis=0), result="s2"))], {"many": I64(100)})  # fmt: skip
declare(
    "split_into_billions",
    "Parts of a tensor, each an op: 2^40 of them.",
    "FX1202",
    [node("Split", ["x"], ["y"], num_outputs=1 << 40)],
)
declare("sequence_of_billions", "A sequence of as many tensors as an input has rows.", "FX1202",
        [node("SplitToSequence", ["x"], ["r"], axis=0), JOIN], shape=[1 << 40])  # fmt: skip
declare("scan_over_a_batch", "Sequences of opset 8, each read by itself: 2^30 of them.", "FX1202",
        [node("Scan", ["", "x"], ["y"], num_scan_inputs=1, body=graph([], [value("r", [1])], [value("r", [1])]))],
        shape=[1 << 30, 2, 1], opset=8)  # fmt: skip

# ---- what is known when a model is read --------------------------------------------------------------------------------


def sizes(*n: int) -> Any:
    return np.array(n, I64)


declare("concat_of_itself", "A tensor joined with itself seventy times: its size overflows.", "FX0109",
        [node("Concat", ["x" if i == 0 else f"v{i}"] * 2, [f"v{i + 1}" if i < 69 else "y"], axis=0) for i in range(70)])  # fmt: skip
declare("constant_of_shape", "A shape of three numbers makes 2^82 elements.", "FX0109",
        [node("ConstantOfShape", ["n"], ["c"]), node("Add", ["c", "x"], ["y"])], {"n": sizes(1 << 40, 1 << 40, 4)})  # fmt: skip
declare("expand", "The same by Expand.", "FX0109", [node("Expand", ["x", "n"], ["y"])], {"n": sizes(HUGE, HUGE, 4)})
declare("tile", "The same by Tile.", "FX0109", [node("Tile", ["x", "n"], ["y"])], {"n": sizes(HUGE)})
declare("range", "2^62 numbers, known when the model is read.", "FX0204",
        [node("Range", ["a", "b", "d"], ["r"]), node("Reshape", ["r", "n"], ["y"])], {"a": I64(0), "b": I64(HUGE), "d": I64(1), "n": sizes(1, 2)})  # fmt: skip
declare(
    "range_without_steps",
    "Numbers with steps of nothing.",
    "FX1204",
    [node("Range", ["a", "b", "d"], ["y"])],
    {"a": np.float32(0), "b": np.float32(1), "d": np.float32(0)},
)
declare(
    "one_hot",
    "Rows of 2^62 elements.",
    "FX0109",
    [node("Cast", ["x"], ["i"], to=7), node("OneHot", ["i", "n", "v"], ["y"])],
    {"n": I64(HUGE), "v": np.zeros(2, np.float32)},
)
declare(
    "pad",
    "Padding of 2^62 elements on both sides.",
    "FX0109",
    [node("Pad", ["x", "n"], ["y"])],
    {"n": sizes(HUGE, HUGE)},
)
declare(
    "resize",
    "An image 10^30 times as large.",
    "FX1202",
    [node("Resize", ["x", "", "s"], ["y"])],
    {"s": np.array([1, 1, 1e30, 1e30], np.float32)},
    [1, 1, 4, 4],
)
declare("resize_to_billions", "An image of 2^40 pixels in a row, with tables of where each comes from.", "FX1202",
        [node("Resize", ["x", "", "", "n"], ["y"], mode="cubic")], {"n": sizes(1, 1, 4, 1 << 40)}, [1, 1, 4, 4])  # fmt: skip
declare(
    "window",
    "A window function of 2^40 samples.",
    "FX1202",
    [node("HannWindow", ["n"], ["w"]), node("Add", ["w", "x"], ["y"])],
    {"n": I64(1 << 40)},
    [1],
)
declare("transform_of_prime_length", "A Fourier transform of 2^61 - 1 points, which is prime.", "FX1202",
        [node("DFT", ["x", "n"], ["y"])], {"n": I64((1 << 61) - 1)}, [1, 8, 1])  # fmt: skip
declare("mel_matrix", "A matrix of filters of 2^60 elements.", "FX1202",
        [node("MelWeightMatrix", ["n", "n", "r", "lo", "hi"], ["m"]), node("Add", ["m", "x"], ["y"])],
        {"n": I64(1 << 30), "r": I64(16000), "lo": np.float32(0), "hi": np.float32(8000)}, [1])  # fmt: skip
declare(
    "reshape_to_more",
    "A shape of more elements than there are.",
    "FX0204",
    [node("Reshape", ["x", "n"], ["y"])],
    {"n": sizes(HUGE, 4)},
)
declare(
    "reshape_twice_open",
    "Two sizes that are to be found.",
    "FX0204",
    [node("Reshape", ["x", "n"], ["y"])],
    {"n": sizes(-1, -1)},
)
declare("axis_beyond", "An axis that there is not.", "FX1204", [node("Softmax", ["x"], ["y"], axis=HUGE)])
declare(
    "axes_twice", "An axis named twice.", "FX1204", [node("Squeeze", ["x", "n"], ["y"])], {"n": sizes(0, 0, 0)}, [1]
)
declare(
    "permutation_of_a_million",
    "An order of a million axes.",
    "FX1204",
    [node("Transpose", ["x"], ["y"], perm=list(range(100_000)))],
)
declare(
    "unsqueeze_thousand",
    "A thousand axes of one element.",
    "FX0109",
    [node("Unsqueeze", ["x", "n"], ["y"])],
    {"n": np.arange(1000)},
)
declare("cast_to_nothing", "A type that there is not.", "FX1208", [node("Cast", ["x"], ["y"], to=HUGE)])
declare("sizes_multiplied", "An open size multiplied with itself a hundred times.", "FX0109",
        [node("Shape", ["x"], ["s0"]), *[node("Mul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(100)],
         node("Expand", ["one", "s100"], ["y"])], {"one": np.ones(1, np.float32)}, ["n"])  # fmt: skip

# ---- arithmetic ----------------------------------------------------------------------------------------------------

IMAGE, KERNEL = [1, 1, 8, 8], {"k": np.ones((1, 1, 3, 3), np.float32)}
declare(
    "conv_no_groups",
    "A convolution of no groups: a division by nothing.",
    "FX0210",
    [node("Conv", ["x", "k"], ["y"], group=0)],
    KERNEL,
    IMAGE,
)
declare(
    "conv_dilated",
    "A kernel spread over 2^62 pixels.",
    "FX0210",
    [node("Conv", ["x", "k"], ["y"], dilations=[HUGE, HUGE])],
    KERNEL,
    IMAGE,
)
declare(
    "conv_no_strides", "Steps of nothing.", "FX1204", [node("Conv", ["x", "k"], ["y"], strides=[0, 0])], KERNEL, IMAGE
)
declare(
    "conv_negative_pads",
    "Padding of less than nothing.",
    "FX0210",
    [node("Conv", ["x", "k"], ["y"], pads=[-5, -5, -5, -5])],
    KERNEL,
    IMAGE,
)
declare(
    "pool_of_billions",
    "A window larger than the image.",
    "FX0210",
    [node("MaxPool", ["x"], ["y"], kernel_shape=[1 << 40, 1 << 40])],
    {},
    IMAGE,
)
declare("pool_padded", "Padding of more rows than addresses.", "FX0109",
        [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[HUGE, 1, HUGE, 1])], {}, IMAGE)  # fmt: skip
declare("lstm_hidden", "A state of 2^40 elements that the weights do not have.", "FX0202",
        [node("LSTM", ["x", "w", "w"], ["y"], hidden_size=1 << 40)], {"w": np.ones((1, 8, 3), np.float32)}, [5, 1, 3])  # fmt: skip
declare(
    "einsum_letters",
    "An equation of ten thousand letters.",
    "FX0215",
    [node("Einsum", ["x"], ["y"], equation="i" * 10_000 + "->i")],
)
declare(
    "einsum_unknown",
    "An equation of control characters.",
    "FX0215",
    [node("Einsum", ["x"], ["y"], equation="\x1b[2J->")],
)
declare(
    "dft_of_billions",
    "A spectrum of 2^40 frequencies.",
    "FX1202",
    [node("DFT", ["x", "n"], ["y"], axis=1)],
    {"n": I64(1 << 40)},
    [1, 8, 1],
    opset=17,
)
declare(
    "col2im",
    "An image of 2^40 pixels put together from blocks.",
    "FX1202",
    [node("Col2Im", ["x", "n", "b"], ["y"])],
    {"n": sizes(1 << 20, 1 << 20), "b": sizes(1 << 20, 1 << 20)},
    [1, 1, 1],
)
declare(
    "attention_heads",
    "Heads that do not divide what there is.",
    "FX0204",
    [node("Attention", ["x", "x", "x"], ["y"], q_num_heads=3, kv_num_heads=0)],
    {},
    [1, 4, 8],
    opset=23,
)
declare(
    "slice_without_steps",
    "Steps of nothing.",
    "FX1204",
    [node("Slice", ["x", "z", "n", "z", "z"], ["y"])],
    {"z": sizes(0), "n": sizes(4)},
)
declare(
    "gather_beyond",
    "An element beyond the end, named by a constant.",
    "FX0216",
    [node("Gather", ["x", "n"], ["y"])],
    {"n": sizes(HUGE)},
)

tree: dict[str, Any] = {
    "nodes_treeids": [0, 0], "nodes_nodeids": [0, 1], "nodes_featureids": [0, 0], "nodes_values": [0.0, 0.0],
    "nodes_hitrates": [1.0, 1.0], "nodes_truenodeids": [1, 1], "nodes_falsenodeids": [1, 1],
    "nodes_missing_value_tracks_true": [0, 0], "target_treeids": [0], "target_nodeids": [0], "target_ids": [0],
    "target_weights": [1.0],
}  # fmt: skip
modes = chunk(5, chunk(1, "nodes_modes") + chunk(9, "BRANCH_LEQ") * 2 + number(20, 8))
declare("tree_in_a_circle", "A decision tree with a branch that leads to where it begins.", "FX1204",
        [node("TreeEnsembleRegressor", ["x"], ["y"], "ai.onnx.ml", **tree) + modes], {}, [1, 4], ai_onnx_ml=3)  # fmt: skip
