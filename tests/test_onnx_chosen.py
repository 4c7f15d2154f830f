"""ONNX operators whose sizes are known only at run time: one program for all inputs, by the interpreter's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from tests.onnx_build import graph, model, node, tensor, value

I64 = np.int64


def load(path: Path, nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[str], *constants: bytes) -> Any:
    (path / "m.onnx").write_bytes(model(graph(nodes, inputs, [value(o) for o in outputs], constants)))
    return fx.onnx.load(path / "m.onnx")


def draws(*shapes: tuple[int, ...]) -> list[Any]:
    return [np.round(np.random.default_rng(k).standard_normal(s), 1).astype(np.float32) for k, s in enumerate(shapes)]


def check(m: Any, inputs: Sequence[Sequence[Any]], want: Callable[..., Any]) -> None:
    assert m.is_open
    for given in inputs:
        got, expected = m(*given), want(*given)
        got = got if isinstance(got, tuple) else (got,)
        for g, w in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert np.shape(g) == np.shape(w) and g.dtype == np.asarray(w).dtype
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


X = value("x", ["n", "m"])
SHAPES = [(3, 4), (1, 1), (5, 2), (0, 3)]


def test_non_zero_and_what_follows(tmp_path: Path) -> None:
    """Gather by the places, a concatenation of two such sizes, the size itself, and more shape arithmetic."""
    nodes = [
        node("NonZero", ["x"], ["places"]), node("Transpose", ["places"], ["rows"]), node("GatherND", ["x", "rows"], ["y"]),
        node("Compress", ["x", "mask"], ["kept"], axis=0), node("Reshape", ["kept", "flat"], ["k"]),
        node("Concat", ["y", "k"], ["both"], axis=0), node("Shape", ["both"], ["size"]),
        node("Expand", ["one", "size"], ["ones"]), node("Add", ["both", "ones"], ["z"]),
    ]  # fmt: skip
    inputs = [X, value("mask", ["n"], "bool")]
    m = load(
        tmp_path, nodes, inputs, ["places", "z", "size"], tensor(np.array([-1]), "flat"), tensor(np.float32([1]), "one")
    )

    def want(x: Any, mask: Any) -> Any:
        both = np.concatenate([x[x != 0], x[mask].reshape(-1)])
        return np.stack(np.nonzero(x)), both + 1, np.array([len(both)])

    check(m, [(x, np.arange(len(x)) % 2 == 0) for x in draws(*SHAPES)], want)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("order", [0, 1])
def test_unique(tmp_path: Path, axis: int | None, order: int) -> None:
    extra = {} if axis is None else {"axis": axis}
    names = ["y", "first", "inverse", "counts"]
    m = load(tmp_path, [node("Unique", ["x"], names, sorted=order, **extra)], [X], names)

    def want(x: Any) -> Any:
        y, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
        if not order:
            by = np.argsort(first)
            y, first, counts = np.take(y, by, axis=axis or 0), first[by], counts[by]
            inverse = np.argsort(by)[inverse]
        return y, first, inverse.reshape(-1), counts

    check(m, [(np.sign(x),) for x in draws((4, 5), (1, 1), (9, 2), (2, 9))], want)


def suppressed(boxes: Any, scores: Any, most: int, overlap: float, least: float, centred: int) -> Any:
    """The definition, one box after the other."""
    out = []
    for b in range(scores.shape[0]):
        if centred:
            low, high = boxes[b, :, :2] - boxes[b, :, 2:] / 2, boxes[b, :, :2] + boxes[b, :, 2:] / 2
        else:
            low, high = (f(boxes[b, :, :2], boxes[b, :, 2:]) for f in (np.minimum, np.maximum))
        for c in range(scores.shape[1]):
            kept: list[int] = []
            for i in np.argsort(-scores[b, c], kind="stable"):
                if len(kept) >= most or scores[b, c, i] <= least:
                    break
                common = [
                    np.prod(np.maximum(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0)) for j in kept
                ]
                area = np.prod(high - low, axis=1)
                if all(k <= 0 or k / (area[i] + area[j] - k) <= overlap for k, j in zip(common, kept, strict=True)):
                    kept.append(int(i))
            out += [(b, c, i) for i in kept]
    return np.array(out, I64).reshape(-1, 3)


@pytest.mark.parametrize("centred", [0, 1])
def test_non_max_suppression(tmp_path: Path, centred: int) -> None:
    n = node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["y"], center_point_box=centred)
    inputs = [value("boxes", ["b", "n", 4]), value("scores", ["b", "c", "n"]), value("most", [1], "int64"),
              value("overlap", [1]), value("least", [1])]  # fmt: skip
    m = load(tmp_path, [n], inputs, ["y"])
    rng = np.random.default_rng(0)
    cases = []
    for b, c, k, most in [(1, 1, 6, 3), (2, 3, 12, 4), (1, 2, 1, 0), (2, 1, 9, 100)]:
        boxes, scores = rng.random((b, k, 4)).astype(np.float32), np.round(rng.random((b, c, k)), 1).astype(np.float32)
        cases.append((boxes, scores, np.array([most]), np.float32([rng.random()]), np.float32([0.3])))
    check(m, cases, lambda boxes, scores, *rest: suppressed(boxes, scores, *[v[0] for v in rest], centred))


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_slices_whose_ends_are_computed(tmp_path: Path, step: int) -> None:
    constants = [tensor(np.array([1]), "axes"), tensor(np.array([step]), "steps")]
    inputs = [X, value("a", [1], "int64"), value("b", [1], "int64")]
    m = load(tmp_path, [node("Slice", ["x", "a", "b", "axes", "steps"], ["y"])], inputs, ["y"], *constants)

    def want(x: Any, a: Any, b: Any) -> Any:
        n = x.shape[1]
        start = a[0] + n * (a[0] < 0)  # clamped to an element for negative steps, other than in Python
        start = np.clip(start, 0, n - (step < 0))
        end = np.clip(b[0] + n * (b[0] < 0), -(step < 0), n)
        return x[:, list(range(start, end, step))]

    (x,) = draws((2, 5))
    check(m, [(x, np.array([a]), np.array([b])) for a in (-9, -2, 0, 3, 9) for b in (-9, -1, 0, 2, 99)], want)


def test_top_k_tile_and_ranges(tmp_path: Path) -> None:
    """k from a value, repeats, and a range that is summed: nothing bounds its size, and it does not leave the program."""
    nodes = [
        node("TopK", ["x", "k"], ["y", "at"], axis=1), node("Range", ["zero", "top", "two"], ["r"]),
        node("ReduceSum", ["r"], ["s"], keepdims=0), node("ConstantOfShape", ["k"], ["c"], value=np.array([2])),
        node("ReduceSum", ["c"], ["d"], keepdims=0), node("Tile", ["k", "k"], ["t"]), node("ReduceMax", ["t"], ["u"], keepdims=0),
    ]  # fmt: skip
    inputs = [X, value("k", [1], "int64"), value("top", [], "int64")]
    m = load(
        tmp_path, nodes, inputs, ["y", "at", "s", "d", "u"], tensor(np.array(0), "zero"), tensor(np.array(2), "two")
    )

    def want(x: Any, k: Any, top: Any) -> Any:
        at = np.argsort(-x, axis=1, kind="stable")[:, : k[0]]
        return np.take_along_axis(x, at, 1), at, np.arange(0, top, 2).sum(), I64(2 * k[0]), k[0]

    x, y = draws((3, 5), (2, 4))
    check(m, [(x, np.array([2]), np.array(9)), (y, np.array([4]), np.array(1)), (x, np.array([1]), np.array(6))], want)
    with pytest.raises(FluxError) as e:
        m(x, np.array([6]), np.array(1))
    assert e.value.code == "FX0608"


def test_a_result_that_nothing_bounds_is_compiled_for_its_values(tmp_path: Path) -> None:
    nodes = [node("Range", ["zero", "top", "one"], ["y"])]
    constants = [tensor(np.array(0), "zero"), tensor(np.array(1), "one")]
    m = load(tmp_path, nodes, [value("top", [], "int64")], ["y"], *constants)
    assert not m.is_open
    for n in (3, 0, 5):
        np.testing.assert_array_equal(m(np.array(n)), np.arange(n))


def test_a_loop_of_as_many_steps_as_a_size(tmp_path: Path) -> None:
    """The trip count is the number of elements that are not 0; the rows are as many."""
    body = graph(
        [node("Add", ["s", "i"], ["t"]), node("Identity", ["t"], ["row"]), node("Identity", ["go"], ["on"])],
        [value("i", [], "int64"), value("go", [], "bool"), value("s", [], "int64")],
        [value("on", [], "bool"), value("t", [], "int64"), value("row", [], "int64")],
    )
    nodes = [
        node("NonZero", ["x"], ["p"]), node("Shape", ["p"], ["d"], start=1), node("Squeeze", ["d"], ["n0"]),
        node("Loop", ["n0", "", "start"], ["last", "rows"], body=body), node("Cast", ["rows"], ["y"], to=1),
    ]  # fmt: skip
    m = load(tmp_path, nodes, [X], ["last", "y"], tensor(np.array(10), "start"))

    def want(x: Any) -> Any:
        rows = 10 + np.cumsum(np.arange((x != 0).sum()))
        return (rows[-1] if len(rows) else I64(10)), rows.astype(np.float32)

    check(m, [(x,) for x in draws((3, 4), (1, 2), (0, 3))], want)


def test_small_integers_stay_constants_when_small_floats_become_some(tmp_path: Path) -> None:
    """A value of 20 integers and one of 2 floats decide shapes together."""
    nodes = [
        node("Resize", ["x", "", "scales"], ["r"]), node("ReduceSum", ["many"], ["s"]),
        node("Split", ["r", "parts"], ["y", "z"], axis=1), node("Gather", ["many", "s"], ["g"]),
    ]  # fmt: skip
    parts = [node("Slice", ["many", "lo", "hi"], ["parts"])]
    inputs = [value("x", [1, 4]), value("scales", [2]), value("many", [20], "int64")]
    nodes = [nodes[0], *parts, nodes[2]]
    m = load(tmp_path, nodes, inputs, ["y", "z"], tensor(np.array([0]), "lo"), tensor(np.array([2]), "hi"))
    x, many = np.arange(4, dtype=np.float32)[None], np.array([3, 5, *[0] * 18])
    y, z = m(x, np.float32([1, 2]), many)
    assert y.shape == (1, 3) and z.shape == (1, 5)
    np.testing.assert_array_equal(np.concatenate([y, z], 1), np.repeat(x, 2, 1))
