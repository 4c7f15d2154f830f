"""The example models: each is loaded as a user would, compiled for the CPU, run, and compared; PTX is made of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import driver
from fluxir.frontend import tree
from fluxir.ir.interp import interpret

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RNG = np.random.default_rng(11)


def program(name: str) -> Any:
    """The traced entry of an example."""
    return fx.load_model(EXAMPLES / f"{name}.py").entry().trace()


def run(name: str, *args: Any) -> Any:
    """The answer of native code, which is the interpreter's."""
    t = program(name)
    got = driver.compile_module(t.module, "cpu", cache=False).program.call_flat([np.array(a) for a in args])
    for a, b in zip(got, interpret(t.module, [np.array(a) for a in args]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return t.out_tree.unflatten(got)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_newton(n: int) -> None:
    x = RNG.uniform(0, 100, n).astype(np.float32)
    x[0] = -1
    got = run("newton", x)
    want = np.sqrt(np.maximum(x, 0))
    np.testing.assert_allclose(got["roots"], want, rtol=1e-6)
    np.testing.assert_allclose(got["sorted"], np.sort(want), rtol=1e-6)
    assert got["steps"][0] == 0 and all(0 < s < 20 for s in got["steps"][1:])


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 5, 16)])
def test_attention_is_causal(shape: tuple[int, ...]) -> None:
    x = RNG.normal(size=shape).astype(np.float32)
    y = run("attention", x)
    assert y.shape == shape and np.isfinite(y).all()
    changed = x.copy()
    changed[:, -1] += 1
    np.testing.assert_allclose(run("attention", changed)[:, :-1], y[:, :-1], rtol=1e-5, atol=1e-6)


def test_text_stops_and_depends_on_its_key_alone() -> None:
    prompt = np.frombuffer(b"hello", np.uint8).astype(np.int64)
    texts = [run("text", prompt, np.int64(n), np.uint32(seed)) for n, seed in ((0, 1), (8, 1), (20, 1), (50, 2))]
    assert [int(t["length"]) <= n for t, n in zip(texts, (0, 8, 20, 20), strict=True)] == [True] * 4
    short, long = texts[1], texts[2]
    assert short["length"] > 0 and (short["text"][: short["length"]] == long["text"][: short["length"]]).all()
    assert (long["text"] != texts[3]["text"]).any()
    for t in texts:
        assert (t["text"][t["length"] :] == 0).all() and (t["text"][: t["length"]] > 0).all()
    assert run("text", prompt[:2], np.int64(8), np.uint32(1))["length"] >= 0


@pytest.mark.parametrize("name", ["newton", "attention", "text"])
def test_examples_compile_for_gpus(name: str) -> None:
    t = program(name)
    assert ".visible .entry" in driver.compile_module(t.module, "sm_80", cache=False).code.decode()
    assert tree.leaves(t.out_tree.unflatten(list(range(t.out_tree.leaf_count))))
