"""The matmul template against the tensor interpreter: layouts, edges of tiles, blocks, batches, what is fused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir.ir.interp import interpret
from fluxir.schedule import matmul_choice
from tests.schedule_harness import check, func, fused, module, native


def dot(lc: Any, rc: Any, lb: Any = (), rb: Any = ()) -> Any:
    return lambda b, x, y: b.emit("dot", x, y, lhs_contract=lc, rhs_contract=rc, lhs_batch=lb, rhs_batch=rb)[0]


LAYOUTS = [
    ((1,), (0,), "{M},{K}", "{K},{N}"),
    ((1,), (1,), "{M},{K}", "{N},{K}"),
    ((0,), (0,), "{K},{M}", "{K},{N}"),
    ((0,), (1,), "{K},{M}", "{N},{K}"),
]


@pytest.mark.parametrize(("lc", "rc", "x", "y"), LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "f16"])
@pytest.mark.parametrize("size", [(13, 35, 20), (6, 16, 24), (3, 7, 150)])
def test_layouts_and_edges(lc: Any, rc: Any, x: str, y: str, dtype: str, size: tuple[int, int, int]) -> None:
    n = dict(zip("MNK", size))
    check(func([f"{dtype}[{x.format(**n)}]", f"{dtype}[{y.format(**n)}]"], dot(lc, rc)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {"M": 7, "N": 18, "K": 5},
        {"M": 1, "N": 1, "K": 1},
        {"M": 0, "N": 3, "K": 2},
        {"M": 3, "N": 2, "K": 0},
        {"M": 6, "N": 16, "K": 8},
    ],
)
def test_symbolic(sizes: dict[str, int]) -> None:
    low = check(func(["f32[M,K]", "f32[K,N]"], dot((1,), (0,))), sizes, rtol=1e-4, atol=1e-4)
    assert any("matmul" in f.attrs.get("schedule", "") for f in low.funcs.values())


@pytest.mark.parametrize("t", [("f32[7]", "f32[7,20]", (0,), (0,)), ("f32[20,40]", "f32[40]", (1,), (0,)), ("f32[40]", "f32[40]", (0,), (0,)), ("f32[1,33]", "f32[9,33]", (1,), (1,)), ("f16[3,40]", "f16[40]", (1,), (0,)), ("i32[3,40]", "i32[40]", (1,), (0,))])  # fmt: skip
def test_matrix_times_vector_is_a_reduction(t: Any) -> None:
    low = check(func(list(t[:2]), dot(t[2], t[3])), rtol=1e-4, atol=1e-4)
    assert not any("pack" in name for name in low.funcs)


def test_batches_and_several_axes() -> None:
    check(func(["f32[2,9,12]", "f32[2,12,17]"], dot((2,), (1,), (0,), (0,))), rtol=1e-4, atol=1e-4)
    check(func(["f32[B,9,2,6]", "f32[B,6,17]"], dot((3,), (1,), (0,), (0,))), rtol=1e-4, atol=1e-4)
    check(func(["f32[9,2,B,6]", "f32[17,B,6]"], dot((3,), (2,), (2,), (1,))), rtol=1e-4, atol=1e-4)
    check(func(["f32[2,3,5,7]", "f32[5,7,4,6]"], dot((2, 3), (0, 1))), rtol=1e-4, atol=1e-4)
    check(func(["f32[5,9,7]", "f32[7,20,5]"], dot((0, 2), (2, 0))), rtol=1e-4, atol=1e-4)
    check(func(["f32[40]", "f32[60]"], dot((), ())), rtol=1e-4)


def test_epilogue_and_prologue() -> None:
    def body(b: Any, x: Any, w: Any, bias: Any) -> Any:
        y = b.add(b.dot(b.mul(x, x), w, lhs_contract=(1,), rhs_contract=(0,)), bias)
        return b.maximum(y, b.const(0.0, dtype="f32")), b.exp(b.neg(b.mul(y, y)))

    low = check(fused(["f32[B,20]", "f32[20,37]", "f32[37]"], body, "dot"), {"B": 9}, rtol=1e-4, atol=1e-4)
    assert not any(op.name == "alloc" and op.attrs["type"].shape[-2:] == (37,) for op in low.entry.walk())


def test_epilogue_over_several_axes() -> None:
    def body(b: Any, x: Any, w: Any, bias: Any) -> Any:
        return b.add(b.dot(x, w, lhs_contract=(2,), rhs_contract=(0,)), bias)

    check(fused(["f32[2,9,20]", "f32[20,37]", "f32[2,9,37]"], body, "dot"), rtol=1e-4, atol=1e-4)
    check(fused(["f32[2,9,20]", "f32[20,37]", "f32[9,1]"], body, "dot"), rtol=1e-4, atol=1e-4)
    check(
        fused(
            ["f32[9,20]", "f32[20,3,7]", "f32[3,1]"],
            lambda b, x, w, c: b.add(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,)), c),
            "dot",
        ),
        rtol=1e-4,
        atol=1e-4,
    )


def test_one_argument_on_both_sides_and_after() -> None:
    def body(b: Any, x: Any) -> Any:
        return b.add(b.dot(x, x, lhs_contract=(1,), rhs_contract=(1,)), x)

    check(fused(["f32[20,20]"], body, "dot"), rtol=1e-4, atol=1e-4)


def test_result_read_elsewhere_is_computed_once() -> None:
    def body(b: Any, x: Any, w: Any) -> Any:
        y = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
        return b.add(y, b.transpose(y, perm=(1, 0)))

    low = check(fused(["f32[20,30]", "f32[30,20]"], body, "dot"), rtol=1e-4, atol=1e-4)
    assert sum(op.name == "launch" for op in low.entry.walk()) >= 2


def test_two_dots_in_one_group() -> None:
    def body(b: Any, x: Any, w: Any, v: Any) -> Any:
        return b.dot(b.exp(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))), v, lhs_contract=(1,), rhs_contract=(0,))

    check(fused(["f32[20,30]", "f32[30,20]", "f32[20,25]"], body, "dot"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(200, 150, 700), (97, 33, 513), (64, 64, 64), (5, 300, 1025), (300, 10, 96)])
@pytest.mark.parametrize("static", [True, False])
def test_native_with_blocks(size: tuple[int, int, int], static: bool) -> None:
    m, n, k = size
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    types = [f"f32[{m},{k}]", f"f32[{k},{n}]"] if static else ["f32[M,K]", "f32[K,N]"]
    f = module(func(types, dot((1,), (0,))))
    got = np.asarray(native(f)(x, y)).reshape(m, n)
    np.testing.assert_allclose(got, interpret(f, [x, y])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "lc", "rc"),
    [
        ((20, 37), (1,), (0,)),
        ((37, 20), (1,), (1,)),
        ((2, 10, 37), (1, 2), (0, 1)),
        ((10, 37, 2), (1, 2), (2, 0)),
        ((10, 5, 2, 3), (1, 2), (2, 0)),
    ],
)
def test_constant_operands_are_packed_when_compiling(shape: Any, lc: Any, rc: Any) -> None:
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x = "f32[B," + ",".join(str(shape[i]) for i in rc) + "]"
    low = check(
        func([x], lambda b, x: b.dot(x, b.const(w), lhs_contract=lc, rhs_contract=rc)), {"B": 8}, rtol=1e-4, atol=1e-4
    )
    assert sum(op.name == "launch" for op in low.entry.walk()) == 1
    assert sum(op.name == "constant" for op in low.entry.walk()) == 1


@pytest.mark.parametrize("rows", [1, 3, 9, 40])
def test_few_rows_of_a_large_matrix(rows: int) -> None:
    """The matrix is more than half the second cache: it is read in long pieces, in place or copied many panels at a time."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, 301), np.float32), rng.standard_normal((301, 531), np.float32)
    f = module(func([f"f32[{rows},301]", "f32[301,531]"], dot((1,), (0,))))
    np.testing.assert_allclose(np.asarray(native(f)(x, y)).reshape(rows, 531), x @ y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("lc", "rc", "x", "y"), LAYOUTS)
