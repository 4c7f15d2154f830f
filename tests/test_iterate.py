"""Loops of elements: which programs become one, that they are the same as before, and on all targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.interp import interpret

F32 = np.float32


def escape(cx: Any, cy: Any) -> Any:
    """Rounds until |z|^2 > 4, and z."""

    def go(s: Any) -> Any:
        x, y, n = s
        return fx.logical_and(x * x + y * y <= 4.0, n < 30)

    def step(s: Any) -> Any:
        x, y, n = s
        return x * x - y * y + cx, 2.0 * x * y + cy, n + 1

    zero = fx.asarray(0.0, dtype="f32")
    return fx.while_loop(go, step, (zero, zero, fx.asarray(0, dtype="i32")))


def escape_arrays(cx: Any, cy: Any) -> Any:
    """The same with masks over whole arrays."""

    def step(s: Any) -> Any:
        x, y, n, on = s
        x, y = fx.where(on, x * x - y * y + cx, x), fx.where(on, 2.0 * x * y + cy, y)
        n = fx.where(on, n + 1, n)
        return x, y, n, fx.logical_and(x * x + y * y <= 4.0, n < 30)

    start = (fx.zeros_like(cx), fx.zeros_like(cx), fx.zeros(cx.shape, dtype="i32"), fx.ones(cx.shape, dtype="bool"))
    return fx.while_loop(lambda s: fx.any(s[3]), step, start)[:3]


def escape_computed(cx: Any, cy: Any) -> Any:
    """The same with a mask that the condition and the body compute alike."""

    def inside(s: Any) -> Any:
        x, y, n = s
        return fx.logical_and(x * x + y * y <= 4.0, n < 30)

    def step(s: Any) -> Any:
        x, y, n = s
        on = inside(s)
        return fx.where(on, x * x - y * y + cx, x), fx.where(on, 2.0 * x * y + cy, y), fx.where(on, n + 1, n)

    start = (fx.zeros_like(cx), fx.zeros_like(cx), fx.zeros(cx.shape, dtype="i32"))
    return fx.while_loop(lambda s: fx.any(inside(s)), step, start)


def reference(cx: Any, cy: Any) -> Any:
    x, y, n = np.zeros_like(cx), np.zeros_like(cx), np.zeros(cx.shape, np.int32)
    for _ in range(30):
        on = x * x + y * y <= 4
        x, y = np.where(on, x * x - y * y + cx, x), np.where(on, F32(2) * x * y + cy, y)
        n += on
    return x, y, n


def grid(*shape: int) -> tuple[Any, Any]:
    cx, cy = np.meshgrid(np.linspace(-2, 0.6, shape[1]), np.linspace(-1.2, 1.2, shape[0]))
    return cx.astype(F32), cy.astype(F32)


@pytest.mark.parametrize(
    "program", [fx.vmap(fx.vmap(escape)), escape_arrays, escape_computed], ids=["vmap", "masks", "computed"]
)
@pytest.mark.parametrize("shape", [(3, 5), (7, 41)])
def test_escape(program: Any, shape: tuple[int, int]) -> None:
    args = grid(*shape)
    assert fx.jit(program).lower(*args).as_text("fused").count("iterate(") == 3  # a loop for each result
    for got, want in zip(fx.jit(program)(*args), reference(*args), strict=True):
        np.testing.assert_array_equal(got, want)


def test_interpreted() -> None:
    args = grid(2, 9)
    low = fx.jit(fx.vmap(fx.vmap(escape))).lower(*args)
    for got, want in zip(interpret(low.stage("fused"), args), reference(*args), strict=True):
        np.testing.assert_array_equal(got, want)


def test_on_a_gpu() -> None:
    args = grid(3, 8)
    got = fx.jit(fx.vmap(fx.vmap(escape)), target="sm_80", device="vgpu")(*args)
    for g, want in zip(got, reference(*args), strict=True):
        np.testing.assert_array_equal(g, want)


def test_symbolic_size_and_types() -> None:
    """f64 elements with i64 counters, a scalar that all share, and one that is a row's own."""

    def power(a: Any, n: Any, most: Any) -> Any:
        def step(s: Any) -> Any:
            x, k = s
            return x * a, k + 1

        one = fx.asarray(1.0, dtype="f64")
        return fx.while_loop(lambda s: fx.logical_and(s[1] < n, s[1] < most), step, (one, fx.asarray(0, dtype="i64")))[
            0
        ]

    f = fx.jit(fx.vmap(power, in_axes=(0, 0, None)), signature=(fx.f64["N"], fx.i64["N"], fx.i64[()]))
    for size in (1, 6, 37):
        a, n = np.linspace(0.5, 1.5, size), np.arange(size, dtype=np.int64) % 9
        np.testing.assert_allclose(f(a, n, np.asarray(6)), a ** np.minimum(n, 6), rtol=1e-14)


