"""Derivatives through control flow, closures, trees and each other: against finite differences, forward against reverse,
interpreted and compiled.

`check` takes a function written with `fx` that runs as it stands on numpy arrays, where Python's own control flow decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError

X = np.array([0.7, -0.4, 1.3])
W = np.array([[0.3, -0.8, 0.5], [1.1, 0.2, -0.6], [-0.4, 0.9, 0.7]])


def numeric(f: Callable[..., Any], args: tuple[Any, ...], k: int, eps: float = 1e-6) -> Any:
    """Central differences of the scalar `f` by its argument `k`."""
    out = np.zeros_like(args[k])
    for i in np.ndindex(*out.shape):
        lo, hi = args[k].copy(), args[k].copy()
        lo[i] -= eps
        hi[i] += eps
        out[i] = (f(*args[:k], hi, *args[k + 1 :]) - f(*args[:k], lo, *args[k + 1 :])) / (2 * eps)
    return out


def close(a: Any, b: Any, tol: float = 1e-6) -> None:
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol * (1 + np.max(np.abs(b), initial=0)))


def check(f: Callable[..., Any], *args: Any, order: int = 3, compiled: bool = True) -> None:
    """First derivatives of the scalar `f` by every argument, second and third along a direction, in every mode."""
    f = f if f.__name__ == "<lambda>" else fx.function(f)
    argnums = tuple(range(len(args)))
    g = fx.grad(f, argnums)
    grads = g(*args)
    for k, found in enumerate(grads):
        close(found, numeric(f, args, k))
    if compiled:
        for a, b in zip(fx.jit(g)(*args), grads, strict=True):
            close(a, b, 1e-10)
    rng = np.random.default_rng(0)
    vs = tuple(rng.standard_normal(a.shape) for a in args)
    along = sum(np.sum(a * v) for a, v in zip(grads, vs, strict=True))
    close(fx.jvp(f, args, vs)[1], along)
    if order < 2:
        return

    def slope(*a: Any) -> Any:
        return sum(fx.sum(d * v) for d, v in zip(fx.grad(f, argnums)(*a), vs, strict=True))

    second = fx.grad(slope, argnums)(*args)
    for k, found in enumerate(second):
        close(found, numeric(slope, args, k), 1e-5)
    for a, b in zip(fx.jvp(g, args, vs)[1], second, strict=True):  # forward over reverse
        close(a, b, 1e-9)
    reverse_over_forward = fx.grad(lambda *xs: fx.jvp(f, xs, vs)[1], argnums)(*args)
    for a, b in zip(reverse_over_forward, second, strict=True):
        close(a, b, 1e-9)
    if order < 3:
        return

    def bend(*a: Any) -> Any:
        return sum(fx.sum(d * v) for d, v in zip(fx.grad(slope, argnums)(*a), vs, strict=True))

    third = fx.grad(bend, argnums[0])(*args)
    close(third, numeric(bend, args, 0), 1e-4)


# ---- control flow -------------------------------------------------------------------------------------------------------


def branches(x: Any, w: Any) -> Any:
    if fx.sum(x) > 1:
        y = fx.tanh(w @ x)
        z = fx.sin(y) * y
    else:
        z = fx.exp(x) * x[0]
    return fx.sum(z * x)


def nested_branches(x: Any, w: Any) -> Any:
    y = x
    if x[0] > 0:
        y = y * 2
        if x[1] > 0:
            y = y + w[0]
        elif x[2] > 1:
            y = fx.sin(y) * w[1]
    return fx.sum(y**3)


def static_loop(x: Any, w: Any) -> Any:
    h = x
    total = fx.sum(x) * 0
    for i in range(4):
        h = fx.tanh(w @ h + x)
        total = total + fx.sum(h * h) * (i + 1)
    return total


def scanned(x: Any, w: Any) -> Any:
    def step(h: Any, u: Any) -> Any:
        h = fx.tanh(w @ h + u * x)
        return h, fx.sum(h * h) * u

    h, ys = fx.scan(step, x, fx.asarray(np.linspace(0.1, 1, 5)))
    return fx.sum(ys) + fx.sum(h)


def scanned_backwards(x: Any, w: Any) -> Any:
    def step(h: Any, row: Any) -> Any:
        return fx.sin(h + row * x), h * row

    h, ys = fx.scan(step, x, w, reverse=True)
    return fx.sum(ys * w) + fx.sum(h * x)


def until_small(x: Any, w: Any) -> Any:
    h = x
    while fx.sum(h * h) > 0.05:
        h = 0.6 * fx.tanh(w @ h)
    return fx.sum(h * x)


def while_with_branches_and_loops(x: Any, w: Any) -> Any:
    h = x
    while fx.sum(h * h) > 0.01:
        if h[0] > 0.1:
            h = 0.5 * fx.tanh(w @ h)
        else:
            h = 0.4 * fx.sin(h)
            j = 0
            while j < 2:
                h = h * fx.cos(h) * 0.9
                j = j + 1
    return fx.sum(h * x)


def breaks(x: Any, w: Any) -> Any:
    h = x
    for _i in range(20):
        h = fx.tanh(w @ h) * 0.9
        if fx.sum(h * h) < 0.2:
            break
        h = h + 0.01 * x
    return fx.sum(h * x)


def continues(x: Any, w: Any) -> Any:
    total = fx.sum(x) * 0
    for i in range(3):
        if x[i] < 0:
            continue
        total = total + fx.sum(w[i] * x) ** 2
    return total


def returns_early(x: Any, w: Any) -> Any:
    h = x
    for _i in range(6):
        h = fx.sin(w @ h)
        if fx.sum(h) > 0.5:
            return fx.sum(h * h) * 3
    return fx.sum(h * x)


def assigns(x: Any, w: Any) -> Any:
    y = fx.zeros(4, dtype=fx.float64)
    for i in range(3):
        y[i] = x[i] * w[i, 0]
        y[i + 1] = y[i] * y[i] + x[i]
    y[0] += y[3] * x[1]
    return fx.sum(y**2)


def used_before_and_after(x: Any, w: Any) -> Any:
    a = fx.exp(x)
    s = fx.sum(a)
    h = x
    while fx.sum(h * h) > 0.1:
        h = h * 0.5
    return s * fx.sum(a * h) + fx.sum(a * a)


def integers_beside(x: Any, w: Any) -> Any:
    n = 0
    even = True
    h = x
    while n < 5:
        h = fx.where(even, fx.sin(h), h * w[n % 3])
        even = fx.logical_not(even)
        n = n + 1
    return fx.sum(h) * n


def reads_in_a_loop(x: Any, w: Any) -> Any:
    total = fx.sum(x) * 0
    for i in range(3):
        for j in range(3):
            total = total + w[i, j] * x[i] * x[(i + j) % 3] ** 2
    return total


def swapped(x: Any, w: Any) -> Any:
    a, b = x, w[0]
    for _ in range(3):
        a, b = b * fx.sin(a), a + b
    return fx.sum(a * b)


def unused_state(x: Any, w: Any) -> Any:
    a, b = x, w[1]
    for _ in range(3):
        a, b = a * 1.5, fx.cos(b)
    return fx.sum(a)


def closes_over(x: Any, w: Any) -> Any:
    scale = fx.sum(x * x)

    def body(h: Any) -> Any:
        return fx.tanh(w @ h) * scale

    return fx.sum(fx.fori_loop(0, 3, lambda i, h: body(h), x))


def no_rounds(x: Any, w: Any) -> Any:
    h = x
    while fx.sum(h * h) > 1000:
        h = h * w[0]
    return fx.sum(h * h * x)


def count_from_data(x: Any, w: Any) -> Any:
    h = x
    n = fx.astype(fx.sum(x) * 3, fx.int64)
    for _ in range(n):
        h = fx.sin(h) + 0.1 * w[0] * h
    return fx.sum(h * h)


PROGRAMS = [
    branches, nested_branches, static_loop, scanned, scanned_backwards, until_small, while_with_branches_and_loops, breaks,
    continues, returns_early, assigns, used_before_and_after, integers_beside, reads_in_a_loop, swapped, unused_state,
    closes_over, no_rounds,
]  # fmt: skip


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_control_flow(f: Any) -> None:
    check(f, X, W, order=2)


@pytest.mark.deep
@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_control_flow_to_the_third_order(f: Any) -> None:
    check(f, X, W, order=3)


@pytest.mark.parametrize(
    "f", [branches, until_small, while_with_branches_and_loops, returns_early], ids=lambda f: f.__name__
)
def test_the_other_side(f: Any) -> None:
    check(f, -X, W, order=2)


@fx.function
def power(x: Any, n: Any) -> Any:
    if n <= 0:
        return fx.ones_like(x)
    return x * power(x, n - 1)


@fx.function
def tree_sum(x: Any, depth: Any) -> Any:
    if depth <= 0:
        return fx.sin(x)
    return tree_sum(x * 0.5, depth - 1) * tree_sum(x + 0.1, depth - 1)


def test_recursion() -> None:
    check(lambda x: fx.sum(power(x, 3) * x), X)
    check(lambda x: fx.sum(power(x, fx.astype(fx.sum(x), fx.int64) + 2)), X, order=2)
    check(lambda x: fx.sum(tree_sum(x, fx.astype(fx.sum(x), fx.int64) + 2)), X, order=2)


def test_loop_bounds_from_data() -> None:
    f = fx.jit(fx.grad(fx.function(count_from_data)))
    n = int(np.sum(X) * 3)

    def unrolled(x: Any) -> Any:
        h = x
        for _ in range(n):
            h = np.sin(h) + 0.1 * W[0] * h
        return np.sum(h * h)

    close(f(X, W), numeric(unrolled, (X,), 0))


# ---- silently wrong elsewhere: five issues of NVIDIA Warp ------------------------------------------------------------------


def test_warp_1694_value_made_before_a_dynamic_loop_and_used_after_it() -> None:
    def f(x: Any, n: Any) -> Any:
        b = x * x
        acc = 5.0 * fx.ones_like(x)
        for _k in range(n):
            acc = acc + b
        return fx.sum(acc * b)

    for n in (0, 1, 3):
        found = fx.jit(fx.grad(f))(X, np.int64(n))
        close(found, 2 * X * 5 + n * 4 * X**3)


def test_warp_1740_function_with_a_loop_and_a_nonlinear_end() -> None:
    @fx.function
    def reciprocal_of_sum(x: Any, n: Any) -> Any:
        s = fx.sum(x) * 0
        for i in range(n):
            s = s + x[i]
        return 1 / s

    found = fx.jit(fx.grad(reciprocal_of_sum))(X, np.int64(3))
    close(found, np.full(3, -1 / np.sum(X) ** 2))


def test_warp_1552_continue_in_a_loop_that_looks_for_a_maximum() -> None:
    c = np.array([0.0, 2.0, -1.0, 0.0, 3.0])

    @fx.function
    def largest(x: Any, c: Any, n: Any) -> Any:
        best = fx.full((), -1e20, dtype=fx.float64)
        for p in range(n):
            if c[p] == 0:
                continue
            v = x * c[p] * (p + 1.0)
            if v > best:
                best = v
        return best

    for x in (1.5, -0.5):
        found = fx.jit(fx.grad(largest))(np.float64(x), c, np.int64(5))
        assert found == pytest.approx(15.0 if x > 0 else -3.0)


def test_warp_1293_nested_loops_with_dynamic_bounds() -> None:
    @fx.function
    def f(x: Any, n: Any, m: Any) -> Any:
        outer = x
        for _i in range(n):
            inner = outer
            for _j in range(m):
                inner = fx.sin(inner) * outer
            outer = inner + x
        return fx.sum(outer)

    def unrolled(x: Any) -> Any:
        outer = x
        for _ in range(3):
            inner = outer
            for _ in range(2):
                inner = np.sin(inner) * outer
            outer = inner + x
        return np.sum(outer)

    close(fx.jit(fx.grad(f))(X, np.int64(3), np.int64(2)), numeric(unrolled, (X,), 0))


def test_warp_1697_repeated_overwrites_of_one_element() -> None:
    @fx.function
    def f(x: Any, steps: Any) -> Any:
        v = fx.zeros(2, dtype=fx.float64)
        for _ in range(steps):
            for _i in range(4):
                v[0] = v[0] + x * 0.5
                v[1] += v[0] * x
        return v[0] + v[1]

    def plain(x: Any) -> Any:
        v = np.zeros(2)
        for _ in range(5):
            for _ in range(4):
                v[0] = v[0] + x * 0.5
                v[1] += v[0] * x
        return v[0] + v[1]

    x = np.float64(0.3)
    close(fx.jit(fx.grad(f))(x, np.int64(5)), (plain(x + 1e-6) - plain(x - 1e-6)) / 2e-6)


# ---- what is differentiated: argnums, aux, trees, types --------------------------------------------------------------------


def test_arguments_aux_and_trees() -> None:
    def f(model: Any, x: Any, *, scale: Any = 2.0) -> Any:
        h = x
        for layer in model["layers"]:
            h = fx.tanh(layer["w"] @ h + layer["b"])
        return fx.sum(h) * scale, {"h": h}

    model = {"layers": [{"w": W, "b": X}, {"w": W.T, "b": -X}], "step": np.int64(3), "name": None}
    (_, aux), g = fx.value_and_grad(f, has_aux=True)(model, X, scale=3.0)
    assert g["step"].dtype == np.int64 and g["step"] == 0 and g["name"] is None and aux["h"].shape == (3,)
    by_hand = numeric(lambda w: f({"layers": [{"w": w, "b": X}, model["layers"][1]]}, X, scale=3.0)[0], (W,), 0)
    close(g["layers"][0]["w"], by_hand)
    compiled = fx.jit(fx.value_and_grad(f, has_aux=True))(model, X)
    close(compiled[1]["layers"][0]["w"] * 1.5, by_hand)
    first, second = fx.grad(lambda a, b: fx.sum(a * b * b), argnums=(1, 0))(X, -X)
    close(first, 2 * X * -X)
    close(second, X * X)
    assert fx.grad(f, has_aux=True)(model, X)[1]["h"].shape == (3,)


def test_what_does_not_depend_is_exactly_zero() -> None:
    a, b = fx.grad(lambda x, y: fx.sum(x), argnums=(0, 1))(X, W.astype(np.float32))
    assert b.dtype == np.float32 and b.shape == W.shape and not b.any() and (a == 1).all()
    assert not fx.grad(lambda x: fx.sum(fx.stop_gradient(fx.stop_gradient(x) * x)))(X).any()
    close(fx.grad(lambda x: fx.sum(fx.stop_gradient(x) * x))(X), X)


def test_one_argument_used_often_and_twice() -> None:
    close(fx.grad(lambda x: fx.sum(x * x + x * x * x))(X), 2 * X + 3 * X * X)
    a, b = fx.grad(lambda x, y: fx.sum(x * y), argnums=(0, 1))(X, X)
    close(a, X)
    close(b, X)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types_of_gradients(dtype: str) -> None:
    d = getattr(fx, dtype)
    x = np.asarray(X).astype(d.numpy)
    g = fx.grad(lambda x: fx.sum(fx.astype(x, fx.float32) * fx.tanh(fx.astype(x, fx.float32))))(x)
    assert g.dtype == d.numpy
    close(g.astype(np.float64), np.tanh(X) + X * (1 - np.tanh(X) ** 2), 2e-2)


def test_symbolic_sizes() -> None:
    f = fx.jit(fx.value_and_grad(lambda w, x: fx.mean(fx.tanh(x @ w) ** 2)), signature=(fx.f64[3, 3], fx.f64["B", 3]))
    for n in (1, 4, 7):
        x = np.random.default_rng(n).standard_normal((n, 3))
        _, g = f(W, x)
        close(g, numeric(lambda w, x=x: np.mean(np.tanh(x @ w) ** 2), (W,), 0))


# ---- vjp, jvp, linearize, hvp --------------------------------------------------------------------------------------------


def test_vjp_and_jvp() -> None:
    def f(x: Any, w: Any) -> Any:
        return {"a": fx.tanh(w @ x), "b": (fx.sum(x),)}

    out, pull = fx.vjp(f, X, W)
    ct = {"a": np.ones(3), "b": (2.0,)}
    dx, dw = pull(ct)
    t = 1 - np.tanh(W @ X) ** 2
    close(dx, W.T @ t + 2)
    close(dw, np.outer(t, X))
    compiled = fx.jit(lambda x, w, ct: fx.vjp(f, x, w)[1](ct))(X, W, {"a": np.ones(3), "b": (np.float64(2.0),)})
    close(compiled[0], dx)
    primal, tangent = fx.jvp(f, (X, W), (np.ones(3), np.zeros((3, 3))))
    close(primal["a"], out["a"])
    close(tangent["a"], t * (W @ np.ones(3)))
    close(tangent["b"][0], 3)
    value, linear = fx.linearize(f, X, W)
    close(linear(np.ones(3), np.zeros((3, 3)))["a"], tangent["a"])
    assert value["a"].shape == (3,)
    close(fx.hvp(lambda x: fx.sum(x**4), (X,), (np.ones(3),)), 12 * X**2)


def test_they_nest_in_any_order() -> None:
    def f(x: Any) -> Any:
        return fx.sum(fx.sin(x) * x)

    def third(x: Any) -> Any:
        return fx.grad(lambda a: fx.sum(fx.jvp(fx.grad(f), (a,), (fx.ones_like(a),))[1]))(x)

    expected = -3 * np.sin(X) - X * np.cos(X)
    close(third(X), expected)
    close(fx.jit(third)(X), expected)
    inside = fx.jit(lambda x: fx.grad(fx.jit(f))(x))
    close(inside(X), np.cos(X) * X + np.sin(X))
    # the inner derivative is taken of a function that closes over what the outer one differentiates
    confusing = fx.grad(lambda x: fx.sum(x * fx.grad(lambda y: fx.sum(x * y * y))(fx.ones_like(x))))
    close(confusing(X), 4 * X)


def test_the_program_shows_its_derivative() -> None:
    lowered = fx.jit(fx.grad(lambda x: fx.sum(fx.tanh(x)))).lower(fx.f32["B"])
    assert 'transform="vjp[0;0]"' in lowered.as_text("traced")
    text = lowered.as_text("adjoint")
    assert "transform=" not in text and "tanh" in text and "sub(" in text
    assert lowered.cost("cpu", B=100).kernels == 1


# ---- rules of the user's own ------------------------------------------------------------------------------------------------


@fx.custom_vjp
def wave(x: Any, y: Any) -> Any:
    return fx.sin(x) * y


def _wave_fwd(x: Any, y: Any) -> Any:
    return wave(x, y), (fx.cos(x), fx.sin(x), y)


wave.defvjp(_wave_fwd, lambda res, g: (res[0] * res[2] * g, res[1] * g))


@fx.custom_jvp
def growth(x: Any, y: Any) -> Any:
    return fx.exp(x) * y


@growth.defjvp
def _growth_rule(primals: Any, tangents: Any) -> Any:
    x, y = primals
    out = growth(x, y)
    return out, out * tangents[0] + fx.exp(x) * tangents[1]


def test_custom_rules_serve_both_modes_and_every_order() -> None:
    check(lambda x, w: fx.sum(wave(x, w[0]) * x), X, W)
    check(lambda x, w: fx.sum(growth(x, w[0]) * x), X, W)


def test_a_custom_rule_is_what_is_used() -> None:
    @fx.custom_vjp
    def clipped(x: Any) -> Any:
        return x * 1.0

    clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (fx.clip(g, -0.1, 0.1),))
    assert fx.grad(lambda x: fx.sum(clipped(x) * 5))(X) == pytest.approx(0.1)
    assert fx.jit(fx.grad(lambda x: fx.sum(clipped(x) * 5)))(X) == pytest.approx(0.1)
    assert fx.jit(lambda x: clipped(x))(X) == pytest.approx(X)

    scaled = fx.custom_vjp(lambda n, x: x * n, nondiff_argnums=(0,))
    scaled.defvjp(lambda n, x: (scaled(n, x), None), lambda n, _, g: (g * n * 10,))
    assert fx.grad(lambda x: fx.sum(scaled(3, x)))(X) == pytest.approx(30)


@pytest.mark.parametrize("count", [4, 40])
def test_a_custom_rule_may_be_given_constants(count: int) -> None:
    """Small ones are repeated where they are used, large ones (40 numbers) live in the outermost scope."""
    weights, x = np.linspace(1, 2, count), np.linspace(-1, 1, count)
    for arguments in (lambda x: (x, weights), lambda x: (weights, x)):
        close(fx.grad(lambda x, given=arguments: fx.sum(wave(*given(x))))(x),
              fx.grad(lambda x, given=arguments: fx.sum(wave.fun(*given(x))))(x))  # fmt: skip

    @fx.custom_vjp
    def weighted(x: Any) -> Any:
        return x * weights

    weighted.defvjp(lambda x: (weighted(x), None), lambda _, g: (g * weights,))
    close(fx.jit(fx.grad(lambda x: fx.sum(weighted(weighted(x)))))(x), weights**2)


def test_newton_by_implicit_differentiation() -> None:
    """Square roots by Newton's method, differentiated at the solution instead of through the iteration."""

    @fx.custom_vjp
    def root(a: Any) -> Any:
        return fx.while_loop(lambda x: fx.max(fx.abs(x * x - a)) > 1e-12, lambda x: 0.5 * (x + a / x), a)

    def fwd(a: Any) -> Any:
        x = root(a)
        return x, x

    root.defvjp(fwd, lambda x, g: (g / (2 * x),))
    a = np.array([2.0, 3.0, 0.5])
    close(fx.jit(fx.grad(lambda a: fx.sum(root(a))))(a), 0.5 / np.sqrt(a))
    close(fx.grad(lambda a: fx.sum(fx.grad(lambda b: fx.sum(root(b)))(a)))(a), -0.25 * a**-1.5)


