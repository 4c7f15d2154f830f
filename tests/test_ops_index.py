"""Reductions, contractions and indexing where they are special: NaN, ties, empty axes, what is out of range, errors.

The checks that hold for every op (element rule against meaning, and so on) are generated from samples in test_ops.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.ir import dims as D
from fluxir.ir.core import Module
from fluxir.ir.interp import interpret
from tests.schedule_harness import check, func, module

f32 = np.float32


def value(name: str, types: list[str], arrays: list[Any], **attrs: Any) -> Any:
    """The op's meaning on arrays, checked against its element rule (where it has one) or kernel in loop form."""
    f = func(types, lambda b, *xs: b.emit(name, *xs, **attrs))
    out = interpret(module(f), arrays)
    check(f, arrays=arrays)
    return out[0] if len(out) == 1 else out


def fails(code: str, name: str, types: list[str], *words: str, **attrs: Any) -> None:
    with pytest.raises(FluxError) as e:
        func(types, lambda b, *xs: b.emit(name, *xs, **attrs))
    assert e.value.code == code, str(e.value)
    for w in words:
        assert w in str(e.value), str(e.value)


def shape_of(name: str, types: list[str], **attrs: Any) -> str:
    return str(func(types, lambda b, *xs: b.emit(name, *xs, **attrs)).outs[0].type)


# ---- reductions -------------------------------------------------------------------------------------------------------


def test_nan_wins_in_extrema_and_the_first_one_in_argmax() -> None:
    x = np.array([[1, np.nan, 5], [np.nan, -1, np.nan], [2, 2, 1]], f32)
    for name in ("max", "min"):
        np.testing.assert_array_equal(
            value(name, ["f32[3,3]"], [x], axes=(1,)), [np.nan, np.nan, 2 if name == "max" else 1]
        )
    np.testing.assert_array_equal(value("argmax", ["f32[3,3]"], [x], axis=1), [1, 0, 0])
    np.testing.assert_array_equal(value("argmin", ["f32[3,3]"], [x], axis=1), [1, 0, 2])


def test_argmax_of_extremes_and_ties() -> None:
    low = np.iinfo(np.int32).min
    np.testing.assert_array_equal(
        value("argmax", ["i32[2,3]"], [np.array([[low, low, low], [0, 7, 7]], np.int32)], axis=1), [0, 1]
    )
    np.testing.assert_array_equal(value("argmax", ["f32[3]"], [np.full(3, -np.inf, f32)], axis=0), 0)
    np.testing.assert_array_equal(value("argmin", ["bool[3]"], [np.array([True, False, False])], axis=0), 1)


def test_nothing_reduces_to_the_identity() -> None:
    x = np.zeros((0, 2), f32)
    np.testing.assert_array_equal(value("sum", ["f32[T,2]"], [x], axes=(0,)), [0, 0])
    np.testing.assert_array_equal(value("prod", ["f32[T,2]"], [x], axes=(0,)), [1, 1])
    np.testing.assert_array_equal(value("max", ["f32[T,2]"], [x], axes=(0,)), [-np.inf, -np.inf])
    np.testing.assert_array_equal(value("min", ["i8[T]"], [np.zeros(0, np.int8)], axes=(0,)), 127)
    np.testing.assert_array_equal(value("argmax", ["f32[T,2]"], [x], axis=0), [0, 0])
    np.testing.assert_array_equal(value("any", ["bool[T]"], [np.zeros(0, bool)], axes=(0,)), False)
    np.testing.assert_array_equal(value("all", ["bool[T]"], [np.zeros(0, bool)], axes=(0,)), True)


def test_an_axis_that_is_surely_empty_has_no_extremum() -> None:
    for name in ("max", "min"):
        fails("FX0225", name, ["f32[3,0]"], "axis 1", "f32[3,0]", axes=(1,))
    fails("FX0225", "argmax", ["f32[0]"], axis=0)
    assert shape_of("max", ["f32[3,0]"], axes=(0,)) == "f32[0]"


