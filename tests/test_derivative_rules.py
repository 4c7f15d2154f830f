"""Derivative rules where the samples of `test_derivatives.py` do not lead: symbolic sizes, no elements at all, half precision,
large windows, repeated updates, special points, native code.

`derived_module` asks for a derived function as the frontend does; interpreting it with the sizes bound is the reference for
compiled code, and the same rule on concrete sizes the reference for symbolic ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fluxir as fx
from fluxir import driver
from fluxir.cli.ops import transforms
from fluxir.errors import FluxError
from fluxir.ir import dims
from fluxir.ir.build import Builder
from fluxir.ir.core import Block, Func, Module, Op, Value
from fluxir.ir.dtypes import DTYPES
from fluxir.ir.interp import Interpreter, interpret
from fluxir.ir.opdef import REGISTRY, Sample, normalise_attrs
from fluxir.ir.types import TensorType, tensor
from fluxir.ops.control import Transform
from tests.op_harness import inputs_of, symbolic_variants
from tests.test_derivatives import cases, function, in_f64, inputs, is_float, made

NAMES = sorted({name for name, _ in cases()})
pytestmark = pytest.mark.filterwarnings("ignore:Mean of empty slice")  # references of ops that mean NaN there


def floats(values: Sequence[Value]) -> list[int]:
    return [i for i, v in enumerate(values) if is_float(v.type)]


def derived_module(op: Op, kind: str, facts: dims.Facts | None = None) -> Module:
    """A module whose entry is the `kind` (pullback or jvp) of `op` in all its floats."""
    f = function(op)
    wrt, of = floats(op.operands), floats(op.results)
    back = kind == "pullback"
    given = [op.results[j].type for j in of] if back else [op.operands[i].type for i in wrt]
    outs = (
        [op.operands[i].type for i in wrt]
        if back
        else [*[r.type for r in op.results], *[op.results[j].type for j in of]]
    )
    args = [Value(t, None, i) for i, t in enumerate([*[v.type for v in op.operands], *given])]
    b = Builder()
    transform = str(Transform(kind, tuple(wrt), tuple(of)))
    results = b.emit("call", *args, callee=f.name, results=tuple(outs), transform=transform)
    return Module("m", {"main": Func("main", Block(args, b.ops, results)), f.name: f}, facts or dims.Facts())


def resolved(op: Op, kind: str, facts: dims.Facts | None = None) -> Module:
    return driver.run_passes(derived_module(op, kind, facts), f"{driver.DERIVE},inline")[0]


def run(m: Module, args: Sequence[Any], env: dict[str, int] | None = None) -> list[Any]:
    with np.errstate(all="ignore"):
        return [np.asarray(x) for x in Interpreter(m, env or {}).call(m.entry.name, args)]


def close(got: Any, want: Any, tol: float) -> None:
    want = np.asarray(want).astype(np.float64)
    scale = np.max(np.abs(want), initial=0, where=np.isfinite(want))
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), want, rtol=tol, atol=tol * max(scale, 1e-2))


def draw(rng: Any, t: Any, shape: Sequence[int] | None = None) -> Any:
    return np.asarray(rng.standard_normal(t.shape if shape is None else shape)).astype(t.dtype.numpy)


# ---- sizes ----------------------------------------------------------------------------------------------------------------


def symbolic_ops(name: str, case: Sample) -> list[tuple[Op, dict[str, int]]]:
    """The sample with one size a symbol about which nothing is known; those that the type rule accepts."""
    out = []
    for types, attrs, env in symbolic_variants(case):
        args = [Value(in_f64(t), None, i) for i, t in enumerate(types)]
        given = made(name, case).attrs if name == "cast" else normalise_attrs(REGISTRY[name], attrs)
        try:
            out.append((Op(REGISTRY[name], args, given), env))
        except FluxError:
            continue
    return out


def size_of(shape: Sequence[Any], env: dict[str, int]) -> tuple[int, ...]:
    return tuple(dims.evaluate(d, env) for d in shape)


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_and_empty_sizes(name: str) -> None:
    """With a symbol for a size: the same numbers as with the size, and the right shapes and no NaN where it is 0 or 2."""
    for k, case in enumerate(REGISTRY[name].samples):
        if (name, k) not in cases():
            continue
        op = made(name, case)
        concrete = {kind: resolved(op, kind) for kind in ("pullback", "jvp")}
        xs = inputs(name, case, op)
        for sym, env in symbolic_ops(name, case):
            for kind in ("pullback", "jvp"):
                try:
                    m = resolved(sym, kind)
                except FluxError as e:  # the derivative of a transposed convolution needs an axis that has elements
                    assert name == "conv" and e.code == "FX0218" and max(case.attrs["lhs_dilation"]) > 1, e
                    continue
                rng = np.random.default_rng(k)
                sides = [op.results[j] for j in floats(op.results)] if kind == "pullback" else [op.operands[i] for i in floats(op.operands)]  # fmt: skip
                given = [draw(rng, v.type) for v in sides]
                for g, w in zip(run(m, [*xs, *given], env), run(concrete[kind], [*xs, *given]), strict=True):
                    close(g, w, 1e-9)
                for n in (0, 2):
                    check_shapes(sym, m, kind, xs, {"N": n})


def check_shapes(op: Op, m: Module, kind: str, xs: Sequence[Any], env: dict[str, int]) -> None:
    ins = [np.resize(x, size_of(v.type.shape, env)) if x.size else np.zeros(size_of(v.type.shape, env), x.dtype) for x, v in zip(xs, op.operands, strict=True)]  # fmt: skip
    try:
        outs = run(Module("m", {"f": Func("f", function(op).block)}), ins, env)
    except (FluxError, ValueError, IndexError, OverflowError):
        return  # the op itself has no meaning at this size
    rng = np.random.default_rng(0)
    back = kind == "pullback"
    sides = [outs[j] for j in floats(op.results)] if back else [ins[i] for i in floats(op.operands)]
    got = run(m, [*ins, *[rng.standard_normal(s.shape) for s in sides]], env)
    want = [ins[i] for i in floats(op.operands)] if back else [outs[j] for j in floats(op.results)]
    for g, w in zip(got if back else got[len(outs) :], want, strict=True):
        assert g.shape == w.shape
        defined = all(np.isfinite(y.astype(np.float64)).all() for y in outs)
        assert np.isfinite(g).all() or not defined


# ---- types ----------------------------------------------------------------------------------------------------------------

ULP = {"f16": 2**-10, "bf16": 2**-7, "f32": 2**-22}


@pytest.mark.parametrize("dtype", ULP)
@pytest.mark.parametrize("name", NAMES)
def test_cotangents_of_every_float_type(name: str, dtype: str) -> None:
    """The type is that of the operand, and the numbers are those of f64 to a few units in the last place."""
    for k, case in enumerate(REGISTRY[name].samples):
        if (name, k) not in cases() or name == "cast" or (case.make is not None and name != "batch_norm"):
            continue
        wide = made(name, case)
        types = [TensorType(DTYPES[dtype], t.shape) if is_float(t) else t for t in map(tensor, case.types)]
        op = Op(wide.defn, [Value(t, None, i) for i, t in enumerate(types)], wide.attrs)
        narrow = [x.astype(t.dtype.numpy) for x, t in zip(inputs(name, case, wide), types, strict=True)]
        exact = [x.astype(v.type.dtype.numpy) for x, v in zip(narrow, wide.operands, strict=True)]
        for kind in ("pullback", "jvp"):
            sides = [op.results[j] for j in floats(op.results)] if kind == "pullback" else [op.operands[i] for i in floats(op.operands)]  # fmt: skip
            given = [draw(np.random.default_rng(1), v.type) for v in sides]
            m = resolved(op, kind)
            got = run(m, [*narrow, *given])
            want = run(resolved(wide, kind), [*exact, *[g.astype(np.float64) for g in given]])
            for g, w, v in zip(got, want, m.entry.outs, strict=True):
                assert g.dtype == v.type.dtype.numpy
                if g.dtype.kind not in "iub":
                    np.testing.assert_array_equal(np.isnan(g), np.isnan(w))
                    scale = np.max(np.abs(w), initial=1e-30, where=~np.isnan(w))
                    apart = np.abs(g.astype(np.float64) - w)
                    assert np.max(apart, initial=0, where=~np.isnan(w)) <= 20 * ULP[dtype] * scale


def test_ties_beyond_the_range_of_a_half() -> None:
    """100,000 equal elements share a cotangent; their number is no f16."""
    g = fx.grad(fx.max)(np.zeros(100_000, np.float16))
    assert g.dtype == np.float16
    np.testing.assert_allclose(np.sum(g.astype(np.float64)), 1, rtol=0.01)


def test_products_of_halves_do_not_overflow_on_the_way() -> None:
    x = np.repeat(np.array([4, 0.25], np.float16), 20)  # the product of the first half is 2**40
    np.testing.assert_array_equal(fx.grad(fx.prod)(x), np.repeat(np.array([0.25, 4], np.float16), 20))


# ---- native code ------------------------------------------------------------------------------------------------------------

NATIVE = {"float64": 1e-11, "float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}


def test_every_rule_as_native_code() -> None:
    """All samples of a few ops in one program: the families that have templates of their own, on every run."""
    for name in ("conv", "gather", "scatter", "reduce_window", "softmax", "prod", "cumprod", "sort", "dot", "max"):
        compare_native(name)


@pytest.mark.deep
@pytest.mark.parametrize("name", NAMES)
def test_rules_as_native_code(name: str) -> None:
    compare_native(name)


def compare_native(name: str) -> None:
    funcs: dict[str, Func] = {}
    b, args, outs, data = Builder(), [], [], []
    for k, case in enumerate(REGISTRY[name].samples):
        op = made(name, case, wide=False)
        wrt, of = floats(op.operands), floats(op.results)
        if not wrt or not of:
            continue
        funcs[f"f{k}"] = Func(f"f{k}", function(op).block)
        rng = np.random.default_rng(k)
        here = [Value(v.type, None, len(args) + i) for i, v in enumerate([*op.operands, *[op.results[j] for j in of]])]
        args += here
        data += [*inputs_of(case), *[draw(rng, op.results[j].type) for j in of]]
        transform = str(Transform("pullback", tuple(wrt), tuple(of)))
        types = tuple(op.operands[i].type for i in wrt)
        outs += b.emit("call", *here, callee=f"f{k}", results=types, transform=transform)
    m = Module("m", {"main": Func("main", Block(args, b.ops, outs)), **funcs})
    with np.errstate(all="ignore"):
        want = interpret(driver.run_passes(m, f"{driver.DERIVE},inline")[0], data)
    got = driver.compile_module(m, "cpu", cache=False)(*data)
    for g, w in zip(got if isinstance(got, (list, tuple)) else [got], want, strict=True):
        close(g, w, NATIVE[str(w.dtype)])


# ---- windows ----------------------------------------------------------------------------------------------------------------

WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((7, 6), {"window": (3, 2), "strides": (3, 2), "padding": (0,) * 4, "dilation": (1, 1)}),  # tiles, a row left over
    ((2, 8), {"window": (1, 4), "strides": (1, 4), "padding": (0,) * 4, "dilation": (1, 1)}),
    ((8, 9), {"window": (6, 6), "strides": (1, 2), "padding": (0,) * 4, "dilation": (1, 1)}),  # large, overlapping
    ((40,), {"window": (26,), "strides": (5,), "padding": (3, 2), "dilation": (1,)}),
    ((2, 60), {"window": (1, 27), "strides": (1, 3), "padding": (0, 0, 4, 4), "dilation": (1, 2)}),
    ((60,), {"window": (30,), "strides": (30,), "padding": (-2, 5), "dilation": (1,)}),
    ((5, 5), {"window": (2, 3), "strides": (1, 2), "padding": (1, 0, 2, 1), "dilation": (2, 1)}),  # small
]


@pytest.mark.parametrize("how", ["max", "min", "prod", "sum"])
@pytest.mark.parametrize(("shape", "attrs"), WINDOWS)
def test_windows(shape: tuple[int, ...], attrs: dict[str, Any], how: str) -> None:
    """Whatever way a rule takes its windows, its derivative is that of the numpy meaning."""
    d = REGISTRY["reduce_window"]
    op = Op(d, [Value(TensorType(DTYPES["f64"], shape), None, 0)], normalise_attrs(d, {"op": how, **attrs}))
    rng = np.random.default_rng(0)
    x = rng.permutation(np.linspace(0.8, 1.25, math.prod(shape))).reshape(shape)  # no ties
    ct, v = draw(rng, op.result.type), rng.standard_normal(shape)
    h = 1e-5
    with np.errstate(all="ignore"):
        slope = (d.ref(op.attrs, x + h * v) - d.ref(op.attrs, x - h * v)) / (2 * h)  # type: ignore[misc]
    slope = np.where(np.isfinite(slope), slope, 0)  # a window of nothing but padding
    (g,) = run(resolved(op, "pullback"), [x, ct])
    _, t = run(resolved(op, "jvp"), [x, v])
    close(t, slope, 1e-6)
    np.testing.assert_allclose(np.sum(g * v), np.sum(ct * t), rtol=1e-9)


def test_the_code_of_a_large_window_stays_small() -> None:
    counts = []
    for n in (2, 28):
        f = fx.jit(fx.grad(lambda x, n=n: fx.sum(fx.functional.max_pool(x, n, stride=n) ** 2)))
        counts.append(f.lower(fx.f32[2, 3, 28, 28]).as_text("simplified", locations=False).count(" = "))
    assert counts[1] <= counts[0] + 5


def test_ties_in_a_window_share() -> None:
    for window in (2, 6):
        g = fx.grad(lambda x, w=window: fx.sum(fx.functional.max_pool(x, w, stride=w)))(np.ones((1, 1, 6, 6)))
        np.testing.assert_allclose(g, np.full((1, 1, 6, 6), 1 / window**2))


# ---- updates that meet --------------------------------------------------------------------------------------------------------


def second(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """The Hessian of `f` reverse over reverse, and forward over reverse."""
    rows = np.eye(x.size)
    g = fx.grad(f)
    back = [fx.grad(lambda v, e=e: fx.sum(g(v) * fx.asarray(e)))(x) for e in rows]
    return np.stack(back), np.stack([fx.jvp(g, (x,), (e,))[1] for e in rows])


def by_hand(mode: str) -> list[list[int]]:
    """The factors of each element of the scatter of `z[2:]` at places 0, 0, 1, 0 into `z[:2]`, by their places in z."""
    at, out = [0, 0, 1, 0], []
    for place in (0, 1):
        terms = [2 + k for k, i in enumerate(at) if i == place]
        out.append([place, *terms] if mode == "mul" else terms[-1:])
    return out


@pytest.mark.parametrize("mode", ["mul", "set"])
@pytest.mark.parametrize("zeros", [(), (2,), (2, 3), (0,), (0, 2, 3, 5)])
def test_scatter_with_repeated_places_and_zeros(mode: str, zeros: tuple[int, ...]) -> None:
    """First and second derivatives are those of the polynomial: no division by an update, the last one wins."""
    z = np.array([1.3, 0.7, 1.5, 2.0, 3.0, 0.5])
    z[list(zeros)] = 0
    weights = np.array([1.0, 2.0])
    index = fx.asarray(np.array([0, 0, 1, 0]))

    def f(v: Any) -> Any:
        at = v[:2].at[index]
        y = at.multiply(v[2:]) if mode == "mul" else at.set(v[2:])
        return fx.sum(y * fx.asarray(weights))

    factors = by_hand(mode)

    def others(which: list[int], without: set[int]) -> float:
        return float(np.prod([z[i] for i in which if i not in without]))

    gradient, hessian = np.zeros(6), np.zeros((6, 6))
    for w, which in zip(weights, factors, strict=True):
        for i in which:
            gradient[i] += w * others(which, {i})
            for j in which:
                if i != j:
                    hessian[i, j] += w * others(which, {i, j})
    np.testing.assert_allclose(fx.grad(f)(z), gradient, rtol=1e-12)
    for h in second(f, z):
        np.testing.assert_allclose(h, hessian, rtol=1e-12)


@pytest.mark.parametrize("x", [[0.0, 2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 0.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
def test_second_derivatives_of_products_with_zeros(x: list[float]) -> None:
    v = np.array(x)

    def hessian(upto: int) -> Any:
        out = np.zeros((4, 4))
        for i in range(upto):
            for j in range(upto):
                if i != j:
                    out[i, j] = np.prod([v[k] for k in range(upto) if k not in (i, j)])
        return out

    for h in second(fx.prod, v):
        np.testing.assert_allclose(h, hessian(4), rtol=1e-12)
    for h in second(lambda u: fx.sum(fx.cumprod(u)), v):
        np.testing.assert_allclose(h, sum(hessian(k) for k in range(1, 5)), rtol=1e-12)


# ---- special points ---------------------------------------------------------------------------------------------------------

INF = math.inf
SELU = 1.6732632423543772 * 1.0507009873554805
SLOPES: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("relu", {}, [0, -0.0, INF, -INF], [0, 0, 1, 0]),
    ("relu6", {}, [0, 6, 3, 7, -INF], [0, 0, 1, 0, 0]),
    ("elu", {"alpha": 0.5}, [0, -0.0, -INF, 200], [0.5, 0.5, 0, 1]),
    ("selu", {}, [0, -0.0, -200], [SELU, SELU, 0]),
    ("leaky_relu", {"slope": 0.1}, [0, -1, 1], [1, 0.1, 1]),
    ("softplus", {}, [0, -0.0, 200, -200, INF, -INF], [0.5, 0.5, 1, math.exp(-200), 1, 0]),
    ("softsign", {}, [0, 1, -3], [1, 0.25, 0.0625]),
    ("mish", {}, [0, 200, -200], [0.6, 1, -199 * math.exp(-200)]),
    ("gelu", {}, [0, INF, -INF, 60, -60], [0.5, 1, 0, 1, 0]),
    ("gelu", {"approximate": True}, [0, INF, -INF, 1e30, -1e30], [0.5, 1, 0, 1, 0]),
    ("silu", {}, [0, 800, -800], [0.5, 1, 0]),
    ("hard_sigmoid", {}, [0, 4, -4, INF], [1 / 6, 0, 0, 0]),
    ("digamma", {}, [1, 0.5, -0.5], [math.pi**2 / 6, math.pi**2 / 2, math.pi**2 / 2 + 4]),
    ("lgamma", {}, [1, 0.5], [-0.5772156649015329, -0.5772156649015329 - 2 * math.log(2)]),
    ("sqrt", {}, [0, 4], [INF, 0.25]),
    ("abs", {}, [0, -0.0, -2], [0, 0, -1]),
    ("tanh", {}, [INF, -INF, 0], [0, 0, 1]),
    ("sigmoid", {}, [INF, -INF, 0], [0, 0, 0.25]),
]
CURVES: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("softplus", {}, [0, INF, -INF], [0.25, 0, 0]),
    ("mish", {}, [0], [0.64]),
    ("gelu", {}, [0, INF, -INF], [math.sqrt(2 / math.pi), 0, 0]),
    ("silu", {}, [0], [0.5]),
    ("digamma", {}, [1, -0.5, -2.5], [-2.4041138063191886, -0.8287966442344, -0.108204051639]),
]


def slope(name: str, attrs: dict[str, Any], points: list[float], order: int) -> list[Any]:
    """The derivative in reverse and in forward mode; of the second order, reverse over reverse and forward over reverse."""
    d = REGISTRY[name]
    x = np.array(points, np.float64)
    op = Op(d, [Value(TensorType(DTYPES["f64"], x.shape), None, 0)], normalise_attrs(d, attrs))
    one = np.ones_like(x)
    if order == 1:
        return [run(resolved(op, "pullback"), [x, one])[0], run(resolved(op, "jvp"), [x, one])[1]]

    def first(v: Any) -> Any:
        return fx.grad(lambda u: fx.sum(apply(name, attrs, u)))(v)

    return [fx.grad(lambda v: fx.sum(first(v)))(x), fx.jvp(first, (x,), (one,))[1]]


def apply(name: str, attrs: dict[str, Any], x: Any) -> Any:
    from fluxir.frontend.tensor import emit

    return emit(name, x, **attrs)


@pytest.mark.parametrize(("name", "attrs", "points", "want"), SLOPES)
def test_slopes_at_special_points(name: str, attrs: dict[str, Any], points: list[float], want: list[float]) -> None:
    for got in slope(name, attrs, points, 1):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("name", "attrs", "points", "want"), CURVES)
def test_curvature_at_special_points(name: str, attrs: dict[str, Any], points: list[float], want: list[float]) -> None:
    with np.errstate(all="ignore"):
        for got in slope(name, attrs, points, 2):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)


def test_digamma_is_accurate() -> None:
    """Against sums of many more terms, added without rounding errors."""

    def reference(x: float) -> float:
        steps = []
        while x < 60:
            steps.append(-1 / x)
            x += 1
        series = 1 / (12 * x**2) - 1 / (120 * x**4) + 1 / (252 * x**6)
        return math.fsum([*steps, math.log(x), -0.5 / x, -series])

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(1e-3, 12, 300), -rng.uniform(0.01, 9, 300), [1e6, 1e12]])
    want = np.array([reference(float(v)) if v < 1e5 else math.log(v) - 0.5 / v for v in x])
    d = REGISTRY["digamma"]
    op = Op(d, [Value(TensorType(DTYPES["f64"], x.shape), None, 0)], normalise_attrs(d, {}))
    module = Module("m", {"f": Func("f", function(op).block)})
    expanded = interpret(driver.run_passes(module, "expand")[0], [x])[0]
    for got in (d.ref(op.attrs, x), expanded):  # type: ignore[misc]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_logsumexp_of_infinities() -> None:
    np.testing.assert_array_equal(fx.grad(fx.logsumexp)(np.array([-INF, -INF])), 0)
    np.testing.assert_array_equal(fx.grad(fx.logsumexp)(np.array([INF, 0.0])), [np.nan, 0])


def test_attention_without_anything_to_see() -> None:
    """Masked rows give 0 and take nothing: no NaN in any gradient, interpreted or compiled."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 4))
    mask = np.array([[True, False], [False, False]])

    def f(q: Any, k: Any, v: Any) -> Any:
        return fx.sum(fx.functional.attention(q, k, v, fx.asarray(mask)) ** 2)

    for run_ in (fx.grad(f, argnums=(0, 1, 2)), fx.jit(fx.grad(f, argnums=(0, 1, 2)))):
        grads = run_(q, k, v)
        assert all(np.isfinite(g).all() for g in grads)
        np.testing.assert_array_equal(grads[0][1], 0)
        assert np.any(grads[2][0]) and not np.any(grads[2][1])


