"""cond, switch, scan, while_loop, fori_loop, map: answers, captures, trees, types, errors with the path; trees themselves."""

from __future__ import annotations

import functools
import json
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.frontend import tree
from fluxir.frontend.trace import trace
from fluxir.ir.interp import interpret
from fluxir.ir.verify import verify_module

X = np.arange(12, dtype=np.float32).reshape(3, 4)
BIG = np.arange(100, dtype=np.float32)


def run(fn: Any, *args: Any, types: Any = None) -> Any:
    t = trace(fn, types or args)
    verify_module(t.module)
    return t.out_tree.unflatten(interpret(t.module, tree.flatten((args, {}))[0]))


def check(fn: Any, *args: Any) -> Any:
    """The traced answer, which must be the eager one."""
    got, eager = run(fn, *args), fn(*args)
    assert tree.flatten(got)[1] == tree.flatten(eager)[1]
    for a, b in zip(tree.leaves(got), tree.leaves(eager)):
        np.testing.assert_array_equal(a, b)
    return got


def failure(fn: Any, *args: Any) -> FluxError:
    with pytest.raises(FluxError) as caught:
        trace(fn, args)
    return caught.value


# ---- cond -----------------------------------------------------------------------------------------------------------------


def test_cond_takes_operands_captures_and_trees() -> None:
    def f(x: Any, p: Any) -> Any:
        y = x * 2

        def yes(a: Any) -> Any:
            return {"v": a + y + BIG[:4], "n": fx.sum(y)}

        return fx.cond(p, yes, lambda a: {"v": a - 1, "n": 0}, x)

    for p in (np.array(True), np.array(False)):
        got = check(f, X, p)
        np.testing.assert_array_equal(got["v"], X * 3 + BIG[:4] if p else X - 1)


def test_a_python_condition_decides_while_tracing() -> None:
    t = trace(lambda x: fx.cond(True, lambda v: v + 1, lambda v: v.nothing, x), [X])
    assert [op.name for op in t.entry.ops if op.name != "const"] == ["add"]


def test_captures_become_operands_and_large_constants_stay_outside() -> None:
    t = trace(lambda x, p: fx.cond(p, lambda: fx.sum(BIG) + x, lambda: x), [fx.f32, fx.dtype("bool")])
    verify_module(t.module)
    (branch,) = [op for op in t.entry.ops if op.name == "if"]
    assert len(branch.operands) == 3
    assert all(op.name != "const" for block in branch.blocks for op in block.ops)


def test_nested_captures_pass_through_every_level() -> None:
    def f(x: Any, n: Any) -> Any:
        y = x + 1

        def body(c: Any, v: Any) -> Any:
            inner = fx.fori_loop(0, n, lambda i, a: a + y[i] * v, c)
            return fx.cond(inner > 50, lambda: inner - y.sum(), lambda: inner), inner

        return fx.scan(body, 0.0, x)

    x, c, outs = np.array([1, 2, 3, 4], np.float32), 0.0, []
    for v in x:
        outs.append(c + (x[:3] + 1).sum() * v)
        c = outs[-1] - (x + 1).sum() if outs[-1] > 50 else outs[-1]
    last, inner = run(f, x, np.array(3))
    assert last == c
    np.testing.assert_array_equal(inner, outs)


def test_branches_agree_on_types_and_numbers_follow() -> None:
    t = trace(lambda x, p: fx.cond(p, lambda: x, lambda: 0.0), [fx.f16, fx.dtype("bool")])
    assert str(t.entry.outs[0].type) == "f16"
    t = trace(lambda p: fx.cond(p, lambda: 1, lambda: 2.5), [fx.dtype("bool")])
    assert str(t.entry.outs[0].type) == "f32"
    t = trace(lambda x, y, p: fx.cond(p, lambda: x, lambda: y), [fx.f32["N"], fx.f32["M"], fx.dtype("bool")])
    verify_module(t.module)
    assert t.module.facts.describe() == ["N == M"]
    t = trace(
        lambda x, p: fx.cond(p, lambda: (x, "relu"), lambda: (x + 1, "relu"))[1] == "relu" and x,
        [fx.f32, fx.dtype("bool")],
    )
    assert t.out_tree == tree.LEAF