def test_half_precision_accumulates_in_f32_and_integers_wrap() -> None:
    x = np.array([2048, 1, 1, 1, 1], np.float16)
    assert value("sum", ["f16[5]"], [x], axes=(0,)) == np.float16(2052)
    assert value(
        "dot", ["f16[5]", "f16[5]"], [x, np.ones(5, np.float16)], lhs_contract=(0,), rhs_contract=(0,)
    ) == np.float16(2052)
    assert value("sum", ["u8[2]"], [np.array([200, 100], np.uint8)], axes=(0,)) == 44


def test_reduction_errors() -> None:
    fails("FX0205", "sum", ["f32[3]"], "axis 1", axes=(1,))
    fails("FX0206", "sum", ["f32[3,4]"], axes=(1, -1))
    fails("FX0209", "sum", ["bool[3]"], "bool", axes=(0,))
    fails("FX0209", "any", ["f32[3]"], axes=(0,))
    fails("FX0205", "argmax", ["f32"], axis=0)
    fails("FX0205", "cumsum", ["f32[3]"], axis=3)
    fails("FX0108", "sum", ["f32[3]", "f32[3]"], axes=(0,))


# ---- windows ----------------------------------------------------------------------------------------------------------


def windows(x: Any, op: str = "max", **kw: Any) -> Any:
    n = x.ndim
    attrs = {"window": (1,) * n, "strides": (1,) * n, "padding": (0, 0) * n, "dilation": (1,) * n, **kw}
    return value("reduce_window", [f"f32[{','.join(map(str, x.shape))}]"], [x], op=op, **attrs)


def test_windows_against_a_loop() -> None:
    x = np.random.default_rng(0).standard_normal((4, 9)).astype(f32)
    for window, strides, padding, dilation in (
        ((2, 3), (1, 2), (0, 0, 0, 0), (1, 1)), ((1, 3), (2, 1), (0, 0, 2, 1), (1, 2)), ((3, 1), (1, 1), (1, 1, 0, 3), (1, 4)),
        ((2, 2), (3, 3), (-1, 0, 0, -2), (1, 1)), ((1, 1), (2, 5), (0, 0, 0, 0), (1, 1)), ((4, 2), (1, 1), (3, 3, 1, 0), (2, 8)),
    ):  # fmt: skip
        for op, fill, f in (("max", -np.inf, np.max), ("sum", 0, np.sum)):
            got = windows(x, op, window=window, strides=strides, padding=padding, dilation=dilation)
            big = np.full((4 + 20, 9 + 20), fill, f32)
            big[10:14, 10:19] = x
            crop = [[max(0, -padding[0]), max(0, -padding[1])], [max(0, -padding[2]), max(0, -padding[3])]]
            for axis, (low, high) in enumerate(crop):
                big = np.moveaxis(big, axis, 0)
                big[: 10 + low] = fill
                big[10 + x.shape[axis] - high :] = fill
                big = np.moveaxis(big, 0, axis)
            for i, j in np.ndindex(got.shape):
                r, c = 10 - padding[0] + i * strides[0], 10 - padding[2] + j * strides[1]
                part = big[
                    r : r + (window[0] - 1) * dilation[0] + 1 : dilation[0],
                    c : c + (window[1] - 1) * dilation[1] + 1 : dilation[1],
                ]
                np.testing.assert_allclose(got[i, j], f(part), rtol=1e-5)


def test_a_window_of_padding_gives_the_identity_and_nan_wins() -> None:
    np.testing.assert_array_equal(windows(np.ones(1, f32), window=(1,), padding=(1, 1)), [-np.inf, 1, -np.inf])
    np.testing.assert_array_equal(windows(np.array([1, np.nan, 0, 2], f32), window=(2,)), [np.nan, np.nan, 2])


