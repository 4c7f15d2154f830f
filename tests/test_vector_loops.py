"""Pointwise kernels on vectors: every length and alignment, stores past the caches, squares transposed in registers.

The stores that bypass the caches are for arrays larger than tests should be, so their threshold is taken away here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import config
from fluxir.schedule import pointwise, vector_loops
from fluxir.schedule.transposed import Transposed


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Results are stored past the caches whatever their size, by any number of threads."""
    vectors_of, of = vector_loops.vectors_of, Transposed.of

    def eager(make: Any) -> Any:
        def made(*args: Any) -> Any:
            found = make(*args)
            return None if found is None else replace(found, stream_from=0)

        return made

    monkeypatch.setattr(pointwise, "vectors_of", eager(vectors_of))
    monkeypatch.setattr(pointwise.Transposed, "of", staticmethod(eager(of)))
    monkeypatch.setattr(pointwise, "VECTOR_GRAIN", 1)
    with config.override(cache=False):
        yield


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def offsets(n: int, dtype: Any, count: int = 5) -> list[Any]:
    """Arrays of `n` elements that begin at different places of a vector."""
    return [np.full(n + 16, 7, dtype)[k : k + n] for k in (0, 1, 3, 4, 8)[:count]]


def test_every_length_and_alignment(streaming: None) -> None:
    program = fx.jit(lambda x, y: (x * y + 1.0, x < y)).lower(fx.f32["N"], fx.f32["N"]).compile().program
    assert "streaming" in fx.jit(lambda x, y: x * y).lower(fx.f32["N"], fx.f32["N"]).as_text("loops")
    for n in (1, 7, 8, 31, 40, 333, 4099):
        x, y = normal(n), normal(n)[::-1].copy()
        for first in offsets(n, np.float32):
            second = np.zeros(n, bool)
            program(x, y, out=(first, second))
            np.testing.assert_array_equal(first, x * y + np.float32(1))
            np.testing.assert_array_equal(second, x < y)
            assert first.base is not None and list(first.base[-8:]) == [7.0] * 8 or n < 8  # nothing beyond the end


@pytest.mark.parametrize("shape", [(5, 9), (37, 33), (64, 96)])
def test_lines_of_a_matrix(streaming: None, shape: tuple[int, int]) -> None:
    """Lines that begin inside of vectors, a factor of each line, and a term of each column."""
    x, z, y = normal(*shape), normal(shape[0], 1), normal(shape[1])
    program = fx.jit(lambda x, y, z: x * z + y).lower(x, y, z).compile().program
    for flat in offsets(x.size, np.float32):
        out = flat.reshape(shape)
        program(x, y, z, out=out)
        np.testing.assert_array_equal(out, x * z + y)


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "i8", "bool", "f16", "bf16"])
def test_types(streaming: None, dtype: str) -> None:
    d = getattr(fx, dtype).numpy
    x = (normal(301) * 9).astype(d)
    got = np.asarray(fx.jit(lambda x: fx.where(x > x[0], x, x[1]))(x))
    np.testing.assert_array_equal(got, np.where(x > x[0], x, x[1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("shape", [(64, 96), (69, 131)])
def test_transposes(streaming: None, shape: tuple[int, int], dtype: Any) -> None:
    """Whole tiles and edges; memory that is read in both orders; types whose squares are left to single elements."""
    x, y = (normal(*shape) * 9).astype(dtype), (normal(*shape[::-1]) * 9).astype(dtype)
    np.testing.assert_array_equal(fx.jit(lambda x, y: x.T + y)(x, y), x.T + y)
    deep = (normal(3, *shape) * 9).astype(dtype)
    np.testing.assert_array_equal(fx.jit(lambda x: fx.permute_dims(x, (0, 2, 1)))(deep), deep.transpose(0, 2, 1))


def test_bits_do_not_depend_on_neighbours() -> None:
    """An element in a vector, in a wide one, and by itself is the same."""
    x = normal(203) * 3
    f = fx.jit(lambda x: fx.exp(fx.tanh(x) * 1.5) + fx.erf(x))
    whole = np.asarray(f(x))
    for lo, hi in ((0, 1), (5, 14), (100, 171)):
        np.testing.assert_array_equal(np.asarray(f(x[lo:hi].copy())), whole[lo:hi])


def test_what_a_line_does_not_vary_is_computed_before_it() -> None:
    text = fx.jit(lambda x, s: x * fx.abs(s)).lower(fx.f32[64, 256], fx.f32[64, 1]).as_text("loops", "cpu:x86-64-v3")
    assert text.count("abs(") == 1 and text.index("abs(") < text.index("[lanes=")
