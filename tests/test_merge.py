"""Loops and branches that share their work become one."""

from __future__ import annotations

from typing import Any

import numpy as np

import fluxir as fx
from fluxir.ir.interp import interpret
from fluxir.ir.parser import parse_module
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager

W = np.array([[0.3, -0.8], [1.1, 0.2]])


def stepwise(x: Any, w: Any) -> Any:
    def step(h: Any, u: Any) -> Any:
        h = fx.tanh(w @ h + u)
        return h, h

    return fx.sum(fx.scan(step, x, fx.ones((6, 2), dtype=fx.float64))[1])


@fx.function
def branching(x: Any, w: Any) -> Any:
    if x[0] > 0:
        y = fx.tanh(w @ x)
    else:
        y = fx.sin(x)
    return fx.sum(y * y)


def test_a_function_and_its_pullback_share_the_forward_pass() -> None:
    for f, word, count in ((stepwise, "scan(", 2), (branching, "if(", 2)):

        def both(x: Any, w: Any, f: Any = f) -> Any:
            out, pull = fx.vjp(f, x, w)
            return out, pull(out * 0.5)

        x = np.array([0.5, -0.2])
        jitted = fx.jit(both)
        assert jitted.lower(x, W).as_text("simplified", locations=False).count(f"= {word}") == count
        out, (dx, dw) = jitted(x, W)
        want, grads = fx.value_and_grad(f, (0, 1))(x, W)
        np.testing.assert_allclose(out, want)
        np.testing.assert_allclose(dx, grads[0] * want / 2)
        np.testing.assert_allclose(dw, grads[1] * want / 2)


TEXT = """
module @m
func @f(%x: f32[3], %xs: f32[4,3], %p: bool) -> (f32[3], f32[4,3], f32[3], f32[4,3], f32[4,3], f32[3], f32[3], f32[3]) {
  %a, %b = scan(%x, %xs) [carry=1] : f32[3], f32[4,3] {
    (%h: f32[3], %u: f32[3]) ->
    %n = add(%h, %u) : f32[3]
    %y = exp(%n) : f32[3]
    yield %n, %y
  }
  %c, %d, %e = scan(%x, %xs) [carry=1, length=4] : f32[3], f32[4,3], f32[4,3] {
    (%h: f32[3], %u: f32[3]) ->
    %z = sin(%h) : f32[3]
    %n = add(%h, %u) : f32[3]
    %y = exp(%n) : f32[3]
    yield %n, %z, %y
  }
  %g = if(%p, %a) : f32[3] {
    (%v: f32[3]) ->
    %r = exp(%v) : f32[3]
    yield %r
  } {
    (%v: f32[3]) ->
    yield %v
  }
  %k, %l = if(%p, %a) : f32[3], f32[3] {
    (%v: f32[3]) ->
    %r = exp(%v) : f32[3]
    yield %r, %v
  } {
    (%v: f32[3]) ->
    %s = neg(%v) : f32[3]
    yield %v, %s
  }
  return %a, %b, %c, %d, %e, %g, %k, %l
}
"""


def test_results_go_where_they_went() -> None:
    m = parse_module(TEXT)
    merged = PassManager("merge", verify="numeric").run(m)
    verify_module(merged)
    assert [op.name for op in merged.entry.ops] == ["scan", "if"]
    assert len(merged.entry.ops[0].results) == 3 and len(merged.entry.ops[1].results) == 2
    rng = np.random.default_rng(0)
    for p in (True, False):
        args = [rng.standard_normal(3).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32), np.bool_(p)]
        for a, b in zip(interpret(m, args), interpret(merged, args), strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_carries_stay_apart() -> None:
    text = TEXT.replace("%z = sin(%h) : f32[3]\n    %n = add(%h, %u)", "%z = sin(%h) : f32[3]\n    %n = sub(%h, %u)")
    m = parse_module(text)
    assert [op.name for op in PassManager("merge").run(m).entry.ops] == ["scan", "scan", "if"]
