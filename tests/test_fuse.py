"""What fusion groups together, and that grouping never changes an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir.ops  # noqa: F401
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Module, Op, Value
from fluxir.ir.dims import Facts
from fluxir.ir.interp import interpret
from fluxir.ir.types import tensor
from fluxir.passes.manager import PassManager
from tests.programs import assert_same, random_program


def fused(
    types: str, body: Callable[..., Any], passes: str = "expand,fold,cse,dce,fuse,dce"
) -> tuple[Module, list[Op]]:
    """The module after fusion, and its top-level ops."""
    f = build_func("main", [tensor(t) for t in types.split()], body)
    m = Module("m", {"main": f}, Facts({"B": (1, 1 << 30)}))
    out = PassManager(passes).run(m)
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=tuple(d if isinstance(d, int) else 3 for d in a.type.shape)).astype(a.type.dtype.numpy)
        for a in f.args
    ]
    assert_same(interpret(out, arrays), interpret(m, arrays))
    return out, list(out.entry.ops)


def kinds(ops: list[Op]) -> list[str]:
    return [op.attrs["kind"] if op.name == "fused" else op.name for op in ops]


def test_a_chain_is_one_kernel() -> None:
    _, ops = fused("f32[B,8] f32[8]", lambda b, x, w: b.tanh(b.mul(b.exp(b.add(x, w)), 0.5)))
    assert kinds(ops) == ["pointwise"]


def test_softmax_is_one_rowwise_kernel() -> None:
    _, ops = fused("f32[B,8]", lambda b, x: b.softmax(x, axis=1))
    assert kinds(ops) == ["rowwise"]
    assert len(ops[0].operands) == 1


def test_layer_norm_is_one_rowwise_kernel() -> None:
    _, ops = fused("f32[B,8] f32[8] f32[8]", lambda b, x, s, c: b.layer_norm(x, s, c, axes=(1,), eps=1e-5))
    assert kinds(ops) == ["rowwise"]


def test_contraction_takes_its_epilogue() -> None:
    def body(b: Builder, x: Value, w: Value, c: Value) -> Value:
        return b.relu(b.add(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,)), c))

    _, ops = fused("f32[B,8] f32[8,16] f32[16]", body)
    assert kinds(ops) == ["dot"]


def test_two_contractions_stay_two_kernels() -> None:
    def body(b: Builder, x: Value, w: Value) -> Value:
        h = b.relu(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,)))
        return b.dot(h, w, lhs_contract=(1,), rhs_contract=(0,))

    _, ops = fused("f32[B,8] f32[8,8]", body)
    assert kinds(ops) == ["dot", "dot"]


def test_a_reshape_costs_no_kernel() -> None:
    """After a computation it changes where the kernel writes; on memory it is a view."""

    def body(b: Builder, x: Value, w: Value) -> Value:
        return b.dot(b.reshape(b.tanh(x), shape=(x.type.shape[0], 8)), w, lhs_contract=(1,), rhs_contract=(0,))

    _, ops = fused("f32[B,2,4] f32[8,8]", body)
    assert kinds(ops) == ["pointwise", "dot"]
    _, ops = fused("f32[B,2,4] f32[B,8]", lambda b, x, y: b.add(b.reshape(x, shape=y.type.shape), y))
    assert kinds(ops) == ["reshape", "pointwise"]


def test_siblings_of_one_shape_share_a_pass_over_memory() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, Value]:
        e = b.exp(x)
        return b.mul(e, 2.0), b.add(e, 1.0)

    _, ops = fused("f32[B,8]", body)
    assert kinds(ops) == ["pointwise"] and len(ops[0].results) == 2


def test_a_value_that_is_also_returned_is_one_more_output() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, Value]:
        e = b.exp(x)
        return e, b.sin(e)

    _, ops = fused("f32[B,8]", body)
    assert kinds(ops) == ["pointwise"] and len(ops[0].results) == 2


def test_no_cycle_through_a_contraction() -> None:
    """x -> e -> dot -> add(e): e cannot be computed in the kernel that needs the dot's result."""

    def body(b: Builder, x: Value) -> Value:
        e = b.exp(x)
        return b.mul(b.dot(e, e, lhs_contract=(1,), rhs_contract=(0,)), b.exp(e))

    _, ops = fused("f32[4,4]", body)
    assert "dot" in kinds(ops)


def test_an_expensive_value_is_not_recomputed_by_broadcast() -> None:
    """exp of a row vector used by every row: computed once, unless the row is the kernel's own."""

    def body(b: Builder, x: Value, w: Value) -> Value:
        return b.add(x, b.exp(w))

    _, ops = fused("f32[B,64] f32[64]", body)
    assert kinds(ops) == ["pointwise", "pointwise"]


def test_regions_are_fused_too() -> None:
    def body(b: Builder, x: Value) -> Value:
        def step(ib: Builder, c: Value, e: Value) -> Value:
            return ib.tanh(ib.add(ib.mul(c, 0.5), e))

        t = tensor("f32[8]")
        return b.emit("scan", b.sum(x, axes=(0,)), x, blocks=[b.block([t, t], step)], carry=1)[0]

    _, ops = fused("f32[5,8]", body)
    scan = next(op for op in ops if op.name == "scan")
    assert kinds(list(scan.blocks[0].ops)) == ["pointwise"]


def test_fusing_again_changes_nothing() -> None:
    m, _ = fused("f32[B,8] f32[8]", lambda b, x, w: b.tanh(b.add(x, w)))
    pm = PassManager("fuse")
    assert pm.run(m) is m


@pytest.mark.parametrize("max_ops", [1, 2, 64])
@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed: int, max_ops: int) -> None:
    p = random_program(seed)
    m = PassManager(f"expand,fuse[max_ops={max_ops}],dce").run(p.module)
    assert_same(interpret(m, p.arrays), interpret(p.module, p.arrays))


def test_independent_kernels_that_read_the_same_memory_are_joined() -> None:
    _, ops = fused("f32[B,8]", lambda b, x: (b.add(x, 1.0), b.exp(x)))
    assert kinds(ops) == ["pointwise"] and len(ops[0].results) == 2