@pytest.mark.parametrize(
    ("code", "words", "f"),
    [
        ("FX0219", "shape [3,4]", lambda x: fx.cond(x > 0, lambda: x, lambda: x)),
        ("FX0212", "f32[3,4] and f32", lambda x: fx.cond(x.sum() > 0, lambda: x, lambda: x.sum())),
        ("FX0212", "at out.1", lambda x: fx.cond(x.sum() > 0, lambda: {"out": (x, x)}, lambda: {"out": (x, x.T)})),
        ("FX0212", "key 'b'", lambda x: fx.cond(x.sum() > 0, lambda: {"a": x}, lambda: {"a": x, "b": x})),
        ("FX0212", "tuples of 2 and 1", lambda x: fx.cond(x.sum() > 0, lambda: (x, x), lambda: (x,))),
        ("FX0212", "f32 and i64", lambda x: fx.cond(x.sum() > 0, lambda: x.sum(), lambda: fx.argmax(x))),
        ("FX0212", "None", lambda x: fx.cond(x.sum() > 0, lambda: x, lambda: None)),
        ("FX0322", "str", lambda x: fx.cond(x.sum() > 0, lambda: "a", lambda: "b")),
        ("FX0319", "true function", lambda x: fx.cond(x.sum() > 0, lambda a: a, lambda: x)),
        ("FX0319", "operand.0", lambda x: fx.cond(x.sum() > 0, lambda a: x, lambda a: x, object())),
    ],
)
def test_what_is_wrong_with_a_cond(code: str, words: str, f: Any) -> None:
    e = failure(f, X)
    assert e.code == code and words in e.message
    assert e.loc is not None and e.loc.file == __file__


@pytest.mark.parametrize("i", [-1, 0, 1, 2, 9])
def test_switch_takes_the_nearest_branch(i: int) -> None:
    branches = [lambda x: x, lambda x: x * 2, lambda x: x.sum() + x]
    got = run(lambda x, i: fx.switch(i, branches, x), X, np.array(i))
    np.testing.assert_array_equal(got, branches[min(max(i, 0), 2)](X))
    np.testing.assert_array_equal(run(lambda x: fx.switch(i, branches, x), X), got)


# ---- scan ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_a_loop(reverse: bool) -> None:
    def f(x: Any, w: Any) -> Any:
        def body(c: Any, v: Any) -> Any:
            h, n = c["h"], c["n"]
            h = h * 0.5 + v["x"] @ w
            return {"h": h, "n": n + 1}, (h.sum(), None, v["i"])

        return fx.scan(body, {"h": fx.zeros(2), "n": 0}, {"x": x, "i": fx.arange(3)}, reverse=reverse)

    w = np.ones((4, 2), np.float32)
    got = check(f, X, w)
    h, ys = np.zeros(2, np.float32), [0.0] * 3
    for i in reversed(range(3)) if reverse else range(3):
        h = h * np.float32(0.5) + X[i] @ w
        ys[i] = h.sum()
    np.testing.assert_array_equal(got[0]["h"], h)
    np.testing.assert_array_equal(got[1][0], ys)
    assert got[0]["n"] == 3 and got[1][1] is None
    np.testing.assert_array_equal(got[1][2], [0, 1, 2])


def test_scan_of_a_length_and_of_symbolic_length() -> None:
    carry, ys = check(lambda x: fx.scan(lambda c, _: (c + x, c), x, None, length=4), np.float32(2))
    assert carry == 10
    np.testing.assert_array_equal(ys, [2, 4, 6, 8])
    total, before = run(lambda x: fx.scan(lambda c, v: (c + v, c), fx.zeros(4), x), X, types=[fx.f32["T", 4]])
    np.testing.assert_array_equal(total, X.sum(axis=0))
    np.testing.assert_array_equal(before[1], X[0])
    n = run(lambda x: fx.scan(lambda c, _: (c + 1, None), 0, None, length=x.shape[0])[0], X, types=[fx.f32["T", 4]])
    assert n == 3