def _solved(a: Any, x: Any) -> Any:
    """y with y = x + a y, by iteration until it no longer changes: linear in x, and done at once where x is 0."""

    def step(c: Any) -> Any:
        return x + a * c[0], c[0]

    return fx.while_loop(lambda c: fx.max(fx.abs(c[0] - c[1])) > 1e-15, step, (x + a * x, x))[0]


def _solved_in_rounds(a: Any, x: Any) -> Any:
    return fx.fori_loop(0, 80, lambda i, y: x + a * y, x)


@pytest.mark.parametrize("solve", [_solved, _solved_in_rounds])
def test_a_rule_with_a_solver_serves_its_mode_or_both(solve: Any) -> None:
    """The transpose of a loop that its argument ends is not its derivative at 0: refused. One of fixed length is."""

    @fx.custom_vjp
    def reverse(a: Any, x: Any) -> Any:
        return _solved(a, x)

    def fwd(a: Any, x: Any) -> Any:
        y = reverse(a, x)
        return y, (a, y)

    def bwd(kept: Any, ct: Any) -> Any:
        u = fx.cond(kept[0] < 1, lambda a: solve(a, ct), lambda a: ct, kept[0])  # not decided by the cotangent
        return fx.sum(u * kept[1]), u

    reverse.defvjp(fwd, bwd)

    @fx.custom_jvp
    def forward(a: Any, x: Any) -> Any:
        return _solved(a, x)

    @forward.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        y = forward(*primals)
        return y, solve(primals[0], tangents[1] + tangents[0] * y)

    a, x = np.array(0.5), X
    want = np.sum(x) / (1 - a) ** 2, np.full(3, 1 / (1 - a))
    own = [lambda: fx.grad(lambda a, x: fx.sum(reverse(a, x)), (0, 1))(a, x),
           lambda: fx.jvp(forward, (a, x), (np.array(1.0), x))[1]]  # fmt: skip
    other = [lambda: fx.jvp(reverse, (a, x), (np.array(1.0), x))[1],
             lambda: fx.grad(lambda a, x: fx.sum(forward(a, x)), (0, 1))(a, x)]  # fmt: skip
    moved = x / (1 - a) + x / (1 - a) ** 2
    for got, expected in zip((*own, *other), (want, moved, moved, want), strict=True):
        if solve is _solved and got in other:
            with pytest.raises(FluxError, match=r"how often a loop runs in it depends on the (co)?tangent") as e:
                got()
            assert e.value.code == "FX0413"
        else:
            for g, w in zip(fx.tree.leaves(got()), fx.tree.leaves(expected), strict=True):
                close(g, w)
    # Reverse mode twice needs no transpose.
    second = fx.grad(lambda a: fx.grad(lambda a: fx.sum(reverse(a, x)))(a))(a)
    close(second, 2 * np.sum(x) / (1 - a) ** 3)


