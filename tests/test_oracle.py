"""Small programs and whole models against PyTorch's answers, which are stored: see `tests/oracle`.

Each program is interpreted as it was traced and runs as native code, with its batch as a symbol where it has one. Single
functions are compiled by the dozen, because a program of twelve results compiles faster than twelve programs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import fluxir as fx
from fluxir.driver import compile_module
from fluxir.embed import lower_function
from fluxir.frontend import tree
from fluxir.ir.interp import interpret
from fluxir.ir.types import TensorType
from tests.oracle.cases import FIXTURES, Case
from tests.oracle.functions import FUNCTIONS
from tests.oracle.models import MODELS

# The error allowed, in units in the last place of numbers of order one. Half precision rounds after every op.
ULPS = {"f64": 64, "f32": 32, "f16": 6, "bf16": 6}
BUNDLE = 12
BUNDLES = [FUNCTIONS[i : i + BUNDLE] for i in range(0, len(FUNCTIONS), BUNDLE)]


@functools.cache
def fixture(name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def answers(c: Case, dtype: str) -> list[np.ndarray[Any, Any]]:
    stored = fixture("models" if c in MODELS else "functions")
    how = "fine" if dtype in ("f32", "f64") else "coarse"
    out = []
    while f"{c.name}/{how}/{len(out)}" in stored:
        out.append(stored[f"{c.name}/{how}/{len(out)}"])
    assert out, f"no stored answer for {c.name}"
    return out


def inputs(c: Case, dtype: str) -> list[Any]:
    """The case's inputs in a dtype; the f64 numbers they are drawn as are exact in it."""
    d = fx.DType.__call__ if False else getattr(fx, dtype).numpy

    def cast(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if a.dtype != np.float64:
            return a
        out = a.astype(d)
        np.testing.assert_array_equal(out.astype(np.float64), a, f"{c.name}: the inputs are not exact in {dtype}")
        return out

    return [
        {k: cast(v) for k, v in a.items()} if isinstance(a, dict) else cast(a)
        for a in c.arrays(coarse=dtype in ("f16", "bf16"))
    ]


def types_of(c: Case, arrays: list[Any], symbol: str | None) -> list[Any]:
    """Argument types; the batch axes are `symbol` unless it is None."""

    def type_of(a: np.ndarray[Any, Any], axis: int | None) -> TensorType:
        shape = tuple(symbol if k == axis and symbol else n for k, n in enumerate(a.shape))
        return getattr(fx, "bool" if a.dtype == bool else fx.dtype(a.dtype).name)[shape]

    return [
        {k: type_of(v, None) for k, v in a.items()} if isinstance(a, dict) else type_of(a, c.batch.get(i))
        for i, a in enumerate(arrays)
    ]


def compare(c: Case, got: Any, dtype: str, how: str) -> list[str]:
    """The mismatches of the results `got` against the stored answers, in words."""
    got = list(got) if isinstance(got, tuple | list) else [got]
    want = answers(c, dtype)
    if len(got) != len(want):
        return [f"{c.name} {dtype} {how}: {len(got)} results, not {len(want)}"]
    wrong = []
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        g = np.asarray(g)
        what = f"{c.name} {dtype} {how}, result {i}"
        if g.shape != w.shape:
            wrong.append(f"{what}: shape {g.shape}, not {w.shape}")
            continue
        if w.dtype.kind == "f":
            assert g.dtype.name == getattr(fx, dtype).numpy_name if hasattr(getattr(fx, dtype), "numpy_name") else True
            scale = (
                float(np.finfo(np.float64 if dtype == "f64" else np.float32).eps)
                if dtype in ("f32", "f64")
                else {"f16": 2.0**-10, "bf16": 2.0**-7}[dtype]
            )
            tolerance = scale * ULPS[dtype] * c.tolerance
            good = np.isclose(
                g.astype(np.float64), w.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True
            )
        else:
            good = g == w
        if not good.all():
            at = tuple(int(k) for k in np.argwhere(~good)[0])
            wrong.append(f"{what}: {int((~good).sum())} of {good.size} differ, first at {at}: {g[at]!r} and {w[at]!r}")
    return wrong


def check(cases: list[Case], dtype: str, symbolic: bool, interpreted: bool = True) -> None:
    cases = [c for c in cases if c.half or dtype in ("f32", "f64")]
    if not cases:
        return
    arrays = [inputs(c, dtype) for c in cases]
    types = [types_of(c, a, f"B{i}" if symbolic else None) for i, (c, a) in enumerate(zip(cases, arrays))]
    traced = lower_function(lambda *xs: [c.ours(fx, *x) for c, x in zip(cases, xs)], *types, name="oracle")
    flat = tree.flatten((tuple(arrays), {}))[0]
    wrong = []
    if interpreted:
        got = traced.out_tree.unflatten(interpret(traced.module, flat))
        wrong += [line for c, g in zip(cases, got) for line in compare(c, g, dtype, "interpreted")]
    compiled = compile_module(traced.module, "cpu", cache=False)
    got = traced.out_tree.unflatten(compiled.program.call_flat(flat))
    wrong += [line for c, g in zip(cases, got) for line in compare(c, g, dtype, "native")]
    assert not wrong, "\n".join(wrong)


def name_of(bundle: list[Case]) -> str:
    return f"{bundle[0].name}..{bundle[-1].name}".replace(" ", "_").replace(",", ".").replace("->", "-")
