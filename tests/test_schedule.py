"""Lowering keeps the meaning: host function and kernels, run by the loop interpreter, give what the tensor program gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.ir.build import build_func
from fluxir.ir.types import tensor
from fluxir.target import parse_target
from tests.schedule_harness import check, func, fused, module

CPU = parse_target("cpu:x86-64-v3")


@pytest.mark.parametrize(
    "types",
    [["f32[3,4]", "f32[4]"], ["f32[3,1]", "f32[1,4]"], ["f32", "f32[5]"], ["f32", "f32"], ["f32[0,4]", "f32[4]"], ["f32[2,3,4,5]", "f32[3,1,1]"],
     ["f32[B,4]", "f32[4]"], ["f32[B,C]", "f32[B,1]"], ["f64[B,2,3]", "f64[2,3]"], ["f16[7]", "f16[7]"]],
)  # fmt: skip
def test_pointwise_broadcasts(types: list[str]) -> None:
    def body(b: Any, x: Any, y: Any) -> Any:
        return b.mul(b.add(x, y), b.exp(x))

    check(func(types, body))
    check(fused(types, body))


def test_uniform_and_table_constants() -> None:
    table = np.arange(4, dtype=np.float32)
    check(func(["f32[3,4]"], lambda b, x: b.add(b.mul(x, b.const(table)), b.const(np.full((3, 4), 2.0, np.float32)))))


def test_signed_zeros_and_nan_constants() -> None:
    table = np.array([0.0, -0.0, np.nan], np.float32)
    check(func(["f32[3]"], lambda b, x: b.mul(x, b.const(table))))


def test_result_that_is_an_argument_or_returned_twice() -> None:
    def body(b: Any, x: Any) -> Any:
        y = b.neg(x)
        return x, y, y

    check(func(["f32[3]"], body))


def test_results_of_different_shapes() -> None:
    check(func(["f32[3]", "f32[2,3]"], lambda b, x, y: (b.neg(x), b.add(x, y))))


@pytest.mark.parametrize("dims", [{"T": 0}, {"T": 1}, {"T": 4}])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan(dims: dict[str, int], reverse: bool) -> None:
    carry, x = tensor("f32[3]"), tensor("f32[3]")

    def step(b: Any, c: Any, w: Any, e: Any) -> Any:
        h = b.add(b.mul(c, w), e)
        return h, b.exp(h)

    def body(b: Any, h0: Any, w: Any, xs: Any) -> Any:
        return b.emit("scan", h0, w, xs, blocks=[b.block([carry, carry, x], step)], carry=1, consts=1, reverse=reverse)

    check(func(["f32[3]", "f32[3]", "f32[T,3]"], body), dims)


def test_scan_that_swaps_its_carries() -> None:
    t = tensor("f32[2]")

    def body(b: Any, x: Any, y: Any) -> Any:
        return b.emit("scan", x, y, blocks=[b.block([t, t], lambda ib, p, q: (q, p))], carry=2, length=3)

    check(func(["f32[2]", "f32[2]"], body))


def test_scan_whose_output_is_its_old_carry() -> None:
    t = tensor("f32[2]")

    def body(b: Any, x: Any) -> Any:
        return b.emit("scan", x, blocks=[b.block([t], lambda ib, p: (ib.neg(p), p))], carry=1, length=3)

    check(func(["f32[2]"], body))


def test_while_with_condition_in_memory() -> None:
    t = tensor("f32")

    def body(b: Any, x: Any, limit: Any) -> Any:
        cond = b.block([t, t], lambda ib, v, lim: ib.lt(v, lim))
        step = b.block([t, t], lambda ib, v, lim: ib.add(ib.mul(v, v), ib.const(1.0, dtype="f32")))
        return b.emit("while", x, limit, blocks=[cond, step], carry=1)

    check(func(["f32", "f32"], body), arrays=[np.float32(0.5), np.float32(100.0)])
    check(func(["f32", "f32"], body), arrays=[np.float32(5), np.float32(1)])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_branch_with_captures_and_passed_through_argument(sign: float) -> None:
    t = tensor("f32[4]")

    def body(b: Any, s: Any, x: Any, y: Any) -> Any:
        p = b.gt(s, b.const(0.0, dtype="f32"))
        (r,) = b.emit(
            "if", p, x, y, blocks=[b.block([t, t], lambda ib, u, v: ib.add(u, v)), b.block([t, t], lambda ib, u, v: v)]
        )
        return b.neg(r), r

    check(
        func(["f32", "f32[4]", "f32[4]"], body),
        arrays=[np.float32(sign), np.arange(4, dtype=np.float32), np.ones(4, np.float32)],
    )


@pytest.mark.parametrize("symbol", ["N", "B"])
def test_call_with_other_sizes(symbol: str) -> None:
    callee = build_func("twice", [tensor(f"f32[{symbol}]")], lambda b, x: b.add(x, x), ["x"])

    def body(b: Any, x: Any, y: Any) -> Any:
        from fluxir.ir.dims import parse_dim

        (p,) = b.emit("call", x, callee="twice", results=(tensor("f32[B]"),), dims=((symbol, parse_dim("B")),))
        (q,) = b.emit("call", y, callee="twice", results=(tensor("f32[B*2+1]"),), dims=((symbol, parse_dim("B*2+1")),))
        return p, q

    f = func(["f32[B]", "f32[B*2+1]"], body)
    check(module(f, callee), {"B": 3})


def test_equal_kernels_are_made_once() -> None:
    m = module(func(["f32[4]", "f32[4]"], lambda b, x, y: (b.exp(x), b.exp(y))))
    low = check(m)
    assert [f.level for f in low.funcs.values()] == ["host", "kernel"]


def test_results_are_written_in_place() -> None:
    def body(b: Any, x: Any) -> Any:
        return b.reshape(b.exp(x), shape=(6,))

    low = check(func(["f32[2,3]"], body))
    assert not any(op.name in ("copy", "alloc") for op in low.entry.walk())


def test_inplace_pairs_name_only_reads_at_the_written_index() -> None:
    low = check(fused(["f32[3,3]", "f32[3]"], lambda b, x, y: b.add(b.add(x, y), b.exp(x))))
    (launch,) = [op for op in low.entry.walk() if op.name == "launch"]
    assert launch.attrs["inplace"] == ((2, 0),)


def copies(low: Any) -> int:
    return sum(op.name == "copy" for op in low.entry.walk())


def test_a_carry_that_is_read_where_it_is_written_is_overwritten() -> None:
    t = tensor("f32[4]")

    def body(b: Any, x: Any, w: Any) -> Any:
        step = b.block([t, t], lambda ib, c, v: ib.add(ib.mul(c, v), v))
        return b.emit("scan", x, w, blocks=[step], carry=1, consts=1, length=3)

    assert copies(check(func(["f32[4]", "f32[4]"], body))) == 1  # the start of the loop


def test_a_carry_that_is_read_elsewhere_is_not_overwritten() -> None:
    t = tensor("f32[4,4]")

    def turned(b: Any, x: Any) -> Any:
        step = b.block(
            [t],
            lambda ib, c: ib.emit(
                "fused",
                c,
                kind="pointwise",
                blocks=[ib.block([t], lambda jb, v: jb.add(v, jb.transpose(v, perm=(1, 0))))],
            )[0],
        )
        return b.emit("scan", x, blocks=[step], carry=1, length=3)

    def later(b: Any, x: Any) -> Any:
        def step(ib: Any, c: Any) -> Any:
            d = ib.neg(c)
            return d, ib.add(c, d)

        return b.emit("scan", x, blocks=[b.block([t], step)], carry=1, length=3)

    def two(b: Any, x: Any, y: Any) -> Any:
        def step(ib: Any, p: Any, q: Any) -> Any:
            r = ib.add(p, q)
            return r, ib.sub(p, r)

        return b.emit("scan", x, y, blocks=[b.block([t, t], step)], carry=2, length=3)

    assert copies(check(func(["f32[4,4]"], turned))) == 2
    check(func(["f32[4,4]"], later))
    check(func(["f32[4,4]", "f32[4,4]"], two))


def test_updating_one_element_of_a_carry_writes_one_element() -> None:
    x, i = tensor("f32[5]"), tensor("i64")

    def body(b: Any, start: Any, values: Any) -> Any:
        def step(ib: Any, c: Any, n: Any, v: Any) -> Any:
            new = ib.dynamic_update(c, ib.reshape(v, shape=(1,)), n)
            return new, ib.add(n, ib.const(1, dtype="i64"))

        return b.emit(
            "scan", start, b.const(0, dtype="i64"), values, blocks=[b.block([x, i, tensor("f32")], step)], carry=2
        )

    low = check(func(["f32[5]", "f32[7]"], body))
    assert copies(low) == 2  # both starts
    assert not any(op.name == "alloc" and op.attrs["type"].shape == (5,) for op in low.entry.walk())


@pytest.mark.parametrize(
    "t", [("f32[5,4]", "f32[2,3]"), ("f32[5,4]", "f32[0,3]"), ("f32", "f32"), ("f32[B+1,4]", "f32[1,4]")]
)
def test_dynamic_update(t: Any) -> None:
    rank = 0 if "[" not in t[0] else 2

    def body(b: Any, x: Any, u: Any, *s: Any) -> Any:
        return b.dynamic_update(x, b.mul(u, u), *s)

    check(fused([*t, *["i64"] * rank], body), {"B": 3})


def test_scatter_into_a_carry_does_not_copy_it() -> None:
    x, i = tensor("f32[5]"), tensor("i64[3]")

    def body(b: Any, start: Any, where: Any) -> Any:
        def step(ib: Any, c: Any, at: Any) -> Any:
            return ib.scatter(c, ib.const(np.ones(3, np.float32)), at, axes=(0,), mode="add")

        return b.emit("scan", start, where, blocks=[b.block([x, i], step)], carry=1)

    assert copies(check(func(["f32[5]", "i64[4,3]"], body))) == 1
