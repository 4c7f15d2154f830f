"""Contractions that need no other round leave a scan: what moves, what stays, and that the results are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.interp import interpret
from fluxir.ir.parser import parse_module
from fluxir.passes.manager import PassManager


def lifted(text: str) -> Any:
    return PassManager("lift,dce", verify="numeric").run(parse_module(text))


def body_of(module: Any) -> list[str]:
    (scan,) = [op for op in module.entry.ops if op.name == "scan"]
    return [op.name for op in scan.blocks[0].ops]


def compared(text: str, *args: Any) -> Any:
    m, new = parse_module(text), lifted(text)
    for a, b in zip(interpret(m, args), interpret(new, args), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    return new


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape)


SCAN = """
module @m
func @f(%h: f64[2,3], %s: f64[RESULT], %w: f64[3,4], %xs: f64[5,2,3]) -> (f64[2,3], f64[RESULT], f64[5,OUT]) {
  %a, %b, %c = scan(%h, %s, %w, %xs) [carry=2, consts=1, reverse=REVERSE] : f64[2,3], f64[RESULT], f64[5,OUT] {
    (%h: f64[2,3], %s: f64[RESULT], %w: f64[3,4], %x: f64[2,3]) ->
    %n = sin(%h) : f64[2,3]
    BODY
    yield %n, %t, %y
  }
  return %a, %b, %c
}
"""


def program(body: str, result: str = "3,4", out: str = "2,3", reverse: str = "false") -> str:
    return SCAN.replace("BODY", body).replace("RESULT", result).replace("OUT", out).replace("REVERSE", reverse)


@pytest.mark.parametrize("reverse", ["false", "true"])
def test_a_product_of_slices_is_taken_before_the_loop(reverse: str) -> None:
    for dot, out in (
        ("dot(%x, %w) [lhs_contract=(1,), rhs_contract=(0,)] : f64[2,4]", "2,4"),
        ("dot(%w, %x) [lhs_contract=(0,), rhs_contract=(1,)] : f64[4,2]", "4,2"),
    ):
        text = program(
            f"%z = {dot}\n    %y = exp(%z) : f64[{out}]\n    %t = neg(%s) : f64[3,4]", out=out, reverse=reverse
        )
        new = compared(text, normal(2, 3), normal(3, 4), normal(3, 4), normal(5, 2, 3))
        assert body_of(new) == ["sin", "exp", "neg"]


@pytest.mark.parametrize("reverse", ["false", "true"])
def test_sums_of_products_are_taken_after_the_loop(reverse: str) -> None:
    for body, result in (
        ("%d = dot(%x, %n) [lhs_contract=(0,), rhs_contract=(0,)] : f64[3,3]\n    %t = add(%s, %d) : f64[3,3]", "3,3"),
        (
            "%d = dot(%n, %h) [lhs_contract=(), rhs_contract=()] : f64[2,3,2,3]\n    %t = add(%d, %s) : f64[2,3,2,3]",
            "2,3,2,3",
        ),
        (
            "%d = dot(%x, %n) [lhs_contract=(), rhs_contract=(), lhs_batch=(0,), rhs_batch=(0,)] : f64[2,3,3]\n"
            "    %e = transpose(%d) [perm=(2, 0, 1)] : f64[3,2,3]\n    %t = add(%s, %e) : f64[3,2,3]",
            "3,2,3",
        ),
    ):
        text = program(f"{body}\n    %y = exp(%n) : f64[2,3]", result, reverse=reverse)
        shape = tuple(int(d) for d in result.split(","))
        new = compared(text, normal(2, 3), normal(*shape), normal(3, 4), normal(5, 2, 3))
        assert body_of(new) == ["sin", "exp"]


def test_sums_of_what_is_stacked_are_taken_after_the_loop() -> None:
    more = "%y = exp(%n) : f64[2,3]\n    %d = dot(%x, %w) [lhs_contract=(1,), rhs_contract=(0,)] : f64[2,4]\n"
    tail = "    %e = sum(%y) [axes=(0,)] : f64[3]\n    %t = add(%s, %e) : f64[3]"
    new = compared(program(more + tail, "3"), normal(2, 3), normal(3), normal(3, 4), normal(5, 2, 3))
    assert body_of(new) == ["sin", "exp"]
    # Nothing else stacks what is summed here: it stays.
    text = program(more + tail.replace("sum(%y)", "sum(%n)"), "3")
    assert "sum" in body_of(compared(text, normal(2, 3), normal(3), normal(3, 4), normal(5, 2, 3)))


def test_a_stacked_product_is_taken_after_the_loop() -> None:
    for dot, out in (
        ("dot(%n, %w) [lhs_contract=(1,), rhs_contract=(0,)] : f64[2,4]", "2,4"),
        ("dot(%w, %n) [lhs_contract=(0,), rhs_contract=(1,)] : f64[4,2]", "4,2"),
    ):
        text = program(f"%y = {dot}\n    %t = neg(%s) : f64[3,4]", out=out)
        new = compared(text, normal(2, 3), normal(3, 4), normal(3, 4), normal(5, 2, 3))
        assert body_of(new) == ["sin", "neg"]


def test_what_a_round_reads_of_another_stays() -> None:
    for body in (
        # The sum so far is read, or enters twice.
        "%d = dot(%x, %n) [lhs_contract=(0,), rhs_contract=(0,)] : f64[3,3]\n    %t = add(%s, %d) : f64[3,3]\n"
        "    %q = sum(%s) [axes=(0, 1)] : f64\n    %y = mul(%n, %q) : f64[2,3]",
        "%d = dot(%x, %n) [lhs_contract=(0,), rhs_contract=(0,)] : f64[3,3]\n    %e = mul(%s, %d) : f64[3,3]\n"
        "    %t = add(%s, %e) : f64[3,3]\n    %y = exp(%n) : f64[2,3]",
        "%d = dot(%x, %n) [lhs_contract=(0,), rhs_contract=(0,)] : f64[3,3]\n    %t = sub(%s, %d) : f64[3,3]\n"
        "    %y = exp(%n) : f64[2,3]",
    ):
        new = compared(program(body, "3,3"), normal(2, 3), normal(3, 3), normal(3, 4), normal(5, 2, 3))
        assert "dot" in body_of(new)


def test_no_round_at_all() -> None:
    text = program(
        "%d = dot(%x, %n) [lhs_contract=(0,), rhs_contract=(0,)] : f64[3,3]\n    %t = add(%s, %d) : f64[3,3]\n"
        "    %y = exp(%n) : f64[2,3]", "3,3",
    ).replace("[5,", "[0,")  # fmt: skip
    compared(text, normal(2, 3), normal(3, 3), normal(3, 4), np.zeros((0, 2, 3)))


def test_large_batches_stay_in_the_loop() -> None:
    """Stacking more than the matrix holds would cost more memory than it saves."""

    def f(w: Any, xs: Any) -> Any:
        return fx.scan(lambda h, x: (fx.tanh(h + x @ w), h), fx.zeros((xs.shape[1], 4), dtype=fx.float32), xs)

    for rows, dots in ((3, 0), (4, 1)):
        module = fx.jit(f).lower(fx.f32[3, 4], fx.f32[5, rows, 3]).stage("simplified")
        assert body_of(module).count("dot") == dots


def test_gradient_of_a_recurrent_network() -> None:
    """No product with a weight that is the same in every round stays in the reverse loop but that of the state."""

    def loss(p: Any, x: Any) -> Any:
        def cell(h: Any, u: Any) -> Any:
            h = fx.tanh(u @ p["u"] + h @ p["w"] + p["b"])
            return h, h @ p["o"]

        return fx.sum(fx.scan(cell, fx.zeros((2, 6), dtype=x.dtype), x)[1] ** 2)

    rng = np.random.default_rng(0)
    p = {"u": rng.standard_normal((5, 6)), "w": rng.standard_normal((6, 6)) / 3, "b": rng.standard_normal(6)}
    p["o"] = rng.standard_normal((6, 3))
    x = rng.standard_normal((7, 2, 5))
    f = fx.jit(fx.value_and_grad(loss, (0, 1)))
    scans = [op for op in f.lower(p, x).stage("simplified").entry.ops if op.name == "scan"]
    assert [[o.name for o in s.blocks[0].ops].count("dot") for s in scans] == [1, 1]
    value, (dp, dx) = f(p, x)
    want, (ep, ex) = fx.value_and_grad(loss, (0, 1))(p, x)
    np.testing.assert_allclose(value, want, rtol=1e-12)
    np.testing.assert_allclose(dx, ex, rtol=1e-9, atol=1e-11)
    for k in p:
        np.testing.assert_allclose(dp[k], ep[k], rtol=1e-9, atol=1e-11)


def launches(f: Any, *types: Any) -> tuple[list[str], list[str]]:
    """The kernels launched at the top of a program, and in its loop."""
    host = fx.jit(f).lower(*types).stage("loops", "cpu:x86-64-v3").entry

    def called(ops: Any) -> list[str]:
        return [o.attrs["callee"] for o in ops if o.name == "launch"]

    loops = [o for o in host.ops if o.name in ("for", "while")]
    return called(host.ops), [c for o in loops for c in called(o.blocks[-1].ops)]


def test_operands_are_packed_before_the_loop() -> None:
    def steps(w: Any, h: Any) -> Any:
        return fx.fori_loop(0, 9, lambda i, h: fx.tanh(h @ w), h)

    before, inside = launches(steps, fx.f32[64, 64], fx.f32[32, 64])
    assert sum("pack_rhs" in c for c in before) == 1
    assert not any("pack_rhs" in c for c in inside)

    def moving(w: Any, h: Any) -> Any:
        return fx.fori_loop(0, 9, lambda i, c: (fx.tanh(c[0] @ c[1]), c[1] * 0.9), (h, w))

    before, inside = launches(moving, fx.f32[256, 256], fx.f32[512, 256])
    assert sum("pack_rhs" in c for c in inside) == 1
    rng = np.random.default_rng(0)
    w, h = rng.standard_normal((64, 64)).astype(np.float32) / 8, rng.standard_normal((32, 64)).astype(np.float32)
    for f in (steps, moving):
        want = np.asarray(h), w
        for _ in range(9):
            want = np.tanh(want[0] @ want[1]), want[1] * np.float32(0.9 if f is moving else 1)
        got = fx.jit(f)(w, h)
        np.testing.assert_allclose(got[0] if f is moving else got, want[0], rtol=1e-4, atol=1e-5)


def test_an_operand_of_several_products_is_packed_once() -> None:
    before, _ = launches(lambda x, y, w: (x @ w, fx.exp(y) @ w), *[fx.f32[512, 256]] * 2, fx.f32[256, 256])
    assert sum("pack_rhs" in c for c in before) == 1


def test_a_step_updates_its_weights_in_the_product_that_is_their_gradient() -> None:
    """The product writes over the state that it alone reads: nothing is copied."""

    def step(w: Any, m: Any, x: Any, d: Any) -> Any:
        m = 0.9 * m + x.mT @ d
        return w - 0.1 * m / (fx.abs(m) + 1), m

    rng = np.random.default_rng(0)
    w, m, x, d = (rng.standard_normal(s).astype(np.float32) for s in ((70, 40), (70, 40), (32, 70), (32, 40)))
    f = fx.jit(step, donate_argnums=(0, 1))
    host = f.lower(w, m, x, d).stage("loops", "cpu:x86-64-v3").entry
    assert {o.name for o in host.walk() if o.name in ("copy", "launch")} == {"launch"}
    e = 0.9 * m.astype(np.float64) + x.T.astype(np.float64) @ d
    want = w - 0.1 * e / (np.abs(e) + 1)
    got_w, got_m = f(w, m, x, d)
    np.testing.assert_allclose(got_m, e, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got_w, want, rtol=1e-5, atol=1e-5)
