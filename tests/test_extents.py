"""Sizes that are known only at run time: `fx.extent`, masks as indices, `nonzero`, `unique`, `compress` in traced programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.config import override
from fluxir.errors import FluxError
from fluxir.ir.dims import Facts, assuming, prove_le, symbol
from fluxir.ir.interp import interpret
from fluxir.ir.parser import parse_module
from fluxir.ir.printer import print_module
from fluxir.ir.specialise import specialise
from fluxir.ops.bounds import at_most


def picked(x: Any) -> Any:
    y = x[x > 0]
    return fx.sort(y) * 2, fx.nonzero(x > 1)[0], fx.sum(y), fx.concat([y, y[:0], x.ravel()])


def picked_np(x: Any) -> Any:
    y = x[x > 0]
    return np.sort(y) * 2, np.nonzero(x > 1)[0], y.sum(), np.concatenate([y, x.ravel()])


def nested(x: Any) -> Any:
    """A size of a size, and shape arithmetic with both."""
    y = x[x > -1]
    z = y[y < 1]
    (n,) = z.shape
    return (
        fx.broadcast_to(fx.arange(n)[:, None], (n, 2)),
        fx.outer(y, z),
        fx.zeros((y.shape[0] - n + 3,)),
        fx.extent(fx.sum(z > 0)),
    )


def nested_np(x: Any) -> Any:
    y = x[x > -1]
    z = y[y < 1]
    n = len(z)
    return (
        np.broadcast_to(np.arange(n)[:, None], (n, 2)),
        np.outer(y, z),
        np.zeros(len(y) - n + 3, np.float32),
        (z > 0).sum(),
    )


def sets(x: Any) -> Any:
    i = fx.astype(fx.floor(x * 2), fx.i64)
    r = fx.unique_all(i)
    return (
        r.values,
        r.indices,
        r.inverse_indices,
        r.counts,
        fx.compress(fx.sum(i, axis=1) > 0, x, axis=0),
        fx.unique(i[i > 1]),
    )


def sets_np(x: Any) -> Any:
    i = np.floor(x * 2).astype(np.int64)
    v, at, inverse, counts = np.unique(i, return_index=True, return_inverse=True, return_counts=True)
    return v, at, inverse.reshape(i.shape), counts, np.compress(i.sum(1) > 0, x, axis=0), np.unique(i[i > 1])


def in_loops(x: Any) -> Any:
    """A size in the body of a loop and in a branch, which stays there."""

    def row(c: Any, r: Any) -> Any:
        y = r[r > c]
        return c + 0.1, fx.sum(y * fx.arange(y.shape[0], dtype="f32"))

    low, sums = fx.scan(row, fx.zeros((), fx.f32), x)
    return sums, fx.cond(low > 0.15, lambda: fx.sum(x[x > 1]), lambda: fx.sum(fx.unique(x)))


def in_loops_np(x: Any) -> Any:
    low, sums = np.float32(0), []
    for r in x:
        y = r[r > low]
        sums.append((y * np.arange(len(y), dtype=np.float32)).sum())
        low += np.float32(0.1)
    return np.array(sums, np.float32), x[x > 1].sum() if low > 0.15 else np.unique(x).sum()


CASES: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (picked, picked_np), (nested, nested_np), (sets, sets_np), (in_loops, in_loops_np),
]  # fmt: skip
SHAPES = [(5, 7), (1, 1), (3, 40), (64, 33)]


def agree(got: Any, want: Any) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)


def draw(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("f", "reference"), CASES)
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3"])
def test_one_program_for_all_sizes(f: Any, reference: Any, target: str) -> None:
    program = fx.jit(f).lower(fx.f32["N", "M"]).compile(target)
    for seed, shape in enumerate([*SHAPES, *SHAPES]):
        x = draw(shape, seed)
        for threads in (1, 3):
            with override(num_threads=threads):
                agree(program(x), reference(x))


@pytest.mark.parametrize(("f", "reference"), CASES)
def test_every_stage_means_the_same(f: Any, reference: Any) -> None:
    lowered = fx.jit(f).lower(fx.f32["N", "M"])
    for stage in ("traced", "adjoint", "simplified", "fused"):
        m = lowered.stage(stage)
        text = print_module(m, locations=False)
        assert print_module(parse_module(text), locations=False) == text
        for shape in SHAPES[:3]:
            agree(interpret(m, [draw(shape)]), reference(draw(shape)))


@pytest.mark.parametrize(("f", "reference"), CASES)
def test_the_virtual_gpu(f: Any, reference: Any) -> None:
    program = fx.jit(f).lower(fx.f32["N", "M"]).compile("sm_80", device="vgpu")
    for shape in SHAPES[:3]:
        agree(program(draw(shape)), reference(draw(shape)))


def test_without_a_trace_sizes_are_integers() -> None:
    x = draw((4, 6))
    agree(nested(fx.asarray(x))[:3], nested_np(x)[:3])
    assert fx.extent(np.int64(3)) == 3
    np.testing.assert_array_equal(fx.compress(np.array([True, False, True]), np.arange(4)), [0, 2])


def test_fixed_sizes_and_specialised_ones() -> None:
    x = draw((5, 7))
    agree(fx.jit(picked)(x), picked_np(x))
    m = specialise(fx.jit(picked).lower(fx.f32["N", "M"]).module, {"N": 5})
    assert m.facts.ceilings == {"K0": symbol("M") * 5, "K1": symbol("M") * 5}
    agree(interpret(m, [x]), picked_np(x))
    assert not specialise(m, {"M": 7}).facts.ceilings


def test_results_are_cut_and_kept_in_artifacts(tmp_path: Path) -> None:
    x = draw((5, 7))
    c = fx.jit(picked).lower(fx.f32["N", 7]).compile()
    c.save(tmp_path / "picked.fxb")
    loaded = fx.load(tmp_path / "picked.fxb")
    agree(loaded(x), picked_np(x))
    agree(loaded(x), picked_np(x))
    with pytest.raises(FluxError) as e:
        loaded(x, out=[np.zeros(35, np.float32)] * 4)
    assert e.value.code == "FX0605"


def test_gradients_go_through() -> None:
    def loss(x: Any) -> Any:
        y = x[x > 0]
        return fx.sum(y**3) + fx.sum(fx.sort(y)[::-1] * fx.arange(y.shape[0], dtype="f32"))

    x = draw((4, 9))
    got = fx.jit(fx.grad(loss))(x)
    flat = x[x > 0]
    rank = np.argsort(np.argsort(-flat))
    want = np.zeros_like(x)
    want[x > 0] = 3 * flat**2 + rank
    np.testing.assert_allclose(got, want, rtol=1e-4)
    value, tangent = fx.jit(lambda x, t: fx.jvp(loss, (x,), (t,)))(x, np.ones_like(x))
    np.testing.assert_allclose(tangent, want.sum(), rtol=1e-4)
    # The gradient keeps the size inside: the forward pass is computed again there.
    np.testing.assert_allclose(value, loss(fx.asarray(x)), rtol=1e-4)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: fx.vmap(lambda r: fx.sum(r[r > 0]))(x), "vmap over"),
        (lambda x: fx.arange(fx.extent(fx.sum(x > 0))), "nothing bounds K0"),
        (lambda x: fx.grad(lambda y: (fx.sum(y), y[y > 0]), has_aux=True)(x)[1], "the function"),
        (lambda x: fx.scan(lambda c, r: (c, r[r > 0]), 0.0, x)[1], "a branch or loop body gives"),
    ],
)
def test_what_cannot_be(f: Any, message: str) -> None:
    with pytest.raises(FluxError, match=message) as e:
        fx.jit(f).lower(fx.f32[3, 4]).compile()
    assert e.value.code == "FX0230"


def test_sizes_are_checked_when_the_program_runs() -> None:
    def few(x: Any) -> Any:
        return fx.full((fx.extent(fx.sum(x), most=4),), 1.5)

    for target, device in (("cpu", None), ("sm_80", "vgpu")):
        program = fx.jit(few).lower(fx.i64["N"]).compile(target, device=device)
        np.testing.assert_array_equal(program(np.array([1, 2])), [1.5] * 3)
        for bad in ([2, 3], [-1]):
            with pytest.raises(FluxError, match="at most 4") as e:
                program(np.array(bad))
            assert e.value.code == "FX0608"
    with pytest.raises(FluxError, match="at most 4"):
        interpret(fx.jit(few).lower(fx.i64["N"]).module, [np.array([5])])


def test_an_equation_with_such_a_size_is_checked_where_it_is_known() -> None:
    program = fx.jit(lambda x, y: x[x > 0] + y).lower(fx.f32["N"], fx.f32["M"]).compile()
    x = np.array([1, -1, 2], np.float32)
    np.testing.assert_array_equal(program(x, np.array([1, 2], np.float32)), [2, 4])
    with pytest.raises(FluxError, match="K0 == M") as e:
        program(x, np.array([1, 2, 3], np.float32))
    assert e.value.code == "FX0608"


def test_proofs_use_ceilings() -> None:
    n, k, j = symbol("N"), symbol("K"), symbol("J")
    with assuming(Facts(ceilings={"K": n, "J": k})):
        assert prove_le(k, n) and prove_le(j * 2, n * 2) and prove_le(j, n) and prove_le(j * k, n * n)
        assert at_most(n - k, n) and prove_le(0, n - j)
        assert not prove_le(n, k) and not prove_le(k + 1, n)


def test_a_ceiling_is_a_fact_like_others() -> None:
    f = fx.jit(lambda x, y: y[: x.shape[0]] + x, facts="K <= N")
    lowered = f.lower(fx.f32["K"], fx.f32["N"])
    text = lowered.as_text(locations=False)
    assert "dims K <= N" in text and print_module(parse_module(text), locations=False) == text
    program = lowered.compile()
    np.testing.assert_array_equal(program(np.ones(2, np.float32), np.ones(3, np.float32)), [2, 2])
    with pytest.raises(FluxError, match="K <= N") as e:
        program(np.ones(3, np.float32), np.ones(2, np.float32))
    assert e.value.code == "FX0604"