@pytest.mark.parametrize("wrap", [lambda f: f, fx.jit])
def test_a_rule_for_each_mode(wrap: Any) -> None:
    """Neither solver can be transposed; with both every nesting has what it needs."""

    @fx.custom_vjp
    def solved(a: Any, x: Any) -> Any:
        return _solved(a, x)

    def fwd(a: Any, x: Any) -> Any:
        y = solved(a, x)
        return y, (a, y)

    def bwd(kept: Any, ct: Any) -> Any:
        u = solved(kept[0], ct)
        return fx.sum(u * kept[1]), u

    solved.defvjp(fwd, bwd)

    @solved.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        y = solved(*primals)
        return y, solved(primals[0], tangents[1] + tangents[0] * y)

    def total(a: Any) -> Any:
        return fx.sum(solved(a, X) ** 2)

    a, square = np.array(0.5), np.sum(X**2)
    first, second, third = (2 * square / (1 - a) ** 3, 6 * square / (1 - a) ** 4, 24 * square / (1 - a) ** 5)
    close(wrap(fx.grad(total))(a), first)
    close(wrap(lambda a: fx.jvp(total, (a,), (np.array(1.0),))[1])(a), first)
    for outer in (fx.grad, fx.jacfwd):
        for inner in (fx.grad, fx.jacfwd):
            close(wrap(outer(inner(total)))(a), second)
            close(wrap(fx.grad(outer(inner(total))))(a), third)
    each = np.array([0.1, 0.3, 0.5])
    close(wrap(fx.vmap(fx.jacfwd(total)))(each), 2 * square / (1 - each) ** 3)
    close(wrap(fx.jacfwd(fx.vmap(total)))(each), np.diag(2 * square / (1 - each) ** 3))


