"""The memory plan: lifetimes never overlap in the arena, dead memory is reused, launches work in place where they may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir.ops  # noqa: F401
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Func, Module, Value
from fluxir.ir.dims import Dim, Facts, evaluate, symbol
from fluxir.ir.dtypes import f32
from fluxir.ir.interp import Interpreter
from fluxir.ir.types import BOOL, INDEX, MemType
from fluxir.ir.verify import verify_module
from fluxir.passes.manager import PassManager

B = symbol("B")


def scale_kernel(t: MemType, factor: float) -> Func:
    """out = x * factor over a memory of rank 1."""

    def body(b: Builder, x: Value, out: Value) -> None:
        def each(ib: Builder, i: Value) -> None:
            ib.store(out, ib.mul(ib.load(x, i), factor), i)

        b.emit("for", b.index(0), b.index(t.shape[0]), b.index(1), blocks=[b.block([INDEX], each)])

    return build_func(f"scale{factor:g}", [t, t], body, ["x", "out"], level="kernel")


def planned(host: Any, n: Dim = B, options: str = "", inputs: int = 1) -> Module:
    t = MemType(f32, (n,))
    kernel = scale_kernel(t, 2)
    func = build_func("main", [t, t], lambda b, x, o: host(b, t, x, o), ["x", "out"], level="host", inputs=inputs)
    m = Module("m", {"main": func, kernel.name: kernel}, Facts({"B": (0, 1 << 20)}))
    verify_module(m)
    out = PassManager("plan" + options).run(m)
    verify_module(out)
    return out


def launch(b: Builder, x: Value, out: Value, inplace: bool = False) -> None:
    b.emit("launch", x, out, callee="scale2", inplace=((1, 0),) if inplace else ())


def run(m: Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Interpret a planned host function with an arena full of garbage."""
    out = np.zeros_like(x)
    arena = np.full(evaluate(m.entry.attrs["arena"], {"B": len(x)}), 0xAB, np.uint8)
    Interpreter(m, {"B": len(x)}).run(m.entry.block, [x, out, arena], {})
    return out


def views(m: Module) -> list[Dim]:
    return [op.attrs["offset"] for op in m.entry.walk() if op.name == "view"]


def chain(b: Builder, t: MemType, x: Value, o: Value, length: int = 4, inplace: bool = False) -> None:
    for _ in range(length):
        y = b.alloc(type=t)
        launch(b, x, y, inplace)
        x = y
    launch(b, x, o)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("size", [0, 1, 5, 100])
def test_a_chain_reuses_memory(inplace: bool, size: int) -> None:
    m = planned(lambda b, t, x, o: chain(b, t, x, o, inplace=inplace))
    slots = len(set(views(m)))
    assert slots == (1 if inplace else 2)
    x = np.arange(size, dtype="f")
    np.testing.assert_array_equal(run(m, x), x * 32)


def test_without_reuse_every_buffer_has_its_own_place() -> None:
    m = planned(lambda b, t, x, o: chain(b, t, x, o), options="[reuse=false]")
    assert len(set(views(m))) == 4


def test_a_value_needed_later_is_not_overwritten() -> None:
    def host(b: Builder, t: MemType, x: Value, o: Value) -> None:
        y, z, w = b.alloc(type=t), b.alloc(type=t), b.alloc(type=t)
        launch(b, x, y)
        launch(b, y, z, inplace=True)  # y is needed once more: z must not take its place
        launch(b, z, w, inplace=True)
        launch(b, y, o)

    m = planned(host)
    offsets = views(m)
    assert offsets[0] != offsets[1] and offsets[0] != offsets[2]
    x = np.arange(7, dtype="f")
    np.testing.assert_array_equal(run(m, x), x * 4)


def test_what_a_loop_uses_lives_through_the_loop() -> None:
    def host(b: Builder, t: MemType, x: Value, o: Value) -> None:
        y = b.alloc(type=t)
        launch(b, x, y)

        def body(ib: Builder, i: Value) -> None:
            s, u = ib.alloc(type=t), ib.alloc(type=t)
            launch(ib, y, s)
            launch(ib, s, u)
            ib.copy(y, u)

        b.emit("for", b.index(0), b.index(3), b.index(1), blocks=[b.block([INDEX], body)])
        launch(b, y, o)

    m = planned(host)
    y, s, u = views(m)
    assert len({str(y), str(s), str(u)}) == 3
    x = np.arange(5, dtype="f")
    np.testing.assert_array_equal(run(m, x), x * 4 * 4**3)


def test_memory_carried_by_a_loop_is_followed() -> None:
    """Two buffers swapped in a loop: both live through it, and the result may be either."""

    def host(b: Builder, t: MemType, x: Value, o: Value) -> None:
        p, q = b.alloc(type=t), b.alloc(type=t)
        launch(b, x, p)

        def body(ib: Builder, i: Value, front: Value, back: Value) -> tuple[Value, Value]:
            launch(ib, front, back)
            return back, front

        r, _ = b.emit("for", b.index(0), b.index(3), b.index(1), p, q, blocks=[b.block([INDEX, t, t], body)])
        late = b.alloc(type=t)
        launch(b, r, late)
        launch(b, late, o)

    m = planned(host)
    assert len({str(v) for v in views(m)}) == 3
    x = np.arange(5, dtype="f")
    np.testing.assert_array_equal(run(m, x), x * 2**6)


def test_branches_keep_their_operands_alive() -> None:
    def host(b: Builder, t: MemType, x: Value, o: Value) -> None:
        y = b.alloc(type=t)
        launch(b, x, y)
        p = b.lt(b.index(1), b.index(2))

        def yes(ib: Builder) -> None:
            z = ib.alloc(type=t)
            launch(ib, y, z)
            launch(ib, z, o)

        b.emit("if", p, blocks=[b.block([], yes), b.block([], lambda ib: launch(ib, y, o))])

    m = planned(host)
    x = np.arange(5, dtype="f")
    np.testing.assert_array_equal(run(m, x), x * 8)
    assert BOOL.dtype.is_bool


def test_static_sizes_pack_by_size() -> None:
    """Sizes 1000 and 10 bytes alive at different times share; the peak is printed and is what the view needs."""
    m = planned(lambda b, t, x, o: chain(b, t, x, o, length=6), n=100)
    assert m.entry.attrs["arena"] == 2 * 448
    assert m.entry.attrs["buffers"] == 6
