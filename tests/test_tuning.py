"""Tuning: questions by structure, answers that must lie in the space, searches that accept only what computes the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fluxir as fx
from fluxir import cli, config, driver, tuning
from fluxir.errors import FluxError
from fluxir.ir.dims import assuming
from fluxir.schedule.lower import lower
from fluxir.schedule.tuned import State, read_answers, using, write_answers
from fluxir.target import parse_target

X = np.random.default_rng(0).random((70, 96), np.float32)
W = np.random.default_rng(1).random((96, 64), np.float32)
TARGET = parse_target("cpu:x86-64-v3")


def layer(x, w):
    return fx.tanh(x @ w)


def asked(f, *args, answers=None, target=TARGET):
    """The questions of a program, and its loops."""
    fused = fx.jit(f).lower(*args).build(target).stages["fused"]
    state = State(answers or {})
    with using(state), assuming(fused.facts):
        loops = lower(fused, target)
    tuning.keep_used(state, loops)
    return state.asked, loops


def schedules(module):
    return {str(f.attrs["schedule"]) for f in module.funcs.values() if "schedule" in f.attrs}


def test_questions_are_named_by_structure_and_target():
    (key,), _ = asked(layer, X, W)
    assert {key} == set(asked(lambda a, b: fx.tanh(a @ b), X, W)[0])  # names do not matter
    assert key not in asked(layer, X[:50], W)[0] and key not in asked(lambda x, w: fx.exp(x @ w), X, W)[0]
    assert key not in asked(layer, X, W, target=parse_target("cpu:x86-64-v2"))[0]


def test_an_answer_in_the_space_is_used_and_shown_and_others_are_refused():
    (q,) = asked(layer, X, W)[0].values()
    other = next(q.neighbours(q.default))
    assert other != q.default and q.schedule(q.answer(other)) == other and q.answer(q.default) == {}
    _, loops = asked(layer, X, W, answers={q.key: q.answer(other)})
    assert schedules(loops) == {str(other)[:-1] + ", tuned)"}
    with pytest.warns(UserWarning, match="tune again"):
        _, loops = asked(layer, X, W, answers={q.key: {"rows": 10**9}})
    assert schedules(loops) == {str(q.default)}
    assert q.schedule({"no such field": 1}) is None
    assert q.schedule({"rows": max(q.space["rows"]), "vectors": max(q.space["vectors"])}) is None  # too many registers


@pytest.mark.parametrize("f, args", [(layer, (X, W)), (lambda x: fx.exp(x @ W), (X,)), (
    lambda x, w: fx.maximum(fx.conv(x, w, padding=2), 0),
    (np.ones((1, 16, 12, 12), np.float32), np.linspace(-1, 1, 32 * 16 * 25, dtype=np.float32).reshape(32, 16, 5, 5)),
)], ids=["matmul", "matmul with packed weights", "conv"])  # fmt: skip
def test_every_schedule_near_the_default_computes_the_same(f, args):
    expected = fx.jit(f)(*args)
    target = driver.as_target("cpu")
    questions, _ = asked(f, *args, target=target)
    assert questions
    fused = fx.jit(f).lower(*args).build(target).stages["fused"]
    for q in questions.values():
        near = list(q.neighbours(q.default))
        for schedule in near[:: max(1, len(near) // 3)]:
            kernel = tuning._Kernel(fused, list(args), "f")
            (found,) = kernel.build(target, State({q.key: q.answer(schedule)})).call_flat(list(args))
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_search_writes_what_wins_and_a_setting_uses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "BURST", 0.0)
    # Whoever asks second wins: the time of a schedule is not what is tested.
    monkeypatch.setattr(tuning, "_ratio", lambda a, b, inputs, rounds: 0.5)
    path = tmp_path / "tuned.json"
    done = fx.tune(layer, (X, W), seconds=60, evaluations=2, file=path)
    (found,) = done.found
    assert done.evaluations == 2 and found.gain == pytest.approx(2) and "2.00" in done.table()
    assert read_answers(path)[found.key]["schedule"] == found.answer
    before = fx.jit(layer)(X, W)
    with config.override(tuned=str(path)):
        lowered = fx.jit(layer).lower(X, W)
        assert ", tuned)" in lowered.as_text("loops")
        np.testing.assert_allclose(fx.jit(layer)(X, W), before, rtol=1e-6)
        parts = driver.key_parts(lowered.module, driver.as_target("cpu"), None)
    assert parts["tuned"] and driver.key_parts(lowered.module, driver.as_target("cpu"), None)["tuned"] is None
    # A second search starts from what is known, and takes it back where the default is better.
    monkeypatch.setattr(tuning, "_ratio", lambda a, b, inputs, rounds: 1.0)
    again = fx.tune(layer, (X, W), seconds=60, evaluations=1, file=path)
    assert again.found[0].answer == {} and read_answers(path) == {}


def test_wrong_and_failing_schedules_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "BURST", 0.0)
    monkeypatch.setattr(tuning, "_ratio", lambda a, b, inputs, rounds: 0.5)
    monkeypatch.setattr(tuning, "_agree", lambda found, expected: False)
    done = fx.tune(layer, (X, W), seconds=60, evaluations=2, file=tmp_path / "tuned.json")
    assert done.refused == 2 and done.found[0].answer == {}
    assert tuning._agree([np.ones(2, np.int32)], [np.ones(2, np.int32)]) is False  # the one above
    monkeypatch.undo()
    one = np.ones(3, np.float32)
    assert tuning._agree([one, np.arange(3)], [one + 1e-6, np.arange(3)])
    assert not tuning._agree([one], [one + 1e-2]) and not tuning._agree([np.arange(3)], [np.arange(3) + 1])
    assert not tuning._agree([one * np.nan], [one])


def test_sizes_are_needed_targets_run_here_and_bounds_hold(tmp_path):
    lowered = fx.jit(layer).lower(fx.f32["B", 96], fx.f32[96, 64])
    with pytest.raises(FluxError) as problem:
        tuning.tune_program(lowered, {}, file=tmp_path / "t.json")
    assert problem.value.code == "FX0604" and "B" in problem.value.message
    done = tuning.tune_program(lowered, {"B": 70}, seconds=60, evaluations=0, file=tmp_path / "t.json")
    assert done.evaluations == 0 and len(done.found) == 1
    with pytest.raises(FluxError) as problem:
        fx.tune(layer, (X, W), target="sm_80")
    assert problem.value.code == "FX0707"


def test_files_are_checked(tmp_path):
    path = tmp_path / "tuned.json"
    for text in (
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 1, "schedules": {"k": {"schedule": {"rows": [1]}}}}',
        "9" * 5000,
    ):
        path.write_text(text)
        with pytest.raises(FluxError) as problem:
            read_answers(path)
        assert problem.value.code == "FX0803"
    write_answers(path, {"k": {"schedule": {"rows": 4}}})
    assert read_answers(path) == {"k": {"schedule": {"rows": 4}}}
    with config.override(tuned=str(tmp_path / "none.json")), pytest.raises(FluxError) as problem:
        fx.jit(layer)(X, W)
    assert problem.value.code == "FX0803"
    with config.override(tuned="cache", cache_dir=str(tmp_path / "empty")):
        assert driver.tuned_state() == State({})
    with pytest.raises(FluxError) as problem:
        write_answers(path / "below a file", {})
    assert problem.value.code == "FX0804"


def test_the_verb(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "BURST", 0.0)
    model, path = tmp_path / "model.py", tmp_path / "tuned.json"
    model.write_text(
        "import fluxir as fx\n\n\n@fx.model\ndef main(x: fx.f32['B', 96], w: fx.f32[96, 64]):\n    return x @ w\n"
    )
    arguments = ["tune", str(model), "--dim", "B=70", "--evaluations", "1", "--file", str(path), "--json"]
    assert cli.main(arguments) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["evaluations"] == 1 and told["file"] == str(path) and path.exists()
    assert cli.main(["tune", str(model)]) == 1  # no size for B
