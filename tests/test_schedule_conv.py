"""The convolution template and windows against the tensor interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir import config
from fluxir.ir.interp import interpret
from fluxir.schedule.lower import lower
from fluxir.target import parse_target
from tests.schedule_harness import check, func, fused, module, native, random_inputs

PLAIN: dict[str, Any] = {
    "strides": (1, 1),
    "padding": (1, 1, 1, 1),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "groups": 1,
}
LINE: dict[str, Any] = {"strides": (1,), "padding": (1, 1), "lhs_dilation": (1,), "rhs_dilation": (1,), "groups": 1}

CASES = [
    ("f32[2,1,8,8]", "f32[6,1,3,3]", PLAIN, {}),
    ("f32[B,3,8,8]", "f32[5,3,3,3]", PLAIN, {}),
    ("f32[1,2,5,11]", "f32[7,2,3,3]", PLAIN, {"padding": (0, 1, 2, 0)}),
    ("f32[2,2,9,11]", "f32[4,2,3,3]", PLAIN, {"strides": (2, 2)}),
    ("f32[2,2,9,20]", "f32[4,2,2,3]", PLAIN, {"strides": (1, 3), "padding": (0, 0, 0, 0)}),
    ("f32[2,2,9,11]", "f32[4,2,3,3]", PLAIN, {"rhs_dilation": (2, 3), "padding": (2, 2, 3, 3)}),
    ("f32[2,2,4,5]", "f32[3,2,3,3]", PLAIN, {"lhs_dilation": (2, 2), "padding": (1, 2, 1, 2)}),
    ("f32[1,2,4,5]", "f32[3,2,3,3]", PLAIN, {"lhs_dilation": (2, 3), "strides": (2, 2), "padding": (2, 2, 1, 2)}),
    ("f32[2,4,6,6]", "f32[6,2,3,3]", PLAIN, {"groups": 2}),
    ("f32[2,4,6,9]", "f32[4,1,3,3]", PLAIN, {"groups": 4}),
    ("f32[2,2,6,6]", "f32[2,2,1,1]", PLAIN, {"padding": (0, 0, 0, 0)}),
    ("f32[1,1,7,8]", "f32[2,1,5,5]", PLAIN, {"padding": (2, 2, 2, 2)}),
    ("f32[1,1,4,14]", "f32[1,1,1,11]", PLAIN, {"padding": (-1, 0, 3, -1)}),
    ("f32[2,3,20]", "f32[4,3,3]", LINE, {}),
    ("f32[2,3,21]", "f32[4,3,3]", LINE, {"strides": (2,)}),
    ("f64[1,2,5,7]", "f64[3,2,3,3]", PLAIN, {}),
    ("f16[1,2,5,9]", "f16[3,2,3,3]", PLAIN, {}),
    ("i32[1,2,5,9]", "i32[3,2,3,3]", PLAIN, {}),
    ("f32[0,2,5,9]", "f32[3,2,3,3]", PLAIN, {}),
]


def conv(**attrs: Any) -> Any:
    return lambda b, x, w: b.emit("conv", x, w, **attrs)[0]


@pytest.mark.parametrize(("x", "w", "base", "changes"), CASES)
def test_conv(x: str, w: str, base: dict[str, Any], changes: dict[str, Any]) -> None:
    low = check(func([x, w], conv(**{**base, **changes})), {"B": 2}, rtol=1e-4, atol=1e-4)
    if not x.startswith("f32[0"):
        assert any("conv" in f.attrs.get("schedule", "") for f in low.funcs.values())


def test_conv_with_symbolic_space_takes_the_element_rule() -> None:
    check(
        func(["f32[1,2,H,6]", "f32[3,2,3,3]"], conv(**{**PLAIN, "padding": (2, 2, 1, 1)})),
        {"H": 5},
        rtol=1e-4,
        atol=1e-4,
    )


def test_conv_with_bias_and_relu_is_one_pass() -> None:
    def body(b: Any, x: Any, w: Any, bias: Any) -> Any:
        y = b.emit("conv", x, w, **PLAIN)[0]
        y = b.add(y, b.reshape(bias, shape=(1, 5, 1, 1)))
        return b.maximum(y, b.const(0.0, dtype="f32"))

    low = check(fused(["f32[B,3,6,10]", "f32[5,3,3,3]", "f32[5]"], body, "conv"), rtol=1e-4, atol=1e-4)
    assert sum(op.name == "launch" for op in low.entry.walk()) == 2  # weights into panels, then the images


SHORT_ROWS = [
    ("f32[2,16,4,4]", "f32[32,16,3,3]", PLAIN, {}),
    ("f32[B,16,4,4]", "f32[40,16,3,3]", PLAIN, {}),  # the last panel of channels is not full
    ("f32[2,16,8,7]", "f32[16,16,3,3]", PLAIN, {"strides": (2, 2)}),
    ("f32[2,16,5,4]", "f32[33,16,3,3]", PLAIN, {"padding": (2, 2, 1, 1), "rhs_dilation": (2, 1)}),
    ("f32[2,32,4,4]", "f32[64,16,3,3]", PLAIN, {"groups": 2}),
    ("f32[2,16,2,2]", "f32[32,16,3,3]", PLAIN, {"lhs_dilation": (2, 2), "padding": (1, 2, 1, 2)}),
    ("f32[2,8,4,4]", "f32[32,8,5,5]", PLAIN, {"padding": (2, 2, 2, 2)}),  # a window that is not written out
    ("f32[2,32,4]", "f32[48,32,3]", LINE, {}),
    ("f64[2,16,3,2]", "f64[19,16,3,3]", PLAIN, {}),
    ("f16[2,16,4,4]", "f16[32,16,3,3]", PLAIN, {}),
    ("i32[2,16,4,4]", "i32[32,16,3,3]", PLAIN, {}),
]


@pytest.mark.parametrize(("x", "w", "base", "changes"), SHORT_ROWS)
def test_rows_shorter_than_a_vector(x: str, w: str, base: dict[str, Any], changes: dict[str, Any]) -> None:
    """Output channels are the lanes. f16 differs from the interpreter in how sums are rounded last."""
    tolerance = 2e-2 if x.startswith("f16") else 1e-4
    low = check(func([x, w], conv(**{**base, **changes})), {"B": 2}, rtol=tolerance, atol=tolerance)
    assert any(f.attrs.get("schedule", "").startswith(("convchannels(", "winograd(")) for f in low.funcs.values())


def test_rows_shorter_than_a_vector_with_what_follows() -> None:
    def body(b: Any, x: Any, w: Any, bias: Any, other: Any) -> Any:
        y = b.emit("conv", x, w, **PLAIN)[0]
        y = b.add(b.add(y, b.reshape(bias, shape=(1, 40, 1, 1))), other)
        return b.maximum(y, b.const(0.0, dtype="f32"))

    types = ["f32[B,16,4,4]", "f32[40,16,3,3]", "f32[40]", "f32[B,40,4,4]"]
    low = check(fused(types, body, "conv"), rtol=1e-4, atol=1e-4)
    assert sum(op.name == "launch" for op in low.entry.walk()) == 2


WIDE_WINDOWS = [  # what gradients of weights are: [input channel, image, places], [output channel, image, places]
    ("f32[3,2,6,6]", "f32[16,2,6,6]", PLAIN, {}),
    ("f32[3,B,5,5]", "f32[20,B,5,5]", PLAIN, {}),  # the last panel of channels is not full, the batch is a symbol
    ("f32[4,2,9,11]", "f32[8,2,5,6]", PLAIN, {"rhs_dilation": (2, 2)}),  # of a strided convolution
    ("f32[3,1,6,7]", "f32[9,1,7,6]", PLAIN, {"lhs_dilation": (2, 1), "padding": (-1, -1, 0, 0)}),
    ("f32[3,1,3,4]", "f32[8,1,5,9]", PLAIN, {"lhs_dilation": (2, 3), "padding": (1, 1, 1, 1)}),
    ("f32[4,2,9,9]", "f32[8,2,5,5]", PLAIN, {"strides": (2, 2), "padding": (0, 0, 0, 0)}),
    ("f32[4,4,5,6]", "f32[16,2,4,4]", PLAIN, {"groups": 2, "padding": (0, 0, 0, 0)}),
    ("f32[2,1,10,10]", "f32[8,1,8,8]", PLAIN, {}),  # 25 places: a tile is a row of them
    ("f32[3,3,16]", "f32[8,3,14]", LINE, {}),
    ("f64[3,2,6,6]", "f64[9,2,6,6]", PLAIN, {}),
    ("f16[3,2,6,6]", "f16[8,2,6,6]", PLAIN, {}),
    ("i32[3,2,6,6]", "i32[8,2,6,6]", PLAIN, {}),
]


@pytest.mark.parametrize(("x", "w", "base", "changes"), WIDE_WINDOWS)
def test_windows_larger_than_the_result(x: str, w: str, base: dict[str, Any], changes: dict[str, Any]) -> None:
    """Output channels are the lanes, the sums stay with a task. f16 differs from the interpreter in how sums are rounded
    last."""
    tolerance = 2e-2 if x.startswith("f16") else 1e-4
    low = check(func([x, w], conv(**{**base, **changes})), {"B": 3}, rtol=tolerance, atol=20 * tolerance)
    assert any("images=" in f.attrs.get("schedule", "") for f in low.funcs.values())


def test_a_wide_window_with_what_follows() -> None:
    def body(b: Any, x: Any, w: Any, bias: Any) -> Any:
        y = b.emit("conv", x, w, **PLAIN)[0]
        return b.mul(b.add(y, y), b.reshape(bias, shape=(1, 24, 1, 1)))

    low = check(fused(["f32[3,B,8,8]", "f32[24,B,8,8]", "f32[24]"], body, "conv"), rtol=1e-4, atol=1e-3)
    assert sum(op.name == "launch" for op in low.entry.walk()) == 2


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((2, 64, 33, 30), (9, 64, 3, 3), PLAIN),
        ((2, 2, 200, 130), (16, 2, 200, 130), PLAIN),  # rows of the window, in blocks
        # Several tasks, the last of which has fewer images.
        ((101, 2, 12, 6), (16, 2, 10, 4), {**PLAIN, "padding": (0, 0, 0, 0)}),
    ],
)
def test_rows_in_blocks(x: Any, w: Any, attrs: Any) -> None:
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(s).astype("f") for s in (x, w)]
    types = [f"f32[{','.join(map(str, s))}]" for s in (("B", *x[1:]), w)]
    m = module(func(types if w[2] == 3 else [types[0].replace("B", str(x[0])), types[1]], conv(**attrs)))
    got = np.asarray(native(m)(*given))
    want = interpret(m, given)[0]
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-3, atol=1e-3)


WINDOWS = [
    ("f32[2,3,8,8]", "max", (1, 1, 2, 2), (1, 1, 2, 2), (0,) * 8, (1,) * 4),
    ("f32[B,3,9,20]", "max", (1, 1, 3, 3), (1, 1, 2, 2), (0, 0, 0, 0, 1, 1, 1, 1), (1,) * 4),
    ("f32[2,3,9,20]", "sum", (1, 1, 3, 3), (1, 1, 1, 1), (0, 0, 0, 0, 1, 1, 0, 2), (1, 1, 1, 2)),
    ("f32[2,3,T]", "max", (1, 1, 3), (1, 1, 2), (0, 0, 0, 0, 2, 1), (1, 1, 1)),
    ("f16[2,20]", "sum", (1, 3), (1, 1), (0, 0, 0, 0), (1, 1)),
    ("i32[4,20]", "max", (2, 3), (1, 1), (1, 0, 0, 2), (1, 1)),
    ("f32[2,2,11,21]", "max", (1, 1, 3, 3), (1, 1, 2, 2), (0, 0, 0, 0, 1, 1, 1, 1), (1,) * 4),
    ("f32[2,29]", "min", (1, 4), (1, 3), (0, 0, 2, 3), (1, 2)),
    ("f32[2,30]", "sum", (1, 12), (1, 1), (0, 0, 5, 6), (1, 1)),  # wider than what is written out
    ("f32[2,30]", "sum", (2, 3), (1, 2), (0, 0, -1, -2), (1, 1)),
    ("f32[2,9,10]", "prod", (1, 3, 2), (1, 3, 1), (0, 0, 2, 2, 0, 0), (1, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("t", "op", "window", "strides", "padding", "dilation"), WINDOWS)
def test_windows(t: str, op: str, window: Any, strides: Any, padding: Any, dilation: Any) -> None:
    check(
        func(
            [t],
            lambda b, x: b.emit(
                "reduce_window", x, op=op, window=window, strides=strides, padding=padding, dilation=dilation
            ),
        ),
        {"T": 8, "B": 2},
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_constant_weights_are_packed_when_compiling(groups: int) -> None:
    w = np.random.default_rng(0).standard_normal((10, 4 // groups, 3, 3)).astype(np.float32)
    low = check(
        func(["f32[B,4,5,8]"], lambda b, x: b.emit("conv", x, b.const(w), **{**PLAIN, "groups": groups})),
        {"B": 2},
        rtol=1e-4,
        atol=1e-4,
    )
    assert sum(op.name == "launch" for op in low.entry.walk()) == 1
    assert sum(op.name == "constant" for op in low.entry.walk()) == 1


CHANNELS = [  # output channels are the lanes
    ("f32[2,16,9,11]", "f32[24,16,3,2]", PLAIN, {}),
    ("f32[B,11,9,10]", "f32[19,11,3,3]", PLAIN, {"strides": (2, 2)}),
    ("f32[1,40,6,13]", "f32[16,40,1,1]", PLAIN, {"padding": (0, 0, 0, 0), "strides": (2, 1)}),
    ("f32[2,9,8,9]", "f32[8,9,3,2]", PLAIN, {"rhs_dilation": (2, 3), "padding": (2, 1, 4, 0)}),
    ("f32[2,8,4,5]", "f32[16,8,3,3]", PLAIN, {"lhs_dilation": (2, 3), "strides": (1, 2), "padding": (1, 2, 1, 2)}),
    ("f32[2,10,5,6,7]", "f32[16,10,2,3,3]", None, {"strides": (2, 1, 1), "padding": (1, 0, 1, 1, 1, 1)}),
    ("f32[B,24,40]", "f32[16,24,5]", LINE, {"padding": (2, 2)}),
    ("f32[1,300,5,5]", "f32[8,300,3,2]", PLAIN, {}),  # several blocks of channels
    ("f32[1,67,5,5]", "f32[8,67,3,3]", PLAIN, {}),  # the last of which has fewer
    ("f32[7,16,3,3]", "f32[16,16,3,3]", PLAIN, {}),  # the last task has fewer images
    ("f32[B,16,3,3]", "f32[16,16,3,3]", PLAIN, {}),
    ("f32[1,16,30,60]", "f32[8,16,3,3]", PLAIN, {}),  # several tasks
    ("f32[1,64,900]", "f32[8,64,3]", LINE, {}),  # a long line, in blocks
]


def rotating(cases: list[Any], always: int) -> list[Any]:
    """The cases, those after the first few in turns."""
    return [*cases[:always], *[pytest.param(*c, marks=pytest.mark.deep) for c in cases[always:]]]


def exact(x: str, w: str, attrs: dict[str, Any], name: str) -> None:
    """The compiled conv, by the template that prints `name`, is within k * eps of the meaning, k terms of a sum."""
    m = module(func([x, w], conv(**attrs)))
    low = lower(m, parse_target("cpu:x86-64-v3"))
    assert any(name in f.attrs.get("schedule", "") for f in low.funcs.values())
    given = random_inputs(m.entry, {"B": 3})
    wide = [a.astype(np.float64) for a in given]
    types = [t.replace("f32", "f64").replace("f16", "f64") for t in (x, w)]
    meaning = module(func(types, conv(**attrs)))
    got, want = np.asarray(native(m)(*given)), interpret(meaning, wide)[0]
    scale = interpret(meaning, [np.abs(a) for a in wide])[0]
    terms, eps = np.prod(given[1].shape[1:]), np.finfo(given[0].dtype).eps
    assert (np.abs(got.reshape(want.shape) - want) <= terms * eps * scale).all()


@pytest.mark.parametrize(("x", "w", "base", "changes"), rotating(CHANNELS, 5))
def test_output_channels_as_lanes(x: str, w: str, base: dict[str, Any] | None, changes: dict[str, Any]) -> None:
    attrs = {**(base or {"lhs_dilation": (1, 1, 1), "rhs_dilation": (1, 1, 1), "groups": 1}), **changes}
    exact(x, w, attrs, "convchannels(")


DEPTHWISE = [
    ("f32[2,16,9,11]", "f32[16,1,3,3]", PLAIN, {}),
    ("f32[B,19,10,7]", "f32[19,1,3,3]", PLAIN, {"strides": (2, 2)}),
    ("f32[1,8,12,12]", "f32[8,1,5,5]", PLAIN, {"padding": (2, 2, 2, 2)}),
    ("f32[2,9,7,8]", "f32[9,1,3,2]", PLAIN, {"rhs_dilation": (2, 3), "padding": (2, 1, 4, 0)}),
    ("f32[2,8,5,6]", "f32[8,1,3,3]", PLAIN, {"lhs_dilation": (2, 1)}),
    ("f32[1,33,3,3]", "f32[33,1,3,3]", PLAIN, {"padding": (0, 0, 0, 0)}),
    ("f32[2,12,4,5,6]", "f32[12,1,2,3,3]", None, {"strides": (1, 2, 1), "padding": (1, 0, 1, 1, 1, 1)}),
    ("f32[B,24,30]", "f32[24,1,11]", LINE, {"padding": (5, 5)}),
    ("f16[1,16,6,6]", "f16[16,1,3,3]", PLAIN, {}),
]


@pytest.mark.parametrize(("x", "w", "base", "changes"), rotating(DEPTHWISE, 3))
def test_every_channel_by_itself(x: str, w: str, base: dict[str, Any] | None, changes: dict[str, Any]) -> None:
    attrs = {**(base or {"lhs_dilation": (1, 1, 1), "rhs_dilation": (1, 1, 1)}), **changes}
    exact(x, w, {**attrs, "groups": int(w[w.index("[") + 1 : w.index(",")])}, "depthwise(")


WINOGRAD = [
    ("f32[1,32,12,12]", "f32[32,32,3,3]", {}),
    ("f32[B,33,9,13]", "f32[27,33,3,3]", {"padding": (0, 0, 0, 0)}),
    ("f32[2,100,7,8]", "f32[40,100,3,3]", {"padding": (2, 1, 0, 3)}),
    ("f32[3,64,10,10]", "f32[48,32,3,3]", {"groups": 2}),
    ("f32[5,64,4,4]", "f32[64,64,3,3]", {}),  # several images a task, the last has fewer
    ("f32[1,32,30,30]", "f32[32,32,3,3]", {}),  # several blocks of rows
    ("f64[1,32,8,9]", "f64[16,32,3,3]", {}),
    ("f16[1,32,9,9]", "f16[16,32,3,3]", {}),
]


@pytest.mark.parametrize(("x", "w", "changes"), rotating(WINOGRAD, 3))
def test_winograd(x: str, w: str, changes: dict[str, Any]) -> None:
    exact(x, w, {**PLAIN, **changes}, "winograd(")


def test_winograd_keeps_what_is_infinite_or_not_a_number_in_its_window() -> None:
    x, w = np.ones((1, 32, 20, 20), np.float32), np.ones((32, 32, 3, 3), np.float32)
    x[0, 0, 9, 9] = np.nan
    m = module(func(["f32[1,32,20,20]", "f32[32,32,3,3]"], conv(**PLAIN)))
    bad = ~np.isfinite(np.asarray(native(m)(x, w)))[0]
    assert bad[:, 8:11, 8:11].all() and bad.sum() == 32 * 9


def test_winograd_gives_the_same_bits_whichever_task_is_last() -> None:
    """Blocks of an odd number of rows overlap; what two tasks compute has the same place in its tile in both."""
    m = module(func(["f32[1,17,27,19]", "f32[17,17,3,3]"], conv(**PLAIN)))
    schedules = [str(f.attrs.get("schedule")) for f in lower(m, parse_target("cpu")).funcs.values()]
    assert any(s.startswith("winograd(") and "rows=27" not in s for s in schedules)
    given = random_inputs(m.entry, {})
    program = native(m)
    with config.override(num_threads=1):
        want = np.asarray(program(*given))
    np.testing.assert_allclose(want, interpret(m, given)[0], rtol=1e-3, atol=1e-3)
    for threads in (2, 4, 4, 4):
        with config.override(num_threads=threads):
            np.testing.assert_array_equal(program(*given), want)


def test_winograd_with_constant_weights_and_what_follows() -> None:
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((24, 32, 3, 3)).astype("f"), rng.standard_normal((24, 1, 1)).astype("f")

    def body(b: Any, x: Any, other: Any) -> Any:
        y = b.emit("conv", x, b.const(w), **PLAIN)[0]
        return b.maximum(b.add(b.add(y, b.const(bias)), other), b.const(0.0, dtype="f32"))

    m = module(fused(["f32[2,32,11,11]", "f32[2,24,11,11]"], body, "conv"))
    given = random_inputs(m.entry, {})
    got = np.asarray(native(m)(*given))
    np.testing.assert_allclose(got.reshape(2, 24, 11, 11), interpret(m, given)[0], rtol=1e-3, atol=1e-3)