def test_a_rule_with_a_branch_on_its_cotangent_is_not_transposed() -> None:
    @fx.custom_vjp
    def f(x: Any) -> Any:
        return x * 2

    @fx.function
    def bwd(_: Any, g: Any) -> Any:
        if fx.max(fx.abs(g)) > 1:
            g = g / 2
        return (g * 2,)

    f.defvjp(lambda x: (f(x), None), bwd)
    assert fx.grad(lambda x: fx.sum(f(x)))(X) == pytest.approx(2)
    with pytest.raises(FluxError, match="which branch runs in it depends on the cotangent"):
        fx.jvp(f, (X,), (X,))


def test_checkpoint_gives_the_same_and_keeps_less() -> None:
    def segment(ws: Any, x: Any) -> Any:
        for w in ws:
            x = fx.tanh(x @ w)
        return x

    def loss(ws: Any, x: Any, every: int) -> Any:
        for i in range(0, len(ws), every):
            x = fx.checkpoint(segment)(ws[i : i + every], x) if every > 1 else segment(ws[i : i + 1], x)
        return fx.sum(x * x)

    rng = np.random.default_rng(0)
    ws, x = [rng.standard_normal((4, 4)) * 0.5 for _ in range(16)], rng.standard_normal((8, 4))
    plain, kept = (fx.jit(fx.grad(lambda ws, x, n=n: loss(ws, x, n)))(ws, x) for n in (1, 4))
    for a, b in zip(plain, kept, strict=True):
        close(a, b, 1e-10)

    def peak(layers: int, every: int) -> int:
        f = fx.jit(fx.grad(lambda ws, x: loss(ws, x, every)))
        return f.lower([fx.f32[8, 8]] * layers, fx.f32[1024, 8]).cost("cpu").peak_memory

    # n layers in pieces of sqrt(n): the peak grows as the square root, against linearly without.
    assert peak(64, 1) > 3.5 * peak(16, 1)
    assert peak(64, 8) < 2.3 * peak(16, 4)
    assert peak(64, 8) < 0.35 * peak(64, 1)


