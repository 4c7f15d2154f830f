"""What samples cannot show: the errors of the shape rules, proofs about sizes, and meanings checked against other sources."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import Builder, build_func
from fluxir.ir.core import Module
from fluxir.ir.interp import Interpreter, interpret
from fluxir.ir.types import INDEX, MemType, TensorType, VectorType, tensor
from fluxir.ops import meaning, recipes
from fluxir.ops.bounds import at_most
from fluxir.ops.random import philox
from fluxir.ops.shape import factor_groups
from tests.op_harness import element_kernel


def apply(name: str, *types: str, **attrs: Any) -> TensorType:
    f = build_func("f", [tensor(t) for t in types], lambda b, *xs: b.emit(name, *xs, **attrs))
    out = f.outs[0].type
    assert isinstance(out, TensorType)
    return out


def run(name: str, *arrays: Any, **attrs: Any) -> Any:
    types = [TensorType.of(np.asarray(a).dtype, np.shape(a)) for a in arrays]
    f = build_func("f", types, lambda b, *xs: b.emit(name, *xs, **attrs))
    return interpret(Module("m", {"f": f}), list(arrays))[0]


# ---- errors ------------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[str, str, str, tuple[str, ...], dict[str, Any]]] = [
    ("FX0204", "24 elements cannot become 25", "reshape", ("f32[6,4]",), {"shape": (5, 5)}),
    ("FX0204", "axis 1 would have to be 4", "reshape", ("f32[6,4]",), {"shape": (6, 5)}),
    ("FX0204", "state the fact B*4 == 12", "reshape", ("f32[B,4]",), {"shape": (3, 4)}),
    ("FX0218", "is negative", "reshape", ("f32[6]",), {"shape": (-6, -1)}),
    ("FX0207", "not a permutation of the 3 axes", "transpose", ("f32[2,3,4]",), {"perm": (0, 2)}),
    ("FX0207", "not a permutation", "transpose", ("f32[2,3]",), {"perm": (1, 1)}),
    ("FX0202", "4 is not 5 (axis 1", "broadcast", ("f32[4]",), {"shape": (3, 5)}),
    ("FX0202", "`axes` gives", "broadcast", ("f32[4]",), {"shape": (4, 4), "axes": (0, 1)}),
    ("FX0206", "repeated", "broadcast", ("f32[4,4]",), {"shape": (4, 4), "axes": (0, 0)}),
    ("FX0216", "5 is larger than 4", "slice", ("f32[4]",), {"start": (0,), "limit": (5,)}),
    ("FX0216", "3 is larger than 2", "slice", ("f32[4]",), {"start": (3,), "limit": (2,)}),
    ("FX0216", "must be positive", "slice", ("f32[4]",), {"start": (0,), "limit": (4,), "stride": (-1,)}),
    ("FX0216", "has 2 axes", "slice", ("f32[4,4]",), {"start": (0,), "limit": (4,)}),
    ("FX0218", "2 <= B is not known", "slice", ("f32[B]",), {"start": (2,), "limit": ("B",)}),
    ("FX0223", "has 2 axes", "pad", ("f32[2,3]", "f32"), {"low": (1,), "high": (1,)}),
    ("FX0223", "cannot be negative", "pad", ("f32[2]", "f32"), {"low": (1,), "high": (1,), "interior": (-1,)}),
    ("FX0201", "must be a f32 scalar", "pad", ("f32[2]", "i32"), {"low": (1,), "high": (1,)}),
    ("FX0218", "is negative", "pad", ("f32[2]", "f32"), {"low": (-3,), "high": (0,)}),
    ("FX0218", "may be negative", "pad", ("f32[B]", "f32"), {"low": (-3,), "high": (0,)}),
    ("FX0208", "3 (operand 0, axis 1) is not 4 (operand 1, axis 1)", "concat", ("f32[2,3]", "f32[2,4]"), {"axis": 0}),
    ("FX0208", "ranks differ", "concat", ("f32[2,3]", "f32[2]"), {"axis": 0}),
    ("FX0220", "no axis", "concat", ("f32", "f32"), {"axis": 0}),
    ("FX0205", "out of range", "iota", (), {"shape": (3,), "axis": 1, "dtype": "i32"}),
    ("FX0209", "bool", "iota", (), {"shape": (3,), "axis": 0, "dtype": "bool"}),
    ("FX0227", "must be u32[2]", "random_bits", ("u32[3]",), {"shape": (3,)}),
    ("FX0226", "32 bits of f32 cannot become 64", "bitcast", ("f32[2]",), {"dtype": "i64"}),
    ("FX0226", "bool", "bitcast", ("bool[2]",), {"dtype": "u8"}),
    ("FX0209", "must be bool", "select", ("i32[2]", "f32[2]", "f32[2]"), {}),
    ("FX0201", "differ", "add", ("i32[2]", "f32[2]"), {}),
    ("FX0209", "does not take i32", "exp", ("i32[2]",), {}),
    ("FX0202", "do not broadcast", "mul", ("f32[2]", "f32[3]"), {}),
    ("FX0221", "3 groups do not divide the 4 channels", "group_norm", ("f32[2,4]", "f32[4]", "f32[4]"), {"groups": 3}),
    ("FX0202", "scale must be f32[8]", "rms_norm", ("f32[3,8]", "f32[3]"), {"axes": (1,)}),
    ("FX0203", "4 is not 5", "attention", ("f32[3,4]", "f32[6,5]", "f32[6,2]"), {}),
    ("FX0214", "labels must be integers", "cross_entropy", ("f32[3,4]", "f32[3]"), {}),
]


@pytest.mark.parametrize(
    ("code", "words", "name", "types", "attrs"), ERRORS, ids=lambda v: v if isinstance(v, str) else None
)
def test_rule_refuses(code: str, words: str, name: str, types: tuple[str, ...], attrs: dict[str, Any]) -> None:
    with pytest.raises(FluxError) as caught:
        apply(name, *types, **attrs)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_facts_make_symbolic_slices_legal() -> None:
    with dims.assuming(dims.Facts({"B": (2, dims.INF)})):
        assert str(apply("slice", "f32[B]", start=(2,), limit=("B",))) == "f32[B-2]"
        assert str(apply("slice", "f32[B]", start=(0,), limit=("B//2",))) == "f32[(B//2)]"
        assert str(apply("pad", "f32[B]", "f32", low=(-2,), high=(1,))) == "f32[B-1]"


# ---- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "known"),
    [
        ("T//2", "T", True),
        ("((T+7)//8)*8-7", "T", True),
        ("T", "((T+7)//8)*8", True),
        ("min(B,2)", "B", True),
        ("2", "max(B,2)", True),
        ("B", "max(B,C)", True),
        ("min(B,3)+min(C,2)", "B+C", True),
        ("T//2+1", "T", False),
        ("2", "B", False),
        ("max(B,2)", "B", False),
        ("T", "(T//8)*8", False),
    ],
)
def test_proofs_of_order(a: str, b: str, known: bool) -> None:
    left, right = dims.parse_dim(a), dims.parse_dim(b)
    assert at_most(left, right) is known
    values = [dims.evaluate(right - left, {"T": t, "B": t // 3, "C": t % 5}) >= 0 for t in range(60)]
    assert all(values) or not known  # a proof is never wrong


@pytest.mark.parametrize(
    ("source", "target", "groups"),
    [
        (("B", 4, 4), ("B", 16), [([0], [0]), ([1, 2], [1])]),
        ((3, 16), (3, 4, 4), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (4, 6), [([0, 1], [0, 1])]),
        ((2, 1, 3), (2, 3, 1), [([0], [0]), ([2], [1])]),
        (("B", "T", 8), ("B*T", 8), [([0, 1], [0]), ([2], [1])]),
        (("B*4", 3), ("B", 4, 3), [([0], [0, 1]), ([1], [2])]),
        ((2, 3, 4, 5), (6, 20), [([0, 1], [0]), ([2, 3], [1])]),
    ],
)
def test_reshape_splits_into_smallest_groups(source: Any, target: Any, groups: Any) -> None:
    assert factor_groups(tuple(map(dims.as_dim, source)), tuple(map(dims.as_dim, target))) == groups


def test_a_reshape_that_splits_the_result_does_not_divide() -> None:
    """[B,16] read as [B,4,4]: the index is i*4 + j. Only merging axes of the operand divides."""
    split = element_kernel(build_func("f", [tensor("f32[B,16]")], lambda b, x: b.reshape(x, shape=("B", 4, 4))))
    assert {"div", "fmod"}.isdisjoint(op.name for op in split.entry.walk())
    merge = element_kernel(build_func("f", [tensor("f32[B,4,4]")], lambda b, x: b.reshape(x, shape=("B", 16))))
    assert [op.name for op in merge.entry.walk()].count("div") == 1


# ---- meanings ----------------------------------------------------------------------------------------------------------


def test_philox_known_answers() -> None:
    """From the Random123 distribution's kat_vectors (philox4x32, 10 rounds)."""
    ones = 0xFFFFFFFF
    pi = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0])
    cases = [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ones] * 4, [ones] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (*pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for counter, key, want in cases:
        words = philox(np.array(counter, np.uint32), np.array(key, np.uint32))
        assert " ".join(f"{int(w):08x}" for w in words) == want


def exact_fma(x: float, y: float, z: float, dtype: Any) -> Any:
    """The correctly rounded result by search among the neighbours of a good guess, in exact fractions."""
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    guess = dtype(float(exact))
    around = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    return min(
        (v for v in around if np.isfinite(v)),
        key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(f"u{v.itemsize}")) & 1),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.uniform(-2, 2, 200).astype(dtype) for _ in range(2))
    z = (-(x * y) * (1 + rng.integers(-4, 5, 200) * np.finfo(dtype).eps)).astype(dtype)  # cancels
    z[100:] = rng.uniform(-2, 2, 100).astype(dtype) * dtype(2.0**30)
    got = meaning.fma(x, y, z)
    for a, b, c, g in zip(x, y, z, got, strict=True):
        assert g == exact_fma(float(a), float(b), float(c), dtype)


