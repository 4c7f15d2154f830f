"""Profiles on the CPU: the same results from the same kernels, counts and operations that add up, traces and pages."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import fluxir as fx
from fluxir import cli, config, driver, roofline
from fluxir.codegen.x86 import compile_cpu
from fluxir.errors import FluxError
from fluxir.profile_report import page, trace
from fluxir.runtime.program import Program

X = np.linspace(-1, 1, 96 * 64, dtype=np.float32).reshape(96, 64)
W = np.linspace(-1, 1, 64 * 48, dtype=np.float32).reshape(64, 48)
LIMIT = roofline.Roofline(1, 1e11, 2e10, 2e10, 2e10)


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """What the machine can do is not measured in every test."""
    monkeypatch.setattr("fluxir.profiling.roofline", lambda: LIMIT)


def layer(x, w):
    return fx.sum(fx.exp(x @ w), axis=1)


def test_kernels_launches_operations_and_lines():
    p = fx.profile(layer, repeat=3)(X, W)
    np.testing.assert_array_equal(p.results, fx.jit(layer)(X, W))
    assert p.calls == 3 and p.seconds > 0 and sum(k.flops or 0 for k in p.kernels) >= 2 * 96 * 64 * 48
    assert all(k.launches == 1 and k.seconds > 0 and k.template and k.schedule for k in p.kernels)
    product = max(p.kernels, key=lambda k: k.flops or 0)
    assert any(line.endswith(f"test_profile.py:{layer.__code__.co_firstlineno + 1}") for line in product.lines)
    assert product.least == pytest.approx(LIMIT.seconds(product.flops, 4 * 64 * (96 + 48), 4 * 96 * 48), rel=1)
    assert p.table().splitlines()[0].startswith("layer: ") and product.name in p.table()
    assert json.loads(json.dumps(p.as_json()))["kernels"][0]["name"] == p.kernels[0].name


def test_a_loop_counts_each_round_and_symbols_have_values():
    def f(x):
        return fx.scan(lambda c, t: (fx.tanh(c @ W[:48, :48] + t), None), fx.zeros((4, 48), dtype=fx.f32), x)[0]

    p = fx.profile(fx.jit(f, signature=(fx.f32["T", 4, 48],)), repeat=2)(np.ones((7, 4, 48), np.float32))
    assert sum(k.launches for k in p.kernels) >= 1
    assert all(k.moved is not None for k in p.kernels)


def test_a_trace_has_the_launches_in_order_on_named_threads(tmp_path):
    with config.override(num_threads=2):
        p = fx.profile(lambda x: fx.sum(fx.exp(x)), repeat=2)(np.ones(1 << 20, np.float32))
    events = trace([p])["traceEvents"]
    launches = [e for e in events if e.get("cat") == "launch"]
    assert len(launches) == 2 * sum(k.launches for k in p.kernels)
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in zip(launches, launches[1:])) and {
        e["tid"] for e in launches
    } == {0}
    ranges = [e for e in events if e.get("cat") == "range"]
    assert ranges and {e["name"] for e in ranges} <= {e["name"] for e in launches}
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} <= {"calling thread", "worker 1"}


def test_an_ordinary_build_has_nothing_of_it_and_a_full_record_drops_events_only():
    lowered = fx.jit(layer).lower(X, W)
    target = driver.as_target("cpu")
    loops = lowered.build(target).stages["loops"]
    plain, timed = compile_cpu(loops, target), compile_cpu(loops, target, events=1)
    assert "readcyclecounter" not in plain.vector_source and "readcyclecounter" in timed.vector_source
    # Kernels are the same text in both: only the host functions differ.
    assert [p for p in plain.pieces if p.name != "host"] == [p for p in timed.pieces if p.name != "host"]
    program = Program(timed.spec, timed.object, timed.constants)
    for _ in range(2):
        program.call_flat([X, W])
    record = program.constants[-1]
    assert record[0] >= 2 * len(timed.launches) and record[1] == 1 and (record[3 : int(record[2]) : 2] == 2).all()


def test_donated_arguments_and_other_targets():
    p = fx.profile(fx.jit(lambda x, y: x + y, donate_argnums=0), repeat=3)(X.copy(), X)
    np.testing.assert_array_equal(p.results, X + X)
    with pytest.raises(FluxError) as problem:
        fx.profile(layer, target="sm_80")(X, W)
    assert problem.value.code == "FX0707" and "vgpu" in problem.value.help


def test_a_page_of_several_programs_stands_alone():
    found = [fx.profile(layer, repeat=1)(X, W), fx.profile(lambda x: x + 1, repeat=1)(X)]
    text = page(found)
    assert not re.search(r"(src|href)=.https?:", text) and text.count('class="counts"') == 2
    assert "<h2>Time</h2>" in text and "test_profile.py" in text


def test_the_verb_prints_writes_and_gives_json(tmp_path, capsys):
    model = tmp_path / "model.py"
    model.write_text("import fluxir as fx\n\n\n@fx.model\ndef main(x: fx.f32['B', 8]):\n    return fx.exp(x) * 2\n")
    files = [tmp_path / "trace.json", tmp_path / "page.html"]
    arguments = [
        "profile",
        str(model),
        "--dim",
        "B=64",
        "--repeat",
        "2",
        "--trace",
        str(files[0]),
        "--html",
        str(files[1]),
    ]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "main: " in out and "model.py:6" in out
    assert json.loads(files[0].read_text())["traceEvents"] and "model.py" in files[1].read_text()
    assert cli.main([*arguments[:6], "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["calls"] == 2 and found["kernels"][0]["flops"] == 2 * 64 * 8
    assert cli.main([*arguments[:6], "--trace", str(tmp_path / "no" / "trace.json")]) == 74
    assert cli.main(["profile", str(model)]) == 2  # no size for B


def test_the_roofline_is_measured_kept_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "LARGE", 1 << 20)
    monkeypatch.setattr(roofline.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    with config.override(cache_dir=str(tmp_path)):
        first = roofline.roofline(1)
        assert first.flops > 1e8 and min(first.read, first.copy, first.triad) > 1e7
        monkeypatch.setattr(roofline, "measure", lambda threads: pytest.fail("measured again"))
        assert roofline.roofline(1) == first
        (tmp_path / "roofline.json").write_text("{ not JSON")
        monkeypatch.setattr(roofline, "measure", lambda threads: LIMIT)
        assert roofline.roofline(1) == LIMIT
    assert LIMIT.seconds(1e11, 0, 0) == 1 and LIMIT.seconds(0, 1e10, 1e10) == 1
    assert 1e6 < roofline.ticks_per_second() < 1e11
