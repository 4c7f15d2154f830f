"""GPU kernels inside traced programs: as ops on every device, in control flow, batched, and differentiated or refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.ir.interp import interpret
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.verify import verify_module

DEVICES = ("cpu", "vgpu:sm_80")
N = 70
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(-1, 1, (2, N))
W = RNG.normal(size=5)


@fx.kernel
def saxpy(a: fx.f64, x: fx.f64["N"], y: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        y[i] += a * x[i] * x[i]


@fx.kernel
def strided(x: fx.f64["N"], y: fx.f64["N"]):
    for i in range(fx.gpu.global_id.x, len(y), fx.gpu.global_size.x):
        if x[i] > 0.1:
            y[i] = x[i] * x[i]
        else:
            y[i] = fx.sin(x[i])


@fx.kernel
def correlate(x: fx.f64["N"], w: fx.f64["K"], y: fx.f64["M"]):
    i = fx.gpu.global_id.x
    if i >= len(y):
        return
    s = fx.f64(0)
    for k in range(len(w)):
        s += fx.tanh(x[i + k]) * w[k]
    y[i] = s if s > 0 else 0.1 * s


@fx.kernel
def tiles(x: fx.f64["H", "W"], out: fx.f64["W", "H"], n: fx.i32):
    r = fx.gpu.block_id.y * fx.gpu.block_dim.y + fx.gpu.thread_id.y
    c = fx.gpu.block_id.x * fx.gpu.block_dim.x + fx.gpu.thread_id.x
    if r < x.shape[0] and c < x.shape[1]:
        v = x[r, c]
        for _ in range(n):
            v = v * 0.5
        out[c, r] = v + x[0, 0]


@fx.kernel
def polar(x: fx.f64["N"], y: fx.f64["N"], out: fx.f64["N", 2]):
    i = fx.gpu.global_id.x
    if i < len(x):
        out[i, 0] = fx.sqrt(x[i] * x[i] + y[i] * y[i])
        out[i, 1] = fx.exp(x[i]) * y[i]


def blocks(n: Any, b: int = 32) -> Any:
    return (n + b - 1) // b


def use_saxpy(a: Any, x: Any, y: Any) -> Any:
    return saxpy[blocks(x.shape[0]), 32](a, x, y)


def use_strided(x: Any) -> Any:
    return strided[2, 16](x, fx.zeros(x.shape, dtype=x.dtype))


def use_correlate(x: Any, w: Any) -> Any:
    return correlate[3, 32](x, w, fx.zeros(N - 4, dtype=fx.f64))


def use_tiles(x: Any) -> Any:
    h, w = x.shape
    return tiles[(blocks(w, 8), blocks(h, 4)), (8, 4)](x, fx.zeros((w, h), dtype=fx.f64), 3)


def use_polar(x: Any, y: Any) -> Any:
    return polar[3, 32](x, y, fx.zeros((N, 2), dtype=fx.f64))


def ref_correlate(x: Any, w: Any) -> Any:
    s = sum(fx.tanh(x[k : k + N - 4]) * w[k] for k in range(5))
    return fx.where(s > 0, s, 0.1 * s)


MATRIX = RNG.normal(size=(9, 13))
CASES: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
    "saxpy": (use_saxpy, lambda a, x, y: y + a * x * x, (1.5, X, Y)),
    "strided": (use_strided, lambda x: fx.where(x > 0.1, x * x, fx.sin(x)), (X,)),
    "correlate": (use_correlate, ref_correlate, (X, W)),
    "tiles": (use_tiles, lambda x: (x * 0.125 + x[0, 0]).T, (MATRIX,)),
    "polar": (use_polar, lambda x, y: fx.stack([fx.sqrt(x * x + y * y), fx.exp(x) * y], -1), (X, Y)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_an_op_of_a_program(name: str, device: str) -> None:
    f, reference, args = CASES[name]
    given = [np.copy(a) for a in args]

    def program(*xs: Any) -> Any:
        return fx.tanh(f(*xs)) * 2

    got = fx.jit(program, device=device)(*args)
    want = fx.jit(lambda *xs: fx.tanh(reference(*xs)) * 2)(*args)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(given, args):
        np.testing.assert_array_equal(a, b, "a tensor does not change")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_differentiated_by_another_kernel(name: str, device: str) -> None:
    f, reference, args = CASES[name]
    n = tuple(range(len(args)))

    def loss(g: Any) -> Any:
        return lambda *xs: fx.sum(fx.sin(g(*xs)))

    value, got = fx.jit(fx.value_and_grad(loss(f), n), device=device)(*args)
    expected, want = fx.jit(fx.value_and_grad(loss(reference), n))(*args)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["saxpy", "strided", "tiles"])
def test_the_text_of_a_program_with_kernels_is_stable_and_means_the_same(name: str) -> None:
    f, _, args = CASES[name]
    lowered = fx.jit(fx.grad(lambda *xs: fx.sum(f(*xs) ** 2), tuple(range(len(args))))).lower(*args)
    for stage in ("traced", "adjoint"):
        text = lowered.as_text(stage)
        module = parse_module(text)
        verify_module(module)
        assert print_module(module) == text
    module = parse_module(lowered.as_text("adjoint"))
    found = interpret(module, [np.asarray(a, np.float64) for a in args])
    compiled = lowered.compile()(*args)
    for x, y in zip(found, compiled if isinstance(compiled, tuple) else (compiled,)):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_one_program_for_every_size() -> None:
    step = fx.jit(use_saxpy)
    compiled = step.lower(fx.f64[()], fx.f64["B"], fx.f64["B"]).compile()
    for n in (1, 31, 64, 70):
        np.testing.assert_allclose(compiled(np.float64(2), X[:n], Y[:n]), Y[:n] + 2 * X[:n] ** 2)


def test_second_derivatives_of_a_kernel() -> None:
    def inner(g: Any) -> Any:
        return fx.grad(lambda x: fx.sum(fx.sum(fx.grad(lambda v: fx.sum(g(v) ** 2))(x) ** 2)))

    got = fx.jit(inner(use_strided))(X)
    want = fx.jit(inner(CASES["strided"][1]))(X)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_kernels_in_loops_branches_and_batches() -> None:
    def meaning(x: Any) -> Any:
        return np.where(x > 0.1, x * x, np.sin(x))

    def thrice(x: Any) -> Any:
        return fx.scan(lambda c, _: (use_strided(c), None), x, None, length=3)[0]

    np.testing.assert_allclose(fx.jit(thrice)(X), meaning(meaning(meaning(X))), rtol=1e-12)
    slope = fx.jit(fx.grad(lambda x: fx.sum(thrice(x))))(X)
    h = 1e-6
    for i in range(0, N, 10):
        e = np.zeros(N)
        e[i] = h
        difference = (meaning(meaning(meaning(X + e))) - meaning(meaning(meaning(X - e)))).sum() / (2 * h)
        assert abs(slope[i] - difference) < 1e-7
    chosen = fx.jit(lambda p, x: fx.cond(p, use_strided, lambda v: v, x))
    np.testing.assert_allclose(chosen(True, X), meaning(X))
    np.testing.assert_allclose(chosen(False, X), X)
    batched = fx.jit(fx.vmap(use_strided))(np.stack([X, Y]))
    np.testing.assert_allclose(batched, np.stack([meaning(X), meaning(Y)]), rtol=1e-12)


@fx.kernel
def block_sums(x: fx.f64["N"], out: fx.f64["B"]):
    part = fx.gpu.shared((32,), fx.f64)
    t, i = fx.gpu.thread_id.x, fx.gpu.global_id.x
    part[t] = x[i] if i < len(x) else 0.0
    fx.gpu.barrier()
    step = 16
    while step > 0:
        if t < step:
            part[t] += part[t + step]
        fx.gpu.barrier()
        step //= 2
    if t == 0:
        out[fx.gpu.block_id.x] = part[0]


@fx.kernel
def spread(x: fx.f64["B"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(out):
        out[i] = x[fx.gpu.block_id.x]


@pytest.mark.parametrize("device", DEVICES)
def test_a_rule_of_ones_own_may_call_another_kernel(device: str) -> None:
    @fx.custom_vjp
    def sums(x: Any) -> Any:
        return block_sums[3, 32](x, fx.zeros(3, dtype=fx.f64))

    sums.defvjp(lambda x: (sums(x), None), lambda _, ct: (spread[3, 32](ct, fx.zeros(N, dtype=fx.f64)),))
    value, grad = fx.jit(fx.value_and_grad(lambda x: fx.sum(sums(x) ** 2)), device=device)(X)
    parts = np.pad(X, (0, 96 - N)).reshape(3, 32).sum(1)
    np.testing.assert_allclose(value, (parts**2).sum())
    np.testing.assert_allclose(grad, np.repeat(2 * parts, 32)[:N])
    with pytest.raises(FluxError, match="shared or local arrays"):
        fx.jit(fx.grad(lambda x: fx.sum(block_sums[3, 32](x, fx.zeros(3, dtype=fx.f64)))))(X)


# ---- what has no adjoint, and why


@fx.kernel
def gathered(x: fx.f64["N"], at: fx.i64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        out[i] = x[at[i]] * 2


@fx.kernel
def scattered(x: fx.f64["N"], at: fx.i64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        out[at[i]] = x[i]


@fx.kernel
def everyone(x: fx.f64["N"], out: fx.f64["N"]):
    out[0] = x[0]


@fx.kernel
def overlapping(x: fx.f64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i + 1 < len(x):
        out[i] = x[i]
        out[i + 1] = x[i]


@fx.kernel
def shifted(x: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i + 1 < len(x):
        x[i] = x[i + 1]


@fx.kernel
def again(x: fx.f64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        out[i] = x[i]
        x[i] = out[i] * 2


@fx.kernel
def powers(x: fx.f64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        v = fx.f64(1)
        for _ in range(3):
            v = v * v + x[i]
        out[i] = v


@fx.kernel
def until(x: fx.f64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        v = x[i] + 2
        while v > 1:
            v = v * 0.5
        out[i] = v


@fx.kernel
def counted(x: fx.f64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    if i < len(x):
        fx.gpu.atomic_add(out, 0, x[i])


@fx.kernel
def swapped(x: fx.f64["N"], out: fx.f64["N"]):
    i = fx.gpu.global_id.x
    v = fx.gpu.shuffle_xor(x[min(i, len(x) - 1)], 1)
    if i < len(x):
        out[i] = v


AT = RNG.permutation(N)


@pytest.mark.parametrize(
    ("kernel", "args", "words"),
    [
        (scattered, (AT, None), "not plain that every element of out is stored by one thread only"),
        (everyone, (None,), "not plain that every element of out is stored by one thread only"),
        (overlapping, (None,), "out may be stored twice at one place"),
        (shifted, (), "reads x at other places than it writes"),
        (again, (None,), "reads out after writing to it"),
        (powers, (None,), "needs the value it carries"),
        (until, (None,), "`while` loop"),
        (counted, (None,), "uses atomics"),
        (swapped, (None,), "exchange values"),
    ],
)
def test_a_kernel_without_a_provable_adjoint_is_refused_with_the_reason(kernel: Any, args: Any, words: str) -> None:
    def loss(x: Any) -> Any:
        given = [fx.zeros(N, dtype=fx.f64) if a is None else a for a in args]
        out = kernel[3, 32](x, *given)
        return fx.sum(out[-1] if isinstance(out, tuple) else out)

    with pytest.raises(FluxError) as caught:
        fx.jit(fx.grad(loss))(X)
    assert caught.value.code == "FX0416" and words in str(caught.value)
    assert re.search(r"test_kernel_programs.py:\d+", str(caught.value))


def test_gathers_scatter_their_cotangents() -> None:
    """Threads meet in dx: atomics."""
    at = RNG.integers(0, 9, N)
    for device in DEVICES:
        f = fx.jit(fx.grad(lambda x: fx.sum(gathered[3, 32](x, at, fx.zeros(N, dtype=fx.f64)) * X)), device=device)
        want = np.zeros(N)
        np.add.at(want, at, 2 * X)
        np.testing.assert_allclose(f(X), want, rtol=1e-12, atol=1e-12)
    text = (
        fx.jit(fx.grad(lambda x: fx.sum(gathered[3, 32](x, at, fx.zeros(N, dtype=fx.f64))))).lower(X).as_text("adjoint")
    )
    assert "atomic_rmw" in text
    text = fx.jit(fx.grad(lambda x: fx.sum(use_tiles(x)))).lower(MATRIX).as_text("adjoint")
    assert text.count("atomic_rmw") == 2  # x[0, 0] is read by all, so x[r, c] is not its thread's alone
    text = fx.jit(fx.grad(lambda x: fx.sum(use_strided(x)))).lower(X).as_text("adjoint")
    assert "atomic_rmw" not in text  # each thread has elements of its own


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda x: strided[1, 32](x, fx.zeros(3, dtype=fx.f64)), "FX0602", "3 is not 70"),
        (lambda x: strided[1, 32](x, fx.zeros(N, dtype=fx.i32)), "FX0603", "y holds f64, given i32[70]"),
        (lambda x: strided[1, 32, 100](x, x), "FX0335", "no dynamic shared memory"),
        (lambda x: fx.grad(lambda v: fx.jvp(lambda u: fx.sum(use_strided(u)), (v,), (v,))[1])(x), "FX0411", "kernel"),
    ],
)
def test_what_does_not_fit(call: Any, code: str, words: str) -> None:
    with pytest.raises(FluxError) as caught:
        fx.jit(call)(X)
    assert caught.value.code == code and words in str(caught.value)


def test_kernels_that_talk_to_the_host_stay_outside() -> None:
    @fx.kernel
    def talks(x: fx.f64["N"]):
        fx.gpu.printf("%d", 1)
        x[0] = 1.0

    @fx.kernel
    def idle(x: fx.f64["N"]):
        fx.gpu.barrier()

    for k, words in ((talks, "prints or asserts"), (idle, "writes to none")):
        with pytest.raises(FluxError, match=words):
            fx.jit(lambda x, k=k: k[1, 32](x))(X)
