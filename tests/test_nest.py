"""The nest pass: loops over small launches become one kernel that computes the same bits; others stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.core import Module
from fluxir.passes.manager import PassManager
from fluxir.schedule import lower
from fluxir.target import parse_target

TARGET = parse_target("cpu")
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def lowered(f: Callable[..., Any], *arrays: Any) -> Module:
    return lower(fx.jit(f).lower(*arrays).stage("fused"), TARGET)


def nested(f: Callable[..., Any], *arrays: Any, options: str = "") -> Module:
    """The host program after the pass, which is interpreted before and after and must give the same."""
    return PassManager("nest" + options, target=TARGET, verify="numeric").run(lowered(f, *arrays))


def launches(m: Module) -> list[str]:
    return [op.attrs["callee"] for op in m.entry.walk() if op.name == "launch"]


def lotka_volterra(p: Any, x: Any, y: Any) -> Any:
    def step(s: Any, _: Any) -> Any:
        x, y = s
        s = (x + 0.01 * (p[0] * x - p[1] * x * y), y + 0.01 * (p[2] * x * y - p[3] * y))
        return s, s[0]

    return fx.scan(step, (x, y), None, length=9)


def fibonacci(a: Any, b: Any) -> Any:
    return fx.scan(lambda s, _: ((s[1], s[0] + s[1]), s[0]), (a, b), None, length=7)


def filtered(a: Any, x: Any, p: Any) -> Any:
    def step(s: Any, z: Any) -> Any:
        x, p = s
        p = a @ p @ fx.transpose(a) + 1.0
        x = a @ x + p @ (z - x) / (1 + fx.sum(p * p))
        return (x, p), x

    return fx.scan(step, (x[0], p), x)


def within(x: Any) -> Any:
    def row(s: Any, r: Any) -> Any:
        return fx.scan(lambda t, e: (fx.tanh(t + e), t * e), s, r)

    return fx.scan(row, fx.sum(x) * 0.0, x, reverse=True)


def halving(x: Any) -> Any:
    return fx.while_loop(lambda s: fx.max(s[0]) > 0.1, lambda s: (s[0] / 2, s[1] + 1), (fx.abs(x) + 1, fx.sum(x) * 0))


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "scalars": (lotka_volterra, (normal(4), normal(), normal())),
    "swap": (fibonacci, (normal(), normal())),
    "matrices": (filtered, (normal(3, 3) / 4, normal(6, 3), normal(3, 3))),
    "loop in a loop": (within, (normal(4, 3),)),
    "while": (halving, (normal(5),)),
    "gradient": (lambda p, x, y: fx.grad(lambda p: fx.sum(lotka_volterra(p, x, y)[1] ** 2))(p), (normal(4), normal(), normal())),
}  # fmt: skip


@pytest.mark.parametrize("options", ["", "[registers=0]", "[local=0]", "[local=16, registers=2]"])
@pytest.mark.parametrize("name", CASES)
def test_a_loop_over_small_launches_is_one_kernel(name: str, options: str) -> None:
    f, arrays = CASES[name]
    m = nested(f, *arrays, options=options)
    assert not any(op.name in ("for", "while") for op in m.entry.walk())
    assert any("nest(" in str(g.attrs.get("schedule")) for g in m.funcs.values())


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_computes_what_its_loop_did(name: str) -> None:
    f, arrays = CASES[name]
    low = fx.jit(f).lower(*arrays)
    program = low.compile("cpu", cache=False)
    assert any(r.name.startswith("nest") and r.changed for r in program.build.records)
    from fluxir.ir.interp import interpret

    got = fx.tree.leaves(program(*arrays))
    for g, w in zip(got, interpret(low.module, list(arrays)), strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-6)


def test_kernels_that_nobody_launches_any_more_are_gone() -> None:
    m = nested(*CASES["scalars"][:1], *CASES["scalars"][1])
    assert {f.name for f in m.funcs.values() if f.level == "kernel"} == set(launches(m))


def test_a_loop_over_large_launches_stays_a_loop() -> None:
    f = lambda x: fx.scan(lambda s, _: (fx.tanh(s @ x), None), x, None, length=3)[0]  # noqa: E731
    before = lowered(f, normal(96, 96))
    assert PassManager("nest", target=TARGET).run(before) is before


def test_the_small_loop_inside_of_a_large_one_is_taken() -> None:
    def f(x: Any) -> Any:
        def step(s: Any, _: Any) -> Any:
            t = fx.scan(lambda a, _: (fx.tanh(a) + 1, None), s[0, 0], None, length=4)[0]
            return fx.tanh(s @ x) * t, None

        return fx.scan(step, x, None, length=3)[0]

    m = PassManager("nest", target=TARGET).run(lowered(f, normal(96, 96)))
    assert any(op.name == "for" for op in m.entry.walk()) and "loop" in launches(m)
    a = normal(96, 96) / 10
    np.testing.assert_allclose(fx.jit(f)(a), _in_numpy(a), rtol=1e-4, atol=1e-6)


def _in_numpy(x: Any) -> Any:
    s = x.astype(np.float64)
    for _ in range(3):
        t = s[0, 0]
        for _ in range(4):
            t = np.tanh(t) + 1
        s = np.tanh(s @ x) * t
    return s


def test_gpu_targets_keep_their_loops() -> None:
    target = parse_target("sm_80")
    f, arrays = CASES["scalars"]
    m = lower(fx.jit(f).lower(*arrays).stage("fused", "sm_80"), target)
    assert PassManager("nest", target=target).run(m) is m
