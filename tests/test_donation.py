"""Donated arguments: results take their memory, and nothing that was given away is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError


def step(params: Any, state: Any, x: Any) -> Any:
    g = fx.grad(lambda p: fx.sum((x @ p["w"] + p["b"]) ** 2))(params)
    state = fx.tree.map(lambda s, d: 0.9 * s + d, state, g)
    return fx.tree.map(lambda p, s: p - 0.01 * s, params, state), state


def fresh() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((5, 3)).astype(np.float32), "b": np.ones(3, np.float32)}
    return params, fx.tree.map(np.zeros_like, params), rng.standard_normal((7, 5)).astype(np.float32)


def test_results_take_the_place_of_arguments() -> None:
    plain, donating = fx.jit(step), fx.jit(step, donate_argnums=(0, 1))
    a, b = fresh(), fresh()
    for _ in range(3):
        before = [x.ctypes.data for x in fx.tree.leaves(b[:2])]
        new_a, new_b = plain(*a), donating(*b)
        assert [x.ctypes.data for x in fx.tree.leaves(new_b)] == before
        for x, y in zip(fx.tree.leaves(new_a), fx.tree.leaves(new_b), strict=True):
            np.testing.assert_array_equal(x, y)
        a, b = (*new_a, a[2]), (*new_b, b[2])


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: (b, a),  # a swap
        lambda a, b: (b, a + b),
        lambda a, b: (a + b, a - b),
        lambda a, b: (fx.flip(a), a),
        lambda a, b: (fx.cumsum(a), fx.roll(b, 1) + a),
        lambda a, b: (a, b),
        lambda a, b: (b * 2, b * 3),
        lambda a, b: (fx.sum(a) + b, fx.sum(b) + a),
        lambda a, b: (fx.reshape(fx.reshape(a, (3, 2)).T, (6,)), a),
    ],
)
def test_every_way_to_depend_on_what_is_overwritten(f: Any) -> None:
    a, b = np.arange(6.0), np.arange(6.0)[::-1].copy()
    want = [np.array(x) for x in f(a.copy(), b.copy())]
    got = fx.jit(f, donate_argnums=(0, 1))(a, b)
    for x, y in zip(want, got, strict=True):
        np.testing.assert_array_equal(x, y)


def test_use_after_donation_names_both_lines() -> None:
    f = fx.jit(lambda x: x * 2, donate_argnums=0)
    g = fx.jit(lambda x: x + 1)
    x = np.ones(4)
    y = f(x)
    for use in (f, g):
        with pytest.raises(FluxError) as e:
            use(x)
        assert e.value.code == "FX0614" and str(e.value).count("test_donation.py") == 2
    np.testing.assert_array_equal(g(y), 3)
    np.testing.assert_array_equal(f(y), 4)


def test_shared_memory_is_refused() -> None:
    f = fx.jit(lambda x, y: x + y, donate_argnums=0)
    x = np.ones(4)
    for other in (x, x[::-1][::-1], x.view()):
        with pytest.raises(FluxError, match="FX0614"):
            f(x, other)
    np.testing.assert_array_equal(f(x, np.ones(4)), 2)


def test_what_cannot_be_overwritten_is_copied() -> None:
    f = fx.jit(lambda x: x * 2, donate_argnums=0)
    frozen = np.ones(4)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(f(frozen), 2)
    np.testing.assert_array_equal(frozen, 1)
    strided = np.arange(8.0)
    np.testing.assert_array_equal(f(strided[::2]), [0, 4, 8, 12])
    np.testing.assert_array_equal(strided, np.arange(8.0))


def test_a_symbolic_size() -> None:
    f = fx.jit(lambda x, y: (x + y, fx.sum(y)), signature=(fx.f32["B"], fx.f32["B"]), donate_argnums=0)
    for n in (1, 5, 0):
        x = np.ones(n, np.float32)
        at = x.ctypes.data
        out, total = f(x, np.full(n, 2, np.float32))
        assert (out == 3).all() and total == 2 * n and out.ctypes.data == at


def test_parameters_are_moved_as_soon_as_their_gradients_are_there() -> None:
    """No gradient waits for the end of the step, where all parameters would be moved: the memory does not grow with them."""

    def step(ps: Any, x: Any) -> Any:
        def loss(ps: Any) -> Any:
            h = x
            for p in ps:
                h = fx.tanh(fx.conv(h, p, padding=1))
            return fx.sum(h * h)

        return [p - 0.1 * g for p, g in zip(ps, fx.grad(loss)(ps), strict=True)]

    def planned(layers: int) -> float:
        ps = [np.ones((32, 32, 3, 3), np.float32) for _ in range(layers)]
        cost = fx.jit(step, donate_argnums=0).lower(ps, np.ones((1, 32, 3, 3), np.float32)).cost()
        return float(cost.peak_memory) / ps[0].nbytes

    assert planned(6) < planned(2) + 1 < 5