def test_large_operands_in_every_layout(lc: Any, rc: Any, x: str, y: str) -> None:
    n = {"M": 151, "N": 75, "K": 700}
    a, b = x.format(**n), y.format(**n)
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal([int(d) for d in s.split(",")], np.float32) for s in (a, b))
    want = (left if lc == (1,) else left.T) @ (right if rc == (0,) else right.T)
    got = native(module(func([f"f32[{a}]", f"f32[{b}]"], dot(lc, rc))))(left, right)
    np.testing.assert_allclose(np.asarray(got).reshape(151, 75), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("rows", "k"), [(1, 37), (2, 64), (3, 37), (4, 64)])
def test_few_rows_along_k_are_dot_products(rows: int, k: int) -> None:
    low = check(func([f"f32[{rows},{k}]", f"f32[203,{k}]"], dot((1,), (1,))), rtol=1e-4, atol=1e-4)
    assert any("gemv" in f.attrs.get("schedule", "") for f in low.funcs.values())


def test_matrix_times_vector_with_what_follows() -> None:
    def body(b: Any, a: Any, v: Any, c: Any) -> Any:
        y = b.dot(a, v, lhs_contract=(1,), rhs_contract=(0,))
        return b.exp(b.neg(b.mul(y, y))), b.add(y, c)

    for column, size in (("f32[24]", "f32[21]"), ("f32[24,1]", "f32[21,1]"), ("f32[24,1]", "f32[1]")):
        low = check(fused(["f32[21,24]", column, size], body, "dot"), rtol=1e-4, atol=1e-4)
        assert any("gemv" in f.attrs.get("schedule", "") for f in low.funcs.values())
    check(fused(["f32[M,K]", "f32[K]", "f32[M]"], body, "dot"), {"M": 19, "K": 21}, rtol=1e-4, atol=1e-4)


