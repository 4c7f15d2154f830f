"""`python -m bench cpu`: workers in processes of their own, results compared before they are timed, failures told, reports."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from bench import cpu
from bench.cpu import report, session
from bench.cpu.libraries import FUNCTIONS, LIBRARIES
from bench.cpu.limits import Limits, traffic
from bench.cpu.row import leaves, load
from bench.cpu.session import Result, Session, compare

ROWS = load()
KEYS = {FUNCTIONS.get(name, name) for name in LIBRARIES}


def test_every_row_has_ours_and_a_peer():
    for row in ROWS.values():
        assert set(row.functions) <= KEYS and set(row.workers) <= set(LIBRARIES), row.name
        assert "ours" in row.functions or "fluxir" in row.workers, row.name
        assert len(row.functions) + len(row.workers) >= 2, row.name
    assert {r.kind for r in ROWS.values() if r.held_out} | {"model", "training"} == {r.kind for r in ROWS.values()} | {
        "model"
    }


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if "numpy" in r.functions and r.flops + r.reads < 3e6])
def test_ours_and_numpy_compute_the_same(name):
    import fluxir as fx

    row = ROWS[name]
    inputs = row.inputs()
    count = len(inputs) - row.weights
    ours = fx.jit(lambda *xs: row.functions["ours"](*xs, *inputs[count:]))(*inputs[:count])
    theirs = row.functions["numpy"](*inputs)
    found = session.difference([np.asarray(a) for a in leaves(ours)], [np.asarray(a) for a in leaves(theirs)])
    assert found <= row.tolerance


def test_a_run_times_ours_beside_numpy_and_writes_its_reports(tmp_path, capsys):
    text = cpu.main(["--row", "call on 8", "--peers", "numpy", "--threads", "1", "--budget", "0.001"], True, tmp_path)
    assert "call on 8 elements" in text and "in geometric mean" in text
    assert {p.name for p in tmp_path.iterdir()} == {"cpu.json", "cpu.md", "cpu.svg"}
    ET.parse(tmp_path / "cpu.svg")
    assert "1 thr. call on 8 elements" in capsys.readouterr().err


def test_a_worker_that_fails_is_named_and_the_next_row_goes_on(monkeypatch):
    row = dataclasses.replace(ROWS["call on 8 elements"], functions={"numpy": lambda x, y: x + y})
    s = Session(["numpy", "numba"], 1)
    try:
        monkeypatch.setattr(session, "PREPARE", 60.0)
        missing = s.prepare(dataclasses.replace(row, functions={"numpy": 0, "numba": 0}, name="matmul 64x64 @ 64x64"))
        if "numba" in missing.failed:  # where numba is not installed
            assert "numba" in missing.failed["numba"] and "numba" not in missing.times
        s.workers["numpy"].kill()
        assert s.prepare(row).failed == {}
        s.measure([row.name], 2, 0.0)
        assert len(s.results[row.name].times["numpy"]) == 2
    finally:
        s.close()


def _result(**times: list[float]) -> Result:
    return Result(ROWS["matmul 256"], 1, times)


def test_who_computes_something_else_is_taken_out():
    result = _result(fluxir=[], numpy=[], torch=[])
    right, wrong = [np.ones(3)], [np.array([1, 1, 1.1])]
    compare(result, {"fluxir": wrong, "numpy": right, "torch": right})
    assert set(result.times) == {"numpy", "torch"} and "differs from numpy's by 1.0e-01" in result.failed["fluxir"]
    assert session.difference([np.ones(3)], [np.ones(4)]) == np.inf
    assert session.difference([np.array([np.nan])], [np.ones(1)]) == np.inf


def test_ratios_shares_goals_and_noise():
    limits = Limits(1)
    limits.rates["triad"] = 1e12
    limits.flops = 2.0 * 256**3 / 1e-3  # the row takes a millisecond at least
    result = _result(fluxir=[1.1e-3, 1.1e-3, 1.1e-3], numpy=[2.2e-3, 2.2e-3, 2.2e-3], torch=[9.0, 9.0, 9.0])
    assert result.best_peer() == "numpy" and result.ratio() == pytest.approx(2)
    assert report.share(result, limits) == pytest.approx(1 / 1.1) and report.met(result, limits)
    assert result.noise() == ""
    result.times["fluxir"] = [1e-3, 2e-3, 3e-3]
    assert "fluxir +-25%" in result.noise() and not report.met(result, limits)
    assert "matmul 256 (0.50)" in report.summary([_result(fluxir=[2.0], numpy=[1.0])], {1: limits})[0]


def test_the_kind_of_traffic_is_that_of_the_arrays():
    def kind(name: str) -> Any:
        return traffic(ROWS[name])

    assert kind("softmax 4096x1024") == "copy"
    assert kind("arithmetic chain, 4M") == "triad"
    assert kind("1x4096 @ 4096x4096 (decode)") == "read"