# ---- mistakes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "code", "words"),
    [
        (lambda: fx.grad(lambda x: x * 2)(X), "FX0411", "f64[3]"),
        (lambda: fx.grad(lambda x: fx.sum(x))(np.arange(3)), "FX0411", "i64[3]"),
        (lambda: fx.grad(lambda x: fx.sum(x), argnums=2)(X), "FX0411", "argnums"),
        (lambda: fx.grad(lambda x: (fx.sum(x), x))(X), "FX0411", "f64[3]"),
        (lambda: fx.grad(lambda x: fx.sum(x), has_aux=True)(X), "FX0411", "has_aux"),
        (lambda: fx.vjp(lambda x: x, X)[1](np.ones((3, 1))), "FX0412", "f64[3,1]"),
        (lambda: fx.vjp(lambda x: (x, x), X)[1](X), "FX0313", "cotangent"),
        (lambda: fx.jvp(lambda x: x, (X,), (X.astype(np.float32),)), "FX0412", "f32[3]"),
        (lambda: fx.grad(lambda x: fx.sum(fx.custom_vjp(fx.sin)(x)))(X), "FX0413", "no rule"),
    ],
)
def test_mistakes_are_named(run: Any, code: str, words: str) -> None:
    with pytest.raises(FluxError) as e:
        run()
    assert e.value.code == code and words in str(e.value)


