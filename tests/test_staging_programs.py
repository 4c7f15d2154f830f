"""Random staged programs: one source, run by Python on arrays, as interpreted IR, and as native code."""

from __future__ import annotations

import datetime
import linecache
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import driver
from fluxir.frontend.trace import trace
from fluxir.ir.interp import interpret
from fluxir.ir.verify import verify_module
from tests.staged_programs import arguments, random_source

TODAY = 100_000 + 1000 * (datetime.date.today().timetuple().tm_yday % 300)


def functions(source: str, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The program as plain Python and staged, each with its own helper."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    plain: dict[str, Any] = {}
    staged: dict[str, Any] = {}
    for space in (plain, staged):
        exec(compile(source, name, "exec"), space)
    staged["helper"] = fx.function(staged["helper"])
    return plain["program"], fx.function(staged["program"])


def compare(seed: int, size: int = 6, native: bool = True) -> None:
    source = random_source(seed, size)
    plain, staged = functions(source, f"<program {seed}>")
    t = trace(staged, arguments(seed))
    verify_module(t.module)
    compiled = driver.compile_module(t.module, "cpu", cache=False) if native else None
    for k in range(4):
        with np.errstate(all="ignore"):
            want = plain(*arguments(seed + 7919 * k))
        args = arguments(seed + 7919 * k)
        ways = {"interpreted": interpret(t.module, args)}
        if compiled is not None:
            ways["native"] = compiled.program.call_flat([np.array(a) for a in args])
        for way, got in ways.items():
            note = f"seed {seed}, arguments {k}, {way}\n{source}"
            assert len(got) == len(want), note
            for g, w in zip(got, want, strict=True):
                w = np.asarray(w)
                assert g.shape == w.shape and g.dtype.kind == w.dtype.kind, note
                np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-5, err_msg=note)


@pytest.mark.parametrize("seed", range(30))
def test_staged_is_python(seed: int) -> None:
    compare(seed, native=seed % 3 == 0)


@pytest.mark.parametrize("seed", range(TODAY, TODAY + 6))
def test_staged_is_python_on_todays_programs(seed: int) -> None:
    compare(seed, native=seed % 3 == 0)


@pytest.mark.deep
@pytest.mark.parametrize("block", range(16))
def test_many_more_programs(block: int) -> None:
    for seed in range(10_000 + 50 * block, 10_050 + 50 * block):
        compare(seed, size=9, native=seed % 5 == 0)
