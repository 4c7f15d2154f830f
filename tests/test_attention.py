"""Attention: found where it is written out, gathered into one group, and its CPU kernels against numpy, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.opdef import REGISTRY
from fluxir.ops.approx.exponential import exp2_of_negative
from fluxir.ops.views import view_of
from fluxir.schedule import attention_decode_cpu, attention_grad_cpu, attention_panels
from fluxir.schedule.attention import read
from fluxir.schedule.attention_mask import read_masks
from fluxir.schedule.group import group_of
from tests.schedule_harness import check, func

Array = np.ndarray[Any, Any]
EPS = {"f32": 2.0**-23, "f64": 2.0**-52, "bf16": 2.0**-8, "f16": 2.0**-11}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: Any) -> None:
    """Several blocks, tasks and chunks already for few rows."""
    monkeypatch.setattr(attention_panels, "TASK_ROWS", 32)
    monkeypatch.setattr(attention_panels, "BLOCK", 12)
    monkeypatch.setattr(attention_grad_cpu, "BLOCK", 12)
    monkeypatch.setattr(attention_decode_cpu, "CHUNK", 16)
    monkeypatch.setattr(attention_decode_cpu, "LONG_CHUNK", 32)


def reference(q: Array, k: Array, v: Array, seen: Any = True, bias: Any = 0.0, fill: float = -np.inf) -> Array:
    """In f64; a row that sees nothing gives 0."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    if q.ndim > 2 and q.shape[-3] != k.shape[-3]:
        k, v = (np.repeat(x, q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]) + bias
    s = np.where(seen, s, fill)
    top = np.max(s, -1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    result: Array = e / np.where(total == 0, 1, total) @ v
    return result


def draw(*shape: int, dtype: str = "f32", seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(_numpy(dtype))


def _numpy(dtype: str) -> Any:
    from fluxir.ir.dtypes import DTYPES

    return DTYPES[dtype].numpy


def heads(s: int, t: int, d: int, e: int = 0, q_heads: int = 2, kv_heads: int = 2, dtype: str = "f32") -> list[Array]:
    shapes = (2, q_heads, s, d), (2, kv_heads, t, d), (2, kv_heads, t, e or d)
    return [draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def compiled(f: Callable[..., Any], *arrays: Array) -> Any:
    return fx.jit(f).lower(*[_spec(x) for x in arrays]).compile(cache=False)


def _spec(x: Array) -> Any:
    name = next(n for n in ("f32", "f64", "bf16", "f16", "i64", "bool") if _numpy(n) == x.dtype)
    return getattr(fx, name)[x.shape] if x.shape else getattr(fx, name)


def kernels(f: Callable[..., Any], *specs: Any, target: str = "cpu:x86-64-v3") -> list[str]:
    ops = fx.jit(f).lower(*specs).stage("fused", target).entry.ops
    return [o.attrs["kind"] if o.name == "fused" else o.name for o in ops if o.name not in ("const", "reshape")]


# ---- the forward kernel ------------------------------------------------------------------------------------------------


def positions(s: int, t: int) -> tuple[Array, Array]:
    return np.arange(s)[:, None], np.arange(t)[None]


def masks_of(kind: str, s: int, t: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of fx.nn.attention, and the same for `reference`."""
    rng = np.random.default_rng(7)
    row, column = positions(s, t)
    lengths = np.array([[t // 2], [t]])
    given = rng.random((2, 1, s, t)) < 0.5
    padding = rng.random((2, 1, 1, t)) < 0.7
    bias = rng.normal(size=(2, s, t)).astype(np.float32)
    return {
        "none": ({}, {}),
        "causal": ({"is_causal": True}, {"seen": column <= row}),
        "window": ({"is_causal": True, "window": 5}, {"seen": (column <= row) & (column > row - 5)}),
        "lengths": ({"lengths": lengths}, {"seen": column < lengths[..., None, None]}),
        "given": ({"mask": given}, {"seen": given}),
        "padding": ({"mask": padding}, {"seen": padding}),
        "bias": ({"bias": bias}, {"bias": bias}),
        "all": (
            {"bias": bias, "mask": given, "is_causal": True, "lengths": lengths},
            {"bias": bias, "seen": given & (column <= row) & (column < lengths[..., None, None])},
        ),
    }[kind]


MASKS = ("none", "causal", "window", "lengths", "given", "padding", "bias", "all")


def sometimes(names: Sequence[str], *always: str) -> list[Any]:
    """Parameters of which some are tried in every run."""
    return [n if n in always else pytest.param(n, marks=pytest.mark.deep) for n in names]


@pytest.mark.parametrize("kind", sometimes(MASKS, "window", "all"))
@pytest.mark.parametrize("s", [37, 2])
def test_masks(kind: str, s: int) -> None:
    """Panels and the streaming kernel for few queries; blocks that nothing sees are left out, rows of nothing give 0."""
    arrays = heads(s, 41, 20)
    options, want = masks_of(kind, s, 41)
    got = compiled(lambda q, k, v: fx.nn.attention(q, k, v, **options), *arrays)(*arrays)
    np.testing.assert_allclose(got, reference(*arrays, **want), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("s", [1, 20])
def test_keys_beyond_the_last_one_seen_have_no_part(s: int) -> None:
    """Tiles of keys end inside of what is seen: a large score beyond is no maximum, and NaN there stays there."""
    q, k, v = heads(s, 41, 8)
    lengths = np.array([[1], [15]])
    for i, n in enumerate(lengths[:, 0]):
        k[i, :, n : n + 3], k[i, :, n + 3 :] = 300 * np.sign(q[i, :, -1:]), np.nan
    seen = np.arange(41) < lengths[..., None, None]
    got = compiled(lambda q, k, v: fx.nn.attention(q, k, v, lengths=lengths), q, k, v)(q, k, v)
    np.testing.assert_allclose(got, reference(q, np.nan_to_num(k), v, seen), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("s", "t", "d", "e", "dtype"),
    [
        (1, 1, 1, 1, "f32"),
        (33, 50, 33, 5, "f32"),
        (20, 25, 24, 16, "bf16"),
        (3, 33, 17, 9, "f64"),
        *[
            pytest.param(*case, marks=pytest.mark.deep)
            for case in (
                (16, 12, 8, 8, "f32"), (17, 13, 64, 64, "f32"), (5, 30, 12, 70, "f64"), (20, 25, 24, 16, "f16"),
                (1, 100, 64, 40, "f32"), (1, 40, 32, 32, "bf16"), (2, 300, 128, 256, "f32"), (40, 30, 256, 200, "f32"),
            )
        ],
    ],
)  # fmt: skip
def test_sizes_and_types(s: int, t: int, d: int, e: int, dtype: str) -> None:
    arrays = heads(s, t, d, e, dtype=dtype)
    got = compiled(lambda q, k, v: fx.nn.attention(q, k, v), *arrays)(*arrays)
    bound = EPS[dtype] * (8 + d)
    np.testing.assert_allclose(got.astype(np.float64), reference(*arrays), rtol=bound, atol=4 * bound)


@pytest.mark.parametrize("s", [1, 21])
def test_heads_that_share_keys(s: int) -> None:
    arrays = heads(s, 35, 16, q_heads=6, kv_heads=2)
    got = compiled(lambda q, k, v: fx.nn.attention(q, k, v), *arrays)(*arrays)
    np.testing.assert_allclose(got, reference(*arrays), rtol=1e-5, atol=1e-6)
    assert fx.nn.attention(arrays[0], arrays[1][:, :1], arrays[2][:, :1]).shape == arrays[0].shape


def test_symbolic_sizes() -> None:
    """One program for all lengths, empty ones too."""
    shape = fx.f32["B", 2, "S", 16], fx.f32["B", 2, "T", 16], fx.f32["B", 2, "T", 16]
    program = fx.jit(lambda q, k, v: fx.nn.attention(q, k, v, is_causal=True)).lower(*shape).compile(cache=False)
    for b, s, t in ((2, 19, 40), (1, 40, 19), (3, 1, 1), (1, 1, 13)):
        arrays = [draw(b, 2, n, 16, seed=n) for n in (s, t, t)]
        row, column = positions(s, t)
        np.testing.assert_allclose(program(*arrays), reference(*arrays, seen=column <= row), rtol=1e-5, atol=1e-6)


def test_a_cache_with_a_length_of_its_own() -> None:
    """The step of a decoder: one query, a cache of fixed size of which the first `n` positions are filled, others are NaN."""
    q, k, v = heads(1, 64, 16)

    def step(q: Any, k: Any, v: Any, n: Any) -> Any:
        return fx.nn.attention(q, k, v, lengths=n)

    program = fx.jit(step).lower(*[fx.f32[x.shape] for x in (q, k, v)], fx.i64).compile(cache=False)
    for n in (0, 1, 17, 64):
        known, values = k.copy(), v.copy()
        known[:, :, n:] = values[:, :, n:] = np.nan
        got = program(q, known, values, np.int64(n))
        np.testing.assert_allclose(got, reference(q, k[:, :, :n], v[:, :, :n]), rtol=1e-5, atol=1e-6)


def test_infinities_and_nan() -> None:
    q, k, v = heads(5, 20, 8)
    k[0, 0, 3] = np.nan
    v[0, 1, 2, 4] = np.inf
    got = compiled(lambda q, k, v: fx.nn.attention(q, k, v), q, k, v)(q, k, v)
    with np.errstate(all="ignore"):
        want = reference(q, k, v)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    large = compiled(lambda q, k, v: fx.nn.attention(q * 300, k * 300, v), *heads(5, 20, 8))(*heads(5, 20, 8))
    assert np.isfinite(large).all()


def test_results_do_not_depend_on_threads() -> None:
    from fluxir import config

    arrays = heads(70, 70, 16)
    program = compiled(
        fx.grad(lambda q, k, v: fx.sum(fx.nn.attention(q, k, v, is_causal=True) ** 2), argnums=(0, 1, 2)), *arrays
    )
    results = []
    for threads in (1, 2, 3):
        with config.override(num_threads=threads):
            results.append([np.asarray(x).tobytes() for x in program(*arrays)])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", ["attention", "attention_grad"])
def test_kernels_interpreted(name: str) -> None:
    """The loop IR itself, where out of bounds is an error, against the op's meaning."""
    from tests.op_harness import inputs_of

    for case in REGISTRY[name].samples:
        if "f16" in case.types[0] or case.types[0].startswith("f32[0"):
            continue
        low = check(func(case.types, lambda b, *xs, a=case.attrs: b.emit(name, *xs, **a)), arrays=inputs_of(case))
        assert [n for n in low.funcs if "attention" in n]


def test_weights_are_accurate() -> None:
    from fluxir.ir.build import Builder, build_func
    from fluxir.ir.core import Module
    from fluxir.ir.interp import interpret
    from fluxir.ir.types import tensor

    def body(b: Builder, x: Any) -> Any:
        return exp2_of_negative(b, x)[0]

    for dtype, low in (("f32", -126.0), ("f64", -1022.0)):
        x = np.concatenate([np.linspace(low, 0, 5000), [-np.inf, low - 10, -0.0]]).astype(_numpy(dtype))
        f = build_func("f", [tensor(f"{dtype}[{x.size}]")], body, ["x"])
        (got,) = interpret(Module("m", {"f": f}), [x])
        want = np.exp2(x.astype(np.longdouble))
        assert np.max(np.abs(got[:-3] - want[:-3]) / want[:-3]) < 2 * EPS[dtype]
        assert got[-3] == got[-2] == 0 and got[-1] == 1


# ---- the gradient --------------------------------------------------------------------------------------------------------

OLD_WAY = "derive,inline,expand[whole=false],simplify,fold,cse,fuse"


def reference_gradient(
    q: Array, k: Array, v: Array, weight: Array, seen: Any = True, bias: Any = 0.0, fill: float = -np.inf
) -> list[Array]:
    """Of sum(attention * weight), in f64."""
    q64, k64, v64, weight = (x.astype(np.float64) for x in (q, k, v, weight))
    group = q.shape[-3] // k.shape[-3]
    k64, v64 = (np.repeat(x, group, -3) for x in (k64, v64))
    scale = 1 / np.sqrt(q.shape[-1])
    s = np.where(seen, q64 @ np.swapaxes(k64, -1, -2) * scale + bias, fill)
    top = np.max(s, -1, keepdims=True)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    p = e / np.maximum(e.sum(-1, keepdims=True), 1e-300)
    dp = weight @ np.swapaxes(v64, -1, -2)
    ds = np.where(seen, p * (dp - (p * dp).sum(-1, keepdims=True)), 0) * scale
    keys, values = np.swapaxes(ds, -1, -2) @ q64, np.swapaxes(p, -1, -2) @ weight
    shared = [x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2) for x in (keys, values)]
    return [ds @ k64, *shared]


def gradients_agree(
    f: Callable[..., Any], arrays: list[Array], argnums: tuple[int, ...] = (0, 1, 2), tol: float = 2e-5, **want: Any
) -> None:
    """The compiled gradient against `reference_gradient`; both kernels are in the program, and no other product."""
    weight = draw(
        *arrays[0].shape[:-1], arrays[2].shape[-1], dtype="f64" if arrays[0].dtype == np.float64 else "f32", seed=9
    )
    lowered = fx.jit(fx.grad(lambda *xs: fx.sum(f(*xs) * weight), argnums=argnums)).lower(*[_spec(x) for x in arrays])
    names = [o.attrs["kind"] if o.name == "fused" else o.name for o in lowered.stage("fused").entry.ops]
    assert "attention_grad" in names and "dot" not in names, names
    expected = reference_gradient(*arrays, weight, **want)
    for g, i in zip(lowered.compile(cache=False)(*arrays), argnums, strict=True):
        np.testing.assert_allclose(g, expected[i], rtol=tol, atol=tol * np.max(np.abs(expected[i])))


@pytest.mark.parametrize("kind", sometimes(MASKS, "window", "all"))
def test_gradient(kind: str) -> None:
    options, want = masks_of(kind, 37, 41)
    gradients_agree(lambda q, k, v: fx.nn.attention(q, k, v, **options), heads(37, 41, 20), **want)


@pytest.mark.parametrize(
    ("arrays", "argnums"),
    [
        (heads(21, 35, 16, q_heads=6, kv_heads=2), (0, 1, 2)),
        pytest.param(heads(9, 7, 5, 3), (0, 1, 2), marks=pytest.mark.deep),
        pytest.param(heads(20, 30, 33, 20, dtype="f64"), (0, 1, 2), marks=pytest.mark.deep),
        pytest.param(heads(20, 30, 16), (1,), marks=pytest.mark.deep),
        pytest.param(heads(20, 30, 16), (0,), marks=pytest.mark.deep),
    ],
)
def test_gradient_of_shapes(arrays: list[Array], argnums: tuple[int, ...]) -> None:
    gradients_agree(
        lambda q, k, v: fx.nn.attention(q, k, v), arrays, argnums, 1e-12 if arrays[0].dtype == np.float64 else 2e-5
    )


def test_gradient_of_a_bias_and_second_order() -> None:
    arrays = [*heads(6, 7, 4, dtype="f64"), draw(6, 7, dtype="f64")]

    def f(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return fx.sum(fx.nn.attention(q, k, v, bias=bias, is_causal=True) ** 2)

    direction = draw(6, 7, dtype="f64", seed=3)
    step = 1e-6
    up, down = (f(*arrays[:3], arrays[3] + h * direction) for h in (step, -step))
    (slope,) = compiled(lambda *xs: (fx.grad(f, argnums=3)(*xs),), *arrays)(*arrays)
    np.testing.assert_allclose(np.sum(slope * direction), (up - down) / (2 * step), rtol=1e-6)

    def along(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return fx.jvp(lambda q: fx.grad(f)(q, k, v, bias), (q,), (fx.ones_like(q),))[1]

    one = np.ones_like(arrays[0])
    up, down = (fx.grad(f)(arrays[0] + h * one, *arrays[1:]) for h in (step, -step))
    np.testing.assert_allclose(compiled(along, *arrays)(*arrays), (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


def test_vmap_is_one_more_batch_axis() -> None:
    q, k, v = draw(3, 2, 9, 8), draw(2, 11, 8, seed=1), draw(3, 2, 11, 8, seed=2)
    f = fx.vmap(lambda q, v: fx.nn.attention(q, k, v))
    assert kernels(f, fx.f32[q.shape], fx.f32[v.shape]) == ["attention"]
    np.testing.assert_allclose(fx.jit(f)(q, v), reference(q, np.broadcast_to(k, v.shape), v), rtol=1e-5, atol=1e-6)


# ---- finding and gathering --------------------------------------------------------------------------------------------------


def lower_triangle(s: int, t: int) -> Any:
    return fx.expand_dims(fx.arange(s), 1) >= fx.arange(t)


def exponentials(q: Any, k: Any, v: Any) -> Any:
    s = q @ fx.matrix_transpose(k) * 0.25
    e = fx.exp(s - fx.max(s, axis=-1, keepdims=True))
    return e / fx.sum(e, axis=-1, keepdims=True) @ v


WRITTEN_OUT = {
    "softmax": lambda q, k, v: fx.nn.softmax(q @ fx.matrix_transpose(k) * 0.25) @ v,
    "divided": lambda q, k, v: fx.nn.softmax(q @ fx.matrix_transpose(k) / 4.0) @ v,
    "exponentials": exponentials,
    "causal": lambda q, k, v: fx.nn.softmax(
        fx.where(lower_triangle(37, 41), q @ fx.matrix_transpose(k) * 0.25, -fx.inf)
    ) @ v,
    "finite fill": lambda q, k, v: fx.nn.softmax(
        fx.where(lower_triangle(37, 41), q @ fx.matrix_transpose(k) * 0.25, -1e9)
    ) @ v,
    "bias": lambda q, k, v: fx.nn.softmax(
        fx.where(lower_triangle(37, 41), q @ fx.matrix_transpose(k) * 0.25 + fx.arange(41.0, dtype="f32") * 0.1, -fx.inf)
    ) @ v,
    "einsum": lambda q, k, v: fx.einsum("bhst,bhtd->bshd", fx.nn.softmax(fx.einsum("bhsd,bhtd->bhst", q, k) * 0.25), v),
}  # fmt: skip


@pytest.mark.parametrize("name", sometimes(list(WRITTEN_OUT), "exponentials", "einsum"))
def test_written_out(name: str) -> None:
    arrays = heads(37, 41, 16)
    lowered = fx.jit(WRITTEN_OUT[name]).lower(*[fx.f32[x.shape] for x in arrays])
    assert kernels(WRITTEN_OUT[name], *[fx.f32[x.shape] for x in arrays]) == ["attention"]
    want = lowered.compile(cache=False, passes=OLD_WAY)(*arrays)
    np.testing.assert_allclose(lowered.compile(cache=False)(*arrays), want, rtol=1e-5, atol=1e-6)


def test_written_out_gradient_is_fused() -> None:
    row, column = positions(37, 41)
    gradients_agree(WRITTEN_OUT["finite fill"], heads(37, 41, 16), seen=column <= row, fill=-1e9)


def test_rows_of_nothing_stay_nan_where_written_out() -> None:
    arrays = heads(3, 4, 8)
    seen = np.array([[True] * 4, [False] * 4, [True] * 4])

    def f(q: Any, k: Any, v: Any) -> Any:
        return fx.nn.softmax(fx.where(seen, q @ fx.matrix_transpose(k), -fx.inf)) @ v

    assert kernels(f, *[fx.f32[x.shape] for x in arrays]) == ["attention"]
    got = compiled(f, *arrays)(*arrays)
    assert np.isnan(got[:, :, 1]).all() and np.isfinite(got[:, :, [0, 2]]).all()


@pytest.mark.parametrize(
    "f",
    [
        lambda q, k, v: (lambda p: (p @ v, p))(fx.nn.softmax(q @ fx.matrix_transpose(k))),  # the weights are a result
        lambda q, k, v: fx.nn.softmax(q @ fx.matrix_transpose(k), axis=-2) @ v,
        lambda q, k, v: fx.nn.softmax(fx.tanh(q @ fx.matrix_transpose(k))) @ v,
        lambda q, k, v: fx.nn.softmax(fx.where(lower_triangle(8, 8), q @ fx.matrix_transpose(k), v[..., :1])) @ v,
    ],
)
def test_what_is_not_attention_is_left_alone(f: Callable[..., Any]) -> None:
    assert "attention" not in kernels(f, *[fx.f32[2, 2, 8, 8]] * 3)


def test_a_block_has_no_kernel_for_its_heads() -> None:
    """Heads split off one product and put together again, masks of positions: nothing but products, and the attention."""

    def block(x: Any, w: Any, o: Any) -> Any:
        b, s, d = x.shape
        q, k, v = (fx.permute_dims(fx.reshape(t, (b, s, 4, 16)), (0, 2, 1, 3)) for t in fx.split(x @ w, 3, axis=-1))
        a = fx.nn.attention(q, k, v, is_causal=True, window=7)
        return fx.reshape(fx.permute_dims(a, (0, 2, 1, 3)), (b, s, d)) @ o

    specs = fx.f32["B", "S", 64], fx.f32[64, 192], fx.f32[64, 64]
    assert kernels(block, *specs) == ["dot", "attention", "dot"]
    assert "attention" not in kernels(block, *specs, target="sm_80")
    x, w, o = draw(2, 20, 64), draw(64, 192, seed=1) / 8, draw(64, 64, seed=2) / 8
    lowered = fx.jit(block).lower(*specs)
    want = lowered.compile(cache=False, passes=OLD_WAY)(x, w, o)
    np.testing.assert_allclose(lowered.compile(cache=False)(x, w, o), want, rtol=1e-4, atol=1e-5)


def test_masks_of_positions_are_bounds() -> None:
    """Nothing is evaluated for them; an alibi bias is, from counters and not from memory."""

    def f(q: Any, k: Any, v: Any, n: Any) -> Any:
        slope = fx.astype(fx.expand_dims(fx.arange(40), 1) - fx.arange(40), "f32") * -0.1
        return fx.nn.attention(q, k, v, bias=slope, lengths=n, window=9, is_causal=True)

    (op,) = [
        o
        for o in fx.jit(f).lower(*[fx.f32[2, 2, 40, 16]] * 3, fx.i64[2, 1]).stage("fused").entry.ops
        if o.name == "fused"
    ]
    found = read(group_of(op)[0], "attention")
    assert found is not None
    masks = read_masks(found)
    assert sorted((m.upper, m.slope) for m in masks.bounds) == [(False, 1), (True, 0), (True, 1)]
    assert not masks.conditions and len(masks.biases) == 1
    assert all(len(a.type.shape) < 3 or a.type.shape[-1] == 16 for a in found.group.args)


def test_views() -> None:
    from fluxir.ir.build import Builder

    b = Builder()
    (x,) = func(["f32[B,6,24]"], lambda b, x: x).args
    y = b.transpose(b.reshape(b.slice(x, start=(0, 0, 8), limit=("B", 6, 16)), shape=("B", 6, 2, 4)), perm=(0, 2, 1, 3))
    view = view_of(y, lambda v: v is x)
    assert view is not None and (view.offset, view.strides) == (8, (144, 4, 24, 1))
    assert view_of(b.reshape(y, shape=("B", 12, 4)), lambda v: v is x) is None  # heads do not follow rows in memory


@pytest.mark.parametrize("s", [20, 1])
def test_nothing_to_see_at_all(s: int) -> None:
    """A softmax of no elements times no values is 0, where it was written out too."""
    f = WRITTEN_OUT["softmax"]
    types = fx.f32[2, 2, s, 16], fx.f32[2, 2, "T", 16], fx.f32[2, 2, "T", 16]
    assert kernels(f, *types) == ["attention"]
    program = fx.jit(f).lower(*types).compile(cache=False)
    empty = draw(2, 2, 0, 16)
    np.testing.assert_array_equal(program(draw(2, 2, s, 16), empty, empty), 0)
