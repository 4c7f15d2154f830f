"""Kernels of the ops without an element rule, run by the loop interpreter, against the meaning of the ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxir import driver
from fluxir.codegen.checks import assemble
from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import build_func, scalar
from fluxir.ir.core import Attrs, Func, Module
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.interp import Interpreter, interpret
from fluxir.ir.opdef import REGISTRY
from fluxir.ir.types import INDEX, MemType, tensor
from fluxir.ir.verify import verify_module
from fluxir.schedule import radix, scatter, sorting, special
from fluxir.target import parse_target
from tests.schedule_harness import check, func, fused, module, random_inputs

TARGETS = {"cpu": parse_target("cpu:x86-64-v3"), "gpu": parse_target("sm_80")}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: Any) -> None:
    """Few threads: the interpreter runs them one after the other."""
    monkeypatch.setattr(scatter, "PARTS", 64)
    monkeypatch.setattr(scatter, "FILL", 8)
    monkeypatch.setattr(special, "THREADS", 16)
    monkeypatch.setattr(special, "PIECES", {"cpu": 4, "nvptx": 6})
    monkeypatch.setattr(special, "PIECE", 8)
    monkeypatch.setattr(special, "LINE_PIECES", 4)
    monkeypatch.setattr(special, "LINE_PIECE", 3)


SPECIAL = ("cumsum", "cumprod", "cummax", "cummin", "nonzero", "scatter", "sort", "argsort", "topk")
both = pytest.mark.parametrize("target", list(TARGETS))


def drawn(rng: Any, text: str, low: float = -2, high: float = 2) -> Any:
    t = tensor(text)
    shape, d = t.shape, t.dtype
    if d.is_bool:
        return rng.random(shape) < 0.5
    if d.is_float:
        return rng.uniform(low, high, shape).astype(d.numpy)
    return np.asarray(rng.integers(int(max(low, d.limits[0])), int(high) + 1, shape)).astype(d.numpy)


def run(target: str, name: str, types: list[str], arrays: list[Any], **attrs: Any) -> Module:
    return check(func(types, lambda b, *xs: b.emit(name, *xs, **attrs)), arrays=arrays, target=TARGETS[target])


def methods(low: Module) -> str:
    return " ".join(str(f.attrs.get("schedule", "")) for f in low.funcs.values())


@both
@pytest.mark.parametrize("name", SPECIAL)
def test_samples(name: str, target: str) -> None:
    rng = np.random.default_rng(1)
    for s in REGISTRY[name].samples:
        arrays = s.make(rng) if s.make else [drawn(rng, t, s.low, s.high) for t in s.types]
        run(target, name, list(s.types), arrays, **s.attrs)


@both
@pytest.mark.parametrize("name", SPECIAL[:4])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_along_any_axis_of_symbolic_size(name: str, reverse: bool, target: str) -> None:
    rng = np.random.default_rng(2)
    for axis in (0, 1, 2):
        for shape in ((3, 2, 5), (0, 2, 3), (2, 0, 3), (1, 1, 1)):
            run(
                target, name, ["f32[B,T,N]"], [rng.uniform(-2, 2, shape).astype(np.float32)], axis=axis, reverse=reverse
            )


@both
def test_cumulative_over_more_neighbours_than_a_task_takes(target: str) -> None:
    x = np.random.default_rng(3).integers(-9, 9, (3, 70)).astype(np.int32)
    for name in SPECIAL[:4]:
        for reverse in (False, True):
            run(target, name, ["i32[3,70]"], [x], axis=0, reverse=reverse)


@both
def test_cumulative_along_few_long_lines(target: str) -> None:
    rng = np.random.default_rng(10)
    for n in (0, 1, 5, 13):
        x = rng.integers(-9, 9, (n, 2)).astype(np.int32)
        for name in SPECIAL[:4]:
            for reverse in (False, True):
                for size in (str(n), "T"):
                    low = run(target, name, [f"i32[{size},2]"], [x], axis=0, reverse=reverse)
                    assert ("pieces" in methods(low)) == (target == "gpu" and (size == "T" or n > 5))
    x16 = rng.uniform(0, 2, 13).astype(np.float16)
    run(target, "cumsum", ["f16[13]"], [x16], axis=0)


@both
def test_cumulative_spreads_nan_and_keeps_f32_in_half_precision(target: str) -> None:
    x = np.array([1, np.nan, 3, -np.inf], np.float32)
    for name in SPECIAL[:4]:
        run(target, name, ["f32[4]"], [x], axis=0)
    # 2048 + 1 is 2048 in f16: only an f32 accumulator counts on.
    run(target, "cumsum", ["f16[4]"], [np.array([2048, 1, 1, 1], np.float16)], axis=0)


def test_cumulative_may_work_in_place() -> None:
    low = run("cpu", "cumsum", ["f32[4]"], [np.ones(4, np.float32)], axis=0)
    (launch,) = [op for op in low.entry.walk() if op.name == "launch"]
    assert launch.attrs["inplace"] == ((1, 0),)


@both
def test_producers_are_read_through_their_element_rules(target: str) -> None:
    x = np.random.default_rng(4).uniform(-2, 2, (3, 6)).astype(np.float32)
    t = TARGETS[target]
    check(fused(["f32[3,6]"], lambda b, x: b.cumsum(b.mul(x, x), axis=1)), arrays=[x], target=t)
    check(fused(["f32[3,6]"], lambda b, x: b.argsort(b.neg(x), axis=1)), arrays=[x], target=t)
    check(fused(["f32[3,6]"], lambda b, x: b.nonzero(b.gt(x, 0.0), bound=7)), arrays=[x], target=t)
    zeros = np.zeros((3, 6), np.float32)
    index = np.array([2, 0, 2])
    check(
        fused(["f32[3,6]", "i64[3]"], lambda b, u, i: b.scatter(b.const(zeros), b.neg(u), i, axes=(0,), mode="add")),
        arrays=[x, index],
        target=t,
    )


# ---- scatter ----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("mode", ["set", "add", "mul", "min", "max"])
def test_scatter_drops_what_is_out_of_range_and_applies_repeats_in_order(mode: str, target: str) -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    u = np.array([[1, -1], [2, -2], [3, -3], [4, -4], [5, np.nan], [6, -6]], np.float32)
    i = np.array([1, -1, 1, 4, 2, np.iinfo(np.int64).min])
    run(target, "scatter", ["f32[4,2]", "f32[6,2]", "i64[6]"], [x, u, i], axes=(0,), mode=mode)


@both
def test_scatter_order_shows_in_rounding(target: str) -> None:
    """1e8, 1, -1e8 in this order give 0 in f32; in any other they give 1."""
    out = [np.zeros(2, np.float32), np.array([1e8, 1, -1e8], np.float32), np.zeros(3, np.int64)]
    run(target, "scatter", ["f32[2]", "f32[3]", "i64[3]"], out, axes=(0,), mode="add")


@both
def test_scatter_over_symbolic_sizes_and_two_index_tensors(target: str) -> None:
    rng = np.random.default_rng(5)
    for b, n, m in ((3, 5, 2), (1, 70, 4), (2, 0, 3), (0, 3, 3)):
        x = rng.uniform(-2, 2, (b, n, m)).astype(np.float32)
        u = rng.uniform(-2, 2, (3, 2, n)).astype(np.float32)
        i, j = rng.integers(-1, b + 1, (3, 1)).astype(np.int32), rng.integers(-1, m + 1, 2)
        run(
            target, "scatter", ["f32[B,N,M]", "f32[3,2,N]", "i32[3,1]", "i64[2]"], [x, u, i, j], axes=(0, 2), mode="add"
        )
        run(
            target, "scatter", ["f32[B,N,M]", "f32[3,2,N]", "i64[2]", "i32[3,1]"], [x, u, j, i], axes=(2, 0), mode="set"
        )


# ---- sorting ----------------------------------------------------------------------------------------------------------

HARD = np.array([3, np.nan, -np.inf, 0.0, 3, -0.0, np.inf, np.nan, 1, 3], np.float32)


@pytest.fixture(params=["cpu merge", "cpu radix", "gpu rank", "gpu block"])
def way(request: Any, monkeypatch: Any) -> str:
    """The target, with the limits set so that the named method is the one that is tested."""
    if request.param == "gpu block":
        monkeypatch.setattr(sorting, "RANK_LIMIT", 0)
    if request.param == "cpu radix":
        monkeypatch.setattr(radix, "LONG", 0)
    monkeypatch.setattr(sorting, "BLOCK", 4)
    monkeypatch.setattr(sorting, "INSERT_LIMIT", -1)
    monkeypatch.setattr(sorting, "RUN", 2)
    return str(request.param)


@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_stable_and_puts_nan_last(way: str, descending: bool) -> None:
    low = run(way[:3], "argsort", ["f32[10]"], [HARD], axis=0, descending=descending)
    assert way[4:] in methods(low)
    low = run(way[:3], "sort", ["f32[10]"], [HARD], axis=0, descending=descending)


def test_topk_takes_the_first_of_equal_ones(way: str) -> None:
    for k in (0, 1, 4, 10):
        low = run(way[:3], "topk", ["f32[10]"], [HARD], k=k)
        assert way[4:] in methods(low)


def test_sort_of_every_length(way: str) -> None:
    rng = np.random.default_rng(6)
    for n in (0, 1, 2, 3, 7, 8, 13):
        x = rng.integers(-3, 4, (2, n)).astype(np.int16)
        run(way[:3], "argsort", ["i16[2,%d]" % n], [x], axis=1)
        run(way[:3], "sort", ["i16[B,N]"], [x], axis=1, descending=True)
        run(way[:3], "topk", ["i16[B,%d]" % n], [x], k=n // 2)


def test_sort_along_the_first_axis_of_symbolic_size(way: str) -> None:
    rng = np.random.default_rng(7)
    for shape in ((5, 3), (0, 3), (4, 0)):
        run(way[:3], "sort", ["f32[T,N]"], [rng.integers(-2, 2, shape).astype(np.float32)], axis=0)


@pytest.mark.parametrize("t", "bool i8 u8 i16 u16 i32 u32 i64 u64 f16 bf16 f32 f64".split())
@pytest.mark.parametrize("descending", [False, True])
def test_bits_of_every_type_are_in_order(t: str, descending: bool, monkeypatch: Any) -> None:
    """Extremes, both signs, subnormals and random bits (NaN of either sign among them)."""
    monkeypatch.setattr(radix, "LONG", 8)
    d = DTYPES[t]
    bits = np.random.default_rng(9).integers(0, 256, 40 * d.itemsize, dtype=np.uint8)
    x = (bits % 2).astype(bool) if d.is_bool else bits.view(d.numpy)
    low, high = (0, 1) if d.is_bool else (-np.inf, np.inf) if d.is_float else d.limits
    x = np.concatenate([x, np.array([low, high, 0, 1, 0, low], d.numpy)])
    assert "radix" in methods(run("cpu", "argsort", [f"{t}[46]"], [x], axis=0, descending=descending))
    assert "radix or merge" in methods(run("cpu", "argsort", [f"{t}[N]"], [x], axis=0, descending=descending))
    run("cpu", "sort", [f"{t}[N]"], [x[:6]], axis=0, descending=descending)


def test_topk_with_small_k_keeps_the_best_in_order() -> None:
    rng = np.random.default_rng(8)
    assert "insertion" in methods(run("cpu", "topk", ["f32[10]"], [HARD], k=3))
    for k in (0, 1, 2, 6):
        for values in (np.arange(6), np.arange(6)[::-1], np.zeros(6), rng.integers(0, 3, 6)):
            x = np.stack([values, values[::-1]]).astype(np.float32)
            run("cpu", "topk", ["f32[B,6]"], [x], k=k)
        run("cpu", "topk", ["f32[10]"], [HARD], k=k)


# ---- nonzero ----------------------------------------------------------------------------------------------------------


@both
def test_nonzero_fills_up_to_the_bound_and_counts_all(target: str) -> None:
    x = np.random.default_rng(9).random((5, 7)) < 0.5
    for bound in (0, 1, 9, 40):
        for text in ("bool[5,7]", "bool[B,N]"):
            run(target, "nonzero", [text], [x], bound=bound)
    run(target, "nonzero", ["bool[B,N]"], [x[:0]], bound=3)


# ---- the interpreter of GPU grids -------------------------------------------------------------------------------------


def launched(kernel: Func, *arrays: Any) -> None:
    host = build_func(
        "main",
        [v.type for v in kernel.args],
        lambda b, *mems: b.emit("launch", *mems, callee=kernel.name) and None,
        level="host",
    )
    m = module(host, kernel)
    verify_module(m)
    Interpreter(m).call("main", list(arrays))


def grid_kernel(types: list[MemType], body: Any, grid: Any, block: Any) -> Func:
    made = build_func("k", types, body, level="kernel")
    return Func("k", made.block, "kernel", Attrs({"grid": grid, "block": block}))


def test_threads_meet_at_barriers_and_shuffles() -> None:
    """Each block reverses its row through shared memory, then adds its neighbour's lane."""
    mem = MemType(INDEX.dtype, (2, 32))

    def body(b: Any, x: Any, out: Any) -> None:
        r, t = b.block_id(axis=0), b.thread_id(axis=0)
        shared = b.alloc(type=MemType(INDEX.dtype, (32,), "shared"))
        b.store(shared, b.load(x, r, t), t)
        b.barrier()
        e = b.load(shared, b.sub(b.index(31), t))
        b.store(out, b.add(e, b.shuffle_xor(e, mask=1)), r, t)

    x = np.arange(64).reshape(2, 32) ** 2
    out = np.zeros_like(x)
    launched(grid_kernel([mem, mem], body, (2, 1, 1), (32, 1, 1)), x, out)
    rows = x[:, ::-1]
    np.testing.assert_array_equal(out, rows + rows[:, np.arange(32) ^ 1])


