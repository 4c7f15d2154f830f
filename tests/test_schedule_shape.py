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
    ("t", "axis"),
    [("f32[3,37]", 1), ("f32[B,2,40]", 1), ("f64[5000]", 0), ("i8[2,64]", 0), ("f32[4,3]", 1), ("f32[9,K,24]", -1)],
)
def test_parts_of_one_shape_are_computed_together(t: str, axis: int) -> None:
    """A concat of what is computed, and another result of the shape of its parts, are one pass over that shape."""

    def body(b: Any, x: Any, y: Any) -> Any:
        shared = b.mul(x, y)
        return b.concat(b.add(shared, x), shared, b.sub(y, shared), x, axis=axis), b.add(shared, y)

    low = check(fused([t, t], body))
    made = [f for f in low.funcs.values() if "together=5" in f.attrs.get("schedule", "")]
    assert len(made) == 1 and len([f for f in low.funcs.values() if f.level == "kernel"]) == 1


def test_parts_of_two_shapes_are_two_passes() -> None:
    low = check(
        fused(["f32[3,20]", "f32[3,33]"], lambda b, x, y: b.concat(b.mul(x, x), b.add(y, y), b.neg(x), y, axis=1))
    )
    assert [f.attrs["schedule"].split(",")[1] for f in low.funcs.values() if f.level == "kernel"] == [" together=2"] * 2


@pytest.mark.parametrize(
    ("t", "start", "limit"), [("f32[5,70]", (1, 3), (4, 40)), ("f32[4,2,64]", (1, 0, 32), (2, 2, 64))]
)
def test_slices_are_read_on_vectors(t: str, start: Any, limit: Any) -> None:
    """Gates: parts of a row that lie side by side."""

    def body(b: Any, x: Any) -> Any:
        left = b.slice(x, start=start, limit=limit)
        right = b.slice(x, start=(*start[:-1], 0), limit=(*limit[:-1], limit[-1] - start[-1]))
        return b.add(b.mul(left, right), b.slice(b.abs(x), start=start, limit=limit))

    low = check(fused([t], body))
    (made,) = [f for f in low.funcs.values() if f.level == "kernel"]
    assert "lanes=8" in made.attrs["schedule"]


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
