"""Products of 8-bit integers: recognised, computed on the integers themselves, exact for all values, on every kind of target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import config
from fluxir.driver import compile_module
from fluxir.ir.interp import interpret
from fluxir.passes.manager import PassManager
from fluxir.schedule import matmul_integer
from fluxir.target import host, parse_target
from tests.schedule_harness import check, func, module

TARGETS = ("cpu", "cpu:x86-64-v2", "cpu:x86-64-v3")
KINDS = {"u8": np.uint8, "i8": np.int8}


def runnable() -> list[str]:
    level = host().level
    return [t for t in TARGETS if t == "cpu" or (level and level >= int(t[-1]))]


def numbers(rng: Any, kind: str, shape: tuple[int, ...]) -> Any:
    """All values, the extremes often: these are what instructions that saturate get wrong."""
    low, high = np.iinfo(KINDS[kind]).min, np.iinfo(KINDS[kind]).max
    x = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.3, rng.choice([low, high], shape), x).astype(KINDS[kind])


def dot(lc: Any, rc: Any, lb: Any = (), rb: Any = ()) -> Any:
    return lambda b, x, y: b.emit(
        "dot", x, y, lhs_contract=lc, rhs_contract=rc, lhs_batch=lb, rhs_batch=rb, dtype="i32"
    )[0]


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("size", [(19, 37, 70), (33, 64, 16), (1, 130, 50), (40, 3, 49)])
def test_layouts_edges_and_extremes(left: str, right: str, size: tuple[int, int, int]) -> None:
    m, k, n = size
    rng = np.random.default_rng(0)
    for turned_left in (False, True):
        for turned_right in (False, True):
            a = numbers(rng, left, (k, m) if turned_left else (m, k))
            w = numbers(rng, right, (n, k) if turned_right else (k, n))
            types = [f"{d}[{','.join(map(str, x.shape))}]" for d, x in ((left, a), (right, w))]
            f = module(func(types, dot((int(not turned_left),), (int(turned_right),))))
            want = (a.T if turned_left else a).astype(np.int32) @ (w.T if turned_right else w).astype(np.int32)
            np.testing.assert_array_equal(interpret(f, [a, w])[0], want)
            for target in runnable():
                got = np.asarray(compile_module(f, target)(a, w)).reshape(want.shape)
                np.testing.assert_array_equal(got, want, err_msg=f"{target} {turned_left} {turned_right}")


def test_loops_with_symbolic_sizes_batches_and_what_follows() -> None:
    low = check(func(["u8[M,K]", "i8[K,N]"], dot((1,), (0,))), {"M": 14, "K": 23, "N": 19})
    assert any("matmul_integer" in f.name or "matmul(" in f.attrs.get("schedule", "") for f in low.funcs.values())
    for k in (1, 4, 7):
        check(func(["i8[M,K]", "i8[N,K]"], dot((1,), (1,))), {"M": 9, "K": k, "N": 18})
    check(func(["u8[3,12,20]", "i8[3,20,17]"], dot((2,), (1,), (0,), (0,))))
    check(func(["u8[12,2,10]", "i8[2,10,17]"], dot((1, 2), (0, 1))))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_blocks_and_threads(threads: int) -> None:
    rng = np.random.default_rng(threads)
    a, w = numbers(rng, "u8", (203, 3000)), numbers(rng, "i8", (3000, 151))
    f = module(func(["u8[203,3000]", "i8[3000,151]"], dot((1,), (0,))))
    with config.override(num_threads=threads):
        got = np.asarray(compile_module(f, "cpu")(a, w)).reshape(203, 151)
    np.testing.assert_array_equal(got, a.astype(np.int32) @ w.astype(np.int32))


def dots(fn: Any, *args: Any) -> list[Any]:
    """The products of a program before fusion."""
    text = fx.jit(fn).lower(*args).module
    passes = PassManager("inline,expand,simplify,fold,cse,layout,narrow,simplify,cse,dce", target=parse_target("cpu"))
    return [op for f in passes.run(text).funcs.values() for op in f.walk() if op.name == "dot"]


ZEROS = [None, 3, -200, "scalar", "rows"]


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("a", ZEROS)
@pytest.mark.parametrize("c", ZEROS)
def test_zero_points_are_taken_off_afterwards(left: str, right: str, a: Any, c: Any) -> None:
    rng = np.random.default_rng(1)
    x, w = numbers(rng, left, (12, 21)), numbers(rng, right, (21, 18))
    za = numbers(rng, left, (12, 1)) if a == "rows" else numbers(rng, left, ()) if a == "scalar" else a
    zc = numbers(rng, right, (18,)) if c == "rows" else numbers(rng, right, ()) if c == "scalar" else c

    def less(v: Any, z: Any) -> Any:
        return v if z is None else v - (z if isinstance(z, int) else z.astype(np.int32))

    given = [z for z in (za, zc) if not isinstance(z, int | None)]

    def f(x: Any, w: Any, *zeros: Any) -> Any:
        rest = list(zeros)
        z = [z if isinstance(z, int | None) else rest.pop(0) for z in (za, zc)]
        return less(x.astype(fx.i32), z[0]) @ less(w.astype(fx.i32), z[1])

    def g(x: Any, *zeros: Any) -> Any:
        return f(x, w, *zeros)

    want = less(x.astype(np.int32), za) @ less(w.astype(np.int32), zc)
    np.testing.assert_array_equal(fx.jit(f)(x, w, *given), want)
    np.testing.assert_array_equal(fx.jit(g)(x, *given), want)
    (op,) = dots(f, x, w, *given)
    assert [v.dtype.name for v in op.operands] == [left, right] and op.result.dtype.name == "i32"


def test_constants_take_the_sign_that_multiplies_fastest() -> None:
    rng = np.random.default_rng(2)
    x = numbers(rng, "u8", (8, 40))
    for offset in (0, 100, -1000):
        w = rng.integers(0, 256, (40, 12)).astype(np.int32) + offset

        def f(x: Any, w: Any = w) -> Any:
            return x.astype(fx.i32) @ w

        np.testing.assert_array_equal(fx.jit(f)(x), x.astype(np.int32) @ w)
        (op,) = dots(f, x)
        assert op.operands[1].dtype.name == ("u8" if parse_target("cpu").machine == "aarch64" else "i8")


def test_other_integers_stay_as_they_are() -> None:
    wide = np.arange(40 * 12, dtype=np.int32).reshape(40, 12)
    for fn, args in (
        (lambda x: x.astype(fx.i32) @ wide, (fx.u8[8, 40],)),
        (lambda x, w: x @ w, (fx.i32[8, 40], fx.i32[40, 12])),
        (lambda x, w, z: (x.astype(fx.i32) - z) @ w.astype(fx.i32), (fx.u8[8, 40], fx.i8[40, 12], fx.i32[40])),
    ):
        (op,) = dots(fn, *args)
        assert op.attrs["dtype"] is None


@pytest.mark.parametrize(
    ("left", "right", "parts"), [("u8", "i8", 4), ("i8", "u8", 4), ("u8", "u8", 2), ("i8", "i8", 2)]
)
def test_bytes_where_the_machine_multiplies_them(left: str, right: str, parts: int) -> None:
    from fluxir.ir.dtypes import DTYPES

    class Vnni:
        vector_bits = 512

        def has(self, feature: str) -> bool:
            return feature == "avx512vnni"

    found = matmul_integer.factors(DTYPES[left], DTYPES[right], Vnni())
    assert 32 // found[0].bits == parts
    plain = matmul_integer.factors(DTYPES[left], DTYPES[right], parse_target("cpu:x86-64-v3"))
    assert {d.name for d in plain} == {"i16"}


def test_instructions() -> None:
    f = lambda x, w: x.astype(fx.i32) @ w.astype(fx.i32)  # noqa: E731
    low = fx.jit(f).lower(fx.u8[64, 256], fx.i8[256, 64])
    assert "vpmaddwd" in low.as_text("asm", target="cpu:x86-64-v3", locations=False)
    if "avx512vnni" in host().features:
        assert "vpdpbusd" in low.as_text("asm", target="cpu", locations=False)


def test_sums_of_sums_are_looked_at_once() -> None:
    """A chain in which each sum reads the one before twice: 2**200 paths lead to its beginning."""

    def f(x: Any, w: Any) -> Any:
        for _ in range(200):
            x = x + x
        return x @ w

    x, w = np.ones((4, 4), np.int32), np.full((4, 3), 5, np.int32)
    assert "dtype=i32" not in fx.jit(f).lower(x, w).as_text("fused")
    assert not np.asarray(fx.jit(f)(x, w)).any()  # modulo 2**32
