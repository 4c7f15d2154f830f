"""The pass `conv`: what it makes of convolutions means the same, and where it applies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.ir.interp import interpret
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager
from fluxir.target import parse_target
from tests.schedule_harness import func, module, random_inputs

PLAIN: dict[str, Any] = {
    "strides": (1, 1), "padding": (1, 1, 1, 1), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "groups": 1,
}  # fmt: skip


def program(x: str, w: str, **attrs: Any) -> Any:
    return module(func([x, w], lambda b, x, w: b.emit("conv", x, w, **{**PLAIN, **attrs})[0]))


def after(m: Any, target: str = "cpu") -> tuple[Any, dict[str, int]]:
    manager = PassManager("conv,dce", target=parse_target(target))
    out = manager.run(m)
    verify_module(out)
    return out, dict(manager.records[0].rules)


def same(m: Any, target: str, sizes: dict[str, int], seed: int) -> dict[str, int]:
    out, rules = after(m, target)
    given = random_inputs(m.entry, sizes, seed)
    want, got = interpret(m, given)[0], interpret(out, given)[0]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-11)
    return rules


PHASES = {"conv phases": 1}
PLACES = {"conv places": 1}


@pytest.mark.parametrize(
    ("x", "w", "attrs", "cpu", "gpu"),
    [
        ("f64[B,2,4,4]", "f64[3,2,3,3]", {"lhs_dilation": (2, 2), "padding": (1, 2, 1, 2)}, PHASES, PHASES),
        ("f64[2,2,4,4]", "f64[3,2,1,1]", {"lhs_dilation": (2, 2), "padding": (0, 1, 0, 1)}, PHASES, PHASES),
        ("f64[1,4,3,5]", "f64[2,2,4,2]", {"lhs_dilation": (3, 2), "groups": 2}, PHASES, PHASES),
        ("f64[1,2,3,5]", "f64[2,2,2,3]", {"lhs_dilation": (2, 1), "rhs_dilation": (3, 2)}, PHASES, PHASES),
        ("f64[1,2,9,5]", "f64[2,2,2,2]", {"lhs_dilation": (1, 2), "strides": (2, 1)}, PHASES, PHASES),
        ("f64[2,2,4,4]", "f64[3,2,3,3]", {"lhs_dilation": (2, 2), "rhs_dilation": (2, 1)}, {}, {}),
        ("f64[2,2,4,4]", "f64[3,2,3,3]", {"lhs_dilation": (2, 2), "strides": (2, 2)}, {}, {}),
        ("f64[1,2,4,4]", "f64[3,2,3,3]", {"lhs_dilation": (5, 5)}, {}, {}),  # too many remainders
        ("f64[3,B,8,8]", "f64[9,B,8,8]", {}, {}, PLACES),
        ("f64[3,B,8,8]", "f64[4,B,8,8]", {}, PLACES, PLACES),  # too few channels to be lanes
        ("f64[3,2,9,9]", "f64[8,2,5,5]", {"rhs_dilation": (2, 2)}, {}, PLACES),
        ("f64[300,2,5,5]", "f64[8,2,5,5]", {}, {}, PLACES),  # a product for each place
        ("f64[3,4,8,8]", "f64[8,2,8,8]", {"groups": 2}, PLACES, PLACES),
        ("f64[B,4,6,6]", "f64[20,4,6,6]", {"padding": (0,) * 4}, PLACES, PLACES),  # one place is one product
        ("f64[B,4,6,6]", "f64[20,4,3,3]", {}, {}, {}),
        (
            "f64[2,2,H,4]",
            "f64[3,2,3,3]",
            {"lhs_dilation": (2, 2), "padding": (2, 2, 1, 1)},
            {},
            {},
        ),  # the size is not known
    ],
)
def test_where_it_applies(x: str, w: str, attrs: Any, cpu: Any, gpu: Any) -> None:
    m = program(x, w, **attrs)
    for target, want in (("cpu", cpu), ("sm_80", gpu)):
        assert same(m, target, {"B": 2, "H": 4}, 0) == want
        if not want:
            assert after(m, target)[0] is m


def test_random_convolutions() -> None:
    rng = np.random.default_rng(0)
    seen = {"conv phases": 0, "conv places": 0}
    for seed in range(160):
        n = int(rng.integers(1, 4))

        def pick(*values: int, n: int = n) -> tuple[int, ...]:
            return tuple(map(int, rng.choice(values, n)))

        groups, depth = int(rng.choice([1, 1, 2])), int(rng.integers(1, 3))
        size, window = pick(1, 2, 3, 4, 5), pick(1, 2, 3, 4, 5)
        x = (int(rng.integers(1, 4)), groups * depth, *size)
        w = (groups * int(rng.integers(1, 4)), depth, *window)
        attrs = {
            "strides": pick(1, 1, 1, 2), "padding": tuple(map(int, rng.integers(-1, 4, 2 * n))),
            "lhs_dilation": pick(1, 2, 3), "rhs_dilation": pick(1, 1, 2, 3), "groups": groups,
        }  # fmt: skip
        try:
            m = program(*(f"f64[{','.join(map(str, s))}]" for s in (x, w)), **attrs)
        except FluxError:
            continue  # the window does not fit
        for rule, count in same(m, "cpu" if seed % 2 else "sm_80", {}, seed).items():
            seen[rule] += count
    assert min(seen.values()) > 10


def test_gradients_of_a_strided_convolution_natively() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 9, 12, 11)), rng.standard_normal((10, 9, 3, 3))

    def f(x: Any, w: Any) -> Any:
        return fx.sum(fx.sin(fx.conv(x, w, stride=2, padding=1)))

    lowered = fx.jit(fx.grad(f, (0, 1))).lower(x, w)
    text = lowered.as_text("simplified")
    assert text.count("conv(") == 6 and "lhs_dilation=(2, 2)" not in text  # itself, four phases, the weight's
    for got, want in zip(fx.jit(fx.grad(f, (0, 1)))(x, w), fx.grad(f, (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    assert "dot(" in lowered.as_text("simplified", "sm_80")  # the weight's, for the matrix units
