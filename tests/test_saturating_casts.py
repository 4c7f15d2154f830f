"""Casts of vectors of floats to integers: what is beyond the limits becomes the limit, NaN becomes 0."""

from __future__ import annotations

import numpy as np
import pytest

import fluxir as fx
from fluxir.ir.interp import interpret

EDGES = [0, -0.0, np.nan, np.inf, -np.inf, 1.5, -1.5, -0.3, 1e30, -1e30]
EDGES += [s * (2.0**k + d) for k in (7, 8, 15, 16, 31, 32) for d in (-1, -0.5, 0, 0.5, 1, 300) for s in (1, -1)]


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v2"])
@pytest.mark.parametrize("source", ["float32", "float64"])
def test_limits(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    many = [rng.standard_normal(100) * s for s in (1e2, 1e5, 4e9)]
    x = np.concatenate([np.array(EDGES), *many]).astype(source)
    names = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    lowered = fx.jit(lambda x: tuple(fx.astype(x, getattr(fx, name)) for name in names)).lower(x)
    for name, found, want in zip(names, lowered.compile(target, cache=False)(x), interpret(lowered.module, [x])):
        np.testing.assert_array_equal(found, want, err_msg=name)
