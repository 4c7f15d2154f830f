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
    """It is a view of memory, of an argument's or of what a kernel wrote."""

    def body(b: Builder, x: Value, w: Value) -> Value:
        return b.dot(b.reshape(b.tanh(x), shape=(x.type.shape[0], 8)), w, lhs_contract=(1,), rhs_contract=(0,))

    _, ops = fused("f32[B,2,4] f32[8,8]", body)
    assert kinds(ops) == ["pointwise", "reshape", "dot"]
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


@pytest.mark.parametrize(("divisor", "kernels"), [("f32[8]", 2), ("f32[B,8]", 3)])
def test_a_quotient_by_what_is_broadcast_is_not_kept(divisor: str, kernels: int) -> None:
    """What batch norm normalises is computed again in the backward kernels, not written for them."""

    def body(b: Builder, x: Value, y: Value) -> Any:
        n = b.div(x, y)
        return b.relu(n), b.transpose(b.mul(n, 3.0), perm=(1, 0))

    _, ops = fused(f"f32[B,8] {divisor}", body)
    assert kinds(ops) == ["pointwise"] * kernels


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


# ---- whole models: what runs as one kernel --------------------------------------------------------------------------


def kernels_of(fn: Callable[..., Any], *types: Any, target: str = "cpu") -> list[str]:
    """The kernels of a model, as kinds with names; views and loops left out, loop bodies in place of their loops."""
    import fluxir as fx

    def walk(ops: Any) -> list[str]:
        found = []
        for op in ops:
            if op.name == "fused":
                found.append(f"{op.attrs['kind']} {op.attrs['name']}")
            elif op.blocks:
                found += [k for block in op.blocks for k in walk(block.ops)]
            elif op.name != "reshape":
                found.append(op.name)
        return found

    return walk(fx.jit(fn).lower(*types).stage("fused", target).entry.ops)


def kinds_of(fn: Callable[..., Any], *types: Any) -> list[str]:
    return [k.split()[0] for k in kernels_of(fn, *types)]


def test_norms_softmaxes_losses_and_statistics_are_one_kernel_each() -> None:
    import fluxir as fx

    f32, nn = fx.f32, fx.nn
    x, image, row = f32["B", 32], f32["B", 8, 5, 5], f32[32]
    one = {
        "softmax with what is around it": (lambda x: nn.softmax(x * 2) + 1, x),
        "log softmax": (nn.log_softmax, x),
        "logsumexp": (lambda x: fx.logsumexp(x, axis=-1), x),
        "layer norm": (nn.layer_norm, x, row, row),
        "residual and layer norm, both results": (lambda x, y, s: (x + y, nn.layer_norm(x + y, s)), x, x, row),
        "rms norm": (nn.rms_norm, x, row),
        "group norm": (lambda x, s, b: nn.group_norm(x, 4, s, b), image, f32[8], f32[8]),
        "cross entropy": (nn.cross_entropy, x, fx.i32["B"]),
        "softmax and cross entropy of the same": (lambda x, y: (nn.softmax(x), nn.cross_entropy(x, y)), x, fx.i32["B"]),
        "argmax": (lambda x, y: fx.argmax(x + y, axis=-1), x, x),
        "mean and standard deviation": (lambda x: (fx.mean(x, axis=-1), fx.std(x, axis=-1)), x),
        "variance down the columns": (lambda x: fx.var(x, axis=0), x),
        "extrema and where": (lambda x: (fx.min(x, axis=-1), fx.max(x, axis=-1), fx.argmax(x, axis=-1)), x),
        "batch statistics": (lambda x: (x - fx.mean(x, axis=(0, 2, 3), keepdims=True)) * fx.rsqrt(fx.var(x, axis=(0, 2, 3), keepdims=True)), image),
    }  # fmt: skip
    assert {name: kinds_of(*case) for name, case in one.items()} == {name: ["rowwise"] for name in one}


def test_a_loss_is_its_rows_and_then_their_mean() -> None:
    import fluxir as fx

    x, labels = fx.f32["B", 32], fx.i32["B"]
    assert kinds_of(lambda x, y: fx.mean(fx.nn.cross_entropy(x, y)), x, labels) == ["rowwise", "rowwise"]
    # What follows a reduction on its own result belongs to it, not to the next one.
    found = kernels_of(lambda x, y: fx.mean(fx.astype(fx.argmax(x, axis=-1) == y, fx.float32)), x, labels)
    assert found[0] == "rowwise argmax_eq" and len(found) == 2


@pytest.mark.parametrize("mask", ["none", "causal", "given"])
def test_attention_is_three_kernels_where_it_is_not_one(mask: str) -> None:
    import fluxir as fx

    def attention(q: Any, k: Any, v: Any, m: Any) -> Any:
        given = {"none": {}, "causal": {"is_causal": True}, "given": {"mask": m}}[mask]
        return fx.nn.scaled_dot_product_attention(q, k, v, **given)

    heads = fx.f32["B", 4, 16, 8]
    types = heads, heads, heads, fx.bool[16, 16]
    assert [k.split()[0] for k in kernels_of(attention, *types)] == ["attention"]
    found = kernels_of(attention, *types, target="sm_80")
    assert [k.split()[0] for k in found] == ["dot", "rowwise", "dot"]
    assert found[0].startswith("dot dot_mul")  # scale and mask are applied where the product is in a register