def test_a_barrier_that_not_all_threads_reach_is_an_error() -> None:
    def body(b: Any, out: Any) -> None:
        first = b.lt(b.thread_id(axis=0), b.index(1))
        lane = b.thread_id(axis=0)
        b.emit(
            "if",
            first,
            blocks=[b.block([], lambda c: c.barrier()), b.block([], lambda c: c.shuffle_xor(lane, mask=1) and None)],
        )

    with pytest.raises(FluxError) as e:
        launched(grid_kernel([MemType(scalar("f32").dtype, (1,))], body, (1, 1, 1), (4, 1, 1)), np.zeros(1, np.float32))
    assert e.value.code == "FX0516"


# ---- compiled ---------------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "cumsum": (["f16[4,T]"], {"axis": 1}),
    "cummax": (["f32[T,3]"], {"axis": 0, "reverse": True}),
    "sort": (["f32[B,T]"], {"axis": 0}),
    "argsort": (["i16[B,T]"], {"axis": 1, "descending": True}),
    "topk": (["f32[B,T]"], {"k": "K"}),
    "scatter": (["f32[B,T]", "f32[5,B]", "i64[5]"], {"axes": (1,), "mode": "max"}),
    "nonzero": (["f32[B,T]"], {"bound": 20}),
}


def symbolic(name: str) -> Module:
    types, attrs = FORMS[name]
    facts = dims.Facts({"T": (100, dims.INF), "B": (0, dims.INF), "K": (70, 100)})
    with dims.assuming(facts):
        # The operand that says how large K is.
        sizes = ["f32[K]"] if name == "topk" else []
        f = func([*types, *sizes], lambda b, *xs: b.emit(name, *xs[: len(types)], **attrs))
    return Module("m", {"main": f}, facts)


@pytest.mark.parametrize("name", FORMS)
def test_native_code_of_symbolic_forms(name: str) -> None:
    m = symbolic(name)
    compiled = driver.compile_module(m, "cpu", cache=False)
    for sizes in ({"B": 3, "T": 1000, "K": 77}, {"B": 0, "T": 100, "K": 70}, {"B": 130, "T": 100, "K": 100}):
        arrays = random_inputs(m.entry, sizes)
        got = compiled.program.call_flat(arrays)
        for g, w in zip(got, interpret(m, arrays), strict=True):
            np.testing.assert_allclose(g, w, rtol=2e-2 if g.dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", FORMS)
def test_ptx_of_symbolic_forms_assembles(name: str, arch: str) -> None:
    target = driver.as_target(arch)
    code = driver.generate(driver.build(symbolic(name), target).stages["loops"], target)
    assert len(assemble(code.ptx, arch)) == code.ptx.count(".entry") > 0
