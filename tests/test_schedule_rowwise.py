"""The row-wise template against the tensor interpreter: orders of axes, sizes around the vector, stages, splitting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.ir.core import Module
from fluxir.ir.interp import interpret
from fluxir.schedule import rowwise
from tests.schedule_harness import check, func, fused, module, native, random_inputs

SHAPES = [
    ("f32[3,4]", (1,)), ("f32[3,37]", (1,)), ("f32[3,37]", (0,)), ("f32[2,3,70]", (2,)), ("f32[2,3,70]", (0, 1)), ("f32[2,3,70]", (0, 2)),
    ("f32[2,3,70]", (1,)), ("f32[0,4]", (0,)), ("f32[0,4]", (1,)), ("f32[4,0]", (1,)), ("f32[1,5]", (0,)), ("f32[5]", (0,)), ("f32", ()),
    ("f32[B,T]", (1,)), ("f32[B,T]", (0,)), ("f32[B,T,3]", (0, 1)), ("f32[B,3,T]", (0, 2)), ("f64[B,T]", (1,)), ("i32[B,T]", (0,)), ("u8[3,40]", (1,)),
]  # fmt: skip


def kernels(low: Module) -> list[str]:
    return [f.name for f in low.funcs.values() if f.level == "kernel"]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("t", "axes"), SHAPES)
def test_sum(t: str, axes: tuple[int, ...], keepdims: bool) -> None:
    for sizes in ({"T": 41, "B": 3}, {"T": 0, "B": 2}, {"T": 5, "B": 1}):
        check(func([t], lambda b, x: b.emit("sum", x, axes=axes, keepdims=keepdims)), sizes)
        if "B" not in t:
            break


@pytest.mark.parametrize("name", ["prod", "max", "min"])
@pytest.mark.parametrize("t", ["f32[3,37]", "i32[3,37]", "f16[3,37]", "bf16[9,3]", "f64[3,19]"])
@pytest.mark.parametrize("axis", [0, 1])
def test_other_reductions(name: str, t: str, axis: int) -> None:
    check(func([t], lambda b, x: b.emit(name, x, axes=(axis,))))


@pytest.mark.parametrize("t", ["f16[3,37]", "bf16[3,37]"])
def test_small_floats_along_a_row_in_machine_code(t: str) -> None:
    """The lanes of a vector of 16-bit floats meet in f32: targets have no such arithmetic."""
    f = func([t], lambda b, x: [b.emit(n, x, axes=(1,))[0] for n in ("max", "min", "prod")])
    (x,) = random_inputs(f, {})
    for got, want in zip(native(module(f))(x), interpret(module(f), [x]), strict=True):
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=2e-2)


@pytest.mark.parametrize("name", ["any", "all", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1])
def test_bool_reductions(name: str, axis: int) -> None:
    check(func(["bool[5,20]"], lambda b, x: b.emit(name, x, axes=(axis,))))


def test_nan_is_kept() -> None:
    x = np.zeros((3, 20), np.float32)
    x[1, 7] = np.nan
    check(func(["f32[3,20]"], lambda b, x: (b.max(x, axes=(1,)), b.min(x, axes=(0,)))), arrays=[x])


def softmax(axis: int) -> Any:
    def body(b: Any, x: Any) -> Any:
        m = b.emit("max", x, axes=(axis,), keepdims=True)[0]
        e = b.exp(b.sub(x, m))
        s = b.emit("sum", e, axes=(axis,), keepdims=True)[0]
        return b.div(e, s)

    return body


@pytest.mark.parametrize(
    ("t", "axis"),
    [
        ("f32[3,37]", 1),
        ("f32[37,3]", 0),
        ("f32[2,21,5]", 1),
        ("f32[B,T]", 1),
        ("f32[T,B]", 0),
        ("f32[4,40]", 0),
        ("f16[3,40]", 1),
    ],
)
def test_softmax_is_one_kernel(t: str, axis: int) -> None:
    low = check(fused([t], softmax(axis), "rowwise"), {"T": 20})
    assert len(kernels(low)) == 1
    assert "rowwise" in low.funcs[kernels(low)[0]].attrs["schedule"]


def test_norm_with_weights_along_the_row() -> None:
    def body(b: Any, x: Any, scale: Any, bias: Any) -> Any:
        n = b.const(np.float32(24))
        mean = b.div(b.emit("sum", x, axes=(1,), keepdims=True)[0], n)
        centred = b.sub(x, mean)
        var = b.div(b.emit("sum", b.mul(centred, centred), axes=(1,), keepdims=True)[0], n)
        y = b.mul(centred, b.rsqrt(b.add(var, b.const(np.float32(1e-5)))))
        return b.add(b.mul(y, scale), bias)

    low = check(fused(["f32[5,24]", "f32[24]", "f32[24]"], body, "rowwise"), rtol=1e-4, atol=1e-5)
    assert len(kernels(low)) == 1


def test_statistics_over_images() -> None:
    def body(b: Any, x: Any) -> Any:
        return b.emit("sum", x, axes=(0, 2, 3))[0], b.emit("sum", b.mul(x, x), axes=(0, 2, 3))[0]

    assert len(kernels(check(fused(["f32[B,12,2,5]"], body, "rowwise")))) == 1
    assert len(kernels(check(fused(["f32[B,3,4,5]"], body, "rowwise")))) == 2  # few rows, of unknown length: split


def test_rows_and_full_results_together() -> None:
    def body(b: Any, x: Any, y: Any) -> Any:
        s = b.emit("sum", x, axes=(1,))[0]
        return b.mul(s, y), b.add(x, b.reshape(s, shape=(3, 1)))

    check(fused(["f32[3,20]", "f32[3]"], body, "rowwise"))


def test_square_space_is_not_confused() -> None:
    def body(b: Any, x: Any) -> Any:
        s = b.emit("sum", x, axes=(1,))[0]
        return b.add(x, s)  # s runs along the columns here, not the rows

    check(fused(["f32[6,6]"], body, "rowwise"))


def test_producer_that_only_scalars_can_read() -> None:
    def body(b: Any, x: Any) -> Any:
        y = b.emit("slice", x, start=(0, 2), limit=(3, 39))[0]
        z = b.emit("reverse", x, axes=(1,))[0]
        z = b.emit("slice", z, start=(0, 1), limit=(3, 38))[0]
        return b.emit("sum", b.mul(y, z), axes=(1,))[0]

    low = check(fused(["f32[3,40]"], body, "rowwise"))
    assert len(kernels(low)) == 1


@pytest.mark.parametrize("n", [0, 1, 1000, 70000])
def test_full_reduction_of_symbolic_length_is_split(n: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, n).astype(np.float32)
    low = check(func(["f32[N]"], lambda b, x: b.emit("sum", x, axes=(0,))), arrays=[x], atol=1e-2)
    assert len(kernels(low)) == 2


@pytest.mark.parametrize("n", [0, 1, 1000, 70000])
def test_few_long_rows_are_split_stage_by_stage(n: int) -> None:
    """A variance over everything: two reductions, each cut into pieces, for any number of threads."""

    def body(b: Any, x: Any) -> Any:
        d = b.sub(x, b.mul(b.emit("sum", x, axes=(0,), keepdims=True)[0], 1e-3))
        return b.emit("sum", b.mul(d, d), axes=(0,))[0]

    x = np.random.default_rng(0).uniform(-1, 1, n).astype(np.float32)
    low = check(fused(["f32[N]"], body, "rowwise"), arrays=[x], rtol=1e-3, atol=1e-3)
    assert sum("piece=" in low.funcs[k].attrs["schedule"] for k in kernels(low)) == 2


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 29])
@pytest.mark.parametrize("name", ["sum", "max"])
def test_columns_take_several_lines_at_once(rows: int, name: str) -> None:
    def body(b: Any, x: Any, y: Any) -> Any:
        return b.emit(name, b.mul(x, y), axes=(0,))[0], b.emit("sum", x, axes=(0,))[0]

    check(fused(["f32[T,21]", "f32[21]"], body, "rowwise"), {"T": rows}, rtol=1e-4)
    if rows:
        check(fused([f"i32[{rows},2,21]", "i32[21]"], lambda b, x, y: body(b, x, y)[0], "rowwise"))


@pytest.mark.parametrize(
    ("rows", "t"), [(0, "f32[T,5]"), (150, "f32[T,37]"), (9000, "f32[T,3]"), (700, "f32[2,700,9]")]
)
def test_columns_are_split_along_their_lines(rows: int, t: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowwise, "PIECE", 256)
    monkeypatch.setattr(rowwise, "LINES", 16)

    def body(b: Any, x: Any) -> Any:
        axis = len(x.type.shape) - 2
        return b.mul(b.emit("sum", x, axes=(axis,))[0], 0.5), b.emit("max", x, axes=(axis,), keepdims=True)[0]

    f = fused([t], body if rows else lambda b, x: b.emit("sum", x, axes=(0,))[0], "rowwise")
    low = check(f, {"T": rows}, rtol=1e-4, atol=1e-4)
    assert len(kernels(low)) == 2


def test_split_with_epilogue_and_half_precision() -> None:
    def body(b: Any, x: Any, y: Any) -> Any:
        s = b.emit("sum", x, axes=(0,))[0]
        return b.mul(s, y), b.emit("max", x, axes=(0,))[0]

    check(fused(["f16[N]", "f16"], body, "rowwise"), arrays=[np.ones(300, np.float16), np.float16(0.5)])


def test_random_row_groups() -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        rank = int(rng.integers(1, 4))
        shape = tuple(int(rng.choice([1, 2, 3, 8, 17])) for _ in range(rank))
        axes = tuple(sorted(rng.choice(rank, int(rng.integers(1, rank + 1)), replace=False).tolist()))
        weight = shape[-1:]

        def body(b: Any, x: Any, w: Any, axes: Any = axes) -> Any:
            y = b.mul(x, w)
            m = b.emit("max", y, axes=axes, keepdims=True)[0]
            s = b.emit("sum", b.exp(b.sub(y, m)), axes=axes, keepdims=True)[0]
            return b.add(b.mul(y, s), w), s

        text = f"f32[{','.join(map(str, shape))}]"
        check(fused([text, f"f32[{weight[0]}]"], body, "rowwise"), rtol=1e-4)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize(
    ("t", "axis"),
    [
        ("f32[3,40]", 1),
        ("f32[40,3]", 0),
        ("f32[3,T]", 1),
        ("i32[3,40]", 1),
        ("u8[3,20]", 1),
        ("f16[3,20]", 1),
        ("bool[3,20]", 1),
        ("f32[1,5]", 0),
        ("f64[B,T,5]", 1),
    ],
)
def test_argmax(name: str, t: str, axis: int) -> None:
    for keepdims in (False, True):
        low = check(func([t], lambda b, x, k=keepdims: b.emit(name, x, axis=axis, keepdims=k)), {"T": 20})
        assert "rowwise" in low.funcs[kernels(low)[0]].attrs["schedule"] or t == "f32[1,5]"


def test_argmax_of_ties_nan_and_nothing() -> None:
    x = np.zeros((4, 21), np.float32)
    x[1, 13], x[1, 20], x[2, 3], x[3] = np.nan, np.nan, 5, -np.inf
    for axis in (0, 1):
        check(func(["f32[4,21]"], lambda b, v, a=axis: (b.argmax(v, axis=a), b.argmin(v, axis=a))), arrays=[x])
    check(func(["f32[4,T]"], lambda b, v: b.argmax(v, axis=1)), {"T": 0})


def test_counting_along_rows_and_columns() -> None:
    def body(b: Any, x: Any, axis: int, reduce: int) -> Any:
        i = b.emit("iota", shape=(6, 4, 17), axis=axis, dtype="i32")[0]
        return b.emit("sum", b.mul(x, b.cast(i, dtype="f32")), axes=(reduce,))[0]

    for axis in range(3):
        for reduce in range(3):
            check(
                fused(["f32[6,4,17]"], lambda b, x, a=axis, r=reduce: body(b, x, a, r), "rowwise"), rtol=1e-4, atol=1e-4
            )
    check(fused(["f32[6,4,17]"], lambda b, x: b.add(x, b.emit("iota", shape=(6, 4, 17), axis=1, dtype="f32")[0])))