def test_a_rule_that_does_not_fit() -> None:
    def use(fwd: Any, bwd: Any) -> Any:
        f = fx.custom_vjp(lambda x: x * 2)
        f.defvjp(fwd, bwd)
        return fx.grad(lambda x: fx.sum(f(x)))(X)

    for fwd, bwd, words in (
        (lambda x: x * 2, lambda r, g: (g,), "not a pair"),
        (lambda x: (fx.sum(x), None), lambda r, g: (g,), "returns"),
        (lambda x: (x * 2, None), lambda r, g: (g, g), "2 cotangents for 1 argument"),
        (lambda x: (x * 2, None), lambda r, g: (fx.sum(g),), "must be f64[3]"),
    ):
        with pytest.raises(FluxError, match=r"FX041[23]") as e:
            use(fwd, bwd)
        assert words in str(e.value)

    def outside(x: Any) -> Any:
        f = fx.custom_vjp(lambda y: y * x)
        f.defvjp(lambda y: (y * 2, None), lambda r, g: (g,))
        return fx.sum(f(x))

    with pytest.raises(FluxError, match="traced value from outside"):
        fx.grad(outside)(X)


def test_transforms_inside_control_flow_that_is_evaluated_eagerly() -> None:
    def step(c: Any, u: Any) -> Any:
        g = fx.grad(lambda v: fx.sum(v * v * u))(c)
        return c - 0.1 * g, fx.sum(g)

    us = np.array([1.0, 2.0, 0.5])
    last, sums = fx.scan(step, X, us)
    want, by_hand = X, []
    for u in us:
        by_hand.append(np.sum(2 * want * u))
        want = want - 0.2 * want * u
    close(last, want)
    close(sums, by_hand)

    @fx.function
    def shrink(c: Any, u: Any) -> Any:
        while fx.sum(c * c) > 1.0:
            c = c * 0.5
        return c, c * u

    close(fx.scan(shrink, X, us)[0], fx.jit(lambda x: fx.scan(shrink, x, us)[0])(X))


def test_a_pullback_from_outside_is_used_inside_a_trace() -> None:
    _, pull = fx.vjp(lambda x: fx.sin(x) * x, X)
    cts = np.eye(3)
    want = np.diag(np.cos(X) * X + np.sin(X))
    close(fx.jit(lambda c: pull(c)[0])(cts[0]), want[0])
    close(fx.vmap(lambda c: pull(c)[0])(cts), want)
