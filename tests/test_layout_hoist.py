"""The layout and hoist passes: transposes go, loop-invariant work leaves its loop, and the answer stays."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import fluxir.ops
import fluxir.passes  # noqa: F401  declares ops and passes
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Func, Module, Value
from fluxir.ir.interp import interpret
from fluxir.ir.printer import print_func
from fluxir.ir.types import INDEX, tensor
from fluxir.ir.verify import verify_module
from fluxir.passes.cleanup import dce
from fluxir.passes.layout import RULES
from fluxir.passes.manager import PassContext, PassManager
from fluxir.passes.rules import Rule
from tests.programs import assert_same, random_program
from tests.test_simplify import alone, awkward, built, same_bits

CASES = [pytest.param(r, t, id=f"{r.name}-{','.join(t)}") for r in RULES.rules.values() for t in r.types]
REORDERS = {"dot_of_transposed", "transpose_of_dot", "reduce_of_transposed"}
"""Exact as programs; numpy's own sums depend on how the array lies in memory."""


@pytest.mark.parametrize(("rule", "types"), CASES)
def test_rule(rule: Rule, types: tuple[str, ...]) -> None:
    before = built(rule, types)
    fired: Counter[str] = Counter()
    cx = PassContext(before)
    after = before.with_func(alone(rule).run(before.entry, fired, between=lambda f: dce(f, cx)))
    assert fired[rule.name] >= 1
    verify_module(after)
    assert count(after.entry, "transpose") < count(before.entry, "transpose") or rule.name.startswith("reduce")
    rng = np.random.default_rng(0)
    for _ in range(3):
        if rule.name in REORDERS:
            args = [np.asarray(rng.integers(-9, 9, tensor(t).shape)).astype(tensor(t).dtype.numpy) for t in types]
        else:
            args = [awkward(tensor(t).dtype, tensor(t).shape, rng) for t in types]
        for a, b in zip(interpret(before, args), interpret(after, args), strict=True):
            same_bits(a, b)  # sums of small integers are exact in any order


def count(f: Func, name: str) -> int:
    return sum(op.name == name for op in f.walk())


def run(passes: str, body: Any, *types: str) -> Func:
    m = Module("m", {"f": build_func("f", [tensor(t) for t in types], body)})
    return PassManager(passes, verify="numeric").run(m).entry


MATMUL: dict[str, Any] = {"lhs_contract": (1,), "rhs_contract": (0,)}


def test_transposes_fold_into_dots() -> None:
    def body(b: Builder, x: Value, w: Value) -> Value:
        u = b.dot(b.transpose(x, perm=(1, 0)), b.transpose(w, perm=(1, 0)), **MATMUL)
        return b.transpose(b.tanh(b.transpose(u, perm=(1, 0))), perm=(1, 0))

    f = run("layout,dce", body, "f32[B,7]", "f32[5,B]")
    assert [op.name for op in f.ops] == ["dot", "tanh"]
    assert (f.ops[0].attrs["lhs_contract"], f.ops[0].attrs["rhs_contract"]) == ((0,), (1,))


def test_transposes_fold_through_elementwise_ops() -> None:
    def body(b: Builder, x: Value, w: Value) -> Any:
        hidden = b.maximum(b.mul(b.transpose(x, perm=(1, 0)), 0.5), 0.0)
        return b.dot(hidden, w, **MATMUL), b.max(b.exp(b.transpose(w, perm=(1, 0))), axes=(0,))

    assert count(run("layout,dce", body, "f32[3,7]", "f32[3,5]"), "transpose") == 0


def test_attention_without_transposes() -> None:
    """Heads are split and merged by transposes: those next to the dots go, the merging one stays."""

    def body(b: Builder, q: Value, k: Value) -> Value:
        heads = [b.transpose(b.reshape(x, shape=("B", "S", 4, 8)), perm=(0, 2, 1, 3)) for x in (q, k)]
        keys = b.transpose(heads[1], perm=(0, 1, 3, 2))
        return b.dot(heads[0], keys, lhs_contract=(3,), rhs_contract=(2,), lhs_batch=(0, 1), rhs_batch=(0, 1))

    f = run("layout,dce", body, "f32[B,S,32]", "f32[B,S,32]")
    assert count(f, "transpose") == 0, print_func(f)


def test_transposes_that_do_not_cancel_stay_where_they_are() -> None:
    f = run("layout", lambda b, x: b.exp(b.transpose(x, perm=(1, 0))), "f32[3,4]")
    assert [op.name for op in f.ops] == ["transpose", "exp"]
    f = run("layout", lambda b, x, y: b.add(b.transpose(x, perm=(1, 0)), y), "f32[3,4]", "f32[4,3]")
    assert [op.name for op in f.ops] == ["transpose", "add"]


def test_a_transpose_that_others_need_is_not_done_twice() -> None:
    def body(b: Builder, x: Value) -> Any:
        t = b.transpose(x, perm=(1, 0))
        return b.transpose(b.exp(t), perm=(1, 0)), t

    assert count(run("layout,dce", body, "f32[3,4]"), "transpose") == 2


def test_layout_is_at_rest_after_one_run() -> None:
    for seed in range(20):
        pm = PassManager("expand,layout,layout")
        pm.run(random_program(seed, ops=14).module)
        assert not pm.records[2].changed


# ---- hoist ----------------------------------------------------------------------------------------------------------------