def test_a_number_as_initial_carry_takes_the_type_of_the_body() -> None:
    carry, _ = run(lambda x: fx.scan(lambda c, v: (c + v.sum(), None), 0, x), X.astype(np.float64))
    assert carry == X.sum() and carry.dtype == np.float64
    (a, b), _ = run(lambda x: fx.scan(lambda c, v: ((c[1], c[0] + v.sum()), None), (0, 0), x), X)
    assert a.dtype == b.dtype == np.float32
    assert run(lambda x: fx.while_loop(lambda c: c < 10, lambda c: c * 2.5, 1), X) == np.float32(2.5**3)


@pytest.mark.parametrize(
    ("code", "words", "f"),
    [
        (
            "FX0213",
            "carry enters as f32 and leaves as f32[4]",
            lambda x: fx.scan(lambda c, v: (c + v, None), fx.zeros(()), x),
        ),
        (
            "FX0213",
            "carry.h enters as f32 and leaves as i64",
            lambda x: fx.scan(lambda c, v: ({"h": fx.argmax(v)}, None), {"h": fx.zeros(())}, x),
        ),
        ("FX0213", "key 'b'", lambda x: fx.scan(lambda c, v: ({"a": 1, "b": 2}, None), {"a": 0}, x)),
        ("FX0213", "a tensor and 'a'", lambda x: fx.scan(lambda c, v: ("a", None), 0, x)),
        ("FX0319", "must return (carry, output)", lambda x: fx.scan(lambda c, v: c + v, fx.zeros(4), x)),
        ("FX0319", "the body", lambda x: fx.scan(lambda c: (c, c), fx.zeros(4), x)),
        ("FX0319", "output.1", lambda x: fx.scan(lambda c, v: (c, (v, object())), fx.zeros(4), x)),
        ("FX0222", "3 (xs.0, axis 0) is not 4 (xs.1, axis 0)", lambda x: fx.scan(lambda c, v: (c, None), 0, (x, x.T))),
        ("FX0222", "scalar", lambda x: fx.scan(lambda c, v: (c, None), 0, x.sum())),
        ("FX0222", "a length", lambda x: fx.scan(lambda c, v: (c, None), 0)),
        ("FX0222", "5 (the length)", lambda x: fx.scan(lambda c, v: (c, None), 0, x, length=5)),
        ("FX0219", "shape [4]", lambda x: fx.while_loop(lambda c: c > 0, lambda c: c, x[0])),
        ("FX0213", "enters as f32[4]", lambda x: fx.while_loop(lambda c: True, lambda c: c.sum(), x[0])),
        ("FX0302", "fori_loop", lambda x: fx.fori_loop(0, x, lambda i, c: c, x)),
    ],
)
def test_what_is_wrong_with_a_loop(code: str, words: str, f: Any) -> None:
    e = failure(f, X)
    assert e.code == code and words in e.message
    assert e.loc is not None and e.loc.file == __file__


# ---- while, fori, map ------------------------------------------------------------------------------------------------------------


