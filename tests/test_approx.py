"""The recipes of `fluxir/ops/approx` keep their published error bounds.

The error is taken against the C library one precision wider (f64 for f32, long double for f64); the same tests show with
mpmath, at random points and at the worst points found, that this oracle is right to a small fraction of an ulp. Inputs are
stratified: every exponent and both signs, the ranges where the function does something, and the special values. The deep
tests run more of them, and a share of all 2**32 f32 arguments that changes with the day.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest

import fluxir.ops  # noqa: F401  (declares the ops)
from fluxir.ir.build import build_func
from fluxir.ir.core import Module
from fluxir.ir.dtypes import dtype_of
from fluxir.ir.interp import interpret
from fluxir.ir.types import TensorType, VectorType
from fluxir.ops.approx import BOUNDS, RECIPES, coefficients
from tests.approx_harness import (
    NUMPY,
    LlvmBuilder,
    Register,
    compile_error,
    compile_oracle,
    compile_ptx,
    compile_recipe,
    loop_text,
    optimise,
    run_numpy,
)
from tools import derive_approx

DTYPES = ("f32", "f64")
BINARY = {"atan2", "pow"}
NAMES = sorted(RECIPES)
ALL = [(name, dtype) for name in NAMES for dtype in DTYPES]


def arity(name: str) -> int:
    return 2 if name in BINARY else 1


# ---- oracles


def _sigmoid(b: LlvmBuilder, x: Register) -> Register:
    e = b.libm("exp", b.neg(b.abs(x)))
    return b.div(b.select(b.lt(x, 0.0), e, b.const(1.0, x)), b.add(e, 1.0))


def oracle(name: str) -> Callable[..., Register]:
    if name == "sigmoid":
        return _sigmoid
    if name == "rsqrt":
        return lambda b, x: b.div(1.0, b.sqrt(x))
    return lambda b, *x: b.libm(name, *x)


MPMATH: dict[str, Callable[..., Any]] = {
    **{n: getattr(mpmath, n) for n in "exp expm1 log log1p log10 sin cos tan asin acos atan atan2".split()},
    **{n: getattr(mpmath, n) for n in "sinh cosh tanh asinh acosh atanh erf erfc".split()},
    "exp2": lambda x: mpmath.power(2, x),
    "log2": lambda x: mpmath.log(x) / mpmath.log(2),
    "lgamma": lambda x: mpmath.loggamma(x).real,
    "pow": mpmath.power,
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
}


def oracle_error(name: str, dtype: str, points: list[np.ndarray]) -> float:
    """The largest distance between the oracle and mpmath at some points, in ulp of `dtype`. Ordinary results only."""
    want = compile_oracle(oracle(name), dtype, arity(name))(*points)
    info = np.finfo(NUMPY[dtype])
    worst = 0.0
    with mpmath.workprec(160):
        for *args, w in zip(*points, want, strict=True):
            if not (np.isfinite(w) and info.smallest_subnormal < abs(w) < info.max and all(np.isfinite(args))):
                continue
            exact = MPMATH[name](*[mpmath.mpf(float(a)) for a in args])
            fraction, exponent = np.frexp(w)  # a long double is taken apart into two doubles
            high = float(fraction)
            shown = mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(float(fraction - np.longdouble(high))), int(exponent))
            ulp = mpmath.mpf(float(np.spacing(NUMPY[dtype](abs(w)))))
            worst = max(worst, float(abs(shown - exact) / ulp))
    return worst


# ---- inputs


def special(dtype: str) -> np.ndarray:
    """Zeros, infinities, NaN, the ends of the normal and subnormal range, and small and large round numbers."""
    info = np.finfo(NUMPY[dtype])
    positive = [0.0, info.smallest_subnormal, info.smallest_normal, info.max, math.inf, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    positive += [
        1e-5,
        0.1,
        10.0,
        33.0,
        100.0,
        1e4,
        2.0**info.nmant,
        2.0 ** (info.nmant + 1),
        2.0 ** (info.nmant + 1) - 1,
    ]
    positive += [np.nextafter(NUMPY[dtype](1), NUMPY[dtype](d)) for d in (0, 2)]
    return np.array([*positive, *[-p for p in positive], math.nan], NUMPY[dtype])


def stratified(dtype: str, count: int, seed: int) -> np.ndarray:
    """Every exponent and sign equally often, with random significands; `count` is about a power of two."""
    rng = np.random.default_rng(seed)
    exponent_bits, mantissa_bits = (8, 23) if dtype == "f32" else (11, 52)
    integer = np.dtype(f"u{NUMPY[dtype]().nbytes}")
    high = np.arange(2 << exponent_bits, dtype=integer).repeat(max(1, count >> (exponent_bits + 1)))
    bits = (high << integer.type(mantissa_bits)) | rng.integers(0, 1 << mantissa_bits, high.size, dtype=integer)
    return rng.permutation(bits.view(NUMPY[dtype]))


def ranges(dtype: str, count: int, seed: int) -> np.ndarray:
    """Uniform over the ranges where functions have their features."""
    rng = np.random.default_rng(seed)
    limits = (1.1, 3.0, 12.0, 120.0 if dtype == "f32" else 760.0)
    return np.concatenate([rng.uniform(-r, r, count // len(limits)) for r in limits]).astype(NUMPY[dtype])


def inputs(name: str, dtype: str, count: int, seed: int = 0) -> list[np.ndarray]:
    """About 1.3 `count` arguments."""
    if name not in BINARY:
        parts = [stratified(dtype, count, seed), ranges(dtype, count // 4, seed), special(dtype)]
        x = np.concatenate(parts)
        return [x[~(x < 0)] if (name, dtype) == ("lgamma", "f64") else x]  # its zeros have their own test
    rng = np.random.default_rng(seed)
    n, number = count // 4, NUMPY[dtype]
    pairs = [(stratified(dtype, n, seed), stratified(dtype, n, seed + 1))]
    scale = 80.0 if dtype == "f32" else 700.0
    base = np.exp(rng.uniform(-scale, scale, n)).astype(number)
    if name == "pow":
        low, high = (-152.0, 130.0) if dtype == "f32" else (-1078.0, 1026.0)
        near = (1 + rng.choice([-1.0, 1.0], n) * 2.0 ** -rng.uniform(1, 20, n)).astype(number)
        for x in (base, near):
            pairs.append((x, rng.uniform(low, high, n) / np.log2(x.astype(np.float64))))
        pairs.append((-rng.integers(1, 400, n), rng.integers(-60, 60, n)))
    else:
        pairs.append((base, base.astype(np.float64) * rng.uniform(-1.5, 1.5, n)))
        pairs.append((rng.standard_normal(n), rng.standard_normal(n)))
    grid = np.meshgrid(special(dtype), special(dtype))
    pairs.append((grid[0].ravel(), grid[1].ravel()))
    with np.errstate(all="ignore"):
        return [np.concatenate([np.asarray(p[i]).astype(number) for p in pairs]) for i in range(2)]


# ---- bounds


def check_bound(name: str, dtype: str, count: int, checked: int, seed: int = 0) -> None:
    x = inputs(name, dtype, count, seed)
    errors = compile_error(RECIPES[name], oracle(name), dtype, arity(name))(*x)
    order = np.argsort(errors)
    worst = [a[order[-1]] for a in x]
    assert errors[order[-1]] <= BOUNDS[name][dtype], f"{name} {dtype}: {errors[order[-1]]} ulp at {worst}"
    assert errors[order[-1]] > 0.25, "no function is this good: the measure is wrong"
    chosen = np.concatenate([order[-checked // 3 :], np.random.default_rng(seed).choice(order, checked)])
    assert oracle_error(name, dtype, [a[chosen] for a in x]) < 1 / 64


@pytest.mark.parametrize("name", NAMES)
def test_f32_within_bound_on_a_million_stratified_inputs(name: str) -> None:
    check_bound(name, "f32", 1 << 20, checked=60)


@pytest.mark.parametrize("name", NAMES)
def test_f64_within_bound_on_stratified_inputs(name: str) -> None:
    check_bound(name, "f64", 1 << 16, checked=40)


@pytest.mark.deep
@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_within_bound_deep(name: str, dtype: str) -> None:
    check_bound(name, dtype, 1 << 22, checked=2000, seed=1)


@pytest.mark.deep
@pytest.mark.parametrize("name", [n for n in NAMES if n not in BINARY])
def test_all_f32_within_bound_in_64_days(name: str, request: pytest.FixtureRequest) -> None:
    """One bit pattern in 64 of all f32 arguments, others each day. `tools/sweep_approx.py` runs all of them."""
    run = compile_error(RECIPES[name], oracle(name), "f32")
    step = 1 << 27
    for start in range(request.config.option.deep_day % 64, 1 << 32, step):
        x = np.arange(start, start + step, 64, dtype=np.uint32).view(np.float32)
        errors = run(x)
        at = int(np.argmax(errors))
        assert errors[at] <= BOUNDS[name]["f32"], f"{name}: {errors[at]} ulp at {x[at]!r}"


def test_lgamma_of_negative_f64() -> None:
    """Terms of opposite sign cancel between the poles, so the error is a few ulp of the largest term."""
    x = -np.concatenate([np.random.default_rng(0).uniform(0, 170, 1 << 15), 2.0 ** np.linspace(-1000, 60, 1 << 12)])
    got = compile_recipe(RECIPES["lgamma"], "f64")(x).astype(np.longdouble)
    want = compile_oracle(oracle("lgamma"), "f64")(x)
    term = compile_oracle(lambda b, v: b.libm("lgamma", b.sub(1.0, v)), "f64")(x)
    allowed = 6 * np.spacing(np.maximum(1, np.maximum(np.abs(want), np.abs(term))).astype(np.float64))
    pole = np.isinf(want)
    assert np.all(got[pole] == math.inf) and np.all(x[pole] == np.floor(x[pole]))
    assert np.all(np.abs(got[~pole] - want[~pole]) <= allowed[~pole])


@pytest.mark.parametrize("name", NAMES)
def test_every_f16_and_bf16_is_all_but_correctly_rounded(name: str) -> None:
    """Computed in f32 and rounded once more: half an ulp, and the f32 error, which is 2**-13 of an f16 ulp."""
    for number, mantissa, least in ((np.float16, 10, -14), (ml_dtypes.bfloat16, 7, -126)):
        every = np.arange(1 << 16, dtype=np.uint16).view(number).astype(np.float32)
        rng = np.random.default_rng(6)
        x = [every] if name not in BINARY else [every.repeat(4), rng.choice(every, 4 * every.size)]
        single = compile_recipe(RECIPES[name], "f32", arity(name))(*x)
        want = compile_oracle(oracle(name), "f32", arity(name))(*x)
        with np.errstate(all="ignore"):
            got, rounded = single.astype(number).astype(np.float64), want.astype(number).astype(np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        beyond = 65536.0 if number is np.float16 else 2.0**128
        usual = np.isfinite(want)
        np.testing.assert_array_equal(got[~usual], want[~usual])
        got, want = np.clip(got[usual], -beyond, beyond), np.clip(want[usual], -beyond, beyond)
        nonzero = np.maximum(np.minimum(np.abs(rounded[usual]), beyond / 2), 2.0**least)
        ulp = np.exp2(np.floor(np.log2(nonzero)) - mantissa)
        assert np.max(np.abs(got - want) / ulp) <= 0.5 + BOUNDS[name]["f32"] * 2.0 ** (mantissa - 23)


def test_published_bounds_keep_the_contract() -> None:
    assert set(BOUNDS) == set(RECIPES)
    for name, bound in BOUNDS.items():
        assert bound["f32"] <= (2 if name in ("exp", "log", "sin", "cos", "tanh", "erf") else 4)
        assert bound["f64"] <= 4


def test_documentation_states_the_published_bounds() -> None:
    text = (Path(__file__).parent.parent / "docs" / "numerics.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+)\*? \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert {name: {"f32": float(single), "f64": float(double)} for name, single, _, double, _ in rows} == BOUNDS
    assert all(float(s) <= BOUNDS[n]["f32"] and float(d) <= BOUNDS[n]["f64"] for n, _, s, _, d in rows)


# ---- exact cases


def value(name: str, dtype: str, *args: float) -> np.ndarray:
    """One result, through the numpy builder."""
    return run_numpy(RECIPES[name], *[np.array([a], NUMPY[dtype]) for a in args])[0]


POW_CASES = [
    *[(x, 0.0, 1.0) for x in (math.nan, math.inf, -math.inf, 0.0, -0.0, -3.0)],
    *[(1.0, y, 1.0) for y in (math.nan, math.inf, -math.inf, -2.5)],
    *[(-1.0, y, 1.0) for y in (math.inf, -math.inf, 2.0, 1e30)],
    *[(x, 3.0, x) for x in (0.0, -0.0, math.inf, -math.inf)],
    (-0.0, 2.0, 0.0),
    (-0.0, 0.5, 0.0),
    (-0.0, -1.0, -math.inf),
    (-0.0, -2.0, math.inf),
    (0.0, -0.5, math.inf),
    (-math.inf, -3.0, -0.0),
    (-math.inf, -2.0, 0.0),
    (-math.inf, 0.5, math.inf),
    (-8.0, 1 / 3, math.nan),
    (-2.0, 3.0, -8.0),
    (-2.0, -2.0, 0.25),
    (2.0, math.inf, math.inf),
    (2.0, -math.inf, 0.0),
    (-0.5, math.inf, 0.0),
    (-0.5, -math.inf, math.inf),
    (0.0, math.inf, 0.0),
    (0.0, -math.inf, math.inf),
    (math.nan, 1.0, math.nan),
    (2.0, math.nan, math.nan),
    (10.0, 2.0, 100.0),
    (7.0, 1.0, 7.0),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pow_special_cases_of_c99(dtype: str) -> None:
    for x, y, want in POW_CASES:
        np.testing.assert_array_equal(value("pow", dtype, x, y), NUMPY[dtype](want), err_msg=f"pow({x}, {y})")
        assert math.isnan(want) or np.signbit(value("pow", dtype, x, y)) == np.signbit(want), f"pow({x}, {y})"


ATAN2_CASES = [
    (0.0, 1.0, 0.0),
    (-0.0, 1.0, -0.0),
    (0.0, -1.0, math.pi),
    (-0.0, -1.0, -math.pi),
    (0.0, 0.0, 0.0),
    (0.0, -0.0, math.pi),
    (-0.0, -0.0, -math.pi),
    (1.0, 0.0, math.pi / 2),
    (-1.0, -0.0, -math.pi / 2),
    (math.inf, math.inf, math.pi / 4),
    (math.inf, -math.inf, 3 * math.pi / 4),
    (-math.inf, 5.0, -math.pi / 2),
    (5.0, math.inf, 0.0),
    (-5.0, -math.inf, -math.pi),
    (math.nan, 1.0, math.nan),
    (1.0, math.nan, math.nan),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_atan2_special_cases_of_c99(dtype: str) -> None:
    for y, x, want in ATAN2_CASES:
        got = value("atan2", dtype, y, x)
        np.testing.assert_array_equal(got, NUMPY[dtype](want), err_msg=f"atan2({y}, {x})")
        assert math.isnan(want) or np.signbit(got) == np.signbit(want), f"atan2({y}, {x})"


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_results(dtype: str) -> None:
    number = NUMPY[dtype]
    info = np.finfo(number)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    powers = np.ldexp(number(1), exponents)
    np.testing.assert_array_equal(run_numpy(RECIPES["exp2"], exponents.astype(number)), powers)
    np.testing.assert_array_equal(run_numpy(RECIPES["log2"], powers), exponents)
    np.testing.assert_array_equal(run_numpy(RECIPES["pow"], np.full_like(powers, 2), exponents.astype(number)), powers)
    whole = np.arange(-200, 201).astype(number)
    np.testing.assert_array_equal(run_numpy(RECIPES["cbrt"], whole**3), whole)
    tens = np.arange(11 if dtype == "f32" else 23)
    np.testing.assert_array_equal(run_numpy(RECIPES["log10"], number(10) ** tens.astype(number)), tens)
    for name, x, want in (
        ("exp", 0, 1),
        ("cos", 0, 1),
        ("cosh", 0, 1),
        ("log", 1, 0),
        ("acosh", 1, 0),
        ("sigmoid", 0, 0.5),
    ):
        assert value(name, dtype, x) == want
    assert value("lgamma", dtype, 1) == 0 and value("lgamma", dtype, 2) == 0


ODD = "sin tan asin atan sinh tanh asinh atanh erf cbrt".split()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ODD, "cos", "cosh"])
def test_symmetric_functions_are_symmetric_to_the_bit(name: str, dtype: str) -> None:
    x = np.abs(np.concatenate([stratified(dtype, 1 << 15, 3), ranges(dtype, 1 << 12, 3), special(dtype)]))
    run = compile_recipe(RECIPES[name], dtype)
    left, right = run(-x), run(x)
    np.testing.assert_array_equal(left, -right if name in ODD else right)
    number = ~np.isnan(left)
    np.testing.assert_array_equal(np.signbit(left)[number], (np.signbit(right) ^ (name in ODD))[number])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sin", "cos", "tanh", "erf", "sigmoid"])
def test_results_stay_in_range(name: str, dtype: str) -> None:
    x = np.concatenate([stratified(dtype, 1 << 16, 4), ranges(dtype, 1 << 16, 4)])
    y = compile_recipe(RECIPES[name], dtype)(x[np.isfinite(x)])
    assert np.all(y <= 1) and np.all(y >= (0 if name == "sigmoid" else -1))


# ---- what a recipe is


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_native_loop_numpy_and_ir_agree_to_the_bit(name: str, dtype: str) -> None:
    """The three meanings of a recipe: LLVM, numpy op by op, and real IR through the interpreter."""
    rng = np.random.default_rng(5)
    x = inputs(name, dtype, 1 << 12, seed=5)
    chosen = rng.choice(x[0].size, 120, replace=False)
    x = [np.concatenate([a[chosen], a[-20:]]) for a in x]
    native = compile_recipe(RECIPES[name], dtype, arity(name))(*x)
    t = TensorType.of(dtype_of(dtype), x[0].shape)
    func = build_func(name, [t] * arity(name), RECIPES[name])
    results = [run_numpy(RECIPES[name], *x), interpret(Module("m", {name: func}), x)[0]]
    for result in results:
        np.testing.assert_array_equal(result, native)
        assert np.all((np.signbit(result) == np.signbit(native)) | np.isnan(native))


@pytest.mark.parametrize("name", NAMES)
def test_recipes_take_vectors(name: str) -> None:
    for dtype in DTYPES:
        t = VectorType(dtype_of(dtype), 8)
        assert build_func(name, [t] * arity(name), RECIPES[name], level="kernel").block.outs[0].type == t


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_loops_vectorise_and_call_nothing(name: str, dtype: str) -> None:
    text = str(optimise(loop_text(RECIPES[name], [dtype] * arity(name))))
    calls = set(re.findall(r"call [^@]*@([\w.]+)\(", text))
    assert all(c.startswith("llvm.") for c in calls), calls
    lanes = re.findall(rf"<(\d+) x {'float' if dtype == 'f32' else 'double'}>", text)
    assert lanes, "the loop was not vectorised"
    assert len(re.findall(r"^\S+:", text, re.MULTILINE)) <= 10, "a recipe became branches"


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_ptx_is_ieee_arithmetic_alone(name: str, dtype: str) -> None:
    """No call to a library, no local memory, no flushing and no approximate instruction."""
    ptx = compile_ptx(loop_text(RECIPES[name], [dtype] * arity(name)), "sm_80")
    assert f".{dtype}" in ptx
    for word in (".extern", "__local_depot", ".ftz", ".approx", "call"):
        assert word not in ptx


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="cast first"):
        RECIPES["exp"](LlvmBuilder(), Register("%x", "i32"))


# ---- coefficients


@pytest.mark.parametrize("name", ["exp", "sin", "cosh", "cbrt_seed"])
def test_derivation_gives_the_committed_coefficients(name: str) -> None:
    for dtype, fit in derive_approx.FITS[name].items():
        derived, _ = derive_approx.fit_rounded(fit, dtype)
        assert tuple(float(c) for c in derived) == coefficients.COEFFICIENTS[name][dtype]


def test_derivation_gives_the_committed_constants() -> None:
    assert derive_approx.OUTPUT.read_text().endswith(derive_approx.constants())


@pytest.mark.deep
def test_derivation_gives_the_committed_file() -> None:
    assert derive_approx.OUTPUT.read_text() == derive_approx.source()


def test_words_of_two_over_pi() -> None:
    """Against pi from an independent series (Machin), in integers."""
    bits = 32 * len(coefficients.TWO_OVER_PI_WORDS) + 64

    def arctan_of_inverse(n: int) -> int:
        term = total = (1 << bits) // n
        k = 1
        while term:
            term //= -n * n
            total += term // (2 * k + 1)
            k += 1
        return total

    pi = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
    quotient = (2 << (2 * bits)) // pi >> 64
    for k, word in enumerate(reversed(coefficients.TWO_OVER_PI_WORDS)):
        assert (quotient >> (32 * k)) & 0xFFFFFFFF == word
