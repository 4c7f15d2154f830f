"""Training: the loop, its callbacks, resuming, saved trees."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import optim, train
from fluxir.data import DataLoader
from fluxir.errors import FluxError
from fluxir.train.program import Program

F32 = np.float32
RNG = np.random.default_rng(5)
X = RNG.standard_normal((70, 4)).astype(F32)
Y = (X @ np.array([[1.0], [-2], [0.5], [3]], F32) + 0.5).astype(F32)


def model() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    return {
        "w": rng.standard_normal((4, 8)).astype(F32),
        "v": rng.standard_normal((8, 1)).astype(F32),
        "b": np.zeros(1, F32),
    }


def predict(m: Any, x: Any) -> Any:
    return fx.tanh(x @ m["w"]) @ m["v"] + m["b"]


def loss(m: Any, x: Any, y: Any) -> Any:
    return fx.mean((predict(m, x) - y) ** 2)


def loader(**options: Any) -> DataLoader:
    return DataLoader((X, Y), 16, **{"shuffle": 1, **options})


def same(a: Any, b: Any) -> bool:
    (xs, s), (ys, t) = fx.tree.flatten(a), fx.tree.flatten(b)
    return s == t and all(np.array_equal(x, y) for x, y in zip(xs, ys, strict=True))


# ---- the loop ---------------------------------------------------------------------------------------------------------------


def test_the_loop_is_the_steps_one_would_write() -> None:
    opt = optim.Adam(0.01)
    run = train.fit(model(), loss, loader(), opt, epochs=3)
    m, s, first = model(), opt.init(model()), []

    @fx.jit
    def step(m: Any, s: Any, x: Any, y: Any) -> Any:
        value, g = fx.value_and_grad(loss)(m, x, y)
        return *opt.update(m, g, s), value

    for epoch in range(3):
        values = []
        for x, y in loader().epoch(epoch):
            m, s, value = step(m, s, x, y)
            values.append((float(value), len(x)))
        first.append(sum(v * n for v, n in values) / 70)
    assert run.step == 15 and run.epoch == 3 and run.history[-1]["epoch"] == 2
    np.testing.assert_allclose([r["loss"] for r in run.history], first, rtol=1e-5)
    for k in m:
        np.testing.assert_allclose(run.model[k], m[k], rtol=1e-4, atol=1e-6)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert repr(run).startswith("Run(3 epochs, 15 steps: loss ")


def test_one_program_for_all_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    before = Program._make
    monkeypatch.setattr(Program, "_make", lambda self, *a: made.append(self.name) or before(self, *a))
    train.fit(model(), loss, loader(), optim.Descent(0.01), epochs=2, validate=DataLoader((X, Y), 32))
    assert made == ["train_step", "validate"]  # 70 = 4 * 16 + 6 = 2 * 32 + 6
    made.clear()
    train.fit(model(), loss, loader(), optim.Descent(0.01), epochs=2, symbolic=False)
    assert made == ["train_step", "train_step"]


def test_arguments_are_not_changed_and_models_can_be_kept() -> None:
    m, before, kept = model(), model(), []
    run = train.fit(m, loss, loader(), optim.Adam(0.01), epochs=3, callbacks=[lambda run: kept.append(run.model)])
    assert same(m, before)
    assert same(kept[-1], run.model) and not same(kept[0], kept[1]) and not same(kept[1], kept[2])


def test_looking_changes_nothing() -> None:
    quiet = train.fit(model(), loss, loader(), optim.Adam(0.01), epochs=2)
    looking = train.throttle(lambda run: (run.model, run.state), 0.0)
    loud = train.fit(
        model(), loss, loader(prefetch=2), optim.Adam(0.01), epochs=2, callbacks=[looking], validate=[(X, Y)]
    )
    assert same(quiet.model, loud.model) and same(quiet.state, loud.state)


@pytest.mark.parametrize("data", [[(X[:40], Y[:40]), (X[40:], Y[40:])], (X, Y)])
def test_other_data(data: Any) -> None:
    run = train.fit(model(), loss, data, optim.Adam(0.01), epochs=4)
    assert run.step == 4 * (2 if isinstance(data, list) else 1)
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_dict_batches_and_numbers_in_the_model() -> None:
    m = {**model(), "scale": 0.5}
    data = DataLoader({"x": X, "y": Y}, 16)
    run = train.fit(m, lambda m, b: m["scale"] * loss(m, b["x"], b["y"]), data, optim.Adam(0.01))
    assert run.model["scale"] == 0.5 and run.step == 5


def test_metrics_come_with_the_loss() -> None:
    def f(m: Any, x: Any, y: Any) -> Any:
        value = loss(m, x, y)
        return value, {"twice": 2 * value}

    def error(m: Any, x: Any, y: Any) -> Any:
        return fx.max(fx.abs(predict(m, x) - y))

    run = train.fit(model(), f, loader(), optim.Adam(0.01), epochs=2, validate=DataLoader((X, Y), 70), measure=error)
    row = run.history[-1]
    assert set(row) == {"epoch", "loss", "twice", "validation loss", "validation error"}
    assert row["twice"] == pytest.approx(2 * row["loss"], rel=1e-6)
    m = run.model
    assert row["validation error"] == pytest.approx(np.abs(np.tanh(X @ m["w"]) @ m["v"] + m["b"] - Y).max(), rel=1e-4)
    assert train.evaluate(loss, m, loader()) == pytest.approx(row["validation loss"], rel=1e-5)
    assert train.evaluate(lambda m, x, y: {"a": fx.mean(x), "b": fx.mean(y)}, m, loader()) == pytest.approx(
        {"a": X.mean(), "b": Y.mean()}, abs=1e-6
    )


@dataclass
class Counting:
    """A model with running statistics: how many examples it saw."""

    w: Any
    seen: Any = field(metadata={"state": True})


def test_the_loss_may_return_the_model_with_new_statistics() -> None:
    def f(m: Any, x: Any, y: Any) -> Any:
        return fx.mean((x @ m.w - y) ** 2), Counting(m.w, m.seen + x.shape[0])

    m = Counting(np.zeros((4, 1), F32), np.zeros((), np.float64))
    run = train.fit(m, f, loader(), optim.Adam(0.1), epochs=2)
    assert run.model.seen == 140 and isinstance(run.model, Counting)
    assert run.history[1]["loss"] < run.history[0]["loss"]
    both = train.fit(m, lambda *a: (f(*a)[0], (f(*a)[1], {"k": fx.asarray(2.0)})), loader(), optim.Adam(0.1))
    assert both.model.seen == 70 and both.history[0]["k"] == 2


def test_a_key_for_each_step() -> None:
    def f(m: Any, x: Any, y: Any, *, key: Any = None) -> Any:
        u = fx.asarray(0.0, dtype="f32") if key is None else fx.random.uniform(key)
        return loss(m, x, y), {"u": u}

    seen: list[float] = []
    watch = train.throttle(lambda run: seen.append(run.metrics["u"]), 0)
    train.fit(model(), f, loader(), optim.Adam(0.01), key=3, callbacks=[watch], validate=loader())
    want = [float(fx.random.uniform(fx.random.fold_in(fx.random.key(3), i))) for i in range(5)]
    np.testing.assert_allclose(seen, want)


def test_mixed_precision_with_scaled_losses() -> None:
    m = fx.tree.map(lambda x: x.astype(np.float16), model())
    opt = optim.LossScale(optim.MasterWeights(optim.Adam(0.01)), initial=2.0**30, interval=10)
    data = DataLoader((X.astype(np.float16), Y.astype(np.float16)), 16, shuffle=1)
    run = train.fit(m, loss, data, opt, epochs=20)
    assert run.history[-1]["loss"] < run.history[0]["loss"] / 2
    assert 0 < run.state.step < run.step and float(run.state.extra["LossScale"]["scale"]) < 2.0**30
    assert run.model["w"].dtype == np.float16 and all(np.isfinite(x).all() for x in run.model.values())


# ---- callbacks ----------------------------------------------------------------------------------------------------------------


def rows(values: list[float], *callbacks: Any, **options: Any) -> train.Run:
    """A run whose loss in epoch i is values[i]: the model is a number that moves by one."""
    table = np.array(values, F32)

    def f(m: Any, i: Any) -> Any:
        return 0 * fx.sum(m["w"]) + fx.mean(i)

    class Data:
        def epoch(self, n: int, start: int) -> Any:
            return iter([table[n : n + 1]][start:])

        def __len__(self) -> int:
            return 1

    return train.fit(
        {"w": np.zeros(2, F32)}, f, Data(), optim.Descent(1.0), epochs=len(values), callbacks=callbacks, **options
    )


def test_early_stopping() -> None:
    run = rows([5, 4, 3, 3.5, 3, 4, 1], train.EarlyStopping(patience=3))
    assert [r["loss"] for r in run.history] == [5, 4, 3, 3.5, 3, 4]
    assert len(rows([5, 4, 3, 3.5, 2.9, 4, 1], train.EarlyStopping(patience=3)).history) == 7
    assert len(rows([1, 2, 3, 3, 3], train.EarlyStopping(patience=2, largest=True)).history) == 5
    assert len(rows([5, 4.9, 4.8, 4.7], train.EarlyStopping(patience=2, least_change=0.5)).history) == 3


def test_the_best_model_comes_back() -> None:
    seen = []
    stop = train.EarlyStopping("validation loss", patience=2)
    run = train.fit(model(), loss, loader(), optim.Descent(1.5), epochs=20, validate=[(X, Y)],
                    callbacks=[stop, lambda run: seen.append((run.history[-1]["validation loss"], run.model))])  # fmt: skip
    assert len(seen) < 20
    best = min(range(len(seen)), key=lambda i: seen[i][0])
    assert best < len(seen) - 1 and same(run.model, seen[best][1])


def test_reduce_on_plateau() -> None:
    rates: list[float] = []
    note = lambda run: rates.append(optim.setting(run.state, "lr"))  # noqa: E731
    rows([3, 3, 3, 3, 3, 3, 3, 3], train.ReduceOnPlateau(factor=0.5, patience=1, cooldown=1, least=0.2), note)
    # Two epochs without progress are more than patience, then one of waiting.
    np.testing.assert_allclose(rates, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])


def test_throttle() -> None:
    now, calls = [0.0], []

    class Tick(train.Callback):
        def on_step(self, run: Any) -> None:
            now[0] += 1

    rows([1] * 10, Tick(), train.throttle(lambda run: calls.append(run.step), 3, clock=lambda: now[0]))
    assert calls == [1, 4, 7, 10]


def test_stop_on_nan_and_stop_inside_an_epoch() -> None:
    run = rows([1, math.nan, 3], train.StopOnNaN())
    assert run.step == 2

    class At7(train.Callback):
        def on_step(self, run: Any) -> None:
            run.stop = run.step == 7

    part = train.fit(model(), loss, loader(), optim.Adam(0.01), epochs=4, callbacks=[At7()])
    assert (part.epoch, part.batch, part.step, len(part.history)) == (1, 2, 7, 1)


def test_the_bar_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    train.fit(model(), loss, loader(), optim.Adam(0.01))
    assert capsys.readouterr().err == ""
    train.fit(model(), loss, loader(), optim.Adam(0.01), epochs=2, show=True)
    err = capsys.readouterr().err
    assert "epoch 1/2: loss" in err and "epoch 2/2: loss" in err


# ---- resuming -------------------------------------------------------------------------------------------------------------------


def noisy(m: Any, x: Any, y: Any, *, key: Any = None) -> Any:
    if key is not None:
        x = x + 0.1 * fx.random.normal(key, x.shape)
    return loss(m, x, y)


@pytest.mark.parametrize("stop_at", [5, 7, 10, 12])
@pytest.mark.parametrize(
    "opt", [optim.Adam(0.02), optim.AccumGrad(optim.NAdam(optim.cosine(0.02, 20)), 2)], ids=["adam", "accum"]
)
def test_resumed_runs_have_the_bits_of_an_uninterrupted_one(tmp_path: Path, stop_at: int, opt: Any) -> None:
    """Stopped in the middle of an epoch and at its end: shuffling, noise, statistics, callbacks and history go on."""
    path = tmp_path / "run.safetensors"

    def go(*more: Any, **options: Any) -> train.Run:
        calls = [train.EarlyStopping(patience=2), *more, train.Checkpoint(path, steps=1)]
        return train.fit(
            model(), noisy, loader(prefetch=1), opt, epochs=4, key=9, validate=[(X, Y)], callbacks=calls, **options
        )

    whole = go(StopAt(10**6))
    part = go(StopAt(stop_at))
    assert part.step == stop_at < whole.step
    rest = go(StopAt(10**6), resume=path)
    assert rest.step == whole.step and rest.history == whole.history
    assert same(rest.model, whole.model) and same(rest.state, whole.state)


class StopAt(train.Callback):
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, run: Any) -> None:
        run.stop = run.step == self.at


def test_resuming_with_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run = train.fit(model(), loss, loader(), optim.Adam(0.01), callbacks=[train.Checkpoint(path)])
    with pytest.raises(FluxError, match="FX1108"):
        train.fit(model(), loss, loader(), optim.Adam(0.01), resume=path)
    call = {"callbacks": [train.Checkpoint(path)], "resume": path}
    for m, opt in (({**model(), "b": np.zeros(2, F32)}, optim.Adam(0.01)), (model(), optim.Descent(0.01))):
        with pytest.raises(FluxError, match="FX1107"):
            train.fit(m, loss, loader(), opt, **call)  # type: ignore[arg-type]
    train.save(path, run.model)
    with pytest.raises(FluxError, match="FX1108"):
        train.fit(model(), loss, loader(), optim.Adam(0.01), **call)  # type: ignore[arg-type]


# ---- saved trees ----------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    w: Any
    act: Any = None
    size: Any = field(default=3, metadata={"static": True})


def saved() -> dict[str, Any]:
    return {
        "layers": [Layer(np.arange(6, dtype=F32).reshape(2, 3), fx.tanh), Layer(np.ones(2, np.int8), None, (1, "x"))],
        "pair": (np.float64(2.5), np.array(True)),
        "rate": 0.1,
        "note": "inf",
        "big": math.inf,
        "none": None,
    }


def test_trees_are_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    train.save(path, saved(), {"epochs": 3})
    like = fx.tree.map(lambda x: np.zeros_like(x) if hasattr(x, "shape") else x, saved())
    like["rate"] = 0.7
    got, meta = train.load_with_meta(path, like)
    assert meta == {"epochs": 3} and same(got, saved()) and got["layers"][0].act is fx.tanh and got["rate"] == 0.1
    plain = train.load(path)
    assert (
        plain["note"] == "inf"
        and plain["big"] == math.inf
        and plain["none"] is None
        and isinstance(plain["pair"], tuple)
    )
    assert set(plain["layers"][0]) == {"w", "act"} and plain["layers"][1]["w"].dtype == np.int8
    assert set(fx.load_safetensors(path)) == {"layers.0.w", "layers.1.w", "pair.0", "pair.1"}
    got["layers"][0].w[:] = 7  # it is the caller's
    first = path.read_bytes()
    train.save(path, saved(), {"epochs": 3})
    assert path.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_state_is_saved_and_loaded(tmp_path: Path) -> None:
    opt = optim.Chain(optim.ClipNorm(1.0), optim.NAdam(0.1))
    run = train.fit(model(), loss, loader(), opt)
    state = optim.freeze(run.state, "w")
    train.save(tmp_path / "s", state)
    assert same(train.load(tmp_path / "s", like=optim.freeze(opt.init(model()), "w")), state)
    with pytest.raises(FluxError, match=r"FX1107.*fixed fields|FX1107.*number of parts|FX1107.*names"):
        train.load(tmp_path / "s", like=opt.init(model()))


def changed(**parts: Any) -> dict[str, Any]:
    return {**saved(), **parts}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (changed(pair=(np.float32(0), np.array(True))), "pair.0"),
        (changed(pair=[np.float64(0), np.array(True)]), "pair"),
        (changed(pair=(np.float64(0),)), "pair"),
        (changed(extra=1), "names"),
        (changed(layers=[Layer(np.zeros((3, 2), F32), fx.tanh), saved()["layers"][1]]), "layers.0.w"),
        (changed(layers=[saved()["layers"][0], Layer(np.ones(2, np.int8), None, (1, "y"))]), "fixed fields"),
        (changed(layers=[Layer(saved()["layers"][0].w, fx.exp), saved()["layers"][1]]), "layers.0.act"),
        (changed(none=np.zeros(1)), "none"),
        (changed(rate="text"), "rate"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, like: Any, message: str) -> None:
    train.save(tmp_path / "m", saved())
    with pytest.raises(FluxError, match=f"FX1107(.|\n)*{message}"):
        train.load(tmp_path / "m", like)


def test_files_of_others_and_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "m"
    fx.save_safetensors(path, {"w": np.ones(2)})
    with pytest.raises(FluxError, match="FX1107"):
        train.load(path)
    for text in (
        {"format": "fluxir tree 2", "structure": '"array"'},
        {"format": "fluxir tree 1"},
        {"format": "fluxir tree 1", "structure": "{"},
        {
            "format": "fluxir tree 1",
            "structure": json.dumps({"kind": "dict", "keys": ["w", "v"], "children": ["array", "array"]}),
        },
        {
            "format": "fluxir tree 1",
            "structure": json.dumps({"kind": "dict", "keys": ["w", "v"], "children": ["array"]}),
        },
        {"format": "fluxir tree 1", "structure": json.dumps({"kind": "dict", "keys": [None], "children": ["array"]})},
        {"format": "fluxir tree 1", "structure": "7"},
        {
            "format": "fluxir tree 1",
            "structure": '{"kind":"dict","keys":["w"],"children":[' * 250 + '"array"' + "]}" * 250,
        },
    ):
        fx.save_safetensors(path, {"w": np.ones(2)}, text)
        for like in (None, {"w": np.ones(2), "v": np.ones(2)}):
            with pytest.raises(FluxError, match="FX1107"):
                train.load(path, like)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for bad in ({"x": object()}, {"a.b": np.ones(1), "a": {"b": np.ones(1)}}, {"x": {1, 2}}):
        with pytest.raises(FluxError, match="FX1107"):
            train.save(tmp_path / "m", bad)
    with pytest.raises(FluxError, match="FX1107"):
        train.save(tmp_path / "m", model(), meta=object())
    assert not list(tmp_path.iterdir())


# ---- refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "code"),
    [
        (lambda m, x, y: predict(m, x), "FX1106"),
        (lambda m, x, y: fx.sum(fx.astype(x, "i32")), "FX1106"),
        (lambda m, x, y: 1.0, "FX1106"),
        (lambda m, x, y: (loss(m, x, y), 3), "FX1106"),
        (lambda m, x, y: (loss(m, x, y), {"a": x}), "FX1106"),
    ],
)
def test_losses_that_are_none(f: Any, code: str) -> None:
    with pytest.raises(FluxError, match=code):
        train.fit(model(), f, loader(), optim.Adam())


def test_data_that_cannot_be_used() -> None:
    for data in ((b for b in [(X, Y)]), []):
        with pytest.raises(FluxError, match="FX1105"):
            train.fit(model(), loss, data, optim.Adam(), epochs=2)
    with pytest.raises(FluxError, match="FX1105"):
        train.evaluate(loss, model(), [])
    with pytest.raises(FluxError, match="FX1102"):
        train.fit(model(), loss, loader(), optim.Adam(), epochs=-1)
    with pytest.raises(FluxError, match="FX1102"):
        train.fit(model(), loss, loader(), optim.Adam(), callbacks=[3])
    with pytest.raises(FluxError, match="FX1102"):
        train.fit(model(), loss, loader(), optim.Adam(), callbacks=[train.EarlyStopping("accuracy")])
