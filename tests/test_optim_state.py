"""States of optimisers: parts of a model, tied weights, wrappers, narrow types, schedules, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fluxir as fx
from fluxir import optim
from fluxir.errors import FluxError
from tests.oracle.optim import PATH

F32 = np.float32


def model() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "layers": [
            {"w": rng.standard_normal((3, 4)).astype(F32), "b": np.zeros(4, F32)},
            {"w": rng.standard_normal((4, 2)).astype(F32), "b": np.zeros(2, F32)},
        ]
    }


X = np.random.default_rng(4).standard_normal((5, 3)).astype(F32)


def loss(m: Any) -> Any:
    a, b = m["layers"]
    return fx.sum((fx.tanh(X @ a["w"] + a["b"]) @ b["w"] + b["b"] - 1) ** 2)


def leaves(t: Any) -> list[Any]:
    return [np.asarray(x) for x in fx.tree.leaves(t)]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def compiled(opt: Any, f: Any = loss) -> Any:
    return fx.jit(lambda m, s: opt.update(m, fx.grad(f)(m), s))


# ---- what is a parameter --------------------------------------------------------------------------------------------------


@dataclass
class Norm:
    scale: Any
    mean: Any = field(metadata={"state": True})
    steps: Any = None
    act: Any = fx.tanh


def test_what_is_no_parameter_passes_through() -> None:
    m = {"n": Norm(np.ones(3, F32), np.full(3, 5, F32), np.arange(3)), "rate": 0.5, "on": np.array([True, False, True])}

    def f(m: Any) -> Any:
        n = m["n"]
        return fx.sum(fx.where(m["on"], n.act((n.scale - n.mean) * m["rate"]), 1.0))

    opt = optim.Adam(0.1)
    s = opt.init(m)
    assert [k.path for k in s.members] == ["n.scale"]
    for step in (compiled(opt, f), lambda m, s: opt.update(m, fx.grad(f)(m), s)):
        new, t = step(m, s)
        assert new["n"].act is fx.tanh and float(new["rate"]) == 0.5 and t.step == 1
        np.testing.assert_array_equal(new["on"], m["on"])
        np.testing.assert_array_equal(new["n"].mean, 5)
        np.testing.assert_array_equal(new["n"].steps, np.arange(3))
        assert np.asarray(new["n"].scale).dtype == F32 and not np.array_equal(new["n"].scale, m["n"].scale)


def test_none_in_a_gradient_leaves_the_parameter_alone() -> None:
    m = {"a": np.ones(2), "b": np.ones(2)}
    opt = optim.Momentum(0.5)
    new, s = opt.update(m, {"a": None, "b": np.ones(2)}, opt.init(m))
    np.testing.assert_array_equal(new["a"], 1)
    np.testing.assert_array_equal(new["b"], 0.5)
    assert (s.slots["a"][0]["v"] == 0).all() and (s.slots["b"][0]["v"] == 1).all()


def test_a_state_prints_in_a_line() -> None:
    s = optim.Adam().init(model())
    assert repr(s) == "OptState(step=0, 4 parameters, 208 bytes)"
    assert repr(optim.freeze(s, "layers.1")) == "OptState(step=0, 4 parameters, 2 frozen, 208 bytes)"


def test_one_array_in_two_places_is_one_parameter() -> None:
    w = np.random.default_rng(0).standard_normal((3, 3))
    tied, single = {"a": w, "b": w}, {"a": w.copy()}
    opt = optim.Adam(0.1)
    s, t = opt.init(tied), opt.init(single)
    assert list(s.slots) == ["a"]
    run = compiled(opt, lambda m: fx.sum(fx.sin(m["a"]) @ m["b"]))
    one = compiled(opt, lambda m: fx.sum(fx.sin(m["a"]) @ m["a"]))
    for _ in range(3):
        tied, s = run(tied, s)
        single, t = one(single, t)
        np.testing.assert_array_equal(tied["a"], tied["b"])
        np.testing.assert_allclose(tied["a"], single["a"], rtol=1e-12)
    assert optim.core.chosen(s.members, "b") == {"a", "b"}


# ---- parts of a model -------------------------------------------------------------------------------------------------------


def test_freeze_and_thaw() -> None:
    opt, m = optim.Adam(0.1), model()
    s = optim.freeze(opt.init(m), "layers.0")
    run = compiled(opt)
    n, t = run(m, s)
    assert same(n["layers"][0], m["layers"][0]) and not same(n["layers"][1], m["layers"][1])
    assert [int(g.count) for g in t.groups] == [1, 0] and t.step == 1
    thawed, u = run(n, optim.thaw(t))
    # The first update of what was frozen is a first one: a step of about lr for every element, not a corrected tenth.
    moved = np.abs(thawed["layers"][0]["w"] - n["layers"][0]["w"])
    np.testing.assert_allclose(moved, 0.1, rtol=1e-3)
    assert [int(g.count) for g in u.groups] == [2, 1]


def test_what_is_frozen_is_not_differentiated() -> None:
    opt, m = optim.Descent(0.1), model()
    s = opt.init(m)
    step = fx.jit(lambda m, s: opt.update(m, fx.grad(loss)(m), s))
    dots = [step.lower(m, t).as_text("fused").count("= dot(") for t in (s, optim.freeze(s, "layers.0"))]
    assert dots == [5, 3]


def test_parts_by_path_predicate_and_list() -> None:
    s = optim.Adam().init(model())
    frozen = lambda t: {k.path for k in t.members if t.groups[k.group].frozen}  # noqa: E731
    assert frozen(optim.freeze(s, lambda p: p.endswith(".b"))) == {"layers.0.b", "layers.1.b"}
    assert frozen(optim.freeze(s, ["layers.0.w", "layers.1.b"])) == {"layers.0.w", "layers.1.b"}
    assert frozen(optim.freeze(s)) == {k.path for k in s.members}
    assert frozen(optim.thaw(optim.freeze(s), "layers.0")) == {"layers.1.b", "layers.1.w"}
    for where in ("layers.2", "layer", lambda p: False, ["layers.0", "x"]):
        with pytest.raises(FluxError, match="FX1104"):
            optim.freeze(s, where)


def test_adjust_takes_effect_without_compiling_again() -> None:
    opt, m = optim.Descent(0.1), model()
    s = opt.init(m)
    run = compiled(opt)
    n, _ = run(m, s)
    o, _ = run(m, optim.adjust(s, lr=0.2))
    assert len(run._programs) == 1
    for a, b, c in zip(leaves(m), leaves(n), leaves(o), strict=True):
        np.testing.assert_allclose(c - a, 2 * (b - a), rtol=1e-3, atol=1e-6)
    half = optim.adjust(s, "layers.1", lr=lambda lr: lr / 2)
    assert optim.setting(half, "lr", "layers.1") == 0.05 and optim.setting(half, "lr", "layers.0") == 0.1
    p, _ = run(m, half)
    assert same(p["layers"][0], n["layers"][0])
    np.testing.assert_allclose(p["layers"][1]["w"] - m["layers"][1]["w"], (n["layers"][1]["w"] - m["layers"][1]["w"]) / 2, rtol=1e-3, atol=1e-6)  # fmt: skip


def test_adjust_in_a_chain_and_names_that_are_not_there() -> None:
    s = optim.Chain(optim.WeightDecay(1e-3), optim.Adam(1e-2)).init(model())
    t = optim.adjust(s, lr=1.0, decay=0.5)
    assert (optim.setting(t, "lr"), optim.setting(t, "decay"), optim.setting(t, "beta1")) == (1.0, 0.5, 0.9)
    with pytest.raises(FluxError, match=r"FX1104.*'rho'(.|\n)*beta1, beta2, decay, eps, lr"):
        optim.adjust(s, rho=1.0)
    with pytest.raises(FluxError, match="FX1104"):
        optim.adjust(optim.Adam(optim.cosine(1.0, 10)).init(model()), lr=1.0)
    with pytest.raises(FluxError, match="FX1104"):
        optim.setting(s, "rho")


# ---- wrappers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("donate", [(), (0, 1)])
def test_gradients_of_several_steps_make_one_update(donate: tuple[int, ...]) -> None:
    opt, m = optim.AccumGrad(optim.Adam(0.1), 3), model()
    grads = [fx.tree.map(lambda x, i=i: np.full_like(x, i), m) for i in (1.0, 2.0, 6.0)]
    want, _ = optim.Adam(0.1).update(m, fx.tree.map(lambda x: np.full_like(x, 3.0), m), optim.Adam(0.1).init(m))
    run = fx.jit(opt.update, donate_argnums=tuple({0: 0, 1: 2}[i] for i in donate))
    n, s = fx.tree.map(np.array, m), opt.init(m)
    for i, g in enumerate(grads * 2):
        before = fx.tree.map(np.array, n)
        n, s = run(n, g, s)
        assert same(n, before) == (i % 3 != 2)
        assert (int(s.step), int(s.extra["AccumGrad"]["seen"])) == ((i + 1) // 3, (i + 1) % 3)
        if i == 2:
            for a, b in zip(leaves(n), leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_parameters_need_masters(dtype: Any) -> None:
    """An update of 1e-4 is lost next to 1 in either type; the copy in f32 adds up a hundred of them."""
    m = {"w": np.ones(3, dtype)}
    g = {"w": np.ones(3, dtype)}
    plain, wide = optim.Descent(1e-4), optim.MasterWeights(optim.Descent(1e-4))
    a, s = m, plain.init(m)
    b, t = m, wide.init(m)
    run, run_wide = fx.jit(plain.update), fx.jit(wide.update)
    for _ in range(100):
        a, s = run(a, g, s)
        b, t = run_wide(b, g, t)
    assert a["w"].dtype == b["w"].dtype == dtype
    np.testing.assert_array_equal(a["w"].astype(F32), 1)
    np.testing.assert_allclose(t.extra["MasterWeights"]["w"], 0.99, rtol=1e-5)
    np.testing.assert_allclose(b["w"].astype(F32), 0.99, rtol=5e-3)


def test_moments_of_narrow_parameters_are_f32() -> None:
    m, opt = {"w": np.ones(3, np.float16)}, optim.Adam(0.5)
    s = opt.init(m)
    assert {str(x.dtype) for x in s.slots["w"][0].values()} == {"float32"}
    n, _ = opt.update(m, {"w": np.full(3, 1e-5, np.float16)}, s)
    np.testing.assert_allclose(n["w"].astype(F32), 0.5, rtol=2e-3)  # in f16 the square of 1e-5 would be 0


def test_the_scale_of_the_loss_follows_overflows() -> None:
    m = {"w": np.ones(2, F32), "n": np.arange(2)}
    opt = optim.LossScale(optim.Momentum(0.1), initial=8.0, interval=2)
    run = fx.jit(opt.update)
    s = opt.init(m)
    finite, odd = {"w": np.full(2, 8.0, F32), "n": None}, {"w": np.array([np.inf, 1], F32), "n": None}
    scales, steps = [], []
    for g in (finite, finite, odd, finite, finite):
        before, slot = m["w"].copy(), s.slots["w"][0]["v"].copy()
        m, s = run(m, g, s)
        scales.append(float(s.extra["LossScale"]["scale"]))
        steps.append(int(s.step))
        if g is odd:
            np.testing.assert_array_equal(m["w"], before)
            np.testing.assert_array_equal(s.slots["w"][0]["v"], slot)
    assert scales == [8, 16, 8, 8, 16] and steps == [1, 2, 2, 3, 4]
    assert np.isfinite(m["w"]).all()


def test_small_gradients_survive_in_f16() -> None:
    m = {"w": np.full(4, 0.5, np.float16)}
    x = np.full(4, 1e-4, np.float16)
    loss = lambda m: fx.sum((m["w"] * x) * fx.asarray(np.float16(1e-4)))  # noqa: E731
    opt = optim.LossScale(optim.MasterWeights(optim.Descent(1e6)), initial=1024.0)

    @fx.jit
    def step(m: Any, s: Any) -> Any:
        return opt.update(m, fx.grad(opt.scaled(loss, s))(m), s)

    n, s = step(m, opt.init(m))
    np.testing.assert_allclose(
        m["w"] - s.extra["MasterWeights"]["w"], 0.01, rtol=0.02
    )  # 1e6 * 1e-8, which f16 cannot hold
    assert float(n["w"][0]) == pytest.approx(0.49, rel=1e-2)


def test_wrappers_nest() -> None:
    m = {"w": np.ones(3, ml_dtypes.bfloat16)}
    opt = optim.LossScale(
        optim.AccumGrad(optim.MasterWeights(optim.Chain(optim.ClipNorm(1.0), optim.AdamW())), 2), initial=4.0
    )
    run, s = fx.jit(opt.update), opt.init(m)
    g = {"w": np.full(3, 4.0, ml_dtypes.bfloat16)}
    n, s = run(m, g, s)
    assert same(n, m) and s.step == 0
    n, s = run(n, g, s)
    assert s.step == 1 and set(s.extra) == {"LossScale", "AccumGrad", "MasterWeights"}
    np.testing.assert_allclose(s.extra["MasterWeights"]["w"], 1 - 1e-3 - 1e-5, rtol=1e-5)
    with pytest.raises(FluxError, match="FX1102"):
        optim.AccumGrad(optim.AccumGrad(optim.Adam(), 2), 2).init(m)


# ---- schedules ----------------------------------------------------------------------------------------------------------------

AS_PYTORCH = {
    "step": optim.step_decay(0.1, 7, 0.5),
    "exponential": optim.exponential(0.1, 0.9),
    "cosine": optim.cosine(0.1, 30, 0.01),
    "one_cycle": optim.one_cycle(0.1, 30),
    "linear": optim.linear(0.1, 0.025, 20),
}


@pytest.mark.parametrize("name", sorted(AS_PYTORCH))
def test_schedules_as_pytorch(name: str) -> None:
    want = np.load(PATH)[f"schedule.{name}"]
    got = [float(AS_PYTORCH[name](i)) for i in range(30)]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    traced = fx.jit(AS_PYTORCH[name])
    np.testing.assert_allclose([traced(np.int64(i)) for i in range(30)], want, rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (optim.constant(0.3), [0.3] * 6),
        (optim.warm_up(0.4, 4), [0, 0.1, 0.2, 0.3, 0.4, 0.4]),
        (optim.warm_up(optim.linear(0.4, 0, 2), 2, 0.5), [0.2, 0.3, 0.4, 0.2, 0, 0]),
        (optim.piecewise([2, 4], [1.0, optim.exponential(8.0, 0.5), 0.25]), [1, 1, 8, 4, 0.25, 0.25]),
        (optim.inverse(1.0, 1.0), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]),
        (optim.polynomial(1.0, 0.0, 4), [1, 9 / 16, 1 / 4, 1 / 16, 0, 0]),
        (optim.cosine(1.0, 2, restarts=True), [1, 0.5, 1, 0.5, 1, 0.5]),
        (optim.cosine(1.0, 2), [1, 0.5, 0, 0, 0, 0]),
    ],
)
def test_schedules(schedule: Any, want: list[float]) -> None:
    np.testing.assert_allclose([float(schedule(i)) for i in range(6)], want, rtol=1e-12, atol=1e-15)


def test_a_schedule_is_part_of_the_step() -> None:
    opt = optim.Descent(optim.piecewise([2], [1.0, 0.5]))
    m: Any = {"w": np.zeros(1)}
    s, run, seen = opt.init(m), fx.jit(opt.update), []
    for _ in range(4):
        m, s = run(m, {"w": np.ones(1)}, s)
        seen.append(float(m["w"][0]))
    assert seen == [-1, -2, -2.5, -3] and len(run._programs) == 1


# ---- refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: optim.Adam(lr="0.1").init(model()), "FX1102"),
        (lambda: optim.Adam(lr=float("nan")).init(model()), "FX1102"),
        (lambda: optim.Rprop(lr=lambda t: 0.1).init(model()), "FX1102"),
        (lambda: optim.ClipNorm(order=3).init(model()), "FX1102"),
        (lambda: optim.AccumGrad(optim.Adam(), 0).init(model()), "FX1102"),
        (lambda: optim.Chain(optim.AccumGrad(optim.Adam(), 2), optim.Adam()), "FX1102"),
        (lambda: optim.Chain(), "FX1102"),
        (lambda: optim.piecewise([3, 2], [1, 2, 3]), "FX1102"),
        (lambda: optim.piecewise([3], [1]), "FX1102"),
        (lambda: optim.cosine(1.0, 0), "FX1102"),
        (lambda: optim.Adam().init({"lr": 0.1, "n": np.arange(3)}), "FX1101"),
    ],
)
def test_settings_that_are_refused(make: Any, code: str) -> None:
    with pytest.raises(FluxError, match=code):
        make()


def test_model_gradient_and_state_must_belong_together() -> None:
    opt, m = optim.Adam(), {"w": np.ones((3, 1)), "b": np.ones(2)}
    s = opt.init(m)
    for other, g in (
        ({"w": m["w"]}, m),
        (m, {"w": np.ones((3, 1))}),
        (m, {"w": np.ones((3, 3)), "b": np.ones(2)}),
        (m, {"w": np.ones(3), "b": np.ones(2)}),
        ({"w": m["w"], "b": np.arange(2)}, m),
    ):
        with pytest.raises(FluxError, match="FX1103"):
            opt.update(other, g, s)
