"""Products of a few thousand multiplications: vectors along each index, copies of operands, what follows, in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir.schedule import small_dot_cpu
from fluxir.schedule.group import group_of
from fluxir.target import parse_target
from tests.schedule_harness import check, fused

RNG = np.random.default_rng(0)
SHAPES = {
    "columns": (20, 2, 50),
    "dots": (20, 50, 2),
    "rows": (50, 20, 2),
    "square": (16, 16, 16),
    "tiny": (4, 4, 4),
    "odd": (7, 17, 13),
    "one": (9, 1, 9),
}


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape)


def product(a: Any, b: Any, c: Any, flip: str) -> Any:
    x, y = (m.T if f == "t" else m for m, f in zip((a, b), flip))
    return fx.tanh(x @ y + c)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", SHAPES)
def test_all_orders_of_operands(name: str, dtype: str) -> None:
    m, k, n = SHAPES[name]
    kind = {"f32": np.float32, "f64": np.float64}[dtype]
    for flip in ("nn", "nt", "tn", "tt"):
        a = normal(*((k, m) if flip[0] == "t" else (m, k))).astype(kind)
        b = normal(*((n, k) if flip[1] == "t" else (k, n))).astype(kind)
        c = normal(n).astype(kind)
        program = fx.jit(lambda a, b, c, flip=flip: product(a, b, c, flip)).lower(a, b, c)
        kernels = program.stage("loops", "cpu:x86-64-v3").funcs.values()
        assert any("smalldot(" in str(f.attrs.get("schedule")) for f in kernels)
        x, y = (z.T if f == "t" else z for z, f in zip((a, b), flip))
        bound = 4 * k * np.finfo(kind).eps * (np.abs(x).astype(np.float64) @ np.abs(y) + np.abs(c) + 1)
        exact = np.tanh(x.astype(np.longdouble) @ y + c)
        assert (np.abs(program.compile("cpu", cache=False)(a, b, c) - exact) <= bound).all(), (name, flip)


@pytest.mark.parametrize("along", small_dot_cpu.ALONG)
@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:x86-64-v1"])
def test_vectors_along_any_index_give_the_same(along: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way is right for every shape, not only for those it is chosen for."""
    monkeypatch.setattr(small_dot_cpu._Small, "cost", property(lambda s: s.along != along))
    for m, k, n in [(3, 5, 7), (9, 12, 2), (2, 9, 10)]:
        types = [f"f32[{m},{k}]", f"f32[{k},{n}]", f"f32[{n}]"]
        low = check(
            fused(types, lambda b, x, y, z: b.add(b.dot(x, y, lhs_contract=(1,), rhs_contract=(0,)), z), "dot"),
            target=parse_target(target),
        )
        assert any(f"along={along}" in str(f.attrs.get("schedule")) for f in low.funcs.values())


def test_a_batch_and_a_constant_operand() -> None:
    w = normal(3, 6, 9).astype(np.float32)
    x = normal(3, 5, 9).astype(np.float32)
    program = fx.jit(lambda x: x @ fx.asarray(w).swapaxes(-1, -2)).lower(x)
    assert sum(op.name == "launch" for op in program.stage("loops").entry.walk()) == 1  # nothing is copied at run time
    np.testing.assert_allclose(program.compile(cache=False)(x), x @ w.swapaxes(-1, -2), rtol=1e-5, atol=1e-5)


def test_a_total_is_renewed_in_place() -> None:
    xs, ys = normal(6, 8, 3).astype(np.float32), normal(6, 8, 10).astype(np.float32)
    f = lambda xs, ys: fx.scan(lambda s, z: (s + fx.tanh(s) * (z[0].T @ z[1]), None), fx.zeros((3, 10)), (xs, ys))[0]  # noqa: E731
    want = np.zeros((3, 10))
    for x, y in zip(xs.astype(np.float64), ys):
        want = want + np.tanh(want) * (x.T @ y)
    np.testing.assert_allclose(fx.jit(f)(xs, ys), want, rtol=1e-4, atol=1e-5)


def test_large_and_symbolic_sizes_are_left_to_others() -> None:
    target = parse_target("cpu:x86-64-v3")
    for a, b in [("f32[64,64]", "f32[64,64]"), ("f32[B,4]", "f32[4,4]"), ("i32[4,4]", "i32[4,4]")]:
        (op,) = fused([a, b], lambda k, x, y: k.dot(x, y, lhs_contract=(1,), rhs_contract=(0,)), "dot").ops
        assert small_dot_cpu.small_dot(group_of(op)[0], target) is None


def test_a_column_beside_vectors_of_columns_is_one_element_a_row() -> None:
    """The first vector begins at column 0, and so does the slice, which yet does not vary along it."""

    def f(a: Any, w: Any, t: Any) -> Any:
        return a @ w * t + a[:, :1] * t

    rng = np.random.default_rng(0)
    a, w, t = (rng.standard_normal(s) for s in ((3, 3), (3, 3), (3,)))
    np.testing.assert_allclose(fx.jit(f)(a, w, t), a @ w * t + a[:, :1] * t, rtol=1e-12)
