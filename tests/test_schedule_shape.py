"""Shape ops that have loops of their own: transposes in tiles, concat and pad by parts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.schedule_harness import check, func, fused


@pytest.mark.parametrize(
    "types",
    [
        ["f32[3,2]", "f32[3,5]"],
        ["f32[B,2]", "f32[B,0]", "f32[B,3]"],
        ["i32[2]", "i32[3]"],
        ["f32[2,3,4]", "f32[2,1,4]"],
    ],
)
def test_concat(types: list[str]) -> None:
    axis = 0 if types[0].count(",") == 0 else 1
    low = check(func(types, lambda b, *xs: b.concat(*xs, axis=axis)))
    assert any("join" in f.attrs.get("schedule", "") for f in low.funcs.values())
    check(fused(types, lambda b, x, y, *z: b.concat(b.add(x, x), y, *z, axis=axis)))


def test_concat_in_the_middle_of_a_group() -> None:
    check(fused(["f32[3,2]", "f32[3,5]"], lambda b, x, y: b.exp(b.concat(x, y, axis=1))))


@pytest.mark.parametrize(
    ("t", "low", "high"),
    [("f32[3,4]", (0, 1), (0, 2)), ("f32[3,4]", (1, 0), (2, 0)), ("f32[B,4]", (1, 1), (0, 1)), ("f32[5]", (2,), (0,)), ("f32[0,4]", (1, 1), (1, 1)), ("f32[3,4]", (-1, 0), (0, 2)), ("f32[2,3,4]", (1, 1, 1), (1, 1, 1))],
)  # fmt: skip
def test_pad(t: str, low: Any, high: Any) -> None:
    check(func([t, "f32"], lambda b, x, v: b.pad(x, v, low=low, high=high)))
    check(fused([t, "f32"], lambda b, x, v: b.pad(b.mul(x, x), v, low=low, high=high)))


def test_pad_with_interior() -> None:
    check(func(["f32[3,4]", "f32"], lambda b, x, v: b.pad(x, v, low=(0, 1), high=(0, 0), interior=(1, 2))))


@pytest.mark.parametrize(
    ("t", "perm"),
    [
        ("f32[130,150]", (1, 0)),
        ("f32[3,70,90]", (0, 2, 1)),
        ("f32[70,3,90]", (2, 1, 0)),
        ("f32[S,T]", (1, 0)),
        ("f32[4,5]", (1, 0)),
    ],
)
def test_transpose(t: str, perm: Any) -> None:
    low = check(func([t], lambda b, x: b.transpose(x, perm=perm)), {"S": 37, "T": 5})
    tiled = any("tile=" in f.attrs.get("schedule", "") for f in low.funcs.values())
    assert tiled == (t != "f32[4,5]")
