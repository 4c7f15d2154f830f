"""Convolutions whose rows and columns are open: the template `conv_open` against the interpreter, for many sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import config
from fluxir.ir.interp import interpret

# channels in and out of a group, groups, window, strides, dilation, padding
CASES: dict[str, tuple[int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "3x3": (5, 24, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": (3, 16, 1, (3, 3), (2, 2), (1, 1), (1, 1)),
    "long and dilated": (16, 8, 1, (1, 5), (1, 3), (1, 2), (0, 2)),
    "product": (33, 40, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    "many channels": (200, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "groups": (4, 8, 3, (2, 3), (2, 1), (1, 1), (1, 0)),
    "depthwise": (1, 1, 24, (5, 3), (2, 1), (1, 1), (2, 1)),
    "depthwise, dilated": (1, 1, 17, (4, 2), (1, 1), (2, 2), (0, 0)),
    "one output": (24, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "line": (6, 20, 1, (4,), (2,), (1,), (1,)),
    "depthwise line": (1, 1, 32, (3,), (1,), (1,), (1,)),
    "volume": (4, 9, 1, (2, 3, 2), (1, 2, 1), (1, 1, 2), (1, 0, 1)),
}
TARGETS = ("cpu", "cpu:x86-64-v3")


def program(case: str) -> Any:
    ci, co, groups, window, strides, dilation, padding = CASES[case]
    rng = np.random.default_rng(3)
    w = rng.standard_normal((groups * co, ci, *window)).astype(np.float32)
    bias = rng.standard_normal((groups * co, *[1] * len(window))).astype(np.float32)

    def f(x: Any) -> Any:
        y = fx.nn.conv(x, w, stride=strides, padding=[(p, p) for p in padding], dilation=dilation, groups=groups)
        return fx.maximum(y + bias, 0) * 0.5

    facts = [f"S{i} >= {(k - 1) * d + 1 - 2 * p}" for i, (k, d, p) in enumerate(zip(window, dilation, padding))]
    shape = ("B", groups * ci, *[f"S{i}" for i in range(len(window))])
    return fx.jit(f, facts=", ".join(facts)).lower(fx.f32[shape])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_agrees_for_all_sizes(case: str, target: str) -> None:
    ci, _, groups, window, _, dilation, padding = CASES[case]
    lowered = program(case)
    compiled = lowered.compile(target, cache=False)
    kernels = [f.attrs["schedule"] for f in compiled.build.stages["loops"].funcs.values() if "schedule" in f.attrs]
    assert any(k.startswith("convopen") for k in kernels), kernels
    rng = np.random.default_rng(7)
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(window, dilation, padding)]
    most = {1: 300, 2: 40, 3: 9}[len(window)]
    for images, extra in ((1, [0] * 3), (2, [1, 3, 2]), (3, [most, most + 2, most - 1]), (0, [4, 4, 4])):
        x = rng.standard_normal((images, groups * ci, *[n + e for n, e in zip(least, extra)])).astype(np.float32)
        want = np.asarray(interpret(lowered.module, [x])[0])
        found = compiled(x)
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * (np.abs(want).max() if want.size else 1))


@pytest.mark.parametrize("case", ["3x3", "product", "depthwise"])
def test_bits_do_not_depend_on_threads_or_neighbours(case: str) -> None:
    """The block of a task follows from the sizes, but no sum does."""
    compiled = program(case).compile(cache=False)
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, CASES[case][0] * CASES[case][2], 37, 53)).astype(np.float32)
    results = []
    for threads in (1, 2, 3):
        with config.override(num_threads=threads):
            results.append(compiled(x))
    assert all(np.array_equal(results[0], r) for r in results[1:])
    assert np.array_equal(compiled(x[1:2])[0], results[0][1])


@pytest.mark.parametrize(
    "stride, window, extra", [((2, 2), (2, 2), (0, 0)), ((2, 3), (4, 3), (1, 0)), ((1, 2), (1, 5), (0, 1))]
)
def test_transposed_with_open_sizes_has_no_zeros_between(
    stride: tuple[int, int], window: tuple[int, int], extra: tuple[int, int]
) -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((6, 16, *window)).astype(np.float32)

    def f(x: Any) -> Any:
        return fx.nn.conv_transpose(x, w, stride=stride, output_padding=extra)

    lowered = fx.jit(f, facts="H >= 2, W >= 2").lower(fx.f32["B", 6, "H", "W"])
    assert "lhs_dilation=(1, 1)" in lowered.as_text("simplified")
    compiled = lowered.compile(cache=False)
    for h, wide in ((2, 2), (7, 31)):
        x = rng.standard_normal((2, 6, h, wide)).astype(np.float32)
        want = np.asarray(interpret(lowered.module, [x])[0])
        np.testing.assert_allclose(compiled(x), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [3000, "W"])
@pytest.mark.parametrize("padding, dilation, window", [((512, 512), 512, 3), ((700, 0), 700, 2), ((0, 22), 350, 3)])
def test_places_far_apart(size: Any, padding: tuple[int, int], dilation: int, window: int) -> None:
    """A window that steps far over a line is one over rows of it."""
    rng = np.random.default_rng(6)
    w = rng.standard_normal((12, 64, window)).astype(np.float32)

    def f(x: Any) -> Any:
        return fx.maximum(fx.nn.conv(x, w, padding=[padding], dilation=dilation), 0)

    lowered = fx.jit(f, facts=f"W >= {(window - 1) * dilation}" if size == "W" else None).lower(fx.f32[2, 64, size])
    assert "rhs_dilation=(1, 1)" in lowered.as_text("simplified")
    compiled = lowered.compile(cache=False)
    for n in (3000,) if size == 3000 else ((window - 1) * dilation + 1, 2113):
        x = rng.standard_normal((2, 64, n)).astype(np.float32)
        want = np.asarray(interpret(lowered.module, [x])[0])
        np.testing.assert_allclose(compiled(x), want, rtol=1e-5, atol=2e-4)