def test_windows_over_symbolic_sizes() -> None:
    kw: dict[str, Any] = {"op": "max", "window": (1, 2), "strides": (1, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    with D.assuming(D.Facts({"T": (2, D.INF)})):
        f = func(["f32[B,T]"], lambda b, x: b.reduce_window(x, **kw))
        assert str(f.outs[0].type) == "f32[B,(T//2)]"
        for shape in ((2, 5), (0, 4), (1, 2)):
            m = Module("m", {"main": f}, D.Facts({"T": (2, D.INF)}))
            check(m, arrays=[np.random.default_rng(1).standard_normal(shape).astype(f32)])
    fails("FX0218", "reduce_window", ["f32[B,T]"], "axis 1", "state a bound", **kw)


def test_window_errors() -> None:
    kw: dict[str, Any] = {"op": "max", "window": (3,), "strides": (1,), "padding": (0, 0), "dilation": (1,)}
    fails("FX0210", "reduce_window", ["f32[2]"], "covers 3", "has 2", **kw)
    fails("FX0210", "reduce_window", ["f32[5]"], **{**kw, "strides": (0,)})
    fails("FX0210", "reduce_window", ["f32[5]"], **{**kw, "dilation": (0,)})
    fails("FX0210", "reduce_window", ["f32[5]"], **{**kw, "window": (0,)})
    fails("FX0210", "reduce_window", ["f32[5,5]"], "window", **kw)
    fails("FX0223", "reduce_window", ["f32[5]"], **{**kw, "padding": (1,)})
    fails("FX0221", "reduce_window", ["f32[5]"], "mean", **{**kw, "op": "mean"})


# ---- contractions -----------------------------------------------------------------------------------------------------


def test_dot_is_einsum() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 3, 4, 5)).astype(f32), rng.standard_normal((5, 2, 6, 3)).astype(f32)
    got = value(
        "dot",
        ["f32[2,3,4,5]", "f32[5,2,6,3]"],
        [x, y],
        lhs_contract=(3,),
        rhs_contract=(0,),
        lhs_batch=(1, 0),
        rhs_batch=(3, 1),
    )
    np.testing.assert_allclose(got, np.einsum("bacd,dbea->abce", x, y), rtol=1e-5, atol=1e-6)
    assert shape_of("dot", ["f32[B,4]", "f32[4,N]"], lhs_contract=(1,), rhs_contract=(0,)) == "f32[B,N]"


def test_dot_spreads_nan_and_infinity_times_zero() -> None:
    x, y = np.array([[np.inf, 1], [np.nan, 0]], f32), np.array([0, 1], f32)
    np.testing.assert_array_equal(
        value("dot", ["f32[2,2]", "f32[2]"], [x, y], lhs_contract=(1,), rhs_contract=(0,)), [np.nan, np.nan]
    )


def test_dot_errors() -> None:
    plain: dict[str, Any] = {"lhs_contract": (1,), "rhs_contract": (0,)}
    fails("FX0203", "dot", ["f32[32,4]", "f32[5,6]"], "4 (lhs, axis 1", "5 (rhs, axis 0", **plain)
    fails(
        "FX0203",
        "dot",
        ["f32[B,4]", "f32[N,4]"],
        "batch",
        lhs_contract=(1,),
        rhs_contract=(1,),
        lhs_batch=(0,),
        rhs_batch=(0,),
    )
    fails("FX0203", "dot", ["f32[3,4]", "f32[4,3]"], lhs_contract=(0, 1), rhs_contract=(1,))
    fails(
        "FX0206", "dot", ["f32[3,4]", "f32[4,3]"], lhs_contract=(1,), rhs_contract=(0,), lhs_batch=(1,), rhs_batch=(1,)
    )
    fails("FX0205", "dot", ["f32[3]", "f32[3]"], "lhs", **plain)
    fails("FX0201", "dot", ["f32[3,4]", "f64[4,3]"], **plain)
    fails("FX0209", "dot", ["bool[3,4]", "bool[4,3]"], **plain)


CONV: dict[str, Any] = {
    "strides": (1, 1),
    "padding": (0,) * 4,
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "groups": 1,
}