def test_transformer_block() -> None:
    import fluxir as fx

    f32, nn = fx.f32, fx.nn

    def block(x: Any, s: Any, wqkv: Any, wo: Any, w1: Any, c1: Any, w2: Any) -> Any:
        b = x.shape[0]
        qkv = nn.layer_norm(x, s) @ wqkv
        heads = [fx.permute_dims(fx.reshape(t, (b, 16, 4, 16)), (0, 2, 1, 3)) for t in fx.split(qkv, 3, axis=-1)]
        a = fx.permute_dims(nn.scaled_dot_product_attention(*heads), (0, 2, 1, 3))
        x = x + fx.reshape(a, (b, 16, 64)) @ wo
        return x + nn.gelu(nn.layer_norm(x, s) @ w1 + c1) @ w2

    types = f32["B", 16, 64], f32[64], f32[64, 192], f32[64, 64], f32[64, 256], f32[256], f32[256, 64]
    ends = ["dot", "rowwise", "dot", "dot"]  # each with its residual or activation
    found = kernels_of(block, *types)
    assert [k.split()[0] for k in found] == ["rowwise", "dot", "attention", *ends]  # the heads are read where they lie
    found = kernels_of(block, *types, target="sm_80")
    assert [k.split()[0] for k in found] == [
        "rowwise", "dot", "pointwise",  # norm; q, k and v; these three apart, in one pass
        "dot", "rowwise", "dot", "pointwise",  # attention; heads back into rows
        *ends,
    ]  # fmt: skip
    assert [k for k in found if "dot_add" in k or "gelu" in k or "tanh" in k]


def test_convolutions_take_batch_norm_residual_and_activation() -> None:
    import fluxir as fx

    f32, nn = fx.f32, fx.nn

    def block(x: Any, w: Any, s: Any, b: Any, m: Any, v: Any) -> Any:
        h = nn.relu(nn.batch_norm(fx.conv(x, w, padding=1), m, v, s, b))
        return nn.relu(nn.batch_norm(fx.conv(h, w, padding=1), m, v, s, b) + x)

    c = f32[8]
    found = kinds_of(block, f32["B", 8, 16, 16], f32[8, 8, 3, 3], c, c, c, c)
    assert found == ["pointwise", "conv", "conv"]  # the scale of each channel is computed once, for both


def test_a_recurrent_cell_is_two_products_and_one_pass() -> None:
    import fluxir as fx

    f32, nn = fx.f32, fx.nn

    def cell(xs: Any, h: Any, c: Any, wx: Any, wh: Any, b: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            h, c = carry
            i, f, g, o = fx.split(x @ wx + h @ wh + b, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * fx.tanh(g)
            h = nn.sigmoid(o) * fx.tanh(c)
            return (h, c), h

        return fx.scan(step, (h, c), xs)

    state = f32["B", 16]
    found = kernels_of(cell, f32["T", "B", 8], state, state, f32[8, 64], f32[16, 64], f32[64])
    assert [k.split()[0] for k in found] == ["dot", "dot", "pointwise"] and "dot dot_add" in found


def test_a_sum_of_rows_read_as_columns_is_a_kernel_of_its_own() -> None:
    """In a square space a row's sum broadcast along the last axis belongs to other rows."""
    _, ops = fused("f32[6,6]", lambda b, x: b.add(x, b.sum(x, axes=(1,))))
    assert kinds(ops) == ["rowwise", "pointwise"]


def test_groups_that_share_a_cheap_op_do_not_wait_for_each_other() -> None:
    """The cast is copied into both users of it; one of them also feeds the other."""

    def body(b: Builder, x: Value, w: Value) -> tuple[Value, Value]:
        h = b.mul(x, 2.0)
        y = b.exp(h)
        z = b.dot(y, w, lhs_contract=(1,), rhs_contract=(0,))
        return b.add(b.add(h, z), b.sum(y, axes=(1,), keepdims=True)), b.sub(h, 1.0)

    _, ops = fused("f32[8,8] f32[8,8]", body)
    assert kinds(ops).count("dot") == 1


def test_the_gradient_of_gates_is_one_pass() -> None:
    """The derivative of a split joins what its parts give, on CPUs in the pass that computes them, whatever else comes of it."""
    import fluxir as fx

    def cell(z: Any, c: Any) -> Any:
        i, f, o = fx.split(z, 3, axis=-1)
        return fx.sum(fx.sigmoid(o) * fx.tanh(fx.sigmoid(f) * c + fx.sigmoid(i)))

    lowered = fx.jit(fx.grad(cell, argnums=(0, 1))).lower(fx.f32[5, 96], fx.f32[5, 32])
    ops = lowered.stage("fused", "cpu").entry.ops
    assert [len(op.results) for op in ops if op.name == "fused"] == [2]
    assert "concat" in [op.name for op in lowered.stage("fused", "cpu").entry.walk()]
    assert "pad" not in [op.name for op in lowered.stage("fused", "cpu").entry.walk()]