def test_a_composite_keeps_what_is_stopped() -> None:
    x = np.array([1.0, 2.0])
    np.testing.assert_array_equal(fx.grad(lambda v: fx.sum(fx.stop_gradient(fx.stop_gradient(v)) * v))(x), x)
    np.testing.assert_array_equal(fx.jvp(lambda v: fx.stop_gradient(v) * v, (x,), (np.ones(2),))[1], x)


def test_unused_and_repeated_arguments() -> None:
    x = np.array([1.0, 2.0], np.float32)
    unused = fx.grad(lambda a, b: fx.sum(a), argnums=1)(x, x)
    assert unused.dtype == np.float32 and np.array_equal(unused, np.zeros(2)) and not np.signbit(unused).any()
    np.testing.assert_array_equal(fx.grad(lambda a: fx.sum(a * a * a))(x), 3 * x**2)
    np.testing.assert_array_equal(fx.grad(lambda a, b: fx.sum(a * b), argnums=(0, 1))(x, x)[1], x)


def test_an_integer_argument_is_refused() -> None:
    with pytest.raises(FluxError) as e:
        fx.grad(lambda i: fx.sum(i * 2.0))(np.arange(3))
    assert e.value.code == "FX0411"


# ---- the table ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_no_op_is_a_hole_in_the_table(name: str) -> None:
    """`fluxir ops` shows a rule, or why there is none, for every transform; and the reason is true."""
    d = REGISTRY[name]
    found = transforms(d)
    assert all(found.values()), found
    if found["vjp"] == "yes":
        assert d.vjp is not None and not d.constant
    if found["vjp"].startswith("zero") and d.samples:  # nothing flows through it: proven by what it takes and gives
        ops = [made(name, s, wide=False) for s in d.samples]
        flows = [o for o in ops if floats(o.operands) and floats(o.results)]
        assert not flows or d.constant in ("piecewise constant", "stops derivatives", "reads bits")