def conv_by_loops(x: Any, w: Any, strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any, groups: int) -> Any:
    """Convolution by its definition, one output element at a time, two spatial axes."""
    (n, _, h, v), (o, cg, kh, kw) = x.shape, w.shape
    get = {}
    for i in range(h):
        for j in range(v):
            get[i * lhs_dilation[0], j * lhs_dilation[1]] = x[:, :, i, j]
    size = [
        (k - 1) * d + 1 + p + q
        for k, d, p, q in ((h, lhs_dilation[0], *padding[:2]), (v, lhs_dilation[1], *padding[2:]))
    ]
    out = [(s - (k - 1) * d - 1) // t + 1 for s, k, d, t in zip(size, (kh, kw), rhs_dilation, strides)]
    y = np.zeros((n, o, *out))
    for q in range(o):
        g = q // (o // groups)
        for a, b, i, j in np.ndindex(*out, kh, kw):
            at = (a * strides[0] + i * rhs_dilation[0] - padding[0], b * strides[1] + j * rhs_dilation[1] - padding[2])
            inside = 0 <= at[0] <= (h - 1) * lhs_dilation[0] and 0 <= at[1] <= (v - 1) * lhs_dilation[1]
            if inside and at in get:
                y[:, q, a, b] += get[at][:, g * cg : (g + 1) * cg] @ w[q, :, i, j]
    return y


@pytest.mark.parametrize(
    "x,w,changes",
    [
        ((2, 3, 5, 4), (2, 3, 3, 2), {}),
        ((1, 2, 5, 5), (2, 2, 3, 3), {"padding": (1, 1, 2, 0), "strides": (2, 1)}),
        ((1, 2, 6, 7), (3, 2, 2, 2), {"rhs_dilation": (3, 2), "padding": (0, 1, 1, 0)}),
        ((1, 4, 4, 3), (6, 2, 2, 2), {"groups": 2}),
        ((2, 3, 4, 4), (3, 1, 3, 3), {"groups": 3, "padding": (1, 1, 1, 1)}),
        ((1, 2, 3, 3), (2, 2, 3, 3), {"lhs_dilation": (2, 2), "padding": (1, 2, 1, 2)}),
        ((1, 2, 3, 2), (4, 1, 4, 4), {"lhs_dilation": (3, 2), "padding": (3, 3, 2, 3), "strides": (1, 2), "groups": 2}),
        ((1, 1, 5, 6), (1, 1, 2, 2), {"padding": (-1, 0, 1, -2)}),
        ((1, 1, 1, 4), (1, 1, 1, 1), {"padding": (2, 2, 0, 0)}),
    ],
)
def test_conv_by_its_definition(x: Any, w: Any, changes: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal(x).astype(f32), rng.standard_normal(w).astype(f32)
    attrs = {**CONV, **changes}
    types = [f"f32[{','.join(map(str, s))}]" for s in (x, w)]
    cut = attrs["padding"]
    crop = (
        slice(None),
        slice(None),
        slice(max(0, -cut[0]), x[2] - max(0, -cut[1])),
        slice(max(0, -cut[2]), x[3] - max(0, -cut[3])),
    )
    want = conv_by_loops(a[crop], b, **{**attrs, "padding": tuple(max(0, p) for p in cut)})
    np.testing.assert_allclose(value("conv", types, [a, b], **attrs), want, rtol=1e-4, atol=1e-5)


def test_transposed_conv_is_the_adjoint_of_conv() -> None:
    """<conv(x, w), y> == <x, transposed(y, w)>, stride 2 becoming an input dilation of 2."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((1, 2, 7)), rng.standard_normal((3, 2, 3))
    line: dict[str, Any] = {"strides": (2,), "padding": (1, 1), "lhs_dilation": (1,), "rhs_dilation": (1,), "groups": 1}
    out = value("conv", ["f64[1,2,7]", "f64[3,2,3]"], [x, w], **line)
    y = rng.standard_normal(out.shape)
    turned = np.ascontiguousarray(w.transpose(1, 0, 2)[..., ::-1])
    back = value("conv", ["f64[1,3,4]", "f64[2,3,3]"], [y, turned], **{**line, "strides": (1,), "lhs_dilation": (2,)})
    np.testing.assert_allclose(np.vdot(out, y), np.vdot(x, back), rtol=1e-10)


def test_transposed_conv_ignores_infinite_weights_where_it_reads_a_hole() -> None:
    line: dict[str, Any] = {"strides": (1,), "padding": (0, 0), "lhs_dilation": (2,), "rhs_dilation": (1,), "groups": 1}
    got = value("conv", ["f32[1,1,2]", "f32[1,1,1]"], [np.ones((1, 1, 2), f32), np.full((1, 1, 1), 2, f32)], **line)
    np.testing.assert_array_equal(got, [[[2, 0, 2]]])


def test_conv_over_symbolic_sizes() -> None:
    attrs = {**CONV, "padding": (1, 1, 1, 1)}
    facts = D.Facts({"B": (0, D.INF), "T": (1, D.INF)})
    with D.assuming(facts):
        f = func(["f32[B,2,T,5]", "f32[3,2,3,3]"], lambda b, x, w: b.conv(x, w, **attrs))
        assert str(f.outs[0].type) == "f32[B,3,T,5]"
        m = Module("m", {"main": f}, facts)
        rng = np.random.default_rng(5)
        for shape in ((2, 2, 1, 5), (0, 2, 3, 5), (1, 2, 4, 5)):
            check(
                m,
                arrays=[rng.standard_normal(shape).astype(f32), rng.standard_normal((3, 2, 3, 3)).astype(f32)],
                rtol=1e-4,
                atol=1e-5,
            )


def test_conv_errors() -> None:
    fails("FX0210", "conv", ["f32[1,3,8,8]", "f32[8,4,3,3]"], "3 input channels", "4 (axis 1", "1 groups", **CONV)
    fails("FX0210", "conv", ["f32[1,4,8,8]", "f32[3,2,3,3]"], "3 output channels", **{**CONV, "groups": 2})
    fails("FX0210", "conv", ["f32[1,3,2,8]", "f32[8,3,3,3]"], "covers 3", "has 2", **CONV)
    fails("FX0210", "conv", ["f32[3,8]", "f32[8,3]"], "at least 3 axes", **CONV)
    fails("FX0210", "conv", ["f32[1,3,8]", "f32[8,3,3]"], "strides", **CONV)
    fails("FX0210", "conv", ["f32[1,3,8,8]", "f32[8,3,3,3]"], **{**CONV, "strides": (0, 1)})
    fails("FX0210", "conv", ["f32[1,3,8,8]", "f32[8,3,3,3]"], **{**CONV, "lhs_dilation": (0, 1)})
    fails("FX0210", "conv", ["f32[1,3,8,8]", "f32[8,3,3,3]"], **{**CONV, "groups": 0})
    fails("FX0223", "conv", ["f32[1,3,8,8]", "f32[8,3,3,3]"], "need 4", **{**CONV, "padding": (0, 0)})
    fails("FX0201", "conv", ["f32[1,3,8,8]", "f16[8,3,3,3]"], **CONV)
    fails("FX0218", "conv", ["f32[1,3,T,8]", "f32[8,3,3,3]"], "T", **CONV)


# ---- gather, scatter, dynamic slices ------------------------------------------------------------------------------------


def test_gather_clamps_and_does_not_wrap() -> None:
    x = np.arange(10, dtype=f32).reshape(5, 2)
    big, small = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    got = value("gather", ["f32[5,2]", "i64[5]"], [x, np.array([0, -1, 5, big, small])], axes=(0,))
    np.testing.assert_array_equal(got, x[[0, 0, 4, 4, 0]])


def test_gather_index_axes_come_first() -> None:
    x = np.random.default_rng(6).standard_normal((2, 3, 4)).astype(f32)
    i, j = np.array([[0], [1], [1]]), np.array([3, 0])
    got = value("gather", ["f32[2,3,4]", "i64[3,1]", "i64[2]"], [x, i, j], axes=(0, 2))
    np.testing.assert_array_equal(got, np.moveaxis(x, 1, 2)[i, j])
    assert shape_of("gather", ["f32[V,D]", "i64[B,T]"], axes=(0,)) == "f32[B,T,D]"


def test_gather_from_an_axis_that_is_empty_at_run_time_gives_zeros() -> None:
    np.testing.assert_array_equal(
        value("gather", ["f32[N,2]", "i64[3]"], [np.zeros((0, 2), f32), np.arange(3)], axes=(0,)), np.zeros((3, 2))
    )
    fails("FX0216", "gather", ["f32[0,2]", "i64[3]"], "empty", axes=(0,))


def test_gather_and_scatter_errors() -> None:
    fails("FX0214", "gather", ["f32[3]", "f32[2]"], axes=(0,))
    fails("FX0214", "gather", ["f32[3]", "bool[3]"], "nonzero", axes=(0,))
    fails("FX0224", "gather", ["f32[3,4]", "i64[2]"], axes=(0, 1))
    fails("FX0224", "gather", ["f32[3,4]"], axes=())
    fails("FX0202", "gather", ["f32[3,4]", "i64[2]", "i64[3]"], axes=(0, 1))
    fails("FX0205", "gather", ["f32[3]", "i64[2]"], axes=(1,))
    fails("FX0224", "scatter", ["f32[3,4]", "f32[2]", "i64[2]"], "f32[2,4]", axes=(0,))
    fails("FX0221", "scatter", ["f32[3]", "f32[2]", "i64[2]"], "div", axes=(0,), mode="div")
    fails("FX0201", "scatter", ["f32[3]", "f64[2]", "i64[2]"], axes=(0,))
    fails("FX0209", "scatter", ["bool[3]", "bool[2]", "i64[2]"], axes=(0,), mode="add")
    fails("FX0108", "scatter", ["f32[3]", "f32[2]"], axes=())


def test_scatter_set_keeps_the_last_of_repeated_updates() -> None:
    got = value(
        "scatter",
        ["f32[3]", "f32[4]", "i64[4]"],
        [np.zeros(3, f32), np.array([1, 2, 3, 4], f32), np.array([1, 1, 9, 1])],
        axes=(0,),
    )
    np.testing.assert_array_equal(got, [0, 4, 0])


def test_dynamic_slices_clamp_their_start() -> None:
    x = np.arange(5, dtype=f32)
    for start, first in ((-7, 0), (2, 2), (3, 3), (4, 3), (99, 3)):
        s = np.int64(start)
        np.testing.assert_array_equal(
            value("dynamic_slice", ["f32[5]", "i64"], [x, s], sizes=(2,)), x[first : first + 2]
        )
        want = x.copy()
        want[first : first + 2] = [-1, -2]
        np.testing.assert_array_equal(
            value("dynamic_update", ["f32[5]", "f32[2]", "i64"], [x, np.array([-1, -2], f32), s]), want
        )


def test_dynamic_slice_errors() -> None:
    fails("FX0216", "dynamic_slice", ["f32[5]", "i64"], "6", sizes=(6,))
    fails("FX0218", "dynamic_slice", ["f32[N]", "i64"], "N", sizes=(2,))
    fails("FX0218", "dynamic_slice", ["f32[5]", "i64"], sizes=(-1,))
    fails("FX0214", "dynamic_slice", ["f32[5]", "i32"], sizes=(2,))
    fails("FX0220", "dynamic_slice", ["f32[5,5]", "i64"], sizes=(2, 2))
    fails("FX0216", "dynamic_update", ["f32[5]", "f32[6]", "i64"])
    fails("FX0220", "dynamic_update", ["f32[5]", "f32[1,1]", "i64"])
    fails("FX0201", "dynamic_update", ["f32[5]", "f64[2]", "i64"])


# ---- order --------------------------------------------------------------------------------------------------------------


def test_sorting_is_stable_both_ways_with_nan_last() -> None:
    x = np.array([2, np.nan, 0.0, 2, -0.0, np.inf, np.nan], f32)
    np.testing.assert_array_equal(value("argsort", ["f32[7]"], [x], axis=0), [2, 4, 0, 3, 5, 1, 6])
    np.testing.assert_array_equal(value("argsort", ["f32[7]"], [x], axis=0, descending=True), [5, 0, 3, 2, 4, 1, 6])
    np.testing.assert_array_equal(
        value("sort", ["f32[7]"], [x], axis=0, descending=True), [np.inf, 2, 2, 0, 0, np.nan, np.nan]
    )
    values, places = value("topk", ["f32[7]"], [x], k=6)
    np.testing.assert_array_equal(places, [5, 0, 3, 2, 4, 1])
    assert np.isnan(values[5])


def test_unsigned_and_smallest_integers_sort_in_descending_order() -> None:
    np.testing.assert_array_equal(
        value("sort", ["u8[3]"], [np.array([0, 255, 7], np.uint8)], axis=0, descending=True), [255, 7, 0]
    )
    low = np.iinfo(np.int64).min
    np.testing.assert_array_equal(
        value("argsort", ["i64[3]"], [np.array([low, 0, -1])], axis=0, descending=True), [1, 2, 0]
    )


def test_searchsorted_orders_nan_last() -> None:
    x = np.array([0, 1, 1, np.nan], f32)
    v = np.array([-1, 1, np.nan, np.inf], f32)
    np.testing.assert_array_equal(value("searchsorted", ["f32[4]", "f32[4]"], [x, v], side="left"), [0, 1, 3, 3])
    np.testing.assert_array_equal(value("searchsorted", ["f32[N]", "f32[4]"], [x, v], side="right"), [0, 3, 4, 3])


def test_nonzero_reports_all_hits_and_keeps_the_first() -> None:
    x = np.array([[0, 2, -0.0], [np.nan, 0, 1]], f32)
    places, count = value("nonzero", ["f32[2,3]"], [x], bound=2)
    np.testing.assert_array_equal(places, [[0, 1], [1, 0]])
    assert count == 3
    places, count = value("nonzero", ["f32[2,3]"], [x], bound=5)
    np.testing.assert_array_equal(places, [[0, 1], [1, 0], [1, 2], [0, 0], [0, 0]])


def test_order_errors() -> None:
    fails("FX0221", "topk", ["f32[3,10]"], "k is 20", "10", k=20)
    fails("FX0221", "topk", ["f32[3,10]"], k=-1)
    fails("FX0218", "topk", ["f32[N]"], "N", k=2)
    fails("FX0220", "topk", ["f32"], k=0)
    fails("FX0205", "sort", ["f32[3]"], axis=1)
    fails("FX0220", "searchsorted", ["f32[3,3]", "f32"], side="left")
    fails("FX0201", "searchsorted", ["f32[3]", "f64"], side="left")
    fails("FX0221", "searchsorted", ["f32[3]", "f32"], side="middle")
    fails("FX0221", "nonzero", ["f32[3]"], bound=-1)


def test_costs_count_operations() -> None:
    f = func(["f32[B,4]", "f32[4,5]"], lambda b, x, y: b.dot(x, y, lhs_contract=(1,), rhs_contract=(0,)))
    assert f.ops[0].defn.cost is not None and str(f.ops[0].defn.cost(f.ops[0])) == "B*40"
    g = func(
        ["f32[1,4,5]", "f32[6,2,3]"],
        lambda b, x, w: b.conv(x, w, strides=(1,), padding=(0, 0), lhs_dilation=(1,), rhs_dilation=(1,), groups=2),
    )
    assert g.ops[0].defn.cost is not None and g.ops[0].defn.cost(g.ops[0]) == 18 * 2 * 3 * 2