def test_derivative() -> None:
    """Transforms come first: the loop that a derivative runs through is still a `while`."""

    def root(a: Any) -> Any:
        def step(s: Any) -> Any:
            x, _ = s
            return (2.0 * x + a / (x * x)) * (1 / 3), x

        return fx.while_loop(lambda s: fx.abs(s[0] - s[1]) > 1e-6 * fx.abs(s[0]), step, (a, a * 2.0))[0]

    a = np.linspace(0.5, 4, 19).astype(F32)
    np.testing.assert_allclose(fx.jit(fx.vmap(root))(a), np.cbrt(a), rtol=1e-5)
    np.testing.assert_allclose(fx.jit(fx.vmap(fx.grad(root)))(a), np.cbrt(a) / (3 * a), rtol=1e-3)


def halve(c: Any, keep: bool, start: Any, counted: bool) -> Any:
    """Halve all until each is below c; elements that are there go on unless `keep`."""

    def step(s: Any) -> Any:
        x, on, k = s
        half = fx.where(on, x * 0.5, x) if keep else x * 0.5
        return half, fx.logical_and(on, half > c), k + 1

    x, _, k = fx.while_loop(lambda s: fx.any(s[1]), step, (fx.ones_like(c), start, fx.asarray(0, dtype="i32")))
    return (x, k) if counted else x


def test_what_is_no_loop_of_elements() -> None:
    """Elements that change after they are done, and a count of the rounds of all, need the loop over the array."""
    c = np.linspace(0.01, 0.9, 23).astype(F32)
    on = np.ones(23, bool)
    for keep, counted in ((False, False), (True, True)):
        f = fx.jit(lambda c, on, keep=keep, counted=counted: halve(c, keep, on, counted))
        assert "iterate(" not in f.lower(c, on).as_text("fused")
    assert (np.asarray(fx.jit(lambda c, on: halve(c, False, on, False))(c, on)) == F32(2**-7)).all()
    kept, rounds = fx.jit(lambda c, on: halve(c, True, on, True))(c, on)
    np.testing.assert_array_equal(kept, F32(2) ** np.floor(np.log2(c)))
    assert rounds == 7
    assert "iterate(" in fx.jit(lambda c, on: halve(c, True, on, False)).lower(c, on).as_text("fused")


def test_first_mask_unknown() -> None:
    """A mask that is computed anew from the state says nothing of elements that did not go on at first."""

    def step(s: Any) -> Any:
        x, on = s
        x = fx.where(on, x * 0.5, x)
        return x, x > 0.1

    f = fx.jit(lambda x, on: fx.while_loop(lambda s: fx.any(s[1]), step, (x, on))[0])
    x, on = np.array([1, 1, 0.05], F32), np.array([True, False, False])
    assert "iterate(" not in f.lower(x, on).as_text("fused")
    np.testing.assert_array_equal(f(x, on), np.array([0.0625, 0.0625, 0.05], F32))


@pytest.mark.parametrize("form", ["alike", "other limit", "neighbours", "one goes on", "rows"])
def test_computed_masks(form: str) -> None:
    """Only a mask that is what the condition asks for, and that each element computes from itself."""

    def mask(x: Any, k: Any, limit: Any) -> Any:
        return fx.roll(k, 1) < 3 if form == "neighbours" else x > limit

    def run(x: Any, limit: Any) -> Any:
        def step(s: Any) -> Any:
            x, k = s
            on = mask(x, k, limit * 0.5 if form == "other limit" else limit)
            return fx.where(on, x * 0.5, x), (k + 1 if form == "one goes on" else fx.where(on, k + 1, k))

        return fx.while_loop(lambda s: fx.any(mask(*s, limit)), step, (x, fx.zeros(x.shape, dtype="i32")))

    x = np.linspace(0.01, 9, 45, dtype=F32).reshape(5, 9)
    limit = np.linspace(0.1, 0.5, 9, dtype=F32) if form == "rows" else np.full((5, 9), 0.25, F32)
    f = fx.jit(run)
    assert ("iterate(" in f.lower(x, limit).as_text("fused")) == (form in ("alike", "rows"))
    low = f.lower(x, limit)
    for got, want in zip(f(x, limit), interpret(low.stage("traced"), (x, limit)), strict=True):
        np.testing.assert_array_equal(got, want)
    if form in ("alike", "rows"):
        k = np.ceil(np.log2(np.maximum(x / limit, 1))).astype(np.int32)
        np.testing.assert_array_equal(f(x, limit)[1], k)
