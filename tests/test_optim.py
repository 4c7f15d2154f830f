"""Optimisers: PyTorch's trajectories where it has the rule, the papers' formulas in numpy where it has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import optim
from tests.oracle.optim import CLIP, PATH, STEPS, problem

Array = np.ndarray[Any, np.dtype[Any]]
TORCH = np.load(PATH)
DATA = problem()


def loss(p: Any, x: Any, y: Any) -> Any:
    return fx.sum((fx.tanh(x @ p["w"]) @ p["v"] - y) ** 2) / 8


def gradient(p: dict[str, Array], x: Array, y: Array) -> dict[str, Array]:
    h = np.tanh(x @ p["w"])
    r = (h @ p["v"] - y) / 4
    return {"w": x.T @ ((r @ p["v"].T) * (1 - h * h)), "v": h.T @ r}


def first(dtype: Any = np.float64) -> dict[str, Array]:
    return {"w": DATA["w"].astype(dtype), "v": DATA["v"].astype(dtype)}


def stepper(opt: Any) -> Any:
    def step(p: Any, s: Any, x: Any, y: Any) -> Any:
        return opt.update(p, fx.grad(loss)(p, x, y), s)

    return fx.jit(step)


def trajectory(opt: Any, dtype: Any = np.float64, steps: int = STEPS) -> list[Array]:
    """Both parameters as one vector after each compiled step."""
    p, run = first(dtype), stepper(opt)
    s = opt.init(p)
    x, y = DATA["x"].astype(dtype), DATA["y"].astype(dtype)
    out = []
    for _ in range(steps):
        p, s = run(p, s, x, y)
        out.append(np.concatenate([p["w"].ravel(), p["v"].ravel()]))
    assert s.step == steps
    return out


# ---- PyTorch --------------------------------------------------------------------------------------------------------------

AS_PYTORCH: dict[str, Callable[[], Any]] = {
    "descent": lambda: optim.Descent(0.05),
    "momentum": lambda: optim.Momentum(0.05, 0.9),
    "momentum_decay": lambda: optim.Chain(optim.WeightDecay(0.1), optim.Momentum(0.05)),
    "nesterov": lambda: optim.Nesterov(0.05, 0.8),
    "rmsprop": lambda: optim.RMSProp(0.02, 0.9),
    "rmsprop_centred": lambda: optim.RMSProp(0.02, 0.9, centred=True),
    "rprop": lambda: optim.Rprop(0.05),
    "adam": lambda: optim.Adam(0.05, 0.8, 0.95, 1e-6),
    "adam_decay": lambda: optim.Chain(optim.WeightDecay(0.1), optim.Adam(0.05)),
    "adamw": lambda: optim.AdamW(0.05, decay=0.1),
    "amsgrad": lambda: optim.AMSGrad(0.1, 0.9, 0.7),
    "adamax": lambda: optim.AdaMax(0.05),
    "nadam": lambda: optim.NAdam(0.05, momentum_decay=0.1),
    "radam": lambda: optim.RAdam(0.05, 0.9, 0.99),
    "adagrad": lambda: optim.AdaGrad(0.1, 0.1, initial=0.01),
    "adadelta": lambda: optim.AdaDelta(0.5),
    "clip_norm": lambda: optim.Chain(optim.ClipNorm(CLIP), optim.Descent(0.1)),
}


@pytest.mark.parametrize("name", sorted(AS_PYTORCH))
def test_as_pytorch(name: str) -> None:
    for i, got in enumerate(trajectory(AS_PYTORCH[name]())):
        np.testing.assert_allclose(got, TORCH[name][i], rtol=1e-9, atol=1e-11, err_msg=f"step {i}")


def test_every_case_of_pytorch_is_compared() -> None:
    assert {k for k in TORCH.files if not k.startswith("schedule.")} == set(AS_PYTORCH)


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw", "rmsprop", "adamax", "nadam"])
def test_f32_follows_f64(name: str) -> None:
    """Settings such as 1 - 0.999 are rounded once, so single precision loses no more than its rounding."""
    got = trajectory(AS_PYTORCH[name](), np.float32)
    assert got[-1].dtype == np.float32
    np.testing.assert_allclose(got[-1], TORCH[name][-1], rtol=3e-4, atol=3e-5)


# ---- papers ---------------------------------------------------------------------------------------------------------------


def by_hand(rule: Callable[[int, Array, Array, dict[str, Any]], Array]) -> list[Array]:
    """The trajectory of a rule in numpy: `rule(t, g, p, s)` gives the change; `s` is the memory of one parameter."""
    p, states, out = first(), {"w": {}, "v": {}}, []  # type: ignore[var-annotated]
    for t in range(1, STEPS + 1):
        g = gradient(p, DATA["x"], DATA["y"])
        p = {k: p[k] - rule(t, g[k], p[k], states[k]) for k in p}
        out.append(np.concatenate([p["w"].ravel(), p["v"].ravel()]))
    return out


def lion(t: int, g: Array, p: Array, s: dict[str, Any]) -> Array:
    m = s.get("m", 0 * g)
    s["m"] = 0.99 * m + 0.01 * g
    change: Array = 0.02 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)
    return change


def oadam(t: int, g: Array, p: Array, s: dict[str, Any]) -> Array:
    s["m"] = 0.5 * s.get("m", 0 * g) + 0.5 * g
    s["v"] = 0.9 * s.get("v", 0 * g) + 0.1 * g * g
    d = 0.05 * (s["m"] / (1 - 0.5**t)) / (np.sqrt(s["v"] / (1 - 0.9**t)) + 1e-8)
    old = s.get("d", 0 * g)
    s["d"] = d
    change: Array = 2 * d - old
    return change


def belief(t: int, g: Array, p: Array, s: dict[str, Any]) -> Array:
    s["m"] = 0.9 * s.get("m", 0 * g) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0 * g) + 0.001 * (g - s["m"]) ** 2 + 1e-16
    change: Array = 0.05 * (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-16)
    return change


PAPERS = {
    "lion": (lion, lambda: optim.Lion(0.02, decay=0.1)),
    "oadam": (oadam, lambda: optim.OAdam(0.05)),
    "adabelief": (belief, lambda: optim.AdaBelief(0.05)),
    "sign_decay": (
        lambda t, g, p, s: 0.1 * (g + 0.05 * np.sign(p)),
        lambda: optim.Chain(optim.SignDecay(0.05), optim.Descent(0.1)),
    ),
    "clip_grad": (
        lambda t, g, p, s: 0.1 * np.clip(g, -0.2, 0.2),
        lambda: optim.Chain(optim.ClipGrad(0.2), optim.Descent(0.1)),
    ),
    "clip_each": (
        lambda t, g, p, s: 0.1 * g * min(1, 0.3 / (np.abs(g).sum() + 1e-6)),
        lambda: optim.Chain(optim.ClipNorm(0.3, order=1, each=True), optim.Descent(0.1)),
    ),
    "clip_each_max": (
        lambda t, g, p, s: 0.1 * g * min(1, 0.3 / (np.abs(g).max() + 1e-6)),
        lambda: optim.Chain(optim.ClipNorm(0.3, order=float("inf"), each=True), optim.Descent(0.1)),
    ),
}


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_as_the_paper_says(name: str) -> None:
    rule, make = PAPERS[name]
    for i, (got, want) in enumerate(zip(trajectory(make()), by_hand(rule), strict=True)):  # type: ignore[arg-type]
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10, err_msg=f"step {i}")


EVERY = {**AS_PYTORCH, **{name: make for name, (_, make) in PAPERS.items()}}


@pytest.mark.parametrize("name", ["momentum", "adam", "rprop", "nadam", "radam", "clip_norm"])
def test_without_a_compiler(name: str) -> None:
    """Outside jit the same functions run on numpy arrays."""
    opt, p = EVERY[name](), first()
    s = opt.init(p)
    for want in trajectory(opt)[:3]:
        p, s = opt.update(p, gradient(p, DATA["x"], DATA["y"]), s)
        np.testing.assert_allclose(np.concatenate([p["w"].ravel(), p["v"].ravel()]), want, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_donated_steps_give_the_same(name: str) -> None:
    """Parameters and state updated in place: what is read is read before it is overwritten."""
    opt = EVERY[name]()
    run = fx.jit(lambda p, s, x, y: opt.update(p, fx.grad(loss)(p, x, y), s), donate_argnums=(0, 1))
    p = fx.tree.map(np.copy, first())
    s = fx.tree.map(np.copy, opt.init(p))
    for want in trajectory(opt, steps=4):
        p, s = run(p, s, DATA["x"], DATA["y"])
        np.testing.assert_allclose(np.concatenate([p["w"].ravel(), p["v"].ravel()]), want, rtol=1e-12, atol=1e-14)