def test_fma_of_special_values() -> None:
    with np.errstate(all="ignore"):
        for dtype in (np.float32, np.float64):
            x = np.array([math.inf, 0, 1e30, -0.0, math.nan, 1], dtype)
            y = np.array([1, math.inf, 1e30, 1, 1, 1], dtype)
            z = np.array([-math.inf, 1, 0, -0.0, 1, -1], dtype)
            want = (x.astype(np.longdouble) * y + z).astype(dtype)
            np.testing.assert_array_equal(meaning.fma(x, y, z), want)
        assert np.signbit(meaning.fma(np.float64(-0.0), np.float64(1), np.float64(-0.0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vector", [False, True])
def test_fmod_recipe_is_exact(dtype: Any, vector: bool) -> None:
    """Over the whole range of exponents, subnormals included, against C's fmod (numpy's), to the bit."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), (2, 96), dtype=np.uint64).astype(
        f"u{np.dtype(dtype).itemsize}"
    )
    x, y = bits.view(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    x[:8] = [5.5, -5.5, np.finfo(dtype).max, 1, 0, 3 * tiny, 7, -0.0]
    y[:8] = [2, 2, tiny, np.finfo(dtype).max, 3, 2 * tiny, math.inf, 1]
    t = TensorType.of(dtype)
    lanes = 4 if vector else 0

    def body(b: Builder, mx: Any, my: Any, out: Any) -> None:
        def step(ib: Builder, i: Any) -> None:
            ib.store(out, recipes.fmod(ib, ib.load(mx, i, lanes=lanes), ib.load(my, i, lanes=lanes)), i)

        b.emit("for", b.index(0), b.index(96), b.index(lanes or 1), blocks=[b.block([INDEX], step)])

    kernel = Module("k", {"k": build_func("k", [MemType(t.dtype, (96,))] * 3, body, level="kernel")})
    out = np.zeros(96, dtype)
    with np.errstate(all="ignore"):
        Interpreter(kernel).call("k", [x, y, out])
        want = np.fmod(x, y)
    np.testing.assert_array_equal(out, want)
    zero = want == 0
    np.testing.assert_array_equal(np.signbit(out[zero]), np.signbit(want[zero]))


def test_integer_meanings_wrap_and_never_raise() -> None:
    low = np.array([-(2**31)], np.int32)
    minus, zero = np.array([-1], np.int32), np.array([0], np.int32)
    assert run("div", low, minus)[0] == -(2**31) and run("fmod", low, minus)[0] == 0
    assert run("floordiv", low, minus)[0] == -(2**31) and run("abs", low)[0] == -(2**31)
    for name in ("div", "fmod", "floordiv", "remainder"):
        assert run(name, low, zero)[0] == 0
    assert run("pow", np.array([3, -2, -1, 1, 0, 7], np.int32), np.array([40, 31, -3, -9, -1, 0], np.int32)).tolist() == [
        (3**40 + 2**31) % 2**32 - 2**31, -(2**31), -1, 1, 0, 1,
    ]  # fmt: skip
    assert run("shift_left", minus, np.array([32], np.int32))[0] == 0
    assert run("shift_right", low, np.array([99], np.int32))[0] == -1
    assert run("popcount", minus)[0] == 32 and run("clz", zero)[0] == 32 and run("clz", minus)[0] == 0


def test_float_to_integer_saturates() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 2.9, -2.9, 255.5], np.float32)
    assert run("cast", x, dtype="u8").tolist() == [0, 255, 0, 255, 0, 2, 0, 255]
    assert run("cast", x, dtype="i64").tolist() == [0, 2**63 - 1, -(2**63), 2**63 - 1, -(2**63), 2, -2, 255]
    assert run("cast", x.astype(ml_dtypes.bfloat16), dtype="i8").tolist() == [0, 127, -128, 127, -128, 2, -2, 127]


def test_halves_round_once_per_op() -> None:
    x = np.array([1.0, 3.0], ml_dtypes.bfloat16)
    third = run("div", x, np.array([3.0, 7.0], ml_dtypes.bfloat16))
    assert third.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(third, np.array([1 / 3, 3 / 7], np.float32).astype(ml_dtypes.bfloat16))


def test_masked_attention_rows_without_columns_give_zero() -> None:
    x = np.ones((2, 3), np.float32)
    out = run("attention", x, x, x, np.array([[True, False], [False, False]]))
    np.testing.assert_array_equal(out, [[1, 1, 1], [0, 0, 0]])


def test_vectors_have_their_own_types() -> None:
    f = build_func("v", [VectorType(tensor("f32").dtype, 8)] * 2, lambda b, x, y: b.add(x, y), level="kernel")
    assert str(f.outs[0].type) == "f32x8"
    with pytest.raises(FluxError) as caught:
        build_func(
            "v", [VectorType(tensor("f32").dtype, 8), tensor("f32")], lambda b, x, y: b.add(x, y), level="kernel"
        )
    assert caught.value.code == "FX0108"
