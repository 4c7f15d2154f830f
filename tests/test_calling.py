"""What is a leaf and what is structure in a call, and which program a call gets."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError


class Kind(enum.Enum):
    SQUARE = 1
    CUBE = 2


def power(p: Any, x: Any) -> Any:
    return p["w"] * (x**2 if p["kind"] is Kind.SQUARE else x**3).astype(p["type"])


@pytest.mark.parametrize("t", ["f64", np.dtype("f8"), np.float64, fx.f64])
def test_text_enums_and_dtypes_are_structure(t: Any) -> None:
    f, x = fx.jit(power), np.array([1.0, 2.0])
    for kind, n in ((Kind.SQUARE, 2), (Kind.CUBE, 3), (Kind.SQUARE, 2)):
        np.testing.assert_array_equal(f({"w": 2.0, "kind": kind, "type": t}, x), 2 * x**n)


@pytest.mark.parametrize("wrap", [lambda f: f, fx.jit])
def test_text_keeps_its_place_in_gradients(wrap: Any) -> None:
    def loss(p: Any, x: Any) -> Any:
        assert p["how"] == "mean"
        return fx.mean(p["w"] * x)

    p = {"w": np.float32(2), "how": "mean", "b": b"raw"}
    g = wrap(fx.grad(loss))(p, np.ones(3, np.float32))
    assert g["how"] == "mean" and g["b"] == b"raw" and g["w"] == 1
    np.testing.assert_array_equal(fx.vmap(lambda p, x: p["w"] * x, in_axes=(None, 0))(p, np.ones(3, np.float32)), 2)


def test_text_in_results_and_branches() -> None:
    @fx.jit
    def f(x: Any) -> Any:
        name = "up" if x.ndim else "down"
        if fx.sum(x) > 0:
            x = -x
        return {"x": x, "name": name}

    assert f(np.ones(2))["name"] == "up"


def test_a_number_and_an_array_of_no_dimension_have_programs_of_their_own() -> None:
    f = fx.jit(lambda x, y: x * y)
    x = np.ones(3, np.float16)
    assert f(x, 2.0).dtype == np.float16
    assert f(x, np.array(2, np.float32)).dtype == np.float32
    assert f(x, 2.0).dtype == np.float16


def test_static_argnames_may_be_one_name() -> None:
    f = fx.jit(lambda x, mode: x + 1 if mode == "more" else x, static_argnames="mode")
    assert f(np.ones(()), mode="more") == 2 and f(np.ones(()), mode="same") == 1


def test_a_long_input_that_covers_a_donated_one_is_found() -> None:
    whole = np.arange(16.0)
    f = fx.jit(lambda long, short, given: (given + 1, fx.sum(long), fx.sum(short)), donate_argnums=2)
    with pytest.raises(FluxError, match="FX0614"):
        f(whole, whole[1:2], whole[8:12])
    np.testing.assert_array_equal(whole, np.arange(16.0))


def test_python_control_flow_in_what_eager_loops_are_given() -> None:
    def step(carry: Any, x: Any) -> Any:
        while carry > 1:
            carry = carry / 2
        return carry + x, carry

    xs = np.array([3.0, 5.0, 0.5], np.float32)
    total, seen = np.float32(0), []
    for x in xs:
        while total > 1:
            total = total / 2
        seen.append(total)
        total = total + x
    out, ys = fx.scan(step, np.float32(0), xs)
    np.testing.assert_array_equal(out, total)
    np.testing.assert_array_equal(ys, seen)

    def halve(i: Any, x: Any) -> Any:
        if x > 1:
            x = x / 2
        return x

    np.testing.assert_array_equal(fx.fori_loop(0, 3, halve, np.float32(6)), np.float32(0.75))


def test_integer_leaves_have_zeros_in_every_derivative() -> None:
    def f(p: Any) -> Any:
        return fx.sum(p["x"] ** 3) * fx.astype(p["n"], fx.f64)

    p = {"x": np.array([1.0, 2.0]), "n": np.int64(2)}
    for wrap in (lambda g: g, fx.jit):
        for jacobian in (fx.grad, fx.jacrev, fx.jacfwd):
            g = wrap(jacobian(f))(p)
            np.testing.assert_allclose(g["x"], 6 * p["x"] ** 2)
            assert g["n"] == 0 and g["n"].dtype == np.int64
        for h in (fx.hessian(f), fx.jacrev(fx.grad(f)), fx.jacfwd(fx.grad(f))):
            h = wrap(h)(p)
            np.testing.assert_allclose(h["x"]["x"], np.diag(12 * p["x"]))
            assert h["x"]["n"].shape == (2,) and h["n"]["x"].shape == (2,) and h["n"]["n"].shape == ()
            assert not h["x"]["n"].any() and not h["n"]["x"].any() and not h["n"]["n"].any()
    t = {"x": np.array([1.0, 0.5]), "n": np.int64(0)}
    np.testing.assert_allclose(fx.hvp(f, (p,), (t,))["x"], 12 * p["x"] * t["x"])
    out, move = fx.linearize(f, p)
    assert out == 18 and move(t) == (6 * p["x"] ** 2 * t["x"]).sum()


def test_an_argument_without_floats_beside_one_with_them() -> None:
    def f(x: Any, n: Any) -> Any:
        return fx.sum(x * x) * fx.astype(n, fx.f64)

    x, n = np.array([1.0, 2.0]), np.int64(3)
    assert fx.jvp(f, (x, n), (np.ones(2), np.int64(0)))[1] == 18
    dx, dn = fx.vjp(f, x, n)[1](np.float64(1))
    np.testing.assert_array_equal(dx, 6 * x)
    assert dn == 0
    hx, hn = fx.hvp(f, (x, n), (np.ones(2), np.int64(0)))
    np.testing.assert_array_equal(hx, 6)
    assert hn == 0
    with pytest.raises(FluxError, match="FX0411"):
        fx.grad(f, argnums=1)(x, n)


def test_a_wrong_number_of_arguments_of_a_loop_body_is_named() -> None:
    def body(carry: Any) -> Any:
        return carry, None

    with pytest.raises(FluxError, match="FX0319"):
        fx.scan(body, np.float32(0), np.ones(3, np.float32))