def test_operand_that_a_loop_does_not_change_is_packed_before_it() -> None:
    def body(b: Any, x: Any, w: Any) -> Any:
        inner = b.block([x.type, w.type], lambda ib, h, w: ib.tanh(ib.dot(h, w, lhs_contract=(1,), rhs_contract=(0,))))
        return b.emit("scan", x, w, blocks=[inner], carry=1, consts=1, length=3)[0]

    low = check(func(["f32[20,40]", "f32[40,40]"], body), rtol=1e-4, atol=1e-4)
    before = [op.attrs["callee"] for op in low.entry.block.ops if op.name == "launch"]
    inside = [op.attrs["callee"] for op in low.entry.walk() if op.name == "launch"]
    assert any("pack" in name for name in before)
    assert sum("pack" in name for name in inside) == sum("pack" in name for name in before)


@pytest.mark.parametrize("tile", [None, (3, 3)])
@pytest.mark.parametrize(("m", "n", "k"), [(29, 70, 5), (12, 96, 8), (21, 72, 15), ("B", 150, 3), (100, 53, 7)])
def test_a_state_is_updated_along_rows(m: Any, n: int, k: int, tile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimiser's step behind a gradient: the sums of a row of tiles wait for each other; rows and columns left over, and
    rows whose number is not known, have tiles of their own."""
    if tile is not None:
        monkeypatch.setattr(matmul_choice, "_tile", lambda *_: tile)

    def body(b: Any, x: Any, y: Any, state: Any, w: Any) -> Any:
        g = b.dot(x, y, lhs_contract=(0,), rhs_contract=(0,))
        new = b.add(b.mul(state, 0.5), b.mul(g, g))
        return new, b.sub(w, b.div(g, b.add(new, 1.0)))

    types = [f"f32[{k},{m}]", f"f32[{k},{n}]", f"f32[{m},{n}]", f"f32[{m},{n}]"]
    low = check(fused(types, body, kind="dot"), {"B": 31})
    assert any("strips=True" in f.attrs["schedule"] for f in low.funcs.values() if f.level == "kernel")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_small_floats_stay_small_where_reading_them_takes_the_time(dtype: str) -> None:
    from fluxir.ir.dtypes import DTYPES

    w = np.random.default_rng(0).standard_normal((70, 900)).astype(DTYPES[dtype].numpy)
    for rows, stored in ((3, dtype), (40, "f32")):
        f = func([f"{dtype}[{rows},70]"], lambda b, x: b.dot(x, b.const(w), lhs_contract=(1,), rhs_contract=(0,)))
        low = check(f, rtol=2e-2, atol=2e-2)
        (packed,) = [op for op in low.entry.walk() if op.name == "constant"]
        assert packed.result.type.dtype.name == stored


def test_square_operands_are_not_what_is_updated() -> None:
    """Only what is read where a result is written is asked for ahead, and decides the order of tiles."""
    low = check(func(["f32[64,64]", "f32[64,64]"], dot((1,), (0,))), rtol=1e-4, atol=1e-4)
    assert not any(op.name == "prefetch" for f in low.funcs.values() for op in f.walk())
    added = fused(
        ["f32[64,64]", "f32[64,64]", "f32[64,64]"],
        lambda b, x, w, c: b.add(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,)), c),
        "dot",
    )
    low = check(added, rtol=1e-4, atol=1e-4)
    assert any(op.name == "prefetch" for f in low.funcs.values() for op in f.walk())
