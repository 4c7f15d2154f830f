"""The GPU templates, thread by thread in the loop interpreter, against the tensor interpreter.

Blocks are small here, so that a handful of elements already takes several threads, warps, blocks and pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.ir.core import Module
from fluxir.ir.dims import Facts, assuming
from fluxir.schedule import gpu_matmul, gpu_pointwise, gpu_rowwise
from fluxir.target import parse_target
from tests.schedule_harness import check, func, fused
from tests.test_schedule_rowwise import SHAPES, softmax

GPU = parse_target("sm_80")
DOT = {"lhs_contract": (1,), "rhs_contract": (0,)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_pointwise, "THREADS", 8)
    monkeypatch.setattr(gpu_rowwise, "THREADS", 64)
    monkeypatch.setattr(gpu_rowwise, "PIECE", 16)
    monkeypatch.setattr(gpu_rowwise, "FEW_ROWS", 4)
    for name, value in {"SIDE": 4, "DEPTH": 4, "TINY": 0, "BLOCKS": 1}.items():
        monkeypatch.setattr(gpu_matmul, name, value)


def schedules(low: Module) -> str:
    return " ".join(f.attrs.get("schedule", "") for f in low.funcs.values() if f.level == "kernel")


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "axes"), SHAPES)
def test_sum(t: str, axes: tuple[int, ...]) -> None:
    for sizes in ({"T": 41, "B": 3}, {"T": 0, "B": 2}, {"T": 5, "B": 1}):
        check(func([t], lambda b, x: b.emit("sum", x, axes=axes, keepdims=len(t) % 2 == 0)), sizes, target=GPU)
        if "B" not in t:
            break


@pytest.mark.parametrize("name", ["prod", "max", "min"])
@pytest.mark.parametrize("t", ["i32[3,37]", "f16[3,40]", "bf16[9,3]", "f64[3,19]", "u8[2,48]"])
@pytest.mark.parametrize("axis", [0, 1])
def test_other_reductions(name: str, t: str, axis: int) -> None:
    check(func([t], lambda b, x: b.emit(name, x, axes=(axis,))), target=GPU)


@pytest.mark.parametrize("name", ["any", "all", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1])
def test_bool_reductions(name: str, axis: int) -> None:
    check(func(["bool[5,70]"], lambda b, x: b.emit(name, x, axes=(axis,))), target=GPU)


def test_nan_is_kept() -> None:
    x = np.zeros((3, 20), np.float32)
    x[1, 7] = np.nan
    check(func(["f32[3,20]"], lambda b, x: (b.max(x, axes=(1,)), b.min(x, axes=(0,)))), arrays=[x], target=GPU)


@pytest.mark.parametrize(
    ("t", "axis"),
    [("f32[5,37]", 1), ("f32[40,5]", 0), ("f32[2,21,5]", 1), ("f32[B,T]", 1), ("f32[T,B]", 0), ("f16[5,48]", 1)],
)
def test_softmax_is_one_kernel(t: str, axis: int) -> None:
    low = check(fused([t], softmax(axis), "rowwise"), {"T": 20}, target=GPU)
    assert schedules(low).count("stages=2") == 1 and len(low.funcs) == 2


def test_softmax_of_few_long_rows_is_cut() -> None:
    """Each reduction is spread over the whole device; the last kernel is pointwise."""
    low = check(fused(["f32[2,100]"], softmax(1), "rowwise"), target=GPU)
    assert schedules(low).count("piece=16") == 2 and "gpupointwise(space=2x100" in schedules(low)


@pytest.mark.parametrize(("t", "axis"), [("f32[5,40]", 1), ("f32[40,5]", 0), ("i32[7,33]", 1), ("f16[B,T]", 1)])
def test_argmax(t: str, axis: int) -> None:
    def body(b: Any, x: Any) -> Any:
        return b.emit("argmax", x, axis=axis)[0], b.emit("argmin", x, axis=axis)[0], b.emit("max", x, axes=(axis,))[0]

    low = check(fused([t], body, "rowwise"), {"T": 20, "B": 5}, target=GPU)
    assert "stages=2" in schedules(low) and len(low.funcs) == 2


def test_norm_with_weights_along_the_row() -> None:
    def body(b: Any, x: Any, w: Any) -> Any:
        mean = b.mul(b.emit("sum", x, axes=(1,), keepdims=True)[0], 1 / 24)
        d = b.sub(x, mean)
        var = b.mul(b.emit("sum", b.mul(d, d), axes=(1,), keepdims=True)[0], 1 / 24)
        return b.mul(b.mul(d, b.rsqrt(b.add(var, 1e-5))), w), mean

    low = check(fused(["f32[B,24]", "f32[24]"], body, "rowwise"), {"B": 9}, target=GPU)
    assert "lanes=4" in schedules(low)


@pytest.mark.parametrize(
    ("t", "axes"), [("f32[100]", (0,)), ("f32[T]", (0,)), ("f32[90,3]", (0,)), ("f32[2,T]", (1,)), ("f16[99]", (0,))]
)
def test_few_long_rows_are_cut(t: str, axes: tuple[int, ...]) -> None:
    for size in (0, 5, 70):
        low = check(func([t], lambda b, x: b.mul(b.emit("sum", b.exp(x), axes=axes)[0], 0.5)), {"T": size}, target=GPU)
    raw = fused([t], lambda b, x: (b.emit("sum", x, axes=axes)[0], b.emit("max", x, axes=axes)[0]), "rowwise")
    low = check(raw, {"T": 70}, target=GPU)
    assert "piece=16" in schedules(low)


def test_rows_that_are_known_to_be_short_are_not_cut() -> None:
    """A bound on the size makes the number of pieces 1, and nothing would be left to combine."""
    facts = Facts({"T": (0, 10)})
    with assuming(facts):
        f = fused(["f32[T+1,1]"], lambda b, x: b.emit("sum", x, axes=(0, 1)), "rowwise")
        low = check(Module("m", {"main": f}, facts), {"T": 7}, target=GPU)
    assert "piece" not in schedules(low)


def test_a_producer_without_index_map() -> None:
    def body(b: Any, x: Any) -> Any:
        return b.emit("sum", b.slice(x, start=(1, 0), limit=(5, 9), stride=(2, 1)), axes=(1,))

    check(fused(["f32[6,9]"], body, "rowwise"), target=GPU)


def test_vectors_need_whole_vectors() -> None:
    def lanes(t: str) -> str:
        return schedules(check(func([t], lambda b, x: b.sum(x, axes=(1,))), {"T": 8, "B": 5}, target=GPU))

    assert "lanes=4" in lanes("f32[B,64]") and "lanes=2" in lanes("f32[B,62]") and "lanes=1" in lanes("f32[B,63]")
    assert "lanes=8" in lanes("f16[B,64]") and "lanes=2" in lanes("f64[B,64]") and "lanes=1" in lanes("f32[B,T]")


# ---- pointwise ------------------------------------------------------------------------------------------------------


def test_pointwise_vectors() -> None:
    def body(b: Any, x: Any, y: Any, z: Any) -> Any:
        return b.mul(b.exp(b.add(x, y)), b.cast(z, dtype="f32"))

    low = check(fused(["f32[B,12]", "f32[12]", "f16[B,12]"], body), {"B": 5}, target=GPU)
    assert "lanes=4" in schedules(low)
    low = check(fused(["f32[B,12]", "f32[12]"], lambda b, x, y: b.gt(b.add(x, y), 0.5)), {"B": 5}, target=GPU)
    assert "lanes=4" in schedules(low)


@pytest.mark.parametrize("size", [0, 1, 7, 33])
def test_pointwise_symbolic(size: int) -> None:
    low = check(fused(["f32[B]", "f32"], lambda b, x, y: b.mul(x, y)), {"B": size}, target=GPU)
    assert "lanes=1" in schedules(low)


def test_facts_allow_vectors() -> None:
    facts = Facts({}, {"B": 4})
    with assuming(facts):
        f = fused(["f32[B]"], lambda b, x: b.mul(x, x))
        low = check(Module("m", {"main": f}, facts), {"B": 12}, target=GPU)
    assert "lanes=4" in schedules(low)


def test_transposed_operand_is_read_by_element() -> None:
    check(fused(["f32[8,12]", "f32[12,8]"], lambda b, x, y: b.add(x, b.transpose(y, perm=(1, 0)))), target=GPU)


# ---- matmul -----------------------------------------------------------------------------------------------------------

LAYOUTS = {"nn": ("f32[M,K]", "f32[K,N]", 1, 0), "nt": ("f32[M,K]", "f32[N,K]", 1, 1), "tn": ("f32[K,M]", "f32[K,N]", 0, 0), "tt": ("f32[K,M]", "f32[N,K]", 0, 1)}  # fmt: skip


def sized(t: str, sizes: dict[str, int]) -> str:
    for name, n in sizes.items():
        t = t.replace(name, str(n))
    return t


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("static", [True, False])
def test_matmul_layouts(layout: str, static: bool) -> None:
    x, y, i, j = LAYOUTS[layout]
    for sizes in ({"M": 8, "N": 12, "K": 8}, {"M": 5, "N": 7, "K": 3}, {"M": 17, "N": 6, "K": 9}):
        types = [sized(t, sizes) if static else t for t in (x, y)]
        f = func(types, lambda b, p, q: b.dot(p, q, lhs_contract=(i,), rhs_contract=(j,)))
        low = check(f, sizes, rtol=1e-4, atol=1e-5, target=GPU)
        assert "gpumatmul" in schedules(low)


@pytest.mark.parametrize("sizes", [{"M": 0, "N": 3, "K": 2}, {"M": 3, "N": 4, "K": 0}])
def test_matmul_of_no_elements(sizes: dict[str, int]) -> None:
    check(func(["f32[M,K]", "f32[K,N]"], lambda b, x, y: b.dot(x, y, **DOT)), sizes, target=GPU)


@pytest.mark.parametrize("t", ["f16", "bf16", "f64", "i32", "i64"])
def test_matmul_types(t: str) -> None:
    low = check(func([f"{t}[6,8]", f"{t}[8,9]"], lambda b, x, y: b.dot(x, y, **DOT)), rtol=1e-4, target=GPU)
    assert "gpumatmul" in schedules(low)


def test_matmul_batch_and_several_axes() -> None:
    f = func(
        ["f32[2,5,3,4]", "f32[3,2,4,6]"],
        lambda b, x, y: b.dot(x, y, lhs_contract=(2, 3), rhs_contract=(0, 2), lhs_batch=(0,), rhs_batch=(1,)),
    )
    assert "gpumatmul" in schedules(check(f, rtol=1e-4, atol=1e-5, target=GPU))


def test_matmul_with_what_surrounds_it() -> None:
    def body(b: Any, x: Any, w: Any, c: Any) -> Any:
        y = b.add(b.dot(b.exp(x), w, **DOT), c)
        return b.maximum(y, 0.0), b.cast(y, dtype="f16")

    for n in (8, 7):
        low = check(fused(["f32[B,6]", f"f32[6,{n}]", f"f32[{n}]"], body), {"B": 5}, rtol=1e-4, target=GPU)
        assert schedules(low).count("gpumatmul") == 1 and len(low.funcs) == 2


def test_matmul_of_one_value_with_itself() -> None:
    f = func(["f32[5,6]"], lambda b, x: b.dot(x, x, lhs_contract=(1,), rhs_contract=(1,)))
    check(f, rtol=1e-4, atol=1e-5, target=GPU)


def test_matrix_times_vector_goes_by_rows() -> None:
    low = check(func(["f32[6,16]", "f32[16,1]"], lambda b, x, y: b.dot(x, y, **DOT)), rtol=1e-4, target=GPU)
    assert "gpurowwise" in schedules(low)


def test_tile_choice() -> None:
    """Large tiles only where there are many of them."""
    from fluxir.schedule.contraction import analyse_dot
    from fluxir.schedule.group import group_of

    def tile(types: list[str]) -> tuple[int, int]:
        f = func(types, lambda b, x, y: b.dot(x, y, **DOT))
        group, _ = group_of(f.outs[0].owner)  # type: ignore[arg-type]
        dot = analyse_dot(group)
        assert dot is not None
        s = gpu_matmul.choose(dot, GPU)
        return s.rows, s.cols

    gpu_matmul.SIDE, gpu_matmul.DEPTH, gpu_matmul.BLOCKS = 16, 16, 160  # type: ignore[assignment]
    assert tile(["f32[4096,512]", "f32[512,4096]"]) == (128, 128)
    assert tile(["f32[512,512]", "f32[512,512]"]) == (32, 32)  # 256 blocks; tiles of (32, 64) would be 128
    assert tile(["f32[4096,512]", "f32[512,10]"])[1] == 16
    assert tile(["f64[4096,512]", "f64[512,4096]"]) == (64, 64)