def scan_with(body: Any, carry: str, const: str, xs: str) -> Any:
    def build(b: Builder, c: Value, w: Value, x: Value) -> Any:
        e = x.type.with_shape(x.type.shape[1:])
        return b.emit("scan", c, w, x, blocks=[b.block([c.type, w.type, e], body)], carry=1, consts=1)

    return run("hoist,dce", build, carry, const, xs)


def inner_names(f: Func) -> list[str]:
    loop = next(op for op in f.ops if op.blocks)
    return [op.name for k in loop.blocks for op in k.ops]


def test_invariant_work_leaves_a_scan() -> None:
    def body(b: Builder, c: Value, w: Value, e: Value) -> Any:
        gram = b.dot(b.transpose(w, perm=(1, 0)), w, **MATMUL)
        shrunk = b.mul(gram, 0.1)
        return b.tanh(b.add(b.dot(c, shrunk, lhs_contract=(0,), rhs_contract=(0,)), e)), b.neg(c)

    f = scan_with(body, "f32[4]", "f32[B,4]", "f32[T,4]")
    assert inner_names(f) == ["dot", "add", "tanh", "neg"], print_func(f)
    assert [op.name for op in f.ops] == ["transpose", "dot", "const", "mul", "scan"]


def test_cheap_work_stays() -> None:
    def body(b: Builder, c: Value, w: Value, e: Value) -> Any:
        return b.add(c, b.mul(b.add(w, 1.0), e)), b.broadcast(b.const(0.0, dtype="f32"), shape=(3,))

    f = scan_with(body, "f32[4]", "f32[4]", "f32[T,4]")
    assert [op.name for op in f.ops] == ["scan"]


def test_what_depends_on_the_round_stays() -> None:
    def body(b: Builder, c: Value, w: Value, e: Value) -> Any:
        return b.exp(c), b.exp(e)

    f = scan_with(body, "f32[4]", "f32[4]", "f32[T,4]")
    assert [op.name for op in f.ops] == ["scan"]


def test_large_results_of_cheap_ops_stay_inside() -> None:
    def body(b: Builder, c: Value, w: Value, e: Value) -> Any:
        return b.add(c, b.broadcast(b.exp(w), shape=(100, 4))), e

    f = scan_with(body, "f32[100,4]", "f32[4]", "f32[T,4]")
    assert inner_names(f) == ["broadcast", "add"]
    assert [op.name for op in f.ops] == ["exp", "scan"]


def test_while_loses_work_of_condition_and_body() -> None:
    def build(b: Builder, x: Value, w: Value) -> Any:
        types = [INDEX, x.type, w.type]
        cond = b.block(types, lambda k, i, x, w: k.lt(k.cast(i, dtype="f32"), k.sum(k.exp(w), axes=(0,))))
        body = b.block(types, lambda k, i, x, w: (k.add(i, 1), k.add(x, k.log1p(k.abs(w)))))
        return b.emit("while", b.const(0, dtype="i64"), x, w, blocks=[cond, body], carry=2)[1]

    f = run("hoist,dce", build, "f32[4]", "f32[4]")
    assert inner_names(f) == ["cast", "lt", "const", "add", "add"], print_func(f)


def test_loops_and_calls_are_not_started_early() -> None:
    """A loop that may make no round must not make another one run, which might not end."""

    def body(b: Builder, c: Value, w: Value, e: Value) -> Any:
        t = [w.type]
        forever = b.emit(
            "while",
            w,
            blocks=[b.block(t, lambda k, w: k.const(True, dtype="bool")), b.block(t, lambda k, w: w)],
            carry=1,
        )[0]
        return b.add(c, forever), e

    def build(b: Builder, c: Value, w: Value, x: Value) -> Any:
        e = x.type.with_shape(x.type.shape[1:])
        return b.emit("scan", c, w, x, blocks=[b.block([c.type, w.type, e], body)], carry=1, consts=1)

    m = Module("m", {"f": build_func("f", [tensor("f32[4]"), tensor("f32[4]"), tensor("f32[0,4]")], build)})
    after = PassManager("hoist").run(m)
    assert after is m


def test_out_of_two_loops() -> None:
    def inner(b: Builder, c: Value, w: Value, e: Value) -> Any:
        return b.add(c, b.mul(b.sum(b.exp(w), axes=(0,)), e))

    def outer(b: Builder, c: Value, w: Value, e: Value) -> Any:
        t = e.type.with_shape(())
        return b.emit("scan", c, w, e, blocks=[b.block([t, w.type, t], inner)], carry=1, consts=1)

    f = scan_with(lambda b, c, w, e: (outer(b, c, w, e)[0], e), "f32", "f32[4]", "f32[T,4]")
    assert [op.name for op in f.ops] == ["exp", "sum", "scan"], print_func(f)


def test_hoisting_is_done_once() -> None:
    pm = PassManager("expand,hoist,hoist")
    for seed in range(30):
        pm.records.clear()
        pm.run(random_program(seed, ops=12).module)
        assert not pm.records[2].changed


@pytest.mark.parametrize("passes", ["layout", "hoist,dce", "simplify,layout,cse,hoist,simplify,fuse,dce"])
@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed: int, passes: str) -> None:
    p = random_program(seed + 100, ops=14)
    after = PassManager("expand," + passes).run(p.module)
    assert_same(interpret(after, p.arrays), interpret(p.module, p.arrays), note=f"seed {seed}")
