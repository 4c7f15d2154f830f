"""GPU programs without a GPU: the launch list runs on a fake device whose kernels are interpreted. `tests/cuda` has the real
PyCUDA on the virtual GPU.

What the runtime does for a real device is done in full: sizes, guards, packed parameters, arena, branches, loops, recursion,
sizes known at run time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.errors import FluxError
from fluxir.ir.interp import interpret
from fluxir.runtime import cuda
from fluxir.runtime.launch import GpuProgram
from tests.gpu_harness import on_fake_device

X = np.array([0.7, -0.4, 1.3], np.float32)


def same(f: Any, *args: Any, rtol: float = 1e-5, **options: Any) -> tuple[GpuProgram, Any]:
    """Run on the fake device and in the interpreter; the program and its device."""
    low = fx.jit(f, **options).lower(*args)
    program, device, _ = on_fake_device(low.module)
    for _ in range(2):  # the second call finds the arena and the constants there
        got = program.call_flat(list(args))
    want = fx.jit(f, **options)(*[np.copy(a) for a in args])
    leaves = want if isinstance(want, tuple) else (want,)
    for a, b in zip(got, leaves, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=1e-6)
    return program, device


def test_a_chain_of_kernels() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 6)).astype(np.float32), rng.standard_normal((6, 7)).astype(np.float32)
    constant = rng.standard_normal(7).astype(np.float32)
    program, device = same(lambda x, w: (fx.exp(x @ w + constant), fx.sum(x, axis=0)), x, w)
    assert len(device.launched) == 2 * len(program.kernels)
    live = sum(device.live.values())
    program.call_flat([x, w])
    assert sum(device.live.values()) == live, "a call gives back what it asked for"


def test_branches_and_loops() -> None:
    @fx.function
    def f(x: Any, n: Any) -> Any:
        h = x
        for _ in range(n):
            if fx.sum(h) > 1:
                h = h * 0.5
            else:
                h = fx.sin(h) + 0.3
        total = fx.scan(lambda c, u: (c + u, c * u), 0.0, h)[1]
        return h, total

    for n in (0, 1, 4):
        same(f, X, np.int64(n))


def test_recursion_has_memory_of_its_own() -> None:
    @fx.function
    def power(x: Any, n: Any) -> Any:
        if n <= 0:
            return fx.ones_like(x)
        return x * power(x, n - 1)

    same(lambda x, n: power(x, n), X, np.int64(4))


def test_the_reverse_of_a_while_loop_reads_its_length_from_the_device() -> None:
    @fx.function
    def f(x: Any) -> Any:
        h = x
        while fx.sum(h * h) > 0.05:
            h = 0.6 * fx.sin(h)
        return fx.sum(h * x)

    program, _ = same(fx.grad(f), X, rtol=1e-4)
    text = str(program.spec["host"])
    assert "'sized': {'N0'" in text


def test_symbolic_sizes_and_guards() -> None:
    f = fx.jit(lambda x: fx.nn.softmax(x, axis=-1) if hasattr(fx.nn, "softmax") else fx.exp(x),
               signature=(fx.f32["B", 4],), facts="B >= 1")  # fmt: skip
    low = f.lower()
    program, _, _ = on_fake_device(low.module)
    for n in (1, 3, 8):
        x = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
        np.testing.assert_allclose(program(x), interpret(low.module, [x])[0], rtol=1e-5)
    for bad, code in ((np.zeros((0, 4), np.float32), "FX0604"), (np.zeros((2, 3), np.float32), "FX0602"),
                      (np.zeros((2, 4)), "FX0603")):  # fmt: skip
        with pytest.raises(FluxError) as e:
            program(bad)
        assert e.value.code == code


def test_an_assertion_stops_the_program_and_frees_its_memory() -> None:
    @fx.function
    def f(x: Any) -> Any:
        assert fx.all(x > 0), "only positive numbers"
        return fx.log(x)

    program, device, _ = on_fake_device(fx.jit(f).lower(X).module)
    live = len(device.live)
    with pytest.raises(FluxError, match="only positive numbers") as e:
        program(X)
    assert e.value.code == "FX0608" and len(device.live) <= live + 1  # the arena stays
    np.testing.assert_allclose(program(np.abs(X)), np.log(np.abs(X)), rtol=1e-5)


def test_endless_recursion_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxir.runtime.frame.MAX_DEPTH", 40)

    @fx.function
    def down(x: Any, n: Any) -> Any:
        if n == 0:
            return x
        return down(x + 1, n - 1)

    program, _, _ = on_fake_device(fx.jit(lambda x, n: down(x, n)).lower(X, np.int64(-1)).module)
    with pytest.raises(FluxError) as e:
        program(X, np.int64(-1))
    assert e.value.code == "FX0109"


def test_donated_arguments_are_read_back_from_their_own_memory() -> None:
    program, device = same(lambda x, y: (x + y, x * y), X, X[::-1].copy(), donate_argnums=0)
    assert program.spec["donated"] == [[0, 0]] and device.launched
    before = X.copy()
    program.call_flat([X, X[::-1].copy()])
    np.testing.assert_array_equal(X, before)  # the host's array is not touched


@pytest.mark.parametrize(
    ("target", "capability", "runs"),
    [
        ("sm_80", 80, True),
        ("sm_80", 90, True),
        ("sm_90", 80, False),
        ("sm_90a", 90, True),
        ("sm_90a", 100, False),
        ("sm_100f", 103, True),
    ],
)
def test_which_gpus_run_what(target: str, capability: int, runs: bool) -> None:
    assert cuda.runs_on(target, capability) is runs