def test_while_loop_collatz() -> None:
    def steps(n: Any) -> Any:
        def body(c: Any) -> Any:
            m, k = c
            return fx.where(m % 2 == 0, m // 2, 3 * m + 1), k + 1

        return fx.while_loop(lambda c: c[0] != 1, body, (n, 0))[1]

    assert check(steps, np.array(27)) == 111


def test_fori_loop_with_known_symbolic_and_run_time_bounds() -> None:
    assert check(lambda x: fx.fori_loop(2, 5, lambda i, c: c + i, 0), X) == 9
    assert check(lambda n: fx.fori_loop(0, n, lambda i, c: c + i * 1.5, 0.0), np.array(4)) == 9
    assert (
        run(lambda x: fx.fori_loop(0, x.shape[0], lambda i, c: c + x[i, 0], 0.0), X, types=[fx.f32["T", 4]])
        == X[:, 0].sum()
    )
    assert check(lambda x: fx.fori_loop(5, 2, lambda i, c: c + 1, 7), X) == 7
    names = [op.name for op in trace(lambda x: fx.fori_loop(0, 3, lambda i, c: c + i, 0), [X]).entry.ops]
    assert "scan" in names and "while" not in names

    def filled(x: Any) -> Any:
        return fx.fori_loop(0, 3, lambda i, y: y.at[i].set(i * 2.0), x)

    np.testing.assert_array_equal(check(filled, np.zeros(3, np.float32)), [0, 2, 4])


def test_map_stacks() -> None:
    np.testing.assert_array_equal(
        check(lambda x: fx.map(lambda r: {"s": r.sum(), "r": r[::-1]}, x), X)["r"], X[:, ::-1]
    )


# ---- trees -------------------------------------------------------------------------------------------------------------------------


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Node:
    value: Any
    children: list[Any]


class Box:
    def __init__(self, items: dict[str, Any]) -> None:
        self.items = items


def test_trees_round_trip_and_name_their_leaves() -> None:
    x = {"b": [1, (2, None)], "a": Pair(3, Node(4, [5, {0: 6, "z": 7}]))}
    leaves, structure = tree.flatten(x)
    assert leaves == [3, 4, 5, 6, 7, 1, 2]
    assert structure.unflatten(leaves) == x and structure.leaf_count == 7
    assert [tree.path_text(p) for p in structure.paths()] == [
        "a.left",
        "a.right.value",
        "a.right.children.0",
        "a.right.children.1.0",
        "a.right.children.1.z",
        "b.0",
        "b.1.0",
    ]
    assert tree.flatten({"a": 1, "b": 2})[1] == tree.flatten({"b": 2, "a": 1})[1]
    assert str(tree.flatten([1, (2,), None, {"k": 3}])[1]) == "[*, (*,), None, {'k': *}]"
    assert tree.map(lambda a, b: a + b, {"x": 1, "y": [2]}, {"x": 10, "y": [20]}) == {"x": 11, "y": [22]}
    assert tree.leaves([1, [2]]) == [1, 2]
    with pytest.raises(FluxError) as caught:
        tree.map(lambda a, b: a, {"x": [1, 2]}, {"x": [1]})
    assert caught.value.code == "FX0313" and "lists of 2 and 1 elements at x" in caught.value.message
    with pytest.raises(FluxError) as caught:
        structure.unflatten([1])
    assert caught.value.code == "FX0313"


def test_tree_structure_as_json() -> None:
    x = {"b": [1, (2, None)], "a": Pair(3, Node(4, []))}
    leaves, structure = tree.flatten(x)
    back = tree.from_json(json.loads(json.dumps(structure.to_json())))
    again = back.unflatten(leaves)
    assert again["b"] == x["b"] and again["a"].left == 3 and again["a"].right == {"value": 4, "children": []}
    for bad in (
        1,
        {"kind": "dict"},
        {"kind": "evil", "children": []},
        {"kind": "dict", "keys": ["a"], "children": []},
        {"kind": "namedtuple", "name": "x y", "keys": [], "children": []},
    ):
        with pytest.raises(FluxError) as caught:
            tree.from_json(bad)
        assert caught.value.code == "FX0313"


def test_registered_containers_flow_through_traces() -> None:
    fx.register_tree(
        Box,
        lambda b: (list(b.items.values()), tuple(b.items)),
        lambda keys, xs: Box(dict(zip(keys, xs))),
        lambda b: list(b.items),
    )
    t = trace(lambda box: Box({"out": box.items["w"] * 2}), [Box({"w": X})])
    assert t.arg_names == ("box.w",) and t.result_names == ("out",)
    assert isinstance(t.out_tree.unflatten([1]), Box)


def test_a_tree_that_contains_itself_is_refused() -> None:
    x: list[Any] = []
    x.append(x)
    with pytest.raises(FluxError) as caught:
        tree.flatten(x)
    assert caught.value.code == "FX0109"


def test_a_decorated_function_keeps_its_decorator() -> None:
    def doubled(f: Any) -> Any:
        @functools.wraps(f)
        def wrapper(x: Any) -> Any:
            return f(x) * 2

        return wrapper

    @doubled
    def plus_one(x: Any) -> Any:
        return x + 1

    x = np.float32(1)
    assert plus_one(x) == fx.jit(plus_one)(x) == fx.function(plus_one)(x) == 4
